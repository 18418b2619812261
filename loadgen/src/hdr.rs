//! HdrHistogram's interchange form: V2, zlib, base64; readable by its tools in any language.
//!
//! The zlib stream holds stored blocks, so no compressor is needed; `decode` reads only what
//! `encode` writes.

use crate::base64;
use crate::recorder::{HIGHEST_NS, LOWEST_NS, histogram};
use hdrhistogram::Histogram;

const COOKIE: u32 = 0x1c84_9303 | 0x10;
const COOKIE_COMPRESSED: u32 = 0x1c84_9304 | 0x10;

#[expect(clippy::big_endian_bytes, reason = "HdrHistogram V2 is big-endian")]
fn put(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

#[expect(clippy::big_endian_bytes, reason = "HdrHistogram V2 is big-endian")]
fn put_long(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    let mut word = ((value << 1) ^ (value >> 63)) as u64;
    // LEB128, at most nine bytes; the ninth is whole.
    for _ in 0..8 {
        if word < 0x80 {
            break;
        }
        out.push(word as u8 | 0x80);
        word >>= 7;
    }
    out.push(word as u8);
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    (b << 16) | a
}

/// Counts of the histogram by index, up to the last that is not zero.
fn counts(histogram: &Histogram<u64>) -> Vec<u64> {
    let mut counts = vec![0; histogram.distinct_values()];
    let mut last = 0;
    for value in histogram.iter_recorded() {
        let index = index_of(value.value_iterated_to());
        counts[index] = value.count_at_value();
        last = index + 1;
    }
    counts.truncate(last);
    counts
}

/// Index of a value in the layout of three digits and a lowest value of 64.
fn index_of(value: u64) -> usize {
    const UNIT: u32 = LOWEST_NS.trailing_zeros();
    let bucket = (64 - (value | ((2048 << UNIT) - 1)).leading_zeros()) - (UNIT + 11);
    let sub = (value >> (bucket + UNIT)) as usize;
    ((bucket as usize + 1) << 10) + sub - 1024
}

/// Lowest value with this index.
fn value_of(index: usize) -> u64 {
    const UNIT: u32 = LOWEST_NS.trailing_zeros();
    if index < 2048 {
        return (index as u64) << UNIT;
    }
    let bucket = (index >> 10) - 1;
    ((index & 1023) as u64 + 1024) << (bucket as u32 + UNIT)
}

/// Writes a histogram.
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut payload = Vec::new();
    let counts = counts(histogram);
    let mut zeros = 0i64;
    for count in counts {
        if count == 0 {
            zeros += 1;
            continue;
        }
        if zeros > 0 {
            put_zigzag(-zeros, &mut payload);
            zeros = 0;
        }
        put_zigzag(count as i64, &mut payload);
    }
    let mut plain = Vec::new();
    put(COOKIE, &mut plain);
    put(payload.len() as u32, &mut plain);
    put(0, &mut plain);
    put(3, &mut plain);
    put_long(LOWEST_NS, &mut plain);
    put_long(HIGHEST_NS, &mut plain);
    put_long(1f64.to_bits(), &mut plain);
    plain.extend_from_slice(&payload);

    let mut zlib = vec![0x78, 0x01];
    let blocks = plain.chunks(0xffff).count();
    for (index, block) in plain.chunks(0xffff).enumerate() {
        zlib.push(u8::from(index + 1 == blocks));
        zlib.extend_from_slice(&(block.len() as u16).to_le_bytes());
        zlib.extend_from_slice(&(!(block.len() as u16)).to_le_bytes());
        zlib.extend_from_slice(block);
    }
    put(adler32(&plain), &mut zlib);
    let mut out = Vec::new();
    put(COOKIE_COMPRESSED, &mut out);
    put(zlib.len() as u32, &mut out);
    out.extend_from_slice(&zlib);
    base64::encode(&out)
}

/// Reads what `encode` wrote; nothing if it is anything else.
pub fn decode(text: &str) -> Option<Histogram<u64>> {
    let bytes = base64::decode(text)?;
    let mut rest = bytes.get(10..)?;
    let mut plain = Vec::new();
    loop {
        let (last, len) = (*rest.first()? == 1, [*rest.get(1)?, *rest.get(2)?]);
        let len = usize::from(u16::from_le_bytes(len));
        plain.extend_from_slice(rest.get(5..5 + len)?);
        rest = rest.get(5 + len..)?;
        if last {
            break;
        }
    }
    let mut counts = plain.get(40..)?.iter();
    let mut result = histogram();
    let mut index = 0usize;
    while counts.len() > 0 {
        let (mut word, mut shift) = (0u64, 0);
        loop {
            let byte = *counts.next()?;
            if shift == 56 {
                word |= u64::from(byte) << 56;
                break;
            }
            word |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let value = (word >> 1) as i64 ^ -((word & 1) as i64);
        if value < 0 {
            index += usize::try_from(-value).ok()?;
        } else {
            result.record_n(value_of(index), value as u64).ok()?;
            index += 1;
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_the_round_trip() {
        let mut before = histogram();
        for value in [
            1,
            64,
            100,
            131_071,
            131_072,
            999_999,
            5_000_000_000,
            HIGHEST_NS,
        ] {
            before.record_n(value, value % 7 + 1).unwrap();
        }
        let after = decode(&encode(&before)).unwrap();
        let list = |h: &Histogram<u64>| {
            let values = h.iter_recorded();
            values
                .map(|v| (v.value_iterated_to(), v.count_at_value()))
                .collect::<Vec<_>>()
        };
        assert_eq!(list(&after), list(&before));
        assert!(decode("Zm9v").is_none());
        assert_eq!(decode(&encode(&histogram())).unwrap().len(), 0);
    }
}
