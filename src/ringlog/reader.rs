//! Reading a ring: records, messages, and where a number or a time stands.
//!
//! Nothing here writes or locks. Bytes are copied out of the [`Source`] first and checked
//! afterwards, so that a writer that overtakes the reader meanwhile shows as a bad record, never as
//! a wrong message. What is durable, and what has been overwritten, the caller says ([`Window`]).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use super::consumer::{Step, Walk};
use super::format::{Header, HeaderError, Kind, RECORD_ALIGN, Superblock};
use crate::envelope::{DeliverBy, Facts, Field, Fields};
use crate::limits::RECORD_HEADER_BYTES;

/// Bytes that a search takes from the source in one read.
pub const PIECE_BYTES: u64 = 65_536;

/// The data area of a ring.
pub trait Source {
    /// Copies the bytes of `position..position + out.len()`; the area is the position modulo its
    /// size, and `out` is no longer than it.
    ///
    /// # Errors
    /// Those of the storage. Bytes that are being overwritten are no error.
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()>;
}

impl<S: Source + ?Sized> Source for &S {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        (**self).read(position, out)
    }
}

/// What may be read: whole records from `tail` up to `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Oldest record that is kept.
    pub tail: u64,
    /// Behind the last record that may be read.
    pub end: u64,
}

/// Why there is no good record at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// The 64 bytes are no header.
    Header(HeaderError),
    /// A header of another position: an earlier lap, or a misdirected write.
    Position,
    /// It would end behind the end of what may be read.
    Length,
    /// The payload does not have its checksum.
    Payload,
    /// Number, epoch or time go back.
    Order,
    /// The parts of a large message do not make the whole that LAST describes.
    Whole,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadRecord::Header(error) => error.fmt(f),
            BadRecord::Position => f.write_str("record of another position"),
            BadRecord::Length => f.write_str("record that runs past the end"),
            BadRecord::Payload => f.write_str("record with a wrong payload checksum"),
            BadRecord::Order => f.write_str("record whose number, epoch or time goes back"),
            BadRecord::Whole => f.write_str("large message whose parts do not fit together"),
        }
    }
}

/// One message, copied out of the ring and checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Public identity of the ring.
    pub ring_id: [u8; 16],
    /// Number of the shard.
    pub shard: u32,
    /// Number of the message in its shard.
    pub number: u64,
    /// Position of its only or first record.
    pub position: u64,
    /// Position behind its completing record.
    pub end: u64,
    /// Nanoseconds since 1970 of the turn that wrote its first record.
    pub received_ns: u64,
    /// Envelope, then body.
    bytes: Vec<u8>,
    /// INVARIANT: at most `bytes.len()`.
    env_len: usize,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message {} at {}", self.id(), self.position)
    }
}

impl Message {
    /// A message made by hand, for targets and tests. `bytes` holds the envelope and the body; an
    /// `env_len` past its end means that all of it is envelope.
    pub fn new(
        ring_id: [u8; 16],
        shard: u32,
        number: u64,
        bytes: Vec<u8>,
        env_len: usize,
    ) -> Message {
        Message {
            ring_id,
            shard,
            number,
            position: 0,
            end: 0,
            received_ns: 0,
            env_len: env_len.min(bytes.len()),
            bytes,
        }
    }

    /// `SHARD-NUMBER`, as the client was told.
    pub fn id(&self) -> MessageId {
        MessageId {
            shard: self.shard,
            number: self.number,
        }
    }

    /// The stored envelope; see [`Envelope::decode`].
    pub fn envelope_bytes(&self) -> &[u8] {
        &self.bytes[..self.env_len]
    }

    /// The envelope, decoded.
    pub fn envelope(&self) -> Envelope<'_> {
        Envelope::decode(self.envelope_bytes())
    }

    /// The message as stored: trace field first, CRLF kept, dots unstuffed.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.env_len..]
    }
}

/// Shard and number of a message, written `0-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    /// Number of the shard.
    pub shard: u32,
    /// Number in the shard, from 1 on.
    pub number: u64,
}

impl MessageId {
    /// Reads `0-1`, or `1` alone, which means `default_shard`.
    pub fn parse(text: &str, default_shard: u32) -> Option<MessageId> {
        let decimal = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let (shard, number) = match text.split_once('-') {
            Some((shard, number)) if decimal(shard) => (shard.parse().ok()?, number),
            Some(_) => return None,
            None => (default_shard, text),
        };
        let number = number.parse().ok().filter(|_| decimal(number))?;
        Some(MessageId { shard, number })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard, self.number)
    }
}

