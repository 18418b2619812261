//! The limits on clients, applied to connections: what is counted when, which reply a refusal is, what is held back for
//! how long, and when stress narrows it all. The counting itself is pure (`policy::clients`, `policy::stress`).
//!
//! A connection of a listener without limits, or of a client that is exempt, is never looked at here.

use std::io::ErrorKind;
use std::time::Duration;

use super::listener::TlsMode;
use super::out::Out;
use super::{Server, Shared, live, run_later};
use crate::conn::{Io, Stream, Token};
use crate::limits::{CHUNK_LARGE_BYTES, CHUNK_SMALL_BYTES, SESSION_ERRORS_MAX};
use crate::logger::{Class, Value};
use crate::metrics::{CloseCause, Limited, StressCause};
use crate::policy::clients::{ClientTable, Limit, Rate, Refused};
use crate::policy::stress::{Change, Load, Stress};
use crate::ringlog::backing::Backing;
use crate::server::storage::Committer;
use crate::smtp::reply::Reply;
use crate::smtp::session::Role;
use crate::smtp::sink::{Blocked, Question, Verdict};

/// Sessions whose refusals are held back may take this part of the pool at most; others get theirs at once.
const TARPIT_POOL_SHARE: u64 = 16;

/// The limits of this server, and what clients have used of them.
pub struct Limiter {
    /// What each client has used.
    pub clients: ClientTable,
    /// Sinks have limits too; otherwise only listeners with another role.
    pub on_sinks: bool,
    /// Errors of a session.
    pub session_errors: Limit,
    /// Commands of a session that bring no mail, between two messages.
    pub session_idle_commands: Limit,
    /// How long a refusal is held back; zero for not at all, and never under stress.
    pub tarpit: Duration,
    /// Refusals of a session that are not held back.
    pub tarpit_after: u32,
    /// How long the greeting is held back; zero for not at all, and never under stress.
    pub greeting_delay: Duration,
    /// Whether there is stress.
    pub stress: Stress,
    /// Sessions whose refusals are held back now.
    tarpitted: u32,
}

impl Limiter {
    /// Limits of nothing but what `clients` limits.
    pub fn new(clients: ClientTable) -> Limiter {
        Limiter {
            clients,
            on_sinks: false,
            session_errors: Limit::default(),
            session_idle_commands: Limit::default(),
            tarpit: Duration::ZERO,
            tarpit_after: 0,
            greeting_delay: Duration::ZERO,
            stress: Stress::default(),
            tarpitted: 0,
        }
    }

    /// Sessions whose refusals are held back now.
    pub fn tarpitted(&self) -> u32 {
        self.tarpitted
    }
}

/// The reply to who is beyond a limit.
fn reply_to(limited: Limited) -> Reply {
    match limited {
        Limited::Sessions => Reply::ClientSessions,
        Limited::Connections => Reply::ClientConnections,
        Limited::Messages => Reply::ClientMessages,
        Limited::Recipients => Reply::ClientRecipients,
        Limited::Bytes => Reply::ClientBytes,
        Limited::Handshakes => Reply::ClientHandshakes,
    }
}

impl<B: Backing, C> Shared<B, C> {
    /// Counts a connection for its client. `Some`: the client may not have one more.
    pub(super) fn admit_client(&mut self, io: &mut Io) -> Option<Reply> {
        self.forget_client(io);
        let role = self.listeners[usize::from(io.listener)].role;
        let limiter = self.limiter.as_mut()?;
        let client = io.client().ip();
        let is_exempt = (role == Role::Sink && !limiter.on_sinks)
            || io.flags.is_health_check
            || self.rules.unlimited.contains(client);
        if is_exempt {
            return None;
        }
        match limiter.clients.connect(client, self.now) {
            Ok(places) => {
                io.places = places;
                io.uncounted_bytes = 0;
                io.flags.is_limited = true;
                io.flags.is_guarded = true;
                None
            }
            Err(refused) => Some(self.count_refused(refused)),
        }
    }

    /// Ends what [`Shared::admit_client`] began.
    pub(super) fn forget_client(&mut self, io: &mut Io) {
        if !io.flags.is_limited {
            return;
        }
        self.count_bytes(io);
        self.let_go(io);
        io.flags.is_limited = false;
        if let Some(limiter) = &mut self.limiter {
            limiter.clients.disconnect(io.places);
        }
    }

