//! Plays the dialogues of `tests/transcripts` through a session, without sockets.
//!
//! A transcript is a text file. Lines that start with `#` say what is shown and which obligations of
//! `docs/smtp-conformance.md` (C001 ...). The others:
//! - `set: NAME=VALUE`: an option of the server; `policy: QUESTION = REPLY`: a refusal by policy.
//! - `C: TEXT`: the client sends a line and CRLF; `C> TEXT`: the same without CRLF.
//! - `S: TEXT`: the server answers this line; `S* N: TEXT`: N times. `{greeting}`, `{helo}`, `{ehlo}` and
//!   `{help}` stand for the configured replies, `{ehlo tls}` and `{help tls}` for those under TLS.
//! - `CLOSED: quit|refused`: how the session ends; without it, it stays open.
//! - `TLS:` the handshake that STARTTLS announced succeeds.
//! - `STORED:` a message was stored: then `helo: from: mail: to: rcpt:` for its envelope, `body:` for each line
//!   of it (`body>` without CRLF), and if wanted `facts:` and `trace:`. Times of the envelope are written as
//!   `deliver-by: SECONDS MODE` and `hold-until: SECONDS`, counted from the time of the message.
//!
//! In texts `\r \n \t \0 \\ \xNN` are octets and `\*N(TEXT)` is TEXT, N times.
//!
//! Each dialogue is played whole, octet by octet and at random cuts, with verdicts at once and late, with room
//! for everything and for hardly anything, and with content copied and read in place: always the same result.

mod session_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ringmx::envelope::{self, Field};
use ringmx::smtp::extension;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::sasl::Mechanisms;
use ringmx::smtp::session::{Context, ContextOptions, Role};
use ringmx::smtp::sink::{CloseReason, Verdict};
use ringmx::users::Users;
use session_support::{Connection, Cut, Manner, Recorder, Stored, WALL_NS, manners, pieces};

/// A transcript, read.
struct Transcript {
    name: String,
    options: ContextOptions,
    policy: Vec<(String, Verdict)>,
    envelope_bytes_max: usize,
    has_storage: bool,
    keeps: Offered,
    is_bound: bool,
    trusts: Offered,
    commit: Result<(), Reply>,
    /// What the client sends, and what the server answers to it, turn by turn.
    turns: Vec<(Vec<u8>, Vec<u8>)>,
    /// The turns before which a handshake succeeds.
    secured: BTreeSet<usize>,
    closed: Option<CloseReason>,
    stored: Vec<Expected>,
}

/// A stored message as the transcript tells it.
#[derive(Default)]
struct Expected {
    fields: Vec<(u8, Vec<u8>)>,
    body: Vec<u8>,
    facts: Option<String>,
    trace: Option<Vec<u8>>,
}

fn transcripts() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("the folder of transcripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(path).expect("a text file");
            parse(name, &text)
        })
        .collect()
}

