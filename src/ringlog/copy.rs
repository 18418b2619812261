//! Writing the messages of one ring into another: what `ringmx ring resize` and the ring of
//! `ringmx log rescue` are made with.
//!
//! Promises: numbers, times, envelopes and bodies stay; a consumer gets in the new ring every message
//! that it had not had in the old one. Does not: keep positions, or read the old ring.

use std::fmt;
use std::io::{self, IoSlice};

use super::backing::Backing;
use super::format::{Consumer, Kind};
use super::reader::Message;
use super::recover::{self, NewRing, OpenError, OpenOptions};
use super::writer::{ConsumerError, Failed, FullPolicy, Log, ReserveError, Slot, StartAt, Survive};
use crate::clock::Instant;
use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

/// Why a copy can't be made.
#[derive(Debug)]
pub enum CopyError {
    /// The new ring is too small for all messages.
    Full,
    /// A message is over an eighth of the new ring.
    TooLarge {
        /// Its number.
        number: u64,
        /// Bytes of envelope and body.
        bytes: u64,
    },
    /// A message's number is not larger than that of the one before it.
    Order {
        /// Its number.
        number: u64,
    },
    /// The new ring can't be made.
    Create(io::Error),
    /// The new ring does not open.
    Open(OpenError),
    /// Writing it failed.
    Failed(Failed),
    /// A consumer can't be registered there.
    Consumer(ConsumerError),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyError::Full => f.write_str("the new ring is too small for the messages"),
            CopyError::TooLarge { number, bytes } => write!(
                f,
                "message {number} has {bytes} bytes, and a message may take an eighth of a ring"
            ),
            CopyError::Order { number } => {
                write!(f, "message {number} comes after one with a larger number")
            }
            CopyError::Create(error) => write!(f, "making the new ring: {error}"),
            CopyError::Open(error) => write!(f, "opening the new ring: {error}"),
            CopyError::Failed(failed) => failed.fmt(f),
            CopyError::Consumer(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CopyError {}

impl From<Failed> for CopyError {
    fn from(failed: Failed) -> CopyError {
        CopyError::Failed(failed)
    }
}

/// A consumer on its way to the new ring.
#[derive(Debug)]
struct Moving {
    consumer: Consumer,
    /// Where it begins there, once a message that it has not had was appended.
    begins_at: Option<u64>,
}

/// A ring that is being filled with messages of another.
#[derive(Debug)]
pub struct RingCopy<B: Backing> {
    /// Formatted and not opened yet: that takes the time of the first message.
    closed: Option<B>,
    /// INVARIANT: `Some` when `closed` is `None`, unless opening failed.
    log: Option<Log<B>>,
    consumers: Vec<Moving>,
    messages: u64,
}

impl<B: Backing> RingCopy<B> {
    /// Formats `backing`, which holds zeros. `epoch` is the last of the old ring.
    ///
    /// # Errors
    /// `Create`.
    pub fn new(
        mut backing: B,
        new: &NewRing,
        epoch: u32,
        consumers: &[Consumer],
    ) -> Result<RingCopy<B>, CopyError> {
        recover::format_in_epoch(&mut backing, new, epoch).map_err(CopyError::Create)?;
        let consumers = consumers.iter().map(|consumer| Moving {
            consumer: *consumer,
            begins_at: None,
        });
        Ok(RingCopy {
            closed: Some(backing),
            log: None,
            consumers: consumers.collect(),
            messages: 0,
        })
    }

    fn log(&mut self, wall_ns: u64) -> Result<&mut Log<B>, CopyError> {
        if let Some(backing) = self.closed.take() {
            let mut options = OpenOptions::new(Survive::Power, wall_ns);
            // Nothing gives way to a later message.
            options.full = FullPolicy::Defer;
            let (log, _) = Log::open(backing, &options).map_err(CopyError::Open)?;
            self.log = Some(log);
        }
        let unopened = CopyError::Open(OpenError::Missing);
        self.log.as_mut().ok_or(unopened)
    }

    /// Appends a message under its own number and time. Not durable before [`RingCopy::finish`].
    ///
    /// # Errors
    /// `Open`, `Full`, `TooLarge`, `Order`, `Failed`.
    pub fn append(&mut self, message: &Message) -> Result<(), CopyError> {
        let log = self.log(message.received_ns)?;
        if message.number < log.next_number() {
            return Err(CopyError::Order {
                number: message.number,
            });
        }
        log.skip_numbers_to(message.number);
        log.begin_turn(message.received_ns);
        let at = log.written();
        for moving in &mut self.consumers {
            // It ends behind done_pos, so that its last record begins at or behind it.
            if moving.begins_at.is_none() && message.end > moving.consumer.done_pos {
                moving.begins_at = Some(at);
            }
        }
        let bytes = message.envelope_bytes().len() + message.body().len();
        let refused = |error| match error {
            ReserveError::Full { .. } => CopyError::Full,
            ReserveError::Failed(failed) => CopyError::Failed(failed),
            ReserveError::TooLarge | ReserveError::Busy => CopyError::TooLarge {
                number: message.number,
                bytes: bytes as u64,
            },
        };
        let log = self.log(message.received_ns)?;
        let payload = [message.envelope_bytes(), message.body()];
        let env_len = payload[0].len();
        if bytes as u64 <= RECORD_PAYLOAD_BYTES_MAX.min(log.payload_bytes_max()) {
            let slot = log.reserve(bytes as u64).map_err(refused)?;
            write(log, &slot, env_len, &payload)?;
        } else {
            let first_bytes = RECORD_PAYLOAD_BYTES_MAX.min(log.payload_bytes_max() / 2);
            if env_len as u64 > first_bytes {
                return Err(refused(ReserveError::TooLarge));
            }
            let whole = payload.concat();
            let crc = crc32c::crc32c(&whole);
            let mut large = log.begin_large(bytes as u64).map_err(refused)?;
            for piece in whole.chunks(first_bytes as usize) {
                let slot = log.reserve_fragment(&mut large, piece.len() as u64);
                let slot = slot.map_err(refused)?;
                match slot.kind {
                    Kind::Last => {
                        let described = large.whole(crc).encode();
                        write(log, &slot, 0, &[&described, piece])?;
                    }
                    Kind::First => write(log, &slot, env_len, &[piece, &[]])?,
                    _ => write(log, &slot, 0, &[piece, &[]])?,
                }
            }
        }
        self.messages += 1;
        Ok(())
    }

    /// Messages appended.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Registers the consumers, makes everything durable and closes the ring in order. The next
    /// message of the ring takes `next_number` at least. `wall_ns` is the time of a ring without
    /// messages.
    ///
    /// # Errors
    /// `Failed`, `Consumer`.
    pub fn finish(mut self, next_number: u64, wall_ns: u64, now: Instant) -> Result<B, CopyError> {
        let consumers = std::mem::take(&mut self.consumers);
        // One that holds no message has not been opened yet.
        let log = self.log(wall_ns)?;
        log.skip_numbers_to(next_number);
        log.sync_inline(now)?;
        for moving in &consumers {
            let start = match moving.begins_at {
                Some(position) => StartAt::Position(position),
                None => StartAt::Newest,
            };
            log.register(moving.consumer.name, start)
                .map_err(CopyError::Consumer)?;
        }
        let log = self.log.ok_or(CopyError::Open(OpenError::Missing))?;
        Ok(log.close()?)
    }
}

fn write<B: Backing>(
    log: &mut Log<B>,
    slot: &Slot,
    env_len: usize,
    parts: &[&[u8]; 2],
) -> Result<(), Failed> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(parts[0]), parts[1]);
    let header = log.header(slot, env_len as u32, crc);
    let padding = &[0; 64][..slot.padding];
    let parts = [&header[..], parts[0], parts[1], padding].map(IoSlice::new);
    log.write(&parts)
}
