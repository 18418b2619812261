//! The event loop: readiness in, turns of the server out.
//!
//! mio is edge-triggered. A listener that was not drained (bounded accept, no descriptors left) gets no new
//! event, so it is remembered here; what a connection has left unread is remembered by the server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Waker};

use super::desk::{CTL_SESSIONS_MAX, Desk};
use super::handover::{Asked, Handover, Head, Kind};
use super::listener::{ListeningSocket, Socket};
use super::pages::{Answered, Pages};
use super::stream::MioStream;
use crate::clock::{Clock, Instant, nanos};
use crate::conn::Token;
use crate::ctl;
use crate::http;
use crate::limits::{FILES_LOOK_MS, HANDOVER_GRACE, HANDOVER_IDLE};
use crate::link;
use crate::logger::{Class, Value};
use crate::policy::rules::Rules;
use crate::ringlog::backing::Backing;
use crate::ringlog::reader::Window;
use crate::ringlog::writer::Log;
use crate::server::control::Control;
use crate::server::listener::TlsMode;
use crate::server::{Committer, Server};
use crate::smtp::reply::Reply;
use crate::status::{self, About, Summary, snapshot};
use crate::sys::process::is_orphan;
use crate::sys::signal::{Request, Signals, exit_now};

/// Events taken from the kernel at once.
const EVENTS: usize = 1_024;
/// Connections accepted from one listener in one turn: sessions under way are served in between.
const TURN_ACCEPTS: usize = 64;
/// How long accepting pauses when descriptors ran out, nanoseconds.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;
/// Time between two log lines about a pause, nanoseconds.
const PAUSE_LOG_NS: u64 = 10_000_000_000;
/// Longest wait of the poll: idle work of the log and the logger is due then.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Interval at which idle memory is given back, nanoseconds.
const GIVE_BACK_NS: u64 = 10_000_000_000;

const KIND_SHIFT: usize = 60;
const KIND_SESSION: usize = 0;
const KIND_LISTENER: usize = 1 << KIND_SHIFT;
const KIND_HTTP_LISTENER: usize = 2 << KIND_SHIFT;
const KIND_HTTP: usize = 3 << KIND_SHIFT;
const KIND_CTL_LISTENER: usize = 4 << KIND_SHIFT;
const KIND_CTL: usize = 5 << KIND_SHIFT;
const KIND_WAKER: usize = 6 << KIND_SHIFT;
const KIND_SIGNALS: usize = 7 << KIND_SHIFT;
const KIND_LINK: usize = 8 << KIND_SHIFT;
const KIND_HANDOVER: usize = 9 << KIND_SHIFT;
const KIND_HANDOVER_PEER: usize = 10 << KIND_SHIFT;
const KIND_MASK: usize = 15 << KIND_SHIFT;

/// The token under which a session's events come.
pub(super) fn session_token(token: Token) -> mio::Token {
    mio::Token(KIND_SESSION | (token.generation as usize) << 32 | token.key as usize)
}

fn token_of(bits: usize) -> Token {
    Token {
        key: bits as u32,
        generation: (bits >> 32) as u32 & Token::GENERATION_MAX,
    }
}

/// How the loop waits and stops.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Polls this long without blocking before it blocks.
    pub spin: Duration,
    /// Never blocks.
    pub busy_poll: bool,
    /// After a stop is asked for, open messages may go on for this long.
    pub drain_deadline: Duration,
    /// After a storage failure, clients are answered for this long; `None`: for ever.
    pub failed_grace: Option<Duration>,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every session ended in order.
    Drained,
    /// So many sessions were cut.
    Cut(u64),
    /// Storage failed and the grace is over.
    StorageFailed,
}

struct Listening {
    socket: ListeningSocket,
    /// The kernel may hold connections.
    ready: bool,
}

/// Looks up the newest messages; runs on a thread of its own because it reads the ring.
pub type FindNewest = Box<dyn FnMut(Window) -> Vec<Summary> + Send>;

