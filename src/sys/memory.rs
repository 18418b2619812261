//! Giving pages back, and what the process occupies.

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
    #[test]
    fn released_memory_can_be_used_again() {
        let mut memory = vec![7_u8; 300_000];
        super::release(&mut memory[10..299_990]);
        memory.fill(9);
        assert!(memory.iter().all(|&byte| byte == 9));
    }
}
