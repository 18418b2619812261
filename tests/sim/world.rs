//! One seed: lives of the process between crashes, and what must be true in and after each.

use std::net::SocketAddr;
use std::rc::Rc;

use ringmx::clock::Instant;
use ringmx::limits::{KIB, PAGE_BYTES};
use ringmx::logger::Logger;
use ringmx::metrics::Metrics;
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::format::{DATA_OFFSET, page_ceil, page_floor};
use ringmx::ringlog::recover::{OpenError, OpenOptions};
use ringmx::ringlog::writer::{
    CommitAlign, FullPolicy, HIGH_WATER_PERCENT, LOW_WATER_PERCENT, Log, Survive,
};
use ringmx::server::{Health, Listener, Server, Storage};
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::Verb;

use crate::config::Config;
use crate::consumer::{Consumer, Deeds, Index};
use crate::disk::{EIO, ENOSPC, Failure, SimDisk, new_ring};
use crate::ledger::Ledger;
use crate::net::SimStream;
use crate::peer::{CHUNK_BYTES, Circumstances, Moment, Peer};
use crate::random::Random;
use crate::ring;

type SimServer = Server<SimStream, SimDisk, SimDisk>;

/// What was simulated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub crashes: u64,
    pub power_losses: u64,
    pub deaths_in_recovery: u64,
    pub storage_failures: u64,
    pub clean_ends: u64,
    pub turns: u64,
    pub sessions: u64,
    pub promised: u64,
    pub found_again: u64,
    pub delivered: u64,
    pub consumer_deaths: u64,
    pub no_space: u64,
    pub no_space_after_data: u64,
    pub storage_down: u64,
    pub commits_failed: u64,
    pub timed_out: u64,
    pub unread: u64,
    pub waited_for_pool: u64,
    pub resets: u64,
    pub half_closed: u64,
    pub laps: u64,
    pub simulated_ns: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.crashes += other.crashes;
        self.power_losses += other.power_losses;
        self.deaths_in_recovery += other.deaths_in_recovery;
        self.storage_failures += other.storage_failures;
        self.clean_ends += other.clean_ends;
        self.turns += other.turns;
        self.sessions += other.sessions;
        self.promised += other.promised;
        self.found_again += other.found_again;
        self.delivered += other.delivered;
        self.consumer_deaths += other.consumer_deaths;
        self.no_space += other.no_space;
        self.no_space_after_data += other.no_space_after_data;
        self.storage_down += other.storage_down;
        self.commits_failed += other.commits_failed;
        self.timed_out += other.timed_out;
        self.unread += other.unread;
        self.waited_for_pool += other.waited_for_pool;
        self.resets += other.resets;
        self.half_closed += other.half_closed;
        self.laps += other.laps;
        self.simulated_ns += other.simulated_ns;
    }

    /// Counts that say whether there was anything to be checked.
    pub fn coverage(&self) -> [(&'static str, u64); 18] {
        [
            ("power losses", self.power_losses),
            ("deaths in recovery", self.deaths_in_recovery),
            ("storage failures", self.storage_failures),
            ("clean ends", self.clean_ends),
            ("promises", self.promised),
            ("promises found after a crash", self.found_again),
            ("deliveries", self.delivered),
            ("deaths of consumers", self.consumer_deaths),
            ("452", self.no_space),
            ("452 behind the dot", self.no_space_after_data),
            ("451 to MAIL", self.storage_down),
            ("failed commits", self.commits_failed),
            ("time-outs", self.timed_out),
            ("replies left unread", self.unread),
            ("waits for the pool", self.waited_for_pool),
            ("resets", self.resets),
            ("half-closes", self.half_closed),
            ("laps", self.laps),
        ]
    }
}

/// How a life of the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Between two turns, or at the storage call where the disk says so.
    Crash,
    /// Every client says what it has to say and leaves.
    Settle,
    /// Every client falls silent; time-outs end the sessions.
    Silence,
    /// The server is told to stop.
    Drain,
}

