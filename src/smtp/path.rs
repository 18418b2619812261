//! Reverse-path and forward-path of MAIL and RCPT (RFC 5321 4.1.2, RFC 6531 3.3).

use super::reply::Reply;

/// The path of MAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReversePath<'a> {
    /// Mailbox without brackets and source route, as given; empty for the null reverse-path `<>`.
    pub mailbox: &'a [u8],
    /// False when the mailbox holds octets beyond ASCII (well-formed UTF-8), which needs SMTPUTF8.
    pub ascii: bool,
}

/// The path of RCPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardPath<'a> {
    /// Mailbox without brackets and source route, as given; never empty.
    pub mailbox: &'a [u8],
    /// False when the mailbox holds octets beyond ASCII (well-formed UTF-8), which needs SMTPUTF8.
    pub ascii: bool,
    /// `<Postmaster>` without a domain, in any case (RFC 5321 4.5.1).
    pub postmaster: bool,
}

/// Parses a reverse-path at the start of `input`; returns it and what follows its `>`.
pub fn parse_reverse(input: &[u8]) -> Result<(ReversePath<'_>, &[u8]), Reply> {
    let _ = input;
    Err(Reply::MailSyntax)
}

/// Parses a forward-path at the start of `input`; returns it and what follows its `>`.
pub fn parse_forward(input: &[u8]) -> Result<(ForwardPath<'_>, &[u8]), Reply> {
    let _ = input;
    Err(Reply::RcptSyntax)
}
