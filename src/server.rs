//! The server: sessions, their buffers, the log, and the turn that moves them. It knows no sockets, files or
//! clocks: streams, storage and time come in from outside, so that the same code runs under the reactor and
//! under the simulator.
//!
//! One turn (the caller drives it, see [`crate::net::reactor`]):
//! 1. [`Server::begin_turn`]: the time, finished syncs, replies of what became durable;
//! 2. [`Server::accept`] and [`Server::ready`] for each event;
//! 3. [`Server::end_turn`]: run queue, timers, one vectored write of all messages that ended in this turn, the
//!    next sync, one write per connection.
//!
//! Budget of a message on a kept connection, in steady state: no allocation, no system call of its own but the
//! reads and the writes of its replies (one per round trip), a share of one `pwritev` and of one `fdatasync`.

pub mod auth;
pub mod control;
mod growing;
pub mod limiter;
pub mod listener;
mod out;
mod prefixes;
mod proxy;
mod secure;
mod storage;
mod transfer;
pub mod watch;

use core::net::SocketAddr;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

pub use self::auth::{Accounts, UsersSource};
use self::growing::Growing;
use self::limiter::Limiter;
pub use self::listener::Listener;
use self::listener::TlsMode;
use self::out::Out;
use self::prefixes::Prefixes;
use self::proxy::Expected;
pub use self::secure::{Answer, Security};
use self::secure::{Secure, shake_hands};
use self::storage::{Answered, Commit, FragmentWrite, Large, Pending, Queued};
pub use self::storage::{Committer, Storage};
use self::transfer::{discard_input, flush_one, read_and_receive, read_in_place, reads_in_place};
use self::watch::Watch;
use crate::buffer::{Pool, Urgency};
use crate::clock::{Instant, nanos};
use crate::conn::{Conn, Io, MessageKey, Stream, Token};
use crate::ctl::Attachments;
use crate::ip_prefix::IpPrefix;
use crate::limits::{CHUNK_LARGE_BYTES, ENVELOPE_BYTES_MAX, OFFLOAD_JOBS_MAX, PASSWORD_CHECKS_MAX};
use crate::logger::{Class, Logger, Value};
use crate::message::{Front, Message};
use crate::metrics::{CloseCause, Metrics};
use crate::offload::Offload;
use crate::policy::rules::Rules;
use crate::policy::{Policy, accept_all};
use crate::ringlog::backing::Backing;
use crate::ringlog::writer::{FullPolicy, Log};
use crate::smtp::reply::Reply;
use crate::smtp::session::{Context, Phase, Role, Session, SpareWork};
use crate::smtp::sink::{Blocked, Verdict};
use crate::smtp::trace::Date;
use crate::sys::memory::Pages;
use crate::timer_wheel::TimerWheel;

/// Bytes one connection may have read in one turn; the rest of the loop is protected by it.
const TURN_READ_BYTES: usize = 256 * 1024;
/// Connections taken off the run queue in one turn.
const TURN_RUNS: usize = 4_096;
/// A client prefix holds at most the pool divided by this.
const PREFIX_SHARE: u64 = 4;
/// Connections whose replies wait for the end of the turn, at most: each holds a chunk of the pool until then, and as
/// many again are warm in the processor's cache.
const TURN_FLUSHES: usize = 128;
/// What an event counts besides its octets, as if it were so many octets read.
const EVENT_WORK_BYTES: u64 = 4 * 1024;
/// Work of a turn, counted so, after which the storage is looked at: 1,024 events or 4 MiB. Messages that have ended
/// don't wait for the rest of a turn that is longer than that, and a crowd of 1,000 has one write and one sync a turn:
/// a look every 80 events had three times as many syncs there, and a tenth more CPU a message.
const TURN_LOOK_BYTES: u64 = 1_024 * EVENT_WORK_BYTES;
/// Groups of messages answered in one turn whose times are counted.
const TURN_ANSWERED: usize = 1_024;
/// Connections woken in one turn because chunks became free.
const TURN_WAKES: usize = 64;
/// Timers are looked at no more often than this for the sake of the data rate.
const TIMER_STEP_MIN: Duration = Duration::from_secs(1);
/// A sync that takes longer is logged.
const SYNC_SLOW_NS: u64 = 1_000_000_000;
/// Bytes read at once into the scratch buffer.
const SCRATCH_BYTES: usize = CHUNK_LARGE_BYTES;
/// Chunks that always stay for replies and for input that waits, bytes.
const POOL_RESERVE_MIN_BYTES: u64 = 4 * CHUNK_LARGE_BYTES as u64;

/// What the operator chose; see `docs/operations.md`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sessions at the same time.
    pub sessions_max: usize,
    /// Size of the chunk pool, bytes.
    pub pool_bytes: u64,
    /// Largest message, bytes.
    pub message_bytes_max: u64,
    /// Accept and forget: messages are answered and thrown away.
    pub discard: bool,
    /// Shard number in message ids.
    pub shard: u16,
    /// Silence before the first EHLO or HELO.
    pub timeout_greeting: Duration,
    /// Silence between commands (RFC 5321 4.5.3.2.7: at least 5 minutes).
    pub timeout_command: Duration,
    /// Silence inside DATA or a BDAT chunk.
    pub timeout_data: Duration,
    /// How long a client may leave its replies unread.
    pub timeout_reply: Duration,
    /// Time from the first octet of a command line to its end.
    pub request_deadline: Duration,
    /// Bytes a second that message data must reach on average after `data_grace`.
    pub data_rate_min: u64,
    /// Time before `data_rate_min` counts.
    pub data_grace: Duration,
    /// How long a message may wait for a chunk before it is refused with 452.
    pub pool_wait_max: Duration,
    /// How long a closing connection may take to take its last reply and to close.
    pub linger: Duration,
    /// A sync that takes longer turns health red and refuses new mail.
    pub sync_stall: Duration,
    /// Secret number that keys the table of client prefixes.
    pub prefix_key: u64,
}

