//! The turn's end: one vectored write of every message that ended, the sync behind it, and the replies that a
//! finished sync releases.

use std::io::IoSlice;

use super::out::{Named, Out};
use super::{Server, Shared, live, run_later};
use crate::buffer::{ChunkId, Pool};
use crate::checksum;
use crate::clock::Instant;
use crate::conn::{Stream, Token};
use crate::envelope::Facts;
use crate::limits::{LOG_WRITE_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::logger::{Class, Value};
use crate::message::{Fragment, Message};
use crate::metrics::Phase;
use crate::ringlog::backing::Backing;
use crate::ringlog::commit::{SyncDone, SyncRequest, SyncThread};
use crate::ringlog::format::WHOLE_BYTES;
use crate::ringlog::writer::{Failed, LargeSlot, Log, ReserveError, Slot, Survive};
use crate::smtp::reply::Reply;
use crate::smtp::sink::Blocked;

/// Zeros behind a payload, up to the next record.
const PADDING: [u8; RECORD_HEADER_BYTES] = [0; RECORD_HEADER_BYTES];

/// Carries out syncs away from the loop; one at a time.
pub trait Committer {
    /// Starts a sync. Never called while one is under way.
    fn submit(&mut self, request: &SyncRequest<'_>);
    /// The sync that ended since the last call, if one did.
    fn poll(&mut self) -> Option<SyncDone>;
}

impl Committer for SyncThread {
    fn submit(&mut self, request: &SyncRequest<'_>) {
        SyncThread::submit(self, request);
    }

    fn poll(&mut self) -> Option<SyncDone> {
        self.completed()
    }
}

/// Storage of a server that stores.
pub struct Storage<B: Backing, C> {
    /// The log.
    pub log: Log<B>,
    /// What carries out the syncs.
    pub committer: C,
}

/// A message that has its place in the log and is written at the end of the turn.
pub(super) struct Queued {
    pub(super) message: Message,
    pub(super) slot: Slot,
}

/// A large message: written over one or more turns.
pub(super) struct Large {
    pub(super) message: Message,
    pub(super) facts: Facts,
    pub(super) token: Token,
    pub(super) ended_at: Instant,
    /// Set with the first record.
    pub(super) progress: Option<Progress>,
}

/// How far the writing of a large message is.
pub(super) struct Progress {
    slot: LargeSlot,
    number: u64,
    /// Chunk the next record starts with.
    next: ChunkId,
    /// CRC32C of what was written.
    crc: u32,
}

/// One record of a large message that is written in this turn.
pub(super) struct FragmentWrite {
    header: [u8; RECORD_HEADER_BYTES],
    fragment: Fragment,
    /// First chunk of the message, whose front is not part of the record.
    message_first: ChunkId,
    whole: [u8; WHOLE_BYTES],
    whole_len: usize,
    padding: usize,
}

/// A message that waits for its commit.
pub(super) struct Pending {
    pub(super) token: Token,
    /// Position the acknowledged part of the log must reach.
    pub(super) end: u64,
    /// Range of its 250 in the connection's stream of replies; unused for a large message.
    pub(super) reply: (u32, u32),
    /// Where the connection's next reply begins that waits for a later commit; the end of this reply while there
    /// is none.
    pub(super) release_to: u32,
    /// Number of a large message, whose 250 is queued only when it is due.
    pub(super) large_number: Option<u64>,
    pub(super) ended_at: Instant,
    /// Octets of the message, trace field included.
    pub(super) octets: u64,
}

/// What let a message have its 250.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// Nothing: it is thrown away.
    Discarded,
    /// Its write.
    Written,
    /// A sync, from its begin to its end.
    Synced { began: Instant, ended: Instant },
}

/// Messages that ended in one turn and got their 250 in one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) ended_at: Instant,
    pub(super) commit: Commit,
    pub(super) count: u64,
}

