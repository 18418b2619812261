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
    // Elsewhere nobody counts: the caller answers for it.
    if cfg!(target_os = "linux") && std::fs::read_dir("/proc/self/task")?.count() != 1 {
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
    // SAFETY: PR_SET_PDEATHSIG takes a signal.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    };
    #[cfg(target_os = "freebsd")]
    {
        let mut signal = libc::SIGKILL;
        // SAFETY: the call reads one number, which outlives it; 0 is this process.
        unsafe {
            libc::procctl(
                libc::P_PID,
                0,
                libc::PROC_PDEATHSIG_CTL,
                (&raw mut signal).cast(),
            )
        };
    }
    // SAFETY: getppid takes nothing. Where no signal can be asked for, `is_orphan` tells.
    let now = unsafe { libc::getppid() };
    if now.unsigned_abs() != parent {
        signal::exit_now(1);
    }
}

/// Whether the parent of this process has ended, where no signal tells: it is then a child of the first process.
pub fn is_orphan() -> bool {
    // SAFETY: getppid takes nothing and can't fail.
    cfg!(target_vendor = "apple") && unsafe { libc::getppid() } == 1
}

/// The system's name for this host, as gethostname(3) has it; empty when it has none that is text.
pub fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: gethostname writes at most the octets that it is told there are; the last one is kept as an end.
    let result = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let text = std::ffi::CStr::from_bytes_until_nul(&name).ok();
    text.filter(|_| result == 0)
        .and_then(|text| text.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_host_has_the_name_that_the_kernel_knows() {
        let known = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(host_name(), known.trim_end());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_with_threads_is_not_forked() {
        // The test harness runs each test on a thread.
        let error = fork().expect_err("threads");
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
