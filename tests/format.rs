//! The on-disk promise: golden rings that every later version must read, and that this one writes
//! byte for byte.
//!
//! `RINGMX_GOLDEN_UPDATE=1` writes the golden files anew; a change needs a line in
//! `docs/CHANGELOG.md`.

#[path = "support/random.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod random;

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use random::Xorshift;
use ringmx::clock::Instant;
use ringmx::envelope::{self, Facts, Field};
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::consumer::{Step, Walk};
use ringmx::ringlog::format::{ConsumerName, DATA_OFFSET, Header, Kind};
use ringmx::ringlog::reader::{Message, Reader, Source, Window};
use ringmx::ringlog::recover::{self, NewRing, OpenOptions};
use ringmx::ringlog::rescue::{Report, Rescue, RescueOptions, State};
use ringmx::ringlog::writer::{Log, StartAt, Survive};

const WALL_NS: u64 = 1_795_395_723_456_789_012;
const DATA_SIZE: u64 = 65_536;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn check_golden(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if std::env::var_os("RINGMX_GOLDEN_UPDATE").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), expected.len());
    let differs = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first differing byte of {name}");
}

fn new_ring() -> MemoryBacking {
    let mut backing = MemoryBacking {
        bytes: vec![0; (DATA_OFFSET + DATA_SIZE) as usize],
    };
    let new = NewRing {
        ring_id: *b"golden ring no 1",
        ring_key: 0x8877_6655_4433_2211,
        data_size: DATA_SIZE,
        created_ns: WALL_NS,
    };
    recover::format(&mut backing, &new).unwrap();
    backing
}

fn small_envelope() -> Vec<u8> {
    let facts = Facts {
        flags: envelope::FLAG_ESMTP,
        recipients: 1,
        ..Facts::default()
    };
    let mut bytes = Vec::new();
    let mut field = |field, value: &[u8]| {
        bytes.extend(envelope::field_header(field, value.len() as u16));
        bytes.extend(value);
    };
    field(Field::Facts, &facts.encode());
    field(Field::Helo, b"client.example");
    field(Field::ReversePath, b"a@example.org");
    field(Field::ForwardPath, b"b@example.com");
    bytes
}

fn append(log: &mut Log<MemoryBacking>, envelope: &[u8], body: &[u8]) -> u64 {
    log.begin_turn(WALL_NS);
    let payload = [envelope, body].concat();
    let slot = log.reserve(payload.len() as u64).unwrap();
    let header = log.header(&slot, envelope.len() as u32, crc32c::crc32c(&payload));
    log.write(&[
        IoSlice::new(&header),
        IoSlice::new(&payload),
        IoSlice::new(&[0; 64][..slot.padding]),
    ])
    .unwrap();
    slot.end
}

fn append_large(log: &mut Log<MemoryBacking>, payload: &[u8], pieces: &[usize]) {
    let mut large = log.begin_large(payload.len() as u64).unwrap();
    let mut rest = payload;
    for bytes in pieces {
        let slot = log.reserve_fragment(&mut large, *bytes as u64).unwrap();
        let mut piece = Vec::new();
        if slot.kind == Kind::Last {
            piece.extend(large.whole(crc32c::crc32c(payload)).encode());
        }
        piece.extend(&rest[..*bytes]);
        rest = &rest[*bytes..];
        let env_len = if slot.kind == Kind::First { 10 } else { 0 };
        let header = log.header(&slot, env_len, crc32c::crc32c(&piece));
        log.write(&[
            IoSlice::new(&header),
            IoSlice::new(&piece),
            IoSlice::new(&[0; 64][..slot.padding]),
        ])
        .unwrap();
    }
    assert!(rest.is_empty());
}