/// Empties a vector and lends its memory to slices of another lifetime.
fn recycled<'to>(mut parts: Vec<IoSlice<'_>>) -> Vec<IoSlice<'to>> {
    parts.clear();
    // Collecting in place keeps the allocation; there is nothing to map.
    parts.into_iter().map(|_| IoSlice::new(&[])).collect()
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// Writes all messages that ended in this turn, and the next part of a large one, in one vectored write.
    pub(super) fn append(&mut self) {
        let shared = &mut self.shared;
        let Some(storage) = &mut shared.storage else {
            return;
        };
        if shared.batch.is_empty() && shared.large.is_empty() {
            return;
        }
        let log = &mut storage.log;
        if let Some(failed) = log.failed() {
            self.fail_storage(failed);
            return;
        }
        let mut bytes = 0;
        for queued in &shared.batch {
            let (fragment, _) = queued
                .message
                .fragment_from(&shared.pool, queued.message.first());
            let header = log.header(&queued.slot, queued.message.envelope_bytes(), fragment.crc);
            queued
                .message
                .header_mut(&mut shared.pool)
                .copy_from_slice(&header);
            bytes += fragment.bytes;
        }
        let refused = self.reserve_large();
        let shared = &mut self.shared;
        let Some(storage) = &mut shared.storage else {
            return;
        };
        let mut parts = recycled(std::mem::take(&mut shared.parts));
        for queued in &shared.batch {
            push_message(&mut parts, &shared.pool, queued);
        }
        for write in &shared.fragments {
            push_fragment(&mut parts, &shared.pool, write);
            bytes += write.fragment.bytes;
        }
        let result = if parts.is_empty() {
            Ok(())
        } else {
            storage.log.write(&parts)
        };
        if !parts.is_empty() {
            let messages = shared.batch.len() + shared.written_large.len();
            shared.metrics.batches += 1;
            shared.metrics.record(Phase::BatchMessages, messages as u64);
            shared.metrics.record(Phase::BatchBytes, bytes);
            shared
                .metrics
                .record(Phase::Write, storage.log.take_write_ns());
        }
        shared.parts = recycled(parts);
        for queued in shared.batch.drain(..) {
            queued.message.free(&mut shared.pool);
        }
        shared.fragments.clear();
        for message in shared.written_large.drain(..) {
            message.free(&mut shared.pool);
        }
        if let Err(failed) = result {
            self.fail_storage(failed);
        }
        for (token, reply) in refused {
            self.complete_large(token, Err(reply));
        }
    }

    /// Takes places for messages that wait for one, [`LOG_WRITE_BYTES_MAX`] bytes at most in one turn. Returns
    /// those that the log has no space for.
    fn reserve_large(&mut self) -> Vec<(Token, Reply)> {
        let mut refused = Vec::new();
        let mut given = 0;
        self.shared.space_wanted = false;
        while given < LOG_WRITE_BYTES_MAX && !self.shared.large.is_empty() {
            match self.shared.reserve_next() {
                Ok(bytes) => given += bytes,
                Err(ReserveError::Full { freeing: true }) => {
                    self.shared.space_wanted = true;
                    break;
                }
                Err(error) => {
                    let reply = self.shared.refusal_for(error);
                    refused.extend(self.shared.drop_front(reply));
                }
            }
        }
        refused
    }

    /// Takes the outcome of a finished sync and releases the replies that it covers.
    pub(super) fn poll_commits(&mut self) {
        let shared = &mut self.shared;
        let Some(storage) = &mut shared.storage else {
            return;
        };
        let mut commit = Commit::Written;
        if let Some(done) = storage.committer.poll() {
            shared.sync_since = None;
            shared.metrics.syncs += 1;
            let took_ns = crate::clock::nanos(done.took);
            let start_ns = done.began.since_ns(done.asked);
            shared.metrics.record(Phase::SyncStart, start_ns);
            shared.metrics.record(Phase::Sync, took_ns);
            if took_ns > super::SYNC_SLOW_NS {
                let fields = [("took_ms", Value::Number(took_ns / 1_000_000))];
                shared.logger.line(Class::SyncSlow, &fields, shared.now);
            }
            let (began, ended) = (done.began, done.ended());
            if let Err(failed) = storage.log.sync_completed(done.target, done.result) {
                self.fail_storage(failed);
                return;
            }
            if storage.log.settings().survive == Survive::Power {
                commit = Commit::Synced { began, ended };
            }
        }
        self.release(commit);
    }

    /// Whether messages have ended that a sync has to cover before they are answered.
    pub(super) fn owes_commit(&self) -> bool {
        let storage = self.shared.storage.as_ref();
        let syncs = storage.is_some_and(|s| s.log.settings().survive == Survive::Power);
        syncs && !(self.shared.pending.is_empty() && self.shared.large.is_empty())
    }

    /// Hands the next sync to the committer, if one is due and none is under way.
    pub(super) fn submit_sync(&mut self) {
        let shared = &mut self.shared;
        let Some(storage) = &mut shared.storage else {
            return;
        };
        if let Some(request) = storage.log.sync_wanted(shared.now) {
            storage.committer.submit(&request);
            shared.sync_since = Some(shared.now);
        }
        // Not every failure is an answer to a write of this turn: a superblock may have failed on its own.
        if let Some(failed) = storage.log.failed()
            && shared.failed_at.is_none()
        {
            self.fail_storage(failed);
        }
    }

    /// Settles every pending message that the acknowledged part of the log covers, because of `commit`.
    fn release(&mut self, commit: Commit) {
        let Some(storage) = &self.shared.storage else {
            return;
        };
        let acknowledged = storage.log.acknowledged();
        while self
            .shared
            .pending
            .front()
            .is_some_and(|pending| pending.end <= acknowledged)
        {
            let Some(pending) = self.shared.pending.pop_front() else {
                break;
            };
            self.shared.pending_settled = self.shared.pending_settled.wrapping_add(1);
            self.shared.note_answered(pending.ended_at, commit);
            self.shared.metrics.messages_accepted += 1;
            self.shared.metrics.message_bytes_accepted += pending.octets;
            if let Some(number) = pending.large_number {
                self.complete_large(pending.token, Ok(number));
                continue;
            }
            let Some(conn) = live(&mut self.conns, pending.token) else {
                // The client is gone and will send the message again: a duplicate, never a loss.
                self.shared.metrics.unacknowledged_commits += 1;
                continue;
            };
            conn.io.settle(pending.release_to);
            // The wait was the disk's, not the client's: its time begins now.
            conn.io.active_at = self.shared.now;
            self.shared.metrics.reply(Reply::Stored as usize);
            if !conn.io.flags.queued_to_flush {
                conn.io.flags.queued_to_flush = true;
                self.shared.flush.push(pending.token);
            }
            let goes_on = match conn.io.blocked {
                Some(Blocked::Commits) => !conn.io.awaits_commit(),
                blocked => blocked == Some(Blocked::Replies),
            };
            if goes_on {
                run_later(conn, &mut self.shared, pending.token);
            }
        }
    }

    /// Tells a session what became of its large message.
    fn complete_large(&mut self, token: Token, result: Result<u64, Reply>) {
        let Some(conn) = live(&mut self.conns, token) else {
            self.shared.metrics.unacknowledged_commits += u64::from(result.is_ok());
            return;
        };
        conn.io.flags.large_pending = false;
        conn.io.blocked = None;
        conn.io.active_at = self.shared.now;
        if let Ok(number) = result {
            let named = Named::new(self.shared.options.shard, number);
            if self.shared.listeners[usize::from(conn.io.listener)].lmtp {
                // The replies to its other recipients name it again.
                conn.io.keep_stored_number(number);
            }
            conn.io.push_reply(&mut self.shared.pool, named.reply());
            self.shared.metrics.reply(Reply::Stored as usize);
        }
        run_later(conn, &mut self.shared, token);
        let mut out = Out {
            io: &mut conn.io,
            shared: &mut self.shared,
            token,
        };
        out.queue_to_flush();
        conn.session.completed(result.map(|_| ()), &mut out);
    }

    /// Storage failed: nothing more is written or synced for the life of the process. Every message that waits
    /// is refused, in the order of its session's replies.
    pub(super) fn fail_storage(&mut self, failed: Failed) {
        let shared = &mut self.shared;
        if shared.failed_at.is_none() {
            shared.failed_at = Some(shared.now);
            shared.metrics.storage_failures += 1;
            let text = failed.to_string();
            let fields = [("error", Value::Str(&text))];
            shared
                .logger
                .line(Class::StorageFailed, &fields, shared.now);
        }
        for queued in shared.batch.drain(..) {
            queued.message.free(&mut shared.pool);
        }
        shared.fragments.clear();
        for message in shared.written_large.drain(..) {
            message.free(&mut shared.pool);
        }
        while let Some(pending) = self.shared.pending.pop_back() {
            if pending.large_number.is_some() {
                self.complete_large(pending.token, Err(Reply::CommitFailed));
                continue;
            }
            let shared = &mut self.shared;
            let Some(conn) = live(&mut self.conns, pending.token) else {
                continue;
            };
            let (begin, end) = pending.reply;
            let wire = Reply::CommitFailed.row().wire;
            conn.io.replace_reply(&mut shared.pool, begin, end, wire);
            conn.io.settle(begin);
            conn.io.active_at = shared.now;
            shared.metrics.reply(Reply::CommitFailed as usize);
            if !conn.io.flags.queued_to_flush {
                conn.io.flags.queued_to_flush = true;
                shared.flush.push(pending.token);
            }
            run_later(conn, shared, pending.token);
        }
        while let Some(large) = self.shared.large.pop_front() {
            large.message.free(&mut self.shared.pool);
            self.complete_large(large.token, Err(Reply::CommitFailed));
        }
    }
}

