//! Clients that mean harm, and what becomes of everybody else: after each of them, and while it is there, a fresh
//! client's message is stored within [`TURNS_MAX`] turns; when it has gone or was cut, the pool, the table of clients
//! and the timers are as they were; and no message is stored that was not sent whole and valid.
//!
//! The server is the real one over streams in memory, on a clock that is set by hand. `docs/operations.md` has a
//! table of these cases.

#[expect(dead_code, reason = "this test needs a part of it")]
#[path = "support/server.rs"]
mod support;

#[expect(dead_code, reason = "this test needs a part of it")]
#[path = "support/random.rs"]
mod random;

use std::time::Duration;

use random::Random;
use ringmx::clock::Clock;
use ringmx::logger::{LogFormat, LogLevel, Logger};
use ringmx::metrics::{CloseCause, Limited, Scope};
use ringmx::policy::clients::{ClientLimits, ClientTable, Limit};
use ringmx::ringlog::writer::Survive;
use ringmx::server::Options;
use ringmx::server::limiter::Limiter;
use support::{Client, Rig, options};

/// Turns from the connection of a fresh client to the 250 of its message: one that greets it, one that takes what it
/// sends, one that hears of the sync.
const TURNS_MAX: u32 = 3;
/// Longest that any client can stay: every time limit of [`Siege::options`] is shorter.
const ALL_LIMITS: Duration = Duration::from_secs(1_200);

const HELO: &[u8] = b"EHLO h.example\r\n";
const ENVELOPE: &[u8] = b"MAIL FROM:<h@h.example>\r\nRCPT TO:<v@v.example>\r\n";
const FRESH: &[u8] =
    b"EHLO f.example\r\nMAIL FROM:<f@f.example>\r\nRCPT TO:<v@v.example>\r\nDATA\r\n\
                       Subject: fresh\r\n\r\nStill here?\r\n.\r\n";

/// A server, and what it was before anybody attacked it.
struct Siege {
    rig: Rig,
    free_bytes: u64,
    /// Messages that were sent whole and valid.
    valid: u64,
}

impl Siege {
    fn options() -> Options {
        Options {
            sessions_max: 2_000,
            data_rate_min: 500,
            ..options()
        }
    }

    fn new() -> Siege {
        let mut rig = Rig::new(Siege::options(), Survive::Power);
        rig.syncs.at_once.set(true);
        rig.server.shared.logger =
            Logger::to_memory(LogFormat::Text, LogLevel::Debug, Clock::new());
        let free_bytes = rig.server.shared.pool.free_bytes();
        Siege {
            rig,
            free_bytes,
            valid: 0,
        }
    }

    /// The same with limits on clients, everything else as wide as can be.
    fn with_limits(limits: ClientLimits, set: impl FnOnce(&mut Limiter)) -> Siege {
        let mut siege = Siege::new();
        let table = ClientTable::new(Siege::options().sessions_max, (3, 5), limits);
        let mut limiter = Limiter::new(table);
        limiter.on_sinks = true;
        set(&mut limiter);
        siege.rig.server.shared.limiter = Some(Box::new(limiter));
        siege
    }

    fn connect(&mut self) -> Client {
        self.rig.connect()
    }

    /// A client that has said EHLO and read the replies.
    fn greeted(&mut self) -> Client {
        let client = self.rig.connect();
        self.rig.send(&client, HELO);
        assert!(client.read().starts_with("220 "));
        client
    }

    /// Sends and returns everything the server says, in as many turns as that takes.
    fn say(&mut self, client: &Client, octets: &[u8]) -> String {
        self.rig.send(client, octets);
        self.settle();
        client.read()
    }

    /// Runs turns until nothing is due at once.
    fn settle(&mut self) {
        let mut turns = 0;
        while self
            .rig
            .server
            .next_turn()
            .is_some_and(|due| due <= self.rig.now)
            || self.rig.server.is_syncing()
        {
            self.rig.turn();
            turns += 1;
            assert!(turns < 100_000, "the server finds no end");
        }
    }

    /// A fresh client's message is stored, whatever else goes on.
    fn assert_serves(&mut self) {
        let client = self.rig.connect_from(([192, 0, 2, 99], 9).into(), b"");
        self.rig.send(&client, FRESH);
        let mut turns = 2;
        let mut replies = client.read();
        while !replies.contains("250 2.0.0 Ok: stored as 0-") {
            assert!(turns < TURNS_MAX, "no 250 in {turns} turns: {replies:?}");
            self.rig.turn();
            turns += 1;
            replies += &client.read();
        }
        self.rig.send(&client, b"QUIT\r\n");
        assert_eq!(client.read(), "221 2.0.0 Bye\r\n");
        assert!(client.pipe.borrow().dropped);
        self.valid += 1;
    }

