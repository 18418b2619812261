//! Saving what is whole from a ring that is damaged, whatever of it is left.
//!
//! Promises: writes nothing; gives out a message only when every checksum of it fits and each of its
//! records stands where its header says; goes on behind unreadable, missing, zeroed and foreign
//! bytes; needs no superblock. Does not: lock, or decide what was acknowledged beyond what hints and
//! the checkpoint prove.
//!
//! ```text
//! look      both superblocks; without a valid one, the ring's key is the one whose records cover
//!           most bytes, and the size that of the file or what the positions agree on
//! survey    every header of the data area: newest position, largest hint
//! walk      from the tail (or a lap before the newest header) to the newest, one good record after
//!           the other; where none stands, on in 64-byte steps
//! ```
//! Bounds: one window of [`WINDOW_BYTES`], one message, [`LIST_MAX`] ranges; the area is read twice,
//! three times without a superblock, plus large messages once more.

use std::convert::Infallible;
use std::fmt;

use super::backing::{self, Backing};
use super::format::{
    DATA_OFFSET, Header, Kind, RECORD_ALIGN, RECORD_LEN_MAX, RECORD_LOST, RECORD_MAGIC,
    SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, SuperblockError, WHOLE_BYTES, Whole,
    write_newer,
};
use super::reader::{BadRecord, Message};
use crate::limits::{
    ENVELOPE_BYTES_MAX, GIB, KIB, MIB, PAGE_BYTES, RECORD_HEADER_BYTES, RESCUE_LIST_MAX,
};

/// Bytes read at a time.
pub const WINDOW_BYTES: usize = 1 << 20;
/// Damaged ranges, incomplete messages and unreadable ranges that are listed; more are counted.
pub const LIST_MAX: usize = RESCUE_LIST_MAX;
/// Bytes of the largest message that is put together: more than any server takes.
const MESSAGE_BYTES_MAX: u64 = 2 * GIB + ENVELOPE_BYTES_MAX as u64;
/// Keys weighed against each other when no superblock is left.
const KEYS_MAX: usize = 64;
/// Divisors that are tried for the size of a ring that was cut and has no superblock.
const PARTS_MAX: u64 = 1 << 20;
/// Bytes read at a time where a whole window can't be.
const PIECE_BYTES: usize = PAGE_BYTES as usize;

/// What one of the two superblocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockState {
    /// Valid.
    Good {
        /// Its generation; the larger one counts.
        generation: u64,
    },
    /// The magic is there and the rest does not fit.
    Damaged,
    /// Nothing of a superblock.
    Absent,
    /// The storage could not read it.
    Unreadable,
}

/// Where the ring's key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A valid superblock.
    Superblock,
    /// The records: this key covers `bytes` of them, other keys `other_bytes`.
    Records {
        /// Bytes of whole records that carry it.
        bytes: u64,
        /// Bytes of whole records that carry another.
        other_bytes: u64,
    },
}

/// Why nothing can be saved.
#[derive(Debug)]
pub enum RescueError {
    /// No valid superblock and not one whole record.
    NothingFound,
    /// A later version wrote the ring: its rules are not known here.
    NewerFormat {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
        /// Feature bits.
        features: u32,
    },
    /// Even the length is no use: not a data area's beginning.
    TooShort {
        /// Bytes of the file.
        bytes: u64,
    },
}

impl fmt::Display for RescueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RescueError::NothingFound => {
                f.write_str("there is no valid superblock and not one whole record")
            }
            RescueError::NewerFormat {
                major,
                minor,
                features,
            } => write_newer(f, *major, *minor, *features),
            RescueError::TooShort { bytes } => {
                write!(f, "{bytes} bytes are too few for a ring")
            }
        }
    }
}

impl std::error::Error for RescueError {}

/// Which messages are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct RescueOptions {
    /// Also those that stand before the tail: released to be overwritten, and not overwritten yet.
    pub released: bool,
    /// Size of the data area where no superblock tells it, bytes. Otherwise that of the file.
    pub data_size: Option<u64>,
    /// Shard, for the ids of messages.
    pub shard: u32,
}

/// What a message is to its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Part of the log: recovery would keep it. Without a superblock, perhaps released.
    Kept,
    /// Whole, but behind a gap that begins where nothing proves that anything was acknowledged:
    /// recovery would discard it.
    Unconfirmed,
    /// Before the tail: every consumer had it, or policy gave it up.
    Released,
}

