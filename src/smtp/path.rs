//! Reverse-path and forward-path of MAIL and RCPT (RFC 5321 4.1.2, RFC 6531 3.3).
//!
//! Promises: one pass from left to right, so that a `>` or `@` inside a quoted local part ends
//! nothing; no allocation; what is accepted holds no control octet, no space outside quotes and
//! only well-formed UTF-8.
//! Does not: know whether SMTPUTF8 was given (see `ascii`), decide about domains, fold case, remove
//! quotes, or apply the IDNA rules to U-labels beyond refusing control characters.

use core::net::Ipv6Addr;

use super::reply::Reply;
use crate::limits::{DOMAIN_BYTES_MAX, LOCAL_PART_BYTES_MAX};
use crate::sys::scan::{NAME_WINDOW_BYTES, name_octets};

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
///
/// A source route is accepted and dropped (RFC 5321 appendix C).
///
/// # Errors
/// [`Reply::MailSyntax`] when no `<` stands first, [`Reply::PathTooLong`] when a local part is over
/// 64 octets or a domain over 255 (RFC 5321 4.5.3.1), [`Reply::SenderMalformed`] for everything
/// else.
pub fn parse_reverse(input: &[u8]) -> Result<(ReversePath<'_>, &[u8]), Reply> {
    let path = match input {
        [b'<', b'>', rest @ ..] => {
            return Ok((
                ReversePath {
                    mailbox: &[],
                    ascii: true,
                },
                rest,
            ));
        }
        [b'<', path @ ..] => path,
        _ => return Err(Reply::MailSyntax),
    };
    let (mailbox, ascii, rest) = bracketed_mailbox(path).map_err(|fault| match fault {
        Fault::Malformed => Reply::SenderMalformed,
        Fault::TooLong => Reply::PathTooLong,
    })?;
    Ok((ReversePath { mailbox, ascii }, rest))
}

/// Parses a forward-path at the start of `input`; returns it and what follows its `>`.
///
/// A source route is accepted and dropped (RFC 5321 appendix C). `<Postmaster>` needs no domain.
///
/// # Errors
/// [`Reply::RcptSyntax`] when no `<` stands first, [`Reply::PathTooLong`] when a local part is over
/// 64 octets or a domain over 255 (RFC 5321 4.5.3.1), [`Reply::RecipientMalformed`] for everything
/// else, `<>` included.
pub fn parse_forward(input: &[u8]) -> Result<(ForwardPath<'_>, &[u8]), Reply> {
    let [b'<', path @ ..] = input else {
        return Err(Reply::RcptSyntax);
    };
    if let Some((mailbox, [b'>', rest @ ..])) = path.split_at_checked(POSTMASTER.len())
        && mailbox.eq_ignore_ascii_case(POSTMASTER)
    {
        return Ok((
            ForwardPath {
                mailbox,
                ascii: true,
                postmaster: true,
            },
            rest,
        ));
    }
    let (mailbox, ascii, rest) = bracketed_mailbox(path).map_err(|fault| match fault {
        Fault::Malformed => Reply::RecipientMalformed,
        Fault::TooLong => Reply::PathTooLong,
    })?;
    Ok((
        ForwardPath {
            mailbox,
            ascii,
            postmaster: false,
        },
        rest,
    ))
}

/// Whether `name` is one whole domain or address literal (RFC 5321 4.1.2, 4.1.3), as HELO and EHLO
/// take it.
///
/// Octets beyond ASCII are part of labels when they are well-formed UTF-8 (RFC 6531 3.7.1); single
/// labels and underscores are taken, because many clients send them.
pub fn is_domain_or_literal(name: &[u8]) -> bool {
    is_plain_domain(name) || follows_domain_grammar(name)
}

/// As [`is_domain_or_literal`], by the grammar alone.
fn follows_domain_grammar(name: &[u8]) -> bool {
    let whole = if name.first() == Some(&b'[') {
        literal(name).is_some_and(|rest| rest.is_empty())
    } else {
        domain(name).is_ok_and(|rest| rest.is_empty())
    };
    whole && name.len() <= DOMAIN_BYTES_MAX && is_text(name)
}

/// Whether `mailbox`, without brackets, is a whole mailbox (RFC 5321 4.1.2).
pub fn is_mailbox(mailbox: &[u8]) -> bool {
    plain_mailbox_len(mailbox) == Some(mailbox.len())
        || scan_mailbox(mailbox).is_ok_and(|after| after.is_empty())
}