/// One small message, one in three fragments with a small one behind it, a consumer that has read
/// the first.
fn filled_log() -> Log<MemoryBacking> {
    let options = OpenOptions::new(Survive::Power, WALL_NS);
    let (mut log, _) = Log::open(new_ring(), &options).unwrap();
    let body = b"Received: from client.example\r\nSubject: hello\r\n\r\nHello.\r\n";
    let end = append(&mut log, &small_envelope(), body);
    log.sync_inline(Instant(1)).unwrap();
    let name = ConsumerName::new("to-maildir").unwrap();
    log.register(name, StartAt::Oldest).unwrap();
    log.acknowledge(&name, end, end).unwrap();
    let mut large = envelope::field_header(Field::Helo, 7).to_vec();
    large.extend(b"client.");
    large.extend((0..900_u32).map(|at| b'a' + (at % 26) as u8));
    append_large(&mut log, &large, &[300, 300, 310]);
    append(&mut log, &small_envelope(), b"");
    log.sync_inline(Instant(2)).unwrap();
    log
}

#[test]
fn ring_that_was_closed_is_written_byte_for_byte_as_ever() {
    let backing = filled_log().close().unwrap();
    check_golden("closed.ring", &backing.bytes);
}

#[test]
fn ring_that_was_not_closed_is_written_byte_for_byte_as_ever() {
    let mut log = filled_log();
    append(&mut log, &small_envelope(), b"not yet durable\r\n");
    check_golden("open.ring", &log.into_backing().bytes);
}

#[test]
fn golden_rings_open_with_every_message() {
    for (name, clean, messages, next_number) in
        [("closed.ring", true, 3, 4), ("open.ring", false, 4, 65_541)]
    {
        let backing = MemoryBacking {
            bytes: std::fs::read(golden(name)).unwrap(),
        };
        let options = OpenOptions::new(Survive::Power, WALL_NS);
        let (log, recovery) = Log::open(backing, &options).unwrap();
        assert_eq!(
            (recovery.clean, recovery.messages, recovery.next_number),
            (clean, messages, next_number),
            "{name}"
        );
        assert_eq!(recovery.discarded_records, 0);
        let consumers: Vec<_> = log
            .consumers()
            .map(|c| (c.name.to_string(), c.done_pos))
            .collect();
        assert_eq!(consumers, [("to-maildir".to_owned(), 64 + 256)]);
    }
}

fn content(random: &mut Xorshift, len: u64) -> Vec<u8> {
    let salt = random.below(26) as u8;
    (0..len)
        .map(|at| b'a' + (at as u8).wrapping_add(salt) % 26)
        .collect()
}

fn reopen(backing: MemoryBacking) -> Log<MemoryBacking> {
    let options = OpenOptions::new(Survive::Power, WALL_NS);
    Log::open(backing, &options).unwrap().0
}

/// So many small messages, every seventh followed by one in three fragments.
fn fill(log: &mut Log<MemoryBacking>, random: &mut Xorshift, messages: u32) {
    for index in 0..messages {
        let len = random.below(700);
        let body = content(random, len);
        append(log, &small_envelope(), &body);
        if index % 7 == 6 {
            let mut large = envelope::field_header(Field::Helo, 7).to_vec();
            large.extend(b"client.");
            large.extend(content(random, 3_000));
            append_large(log, &large, &[1_200, 1_000, 810]);
        }
        log.sync_inline(Instant(u64::from(index))).unwrap();
    }
}

/// Several laps, two openings, a stop amid a batch, and closed.
fn lapped_ring() -> MemoryBacking {
    let mut random = Xorshift(0x1a99ed);
    let mut log = reopen(new_ring());
    fill(&mut log, &mut random, 150);
    let mut log = reopen(log.close().unwrap());
    fill(&mut log, &mut random, 100);
    append(
        &mut log,
        &small_envelope(),
        b"written, never synced, found by recovery\r\n",
    );
    let mut log = reopen(log.into_backing());
    fill(&mut log, &mut random, 20);
    log.close().unwrap()
}

