//! What must be durable before what, and what deliveries outlive: the order of system calls of consumers and of the
//! creation of a ring, as strace sees them, and consumers that are killed amid their work.
//!
//! Without strace, or where ptrace is forbidden, the first kind says so and does nothing; `RINGMX_STRACE=required`
//! makes that a failure. `RINGMX_CONSUMER_KILLS=n` kills each consumer that often instead of eight times.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use process::{
    Client, Key, Process, RINGMX, Server, TestDir, content, key_of, load, output_of, strace_works,
    wait_until, without_trace,
};

/// What a traced program did to files, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// Bytes went to this file.
    Write(String),
    /// A superblock went to the ring.
    Superblock,
    /// This file or directory was synced.
    Sync(String),
    /// A file got this name.
    Rename(String),
}

/// Runs the program under strace; it has to end with exit code 0.
fn events(dir: &TestDir, arguments: &[&str]) -> Vec<Event> {
    let trace = dir.join("trace");
    let calls = "trace=write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2";
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "0",
            "-o",
            &trace,
            "-e",
            calls,
            "-e",
            "signal=none",
            RINGMX,
        ])
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let lines = fs::read_to_string(&trace).unwrap();
    lines.lines().filter_map(event).collect()
}

/// `123 pwritev(4</tmp/x/ring>, [...], 1, 8192) = 4096`
fn event(line: &str) -> Option<Event> {
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start();
    assert!(!call.contains("unfinished"), "one thread writes: {line}");
    let (name, rest) = call.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    assert!(!result.starts_with('-'), "{line}");
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let path = arguments
        .split_once('<')
        .and_then(|(_, rest)| rest.split_once('>'));
    let path = path.map_or(String::new(), |(path, _)| path.to_owned());
    Some(match name {
        "rename" | "renameat" | "renameat2" => {
            let to = arguments.rsplit('"').nth(1)?;
            Event::Rename(to.to_owned())
        }
        "fsync" | "fdatasync" => Event::Sync(path),
        "pwritev" | "pwrite64" if path.ends_with("/ring") => match arguments.rsplit_once(", ")?.1 {
            "0" | "8192" => Event::Superblock,
            _ => Event::Write(path),
        },
        _ => Event::Write(path),
    })
}

fn position(events: &[Event], what: &str, find: impl Fn(&Event) -> bool) -> usize {
    let at = events.iter().position(find);
    at.unwrap_or_else(|| panic!("no {what} in {events:#?}"))
}

/// The first superblock behind `from`: the one that moves the cursor.
fn cursor_moves(events: &[Event], from: usize) -> usize {
    from + position(&events[from..], "superblock", |event| {
        *event == Event::Superblock
    })
}

fn is_sync(event: &Event, end: &str) -> bool {
    matches!(event, Event::Sync(path) if path.ends_with(end))
}

#[test]
fn a_new_ring_is_durable_before_it_gets_its_name_and_the_name_before_anybody_is_told() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    let ring = dir.ring();
    let events = events(
        &dir,
        &["ring", "create", "--ring", &ring, "--ring-size", "2MiB"],
    );
    let named = position(
        &events,
        "rename",
        |event| matches!(event, Event::Rename(path) if path.ends_with("/ring")),
    );
    let written = events[..named]
        .iter()
        .rposition(|event| matches!(event, Event::Write(path) if path.ends_with("/ring.new")));
    let synced = events[..named]
        .iter()
        .rposition(|event| is_sync(event, "/ring.new"));
    assert!(written.is_some() && written < synced, "{events:#?}");
    let told = events
        .iter()
        .position(|event| matches!(event, Event::Write(path) if !path.contains("shard-0")));
    let durable = named + position(&events[named..], "sync", |event| is_sync(event, "/shard-0"));
    assert!(told.is_none_or(|told| durable < told), "{events:#?}");
}

/// A ring with so many messages, closed in order; their contents in order.
fn filled(dir: &TestDir, messages: u32) -> Vec<Vec<u8>> {
    let server = Server::start(dir, &["--ring-size", "64MiB", "--full", "defer"]);
    let mut client = Client::open(server.address).unwrap();
    // The seventeenth of a client that is a multiple of four is larger than a record.
    let contents: Vec<Vec<u8>> = (0..messages)
        .map(|sequence| content((4, sequence)))
        .collect();
    for content in &contents {
        let reply = client.deliver(content).unwrap();
        assert!(reply.starts_with("250 "), "{reply}");
    }
    drop(client);
    server.stop();
    contents
}