    /// Everybody else has gone, or is cut within the time limits; then everything is as it was.
    fn assert_recovers(mut self) -> Rig {
        self.assert_serves();
        self.rig.pass(ALL_LIMITS);
        self.settle();
        assert_eq!(
            self.rig.server.connections(),
            0,
            "sessions that no time limit ends"
        );
        assert_eq!(self.rig.server.shared.pool.free_bytes(), self.free_bytes);
        if let Some(limiter) = &self.rig.server.shared.limiter {
            assert_eq!((limiter.tarpitted(), limiter.clients.sessions()), (0, 0));
        }
        self.assert_serves();
        self.settle();
        let shared = &self.rig.server.shared;
        let stored = shared
            .storage
            .as_ref()
            .expect("there is a log")
            .log
            .messages();
        assert_eq!(
            (shared.metrics.messages_accepted, stored),
            (self.valid, self.valid)
        );
        assert_eq!(shared.metrics.session_panics, 0);
        assert_eq!(shared.pool.free_bytes(), self.free_bytes);
        self.rig
    }
}

/// The octets whole, one by one, and at random cuts.
fn every_way(octets: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut ways = vec![
        vec![octets.to_vec()],
        octets.iter().map(|octet| vec![*octet]).collect(),
    ];
    for seed in 0..3 {
        let mut random = Random::new(seed);
        let mut rest = octets;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let len = random.between(1, 9).min(rest.len() as u64) as usize;
            parts.push(rest[..len].to_vec());
            rest = &rest[len..];
        }
        ways.push(parts);
    }
    ways
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn smuggling_gets_one_550_and_stores_nothing_however_it_is_cut() {
    let mut siege = Siege::new();
    for end in [
        &b"\n.\n"[..],
        b"\n.\r\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\n.\r",
        b"\r.\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\n",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\0\n",
    ] {
        let smuggled =
            b"MAIL FROM:<admin@v.example>\r\nRCPT TO:<v@v.example>\r\nDATA\r\nForged\r\n.\r\n";
        let input = [ENVELOPE, b"DATA\r\nfirst", end, smuggled, b"NOOP\r\n"].concat();
        for parts in every_way(&input) {
            let client = siege.greeted();
            let mut replies = String::new();
            for part in &parts {
                replies += &siege.say(&client, part);
            }
            let accepted =
                "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n";
            let refused =
                "550 5.6.0 Content holds a bare CR, bare LF or NUL; lines must end in CRLF\r\n";
            if end == b"\r\r\n.\r\n" {
                // The end is a good one, behind a line that is not: what follows is a transaction of its own, which
                // its sender may as well have sent by itself.
                let own = format!("{accepted}{refused}{accepted}250 2.0.0 Ok: stored as 0-");
                assert!(replies.starts_with(&own), "{end:?}: {replies}");
                siege.valid += 1;
            } else {
                assert_eq!(
                    replies,
                    format!("{accepted}{refused}250 2.0.0 Ok\r\n"),
                    "{end:?}"
                );
            }
        }
    }
    siege.assert_serves();
    siege.assert_recovers();
}

