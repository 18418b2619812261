//! One event loop: connections, time-outs, pacing. The only place that reads the clock.
//!
//! Promises: at most one send for each wake-up of a session unless the socket is full; nothing
//! allocated for a message once buffers have grown; every wait has an end; the run ends at its
//! limit plus the drain time whatever the target does.
//! Does not: parse replies (`client`) or judge what was measured (`verdict`).

use crate::client::{Client, Close, Desk, Events, Fault, Finished, Outcome, Phase, Want};
use crate::ledger::Ledger;
use crate::plan::{Mode, Quit, Schedule, Spec, Workload};
use crate::raw::RawLog;
use crate::recorder::{Load, Recorder};
use crate::sys::{self, RunQueue, Timer};
use crate::wire::{Spare, Target, Wire};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often time-outs are looked for.
const SCAN_NS: u64 = 100_000_000;
/// How long the loop sleeps at most; an interrupt is noticed within this time.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// How long a server may take to close after its reply to QUIT.
const LINGER_NS: u64 = 1_000_000_000;
/// How long runs whose sessions connect first wait for them before the clock starts.
pub const WARM_CONNECT_NS: u64 = 3_000_000_000;
/// Messages begun in one turn, so that replies are read meanwhile.
const BEGINS_MAX: usize = 256;
/// Reads of one session per wake-up, so that one busy server can't starve the others.
const READS_MAX: usize = 16;
const TIMER: Token = Token(usize::MAX);

/// Counters that the display reads while the run goes on. Each worker writes its own in every turn, so two must not lie
/// in one cache line, nor in one pair of lines, which are fetched together.
#[derive(Default)]
#[repr(align(128))]
pub struct Live {
    /// See `Totals`.
    pub accepted: AtomicU64,
    /// See `Totals`.
    pub deferred: AtomicU64,
    /// See `Totals`.
    pub rejected: AtomicU64,
    /// See `Totals`.
    pub failed: AtomicU64,
    /// See `Totals`.
    pub attempted: AtomicU64,
    /// Messages planned so far, open loop.
    pub offered: AtomicU64,
    /// Connections that are up.
    pub sessions: AtomicU64,
    /// CPU time of the worker.
    pub cpu_ns: AtomicU64,
    /// Median latency of the last full second.
    pub p50_ns: AtomicU64,
    /// 99 % latency of the last full second.
    pub p99_ns: AtomicU64,
    /// Largest latency of the last full second.
    pub max_ns: AtomicU64,
}

impl Live {
    /// Returns all of them, in one fixed order.
    pub fn fields(&self) -> [&AtomicU64; 11] {
        // Without a rest pattern: a field that is missing here does not compile.
        let Self {
            accepted,
            deferred,
            rejected,
            failed,
            attempted,
            offered,
            sessions,
            cpu_ns,
            p50_ns,
            p99_ns,
            max_ns,
        } = self;
        [
            accepted, deferred, rejected, failed, attempted, offered, sessions, cpu_ns, p50_ns,
            p99_ns, max_ns,
        ]
    }
}

/// What the workers of a run share.
pub struct Shared {
    /// Ends the run early.
    pub stop: AtomicBool,
    /// Sessions that have been ready once, or have nothing to do; a clock that waits for them starts when all are.
    pub ready: AtomicU64,
    /// Sessions of the workers that share this.
    pub sessions: u64,
    /// One process of several: such a clock starts when it is told, not when its own sessions are ready.
    pub gated: bool,
    /// When it is told to start, on the monotonic clock in ns; 0 before.
    pub start_ns: AtomicU64,
    /// One entry for each worker.
    pub live: Vec<Live>,
}

impl Shared {
    /// Prepares what `threads` workers share that are the first, second and so on from worker `first` of `workers`,
    /// of a run of `sessions`.
    pub fn new(threads: usize, first: usize, workers: usize, sessions: u32, gated: bool) -> Self {
        Self {
            stop: AtomicBool::new(false),
            ready: AtomicU64::new(0),
            sessions: (first..first + threads)
                .map(|number| share(sessions, number, workers))
                .sum(),
            gated,
            start_ns: AtomicU64::new(0),
            live: (0..threads).map(|_| Live::default()).collect(),
        }
    }
}

/// Returns how many of `sessions` belong to worker `number` of `workers`.
fn share(sessions: u32, number: usize, workers: usize) -> u64 {
    u64::from(sessions)
        .saturating_sub(number as u64)
        .div_ceil(workers as u64)
}

/// Which worker of a run one is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number among the workers of all processes.
    pub number: usize,
    /// How many those are.
    pub workers: usize,
    /// Its number among the workers of this process.
    pub here: usize,
}

/// The files that get a line for each message.
#[derive(Default)]
pub struct Logs {
    /// What was accepted.
    pub ledger: Option<Ledger>,
    /// What became of every message.
    pub raw: Option<RawLog>,
}

impl Logs {
    /// Makes other writers of the same files.
    pub fn share(&self) -> Self {
        Self {
            ledger: self.ledger.as_ref().map(Ledger::share),
            raw: self.raw.as_ref().map(RawLog::share),
        }
    }

    /// Hands all lines to the kernel.
    ///
    /// **Errors**: a file can't take them.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(ledger) = &mut self.ledger {
            ledger.flush()?;
        }
        match &mut self.raw {
            Some(raw) => raw.flush(),
            None => Ok(()),
        }
    }
}

