//! What the tests against real receivers share: processes, places, a certificate authority, a run
//! whose every count has to be right.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[path = "../support/program.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod program_under_test;

use program_under_test::address_without_listener;
pub use program_under_test::{Place, program};

/// Says by name what is not tested. Where tests/run found everything it sets RINGMX_CLIENTS, and
/// then something missing is a failure.
macro_rules! skip {
    ($($text:tt)*) => {
        eprintln!("skipped: {}", format!($($text)*));
        let required = std::env::var("RINGMX_CLIENTS").is_ok_and(|word| word == "required");
        assert!(!required, $($text)*);
    };
}
pub(crate) use skip;

/// How long a target may take to come up, or to deliver. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A child process that ends with its test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago: these receivers take no listening socket and can't say which
/// one they got.
pub fn free_port() -> u16 {
    address_without_listener().port()
}

/// Waits until `done`, or fails with `trouble`.
pub fn wait_until(trouble: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{trouble}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub fn wait_for(port: u16) {
    wait_until("the target does not listen", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// Output of a command; nothing when it can't be run or fails.
pub fn said(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(name).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

pub fn is_root() -> bool {
    said("id", &["-u"]).as_deref() == Some("0")
}

/// Number of files in a directory; 0 while there is none.
pub fn files_in(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// One run that is judged: `messages` of them, `more` options.
///
/// Asserts that all were accepted, that nothing went wrong on the way, and that the run ended
/// VALID with exit code 0. A run that the rest of this machine starved is made again, at most
/// twenty times: it says so of itself, and its messages count. Returns the report of the last and
/// how many messages were accepted in all.
pub fn valid(target: &str, messages: u64, more: &[&str]) -> (Value, u64) {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let name = format!("loadgen-targets-{}-{number}.json", std::process::id());
    let file = std::env::temp_dir().join(name);
    let (path, count) = (file.display().to_string(), messages.to_string());
    let fixed = ["run", target, "--messages", &count, "--sessions", "5"];
    let fixed = [&fixed[..], &["--quiet", "--json", &path], more].concat();
    let mut accepted = 0;
    for _ in 0..20 {
        let output = program(&fixed);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(&file);
        let report: Value = serde_json::from_str(&text).unwrap_or_default();
        let totals = |name: &str| report["totals"][name].as_u64();
        let counts = [
            "attempted",
            "accepted",
            "deferred",
            "rejected",
            "failed",
            "unsent",
        ];
        assert_eq!(
            counts.map(totals),
            [messages, messages, 0, 0, 0, 0].map(Some),
            "{more:?}: {output:?}"
        );
        accepted += messages;
        if report["verdict"]["state"] != "GENERATOR SATURATED" {
            assert_eq!(report["verdict"]["state"], "VALID", "{more:?}: {output:?}");
            assert_eq!(output.status.code(), Some(0), "{more:?}: {output:?}");
            return (report, accepted);
        }
    }
    panic!("{more:?}: the generator was starved twenty times");
}

/// Asserts that `store` (an option of verify and its value) holds what the ledger says, each
/// message once and unharmed, and nothing else.
pub fn holds(ledger: &str, store: &[&str], messages: u64) {
    let verified = program(&[&["verify", "--ledger", ledger], store].concat());
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let clean = format!(
        "CLEAN  acknowledged {messages}  found {messages}  lost 0  duplicated 0  corrupted 0  \
         found-but-unacknowledged 0  foreign 0"
    );
    assert!(text.starts_with(&clean), "{text}");
}

/// Puts a file in the place of another in one step.
pub fn replace(path: &str, text: &str) {
    let beside = format!("{path}.new");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}

/// Files of a certificate authority and of a server that it vouches for.
pub struct Authority {
    pub ca: String,
    pub certificate: String,
    pub key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes both anew, for 127.0.0.1 and localhost.
    pub fn new(place: &Place) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than the server's: OpenSSL takes a certificate that its own name has issued for self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let made = Self {
            ca: place.write("tls/ca.pem", &ca.pem()),
            certificate: place.at("tls/server.pem"),
            key: place.at("tls/server.key"),
            issuer: Issuer::new(params, key),
        };
        made.renew(&made.certificate, &made.key);
        made
    }

    /// Vouches for another key of the server; puts certificate and key in the place of these files, one
    /// after the other.
    pub fn renew(&self, certificate: &str, key: &str) {
        let server_key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = CertificateParams::new(names).unwrap();
        let server = server.signed_by(&server_key, &self.issuer).unwrap();
        replace(certificate, &server.pem());
        replace(key, &server_key.serialize_pem());
    }
}

/// The TLS handshakes of a report as (version, connections), resumed and new ones together.
pub fn handshakes(report: &Value) -> Vec<(String, u64)> {
    let mut seen: Vec<(String, u64)> = Vec::new();
    for row in report["target"]["tls"].as_array().unwrap() {
        let version = row["version"].as_str().unwrap().to_owned();
        assert!(
            row["cipher"]
                .as_str()
                .is_some_and(|name| name.starts_with("TLS")),
            "{row}"
        );
        let count = row["connections"].as_u64().unwrap();
        match seen.iter_mut().find(|(known, _)| *known == version) {
            Some((_, sum)) => *sum += count,
            None => seen.push((version, count)),
        }
    }
    seen
}

/// A receiver out of a Debian package that can't be installed beside Postfix: tests/run unpacks it
/// into `mta/NAME` below the target directory. It runs in a mount namespace of its own, where its
/// users, settings and directories are where it expects them and this machine's are not touched.
pub struct Unpacked {
    pub root: PathBuf,
}

impl Unpacked {
    /// Finds it; says by name what is missing otherwise.
    pub fn find(name: &str, package: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
            .ancestors()
            .nth(2)?
            .join("mta")
            .join(name);
        if !root.join("unpacked").is_file() {
            skip!(
                "{name} (Debian package {package}) is not in {}",
                root.display()
            );
            return None;
        }
        if !is_root() {
            skip!("{name} needs root for a mount namespace");
            return None;
        }
        Some(Self { root })
    }

    /// Runs `script` with sh in a mount namespace in which PLACE/etc lies over /etc, with `users`
    /// (name and number) added. Nothing when such namespaces are not to be had.
    pub fn start(&self, place: &Place, users: &[(&str, u32)], script: &str) -> Option<Guard> {
        let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
        let mut group = fs::read_to_string("/etc/group").unwrap();
        for (name, number) in users {
            passwd += &format!("{name}:x:{number}:{number}::/nonexistent:/bin/false\n");
            group += &format!("{name}:x:{number}:\n");
        }
        place.write("etc/passwd", &passwd);
        place.write("etc/group", &group);
        let etc = place.at("etc");
        let mount = format!("mount -t overlay overlay -o lowerdir={etc}:/etc /etc");
        let works = said("unshare", &["-m", "sh", "-c", &mount]);
        if works.is_none() {
            skip!("no mount namespace with overlay is to be had here");
            return None;
        }
        let log = fs::File::create(place.0.join("output")).unwrap();
        let child = Command::new("unshare")
            .args(["-m", "sh", "-ec", &format!("{mount}\n{script}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Guard(child))
    }
}

/// Starts a program that prints its port, or its ports, on its first line.
pub fn with_ports(command: &mut Command) -> (Guard, Vec<u16>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    // Whatever else it prints must not block it.
    std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
    let ports = line.split_whitespace().map(|port| port.parse().unwrap());
    (Guard(child), ports.collect())
}