/// Power was lost amid a batch of four: the sectors of the second are missing.
fn torn_ring() -> MemoryBacking {
    let mut random = Xorshift(0x7042);
    let mut log = reopen(new_ring());
    fill(&mut log, &mut random, 20);
    let old = log.backing().bytes.clone();
    let first = append(
        &mut log,
        &small_envelope(),
        b"whole, and not acknowledged\r\n",
    );
    for _ in 0..3 {
        let body = content(&mut random, 900);
        append(&mut log, &small_envelope(), &body);
    }
    let mut backing = log.into_backing();
    // From the middle of the second one's payload to the end of that sector and one more.
    let from = (DATA_OFFSET + first) as usize + 200;
    let to = (from + 512).next_multiple_of(512);
    backing.bytes[from..to].copy_from_slice(&old[from..to]);
    backing
}

/// Closed, and then a bit of a payload, a header, and a part of a large message went bad.
fn damaged_ring() -> MemoryBacking {
    let mut random = Xorshift(0xdead);
    let mut log = reopen(new_ring());
    fill(&mut log, &mut random, 24);
    let mut backing = log.close().unwrap();
    let header_of = |number: u64, kind: Kind| {
        let positions = (0..DATA_SIZE).step_by(64);
        let found = positions
            .map(|position| (DATA_OFFSET + position) as usize)
            .find(|at| {
                let bytes = backing.bytes[*at..].first_chunk().unwrap();
                Header::decode(bytes, 0x8877_6655_4433_2211)
                    .is_ok_and(|header| header.number == number && header.kind == kind)
            });
        found.unwrap()
    };
    let places = [
        header_of(3, Kind::Message) + 64 + 20,
        header_of(6, Kind::Message) + 33,
        // MID carries the number of the message after its own.
        header_of(9, Kind::Middle) + 64 + 500,
    ];
    for at in places {
        backing.bytes[at] ^= 0x10;
    }
    backing
}

/// One line for each message: ring, number, position, time, octets of envelope and body, CRC32C of
/// both together.
fn line(ring: &str, message: &Message) -> String {
    let envelope = message.envelope_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(envelope), message.body());
    format!(
        "{ring} {} {} {} {} {} {crc:08x}\n",
        message.number,
        message.position,
        message.received_ns,
        envelope.len(),
        message.body().len(),
    )
}

const RINGS: [&str; 5] = ["closed", "open", "lapped", "torn", "damaged"];

fn golden_backing(ring: &str) -> MemoryBacking {
    MemoryBacking {
        bytes: std::fs::read(golden(&format!("{ring}.ring"))).unwrap(),
    }
}

fn rescue(ring: &str) -> (Report, Vec<Message>) {
    let backing = golden_backing(ring);
    let mut rescue = Rescue::look(&backing, RescueOptions::default()).unwrap();
    let mut messages = Vec::new();
    let walked: Result<(), ()> = rescue.walk(&mut |message, state| {
        // What was torn off is given out too; the golden list is of what the log holds.
        if state == State::Kept {
            messages.push(message);
        }
        Ok(())
    });
    walked.unwrap();
    (rescue.report().clone(), messages)
}

#[test]
fn golden_rings_of_every_kind_are_written_byte_for_byte_as_ever() {
    check_golden("lapped.ring", &lapped_ring().bytes);
    check_golden("torn.ring", &torn_ring().bytes);
    check_golden("damaged.ring", &damaged_ring().bytes);
}

#[test]
fn golden_rings_of_every_kind_hold_exactly_what_they_ever_held() {
    let mut text = String::new();
    for ring in RINGS {
        let (report, messages) = rescue(ring);
        assert_eq!(report.is_whole(), ring != "damaged", "{ring}: {report:?}");
        text.extend(messages.iter().map(|message| line(ring, message)));
    }
    check_golden("messages.txt", text.as_bytes());
    // Those that open are read the same by the log's own readers.
    for ring in ["closed", "open", "lapped", "torn"] {
        let options = OpenOptions::new(Survive::Power, WALL_NS);
        let (log, recovery) = Log::open(golden_backing(ring), &options).unwrap();
        assert_eq!(recovery.lost, []);
        let area = Area(&log.backing().bytes);
        let reader = Reader::new(area, log.superblock(), 0);
        let window = Window {
            tail: recovery.tail,
            end: recovery.head,
        };
        let mut walk = Walk::new(window.tail);
        let mut shown = Vec::new();
        loop {
            match walk.step(&reader, window).unwrap() {
                Step::Message(message) => shown.push(message),
                Step::Other => {}
                Step::End => break,
                step => panic!("{ring}: {step:?}"),
            }
        }
        shown.sort_by_key(|message| message.number);
        let expected: String = shown.iter().map(|message| line(ring, message)).collect();
        let lines = text
            .lines()
            .filter(|line| line.starts_with(&format!("{ring} ")));
        assert_eq!(
            expected.lines().collect::<Vec<_>>(),
            lines.collect::<Vec<_>>()
        );
    }
}