/// Settings of the machine side: they change how, not what.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Never sleep.
    pub spin: bool,
    /// Bind workers to these CPUs in turn.
    pub cpus: Vec<usize>,
    /// Connects that may be under way at one time, so that no listen queue overflows.
    pub connecting_max: usize,
    /// Consecutive failures after which a session gives up.
    pub attempts_max: u32,
}

/// What a session slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not connected, and nothing to do.
    Idle,
    /// Wants to connect; in the start queue or waiting for a timer.
    Waiting,
    /// The connect is under way.
    Connecting,
    /// Speaking SMTP.
    Up,
    /// Connected, without a message to send.
    Parked,
    /// QUIT was answered; the server has not closed yet.
    Lingering,
    /// Done for this run.
    Over,
}

struct Slot {
    stage: Stage,
    client: Client,
    wire: Option<Wire>,
    /// The socket of the connection before, registered with the token of this slot.
    spare: Option<Spare>,
    generation: u32,
    /// Number among the sessions of the run.
    session: u64,
    /// Closed loop: which of its messages is next.
    turn: u64,
    /// Connections so far.
    connections: u64,
    /// Messages on this connection, and the most it may carry (0 means all).
    carried: u32,
    carries_max: u32,
    failures: u32,
    replies_seen: u64,
    was_ready: bool,
    /// A message that waits for its connection.
    pending: Option<(Spec, u64)>,
}

/// Recorder and logs, as the receiver of what sessions measure.
struct Book {
    recorder: Recorder,
    logs: Logs,
    now: u64,
}

impl Events for Book {
    fn latency(&mut self, phase: Phase, ns: u64) {
        // By its start, as whole messages are.
        if self.recorder.measures(self.now.saturating_sub(ns)) {
            self.recorder.latency(phase, ns);
        }
    }

    fn reply(&mut self, phase: Phase, code: u16, text: &[u8]) {
        self.recorder.reply(phase, code, text);
    }

    fn finished(&mut self, done: Finished<'_>) {
        if done.outcome == Outcome::Accepted
            && let (Some(ledger), Some(stamp)) = (&mut self.logs.ledger, &done.stamp)
        {
            ledger.accepted(stamp, done.now_ns, done.text);
        }
        if let Some(raw) = &mut self.logs.raw {
            raw.finished(&done, false);
        }
        self.recorder.finished(&done);
    }
}

/// Planned starts of this worker's messages.
struct Arrivals {
    /// The next that becomes due.
    due: Schedule,
    /// The next to be begun; never ahead of `due`.
    serve: Schedule,
    /// Due and not begun.
    backlog: u64,
    /// No arrival at or after this time.
    until_ns: u64,
    /// No arrival with this number or a higher one.
    seq_end: u64,
}

impl Arrivals {
    fn peek(&self) -> Option<u64> {
        let (seq, at) = self.due.next();
        (seq < self.seq_end && at < self.until_ns).then_some(at)
    }
}

/// One thread of the run.
pub struct Worker {
    load: Arc<Workload>,
    target: Arc<Target>,
    shared: Arc<Shared>,
    tuning: Tuning,
    place: Place,
    poll: Poll,
    timer: Timer,
    /// What the timer is set to, on the monotonic clock; 0 when it has rung.
    armed_ns: u64,
    /// When the run began, on the monotonic clock.
    epoch_ns: u64,
    slots: Vec<Slot>,
    deadlines: Vec<u64>,
    starts: std::collections::VecDeque<u32>,
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    /// Slots that can take an arrival.
    free: Vec<u32>,
    /// Slots that waited for the others, and have not begun since.
    begins: Vec<u32>,
    arrivals: Option<Arrivals>,
    by_connection: bool,
    started: bool,
    desk: Desk,
    book: Book,
    buffers: Vec<Vec<u8>>,
    input: Vec<u8>,
    connecting: usize,
    /// Slots that are not over and not idle.
    active: usize,
    draining: bool,
    stop_ns: u64,
    logs_error: Option<io::Error>,
    /// Time spent in polls that found nothing, when spinning.
    idle_ns: u64,
}

impl Worker {
    /// Prepares one worker.
    ///
    /// **Errors**: no descriptor is left for its poll or its timer.
    pub fn new(
        load: Arc<Workload>,
        target: Arc<Target>,
        shared: Arc<Shared>,
        tuning: Tuning,
        place: Place,
        logs: Logs,
    ) -> io::Result<Self> {
        let plan = &load.plan;
        let poll = Poll::new()?;
        let timer = Timer::new()?;
        poll.registry()
            .register(&mut SourceFd(&timer.raw_fd()), TIMER, Interest::READABLE)?;
        let stop_ns = plan
            .duration_ns
            .map_or(u64::MAX, |measured| plan.warmup_ns + measured);
        let (index, workers) = (place.number, place.workers);
        let sessions = share(plan.sessions, index, workers);
        let slots: Vec<Slot> = (0..sessions)
            .map(|n| Slot {
                stage: Stage::Idle,
                client: Client::default(),
                wire: None,
                spare: None,
                generation: 0,
                session: index as u64 + n * workers as u64,
                turn: 0,
                connections: 0,
                carried: 0,
                carries_max: 0,
                failures: 0,
                replies_seen: 0,
                was_ready: false,
                pending: None,
            })
            .collect();
        let (arrivals, by_connection) = match plan.mode {
            Mode::Closed => (None, false),
            Mode::Open {
                rate,
                poisson,
                by_connection,
            } => {
                let due = Schedule::new(plan.seed, rate, poisson, index as u64, workers as u64)
                    .shaped(&plan.shape)
                    .traced(plan.trace.clone());
                let serve = due.clone();
                let seq_end = plan.messages.unwrap_or(u64::MAX);
                let arrivals = Arrivals {
                    due,
                    serve,
                    backlog: 0,
                    until_ns: stop_ns,
                    seq_end,
                };
                (Some(arrivals), by_connection)
            }
        };
        let open = arrivals.is_some();
        let connects_first = plan.connects_first();
        let book = Book {
            recorder: Recorder::new(plan.warmup_ns, stop_ns, open),
            logs,
            now: 0,
        };
        Ok(Self {
            deadlines: vec![u64::MAX; slots.len()],
            desk: Desk::new(load.clone()),
            load,
            target,
            shared,
            tuning,
            place,
            poll,
            timer,
            armed_ns: 0,
            epoch_ns: sys::monotonic_ns(),
            slots,
            starts: std::collections::VecDeque::new(),
            timers: BinaryHeap::new(),
            free: Vec::new(),
            begins: Vec::new(),
            arrivals,
            by_connection,
            started: !connects_first,
            book,
            buffers: Vec::new(),
            input: vec![0; 64 << 10],
            connecting: 0,
            active: 0,
            draining: false,
            stop_ns,
            logs_error: None,
            idle_ns: 0,
        })
    }

