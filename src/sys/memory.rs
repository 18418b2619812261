//! Memory that begins at a page, and giving pages back.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::mmap::mapped;

/// Zeros that begin at a page, untouched until they are used.
///
/// Large allocations begin 16 octets behind a page, behind the allocator's own word. Processors that copy by microcode
/// (`rep movsb` in read, write and send) are several times slower between places of which one lies so little behind the
/// other within its page: the copy of a durable message into the page cache took 22 to 26 % of all its time.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    /// INVARIANT: `base` is valid for reads and writes of `len` initialised bytes until the value is dropped.
    len: usize,
}

// SAFETY: the memory belongs to this value alone and has no thread affinity.
unsafe impl Send for Pages {}
// SAFETY: a shared reference allows reading only.
unsafe impl Sync for Pages {}

impl Pages {
    /// `len` octets of zeros. Ends the process like any failed allocation when there is no memory.
    pub fn zeroed(len: usize) -> Pages {
        if len == 0 {
            return Pages::default();
        }
        // SAFETY: a new private map of zeros at an address that the kernel chooses; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        match mapped(base) {
            Ok(base) => Pages { base, len },
            Err(_) => handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>())),
        }
    }
}

impl Default for Pages {
    /// No octets.
    fn default() -> Pages {
        Pages {
            base: NonNull::dangling(),
            len: 0,
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: by the invariant, and for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: by the invariant; `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `base` and `len` are what mmap returned and took; no reference into it outlives the value.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

/// Drops the pages that lie wholly in this range; they read as zeros or as before afterwards.
pub fn release(range: &mut [u8]) {
    const PAGE: usize = 4_096;
    let start = range.as_mut_ptr() as usize;
    let first = start.next_multiple_of(PAGE);
    let end = (start + range.len()) / PAGE * PAGE;
    if end <= first {
        return;
    }
    let offset = first - start;
    let inner = &mut range[offset..offset + (end - first)];
    // SAFETY: the range lies inside a slice we hold exclusively, of private anonymous memory; MADV_DONTNEED
    // only replaces its content. A failure changes nothing and costs nothing but memory.
    unsafe {
        libc::madvise(inner.as_mut_ptr().cast(), inner.len(), libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::Pages;

    #[test]
    fn pages_are_zeros_that_begin_at_a_page_and_can_be_none() {
        let mut pages = Pages::zeroed(10_000);
        assert_eq!(pages.as_ptr().align_offset(4_096), 0);
        assert_eq!(&pages[..], [0; 10_000]);
        pages[9_999] = 1;
        assert_eq!(pages.iter().map(|&octet| u32::from(octet)).sum::<u32>(), 1);
        assert!(Pages::zeroed(0).is_empty());
        assert_eq!(&std::mem::take(&mut pages)[9_998..], [0, 1]);
        assert!(pages.is_empty());
    }

    #[test]
    fn released_memory_can_be_used_again() {
        let mut memory = vec![7_u8; 300_000];
        super::release(&mut memory[10..299_990]);
        memory.fill(9);
        assert!(memory.iter().all(|&byte| byte == 9));
    }
}
