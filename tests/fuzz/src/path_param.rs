//! Paths, parameters and the trace field built from them: no panic, and what is accepted is safe.
//!
//! The first byte of the input is the set of offered extensions.

use ringmx::smtp::parameter::{self, Offered};
use ringmx::smtp::path;
use ringmx::smtp::reply::Reply;
use ringmx::smtp::trace::{self, Date, Protocol, TraceArguments};

/// Tokens of paths and parameters.
pub const DICTIONARY: &[&[u8]] = &[
    b"<",
    b">",
    b"<>",
    b"@",
    b".",
    b",",
    b":",
    b"\"",
    b"\\",
    b"[",
    b"]",
    b"-",
    b"_",
    b"a",
    b"b.c",
    b"<a@b>",
    b"<\"a b\"@c>",
    b"<@r,@s:a@b>",
    b"[127.0.0.1]",
    b"[IPv6:::1]",
    b"[x:y]",
    b"<Postmaster>",
    b" ",
    b"SIZE=",
    b"BODY=",
    b"7BIT",
    b"8BITMIME",
    b"BINARYMIME",
    b"SMTPUTF8",
    b"RET=",
    b"FULL",
    b"HDRS",
    b"ENVID=",
    b"NOTIFY=",
    b"NEVER",
    b"SUCCESS,DELAY",
    b"ORCPT=",
    b"rfc822;",
    b"utf-8;",
    b"\\x{FC}",
    b"+2B",
    b"+",
    b"=",
    b"99999999999999999999",
    b"\xc3\xbc",
    b"\xff",
    b"\xc2\x85",
    b"\0",
    b"\r\n",
];

/// Parses one input as path and parameters of MAIL and of RCPT.
pub fn run(bytes: &[u8]) {
    let [set, input @ ..] = bytes else {
        return;
    };
    let offered = [
        Offered::SIZE,
        Offered::EIGHT_BIT_MIME,
        Offered::BINARY_MIME,
        Offered::SMTPUTF8,
        Offered::DSN,
    ]
    .iter()
    .enumerate()
    .filter(|(bit, _)| set >> bit & 1 == 1)
    .fold(Offered::NONE, |all, (_, &one)| all.with(one));

    let reverse = path::parse_reverse(input);
    let forward = path::parse_forward(input);
    if let Ok((path, rest)) = reverse {
        assert!(input.ends_with(rest));
        assert_mailbox(path.mailbox, path.ascii);
        assert_mail_parameters(rest, offered);
    }
    match forward {
        Ok((path, rest)) => {
            assert!(input.ends_with(rest));
            assert_mailbox(path.mailbox, path.ascii);
            assert!(path::is_forward_mailbox(path.mailbox));
            assert_rcpt_parameters(rest, offered);
            // What one parser takes the other takes too, but for the null path and Postmaster.
            if !path.postmaster {
                let (mailbox, rest_of_mail) = reverse
                    .map(|(path, rest)| (path.mailbox, rest))
                    .expect("a mailbox");
                assert_eq!((mailbox, rest_of_mail), (path.mailbox, rest));
            }
        }
        Err(reply) => assert!(matches!(
            reply,
            Reply::RcptSyntax | Reply::RecipientMalformed | Reply::PathTooLong
        )),
    }
    assert_mail_parameters(input, offered);
    assert_rcpt_parameters(input, offered);
    assert_trace(input);
}

/// Checks what every accepted mailbox promises.
pub fn assert_mailbox(mailbox: &[u8], ascii: bool) {
    let text = core::str::from_utf8(mailbox).expect("a mailbox is UTF-8");
    assert!(!text.chars().any(char::is_control));
    assert_eq!(text.is_ascii(), ascii);
    assert!(mailbox.len() <= 64 + 1 + 255);
}

fn assert_mail_parameters(parameters: &[u8], offered: Offered) {
    let Ok(found) = parameter::parse_mail(parameters, offered) else {
        return;
    };
    assert!(found.size.is_none() || offered.has(Offered::SIZE));
    assert!(
        found.body.is_none() || offered.has_any(Offered::EIGHT_BIT_MIME.with(Offered::BINARY_MIME))
    );
    assert!(!found.smtputf8 || offered.has(Offered::SMTPUTF8));
    assert!((found.ret.is_none() && found.envid.is_none()) || offered.has(Offered::DSN));
    assert!(
        found
            .envid
            .is_none_or(|envid| envid.iter().all(u8::is_ascii_graphic))
    );
}

fn assert_rcpt_parameters(parameters: &[u8], offered: Offered) {
    let Ok(found) = parameter::parse_rcpt(parameters, offered) else {
        return;
    };
    assert!((found.notify.is_none() && found.orcpt.is_none()) || offered.has(Offered::DSN));
    if let Some(orcpt) = found.orcpt {
        let text = core::str::from_utf8(orcpt).expect("ORCPT is UTF-8");
        assert!(text.is_ascii() || offered.has(Offered::SMTPUTF8));
        assert!(!text.contains([' ', '=']) && !text.chars().any(|c| c.is_ascii_control()));
    }
}

/// Whatever the client said, the field is three to six lines that fold into one field.
fn assert_trace(bytes: &[u8]) {
    let (helo, recipient) = bytes.split_at(bytes.len() / 2);
    for protocol in [Protocol::Smtp, Protocol::Utf8Smtp] {
        for (helo, recipient) in [(helo, recipient), (bytes, bytes)] {
            let trace = trace::build(&TraceArguments {
                helo,
                client: core::net::Ipv4Addr::LOCALHOST.into(),
                server_name: "mx.example",
                protocol,
                recipient: Some(recipient),
                priority: None,
                tls_cipher: None,
                date: Date::at(0),
            });
            let text = core::str::from_utf8(trace.bytes()).expect("the field is UTF-8");
            assert!(text[..trace.id_at()].ends_with("id "));
            assert!(text.is_ascii() || protocol == Protocol::Utf8Smtp);
            let field = text.strip_suffix("\r\n").expect("the field ends in CRLF");
            let mut lines = field.split("\r\n");
            assert!(
                lines
                    .next()
                    .is_some_and(|line| line.starts_with("Received: from"))
            );
            for line in lines {
                let line = line
                    .strip_prefix('\t')
                    .expect("a folded line begins with a tab");
                assert!(line.len() < 998 && !line.chars().any(|c| c.is_ascii_control()));
            }
        }
    }
}