fn parse(name: String, text: &str) -> Transcript {
    let mut options = ContextOptions {
        server_name: "mx.example.org".to_owned(),
        message_bytes_max: 1_000_000,
        ..ContextOptions::default()
    };
    let mut transcript = Transcript {
        name,
        options: options.clone(),
        policy: Vec::new(),
        envelope_bytes_max: 1 << 20,
        has_storage: true,
        keeps: Offered::PROMISES,
        is_bound: false,
        trusts: Offered::NONE,
        commit: Ok(()),
        turns: vec![(Vec::new(), Vec::new())],
        secured: BTreeSet::new(),
        closed: None,
        stored: Vec::new(),
    };
    for line in text.lines() {
        let (key, value) = match line.find([':', '>']) {
            _ if line.starts_with('#') || line.is_empty() => continue,
            Some(at) => line.split_at(at + 1),
            None => panic!("{}: what is {line:?}?", transcript.name),
        };
        let value = value.strip_prefix(' ').unwrap_or(value);
        let mut octets = unescape(value);
        let key = key.trim();
        if !key.ends_with('>') {
            octets.extend_from_slice(b"\r\n");
        }
        match key {
            "set:" => set(&mut transcript, &mut options, value),
            "policy:" => {
                let (question, name) = value.split_once(" = ").expect("QUESTION = REPLY");
                let verdict = match name.strip_suffix(" and close") {
                    Some(name) => Verdict::RefuseAndClose(named(name)),
                    None => Verdict::Refuse(named(name)),
                };
                transcript.policy.push((question.to_owned(), verdict));
            }
            "C:" | "C>" => {
                let last = transcript.turns.last_mut().expect("a turn");
                if last.1.is_empty() && !last.0.is_empty() {
                    last.0.extend(octets);
                } else {
                    transcript.turns.push((octets, Vec::new()));
                }
            }
            "TLS:" => {
                transcript.secured.insert(transcript.turns.len());
                transcript.turns.push((Vec::new(), Vec::new()));
            }
            "CLOSED:" => {
                transcript.closed = Some(match value {
                    "quit" => CloseReason::Quit,
                    "refused" => CloseReason::Refused,
                    other => panic!("closed how: {other}"),
                });
            }
            "STORED:" => transcript.stored.push(Expected::default()),
            "helo:" | "from:" | "mail:" | "to:" | "rcpt:" | "body:" | "body>" | "facts:"
            | "trace:" | "deliver-by:" | "hold-until:" | "priority:" | "user:" | "forwarded:"
            | "client-name:" => {
                let message = transcript.stored.last_mut().expect("STORED: stands before");
                let field = match key {
                    "helo:" => Field::Helo,
                    "from:" => Field::ReversePath,
                    "mail:" => Field::MailParameters,
                    "to:" => Field::ForwardPath,
                    "rcpt:" => Field::RcptParameters,
                    "user:" => Field::User,
                    "forwarded:" => Field::Forwarded,
                    "client-name:" => Field::ClientName,
                    "deliver-by:" | "hold-until:" => {
                        let (seconds, mode) = value.split_once(' ').unwrap_or((value, ""));
                        let seconds: i64 = seconds.parse().expect("seconds");
                        let at = (WALL_NS / 1_000_000_000) as i64 + seconds;
                        let mut octets = at.to_le_bytes().to_vec();
                        octets.extend_from_slice(mode.as_bytes());
                        let field = if key == "hold-until:" {
                            Field::HoldUntil
                        } else {
                            Field::DeliverBy
                        };
                        message.fields.push((field as u8, octets));
                        continue;
                    }
                    "priority:" => {
                        let priority: i8 = value.parse().expect("a priority");
                        let octets = priority.to_le_bytes().to_vec();
                        message.fields.push((Field::Priority as u8, octets));
                        continue;
                    }
                    "facts:" => {
                        message.facts = Some(value.to_owned());
                        continue;
                    }
                    "trace:" => {
                        message.trace.get_or_insert_default().extend(octets);
                        continue;
                    }
                    _ => {
                        message.body.extend(octets);
                        continue;
                    }
                };
                message.fields.push((field as u8, unescape(value)));
            }
            _ => {
                let times = match key.strip_prefix("S*") {
                    Some(times) => times
                        .trim_end_matches(':')
                        .trim()
                        .parse()
                        .expect("a number"),
                    None if key == "S:" => 1,
                    None => panic!("{}: what is {line:?}?", transcript.name),
                };
                let turn = transcript.turns.last_mut().expect("a turn");
                for _ in 0..times {
                    turn.1.extend_from_slice(&octets);
                }
            }
        }
    }
    transcript.options = options;
    transcript
}