#[test]
fn numbers_are_digits_and_never_wrap() {
    let mut siege = Siege::new();
    let client = siege.greeted();
    let (malformed, too_big) = (
        "501 5.5.4 Bad parameter value\r\n",
        "552 5.3.4 Message too big\r\n",
    );
    for (size, expected) in [
        ("", malformed),
        ("-1", malformed),
        ("+1", malformed),
        ("0x10", malformed),
        ("1e3", malformed),
        ("1 ", "250 2.1.0 Ok\r\n"),
        ("1_000", malformed),
        ("1,000", malformed),
        ("\u{663}", malformed),
        ("1048576", "250 2.1.0 Ok\r\n"),
        ("1048577", too_big),
        ("4294967297", too_big),
        ("9223372036854775808", too_big),
        ("18446744073709551615", too_big),
        ("18446744073709551616", too_big),
        ("18446744073709552616", too_big),
        ("99999999999999999999", too_big),
        ("100000000000000000000", malformed),
        ("00000000000000000001", "250 2.1.0 Ok\r\n"),
    ] {
        let line = format!("RSET\r\nMAIL FROM:<> SIZE={size}\r\n");
        let replies = siege.say(&client, line.as_bytes());
        assert_eq!(
            replies,
            format!("250 2.0.0 Ok\r\n{expected}"),
            "SIZE={size}"
        );
    }
    let syntax = "501 5.5.4 Syntax: BDAT size [LAST]\r\n";
    for arguments in [
        "",
        " ",
        " -1",
        " -1 LAST",
        " +1",
        " 0x1",
        " 1e1",
        " abc",
        " 1 FIRST",
        " 1 LAST LAST",
        " 1LAST",
        " LAST",
        " 18446744073709551616",
        " 99999999999999999999999",
        " 1,2",
        " \u{664}",
    ] {
        let group = [
            b"RSET\r\n",
            ENVELOPE,
            format!("BDAT{arguments}\r\nNOOP\r\n").as_bytes(),
        ]
        .concat();
        let replies = siege.say(&client, &group);
        let expected =
            format!("250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n{syntax}250 2.0.0 Ok\r\n");
        assert_eq!(replies, expected, "BDAT{arguments}");
    }
    // A chunk as large as a number can say: its octets are awaited and dropped, none is kept for it.
    for size in ["1048577", "9223372036854775807", "18446744073709551615"] {
        let greedy = siege.greeted();
        let group = [
            ENVELOPE,
            format!("BDAT {size} LAST\r\n").as_bytes(),
            b"NOOP\r\nQUIT\r\n",
        ]
        .concat();
        assert_eq!(
            siege.say(&greedy, &group),
            "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n",
            "BDAT {size}"
        );
        let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
        assert!(held <= 4_096, "{held} bytes for a promise");
    }
    siege.assert_recovers();
}

#[test]
fn parameters_given_twice_unknown_or_malformed_are_refused_one_by_one() {
    let mut siege = Siege::new();
    let client = siege.greeted();
    let (twice, unknown) = (
        "501 5.5.4 Parameter given twice\r\n",
        "555 5.5.4 Parameter not recognized or not implemented\r\n",
    );
    let malformed = "501 5.5.4 Bad parameter value\r\n";
    for (parameters, expected) in [
        ("SIZE=1 SIZE=1", twice),
        ("BODY=7BIT body=8BITMIME", twice),
        ("SMTPUTF8 SMTPUTF8", twice),
        ("BODY=NONSENSE", malformed),
        ("BODY", malformed),
        ("SMTPUTF8=1", malformed),
        ("RET=FOO", malformed),
        ("ENVID=+G1", malformed),
        ("ENVID=", malformed),
        ("X-EVIL=1", unknown),
        ("NOTIFY=NEVER", unknown),
        ("=", unknown),
        ("SIZE=1=2", malformed),
    ] {
        let replies = siege.say(&client, format!("MAIL FROM:<> {parameters}\r\n").as_bytes());
        assert_eq!(replies, expected, "{parameters}");
    }
    assert_eq!(siege.say(&client, b"MAIL FROM:<>\r\n"), "250 2.1.0 Ok\r\n");
    for (parameters, expected) in [
        ("NOTIFY=NEVER NOTIFY=NEVER", twice),
        ("NOTIFY=NEVER,SUCCESS", malformed),
        ("NOTIFY=", malformed),
        ("ORCPT=rfc822", malformed),
        ("ORCPT=rfc822;a+zz", malformed),
        ("SIZE=1", unknown),
        ("X-EVIL", unknown),
    ] {
        let replies = siege.say(
            &client,
            format!("RCPT TO:<v@v.example> {parameters}\r\n").as_bytes(),
        );
        assert_eq!(replies, expected, "{parameters}");
    }
    assert_eq!(
        siege.say(&client, b"DATA\r\n"),
        "503 5.5.1 Need an accepted RCPT first\r\n"
    );
    siege.assert_recovers();
}