/// Why a range holds no good record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// What stands at its beginning.
    Bad(BadRecord),
    /// The storage could not read it.
    Unreadable,
    /// The file ends before it.
    Missing,
    /// `--accept-loss` gave it up earlier.
    GivenUp,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Bad(bad) => bad.fmt(f),
            Reason::Unreadable => f.write_str("the storage cannot read it"),
            Reason::Missing => f.write_str("the file ends before it"),
            Reason::GivenUp => f.write_str("given up earlier by --accept-loss"),
        }
    }
}

/// A range without good records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First position of the range.
    pub from: u64,
    /// Position behind it.
    pub to: u64,
    /// What stands at `from`.
    pub reason: Reason,
    /// A hint or the checkpoint proves that acknowledged records stood here. Otherwise the range is
    /// behind the end of the log, where writes were under way.
    pub acknowledged: bool,
    /// Smallest number of a message that may be missing; `None` when nothing tells.
    pub first_number: Option<u64>,
    /// Largest; `None` when nothing tells. Less than the smallest: no message is missing.
    pub last_number: Option<u64>,
    /// No recovery stood in the range, so that every number between the two was used.
    pub certain: bool,
}

/// A large message of which not all records are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// Its number.
    pub number: u64,
    /// Position of its FIRST.
    pub position: u64,
    /// Damage stands between its records. Otherwise it was never completed, and so never
    /// acknowledged.
    pub damaged: bool,
}

/// What a rescue found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The superblocks.
    pub slots: [SuperblockState; 2],
    /// Where the key comes from.
    pub key: KeySource,
    /// Public identity; zeros when nothing tells it.
    pub ring_id: [u8; 16],
    /// Bytes of the data area.
    pub data_size: u64,
    /// Bytes that the file should have and does not.
    pub missing_bytes: u64,
    /// The tail, when a superblock tells it and it still holds.
    pub tail: Option<u64>,
    /// Where the walk began.
    pub start: u64,
    /// Behind the newest record.
    pub end: u64,
    /// Everything before this position was durable.
    pub hint: u64,
    /// Larger than every number seen.
    pub next_number: u64,
    /// Good records passed.
    pub records: u64,
    /// Messages given out, by [`State`]: kept, unconfirmed, released.
    pub messages: [u64; 3],
    /// Octets of their bodies, likewise.
    pub octets: [u64; 3],
    /// Messages from the tail to the checkpoint, as the superblock counts them.
    pub messages_expected: Option<u64>,
    /// Of the messages kept, those whose last record ends by the checkpoint.
    pub messages_expected_found: u64,
    /// Ranges without good records, in order; at most [`LIST_MAX`].
    pub damage: Vec<Damage>,
    /// Ranges that the list leaves out.
    pub damage_omitted: u64,
    /// Bytes of all acknowledged ranges.
    pub damaged_bytes: u64,
    /// Large messages that are not whole, at most [`LIST_MAX`].
    pub incomplete: Vec<Incomplete>,
    /// Ranges of the file that the storage could not read (first byte, byte behind), at most
    /// [`LIST_MAX`].
    pub unreadable: Vec<(u64, u64)>,
}

impl Report {
    /// Whether everything that was acknowledged and is still kept has been given out, as far as
    /// hints and checkpoint tell. Without a superblock that knows the tail nobody can say.
    pub fn is_whole(&self) -> bool {
        let acknowledged = self.damage.iter().any(|damage| damage.acknowledged);
        let broken = self.incomplete.iter().any(|message| message.damaged);
        self.tail.is_some()
            && self.missing_bytes == 0
            && self.damage_omitted == 0
            && self.unreadable.is_empty()
            && !acknowledged
            && !broken
    }
}

/// A ring that is being rescued.
#[derive(Debug)]
pub struct Rescue<'a, B: Backing> {
    area: Area<'a, B>,
    options: RescueOptions,
    superblock: Option<Superblock>,
    report: Report,
    ring_key: u64,
    /// Records of at least this position have at least this epoch.
    epoch_from: u64,
    epoch_min: u32,
}

/// What is known at a place of the walk.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    position: u64,
    epoch: u32,
    /// Number of the next message, once a record told it.
    number: Option<u64>,
}

impl Cursor {
    fn pass(&mut self, header: &Header) {
        self.position = header.end();
        self.epoch = header.epoch;
        self.number = Some(header.number + u64::from(header.kind.takes_number()));
    }
}

/// A stretch without good records that has not ended yet.
#[derive(Clone, Copy, Debug)]
struct Gap {
    before: Cursor,
    reason: Reason,
    /// A header that is good but for its payload, at the beginning.
    header: Option<Header>,
}

enum Large {
    Whole(Box<Message>),
    Incomplete { damaged: bool },
}