    /// Whether this client may go on with what it asks for. `None`: it may.
    pub(super) fn admit_question(&mut self, io: &mut Io, question: &Question<'_>) -> Option<Reply> {
        let (places, now) = (io.places, self.now);
        let is_mail = matches!(question, Question::Mail { .. });
        if is_mail {
            self.count_bytes(io);
        }
        let clients = &mut self.limiter.as_mut()?.clients;
        let admitted = match question {
            // The octets that came so far; what a message will have, nobody knows.
            Question::Mail { .. } => clients
                .check(places, Rate::Bytes, now)
                .and_then(|()| clients.admit(places, Rate::Messages, 1, now)),
            Question::Rcpt { .. } => clients.admit(places, Rate::Recipients, 1, now),
            _ => Ok(()),
        };
        let refused = admitted.err()?;
        Some(self.count_refused(refused))
    }

    /// Counts a TLS handshake that the client asks for. `Some`: it may not have one more.
    pub(super) fn admit_handshake(&mut self, io: &Io) -> Option<Reply> {
        if !io.flags.is_limited {
            return None;
        }
        let clients = &mut self.limiter.as_mut()?.clients;
        let refused = clients
            .admit(io.places, Rate::Handshakes, 1, self.now)
            .err()?;
        Some(self.count_refused(refused))
    }

    fn count_refused(&mut self, refused: Refused) -> Reply {
        self.metrics.limited[refused.limited as usize][refused.scope as usize] += 1;
        reply_to(refused.limited)
    }

    fn count_bytes(&mut self, io: &mut Io) {
        let bytes = std::mem::take(&mut io.uncounted_bytes);
        if let Some(limiter) = &mut self.limiter {
            limiter
                .clients
                .charge(io.places, Rate::Bytes, bytes, self.now);
        }
    }

    /// Errors after which a session ends.
    pub(super) fn errors_max(&self, io: &Io) -> u32 {
        let limiter = self.limiter.as_ref().filter(|_| io.flags.is_limited);
        limiter
            .and_then(|limiter| limiter.session_errors.value(limiter.stress.is_on()))
            .and_then(|errors| u32::try_from(errors).ok())
            .unwrap_or(SESSION_ERRORS_MAX)
    }

    /// Commands without mail after which a session ends.
    pub(super) fn idle_commands_max(&self, io: &Io) -> Option<u32> {
        let limiter = self.limiter.as_ref().filter(|_| io.flags.is_limited)?;
        let commands = limiter
            .session_idle_commands
            .value(limiter.stress.is_on())?;
        Some(u32::try_from(commands).unwrap_or(u32::MAX))
    }

    /// Holds a refusal back that stands at this position of the stream of replies, where there have been some.
    pub(super) fn tarpit(&mut self, io: &mut Io, from: u32, token: Token) {
        let refusals = io.note_refusal();
        let Some(limiter) = &mut self.limiter else {
            return;
        };
        let chunks = (CHUNK_LARGE_BYTES + CHUNK_SMALL_BYTES) as u64;
        let most = self.pool.total_bytes() / TARPIT_POOL_SHARE / chunks;
        if limiter.tarpit.is_zero()
            || refusals <= limiter.tarpit_after
            || limiter.stress.is_on()
            || self.draining
            || io.is_held_back()
            || u64::from(limiter.tarpitted) >= most
        {
            return;
        }
        limiter.tarpitted += 1;
        self.metrics.tarpitted += 1;
        io.hold_back(Some(from), self.now.after(limiter.tarpit));
        self.held_back.push(token);
    }

    /// Holds the greeting back, where that is wanted. Whether it is.
    pub(super) fn delay_greeting(&mut self, io: &mut Io, token: Token) -> bool {
        let listener = &self.listeners[usize::from(io.listener)];
        let Some(limiter) = &self.limiter else {
            return false;
        };
        // With implicit TLS the client has spoken already: its handshake came first.
        if !io.flags.is_limited
            || limiter.greeting_delay.is_zero()
            || limiter.stress.is_on()
            || listener.tls == TlsMode::Implicit
        {
            return false;
        }
        io.flags.greeting_is_held = true;
        io.hold_back(None, self.now.after(limiter.greeting_delay));
        self.held_back.push(token);
        true
    }

