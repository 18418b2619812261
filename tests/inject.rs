//! A real server whose system calls fail, or which dies at one of them: strace injects what a disk can do.
//!
//! Every n-th write, sync and send of a short run is the last one, one after the other; every call that touches the
//! ring fails once. strace counts calls in each thread by itself, so a run has three phases, each with strace from
//! its beginning: the start, the load, and the end.
//!
//! Without strace, or where ptrace is forbidden, the tests say so and do nothing; `RINGMX_STRACE=required` makes
//! that a failure.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use process::{
    Client, ENVELOPE, Key, Known, Process, RINGMX, Server, TestDir, content, key_of, ringmx,
    strace_works, stuffed, verify, wait_until, without_trace,
};

/// The smallest ring that takes a message in several records.
const RING: [&str; 6] = [
    "--ring-size",
    "16MiB",
    "--full",
    "defer",
    "--log-level",
    "error",
];
/// More calls of one kind than a short run makes.
const CALLS_MAX: u32 = 200;

/// Calls that change a ring or sync it.
const WRITES_AND_SYNCS: &str = "pwritev,pwrite64,fdatasync,fsync,ftruncate";

/// `strace` that traces `calls`, injects `injection`, and writes what it sees to `trace`.
fn strace(trace: &str, calls: &str, injection: &str) -> Command {
    let mut command = Command::new("strace");
    // Descriptors with their paths, no octets.
    command.args(["-f", "-y", "-s", "0", "-o", trace]);
    command.args(["-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={injection}")]);
    command
}

/// A server under strace from its first call on. Its process is a child of the test.
fn start_traced(
    dir: &TestDir,
    options: &[&str],
    calls: &str,
    injection: &str,
) -> Result<Server, Process> {
    let mut command = strace(&dir.join("trace"), calls, injection);
    // The tracer is a grandchild: number and exit code are those of the server.
    command.args(["-D", RINGMX]);
    Server::start_by(command, dir, options)
}

/// strace attached to a running server. Ends with the server.
struct Tracer(Child);

