//! The extensions the receiver offers: one row per EHLO keyword.
//!
//! EHLO's text, the names that `--hide` and `--only` take and the table in `docs/smtp-conformance.md` come from these
//! rows. What is not in the table is not offered, and its parameters are refused.

use super::parameter::Offered;
use super::sasl::Mechanisms;
use crate::clock::calendar;
use crate::limits::CONFIGURED_REPLY_BYTES_MAX;

/// Argument of a keyword in the reply to EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// None.
    None,
    /// These words.
    Words(&'static str),
    /// The largest message, octets (RFC 1870 3).
    MessageBytesMax,
    /// `RCPTMAX=` and `MAILMAX=` (RFC 9422).
    Limits,
    /// The names of the mechanisms that are offered on this channel (RFC 4954 3).
    Mechanisms,
    /// Longest hold in seconds and the latest date of release (RFC 4865 3), which moves with the clock.
    Hold,
}

/// One row: an extension that can be offered.
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// EHLO keyword (RFC 5321 4.1.1.1).
    pub keyword: &'static str,
    /// Its argument.
    pub argument: Argument,
    /// Its own bit.
    pub bit: Offered,
    /// The bits that have to be offered beside it.
    pub needs: Offered,
    /// Where it is specified.
    pub rfc: &'static str,
    /// What the receiver does with it, for the documents.
    pub meaning: &'static str,
}

/// All of them, in the order of the reply to EHLO.
pub static EXTENSIONS: &[Extension] = &[
    Extension {
        keyword: "SIZE",
        argument: Argument::MessageBytesMax,
        bit: Offered::SIZE,
        needs: Offered::NONE,
        rfc: "RFC 1870",
        meaning: "a declared size over the maximum is refused at MAIL, a longer message after its end",
    },
    Extension {
        keyword: "PIPELINING",
        argument: Argument::None,
        bit: Offered::PIPELINING,
        needs: Offered::NONE,
        rfc: "RFC 2920",
        meaning: "commands may be sent in groups; replies keep their order",
    },
    Extension {
        keyword: "8BITMIME",
        argument: Argument::None,
        bit: Offered::EIGHT_BIT_MIME,
        needs: Offered::NONE,
        rfc: "RFC 6152",
        meaning: "content is stored octet for octet",
    },
    Extension {
        keyword: "SMTPUTF8",
        argument: Argument::None,
        bit: Offered::SMTPUTF8,
        // RFC 6531 3.1: a server that offers SMTPUTF8 offers 8BITMIME.
        needs: Offered::EIGHT_BIT_MIME,
        rfc: "RFC 6531",
        meaning: "addresses and header fields may hold UTF-8",
    },
    Extension {
        keyword: "ENHANCEDSTATUSCODES",
        argument: Argument::None,
        bit: Offered::ENHANCED_STATUS_CODES,
        needs: Offered::NONE,
        rfc: "RFC 2034",
        meaning: "replies carry a status code of RFC 3463",
    },
    Extension {
        keyword: "CHUNKING",
        argument: Argument::None,
        bit: Offered::CHUNKING,
        needs: Offered::NONE,
        rfc: "RFC 3030",
        meaning: "content may be sent by BDAT",
    },
    Extension {
        keyword: "BINARYMIME",
        argument: Argument::None,
        bit: Offered::BINARY_MIME,
        // RFC 3030 3: only together with CHUNKING.
        needs: Offered::CHUNKING,
        rfc: "RFC 3030",
        meaning: "content sent by BDAT need not have lines",
    },
    Extension {
        keyword: "DSN",
        argument: Argument::None,
        bit: Offered::DSN,
        needs: Offered::NONE,
        rfc: "RFC 3461",
        meaning: "RET, ENVID, NOTIFY and ORCPT are checked and stored with the envelope",
    },
    Extension {
        keyword: "DELIVERBY",
        argument: Argument::None,
        bit: Offered::DELIVERBY,
        needs: Offered::NONE,
        rfc: "RFC 2852",
        meaning: "BY is checked and stored with the time it means",
    },
    Extension {
        keyword: "FUTURERELEASE",
        argument: Argument::Hold,
        bit: Offered::FUTURERELEASE,
        needs: Offered::NONE,
        rfc: "RFC 4865",
        meaning: "HOLDFOR and HOLDUNTIL are checked and stored with the time they mean",
    },
    Extension {
        keyword: "MT-PRIORITY",
        argument: Argument::None,
        bit: Offered::MT_PRIORITY,
        needs: Offered::NONE,
        rfc: "RFC 6710",
        meaning: "the priority is checked, stored and named in the trace field",
    },
    Extension {
        keyword: "RRVS",
        argument: Argument::None,
        bit: Offered::RRVS,
        needs: Offered::NONE,
        rfc: "RFC 7293",
        meaning: "RRVS is checked and stored with its recipient",
    },
    Extension {
        keyword: "ETRN",
        argument: Argument::None,
        bit: Offered::ETRN,
        needs: Offered::NONE,
        rfc: "RFC 1985",
        meaning: "ETRN is checked and answered by policy",
    },
    Extension {
        keyword: "STARTTLS",
        argument: Argument::None,
        bit: Offered::STARTTLS,
        needs: Offered::NONE,
        rfc: "RFC 3207",
        meaning: "the session goes on under TLS and forgets what came before; not offered under TLS",
    },
    Extension {
        keyword: "REQUIRETLS",
        argument: Argument::None,
        bit: Offered::REQUIRETLS,
        needs: Offered::NONE,
        rfc: "RFC 8689",
        meaning: "the wish is stored with the envelope; offered under TLS alone",
    },
    Extension {
        keyword: "AUTH",
        argument: Argument::Mechanisms,
        bit: Offered::AUTH,
        needs: Offered::NONE,
        rfc: "RFC 4954",
        meaning: "users prove who they are; AUTH= of MAIL is checked and stored",
    },
    Extension {
        keyword: "XCLIENT",
        argument: Argument::Words("NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"),
        bit: Offered::XCLIENT,
        needs: Offered::NONE,
        rfc: "Postfix",
        meaning: "a trusted proxy says who its client is",
    },
    Extension {
        keyword: "XFORWARD",
        argument: Argument::Words("NAME ADDR PORT PROTO HELO IDENT SOURCE"),
        bit: Offered::XFORWARD,
        needs: Offered::NONE,
        rfc: "Postfix",
        meaning: "a trusted filter says where a message came from; stored with the envelope",
    },
    Extension {
        keyword: "LIMITS",
        argument: Argument::Limits,
        bit: Offered::LIMITS,
        needs: Offered::NONE,
        rfc: "RFC 9422",
        meaning: "recipients per message and messages per session",
    },
];

