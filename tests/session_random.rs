//! Sends dialogues made of random commands, content and junk through a session.
//!
//! The property: wherever the input is cut, whenever verdicts and commits come, however little room there is,
//! and whether content is copied or read in place, the replies, the stored messages, the counters and the close
//! are the same. A failure prints the seed; `SESSION_RANDOM_SEED` replays it, `SESSION_RANDOM_ROUNDS` runs more.

mod session_support;

use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::{CloseReason, Verb, Verdict};
use session_support::{
    Connection, Cut, Manner, Random, Recorder, Stored, WALL_NS, manners, pieces,
};

const ROUNDS_DEFAULT: u64 = 400;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn one_of<'a>(random: &mut Random, choices: &[&'a [u8]]) -> &'a [u8] {
    choices[random.below(choices.len())]
}

/// Content with what is dangerous in it more often than by chance.
fn content(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(30) {
        out.extend_from_slice(one_of(
            random,
            &[
                b"text",
                b"\r\n",
                b"\r\n",
                b"\r\n",
                b".",
                b"..",
                b"\r\n..",
                b"\r\n.x",
                b"a longer line of it",
                b"MAIL FROM:<x@example.org>\r\n",
            ],
        ));
        if random.below(40) == 0 {
            out.extend_from_slice(one_of(
                random,
                &[b"\n", b"\r", b"\0", b"\n.\n", b"\r\n.\r", b"\xff"],
            ));
        }
    }
    out
}

fn message(random: &mut Random, out: &mut Vec<u8>) {
    out.extend_from_slice(one_of(
        random,
        &[
            b"",
            b"",
            b"RSET\r\n",
            b"EHLO client.example\r\n",
            b"HELO client.example\r\n",
        ],
    ));
    let binary = random.below(4) == 0;
    out.extend_from_slice(b"MAIL FROM:<a@example.org>");
    out.extend_from_slice(if binary {
        b" BODY=BINARYMIME\r\n"
    } else {
        b"\r\n"
    });
    for _ in 0..random.below(4) {
        out.extend_from_slice(one_of(
            random,
            &[
                b"RCPT TO:<b@example.org>\r\n",
                b"RCPT TO:<gone@example.org>\r\n",
                b"RCPT TO:<c@example.org> NOTIFY=NEVER\r\n",
            ],
        ));
    }
    if random.below(2) == 0 {
        out.extend_from_slice(b"DATA\r\n");
        out.extend(content(random));
        out.extend_from_slice(b"\r\n.\r\n");
        return;
    }
    let chunks = 1 + random.below(3);
    for at in 1..=chunks {
        let chunk = content(random);
        let last = if at == chunks { " LAST" } else { "" };
        out.extend(format!("BDAT {}{last}\r\n", chunk.len()).into_bytes());
        out.extend(chunk);
    }
}