/// Loads the access rules when their files have changed since it was last called, or when `must` is set; runs on a
/// thread of its own because it reads files. `None`: nothing has changed. An error is one sentence.
pub type LoadRules = Box<dyn FnMut(bool) -> Option<Result<Rules, String>> + Send>;

struct RulesThread {
    /// Asks for the files to be read, changed or not.
    requests: SyncSender<()>,
    answers: Receiver<Result<Arc<Rules>, String>>,
}

struct NewestThread {
    requests: SyncSender<Window>,
    answers: Receiver<Vec<Summary>>,
    asked: bool,
}

impl NewestThread {
    /// Has the newest messages looked up, unless that is under way. What waits is answered by whichever comes next.
    fn ask<B: Backing>(&mut self, log: &Log<B>) {
        let window = Window {
            tail: log.tail(),
            end: log.acknowledged(),
        };
        self.asked = self.asked || self.requests.try_send(window).is_ok();
    }
}

/// The way to the parent of a worker.
struct Parent {
    /// Holds the one connection.
    desk: Desk<UnixStream, link::Receiver>,
    /// Waits for the state with the newest messages.
    wants_newest: bool,
}

/// Key of the only connection of [`Parent::desk`].
const PARENT_KEY: usize = 0;

/// The reactor.
pub struct Reactor<B: Backing, C: Committer> {
    poll: Poll,
    registry: Rc<Registry>,
    clock: Clock,
    /// The server it drives.
    pub server: Server<MioStream, B, C>,
    options: Options,
    about: About,
    listeners: Vec<Listening>,
    pages: Pages,
    ctl_listener: Option<UnixListener>,
    /// The kernel may hold connections for it.
    ctl_ready: bool,
    ctl: Desk<UnixStream, ctl::ServerSession>,
    /// Read-only descriptor of the ring, for readers.
    ring: Option<OwnedFd>,
    newest: Option<NewestThread>,
    rules: Option<RulesThread>,
    signals: Signals,
    /// The parent, where this is one of several workers.
    link: Option<Parent>,
    /// Where another process may ask for the listening sockets.
    handover: Option<Handover>,
    handed_over_at: Option<Instant>,
    accept_paused_until: Option<Instant>,
    pause_logged_at: Option<Instant>,
    stop_since: Option<Instant>,
    /// Status document for tools, at most a second old.
    status_json: Vec<u8>,
    status_at: Instant,
    gave_back_at: Instant,
    idle_at: Instant,
}

/// The poll and its waker, made before the server because the sync thread needs the waker.
pub struct Wake {
    poll: Poll,
    waker: Arc<Waker>,
}

impl Wake {
    /// A poll with a waker.
    ///
    /// # Errors
    /// Whatever epoll or eventfd says.
    pub fn new() -> io::Result<Wake> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), mio::Token(KIND_WAKER))?);
        Ok(Wake { poll, waker })
    }

    /// Wakes the loop from another thread.
    pub fn handle(&self) -> Box<dyn Fn() + Send> {
        let waker = Arc::clone(&self.waker);
        // A wake-up that fails leaves the result for the next turn, a second away at most.
        Box::new(move || drop(waker.wake()))
    }
}

/// What the reactor listens to.
pub struct Side {
    /// SMTP, in the order of the server's listeners.
    pub smtp: Vec<ListeningSocket>,
    /// SIGTERM and its like.
    pub signals: Signals,
    /// HTTP.
    pub http: Option<TcpListener>,
    /// Tools and consumers.
    pub ctl: Option<std::os::unix::net::UnixListener>,
    /// Read-only descriptor of the ring.
    pub ring: Option<OwnedFd>,
    /// Looks up the newest messages.
    pub find_newest: Option<FindNewest>,
    /// Loads the access rules again; `None` where no file holds any.
    pub load_rules: Option<LoadRules>,
    /// The way to the parent, where this is one of several workers.
    pub link: Option<std::os::unix::net::UnixStream>,
}

