//! `serve --workers N`: a parent that binds, reads keys, gives up privileges, and then starts and looks after N
//! processes that take mail.
//!
//! Workers are forks of the parent. It has no threads, so that it can fork at any time, and a worker that is started
//! again has the keys that only the first user could read, the settings as they were checked, and its listening sockets
//! with whatever waits in them.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{
    Place, StartError, Up, about, come_up, finish_takeover, head, install_signals, leftover_shards,
    log_descriptor_limit, log_started, print_end, privileges, raise_descriptor_limit, ready_state,
    reserve_descriptors, sockets, start_error, start_lines, take_mail, takeover, tls,
};
use crate::cli::{EXIT_CUT, EXIT_FAILURE, EXIT_OK, EXIT_STORAGE, complain, print};
use crate::clock::Clock;
use crate::config::Config;
use crate::link::Report;
use crate::logger::Logger;
use crate::net::supervisor::{Due, Supervisor};
use crate::sys::process::{self, Ended, Forked};
use crate::sys::wait;

/// Runs the parent; in a worker, the worker. Returns the exit code of whichever process this is at the end.
pub(super) fn run(config: Config, clock: Clock) -> Result<i32, StartError> {
    let mut logger = Logger::direct(
        write_without_waiting,
        config.log_format,
        config.log_level,
        clock,
    );
    log_descriptor_limit(
        &config,
        raise_descriptor_limit(&config),
        &mut logger,
        &clock,
    );
    let mut up = come_up(config, clock)?;
    if up.security.is_none() {
        // Made once, and by one.
        up.security = tls::self_signed(&up.config)?;
    }
    // The keys are in this process too. Each worker opens its ring first, and then does the same.
    privileges::refuse_core_dumps(&up.config)?;
    let http = up.http.take();
    let about = about(&up.config, &up.bound, &clock, "pwrite");
    let mut supervisor = Supervisor::new(
        up.config.workers,
        clock,
        install_signals()?,
        logger,
        http.map(|(socket, _)| socket),
        about.clone(),
        up.config.drain_deadline,
    )
    .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))?;
    loop {
        let due = supervisor
            .run()
            .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))?;
        match due {
            Due::Start(index) => match start() {
                Ok((Forked::Parent(child), stream)) => supervisor.started(index, child, stream),
                Ok((Forked::Child, stream)) => {
                    drop(supervisor);
                    return Ok(work(up, index, stream));
                }
                Err(error) => supervisor.not_started(index, &error),
            },
            Due::AllReady => {
                let lines = start_lines(
                    &up.config,
                    &up.bound,
                    supervisor.http_address(),
                    &supervisor.ready(),
                    up.security.as_ref(),
                    &leftover_shards(&up.config, up.first_shard),
                );
                let took_over = up.takeover.is_some();
                finish_takeover(up.takeover.take());
                if !up.config.discard {
                    offer_handover(&up, &mut supervisor)?;
                }
                print(&lines);
                log_started(&about, supervisor.logger(), &clock);
                sockets::notify(&ready_state(took_over));
            }
            Due::Give => {
                let sockets = up.bound.iter().flat_map(|bound| bound.duplicates());
                supervisor.give(sockets.collect());
            }
            Due::Stopping => up.bound.iter_mut().for_each(|bound| bound.close_all()),
            Due::GivenUp(index) => up.bound.iter_mut().for_each(|bound| bound.close(index)),
            Due::Failed => {
                let (index, code, text) = supervisor.failure().unwrap_or_default();
                return Err(start_error(code, format!("worker {index}: {text}")));
            }
            Due::Ended => {
                if !supervisor.is_handed_over() {
                    for file in up.bound.iter_mut().filter_map(|bound| bound.file.take()) {
                        file.remove();
                    }
                    takeover::remove(&up.config);
                }
                let mut lines = Vec::new();
                match supervisor.unasked_ends() {
                    0 => {}
                    times => lines.push(format!(
                        "Workers ended unasked {times} times; what they did since the status was last asked for is not \
                         counted here."
                    )),
                }
                print_end(&up.config, &supervisor.done(), &lines);
                return Ok(worst(&supervisor.exits()));
            }
        }
    }
}