/// Whether `mailbox`, without brackets, is what [`parse_forward`] returns for some path.
pub fn is_forward_mailbox(mailbox: &[u8]) -> bool {
    mailbox.eq_ignore_ascii_case(POSTMASTER) || is_mailbox(mailbox)
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Malformed,
    TooLong,
}

const POSTMASTER: &[u8] = b"postmaster";
/// Longest label of ASCII octets (RFC 1035 2.3.4). The limit of a U-label is that of its A-label,
/// which can't be told from its length in UTF-8.
const LABEL_BYTES_MAX: usize = 63;

/// Class of octets that stand in an atom: atext of RFC 5322 3.2.3 and octets of UTF-8.
const ATEXT: u8 = 1;
/// Class of octets that stand in a label: letters, digits, hyphen, underscore and octets of UTF-8.
const LABEL: u8 = 2;
/// Class of octets that stand in a quoted string by themselves: qtextSMTP.
const QTEXT: u8 = 4;
/// Class of octets that stand in an address literal: dcontent.
const DCONTENT: u8 = 8;

/// The classes of each octet.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        let c = octet as u8;
        let mut class = 0;
        if c.is_ascii_alphanumeric() || c >= 0x80 {
            class |= ATEXT | LABEL | QTEXT;
        }
        if matches!(c, b'-' | b'_') {
            class |= LABEL;
        }
        if matches!(
            c,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'/'
                | b'='
                | b'?'
                | b'^'
                | b'_'
                | b'`'
                | b'{'
                | b'|'
                | b'}'
                | b'~'
        ) {
            class |= ATEXT;
        }
        if matches!(c, 32..=33 | 35..=91 | 93..=126) {
            class |= QTEXT;
        }
        if matches!(c, 33..=90 | 94..=126) {
            class |= DCONTENT;
        }
        table[octet] = class;
        octet += 1;
    }
    table
}

/// Splits `input` before its first octet that is not of `class`.
fn take(input: &[u8], class: u8) -> (&[u8], &[u8]) {
    let len = input
        .iter()
        .position(|&octet| CLASS[usize::from(octet)] & class == 0)
        .unwrap_or(input.len());
    input.split_at(len)
}

/// The mailbox at the front of `input`, whether it is ASCII, and what follows its `>`.
fn bracketed_mailbox(input: &[u8]) -> Result<(&[u8], bool, &[u8]), Fault> {
    if let Some(len) = plain_mailbox_len(input)
        && let (mailbox, [b'>', rest @ ..]) = input.split_at(len)
    {
        return Ok((mailbox, true, rest));
    }
    let (mailbox, rest) = routed_mailbox(input)?;
    Ok((mailbox, mailbox.is_ascii(), rest))
}

/// The octets in front of number `at`, as bits.
fn bits_below(at: u32) -> u64 {
    (1 << at) - 1
}

/// Length of the mailbox at the front of `input` when it is one of the usual form: a Dot-string and a Domain, all
/// ASCII, which end within the window. `None` says nothing: the grammar decides.
///
/// All octets are classified at once, and the rules about dots and hyphens are about neighbouring bits. Within
/// the window no length limit can be passed.
fn plain_mailbox_len(input: &[u8]) -> Option<usize> {
    let octets = name_octets(input)?;
    let mut others = !octets.names;
    let mut at = others.trailing_zeros();
    // Not often: an atom may hold more than a name.
    while let Some(&octet) = input.get(at as usize)
        && octet.is_ascii()
        && CLASS[usize::from(octet)] & ATEXT != 0
        && others != 0
    {
        others &= others - 1;
        at = others.trailing_zeros();
    }
    if others == 0 || input.get(at as usize) != Some(&b'@') {
        return None;
    }
    others &= others - 1;
    let end = others.trailing_zeros();
    if others == 0
        || input
            .get(end as usize)
            .is_some_and(|octet| !octet.is_ascii())
    {
        return None;
    }
    // Each part begins behind a bound, or with the first octet, and ends before one; none is empty.
    let bounds = octets.dots & bits_below(end) | 1 << at | 1 << end;
    if bounds & (bounds << 1 | 1) != 0 {
        return None;
    }
    let hyphens = octets.hyphens & bits_below(end) & !bits_below(at);
    if hyphens & (bounds << 1 | bounds >> 1) != 0 {
        return None;
    }
    Some(end as usize)
}

