//! Becoming an ordinary user for good, and what that user's processes may still do.

use std::io;

use super::group::entry_of;

/// A user and his own group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of his group.
    pub gid: u32,
}

/// The user with this name; `None` when there is none.
///
/// # Errors
/// Whatever getpwnam_r says; `InvalidInput` for a name with a NUL.
pub fn user_named(name: &str) -> io::Result<Option<User>> {
    entry_of(name, |name, buf| {
        // SAFETY: an all-zero passwd (null pointers) is a valid value to be overwritten.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call; the strings of `entry` point into `buf`, which is not
        // read after this call.
        let code = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                &mut entry,
                buf.as_mut_ptr().cast(),
                buf.len(),
                &mut found,
            )
        };
        let user = User {
            uid: entry.pw_uid,
            gid: entry.pw_gid,
        };
        (code, (!found.is_null()).then_some(user))
    })
}

/// Number of the user this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and can't fail.
    unsafe { libc::geteuid() }
}

/// Becomes this user, with no other group than `groups` and his own, and makes sure that there is no way back.
///
/// Call it before other threads do anything that depends on who they are: the C library changes them all.
///
/// # Errors
/// Whatever the system says; `PermissionDenied` when the process could become root again. The process must end
/// then: it may have changed already.
pub fn become_user(user: User, groups: &[u32]) -> io::Result<()> {
    let mut all = vec![user.gid];
    all.extend_from_slice(groups);
    // SAFETY: setgroups reads `all.len()` numbers.
    if unsafe { libc::setgroups(all.len() as _, all.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: these calls take numbers.
    #[cfg(not(target_vendor = "apple"))]
    let group = unsafe { libc::setresgid(user.gid, user.gid, user.gid) };
    // SAFETY: as above. Root's call changes the real, effective and saved number.
    #[cfg(target_vendor = "apple")]
    let group = unsafe { libc::setgid(user.gid) };
    if group != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    #[cfg(not(target_vendor = "apple"))]
    let own = unsafe { libc::setresuid(user.uid, user.uid, user.uid) };
    // SAFETY: as above.
    #[cfg(target_vendor = "apple")]
    let own = unsafe { libc::setuid(user.uid) };
    if own != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above. Where it works, what was given up was not given up.
    if user.uid != 0 && unsafe { libc::setuid(0) } == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// From now on no program that this process starts gains privileges (set-user-ID bits, file capabilities). Linux and
/// FreeBSD know such a promise; elsewhere nothing is done.
///
/// # Errors
/// Whatever prctl or procctl says.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers.
    #[cfg(target_os = "linux")]
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    #[cfg(target_os = "freebsd")]
    let result = {
        let mut enable = libc::PROC_NO_NEW_PRIVS_ENABLE;
        // SAFETY: the call reads one number, which outlives it; 0 is this process.
        unsafe {
            libc::procctl(
                libc::P_PID,
                0,
                libc::PROC_NO_NEW_PRIVS_CTL,
                (&raw mut enable).cast(),
            )
        }
    };
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    let result = 0;
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a crash may write this process's memory to a file, and other processes of the same user may look at it.
///
/// # Errors
/// Whatever prctl says.
#[cfg(target_os = "linux")]
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes numbers.
    if unsafe {
        libc::prctl(
            libc::PR_SET_DUMPABLE,
            libc::c_ulong::from(dumpable),
            0,
            0,
            0,
        )
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a crash may write this process's memory to a file: what is allowed already stays allowed.
///
/// # Errors
/// Whatever setrlimit says.
#[cfg(not(target_os = "linux"))]
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: setrlimit reads one rlimit from a valid pointer.
    if !dumpable && unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nonsense_is_not() {
        let root = user_named("root").expect("user database");
        assert_eq!(root, Some(User { uid: 0, gid: 0 }));
        let nobody_has_this = user_named("no-such-user-here").expect("user database");
        assert_eq!(nobody_has_this, None);
        let error = user_named("a\0b").expect_err("a NUL");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
