//! The loop of a parent process: workers, signals, and the pages that show all workers as one.
//!
//! Promises: nothing in here waits but the poll; a worker that ended is started again while its listening sockets, and
//! the connections that wait in them, are kept; one that ends too often is given up and the others go on. Does not:
//! fork, take mail, or touch a ring. Whoever runs it forks when [`Supervisor::run`] says so, which is why this process
//! has no threads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use mio::net::{TcpListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::desk::Desk;
use super::handover::{Asked, Handover, Head, Kind};
use super::pages::{Answered, Pages};
use crate::clock::{Clock, Instant, nanos};
use crate::limits::{
    HANDOVER_GRACE, WORKER_ANSWER_WAIT, WORKER_ENDS_MAX, WORKER_RESTART_MIN, WORKER_WINDOW,
    WORKERS_MAX,
};
use crate::link::{self, Done, Order, Ready, Report};
use crate::logger::{Class, Logger, Value};
use crate::metrics::Metrics;
use crate::status::About;
use crate::status::snapshot::{self, Others, Snapshot, Told};
use crate::sys::process::{Child, Ended};
use crate::sys::signal::{Request, Signals};

const SIGNALS: usize = 0;
const HTTP_LISTENER: usize = 1;
const HANDOVER: usize = 2;
const HANDOVER_PEER: usize = 3;
const KIND_SHIFT: usize = 60;
const KIND_HTTP: usize = 1 << KIND_SHIFT;
const KIND_LINK: usize = 2 << KIND_SHIFT;
const KIND_MASK: usize = 15 << KIND_SHIFT;
/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Longest wait of the poll: silent HTTP connections are looked at then.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Wait between two looks at a process that has closed its link and is about to be gone.
const REAP_WAIT: Duration = Duration::from_millis(5);
/// A process that has closed its link and is not gone after this is killed.
const REAP_MAX: Duration = Duration::from_secs(10);
/// How long accepting pauses when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time beyond the drain deadline after which a worker that does not end is killed: its last sync has ten seconds.
const DRAIN_GRACE: Duration = Duration::from_secs(20);
/// Octets read from one link at a time.
const READ_BYTES: usize = 64 * 1_024;

/// What whoever runs the loop has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Start this worker, and tell by [`Supervisor::started`] or [`Supervisor::not_started`].
    Start(usize),
    /// All workers take mail; told once.
    AllReady,
    /// A worker could not start the first time, and all have ended: [`Supervisor::failure`] says why.
    Failed,
    /// Another process asks for the listening sockets: answer by [`Supervisor::give`].
    Give,
    /// The stop has begun: the listening sockets have to be closed.
    Stopping,
    /// This worker is given up: its listening sockets have to be closed, so that nobody waits in them.
    GivenUp(usize),
    /// All workers have ended.
    Ended,
}

/// What a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be started at this time.
    Due(Instant),
    /// Started; it does not take mail yet.
    Starting,
    /// Takes mail.
    Running,
    /// Ended, and not started again.
    Over,
}

struct Worker {
    state: State,
    child: Option<Child>,
    /// Key of its link while that is open.
    link: Option<usize>,
    /// When the link ended.
    lost_at: Option<Instant>,
    snapshot: Option<Snapshot>,
    /// Its answer to the question under way has not come.
    asked: bool,
    /// It left a question unanswered.
    silent: bool,
    ready: Option<Ready>,
    done: Option<Done>,
    /// When it ended unasked, as far as that counts; at most [`WORKER_ENDS_MAX`].
    ends: VecDeque<Instant>,
    given_up: bool,
    started_before: bool,
    failure: Option<(i32, String)>,
    exit: Option<Ended>,
}