    fn clock(&self) -> u64 {
        sys::monotonic_ns() - self.epoch_ns
    }

    /// Runs to the end and returns what was measured.
    ///
    /// **Errors**: the poll failed, or the ledger could not be written.
    pub fn run(mut self) -> io::Result<Recorder> {
        if !self.tuning.cpus.is_empty() {
            sys::pin_thread(self.tuning.cpus[self.place.number % self.tuning.cpus.len()])?;
        }
        let queue = RunQueue::of_this_thread();
        let mut events = mio::Events::with_capacity(1024);
        self.epoch_ns = sys::monotonic_ns();
        self.enlist();
        let mut at_start: Option<(u64, u64, u64)> = None;
        let mut at_end: Option<(u64, u64, u64)> = None;
        let mut next_scan = SCAN_NS;
        let mut second = 0;
        let mut second_cpu = sys::thread_cpu_ns();
        let mut stopped = false;
        loop {
            let now = self.clock();
            self.book.now = now;
            if !self.started
                && let Some(at) = self.clock_starts(now)
            {
                self.start_clock(at);
                continue;
            }
            let idle_ns = self.idle_ns;
            // Spinning is no work.
            let busy_ns = || sys::thread_cpu_ns().saturating_sub(idle_ns);
            let sample = |queue: &RunQueue| (now, busy_ns(), queue.waited_ns().unwrap_or(0));
            if at_start.is_none() && self.started && now >= self.load.plan.warmup_ns {
                at_start = Some(sample(&queue));
            }
            let is_over = self.started && now >= self.stop_ns;
            if !self.draining && (is_over || self.stop_asked()) {
                stopped = true;
                at_end = Some(sample(&queue));
                self.drain(now);
            }
            let drain_end = self.stop_ns.saturating_add(self.load.plan.drain_ns);
            if (self.draining && now >= drain_end) || self.is_finished() {
                at_end.get_or_insert_with(|| sample(&queue));
                break;
            }
            self.dispatch(now);
            self.begin_some();
            self.fire_timers(now);
            self.connect_some(now);
            if now >= next_scan {
                self.scan_deadlines(now);
                next_scan = now + SCAN_NS;
            }
            if now / 1_000_000_000 != second {
                let cpu = sys::thread_cpu_ns();
                self.book.recorder.row(second * 1_000_000_000).cpu_ns = cpu - second_cpu;
                second_cpu = cpu;
                self.publish_second(second, cpu);
                second = now / 1_000_000_000;
            }
            let wait = self.pause(now);
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let woke = self.clock();
            if self.tuning.spin && events.is_empty() {
                self.idle_ns += woke - now;
            }
            for event in &events {
                if event.token() == TIMER {
                    // Not read: the poll reports edges, and setting it again makes the next one.
                    self.armed_ns = 0;
                    continue;
                }
                self.ready(event);
            }
            if let Err(error) = self.book.logs.flush() {
                self.logs_error = Some(error);
                break;
            }
            let lag = self.clock().saturating_sub(woke);
            let row = self.book.recorder.row(woke);
            row.lag_ns = row.lag_ns.max(lag);
            self.publish();
        }
        self.close_books(at_start, at_end, stopped)
    }