#[test]
fn nul_controls_and_octets_over_127_are_refused_wherever_they_stand() {
    let mut siege = Siege::new();
    let client = siege.greeted();
    for octet in (0..32).chain([127]).chain([128, 0xa0, 0xc0, 0xfe, 0xff]) {
        if matches!(octet, b'\r' | b'\n') {
            continue;
        }
        for line in [
            "NOOP",
            "EHLO h.example",
            "MAIL FROM:<h@h.example>",
            "RCPT TO:<v@v.example>",
            "DATA",
            "QUIT",
        ] {
            for at in 0..=line.len() {
                let mut octets = line.as_bytes().to_vec();
                octets.insert(at, octet);
                octets.extend_from_slice(b"\r\n");
                let reply = siege.say(&client, &octets);
                let is_argument_of_noop = line == "NOOP" && at == line.len();
                let code = &reply[..3];
                assert!(
                    matches!(code, "500" | "501" | "503" | "553" | "421") || is_argument_of_noop,
                    "{octets:?}: {reply}"
                );
                assert!(
                    reply.is_ascii() && reply.lines().count() == 1,
                    "{octets:?}: {reply:?}"
                );
                if code == "421" {
                    // A hundred errors end a session; another one takes over.
                    return siege.nul_in_a_new_session(octet);
                }
            }
        }
    }
    unreachable!("more than a hundred errors were made");
}

impl Siege {
    /// The rest of the octets, each line in a session of its own.
    fn nul_in_a_new_session(mut self, from: u8) {
        for octet in from..=255 {
            if matches!(octet, b'\r' | b'\n') || (32..127).contains(&octet) {
                continue;
            }
            let client = self.greeted();
            for line in [
                "MAIL FROM:<h@h.example>",
                "RCPT TO:<v@v.example>",
                "EHLO h.example",
            ] {
                let at = line.len() - 3;
                let mut octets = line.as_bytes().to_vec();
                octets.insert(at, octet);
                octets.extend_from_slice(b"\r\n");
                let reply = self.say(&client, &octets);
                assert!(
                    matches!(&reply[..3], "500" | "501" | "503" | "553"),
                    "{octets:?}: {reply}"
                );
            }
            assert_eq!(self.say(&client, b"NOOP\r\n"), "250 2.0.0 Ok\r\n");
            self.say(&client, b"QUIT\r\n");
        }
        self.assert_recovers();
    }
}

#[test]
fn a_line_of_a_megabyte_gets_one_500_and_takes_no_memory() {
    for end in [&b"\r\n"[..], b"\n"] {
        let mut siege = Siege::new();
        let client = siege.greeted();
        for _ in 0..16 {
            siege.rig.send(&client, &[b'x'; 65_536]);
            let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
            assert!(held <= 65_536, "{held} bytes held");
            siege.assert_serves();
        }
        assert_eq!(client.read(), "");
        let replies = siege.say(&client, &[end, b"NOOP\r\n"].concat());
        assert_eq!(
            replies,
            "500 5.5.2 Command line too long\r\n250 2.0.0 Ok\r\n"
        );
        siege.assert_recovers();
    }
}

#[test]
fn a_million_pipelined_commands_are_answered_in_turns_that_are_bounded() {
    const COMMANDS: usize = 1_000_000;
    let mut siege = Siege::new();
    let client = siege.greeted();
    siege.rig.send(&client, &b"NOOP\r\n".repeat(COMMANDS));
    // While they are worked off others are served, and what waits holds no more than one read and one reply buffer.
    let mut answered = 0;
    let mut turns: u64 = 0;
    let mut others = 0;
    while answered < COMMANDS {
        let replies = client.read();
        assert!(replies.lines().all(|line| line == "250 2.0.0 Ok"));
        answered += replies.lines().count();
        if turns.is_multiple_of(1_000) {
            siege.assert_serves();
            others += 1;
        }
        let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
        assert!(held <= 65_536 + 4_096, "{held} bytes held");
        siege.rig.turn();
        turns += 1;
        assert!(turns < 100_000, "{answered} answered");
    }
    assert_eq!(answered, COMMANDS);
    assert!(others > 1, "they were answered in {turns} turns");
    siege.assert_recovers();
}

#[test]
fn fifty_thousand_recipients_get_a_reply_each_and_hold_one_envelope() {
    let mut siege = Siege::new();
    let client = siege.greeted();
    assert_eq!(
        siege.say(&client, b"MAIL FROM:<h@h.example>\r\n"),
        "250 2.1.0 Ok\r\n"
    );
    let mut replies = String::new();
    for group in 0..50 {
        let lines: String = (0..1_000)
            .map(|at| format!("RCPT TO:<r{group}x{at}@v.example>\r\n"))
            .collect();
        replies += &siege.say(&client, lines.as_bytes());
        siege.assert_serves();
    }
    let (taken, refused) = ("250 2.1.5 Ok\r\n", "452 4.5.3 Too many recipients\r\n");
    assert_eq!(replies, taken.repeat(1_000) + &refused.repeat(49_000));
    let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
    assert!(held <= 131_072, "{held} bytes held");
    // Nobody answers for a message that was never sent.
    client.pipe.borrow_mut().input_ended = true;
    siege.say(&client, b"DATA\r\nhalf of it");
    siege.assert_recovers();
}

