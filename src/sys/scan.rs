//! Finding what is not plain text in message content, and what may stand in a name, with the widest vectors that the
//! processor has.

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
    if std::arch::is_x86_feature_detected!("avx512vl") {
        // SAFETY: the processor has AVX-512VL, hence AVX2.
        return unsafe { avx512vl::first_suspect::<DOTS>(text, from) };
    } else if std::arch::is_x86_feature_detected!("avx2") {
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

/// Octets that [`name_octets`] looks at.
pub const NAME_WINDOW_BYTES: usize = 64;

/// What the first [`NAME_WINDOW_BYTES`] octets of a text are: bit n of each set stands for octet n. Bits behind the end
/// of a shorter text are clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameOctets {
    /// ASCII letters and digits, hyphens, underscores and dots.
    pub names: u64,
    /// Dots.
    pub dots: u64,
    /// Hyphens.
    pub hyphens: u64,
}

/// Which of the first octets of `text` may stand in a name of host or mailbox; `None` where the processor has no
/// vectors for it, and octet by octet is as good.
///
/// **Bounds:** at most [`NAME_WINDOW_BYTES`] octets are read.
pub fn name_octets(text: &[u8]) -> Option<NameOctets> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return Some(unsafe { avx2::name_octets(text) });
    }
    let _ = text;
    None
}

/// Whether a control octet other than a tab stands in `text`: 0 to 31 or 127.
///
/// **Bounds:** linear in `text`.
pub fn has_controls(text: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::has_controls(text) };
    }
    controls_by_octets(text)
}

fn controls_by_octets(text: &[u8]) -> bool {
    // No early exit: the loop over a few dozen octets is vectorised.
    text.iter().fold(false, |found, &octet| {
        found | ((octet < b' ') & (octet != b'\t')) | (octet == 0x7f)
    })
}

