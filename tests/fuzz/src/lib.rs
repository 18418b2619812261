//! Fuzz targets as plain functions, so that `tests/corpus.rs` runs them on stable and cargo-fuzz
//! drives the same code. Each takes any bytes and panics when a property is violated.
//!
//! A target is one file here, one row in [`TARGETS`], one folder in `corpus/` and, for cargo-fuzz,
//! one file in `fuzz_targets/`.

pub mod command;
pub mod ctl;
pub mod data;
pub mod data_oracle;
pub mod http;
pub mod path_param;
pub mod proxy;
pub mod ring_open;
pub mod session;

#[path = "../../session_support/mod.rs"]
mod session_support;

/// A fuzz target.
pub struct Target {
    /// Name of the target and of its folder in `corpus/`.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Tokens that a generator mixes into its inputs.
    pub dictionary: &'static [&'static [u8]],
    /// Inputs that are generated where nothing else is said: a second's worth of a debug build.
    pub inputs_default: u32,
}

/// Every target.
pub static TARGETS: &[Target] = &[
    Target {
        name: "command",
        run: command::run,
        dictionary: command::DICTIONARY,
        inputs_default: 20_000,
    },
    Target {
        name: "path_param",
        run: path_param::run,
        dictionary: path_param::DICTIONARY,
        inputs_default: 20_000,
    },
    Target {
        name: "data",
        run: data::run,
        dictionary: data::DICTIONARY,
        inputs_default: 20_000,
    },
    Target {
        name: "session",
        run: session::run,
        dictionary: session::DICTIONARY,
        inputs_default: 3_000,
    },
    Target {
        name: "ring_open",
        run: ring_open::run,
        dictionary: ring_open::DICTIONARY,
        inputs_default: 300,
    },
    Target {
        name: "ctl",
        run: ctl::run,
        dictionary: ctl::DICTIONARY,
        inputs_default: 5_000,
    },
    Target {
        name: "http",
        run: http::run,
        dictionary: http::DICTIONARY,
        inputs_default: 5_000,
    },
    Target {
        name: "proxy",
        run: proxy::run,
        dictionary: proxy::DICTIONARY,
        inputs_default: 2_000,
    },
];
