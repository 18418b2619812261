//! Opening a ring: which superblock counts, where the log ends, what was lost.
//!
//! ```text
//! newest valid superblock; p = tail; headers only up to the checkpoint, payloads too behind it
//! record good at p -> raise hint, epoch, number; p = its end
//! otherwise look ahead in 64-byte steps for valid headers; they raise hint, epoch and number too
//!   one of a later lap (or broken records close to the tail of a ring with early ones)
//!               -> the superblock is stale: the tail moves to the oldest record from which an
//!                  unbroken chain reaches the head
//!   p >= hint   -> torn and never acknowledged: the log ends at p
//!   p <  hint   -> acknowledged data is damaged: never cut; refused unless the loss is accepted,
//!                  then the range becomes a PAD record with the flag LOST
//! then: write the superblock and the bytes from the checkpoint to p again, sync;
//!       where the tail moved: superblock, sync;
//!       EPOCH record, sync, superblock, sync, the other superblock, sync
//! ```
//! EPOCH goes into space that is free by the superblock found, which may be in the cache only: it is
//! written when that superblock is durable, like every record.
//!
//! Nothing is written before all of it has been read and judged, so a refused ring is untouched. A
//! crash at any point leaves a ring from which the same is found again. Memory is bounded by
//! [`WINDOW_BYTES`] and [`LOST_RANGES_MAX`]; the ring is read at most a few times.

use std::fmt;
use std::io;
use std::time::Duration;

use super::backing::{self, Backing};
use super::format::{
    DATA_OFFSET, FORMAT_MINOR, HINT_UNKNOWN, Header, Kind, MARKS, Mark, RECORD_ALIGN, RECORD_EARLY,
    RECORD_LOST, RECORD_MAGIC, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, SuperblockError,
    page_ceil, page_floor, write_newer,
};
use super::writer::{
    BACKGROUND_SYNC_BYTES, CommitAlign, Failed, FullPolicy, Log, Point, Settings, Start, Survive,
};
use crate::limits::{
    CONSUMERS_MAX, GIB, NUMBERS_SKIPPED_BY_RECOVERY, PAGE_BYTES, RECORD_HEADER_BYTES,
};

/// Bytes read at a time.
pub const WINDOW_BYTES: usize = 256 * 1024;
/// Damaged ranges that can be accepted as lost. A ring with more of them does not open at all.
pub const LOST_RANGES_MAX: usize = 1_024;

/// How a ring is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// What a 250 survives.
    pub survive: Survive,
    /// What happens when the ring is full.
    pub full: FullPolicy,
    /// Age after which mail that nobody holds is removed.
    pub keep_for: Option<Duration>,
    /// A listener's role needs a consumer: without one the ring does not open, and nothing is
    /// overwritten.
    pub consumer_required: bool,
    /// Open although acknowledged mail is damaged.
    pub accept_loss: bool,
    /// What the device leaves whole when power fails amid a write.
    pub commit_align: CommitAlign,
    /// Wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
}

impl OpenOptions {
    /// Options with `--full auto`, nothing required and no loss accepted.
    pub fn new(survive: Survive, wall_ns: u64) -> OpenOptions {
        OpenOptions {
            survive,
            full: FullPolicy::Auto,
            keep_for: None,
            consumer_required: false,
            accept_loss: false,
            commit_align: CommitAlign::Sector,
            wall_ns,
        }
    }
}

/// A damaged range of acknowledged data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// First damaged position.
    pub from: u64,
    /// Position behind it.
    pub to: u64,
    /// Number of the first message that may be in it.
    pub number: u64,
    /// Epoch of the record before it.
    pub epoch: u32,
    /// received_ns of the record before it.
    pub received_ns: u64,
}

/// What opening found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The ring had been closed in order; nothing was scanned.
    pub clean: bool,
    /// Oldest position kept.
    pub tail: u64,
    /// Where the log ended, before the EPOCH record of this opening.
    pub head: u64,
    /// Messages kept.
    pub messages: u64,
    /// Number of the next message.
    pub next_number: u64,
    /// Epoch of this opening.
    pub epoch: u32,
    /// Numbers left out so that none is used twice.
    pub numbers_skipped: u64,
    /// Valid record headers behind the end: torn or out of order, never acknowledged.
    pub discarded_records: u64,
    /// Bytes from the end of the log to the end of the last of them.
    pub discarded_bytes: u64,
    /// Bytes from the checkpoint on that were written again.
    pub rewritten_bytes: u64,
    /// The tail of the superblock was stale and was moved up by so many bytes.
    pub tail_moved_bytes: u64,
    /// Consumers whose position had been overwritten and that now begin at the tail.
    pub consumers_moved: u32,
    /// Acknowledged data that is damaged, accepted as lost by this opening.
    pub lost: Vec<LostRange>,
}