/// One recipient of an [`Envelope`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// Forward-path without brackets.
    pub path: &'a [u8],
    /// Parameters of its RCPT, empty without any.
    pub parameters: &'a [u8],
}

/// The fields of a stored envelope. Absent text fields are `None`; unknown types are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Facts known at the end of the message.
    pub facts: Facts,
    /// Client address.
    pub client: Option<SocketAddr>,
    /// Server address.
    pub listener: Option<SocketAddr>,
    /// Role of the listener.
    pub role: Option<&'a [u8]>,
    /// Argument of HELO or EHLO.
    pub helo: Option<&'a [u8]>,
    /// TLS version and cipher suite.
    pub tls: Option<&'a [u8]>,
    /// Name the client asked for in its TLS handshake.
    pub tls_server_name: Option<&'a [u8]>,
    /// The client's certificate: its fingerprint, and whether it was verified.
    pub tls_client: Option<&'a [u8]>,
    /// Authenticated user.
    pub user: Option<&'a [u8]>,
    /// Reverse-path without brackets, empty for the null reverse-path.
    pub reverse_path: Option<&'a [u8]>,
    /// Parameters of MAIL.
    pub mail_parameters: Option<&'a [u8]>,
    /// By when it is to be delivered (RFC 2852).
    pub deliver_by: Option<DeliverBy>,
    /// Until when it is to be held (RFC 4865), seconds since 1970.
    pub hold_until: Option<i64>,
    /// Priority (RFC 6710), -9 to 9.
    pub priority: Option<i8>,
    /// What XFORWARD said, `NAME=value` each, separated by spaces.
    pub forwarded: Option<&'a [u8]>,
    /// Name of the client, as XCLIENT gave it.
    pub client_name: Option<&'a [u8]>,
    /// Recipients in order.
    pub recipients: Vec<Recipient<'a>>,
    /// The envelope ends in the middle of a field.
    pub malformed: bool,
}

impl<'a> Envelope<'a> {
    /// Decodes; what cannot be understood is left out, because the body is worth having without it.
    pub fn decode(bytes: &'a [u8]) -> Envelope<'a> {
        let mut envelope = Envelope::default();
        let mut fields = Fields::new(bytes);
        for (number, value) in &mut fields {
            match Field::from_number(number) {
                Some(Field::Facts) => envelope.facts = Facts::decode(value).unwrap_or_default(),
                Some(Field::Client) => envelope.client = socket_address(value),
                Some(Field::Listener) => envelope.listener = socket_address(value),
                Some(Field::Role) => envelope.role = Some(value),
                Some(Field::Helo) => envelope.helo = Some(value),
                Some(Field::Tls) => envelope.tls = Some(value),
                Some(Field::TlsServerName) => envelope.tls_server_name = Some(value),
                Some(Field::TlsClient) => envelope.tls_client = Some(value),
                Some(Field::User) => envelope.user = Some(value),
                Some(Field::ReversePath) => envelope.reverse_path = Some(value),
                Some(Field::MailParameters) => envelope.mail_parameters = Some(value),
                Some(Field::DeliverBy) => envelope.deliver_by = DeliverBy::decode(value),
                Some(Field::HoldUntil) => {
                    envelope.hold_until = value.try_into().ok().map(i64::from_le_bytes);
                }
                Some(Field::Priority) => {
                    envelope.priority = value.try_into().ok().map(i8::from_le_bytes);
                }
                Some(Field::Forwarded) => envelope.forwarded = Some(value),
                Some(Field::ClientName) => envelope.client_name = Some(value),
                Some(Field::ForwardPath) => envelope.recipients.push(Recipient {
                    path: value,
                    parameters: &[],
                }),
                Some(Field::RcptParameters) => {
                    if let Some(recipient) = envelope.recipients.last_mut() {
                        recipient.parameters = value;
                    }
                }
                _ => {}
            }
        }
        envelope.malformed = fields.is_malformed();
        envelope
    }
}

fn socket_address(value: &[u8]) -> Option<SocketAddr> {
    let (address, port) = value.split_first_chunk::<16>()?;
    let port = u16::from_le_bytes(port.try_into().ok()?);
    let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
    Some(SocketAddr::new(address, port))
}

/// Reads records of one ring.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    /// The secret in every header.
    ring_key: u64,
    data_size: u64,
    ring_id: [u8; 16],
    shard: u32,
    piece: Vec<u8>,
}

