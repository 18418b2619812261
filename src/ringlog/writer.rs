//! The appending side of the ring: space, numbers, records, writes, consumers' hold on the tail.
//!
//! Promises: no allocation, no clock and no read of the ring while appending; one vectored write
//! per turn; after the first failed write or sync nothing is ever written or synced again. Does
//! not: wait. Group commit is in `commit`, opening in `recover`.
//!
//! Order of use in one turn: `begin_turn`, `reserve` for each message, `header` for each slot, one
//! `write`, then `sync_wanted`.

use std::fmt;
use std::io::{self, IoSlice};
use std::time::Duration;

use super::backing::{self, Backing};
use super::format::{
    self, CONSUMER_REQUIRED, Consumer, ConsumerName, Header, Kind, MARKS, Mark, RECORD_ALIGN,
    RECORD_EARLY, RECORD_LEN_MAX, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, WHOLE_BYTES,
    Whole, page_ceil, page_floor, record_extent,
};
use crate::clock::{self, Instant};
use crate::limits::{
    CONSUMERS_MAX, KIB, LOG_WRITE_BYTES_MAX, MIB, PAGE_BYTES, RECORD_HEADER_BYTES,
    RECORD_PAYLOAD_BYTES_MAX,
};
use crate::sys::file::IOV_MAX;

/// What a 250 survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survive {
    /// Nothing: the ring is in memory.
    Nothing,
    /// The end of the process: the bytes are in the page cache. Synced in the background.
    Process,
    /// Loss of power: an fdatasync that covers the message has returned.
    Power,
}

/// What happens when the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullPolicy {
    /// Registered consumers hold what they have not acknowledged; without any, the oldest mail is
    /// overwritten.
    Auto,
    /// Nothing unacknowledged is ever overwritten; new mail is deferred.
    Defer,
    /// The oldest mail is overwritten; consumers cannot be registered.
    Overwrite,
}

/// What the device leaves whole when power fails amid a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitAlign {
    /// Every 512-byte sector, which then holds its old or its new bytes: a page that holds
    /// acknowledged bytes is written again with the same ones in front of new ones.
    Sector,
    /// Nothing of a page that was being written: what is acknowledged ends with its page, so that
    /// such a page is never written again. With `--survive power` only.
    Page,
}

/// `--survive process`: bytes, or an eighth of a smaller ring, after which a background sync
/// starts.
pub const BACKGROUND_SYNC_BYTES: u64 = 64 * MIB;
/// `--survive process`: age of the last sync after which a background sync starts. Also the age
/// and, with [`CHECKPOINT_BYTES`], the distance of a checkpoint after which a new superblock is
/// written.
pub const BACKGROUND_SYNC_AFTER: Duration = Duration::from_secs(1);
/// Bytes behind the last checkpoint after which a new superblock is written.
pub const CHECKPOINT_BYTES: u64 = 64 * MIB;
/// Share of the ring, in percent, that may be held by consumers before new mail is deferred.
pub const HIGH_WATER_PERCENT: u64 = 90;
/// Share of the ring, in percent, below which mail is taken again.
pub const LOW_WATER_PERCENT: u64 = 85;
/// Space is freed in this part of the ring at a time.
pub const FREE_STEP_PARTS: u64 = 16;
/// Write-back of a large write starts after so many bytes.
const WRITEBACK_BYTES: u64 = 4 * MIB;

/// Why the log stopped for good. The process must end: after a failed sync the page cache claims to
/// be clean and cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What failed.
    pub operation: &'static str,
    /// Its errno, 0 when there is none.
    pub errno: i32,
}

impl Failed {
    fn new(operation: &'static str, error: &io::Error) -> Failed {
        Failed {
            operation,
            // A write that takes nothing has no number of its own.
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        write!(
            f,
            "{} of the ring failed ({error}); nothing more is written until the server is \
             restarted",
            self.operation
        )
    }
}

impl std::error::Error for Failed {}

/// Why a record gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// No space. `freeing`: space is on its way and is there when the next superblock is durable;
    /// otherwise it comes only when a consumer acknowledges.
    Full {
        /// Whether waiting for the next sync helps.
        freeing: bool,
    },
    /// The payload is over the limit of its kind, or over what this ring can ever take.
    TooLarge,
    /// Another large message is open.
    Busy,
    /// The log has failed.
    Failed(Failed),
}

/// A place in the ring for one record. It has to be written with the next [`Log::write`], in the
/// order in which slots were reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Slot {
    /// Position of the header.
    pub position: u64,
    /// Number of the message ([`Kind::takes_number`]), otherwise of the next one.
    pub number: u64,
    /// Payload bytes between header and padding. With LAST they begin with [`Whole`].
    pub payload_bytes: u64,
    /// Zero bytes that the caller writes behind the payload, 0 to 63.
    pub padding: usize,
    /// Position behind the record: the message is acknowledged when [`Log::acknowledged`] reaches
    /// it.
    pub end: u64,
    /// Type of the record.
    pub kind: Kind,
}

/// A large message that is being appended in fragments.
#[derive(Debug)]
#[must_use]
pub struct LargeSlot {
    number: Option<u64>,
    first_position: u64,
    payload_bytes: u64,
    given_bytes: u64,
    fragments: u32,
}

impl LargeSlot {
    /// Number of the message; `None` before its first fragment is reserved.
    pub fn number(&self) -> Option<u64> {
        self.number
    }

    /// Payload bytes for which no fragment has been reserved yet.
    pub fn remaining(&self) -> u64 {
        self.payload_bytes - self.given_bytes
    }

    /// What goes to the front of the LAST fragment's payload, once that fragment is reserved. `crc`
    /// is the CRC32C of the whole payload, the returned structure left out.
    pub fn whole(&self, crc: u32) -> Whole {
        Whole {
            number: self.number.unwrap_or(0),
            first_position: self.first_position,
            payload_bytes: self.payload_bytes,
            fragments: self.fragments,
            crc,
        }
    }
}

/// Where a new or moved consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record kept.
    Oldest,
    /// Behind everything that is durable.
    Newest,
    /// The record at this position.
    Position(u64),
}

/// Why a change of consumers is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerError {
    /// The name is taken.
    Exists,
    /// There is no consumer of this name.
    Unknown,
    /// All places of the table are taken.
    TableFull,
    /// Under `--full overwrite` nothing is held for anybody.
    Overwrite,
    /// The position is older than the oldest record kept, or not yet durable.
    NotKept,
    /// No record begins at the position.
    NotARecord,
    /// The cursor would go back; seek does that.
    GoesBack,
    /// The log has failed.
    Failed(Failed),
}

impl fmt::Display for ConsumerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsumerError::Exists => f.write_str("a consumer of this name exists"),
            ConsumerError::Unknown => {
                f.write_str("there is no consumer of this name; --create makes it")
            }
            ConsumerError::TableFull => write!(
                f,
                "all {CONSUMERS_MAX} consumers are taken; drop one with ringmx consumers drop NAME"
            ),
            ConsumerError::Overwrite => f.write_str(
                "the server runs with --full overwrite, which holds nothing for consumers",
            ),
            ConsumerError::NotKept => {
                f.write_str("the position is outside of what is kept and durable")
            }
            ConsumerError::NotARecord => f.write_str("no record begins at the position"),
            ConsumerError::GoesBack => {
                f.write_str("an acknowledgement cannot go back; use ringmx consumers seek")
            }
            ConsumerError::Failed(failed) => failed.fmt(f),
        }
    }
}