/// Why a ring can't be opened. Nothing was changed, except where noted.
#[derive(Debug)]
pub enum OpenError {
    /// There is no ring at this place.
    Missing,
    /// There is a ring already; creating one does not touch it.
    Exists,
    /// The file is no ring, or both superblocks are damaged.
    NotARing {
        /// Both magics are there, or one: it was a ring.
        damaged: bool,
    },
    /// The ring was written by a later version.
    NewerFormat {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
        /// Feature bits that are not known here.
        features: u32,
    },
    /// The file is shorter than the superblock says.
    WrongSize {
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        actual: u64,
    },
    /// Another process has it open for writing.
    InUse,
    /// File or directory belongs to another user or is no plain file or directory.
    NotOurs(&'static str),
    /// Acknowledged mail is damaged and the loss was not accepted.
    DamagedAcknowledged {
        /// The ranges.
        lost: Vec<LostRange>,
    },
    /// `--full overwrite` with registered consumers.
    ConsumersRegistered {
        /// How many.
        count: usize,
    },
    /// A listener's role needs a consumer and none is registered.
    ConsumerRequired,
    /// The storage failed.
    Io {
        /// What was attempted.
        operation: &'static str,
        /// What it answered.
        error: io::Error,
    },
    /// Writing or syncing failed during recovery. The process must not try again.
    Failed(Failed),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Missing => f.write_str("there is no ring; ringmx ring create makes one"),
            OpenError::Exists => {
                f.write_str("there is a file of that name already; it is left alone")
            }
            OpenError::NotARing { damaged: false } => {
                f.write_str("the file is not a ring; move it away or name another directory")
            }
            OpenError::NotARing { damaged: true } => f.write_str(
                "both superblocks of the ring are damaged; ringmx log rescue saves the messages, on \
                 request into a new ring",
            ),
            OpenError::NewerFormat {
                major,
                minor,
                features,
            } => write_newer(f, *major, *minor, *features),
            OpenError::WrongSize { expected, actual } => write!(
                f,
                "the ring should have {expected} bytes and has {actual}; it was truncated or \
                 copied in part; ringmx log rescue saves what is left"
            ),
            OpenError::InUse => f.write_str("another process has the ring open; stop it first"),
            OpenError::NotOurs(what) => write!(f, "{what}"),
            OpenError::DamagedAcknowledged { lost } => {
                let bytes: u64 = lost.iter().map(|range| range.to - range.from).sum();
                let places = lost.len();
                if places > LOST_RANGES_MAX {
                    return write!(
                        f,
                        "acknowledged mail in more than {LOST_RANGES_MAX} places is damaged, more \
                         than --accept-loss gives up; ringmx log rescue --to-ring makes a new ring \
                         of what is whole"
                    );
                }
                write!(
                    f,
                    "{bytes} bytes of acknowledged mail in {places} places are damaged; ringmx log \
                     rescue saves what is whole, --accept-loss starts without the rest"
                )
            }
            OpenError::ConsumersRegistered { count } => write!(
                f,
                "{count} consumers are registered, and --full overwrite would overwrite what they \
                 have not read; drop them with ringmx consumers drop, or use --full auto"
            ),
            OpenError::ConsumerRequired => f.write_str(
                "a listener with role mx or submission needs a consumer; register one with \
                 ringmx consume NAME --create",
            ),
            OpenError::Io { operation, error } => write!(f, "{operation} the ring: {error}"),
            OpenError::Failed(failed) => failed.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<Failed> for OpenError {
    fn from(failed: Failed) -> OpenError {
        OpenError::Failed(failed)
    }
}

fn reading(error: io::Error) -> OpenError {
    OpenError::Io {
        operation: "reading",
        error,
    }
}

/// Identity and geometry of a ring that is being created.
#[derive(Clone, Copy, Debug)]
pub struct NewRing {
    /// Public identity, random.
    pub ring_id: [u8; 16],
    /// Secret, random.
    pub ring_key: u64,
    /// Bytes of the data area: a multiple of 4,096, at least 64 KiB.
    pub data_size: u64,
    /// Wall clock, nanoseconds since 1970.
    pub created_ns: u64,
}

/// Smallest data area that [`format()`] makes, bytes. Servers make larger ones.
pub const DATA_BYTES_MIN: u64 = 64 * 1024;

/// Writes both superblocks of an empty ring to storage that holds zeros. Not synced.
///
/// # Errors
/// What the storage reports; `InvalidInput` when `data_size` is no multiple of 4,096, below
/// [`DATA_BYTES_MIN`], or does not fit the storage.
pub fn format<B: Backing>(backing: &mut B, new: &NewRing) -> io::Result<()> {
    format_in_epoch(backing, new, 0)
}

/// As [`format()`], for the copy of a ring whose last epoch was `epoch`.
pub(super) fn format_in_epoch<B: Backing>(
    backing: &mut B,
    new: &NewRing,
    epoch: u32,
) -> io::Result<()> {
    if new.data_size < DATA_BYTES_MIN
        || !new.data_size.is_multiple_of(crate::limits::PAGE_BYTES)
        || backing.len().checked_sub(DATA_OFFSET) < Some(new.data_size)
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut superblock = Superblock {
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        format_minor: FORMAT_MINOR,
        epoch,
        ring_id: new.ring_id,
        ring_key: new.ring_key,
        generation: 0,
        data_offset: DATA_OFFSET,
        data_size: new.data_size,
        tail: 0,
        tail_messages: 0,
        checkpoint: 0,
        checkpoint_number: 1,
        checkpoint_messages: 0,
        checkpoint_ns: 0,
        created_ns: new.created_ns,
        clean: true,
        consumers: [None; CONSUMERS_MAX],
        marks: [None; MARKS],
    };
    for at in SUPERBLOCK_OFFSETS {
        superblock.generation += 1;
        backing::write_all_at(backing, &superblock.encode(), at)?;
    }
    Ok(())
}

/// The newest valid superblock of a ring.
#[derive(Clone, Debug)]
pub struct Found {
    /// The superblock.
    pub superblock: Superblock,
    /// Which of [`SUPERBLOCK_OFFSETS`] it stands at.
    pub slot: usize,
    /// Largest epoch of the two.
    pub epoch: u32,
}

/// Reads both superblocks and chooses. For readers too: it writes nothing.
///
/// # Errors
/// `NotARing`, `NewerFormat`, `WrongSize`, `Io`.
pub fn find_superblock<B: Backing>(backing: &B) -> Result<Found, OpenError> {
    let mut found: Option<Found> = None;
    let mut epoch = 0;
    let mut damaged = false;
    let mut newer = None;
    for (slot, at) in SUPERBLOCK_OFFSETS.into_iter().enumerate() {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        match backing::read_exact_at(backing, &mut bytes, at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(reading(error)),
        }
        match Superblock::decode(&bytes) {
            Ok(superblock) => {
                epoch = epoch.max(superblock.epoch);
                if found
                    .as_ref()
                    .is_none_or(|old| old.superblock.generation < superblock.generation)
                {
                    found = Some(Found {
                        superblock,
                        slot,
                        epoch,
                    });
                }
            }
            Err(SuperblockError::Newer {
                major,
                minor,
                features,
            }) => {
                newer = Some(OpenError::NewerFormat {
                    major,
                    minor,
                    features,
                });
            }
            Err(SuperblockError::Checksum | SuperblockError::Field(_)) => damaged = true,
            Err(SuperblockError::Magic) => {}
        }
    }
    // One of a later version means that a later version has written here: hands off.
    if let Some(newer) = newer {
        return Err(newer);
    }
    let mut found = found.ok_or(OpenError::NotARing { damaged })?;
    found.epoch = epoch;
    // A clean one is written behind a good one of the generation before. Where that is missing, a
    // newer superblock may have been there and be damaged: then this one says how the ring was
    // closed some time ago, and all that came after would be lost without a word.
    if other_generation(backing, found.slot) != Some(found.superblock.generation.wrapping_sub(1)) {
        found.superblock.clean = false;
    }
    let expected = found.superblock.data_offset + found.superblock.data_size;
    let actual = backing.len();
    if actual < expected {
        return Err(OpenError::WrongSize { expected, actual });
    }
    Ok(found)
}

/// Generation of the superblock that is not at `slot`, if it is valid.
fn other_generation<B: Backing>(backing: &B, slot: usize) -> Option<u64> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    backing::read_exact_at(backing, &mut bytes, SUPERBLOCK_OFFSETS[1 - slot]).ok()?;
    Some(Superblock::decode(&bytes).ok()?.generation)
}

/// What [`Log::open`] would refuse to give up, or gives up when the loss is accepted. Writes nothing.
///
/// # Errors
/// As [`find_superblock`].
pub fn find_lost<B: Backing>(backing: &B) -> Result<Vec<LostRange>, OpenError> {
    let found = find_superblock(backing)?;
    match found.superblock.clean {
        true => Ok(Vec::new()),
        false => Ok(Scan::new(backing, &found)?.judge()?.lost),
    }
}

impl<B: Backing> Log<B> {
    /// Opens a ring for writing: recovers it if it was not closed in order, begins a new epoch, and
    /// makes that durable. The caller holds the exclusive lock and has started no sync thread yet.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was written unless it is `Failed`.
    pub fn open(mut backing: B, options: &OpenOptions) -> Result<(Log<B>, Recovery), OpenError> {
        let found = find_superblock(&backing)?;
        if found.superblock.features_read_only != 0 {
            return Err(OpenError::NewerFormat {
                major: super::format::FORMAT_MAJOR,
                minor: found.superblock.format_minor,
                features: found.superblock.features_read_only,
            });
        }
        let full = check_consumers(&found.superblock, options)?;
        let mut judged = if found.superblock.clean {
            Judged::clean(&found)
        } else {
            Scan::new(&backing, &found)?.judge()?
        };
        let acceptable = options.accept_loss && judged.lost.len() <= LOST_RANGES_MAX;
        if !judged.lost.is_empty() && !acceptable {
            return Err(OpenError::DamagedAcknowledged { lost: judged.lost });
        }
        let consumers_moved = judged.clamp_consumers();
        let rewritten_bytes = judged
            .repair(&mut backing, &found, options)
            .map_err(|error| {
                OpenError::Failed(Failed {
                    operation: "write",
                    errno: error.raw_os_error().unwrap_or(0),
                })
            })?;

        let recovery = Recovery {
            clean: found.superblock.clean,
            tail: judged.superblock.tail,
            head: judged.head.position,
            messages: judged.head.messages - judged.superblock.tail_messages,
            next_number: judged.head.number,
            epoch: judged.superblock.epoch,
            numbers_skipped: judged.numbers_skipped,
            discarded_records: judged.discarded_records,
            discarded_bytes: judged.discarded_bytes,
            rewritten_bytes,
            tail_moved_bytes: judged.superblock.tail - found.superblock.tail,
            consumers_moved,
            lost: judged.lost,
        };
        let settings = Settings {
            survive: options.survive,
            full,
            keep_for: options.keep_for,
            commit_align: options.commit_align,
        };
        let start = Start {
            superblock: judged.superblock,
            durable_slot: found.slot,
            head: judged.head,
            hint: judged.hint,
        };
        let mut log = Log::start(backing, settings, start);
        log.turn_ns = log.turn_ns.max(options.wall_ns);
        // The superblock found may be one that no sync has covered: the process died before its sync, or that sync
        // failed. The EPOCH record may take space which that superblock alone says is free. Without this sync a loss of
        // power could leave the superblock before it, and a page behind that one's tail torn.
        log.sync_now()?;
        if recovery.tail_moved_bytes > 0 {
            // So far the space is free in memory only.
            log.write_superblock(false)?;
            log.sync_now()?;
        }
        // Without space for it the superblock alone carries the epoch.
        log.append_epoch()?;
        log.sync_now()?;
        // Both, because an older one that says "clean" must not count should the newer be damaged.
        for _ in SUPERBLOCK_OFFSETS {
            log.write_superblock(false)?;
            log.sync_now()?;
        }
        log.begin_turn(options.wall_ns);
        Ok((log, recovery))
    }
}

/// Applies the policy that listeners' roles demand; returns the one in force.
fn check_consumers(
    superblock: &Superblock,
    options: &OpenOptions,
) -> Result<FullPolicy, OpenError> {
    let count = superblock.consumers.iter().flatten().count();
    if options.full == FullPolicy::Overwrite && count > 0 {
        return Err(OpenError::ConsumersRegistered { count });
    }
    if !options.consumer_required {
        return Ok(options.full);
    }
    let holds = |consumer: &super::format::Consumer| consumer.is_required();
    if !superblock.consumers.iter().flatten().any(holds) {
        return Err(OpenError::ConsumerRequired);
    }
    Ok(FullPolicy::Defer)
}

/// What is to be made of the ring.
struct Judged {
    /// As the log starts with it: tail, marks, epoch.
    superblock: Superblock,
    head: Point,
    hint: u64,
    /// Bytes from here to the head may be in the page cache only.
    suspect_from: u64,
    numbers_skipped: u64,
    discarded_records: u64,
    discarded_bytes: u64,
    lost: Vec<LostRange>,
    /// What stands behind the checkpoint was promised from the cache.
    trusts_cache: bool,
}

impl Judged {
    fn clean(found: &Found) -> Judged {
        let mut superblock = found.superblock.clone();
        superblock.epoch = found.epoch.saturating_add(1);
        let head = Point {
            position: superblock.checkpoint,
            number: superblock.checkpoint_number,
            messages: superblock.checkpoint_messages,
            received_ns: superblock.checkpoint_ns,
        };
        Judged {
            head,
            hint: head.position,
            suspect_from: head.position,
            numbers_skipped: 0,
            discarded_records: 0,
            discarded_bytes: 0,
            lost: Vec::new(),
            trusts_cache: false,
            superblock,
        }
    }

