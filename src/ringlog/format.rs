//! Byte layout of the ring file: superblock and record header, encoding, decoding, checksums.
//!
//! Promises: total (any bytes give a value or an error), no I/O, no allocation. All integers are
//! little-endian, whatever the machine. `docs/ring-log.md` is the normative text; the constants
//! here follow it.
//!
//! Positions are absolute: they count bytes of the log since the ring was created and never wrap.
//! The byte of position `p` lies at `data_offset + p % data_size` of the file.

use std::fmt;

use crate::limits::{
    CONSUMER_NAME_BYTES_MAX, CONSUMERS_MAX, LOG_WRITE_BYTES_MAX, PAGE_BYTES, RECORD_HEADER_BYTES,
};

// Record header, 64 bytes at a 64-byte aligned position, so that it never straddles a 512-byte
// sector:
//
//   0 magic        u32   resynchronises a reader after damage
//   4 header_crc   u32   CRC32C of bytes 8..64
//   8 ring_key     u64   secret of this ring
//  16 position     u64   absolute position of the record
//  24 number       u64   number of this message (MSG, FIRST), or of the next one (other types)
//  32 len          u32   payload bytes, without the zero padding that follows
//  36 payload_crc  u32   CRC32C of the payload, without padding; 0 and not checked for PAD
//  40 epoch        u32   grows with every opening for writing
//  44 type         u8
//  45 flags        u8
//  46 reserved     u16   zero
//  48 env_len      u32   envelope bytes at the front of the payload (MSG, FIRST)
//  52 hint_back    u32   64-byte units back to a position known to be durable; all ones: not known
//  56 received_ns  u64   wall clock of the turn, never decreasing

/// First four bytes of a record header, as a little-endian number: `rMx` and 0x1e, the ASCII record
/// separator.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"rMx\x1e");
/// Alignment of records, bytes.
pub const RECORD_ALIGN: u64 = RECORD_HEADER_BYTES as u64;
/// Largest `len` of a record that carries message bytes. PAD records may be longer.
pub const RECORD_LEN_MAX: u64 = LOG_WRITE_BYTES_MAX;
/// Bytes of [`Whole`] at the front of the payload of a LAST record.
pub const WHOLE_BYTES: usize = 32;
/// `hint_back` of a header that knows of no durable position in reach.
pub const HINT_UNKNOWN: u32 = u32::MAX;

/// Record flag: the message was acknowledged before it was durable (`--survive process` or
/// `nothing`).
pub const RECORD_EARLY: u8 = 1;
/// Record flag of PAD: acknowledged records stood here and were damaged.
pub const RECORD_LOST: u8 = 2;

/// Type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A whole message: envelope, then body.
    Message,
    /// Nothing: to be skipped. Its payload is arbitrary and not checked.
    Pad,
    /// First part of a large message: envelope and the beginning of the body.
    First,
    /// Further part of a large message.
    Middle,
    /// Last part of a large message: [`Whole`], then the end of the body. It makes the message
    /// exist.
    Last,
    /// Written by recovery and when the log becomes idle: carries epoch and hint, no payload.
    Epoch,
    /// 7 to 31, reserved for later minor versions: to be skipped.
    Reserved(u8),
}

impl Kind {
    /// The type's number in the header.
    pub const fn number(self) -> u8 {
        match self {
            Kind::Message => 1,
            Kind::Pad => 2,
            Kind::First => 3,
            Kind::Middle => 4,
            Kind::Last => 5,
            Kind::Epoch => 6,
            Kind::Reserved(number) => number,
        }
    }

    /// The type with this number; `None` for 0 and for 32 and above, which no version writes.
    pub const fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Message,
            2 => Kind::Pad,
            3 => Kind::First,
            4 => Kind::Middle,
            5 => Kind::Last,
            6 => Kind::Epoch,
            7..=31 => Kind::Reserved(number),
            _ => return None,
        })
    }

    /// Whether records of this type take a message number.
    pub const fn takes_number(self) -> bool {
        matches!(self, Kind::Message | Kind::First)
    }
}