/// The loop of a parent.
pub struct Supervisor {
    poll: Poll,
    clock: Clock,
    signals: Signals,
    logger: Logger,
    pages: Pages,
    links: Desk<UnixStream, link::Receiver>,
    workers: Vec<Worker>,
    about: About,
    /// What workers that have ended counted, as far as they told.
    retired: Metrics,
    retired_lines_dropped: u64,
    /// Sums of what these have done, as far as they told.
    earlier: Done,
    /// Times that a worker ended unasked.
    unasked_ends: u64,
    /// When the question under way was asked.
    asked_at: Option<Instant>,
    stop_since: Option<Instant>,
    drain_deadline: Duration,
    all_ready_told: bool,
    /// The worker that could not start the first time: its number, the exit code and why.
    failure: Option<(usize, i32, String)>,
    dues: VecDeque<Due>,
    accept_paused_until: Option<Instant>,
    /// Where another process may ask for the listening sockets.
    handover: Option<Handover>,
    handed_over: bool,
    /// A stop was not asked for since the hand-over.
    may_hurry: bool,
    idle_at: Instant,
}

impl Supervisor {
    /// Registers everything. `workers` of them are due at once.
    ///
    /// # Errors
    /// Whatever epoll says.
    pub fn new(
        workers: usize,
        clock: Clock,
        signals: Signals,
        logger: Logger,
        http: Option<TcpListener>,
        about: About,
        drain_deadline: Duration,
    ) -> io::Result<Supervisor> {
        assert!(workers <= WORKERS_MAX, "the settings were checked");
        let poll = Poll::new()?;
        let fd = signals.raw_fd();
        let registry = poll.registry();
        registry.register(&mut SourceFd(&fd), Token(SIGNALS), Interest::READABLE)?;
        let pages = Pages::new(http, registry, HTTP_LISTENER, KIND_HTTP)?;
        let now = clock.now();
        let worker = || Worker {
            state: State::Due(now),
            child: None,
            link: None,
            lost_at: None,
            snapshot: None,
            asked: false,
            silent: false,
            ready: None,
            done: None,
            ends: VecDeque::new(),
            given_up: false,
            started_before: false,
            failure: None,
            exit: None,
        };
        Ok(Supervisor {
            poll,
            clock,
            signals,
            logger,
            pages,
            // A link that was lost may still be there when the next one is made.
            links: Desk::new(KIND_LINK, 2 * WORKERS_MAX),
            workers: (0..workers).map(|_| worker()).collect(),
            about,
            retired: snapshot::no_metrics(),
            retired_lines_dropped: 0,
            earlier: Done::default(),
            unasked_ends: 0,
            asked_at: None,
            stop_since: None,
            drain_deadline,
            all_ready_told: false,
            failure: None,
            dues: VecDeque::new(),
            accept_paused_until: None,
            handover: None,
            handed_over: false,
            may_hurry: false,
            idle_at: now,
        })
    }

