//! Everything that targets, files and disks can do wrong, as one table: what each run ends with, what
//! its report calls it and on whose side, and that it ends at all.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest that any of these runs may take. Their own limits sum up to a few seconds; the rest is
/// for a busy machine.
const END: Duration = Duration::from_secs(90);

#[path = "support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use support::{Place, address_without_listener, command, program, totals};

/// What a bad server does with each connection.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Says this at once and nothing more; reads what comes.
    Say(&'static [u8]),
    /// Says one line for ever without its end, slowly enough not to fill memory.
    Endless,
    /// Says lines of one reply for ever.
    EndlessReply,
    /// Serves, but at this command or end of data says these bytes, and then does the rest.
    At(&'static str, &'static [u8], Then),
}

/// What follows the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
    Reset,
    Stall,
}

/// Reads until the client is gone.
fn exhaust(stream: &mut impl Read) {
    let mut buf = [0; 4096];
    while stream.read(&mut buf).is_ok_and(|len| len > 0) {}
}

/// Starts a server; its threads end with the test process.
fn bad_server(deed: Deed) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that is gone is not this server's trouble.
            std::thread::spawn(move || drop(play(stream.unwrap(), deed)));
        }
    });
    target
}

fn play(mut stream: TcpStream, deed: Deed) -> std::io::Result<()> {
    let (at, words, then) = match deed {
        Deed::Say(words) => {
            stream.write_all(words)?;
            exhaust(&mut stream);
            return Ok(());
        }
        Deed::Endless => loop {
            stream.write_all(&[b'2'; 1024])?;
        },
        Deed::EndlessReply => loop {
            stream.write_all(b"220-and so on\r\n")?;
        },
        Deed::At(at, words, then) => (at, words, then),
    };
    let mut input = BufReader::new(stream.try_clone()?);
    let (mut line, mut inside, mut first) = (Vec::new(), false, true);
    loop {
        let known: &[u8] = if std::mem::take(&mut first) {
            line = b"CONNECT".to_vec();
            b"220 bad.example ESMTP\r\n"
        } else {
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            match line.get(..4) {
                _ if inside && line != b".\r\n" => continue,
                _ if inside => {
                    inside = false;
                    b"250 2.0.0 Ok\r\n"
                }
                Some(b"DATA") => {
                    inside = true;
                    b"354 Go\r\n"
                }
                Some(b"QUIT") => b"221 2.0.0 Bye\r\n",
                _ => b"250 2.0.0 Ok\r\n",
            }
        };
        if !line.starts_with(at.as_bytes()) {
            stream.write_all(known)?;
            continue;
        }
        stream.write_all(words)?;
        match then {
            Then::GoOn => {}
            Then::Close => return stream.shutdown(std::net::Shutdown::Both),
            Then::Reset => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            Then::Stall => {
                exhaust(&mut stream);
                return Ok(());
            }
        }
    }
}

/// Runs two messages on one session; returns exit code, report and the text.
fn run(target: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    let place = Place::new(&format!("{:?}", std::thread::current().id()));
    let path = place.at("run.json");
    let fixed = [
        "run",
        target,
        "--sessions",
        "1",
        "--messages",
        "2",
        "--quiet",
        "--json",
        &path,
    ];
    // Long enough for a server on a busy machine; what stalls for ever stalls three times at most.
    let limits = [
        "--timeout",
        "4s",
        "--connect-attempts",
        "2",
        "--no-preflight",
    ];
    let start = Instant::now();
    let output = program(&[&fixed[..], &limits, more].concat());
    assert!(start.elapsed() < END, "{more:?} took {:?}", start.elapsed());
    let report = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    (
        output.status.code(),
        serde_json::from_slice(&report).unwrap_or_default(),
        text.into_owned(),
    )
}

/// What a run against a bad target has to report.
struct Row {
    name: &'static str,
    deed: Deed,
    exit: i32,
    /// Phase and fault of the outcome that names it.
    named: (&'static str, &'static str),
    /// Attempted, accepted, deferred, rejected, failed, unsent.
    totals: [u64; 6],
}

