//! Whole sessions: the same replies and the same messages, however the dialogue is cut and answered.
//!
//! The first byte chooses the server's settings, the second what goes wrong, the third what stands around the
//! session (TLS, AUTH, LMTP, XCLIENT), the next eight seed the cuts. The rest is what the client sends: as it
//! stands, or, when the top bit of the first byte is set, one byte for each part of a dialogue.

use super::session_support::{Cut, Manner, Outcome, Random, Recorder, WALL_NS};
use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::Reply;
use ringmx::smtp::sasl::Mechanisms;
use ringmx::smtp::session::{Context, ContextOptions, Role, Services};
use ringmx::smtp::sink::Verdict;
use ringmx::users::Users;

/// Largest message that the sessions take, octets.
const MESSAGE_BYTES_MAX: u64 = 200;

/// A dialogue of parts ends behind this many octets: one line of AUTH at its longest, and some commands.
const DIALOGUE_BYTES_MAX: usize = 14_000;

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
    b"STARTTLS\r\nEHLO client.example\r\n",
    b"STARTTLS\r\nLHLO client.example\r\n",
    b"starttls  \r\n",
    b"STARTTLS x\r\n",
    b"LHLO client.example\r\n",
    b"AUTH PLAIN\r\n",
    b"AHVzZXIAcGVuY2ls\r\n",
    b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n",
    b"AUTH PLAIN AGJ1c3kAeA==\r\n",
    b"AUTH PLAIN AHVzZXIAd3Jvbmc=\r\n",
    b"AUTH LOGIN\r\n",
    b"AUTH LOGIN dXNlcg==\r\n",
    b"dXNlcg==\r\n",
    b"cGVuY2ls\r\n",
    b"*\r\n",
    b"=\r\n",
    b"AUTH SCRAM-SHA-256\r\n",
    b"AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=\r\n",
    b"biwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=\r\n",
    b"AUTH SCRAM-SHA-256 eSwsbj11c2VyLHI9ck9wck5HZndFYmVSV2diTkVrcU8=\r\n",
    b"AUTH SCRAM-SHA-256-PLUS cD10bHMtZXhwb3J0ZXIsLG49dXNlcixyPXJPcHJOR2Z3RWJlUldnYk5Fa3FP\r\n",
    b"Yz1iaXdzLHI9ck9wck5HZndFYmVSV2diTkVrcU8laHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscD1kSHpiWmFwV0lrNGpVaE4rVXRlOXl0YWc5empmTUhnc3FtbWl6N0FuZFZRPQ==\r\n",
    b"AUTH CRAM-MD5\r\n",
    b"MAIL FROM:<a@example.org> AUTH=<>\r\n",
    b"MAIL FROM:<a@example.org> BY=60;R HOLDFOR=9 MT-PRIORITY=3\r\n",
    b"MAIL FROM:<a@example.org> REQUIRETLS RET=HDRS\r\n",
    b"RCPT TO:<b@example.org> RRVS=2026-01-02T03:04:05Z\r\n",
    b"RCPT TO:<Postmaster>\r\n",
    b"ETRN @example.org\r\n",
    b"XCLIENT ADDR=192.0.2.9 PORT=25 LOGIN=joe\r\n",
    b"XCLIENT NAME=[UNAVAILABLE] HELO=other.example PROTO=SMTP\r\n",
    b"XCLIENT ADDR=IPV6:2001:db8::1 DESTADDR=192.0.2.8 DESTPORT=26\r\n",
    b"XCLIENT LOGIN=[UNAVAILABLE] PROTO=ESMTP\r\n",
    b"XFORWARD NAME=spike.example ADDR=192.0.2.9 PROTO=ESMTP HELO=x\r\n",
    b"XFORWARD SOURCE=LOCAL IDENT=1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 4321 25\r\n",
    b"Received: from x\r\n",
    b"received \t: x\r\n\r\n",
];

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Some((&[settings, faults, around, ref seed @ ..], rest)) = bytes.split_first_chunk::<11>()
    else {
        return;
    };
    let kind = Kind {
        settings,
        faults,
        around,
    };
    let seed = u64::from_le_bytes(*seed);
    if settings & 0x80 == 0 {
        check(kind, rest, seed);
    } else {
        check(kind, &dialogue(rest, kind.is_lmtp()), seed);
    }
}

/// What the front of an input chooses.
#[derive(Clone, Copy, Debug)]
struct Kind {
    settings: u8,
    faults: u8,
    around: u8,
}

impl Kind {
    fn has_users(self) -> bool {
        self.around & 6 == 4
    }

    fn is_lmtp(self) -> bool {
        self.around & 16 != 0
    }

    fn trusts(self) -> Offered {
        match self.around & 32 {
            0 => Offered::NONE,
            _ => Offered::XCLIENT.with(Offered::XFORWARD),
        }
    }

    fn keeps(self) -> Offered {
        match self.faults & 0x40 {
            0 => Offered::PROMISES,
            _ => Offered::NONE,
        }
    }