    /// Runs until something has to be done that this loop does not do.
    ///
    /// # Errors
    /// Whatever the poll says.
    pub fn run(&mut self) -> io::Result<Due> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            if let Some(due) = self.next_due() {
                return Ok(due);
            }
            let timeout = self.timeout();
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            self.turn(&events);
        }
    }

    /// The worker runs as `child`, with the other end of `stream`.
    pub fn started(&mut self, index: usize, child: Child, stream: StdUnixStream) {
        let now = self.clock.now();
        let admitted = stream.set_nonblocking(true).and_then(|()| {
            self.links.admit(
                UnixStream::from_std(stream),
                link::Receiver::new(),
                self.poll.registry(),
                now,
            )
        });
        let worker = &mut self.workers[index];
        worker.state = State::Starting;
        worker.failure = None;
        worker.exit = None;
        match admitted {
            Ok(Some(key)) => {
                worker.link = Some(key);
                if worker.started_before
                    && let Some(visitor) = self.links.get_mut(key)
                {
                    // What was read when the parent started may have changed since.
                    Order::Reload.put(&mut visitor.output);
                }
                worker.started_before = true;
            }
            // Without a link it is of no use.
            Ok(None) | Err(_) => {
                child.kill();
                worker.lost_at = Some(now);
            }
        }
        worker.child = Some(child);
    }

    /// The worker could not be started; it counts as ended.
    pub fn not_started(&mut self, index: usize, error: &io::Error) {
        self.workers[index].failure = Some((1, format!("starting a process: {error}")));
        self.ended(index, Ended::Code(1));
    }

    /// What the workers said when they were ready, in their order; nothing of those that were not.
    pub fn ready(&self) -> Vec<Ready> {
        let workers = self.workers.iter();
        workers.filter_map(|worker| worker.ready.clone()).collect()
    }

    /// What was done: by each worker to the end, and by those that ended before, as far as they told.
    pub fn done(&self) -> Vec<Done> {
        let workers = self.workers.iter().filter_map(|worker| worker.done);
        workers.chain([self.earlier]).collect()
    }

    /// Times that a worker ended unasked.
    pub fn unasked_ends(&self) -> u64 {
        self.unasked_ends
    }

    /// How the workers ended, in their order; `None` for one that never ran.
    pub fn exits(&self) -> Vec<Option<Ended>> {
        self.workers.iter().map(|worker| worker.exit).collect()
    }

    /// Why a worker could not start: its number, the exit code and one sentence.
    pub fn failure(&self) -> Option<(usize, i32, String)> {
        self.failure.clone()
    }

    /// Address of the pages.
    pub fn http_address(&self) -> Option<std::net::SocketAddr> {
        self.pages.listener()?.local_addr().ok()
    }

    /// The log of the parent.
    pub fn logger(&mut self) -> &mut Logger {
        &mut self.logger
    }

    fn next_due(&mut self) -> Option<Due> {
        if let Some(due) = self.dues.pop_front() {
            return Some(due);
        }
        let now = self.clock.now();
        if self
            .workers
            .iter()
            .all(|worker| worker.state == State::Over)
        {
            return Some(match self.failure {
                Some(_) => Due::Failed,
                None => Due::Ended,
            });
        }
        let ready = |worker: &Worker| worker.state == State::Running;
        if !self.all_ready_told && self.workers.iter().all(ready) {
            self.all_ready_told = true;
            return Some(Due::AllReady);
        }
        let due = |worker: &Worker| matches!(worker.state, State::Due(at) if at <= now);
        self.workers.iter().position(due).map(Due::Start)
    }

    fn timeout(&self) -> Duration {
        let now = self.clock.now();
        let paused = self.accept_paused_until.is_some_and(|until| until > now);
        if self.pages.has_more() || (self.pages.is_ready() && !paused) {
            return Duration::ZERO;
        }
        let mut wait_ns = nanos(IDLE_TICK);
        for worker in &self.workers {
            if let State::Due(at) = worker.state {
                wait_ns = wait_ns.min(at.since_ns(now));
            }
            if worker.child.is_some() && worker.link.is_none() {
                wait_ns = wait_ns.min(nanos(REAP_WAIT));
            }
        }
        for until in [
            self.accept_paused_until,
            self.asked_at.map(|at| at.after(WORKER_ANSWER_WAIT)),
        ] {
            wait_ns = until.map_or(wait_ns, |until| wait_ns.min(until.since_ns(now)));
        }
        Duration::from_nanos(wait_ns)
    }

    fn turn(&mut self, events: &Events) {
        let now = self.clock.now();
        // Signals first: a worker that a stop has ended as well is not started again.
        self.take_signals(now);
        let mut links = Vec::new();
        for event in events {
            let bits = event.token().0;
            let key = bits & !KIND_MASK;
            match bits & KIND_MASK {
                KIND_HTTP => self.http_event(key, now),
                KIND_LINK => links.push(key),
                _ if bits == HTTP_LISTENER => self.pages.set_ready(),
                _ if bits == HANDOVER => self.handover_event(true, now),
                _ if bits == HANDOVER_PEER => self.handover_event(false, now),
                _ => {}
            }
        }
        for key in links {
            self.link_event(key, now);
        }
        if self.accept_paused_until.is_some_and(|until| until <= now) {
            self.accept_paused_until = None;
        }
        if self.accept_paused_until.is_none()
            && self.pages.accept(self.poll.registry(), now).is_some()
        {
            self.accept_paused_until = Some(now.after(ACCEPT_PAUSE));
        }
        for key in self.pages.take_again() {
            self.http_event(key, now);
        }
        self.reap(now);
        self.ask(now);
        self.settle(now);
        if now.since_ns(self.idle_at) >= nanos(IDLE_TICK) {
            self.idle_at = now;
            self.pages.expire(now);
        }
        self.logger.tick(now);
    }

    fn take_signals(&mut self, now: Instant) {
        while let Some(request) = self.signals.next_request() {
            match request {
                // The workers die with this process.
                // A hand-over lets sessions go on for a while; this ends that.
                Request::Stop if std::mem::take(&mut self.may_hurry) => {
                    self.order_all(Order::Drain, now);
                }
                Request::Stop if self.stop_since.is_some() => crate::sys::signal::exit_now(3),
                Request::Stop => self.stop(now),
                Request::Reload => self.order_all(Order::Reload, now),
            }
        }
    }

    /// Has all workers drain.
    fn stop(&mut self, now: Instant) {
        if self.stop_since.is_none() {
            self.stop_with(Order::Drain, now);
        }
    }

    fn stop_with(&mut self, order: Order, now: Instant) {
        self.stop_since = Some(now);
        self.dues.push_back(Due::Stopping);
        for worker in &mut self.workers {
            if matches!(worker.state, State::Due(_)) {
                worker.state = State::Over;
            }
        }
        self.order_all(order, now);
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
        let registry = self.poll.registry();
        let handover = Handover::new(listener, head, registry, HANDOVER, HANDOVER_PEER)?;
        self.handover = Some(handover);
        Ok(())
    }

    /// Sends the sockets for mail to the process that asked, and that of the pages.
    pub fn give(&mut self, mail: Vec<(u16, OwnedFd)>) {
        let mut sockets: Vec<(Kind, OwnedFd)> = mail
            .into_iter()
            .map(|(worker, socket)| (Kind::Mail(worker), socket))
            .collect();
        let http = self
            .pages
            .listener()
            .map(|socket| socket.as_fd().try_clone_to_owned());
        if let Some(Ok(socket)) = http {
            sockets.push((Kind::Http, socket));
        }
        let asked = self
            .handover
            .as_mut()
            .map(|handover| handover.give(sockets));
        if asked == Some(Asked::Go) {
            self.hand_over(self.clock.now());
        }
    }

    /// Whether another process has taken the listening sockets over, and the files that belong to them.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    fn handover_event(&mut self, listening: bool, now: Instant) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        let asked = match listening {
            true => handover.accept(self.poll.registry()),
            false => handover.event(),
        };
        match asked {
            Asked::Nothing => {}
            Asked::Sockets => self.dues.push_back(Due::Give),
            Asked::Go => self.hand_over(now),
        }
    }

    fn hand_over(&mut self, now: Instant) {
        if let Some(handover) = &mut self.handover {
            handover.released();
        }
        self.handover = None;
        if self.stop_since.is_some() {
            return;
        }
        self.handed_over = true;
        self.may_hurry = true;
        self.pages.stop_listening();
        self.logger.line(Class::HandedOver, &[], now);
        // Workers drain by themselves when the time of grace is over.
        self.drain_deadline = self.drain_deadline.saturating_add(HANDOVER_GRACE);
        self.stop_with(Order::HandOver, now);
    }

    fn order_all(&mut self, order: Order, now: Instant) {
        for index in 0..self.workers.len() {
            self.order(index, order, now);
        }
    }

    fn order(&mut self, index: usize, order: Order, now: Instant) {
        if let Some(key) = self.workers[index].link
            && let Some(visitor) = self.links.get_mut(key)
        {
            order.put(&mut visitor.output);
            self.send(index, key, now);
        }
    }

    fn send(&mut self, index: usize, key: usize, now: Instant) {
        if self.links.send(key, now, None).is_some() {
            self.lost(index, now);
        }
    }

    fn lost(&mut self, index: usize, now: Instant) {
        let worker = &mut self.workers[index];
        worker.link = None;
        worker.lost_at = Some(now);
        worker.asked = false;
    }

    fn link_event(&mut self, key: usize, now: Instant) {
        let owner = |worker: &Worker| worker.link == Some(key);
        let Some(index) = self.workers.iter().position(owner) else {
            return;
        };
        let mut buf = vec![0; READ_BYTES];
        while let Some(len) = self.links.read_some(key, now, &mut buf)
            && let Some(visitor) = self.links.get_mut(key)
        {
            match visitor.protocol.reports(&buf[..len]) {
                Ok(reports) => {
                    for report in reports {
                        self.take_report(index, report, now);
                    }
                }
                Err(link::Broken) => {
                    visitor.closing = true;
                    visitor.output.clear();
                    if let Some(child) = &self.workers[index].child {
                        child.kill();
                    }
                }
            }
        }
        self.send(index, key, now);
    }

    fn take_report(&mut self, index: usize, report: Report, now: Instant) {
        let worker = &mut self.workers[index];
        match report {
            Report::Ready(ready) => {
                worker.state = State::Running;
                if ready.maps {
                    self.about.ring_write = "map";
                }
                worker.ready = Some(ready);
                if self.stop_since.is_some() {
                    // It was starting when the others were told.
                    self.order(index, Order::Drain, now);
                } else if self.all_ready_told {
                    let fields = [("worker", Value::Number(index as u64))];
                    self.logger.line(Class::WorkerStarted, &fields, now);
                }
            }
            Report::Failed { code, text } => worker.failure = Some((code, text)),
            Report::State(bytes) => {
                worker.asked = false;
                if let Some(snapshot) = Snapshot::decode(&bytes) {
                    worker.silent = false;
                    worker.snapshot = Some(snapshot);
                }
            }
            Report::Done(done) => worker.done = Some(done),
        }
    }

    /// Looks after processes whose link has ended, and after those that do not drain.
    fn reap(&mut self, now: Instant) {
        let overdue = self.stop_since.is_some_and(|since| {
            now.since_ns(since) >= nanos(self.drain_deadline.saturating_add(DRAIN_GRACE))
        });
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let Some(child) = &mut worker.child else {
                continue;
            };
            let late = worker
                .lost_at
                .is_some_and(|at| now.since_ns(at) >= nanos(REAP_MAX));
            if overdue || late {
                child.kill();
            }
            if worker.link.is_some() {
                continue;
            }
            // A process that can't be waited for is none of ours any more.
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(ended)) => self.ended(index, ended),
                Err(_) => self.ended(index, Ended::Code(1)),
            }
        }
    }

    fn ended(&mut self, index: usize, how: Ended) {
        let now = self.clock.now();
        let worker = &mut self.workers[index];
        worker.child = None;
        worker.lost_at = None;
        worker.exit = Some(how);
        // Counters never go back: what was shown of this worker stays in the sums.
        if let Some(snapshot) = worker.snapshot.take() {
            if worker.done.is_none() {
                self.earlier.accepted += snapshot.metrics.messages_accepted;
                self.earlier.connections += snapshot.metrics.connections_accepted;
            }
            self.retired.merge(&snapshot.metrics);
            self.retired_lines_dropped += snapshot.log_lines_dropped();
        }
        if self.stop_since.is_some() {
            worker.state = State::Over;
            return;
        }
        if !self.all_ready_told {
            // The first start: all of it works, or none. The worker that failed first has the say.
            worker.state = State::Over;
            let (code, text) = worker.failure.take().unwrap_or_else(|| {
                let code = match how {
                    Ended::Code(code) => code,
                    Ended::Signal(_) => 1,
                };
                (code, describe(how))
            });
            self.failure = Some((index, code, text));
            self.stop(now);
            return;
        }
        while worker
            .ends
            .front()
            .is_some_and(|at| now.since_ns(*at) >= nanos(WORKER_WINDOW))
        {
            worker.ends.pop_front();
        }
        worker.ends.push_back(now);
        self.unasked_ends += 1;
        if let Some(done) = worker.done.take() {
            self.earlier.accepted += done.accepted;
            self.earlier.refused += done.refused;
            self.earlier.connections += done.connections;
            self.earlier.cut += done.cut;
        }
        let why = match &worker.failure {
            Some((_, text)) => text.clone(),
            None => describe(how),
        };
        let fields = [
            ("worker", Value::Number(index as u64)),
            ("because", Value::Str(&why)),
            ("ends", Value::Number(worker.ends.len() as u64)),
        ];
        if worker.ends.len() >= WORKER_ENDS_MAX {
            worker.state = State::Over;
            worker.given_up = true;
            self.logger.line(Class::WorkerGivenUp, &fields, now);
            self.dues.push_back(Due::GivenUp(index));
            return;
        }
        self.logger.line(Class::WorkerEnded, &fields, now);
        let doubled = WORKER_RESTART_MIN * (1 << (worker.ends.len() - 1));
        worker.state = State::Due(now.after(doubled));
    }

    // HTTP.

    fn http_event(&mut self, key: usize, now: Instant) {
        let Supervisor {
            pages,
            about,
            retired,
            logger,
            clock,
            ..
        } = self;
        pages.event(key, now, &mut |request, out| {
            let Some(reason) = request.route.refusal() else {
                return Answered::Later;
            };
            retired.http_requests += 1;
            logger.line(Class::Http, &[("reason", Value::Str(reason))], now);
            // A refusal shows nothing of the workers.
            let others = Others {
                metrics: snapshot::no_metrics(),
                log_lines_dropped: 0,
                unhealthy: None,
                unready: None,
            };
            snapshot::answer(about, &[], &others, request, clock.wall_ns(), out);
            Answered::Now
        });
    }

    /// Asks all workers for their state when a request waits for it. A request waits for a question that was asked
    /// after it came, so that its answer shows what was done before it.
    fn ask(&mut self, now: Instant) {
        if self.asked_at.is_some() || !self.pages.is_waited_for(self.pages.round) {
            return;
        }
        self.asked_at = Some(now);
        let newest = self.pages.needs_newest();
        self.pages.round += 1;
        for index in 0..self.workers.len() {
            if self.workers[index].state == State::Running {
                self.workers[index].asked = true;
                self.order(index, Order::Tell { newest }, now);
            }
        }
    }

    /// Answers the requests of the question under way when all workers have, or their time is over.
    fn settle(&mut self, now: Instant) {
        let Some(asked_at) = self.asked_at else {
            return;
        };
        let waits = self.workers.iter().any(|worker| worker.asked);
        if waits && now.since_ns(asked_at) < nanos(WORKER_ANSWER_WAIT) {
            return;
        }
        self.asked_at = None;
        for worker in &mut self.workers {
            worker.silent |= std::mem::take(&mut worker.asked);
        }
        let round = self.pages.round.saturating_sub(1);
        for (key, request) in self.pages.take_waiting(round) {
            self.retired.http_requests += 1;
            let others = self.others();
            let told: Vec<Told<'_>> = self
                .workers
                .iter()
                .enumerate()
                .map(|(index, worker)| (index, worker.snapshot.as_ref()))
                .collect();
            let (about, wall_ns) = (&self.about, self.clock.wall_ns());
            self.pages.put(key, &request, |out| {
                snapshot::answer(about, &told, &others, &request, wall_ns, out);
            });
            self.http_event(key, now);
        }
        // Those that came meanwhile.
        self.ask(now);
    }

    fn others(&self) -> Others {
        let name = |of: fn(&Worker) -> bool, what: &str| {
            let index = self.workers.iter().position(of)?;
            Some(format!("worker {index} {what}"))
        };
        let given_up = name(
            |worker| worker.given_up,
            "ended too often and is not started again",
        );
        let silent = name(
            |worker| worker.silent && worker.state == State::Running,
            "does not answer",
        );
        let starting = name(
            |worker| matches!(worker.state, State::Due(_) | State::Starting),
            "is being started",
        );
        let unhealthy = given_up.or(silent);
        let draining = self.stop_since.map(|_| "shutting down".to_owned());
        Others {
            metrics: self.retired.clone(),
            log_lines_dropped: self.retired_lines_dropped + self.logger.dropped_total(),
            unready: draining.or_else(|| unhealthy.clone()).or(starting),
            unhealthy,
        }
    }
}

/// How a process ended, in words.
fn describe(how: Ended) -> String {
    match how {
        Ended::Code(code) => format!("it ended with exit code {code}"),
        Ended::Signal(number) => format!("signal {number} ended it"),
    }
}