fn offer_handover(up: &Up, supervisor: &mut Supervisor) -> Result<(), StartError> {
    let listener = takeover::bind(&up.config.ring)?;
    supervisor
        .offer_handover(listener, head(&up.config, up.first_shard))
        .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))
}

/// Forks, with a link between both.
fn start() -> io::Result<(Forked, UnixStream)> {
    let (parents, workers) = UnixStream::pair()?;
    Ok(match process::fork()? {
        Forked::Child => (Forked::Child, workers),
        forked => (forked, parents),
    })
}

/// A worker from its first to its last moment; returns its exit code.
fn work(mut up: Up, index: usize, link: UnixStream) -> i32 {
    // The parent speaks with the server that is taken over.
    up.takeover = None;
    let own = match link.try_clone() {
        Ok(own) => own,
        Err(_) => return EXIT_FAILURE,
    };
    let result = privileges::allow_opening().and_then(|()| start_logger(&up, index));
    let result = result.and_then(|logger| {
        let place = Place {
            worker: Some((index, link)),
            shard: up.first_shard + index as u16,
        };
        take_mail(up, place, logger)
    });
    match result {
        Ok(code) => code,
        Err(StartError { code, text }) => {
            if say(&own, &Report::Failed { code, text }).is_err() {
                return EXIT_FAILURE;
            }
            code
        }
    }
}

fn start_logger(up: &Up, index: usize) -> Result<Logger, StartError> {
    let config = &up.config;
    // A fork has a table as large as what is open in it.
    reserve_descriptors(config);
    let mut logger = Logger::start(io::stderr(), config.log_format, config.log_level, up.clock)
        .map_err(|error| start_error(EXIT_FAILURE, format!("the log thread: {error}")))?;
    logger.set_worker(index as u16);
    Ok(logger)
}

/// Tells the parent something outside of the loop, before it or behind it, where waiting harms nobody.
///
/// # Errors
/// The parent has gone.
pub(super) fn say(link: &UnixStream, report: &Report) -> io::Result<()> {
    link.set_nonblocking(false)?;
    let mut frame = Vec::new();
    report.put(&mut frame);
    let mut link = link;
    link.write_all(&frame)
}

/// Writes a log line to standard error if that can be done at once. The parent has no thread that could wait, and its
/// lines are few: workers come and go, HTTP requests are refused.
fn write_without_waiting(line: &[u8]) -> bool {
    let stderr = io::stderr();
    if !wait::is_writable(stderr.as_fd()) {
        return false;
    }
    stderr.lock().write_all(line).is_ok()
}

/// The exit code of the whole: failed storage before any other failure, that before sessions that were cut.
fn worst(exits: &[Option<Ended>]) -> i32 {
    let rank = |code: i32| match code {
        EXIT_OK => 0,
        EXIT_CUT => 1,
        EXIT_STORAGE => 3,
        _ => 2,
    };
    exits
        .iter()
        .flatten()
        .map(|ended| match ended {
            Ended::Code(code) => *code,
            Ended::Signal(number) => {
                complain(&format!("ringmx: signal {number} ended a worker\n"));
                EXIT_FAILURE
            }
        })
        .max_by_key(|code| rank(*code))
        .unwrap_or(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_end_of_a_worker_is_the_exit_code_of_all() {
        let code = |codes: &[i32]| {
            let exits: Vec<_> = codes.iter().map(|code| Some(Ended::Code(*code))).collect();
            worst(&exits)
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[0, 0]), 0);
        assert_eq!(code(&[0, 3, 0]), 3);
        assert_eq!(code(&[3, 1, 0]), 1);
        assert_eq!(code(&[1, 74, 3]), 74);
        assert_eq!(worst(&[None, Some(Ended::Signal(9))]), 1);
    }
}
