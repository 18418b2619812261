//! `ringmx log`, `consume` and `consumers` on real rings, with and without a server.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmx::clock::{Clock, Instant};
use ringmx::consume::{self, target};
use ringmx::ctl::{self, Attachments, ServerSession};
use ringmx::envelope::{Facts, Field, field_header};
use ringmx::log_cli;
use ringmx::log_cli::view::{ShardDir, View, registered};
use ringmx::ringlog::backing::{FileBacking, Flush};
use ringmx::ringlog::consumer::{Step, Walk};
use ringmx::ringlog::directory::{CreateOptions, create_ring, open_ring};
use ringmx::ringlog::format::{ConsumerName, DATA_OFFSET};
use ringmx::ringlog::recover::{OpenError, OpenOptions};
use ringmx::ringlog::writer::{Log, ReserveError, Survive};
use ringmx::server::control::Control;
use ringmx::sys::{fd_passing, wait};

/// A directory of its own that is removed at the end.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> TestDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringmx-log-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        TestDir(path)
    }

    fn ring(&self) -> String {
        self.0.join("ring-data").to_str().unwrap().to_owned()
    }

    fn shard(&self) -> PathBuf {
        self.0.join("ring-data/shard-0")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const START_NS: u64 = 1_795_395_723_000_000_000;

fn create(dir: &TestDir, data_size: u64) {
    let options = CreateOptions {
        data_size,
        group: false,
        wall_ns: START_NS,
    };
    fs::create_dir_all(dir.0.join("ring-data")).unwrap();
    create_ring(&dir.shard(), &options, &mut |_, _| {}).unwrap();
}

fn open(dir: &TestDir) -> Log<FileBacking> {
    let options = OpenOptions::new(Survive::Power, START_NS);
    let clock = Clock::new();
    loop {
        match open_ring(&dir.shard(), &options, None) {
            Ok((log, _)) => return log,
            // A process that another test starts holds copies of all descriptors until it has
            // become itself.
            Err(OpenError::InUse) if clock.now().0 < 5_000_000_000 => {
                wait::readable(&[], Some(Duration::from_millis(5))).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn envelope(from: &str, to: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut field = |field: Field, value: &[u8]| {
        bytes.extend_from_slice(&field_header(field, value.len() as u16));
        bytes.extend_from_slice(value);
    };
    let facts = Facts {
        recipients: to.len() as u32,
        ..Facts::default()
    };
    field(Field::Facts, &facts.encode());
    field(Field::Helo, b"client.example");
    field(Field::ReversePath, from.as_bytes());
    for path in to {
        field(Field::ForwardPath, path.as_bytes());
    }
    bytes
}

fn append(log: &mut Log<FileBacking>, from: &str, to: &[&str], body: &[u8]) -> u64 {
    let envelope = envelope(from, to);
    let payload = [&envelope[..], body].concat();
    let padding = [0; 64];
    if payload.len() <= 4_096 {
        let slot = loop {
            match log.reserve(payload.len() as u64) {
                Ok(slot) => break slot,
                Err(ReserveError::Full { freeing: true }) => sync(log),
                Err(error) => panic!("{error:?}"),
            }
        };
        let header = log.header(&slot, envelope.len() as u32, crc32c::crc32c(&payload));
        let parts = [&header[..], &payload, &padding[..slot.padding]];
        log.write(&parts.map(IoSlice::new)).unwrap();
        return slot.number;
    }
    let mut large = log.begin_large(payload.len() as u64).unwrap();
    let mut rest = &payload[..];
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(4_000));
        rest = after;
        let slot = log.reserve_fragment(&mut large, part.len() as u64).unwrap();
        let mut bytes = Vec::new();
        if rest.is_empty() {
            let whole = large.whole(crc32c::crc32c(&payload));
            bytes.extend_from_slice(&whole.encode());
        }
        bytes.extend_from_slice(part);
        let env_len = match part.as_ptr() == payload.as_ptr() {
            true => envelope.len() as u32,
            false => 0,
        };
        let header = log.header(&slot, env_len, crc32c::crc32c(&bytes));
        let parts = [&header[..], &bytes, &padding[..slot.padding]];
        log.write(&parts.map(IoSlice::new)).unwrap();
    }
    large.number().unwrap()
}

/// What the sync thread does, on this thread.
fn sync(log: &mut Log<FileBacking>) {
    let mut flush = log.backing().flusher().unwrap();
    while let Some(request) = log.sync_wanted(Instant(1)) {
        if let Some((at, bytes)) = request.superblock {
            flush.write_superblock(bytes, at).unwrap();
        }
        let target = request.target;
        log.sync_completed(target, flush.sync()).unwrap();
    }
}

fn body(number: u64) -> Vec<u8> {
    format!(
        "Received: by test; {number}\r\nMessage-ID: <{number}@test.example>\r\n\r\n>From here\r\nFrom {number}\r\n\x1b[0m\r\n"
    )
    .into_bytes()
}

/// Three small messages and a large one between them.
fn sample(dir: &TestDir) -> Vec<Vec<u8>> {
    create(dir, 1 << 20);
    let mut log = open(dir);
    let large: Vec<u8> = body(3)
        .into_iter()
        .chain((0..20_000_u32).map(|i| b'a' + (i % 26) as u8))
        .collect();
    let bodies = vec![body(1), body(2), large, body(4)];
    for (index, body) in bodies.iter().enumerate() {
        let from = format!("s{}@from.example", index + 1);
        let number = append(&mut log, &from, &["a@to.example", "b@to.example"], body);
        assert_eq!(number, index as u64 + 1);
    }
    sync(&mut log);
    log.close().unwrap();
    bodies
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn log(dir: &TestDir, text: &str) -> (i32, Vec<u8>, String) {
    let mut args = words(text);
    args.retain(|word| !word.is_empty());
    args.extend(["--ring".to_owned(), dir.ring()]);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = log_cli::run(&log_cli::parse(&args).unwrap(), &mut out, &mut err);
    (code, out, String::from_utf8(err).unwrap())
}

fn log_text(dir: &TestDir, text: &str) -> String {
    let (code, out, err) = log(dir, text);
    assert_eq!((code, err.as_str()), (0, ""), "{text}");
    String::from_utf8(out).unwrap()
}

fn consume(dir: &TestDir, args: &[&str]) -> (i32, String, String) {
    let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    args.extend(["--ring".to_owned(), dir.ring()]);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = consume::run(&consume::parse(&args).unwrap(), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

fn consumers(dir: &TestDir, text: &str) -> (i32, String, String) {
    let mut args = words(text);
    args.extend(["--ring".to_owned(), dir.ring()]);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = consume::parse_consumers(&args).unwrap();
    let code = consume::run_consumers(&args, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

/// The octets of all messages in a Maildir's `new`, in order of their numbers.
fn maildir(path: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path.join("new")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let number: u64 = name.split(['-', '.']).nth(3).unwrap().parse().unwrap();
        found.push((number, fs::read(path).unwrap()));
    }
    found.sort();
    assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
    found.into_iter().map(|(_, body)| body).collect()
}

#[test]
fn log_alone_and_ls_show_one_line_per_message_oldest_first() {
    let dir = TestDir::new();
    sample(&dir);
    let text = log_text(&dir, "");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[0].starts_with("0-1 ") && lines[3].starts_with("0-4 "),
        "{text}"
    );
    assert!(
        lines[0].ends_with("<s1@from.example> -> <a@to.example> <b@to.example>"),
        "{text}"
    );
    assert_eq!(log_text(&dir, "ls"), text);
    let ids = |args: &str| -> Vec<String> {
        log_text(&dir, args)
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("ls --limit 2"), ["0-3", "0-4"]);
    assert_eq!(ids("ls --since 0-3"), ["0-3", "0-4"]);
    assert_eq!(ids("ls --since 2 --limit 2"), ["0-2", "0-3"]);
    assert_eq!(ids("ls --since 2020-01-01T00:00:00Z").len(), 4);
    assert_eq!(ids("ls --since 2200-01-01").len(), 0);
    assert_eq!(ids("ls --from S2@FROM.example"), ["0-2"]);
    assert_eq!(ids("ls --to @to.example").len(), 4);
    assert_eq!(ids("ls --to @o.example").len(), 0);
    assert_eq!(ids("ls --message-id <3@test.example>"), ["0-3"]);
}

#[test]
fn cat_gives_the_exact_octets_and_text_that_steers_no_terminal() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    for (index, body) in bodies.iter().enumerate() {
        let (code, out, err) = log(&dir, &format!("cat 0-{} --raw", index + 1));
        assert_eq!((code, &out, err.as_str()), (0, body, ""));
    }
    assert_eq!(log(&dir, "cat 3 --raw").1, bodies[2]);
    assert_eq!(
        log(&dir, "cat --message-id 3@test.example --raw").1,
        bodies[2]
    );
    let text = log_text(&dir, "cat 0-1");
    assert!(text.contains("mail from    <s1@from.example>\n"), "{text}");
    assert!(text.ends_with("\n\nReceived: by test; 1\nMessage-ID: <1@test.example>\n\n>From here\nFrom 1\n\\x1b[0m\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&log_text(&dir, "cat 0-1 --json")).unwrap();
    assert_eq!(json["schema"], "ringmx.message.v1");
    assert_eq!(json["id"], "0-1");
    assert_eq!(json["recipients"][1]["forward_path"], "b@to.example");
    assert_eq!(json["message"].as_str().unwrap().as_bytes(), bodies[0]);
    let (code, out, err) = log(&dir, "cat 0-9");
    assert_eq!((code, out.len()), (1, 0));
    assert_eq!(
        err,
        "ringmx log: there is no message 0-9: it has not been received yet\n"
    );
    assert_eq!(log(&dir, "cat 1-1").0, 1);
    assert_eq!(log(&dir, "cat x").0, 2);
}

#[test]
fn a_missing_or_foreign_ring_is_one_sentence_and_exit_code_2() {
    let dir = TestDir::new();
    let (code, _, err) = log(&dir, "ls");
    assert_eq!(code, 2);
    assert!(err.starts_with("ringmx log: no ring in '") && err.lines().count() == 1);
    fs::create_dir_all(dir.shard()).unwrap();
    assert_eq!(log(&dir, "ls").0, 2);
    fs::write(dir.shard().join("ring"), [7; 100_000]).unwrap();
    let (code, _, err) = log(&dir, "ls");
    assert_eq!(code, 2);
    assert!(err.ends_with("is no ring of ringmx\n"), "{err}");
}

#[test]
fn verify_finds_a_flipped_bit_and_the_rest_stays_readable() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let text = log_text(&dir, "verify");
    assert!(
        text.starts_with("shard 0: 4 messages, ") && text.ends_with(": all good\n"),
        "{text}"
    );
    let path = dir.shard().join("ring");
    let mut bytes = fs::read(&path).unwrap();
    let at = find(&bytes, b"Received: by test; 2");
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (code, out, _) = log(&dir, "verify --json");
    assert_eq!(code, 74);
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["messages"], 3);
    assert_eq!(json["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(log(&dir, "cat 2 --raw").0, 1);
    assert_eq!(log(&dir, "cat 4 --raw").1, bodies[3]);
    let (code, out, err) = log(&dir, "ls");
    assert_eq!((code, out.iter().filter(|b| **b == b'\n').count()), (0, 3));
    assert!(err.contains("damaged, left out"), "{err}");
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|w| w == what).unwrap()
}

#[test]
fn export_writes_the_same_octets_as_eml_and_maildir_and_quotes_in_mbox() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let eml = dir.0.join("eml");
    let text = log_text(&dir, &format!("export --eml {}", eml.display()));
    assert_eq!(text, "4 messages exported\n");
    for (index, body) in bodies.iter().enumerate() {
        let path = eml.join(format!("0-{}.eml", index + 1));
        assert_eq!(&fs::read(path).unwrap(), body);
    }
    let path = dir.0.join("maildir");
    log_text(&dir, &format!("export --maildir {}", path.display()));
    log_text(&dir, &format!("export --maildir {}", path.display()));
    assert_eq!(maildir(&path), bodies);
    let path = dir.0.join("mbox");
    log_text(&dir, &format!("export --limit 1 --mbox {}", path.display()));
    let mbox = fs::read_to_string(path).unwrap();
    let (first, rest) = mbox.split_once('\n').unwrap();
    assert!(
        first.starts_with("From s1@from.example ") && first.ends_with(" 2026"),
        "{first}"
    );
    assert_eq!(
        rest,
        "Received: by test; 1\nMessage-ID: <1@test.example>\n\n>>From here\n>From 1\n\x1b[0m\n\n"
    );
}

#[test]
fn the_python_reader_sees_the_same_messages() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ring_reader.py");
    let eml = dir.0.join("eml");
    let run = |args: &[&str]| {
        let output = Command::new("python3")
            .arg(&script)
            .arg(dir.shard().join("ring"))
            .args(args)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{err}");
        output.stdout
    };
    run(&["--eml", eml.to_str().unwrap()]);
    for (index, body) in bodies.iter().enumerate() {
        assert_eq!(
            &fs::read(eml.join(format!("{}.eml", index + 1))).unwrap(),
            body
        );
    }
    let lines = String::from_utf8(run(&[])).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["reverse_path"], "s1@from.example");
    assert_eq!(first["recipients"][1], "b@to.example");
}

#[test]
fn the_python_reader_and_the_tools_agree_on_the_golden_rings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (name, messages) in [("closed.ring", 3), ("open.ring", 4)] {
        let dir = TestDir::new();
        fs::create_dir_all(dir.shard()).unwrap();
        let ring = dir.shard().join("ring");
        fs::copy(root.join("golden").join(name), &ring).unwrap();
        let output = Command::new("python3")
            .arg(root.join("ring_reader.py"))
            .arg(&ring)
            .output()
            .unwrap();
        assert!(output.status.success());
        let lines = |text: &str| -> Vec<serde_json::Value> {
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let python = lines(&String::from_utf8(output.stdout).unwrap());
        let (code, out, err) = consume(&dir, &["look", "--to", "stdout", "--until-empty"]);
        assert_eq!(code, 0, "{err}");
        let ours = lines(&out);
        assert_eq!((python.len(), ours.len()), (messages, messages), "{name}");
        for (python, ours) in python.iter().zip(&ours) {
            for field in [
                "number",
                "ring_id",
                "received_ns",
                "octets",
                "reverse_path",
                "helo",
            ] {
                assert_eq!(python[field], ours[field], "{name} {field}");
            }
            let body = ours["message"].as_str().unwrap().as_bytes();
            let encoded = log_cli::text::base64(body);
            assert_eq!(python["message_base64"], encoded.as_str(), "{name}");
        }
    }
}

#[test]
fn a_closed_output_ends_quietly() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = TestDir::new();
    sample(&dir);
    let args = words(&format!("ls --ring {}", dir.ring()));
    let mut err = Vec::new();
    let code = log_cli::run(&log_cli::parse(&args).unwrap(), &mut Closed, &mut err);
    assert_eq!((code, err), (0, Vec::new()));
}

#[test]
fn a_consumer_without_a_server_delivers_once_and_goes_on_where_it_was() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let path = dir.0.join("maildir");
    let to = format!("maildir:{}", path.display());
    let (code, _, err) = consume(&dir, &["archive", "--to", &to, "--until-empty"]);
    assert_eq!(code, 1, "{err}");
    let create = ["archive", "--to", &to, "--until-empty", "--create"];
    let (code, _, err) = consume(&dir, &create);
    assert_eq!(
        (code, err.as_str()),
        (0, "ringmx consume archive: 4 messages delivered\n")
    );
    assert_eq!(maildir(&path), bodies);
    let (code, _, err) = consume(&dir, &create);
    assert_eq!(
        (code, err.as_str()),
        (0, "ringmx consume archive: 0 messages delivered\n")
    );
    let mut log = open(&dir);
    append(&mut log, "x@from.example", &["a@to.example"], b"new\r\n");
    sync(&mut log);
    log.close().unwrap();
    let (code, _, err) = consume(&dir, &create);
    assert_eq!(
        (code, err.as_str()),
        (0, "ringmx consume archive: 1 messages delivered\n")
    );
    assert_eq!(maildir(&path).len(), 5);
    let (code, out, _) = consumers(&dir, "list --json");
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["consumers"][0]["name"], "archive");
    assert_eq!(json["consumers"][0]["lag_messages"], 0);
    assert_eq!(consumers(&dir, "seek archive 0-3").0, 0);
    let (_, _, err) = consume(&dir, &create);
    assert_eq!(err, "ringmx consume archive: 3 messages delivered\n");
    assert_eq!(maildir(&path).len(), 5, "the same names again");
    assert_eq!(consumers(&dir, "drop archive").0, 0);
    assert_eq!(consumers(&dir, "list").1, "no consumers\n");
    assert_eq!(consumers(&dir, "drop archive").0, 1);
}

