//! Group commit: when to sync, what a finished sync means, and the thread that does nothing else.
//!
//! The loop owns the state. It hands over a target that it read before the call; the thread syncs
//! and stores the outcome in one atomic word before it wakes the loop, so no wake-up can be lost
//! between looking and sleeping (`handshake`). One sync is in flight at a time and none is delayed: what piles up
//! while it runs is the next batch.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::backing::{self, Backing, Flush};
use super::format::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS};
use super::handshake::{Handshake, LoopSide, Times};
use super::writer::{
    BACKGROUND_SYNC_AFTER, BACKGROUND_SYNC_BYTES, CHECKPOINT_BYTES, FREE_STEP_PARTS, Failed,
    InFlight, Log, Survive,
};
use crate::clock::{self, Clock, Instant};
use crate::limits::SYNC_SLICE_NS;
use crate::sys::schedule;

/// What the sync thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncRequest<'a> {
    /// Everything before this position has been written before the request was made.
    pub target: u64,
    /// A superblock to write before the sync, and where.
    pub superblock: Option<(u64, &'a [u8; SUPERBLOCK_BYTES])>,
}

impl<B: Backing> Log<B> {
    /// The next sync, if one is wanted and none is in flight. The caller hands it to the sync
    /// thread at once and reports through [`Log::sync_completed`].
    pub fn sync_wanted(&mut self, now: Instant) -> Option<SyncRequest<'_>> {
        if self.failed.is_some() || self.in_flight.is_some() {
            return None;
        }
        let mut superblock = self.superblock_due(now);
        if superblock && self.settings.survive != Survive::Power {
            // Here a superblock counts as soon as it is written, so the loop writes all of them
            // itself and none can overtake another. A failure is kept in the log and seen with the
            // next write.
            self.superblock_at = now;
            superblock = false;
            if self.write_superblock(false).is_err() {
                return None;
            }
        }
        if self.settings.survive == Survive::Nothing {
            return None;
        }
        let unsynced = self.written.position - self.durable.position;
        let aged = now.since_ns(self.synced_at) >= clock::nanos(BACKGROUND_SYNC_AFTER);
        let dirty = unsynced > 0 || self.superblock.generation > self.durable_generation;
        let data = match self.settings.survive {
            Survive::Power => unsynced > 0,
            // Only durable records can be overwritten, so a small ring syncs more often.
            _ => {
                unsynced >= BACKGROUND_SYNC_BYTES.min(self.data_size() / 8)
                    || dirty && aged
                    || unsynced > 0 && self.wanted_bytes > 0
            }
        };
        if !superblock && !data {
            return None;
        }
        if unsynced > 0 && !self.seal_page() {
            return None;
        }
        let at = superblock.then(|| {
            self.superblock_at = now;
            self.build_superblock(false)
        });
        self.synced_at = now;
        self.in_flight = Some(InFlight {
            target: self.written,
            generation: self.superblock.generation,
            tail: self.superblock.tail,
        });
        Some(SyncRequest {
            target: self.written.position,
            superblock: at.map(|at| (at, &*self.superblock_bytes)),
        })
    }

    /// Takes the outcome of the sync that [`Log::sync_wanted`] asked for.
    ///
    /// # Errors
    /// The sync failed, or the log had failed before: it is dead, nothing is retried.
    pub fn sync_completed(&mut self, target: u64, result: io::Result<()>) -> Result<(), Failed> {
        let Some(in_flight) = self.in_flight.take() else {
            return self.failed.map_or(Ok(()), Err);
        };
        assert_eq!(in_flight.target.position, target);
        if let Err(error) = result {
            return Err(self.fail("sync", &error));
        }
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        assert!(self.durable.position <= target && target <= self.written.position);
        self.durable = in_flight.target;
        if in_flight.generation == self.superblock.generation
            && in_flight.generation > self.durable_generation
        {
            self.durable_generation = in_flight.generation;
            self.durable_slot = 1 - self.durable_slot;
            self.freed_up_to(in_flight.tail.max(self.space_tail));
        }
        Ok(())
    }

    /// Does at once, on the calling thread, what [`Log::sync_wanted`] would ask the sync thread
    /// for. For tools and tests, never inside the loop. False when nothing was wanted.
    ///
    /// # Errors
    /// As [`Log::sync_completed`].
    pub fn sync_inline(&mut self, now: Instant) -> Result<bool, Failed> {
        let Some(request) = self.sync_wanted(now) else {
            return self.failed.map_or(Ok(false), Err);
        };
        let (target, at) = (request.target, request.superblock.map(|(at, _)| at));
        let result = match at {
            Some(at) => {
                let bytes: &[u8] = &*self.superblock_bytes;
                backing::write_all_at(&mut self.backing, bytes, at)
            }
            None => Ok(()),
        };
        let result = result.and_then(|()| self.backing.sync());
        self.sync_completed(target, result)?;
        Ok(true)
    }

    /// Whether a sync is in flight.
    pub fn sync_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    fn superblock_due(&mut self, now: Instant) -> bool {
        let freed = self.tail.position - self.space_tail;
        let behind = self.durable.position - self.superblock.checkpoint;
        let aged = now.since_ns(self.superblock_at) >= clock::nanos(BACKGROUND_SYNC_AFTER);
        self.superblock_needed
            || freed > 0
                && (freed >= self.data_size() / FREE_STEP_PARTS || self.wanted_bytes > 0 || aged)
            || behind >= CHECKPOINT_BYTES
            || aged && (behind > 0 || self.cursors_moved)
    }

    /// Ends the log in order: syncs what is written and marks the ring clean, so that the next
    /// opening need not scan. What is reserved must have been written.
    ///
    /// # Errors
    /// The storage failed, or a sync is still in flight (wait for it first); the ring is then
    /// recovered at the next opening.
    pub fn close(mut self) -> Result<B, Failed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if self.in_flight.is_some() || self.head != self.written {
            return Err(Failed {
                operation: "close with a sync or a write outstanding",
                errno: 0,
            });
        }
        // The next opening begins behind what this sync covers.
        if !self.seal_page() {
            let failed = self.failed;
            return Err(failed.unwrap_or(Failed {
                operation: "close",
                errno: 0,
            }));
        }
        self.sync_now()?;
        self.write_superblock(true)?;
        if let Err(error) = self.backing.sync() {
            return Err(self.fail("sync", &error));
        }
        Ok(self.backing)
    }

    /// Syncs on the calling thread and counts it. For opening and closing, never inside the loop.
    pub(super) fn sync_now(&mut self) -> Result<(), Failed> {
        if let Err(error) = self.backing.sync() {
            return Err(self.fail("sync", &error));
        }
        self.durable = self.written;
        if self.superblock.generation > self.durable_generation {
            self.durable_generation = self.superblock.generation;
            self.durable_slot = 1 - self.durable_slot;
            self.freed_up_to(self.superblock.tail.max(self.space_tail));
        }
        Ok(())
    }
}

