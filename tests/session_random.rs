//! Sends dialogues made of random commands, content and junk through a session.
//!
//! The property: wherever the input is cut, whenever verdicts and commits come, however little room there is,
//! and whether content is copied or read in place, the replies, the stored messages, the counters and the close
//! are the same. A failure prints the seed; `SESSION_RANDOM_SEED` replays it, `SESSION_RANDOM_ROUNDS` runs more.

mod session_support;

use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::Reply;
use ringmx::smtp::sasl::Mechanisms;
use ringmx::smtp::session::{Context, ContextOptions, Role, Services};
use ringmx::smtp::sink::Verdict;
use ringmx::users::Users;
use session_support::{Cut, Manner, Outcome, Random, Recorder, Stored, WALL_NS, manners};

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

/// What surrounds a session: TLS, users, a proxy, LMTP.
fn around(random: &mut Random, hello: &[u8], out: &mut Vec<u8>) {
    match random.below(4) {
        0 => {
            out.extend_from_slice(b"STARTTLS\r\n");
            if random.below(4) > 0 {
                out.extend_from_slice(hello);
            }
        }
        1 => out.extend_from_slice(one_of(
            random,
            &[
                b"XCLIENT ADDR=192.0.2.9 LOGIN=joe PROTO=ESMTP HELO=x\r\n",
                b"XCLIENT ADDR=IPV6:2001:db8::1 PORT=4 DESTADDR=192.0.2.8\r\n",
                b"XCLIENT NAME=[UNAVAILABLE] LOGIN=[UNAVAILABLE]\r\n",
                b"XCLIENT\r\n",
                b"XFORWARD NAME=spike ADDR=192.0.2.9\r\n",
                b"XFORWARD SOURCE=LOCAL\r\n",
                b"PROXY TCP4 192.0.2.1 192.0.2.2 4321 25\r\n",
            ],
        )),
        2 => out.extend_from_slice(one_of(
            random,
            &[
                b"LHLO client.example\r\n",
                b"EHLO client.example\r\n",
                b"ETRN @example.org\r\n",
                b"MAIL FROM:<a@example.org> AUTH=<> REQUIRETLS\r\n",
                b"MAIL FROM:<a@example.org> BY=60;R HOLDFOR=9 MT-PRIORITY=3\r\n",
            ],
        )),
        _ => out.extend_from_slice(one_of(
            random,
            &[
                b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n",
                b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n",
                b"AUTH PLAIN\r\nAHVzZXIAcGVuY2ls\r\n",
                b"AUTH PLAIN\r\n*\r\n",
                b"AUTH PLAIN AGJ1c3kAeA==\r\n",
                b"AUTH LOGIN\r\ndXNlcg==\r\ncGVuY2ls\r\n",
                b"AUTH LOGIN dXNlcg==\r\n=\r\n",
                b"AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=\r\nYz1iaXdzLHI9ck9wck5HZndFYmVSV2diTkVrcU8laHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscD1kSHpiWmFwV0lrNGpVaE4rVXRlOXl0YWc5empmTUhnc3FtbWl6N0FuZFZRPQ==\r\n\r\n",
                b"AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=\r\nNOOP\r\n",
                b"AUTH CRAM-MD5\r\n",
            ],
        )),
    }
}

