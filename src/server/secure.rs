//! TLS of the connections: when a handshake begins, where it runs, what its end means, and the bytes between TLS and
//! the socket.
//!
//! A handshake is bounded in number ([`Security::handshakes_max`]), in time ([`Security::timeout`]) and in work: the
//! loop makes [`TLS_TURN_STEPS`] steps a turn, so that a flood of them can't starve sessions that send mail. Where a
//! key is slow (RSA), the step that signs goes to the helper and the connection waits for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::out::Out;
use super::storage::Committer;
use super::transfer::write_once;
use super::watch::Look;
use super::{Server, Shared, live, run_later, waits_for};
use crate::buffer::ChunkId;
use crate::conn::{Conn, Io, Stream, Token};
use crate::limits::{CHUNK_LARGE_BYTES, TLS_RECORD_BYTES_MAX, TLS_TURN_STEPS};
use crate::logger::{Class, Value};
use crate::metrics::CloseCause;
use crate::offload::{Job, Offload, Timing};
use crate::ringlog::backing::Backing;
use crate::server::listener::TlsMode;
use crate::smtp::session::{Context, Phase};
use crate::smtp::sink::{Blocked, PasswordVerdict};
use crate::sys::file::Stamps;
use crate::tls::credentials::{Credentials, LoadError, Sources};
use crate::tls::{End, Failure, Handshake, Step, Tls};

/// Buffer between TLS and the sockets: what was parked, what is read or sent, and two records of overhead.
pub(super) const CIPHER_BYTES: usize = CHUNK_LARGE_BYTES + 2 * TLS_RECORD_BYTES_MAX;
/// Room for plaintext with which TLS is read straight into a message's chunk. A record has to fit.
pub(super) const DIRECT_ROOM_MIN: usize = TLS_RECORD_BYTES_MAX;

/// What TLS needs beside the connections.
pub struct Security {
    /// Certificates and keys. Connections keep those they began with.
    pub credentials: Arc<Credentials>,
    /// Where they came from, to be read again.
    pub sources: Sources,
    /// State of these files before they were read, from [`Sources::stamps`].
    pub seen: Option<Stamps>,
    /// Handshakes under way at the same time.
    pub handshakes_max: usize,
    /// Time for a handshake.
    pub timeout: Duration,
}

/// What the helper answers.
pub enum Answer {
    /// A step of a handshake.
    Handshake {
        /// Whose.
        token: Token,
        /// The handshake, which comes back.
        handshake: Box<Handshake>,
        /// What the step came to.
        step: Step,
    },
    /// Files of users and certificates were looked at.
    Files(Box<Look>),
    /// A password was checked.
    Password {
        /// Whose session waits.
        token: Token,
        /// Whether it is right.
        verdict: PasswordVerdict,
    },
}

/// State of TLS over all connections.
pub(super) struct Secure {
    pub(super) security: Option<Security>,
    /// Empty without TLS.
    pub(super) cipher: Box<[u8]>,
    /// Handshakes under way.
    pub(super) under_way: usize,
    /// Steps the loop may still make in this turn.
    steps_left: u32,
}

impl Secure {
    pub(super) fn none() -> Secure {
        Secure {
            security: None,
            cipher: Box::default(),
            under_way: 0,
            steps_left: TLS_TURN_STEPS,
        }
    }

    /// Time for a handshake.
    pub(super) fn timeout(&self) -> Duration {
        let security = self.security.as_ref();
        security.map_or(Duration::ZERO, |security| security.timeout)
    }

    /// A handshake has ended.
    pub(super) fn one_less(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Makes the buffer again that a panic has taken along.
    pub(super) fn restore(&mut self) {
        if self.security.is_some() && self.cipher.is_empty() {
            self.cipher = vec![0; CIPHER_BYTES].into_boxed_slice();
        }
    }

    /// Whether one more handshake can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.security
            .as_ref()
            .is_some_and(|security| self.under_way < security.handshakes_max)
    }

