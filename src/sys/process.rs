//! Worker processes: forking one, knowing when it has ended, ending with one's parent.
//!
//! A worker is a fork of its parent and no program of its own: it starts with the keys that only the starting user may
//! read, the sockets, and the settings as they were checked, also when it is started again long after that user was
//! given up.

use std::io;

use super::signal;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The process that forked, with the one that it started.
    Parent(Child),
    /// The new process.
    Child,
}

/// A process that this one started, and has not waited for.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    ended: Option<Ended>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Child {
    /// Number of the process.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// How it ended; `None` while it lives. Never waits.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let mut status = 0;
        // SAFETY: waitpid writes one int; the number is that of a child that was not reaped yet.
        let got = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
        match got {
            0 => Ok(None),
            pid if pid == self.pid => {
                self.ended = Some(if libc::WIFEXITED(status) {
                    Ended::Code(libc::WEXITSTATUS(status))
                } else {
                    Ended::Signal(libc::WTERMSIG(status))
                });
                Ok(self.ended)
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends SIGKILL, unless it was reaped: its number may be another's then.
    pub fn kill(&self) {
        if self.ended.is_none() {
            // It may have ended by itself.
            let _ = signal::kill(self.id());
        }
    }
}

/// Starts a copy of this process. In the copy the handlers of `Signals::install` are gone, and it is killed when its
/// parent ends.
///
/// # Errors
/// Those of fork(2); `Unsupported` while this process has threads: a copy has none of them, but all the locks that they
/// held.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        let text = "only a process without threads can be forked";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let parent = std::process::id();
    // No handler may run in the copy before it has given up the pipe of the parent's handlers.
    let mask = block_all()?;
    // SAFETY: this is the only thread, so that no lock is held by another one and the copy is as whole as the original.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        signal::reset_in_child();
        die_with(parent);
    }
    let error = io::Error::last_os_error();
    restore(&mask);
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(Child { pid, ended: None })),
        _ => Err(error),
    }
}

fn block_all() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data; the calls fill it and get valid pointers.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const all, &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(before)
    }
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: the mask was filled by sigprocmask. With a valid operation it can't fail.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Has this process killed when its parent ends; ends it at once when the parent has ended already.
fn die_with(parent: u32) {
    // SAFETY: PR_SET_PDEATHSIG takes a signal; getppid takes nothing.
    let now = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::getppid()
    };
    if now.unsigned_abs() != parent {
        signal::exit_now(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness runs each test on a thread.
        let error = fork().expect_err("threads");
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