    /// Consumers whose place was overwritten begin at the tail.
    fn clamp_consumers(&mut self) -> u32 {
        let (tail, head) = (self.superblock.tail, self.head.position);
        let mut moved = 0;
        for consumer in self.superblock.consumers.iter_mut().flatten() {
            let before = *consumer;
            consumer.scan_pos = consumer.scan_pos.clamp(tail, head);
            consumer.done_pos = consumer.done_pos.clamp(consumer.scan_pos, head);
            moved += u32::from(*consumer != before);
        }
        moved
    }

    /// Writes PAD over what was lost, and writes again what a failed write-back may have left in
    /// the cache only, the superblock included.
    fn repair<B: Backing>(
        &self,
        backing: &mut B,
        found: &Found,
        options: &OpenOptions,
    ) -> io::Result<u64> {
        for range in &self.lost {
            self.pad(backing, range)?;
        }
        if options.survive == Survive::Nothing {
            return Ok(0);
        }
        let mut piece = vec![0; WINDOW_BYTES];
        let align = options.commit_align;
        let asks_medium = align == CommitAlign::Page && !self.trusts_cache;
        // A clean one too: if the sync behind it failed, the cache has it and the medium may not, and the next
        // superblock goes over the only other.
        rewrite_superblock(backing, SUPERBLOCK_OFFSETS[found.slot], asks_medium)?;
        if found.superblock.clean {
            return Ok(0);
        }
        let mut rewritten = 0;
        let size = self.superblock.data_size;
        let mut position = self.suspect_from;
        while position < self.head.position {
            let len = (self.head.position - position)
                .min(size - position % size)
                .min(WINDOW_BYTES as u64);
            let place = self.superblock.place(position);
            rewritten += rewrite(
                backing,
                &mut piece[..len as usize],
                place,
                align,
                self.trusts_cache,
            )?;
            position += len;
        }
        Ok(rewritten)
    }

