//! The program against a sink that loses, doubles, harms and refuses known numbers of messages.
//! Every count must be exact.

use serde_json::Value;
use smtp_loadgen::sink::{Faults, Running};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use support::{Place, address_without_listener, command, json, program, totals};

/// Looks for what `ledger` says in the store of `place`; returns the findings and the exit code.
fn verify(place: &Place, ledger: &str) -> (Value, Option<i32>) {
    let (findings, store) = (place.at("verify.json"), place.at("store"));
    let stored = ["--ledger", ledger, "--eml", &store, "--json", &findings];
    let output = program(&[&["verify"], &stored[..]].concat());
    (json(&findings), output.status.code())
}

/// Waits until `sink` has taken as many messages as this.
fn wait_for_messages(sink: &Running, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while sink.seen.messages.load(Ordering::Relaxed) < count {
        assert!(Instant::now() < deadline, "the generator sends nothing");
        std::thread::yield_now();
    }
}

/// Runs against a sink with `faults`; returns the report, the findings, and verify's exit code.
fn run_and_verify(name: &str, faults: Faults, more: &[&str]) -> (Value, Value, i32) {
    let place = Place::new(name);
    let sink = Running::start(faults, Some(place.folder("store"))).unwrap();
    let target = sink.address.to_string();
    let (ledger, report) = (place.at("ledger"), place.at("run.json"));
    let mut arguments = vec![
        "run",
        &target,
        "--sessions",
        "4",
        "--messages",
        "200",
        "--ledger",
        &ledger,
        "--json",
        &report,
        "--quiet",
        "--timeout",
        "5s",
    ];
    arguments.extend_from_slice(more);
    let output = program(&arguments);
    assert!(output.status.code().is_some(), "{output:?}");
    sink.stop().unwrap();
    let (findings, code) = verify(&place, &ledger);
    (json(&report), findings, code.unwrap())
}

fn found(findings: &Value) -> [u64; 6] {
    [
        "acknowledged",
        "found",
        "lost",
        "duplicated",
        "corrupted",
        "unacknowledged_found",
    ]
    .map(|name| findings[name].as_u64().unwrap())
}

#[test]
fn an_honest_sink_is_found_honest_in_every_dialect() {
    for (name, more) in [
        ("pipelined", &[][..]),
        ("lockstep", &["--pipelining", "off"]),
        ("chunked", &["--chunking"]),
        ("chunked-lockstep", &["--chunking", "--pipelining", "off"]),
        ("chunks", &["--chunk", "100", "--size", "500-5000"]),
        ("chunks-large", &["--chunk", "64KiB", "--size", "300KiB"]),
        (
            "chunks-lockstep",
            &["--chunk", "1000", "--pipelining", "off", "--size", "5000"],
        ),
        (
            "dsn-smtputf8",
            &[
                "--smtputf8",
                "--dsn",
                "never",
                "--to",
                "b\u{fc}ro@test.example",
            ],
        ),
        ("per-connection", &["--messages-per-connection", "1"]),
        (
            "recipients",
            &["--rcpts", "1-5", "--messages-per-connection", "3-7"],
        ),
        ("large", &["--size", "100KiB-300KiB"]),
        (
            "reset",
            &["--quit", "reset", "--messages-per-connection", "2"],
        ),
        (
            "no-quit",
            &["--quit", "none", "--messages-per-connection", "2"],
        ),
        ("threads", &["--threads", "2"]),
        ("processes", &["--processes", "3"]),
        ("processes-threads", &["--processes", "2", "--threads", "2"]),
        (
            "processes-open",
            &["--processes", "2", "--rate", "2000", "--poisson"],
        ),
        (
            "processes-conn",
            &["--processes", "2", "--rate", "1000", "--arrival", "conn"],
        ),
        ("open", &["--rate", "2000", "--poisson"]),
        ("open-conn", &["--rate", "1000", "--arrival", "conn"]),
        (
            "sources",
            &["--source", "127.0.0.0/8", "--messages-per-connection", "1"],
        ),
    ] {
        let (report, findings, code) = run_and_verify(name, Faults::default(), more);
        assert_eq!(
            totals(&report),
            [200, 200, 0, 0, 0, 0],
            "{name}: {report:#}"
        );
        assert_eq!(found(&findings), [200, 200, 0, 0, 0, 0], "{name}");
        assert_eq!(code, 0, "{name}");
    }
}

