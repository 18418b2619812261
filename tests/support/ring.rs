//! A reader of rings that shares nothing with the program but the layout.

use std::collections::BTreeMap;

use ringmx::envelope::{Facts, Field, Fields};
use ringmx::ringlog::format::{
    Header, Kind, RECORD_LOST, SUPERBLOCK_OFFSETS, Superblock, WHOLE_BYTES, Whole,
};

/// A message as it stands in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub number: u64,
    /// Position of its first record.
    pub position: u64,
    /// Position behind its last record.
    pub end: u64,
    /// When its first record was written, by the wall clock, nanoseconds.
    pub received_ns: u64,
    /// Where each of its records begins and ends.
    pub records: Vec<(u64, u64)>,
    /// Envelope, trace field and body.
    pub payload: Vec<u8>,
    /// Length of the envelope.
    pub envelope_bytes: usize,
}

impl Stored {
    /// The value of the first envelope field of this type.
    pub fn field(&self, field: Field) -> Option<&[u8]> {
        self.fields(field).into_iter().next()
    }

    /// The values of all envelope fields of this type.
    pub fn fields(&self, field: Field) -> Vec<&[u8]> {
        let mut fields = Fields::new(&self.payload[..self.envelope_bytes]);
        let values = fields
            .by_ref()
            .filter(|(number, _)| *number == field as u8)
            .map(|(_, value)| value)
            .collect();
        assert!(
            !fields.is_malformed(),
            "malformed envelope of {}",
            self.number
        );
        values
    }

    /// What is known of it.
    pub fn facts(&self) -> Facts {
        Facts::decode(self.field(Field::Facts).expect("facts come first")).expect("whole")
    }

    /// The trace field.
    pub fn trace(&self) -> &[u8] {
        &self.payload[self.envelope_bytes..][..usize::from(self.facts().trace_bytes)]
    }

    /// The message as the client sent it.
    pub fn body(&self) -> &[u8] {
        &self.payload[self.envelope_bytes + usize::from(self.facts().trace_bytes)..]
    }
}

/// What a ring holds.
#[derive(Debug)]
pub struct Contents {
    /// Smallest number that a record from the tail on can have.
    pub first_number: u64,
    /// Complete messages by number.
    pub messages: BTreeMap<u64, Stored>,
    /// Where a message begins that is not complete yet.
    pub open_at: Option<u64>,
}

/// Reads records from `from` to `head`; panics at anything that should not be there.
pub fn read(file: &[u8], superblock: &Superblock, from: u64, head: u64) -> Contents {
    let mut contents = Contents {
        first_number: u64::MAX,
        messages: BTreeMap::new(),
        open_at: None,
    };
    let mut scanner = Scanner::new(from);
    while scanner.position < head {
        let complete = scanner.step(file, superblock, head);
        contents.first_number = contents.first_number.min(scanner.last.1);
        if let Some(message) = complete {
            let number = message.number;
            let twice = contents.messages.insert(number, message);
            assert_eq!(twice, None, "number {number} names two messages");
        }
    }
    contents.open_at = scanner.open.map(|(message, _)| message.position);
    contents
}

/// Goes along the records and puts messages together.
#[derive(Clone, Debug)]
pub struct Scanner {
    /// Where the next record is read.
    pub position: u64,
    /// Epoch and number of the last record.
    last: (u32, u64),
    /// The message that is not complete yet, and its fragments so far.
    open: Option<(Stored, u32)>,
}

impl Scanner {
    /// A walk that begins with the record at `from`.
    pub fn new(from: u64) -> Scanner {
        Scanner {
            position: from,
            last: (0, 0),
            open: None,
        }
    }

    /// Reads one record, which ends by `head`; gives the message that it completes. Panics at anything that should
    /// not be there.
    pub fn step(&mut self, file: &[u8], superblock: &Superblock, head: u64) -> Option<Stored> {
        let position = self.position;
        let at = superblock.place(position) as usize;
        let header = file[at..].first_chunk().expect("records are aligned");
        let header = Header::decode(header, superblock.ring_key)
            .unwrap_or_else(|error| panic!("at {position}: {error}"));
        assert_eq!(header.position, position, "a record of another place");
        assert!(
            (header.epoch, header.number) >= self.last,
            "order at {position}"
        );
        assert!(header.end() <= head, "a record that ends behind the head");
        if self.last.0 < header.epoch {
            // What the process before left open stays incomplete.
            self.open = None;
        }
        self.last = (header.epoch, header.number);
        assert_eq!(header.flags & RECORD_LOST, 0, "nothing was damaged");
        self.position = header.end();
        if !matches!(
            header.kind,
            Kind::Message | Kind::First | Kind::Middle | Kind::Last
        ) {
            return None;
        }
        let mut payload = Vec::with_capacity(header.len as usize);
        append(&mut payload, file, superblock, position + 64, header.len);
        assert_eq!(
            crc32c::crc32c(&payload),
            header.payload_crc,
            "payload at {position}"
        );
        let stored = |payload| Stored {
            number: header.number,
            position,
            end: header.end(),
            received_ns: header.received_ns,
            payload,
            envelope_bytes: header.env_len as usize,
            records: vec![(position, header.end())],
        };
        match (header.kind, &mut self.open) {
            (Kind::Message, _) => return Some(stored(payload)),
            (Kind::First, _) => self.open = Some((stored(payload), 1)),
            (Kind::Middle, Some((message, fragments))) => {
                message.payload.extend_from_slice(&payload);
                message.records.push((position, header.end()));
                *fragments += 1;
            }
            (Kind::Last, Some(_)) => {
                let (mut message, fragments) = self.open.take().expect("matched");
                message.payload.extend_from_slice(&payload[WHOLE_BYTES..]);
                message.records.push((position, header.end()));
                message.end = header.end();
                let expected = Whole {
                    number: message.number,
                    first_position: message.position,
                    payload_bytes: message.payload.len() as u64,
                    fragments: fragments + 1,
                    crc: crc32c::crc32c(&message.payload),
                };
                assert_eq!(Whole::decode(&payload), Some(expected));
                return Some(message);
            }
            // Its beginning was overwritten.
            _ => {}
        }
        None
    }
}

fn append(to: &mut Vec<u8>, file: &[u8], superblock: &Superblock, from: u64, len: u32) {
    let end = from + u64::from(len);
    let mut position = from;
    while position < end {
        let before_wrap = superblock.data_size - position % superblock.data_size;
        let take = before_wrap.min(end - position);
        let at = superblock.place(position) as usize;
        to.extend_from_slice(&file[at..at + take as usize]);
        position += take;
    }
}

/// The newest superblock.
pub fn superblock(file: &[u8]) -> Superblock {
    SUPERBLOCK_OFFSETS
        .iter()
        .filter_map(|at| Superblock::decode(file[*at as usize..].first_chunk()?).ok())
        .max_by_key(|superblock| superblock.generation)
        .expect("one of two is always whole")
}
