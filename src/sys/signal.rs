//! Signals as bytes in a pipe, so that they arrive through the poll. A flag beside a blocking poll loses the
//! signal that comes between the look at the flag and the poll.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Write end of the pipe; -1 before `install`.
static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(number: libc::c_int) {
    let fd = PIPE.load(Ordering::Relaxed);
    let byte = number as u8;
    // SAFETY: write(2) is async-signal-safe; the byte lives on this stack; errno is put back below.
    unsafe {
        let errno = *super::errno_place();
        libc::write(fd, (&raw const byte).cast(), 1);
        *super::errno_place() = errno;
    }
}

/// The read end of the pipe.
#[derive(Debug)]
pub struct Signals {
    pipe: std::fs::File,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

impl Signals {
    /// Routes SIGTERM, SIGINT and SIGHUP into a pipe, and ignores SIGXFSZ: a write beyond the limit of a file's
    /// size (`ulimit -f`) fails like any other, instead of ending the process without a word. Once per process.
    ///
    /// # Errors
    /// Whatever pipe, fcntl or sigaction says.
    pub fn install() -> io::Result<Signals> {
        let (reader, writer) = io::pipe()?;
        // The write end stays open for ever.
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer).into_raw_fd());
        for end in [reader.as_raw_fd(), writer] {
            // SAFETY: sets O_NONBLOCK on a descriptor that was just made; it is closed on exec already.
            if unsafe { libc::fcntl(end, libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        PIPE.store(writer, Ordering::Relaxed);
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe.
            let done = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(number, &action, std::ptr::null_mut())
            };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: SIG_IGN is a valid disposition for SIGXFSZ, and no handler is involved.
        if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        Ok(Signals {
            pipe: std::fs::File::from(reader),
        })
    }

    /// The next signal that has arrived.
    pub fn next_request(&mut self) -> Option<Request> {
        let mut byte = [0];
        while let Ok(1) = self.pipe.read(&mut byte) {
            match libc::c_int::from(byte[0]) {
                libc::SIGTERM | libc::SIGINT => return Some(Request::Stop),
                libc::SIGHUP => return Some(Request::Reload),
                _ => {}
            }
        }
        None
    }

    /// Descriptor to poll for readability.
    pub fn raw_fd(&self) -> i32 {
        self.pipe.as_raw_fd()
    }
}

/// In a process that was just forked: signals do again what they do without handlers, but for the SIGINT and SIGHUP
/// of a terminal, which its parent gets as well; the parent's pipe is closed here.
pub(super) fn reset_in_child() {
    for (number, action) in [
        (libc::SIGTERM, libc::SIG_DFL),
        (libc::SIGINT, libc::SIG_IGN),
        (libc::SIGHUP, libc::SIG_IGN),
    ] {
        // SAFETY: both are valid dispositions and no handler is involved.
        unsafe { libc::signal(number, action) };
    }
    let fd = PIPE.swap(-1, Ordering::Relaxed);
    if fd >= 0 {
        // SAFETY: the write end belongs to the handlers alone, which are gone.
        unsafe { libc::close(fd) };
    }
}

/// Ends this process at once, as the second SIGTERM or SIGINT asks.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Sends SIGKILL to a child that this process started.
///
/// # Errors
/// Whatever kill says.
pub fn kill(pid: u32) -> io::Result<()> {
    send(pid, libc::SIGKILL)
}

/// Sends SIGTERM to a child that this process started.
///
/// # Errors
/// Whatever kill says.
pub fn terminate(pid: u32) -> io::Result<()> {
    send(pid, libc::SIGTERM)
}

/// Sends SIGHUP to a child that this process started.
///
/// # Errors
/// Whatever kill says.
pub fn hang_up(pid: u32) -> io::Result<()> {
    send(pid, libc::SIGHUP)
}

fn send(pid: u32, number: libc::c_int) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes any numbers; a positive pid names one process.
    if unsafe { libc::kill(pid, number) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
