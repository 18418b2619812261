//! The turn, step by step: which replies leave when, what is held back, and what ends a session.

#[path = "support/server.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use ringmx::clock::Instant;
use ringmx::metrics::Phase;
use ringmx::ringlog::writer::Survive;
use ringmx::smtp::reply::Reply;
use ringmx::smtp::sink::{Question, Verdict};
use support::{Client, Rig, options};

const ENVELOPE: &[u8] = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n";
const MESSAGE: &[u8] =
    b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nSubject: t\r\n\r\nText.\r\n.\r\n";
const ACCEPTED: &str = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n";

/// A client that has said EHLO and read everything.
fn greeted(rig: &mut Rig) -> Client {
    greeted_by(rig, ([10, 0, 0, 9], 4_242).into())
}

/// As [`greeted`], from this address.
fn greeted_by(rig: &mut Rig, address: SocketAddr) -> Client {
    let client = rig.connect_from(address, b"");
    assert_eq!(client.read(), "220 mx.example ESMTP ringmx ready\r\n");
    rig.send(&client, b"EHLO c.example\r\n");
    let reply = client.read();
    assert!(
        reply.starts_with("250-mx.example greets you\r\n"),
        "{reply:?}"
    );
    client
}

/// Ends syncs until none is under way.
fn sync_all(rig: &mut Rig) {
    while rig.syncs.end(true) {
        rig.turn();
    }
}

fn free(rig: &Rig) -> u64 {
    rig.server.shared.pool.free_bytes()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn replies_behind_a_pending_commit_wait_and_leave_in_order_in_one_write() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    rig.send(&client, &[MESSAGE, b"NOOP\r\nVRFY x\r\n", MESSAGE].concat());
    assert_eq!(
        client.read(),
        ACCEPTED,
        "only what stands before the first 250"
    );
    rig.turn();
    assert_eq!(client.read(), "");
    rig.sync(true);
    assert_eq!(client.pipe.borrow().writes, 1);
    assert_eq!(
        client.read(),
        format!(
            "250 2.0.0 Ok: stored as 0-1\r\n250 2.0.0 Ok\r\n252 2.1.5 Not verified; send mail to try\r\n\
             {ACCEPTED}250 2.0.0 Ok: stored as 0-2\r\n"
        )
    );
    assert_eq!(
        rig.disk_writes.get(),
        1,
        "both messages went out in one write"
    );
}

#[test]
fn each_commit_releases_what_it_covers_and_no_more() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    rig.send(&client, MESSAGE);
    rig.send(&client, &[b"NOOP\r\n", MESSAGE].concat());
    assert_eq!(client.read(), ACCEPTED);
    // The second message was written while the first sync ran: it is not covered. What stands between
    // the two 250s leaves with the first.
    rig.sync(true);
    assert_eq!(
        client.read(),
        format!("250 2.0.0 Ok: stored as 0-1\r\n250 2.0.0 Ok\r\n{ACCEPTED}")
    );
    rig.sync(true);
    assert_eq!(client.read(), "250 2.0.0 Ok: stored as 0-2\r\n");
}

#[test]
fn replies_to_a_group_wait_for_the_250_that_ends_it_and_leave_with_it_in_one_write() {
    let group = b"RSET\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nBDAT 3\r\nx\r\nBDAT 3 LAST\r\ny\r\n";
    let accepted = "250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Chunk ok\r\n";
    for (is_synced, end) in [
        (true, "250 2.0.0 Ok: stored as 0-1\r\n"),
        (false, "451 4.3.0 Storage failed; not stored\r\n"),
    ] {
        let mut rig = Rig::new(options(), Survive::Power);
        let client = greeted(&mut rig);
        // RFC 2920 3.2: the reply to NOOP is not buffered, those to the group behind it are.
        rig.send(&client, &[b"NOOP\r\n", &group[..]].concat());
        assert_eq!(client.read(), "250 2.0.0 Ok\r\n");
        rig.turn();
        assert_eq!(client.read(), "");
        rig.sync(is_synced);
        assert_eq!(client.pipe.borrow().writes, 1);
        assert_eq!(client.read(), format!("{accepted}{end}"));
    }
}

#[test]
fn replies_that_are_not_of_a_group_take_what_stands_before_them_along() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    for (number, lines, at_once, held) in [
        (1, "NOOP\r\n", "250 2.0.0 Ok\r\n", ""),
        (
            2,
            "VRFY x\r\nRCPT TO:<c@x.example>\r\n",
            "252 2.1.5 Not verified; send mail to try\r\n",
            "250 2.1.5 Ok\r\n",
        ),
        (
            3,
            "RCPT TO:<>\r\n",
            "501 5.1.3 Bad recipient address syntax\r\n",
            "",
        ),
        (4, "", "", "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"),
    ] {
        let envelope = "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\n";
        let input = format!("{envelope}{lines}BDAT 3 LAST\r\nx\r\n");
        rig.send(&client, input.as_bytes());
        let accepted = if at_once.is_empty() {
            String::new()
        } else {
            format!("250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n{at_once}")
        };
        assert_eq!(client.read(), accepted, "{lines}");
        sync_all(&mut rig);
        assert_eq!(
            client.read(),
            format!("{held}250 2.0.0 Ok: stored as 0-{number}\r\n"),
            "{lines}"
        );
    }
}

