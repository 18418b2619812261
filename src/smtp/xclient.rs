//! Attributes of XCLIENT and XFORWARD, the commands by which Postfix and proxies say whose session this is.
//!
//! Promises: names and values are checked, xtext undone, before anything is taken; no attribute stands twice.
//! Does not: decide who may send them (the sink does), or what they mean for a session (the session does).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::parameter::{decode_xtext, is_xtext};
use super::path::is_domain_or_literal;
use crate::limits::DOMAIN_BYTES_MAX;
use crate::users::{is_user_name, prepared};

/// A value that may be unknown: `[UNAVAILABLE]`, or `[TEMPUNAVAIL]` for a name.
pub type Known<T> = Option<T>;

/// What XCLIENT says; `None` for what it does not mention.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// NAME.
    pub name: Option<Known<Box<[u8]>>>,
    /// ADDR.
    pub address: Option<Known<IpAddr>>,
    /// PORT.
    pub port: Option<Known<u16>>,
    /// PROTO: whether it is ESMTP.
    pub esmtp: Option<bool>,
    /// HELO.
    pub helo: Option<Known<Box<[u8]>>>,
    /// LOGIN.
    pub login: Option<Known<Box<str>>>,
    /// DESTADDR.
    pub destination: Option<Known<IpAddr>>,
    /// DESTPORT.
    pub destination_port: Option<Known<u16>>,
}

/// Names of the attributes of XFORWARD.
pub const FORWARDED: [&str; 7] = ["NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"];

/// Reads the attributes of XCLIENT; `None` when one is malformed, unknown, or given twice.
pub fn parse_client(arguments: &[u8]) -> Option<Client> {
    let mut client = Client::default();
    for (name, value) in attributes(arguments) {
        let mut room = [0; DOMAIN_BYTES_MAX];
        let value = decoded(value?, &mut room)?;
        let is = |keyword: &str| name.eq_ignore_ascii_case(keyword.as_bytes());
        if is("NAME") {
            set(&mut client.name, domain(value)?)?;
        } else if is("ADDR") {
            set(&mut client.address, address(value)?)?;
        } else if is("PORT") {
            set(&mut client.port, port(value)?)?;
        } else if is("PROTO") {
            set(&mut client.esmtp, protocol(value)?)?;
        } else if is("HELO") {
            set(&mut client.helo, domain(value)?)?;
        } else if is("LOGIN") {
            set(&mut client.login, login(value)?)?;
        } else if is("DESTADDR") {
            set(&mut client.destination, address(value)?)?;
        } else if is("DESTPORT") {
            set(&mut client.destination_port, port(value)?)?;
        } else {
            return None;
        }
    }
    Some(client)
}

/// Reads the attributes of XFORWARD: the index in [`FORWARDED`] and the value as given, for each. `None` when one is
/// malformed, unknown, or given twice.
pub fn parse_forwarded(arguments: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut found: Vec<(u8, &[u8])> = Vec::with_capacity(FORWARDED.len());
    for (name, value) in attributes(arguments) {
        let value = value?;
        let mut room = [0; DOMAIN_BYTES_MAX];
        let text = decoded(value, &mut room)?;
        let at = FORWARDED
            .iter()
            .position(|keyword| name.eq_ignore_ascii_case(keyword.as_bytes()))?;
        if found.iter().any(|(other, _)| usize::from(*other) == at) {
            return None;
        }
        let is_valid = match FORWARDED[at] {
            "ADDR" => address(text).is_some(),
            "PORT" => port(text).is_some(),
            "PROTO" => protocol(text).is_some(),
            "SOURCE" => {
                is_unavailable(text)
                    || text.eq_ignore_ascii_case(b"LOCAL")
                    || text.eq_ignore_ascii_case(b"REMOTE")
            }
            // Names need not be those of a domain here: they are for logs alone.
            _ => true,
        };
        if !is_valid {
            return None;
        }
        found.push((at as u8, value));
    }
    Some(found)
}

/// Name and value of each attribute, separated by blanks.
fn attributes(arguments: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    arguments
        .split(|octet| matches!(octet, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
        .map(|word| match word.iter().position(|&octet| octet == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        })
}

/// The octets that xtext means, at most as many as there is room for and at least one.
fn decoded<'a>(text: &[u8], room: &'a mut [u8; DOMAIN_BYTES_MAX]) -> Option<&'a [u8]> {
    let octets = text.len()
        - 2 * text
            .iter()
            .filter(|octet| **octet == b'+')
            .count()
            .min(text.len() / 3);
    if text.is_empty() || octets > room.len() || !is_xtext(text) {
        return None;
    }
    let len = decode_xtext(text, room);
    Some(&room[..len])
}

