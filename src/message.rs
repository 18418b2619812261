//! A message while it is collected: envelope, trace field and body in a chain of pool chunks, laid out so that
//! a small message is one slice, ready to be written behind a record header.
//!
//! ```text
//! first chunk: | 64: record header | envelope fields | gap (zeros) | trace field, id missing | body ...
//! ```
//! The message's id is known only when the message gets its place in the log. Then the part of the trace field
//! before the id moves into the gap by the length of the id; what is left of the gap is envelope padding.
//!
//! Chunks up to and including the one that holds the trace field get their checksum when the record is sealed.
//! Later chunks are checksummed as bytes arrive, while these are in the cache. A message longer than
//! [`RECORD_PAYLOAD_BYTES_MAX`] is cut into fragments at chunk boundaries.

use core::net::{IpAddr, SocketAddr};

use crate::buffer::{ChunkId, Meta, Pool, Urgency};
use crate::checksum;
use crate::envelope::{self, FIELD_HEADER_BYTES, Facts, Field, Fields};
use crate::limits::{
    CHUNK_LARGE_BYTES, CHUNK_SMALL_BYTES, ENVELOPE_BYTES_MAX, RECORD_HEADER_BYTES,
    RECORD_PAYLOAD_BYTES_MAX,
};

/// Octets of an address as the envelope has it: IP address and port.
const ADDRESS_BYTES: usize = 18;
/// Room for everything in front of what a client says, a role of this length included.
const FRONT_BYTES_MAX: usize = 192;
/// Octets in front of the client's address.
const CLIENT_AT: usize =
    RECORD_HEADER_BYTES + FIELD_HEADER_BYTES + envelope::FACTS_BYTES + FIELD_HEADER_BYTES;
const _: () = assert!(
    CLIENT_AT + ADDRESS_BYTES + 2 * FIELD_HEADER_BYTES + ADDRESS_BYTES + 32 <= FRONT_BYTES_MAX
);
const _: () = assert!(FRONT_BYTES_MAX < CHUNK_SMALL_BYTES);

/// What all messages of a listener begin with: room for the record header and for the facts, the client's address, left
/// out, the listener's address and role. It is made once and copied.
#[derive(Clone, Debug)]
pub struct Front {
    listener: SocketAddr,
    role: &'static str,
    bytes: [u8; FRONT_BYTES_MAX],
    len: usize,
}

impl Front {
    /// That of a listener at this address with this role, of whose name 32 octets count.
    pub fn new(listener: SocketAddr, role: &'static str) -> Front {
        let mut front = Front {
            listener,
            role,
            bytes: [0; FRONT_BYTES_MAX],
            len: RECORD_HEADER_BYTES,
        };
        let name = role.as_bytes();
        front.push(Field::Facts, &Facts::default().encode());
        front.push(Field::Client, &[0; ADDRESS_BYTES]);
        front.push(Field::Listener, &address(listener));
        front.push(Field::Role, &name[..name.len().min(32)]);
        front
    }

    /// Whether it is that of such a listener.
    pub fn is_of(&self, listener: SocketAddr, role: &'static str) -> bool {
        self.listener == listener && self.role == role
    }

    /// Appends a field; there is room for those of [`Front::new`].
    fn push(&mut self, field: Field, value: &[u8]) {
        self.len += put_field(&mut self.bytes[self.len..], field, value);
    }
}

/// An address as the envelope has it.
fn address(socket: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let ip = match socket.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&socket.port().to_le_bytes());
    bytes
}

/// Writes a field to the front of `room`; returns its length. There is room, and the value is no longer than a field
/// may be.
#[inline]
fn put_field(room: &mut [u8], field: Field, value: &[u8]) -> usize {
    let len = FIELD_HEADER_BYTES + value.len();
    let (header, room) = room[..len].split_at_mut(FIELD_HEADER_BYTES);
    header.copy_from_slice(&envelope::field_header(field, value.len() as u16));
    room.copy_from_slice(value);
    len
}

/// Room for the longest id, `SHARD-NUMBER`: 3 digits, a hyphen, 20 digits.
pub const ID_BYTES_MAX: usize = 24;
/// Body bytes after which the rest is read straight into large chunks.
const DIRECT_AFTER_BYTES: u64 = 4_096;
/// Octets to come, by what the client says, from which already the first read may go into a large chunk.
pub const ANNOUNCED_BYTES_MIN: u64 = 32_768;
/// Least room in a large chunk worth a read of its own.
const DIRECT_ROOM_MIN: usize = 8_192;