#[test]
fn replies_that_have_left_are_not_held_again() {
    // Each message begins in one turn and ends in the next, and the one that is whole in a turn waits for its sync.
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    let envelope = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\n";
    let accepted = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n";
    let end = b"BDAT 3 LAST\r\nx\r\n";
    for number in [1, 3, 5] {
        rig.send(&client, envelope);
        assert_eq!(client.read(), accepted);
        rig.send(&client, end);
        assert_eq!(client.read(), "");
        sync_all(&mut rig);
        let own = format!("250 2.0.0 Ok: stored as 0-{number}\r\n");
        assert_eq!(client.read(), own);
        rig.send(&client, &[&envelope[..], end].concat());
        assert_eq!(client.read(), "");
        sync_all(&mut rig);
        let next = format!("{accepted}250 2.0.0 Ok: stored as 0-{}\r\n", number + 1);
        assert_eq!(client.read(), next);
    }
}

#[test]
fn what_a_sync_released_leaves_before_the_turn_reads_anything() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    rig.send(&client, MESSAGE);
    assert_eq!(client.read(), ACCEPTED);
    client.feed(b"NOOP\r\n");
    assert!(rig.syncs.end(true));
    rig.server.begin_turn(rig.now, rig.now.0);
    assert_eq!(client.read(), "250 2.0.0 Ok: stored as 0-1\r\n");
    rig.server.ready(client.token, true, false, false);
    assert_eq!(client.read(), "");
    rig.server.end_turn();
    assert_eq!(client.read(), "250 2.0.0 Ok\r\n");
}

#[test]
fn a_long_turn_writes_and_answers_in_its_middle() {
    // An event counts as 4 KiB besides its octets, and a look comes after 4 MiB.
    const EVENT: usize = 4 << 10;
    const WORK: usize = 4 << 20;
    const LOOK: usize = WORK.div_ceil(EVENT + MESSAGE.len());
    const CROWD: usize = LOOK + 10;
    let mut many = options();
    many.sessions_max = CROWD;
    let mut rig = Rig::new(many, Survive::Power);
    let clients: Vec<Client> = (0..CROWD).map(|_| greeted(&mut rig)).collect();
    for client in &clients {
        client.feed(MESSAGE);
    }
    rig.server.begin_turn(rig.now, rig.now.0);
    for (index, client) in clients[..LOOK].iter().enumerate() {
        assert_eq!(rig.disk_writes.get(), 0, "before client {index}");
        rig.server.ready(client.token, true, false, false);
    }
    // What has ended is written and its sync begins, once.
    // More than one call where the messages are more than a write takes.
    let first = rig.disk_writes.get();
    assert!(matches!(first, 1 | 2), "{first}");
    for client in &clients[..LOOK] {
        assert_eq!(client.read(), ACCEPTED, "no 250 before its sync");
    }
    for client in &clients[LOOK..] {
        rig.server.ready(client.token, true, false, false);
    }
    assert_eq!(rig.disk_writes.get(), first, "a sync is under way");
    // It ends, and the turn goes on for as long again.
    assert!(rig.syncs.end(true));
    let left = WORK - (CROWD - LOOK) * (EVENT + MESSAGE.len());
    let noops = left.div_ceil(EVENT + b"NOOP\r\n".len());
    for (index, client) in clients[..LOOK].iter().cycle().take(noops).enumerate() {
        assert_eq!(rig.disk_writes.get(), first, "before NOOP {index}");
        assert_eq!(rig.server.shared.metrics.messages_accepted, 0);
        client.feed(b"NOOP\r\n");
        rig.server.ready(client.token, true, false, false);
    }
    assert_eq!(
        rig.disk_writes.get(),
        first + 1,
        "the rest went out behind it"
    );
    for (index, client) in clients[..LOOK].iter().enumerate() {
        let own = format!("250 2.0.0 Ok: stored as 0-{}\r\n", index + 1);
        let seen = client.read();
        let rest = seen
            .strip_prefix(own.as_str())
            .expect("a 250 in its middle");
        let came = noops / LOOK + usize::from(index < noops % LOOK);
        assert_eq!(rest, "250 2.0.0 Ok\r\n".repeat(came), "client {index}");
    }
    for client in &clients[LOOK..] {
        assert_eq!(client.read(), ACCEPTED, "its sync is under way");
    }
    rig.server.end_turn();
    rig.sync(true);
    for (index, client) in clients[LOOK..].iter().enumerate() {
        let own = format!("250 2.0.0 Ok: stored as 0-{}\r\n", LOOK + index + 1);
        assert_eq!(client.read(), own);
    }
    assert_eq!(rig.disk_writes.get(), first + 1);
}