impl<B: Backing, C: Committer> Reactor<B, C> {
    /// Registers everything.
    ///
    /// # Errors
    /// Whatever a registration says.
    pub fn new(
        wake: Wake,
        clock: Clock,
        server: Server<MioStream, B, C>,
        side: Side,
        options: Options,
        about: About,
    ) -> io::Result<Reactor<B, C>> {
        let Wake { poll, waker } = wake;
        let (sockets, signals) = (side.smtp, side.signals);
        let registry = Rc::new(poll.registry().try_clone()?);
        let mut listeners = Vec::new();
        for (index, mut socket) in sockets.into_iter().enumerate() {
            registry.register(
                socket.source(),
                mio::Token(KIND_LISTENER | index),
                Interest::READABLE,
            )?;
            listeners.push(Listening {
                socket,
                ready: true,
            });
        }
        let pages = Pages::new(side.http, &registry, KIND_HTTP_LISTENER, KIND_HTTP)?;
        let mut ctl_listener = side.ctl.map(UnixListener::from_std);
        if let Some(socket) = &mut ctl_listener {
            registry.register(socket, mio::Token(KIND_CTL_LISTENER), Interest::READABLE)?;
        }
        let fd = signals.raw_fd();
        registry.register(
            &mut SourceFd(&fd),
            mio::Token(KIND_SIGNALS),
            Interest::READABLE,
        )?;
        let newest = match side.find_newest {
            Some(find) => Some(start_newest_thread(find, Arc::clone(&waker))?),
            None => None,
        };
        let rules = match side.load_rules {
            Some(load) => Some(start_rules_thread(load)?),
            None => None,
        };
        let now = clock.now();
        let link = match side.link {
            Some(stream) => {
                stream.set_nonblocking(true)?;
                let mut desk = Desk::new(KIND_LINK, 1);
                desk.admit(
                    UnixStream::from_std(stream),
                    link::Receiver::new(),
                    &registry,
                    now,
                )?;
                Some(Parent {
                    desk,
                    wants_newest: false,
                })
            }
            None => None,
        };
        Ok(Reactor {
            poll,
            registry,
            clock,
            server,
            options,
            about,
            listeners,
            pages,
            ctl_listener,
            ctl_ready: true,
            ctl: Desk::new(KIND_CTL, CTL_SESSIONS_MAX),
            ring: side.ring,
            newest,
            rules,
            signals,
            link,
            handover: None,
            handed_over_at: None,
            accept_paused_until: None,
            pause_logged_at: None,
            stop_since: None,
            status_json: Vec::new(),
            status_at: Instant(0),
            gave_back_at: now,
            idle_at: now,
        })
    }