    fn pad<B: Backing>(&self, backing: &mut B, range: &LostRange) -> io::Result<()> {
        let mut position = range.from;
        while position < range.to {
            let extent = (range.to - position).min(GIB);
            let header = Header {
                position,
                number: range.number,
                len: (extent - RECORD_ALIGN) as u32,
                payload_crc: 0,
                epoch: range.epoch,
                kind: Kind::Pad,
                flags: RECORD_LOST,
                env_len: 0,
                hint_back: HINT_UNKNOWN,
                received_ns: range.received_ns,
            };
            backing::write_all_at(
                backing,
                &header.encode(self.superblock.ring_key),
                self.superblock.place(position),
            )?;
            position += extent;
        }
        Ok(())
    }
}

/// Writes the superblock that counts once more, as it was read. Never what the medium has in its place: that may be an
/// older one, or half of this one, and the next superblock goes over the only other. `asks_medium`: nothing is written
/// where the medium has the same bytes.
fn rewrite_superblock<B: Backing>(backing: &mut B, at: u64, asks_medium: bool) -> io::Result<()> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    backing::read_exact_at(backing, &mut bytes, at)?;
    let mut there = [0; SUPERBLOCK_BYTES];
    if asks_medium && backing.read_medium_at(&mut there, at) && there == bytes {
        return Ok(());
    }
    backing::write_all_at(backing, &bytes, at)
}

