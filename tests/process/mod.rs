//! A `ringmx` process of its own for each test, a small SMTP client, and what reads a ring back.
//!
//! The client shares no code with the server: what it expects is written here. Every wait has a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmx::log_cli::view::{ShardDir, View};
use ringmx::ringlog::consumer::{Step, Walk};
use ringmx::sys::signal;

/// Longest wait for a single step. The machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// An envelope up to the 354, which a client may send as one group of commands.
pub const ENVELOPE: &[u8] =
    b"MAIL FROM:<sender@example.org>\r\nRCPT TO:<recipient@example.net>\r\nDATA\r\n";

/// The program under test.
pub const RINGMX: &str = env!("CARGO_BIN_EXE_ringmx");

/// A directory of its own that is removed at the end.
pub struct TestDir(PathBuf);

impl TestDir {
    pub fn new() -> TestDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringmx-process-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        TestDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// The directory for `--ring`.
    pub fn ring(&self) -> String {
        self.join("ring-data")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process whose output is collected, and which does not outlive its test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    errors_end: Option<JoinHandle<()>>,
}

impl Process {
    pub fn start(arguments: &[&str]) -> Process {
        let mut command = Command::new(RINGMX);
        command.args(arguments);
        Process::spawn(command)
    }

    /// Starts a command whose process is, or becomes, the program under test.
    pub fn spawn(mut command: Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let said = BufReader::new(child.stderr.take().unwrap());
        let errors = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&errors);
        let errors_end = std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let mut text = collected.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        Process {
            child,
            lines,
            errors,
            errors_end: Some(errors_end),
        }
    }

    /// The next line of standard output; `None` at its end.
    pub fn line(&self) -> Option<String> {
        use std::sync::mpsc::RecvTimeoutError;
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line in {PATIENCE:?}"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard error so far, in whole lines.
    pub fn said(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    pub fn terminate(&self) {
        signal::terminate(self.pid()).unwrap();
    }

    pub fn kill(mut self) {
        signal::kill(self.pid()).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), None);
    }

    /// Whether the process has ended by now.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end: exit code, the rest of standard output, standard error.
    pub fn wait(mut self) -> (Option<i32>, String, String) {
        let mut out = String::new();
        // Standard output ends with the process.
        while let Some(line) = self.line() {
            out += &line;
            out += "\n";
        }
        let status: ExitStatus = self.child.wait().unwrap();
        self.errors_end.take().unwrap().join().unwrap();
        (status.code(), out, self.said())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already in the ordinary course; otherwise nothing of the test may stay.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `ringmx serve` on free ports.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
    pub http: Option<SocketAddr>,
    /// Its first lines, up to the one that tells how to try it.
    pub first_lines: Vec<String>,
}

impl Server {
    /// Starts with a small ring below `dir`; `options` come last and so count most.
    pub fn start(dir: &TestDir, options: &[&str]) -> Server {
        match Server::start_by(Command::new(RINGMX), dir, options) {
            Ok(server) => server,
            Err(process) => panic!("{options:?}: {:?}", process.wait()),
        }
    }

    /// As [`Server::start`], by a command that runs the program under another one, and is given its arguments. A
    /// process that ends before it takes mail is given back.
    pub fn start_by(
        mut command: Command,
        dir: &TestDir,
        options: &[&str],
    ) -> Result<Server, Process> {
        let ring = dir.ring();
        let mut arguments = vec!["serve", "--ring", &ring];
        if !options.contains(&"--listen") {
            arguments.extend(["--listen", "127.0.0.1:0"]);
        }
        if !options.contains(&"--http") {
            arguments.extend(["--http", "off"]);
        }
        if !options.contains(&"--ring-size") {
            arguments.extend(["--ring-size", "32MiB"]);
        }
        arguments.extend(options);
        command.args(arguments);
        let process = Process::spawn(command);
        let mut first_lines = Vec::new();
        loop {
            let Some(line) = process.line() else {
                return Err(process);
            };
            let done = line.starts_with("Try:");
            first_lines.push(line);
            if done {
                break;
            }
        }
        let (_, address) = first_lines[0].split_once(" on ").unwrap();
        let http = first_lines
            .iter()
            .find_map(|line| line.trim_start().strip_prefix("status "))
            .map(|url| {
                let url = url.trim().strip_prefix("http://").unwrap();
                url.trim_end_matches('/').parse().unwrap()
            });
        Ok(Server {
            address: address.split(", ").next().unwrap().parse().unwrap(),
            http,
            process,
            first_lines,
        })
    }

