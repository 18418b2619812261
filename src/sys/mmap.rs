//! Shared file maps: one to store through, one to read a ring that wraps as if it did not.
//!
//! Both copy bytes instead of lending slices, because another process may change the file at any
//! time. A file that is truncated below a map raises SIGBUS on access; rings are never truncated by
//! this program.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Address space that is only reserved needs no memory behind it; where the kernel has no word for that, a private map
/// without access needs none either.
#[cfg(target_os = "linux")]
const RESERVED: libc::c_int = libc::MAP_NORESERVE;
#[cfg(not(target_os = "linux"))]
const RESERVED: libc::c_int = 0;

/// A writable shared map of the first bytes of a file.
#[derive(Debug)]
pub struct WriteMap {
    base: NonNull<u8>,
    /// INVARIANT: `base` is valid for reads and writes of `len` bytes until the value is dropped.
    len: usize,
}

// SAFETY: the map belongs to this value alone and has no thread affinity.
unsafe impl Send for WriteMap {}

impl WriteMap {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Errors
    /// As mmap(2); `InvalidInput` when the file is shorter than `len` or `len` is 0.
    pub fn new(file: &File, len: u64) -> io::Result<WriteMap> {
        let len = map_len(file.metadata()?.len(), 0, len)?;
        // SAFETY: a new map at an address that the kernel chooses; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        Ok(WriteMap {
            base: mapped(base)?,
            len,
        })
    }

    /// Copies `bytes` to byte `at` of the file. False, and nothing is stored, when they do not fit.
    #[must_use]
    pub fn store(&mut self, bytes: &[u8], at: u64) -> bool {
        let Some(at) = inside(at, bytes.len(), self.len) else {
            return false;
        };
        // SAFETY: `at + bytes.len() <= len`, so the target is inside the map; `bytes` is our memory
        // and cannot overlap a map that this value owns.
        unsafe {
            self.base
                .as_ptr()
                .add(at)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        true
    }
}

impl Drop for WriteMap {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what mmap returned and took; no reference into the map
        // exists.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A read-only shared map of a part of a file, twice back to back, so that a record that wraps
/// around the end of the part is contiguous.
#[derive(Debug)]
pub struct RingMap {
    base: NonNull<u8>,
    /// INVARIANT: `base` is valid for reads of `2 * len` bytes until the value is dropped.
    len: usize,
}

// SAFETY: the map belongs to this value alone and has no thread affinity; it is only read.
unsafe impl Send for RingMap {}
// SAFETY: shared access only copies bytes out.
unsafe impl Sync for RingMap {}

impl RingMap {
    /// Maps `len` bytes from byte `offset` of the file on, twice. Both are multiples of the page
    /// size.
    ///
    /// # Errors
    /// As mmap(2); `InvalidInput` when the file is too short or `len` is 0.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<RingMap> {
        let file_len = File::from(file.try_clone_to_owned()?).metadata()?.len();
        let len = map_len(file_len, offset, len)?;
        let twice = len
            .checked_mul(2)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: reserves address space that the kernel chooses; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                twice,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | RESERVED,
                -1,
                0,
            )
        };
        // From here on the drop of `map` gives the whole reservation back.
        let map = RingMap {
            base: mapped(base)?,
            len,
        };
        for half in 0..2 {
            // SAFETY: `half * len` is 0 or `len`, both inside the reservation of `2 * len` bytes.
            let target = unsafe { map.base.as_ptr().add(half * len) };
            // SAFETY: MAP_FIXED replaces only pages of the reservation made above, which nothing
            // refers to.
            let mapped_half = unsafe {
                libc::mmap(
                    target.cast(),
                    len,
                    libc::PROT_READ,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset,
                )
            };
            mapped(mapped_half)?;
        }
        Ok(map)
    }

    /// Bytes of the mapped part, counted once.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Always false: an empty part cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes that begin at absolute position `position` (its remainder by the length of
    /// the part is the place). False, and nothing is copied, when `bytes` is longer than the part.
    ///
    /// The writer may be overwriting the place: check tail and checksum afterwards.
    #[must_use]
    pub fn copy_to(&self, position: u64, bytes: &mut [u8]) -> bool {
        if bytes.len() > self.len {
            return false;
        }
        let at = (position % self.len as u64) as usize;
        // SAFETY: `at < len` and `bytes.len() <= len`, so the source ends inside the `2 * len`
        // mapped bytes; `bytes` is our memory and cannot overlap the map.
        unsafe {
            self.base
                .as_ptr()
                .add(at)
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
        }
        true
    }
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: the reservation was made with `2 * len` bytes at `base`; no reference into it
        // exists.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * 2) };
    }
}

fn map_len(file_len: u64, offset: u64, len: u64) -> io::Result<usize> {
    let end = offset.checked_add(len);
    match (usize::try_from(len), end) {
        (Ok(map_len), Some(end)) if len > 0 && end <= file_len => Ok(map_len),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// Where mmap has put a map, or its error.
pub(super) fn mapped(base: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

fn inside(at: u64, bytes: usize, len: usize) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    (at.checked_add(bytes)? <= len).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn stores_through_the_map_are_read_from_the_file_and_from_the_ring_map_across_its_end() {
        let file = crate::sys::file::memory_file(c"map").unwrap();
        file.set_len(3 * 4_096).unwrap();
        let mut map = WriteMap::new(&file, 3 * 4_096).unwrap();
        assert!(map.store(b"end", 3 * 4_096 - 3));
        assert!(map.store(b"begin", 4_096));
        assert!(!map.store(b"x", 3 * 4_096));
        assert!(!map.store(b"x", u64::MAX));
        let mut read = [0; 3];
        file.read_exact_at(&mut read, 3 * 4_096 - 3).unwrap();
        assert_eq!(&read, b"end");

        let ring = RingMap::new(file.as_fd(), 4_096, 2 * 4_096).unwrap();
        assert_eq!(ring.len(), 8_192);
        let mut bytes = [0; 8];
        assert!(ring.copy_to(5 * 8_192 - 3, &mut bytes));
        assert_eq!(&bytes, b"endbegin");
        assert!(!ring.copy_to(0, &mut [0; 8_193]));
    }

    #[test]
    fn maps_beyond_the_end_of_the_file_are_refused() {
        let file = crate::sys::file::memory_file(c"map").unwrap();
        file.set_len(4_096).unwrap();
        assert!(WriteMap::new(&file, 8_192).is_err());
        assert!(WriteMap::new(&file, 0).is_err());
        assert!(RingMap::new(file.as_fd(), 4_096, 4_096).is_err());
        assert!(RingMap::new(file.as_fd(), u64::MAX, 4_096).is_err());
    }
}