/// What a client sends to get into each state, and the name of the state.
const STATES: &[(&str, &[u8])] = &[
    ("before EHLO", b""),
    ("after EHLO", b"EHLO h.example\r\n"),
    ("within a command", b"EHLO h.example\r\nMAIL FR"),
    ("within a line too long", &[b'x'; 5_000]),
    (
        "within an envelope",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\n",
    ),
    (
        "within data",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nDATA\r\nSubject: x\r\n",
    ),
    (
        "at the dot",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nDATA\r\nx\r\n.\r",
    ),
    (
        "within a chunk",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nBDAT 1000 LAST\r\nx",
    ),
    (
        "between chunks",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nBDAT 1\r\nx",
    ),
    (
        "within a refused chunk",
        b"EHLO h.example\r\nBDAT 1000 LAST\r\nx",
    ),
];

#[test]
fn a_silent_client_is_told_and_cut_in_every_state() {
    for (state, input) in STATES {
        let mut siege = Siege::new();
        let client = siege.connect();
        siege.say(&client, input);
        siege.assert_serves();
        let mut waited = 0;
        while !client.pipe.borrow().output_ended {
            siege.rig.pass(seconds(1));
            waited += 1;
            assert!(waited <= 601, "{state}: still there");
        }
        let in_data =
            state.ends_with("data") || state.ends_with("dot") || state.ends_with(" chunk");
        // Nothing in a minute is less than the least rate.
        let (expected, limit) = match in_data {
            true => ("421 4.4.2 Data arrived too slowly; closing\r\n", 60),
            false => ("421 4.4.2 Timed out; closing\r\n", 300),
        };
        assert_eq!(client.read(), expected, "{state}");
        assert!(
            (limit..=limit + 1).contains(&waited),
            "{state}: after {waited} s"
        );
        siege.assert_recovers();
    }
}

#[test]
fn a_client_that_drips_is_told_and_cut_in_every_state() {
    for (state, input) in STATES {
        let mut siege = Siege::new();
        let client = siege.connect();
        siege.say(&client, input);
        // An octet every ten seconds is never silence.
        let mut waited = 0;
        while !client.pipe.borrow().output_ended {
            siege.rig.send(&client, b"x");
            siege.rig.pass(seconds(10));
            waited += 10;
            assert!(waited <= 1_000, "{state}: still there");
        }
        let reply = client.read();
        let in_data =
            state.ends_with("data") || state.ends_with("dot") || state.ends_with(" chunk");
        let (expected, limit) = match in_data {
            // The rate is judged after a minute.
            true => ("421 4.4.2 Data arrived too slowly; closing\r\n", 70),
            false => ("421 4.4.2 Timed out; closing\r\n", 620),
        };
        assert_eq!(reply, expected, "{state}");
        assert!(waited <= limit, "{state}: after {waited} s");
        siege.assert_recovers();
    }
}

#[test]
fn a_client_that_ends_its_side_in_any_state_leaves_nothing_behind() {
    for (state, input) in STATES {
        let mut siege = Siege::new();
        let client = siege.connect();
        client.pipe.borrow_mut().input_ended = true;
        let replies = siege.say(&client, input);
        assert!(replies.starts_with("220 "), "{state}: {replies}");
        assert!(!replies.contains("stored"), "{state}: {replies}");
        assert!(client.pipe.borrow().dropped, "{state}");
        siege.assert_recovers();
    }
    // What was complete before is answered all the same.
    let mut siege = Siege::new();
    let client = siege.connect();
    client.pipe.borrow_mut().input_ended = true;
    let replies = siege.say(&client, FRESH);
    assert!(
        replies.ends_with("250 2.0.0 Ok: stored as 0-1\r\n"),
        "{replies}"
    );
    siege.valid += 1;
    siege.assert_recovers();
}

