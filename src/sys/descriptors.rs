//! The limit on open descriptors.

use std::io;

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
}
