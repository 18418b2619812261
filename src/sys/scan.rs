//! Finding what is not plain text in message content, with the widest vectors that the processor has.

/// Octets in front of which nothing is looked at beyond the scalar rule.
const BLOCK_BYTES: usize = 32;

/// First octet from `from` on that needs a closer look, `text.len()` when there is none: LF behind anything but CR,
/// anything but LF behind CR, NUL, and with `DOTS` a dot behind LF. The rule looks back by one octet, at `from` too.
///
/// **Bounds:** linear in the octets that are passed. Reads nothing outside of `text`.
///
/// # Panics
/// When `from` is 0, or behind the end of `text`.
pub fn first_suspect<const DOTS: bool>(text: &[u8], from: usize) -> usize {
    assert!(0 < from && from <= text.len(), "nothing stands before it");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::first_suspect::<DOTS>(text, from) };
    }
    portable::<DOTS>(text, from)
}

/// Whether `octet` needs a closer look behind `before`.
fn is_suspect<const DOTS: bool>(before: u8, octet: u8) -> bool {
    ((octet == b'\n') != (before == b'\r'))
        | (octet == 0)
        | (DOTS & (octet == b'.') & (before == b'\n'))
}

/// As [`first_suspect`], by whole blocks that compilers turn into what vectors the target has, then by octets.
fn portable<const DOTS: bool>(text: &[u8], from: usize) -> usize {
    let mut at = from;
    let blocks = text[from..].chunks_exact(BLOCK_BYTES);
    let before = text[from - 1..].chunks_exact(BLOCK_BYTES);
    for (block, before) in blocks.zip(before) {
        // No early exit inside a block, or it would go octet by octet.
        let pairs = block.iter().zip(before);
        let found = pairs.fold(0, |found, (&octet, &before)| {
            found | u8::from(is_suspect::<DOTS>(before, octet))
        });
        if found != 0 {
            break;
        }
        at += BLOCK_BYTES;
    }
    let pairs = text[at - 1..].windows(2);
    let clean = pairs.take_while(|pair| !is_suspect::<DOTS>(pair[0], pair[1]));
    at + clean.count()
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_xor_si256,
    };

    use super::BLOCK_BYTES;

    /// Blocks whose results are joined before one branch.
    const UNROLLED: usize = 4;

    #[target_feature(enable = "avx2")]
    fn load(octets: &[u8; BLOCK_BYTES]) -> __m256i {
        // SAFETY: 32 octets stand there; the load needs no alignment.
        unsafe { _mm256_loadu_si256(octets.as_ptr().cast()) }
    }

    /// All ones where `octets` is suspect behind `before`.
    #[target_feature(enable = "avx2")]
    fn suspects<const DOTS: bool>(
        before: &[u8; BLOCK_BYTES],
        octets: &[u8; BLOCK_BYTES],
    ) -> __m256i {
        let (before, octets) = (load(before), load(octets));
        let is = |vector, octet: u8| _mm256_cmpeq_epi8(vector, _mm256_set1_epi8(octet as i8));
        let newline = _mm256_xor_si256(is(octets, b'\n'), is(before, b'\r'));
        let nul = _mm256_cmpeq_epi8(octets, _mm256_setzero_si256());
        let mut found = _mm256_or_si256(newline, nul);
        if DOTS {
            let dot = _mm256_and_si256(is(octets, b'.'), is(before, b'\n'));
            found = _mm256_or_si256(found, dot);
        }
        found
    }

    /// The 32 octets from `at` on and the 32 from one before it, when there are so many.
    fn pair(text: &[u8], at: usize) -> Option<(&[u8; BLOCK_BYTES], &[u8; BLOCK_BYTES])> {
        let (before, _) = text[at - 1..].split_first_chunk()?;
        let (octets, _) = text[at..].split_first_chunk()?;
        Some((before, octets))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn first_suspect<const DOTS: bool>(text: &[u8], from: usize) -> usize {
        const WIDE: usize = UNROLLED * BLOCK_BYTES;
        let mut at = from;
        while let Some(wide) = text[at - 1..].first_chunk::<{ WIDE + 1 }>() {
            let mut found = _mm256_setzero_si256();
            for block in 0..UNROLLED {
                let Some((before, octets)) = pair(wide, block * BLOCK_BYTES + 1) else {
                    break;
                };
                found = _mm256_or_si256(found, suspects::<DOTS>(before, octets));
            }
            if _mm256_movemask_epi8(found) != 0 {
                break;
            }
            at += WIDE;
        }
        while let Some((before, octets)) = pair(text, at) {
            let found = _mm256_movemask_epi8(suspects::<DOTS>(before, octets)) as u32;
            if found != 0 {
                return at + found.trailing_zeros() as usize;
            }
            at += BLOCK_BYTES;
        }
        // What is left is shorter than a block; behind its copy stand octets that are clean but for a CR before them.
        let left = text.len() - at;
        let mut room = [b'x'; BLOCK_BYTES + 1];
        room[..=left].copy_from_slice(&text[at - 1..]);
        let Some((before, octets)) = pair(&room, 1) else {
            return at;
        };
        let found = _mm256_movemask_epi8(suspects::<DOTS>(before, octets)) as u32;
        at + left.min(found.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_octets<const DOTS: bool>(text: &[u8], from: usize) -> usize {
        (from..text.len())
            .find(|&at| is_suspect::<DOTS>(text[at - 1], text[at]))
            .unwrap_or(text.len())
    }

    fn check(text: &[u8], from: usize) {
        let (dots, no_dots) = (
            by_octets::<true>(text, from),
            by_octets::<false>(text, from),
        );
        assert_eq!(first_suspect::<true>(text, from), dots, "from {from}");
        assert_eq!(first_suspect::<false>(text, from), no_dots, "from {from}");
        assert_eq!(portable::<true>(text, from), dots, "from {from}");
        assert_eq!(portable::<false>(text, from), no_dots, "from {from}");
    }

    #[test]
    fn every_way_finds_what_the_rule_says_wherever_it_stands() {
        let line = b"0123456789012345678901234567890123456789\r\n";
        let clean = line.repeat(8);
        for len in 1..clean.len() {
            check(&clean[..len], 1);
        }
        for at in 0..clean.len() {
            for octet in [b'\r', b'\n', 0, b'.', b'x'] {
                let mut text = clean.clone();
                text[at] = octet;
                for from in [1, 2, 33, at.max(1), text.len()] {
                    check(&text, from);
                }
            }
        }
    }

    #[test]
    fn every_way_finds_the_same_in_any_mixture() {
        let mut state = 3_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..2_000 {
            // From mostly newlines to mostly text.
            let rare = 1 + next() % 60;
            let len = 1 + next() as usize % 300;
            let text: Vec<u8> = (0..len)
                .map(|_| match next() % (4 * rare) {
                    0 => b'\r',
                    1 => b'\n',
                    2 => b'.',
                    3 if rare < 30 => 0,
                    _ => b'a' + (next() % 26) as u8,
                })
                .collect();
            check(&text, 1 + next() as usize % len);
        }
    }
}