    /// Ends the accounts: what is in flight is unfinished, what is due is unsent. `stopped` by its duration or by a
    /// signal, not by its count.
    fn close_books(
        mut self,
        at_start: Option<(u64, u64, u64)>,
        at_end: Option<(u64, u64, u64)>,
        stopped: bool,
    ) -> io::Result<Recorder> {
        let now = self.clock();
        let open = self.arrivals.is_some();
        for slot in &mut self.slots {
            if !slot.client.is_busy() && slot.pending.is_none() {
                continue;
            }
            self.book.recorder.totals.unfinished += 1;
            let mut last = LastLook {
                intended_ns: slot.pending.map(|(_, at)| at),
                raw: self.book.logs.raw.as_mut(),
            };
            if let (Some((spec, at)), Some(raw)) = (slot.pending, &mut last.raw) {
                raw.unsent(spec.seq, at, now);
            }
            slot.client.lost(Fault::Timeout, now, &mut last);
            if let (true, Some(at)) = (open, last.intended_ns)
                && self.book.recorder.measures(at)
            {
                self.book
                    .recorder
                    .latency(Phase::Response, now.saturating_sub(at));
            }
        }
        if let Some(arrivals) = &mut self.arrivals {
            while let Some(at) = arrivals.peek().filter(|at| *at <= now) {
                arrivals.due.advance();
                arrivals.backlog += 1;
                self.book.recorder.totals.window_offered +=
                    u64::from(self.book.recorder.measures(at));
            }
            self.book.recorder.totals.unsent += arrivals.backlog;
            for _ in 0..arrivals.backlog {
                // Right-censored: it waited at least this long.
                let (seq, at) = arrivals.serve.next();
                arrivals.serve.advance();
                if let Some(raw) = &mut self.book.logs.raw {
                    raw.unsent(seq, at, now);
                }
                if self.book.recorder.measures(at) {
                    self.book
                        .recorder
                        .latency(Phase::Response, now.saturating_sub(at));
                }
            }
        } else if let (Some(messages), None) = (self.load.plan.messages, self.load.plan.duration_ns)
        {
            let share: u64 = self
                .slots
                .iter()
                .map(|slot| {
                    messages
                        .saturating_sub(slot.session)
                        .div_ceil(u64::from(self.load.plan.sessions))
                })
                .sum();
            self.book.recorder.totals.unsent += share - self.book.recorder.totals.attempted;
        }
        for slot in &self.slots {
            if let Some(wire) = &slot.wire {
                self.book.recorder.totals.retransmits += wire.retransmits();
            }
        }
        if let Some(error) = self.logs_error {
            return Err(error);
        }
        self.book.logs.flush()?;
        let mut recorder = self.book.recorder;
        let (from, to) = (at_start.unwrap_or_default(), at_end.unwrap_or_default());
        recorder.loads.push(Load {
            cpu_ns: to.1.saturating_sub(from.1),
            waited_ns: to.2.saturating_sub(from.2),
            wall_ns: to.0.saturating_sub(from.0),
        });
        // A run that ended by its count measured until its last reply. One that was stopped measured until then: a
        // target that fell silent before is part of it.
        let ended = if open || stopped {
            to.0
        } else {
            recorder.last_ns.min(to.0)
        };
        recorder.window.1 = recorder.window.1.min(ended.max(recorder.window.0));
        Ok(recorder)
    }

    fn stop_asked(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || sys::interrupted()
    }

    /// Gives each session its first task.
    fn enlist(&mut self) {
        let sessions = u64::from(self.load.plan.sessions);
        for index in 0..self.slots.len() {
            if self.by_connection {
                self.free.push(index as u32);
                continue;
            }
            let slot = &mut self.slots[index];
            let planned = self
                .load
                .plan
                .messages
                .is_none_or(|messages| slot.session < messages);
            if !planned && self.arrivals.is_none() {
                slot.stage = Stage::Over;
                self.shared.ready.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            slot.stage = Stage::Waiting;
            self.active += 1;
            let at = (u128::from(self.load.plan.ramp_ns) * u128::from(slot.session)
                / u128::from(sessions)) as u64;
            if at == 0 {
                self.starts.push_back(index as u32);
            } else {
                self.timers.push(Reverse((at, index as u32)));
            }
        }
        // The session that became free last is used first; start with the lowest number.
        self.free.reverse();
    }

    /// Returns when a clock that waits for sessions starts, if that is now or was before.
    fn clock_starts(&self, now: u64) -> Option<u64> {
        if self.shared.gated {
            let told = self.shared.start_ns.load(Ordering::Relaxed);
            let at = told.saturating_sub(self.epoch_ns);
            return (told != 0 && at <= now).then_some(at);
        }
        let all = self.shared.ready.load(Ordering::Relaxed) >= self.shared.sessions;
        (all || now > WARM_CONNECT_NS + self.load.plan.ramp_ns).then_some(now)
    }

    /// The clock starts: time counts from `shift`. In a closed loop those that wait begin.
    fn start_clock(&mut self, shift: u64) {
        self.epoch_ns += shift;
        self.started = true;
        let waiting = std::mem::take(&mut self.timers);
        self.timers = waiting
            .into_iter()
            .map(|Reverse((at, slot))| Reverse((at.saturating_sub(shift), slot)))
            .collect();
        for deadline in &mut self.deadlines {
            if *deadline != u64::MAX {
                *deadline = deadline.saturating_sub(shift);
            }
        }
        self.book.recorder.rows.clear();
        if self.arrivals.is_none() {
            self.begins = std::mem::take(&mut self.free);
        }
    }

    /// Has some of the sessions that waited for others take their first message: not all of thousands at once, which
    /// would keep step with each other from then on.
    fn begin_some(&mut self) {
        for _ in 0..BEGINS_MAX {
            let Some(index) = self.begins.pop() else {
                break;
            };
            let index = index as usize;
            // Lost meanwhile, it has begun like any other.
            if self.slots[index].stage == Stage::Parked {
                self.slots[index].stage = Stage::Up;
                self.drive(index, self.clock());
            }
        }
    }

    fn is_finished(&self) -> bool {
        match &self.arrivals {
            None => self.active == 0,
            Some(arrivals) if self.draining => self.active == 0 && arrivals.backlog == 0,
            Some(arrivals) => {
                arrivals.peek().is_none()
                    && arrivals.backlog == 0
                    && self.started
                    && self.active == 0
            }
        }
    }

    /// Begins what is due, while sessions are free.
    fn dispatch(&mut self, now: u64) {
        if !self.started {
            return;
        }
        // Bounded, so that replies are read even when the plan is far ahead of the target. What is
        // only counted costs little; what is begun costs a send.
        let (mut bound, mut begins) = (100_000, BEGINS_MAX);
        loop {
            let Some(arrivals) = &mut self.arrivals else {
                return;
            };
            let Some(at) = arrivals.peek() else { break };
            if at > now || bound == 0 || begins == 0 {
                break;
            }
            bound -= 1;
            arrivals.due.advance();
            let row = self.book.recorder.row(at);
            row.offered += 1;
            if self.book.recorder.measures(at) {
                self.book.recorder.totals.window_offered += 1;
            }
            arrivals.backlog += 1;
            if let Some(slot) = self.free.pop() {
                begins -= 1;
                if self.book.recorder.measures(at) {
                    self.book.recorder.lag_generator.saturating_record(now - at);
                }
                self.take_arrival(slot as usize, now);
            }
        }
        if !self.draining
            && self
                .arrivals
                .as_ref()
                .is_some_and(|a| a.peek().is_none() && a.backlog == 0)
        {
            self.release_parked(now);
        }
    }

    /// Gives the oldest arrival in the backlog to a free slot.
    fn take_arrival(&mut self, index: usize, now: u64) {
        let arrivals = self.arrivals.as_mut().expect("invariant: open loop");
        let (seq, at) = arrivals.serve.next();
        arrivals.serve.advance();
        arrivals.backlog -= 1;
        let spec = self.load.plan.message(seq);
        let slot = &mut self.slots[index];
        slot.pending = Some((spec, at));
        match slot.stage {
            Stage::Parked => {
                slot.stage = Stage::Up;
                self.drive(index, now);
            }
            _ => {
                slot.stage = Stage::Waiting;
                self.active += 1;
                self.starts.push_back(index as u32);
            }
        }
    }

    /// No more messages will come: parked sessions say goodbye.
    fn release_parked(&mut self, now: u64) {
        while let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            if slot.stage == Stage::Parked {
                slot.stage = Stage::Up;
                self.drive(index as usize, now);
            }
        }
    }