/// The outcome of one sync.
#[derive(Debug)]
pub struct SyncDone {
    /// Target of the request.
    pub target: u64,
    /// What fdatasync, or the write of the superblock before it, returned.
    pub result: io::Result<()>,
    /// When the request was handed over.
    pub asked: Instant,
    /// When it was begun: later than `asked` by what the thread needed to get a core.
    pub began: Instant,
    /// Time the request took, superblock included.
    pub took: Duration,
}

impl SyncDone {
    /// When the outcome was there.
    pub fn ended(&self) -> Instant {
        self.began.after(self.took)
    }
}

/// A thread that writes a superblock when asked, syncs, stores the outcome, and wakes the loop.
/// Dropping the value ends the thread after the sync it is in.
#[derive(Debug)]
pub struct SyncThread {
    shared: Arc<Handshake<Job>>,
    side: LoopSide,
    clock: Clock,
    /// When the last request was handed over.
    asked: Instant,
    thread: Option<JoinHandle<()>>,
}

/// What a sync is preceded by.
#[derive(Debug)]
struct Job {
    superblock_at: Option<u64>,
    superblock: Box<[u8; SUPERBLOCK_BYTES]>,
}

impl Job {
    fn new() -> Job {
        Job {
            superblock_at: None,
            superblock: Box::new([0; SUPERBLOCK_BYTES]),
        }
    }

    fn set(&mut self, superblock: Option<(u64, &[u8; SUPERBLOCK_BYTES])>) {
        self.superblock_at = superblock.map(|(at, _)| at);
        if let Some((_, bytes)) = superblock {
            self.superblock.copy_from_slice(bytes);
        }
    }
}

