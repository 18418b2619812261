//! Wrong use, and asking what right use is: what is said, where, and that nothing is sent meanwhile.

use smtp_loadgen::sink::{Faults, Running};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use support::{Place, command, json, program};

#[test]
fn without_a_command_the_first_screen_is_shown_and_the_exit_code_is_2() {
    let output = program(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    let first = String::from_utf8(output.stderr).unwrap();
    assert!(first.starts_with("smtp-loadgen: an SMTP load generator"));
    assert!(first.contains("  smtp-loadgen sink 127.0.0.1:2526 "));
    assert!(first.contains("  smtp-loadgen run 127.0.0.1:2526 --duration 5s "));
    assert!(first.lines().count() <= 24, "more than a screen: {first}");
    assert!(first.lines().all(|line| line.len() <= 80), "{first}");
}

#[test]
fn help_is_the_same_however_and_wherever_it_is_asked_for() {
    let help = |arguments: &[&str]| {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let whole = help(&["--help"]);
    assert_eq!(help(&["-h"]), whole);
    assert_eq!(help(&["help"]), whole);
    let run = help(&["run", "--help"]);
    assert!(run.starts_with("  smtp-loadgen run TARGET [options] "));
    assert!(run.contains("--messages-per-connection") && !run.contains("--ringmx"));
    for again in [
        &["run", "-h"][..],
        &["help", "run"],
        &["run", "127.0.0.1:9", "--sessions", "4", "--help"],
        &["run", "--help", "--no-such-option"],
    ] {
        assert_eq!(help(again), run, "{again:?}");
    }
    assert!(help(&["verify", "--help"]).contains("--ringmx PATH"));
    assert_eq!(help(&["version"]), help(&["--version"]));
}

#[test]
fn wrong_use_is_told_what_is_allowed_before_anything_is_sent() {
    let place = Place::new("usage");
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let missing = place.at("no/report");
    let ledger = place.at("empty");
    std::fs::write(&ledger, "").unwrap();
    for (arguments, said) in [
        (&["rnu"][..], "no command `rnu`; did you mean run?"),
        (&["attack"], "no command `attack`; see smtp-loadgen --help"),
        (
            &["run", "--sesions", "4"],
            "no option `--sesions`; did you mean --sessions?",
        ),
        (
            &["run", "-s", "4"],
            "no option `-s`: options are long here; those of smtp-source go behind `smtp-loadgen \
             smtp-source`",
        ),
        (
            &["run", "--rounds", "4"],
            "--rounds belongs to another command; see smtp-loadgen --help",
        ),
        (
            &["run", "127.0.0.1:9"],
            "\"127.0.0.1:9\" is one argument too many; see smtp-loadgen --help",
        ),
        (
            &["run", "--sessions", "0"],
            "--sessions `0`: it takes a number, 1 or more",
        ),
        (
            &["run", "--messages", "0"],
            "--messages `0`: it takes a number, 1 or more",
        ),
        (
            &["run", "--duration", "0s"],
            "--duration `0s`: it takes a time above 0, such as 10s or 500ms",
        ),
        (
            &["run", "--drain", "5x"],
            "--drain `5x`: it takes a time, such as 10s, 500ms or 250us",
        ),
        (
            &["run", "--auth", "plain:user"],
            "--auth takes plain:USER:PASSWORD or login:USER:PASSWORD",
        ),
        (
            &["run", "--tls-insecure"],
            "--tls-ca, --tls-insecure, --tls-name and --tls-no-resumption need --tls starttls or \
             implicit: without it everything goes in the clear",
        ),
        // A plan of infinitely many messages has no end.
        (
            &["sweep", "--rates", "100,inf"],
            "--rates `100,inf`: it takes rates with commas between, each above 0 and at most \
             10000000",
        ),
        (
            &["find-max", "--start-rate", "inf"],
            "--start-rate `inf`: it takes messages a second, above 0 and at most 10000000",
        ),
        (
            &["find-max", "--max-errors", "-1%"],
            "--max-errors `-1%`: it takes a share from 0% to 100%, such as 0.1%",
        ),
        (
            &["find-max", "--rate", "100"],
            "--rate: find-max chooses the rates; --start-rate is the first",
        ),
        (
            &["sweep", "--fail-if", "p99>1s"],
            "--fail-if: --max-p99 and --max-errors are the limits of a sweep",
        ),
        (
            &["ab", "--html", "page"],
            "--html: ab writes text and --json",
        ),
        (
            &["sink", "--lose", "x"],
            "--lose `x`: it takes a number N: every Nth message, 0 for none",
        ),
        (
            &["run", "--json", &missing],
            &format!("--json {missing}: No such file or directory (os error 2)"),
        ),
        (
            &["run", "--cpus", "100000"],
            "--cpus: this process can't run on CPU 100000; see `taskset -p $$`",
        ),
        (
            &["verify", "--mbox", "a", "--mbox", "b"],
            "verify looks into one store at a time",
        ),
        (
            &["verify", "--ledger", &ledger, "--eml", "."],
            &format!("can't verify: {ledger}: no run wrote to it, so it is no ledger"),
        ),
    ] {
        // Whatever has a target gets one that would answer.
        let mut words = arguments.to_vec();
        let loads = ["run", "sweep", "find-max"].contains(&words[0]);
        if loads && words.len() < 4 {
            words.insert(1, &target);
        }
        let output = program(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, format!("smtp-loadgen: {said}\n"), "{words:?}");
    }
    for wrong in ["nonsense.p99>1s", "p99>=1s", "rate<nan", "speed>1"] {
        let output = program(&["run", &target, "--fail-if", wrong]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        let start =
            format!("smtp-loadgen: --fail-if `{wrong}`: it takes NAME>LIMIT or NAME<LIMIT;");
        assert!(error.starts_with(&start), "{error}");
    }
    let unknown = program(&["run", &target, "--congestion", "no-such"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.contains("this machine has "), "{error}");
    assert_eq!(sink.seen.connections.load(Ordering::Relaxed), 0);
    sink.stop().unwrap();
}

#[test]
fn a_dry_run_of_a_search_prints_its_plan_and_sends_nothing() {
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    for arguments in [
        &["find-max", &target][..],
        &["sweep", &target, "--rates", "100"],
        &["ab", "--a", &target, "--b", &target],
    ] {
        let output = program(&[arguments, &["--dry-run"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.starts_with(b"plan "), "{output:?}");
    }
    assert_eq!(sink.seen.connections.load(Ordering::Relaxed), 0);
    sink.stop().unwrap();
}

#[test]
fn standard_output_that_takes_nothing_is_an_error_and_a_reader_that_left_is_none() {
    let place = Place::new("output");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (target, path) = (sink.address.to_string(), place.at("run.json"));
    let run = [
        "run",
        &target,
        "--messages",
        "5",
        "--quiet",
        "--json",
        &path,
    ];
    let report = ["report", &path, "--format", "prometheus"];
    // A disk that is full: said, not a panic, and the report has its file all the same.
    for arguments in [&run[..], &report, &["--help"], &["profile", "show"]] {
        let output = command(arguments)
            .stdout(File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {output:?}");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "smtp-loadgen: standard output: No space left on device (os error 28)\n"
        );
        assert_eq!(json(&path)["totals"]["accepted"], 5);
    }
    // `| head`: the pipe has no reader any more.
    for arguments in [&run[..], &report, &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    // Neither is a standard error that takes nothing a reason to panic.
    let status = command(&["attack"])
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
    sink.stop().unwrap();
}

#[test]
fn an_interrupted_sweep_or_search_reports_the_steps_that_were_done() {
    let place = Place::new("interrupted");
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    for (name, more) in [
        ("sweep", &["--rates", "20,20,20", "--sessions", "2"][..]),
        ("find-max", &["--start-rate", "20", "--sessions", "2"]),
    ] {
        let path = place.at(name);
        let mut child = command(&[name, &target, "--duration", "3s", "--json", &path])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The line of the first step: the second has begun, or is about to.
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.map(Result::unwrap) {
            if line.contains("/s offered") {
                let pid = child.id().to_string();
                let told = Command::new("kill").args(["-INT", &pid]).status().unwrap();
                assert!(told.success());
                break;
            }
        }
        let mut text = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}: {text}");
        let first = "VERDICT     INVALID  (interrupted: these are the steps that were done)\n";
        assert!(text.starts_with(first), "{name}: {text}");
        let report = json(&path);
        assert_eq!(report["steps"].as_array().map(Vec::len), Some(1), "{name}");
        assert_eq!(report["steps"][0]["offered_per_s"], 20.0, "{name}");
    }
    sink.stop().unwrap();
}