impl Tracer {
    fn attach(dir: &TestDir, server: &Server, calls: &str, injection: &str) -> Tracer {
        let mut command = strace(&dir.join("trace"), calls, injection);
        let mut child = command
            .args(["-p", &server.process.pid().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains("attached"), "{line}");
        // Whatever else it says must not fill its pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Tracer(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What strace wrote: one line for each call.
fn trace_of(dir: &TestDir) -> Vec<String> {
    let text = fs::read_to_string(dir.join("trace")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Calls that change or sync the ring's file behind the one that failed. A sync that was handed to the other thread
/// before a write failed does not count: it may have a superblock to write, and ends with that.
fn calls_after_the_failure(trace: &[String]) -> Vec<&String> {
    let failed = trace.iter().position(|line| line.contains("(INJECTED)"));
    let failed = failed.unwrap_or_else(|| panic!("nothing was injected: {trace:?}"));
    let thread = |line: &str| line.split(' ').next().map(str::to_owned);
    let mut under_way = match trace[failed].contains("pwritev") {
        true => vec![" pwrite64(", " fdatasync("],
        false => Vec::new(),
    };
    let changes = ["pwrite", "fdatasync", "fsync", "ftruncate"];
    trace[failed + 1..]
        .iter()
        .filter(|line| line.contains("/shard-0/ring>"))
        .filter(|line| changes.iter().any(|call| line.contains(call)))
        .filter(|line| {
            let known = under_way.iter().position(|call| line.contains(call));
            match known.filter(|_| thread(line) != thread(&trace[failed])) {
                Some(index) => {
                    under_way.drain(..=index);
                    false
                }
                None => true,
            }
        })
        .collect()
}

/// Copies a ring that is closed.
fn copy_ring(from: &TestDir, to: &TestDir) {
    fs::create_dir_all(Path::new(&to.ring()).join("shard-0")).unwrap();
    let ring = |dir: &TestDir| Path::new(&dir.ring()).join("shard-0/ring");
    fs::copy(ring(from), ring(to)).unwrap();
}

/// What a run begins with.
struct Template {
    name: &'static str,
    dir: TestDir,
    known: Known,
}

impl Template {
    /// A directory of its own that holds the same.
    fn copy(&self) -> TestDir {
        let dir = TestDir::new();
        if Path::new(&self.dir.ring()).exists() {
            copy_ring(&self.dir, &dir);
        }
        dir
    }
}

fn missing() -> Template {
    Template {
        name: "missing",
        dir: TestDir::new(),
        known: Known::default(),
    }
}

/// A new ring, closed in order.
fn closed() -> Template {
    let template = Template {
        name: "closed",
        ..missing()
    };
    Server::start(&template.dir, &RING).stop();
    template
}

/// A ring whose server was killed behind its last 250.
fn killed() -> Template {
    let mut template = Template {
        name: "killed",
        ..missing()
    };
    let server = Server::start(&template.dir, &RING);
    let mut client = Client::open(server.address).unwrap();
    for sequence in [6, 17, 7] {
        // As long as a client's 17th is, so that recovery has more than one piece to write again.
        deliver(&mut client, (8, sequence), &mut template.known).unwrap();
    }
    server.process.kill();
    template
}

/// Messages of [`short_run`].
const SENT: usize = 6;

/// Every way a message can go: alone, several in one batch whose replies wait for one another, and one of more
/// than a record. Ends at the first error.
fn short_run(address: SocketAddr, known: &mut Known) -> io::Result<()> {
    let mut client = Client::open(address)?;
    deliver(&mut client, (0, 1), known)?;
    let pipelined: [Key; 3] = [(0, 2), (0, 3), (0, 4)];
    let mut octets = Vec::new();
    for key in pipelined {
        let text = content(key);
        octets.extend_from_slice(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n");
        octets.extend_from_slice(format!("BDAT {} LAST\r\n", text.len()).as_bytes());
        octets.extend_from_slice(&text);
        known.in_doubt.insert(key);
    }
    client.send(&octets)?;
    for key in pipelined {
        client.expect("250")?;
        client.expect("250")?;
        client.expect("250")?;
        acknowledge(key, known);
    }
    deliver(&mut client, (0, 17), known)?;
    deliver(&mut client, (0, 5), known)?;
    client.send(b"QUIT\r\n")?;
    client.expect("221")?;
    Ok(())
}

fn deliver(client: &mut Client, key: Key, known: &mut Known) -> io::Result<()> {
    client.send(ENVELOPE)?;
    client.expect("250")?;
    client.expect("250")?;
    client.expect("354")?;
    known.in_doubt.insert(key);
    client.send(&[&stuffed(&content(key))[..], b".\r\n"].concat())?;
    client.expect("250")?;
    acknowledge(key, known);
    Ok(())
}

fn acknowledge(key: Key, known: &mut Known) {
    known.in_doubt.remove(&key);
    known.acknowledged.insert(key);
}

/// Delivers everything to a Maildir and registers a consumer for it, which makes the server write a superblock.
fn consume(dir: &TestDir) {
    let target = format!("maildir:{}", dir.join("mail"));
    // The server may be killed beneath it: then it goes on by itself, and ends when the ring is empty.
    ringmx(&[
        "consume",
        "archive",
        "--create",
        "--to",
        &target,
        "--until-empty",
        "--ring",
        &dir.ring(),
    ]);
}

/// Messages of the Maildir by key. Each has to be one that was sent.
fn consumed(dir: &TestDir) -> BTreeMap<Key, u32> {
    let mut found = BTreeMap::new();
    let Ok(files) = fs::read_dir(Path::new(&dir.join("mail")).join("new")) else {
        return found;
    };
    for file in files {
        let octets = fs::read(file.unwrap().path()).unwrap();
        let key = key_of(without_trace(&octets)).expect("a message of the test");
        *found.entry(key).or_default() += 1;
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Of whatever the template is: nothing, a closed ring, or one to recover.
    Start,
    Load,
    End,
}

/// A short run that dies at the n-th `call` of a thread in `phase`. False when there are fewer such calls.
fn dies_at(template: &Template, phase: Phase, call: &str, n: u32) -> bool {
    let when = format!(
        "{phase:?} of a ring that is {}, killed at {call} {n}",
        template.name
    );
    let dir = template.copy();
    let injection = format!("{call}:signal=SIGKILL:when={n}");
    let mut known = template.known.clone();
    let started = match phase {
        Phase::Start => start_traced(&dir, &RING, call, &injection),
        _ => Ok(Server::start(&dir, &RING)),
    };
    let process = match started {
        Err(process) => process,
        Ok(server) => {
            let load =
                (phase == Phase::Load).then(|| Tracer::attach(&dir, &server, call, &injection));
            let whole = short_run(server.address, &mut known);
            assert!(
                whole.is_ok() || phase != Phase::End,
                "{when}: nothing was to fail yet: {whole:?}"
            );
            consume(&dir);
            let end =
                (phase == Phase::End).then(|| Tracer::attach(&dir, &server, call, &injection));
            server.process.terminate();
            let (code, out, errors) = server.process.wait();
            drop((load, end));
            assert!(
                matches!(code, Some(0) | None),
                "{when}: {code:?} {out}{errors}"
            );
            if whole.is_ok() {
                assert_eq!(known.in_doubt.len(), 0, "{when}");
                let sent = template.known.acknowledged.len() + SENT;
                assert_eq!(known.acknowledged.len(), sent, "{when}");
            }
            check_after(&dir, &known, &when);
            return code.is_none();
        }
    };
    let (code, out, errors) = process.wait();
    assert_eq!(code, None, "{when}: {out}{errors}");
    check_after(&dir, &known, &when);
    true
}

/// Compares the ring with what is known: as the dead process left it, after a recovery, and as a consumer that
/// finishes its work gets it.
fn check_after(dir: &TestDir, known: &Known, when: &str) {
    if Path::new(&dir.ring()).join("shard-0/ring").exists() {
        known.check(dir, when);
    } else {
        assert!(known.acknowledged.is_empty(), "{when}: there is no ring");
    }
    let server = Server::start(dir, &RING);
    known.check(dir, &format!("{when}, recovered"));
    let mut known = known.clone();
    let mut client = Client::open(server.address).unwrap();
    deliver(&mut client, (9, 1), &mut known).unwrap();
    drop(client);
    server.stop();
    consume(dir);
    known.check(dir, &format!("{when}, at the end"));
    verify(dir);
    let consumed = consumed(dir);
    for key in &known.acknowledged {
        // The file's name is that of the message: twice delivered is once there.
        assert_eq!(
            consumed.get(key),
            Some(&1),
            "{when}: {key:?} in the Maildir"
        );
    }
}

/// Whether a dialogue ended because the storage failed: beneath its own message, or, on a slow machine, beneath the
/// record that the server writes when it has been idle for a second.
fn is_storage_refusal(error: &io::Error) -> bool {
    let text = error.to_string();
    [
        "250 expected, got 451 4.3.0 Storage failed; not stored\r\n",
        "expected, got 451 4.3.0 Storage is not available; try again later\r\n",
        "Storage is not available; closing\r\n",
    ]
    .iter()
    .any(|refusal| text.ends_with(refusal))
}

/// A run whose n-th `call` of a thread fails as `fault` says, on a server that stays. False when there are fewer
/// such calls: then nothing may have failed.
fn fails_at(template: &Template, call: &str, fault: &str, n: u32) -> bool {
    let when = format!("{call} {n} with {fault}");
    let dir = template.copy();
    let stay = ["--on-storage-failure", "stay", "--http", "127.0.0.1:0"];
    let server = Server::start(&dir, &[&RING[..], &stay].concat());
    let mut idle = Client::open(server.address).unwrap();
    let tracer = Tracer::attach(
        &dir,
        &server,
        WRITES_AND_SYNCS,
        &format!("{call}:{fault}:when={n}"),
    );
    let mut known = Known::default();
    let run = short_run(server.address, &mut known);
    consume(&dir);
    let failed = trace_of(&dir)
        .iter()
        .any(|line| line.contains("(INJECTED)"));
    if failed {
        // A failure that no session waited for is the superblock's; the loop learns of it behind its wake-up.
        wait_until("the page turns red", || {
            server.get("/healthz").starts_with("HTTP/1.1 503 ")
        });
        if let Err(error) = &run {
            assert!(is_storage_refusal(error), "{when}: {error}");
        }
        idle.send(b"MAIL FROM:<a@example.org>\r\n").unwrap();
        assert_eq!(
            idle.reply().unwrap(),
            "451 4.3.0 Storage is not available; try again later\r\n",
            "{when}"
        );
        let mut new = Client::connect(server.address).unwrap();
        let refused = new.rest().unwrap();
        assert!(
            refused.starts_with("421 4.3.0 ")
                && refused.ends_with("Storage is not available; closing\r\n"),
            "{when}: {refused}"
        );
        assert!(server.get("/readyz").starts_with("HTTP/1.1 503 "), "{when}");
        let metrics = server.get("/metrics");
        assert!(
            metrics.contains("\nringmx_storage_failures_total 1\n"),
            "{when}"
        );
    } else {
        assert!(run.is_ok(), "{when}: {run:?}");
        assert!(
            server.get("/healthz").starts_with("HTTP/1.1 200 "),
            "{when}"
        );
    }
    drop(idle);
    server.process.terminate();
    let (code, out, errors) = server.process.wait();
    drop(tracer);
    let trace = trace_of(&dir);
    if failed {
        assert_eq!(code, Some(74), "{when}: {out}{errors}");
        assert!(
            out.contains(
                "\nStorage failed. Nothing that was acknowledged is lost; see the log lines.\n"
            ),
            "{when}: {out}"
        );
        assert!(
            errors.contains(" class=storage_failed "),
            "{when}: {errors}"
        );
        let reason = match fault {
            "error=ENOSPC" => "No space left on device",
            _ => "Input/output error",
        };
        assert!(errors.contains(reason), "{when}: {errors}");
        let later = calls_after_the_failure(&trace);
        assert!(later.is_empty(), "{when}: went on with {later:?}");
    } else {
        // What is injected behind the load is told by the exit code of the end.
        let failed = trace.iter().any(|line| line.contains("(INJECTED)"));
        assert_eq!(
            code,
            Some(if failed { 74 } else { 0 }),
            "{when}: {out}{errors}"
        );
    }
    check_after(&dir, &known, &when);
    failed
}

/// Fails each call of its kind once.
fn fails_at_each(faults: &[(&str, &str)]) {
    if !strace_works() {
        return;
    }
    let template = closed();
    for &(call, fault) in faults {
        let mut n = 1;
        while fails_at(&template, call, fault, n) {
            n += 1;
            assert!(n < CALLS_MAX, "{call}: the run does not get to its end");
        }
        println!("{call} with {fault}: each of {} calls failed once", n - 1);
        assert!(n > 1, "no call of {call}");
    }
}

/// Every call that touches the ring's directory while a server starts. Those that need space come last.
const CALLS_OF_A_START: [&str; 13] = [
    "fcntl",
    "pread64",
    "unlink",
    "statx",
    "openat",
    "mkdir",
    "ftruncate",
    "pwrite64",
    "pwritev",
    "fsync",
    "fdatasync",
    "rename",
    "bind",
];

/// A start whose n-th `call` on something below the ring's directory fails. `None` when there are fewer such calls;
/// otherwise whether the server came up in spite of it.
fn start_fails_at(template: &Template, call: &str, errno: &str, n: u32) -> Option<bool> {
    let when = format!("{} ring, {call} {n} with {errno}", template.name);
    let dir = template.copy();
    let mut command = strace(
        &dir.join("trace"),
        call,
        &format!("{call}:error={errno}:when={n}"),
    );
    // Nothing but the ring: the rest of what a program opens at its start is the system's.
    let shard = Path::new(&dir.ring()).join("shard-0");
    for path in [
        Path::new(&dir.ring()),
        &shard,
        &shard.join("ring"),
        &shard.join("ring.new"),
        &shard.join("ctl"),
    ] {
        command.args([Path::new("-P"), path]);
    }
    command.args(["-D", RINGMX]);
    let came_up = match Server::start_by(command, &dir, &RING) {
        Ok(server) => {
            server.process.terminate();
            let (code, out, errors) = server.process.wait();
            // The end has writes and syncs as well.
            let closed = code == Some(0) || code == Some(74) && out.contains("could not be closed");
            assert!(closed, "{when}: {code:?} {out}{errors}");
            true
        }
        Err(process) => {
            let (code, out, errors) = process.wait();
            assert!(
                matches!(code, Some(1 | 74)),
                "{when}: {code:?} {out}{errors}"
            );
            let last = errors.lines().last().unwrap_or_default();
            assert!(last.starts_with("ringmx: "), "{when}: {errors}");
            assert!(!errors.contains("panicked"), "{when}: {errors}");
            println!("{when}: {code:?} {last}");
            false
        }
    };
    let injected = trace_of(&dir)
        .iter()
        .any(|line| line.contains("(INJECTED)"));
    assert!(injected || came_up, "{when}: failed by itself");
    let left = fs::metadata(shard.join("ring.new"))
        .map(|about| about.len())
        .ok();
    // Without a lock nobody knows whose file it is, so it stays; it is empty.
    assert!(
        left.is_none() || call == "fcntl" && left == Some(0),
        "{when}: left {left:?} bytes"
    );
    let server = Server::start(&dir, &RING);
    let mut client = Client::open(server.address).unwrap();
    let mut known = template.known.clone();
    deliver(&mut client, (1, 1), &mut known).unwrap();
    drop(client);
    server.stop();
    verify(&dir);
    known.check(&dir, &when);
    injected.then_some(came_up)
}

fn start_fails_at_each(template: &Template, at_least: &[(&str, u32)]) {
    for (errno, calls) in [
        ("EIO", &CALLS_OF_A_START[..]),
        ("ENOSPC", &CALLS_OF_A_START[4..]),
    ] {
        for &call in calls {
            let mut n = 1;
            while let Some(came_up) = start_fails_at(template, call, errno, n) {
                if came_up {
                    println!("{call} {n} with {errno}: no matter");
                }
                n += 1;
                assert!(n < CALLS_MAX, "{call}: no end");
            }
            let least = at_least.iter().find(|(name, _)| *name == call);
            assert!(
                least.is_none_or(|(_, least)| n > *least),
                "only {} calls of {call}",
                n - 1
            );
        }
    }
}

/// Kills at each call of its kind, in one phase. How many there were.
fn dies_at_each(template: fn() -> Template, phase: Phase, calls: &[(&str, u32)]) {
    if !strace_works() {
        return;
    }
    let template = template();
    for &(call, at_least) in calls {
        let mut n = 1;
        while dies_at(&template, phase, call, n) {
            n += 1;
            assert!(n < CALLS_MAX, "{call}: the run does not get to its end");
        }
        let name = template.name;
        println!(
            "{phase:?} ({name}): killed at each of {} calls of {call}",
            n - 1
        );
        assert!(n > at_least, "{phase:?}: only {} calls of {call}", n - 1);
    }
}

#[test]
fn a_server_killed_at_any_call_that_creates_its_ring_creates_it_the_next_time() {
    let calls = [
        ("mkdir", 3),
        ("ftruncate", 1),
        ("pwrite64", 3),
        ("fsync", 3),
        ("rename", 1),
    ];
    dies_at_each(missing, Phase::Start, &calls);
}

#[test]
fn a_server_killed_at_any_write_or_sync_of_its_start_has_changed_nothing_that_counts() {
    dies_at_each(closed, Phase::Start, &[("pwritev", 3), ("fdatasync", 3)]);
}

#[test]
fn a_server_killed_at_any_write_or_sync_of_a_recovery_is_recovered_by_the_next() {
    dies_at_each(killed, Phase::Start, &[("pwritev", 5), ("fdatasync", 3)]);
}

#[test]
fn a_server_killed_at_any_write_of_its_work_keeps_what_it_acknowledged() {
    dies_at_each(closed, Phase::Load, &[("pwritev", 4), ("pwrite64", 1)]);
}

#[test]
fn a_server_killed_at_any_sync_or_send_of_its_work_keeps_what_it_acknowledged() {
    dies_at_each(closed, Phase::Load, &[("fdatasync", 4), ("sendto", 10)]);
}

#[test]
fn a_server_killed_at_any_write_or_sync_of_its_end_keeps_what_it_acknowledged() {
    dies_at_each(
        closed,
        Phase::End,
        &[("pwritev", 1), ("fdatasync", 2), ("unlink", 1)],
    );
}

#[test]
fn a_failed_write_stops_the_log_for_good_and_loses_nothing_acknowledged() {
    fails_at_each(&[
        ("pwritev", "error=EIO"),
        ("pwritev", "error=ENOSPC"),
        ("pwritev", "retval=0"),
        ("pwrite64", "error=EIO"),
    ]);
}

#[test]
fn a_failed_sync_stops_the_log_for_good_and_loses_nothing_acknowledged() {
    fails_at_each(&[("fdatasync", "error=EIO"), ("fdatasync", "error=ENOSPC")]);
}

#[test]
fn interrupted_writes_and_syncs_are_done_again_and_nobody_notices() {
    if !strace_works() {
        return;
    }
    let dir = closed().copy();
    let server = Server::start(&dir, &RING);
    let every_other = "pwritev,pwrite64,fdatasync:error=EINTR:when=1+2";
    let tracer = Tracer::attach(&dir, &server, WRITES_AND_SYNCS, every_other);
    let mut known = Known::default();
    short_run(server.address, &mut known).unwrap();
    consume(&dir);
    server.stop();
    drop(tracer);
    let trace = trace_of(&dir);
    for call in ["pwritev", "pwrite64", "fdatasync"] {
        let interrupted = trace.iter().any(|line| {
            line.contains(call) && line.contains("EINTR") && line.contains("(INJECTED)")
        });
        assert!(interrupted, "no {call} was interrupted: {trace:?}");
    }
    assert_eq!(known.acknowledged.len(), SENT);
    check_after(&dir, &known, "interrupted");
}

#[test]
fn every_session_that_waits_for_a_failed_sync_is_told_so_and_the_server_ends_with_74() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    let options = [&RING[..], &["--failed-grace", "1s"]].concat();
    let server = Server::start(&dir, &options);
    // The first sync takes its time: the messages behind it wait for the second, which never comes.
    let slow_and_bad = "fdatasync:error=EIO:delay_enter=500000:when=1";
    let tracer = Tracer::attach(&dir, &server, WRITES_AND_SYNCS, slow_and_bad);
    let mut known = Known::default();
    let mut clients = Vec::new();
    for number in 0..4 {
        let key = (1, number);
        let mut client = Client::open(server.address).unwrap();
        client.send(ENVELOPE).unwrap();
        for code in ["250", "250", "354"] {
            client.expect(code).unwrap();
        }
        clients.push((client, key));
    }
    for (client, key) in &mut clients {
        known.in_doubt.insert(*key);
        let octets = [&stuffed(&content(*key))[..], b".\r\nNOOP\r\n"].concat();
        client.send(&octets).unwrap();
    }
    for (client, key) in &mut clients {
        let reply = client.reply().unwrap();
        assert!(reply.starts_with("451 4.3.0 "), "{key:?}: {reply}");
        assert_eq!(client.reply().unwrap(), "250 2.0.0 Ok\r\n", "{key:?}: NOOP");
    }
    let (code, out, errors) = server.process.wait();
    drop(tracer);
    assert_eq!(code, Some(74), "{out}{errors}");
    let syncs = trace_of(&dir)
        .iter()
        .filter(|line| line.contains("fdatasync("))
        .count();
    assert_eq!(syncs, 1, "the sync is not tried again");
    check_after(&dir, &known, "a failed sync under load");
}

#[test]
fn whatever_call_fails_while_a_ring_is_created_the_start_says_so_and_the_next_one_succeeds() {
    if strace_works() {
        start_fails_at_each(&missing(), &[("pwrite64", 3), ("fsync", 3), ("rename", 1)]);
    }
}

#[test]
fn whatever_call_fails_while_a_ring_is_opened_the_start_says_so_and_the_next_one_succeeds() {
    if strace_works() {
        start_fails_at_each(&closed(), &[("pwritev", 3), ("fdatasync", 3)]);
    }
}

/// The directories whose entries a start made durable, in the order of their paths.
fn synced_directories(dir: &TestDir) -> Vec<String> {
    let mut command = strace(&dir.join("trace"), "fsync,fdatasync", "fsync:delay_enter=0");
    command.args(["-D", RINGMX]);
    let Ok(server) = Server::start_by(command, dir, &RING) else {
        panic!("the server does not start");
    };
    server.stop();
    let root = dir.path().to_str().unwrap();
    let mut paths: Vec<_> = trace_of(dir)
        .iter()
        .filter_map(|line| {
            let (_, rest) = line.split_once("fsync(")?.1.split_once('<')?;
            let path = rest.split_once('>')?.0.strip_prefix(root)?;
            Some(path.to_owned())
        })
        .filter(|path| !path.contains("/ring.new"))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// The entry of a file is as durable as the directory that names it, and so on upwards: a ring can be lost whole
/// by a power cut although each of its bytes was synced.
#[test]
fn a_new_ring_is_durable_by_its_name_in_every_directory_that_leads_to_it() {
    if !strace_works() {
        return;
    }
    let dir = TestDir::new();
    assert_eq!(
        synced_directories(&dir),
        ["", "/ring-data", "/ring-data/shard-0"]
    );
    // Whoever created it may have been killed between giving the name and syncing it.
    assert_eq!(synced_directories(&dir), ["/ring-data/shard-0"]);
}

/// What can't be examined may be a ring.
#[test]
fn a_ring_that_cannot_be_examined_is_not_replaced_by_a_new_one() {
    if !strace_works() {
        return;
    }
    let dir = closed().copy();
    let path = Path::new(&dir.ring()).join("shard-0/ring");
    let before = fs::read(&path).unwrap();
    let mut command = strace(&dir.join("trace"), "statx", "statx:error=EIO:when=1+");
    command.args([Path::new("-P"), &path, Path::new(RINGMX)]);
    command.args([
        "ring",
        "create",
        "--ring",
        &dir.ring(),
        "--ring-size",
        "16MiB",
    ]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{errors}");
    assert!(errors.contains("Input/output error"), "{errors}");
    assert!(
        trace_of(&dir)
            .iter()
            .any(|line| line.contains("(INJECTED)"))
    );
    assert!(
        fs::read(&path).unwrap() == before,
        "the ring is another one"
    );
    assert!(!Path::new(&dir.ring()).join("shard-0/ring.new").exists());
}

/// `prlimit` gives the process a limit of file size: the write that reaches it is short, its rest fails. A real
/// short write, which strace cannot make.
#[test]
fn a_write_cut_short_by_the_limit_of_file_size_stops_the_log_and_loses_nothing_acknowledged() {
    let template = closed();
    // Within the record of a message, and not at the beginning of a sector, page or message.
    for limit in [70_001, 100_003, 500_009] {
        let when = format!("files of at most {limit} octets");
        let dir = template.copy();
        let mut command = Command::new("prlimit");
        command.args([&format!("--fsize={limit}"), RINGMX]);
        let options = [&RING[..], &["--failed-grace", "1s"]].concat();
        let server = match Server::start_by(command, &dir, &options) {
            Ok(server) => server,
            Err(process) => panic!("{:?}", process.wait()),
        };
        let mut known = Known::default();
        let error = short_run(server.address, &mut known).expect_err("a full file");
        assert!(is_storage_refusal(&error), "{when}: {error}");
        let (code, out, errors) = server.process.wait();
        assert_eq!(code, Some(74), "{when}: {out}{errors}");
        assert!(errors.contains("File too large"), "{when}: {errors}");
        check_after(&dir, &known, &when);
    }
}

#[test]
fn a_ring_larger_than_the_limit_of_file_size_is_not_created_and_leaves_nothing_behind() {
    let dir = TestDir::new();
    let mut command = Command::new("prlimit");
    command.args(["--fsize=5000000", RINGMX]);
    let Err(process) = Server::start_by(command, &dir, &RING) else {
        panic!("a ring of more than the limit");
    };
    let (code, _, errors) = process.wait();
    assert_eq!(code, Some(74), "{errors}");
    assert!(
        errors.contains("creating the ring: File too large"),
        "{errors}"
    );
    let left: Vec<_> = fs::read_dir(Path::new(&dir.ring()).join("shard-0"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