#[test]
fn exec_gets_the_message_and_its_envelope_and_75_means_again() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let out = dir.0.join("out");
    // The second message is refused for now once and for ever the next time.
    let command = format!(
        "exec:cd '{}'; if [ $RINGMX_NUMBER = 2 ]; then if [ -e once ]; then exit 3; fi; touch once; exit 75; fi; \
         cat >out.$RINGMX_ID; echo \"$RINGMX_SENDER|$RINGMX_RECIPIENTS|$RINGMX_OCTETS\" >>out",
        dir.0.display()
    );
    let create = ["run", "--to", &command, "--until-empty", "--create"];
    let (code, _, err) = consume(&dir, &create);
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("trying again in 250 ms: 0-2: the command asks for a retry"),
        "{err}"
    );
    assert!(err.contains("0-2: failed, recorded in '"), "{err}");
    assert!(err.ends_with("3 messages delivered, 1 failed\n"), "{err}");
    assert_eq!(fs::read(dir.0.join("out.0-3")).unwrap(), bodies[2]);
    let lines = fs::read_to_string(out).unwrap();
    assert_eq!(
        lines,
        format!(
            "s1@from.example|a@to.example\nb@to.example|{}\ns3@from.example|a@to.example\nb@to.example|{}\ns4@from.example|a@to.example\nb@to.example|{}\n",
            bodies[0].len(),
            bodies[2].len(),
            bodies[3].len()
        )
    );
    let failed = fs::read_to_string(dir.shard().join("run.failed")).unwrap();
    let failed: serde_json::Value = serde_json::from_str(failed.trim_end()).unwrap();
    assert_eq!(failed["id"], "0-2");
    assert_eq!(failed["recipients"][1]["code"], 3);
    assert_eq!(failed["recipients"][1]["forward_path"], "b@to.example");
}

