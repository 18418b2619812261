//! The control channel: messages between a running server and its tools and consumers over the UNIX
//! socket `DIR/shard-N/ctl`. `docs/ctl.md` describes the bytes.
//!
//! [`ServerSession`] is the server's side without input or output: bytes in, bytes and [`Actions`]
//! out. [`Client`] is the blocking side of the tools. The channel carries no message of the mail
//! kind: those are read from the ring, whose read-only descriptor comes with the first answer.

use crate::limits::{CONSUMER_NAME_BYTES_MAX, CONSUMERS_MAX, RECORD_HEADER_BYTES};
use crate::sys::fd_passing;
use crate::sys::wait;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Version of the protocol that this code speaks.
pub const VERSION: u16 = 1;
/// First bytes of HELLO, so that a stranger on the socket is told apart from an old tool.
pub const MAGIC: [u8; 8] = *b"ringmxct";
/// Length and type in front of every payload.
pub const FRAME_HEADER_BYTES: usize = 5;
/// Place of the kind in a frame, behind the length.
const FRAME_KIND_AT: usize = 4;
/// Largest frame, header included, bytes. Both sides refuse a larger one.
pub const FRAME_BYTES_MAX: usize = 4_096;
/// Answers that may stand unsent before a session is closed for sending requests without reading,
/// bytes.
pub const OUTPUT_BYTES_MAX: usize = 128 * 1_024;

const HELLO: u8 = 1;
const WATCH: u8 = 2;
const REGISTER: u8 = 3;
const ACKNOWLEDGE: u8 = 4;
const SEEK: u8 = 5;
const DROP: u8 = 6;
const LIST: u8 = 7;
const STATUS: u8 = 8;
const KEEPS: u8 = 9;
const WELCOME: u8 = 129;
const PROGRESS: u8 = 130;
const OK: u8 = 131;
const CONSUMER: u8 = 132;
const ERROR: u8 = 133;
const STATUS_PART: u8 = 134;

/// Facts of a ring that do not change while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFacts {
    /// Public identity of the ring.
    pub ring_id: [u8; 16],
    /// Number of the shard, the first part of a message's id.
    pub shard: u32,
    /// Where the data area begins in the file, bytes.
    pub data_offset: u64,
    /// Length of the data area, bytes.
    pub data_bytes: u64,
}

/// How far the log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Position up to which records are durable at the server's level.
    pub durable: u64,
    /// Position of the oldest record that is kept.
    pub tail: u64,
    /// Number that the next message will take.
    pub next_number: u64,
}

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the tail: everything that is kept.
    Oldest,
    /// At the durable position: only what comes from now on.
    Newest,
    /// At the record at this position.
    Position(u64),
}

impl From {
    /// The position meant, or `None` when it lies outside of `tail..=durable` or off the alignment
    /// of records.
    pub fn resolve(self, progress: Progress) -> Option<u64> {
        match self {
            From::Oldest => Some(progress.tail),
            From::Newest => Some(progress.durable),
            From::Position(pos) => ((progress.tail..=progress.durable).contains(&pos)
                && pos.is_multiple_of(RECORD_HEADER_BYTES as u64))
            .then_some(pos),
        }
    }

    fn encode(self) -> [u8; 9] {
        let (kind, pos) = match self {
            From::Oldest => (0, 0),
            From::Newest => (1, 0),
            From::Position(pos) => (2, pos),
        };
        let mut out = [kind; 9];
        out[1..].copy_from_slice(&u64::to_le_bytes(pos));
        out
    }

    fn decode(input: &mut Input<'_>) -> Option<From> {
        let kind = input.u8()?;
        let pos = input.u64()?;
        match (kind, pos) {
            (0, 0) => Some(From::Oldest),
            (1, 0) => Some(From::Newest),
            (2, pos) => Some(From::Position(pos)),
            _ => None,
        }
    }
}

/// How far a consumer has come. INVARIANT: `scan_pos <= done_pos`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Where reading starts: the FIRST record of a message still open, or `done_pos`. Holds the
    /// tail.
    pub scan_pos: u64,
    /// A message is delivered when its completing record is at or after this position.
    pub done_pos: u64,
}

/// One row of the consumer table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// Name, see [`is_consumer_name`].
    pub name: String,
    /// How far it has come.
    pub cursor: Cursor,
    /// Whether a process is attached to it now.
    pub attached: bool,
}

/// Whether `name` can name a consumer: 1 to [`CONSUMER_NAME_BYTES_MAX`] letters, digits, `.`, `_`
/// and `-`, not beginning with `.` or `-`.
pub fn is_consumer_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=CONSUMER_NAME_BYTES_MAX).contains(&bytes.len())
        && !matches!(bytes.first(), Some(b'.' | b'-'))
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Why the server refuses a request. Numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// The other side speaks another version.
    Version = 1,
    /// No consumer has this name.
    NoSuchConsumer = 2,
    /// Another process is attached to this consumer.
    InUse = 3,
    /// The consumer table is full.
    TableFull = 4,
    /// The position is outside of what is kept and durable, not aligned, or behind the cursor.
    Position = 5,
    /// The name is not one for a consumer.
    Name = 6,
    /// The ring does not take consumers now: storage failed, or `--full overwrite`.
    Unavailable = 7,
}

impl Refusal {
    fn from_number(number: u16) -> Option<Refusal> {
        Some(match number {
            1 => Refusal::Version,
            2 => Refusal::NoSuchConsumer,
            3 => Refusal::InUse,
            4 => Refusal::TableFull,
            5 => Refusal::Position,
            6 => Refusal::Name,
            7 => Refusal::Unavailable,
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Version => "the server speaks another version of the control protocol",
            Refusal::NoSuchConsumer => {
                "no consumer has this name ('ringmx consume NAME --create' makes one)"
            }
            Refusal::InUse => "another process is attached to this consumer",
            Refusal::TableFull => "the ring has no room for another consumer",
            Refusal::Position => "the position is outside of what the ring keeps",
            Refusal::Name => "not a name for a consumer (1 to 31 letters, digits, '.', '_', '-')",
            Refusal::Unavailable => "the ring takes no consumers now",
        })
    }
}

