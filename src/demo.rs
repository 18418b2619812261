//! `ringmx demo crash`: shows the promise behind 250. A server of its own is loaded, killed with SIGKILL in the
//! middle of it, started again, and every message it acknowledged is looked for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::cli::{EXIT_FAILURE, EXIT_OK, EXIT_USAGE, complain, print};
use crate::log_cli::view::{ShardDir, View};
use crate::ringlog::reader::{Step, Walk};
use crate::sys::signal;

/// Text of `ringmx demo --help`.
pub const HELP: &str = "\
Usage: ringmx demo crash

Starts a server on a free port with a ring of its own in a temporary directory,
sends it mail over 8 connections for two seconds, kills it with SIGKILL in the
middle of it, starts it again and counts: every message that got a 250 must be
there once, byte for byte. Takes a few seconds and leaves nothing behind.

Exit codes: 0 nothing was lost, 1 something was, or the demo could not run, 2 usage.
";

/// Connections that send.
const CLIENTS: u32 = 8;
/// Time from the first message to the SIGKILL.
const LOAD: Duration = Duration::from_secs(2);
/// Longest wait for any single step.
const PATIENCE: Duration = Duration::from_secs(20);
/// Size of the ring, as the option takes it.
const RING_SIZE: &str = "256MiB";
/// Header field that names a message.
const FIELD: &str = "X-Ringmx-Demo";

/// Runs `ringmx demo`; returns the exit code.
pub fn run(args: &[String]) -> i32 {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["crash"] => {}
        ["--help" | "-h"] | ["crash", "--help" | "-h"] => return print(HELP),
        _ => {
            complain("ringmx: demo: there is one demo: ringmx demo crash\n");
            return EXIT_USAGE;
        }
    }
    let dir = std::env::temp_dir().join(format!("ringmx-demo-{}", std::process::id()));
    let result = crash(&dir);
    // The directory was made by this process and holds nothing but the demo's ring.
    let _ = std::fs::remove_dir_all(&dir);
    match result {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_FAILURE,
        Err(error) => {
            complain(&format!("ringmx: demo: {error}\n"));
            EXIT_FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn crash(dir: &Path) -> Result<bool, Failure> {
    let mut server = Server::start(dir)?;
    print(&format!(
        "Started a server on {}, its ring is in {}\n",
        server.address,
        dir.display()
    ));
    let (reports, acknowledged) = channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, reports) = (server.address.clone(), reports.clone());
            std::thread::spawn(move || send_until_it_breaks(&address, client, &reports))
        })
        .collect();
    drop(reports);
    let mut known = collect_for(LOAD, &acknowledged);
    server.kill()?;

    let mut in_doubt = 0;
    for client in clients {
        in_doubt += client.join().map_err(|_| "a client panicked")?;
    }
    // Acknowledgements that were read but not yet counted.
    known.extend(acknowledged.iter());
    print(&format!(
        "Killed it (SIGKILL) after {} acknowledged messages\n",
        known.len()
    ));
    if known.is_empty() {
        return Err("the server acknowledged nothing".into());
    }

    let started = Instant::now();
    let server = Server::start(dir)?;
    print(&format!(
        "Started it again; recovered in {} ms\n",
        started.elapsed().as_millis()
    ));
    let found = read_back(dir)?;
    server.stop()?;

    let lost = known
        .iter()
        .filter(|key| !found.good.contains_key(key))
        .count();
    let twice = found.good.values().filter(|&&count| count > 1).count();
    let unacknowledged = found.good.len() + lost - known.len();
    print(&format!(
        "acknowledged {}, found {}, lost {lost}\n",
        known.len(),
        known.len() - lost
    ));
    print(&format!(
        "stored twice {twice}, damaged {}, stored without their 250 having arrived {unacknowledged} \
         (of {in_doubt} that were under way)\n",
        found.damaged
    ));
    Ok(lost == 0 && twice == 0 && found.damaged == 0 && unacknowledged <= in_doubt)
}

/// Client and sequence number of a message.
type Key = (u32, u32);

fn collect_for(time: Duration, acknowledged: &Receiver<Key>) -> Vec<Key> {
    let until = Instant::now() + time;
    let mut known = Vec::new();
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match acknowledged.recv_timeout(left) {
            Ok(key) => known.push(key),
            Err(_) => break,
        }
    }
    known
}