/// What a consumer does that delivers all there is to `target`.
fn consume_events(dir: &TestDir, target: &str) -> Vec<Event> {
    let ring = dir.ring();
    let to = ["--to", target, "--ring", &ring];
    let words = ["consume", "keep", "--create", "--until-empty"];
    events(dir, &[&words, &to[..]].concat())
}

#[test]
fn a_maildir_file_is_durable_before_its_name_and_its_name_before_the_cursor_moves() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    filled(&dir, 3);
    let target = format!("maildir:{}", dir.join("mail"));
    let events = consume_events(&dir, &target);
    let names: Vec<usize> = (0..events.len())
        .filter(|at| matches!(&events[*at], Event::Rename(path) if path.contains("/mail/new/")))
        .collect();
    assert_eq!(names.len(), 3, "{events:#?}");
    for at in &names {
        let Event::Rename(to) = &events[*at] else {
            unreachable!()
        };
        let file = to.rsplit('/').next().unwrap();
        let temporary = format!("/mail/tmp/{file}");
        let of_file = |path: &str| path.contains(&temporary);
        let written = events[..*at]
            .iter()
            .rposition(|event| matches!(event, Event::Write(path) if of_file(path)));
        let synced = events[..*at]
            .iter()
            .rposition(|event| matches!(event, Event::Sync(path) if of_file(path)));
        assert!(written.is_some() && written < synced, "{to}: {events:#?}");
    }
    let last = names[2];
    let durable = last + position(&events[last..], "sync", |event| is_sync(event, "/mail/new"));
    let moved = cursor_moves(&events, names[0]);
    assert!(durable < moved, "{events:#?}");
}

#[test]
fn an_mbox_is_durable_before_the_cursor_moves() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    filled(&dir, 3);
    let target = format!("mbox:{}", dir.join("mail.mbox"));
    let events = consume_events(&dir, &target);
    let is_write =
        |event: &Event| matches!(event, Event::Write(path) if path.ends_with("/mail.mbox"));
    let first = position(&events, "write", is_write);
    let last = events.iter().rposition(is_write).unwrap();
    let durable = last
        + position(&events[last..], "sync", |event| {
            is_sync(event, "/mail.mbox")
        });
    assert!(durable < cursor_moves(&events, first), "{events:#?}");
}

#[test]
fn a_failure_is_recorded_durably_before_the_cursor_passes_the_message() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    filled(&dir, 2);
    let events = consume_events(&dir, "exec:exit 3");
    let is_write =
        |event: &Event| matches!(event, Event::Write(path) if path.ends_with("/keep.failed"));
    let first = position(&events, "record of a failure", is_write);
    let durable = first
        + position(&events[first..], "sync", |event| {
            is_sync(event, "/keep.failed")
        });
    assert!(durable < cursor_moves(&events, first), "{events:#?}");
}

fn kills() -> usize {
    match std::env::var("RINGMX_CONSUMER_KILLS") {
        Ok(count) => count.parse().expect("RINGMX_CONSUMER_KILLS is a number"),
        Err(_) => 8,
    }
}

/// A consumer that ends when everything is delivered, or waits for more.
fn consume(dir: &TestDir, target: &str, ends: bool) -> Process {
    let ring = dir.ring();
    let mut words = vec![
        "consume", "keep", "--create", "--to", target, "--ring", &ring,
    ];
    if ends {
        words.push("--until-empty");
    }
    Process::start(&words)
}

/// Kills a consumer of `messages` messages again and again, each time after it did a little more; `done` counts what
/// it has done. In the end it is left alone until everything is delivered.
fn kill_again_and_again(dir: &TestDir, target: &str, messages: usize, done: impl Fn() -> usize) {
    let kills = kills();
    for kill in 0..kills {
        let before = done();
        let wanted = (before + 1).max(messages * kill / kills);
        let consumer = consume(dir, target, false);
        wait_until("a delivery", || done() >= wanted.min(messages));
        consumer.kill();
    }
    let (code, _, errors) = consume(dir, target, true).wait();
    assert_eq!(code, Some(0), "{errors}");
}

const MESSAGES: u32 = 120;