impl std::error::Error for Refusal {}

/// Promises of SMTP extensions that a consumer keeps, in the order of the bits that stand for them in KEEPS.
pub const PROMISES: [&str; 6] = [
    "DSN",
    "DELIVERBY",
    "FUTURERELEASE",
    "MT-PRIORITY",
    "RRVS",
    "REQUIRETLS",
];

/// The bits of these promises, names separated by commas; `None` when one is not in [`PROMISES`].
pub fn promises(names: &str) -> Option<u32> {
    names.split(',').try_fold(0, |bits, name| {
        let at = PROMISES
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name.trim()))?;
        Some(bits | 1 << at)
    })
}

/// Names that a process is attached to; the server keeps one table for all its control sessions.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    names: Vec<String>,
    /// What each of them keeps, in the same order.
    kept: Vec<u32>,
}

impl Attachments {
    /// Whether a process is attached to `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
    }

    /// Attaches to `name`; false when somebody is. Bounds: [`CONSUMERS_MAX`] names.
    fn attach(&mut self, name: &str) -> bool {
        if self.contains(name) || self.names.len() >= CONSUMERS_MAX {
            return false;
        }
        self.names.push(name.to_owned());
        self.kept.push(0);
        true
    }

    fn detach(&mut self, name: &str) {
        if let Some(at) = self.names.iter().position(|other| other == name) {
            self.names.remove(at);
            self.kept.remove(at);
        }
    }

    fn declare(&mut self, name: &str, promises: u32) {
        let at = self.names.iter().position(|other| other == name);
        if let Some(kept) = at.and_then(|at| self.kept.get_mut(at)) {
            *kept = promises;
        }
    }

    /// The promises, as bits of [`PROMISES`], that somebody who is attached keeps.
    pub fn kept(&self) -> u32 {
        self.kept.iter().fold(0, |all, kept| all | kept)
    }
}

/// What a [`ServerSession`] asks of the server; implemented over the log. No call may block.
pub trait RingControl {
    /// Facts that do not change.
    fn facts(&self) -> RingFacts;
    /// How far the log has come now.
    fn progress(&self) -> Progress;
    /// Finds the consumer `name` or, with `create`, makes it at that position (already resolved and
    /// checked).
    fn register(&mut self, name: &str, create: Option<u64>) -> Result<Cursor, Refusal>;
    /// Moves the cursor of `name` forward. The session has checked order, alignment and bounds.
    fn acknowledge(&mut self, name: &str, cursor: Cursor) -> Result<(), Refusal>;
    /// Moves the cursor of `name` to a position within `tail..=durable`, forward or back.
    fn seek(&mut self, name: &str, pos: u64) -> Result<(), Refusal>;
    /// Removes `name` from the table.
    fn drop_consumer(&mut self, name: &str) -> Result<(), Refusal>;
    /// Calls `each` for every row of the table: name and cursor.
    fn consumers(&self, each: &mut dyn FnMut(&str, Cursor));
    /// Appends the status document (JSON, at most [`OUTPUT_BYTES_MAX`] / 2 bytes) to `out`.
    fn status_json(&self, out: &mut Vec<u8>);
    /// The table of attachments, one for the whole server.
    fn attachments(&mut self) -> &mut Attachments;
}

/// What the server has to do after a call to [`ServerSession::receive`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// The ring's read-only descriptor goes with the next bytes sent (SCM_RIGHTS).
    pub send_descriptor: bool,
    /// A cursor or the consumer table changed: free space may have grown, and a superblock is due,
    /// lazily.
    pub consumers_changed: bool,
    /// What stands in the output is sent, then the connection is closed.
    pub close: bool,
}

