//! Was it the generator or the target? Runs whose answer is known: against a target of a fixed
//! capacity, and with a generator that something else has robbed of its CPU.

use serde_json::Value;
use smtp_loadgen::sink::{Faults, Running};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A child process that ends with its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that answers ends of data one after another, `per_s` a second by its own clock, each
/// connection on a thread of its own.
///
/// The times of its answers are fixed when the ends of data come, so that a thread that wakes late
/// answers late but takes nothing off the capacity, as long as others wait. Its threads end with
/// the test process.
fn counter_of(per_s: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let last = Arc::new(Mutex::new(Instant::now()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let last = last.clone();
            std::thread::spawn(move || {
                // A client that is gone is not this server's trouble.
                let _ = serve(stream.unwrap(), &last, Duration::from_secs(1) / per_s);
            });
        }
    });
    address
}

fn serve(stream: TcpStream, last: &Mutex<Instant>, each: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    output.write_all(b"220 counter.example ESMTP\r\n")?;
    let (mut line, mut inside) = (Vec::new(), false);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if inside {
            if line != b".\r\n" {
                continue;
            }
            inside = false;
            let due = {
                let mut last = last.lock().unwrap();
                *last = Instant::now().max(*last) + each;
                *last
            };
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
            output.write_all(b"250 2.0.0 Ok\r\n")?;
            continue;
        }
        inside = line.starts_with(b"DATA");
        output.write_all(match line.get(..4) {
            Some(b"DATA") => b"354 Go\r\n",
            Some(b"QUIT") => return output.write_all(b"221 Bye\r\n"),
            _ => &b"250 2.0.0 Ok\r\n"[..],
        })?;
    }
}

/// Runs with a report; returns it and the rest.
fn run(wrapper: &[&str], target: &str, more: &[&str]) -> (Value, Output) {
    let name = format!("loadgen-honest-{}-{:?}", std::process::id(), Instant::now());
    let file: PathBuf = std::env::temp_dir().join(name.replace([' ', '{', '}', ':'], ""));
    let path = file.display().to_string();
    let program = env!("CARGO_BIN_EXE_smtp-loadgen");
    let words = [
        wrapper,
        &[program, "run", target, "--quiet"],
        &["--json", &path],
        more,
    ]
    .concat();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let report = fs::read(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    (serde_json::from_slice(&report).unwrap_or_default(), output)
}

fn totals(report: &Value, name: &str) -> u64 {
    report["totals"][name].as_u64().unwrap()
}

#[test]
fn asking_for_ten_times_the_capacity_gets_the_capacity_within_two_per_cent() {
    const CAPACITY: u32 = 400;
    // Enough sessions that the target is never without work: 0.1 s of it waits there at any time.
    let fixed = [
        "--sessions",
        "40",
        "--warmup",
        "500ms",
        "--duration",
        "4s",
        "--drain",
        "0s",
    ];
    let mut seen = Vec::new();
    // A machine that stands still for 80 ms at an end of a window moves a rate by 2 %: one round
    // of ten without that is enough. The capacity is the target's own, however busy the machine.
    for _ in 0..10 {
        let rate = |more: &[&str]| {
            let target = counter_of(CAPACITY).to_string();
            let (report, output) = run(&[], &target, &[&fixed[..], more].concat());
            let [attempted, accepted, failed, unfinished] =
                ["attempted", "accepted", "failed", "unfinished"].map(|n| totals(&report, n));
            assert_eq!(attempted, accepted + failed + unfinished, "{output:?}");
            assert_eq!(failed, 0, "{output:?}");
            (report, output)
        };
        let (closed, _) = rate(&[]);
        let (open, output) = rate(&["--rate", "4000"]);
        // All that was planned is accounted for: 4.5 s at 4,000 a second.
        let planned = totals(&open, "attempted") + totals(&open, "unsent");
        assert_eq!(planned, 18_000, "{output:?}");
        assert_ne!(open["verdict"]["state"], "VALID");
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let [closed, open] = [&closed, &open].map(|r| r["totals"]["accepted_per_s"].as_f64());
        let (closed, open) = (closed.unwrap(), open.unwrap());
        let near = |a: f64, b: f64| (a / b - 1.0).abs() <= 0.02;
        if near(open, closed) && near(closed, f64::from(CAPACITY)) {
            return;
        }
        seen.push((closed, open));
    }
    panic!("(closed, open) a second, of {CAPACITY}: {seen:?}");
}

#[test]
fn asking_for_far_more_than_the_ceiling_costs_no_more_cpu_for_each_message() {
    // Symptom: at ten times the ceiling the rate fell to half, because the loop woke for arrivals
    // that no session was free for. CPU time, unlike the rate, does not depend on who else runs.
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    let fixed = ["--sessions", "20", "--duration", "1s", "--drain", "100ms"];
    let cost = |report: &Value| {
        let cpu_ns = report["generator"]["threads"][0]["cpu_ns"]
            .as_f64()
            .unwrap();
        cpu_ns / totals(report, "window_accepted").max(1) as f64
    };
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (closed, _) = run(&[], &target, &fixed);
        let asked = closed["totals"]["accepted_per_s"].as_f64().unwrap() * 10.0;
        let asked = format!("{asked:.0}");
        let (open, _) = run(&[], &target, &[&fixed[..], &["--rate", &asked]].concat());
        ratios.push(cost(&open) / cost(&closed));
        if ratios.iter().any(|ratio| *ratio < 1.4) {
            return;
        }
    }
    panic!("CPU for each message, open loop over closed loop: {ratios:?}");
}