#[test]
fn a_maildir_gets_every_message_whole_and_once_however_often_its_consumer_is_killed() {
    let dir = TestDir::new();
    let contents = filled(&dir, MESSAGES);
    let mail = dir.join("mail");
    let new = Path::new(&mail).join("new");
    let count = || fs::read_dir(&new).map_or(0, Iterator::count);
    kill_again_and_again(&dir, &format!("maildir:{mail}"), contents.len(), count);
    let found: Vec<Vec<u8>> = fs::read_dir(&new)
        .unwrap()
        .map(|entry| without_trace(&fs::read(entry.unwrap().path()).unwrap()).to_vec())
        .collect();
    let expected: BTreeSet<&Vec<u8>> = contents.iter().collect();
    assert_eq!(
        found.len(),
        contents.len(),
        "a file for each message, and no other"
    );
    assert!(
        found.iter().collect::<BTreeSet<_>>() == expected,
        "other contents"
    );
}

#[test]
fn a_command_gets_every_message_in_order_however_often_its_consumer_is_killed() {
    let dir = TestDir::new();
    let contents = filled(&dir, MESSAGES);
    let list = dir.join("list");
    let numbers = || -> Vec<usize> {
        let text = fs::read_to_string(&list).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let target = format!("exec:cat > /dev/null; echo $RINGMX_NUMBER >> {list}");
    kill_again_and_again(&dir, &target, contents.len(), || numbers().len());
    // Each life begins where the cursor was, at most behind what was done, and goes on one by one.
    let mut reached = 0;
    let mut last = 0;
    for number in numbers() {
        assert!(
            number == last + 1 || number <= reached,
            "{number} behind {last}, {reached} reached"
        );
        last = number;
        reached = reached.max(number);
    }
    assert_eq!(reached, contents.len());
}

#[test]
fn an_mbox_gets_every_message_whole_and_in_order_however_often_its_consumer_is_killed() {
    let dir = TestDir::new();
    let contents = filled(&dir, MESSAGES);
    let mbox = dir.join("mail.mbox");
    let text = || String::from_utf8(fs::read(&mbox).unwrap_or_default()).unwrap();
    let target = format!("mbox:{mbox}");
    kill_again_and_again(&dir, &target, contents.len(), || {
        text().matches("\nX-Key: ").count()
    });
    let text = text();
    let mut next = 0;
    for entry in text.split_inclusive("\n\nFrom ") {
        let entry = entry.strip_suffix("From ").unwrap_or(entry);
        let Some(whole) = contents.get(next) else {
            break;
        };
        let body = String::from_utf8(whole.clone())
            .unwrap()
            .replace("\r\n", "\n");
        if entry.ends_with(&format!("{body}\n")) {
            next += 1;
        }
    }
    assert_eq!(next, contents.len(), "whole messages in order");
}

#[test]
fn standard_output_shows_every_message_in_order_up_to_where_it_was_killed() {
    let dir = TestDir::new();
    let contents = filled(&dir, MESSAGES);
    let ring = dir.ring();
    for lines in [1, 7, contents.len()] {
        let words = ["consume", "watch", "--to", "stdout", "--ring", &ring];
        let watcher = Process::start(&words);
        for number in 1..=lines {
            let line = watcher.line().expect("one line for each message");
            let id = format!("\"id\":\"0-{number}\"");
            assert!(
                line.contains(&id),
                "{id} in {}",
                &line[..line.len().min(200)]
            );
        }
        watcher.kill();
    }
}

#[test]
fn whatever_got_a_250_reaches_the_maildir_though_server_and_consumer_are_killed() {
    let dir = TestDir::new();
    let mail = dir.join("mail");
    let target = format!("maildir:{mail}");
    let options = [
        "--ring-size",
        "64MiB",
        "--full",
        "defer",
        "--log-level",
        "error",
    ];
    let ring = dir.ring();
    let words = [
        "consume", "keep", "--create", "--to", &target, "--ring", &ring,
    ];
    let mut acknowledged: BTreeSet<Key> = BTreeSet::new();
    let mut in_doubt: BTreeSet<Key> = BTreeSet::new();
    for round in 0..kills() as u32 / 2 {
        let server = Server::start(&dir, &options);
        let consumer = Process::start(&words);
        let (counter, counted) = std::sync::mpsc::channel();
        let address = server.address;
        let client = std::thread::spawn(move || {
            load(address, round, move || {
                let _ = counter.send(());
            })
        });
        for _ in 0..20 + round * 11 {
            counted
                .recv_timeout(process::PATIENCE)
                .expect("an acknowledgement");
        }
        // One of them first, in turns.
        if round % 2 == 0 {
            consumer.kill();
            server.process.kill();
        } else {
            server.process.kill();
            consumer.kill();
        }
        let ledger = client.join().unwrap();
        acknowledged.extend(ledger.acknowledged.iter().map(|(key, _)| *key));
        in_doubt.extend(ledger.in_doubt);
    }
    let (code, _, errors) = consume(&dir, &target, true).wait();
    assert_eq!(code, Some(0), "{errors}");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(Path::new(&mail).join("new")).unwrap() {
        let path = entry.unwrap().path();
        let message = fs::read(&path).unwrap();
        let key = key_of(without_trace(&message)).unwrap_or_else(|| panic!("{path:?}"));
        assert!(found.insert(key), "{key:?} is there twice");
    }
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged and not delivered: {lost:?}");
    let allowed = &acknowledged | &in_doubt;
    let other: Vec<_> = found.difference(&allowed).collect();
    assert!(other.is_empty(), "delivered and never sent: {other:?}");
    output_of(&["log", "verify", "--ring", &ring]);
}

#[test]
fn a_sync_looks_at_the_links_of_its_ring_and_not_at_its_times() {
    // Since Linux 6.13 the write behind a look at the times has one of its own, and the next sync writes the inode too.
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    let trace = dir.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-o", &trace, "-e"]);
    command.args(["trace=fdatasync,statx,fstat,newfstatat", "-D", RINGMX]);
    let Ok(server) = Server::start_by(command, &dir, &["--ring-size", "16MiB"]) else {
        panic!("the server does not start under strace");
    };
    let mut client = Client::open(server.address).unwrap();
    for sequence in 0..5 {
        client.deliver(&content((0, sequence))).unwrap();
    }
    drop(client);
    server.stop();
    let trace = fs::read_to_string(&trace).unwrap();
    let of_ring = |line: &&str| line.contains("/shard-0/ring>");
    let thread = |line: &str| line.split(' ').next().map(str::to_owned);
    // Those of the loop are before the first message and behind the last.
    let first_look = trace.lines().find(|line| line.contains("STATX_NLINK"));
    let syncs = thread(first_look.expect("a sync looks at the links")).unwrap();
    let calls: Vec<&str> = trace
        .lines()
        .filter(of_ring)
        .filter(|line| thread(line).as_ref() == Some(&syncs))
        .collect();
    let (looks, others): (Vec<&str>, Vec<&str>) = calls
        .iter()
        .partition(|line| line.contains(", STATX_NLINK"));
    assert!(looks.len() >= 5, "{calls:#?}");
    assert_eq!(looks.len(), others.len(), "{calls:#?}");
    assert!(
        others.iter().all(|line| line.contains(" fdatasync(")),
        "{calls:#?}"
    );
}

#[test]
fn a_sync_counts_where_statx_is_not_to_be_had() {
    if !strace_works() {
        return;
    }
    // An old kernel, and a filter of system calls.
    for error in ["ENOSYS", "EPERM"] {
        let dir = TestDir::new();
        let trace = dir.join("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-o", &trace, "-e", "trace=statx", "-e"]);
        command.args([&format!("inject=statx:error={error}"), "-D", RINGMX]);
        let Ok(server) = Server::start_by(
            command,
            &dir,
            &["--ring-size", "16MiB", "--failed-grace", "1s"],
        ) else {
            panic!("the server does not start without statx");
        };
        let mut client = Client::open(server.address).unwrap();
        let reply = client.deliver(&content((0, 0))).unwrap();
        assert!(reply.starts_with("250 2.0.0 Ok: stored as 0-1"), "{reply}");
        // The ring goes, and the next sync knows it all the same.
        fs::remove_dir_all(dir.ring()).unwrap();
        let refused = client.deliver(&content((0, 1))).unwrap_err().to_string();
        assert!(refused.contains("451 4.3.0 "), "{error}: {refused}");
        drop(client);
        let (code, _, errors) = server.process.wait();
        assert_eq!(code, Some(74), "{errors}");
        assert!(fs::read_to_string(&trace).unwrap().contains("(INJECTED)"));
    }
}