#[test]
fn a_command_that_hangs_is_killed_and_one_that_reads_nothing_is_fine() {
    let dir = TestDir::new();
    let bytes = vec![b'x'; 1 << 20];
    let message = ringmx::ringlog::reader::Message::new([1; 16], 0, 1, bytes, 0);
    let _ = &dir;
    let mut target = target::Exec::new("exec cat /dev/zero >/dev/null".as_ref())
        .with_run_max(Duration::from_millis(50));
    let outcome = target::Target::deliver(&mut target, &message);
    assert_eq!(outcome.reason.as_deref(), Some("the command took too long"));
    let mut target = target::Exec::new("exit 0".as_ref());
    let outcome = target::Target::deliver(&mut target, &message);
    assert_eq!(outcome.results(), [target::RecipientResult::Ok]);
}

#[test]
fn stdout_is_a_tap_that_registers_nothing() {
    let dir = TestDir::new();
    sample(&dir);
    let (code, out, _) = consume(&dir, &["look", "--to", "stdout", "--until-empty"]);
    assert_eq!((code, out.lines().count()), (0, 4));
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(last["message"].as_str().unwrap().as_bytes(), body(4));
    assert_eq!(consumers(&dir, "list").1, "no consumers\n");
}

/// What a server does, as far as its control socket is concerned.
struct TestServer {
    log: Arc<Mutex<Served>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Served {
    log: Log<FileBacking>,
    attachments: Attachments,
    /// Each connection ends when it has been greeted.
    ends_behind_hello: bool,
}

impl Served {
    /// The log as the server's own control sessions see it.
    fn control(&mut self) -> Control<'_, FileBacking> {
        Control {
            log: &mut self.log,
            attachments: &mut self.attachments,
            shard: 0,
            events: Vec::new(),
            status_json: b"{}",
        }
    }
}

