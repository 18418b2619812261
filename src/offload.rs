//! Work that is too slow for the loop: a bounded queue to one helper thread, and what comes back.
//!
//! What is slow (a signature by an RSA key, a password hash, reading files again) is handed over as a job, a closure
//! that owns all it needs; whoever it is for waits in the loop's own tables under a token. The helper runs jobs in
//! order and wakes the loop; [`Offload::poll`] takes the answers once a turn. Each job gives exactly one answer,
//! unless it panics.
//!
//! Promises: at most `capacity` jobs wait; a job whose deadline passed while it waited is told so and should give a
//! cheap answer; nothing here blocks the loop.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};

use crate::clock::{Clock, Instant};

/// Whether a job still has a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// Its deadline is ahead.
    InTime,
    /// Its deadline passed while it waited: nobody wants the work any more, only the answer that it was not done.
    Late,
}

/// One piece of work; its answer is whatever the loop wants to know.
pub type Job<A> = Box<dyn FnOnce(Timing) -> A + Send>;

/// The loop's end of the queue.
pub struct Offload<A> {
    place: Place<A>,
    /// Jobs that may wait.
    capacity: usize,
    /// Jobs handed over whose answers were not taken.
    under_way: usize,
}

enum Place<A> {
    /// A thread of its own.
    Helper {
        jobs: SyncSender<(Instant, Job<A>)>,
        answers: Receiver<Option<A>>,
        panics: Arc<AtomicU64>,
    },
    /// Nowhere: jobs run when their answers are asked for. For tests that own time.
    Here(VecDeque<Job<A>>),
}

impl<A: Send + 'static> Offload<A> {
    /// Starts the helper. `wake` is called after each answer.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        capacity: usize,
        clock: Clock,
        wake: Box<dyn Fn() + Send>,
    ) -> io::Result<Offload<A>> {
        let (jobs, queue) = sync_channel::<(Instant, Job<A>)>(capacity);
        // Unbounded, and never longer than the number of jobs that were let in.
        let (results, answers) = channel();
        let panics = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&panics);
        std::thread::Builder::new()
            .name("helper".to_owned())
            .spawn(move || {
                for (deadline, job) in queue {
                    let timing = if clock.now() <= deadline {
                        Timing::InTime
                    } else {
                        Timing::Late
                    };
                    // A job that panics costs whoever waits for it, not those behind it.
                    let answer = catch_unwind(AssertUnwindSafe(|| job(timing))).ok();
                    if answer.is_none() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    if results.send(answer).is_err() {
                        break;
                    }
                    wake();
                }
            })?;
        Ok(Offload {
            place: Place::Helper {
                jobs,
                answers,
                panics,
            },
            capacity,
            under_way: 0,
        })
    }

    /// Without a helper: a job runs, in time, when [`Offload::poll`] is called.
    pub fn here(capacity: usize) -> Offload<A> {
        Offload {
            place: Place::Here(VecDeque::new()),
            capacity,
            under_way: 0,
        }
    }

    /// Hands a job over. After `deadline` it is worth nothing.
    ///
    /// # Errors
    /// The queue is full, or the helper is gone: the job comes back.
    pub fn submit(&mut self, deadline: Instant, job: Job<A>) -> Result<(), Job<A>> {
        if self.under_way >= self.capacity {
            return Err(job);
        }
        match &mut self.place {
            Place::Here(queue) => queue.push_back(job),
            Place::Helper { jobs, .. } => match jobs.try_send((deadline, job)) {
                Ok(()) => {}
                Err(TrySendError::Full((_, job)) | TrySendError::Disconnected((_, job))) => {
                    return Err(job);
                }
            },
        }
        self.under_way += 1;
        Ok(())
    }

    /// The next answer, if one is there.
    pub fn poll(&mut self) -> Option<A> {
        match &mut self.place {
            Place::Here(queue) => {
                let job = queue.pop_front()?;
                self.under_way -= 1;
                Some(job(Timing::InTime))
            }
            Place::Helper { answers, .. } => {
                while let Ok(answer) = answers.try_recv() {
                    self.under_way = self.under_way.saturating_sub(1);
                    if answer.is_some() {
                        return answer;
                    }
                }
                None
            }
        }
    }

    /// Jobs handed over whose answers were not taken.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Jobs that panicked; they have no answer.
    pub fn panics(&self) -> u64 {
        match &self.place {
            Place::Here(_) => 0,
            Place::Helper { panics, .. } => panics.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Instant {
        Instant(u64::MAX)
    }

    /// A helper, and the wake-ups it sends.
    fn helper(capacity: usize) -> (Offload<u32>, Receiver<()>) {
        let (wake, woken) = channel();
        let wake = Box::new(move || wake.send(()).unwrap_or_default());
        let offload = Offload::start(capacity, Clock::new(), wake).expect("a thread");
        (offload, woken)
    }

    #[test]
    fn answers_come_in_the_order_of_the_jobs_with_a_wake_up_each() {
        let (mut offload, woken) = helper(8);
        for number in 0..3 {
            assert!(offload.submit(far(), Box::new(move |_| number)).is_ok());
        }
        assert_eq!(offload.under_way(), 3);
        for number in 0..3 {
            woken.recv().expect("a wake-up");
            assert_eq!(offload.poll(), Some(number));
        }
        assert_eq!((offload.poll(), offload.under_way()), (None, 0));
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let mut offload = Offload::here(1);
        assert!(offload.submit(far(), Box::new(|_| 1)).is_ok());
        let back = offload.submit(far(), Box::new(|_| 2)).err();
        assert_eq!(back.map(|job| job(Timing::Late)), Some(2));
        assert_eq!(offload.poll(), Some(1));
        assert!(offload.submit(far(), Box::new(|_| 3)).is_ok());
    }

    #[test]
    fn a_job_that_waited_too_long_is_told_so() {
        let (mut offload, woken) = helper(2);
        let told = |timing| u32::from(timing == Timing::Late);
        assert!(offload.submit(Instant(0), Box::new(told)).is_ok());
        assert!(offload.submit(far(), Box::new(told)).is_ok());
        woken.recv().expect("a wake-up");
        woken.recv().expect("a wake-up");
        assert_eq!((offload.poll(), offload.poll()), (Some(1), Some(0)));
    }

    #[test]
    fn a_job_that_panics_is_counted_and_those_behind_it_run() {
        let (mut offload, woken) = helper(2);
        let panics: Job<u32> = Box::new(|_| std::panic::resume_unwind(Box::new("on purpose")));
        assert!(offload.submit(far(), panics).is_ok());
        assert!(offload.submit(far(), Box::new(|_| 7)).is_ok());
        woken.recv().expect("a wake-up");
        woken.recv().expect("a wake-up");
        assert_eq!(offload.poll(), Some(7));
        assert_eq!((offload.under_way(), offload.panics()), (0, 1));
    }
}