impl<S: Source> Reader<S> {
    /// A reader of the ring that `superblock` describes.
    pub fn new(source: S, superblock: &Superblock, shard: u32) -> Reader<S> {
        Reader {
            source,
            ring_key: superblock.ring_key,
            data_size: superblock.data_size,
            ring_id: superblock.ring_id,
            shard,
            piece: Vec::new(),
        }
    }

    /// Public identity of the ring.
    pub fn ring_id(&self) -> [u8; 16] {
        self.ring_id
    }

    /// Number of the shard.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Size of the data area, bytes.
    pub fn data_size(&self) -> u64 {
        self.data_size
    }

    /// The header at `position`, of a record that ends at or before `end`.
    ///
    /// # Errors
    /// Those of the source; what is no good header is a value.
    pub fn header(&self, position: u64, end: u64) -> io::Result<Result<Header, BadRecord>> {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        if end.saturating_sub(position) < RECORD_ALIGN {
            return Ok(Err(BadRecord::Length));
        }
        self.source.read(position, &mut bytes)?;
        Ok(self.check_header(&bytes, position, end))
    }

    fn check_header(
        &self,
        bytes: &[u8; RECORD_HEADER_BYTES],
        position: u64,
        end: u64,
    ) -> Result<Header, BadRecord> {
        let header = Header::decode(bytes, self.ring_key).map_err(BadRecord::Header)?;
        if header.position != position {
            return Err(BadRecord::Position);
        }
        if header.end() > end || header.extent() > self.data_size {
            return Err(BadRecord::Length);
        }
        Ok(header)
    }

    /// Appends the payload of `header` to `out` and checks it; on a bad one `out` is as before.
    /// Bounds: one record.
    ///
    /// # Errors
    /// Those of the source.
    pub fn payload(&self, header: &Header, out: &mut Vec<u8>) -> io::Result<Result<(), BadRecord>> {
        let start = out.len();
        out.resize(start + header.len as usize, 0);
        let read = self
            .source
            .read(header.position + RECORD_ALIGN, &mut out[start..]);
        let good = read.is_ok() && crc32c::crc32c(&out[start..]) == header.payload_crc;
        if !good {
            out.truncate(start);
        }
        read.map(|()| match good {
            true => Ok(()),
            false => Err(BadRecord::Payload),
        })
    }

    /// The first record that starts at or after `from` and ends at or before `end`, looked for at
    /// every multiple of 64. Reads in pieces of [`PIECE_BYTES`].
    ///
    /// # Errors
    /// Those of the source.
    pub fn resynchronise(&mut self, from: u64, end: u64) -> io::Result<Option<Header>> {
        self.resynchronise_until(from.next_multiple_of(RECORD_ALIGN), end, end)
    }

    fn first_header(&self, piece: &[u8], from: u64, end: u64) -> Option<Header> {
        let positions = (from..).step_by(RECORD_HEADER_BYTES);
        let (blocks, _) = piece.as_chunks::<RECORD_HEADER_BYTES>();
        blocks
            .iter()
            .zip(positions)
            .find_map(|(block, position)| self.check_header(block, position, end).ok())
    }

    /// Position of the first record for which `before` is false, or the end of the window. `before`
    /// must be true for a front part of the log and false for the rest, as "its number is less
    /// than" is.
    ///
    /// Work: about log2(window / 64 KiB) reads of at most 64 KiB, plus those that longer records
    /// cost.
    ///
    /// # Errors
    /// Those of the source.
    pub fn partition_point(
        &mut self,
        window: Window,
        before: impl Fn(&Header) -> bool,
    ) -> io::Result<u64> {
        // INVARIANT: every record that starts before `low` is before the point, and one starts at
        // `low`; no record that starts in `high..best` is before it, and `best` is one that is not,
        // or the end.
        let (mut low, mut high, mut best) = (window.tail, window.end, window.end);
        while high.saturating_sub(low) > PIECE_BYTES {
            let middle = (low + (high - low) / 2).next_multiple_of(RECORD_ALIGN);
            // Records may start before `high` and end behind it.
            match self.resynchronise_until(middle, high, window.end)? {
                Some(header) if before(&header) => low = header.end(),
                Some(header) => (high, best) = (middle, header.position),
                None => high = middle,
            }
        }
        self.walk_to(low, high, window.end, best, before)
    }

