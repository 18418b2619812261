//! `ringmx log rescue`, `log verify` and `ring resize` on real files.

use std::fs;
use std::io::IoSlice;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use ringmx::clock::{Clock, Instant};
use ringmx::envelope::{Facts, Field, field_header};
use ringmx::log_cli;
use ringmx::ringlog::backing::FileBacking;
use ringmx::ringlog::directory::{CreateOptions, create_ring, open_ring};
use ringmx::ringlog::format::{ConsumerName, DATA_OFFSET, Kind, SUPERBLOCK_OFFSETS};
use ringmx::ringlog::recover::{OpenError, OpenOptions};
use ringmx::ringlog::writer::{Log, StartAt, Survive};
use ringmx::sys::wait;
use serde_json::{Value, json};

/// A directory of its own that is removed at the end.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> TestDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringmx-rescue-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        TestDir(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn ring_file(&self) -> PathBuf {
        self.0.join("data/shard-0/ring")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const START_NS: u64 = 1_795_395_723_000_000_000;

/// Opens a ring; a process that another test starts holds copies of all descriptors for a moment.
fn open(dir: &Path) -> Result<Log<FileBacking>, OpenError> {
    let options = OpenOptions::new(Survive::Power, START_NS);
    let clock = Clock::new();
    loop {
        match open_ring(dir, &options, None) {
            Err(OpenError::InUse) if clock.now().0 < 5_000_000_000 => {
                wait::readable(&[], Some(std::time::Duration::from_millis(5))).unwrap();
            }
            result => return result.map(|(log, _)| log),
        }
    }
}

fn envelope(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut field = |field: Field, value: &[u8]| {
        bytes.extend_from_slice(&field_header(field, value.len() as u16));
        bytes.extend_from_slice(value);
    };
    field(Field::Facts, &Facts::default().encode());
    field(
        Field::ReversePath,
        format!("s{number}@from.example").as_bytes(),
    );
    field(Field::ForwardPath, b"a@to.example");
    bytes
}

fn body(number: u64) -> Vec<u8> {
    let mut body = format!("Received: by test; {number}\r\n\r\nFrom {number}\r\n").into_bytes();
    if number == 4 {
        for line in 0..2_000 {
            body.extend(format!("line {line:4}\r\n").as_bytes());
        }
    }
    body
}

fn append(log: &mut Log<FileBacking>, number: u64) {
    let (envelope, body) = (envelope(number), body(number));
    let payload = [&envelope[..], &body].concat();
    let padding = [0; 64];
    log.begin_turn(START_NS + number * 1_000);
    if payload.len() < 4_096 {
        let slot = log.reserve(payload.len() as u64).unwrap();
        let header = log.header(&slot, envelope.len() as u32, crc32c::crc32c(&payload));
        let parts = [&header[..], &payload, &padding[..slot.padding]];
        log.write(&parts.map(IoSlice::new)).unwrap();
        assert_eq!(slot.number, number);
        return;
    }
    let mut large = log.begin_large(payload.len() as u64).unwrap();
    for piece in payload.chunks(6_000) {
        let slot = log.reserve_fragment(&mut large, piece.len() as u64);
        let slot = slot.unwrap();
        let mut bytes = Vec::new();
        if slot.kind == Kind::Last {
            bytes.extend(large.whole(crc32c::crc32c(&payload)).encode());
        }
        bytes.extend_from_slice(piece);
        let env_len = match slot.kind {
            Kind::First => envelope.len() as u32,
            _ => 0,
        };
        let header = log.header(&slot, env_len, crc32c::crc32c(&bytes));
        let parts = [&header[..], &bytes, &padding[..slot.padding]];
        log.write(&parts.map(IoSlice::new)).unwrap();
    }
    assert_eq!(large.number(), Some(number));
}

/// A ring with messages 1 to 9, of which 4 is large, closed; the consumer `reader` has had 1 to 6.
fn sample(dir: &TestDir) {
    let options = CreateOptions {
        data_size: 2 << 20,
        group: false,
        wall_ns: START_NS,
    };
    let shard = dir.0.join("data/shard-0");
    create_ring(&shard, &options, &mut |_, _| {}).unwrap();
    let mut log = open(&shard).unwrap();
    let name = ConsumerName::new("reader").unwrap();
    for number in 1..=9 {
        append(&mut log, number);
        log.sync_inline(Instant(number)).unwrap();
        if number == 6 {
            log.register(name, StartAt::Newest).unwrap();
        }
    }
    log.close().unwrap();
}

