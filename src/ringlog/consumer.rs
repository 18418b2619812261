//! Reading the log in order, as consumers do: a walk along the records that puts large messages
//! together and knows where a later walk has to begin. A consumer's cursor is
//! [`Walk::scan_position`] and [`Walk::position`].

use std::io;

use super::format::{Header, Kind, RECORD_ALIGN, RECORD_LOST, WHOLE_BYTES, Whole};
use super::reader::{BadRecord, Message, Reader, Source, Window, assemble, follows};
use crate::checksum;

/// What [`Walk::step`] came upon.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A message was completed.
    Message(Message),
    /// A record that completes no message.
    Other,
    /// The reader was behind the tail: what stood between is overwritten. The walk goes on at `to`.
    Lapped {
        /// Where the walk stood.
        from: u64,
        /// The tail.
        to: u64,
    },
    /// No good record stands here. The walk does not move: look at a newer tail first, because the
    /// writer may have overtaken; then [`Walk::skip_damage`].
    Damaged {
        /// Position.
        position: u64,
        /// What is wrong.
        reason: BadRecord,
    },
    /// The end of the window.
    End,
}

/// A large message of which LAST is missing yet.
#[derive(Debug)]
struct Open {
    first: Header,
    bytes: Vec<u8>,
    crc: u32,
    fragments: u32,
    /// Damage stood behind FIRST: a record of it may be missing. LAST tells.
    broken: bool,
}

/// A walk along the records, oldest first, that puts large messages together.
///
/// A large message outlives damage among other records between its own. One of which a record is
/// missing is dropped at its LAST, or a quarter of the ring behind its FIRST.
///
/// Bounds: holds one large message at most, no longer than the window.
#[derive(Debug)]
pub struct Walk {
    position: u64,
    /// Messages that complete before this position are not delivered again.
    done: u64,
    open: Option<Open>,
    previous: Option<Header>,
    /// Records seen, for `verify`.
    pub records: u64,
}

impl Walk {
    /// A walk from the record at `position` on.
    pub fn new(position: u64) -> Walk {
        Walk::resume(position, position)
    }

    /// A walk that reads from `scan_pos` on and gives only messages that complete at or after
    /// `done_pos`.
    pub fn resume(scan_pos: u64, done_pos: u64) -> Walk {
        Walk {
            position: scan_pos,
            done: done_pos,
            open: None,
            previous: None,
            records: 0,
        }
    }