    fn context(self) -> Context {
        let few = self.settings & 0x40 != 0;
        let mut offered = ContextOptions::default().offered;
        if self.around & 1 != 0 {
            offered = offered.with(Offered::STARTTLS).with(Offered::REQUIRETLS);
        }
        Context::new(ContextOptions {
            server_name: "mx.example.org".to_owned(),
            message_bytes_max: MESSAGE_BYTES_MAX,
            recipients_max: if few { 2 } else { 1_000 },
            messages_max: if few { 3 } else { 1_000 },
            bare_newlines: [
                BareNewlines::Reject,
                BareNewlines::Normalize,
                BareNewlines::Keep,
            ][usize::from(self.settings % 3)],
            role: match (self.around & 128, self.faults & 0x20) {
                (0, 0) => Role::Sink,
                (0, _) => Role::Mx,
                _ => Role::Submission,
            },
            offered,
            needs_tls: self.around & 64 != 0,
            lmtp: self.is_lmtp(),
            mechanisms: match self.around & 6 {
                0 => Mechanisms::NONE,
                4 => Mechanisms::ALL,
                _ => Mechanisms::OF_ANYBODY,
            },
            auth_without_tls: self.around & 8 != 0,
            hops_max: (self.faults & 0x10 != 0).then_some(2),
            ..ContextOptions::default()
        })
        .expect("options")
    }

    fn recorder(self, manner: Manner, seed: u64) -> Recorder {
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
        let faults = self.faults;
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
        recorder.keeps = self.keeps();
        recorder.trusts = self.trusts();
        if self.has_users() {
            recorder.users = Some(users());
            recorder.only_user = Some(("user", b"pencil"));
        }
        if faults & 0x80 != 0 {
            recorder.binding = Some(b"thirty-two octets of an exporter");
        }
        recorder
    }
}

/// The user of RFC 7677 3, `user` with the password `pencil`.
fn users() -> Users {
    let file = "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    Users::parse(file, &[7; 32]).expect("a file of users")
}

/// A dialogue of the parts that `choices` name; a run of junk for the highest of them.
fn dialogue(choices: &[u8], is_lmtp: bool) -> Vec<u8> {
    let mut out = match is_lmtp {
        false => b"EHLO client.example\r\n".to_vec(),
        true => b"LHLO client.example\r\n".to_vec(),
    };
    for &choice in choices {
        // Played octet by octet, long lines take time that short ones use better.
        if out.len() > DIALOGUE_BYTES_MAX {
            break;
        }
        match choice {
            250.. => out.resize(
                out.len() + [60, 700, 2_046, 2_048, 5_000, 12_270][usize::from(choice - 250)],
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

fn check(kind: Kind, input: &[u8], seed: u64) {
    let ctx = kind.context();
    let whole = play(&ctx, kind, input, Manner::default(), Cut::Whole, seed);
    check_replies(&ctx, kind, &whole, input);
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
        let outcome = play(&ctx, kind, input, manner, cut, seed);
        assert_eq!(outcome, whole, "{manner:?} {cut:?}");
    }
}

fn play(ctx: &Context, kind: Kind, input: &[u8], manner: Manner, cut: Cut, seed: u64) -> Outcome {
    let recorder = kind.recorder(manner, seed);
    Outcome::of(ctx, recorder, input, cut)
}

/// Every octet sent belongs to a known reply, a 250 stands for each stored message (and each of its recipients, with
/// LMTP), there are as many replies as commands and messages ask for, and nothing is stored that the listener demands
/// TLS or AUTH for without it.
fn check_replies(ctx: &Context, kind: Kind, outcome: &Outcome, input: &[u8]) {
    let mut configured = vec![
        ctx.greeting.clone(),
        ctx.helo_reply.clone(),
        ctx.help_reply.clone(),
        ctx.help_reply_tls.clone(),
    ];
    for (tls, is_bound) in [(false, false), (false, true), (true, false), (true, true)] {
        let services = ctx.services(tls, kind.keeps(), is_bound);
        let services = Services {
            offered: services.offered.with(kind.trusts()),
            ..services
        };
        configured.push(ctx.ehlo_reply(services, WALL_NS).as_bytes().to_vec());
    }
    let configured: Vec<&[u8]> = configured.iter().map(Vec::as_slice).collect();
    outcome.assert_replies_are_due(&configured, kind.is_lmtp());
    for message in &outcome.stored {
        let facts = message.facts.expect("facts");
        assert!(facts.recipients > 0);
        assert!(message.body.len() as u64 <= MESSAGE_BYTES_MAX);
        assert!(message.body.len() <= 2 * input.len());
        assert!(message.trace.starts_with(b"Received: ") && message.id_at < message.trace.len());
        let names_one = message.trace.windows(7).any(|part| part == b"\r\n\tfor ");
        assert!(!names_one || facts.recipients == 1);
        assert!(message.came_under_tls() || !ctx.needs_tls);
        assert!(message.has_user() || ctx.role != Role::Submission);
    }
}