/// A dialogue: mostly valid messages, with commands out of order and junk between them.
fn dialogue(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    if random.below(10) > 0 {
        out.extend_from_slice(b"EHLO client.example\r\n");
    }
    for _ in 0..random.below(12) {
        match random.below(6) {
            0..=2 => message(random, &mut out),
            3 => out.extend_from_slice(one_of(
                random,
                &[
                    b"NOOP\r\n",
                    b"RSET\r\n",
                    b"DATA\r\n",
                    b"BDAT 3\r\n",
                    b"BDAT 0 LAST\r\n",
                    b"VRFY x\r\n",
                    b"HELP\r\n",
                    b"RCPT TO:<b@example.org>\r\n",
                    b"MAIL FROM:<> SIZE=99999999\r\n",
                    b"MAIL FROM:<>\r\n",
                    b"\r\n",
                    b"NOOP\n",
                    b"EXPN x\r\n",
                    b"BDAT 99999999999999999999\r\n",
                    b"STARTTLS\r\n",
                    b"BDAT x LAST\r\n",
                ],
            )),
            4 => {
                let len = [5, 60, 2_100, 5_000][random.below(4)];
                out.extend((0..len).map(|_| random.next() as u8));
                out.extend_from_slice(one_of(random, &[b"\r\n", b"\n", b""]));
            }
            _ => out.extend(content(random)),
        }
    }
    if random.below(3) == 0 {
        out.extend_from_slice(b"QUIT\r\nNOOP\r\n");
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

/// Plays `input` and returns what came of it.
fn play(ctx: &Context, input: &[u8], manner: Manner, cut: Cut, seed: u64) -> Outcome {
    let mut recorder = Recorder::new(manner, seed);
    recorder.envelope_bytes_max = 120;
    recorder.policy = vec![
        (
            "rcpt gone@example.org".to_owned(),
            Verdict::Refuse(Reply::RecipientRefused),
        ),
        ("end 21".to_owned(), Verdict::Refuse(Reply::ContentRefused)),
    ];
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

/// Checks one dialogue in every manner; returns how many messages were stored. Also the body of a fuzz target.
pub fn check(input: &[u8], mode: BareNewlines, seed: u64) -> usize {
    let ctx = Context::new(ContextOptions {
        server_name: "mx.example.org".to_owned(),
        message_bytes_max: 200,
        bare_newlines: mode,
        ..ContextOptions::default()
    })
    .expect("options");
    let whole = play(&ctx, input, Manner::default(), Cut::Whole, seed);
    check_replies(&ctx, &whole);
    for manner in manners() {
        for cut in [
            Cut::Whole,
            Cut::Octets,
            Cut::Random(seed),
            Cut::Random(seed ^ 0x5555),
        ] {
            let outcome = play(&ctx, input, manner, cut, seed);
            assert_eq!(outcome, whole, "seed {seed}: {manner:?} {cut:?}");
        }
    }
    whole.stored.len()
}

/// Every octet sent belongs to a known reply, one 250 with an id's place stands for each stored message, and
/// there are as many replies as commands and messages ask for.
fn check_replies(ctx: &Context, outcome: &Outcome) {
    let mut rest = &outcome.wire[..];
    let mut replies = 0;
    let mut stored = 0;
    let mut started = 0;
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
            .find(|wire| !wire.is_empty() && rest.starts_with(wire))
            .expect("a known reply");
        replies += 1;
        stored += usize::from(known == Reply::Stored.row().wire);
        started += u32::from(known == Reply::DataStart.row().wire);
        rest = &rest[known.len()..];
    }
    assert_eq!(stored, outcome.stored.len());
    let commands: u32 = outcome.verbs.iter().sum();
    // The greeting, one for each command, and one more for each DATA whose content ended. A BDAT whose octets
    // are still to come has none yet.
    assert!(replies <= 1 + commands + started, "{replies} replies");
    assert!(replies >= commands, "{replies} replies");
    for message in &outcome.stored {
        let facts = message.facts.expect("facts");
        assert!(message.body.len() as u64 <= 200);
        assert!(facts.recipients > 0);
        assert!(message.trace.starts_with(b"Received: ") && message.id_at < message.trace.len());
    }
}

#[test]
fn random_dialogues_have_the_same_outcome_however_they_are_cut_and_answered() {
    let rounds = variable("SESSION_RANDOM_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let mut stored = 0;
    let replayed = variable("SESSION_RANDOM_SEED");
    let seeds = match replayed {
        Some(seed) => seed..seed + 1,
        None => 1..1 + rounds,
    };
    for seed in seeds {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        let mode = [
            BareNewlines::Reject,
            BareNewlines::Normalize,
            BareNewlines::Keep,
        ][random.below(3)];
        let input = dialogue(&mut random);
        stored += check(&input, mode, seed);
    }
    assert!(
        replayed.is_some() || stored as u64 > rounds / 4,
        "only {stored} messages were stored"
    );
}