/// What stands in the two places of the superblocks.
struct Superblocks {
    slots: [SuperblockState; 2],
    /// The valid one with the greater generation.
    newest: Option<Superblock>,
    /// The octets of both, whatever they are; zeros where they cannot be read.
    remains: [[u8; SUPERBLOCK_BYTES]; 2],
}

impl Superblocks {
    fn read<B: Backing>(backing: &B) -> Result<Superblocks, RescueError> {
        let mut superblocks = Superblocks {
            slots: [SuperblockState::Absent; 2],
            newest: None,
            remains: [[0; SUPERBLOCK_BYTES]; 2],
        };
        let Superblocks {
            slots,
            newest,
            remains,
        } = &mut superblocks;
        for ((slot, bytes), at) in slots.iter_mut().zip(remains).zip(SUPERBLOCK_OFFSETS) {
            if backing::read_exact_at(backing, bytes, at).is_err() {
                *slot = SuperblockState::Unreadable;
                continue;
            }
            *slot = match Superblock::decode(bytes) {
                Ok(superblock) => {
                    let generation = superblock.generation;
                    if newest
                        .as_ref()
                        .is_none_or(|newest| newest.generation < generation)
                    {
                        *newest = Some(superblock);
                    }
                    SuperblockState::Good { generation }
                }
                Err(SuperblockError::Newer {
                    major,
                    minor,
                    features,
                }) => {
                    return Err(RescueError::NewerFormat {
                        major,
                        minor,
                        features,
                    });
                }
                Err(SuperblockError::Magic) => SuperblockState::Absent,
                Err(SuperblockError::Checksum | SuperblockError::Field(_)) => {
                    SuperblockState::Damaged
                }
            };
        }
        Ok(superblocks)
    }
}

/// The id of the ring with this key: a damaged superblock that names the same key names the ring as well, unless the
/// other one names it otherwise. Zeros when it is not known.
fn ring_id_beside(ring_key: u64, remains: &[[u8; SUPERBLOCK_BYTES]]) -> [u8; 16] {
    let mut ids = remains.iter().filter_map(|bytes| {
        let key: [u8; 8] = bytes.get(48..56)?.try_into().ok()?;
        let id: [u8; 16] = bytes.get(32..48)?.try_into().ok()?;
        (u64::from_le_bytes(key) == ring_key).then_some(id)
    });
    let id = ids.next().unwrap_or_default();
    match ids.all(|other| other == id) {
        true => id,
        false => [0; 16],
    }
}

impl<'a, B: Backing> Rescue<'a, B> {
    /// Looks at the ring: superblocks, key, size, newest record. Reads the data area once, or twice
    /// without a superblock.
    ///
    /// # Errors
    /// [`RescueError`]. What the storage cannot read is no error but part of the report.
    pub fn look(backing: &'a B, options: RescueOptions) -> Result<Rescue<'a, B>, RescueError> {
        let len = backing.len();
        if len < DATA_OFFSET + RECORD_ALIGN {
            return Err(RescueError::TooShort { bytes: len });
        }
        let Superblocks {
            slots,
            newest: found,
            remains,
        } = Superblocks::read(backing)?;
        let mut area = Area::new(backing, DATA_OFFSET, len - DATA_OFFSET);
        let (ring_key, key, ring_id) = match &found {
            Some(superblock) => {
                area.offset = superblock.data_offset;
                area.size = superblock.data_size;
                (
                    superblock.ring_key,
                    KeySource::Superblock,
                    superblock.ring_id,
                )
            }
            None => {
                let keys = area.find_key(options.data_size)?;
                let id = ring_id_beside(keys.key, &remains);
                let source = KeySource::Records {
                    bytes: keys.bytes,
                    other_bytes: keys.other_bytes,
                };
                (keys.key, source, id)
            }
        };
        let missing_bytes = (area.offset + area.size).saturating_sub(len);
        let report = Report {
            slots,
            key,
            ring_id,
            data_size: area.size,
            missing_bytes,
            tail: None,
            start: 0,
            end: 0,
            hint: 0,
            next_number: 1,
            records: 0,
            messages: [0; 3],
            octets: [0; 3],
            messages_expected: None,
            messages_expected_found: 0,
            damage: Vec::new(),
            damage_omitted: 0,
            damaged_bytes: 0,
            incomplete: Vec::new(),
            unreadable: Vec::new(),
        };
        let mut rescue = Rescue {
            area,
            options,
            superblock: found,
            report,
            ring_key,
            epoch_from: u64::MAX,
            epoch_min: 0,
        };
        rescue.survey();
        Ok(rescue)
    }

    /// What was found; complete after [`Rescue::walk`].
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The newest valid superblock, if there is one.
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblock.as_ref()
    }