impl std::error::Error for ConsumerError {}

/// A point of the log: a record boundary and what was true there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    pub position: u64,
    /// Number of the next message.
    pub number: u64,
    /// Messages before the point since the ring was created.
    pub messages: u64,
    /// received_ns of the last record before the point.
    pub received_ns: u64,
}

/// A sync that was handed out and has not come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub target: Point,
    /// Generation and tail of the newest superblock written before, or by, this sync.
    pub generation: u64,
    pub tail: u64,
}

/// What recovery found, and what the log starts with.
#[derive(Debug)]
pub(super) struct Start {
    pub superblock: Superblock,
    /// Slot that holds the newest durable superblock.
    pub durable_slot: usize,
    pub head: Point,
    /// A position that is known to be durable: the head may be in the page cache only.
    pub hint: u64,
}

/// Settings of an open log.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What a 250 survives.
    pub survive: Survive,
    /// What happens when the ring is full.
    pub full: FullPolicy,
    /// Mail that nobody holds and that is older than this is removed, at a granularity of 1/32 of
    /// the ring.
    pub keep_for: Option<Duration>,
    /// What the device leaves whole when power fails.
    pub commit_align: CommitAlign,
}

/// Figures of the log, for `/status` and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// Bytes of the data area.
    pub data_size: u64,
    /// Oldest position kept.
    pub tail: u64,
    /// Position up to which everything is durable.
    pub durable: u64,
    /// Position up to which everything is written.
    pub written: u64,
    /// Bytes that new records can take now.
    pub free_bytes: u64,
    /// Bytes that consumers or policy hold.
    pub held_bytes: u64,
    /// Messages kept.
    pub messages: u64,
    /// Number of the next message.
    pub next_number: u64,
    /// Epoch of this opening.
    pub epoch: u32,
    /// Messages overwritten that no consumer was registered for, since this opening.
    pub overwritten_unread: u64,
    /// Messages appended since this opening.
    pub appended_messages: u64,
    /// Bytes written to the data area since this opening, page filling included.
    pub written_bytes: u64,
}

/// An open ring log. One writer; the backing is not shared with another.
#[derive(Debug)]
pub struct Log<B: Backing> {
    pub(super) backing: B,
    pub(super) settings: Settings,
    /// The newest superblock written; what the next one says is filled in when it is built.
    pub(super) superblock: Superblock,
    pub(super) superblock_bytes: Box<[u8; SUPERBLOCK_BYTES]>,
    pub(super) durable_slot: usize,
    pub(super) durable_generation: u64,
    /// End of what is reserved.
    pub(super) head: Point,
    /// INVARIANT: a prefix of what is reserved.
    pub(super) written: Point,
    /// INVARIANT: durable <= written.
    pub(super) durable: Point,
    /// Oldest record kept, as decided in memory.
    pub(super) tail: Mark,
    /// Tail of the last superblock that counts: durable under `power`, written otherwise.
    /// INVARIANT: space_tail <= tail <= durable <= written <= space_tail + data_size.
    pub(super) space_tail: u64,
    /// Free bytes that somebody waits for.
    pub(super) wanted_bytes: u64,
    /// Ring bytes set aside for the rest of the open large message.
    pub(super) large_bytes: u64,
    pub(super) large_open: bool,
    pub(super) in_flight: Option<InFlight>,
    /// A superblock must go out with the next sync.
    pub(super) superblock_needed: bool,
    /// Cursors moved since the last superblock.
    pub(super) cursors_moved: bool,
    /// When the last superblock, and the last sync, was handed out.
    pub(super) superblock_at: Instant,
    pub(super) synced_at: Instant,
    pub(super) turn_ns: u64,
    /// Durable position that the headers of this turn name.
    pub(super) turn_hint: u64,
    pub(super) early: bool,
    /// Largest durable position that a written record names.
    pub(super) hinted: u64,
    pub(super) last_message_end: u64,
    pub(super) accepting: bool,
    pub(super) writeback_from: u64,
    pub(super) failed: Option<Failed>,
    pub(super) overwritten_unread: u64,
    pub(super) appended_messages: u64,
    pub(super) written_bytes: u64,
}

impl<B: Backing> Log<B> {
    pub(super) fn start(backing: B, settings: Settings, start: Start) -> Log<B> {
        let superblock = start.superblock;
        let head = start.head;
        Log {
            backing,
            durable_slot: start.durable_slot,
            durable_generation: superblock.generation,
            superblock_bytes: Box::new([0; SUPERBLOCK_BYTES]),
            head,
            written: head,
            durable: head,
            tail: Mark {
                position: superblock.tail,
                number: 0,
                messages: superblock.tail_messages,
                received_ns: 0,
            },
            space_tail: superblock.tail,
            wanted_bytes: 0,
            large_bytes: 0,
            large_open: false,
            in_flight: None,
            superblock_needed: false,
            cursors_moved: false,
            superblock_at: Instant::default(),
            synced_at: Instant::default(),
            turn_ns: head.received_ns,
            turn_hint: start.hint,
            early: settings.survive != Survive::Power,
            hinted: start.hint,
            last_message_end: head.position,
            accepting: true,
            writeback_from: head.position,
            failed: None,
            overwritten_unread: 0,
            appended_messages: 0,
            written_bytes: 0,
            settings,
            superblock,
        }
    }

    /// The storage.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// See [`Backing::take_write_ns`].
    pub fn take_write_ns(&mut self) -> u64 {
        self.backing.take_write_ns()
    }

    /// Gives the storage back.
    pub fn into_backing(self) -> B {
        self.backing
    }

    /// Settings the log was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The newest superblock written: identity, key, geometry.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Number of the next message.
    pub fn next_number(&self) -> u64 {
        self.head.number
    }

    /// Everything before this position has been given to the storage.
    pub fn written(&self) -> u64 {
        self.written.position
    }

    /// Everything before this position is durable; consumers may see it. Without durability
    /// (`--survive nothing`) the same as [`Log::written`].
    pub fn durable(&self) -> u64 {
        self.durable.position
    }

    /// Messages whose slot ends at or before this position may be answered with 250.
    pub fn acknowledged(&self) -> u64 {
        match self.settings.survive {
            Survive::Nothing | Survive::Process => self.written.position,
            Survive::Power => self.durable.position,
        }
    }

    /// The oldest record that is kept.
    pub fn tail(&self) -> u64 {
        self.tail.position
    }

    /// Why the log stopped, if it did.
    pub fn failed(&self) -> Option<Failed> {
        self.failed
    }

    /// Bytes of the data area.
    pub fn data_size(&self) -> u64 {
        self.superblock.data_size
    }

    /// Messages between tail and head.
    pub fn messages(&self) -> u64 {
        self.head.messages - self.tail.messages
    }

