//! One connection: its stream, its session, and what the two have buffered.
//!
//! An idle connection owns this entry and nothing else: input that waits, replies and messages live in pool
//! chunks that are checked out when needed.

use core::net::SocketAddr;
use core::num::NonZeroU32;
use std::io;

use crate::buffer::{ChunkId, Pool, Urgency};
use crate::clock::Instant;
use crate::limits::{CHUNK_SMALL_BYTES, COMMITS_PENDING_MAX, CONFIGURED_REPLY_BYTES_MAX};
use crate::metrics::CloseCause;
use crate::policy::clients::Places;
use crate::smtp::session::Session;
use crate::smtp::sink::Blocked;
use crate::tls::Tls;

/// A non-blocking byte stream.
pub trait Stream {
    /// Reads what is there; `WouldBlock` when nothing is, 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// Copies what could be read and leaves it there; `WouldBlock` when nothing is, 0 at the end.
    fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits; `WouldBlock` when nothing does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// From now on reports when it becomes writable again.
    fn want_writable(&mut self, token: Token) -> io::Result<()>;
    /// Ends the outgoing direction; the peer reads an end of file behind what was written.
    fn end_writing(&mut self);
}

/// Names a connection. A slab key is reused, so the token carries a generation as well: an event for a
/// connection that is gone never reaches the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Key in the slab.
    pub key: u32,
    /// Grows with every connection, modulo [`Token::GENERATION_MAX`] + 1.
    pub generation: u32,
}

impl Token {
    /// Largest generation: 28 bits, so that a token fits into 60.
    pub const GENERATION_MAX: u32 = (1 << 28) - 1;
}

/// What a connection's socket and buffers are doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// The socket may hold bytes: set by events, cleared by `WouldBlock` or a short read.
    pub readable: bool,
    /// An event reported end of file or an error: a short read says nothing any more.
    pub hung_up: bool,
    /// End of file was read.
    pub eof: bool,
    /// The socket took less than it was given; cleared by an event.
    pub write_blocked: bool,
    /// Writable interest is registered.
    pub wants_writable: bool,
    /// On the run queue.
    pub queued_to_run: bool,
    /// On the list of connections to flush.
    pub queued_to_flush: bool,
    /// On the list of those that wait for chunks.
    pub waits_for_pool: bool,
    /// The waiting input is an unfinished line: it needs more bytes before it is looked at again.
    pub input_is_partial: bool,
    /// The session is over; the connection closes when its replies have left.
    pub closing: bool,
    /// The first reply has left.
    pub greeted: bool,
    /// The session ended by QUIT: nothing more is expected from the client.
    pub quit: bool,
    /// The outgoing direction is ended; what still comes is thrown away.
    pub lingering: bool,
    /// The stream failed; nothing can be sent.
    pub dead: bool,
    /// A message that was too large to be queued at once waits for its commit.
    pub large_pending: bool,
    /// The access rules have a say in more than the connection; never so for a sink.
    pub is_guarded: bool,
    /// What this client does counts for the limits on clients.
    pub is_limited: bool,
    /// Its client was counted before the question whether it may connect.
    pub is_admitted: bool,
    /// The client was refused in place of its greeting: it waits for that and has sent nothing, so that the connection
    /// closes with the reply and holds no place meanwhile.
    pub is_turned_away: bool,
    /// The greeting is held back to see whether the client waits for it.
    pub greeting_is_held: bool,
    /// A user has authenticated.
    pub is_user: bool,
    /// Nothing is known of the client before the header of a proxy: no session has begun.
    pub awaits_proxy: bool,
    /// A proxy looks whether the server is there: not counted, not logged.
    pub is_health_check: bool,
    /// One of the messages that drew more than one chunk, oldest first; see `server`.
    pub holds_growth: bool,
}

