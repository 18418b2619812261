//! Command lines: no panic, and what is accepted holds what the parser promises.

use ringmx::smtp::command::{self, Command};
use ringmx::smtp::sink::Verb;

/// Tokens of command lines.
pub const DICTIONARY: &[&[u8]] = &[
    b"HELO ",
    b"EHLO ",
    b"MAIL FROM:<",
    b"RCPT TO:<",
    b"DATA",
    b"BDAT ",
    b"RSET",
    b"NOOP",
    b"VRFY ",
    b"EXPN ",
    b"HELP",
    b"QUIT",
    b"STARTTLS",
    b"AUTH PLAIN ",
    b"ETRN ",
    b"GET / HTTP/1.1",
    b" LAST",
    b"18446744073709551615",
    b"<>",
    b">",
    b" ",
    b"\t",
    b"@",
    b"\"",
    b"\\",
    b"[127.0.0.1]",
    b"[IPv6:::1]",
    b"Postmaster",
    b"\0",
    b"\r",
    b"\n",
    b"\xc3\xbc",
    b"\xff",
];

/// Parses one line.
pub fn run(line: &[u8]) {
    let parsed = command::parse(line);
    // Blanks at the end change nothing.
    let padded = [line, b" \t"].concat();
    assert_eq!(command::parse(&padded), parsed);
    let Ok(command) = parsed.command else {
        return;
    };
    assert!(
        !line
            .iter()
            .any(|&octet| octet.is_ascii_control() && octet != b'\t')
    );
    let verb = match command {
        Command::Helo(name) => {
            assert!(name.is_ascii() && (1..=255).contains(&name.len()));
            Verb::Helo
        }
        Command::Ehlo(name) => {
            assert!(core::str::from_utf8(name).is_ok() && (1..=255).contains(&name.len()));
            Verb::Ehlo
        }
        Command::Mail { path, .. } => {
            super::path_param::assert_mailbox(path.mailbox, path.ascii);
            Verb::Mail
        }
        Command::Rcpt { path, .. } => {
            assert!(!path.mailbox.is_empty());
            super::path_param::assert_mailbox(path.mailbox, path.ascii);
            Verb::Rcpt
        }
        Command::Bdat { size, .. } => {
            let digits: Vec<u8> = line
                .iter()
                .copied()
                .skip_while(|octet| !octet.is_ascii_digit())
                .take_while(u8::is_ascii_digit)
                .collect();
            let text = String::from_utf8(digits).expect("digits are ASCII");
            assert_eq!(text.parse(), Ok(size));
            Verb::Bdat
        }
        Command::Data => Verb::Data,
        Command::Rset => Verb::Rset,
        Command::Noop => Verb::Noop,
        Command::Vrfy(argument) => {
            assert!(!argument.is_empty());
            Verb::Vrfy
        }
        Command::Expn(argument) => {
            assert!(!argument.is_empty());
            Verb::Expn
        }
        Command::Help(_) => Verb::Help,
        Command::Quit => Verb::Quit,
        Command::StartTls => Verb::StartTls,
        Command::Auth(argument) => {
            assert!(!argument.is_empty());
            Verb::Auth
        }
        Command::Lhlo(name) => {
            assert!(core::str::from_utf8(name).is_ok() && (1..=255).contains(&name.len()));
            Verb::Lhlo
        }
        Command::Etrn(node) => {
            assert!(!node.is_empty() && node.iter().all(u8::is_ascii_graphic));
            Verb::Etrn
        }
        Command::Xclient(argument) => {
            assert!(!argument.is_empty());
            Verb::Xclient
        }
        Command::Xforward(argument) => {
            assert!(!argument.is_empty());
            Verb::Xforward
        }
        Command::NotImplemented => Verb::Other,
    };
    assert_eq!(parsed.verb, verb);
}