/// Whether `name` is a Domain of ASCII octets, shorter than the window. False says nothing.
fn is_plain_domain(name: &[u8]) -> bool {
    if name.len() >= NAME_WINDOW_BYTES {
        return false;
    }
    let Some(octets) = name_octets(name) else {
        return false;
    };
    let end = name.len() as u32;
    let bounds = octets.dots | 1 << end;
    octets.names == bits_below(end)
        && bounds & (bounds << 1 | 1) == 0
        && octets.hyphens & (bounds << 1 | bounds >> 1 | 1) == 0
}

const _: () = assert!(NAME_WINDOW_BYTES <= LOCAL_PART_BYTES_MAX);
const _: () = assert!(NAME_WINDOW_BYTES <= LABEL_BYTES_MAX + 1);
const _: () = assert!(NAME_WINDOW_BYTES == u64::BITS as usize);

/// `[ A-d-l ":" ] Mailbox ">"`: the mailbox and what follows `>`.
fn routed_mailbox(input: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let start = source_route(input)?;
    let after = scan_mailbox(start)?;
    match after {
        [b'>', rest @ ..] => Ok((&start[..start.len() - after.len()], rest)),
        _ => Err(Fault::Malformed),
    }
}

/// What follows a Mailbox.
fn scan_mailbox(start: &[u8]) -> Result<&[u8], Fault> {
    let rest = match start.first() {
        Some(b'"') => quoted_string(start).ok_or(Fault::Malformed)?,
        _ => dot_string(start).ok_or(Fault::Malformed)?,
    };
    let local_part_len = start.len() - rest.len();
    let [b'@', host @ ..] = rest else {
        return Err(Fault::Malformed);
    };
    let after = match host.first() {
        Some(b'[') => literal(host).ok_or(Fault::Malformed)?,
        _ => domain(host)?,
    };
    if !is_text(&start[..start.len() - after.len()]) {
        return Err(Fault::Malformed);
    }
    if local_part_len > LOCAL_PART_BYTES_MAX || host.len() - after.len() > DOMAIN_BYTES_MAX {
        return Err(Fault::TooLong);
    }
    Ok(after)
}

/// What follows the source route `@a,@b:`, if there is one. RFC 5321 appendix C: it is accepted and
/// ignored.
fn source_route(input: &[u8]) -> Result<&[u8], Fault> {
    let mut rest = input;
    if rest.first() != Some(&b'@') {
        return Ok(rest);
    }
    loop {
        let [b'@', hop @ ..] = rest else {
            return Err(Fault::Malformed);
        };
        match domain(hop)? {
            [b',', next @ ..] => rest = next,
            [b':', mailbox @ ..] if is_text(&input[..input.len() - mailbox.len()]) => {
                return Ok(mailbox);
            }
            _ => return Err(Fault::Malformed),
        }
    }
}

/// What follows a Dot-string.
fn dot_string(input: &[u8]) -> Option<&[u8]> {
    let mut rest = input;
    loop {
        let (atom, after) = take(rest, ATEXT);
        if atom.is_empty() {
            return None;
        }
        match after {
            [b'.', next @ ..] => rest = next,
            _ => return Some(after),
        }
    }
}

/// What follows a Quoted-string.
fn quoted_string(input: &[u8]) -> Option<&[u8]> {
    let mut rest = input.get(1..)?;
    loop {
        match take(rest, QTEXT).1 {
            [b'"', after @ ..] => return Some(after),
            [b'\\', 32..=126, after @ ..] => rest = after,
            _ => return None,
        }
    }
}

/// What follows a Domain.
///
/// RFC 5321 4.1.2 does not permit the underscore; it is taken, because names with one are in use.
fn domain(input: &[u8]) -> Result<&[u8], Fault> {
    let mut rest = input;
    loop {
        let (label, after) = take(rest, LABEL);
        match label {
            [] | [b'-', ..] | [.., b'-'] => return Err(Fault::Malformed),
            _ if label.len() > LABEL_BYTES_MAX && label.is_ascii() => {
                return Err(if label.len() > DOMAIN_BYTES_MAX {
                    Fault::TooLong
                } else {
                    Fault::Malformed
                });
            }
            _ => {}
        }
        match after {
            [b'.', next @ ..] => rest = next,
            _ => return Ok(after),
        }
    }
}