/// What a listener offers to everybody when nothing is configured.
pub const ALL: Offered = Offered::SIZE
    .with(Offered::PIPELINING)
    .with(Offered::EIGHT_BIT_MIME)
    .with(Offered::SMTPUTF8)
    .with(Offered::ENHANCED_STATUS_CODES)
    .with(Offered::CHUNKING)
    .with(Offered::BINARY_MIME)
    .with(Offered::DSN)
    .with(Offered::DELIVERBY)
    .with(Offered::FUTURERELEASE)
    .with(Offered::MT_PRIORITY)
    .with(Offered::RRVS)
    .with(Offered::ETRN)
    .with(Offered::LIMITS);

/// `offered` without the extensions that lack one they have to be offered with.
pub fn consistent(offered: Offered) -> Offered {
    let lacking = EXTENSIONS.iter().filter(|row| !offered.has(row.needs));
    lacking.fold(offered, |rest, row| rest.without(row.bit))
}

/// The bit of the extension with this keyword, in any case.
pub fn named(keyword: &str) -> Option<Offered> {
    let row = EXTENSIONS
        .iter()
        .find(|row| row.keyword.eq_ignore_ascii_case(keyword));
    row.map(|row| row.bit)
}

/// Largest number that LIMITS can state: six digits (RFC 9422).
pub const LIMIT_MAX: u32 = 999_999;

/// Numbers that stand in the reply to EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EhloNumbers {
    /// Largest message, octets.
    pub message_bytes_max: u64,
    /// Most recipients of one message; stated as [`LIMIT_MAX`] where it is more.
    pub recipients_max: u32,
    /// Most messages of one session; stated as [`LIMIT_MAX`] where it is more.
    pub messages_max: u32,
    /// Longest time that a message may be held, seconds (RFC 4865: up to nine digits).
    pub hold_max_s: u32,
}

/// The lines of the reply to EHLO, made once; which of them are sent is decided for each EHLO.
#[derive(Clone, Debug)]
pub struct EhloLines {
    /// The first line's text.
    first: Vec<u8>,
    lines: Vec<EhloLine>,
    hold_max_s: u32,
}

#[derive(Clone, Debug)]
struct EhloLine {
    needs: Offered,
    text: Vec<u8>,
    /// Where in `text` the date of the latest release is filled in.
    date_at: Option<usize>,
    /// The names of mechanisms follow.
    names_mechanisms: bool,
}

/// A complete reply of several lines.
#[derive(Clone, Debug)]
pub struct Composed {
    bytes: [u8; CONFIGURED_REPLY_BYTES_MAX],
    len: usize,
}