    /// Figures for operators.
    pub fn status(&self) -> LogStatus {
        LogStatus {
            data_size: self.data_size(),
            tail: self.tail.position,
            durable: self.durable.position,
            written: self.written.position,
            free_bytes: self.free_bytes(),
            held_bytes: self.held_bytes(),
            messages: self.messages(),
            next_number: self.head.number,
            epoch: self.superblock.epoch,
            overwritten_unread: self.overwritten_unread,
            appended_messages: self.appended_messages,
            written_bytes: self.written_bytes,
        }
    }

    /// Takes the wall clock for the records of this turn; it never goes back. Also lets age and
    /// consumers move the tail, and decides [`Log::accepting`].
    pub fn begin_turn(&mut self, wall_ns: u64) {
        self.turn_ns = self.turn_ns.max(wall_ns);
        self.turn_hint = self.durable.position;
        self.advance_tail();
        self.review_admission();
    }

    // Space.

    /// Bytes that new records can take now, headers and padding included.
    pub fn free_bytes(&self) -> u64 {
        let used = page_ceil(self.head.position) - page_floor(self.space_tail);
        self.data_size()
            .saturating_sub(used)
            .saturating_sub(self.epoch_reserve())
            .saturating_sub(self.large_bytes)
    }

    /// Bytes that cannot be freed before a consumer acknowledges or, without consumers, under a
    /// policy that overwrites nothing.
    pub fn held_bytes(&self) -> u64 {
        self.head.position - self.releasable()
    }

    /// Whether new mail is taken: the log has not failed and less than [`HIGH_WATER_PERCENT`] of
    /// the ring is held; taken again below [`LOW_WATER_PERCENT`].
    pub fn accepting(&self) -> bool {
        self.accepting && self.failed.is_none()
    }

    /// Whether a message that declares `bytes` is taken: [`Log::accepting`], and it stays below the
    /// mark.
    pub fn accepts(&self, bytes: u64) -> bool {
        self.accepting()
            && self.held_bytes().saturating_add(bytes)
                <= self.data_size() / 100 * HIGH_WATER_PERCENT
    }

    /// Largest payload that the ring takes at all: an eighth of it.
    pub fn payload_bytes_max(&self) -> u64 {
        self.data_size() / 8
    }

    /// The consumer that holds the oldest record, if one does.
    pub fn holder(&self) -> Option<&Consumer> {
        self.consumers()
            .filter(|consumer| consumer.is_required())
            .min_by_key(|consumer| consumer.scan_pos)
    }

    fn review_admission(&mut self) {
        let held = self.held_bytes();
        let percent = self.data_size() / 100;
        if held > percent * HIGH_WATER_PERCENT {
            self.accepting = false;
        } else if held < percent * LOW_WATER_PERCENT {
            self.accepting = true;
        }
    }

    /// Kept free for EPOCH records, so that recovery can always write one.
    fn epoch_reserve(&self) -> u64 {
        (64 * KIB).min(page_floor(self.data_size() / 16))
    }

    /// The largest position to which policy lets the tail move.
    fn releasable(&self) -> u64 {
        match self.holder() {
            Some(consumer) => consumer.scan_pos,
            None if self.settings.full == FullPolicy::Defer => self.tail.position,
            None => self.durable.position,
        }
    }

    /// Moves the tail in memory: past what is too old, and as far as free space is wanted.
    ///
    /// The tail moves from mark to mark, because only they are known to be record boundaries.
    /// Bounded by [`MARKS`] steps.
    fn advance_tail(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let limit = self.releasable().min(self.durable.position);
        let oldest_ns = self
            .settings
            .keep_for
            .map(|keep_for| self.turn_ns.saturating_sub(clock::nanos(keep_for)));
        let step = self.data_size() / FREE_STEP_PARTS;
        let low_water = self.data_size() / 8;
        let wanted = self.wanted_bytes.max(low_water) + self.large_bytes + self.epoch_reserve();
        let used = page_ceil(self.head.position) - page_floor(self.tail.position);
        if oldest_ns.is_none() && used + wanted <= self.data_size() {
            return;
        }
        let mut stop_at = self.tail.position;
        let mut moved = self.tail;
        for mark in self.marks_between(self.tail.position, limit) {
            let too_old = oldest_ns.is_some_and(|oldest_ns| mark.received_ns < oldest_ns);
            let used = page_ceil(self.head.position) - page_floor(moved.position);
            if used + wanted > self.data_size() && moved.position >= stop_at {
                stop_at = moved.position + step;
            }
            if !too_old && moved.position >= stop_at {
                break;
            }
            moved = mark;
        }
        let used = page_ceil(self.head.position) - page_floor(moved.position);
        // The newest mail is too old as well, and nothing is on its way: a ring of which a part never fills would keep
        // it for ever.
        let is_quiet = self.durable.position == self.head.position && !self.large_open;
        let all_too_old = is_quiet && oldest_ns.is_some_and(|ns| self.durable.received_ns < ns);
        if (used + wanted > self.data_size() || all_too_old)
            && limit == self.durable.position
            && moved.position < limit
        {
            // Everything may go: the durable position is a boundary too.
            moved = Mark {
                position: limit,
                number: self.durable.number,
                messages: self.durable.messages,
                received_ns: self.durable.received_ns,
            };
        }
        if moved.position > self.tail.position {
            if self.consumers().next().is_none() {
                self.overwritten_unread += moved.messages - self.tail.messages;
            }
            self.tail = moved;
            assert!(self.space_tail <= self.tail.position);
            assert!(self.tail.position <= self.durable.position);
        }
    }

    /// Marks in `(from, to]`, oldest first.
    fn marks_between(&self, from: u64, to: u64) -> impl Iterator<Item = Mark> + use<B> {
        let marks = self.superblock.marks;
        let part = self.data_size() / MARKS as u64;
        (from / part..=to / part)
            .take(MARKS + 1)
            .filter_map(move |index| {
                let mark = marks[(index % MARKS as u64) as usize]?;
                (mark.position / part == index && mark.position > from && mark.position <= to)
                    .then_some(mark)
            })
    }

    /// Notes the record at `position` as a mark if it is the first of its part.
    pub(super) fn note_mark(superblock: &mut Superblock, mark: Mark) {
        let part = superblock.data_size / MARKS as u64;
        let index = mark.position / part;
        let entry = &mut superblock.marks[(index % MARKS as u64) as usize];
        if entry.is_none_or(|old| old.position / part != index || old.position > mark.position) {
            *entry = Some(mark);
        }
    }

    /// Whether a record of `extent` bytes fits, when `keep` bytes stay free behind it and the space
    /// before `tail` is free.
    fn fits(&self, extent: u64, keep: u64, tail: u64) -> bool {
        page_ceil(self.head.position + extent) + keep <= page_floor(tail) + self.data_size()
    }

