//! Whole sessions: the same replies and the same messages, however the dialogue is cut and answered.
//!
//! The first byte chooses the server's settings, the second what goes wrong, the next eight seed the cuts. The
//! rest is what the client sends: as it stands, or, when the top bit of the first byte is set, one byte for
//! each part of a dialogue.

use super::session_support::{Connection, Cut, Manner, Random, Recorder, Stored, WALL_NS, pieces};
use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::{CloseReason, Verb, Verdict};

/// Largest message that the sessions take, octets.
const MESSAGE_BYTES_MAX: u64 = 200;

/// Parts of dialogues.
pub const DICTIONARY: &[&[u8]] = &[
    b"EHLO client.example\r\n",
    b"HELO client.example\r\n",
    b"MAIL FROM:<a@example.org>\r\n",
    b"MAIL FROM:<a@example.org> BODY=BINARYMIME\r\n",
    b"MAIL FROM:<\xc3\xbc@example.org> SMTPUTF8\r\n",
    b"MAIL FROM:<> SIZE=150\r\n",
    b"MAIL FROM:<> SIZE=99999999\r\n",
    b"RCPT TO:<b@example.org>\r\n",
    b"RCPT TO:<c@example.org> NOTIFY=NEVER\r\n",
    b"RCPT TO:<gone@example.org>\r\n",
    b"RCPT TO:<cut@example.org>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\ntext\r\n.\r\n",
    b"\r\n.\r\n",
    b"..\r\n.x\r\n",
    b"a line of text\r\n",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b".",
    b"BDAT 4\r\nab\r\n",
    b"BDAT 4 LAST\r\ncd\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 5\r\nab\ncd",
    b"BDAT 3 LAST\r\nab\r",
    b"BDAT 40 LAST\r\n",
    b"BDAT 300 LAST\r\n",
    b"BDAT 18446744073709551615\r\n",
    b"BDAT 99999999999999999999\r\n",
    b"BDAT x LAST\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"NOOP\n",
    b"VRFY x\r\n",
    b"EXPN x\r\n",
    b"HELP\r\n",
    b"STARTTLS\r\n",
    b"AUTH PLAIN x\r\n",
    b"GET / HTTP/1.1\r\n",
    b"QUIT\r\n",
];

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Some((&[settings, faults, ref seed @ ..], rest)) = bytes.split_first_chunk::<10>() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed);
    if settings & 0x80 == 0 {
        check(settings, faults, rest, seed);
    } else {
        check(settings, faults, &dialogue(rest), seed);
    }
}

/// A dialogue of the parts that `choices` name; a run of junk for the highest of them.
fn dialogue(choices: &[u8]) -> Vec<u8> {
    let mut out = b"EHLO client.example\r\n".to_vec();
    for &choice in choices {
        match choice {
            250.. => out.resize(
                out.len() + [60, 700, 2_046, 2_047, 2_048, 5_000][usize::from(choice - 250)],
                b'j',
            ),
            // Mostly what leads to stored messages.
            128..250 => out.extend_from_slice(match choice % 4 {
                0 => b"MAIL FROM:<a@example.org>\r\n",
                1 => b"RCPT TO:<b@example.org>\r\n",
                2 => b"DATA\r\nx\r\n.\r\n",
                _ => b"BDAT 4 LAST\r\nab\r\n",
            }),
            _ => out.extend_from_slice(DICTIONARY[usize::from(choice) % DICTIONARY.len()]),
        }
    }
    out
}

/// Everything about a session that must not depend on how it is driven.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    wire: Vec<u8>,
    stored: Vec<Stored>,
    closed: Option<CloseReason>,
    verbs: [u32; Verb::COUNT],
    unread: usize,
}

