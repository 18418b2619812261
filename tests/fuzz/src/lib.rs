//! Fuzz targets as plain functions, so that `tests/corpus.rs` runs them on stable and cargo-fuzz
//! drives the same code. Each takes any bytes and panics when a property is violated.
//!
//! A target is one file here, one row in [`TARGETS`], one folder in `corpus/` and, for cargo-fuzz,
//! one file in `fuzz_targets/`.

pub mod command;
pub mod data;
pub mod data_oracle;
pub mod path_param;

/// A fuzz target.
pub struct Target {
    /// Name of the target and of its folder in `corpus/`.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Tokens that a generator mixes into its inputs.
    pub dictionary: &'static [&'static [u8]],
}

/// Every target. `session` (random bytes, random splits, random verdicts against a session) and
/// `ring_open` (damaged rings) belong here too.
pub static TARGETS: &[Target] = &[
    Target {
        name: "command",
        run: command::run,
        dictionary: command::DICTIONARY,
    },
    Target {
        name: "path_param",
        run: path_param::run,
        dictionary: path_param::DICTIONARY,
    },
    Target {
        name: "data",
        run: data::run,
        dictionary: data::DICTIONARY,
    },
];