/// A message being collected. Its chunks belong to it until [`Message::free`].
#[derive(Debug)]
pub struct Message {
    first: ChunkId,
    last: ChunkId,
    /// Chunk that holds the trace field, once there is one.
    trace_chunk: Option<ChunkId>,
    /// Where the gap before the trace field begins in its chunk.
    trace_at: u16,
    trace_len: u16,
    trace_id_at: u16,
    /// Envelope bytes, the gap included until the message is named.
    envelope_bytes: u32,
    /// Envelope, trace field and body.
    payload_bytes: u64,
    body_bytes: u64,
    fragments: u32,
    /// Chunks of 64 KiB among its chunks.
    large_chunks: u32,
    /// Bytes of the current fragment.
    fragment_bytes: u32,
}

/// What a message was like before a large chunk was tried, see [`Message::retreat`].
#[derive(Debug)]
pub struct Standing {
    last: ChunkId,
    last_meta: Meta,
    fragments: u32,
    fragment_bytes: u32,
}

/// One record's worth of a finished message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// First chunk.
    pub first: ChunkId,
    /// Last chunk.
    pub last: ChunkId,
    /// Payload bytes.
    pub bytes: u64,
    /// CRC32C of the payload.
    pub crc: u32,
}

impl Message {
    /// Opens a message with room for its facts. `None` when the pool has no chunk left.
    pub fn begin(pool: &mut Pool) -> Option<Message> {
        let first = pool.take_small(Urgency::Normal)?;
        let header = [0; RECORD_HEADER_BYTES];
        pool.append(first, &header);
        let mut message = Message::in_chunk(first);
        message.envelope_field(pool, Field::Facts, &[&Facts::default().encode()]);
        Some(message)
    }

    /// Opens a message that came to the listener of `front`, from `client`. `None` when the pool has no chunk left.
    pub fn begin_at(pool: &mut Pool, front: &Front, client: SocketAddr) -> Option<Message> {
        let first = pool.take_small(Urgency::Normal)?;
        let room = pool.bytes_mut(first);
        // All of it, so that the length is known when this is compiled.
        room[..FRONT_BYTES_MAX].copy_from_slice(&front.bytes);
        room[CLIENT_AT..CLIENT_AT + ADDRESS_BYTES].copy_from_slice(&address(client));
        pool.take_room(first, front.len);
        let bytes = front.len - RECORD_HEADER_BYTES;
        Some(Message {
            envelope_bytes: bytes as u32,
            payload_bytes: bytes as u64,
            fragment_bytes: bytes as u32,
            ..Message::in_chunk(first)
        })
    }

    /// Nothing yet, in this chunk.
    fn in_chunk(first: ChunkId) -> Message {
        Message {
            first,
            last: first,
            trace_chunk: None,
            trace_at: 0,
            trace_len: 0,
            trace_id_at: 0,
            envelope_bytes: 0,
            payload_bytes: 0,
            body_bytes: 0,
            fragments: 1,
            large_chunks: 0,
            fragment_bytes: 0,
        }
    }

    /// Gives the chunks back.
    pub fn free(self, pool: &mut Pool) {
        pool.free_chain(self.first);
    }

    /// Body bytes so far.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Envelope, trace field and body bytes so far.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Octets of the message as it is stored, the trace field included.
    pub fn octets(&self) -> u64 {
        self.body_bytes + u64::from(self.trace_len)
    }

    /// Length of the envelope, bytes.
    pub fn envelope_bytes(&self) -> u32 {
        self.envelope_bytes
    }

    /// Chunks of 64 KiB that it holds.
    pub fn large_chunks(&self) -> u32 {
        self.large_chunks
    }

    /// Body bytes that fit without another chunk.
    pub fn room(&self, pool: &Pool) -> usize {
        pool.room(self.last)
    }

    /// Whether a read straight into its last chunk is possible without another chunk.
    pub fn has_direct_room(&self, pool: &Pool) -> bool {
        self.last.is_large() && pool.room(self.last) >= DIRECT_ROOM_MIN
    }

    /// Records this message needs.
    pub fn fragments(&self) -> u32 {
        self.fragments
    }