    /// Behind the last record of an unbroken, fully checked chain that begins at `from`, looking at
    /// most one lap beyond `tail`, and the header of that record. This is what a reader may trust
    /// behind the checkpoint of a log that nobody writes.
    ///
    /// # Errors
    /// Those of the source.
    pub fn verified_end(&mut self, tail: u64, from: u64) -> io::Result<(u64, Option<Header>)> {
        let limit = tail.saturating_add(self.data_size);
        let mut previous: Option<Header> = None;
        let mut payload = std::mem::take(&mut self.piece);
        let mut at = from;
        let end = loop {
            let header = match self.header(at, limit) {
                Ok(Ok(header)) if previous.is_none_or(|previous| follows(&previous, &header)) => {
                    header
                }
                Ok(_) => break Ok(at),
                Err(error) => break Err(error),
            };
            payload.clear();
            if header.kind != Kind::Pad {
                match self.payload(&header, &mut payload) {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break Ok(at),
                    Err(error) => break Err(error),
                }
            }
            at = header.end();
            previous = Some(header);
        };
        self.piece = payload;
        end.map(|end| (end, previous))
    }

    /// Position of the next good record behind `end`, where the log breaks off, if one that begins
    /// before `until` proves that more than `end` was durable: then acknowledged records stood in
    /// between and are damaged.
    ///
    /// # Errors
    /// Those of the source.
    pub fn durable_behind(&mut self, end: u64, until: u64) -> io::Result<Option<u64>> {
        let mut first = None;
        let mut from = end + RECORD_ALIGN;
        while let Some(header) = self.resynchronise_until(from, until, until)? {
            first.get_or_insert(header.position);
            if header.durable_hint().is_some_and(|hint| hint > end) {
                return Ok(first);
            }
            from = header.end();
        }
        Ok(None)
    }

    /// The first record that starts in `from..until` and ends at or before `end`.
    fn resynchronise_until(
        &mut self,
        from: u64,
        until: u64,
        end: u64,
    ) -> io::Result<Option<Header>> {
        let mut at = from;
        while at < until {
            let len = PIECE_BYTES.min(until - at).min(self.data_size);
            let mut piece = std::mem::take(&mut self.piece);
            piece.resize(len as usize, 0);
            let read = self.source.read(at, &mut piece);
            let found = self.first_header(&piece, at, end);
            self.piece = piece;
            read?;
            if found.is_some() {
                return Ok(found);
            }
            at += len;
        }
        Ok(None)
    }

    /// The last steps of [`Reader::partition_point`]: at most [`PIECE_BYTES`], read at once.
    fn walk_to(
        &mut self,
        low: u64,
        high: u64,
        end: u64,
        best: u64,
        before: impl Fn(&Header) -> bool,
    ) -> io::Result<u64> {
        if low >= high {
            return Ok(best);
        }
        let mut piece = vec![0; (high - low) as usize];
        self.source.read(low, &mut piece)?;
        let mut at = 0;
        while let Some(rest) = piece.get(at..).filter(|rest| !rest.is_empty()) {
            let from = low + at as u64;
            let Some(header) = self.first_header(rest, from, end) else {
                break;
            };
            if !before(&header) {
                return Ok(header.position);
            }
            at = usize::try_from(header.end() - low).unwrap_or(usize::MAX);
        }
        Ok(best)
    }

    /// Position of the first record whose number is at least `number`: that of the message itself,
    /// or of a record shortly before it, or the end of the window.
    ///
    /// # Errors
    /// Those of the source.
    pub fn position_of_number(&mut self, window: Window, number: u64) -> io::Result<u64> {
        self.partition_point(window, |header| match header.kind.takes_number() {
            true => header.number < number,
            // These carry the number of the next message: the searched one may stand behind them.
            false => header.number <= number,
        })
    }

    /// Position of the first record that was written at or after `received_ns`, or the end of the
    /// window.
    ///
    /// # Errors
    /// Those of the source.
    pub fn position_of_time(&mut self, window: Window, received_ns: u64) -> io::Result<u64> {
        self.partition_point(window, |header| header.received_ns < received_ns)
    }

