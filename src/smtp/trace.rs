//! The Received field that the receiver puts in front of a message (RFC 5321 4.4).
//!
//! Promises: no allocation; lines folded before 78 octets where their words allow it and never over
//! 998 (RFC 5322 2.1.1); nothing that the client sent can end the field, a line or a comment in it.
//! Does not: know the message's id, which the caller inserts.
//!
//! ```text
//! Received: from client.example ([192.0.2.1]) by mx.example with ESMTP
//!     id 0-17
//!     for <user@example.org>
//!     tls TLS_AES_256_GCM_SHA384;
//!     Mon, 23 Nov 2026 01:02:03 +0000
//! ```

use core::fmt::{self, Write};
use core::net::IpAddr;

use super::path;
use crate::clock::{MONTHS, WEEKDAYS, calendar};
use crate::limits::{DOMAIN_BYTES_MAX, LOCAL_PART_BYTES_MAX};

/// Bytes of the longest field: server name, HELO name and recipient at their limits fit in.
pub const TRACE_BYTES_MAX: usize = 1_152;

/// Value of the "with" clause (RFC 5321 4.4, RFC 3848, RFC 6531 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    Esmtp,
    /// EHLO under TLS.
    Esmtps,
    /// EHLO and AUTH.
    Esmtpa,
    /// EHLO under TLS and AUTH.
    Esmtpsa,
    /// SMTPUTF8 was given in MAIL.
    Utf8Smtp,
    /// SMTPUTF8 under TLS.
    Utf8Smtps,
    /// SMTPUTF8 and AUTH.
    Utf8Smtpa,
    /// SMTPUTF8 under TLS and AUTH.
    Utf8Smtpsa,
    /// LHLO.
    Lmtp,
    /// LHLO under TLS.
    Lmtps,
    /// LHLO and AUTH.
    Lmtpa,
    /// LHLO under TLS and AUTH.
    Lmtpsa,
    /// LHLO and SMTPUTF8.
    Utf8Lmtp,
    /// LHLO and SMTPUTF8 under TLS.
    Utf8Lmtps,
    /// LHLO, SMTPUTF8 and AUTH.
    Utf8Lmtpa,
    /// LHLO, SMTPUTF8 and AUTH under TLS.
    Utf8Lmtpsa,
}

/// What decides about the protocol of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFacts {
    /// The session began with EHLO, or with LHLO.
    pub esmtp: bool,
    /// The listener speaks LMTP.
    pub lmtp: bool,
    /// SMTPUTF8 was given; only possible after EHLO.
    pub smtputf8: bool,
    /// The session is under TLS.
    pub tls: bool,
    /// The client is authenticated.
    pub authenticated: bool,
}

impl Protocol {
    /// The protocol of a message. One that came after HELO is SMTP whatever else holds (RFC 3848).
    pub fn new(facts: ProtocolFacts) -> Protocol {
        let ProtocolFacts {
            esmtp,
            lmtp,
            smtputf8,
            tls,
            authenticated,
        } = facts;
        match (lmtp, smtputf8, tls, authenticated) {
            _ if !esmtp => Protocol::Smtp,
            (false, false, false, false) => Protocol::Esmtp,
            (false, false, true, false) => Protocol::Esmtps,
            (false, false, false, true) => Protocol::Esmtpa,
            (false, false, true, true) => Protocol::Esmtpsa,
            (false, true, false, false) => Protocol::Utf8Smtp,
            (false, true, true, false) => Protocol::Utf8Smtps,
            (false, true, false, true) => Protocol::Utf8Smtpa,
            (false, true, true, true) => Protocol::Utf8Smtpsa,
            (true, false, false, false) => Protocol::Lmtp,
            (true, false, true, false) => Protocol::Lmtps,
            (true, false, false, true) => Protocol::Lmtpa,
            (true, false, true, true) => Protocol::Lmtpsa,
            (true, true, false, false) => Protocol::Utf8Lmtp,
            (true, true, true, false) => Protocol::Utf8Lmtps,
            (true, true, false, true) => Protocol::Utf8Lmtpa,
            (true, true, true, true) => Protocol::Utf8Lmtpsa,
        }
    }