/// A dialogue: mostly valid messages, with commands out of order and junk between them.
fn dialogue(random: &mut Random, hello: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if random.below(10) > 0 {
        out.extend_from_slice(hello);
    }
    if random.below(2) == 0 {
        out.extend_from_slice(b"STARTTLS\r\n");
        out.extend_from_slice(hello);
    }
    if random.below(3) == 0 {
        out.extend_from_slice(b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n");
    }
    for _ in 0..random.below(12) {
        match random.below(8) {
            6 | 7 => around(random, hello, &mut out),
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
                let len = [5, 60, 2_100, 5_000, 13_000][random.below(5)];
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

/// Who plays, beside the context of the listener.
#[derive(Clone, Copy, Debug)]
struct Cast {
    /// Users are known; without them every password is right.
    has_users: bool,
    /// The client may speak for others.
    trusts: Offered,
}

/// A listener, mostly a plain one.
fn context(random: &mut Random, mode: BareNewlines) -> (Context, Cast) {
    let is_plain = random.below(3) == 0;
    let mut one_in = |times| !is_plain && random.below(times) == 0;
    let offered = ContextOptions::default().offered;
    let has_users = one_in(2);
    let options = ContextOptions {
        server_name: "mx.example.org".to_owned(),
        message_bytes_max: 200,
        bare_newlines: mode,
        offered: match one_in(2) {
            true => offered.with(Offered::STARTTLS).with(Offered::REQUIRETLS),
            false => offered,
        },
        role: match (one_in(4), one_in(4)) {
            (true, _) => Role::Submission,
            (_, true) => Role::Mx,
            _ => Role::Sink,
        },
        needs_tls: one_in(8),
        lmtp: one_in(4),
        mechanisms: match (has_users, one_in(2)) {
            (true, _) => Mechanisms::ALL,
            (_, true) => Mechanisms::OF_ANYBODY,
            _ => Mechanisms::NONE,
        },
        auth_without_tls: one_in(2),
        hops_max: one_in(4).then_some(1),
        ..ContextOptions::default()
    };
    let trusts = match one_in(3) {
        true => Offered::XCLIENT.with(Offered::XFORWARD),
        false => Offered::NONE,
    };
    let cast = Cast { has_users, trusts };
    (Context::new(options).expect("options"), cast)
}

/// The user of RFC 7677 3, `user` with the password `pencil`.
fn users() -> Users {
    let file = "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    Users::parse(file, &[7; 32]).expect("a file of users")
}

/// Plays `input` and returns what came of it.
fn play(ctx: &Context, cast: Cast, input: &[u8], manner: Manner, cut: Cut, seed: u64) -> Outcome {
    let mut recorder = Recorder::new(manner, seed);
    recorder.trusts = cast.trusts;
    if cast.has_users {
        recorder.users = Some(users());
        recorder.only_user = Some(("user", b"pencil"));
    }
    recorder.envelope_bytes_max = 160;
    recorder.policy = vec![
        (
            "rcpt gone@example.org".to_owned(),
            Verdict::Refuse(Reply::RecipientRefused),
        ),
        ("end 21".to_owned(), Verdict::Refuse(Reply::ContentRefused)),
    ];
    Outcome::of(ctx, recorder, input, cut)
}

/// Checks one dialogue in every manner; returns how many messages were stored.
fn check(ctx: &Context, cast: Cast, input: &[u8], seed: u64) -> Vec<Stored> {
    let whole = play(ctx, cast, input, Manner::default(), Cut::Whole, seed);
    check_replies(ctx, cast, &whole);
    for manner in manners() {
        for cut in [
            Cut::Whole,
            Cut::Octets,
            Cut::Random(seed),
            Cut::Random(seed ^ 0x5555),
        ] {
            let outcome = play(ctx, cast, input, manner, cut, seed);
            assert_eq!(outcome, whole, "seed {seed}: {manner:?} {cut:?}");
        }
    }
    whole.stored
}

/// Every octet sent belongs to a known reply, one 250 with an id's place stands for each stored message (and each of
/// its recipients, with LMTP), there are as many replies as commands and messages ask for, and nothing is stored
/// without the TLS or the user that the listener demands.
fn check_replies(ctx: &Context, cast: Cast, outcome: &Outcome) {
    let ehlo = |tls| {
        let services = ctx.services(tls, Offered::PROMISES, false);
        let offered = services.offered.with(cast.trusts);
        ctx.ehlo_reply(
            Services {
                offered,
                ..services
            },
            WALL_NS,
        )
    };
    let (plain, tls) = (ehlo(false), ehlo(true));
    let configured = [
        &ctx.greeting[..],
        &ctx.helo_reply,
        plain.as_bytes(),
        tls.as_bytes(),
        &ctx.help_reply,
        &ctx.help_reply_tls,
    ];
    outcome.assert_replies_are_due(&configured, ctx.lmtp);
    for message in &outcome.stored {
        let facts = message.facts.expect("facts");
        assert!(message.body.len() as u64 <= 200);
        assert!(facts.recipients > 0);
        assert!(message.trace.starts_with(b"Received: ") && message.id_at < message.trace.len());
        assert!(message.has_user() || ctx.role != Role::Submission);
        assert!(message.came_under_tls() || !ctx.needs_tls);
    }
}

#[test]
fn random_dialogues_have_the_same_outcome_however_they_are_cut_and_answered() {
    let rounds = variable("SESSION_RANDOM_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let replayed = variable("SESSION_RANDOM_SEED");
    let seeds = match replayed {
        Some(seed) => seed..seed + 1,
        None => 1..1 + rounds,
    };
    let (mut stored, mut of_users, mut under_tls, mut to_several) = (0, 0, 0, 0);
    for seed in seeds {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        let mode = [
            BareNewlines::Reject,
            BareNewlines::Normalize,
            BareNewlines::Keep,
        ][random.below(3)];
        let (ctx, cast) = context(&mut random, mode);
        let hello: &[u8] = match ctx.lmtp {
            true => b"LHLO client.example\r\n",
            false => b"EHLO client.example\r\n",
        };
        let input = dialogue(&mut random, hello);
        for message in check(&ctx, cast, &input, seed) {
            stored += 1;
            of_users += u64::from(message.has_user());
            under_tls += u64::from(message.came_under_tls());
            to_several += u64::from(message.facts.expect("facts").answers > 1);
        }
    }
    // Without these the dialogues would show little.
    assert!(
        replayed.is_some()
            || (stored > rounds / 4
                && of_users > rounds / 100
                && under_tls > rounds / 40
                && to_several > rounds / 100),
        "{stored} messages were stored: {of_users} of users, {under_tls} under TLS, {to_several} with several replies"
    );
}
