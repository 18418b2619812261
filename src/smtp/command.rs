//! One command line -> its command and arguments, or the reply that refuses it (RFC 5321 4.1.1).
//!
//! Promises: no state, no allocation, work proportional to the line; blanks at the end of a line
//! are ignored (RFC 5321 4.1.1: "tolerate trailing white space"); no control octet but a tab that
//! separates passes.
//! Does not: know which commands are in order or offered, or parse parameters (see `parameter`).

use super::path::{self, ForwardPath, ReversePath};
use super::reply::Reply;
use super::sink::Verb;
use crate::sys::scan::has_controls;

/// A command with its arguments, borrowed from its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO with its domain or address literal.
    Helo(&'a [u8]),
    /// EHLO with its domain or address literal.
    Ehlo(&'a [u8]),
    /// LHLO with its domain or address literal (RFC 2033 4.1).
    Lhlo(&'a [u8]),
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
    /// ETRN with its node (RFC 1985): a domain, `@` and a domain, or `#` and the name of a queue.
    Etrn(&'a [u8]),
    /// XCLIENT with its attributes, as Postfix has it.
    Xclient(&'a [u8]),
    /// XFORWARD with its attributes, as Postfix has it.
    Xforward(&'a [u8]),
    /// TURN, SEND, SOML or SAML: known and not provided.
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
///
/// # Errors
/// In [`Parsed::command`]: [`Reply::CommandUnknown`] for an unknown verb and an empty line,
/// [`Reply::LineHasControls`] for a control octet anywhere, [`Reply::NotSmtp`] for an HTTP request
/// line, otherwise what the command's own syntax demands. After [`Reply::BdatSyntax`] nobody can
/// know how many octets of chunk follow; they are read as commands.
pub fn parse(line: &[u8]) -> Parsed<'_> {
    let line = trim(line);
    let (verb, arguments) = split_word(line);
    let (verb, command) = match recognize(verb) {
        Some(recognized) => recognized,
        None if is_http(verb, arguments) => return refused(Reply::NotSmtp),
        None if has_controls(line) => return refused(Reply::LineHasControls),
        None => return refused(Reply::CommandUnknown),
    };
    if has_controls(arguments) {
        return Parsed {
            verb,
            command: Err(Reply::LineHasControls),
        };
    }
    Parsed {
        verb,
        command: command(arguments),
    }
}

/// Parses the arguments of one command; blanks around them are removed.
type Arguments = for<'a> fn(&'a [u8]) -> Result<Command<'a>, Reply>;

/// The verb's name for counters and the parser of its arguments.
fn recognize(word: &[u8]) -> Option<(Verb, Arguments)> {
    let upper = |octet: &u8| octet.to_ascii_uppercase();
    if let [a, b, c, d] = word {
        return Some(match &[upper(a), upper(b), upper(c), upper(d)] {
            b"MAIL" => (Verb::Mail, mail),
            b"RCPT" => (Verb::Rcpt, rcpt),
            b"DATA" => (Verb::Data, |arguments| {
                without_argument(arguments, Command::Data)
            }),
            b"BDAT" => (Verb::Bdat, bdat),
            b"EHLO" => (Verb::Ehlo, ehlo),
            b"HELO" => (Verb::Helo, helo),
            b"RSET" => (Verb::Rset, |arguments| {
                without_argument(arguments, Command::Rset)
            }),
            b"NOOP" => (Verb::Noop, |_| Ok(Command::Noop)),
            b"QUIT" => (Verb::Quit, |arguments| {
                without_argument(arguments, Command::Quit)
            }),
            b"VRFY" => (Verb::Vrfy, |arguments| {
                with_argument(arguments, Command::Vrfy)
            }),
            b"EXPN" => (Verb::Expn, |arguments| {
                with_argument(arguments, Command::Expn)
            }),
            b"HELP" => (Verb::Help, |arguments| Ok(Command::Help(arguments))),
            b"AUTH" => (Verb::Auth, |arguments| {
                with_argument(arguments, Command::Auth)
            }),
            b"LHLO" => (Verb::Lhlo, |arguments| {
                ehlo(arguments).map(|command| match command {
                    Command::Ehlo(name) => Command::Lhlo(name),
                    other => other,
                })
            }),
            b"ETRN" => (Verb::Etrn, etrn),
            // RFC 5321 F.1, F.6: known, so 502 and not 500.
            b"TURN" | b"SEND" | b"SOML" | b"SAML" => (Verb::Other, |_| Ok(Command::NotImplemented)),
            _ => return None,
        });
    }
    let mut room = [0; 8];
    let upper = room.get_mut(..word.len())?;
    upper.copy_from_slice(word);
    upper.make_ascii_uppercase();
    Some(match &*upper {
        b"STARTTLS" => (Verb::StartTls, |arguments| {
            without_argument(arguments, Command::StartTls)
        }),
        b"XCLIENT" => (Verb::Xclient, |arguments| {
            with_argument(arguments, Command::Xclient)
        }),
        b"XFORWARD" => (Verb::Xforward, |arguments| {
            with_argument(arguments, Command::Xforward)
        }),
        _ => return None,
    })
}

fn refused(reply: Reply) -> Parsed<'static> {
    Parsed {
        verb: Verb::Other,
        command: Err(reply),
    }
}

fn without_argument<'a>(arguments: &[u8], command: Command<'a>) -> Result<Command<'a>, Reply> {
    if arguments.is_empty() {
        Ok(command)
    } else {
        Err(Reply::NoArgumentAllowed)
    }
}

fn with_argument<'a>(
    arguments: &'a [u8],
    command: fn(&'a [u8]) -> Command<'a>,
) -> Result<Command<'a>, Reply> {
    if arguments.is_empty() {
        Err(Reply::ArgumentNeeded)
    } else {
        Ok(command(arguments))
    }
}