/// A decoded record header. The magic, the checksum and the key are not kept: they have been
/// checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Absolute position of the record, a multiple of 64.
    pub position: u64,
    /// Number of this message ([`Kind::takes_number`]), otherwise of the next one. Never decreases
    /// along the log.
    pub number: u64,
    /// Payload bytes without padding.
    pub len: u32,
    /// CRC32C of the payload without padding.
    pub payload_crc: u32,
    /// Epoch of the writer. Never decreases along the log.
    pub epoch: u32,
    /// Type.
    pub kind: Kind,
    /// `RECORD_*` bits; unknown bits are kept.
    pub flags: u8,
    /// Envelope bytes at the front of the payload, at most `len`.
    pub env_len: u32,
    /// See [`Header::durable_hint`].
    pub hint_back: u32,
    /// Nanoseconds since 1970 of the turn that wrote the record. Never decreases along the log.
    pub received_ns: u64,
}

/// Why 64 bytes are no record header of this ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The magic is missing: not a header at all.
    Magic,
    /// The checksum does not fit.
    Checksum,
    /// The header belongs to another ring.
    Key,
    /// The checksum fits and a field has a value that no writer gives it.
    Field(&'static str),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::Magic => f.write_str("no record header"),
            HeaderError::Checksum => f.write_str("record header with a wrong checksum"),
            HeaderError::Key => f.write_str("record header of another ring"),
            HeaderError::Field(name) => write!(f, "record header with an impossible {name}"),
        }
    }
}

impl Header {
    /// Encodes the header, checksum included. `ring_key` is the ring's secret.
    pub fn encode(&self, ring_key: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&ring_key.to_le_bytes());
        out[16..24].copy_from_slice(&self.position.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..36].copy_from_slice(&self.len.to_le_bytes());
        out[36..40].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[40..44].copy_from_slice(&self.epoch.to_le_bytes());
        out[44] = self.kind.number();
        out[45] = self.flags;
        out[48..52].copy_from_slice(&self.env_len.to_le_bytes());
        out[52..56].copy_from_slice(&self.hint_back.to_le_bytes());
        out[56..64].copy_from_slice(&self.received_ns.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and checks 64 bytes. That the record stands where it says is for the caller to
    /// compare ([`Header::position`]), because it alone knows where it read.
    ///
    /// # Errors
    /// [`HeaderError`], in the order magic, checksum, key, fields.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES], ring_key: u64) -> Result<Header, HeaderError> {
        if u32_at(bytes, 0) != RECORD_MAGIC {
            return Err(HeaderError::Magic);
        }
        if u32_at(bytes, 4) != crc32c::crc32c(&bytes[8..]) {
            return Err(HeaderError::Checksum);
        }
        if u64_at(bytes, 8) != ring_key {
            return Err(HeaderError::Key);
        }
        let kind = Kind::from_number(bytes[44]).ok_or(HeaderError::Field("type"))?;
        let header = Header {
            position: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            len: u32_at(bytes, 32),
            payload_crc: u32_at(bytes, 36),
            epoch: u32_at(bytes, 40),
            kind,
            flags: bytes[45],
            env_len: u32_at(bytes, 48),
            hint_back: u32_at(bytes, 52),
            received_ns: u64_at(bytes, 56),
        };
        if !header.position.is_multiple_of(RECORD_ALIGN) || header.position > POSITION_MAX {
            return Err(HeaderError::Field("position"));
        }
        if header.number > POSITION_MAX {
            return Err(HeaderError::Field("number"));
        }
        if header.kind != Kind::Pad && u64::from(header.len) > RECORD_LEN_MAX
            || header.kind == Kind::Last && header.len < WHOLE_BYTES as u32
        {
            return Err(HeaderError::Field("len"));
        }
        if header.env_len > header.len {
            return Err(HeaderError::Field("env_len"));
        }
        Ok(header)
    }

    /// Bytes that the record takes in the ring: header, payload, padding. A multiple of 64.
    pub fn extent(&self) -> u64 {
        record_extent(u64::from(self.len))
    }

    /// Position behind the record.
    pub fn end(&self) -> u64 {
        self.position + self.extent()
    }