    /// TLS for one more connection, its handshake announced.
    pub(super) fn announce(&mut self) -> Option<Box<Tls>> {
        if !self.has_room() {
            return None;
        }
        let security = self.security.as_ref()?;
        self.under_way += 1;
        Some(Box::new(Tls::announced(&security.credentials)))
    }
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// Turns TLS on. Before it, no listener may say anything but `tls=off`.
    pub fn secure(&mut self, security: Security) {
        self.timer_step = self.timer_step.min(security.timeout);
        let secure = &mut self.shared.secure;
        secure.security = Some(security);
        secure.cipher = vec![0; CIPHER_BYTES].into_boxed_slice();
    }

    /// TLS handshakes under way.
    pub fn handshakes_under_way(&self) -> usize {
        self.shared.secure.under_way
    }

    /// Lets work run on a helper instead of here.
    pub fn set_offload(&mut self, offload: Offload<Answer>) {
        self.shared.offload = offload;
    }

    /// Takes certificates and keys that were read again, or says why the old ones stay.
    pub(super) fn credentials_loaded(&mut self, loaded: Result<Box<Credentials>, LoadError>) {
        let shared = &mut self.shared;
        let Some(security) = &mut shared.secure.security else {
            return;
        };
        match loaded {
            Ok(credentials) => {
                shared.metrics.tls.reloads[0] += 1;
                for warning in credentials.warnings() {
                    let fields = [("warning", Value::Str(warning))];
                    shared.logger.line(Class::Setting, &fields, shared.now);
                }
                let names = credentials.names().join(" ");
                security.credentials = Arc::from(credentials);
                let fields = [("names", Value::Str(&names))];
                shared.logger.line(Class::TlsReloaded, &fields, shared.now);
            }
            Err(error) => {
                shared.metrics.tls.reloads[1] += 1;
                let file = error.file.display().to_string();
                let fields = [
                    ("file", Value::Str(&file)),
                    ("reason", Value::Str(&error.reason)),
                ];
                shared
                    .logger
                    .line(Class::TlsReloadFailed, &fields, shared.now);
            }
        }
    }

    /// Takes what the helper has done since the last turn.
    pub(super) fn take_answers(&mut self) {
        self.shared.secure.steps_left = TLS_TURN_STEPS;
        while let Some(answer) = self.shared.offload.poll() {
            match answer {
                Answer::Files(looked) => self.files_looked_at(*looked),
                Answer::Password { token, verdict } => self.password_checked(token, verdict),
                Answer::Handshake {
                    token,
                    handshake,
                    step,
                } => {
                    // A connection that is gone meanwhile needs nothing.
                    let Some(conn) = live(&mut self.conns, token) else {
                        continue;
                    };
                    let Some(tls) = &mut conn.io.tls else {
                        continue;
                    };
                    tls.take_back(handshake);
                    let context = &self.contexts[usize::from(conn.io.listener)];
                    settle(conn, context, &mut self.shared, token, step);
                    run_later(conn, &mut self.shared, token);
                }
            }
        }
    }

    /// Begins TLS in front of the session, where the listener says so. False when none can be taken.
    pub(super) fn begin_implicit_tls(&mut self, token: Token) -> bool {
        if !self.admit_unheard(token) {
            return false;
        }
        let Some(conn) = live(&mut self.conns, token) else {
            return false;
        };
        let shared = &mut self.shared;
        let Some(mut tls) = shared.secure.announce() else {
            shared.metrics.tls.refused += 1;
            return false;
        };
        let begun = tls.begin();
        conn.io.tls = Some(tls);
        conn.io.blocked = Some(Blocked::Tls);
        conn.io.phase_at = shared.now;
        if let Err(failure) = begun {
            ended(conn, shared, token, failure);
        }
        true
    }

    /// Whether a connection may be told nothing in the clear: TLS comes first there.
    pub(super) fn must_stay_silent(&self, token: Token) -> bool {
        let Some(conn) = self.conns.get(token.key as usize) else {
            return true;
        };
        let listener = &self.shared.listeners[usize::from(conn.io.listener)];
        listener.tls == TlsMode::Implicit && !conn.session.is_secured()
    }
}

