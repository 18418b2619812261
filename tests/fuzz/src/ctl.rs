//! Control sessions: the same answers and the same ring however the frames are cut; the ring is only asked
//! what it may be asked.
//!
//! The first eight bytes seed the cuts, the ninth chooses the ring. The rest is what the client sends: as it
//! stands, or, when the top bit of the ninth is set, two bytes for each frame.

use super::data::Cuts;
use ringmx::ctl::{
    Attachments, Cursor, FRAME_BYTES_MAX, MAGIC, OUTPUT_BYTES_MAX, Progress, ProtocolError,
    Refusal, RingControl, RingFacts, ServerSession, VERSION, is_consumer_name,
};
use ringmx::limits::CONSUMERS_MAX;

/// Parts of frames.
pub const DICTIONARY: &[&[u8]] = &[
    b"\x0b\x00\x00\x00\x01ringmxct\x01\x00",
    b"\x0b\x00\x00\x00\x01ringmxct\x02\x00",
    b"\x01\x00\x00\x00\x02",
    b"\x01\x00\x00\x00\x07",
    b"\x01\x00\x00\x00\x08",
    b"\x03\x00\x00\x00\x06\x01a",
    b"\x00\x00\x00\x00",
    b"\xfb\x0f\x00\x00",
    b"\xfc\x0f\x00\x00",
    b"\xfd\x0f\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x1f0123456789012345678901234567890",
    b"\x01a",
    b"\x01b",
    b"\x00",
    b"\x40\x00\x00\x00\x00\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
];

const PROGRESS: Progress = Progress {
    durable: 6_400,
    tail: 640,
    next_number: 9,
};

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Some((&[ref seed @ .., choice], rest)) = bytes.split_first_chunk::<9>() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed) | 1;
    let input = if choice & 0x80 == 0 {
        rest.to_vec()
    } else {
        frames(rest)
    };
    let whole = play(&input, choice, Cuts::Whole);
    for cuts in [
        Cuts::Bytes,
        Cuts::Random(seed),
        Cuts::Once(seed as usize % (input.len() + 1)),
    ] {
        assert_eq!(play(&input, choice, cuts), whole, "{cuts:?}");
    }
}

/// HELLO and the frames that `choices` name, two bytes for each.
fn frames(choices: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut frame = |kind: u8, payload: &[&[u8]]| {
        let payload = payload.concat();
        out.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&payload);
    };
    frame(1, &[&MAGIC, &VERSION.to_le_bytes()]);
    for pair in choices.chunks_exact(2) {
        let (kind, detail) = (pair[0], pair[1]);
        let name: &[u8] = match detail & 7 {
            0..=2 => b"\x01a",
            3 | 4 => b"\x01b",
            5 => b"\x07missing",
            6 => b"\x05.wild",
            _ => b"\x01\xff",
        };
        let position = |bits: u8| {
            match bits & 7 {
                0 => 640,
                1 => 704,
                2 => 1_280,
                3 => 6_400,
                4 => 6_464,
                5 => 641,
                6 => 0,
                _ => u64::MAX,
            }
            .to_le_bytes()
        };
        let from = [(detail >> 3) % 4];
        let pos = match from[0] {
            2 => position(kind >> 5),
            _ => [0; 8],
        };
        match kind % 8 {
            0 => frame(2, &[]),
            1 => frame(3, &[&[kind >> 4 & 1], &from, &pos, name]),
            2 => frame(4, &[&position(detail >> 3), &position(kind >> 3), name]),
            3 => frame(5, &[&from, &pos, name]),
            4 => frame(6, &[name]),
            5 => frame(7, &[]),
            6 => frame(8, &[]),
            _ => frame(kind, &[&vec![detail; usize::from(detail) * 16]]),
        }
    }
    out
}

/// Everything that must not depend on how the input is cut.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    error: Option<ProtocolError>,
    closed: bool,
    descriptors: u32,
    changed: bool,
    rows: Vec<(String, Cursor)>,
}