/// Writes the same bytes once more, as the medium has them where it tells; bytes written. With
/// [`CommitAlign::Page`] only the pages of which the cache has others than the medium: no other may
/// be written again, because what is acknowledged stands in them. `trusts_cache`: the medium is not
/// asked.
fn rewrite<B: Backing>(
    backing: &mut B,
    piece: &mut [u8],
    at: u64,
    align: CommitAlign,
    trusts_cache: bool,
) -> io::Result<u64> {
    if trusts_cache || !backing.read_medium_at(piece, at) {
        backing::read_exact_at(backing, piece, at)?;
    } else if align == CommitAlign::Page {
        return rewrite_differing_pages(backing, piece, at);
    }
    backing::write_all_at(backing, piece, at)?;
    Ok(piece.len() as u64)
}

/// Writes those pages of `piece`, as the medium has them, of which the cache has other bytes.
fn rewrite_differing_pages<B: Backing>(backing: &mut B, piece: &[u8], at: u64) -> io::Result<u64> {
    let mut cached = vec![0; piece.len()];
    backing::read_exact_at(backing, &mut cached, at)?;
    let mut rewritten = 0;
    let mut from = 0;
    while from < piece.len() {
        let place = at + from as u64;
        let len = (page_floor(place) + PAGE_BYTES - place).min((piece.len() - from) as u64);
        let page = from..from + len as usize;
        if piece[page.clone()] != cached[page.clone()] {
            backing::write_all_at(backing, &piece[page.clone()], place)?;
            rewritten += len;
        }
        from = page.end;
    }
    Ok(rewritten)
}

/// What a look ahead over a stretch of the ring found.
#[derive(Clone, Copy, Debug, Default)]
struct Ahead {
    /// A record of a later lap than the superblock's tail allows.
    later_lap: bool,
    /// A record that was acknowledged before it was durable.
    early: bool,
    hint: u64,
    /// Largest position.
    newest: u64,
    epoch: u32,
    /// Smallest number that none of the records can have used.
    number: u64,
    records: u64,
    /// End of the last of them.
    end: u64,
}

/// Reads the ring in absolute positions.
struct Scan<'a, B: Backing> {
    backing: &'a B,
    found: &'a Found,
    superblock: Superblock,
    window: Vec<u8>,
    /// Position of the first byte of the window.
    window_at: u64,
    window_len: u64,
    /// From this position on the medium is read and not the cache.
    medium_from: u64,
    /// What is known from the records passed.
    point: Point,
    epoch: u32,
    hint: u64,
}

