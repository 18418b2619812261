//! The operating system calls that std, mio and socket2 do not offer; all `unsafe` is here.

#![expect(
    unsafe_code,
    reason = "system calls; each block states why it is sound"
)]

pub mod counting;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// When the first signal came, ns of the monotonic clock; 0 before it.
static FIRST_SIGNAL_NS: AtomicU64 = AtomicU64::new(0);
/// A signal this long after the first ends the process at once. Shorter gaps are one request:
/// timeout(1) signals the process and then its group.
const INSIST_NS: u64 = 500_000_000;

extern "C" fn note_signal(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let now = clock_ns(libc::CLOCK_MONOTONIC);
    let before = FIRST_SIGNAL_NS.load(Ordering::Relaxed);
    if before == 0 {
        FIRST_SIGNAL_NS.store(now, Ordering::Relaxed);
    } else if now - before > INSIST_NS {
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { libc::_exit(130) };
    }
}

/// Reads a clock; async-signal-safe.
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Makes SIGINT and SIGTERM set a flag; a second one, half a second later or more, ends the
/// process.
pub fn catch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sigaction is plain data for which all zeroes are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note_signal as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` is initialised, and its handler only stores to atomics, reads a clock
        // and may _exit: all async-signal-safe.
        unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    }
    // SAFETY: ignoring SIGPIPE touches no memory; write errors are seen as EPIPE instead.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Returns whether a signal asked the program to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Returns the monotonic clock, in ns since some fixed point before the start of this process.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Returns the CPU time this thread has used, in ns.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Returns the largest resident set of this process so far, in bytes.
pub fn resident_max() -> u64 {
    // SAFETY: rusage is plain data for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for one rusage.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    // Apple's systems count octets, the others units of 1,024.
    let unit = if cfg!(target_vendor = "apple") {
        1
    } else {
        1_024
    };
    usage.ru_maxrss as u64 * unit
}

/// Raises the limit of open files as far as allowed and returns it.
#[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for one rlimit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if limit.rlim_cur < limit.rlim_max {
        let wanted = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        // SAFETY: `wanted` is initialised.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } == 0 {
            return wanted.rlim_cur as u64;
        }
    }
    limit.rlim_cur as u64
}

/// Lets the kernel's table of this process have room for `count` descriptors, or as many as it may open, at once.
///
/// It would double whenever a connection does not fit. While there are threads, Linux waits for all of its processors
/// to have passed a point of rest (RCU) then, some 13 ms in which a worker neither sends nor reads: they would be in
/// the latencies. Best called before there are threads. Where it can't be had, the table grows as it always did.
pub fn reserve_descriptors(count: u64) {
    let last = count.min(raise_descriptor_limit()).saturating_sub(1);
    let last = libc::c_int::try_from(last).unwrap_or(libc::c_int::MAX);
    // SAFETY: fcntl with F_DUPFD_CLOEXEC has no memory to reach.
    let made = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, last) };
    if made >= 0 {
        // SAFETY: the call above made it, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(made) });
    }
}

/// Returns the space that files may still take at `path`, in bytes; nothing when it can't be told.
#[allow(clippy::unnecessary_cast, reason = "the types differ between targets")]
pub fn disk_free(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data for which all zeroes are valid.
    let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with NUL and `space` is a valid place for one statvfs.
    let done = unsafe { libc::statvfs(path.as_ptr(), &mut space) };
    (done == 0).then(|| (space.f_bavail as u64).saturating_mul(space.f_frsize as u64))
}

/// Returns the width of the terminal on standard error, if it is one.
pub fn terminal_columns() -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a valid place for one winsize.
    let done = unsafe { libc::ioctl(2, libc::TIOCGWINSZ, &mut size) };
    (done == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Binds this thread to one CPU.
#[cfg(target_os = "linux")]
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: cpu_set_t is plain data for which all zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit is inside `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is initialised and its size is given.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) })?;
    Ok(())
}