fn set(transcript: &mut Transcript, options: &mut ContextOptions, assignment: &str) {
    let (name, value) = assignment.split_once('=').expect("NAME=VALUE");
    match name {
        "bare_newlines" => options.bare_newlines = value.parse().expect("a mode"),
        "message_bytes_max" => options.message_bytes_max = value.parse().expect("a number"),
        "recipients_max" => options.recipients_max = value.parse().expect("a number"),
        "hops_max" => options.hops_max = Some(value.parse().expect("a number")),
        "messages_max" => options.messages_max = value.parse().expect("a number"),
        "envelope_bytes_max" => {
            transcript.envelope_bytes_max = value.parse().expect("a number");
        }
        "hold_max_s" => options.hold_max_s = value.parse().expect("a number"),
        "role" => {
            let role = Role::ALL.iter().find(|role| role.name() == value);
            options.role = *role.expect("a role");
        }
        "lmtp" => options.lmtp = value == "yes",
        "hide" => options.offered = options.offered.without(extensions(value)),
        "trusts" => transcript.trusts = extensions(value),
        "keeps" => transcript.keeps = extensions(value),
        "storage" => transcript.has_storage = value == "yes",
        "starttls" => options.offered = options.offered.with(Offered::STARTTLS),
        "requiretls" => options.offered = options.offered.with(Offered::REQUIRETLS),
        "auth" => {
            options.mechanisms = match value {
                "any" => Mechanisms::OF_ANYBODY,
                "users" => Mechanisms::ALL,
                other => panic!("whose passwords: {other}"),
            }
        }
        "auth_without_tls" => options.auth_without_tls = value == "yes",
        "binding" => transcript.is_bound = value == "yes",
        "needs_tls" => options.needs_tls = value == "yes",
        "commit" => transcript.commit = Err(named(value)),
        other => panic!("{}: no option {other}", transcript.name),
    }
}

/// The extensions of these keywords, separated by commas.
fn extensions(keywords: &str) -> Offered {
    let words = keywords.split(',').filter(|word| !word.is_empty());
    words.fold(Offered::NONE, |all, word| {
        all.with(extension::named(word).expect("a keyword"))
    })
}

fn named(name: &str) -> Reply {
    let at = reply::ROWS
        .iter()
        .position(|row| row.name == name)
        .expect("the name of a reply");
    reply::ALL[at]
}

fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'\\' {
            octets.push(*first);
            continue;
        }
        let (&escape, behind) = rest.split_first().expect("an escape");
        rest = behind;
        match escape {
            b'r' => octets.push(b'\r'),
            b'n' => octets.push(b'\n'),
            b't' => octets.push(b'\t'),
            b'0' => octets.push(0),
            b'\\' => octets.push(b'\\'),
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).expect("two digits");
                octets.push(u8::from_str_radix(digits, 16).expect("a hexadecimal number"));
                rest = &rest[2..];
            }
            b'*' => {
                let rest_text = std::str::from_utf8(rest).expect("UTF-8");
                let (times, behind) = rest_text.split_once('(').expect("\\*N(TEXT)");
                let (repeated, behind) = behind.split_once(')').expect("\\*N(TEXT)");
                let times = times.parse().expect("a number");
                octets.extend(unescape(repeated).repeat(times));
                rest = behind.as_bytes();
            }
            other => panic!("no escape {}", char::from(other)),
        }
    }
    octets
}

/// `octets` with the names of configured replies replaced by them.
fn configured(octets: &[u8], ctx: &Context) -> Vec<u8> {
    let mut out = Vec::new();
    let ehlo = |tls| ctx.ehlo_reply(ctx.services(tls, Offered::PROMISES, false), WALL_NS);
    let (plain, tls) = (ehlo(false), ehlo(true));
    for line in octets.split_inclusive(|octet| *octet == b'\n') {
        out.extend_from_slice(match line {
            b"{greeting}\r\n" => &ctx.greeting,
            b"{helo}\r\n" => &ctx.helo_reply,
            b"{ehlo}\r\n" => plain.as_bytes(),
            b"{help}\r\n" => &ctx.help_reply,
            b"{ehlo tls}\r\n" => tls.as_bytes(),
            b"{help tls}\r\n" => &ctx.help_reply_tls,
            line => line,
        });
    }
    out
}

fn facts_text(stored: &Stored) -> String {
    let facts = stored.facts.expect("facts of a stored message");
    let mut words = Vec::new();
    for (flag, name) in [
        (envelope::FLAG_ESMTP, "esmtp"),
        (envelope::FLAG_SMTPUTF8, "smtputf8"),
        (envelope::FLAG_BDAT, "bdat"),
        (envelope::FLAG_NORMALIZED, "normalized"),
    ] {
        if facts.flags & flag != 0 {
            words.push(name.to_owned());
        }
    }
    words.push(["unstated", "7bit", "8bitmime", "binarymime"][usize::from(facts.body)].to_owned());
    words.push(format!("recipients={}", facts.recipients));
    if let Some(size) = facts.declared_size {
        words.push(format!("size={size}"));
    }
    words.push(format!("octets={}", facts.content.octets));
    for (name, count) in [
        ("bare_lf", facts.content.bare_lf),
        ("bare_cr", facts.content.bare_cr),
        ("nul", facts.content.nul),
    ] {
        if count > 0 {
            words.push(format!("{name}={count}"));
        }
    }
    if let Some(offset) = facts.content.first_offset {
        words.push(format!("first={offset}"));
    }
    words.join(" ")
}