/// Moves a handshake as far as the client's octets reach. True when it is done and the session may go on.
pub(super) fn shake_hands<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    context: &Context,
    shared: &mut Shared<B, C>,
    token: Token,
) -> bool {
    // The 220 leaves in the clear, and whatever stands before it.
    let has_replies = conn.io.output_len() > 0;
    let Some(tls) = &mut conn.io.tls else {
        return false;
    };
    if tls.is_announced() {
        if has_replies {
            return false;
        }
        conn.io.phase_at = shared.now;
        if let Err(failure) = tls.begin() {
            ended(conn, shared, token, failure);
            return false;
        }
    }
    let Some(handshake) = tls.handshake_mut() else {
        return false;
    };
    if !conn.io.flags.readable {
        return false;
    }
    if shared.secure.steps_left == 0 {
        run_later(conn, shared, token);
        return false;
    }
    let room = handshake.room().min(shared.secure.cipher.len());
    let buf = &mut shared.secure.cipher[..room];
    let len = match read_socket(&mut conn.stream, buf) {
        Ok(0) => {
            conn.io.flags.readable = false;
            conn.io.flags.eof = true;
            ended(conn, shared, token, Failure::Closed);
            return false;
        }
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            conn.io.flags.readable = false;
            return false;
        }
        Err(_) => {
            conn.io.flags.readable = false;
            conn.io.flags.eof = true;
            conn.io.flags.dead = true;
            ended(conn, shared, token, Failure::Closed);
            conn.io.cause = CloseCause::PeerReset;
            return false;
        }
    };
    if len < room && !conn.io.flags.hung_up {
        conn.io.flags.readable = false;
    }
    shared.metrics.bytes_in += len as u64;
    handshake.add(&buf[..len]);
    shared.secure.steps_left -= 1;
    if handshake.is_costly() {
        hand_over(conn, shared, token);
        return false;
    }
    let step = handshake.advance();
    settle(conn, context, shared, token, step)
}

/// Gives the step that signs to the helper.
fn hand_over<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
) {
    let deadline = match &shared.secure.security {
        Some(security) => conn.io.phase_at.after(security.timeout),
        None => shared.now,
    };
    let Some(mut handshake) = conn.io.tls.as_mut().and_then(|tls| tls.send_away()) else {
        return;
    };
    let job: Job<Answer> = Box::new(move |timing| {
        let step = match timing {
            Timing::InTime => handshake.advance(),
            Timing::Late => Step::Failed(Failure::TimedOut),
        };
        Answer::Handshake {
            token,
            handshake,
            step,
        }
    });
    shared.metrics.tls.offloaded += 1;
    if shared.offload.submit(deadline, job).is_err() {
        ended(conn, shared, token, Failure::Busy);
    }
}

/// Takes over what a step came to. True when the handshake is done and the session may go on.
fn settle<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    context: &Context,
    shared: &mut Shared<B, C>,
    token: Token,
    step: Step,
) -> bool {
    let Some(tls) = &mut conn.io.tls else {
        return false;
    };
    if !tls.is_handshaking() {
        return false;
    }
    let settled = tls.settle(step, &mut shared.pool);
    if tls.has_output() && !conn.io.flags.queued_to_flush {
        conn.io.flags.queued_to_flush = true;
        shared.flush.push(token);
    }
    if let Err(failure) = settled {
        ended(conn, shared, token, failure);
        return false;
    }
    let Some(facts) = tls.facts() else {
        return false;
    };
    shared.secure.one_less();
    let counters = &mut shared.metrics.tls;
    counters.completed[usize::from(facts.version != "TLSv1.2")] += 1;
    counters.resumed += u64::from(facts.resumed);
    counters.with_client_certificate += u64::from(facts.client.is_some());
    if shared.logger.is_enabled(Class::TlsOpened) {
        let fields = [
            ("client", Value::Addr(conn.io.peer)),
            ("version", Value::Str(facts.version)),
            ("cipher", Value::Str(facts.cipher)),
            (
                "name",
                Value::Str(facts.server_name.as_deref().unwrap_or("")),
            ),
        ];
        shared.logger.line(Class::TlsOpened, &fields, shared.now);
    }
    conn.session.secured(facts.cipher);
    conn.io.active_at = shared.now;
    conn.io.blocked = None;
    if conn.session.phase() == Phase::Greeting {
        let mut out = Out {
            io: &mut conn.io,
            shared,
            token,
        };
        conn.session.start(context, &mut out);
        conn.io.blocked = waits_for(conn);
    }
    conn.io.blocked.is_none()
}

