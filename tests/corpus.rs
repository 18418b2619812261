//! Runs the fuzz targets of `tests/fuzz` on stable: the corpus first, then generated inputs.
//!
//! A second's worth of inputs for each target; `RINGMX_FUZZ_SECONDS=60` goes on that long for each of them,
//! `RINGMX_FUZZ_SEED` chooses other inputs. A failure prints the input as a Rust byte string: save
//! its bytes in `tests/fuzz/corpus/TARGET/`, so that it is tried first from then on.

#[path = "fuzz/src/lib.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod fuzz;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use fuzz::{TARGETS, Target};
use ringmx::clock::Clock;

const INPUT_BYTES_MAX: usize = 1_024;
/// Work is bounded: an input that takes longer, even in a debug build on a busy machine, is a finding.
const INPUT_NS_MAX: u64 = 5_000_000_000;

#[test]
fn every_target_has_a_corpus_and_holds_on_it() {
    for target in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for input in corpus {
            run(target, &input);
        }
    }
}

#[test]
fn command_holds_on_generated_inputs() {
    generate(target("command"));
}

#[test]
fn path_param_holds_on_generated_inputs() {
    generate(target("path_param"));
}

#[test]
fn data_holds_on_generated_inputs() {
    generate(target("data"));
}

#[test]
fn session_holds_on_generated_inputs() {
    generate(target("session"));
}

#[test]
fn ring_open_holds_on_generated_inputs() {
    generate(target("ring_open"));
}

#[test]
fn ctl_holds_on_generated_inputs() {
    generate(target("ctl"));
}

#[test]
fn proxy_holds_on_generated_inputs() {
    generate(target("proxy"));
}

#[test]
fn http_holds_on_generated_inputs() {
    generate(target("http"));
}

fn target(name: &str) -> &'static Target {
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target of this name")
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target.name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a readable file"))
        .collect()
}

fn run(target: &Target, input: &[u8]) {
    let clock = Clock::new();
    let begun = clock.now();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        eprintln!(
            "target {} fails on b\"{}\"",
            target.name,
            input.escape_ascii()
        );
        resume_unwind(panic);
    }
    let spent = clock.now().since_ns(begun);
    assert!(
        spent < INPUT_NS_MAX,
        "target {} takes {spent} ns for b\"{}\"",
        target.name,
        input.escape_ascii()
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn generate(target: &Target) {
    let seconds = number("RINGMX_FUZZ_SECONDS");
    let mut random = Random(number("RINGMX_FUZZ_SEED").unwrap_or(0x5EED) | 1);
    let corpus = corpus(target);
    let clock = Clock::new();
    let until = clock.now().after(Duration::from_secs(seconds.unwrap_or(0)));
    let mut inputs = 0;
    while inputs < target.inputs_default || clock.now() < until {
        run(target, &random.input(target, &corpus));
        inputs += 1;
    }
    println!("{}: {inputs} inputs", target.name);
}

/// Marsaglia's xorshift64; the state is not 0.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    /// A corpus entry or nothing, changed a few times.
    fn input(&mut self, target: &Target, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = match self.below(3) {
            0 => Vec::new(),
            _ => corpus[self.below(corpus.len())].clone(),
        };
        let changes = 1 + self.below(16);
        for _ in 0..changes {
            self.change(&mut input, target, corpus);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, target: &Target, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(9) {
            0 if at < input.len() => {
                input.remove(at);
            }
            1 if at < input.len() => input[at] = self.below(256) as u8,
            2 => input.insert(at, self.below(256) as u8),
            3 if at < input.len() => {
                let end = at + self.below(input.len() - at);
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            4 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 if self.below(4) == 0 => {
                let octet = input.get(at).copied().unwrap_or(b'x');
                let run = vec![octet; self.below(150)];
                input.splice(at..at, run);
            }
            _ => {
                let token = target.dictionary[self.below(target.dictionary.len())];
                input.splice(at..at, token.iter().copied());
            }
        }
    }
}
