//! Bytes between a connection's stream and its buffers: reading with sticky readiness, feeding the session, reading
//! message data straight into its chunk, sending replies.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::out::Out;
use super::secure::{Target, flush_tls, read_tls, takes_direct_reads};
use super::storage::Committer;
use super::{Shared, TURN_READ_BYTES, may_grow, urgency, waits_for};
use crate::buffer::Urgency;
use crate::clock::Instant;
use crate::conn::{Conn, Stream, Token};
use crate::limits::TLS_RECORD_BYTES_MAX;
use crate::message::{ANNOUNCED_BYTES_MIN, Message};
use crate::metrics::{CloseCause, Metrics};
use crate::ringlog::backing::Backing;
use crate::smtp::session::Context;
use crate::smtp::sink::Blocked;
use crate::sys::crc;
use zeroize::Zeroize;

/// Reads once and keeps the sticky readiness true. `None`: nothing came.
fn read_once<S: Stream>(
    conn: &mut Conn<S>,
    now: Instant,
    metrics: &mut Metrics,
    buf: &mut [u8],
    budget: &mut usize,
) -> Option<usize> {
    if !conn.io.flags.readable || buf.is_empty() {
        return None;
    }
    loop {
        match conn.stream.read(buf) {
            Ok(0) => {
                conn.io.flags.readable = false;
                conn.io.flags.eof = true;
                return None;
            }
            Ok(len) => {
                // Data and FIN can come in one event and no other follows, so that a short read empties the
                // socket only while nothing has hung up.
                if len < buf.len() && !conn.io.flags.hung_up {
                    conn.io.flags.readable = false;
                }
                conn.io.active_at = now;
                metrics.bytes_in += len as u64;
                conn.io.uncounted_bytes += len as u64;
                *budget = budget.saturating_sub(len);
                return Some(len);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.io.flags.readable = false;
                return None;
            }
            Err(_) => {
                conn.io.cause = CloseCause::PeerReset;
                conn.io.flags.readable = false;
                conn.io.flags.eof = true;
                conn.io.flags.dead = true;
                return None;
            }
        }
    }
}

/// Writes what the stream takes now, which may be nothing.
///
/// # Errors
/// The connection is of no use any more.
pub(super) fn write_once<S: Stream>(stream: &mut S, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            result => return result,
        }
    }
}

/// Reads into the scratch buffer behind what waits, and feeds the session. False when nothing more can be done
/// now.
pub(super) fn read_and_receive<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    context: &Context,
    shared: &mut Shared<B, C>,
    token: Token,
    scratch: &mut [u8],
    budget: &mut usize,
) -> bool {
    let needs_more = conn.io.input.is_none() || conn.io.flags.input_is_partial;
    // The last reply of a chunk or of a message may have waited for room behind input that is used up.
    let owes_reply = conn.session.owes_reply() && conn.io.has_room();
    if needs_more && !conn.io.may_read() && !owes_reply {
        return false;
    }
    // What is read and not taken has to be kept: without a free chunk nothing is read.
    if needs_more && !shared.pool.has_large(Urgency::Reserve) {
        conn.io.blocked = Some(Blocked::Pool);
        return false;
    }
    let was_partial = conn.io.flags.input_is_partial;
    let mut len = conn.io.unpark(&mut shared.pool, scratch);
    if needs_more {
        let read = if conn.io.tls.is_some() {
            // Behind one record a message's next chunk begins, which is read into without this copy.
            let message = shared.message(&conn.io);
            let end = match message.is_some_and(Message::wants_direct_reads) {
                true => len + TLS_RECORD_BYTES_MAX,
                false => scratch.len(),
            };
            let target = Target::Buffer(&mut scratch[len..end]);
            read_tls(conn, shared, token, target, budget)
        } else {
            read_once(
                conn,
                shared.now,
                &mut shared.metrics,
                &mut scratch[len..],
                budget,
            )
        };
        match read {
            Some(more) => len += more,
            None if owes_reply => {}
            None => {
                if len > 0 {
                    conn.io.park(&mut shared.pool, &scratch[..len], was_partial);
                }
                return false;
            }
        }
    }
    let (now, wall_ns) = (shared.now, shared.wall_ns);
    let was_long = conn.session.is_within_long_line();
    conn.session.lend(&mut shared.spare_work);
    let mut out = Out {
        io: &mut conn.io,
        shared,
        token,
    };
    let progress = conn
        .session
        .receive(context, &scratch[..len], now, wall_ns, &mut out);
    if conn.session.took_secret() {
        // The octets of AUTH must not stay behind.
        scratch[..progress.consumed].zeroize();
    }
    conn.io.blocked = progress.blocked;
    if conn.session.is_within_long_line() && !was_long && !was_partial {
        conn.io.phase_at = now;
    }
    if progress.consumed < len {
        let partial = progress.blocked.is_none();
        // A client that pipelines may end each time in the middle of another line.
        if partial && (!was_partial || progress.consumed > 0) {
            conn.io.phase_at = now;
        }
        conn.io
            .park(&mut shared.pool, &scratch[progress.consumed..len], partial);
    }
    progress.blocked.is_none()
}

/// Whether the next octets of the open message, which can be decoded in place, are read straight into one of its
/// chunks: it is long enough already, or its client says that it will be.
pub(super) fn reads_in_place<S: Stream, B: Backing, C>(
    conn: &Conn<S>,
    shared: &Shared<B, C>,
    token: Token,
) -> bool {
    let Some(message) = shared.message(&conn.io) else {
        return false;
    };
    if message.wants_direct_reads() {
        return takes_direct_reads(&conn.io, shared);
    }
    // One record of TLS is copied at most.
    conn.io.tls.is_none()
        && conn.session.announced_octets() >= ANNOUNCED_BYTES_MIN
        && may_grow(&conn.io, shared, token)
}