/// The handshake failed: counted, told, and the connection closes when the alert has left.
fn ended<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
    failure: Failure,
) {
    shared.secure.one_less();
    shared.metrics.tls.failed[failure as usize] += 1;
    close_failed(conn, shared, token, failure);
}

/// Closes a connection whose TLS is of no more use. Nothing but an alert leaves any more.
fn close_failed<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
    failure: Failure,
) {
    if let Some(tls) = &mut conn.io.tls {
        tls.fail();
    }
    let fields = [
        ("client", Value::Addr(conn.io.peer)),
        ("reason", Value::Str(failure.name())),
    ];
    shared.logger.line(Class::TlsFailed, &fields, shared.now);
    let mut out = Out {
        io: &mut conn.io,
        shared,
        token,
    };
    conn.session.connection_lost(&mut out);
    out.queue_to_flush();
    conn.io.cause = CloseCause::TlsFailed;
    conn.io.flags.closing = true;
    conn.io.blocked = None;
    conn.io.phase_at = shared.now;
}

/// The handshake took too long: nothing is sent any more.
pub(super) fn time_out<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
) {
    ended(conn, shared, token, Failure::TimedOut);
    conn.io.flags.dead = true;
}

/// Where plaintext goes.
pub(super) enum Target<'a> {
    Buffer(&'a mut [u8]),
    Chunk(ChunkId, core::ops::Range<usize>),
}

impl Target<'_> {
    fn len(&self) -> usize {
        match self {
            Target::Buffer(buf) => buf.len(),
            Target::Chunk(_, range) => range.len(),
        }
    }
}

