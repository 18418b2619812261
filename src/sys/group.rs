//! Groups by name, and how the databases of users and groups are asked.

use std::ffi::{CStr, CString};
use std::io;

/// Longest entry of a database that is read, bytes.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Number of the group with this name; `None` when there is none.
///
/// # Errors
/// Whatever getgrnam_r says; `InvalidInput` for a name with a NUL.
pub fn number_of(name: &str) -> io::Result<Option<u32>> {
    entry_of(name, |name, buf| {
        // SAFETY: an all-zero group (null pointers) is a valid value to be overwritten.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call; the strings of `entry` point into `buf`, which is not
        // read after this call.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                &mut entry,
                buf.as_mut_ptr().cast(),
                buf.len(),
                &mut found,
            )
        };
        (code, (!found.is_null()).then_some(entry.gr_gid))
    })
}

/// Asks a database for the entry of a name, with buffers that grow until the entry fits; `None` when there is none.
/// `ask` returns the code of the call, and what it found if that is 0.
///
/// # Errors
/// Those of the call; `InvalidInput` for a name with a NUL.
pub(super) fn entry_of<T>(
    name: &str,
    ask: impl Fn(&CStr, &mut [u8]) -> (libc::c_int, Option<T>),
) -> io::Result<Option<T>> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut buf = vec![0_u8; 4_096];
    loop {
        match ask(&name, &mut buf) {
            (0, found) => return Ok(found),
            (libc::ERANGE, _) if buf.len() < ENTRY_BYTES_MAX => buf.resize(buf.len() * 2, 0),
            (libc::ENOENT | libc::ESRCH, _) => return Ok(None),
            (code, _) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_is_known_and_nonsense_is_not() {
        assert_eq!(super::number_of("root").expect("group database"), Some(0));
        assert_eq!(
            super::number_of("no-such-group-here").expect("group database"),
            None
        );
        assert!(super::number_of("a\0b").is_err());
    }
}