impl TestServer {
    fn start(dir: &TestDir) -> TestServer {
        let path = dir.shard().join("ctl");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ring = File::open(dir.shard().join("ring")).unwrap();
        let log = Arc::new(Mutex::new(Served {
            log: open(dir),
            attachments: Attachments::default(),
            ends_behind_hello: false,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (served, stopped) = (Arc::clone(&log), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&listener, &ring, &served, &stopped));
        TestServer {
            log,
            stop,
            thread: Some(thread),
        }
    }

    fn append(&self, from: &str, body: &[u8]) -> u64 {
        let mut served = self.log.lock().unwrap();
        let number = append(&mut served.log, from, &["a@to.example"], body);
        sync(&mut served.log);
        number
    }

    /// Whether there are consumers, and all of them have all messages.
    fn everything_is_acknowledged(&self) -> bool {
        let served = self.log.lock().unwrap();
        let durable = served.log.durable();
        let mut consumers = served.log.consumers().peekable();
        consumers.peek().is_some() && consumers.all(|consumer| consumer.done_pos == durable)
    }

    /// Ends; the log is closed in order.
    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let log = Arc::try_unwrap(self.log).ok().unwrap();
        log.into_inner().unwrap().log.close().unwrap();
    }
}

fn serve(listener: &UnixListener, ring: &File, served: &Mutex<Served>, stop: &AtomicBool) {
    let mut sessions: Vec<(UnixStream, ServerSession)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut waited = vec![listener.as_fd()];
        waited.extend(sessions.iter().map(|(stream, _)| stream.as_fd()));
        // Appending happens in another thread: reports are looked for every few milliseconds.
        wait::readable(&waited, Some(Duration::from_millis(2))).unwrap();
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            sessions.push((stream, ServerSession::new()));
        }
        let mut served = served.lock().unwrap();
        let mut open = Vec::new();
        for (mut stream, mut session) in sessions {
            let mut buf = [0; 1_000];
            let mut out = Vec::new();
            let mut actions = ctl::Actions::default();
            let alive = match stream.read(&mut buf) {
                Ok(0) => false,
                Ok(len) => session
                    .receive(&buf[..len], &mut served.control(), &mut out)
                    .map(|now| actions = now)
                    .is_ok(),
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            session.report(&served.control(), &mut out);
            let mut rest = &out[..];
            let mut descriptor = actions.send_descriptor.then_some(ring.as_fd());
            let mut sent = true;
            while !rest.is_empty() && sent {
                match fd_passing::send(stream.as_fd(), rest, descriptor.take()) {
                    Ok(len) => rest = &rest[len..],
                    Err(_) => sent = false,
                }
            }
            let ends = served.ends_behind_hello && actions.send_descriptor;
            match alive && sent && !actions.close && !ends {
                true => open.push((stream, session)),
                false => session.close(&mut served.control()),
            }
        }
        sessions = open;
    }
}

