//! The handshake of the loop with the sync thread, under loom: every order of their steps, and every value that the
//! memory model lets a relaxed load see.
//!
//! The file under test is the one that the server is built from. `sync` gives it loom's primitives, and can take
//! away what it relies on: then the same tests have to fail.

#[path = "../../src/ringlog/handshake.rs"]
mod handshake;

/// What `handshake` finds as `super::sync`.
mod sync {
    pub use loom::sync::atomic::AtomicI32;
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
    pub use std::sync::atomic::Ordering;

    use std::cell::Cell;

    thread_local! {
        /// loom runs all threads of a model on the thread that calls it.
        pub static RELAXED: Cell<bool> = const { Cell::new(false) };
    }

    /// An atomic that orders nothing while `RELAXED` is set.
    #[derive(Debug)]
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> AtomicU64 {
            AtomicU64(loom::sync::atomic::AtomicU64::new(value))
        }

        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(weakened(order))
        }

        pub fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, weakened(order));
        }
    }

    fn weakened(order: Ordering) -> Ordering {
        match RELAXED.get() {
            true => Ordering::Relaxed,
            false => order,
        }
    }
}

use handshake::{Handshake, LoopSide, Outcome, Times};
use loom::cell::Cell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A wake-up that is not forgotten while nobody waits, as that of an eventfd in an epoll set.
#[derive(Default)]
struct Wake {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    fn set(&self) {
        *self.pending.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.changed.wait(pending).unwrap();
        }
        *pending = false;
    }
}

/// The bytes of the ring that are written. No atomic: loom reports a write beside a sync.
struct Written(Cell<u64>);

#[derive(Clone, Copy, PartialEq)]
enum WakeUp {
    /// When the outcome is stored, as the server does it.
    After,
    /// Before that.
    Before,
}

/// Writes, asks for a sync, and takes the outcome, once for each of `results`. `wait` waits for something to have
/// happened before the loop looks.
fn loop_and_thread(results: &'static [Result<(), i32>], wake_up: WakeUp, polls: bool) {
    let mut builder = loom::model::Builder::new();
    // Every order of two requests; of more, those with three switches that no step asks for: hours otherwise.
    builder.preemption_bound = (results.len() > 2).then_some(3);
    builder.check(move || {
        let shared = Arc::new(Handshake::new(0_u64));
        let written = Arc::new(Written(Cell::new(0)));
        let wake = Arc::new(Wake::default());
        let thread = {
            let (shared, written, wake) = (shared.clone(), written.clone(), wake.clone());
            thread::spawn(move || {
                let job = std::cell::Cell::new(0);
                let mut next = results.iter();
                let mut synced = Vec::new();
                shared.run(
                    |asked| job.set(*asked),
                    || {
                        // Everything that the target covers is there, and no later write of the loop can meet this.
                        assert_eq!(written.0.get(), job.get());
                        synced.push(job.get());
                        if wake_up == WakeUp::Before {
                            wake.set();
                        }
                        (*next.next().expect("no more than was asked"), times(job.get()))
                    },
                    || {
                        if wake_up == WakeUp::After {
                            wake.set();
                        }
                    },
                );
                synced
            })
        };
        let mut side = LoopSide::default();
        let mut expected = Vec::new();
        for (index, result) in results.iter().enumerate() {
            let target = 64 * (index as u64 + 1);
            written.0.set(target);
            shared.submit(&mut side, target, |job| *job = target);
            let outcome = loop {
                if let Some(outcome) = shared.completed(&mut side) {
                    break outcome;
                }
                match polls {
                    true => thread::yield_now(),
                    false => wake.wait(),
                }
            };
            let exact = Outcome {
                target,
                result: *result,
                times: times(target),
            };
            assert_eq!(outcome, exact);
            assert_eq!(shared.completed(&mut side), None, "an outcome comes once");
            expected.push(target);
        }
        shared.stop();
        assert_eq!(thread.join().unwrap(), expected);
    });
}

/// The times that the work for a target says it had.
fn times(target: u64) -> Times {
    Times {
        began_ns: target + 5,
        took_ns: target + 7,
    }
}

const TWO: &[Result<(), i32>] = &[Ok(()), Err(5)];
const THREE: &[Result<(), i32>] = &[Err(28), Ok(()), Err(5)];

#[test]
fn a_loop_that_sleeps_gets_each_outcome_once_and_misses_no_wake_up() {
    loop_and_thread(TWO, WakeUp::After, false);
    loop_and_thread(THREE, WakeUp::After, false);
}

#[test]
fn a_loop_that_looks_in_passing_sees_the_whole_outcome_or_nothing() {
    loop_and_thread(TWO, WakeUp::After, true);
}

#[test]
fn a_thread_that_is_told_to_stop_ends_behind_the_request_that_it_was_given() {
    loom::model(|| {
        let shared = Arc::new(Handshake::new(()));
        let theirs = shared.clone();
        let thread = thread::spawn(move || {
            let mut worked = 0;
            theirs.run(
                |()| {},
                || {
                    worked += 1;
                    (Ok(()), times(0))
                },
                || {},
            );
            worked
        });
        let mut side = LoopSide::default();
        shared.submit(&mut side, 64, |()| {});
        shared.stop();
        assert_eq!(thread.join().unwrap(), 1);
        assert_eq!(
            shared.completed(&mut side).map(|outcome| outcome.target),
            Some(64)
        );
    });
}

#[test]
fn a_thread_that_was_asked_nothing_stops() {
    loom::model(|| {
        let shared = Arc::new(Handshake::new(()));
        let theirs = shared.clone();
        let thread = thread::spawn(move || theirs.run(|()| {}, || unreachable!(), || {}));
        shared.stop();
        thread.join().unwrap();
    });
}

/// Names the model that a child process runs.
const BROKEN: &str = "RINGMX_LOOM_BROKEN";

/// The tests above can fail: what the protocol promises is taken away, and they do. A process of its own, because
/// loom ends the process where a model stands still.
#[test]
fn an_outcome_that_orders_nothing_and_a_wake_up_before_it_are_caught() {
    match std::env::var(BROKEN).as_deref() {
        Ok("relaxed") => {
            sync::RELAXED.set(true);
            return loop_and_thread(TWO, WakeUp::After, true);
        }
        Ok("early") => return loop_and_thread(TWO, WakeUp::Before, false),
        Ok("none") => return loop_and_thread(TWO, WakeUp::After, false),
        _ => {}
    }
    let holds = |broken: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "an_outcome_that_orders_nothing_and_a_wake_up_before_it_are_caught",
            ])
            .env(BROKEN, broken)
            .output()
            .unwrap();
        output.status.success()
    };
    assert!(holds("none"));
    assert!(
        !holds("relaxed"),
        "errno and time may be read before they are stored"
    );
    assert!(!holds("early"), "the loop may sleep for ever");
}