/// How many values a histogram has, and their sum.
fn counted(rig: &Rig, phase: Phase) -> (u64, u64) {
    let distribution = rig.server.shared.metrics.distribution(phase);
    (distribution.count(), distribution.sum())
}

#[test]
fn the_way_of_a_250_is_measured_before_its_sync_within_it_and_behind_it() {
    const MS: u64 = 1_000_000;
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    let start = rig.now.0;
    // Two messages end in one turn, a third 2 ms later, while the first sync runs: it took 3 ms to begin and 1 ms.
    rig.send(&client, &[MESSAGE, MESSAGE].concat());
    rig.now = Instant(start + 2 * MS);
    rig.send(&client, MESSAGE);
    rig.now = Instant(start + 7 * MS);
    rig.syncs
        .times
        .set((Instant(start), Instant(start + 3 * MS)));
    rig.sync(true);
    assert_eq!(counted(&rig, Phase::SyncStart), (1, 3 * MS));
    assert_eq!(counted(&rig, Phase::Sync), (1, MS));
    assert_eq!(counted(&rig, Phase::SyncWait), (0, 0), "its turn goes on");
    rig.server.shared.record_turn(MS / 2);
    assert_eq!(counted(&rig, Phase::CommitWait), (2, 14 * MS));
    assert_eq!(counted(&rig, Phase::SyncWait), (2, 6 * MS));
    assert_eq!(counted(&rig, Phase::Release), (2, 7 * MS));
    assert_eq!(counted(&rig, Phase::EndOfData), (2, 15 * MS));
    // The third waits for a sync of its own, begun at 8 ms and seen in the turn at 9 ms, which lasts 1 ms.
    rig.now = Instant(start + 9 * MS);
    rig.syncs
        .times
        .set((Instant(start + 7 * MS), Instant(start + 8 * MS)));
    rig.sync(true);
    rig.server.shared.record_turn(MS);
    assert_eq!(counted(&rig, Phase::SyncStart), (2, 4 * MS));
    assert_eq!(counted(&rig, Phase::CommitWait), (3, 21 * MS));
    assert_eq!(counted(&rig, Phase::SyncWait), (3, 12 * MS));
    assert_eq!(counted(&rig, Phase::Release), (3, 8 * MS));
    assert_eq!(counted(&rig, Phase::EndOfData), (3, 23 * MS));
}

#[test]
fn a_250_that_needs_no_sync_has_no_stages_of_one() {
    let mut rig = Rig::new(options(), Survive::Process);
    let client = greeted(&mut rig);
    rig.send(&client, MESSAGE);
    rig.server.shared.record_turn(5);
    assert_eq!(counted(&rig, Phase::EndOfData), (1, 5));
    assert_eq!(counted(&rig, Phase::CommitWait), (1, 0));
    for phase in [Phase::SyncWait, Phase::Release, Phase::SyncStart] {
        assert_eq!(counted(&rig, phase), (0, 0), "{}", phase.name());
    }
}

#[test]
fn a_failed_commit_turns_each_pending_250_into_451_in_its_place() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    rig.send(
        &client,
        &[MESSAGE, b"NOOP\r\n", MESSAGE, b"VRFY x\r\n"].concat(),
    );
    assert_eq!(client.read(), ACCEPTED);
    rig.sync(false);
    let failed = "451 4.3.0 Storage failed; not stored\r\n";
    assert_eq!(
        client.read(),
        format!(
            "{failed}250 2.0.0 Ok\r\n{ACCEPTED}{failed}252 2.1.5 Not verified; send mail to try\r\n"
        )
    );
    let down = "451 4.3.0 Storage is not available; try again later\r\n";
    rig.send(&client, b"MAIL FROM:<a@x.example>\r\n");
    assert_eq!(client.read(), down);
    let late = rig.connect();
    assert_eq!(
        late.read(),
        "421 4.3.0 Storage is not available; closing\r\n"
    );
    assert_eq!(
        rig.disk_writes.get(),
        1,
        "nothing is written after the failure"
    );
}

#[test]
fn a_message_that_ends_behind_a_failure_is_refused_too() {
    let mut rig = Rig::new(options(), Survive::Power);
    let (one, other) = (greeted(&mut rig), greeted(&mut rig));
    rig.send(&other, ENVELOPE);
    rig.send(&one, MESSAGE);
    rig.sync(false);
    assert_eq!(other.read(), ACCEPTED);
    rig.send(&other, b"Text.\r\n.\r\n");
    assert_eq!(
        other.read(),
        "451 4.3.0 Storage is not available; try again later\r\n"
    );
}