    /// The registered keyword.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Smtp => "SMTP",
            Protocol::Esmtp => "ESMTP",
            Protocol::Esmtps => "ESMTPS",
            Protocol::Esmtpa => "ESMTPA",
            Protocol::Esmtpsa => "ESMTPSA",
            Protocol::Utf8Smtp => "UTF8SMTP",
            Protocol::Utf8Smtps => "UTF8SMTPS",
            Protocol::Utf8Smtpa => "UTF8SMTPA",
            Protocol::Utf8Smtpsa => "UTF8SMTPSA",
            Protocol::Lmtp => "LMTP",
            Protocol::Lmtps => "LMTPS",
            Protocol::Lmtpa => "LMTPA",
            Protocol::Lmtpsa => "LMTPSA",
            Protocol::Utf8Lmtp => "UTF8LMTP",
            Protocol::Utf8Lmtps => "UTF8LMTPS",
            Protocol::Utf8Lmtpa => "UTF8LMTPA",
            Protocol::Utf8Lmtpsa => "UTF8LMTPSA",
        }
    }

    /// Whether the field may hold UTF-8 (RFC 6531 3.7.3).
    fn is_utf8(self) -> bool {
        self.as_str().starts_with("UTF8")
    }
}

/// What the field says.
#[derive(Clone, Copy, Debug)]
pub struct TraceArguments<'a> {
    /// Argument of HELO or EHLO as given. Left out of the field when it is not a domain or address
    /// literal, or not ASCII where the protocol is not one of SMTPUTF8.
    pub helo: &'a [u8],
    /// Address of the client.
    pub client: IpAddr,
    /// Name of this server; `localhost` stands in when it is not a domain or address literal.
    pub server_name: &'a str,
    /// How the message came.
    pub protocol: Protocol,
    /// Forward-path without brackets, only when there is exactly one recipient (RFC 5321 7.2: more
    /// would disclose blind copies). Left out on the same terms as `helo`.
    pub recipient: Option<&'a [u8]>,
    /// MT-PRIORITY that the message has; left out of the field without one.
    pub priority: Option<i8>,
    /// Registered name of the cipher suite under TLS (RFC 8314 4.3), 64 bytes of it are used.
    pub tls_cipher: Option<&'static str>,
    /// Time of arrival.
    pub date: Date,
}

/// A date and time in UTC as the field has it (RFC 5322 3.3), to the second.
///
/// Whoever makes a field for each message keeps the last one: [`Date::is_at`].
#[derive(Clone, Copy)]
pub struct Date {
    /// Seconds since 1970.
    seconds: u64,
    text: [u8; DATE_BYTES_MAX],
    len: u8,
}

impl Date {
    /// The date and time `wall_ns` nanoseconds after the beginning of 1970.
    pub fn at(wall_ns: u64) -> Date {
        let mut date = Date {
            seconds: wall_ns / NS_PER_SECOND,
            text: [0; DATE_BYTES_MAX],
            len: 0,
        };
        let c = calendar(date.seconds);
        let year = u64::try_from(c.year).unwrap_or(0);
        for part in [
            WEEKDAYS[usize::from(c.weekday % 7)].as_bytes(),
            b", ",
            Digits::of(u64::from(c.day), 1).as_bytes(),
            b" ",
            MONTHS[usize::from((c.month + 11) % 12)].as_bytes(),
            b" ",
            Digits::of(year, 4).as_bytes(),
            b" ",
            Digits::of(u64::from(c.hour), 2).as_bytes(),
            b":",
            Digits::of(u64::from(c.minute), 2).as_bytes(),
            b":",
            Digits::of(u64::from(c.second), 2).as_bytes(),
            b" +0000",
        ] {
            let start = usize::from(date.len);
            // No year that nanoseconds reach has more than four digits.
            if let Some(room) = date.text.get_mut(start..start + part.len()) {
                room.copy_from_slice(part);
                date.len += part.len() as u8;
            }
        }
        date
    }

    /// Whether this is the date and time of `wall_ns` too.
    pub fn is_at(&self, wall_ns: u64) -> bool {
        self.seconds == wall_ns / NS_PER_SECOND
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.len)]
    }
}

impl fmt::Debug for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Date({})", self.as_bytes().escape_ascii())
    }
}

/// A number in decimal.
struct Digits {
    bytes: [u8; 20],
    start: usize,
}

