//! Base64 (RFC 4648 4) of what is exchanged in AUTH and stands in the file of users.
//!
//! Promises: one text for each sequence of octets: padding is demanded, and bits behind the last octet have to be 0
//! (RFC 4648 3.5), so that nothing can be hidden or compared wrongly; no allocation in `decode`.
//! Does not: take line breaks, blanks or the alphabet of file names.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the text of `bytes` to `out`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            out.push(if at <= group.len() {
                ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]
            } else {
                b'='
            });
        }
    }
}

/// The text of `bytes`.
pub fn text(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    encode(bytes, &mut out);
    out.into_iter().map(char::from).collect()
}

/// Decodes `text` into the front of `out`; the number of octets, or `None` when it is no base64 or `out` is too small.
pub fn decode(text: &[u8], out: &mut [u8]) -> Option<usize> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text
        .iter()
        .rev()
        .take_while(|octet| **octet == b'=')
        .count();
    if padding > 2 {
        return None;
    }
    let len = text.len() / 4 * 3 - padding;
    let places = out.get_mut(..len)?;
    let mut written = 0;
    for group in text[..text.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for at in 0..4 {
            bits = bits << 6 | group.get(at).map_or(Some(0), |octet| value(*octet))?;
        }
        let octets = group.len() * 6 / 8;
        if bits.trailing_zeros() < 24 - 8 * octets as u32 && bits != 0 {
            return None;
        }
        for at in 0..octets {
            places[written] = (bits >> (16 - 8 * at)) as u8;
            written += 1;
        }
    }
    Some(len)
}

/// The octets of `text`, for what is not secret.
pub fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; text.len() / 4 * 3];
    let len = decode(text, &mut out)?;
    out.truncate(len);
    Some(out)
}

fn value(octet: u8) -> Option<u32> {
    Some(u32::from(match octet {
        b'A'..=b'Z' => octet - b'A',
        b'a'..=b'z' => octet - b'a' + 26,
        b'0'..=b'9' => octet - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_read_back_as_written() {
        for (octets, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(text(octets.as_bytes()), expected);
            assert_eq!(decoded(expected.as_bytes()), Some(octets.into()));
        }
        let all: Vec<u8> = (0..=255).collect();
        for start in 0..256 {
            let octets = &all[start..];
            assert_eq!(decoded(text(octets).as_bytes()), Some(octets.to_vec()));
        }
    }

    #[test]
    fn what_has_another_text_or_no_octets_is_refused() {
        for text in [
            "Z",
            "Zg",
            "Zg=",
            "Zg===",
            "====",
            "=",
            "Zh==",
            "Zm9=",
            "Zm8=Zm8=",
            "Zm8 ",
            "Zm8\n",
            "Zm-_",
            "=Zg=",
            "Z=g=",
            "Zm9v=",
            "Zm9vZ===",
            "Zg==\0\0\0\0",
        ] {
            assert_eq!(decoded(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(decode(b"Zm9v", &mut [0; 2]), None);
        assert_eq!(decode(b"Zm9v", &mut [0; 3]), Some(3));
    }
}
