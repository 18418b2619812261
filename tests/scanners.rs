//! What public scanners for SMTP smuggling send, and what they conclude: smtpsmug (hannob/smtpsmug) and
//! SMTP-Smuggling-Tools (The-Login), rebuilt from what they do. `docs/smtp-conformance.md` has their verdicts.
//!
//! A scanner sends a message that ends with something that is not CRLF "." CRLF, and waits: a 250 means that the server
//! took it for the end. When nothing comes it sends more text and the real end, and looks whether that is accepted.

mod session_support;
#[allow(dead_code, reason = "each test crate uses a part of it")]
#[path = "support/server.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls_support;

use ringmx::ringlog::writer::Survive;
use ringmx::server::listener::TlsMode;
use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::session::{Context, ContextOptions};
use session_support::{Connection, Cut, Manner, Recorder, pieces};
use support::{Rig, options};
use tls_support::{Identity, TlsClient, security};

/// The ends of both scanners, by the names that smtpsmug gives them where it has one.
const ENDS: &[(&str, &[u8])] = &[
    ("lflf", b"\n.\n"),
    ("crcr", b"\r.\r"),
    ("crlf", b"\r.\n"),
    ("lfcr", b"\n.\r"),
    ("lfcrlf", b"\n.\r\n"),
    ("crlflf", b"\r\n.\n"),
    ("crcrlf", b"\r.\r\n"),
    ("crlfcr", b"\r\n.\r"),
    ("nullbefore", b"\r\n\0.\r\n"),
    ("nullafter", b"\r\n.\0\r\n"),
    ("(The-Login) CRLF.CRCRLF", b"\r\n.\r\r\n"),
];

const OPENING: &[u8] = b"EHLO client.example\r\nMAIL FROM:<alice@example.org>\r\n\
    RCPT TO:<bob@example.org>\r\nDATA\r\n";
const TEXT: &[u8] = b"Subject: Hello World\r\n\r\nThis is a test.\r\n";
const BEHIND: &[u8] = b"This is after a bad end.\r\n\r\n.\r\n";
const REFUSED: &str =
    "550 5.6.0 Content holds a bare CR, bare LF or NUL; lines must end in CRLF\r\n";
const STORED: &str = "250 2.0.0 Ok: stored\r\n";

/// What a scanner concludes.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The odd end was taken for the end of the message: vulnerable.
    TakenForTheEnd,
    /// It was not; the whole message was refused behind its real end.
    Refused,
    /// It was not; the whole message was accepted.
    PartOfTheMessage,
}

fn context(bare_newlines: BareNewlines) -> Context {
    Context::new(ContextOptions {
        server_name: "mx.example.org".to_owned(),
        bare_newlines,
        ..ContextOptions::default()
    })
    .expect("options")
}