/// The CPUs that this process may use, as Linux lists them, and the first of them.
fn first_cpu() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let first = list.trim().split([',', '-']).next()?;
    Some(first.to_owned())
}

#[test]
fn a_generator_without_a_cpu_says_that_it_was_the_generator() {
    let tools = ["taskset", "nice"].map(|tool| Command::new(tool).arg("--version").output());
    let (true, Some(cpu)) = (tools.iter().all(Result::is_ok), first_cpu()) else {
        eprintln!("skipped: taskset, nice or /proc is not to be had");
        return;
    };
    // A loop on the CPU of the generator, which is as nice as can be to it. It ends with the test;
    // should the test be killed, it notices within a second or so, and never outlives ten minutes.
    let text = format!(
        "n=0; while [ $n -lt 6000 ] && kill -0 {}; do n=$((n + 1)); i=0; \
         while [ $i -lt 50000 ]; do i=$((i + 1)); done; done",
        std::process::id()
    );
    let burner = ["-c", &cpu, "sh", "-c", &text];
    let mut command = Command::new("taskset");
    command
        .args(burner)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _burner = Guard(command.spawn().unwrap());
    let sink = Running::start(Faults::default(), None).unwrap();
    let target = sink.address.to_string();
    for more in [
        &["--sessions", "50"][..],
        &["--rate", "300"],
        // More than few sessions can carry when their replies are read late: they look busy, and
        // it is not the target that keeps them so.
        &["--rate", "3000", "--sessions", "5"],
    ] {
        let fixed = ["--duration", "3s", "--cpus", &cpu, "--no-preflight"];
        let more = [&fixed[..], more].concat();
        let (report, output) = run(&["nice", "-n", "19"], &target, &more);
        let verdict = &report["verdict"];
        println!("{more:?} {verdict} {}", report["generator"]);
        assert_eq!(
            verdict["state"], "GENERATOR SATURATED",
            "{more:?}: {report:#}"
        );
        assert_eq!(output.status.code(), Some(3), "{more:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.starts_with("VERDICT     GENERATOR SATURATED  ("),
            "{text}"
        );
    }
}

#[test]
fn find_max_finds_the_capacity_of_a_server_that_has_one() {
    // Few a second: of them a machine that stands still for a moment leaves one or two behind the window, as may be.
    const CAPACITY: u32 = 50;
    let file = std::env::temp_dir().join(format!("loadgen-capacity-{}.json", std::process::id()));
    let path = file.display().to_string();
    let mut seen = Vec::new();
    // A machine that stands still makes a step fail, so that less is found; more than there is never is.
    for _ in 0..10 {
        let target = counter_of(CAPACITY).to_string();
        let words = [
            "find-max",
            &target,
            "--start-rate",
            "25",
            "--duration",
            "1s",
            "--sessions",
            "40",
            "--max-p99",
            "900ms",
            "--quiet",
            "--json",
            &path,
        ];
        let output = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
            .args(words)
            .output()
            .unwrap();
        let report: Value =
            serde_json::from_slice(&fs::read(&file).unwrap_or_default()).unwrap_or_default();
        let _ = fs::remove_file(&file);
        let found = report["found_per_s"].as_f64().unwrap();
        // 99 % of what was offered in the window have to be accepted in it, to two messages of its second.
        assert!(found <= f64::from(CAPACITY) / 0.99 + 3.0, "{output:?}");
        seen.push(found);
        if found >= 0.9 * f64::from(CAPACITY) {
            assert_eq!(report["confirmed"], true, "{output:?}");
            let parts: Vec<&str> = report["steps"]
                .as_array()
                .unwrap()
                .iter()
                .rev()
                .take(3)
                .map(|step| step["part"].as_str().unwrap())
                .collect();
            assert_eq!(parts, ["120 %", "100 %", "80 %"], "{output:?}");
            // A fifth more than there is can't be had.
            let last = report["steps"].as_array().unwrap().last().unwrap();
            assert_eq!(last["pass"], false, "{output:?}");
            return;
        }
    }
    panic!("found in ten searches: {seen:?}");
}