#[test]
fn a_client_that_never_reads_is_not_read_any_more_and_timed_out() {
    let mut rig = Rig::new(options(), Survive::Power);
    let start = free(&rig);
    let client = greeted(&mut rig);
    client.pipe.borrow_mut().window = 0;
    rig.send(&client, &b"VRFY someone\r\n".repeat(1_000));
    assert!(client.pipe.borrow().wants_writable);
    for _ in 0..20 {
        rig.send(&client, &b"VRFY someone\r\n".repeat(10_000));
    }
    // One read into the scratch buffer at most waits in the pool.
    assert!(client.pipe.borrow().unread() > 2_000_000, "it was read on");
    assert!(start - free(&rig) <= 2 * 65_536);
    rig.pass(seconds(119));
    assert!(!client.pipe.borrow().dropped);
    rig.pass(seconds(10));
    assert!(client.pipe.borrow().dropped);
    assert_eq!((rig.server.connections(), free(&rig)), (0, start));
}

#[test]
fn a_client_that_reads_again_gets_every_reply_once_and_in_order() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    client.pipe.borrow_mut().window = 7;
    rig.send(&client, &b"VRFY a\r\nNOOP\r\n".repeat(2_000));
    let expected = "252 2.1.5 Not verified; send mail to try\r\n250 2.0.0 Ok\r\n".repeat(2_000);
    for _ in 0..2_000 {
        rig.open_window(&client, 1_000);
        rig.turn();
    }
    assert!(client.read() == expected);
}

#[test]
fn a_message_without_a_chunk_waits_gets_452_and_the_oldest_finishes() {
    let mut few = options();
    few.message_bytes_max = 512 << 10;
    // 1.63 MiB are set aside for the oldest message and for replies; the rest is for all.
    few.pool_bytes = 4 << 20;
    let mut rig = Rig::new(few, Survive::Power);
    let start = free(&rig);
    let clients: Vec<Client> = (0..8).map(|_| greeted(&mut rig)).collect();
    for client in &clients {
        rig.send(client, ENVELOPE);
        assert_eq!(client.read(), ACCEPTED);
    }
    let line = [b"x".repeat(1_022), b"\r\n".to_vec()].concat();
    let most = line.repeat(480);
    for client in &clients {
        rig.send(client, &most);
        rig.turn();
        rig.turn();
    }
    for _ in 0..20 {
        rig.turn();
    }
    let waiting = clients
        .iter()
        .filter(|client| client.pipe.borrow().unread() > 0)
        .count();
    assert!(waiting > 0, "the pool was large enough");
    assert_eq!(clients[0].pipe.borrow().unread(), 0, "the oldest goes on");
    rig.pass(seconds(62));
    let refused = clients
        .iter()
        .filter(|client| {
            client.read() == "452 4.3.1 Insufficient system storage; try again later\r\n"
        })
        .count();
    assert_eq!(refused, waiting);
    rig.send(&clients[0], b".\r\n");
    rig.sync(true);
    assert_eq!(clients[0].read(), "250 2.0.0 Ok: stored as 0-1\r\n");
    rig.pass(seconds(600));
    assert_eq!((rig.server.connections(), free(&rig)), (0, start));
}

#[test]
fn the_oldest_message_that_grows_goes_on_when_the_pool_is_out_for_all_others() {
    let mut few = options();
    few.message_bytes_max = 512 << 10;
    few.pool_bytes = 4 << 20;
    let mut rig = Rig::new(few, Survive::Power);
    // From networks of their own: none is held up by the share that others of its network hold.
    let from = |network: u8| ([10, network, 0, 9], 4_242).into();
    let clients: Vec<Client> = (0..8)
        .map(|network| greeted_by(&mut rig, from(network)))
        .collect();
    for client in &clients {
        rig.send(client, ENVELOPE);
        assert_eq!(client.read(), ACCEPTED);
    }
    let line = [b"x".repeat(1_022), b"\r\n".to_vec()].concat();
    // The first begins to grow, and stays behind while the others take all that is there for everybody.
    rig.send(&clients[0], &line.repeat(80));
    for client in &clients[1..] {
        rig.send(client, &line.repeat(480));
    }
    for _ in 0..20 {
        rig.turn();
    }
    let unread = |client: &Client| client.pipe.borrow().unread();
    let waiting = clients[1..]
        .iter()
        .filter(|client| unread(client) > 0)
        .count();
    assert!(waiting > 0, "the pool was large enough");
    let late = greeted_by(&mut rig, from(8));
    rig.send(&late, b"MAIL FROM:<a@x.example>\r\n");
    let no_space = "452 4.3.1 Insufficient system storage; try again later\r\n";
    assert_eq!(late.read(), no_space, "no further message begins");
    rig.send(&clients[0], &line.repeat(400));
    for _ in 0..20 {
        rig.turn();
    }
    assert_eq!(unread(&clients[0]), 0, "the reserve is for the oldest");
    let still_waiting = clients[1..].iter().filter(|client| unread(client) > 0);
    assert_eq!(still_waiting.count(), waiting, "and for nobody else");
    rig.send(&clients[0], b".\r\n");
    rig.sync(true);
    assert_eq!(clients[0].read(), "250 2.0.0 Ok: stored as 0-1\r\n");
}

