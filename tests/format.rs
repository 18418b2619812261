//! The on-disk promise: golden rings that every later version must read, and that this one writes
//! byte for byte.
//!
//! `RINGMX_GOLDEN_UPDATE=1` writes the golden files anew; a change needs a line in
//! `docs/CHANGELOG.md`.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use ringmx::clock::Instant;
use ringmx::envelope::{self, Facts, Field};
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::format::{ConsumerName, DATA_OFFSET, Kind};
use ringmx::ringlog::recover::{self, NewRing, OpenOptions};
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