/// The content of a message: its lines can be computed again from its key.
fn content(key: Key) -> String {
    let (client, sequence) = key;
    let lines = 1 + sequence % 40;
    let mut text = format!("Subject: demo\r\n{FIELD}: {client}-{sequence}\r\n\r\n");
    for line in 0..lines {
        text += &format!("line {line} of message {sequence} from client {client}\r\n");
    }
    text
}

/// Sends messages one after the other until the connection breaks. Returns how many messages were sent whole
/// and not answered: 0 or 1.
fn send_until_it_breaks(address: &str, client: u32, reports: &Sender<Key>) -> usize {
    let mut under_way = 0;
    // The connection is meant to break: the server is killed under it.
    let _ = send_messages(address, client, reports, &mut under_way);
    under_way
}

fn send_messages(
    address: &str,
    client: u32,
    reports: &Sender<Key>,
    under_way: &mut usize,
) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut replies = BufReader::new(stream.try_clone()?);
    expect(&mut replies, "220")?;
    stream.write_all(b"EHLO demo.example\r\n")?;
    expect(&mut replies, "250")?;
    for sequence in 0.. {
        let envelope = b"MAIL FROM:<demo@example.org>\r\nRCPT TO:<crash@example.org>\r\nDATA\r\n";
        stream.write_all(envelope)?;
        expect(&mut replies, "250")?;
        expect(&mut replies, "250")?;
        expect(&mut replies, "354")?;
        *under_way = 1;
        stream.write_all(format!("{}.\r\n", content((client, sequence))).as_bytes())?;
        expect(&mut replies, "250")?;
        *under_way = 0;
        reports.send((client, sequence))?;
    }
    Ok(())
}

fn expect(replies: &mut impl BufRead, code: &str) -> Result<(), Failure> {
    loop {
        let mut line = String::new();
        if replies.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err("the connection ended".into());
        }
        if !line.starts_with(code) {
            return Err(format!("expected {code}, got {}", line.trim_end()).into());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

struct Found {
    /// How often each message was found, byte for byte.
    good: BTreeMap<Key, usize>,
    damaged: usize,
}

fn read_back(dir: &Path) -> Result<Found, Failure> {
    let shard = ShardDir {
        shard: 0,
        path: dir.join("shard-0"),
    };
    let mut view = View::open(&shard).map_err(|failure| failure.text)?;
    let mut walk = Walk::new(view.window.tail);
    let mut found = Found {
        good: BTreeMap::new(),
        damaged: 0,
    };
    loop {
        match view.step(&mut walk).map_err(|failure| failure.text)? {
            Step::End => return Ok(found),
            Step::Message(message) => {
                let stored = String::from_utf8_lossy(message.body()).into_owned();
                match key_of(&stored).filter(|&key| stored.ends_with(&content(key))) {
                    Some(key) => *found.good.entry(key).or_default() += 1,
                    None => found.damaged += 1,
                }
            }
            // Records that carry no message, such as the mark of an opening.
            Step::Other => {}
            damage => return Err(format!("the ring is damaged: {damage:?}").into()),
        }
    }
}

fn key_of(stored: &str) -> Option<Key> {
    let value = stored
        .lines()
        .find_map(|line| line.strip_prefix(FIELD)?.strip_prefix(": "))?;
    let (client, sequence) = value.split_once('-')?;
    Some((client.parse().ok()?, sequence.parse().ok()?))
}

/// A server process of this program.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(dir: &Path) -> Result<Server, Failure> {
        let program: PathBuf = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "off"])
            .args(["--ring-size", RING_SIZE, "--log-level", "error", "--ring"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = child.stdout.take().ok_or("the server has no output")?;
        let mut lines = BufReader::new(out).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let Some((_, address)) = first.split_once(" on ") else {
            let _ = child.kill();
            let _ = child.wait();
            return Err("the server did not start".into());
        };
        let address = address.to_owned();
        // The rest is read away, so that the server never waits for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server { child, address })
    }

    fn kill(&mut self) -> Result<(), Failure> {
        signal::kill(self.child.id())?;
        self.child.wait()?;
        Ok(())
    }

    fn stop(mut self) -> Result<(), Failure> {
        signal::terminate(self.child.id())?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the second server ended with {status}").into())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already in the ordinary course; otherwise nothing of the demo may stay.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