#[test]
fn data_that_drips_in_below_the_minimum_rate_is_cut() {
    let mut slow = options();
    slow.data_rate_min = 100;
    slow.data_grace = seconds(20);
    let mut rig = Rig::new(slow, Survive::Power);
    let client = greeted(&mut rig);
    rig.send(&client, ENVELOPE);
    assert_eq!(client.read(), ACCEPTED);
    let mut elapsed = 0;
    while client.pipe.borrow().output.is_empty() {
        rig.send(&client, b"drip\r\n");
        rig.pass(seconds(1));
        elapsed += 1;
        assert!(elapsed < 60);
    }
    assert_eq!(
        client.read(),
        "421 4.4.2 Data arrived too slowly; closing\r\n"
    );
    assert!((20..=25).contains(&elapsed), "after {elapsed} s");
    assert!(client.pipe.borrow().output_ended);
    rig.pass(seconds(7));
    assert_eq!(rig.server.connections(), 0);
}

#[test]
fn a_command_line_that_grows_octet_by_octet_is_cut_but_one_after_another_is_not() {
    let mut short = options();
    short.request_deadline = seconds(30);
    let mut rig = Rig::new(short, Survive::Power);
    let (one, other) = (greeted(&mut rig), greeted(&mut rig));
    rig.send(&one, b"NO");
    for _ in 0..40 {
        // This client always ends in mid-line, of another line each time.
        rig.send(&one, b"OP\r\nNO");
        rig.send(&other, b"x");
        rig.pass(seconds(1));
    }
    assert_eq!(other.read(), "421 4.4.2 Timed out; closing\r\n");
    assert_eq!(one.read(), "250 2.0.0 Ok\r\n".repeat(40));
}

#[test]
fn draining_tells_the_idle_and_lets_messages_end() {
    let mut rig = Rig::new(options(), Survive::Power);
    let start = free(&rig);
    let (idle, busy) = (greeted(&mut rig), greeted(&mut rig));
    rig.send(&busy, ENVELOPE);
    assert_eq!(busy.read(), ACCEPTED);
    rig.server.begin_drain();
    rig.turn();
    let bye = "421 4.3.2 Server is shutting down\r\n";
    assert_eq!((idle.read(), busy.read()), (bye.to_owned(), String::new()));
    // Nothing more is expected of the idle one: its connection is closed, not lingering.
    assert_eq!(rig.server.connections(), 1);
    rig.send(&busy, b"Text.\r\n");
    assert_eq!(busy.read(), "");
    rig.send(&busy, b".\r\n");
    assert!(!rig.server.is_drained());
    rig.sync(true);
    assert_eq!(busy.read(), format!("250 2.0.0 Ok: stored as 0-1\r\n{bye}"));
    assert!(rig.server.is_drained());
    assert_eq!((rig.server.connections(), free(&rig)), (0, start));
}

#[test]
fn an_event_for_a_connection_that_is_gone_does_not_reach_its_successor() {
    let mut rig = Rig::new(options(), Survive::Power);
    let first = greeted(&mut rig);
    rig.send(&first, b"QUIT\r\n");
    assert_eq!(first.read(), "221 2.0.0 Bye\r\n");
    assert!(first.pipe.borrow().dropped);
    let second = greeted(&mut rig);
    assert_eq!(second.token.key, first.token.key);
    assert_ne!(second.token.generation, first.token.generation);
    second.pipe.borrow_mut().window = 0;
    rig.send(&second, b"NOOP\r\n");
    rig.send(&first, b"");
    rig.open_window(&first, 0);
    assert_eq!(second.pipe.borrow().writes, 1, "it was not told to write");
    rig.open_window(&second, 100);
    assert_eq!(second.read(), "250 2.0.0 Ok\r\n");
}

#[test]
fn a_commit_for_a_connection_that_is_gone_releases_nothing_of_its_successor() {
    let mut rig = Rig::new(options(), Survive::Power);
    let first = greeted(&mut rig);
    rig.send(&first, MESSAGE);
    assert_eq!(first.read(), ACCEPTED);
    rig.server.cut_all();
    rig.turn();
    let second = greeted(&mut rig);
    assert_eq!(second.token.key, first.token.key);
    rig.send(&second, MESSAGE);
    assert_eq!(second.read(), ACCEPTED);
    rig.sync(true);
    assert_eq!(second.read(), "", "the sync covered the first message only");
    rig.sync(true);
    assert_eq!(second.read(), "250 2.0.0 Ok: stored as 0-2\r\n");
}