#[test]
fn beside_a_server_tools_read_and_consumers_deliver_what_is_durable() {
    let dir = TestDir::new();
    let bodies = sample(&dir);
    let server = TestServer::start(&dir);
    assert_eq!(server.append("live@from.example", b"five\r\n"), 5);
    assert_eq!(log_text(&dir, "ls").lines().count(), 5);
    assert_eq!(log(&dir, "cat 0-3 --raw").1, bodies[2]);
    let info: serde_json::Value = serde_json::from_str(&log_text(&dir, "info --json")).unwrap();
    assert_eq!(
        (&info["server"], &info["next_number"]),
        (&true.into(), &6.into())
    );
    let path = dir.0.join("maildir");
    let to = format!("maildir:{}", path.display());
    let create = [
        "archive",
        "--to",
        &to,
        "--until-empty",
        "--create",
        "--from",
        "2",
    ];
    let (code, _, err) = consume(&dir, &create);
    assert_eq!(
        (code, err.as_str()),
        (0, "ringmx consume archive: 4 messages delivered\n")
    );
    let (_, out, _) = consumers(&dir, "list");
    assert!(
        out.starts_with("archive (shard 0): 0 messages behind"),
        "{out}"
    );
    assert_eq!(consumers(&dir, "seek archive oldest").0, 0);
    let (_, _, err) = consume(&dir, &create);
    assert_eq!(err, "ringmx consume archive: 5 messages delivered\n");
    let mbox = format!("mbox:{}", dir.0.join("mbox").display());
    let create = ["copy", "--to", &mbox, "--until-empty", "--create"];
    assert_eq!(consume(&dir, &create).0, 0);
    let mbox = fs::read_to_string(dir.0.join("mbox")).unwrap();
    assert_eq!(mbox.matches("\n\nFrom ").count() + 1, 5);
    assert_eq!(consumers(&dir, "drop copy").0, 0);
    assert_eq!(consumers(&dir, "drop copy").0, 1);
    server.stop();
}