fn play(input: &[u8], choice: u8, mut cuts: Cuts) -> Outcome {
    let mut ring = Ring::new(choice);
    let mut session = ServerSession::new();
    let mut outcome = Outcome {
        out: Vec::new(),
        error: None,
        closed: false,
        descriptors: 0,
        changed: false,
        rows: Vec::new(),
    };
    let mut rest = input;
    while !rest.is_empty() && !outcome.closed && outcome.error.is_none() {
        let (part, next) = rest.split_at(cuts.next_len(rest.len()));
        rest = next;
        match session.receive(part, &mut ring, &mut outcome.out) {
            Ok(actions) => {
                outcome.closed = actions.close;
                outcome.descriptors += u32::from(actions.send_descriptor);
                outcome.changed |= actions.consumers_changed;
            }
            Err(error) => outcome.error = Some(error),
        }
        // One answer more: the list of all consumers, or the status.
        assert!(outcome.out.len() <= 2 * OUTPUT_BYTES_MAX);
    }
    if outcome.error.is_some() {
        // Actions of a call that failed are not told, and what else it changed is not looked at: the
        // connection is closed.
        outcome.changed = false;
        outcome.descriptors = 0;
    }
    check_frames(&outcome.out);
    assert!(outcome.descriptors <= 1);
    let attached = session.attached().map(str::to_owned);
    if let Some(name) = &attached {
        assert!(ring.attachments.contains(name));
        assert!(ring.rows.iter().any(|(other, _)| other == name));
    }
    session.close(&mut ring);
    for (name, _) in &ring.rows {
        assert!(!ring.attachments.contains(name), "{name} is free again");
    }
    outcome.rows = ring.rows;
    outcome
}

/// Answers are whole frames within the bound.
fn check_frames(mut out: &[u8]) {
    while let Some((len, rest)) = out.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        assert!((1..=FRAME_BYTES_MAX - 4).contains(&len));
        assert!(rest[0] >= 129);
        out = &rest[len..];
    }
    assert!(out.is_empty());
}

/// A ring that checks what it is asked.
struct Ring {
    rows: Vec<(String, Cursor)>,
    attachments: Attachments,
    status: usize,
    refuses: bool,
}

impl Ring {
    fn new(choice: u8) -> Ring {
        let cursor = Cursor {
            scan_pos: 704,
            done_pos: 1_280,
        };
        let known = [0, 1, 2, CONSUMERS_MAX - 1][usize::from(choice & 3)];
        let names = ["a".to_owned(), "b".to_owned()].into_iter();
        let names = names.chain((0..).map(|at| format!("consumer-{at}")));
        Ring {
            rows: names.take(known).map(|name| (name, cursor)).collect(),
            attachments: Attachments::default(),
            status: [0, 10, 4_091, 10_000][usize::from(choice >> 2 & 3)],
            refuses: choice & 16 != 0,
        }
    }

    fn row(&mut self, name: &str) -> Result<&mut Cursor, Refusal> {
        let row = self.rows.iter_mut().find(|(other, _)| other == name);
        row.map(|(_, cursor)| cursor).ok_or(Refusal::NoSuchConsumer)
    }
}

fn assert_position(position: u64) {
    assert!((PROGRESS.tail..=PROGRESS.durable).contains(&position) && position.is_multiple_of(64));
}

impl RingControl for Ring {
    fn facts(&self) -> RingFacts {
        RingFacts {
            ring_id: *b"0123456789abcdef",
            shard: 3,
            data_offset: 65_536,
            data_bytes: 2 * 1_024 * 1_024,
        }
    }

    fn progress(&self) -> Progress {
        PROGRESS
    }

    fn register(&mut self, name: &str, create: Option<u64>) -> Result<Cursor, Refusal> {
        assert!(is_consumer_name(name));
        if let Ok(cursor) = self.row(name) {
            return Ok(*cursor);
        }
        let position = create.ok_or(Refusal::NoSuchConsumer)?;
        assert_position(position);
        if self.refuses {
            return Err(Refusal::Unavailable);
        }
        if self.rows.len() >= CONSUMERS_MAX {
            return Err(Refusal::TableFull);
        }
        let cursor = Cursor {
            scan_pos: position,
            done_pos: position,
        };
        self.rows.push((name.to_owned(), cursor));
        Ok(cursor)
    }

    fn acknowledge(&mut self, name: &str, cursor: Cursor) -> Result<(), Refusal> {
        assert_position(cursor.scan_pos);
        assert_position(cursor.done_pos);
        let row = self.row(name).expect("a consumer that exists");
        assert!(row.scan_pos <= cursor.scan_pos && row.done_pos <= cursor.done_pos);
        assert!(cursor.scan_pos <= cursor.done_pos);
        *row = cursor;
        Ok(())
    }

    fn seek(&mut self, name: &str, position: u64) -> Result<(), Refusal> {
        assert_position(position);
        *self.row(name)? = Cursor {
            scan_pos: position,
            done_pos: position,
        };
        Ok(())
    }

    fn drop_consumer(&mut self, name: &str) -> Result<(), Refusal> {
        self.row(name)?;
        self.rows.retain(|(other, _)| other != name);
        Ok(())
    }

    fn consumers(&self, each: &mut dyn FnMut(&str, Cursor)) {
        for (name, cursor) in &self.rows {
            each(name, *cursor);
        }
    }

    fn status_json(&self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.status, b'x');
    }

    fn attachments(&mut self) -> &mut Attachments {
        &mut self.attachments
    }
}
