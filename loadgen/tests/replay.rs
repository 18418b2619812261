//! `replay`: a run that was recorded is sent again, message for message and at its times.

use serde_json::Value;
use smtp_loadgen::sink::{Faults, Running};
use std::fs;

#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use support::{Place, program};

/// Number, planned time, bytes and recipients of each message of a raw log, by number.
fn rows(path: &str) -> Vec<(u64, u64, u64, u64)> {
    let text = fs::read_to_string(path).unwrap();
    let mut rows: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            assert_eq!(fields[10], "ok", "{line}");
            let number = |at: usize| fields[at].parse::<u64>().unwrap();
            (number(0), number(1), number(8), number(9))
        })
        .collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_recorded_run_is_sent_again_at_its_times() {
    let place = Place::new("replay-again");
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let first = place.at("first");
    let sizes = place.at("sizes");
    fs::write(&sizes, "900,0.5\n20000,1\n").unwrap();
    let fixed = ["--quiet", "--timeout", "120s", "--drain", "120s"];
    let load = [
        "run",
        &target,
        "--rate",
        "400",
        "--poisson",
        "--messages",
        "200",
        "--rcpts",
        "1-4",
        "--sizes",
        &sizes,
        "--raw",
        &first,
    ];
    program(&[&load[..], &fixed].concat());
    let recorded = rows(&first);
    assert_eq!(recorded.len(), 200);
    let begin = recorded[0].1;
    assert!(recorded.iter().any(|row| row.2 > 5000) && recorded.iter().any(|row| row.3 == 4));
    for (speed, more) in [
        (1, &[][..]),
        (2, &["--speed", "2", "--threads", "2"]),
        (4, &["--speed", "4", "--processes", "2"]),
    ] {
        let (again, json) = (place.at("again"), place.at("json"));
        let load = ["replay", &first, &target, "--raw", &again, "--json", &json];
        let output = program(&[&load[..], &fixed, more].concat());
        let wanted: Vec<_> = recorded
            .iter()
            .map(|(seq, at, bytes, rcpts)| (*seq, (at - begin) / speed, *bytes, *rcpts))
            .collect();
        assert_eq!(rows(&again), wanted, "{more:?}: {output:?}");
        let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        assert_eq!(report["config"]["mode"], "open trace");
        assert_eq!(report["totals"]["accepted"], 200, "{output:?}");
        assert_eq!(report["totals"]["unsent"], 0, "{output:?}");
    }
}

#[test]
fn lines_of_time_and_size_are_a_trace_and_the_rest_is_refused() {
    let place = Place::new("replay-lines");
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let (trace, raw) = (place.at("trace"), place.at("raw"));
    fs::write(
        &trace,
        "# three\n1700000000.2 2KiB\n1700000000.0 700 2\n1700000000.3 1000\n",
    )
    .unwrap();
    let fixed = ["--quiet", "--timeout", "120s", "--drain", "120s"];
    program(&[&["replay", &trace, &target, "--raw", &raw][..], &fixed].concat());
    assert_eq!(
        rows(&raw),
        [
            (0, 0, 700, 2),
            (1, 200_000_000, 2048, 1),
            (2, 300_000_000, 1000, 1)
        ]
    );
    let broken = place.at("broken");
    fs::write(&broken, "1 1000\n2\n").unwrap();
    let before = sink
        .seen
        .messages
        .load(std::sync::atomic::Ordering::Relaxed);
    for (arguments, trouble) in [
        (vec!["replay", &broken, &target], "line 2: is not TIME SIZE"),
        (vec!["replay", &trace], "no TARGET"),
        (vec!["replay"], "replay needs a TRACE and a TARGET"),
        (
            vec!["replay", &trace, &target, "--rate", "5"],
            "--rate: a trace says",
        ),
        (
            vec!["replay", &trace, &target, "--size=5"],
            "--size: a trace says",
        ),
        (
            vec!["replay", &trace, &target, "--speed", "0"],
            "--speed `0`: it takes 0.001 to 1000",
        ),
        (
            vec!["run", &target, "--speed", "2"],
            "--speed needs a trace",
        ),
        (
            vec!["run", &target, "--rate", "5", "--connect-first"],
            "--connect-first is for a closed loop",
        ),
        (
            vec!["sweep", &target, "--rates", "5", "--connect-first"],
            "--connect-first: its steps do so anyway",
        ),
        (
            vec!["find-max", &target, "--trace", &trace],
            "send it with replay",
        ),
    ] {
        let output = program(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(trouble), "{arguments:?}: {text}");
    }
    let after = sink
        .seen
        .messages
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(after, before, "what is refused sends nothing");
}