#[test]
fn a_connection_that_is_reset_in_any_state_is_gone_at_once() {
    for (state, input) in STATES {
        let mut siege = Siege::new();
        let client = siege.connect();
        siege.say(&client, input);
        client.pipe.borrow_mut().is_reset = true;
        siege.rig.server.begin_turn(siege.rig.now, siege.rig.now.0);
        siege.rig.server.ready(client.token, true, true, true);
        siege.rig.server.end_turn();
        assert!(client.pipe.borrow().dropped, "{state}");
        assert_eq!(
            siege.rig.server.shared.pool.free_bytes(),
            siege.free_bytes,
            "{state}"
        );
        let causes = siege.rig.server.shared.metrics.connections_closed;
        assert_eq!(causes[CloseCause::PeerReset as usize], 1, "{state}");
        siege.assert_recovers();
    }
}

#[test]
fn clients_that_never_read_hold_a_bounded_part_of_the_pool_and_are_cut() {
    const DEAF: u64 = 40;
    let mut siege = Siege::new();
    let clients: Vec<Client> = (0..DEAF).map(|_| siege.greeted()).collect();
    for client in &clients {
        client.pipe.borrow_mut().window = 100;
        siege.rig.send(client, &b"VRFY someone\r\n".repeat(70_000));
        siege.settle();
        siege.assert_serves();
    }
    let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
    assert!(held <= DEAF * (65_536 + 4_096), "{held} bytes held");
    siege.rig.pass(seconds(140));
    assert!(
        clients
            .iter()
            .all(|client| client.pipe.borrow().output_ended || client.pipe.borrow().dropped)
    );
    siege.assert_recovers();
}

#[test]
fn promised_sizes_and_open_messages_are_given_back_when_their_clients_go() {
    let mut siege = Siege::new();
    let clients: Vec<Client> = (0..200).map(|_| siege.greeted()).collect();
    let group = b"MAIL FROM:<> SIZE=1048576\r\nRCPT TO:<v@v.example>\r\nDATA\r\nSubject: half\r\n";
    for client in &clients {
        siege.say(client, group);
    }
    let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
    assert!(held <= 200 * 4_096, "{held} bytes for promises");
    // What is announced may be read into a chunk of its own, which is not kept for little.
    for client in &clients {
        siege.say(client, b"an octet or two");
    }
    let held = siege.free_bytes - siege.rig.server.shared.pool.free_bytes();
    assert!(
        held <= 200 * 4_096,
        "{held} bytes for promises and some octets"
    );
    siege.assert_serves();
    for client in clients {
        client.pipe.borrow_mut().input_ended = true;
        siege.say(&client, b"and no end");
        assert!(client.pipe.borrow().dropped);
    }
    assert_eq!(siege.rig.server.shared.metrics.messages_aborted, 200);
    siege.assert_recovers();
}

#[test]
fn a_thousand_sessions_of_one_client_leave_room_for_others() {
    let limits = ClientLimits {
        sessions: Limit {
            normal: 50,
            stress: 10,
        },
        network_factor: 4,
        ..ClientLimits::default()
    };
    let mut siege = Siege::with_limits(limits, |_| {});
    let mut greeted = Vec::new();
    let mut refused = 0;
    for n in 0..1_000_u32 {
        let port = n as u16;
        let client = siege.rig.connect_from(([10, 0, 0, 9], port).into(), b"");
        match client.read().as_str() {
            "421 4.7.0 Too many sessions from your network; try again later\r\n" => refused += 1,
            greeting => {
                assert!(greeting.starts_with("220 "), "{greeting}");
                greeted.push(client);
            }
        }
        if n % 100 == 0 {
            siege.assert_serves();
        }
    }
    assert_eq!((greeted.len(), refused), (50, 950));
    assert_eq!(siege.rig.server.connections(), 50);
    let limited = siege.rig.server.shared.metrics.limited[Limited::Sessions as usize];
    assert_eq!(limited, [950, 0]);
    siege.assert_recovers();
}