/// Everything but the connections.
pub struct Shared<B: Backing, C> {
    /// What the operator chose.
    pub options: Options,
    /// One for each listener.
    pub listeners: Vec<Listener>,
    /// Networks whose PROXY headers are believed.
    pub proxy_from: Vec<IpPrefix>,
    /// Networks whose XCLIENT is believed.
    pub xclient_from: Vec<IpPrefix>,
    /// Networks whose XFORWARD is believed.
    pub xforward_from: Vec<IpPrefix>,
    /// Who may authenticate.
    pub accounts: Accounts,
    /// Where they are read from again.
    pub users_source: Option<UsersSource>,
    /// Whose passwords the helper has, and the bucket of a client that limits hold for; see `prefixes`.
    passwords: Vec<(Token, Option<u16>)>,
    /// Work that is too slow for the loop, and its answers.
    pub offload: Offload<Answer>,
    secure: Secure,
    /// Looks at files that may have changed.
    watch: Watch,
    /// Who may connect, and for whom mail is taken.
    pub rules: Arc<Rules>,
    /// What clients may use; `None`: nothing is limited.
    pub limiter: Option<Box<Limiter>>,
    /// Connections of which something was held back in this turn.
    held_back: Vec<Token>,
    /// Decides about what sessions ask, after the server's own state and the rules have had nothing against it.
    pub policy: Policy,
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Where refusals and events are written; never blocks.
    pub logger: Logger,
    /// Consumers that a process is attached to.
    pub attachments: Attachments,
    /// `None` when messages are thrown away.
    pub storage: Option<Storage<B, C>>,
    /// The chunk pool.
    pub pool: Pool,
    /// What the messages of each listener begin with, as it was last.
    fronts: Vec<Front>,
    /// The date that trace fields had last.
    trace_date: Date,
    /// Messages that are being collected.
    messages: Slab<Message>,
    /// What sessions without a message under way have given back for those that begin one.
    spare_work: SpareWork,
    scratch: Pages,
    batch: Vec<Queued>,
    /// Complete messages that wait for their place: large ones, and all while the ring is being freed.
    large: VecDeque<Large>,
    /// The message in front waits for space that the next sync frees.
    space_wanted: bool,
    /// Records of large messages that are written in this turn.
    fragments: Vec<FragmentWrite>,
    /// Large messages whose last record is written in this turn.
    written_large: Vec<Message>,
    pending: VecDeque<Pending>,
    /// Entries taken off the front of `pending` so far, modulo 2^32.
    pending_settled: u32,
    parts: Vec<IoSlice<'static>>,
    flush: Vec<Token>,
    run: VecDeque<Token>,
    pool_waiters: VecDeque<Token>,
    growing: Growing,
    prefixes: Prefixes,
    draining: bool,
    failed_at: Option<Instant>,
    sync_since: Option<Instant>,
    pool_low: bool,
    ring_full: bool,
    /// Replies queued in this turn, for the histogram of command times.
    turn_replies: u64,
    /// Greetings sent in this turn.
    turn_greetings: u64,
    /// Events handled since the storage was looked at, and the count of octets read then.
    events_since_look: u64,
    bytes_in_at_look: u64,
    /// Messages that got their 250 in this turn.
    turn_answered: Vec<Answered>,
    now: Instant,
    wall_ns: u64,
}

/// How a server stands, for health answers and the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes mail.
    Ready,
    /// Takes connections, refuses mail for now: storage is full or slow.
    Refusing,
    /// Stops.
    Draining,
    /// Storage failed; nothing is promised any more.
    Failed,
}

impl<B: Backing, C> Shared<B, C> {
    /// Whether storage failed.
    pub fn is_failed(&self) -> bool {
        self.failed_at.is_some()
    }

    /// When storage failed.
    pub fn failed_at(&self) -> Option<Instant> {
        self.failed_at
    }

    /// Whether the server stops.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether no mail is taken because storage failed or does not answer.
    fn refuses_mail(&self) -> bool {
        let log_failed = self
            .storage
            .as_ref()
            .is_some_and(|storage| storage.log.failed().is_some());
        self.is_failed()
            || log_failed
            || self
                .sync_since
                .is_some_and(|since| self.now.since_ns(since) > nanos(self.options.sync_stall))
    }

    /// Whether ring and pool would take a message of `size` bytes now. A declared size is no reservation.
    fn admits(&mut self, size: u64) -> bool {
        let total = self.pool.total_bytes();
        let free = self.pool.free_bytes();
        // High-water mark with 5 % hysteresis, beyond what is reserved for messages that already grow.
        let spared = self.pool.reserve_bytes();
        let was_low = self.pool_low;
        self.pool_low = free < spared + if was_low { total / 10 } else { total / 20 };
        if self.pool_low && !was_low {
            let fields = [
                ("free_bytes", Value::Number(free)),
                ("pool_bytes", Value::Number(total)),
            ];
            self.logger.line(Class::PoolLow, &fields, self.now);
        }
        if self.pool_low {
            self.metrics.pool_low_events += 1;
            return false;
        }
        let Some(storage) = &self.storage else {
            return true;
        };
        let was_full = self.ring_full;
        self.ring_full = !ring_takes(&storage.log, size);
        if self.ring_full && !was_full {
            let holder = storage.log.holder();
            let fields = [
                (
                    "held_by",
                    Value::Str(holder.map_or("", |consumer| consumer.name.as_str())),
                ),
                ("free_bytes", Value::Number(storage.log.free_bytes())),
            ];
            self.logger.line(Class::RingFull, &fields, self.now);
        }
        !self.ring_full
    }

    /// Whether messages wait for their place in the log and the next turn can give it to them. While a sync is
    /// under way that may free space, its end starts that turn.
    fn can_append(&self) -> bool {
        let waits_for_sync = self.space_wanted
            && self
                .storage
                .as_ref()
                .is_some_and(|storage| storage.log.sync_in_flight());
        !self.large.is_empty() && !waits_for_sync
    }

    /// How the server stands.
    pub fn health(&self) -> Health {
        if self.is_failed() {
            Health::Failed
        } else if self.draining {
            Health::Draining
        } else if self.refuses_mail()
            || self
                .storage
                .as_ref()
                .is_some_and(|storage| !ring_takes(&storage.log, 0))
        {
            Health::Refusing
        } else {
            Health::Ready
        }
    }