impl Digits {
    /// With zeros in front up to `digits_min`, which is 20 at most.
    fn of(mut number: u64, digits_min: usize) -> Digits {
        let mut digits = Digits {
            bytes: [b'0'; 20],
            start: 20,
        };
        while number > 0 || 20 - digits.start < digits_min {
            digits.start -= 1;
            digits.bytes[digits.start] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        digits
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A Received field without the message's id.
#[derive(Clone)]
pub struct Trace {
    bytes: [u8; TRACE_BYTES_MAX],
    len: usize,
    id_at: usize,
    line_at: usize,
}

impl Trace {
    /// The field, CRLF included; the id is missing at [`Trace::id_at`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Offset in [`Trace::bytes`] where the message's id belongs.
    pub fn id_at(&self) -> usize {
        self.id_at
    }

    fn new() -> Trace {
        Trace {
            bytes: [0; TRACE_BYTES_MAX],
            len: 0,
            id_at: 0,
            line_at: 0,
        }
    }

    /// Appends; what does not fit is an error of this module, see the assertion above [`build`].
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        debug_assert!(end <= TRACE_BYTES_MAX, "the trace field outgrew its bound");
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(bytes);
            self.len = end;
        }
    }

    /// Appends a space, or CRLF and a tab when `next` more octets would pass the preferred length.
    fn fold(&mut self, next: usize) {
        if self.len - self.line_at + 1 + next > LINE_BYTES_PREFERRED {
            self.push(b"\r\n");
            self.line_at = self.len;
            self.push(b"\t");
        } else {
            self.push(b" ");
        }
    }

    /// Appends one word behind white space.
    fn word(&mut self, word: &[u8]) {
        self.fold(word.len());
        self.push(word);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("bytes", &self.bytes().escape_ascii().to_string())
            .field("id_at", &self.id_at)
            .finish()
    }
}

/// A line is folded before it grows past this (RFC 5322 2.1.1: 78 without CRLF), where words allow.
const LINE_BYTES_PREFERRED: usize = 78;
/// Room kept on the line of the id: shard, hyphen, message number.
const ID_BYTES: usize = 26;
/// Longest text of a client address: `([IPv6:` eight groups `])`.
const ADDRESS_BYTES_MAX: usize = 48;
/// Longest date: `Mon, 23 Nov 2026 01:02:03 +0000`.
const DATE_BYTES_MAX: usize = 31;
/// Longest name of a cipher suite.
const CIPHER_BYTES_MAX: usize = 64;
/// Longest mailbox of a path, with `@`.
const MAILBOX_BYTES_MAX: usize = LOCAL_PART_BYTES_MAX + 1 + DOMAIN_BYTES_MAX;
/// Everything that is not a name: keywords, protocol, date, folding.
const FIXED_BYTES_MAX: usize = 176 + CIPHER_BYTES_MAX;

const _: () = assert!(
    FIXED_BYTES_MAX + 2 * DOMAIN_BYTES_MAX + ADDRESS_BYTES_MAX + MAILBOX_BYTES_MAX
        <= TRACE_BYTES_MAX
);
// One word per line at worst: RFC 5322 2.1.1 allows 998 octets.
const _: () = assert!(MAILBOX_BYTES_MAX + 16 <= 998);

/// Builds the field.
pub fn build(arguments: &TraceArguments<'_>) -> Trace {
    let utf8 = arguments.protocol.is_utf8();
    let mut trace = Trace::new();
    trace.push(b"Received: from");
    // RFC 5321 4.4: what the client called itself, then what TCP says in a comment. Without a name
    // that can stand here, the address literal takes its place.
    let address = Address::new(arguments.client);
    if allowed(arguments.helo, utf8) {
        trace.word(arguments.helo);
        trace.fold(address.len_max());
        trace.push(b"(");
        trace.push(address.as_bytes());
        trace.push(b")");
    } else {
        trace.fold(address.len_max());
        trace.push(address.as_bytes());
        trace.push(b" (");
        trace.push(address.as_bytes());
        trace.push(b")");
    }
    trace.word(b"by");
    let server_name = arguments.server_name.as_bytes();
    trace.word(if allowed(server_name, utf8) {
        server_name
    } else {
        b"localhost"
    });
    trace.word(b"with");
    trace.word(arguments.protocol.as_str().as_bytes());
    trace.fold(b"id ".len() + ID_BYTES);
    trace.push(b"id ");
    trace.id_at = trace.len;
    // The id that is inserted here makes this line longer than the length that is known now.
    if let Some(recipient) = arguments.recipient
        && is_recipient(recipient, utf8)
    {
        trace.push(b"\r\n");
        trace.line_at = trace.len;
        trace.push(b"\tfor <");
        trace.push(recipient);
        trace.push(b">");
    }
    if let Some(priority) = arguments.priority {
        // RFC 6710 4.1 and 7: the clause that says what the message was asked to be.
        trace.push(b"\r\n\tPRIORITY ");
        trace.line_at = trace.len;
        if priority < 0 {
            trace.push(b"-");
        }
        trace.push(Digits::of(u64::from(priority.unsigned_abs()), 1).as_bytes());
    }
    if let Some(cipher) = arguments.tls_cipher {
        trace.push(b"\r\n");
        trace.line_at = trace.len;
        trace.push(b"\ttls ");
        trace.push(&cipher.as_bytes()[..cipher.len().min(CIPHER_BYTES_MAX)]);
    }
    trace.push(b";\r\n\t");
    trace.push(arguments.date.as_bytes());
    trace.push(b"\r\n");
    trace
}

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Whether a name may stand in the field: a domain or address literal, checked again here so that
/// the field is safe whatever the caller took. RFC 6531 3.7.3: U-labels only with SMTPUTF8.
fn allowed(name: &[u8], utf8: bool) -> bool {
    (utf8 || name.is_ascii()) && path::is_domain_or_literal(name)
}

/// Whether a forward-path may stand in the field: it parses as one, whole.
fn is_recipient(mailbox: &[u8], utf8: bool) -> bool {
    (utf8 || mailbox.is_ascii()) && path::is_forward_mailbox(mailbox)
}

/// An address as an address literal (RFC 5321 4.1.3).
struct Address {
    text: [u8; ADDRESS_BYTES_MAX],
    len: usize,
    is_v4: bool,
}

impl Address {
    fn new(address: IpAddr) -> Address {
        let mut literal = Address {
            text: [0; ADDRESS_BYTES_MAX],
            len: 0,
            is_v4: false,
        };
        literal.push(b'[');
        match address.to_canonical() {
            IpAddr::V4(address) => {
                literal.is_v4 = true;
                for (index, octet) in address.octets().into_iter().enumerate() {
                    if index > 0 {
                        literal.push(b'.');
                    }
                    if octet >= 100 {
                        literal.push(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        literal.push(b'0' + octet / 10 % 10);
                    }
                    literal.push(b'0' + octet % 10);
                }
            }
            IpAddr::V6(address) => {
                let written = write!(literal, "IPv6:{address}");
                debug_assert!(written.is_ok(), "Address::write_str never fails");
            }
        }
        literal.push(b']');
        literal
    }

    /// Appends; no address is longer than the room for it.
    fn push(&mut self, octet: u8) {
        if let Some(place) = self.text.get_mut(self.len) {
            *place = octet;
            self.len += 1;
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Octets of the longest literal of this family, with the parentheses around it.
    fn len_max(&self) -> usize {
        if self.is_v4 {
            "([255.255.255.255])".len()
        } else {
            ADDRESS_BYTES_MAX
        }
    }
}

impl Write for Address {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|octet| self.push(octet));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    /// 2026-11-23 01:02:03 UTC, a Monday.
    const WALL_NS: u64 = 1_795_395_723_456_789_012;

    fn arguments() -> TraceArguments<'static> {
        TraceArguments {
            helo: b"client.example",
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            server_name: "mx.example",
            protocol: Protocol::Esmtp,
            recipient: Some(b"user@example.org"),
            priority: None,
            tls_cipher: None,
            date: Date::at(WALL_NS),
        }
    }

    fn with_id(trace: &Trace, id: &str) -> String {
        let (before, after) = trace.bytes().split_at(trace.id_at());
        String::from_utf8([before, id.as_bytes(), after].concat()).unwrap()
    }

    /// The field unfolded (RFC 5322 2.2.3), its lines checked.
    fn unfolded(trace: &Trace) -> String {
        let text = with_id(trace, "0-17");
        assert!(text.ends_with("\r\n"));
        let body = &text[..text.len() - 2];
        for line in body.split("\r\n") {
            assert!(line.len() <= 998, "{line}");
            assert!(!line.contains(['\r', '\n', '\0']), "{line}");
        }
        let unfolded = body.replace("\r\n\t", " ");
        assert!(!unfolded.contains(['\r', '\n', '\t']), "{unfolded}");
        unfolded
    }

    #[test]
    fn the_field_has_from_by_with_id_for_and_date() {
        assert_eq!(
            with_id(&build(&arguments()), "0-17"),
            "Received: from client.example ([192.0.2.1]) by mx.example with ESMTP\r\n\
             \tid 0-17\r\n\
             \tfor <user@example.org>;\r\n\
             \tMon, 23 Nov 2026 01:02:03 +0000\r\n"
        );
    }

    #[test]
    fn without_a_single_recipient_the_for_clause_is_left_out() {
        let trace = build(&TraceArguments {
            recipient: None,
            ..arguments()
        });
        assert_eq!(
            unfolded(&trace),
            "Received: from client.example ([192.0.2.1]) by mx.example with ESMTP id 0-17; \
             Mon, 23 Nov 2026 01:02:03 +0000"
        );
    }

    #[test]
    fn protocols_have_their_registered_keywords() {
        for (flags, keyword) in [
            ((false, false, false, false), "SMTP"),
            ((true, false, false, false), "ESMTP"),
            ((true, false, true, false), "ESMTPS"),
            ((true, false, false, true), "ESMTPA"),
            ((true, false, true, true), "ESMTPSA"),
            ((true, true, false, false), "UTF8SMTP"),
            ((true, true, true, false), "UTF8SMTPS"),
            ((true, true, false, true), "UTF8SMTPA"),
            ((true, true, true, true), "UTF8SMTPSA"),
        ] {
            let (esmtp, smtputf8, tls, authenticated) = flags;
            for lmtp in [false, true] {
                let protocol = Protocol::new(ProtocolFacts {
                    esmtp,
                    lmtp,
                    smtputf8,
                    tls,
                    authenticated,
                });
                let trace = build(&TraceArguments {
                    protocol,
                    ..arguments()
                });
                let expected = match (lmtp, esmtp) {
                    (true, true) => keyword.replace("ESMTP", "LMTP").replace("8SMTP", "8LMTP"),
                    _ => keyword.to_owned(),
                };
                assert!(
                    unfolded(&trace).contains(&format!(" with {expected} id 0-17 ")),
                    "{expected}"
                );
            }
        }
    }

    #[test]
    fn a_priority_stands_in_a_clause_of_its_own() {
        for (priority, clause) in [(0, "PRIORITY 0"), (9, "PRIORITY 9"), (-9, "PRIORITY -9")] {
            let trace = build(&TraceArguments {
                priority: Some(priority),
                recipient: None,
                ..arguments()
            });
            let text = unfolded(&trace);
            assert!(text.contains(&format!(" id 0-17 {clause}; ")), "{text}");
        }
    }

    #[test]
    fn addresses_are_written_as_literals() {
        let from = |client: IpAddr| {
            let text = unfolded(&build(&TraceArguments {
                client,
                ..arguments()
            }));
            text.split(" by ").next().unwrap().to_owned()
        };
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        assert_eq!(
            from(v6.into()),
            "Received: from client.example ([IPv6:2001:db8::1])"
        );
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped();
        assert_eq!(
            from(mapped.into()),
            "Received: from client.example ([192.0.2.7])"
        );
    }

    #[test]
    fn names_that_could_break_the_field_are_left_out() {
        let without = "Received: from [192.0.2.1] ([192.0.2.1]) by mx.example with ESMTP id 0-17 \
                       for <user@example.org>; Mon, 23 Nov 2026 01:02:03 +0000";
        for helo in [
            &b""[..],
            b"a\r\nX-Injected: 1",
            b"a\nb",
            b"a\0b",
            b"a b",
            b"a)(b",
            b"a;b",
            b"\"a\"",
            b"[1.2.3.4",
            "b\u{fc}cher.example".as_bytes(),
            b"\xff",
        ] {
            let text = unfolded(&build(&TraceArguments {
                helo,
                ..arguments()
            }));
            assert_eq!(text, without, "{}", helo.escape_ascii());
        }
        let no_for = unfolded(&build(&TraceArguments {
            recipient: None,
            ..arguments()
        }));
        for recipient in [
            &b""[..],
            b"a@b>\r\nX: 1",
            b"a@b\nc",
            b"a@b> (",
            b"a",
            b"@r:a@b",
            "\u{fc}@b".as_bytes(),
            b"\xff@b",
        ] {
            let recipient = Some(recipient);
            assert_eq!(
                unfolded(&build(&TraceArguments {
                    recipient,
                    ..arguments()
                })),
                no_for
            );
        }
        let server_name = "mx example";
        let text = unfolded(&build(&TraceArguments {
            server_name,
            ..arguments()
        }));
        assert!(text.contains(" by localhost with "));
    }

    #[test]
    fn utf8_names_stand_in_the_field_with_smtputf8_only() {
        let utf8 = TraceArguments {
            helo: "b\u{fc}cher.example".as_bytes(),
            recipient: Some("\u{7528}\u{6237}@example.org".as_bytes()),
            protocol: Protocol::Utf8Smtp,
            ..arguments()
        };
        let text = unfolded(&build(&utf8));
        assert!(
            text.starts_with("Received: from b\u{fc}cher.example ([192.0.2.1]) by "),
            "{text}"
        );
        assert!(text.contains(" with UTF8SMTP id 0-17 for <\u{7528}\u{6237}@example.org>; "));
        let ill_formed = TraceArguments {
            helo: b"\xff",
            recipient: Some(b"\xff@b"),
            ..utf8
        };
        assert!(unfolded(&build(&ill_formed)).starts_with("Received: from [192.0.2.1] ("));
    }

    #[test]
    fn a_quoted_recipient_and_postmaster_are_kept_as_given() {
        for recipient in ["\"a> b\\\"c\"@example.org", "Postmaster"] {
            let trace = build(&TraceArguments {
                recipient: Some(recipient.as_bytes()),
                ..arguments()
            });
            assert!(unfolded(&trace).contains(&format!(" for <{recipient}>; ")));
        }
    }

    #[test]
    fn the_longest_names_fit_and_every_usual_line_is_short() {
        let label = "d".repeat(63);
        let domain = format!("{label}.{label}.{label}.{label}");
        let recipient = format!("{}@{domain}", "l".repeat(64));
        let trace = build(&TraceArguments {
            helo: domain.as_bytes(),
            client: Ipv6Addr::new(
                0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x7777, 0x8888,
            )
            .into(),
            server_name: &domain,
            protocol: Protocol::Utf8Smtpsa,
            recipient: Some(recipient.as_bytes()),
            priority: None,
            tls_cipher: None,
            date: Date::at(u64::MAX),
        });
        let expected = format!(
            "Received: from {domain} ([IPv6:1111:2222:3333:4444:5555:6666:7777:8888]) by {domain} \
             with UTF8SMTPSA id 0-17 for <{recipient}>; Sun, 21 Jul 2554 23:34:33 +0000"
        );
        assert_eq!(unfolded(&trace), expected);

        let usual = with_id(&build(&arguments()), "127-18446744073709551615");
        assert!(usual.split("\r\n").all(|line| line.len() <= 78), "{usual}");
    }

    #[test]
    fn a_date_is_good_for_its_second() {
        let date = Date::at(WALL_NS);
        assert_eq!(date.as_bytes(), b"Mon, 23 Nov 2026 01:02:03 +0000");
        let second = WALL_NS / NS_PER_SECOND * NS_PER_SECOND;
        for (wall_ns, is_good) in [
            (second - 1, false),
            (second, true),
            (second + NS_PER_SECOND - 1, true),
            (second + NS_PER_SECOND, false),
        ] {
            assert_eq!(date.is_at(wall_ns), is_good, "{wall_ns}");
        }
        let day = Date::at(86_400 * NS_PER_SECOND);
        assert_eq!(day.as_bytes(), b"Fri, 2 Jan 1970 00:00:00 +0000");
    }

    #[test]
    fn every_octet_of_an_address_is_written_in_decimal() {
        for octet in 0..=u8::MAX {
            let address = Ipv4Addr::new(octet, 255 - octet, 0, octet);
            let literal = Address::new(address.into());
            let text = format!("[{address}]");
            assert_eq!(literal.as_bytes(), text.as_bytes());
        }
    }
}