    /// The message with this number. `None`: not in the window, not complete, or damaged.
    ///
    /// # Errors
    /// Those of the source.
    pub fn message(&mut self, window: Window, number: u64) -> io::Result<Option<Message>> {
        let position = self.position_of_number(window, number)?;
        let message = self.message_at(window, position)?;
        Ok(message.filter(|message| message.number == number))
    }

    /// The message whose only or first record stands at `position`. `None` as for
    /// [`Reader::message`].
    ///
    /// # Errors
    /// Those of the source.
    pub fn message_at(&mut self, window: Window, position: u64) -> io::Result<Option<Message>> {
        if !(window.tail..window.end).contains(&position) {
            return Ok(None);
        }
        let mut walk = Walk::new(position);
        loop {
            match walk.step(self, window)? {
                Step::Message(message) if message.position == position => {
                    return Ok(Some(message));
                }
                // Smaller messages stand between the parts of a large one.
                Step::Message(_) | Step::Other if walk.open_at() == Some(position) => {}
                // And damage to one of those does not touch it.
                Step::Damaged { .. } if walk.open_at() == Some(position) => {
                    walk.skip_damage(self, window.end)?;
                }
                _ => return Ok(None),
            }
        }
    }
}

/// Whether nothing that only grows goes back.
pub(super) fn follows(previous: &Header, next: &Header) -> bool {
    previous.number <= next.number
        && previous.epoch <= next.epoch
        && previous.received_ns <= next.received_ns
}

/// The message that begins with `first`, its fragments put together in `bytes`.
pub(super) fn assemble<S>(reader: &Reader<S>, first: &Header, end: u64, bytes: Vec<u8>) -> Message {
    Message {
        ring_id: reader.ring_id,
        shard: reader.shard,
        number: first.number,
        position: first.position,
        end,
        received_ns: first.received_ns,
        env_len: (first.env_len as usize).min(bytes.len()),
        bytes,
    }
}

/// Positions of messages, newest first, without an index: the log is cut into blocks from its end,
/// and each block is walked along its headers.
#[derive(Debug)]
pub struct NewestFirst {
    /// Records before this position have not been looked at.
    high: u64,
    /// Messages that begin in the block at hand, oldest first.
    found: Vec<u64>,
}

/// Bytes of a block of [`NewestFirst`]: it holds at most this / 64 positions.
const BLOCK_BYTES: u64 = 1 << 20;

impl NewestFirst {
    /// Begins at the end of `window`.
    pub fn new(window: Window) -> NewestFirst {
        NewestFirst {
            high: window.end,
            found: Vec::new(),
        }
    }