    fn log_refusal(&mut self, io: &Io, reply: Reply) {
        let row = reply.row();
        let fields = [
            ("client", Value::Addr(io.client())),
            ("code", Value::Number(u64::from(row.code))),
            ("reason", Value::Str(row.name)),
        ];
        self.logger.line(Class::Refused, &fields, self.now);
    }

    /// Notes that a message got its 250, for [`Shared::record_turn`]. Bounded: who never calls that loses values, not
    /// memory. Messages that ended in one turn are mostly answered in one, and are counted together.
    fn note_answered(&mut self, ended_at: Instant, commit: Commit) {
        if let Some(last) = self.turn_answered.last_mut()
            && last.ended_at == ended_at
            && last.commit == commit
        {
            last.count += 1;
        } else if self.turn_answered.len() < self.turn_answered.capacity() {
            self.turn_answered.push(Answered {
                ended_at,
                commit,
                count: 1,
            });
        }
    }

    /// Records what only the end of the turn tells: its replies left `spent_ns` after it began. The server reads
    /// no clock, so a time within a turn is taken as the whole of it.
    pub fn record_turn(&mut self, spent_ns: u64) {
        use crate::metrics::Phase;
        let metrics = &mut self.metrics;
        metrics.record(Phase::Turn, spent_ns);
        metrics.record_many(
            Phase::Command,
            spent_ns,
            std::mem::take(&mut self.turn_replies),
        );
        metrics.record_many(
            Phase::Greeting,
            spent_ns,
            std::mem::take(&mut self.turn_greetings),
        );
        let end = Instant(self.now.0.saturating_add(spent_ns));
        for answered in self.turn_answered.drain(..) {
            let Answered {
                ended_at,
                commit,
                count,
            } = answered;
            metrics.record_many(Phase::EndOfData, end.since_ns(ended_at), count);
            if commit != Commit::Discarded {
                metrics.record_many(Phase::CommitWait, self.now.since_ns(ended_at), count);
            }
            if let Commit::Synced { began, ended } = commit {
                metrics.record_many(Phase::SyncWait, began.since_ns(ended_at), count);
                metrics.record_many(Phase::Release, end.since_ns(ended), count);
            }
        }
    }

    fn log_end(&mut self, io: &Io) {
        let class = match io.cause {
            CloseCause::Quit | CloseCause::PeerClosed | CloseCause::Draining => Class::Closed,
            _ => Class::Cut,
        };
        if self.logger.is_enabled(class) {
            let fields = [
                ("client", Value::Addr(io.client())),
                ("reason", Value::Str(CloseCause::NAMES[io.cause as usize])),
                (
                    "open_ms",
                    Value::Number(self.now.since_ns(io.accepted_at) / 1_000_000),
                ),
            ];
            self.logger.line(class, &fields, self.now);
        }
    }

    /// The message that this connection collects.
    fn message(&self, io: &Io) -> Option<&Message> {
        self.messages.get(io.message?.place())
    }

    /// Takes it from the connection.
    fn take_message(&mut self, io: &mut Io) -> Option<Message> {
        self.messages.try_remove(io.message.take()?.place())
    }

    /// Gives it one.
    fn put_message(&mut self, io: &mut Io, message: Message) {
        io.message = Some(MessageKey::new(self.messages.insert(message)));
    }

    /// Counts the large chunks of this connection's message for its prefix.
    fn count_chunks(&mut self, io: &mut Io, key: u32) {
        let now = self.message(io).map_or(0, Message::large_chunks);
        if now != io.chunks_counted {
            self.prefixes
                .changed(io.prefix, key, io.chunks_counted, now);
            io.chunks_counted = now;
        }
    }

    fn start_growing(&mut self, io: &mut Io, key: u32) {
        if !io.flags.holds_growth {
            io.flags.holds_growth = true;
            self.growing.push(key);
        }
    }

    fn stop_growing(&mut self, io: &mut Io, key: u32) {
        if io.flags.holds_growth {
            io.flags.holds_growth = false;
            self.growing.remove(key);
        }
    }
}

/// Whether the ring takes a message of `size` bytes. Where nobody holds anything, its space is only a sync away:
/// a message may have to wait for that, none is refused.
pub fn ring_takes<B: Backing>(log: &Log<B>, size: u64) -> bool {
    let frees_itself = log.holder().is_none() && log.settings().full != FullPolicy::Defer;
    log.failed().is_none() && (frees_itself || log.accepts(size))
}