#[test]
fn a_session_with_too_many_pending_commits_is_not_read_until_one_ends() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    // A message of 64 octets of replies, so that the reply buffer would hold a few more.
    let short = b"MAIL FROM:<>\r\nRCPT TO:<b@x.example>\r\nBDAT 2 LAST\r\n\r\n";
    rig.send(&client, &short.repeat(200));
    for _ in 0..10 {
        rig.turn();
    }
    let pending = rig
        .server
        .shared
        .storage
        .as_ref()
        .map(|storage| storage.log.next_number());
    let pending = pending.expect("it stores") - 1;
    assert!((40..=64).contains(&pending), "{pending} are pending");
    rig.syncs.at_once.set(true);
    for _ in 0..60 {
        rig.turn();
    }
    let replies: String = (1..=200)
        .map(|n| format!("250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: stored as 0-{n}\r\n"))
        .collect();
    assert!(client.read() == replies);
}

#[test]
fn quit_behind_a_pending_commit_closes_after_the_250() {
    let mut rig = Rig::new(options(), Survive::Power);
    let start = free(&rig);
    let client = greeted(&mut rig);
    rig.send(&client, &[MESSAGE, b"QUIT\r\n"].concat());
    assert_eq!(client.read(), ACCEPTED);
    rig.pass(seconds(30));
    assert_eq!(client.read(), "");
    assert!(!client.pipe.borrow().dropped, "commits are waited for");
    rig.sync(true);
    assert_eq!(
        client.read(),
        "250 2.0.0 Ok: stored as 0-1\r\n221 2.0.0 Bye\r\n"
    );
    assert!(client.pipe.borrow().dropped);
    assert_eq!(free(&rig), start);
}

#[test]
fn a_commit_that_takes_longer_than_a_time_limit_costs_the_client_nothing() {
    // The time-outs were measured from the client's last octet, also over the wait for its commit: in the turn of the
    // commit a client that had said QUIT was gone before its 250 and 221 were sent, and one that waited politely got
    // 421 behind its 250. Both had their mail stored and one of them would have sent it again.
    let mut rig = Rig::new(options(), Survive::Power);
    let hasty = greeted(&mut rig);
    let patient = greeted(&mut rig);
    rig.send(&hasty, &[MESSAGE, b"QUIT\r\n"].concat());
    rig.send(&patient, MESSAGE);
    assert_eq!(hasty.read(), ACCEPTED);
    assert_eq!(patient.read(), ACCEPTED);
    rig.pass(seconds(20 * 60));
    assert_eq!((hasty.read(), patient.read()), ("".into(), "".into()));
    // The timers are due in the very turn of the commit.
    rig.now = rig.now.after(seconds(6));
    rig.sync(true);
    // The first sync began before the second message was written.
    assert_eq!(
        hasty.read(),
        "250 2.0.0 Ok: stored as 0-1\r\n221 2.0.0 Bye\r\n"
    );
    rig.now = rig.now.after(seconds(6));
    rig.sync(true);
    assert_eq!(patient.read(), "250 2.0.0 Ok: stored as 0-2\r\n");
    rig.pass(seconds(299));
    assert_eq!(patient.read(), "");
    assert!(!patient.pipe.borrow().dropped);
    rig.pass(seconds(2));
    assert_eq!(patient.read(), "421 4.4.2 Timed out; closing\r\n");
}

#[test]
fn half_closed_clients_still_get_the_250() {
    let mut rig = Rig::new(options(), Survive::Power);
    let client = greeted(&mut rig);
    client.pipe.borrow_mut().input_ended = true;
    rig.send(&client, MESSAGE);
    assert_eq!(client.read(), ACCEPTED);
    rig.sync(true);
    assert_eq!(client.read(), "250 2.0.0 Ok: stored as 0-1\r\n");
    assert!(client.pipe.borrow().dropped);
}

#[test]
fn without_durability_the_250_leaves_in_the_same_turn() {
    for survive in [Survive::Process, Survive::Nothing] {
        let mut rig = Rig::new(options(), survive);
        let client = greeted(&mut rig);
        rig.send(&client, MESSAGE);
        assert_eq!(client.pipe.borrow().writes, 1, "{survive:?}");
        assert_eq!(
            client.read(),
            format!("{ACCEPTED}250 2.0.0 Ok: stored as 0-1\r\n"),
            "{survive:?}"
        );
        assert!(rig.disk_writes.get() >= 1);
    }
}

#[test]
fn discarded_messages_are_answered_and_not_stored() {
    let mut discard = options();
    discard.discard = true;
    let mut rig = Rig::new(discard, Survive::Power);
    let start = free(&rig);
    let client = greeted(&mut rig);
    rig.send(&client, &[MESSAGE, MESSAGE].concat());
    assert_eq!(
        client.read(),
        format!("{ACCEPTED}250 2.0.0 Ok: discarded\r\n{ACCEPTED}250 2.0.0 Ok: discarded\r\n")
    );
    assert_eq!((rig.disk_writes.get(), free(&rig)), (0, start));
}