/// RFC 5321 4.1.1.1: one domain; a literal is common with HELO too. ASCII only, SMTPUTF8 needs
/// EHLO.
fn helo(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    if arguments.is_ascii() && path::is_domain_or_literal(arguments) {
        Ok(Command::Helo(arguments))
    } else {
        Err(Reply::HeloSyntax)
    }
}

/// RFC 5321 4.1.1.1 and RFC 6531 3.7.1: one domain, U-labels included, or address literal.
fn ehlo(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    if path::is_domain_or_literal(arguments) {
        Ok(Command::Ehlo(arguments))
    } else {
        Err(Reply::HeloSyntax)
    }
}

/// RFC 1985 5: a domain of at least two labels, the same behind `@`, or the name of a queue behind `#`.
fn etrn(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    let is_valid = match arguments {
        [] => return Err(Reply::ArgumentNeeded),
        [b'#', queue @ ..] => !queue.is_empty() && queue.iter().all(u8::is_ascii_graphic),
        [b'@', domain @ ..] | domain => {
            domain.is_ascii()
                && domain.first() != Some(&b'[')
                && domain.contains(&b'.')
                && path::is_domain_or_literal(domain)
        }
    };
    if is_valid {
        Ok(Command::Etrn(arguments))
    } else {
        Err(Reply::EtrnSyntax)
    }
}

fn mail(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    let input = after_keyword(arguments, b"FROM:").ok_or(Reply::MailSyntax)?;
    let (path, rest) = path::parse_reverse(input)?;
    let parameters = parameters(rest).ok_or(Reply::MailSyntax)?;
    Ok(Command::Mail { path, parameters })
}

fn rcpt(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    let input = after_keyword(arguments, b"TO:").ok_or(Reply::RcptSyntax)?;
    let (path, rest) = path::parse_forward(input)?;
    let parameters = parameters(rest).ok_or(Reply::RcptSyntax)?;
    Ok(Command::Rcpt { path, parameters })
}