    /// Makes room for `extent` bytes if policy allows it.
    fn make_room(&mut self, extent: u64, keep: u64) -> Result<(), ReserveError> {
        if let Some(failed) = self.failed {
            return Err(ReserveError::Failed(failed));
        }
        if self.fits(extent, keep, self.space_tail) {
            return Ok(());
        }
        self.wanted_bytes = self.wanted_bytes.max(extent + PAGE_BYTES);
        self.advance_tail();
        if self.settings.survive != Survive::Power && self.tail.position > self.space_tail {
            self.write_superblock(false).map_err(ReserveError::Failed)?;
        }
        if self.fits(extent, keep, self.space_tail) {
            return Ok(());
        }
        let freeing = self.fits(extent, keep, self.tail.position)
            || self.holder().is_none()
                && self.settings.full != FullPolicy::Defer
                && self.durable.position < self.head.position;
        if freeing {
            self.superblock_needed = true;
        }
        Err(ReserveError::Full { freeing })
    }

    // Records.

    /// Takes position and number for a message with `payload_bytes` of envelope and body.
    ///
    /// # Errors
    /// [`ReserveError`]; the log is unchanged and other messages can be reserved. `TooLarge` over
    /// [`RECORD_PAYLOAD_BYTES_MAX`] or an eighth of the ring: use [`Log::begin_large`].
    pub fn reserve(&mut self, payload_bytes: u64) -> Result<Slot, ReserveError> {
        if payload_bytes > RECORD_PAYLOAD_BYTES_MAX.min(self.payload_bytes_max()) {
            return Err(ReserveError::TooLarge);
        }
        let keep = self.epoch_reserve() + self.large_bytes;
        self.make_room(record_extent(payload_bytes), keep)?;
        Ok(self.take(Kind::Message, payload_bytes))
    }

    /// Opens a large message of `payload_bytes` of envelope and body and sets space aside for it.
    /// Takes no number yet: the first fragment does.
    ///
    /// # Errors
    /// `Busy` while another is open, `TooLarge` over an eighth of the ring, `Full`, `Failed`.
    pub fn begin_large(&mut self, payload_bytes: u64) -> Result<LargeSlot, ReserveError> {
        if self.large_open {
            return Err(ReserveError::Busy);
        }
        if payload_bytes > self.payload_bytes_max() {
            return Err(ReserveError::TooLarge);
        }
        let fragments = payload_bytes / LOG_WRITE_BYTES_MAX.min(MIB) + 4;
        let each = 2 * RECORD_ALIGN + self.sealing_bytes();
        let set_aside = payload_bytes + fragments * each + PAGE_BYTES;
        let keep = self.epoch_reserve();
        self.make_room(set_aside, keep)?;
        self.large_open = true;
        self.large_bytes = set_aside;
        Ok(LargeSlot {
            number: None,
            first_position: 0,
            payload_bytes,
            given_bytes: 0,
            fragments: 0,
        })
    }

    /// Takes the place of the next fragment, with `bytes` of the message's payload; the one that
    /// completes it becomes LAST and carries [`Whole`] in front (so its slot's payload is 32 bytes
    /// longer).
    ///
    /// # Errors
    /// `TooLarge` when `bytes` is 0, more than remains, or more than a record takes
    /// ([`RECORD_LEN_MAX`] less 32); also when the first fragment would be the last. `Full` only
    /// when fragments are so small that their headers outgrow what was set aside. `Failed`.
    pub fn reserve_fragment(
        &mut self,
        large: &mut LargeSlot,
        bytes: u64,
    ) -> Result<Slot, ReserveError> {
        let last = bytes == large.remaining();
        let first = large.number.is_none();
        if bytes == 0
            || bytes > large.remaining()
            || bytes > RECORD_LEN_MAX - WHOLE_BYTES as u64
            || first && last
        {
            return Err(ReserveError::TooLarge);
        }
        let (kind, len) = match (first, last) {
            (true, _) => (Kind::First, bytes),
            (false, true) => (Kind::Last, bytes + WHOLE_BYTES as u64),
            (false, false) => (Kind::Middle, bytes),
        };
        let extent = record_extent(len);
        let rest = self
            .large_bytes
            .saturating_sub(extent + self.sealing_bytes());
        // What was set aside holds one page more than needed, for the page that the head is in.
        let keep = self.epoch_reserve() + rest.saturating_sub(PAGE_BYTES);
        self.make_room(extent, keep)?;
        self.large_bytes = rest;
        let slot = self.take(kind, len);
        if first {
            large.number = Some(slot.number);
            large.first_position = slot.position;
        }
        large.given_bytes += bytes;
        large.fragments += 1;
        if last {
            self.large_open = false;
            self.large_bytes = 0;
        }
        Ok(slot)
    }

    /// Leaves out the numbers up to `number`, which the next message takes. For copies of a ring.
    ///
    /// # Panics
    /// When something is reserved and not written.
    pub(super) fn skip_numbers_to(&mut self, number: u64) {
        assert_eq!(self.head, self.written);
        self.head.number = self.head.number.max(number);
        self.written = self.head;
    }

    /// Gives up a large message; what was written of it never becomes a message.
    pub fn abandon_large(&mut self, large: LargeSlot) {
        if large.remaining() > 0 {
            self.large_open = false;
            self.large_bytes = 0;
        }
    }

    /// Whether what is handed to a sync has to end with its page.
    fn seals_pages(&self) -> bool {
        self.settings.commit_align == CommitAlign::Page && self.settings.survive == Survive::Power
    }

    /// Bytes that a record may cost beyond its extent because its page is sealed.
    fn sealing_bytes(&self) -> u64 {
        u64::from(self.seals_pages()) * PAGE_BYTES
    }

    /// Takes the rest of the page that the head is in for a PAD record; its header. The space is
    /// there: free space counts whole pages. `None` when the head is at the end of a page, or
    /// nothing has to be sealed.
    fn take_rest_of_page(&mut self) -> Option<[u8; RECORD_HEADER_BYTES]> {
        let rest = page_ceil(self.head.position) - self.head.position;
        if rest == 0 || !self.seals_pages() {
            return None;
        }
        let slot = self.take(Kind::Pad, rest - RECORD_ALIGN);
        Some(self.header(&slot, 0, 0))
    }

    /// Fills the page up to which everything is written, before a sync takes it for its target.
    /// False when that can't be, because something is reserved and not written or the write failed.
    pub(super) fn seal_page(&mut self) -> bool {
        if !self.seals_pages() || self.head.position.is_multiple_of(PAGE_BYTES) {
            return true;
        }
        if self.head != self.written {
            return false;
        }
        let Some(header) = self.take_rest_of_page() else {
            return true;
        };
        let rest = (self.head.position - self.written.position - RECORD_ALIGN) as usize;
        self.write(&[IoSlice::new(&header), IoSlice::new(&ZEROS[..rest])])
            .is_ok()
    }

    fn take(&mut self, kind: Kind, len: u64) -> Slot {
        let position = self.head.position;
        let end = position + record_extent(len);
        let slot = Slot {
            position,
            number: self.head.number,
            payload_bytes: len,
            padding: (end - position - RECORD_ALIGN - len) as usize,
            end,
            kind,
        };
        Log::<B>::note_mark(
            &mut self.superblock,
            Mark {
                position,
                number: self.head.number,
                messages: self.head.messages,
                received_ns: self.turn_ns,
            },
        );
        self.head.position = end;
        self.head.received_ns = self.turn_ns;
        if kind.takes_number() {
            self.head.number += 1;
        }
        if matches!(kind, Kind::Message | Kind::Last) {
            self.head.messages += 1;
            self.last_message_end = end;
            self.appended_messages += 1;
        }
        assert!(page_ceil(end) <= page_floor(self.space_tail) + self.data_size());
        slot
    }