#[test]
fn a_reader_that_the_writer_laps_sees_only_whole_messages_and_is_told_the_gaps() {
    let dir = TestDir::new();
    create(&dir, 1 << 17);
    let server = TestServer::start(&dir);
    let shard = ShardDir {
        shard: 0,
        path: dir.shard(),
    };
    let last = 4_000;
    let padded = |number: u64| {
        let mut text = body(number);
        text.resize(text.len() + (number % 900) as usize, b'.');
        text
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut view = View::live(&shard).unwrap().unwrap();
            let mut walk = Walk::new(0);
            let (mut seen, mut gaps) = (Vec::new(), 0);
            while seen.last() != Some(&last) {
                match view.step(&mut walk).unwrap() {
                    Step::Message(message) => {
                        assert_eq!(message.body(), padded(message.number));
                        seen.push(message.number);
                        if seen.len() % 100 == 0 {
                            // Falls behind by a lap and does not notice: the window stays as it
                            // was.
                            let stale = view.window;
                            while view.window.end < walk.position() + (1 << 17)
                                && view.next_number() <= last
                            {
                                view.wait(Duration::from_millis(100)).unwrap();
                            }
                            view.window = stale;
                        }
                    }
                    Step::Lapped { .. } => gaps += 1,
                    Step::Damaged { position, reason } => panic!("{position}: {reason}"),
                    Step::Other => {}
                    Step::End => {
                        view.wait(Duration::from_millis(100)).unwrap();
                    }
                }
            }
            (seen, gaps)
        });
        for batch in 0..last / 20 {
            let mut served = server.log.lock().unwrap();
            for number in batch * 20 + 1..=batch * 20 + 20 {
                let to = ["a@to.example"];
                let given = append(&mut served.log, "s@from.example", &to, &padded(number));
                assert_eq!(given, number);
            }
            sync(&mut served.log);
        }
        let (seen, gaps) = reader.join().unwrap();
        assert!(seen.is_sorted(), "in order");
        assert!((seen.len() as u64) < last && gaps > 0, "{gaps} gaps");
    });
    server.stop();
}