    /// SIGTERM, and the exit code 0 with standard output and standard error. Clients that were told goodbye and
    /// stay connected hold the server up for some seconds.
    pub fn stop(self) -> (String, String) {
        self.process.terminate();
        let (code, out, errors) = self.process.wait();
        assert_eq!(code, Some(0), "{out}{errors}");
        (out, errors)
    }

    /// The body of a page, with its status line and header.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http.unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// One SMTP session.
pub struct Client {
    pub stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Client {
    /// Connects; nothing is read yet.
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let replies = BufReader::new(stream.try_clone()?);
        Ok(Client { stream, replies })
    }

    /// Connects, and says EHLO.
    pub fn open(address: SocketAddr) -> io::Result<Client> {
        let mut client = Client::connect(address)?;
        client.expect("220")?;
        client.send(b"EHLO client.example\r\n")?;
        client.expect("250")?;
        Ok(client)
    }

    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.stream.write_all(octets)
    }

    /// The next reply with all its lines; an error at the end of the connection.
    pub fn reply(&mut self) -> io::Result<String> {
        let mut reply = String::new();
        loop {
            let begin = reply.len();
            if self.replies.read_line(&mut reply)? == 0 || !reply.ends_with("\r\n") {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if reply.as_bytes().get(begin + 3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// The next reply, which has to begin so.
    pub fn expect(&mut self, begin: &str) -> io::Result<String> {
        let reply = self.reply()?;
        if reply.starts_with(begin) {
            Ok(reply)
        } else {
            Err(io::Error::other(format!("{begin} expected, got {reply}")))
        }
    }

    /// Delivers content, whose lines end in CRLF, in one transaction; returns the last reply.
    pub fn deliver(&mut self, content: &[u8]) -> io::Result<String> {
        self.send(ENVELOPE)?;
        self.expect("250")?;
        self.expect("250")?;
        self.expect("354")?;
        self.send(&[&stuffed(content)[..], b".\r\n"].concat())?;
        self.expect("250")
    }

    /// What is left until the server closes, as text.
    pub fn rest(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.replies.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Doubles the dots that begin a line (RFC 5321 4.5.2).
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut begin = 0;
    let ends = memchr::memchr_iter(b'\n', content).map(|end| end + 1);
    for end in ends.chain([content.len()]) {
        if content.get(begin) == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(&content[begin..end]);
        begin = end;
    }
    out
}

/// Names a message: which client, which of its messages.
pub type Key = (u32, u32);

/// Clients from here on send messages of 45 to 500 kB.
pub const MIDDLE: u32 = 1_000_000;
/// Clients from here on send messages of 90 kB to 1.4 MB: many of them take more than one record.
pub const LARGE: u32 = 2_000_000;

/// The content of a message: of one line, of some, or now and then of more than a record holds; larger for clients
/// from [`MIDDLE`] and from [`LARGE`] on.
pub fn content(key: Key) -> Vec<u8> {
    let (client, sequence) = key;
    let lines = match (client % 4, sequence % 50) {
        _ if client >= LARGE => 2_000 + sequence * 7_919 % 28_000,
        _ if client >= MIDDLE => 1_000 + sequence * 7_919 % 10_000,
        (0, 17) => 30_000,
        (_, n) => n * n / 20,
    };
    let mut octets = format!("Subject: test\r\nX-Key: {client}-{sequence}\r\n\r\n").into_bytes();
    let line = format!("..line 000000 of message {sequence} from client {client}\r\n");
    let mut line = line.into_bytes();
    for _ in 0..=lines {
        octets.extend_from_slice(&line);
        // Counts in place: formatting each line takes most of the time of a test.
        for digit in line[7..13].iter_mut().rev() {
            *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
            if *digit != b'0' {
                break;
            }
        }
    }
    octets
}

/// What a client knows when its connection has ended.
#[derive(Default)]
pub struct Ledger {
    /// Messages that got a 250 after their end, with the number that it named.
    pub acknowledged: Vec<(Key, u64)>,
    /// The message that was under way and not answered.
    pub in_doubt: Option<Key>,
    /// The reply that ended the session, if one did.
    pub refused: Option<String>,
}

/// Sends messages one after the other until the connection breaks or the server refuses; `counted` is called at
/// each 250.
pub fn load(address: SocketAddr, client: u32, counted: impl Fn()) -> Ledger {
    let mut ledger = Ledger::default();
    // The connection is meant to break: the server ends under it.
    let _ = load_until_it_breaks(address, client, counted, &mut ledger);
    ledger
}

fn load_until_it_breaks(
    address: SocketAddr,
    client: u32,
    counted: impl Fn(),
    ledger: &mut Ledger,
) -> io::Result<()> {
    let mut connection = Client::open(address)?;
    for sequence in 0.. {
        let key = (client, sequence);
        connection.send(ENVELOPE)?;
        for code in ["250", "250", "354"] {
            let reply = connection.reply()?;
            if !reply.starts_with(code) {
                ledger.refused = Some(reply);
                return Ok(());
            }
        }
        let octets = [&stuffed(&content(key))[..], b".\r\n"].concat();
        ledger.in_doubt = Some(key);
        connection.send(&octets)?;
        let reply = connection.reply()?;
        ledger.in_doubt = None;
        if !reply.starts_with("250") {
            ledger.refused = Some(reply);
            return Ok(());
        }
        ledger.acknowledged.push((key, number_in(&reply)));
        counted();
    }
    Ok(())
}

/// The number that the reply to a stored message names.
pub fn number_in(reply: &str) -> u64 {
    let number = reply.trim_end().rsplit_once(" stored as 0-");
    number
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or_else(|| panic!("{reply}"))
}

/// Runs a tool and returns what it said.
pub fn ringmx(arguments: &[&str]) -> Output {
    let output = Command::new(RINGMX)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    output.unwrap()
}

/// Runs a server that does not start to its end: exit code, standard output, standard error.
pub fn refused_start(options: &[&str]) -> (Option<i32>, String, String) {
    let fixed = ["serve", "--listen", "127.0.0.1:0", "--http", "off"];
    let output = ringmx(&[&fixed[..], options].concat());
    let text = |octets| String::from_utf8(octets).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Whether strace works here; says so if not, and fails where RINGMX_STRACE demands it.
pub fn strace_works() -> bool {
    let output = Command::new("strace")
        .args(["-D", "-f", "-o", "/dev/null", "-e", "trace=fdatasync"])
        .arg("true")
        .stdin(Stdio::null())
        .output();
    let works = output.as_ref().is_ok_and(|output| output.status.success());
    if !works {
        let required = std::env::var("RINGMX_STRACE").is_ok_and(|value| value == "required");
        assert!(!required, "strace does not work: {output:?}");
        println!("skipped: strace is not installed, or ptrace is forbidden: {output:?}");
    }
    works
}

/// Standard output of a tool that has to succeed.
pub fn output_of(arguments: &[&str]) -> Vec<u8> {
    let output = ringmx(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert_eq!(status.code(), Some(0), "{arguments:?}: {errors}");
    output.stdout
}

/// Every stored message without its trace field, by number, as `ringmx log` reads them.
pub fn stored(dir: &TestDir) -> BTreeMap<u64, Vec<u8>> {
    let shard = ShardDir {
        shard: 0,
        path: Path::new(&dir.ring()).join("shard-0"),
    };
    let mut view = View::open(&shard).unwrap_or_else(|failure| panic!("{}", failure.text));
    let mut walk = Walk::new(view.window.tail);
    let mut found = BTreeMap::new();
    loop {
        match view
            .step(&mut walk)
            .unwrap_or_else(|failure| panic!("{}", failure.text))
        {
            Step::End => return found,
            Step::Other => {}
            Step::Message(message) => {
                let octets = without_trace(message.body()).to_vec();
                let before = found.insert(message.number, octets);
                assert_eq!(before, None, "two messages of number {}", message.number);
            }
            damage => panic!("{damage:?}"),
        }
    }
}

/// As [`stored`], from the files that `ringmx log export` writes.
pub fn exported(dir: &TestDir) -> BTreeMap<u64, Vec<u8>> {
    let eml = TestDir::new();
    let target = eml.join("eml");
    output_of(&["log", "export", "--eml", &target, "--ring", &dir.ring()]);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&target).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let number = name.rsplit('-').next().unwrap().parse().unwrap();
        let message = fs::read(&path).unwrap();
        let before = found.insert(number, without_trace(&message).to_vec());
        assert_eq!(before, None, "two files of number {number}");
    }
    found
}

/// What follows the one Received field that the server puts before a message.
pub fn without_trace(message: &[u8]) -> &[u8] {
    assert!(message.starts_with(b"Received: "), "no trace field");
    let mut at = 0;
    loop {
        let line = message[at..].iter().position(|&octet| octet == b'\n');
        at += line.expect("an end of the trace field") + 1;
        // Folded lines begin with white space (RFC 5322 2.2.3).
        if !matches!(message.get(at), Some(b' ' | b'\t')) {
            return &message[at..];
        }
    }
}

/// The key of a stored message, if it is exactly what was sent under that key.
pub fn key_of(message: &[u8]) -> Option<Key> {
    let text = std::str::from_utf8(message).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("X-Key: "))?;
    let (client, sequence) = value.split_once('-')?;
    let key = (client.parse().ok()?, sequence.parse().ok()?);
    (content(key) == message).then_some(key)
}

/// What the clients of a ring know about it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Messages that got a 250 after their end.
    pub acknowledged: BTreeSet<Key>,
    /// The numbers that the 250s named, where the client looked.
    pub numbers: BTreeMap<Key, u64>,
    /// Messages that were sent whole and not answered, or refused because their commit failed: there or not.
    pub in_doubt: BTreeSet<Key>,
}

impl Known {
    /// Compares a ring with what is known: what was acknowledged is there once, octet for octet, and nothing else
    /// is there but what is in doubt.
    pub fn check(&self, dir: &TestDir, when: &str) {
        self.check_from(dir, 0, when);
    }

    /// As [`Known::check`], but messages before `number` may have given way to newer ones. Returns what is there.
    pub fn check_from(&self, dir: &TestDir, number: u64, when: &str) -> BTreeMap<u64, Vec<u8>> {
        let stored = stored(dir);
        let mut found: BTreeMap<Key, u64> = BTreeMap::new();
        for (&number, message) in &stored {
            let head = String::from_utf8_lossy(&message[..message.len().min(80)]).into_owned();
            let key = key_of(message).unwrap_or_else(|| panic!("{when}: {number}: {head}"));
            let before = found.insert(key, number);
            assert_eq!(
                before, None,
                "{when}: {key:?} is stored twice, as {number} as well"
            );
            let named = self.numbers.get(&key);
            assert!(
                named.is_none_or(|named| *named == number),
                "{when}: {key:?} is {number}, but its 250 said {named:?}"
            );
        }
        let found: BTreeSet<Key> = found.into_keys().collect();
        let gave_way = |key: &Key| self.numbers.get(key).is_some_and(|named| *named < number);
        let lost: Vec<_> = self
            .acknowledged
            .difference(&found)
            .filter(|key| !gave_way(key))
            .collect();
        assert!(lost.is_empty(), "{when}: lost: {lost:?}");
        let allowed = &self.acknowledged | &self.in_doubt;
        let never_sent: Vec<_> = found.difference(&allowed).collect();
        assert!(
            never_sent.is_empty(),
            "{when}: stored, but never sent whole: {never_sent:?}"
        );
        stored
    }
}

/// Runs `ringmx log verify`, which has to find nothing but large messages that nobody was promised.
pub fn verify(dir: &TestDir) {
    let verified = output_of(&["log", "verify", "--ring", &dir.ring()]);
    let verified = String::from_utf8(verified).unwrap();
    let (shards, notes): (Vec<&str>, Vec<&str>) = verified
        .lines()
        .partition(|line| line.starts_with("shard "));
    let good = shards.iter().all(|line| line.ends_with(": all good"));
    let unfinished = |line: &&str| {
        line.starts_with("  large message ") && line.ends_with(" was not finished when it stopped")
    };
    assert!(good && !shards.is_empty(), "{verified}");
    assert!(notes.iter().all(unfinished), "{verified}");
}

/// Waits until `ready` holds.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}");
        // Lets the process that is waited for run.
        std::thread::yield_now();
    }
}
