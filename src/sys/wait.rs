//! Waiting: for descriptors to become readable, and for the signals that ask a tool to stop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Flag for opening: a symbolic link is refused.
pub const O_NOFOLLOW: i32 = libc::O_NOFOLLOW;
/// Descriptors that one call can wait for.
pub const DESCRIPTORS_MAX: usize = 8;

/// Which of the descriptors given to [`readable`] are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u8);

impl Ready {
    /// Whether the descriptor at `index` can be read (or has failed or ended, which a read will
    /// tell).
    pub fn is_ready(self, index: usize) -> bool {
        index < DESCRIPTORS_MAX && self.0 & (1 << index) != 0
    }
}

/// Waits until a descriptor can be read, a signal handler ran, or `wait` is over (`None`: for
/// ever). Without descriptors it only waits. May return early with nothing ready.
///
/// # Errors
/// Those of poll(2), except `Interrupted`; `InvalidInput` for more than [`DESCRIPTORS_MAX`]
/// descriptors.
pub fn readable(descriptors: &[BorrowedFd<'_>], wait: Option<Duration>) -> io::Result<Ready> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut polled = [libc::pollfd {
        fd: -1,
        events: libc::POLLIN,
        revents: 0,
    }; DESCRIPTORS_MAX];
    for (slot, descriptor) in polled.iter_mut().zip(descriptors) {
        slot.fd = descriptor.as_raw_fd();
    }
    // Rounded up, so that a wait is never shorter than asked.
    let wait_ms = wait.map_or(-1, |wait| {
        i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: `polled` is an array of DESCRIPTORS_MAX initialised entries, of which the first are
    // passed.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), descriptors.len() as _, wait_ms) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(Ready(0)),
            _ => Err(error),
        };
    }
    let mut ready = 0;
    for (index, slot) in polled.iter().enumerate() {
        if slot.revents != 0 {
            ready |= 1 << index;
        }
    }
    Ok(Ready(ready))
}

/// Waits until one of any number of descriptors can be read, nobody is left who reads `output`, a signal handler ran,
/// or `wait` is over (`None`: for ever). False when nobody reads `output` any more: without a look at it, a program
/// whose reader has gone would only notice with the next thing that it has to say.
///
/// # Errors
/// Those of poll(2), except `Interrupted`.
pub fn any_readable(
    descriptors: &[BorrowedFd<'_>],
    output: Option<BorrowedFd<'_>>,
    wait: Option<Duration>,
) -> io::Result<bool> {
    let polled = |descriptor: &BorrowedFd<'_>, events| libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events,
        revents: 0,
    };
    let readable = descriptors.iter().map(|fd| polled(fd, libc::POLLIN));
    // POLLERR and POLLHUP are told unasked; a file, and a pipe that is read, say neither.
    let output = output.iter().map(|fd| polled(fd, 0));
    let mut polled: Vec<libc::pollfd> = readable.chain(output).collect();
    // Rounded up, so that a wait is never shorter than asked.
    let wait_ms = wait.map_or(-1, |wait| {
        i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: `polled` is an array of initialised entries, passed with its length.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, wait_ms) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(true),
            _ => Err(error),
        };
    }
    let output = polled.get(descriptors.len());
    Ok(output.is_none_or(|slot| slot.revents & (libc::POLLERR | libc::POLLHUP) == 0))
}

/// Whether a write of at most PIPE_BUF (4,096) bytes to `descriptor` would not have to wait now, as far as this process
/// can know: others may write to the same pipe.
pub fn is_writable(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one initialised entry is passed; a wait of 0 returns at once.
    let count = unsafe { libc::poll(&raw mut polled, 1, 0) };
    count == 1 && polled.revents & libc::POLLOUT != 0
}