#[test]
fn sessions_of_many_clients_take_all_places_and_give_them_back() {
    let limits = ClientLimits {
        sessions: Limit {
            normal: 50,
            stress: 10,
        },
        network_factor: 4,
        ..ClientLimits::default()
    };
    let mut siege = Siege::with_limits(limits, |_| {});
    let mut taken = 0;
    for n in 0..4_000_u32 {
        if !siege.rig.server.has_place() {
            break;
        }
        let [low, high, ..] = n.to_le_bytes();
        // Each of a network of its own, so that no limit but the number of places stops them.
        let client = siege.rig.connect_from(([10, high, low, 1], 9).into(), b"");
        taken += usize::from(client.read().starts_with("220 "));
    }
    assert_eq!(taken, Siege::options().sessions_max);
    // The first that goes makes a place, and everybody else is gone when the first command is overdue.
    let limiter = siege.rig.server.shared.limiter.as_ref().expect("set");
    assert!(limiter.stress.is_on());
    assert_eq!(limiter.clients.sessions(), 2 * taken as u64);
    assert_eq!(limiter.clients.untracked(), 0);
    siege.rig.pass(seconds(320));
    assert!(siege.rig.server.has_place());
    siege.assert_recovers();
}

#[test]
fn early_talkers_are_refused_by_the_hundred_while_others_are_served() {
    let mut siege = Siege::with_limits(ClientLimits::default(), |limiter| {
        limiter.greeting_delay = seconds(3);
    });
    let early: Vec<Client> = (0..500)
        .map(|_| siege.rig.connect_from(([10, 0, 0, 9], 9).into(), FRESH))
        .collect();
    for client in &early {
        siege.rig.send(client, b"");
        assert_eq!(
            client.read(),
            "554 5.5.1 You talked before the greeting\r\n"
        );
    }
    assert_eq!(siege.rig.server.shared.metrics.early_talkers, 500);
    // Who waits is greeted; greetings are not held back any more here, so that a fresh client is one that waits.
    siege
        .rig
        .server
        .shared
        .limiter
        .as_mut()
        .expect("set")
        .greeting_delay = Duration::ZERO;
    siege.assert_recovers();
}

#[test]
fn guesses_of_recipients_are_slowed_down_and_ended() {
    use ringmx::policy::recipients::Recipients;
    use ringmx::policy::rules::Rules;
    use ringmx::smtp::session::Role;
    let errors = Limit {
        normal: 20,
        stress: 3,
    };
    let mut siege = Siege::with_limits(ClientLimits::default(), |limiter| {
        limiter.session_errors = errors;
        limiter.tarpit = seconds(1);
        limiter.tarpit_after = 5;
    });
    let mut recipients = Recipients::new(None);
    recipients.add(b"v@v.example").expect("an address");
    siege.rig.server.shared.listeners[0].role = Role::Mx;
    siege.rig.server.shared.rules = Rules {
        recipients: Some(recipients),
        ..Rules::default()
    }
    .into();
    let client = siege.greeted();
    siege.rig.send(&client, b"MAIL FROM:<>\r\n");
    siege
        .rig
        .send(&client, &b"RCPT TO:<guess@v.example>\r\n".repeat(1_000));
    siege.assert_serves();
    let mut waited = 0;
    while !client.pipe.borrow().output_ended {
        siege.rig.pass(seconds(1));
        waited += 1;
        assert!(waited < 60, "still there");
    }
    let unknown = "550 5.1.1 No such user here\r\n".repeat(20);
    let end = "421 4.7.0 Too many errors; closing\r\n";
    assert_eq!(client.read(), format!("250 2.1.0 Ok\r\n{unknown}{end}"));
    assert!(
        waited >= 15,
        "fifteen of them were held back for a second each, not {waited} s"
    );
    siege.assert_recovers();
}

