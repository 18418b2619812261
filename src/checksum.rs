//! Joining two CRC32C without the octets between them.
//!
//! The checksum itself comes from the crate `crc32c`. What that crate has for joining squares a matrix for every bit
//! of the length: 130,000 instructions, more than the checksum of 100 KiB takes. Here a length is a product of powers
//! of x that are known at compile time (the method of zlib's `crc32_combine`): some 1,500.

/// The polynomial of CRC32C (RFC 3720 12.1), lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x to the power of 8 * 2^index, modulo the polynomial: what 2^index octets behind a checksum multiply it by.
const POWERS: [u32; 64] = {
    let mut powers = [0; 64];
    // x^8, squared again and again. The highest bit is x^0.
    let mut power = 1 << (31 - 8);
    let mut index = 0;
    while index < powers.len() {
        powers[index] = power;
        power = product(power, power);
        index += 1;
    }
    powers
};

/// The product of two polynomials modulo [`POLYNOMIAL`].
const fn product(a: u32, mut b: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        // No branches: the bits of a checksum can't be predicted.
        sum ^= b & ((a >> bit) & 1).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
    }
    sum
}

/// x to the power of 8 * `bytes`, modulo the polynomial of CRC32C: what so many bytes behind a checksum multiply it by.
/// Lowest power in the highest bit.
///
/// **Bounds:** one multiplication for each bit that is set in `bytes`.
pub const fn power(bytes: u64) -> u32 {
    shifted(1 << 31, bytes)
}

/// `sum` times x to the power of 8 * `bytes`.
const fn shifted(mut sum: u32, bytes: u64) -> u32 {
    let mut left = bytes;
    while left != 0 {
        sum = product(POWERS[left.trailing_zeros() as usize], sum);
        left &= left - 1;
    }
    sum
}

/// The CRC32C of two pieces, one behind the other, of which the second is `second_len` bytes long.
///
/// **Bounds:** one multiplication for each bit that is set in `second_len`.
pub fn combined(first: u32, second: u32, second_len: u64) -> u32 {
    shifted(first, second_len) ^ second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_checksums_are_those_of_the_whole_wherever_it_is_cut() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let whole = crc32c::crc32c(&bytes);
        for cut in (0..300).chain([4_096, 65_535, 65_536, 69_999, 70_000]) {
            let (first, second) = bytes.split_at(cut);
            let joined = combined(
                crc32c::crc32c(first),
                crc32c::crc32c(second),
                second.len() as u64,
            );
            assert_eq!(joined, whole, "cut at {cut}");
        }
    }

    #[test]
    fn joined_checksums_are_those_of_the_other_method_for_any_length() {
        let mut state = 7_u64;
        for _ in 0..200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let (first, second) = (state as u32, (state >> 32) as u32);
            let len = (state >> (24 + state % 40)).max(1);
            let expected = crc32c::crc32c_combine(first, second, len as usize);
            assert_eq!(combined(first, second, len), expected, "{len} bytes");
        }
    }
}