#[test]
fn lost_doubled_and_harmed_messages_are_counted_exactly() {
    let lose = Faults {
        lose: 10,
        ..Faults::default()
    };
    let (report, findings, code) = run_and_verify("lose", lose, &[]);
    assert_eq!(totals(&report), [200, 200, 0, 0, 0, 0]);
    assert_eq!((found(&findings), code), ([200, 180, 20, 0, 0, 0], 4));

    let duplicate = Faults {
        duplicate: 8,
        ..Faults::default()
    };
    let (_, findings, code) = run_and_verify("duplicate", duplicate, &[]);
    assert_eq!((found(&findings), code), ([200, 200, 0, 25, 0, 0], 4));

    let corrupt = Faults {
        corrupt: 50,
        ..Faults::default()
    };
    let (_, findings, code) = run_and_verify("corrupt", corrupt, &[]);
    assert_eq!((found(&findings), code), ([200, 196, 0, 0, 4, 0], 4));
}

#[test]
fn refusals_are_told_apart_and_are_no_loss() {
    let defer = Faults {
        defer: 4,
        ..Faults::default()
    };
    let (report, findings, code) = run_and_verify("defer", defer, &[]);
    assert_eq!(totals(&report), [200, 150, 50, 0, 0, 0]);
    assert_eq!((found(&findings), code), ([150, 150, 0, 0, 0, 0], 0));
    let outcome = report["outcomes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|o| o["code"] == 451)
        .unwrap();
    assert_eq!(outcome["count"], 50);
    assert_eq!(outcome["phase"], "end-of-data");
    assert_eq!(outcome["enhanced"], "4.3.0");
    assert_eq!(outcome["sample"], "4.3.0 Try again later");

    let reject = Faults {
        reject: 5,
        ..Faults::default()
    };
    let (report, _, code) = run_and_verify("reject", reject, &["--chunking"]);
    assert_eq!(totals(&report), [200, 160, 0, 40, 0, 0]);
    assert_eq!(code, 0);
}

#[test]
fn a_reset_before_the_answer_leaves_a_message_found_but_unacknowledged() {
    let reset = Faults {
        reset: 20,
        ..Faults::default()
    };
    let (report, findings, code) = run_and_verify("reset-unacked", reset, &[]);
    assert_eq!(totals(&report), [200, 190, 0, 0, 10, 0]);
    assert_eq!((found(&findings), code), ([190, 190, 0, 0, 0, 10], 0));
}

#[test]
fn a_421_ends_the_connection_and_the_session_comes_back() {
    let shut = Faults {
        shut: 40,
        ..Faults::default()
    };
    // Several sessions share the messages as they come free: one that was shut out last may find none left.
    let (report, findings, code) = run_and_verify("shut", shut, &["--sessions", "1"]);
    assert_eq!(totals(&report), [200, 195, 5, 0, 0, 0]);
    assert_eq!((found(&findings), code), ([195, 195, 0, 0, 0, 0], 0));
    // One to begin with, and one after each 421 but the last, which ends the last message.
    assert_eq!(report["totals"]["connections"], 5);
}

#[test]
fn one_seed_gives_one_byte_stream() {
    let texts: Vec<Vec<u8>> = [1, 2]
        .iter()
        .map(|round| {
            let place = Place::new(&format!("seed-{round}"));
            let store = place.folder("store");
            let sink = Running::start(Faults::default(), Some(store.clone())).unwrap();
            let target = sink.address.to_string();
            let output = program(&[
                "run",
                &target,
                "--sessions",
                "1",
                "--messages",
                "50",
                "--size",
                "500-9000",
                "--rcpts",
                "1-3",
                "--seed",
                "7",
                "--quiet",
            ]);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            sink.stop().unwrap();
            let mut files: Vec<_> = std::fs::read_dir(store)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            assert_eq!(files.len(), 50);
            files
                .iter()
                .flat_map(|file| std::fs::read(file).unwrap())
                .collect()
        })
        .collect();
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_frozen_target_shows_in_the_response_and_not_in_the_service_median() {
    // 1,000 messages a second for 3 s; the target freezes for 1 s after 1 s. About a third of the
    // messages are due while it is frozen, and wait half a second on average.
    let freeze = Some((Duration::from_secs(1), Duration::from_secs(1)));
    let place = Place::new("freeze");
    let sink = Running::start(
        Faults {
            freeze,
            ..Faults::default()
        },
        None,
    )
    .unwrap();
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    program(&[
        "run",
        &target,
        "--rate",
        "1000",
        "--duration",
        "3s",
        "--sessions",
        "20",
        "--json",
        &report,
        "--quiet",
    ]);
    let report = json(&report);
    assert_eq!(totals(&report), [3000, 3000, 0, 0, 0, 0]);
    let at = |table: &str, name: &str| report["latency"][table][name].as_u64().unwrap();
    // p90 of all: a tenth of 3,000 waited longer than 0.7 s; the machine may add some.
    assert!(
        (600_000_000..1_100_000_000).contains(&at("response", "p90_ns")),
        "{report:#}"
    );
    assert!(at("response", "p99_ns") > 900_000_000);
    assert!(at("service", "p90_ns") < 300_000_000);
}

#[test]
fn a_closed_loop_whose_target_falls_silent_is_measured_to_its_end() {
    // Symptom: the rate was that of the time until the last reply, so that a target that answered for a tenth of the
    // run and then no more looked ten times as fast as it was.
    let place = Place::new("silent");
    let faults = Faults {
        freeze: Some((Duration::from_millis(100), Duration::from_secs(5))),
        ..Faults::default()
    };
    let sink = Running::start(faults, None).unwrap();
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    let load = ["run", &target, "--sessions", "2", "--duration", "1s"];
    let rest = ["--drain", "0s", "--json", &report, "--quiet"];
    program(&[&load[..], &rest].concat());
    let report = json(&report);
    assert_eq!(report["window"]["measured_ns"], 1_000_000_000);
    let accepted = report["totals"]["accepted"].as_f64().unwrap();
    assert!(accepted > 0.0, "{report:#}");
    assert_eq!(
        report["totals"]["accepted_per_s"].as_f64().unwrap(),
        accepted
    );
}

/// A server that greets its `last` connection only when all before it have had the answer to their EHLO, or never, and
/// says in which order commands came.
fn greets_last(last: usize, never: bool) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    let (answered, answers) = channel();
    let answers = Arc::new(Mutex::new(answers));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().take(last).enumerate() {
            let (stream, tell) = (stream.unwrap(), tell.clone());
            let (answered, answers) = (answered.clone(), answers.clone());
            std::thread::spawn(move || {
                if number + 1 == last {
                    for _ in 1..last {
                        answers.lock().unwrap().recv().unwrap();
                    }
                    if never {
                        // Silent until the client gives up.
                        return drop((&stream).read(&mut [0; 1]));
                    }
                }
                (&stream).write_all(b"220 late.example ESMTP\r\n").unwrap();
                let mut inside = false;
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    if inside && line != "." {
                        continue;
                    }
                    inside = line == "DATA";
                    tell.send(line.get(..4).unwrap_or(&line).to_owned())
                        .unwrap();
                    let reply = match inside {
                        true => "354 Go\r\n",
                        false => "250 Ok\r\n",
                    };
                    if (&stream).write_all(reply.as_bytes()).is_err() {
                        break;
                    }
                    if line.starts_with("EHLO") {
                        answered.send(()).unwrap();
                    }
                }
            });
        }
    });
    (address, told)
}