/// The server.
pub struct Server<S, B: Backing, C> {
    conns: Slab<Conn<S>>,
    /// What the sessions of each listener share.
    contexts: Vec<Context>,
    /// Everything but the connections.
    pub shared: Shared<B, C>,
    wheel: TimerWheel,
    generation: u32,
    due: Vec<usize>,
    /// Longest time a timer goes unseen: no phase has a shorter limit.
    timer_step: Duration,
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// A server without connections. Everything it will need is allocated here.
    pub fn new(
        options: Options,
        contexts: Vec<Context>,
        listeners: Vec<Listener>,
        storage: Option<Storage<B, C>>,
        metrics: Metrics,
        logger: Logger,
        now: Instant,
    ) -> Server<S, B, C> {
        let reserve = if options.discard {
            POOL_RESERVE_MIN_BYTES
        } else {
            POOL_RESERVE_MIN_BYTES + options.message_bytes_max + ENVELOPE_BYTES_MAX as u64
        };
        let timer_step = [
            options.timeout_greeting,
            options.timeout_command,
            options.timeout_data,
            options.timeout_reply,
            options.request_deadline,
            options.data_grace.max(TIMER_STEP_MIN),
            options.pool_wait_max,
            options.linger,
        ]
        .into_iter()
        .min()
        .unwrap_or(options.linger);
        let chunks = options.pool_bytes / CHUNK_LARGE_BYTES as u64 / PREFIX_SHARE;
        let prefix_chunks = u32::try_from(chunks).unwrap_or(u32::MAX).max(1);
        let sessions = options.sessions_max;
        Server {
            conns: Slab::with_capacity(sessions),
            contexts,
            wheel: TimerWheel::new(sessions, now),
            generation: 0,
            due: Vec::with_capacity(256),
            timer_step,
            shared: Shared {
                pool: Pool::new(options.pool_bytes, reserve),
                fronts: listeners
                    .iter()
                    .map(|listener| Front::new(listener.address, listener.role.name()))
                    .collect(),
                trace_date: Date::at(0),
                messages: Slab::with_capacity(sessions),
                spare_work: SpareWork::with_capacity(sessions),
                listeners,
                proxy_from: Vec::new(),
                xclient_from: Vec::new(),
                xforward_from: Vec::new(),
                accounts: Accounts::Anybody,
                users_source: None,
                passwords: Vec::with_capacity(PASSWORD_CHECKS_MAX),
                offload: Offload::here(OFFLOAD_JOBS_MAX),
                secure: Secure::none(),
                watch: Watch::default(),
                rules: Arc::new(Rules::default()),
                limiter: None,
                held_back: Vec::with_capacity(64),
                policy: accept_all,
                metrics,
                logger,
                storage,
                attachments: Attachments::default(),
                scratch: Pages::zeroed(SCRATCH_BYTES),
                batch: Vec::with_capacity(1_024),
                fragments: Vec::with_capacity(64),
                written_large: Vec::with_capacity(64),
                large: VecDeque::with_capacity(64),
                space_wanted: false,
                pending: VecDeque::with_capacity(4_096),
                pending_settled: 0,
                parts: Vec::with_capacity(2_048),
                flush: Vec::with_capacity(1_024),
                run: VecDeque::with_capacity(1_024),
                pool_waiters: VecDeque::with_capacity(64),
                growing: Growing::new(),
                prefixes: Prefixes::new(prefix_chunks, options.prefix_key),
                draining: false,
                failed_at: None,
                sync_since: None,
                pool_low: false,
                ring_full: false,
                turn_replies: 0,
                turn_greetings: 0,
                events_since_look: 0,
                bytes_in_at_look: 0,
                turn_answered: Vec::with_capacity(TURN_ANSWERED),
                now,
                wall_ns: 0,
                options,
            },
        }
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Whether `accept` would take one more.
    pub fn has_place(&self) -> bool {
        self.conns.len() < self.shared.options.sessions_max
    }

    /// Sessions in each phase, in the order of `Phase`.
    pub fn sessions_by_phase(&self) -> [u64; Phase::COUNT] {
        let mut counts = [0; Phase::COUNT];
        for (_, conn) in &self.conns {
            counts[conn.session.phase() as usize] += 1;
        }
        counts
    }

    /// Starts a turn: takes the time, settles finished syncs and releases the replies of what is durable now.
    pub fn begin_turn(&mut self, now: Instant, wall_ns: u64) {
        self.shared.now = now;
        self.shared.wall_ns = wall_ns;
        if let Some(storage) = &mut self.shared.storage {
            storage.log.begin_turn(wall_ns);
        }
        self.poll_commits();
        self.look_for_stress();
        // Disk and parser overlap: the next sync runs while this turn's input is read. So do the clients: what is
        // released leaves before anything is read.
        self.submit_sync();
        self.flush_replies();
        self.count_look();
        self.take_answers();
    }

    /// Takes a connection. `make` gets the token under which its events will come. A server that is full
    /// answers nothing here: the caller refuses with [`Reply::TooManySessions`].
    ///
    /// # Errors
    /// Whatever `make` says; then nothing has changed.
    pub fn accept(
        &mut self,
        peer: SocketAddr,
        listener: u8,
        make: impl FnOnce(Token) -> io::Result<S>,
    ) -> io::Result<Token> {
        let now = self.shared.now;
        let entry = self.conns.vacant_entry();
        let key = entry.key();
        self.generation = self.generation.wrapping_add(1) & Token::GENERATION_MAX;
        let token = Token {
            key: key as u32,
            generation: self.generation,
        };
        let stream = make(token)?;
        let conn = entry.insert(Conn {
            stream,
            session: Session::new(peer.ip()),
            io: Io::new(peer, listener, self.generation, now),
        });
        let known = &self.shared.listeners[usize::from(listener)];
        let mut step = self.timer_step;
        match proxy::expected(known, &self.shared.proxy_from, &conn.io) {
            Expected::No => self.begin(token),
            Expected::Awaited => {
                conn.io.flags.awaits_proxy = true;
                step = step.min(proxy::patience(known));
            }
            Expected::NotFromHere => {
                self.count_connection(token);
                self.say_goodbye(token, Reply::ProxyNeeded, CloseCause::Refused);
            }
        }
        self.wheel.link(key, now.after(step));
        Ok(token)
    }

    /// Begins the session: the client's address is known now.
    fn begin(&mut self, token: Token) {
        self.count_connection(token);
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        conn.io.flags.awaits_proxy = false;
        let role = self.shared.listeners[usize::from(conn.io.listener)].role;
        conn.io.flags.is_guarded = role != Role::Sink;
        conn.session = Session::new(conn.io.peer.ip());
        if self.shared.listeners[usize::from(conn.io.listener)].tls == TlsMode::Implicit {
            if !self.begin_implicit_tls(token) {
                self.drop_unheard(token);
            }
            return;
        }
        let mut out = Out {
            io: &mut conn.io,
            shared: &mut self.shared,
            token,
        };
        let context = &self.contexts[usize::from(out.io.listener)];
        conn.session.start(context, &mut out);
        conn.io.blocked = waits_for(conn);
    }

    /// Counts and logs a connection whose client is known.
    fn count_connection(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let shared = &mut self.shared;
        conn.io.prefix = shared.prefixes.bucket(conn.io.peer.ip());
        if conn.io.flags.is_health_check {
            return;
        }
        shared.metrics.connections_accepted += 1;
        if shared.logger.is_enabled(Class::Connected) {
            let fields = [("client", Value::Addr(conn.io.peer))];
            shared.logger.line(Class::Connected, &fields, shared.now);
        }
    }

    /// Ends a connection to which nothing can be said.
    fn drop_unheard(&mut self, token: Token) {
        if let Some(conn) = live(&mut self.conns, token) {
            conn.io.cause = CloseCause::Refused;
            conn.io.flags.dead = true;
            run_later(conn, &mut self.shared, token);
        }
    }

    /// Ends a session for the server's own reason.
    fn say_goodbye(&mut self, token: Token, reply: Reply, cause: CloseCause) {
        if self.must_stay_silent(token) {
            return self.drop_unheard(token);
        }
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let mut out = Out {
            io: &mut conn.io,
            shared: &mut self.shared,
            token,
        };
        conn.session.timed_out(reply, &mut out);
        conn.io.cause = cause;
    }

    /// An event: the stream may be readable or writable, or has hung up. Bounded work; the rest waits on the
    /// run queue.
    pub fn ready(&mut self, token: Token, readable: bool, writable: bool, hung_up: bool) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        conn.io.flags.readable |= readable || hung_up;
        conn.io.flags.hung_up |= hung_up;
        if writable {
            conn.io.flags.write_blocked = false;
            if conn.io.has_output() && !conn.io.flags.queued_to_flush {
                conn.io.flags.queued_to_flush = true;
                self.shared.flush.push(token);
            }
        }
        if readable || hung_up {
            self.drive_guarded(token);
            self.look_at_storage();
        }
        if self.shared.flush.len() >= TURN_FLUSHES {
            self.flush_replies();
        }
    }