/// The client broke the protocol; the connection is closed without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The first frame is not HELLO.
    NotHello,
    /// A frame is longer than [`FRAME_BYTES_MAX`].
    FrameTooLong,
    /// A frame of this type does not hold what it should.
    Malformed(u8),
    /// More than [`OUTPUT_BYTES_MAX`] bytes of answers stand unread.
    NotReading,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::NotHello => f.write_str("the first frame is not HELLO"),
            ProtocolError::FrameTooLong => write!(f, "a frame is over {FRAME_BYTES_MAX} bytes"),
            ProtocolError::Malformed(kind) => write!(f, "a frame of type {kind} is malformed"),
            ProtocolError::NotReading => f.write_str("too many requests without reading answers"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// One control connection, seen from the server. Owns at most one partial frame.
#[derive(Debug, Default)]
pub struct ServerSession {
    /// INVARIANT: shorter than [`FRAME_BYTES_MAX`].
    partial: Vec<u8>,
    welcomed: bool,
    closing: bool,
    watching: bool,
    reported: Option<Progress>,
    attached: Option<String>,
}

impl ServerSession {
    /// A session that waits for HELLO.
    pub fn new() -> ServerSession {
        ServerSession::default()
    }

    /// Takes bytes as they arrived and appends answers to `out`, which the server sends and then
    /// clears.
    ///
    /// Bounds: work is linear in `bytes` and in [`CONSUMERS_MAX`]; `out` grows to at most
    /// [`OUTPUT_BYTES_MAX`] and one answer more.
    ///
    /// # Errors
    /// The connection has to be closed, through [`ServerSession::close`] as always.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        ring: &mut impl RingControl,
        out: &mut Vec<u8>,
    ) -> Result<Actions, ProtocolError> {
        let mut actions = Actions::default();
        while !self.closing {
            let Some(len) = self.fill(&mut bytes)? else {
                break;
            };
            if out.len() > OUTPUT_BYTES_MAX {
                return Err(ProtocolError::NotReading);
            }
            let frame = std::mem::take(&mut self.partial);
            let result = self.request(&frame[4..len], ring, out, &mut actions);
            self.partial = frame;
            self.partial.clear();
            result?;
        }
        actions.close = self.closing;
        Ok(actions)
    }

    /// Reports progress when the client watches and something moved since the last report. The
    /// server calls this at most once a turn, and only when everything appended before has left:
    /// reports then coalesce by themselves for a client that reads slowly. Returns whether
    /// something was appended.
    pub fn report(&mut self, ring: &impl RingControl, out: &mut Vec<u8>) -> bool {
        let now = ring.progress();
        if !self.watching || self.closing || self.reported == Some(now) {
            return false;
        }
        self.reported = Some(now);
        put_progress(out, now);
        true
    }

    /// Name of the consumer that this connection is attached to.
    pub fn attached(&self) -> Option<&str> {
        self.attached.as_deref()
    }

    /// The connection is gone: the consumer it was attached to is free again.
    pub fn close(mut self, ring: &mut impl RingControl) {
        if let Some(name) = self.attached.take() {
            ring.attachments().detach(&name);
        }
    }

    /// Moves bytes to `partial` until it holds one frame; its length when it does.
    fn fill(&mut self, bytes: &mut &[u8]) -> Result<Option<usize>, ProtocolError> {
        for goal in [4, 0] {
            let want = if goal == 4 {
                4
            } else {
                frame_len(&self.partial).ok_or(ProtocolError::FrameTooLong)?
            };
            let part = want.saturating_sub(self.partial.len()).min(bytes.len());
            let (head, rest) = bytes.split_at(part);
            self.partial.extend_from_slice(head);
            *bytes = rest;
            if self.partial.len() < want {
                return Ok(None);
            }
        }
        Ok(Some(self.partial.len()))
    }

    /// Handles one frame: type and payload.
    fn request(
        &mut self,
        frame: &[u8],
        ring: &mut impl RingControl,
        out: &mut Vec<u8>,
        actions: &mut Actions,
    ) -> Result<(), ProtocolError> {
        let (&kind, payload) = frame.split_first().ok_or(ProtocolError::Malformed(0))?;
        let malformed = ProtocolError::Malformed(kind);
        let mut input = Input(payload);
        match (self.welcomed, kind) {
            (false, HELLO) => {
                let version = input.hello().ok_or(ProtocolError::NotHello)?;
                // Later versions may append to HELLO; what is behind the version is not looked at.
                if version != VERSION {
                    put_error(out, Refusal::Version);
                    self.closing = true;
                    return Ok(());
                }
                self.welcomed = true;
                actions.send_descriptor = true;
                put_welcome(out, ring.facts(), ring.progress());
            }
            (false, _) => return Err(ProtocolError::NotHello),
            (true, WATCH) => {
                input.end().ok_or(malformed)?;
                self.watching = true;
                self.reported = None;
                put_frame(out, OK, &[]);
            }
            (true, REGISTER) => {
                let (create, from, name) = input.register().ok_or(malformed)?;
                match self.register(ring, name, create, from) {
                    Ok(cursor) => {
                        actions.consumers_changed |= create;
                        put_consumer(out, name, cursor, true);
                    }
                    Err(refusal) => put_error(out, refusal),
                }
            }
            (true, ACKNOWLEDGE) => {
                let (cursor, name) = input.acknowledge().ok_or(malformed)?;
                let result = check_acknowledge(ring, name, cursor)
                    .and_then(|()| ring.acknowledge(name, cursor));
                actions.consumers_changed |= result.is_ok();
                put_result(out, result);
            }
            (true, SEEK) => {
                let (from, name) = input.seek().ok_or(malformed)?;
                let result = self.exclusive(ring, name).and_then(|()| {
                    let pos = from.resolve(ring.progress()).ok_or(Refusal::Position)?;
                    ring.seek(name, pos)
                });
                actions.consumers_changed |= result.is_ok();
                put_result(out, result);
            }
            (true, DROP) => {
                let name = input.last_name().ok_or(malformed)?;
                let result = self
                    .exclusive(ring, name)
                    .and_then(|()| ring.drop_consumer(name));
                if result.is_ok() && self.attached.as_deref() == Some(name) {
                    ring.attachments().detach(name);
                    self.attached = None;
                }
                actions.consumers_changed |= result.is_ok();
                put_result(out, result);
            }
            (true, LIST) => {
                input.end().ok_or(malformed)?;
                let mut rows = Vec::with_capacity(CONSUMERS_MAX);
                ring.consumers(&mut |name, cursor| rows.push((name.to_owned(), cursor)));
                for (name, cursor) in rows {
                    let attached = ring.attachments().contains(&name);
                    put_consumer(out, &name, cursor, attached);
                }
                put_frame(out, OK, &[]);
            }
            (true, KEEPS) => {
                let promises = input.u32().ok_or(malformed)?;
                input.end().ok_or(malformed)?;
                let result = match self.attached.as_deref() {
                    // A promise that this server has not heard of binds nobody.
                    Some(name) => {
                        ring.attachments().declare(name, promises);
                        Ok(())
                    }
                    None => Err(Refusal::NoSuchConsumer),
                };
                put_result(out, result);
            }
            (true, STATUS) => {
                input.end().ok_or(malformed)?;
                let mut json = Vec::new();
                ring.status_json(&mut json);
                for part in json.chunks(FRAME_BYTES_MAX - FRAME_HEADER_BYTES) {
                    put_frame(out, STATUS_PART, part);
                }
                put_frame(out, OK, &[]);
            }
            (true, _) => return Err(malformed),
        }
        Ok(())
    }

    fn register(
        &mut self,
        ring: &mut impl RingControl,
        name: &str,
        create: bool,
        from: From,
    ) -> Result<Cursor, Refusal> {
        if !is_consumer_name(name) {
            return Err(Refusal::Name);
        }
        if self.attached.is_some() || ring.attachments().contains(name) {
            return Err(Refusal::InUse);
        }
        let create = match create {
            true => Some(from.resolve(ring.progress()).ok_or(Refusal::Position)?),
            false => None,
        };
        let cursor = ring.register(name, create)?;
        if !ring.attachments().attach(name) {
            return Err(Refusal::TableFull);
        }
        self.attached = Some(name.to_owned());
        Ok(cursor)
    }

    /// A cursor may be moved by others only while its consumer is not running: it would acknowledge
    /// over it.
    fn exclusive(&self, ring: &mut impl RingControl, name: &str) -> Result<(), Refusal> {
        let mine = self.attached.as_deref() == Some(name);
        match !mine && ring.attachments().contains(name) {
            true => Err(Refusal::InUse),
            false => Ok(()),
        }
    }
}