    /// Position of the next older message's only or first record; `None` at the tail. The message
    /// may turn out not to be complete.
    ///
    /// # Errors
    /// Those of the source.
    pub fn next<S: Source>(
        &mut self,
        reader: &mut Reader<S>,
        window: Window,
    ) -> io::Result<Option<u64>> {
        let mut low = self.high;
        while self.found.is_empty() && self.high > window.tail {
            low = low.saturating_sub(BLOCK_BYTES).max(window.tail);
            let first = reader.resynchronise_until(low, self.high, window.end)?;
            let Some(first) = first else {
                // The whole block lies within one record, or is damaged: take the block before it
                // as well.
                if low == window.tail {
                    self.high = window.tail;
                }
                continue;
            };
            let mut next = Some(first);
            while let Some(header) = next.filter(|header| header.position < self.high) {
                if header.kind.takes_number() {
                    self.found.push(header.position);
                }
                next = match reader.header(header.end(), window.end)? {
                    Ok(header) => Some(header),
                    Err(_) => reader.resynchronise_until(header.end(), self.high, window.end)?,
                };
            }
            self.high = first.position;
        }
        Ok(self.found.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{
        CONSUMER_REQUIRED, Consumer, ConsumerName, DATA_OFFSET, FORMAT_MINOR, MARKS, Whole,
    };
    use super::*;
    use crate::envelope::field_header;
    use crate::limits::CONSUMERS_MAX;
    use std::cell::Cell;

    const KEY: u64 = 0x5eed;

    fn superblock(data_size: u64) -> Superblock {
        let mut consumers = [None; CONSUMERS_MAX];
        consumers[0] = ConsumerName::new("a").map(|name| Consumer {
            name,
            scan_pos: 0,
            done_pos: 0,
            flags: CONSUMER_REQUIRED,
            updated_ns: 0,
        });
        Superblock {
            features_incompatible: 0,
            features_read_only: 0,
            features_compatible: 0,
            format_minor: FORMAT_MINOR,
            epoch: 1,
            ring_id: *b"0123456789abcdef",
            ring_key: KEY,
            generation: 1,
            data_offset: DATA_OFFSET,
            data_size,
            tail: 0,
            tail_messages: 0,
            checkpoint: 0,
            checkpoint_number: 1,
            checkpoint_messages: 0,
            checkpoint_ns: 0,
            created_ns: 0,
            clean: true,
            consumers,
            marks: [None; MARKS],
        }
    }

    /// A data area in memory and a plain writer of records.
    struct Area {
        bytes: Vec<u8>,
        end: u64,
        next_number: u64,
    }

    impl Source for Area {
        fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
            let size = self.bytes.len();
            for (index, byte) in out.iter_mut().enumerate() {
                *byte = self.bytes[(position as usize + index) % size];
            }
            Ok(())
        }
    }

    impl Area {
        fn new(size: usize) -> Area {
            Area {
                bytes: vec![0; size],
                end: 0,
                next_number: 1,
            }
        }

        fn record(&mut self, kind: Kind, payload: &[u8], env_len: u32) -> u64 {
            let header = Header {
                position: self.end,
                number: self.next_number,
                len: payload.len() as u32,
                payload_crc: match kind {
                    Kind::Pad => 0,
                    _ => crc32c::crc32c(payload),
                },
                epoch: 1,
                kind,
                flags: 0,
                env_len,
                hint_back: 0,
                received_ns: 1_000 + self.end,
            };
            let mut bytes = header.encode(KEY).to_vec();
            bytes.extend_from_slice(payload);
            bytes.resize(header.extent() as usize, 0);
            let size = self.bytes.len();
            for (index, byte) in bytes.iter().enumerate() {
                self.bytes[(self.end as usize + index) % size] = *byte;
            }
            self.end = header.end();
            self.next_number += u64::from(kind.takes_number());
            header.position
        }

        fn message(&mut self, body: &[u8]) -> u64 {
            let payload = [b"env", body].concat();
            self.record(Kind::Message, &payload, 3)
        }

        fn last(&mut self, number: u64, first: u64, parts: &[&[u8]]) {
            let all = parts.concat();
            let whole = Whole {
                number,
                first_position: first,
                payload_bytes: all.len() as u64,
                fragments: parts.len() as u32,
                crc: crc32c::crc32c(&all),
            };
            let payload = [&whole.encode()[..], parts[parts.len() - 1]].concat();
            self.record(Kind::Last, &payload, 0);
        }

        fn reader(&self) -> Reader<&Area> {
            Reader::new(self, &superblock(self.bytes.len() as u64), 0)
        }

        fn window(&self) -> Window {
            Window {
                tail: self.end.saturating_sub(self.bytes.len() as u64),
                end: self.end,
            }
        }
    }

    fn all(area: &Area, walk: &mut Walk, window: Window) -> Vec<(u64, Vec<u8>)> {
        let mut reader = area.reader();
        let mut out = Vec::new();
        loop {
            match walk.step(&reader, window).unwrap() {
                Step::Message(message) => {
                    assert_eq!(message.envelope_bytes(), b"env");
                    out.push((message.number, message.body().to_vec()));
                }
                Step::Damaged { .. } => {
                    let (from, to) = walk.skip_damage(&mut reader, window.end).unwrap();
                    out.push((0, format!("damaged {from} {to}").into_bytes()));
                }
                Step::Lapped { from, to } => {
                    out.push((0, format!("lapped {from} {to}").into_bytes()));
                }
                Step::Other => {}
                Step::End => return out,
            }
        }
    }

    /// Messages 1 to 4, of which 2 is large and has 3 between its parts; PAD and EPOCH between
    /// them.
    fn mixed() -> Area {
        let mut area = Area::new(16_384);
        area.message(b"one");
        area.record(Kind::Epoch, b"", 0);
        let first = area.record(Kind::First, b"envtwo-a", 3);
        area.message(b"three");
        area.record(Kind::Middle, b"two-b", 0);
        area.record(Kind::Pad, &[7; 200], 0);
        area.last(2, first, &[b"envtwo-a", b"two-b", b"two-c"]);
        area.message(b"four");
        area
    }

    #[test]
    fn a_walk_puts_large_messages_together_across_other_records() {
        let area = mixed();
        let mut walk = Walk::new(0);
        let expected: [(u64, Vec<u8>); 4] = [
            (1, b"one".to_vec()),
            (3, b"three".to_vec()),
            (2, b"two-atwo-btwo-c".to_vec()),
            (4, b"four".to_vec()),
        ];
        assert_eq!(all(&area, &mut walk, area.window()), expected);
        assert_eq!(walk.records, 8);
    }

    #[test]
    fn a_walk_that_stops_anywhere_and_resumes_gives_each_message_once() {
        let area = mixed();
        let window = area.window();
        let whole = all(&area, &mut Walk::new(0), window);
        for cut in 0..8 {
            let reader = area.reader();
            let mut first = Walk::new(0);
            let mut seen = Vec::new();
            for _ in 0..cut {
                if let Step::Message(message) = first.step(&reader, window).unwrap() {
                    seen.push((message.number, message.body().to_vec()));
                }
            }
            let mut second = Walk::resume(first.scan_position(), first.position());
            seen.extend(all(&area, &mut second, window));
            assert_eq!(seen, whole, "cut after {cut} records");
        }
    }

    #[test]
    fn messages_are_found_by_number_and_time_and_newest_first() {
        let area = mixed();
        let window = area.window();
        let mut reader = area.reader();
        for (number, body) in [
            (1, "one"),
            (2, "two-atwo-btwo-c"),
            (3, "three"),
            (4, "four"),
        ] {
            let message = reader.message(window, number).unwrap().unwrap();
            assert_eq!((message.number, message.body()), (number, body.as_bytes()));
            let at = reader
                .position_of_time(window, message.received_ns)
                .unwrap();
            assert_eq!(at, message.position);
        }
        assert_eq!(reader.message(window, 0).unwrap(), None);
        assert_eq!(reader.message(window, 5).unwrap(), None);
        let mut newest = NewestFirst::new(window);
        let mut numbers = Vec::new();
        while let Some(position) = newest.next(&mut reader, window).unwrap() {
            let message = reader.message_at(window, position).unwrap();
            numbers.push(message.unwrap().number);
        }
        assert_eq!(numbers, [4, 3, 2, 1]);
    }

    #[test]
    fn any_flipped_byte_never_changes_a_message_and_only_hides_those_it_touches() {
        let area = mixed();
        let window = area.window();
        let whole = all(&area, &mut Walk::new(0), window);
        for at in 0..area.end as usize {
            let mut damaged = mixed();
            damaged.bytes[at] ^= 0x41;
            let seen = all(&damaged, &mut Walk::new(0), window);
            for (number, body) in seen.iter().filter(|(number, _)| *number != 0) {
                assert!(whole.contains(&(*number, body.clone())), "byte {at}");
            }
            let messages = seen.iter().filter(|(number, _)| *number != 0).count();
            assert!(messages >= 2, "byte {at}: {seen:?}");
        }
    }

    #[test]
    fn records_wrap_and_a_reader_behind_the_tail_is_told_the_gap() {
        let mut area = Area::new(4_096);
        let mut positions = Vec::new();
        for index in 0..40_u8 {
            positions.push(area.message(&vec![index; 100 + usize::from(index)]));
        }
        let tail = positions
            .iter()
            .copied()
            .find(|position| *position + 4_096 >= area.end)
            .unwrap();
        let window = Window {
            tail,
            end: area.end,
        };
        let seen = all(&area, &mut Walk::new(0), window);
        assert_eq!(seen[0].1, format!("lapped 0 {tail}").into_bytes());
        let first = positions.iter().position(|p| *p == tail).unwrap();
        let expected: Vec<(u64, Vec<u8>)> = (first..40)
            .map(|index| (index as u64 + 1, vec![index as u8; 100 + index]))
            .collect();
        assert_eq!(seen[1..], expected);
        let mut reader = area.reader();
        assert_eq!(reader.verified_end(tail, tail).unwrap().0, area.end);
        // What is older than the tail is gone, whatever the positions say.
        let stale = Window {
            tail: 0,
            end: area.end,
        };
        assert_eq!(reader.message(stale, 1).unwrap(), None);
        let mut newest = NewestFirst::new(window);
        let mut count = 0;
        while newest.next(&mut reader, window).unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 40 - first);
    }