#[test]
fn nothing_behind_a_quit_or_a_421_is_executed() {
    let mut siege = Siege::new();
    let client = siege.greeted();
    let message = [ENVELOPE, b"DATA\r\nx\r\n.\r\n"].concat();
    assert_eq!(
        siege.say(&client, &[b"QUIT\r\n", &message[..]].concat()),
        "221 2.0.0 Bye\r\n"
    );
    let browser = siege.connect();
    let post = [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", HELO, &message[..]].concat();
    let replies = siege.say(&browser, &post);
    assert!(
        replies.ends_with("\r\n554 5.5.0 This is an SMTP server\r\n"),
        "{replies}"
    );
    let clumsy = siege.greeted();
    let replies = siege.say(
        &clumsy,
        &[&b"BOGUS\r\n".repeat(101)[..], &message[..]].concat(),
    );
    let unknown = "500 5.5.1 Command not recognized\r\n".repeat(100);
    assert_eq!(
        replies,
        format!("{unknown}421 4.7.0 Too many errors; closing\r\n")
    );
    siege.assert_recovers();
}

#[test]
fn no_reply_and_no_log_line_can_be_forged() {
    let mut siege = Siege::new();
    let evil = [
        &b"EHLO a\rX-Evil: 1\r\n"[..],
        b"EHLO a\nX-Evil: 1\r\n",
        b"EHLO a\x1b[2J\r\n",
        b"EHLO a class=stored\r\n",
        b"EHLO [127.0.0.1] X-Evil\r\n",
        b"MAIL FROM:<a\rb@h.example>\r\n",
        b"MAIL FROM:<\"a\\\rb\"@h.example>\r\n",
        b"MAIL FROM:<a@h.example>\rX-Evil: 1\r\n",
        b"RCPT TO:<a\0@h.example>\r\n",
        b"VRFY a\r250 2.0.0 Ok: stored as 0-99\r\n",
        b"X\r250 2.0.0 Ok: stored as 0-99\r\n",
        b"EXPN \x85\xe2\x80\xa8250 forged\r\n",
    ];
    for line in evil {
        let client = siege.greeted();
        let replies = siege.say(&client, line);
        for reply in replies.split_inclusive("\r\n") {
            let is_whole = reply.ends_with("\r\n")
                && !reply[..reply.len() - 2].contains(['\r', '\n', '\0', '\x1b']);
            assert!(
                is_whole && reply.starts_with(['2', '5']),
                "{line:?}: {reply:?}"
            );
            assert!(
                !reply.contains("Evil") && !reply.contains("stored") && !reply.contains("forged"),
                "{reply}"
            );
        }
        siege.say(&client, b"QUIT\r\n");
    }
    let mut rig = siege.assert_recovers();
    let lines = rig.server.shared.logger.take_lines();
    assert!(
        lines.iter().any(|line| line.contains(" class=refused ")),
        "{lines:?}"
    );
    for line in lines {
        assert!(
            !line.contains(|c: char| c.is_control()) && line.is_ascii(),
            "{line:?}"
        );
        assert!(!line.contains("Evil") && !line.contains("forged"), "{line}");
    }
}

#[test]
fn a_network_that_takes_turns_is_limited_as_a_network() {
    let limits = ClientLimits {
        sessions: Limit {
            normal: 10,
            stress: 10,
        },
        network_factor: 4,
        ..ClientLimits::default()
    };
    let mut siege = Siege::with_limits(limits, |_| {});
    let mut open = Vec::new();
    for host in 0..=255 {
        let client = siege.rig.connect_from(([10, 0, 0, host], 9).into(), b"");
        if client.read().starts_with("220 ") {
            open.push(client);
        }
    }
    assert_eq!(open.len(), 40);
    let limited = siege.rig.server.shared.metrics.limited[Limited::Sessions as usize];
    assert_eq!(limited[Scope::Network as usize], 216);
    siege.assert_recovers();
}

#[test]
fn the_manual_has_a_row_for_each_of_these_tests() {
    let manual = include_str!("../docs/operations.md");
    let (_, rest) = manual
        .split_once("\n## Hostile clients\n")
        .expect("the heading is there");
    let table: Vec<&str> = rest
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .collect();
    let files = [
        ("hostile.rs", include_str!("hostile.rs")),
        ("hostile_wire.rs", include_str!("hostile_wire.rs")),
    ];
    let mut named = 0;
    for (file, text) in files {
        for (at, _) in text.match_indices("#[test]\nfn ") {
            let name = text[at + "#[test]\nfn ".len()..]
                .split('(')
                .next()
                .expect("a name");
            if name.starts_with("the_manual") {
                continue;
            }
            let test = format!("`tests/{file}::{name}`");
            let rows = table.iter().filter(|row| row.contains(&test)).count();
            assert_eq!(rows, 1, "{test}");
            named += 1;
        }
    }
    // Rows name tests of other files as well, which are there.
    let others = [
        ("session.rs", include_str!("session.rs")),
        ("tls.rs", include_str!("tls.rs")),
    ];
    for (file, text) in others {
        let begin = format!("`tests/{file}::");
        for part in table.iter().flat_map(|row| row.split(&begin).skip(1)) {
            let name = part.split('`').next().expect("a name");
            assert!(
                text.contains(&format!("#[test]\nfn {name}(")),
                "tests/{file}::{name}"
            );
            named += 1;
        }
    }
    let tests: usize = table.iter().map(|row| row.matches("`tests/").count()).sum();
    assert_eq!(tests, named, "rows that name a test that is not there");
}