fn check_acknowledge(ring: &impl RingControl, name: &str, cursor: Cursor) -> Result<(), Refusal> {
    let mut current = None;
    ring.consumers(&mut |other, cursor| {
        if other == name {
            current = Some(cursor);
        }
    });
    let current = current.ok_or(Refusal::NoSuchConsumer)?;
    let aligned = |pos: u64| pos.is_multiple_of(RECORD_HEADER_BYTES as u64);
    let fits = current.scan_pos <= cursor.scan_pos
        && current.done_pos <= cursor.done_pos
        && cursor.scan_pos <= cursor.done_pos
        && cursor.done_pos <= ring.progress().durable
        && aligned(cursor.scan_pos)
        && aligned(cursor.done_pos);
    match fits {
        true => Ok(()),
        false => Err(Refusal::Position),
    }
}

/// Length of the frame that begins with these bytes, header included; `None` when it breaks the
/// bound. Needs 4 bytes.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let len = usize::try_from(len).ok()?.checked_add(4)?;
    (FRAME_HEADER_BYTES..=FRAME_BYTES_MAX)
        .contains(&len)
        .then_some(len)
}

/// Appends one frame. Callers keep `payload` within the bound.
fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(FRAME_HEADER_BYTES + payload.len() <= FRAME_BYTES_MAX);
    out.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
}

fn put_progress(out: &mut Vec<u8>, progress: Progress) {
    put_frame(out, PROGRESS, &progress_bytes(progress));
}

fn progress_bytes(progress: Progress) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&progress.durable.to_le_bytes());
    bytes[8..16].copy_from_slice(&progress.tail.to_le_bytes());
    bytes[16..].copy_from_slice(&progress.next_number.to_le_bytes());
    bytes
}

fn put_welcome(out: &mut Vec<u8>, facts: RingFacts, progress: Progress) {
    let mut payload = Vec::with_capacity(64);
    payload.extend_from_slice(&VERSION.to_le_bytes());
    payload.extend_from_slice(&facts.ring_id);
    payload.extend_from_slice(&facts.shard.to_le_bytes());
    payload.extend_from_slice(&facts.data_offset.to_le_bytes());
    payload.extend_from_slice(&facts.data_bytes.to_le_bytes());
    payload.extend_from_slice(&progress_bytes(progress));
    put_frame(out, WELCOME, &payload);
}

fn put_consumer(out: &mut Vec<u8>, name: &str, cursor: Cursor, attached: bool) {
    let mut payload = Vec::with_capacity(18 + CONSUMER_NAME_BYTES_MAX);
    payload.extend_from_slice(&cursor.scan_pos.to_le_bytes());
    payload.extend_from_slice(&cursor.done_pos.to_le_bytes());
    payload.push(u8::from(attached));
    put_name(&mut payload, name);
    put_frame(out, CONSUMER, &payload);
}

/// Appends a length byte and the name, cut at the bound of the protocol.
fn put_name(payload: &mut Vec<u8>, name: &str) {
    let bytes = name.as_bytes();
    let len = bytes.len().min(CONSUMER_NAME_BYTES_MAX);
    payload.push(len as u8);
    payload.extend_from_slice(&bytes[..len]);
}

fn put_error(out: &mut Vec<u8>, refusal: Refusal) {
    let mut payload = (refusal as u16).to_le_bytes().to_vec();
    payload.extend_from_slice(refusal.to_string().as_bytes());
    put_frame(out, ERROR, &payload);
}

fn put_result(out: &mut Vec<u8>, result: Result<(), Refusal>) {
    match result {
        Ok(()) => put_frame(out, OK, &[]),
        Err(refusal) => put_error(out, refusal),
    }
}

/// Reads the parts of a payload; every method is `None` past the end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn last_name(&mut self) -> Option<&'a str> {
        let len = usize::from(self.u8()?);
        let name = (len <= CONSUMER_NAME_BYTES_MAX && self.0.len() == len).then_some(self.0)?;
        std::str::from_utf8(name).ok()
    }

    fn hello(&mut self) -> Option<u16> {
        (self.take::<8>()? == MAGIC).then_some(())?;
        self.u16()
    }

    fn register(&mut self) -> Option<(bool, From, &'a str)> {
        let create = match self.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some((create, From::decode(self)?, self.last_name()?))
    }

    fn acknowledge(&mut self) -> Option<(Cursor, &'a str)> {
        let cursor = Cursor {
            scan_pos: self.u64()?,
            done_pos: self.u64()?,
        };
        Some((cursor, self.last_name()?))
    }

    fn seek(&mut self) -> Option<(From, &'a str)> {
        Some((From::decode(self)?, self.last_name()?))
    }

    fn progress(&mut self) -> Option<Progress> {
        Some(Progress {
            durable: self.u64()?,
            tail: self.u64()?,
            next_number: self.u64()?,
        })
    }

    fn welcome(&mut self) -> Option<(RingFacts, Progress)> {
        let _version = self.u16()?;
        let facts = RingFacts {
            ring_id: self.take()?,
            shard: self.u32()?,
            data_offset: self.u64()?,
            data_bytes: self.u64()?,
        };
        Some((facts, self.progress()?))
    }

    fn consumer(&mut self) -> Option<ConsumerState> {
        let cursor = Cursor {
            scan_pos: self.u64()?,
            done_pos: self.u64()?,
        };
        let attached = self.u8()? != 0;
        Some(ConsumerState {
            name: self.last_name()?.to_owned(),
            cursor,
            attached,
        })
    }
}

/// Why a request of a [`Client`] failed.
#[derive(Debug)]
pub enum ClientError {
    /// The socket failed, or the server closed it (`UnexpectedEof`) or did not answer in time
    /// (`TimedOut`).
    Io(io::Error),
    /// The server refused.
    Refused(Refusal),
    /// The server answered what this version does not understand.
    Protocol,
}