    /// Drives one connection; a panic in it costs that session, not the process. A panic elsewhere, in the
    /// commit above all, still ends the process: what the log promises must not depend on broken state.
    fn drive_guarded(&mut self, token: Token) {
        let driven = catch_unwind(AssertUnwindSafe(|| self.drive(token)));
        if driven.is_ok() {
            return;
        }
        let shared = &mut self.shared;
        if shared.scratch.is_empty() {
            shared.scratch = Pages::zeroed(SCRATCH_BYTES);
        }
        shared.secure.restore();
        shared.metrics.session_panics += 1;
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let fields = [("client", Value::Addr(conn.io.client()))];
        shared
            .logger
            .line(Class::SessionPanicked, &fields, shared.now);
        conn.io.cause = CloseCause::Panicked;
        conn.io.flags.closing = true;
        conn.io.phase_at = shared.now;
        let wire = Reply::ShuttingDown.row().wire;
        conn.io.push_reply(&mut shared.pool, wire);
        if !conn.io.flags.queued_to_flush {
            conn.io.flags.queued_to_flush = true;
            shared.flush.push(token);
        }
    }

    /// A verdict that a session waits for: it goes on in this turn. One for a session that is gone, or that does not
    /// wait, changes nothing.
    pub fn answer(&mut self, token: Token, verdict: Verdict) {
        self.resume(token, |session, context, out| {
            session.answer(context, verdict, out);
        });
    }

    /// Lets a session take what it waits for, with the rest of it to follow in this turn. One that is gone, or that
    /// does not wait, takes nothing.
    fn resume(
        &mut self,
        token: Token,
        take: impl FnOnce(&mut Session, &Context, &mut Out<'_, B, C>),
    ) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        if conn.io.blocked != Some(Blocked::Verdict) {
            return;
        }
        conn.io.blocked = None;
        conn.io.active_at = self.shared.now;
        let context = &self.contexts[usize::from(conn.io.listener)];
        let mut out = Out {
            io: &mut conn.io,
            shared: &mut self.shared,
            token,
        };
        take(&mut conn.session, context, &mut out);
        conn.io.blocked = waits_for(conn);
        run_later(conn, &mut self.shared, token);
    }

    /// Moves one connection as far as it goes: reads, feeds the session, reads again.
    fn drive(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        if conn.io.flags.awaits_proxy && !self.take_proxy_header(token) {
            return;
        }
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        if conn.io.flags.greeting_is_held {
            return self.hear_early(token);
        }
        let context = &self.contexts[usize::from(conn.io.listener)];
        let shared = &mut self.shared;
        let mut scratch = std::mem::take(&mut shared.scratch);
        let mut budget = TURN_READ_BYTES;
        loop {
            if conn.io.flags.dead {
                break;
            }
            if conn.io.flags.closing {
                discard_input(conn, shared, &mut scratch);
                if conn.io.flags.readable {
                    run_later(conn, shared, token);
                }
                break;
            }
            match conn.io.blocked {
                Some(Blocked::Replies) if conn.io.has_room() => conn.io.blocked = None,
                Some(Blocked::Pool) if may_grow(&conn.io, shared, token) => {
                    conn.io.blocked = None;
                }
                Some(Blocked::Commits) if !conn.io.awaits_commit() => conn.io.blocked = None,
                Some(Blocked::Tls) => {
                    if shake_hands(conn, context, shared, token) {
                        continue;
                    }
                    break;
                }
                Some(_) => break,
                None => {}
            }
            if budget == 0 {
                run_later(conn, shared, token);
                break;
            }
            let direct = conn.io.input.is_none()
                && conn.io.has_room()
                && conn.session.can_receive_in_place()
                && reads_in_place(conn, shared, token);
            let went_on = if direct {
                read_in_place(conn, context, shared, token, &mut scratch, &mut budget)
            } else {
                read_and_receive(conn, context, shared, token, &mut scratch, &mut budget)
            };
            if !went_on {
                break;
            }
        }
        shared.scratch = scratch;
        shared.count_chunks(&mut conn.io, token.key);
        self.after_drive(token);
    }