    /// Looks at every header of the area, whatever its lap.
    fn survey(&mut self) {
        let (mut newest, mut end, mut hint, mut next_number) = (None, 0, 0, 1);
        let mut place = 0;
        while place < self.area.size {
            place = self.area.skip_missing(place);
            let Some(header) = self.area.header(place, self.ring_key) else {
                place += RECORD_ALIGN;
                continue;
            };
            if header.position % self.area.size != place || header.extent() > self.area.size {
                place += RECORD_ALIGN;
                continue;
            }
            newest = newest.max(Some(header.position));
            end = header.end().max(end);
            hint = hint.max(header.durable_hint().unwrap_or(0));
            next_number = next_number.max(header.number + u64::from(header.kind.takes_number()));
            // What lies inside is payload, or was overwritten by something newer that stands before
            // this header; a damaged length can't get here.
            place += RECORD_ALIGN;
        }
        // The oldest position that the newest header leaves room for.
        let lap_before = newest.map_or(0, |newest| {
            (newest + RECORD_ALIGN).saturating_sub(self.area.size)
        });
        let report = &mut self.report;
        report.start = lap_before;
        report.end = end;
        report.hint = hint.min(end);
        report.next_number = next_number;
        if let Some(superblock) = &self.superblock {
            report.next_number = next_number.max(superblock.checkpoint_number);
            report.end = end.max(superblock.checkpoint);
            report.hint = report.hint.max(superblock.checkpoint);
            if superblock.tail >= lap_before {
                report.tail = Some(superblock.tail);
                report.messages_expected =
                    Some(superblock.checkpoint_messages - superblock.tail_messages);
                if !self.options.released {
                    report.start = superblock.tail;
                }
            }
            // An older superblock may have been overtaken by later epochs, but by none before it.
            self.epoch_from = superblock.checkpoint;
            self.epoch_min = superblock.epoch;
        }
    }

    /// Gives every whole message to `each`, ordered by number; what is wrong goes into the report.
    /// Bounds: one message in memory.
    ///
    /// # Errors
    /// The first one of `each`; the report is then incomplete.
    pub fn walk<E>(
        &mut self,
        each: &mut dyn FnMut(Message, State) -> Result<(), E>,
    ) -> Result<(), E> {
        let tail = self.report.tail;
        let mut cursor = Cursor {
            position: self.report.start,
            ..Cursor::default()
        };
        if tail == Some(cursor.position) {
            cursor.number = self.number_at_tail();
        }
        let mut gap: Option<Gap> = None;
        let mut unconfirmed = false;
        let mut payload = Vec::new();
        while cursor.position < self.report.end {
            if Some(cursor.position) == tail && self.options.released && tail != Some(0) {
                // What stood before it is judged by other rules.
                gap = None;
                cursor.epoch = 0;
                cursor.number = self.number_at_tail();
            }
            let limit = self.limit(&cursor);
            match self.record(&cursor, limit, &mut payload) {
                Ok(header) => {
                    if let Some(gap) = gap.take() {
                        unconfirmed |= self.close_gap(&gap, header.position, Some(&header));
                    }
                    self.report.records += 1;
                    let state = self.state(header.position, unconfirmed);
                    if is_lost(&header) && state != State::Released {
                        self.given_up(&cursor, &header);
                    }
                    cursor.pass(&header);
                    match header.kind {
                        Kind::Message => {
                            let bytes = std::mem::take(&mut payload);
                            let message = self.message(&header, header.end(), bytes);
                            self.count(&message, state);
                            each(message, state)?;
                        }
                        Kind::First => {
                            let bytes = std::mem::take(&mut payload);
                            match self.large(cursor, &header, bytes) {
                                Large::Whole(message) => {
                                    self.count(&message, state);
                                    each(*message, state)?;
                                }
                                Large::Incomplete { damaged } => {
                                    self.incomplete(&header, damaged, state);
                                }
                            }
                        }
                        _ => {}
                    }
                }
                Err((reason, header)) => {
                    gap.get_or_insert(Gap {
                        before: cursor,
                        reason,
                        header,
                    });
                    let next = self.after_bad(cursor.position);
                    cursor.position = match tail {
                        Some(tail) if cursor.position < tail => next.min(tail),
                        _ => next,
                    };
                }
            }
        }
        if let Some(gap) = gap {
            self.close_gap(&gap, self.report.end, None);
        }
        self.report.unreadable = std::mem::take(&mut self.area.unreadable);
        Ok(())
    }