impl<'a, B: Backing> Scan<'a, B> {
    fn new(backing: &'a B, found: &'a Found) -> Result<Scan<'a, B>, OpenError> {
        let mut superblock = found.superblock.clone();
        superblock.marks = [None; MARKS];
        Ok(Scan {
            backing,
            found,
            window: vec![0; WINDOW_BYTES],
            window_at: 0,
            window_len: 0,
            medium_from: u64::MAX,
            point: Point {
                position: superblock.tail,
                number: 0,
                messages: superblock.tail_messages,
                received_ns: 0,
            },
            epoch: 0,
            hint: superblock.checkpoint,
            superblock,
        })
    }

    fn judge(mut self) -> Result<Judged, OpenError> {
        let tail = self.superblock.tail;
        let limit = tail + self.superblock.data_size;
        let verify_from = self.superblock.checkpoint;
        // What was synced before the checkpoint is on the medium; behind it a failed write-back may
        // have left pages that are clean and hold what the medium does not.
        // Records that were acknowledged before they were durable are promised from the cache, whatever the medium has.
        let first = self.header_at(verify_from).map_err(reading)?;
        let trusts_cache = first.is_some_and(|header| header.flags & RECORD_EARLY != 0);
        if !trusts_cache {
            self.read_medium_from(verify_from);
        }
        self.pass_good(limit, verify_from).map_err(reading)?;
        // Nothing is written behind a failed sync, so that the hints, epochs and numbers of headers
        // that are in the cache alone are true all the same; and this is the rest of the ring.
        self.read_medium_from(u64::MAX);
        let ahead_from = self.point.position;
        let ahead = self.look_ahead(ahead_from, limit).map_err(reading)?;
        self.hint = self.hint.max(ahead.hint);
        let mut lost = Vec::new();
        let mut tail_moved = false;
        let reach = match (ahead.later_lap, ahead.early) {
            (true, true) => u64::MAX,
            // Where nothing is acknowledged early, space is used again only behind a durable
            // superblock: this one is old because a newer one was damaged, and what was overwritten
            // ends with the newest record. A break behind that is damage.
            (true, false) => page_ceil(ahead.end).saturating_sub(self.superblock.data_size),
            (false, true) => tail + REUSED_EARLY_BYTES_MAX,
            (false, false) => 0,
        };
        let broken = self.point.position < self.hint;
        if ahead.later_lap || broken && self.point.position < reach {
            tail_moved = true;
            self.judge_reused(reach, ahead.newest, &mut lost)
                .map_err(reading)?;
        } else {
            self.hint = self.hint.min(limit);
            while self.point.position < self.hint && lost.len() <= LOST_RANGES_MAX {
                self.pass_damage(limit, &mut lost).map_err(reading)?;
                self.pass_good(limit, verify_from).map_err(reading)?;
            }
        }
        let head = self.point.position;
        let beyond = if head == ahead_from {
            ahead
        } else {
            self.look_ahead(head, self.superblock.tail + self.superblock.data_size)
                .map_err(reading)?
        };
        let seen = self
            .point
            .number
            .max(self.superblock.checkpoint_number)
            .max(ahead.number)
            .max(beyond.number);
        let epoch = self
            .found
            .epoch
            .max(self.epoch)
            .max(ahead.epoch)
            .max(beyond.epoch);
        self.superblock.epoch = epoch.saturating_add(1);
        self.point.number = seen + NUMBERS_SKIPPED_BY_RECOVERY;
        self.point.received_ns = self.point.received_ns.max(self.superblock.checkpoint_ns);
        Ok(Judged {
            head: self.point,
            hint: self.hint.min(head),
            suspect_from: if tail_moved {
                self.superblock.tail
            } else {
                verify_from.max(tail)
            },
            numbers_skipped: NUMBERS_SKIPPED_BY_RECOVERY,
            discarded_records: beyond.records,
            discarded_bytes: beyond.end.saturating_sub(head),
            lost,
            trusts_cache,
            superblock: self.superblock,
        })
    }

    fn read_medium_from(&mut self, position: u64) {
        self.medium_from = position;
        self.window_len = 0;
    }

    /// Passes good records until the first bad one.
    fn pass_good(&mut self, limit: u64, verify_from: u64) -> io::Result<()> {
        while let Some(header) = self.record_at(self.point.position, limit, verify_from)? {
            self.pass(&header);
        }
        Ok(())
    }

    fn pass(&mut self, header: &Header) {
        Log::<B>::note_mark(
            &mut self.superblock,
            Mark {
                position: header.position,
                number: header.number.max(self.point.number),
                messages: self.point.messages,
                received_ns: header.received_ns.max(self.point.received_ns),
            },
        );
        self.hint = self.hint.max(header.durable_hint().unwrap_or(0));
        self.epoch = self.epoch.max(header.epoch);
        self.point.position = header.end();
        self.point.number = self.point.number.max(number_behind(header));
        self.point.messages += u64::from(matches!(header.kind, Kind::Message | Kind::Last));
        self.point.received_ns = self.point.received_ns.max(header.received_ns);
    }

    /// Acknowledged data is damaged at the current position: goes on at the next valid record, or
    /// where the acknowledged part ends.
    fn pass_damage(&mut self, limit: u64, lost: &mut Vec<LostRange>) -> io::Result<()> {
        let end = self.hint.min(limit);
        let to = self
            .next_record(self.point.position + RECORD_ALIGN, end)?
            .unwrap_or(end);
        lost.push(self.lost_range(to));
        self.point.position = to;
        Ok(())
    }

    fn lost_range(&self, to: u64) -> LostRange {
        LostRange {
            from: self.point.position,
            to,
            number: self.point.number,
            epoch: self.epoch,
            received_ns: self.point.received_ns,
        }
    }

    /// Space behind the superblock's tail has been used again. Follows every chain of records in
    /// the order of positions over two laps; the last one that reaches the head counts. Breaks at or
    /// behind the position `reach` are damage. `newest` is the largest position of a header.
    fn judge_reused(
        &mut self,
        reach: u64,
        newest: u64,
        lost: &mut Vec<LostRange>,
    ) -> io::Result<()> {
        let size = self.superblock.data_size;
        let mut start = self.superblock.tail;
        if newest >= start + 2 * size {
            // An older superblock still: nothing from more than a lap before the newest header is
            // left. Steps through the laps between would cost time without bound.
            start = newest + RECORD_ALIGN - size;
        }
        let limit = start + 2 * size;
        self.hint = self.hint.min(limit);
        self.superblock.marks = [None; MARKS];
        self.epoch = 0;
        self.point = Point {
            position: start,
            number: 0,
            messages: self.superblock.tail_messages,
            received_ns: 0,
        };
        let mut chain = Vec::new();
        loop {
            self.follow_chain(limit, &mut chain)?;
            let at = self.point.position;
            if at >= self.hint {
                break;
            }
            let next = self
                .next_record(at + RECORD_ALIGN, self.hint)?
                .unwrap_or(self.hint);
            if at < reach {
                chain.clear();
                self.superblock.marks = [None; MARKS];
            } else if lost.len() <= LOST_RANGES_MAX {
                lost.push(self.lost_range(next));
            }
            self.point.position = next;
        }
        // Room for the page that the EPOCH record fills.
        let oldest = page_ceil(self.point.position + RECORD_ALIGN).saturating_sub(size);
        let behind = chain.partition_point(|at| page_floor(at.position) < oldest);
        let tail = match chain.get(..behind).and_then(<[Point]>::last) {
            // Between two places of the chain too, no message is given up that has room.
            Some(before) => self.walk_on(*before, oldest)?,
            None => chain.first().copied().unwrap_or(self.point),
        };
        self.superblock.tail = tail.position;
        self.superblock.tail_messages = tail.messages;
        Ok(())
    }

    /// The first record from `at` on whose page lies at or behind `oldest`. All of them are good.
    fn walk_on(&mut self, mut at: Point, oldest: u64) -> io::Result<Point> {
        while at.position < self.point.position && page_floor(at.position) < oldest {
            let Some(header) = self.header_at(at.position)? else {
                return Ok(self.point);
            };
            at.position = header.end();
            at.number = at.number.max(number_behind(&header));
            at.messages += u64::from(matches!(header.kind, Kind::Message | Kind::Last));
            at.received_ns = at.received_ns.max(header.received_ns);
        }
        Ok(at)
    }

    /// Passes good records and notes in `chain` where the tail may go: one place for each part of
    /// the ring.
    fn follow_chain(&mut self, limit: u64, chain: &mut Vec<Point>) -> io::Result<()> {
        let part = self.superblock.data_size / MARKS as u64;
        // Every payload is checked: its end may be overwritten although its header is not.
        while let Some(header) = self.record_at(self.point.position, limit, 0)? {
            let before = chain.last().map(|at| at.position / part);
            if before != Some(header.position / part) {
                if chain.len() == CHAIN_STARTS_MAX {
                    chain.remove(0);
                }
                chain.push(self.point);
            }
            self.pass(&header);
        }
        Ok(())
    }

    /// Judges every valid header in `[from, to)` of this lap or a later one.
    fn look_ahead(&mut self, from: u64, to: u64) -> io::Result<Ahead> {
        let size = self.superblock.data_size;
        let mut ahead = Ahead::default();
        let mut at = from;
        while at < to {
            let header = self.header_at(at)?;
            ahead.early |= header.is_some_and(|header| header.flags & RECORD_EARLY != 0);
            if let Some(header) = header
                && header.position >= at
                && (header.position - at).is_multiple_of(size)
            {
                ahead.later_lap |= header.position > at;
                ahead.hint = ahead.hint.max(header.durable_hint().unwrap_or(0));
                ahead.newest = ahead.newest.max(header.position);
                ahead.epoch = ahead.epoch.max(header.epoch);
                ahead.number = ahead.number.max(number_behind(&header));
                ahead.records += u64::from(header.position == at);
                ahead.end = ahead.end.max(header.end());
            }
            at += RECORD_ALIGN;
        }
        Ok(ahead)
    }

    /// Position of the first good record in `[from, to)`.
    fn next_record(&mut self, from: u64, to: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < to {
            if self.record_at(at, u64::MAX, u64::MAX)?.is_some() {
                return Ok(Some(at));
            }
            at += RECORD_ALIGN;
        }
        Ok(None)
    }

    /// The record at `position` if it is good: it stands where it says, continues what was passed,
    /// ends by `limit`, and its payload is right if it is at or behind `verify_from`.
    fn record_at(
        &mut self,
        position: u64,
        limit: u64,
        verify_from: u64,
    ) -> io::Result<Option<Header>> {
        if position >= limit {
            return Ok(None);
        }
        let Some(header) = self.header_at(position)? else {
            return Ok(None);
        };
        if header.position != position
            || header.end() > limit
            || header.extent() > self.superblock.data_size
            || header.epoch < self.epoch
            || header.number < self.point.number
        {
            return Ok(None);
        }
        let reusable = header.flags & RECORD_EARLY != 0
            && position - self.superblock.tail.min(position) < REUSED_EARLY_BYTES_MAX
            && verify_from != u64::MAX;
        let checked = header.kind != Kind::Pad && (position >= verify_from || reusable);
        if checked && !self.payload_is_right(&header)? {
            return Ok(None);
        }
        Ok(Some(header))
    }

    fn header_at(&mut self, position: u64) -> io::Result<Option<Header>> {
        let bytes = self.bytes_at(position)?;
        if bytes[..4] != RECORD_MAGIC.to_le_bytes() {
            return Ok(None);
        }
        let bytes = *bytes;
        Ok(Header::decode(&bytes, self.superblock.ring_key).ok())
    }

    /// The 64 bytes at `position`, from the window.
    fn bytes_at(&mut self, position: u64) -> io::Result<&[u8; RECORD_HEADER_BYTES]> {
        let inside = position >= self.window_at
            && position + RECORD_ALIGN <= self.window_at + self.window_len;
        if !inside {
            // Positions and sizes are multiples of 64, so that a header never lies across the
            // ring's end.
            let size = self.superblock.data_size;
            let mut len = (size - position % size).min(self.window.len() as u64);
            if position < self.medium_from {
                len = len.min(self.medium_from - position);
            }
            self.window_len = 0;
            let window = &mut self.window[..len as usize];
            let place = self.superblock.place(position);
            let read = position >= self.medium_from && self.backing.read_medium_at(window, place);
            if !read {
                backing::read_exact_at(self.backing, window, place)?;
            }
            self.window_at = position;
            self.window_len = len;
        }
        let at = (position - self.window_at) as usize;
        self.window[at..]
            .first_chunk()
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn payload_is_right(&mut self, header: &Header) -> io::Result<bool> {
        let mut position = header.position + RECORD_ALIGN;
        let mut left = u64::from(header.len);
        let mut crc = 0;
        while left > 0 {
            // Loads the window that begins at the last multiple of 64.
            self.bytes_at(position - position % RECORD_ALIGN)?;
            let at = position - self.window_at;
            let take = (self.window_len - at).min(left);
            crc = crc32c::crc32c_append(crc, &self.window[at as usize..(at + take) as usize]);
            position += take;
            left -= take;
        }
        Ok(crc == header.payload_crc)
    }
}