    /// Settles what a drive, a flush or a commit may have ended.
    fn after_drive(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        conn.session.reclaim(&mut self.shared.spare_work);
        let io = &mut conn.io;
        if io.blocked == Some(Blocked::Pool) && !io.flags.waits_for_pool {
            io.flags.waits_for_pool = true;
            io.phase_at = self.shared.now;
            self.shared.pool_waiters.push_back(token);
            return;
        }
        // End of file is a half-close: replies and commits that are outstanding still leave.
        let input_is_spent = io.input.is_none() || io.flags.input_is_partial;
        let is_over = io.input_is_over() && !io.may_read();
        if is_over && input_is_spent && !io.flags.closing && io.blocked.is_none() {
            let mut out = Out {
                io: &mut conn.io,
                shared: &mut self.shared,
                token,
            };
            conn.session.connection_lost(&mut out);
            if !conn.io.flags.closing {
                conn.io.flags.closing = true;
                conn.io.phase_at = self.shared.now;
                if !conn.io.flags.dead {
                    conn.io.cause = CloseCause::PeerClosed;
                }
            }
        }
        self.maybe_goodbye(token);
        self.close_when_done(token);
    }

    /// While draining, a session between messages is told so.
    fn maybe_goodbye(&mut self, token: Token) {
        if !self.shared.draining {
            return;
        }
        let Some(conn) = self.conns.get_mut(token.key as usize) else {
            return;
        };
        if conn.io.flags.awaits_proxy || conn.io.is_handshaking() {
            conn.io.flags.dead = true;
            conn.io.cause = CloseCause::Draining;
            return;
        }
        let busy = matches!(
            conn.session.phase(),
            Phase::Data | Phase::Bdat | Phase::Waiting
        );
        if busy || conn.io.flags.closing || conn.io.flags.large_pending {
            return;
        }
        self.say_goodbye(token, Reply::ShuttingDown, CloseCause::Draining);
    }