    /// Runs turns until the server has stopped.
    ///
    /// # Errors
    /// Whatever the poll says.
    pub fn run(&mut self) -> io::Result<Outcome> {
        let mut events = Events::with_capacity(EVENTS);
        let spin_ns = nanos(self.options.spin);
        let mut spin_until = Instant(0);
        loop {
            let may_spin = self.options.busy_poll || self.clock.now() < spin_until;
            // A spinning loop asks the kernel and the clock, and nobody else.
            let timeout = match may_spin {
                true => Duration::ZERO,
                false => self.timeout(),
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            let now = self.clock.now();
            if may_spin && events.is_empty() && !self.work_is_due(now) {
                continue;
            }
            if spin_ns > 0 && !events.is_empty() {
                spin_until = Instant(now.0.saturating_add(spin_ns));
            }
            self.turn(&events, now);
            if let Some(outcome) = self.outcome() {
                return Ok(outcome);
            }
        }
    }

    /// Waits for the sync under way and closes the log in order, so that the next start need not scan it.
    /// Returns the server for a last look at its counters.
    ///
    /// # Errors
    /// The storage failed, or a sync did not end in `wait`; the next start recovers.
    pub fn close(mut self, wait: Duration) -> io::Result<Server<MioStream, B, C>> {
        let until = self.clock.now().after(wait);
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let now = self.clock.now();
            self.server.begin_turn(now, self.clock.wall_ns());
            self.server.end_turn();
            if !self.server.is_syncing() {
                break;
            }
            if now >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "a sync does not end",
                ));
            }
            match self
                .poll
                .poll(&mut events, Some(Duration::from_millis(100)))
            {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
        }
        self.server.close_log()?;
        Ok(self.server)
    }

    /// The server, its log as it is: for storage that failed, to which nothing may be written any more.
    pub fn into_server(self) -> Server<MioStream, B, C> {
        self.server
    }

    fn work_is_due(&self, now: Instant) -> bool {
        self.server.next_turn().is_some_and(|due| due <= now)
            || now.since_ns(self.idle_at) >= nanos(IDLE_TICK)
            || self.listeners.iter().any(|listening| listening.ready)
            || self.pages.is_ready()
            || self.ctl_ready
            || self.pages.has_more()
    }

    fn timeout(&self) -> Duration {
        let now = self.clock.now();
        let unpaused = self.accept_paused_until.is_none_or(|until| until <= now);
        let smtp_waits =
            self.may_accept(now) && self.listeners.iter().any(|listening| listening.ready);
        let visitors_wait = unpaused && (self.pages.is_ready() || self.ctl_ready);
        if smtp_waits || visitors_wait || self.pages.has_more() {
            return Duration::ZERO;
        }
        let mut wait_ns = nanos(IDLE_TICK);
        if let Some(due) = self.server.next_turn() {
            wait_ns = wait_ns.min(due.since_ns(now));
        }
        if let Some(until) = self.accept_paused_until {
            wait_ns = wait_ns.min(until.since_ns(now));
        }
        Duration::from_nanos(wait_ns)
    }

    fn may_accept(&self, now: Instant) -> bool {
        self.stop_since.is_none() && self.accept_paused_until.is_none_or(|until| until <= now)
    }

    fn turn(&mut self, events: &Events, now: Instant) {
        self.server.begin_turn(now, self.clock.wall_ns());
        for event in events {
            let bits = event.token().0;
            let key = bits & !KIND_MASK;
            match bits & KIND_MASK {
                KIND_SESSION => self.session_event(token_of(bits), event),
                KIND_LISTENER => {
                    // Gone, when the order to stop came in the same turn.
                    if let Some(listening) = self.listeners.get_mut(key) {
                        listening.ready = true;
                    }
                }
                KIND_HTTP_LISTENER => self.pages.set_ready(),
                KIND_HTTP => self.http_event(key, now),
                KIND_CTL_LISTENER => self.ctl_ready = true,
                KIND_CTL => self.ctl_event(key, now),
                KIND_SIGNALS => self.take_signals(now),
                KIND_LINK => self.link_event(now),
                KIND_HANDOVER => self.handover_event(true, now),
                KIND_HANDOVER_PEER => self.handover_event(false, now),
                // The waker: finished syncs are looked at once a turn anyway.
                _ => {}
            }
        }
        if self.accept_paused_until.is_some_and(|until| until <= now) {
            self.accept_paused_until = None;
        }
        self.accept(now);
        self.accept_visitors(now);
        for key in self.pages.take_again() {
            self.http_event(key, now);
        }
        self.server.end_turn();
        self.answer_newest(now);
        self.report_progress(now);
        self.idle_work(now);
        self.server.shared.logger.tick(now);
        self.server.shared.metrics.turns += 1;
        let spent = self.clock.now().since_ns(now);
        self.server.shared.record_turn(spent);
    }

    fn session_event(&mut self, token: Token, event: &Event) {
        let hung_up = event.is_read_closed() || event.is_write_closed() || event.is_error();
        self.server
            .ready(token, event.is_readable(), event.is_writable(), hung_up);
    }

    fn accept(&mut self, now: Instant) {
        if !self.may_accept(now) {
            return;
        }
        for index in 0..self.listeners.len() {
            let mut ready = self.listeners[index].ready;
            let exhausted = accept_ready(&mut ready, || {
                let (socket, peer) = self.listeners[index].socket.accept()?;
                self.admit(socket, peer, index);
                Ok(())
            });
            self.listeners[index].ready = ready;
            if let Some(error) = exhausted {
                return self.pause_accepting(&error, now);
            }
        }
    }

    fn admit(&mut self, socket: Socket, peer: SocketAddr, listener: usize) {
        if !self.server.has_place() {
            self.refuse(socket, listener);
            return;
        }
        let registry = &self.registry;
        // A socket of both families, as systemd opens them, gives IPv4 clients as ::ffff:192.0.2.1. Log lines name them
        // as everything else does.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // A socket that can't be registered is closed by being dropped.
        let _ = self.server.accept(peer, listener as u8, |token| {
            MioStream::register(socket, registry, token)
        });
    }

    /// Tells a client that all places are taken, if its socket takes that at once.
    fn refuse(&mut self, mut socket: Socket, listener: usize) {
        self.server.shared.metrics.sessions_refused += 1;
        let listener = self.server.shared.listeners.get(listener);
        if listener.is_some_and(|listener| listener.tls == TlsMode::Implicit) {
            // Nothing is said there in the clear.
            return;
        }
        let row = Reply::TooManySessions.row();
        let _ = io::Write::write(&mut socket, row.wire);
        self.server
            .shared
            .metrics
            .reply(Reply::TooManySessions as usize);
    }

    fn pause_accepting(&mut self, error: &io::Error, now: Instant) {
        self.accept_paused_until = Some(Instant(now.0 + ACCEPT_PAUSE_NS));
        let shared = &mut self.server.shared;
        shared.metrics.accept_pauses += 1;
        // While it lasts, one line in ten seconds tells enough.
        if self
            .pause_logged_at
            .is_none_or(|at| now.since_ns(at) >= PAUSE_LOG_NS)
        {
            self.pause_logged_at = Some(now);
            let text = error.to_string();
            shared
                .logger
                .line(Class::AcceptPaused, &[("error", Value::Str(&text))], now);
        }
    }

    fn take_signals(&mut self, now: Instant) {
        while let Some(request) = self.signals.next_request() {
            match request {
                // Whoever stops a worker stops its parent as well, which says when it is enough: a service manager
                // and a terminal send their signals to both.
                Request::Stop if self.stop_since.is_some() && self.link.is_none() => {
                    // The second signal ends at once; recovery will find everything that was promised.
                    exit_now(3);
                }
                Request::Stop => self.stop(now),
                Request::Reload if self.link.is_none() => self.reload(),
                Request::Reload => {}
            }
        }
    }

    fn stop(&mut self, now: Instant) {
        if self.stop_since.is_some() {
            return;
        }
        self.stop_since = Some(now);
        let fields = [("sessions", Value::Number(self.server.connections() as u64))];
        let logger = &mut self.server.shared.logger;
        logger.line(Class::Stopping, &fields, now);
        self.server.begin_drain();
        // A closed listener refuses connections at once instead of letting them wait.
        self.listeners.clear();
    }

    fn reload(&mut self) {
        self.server.reload();
        if let Some(rules) = &self.rules {
            // One that waits already is enough.
            let _ = rules.requests.try_send(());
        }
    }

    // Handing over.

    /// Lets another process ask for the listening sockets.
    ///
    /// # Errors
    /// Whatever the registration says.
    pub fn offer_handover(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        head: Head,
    ) -> io::Result<()> {
        let registry = &self.registry;
        let handover = Handover::new(listener, head, registry, KIND_HANDOVER, KIND_HANDOVER_PEER)?;
        self.handover = Some(handover);
        Ok(())
    }

    /// Whether another process has taken the listening sockets over, and the files that belong to them.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over_at.is_some()
    }

    fn handover_event(&mut self, listening: bool, now: Instant) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        let mut asked = match listening {
            true => handover.accept(&self.registry),
            false => handover.event(),
        };
        if asked == Asked::Sockets {
            let mail = self.listeners.iter().map(|listening| {
                let socket = listening.socket.duplicate();
                socket.map(|socket| (Kind::Mail(0), socket))
            });
            let http = self.pages.listener().map(|socket| {
                let socket = socket.as_fd().try_clone_to_owned();
                socket.map(|socket| (Kind::Http, socket))
            });
            // One that can't be had is bound by the other process, or is why it gives up.
            asked = handover.give(mail.chain(http).flatten().collect());
        }
        if asked == Asked::Go {
            handover.released();
            self.hand_over(now);
        }
    }

    /// Takes no more connections: another process does. Sessions go on for a while, then they are drained.
    fn hand_over(&mut self, now: Instant) {
        if self.stop_since.is_some() || self.handed_over_at.is_some() {
            return;
        }
        self.handed_over_at = Some(now);
        self.listeners.clear();
        self.pages.stop_listening();
        // The other process binds its own in its place.
        self.handover = None;
        let fields = [("sessions", Value::Number(self.server.connections() as u64))];
        let logger = &mut self.server.shared.logger;
        logger.line(Class::HandedOver, &fields, now);
    }

    // The parent.

    /// Sends a report to the parent, if there is one.
    pub fn report(&mut self, report: &link::Report) {
        let now = self.clock.now();
        if let Some(parent) = &mut self.link {
            if let Some(visitor) = parent.desk.get_mut(PARENT_KEY) {
                report.put(&mut visitor.output);
            }
            self.send_to_parent(now);
        }
    }

    fn send_to_parent(&mut self, now: Instant) {
        if let Some(parent) = &mut self.link
            && parent.desk.send(PARENT_KEY, now, None).is_some()
        {
            // Nobody is left to say when to stop, and another server may be waiting for the ring.
            exit_now(1);
        }
    }

    fn link_event(&mut self, now: Instant) {
        let mut buf = [0; 4_096];
        let mut orders = Vec::new();
        while let Some(parent) = &mut self.link
            && let Some(len) = parent.desk.read_some(PARENT_KEY, now, &mut buf)
            && let Some(visitor) = parent.desk.get_mut(PARENT_KEY)
        {
            match visitor.protocol.orders(&buf[..len]) {
                Ok(came) => orders.extend(came),
                Err(link::Broken) => exit_now(1),
            }
        }
        for order in orders {
            match order {
                link::Order::Drain => self.stop(now),
                link::Order::HandOver => self.hand_over(now),
                link::Order::Reload => self.reload(),
                link::Order::Tell { newest } => self.tell_parent(newest, now),
            }
        }
        self.send_to_parent(now);
    }

    fn tell_parent(&mut self, with_newest: bool, now: Instant) {
        if with_newest
            && let (Some(newest), Some(storage), Some(parent)) = (
                &mut self.newest,
                &self.server.shared.storage,
                &mut self.link,
            )
        {
            newest.ask(&storage.log);
            parent.wants_newest = true;
            return;
        }
        self.put_state(&[], now);
    }

    fn put_state(&mut self, newest: &[Summary], now: Instant) {
        let wall_ns = self.clock.wall_ns();
        let state =
            status::with_status(&self.server, &self.about, newest, wall_ns, snapshot::encode);
        self.report(&link::Report::State(state));
        self.send_to_parent(now);
    }

    fn outcome(&mut self) -> Option<Outcome> {
        let now = self.clock.now();
        if let (Some(failed), Some(grace)) =
            (self.server.shared.failed_at(), self.options.failed_grace)
            && now.since_ns(failed) >= nanos(grace)
        {
            self.server.cut_all();
            return Some(Outcome::StorageFailed);
        }
        if self.stop_since.is_none() && self.handed_over_at.is_some() && self.server.is_drained() {
            return Some(Outcome::Drained);
        }
        let since = self.stop_since?;
        if self.server.shared.is_failed() {
            self.server.cut_all();
            return Some(Outcome::StorageFailed);
        }
        if self.server.is_drained() {
            return Some(Outcome::Drained);
        }
        if now.since_ns(since) >= nanos(self.options.drain_deadline) {
            return Some(Outcome::Cut(self.server.cut_all()));
        }
        None
    }

    fn idle_work(&mut self, now: Instant) {
        if now.since_ns(self.idle_at) < nanos(IDLE_TICK) {
            return;
        }
        self.idle_at = now;
        if self.link.is_some() && is_orphan() {
            exit_now(1);
        }
        self.server.idle_tick();
        if let Some(at) = self.handed_over_at {
            match now.since_ns(at) >= nanos(HANDOVER_GRACE) {
                true => self.stop(now),
                false => self.server.let_quiet_go(HANDOVER_IDLE),
            }
        }
        self.take_rules(now);
        self.pages.expire(now);
        if now.since_ns(self.gave_back_at) >= GIVE_BACK_NS {
            self.gave_back_at = now;
            self.server.give_back_idle_memory();
        }
    }

    /// Takes rules that were loaded meanwhile. Sessions under way ask the new ones from their next command on.
    fn take_rules(&mut self, now: Instant) {
        let Some(thread) = &self.rules else {
            return;
        };
        let Ok(loaded) = thread.answers.try_recv() else {
            return;
        };
        self.server.take_rules(loaded, now);
    }

    // HTTP.

    /// Takes HTTP and control connections. As with SMTP an edge is remembered until the kernel has none left.
    fn accept_visitors(&mut self, now: Instant) {
        if self.accept_paused_until.is_some_and(|until| until > now) {
            return;
        }
        let http = self.pages.accept(&self.registry, now);
        // A connection that can't be registered is closed by being dropped.
        let ctl = accept_ready(&mut self.ctl_ready, || match &self.ctl_listener {
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(listener) => {
                let (socket, _) = listener.accept()?;
                let session = ctl::ServerSession::new();
                drop(self.ctl.admit(socket, session, &self.registry, now));
                Ok(())
            }
        });
        if let Some(error) = http.or(ctl) {
            self.pause_accepting(&error, now);
        }
    }

    fn http_event(&mut self, key: usize, now: Instant) {
        let Reactor {
            pages,
            server,
            about,
            newest,
            clock,
            idle_at,
            ..
        } = self;
        pages.event(key, now, &mut |request, out| {
            if request.route.needs_newest()
                && let (Some(newest), Some(storage)) = (&mut *newest, &server.shared.storage)
            {
                newest.ask(&storage.log);
                return Answered::Later;
            }
            put_page(server, about, &[], request, (clock, *idle_at), out);
            Answered::Now
        });
    }

    fn answer_newest(&mut self, now: Instant) {
        let Some(newest) = &mut self.newest else {
            return;
        };
        let summaries = match newest.answers.try_recv() {
            Ok(summaries) => summaries,
            Err(TryRecvError::Empty) => return,
            // The thread is gone: pages come without messages from now on.
            Err(TryRecvError::Disconnected) => Vec::new(),
        };
        newest.asked = false;
        if let Some(parent) = &mut self.link
            && std::mem::take(&mut parent.wants_newest)
        {
            self.put_state(&summaries, now);
        }
        for (key, request) in self.pages.take_waiting(u64::MAX) {
            let (server, about) = (&mut self.server, &self.about);
            let clocks = (&self.clock, self.idle_at);
            self.pages.put(key, &request, |out| {
                put_page(server, about, &summaries, &request, clocks, out);
            });
            self.http_event(key, now);
        }
    }

    // Tools and consumers.

    fn ctl_event(&mut self, key: usize, now: Instant) {
        if now.since_ns(self.status_at) >= nanos(IDLE_TICK) {
            self.status_at = now;
            self.status_json.clear();
            let wall_ns = self.clock.wall_ns();
            status::json(&self.server, &self.about, wall_ns, &mut self.status_json);
        }
        let Some(mut control) = Control::of(&mut self.server.shared, &self.status_json) else {
            return;
        };
        self.ctl.read(key, now, |visitor, bytes| {
            match visitor
                .protocol
                .receive(bytes, &mut control, &mut visitor.output)
            {
                Ok(actions) => {
                    visitor.descriptor_due |= actions.send_descriptor;
                    visitor.closing |= actions.close;
                }
                Err(_) => {
                    visitor.output.clear();
                    visitor.closing = true;
                }
            }
        });
        let ring = self.ring.as_ref().map(AsFd::as_fd);
        if let Some(session) = self.ctl.send(key, now, ring) {
            session.close(&mut control);
        }
        let events = control.events;
        let shared = &mut self.server.shared;
        for (event, name) in events {
            let fields = [
                ("event", Value::Str(event)),
                ("consumer", Value::Str(&name)),
            ];
            shared.logger.line(Class::Consumer, &fields, now);
        }
    }

    /// Tells those who watch how far the log has come, once a turn at most.
    fn report_progress(&mut self, now: Instant) {
        if self.ctl.is_empty() {
            return;
        }
        let Some(mut control) = Control::of(&mut self.server.shared, &[]) else {
            return;
        };
        for key in 0..self.ctl.key_bound() {
            let Some(visitor) = self.ctl.get_mut(key) else {
                continue;
            };
            if visitor.output.is_empty()
                && visitor.protocol.report(&control, &mut visitor.output)
                && let Some(session) = self.ctl.send(key, now, self.ring.as_ref().map(AsFd::as_fd))
            {
                session.close(&mut control);
            }
        }
    }
}

