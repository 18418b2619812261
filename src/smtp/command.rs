//! One command line -> its command and arguments, or the reply that refuses it (RFC 5321 4.1.1).

use super::path::{ForwardPath, ReversePath};
use super::reply::Reply;
use super::sink::Verb;

/// A command with its arguments, borrowed from its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO with its domain or address literal.
    Helo(&'a [u8]),
    /// EHLO with its domain or address literal.
    Ehlo(&'a [u8]),
    /// MAIL FROM:path parameters.
    Mail {
        /// Reverse-path.
        path: ReversePath<'a>,
        /// Parameters for `parameter::parse_mail`, blanks around them removed; may be empty.
        parameters: &'a [u8],
    },
    /// RCPT TO:path parameters.
    Rcpt {
        /// Forward-path.
        path: ForwardPath<'a>,
        /// Parameters for `parameter::parse_rcpt`, blanks around them removed; may be empty.
        parameters: &'a [u8],
    },
    /// DATA.
    Data,
    /// BDAT size `[LAST]` (RFC 3030 2).
    Bdat {
        /// Octets that follow the line.
        size: u64,
        /// The chunk is the last one of its message.
        last: bool,
    },
    /// RSET.
    Rset,
    /// NOOP; its argument is ignored (RFC 5321 4.1.1.9).
    Noop,
    /// VRFY with its argument.
    Vrfy(&'a [u8]),
    /// EXPN with its argument.
    Expn(&'a [u8]),
    /// HELP with its argument, which may be empty.
    Help(&'a [u8]),
    /// QUIT.
    Quit,
    /// STARTTLS (RFC 3207).
    StartTls,
    /// AUTH with mechanism and initial response (RFC 4954).
    Auth(&'a [u8]),
    /// TURN, SEND, SOML, SAML or ETRN: known and not provided.
    NotImplemented,
}

/// A command line, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The verb, for counters; known even when the arguments are refused.
    pub verb: Verb,
    /// The command, or the reply that refuses the line.
    pub command: Result<Command<'a>, Reply>,
}

/// Parses one line without its CRLF.
pub fn parse(line: &[u8]) -> Parsed<'_> {
    let _ = line;
    Parsed {
        verb: Verb::Other,
        command: Err(Reply::CommandUnknown),
    }
}