/// What follows an address literal with its brackets (RFC 5321 4.1.3).
fn literal(input: &[u8]) -> Option<&[u8]> {
    let (content, rest) = take(input.get(1..)?, DCONTENT);
    let [b']', rest @ ..] = rest else {
        return None;
    };
    let valid = match content.iter().position(|&octet| octet == b':') {
        None => is_ipv4(content),
        Some(colon) => {
            let (tag, address) = (&content[..colon], &content[colon + 1..]);
            if tag.eq_ignore_ascii_case(b"IPv6") {
                core::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
            } else {
                is_tag(tag) && !address.is_empty()
            }
        }
    };
    valid.then_some(rest)
}

/// Whether `text` is four numbers of one to three digits up to 255; RFC 5321 allows leading zeros.
fn is_ipv4(text: &[u8]) -> bool {
    text.split(|&octet| octet == b'.').all(is_snum)
        && text.iter().filter(|&&octet| octet == b'.').count() == 3
}

/// Whether `number` is a Snum.
fn is_snum(number: &[u8]) -> bool {
    matches!(number.len(), 1..=3)
        && number.iter().all(u8::is_ascii_digit)
        && number
            .iter()
            .fold(0, |value, octet| value * 10 + u32::from(octet - b'0'))
            <= 255
}

/// Whether `tag` is a Standardized-tag: letters, digits and hyphens, not ending in a hyphen.
fn is_tag(tag: &[u8]) -> bool {
    tag.last().is_some_and(u8::is_ascii_alphanumeric)
        && tag
            .iter()
            .all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-')
}