impl SyncThread {
    /// Starts the thread. `wake` is called after each finished request, with the outcome already
    /// stored. Times are those of `clock`.
    ///
    /// # Errors
    /// As pthread_create(3).
    pub fn start(
        flush: Box<dyn Flush>,
        wake: Box<dyn Fn() + Send>,
        clock: Clock,
    ) -> io::Result<SyncThread> {
        let shared = Arc::new(Handshake::new(Job::new()));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || run(&theirs, flush, wake, clock))?;
        Ok(SyncThread {
            shared,
            side: LoopSide::default(),
            clock,
            asked: Instant(0),
            thread: Some(thread),
        })
    }

    /// Hands over a request. The lock is held by the thread only while it copies one, never during
    /// I/O.
    ///
    /// # Panics
    /// When the outcome of the last request has not been taken yet.
    pub fn submit(&mut self, request: &SyncRequest<'_>) {
        self.asked = self.clock.now();
        self.shared.submit(&mut self.side, request.target, |job| {
            job.set(request.superblock);
        });
    }

    /// The outcome of the request in flight, once it is there. One atomic load while there is none.
    pub fn completed(&mut self) -> Option<SyncDone> {
        let outcome = self.shared.completed(&mut self.side)?;
        Some(SyncDone {
            target: outcome.target,
            result: outcome.result.map_err(io::Error::from_raw_os_error),
            asked: self.asked,
            began: Instant(outcome.times.began_ns),
            took: Duration::from_nanos(outcome.times.took_ns),
        })
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing to add while dropping.
            let _ = thread.join();
        }
    }
}

fn run(
    shared: &Handshake<Job>,
    mut flush: Box<dyn Flush>,
    wake: Box<dyn Fn() + Send>,
    clock: Clock,
) {
    // A sync sleeps several times and has a few microseconds of work in between. On a core that it shares with the
    // loop each of them would wait for the end of the loop's slice. Where the kernel does not allow it, it does.
    let _ = schedule::shorten_slices(SYNC_SLICE_NS);
    let job = RefCell::new(Job::new());
    let take = |asked: &mut Job| {
        let superblock = asked.superblock_at.map(|at| (at, &*asked.superblock));
        job.borrow_mut().set(superblock);
    };
    let work = || {
        let job = job.borrow();
        let start = clock.now();
        let result = match job.superblock_at {
            Some(at) => flush
                .write_superblock(&*job.superblock, at)
                .and_then(|()| flush.sync()),
            None => flush.sync(),
        };
        let times = Times {
            began_ns: start.0,
            took_ns: clock.now().since_ns(start),
        };
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        (result, times)
    };
    shared.run(take, work, wake);
}

const _: () = assert!(SUPERBLOCK_OFFSETS[1] as usize >= SUPERBLOCK_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Records calls and fails the sync of the second request.
    struct Recorder {
        calls: mpsc::Sender<String>,
        syncs: u32,
    }

    impl Flush for Recorder {
        fn write_superblock(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
            let _ = self.calls.send(format!("superblock {} at {at}", bytes[0]));
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.syncs += 1;
            let _ = self.calls.send("sync".to_owned());
            if self.syncs == 2 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        }
    }

    #[test]
    fn sync_thread_stores_each_outcome_before_it_wakes_and_writes_the_superblock_first() {
        let (calls_in, calls) = mpsc::channel();
        let (wake_in, wakes) = mpsc::channel();
        let flush = Recorder {
            calls: calls_in,
            syncs: 0,
        };
        let wake = move || {
            let _ = wake_in.send(());
        };
        let mut thread = SyncThread::start(Box::new(flush), Box::new(wake), Clock::new()).unwrap();
        assert!(thread.completed().is_none());
        let bytes = [9; SUPERBLOCK_BYTES];
        let mut run = |request: &SyncRequest<'_>| {
            thread.submit(request);
            wakes.recv().unwrap();
            let done = thread.completed().expect("stored before the wake-up");
            assert!(thread.completed().is_none());
            (
                done.target,
                done.result.map_err(|error| error.raw_os_error()),
            )
        };
        let plain = SyncRequest {
            target: 128,
            superblock: None,
        };
        let with_superblock = SyncRequest {
            target: 128,
            superblock: Some((8_192, &bytes)),
        };
        assert_eq!(run(&with_superblock), (128, Ok(())));
        assert_eq!(run(&plain), (128, Err(Some(libc::ENOSPC))));
        for _ in 0..100 {
            assert_eq!(run(&plain), (128, Ok(())), "a target may come again");
        }
        drop(thread);
        let calls: Vec<String> = calls.iter().collect();
        assert_eq!(calls[..3], ["superblock 9 at 8192", "sync", "sync"]);
        assert_eq!(calls.len(), 103);
    }
}