    /// A position up to which everything was durable when the record was written, if the header
    /// knows one.
    pub fn durable_hint(&self) -> Option<u64> {
        if self.hint_back == HINT_UNKNOWN {
            return None;
        }
        self.position
            .checked_sub(u64::from(self.hint_back) * RECORD_ALIGN)
    }
}

/// `hint_back` of a record at `position` when everything before `durable` is durable. A distance
/// that does not fit would name a later position than the true one, so it becomes [`HINT_UNKNOWN`].
pub fn hint_back(position: u64, durable: u64) -> u32 {
    u32::try_from(position.saturating_sub(durable) / RECORD_ALIGN).unwrap_or(HINT_UNKNOWN)
}

/// Bytes that a record with `len` bytes of payload takes in the ring.
pub const fn record_extent(len: u64) -> u64 {
    RECORD_ALIGN + len.next_multiple_of(RECORD_ALIGN)
}

/// `position` rounded down to a page.
pub const fn page_floor(position: u64) -> u64 {
    position - position % PAGE_BYTES
}

/// `position` rounded up to a page.
pub const fn page_ceil(position: u64) -> u64 {
    position.next_multiple_of(PAGE_BYTES)
}

/// Positions and numbers stay below this, so that sums of a few of them cannot overflow. At 10 GB/s
/// it lasts for decades.
pub const POSITION_MAX: u64 = 1 << 62;

/// What LAST says about the whole message, in front of the rest of the body.
///
/// Layout: number u64, first_position u64, payload_bytes u64, fragments u32, crc u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Number of the message: that of its FIRST.
    pub number: u64,
    /// Position of its FIRST.
    pub first_position: u64,
    /// Envelope and body bytes of all fragments together, this structure not counted.
    pub payload_bytes: u64,
    /// Number of records of the message, FIRST and LAST included.
    pub fragments: u32,
    /// CRC32C of the payloads of all fragments in order, this structure left out.
    pub crc: u32,
}

impl Whole {
    /// Encodes the structure.
    pub fn encode(&self) -> [u8; WHOLE_BYTES] {
        let mut out = [0; WHOLE_BYTES];
        out[0..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..16].copy_from_slice(&self.first_position.to_le_bytes());
        out[16..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.fragments.to_le_bytes());
        out[28..32].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Decodes the front of the payload of a LAST record; `None` when it is too short.
    pub fn decode(payload: &[u8]) -> Option<Whole> {
        let bytes: &[u8; WHOLE_BYTES] = payload.first_chunk()?;
        Some(Whole {
            number: u64_at(bytes, 0),
            first_position: u64_at(bytes, 8),
            payload_bytes: u64_at(bytes, 16),
            fragments: u32_at(bytes, 24),
            crc: u32_at(bytes, 28),
        })
    }
}

// Superblock, 4,096 bytes:
//
//    0 magic               8 bytes
//    8 crc                 u32   CRC32C of bytes 12..4096
//   12 format_major        u16
//   14 format_minor        u16
//   16 features_incompatible u32 a reader that does not know a bit refuses the ring
//   20 features_read_only  u32   a writer that does not know a bit refuses, a reader goes on
//   24 features_compatible u32   information
//   28 epoch               u32
//   32 ring_id             16 bytes, public
//   48 ring_key            u64, secret
//   56 generation          u64
//   64 data_offset         u64
//   72 data_size           u64
//   80 tail                u64
//   88 tail_messages       u64   messages before the tail since creation
//   96 checkpoint          u64
//  104 checkpoint_number   u64   number of the next message at the checkpoint
//  112 checkpoint_messages u64   messages before the checkpoint since creation
//  120 checkpoint_ns       u64   received_ns of the last record before the checkpoint
//  128 created_ns          u64
//  136 flags               u32   1: clean
//  140 reserved            zero up to 1,024
// 1024 consumers           32 entries of 64 bytes
// 3072 marks               32 entries of 32 bytes

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4_096;
/// Where the two superblocks stand in the file. The valid one with the larger generation counts.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 8_192];
/// First byte of the data area in files that this version creates.
pub const DATA_OFFSET: u64 = 65_536;
/// First bytes of a superblock: not ASCII, and broken by any newline conversion.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"\x89rMx\r\n\x1a\n";
/// Version of the format: a reader refuses a larger major version.
pub const FORMAT_MAJOR: u16 = 1;
/// Minor version: what it adds, older readers may skip.
pub const FORMAT_MINOR: u16 = 0;
/// Marks kept per lap of the ring, see [`Mark`].
pub const MARKS: usize = 32;
/// Superblock flag: the log was closed in order; nothing stands behind the checkpoint.
pub const SUPERBLOCK_CLEAN: u32 = 1;
/// Consumer flag: holds the tail.
pub const CONSUMER_REQUIRED: u32 = 1;

const CONSUMERS_AT: usize = 1_024;
const CONSUMER_BYTES: usize = 64;
const MARKS_AT: usize = CONSUMERS_AT + CONSUMERS_MAX * CONSUMER_BYTES;
const MARK_BYTES: usize = 32;
const _: () = assert!(MARKS_AT + MARKS * MARK_BYTES == SUPERBLOCK_BYTES);
const _: () = assert!(CONSUMER_NAME_BYTES_MAX == 31);

/// Name of a consumer: 1 to 31 of the characters `A-Z a-z 0-9 . _ -`, not beginning with `.` or
/// `-`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConsumerName {
    len: u8,
    bytes: [u8; CONSUMER_NAME_BYTES_MAX],
}