/// Runs as many sessions as `greets_last` serves, connected first; the exit code, the report, the commands that came.
fn connected_first(
    sessions: usize,
    never: bool,
    more: &[&str],
) -> (Option<i32>, Value, Vec<String>) {
    let place = Place::new(&format!("connect-first-{sessions}"));
    let (address, told) = greets_last(sessions, never);
    let (target, report) = (address.to_string(), place.at("run.json"));
    let count = sessions.to_string();
    let load = ["run", &target, "--sessions", &count, "--connect-first"];
    let rest = ["--quit", "none", "--no-preflight", "--quiet"];
    let output = program(&[&load[..], &rest, &["--json", &report], more].concat());
    (
        output.status.code(),
        json(&report),
        told.try_iter().collect(),
    )
}

#[test]
fn sessions_that_connect_first_send_no_message_before_all_are_ready() {
    let (code, report, commands) = connected_first(4, false, &["--messages", "8"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(commands[..4], ["EHLO"; 4], "{commands:?}");
    let count = |word| commands.iter().filter(|command| *command == word).count();
    assert_eq!(
        ["EHLO", "MAIL", "RCPT", "DATA", "."].map(count),
        [4, 8, 8, 8, 8]
    );
    assert_eq!(totals(&report), [8, 8, 0, 0, 0, 0]);
}

#[test]
fn sessions_that_connect_first_wait_three_seconds_for_the_last_and_then_begin() {
    let begin = Instant::now();
    let (code, report, commands) =
        connected_first(3, true, &["--duration", "200ms", "--drain", "1s"]);
    assert!(begin.elapsed() >= Duration::from_secs(3));
    assert_eq!(code, Some(0), "{report:#}");
    // The wait is not part of what is measured.
    assert_eq!(report["window"]["measured_ns"], 200_000_000);
    assert_eq!(commands[..2], ["EHLO"; 2], "{commands:?}");
    let ended = commands.iter().filter(|command| *command == ".").count() as u64;
    assert!(ended >= 2, "{report:#}");
    assert_eq!(totals(&report), [ended, ended, 0, 0, 0, 0]);
}

#[test]
fn a_stall_that_outlasts_the_run_is_in_its_latencies() {
    // Symptom: messages that were in flight when the window closed, and were answered in the drain,
    // were missing from the service time: of a stall at the end nothing was seen. They belong to
    // the window they began in.
    let freeze = Some((Duration::from_millis(500), Duration::from_secs(4)));
    for more in [&["--sessions", "4"][..], &["--rate", "100"]] {
        let place = Place::new("late-freeze");
        let faults = Faults {
            freeze,
            ..Faults::default()
        };
        let sink = Running::start(faults, None).unwrap();
        let (target, report) = (sink.address.to_string(), place.at("run.json"));
        // Envelope and message leave in one write, so that what is in flight waits for its last reply.
        let fixed = [
            "run",
            &target,
            "--duration",
            "2s",
            "--json",
            &report,
            "--chunking",
        ];
        program(&[&fixed[..], &["--quiet"], more].concat());
        let report = json(&report);
        let [attempted, accepted, ..] = totals(&report);
        assert_eq!(attempted, accepted);
        let begun = if more[0] == "--rate" {
            "window_offered"
        } else {
            "window_sent"
        };
        assert_eq!(
            report["latency"]["service"]["n"], report["totals"][begun],
            "{more:?}"
        );
        for table in ["service", "end_of_data"] {
            let table = &report["latency"][table];
            assert!(table["max_ns"].as_u64().unwrap() > 2_000_000_000, "{table}");
        }
        sink.stop().unwrap();
    }
}

#[test]
fn odd_servers_are_served_or_named() {
    let plain = Faults {
        plain: true,
        ..Faults::default()
    };
    let (report, findings, _) = run_and_verify("plain", plain, &["--chunking"]);
    assert_eq!(totals(&report), [200, 200, 0, 0, 0, 0]);
    assert_eq!(found(&findings), [200, 200, 0, 0, 0, 0]);

    let no_ehlo = Faults {
        no_ehlo: true,
        ..Faults::default()
    };
    let (report, _, _) = run_and_verify("no-ehlo", no_ehlo, &[]);
    assert_eq!(totals(&report), [200, 200, 0, 0, 0, 0]);
}

/// Runs two messages against a target that can't work; returns exit code, standard output and
/// standard error.
fn hopeless(faults: Faults, more: &[&str]) -> (Option<i32>, String) {
    let sink = Running::start(faults, None).unwrap();
    let target = sink.address.to_string();
    let mut arguments = vec![
        "run",
        &target,
        "--sessions",
        "1",
        "--messages",
        "2",
        "--timeout",
        "300ms",
        "--quiet",
        "--connect-attempts",
        "2",
    ];
    arguments.extend_from_slice(more);
    let output = program(&arguments);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

#[test]
fn a_target_that_can_not_work_is_named_and_the_run_ends() {
    let blind = &["--no-preflight"][..];
    let greeting = |text: &[u8]| Faults {
        greeting: Some(text.to_vec()),
        ..Faults::default()
    };
    for (faults, more, code, words) in [
        (
            greeting(b"554 5.7.1 Go away\r\n"),
            &[][..],
            2,
            "it greets with 554 5.7.1 Go away",
        ),
        (
            greeting(b"554 5.7.1 Go away\r\n"),
            blind,
            3,
            "session-refused",
        ),
        (greeting(b"hello there\r\n"), &[], 2, "not an SMTP reply"),
        (greeting(b"hello there\r\n"), blind, 3, "protocol-violation"),
        (greeting(&[b'2'; 9000]), blind, 3, "reply line is longer"),
        (
            Faults {
                silent: true,
                ..Faults::default()
            },
            blind,
            3,
            "timeout",
        ),
        (
            Faults {
                hang_up: true,
                ..Faults::default()
            },
            blind,
            3,
            "closed-by-target",
        ),
    ] {
        let (seen, text) = hopeless(faults, more);
        assert_eq!(seen, Some(code), "{words}: {text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_target_that_is_down_is_exit_code_2() {
    let target = address_without_listener().to_string();
    let output = program(&["run", &target, "--messages", "1", "--quiet"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't be used"));
}

#[test]
fn thresholds_decide_the_exit_code() {
    let sink = Running::start(
        Faults {
            reject: 2,
            ..Faults::default()
        },
        None,
    )
    .unwrap();
    let target = sink.address.to_string();
    let run = |expression: &str| {
        let output = program(&[
            "run",
            &target,
            "--messages",
            "100",
            "--quiet",
            "--fail-if",
            expression,
        ]);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(run("error_rate>60%").0, Some(0));
    let (code, text) = run("error_rate>10%");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAILED"), "{text}");
    assert_eq!(run("nonsense>1").0, Some(2));
}

#[test]
fn strangers_are_not_loaded_by_accident() {
    for (arguments, words) in [
        (&["run", "192.0.2.1:25"][..], "public address"),
        (
            &["run", "127.0.0.1:9", "--to", "u@gmail.com"],
            "not a reserved domain",
        ),
        (
            &["run", "127.0.0.1:9", "--from", "u@gmail.com"],
            "not a reserved domain",
        ),
    ] {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.contains(words) && text.contains("--i-own-this-target"),
            "{text}"
        );
    }
}

#[test]
fn a_killed_generator_leaves_a_ledger_without_a_false_line() {
    // The 250s that came after the last line written are found and not acknowledged; a line
    // without its message would be a loss, and there must be none.
    let place = Place::new("kill");
    let sink = Running::start(Faults::default(), Some(place.folder("store"))).unwrap();
    let (target, ledger) = (sink.address.to_string(), place.at("ledger"));
    let mut child = command(&["run", &target, "--duration", "30s", "--ledger", &ledger])
        .arg("--quiet")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_messages(&sink, 500);
    child.kill().unwrap();
    child.wait().unwrap();
    sink.stop().unwrap();
    let (findings, code) = verify(&place, &ledger);
    assert_eq!(code, Some(0), "{findings:#}");
    let [acknowledged, found, lost, duplicated, corrupted, _] = found(&findings);
    assert!(acknowledged > 100);
    assert_eq!(
        (found, lost, duplicated, corrupted),
        (acknowledged, 0, 0, 0)
    );
}

#[test]
fn a_report_is_rendered_again_from_its_file() {
    let place = Place::new("render");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    let html = place.at("run.html");
    let output = program(&[
        "run",
        &target,
        "--messages",
        "500",
        "--quiet",
        "--json",
        &report,
        "--html",
        &html,
    ]);
    let again = program(&["report", &report]);
    assert_eq!(output.stdout, again.stdout);
    let page = program(&["report", &report, "--format", "html"]).stdout;
    assert_eq!(page, std::fs::read(html).unwrap());
    let csv = program(&["report", &report, "--format", "csv"]).stdout;
    assert!(csv.starts_with(b"t_s,offered,"));
    assert_eq!(
        program(&["report", &report, "--format", "pdf"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(
        program(&["report", &place.at("none.json")]).status.code(),
        Some(2)
    );
    let full = program(&[
        "run",
        &target,
        "--messages",
        "5",
        "--quiet",
        "--json",
        "/dev/full",
    ]);
    assert_eq!(full.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&full.stderr).contains("/dev/full"));
}

#[test]
fn a_proxy_header_comes_before_everything() {
    use std::io::{Read, Write};
    for (version, start) in [
        ("v1", &b"PROXY TCP4 198.18."[..]),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = vec![0; 16];
            stream.read_exact(&mut header).unwrap();
            stream.write_all(b"554 5.3.2 enough\r\n").unwrap();
            header
        });
        let output = program(&[
            "run",
            &target,
            "--messages",
            "1",
            "--sessions",
            "1",
            "--quiet",
            "--timeout",
            "2s",
            "--connect-attempts",
            "0",
            "--proxy",
            version,
        ]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert_eq!(server.join().unwrap(), start[..16], "{version}");
    }
}

#[test]
fn the_options_of_smtp_source_are_understood() {
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let output = program(&[
        "smtp-source",
        "-c",
        "-s",
        "4",
        "-m",
        "40",
        "-l",
        "2000",
        &target,
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(sink.seen.messages.load(Ordering::Relaxed), 40);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("-l: --size 2000"), "{notes}");
    // One message on each connection, and one connection that asked for the banner.
    assert_eq!(sink.seen.connections.load(Ordering::Relaxed), 41);
}

#[test]
fn hostile_sessions_leave_the_counts_of_the_others_alone() {
    let kinds = smtp_loadgen::hostile::KINDS
        .map(|kind| format!("{}=50%", kind.name))
        .join(",");
    let sink = Running::start(Faults::default(), None).unwrap();
    let place = Place::new("hostile");
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    program(&[
        "run",
        &target,
        "--sessions",
        "2",
        "--rate",
        "200",
        "--duration",
        "2s",
        "--hostile",
        &kinds,
        "--json",
        &report,
        "--quiet",
    ]);
    let report = json(&report);
    assert_eq!(totals(&report), [400, 400, 0, 0, 0, 0], "{report:#}");
    let rows = report["hostile"].as_array().unwrap();
    assert_eq!(rows.len(), smtp_loadgen::hostile::KINDS.len());
    let number = |kind: &str, name: &str| {
        rows.iter().find(|row| row["kind"] == kind).unwrap()[name]
            .as_u64()
            .unwrap()
    };
    for row in rows {
        assert!(row["connections"].as_u64().unwrap() > 0, "{row}");
    }
    for kind in [
        "rst-mid-data",
        "endless-header",
        "early-talker",
        "smuggle-lf-lf",
    ] {
        assert!(number(kind, "completed") > 0, "{kind}");
    }
    assert_eq!(
        (number("idle", "connections"), number("idle", "completed")),
        (1, 0)
    );
}

#[test]
fn a_corpus_arrives_byte_for_byte() {
    let place = Place::new("corpus");
    let corpus = place.folder("corpus");
    let large = ".dot and text\r\n".repeat(5000);
    let texts = [
        "Subject: one\r\n\r\nhello\r\n.\r\n..two\r\n".to_owned(),
        "Subject: \u{e4}\r\n\r\nb\r\n".into(),
        format!("Subject: large\r\n\r\n{large}"),
    ];
    for (name, text) in texts.iter().enumerate() {
        std::fs::write(corpus.join(format!("{name}.eml")), text).unwrap();
    }
    for more in [&[][..], &["--chunking"]] {
        let store = place.folder(&format!("store{}", more.len()));
        let sink = Running::start(Faults::default(), Some(store.clone())).unwrap();
        let (target, corpus) = (sink.address.to_string(), corpus.display().to_string());
        let fixed = [
            "run",
            &target,
            "--messages",
            "60",
            "--corpus",
            &corpus,
            "--quiet",
        ];
        let output = program(&[&fixed[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        sink.stop().unwrap();
        let mut counts = [0; 3];
        for entry in std::fs::read_dir(&store).unwrap() {
            let stored = std::fs::read(entry.unwrap().path()).unwrap();
            let index = texts
                .iter()
                .position(|text| text.as_bytes() == stored)
                .unwrap();
            counts[index] += 1;
        }
        assert_eq!(counts.iter().sum::<i32>(), 60);
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    }
    let missing = program(&[
        "run",
        "127.0.0.1:9",
        "--corpus",
        &place.at("none"),
        "--quiet",
    ]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("none"),
        "{missing:?}"
    );
}

#[test]
fn an_interrupt_still_gives_the_report() {
    let place = Place::new("interrupt");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    let mut child = command(&["run", &target, "--duration", "60s", "--json", &report])
        .arg("--quiet")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_messages(&sink, 100);
    // Twice, as timeout(1) does.
    for _ in 0..2 {
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report = json(&report);
    assert_eq!(report["interrupted"], true);
    let [attempted, accepted, ..] = totals(&report);
    assert!(
        accepted >= 90 && attempted == accepted,
        "{attempted} {accepted}"
    );
}

#[test]
fn a_target_that_dies_is_no_hang_and_no_wrong_count() {
    let sink = Running::start(Faults::default(), None).unwrap();
    let place = Place::new("dies");
    let (target, report) = (sink.address.to_string(), place.at("run.json"));
    let child = command(&["run", &target, "--messages", "1000000"])
        .args(["--connect-attempts", "2", "--json", &report, "--quiet"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_messages(&sink, 100);
    sink.stop().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report = json(&report);
    let [attempted, accepted, deferred, rejected, failed, unsent] = totals(&report);
    assert_eq!(accepted + failed, attempted);
    assert_eq!((deferred, rejected, attempted + unsent), (0, 0, 1_000_000));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("VERDICT     INVALID  ("), "{text}");
    assert!(text.contains("[target side]"), "{text}");
}

#[test]
fn compare_refuses_runs_that_differ_in_their_hostile_company() {
    let place = Place::new("company");
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let run = |name: &str, more: &[&str]| {
        let path = place.at(name);
        let fixed = [
            "run",
            &target,
            "--messages",
            "50",
            "--quiet",
            "--json",
            &path,
        ];
        program(&[&fixed[..], more].concat());
        path
    };
    let alone = run("alone.json", &[]);
    let beside = run("beside.json", &["--hostile", "early-talker=10.0%"]);
    let same = run("same.json", &["--hostile", "early-talker=10%"]);
    let hash = |path: &str| json(path)["config"]["plan_hash"].clone();
    assert_eq!(hash(&beside), hash(&same));
    assert_ne!(hash(&alone), hash(&beside));
    let compared = program(&["compare", &alone, &beside]);
    assert_eq!(compared.status.code(), Some(2), "{compared:?}");
    let said = String::from_utf8_lossy(&compared.stderr).into_owned();
    assert!(said.contains("plan"), "{said}");
    sink.stop().unwrap();
}

/// The line of `text` that starts with `title`, up to the remark in brackets.
fn line_of<'a>(text: &'a str, title: &str) -> &'a str {
    let line = text.lines().find(|line| line.starts_with(title));
    line.and_then(|line| line.split("   (").next())
        .unwrap_or("")
}

#[test]
fn the_raw_log_gives_the_counts_and_percentiles_of_the_report_again() {
    let place = Place::new("raw");
    for (name, faults, more) in [
        ("closed", Faults::default(), &["--messages", "300"][..]),
        (
            "open",
            Faults::default(),
            &["--rate", "500", "--duration", "1s"],
        ),
        (
            "refused",
            Faults {
                defer: 4,
                reset: 50,
                ..Faults::default()
            },
            &["--messages", "300", "--sessions", "3", "--threads", "2"],
        ),
    ] {
        let sink = Running::start(faults, None).unwrap();
        let (target, report) = (sink.address.to_string(), place.at("run.json"));
        let raw = place.at(name);
        let fixed = ["run", &target, "--raw", &raw, "--json", &report, "--quiet"];
        let run = program(&[&fixed[..], more].concat());
        let run = String::from_utf8(run.stdout).unwrap();
        let report = json(&report);
        let [attempted, accepted, deferred, _, failed, _] = totals(&report);
        assert_eq!(
            report["raw"],
            serde_json::json!({ "file": raw, "lines": attempted, "left_out": 0 })
        );
        let again = program(&["raw", &raw]);
        assert_eq!(again.status.code(), Some(0), "{again:?}");
        let again = String::from_utf8(again.stdout).unwrap();
        // One shape of histogram and one set of values: equal to the last digit.
        let titles = match name {
            "closed" => &["Service", "End of data"][..],
            "open" => &["Service", "Response"],
            // The report times every reply to the end of data; the log's summary, what was accepted.
            _ => &["Service"],
        };
        for title in titles {
            assert_eq!(line_of(&again, title), line_of(&run, title), "{name}");
        }
        let count = |word: &str| {
            let messages = line_of(&again, "Messages").split_whitespace();
            let mut words = messages.skip_while(|known| *known != word);
            words
                .nth(1)
                .map_or(0, |count| count.parse::<u64>().unwrap())
        };
        assert_eq!(
            [
                count("ok"),
                count("451"),
                count("reset") + count("closed-by-target")
            ],
            [accepted, deferred, failed],
            "{name}: {again}"
        );
        let text = std::fs::read_to_string(&raw).unwrap();
        let mut seen: Vec<u64> = text
            .lines()
            .skip(1)
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..attempted).collect::<Vec<_>>(), "{name}");
        sink.stop().unwrap();
    }
    // A part of the run, and what is no raw log.
    let part = program(&["raw", &place.at("open"), "--from", "200ms", "--to", "300ms"]);
    let part = String::from_utf8(part.stdout).unwrap();
    assert_eq!(line_of(&part, "Messages"), "Messages    ok 50", "{part}");
    assert_eq!(
        program(&["raw", &place.at("run.json")]).status.code(),
        Some(2)
    );
}

#[test]
fn the_manual_and_the_help_name_the_same_options() {
    let help = program(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/loadgen.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let options = |text: &str| -> std::collections::BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 3)
            .map(str::to_owned)
            .collect()
    };
    let (mut named, known) = (options(&manual), options(&help));
    // Not in its own text.
    assert!(named.remove("--help"));
    assert_eq!(named, known);
    assert!(known.len() > 60, "{known:?}");
    let widest = help.lines().map(str::len).max();
    assert!(widest.unwrap() <= 100, "{widest:?}");
    let unknown = program(&["run", "127.0.0.1:9", "--no-such-thing", "1"]);
    assert_eq!(unknown.status.code(), Some(2));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("no option `--no-such-thing`"), "{said}");
}
