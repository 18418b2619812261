//! Groups by name.

use std::ffi::CString;
use std::io;

/// Longest entry of the group database that is read, bytes.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Number of the group with this name; `None` when there is none.
///
/// # Errors
/// Whatever getgrnam_r says; `InvalidInput` for a name with a NUL.
pub fn number_of(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut buf = vec![0_u8; 4_096];
    loop {
        // SAFETY: an all-zero group (null pointers) is a valid value to be overwritten.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call; the strings of `entry` point into `buf`, which is not
        // read after this function.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                &mut entry,
                buf.as_mut_ptr().cast(),
                buf.len(),
                &mut found,
            )
        };
        match code {
            0 if found.is_null() => return Ok(None),
            0 => return Ok(Some(entry.gr_gid)),
            libc::ERANGE if buf.len() < ENTRY_BYTES_MAX => buf.resize(buf.len() * 2, 0),
            libc::ENOENT | libc::ESRCH => return Ok(None),
            code => return Err(io::Error::from_raw_os_error(code)),
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
