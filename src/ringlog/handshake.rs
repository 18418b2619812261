//! One request at a time from the loop to the sync thread, and its outcome back: the protocol between the two.
//!
//! Promises: a request is carried out once, and everything that the loop did before it has happened before it; its
//! outcome is stored before the wake-up, so that a loop that looks, sleeps, and looks again when woken misses none;
//! no lock is held during the work; a thread that is told to stop ends behind the request it was given.
//! Does not: know what the work is, or how the loop is woken.
//!
//! The primitives come from `super::sync`: tests/loom puts loom's there and runs these very lines in every order that
//! the memory model allows.

use super::sync::{AtomicI32, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

/// What the loop and the thread share. `J` says what is to be done.
#[derive(Debug)]
pub(super) struct Handshake<J> {
    request: Mutex<Request<J>>,
    wanted: Condvar,
    /// Target of the last finished request; its low six bits, which are zero in a position, hold
    /// bit 0: failed, bits 1 to 5: count of finished requests modulo 32, which tells two requests
    /// of one target apart.
    done: AtomicU64,
    /// Written before `done` and read after it.
    errno: AtomicI32,
    began_ns: AtomicU64,
    took_ns: AtomicU64,
}

#[derive(Debug)]
struct Request<J> {
    /// Requests handed over so far.
    count: u64,
    target: u64,
    job: J,
    stop: bool,
}

/// What the loop alone knows.
#[derive(Debug, Default)]
pub(super) struct LoopSide {
    /// The last word taken.
    taken: u64,
    /// Requests handed over.
    submitted: u64,
}

/// Outcome of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Target of the request.
    pub(super) target: u64,
    /// Error number of the system, if the work failed.
    pub(super) result: Result<(), i32>,
    /// When the work began and how long it took, nanoseconds, on the thread's clock.
    pub(super) times: Times,
}

/// When a piece of work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Its begin, nanoseconds.
    pub(super) began_ns: u64,
    /// Its length, nanoseconds.
    pub(super) took_ns: u64,
}

const DONE_FAILED: u64 = 1;
const DONE_COUNT_SHIFT: u32 = 1;
const DONE_COUNT_MASK: u64 = 31;
const DONE_TARGET: u64 = !63;

impl<J> Handshake<J> {
    /// Nothing asked, nothing done.
    pub(super) fn new(job: J) -> Handshake<J> {
        Handshake {
            request: Mutex::new(Request {
                count: 0,
                target: 0,
                job,
                stop: false,
            }),
            wanted: Condvar::new(),
            done: AtomicU64::new(0),
            errno: AtomicI32::new(0),
            began_ns: AtomicU64::new(0),
            took_ns: AtomicU64::new(0),
        }
    }

    /// Nothing can panic while the lock is held, and the request is plain data.
    fn lock(&self) -> MutexGuard<'_, Request<J>> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over a request; `describe` sets the job. The thread holds the lock only while it copies a job, never
    /// during its work.
    ///
    /// # Panics
    /// When the outcome of the last request has not been taken yet.
    pub(super) fn submit(&self, side: &mut LoopSide, target: u64, describe: impl FnOnce(&mut J)) {
        let finished = (side.taken >> DONE_COUNT_SHIFT) & DONE_COUNT_MASK;
        assert_eq!(
            finished,
            side.submitted & DONE_COUNT_MASK,
            "one sync at a time"
        );
        side.submitted += 1;
        let mut slot = self.lock();
        slot.count = side.submitted;
        slot.target = target;
        describe(&mut slot.job);
        drop(slot);
        self.wanted.notify_one();
    }

    /// The outcome of the request in flight, once it is there. One atomic load while there is none.
    pub(super) fn completed(&self, side: &mut LoopSide) -> Option<Outcome> {
        let word = self.done.load(Ordering::Acquire);
        if word == side.taken {
            return None;
        }
        side.taken = word;
        Some(Outcome {
            target: word & DONE_TARGET,
            result: match word & DONE_FAILED {
                0 => Ok(()),
                _ => Err(self.errno.load(Ordering::Relaxed)),
            },
            times: Times {
                began_ns: self.began_ns.load(Ordering::Relaxed),
                took_ns: self.took_ns.load(Ordering::Relaxed),
            },
        })
    }

    /// Lets [`Handshake::run`] return once nothing is asked any more.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wanted.notify_one();
    }

    /// What the thread does. `take` copies a job under the lock; `work` carries it out and returns its result with
    /// its times; `wake` wakes the loop when the outcome is stored.
    pub(super) fn run(
        &self,
        mut take: impl FnMut(&mut J),
        mut work: impl FnMut() -> (Result<(), i32>, Times),
        wake: impl Fn(),
    ) {
        let mut finished = 0;
        loop {
            let mut request = self.lock();
            while request.count == finished && !request.stop {
                request = self
                    .wanted
                    .wait(request)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if request.count == finished {
                return;
            }
            finished = request.count;
            let target = request.target;
            take(&mut request.job);
            drop(request);

            let (result, times) = work();
            self.began_ns.store(times.began_ns, Ordering::Relaxed);
            self.took_ns.store(times.took_ns, Ordering::Relaxed);
            let failed = match result {
                Ok(()) => 0,
                Err(errno) => {
                    self.errno.store(errno, Ordering::Relaxed);
                    DONE_FAILED
                }
            };
            let count = (finished & DONE_COUNT_MASK) << DONE_COUNT_SHIFT;
            self.done
                .store(target & DONE_TARGET | count | failed, Ordering::Release);
            wake();
        }
    }
}