/// What follows `FROM:` or `TO:`. RFC 5321 3.3 allows no blank behind the colon; it is tolerated,
/// because so many clients send one.
fn after_keyword<'a>(arguments: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (given, rest) = arguments.split_at_checked(keyword.len())?;
    given
        .eq_ignore_ascii_case(keyword)
        .then(|| trim_start(rest))
}

/// The parameters behind a path, or `None` when something else stands there.
fn parameters(rest: &[u8]) -> Option<&[u8]> {
    match rest.first() {
        None => Some(rest),
        Some(&octet) if is_blank(octet) => Some(trim_start(rest)),
        Some(_) => None,
    }
}

/// RFC 3030 2: `BDAT` size `[LAST]`, and nothing else.
fn bdat(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    let (size, rest) = split_word(arguments);
    let size = decimal(size).ok_or(Reply::BdatSyntax)?;
    let last = match rest {
        [] => false,
        _ if rest.eq_ignore_ascii_case(b"LAST") => true,
        _ => return Err(Reply::BdatSyntax),
    };
    Ok(Command::Bdat { size, last })
}

/// 1 to 20 digits as a number; `None` when it is anything else or does not fit.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > DECIMAL_DIGITS_MAX {
        return None;
    }
    digits.iter().try_fold(0u64, |value, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Digits of a chunk-size; u64 needs no more.
const DECIMAL_DIGITS_MAX: usize = 20;

/// Methods of HTTP (RFC 9110 9.3, RFC 5789, RFC 9113 3.4).
const HTTP_METHODS: [&[u8]; 10] = [
    b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"DELETE", b"TRACE", b"PATCH", b"PRI",
];

/// Whether the line is an HTTP request line. Answering 500 to each header field of a request that a
/// browser or a server-side request forgery aims at this port would let a later line be read as
/// SMTP.
fn is_http(verb: &[u8], arguments: &[u8]) -> bool {
    HTTP_METHODS.contains(&verb)
        && (arguments.starts_with(b"/") || arguments.windows(6).any(|window| window == b" HTTP/"))
}

fn is_blank(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|&&octet| is_blank(octet)).count();
    &bytes[blanks..]
}

fn trim(bytes: &[u8]) -> &[u8] {
    let blanks = bytes
        .iter()
        .rev()
        .take_while(|&&octet| is_blank(octet))
        .count();
    &bytes[..bytes.len() - blanks]
}