    /// Bytes, field headers included, that the envelope can certainly grow by.
    pub fn envelope_room(&self, pool: &Pool) -> usize {
        let limit = ENVELOPE_BYTES_MAX.saturating_sub(self.envelope_bytes as usize);
        let more = if pool.has_large(Urgency::Normal) {
            CHUNK_LARGE_BYTES
        } else {
            0
        };
        limit.min(pool.room(self.last).max(more))
    }

    /// Appends one envelope field, its value the concatenation of `parts`. False, and nothing appended, when
    /// the value is longer than 65,533 bytes, the envelope would outgrow [`ENVELOPE_BYTES_MAX`], or the pool
    /// has no chunk left.
    pub fn envelope_field(&mut self, pool: &mut Pool, field: Field, parts: &[&[u8]]) -> bool {
        let value: usize = parts.iter().map(|part| part.len()).sum();
        let Ok(len) = u16::try_from(value) else {
            return false;
        };
        let needed = FIELD_HEADER_BYTES + value;
        if needed > CHUNK_LARGE_BYTES || self.envelope_bytes as usize + needed > ENVELOPE_BYTES_MAX
        {
            return false;
        }
        if needed > pool.room(self.last) {
            // What is left in the last chunk stays unused, so that a field is never cut.
            let large = needed > CHUNK_SMALL_BYTES || self.first != self.last;
            if !self.grow(pool, large, Urgency::Normal) {
                return false;
            }
        }
        let header = envelope::field_header(field, len);
        let parts = parts.iter().copied();
        self.push(pool, core::iter::once(&header[..]).chain(parts), needed);
        self.envelope_bytes += needed as u32;
        true
    }

    /// Appends envelope fields, one after the other. False when one of them does not fit, as
    /// [`Message::envelope_field`] has it; those in front of it may have been appended.
    pub fn envelope_fields(&mut self, pool: &mut Pool, fields: &[(Field, &[u8])]) -> bool {
        let lengths = fields.iter().map(|(_, value)| value.len());
        let needed = lengths.fold(0, |sum, len| sum + FIELD_HEADER_BYTES + len);
        let room = pool.room_mut(self.last);
        // A chunk is no longer than a field may be.
        if needed > room.len() || self.envelope_bytes as usize + needed > ENVELOPE_BYTES_MAX {
            return fields
                .iter()
                .all(|(field, value)| self.envelope_field(pool, *field, &[value]));
        }
        let mut at = 0;
        for (field, value) in fields {
            at += put_field(&mut room[at..], *field, value);
        }
        pool.take_room(self.last, needed);
        self.payload_bytes += needed as u64;
        self.fragment_bytes += needed as u32;
        self.envelope_bytes += needed as u32;
        true
    }