/// Number that follows a record: none at or after it has this or a larger one.
fn number_behind(header: &Header) -> u64 {
    header.number + u64::from(header.kind.takes_number())
}

/// With `--survive process` space counts as free before the superblock that says so is durable.
/// After a loss of power, broken records up to so far behind the tail of an old superblock are
/// taken for reused space: twice the distance of background syncs, because one may have been under
/// way.
const REUSED_EARLY_BYTES_MAX: u64 = 2 * BACKGROUND_SYNC_BYTES;
/// Starts that are kept of a chain: one for each part of two laps.
const CHAIN_STARTS_MAX: usize = 2 * MARKS + 2;

#[cfg(test)]
mod tests {
    use super::super::backing::MemoryBacking;
    use super::super::format::record_extent;
    use super::*;
    use crate::clock::Instant;
    use std::cell::Cell;
    use std::io::IoSlice;

    const SIZE: u64 = DATA_BYTES_MIN;

    /// Memory that counts what is read.
    struct Counted {
        memory: MemoryBacking,
        reads: Cell<u64>,
    }

    impl Backing for Counted {
        fn len(&self) -> u64 {
            self.memory.len()
        }

        fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
            self.reads.set(self.reads.get() + 1);
            self.memory.read_at(buf, at)
        }

        fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
            self.memory.write_at(parts, at)
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ring() -> MemoryBacking {
        let mut backing = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + SIZE) as usize],
        };
        let new = NewRing {
            ring_id: [7; 16],
            ring_key: 0x5eed,
            data_size: SIZE,
            created_ns: 1,
        };
        format(&mut backing, &new).unwrap();
        backing
    }

    /// Appends messages of 1,000 bytes.
    fn append(log: &mut Log<MemoryBacking>, messages: u32) {
        for number in 0..messages {
            log.begin_turn(u64::from(number) + 100);
            log.sync_inline(Instant(u64::from(number))).unwrap();
            let payload = [number as u8; 1_000];
            let slot = log.reserve(1_000).unwrap();
            let header = log.header(&slot, 0, crc32c::crc32c(&payload));
            let padding = vec![0; slot.padding];
            let parts = [&header[..], &payload, &padding].map(IoSlice::new);
            log.write(&parts).unwrap();
        }
    }

    fn open(memory: MemoryBacking) -> (Log<Counted>, Recovery) {
        let backing = Counted {
            memory,
            reads: Cell::new(0),
        };
        Log::open(backing, &OpenOptions::new(Survive::Process, 5_000)).unwrap()
    }

    #[test]
    fn superblock_many_laps_old_costs_bounded_work_and_keeps_the_newest_lap() {
        // With --survive process a small ring can be overwritten many times before a background
        // sync, and a loss of power may bring back the superblock of the first lap. Recovery used
        // to step from there to the newest hint 64 bytes at a time, lap after lap (a header of a
        // far lap stopped it for good), and followed no chain beyond the second lap.
        let options = OpenOptions::new(Survive::Process, 10);
        let (mut log, _) = Log::open(ring(), &options).unwrap();
        append(&mut log, 10);
        let old = log.backing().bytes[..DATA_OFFSET as usize].to_vec();
        append(&mut log, 400);
        assert!(log.written() > 6 * SIZE);
        let mut memory = log.into_backing();
        memory.bytes[..old.len()].copy_from_slice(&old);
        let (log, recovery) = open(memory);
        let head = log.written();
        assert_eq!(recovery.lost, []);
        assert!(recovery.tail + SIZE < head + 3 * PAGE_BYTES, "{recovery:?}");
        let kept = recovery.head - recovery.tail;
        assert_eq!(recovery.messages, kept / record_extent(1_000));
        assert!(log.backing().reads.get() < 100);
    }

    #[test]
    fn header_of_a_lap_that_nobody_has_written_costs_bounded_work() {
        // Only who knows the ring's key can make one; a fuzz target does.
        let options = OpenOptions::new(Survive::Process, 10);
        let (mut log, _) = Log::open(ring(), &options).unwrap();
        append(&mut log, 3);
        let mut memory = log.into_backing();
        let far = Header {
            position: SIZE * (1 << 40) + SIZE / 2,
            number: 9,
            len: 0,
            payload_crc: 0,
            epoch: 1,
            kind: Kind::Epoch,
            flags: 0,
            env_len: 0,
            hint_back: 0,
            received_ns: 100,
        };
        let at = (DATA_OFFSET + SIZE / 2) as usize;
        memory.bytes[at..at + 64].copy_from_slice(&far.encode(0x5eed));
        let (log, recovery) = open(memory);
        assert!(log.backing().reads.get() < 100);
        assert_eq!(recovery.head, far.position + RECORD_ALIGN);
        assert_eq!(recovery.messages, 0);
    }
}
