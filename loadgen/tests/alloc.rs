//! Allocations per message, counted: none on a kept connection.
//!
//! This file has one test, because the counter counts every thread.

#[path = "support/sink.rs"]
mod sink;

use sink::Sink;
use smtp_loadgen::plan::{Pipelining, Plan, Sizes, Workload};
use smtp_loadgen::run;
use smtp_loadgen::sys::counting::Counting;
use smtp_loadgen::worker::Logs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[global_allocator]
static COUNTING: Counting = Counting::new();

/// Makes a workload another one.
type Change = fn(&mut Plan);

/// Runs `messages` and returns how often memory was asked for meanwhile, and for how many seconds it went on.
fn allocations(sink: &Sink, change: Change, messages: u64) -> (u64, u64) {
    let plan = smtp_loadgen::cli::selftest_plans().remove(1).1;
    let mut plan = Plan {
        sessions: 16,
        messages: Some(messages),
        ..plan
    };
    change(&mut plan);
    let load = Arc::new(Workload::new(plan));
    let before = COUNTING.calls.load(Ordering::Relaxed);
    let done = run::run(
        load,
        sink.target(),
        &sink::tuning(),
        1,
        &Logs::default(),
        |_, _| {},
    )
    .unwrap();
    let counted = COUNTING.calls.load(Ordering::Relaxed) - before;
    assert_eq!(done.recorder.totals.accepted, messages);
    (counted, done.elapsed.as_secs() + 1)
}

#[test]
fn a_message_on_a_kept_connection_allocates_nothing() {
    let sink = Sink::start();
    let shapes: [(&str, Change); 4] = [
        ("pipelined", |_| {}),
        ("lock-step", |plan| plan.pipelining = Pipelining::Off),
        ("BDAT", |plan| plan.chunking = true),
        ("large", |plan| plan.sizes = Sizes::Uniform(20_000, 90_000)),
    ];
    for (name, change) in shapes {
        let (few, few_seconds) = allocations(&sink, change, 1_000);
        let (many, many_seconds) = allocations(&sink, change, 11_000);
        // Each second of a run has a row of its own: two allocations, and the table of them may grow.
        let rows = 3 * many_seconds + 3 * few_seconds;
        let more = many.saturating_sub(few);
        assert!(
            more <= rows,
            "{name}: {more} allocations for 10,000 more messages"
        );
    }
}