    fn close_when_done(&mut self, token: Token) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        let io = &conn.io;
        if io.flags.closing && !io.is_outstanding() && io.owes_tls_goodbye() {
            flush_one(conn, &mut self.shared, token);
        }
        let io = &conn.io;
        if io.flags.dead {
            self.remove(token.key as usize);
            return;
        }
        if !io.flags.closing || io.is_outstanding() {
            return;
        }
        let unread = io.flags.readable || io.input.is_some();
        let may_close = io.flags.quit || io.flags.is_turned_away || self.shared.draining;
        if io.flags.eof || (may_close && !unread) {
            self.remove(token.key as usize);
        } else if !io.flags.lingering {
            // Closing a socket that holds unread bytes resets the connection and may destroy the last reply on
            // its way. So the end of our replies is sent, and what still comes is thrown away for a while.
            conn.io.flags.lingering = true;
            conn.io.phase_at = self.shared.now;
            conn.stream.end_writing();
            run_later(conn, &mut self.shared, token);
        }
    }

    fn remove(&mut self, key: usize) {
        let Some(mut conn) = self.conns.try_remove(key) else {
            return;
        };
        self.shared.stop_growing(&mut conn.io, key as u32);
        if conn.io.is_handshaking() {
            self.shared.secure.one_less();
        }
        if let Some(message) = self.shared.take_message(&mut conn.io) {
            self.shared.metrics.messages_aborted += u64::from(message.in_body());
            message.free(&mut self.shared.pool);
        }
        conn.session.reclaim(&mut self.shared.spare_work);
        conn.io.release(&mut self.shared.pool);
        self.shared.forget_client(&mut conn.io);
        self.shared.count_chunks(&mut conn.io, key as u32);
        self.wheel.unlink(key);
        if !conn.io.flags.awaits_proxy && !conn.io.flags.is_health_check {
            self.shared.metrics.closed(conn.io.cause);
            self.shared.log_end(&conn.io);
        }
    }

    /// Ends a turn: run queue, timers, the write of the log, the next sync, the replies.
    pub fn end_turn(&mut self) {
        self.run_queued();
        self.link_held_back();
        self.run_timers();
        self.append();
        self.poll_commits();
        self.submit_sync();
        self.flush_replies();
        self.wake_pool_waiters();
    }

    /// When the next turn has to come at the latest, without any event. `None`: no timer is set.
    pub fn next_turn(&self) -> Option<Instant> {
        let shared = &self.shared;
        if !shared.run.is_empty() || !shared.flush.is_empty() || shared.can_append() {
            return Some(shared.now);
        }
        self.wheel.next_expiry()
    }

    fn count_look(&mut self) {
        self.shared.events_since_look = 0;
        self.shared.bytes_in_at_look = self.shared.metrics.bytes_in;
    }

    /// Looks at the storage where a turn has become long: a sync that ended lets its messages go, and what has ended
    /// since is written and synced now.
    fn look_at_storage(&mut self) {
        let shared = &mut self.shared;
        shared.events_since_look += 1;
        let read = shared.metrics.bytes_in - shared.bytes_in_at_look;
        if shared.events_since_look * EVENT_WORK_BYTES + read < TURN_LOOK_BYTES {
            return;
        }
        self.count_look();
        if self.is_syncing() {
            self.poll_commits();
        }
        // Without `--survive power` nobody waits for a sync, and one write a turn is all it takes.
        if self.owes_commit() && !self.is_syncing() {
            self.append();
            self.submit_sync();
        }
        self.flush_replies();
    }

    fn run_queued(&mut self) {
        for _ in 0..self.shared.run.len().min(TURN_RUNS) {
            let Some(token) = self.shared.run.pop_front() else {
                break;
            };
            let Some(conn) = live(&mut self.conns, token) else {
                continue;
            };
            conn.io.flags.queued_to_run = false;
            self.drive_guarded(token);
            self.look_at_storage();
        }
    }

    /// Runs connections that waited for chunks, now that there are some. While only the reserve is left, it is
    /// for the message that has grown longest.
    fn wake_pool_waiters(&mut self) {
        let shared = &mut self.shared;
        if shared.pool_waiters.is_empty() {
            return;
        }
        if !shared.pool.has_large(Urgency::Normal) {
            if let Some(oldest) = shared.growing.oldest()
                && shared.pool.has_large(Urgency::Reserve)
                && let Some(conn) = self.conns.get_mut(oldest as usize)
                && conn.io.flags.waits_for_pool
            {
                let token = Token {
                    key: oldest,
                    generation: conn.io.generation,
                };
                conn.io.flags.waits_for_pool = false;
                run_later(conn, shared, token);
            }
            return;
        }
        for _ in 0..shared.pool_waiters.len().min(TURN_WAKES) {
            let Some(token) = shared.pool_waiters.pop_front() else {
                break;
            };
            let Some(conn) = live(&mut self.conns, token) else {
                continue;
            };
            if conn.io.flags.waits_for_pool && !may_grow(&conn.io, shared, token) {
                // Its prefix holds its share; it is looked at again when others have been.
                shared.pool_waiters.push_back(token);
            } else if std::mem::take(&mut conn.io.flags.waits_for_pool) {
                run_later(conn, shared, token);
            }
        }
    }

    fn flush_replies(&mut self) {
        let mut flush = std::mem::take(&mut self.shared.flush);
        for token in flush.drain(..) {
            let Some(conn) = live(&mut self.conns, token) else {
                continue;
            };
            conn.io.flags.queued_to_flush = false;
            flush_one(conn, &mut self.shared, token);
            let waited = match conn.io.blocked {
                Some(Blocked::Replies) => conn.io.has_room(),
                // The 220 has left: what comes now is the handshake.
                Some(Blocked::Tls) => conn.io.output_len() == 0,
                _ => false,
            };
            if waited && !conn.io.flags.dead {
                run_later(conn, &mut self.shared, token);
            }
            if conn.io.flags.closing || conn.io.flags.dead {
                self.close_when_done(token);
            }
        }
        // Nothing was queued meanwhile: flushing sends, it asks nobody.
        self.shared.flush = flush;
    }

    fn run_timers(&mut self) {
        let now = self.shared.now;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expired(now, &mut due);
        for key in due.drain(..) {
            if let Some(next) = self.look_at_timer(key) {
                self.wheel.link(key, next);
            }
        }
        self.due = due;
    }

    /// Ends what has waited too long; otherwise returns when to look again.
    fn look_at_timer(&mut self, key: usize) -> Option<Instant> {
        let conn = self.conns.get_mut(key)?;
        let shared = &mut self.shared;
        let (now, options) = (shared.now, &shared.options);
        let io = &conn.io;
        let token = Token {
            key: key as u32,
            generation: io.generation,
        };
        let step = now.after(self.timer_step);
        if io.flags.awaits_proxy {
            let listener = &shared.listeners[usize::from(io.listener)];
            let deadline = proxy::deadline(listener, io);
            if now < deadline {
                return Some(step.min(deadline));
            }
            return self.proxy_header_is_late(token).then_some(step);
        }
        if io.is_handshaking() {
            let timeout = shared.secure.timeout();
            let deadline = io.phase_at.after(timeout);
            if now < deadline {
                return Some(step.min(deadline));
            }
            secure::time_out(conn, shared, token);
            self.close_when_done(token);
            return None;
        }
        if let Some(until) = io.held_until() {
            if now < until {
                return Some(until);
            }
            self.end_holding_back(token);
            return self.conns.contains(key).then_some(step);
        }
        if io.flags.closing {
            // A peer that takes neither its last replies nor our end of file. Commits are waited for.
            let waits = io.awaits_commit();
            let deadline = io.phase_at.max(io.active_at).after(options.linger);
            if waits || now < deadline {
                return Some(step.min(if waits { step } else { deadline }));
            }
            self.remove(key);
            return None;
        }
        let stuck_output = io.has_output() && io.flags.write_blocked;
        // The 250 of a message that is appended on its own gets its place among the replies when it is there: nothing
        // may be said before it, even to a client that reads nothing. Others have their place, and 421 would follow it.
        if io.awaits_commit() && (!stuck_output || io.flags.large_pending) {
            return Some(step);
        }
        let (deadline, reply) = if io.blocked == Some(Blocked::Pool) {
            (io.phase_at.after(options.pool_wait_max), Reply::NoSpace)
        } else if stuck_output {
            (io.active_at.after(options.timeout_reply), Reply::TimedOut)
        } else {
            match conn.session.phase() {
                Phase::Data | Phase::Bdat => {
                    data_deadline(io, conn.session.content_octets(), options)
                }
                _ => {
                    let is_within_line =
                        io.flags.input_is_partial || conn.session.is_within_long_line();
                    command_deadline(io, options, conn.session.helo().is_empty(), is_within_line)
                }
            }
        };
        if now < deadline {
            return Some(step.min(deadline));
        }
        let cause = match reply {
            Reply::NoSpace => CloseCause::PoolWait,
            Reply::TooSlow => CloseCause::TooSlow,
            _ if stuck_output => CloseCause::RepliesUnread,
            _ => CloseCause::TimedOut,
        };
        let mut out = Out {
            io: &mut conn.io,
            shared,
            token,
        };
        conn.session.timed_out(reply, &mut out);
        conn.io.cause = cause;
        conn.io.blocked = None;
        self.close_when_done(token);
        Some(now.after(self.shared.options.linger))
    }

    /// Starts to stop: idle sessions get 421, open messages may end. No further connection should be offered.
    pub fn begin_drain(&mut self) {
        self.shared.draining = true;
        self.let_all_go();
        let tokens: Vec<Token> = self
            .conns
            .iter()
            .map(|(key, conn)| Token {
                key: key as u32,
                generation: conn.io.generation,
            })
            .collect();
        for token in tokens {
            self.maybe_goodbye(token);
            self.close_when_done(token);
        }
    }

    /// Says goodbye to sessions that have been silent between messages for `quiet`: another server takes new ones.
    pub fn let_quiet_go(&mut self, quiet: Duration) {
        let now = self.shared.now;
        let silent = |conn: &Conn<S>| now.since_ns(conn.io.active_at) >= nanos(quiet);
        let tokens: Vec<Token> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.session.phase() == Phase::Command && silent(conn))
            .filter(|(_, conn)| !conn.io.flags.closing && !conn.io.is_outstanding())
            .map(|(key, conn)| Token {
                key: key as u32,
                generation: conn.io.generation,
            })
            .collect();
        for token in tokens {
            self.say_goodbye(token, Reply::ShuttingDown, CloseCause::Draining);
            self.close_when_done(token);
        }
    }

    /// Whether nothing is left to wait for.
    pub fn is_drained(&self) -> bool {
        self.conns.is_empty() && self.shared.pending.is_empty() && self.shared.large.is_empty()
    }

    /// Cuts every session that is left. Returns how many had not ended: one that only lingers has had its last
    /// reply.
    pub fn cut_all(&mut self) -> u64 {
        let mut cut = 0;
        let keys: Vec<usize> = self.conns.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(conn) = self.conns.get_mut(key)
                && !conn.io.flags.closing
                && !conn.io.flags.awaits_proxy
            {
                conn.io.cause = CloseCause::Draining;
                cut += 1;
            }
            self.remove(key);
        }
        cut
    }

    /// Idle work: that of the log, and a look at files; once a second.
    pub fn idle_tick(&mut self) {
        self.look_at_files();
        let Some(storage) = &mut self.shared.storage else {
            return;
        };
        let status = storage.log.status();
        let metrics = &mut self.shared.metrics;
        metrics.ring_bytes_written = status.written_bytes;
        if status.overwritten_unread > 0 && metrics.overwritten_unread == 0 {
            let fields = [("messages", Value::Number(status.overwritten_unread))];
            self.shared
                .logger
                .line(Class::Overwritten, &fields, self.shared.now);
        }
        metrics.overwritten_unread = status.overwritten_unread;
        if let Some(since) = self.shared.sync_since {
            let waited_ns = self.shared.now.since_ns(since);
            if waited_ns > nanos(self.shared.options.sync_stall) {
                let fields = [("waiting_ms", Value::Number(waited_ns / 1_000_000))];
                self.shared
                    .logger
                    .line(Class::SyncSlow, &fields, self.shared.now);
            }
        }
        if let Err(failed) = storage.log.idle_tick() {
            self.fail_storage(failed);
        }
        self.submit_sync();
    }

    /// Puts rules that were loaded again in the place of those in force, or says why these stay.
    pub fn take_rules(&mut self, loaded: Result<Arc<Rules>, String>, now: Instant) {
        let shared = &mut self.shared;
        match loaded {
            Ok(rules) => {
                let recipients = rules.recipients.as_ref().map_or(0, |all| all.len());
                let fields = [("recipients", Value::Number(recipients as u64))];
                shared.metrics.rules_loaded += 1;
                shared.logger.line(Class::RulesLoaded, &fields, now);
                shared.rules = rules;
            }
            Err(error) => {
                shared.metrics.rules_refused += 1;
                let fields = [("error", Value::Str(&error))];
                shared.logger.line(Class::RulesRefused, &fields, now);
            }
        }
    }

    /// Whether a sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.shared
            .storage
            .as_ref()
            .is_some_and(|storage| storage.log.sync_in_flight())
    }

    /// Marks the log as closed in order. Nothing may be stored afterwards.
    ///
    /// # Errors
    /// The storage failed.
    pub fn close_log(&mut self) -> io::Result<()> {
        let Some(Storage { log, committer }) = self.shared.storage.take() else {
            return Ok(());
        };
        drop(committer);
        log.close().map(|_| ()).map_err(io::Error::other)
    }

    /// Hands memory back that was not needed for a while; call it every ten seconds.
    pub fn give_back_idle_memory(&mut self) {
        self.shared.pool.give_back_idle(crate::sys::memory::release);
    }
}

