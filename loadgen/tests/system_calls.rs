//! System calls per message, counted by strace: one read and one write a round trip, and nothing else that grows.

use smtp_loadgen::sink::{Faults, Running};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// System calls of a run, as strace counts them; nothing where it can't be used.
fn system_calls(target: &str, more: &[&str]) -> Option<BTreeMap<String, u64>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("loadgen-strace-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let output = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(&path)
        .arg(env!("CARGO_BIN_EXE_smtp-loadgen"))
        .args([
            "run",
            target,
            "--quiet",
            "--no-preflight",
            "--sessions",
            "8",
        ])
        .args(more)
        .output();
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    let output = output.ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !said.contains("Accepted    2,000 of 2,000") {
        // A system that forbids tracing says so, and the program has not run.
        assert_eq!(said, "", "{output:?}");
        return None;
    }
    let rows = text.lines().filter_map(|line| {
        let (count, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), count.parse().ok()?))
    });
    Some(rows.collect())
}

#[test]
fn a_round_trip_is_one_read_and_one_write() {
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let (messages, sessions) = (2_000, 8);
    for (more, round_trips) in [
        (&["--messages", "2000"][..], 2),
        (&["--messages", "2000", "--pipelining", "off"], 4),
        (&["--messages", "2000", "--chunking"], 1),
    ] {
        let Some(calls) = system_calls(&target, more) else {
            eprintln!("skipped: system calls per message (strace is missing or may not trace)");
            let required = std::env::var("RINGMX_CLIENTS").is_ok_and(|word| word == "required");
            assert!(!required, "strace is missing or may not trace");
            break;
        };
        let count = |names: &[&str]| -> u64 { names.iter().filter_map(|n| calls.get(*n)).sum() };
        let transfers = messages * round_trips;
        // Beside the messages: EHLO and QUIT.
        let writes = count(&["sendto", "sendmsg", "write", "writev"]);
        let written = transfers + 2 * sessions;
        assert!(
            (written..written + 40).contains(&writes),
            "{more:?}: {calls:?}"
        );
        // And greeting, EHLO, QUIT and the end of the stream; the program reads files at start and end.
        let reads = count(&["recvfrom", "recvmsg"]);
        let least = transfers + 3 * sessions;
        assert!(
            (least..=least + 2 * sessions).contains(&reads),
            "{more:?}: {calls:?}"
        );
        // No timer, no change of interest, no other call that grows with the messages.
        let waits = count(&["epoll_wait", "epoll_pwait", "futex", "restart_syscall"]);
        let all: u64 = calls
            .iter()
            .filter(|(n, _)| *n != "total")
            .map(|(_, c)| c)
            .sum();
        let rest = all - writes - reads - waits;
        assert!(rest < 1_000, "{more:?}: {calls:?}");
        assert!(waits <= transfers + 1_000, "{more:?}: {calls:?}");
    }
    sink.stop().unwrap();
}

#[test]
fn a_connection_that_is_reset_leaves_its_socket_to_the_next() {
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let (messages, sessions) = (2_000, 8);
    let each = [
        "--messages",
        "2000",
        "--messages-per-connection",
        "1",
        "--quit",
        "reset",
    ];
    // As many ports as there are, or addresses in turn, which must be bound anew.
    for (more, binds) in [(&[][..], 0), (&["--source", "127.0.0.0/8"], messages)] {
        // What can't be traced is said by the test of the round trips.
        let Some(calls) = system_calls(&target, &[&each[..], more].concat()) else {
            break;
        };
        let count = |name: &str| calls.get(name).copied().unwrap_or(0);
        assert_eq!(count("bind"), binds, "{calls:?}");
        // To the target, and away from it; the last connection of a session is closed.
        let connects = count("connect");
        assert!(
            (messages * 2 - sessions..=messages * 2 + 8).contains(&connects),
            "{calls:?}"
        );
        for name in ["socket", "setsockopt", "epoll_ctl", "close"] {
            assert!(count(name) < 100, "{name}: {calls:?}");
        }
    }
    assert_eq!(sink.seen.messages.load(Ordering::Relaxed) % messages, 0);
    sink.stop().unwrap();
}
