//! Allocations per message, counted: none once a server is warm and a client stays connected.
//!
//! This file has one test, because the counter counts every thread.

#[expect(dead_code, reason = "this test needs only a part")]
#[path = "support/server.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls_support;

use std::io::Write;
use std::sync::atomic::Ordering;

use ringmx::ringlog::writer::Survive;
use ringmx::server::listener::TlsMode;
use ringmx::smtp::parameter::Offered;
use ringmx::sys::counting::Counting;
use support::{Client, Rig, options};
use tls_support::{Cut, Identity, TlsClient, security};

#[global_allocator]
static COUNTING: Counting = Counting::new();

/// Rounds before counting: every buffer of server and test has its size then, and the ring has wrapped.
const WARM_UP: usize = 300;
/// Rounds that are counted.
const COUNTED: usize = 200;

/// Allocations of the counted rounds.
fn allocations(mut round: impl FnMut()) -> u64 {
    for _ in 0..WARM_UP {
        round();
    }
    let before = COUNTING.calls.load(Ordering::Relaxed);
    for _ in 0..COUNTED {
        round();
    }
    COUNTING.calls.load(Ordering::Relaxed) - before
}

/// Sends one after the other, each when the one before is answered; then settles what is pending.
fn converse(rig: &mut Rig, client: &Client, parts: &[&[u8]]) {
    for part in parts {
        rig.send(client, part);
    }
    rig.turn();
    rig.turn();
    let mut pipe = client.pipe.borrow_mut();
    assert!(pipe.output.starts_with(b"250 2.1.0 Ok\r\n"));
    assert!(pipe.output.windows(9).any(|window| window == b"stored as"));
    assert!(
        !pipe
            .output
            .windows(2)
            .any(|window| window == b"\n4" || window == b"\n5")
    );
    pipe.output.clear();
}

#[test]
fn a_warm_server_allocates_nothing_for_messages_on_kept_connections() {
    const MAIL: &[u8] = b"MAIL FROM:<someone@client.example> SIZE=100\r\n";
    const RCPT: &[u8] = b"RCPT TO:<someone.else@server.example> NOTIFY=NEVER\r\n";
    let text = b"Subject: a message\r\n\r\nSome text, and then the end.\r\n";
    let data = [&text[..], b".\r\n"].concat();
    let chunks = [
        b"BDAT 20\r\n",
        &text[..20],
        b"BDAT 32 LAST\r\n",
        &text[20..52],
    ]
    .concat();
    let long = b"A line of 64 octets, of which there are many in this message.\r\n".repeat(1_600);
    let long = [&long[..], b".\r\n"].concat();
    let pipelined = [MAIL, RCPT, b"DATA\r\n", &data].concat().repeat(10);
    let lock_step: [&[u8]; 4] = [MAIL, RCPT, b"DATA\r\n", &data];
    let by_chunks: [&[u8]; 3] = [MAIL, RCPT, &chunks];
    let large: [&[u8]; 4] = [MAIL, RCPT, b"DATA\r\n", &long];
    let kinds: [(&str, &[&[u8]]); 4] = [
        ("lock-step", &lock_step),
        ("pipelined", &[&pipelined]),
        ("BDAT", &by_chunks),
        ("100 KiB", &large),
    ];
    for survive in [Survive::Power, Survive::Process, Survive::Nothing] {
        for (kind, parts) in kinds {
            let mut rig = Rig::new(options(), survive);
            rig.syncs.at_once.set(true);
            let client = rig.connect();
            rig.send(&client, b"EHLO client.example\r\n");
            client.read();
            let count = allocations(|| converse(&mut rig, &client, parts));
            assert_eq!(count, 0, "{kind}, {survive:?}: in {COUNTED} rounds");
        }
    }

    // A connection for each message: the three allocations of a pipe, which are the test's own.
    let mut rig = Rig::new(options(), Survive::Power);
    rig.syncs.at_once.set(true);
    let count = allocations(|| {
        let client = rig.connect();
        client.pipe.borrow_mut().output.clear();
        rig.send(&client, b"EHLO client.example\r\n");
        client.pipe.borrow_mut().output.clear();
        converse(&mut rig, &client, &lock_step);
        rig.send(&client, b"QUIT\r\n");
        assert!(client.pipe.borrow().dropped);
    });
    assert_eq!(count, 3 * COUNTED as u64, "a connection for each message");

    for (kind, parts) in [("lock-step", &lock_step[..]), ("pipelined", &[&pipelined])] {
        let (count, records) = allocations_under_tls(parts);
        assert!(
            count <= 2 * records,
            "{kind}: {count} allocations for {records} records"
        );
        println!("{kind} under TLS: {count} allocations for {records} records");
    }
}

/// Allocations of the server for these parts of a dialogue under TLS, after some rounds, and the records that came
/// and went meanwhile. rustls makes a vector of each record's plaintext, and of each record it sends; the server adds
/// none.
fn allocations_under_tls(parts: &[&[u8]]) -> (u64, u64) {
    let identity = Identity::new(&["mx.example"]);
    let offered = Offered::STARTTLS;
    let mut rig = Rig::with_listener(
        options(),
        Survive::Power,
        16 << 20,
        TlsMode::Offered,
        offered,
    );
    rig.syncs.at_once.set(true);
    rig.server.secure(security(&[&identity]));
    let plain = rig.connect();
    rig.send(&plain, b"STARTTLS\r\n");
    plain.read();
    let mut client = TlsClient::new(plain, &identity, Cut::Whole);
    client.shake_hands(&mut rig);
    client.say(&mut rig, "EHLO client.example\r\n");
    client.hear(&mut rig);
    let (mut count, mut records) = (0, 0);
    for round in 0..WARM_UP + COUNTED {
        for part in parts {
            client.tls.writer().write_all(part).expect("memory");
            let mut sent = Vec::new();
            while client.tls.wants_write() {
                client.tls.write_tls(&mut sent).expect("memory");
            }
            let before = COUNTING.calls.load(Ordering::Relaxed);
            rig.send(&client.plain, &sent);
            rig.turn();
            rig.turn();
            let made = COUNTING.calls.load(Ordering::Relaxed) - before;
            let answer = client.plain.pipe.borrow().output.clone();
            client.plain.pipe.borrow_mut().output.clear();
            client.take(&answer);
            if round >= WARM_UP {
                count += made;
                records += records_in(&sent) + records_in(&answer);
            }
        }
        client.hear(&mut rig);
    }
    (count, records)
}

/// Whole records in these octets.
fn records_in(mut octets: &[u8]) -> u64 {
    let mut records = 0;
    while let [_, _, _, high, low, rest @ ..] = octets {
        let len = usize::from(*high) << 8 | usize::from(*low);
        octets = &rest[len..];
        records += 1;
    }
    records
}
