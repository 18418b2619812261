//! The PROXY protocol, versions 1 and 2: the header a proxy puts in front of a connection to say for whom it
//! stands (HAProxy, "The PROXY protocol", sections 2.1 and 2.2). Pure: octets in, addresses out.
//!
//! Does not: decide who may send a header; that is the server's list of trusted networks.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// What the front of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header, as far as can be seen.
    Partial,
    /// No header.
    NotAHeader,
    /// A header that is damaged, or longer than [`PROXY_HEADER_BYTES_MAX`]; why.
    Malformed(&'static str),
    /// A whole header.
    Header {
        /// Octets of it.
        len: usize,
        /// Whose connection it is.
        origin: Origin,
    },
}

/// For whom a proxy connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The proxy for itself: a health check (version 2, command LOCAL).
    Local,
    /// Somebody whose address the proxy does not tell, or not one of IP and TCP.
    Unknown,
    /// This client, which connected to this address of the proxy.
    Client {
        /// Address of the client.
        client: SocketAddr,
        /// The address it connected to.
        server: SocketAddr,
    },
}

const V1_START: &[u8] = b"PROXY ";
/// Longest header of version 1, CRLF included (section 2.1).
const V1_BYTES_MAX: usize = 107;
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Octets in front of the addresses of version 2.
const V2_FIXED_BYTES: usize = 16;
const V2_IPV4_BYTES: usize = 12;
const V2_IPV6_BYTES: usize = 36;
/// Type of the field that holds a CRC32C of the whole header (section 2.2.3).
const V2_CRC32C: u8 = 0x03;

/// Reads the header at the front of `input`.
pub fn parse(input: &[u8]) -> Parsed {
    if is_start(input, V1_START) {
        parse_v1(input)
    } else if is_start(input, V2_START) {
        parse_v2(input)
    } else {
        Parsed::NotAHeader
    }
}

/// Whether `input` begins with `start`, or is its beginning.
fn is_start(input: &[u8], start: &[u8]) -> bool {
    let common = input.len().min(start.len());
    input[..common] == start[..common]
}