/// Reads ciphertext and decrypts it into `target`, which has room for a record. `None`: no plaintext came.
///
/// No more ciphertext is taken than `target` has room for, so that each record that came whole fits: what TLS keeps
/// behind a read is the front of one record.
pub(super) fn read_tls<S: Stream, B: Backing, C: Committer>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
    mut target: Target<'_>,
    budget: &mut usize,
) -> Option<usize> {
    let limit = target.len().min(CHUNK_LARGE_BYTES);
    let may_read = conn.io.may_read();
    let tls = conn.io.tls.as_mut()?;
    if tls.is_ended() || tls.is_failed() || !may_read {
        return None;
    }
    let cipher = &mut shared.secure.cipher[..limit.max(TLS_RECORD_BYTES_MAX)];
    let mut len = tls.unpark(&mut shared.pool, cipher);
    let mut truncated = false;
    if !tls.has_waiting() && len < limit {
        match read_socket(&mut conn.stream, &mut cipher[len..limit]) {
            Ok(0) => {
                conn.io.flags.readable = false;
                conn.io.flags.eof = true;
                truncated = true;
            }
            Ok(more) => {
                if more < limit - len && !conn.io.flags.hung_up {
                    conn.io.flags.readable = false;
                }
                len += more;
                conn.io.active_at = shared.now;
                shared.metrics.bytes_in += more as u64;
                *budget = budget.saturating_sub(more);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.io.flags.readable = false;
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
    let received = match &mut target {
        Target::Buffer(buf) => tls.receive(&mut cipher[..len], buf),
        Target::Chunk(id, range) => {
            let buf = &mut shared.pool.bytes_mut(*id)[range.clone()];
            tls.receive(&mut cipher[..len], buf)
        }
    };
    let parked = match received.end {
        None => tls.park(&mut shared.pool, &cipher[received.consumed..len]),
        Some(_) => Ok(()),
    };
    if tls.has_output() && !conn.io.flags.queued_to_flush {
        conn.io.flags.queued_to_flush = true;
        shared.flush.push(token);
    }
    shared.metrics.tls.plaintext[0] += received.plaintext as u64;
    let failure = match (received.end, parked) {
        (Some(End::Failed(failure)), _) | (None, Err(failure)) => Some(failure),
        _ => None,
    };
    if let Some(failure) = failure {
        shared.metrics.tls.broken += 1;
        close_failed(conn, shared, token, failure);
        return None;
    }
    if truncated && received.end.is_none() {
        shared.metrics.tls.truncated += 1;
    }
    if received.plaintext > 0 {
        return Some(received.plaintext);
    }
    // A record without content, or the front of one: there may be more to read.
    (conn.io.flags.readable && received.end.is_none()).then_some(0)
}

/// Whether a message's last chunk can be read into, as far as TLS goes: a record has to fit.
pub(super) fn takes_direct_reads<B: Backing, C>(io: &Io, shared: &Shared<B, C>) -> bool {
    let Some(message) = shared.message(io).filter(|_| io.tls.is_some()) else {
        return true;
    };
    let pool = &shared.pool;
    // Otherwise a chunk of its own is taken.
    !message.has_direct_room(pool) || message.room(pool) >= DIRECT_ROOM_MIN
}

/// Reads, however often a signal interrupts it.
fn read_socket<S: Stream>(stream: &mut S, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Encrypts and writes what may leave: one write for everything that is due.
pub(super) fn flush_tls<S: Stream, B: Backing, C>(
    conn: &mut Conn<S>,
    shared: &mut Shared<B, C>,
    token: Token,
) {
    let Some(mut tls) = conn.io.tls.take() else {
        return;
    };
    let cipher = &mut shared.secure.cipher[..];
    let begin = tls.take_unsent(&mut shared.pool, cipher);
    let is_open = !tls.is_handshaking() && !tls.is_failed();
    let plaintext = match is_open {
        true => conn.io.sendable(&shared.pool),
        false => &[],
    };
    let wanted = plaintext.len();
    let awaits_commit = conn.io.commits_pending > 0 || conn.io.flags.large_pending;
    let is_last = conn.io.flags.closing
        && is_open
        && tls.owes_goodbye()
        && !awaits_commit
        && wanted == conn.io.output_len();
    let (len, taken) = tls.fill(plaintext, is_last, cipher, begin);
    conn.io.tls = Some(tls);
    if taken < wanted {
        // Out of the numbers a key may be used for, which takes longer than any session.
        conn.io.flags.dead = true;
        return;
    }
    conn.io.sent(&mut shared.pool, taken);
    shared.metrics.tls.plaintext[1] += taken as u64;
    if len == 0 {
        return;
    }
    let Ok(sent) = write_once(&mut conn.stream, &cipher[..len]) else {
        conn.io.cause = CloseCause::PeerReset;
        conn.io.flags.dead = true;
        return;
    };
    if sent > 0 {
        if !conn.io.flags.greeted && taken > 0 {
            conn.io.flags.greeted = true;
            shared.turn_greetings += 1;
        }
        conn.io.active_at = shared.now;
        shared.metrics.bytes_out += sent as u64;
    }
    if sent < len {
        if let Some(tls) = &mut conn.io.tls
            && tls.unsent(&mut shared.pool, &cipher[sent..len]).is_err()
        {
            conn.io.flags.dead = true;
        }
        conn.io.flags.write_blocked = true;
        if !conn.io.flags.wants_writable {
            conn.io.flags.wants_writable = true;
            if conn.stream.want_writable(token).is_err() {
                conn.io.flags.dead = true;
            }
        }
    }
}