/// The user of RFC 7677 3, `user` with the password `pencil`.
fn users() -> Users {
    let file = "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    Users::parse(file, &[7; 32]).expect("a file of users")
}

fn recorder(transcript: &Transcript, manner: Manner) -> Recorder {
    let mut recorder = Recorder::new(manner, 7);
    recorder.policy.clone_from(&transcript.policy);
    recorder.envelope_bytes_max = transcript.envelope_bytes_max;
    recorder.has_storage = transcript.has_storage;
    recorder.keeps = transcript.keeps;
    recorder.trusts = transcript.trusts;
    recorder.binding = transcript
        .is_bound
        .then_some(b"thirty-two octets of an exporter");
    recorder.users = (transcript.options.mechanisms == Mechanisms::ALL).then(users);
    recorder.commit = transcript.commit;
    recorder
}

fn text(octets: &[u8]) -> String {
    octets.escape_ascii().to_string().replace("\\r\\n", "\n")
}

fn check_end(transcript: &Transcript, connection: &Connection<'_>, how: &str) {
    let name = &transcript.name;
    assert_eq!(
        connection.out.closed, transcript.closed,
        "{name}, {how}: the close"
    );
    let stored = &connection.out.stored;
    assert_eq!(
        stored.len(),
        transcript.stored.len(),
        "{name}, {how}: stored messages"
    );
    for (stored, expected) in stored.iter().zip(&transcript.stored) {
        assert_eq!(
            stored.fields, expected.fields,
            "{name}, {how}: the envelope"
        );
        assert_eq!(
            text(&stored.body),
            text(&expected.body),
            "{name}, {how}: the body"
        );
        if let Some(facts) = &expected.facts {
            assert_eq!(&facts_text(stored), facts, "{name}, {how}: the facts");
        }
        if let Some(trace) = &expected.trace {
            assert_eq!(
                text(&stored.trace),
                text(trace),
                "{name}, {how}: the trace field"
            );
        }
    }
}

#[test]
fn transcripts_give_their_replies_turn_by_turn_whole_and_octet_by_octet() {
    for transcript in transcripts() {
        let ctx = Context::new(transcript.options.clone()).expect("options");
        for manner in manners() {
            for cut in [Cut::Whole, Cut::Octets] {
                let how = format!("{manner:?} {cut:?}");
                let mut connection = Connection::new(&ctx, recorder(&transcript, manner));
                for (turn, (sent, replied)) in transcript.turns.iter().enumerate() {
                    if transcript.secured.contains(&turn) {
                        connection.secure();
                    }
                    for piece in pieces(sent, cut) {
                        connection.read(piece);
                    }
                    let wire = core::mem::take(&mut connection.out.wire);
                    assert_eq!(
                        text(&wire),
                        text(&configured(replied, &ctx)),
                        "{}, {how}: replies in turn {turn}",
                        transcript.name
                    );
                }
                check_end(&transcript, &connection, &how);
            }
        }
    }
}

#[test]
fn transcripts_give_the_same_when_everything_is_sent_at_once_at_random_cuts() {
    for transcript in transcripts() {
        let ctx = Context::new(transcript.options.clone()).expect("options");
        // Where a handshake lies between, the client has to wait for its end.
        let mut stages: Vec<Vec<u8>> = vec![Vec::new()];
        for (turn, (sent, _)) in transcript.turns.iter().enumerate() {
            if transcript.secured.contains(&turn) {
                stages.push(Vec::new());
            }
            stages.last_mut().expect("a stage").extend_from_slice(sent);
        }
        let replied: Vec<u8> = transcript
            .turns
            .iter()
            .flat_map(|turn| turn.1.clone())
            .collect();
        for (seed, manner) in manners().chain(manners()).enumerate() {
            let how = format!("{manner:?} seed {seed}");
            let mut connection = Connection::new(&ctx, recorder(&transcript, manner));
            for (at, sent) in stages.iter().enumerate() {
                if at > 0 {
                    connection.secure();
                }
                for piece in pieces(sent, Cut::Random(seed as u64 * 77 + 5)) {
                    connection.read(piece);
                }
            }
            assert_eq!(
                text(&connection.out.wire),
                text(&configured(&replied, &ctx)),
                "{}, {how}: replies",
                transcript.name
            );
            check_end(&transcript, &connection, &how);
        }
    }
}