pub struct World {
    pub config: Config,
    context: Context,
    disk: SimDisk,
    ledger: Ledger,
    random: Random,
    now: Instant,
    wall_ns: u64,
    /// Furthest the wall clock ever was.
    wall_max_ns: u64,
    peers: Vec<Peer>,
    /// Clients so far.
    peers_made: u64,
    consumers: [Consumer; 2],
    /// What our own reader found in the ring.
    index: Index,
    /// One for each turn of this life.
    moments: Vec<Moment>,
    /// Whether the ring is below its high-water mark, by a model of our own.
    accepting: bool,
    /// Furthest tail that the log decided on.
    tail_decided: u64,
    /// Furthest position that was known to be durable.
    durable_seen: u64,
    /// Power was lost since the last opening.
    power_was_lost: bool,
    /// The tail after the last turn, if there was no consumer.
    tail_alone: Option<u64>,
    idle_tick_at: Instant,
    draining: bool,
    pub figures: Figures,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let config = Config::choose(&mut random);
        let context = Context::new(ContextOptions {
            server_name: "mx.sim.example".into(),
            message_bytes_max: config.message_max,
            recipients_max: config.recipients_max,
            messages_max: config.messages_max,
            bare_newlines: config.bare,
            ..ContextOptions::default()
        })
        .expect("a good name");
        let disk = SimDisk::new(new_ring(config.data_size), random.fork());
        disk.0.borrow_mut().traces = std::env::var_os("RINGMX_SIM_TRACE").is_some();
        disk.0.borrow_mut().latency_max_ns = config.latency_max_ns;
        disk.0.borrow_mut().slow_one_in = config.slow_one_in;
        disk.0.borrow_mut().reads_medium = config.reads_medium;
        disk.0.borrow_mut().tears_pages = config.commit_align == CommitAlign::Page;
        disk.0.borrow_mut().writes_beside_syncs = config.survive != Survive::Power;
        let consumers = ["first", "second"].map(|name| Consumer::new(name, &mut random));
        World {
            config,
            context,
            disk,
            ledger: Ledger::default(),
            random,
            now: Instant(1_000_000_000),
            wall_ns: 1_790_000_000_000_000_000,
            wall_max_ns: 1_790_000_000_000_000_000,
            peers: Vec::new(),
            peers_made: 0,
            consumers,
            index: Index::new(0),
            moments: Vec::new(),
            accepting: true,
            tail_decided: 0,
            durable_seen: 0,
            power_was_lost: false,
            tail_alone: None,
            idle_tick_at: Instant(0),
            draining: false,
            figures: Figures::default(),
        }
    }

    /// Lives until that many crashes have happened.
    pub fn run(&mut self, crashes: Option<u64>) {
        let crashes = crashes.unwrap_or(self.config.crashes);
        while self.figures.crashes < crashes {
            self.live();
        }
        self.open();
        self.figures.promised = self.ledger.promised;
        self.figures.found_again = self.ledger.found;
        self.figures.laps = self.tail_decided / self.config.data_size;
        self.figures.simulated_ns = self.now.0;
    }

    fn open_options(&self) -> OpenOptions {
        let mut options = OpenOptions::new(self.config.survive, self.wall_ns);
        options.full = self.config.full;
        options.keep_for = self.config.keep_for;
        options.commit_align = self.config.commit_align;
        options
    }

    /// Opens the ring, dying inside a few times, and compares it with the ledger.
    fn open(&mut self) -> Log<SimDisk> {
        let mut deaths = if self.random.one_in(3) {
            1 + self.random.below(3)
        } else {
            0
        };
        loop {
            self.disk.0.borrow_mut().restart();
            if deaths > 0 {
                let mut disk = self.disk.0.borrow_mut();
                let at = disk.calls + 1 + self.random.below(12);
                match self.random.below(8) {
                    0 => disk.read_fails_in = Some(1 + self.random.below(6)),
                    1 | 2 => disk.fails_at = Some((at, any_failure(&mut self.random))),
                    _ => disk.dies_at = Some(at),
                }
                deaths -= 1;
            }
            let options = self.open_options();
            let found = ring::superblock(self.disk.0.borrow().cache());
            let calls = self.disk.0.borrow().calls;
            let torn = self.disk.0.borrow().newest_intended() > found.generation;
            let traces = self.disk.0.borrow().traces;
            if traces {
                let (tail, checkpoint) = (found.tail, found.checkpoint);
                let generation = found.generation;
                eprintln!("opening: generation {generation}, tail {tail}, checkpoint {checkpoint}");
            }
            let opened = Log::open(self.disk.clone(), &options);
            if traces {
                let recovery = opened.as_ref().map(|(_, recovery)| recovery);
                eprintln!("opened: {recovery:?}");
            }
            match opened {
                Ok((log, recovery)) => {
                    let mut disk = self.disk.0.borrow_mut();
                    disk.dies_at = None;
                    disk.fails_at = None;
                    disk.read_fails_in = None;
                    drop(disk);
                    assert_eq!(recovery.lost, []);
                    // With --survive process a loss of power may bring back a superblock whose tail was overwritten.
                    // So may, at all levels but `power`, a process that dies within the write of a superblock.
                    if self.config.survive == Survive::Power || !self.power_was_lost && !torn {
                        assert_eq!(
                            (recovery.tail_moved_bytes, recovery.consumers_moved),
                            (0, 0)
                        );
                        assert_eq!(recovery.tail, found.tail);
                        assert!(log.superblock().consumers == found.consumers);
                    }
                    // A superblock may have been written in the turn in which the process died.
                    self.tail_decided = self.tail_decided.max(found.tail);
                    assert!(
                        recovery.tail <= self.tail_decided,
                        "recovery moved the tail from {} to {} beyond {}, durable {}: {recovery:?}",
                        found.tail,
                        recovery.tail,
                        self.tail_decided,
                        self.durable_seen,
                    );
                    self.compare(&log);
                    self.power_was_lost = false;
                    return log;
                }
                Err(OpenError::Failed(_)) => {
                    self.figures.deaths_in_recovery += 1;
                    self.end_machine();
                }
                Err(OpenError::Io { .. }) if self.disk.0.borrow().read_failed => {
                    assert_eq!(
                        self.disk.0.borrow().calls,
                        calls,
                        "it wrote without a judgement"
                    );
                    self.figures.deaths_in_recovery += 1;
                    self.end_machine();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// The ring was opened: what is in it is what has to be, and all of it is durable.
    fn compare(&mut self, log: &Log<SimDisk>) {
        let disk = self.disk.0.borrow();
        let newest = ring::superblock(disk.cache());
        let contents = ring::read(disk.cache(), &newest, newest.tail, log.written());
        if self.config.survive != Survive::Nothing {
            for (at, len) in self.places(newest.tail, log.written()) {
                assert!(
                    disk.is_durable(at, len),
                    "an opened ring is not durable from byte {at} on, {len} bytes"
                );
            }
        }
        if self.random.one_in(16) {
            let again = MemoryBacking {
                bytes: disk.cache().to_vec(),
            };
            let (again, _) = Log::open(again, &self.open_options()).expect("it was opened before");
            let bytes = &again.backing().bytes;
            let twice = ring::superblock(bytes);
            let found = ring::read(bytes, &twice, twice.tail, again.written());
            assert_eq!(twice.tail, newest.tail);
            assert!(
                found.messages == contents.messages,
                "recovering twice is not recovering once"
            );
        }
        self.index = Index::new(newest.tail);
        self.index.update(
            disk.cache(),
            &newest,
            newest.tail,
            log.written(),
            &mut self.ledger,
        );
        drop(disk);
        self.ledger.compare(&contents);
        for consumer in log.consumers() {
            assert!(newest.tail <= consumer.scan_pos && consumer.scan_pos <= consumer.done_pos);
            assert!(consumer.done_pos <= log.durable());
        }
        for consumer in &mut self.consumers {
            consumer.server_began(log);
        }
    }

    /// Where positions lie in the file: place and length, two of them where they wrap.
    fn places(&self, from: u64, to: u64) -> impl Iterator<Item = (usize, usize)> + use<> {
        let size = self.config.data_size;
        let first = (size - from % size).min(to - from);
        [(from, first), (from + first, to - from - first)]
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(move |(at, len)| ((DATA_OFFSET + at % size) as usize, len as usize))
    }

    /// The process has ended; perhaps the machine with it.
    fn end_machine(&mut self) {
        let power = match self.config.survive {
            // The ring is in memory: without the machine there is no ring.
            Survive::Nothing => false,
            Survive::Process => self.random.one_in(3),
            Survive::Power => !self.random.one_in(3),
        };
        if !power {
            return;
        }
        self.figures.power_losses += 1;
        self.power_was_lost = true;
        if self.config.survive == Survive::Process {
            // What was only in the page cache is not promised any more.
            let (ends, durable) = (&self.index.ends, self.durable_seen);
            self.ledger
                .weaken(|number| ends.get(&number).is_none_or(|end| *end <= durable));
        }
        // From almost everything lost to almost everything kept.
        let bias = self.random.below(8);
        let random = &mut self.random;
        self.disk.0.borrow_mut().lose_power(|_, choices| {
            if random.below(8) < bias {
                choices - 1
            } else {
                random.below(choices as u64) as usize
            }
        });
    }

    fn live(&mut self) {
        let log = self.open();
        self.tail_decided = self.tail_decided.max(log.tail());
        self.durable_seen = log.durable();
        self.tail_alone = None;
        self.draining = false;
        self.moments.clear();
        self.accepting = true;
        self.review(&log);
        let address: SocketAddr = ([127, 0, 0, 1], 2525).into();
        let storage = Storage {
            log,
            committer: self.disk.clone(),
        };
        let mut server: SimServer = Server::new(
            self.config.options(),
            vec![self.context.clone()],
            vec![Listener::sink(address)],
            Some(storage),
            Metrics::new(Verb::COUNT, reply::ROWS.len()),
            Logger::disabled(),
            self.now,
        );
        let free_at_start = server.shared.pool.free_bytes();
        let end = match self.random.below(12) {
            0..=7 => End::Crash,
            8 => End::Silence,
            9 => End::Drain,
            _ => End::Settle,
        };
        // Short lives are cheap, and most of what goes wrong goes wrong early or late.
        let most = 16 << self.random.below(6);
        let turns = 8 + self.random.below(most);
        {
            let mut disk = self.disk.0.borrow_mut();
            let at = disk.calls + 1 + self.random.below(turns / 2);
            match (end, self.random.below(8)) {
                (End::Crash, 0..=4) => disk.dies_at = Some(at),
                (_, 7) => disk.fails_at = Some((at, any_failure(&mut self.random))),
                _ => {}
            }
        }
        for _ in 0..turns {
            self.turn(&mut server, false);
            if self.disk.0.borrow().dead.get() {
                break;
            }
        }
        let mut died = self.disk.0.borrow().dead.get();
        let failed = server.shared.is_failed();
        if !died && end != End::Crash {
            self.come_to_an_end(&mut server, end);
            self.check_empty(&server, free_at_start);
            self.finish_syncs(&mut server);
            self.count(&server);
            if !server.shared.is_failed() && self.random.one_in(2) {
                let closed = server.close_log();
                died = self.disk.0.borrow().dead.get();
                assert!(closed.is_ok() || self.disk.0.borrow().failed || died);
            }
            self.figures.clean_ends += 1;
        } else {
            self.count(&server);
            self.figures.crashes += 1;
        }
        self.figures.storage_failures += u64::from(failed);
        // The process is gone: nothing that its destructors do reaches anyone.
        self.disk.0.borrow_mut().dead.set(true);
        if server.shared.storage.is_some() {
            self.dissect(&mut server, free_at_start);
        }
        drop(server);
        for peer in &mut std::mem::take(&mut self.peers) {
            self.settle(peer);
        }
        self.end_machine();
        self.now = Instant(self.now.0 + 1_000_000_000);
        self.wall_ns += 1_000_000_000;
    }

    fn settle(&mut self, peer: &mut Peer) {
        let server_read = peer.wire.borrow().server_read;
        for (letter, ends_at) in peer.completed.drain(..) {
            self.ledger.letter(letter).ends_at = ends_at;
        }
        for letter in &peer.letters {
            self.ledger.settle(*letter, server_read);
        }
    }

    fn count(&mut self, server: &SimServer) {
        use ringmx::metrics::CloseCause;
        let metrics = &server.shared.metrics;
        let replies = |reply: Reply| metrics.replies[reply as usize];
        let closed = |cause: CloseCause| metrics.connections_closed[cause as usize];
        let figures = &mut self.figures;
        figures.no_space += replies(Reply::NoSpace);
        figures.no_space_after_data += metrics.no_space_after_data;
        figures.storage_down += replies(Reply::StorageDown);
        figures.commits_failed += replies(Reply::CommitFailed);
        figures.timed_out += closed(CloseCause::TimedOut) + closed(CloseCause::TooSlow);
        figures.unread += closed(CloseCause::RepliesUnread);
        figures.waited_for_pool += closed(CloseCause::PoolWait);
        figures.resets += closed(CloseCause::PeerReset);
        figures.half_closed += closed(CloseCause::PeerClosed);
    }

    /// Every session has ended: nothing is held for anybody.
    fn check_empty(&self, server: &SimServer, free_at_start: u64) {
        assert_eq!(server.connections(), 0);
        assert!(server.is_drained(), "a commit is pending for nobody");
        assert_eq!(
            server.shared.pool.free_bytes(),
            free_at_start,
            "chunks are missing"
        );
    }

    /// The process ended in the middle of its work. Whatever it held it could have given back: cutting its sessions
    /// and failing its log leaves nothing.
    fn dissect(&mut self, server: &mut SimServer, free_at_start: u64) {
        self.disk.0.borrow_mut().is_dissected = true;
        server.cut_all();
        for _ in 0..4 {
            server.begin_turn(self.now, self.wall_ns);
            server.end_turn();
        }
        self.check_empty(server, free_at_start);
    }

    /// Brings all sessions to their end, without help of time-outs unless the clients fall silent.
    fn come_to_an_end(&mut self, server: &mut SimServer, end: End) {
        if end == End::Drain {
            server.begin_drain();
            self.draining = true;
        }
        for peer in &mut self.peers {
            match end {
                End::Silence => peer.fall_silent(),
                _ => peer.cut_short(),
            }
        }
        let from = self.now;
        let mut turns = 0;
        while server.connections() > 0
            || !server.is_drained()
            || end != End::Silence && self.peers.iter().any(|peer| !peer.finished)
        {
            turns += 1;
            if end == End::Silence {
                let limit = self.config.timeout.as_nanos() as u64 * 6 + 120_000_000_000;
                assert!(
                    self.now.since_ns(from) < limit,
                    "a session outlives its timers: {}",
                    self.describe()
                );
                let due = server.next_turn().unwrap_or(self.now).max(self.now);
                self.pass(due.since_ns(self.now).clamp(1, 1_000_000_000));
                self.disk.0.borrow_mut().hurry();
            } else {
                assert!(turns < 60_000, "stuck: {}", self.describe());
            }
            self.turn(server, true);
            if self.disk.0.borrow().dead.get() {
                unreachable!("no death was planned");
            }
        }
        let owed = self.peers.iter().filter(|peer| peer.is_owed()).count();
        assert!(end == End::Silence || owed == 0, "{}", self.describe());
    }

    fn describe(&self) -> String {
        let peers: Vec<String> = self
            .peers
            .iter()
            .filter(|peer| !peer.finished)
            .map(Peer::describe)
            .collect();
        format!("{:?}\n{}", self.config, peers.join("\n"))
    }

    fn finish_syncs(&mut self, server: &mut SimServer) {
        for _ in 0..100 {
            if !server.is_syncing() {
                return;
            }
            let mut disk = self.disk.0.borrow_mut();
            disk.hurry();
            disk.step_sync();
            drop(disk);
            self.turn(server, true);
        }
        assert!(server.shared.is_failed(), "a sync does not end");
    }

    fn pass(&mut self, ns: u64) {
        self.now = Instant(self.now.0 + ns);
        // The wall clock is set now and then, backwards too.
        self.wall_ns += ns;
        self.wall_max_ns = self.wall_max_ns.max(self.wall_ns);
        if self.random.one_in(2_000) {
            self.wall_ns = self
                .wall_ns
                .saturating_sub(self.random.below(5_000_000_000));
        }
    }

    fn turn(&mut self, server: &mut SimServer, ending: bool) {
        self.figures.turns += 1;
        let ns = match self.random.below(64) {
            0 => 1_000_000 + self.random.below(300_000_000),
            1 if self.config.jumps && !ending => self.random.below(90_000_000_000),
            2..=20 => 0,
            _ => self.random.below(1_000_000),
        };
        self.pass(ns);
        self.disk.0.borrow_mut().now_ns = self.now.0;
        for _ in 0..self.random.below(4) {
            self.disk.0.borrow_mut().step_sync();
        }
        if !ending {
            self.arrive();
        }
        for peer in &mut self.peers {
            peer.act(ending, &self.config, &mut self.ledger);
            let mut wire = peer.wire.borrow_mut();
            wire.writes_in_turn = 0;
            wire.now_ns = self.now.0;
        }
        let mut moment = self.moment(server);
        let sync_since = self.disk.0.borrow().sync_since_ns();
        server.begin_turn(self.now, self.wall_ns);
        self.events(server, &mut moment);
        self.accept(server, ending);
        sample_pool(server, &mut moment);
        let read_before = self.bytes_read();
        server.end_turn();
        // What the run queue took and gave back within the end of the turn is not seen: as much as it read, and the
        // begun chunks and the waiting input of each connection.
        let unseen = self.bytes_read() - read_before
            + server.connections() as u64 * 2 * (CHUNK_BYTES + CHUNK_BYTES / 16);
        moment.pool_min = moment.pool_min.saturating_sub(unseen);
        sample_pool(server, &mut moment);
        // It may have been given back before it was taken.
        moment.pool_max = moment
            .pool_max
            .max(server.shared.pool.free_bytes() + unseen);
        if self.now.since_ns(self.idle_tick_at) > 1_000_000_000 {
            self.idle_tick_at = self.now;
            server.idle_tick();
            if self.random.one_in(4) {
                server.give_back_idle_memory();
            }
        }
        self.end_moment(server, moment, sync_since);
        self.consume(server);
        self.look(server);
        self.peers_leave();
    }

    fn bytes_read(&self) -> u64 {
        let read = |peer: &Peer| peer.wire.borrow().server_read;
        self.peers.iter().map(read).sum()
    }

    /// What nobody may overwrite begins here; `None` when nobody holds anything.
    fn held_from(&self, log: &Log<SimDisk>) -> Option<u64> {
        let held = log.consumers().map(|consumer| consumer.scan_pos).min();
        held.or((self.config.full == FullPolicy::Defer).then(|| log.tail()))
    }

    /// The high-water mark and its hysteresis.
    fn review(&mut self, log: &Log<SimDisk>) {
        let held = log.written() - self.held_from(log).unwrap_or(log.durable());
        let percent = self.config.data_size / 100;
        if held > percent * HIGH_WATER_PERCENT {
            self.accepting = false;
        } else if held < percent * LOW_WATER_PERCENT {
            self.accepting = true;
        }
    }

    /// What is true as the turn begins.
    fn moment(&mut self, server: &SimServer) -> Moment {
        let mut moment = Moment {
            frees_itself: true,
            accepting: true,
            held_min: 0,
            held_max: 0,
            room_min: 0,
            pool_min: u64::MAX,
            pool_max: 0,
            failed_before: server.shared.is_failed(),
            failed: false,
            stalled: false,
            stalled_throughout: false,
        };
        sample_pool(server, &mut moment);
        let Some(storage) = &server.shared.storage else {
            return moment;
        };
        let log = &storage.log;
        if log.failed().is_none() {
            self.review(log);
        }
        moment.accepting = self.accepting;
        if let Some(held_from) = self.held_from(log) {
            moment.frees_itself = false;
            moment.held_min = log.written() - held_from;
            // The tail goes from mark to mark, and marks are as far apart as a part of the ring and a record.
            let size = self.config.data_size;
            let lag = size / 32 + self.config.message_max + 8 * KIB;
            let free_from = held_from.min(log.durable()).saturating_sub(lag);
            moment.room_min = log.tail().max(free_from) + size;
        }
        moment
    }

    /// What was true until the turn ended.
    fn end_moment(&mut self, server: &SimServer, mut moment: Moment, sync_since: Option<u64>) {
        let stall_ns = self.config.sync_stall_ns;
        let stalled = sync_since.is_some_and(|since| self.now.0 - since > stall_ns);
        moment.stalled = stalled;
        moment.stalled_throughout = stalled && self.disk.0.borrow().sync_since_ns() == sync_since;
        moment.failed = server.shared.is_failed() || self.disk.0.borrow().failed;
        if let Some(storage) = &server.shared.storage {
            let log = &storage.log;
            moment.failed |= log.failed().is_some();
            if let Some(held_from) = self.held_from(log) {
                moment.held_max = log.written().saturating_sub(held_from);
                if log.failed().is_some() {
                    // What had a place in this turn and could not be written counted until then.
                    moment.held_max = moment.held_max.max(log.held_bytes());
                }
            }
            // Space for the EPOCH records, and what a large message has set aside.
            let size = self.config.data_size;
            let mut kept = (64 * KIB).min(page_floor(size / 16));
            if self.config.message_max > 1_000 * KIB {
                kept += self.config.message_max + 64 * KIB;
            }
            let used = page_ceil(log.written()) + kept + PAGE_BYTES;
            moment.room_min = moment.room_min.saturating_sub(used);
        }
        self.moments.push(moment);
    }

    /// Clients whose session is over are forgotten.
    fn peers_leave(&mut self) {
        let mut index = 0;
        while index < self.peers.len() {
            let peer = &self.peers[index];
            let gone = peer.wire.borrow().server_gone;
            if peer.finished && gone && (peer.gone_checked || peer.refused) {
                let mut peer = self.peers.swap_remove(index);
                self.settle(&mut peer);
            } else {
                index += 1;
            }
        }
    }

    /// New clients.
    fn arrive(&mut self) {
        let here = self.peers.iter().filter(|peer| !peer.finished).count();
        if here < self.config.peers_max && self.random.one_in(3) {
            let peer = Peer::new(&mut self.random, &self.config, self.now.0);
            self.peers.push(peer);
            self.figures.sessions += 1;
        }
    }

    fn accept(&mut self, server: &mut SimServer, ending: bool) {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            if peer.token.is_some() || peer.refused || !ending && self.random.one_in(4) {
                continue;
            }
            if self.draining {
                // The listener is closed.
                peer.refused = true;
                peer.server_died();
                continue;
            }
            if !server.has_place() {
                let mut wire = peer.wire.borrow_mut();
                wire.refuse(Reply::TooManySessions.row().wire);
                peer.refused = true;
                continue;
            }
            let stream = SimStream {
                wire: Rc::clone(&peer.wire),
                dead: Rc::clone(&self.disk.0.borrow().dead),
            };
            self.peers_made += 1;
            let number = self.peers_made;
            let address = SocketAddr::from(([10, 0, (number % 6) as u8, 1], 1_024 + number as u16));
            let token = server
                .accept(address, 0, |_| Ok(stream))
                .expect("there is a place");
            peer.token = Some(token);
            peer.wire.borrow_mut().registered();
        }
    }

    fn events(&mut self, server: &mut SimServer, moment: &mut Moment) {
        let start = self.random.below(self.peers.len().max(1) as u64) as usize;
        for step in 0..self.peers.len() {
            let index = (start + step) % self.peers.len();
            let Some(token) = self.peers[index].token else {
                continue;
            };
            let events = self.peers[index].wire.borrow().events;
            // The rest of a full list of events comes with the next poll.
            if !events.any() || self.random.one_in(8) {
                continue;
            }
            self.peers[index].wire.borrow_mut().events = Default::default();
            let read_before = self.peers[index].wire.borrow().server_read;
            server.ready(token, events.readable, events.writable, events.hung_up);
            sample_pool(server, moment);
            // As at the end of the turn, for one connection: a refused message gives back what the next one takes.
            let read = self.peers[index].wire.borrow().server_read - read_before;
            let unseen = read + 2 * (CHUNK_BYTES + CHUNK_BYTES / 16);
            moment.pool_max = moment
                .pool_max
                .max(server.shared.pool.free_bytes() + unseen);
        }
    }

    fn consume(&mut self, server: &mut SimServer) {
        let Some(storage) = &mut server.shared.storage else {
            return;
        };
        let log = &mut storage.log;
        self.index.update(
            self.disk.0.borrow().cache(),
            log.superblock(),
            log.tail(),
            log.written(),
            &mut self.ledger,
        );
        if !self.config.consumers || log.failed().is_some() || self.disk.0.borrow().dead.get() {
            return;
        }
        let mut deeds = Deeds::default();
        for index in 0..self.consumers.len() {
            let told = self.consumers[index].act(
                &self.disk,
                log,
                &self.index,
                &self.ledger,
                &mut self.random,
                &mut deeds,
            );
            if told {
                self.review(log);
            }
        }
        self.figures.delivered += deeds.delivered;
        self.figures.consumer_deaths += deeds.deaths;
    }

    /// What must be true between two turns.
    fn look(&mut self, server: &mut SimServer) {
        assert_eq!(server.shared.metrics.session_panics, 0);
        if !self.disk.0.borrow().dead.get()
            && let Some(storage) = &server.shared.storage
        {
            self.look_at_log(&storage.log);
            self.look_at_health(server);
        }
        let circumstances = Circumstances {
            config: &self.config,
            context: &self.context,
            now_ns: self.now.0,
            draining: self.draining,
            dead: self.disk.0.borrow().dead.get(),
            moments: &self.moments,
        };
        for peer in &mut self.peers {
            assert!(
                peer.wire.borrow().writes_in_turn <= 2,
                "written again in one turn"
            );
            peer.check(&mut self.ledger, &circumstances);
        }
        for number in std::mem::take(&mut self.ledger.fresh) {
            self.look_at_promise(number);
        }
    }

    fn look_at_log(&mut self, log: &Log<SimDisk>) {
        let status = log.status();
        let size = self.config.data_size;
        assert!(status.tail <= status.durable && status.durable <= status.written);
        // Whatever a loss of power, or the end of the process, leaves as the newest superblock: nothing behind its tail
        // has been written over.
        if log.failed().is_none() && !self.disk.0.borrow().failed {
            let disk = self.disk.0.borrow();
            let oldest = match self.config.survive {
                Survive::Power => disk.superblocks().next(),
                Survive::Process | Survive::Nothing => disk.superblocks().next_back(),
            };
            let tail = oldest.expect("there is one").tail;
            assert!(tail <= status.tail, "a tail that nobody decided on");
            assert!(
                page_ceil(status.written) <= page_floor(tail) + size,
                "written up to {} over the tail of {tail}",
                status.written
            );
            drop(disk);
            assert_eq!(log.accepting(), self.accepting, "{status:?}");
        }
        for consumer in log.consumers() {
            assert!(status.tail <= consumer.scan_pos, "a consumer was overtaken");
        }
        for consumer in &self.consumers {
            consumer.check(log);
        }
        let alone = log.consumers().next().is_none();
        if let Some(before) = self.tail_alone.filter(|_| alone)
            && status.tail != before
        {
            let kept = status.written - before;
            let needed = self.config.full != FullPolicy::Defer && kept >= size / 2;
            let too_old = self.config.keep_for.is_some_and(|keep_for| {
                self.config.full != FullPolicy::Defer
                    && self.index.newest_gone_ns + keep_for.as_nanos() as u64 <= self.wall_max_ns
            });
            assert!(
                needed || too_old,
                "the tail moved from {before} to {} without need",
                status.tail
            );
        }
        self.tail_alone = alone.then_some(status.tail);
        self.tail_decided = self.tail_decided.max(status.tail);
        self.durable_seen = status.durable;
    }

    fn look_at_health(&self, server: &SimServer) {
        let moment = self.moments.last().expect("a turn has ended");
        let health = server.shared.health();
        if server.shared.is_failed() {
            assert_eq!(health, Health::Failed);
        } else if self.draining {
            assert_eq!(health, Health::Draining);
        } else if moment.stalled_throughout {
            assert_eq!(health, Health::Refusing, "a sync does not answer");
        } else if !moment.failed && !moment.stalled {
            assert_ne!(health, Health::Failed, "nothing failed");
        }
        // A failure that the process was told of has been acted on by the end of the next turn.
        let disk = self.disk.0.borrow();
        if disk.reported {
            let turns = self.moments.iter().rev().take_while(|moment| moment.failed);
            assert!(
                server.shared.is_failed() || turns.count() < 3 || disk.sync_since_ns().is_some(),
                "a failure was not noticed"
            );
        }
    }

    /// A 250 has left: its message is in the ring, and a loss of power now leaves it there.
    fn look_at_promise(&self, number: u64) {
        let Some(end) = self.index.ends.get(&number) else {
            // The tail never passes what is not durable.
            assert!(
                number <= self.index.newest_gone,
                "0-{number} was promised and is not in the ring"
            );
            return;
        };
        if self.config.survive != Survive::Power {
            return;
        }
        let disk = self.disk.0.borrow();
        for (from, to) in &self.index.messages[end].records {
            for (at, len) in self.places(*from, *to) {
                assert!(
                    disk.is_durable(at, len),
                    "0-{number} was promised before it was durable"
                );
            }
        }
    }
}

/// Takes note of the pool.
fn sample_pool(server: &SimServer, moment: &mut Moment) {
    let free = server.shared.pool.free_bytes();
    moment.pool_min = moment.pool_min.min(free);
    moment.pool_max = moment.pool_max.max(free);
}

/// A way for a call to fail.
fn any_failure(random: &mut Random) -> Failure {
    match random.below(5) {
        0 | 1 => Failure::Errno(EIO),
        2 | 3 => Failure::Errno(ENOSPC),
        _ => Failure::TakesNothing,
    }
}
