//! The extensions the receiver offers: one row per EHLO keyword.
//!
//! EHLO's text and the table in `docs/smtp-conformance.md` come from these rows. What is not in the table is
//! not offered, and its parameters are refused.

use super::parameter::Offered;

/// Argument of a keyword in the reply to EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// None.
    None,
    /// The largest message, octets (RFC 1870 3).
    MessageBytesMax,
    /// `RCPTMAX=` and `MAILMAX=` (RFC 9422).
    Limits,
}

/// One row: an extension that can be offered.
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// EHLO keyword (RFC 5321 4.1.1.1).
    pub keyword: &'static str,
    /// Its argument.
    pub argument: Argument,
    /// The bits it needs to be offered: [`Offered::NONE`] when it depends on nothing.
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
        needs: Offered::SIZE,
        rfc: "RFC 1870",
        meaning: "a declared size over the maximum is refused at MAIL, a longer message after its end",
    },
    Extension {
        keyword: "PIPELINING",
        argument: Argument::None,
        needs: Offered::NONE,
        rfc: "RFC 2920",
        meaning: "commands may be sent in groups; replies keep their order",
    },
    Extension {
        keyword: "8BITMIME",
        argument: Argument::None,
        needs: Offered::EIGHT_BIT_MIME,
        rfc: "RFC 6152",
        meaning: "content is stored octet for octet",
    },
    Extension {
        keyword: "SMTPUTF8",
        argument: Argument::None,
        // RFC 6531 3.1: a server that offers SMTPUTF8 offers 8BITMIME.
        needs: Offered::SMTPUTF8.with(Offered::EIGHT_BIT_MIME),
        rfc: "RFC 6531",
        meaning: "addresses and header fields may hold UTF-8",
    },
    Extension {
        keyword: "ENHANCEDSTATUSCODES",
        argument: Argument::None,
        needs: Offered::NONE,
        rfc: "RFC 2034",
        meaning: "replies carry a status code of RFC 3463",
    },
    Extension {
        keyword: "CHUNKING",
        argument: Argument::None,
        needs: Offered::CHUNKING,
        rfc: "RFC 3030",
        meaning: "content may be sent by BDAT",
    },
    Extension {
        keyword: "BINARYMIME",
        argument: Argument::None,
        // RFC 3030 3: only together with CHUNKING.
        needs: Offered::BINARY_MIME.with(Offered::CHUNKING),
        rfc: "RFC 3030",
        meaning: "content sent by BDAT need not have lines",
    },
    Extension {
        keyword: "DSN",
        argument: Argument::None,
        needs: Offered::DSN,
        rfc: "RFC 3461",
        meaning: "RET, ENVID, NOTIFY and ORCPT are checked and stored with the envelope",
    },
    Extension {
        keyword: "STARTTLS",
        argument: Argument::None,
        needs: Offered::STARTTLS,
        rfc: "RFC 3207",
        meaning: "the session goes on under TLS and forgets what came before; not offered under TLS",
    },
    Extension {
        keyword: "REQUIRETLS",
        argument: Argument::None,
        needs: Offered::REQUIRETLS,
        rfc: "RFC 8689",
        meaning: "the wish is stored with the envelope; offered under TLS alone, and on sinks alone",
    },
    Extension {
        keyword: "LIMITS",
        argument: Argument::Limits,
        needs: Offered::NONE,
        rfc: "RFC 9422",
        meaning: "recipients per message and messages per session",
    },
];

/// Everything the receiver can offer without TLS.
pub const ALL: Offered = Offered::SIZE
    .with(Offered::EIGHT_BIT_MIME)
    .with(Offered::BINARY_MIME)
    .with(Offered::SMTPUTF8)
    .with(Offered::DSN)
    .with(Offered::CHUNKING);

/// Largest number that LIMITS can state: six digits (RFC 9422).
pub const LIMIT_MAX: u32 = 999_999;

/// The complete reply to EHLO, CRLF included.
///
/// `recipients_max` and `messages_max` beyond [`LIMIT_MAX`] are stated as that.
pub fn ehlo_reply(
    server_name: &str,
    offered: Offered,
    message_bytes_max: u64,
    recipients_max: u32,
    messages_max: u32,
) -> Vec<u8> {
    let mut lines = vec![format!("{server_name} greets you")];
    for extension in EXTENSIONS.iter().filter(|row| offered.has(row.needs)) {
        let keyword = extension.keyword;
        lines.push(match extension.argument {
            Argument::None => keyword.to_owned(),
            Argument::MessageBytesMax => format!("{keyword} {message_bytes_max}"),
            Argument::Limits => format!(
                "{keyword} RCPTMAX={} MAILMAX={}",
                recipients_max.min(LIMIT_MAX),
                messages_max.min(LIMIT_MAX)
            ),
        });
    }
    multi_line("250", &lines)
}

/// The complete reply to HELP, CRLF included: the commands.
pub fn help_reply(offered: Offered) -> Vec<u8> {
    let content = if offered.has(Offered::CHUNKING) {
        "2.0.0 DATA BDAT RSET NOOP QUIT"
    } else {
        "2.0.0 DATA RSET NOOP QUIT"
    };
    let greeting = if offered.has(Offered::STARTTLS) {
        "2.0.0 EHLO HELO STARTTLS MAIL RCPT"
    } else {
        "2.0.0 EHLO HELO MAIL RCPT"
    };
    let lines = [
        "2.0.0 Commands:".to_owned(),
        greeting.to_owned(),
        content.to_owned(),
        "2.0.0 VRFY HELP (RFC 5321)".to_owned(),
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

    #[test]
    fn ehlo_lists_every_extension_with_its_argument() {
        let wire = ehlo_reply("mx.example.org", ALL, 52_428_800, 1_000, 999_999);
        assert_eq!(
            String::from_utf8_lossy(&wire),
            "250-mx.example.org greets you\r\n\
             250-SIZE 52428800\r\n\
             250-PIPELINING\r\n\
             250-8BITMIME\r\n\
             250-SMTPUTF8\r\n\
             250-ENHANCEDSTATUSCODES\r\n\
             250-CHUNKING\r\n\
             250-BINARYMIME\r\n\
             250-DSN\r\n\
             250 LIMITS RCPTMAX=1000 MAILMAX=999999\r\n"
        );
    }

    #[test]
    fn ehlo_leaves_out_an_extension_whose_companion_is_not_offered() {
        let offered = Offered::BINARY_MIME.with(Offered::SMTPUTF8);
        let wire = ehlo_reply("a.example", offered, 1, u32::MAX, u32::MAX);
        assert_eq!(
            String::from_utf8_lossy(&wire),
            "250-a.example greets you\r\n\
             250-PIPELINING\r\n\
             250-ENHANCEDSTATUSCODES\r\n\
             250 LIMITS RCPTMAX=999999 MAILMAX=999999\r\n"
        );
    }

    #[test]
    fn keywords_are_letters_digits_and_hyphens() {
        for row in EXTENSIONS {
            assert!(row.keyword.as_bytes()[0].is_ascii_alphanumeric());
            assert!(
                row.keyword
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            );
        }
    }

    #[test]
    fn help_names_the_commands_that_work() {
        let wire = help_reply(ALL);
        assert_eq!(
            String::from_utf8_lossy(&wire),
            "214-2.0.0 Commands:\r\n\
             214-2.0.0 EHLO HELO MAIL RCPT\r\n\
             214-2.0.0 DATA BDAT RSET NOOP QUIT\r\n\
             214 2.0.0 VRFY HELP (RFC 5321)\r\n"
        );
    }
}