/// Reads message data straight into the message's last chunk and decodes it there. What turns out to be too little for
/// a large chunk is copied to a small one: who only announces a message holds no more than who does not. False when
/// nothing more can be done now.
pub(super) fn read_in_place<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    context: &Context,
    shared: &mut Shared<B, C>,
    token: Token,
    scratch: &mut [u8],
    budget: &mut usize,
) -> bool {
    if !conn.io.may_read() {
        return false;
    }
    let urgency = urgency(&conn.io, shared, token);
    if !shared.pool.has_large(Urgency::Reserve) {
        conn.io.blocked = Some(Blocked::Pool);
        return false;
    }
    let may_grow = may_grow(&conn.io, shared, token);
    let Some(key) = conn.io.message else {
        return false;
    };
    let Some(message) = shared.messages.get_mut(key.place()) else {
        return false;
    };
    let is_trial = !message.wants_direct_reads();
    let before = message.standing(&shared.pool);
    let room = match may_grow || message.has_direct_room(&shared.pool) {
        true => message.direct_room(&mut shared.pool, urgency),
        false => None,
    };
    let Some((chunk, range)) = room else {
        conn.io.blocked = Some(Blocked::Pool);
        return false;
    };
    let read = if conn.io.tls.is_some() {
        let target = Target::Chunk(chunk, range.clone());
        read_tls(conn, shared, token, target, budget)
    } else {
        let buf = &mut shared.pool.bytes_mut(chunk)[range.clone()];
        read_once(conn, shared.now, &mut shared.metrics, buf, budget)
    };
    let Some(message) = shared.messages.get_mut(key.place()) else {
        return false;
    };
    let Some(len) = read else {
        if is_trial && message.should_retreat(&before, 0) {
            message.retreat(&mut shared.pool, &before);
        }
        return false;
    };
    let buf = &mut shared.pool.bytes_mut(chunk)[range];
    let decoded = conn.session.receive_in_place(context, &mut buf[..len]);
    let (kept, rest) = (decoded.kept, len - decoded.consumed);
    scratch[..rest].copy_from_slice(&buf[decoded.consumed..len]);
    if is_trial && message.should_retreat(&before, kept) {
        let copy = &mut scratch[rest..rest + kept];
        copy.copy_from_slice(&buf[..kept]);
        message.retreat(&mut shared.pool, &before);
        message.body(&mut shared.pool, copy, urgency);
    } else {
        message.direct_take(&mut shared.pool, kept, crc::append);
        if message.wants_direct_reads() {
            shared.start_growing(&mut conn.io, token.key);
        }
    }
    if rest > 0 {
        conn.io.park(&mut shared.pool, &scratch[..rest], false);
    }
    if decoded.end {
        let mut out = Out {
            io: &mut conn.io,
            shared,
            token,
        };
        conn.session.end_in_place(context, &mut out);
        conn.io.blocked = waits_for(conn);
        return conn.io.blocked.is_none();
    }
    true
}

/// Throws away what a closing connection still sends, so that its close does not become a reset.
pub(super) fn discard_input<S: Stream, B: Backing, C>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    scratch: &mut [u8],
) {
    if let Some(id) = conn.io.input.take() {
        shared.pool.free(id);
        conn.io.input_len = 0;
    }
    let mut budget = TURN_READ_BYTES;
    let active_at = conn.io.active_at;
    while budget > 0
        && read_once(conn, shared.now, &mut shared.metrics, scratch, &mut budget).is_some()
    {}
    // Garbage does not prolong the wait.
    conn.io.active_at = active_at;
}

/// Writes what may leave, once.
pub(super) fn flush_one<S: Stream, B: Backing, C>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
) {
    if conn.io.flags.dead || conn.io.flags.write_blocked {
        return;
    }
    // The 220 of STARTTLS, and what stands before it, is the last to leave in the clear.
    if conn.io.tls.as_ref().is_some_and(|tls| !tls.is_announced()) {
        // What leaves is made by rustls, outside of the guard around sessions: a fault of it costs its session too.
        if catch_unwind(AssertUnwindSafe(|| flush_tls(conn, shared, token))).is_err() {
            shared.metrics.session_panics += 1;
            conn.io.cause = CloseCause::Panicked;
            conn.io.flags.dead = true;
        }
        return;
    }
    let bytes = conn.io.sendable(&shared.pool);
    if bytes.is_empty() {
        return;
    }
    let wanted = bytes.len();
    let Ok(sent) = write_once(&mut conn.stream, bytes) else {
        conn.io.cause = CloseCause::PeerReset;
        conn.io.flags.dead = true;
        return;
    };
    if sent > 0 {
        if !conn.io.flags.greeted {
            conn.io.flags.greeted = true;
            shared.turn_greetings += 1;
        }
        conn.io.active_at = shared.now;
        shared.metrics.bytes_out += sent as u64;
        conn.io.sent(&mut shared.pool, sent);
    }
    if sent < wanted {
        conn.io.flags.write_blocked = true;
        if !conn.io.flags.wants_writable {
            conn.io.flags.wants_writable = true;
            if conn.stream.want_writable(token).is_err() {
                conn.io.flags.dead = true;
            }
        }
    }
}