impl<B: Backing, C> Shared<B, C> {
    /// The reply to a message that gets no place in the log.
    pub(super) fn refusal_for(&mut self, error: ReserveError) -> Reply {
        match error {
            ReserveError::TooLarge => Reply::TooBig,
            ReserveError::Failed(_) => Reply::StorageDown,
            ReserveError::Full { .. } | ReserveError::Busy => {
                self.metrics.no_space_after_data += 1;
                Reply::NoSpace
            }
        }
    }

    /// Drops the message in front of those that wait.
    fn drop_front(&mut self, reply: Reply) -> Option<(Token, Reply)> {
        let large = self.large.pop_front()?;
        if let (Some(progress), Some(storage)) = (large.progress, &mut self.storage) {
            storage.log.abandon_large(progress.slot);
        }
        large.message.free(&mut self.pool);
        self.metrics.messages_refused += 1;
        Some((large.token, reply))
    }

    /// Takes the place of the next record of the message in front; returns the record's payload bytes.
    fn reserve_next(&mut self) -> Result<u64, ReserveError> {
        let (Some(large), Some(storage)) = (self.large.front_mut(), &mut self.storage) else {
            return Ok(0);
        };
        let (log, pool) = (&mut storage.log, &mut self.pool);
        let first = large.message.first();
        if large.message.fragments() == 1 {
            let slot = log.reserve(large.message.payload_bytes())?;
            let named = Named::new(self.options.shard, slot.number);
            large.message.name(pool, named.id(), large.facts);
            let (fragment, _) = large.message.fragment_from(pool, first);
            self.fragments.push(FragmentWrite {
                header: log.header(&slot, large.message.envelope_bytes(), fragment.crc),
                fragment,
                message_first: first,
                whole: [0; WHOLE_BYTES],
                whole_len: 0,
                padding: slot.padding,
            });
            self.finish_front(slot.number, slot.end);
            return Ok(fragment.bytes);
        }
        let progress = match &mut large.progress {
            Some(progress) => progress,
            None => {
                let slot = log.begin_large(large.message.payload_bytes())?;
                // The first record takes this number; it is reserved below, before any other.
                let number = log.next_number();
                let named = Named::new(self.options.shard, number);
                large.message.name(pool, named.id(), large.facts);
                large.progress.insert(Progress {
                    slot,
                    number,
                    next: first,
                    crc: 0,
                })
            }
        };
        let (fragment, next) = large.message.fragment_from(pool, progress.next);
        let slot = log.reserve_fragment(&mut progress.slot, fragment.bytes)?;
        progress.crc = checksum::combined(progress.crc, fragment.crc, fragment.bytes);
        // The last record begins with what it knows of the whole message.
        let mut whole = [0; WHOLE_BYTES];
        let mut crc = fragment.crc;
        let mut whole_len = 0;
        if next.is_none() {
            whole = progress.slot.whole(progress.crc).encode();
            whole_len = WHOLE_BYTES;
            crc = checksum::combined(crc32c::crc32c(&whole), crc, fragment.bytes);
        }
        let is_first = fragment.first == first;
        assert!(
            !is_first || slot.number == progress.number,
            "the trace field names another message"
        );
        let envelope_bytes = if is_first {
            large.message.envelope_bytes()
        } else {
            0
        };
        self.fragments.push(FragmentWrite {
            header: log.header(&slot, envelope_bytes, crc),
            fragment,
            message_first: first,
            whole,
            whole_len,
            padding: slot.padding,
        });
        match next {
            Some(next) => progress.next = next,
            None => {
                let number = progress.number;
                self.finish_front(number, slot.end);
            }
        }
        Ok(fragment.bytes)
    }