/// The part of a connection that is not its session or its stream.
pub struct Io {
    /// Flags.
    pub flags: Flags,
    /// Why the session stopped taking input.
    pub blocked: Option<Blocked>,
    /// Index of the listener.
    pub listener: u8,
    /// Generation of the token.
    pub generation: u32,
    /// The client's address.
    pub peer: SocketAddr,
    /// TLS, from the STARTTLS or the first octet on.
    pub tls: Option<Box<Tls>>,
    /// What few sessions have.
    rare: Option<Box<Rare>>,
    /// The message that is being collected; `server` has it.
    pub message: Option<MessageKey>,
    /// Input that waits, from the front of its chunk.
    pub input: Option<ChunkId>,
    /// Bytes of it.
    pub input_len: u32,
    output: Option<ChunkId>,
    output_start: u16,
    output_len: u16,
    /// Reply octets that left so far, modulo 2^32: the position of `output_start` in the stream of replies.
    output_position: u32,
    /// Replies from this position on wait for a commit, while any is pending. While none is, the next one may hold
    /// replies back from here on.
    held_from: u32,
    /// Messages of this session that are queued and not yet acknowledged.
    pub commits_pending: u16,
    /// Bucket of the client's prefix; see `server`.
    pub prefix: u16,
    /// Where the client stands in the table of clients; see `server`.
    pub places: Places,
    /// Octets that came and have not been counted for the client.
    pub uncounted_bytes: u64,
    /// Large chunks that are counted for its prefix.
    pub chunks_counted: u32,
    /// Why it ends, as far as is known.
    pub cause: CloseCause,
    /// Serial number of its last message in the queue of those that wait for a commit.
    pub last_pending: u32,
    /// When bytes last came or left.
    pub active_at: Instant,
    /// When the session entered its phase: begin of a message's data, of a wait, of an unfinished line, of the
    /// closing.
    pub phase_at: Instant,
    /// When the connection was accepted.
    pub accepted_at: Instant,
}

/// Names a message that is being collected, as long as its connection has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageKey(NonZeroU32);

impl MessageKey {
    /// The key for this place in the table of messages; places end far below 2^32 - 1.
    pub fn new(place: usize) -> MessageKey {
        let place = u32::try_from(place).unwrap_or(u32::MAX - 1);
        MessageKey(NonZeroU32::MIN.saturating_add(place))
    }

    /// Its place in the table.
    pub fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What few sessions have: it would make all of them larger.
#[derive(Debug, Default)]
struct Rare {
    /// The client's and the server's address, as XCLIENT gave them; `peer` stays what counts for trust.
    seen_as: Option<(SocketAddr, SocketAddr)>,
    /// Number of its last message that waited for its commit as a large one does.
    stored_number: u64,
    /// Refusals that count for the limits on clients.
    refusals: u32,
    /// Nothing is taken, and no refusal sent, before this time.
    held_until: Option<Instant>,
    /// Replies from this position on are held back until then.
    refusal_from: Option<u32>,
}

// An idle session is its entry in the slab and nothing else; 10,000 of them have to stay within 4 MiB.
const _: () = assert!(size_of::<Session>() + size_of::<Io>() <= 288);

/// A connection.
pub struct Conn<S> {
    /// Its stream.
    pub stream: S,
    /// Its session.
    pub session: Session,
    /// The rest.
    pub io: Io,
}

impl Io {
    /// State of a fresh connection.
    pub fn new(peer: SocketAddr, listener: u8, generation: u32, now: Instant) -> Io {
        Io {
            flags: Flags::default(),
            blocked: None,
            listener,
            generation,
            peer,
            tls: None,
            rare: None,
            message: None,
            input: None,
            input_len: 0,
            output: None,
            output_start: 0,
            output_len: 0,
            output_position: 0,
            held_from: 0,
            commits_pending: 0,
            prefix: 0,
            places: Places::NONE,
            uncounted_bytes: 0,
            chunks_counted: 0,
            cause: CloseCause::PeerClosed,
            last_pending: 0,
            active_at: now,
            phase_at: now,
            accepted_at: now,
        }
    }