#[test]
fn reply_lines_have_a_code_an_enhanced_code_of_its_class_and_at_most_512_octets() {
    // C003, C017, C201, C202, C203: RFC 5321 4.2 and 4.5.3.1.5, RFC 2034 4.
    let name = "a".repeat(255);
    let ctx = Context::new(ContextOptions {
        server_name: name,
        message_bytes_max: u64::MAX,
        ..ContextOptions::default()
    })
    .expect("options");
    let plain = [
        Reply::Greeting,
        Reply::Helo,
        Reply::Ehlo,
        Reply::DataStart,
        Reply::AuthChallenge,
    ];
    let fixed = reply::ALL.iter().map(|reply| (*reply, reply.row().wire));
    let ehlo = ctx.ehlo_reply(ctx.services(true, Offered::PROMISES, true), WALL_NS);
    let configured = [
        (Reply::Greeting, &ctx.greeting[..]),
        (Reply::Helo, &ctx.helo_reply[..]),
        (Reply::Ehlo, ehlo.as_bytes()),
        (Reply::Help, &ctx.help_reply[..]),
    ];
    for (reply, wire) in fixed.chain(configured) {
        let text = std::str::from_utf8(wire).expect("ASCII");
        assert!(text.is_ascii() && text.ends_with("\r\n"), "{text:?}");
        let lines: Vec<&str> = text[..text.len() - 2].split("\r\n").collect();
        for (at, line) in lines.iter().enumerate() {
            assert!(
                line.len() + 2 <= 512 && !line.contains(['\r', '\n']),
                "{line:?}"
            );
            let separator = if at + 1 == lines.len() { ' ' } else { '-' };
            assert!(
                line.starts_with(&format!("{}{separator}", reply.code())),
                "{line:?}"
            );
            let mut code = line[4..].split(' ').next().expect("a word").split('.');
            let class = code.next().expect("a part");
            let parts = code
                .map(|part| part.parse::<u32>().is_ok())
                .collect::<Vec<_>>();
            if plain.contains(&reply) {
                assert_ne!(parts, [true, true], "{line:?}");
            } else {
                assert_eq!(
                    (class, &parts[..]),
                    (&line[..1], &[true, true][..]),
                    "{line:?}"
                );
            }
        }
    }
}

#[test]
fn every_obligation_in_scope_has_a_row_and_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/smtp-conformance.md")).expect("the document");
    let mut in_rows = BTreeSet::new();
    for row in document.lines().filter(|line| line.starts_with("| C")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 7, "{row}");
        let (id, test) = (cells[1], cells[5]);
        assert!(in_rows.insert(id.to_owned()), "{id} stands twice");
        if test.starts_with("not ") {
            continue;
        }
        let test = test.trim_matches('`');
        let (file, marker) = match test.split_once("::") {
            Some((file, function)) => (file.to_owned(), format!("fn {function}(")),
            None => (format!("tests/transcripts/{test}.smtp"), id.to_owned()),
        };
        let content = fs::read_to_string(root.join(&file));
        let content = content.unwrap_or_else(|_| panic!("{id}: {file} does not exist"));
        assert!(
            content.contains(&marker),
            "{id}: {file} does not name {marker}"
        );
    }
    let ranges = [
        1..=23,
        30..=60,
        70..=95,
        100..=107,
        110..=129,
        130..=142,
        150..=159,
        170..=190,
        200..=207,
        210..=225,
        230..=237,
        240..=243,
    ];
    for id in ranges.into_iter().flatten() {
        assert!(
            in_rows.contains(&format!("C{id:03}")),
            "C{id:03} has no row"
        );
    }
}