impl ClientError {
    /// Whether the server ended while it was asked: a new one may be asked again.
    pub fn is_gone(&self) -> bool {
        let ClientError::Io(error) = self else {
            return false;
        };
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        )
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Io(error) => write!(f, "control socket: {error}"),
            ClientError::Refused(refusal) => refusal.fmt(f),
            ClientError::Protocol => f.write_str("control socket: unexpected answer"),
        }
    }
}

impl std::error::Error for ClientError {}

impl std::convert::From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Io(error)
    }
}

/// Longest path that fits into the address of a UNIX socket, bytes.
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Calls `action` with a name of the socket `path` that is short enough for the address of a
/// socket: a longer one goes through a descriptor of its directory. For binding as for connecting.
///
/// # Errors
/// Those of `action` and of opening the directory; `InvalidInput` when a long path has no directory
/// or no name, and for every long path where a descriptor has no path of its own (beyond Linux).
pub fn with_short_path<T>(
    path: &Path,
    action: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX || cfg!(not(target_os = "linux")) {
        return action(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = std::fs::File::open(parent)?;
    let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
    action(&Path::new(&short).join(name))
}

/// Time within which the server has to answer a request: its loop may stand behind a slow write.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// The side of tools and consumers: blocking, one request at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Received, not yet taken. INVARIANT: at most [`FRAME_BYTES_MAX`] bytes.
    received: Vec<u8>,
    facts: RingFacts,
    progress: Progress,
    descriptor: Option<OwnedFd>,
}

impl Client {
    /// Connects, says HELLO and takes the ring's descriptor.
    ///
    /// # Errors
    /// `Io` with `NotFound` or `ConnectionRefused` when no server runs.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = with_short_path(path, |path| UnixStream::connect(path))?;
        Client::over(stream)
    }

    /// [`Client::connect`] over a stream that is connected already.
    pub fn over(stream: UnixStream) -> Result<Client, ClientError> {
        stream.set_nonblocking(true)?;
        let mut client = Client {
            stream,
            received: Vec::with_capacity(FRAME_BYTES_MAX),
            facts: RingFacts {
                ring_id: [0; 16],
                shard: 0,
                data_offset: 0,
                data_bytes: 0,
            },
            progress: Progress::default(),
            descriptor: None,
        };
        let mut hello = MAGIC.to_vec();
        hello.extend_from_slice(&VERSION.to_le_bytes());
        client.send(HELLO, &hello)?;
        let (kind, payload) = client.answer()?;
        if kind != WELCOME || client.descriptor.is_none() {
            return Err(ClientError::Protocol);
        }
        let welcome = Input(&payload).welcome().ok_or(ClientError::Protocol)?;
        (client.facts, client.progress) = welcome;
        Ok(client)
    }

    /// Facts that the server told in its first answer.
    pub fn facts(&self) -> RingFacts {
        self.facts
    }

    /// The latest progress heard.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The ring, for reading. `None` when it was taken before.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// The socket, for waiting on it together with other things.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Asks for reports of progress from now on.
    pub fn watch(&mut self) -> Result<(), ClientError> {
        self.send(WATCH, &[])?;
        self.expect_ok()
    }

    /// Attaches to the consumer `name`, or makes it first when `create` says where it begins.
    pub fn register(&mut self, name: &str, create: Option<From>) -> Result<Cursor, ClientError> {
        let mut payload = vec![u8::from(create.is_some())];
        payload.extend_from_slice(&create.unwrap_or(From::Oldest).encode());
        put_name(&mut payload, check_name(name)?);
        self.send(REGISTER, &payload)?;
        let (kind, payload) = self.answer()?;
        match kind {
            CONSUMER => {
                let state = Input(&payload).consumer().ok_or(ClientError::Protocol)?;
                Ok(state.cursor)
            }
            _ => Err(ClientError::Protocol),
        }
    }

    /// Says which promises of SMTP extensions the consumer keeps that this client is attached to, as bits of
    /// [`PROMISES`]; while it is attached, the server may offer them.
    pub fn keeps(&mut self, promises: u32) -> Result<(), ClientError> {
        self.send(KEEPS, &promises.to_le_bytes())?;
        self.expect_ok()
    }

    /// Moves the cursor of `name` forward.
    pub fn acknowledge(&mut self, name: &str, cursor: Cursor) -> Result<(), ClientError> {
        let mut payload = Vec::with_capacity(64);
        payload.extend_from_slice(&cursor.scan_pos.to_le_bytes());
        payload.extend_from_slice(&cursor.done_pos.to_le_bytes());
        put_name(&mut payload, check_name(name)?);
        self.send(ACKNOWLEDGE, &payload)?;
        self.expect_ok()
    }

    /// Moves the cursor of `name` anywhere within what is kept.
    pub fn seek(&mut self, name: &str, from: From) -> Result<(), ClientError> {
        let mut payload = from.encode().to_vec();
        put_name(&mut payload, check_name(name)?);
        self.send(SEEK, &payload)?;
        self.expect_ok()
    }

    /// Removes the consumer `name`.
    pub fn drop_consumer(&mut self, name: &str) -> Result<(), ClientError> {
        let mut payload = Vec::with_capacity(64);
        put_name(&mut payload, check_name(name)?);
        self.send(DROP, &payload)?;
        self.expect_ok()
    }

    /// The consumer table.
    pub fn list(&mut self) -> Result<Vec<ConsumerState>, ClientError> {
        self.send(LIST, &[])?;
        let mut rows = Vec::new();
        loop {
            let (kind, payload) = self.answer()?;
            match kind {
                OK => return Ok(rows),
                CONSUMER if rows.len() < CONSUMERS_MAX => {
                    rows.push(Input(&payload).consumer().ok_or(ClientError::Protocol)?);
                }
                _ => return Err(ClientError::Protocol),
            }
        }
    }

    /// The server's status document, JSON.
    pub fn status(&mut self) -> Result<Vec<u8>, ClientError> {
        self.send(STATUS, &[])?;
        let mut json = Vec::new();
        loop {
            let (kind, payload) = self.answer()?;
            match kind {
                OK => return Ok(json),
                STATUS_PART if json.len() <= OUTPUT_BYTES_MAX => json.extend_from_slice(&payload),
                _ => return Err(ClientError::Protocol),
            }
        }
    }

    /// Takes in the reports that have arrived, without waiting. Call when [`Client::as_fd`] is
    /// readable.
    pub fn poll_progress(&mut self) -> Result<Progress, ClientError> {
        loop {
            while let Some((kind, payload)) = self.take_frame()? {
                self.note(kind, &payload)?;
            }
            if self.read_some()? == 0 {
                return Ok(self.progress);
            }
        }
    }

    /// Waits until progress differs from `known`, at most `wait` long; the latest progress either
    /// way.
    pub fn wait_progress(
        &mut self,
        known: Progress,
        wait: Duration,
    ) -> Result<Progress, ClientError> {
        let now = self.poll_progress()?;
        if now != known || !wait::readable(&[self.stream.as_fd()], Some(wait))?.is_ready(0) {
            return Ok(now);
        }
        self.poll_progress()
    }

    fn expect_ok(&mut self) -> Result<(), ClientError> {
        match self.answer()? {
            (OK, _) => Ok(()),
            _ => Err(ClientError::Protocol),
        }
    }

    fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), ClientError> {
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
        put_frame(&mut frame, kind, payload);
        // A request is far smaller than a socket buffer, and the one before it was answered: it
        // fits at once.
        self.stream.set_nonblocking(false)?;
        let result = self.stream.write_all(&frame);
        self.stream.set_nonblocking(true)?;
        Ok(result?)
    }

    /// The next frame that is not a report. Reports on the way are noted, and those that came with it: whoever waits
    /// for the socket then misses none.
    fn answer(&mut self) -> Result<(u8, Vec<u8>), ClientError> {
        loop {
            while let Some((kind, payload)) = self.take_frame()? {
                if kind == PROGRESS {
                    self.note(kind, &payload)?;
                    continue;
                }
                while self.received.get(FRAME_KIND_AT) == Some(&PROGRESS)
                    && let Some((kind, report)) = self.take_frame()?
                {
                    self.note(kind, &report)?;
                }
                if kind == ERROR {
                    let number = Input(&payload).u16().ok_or(ClientError::Protocol)?;
                    let refusal = Refusal::from_number(number).ok_or(ClientError::Protocol)?;
                    return Err(ClientError::Refused(refusal));
                }
                return Ok((kind, payload));
            }
            if self.read_some()? == 0
                && !wait::readable(&[self.stream.as_fd()], Some(ANSWER_WAIT))?.is_ready(0)
            {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
        }
    }

    fn note(&mut self, kind: u8, payload: &[u8]) -> Result<(), ClientError> {
        if kind != PROGRESS {
            return Err(ClientError::Protocol);
        }
        self.progress = Input(payload).progress().ok_or(ClientError::Protocol)?;
        Ok(())
    }

    fn take_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, ClientError> {
        if self.received.len() < 4 {
            return Ok(None);
        }
        let len = frame_len(&self.received).ok_or(ClientError::Protocol)?;
        if self.received.len() < len {
            return Ok(None);
        }
        let frame: Vec<u8> = self.received.drain(..len).collect();
        Ok(Some((
            frame[FRAME_KIND_AT],
            frame[FRAME_HEADER_BYTES..].to_vec(),
        )))
    }

    /// Reads what is there; 0 when nothing is. The end of the stream is an error.
    fn read_some(&mut self) -> Result<usize, ClientError> {
        let mut buf = [0; FRAME_BYTES_MAX];
        let room = FRAME_BYTES_MAX - self.received.len();
        let (len, descriptor) = match fd_passing::receive(self.stream.as_fd(), &mut buf[..room]) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        if len == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if descriptor.is_some() {
            self.descriptor = descriptor;
        }
        self.received.extend_from_slice(&buf[..len]);
        Ok(len)
    }
}