    /// Whether one more reply of any kind and one more commit can be taken.
    pub fn has_room(&self) -> bool {
        !self.is_held_back()
            && usize::from(self.output_len) + CONFIGURED_REPLY_BYTES_MAX <= CHUNK_SMALL_BYTES
            && u32::from(self.commits_pending) < COMMITS_PENDING_MAX
    }

    /// Whether something can be read: the socket may hold octets, or TLS holds plaintext.
    pub fn may_read(&self) -> bool {
        self.flags.readable || self.tls.as_ref().is_some_and(|tls| tls.has_waiting())
    }

    /// Whether something is to be sent, now or when a commit is acknowledged.
    pub fn has_output(&self) -> bool {
        match &self.tls {
            None => self.output_len > 0,
            // Replies can't leave any more.
            Some(tls) if tls.is_failed() => tls.has_output(),
            Some(tls) => self.output_len > 0 || tls.has_output(),
        }
    }

    /// Whether messages of this session wait for their commit.
    pub fn awaits_commit(&self) -> bool {
        self.commits_pending > 0 || self.flags.large_pending
    }

    /// Whether the connection has to stay for what it owes its client.
    pub fn is_outstanding(&self) -> bool {
        let failed = self.tls.as_ref().is_some_and(|tls| tls.is_failed());
        self.has_output() || (self.awaits_commit() && !failed)
    }

    /// Whether close_notify is due when everything else has left.
    pub fn owes_tls_goodbye(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.owes_goodbye())
    }

    /// Whether nothing more of the client will be heard: the socket is at its end, or TLS is.
    pub fn input_is_over(&self) -> bool {
        self.flags.eof || self.tls.as_ref().is_some_and(|tls| tls.is_ended())
    }

    /// Whether a TLS handshake is under way, or about to begin.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Time until which the session stands still: nothing is taken, and no refusal sent. `None`: nothing is held back.
    pub fn held_until(&self) -> Option<Instant> {
        self.rare.as_ref()?.held_until
    }

    /// Whether the session stands still until [`Io::held_until`].
    pub fn is_held_back(&self) -> bool {
        self.held_until().is_some()
    }

    /// Holds back what is sent from reply position `from` on, where there is one, and everything the client sends.
    pub fn hold_back(&mut self, from: Option<u32>, until: Instant) {
        let rare = self.rare.get_or_insert_default();
        rare.held_until = Some(until);
        rare.refusal_from = rare.refusal_from.or(from);
    }