/// A process, as something that can be waited for: readable once it has ended.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// For [`readable`].
    pub fn as_fd_ref(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor of the child process `id`, which has not been waited for yet.
///
/// # Errors
/// As pidfd_open(2): `Unsupported` before Linux 5.3.
#[cfg(target_os = "linux")]
pub fn process(id: u32) -> io::Result<Process> {
    // SAFETY: takes two numbers and returns a new descriptor, close-on-exec, or an error.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, id as libc::pid_t, 0) };
    match RawFd::try_from(descriptor) {
        // SAFETY: just returned by the kernel; nobody else knows it.
        Ok(descriptor @ 0..) => Ok(Process(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of the child process `id`, which has not been waited for yet.
///
/// # Errors
/// As kqueue(2) and kevent(2).
#[cfg(not(target_os = "linux"))]
pub fn process(id: u32) -> io::Result<Process> {
    // SAFETY: takes nothing and returns a new descriptor or an error.
    let queue = unsafe { libc::kqueue() };
    if queue < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just returned by the kernel; nobody else knows it. No child inherits a kqueue.
    let queue = unsafe { OwnedFd::from_raw_fd(queue) };
    // SAFETY: kevent is plain data for which all zeros are a value.
    let mut change: libc::kevent = unsafe { std::mem::zeroed() };
    change.ident = id as libc::uintptr_t;
    change.filter = libc::EVFILT_PROC;
    change.flags = libc::EV_ADD;
    change.fflags = libc::NOTE_EXIT;
    // SAFETY: one initialised change is read, no event is asked for.
    let result = unsafe {
        libc::kevent(
            queue.as_raw_fd(),
            &raw const change,
            1,
            std::ptr::null_mut(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        return Ok(Process(queue));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It has ended already: a pipe that nobody can write to is readable from the beginning.
        Some(libc::ESRCH) => Ok(Process(OwnedFd::from(std::io::pipe()?.0))),
        _ => Err(error),
    }
}

/// Kills the process group `id`, which a child of ours leads that has not been waited for yet.
pub fn kill_group(id: u32) {
    if let Ok(id @ 2..) = libc::pid_t::try_from(id) {
        // SAFETY: sends a signal. The leader is not reaped, so the number can't have been given to
        // others.
        unsafe { libc::kill(-id, libc::SIGKILL) };
    }
}

/// Write end of the pipe that the signal handler fills; -1 before [`StopSignals::install`].
static STOP_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_stop(_signal: libc::c_int) {
    let descriptor: RawFd = STOP_PIPE.load(Ordering::Relaxed);
    // SAFETY: errno belongs to this thread and is put back, because the handler may run between a
    // failed call and the reading of its errno. write(2) is async-signal-safe; a full pipe already
    // says what is to be said.
    unsafe {
        let errno = super::errno_place();
        let kept = *errno;
        libc::write(descriptor, [1_u8].as_ptr().cast(), 1);
        *errno = kept;
    }
}

/// SIGTERM and SIGINT as something that can be waited for. Children do not inherit the handlers
/// past exec.
#[derive(Debug)]
pub struct StopSignals {
    reader: OwnedFd,
}

impl StopSignals {
    /// Installs handlers for SIGTERM and SIGINT for the rest of the process's life.
    ///
    /// # Errors
    /// Those of pipe2(2) and sigaction(2); `AlreadyExists` at the second call.
    pub fn install() -> io::Result<StopSignals> {
        let (reader, writer) = std::io::pipe()?;
        let writer = OwnedFd::from(writer);
        for descriptor in [reader.as_fd(), writer.as_fd()] {
            // SAFETY: sets O_NONBLOCK on a descriptor that we own; std made both close-on-exec.
            if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        STOP_PIPE
            .compare_exchange(-1, writer.as_raw_fd(), Ordering::Relaxed, Ordering::Relaxed)
            .map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
        // The handler may run as long as the process lives, so its descriptor is never closed.
        std::mem::forget(writer);
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: all-zero is a valid sigaction (empty mask, no flags); the handler is
            // async-signal-safe. Without SA_RESTART: a wait in progress ends, so that the stop is
            // seen at once.
            let result = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_stop as extern "C" fn(libc::c_int) as usize;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut())
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(StopSignals {
            reader: OwnedFd::from(reader),
        })
    }

    /// Readable once a signal arrived, and from then on.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Whether a signal arrived.
    pub fn is_stopped(&self) -> bool {
        readable(&[self.as_fd()], Some(Duration::ZERO)).is_ok_and(|ready| ready.is_ready(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn readable_tells_which_descriptor_is_ready_and_gives_up_in_time() {
        let (first, _keep) = std::io::pipe().unwrap();
        let (second, mut writer) = std::io::pipe().unwrap();
        let both = [first.as_fd(), second.as_fd()];
        let ready = readable(&both, Some(Duration::from_millis(1))).unwrap();
        assert_eq!(ready, Ready(0));
        writer.write_all(b"x").unwrap();
        let ready = readable(&both, None).unwrap();
        assert_eq!(ready, Ready(2));
        assert!(!ready.is_ready(0) && ready.is_ready(1) && !ready.is_ready(99));
    }
}