    /// The value of the first envelope field of this kind, before the body begins.
    ///
    /// **Bounds:** the fields in front of it, in whatever chunks they are.
    pub fn find_field<'a>(&self, pool: &'a Pool, wanted: Field) -> Option<&'a [u8]> {
        let mut from = RECORD_HEADER_BYTES;
        let mut next = Some(self.first);
        while let Some(chunk) = next {
            let meta = pool.meta(chunk);
            let fields = Fields::new(&pool.bytes(chunk)[from..meta.used as usize]);
            for (field, value) in fields {
                if field == wanted as u8 {
                    return Some(value);
                }
            }
            from = 0;
            next = meta.next;
        }
        None
    }

    fn grow(&mut self, pool: &mut Pool, large: bool, urgency: Urgency) -> bool {
        let taken = if large {
            pool.take_large(urgency)
        } else {
            pool.take_small(urgency)
        };
        let Some(id) = taken else { return false };
        let previous = pool.meta(self.last);
        // The envelope is never cut: it counts as part of the first fragment, whatever its length.
        let in_body = self.trace_chunk.is_some();
        let full =
            u64::from(self.fragment_bytes) + CHUNK_LARGE_BYTES as u64 > RECORD_PAYLOAD_BYTES_MAX;
        let mut meta = pool.meta(id);
        if in_body && full {
            meta.starts_fragment = true;
            self.fragments += 1;
            self.fragment_bytes = 0;
        } else if in_body && self.trace_chunk != Some(self.last) {
            meta.crc = previous.crc;
        }
        pool.set_meta(id, meta);
        pool.set_meta(
            self.last,
            Meta {
                next: Some(id),
                ..previous
            },
        );
        self.last = id;
        self.large_chunks += u32::from(large);
        true
    }

    /// Copies parts of `len` bytes altogether behind the last ones; there is room for them.
    fn push<'a>(&mut self, pool: &mut Pool, parts: impl IntoIterator<Item = &'a [u8]>, len: usize) {
        pool.append_all(self.last, parts);
        self.payload_bytes += len as u64;
        self.fragment_bytes += len as u32;
    }

    /// Ends the envelope and begins the body with the trace field, whose id is missing at `id_at`. False when
    /// the pool has no chunk left.
    pub fn begin_body(&mut self, pool: &mut Pool, trace: &[u8], id_at: usize) -> bool {
        debug_assert!(id_at <= trace.len() && trace.len() + ID_BYTES_MAX <= CHUNK_SMALL_BYTES / 2);
        if pool.room(self.last) < trace.len() + ID_BYTES_MAX
            && !self.grow(pool, false, Urgency::Reserve)
        {
            return false;
        }
        self.trace_chunk = Some(self.last);
        self.trace_at = pool.meta(self.last).used as u16;
        self.trace_len = trace.len() as u16;
        self.trace_id_at = id_at as u16;
        let gap = &[envelope::PADDING; ID_BYTES_MAX][..];
        self.push(pool, [gap, trace], ID_BYTES_MAX + trace.len());
        self.envelope_bytes += ID_BYTES_MAX as u32;
        true
    }

    /// Whether the body has begun.
    pub fn in_body(&self) -> bool {
        self.trace_chunk.is_some()
    }

    /// Body bytes that `body` can take now with this urgency.
    pub fn body_room(&self, pool: &Pool, urgency: Urgency) -> usize {
        let more = if pool.has_large(urgency) {
            CHUNK_LARGE_BYTES
        } else {
            0
        };
        pool.room(self.last) + more
    }

    /// Appends body bytes, at most [`Message::body_room`].
    ///
    /// # Panics
    /// When the bytes exceed the room that was promised.
    pub fn body(&mut self, pool: &mut Pool, mut bytes: &[u8], urgency: Urgency) {
        while !bytes.is_empty() {
            if pool.room(self.last) == 0 {
                let large =
                    bytes.len() > CHUNK_SMALL_BYTES || self.body_bytes >= DIRECT_AFTER_BYTES;
                let grown = self.grow(pool, large, urgency) || self.grow(pool, false, urgency);
                assert!(
                    grown,
                    "invariant: body() is given at most body_room() bytes"
                );
            }
            let take = pool.room(self.last).min(bytes.len());
            let (now, later) = bytes.split_at(take);
            pool.append(self.last, now);
            self.account(pool, now.len(), |meta_crc| {
                crc32c::crc32c_append(meta_crc, now)
            });
            bytes = later;
        }
    }

    fn account(&mut self, pool: &mut Pool, bytes: usize, crc: impl FnOnce(u32) -> u32) {
        self.payload_bytes += bytes as u64;
        self.body_bytes += bytes as u64;
        self.fragment_bytes += bytes as u32;
        if self.trace_chunk != Some(self.last) {
            let meta = pool.meta(self.last);
            pool.set_meta(
                self.last,
                Meta {
                    crc: crc(meta.crc),
                    ..meta
                },
            );
        }
    }

    /// Whether the next bytes of the body should be read straight into a chunk: it is long enough already.
    pub fn wants_direct_reads(&self) -> bool {
        self.body_bytes >= DIRECT_AFTER_BYTES
    }

    /// A chunk and the range in it that the socket may be read into; `None` when the pool has no chunk left.
    pub fn direct_room(
        &mut self,
        pool: &mut Pool,
        urgency: Urgency,
    ) -> Option<(ChunkId, core::ops::Range<usize>)> {
        if !self.has_direct_room(pool) && !self.grow(pool, true, urgency) {
            return None;
        }
        let used = pool.meta(self.last).used as usize;
        Some((self.last, used..self.last.capacity()))
    }

    /// What [`Message::retreat`] goes back to when a read into [`Message::direct_room`] brings little.
    pub fn standing(&self, pool: &Pool) -> Standing {
        Standing {
            last: self.last,
            last_meta: pool.meta(self.last),
            fragments: self.fragments,
            fragment_bytes: self.fragment_bytes,
        }
    }

    /// Whether a chunk was taken since `before`, and `kept` octets more leave the body too short for a large one.
    pub fn should_retreat(&self, before: &Standing, kept: usize) -> bool {
        let is_short = self.body_bytes + (kept as u64) < DIRECT_AFTER_BYTES;
        is_short && self.last != before.last
    }

    /// Gives the chunk back that [`Message::direct_room`] took since `before`, with whatever was read into it.
    pub fn retreat(&mut self, pool: &mut Pool, before: &Standing) {
        pool.free(self.last);
        pool.set_meta(before.last, before.last_meta);
        self.last = before.last;
        self.large_chunks -= 1;
        self.fragments = before.fragments;
        self.fragment_bytes = before.fragment_bytes;
    }

    /// Takes `kept` bytes that stand behind the used ones in the chunk of [`Message::direct_room`]. `append_crc` is
    /// `crc32c::crc32c_append`, or something that does the same faster.
    pub fn direct_take(
        &mut self,
        pool: &mut Pool,
        kept: usize,
        append_crc: impl FnOnce(u32, &[u8]) -> u32,
    ) {
        let used = pool.meta(self.last).used as usize;
        let previous = pool.meta(self.last).crc;
        let crc = if self.trace_chunk == Some(self.last) {
            previous
        } else {
            append_crc(previous, &pool.bytes(self.last)[used..used + kept])
        };
        let meta = pool.meta(self.last);
        pool.set_meta(
            self.last,
            Meta {
                used: meta.used + kept as u32,
                ..meta
            },
        );
        self.account(pool, kept, |_| crc);
    }

    /// Fills in what is known only at the end of the message.
    pub fn set_facts(&mut self, pool: &mut Pool, mut facts: Facts) {
        facts.trace_bytes = self.trace_len;
        let at = RECORD_HEADER_BYTES + FIELD_HEADER_BYTES;
        pool.bytes_mut(self.first)[at..at + envelope::FACTS_BYTES].copy_from_slice(&facts.encode());
    }

    /// Writes the message's id into the trace field.
    ///
    /// # Panics
    /// When the body has not begun, the message is named already, or the id is longer than [`ID_BYTES_MAX`].
    pub fn name(&mut self, pool: &mut Pool, id: &[u8], mut facts: Facts) {
        let chunk = self
            .trace_chunk
            .expect("invariant: a finished message has a trace field");
        assert!(id.len() <= ID_BYTES_MAX, "invariant: ids are SHARD-NUMBER");
        let gap = usize::from(self.trace_at);
        let old = gap + ID_BYTES_MAX;
        let new = old - id.len();
        let prefix = usize::from(self.trace_id_at);
        let bytes = pool.bytes_mut(chunk);
        bytes.copy_within(old..old + prefix, new);
        bytes[new + prefix..old + prefix].copy_from_slice(id);
        self.envelope_bytes -= id.len() as u32;
        self.trace_len += id.len() as u16;
        facts.trace_bytes = self.trace_len;
        self.set_facts(pool, facts);
    }

    /// Room for the record header, at the front of the first chunk.
    pub fn header_mut<'a>(&self, pool: &'a mut Pool) -> &'a mut [u8] {
        &mut pool.bytes_mut(self.first)[..RECORD_HEADER_BYTES]
    }

    /// First chunk of the message.
    pub fn first(&self) -> ChunkId {
        self.first
    }

    /// Calls `each` for every fragment in order, with its checksum. The message must be named already.
    pub fn for_each_fragment(&self, pool: &Pool, mut each: impl FnMut(Fragment)) {
        let mut next = Some(self.first);
        while let Some(first) = next {
            let (fragment, after) = self.fragment_from(pool, first);
            each(fragment);
            next = after;
        }
    }

    /// The fragment that starts with this chunk, and the chunk that starts the next one.
    pub fn fragment_from(&self, pool: &Pool, first: ChunkId) -> (Fragment, Option<ChunkId>) {
        let mut front_crc = 0;
        let mut in_front = first == self.first;
        let mut hot_bytes = 0_u64;
        let mut hot_crc = 0;
        let mut bytes = 0_u64;
        let mut chunk = first;
        loop {
            let meta = pool.meta(chunk);
            let used = if chunk == self.first {
                &pool.bytes(chunk)[RECORD_HEADER_BYTES..meta.used as usize]
            } else {
                &pool.bytes(chunk)[..meta.used as usize]
            };
            bytes += used.len() as u64;
            if in_front {
                front_crc = crc32c::crc32c_append(front_crc, used);
                in_front = self.trace_chunk != Some(chunk);
            } else {
                hot_bytes += used.len() as u64;
                hot_crc = meta.crc;
            }
            let next = meta.next;
            match next {
                Some(id) if !pool.meta(id).starts_fragment => chunk = id,
                _ => {
                    let crc = if hot_bytes == 0 {
                        front_crc
                    } else if bytes == hot_bytes {
                        hot_crc
                    } else {
                        checksum::combined(front_crc, hot_crc, hot_bytes)
                    };
                    return (
                        Fragment {
                            first,
                            last: chunk,
                            bytes,
                            crc,
                        },
                        next,
                    );
                }
            }
        }
    }

    /// The bytes of a fragment, chunk by chunk; the first chunk of the message without its header room.
    pub fn slices<'a>(
        &self,
        pool: &'a Pool,
        fragment: &Fragment,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (first, last) = (self.first, fragment.last);
        let mut next = Some(fragment.first);
        core::iter::from_fn(move || {
            let id = next?;
            let meta = pool.meta(id);
            next = if id == last { None } else { meta.next };
            let front = if id == first { RECORD_HEADER_BYTES } else { 0 };
            Some(&pool.bytes(id)[front..meta.used as usize])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MIB;

    fn pool() -> Pool {
        Pool::new(16 * MIB, 0)
    }

    fn collected(message: &Message, pool: &Pool) -> Vec<Vec<u8>> {
        let mut fragments = Vec::new();
        message.for_each_fragment(pool, |fragment| {
            let bytes: Vec<u8> = message.slices(pool, &fragment).flatten().copied().collect();
            assert_eq!(bytes.len() as u64, fragment.bytes);
            assert_eq!(crc32c::crc32c(&bytes), fragment.crc);
            fragments.push(bytes);
        });
        assert_eq!(fragments.len() as u32, message.fragments());
        fragments
    }

    fn body_of(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_field_is_found_in_whatever_chunk_it_stands() {
        let mut pool = pool();
        let mut message = Message::begin(&mut pool).expect("chunk");
        assert_eq!(message.find_field(&pool, Field::ForwardPath), None);
        // The first chunk has no room for the path behind these.
        let long = [b'x'; CHUNK_SMALL_BYTES - RECORD_HEADER_BYTES - 80];
        assert!(message.envelope_field(&mut pool, Field::Helo, &[&long]));
        for path in [&b"b@example.org"[..], b"c@example.org"] {
            assert!(message.envelope_field(&mut pool, Field::ForwardPath, &[path; 3]));
        }
        assert_ne!(message.first, message.last);
        assert_eq!(message.find_field(&pool, Field::Helo), Some(&long[..]));
        assert_eq!(
            message.find_field(&pool, Field::ForwardPath),
            Some(&b"b@example.orgb@example.orgb@example.org"[..])
        );
        assert_eq!(message.find_field(&pool, Field::User), None);
        message.free(&mut pool);
    }

    #[test]
    fn a_front_is_what_its_fields_would_be_one_by_one() {
        let listener: SocketAddr = "[2001:db8::1]:25".parse().expect("an address");
        let client: SocketAddr = "192.0.2.1:4242".parse().expect("an address");
        let front = Front::new(listener, "submission");
        assert!(front.is_of(listener, "submission"));
        assert!(!front.is_of(listener, "sink"));
        assert!(!front.is_of(client, "submission"));
        let mut pool = pool();
        let quick = Message::begin_at(&mut pool, &front, client).expect("chunk");
        let mut slow = Message::begin(&mut pool).expect("chunk");
        let mapped = b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01";
        let fields: [(Field, &[&[u8]]); 3] = [
            (Field::Client, &[mapped, &4242_u16.to_le_bytes()]),
            (
                Field::Listener,
                &[b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01", &[25, 0]],
            ),
            (Field::Role, &[b"submission"]),
        ];
        for (field, parts) in fields {
            assert!(slow.envelope_field(&mut pool, field, parts));
        }
        assert_same(&pool, &quick, &slow);
        quick.free(&mut pool);
        slow.free(&mut pool);
    }

    /// Two messages have the same octets and the same lengths.
    fn assert_same(pool: &Pool, one: &Message, other: &Message) {
        let used = |message: &Message| {
            let (mut all, mut next) = (Vec::new(), Some(message.first));
            while let Some(chunk) = next {
                let meta = pool.meta(chunk);
                all.push(pool.bytes(chunk)[..meta.used as usize].to_vec());
                next = meta.next;
            }
            all
        };
        assert_eq!(used(one), used(other));
        let lengths = |message: &Message| {
            (
                message.envelope_bytes,
                message.payload_bytes,
                message.fragment_bytes,
            )
        };
        assert_eq!(lengths(one), lengths(other));
    }

    #[test]
    fn several_fields_stand_as_they_would_one_by_one_whatever_room_there_is() {
        let mut pool = pool();
        let value = [b'v'; 300];
        for filler in [0, 3_000, 3_500, 3_640, 3_660, 3_700, 3_900, 3_961] {
            let filler = vec![b'f'; filler];
            let fields = [
                (Field::Helo, &filler[..]),
                (Field::ReversePath, &b""[..]),
                (Field::MailParameters, &value),
            ];
            let mut together = Message::begin(&mut pool).expect("chunk");
            let mut one_by_one = Message::begin(&mut pool).expect("chunk");
            assert!(together.envelope_fields(&mut pool, &fields[..1]));
            assert!(together.envelope_fields(&mut pool, &fields[1..]));
            for (field, value) in fields {
                assert!(one_by_one.envelope_field(&mut pool, field, &[value]));
            }
            assert_same(&pool, &together, &one_by_one);
            together.free(&mut pool);
            one_by_one.free(&mut pool);
        }
        let mut full = Message::begin(&mut pool).expect("chunk");
        let large = vec![b'l'; 60_000];
        while full.envelope_fields(&mut pool, &[(Field::ForwardPath, &large)]) {}
        let before = (full.envelope_bytes, full.payload_bytes);
        assert!(full.envelope_bytes as usize + 60_003 > ENVELOPE_BYTES_MAX);
        assert!(!full.envelope_fields(&mut pool, &[(Field::ForwardPath, &large)]));
        assert_eq!((full.envelope_bytes, full.payload_bytes), before);
        full.free(&mut pool);
    }

    /// Builds a message with `recipients` and `body` and checks everything it is made of.
    fn check(recipients: usize, body: &[u8], direct: bool, piece: usize) {
        let mut pool = pool();
        let total = pool.free_bytes();
        let mut message = Message::begin(&mut pool).expect("chunk");
        assert!(message.envelope_field(&mut pool, Field::Helo, &[b"client", b".example"]));
        for at in 0..recipients {
            let path = format!("recipient-{at}@example.org");
            assert!(message.envelope_field(&mut pool, Field::ForwardPath, &[path.as_bytes()]));
        }
        assert!(message.begin_body(&mut pool, b"Received: id ;now\r\n", 13));
        for part in body.chunks(piece) {
            if direct && message.wants_direct_reads() {
                let (id, range) = message
                    .direct_room(&mut pool, Urgency::Normal)
                    .expect("chunk");
                let take = part.len().min(range.len());
                pool.bytes_mut(id)[range.start..range.start + take].copy_from_slice(&part[..take]);
                message.direct_take(&mut pool, take, crc32c::crc32c_append);
                message.body(&mut pool, &part[take..], Urgency::Normal);
            } else {
                assert!(message.body_room(&pool, Urgency::Normal) >= part.len());
                message.body(&mut pool, part, Urgency::Normal);
            }
        }
        assert_eq!(message.body_bytes(), body.len() as u64);
        let facts = Facts {
            recipients: recipients as u32,
            ..Facts::default()
        };
        message.name(&mut pool, b"0-4711", facts);
        let fragments = collected(&message, &pool);
        assert!(
            fragments
                .iter()
                .all(|bytes| bytes.len() as u64 <= RECORD_PAYLOAD_BYTES_MAX)
        );
        let payload: Vec<u8> = fragments.concat();
        assert_eq!(payload.len() as u64, message.payload_bytes());
        let (envelope, rest) = payload.split_at(message.envelope_bytes() as usize);
        let trace = b"Received: id 0-4711;now\r\n";
        assert_eq!(&rest[..trace.len()], trace);
        assert!(&rest[trace.len()..] == body);
        let mut fields = Fields::new(envelope);
        let (_, value) = fields.next().expect("facts");
        let stored = Facts::decode(value).expect("facts");
        assert_eq!(stored.trace_bytes as usize, trace.len());
        assert_eq!(stored.recipients as usize, recipients);
        assert_eq!(
            fields.next(),
            Some((Field::Helo as u8, &b"client.example"[..]))
        );
        assert_eq!(fields.by_ref().count(), recipients);
        assert!(!fields.is_malformed());
        message.free(&mut pool);
        assert_eq!(pool.free_bytes(), total);
    }

    #[test]
    fn a_small_message_is_one_slice_behind_its_header() {
        let mut pool = pool();
        let mut message = Message::begin(&mut pool).expect("chunk");
        assert!(message.begin_body(&mut pool, b"T: ;\r\n", 3));
        message.body(&mut pool, b"hello\r\n", Urgency::Normal);
        message.name(&mut pool, b"0-1", Facts::default());
        assert_eq!(collected(&message, &pool).len(), 1);
        assert_eq!(pool.meta(message.first()).next, None);
    }

    #[test]
    fn messages_of_every_shape_read_back() {
        for recipients in [0, 1, 100, 5_000] {
            for len in [0, 1, 3_000, 4_000, 10_000, 70_000, 1_000_000, 3_000_000] {
                let body = body_of(len);
                check(recipients, &body, false, 50_000);
                check(recipients, &body, true, 65_000);
                check(recipients, &body, true, 1_460);
            }
        }
    }

    #[test]
    fn a_chunk_that_was_tried_for_little_is_given_back_and_leaves_nothing_behind() {
        // The second envelope is so long that the chunk begins another record.
        for recipients in [1, 14] {
            let mut pool = pool();
            let total = pool.free_bytes();
            let mut pair = [(); 2].map(|()| {
                let mut message = Message::begin(&mut pool).expect("chunk");
                for _ in 0..recipients {
                    let path = vec![b'p'; if recipients == 1 { 20 } else { 65_000 }];
                    assert!(message.envelope_field(&mut pool, Field::ForwardPath, &[&path]));
                }
                assert!(message.begin_body(&mut pool, b"Received: id ;now\r\n", 13));
                message.body(&mut pool, b"front", Urgency::Normal);
                message
            });
            let tried = &mut pair[0];
            let (free, before) = (pool.free_bytes(), tried.standing(&pool));
            assert!(!tried.has_direct_room(&pool));
            let (id, range) = tried
                .direct_room(&mut pool, Urgency::Normal)
                .expect("chunk");
            assert_eq!((range, id.is_large()), (0..CHUNK_LARGE_BYTES, true));
            assert_eq!(free - pool.free_bytes(), CHUNK_LARGE_BYTES as u64);
            pool.bytes_mut(id)[..4_000].fill(b'j');
            // With the five octets in front it is 4,096 that are worth a chunk.
            assert!(tried.should_retreat(&before, 4_090));
            assert!(!tried.should_retreat(&before, 4_091));
            tried.retreat(&mut pool, &before);
            assert_eq!(pool.free_bytes(), free);
            let now = tried.standing(&pool);
            assert!(!tried.should_retreat(&now, 0), "nothing was taken since");
            for message in &mut pair {
                message.body(&mut pool, &body_of(2_000), Urgency::Normal);
                message.body(&mut pool, &body_of(90_000), Urgency::Normal);
                message.name(&mut pool, b"0-7", Facts::default());
            }
            let [tried, other] = &pair;
            assert_same(&pool, tried, other);
            assert_eq!(tried.large_chunks, other.large_chunks);
            assert_eq!(collected(tried, &pool), collected(other, &pool));
            for message in pair {
                message.free(&mut pool);
            }
            assert_eq!(pool.free_bytes(), total);
        }
    }

    #[test]
    fn an_envelope_beyond_its_limit_is_refused_and_unchanged() {
        let mut pool = pool();
        let mut message = Message::begin(&mut pool).expect("chunk");
        let value = [b'x'; 60_000];
        let mut taken = 0;
        while message.envelope_field(&mut pool, Field::ForwardPath, &[&value]) {
            taken += 1;
        }
        assert_eq!(taken, ENVELOPE_BYTES_MAX / (60_000 + FIELD_HEADER_BYTES));
        let before = message.envelope_bytes();
        assert!(!message.envelope_field(&mut pool, Field::Helo, &[&[0; 65_536]]));
        assert_eq!(message.envelope_bytes(), before);
    }
}