    /// Where the next record is read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Position of the FIRST of the large message that is being put together.
    pub fn open_at(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.first.position)
    }

    /// Where a later walk has to begin so that nothing that is open now is missed.
    pub fn scan_position(&self) -> u64 {
        self.open_at().unwrap_or(self.position)
    }

    /// Reads one record. Bounds: one record, and for LAST the message.
    ///
    /// # Errors
    /// Those of the source; the walk has not moved.
    pub fn step<S: Source>(&mut self, reader: &Reader<S>, window: Window) -> io::Result<Step> {
        if self.position < window.tail {
            let from = self.position;
            self.forget();
            self.position = window.tail;
            return Ok(Step::Lapped {
                from,
                to: window.tail,
            });
        }
        if self.position >= window.end {
            return Ok(Step::End);
        }
        let position = self.position;
        let read = match reader.header(position, window.end)? {
            Ok(header) => self.record(reader, &header)?,
            Err(reason) => Err(reason),
        };
        Ok(match read {
            Ok(step) => step,
            Err(reason) => Step::Damaged { position, reason },
        })
    }

    /// Goes on behind damage: at the next good record up to `end`, or at `end`. Returns the range
    /// left out.
    ///
    /// # Errors
    /// Those of the source.
    pub fn skip_damage<S: Source>(
        &mut self,
        reader: &mut Reader<S>,
        end: u64,
    ) -> io::Result<(u64, u64)> {
        let from = self.position;
        let next = reader.resynchronise(from + RECORD_ALIGN, end)?;
        self.previous = None;
        if let Some(open) = &mut self.open {
            open.broken = true;
        }
        self.position = next.map_or(end, |header| header.position);
        Ok((from, self.position))
    }

    fn forget(&mut self) {
        self.open = None;
        self.previous = None;
    }

    fn record<S: Source>(
        &mut self,
        reader: &Reader<S>,
        header: &Header,
    ) -> io::Result<Result<Step, BadRecord>> {
        if self
            .previous
            .is_some_and(|previous| !follows(&previous, header))
        {
            return Ok(Err(BadRecord::Order));
        }
        let patience = reader.data_size() / 4;
        self.open.take_if(|open| {
            // A crash stands between the two: what its writer left open stays incomplete. And where
            // LAST may be lost, nobody waits for ever: a consumer would hold the ring.
            open.first.epoch < header.epoch
                || open.broken && header.position - open.first.position > patience
        });
        let delivered = header.position < self.done;
        let result = match header.kind {
            Kind::Message if delivered => Ok(Step::Other),
            Kind::Message => {
                let mut bytes = Vec::new();
                reader
                    .payload(header, &mut bytes)?
                    .map(|()| Step::Message(assemble(reader, header, header.end(), bytes)))
            }
            Kind::First => self.first(reader, header)?,
            Kind::Middle => self.middle(reader, header)?,
            Kind::Last => self.last(reader, header, delivered)?,
            Kind::Pad | Kind::Epoch | Kind::Reserved(_) => {
                if let Some(open) = &mut self.open {
                    open.broken |= header.kind == Kind::Pad && header.flags & RECORD_LOST != 0;
                }
                Ok(Step::Other)
            }
        };
        if result.is_ok() {
            self.previous = Some(*header);
            self.position = header.end();
            self.records += 1;
        }
        Ok(result)
    }

    /// The parts of the open message do not make a whole. Behind damage, which has been reported,
    /// that is to be expected: the message is dropped.
    fn misfit(&mut self) -> Result<Step, BadRecord> {
        match self.open.take_if(|open| open.broken) {
            Some(_) => Ok(Step::Other),
            None => Err(BadRecord::Whole),
        }
    }

    fn first<S: Source>(
        &mut self,
        reader: &Reader<S>,
        header: &Header,
    ) -> io::Result<Result<Step, BadRecord>> {
        let mut bytes = Vec::new();
        Ok(reader.payload(header, &mut bytes)?.map(|()| {
            // One that is open already was given up by its writer: a crash stands between the two.
            self.open = Some(Open {
                first: *header,
                bytes,
                crc: header.payload_crc,
                fragments: 1,
                broken: false,
            });
            Step::Other
        }))
    }

    fn middle<S: Source>(
        &mut self,
        reader: &Reader<S>,
        header: &Header,
    ) -> io::Result<Result<Step, BadRecord>> {
        let Some(open) = &mut self.open else {
            // The beginning stood before the place where this walk began.
            return Ok(Ok(Step::Other));
        };
        if (open.bytes.len() as u64).saturating_add(u64::from(header.len)) > reader.data_size() {
            return Ok(self.misfit());
        }
        Ok(reader.payload(header, &mut open.bytes)?.map(|()| {
            open.crc = checksum::combined(open.crc, header.payload_crc, u64::from(header.len));
            open.fragments = open.fragments.saturating_add(1);
            Step::Other
        }))
    }

    fn last<S: Source>(
        &mut self,
        reader: &Reader<S>,
        header: &Header,
        delivered: bool,
    ) -> io::Result<Result<Step, BadRecord>> {
        let Some(open) = &mut self.open else {
            return Ok(Ok(Step::Other));
        };
        let start = open.bytes.len();
        if let Err(reason) = reader.payload(header, &mut open.bytes)? {
            return Ok(Err(reason));
        }
        let Some(whole) = Whole::decode(&open.bytes[start..]) else {
            open.bytes.truncate(start);
            return Ok(self.misfit());
        };
        if whole.first_position < open.first.position {
            // It completes a message whose beginning was not seen.
            open.bytes.truncate(start);
            return Ok(Ok(Step::Other));
        }
        let end_crc = crc32c::crc32c(&open.bytes[start + WHOLE_BYTES..]);
        let end_len = open.bytes.len() - start - WHOLE_BYTES;
        let fits = whole.first_position == open.first.position
            && whole.number == open.first.number
            && whole.payload_bytes == (start + end_len) as u64
            && whole.fragments == open.fragments.saturating_add(1)
            && whole.crc == checksum::combined(open.crc, end_crc, end_len as u64);
        if !fits {
            open.bytes.truncate(start);
            return Ok(self.misfit());
        }
        let Some(mut open) = self.open.take().filter(|_| !delivered) else {
            return Ok(Ok(Step::Other));
        };
        open.bytes.drain(start..start + WHOLE_BYTES);
        let message = assemble(reader, &open.first, header.end(), open.bytes);
        Ok(Ok(Step::Message(message)))
    }
}
