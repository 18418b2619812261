//! Base64 (RFC 4648 section 4), for AUTH and for histograms in reports.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes with padding.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - group.len()));
        for index in 0..4 {
            text.push(if index <= group.len() {
                char::from(DIGITS[(word >> (18 - 6 * index)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text
}

/// Decodes what `encode` makes; nothing else is accepted.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for group in groups {
        let pads = group
            .iter()
            .rev()
            .take_while(|digit| **digit == b'=')
            .count();
        let mut word = 0u32;
        for digit in &group[..4 - pads] {
            word = word << 6 | DIGITS.iter().position(|known| known == digit)? as u32;
        }
        word <<= 6 * pads;
        for index in 0..3usize.checked_sub(pads)? {
            bytes.push((word >> (16 - 8 * index)) as u8);
        }
    }
    rest.is_empty().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_4648_hold() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode("Zg="), None);
        assert_eq!(decode("===="), None);
    }
}