/// What both ways by vectors do alike: 256 bits at a time, a long step as long as all of it is clean, then short steps.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_andnot_si256,
        _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set_epi64x, _mm256_set_m128i, _mm256_set1_epi8,
        _mm256_setzero_si256, _mm256_sub_epi8, _mm256_xor_si256,
    };

    use super::{BLOCK_BYTES, NAME_WINDOW_BYTES, NameOctets};

    /// All ones where an octet of `octets` is this one.
    #[target_feature(enable = "avx2")]
    fn equal(octets: __m256i, octet: u8) -> __m256i {
        _mm256_cmpeq_epi8(octets, _mm256_set1_epi8(octet as i8))
    }

    /// All ones where an octet of `octets` is between `first` and `last`.
    #[target_feature(enable = "avx2")]
    fn within(octets: __m256i, first: u8, last: u8) -> __m256i {
        let from_first = _mm256_sub_epi8(octets, _mm256_set1_epi8(first as i8));
        let capped = _mm256_min_epu8(from_first, _mm256_set1_epi8((last - first) as i8));
        _mm256_cmpeq_epi8(capped, from_first)
    }

    #[target_feature(enable = "avx2")]
    fn bits(mask: __m256i) -> u64 {
        u64::from(_mm256_movemask_epi8(mask) as u32)
    }

    /// Names, dots and hyphens of one block.
    #[target_feature(enable = "avx2")]
    fn name_block(octets: __m256i) -> [u64; 3] {
        // The bit that tells the cases apart: no other octet becomes a letter by it.
        let lower = _mm256_or_si256(octets, _mm256_set1_epi8(0x20));
        let (dots, hyphens) = (equal(octets, b'.'), equal(octets, b'-'));
        let letters_or_digits =
            _mm256_or_si256(within(lower, b'a', b'z'), within(octets, b'0', b'9'));
        let marks = _mm256_or_si256(_mm256_or_si256(dots, hyphens), equal(octets, b'_'));
        let names = _mm256_or_si256(letters_or_digits, marks);
        [bits(names), bits(dots), bits(hyphens)]
    }

    /// The octets of a text of 8 to 32: its first half from bit 0 of a mask on, its last from bit 16 on, and how many
    /// octets each half has; the text's middle may be in both.
    #[target_feature(enable = "avx2")]
    fn halves(text: &[u8]) -> Option<(__m256i, usize)> {
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            return Some((
                _mm256_set_m128i(load_half(last), load_half(first)),
                BLOCK_BYTES / 2,
            ));
        }
        let (first, last) = (text.first_chunk()?, text.last_chunk()?);
        let (first, last) = (i64::from_le_bytes(*first), i64::from_le_bytes(*last));
        Some((_mm256_set_epi64x(last, last, first, first), BLOCK_BYTES / 4))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn name_octets(text: &[u8]) -> NameOctets {
        let text = &text[..text.len().min(NAME_WINDOW_BYTES)];
        // Most names are shorter than the window. What overlaps says the same twice; a copy of the text would be read
        // before it has arrived in the cache, which holds the processor up for longer than all of this takes.
        let [names, dots, hyphens] = match (text.first_chunk(), text.last_chunk()) {
            (Some(first), Some(last)) => {
                let (first, last) = (name_block(load(first)), name_block(load(last)));
                join(first, last, text.len() - BLOCK_BYTES)
            }
            _ => match halves(text) {
                Some((octets, len)) => {
                    let sets = name_block(octets);
                    let few = |shift: usize| sets.map(|set| set >> shift & ((1 << len) - 1));
                    join(few(0), few(BLOCK_BYTES / 2), text.len() - len)
                }
                None => {
                    let octets = text.iter().rev();
                    let number = octets.fold(0, |number, &octet| number << 8 | i64::from(octet));
                    name_block(_mm256_set_epi64x(0, 0, 0, number))
                }
            },
        };
        NameOctets {
            names,
            dots,
            hyphens,
        }
    }

    /// The sets of a text of which one part begins at `at`.
    fn join(first: [u64; 3], last: [u64; 3], at: usize) -> [u64; 3] {
        std::array::from_fn(|set| first[set] | last[set] << at)
    }

    /// All ones where a control stands.
    #[target_feature(enable = "avx2")]
    fn controls(octets: __m256i) -> __m256i {
        let low = _mm256_andnot_si256(equal(octets, b'\t'), within(octets, 0, 31));
        _mm256_or_si256(low, equal(octets, 0x7f))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn has_controls(text: &[u8]) -> bool {
        let (blocks, rest) = text.as_chunks::<BLOCK_BYTES>();
        let mut found = _mm256_setzero_si256();
        for block in blocks {
            found = _mm256_or_si256(found, controls(load(block)));
        }
        let last = match text.last_chunk() {
            Some(last) => load(last),
            // Most arguments are shorter. A copy that is filled up would be read before its octets have arrived in
            // the cache, which holds the processor up for longer than all the rest takes.
            None => match halves(rest) {
                Some((octets, _)) => octets,
                None => return super::controls_by_octets(rest),
            },
        };
        found = _mm256_or_si256(found, controls(last));
        _mm256_movemask_epi8(found) != 0
    }

    /// Blocks whose results are joined before one branch.
    const UNROLLED: usize = 4;
    /// Octets of a long step, and one before it.
    pub(super) const WIDE: usize = UNROLLED * BLOCK_BYTES + 1;

    #[target_feature(enable = "avx2")]
    fn load(octets: &[u8; BLOCK_BYTES]) -> __m256i {
        // SAFETY: 32 octets stand there; the load needs no alignment.
        unsafe { _mm256_loadu_si256(octets.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn load_half(octets: &[u8; BLOCK_BYTES / 2]) -> __m128i {
        // SAFETY: 16 octets stand there; the load needs no alignment.
        unsafe { _mm_loadu_si128(octets.as_ptr().cast()) }
    }

    /// All ones where an octet of `vector` is `octet`.
    #[target_feature(enable = "avx2")]
    pub(super) fn is(vector: __m256i, octet: u8) -> __m256i {
        _mm256_cmpeq_epi8(vector, _mm256_set1_epi8(octet as i8))
    }

    /// All ones where `octets` is suspect behind `before`.
    #[target_feature(enable = "avx2")]
    fn suspects<const DOTS: bool>(before: __m256i, octets: __m256i) -> __m256i {
        let found = join_newlines(is(octets, 0), is(octets, b'\n'), is(before, b'\r'));
        match DOTS {
            true => join_dots(found, is(before, b'\n'), is(octets, b'.')),
            false => found,
        }
    }

    /// `found`, and where one of the two is but not the other.
    #[target_feature(enable = "avx2")]
    fn join_newlines(found: __m256i, lf: __m256i, cr_before: __m256i) -> __m256i {
        _mm256_or_si256(found, _mm256_xor_si256(lf, cr_before))
    }

    /// `found`, and where both are.
    #[target_feature(enable = "avx2")]
    fn join_dots(found: __m256i, lf_before: __m256i, dot: __m256i) -> __m256i {
        _mm256_or_si256(found, _mm256_and_si256(lf_before, dot))
    }

    /// The 32 octets from `at` on and the 32 from one before it, when there are so many.
    fn pair(text: &[u8], at: usize) -> Option<(&[u8; BLOCK_BYTES], &[u8; BLOCK_BYTES])> {
        let (before, _) = text[at - 1..].split_first_chunk()?;
        let (octets, _) = text[at..].split_first_chunk()?;
        Some((before, octets))
    }

    /// The blocks of a long step, each with the block one octet before it.
    #[target_feature(enable = "avx2")]
    pub(super) fn blocks(wide: &[u8; WIDE]) -> [(__m256i, __m256i); UNROLLED] {
        let mut blocks = [(_mm256_setzero_si256(), _mm256_setzero_si256()); UNROLLED];
        for (index, block) in blocks.iter_mut().enumerate() {
            if let Some((before, octets)) = pair(wide, index * BLOCK_BYTES + 1) {
                *block = (load(before), load(octets));
            }
        }
        blocks
    }

    /// Whether nothing is suspect in a long step. `lowest` has the lowest octet of each lane: NUL is 0.
    #[target_feature(enable = "avx2")]
    pub(super) fn is_clean(found: __m256i, lowest: __m256i) -> bool {
        let found = _mm256_or_si256(found, is(lowest, 0));
        _mm256_movemask_epi8(found) == 0
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn first_suspect<const DOTS: bool>(text: &[u8], from: usize) -> usize {
        let mut at = from;
        while let Some(wide) = text[at - 1..].first_chunk() {
            let mut newlines = _mm256_setzero_si256();
            let mut dots = newlines;
            let mut lowest = _mm256_set1_epi8(-1);
            for (before, octets) in blocks(wide) {
                lowest = _mm256_min_epu8(lowest, octets);
                newlines = join_newlines(newlines, is(octets, b'\n'), is(before, b'\r'));
                if DOTS {
                    dots = join_dots(dots, is(before, b'\n'), is(octets, b'.'));
                }
            }
            if !is_clean(_mm256_or_si256(newlines, dots), lowest) {
                return at + first_in_step::<DOTS>(wide);
            }
            at += WIDE - 1;
        }
        first_in_rest::<DOTS>(text, at)
    }

    /// Where the first suspect of a long step is that is not clean. Without a branch for each block: which of them it
    /// is can't be predicted, and stuffed dots are common.
    #[target_feature(enable = "avx2")]
    #[inline(never)]
    pub(super) fn first_in_step<const DOTS: bool>(wide: &[u8; WIDE]) -> usize {
        let mut found = 0_u128;
        for (index, (before, octets)) in blocks(wide).into_iter().enumerate() {
            let mask = _mm256_movemask_epi8(suspects::<DOTS>(before, octets)) as u32;
            found |= u128::from(mask) << (index * BLOCK_BYTES);
        }
        found.trailing_zeros() as usize
    }

    /// As `first_suspect`, for what is shorter than a long step.
    #[target_feature(enable = "avx2")]
    pub(super) fn first_in_rest<const DOTS: bool>(text: &[u8], from: usize) -> usize {
        let mut at = from;
        while let Some((before, octets)) = pair(text, at) {
            let found = _mm256_movemask_epi8(suspects::<DOTS>(load(before), load(octets))) as u32;
            if found != 0 {
                return at + found.trailing_zeros() as usize;
            }
            at += BLOCK_BYTES;
        }
        // What is left is shorter than a block: the last block of the text overlaps what is clean. A copy would be read
        // before it has arrived in the cache, and is for texts without a block before it.
        let left = text.len() - at;
        let last = text.len().saturating_sub(BLOCK_BYTES);
        if last > 0
            && left > 0
            && let Some((before, octets)) = pair(text, last)
        {
            let found = _mm256_movemask_epi8(suspects::<DOTS>(load(before), load(octets))) as u32;
            let found = found >> (at - last);
            return at + left.min(found.trailing_zeros() as usize);
        }
        // Behind the copy stand octets that are clean but for a CR before them.
        let mut room = [b'x'; BLOCK_BYTES + 1];
        room[..=left].copy_from_slice(&text[at - 1..]);
        let Some((before, octets)) = pair(&room, 1) else {
            return at;
        };
        let found = _mm256_movemask_epi8(suspects::<DOTS>(load(before), load(octets))) as u32;
        at + left.min(found.trailing_zeros() as usize)
    }
}

/// AVX-512 for what it joins in one instruction instead of two. Vectors stay at 256 bits: a comparison of 512 leaves a
/// mask, and Zen 4 makes half as many of these.
#[cfg(target_arch = "x86_64")]
mod avx512vl {
    use std::arch::x86_64::{
        _mm256_min_epu8, _mm256_or_si256, _mm256_set1_epi8, _mm256_setzero_si256,
        _mm256_ternarylogic_epi32,
    };

    use super::avx2::{WIDE, blocks, first_in_rest, first_in_step, is, is_clean};

    /// a | (b ^ c): the result for each of the eight values of three bits.
    const OR_ONE_ALONE: i32 = 0b1111_0110;
    /// a | (b & c).
    const OR_BOTH: i32 = 0b1111_1000;

    #[target_feature(enable = "avx2,avx512f,avx512vl")]
    pub(super) fn first_suspect<const DOTS: bool>(text: &[u8], from: usize) -> usize {
        let mut at = from;
        while let Some(wide) = text[at - 1..].first_chunk::<WIDE>() {
            let mut newlines = _mm256_setzero_si256();
            let mut dots = newlines;
            let mut lowest = _mm256_set1_epi8(-1);
            for (before, octets) in blocks(wide) {
                lowest = _mm256_min_epu8(lowest, octets);
                let (lf, cr_before) = (is(octets, b'\n'), is(before, b'\r'));
                newlines = _mm256_ternarylogic_epi32::<OR_ONE_ALONE>(newlines, lf, cr_before);
                if DOTS {
                    let (lf_before, dot) = (is(before, b'\n'), is(octets, b'.'));
                    dots = _mm256_ternarylogic_epi32::<OR_BOTH>(dots, lf_before, dot);
                }
            }
            if !is_clean(_mm256_or_si256(newlines, dots), lowest) {
                return at + first_in_step::<DOTS>(wide);
            }
            at += WIDE - 1;
        }
        first_in_rest::<DOTS>(text, at)
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

    /// Every way that this processor can go, the one that is chosen among them.
    fn ways<const DOTS: bool>(text: &[u8], from: usize) -> Vec<usize> {
        let mut found = vec![
            first_suspect::<DOTS>(text, from),
            portable::<DOTS>(text, from),
        ];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                found.push(unsafe { avx2::first_suspect::<DOTS>(text, from) });
            }
            if std::arch::is_x86_feature_detected!("avx512vl") {
                // SAFETY: the processor has AVX-512VL, hence AVX2.
                found.push(unsafe { avx512vl::first_suspect::<DOTS>(text, from) });
            }
        }
        found
    }

    fn check(text: &[u8], from: usize) {
        let (dots, no_dots) = (
            by_octets::<true>(text, from),
            by_octets::<false>(text, from),
        );
        for found in ways::<true>(text, from) {
            assert_eq!(found, dots, "from {from}");
        }
        for found in ways::<false>(text, from) {
            assert_eq!(found, no_dots, "from {from}");
        }
    }

    /// Every octet at every place of texts that are as long as what is read at once, or a little more or less.
    fn each_octet_at_each_place(mut check: impl FnMut(&[u8])) {
        for len in [
            0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100,
        ] {
            let mut text = vec![b'n'; len];
            check(&text);
            for at in 0..len {
                for octet in 0..=u8::MAX {
                    text[at] = octet;
                    check(&text);
                }
                text[at] = b'n';
            }
        }
    }

    #[test]
    fn octets_of_names_are_found_wherever_they_stand() {
        each_octet_at_each_place(|text| {
            let set = |is: fn(u8) -> bool| {
                let window = text.iter().take(NAME_WINDOW_BYTES).enumerate();
                window.fold(0, |set, (at, &octet)| set | u64::from(is(octet)) << at)
            };
            let expected = NameOctets {
                names: set(|octet| {
                    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.')
                }),
                dots: set(|octet| octet == b'.'),
                hyphens: set(|octet| octet == b'-'),
            };
            if let Some(found) = name_octets(text) {
                assert_eq!(found, expected, "{}", text.escape_ascii());
            }
        });
    }

    #[test]
    fn controls_are_found_wherever_they_stand() {
        each_octet_at_each_place(|text| {
            let expected = text
                .iter()
                .any(|&octet| octet.is_ascii_control() && octet != b'\t');
            assert_eq!(has_controls(text), expected, "{}", text.escape_ascii());
            assert_eq!(controls_by_octets(text), expected);
        });
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