#[test]
fn a_ring_that_is_cut_short_under_a_reader_ends_it_with_a_sentence() {
    const NAME: &str = "a_ring_that_is_cut_short_under_a_reader_ends_it_with_a_sentence";
    if let Ok(path) = std::env::var("RINGMX_TEST_CUT") {
        let path = PathBuf::from(path);
        let ring = path.join("ring");
        let mut view = View::open(&ShardDir { shard: 0, path }).unwrap();
        let file = File::options().write(true).open(ring).unwrap();
        file.set_len(DATA_OFFSET).unwrap();
        let _ = view.step(&mut Walk::new(0));
        std::process::exit(1);
    }
    let dir = TestDir::new();
    sample(&dir);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("RINGMX_TEST_CUT", dir.shard())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(
        output
            .stderr
            .ends_with(b"ringmx: the ring file was cut short or cannot be read from its disk\n")
    );
}

/// Starts this test program again as `ringmx consume`: signals are for a process of its own.
fn consumer_process(args: &[&str]) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "runs_as_a_consumer_when_another_test_starts_it",
            "--nocapture",
        ])
        .env("RINGMX_TEST_CONSUME", args.join("\n"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn runs_as_a_consumer_when_another_test_starts_it() {
    let Ok(args) = std::env::var("RINGMX_TEST_CONSUME") else {
        return;
    };
    let args: Vec<String> = args.split('\n').map(str::to_owned).collect();
    let args = consume::parse(&args).unwrap();
    let code = consume::run(&args, &mut io::stdout(), &mut io::stderr());
    std::process::exit(code);
}

#[test]
fn a_running_consumer_and_follow_get_what_comes_and_survive_a_restart_of_the_server() {
    let dir = TestDir::new();
    create(&dir, 1 << 20);
    let server = TestServer::start(&dir);
    let path = dir.0.join("maildir");
    let to = format!("maildir:{}", path.display());
    std::thread::scope(|scope| {
        let follow = scope.spawn(|| log(&dir, "follow --limit 3 --since 1"));
        let child = consumer_process(&["archive", "--to", &to, "--create", "--ring", &dir.ring()]);
        for number in 1..=5 {
            assert_eq!(server.append("s@from.example", &body(number)), number);
        }
        // Acknowledged as well: what is only delivered would be delivered again.
        wait_until(|| server.everything_is_acknowledged());
        assert_eq!(maildir_len(&path), 5);
        let (code, out, err) = follow.join().unwrap();
        let lines = String::from_utf8(out).unwrap();
        assert_eq!((code, lines.lines().count(), err.as_str()), (0, 3, ""));
        server.stop();
        fs::remove_file(dir.shard().join("ctl")).unwrap();
        let server = TestServer::start(&dir);
        for number in 6..=8 {
            server.append("s@from.example", &body(number));
        }
        wait_until(|| server.everything_is_acknowledged());
        assert_eq!(maildir_len(&path), 8);
        let terminated = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(terminated.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{err}");
        assert!(err.ends_with("8 messages delivered\n"), "{err}");
        server.stop();
    });
    assert_eq!(maildir(&path), (1..=8).map(body).collect::<Vec<_>>());
}

fn maildir_len(path: &Path) -> usize {
    fs::read_dir(path.join("new")).unwrap().count()
}

fn wait_until(condition: impl Fn() -> bool) {
    let clock = Clock::new();
    while !condition() {
        assert!(clock.now().0 < 20_000_000_000, "not within 20 s");
        wait::readable(&[], Some(Duration::from_millis(5))).unwrap();
    }
}

#[test]
fn the_consumers_of_a_server_that_ends_while_it_is_asked_are_those_of_its_superblock() {
    let dir = TestDir::new();
    sample(&dir);
    let mbox = format!("mbox:{}", dir.0.join("mbox").display());
    let create = ["copy", "--to", &mbox, "--until-empty", "--create"];
    assert_eq!(consume(&dir, &create).0, 0);
    let server = TestServer::start(&dir);
    let shard = ShardDir {
        shard: 0,
        path: dir.shard(),
    };
    let names = |found: Vec<ConsumerName>| -> Vec<String> {
        found.iter().map(|name| name.as_str().to_owned()).collect()
    };
    assert_eq!(names(registered(&shard).unwrap()), ["copy"]);
    // From here on it greets whoever connects, and is gone when the next request comes.
    server.log.lock().unwrap().ends_behind_hello = true;
    let mut client = ctl::Client::connect(&shard.path.join("ctl")).unwrap();
    assert!(client.list().unwrap_err().is_gone());
    assert_eq!(names(registered(&shard).unwrap()), ["copy"]);
    server.stop();
}