    /// Ends what is held back of this connection.
    pub(super) fn let_go(&mut self, io: &mut Io) {
        if !io.is_held_back() {
            return;
        }
        io.let_go();
        if !std::mem::take(&mut io.flags.greeting_is_held)
            && let Some(limiter) = &mut self.limiter
        {
            limiter.tarpitted = limiter.tarpitted.saturating_sub(1);
        }
    }
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// Looks whether there is stress; called once a turn.
    pub(super) fn look_for_stress(&mut self) {
        let shared = &mut self.shared;
        let Some(limiter) = &mut shared.limiter else {
            return;
        };
        let pool = &shared.pool;
        let load = Load {
            sessions: self.conns.len(),
            sessions_max: shared.options.sessions_max,
            pool_free_bytes: pool.free_bytes().saturating_sub(pool.reserve_bytes()),
            pool_bytes: pool.total_bytes(),
            sync_ns: shared
                .sync_since
                .map_or(0, |since| shared.now.since_ns(since)),
        };
        let Some(change) = limiter.stress.look(&load, shared.now) else {
            return;
        };
        limiter.clients.set_stress(limiter.stress.is_on());
        let sessions = ("sessions", Value::Number(load.sessions as u64));
        match change {
            Change::Began(cause) => {
                shared.metrics.stress_began[cause as usize] += 1;
                let fields = [
                    ("cause", Value::Str(StressCause::NAMES[cause as usize])),
                    sessions,
                ];
                shared.logger.line(Class::Stress, &fields, shared.now);
            }
            Change::Ended => shared
                .logger
                .line(Class::StressOver, &[sessions], shared.now),
        }
    }

    /// Whether a connection that begins with a TLS handshake may have it: access rules and limits are asked before it
    /// costs anything. Who may not is closed, because nothing can be said to him.
    pub(super) fn admit_unheard(&mut self, token: Token) -> bool {
        let Some(conn) = live(&mut self.conns, token) else {
            return false;
        };
        let (io, shared) = (&mut conn.io, &mut self.shared);
        let refusal = if !shared.rules.may_connect(io.peer.ip()) {
            Some(Reply::AccessDenied)
        } else if let Some(refusal) = shared.admit_client(io) {
            Some(refusal)
        } else {
            io.flags.is_admitted = true;
            shared.admit_handshake(io)
        };
        let Some(reply) = refusal else {
            return true;
        };
        // It is not sent; the counters and the log tell why.
        shared.metrics.reply(reply as usize);
        shared.log_refusal(io, reply);
        false
    }

    /// Counts a TLS handshake that this connection asks for. `Some`: its client may not have one more; STARTTLS gets
    /// this reply, a connection that begins with the handshake is closed.
    pub fn admit_handshake(&mut self, token: Token) -> Option<Reply> {
        let conn = live(&mut self.conns, token)?;
        self.shared.admit_handshake(&conn.io)
    }

    /// Sets the timers of what was held back in this turn.
    pub(super) fn link_held_back(&mut self) {
        while let Some(token) = self.shared.held_back.pop() {
            if let Some(conn) = live(&mut self.conns, token)
                && let Some(until) = conn.io.held_until()
            {
                self.wheel.link(token.key as usize, until);
            }
        }
    }

    /// The time is over for which something was held back.
    pub(super) fn end_holding_back(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let shared = &mut self.shared;
        let is_greeting = conn.io.flags.greeting_is_held;
        shared.let_go(&mut conn.io);
        // The silence meanwhile was ours.
        conn.io.active_at = shared.now;
        conn.io.phase_at = shared.now;
        if is_greeting {
            return self.answer(token, Verdict::Accept);
        }
        let mut out = Out {
            io: &mut conn.io,
            shared,
            token,
        };
        out.queue_to_flush();
        if conn.io.blocked == Some(Blocked::Replies) {
            conn.io.blocked = None;
        }
        run_later(conn, &mut self.shared, token);
    }

    /// Something came while the greeting was held back: octets, or the end. A client has to wait for its greeting
    /// (RFC 5321 3.1); who does not is a program that reads no replies.
    pub(super) fn hear_early(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let peeked = loop {
            match conn.stream.peek(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match peeked {
            Err(error) if error.kind() == ErrorKind::WouldBlock => conn.io.flags.readable = false,
            Ok(1..) => {
                let shared = &mut self.shared;
                shared.metrics.early_talkers += 1;
                shared.let_go(&mut conn.io);
                self.answer(token, Verdict::RefuseAndClose(Reply::EarlyTalker));
            }
            gone => {
                conn.io.cause = match gone {
                    Ok(_) => CloseCause::PeerClosed,
                    Err(_) => CloseCause::PeerReset,
                };
                self.remove(token.key as usize);
            }
        }
    }

    /// Lets everything go that is held back: the server stops.
    pub(super) fn let_all_go(&mut self) {
        for (_, conn) in &mut self.conns {
            let was_greeting = conn.io.flags.greeting_is_held;
            self.shared.let_go(&mut conn.io);
            if !was_greeting && conn.io.blocked == Some(Blocked::Replies) {
                conn.io.blocked = None;
            }
        }
    }
}
