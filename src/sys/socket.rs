//! What `std` and mio leave out of sockets: looking without taking, and sockets that were open at the start.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Copies what could be received and leaves it there; 0 at the end of the stream.
///
/// # Errors
/// Those of recv(2).
pub fn peek(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: recv writes at most `buf.len()` bytes to `buf`.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            libc::MSG_PEEK,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Number of the user whose process is at the other end of a UNIX socket.
///
/// # Errors
/// Those of getsockopt(2): it is no UNIX socket.
#[cfg(target_os = "linux")]
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: an all-zero ucred is a valid value to be overwritten.
    let mut found: libc::ucred = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `found`, which has them.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(found.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Number of the user whose process is at the other end of a UNIX socket.
///
/// # Errors
/// Those of getpeereid(3): it is no UNIX socket.
#[cfg(not(target_os = "linux"))]
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let (mut user, mut group) = (0, 0);
    // SAFETY: both pointers are valid for the call, which writes a number to each.
    match unsafe { libc::getpeereid(socket.as_raw_fd(), &raw mut user, &raw mut group) } {
        0 => Ok(user),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a descriptor that this process was started with, and closes it to the programs that it starts.
///
/// Each number may be taken once. Standard input, output and error are refused.
///
/// # Errors
/// `InvalidInput` for 0 to 2; otherwise what fcntl says: such a descriptor is not open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl takes numbers; one that is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the protocol of socket activation it is this process's to own; the
    // caller takes each number once, before it opens anything.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_looked_at_can_still_be_read() {
        let (mut far, mut near) = UnixStream::pair().expect("a pair of sockets");
        near.set_nonblocking(true).expect("fcntl");
        let mut buf = [0; 8];
        let error = peek(near.as_fd(), &mut buf).expect_err("nothing is there");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        far.write_all(b"abc").expect("room");
        for _ in 0..2 {
            assert_eq!(peek(near.as_fd(), &mut buf).expect("bytes"), 3);
            assert_eq!(&buf[..3], b"abc");
        }
        assert_eq!(near.read(&mut buf).expect("bytes"), 3);
        drop(far);
        assert_eq!(peek(near.as_fd(), &mut buf).expect("the end"), 0);
    }

    #[test]
    fn the_other_end_of_a_pair_is_this_user() {
        let (near, _far) = UnixStream::pair().expect("a pair of sockets");
        let own = crate::sys::privileges::effective_user();
        assert_eq!(peer_user(near.as_fd()).expect("credentials"), own);
        let (pipe, _) = std::io::pipe().expect("a pipe");
        assert!(peer_user(pipe.as_fd()).is_err());
    }

    #[test]
    fn standard_streams_and_closed_numbers_are_not_taken() {
        for number in [-1, 0, 2] {
            let error = take_inherited(number).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert!(take_inherited(1_000_000).is_err());
    }
}