/// Appends the answer to a request; the second clock is the coarse one of the log's limits.
fn put_page<B: Backing, C: Committer>(
    server: &mut Server<MioStream, B, C>,
    about: &About,
    newest: &[Summary],
    request: &http::Request,
    (clock, log_at): (&Clock, Instant),
    out: &mut Vec<u8>,
) {
    let shared = &mut server.shared;
    shared.metrics.http_requests += 1;
    if let Some(reason) = request.route.refusal() {
        let fields = [("reason", Value::Str(reason))];
        shared.logger.line(Class::Http, &fields, log_at);
    }
    status::answer(server, about, newest, request, clock.wall_ns(), out);
}

/// Takes connections while the kernel holds some, [`TURN_ACCEPTS`] at most; `ready` becomes false when it holds none.
/// Returns the error when descriptors or memory ran out.
pub(super) fn accept_ready(
    ready: &mut bool,
    mut accept_one: impl FnMut() -> io::Result<()>,
) -> Option<io::Error> {
    for _ in 0..TURN_ACCEPTS {
        if !*ready {
            break;
        }
        match accept_one() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *ready = false,
            Err(error) if crate::sys::descriptors::is_exhausted(&error) => return Some(error),
            // Taken, or it ended before it was taken; the next one may not have.
            _ => {}
        }
    }
    None
}