#[test]
fn a_message_over_a_mebibyte_is_committed_whole_before_its_250() {
    let mut large = options();
    large.message_bytes_max = 2 << 20;
    let mut rig = Rig::with_ring(large, Survive::Power, 32 << 20);
    let start = free(&rig);
    let client = greeted(&mut rig);
    rig.send(&client, ENVELOPE);
    let line = [b"y".repeat(1_022), b"\r\n".to_vec()].concat();
    rig.send(
        &client,
        &[&line.repeat(1_800), &b".\r\nNOOP\r\n"[..]].concat(),
    );
    for _ in 0..40 {
        rig.turn();
    }
    assert_eq!(client.read(), ACCEPTED);
    rig.sync(true);
    let replies = "250 2.0.0 Ok: stored as 0-1\r\n250 2.0.0 Ok\r\n";
    assert_eq!(client.read(), replies);
    rig.send(&client, b"QUIT\r\n");
    assert_eq!(free(&rig), start);
}

/// Where `wanted` stands in the ring.
fn places(rig: &Rig, wanted: &[u8]) -> Vec<usize> {
    let storage = rig.server.shared.storage.as_ref().expect("a ring");
    memchr::memmem::find_iter(storage.log.backing().bytes(), wanted).collect()
}

#[test]
fn an_announced_message_is_stored_octet_for_octet_however_its_reads_are_cut() {
    let text = |dot: &str| -> Vec<u8> {
        let line = |line: usize| match line % 50 {
            0 => format!("{dot}{line:04}: a dot that is stuffed\r\n"),
            _ => format!("{line:04}: {}\r\n", "x".repeat(70)),
        };
        (0..1_300).flat_map(|at| line(at).into_bytes()).collect()
    };
    let (lines, stuffed) = (text("."), text(".."));
    let size = lines.len();
    let data = [&stuffed[..], b".\r\nNOOP\r\n"].concat();
    let chunk = [&lines[..], b"NOOP\r\n"].concat();
    let mail = format!("MAIL FROM:<a@x.example> SIZE={size}\r\n");
    let rcpt = "RCPT TO:<b@x.example>\r\n";
    let ways = [
        (format!("{mail}{rcpt}DATA\r\n"), &data, ACCEPTED),
        (
            format!("MAIL FROM:<a@x.example>\r\n{rcpt}BDAT {size} LAST\r\n"),
            &chunk,
            "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n",
        ),
    ];
    for first in [
        1,
        2,
        100,
        4_095,
        4_096,
        4_097,
        65_535,
        65_536,
        65_537,
        usize::MAX,
    ] {
        for later in [1, 1_459, 9_000, 65_536, usize::MAX] {
            for (begin, octets, replies) in &ways {
                let mut rig = Rig::with_ring(options(), Survive::Power, 2 << 20);
                let client = greeted(&mut rig);
                let start = free(&rig);
                rig.send(&client, begin.as_bytes());
                assert!(replies.starts_with(&client.read()));
                let (front, rest) = octets.split_at(first.min(octets.len()));
                for piece in [front].into_iter().chain(rest.chunks(later)) {
                    rig.send(&client, piece);
                }
                sync_all(&mut rig);
                let shared = &rig.server.shared;
                assert_eq!(shared.metrics.messages_accepted, 1, "{first}, {later}");
                let trace_bytes = 127;
                assert_eq!(
                    shared.metrics.message_bytes_accepted,
                    size as u64 + trace_bytes
                );
                assert_eq!(places(&rig, &lines).len(), 1, "{first}, {later}");
                assert!(client.read().ends_with("stored as 0-1\r\n250 2.0.0 Ok\r\n"));
                assert_eq!(free(&rig), start, "{first}, {later}");
            }
        }
    }
}

#[test]
fn only_what_is_announced_and_long_enough_gets_a_large_chunk_with_its_first_read() {
    let held = |announced: &str, octets: usize| {
        let mut rig = Rig::with_ring(options(), Survive::Power, 2 << 20);
        let client = greeted(&mut rig);
        let start = free(&rig);
        let mail = format!("MAIL FROM:<a@x.example>{announced}\r\n");
        rig.send(&client, mail.as_bytes());
        rig.send(&client, b"RCPT TO:<b@x.example>\r\nDATA\r\n");
        assert_eq!(client.read(), ACCEPTED);
        rig.send(&client, &b"y".repeat(octets));
        start - free(&rig)
    };
    for announced in ["", " SIZE=32767"] {
        assert_eq!(held(announced, 5_000), 2 * 4_096, "{announced}");
    }
    assert_eq!(held(" SIZE=32768", 5_000), 4_096 + 65_536);
    assert_eq!(held(" SIZE=32768", 4_096), 4_096 + 65_536);
    assert_eq!(held(" SIZE=32768", 4_095), 2 * 4_096);
    assert_eq!(held(" SIZE=32768", 2_000), 4_096);
}

