//! Runs against receivers: ringmx, Postfix, its smtp-sink, and Python's aiosmtpd. A program that
//! is not installed is skipped, and says so by name.

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

/// A directory that goes away with its test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadgen-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The `ringmx` of this build; built when it is not there.
fn ringmx() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_smtp-loadgen")).with_file_name("ringmx");
    if !program.is_file() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "-p", "ringmx"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        if !built.is_ok_and(|status| status.success()) {
            eprintln!("skipped: ringmx is not built, and could not be");
            return None;
        }
    }
    program.is_file().then_some(program)
}

#[test]
fn ringmx_killed_after_the_last_250_holds_what_the_ledger_says() {
    let Some(ringmx) = ringmx() else {
        eprintln!(
            "skipped: no ringmx beside {}",
            env!("CARGO_BIN_EXE_smtp-loadgen")
        );
        return;
    };
    let place = Place::new("ringmx");
    let (ring, ledger) = (place.at("ring"), place.at("ledger"));
    let mut child = Command::new(&ringmx)
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "off"])
        .args(["--ring-size", "64MiB", "--ring", &ring])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let guard = Guard(child);
    let target = lines
        .by_ref()
        .map(|line| line.unwrap())
        .find_map(|line| {
            Some(
                line.strip_prefix("ringmx ")?
                    .split_once(" on ")?
                    .1
                    .to_owned(),
            )
        })
        .unwrap();
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--chunking"],
        &["--chunk", "1000", "--size", "500-9000"],
        &["--chunk", "300", "--pipelining", "off"],
        &["--messages-per-connection", "1"],
        &["--smtputf8", "--dsn", "never"],
        &["--size", "300KiB"],
    ] {
        accepted(&target, 50, &[&["--ledger", &ledger], more].concat());
    }
    // SIGKILL: a 250 must have been true when it was sent.
    drop(guard);
    let verified = program(&[
        "verify",
        "--ledger",
        &ledger,
        "--ring",
        &ring,
        "--ringmx",
        &ringmx.display().to_string(),
    ]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert!(
        text.starts_with(
            "CLEAN  acknowledged 400  found 400  lost 0  duplicated 0  corrupted 0  \
             found-but-unacknowledged 0  foreign 0"
        ),
        "{text}"
    );
}

/// Postfix's services; `PORT` is replaced.
const POSTFIX_MASTER: &str = "\
127.0.0.1:PORT inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
virtual unix - n n - - virtual
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
";

/// Postfix's settings; `PLACE`, `UID` and `GID` are replaced. Everything lives below one directory.
const POSTFIX_MAIN: &str = "\
compatibility_level = 3.6
queue_directory = PLACE/queue
data_directory = PLACE/data
maillog_file = PLACE/log
maillog_file_prefixes = PLACE
myhostname = postfix.test.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
virtual_mailbox_domains = test.example
virtual_mailbox_base = PLACE/mail
virtual_mailbox_maps = static:all/
virtual_minimum_uid = 1
virtual_uid_maps = static:UID
virtual_gid_maps = static:GID
smtpd_client_connection_count_limit = 0
";

/// Stops the Postfix of one configuration.
struct Postfix(String);

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/postfix")
            .args(["-c", &self.0, "stop"])
            .output();
    }
}

/// Output of `id` with these arguments; nothing when it fails.
fn id(arguments: &[&str]) -> Option<String> {
    let output = Command::new("id").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[test]
fn postfix_delivers_what_the_ledger_says() {
    let user = id(&["-u", "postfix"]).zip(id(&["-g", "postfix"]));
    let (true, Some((uid, gid))) = (Path::new("/usr/sbin/postfix").exists(), user) else {
        eprintln!("skipped: Postfix (Debian package postfix) is not installed");
        return;
    };
    if id(&["-u"]).as_deref() != Some("0") {
        eprintln!("skipped: Postfix starts only as root");
        return;
    }
    let place = Place::new("postfix");
    let base = place.0.display().to_string();
    for name in ["queue", "data", "mail"] {
        std::fs::create_dir(place.0.join(name)).unwrap();
    }
    for name in ["data", "mail"] {
        let owner = Some(uid.parse().unwrap());
        std::os::unix::fs::chown(place.0.join(name), owner, None).unwrap();
    }
    let port = free_port();
    let main = POSTFIX_MAIN.replace("PLACE", &base);
    let main = main.replace("UID", &uid).replace("GID", &gid);
    std::fs::write(place.0.join("main.cf"), main).unwrap();
    let master = POSTFIX_MASTER.replace("PORT", &port.to_string());
    std::fs::write(place.0.join("master.cf"), master).unwrap();
    let started = Command::new("/usr/sbin/postfix")
        .args(["-c", &base, "start"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(started.success());
    let guard = Postfix(base);
    wait_for(port);
    let target = format!("127.0.0.1:{port}");
    let ledger = place.at("ledger");
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--chunk", "700"],
        &["--messages-per-connection", "1", "--dsn", "never"],
    ] {
        accepted(&target, 25, &[&["--ledger", &ledger], more].concat());
    }
    // Its 250 means queued; delivery comes after.
    let inbox = place.0.join("mail/all/new");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_dir(&inbox).map_or(0, Iterator::count) < 100 {
        assert!(Instant::now() < deadline, "Postfix does not deliver");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    drop(guard);
    let store = place.at("mail/all");
    let verified = program(&["verify", "--ledger", &ledger, "--maildir", &store]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{text}");
    assert!(
        text.starts_with(
            "CLEAN  acknowledged 100  found 100  lost 0  duplicated 0  corrupted 0  \
             found-but-unacknowledged 0  foreign 0"
        ),
        "{text}"
    );
}