/// The connection of this token, if it still lives.
fn live<S>(conns: &mut Slab<Conn<S>>, token: Token) -> Option<&mut Conn<S>> {
    conns
        .get_mut(token.key as usize)
        .filter(|conn| conn.io.generation == token.generation)
}

/// When the next command must have come, whole.
fn command_deadline(
    io: &Io,
    options: &Options,
    before_helo: bool,
    is_within_line: bool,
) -> (Instant, Reply) {
    let silence = if before_helo {
        options.timeout_greeting
    } else {
        options.timeout_command
    };
    let silent = io.active_at.after(silence);
    if is_within_line {
        // A line that grows octet by octet is never silent.
        (
            silent.min(io.phase_at.after(options.request_deadline)),
            Reply::TimedOut,
        )
    } else {
        (silent, Reply::TimedOut)
    }
}

/// When message data must have come, of which `octets` have, and the reply when it has not.
fn data_deadline(io: &Io, octets: u64, options: &Options) -> (Instant, Reply) {
    let silent = io.active_at.after(options.timeout_data);
    let earned_ns = octets.saturating_mul(1_000_000_000) / options.data_rate_min.max(1);
    let slow = Instant(
        io.phase_at
            .after(options.data_grace)
            .0
            .saturating_add(earned_ns),
    );
    if options.data_rate_min == 0 || silent <= slow {
        (silent, Reply::TimedOut)
    } else {
        (slow, Reply::TooSlow)
    }
}

/// Urgency with which this connection may take chunks: the oldest message that grows always finishes.
fn urgency<B: Backing, C>(io: &Io, shared: &Shared<B, C>, token: Token) -> Urgency {
    if io.flags.holds_growth && shared.growing.oldest() == Some(token.key) {
        Urgency::Reserve
    } else {
        Urgency::Normal
    }
}

/// What a session waits for that no input of the client can end.
fn waits_for<S>(conn: &Conn<S>) -> Option<Blocked> {
    match conn.session.phase() {
        Phase::Waiting if conn.io.flags.large_pending => Some(Blocked::Commit),
        Phase::Waiting | Phase::Greeting => Some(Blocked::Verdict),
        _ => None,
    }
}

/// Whether the message of this connection may take another large chunk: there is one, and its prefix holds less
/// than its share or lets this one go on. The message that has grown longest always may, so that something always ends.
fn may_grow<B: Backing, C>(io: &Io, shared: &Shared<B, C>, token: Token) -> bool {
    let urgency = urgency(io, shared, token);
    let may_take = urgency == Urgency::Reserve || shared.prefixes.may_take(io.prefix, token.key);
    may_take && shared.pool.has_large(urgency)
}

fn run_later<S, B: Backing, C>(conn: &mut Conn<S>, shared: &mut Shared<B, C>, token: Token) {
    if !conn.io.flags.queued_to_run {
        conn.io.flags.queued_to_run = true;
        shared.run.push_back(token);
    }
}