    /// No record of the walk runs past this position.
    fn limit(&self, cursor: &Cursor) -> u64 {
        match self.report.tail {
            Some(tail) if cursor.position < tail => tail,
            _ => self.report.end.max(cursor.position),
        }
    }

    fn state(&self, position: u64, unconfirmed: bool) -> State {
        match self.report.tail {
            Some(tail) if position < tail => State::Released,
            _ if unconfirmed => State::Unconfirmed,
            _ => State::Kept,
        }
    }

    fn number_at_tail(&self) -> Option<u64> {
        let superblock = self.superblock.as_ref()?;
        if superblock.tail == 0 {
            return Some(1);
        }
        let mut marks = superblock.marks.iter().flatten();
        let mark = marks.find(|mark| mark.position == superblock.tail)?;
        Some(mark.number)
    }

    /// Where to look next behind a position without a good record.
    fn after_bad(&mut self, position: u64) -> u64 {
        let place = (position + RECORD_ALIGN) % self.area.size;
        position + RECORD_ALIGN + (self.area.skip_missing(place) - place)
    }

    /// The good record at the cursor, its payload in `payload`; or why there is none, and its header
    /// when only the payload is bad.
    fn record(
        &mut self,
        cursor: &Cursor,
        limit: u64,
        payload: &mut Vec<u8>,
    ) -> Result<Header, (Reason, Option<Header>)> {
        let position = cursor.position;
        let bad = |bad| (Reason::Bad(bad), None);
        let block = self.area.block(position).map_err(|reason| (reason, None))?;
        let header =
            Header::decode(&block, self.ring_key).map_err(|error| bad(BadRecord::Header(error)))?;
        if header.position != position {
            return Err(bad(BadRecord::Position));
        }
        if header.end() > limit || header.extent() > self.area.size {
            return Err(bad(BadRecord::Length));
        }
        if header.epoch < cursor.epoch
            || cursor.number.is_some_and(|number| header.number < number)
            || position >= self.epoch_from && header.epoch < self.epoch_min
        {
            return Err(bad(BadRecord::Order));
        }
        payload.clear();
        if header.kind == Kind::Pad {
            return Ok(header);
        }
        match self.area.payload(&header, payload) {
            Ok(true) => Ok(header),
            Ok(false) => Err((Reason::Bad(BadRecord::Payload), Some(header))),
            Err(reason) => Err((reason, Some(header))),
        }
    }

    fn message(&self, first: &Header, end: u64, bytes: Vec<u8>) -> Message {
        let mut message = Message::new(
            self.report.ring_id,
            self.options.shard,
            first.number,
            bytes,
            first.env_len as usize,
        );
        message.position = first.position;
        message.end = end;
        message.received_ns = first.received_ns;
        message
    }

    fn count(&mut self, message: &Message, state: State) {
        let report = &mut self.report;
        report.messages[state as usize] += 1;
        report.octets[state as usize] += message.body().len() as u64;
        let checkpoint = self
            .superblock
            .as_ref()
            .map_or(0, |superblock| superblock.checkpoint);
        if state == State::Kept && message.end <= checkpoint {
            report.messages_expected_found += 1;
        }
    }

    fn incomplete(&mut self, first: &Header, damaged: bool, state: State) {
        if state != State::Released && self.report.incomplete.len() < LIST_MAX {
            self.report.incomplete.push(Incomplete {
                number: first.number,
                position: first.position,
                damaged,
            });
        }
    }

    /// Puts together the large message that begins with `first`, wherever damage lies between its
    /// records: their checksum over the whole decides. `cursor` stands behind FIRST.
    fn large(&mut self, mut cursor: Cursor, first: &Header, bytes: Vec<u8>) -> Large {
        let mut whole = bytes;
        let mut fragments = 1_u32;
        let mut damaged = false;
        let mut payload = Vec::new();
        let limit = self.limit(&cursor);
        while cursor.position < limit {
            let header = match self.record(&cursor, limit, &mut payload) {
                Ok(header) => header,
                Err(_) => {
                    // Behind the hint a gap is the end of what was written.
                    damaged |= cursor.position < self.report.hint;
                    cursor.position = self.after_bad(cursor.position);
                    continue;
                }
            };
            cursor.pass(&header);
            if header.epoch > first.epoch {
                break;
            }
            damaged |= is_lost(&header);
            match header.kind {
                Kind::First => break,
                Kind::Middle => {
                    let bound = self.area.size.min(MESSAGE_BYTES_MAX);
                    if (whole.len() + payload.len()) as u64 > bound {
                        return Large::Incomplete { damaged: true };
                    }
                    whole.extend_from_slice(&payload);
                    fragments = fragments.saturating_add(1);
                }
                Kind::Last => {
                    let described = Whole::decode(&payload);
                    whole.extend_from_slice(payload.get(WHOLE_BYTES..).unwrap_or_default());
                    let expected = Whole {
                        number: first.number,
                        first_position: first.position,
                        payload_bytes: whole.len() as u64,
                        fragments: fragments.saturating_add(1),
                        crc: crc32c::crc32c(&whole),
                    };
                    if described == Some(expected) {
                        let message = self.message(first, header.end(), whole);
                        return Large::Whole(Box::new(message));
                    }
                    let ours =
                        described.is_some_and(|whole| whole.first_position == first.position);
                    return Large::Incomplete {
                        damaged: damaged || ours,
                    };
                }
                _ => {}
            }
        }
        Large::Incomplete { damaged }
    }

