//! Memory that an idle session takes, counted at the allocator: what the kernel keeps for its socket is not in it.
//!
//! This file has one test, because the counter counts every thread.

#[path = "support/sink.rs"]
mod sink;

use sink::Sink;
use smtp_loadgen::cli;
use smtp_loadgen::plan::{Mode, Plan, Workload};
use smtp_loadgen::run;
use smtp_loadgen::sys::counting::Counting;
use smtp_loadgen::worker::Logs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most bytes of an idle session.
const SESSION_MAX: u64 = 2 << 10;

#[global_allocator]
static COUNTING: Counting = Counting::new();

/// Holds `sessions` while a few messages are sent; returns by how much the memory in use rose at most.
fn peak(sink: &Sink, sessions: u32) -> u64 {
    let plan = cli::selftest_plans().remove(1).1;
    let plan = Plan {
        sessions,
        messages: Some(20),
        mode: Mode::Open {
            rate: 100.0,
            poisson: false,
            by_connection: false,
        },
        ..plan
    };
    let (target, tuning) = (sink.target(), sink::tuning());
    // An open loop waits three seconds for its sessions; a busy machine may need longer, and then it is asked again.
    for _ in 0..20 {
        let before = COUNTING.live.load(Ordering::Relaxed);
        COUNTING.peak.store(before, Ordering::Relaxed);
        let load = Arc::new(Workload::new(plan.clone()));
        let logs = Logs::default();
        let done = run::run(load, target.clone(), &tuning, 1, &logs, |_, _| {}).unwrap();
        let risen = COUNTING.peak.load(Ordering::Relaxed) - before;
        assert_eq!(done.recorder.totals.accepted, 20);
        if done.recorder.totals.connections == u64::from(sessions) {
            return risen;
        }
    }
    panic!("{sessions} sessions never came up in time");
}

#[test]
fn an_idle_session_takes_less_than_two_kib() {
    let sink = Sink::start();
    let (few, many) = (peak(&sink, 100), peak(&sink, 900));
    let each = many.saturating_sub(few) / 800;
    assert!((200..SESSION_MAX).contains(&each), "{each} bytes a session");
}