fn check_name(name: &str) -> Result<&str, ClientError> {
    match is_consumer_name(name) {
        true => Ok(name),
        false => Err(ClientError::Refused(Refusal::Name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A ring that is only its control state.
    #[derive(Default)]
    struct TestRing {
        progress: Progress,
        rows: Vec<(String, Cursor)>,
        attachments: Attachments,
        status: Vec<u8>,
    }

    impl RingControl for TestRing {
        fn facts(&self) -> RingFacts {
            RingFacts {
                ring_id: *b"0123456789abcdef",
                shard: 3,
                data_offset: 65_536,
                data_bytes: 2 * 1_024 * 1_024,
            }
        }

        fn progress(&self) -> Progress {
            self.progress
        }

        fn register(&mut self, name: &str, create: Option<u64>) -> Result<Cursor, Refusal> {
            if let Some((_, cursor)) = self.rows.iter().find(|(other, _)| other == name) {
                return Ok(*cursor);
            }
            let pos = create.ok_or(Refusal::NoSuchConsumer)?;
            let cursor = Cursor {
                scan_pos: pos,
                done_pos: pos,
            };
            self.rows.push((name.to_owned(), cursor));
            Ok(cursor)
        }

        fn acknowledge(&mut self, name: &str, cursor: Cursor) -> Result<(), Refusal> {
            let row = self.rows.iter_mut().find(|(other, _)| other == name);
            row.ok_or(Refusal::NoSuchConsumer)?.1 = cursor;
            Ok(())
        }

        fn seek(&mut self, name: &str, pos: u64) -> Result<(), Refusal> {
            let cursor = Cursor {
                scan_pos: pos,
                done_pos: pos,
            };
            self.acknowledge(name, cursor)
        }

        fn drop_consumer(&mut self, name: &str) -> Result<(), Refusal> {
            let before = self.rows.len();
            self.rows.retain(|(other, _)| other != name);
            match self.rows.len() == before {
                true => Err(Refusal::NoSuchConsumer),
                false => Ok(()),
            }
        }

        fn consumers(&self, each: &mut dyn FnMut(&str, Cursor)) {
            for (name, cursor) in &self.rows {
                each(name, *cursor);
            }
        }

        fn status_json(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.status);
        }

        fn attachments(&mut self) -> &mut Attachments {
            &mut self.attachments
        }
    }

    fn ring() -> TestRing {
        TestRing {
            progress: Progress {
                durable: 6_400,
                tail: 640,
                next_number: 9,
            },
            status: vec![b'x'; 10_000],
            ..TestRing::default()
        }
    }

    fn hello() -> Vec<u8> {
        let mut payload = MAGIC.to_vec();
        payload.extend_from_slice(&VERSION.to_le_bytes());
        let mut out = Vec::new();
        put_frame(&mut out, HELLO, &payload);
        out
    }

    fn request(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame(&mut out, kind, payload);
        out
    }

    fn named(mut payload: Vec<u8>, name: &str) -> Vec<u8> {
        put_name(&mut payload, name);
        payload
    }

    /// Every kind of request once, some refused.
    fn script() -> Vec<u8> {
        let register = |create: u8, from: From, name: &str| {
            let mut payload = vec![create];
            payload.extend_from_slice(&from.encode());
            request(REGISTER, &named(payload, name))
        };
        let acknowledge = |scan: u64, done: u64, name: &str| {
            let mut payload = scan.to_le_bytes().to_vec();
            payload.extend_from_slice(&done.to_le_bytes());
            request(ACKNOWLEDGE, &named(payload, name))
        };
        [
            hello(),
            request(WATCH, &[]),
            register(0, From::Oldest, "archive"),
            register(1, From::Position(128), "archive"),
            register(1, From::Position(1_280), "archive"),
            acknowledge(1_280, 1_344, "archive"),
            acknowledge(1_280, 1_280, "archive"),
            acknowledge(1_280, 6_464, "archive"),
            request(LIST, &[]),
            request(SEEK, &named(From::Newest.encode().to_vec(), "archive")),
            request(STATUS, &[]),
            request(DROP, &named(Vec::new(), "nobody")),
            request(DROP, &named(Vec::new(), "archive")),
            request(LIST, &[]),
        ]
        .concat()
    }

    fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = frame_len(bytes).unwrap();
            out.push((bytes[4], bytes[FRAME_HEADER_BYTES..len].to_vec()));
            bytes = &bytes[len..];
        }
        out
    }

    #[test]
    fn every_request_is_answered_in_order_whatever_the_cuts() {
        let script = script();
        let mut whole = Vec::new();
        let mut ring_whole = ring();
        let mut session = ServerSession::new();
        let actions = session
            .receive(&script, &mut ring_whole, &mut whole)
            .unwrap();
        let expected = Actions {
            send_descriptor: true,
            consumers_changed: true,
            close: false,
        };
        assert_eq!(actions, expected);
        let kinds: Vec<u8> = frames(&whole).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            [
                WELCOME,
                OK,          // watch
                ERROR,       // no such consumer
                ERROR,       // before the tail
                CONSUMER,    // made
                OK,          // forward
                ERROR,       // back
                ERROR,       // past the durable position
                CONSUMER,    // list
                OK,          // end of list
                OK,          // seek
                STATUS_PART, // three parts of status
                STATUS_PART,
                STATUS_PART,
                OK,
                ERROR, // drop nobody
                OK,    // drop
                OK,    // empty list
            ]
        );
        assert!(ring_whole.rows.is_empty());
        let mut state = 0x1234_5678_9abc_def1_u64;
        for round in 0..50 {
            let mut ring = ring();
            let mut session = ServerSession::new();
            let mut out = Vec::new();
            let mut rest = &script[..];
            while !rest.is_empty() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let part = match round {
                    0 => 1,
                    _ => 1 + (state % 40) as usize,
                };
                let (head, tail) = rest.split_at(part.min(rest.len()));
                session.receive(head, &mut ring, &mut out).unwrap();
                rest = tail;
            }
            assert_eq!(out, whole);
        }
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_session() {
        let fails = |bytes: &[u8]| {
            let mut out = Vec::new();
            ServerSession::new()
                .receive(bytes, &mut ring(), &mut out)
                .unwrap_err()
        };
        assert_eq!(fails(&request(LIST, &[])), ProtocolError::NotHello);
        assert_eq!(fails(b"GET / HTTP/1.1\r\n"), ProtocolError::FrameTooLong);
        assert_eq!(fails(&[0, 0, 0, 0]), ProtocolError::FrameTooLong);
        assert_eq!(fails(&[255, 255, 255, 255]), ProtocolError::FrameTooLong);
        let after_hello = |frame: Vec<u8>| fails(&[hello(), frame].concat());
        assert_eq!(
            after_hello(request(200, &[])),
            ProtocolError::Malformed(200)
        );
        assert_eq!(
            after_hello(request(LIST, &[1])),
            ProtocolError::Malformed(LIST)
        );
        assert_eq!(
            after_hello(request(DROP, &[3, b'a'])),
            ProtocolError::Malformed(DROP)
        );
        assert_eq!(
            after_hello(request(STATUS, &[]).repeat(1_000)),
            ProtocolError::NotReading
        );
    }

    #[test]
    fn damaged_requests_never_panic_and_output_stays_bounded() {
        let script = script();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut bytes = script.clone();
            for _ in 0..1 + random() % 4 {
                let at = (random() % bytes.len() as u64) as usize;
                bytes[at] = random() as u8;
            }
            let mut ring = ring();
            let mut out = Vec::new();
            let mut session = ServerSession::new();
            // Whatever the verdict: it comes back, and the session can be closed.
            let _ = session.receive(&bytes, &mut ring, &mut out);
            assert!(out.len() <= OUTPUT_BYTES_MAX + 20_000);
            session.close(&mut ring);
            assert!(ring.rows.len() <= 2 && ring.attachments.names.is_empty());
        }
    }

    #[test]
    fn a_socket_below_a_long_path_can_be_bound_and_connected_to() {
        let dir = std::env::temp_dir().join(format!("ringmx-ctl-{}", std::process::id()));
        let long = dir.join("d".repeat(150));
        std::fs::create_dir_all(&long).unwrap();
        let path = long.join("ctl");
        let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path);
        let listener = with_short_path(&path, bind).unwrap();
        with_short_path(&path, |path| UnixStream::connect(path)).unwrap();
        drop(listener);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn another_version_is_refused_with_an_answer() {
        let mut payload = MAGIC.to_vec();
        payload.extend_from_slice(&2_u16.to_le_bytes());
        let mut out = Vec::new();
        let actions = ServerSession::new()
            .receive(&request(HELLO, &payload), &mut ring(), &mut out)
            .unwrap();
        assert!(actions.close && !actions.send_descriptor);
        let (kind, payload) = frames(&out).remove(0);
        assert_eq!((kind, &payload[..2]), (ERROR, &[1, 0][..]));
    }

    #[test]
    fn a_consumer_takes_one_process_at_a_time_and_is_free_after_close() {
        let mut ring = ring();
        let mut out = Vec::new();
        let mut payload = vec![1];
        payload.extend_from_slice(&From::Oldest.encode());
        let register = [hello(), request(REGISTER, &named(payload, "a"))].concat();
        let mut first = ServerSession::new();
        first.receive(&register, &mut ring, &mut out).unwrap();
        assert_eq!(first.attached(), Some("a"));
        let mut second = ServerSession::new();
        out.clear();
        second.receive(&register, &mut ring, &mut out).unwrap();
        let (kind, payload) = frames(&out).pop().unwrap();
        assert_eq!((kind, &payload[..2]), (ERROR, &[3, 0][..]));
        out.clear();
        let seek = request(SEEK, &named(From::Oldest.encode().to_vec(), "a"));
        second.receive(&seek, &mut ring, &mut out).unwrap();
        assert_eq!(frames(&out)[0].0, ERROR);
        first.close(&mut ring);
        out.clear();
        second
            .receive(&register[hello().len()..], &mut ring, &mut out)
            .unwrap();
        assert_eq!(frames(&out)[0].0, CONSUMER);
        second.close(&mut ring);
        assert!(!ring.attachments.contains("a"));
    }

    #[test]
    fn progress_is_reported_once_for_each_change_and_only_to_watchers() {
        let mut ring = ring();
        let mut out = Vec::new();
        let mut session = ServerSession::new();
        session.receive(&hello(), &mut ring, &mut out).unwrap();
        out.clear();
        assert!(!session.report(&ring, &mut out));
        session
            .receive(&request(WATCH, &[]), &mut ring, &mut out)
            .unwrap();
        assert!(session.report(&ring, &mut out));
        assert!(!session.report(&ring, &mut out));
        ring.progress.durable += 64;
        ring.progress.durable += 64;
        assert!(session.report(&ring, &mut out));
        let reports: Vec<_> = frames(&out)
            .into_iter()
            .filter(|(kind, _)| *kind == PROGRESS)
            .map(|(_, payload)| Input(&payload).progress().unwrap().durable)
            .collect();
        assert_eq!(reports, [6_400, 6_528]);
    }

    #[test]
    fn client_and_server_understand_each_other() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut ring = ring();
            let mut session = ServerSession::new();
            let mut buf = [0; 100];
            let file = std::fs::File::open("/dev/null").unwrap();
            loop {
                let len = far.read(&mut buf).unwrap();
                if len == 0 {
                    session.close(&mut ring);
                    return ring;
                }
                let mut out = Vec::new();
                let actions = session.receive(&buf[..len], &mut ring, &mut out).unwrap();
                session.report(&ring, &mut out);
                let mut rest = &out[..];
                let mut descriptor = actions.send_descriptor.then_some(file.as_fd());
                while !rest.is_empty() {
                    let sent = fd_passing::send(far.as_fd(), rest, descriptor.take()).unwrap();
                    rest = &rest[sent..];
                }
            }
        });
        let mut client = Client::over(near).unwrap();
        assert!(client.take_descriptor().is_some());
        assert_eq!(client.facts(), ring().facts());
        assert_eq!(client.progress(), ring().progress);
        client.watch().unwrap();
        let refused = client.register("archive", None).unwrap_err();
        assert!(matches!(
            refused,
            ClientError::Refused(Refusal::NoSuchConsumer)
        ));
        let begin = Cursor {
            scan_pos: 640,
            done_pos: 640,
        };
        assert_eq!(
            client.register("archive", Some(From::Oldest)).unwrap(),
            begin
        );
        let cursor = Cursor {
            scan_pos: 704,
            done_pos: 768,
        };
        client.acknowledge("archive", cursor).unwrap();
        let row = ConsumerState {
            name: "archive".to_owned(),
            cursor,
            attached: true,
        };
        assert_eq!(client.list().unwrap(), [row]);
        assert_eq!(client.status().unwrap(), vec![b'x'; 10_000]);
        client.seek("archive", From::Newest).unwrap();
        assert!(client.seek("no such", From::Newest).is_err());
        let known = client.progress();
        let waited = client.wait_progress(known, Duration::from_millis(1));
        assert_eq!(waited.unwrap(), known);
        drop(client);
        let ring = server.join().unwrap();
        assert_eq!(ring.rows[0].1.done_pos, 6_400);
        assert!(!ring.attachments.contains("archive"));
    }

    /// A report that came with the answer in one read stayed unseen, and whoever waited for the socket then slept until
    /// the next message.
    #[test]
    fn no_report_waits_behind_an_answer() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut ring = ring();
        let mut session = ServerSession::new();
        let mut out = Vec::new();
        let mut requests = Vec::new();
        let mut hello = MAGIC.to_vec();
        hello.extend_from_slice(&VERSION.to_le_bytes());
        put_frame(&mut requests, HELLO, &hello);
        put_frame(&mut requests, WATCH, &[]);
        session.receive(&requests, &mut ring, &mut out).unwrap();
        ring.progress.next_number += 1;
        session.report(&ring, &mut out);
        let file = std::fs::File::open("/dev/null").unwrap();
        // Welcome, answer and report are there at once.
        let sent = fd_passing::send(far.as_fd(), &out, Some(file.as_fd())).unwrap();
        assert_eq!(sent, out.len());
        let mut client = Client::over(near).unwrap();
        assert_ne!(client.progress(), ring.progress);
        client.watch().unwrap();
        assert_eq!(client.progress(), ring.progress);
        let ready = wait::readable(&[client.as_fd()], Some(Duration::ZERO)).unwrap();
        assert!(!ready.is_ready(0), "nothing is left to wait for");
    }
}