    /// Notes a gap that ends at `to`, where `next` stands. Returns whether recovery would take what
    /// follows for never acknowledged.
    fn close_gap(&mut self, gap: &Gap, to: u64, next: Option<&Header>) -> bool {
        let from = gap.before.position;
        let report = &self.report;
        // In front of the tail, and at the beginning of a lap of which the tail is not known, old
        // records are overwritten in part; that is no damage.
        let front = match report.tail {
            Some(tail) => from < tail,
            None => from == report.start && report.start > 0,
        };
        if front {
            return false;
        }
        let acknowledged = from < report.hint;
        // Recovery goes on at the hint at the latest.
        let discards = !acknowledged || next.is_some_and(|next| next.position > report.hint);
        let to = match acknowledged {
            true => to.min(report.hint),
            false => to,
        };
        let checkpoint = self.superblock.as_ref().map(|superblock| {
            (
                superblock.checkpoint,
                superblock.checkpoint_number,
                superblock.epoch,
            )
        });
        let (after, epoch) = match (next, checkpoint) {
            (Some(next), _) => (Some(next.number), Some(next.epoch)),
            (None, Some((checkpoint, number, epoch))) if from < checkpoint => {
                (Some(number), Some(epoch))
            }
            _ => (None, None),
        };
        let mut damage = Damage {
            from,
            to,
            reason: gap.reason,
            acknowledged,
            first_number: gap.before.number,
            last_number: after.and_then(|after| after.checked_sub(1)),
            certain: gap.before.number.is_some() && epoch == Some(gap.before.epoch),
        };
        if let Some(header) = gap.header.filter(|header| header.end() == to) {
            // Its header is good: it alone is missing.
            damage.first_number = Some(header.number);
            damage.last_number = match header.kind.takes_number() {
                true => Some(header.number),
                false => header.number.checked_sub(1),
            };
            damage.certain = true;
        }
        // The last stretch without a record is where the log ends.
        if acknowledged || next.is_some() {
            self.note(damage);
        }
        discards
    }

    fn given_up(&mut self, before: &Cursor, header: &Header) {
        self.note(Damage {
            from: header.position,
            to: header.end(),
            reason: Reason::GivenUp,
            acknowledged: true,
            first_number: before.number,
            // The PAD carries the number of the first message that may have stood in it; only the
            // record behind it would tell the last.
            last_number: None,
            certain: false,
        });
    }

    fn note(&mut self, damage: Damage) {
        if damage.acknowledged {
            self.report.damaged_bytes += damage.to - damage.from;
        }
        if self.report.damage.len() < LIST_MAX {
            self.report.damage.push(damage);
        } else {
            self.report.damage_omitted += 1;
        }
    }
}

/// The key of a ring without superblock.
struct Keys {
    key: u64,
    bytes: u64,
    other_bytes: u64,
}

/// What speaks for a key.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    key: u64,
    /// Bytes of whole records that carry it.
    bytes: u64,
    /// Of them, those that stand where the size of the area puts them.
    placed: u64,
    /// Greatest common divisor of position less place.
    divisor: u64,
}

/// The data area as far as it can be read.
#[derive(Debug)]
struct Area<'a, B: Backing> {
    backing: &'a B,
    /// First byte of the area in the file.
    offset: u64,
    size: u64,
    window: Vec<u8>,
    /// Place of the first byte of the window, and how many there are.
    window_at: u64,
    window_len: u64,
    /// Ranges of the file that could not be read, in order, merged.
    unreadable: Vec<(u64, u64)>,
}

