//! `--processes`: the same messages in several processes, one report, and what becomes of a run when one of them dies.

use smtp_loadgen::sink::{Faults, Running};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long anything may take here. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use support::{Place, command, json};

/// All messages that a sink stored, sorted by content.
fn stored(store: &Path) -> Vec<String> {
    let mut all: Vec<String> = fs::read_dir(store)
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    all.sort_unstable();
    all
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether a process is there and runs.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// A run in two processes that would last for minutes, once both have sent something.
fn long_run(sink: &Running, report: &str) -> (Child, Vec<u32>) {
    let target = sink.address.to_string();
    let child = command(&["run", &target, "--processes", "2", "--sessions", "4"])
        .args(["--rate", "400", "--duration", "5m", "--drain", "1m"])
        .args(["--json", report, "--quiet"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pids = until("two processes", || {
        Some(children(child.id())).filter(|pids| pids.len() == 2)
    });
    until("messages of both", || {
        (sink.seen.messages.load(Ordering::Relaxed) > 20).then_some(())
    });
    (child, pids)
}

fn end(child: Child) -> Output {
    let id = child.id();
    let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
    until("the end of the run", || waiting.is_finished().then_some(()));
    assert_eq!(children(id), [] as [u32; 0]);
    waiting.join().unwrap()
}

fn code(status: ExitStatus) -> i32 {
    status.code().expect("an exit code")
}

#[test]
fn processes_send_the_messages_that_as_many_threads_would() {
    let mut stores = Vec::new();
    for (name, split) in [("threads", "--threads"), ("processes", "--processes")] {
        let place = Place::new(&format!("split-{name}"));
        let store = place.folder("store");
        let sink = Running::start(Faults::default(), Some(store.clone())).unwrap();
        let (target, report) = (sink.address.to_string(), place.at("run.json"));
        let output = command(&[
            "run",
            &target,
            "--sessions",
            "7",
            "--messages",
            "150",
            split,
            "3",
        ])
        .args([
            "--to",
            "user{1-99}@test.example",
            "--size",
            "600-3000",
            "--seed",
            "77",
        ])
        .args([
            "--messages-per-connection",
            "2-9",
            "--json",
            &report,
            "--quiet",
        ])
        .output()
        .unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
        let connections = sink.seen.connections.load(Ordering::Relaxed);
        sink.stop().unwrap();
        let report = json(&report);
        let totals = &report["totals"];
        let config = &report["config"];
        assert_eq!(report["generator"]["threads"].as_array().unwrap().len(), 3);
        let processes = report["generator"]["processes"].as_array().unwrap();
        let mut sessions: Vec<u64> = processes
            .iter()
            .map(|process| process["sessions"].as_u64().unwrap())
            .collect();
        sessions.sort_unstable();
        let (count, expected) = match split {
            "--threads" => (1, vec![7]),
            _ => (3, vec![2, 2, 3]),
        };
        assert_eq!((&config["processes"], sessions), (&count.into(), expected));
        let pids: std::collections::BTreeSet<u64> = processes
            .iter()
            .map(|process| process["pid"].as_u64().unwrap())
            .collect();
        assert_eq!(pids.len(), count);
        // The pre-flight has made one of the connections.
        stores.push((
            stored(&store),
            totals["accepted"].clone(),
            connections - 1,
            totals["connections"].clone(),
            config["plan_hash"].clone(),
        ));
    }
    let [one, two] = &stores[..] else { panic!() };
    assert_eq!(one.0.len(), 150);
    assert_eq!(one, two);
}

#[test]
fn a_process_that_is_killed_is_named_and_ends_the_run_as_invalid() {
    let place = Place::new("killed-process");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (child, pids) = long_run(&sink, &place.at("run.json"));
    signal("-KILL", pids[1]);
    let output = end(child);
    assert_eq!(code(output.status), 3, "{output:?}");
    let report = json(&place.at("run.json"));
    let reasons = report["verdict"]["reasons"].as_array().unwrap();
    assert_eq!(report["verdict"]["state"], "INVALID");
    let said = reasons[0].as_str().unwrap();
    let ends = format!(
        "of 2 (pid {}) was killed by signal 9; its part is not in the figures",
        pids[1]
    );
    assert!(
        said.starts_with("process ") && said.ends_with(&ends),
        "{said}"
    );
    // The other one has reported, and nothing of it is lost.
    let processes = report["generator"]["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0]["pid"], pids[0]);
    let accepted = report["totals"]["accepted"].as_u64().unwrap();
    assert!(accepted <= sink.seen.messages.load(Ordering::Relaxed));
    assert_eq!(report["totals"]["failed"], 0);
    sink.stop().unwrap();
}

#[test]
fn an_interrupt_of_the_parent_drains_all_processes_and_counts_every_message() {
    let place = Place::new("interrupted-processes");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (child, _) = long_run(&sink, &place.at("run.json"));
    signal("-TERM", child.id());
    let output = end(child);
    assert_eq!(code(output.status), 130, "{output:?}");
    let report = json(&place.at("run.json"));
    assert_eq!(report["interrupted"], true);
    assert_eq!(
        report["generator"]["processes"].as_array().unwrap().len(),
        2
    );
    let accepted = report["totals"]["accepted"].as_u64().unwrap();
    assert_eq!(accepted, sink.seen.messages.load(Ordering::Relaxed));
    assert_eq!(report["totals"]["attempted"], accepted);
    sink.stop().unwrap();
}

#[test]
fn no_process_outlives_its_parent() {
    let place = Place::new("orphans");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (mut child, pids) = long_run(&sink, &place.at("run.json"));
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of both", || {
        (!pids.iter().any(|pid| lives(*pid))).then_some(())
    });
    sink.stop().unwrap();
}

#[test]
fn searches_and_comparisons_run_in_several_processes_too() {
    let place = Place::new("search-processes");
    let sink = Running::start(Faults::default(), None).unwrap();
    let (target, report) = (sink.address.to_string(), place.at("report.json"));
    let split = ["--processes", "2", "--sessions", "4", "--quiet"];
    let sweep = [
        "sweep",
        &target,
        "--rates",
        "200.5,400",
        "--duration",
        "1s",
        "--warmup",
        "50ms",
    ];
    let output = command(&sweep)
        .args(split)
        .args(["--json", &report])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let steps = json(&report)["steps"].as_array().unwrap().clone();
    let rates: Vec<f64> = steps
        .iter()
        .map(|step| step["offered_per_s"].as_f64().unwrap())
        .collect();
    assert_eq!(rates, [200.5, 400.0]);
    for step in &steps {
        assert_ne!(step["verdict"], "INVALID", "{step}");
    }
    let ab = [
        "ab",
        "--a",
        &target,
        "--b",
        &target,
        "--rounds",
        "2",
        "--messages",
        "50",
    ];
    let before = sink.seen.messages.load(Ordering::Relaxed);
    let output = command(&ab).args(split).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(sink.seen.messages.load(Ordering::Relaxed) - before, 200);
    sink.stop().unwrap();
}

#[test]
fn a_process_that_makes_another_plan_does_not_run() {
    // Symptom it guards against: one half of a run offering something else than the report says.
    let output = command(&["part", "0", "2", "127.0.0.1:9", "1", "1", "127.0.0.1:9"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("smtp-loadgen: part has another plan: seed=1 "),
        "{said}"
    );
}

#[test]
fn what_can_t_be_divided_is_refused_with_its_reason() {
    for (arguments, reason) in [
        (
            &["run", "127.0.0.1:9", "--sessions", "3", "--processes", "4"][..],
            "3 sessions are too few for --processes 4 with 1 event loop(s) each",
        ),
        (
            &["run", "127.0.0.1:9", "--processes", "257"],
            "--processes `257`: it takes 1 to 256",
        ),
        (
            &["part", "2", "2", "127.0.0.1:9", "0", "0"],
            "part is started by run --processes, never by hand",
        ),
    ] {
        let output = command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("smtp-loadgen: {reason}\n"));
    }
}
