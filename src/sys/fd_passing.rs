//! Passing a descriptor over a UNIX socket (SCM_RIGHTS).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Descriptors taken from one message at most; more are closed by the kernel (MSG_CTRUNC).
const DESCRIPTORS_MAX: usize = 4;

/// What is received is closed to programs that are started; where the call can't see to that, it is done behind it.
#[cfg(not(target_vendor = "apple"))]
const RECEIVE_FLAGS: libc::c_int = libc::MSG_CMSG_CLOEXEC;
#[cfg(target_vendor = "apple")]
const RECEIVE_FLAGS: libc::c_int = 0;

/// Control buffer, aligned as `cmsghdr` has to be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends the front of `bytes`, with `descriptor` when there is one; returns how many bytes left.
/// The descriptor travels with the first byte, so it is gone once this returns at least 1.
///
/// # Errors
/// Those of sendmsg(2); `WouldBlock` on a full non-blocking socket, `InvalidInput` when `bytes` is
/// empty. A closed peer is `BrokenPipe`, never a signal.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    if bytes.is_empty() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero bytes are a valid `msghdr` (null pointers, zero lengths).
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        let len = size_of::<RawFd>() as u32;
        // SAFETY: pure arithmetic on a small length.
        let space = unsafe { libc::CMSG_SPACE(len) } as usize;
        debug_assert!(space <= control.0.len());
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        // SAFETY: `msg_control` points to `space` writable, aligned bytes, room for exactly one
        // header and one descriptor, so that CMSG_FIRSTHDR is not null and CMSG_DATA lies within;
        // the data may be unaligned.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), descriptor.as_raw_fd());
        }
    }
    loop {
        // SAFETY: `message` points to `part` and `control`, both alive; the kernel only reads them.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives into `buf`: how many bytes came (0 at the end of the stream) and the descriptor that
/// came with them. It is close-on-exec. Of several descriptors the first is returned, the others
/// are closed.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` on an empty non-blocking socket.
pub fn receive(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: pure arithmetic on a small length.
    let space = unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * size_of::<RawFd>()) as u32) } as usize;
    debug_assert!(space <= control.0.len());
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = space as _;
    let len = loop {
        // SAFETY: `message` points to `buf` and `control`, both writable for the lengths given.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, RECEIVE_FLAGS) };
        if let Ok(len) = usize::try_from(len) {
            break len;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    Ok((len, first_descriptor(&message)))
}

fn first_descriptor(message: &libc::msghdr) -> Option<OwnedFd> {
    let mut first = None;
    // SAFETY: recvmsg filled `msg_control` up to `msg_controllen`; the macros stay within.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a non-null header from the macros is valid for reads.
        let (level, kind, len) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len as usize,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: pure arithmetic.
            let data_len = len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for index in 0..data_len / size_of::<RawFd>() {
                // SAFETY: the data of an SCM_RIGHTS header is an array of `cmsg_len - CMSG_LEN(0)`
                // bytes of descriptors, which the kernel installed in this process for us alone to
                // own.
                let owned = unsafe {
                    let data = libc::CMSG_DATA(header).cast::<RawFd>().add(index);
                    OwnedFd::from_raw_fd(ptr::read_unaligned(data))
                };
                #[cfg(target_vendor = "apple")]
                // SAFETY: takes numbers; the descriptor is open.
                unsafe {
                    libc::fcntl(owned.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC)
                };
                first.get_or_insert(owned);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; null at the end.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_travels_with_the_first_bytes_and_refers_to_the_same_file() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(
            send(left.as_fd(), b"hello", Some(writer.as_fd())).unwrap(),
            5
        );
        assert_eq!(send(left.as_fd(), b"!", None).unwrap(), 1);
        let mut buf = [0; 16];
        let (len, descriptor) = receive(right.as_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..len], b"hello");
        let mut copy = std::fs::File::from(descriptor.unwrap());
        assert!(copy.stream_position().is_err(), "a pipe");
        copy.write_all(b"x").unwrap();
        writer.write_all(b"y").unwrap();
        drop((copy, writer));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xy");
        let (len, descriptor) = receive(right.as_fd(), &mut buf).unwrap();
        assert_eq!((&buf[..len], descriptor.is_none()), (&b"!"[..], true));
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut buf).unwrap().0, 0);
        let error = send(right.as_fd(), b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