impl Composed {
    fn push(&mut self, bytes: &[u8]) {
        // INVARIANT: `EhloLines::bytes_max` was checked when the lines were made.
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// The reply as it is sent, CRLF included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Length of a date-time in UTC without a fraction, octets.
const DATE_BYTES: usize = 20;
/// What a year past 9999 would be, seconds since 1970: a date-time has four digits for it.
const YEAR_10000_S: u64 = 253_402_300_800;

impl EhloLines {
    /// Lines of a server of this name.
    pub fn new(server_name: &str, numbers: EhloNumbers) -> EhloLines {
        let lines = EXTENSIONS.iter().map(|row| {
            let keyword = row.keyword;
            let mut date_at = None;
            let text = match row.argument {
                Argument::None | Argument::Mechanisms => keyword.to_owned(),
                Argument::Words(words) => format!("{keyword} {words}"),
                Argument::MessageBytesMax => format!("{keyword} {}", numbers.message_bytes_max),
                Argument::Limits => format!(
                    "{keyword} RCPTMAX={} MAILMAX={}",
                    numbers.recipients_max.min(LIMIT_MAX),
                    numbers.messages_max.min(LIMIT_MAX)
                ),
                Argument::Hold => {
                    let front = format!("{keyword} {} ", numbers.hold_max_s);
                    date_at = Some(front.len());
                    front + &"0".repeat(DATE_BYTES)
                }
            };
            EhloLine {
                needs: row.bit.with(row.needs),
                text: text.into_bytes(),
                date_at,
                names_mechanisms: row.argument == Argument::Mechanisms,
            }
        });
        EhloLines {
            first: format!("{server_name} greets you").into_bytes(),
            lines: lines.collect(),
            hold_max_s: numbers.hold_max_s,
        }
    }

    /// Length of the reply when everything is offered, octets.
    pub fn bytes_max(&self) -> usize {
        let line = |text: &Vec<u8>| "250-".len() + text.len() + "\r\n".len();
        let names = Mechanisms::ALL.iter().map(|m| " ".len() + m.name().len());
        let lines = self.lines.iter().map(|l| line(&l.text));
        line(&self.first) + lines.sum::<usize>() + names.sum::<usize>()
    }

    /// The complete reply to an EHLO that is offered this, with these mechanisms of AUTH, at this time.
    pub fn compose(&self, offered: Offered, mechanisms: Mechanisms, wall_ns: u64) -> Composed {
        let mut reply = Composed {
            bytes: [0; CONFIGURED_REPLY_BYTES_MAX],
            len: 0,
        };
        let mut last_at = 0;
        reply.push(b"250-");
        reply.push(&self.first);
        reply.push(b"\r\n");
        for line in self.lines.iter().filter(|line| offered.has(line.needs)) {
            last_at = reply.len;
            reply.push(b"250-");
            match line.date_at {
                Some(at) => {
                    reply.push(&line.text[..at]);
                    reply.push(&self.latest_release(wall_ns));
                }
                None => reply.push(&line.text),
            }
            if line.names_mechanisms {
                for mechanism in mechanisms.iter() {
                    reply.push(b" ");
                    reply.push(mechanism.name().as_bytes());
                }
            }
            reply.push(b"\r\n");
        }
        reply.bytes[last_at + 3] = b' ';
        reply
    }

    /// The latest date of release: the longest hold from now (RFC 4865 3).
    fn latest_release(&self, wall_ns: u64) -> [u8; DATE_BYTES] {
        let seconds = wall_ns / 1_000_000_000 + u64::from(self.hold_max_s);
        let c = calendar(seconds.min(YEAR_10000_S - 1));
        let mut date = *b"0000-00-00T00:00:00Z";
        for (at, len, mut value) in [
            (0, 4, c.year),
            (5, 2, i64::from(c.month)),
            (8, 2, i64::from(c.day)),
            (11, 2, i64::from(c.hour)),
            (14, 2, i64::from(c.minute)),
            (17, 2, i64::from(c.second)),
        ] {
            for place in date[at..at + len].iter_mut().rev() {
                *place = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        date
    }
}

/// The complete reply to HELP, CRLF included: the commands.
pub fn help_reply(offered: Offered, lmtp: bool) -> Vec<u8> {
    let mut commands = vec![if lmtp { "LHLO" } else { "EHLO HELO" }, "MAIL RCPT DATA"];
    for (bit, command) in [
        (Offered::CHUNKING, "BDAT"),
        (Offered::STARTTLS, "STARTTLS"),
        (Offered::AUTH, "AUTH"),
        (Offered::ETRN, "ETRN"),
    ] {
        if offered.has(bit) {
            commands.push(command);
        }
    }
    commands.push("RSET NOOP VRFY HELP QUIT");
    let lines = [
        "2.0.0 Commands:".to_owned(),
        format!("2.0.0 {}", commands.join(" ")),
        "2.0.0 RFC 5321 says what they do".to_owned(),
    ];
    multi_line("214", &lines)
}

/// Encodes a reply of several lines (RFC 5321 4.2.1).
fn multi_line(code: &str, lines: &[String]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let separator = if index + 1 == lines.len() { ' ' } else { '-' };
        wire.extend_from_slice(format!("{code}{separator}{line}\r\n").as_bytes());
    }
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: EhloNumbers = EhloNumbers {
        message_bytes_max: 52_428_800,
        recipients_max: 1_000,
        messages_max: 999_999,
        hold_max_s: 86_400,
    };
    /// 2026-11-23 01:02:03 UTC.
    const WALL_NS: u64 = 1_795_395_723_000_000_000;

    fn text(lines: &EhloLines, offered: Offered) -> String {
        String::from_utf8_lossy(lines.compose(offered, Mechanisms::ALL, WALL_NS).as_bytes())
            .into_owned()
    }

    #[test]
    fn ehlo_lists_every_extension_with_its_argument() {
        let lines = EhloLines::new("mx.example.org", NUMBERS);
        let wire = text(&lines, Offered::from_bits(u32::MAX));
        assert_eq!(
            wire,
            "250-mx.example.org greets you\r\n\
             250-SIZE 52428800\r\n\
             250-PIPELINING\r\n\
             250-8BITMIME\r\n\
             250-SMTPUTF8\r\n\
             250-ENHANCEDSTATUSCODES\r\n\
             250-CHUNKING\r\n\
             250-BINARYMIME\r\n\
             250-DSN\r\n\
             250-DELIVERBY\r\n\
             250-FUTURERELEASE 86400 2026-11-24T01:02:03Z\r\n\
             250-MT-PRIORITY\r\n\
             250-RRVS\r\n\
             250-ETRN\r\n\
             250-STARTTLS\r\n\
             250-REQUIRETLS\r\n\
             250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN\r\n\
             250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n\
             250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE\r\n\
             250 LIMITS RCPTMAX=1000 MAILMAX=999999\r\n"
        );
        assert_eq!(lines.bytes_max(), wire.len());
    }

    #[test]
    fn ehlo_leaves_out_an_extension_whose_companion_is_not_offered() {
        let numbers = EhloNumbers {
            recipients_max: u32::MAX,
            messages_max: u32::MAX,
            ..NUMBERS
        };
        let lines = EhloLines::new("a.example", numbers);
        let offered = Offered::BINARY_MIME
            .with(Offered::SMTPUTF8)
            .with(Offered::LIMITS);
        assert_eq!(
            text(&lines, offered),
            "250-a.example greets you\r\n\
             250 LIMITS RCPTMAX=999999 MAILMAX=999999\r\n"
        );
        assert_eq!(text(&lines, Offered::NONE), "250 a.example greets you\r\n");
    }

    #[test]
    fn the_longest_reply_to_ehlo_fits_into_its_buffer() {
        let numbers = EhloNumbers {
            message_bytes_max: u64::MAX,
            recipients_max: u32::MAX,
            messages_max: u32::MAX,
            hold_max_s: u32::MAX,
        };
        let lines = EhloLines::new(&"a".repeat(255), numbers);
        let wire = lines.compose(Offered::from_bits(u32::MAX), Mechanisms::ALL, u64::MAX);
        assert_eq!(wire.as_bytes().len(), lines.bytes_max());
        assert!(lines.bytes_max() <= CONFIGURED_REPLY_BYTES_MAX);
    }

    #[test]
    fn keywords_are_letters_digits_and_hyphens_and_have_a_bit_each() {
        let mut seen = Offered::NONE;
        for row in EXTENSIONS {
            assert!(row.keyword.as_bytes()[0].is_ascii_alphanumeric());
            assert!(
                row.keyword
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            );
            assert!(row.bit != Offered::NONE && !seen.has_any(row.bit));
            seen = seen.with(row.bit);
            assert_eq!(named(&row.keyword.to_ascii_lowercase()), Some(row.bit));
        }
        assert_eq!(named("X-NOBODY"), None);
    }

    #[test]
    fn help_names_the_commands_that_work() {
        assert_eq!(
            String::from_utf8_lossy(&help_reply(ALL, false)),
            "214-2.0.0 Commands:\r\n\
             214-2.0.0 EHLO HELO MAIL RCPT DATA BDAT ETRN RSET NOOP VRFY HELP QUIT\r\n\
             214 2.0.0 RFC 5321 says what they do\r\n"
        );
        assert_eq!(
            String::from_utf8_lossy(&help_reply(Offered::NONE, true)),
            "214-2.0.0 Commands:\r\n\
             214-2.0.0 LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT\r\n\
             214 2.0.0 RFC 5321 says what they do\r\n"
        );
    }
}
