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
    let bytes = |from: u64, len: u64| {
        let mut taken = Vec::with_capacity(len as usize);
        let mut position = from;
        while position < from + len {
            let before_wrap = superblock.data_size - position % superblock.data_size;
            let take = before_wrap.min(from + len - position);
            let at = superblock.place(position) as usize;
            taken.extend_from_slice(&file[at..at + take as usize]);
            position += take;
        }
        taken
    };
    let mut contents = Contents {
        first_number: u64::MAX,
        messages: BTreeMap::new(),
        open_at: None,
    };
    let mut open: Option<(Stored, u32)> = None;
    let mut position = from;
    let mut last = (0, 0);
    while position < head {
        let header = Header::decode(
            bytes(position, 64).first_chunk().expect("64 bytes"),
            superblock.ring_key,
        )
        .unwrap_or_else(|error| panic!("at {position}: {error}"));
        assert_eq!(header.position, position, "a record of another place");
        assert!((header.epoch, header.number) >= last, "order at {position}");
        last = (header.epoch, header.number);
        contents.first_number = contents.first_number.min(header.number);
        assert_eq!(header.flags & RECORD_LOST, 0, "nothing was damaged");
        let payload = bytes(position + 64, u64::from(header.len));
        if header.kind != Kind::Pad {
            assert_eq!(
                crc32c::crc32c(&payload),
                header.payload_crc,
                "payload at {position}"
            );
        }
        let stored = |payload| Stored {
            number: header.number,
            position,
            end: header.end(),
            payload,
            envelope_bytes: header.env_len as usize,
        };
        let mut add = |message: Stored| {
            let number = message.number;
            let twice = contents.messages.insert(number, message);
            assert_eq!(twice, None, "number {number} names two messages");
        };
        match (header.kind, &mut open) {
            (Kind::Message, _) => add(stored(payload)),
            (Kind::First, _) => open = Some((stored(payload), 1)),
            (Kind::Middle, Some((message, fragments))) => {
                message.payload.extend(payload);
                *fragments += 1;
            }
            (Kind::Last, Some(_)) => {
                let (mut message, fragments) = open.take().expect("matched");
                message.payload.extend(&payload[WHOLE_BYTES..]);
                message.end = header.end();
                let expected = Whole {
                    number: message.number,
                    first_position: message.position,
                    payload_bytes: message.payload.len() as u64,
                    fragments: fragments + 1,
                    crc: crc32c::crc32c(&message.payload),
                };
                assert_eq!(Whole::decode(&payload), Some(expected));
                add(message);
            }
            _ => {}
        }
        position = header.end();
    }
    assert_eq!(position, head, "the last record ends behind the head");
    contents.open_at = open.map(|(message, _)| message.position);
    contents
}

/// Numbers of the complete messages from the tail on, as far as whole headers go, and where each ends.
pub fn ends(file: &[u8], superblock: &Superblock) -> BTreeMap<u64, u64> {
    let mut ends = BTreeMap::new();
    let mut open = None;
    let mut position = superblock.tail;
    loop {
        let at = superblock.place(position) as usize;
        let bytes = file[at..].first_chunk().expect("records are aligned");
        let header = match Header::decode(bytes, superblock.ring_key) {
            Ok(header) if header.position == position => header,
            _ => return ends,
        };
        match (header.kind, open) {
            (Kind::Message, _) => drop(ends.insert(header.number, header.end())),
            (Kind::First, _) => open = Some(header.number),
            (Kind::Last, Some(number)) => drop(ends.insert(number, header.end())),
            _ => {}
        }
        position = header.end();
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