impl<'a, B: Backing> Area<'a, B> {
    fn new(backing: &'a B, offset: u64, size: u64) -> Area<'a, B> {
        Area {
            backing,
            offset,
            size: size - size % RECORD_ALIGN,
            window: vec![0; WINDOW_BYTES],
            window_at: 0,
            window_len: 0,
            unreadable: Vec::new(),
        }
    }

    /// Bytes of the area that the file has.
    fn present(&self) -> u64 {
        let present = self.backing.len().saturating_sub(self.offset);
        present.min(self.size)
    }

    /// `place`, or the end of the area when the file ends before it.
    fn skip_missing(&self, place: u64) -> u64 {
        match place + RECORD_ALIGN <= self.present() {
            true => place,
            false => self.size.max(place),
        }
    }

    /// Makes the window hold `place`, which the file has.
    fn load(&mut self, place: u64) {
        if (self.window_at..self.window_at + self.window_len).contains(&place) {
            return;
        }
        let len = (self.present() - place).min(WINDOW_BYTES as u64);
        self.window_at = place;
        self.window_len = len;
        let window = &mut self.window[..len as usize];
        if backing::read_exact_at(self.backing, window, self.offset + place).is_ok() {
            return;
        }
        for (index, piece) in window.chunks_mut(PIECE_BYTES).enumerate() {
            let at = self.offset + place + (index * PIECE_BYTES) as u64;
            if backing::read_exact_at(self.backing, piece, at).is_err() {
                piece.fill(0);
                let range = (at, at + piece.len() as u64);
                note_unreadable(&mut self.unreadable, range);
            }
        }
    }

    fn is_unreadable(&self, place: u64) -> bool {
        let at = self.offset + place;
        let behind = self.unreadable.partition_point(|(from, _)| *from <= at);
        behind > 0 && at < self.unreadable[behind - 1].1
    }

    /// The 64 bytes at a position.
    fn block(&mut self, position: u64) -> Result<[u8; RECORD_HEADER_BYTES], Reason> {
        let place = position % self.size;
        if place + RECORD_ALIGN > self.present() {
            return Err(Reason::Missing);
        }
        self.load(place);
        if self.is_unreadable(place) {
            return Err(Reason::Unreadable);
        }
        let at = (place - self.window_at) as usize;
        let block = self.window.get(at..).and_then(|rest| rest.first_chunk());
        block.copied().ok_or(Reason::Missing)
    }

    /// The header of whatever lap at a place.
    fn header(&mut self, place: u64, ring_key: u64) -> Option<Header> {
        let block = self.block(place).ok()?;
        if block[..4] != RECORD_MAGIC.to_le_bytes() {
            return None;
        }
        Header::decode(&block, ring_key).ok()
    }

    /// Reads the payload of a record; false when its checksum does not fit.
    fn payload(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<bool, Reason> {
        let mut position = header.position + RECORD_ALIGN;
        let mut left = u64::from(header.len);
        let mut crc = 0;
        while left > 0 {
            let place = position % self.size;
            if place >= self.present() {
                return Err(Reason::Missing);
            }
            self.load(place);
            let at = place - self.window_at;
            let take = (self.window_len - at).min(left);
            let bytes = &self.window[at as usize..(at + take) as usize];
            crc = crc32c::crc32c_append(crc, bytes);
            out.extend_from_slice(bytes);
            position += take;
            left -= take;
        }
        if crc == header.payload_crc {
            return Ok(true);
        }
        let mut place = (header.position + RECORD_ALIGN) % self.size;
        let mut left = u64::from(header.len);
        while left > 0 {
            if self.is_unreadable(place) {
                return Err(Reason::Unreadable);
            }
            let step = (PAGE_BYTES - (self.offset + place) % PAGE_BYTES).min(left);
            place = (place + step) % self.size;
            left -= step;
        }
        Ok(false)
    }

    /// Finds the ring's key, and the size of the area, from the records alone.
    ///
    /// A message's body may hold records of a key that its sender made up. They lie inside a record
    /// of the true key, so that this one covers more bytes.
    fn find_key(&mut self, data_size: Option<u64>) -> Result<Keys, RescueError> {
        let present = self.size;
        let data_size = data_size.filter(|size| *size >= RECORD_ALIGN);
        if let Some(size) = data_size {
            self.size = size - size % RECORD_ALIGN;
        }
        let (weights, total) = self.weigh_keys(present);
        let best = weights.into_iter().max_by_key(|weight| weight.bytes);
        let best = best.ok_or(RescueError::NothingFound)?;
        if data_size.is_none() && best.placed < best.bytes {
            // The file was cut. Positions less places are multiples of the true size; any divisor
            // of them that is no smaller than what is left maps every record to its place.
            let divisor = best.divisor;
            let parts_max = (divisor / present).min(PARTS_MAX);
            let size = (1..=parts_max)
                .filter(|parts| divisor.is_multiple_of(*parts))
                .map(|parts| divisor / parts)
                .rfind(|size| size.is_multiple_of(PAGE_BYTES));
            // Without one a record stands in the wrong place, and the size is that of the file.
            self.size = size.unwrap_or(self.size);
        }
        Ok(Keys {
            key: best.key,
            bytes: best.bytes,
            other_bytes: total - best.bytes,
        })
    }

    /// Weighs keys by the bytes of whole records that carry them; also returns the bytes of all.
    fn weigh_keys(&mut self, present: u64) -> (Vec<Weight>, u64) {
        let mut weights: Vec<Weight> = Vec::new();
        // Headers whose payload does not fit cost time; what a sender can make cost is bounded.
        let mut wasted = 0;
        let mut total = 0;
        let mut place = 0;
        while place < present {
            let Some((key, header)) = self.header_of_any_key(place) else {
                place += RECORD_ALIGN;
                continue;
            };
            let affordable = u64::from(header.len) <= 64 * KIB || wasted < 64 * MIB + 4 * place;
            if !affordable || !self.payload_at(place, &header) {
                wasted += u64::from(header.len);
                place += RECORD_ALIGN;
                continue;
            }
            let extent = header.extent();
            total += extent;
            if weights.len() == KEYS_MAX && !weights.iter().any(|weight| weight.key == key) {
                // Takes from all, so that a key that covers a good part of the ring stays.
                weights.retain_mut(|weight| {
                    weight.bytes = weight.bytes.saturating_sub(extent);
                    weight.bytes > 0
                });
            }
            let at = weights.iter().position(|weight| weight.key == key);
            let at = at.unwrap_or_else(|| {
                weights.push(Weight {
                    key,
                    ..Weight::default()
                });
                weights.len() - 1
            });
            if let Some(weight) = weights.get_mut(at) {
                let difference = header.position.abs_diff(place);
                let placed = difference.is_multiple_of(self.size);
                weight.bytes += extent;
                weight.placed += u64::from(placed) * extent;
                weight.divisor = greatest_common_divisor(weight.divisor, difference);
            }
            place += extent;
        }
        (weights, total)
    }

    fn header_of_any_key(&mut self, place: u64) -> Option<(u64, Header)> {
        let block = self.block(place).ok()?;
        if block[..4] != RECORD_MAGIC.to_le_bytes() {
            return None;
        }
        let key = u64::from_le_bytes(*block.get(8..)?.first_chunk()?);
        let header = Header::decode(&block, key).ok()?;
        // A PAD has no checksum to go by.
        (header.kind != Kind::Pad && u64::from(header.len) <= RECORD_LEN_MAX)
            .then_some((key, header))
    }

    /// Whether the payload behind the header at `place` is right. Does not wrap: where the area ends
    /// may not be known.
    fn payload_at(&mut self, place: u64, header: &Header) -> bool {
        let mut at = place + RECORD_ALIGN;
        let mut left = u64::from(header.len);
        let mut crc = 0;
        while left > 0 {
            if at >= self.present() {
                return false;
            }
            self.load(at);
            let from = at - self.window_at;
            let take = (self.window_len - from).min(left);
            let bytes = &self.window[from as usize..(from + take) as usize];
            crc = crc32c::crc32c_append(crc, bytes);
            at += take;
            left -= take;
        }
        crc == header.payload_crc
    }
}

/// Whether acknowledged records stood here and were given up.
fn is_lost(header: &Header) -> bool {
    header.kind == Kind::Pad && header.flags & RECORD_LOST != 0
}

fn note_unreadable(ranges: &mut Vec<(u64, u64)>, range: (u64, u64)) {
    let at = ranges.partition_point(|(from, _)| *from < range.0);
    if at > 0 && ranges[at - 1].1 >= range.0 {
        ranges[at - 1].1 = ranges[at - 1].1.max(range.1);
    } else if ranges.get(at).is_some_and(|next| next.0 <= range.1) {
        ranges[at].0 = range.0;
        ranges[at].1 = ranges[at].1.max(range.1);
    } else if ranges.len() < LIST_MAX {
        ranges.insert(at, range);
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Looks at a ring and reports, giving nothing out.
///
/// # Errors
/// As [`Rescue::look`].
pub fn examine<B: Backing>(backing: &B, options: RescueOptions) -> Result<Report, RescueError> {
    let mut rescue = Rescue::look(backing, options)?;
    let walked: Result<(), Infallible> = rescue.walk(&mut |_, _| Ok(()));
    match walked {
        Ok(()) => Ok(rescue.report),
        Err(never) => match never {},
    }
}
