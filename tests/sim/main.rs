//! The whole receiver in a simulation: sessions, turns, group commit and ring over a simulated network, disk and
//! clock, all of it decided by one number.
//!
//! `RINGMX_SIM_SEED=n` replays one seed, `RINGMX_SIM_SEEDS=n` runs so many, `RINGMX_SIM_SECONDS=n` runs new seeds
//! for that long and prints figures, `RINGMX_SIM_FIRST=n` is the first of them, and those of `seeds.txt`
//! are left out. `RINGMX_SIM_TRACE=1` prints each call on the storage.

#[path = "../support/disk.rs"]
mod disk;
#[allow(dead_code, reason = "other tests use what this one does not")]
#[path = "../support/random.rs"]
mod random;
#[path = "../support/ring.rs"]
mod ring;

mod config;
mod consumer;
mod ledger;
mod net;
mod peer;
mod small;
mod world;

use world::{Figures, World};

/// Seeds of the short form, besides those of the file.
const SEEDS: u64 = 12;
/// Seeds in which everything happens that is counted.
const COVERING_SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed; a failure says how to replay it, and what was simulated before it.
fn run(seed: u64, before: &Figures) -> Figures {
    let result = std::panic::catch_unwind(|| {
        let mut world = World::new(seed);
        world.run(number("RINGMX_SIM_CRASHES"));
        world.figures
    });
    result.unwrap_or_else(|panic| {
        println!("replay: RINGMX_SIM_SEED={seed} cargo test --test sim");
        println!("{} crashes before it", before.crashes);
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn every_promise_is_kept_through_crashes_on_a_hostile_network() {
    if let Some(seed) = number("RINGMX_SIM_SEED") {
        println!("{:?}", World::new(seed).config);
        println!("{:?}", run(seed, &Figures::default()));
        return;
    }
    let mut total = Figures::default();
    let clock = ringmx::clock::Clock::new();
    let first = number("RINGMX_SIM_FIRST");
    let kept = first.map_or(include_str!("seeds.txt"), |_| "");
    let first = first.unwrap_or(1);
    let mut seeds = 0;
    for line in kept.lines() {
        if let Some(seed) = line
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
        {
            let figures = run(seed, &total);
            total.add(&figures);
            seeds += 1;
        }
    }
    let limit_ns = number("RINGMX_SIM_SECONDS").map(|seconds| seconds * 1_000_000_000);
    let count = number("RINGMX_SIM_SEEDS").unwrap_or(SEEDS);
    let mut seed = first;
    while limit_ns.map_or(seed < first + count, |limit_ns| clock.now().0 < limit_ns) {
        let figures = run(seed, &total);
        total.add(&figures);
        seed += 1;
        seeds += 1;
    }
    let seconds = clock.now().0 as f64 / 1e9;
    println!(
        "{seeds} seeds from {first} in {seconds:.1} s: {:.0} crashes/s, {:.0} simulated hours per minute\n{total:#?}",
        total.crashes as f64 / seconds,
        total.simulated_ns as f64 / 3_600e9 / (seconds / 60.0),
    );
    // A simulation in which something never happens proves nothing about it.
    if seeds >= COVERING_SEEDS {
        for (what, count) in total.coverage() {
            assert!(count > 0, "no {what} in {seeds} seeds");
        }
    }
}