#[test]
fn golden_damage_is_named_exactly() {
    let (report, _) = rescue("damaged");
    let named: Vec<_> = report
        .damage
        .iter()
        .map(|damage| {
            (
                damage.reason.to_string(),
                damage.first_number,
                damage.last_number,
            )
        })
        .collect();
    let payload = "record with a wrong payload checksum".to_owned();
    let header = "record header with a wrong checksum".to_owned();
    assert_eq!(
        named,
        [
            (payload.clone(), Some(3), Some(3)),
            (header, Some(6), Some(6)),
            // The part of a large message: no message begins in it.
            (payload, Some(9), Some(8)),
        ]
    );
    let incomplete: Vec<_> = report
        .incomplete
        .iter()
        .map(|m| (m.number, m.damaged))
        .collect();
    assert_eq!(incomplete, [(8, true)]);
    // It was closed in order, so that it opens, and readers leave those three messages out.
    let options = OpenOptions::new(Survive::Power, WALL_NS);
    let (_, recovery) = Log::open(golden_backing("damaged"), &options).unwrap();
    assert!(recovery.clean);
}

/// The data area of a golden ring.
struct Area<'a>(&'a [u8]);

impl Source for Area<'_> {
    fn read(&self, position: u64, out: &mut [u8]) -> std::io::Result<()> {
        for (index, byte) in out.iter_mut().enumerate() {
            let place = (position + index as u64) % DATA_SIZE;
            *byte = self.0[(DATA_OFFSET + place) as usize];
        }
        Ok(())
    }
}

#[test]
fn the_python_reader_finds_the_same_in_every_golden_ring() {
    let expected = std::fs::read_to_string(golden("messages.txt")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ring_reader.py");
    for ring in RINGS {
        let output = std::process::Command::new("python3")
            .arg(&script)
            .arg(golden(&format!("{ring}.ring")))
            .arg("--check")
            .arg(ring)
            .output()
            .unwrap();
        let code = if ring == "damaged" { 1 } else { 0 };
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{ring}: {errors}");
        let found = String::from_utf8(output.stdout).unwrap();
        let mut found: Vec<&str> = found.lines().collect();
        let number = |line: &&str| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
        // Large messages are complete later than the small ones beside them.
        found.sort_by_key(number);
        let lines = expected
            .lines()
            .filter(|line| line.starts_with(&format!("{ring} ")));
        assert_eq!(found, lines.collect::<Vec<_>>(), "{ring}");
    }
}

#[test]
fn hex_dump_in_the_document_equals_the_golden_ring() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ring-log.md");
    let text = std::fs::read_to_string(document).unwrap();
    let ring = std::fs::read(golden("closed.ring")).unwrap();
    let mut compared = 0;
    let dumps = text.split("```hexdump\n").skip(1);
    for line in dumps.flat_map(|dump| dump.split("```").next().unwrap().lines()) {
        let (at, rest) = line.split_once("  ").unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        let bytes: Vec<u8> = rest
            .split("  ")
            .next()
            .unwrap()
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        assert_eq!(bytes, ring[at..at + bytes.len()], "line {line}");
        compared += bytes.len();
    }
    assert_eq!(compared, 144 + 64 + 64 + 256);
}