#[test]
fn nothing_is_said_before_the_250_of_a_message_over_a_mebibyte_even_to_a_client_that_does_not_read()
{
    // Such a message gets its 250 when it is committed, behind what was said meanwhile. A client left its replies
    // unread while the sync took its time; it was told 421 for that, and then that the message had been stored.
    let mut large = options();
    large.message_bytes_max = 2 << 20;
    let mut rig = Rig::with_ring(large, Survive::Power, 32 << 20);
    let client = greeted(&mut rig);
    client.pipe.borrow_mut().window = 0;
    let content = [b"y".repeat(1_022), b"\r\n".to_vec()]
        .concat()
        .repeat(1_800);
    let command = format!("BDAT {} LAST\r\n", content.len());
    let envelope = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\n";
    rig.send(&client, &[envelope, command.as_bytes(), &content].concat());
    for _ in 0..40 {
        rig.turn();
    }
    // Longer than a client may leave replies unread.
    rig.pass(seconds(3 * 60));
    rig.sync(true);
    rig.open_window(&client, 1_000);
    let replies = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: stored as 0-1\r\n";
    assert_eq!(client.read(), replies);
    rig.send(&client, b"NOOP\r\n");
    assert_eq!(client.read(), "250 2.0.0 Ok\r\n");
}

#[test]
fn a_ring_of_two_mebibytes_takes_mail_for_ever() {
    // Once half of the ring was written, MAIL was refused for lack of space, and nothing freed any: only
    // an append did, and there was none.
    let mut small = options();
    small.message_bytes_max = 256 << 10;
    let mut rig = Rig::with_ring(small, Survive::Power, 2 << 20);
    rig.syncs.at_once.set(true);
    let client = greeted(&mut rig);
    let line = [b"z".repeat(1_022), b"\r\n".to_vec()].concat();
    let mut stored = 0;
    for _ in 0..100 {
        rig.send(&client, b"MAIL FROM:<> SIZE=200000\r\n");
        if client.read().starts_with("452 ") {
            // A client tries again after a while.
            rig.pass(seconds(10));
            continue;
        }
        rig.send(&client, b"RCPT TO:<b@x.example>\r\nDATA\r\n");
        rig.send(&client, &line.repeat(195));
        rig.send(&client, b".\r\n");
        for _ in 0..4 {
            rig.turn();
        }
        stored += u64::from(client.read().contains("stored as"));
    }
    assert!(stored >= 50, "{stored} of 100 were taken");
}

#[test]
fn a_session_waits_for_verdicts_that_come_later_and_goes_on_where_it_stood() {
    let mut rig = Rig::new(options(), Survive::Power);
    rig.server.shared.policy = |question| match question {
        Question::Connect
        | Question::Rcpt { .. }
        | Question::Etrn { .. }
        | Question::EndOfData { .. } => None,
        _ => Some(Verdict::Accept),
    };
    let start = free(&rig);
    let client = rig.connect();
    assert_eq!(client.read(), "");
    let answer = |rig: &mut Rig, verdict: Verdict| {
        rig.server.answer(client.token, verdict);
        rig.turn();
        client.read()
    };
    assert_eq!(
        answer(&mut rig, Verdict::Accept),
        "220 mx.example ESMTP ringmx ready\r\n"
    );
    rig.send(&client, &[b"HELO c.example\r\n", MESSAGE].concat());
    assert_eq!(client.read(), "250 mx.example\r\n250 2.1.0 Ok\r\n");
    rig.turn();
    assert_eq!(client.read(), "", "nothing moves without the verdict");
    assert_eq!(
        answer(&mut rig, Verdict::Accept),
        "250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
    );
    assert_eq!(
        rig.disk_writes.get(),
        0,
        "the verdict on the content is still out"
    );
    assert_eq!(answer(&mut rig, Verdict::Accept), "");
    assert_eq!(rig.disk_writes.get(), 1);
    rig.sync(true);
    assert_eq!(client.read(), "250 2.0.0 Ok: stored as 0-1\r\n");

    rig.send(&client, MESSAGE);
    assert_eq!(client.read(), "250 2.1.0 Ok\r\n");
    answer(&mut rig, Verdict::Accept);
    assert_eq!(
        answer(&mut rig, Verdict::Refuse(Reply::ContentRefused)),
        "550 5.7.1 Message refused\r\n"
    );
    assert_eq!(answer(&mut rig, Verdict::Accept), "", "nobody asked");
    assert_eq!((rig.disk_writes.get(), free(&rig)), (1, start));
}