fn parse_v1(input: &[u8]) -> Parsed {
    let window = &input[..input.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() < V1_BYTES_MAX {
            Parsed::Partial
        } else {
            Parsed::Malformed("a line of more than 107 octets")
        };
    };
    let Some(line) = window[..end].strip_suffix(b"\r") else {
        return Parsed::Malformed("LF without CR");
    };
    let len = end + 1;
    let Some(Ok(text)) = line.strip_prefix(V1_START).map(str::from_utf8) else {
        return Parsed::Malformed("not ASCII");
    };
    // What follows UNKNOWN is to be ignored (section 2.1).
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        let origin = Origin::Unknown;
        return Parsed::Header { len, origin };
    }
    let mut words = text.split(' ');
    let (family, client, server) = (words.next(), words.next(), words.next());
    let (client_port, server_port) = (words.next(), words.next());
    let address = |word: Option<&str>| -> Option<IpAddr> {
        match family {
            Some("TCP4") => word?.parse().ok().map(IpAddr::V4),
            Some("TCP6") => word?.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let addresses = (address(client), address(server));
    let ports = (port(client_port), port(server_port));
    match (addresses, ports, words.next()) {
        ((Some(client), Some(server)), (Some(client_port), Some(server_port)), None) => {
            let origin = Origin::Client {
                client: SocketAddr::new(client, client_port),
                server: SocketAddr::new(server, server_port),
            };
            Parsed::Header { len, origin }
        }
        _ => Parsed::Malformed("not TCP4 or TCP6, two addresses and two ports"),
    }
}

/// A port as version 1 writes it: 0 to 65535, digits only, no leading zeros.
fn port(word: Option<&str>) -> Option<u16> {
    let word = word?;
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let leads = word.len() > 1 && word.starts_with('0');
    if digits && !leads {
        word.parse().ok()
    } else {
        None
    }
}

fn parse_v2(input: &[u8]) -> Parsed {
    let Some(fixed) = input.first_chunk::<V2_FIXED_BYTES>() else {
        return Parsed::Partial;
    };
    let [.., command, family, high, low] = *fixed;
    let len = V2_FIXED_BYTES + usize::from(number(high, low));
    if len > PROXY_HEADER_BYTES_MAX {
        return Parsed::Malformed("too long");
    }
    let Some(header) = input.get(..len) else {
        return Parsed::Partial;
    };
    let rest = &header[V2_FIXED_BYTES..];
    let (origin, fields_at) = match (command, family) {
        // A receiver of LOCAL discards the addresses (section 2.2).
        (0x20, _) => (Origin::Local, None),
        (0x21, 0x11) => match rest.first_chunk::<V2_IPV4_BYTES>() {
            Some(block) => (ipv4_origin(block), Some(V2_IPV4_BYTES)),
            None => return Parsed::Malformed("too short for two IPv4 addresses"),
        },
        (0x21, 0x21) => match rest.first_chunk::<V2_IPV6_BYTES>() {
            Some(block) => (ipv6_origin(block), Some(V2_IPV6_BYTES)),
            None => return Parsed::Malformed("too short for two IPv6 addresses"),
        },
        // No address, UDP, or UNIX sockets.
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => (Origin::Unknown, None),
        (0x21, _) => return Parsed::Malformed("unknown family or transport"),
        _ => return Parsed::Malformed("unknown version or command"),
    };
    if let Some(at) = fields_at
        && let Err(reason) = check_fields(header, V2_FIXED_BYTES + at)
    {
        return Parsed::Malformed(reason);
    }
    Parsed::Header { len, origin }
}

/// A number of two octets as the network orders them.
fn number(high: u8, low: u8) -> u16 {
    u16::from(high) << 8 | u16::from(low)
}

fn ipv4_origin(block: &[u8; V2_IPV4_BYTES]) -> Origin {
    let [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        client_high,
        client_low,
        server_high,
        server_low,
    ] = *block;
    let client = Ipv4Addr::new(a, b, c, d);
    let server = Ipv4Addr::new(e, f, g, h);
    Origin::Client {
        client: SocketAddr::new(client.into(), number(client_high, client_low)),
        server: SocketAddr::new(server.into(), number(server_high, server_low)),
    }
}

fn ipv6_origin(block: &[u8; V2_IPV6_BYTES]) -> Origin {
    let mut address = [[0; 16]; 2];
    address[0].copy_from_slice(&block[..16]);
    address[1].copy_from_slice(&block[16..32]);
    let [client, server] = address.map(Ipv6Addr::from);
    Origin::Client {
        client: SocketAddr::new(client.into(), number(block[32], block[33])),
        server: SocketAddr::new(server.into(), number(block[34], block[35])),
    }
}

/// Walks the fields behind the addresses; a checksum among them has to be right.
fn check_fields(header: &[u8], start: usize) -> Result<(), &'static str> {
    let mut at = start;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err("a field is cut");
        };
        let value = at + 3..at + 3 + usize::from(number(high, low));
        let Some(bytes) = header.get(value.clone()) else {
            return Err("a field is cut");
        };
        if kind == V2_CRC32C {
            let &[a, b, c, d] = bytes else {
                return Err("a checksum that is not of four octets");
            };
            let given = u32::from(number(a, b)) << 16 | u32::from(number(c, d));
            // The checksum is of the header with these octets zero.
            let mut sum = crc32c::crc32c(&header[..value.start]);
            sum = crc32c::crc32c_append(sum, &[0; 4]);
            sum = crc32c::crc32c_append(sum, &header[value.end..]);
            if sum != given {
                return Err("wrong checksum");
            }
        }
        at = value.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(client: &str, server: &str) -> Origin {
        Origin::Client {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = V2_START.to_vec();
        header.extend([command, family]);
        header.extend([(rest.len() >> 8) as u8, rest.len() as u8]);
        header.extend(rest);
        header
    }

    /// Every front of `header` is partial, and what follows it is not looked at.
    fn check_whole(header: &[u8], origin: Origin) {
        for len in 1..header.len() {
            assert_eq!(parse(&header[..len]), Parsed::Partial, "{len} octets");
        }
        let whole = Parsed::Header {
            len: header.len(),
            origin,
        };
        assert_eq!(parse(header), whole);
        let mut more = header.to_vec();
        more.extend(b"EHLO x\r\n");
        assert_eq!(parse(&more), whole);
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xC0, 0x01, 0, 25];

    #[test]
    fn version_1_names_client_and_server() {
        check_whole(
            b"PROXY TCP4 192.0.2.1 198.51.100.7 49153 25\r\n",
            client("192.0.2.1:49153", "198.51.100.7:25"),
        );
        check_whole(
            b"PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n",
            client("[2001:db8::1]:0", "[2001:db8::2]:65535"),
        );
        check_whole(b"PROXY UNKNOWN\r\n", Origin::Unknown);
        check_whole(b"PROXY UNKNOWN ff::1 anything at all\r\n", Origin::Unknown);
    }

    #[test]
    fn version_1_is_read_strictly() {
        for line in [
            &b"PROXY TCP4 192.0.2.1 198.51.100.7 49153\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.7 49153 25 x\r\n",
            b"PROXY TCP4  192.0.2.1 198.51.100.7 49153 25\r\n",
            b"PROXY TCP4 192.0.2.01 198.51.100.7 49153 25\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 49153 025\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 +1 25\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 25\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n",
            b"PROXY UNKNOWNS\r\n",
            b"PROXY \r\n",
        ] {
            let wanted = Parsed::Malformed("not TCP4 or TCP6, two addresses and two ports");
            assert_eq!(parse(line), wanted, "{}", line.escape_ascii());
        }
        assert_eq!(
            parse(b"PROXY UNKNOWN\n"),
            Parsed::Malformed("LF without CR")
        );
        assert_eq!(parse(b"PROXY \xFF\r\n"), Parsed::Malformed("not ASCII"));
    }

    #[test]
    fn a_line_of_version_1_ends_within_107_octets() {
        let mut longest = b"PROXY UNKNOWN ".to_vec();
        longest.resize(105, b'x');
        longest.extend(b"\r\n");
        check_whole(&longest, Origin::Unknown);
        longest.insert(20, b'x');
        let wanted = Parsed::Malformed("a line of more than 107 octets");
        assert_eq!(parse(&longest[..106]), Parsed::Partial);
        assert_eq!(parse(&longest[..107]), wanted);
        assert_eq!(parse(&longest), wanted);
    }

    #[test]
    fn version_2_names_client_and_server() {
        check_whole(
            &v2(0x21, 0x11, &IPV4),
            client("192.0.2.1:49153", "198.51.100.7:25"),
        );
        let mut ipv6 = Vec::new();
        ipv6.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        ipv6.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        ipv6.extend([0x12, 0x34, 0x01, 0xD1]);
        check_whole(
            &v2(0x21, 0x21, &ipv6),
            client("[2001:db8::1]:4660", "[2001:db8::2]:465"),
        );
    }

    #[test]
    fn version_2_of_a_health_check_or_of_no_tcp_names_nobody() {
        check_whole(&v2(0x20, 0x00, b""), Origin::Local);
        check_whole(&v2(0x20, 0x11, &IPV4), Origin::Local);
        for family in [0x00, 0x12, 0x22, 0x31, 0x32] {
            check_whole(&v2(0x21, family, b"whatever"), Origin::Unknown);
        }
    }

    #[test]
    fn version_2_is_read_strictly() {
        for (command, family, rest, reason) in [
            (0x22, 0x11, &IPV4[..], "unknown version or command"),
            (0x11, 0x11, &IPV4[..], "unknown version or command"),
            (0x21, 0x13, &IPV4[..], "unknown family or transport"),
            (0x21, 0x11, &IPV4[..11], "too short for two IPv4 addresses"),
            (0x21, 0x21, &IPV4[..12], "too short for two IPv6 addresses"),
        ] {
            let header = v2(command, family, rest);
            assert_eq!(parse(&header), Parsed::Malformed(reason));
        }
        let too_long = vec![0; PROXY_HEADER_BYTES_MAX - V2_FIXED_BYTES + 1];
        let header = v2(0x21, 0x00, &too_long);
        assert_eq!(parse(&header), Parsed::Malformed("too long"));
        let longest = &too_long[1..];
        assert!(matches!(
            parse(&v2(0x21, 0x00, longest)),
            Parsed::Header {
                len: PROXY_HEADER_BYTES_MAX,
                origin: Origin::Unknown,
            }
        ));
    }

    #[test]
    fn fields_of_version_2_are_walked_and_a_checksum_has_to_be_right() {
        let mut rest = IPV4.to_vec();
        rest.extend([0x02, 0, 3, b'm', b'x', b'1']);
        rest.extend([V2_CRC32C, 0, 4, 0, 0, 0, 0]);
        rest.extend([0x04, 0, 1, 0]);
        let mut header = v2(0x21, 0x11, &rest);
        let sum = crc32c::crc32c(&header);
        let at = header.len() - 8;
        for (place, shift) in header[at..at + 4].iter_mut().zip([24, 16, 8, 0]) {
            *place = (sum >> shift) as u8;
        }
        check_whole(&header, client("192.0.2.1:49153", "198.51.100.7:25"));
        for bit in 0..header.len() * 8 {
            let mut damaged = header.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse(&damaged);
            let harmless = matches!(
                parsed,
                Parsed::Malformed(_) | Parsed::NotAHeader | Parsed::Partial
            );
            // A damaged family or command may say that the addresses don't count, a damaged type hides the sum.
            let is_type = matches!(bit / 8, 12 | 13 | 28 | 34 | 41);
            assert!(harmless || is_type, "bit {bit}: {parsed:?}");
        }
        let mut cut = IPV4.to_vec();
        cut.extend([0x02, 0, 3, b'm', b'x']);
        assert_eq!(
            parse(&v2(0x21, 0x11, &cut)),
            Parsed::Malformed("a field is cut")
        );
        let mut short = IPV4.to_vec();
        short.extend([V2_CRC32C, 0, 2, 1, 2]);
        assert_eq!(
            parse(&v2(0x21, 0x11, &short)),
            Parsed::Malformed("a checksum that is not of four octets")
        );
    }

    #[test]
    fn what_a_client_of_smtp_or_tls_sends_is_no_header() {
        for input in [
            &b"E"[..],
            b"EHLO x\r\n",
            b"PROXIES\r\n",
            b"proxy TCP4 ",
            b"\x16\x03\x01\x02\x00",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\r\nQUIT\r\n",
        ] {
            assert_eq!(parse(input), Parsed::NotAHeader, "{}", input.escape_ascii());
        }
        assert_eq!(parse(b""), Parsed::Partial);
    }
}
