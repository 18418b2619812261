//! CRC32C of long stretches, by carry-less multiplication where the processor does that in vectors.
//!
//! The instruction for CRC32C takes 8 octets a cycle at best. Folding takes 16: four accumulators of 256 bits, each
//! multiplied by the power of x that is as far as the next octets for it, which are then added. What is left, 32
//! octets, has the same remainder as everything before it (Gopal and others, "Fast CRC Computation for Generic
//! Polynomials Using PCLMULQDQ Instruction", Intel, 2009).

/// The CRC32C of what `crc` is the CRC32C of, followed by `octets`.
///
/// **Bounds:** linear in the octets; reads nothing else.
pub fn append(crc: u32, octets: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if octets.len() >= folding::LEN_MIN
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("vpclmulqdq")
    {
        // SAFETY: the processor has both.
        return unsafe { folding::append(crc, octets) };
    }
    crc32c::crc32c_append(crc, octets)
}

#[cfg(target_arch = "x86_64")]
mod folding {
    use std::arch::x86_64::{
        __m256i, _mm256_clmulepi64_epi128, _mm256_loadu_si256, _mm256_set_epi32, _mm256_set_epi64x,
        _mm256_storeu_si256, _mm256_xor_si256,
    };

    use crate::checksum::power;

    /// Octets of one accumulator.
    const LANE: usize = 32;
    /// Octets of one step of all of them.
    const STEP: usize = 4 * LANE;
    /// What is shorter is not worth the last steps.
    pub(super) const LEN_MIN: usize = 8 * STEP;

    /// The factors for a distance of so many octets, lower half first: their 64 bits hold 33, and each half of 128 bits
    /// is moved on by its own distance.
    const fn factors(octets: u64) -> [i64; 2] {
        [
            (power(octets + 4) as i64) << 1,
            (power(octets - 4) as i64) << 1,
        ]
    }

    const BY_STEP: [i64; 2] = factors(STEP as u64);
    const BY_LANE: [i64; 2] = factors(LANE as u64);

    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn both_halves([low, high]: [i64; 2]) -> __m256i {
        _mm256_set_epi64x(high, low, high, low)
    }

    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn load(octets: &[u8; LANE]) -> __m256i {
        // SAFETY: 32 octets stand there; the load needs no alignment.
        unsafe { _mm256_loadu_si256(octets.as_ptr().cast()) }
    }

    /// `sum` moved on as far as `factors` say, and `next` added.
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn fold(sum: __m256i, factors: __m256i, next: __m256i) -> __m256i {
        let low = _mm256_clmulepi64_epi128::<0x00>(sum, factors);
        let high = _mm256_clmulepi64_epi128::<0x11>(sum, factors);
        _mm256_xor_si256(_mm256_xor_si256(low, high), next)
    }

    #[target_feature(enable = "avx2,vpclmulqdq")]
    pub(super) fn append(crc: u32, octets: &[u8]) -> u32 {
        let (lanes, rest) = octets.as_chunks::<LANE>();
        let (steps, lanes_left) = lanes.as_chunks::<4>();
        let Some(([a, b, c, d], steps)) = steps.split_first() else {
            return crc32c::crc32c_append(crc, octets);
        };
        // The state of the checksum so far counts as a part of the first octets.
        let state = _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, !crc as i32);
        let mut sums = [_mm256_xor_si256(load(a), state), load(b), load(c), load(d)];
        let by_step = both_halves(BY_STEP);
        for [a, b, c, d] in steps {
            sums[0] = fold(sums[0], by_step, load(a));
            sums[1] = fold(sums[1], by_step, load(b));
            sums[2] = fold(sums[2], by_step, load(c));
            sums[3] = fold(sums[3], by_step, load(d));
        }
        let by_lane = both_halves(BY_LANE);
        let [mut sum, others @ ..] = sums;
        for other in others {
            sum = fold(sum, by_lane, other);
        }
        for lane in lanes_left {
            sum = fold(sum, by_lane, load(lane));
        }
        let mut left = [0; LANE];
        // SAFETY: there is room for 32 octets; the store needs no alignment.
        unsafe { _mm256_storeu_si256(left.as_mut_ptr().cast(), sum) };
        // The state is in there: this checksum begins with none.
        let crc = crc32c::crc32c_append(u32::MAX, &left);
        crc32c::crc32c_append(crc, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_behind_any_checksum_gives_what_the_instruction_gives() {
        let mut state = 5_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let octets: Vec<u8> = (0..70_000).map(|_| next() as u8).collect();
        let lengths = (0..2_600).chain([4_095, 4_096, 57_701, 65_520, 65_536]);
        for len in lengths {
            let (from, crc) = (next() as usize % 4_000, next() as u32);
            let part = &octets[from..from + len];
            assert_eq!(
                append(crc, part),
                crc32c::crc32c_append(crc, part),
                "{len} octets"
            );
        }
        assert_eq!(append(0, b"123456789"), 0xe306_9283);
    }
}