    /// Ends [`Io::hold_back`].
    pub fn let_go(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.held_until = None;
            rare.refusal_from = None;
        }
    }

    /// Counts a refusal; returns how many there have been.
    pub fn note_refusal(&mut self) -> u32 {
        let rare = self.rare.get_or_insert_default();
        rare.refusals = rare.refusals.saturating_add(1);
        rare.refusals
    }

    /// The client that access rules, limits and log lines are about: the one that XCLIENT named, if it did. A proxy
    /// that does not know its client's address stands for it.
    pub fn client(&self) -> SocketAddr {
        match self.seen_as() {
            Some((client, _)) if !client.ip().is_unspecified() => client,
            _ => self.peer,
        }
    }

    /// The client's and the server's address as XCLIENT gave them; `peer` stays what counts for trust.
    pub fn seen_as(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.rare.as_ref()?.seen_as
    }

    /// Sets [`Io::seen_as`].
    pub fn be_seen_as(&mut self, client: SocketAddr, listener: SocketAddr) {
        self.rare.get_or_insert_default().seen_as = Some((client, listener));
    }

    /// Number of the session's last message that waited for its commit as a large one does; 0 if no one asked for it
    /// to be kept.
    pub fn stored_number(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.stored_number)
    }

    /// Keeps that number.
    pub fn keep_stored_number(&mut self, number: u64) {
        self.rare.get_or_insert_default().stored_number = number;
    }

    /// Reply bytes that have not left yet.
    pub fn output_len(&self) -> usize {
        usize::from(self.output_len)
    }

    /// Queues reply bytes that leave with the turn, unless a commit is pending that they stand behind; returns their
    /// range in the stream of replies. When the pool has nothing left the connection is marked dead: it could not be
    /// told anything.
    pub fn push_reply(&mut self, pool: &mut Pool, wire: &[u8]) -> (u32, u32) {
        let range = self.push_grouped(pool, wire);
        if self.commits_pending == 0 {
            self.held_from = range.1;
        }
        range
    }

    /// As [`Io::push_reply`], for a reply that may wait for the one to the end of the message: those to MAIL, RCPT,
    /// RSET and BDAT are to be sent as a unit, all others at once (RFC 2920 3.2).
    pub fn push_grouped(&mut self, pool: &mut Pool, wire: &[u8]) -> (u32, u32) {
        let begin = self
            .output_position
            .wrapping_add(u32::from(self.output_len));
        let Some(id) = self.output.or_else(|| pool.take_small(Urgency::Reserve)) else {
            self.flags.dead = true;
            return (begin, begin);
        };
        self.output = Some(id);
        let mut end = usize::from(self.output_start) + usize::from(self.output_len);
        let bytes = pool.bytes_mut(id);
        if end + wire.len() > CHUNK_SMALL_BYTES {
            bytes.copy_within(usize::from(self.output_start)..end, 0);
            self.output_start = 0;
            end = usize::from(self.output_len);
        }
        if end + wire.len() > CHUNK_SMALL_BYTES {
            // Only replies outside the session's turn (a time-out behind a full buffer) can come here.
            self.flags.dead = true;
            return (begin, begin);
        }
        bytes[end..end + wire.len()].copy_from_slice(wire);
        self.output_len += wire.len() as u16;
        (begin, begin.wrapping_add(wire.len() as u32))
    }

    /// Holds the reply at `position`, the last one queued, and all that follow until the commits pending now are
    /// acknowledged. So are the replies of its group that have not left: a client that has sent the whole message has
    /// no use for them, and one write is cheaper than two.
    pub fn hold(&mut self, position: u32) {
        if self.commits_pending == 0 {
            let group = self.held_from.wrapping_sub(self.output_position);
            let has_left = group > position.wrapping_sub(self.output_position);
            if has_left {
                self.held_from = self.output_position;
            }
        }
        self.commits_pending += 1;
    }

    /// One pending commit is settled; what stands before `release_to` may leave, all of it when none is left.
    pub fn settle(&mut self, release_to: u32) {
        self.commits_pending = self.commits_pending.saturating_sub(1);
        self.held_from = release_to;
    }

    /// Replaces a held reply; what stands behind it moves. Both positions are of the stream of replies.
    pub fn replace_reply(&mut self, pool: &mut Pool, begin: u32, end: u32, wire: &[u8]) {
        let Some(id) = self.output else { return };
        let (start, stop) = (usize::from(self.output_start), usize::from(self.output_len));
        pool.bytes_mut(id).copy_within(start..start + stop, 0);
        self.output_start = 0;
        let from = begin.wrapping_sub(self.output_position) as usize;
        let to = end.wrapping_sub(self.output_position) as usize;
        if from > to || to > stop || stop - (to - from) + wire.len() > CHUNK_SMALL_BYTES {
            self.flags.dead = true;
            return;
        }
        let bytes = pool.bytes_mut(id);
        bytes.copy_within(to..stop, from + wire.len());
        bytes[from..from + wire.len()].copy_from_slice(wire);
        self.output_len = (stop - (to - from) + wire.len()) as u16;
        if let Some(rare) = &mut self.rare
            && let Some(refusal) = &mut rare.refusal_from
            && refusal.wrapping_sub(self.output_position) as usize >= to
        {
            *refusal = refusal
                .wrapping_sub((to - from) as u32)
                .wrapping_add(wire.len() as u32);
        }
    }

    /// Bytes that may leave now.
    pub fn sendable<'a>(&self, pool: &'a Pool) -> &'a [u8] {
        let Some(id) = self.output else { return &[] };
        let before = |position: Option<u32>| match position {
            Some(held) => held.wrapping_sub(self.output_position) as usize,
            None => usize::from(self.output_len),
        };
        let held_from = (self.commits_pending > 0).then_some(self.held_from);
        let refusal_from = self.rare.as_ref().and_then(|rare| rare.refusal_from);
        let len = before(held_from).min(before(refusal_from));
        let start = usize::from(self.output_start);
        &pool.bytes(id)[start..start + len.min(usize::from(self.output_len))]
    }

    /// `sent` bytes have left.
    pub fn sent(&mut self, pool: &mut Pool, sent: usize) {
        self.output_start += sent as u16;
        self.output_len -= sent as u16;
        self.output_position = self.output_position.wrapping_add(sent as u32);
        if self.output_len == 0
            && let Some(id) = self.output.take()
        {
            pool.free(id);
            self.output_start = 0;
        }
    }

    /// Keeps input for later. The pool has a chunk: nobody reads without (see `server`).
    pub fn park(&mut self, pool: &mut Pool, bytes: &[u8], partial: bool) {
        debug_assert!(self.input.is_none());
        let taken = if bytes.len() <= CHUNK_SMALL_BYTES {
            pool.take_small(Urgency::Reserve)
        } else {
            pool.take_large(Urgency::Reserve)
        };
        let Some(id) = taken else {
            self.flags.dead = true;
            return;
        };
        pool.append(id, bytes);
        self.input = Some(id);
        self.input_len = bytes.len() as u32;
        self.flags.input_is_partial = partial;
    }

    /// Copies the waiting input to the front of `scratch` and gives its chunk back; returns its length.
    pub fn unpark(&mut self, pool: &mut Pool, scratch: &mut [u8]) -> usize {
        let Some(id) = self.input.take() else {
            return 0;
        };
        let len = self.input_len as usize;
        let waiting = &mut pool.bytes_mut(id)[..len];
        scratch[..len].copy_from_slice(waiting);
        // What waits may be a password.
        waiting.fill(0);
        pool.free(id);
        self.input_len = 0;
        self.flags.input_is_partial = false;
        len
    }

    /// Gives all chunks back but those of its message.
    pub fn release(&mut self, pool: &mut Pool) {
        for id in [self.input.take(), self.output.take()]
            .into_iter()
            .flatten()
        {
            pool.free(id);
        }
        if let Some(tls) = &mut self.tls {
            tls.release(pool);
        }
        self.output_len = 0;
        self.input_len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_250_is_held_wherever_its_group_began_in_the_stream_of_replies() {
        const ACCEPTED: &[u8] = b"250 2.1.0 Ok\r\n";
        const STORED: &[u8] = b"250 2.0.0 Ok: stored as 0-1\r\n";
        // A group is remembered for as long as its session lasts, and its position has 32 bits.
        for behind in [0, 1, 14, 28, 29, 1 << 16, 1 << 31, u32::MAX - 30, u32::MAX] {
            for position in [0, 1, 1 << 31, u32::MAX - 20, u32::MAX] {
                let mut pool = Pool::new(4 << 20, 1 << 20);
                let mut io = Io::new(([10, 0, 0, 1], 25).into(), 0, 0, Instant(0));
                io.output_position = position;
                io.held_from = position.wrapping_sub(behind);
                io.push_grouped(&mut pool, ACCEPTED);
                let (begin, end) = io.push_grouped(&mut pool, STORED);
                io.hold(begin);
                // Part of its group may leave 4 GiB later, no octet of itself.
                let leaves = io.sendable(&pool);
                assert!(
                    ACCEPTED.starts_with(leaves),
                    "{behind} before {position}: {}",
                    leaves.escape_ascii()
                );
                io.settle(end);
                assert_eq!(io.sendable(&pool), [ACCEPTED, STORED].concat());
                io.release(&mut pool);
            }
        }
    }
}