fn set<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

fn is_unavailable(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"[UNAVAILABLE]") || value.eq_ignore_ascii_case(b"[TEMPUNAVAIL]")
}

fn domain(value: &[u8]) -> Option<Known<Box<[u8]>>> {
    if is_unavailable(value) {
        return Some(None);
    }
    is_domain_or_literal(value).then(|| Some(value.into()))
}

/// An IPv4 address, or `IPV6:` and an IPv6 address.
fn address(value: &[u8]) -> Option<Known<IpAddr>> {
    if is_unavailable(value) {
        return Some(None);
    }
    let text = core::str::from_utf8(value).ok()?;
    let address = match text.split_at_checked(5) {
        Some((tag, v6)) if tag.eq_ignore_ascii_case("IPV6:") => v6.parse::<Ipv6Addr>().ok()?.into(),
        _ => text.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(Some(address))
}

fn port(value: &[u8]) -> Option<Known<u16>> {
    if is_unavailable(value) {
        return Some(None);
    }
    let text = core::str::from_utf8(value).ok()?;
    let is_number = text.len() <= 5 && text.bytes().all(|octet| octet.is_ascii_digit());
    let port = text.parse().ok().filter(|port| is_number && *port != 0)?;
    Some(Some(port))
}

fn protocol(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"ESMTP") {
        Some(true)
    } else {
        value.eq_ignore_ascii_case(b"SMTP").then_some(false)
    }
}

fn login(value: &[u8]) -> Option<Known<Box<str>>> {
    if is_unavailable(value) {
        return Some(None);
    }
    let name = prepared(core::str::from_utf8(value).ok()?)?;
    is_user_name(&name).then(|| Some(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_attributes_of_xclient_are_read_in_any_order_and_case() {
        let client = parse_client(
            b"NAME=spike.example addr=192.0.2.7 PORT=4711 PROTO=ESMTP HELO=[192.0.2.7] LOGIN=j+2Bim \
              DESTADDR=IPV6:2001:db8::1 DESTPORT=25",
        );
        let expected = Client {
            name: Some(Some((*b"spike.example").into())),
            address: Some(Some("192.0.2.7".parse().unwrap())),
            port: Some(Some(4_711)),
            esmtp: Some(true),
            helo: Some(Some((*b"[192.0.2.7]").into())),
            login: Some(Some("j+im".into())),
            destination: Some(Some("2001:db8::1".parse().unwrap())),
            destination_port: Some(Some(25)),
        };
        assert_eq!(client, Some(expected));
        let unknown = parse_client(b"NAME=[TEMPUNAVAIL] ADDR=[UNAVAILABLE] LOGIN=[unavailable]");
        let expected = Client {
            name: Some(None),
            address: Some(None),
            login: Some(None),
            ..Client::default()
        };
        assert_eq!(unknown, Some(expected));
    }

    #[test]
    fn attributes_that_are_malformed_unknown_or_given_twice_are_refused() {
        let long = format!("NAME={}", "a".repeat(DOMAIN_BYTES_MAX + 1));
        for bad in [
            "NAME",
            "NAME=",
            "NAME=a b",
            "NAME=-",
            "NAME=a+0Ab",
            "NAME=a+0D+0Ab",
            "ADDR=192.0.2",
            "ADDR=::1",
            "ADDR=IPV6:1.2.3.4",
            "ADDR=[192.0.2.1]",
            "PORT=0",
            "PORT=65536",
            "PORT=+1",
            "PORT=x",
            "PROTO=LMTP",
            "PROTO=[UNAVAILABLE]",
            "LOGIN=a:b",
            "LOGIN=",
            "X=1",
            "NAME=a NAME=a",
            "ADDR=192.0.2.1 ADDR=[UNAVAILABLE]",
            "=",
            "NAME=+4",
            &long,
        ] {
            assert_eq!(parse_client(bad.as_bytes()), None, "{bad}");
        }
        for bad in [
            "NAME",
            "NAME=",
            "ADDR=x",
            "SOURCE=HERE",
            "LOGIN=a",
            "IDENT=a IDENT=b",
            "PORT=0",
            "HELO=+G1",
        ] {
            assert_eq!(parse_forwarded(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn attributes_of_xforward_are_kept_as_given() {
        assert_eq!(
            parse_forwarded(b"ident=4+2B1 NAME=no_name! SOURCE=LOCAL"),
            Some(vec![(5, &b"4+2B1"[..]), (0, b"no_name!"), (6, b"LOCAL")])
        );
    }
}