fn start_rules_thread(mut load: LoadRules) -> io::Result<RulesThread> {
    let (requests, jobs) = sync_channel::<()>(1);
    let (results, answers) = sync_channel(1);
    std::thread::Builder::new()
        .name("rules".to_owned())
        .spawn(move || {
            // Rules are dropped here, where the time that takes is nobody's.
            let mut kept: Vec<Arc<Rules>> = Vec::new();
            loop {
                let look = Duration::from_millis(FILES_LOOK_MS);
                let must = match jobs.recv_timeout(look) {
                    Ok(()) => true,
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                kept.retain(|rules| Arc::strong_count(rules) > 1);
                let Some(loaded) = load(must) else {
                    continue;
                };
                let loaded = loaded.map(Arc::new);
                kept.extend(loaded.as_ref().ok().map(Arc::clone));
                // The loop looks once a second.
                if results.send(loaded).is_err() {
                    break;
                }
            }
        })?;
    Ok(RulesThread { requests, answers })
}

fn start_newest_thread(mut find: FindNewest, waker: Arc<Waker>) -> io::Result<NewestThread> {
    let (requests, jobs) = sync_channel::<Window>(1);
    let (results, answers) = sync_channel(1);
    std::thread::Builder::new()
        .name("newest".to_owned())
        .spawn(move || {
            for window in jobs {
                if results.send(find(window)).is_err() {
                    break;
                }
                drop(waker.wake());
            }
        })?;
    Ok(NewestThread {
        requests,
        answers,
        asked: false,
    })
}