fn check(settings: u8, faults: u8, input: &[u8], seed: u64) {
    let mode = [
        BareNewlines::Reject,
        BareNewlines::Normalize,
        BareNewlines::Keep,
    ][usize::from(settings % 3)];
    let few = settings & 0x40 != 0;
    let ctx = Context::new(ContextOptions {
        server_name: "mx.example.org".to_owned(),
        message_bytes_max: MESSAGE_BYTES_MAX,
        recipients_max: if few { 2 } else { 1_000 },
        messages_max: if few { 3 } else { 1_000 },
        bare_newlines: mode,
        ..ContextOptions::default()
    })
    .expect("options");
    let whole = play(&ctx, faults, input, Manner::default(), Cut::Whole, seed);
    check_replies(&ctx, &whole, input);
    let mut random = Random::new(seed);
    random.next();
    let mut manner = || {
        let bits = random.below(8);
        Manner {
            late: bits & 1 != 0,
            tight: bits & 2 != 0,
            in_place: bits & 4 != 0,
        }
    };
    for cut in [
        Cut::Whole,
        Cut::Octets,
        Cut::Random(seed),
        Cut::Random(!seed),
    ] {
        let manner = manner();
        let outcome = play(&ctx, faults, input, manner, cut, seed);
        assert_eq!(outcome, whole, "{manner:?} {cut:?}");
    }
}

fn play(ctx: &Context, faults: u8, input: &[u8], manner: Manner, cut: Cut, seed: u64) -> Outcome {
    let mut recorder = Recorder::new(manner, seed);
    recorder.policy = vec![
        (
            "rcpt gone@example.org".to_owned(),
            Verdict::Refuse(Reply::RecipientRefused),
        ),
        (
            "rcpt cut@example.org".to_owned(),
            Verdict::RefuseAndClose(Reply::RecipientRefused),
        ),
        ("end 21".to_owned(), Verdict::Refuse(Reply::ContentRefused)),
    ];
    if faults & 1 != 0 {
        recorder.envelope_bytes_max = 120;
    }
    if faults & 2 != 0 {
        recorder.commit = Err(Reply::CommitFailed);
    }
    recorder.has_storage = faults & 12 != 4;
    recorder.has_body_storage = faults & 12 != 8;
    if faults & 12 == 12 {
        recorder.fields_max = 3;
    }
    let mut connection = Connection::new(ctx, recorder);
    for piece in pieces(input, cut) {
        connection.read(piece);
    }
    let unread = match connection.out.closed {
        // What follows the close is not read; how much of it was given depends on the cut.
        Some(_) => 0,
        None => connection.unread(),
    };
    assert!(unread < 2_048, "a line that long is not kept");
    connection.session.connection_lost(&mut connection.out);
    assert!(!connection.out.is_open(), "a message outlived its session");
    let out = connection.out;
    Outcome {
        wire: out.wire,
        stored: out.stored,
        closed: out.closed,
        verbs: out.verbs,
        unread,
    }
}

/// Every octet sent belongs to a known reply, one 250 stands for each stored message, and there are as many
/// replies as commands and messages ask for.
fn check_replies(ctx: &Context, outcome: &Outcome, input: &[u8]) {
    let mut rest = &outcome.wire[..];
    let (mut replies, mut stored, mut started) = (0, 0, 0);
    let ehlo = ctx.ehlo_reply(ctx.services(false, Offered::PROMISES, false), WALL_NS);
    let configured = [
        &ctx.greeting[..],
        &ctx.helo_reply,
        ehlo.as_bytes(),
        &ctx.help_reply,
    ];
    while !rest.is_empty() {
        let known = configured
            .iter()
            .copied()
            .chain(reply::ROWS.iter().map(|row| row.wire))
            .find(|wire| rest.starts_with(wire))
            .expect("a known reply");
        replies += 1;
        stored += usize::from(known == Reply::Stored.row().wire);
        started += u32::from(known == Reply::DataStart.row().wire);
        rest = &rest[known.len()..];
    }
    assert_eq!(stored, outcome.stored.len());
    let commands: u32 = outcome.verbs.iter().sum();
    assert!(replies <= 1 + commands + started, "{replies} replies");
    assert!(replies >= commands, "{replies} replies");
    for message in &outcome.stored {
        let facts = message.facts.expect("facts");
        assert!(facts.recipients > 0);
        assert!(message.body.len() as u64 <= MESSAGE_BYTES_MAX);
        assert!(message.body.len() <= 2 * input.len());
        assert!(message.trace.starts_with(b"Received: ") && message.id_at < message.trace.len());
    }
}
