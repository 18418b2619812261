//! Runs against receivers of other people: Postfix's smtp-sink and Python's aiosmtpd. A program
//! that is not installed is skipped, and says so by name.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A child process that ends with its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the target does not listen");
        std::thread::yield_now();
    }
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs with `more`; asserts that all of `messages` were accepted.
fn accepted(target: &str, messages: u64, more: &[&str]) {
    let report = std::env::temp_dir().join(format!(
        "loadgen-targets-{}-{}",
        std::process::id(),
        free_port()
    ));
    let path = report.display().to_string();
    let count = messages.to_string();
    let fixed = [
        "run",
        target,
        "--messages",
        &count,
        "--sessions",
        "5",
        "--quiet",
        "--json",
        &path,
    ];
    let output = program(&[&fixed[..], more].concat());
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    assert_eq!(
        value["totals"]["accepted"], messages,
        "{more:?}: {output:?}"
    );
    assert_eq!(value["totals"]["attempted"], messages, "{more:?}");
}

#[test]
fn smtp_sink_accepts_everything_in_each_dialect() {
    let sink = ["/usr/sbin/smtp-sink", "/usr/lib/postfix/sbin/smtp-sink"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(sink) = sink else {
        eprintln!("skipped: smtp-sink (Debian package postfix) is not installed");
        return;
    };
    let port = free_port();
    let target = format!("127.0.0.1:{port}");
    let mut command = Command::new(sink);
    // As root smtp-sink refuses to run without a user to become.
    let _guard = Guard(
        command
            .args(["-u", "nobody", &target, "100"])
            .spawn()
            .unwrap(),
    );
    wait_for(port);
    accepted(&target, 500, &[]);
    accepted(&target, 500, &["--pipelining", "off"]);
    accepted(
        &target,
        100,
        &["--messages-per-connection", "1", "--rcpts", "3"],
    );
    accepted(&target, 20, &["--size", "1MiB"]);
    accepted(&target, 300, &["--rate", "1000", "--poisson"]);

    let port = free_port();
    let target = format!("127.0.0.1:{port}");
    let mut command = Command::new(sink);
    let _guard = Guard(
        command
            .args(["-L", "-u", "nobody", &target, "100"])
            .spawn()
            .unwrap(),
    );
    wait_for(port);
    accepted(&target, 100, &["--lmtp", "--rcpts", "3"]);
}

const AIOSMTPD: &str = r#"
import asyncio, os, sys, itertools
from aiosmtpd.smtp import SMTP
count = itertools.count()
class Keep:
    async def handle_DATA(self, server, session, envelope):
        with open(os.path.join(sys.argv[1], f"{next(count)}.eml"), "wb") as file:
            file.write(envelope.content)
        return "250 2.0.0 kept"
async def main():
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(Keep(), hostname="aio.example"), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn aiosmtpd_stores_what_the_ledger_says() {
    let known = Command::new("python3")
        .args(["-c", "import aiosmtpd"])
        .output();
    if !known.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: aiosmtpd (Python package) is not installed");
        return;
    }
    let place: PathBuf = std::env::temp_dir().join(format!("loadgen-aio-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(place.join("store")).unwrap();
    let store = place.join("store").display().to_string();
    let mut child = Command::new("python3")
        .args(["-c", AIOSMTPD, &store])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let guard = Guard(child);
    let target = format!("127.0.0.1:{}", line.trim());
    let ledger = place.join("ledger").display().to_string();
    accepted(&target, 200, &["--ledger", &ledger, "--size", "600-5000"]);
    drop(guard);
    let verified = program(&["verify", "--ledger", &ledger, "--eml", &store]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{text}");
    assert!(
        text.starts_with("CLEAN  acknowledged 200  found 200  lost 0"),
        "{text}"
    );
    std::fs::remove_dir_all(&place).unwrap();
}