impl ConsumerName {
    /// Checks a name; `None` when it is not one.
    pub fn new(name: &str) -> Option<ConsumerName> {
        let bytes = name.as_bytes();
        if bytes.is_empty()
            || bytes.len() > CONSUMER_NAME_BYTES_MAX
            || matches!(bytes[0], b'.' | b'-')
            || !bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        {
            return None;
        }
        let mut out = ConsumerName {
            len: bytes.len() as u8,
            bytes: [0; CONSUMER_NAME_BYTES_MAX],
        };
        out.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(out)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
}

impl fmt::Debug for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A named consumer and its cursor.
///
/// Entry layout: name length u8 (0: free), name 31 bytes, scan_pos u64, done_pos u64, flags u32,
/// reserved u32, updated_ns u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Name.
    pub name: ConsumerName,
    /// Where reading starts: the FIRST of a message that is still open, or `done_pos`.
    pub scan_pos: u64,
    /// Messages whose completing record stands before this have been delivered.
    pub done_pos: u64,
    /// `CONSUMER_*` bits; unknown bits are kept.
    pub flags: u32,
    /// Nanoseconds since 1970 of the last acknowledgement, registration or seek.
    pub updated_ns: u64,
}

impl Consumer {
    /// Whether the consumer holds the tail.
    pub fn is_required(&self) -> bool {
        self.flags & CONSUMER_REQUIRED != 0
    }
}

/// The first record in one of [`MARKS`] equal parts of a lap: the places to which the tail may move
/// without reading the ring. Part `k` holds the positions from `k * data_size / MARKS` on; its mark
/// is entry `k % MARKS`, and it is meant only if `position` lies in part `k`.
///
/// Entry layout: position u64 plus one (0: none), number u64, messages u64, received_ns u64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Position of the record.
    pub position: u64,
    /// Its number field.
    pub number: u64,
    /// Messages before it since the ring was created.
    pub messages: u64,
    /// Its received_ns.
    pub received_ns: u64,
}

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Feature bits that a reader must know.
    pub features_incompatible: u32,
    /// Feature bits that a writer must know.
    pub features_read_only: u32,
    /// Feature bits that nobody must know.
    pub features_compatible: u32,
    /// Minor version that wrote it.
    pub format_minor: u16,
    /// Largest epoch in use.
    pub epoch: u32,
    /// Public identity of the ring.
    pub ring_id: [u8; 16],
    /// Secret in every record header. Printed, sent and exported nowhere.
    pub ring_key: u64,
    /// Counts the superblocks written; the newest valid one has the largest.
    pub generation: u64,
    /// First byte of the data area in the file.
    pub data_offset: u64,
    /// Bytes of the data area: positive, a multiple of 4,096.
    pub data_size: u64,
    /// Oldest record that is kept.
    pub tail: u64,
    /// Messages before the tail since the ring was created.
    pub tail_messages: u64,
    /// Everything before this position is durable; verification starts here.
    pub checkpoint: u64,
    /// Number of the next message at the checkpoint.
    pub checkpoint_number: u64,
    /// Messages before the checkpoint since the ring was created.
    pub checkpoint_messages: u64,
    /// received_ns of the last record before the checkpoint.
    pub checkpoint_ns: u64,
    /// Nanoseconds since 1970 of the ring's creation.
    pub created_ns: u64,
    /// The log was closed in order.
    pub clean: bool,
    /// Named consumers.
    pub consumers: [Option<Consumer>; CONSUMERS_MAX],
    /// Marks of the current lap.
    pub marks: [Option<Mark>; MARKS],
}