    /// Five million messages of 4 KiB that exist only as arithmetic.
    struct Sparse {
        reads: Cell<u32>,
    }

    const SPARSE_STEP: u64 = 4_096;

    impl Source for Sparse {
        fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
            self.reads.set(self.reads.get() + 1);
            out.fill(0);
            let mut at = position.next_multiple_of(SPARSE_STEP);
            // Nothing here reads from the middle of a header.
            while at + 64 <= position + out.len() as u64 {
                let header = Header {
                    position: at,
                    number: at / SPARSE_STEP + 1,
                    len: (SPARSE_STEP - 64) as u32,
                    payload_crc: 0,
                    epoch: 1,
                    kind: Kind::Message,
                    flags: 0,
                    env_len: 0,
                    hint_back: 0,
                    received_ns: at,
                };
                let place = (at - position) as usize;
                out[place..place + 64].copy_from_slice(&header.encode(KEY));
                at += SPARSE_STEP;
            }
            Ok(())
        }
    }

    #[test]
    fn a_number_among_five_million_is_found_in_fewer_than_64_reads() {
        let messages = 5_000_000;
        let window = Window {
            tail: 0,
            end: messages * SPARSE_STEP,
        };
        let sparse = Sparse {
            reads: Cell::new(0),
        };
        let mut reader = Reader::new(&sparse, &superblock(window.end), 0);
        let mut most = 0;
        for number in [1, 2, 3, 77, 1_000_000, 2_500_000, 4_999_999, 5_000_000] {
            sparse.reads.set(0);
            let position = reader.position_of_number(window, number).unwrap();
            assert_eq!(position, (number - 1) * SPARSE_STEP);
            let header = reader.header(position, window.end).unwrap().unwrap();
            assert_eq!(header.number, number);
            most = most.max(sparse.reads.get());
        }
        assert!(most < 64, "{most} reads");
        assert_eq!(
            reader.position_of_number(window, messages + 1).unwrap(),
            window.end
        );
    }

    #[test]
    fn ids_read_back_as_written_and_nothing_else_is_one() {
        let id = MessageId {
            shard: 3,
            number: 77,
        };
        assert_eq!(id.to_string(), "3-77");
        assert_eq!(MessageId::parse("3-77", 0), Some(id));
        assert_eq!(
            MessageId::parse("5", 2),
            Some(MessageId {
                shard: 2,
                number: 5
            })
        );
        for bad in [
            "",
            "-",
            "0-",
            "-1",
            "+1",
            "0-+1",
            "1-2-3",
            "x",
            "99999999999999999999",
        ] {
            assert_eq!(MessageId::parse(bad, 0), None, "{bad:?}");
        }
    }

    #[test]
    fn envelope_is_decoded_field_by_field() {
        let mut bytes = Vec::new();
        let mut field = |field: Field, value: &[u8]| {
            bytes.extend_from_slice(&field_header(field, value.len() as u16));
            bytes.extend_from_slice(value);
        };
        let facts = Facts {
            recipients: 2,
            ..Facts::default()
        };
        field(Field::Facts, &facts.encode());
        let mut client = vec![0; 10];
        client.extend_from_slice(&[255, 255, 192, 0, 2, 1, 0x19, 0]);
        field(Field::Client, &client);
        field(Field::Helo, b"client.example");
        field(Field::ReversePath, b"");
        field(Field::ForwardPath, b"a@example");
        field(Field::RcptParameters, b"NOTIFY=NEVER");
        field(Field::ForwardPath, b"b@example");
        let envelope = Envelope::decode(&bytes);
        let expected = Envelope {
            facts,
            client: Some("192.0.2.1:25".parse().unwrap()),
            helo: Some(b"client.example"),
            reverse_path: Some(b""),
            recipients: vec![
                Recipient {
                    path: b"a@example",
                    parameters: b"NOTIFY=NEVER",
                },
                Recipient {
                    path: b"b@example",
                    parameters: b"",
                },
            ],
            ..Envelope::default()
        };
        assert_eq!(envelope, expected);
        let torn = Envelope::decode(&bytes[..bytes.len() - 1]);
        assert!(torn.malformed);
        assert_eq!(torn.recipients.len(), 1);
    }
}