/// Binds this thread to one CPU.
#[cfg(target_os = "freebsd")]
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: cpuset_t is plain data for which all zeroes are valid.
    let mut set: libc::cpuset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit is inside `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is initialised and its size is given; -1 is the calling thread.
    check(unsafe {
        libc::cpuset_setaffinity(
            libc::CPU_LEVEL_WHICH,
            libc::CPU_WHICH_TID,
            -1,
            size_of_val(&set),
            &set,
        )
    })?;
    Ok(())
}

/// Threads can't be bound here.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn pin_thread(_cpu: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Lets a bound socket choose its port when it connects, so that ports are shared between
/// destinations (IP_BIND_ADDRESS_NO_PORT of Linux; elsewhere nothing is done).
#[cfg(target_os = "linux")]
pub fn bind_without_port(socket: &impl AsFd) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open while borrowed, and `on` outlives the call. A kernel without
    // the option refuses it, which only costs ports.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        );
    }
}

/// Lets a bound socket choose its port when it connects: a wish that only Linux knows.
#[cfg(not(target_os = "linux"))]
pub fn bind_without_port(_socket: &impl AsFd) {}

/// How many segments a TCP socket has sent again is asked of Linux alone.
#[cfg(not(target_os = "linux"))]
pub fn retransmits(_socket: &impl AsFd) -> Option<u64> {
    None
}

/// Makes a TCP socket whose calls do not wait.
pub fn nonblocking_tcp(domain: Domain) -> io::Result<Socket> {
    #[cfg(not(target_vendor = "apple"))]
    return Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP));
    #[cfg(target_vendor = "apple")]
    {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Returns whether a connect goes on by itself.
pub fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Chooses the congestion control of a socket.
///
/// **Errors**: those of setsockopt(2) for a name that the system does not have; `Unsupported` where none can be chosen.
pub fn set_congestion(socket: &Socket, name: &str) -> io::Result<()> {
    #[cfg(not(target_vendor = "apple"))]
    return socket.set_tcp_congestion(name.as_bytes());
    #[cfg(target_vendor = "apple")]
    {
        let _ = (socket, name);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Returns the name of a socket's congestion control, with what follows its end.
///
/// **Errors**: those of getsockopt(2); `Unsupported` where it can't be asked.
pub fn congestion(socket: &SockRef<'_>) -> io::Result<Vec<u8>> {
    #[cfg(not(target_vendor = "apple"))]
    return socket.tcp_congestion();
    #[cfg(target_vendor = "apple")]
    {
        let _ = socket;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Returns how many segments a TCP socket has sent again, its SYN included; nothing for others.
#[cfg(target_os = "linux")]
pub fn retransmits(socket: &impl AsFd) -> Option<u64> {
    // SAFETY: tcp_info is plain data for which all zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the descriptor is open while borrowed; `info` is a valid place of `len` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    (done == 0).then(|| u64::from(info.tcpi_total_retrans))
}

/// Takes a TCP socket out of its connection, so that it can connect again: what the peer sees is the reset of a close
/// with SO_LINGER at 0. The socket keeps its options and its place in a poll.
///
/// **Errors**: those of connect(2), such as a socket that is closed already.
#[cfg(target_os = "linux")]
pub fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    // SAFETY: sockaddr is plain data for which all zeroes are valid, and AF_UNSPEC is 0.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the descriptor is open while borrowed; `nowhere` is a valid sockaddr of `len` bytes.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), &nowhere, len) })?;
    Ok(())
}

/// Other systems connect a TCP socket once.
///
/// **Errors**: always `Unsupported`.
#[cfg(not(target_os = "linux"))]
pub fn disconnect(_socket: &impl AsFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A timer that a poll can wait for, finer than poll's milliseconds.
pub struct Timer {
    fd: OwnedFd,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// Makes a timer that is not set.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: timerfd_create takes no pointers.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: `fd` was just returned and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Rings once, `after_ns` from now, at least 1. Nobody has to read that it rang: setting it again makes it silent.
    pub fn set(&self, after_ns: u64) {
        let after_ns = after_ns.max(1);
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = libc::timespec {
            tv_sec: (after_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (after_ns % 1_000_000_000) as libc::c_long,
        };
        let spec = libc::itimerspec {
            it_interval: zero,
            it_value: value,
        };
        // SAFETY: `spec` is initialised; the old value is not asked for.
        unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    /// Makes a timer that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: kqueue takes nothing.
        let fd = check(unsafe { libc::kqueue() })?;
        // SAFETY: `fd` was just returned and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Rings once, `after_ns` from now, at least 1. Nobody has to read that it rang: setting it again makes it silent.
    pub fn set(&self, after_ns: u64) {
        // SAFETY: kevent is plain data for which all zeroes are valid.
        let mut change: libc::kevent = unsafe { std::mem::zeroed() };
        change.filter = libc::EVFILT_TIMER;
        change.flags = libc::EV_ADD | libc::EV_ONESHOT;
        change.fflags = libc::NOTE_NSECONDS;
        change.data = after_ns.max(1) as _;
        let queue = self.fd.as_raw_fd();
        // SAFETY: one initialised change is read; no event is asked for.
        unsafe { libc::kevent(queue, &change, 1, std::ptr::null_mut(), 0, std::ptr::null()) };
    }
}

impl Timer {
    /// The descriptor to poll.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Reads how long this thread has waited for a CPU, in ns; nothing where the kernel does not tell.
pub struct RunQueue {
    file: Option<File>,
}

impl RunQueue {
    /// Opens the counter of the calling thread.
    pub fn of_this_thread() -> Self {
        Self {
            file: File::open("/proc/thread-self/schedstat").ok(),
        }
    }

    /// Returns the time waited so far.
    pub fn waited_ns(&self) -> Option<u64> {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 128];
        let len = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len])
            .ok()?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_uses_cpu_time() {
        let before = thread_cpu_ns();
        let mut sum = 0u64;
        for number in 0..1_000_000u64 {
            sum = sum.wrapping_add(std::hint::black_box(number));
        }
        assert_ne!(sum, 0);
        assert!(thread_cpu_ns() > before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn room_for_descriptors_is_taken_at_once_and_none_stays_open() {
        let count = raise_descriptor_limit().min(3_000);
        reserve_descriptors(count);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: u64 = size.unwrap().trim().parse().unwrap();
        assert!(size >= count, "{size}");
        assert!(!std::path::Path::new(&format!("/proc/self/fd/{}", count - 1)).exists());
    }

    #[test]
    fn a_timer_rings_after_its_time() {
        let timer = Timer::new().unwrap();
        let start = std::time::Instant::now();
        timer.set(300_000);
        let mut fd = libc::pollfd {
            fd: timer.raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd is given and counted as one.
        let rang = unsafe { libc::poll(&mut fd, 1, 5000) };
        assert_eq!(rang, 1);
        assert!(start.elapsed().as_nanos() >= 300_000);
        timer.set(60_000_000_000);
        // SAFETY: as above.
        let rang = unsafe { libc::poll(&mut fd, 1, 0) };
        assert_eq!(rang, 0);
    }
}
