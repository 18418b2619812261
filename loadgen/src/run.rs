//! One run: starts the workers, shows progress, merges what they measured.

use crate::plan::Workload;
use crate::recorder::Recorder;
use crate::sys;
use crate::wire::Target;
use crate::worker::{Live, Logs, Shared, Tuning, Worker};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
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
}

/// Runs a workload to its end. `tick` is called about five times a second with the time since
/// the start.
///
/// **Errors**: a worker could not start, its poll failed, or a log could not be written.
pub fn run(
    load: Arc<Workload>,
    target: Arc<Target>,
    tuning: &Tuning,
    threads: usize,
    logs: &Logs,
    mut tick: impl FnMut(&Shared, Duration),
) -> io::Result<Done> {
    let threads = threads.clamp(1, load.plan.sessions.max(1) as usize);
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        ready: AtomicU64::new(0),
        live: (0..threads).map(|_| Live::default()).collect(),
    });
    let start = Instant::now();
    let (send, receive) = channel();
    let mut handles = Vec::new();
    for index in 0..threads {
        let worker = Worker::new(
            load.clone(),
            target.clone(),
            shared.clone(),
            tuning.clone(),
            index,
            threads,
            logs.share(),
        )?;
        let send = send.clone();
        let name = format!("worker-{index}");
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
            Err(RecvTimeoutError::Timeout) => tick(&shared, start.elapsed()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let elapsed = start.elapsed();
    let mut merged: Option<Recorder> = None;
    for handle in handles {
        let recorder = handle
            .join()
            .map_err(|_| io::Error::other("a worker panicked"))??;
        match &mut merged {
            None => merged = Some(recorder),
            Some(all) => {
                all.merge(&recorder);
                all.window.1 = all.window.1.max(recorder.window.1);
            }
        }
    }
    let recorder = merged.expect("invariant: at least one worker");
    Ok(Done {
        recorder,
        elapsed,
        interrupted: sys::interrupted(),
    })
}