/// Why 4,096 bytes are no usable superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// The magic is missing.
    Magic,
    /// The checksum does not fit: torn or damaged.
    Checksum,
    /// Written by a later major version, or with a feature this version does not know.
    Newer {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
        /// Feature bits that are not known here.
        features: u32,
    },
    /// The checksum fits and a field has a value that no writer gives it.
    Field(&'static str),
}

/// Writes what [`SuperblockError::Newer`] means to whoever runs the program.
pub(super) fn write_newer(
    f: &mut fmt::Formatter<'_>,
    major: u16,
    minor: u16,
    features: u32,
) -> fmt::Result {
    write!(
        f,
        "the ring has format {major}.{minor} with features {features:#x}; use the ringmx version \
         that wrote it, or a later one"
    )
}

impl Superblock {
    /// Encodes into `out`, checksum included.
    pub fn encode_into(&self, out: &mut [u8; SUPERBLOCK_BYTES]) {
        out.fill(0);
        out[0..8].copy_from_slice(&SUPERBLOCK_MAGIC);
        out[12..14].copy_from_slice(&FORMAT_MAJOR.to_le_bytes());
        out[14..16].copy_from_slice(&self.format_minor.to_le_bytes());
        out[16..20].copy_from_slice(&self.features_incompatible.to_le_bytes());
        out[20..24].copy_from_slice(&self.features_read_only.to_le_bytes());
        out[24..28].copy_from_slice(&self.features_compatible.to_le_bytes());
        out[28..32].copy_from_slice(&self.epoch.to_le_bytes());
        out[32..48].copy_from_slice(&self.ring_id);
        out[48..56].copy_from_slice(&self.ring_key.to_le_bytes());
        out[56..64].copy_from_slice(&self.generation.to_le_bytes());
        out[64..72].copy_from_slice(&self.data_offset.to_le_bytes());
        out[72..80].copy_from_slice(&self.data_size.to_le_bytes());
        out[80..88].copy_from_slice(&self.tail.to_le_bytes());
        out[88..96].copy_from_slice(&self.tail_messages.to_le_bytes());
        out[96..104].copy_from_slice(&self.checkpoint.to_le_bytes());
        out[104..112].copy_from_slice(&self.checkpoint_number.to_le_bytes());
        out[112..120].copy_from_slice(&self.checkpoint_messages.to_le_bytes());
        out[120..128].copy_from_slice(&self.checkpoint_ns.to_le_bytes());
        out[128..136].copy_from_slice(&self.created_ns.to_le_bytes());
        let flags = if self.clean { SUPERBLOCK_CLEAN } else { 0 };
        out[136..140].copy_from_slice(&flags.to_le_bytes());
        for (consumer, entry) in self
            .consumers
            .iter()
            .zip(out[CONSUMERS_AT..MARKS_AT].chunks_exact_mut(CONSUMER_BYTES))
        {
            let Some(consumer) = consumer else { continue };
            entry[0] = consumer.name.len;
            entry[1..32].copy_from_slice(&consumer.name.bytes);
            entry[32..40].copy_from_slice(&consumer.scan_pos.to_le_bytes());
            entry[40..48].copy_from_slice(&consumer.done_pos.to_le_bytes());
            entry[48..52].copy_from_slice(&consumer.flags.to_le_bytes());
            entry[56..64].copy_from_slice(&consumer.updated_ns.to_le_bytes());
        }
        for (mark, entry) in self
            .marks
            .iter()
            .zip(out[MARKS_AT..].chunks_exact_mut(MARK_BYTES))
        {
            let Some(mark) = mark else { continue };
            entry[0..8].copy_from_slice(&(mark.position + 1).to_le_bytes());
            entry[8..16].copy_from_slice(&mark.number.to_le_bytes());
            entry[16..24].copy_from_slice(&mark.messages.to_le_bytes());
            entry[24..32].copy_from_slice(&mark.received_ns.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Encodes the superblock.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut out = [0; SUPERBLOCK_BYTES];
        self.encode_into(&mut out);
        out
    }

    /// Decodes and checks a superblock.
    ///
    /// # Errors
    /// [`SuperblockError`], in the order magic, checksum, version, fields.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Superblock, SuperblockError> {
        if bytes[0..8] != SUPERBLOCK_MAGIC {
            return Err(SuperblockError::Magic);
        }
        if u32_at(bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Err(SuperblockError::Checksum);
        }
        let (major, minor) = (u16_at(bytes, 12), u16_at(bytes, 14));
        let features = u32_at(bytes, 16);
        if major > FORMAT_MAJOR || features != 0 {
            return Err(SuperblockError::Newer {
                major,
                minor,
                features,
            });
        }
        let mut ring_id = [0; 16];
        ring_id.copy_from_slice(&bytes[32..48]);
        let superblock = Superblock {
            features_incompatible: features,
            features_read_only: u32_at(bytes, 20),
            features_compatible: u32_at(bytes, 24),
            format_minor: minor,
            epoch: u32_at(bytes, 28),
            ring_id,
            ring_key: u64_at(bytes, 48),
            generation: u64_at(bytes, 56),
            data_offset: u64_at(bytes, 64),
            data_size: u64_at(bytes, 72),
            tail: u64_at(bytes, 80),
            tail_messages: u64_at(bytes, 88),
            checkpoint: u64_at(bytes, 96),
            checkpoint_number: u64_at(bytes, 104),
            checkpoint_messages: u64_at(bytes, 112),
            checkpoint_ns: u64_at(bytes, 120),
            created_ns: u64_at(bytes, 128),
            clean: u32_at(bytes, 136) & SUPERBLOCK_CLEAN != 0,
            consumers: decode_consumers(&bytes[CONSUMERS_AT..MARKS_AT])?,
            marks: decode_marks(&bytes[MARKS_AT..])?,
        };
        superblock.check()?;
        Ok(superblock)
    }

    fn check(&self) -> Result<(), SuperblockError> {
        let aligned = |position: u64| position.is_multiple_of(RECORD_ALIGN);
        if self.data_size < MARKS as u64 * RECORD_ALIGN
            || self.data_size > POSITION_MAX
            || !self.data_size.is_multiple_of(PAGE_BYTES)
        {
            return Err(SuperblockError::Field("data_size"));
        }
        if self.data_offset < SUPERBLOCK_OFFSETS[1] + SUPERBLOCK_BYTES as u64
            || self.data_offset > POSITION_MAX
            || !self.data_offset.is_multiple_of(PAGE_BYTES)
        {
            return Err(SuperblockError::Field("data_offset"));
        }
        if self.generation > POSITION_MAX {
            return Err(SuperblockError::Field("generation"));
        }
        if self.checkpoint > POSITION_MAX
            || !aligned(self.checkpoint)
            || self.checkpoint_number > POSITION_MAX
            || self.checkpoint_messages > self.checkpoint_number
        {
            return Err(SuperblockError::Field("checkpoint"));
        }
        if self.tail > self.checkpoint
            || !aligned(self.tail)
            || self.checkpoint - self.tail > self.data_size
            || self.tail_messages > self.checkpoint_messages
        {
            return Err(SuperblockError::Field("tail"));
        }
        let cursors_fit = self.consumers.iter().flatten().all(|consumer| {
            consumer.scan_pos <= consumer.done_pos
                && consumer.done_pos <= self.checkpoint
                && aligned(consumer.scan_pos)
                && aligned(consumer.done_pos)
                && (!consumer.is_required() || consumer.scan_pos >= self.tail)
        });
        if !cursors_fit {
            return Err(SuperblockError::Field("consumer"));
        }
        Ok(())
    }

    /// Where the byte of `position` lies in the file.
    pub fn place(&self, position: u64) -> u64 {
        self.data_offset + position % self.data_size
    }
}

fn decode_consumers(bytes: &[u8]) -> Result<[Option<Consumer>; CONSUMERS_MAX], SuperblockError> {
    let mut consumers = [None; CONSUMERS_MAX];
    for (consumer, entry) in consumers.iter_mut().zip(bytes.chunks_exact(CONSUMER_BYTES)) {
        let len = usize::from(entry[0]);
        if len == 0 {
            continue;
        }
        let name = entry[1..32]
            .get(..len)
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(ConsumerName::new)
            .ok_or(SuperblockError::Field("consumer"))?;
        *consumer = Some(Consumer {
            name,
            scan_pos: u64_at(entry, 32),
            done_pos: u64_at(entry, 40),
            flags: u32_at(entry, 48),
            updated_ns: u64_at(entry, 56),
        });
    }
    Ok(consumers)
}

fn decode_marks(bytes: &[u8]) -> Result<[Option<Mark>; MARKS], SuperblockError> {
    let mut marks = [None; MARKS];
    for (mark, entry) in marks.iter_mut().zip(bytes.chunks_exact(MARK_BYTES)) {
        let Some(position) = u64_at(entry, 0).checked_sub(1) else {
            continue;
        };
        if position > POSITION_MAX || !position.is_multiple_of(RECORD_ALIGN) {
            return Err(SuperblockError::Field("mark"));
        }
        *mark = Some(Mark {
            position,
            number: u64_at(entry, 8),
            messages: u64_at(entry, 16),
            received_ns: u64_at(entry, 24),
        });
    }
    Ok(marks)
}

// The callers index fixed-size arrays or exact chunks, so the ranges are always inside.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            position: 64 * 1_000,
            number: 7,
            len: 1_234,
            payload_crc: 0x0102_0304,
            epoch: 3,
            kind: Kind::Message,
            flags: RECORD_EARLY,
            env_len: 200,
            hint_back: 16,
            received_ns: 1_795_395_723_456_789_012,
        }
    }

    fn superblock() -> Superblock {
        let mut consumers = [None; CONSUMERS_MAX];
        consumers[3] = Some(Consumer {
            name: ConsumerName::new("to-maildir").unwrap(),
            scan_pos: 128,
            done_pos: 256,
            flags: CONSUMER_REQUIRED,
            updated_ns: 9,
        });
        let mut marks = [None; MARKS];
        marks[0] = Some(Mark {
            position: 0,
            number: 1,
            messages: 0,
            received_ns: 5,
        });
        Superblock {
            features_incompatible: 0,
            features_read_only: 0,
            features_compatible: 4,
            format_minor: FORMAT_MINOR,
            epoch: 2,
            ring_id: *b"0123456789abcdef",
            ring_key: 0x1122_3344_5566_7788,
            generation: 9,
            data_offset: DATA_OFFSET,
            data_size: 65_536,
            tail: 64,
            tail_messages: 1,
            checkpoint: 640,
            checkpoint_number: 5,
            checkpoint_messages: 4,
            checkpoint_ns: 77,
            created_ns: 1,
            clean: true,
            consumers,
            marks,
        }
    }

    #[test]
    fn header_reads_back_as_written() {
        let header = header();
        assert_eq!(Header::decode(&header.encode(42), 42), Ok(header));
        assert_eq!(header.extent(), 64 + 1_280);
        assert_eq!(header.end(), 64_000 + 64 + 1_280);
        assert_eq!(header.durable_hint(), Some(64_000 - 16 * 64));
    }

    #[test]
    fn header_with_any_bit_flipped_is_refused() {
        let good = header().encode(42);
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 42).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&good, 43), Err(HeaderError::Key));
    }

    #[test]
    fn header_with_a_fitting_checksum_and_impossible_fields_is_refused() {
        let field = |change: fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Header::decode(&header.encode(42), 42)
        };
        assert_eq!(
            field(|h| h.position = 32),
            Err(HeaderError::Field("position"))
        );
        assert_eq!(
            field(|h| h.position = u64::MAX - 63),
            Err(HeaderError::Field("position"))
        );
        assert_eq!(
            field(|h| h.number = u64::MAX),
            Err(HeaderError::Field("number"))
        );
        assert_eq!(
            field(|h| h.env_len = 1_235),
            Err(HeaderError::Field("env_len"))
        );
        assert_eq!(field(|h| h.len = u32::MAX), Err(HeaderError::Field("len")));
        assert_eq!(
            field(|h| {
                h.kind = Kind::Last;
                h.len = 31;
                h.env_len = 0;
            }),
            Err(HeaderError::Field("len"))
        );
        assert_eq!(
            field(|h| h.kind = Kind::Reserved(32)),
            Err(HeaderError::Field("type"))
        );
        assert_eq!(
            field(|h| h.kind = Kind::Reserved(31)).map(|h| h.kind),
            Ok(Kind::Reserved(31))
        );
    }

    #[test]
    fn hint_that_does_not_fit_is_unknown_and_never_a_later_position() {
        assert_eq!(hint_back(640, 64), 9);
        assert_eq!(hint_back(640, 640), 0);
        let far = RECORD_ALIGN * u64::from(u32::MAX);
        assert_eq!(hint_back(far, 0), HINT_UNKNOWN);
        assert_eq!(hint_back(far + 64, 0), HINT_UNKNOWN);
        assert_eq!(hint_back(far - 64, 0), u32::MAX - 1);
        let mut header = header();
        header.hint_back = HINT_UNKNOWN;
        assert_eq!(header.durable_hint(), None);
        header.hint_back = 1_001;
        assert_eq!(header.durable_hint(), None, "before the beginning");
    }

    #[test]
    fn superblock_reads_back_as_written_and_any_flipped_byte_is_refused() {
        let superblock = superblock();
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes), Ok(superblock));
        for at in 0..bytes.len() {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn superblock_of_a_later_format_is_told_apart_from_damage() {
        let mut bytes = superblock().encode();
        bytes[12] = 2;
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            Superblock::decode(&bytes),
            Err(SuperblockError::Newer {
                major: 2,
                minor: 0,
                features: 0
            })
        );
        let mut featured = superblock();
        featured.features_incompatible = 8;
        assert_eq!(
            Superblock::decode(&featured.encode()),
            Err(SuperblockError::Newer {
                major: 1,
                minor: 0,
                features: 8
            })
        );
    }

    #[test]
    fn superblock_with_impossible_positions_is_refused() {
        let field = |change: fn(&mut Superblock)| {
            let mut superblock = superblock();
            change(&mut superblock);
            Superblock::decode(&superblock.encode())
        };
        let refused = |name| Err(SuperblockError::Field(name));
        assert_eq!(field(|s| s.data_size = 0), refused("data_size"));
        assert_eq!(field(|s| s.data_size = 65_537), refused("data_size"));
        assert_eq!(field(|s| s.data_offset = 64), refused("data_offset"));
        assert_eq!(field(|s| s.checkpoint = u64::MAX), refused("checkpoint"));
        assert_eq!(field(|s| s.tail = 704), refused("tail"));
        assert_eq!(field(|s| s.checkpoint += 65_536), refused("tail"));
        assert_eq!(field(|s| s.tail = 192), refused("consumer"));
    }

    #[test]
    fn whole_reads_back_as_written() {
        let whole = Whole {
            number: 1,
            first_position: 64,
            payload_bytes: 3,
            fragments: 4,
            crc: 5,
        };
        assert_eq!(Whole::decode(&whole.encode()), Some(whole));
        assert_eq!(Whole::decode(&whole.encode()[..31]), None);
    }

    #[test]
    fn consumer_names_are_short_and_plain() {
        assert_eq!(ConsumerName::new("a.b_c-9").unwrap().as_str(), "a.b_c-9");
        for bad in [
            "",
            ".hidden",
            "-flag",
            "a b",
            "a/b",
            "\u{e9}",
            &"x".repeat(32),
        ] {
            assert_eq!(ConsumerName::new(bad), None, "{bad:?}");
        }
        assert!(ConsumerName::new(&"x".repeat(31)).is_some());
    }
}