/// Whether `bytes` is ASCII or well-formed UTF-8 without C1 controls (RFC 6531 3.3: no control
/// characters).
fn is_text(bytes: &[u8]) -> bool {
    bytes.is_ascii()
        || core::str::from_utf8(bytes)
            .is_ok_and(|text| !text.chars().any(|c| ('\u{80}'..='\u{9f}').contains(&c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reverse(input: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Reply> {
        parse_reverse(input).map(|(path, rest)| (path.mailbox.to_vec(), rest.to_vec()))
    }

    #[test]
    fn mailboxes_that_follow_the_grammar_are_returned_as_given() {
        let long_local = "l".repeat(64);
        let label = "d".repeat(63);
        let domain_189 = format!("{label}.{label}.{}", "d".repeat(61));
        let domain_255 = format!("{label}.{label}.{label}.{label}");
        let path_256 = format!("{long_local}@{domain_189}");
        assert_eq!(path_256.len() + 2, 256);
        let longest = format!("{long_local}@{domain_255}");
        for mailbox in [
            "a@b",
            "first.last+tag@example.com",
            "!#$%&'*+-/=?^_`{|}~@example.com",
            "a@under_score.example",
            "a@_dmarc.example",
            "a@1.2.3.4",
            "a@xn--bcher-kva.example",
            "\"with space\"@example.com",
            "\"\"@example.com",
            "\"a>b@c\"@example.com",
            "\"a\\\"b\\\\c\\>\"@example.com",
            "a@[127.0.0.1]",
            "a@[127.000.000.001]",
            "a@[IPv6:::1]",
            "a@[ipv6:2001:db8::192.0.2.1]",
            "a@[X-tag:anything!]",
            "b\u{fc}cher@b\u{fc}cher.example",
            "\"\u{7528}\u{6237}\"@example.com",
            "\u{7528}\u{6237}@\u{4f8b}\u{3048}.\u{30c6}\u{30b9}\u{30c8}",
            &path_256,
            &longest,
        ] {
            let input = format!("<{mailbox}> SIZE=1");
            let ascii = mailbox.is_ascii();
            assert_eq!(
                parse_reverse(input.as_bytes()),
                Ok((
                    ReversePath {
                        mailbox: mailbox.as_bytes(),
                        ascii
                    },
                    &b" SIZE=1"[..]
                )),
                "{mailbox}"
            );
            let path = ForwardPath {
                mailbox: mailbox.as_bytes(),
                ascii,
                postmaster: false,
            };
            assert_eq!(
                parse_forward(input.as_bytes()),
                Ok((path, &b" SIZE=1"[..])),
                "{mailbox}"
            );
        }
    }

    #[test]
    fn malformed_paths_are_refused_with_the_reply_of_their_command() {
        for path in [
            &b"<"[..],
            b"<a",
            b"<a@",
            b"<a@>",
            b"<@>",
            b"<@b>",
            b"<a>",
            b"<a@b",
            b"<a@b@c>",
            b"<a b@c>",
            b"< a@b>",
            b"<a@b >",
            b"<.a@b>",
            b"<a.@b>",
            b"<a..c@b>",
            b"<a@b.>",
            b"<a@.b>",
            b"<a@b..c>",
            b"<a@-b>",
            b"<a@b->",
            b"<a@b!c>",
            b"<a@b/c>",
            b"<a\x07b@c>",
            b"<a\0@c>",
            b"<a@b\rc>",
            b"<\"a@b>",
            b"<\"a\"b@c>",
            b"<\"a\\\"@c>",
            b"<\"a\x01\"@c>",
            b"<\"a\\\x01\"@c>",
            b"<a@[999.1]>",
            b"<a@[1.2.3]>",
            b"<a@[1.2.3.4.5]>",
            b"<a@[1.2.3.256]>",
            b"<a@[1.2.3.0004]>",
            b"<a@[1.2.3.]>",
            b"<a@[99999999999999999999]>",
            b"<a@[1.2.3.99999999999999999999]>",
            b"<a@[1.2.3.4>",
            b"<a@[1.2.3.4]x>",
            b"<a@[]>",
            b"<a@[IPv6:1]>",
            b"<a@[IPv6:::1%eth0]>",
            b"<a@[tag:]>",
            b"<a@[tag-:x]>",
            b"<a@[tag:a[b]>",
            b"<@a:>",
            b"<@a>",
            b"<@a,b:c@d>",
            b"<@a,:c@d>",
            b"<@a\xff:c@d>",
            b"<a\xff@b>",
            b"<a@b\xc3>",
            b"<a@\xc2\x85b>",
            b"<a@\xed\xa0\x80>",
        ] {
            let shown = path.escape_ascii();
            assert_eq!(parse_reverse(path), Err(Reply::SenderMalformed), "{shown}");
            assert_eq!(
                parse_forward(path),
                Err(Reply::RecipientMalformed),
                "{shown}"
            );
        }
        let label = format!("<a@{}.example>", "d".repeat(64));
        assert_eq!(parse_reverse(label.as_bytes()), Err(Reply::SenderMalformed));
    }

    #[test]
    fn a_path_without_brackets_is_a_syntax_error_of_the_command() {
        for path in [&b""[..], b"a@b", b"a@b>", b">", b"\"<\"@b"] {
            assert_eq!(parse_reverse(path), Err(Reply::MailSyntax));
            assert_eq!(parse_forward(path), Err(Reply::RcptSyntax));
        }
    }

    #[test]
    fn local_parts_over_64_and_domains_over_255_octets_are_too_long() {
        let label = "d".repeat(63);
        let long_domain = format!("{label}.{label}.{label}.{label}.d");
        for mailbox in [
            format!("{}@b", "l".repeat(65)),
            format!("{}@b", "l".repeat(300)),
            format!("\"{}\"@b", "l".repeat(63)),
            format!("a@{long_domain}"),
            format!("a@{}", "d".repeat(256)),
            format!("a@[x:{}]", "d".repeat(252)),
        ] {
            let path = format!("<{mailbox}>");
            assert_eq!(
                parse_reverse(path.as_bytes()),
                Err(Reply::PathTooLong),
                "{mailbox}"
            );
            assert_eq!(
                parse_forward(path.as_bytes()),
                Err(Reply::PathTooLong),
                "{mailbox}"
            );
        }
    }

    #[test]
    fn source_routes_are_dropped() {
        let dropped = Ok((b"user@domain".to_vec(), b"".to_vec()));
        assert_eq!(reverse(b"<@a.example:user@domain>"), dropped);
        assert_eq!(reverse(b"<@a.example,@b.example:user@domain>"), dropped);
    }

    #[test]
    fn the_null_path_is_a_sender_and_no_recipient() {
        let null = ReversePath {
            mailbox: b"",
            ascii: true,
        };
        assert_eq!(parse_reverse(b"<> X"), Ok((null, &b" X"[..])));
        assert_eq!(parse_forward(b"<>"), Err(Reply::RecipientMalformed));
    }

    #[test]
    fn postmaster_needs_no_domain_as_recipient_only() {
        for name in ["postmaster", "Postmaster", "POSTMASTER"] {
            let path = format!("<{name}>rest");
            let expected = ForwardPath {
                mailbox: name.as_bytes(),
                ascii: true,
                postmaster: true,
            };
            assert_eq!(parse_forward(path.as_bytes()), Ok((expected, &b"rest"[..])));
            assert_eq!(parse_reverse(path.as_bytes()), Err(Reply::SenderMalformed));
        }
        let with_domain = parse_forward(b"<Postmaster@b>").map(|(path, _)| path.postmaster);
        assert_eq!(with_domain, Ok(false));
        assert_eq!(
            parse_forward(b"<postmasters>"),
            Err(Reply::RecipientMalformed)
        );
        assert_eq!(
            parse_forward(b"<@a:postmaster>"),
            Err(Reply::RecipientMalformed)
        );
    }

    #[test]
    fn domains_and_literals_of_helo_are_checked_whole() {
        for name in [
            "b",
            "a.b",
            "my_pc",
            "[127.0.0.1]",
            "[IPv6:::1]",
            "b\u{fc}cher.example",
        ] {
            assert!(is_domain_or_literal(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "a b",
            "a.",
            "[127.0.0.1]x",
            "[",
            "[1]",
            "a@b",
            "-",
            "a\u{85}b",
        ] {
            assert!(!is_domain_or_literal(name.as_bytes()), "{name}");
        }
        assert!(!is_domain_or_literal(b"\xff"));
    }

    /// What the grammar says alone, and what is said first where that is quicker.
    fn both_ways(input: &[u8]) {
        let (slow, quick) = (
            scan_mailbox(input).map(|after| input.len() - after.len()),
            plain_mailbox_len(input),
        );
        if let Some(len) = quick {
            assert_eq!(slow, Ok(len), "{}", input.escape_ascii());
            assert!(input[..len].is_ascii());
        }
        assert_eq!(
            is_mailbox(input),
            slow == Ok(input.len()),
            "{}",
            input.escape_ascii()
        );
        let routed =
            routed_mailbox(input).map(|(mailbox, rest)| (mailbox, mailbox.is_ascii(), rest));
        assert_eq!(bracketed_mailbox(input), routed, "{}", input.escape_ascii());
        assert_eq!(
            is_domain_or_literal(input),
            follows_domain_grammar(input),
            "{}",
            input.escape_ascii()
        );
    }

    #[test]
    fn what_is_said_without_the_grammar_is_what_the_grammar_says() {
        let mut state = 11_u64;
        let mut next = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        // From usual addresses with one octet changed to any mixture of what has a meaning.
        const MIXTURE: &[u8] = b"aZ09..--__@@>><+=[]\"\\ :,;\t\0\x7f\xc3\xbc\xff";
        let usual = [
            "a@b>",
            "someone.with.a.name@client.example.org> SIZE=1024",
            "someone+else=there@server-1.example>",
            "x@a.b-c.d",
            "localhost",
            "mail-1.client.example.org",
        ];
        for round in 0..200_000 {
            let mut input = match round % 3 {
                0 => usual[next(usual.len() as u64) as usize].as_bytes().to_vec(),
                1 => {
                    // Around the end of the window.
                    let local = "l".repeat(1 + next(66) as usize);
                    let domain = "d".repeat(1 + next(70) as usize);
                    format!("{local}@{domain}.e>").into_bytes()
                }
                _ => {
                    let len = next(80) as usize;
                    let few = 1 + next(MIXTURE.len() as u64);
                    (0..len).map(|_| MIXTURE[next(few) as usize]).collect()
                }
            };
            for _ in 0..next(3) {
                if input.is_empty() {
                    break;
                }
                let at = next(input.len() as u64) as usize;
                match next(3) {
                    0 => input[at] = MIXTURE[next(MIXTURE.len() as u64) as usize],
                    1 => input.insert(at, MIXTURE[next(MIXTURE.len() as u64) as usize]),
                    _ => drop(input.remove(at)),
                }
            }
            both_ways(&input);
        }
        for len in 0..=70 {
            both_ways("n".repeat(len).as_bytes());
            both_ways(format!("n@{}", "n".repeat(len)).as_bytes());
            both_ways(format!("{}@n>", "n".repeat(len)).as_bytes());
        }
    }

    #[test]
    fn usual_addresses_need_no_grammar_where_there_are_vectors() {
        if name_octets(b"").is_none() {
            return;
        }
        for mailbox in ["a@b", "first.last+tag@mail-1.example.com", "x_y=z@1.2"] {
            let input = format!("{mailbox}> SIZE=1");
            assert_eq!(plain_mailbox_len(input.as_bytes()), Some(mailbox.len()));
            assert_eq!(plain_mailbox_len(mailbox.as_bytes()), Some(mailbox.len()));
        }
        assert!(is_plain_domain(b"mail-1.example.com"));
    }
}