#[test]
fn whatever_a_target_does_is_named_on_its_side_and_counted_right() {
    const LONG: &[u8] = &[b'2'; 9000];
    let row = |name, deed, named, totals| Row {
        name,
        deed,
        exit: 3,
        named,
        totals,
    };
    let rows = [
        row(
            "closing at once",
            Deed::At("CONNECT", b"", Then::Close),
            ("greeting", "closed-by-target"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "resetting at once",
            Deed::At("CONNECT", b"", Then::Reset),
            ("greeting", "reset"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "silence",
            Deed::Say(b""),
            ("greeting", "timeout"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "nonsense",
            Deed::Say(b"hello there\r\n"),
            ("greeting", "protocol-violation"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "nonsense of HTTP",
            Deed::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            ("greeting", "protocol-violation"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "a long line",
            Deed::Say(LONG),
            ("greeting", "protocol-violation"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "an endless line",
            Deed::Endless,
            ("greeting", "protocol-violation"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "an endless reply",
            Deed::EndlessReply,
            ("greeting", "protocol-violation"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "a refusal at once",
            Deed::Say(b"554 5.7.1 Go away\r\n"),
            ("greeting", "session-refused"),
            [0, 0, 0, 0, 0, 2],
        ),
        row(
            "closing in mid-reply",
            Deed::At("MAIL", b"250-2.1.0 So f", Then::Close),
            ("mail", "closed-by-target"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "resetting in the dialogue",
            Deed::At("RCPT", b"", Then::Reset),
            ("rcpt", "reset"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "stalling in mid-reply",
            Deed::At("DATA", b"35", Then::Stall),
            ("data-354", "timeout"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "closing instead of the answer",
            Deed::At(".\r\n", b"", Then::Close),
            ("end-of-data", "closed-by-target"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "stalling before the answer",
            Deed::At(".\r\n", b"", Then::Stall),
            ("end-of-data", "timeout"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "resetting before the answer",
            Deed::At(".\r\n", b"", Then::Reset),
            ("end-of-data", "reset"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "nonsense for an answer",
            Deed::At(".\r\n", b"\x00\xff?\r\n", Then::GoOn),
            ("end-of-data", "protocol-violation"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "a reply code that is none",
            Deed::At("RCPT", b"999 what\r\n", Then::GoOn),
            ("rcpt", "protocol-violation"),
            [2, 0, 0, 0, 2, 0],
        ),
        row(
            "codes that differ in one reply",
            Deed::At("RCPT", b"250-a\r\n550 b\r\n", Then::GoOn),
            ("rcpt", "protocol-violation"),
            [2, 0, 0, 0, 2, 0],
        ),
    ];
    // Each in a thread of its own: most of the time is waiting.
    let rows = rows.map(|row| std::thread::spawn(move || (run(&bad_server(row.deed), &[]), row)));
    for row in rows {
        let ((exit, report, text), row) = row.join().unwrap();
        let name = row.name;
        assert_eq!(exit, Some(row.exit), "{name}: {text}");
        assert_eq!(report["verdict"]["state"], "INVALID", "{name}: {text}");
        assert_eq!(totals(&report), row.totals, "{name}: {text}");
        let outcomes = report["outcomes"].as_array().unwrap();
        let faults: Vec<_> = outcomes
            .iter()
            .filter(|outcome| !outcome["fault"].is_null())
            .map(|outcome| {
                assert_eq!(outcome["side"], "target", "{name}: {text}");
                (
                    outcome["phase"].as_str().unwrap(),
                    outcome["fault"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(faults, [row.named], "{name}: {text}");
        assert!(text.contains("[target side]"), "{name}: {text}");
    }
}

#[test]
fn a_target_that_is_down_is_refused_before_and_named_during_a_run() {
    let target = address_without_listener().to_string();
    let output = program(&["run", &target, "--messages", "1", "--quiet"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("can't be used"),
        "{output:?}"
    );
    let (exit, report, text) = run(&target, &[]);
    assert_eq!(exit, Some(3), "{text}");
    let outcome = &report["outcomes"][0];
    assert_eq!(
        (
            &outcome["phase"],
            &outcome["fault"],
            &outcome["side"],
            &outcome["count"]
        ),
        (
            &"connect".into(),
            &"refused".into(),
            &"target".into(),
            &3.into()
        ),
        "{text}"
    );
    // A UNIX socket that is not there.
    let place = Place::new("bad-unix");
    let (exit, report, text) = run(&format!("unix:{}", place.at("none")), &[]);
    assert_eq!(exit, Some(3), "{text}");
    assert_eq!(report["outcomes"][0]["fault"], "refused", "{text}");
}

/// Says STARTTLS and then `words` instead of a handshake.
fn bad_tls(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let session = move |mut stream: TcpStream| -> std::io::Result<()> {
        let mut input = BufReader::new(stream.try_clone()?);
        stream.write_all(b"220 bad.example ESMTP\r\n")?;
        let mut line = String::new();
        while input.read_line(&mut line)? > 0 && !line.contains("STARTTLS") {
            stream.write_all(b"250-bad.example\r\n250 STARTTLS\r\n")?;
            line.clear();
        }
        stream.write_all(b"220 2.0.0 Go\r\n")?;
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        stream.write_all(words)?;
        if words.is_empty() {
            exhaust(&mut input);
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || drop(session(stream.unwrap())));
        }
    });
    target
}

#[test]
fn tls_that_fails_is_the_targets_and_a_missing_root_is_ours() {
    for (words, fault) in [
        (&b"\x15\x03\x03\x00\x02\x02\x28"[..], "tls-failure"),
        (b"250 not a handshake\r\n", "tls-failure"),
        (b"", "timeout"),
    ] {
        let (exit, report, text) = run(&bad_tls(words), &["--tls", "starttls", "--tls-insecure"]);
        assert_eq!(exit, Some(3), "{text}");
        let faults: Vec<_> = report["outcomes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|outcome| !outcome["fault"].is_null())
            .map(|outcome| [&outcome["phase"], &outcome["fault"], &outcome["side"]])
            .collect();
        assert_eq!(faults, [["tls", fault, "target"]], "{text}");
        let totals = &report["totals"];
        assert_eq!(
            [&totals["attempted"], &totals["unsent"]],
            [&Value::from(0), &Value::from(2)]
        );
    }
    let place = Place::new("bad-ca");
    let CertifiedKey { signing_key, .. } = generate_simple_self_signed(vec!["x".into()]).unwrap();
    // A private key where certificates belong, and nothing at all.
    fs::write(place.at("key.pem"), signing_key.serialize_pem()).unwrap();
    for file in ["key.pem", "none.pem"] {
        let path = place.at(file);
        let (exit, report, text) = run("127.0.0.1:9", &["--tls", "starttls", "--tls-ca", &path]);
        assert_eq!((exit, report), (Some(2), Value::Null), "{text}");
        assert!(text.contains(file), "{text}");
    }
}

#[test]
fn files_that_can_not_be_read_or_written_are_named_and_end_the_program() {
    let place = Place::new("bad-files");
    let path = |name: &str| place.at(name);
    fs::write(path("table"), "1k,0.5\n").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::create_dir(path("corpus")).unwrap();
    fs::write(path("corpus/a.eml"), "Subject: a\r\n\r\na\r\n").unwrap();
    // What even root can't read: a link that leads nowhere, and one that leads to itself.
    std::os::unix::fs::symlink(path("nowhere"), path("corpus/dangling.eml")).unwrap();
    fs::create_dir(path("loop")).unwrap();
    std::os::unix::fs::symlink(path("loop/round"), path("loop/round")).unwrap();
    for (arguments, word) in [
        (&["--corpus", &path("corpus")][..], "dangling.eml"),
        (&["--corpus", &path("loop")], "round"),
        (&["--corpus", &path("none")], "none"),
        (&["--corpus", &path("folder")], "holds no message"),
        (&["--sizes", &path("table")], "the last share must be 1"),
        (&["--sizes", &path("none")], "none"),
        (&["--to-file", &path("none")], "none"),
        (&["--from-file", &path("folder")], "folder"),
        (&["--to-file", &path("empty")], "no "),
        (&["--ledger", &path("folder")], "folder"),
        (&["--raw", &path("none/raw")], "none/raw"),
        (&["--ceiling", &path("table")], "table"),
    ] {
        let (exit, report, text) = run("127.0.0.1:9", arguments);
        assert_eq!(
            (exit, &report),
            (Some(2), &Value::Null),
            "{arguments:?}: {text}"
        );
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
}

#[test]
fn a_full_disk_under_ledger_log_or_report_is_said_and_counts_nothing_false() {
    let sink = smtp_loadgen::sink::Running::start(Default::default(), None).unwrap();
    let target = sink.address.to_string();
    // /dev/full takes nothing. The text of the report is printed before its files are written.
    for (flag, printed) in [
        ("--json", true),
        ("--html", true),
        ("--ledger", false),
        ("--raw", false),
    ] {
        let fixed = ["run", &target, "--messages", "50", "--quiet"];
        let output = program(&[&fixed[..], &[flag, "/dev/full"]].concat());
        // A ledger or log that can't even begin is a wrong argument; a report that is lost, a
        // wasted run.
        let expected = if printed { 3 } else { 2 };
        assert_eq!(output.status.code(), Some(expected), "{flag}: {output:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("/dev/full"), "{flag}: {error}");
        assert!(error.contains("No space left"), "{flag}: {error}");
        assert_eq!(!output.stdout.is_empty(), printed, "{flag}");
    }
    sink.stop().unwrap();
}

/// A small file system, unmounted with its test.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_disk_that_fills_during_the_run_ends_it_and_the_ledger_stays_true() {
    let place = Place::new("bad-full");
    let small = place.at("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", &small];
    let mounted = Command::new("mount").args(mount).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a file system of 64 KiB can't be mounted here");
        return;
    }
    let _mounted = Mounted(small.clone());
    let store = place.folder("store");
    let sink = smtp_loadgen::sink::Running::start(Default::default(), Some(store.clone())).unwrap();
    let target = sink.address.to_string();
    for (flag, file) in [("--ledger", "ledger"), ("--raw", "raw")] {
        let path = format!("{small}/{file}");
        let _ = fs::remove_file(format!("{small}/ledger"));
        let kept = format!("{}.copy", place.at(file));
        // Ended by its duration if the error were not seen.
        let fixed = ["run", &target, "--duration", "60s", "--quiet", flag, &path];
        let start = Instant::now();
        let output = program(&fixed);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(start.elapsed() < Duration::from_secs(50), "the run went on");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            error.contains("No space left") && error.contains(file),
            "{error}"
        );
        fs::copy(&path, &kept).unwrap();
    }
    sink.stop().unwrap();
    // Every line that the ledger could take names a message that is there.
    let ledger = format!("{}.copy", place.at("ledger"));
    let verified = program(&[
        "verify",
        "--ledger",
        &ledger,
        "--eml",
        &store.display().to_string(),
    ]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(text.starts_with("CLEAN  acknowledged "), "{text}");
    assert!(!text.starts_with("CLEAN  acknowledged 0 "), "{text}");
}

#[test]
fn a_session_that_never_connects_does_not_hold_the_end_of_a_run() {
    // Symptom: a run of a second against a receiver with a short listen queue lasted for its whole drain, because what
    // had not come through the queue was waited for.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&address.into()).unwrap();
    // One connection may wait; the others' SYN is not answered.
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // One after another, so that the queue stays full.
            let _ = polite(stream.unwrap());
        }
    });
    let begin = Instant::now();
    let output = command(&["run", &target, "--sessions", "6", "--duration", "300ms"])
        .args(["--drain", "100s", "--timeout", "100s"])
        .args(["--no-preflight", "--quiet"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(begin.elapsed() < Duration::from_secs(90), "{text}");
    assert!(text.contains("unfinished 0   unsent 0"), "{text}");
}

/// Serves one client until it closes.
fn polite(stream: TcpStream) -> std::io::Result<()> {
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    output.write_all(b"220 short.example ESMTP\r\n")?;
    let (mut line, mut inside) = (Vec::new(), false);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if inside && line != b".\r\n" {
            continue;
        }
        inside = !inside && line.starts_with(b"DATA");
        output.write_all(match line.get(..4) {
            Some(b"DATA") => b"354 Go\r\n",
            Some(b"QUIT") => return output.write_all(b"221 Bye\r\n"),
            _ => &b"250 2.0.0 Ok\r\n"[..],
        })?;
    }
}
