//! One run: starts the workers, shows progress, merges what they measured.

use crate::plan::Workload;
use crate::processes::Process;
use crate::recorder::Recorder;
use crate::sys;
use crate::wire::Target;
use crate::worker::{Logs, Place, Shared, Tuning, Worker};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What is left after a run.
pub struct Done {
    /// Everything that was measured.
    pub recorder: Recorder,
    /// From first to last action.
    pub elapsed: Duration,
    /// A signal ended it.
    pub interrupted: bool,
    /// The processes it ran in, if it ran in several; those that reported.
    pub processes: Vec<Process>,
    /// Why it is worth nothing, whatever was measured: a process died.
    pub trouble: Option<String>,
}

/// Runs a workload to its end in this process. `tick` is called about five times a second with the
/// time since the start.
///
/// **Errors**: a worker could not start, its poll failed, or a log could not be written.
pub fn run(
    load: Arc<Workload>,
    target: Arc<Target>,
    tuning: &Tuning,
    threads: usize,
    logs: &Logs,
    tick: impl FnMut(&Shared, Duration),
) -> io::Result<Done> {
    let threads = threads.clamp(1, load.plan.sessions.max(1) as usize);
    let shared = Arc::new(Shared::new(threads, 0, threads, load.plan.sessions, false));
    part(load, target, tuning, &shared, (0, threads), logs, tick)
}

/// Runs the workers from number `first` on of a run that has `workers`, one for each entry of
/// `shared.live`.
///
/// **Errors**: as `run`.
pub fn part(
    load: Arc<Workload>,
    target: Arc<Target>,
    tuning: &Tuning,
    shared: &Arc<Shared>,
    (first, workers): (usize, usize),
    logs: &Logs,
    mut tick: impl FnMut(&Shared, Duration),
) -> io::Result<Done> {
    let threads = shared.live.len();
    let start = Instant::now();
    let (send, receive) = channel();
    let mut handles = Vec::new();
    for here in 0..threads {
        let place = Place {
            number: first + here,
            workers,
            here,
        };
        let worker = Worker::new(
            load.clone(),
            target.clone(),
            shared.clone(),
            tuning.clone(),
            place,
            logs.share(),
        )?;
        let send = send.clone();
        let name = format!("worker-{}", place.number);
        handles.push(std::thread::Builder::new().name(name).spawn(move || {
            let result = worker.run();
            // The receiver lives until all workers are joined.
            let _ = send.send(());
            result
        })?);
    }
    drop(send);
    let mut ended = 0;
    while ended < threads {
        match receive.recv_timeout(Duration::from_millis(200)) {
            Ok(()) => ended += 1,
            Err(RecvTimeoutError::Timeout) => tick(shared, start.elapsed()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let elapsed = start.elapsed();
    let mut merged: Option<Recorder> = None;
    for handle in handles {
        let recorder = handle
            .join()
            .map_err(|_| io::Error::other("a worker panicked"))??;
        add(&mut merged, recorder);
    }
    let recorder = merged.expect("invariant: at least one worker");
    Ok(Done {
        recorder,
        elapsed,
        interrupted: sys::interrupted(),
        processes: Vec::new(),
        trouble: None,
    })
}

/// Adds what one more worker, or all of a process, measured.
pub fn add(merged: &mut Option<Recorder>, recorder: Recorder) {
    match merged {
        None => *merged = Some(recorder),
        Some(all) => {
            all.merge(&recorder);
            // The window ends when the last of them does.
            all.window.1 = all.window.1.max(recorder.window.1);
        }
    }
}
