//! The header of the PROXY protocol: what is said of the front of a connection never changes when more comes, and
//! nothing that was not part of the header has a say in it.

use ringmx::limits::PROXY_HEADER_BYTES_MAX;
use ringmx::proxy_protocol::{Parsed, parse};

/// Parts of headers.
pub const DICTIONARY: &[&[u8]] = &[
    b"PROXY ",
    b"PROXY UNKNOWN\r\n",
    b"TCP4 ",
    b"TCP6 ",
    b"192.0.2.1 192.0.2.2 1 25\r\n",
    b"2001:db8::1 ::ffff:192.0.2.1 65535 25\r\n",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x20\x00\x00\x00",
    b"\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x10\xe1\x00\x19",
    b"\x21\x21\x00\x24",
    b"\x03\x00\x04",
    b"EHLO client.example\r\n",
];

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut before = Parsed::Partial;
    for end in 0..=input.len() {
        let parsed = parse(&input[..end]);
        match before {
            Parsed::Partial => {
                assert!(
                    end == 0 || end - 1 < PROXY_HEADER_BYTES_MAX,
                    "no end at {end}"
                );
            }
            settled => assert_eq!(parsed, settled, "changed at {end}"),
        }
        if let Parsed::Header { len, .. } = parsed {
            assert!(len <= end && len <= PROXY_HEADER_BYTES_MAX);
            assert_eq!(
                before == Parsed::Partial,
                len == end,
                "settled at its last octet"
            );
        }
        before = parsed;
    }
}
