//! The limit on open descriptors, and the kernel's table of them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Raises the soft limit on open descriptors to at least `wanted`, as far as the hard limit allows. Returns the
/// limit now in force.
///
/// # Errors
/// Whatever getrlimit or setrlimit says.
#[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
pub fn raise_limit(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one rlimit to a valid pointer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur as u64 >= wanted {
        return Ok(limit.rlim_cur as u64);
    }
    let enough = wanted.min(libc::RLIM_INFINITY as u64) as libc::rlim_t;
    // A privileged process may raise the hard limit as well; one that may not stays at it.
    let raised = libc::rlimit {
        rlim_cur: enough,
        rlim_max: limit.rlim_max.max(enough),
    };
    // SAFETY: setrlimit reads one rlimit from a valid pointer.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
        return Ok(wanted);
    }
    limit.rlim_cur = enough.min(limit.rlim_max);
    // SAFETY: as above.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur as u64)
}

/// Lets the kernel's table of this process have room for `count` descriptors at once, 8 octets of its memory each.
///
/// It would double by itself, whenever a descriptor does not fit. While a process has threads, Linux then waits for
/// all of its processors to have passed a point of rest (RCU), some 13 ms in which the event loop stands still: six
/// times on the way from 256 to 16,384 connections. Best called before there are threads.
///
/// # Errors
/// Those of fcntl(2), such as EINVAL for more than the limit allows. Then the table grows as it always did.
pub fn reserve(count: u64) -> io::Result<()> {
    let last = libc::c_int::try_from(count.saturating_sub(1)).unwrap_or(libc::c_int::MAX);
    // SAFETY: fcntl with F_DUPFD_CLOEXEC has no memory to reach.
    let made = unsafe { libc::fcntl(io::stderr().as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made it, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(made) });
    Ok(())
}

/// Whether a call failed because descriptors or memory for sockets ran out.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_is_never_lowered() {
        let before = super::raise_limit(0).expect("getrlimit");
        assert_eq!(super::raise_limit(1).expect("getrlimit"), before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn room_for_descriptors_is_taken_at_once_and_none_stays_open() {
        let count = 3_000;
        assert!(super::raise_limit(count).expect("getrlimit") >= count);
        super::reserve(count).expect("fcntl");
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: u64 = size.expect("FDSize").trim().parse().expect("a number");
        assert!(size >= count, "{size}");
        assert!(!std::path::Path::new("/proc/self/fd/2999").exists());
    }

    #[test]
    fn no_more_room_is_reserved_than_the_limit_allows() {
        let limit = super::raise_limit(0).expect("getrlimit");
        let refused = super::reserve(limit + 1).expect_err("beyond the limit");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