/// Flips a bit in each of the texts.
fn damage(dir: &TestDir, texts: &[&str]) {
    let mut bytes = fs::read(dir.ring_file()).unwrap();
    for text in texts {
        let at = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        bytes[at.unwrap()] ^= 1;
    }
    fs::write(dir.ring_file(), bytes).unwrap();
}

fn lose_superblocks(dir: &TestDir) {
    let mut bytes = fs::read(dir.ring_file()).unwrap();
    for at in SUPERBLOCK_OFFSETS {
        bytes[at as usize + 90] ^= 1;
    }
    fs::write(dir.ring_file(), bytes).unwrap();
}

/// Exit code, standard output, standard error of `ringmx log`.
fn log(args: &[&str]) -> (i32, String, String) {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = log_cli::run(&log_cli::parse(&args).unwrap(), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn sorted_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn rescue_of_a_whole_ring_saves_everything_and_says_so() {
    let dir = TestDir::new();
    sample(&dir);
    let before = fs::read(dir.ring_file()).unwrap();
    let (code, out, err) = log(&[
        "rescue",
        "--ring",
        &dir.path("data"),
        "--eml",
        &dir.path("out"),
    ]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let octets: usize = (1..=9).map(|number| body(number).len()).sum();
    let expected = format!(
        "shard 0: {}\n  saved 9 messages, {octets} octets: 0-1 to 0-9\n    in eml {}\n  nothing that was acknowledged is missing\n",
        dir.path("data/shard-0"),
        dir.path("out"),
    );
    assert_eq!(out, expected);
    for number in 1..=9 {
        let path = dir.0.join(format!("out/0-{number}.eml"));
        assert_eq!(fs::read(path).unwrap(), body(number));
    }
    assert_eq!(
        sorted_files(&dir.0.join("out")).len(),
        9,
        "nothing else is left there"
    );
    assert_eq!(fs::read(dir.ring_file()).unwrap(), before);
    // Again: what is there already is what is wanted.
    let (code, again, _) = log(&[
        "rescue",
        "--ring",
        &dir.path("data"),
        "--eml",
        &dir.path("out"),
    ]);
    assert_eq!((code, again), (0, out));
}

#[test]
fn rescue_without_superblocks_saves_all_but_the_damaged_to_every_target_at_once() {
    let dir = TestDir::new();
    sample(&dir);
    damage(&dir, &["Received: by test; 2", "Received: by test; 8"]);
    lose_superblocks(&dir);
    let shard = dir.0.join("data/shard-0");
    assert!(matches!(
        open(&shard),
        Err(OpenError::NotARing { damaged: true })
    ));
    let before = fs::read(dir.ring_file()).unwrap();
    let (code, out, err) = log(&[
        "rescue",
        "--json",
        "--ring",
        &dir.path("data"),
        "--eml",
        &dir.path("eml"),
        "--maildir",
        &dir.path("maildir"),
        "--mbox",
        &dir.path("mbox"),
        "--to-ring",
        &dir.path("new"),
    ]);
    assert_eq!(code, 74, "{out}{err}");
    assert!(err.contains("nobody knows the consumers"), "{err}");
    assert_eq!(
        fs::read(dir.ring_file()).unwrap(),
        before,
        "the ring is only read"
    );
    let document = parse(&out);
    assert_eq!(document["schema"], "ringmx.rescue.v1");
    assert_eq!(document["whole"], false);
    assert_eq!(document["kept"]["messages"], 7);
    assert_eq!(
        document["kept"]["ids"],
        json!([["0-1", "0-1"], ["0-3", "0-7"], ["0-9", "0-9"]])
    );
    let damaged: Vec<_> = document["damaged"].as_array().unwrap().iter().collect();
    assert_eq!(damaged.len(), 2, "{document}");
    for (range, number) in damaged.iter().zip([2, 8]) {
        assert_eq!(range["reason"], "record with a wrong payload checksum");
        assert_eq!(range["first_id"], format!("0-{number}"));
        assert_eq!(range["last_id"], format!("0-{number}"));
        assert_eq!(
            (&range["certain"], &range["acknowledged"]),
            (&json!(true), &json!(true))
        );
    }
    let kept = [1, 3, 4, 5, 6, 7, 9];
    let names: Vec<String> = kept
        .iter()
        .map(|number| format!("0-{number}.eml"))
        .collect();
    assert_eq!(sorted_files(&dir.0.join("eml")), names);
    let maildir = dir.0.join("maildir/new");
    let mut found: Vec<Vec<u8>> = sorted_files(&maildir)
        .iter()
        .map(|name| fs::read(maildir.join(name)).unwrap())
        .collect();
    let mut bodies: Vec<Vec<u8>> = kept.iter().map(|number| body(*number)).collect();
    found.sort();
    bodies.sort();
    assert_eq!(found, bodies);
    let mbox = fs::read_to_string(dir.0.join("mbox")).unwrap();
    assert_eq!(mbox.matches("\nReceived: by test; ").count(), 7);
    // The new ring has the messages under their numbers, and takes none of them again.
    for number in kept {
        let (code, raw, _) = log(&[
            "cat",
            "--raw",
            "--ring",
            &dir.path("new"),
            &number.to_string(),
        ]);
        assert_eq!((code, raw.as_bytes()), (0, &body(number)[..]));
    }
    assert_eq!(log(&["verify", "--ring", &dir.path("new")]).0, 0);
    let new = open(&dir.0.join("new/shard-0")).unwrap();
    assert!(new.next_number() > 9 + 65_536);
    assert_eq!(new.messages(), 7);
}

#[test]
fn rescued_ring_keeps_its_id_and_what_each_consumer_has_not_had() {
    let dir = TestDir::new();
    sample(&dir);
    damage(&dir, &["Received: by test; 7"]);
    let old = parse(&log(&["info", "--json", "--ring", &dir.path("data")]).1);
    let (code, out, err) = log(&[
        "rescue",
        "--ring",
        &dir.path("data"),
        "--to-ring",
        &dir.path("new"),
        "--ring-size",
        "4MiB",
    ]);
    assert_eq!((code, err.as_str()), (74, ""), "{out}");
    assert!(
        out.contains("record with a wrong payload checksum; 0-7\n"),
        "{out}"
    );
    assert!(out.ends_with("  may be missing: 0-7\n"), "{out}");
    let new = parse(&log(&["info", "--json", "--ring", &dir.path("new")]).1);
    assert_eq!(new["ring_id"], old["ring_id"]);
    assert_eq!(new["data_bytes"], 4 << 20);
    assert_eq!(new["consumers"][0]["name"], "reader");
    assert_eq!(new["oldest"], old["oldest"]);
    let list = |ring: &str| -> Vec<Value> {
        let (code, out, _) = log(&["ls", "--json", "--ring", &dir.path(ring)]);
        assert_eq!(code, 0);
        out.lines().map(parse).collect()
    };
    let facts = |message: &Value| {
        let names = ["id", "received_ns", "reverse_path", "octets", "ring_id"];
        names.map(|name| message[name].clone())
    };
    let (old, new) = (list("data"), list("new"));
    assert_eq!(
        old.iter().map(facts).collect::<Vec<_>>(),
        new.iter().map(facts).collect::<Vec<_>>()
    );
    assert_eq!(new.len(), 8);
    // What the consumer had not had is still to come, less the damaged one.
    let name = ConsumerName::new("reader").unwrap();
    let ring = open(&dir.0.join("new/shard-0")).unwrap();
    let consumer = *ring.consumer(&name).unwrap();
    drop(ring.close().unwrap());
    let eighth = new[6]["position"].as_u64().unwrap();
    assert_eq!(new[6]["id"], "0-8");
    assert_eq!((consumer.scan_pos, consumer.done_pos), (eighth, eighth));
    // A second rescue to the same place leaves what is there alone.
    let (code, _, err) = log(&[
        "rescue",
        "--ring",
        &dir.path("data"),
        "--to-ring",
        &dir.path("new"),
    ]);
    assert_eq!(code, 1);
    assert!(
        err.contains("there is a file of that name already"),
        "{err}"
    );
    assert_eq!(list("new").len(), 8);
}

#[test]
fn damaged_part_of_a_large_message_is_named_and_damage_beside_it_does_not_touch_it() {
    let dir = TestDir::new();
    sample(&dir);
    let mut bytes = fs::read(dir.ring_file()).unwrap();
    let large = body(4);
    let middle = &large[10_000..10_050];
    let at = bytes.windows(50).position(|window| window == middle);
    bytes[at.unwrap()] ^= 1;
    fs::write(dir.ring_file(), bytes).unwrap();
    let (code, out, _) = log(&["rescue", "--ring", &dir.path("data")]);
    assert_eq!(code, 74);
    assert!(out.contains("  would save 8 messages, "), "{out}");
    assert!(out.contains("0-1 to 0-3, 0-5 to 0-9\n"), "{out}");
    assert!(
        out.contains("DAMAGED: large message 0-4 at position "),
        "{out}"
    );
    assert!(out.ends_with("  may be missing: 0-4\n"), "{out}");
    let (code, out, _) = log(&["verify", "--ring", &dir.path("data")]);
    assert_eq!(code, 74);
    assert!(out.contains("parts of large message 0-4"), "{out}");
    let (_, json, _) = log(&["verify", "--json", "--ring", &dir.path("data")]);
    assert_eq!(parse(&json)["messages"], 8);
}

#[test]
fn verify_names_what_stands_behind_the_checkpoint_too() {
    // The server was killed: its last superblock is older than its last messages. One of them is
    // damaged, and a later record proves that it was acknowledged. Readers end there; verify used to
    // end there as well and call everything good.
    let dir = TestDir::new();
    sample(&dir);
    let mut log_open = open(&dir.0.join("data/shard-0")).unwrap();
    assert_eq!(log_open.next_number(), 10, "it was closed");
    for number in 10..=12 {
        append(&mut log_open, number);
        log_open.sync_inline(Instant(1)).unwrap();
    }
    drop(log_open);
    damage(&dir, &["Received: by test; 10"]);
    let (code, out, err) = log(&["verify", "--ring", &dir.path("data")]);
    assert_eq!((code, err.as_str()), (74, ""));
    assert!(out.contains(": DAMAGED\n"), "{out}");
    assert!(
        out.contains("record with a wrong payload checksum; missing: 0-10\n"),
        "{out}"
    );
    // The other readers show what stands behind it, and say what is left out.
    let (code, out, err) = log(&["ls", "--ring", &dir.path("data")]);
    assert_eq!((code, out.lines().count()), (0, 11), "{out}");
    assert!(err.contains("damaged, left out"), "{err}");
    let refused = open(&dir.0.join("data/shard-0")).map(|_| ());
    assert!(matches!(
        refused,
        Err(OpenError::DamagedAcknowledged { .. })
    ));
    let (code, out, _) = log(&[
        "rescue",
        "--ring",
        &dir.path("data"),
        "--eml",
        &dir.path("eml"),
    ]);
    assert_eq!(code, 74);
    assert!(out.contains("saved 11 messages"), "{out}");
}

#[test]
fn verify_names_a_damaged_superblock() {
    let dir = TestDir::new();
    sample(&dir);
    let mut bytes = fs::read(dir.ring_file()).unwrap();
    bytes[SUPERBLOCK_OFFSETS[0] as usize + 1_000] ^= 4;
    fs::write(dir.ring_file(), &bytes).unwrap();
    let (_, out, _) = log(&["verify", "--ring", &dir.path("data")]);
    assert!(out.contains("  superblock A is damaged"), "{out}");
    lose_superblocks(&dir);
    let (code, out, _) = log(&["verify", "--ring", &dir.path("data")]);
    assert_eq!(code, 74);
    assert!(
        out.contains("  superblock A is damaged\n  superblock B is damaged\n"),
        "{out}"
    );
    assert!(out.contains("shard 0: 9 messages, "), "{out}");
}

#[test]
fn ring_file_alone_is_rescued_and_what_others_hold_is_not_overwritten() {
    let dir = TestDir::new();
    sample(&dir);
    fs::rename(dir.ring_file(), dir.0.join("image")).unwrap();
    let (code, _, err) = log(&["rescue", "--ring", &dir.path("data")]);
    assert_eq!(code, 2, "{err}");
    let eml = dir.0.join("eml");
    fs::create_dir(&eml).unwrap();
    fs::write(eml.join("0-3.eml"), "mine").unwrap();
    let (code, out, err) = log(&[
        "rescue",
        "--file",
        &dir.path("image"),
        "--eml",
        &dir.path("eml"),
    ]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("0-3.eml' is there already and holds something else"),
        "{err}"
    );
    assert_eq!(
        sorted_files(&eml),
        ["0-3.eml"],
        "nothing unfinished is left"
    );
    assert_eq!(fs::read(eml.join("0-3.eml")).unwrap(), b"mine");
    fs::remove_file(eml.join("0-3.eml")).unwrap();
    let (code, _, _) = log(&[
        "rescue",
        "--file",
        &dir.path("image"),
        "--eml",
        &dir.path("eml"),
    ]);
    assert_eq!((code, sorted_files(&eml).len()), (0, 9));
    // Cut, and without superblocks: what is left of it.
    let bytes = fs::read(dir.0.join("image")).unwrap();
    let mut cut = bytes[..DATA_OFFSET as usize + 2_048].to_vec();
    cut[..DATA_OFFSET as usize].fill(0);
    fs::write(dir.0.join("cut"), cut).unwrap();
    let (code, out, _) = log(&["rescue", "--file", &dir.path("cut")]);
    assert_eq!(code, 74);
    assert!(out.contains("would save 3 messages"), "{out}");
    let (code, again, _) = log(&["rescue", "--file", &dir.path("cut"), "--ring-size", "0"]);
    assert_eq!((code, again), (74, out));
}

#[test]
fn rescue_keeps_off_a_ring_in_use_and_names_mistakes() {
    let dir = TestDir::new();
    sample(&dir);
    let held = open(&dir.0.join("data/shard-0")).unwrap();
    let (code, out, err) = log(&["rescue", "--ring", &dir.path("data")]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("is in use; stop its server and its consumers first"),
        "{err}"
    );
    drop(held);
    let fails = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        log_cli::parse(&args).unwrap_err()
    };
    assert_eq!(
        fails(&["rescue", "--limit", "3"]),
        "ringmx log rescue saves all messages: it takes no filters"
    );
    assert_eq!(
        fails(&["rescue", "--eml", "a", "--eml", "b"]),
        "ringmx log rescue takes one target of each kind"
    );
    assert_eq!(
        fails(&["ls", "--to-ring", "a"]),
        "--to-ring, --file, --ring-size, --include-released and --list belong to ringmx log rescue"
    );
    assert!(fails(&["rescue", "--to-ring", "a", "--include-released"]).contains("exclude"));
    assert_eq!(
        fails(&["rescue", "--to-ring", "a", "--ring-size", "3MiB"]),
        "--ring-size: a multiple of 2MiB for --to-ring"
    );
    let (code, out, _) = log(&["rescue", "--help"]);
    assert_eq!((code, out.as_str()), (0, log_cli::rescue::HELP));
    assert!(out.lines().all(|line| line.len() <= 108), "{out}");
}

#[test]
fn list_shows_each_message_once() {
    let dir = TestDir::new();
    sample(&dir);
    let (code, out, _) = log(&["rescue", "--list", "--ring", &dir.path("data")]);
    assert_eq!(code, 0);
    let ids: Vec<&str> = out
        .lines()
        .filter(|line| line.contains("@from.example>"))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let expected: Vec<String> = (1..=9).map(|number| format!("0-{number}")).collect();
    assert_eq!(ids, expected);
}

#[test]
fn accepted_loss_is_noted_before_it_is_given_up_and_costs_nothing_else() {
    let dir = TestDir::new();
    sample(&dir);
    let shard = dir.0.join("data/shard-0");
    let mut log_open = open(&shard).unwrap();
    for number in 10..=13 {
        append(&mut log_open, number);
        log_open.sync_inline(Instant(1)).unwrap();
    }
    drop(log_open);
    damage(&dir, &["Received: by test; 11"]);
    let refused = open(&shard).map(|_| ());
    let Err(OpenError::DamagedAcknowledged { lost }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].number, 11);
    let before = fs::read(dir.ring_file()).unwrap();
    let mut options = OpenOptions::new(Survive::Power, START_NS);
    options.accept_loss = true;
    // The list can't be written: nothing is given up.
    fs::create_dir(shard.join("lost.new")).unwrap();
    let refused = open_ring(&shard, &options, None).map(|_| ());
    assert!(matches!(refused, Err(OpenError::Io { .. })), "{refused:?}");
    assert_eq!(fs::read(dir.ring_file()).unwrap(), before);
    assert!(!shard.join("lost").exists());
    fs::remove_dir(shard.join("lost.new")).unwrap();
    let (ring, recovery) = open_ring(&shard, &options, None).unwrap();
    assert_eq!((&recovery.lost, recovery.messages), (&lost, 12));
    ring.close().unwrap();
    let noted = format!(
        "2026-11-23T01:02:03.000Z from {} to {} number 11 epoch 2\n",
        lost[0].from, lost[0].to
    );
    assert_eq!(fs::read_to_string(shard.join("lost")).unwrap(), noted);
    // From now on it is gone and known to be: nothing else is called damaged, nothing is missing.
    let data = dir.path("data");
    for number in [10, 12, 13] {
        let (code, raw, _) = log(&["cat", "--raw", "--ring", &data, &number.to_string()]);
        assert_eq!((code, raw.as_bytes()), (0, &body(number)[..]));
    }
    assert_eq!(log(&["cat", "--ring", &data, "11"]).0, 1);
    drop(open(&shard).unwrap());
    let (code, out, _) = log(&["verify", "--ring", &data]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("given up earlier by --accept-loss"), "{out}");
    let (code, out, _) = log(&["rescue", "--ring", &data]);
    assert_eq!(code, 74);
    assert!(
        out.contains("given up earlier by --accept-loss; 0-11"),
        "{out}"
    );
}

fn ringmx(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringmx"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Everything that a resize must not change: id, messages with numbers and times, next number, and
/// the message at which each consumer goes on.
fn facts(dir: &TestDir) -> (Value, Vec<Value>, Vec<Value>) {
    let data = dir.path("data");
    let info = parse(&log(&["info", "--json", "--ring", &data]).1);
    let (code, out, _) = log(&["ls", "--json", "--ring", &data]);
    assert_eq!(code, 0);
    let messages: Vec<Value> = out.lines().map(parse).collect();
    let consumers = info["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|consumer| {
            let next = messages
                .iter()
                .find(|message| message["position"].as_u64() >= consumer["done_pos"].as_u64());
            json!([consumer["name"], next.map(|message| &message["id"])])
        });
    let consumers = consumers.collect();
    let messages = messages.iter().map(|message| {
        let names = ["id", "received_ns", "reverse_path", "octets", "ring_id"];
        json!(names.map(|name| message[name].clone()))
    });
    (
        json!([
            info["ring_id"],
            info["next_number"],
            info["created_ns"],
            info["oldest"]
        ]),
        messages.collect(),
        consumers,
    )
}

fn bodies_are_right(dir: &TestDir) {
    let data = dir.path("data");
    for number in 1..=9 {
        let (code, raw, _) = log(&["cat", "--raw", "--ring", &data, &number.to_string()]);
        assert_eq!((code, raw.as_bytes()), (0, &body(number)[..]));
    }
}

#[test]
fn resized_ring_keeps_messages_numbers_times_and_consumers() {
    let dir = TestDir::new();
    sample(&dir);
    fs::set_permissions(dir.ring_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let data = dir.path("data");
    let before = facts(&dir);
    assert_eq!(before.1.len(), 9);
    assert_eq!(before.2, [json!(["reader", "0-7"])]);
    for (from, to, arguments) in [(2, 6, "--ring-size=6MiB"), (6, 2, "--ring-size=2MiB")] {
        let (code, out, err) = ringmx(&["ring", "resize", "--ring", &data, arguments]);
        let said = format!(
            "Resized the ring in {} from {from} to {to} MiB; 9 messages moved\n",
            dir.path("data/shard-0")
        );
        assert_eq!((code, out, err.as_str()), (0, said, ""));
        let about = fs::metadata(dir.ring_file()).unwrap();
        assert_eq!(about.len(), DATA_OFFSET + (to << 20));
        assert_eq!(about.permissions().mode() & 0o777, 0o640);
        let after = facts(&dir);
        assert_eq!(after, before);
        bodies_are_right(&dir);
        assert_eq!(sorted_files(&dir.0.join("data/shard-0")), ["ring"]);
    }
    // It goes on under the next number.
    let mut ring = open(&dir.0.join("data/shard-0")).unwrap();
    append(&mut ring, 10);
    ring.sync_inline(Instant(1)).unwrap();
    ring.close().unwrap();
    assert_eq!(facts(&dir).1.len(), 10);
}

#[test]
fn resize_refuses_what_it_cannot_keep_and_leaves_the_ring_alone() {
    let dir = TestDir::new();
    sample(&dir);
    let data = dir.path("data");
    let refused = |args: &[&str], code: i32, text: &str| {
        let (found, out, err) = ringmx(args);
        assert_eq!((found, out.as_str()), (code, ""), "{err}");
        assert!(err.contains(text), "{err}");
        assert_eq!(sorted_files(&dir.0.join("data/shard-0")), ["ring"]);
    };
    let resize = ["ring", "resize", "--ring", &data, "--ring-size", "4MiB"];
    refused(&resize[..4], 2, "resize needs --ring-size");
    let held = open(&dir.0.join("data/shard-0")).unwrap();
    refused(&resize, 1, "another process has the ring open");
    held.close().unwrap();
    damage(&dir, &["Received: by test; 2"]);
    let before = facts(&dir);
    refused(&resize, 74, "messages in the ring are damaged");
    assert_eq!(facts(&dir), before);
    let bytes = fs::metadata(dir.ring_file()).unwrap().len();
    assert_eq!(bytes, DATA_OFFSET + (2 << 20));
}

#[test]
fn resize_to_a_size_that_is_too_small_changes_nothing() {
    let dir = TestDir::new();
    let options = CreateOptions {
        data_size: 4 << 20,
        group: false,
        wall_ns: START_NS,
    };
    let shard = dir.0.join("data/shard-0");
    create_ring(&shard, &options, &mut |_, _| {}).unwrap();
    let mut ring = open(&shard).unwrap();
    let payload = vec![b'x'; 100_000];
    for _ in 0..30 {
        ring.begin_turn(START_NS);
        let slot = ring.reserve(payload.len() as u64).unwrap();
        let header = ring.header(&slot, 0, crc32c::crc32c(&payload));
        let parts = [&header[..], &payload, &[0; 64][..slot.padding]];
        ring.write(&parts.map(IoSlice::new)).unwrap();
    }
    ring.close().unwrap();
    let (code, _, err) = ringmx(&[
        "ring",
        "resize",
        "--ring",
        &dir.path("data"),
        "--ring-size",
        "2MiB",
    ]);
    assert_eq!(code, 1);
    assert!(
        err.contains("the new ring is too small for the messages; nothing was changed"),
        "{err}"
    );
    assert_eq!(open(&shard).unwrap().messages(), 30);
    assert_eq!(sorted_files(&shard), ["ring"]);
}

/// A resize that is killed at its n-th call to the system, for every n: the ring of before or of after
/// is there, whole. Needs strace.
#[test]
fn resize_killed_at_any_call_leaves_the_whole_ring_of_before_or_after() {
    // strace counts each call by itself.
    let calls = [
        "pwritev",
        "pwrite64",
        "fdatasync",
        "fsync",
        "ftruncate",
        "rename",
        "fchmod",
    ];
    if Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: resize killed at any call: there is no strace");
        return;
    }
    let dir = TestDir::new();
    sample(&dir);
    let data = dir.path("data");
    let before = facts(&dir);
    let (mut old, mut new, mut kills) = (0, 0, 0);
    for call in calls {
        for nth in 1.. {
            assert!(nth < 100, "{call} never ends");
            let size = fs::metadata(dir.ring_file()).unwrap().len() - DATA_OFFSET;
            let wanted = if size == 2 << 20 { "4MiB" } else { "2MiB" };
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e"])
                .arg(format!("trace={call}"))
                .arg("-e")
                .arg(format!("inject={call}:signal=SIGKILL:when={nth}"))
                .arg(env!("CARGO_BIN_EXE_ringmx"))
                .args(["ring", "resize", "--ring", &data, "--ring-size", wanted])
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            if error.contains("ptrace") {
                println!("skipped: resize killed at any call: {error}");
                return;
            }
            let after = fs::metadata(dir.ring_file()).unwrap().len() - DATA_OFFSET;
            // An opening that is killed leaves out numbers; a message has its own for ever.
            let found = facts(&dir);
            assert_eq!((&found.1, &found.2), (&before.1, &before.2), "{call} {nth}");
            if output.status.success() {
                assert_ne!(after, size, "{call} {nth}");
                break;
            }
            kills += 1;
            *if after == size { &mut old } else { &mut new } += 1;
        }
    }
    bodies_are_right(&dir);
    println!("{kills} kills, {old} left the ring of before, {new} that of after");
    assert!(kills > 20 && old > 20 && new > 0, "{kills} {old} {new}");
}