    /// Stops offering; what is in flight may finish.
    fn drain(&mut self, now: u64) {
        self.draining = true;
        self.free.append(&mut self.begins);
        self.stop_ns = now;
        self.book.recorder.window.1 = self.book.recorder.window.1.min(now);
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.until_ns = arrivals.until_ns.min(now);
        }
        if self
            .arrivals
            .as_ref()
            .is_none_or(|arrivals| arrivals.backlog == 0)
        {
            self.release_parked(now);
        }
        self.starts.clear();
        for index in 0..self.slots.len() {
            if self.slots[index].pending.is_some() {
                continue;
            }
            match self.slots[index].stage {
                Stage::Waiting => self.over(index),
                // Nothing was begun there, and a full listen queue may keep it for minutes.
                Stage::Connecting => {
                    self.drop_wire(index);
                    self.over(index);
                }
                _ => {}
            }
        }
    }

    fn over(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.stage != Stage::Over && slot.stage != Stage::Idle {
            self.active -= 1;
        }
        slot.stage = Stage::Over;
        slot.spare = None;
        self.deadlines[index] = u64::MAX;
    }

    fn fire_timers(&mut self, now: u64) {
        while let Some(Reverse((at, index))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if self.slots[index as usize].stage == Stage::Waiting {
                self.starts.push_back(index);
            }
        }
    }

    fn connect_some(&mut self, now: u64) {
        while self.connecting < self.tuning.connecting_max {
            let Some(index) = self.starts.pop_front() else {
                break;
            };
            self.connect(index as usize, now);
        }
    }

    fn connect(&mut self, index: usize, now: u64) {
        let slot = &mut self.slots[index];
        slot.client.reset(now);
        slot.carried = 0;
        slot.carries_max = self
            .load
            .plan
            .connection_length(slot.session, slot.connections);
        if self.by_connection {
            slot.carries_max = 1;
        }
        let nth = slot.connections * u64::from(self.load.plan.sessions) + slot.session;
        slot.connections += 1;
        let opened = match slot.spare.take() {
            // One event at most of each socket is in a batch, so that none of the last connection can follow.
            Some(spare) => Wire::connect_again(spare, &self.target, nth),
            None => {
                slot.generation = slot.generation.wrapping_add(1);
                let token = Token(index | (slot.generation as usize) << 32);
                Wire::connect(&self.target, nth).and_then(|mut wire| {
                    wire.register(self.poll.registry(), token)?;
                    Ok(wire)
                })
            }
        };
        match opened {
            Ok(wire) => {
                if self.book.recorder.congestion.is_none() {
                    self.book.recorder.congestion = wire.congestion();
                }
                slot.wire = Some(wire);
                slot.stage = Stage::Connecting;
                self.connecting += 1;
                self.deadlines[index] = now + self.load.plan.timeout_ns;
            }
            Err(error) => {
                let fault = fault_of(&error);
                self.book
                    .recorder
                    .fault(Phase::Connect, fault, &error.to_string());
                self.connection_failed(index, fault, now);
            }
        }
    }

    fn scan_deadlines(&mut self, now: u64) {
        for index in 0..self.deadlines.len() {
            if self.deadlines[index] > now {
                continue;
            }
            self.deadlines[index] = u64::MAX;
            if self.slots[index].stage == Stage::Lingering {
                self.closed(index, now);
            } else {
                self.lose(index, Fault::Timeout, "no reply in time", now);
            }
        }
    }

    /// How long to sleep; sets the timer when milliseconds are too coarse.
    fn pause(&mut self, now: u64) -> Duration {
        if self.tuning.spin
            || !self.begins.is_empty()
            || (!self.starts.is_empty() && self.connecting < self.tuning.connecting_max)
        {
            return Duration::ZERO;
        }
        // With no session free an arrival can only be counted, and that can wait for the next
        // event: a plan far above the ceiling must not keep the loop spinning.
        let useful = self.started && !self.free.is_empty();
        let due = self
            .arrivals
            .as_ref()
            .filter(|_| useful)
            .and_then(Arrivals::peek);
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let stop = (!self.draining && self.stop_ns != u64::MAX).then_some(self.stop_ns);
        let told = self.shared.start_ns.load(Ordering::Relaxed);
        let start = (!self.started && told != 0).then(|| told.saturating_sub(self.epoch_ns));
        let next = [due, timer, stop, start].into_iter().flatten().min();
        match next {
            Some(at) if at <= now => Duration::ZERO,
            Some(at) if at - now < SLEEP_MAX.as_nanos() as u64 => {
                // Most turns wait for the same arrival as the one before.
                let at_ns = self.epoch_ns + at;
                if self.armed_ns != at_ns {
                    self.armed_ns = at_ns;
                    self.timer.set(at - now);
                }
                SLEEP_MAX
            }
            _ => SLEEP_MAX,
        }
    }

    /// Handles one event of a session.
    fn ready(&mut self, event: &Event) {
        let index = event.token().0 & 0xffff_ffff;
        let generation = (event.token().0 >> 32) as u32;
        if self.slots[index].generation != generation || self.slots[index].wire.is_none() {
            return;
        }
        if self.slots[index].stage == Stage::Connecting {
            let now = self.clock();
            self.book.now = now;
            let slot = &mut self.slots[index];
            let wire = slot.wire.as_mut().expect("invariant: checked above");
            let reset = match wire.connected(event) {
                Ok(false) => return,
                Ok(true) => None,
                // Who does not listen refuses. Who resets has taken the connection before, even if both come at once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Some(error),
                Err(error) => {
                    return self.lose(index, fault_of(&error), &error.to_string(), now);
                }
            };
            slot.stage = Stage::Up;
            self.connecting -= 1;
            slot.client.connected(now, &self.desk, &mut self.book);
            self.book.recorder.totals.connections += 1;
            self.book.recorder.totals.window_connections +=
                u64::from(self.book.recorder.measures(now));
            self.book.recorder.row(now).connections += 1;
            if let Some(error) = reset {
                return self.lose(index, Fault::Reset, &error.to_string(), now);
            }
        }
        // One reading of the clock for each event: behind the read, or here when there is nothing to read.
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(index, event.is_read_closed() || event.is_error());
        } else {
            self.book.now = self.clock();
        }
        if self.slots[index].generation == generation && self.slots[index].wire.is_some() {
            self.drive(index, self.book.now);
        }
    }

    /// Reads what has arrived. `closing` means that no further event follows, so the read goes on
    /// to the end of the stream.
    fn read(&mut self, index: usize, closing: bool) {
        for _ in 0..READS_MAX {
            let slot = &mut self.slots[index];
            let Some(wire) = &mut slot.wire else { return };
            let result = wire.read(&mut self.input);
            let now = sys::monotonic_ns() - self.epoch_ns;
            self.book.now = now;
            match result {
                Ok(0) => {
                    if slot.stage == Stage::Lingering {
                        return self.closed(index, now);
                    }
                    // What the server said last may have asked for the end already.
                    if matches!(slot.client.want(), Want::Close(_)) {
                        self.drive(index, now);
                        // Its end came with its 221, as close_notify does: no event will follow.
                        if self.slots[index].stage == Stage::Lingering {
                            self.closed(index, now);
                        }
                        return;
                    }
                    return self.lose(index, Fault::Closed, "connection closed by target", now);
                }
                Ok(len) => {
                    lend(&mut self.buffers, &mut slot.client);
                    self.book.recorder.totals.read_bytes += len as u64;
                    if slot.client.want() == Want::Tls
                        && matches!(wire.handshake(&self.target), Ok(true))
                    {
                        // The first words behind the handshake came with its last record.
                        if let Some(agreed) = wire.agreed() {
                            self.book.recorder.secured(agreed, 1);
                        }
                        slot.client.tls_established(now, &self.desk, &mut self.book);
                    }
                    if slot.stage != Stage::Lingering {
                        let input = &self.input[..len];
                        slot.client
                            .receive(input, now, &mut self.desk, &mut self.book);
                    }
                    if len < self.input.len() && !closing && !wire.holds_input() {
                        return;
                    }
                    if closing && slot.client.want() != Want::Input {
                        self.drive(index, now);
                        let slot = &self.slots[index];
                        if slot.wire.is_none() || slot.stage != Stage::Up {
                            // An end of stream behind a farewell is seen by `closed`.
                            if slot.stage != Stage::Lingering {
                                return;
                            }
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if slot.stage == Stage::Lingering {
                        return self.closed(index, now);
                    }
                    return self.lose(index, fault_of(&error), &error.to_string(), now);
                }
            }
        }
    }

    /// Gives the session what it wants until it waits, then sends.
    fn drive(&mut self, index: usize, now: u64) {
        self.book.now = now;
        loop {
            let slot = &mut self.slots[index];
            if slot.stage == Stage::Lingering || slot.wire.is_none() {
                break;
            }
            if slot.stage == Stage::Parked {
                if slot.client.want() == Want::Work {
                    break;
                }
                // The server spoke unasked: a farewell, or nonsense.
                slot.stage = Stage::Up;
                self.free.retain(|free| *free != index as u32);
                continue;
            }
            match slot.client.want() {
                Want::Input => break,
                Want::Tls => {
                    let wire = slot.wire.as_mut().expect("invariant: checked above");
                    match wire.handshake(&self.target) {
                        Ok(true) => {
                            if let Some(agreed) = wire.agreed() {
                                self.book.recorder.secured(agreed, 1);
                            }
                            slot.client.tls_established(now, &self.desk, &mut self.book);
                        }
                        Ok(false) => break,
                        Err(error) => {
                            return self.lose(index, Fault::Tls, &error.to_string(), now);
                        }
                    }
                }
                Want::Work => {
                    lend(&mut self.buffers, &mut slot.client);
                    if !slot.was_ready {
                        slot.was_ready = true;
                        self.shared.ready.fetch_add(1, Ordering::Relaxed);
                    }
                    if !self.assign(index, now) {
                        break;
                    }
                }
                Want::Close(reason) => return self.farewell(index, reason, now),
            }
        }
        self.flush(index, now);
    }

    /// Has a session wait, connected, until there is something to do.
    fn park(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.stage = Stage::Parked;
        slot.failures = 0;
        self.free.push(index as u32);
        self.deadlines[index] = u64::MAX;
    }

    /// Finds the next thing for a session to do. Returns false when it is parked or closed.
    fn assign(&mut self, index: usize, now: u64) -> bool {
        let sessions = u64::from(self.load.plan.sessions);
        let slot = &mut self.slots[index];
        let full = slot.carries_max != 0 && slot.carried >= slot.carries_max;
        if let Some(arrivals) = self.arrivals.as_mut().filter(|_| !full) {
            if slot.pending.is_none() && !self.by_connection {
                if arrivals.backlog > 0 {
                    let (seq, at) = arrivals.serve.next();
                    arrivals.serve.advance();
                    arrivals.backlog -= 1;
                    slot.pending = Some((self.load.plan.message(seq), at));
                    if self.book.recorder.measures(at) {
                        self.book
                            .recorder
                            .lag_target
                            .saturating_record(now.saturating_sub(at));
                    }
                } else if !self.draining && (arrivals.peek().is_some() || !self.started) {
                    self.park(index);
                    return false;
                }
            }
            if let Some((spec, at)) = slot.pending.take() {
                slot.carried += 1;
                slot.client.begin(spec, Some(at), now, &mut self.desk);
                self.book.recorder.begun(now);
                return true;
            }
        } else if !self.started && !self.draining {
            self.park(index);
            return false;
        } else if !full && !self.draining {
            let seq = slot.session + slot.turn * sessions;
            if self
                .load
                .plan
                .messages
                .is_none_or(|messages| seq < messages)
            {
                slot.turn += 1;
                slot.carried += 1;
                let spec = self.load.plan.message(seq);
                slot.client.begin(spec, None, now, &mut self.desk);
                self.book.recorder.begun(now);
                return true;
            }
        }
        if self.load.plan.quit == Quit::None {
            self.closed(index, now);
            return false;
        }
        slot.client.quit(now);
        true
    }

    /// Sends what is queued and sets the deadline of the reply.
    fn flush(&mut self, index: usize, now: u64) {
        let slot = &mut self.slots[index];
        let Some(wire) = &mut slot.wire else { return };
        let mut wrote = false;
        let mut failed = None;
        while !slot.client.out.is_empty() || wire.holds_output() {
            match wire.write(&slot.client.out, &self.desk) {
                Ok(len) => {
                    wrote = true;
                    self.book.recorder.totals.written_bytes += len as u64;
                    slot.client.out.advance(&self.desk, len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failed {
            // A server that gave up may have said why; its words come before the reset.
            return self.lose(index, fault_of(&error), &error.to_string(), now);
        }
        if slot.client.out.is_empty() && !wire.holds_output() {
            slot.client.flushed(now, &mut self.book);
            let head = &mut slot.client.out.head;
            if head.capacity() > 0 {
                self.buffers.push(std::mem::take(head));
            }
        }
        if (wrote || slot.client.replies != slot.replies_seen)
            && matches!(slot.stage, Stage::Up | Stage::Connecting)
        {
            slot.replies_seen = slot.client.replies;
            self.deadlines[index] = now + self.load.plan.timeout_ns;
        }
    }

    /// The session asked to be closed.
    fn farewell(&mut self, index: usize, reason: Close, now: u64) {
        let slot = &mut self.slots[index];
        match reason {
            Close::Done if self.load.plan.quit == Quit::Wait => {
                slot.stage = Stage::Lingering;
                self.deadlines[index] = now + LINGER_NS;
            }
            Close::Done => {
                if let Some(wire) = slot.wire.take() {
                    self.book.recorder.totals.retransmits += wire.retransmits();
                    slot.spare = wire.reset();
                }
                self.closed(index, now);
            }
            Close::Later => {
                self.drop_wire(index);
                self.connection_failed(index, Fault::Unusable, now);
            }
            Close::Fault(fault) => {
                let phase = self.slots[index].client.phase();
                self.book
                    .recorder
                    .fault(phase, fault, "session can't go on");
                self.drop_wire(index);
                self.connection_failed(index, fault, now);
            }
        }
    }

    /// The connection broke.
    fn lose(&mut self, index: usize, fault: Fault, text: &str, now: u64) {
        self.book.now = now;
        let slot = &mut self.slots[index];
        let phase = slot.client.phase();
        self.book.recorder.fault(phase, fault, text);
        slot.client.lost(fault, now, &mut self.book);
        self.drop_wire(index);
        self.connection_failed(index, fault, now);
    }

    fn drop_wire(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.stage == Stage::Connecting {
            self.connecting -= 1;
        }
        if slot.stage == Stage::Parked {
            self.free.retain(|free| *free != index as u32);
        }
        if let Some(wire) = slot.wire.take() {
            self.book.recorder.totals.retransmits += wire.retransmits();
        }
        let head = &mut slot.client.out.head;
        if head.capacity() > 0 {
            let mut head = std::mem::take(head);
            head.clear();
            self.buffers.push(head);
        }
        self.deadlines[index] = u64::MAX;
    }

    /// The connection ended as it should.
    fn closed(&mut self, index: usize, now: u64) {
        self.drop_wire(index);
        self.slots[index].failures = 0;
        self.next_connection(index, now, 0);
    }

    /// The connection ended too early: wait longer each time.
    fn connection_failed(&mut self, index: usize, fault: Fault, now: u64) {
        let slot = &mut self.slots[index];
        if slot.carried > 1 {
            slot.failures = 0;
        }
        slot.failures += 1;
        // A message whose connection never came up stays planned: it was not begun.
        if slot.failures > self.tuning.attempts_max {
            if slot.pending.take().is_some() {
                self.book.recorder.totals.unsent += 1;
            }
            return self.over(index);
        }
        let base = if fault == Fault::Unusable {
            50_000_000
        } else {
            5_000_000
        };
        let delay = (base << (slot.failures - 1).min(10)).min(1_000_000_000);
        self.next_connection(index, now, delay);
    }

    /// Decides whether the slot connects again.
    fn next_connection(&mut self, index: usize, now: u64, delay: u64) {
        let sessions = u64::from(self.load.plan.sessions);
        let slot = &mut self.slots[index];
        if self.by_connection && slot.pending.is_none() {
            self.active -= 1;
            slot.stage = Stage::Idle;
            if let Some(arrivals) = &mut self.arrivals
                && arrivals.backlog > 0
            {
                let (_, at) = arrivals.serve.next();
                if self.book.recorder.measures(at) {
                    self.book
                        .recorder
                        .lag_target
                        .saturating_record(now.saturating_sub(at));
                }
                return self.take_arrival(index, now);
            }
            return self.free.push(index as u32);
        }
        let more = match &self.arrivals {
            None => {
                let seq = slot.session + slot.turn * sessions;
                !self.draining
                    && self
                        .load
                        .plan
                        .messages
                        .is_none_or(|messages| seq < messages)
            }
            Some(arrivals) => {
                slot.pending.is_some()
                    || arrivals.backlog > 0
                    || (!self.draining && arrivals.peek().is_some())
            }
        };
        if !more {
            return self.over(index);
        }
        slot.stage = Stage::Waiting;
        if delay == 0 {
            self.starts.push_back(index as u32);
        } else {
            self.timers.push(Reverse((now + delay, index as u32)));
        }
    }

    fn publish(&self) {
        let live = &self.shared.live[self.place.here];
        let totals = &self.book.recorder.totals;
        live.accepted.store(totals.accepted, Ordering::Relaxed);
        live.deferred.store(totals.deferred, Ordering::Relaxed);
        live.rejected.store(totals.rejected, Ordering::Relaxed);
        live.failed.store(totals.failed, Ordering::Relaxed);
        live.attempted.store(totals.attempted, Ordering::Relaxed);
        live.offered.store(totals.window_offered, Ordering::Relaxed);
    }

    fn publish_second(&mut self, second: u64, cpu_ns: u64) {
        let row = self.book.recorder.row(second * 1_000_000_000);
        let (p50, p99, max) = (row.quantile(0.5), row.quantile(0.99), row.max_ns);
        let up = self.slots.iter().filter(|slot| slot.wire.is_some()).count() as u64;
        let live = &self.shared.live[self.place.here];
        live.p50_ns.store(p50, Ordering::Relaxed);
        live.p99_ns.store(p99, Ordering::Relaxed);
        live.max_ns.store(max, Ordering::Relaxed);
        live.sessions.store(up, Ordering::Relaxed);
        live.cpu_ns.store(cpu_ns, Ordering::Relaxed);
    }
}

/// Takes the intended start from a transaction that is cut off at the end of the run.
struct LastLook<'a> {
    intended_ns: Option<u64>,
    raw: Option<&'a mut RawLog>,
}

impl Events for LastLook<'_> {
    fn latency(&mut self, _phase: Phase, _ns: u64) {}
    fn reply(&mut self, _phase: Phase, _code: u16, _text: &[u8]) {}
    fn finished(&mut self, finished: Finished<'_>) {
        self.intended_ns = Some(finished.intended_ns);
        if let Some(raw) = &mut self.raw {
            raw.finished(&finished, true);
        }
    }
}

/// Gives a session a buffer to write to, if it has none.
fn lend(buffers: &mut Vec<Vec<u8>>, client: &mut Client) {
    if client.out.head.capacity() == 0 {
        client.out.head = buffers.pop().unwrap_or_default();
    }
}

/// Sorts an error of the operating system.
fn fault_of(error: &io::Error) -> Fault {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _) => Fault::Refused,
        (io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, _) => Fault::Reset,
        (io::ErrorKind::ConnectionAborted, _) => Fault::Reset,
        (io::ErrorKind::TimedOut, _) => Fault::Timeout,
        (io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable, _) => {
            Fault::Unreachable
        }
        (io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse, _) => Fault::OutOfPorts,
        (io::ErrorKind::InvalidData, _) => Fault::Tls,
        // ENFILE and EMFILE.
        (_, Some(23 | 24)) => Fault::OutOfDescriptors,
        _ => Fault::Local,
    }
}