/// The octets up to the first blank, and what follows the blanks.
fn split_word(bytes: &[u8]) -> (&[u8], &[u8]) {
    let len = bytes
        .iter()
        .position(|&octet| is_blank(octet))
        .unwrap_or(bytes.len());
    (&bytes[..len], trim_start(&bytes[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(line: &[u8], verb: Verb, command: Command<'_>) {
        let parsed = Parsed {
            verb,
            command: Ok(command),
        };
        assert_eq!(parse(line), parsed, "{}", line.escape_ascii());
    }

    fn err(line: &[u8], verb: Verb, reply: Reply) {
        let parsed = Parsed {
            verb,
            command: Err(reply),
        };
        assert_eq!(parse(line), parsed, "{}", line.escape_ascii());
    }

    #[test]
    fn commands_are_taken_in_any_case_and_with_blanks_at_the_end() {
        for (name, verb, command) in [
            ("DATA", Verb::Data, Command::Data),
            ("RSET", Verb::Rset, Command::Rset),
            ("NOOP", Verb::Noop, Command::Noop),
            ("QUIT", Verb::Quit, Command::Quit),
            ("HELP", Verb::Help, Command::Help(b"")),
            ("STARTTLS", Verb::StartTls, Command::StartTls),
            (
                "BDAT 14 LAST",
                Verb::Bdat,
                Command::Bdat {
                    size: 14,
                    last: true,
                },
            ),
            ("TURN", Verb::Other, Command::NotImplemented),
            ("SEND FROM:<a@b>", Verb::Other, Command::NotImplemented),
            ("SOML FROM:<a@b>", Verb::Other, Command::NotImplemented),
            ("SAML FROM:<a@b>", Verb::Other, Command::NotImplemented),
            ("ETRN A.B", Verb::Etrn, Command::Etrn(b"A.B")),
        ] {
            if name.starts_with("ETRN") {
                // Its argument is kept as given.
                ok(name.as_bytes(), verb, command);
                continue;
            }
            let mixed: String = name
                .chars()
                .enumerate()
                .map(|(i, c)| {
                    if i % 2 == 0 {
                        c.to_ascii_lowercase()
                    } else {
                        c
                    }
                })
                .collect();
            for spelt in [name.to_owned(), name.to_ascii_lowercase(), mixed] {
                for end in ["", " ", "  ", "\t", " \t "] {
                    ok(format!("{spelt}{end}").as_bytes(), verb, command);
                }
            }
        }
    }

    #[test]
    fn mail_and_rcpt_give_path_and_parameters() {
        let path = ReversePath {
            mailbox: b"a@b",
            ascii: true,
        };
        for (line, parameters) in [
            (&b"MAIL FROM:<a@b>"[..], &b""[..]),
            (b"mail from:<a@b>", b""),
            (b"MAIL FROM:<a@b> ", b""),
            (b"MAIL FROM: <a@b>", b""),
            (b"MAIL  FROM:<a@b>\tX", b"X"),
            (b"MAIL FROM:<a@b> SIZE=1 BODY=7BIT ", b"SIZE=1 BODY=7BIT"),
        ] {
            ok(line, Verb::Mail, Command::Mail { path, parameters });
        }
        let null = ReversePath {
            mailbox: b"",
            ascii: true,
        };
        ok(
            b"MAIL FROM:<>",
            Verb::Mail,
            Command::Mail {
                path: null,
                parameters: b"",
            },
        );
        let path = ForwardPath {
            mailbox: b"\"a> b\"@c",
            ascii: true,
            postmaster: false,
        };
        ok(
            b"RCPT TO:<\"a> b\"@c> NOTIFY=NEVER",
            Verb::Rcpt,
            Command::Rcpt {
                path,
                parameters: b"NOTIFY=NEVER",
            },
        );
        let path = ForwardPath {
            mailbox: b"PostMaster",
            ascii: true,
            postmaster: true,
        };
        ok(
            b"rcpt to: <PostMaster>",
            Verb::Rcpt,
            Command::Rcpt {
                path,
                parameters: b"",
            },
        );
        let mailbox = "\u{fc}@b".as_bytes();
        let path = ReversePath {
            mailbox,
            ascii: false,
        };
        ok(
            "MAIL FROM:<\u{fc}@b> SMTPUTF8".as_bytes(),
            Verb::Mail,
            Command::Mail {
                path,
                parameters: b"SMTPUTF8",
            },
        );
    }

    #[test]
    fn mail_and_rcpt_without_their_syntax_are_refused() {
        for line in [
            &b"MAIL"[..],
            b"MAIL ",
            b"MAIL <a@b>",
            b"MAIL TO:<a@b>",
            b"MAIL FROM",
            b"MAIL FROM <a@b>",
            b"MAIL FROM :<a@b>",
            b"MAIL FROM:",
            b"MAIL FROM:a@b",
            b"MAIL FROM:<a@b>SIZE=1",
            b"MAIL FROM:<a@b>>",
        ] {
            err(line, Verb::Mail, Reply::MailSyntax);
        }
        for line in [
            &b"RCPT"[..],
            b"RCPT FROM:<a@b>",
            b"RCPT TO:",
            b"RCPT TO:a@b",
            b"RCPT TO:<a@b>x",
        ] {
            err(line, Verb::Rcpt, Reply::RcptSyntax);
        }
        err(b"MAIL FROM:<a@b", Verb::Mail, Reply::SenderMalformed);
        err(b"RCPT TO:<>", Verb::Rcpt, Reply::RecipientMalformed);
        let long = format!("RCPT TO:<{}@b>", "l".repeat(300));
        err(long.as_bytes(), Verb::Rcpt, Reply::PathTooLong);
    }

    #[test]
    fn helo_and_ehlo_take_one_domain_or_address_literal() {
        for name in ["host", "host.example", "my_pc", "[127.0.0.1]", "[IPv6:::1]"] {
            ok(
                format!("HELO {name}").as_bytes(),
                Verb::Helo,
                Command::Helo(name.as_bytes()),
            );
            ok(
                format!("ehlo  {name} ").as_bytes(),
                Verb::Ehlo,
                Command::Ehlo(name.as_bytes()),
            );
        }
        let long = "d.".repeat(128) + "d";
        for name in [
            "", " ", "a b", "a@b", "<a>", "[1.2]", "a\tb", &long, "-", "...",
        ] {
            err(
                format!("HELO {name}").as_bytes(),
                Verb::Helo,
                Reply::HeloSyntax,
            );
            err(
                format!("EHLO {name}").as_bytes(),
                Verb::Ehlo,
                Reply::HeloSyntax,
            );
        }
        let name = "b\u{fc}cher.example";
        ok(
            format!("EHLO {name}").as_bytes(),
            Verb::Ehlo,
            Command::Ehlo(name.as_bytes()),
        );
        err(
            format!("HELO {name}").as_bytes(),
            Verb::Helo,
            Reply::HeloSyntax,
        );
        err(b"EHLO b\xfccher", Verb::Ehlo, Reply::HeloSyntax);
    }

    #[test]
    fn etrn_takes_a_domain_a_subdomain_or_a_queue() {
        for node in ["uu.net", "@uu.net", "#uucp", "a.b.c.d"] {
            ok(
                format!("etrn {node}").as_bytes(),
                Verb::Etrn,
                Command::Etrn(node.as_bytes()),
            );
        }
        for node in [
            "localname",
            "@localname",
            "#",
            "@",
            "a b.c",
            "[127.0.0.1]",
            "a..b",
            "#a b",
            "\u{fc}.b",
        ] {
            err(
                format!("ETRN {node}").as_bytes(),
                Verb::Etrn,
                Reply::EtrnSyntax,
            );
        }
        err(b"ETRN", Verb::Etrn, Reply::ArgumentNeeded);
    }

    #[test]
    fn lhlo_xclient_and_xforward_are_commands_with_arguments() {
        ok(b"lhlo [IPv6:::1]", Verb::Lhlo, Command::Lhlo(b"[IPv6:::1]"));
        err(b"LHLO", Verb::Lhlo, Reply::HeloSyntax);
        ok(
            b"XCLIENT ADDR=::1",
            Verb::Xclient,
            Command::Xclient(b"ADDR=::1"),
        );
        ok(
            b"xforward NAME=a",
            Verb::Xforward,
            Command::Xforward(b"NAME=a"),
        );
        err(b"XCLIENT", Verb::Xclient, Reply::ArgumentNeeded);
        err(b"XFORWARD ", Verb::Xforward, Reply::ArgumentNeeded);
        err(b"XFORWARDS a", Verb::Other, Reply::CommandUnknown);
    }

    #[test]
    fn bdat_takes_digits_and_last_only() {
        ok(
            b"BDAT 0",
            Verb::Bdat,
            Command::Bdat {
                size: 0,
                last: false,
            },
        );
        ok(
            b"bdat 14 last",
            Verb::Bdat,
            Command::Bdat {
                size: 14,
                last: true,
            },
        );
        ok(
            b"BDAT  7\tLaSt",
            Verb::Bdat,
            Command::Bdat {
                size: 7,
                last: true,
            },
        );
        let largest = Command::Bdat {
            size: u64::MAX,
            last: false,
        };
        ok(b"BDAT 18446744073709551615", Verb::Bdat, largest);
        ok(
            b"BDAT 00000000000000000001",
            Verb::Bdat,
            Command::Bdat {
                size: 1,
                last: false,
            },
        );
        for arguments in [
            "",
            " ",
            " abc",
            " -1 LAST",
            " +1",
            " 5 FIRST",
            " 5 LAST LAST",
            " 5 LAST 1",
            " 5LAST",
            " 0x10",
            " 1.0",
            " LAST",
            " 18446744073709551616",
            " 99999999999999999999",
            " 000000000000000000001",
        ] {
            err(
                format!("BDAT{arguments}").as_bytes(),
                Verb::Bdat,
                Reply::BdatSyntax,
            );
        }
    }

    #[test]
    fn arguments_are_refused_or_demanded_as_the_command_has_it() {
        err(b"DATA x", Verb::Data, Reply::NoArgumentAllowed);
        err(b"RSET x", Verb::Rset, Reply::NoArgumentAllowed);
        err(b"QUIT now", Verb::Quit, Reply::NoArgumentAllowed);
        err(b"STARTTLS x", Verb::StartTls, Reply::NoArgumentAllowed);
        err(b"VRFY", Verb::Vrfy, Reply::ArgumentNeeded);
        err(b"EXPN  ", Verb::Expn, Reply::ArgumentNeeded);
        err(b"AUTH", Verb::Auth, Reply::ArgumentNeeded);
        ok(b"NOOP anything at all", Verb::Noop, Command::Noop);
        ok(
            b"VRFY a b SMTPUTF8",
            Verb::Vrfy,
            Command::Vrfy(b"a b SMTPUTF8"),
        );
        ok(b"EXPN list", Verb::Expn, Command::Expn(b"list"));
        ok(b"HELP MAIL", Verb::Help, Command::Help(b"MAIL"));
        ok(
            b"AUTH PLAIN AGEAYg==",
            Verb::Auth,
            Command::Auth(b"PLAIN AGEAYg=="),
        );
    }

    #[test]
    fn unknown_verbs_and_empty_lines_are_not_recognized() {
        for line in [
            &b""[..],
            b" ",
            b" NOOP",
            b"FAKE",
            b"NOO",
            b"NOOPS",
            b"MAILFROM:<a@b>",
            b"GET",
            b"GET it",
            b"get / HTTP/1.1",
            b"\xc3\xbc",
            b"\xff\xfe",
        ] {
            err(line, Verb::Other, Reply::CommandUnknown);
        }
    }

    #[test]
    fn control_octets_are_refused_wherever_they_stand() {
        for control in (0..32u8).chain([0x7f]).filter(|&control| control != b'\t') {
            for (before, after, verb) in [
                (&b"NOOP a"[..], &b"b"[..], Verb::Noop),
                (b"VRFY a", b"b", Verb::Vrfy),
                (b"MAIL FROM:<a", b"@b>", Verb::Mail),
                (b"MAIL FROM:<a@b> SIZE=1", b"", Verb::Mail),
                (b"EHLO a", b"", Verb::Ehlo),
                (b"QUIT ", b"", Verb::Quit),
                (b"QUIT", b"", Verb::Other),
                (b"", b"QUIT", Verb::Other),
                (b"TURN ", b"", Verb::Other),
            ] {
                let line = [before, &[control], after].concat();
                err(&line, verb, Reply::LineHasControls);
            }
        }
    }

    #[test]
    fn http_request_lines_are_not_smtp() {
        for line in [
            &b"GET / HTTP/1.1"[..],
            b"GET /",
            b"POST /a HTTP/1.0",
            b"HEAD / HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"PUT /x HTTP/1.1",
            b"CONNECT host:25 HTTP/1.1",
            b"GET http://host/ HTTP/1.1",
            b"PRI * HTTP/2.0",
        ] {
            err(line, Verb::Other, Reply::NotSmtp);
        }
    }
}