    /// The message in front has all its places: it is written in this turn and waits for its commit.
    fn finish_front(&mut self, number: u64, end: u64) {
        let Some(large) = self.large.pop_front() else {
            return;
        };
        self.pending.push_back(Pending {
            token: large.token,
            end,
            reply: (0, 0),
            release_to: 0,
            large_number: Some(number),
            ended_at: large.ended_at,
            octets: large.message.octets(),
        });
        self.written_large.push(large.message);
    }
}

fn push_message<'a>(parts: &mut Vec<IoSlice<'a>>, pool: &'a Pool, queued: &Queued) {
    let mut next = Some(queued.message.first());
    while let Some(id) = next {
        let meta = pool.meta(id);
        // The first chunk begins with the record's header.
        parts.push(IoSlice::new(&pool.bytes(id)[..meta.used as usize]));
        next = meta.next;
    }
    if queued.slot.padding > 0 {
        parts.push(IoSlice::new(&PADDING[..queued.slot.padding]));
    }
}

fn push_fragment<'a>(parts: &mut Vec<IoSlice<'a>>, pool: &'a Pool, write: &'a FragmentWrite) {
    parts.push(IoSlice::new(&write.header));
    // A LAST record's payload begins with the description of the whole.
    if write.whole_len > 0 {
        parts.push(IoSlice::new(&write.whole[..write.whole_len]));
    }
    let mut id = write.fragment.first;
    loop {
        let meta = pool.meta(id);
        let front = if id == write.message_first {
            RECORD_HEADER_BYTES
        } else {
            0
        };
        parts.push(IoSlice::new(&pool.bytes(id)[front..meta.used as usize]));
        match meta.next {
            Some(next) if id != write.fragment.last => id = next,
            _ => break,
        }
    }
    if write.padding > 0 {
        parts.push(IoSlice::new(&PADDING[..write.padding]));
    }
}