/// What a scanner sees of a session; and the messages that were stored.
fn scan(ctx: &Context, end: &[u8], cut: Cut, manner: Manner) -> (Verdict, Vec<Vec<u8>>) {
    let mut connection = Connection::new(ctx, Recorder::new(manner, 7));
    let mut say = |octets: &[u8]| {
        for piece in pieces(octets, cut) {
            connection.read(piece);
        }
        String::from_utf8(std::mem::take(&mut connection.out.wire)).expect("ASCII")
    };
    assert!(say(OPENING).ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"));
    assert_eq!(say(TEXT), "");
    let verdict = match say(end).as_str() {
        "" => match say(BEHIND).as_str() {
            REFUSED => Verdict::Refused,
            STORED => Verdict::PartOfTheMessage,
            other => panic!("{}: {other:?}", end.escape_ascii()),
        },
        _ => Verdict::TakenForTheEnd,
    };
    assert_eq!(say(b"NOOP\r\n"), "250 2.0.0 Ok\r\n", "the session goes on");
    let stored = connection.out.stored.into_iter();
    (verdict, stored.map(|message| message.body).collect())
}

#[test]
fn no_end_of_the_scanners_is_taken_for_one_in_any_mode_however_it_is_cut() {
    for (mode, expected) in [
        (BareNewlines::Reject, Verdict::Refused),
        (BareNewlines::Normalize, Verdict::PartOfTheMessage),
        (BareNewlines::Keep, Verdict::PartOfTheMessage),
    ] {
        let ctx = context(mode);
        for (name, end) in ENDS {
            let content = [TEXT, end, &BEHIND[..BEHIND.len() - 3]].concat();
            for cut in [Cut::Whole, Cut::Octets, Cut::Random(3)] {
                for manner in session_support::manners() {
                    let (verdict, stored) = scan(&ctx, end, cut, manner);
                    assert_eq!(verdict, expected, "{mode:?} {name} {cut:?} {manner:?}");
                    match mode {
                        BareNewlines::Reject => assert_eq!(stored.len(), 0, "{name}"),
                        // One message, with every line of the scanner in it; nothing follows from its dot.
                        BareNewlines::Normalize => {
                            assert_eq!(stored, [normalized(&content)], "{name}");
                        }
                        BareNewlines::Keep => assert_eq!(stored, [unstuffed(&content)], "{name}"),
                    }
                }
            }
        }
    }
}

/// The content with the dot removed that stands behind CRLF, as transparency has it (RFC 5321 4.5.2).
fn unstuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, octet) in content.iter().enumerate() {
        let begins_a_line = content[..at].ends_with(b"\r\n");
        if !(begins_a_line && *octet == b'.') {
            out.push(*octet);
        }
    }
    out
}

/// The same with CRLF for each bare CR and bare LF; the dot behind one of these stays.
fn normalized(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let content = unstuffed(content);
    for (at, octet) in content.iter().enumerate() {
        let follows_cr = at > 0 && content[at - 1] == b'\r';
        let precedes_lf = content.get(at + 1) == Some(&b'\n');
        match octet {
            b'\n' if !follows_cr => out.extend_from_slice(b"\r\n"),
            b'\r' if !precedes_lf => out.extend_from_slice(b"\r\n"),
            _ => out.push(*octet),
        }
    }
    out
}

/// smtpsmug asks whether a server takes a second message that did not wait for anything. It does: PIPELINING is
/// offered, and what is behind the real end of a message is its sender's. Nobody can have it say something that he did
/// not send.
#[test]
fn a_second_message_that_waits_for_nothing_is_a_message_of_its_own() {
    let ctx = context(BareNewlines::Reject);
    let second = [
        &OPENING[b"EHLO client.example\r\n".len()..],
        b"two\r\n.\r\n",
    ]
    .concat();
    let input = [OPENING, TEXT, b".\r\n", &second].concat();
    let mut connection = Connection::new(&ctx, Recorder::new(Manner::default(), 7));
    connection.read(&input);
    let bodies: Vec<&[u8]> = connection
        .out
        .stored
        .iter()
        .map(|message| &message.body[..])
        .collect();
    assert_eq!(bodies, [TEXT, b"two\r\n"]);
}

/// Some servers behave otherwise under TLS: another loop reads there.
#[test]
fn under_tls_the_verdicts_are_the_same() {
    let identity = Identity::new(&["mx.example"]);
    for cut in [tls_support::Cut::Whole, tls_support::Cut::Octets] {
        let mut rig = Rig::with_listener(
            options(),
            Survive::Power,
            16 << 20,
            TlsMode::Implicit,
            Offered::NONE,
        );
        rig.syncs.at_once.set(true);
        rig.server.secure(security(&[&identity]));
        for (name, end) in ENDS {
            let mut client = TlsClient::new(rig.connect(), &identity, cut);
            client.shake_hands(&mut rig);
            let mut say = |octets: &[u8]| {
                client.say(&mut rig, std::str::from_utf8(octets).expect("ASCII"));
                rig.turn();
                client.hear(&mut rig)
            };
            assert!(say(OPENING).ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"));
            assert_eq!(say(TEXT), "");
            assert_eq!(say(end), "", "{name} was taken for the end");
            assert_eq!(say(BEHIND), REFUSED, "{name}");
            assert_eq!(say(b"NOOP\r\n"), "250 2.0.0 Ok\r\n");
        }
        assert_eq!(rig.server.shared.metrics.messages_accepted, 0);
    }
}