    /// The header of a reserved record. `env_len` is 0 for MID and LAST; `payload_crc` is the
    /// CRC32C of the slot's payload without padding.
    pub fn header(&self, slot: &Slot, env_len: u32, payload_crc: u32) -> [u8; RECORD_HEADER_BYTES] {
        self.header_fields(slot, env_len, payload_crc)
            .encode(self.superblock.ring_key)
    }

    fn header_fields(&self, slot: &Slot, env_len: u32, payload_crc: u32) -> Header {
        Header {
            position: slot.position,
            number: slot.number,
            // Bounded by RECORD_LEN_MAX.
            len: slot.payload_bytes as u32,
            payload_crc,
            epoch: self.superblock.epoch,
            kind: slot.kind,
            flags: if self.early { RECORD_EARLY } else { 0 },
            env_len,
            hint_back: format::hint_back(slot.position, self.turn_hint),
            received_ns: self.turn_ns,
        }
    }

    /// Writes all slots reserved since the last write: `parts` are headers, payloads and paddings
    /// in order. The rest of the last page is filled with zeros, so that no page is ever read to be
    /// written.
    ///
    /// One system call unless the ring's end or [`IOV_MAX`] lies in between, or the storage takes
    /// less.
    ///
    /// # Errors
    /// The first failure, and every later call: the log is dead.
    ///
    /// # Panics
    /// When the lengths of `parts` do not add up to what was reserved: the ring would be corrupt.
    pub fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<(), Failed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let given: u64 = parts.iter().map(|part| part.len() as u64).sum();
        assert_eq!(given, self.head.position - self.written.position);
        if given == 0 {
            return Ok(());
        }
        // Without a sync under way the next one takes this very write.
        let seal = match self.in_flight {
            None => self.take_rest_of_page(),
            Some(_) => None,
        };
        let seal = seal.as_ref().map_or(&[][..], |header| &header[..]);
        let result = if parts.len() < SHORT_LIST {
            self.write_parts::<SHORT_LIST>(parts, seal)
        } else {
            self.write_parts::<IOV_MAX>(parts, seal)
        };
        if let Err(error) = result {
            return Err(self.fail("write", &error));
        }
        self.hinted = self.hinted.max(self.turn_hint);
        self.written = self.head;
        if self.settings.survive == Survive::Nothing {
            self.durable = self.written;
        }
        let unsynced = self.written.position - self.writeback_from;
        if unsynced >= WRITEBACK_BYTES && self.settings.survive != Survive::Nothing {
            self.start_writeback();
        }
        Ok(())
    }

    /// Starts write-back early, so that a large message does not delay the commits behind it.
    fn start_writeback(&mut self) {
        let size = self.data_size();
        let len = (self.written.position - self.writeback_from).min(size);
        let from = self.written.position - len;
        let before_wrap = (size - from % size).min(len);
        self.backing
            .start_writeback(self.superblock.place(from), before_wrap);
        if before_wrap < len {
            self.backing
                .start_writeback(self.superblock.data_offset, len - before_wrap);
        }
        self.writeback_from = self.written.position;
    }

    /// Writes `parts`, the header of the PAD that seals the page if there is one, and zeros up to the
    /// end of the page.
    fn write_parts<const N: usize>(
        &mut self,
        parts: &[IoSlice<'_>],
        seal: &[u8],
    ) -> io::Result<()> {
        let size = self.data_size();
        let given: usize = parts.iter().map(|part| part.len()).sum();
        let end = page_ceil(self.head.position);
        let fill = (end - self.written.position) as usize - given - seal.len();
        let fill = [IoSlice::new(seal), IoSlice::new(&ZEROS[..fill])];
        let mut position = self.written.position;
        // First part that is not written whole, and the bytes of it that are.
        let (mut index, mut skip) = (0, 0);
        while position < end {
            let room = size - position % size;
            let mut list = [IoSlice::new(&[]); N];
            let mut count = 0;
            let mut listed = 0;
            for part in parts.iter().chain(&fill).skip(index) {
                let bytes = if count == 0 { &part[skip..] } else { &part[..] };
                let take = bytes.len().min((room - listed) as usize);
                list[count] = IoSlice::new(&bytes[..take]);
                count += 1;
                listed += take as u64;
                if count == N || listed == room {
                    break;
                }
            }
            let n = loop {
                match self
                    .backing
                    .write_at(&list[..count], self.superblock.place(position))
                {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            if n == 0 || n as u64 > listed {
                return Err(io::ErrorKind::WriteZero.into());
            }
            position += n as u64;
            self.written_bytes += n as u64;
            let mut left = n;
            for part in parts.iter().chain(&fill).skip(index) {
                let rest = part.len() - skip;
                if left < rest {
                    skip += left;
                    break;
                }
                left -= rest;
                index += 1;
                skip = 0;
            }
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, operation: &'static str, error: &io::Error) -> Failed {
        *self
            .failed
            .get_or_insert_with(|| Failed::new(operation, error))
    }

    /// Appends an EPOCH record when the log is idle and the last batch is not covered by a hint
    /// yet: then damage to that batch is recognised as such. To be called within a second of going
    /// idle. True when something was appended and wants a sync.
    ///
    /// # Errors
    /// As [`Log::write`].
    pub fn idle_tick(&mut self) -> Result<bool, Failed> {
        if self.failed.is_some()
            || self.settings.survive == Survive::Nothing
            || self.head != self.written
            || self.in_flight.is_some()
            || self.durable.position < self.last_message_end
            || self.hinted >= self.last_message_end
        {
            return Ok(false);
        }
        self.turn_hint = self.durable.position;
        self.append_epoch()
    }

    /// Appends an EPOCH record; false when there is no space for it.
    pub(super) fn append_epoch(&mut self) -> Result<bool, Failed> {
        if !self.fits(RECORD_ALIGN, 0, self.space_tail) {
            return Ok(false);
        }
        let slot = self.take(Kind::Epoch, 0);
        let header = self.header(&slot, 0, 0);
        self.write(&[IoSlice::new(&header)])?;
        Ok(true)
    }

    // Superblocks.

    /// Builds the next superblock in `superblock_bytes`; returns where it goes. It goes to the slot
    /// that does not hold the newest durable one, so that a torn write leaves that one.
    pub(super) fn build_superblock(&mut self, clean: bool) -> u64 {
        let superblock = &mut self.superblock;
        superblock.generation += 1;
        superblock.tail = self.tail.position;
        superblock.tail_messages = self.tail.messages;
        superblock.checkpoint = self.durable.position;
        superblock.checkpoint_number = self.durable.number;
        superblock.checkpoint_messages = self.durable.messages;
        superblock.checkpoint_ns = self.durable.received_ns;
        superblock.clean = clean;
        // With `process`, consumers run ahead of what is durable. A cursor must not: it would point behind the end of
        // the log that a power cut leaves. An older one only means that messages are delivered again.
        let cursors = superblock.consumers;
        for consumer in superblock.consumers.iter_mut().flatten() {
            consumer.scan_pos = consumer.scan_pos.min(superblock.checkpoint);
            consumer.done_pos = consumer.done_pos.min(superblock.checkpoint);
        }
        superblock.encode_into(&mut self.superblock_bytes);
        self.superblock_needed = false;
        self.cursors_moved = superblock.consumers != cursors;
        superblock.consumers = cursors;
        SUPERBLOCK_OFFSETS[1 - self.durable_slot]
    }

    /// Writes a superblock at once. Its tail frees space only where that needs no durability.
    pub(super) fn write_superblock(&mut self, clean: bool) -> Result<(), Failed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let at = self.build_superblock(clean);
        let bytes: &[u8] = &*self.superblock_bytes;
        if let Err(error) = backing::write_all_at(&mut self.backing, bytes, at) {
            return Err(self.fail("write", &error));
        }
        if self.settings.survive != Survive::Power {
            self.freed_up_to(self.tail.position);
        }
        if self.settings.survive == Survive::Nothing {
            self.durable_slot = 1 - self.durable_slot;
            self.durable_generation = self.superblock.generation;
        }
        Ok(())
    }

    pub(super) fn freed_up_to(&mut self, tail: u64) {
        assert!(self.space_tail <= tail && tail <= self.tail.position);
        self.space_tail = tail;
        let used = page_ceil(self.head.position) - page_floor(tail);
        if used + self.wanted_bytes + self.large_bytes + self.epoch_reserve() <= self.data_size() {
            self.wanted_bytes = 0;
        }
    }

    // Consumers.

    /// Registered consumers, in the order of the table.
    pub fn consumers(&self) -> impl Iterator<Item = &Consumer> {
        self.superblock.consumers.iter().flatten()
    }

    /// The consumer of this name.
    pub fn consumer(&self, name: &ConsumerName) -> Option<&Consumer> {
        self.consumers().find(|consumer| consumer.name == *name)
    }

    /// Registers a consumer that holds the tail from now on. Durable with the next sync, which
    /// [`Log::sync_wanted`] then asks for.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub fn register(
        &mut self,
        name: ConsumerName,
        start: StartAt,
    ) -> Result<Consumer, ConsumerError> {
        if let Some(failed) = self.failed {
            return Err(ConsumerError::Failed(failed));
        }
        if self.settings.full == FullPolicy::Overwrite {
            return Err(ConsumerError::Overwrite);
        }
        if self.consumer(&name).is_some() {
            return Err(ConsumerError::Exists);
        }
        let position = self.resolve(start)?;
        let consumer = Consumer {
            name,
            scan_pos: position,
            done_pos: position,
            flags: CONSUMER_REQUIRED,
            updated_ns: self.turn_ns,
        };
        let entry = self
            .superblock
            .consumers
            .iter_mut()
            .find(|entry| entry.is_none())
            .ok_or(ConsumerError::TableFull)?;
        *entry = Some(consumer);
        self.superblock_needed = true;
        self.review_admission();
        Ok(consumer)
    }

    /// Moves a consumer's cursor forward. Kept lazily: after a crash an older cursor may count, and
    /// messages are delivered again.
    ///
    /// # Errors
    /// `Unknown`, `GoesBack`, `NotKept` (behind what is acknowledged to clients, or scan_pos behind done_pos).
    pub fn acknowledge(
        &mut self,
        name: &ConsumerName,
        scan_pos: u64,
        done_pos: u64,
    ) -> Result<(), ConsumerError> {
        if let Some(failed) = self.failed {
            return Err(ConsumerError::Failed(failed));
        }
        let (acknowledged, turn_ns) = (self.acknowledged(), self.turn_ns);
        let consumer = self.consumer_mut(name)?;
        if scan_pos < consumer.scan_pos || done_pos < consumer.done_pos {
            return Err(ConsumerError::GoesBack);
        }
        if scan_pos > done_pos || done_pos > acknowledged {
            return Err(ConsumerError::NotKept);
        }
        if !scan_pos.is_multiple_of(RECORD_ALIGN) || !done_pos.is_multiple_of(RECORD_ALIGN) {
            return Err(ConsumerError::NotARecord);
        }
        consumer.scan_pos = scan_pos;
        consumer.done_pos = done_pos;
        consumer.updated_ns = turn_ns;
        self.cursors_moved = true;
        self.review_admission();
        Ok(())
    }

    /// Moves a consumer's cursor anywhere within what is kept.
    ///
    /// # Errors
    /// `Unknown`, `NotKept`, `NotARecord`.
    pub fn seek(&mut self, name: &ConsumerName, start: StartAt) -> Result<Consumer, ConsumerError> {
        if let Some(failed) = self.failed {
            return Err(ConsumerError::Failed(failed));
        }
        let position = self.resolve(start)?;
        let turn_ns = self.turn_ns;
        let consumer = self.consumer_mut(name)?;
        consumer.scan_pos = position;
        consumer.done_pos = position;
        consumer.updated_ns = turn_ns;
        let consumer = *consumer;
        self.superblock_needed = true;
        self.review_admission();
        Ok(consumer)
    }

    /// Removes a consumer; it holds nothing any more.
    ///
    /// # Errors
    /// `Unknown`, `Failed`.
    pub fn drop_consumer(&mut self, name: &ConsumerName) -> Result<(), ConsumerError> {
        if let Some(failed) = self.failed {
            return Err(ConsumerError::Failed(failed));
        }
        let entry = self
            .superblock
            .consumers
            .iter_mut()
            .find(|entry| {
                entry
                    .as_ref()
                    .is_some_and(|consumer| consumer.name == *name)
            })
            .ok_or(ConsumerError::Unknown)?;
        *entry = None;
        self.superblock_needed = true;
        self.review_admission();
        Ok(())
    }

    fn consumer_mut(&mut self, name: &ConsumerName) -> Result<&mut Consumer, ConsumerError> {
        self.superblock
            .consumers
            .iter_mut()
            .flatten()
            .find(|consumer| consumer.name == *name)
            .ok_or(ConsumerError::Unknown)
    }

    fn resolve(&self, start: StartAt) -> Result<u64, ConsumerError> {
        match start {
            StartAt::Oldest => Ok(self.tail.position),
            StartAt::Newest => Ok(self.acknowledged()),
            StartAt::Position(position) if position == self.acknowledged() => Ok(position),
            StartAt::Position(position) => {
                if position < self.tail.position || position > self.acknowledged() {
                    return Err(ConsumerError::NotKept);
                }
                if !position.is_multiple_of(RECORD_ALIGN) {
                    return Err(ConsumerError::NotARecord);
                }
                // A rare request, so that one read on the loop is affordable.
                let mut bytes = [0; RECORD_HEADER_BYTES];
                backing::read_exact_at(&self.backing, &mut bytes, self.superblock.place(position))
                    .map_err(|_| ConsumerError::NotARecord)?;
                match Header::decode(&bytes, self.superblock.ring_key) {
                    Ok(header) if header.position == position => Ok(position),
                    _ => Err(ConsumerError::NotARecord),
                }
            }
        }
    }
}

/// A list of parts for which the short array in `write` is enough, page filling included.
const SHORT_LIST: usize = 64;
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ringlog::backing::MemoryBacking;
    use crate::ringlog::format::DATA_OFFSET;
    use crate::ringlog::recover::{self, NewRing, OpenError, OpenOptions};

    const SIZE: u64 = 65_536;

    fn open_with(options: &OpenOptions) -> Log<MemoryBacking> {
        let mut backing = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + SIZE) as usize],
        };
        let new = NewRing {
            ring_id: [1; 16],
            ring_key: 2,
            data_size: SIZE,
            created_ns: 3,
        };
        recover::format(&mut backing, &new).unwrap();
        Log::open(backing, options).unwrap().0
    }

    fn open(survive: Survive, full: FullPolicy) -> Log<MemoryBacking> {
        let mut options = OpenOptions::new(survive, 1);
        options.full = full;
        open_with(&options)
    }

    fn append(log: &mut Log<MemoryBacking>, len: usize) -> Result<Slot, ReserveError> {
        log.begin_turn(1);
        let slot = log.reserve(len as u64)?;
        let payload = vec![slot.number as u8; len];
        let header = log.header(&slot, 0, crc32c::crc32c(&payload));
        let padding = [0; 64];
        log.write(&[
            IoSlice::new(&header),
            IoSlice::new(&payload),
            IoSlice::new(&padding[..slot.padding]),
        ])
        .unwrap();
        Ok(slot)
    }

    /// Appends and syncs until the ring refuses; at most four laps.
    fn fill(log: &mut Log<MemoryBacking>) -> Option<ReserveError> {
        for turn in 0..4 * SIZE / 576 {
            if let Err(error) = append(log, 512) {
                return Some(error);
            }
            log.sync_inline(Instant(turn)).unwrap();
        }
        None
    }

    #[test]
    fn ring_without_consumers_keeps_the_newest_mail_and_counts_what_it_overwrites() {
        for survive in [Survive::Nothing, Survive::Process, Survive::Power] {
            let mut log = open(survive, FullPolicy::Auto);
            assert_eq!(fill(&mut log), None, "{survive:?}");
            let status = log.status();
            assert_eq!(
                status.appended_messages,
                status.messages + status.overwritten_unread
            );
            assert!(status.messages * 576 > SIZE / 4 * 3, "{status:?}");
            assert!(status.written - status.tail <= SIZE);
            assert!(log.accepting());
        }
    }

    #[test]
    fn ring_that_defers_takes_no_more_when_full_and_overwrites_nothing() {
        let mut log = open(Survive::Power, FullPolicy::Defer);
        assert_eq!(fill(&mut log), Some(ReserveError::Full { freeing: false }));
        assert_eq!((log.tail(), log.status().overwritten_unread), (0, 0));
        assert!(!log.accepting());
        // A ring that is full of messages still opens with an EPOCH record, many times.
        let mut backing = log.into_backing();
        for _ in 0..40 {
            let mut options = OpenOptions::new(Survive::Power, 1);
            options.full = FullPolicy::Defer;
            let (log, recovery) = Log::open(backing, &options).unwrap();
            assert_eq!(recovery.tail, 0);
            backing = log.into_backing();
        }
    }

    #[test]
    fn consumer_holds_what_it_has_not_acknowledged_and_its_acknowledgement_frees_space() {
        let mut log = open(Survive::Power, FullPolicy::Auto);
        let name = ConsumerName::new("reader").unwrap();
        log.register(name, StartAt::Oldest).unwrap();
        assert_eq!(fill(&mut log), Some(ReserveError::Full { freeing: false }));
        assert_eq!(log.holder().map(|consumer| consumer.name), Some(name));
        assert!(!log.accepting());
        let durable = log.durable();
        log.acknowledge(&name, durable, durable).unwrap();
        assert!(log.accepting());
        assert_eq!(
            append(&mut log, 512),
            Err(ReserveError::Full { freeing: true })
        );
        assert!(log.sync_inline(Instant(1)).unwrap());
        let _ = append(&mut log, 512).unwrap();
        assert_eq!(log.status().overwritten_unread, 0);
        log.drop_consumer(&name).unwrap();
        assert_eq!(fill(&mut log), None);
    }

    #[test]
    fn cursors_stay_inside_what_is_kept_and_on_records() {
        let mut log = open(Survive::Power, FullPolicy::Auto);
        let name = ConsumerName::new("reader").unwrap();
        let end = append(&mut log, 100).unwrap().end;
        assert_eq!(log.acknowledge(&name, 0, 0), Err(ConsumerError::Unknown));
        let early = log.register(name, StartAt::Position(end));
        assert_eq!(early, Err(ConsumerError::NotKept), "not durable");
        log.sync_inline(Instant(1)).unwrap();
        let inside = log.register(name, StartAt::Position(128));
        assert_eq!(inside, Err(ConsumerError::NotARecord));
        log.register(name, StartAt::Position(64)).unwrap();
        assert_eq!(
            log.register(name, StartAt::Newest),
            Err(ConsumerError::Exists)
        );
        log.acknowledge(&name, end, end).unwrap();
        assert_eq!(
            log.acknowledge(&name, 64, end),
            Err(ConsumerError::GoesBack)
        );
        let beyond = log.acknowledge(&name, end, end + 64);
        assert_eq!(beyond, Err(ConsumerError::NotKept));
        assert_eq!(log.seek(&name, StartAt::Oldest).unwrap().scan_pos, 0);
        for index in 1..CONSUMERS_MAX {
            let name = ConsumerName::new(&format!("c{index}")).unwrap();
            log.register(name, StartAt::Newest).unwrap();
        }
        let full = log.register(ConsumerName::new("more").unwrap(), StartAt::Newest);
        assert_eq!(full, Err(ConsumerError::TableFull));
    }

    /// A consumer of a server with `--survive process` is given what was written and not synced yet. Its cursor was
    /// refused there, and the consumer ended.
    #[test]
    fn cursor_runs_ahead_of_the_background_sync_but_is_stored_no_further_than_it() {
        let mut log = open(Survive::Process, FullPolicy::Auto);
        let name = ConsumerName::new("reader").unwrap();
        let start = log.register(name, StartAt::Oldest).unwrap().scan_pos;
        let first = append(&mut log, 100).unwrap().end;
        let durable = log.durable();
        assert!(start <= durable && durable < first);
        log.acknowledge(&name, first, first).unwrap();
        assert_eq!(log.consumer(&name).unwrap().done_pos, first);
        assert_eq!(log.seek(&name, StartAt::Newest).unwrap().done_pos, first);
        assert_eq!(
            log.acknowledge(&name, first + 64, first + 64),
            Err(ConsumerError::NotKept)
        );
        let stored = |log: &mut Log<MemoryBacking>| {
            log.build_superblock(false);
            let superblock = Superblock::decode(&log.superblock_bytes).unwrap();
            let consumer = superblock
                .consumers
                .iter()
                .flatten()
                .next()
                .copied()
                .unwrap();
            (consumer.scan_pos, consumer.done_pos, superblock.checkpoint)
        };
        assert_eq!(stored(&mut log), (durable, durable, durable));
        // The cursor itself has not moved, and is stored as soon as it may be.
        assert_eq!(log.consumer(&name).unwrap().done_pos, first);
        assert!(log.cursors_moved);
        log.sync_now().unwrap();
        assert_eq!(stored(&mut log), (first, first, first));
        assert!(!log.cursors_moved);
    }

    #[test]
    fn overwrite_and_consumers_exclude_each_other_and_roles_may_need_one() {
        let mut log = open(Survive::Power, FullPolicy::Overwrite);
        let name = ConsumerName::new("reader").unwrap();
        assert_eq!(
            log.register(name, StartAt::Newest),
            Err(ConsumerError::Overwrite)
        );
        let mut options = OpenOptions::new(Survive::Power, 1);
        options.consumer_required = true;
        let backing = log.close().unwrap();
        let refused = Log::open(backing.clone(), &options).map(|_| ());
        assert!(matches!(refused, Err(OpenError::ConsumerRequired)));
        options.consumer_required = false;
        let (mut log, _) = Log::open(backing, &options).unwrap();
        log.register(name, StartAt::Newest).unwrap();
        let backing = log.close().unwrap();
        options.consumer_required = true;
        let (log, _) = Log::open(backing, &options).unwrap();
        assert_eq!(log.settings().full, FullPolicy::Defer);
        options.full = FullPolicy::Overwrite;
        let refused = Log::open(log.close().unwrap(), &options).map(|_| ());
        assert!(matches!(
            refused,
            Err(OpenError::ConsumersRegistered { count: 1 })
        ));
    }

    #[test]
    fn mail_older_than_keep_for_is_removed() {
        let mut options = OpenOptions::new(Survive::Power, 1);
        options.keep_for = Some(Duration::from_nanos(1_000));
        let mut log = open_with(&options);
        for turn in 0..40 {
            let _ = append(&mut log, 512).unwrap();
            log.sync_inline(Instant(turn)).unwrap();
        }
        log.begin_turn(900);
        assert_eq!(log.tail(), 0);
        log.begin_turn(2_000);
        assert!(
            log.messages() <= SIZE / MARKS as u64 / 576 + 1,
            "{}",
            log.messages()
        );
    }

    /// A message that never got company stayed for years: the tail moved from part to part of the ring alone, and the
    /// one that it stood in was never full.
    #[test]
    fn the_last_mail_of_a_quiet_ring_goes_at_its_age_unless_a_consumer_holds_it() {
        let mut options = OpenOptions::new(Survive::Power, 1);
        options.keep_for = Some(Duration::from_nanos(1_000));
        let mut log = open_with(&options);
        log.begin_turn(100);
        let slot = append(&mut log, 512).unwrap();
        // Not durable yet: it stays, however old.
        log.begin_turn(1_090);
        assert_eq!((log.tail(), log.messages()), (0, 1));
        log.sync_inline(Instant(1)).unwrap();
        // Not older than it may be.
        log.begin_turn(1_100);
        assert_eq!((log.tail(), log.messages()), (0, 1));
        log.begin_turn(1_101);
        assert_eq!((log.tail(), log.messages()), (slot.end, 0));
        assert_eq!(log.overwritten_unread, 1);

        let name = ConsumerName::new("archive").unwrap();
        log.register(name, StartAt::Newest).unwrap();
        let held = append(&mut log, 512).unwrap();
        log.sync_inline(Instant(2)).unwrap();
        log.begin_turn(10_000);
        assert_eq!((log.tail(), log.messages()), (slot.end, 1));
        log.acknowledge(&name, held.end, held.end).unwrap();
        log.begin_turn(10_001);
        assert_eq!((log.tail(), log.messages()), (held.end, 0));
    }

    #[test]
    fn group_commit_has_one_sync_in_flight_and_acknowledges_what_was_written_before_it() {
        let mut log = open(Survive::Power, FullPolicy::Auto);
        let first = append(&mut log, 10).unwrap();
        assert_eq!(log.sync_wanted(Instant(1)).unwrap().target, first.end);
        let second = append(&mut log, 10).unwrap();
        assert!(log.sync_wanted(Instant(1)).is_none());
        assert!(log.acknowledged() < first.end);
        log.sync_completed(first.end, Ok(())).unwrap();
        assert_eq!(log.acknowledged(), first.end);
        assert_eq!(log.sync_wanted(Instant(1)).unwrap().target, second.end);
        log.sync_completed(second.end, Ok(())).unwrap();
        assert_eq!(log.acknowledged(), second.end);
        assert!(log.sync_wanted(Instant(1)).is_none(), "nothing to do");
    }

    #[test]
    fn process_level_acknowledges_at_once_and_syncs_after_a_second() {
        let mut log = open(Survive::Process, FullPolicy::Auto);
        let slot = append(&mut log, 10).unwrap();
        assert_eq!(log.acknowledged(), slot.end);
        assert!(log.sync_wanted(Instant(999_999_999)).is_none());
        let target = log.sync_wanted(Instant(1_000_000_000)).unwrap().target;
        assert_eq!(target, slot.end);
        log.sync_completed(target, Ok(())).unwrap();
        assert_eq!(log.durable(), slot.end);
    }

    #[test]
    fn large_message_keeps_its_space_while_small_ones_fill_the_rest() {
        let mut log = open(Survive::Power, FullPolicy::Defer);
        let total = log.payload_bytes_max();
        assert_eq!(
            log.begin_large(total + 1).unwrap_err(),
            ReserveError::TooLarge
        );
        let mut large = log.begin_large(total).unwrap();
        assert_eq!(log.begin_large(1).unwrap_err(), ReserveError::Busy);
        assert_eq!(fill(&mut log), Some(ReserveError::Full { freeing: false }));
        let mut kinds = Vec::new();
        while large.remaining() > 0 {
            log.begin_turn(1);
            let bytes = large.remaining().min(3_000);
            let slot = log.reserve_fragment(&mut large, bytes).unwrap();
            let payload = vec![0; slot.payload_bytes as usize + slot.padding];
            let header = log.header(&slot, 0, 0);
            log.write(&[IoSlice::new(&header), IoSlice::new(&payload)])
                .unwrap();
            kinds.push(slot.kind);
        }
        assert_eq!(kinds, [Kind::First, Kind::Middle, Kind::Last]);
        assert_eq!(large.whole(0).fragments, 3);
        assert!(!log.large_open);
    }

    #[test]
    fn more_parts_than_one_call_takes_are_written_in_order() {
        let mut log = open(Survive::Power, FullPolicy::Auto);
        let from = log.written();
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for _ in 0..400 {
            let slot = log.reserve(3).unwrap();
            parts.push(log.header(&slot, 0, crc32c::crc32c(b"abc")).to_vec());
            parts.push(b"abc".to_vec());
            parts.push(vec![0; slot.padding]);
        }
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        assert!(slices.len() > IOV_MAX);
        log.write(&slices).unwrap();
        let at = log.superblock().place(from) as usize;
        let expected = parts.concat();
        assert_eq!(log.backing().bytes[at..at + expected.len()], expected);
    }
}
