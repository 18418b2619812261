//! One seed: lives of the process between crashes, and what must be true in and after each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use ringmx::clock::Instant;
use ringmx::logger::Logger;
use ringmx::metrics::Metrics;
use ringmx::ringlog::format::ConsumerName;
use ringmx::ringlog::recover::{OpenError, OpenOptions};
use ringmx::ringlog::writer::{FullPolicy, Log, StartAt, Survive};
use ringmx::server::{Listener, Server, Storage};
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::Verb;

use crate::config::Config;
use crate::disk::{SimDisk, new_ring};
use crate::ledger::Ledger;
use crate::net::SimStream;
use crate::peer::{Circumstances, Peer};
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
        self.laps += other.laps;
        self.simulated_ns += other.simulated_ns;
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
    config: Config,
    context: Context,
    disk: SimDisk,
    ledger: Ledger,
    random: Random,
    now: Instant,
    wall_ns: u64,
    peers: Vec<Peer>,
    /// Furthest tail that the log decided on.
    tail_decided: u64,
    /// Furthest position that was known to be durable.
    durable_seen: u64,
    /// Furthest cursor that each consumer acknowledged.
    consumed: BTreeMap<String, u64>,
    /// The tail after the last turn, if there was no consumer.
    tail_alone: Option<u64>,
    idle_tick_at: Instant,
    draining: bool,
    storage_failed: bool,
    sync_stalled: bool,
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
        disk.0.borrow_mut().latency_max_ns = config.latency_max_ns;
        disk.0.borrow_mut().slow_one_in = config.slow_one_in;
        World {
            config,
            context,
            disk,
            ledger: Ledger::default(),
            random,
            now: Instant(1_000_000_000),
            wall_ns: 1_790_000_000_000_000_000,
            peers: Vec::new(),
            tail_decided: 0,
            durable_seen: 0,
            consumed: BTreeMap::new(),
            tail_alone: None,
            idle_tick_at: Instant(0),
            draining: false,
            storage_failed: false,
            sync_stalled: false,
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
                let at = Some(disk.calls + 1 + self.random.below(12));
                if self.random.one_in(4) {
                    disk.fails_at = at;
                } else {
                    disk.dies_at = at;
                }
                deaths -= 1;
            }
            let mut options = OpenOptions::new(self.config.survive, self.wall_ns);
            options.full = self.config.full;
            match Log::open(self.disk.clone(), &options) {
                Ok((log, recovery)) => {
                    let mut disk = self.disk.0.borrow_mut();
                    disk.dies_at = None;
                    disk.fails_at = None;
                    drop(disk);
                    assert_eq!(recovery.lost, []);
                    if self.config.survive == Survive::Power {
                        assert!(
                            recovery.tail <= self.tail_decided,
                            "recovery moved the tail to {} beyond {}",
                            recovery.tail,
                            self.tail_decided
                        );
                        assert_eq!(
                            (recovery.tail_moved_bytes, recovery.consumers_moved),
                            (0, 0)
                        );
                    }
                    self.compare(&log);
                    return log;
                }
                Err(OpenError::Failed(_)) => {
                    self.figures.deaths_in_recovery += 1;
                    self.end_machine();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn compare(&mut self, log: &Log<SimDisk>) {
        let disk = self.disk.0.borrow();
        let newest = ring::superblock(disk.cache());
        let contents = ring::read(disk.cache(), &newest, newest.tail, log.written());
        drop(disk);
        self.ledger.compare(&contents);
        for consumer in log.consumers() {
            assert!(newest.tail <= consumer.scan_pos);
            let consumed = self.consumed.get(consumer.name.as_str()).copied();
            assert!(
                consumed.is_some_and(|consumed| consumer.done_pos <= consumed),
                "a cursor went ahead of what was acknowledged"
            );
        }
        let survived = self.disk.0.borrow().durable_superblock.clone();
        if let Some(survived) = survived
            && self.config.survive == Survive::Power
        {
            for consumer in survived.consumers.iter().flatten() {
                assert!(
                    log.consumer(&consumer.name)
                        .is_some_and(|now| now.done_pos >= consumer.done_pos)
                        || survived.generation < newest.generation,
                    "a registered consumer was forgotten"
                );
            }
        }
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
        if self.config.survive == Survive::Process {
            // What was only in the page cache is not promised any more.
            let disk = self.disk.0.borrow();
            let newest = ring::superblock(disk.cache());
            let kept = ring::ends(disk.cache(), &newest);
            let durable = self.durable_seen;
            drop(disk);
            self.ledger
                .weaken(|number| kept.get(&number).is_none_or(|end| *end <= durable));
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
        self.storage_failed = false;
        self.sync_stalled = false;
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
        let turns = 20 + self.random.below(400);
        {
            let mut disk = self.disk.0.borrow_mut();
            let at = Some(disk.calls + 1 + self.random.below(turns / 2));
            match (end, self.random.below(8)) {
                (End::Crash, 0..=4) => disk.dies_at = at,
                (_, 7) => disk.fails_at = at,
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
        if !died && end != End::Crash {
            self.come_to_an_end(&mut server, end);
            assert_eq!(server.connections(), 0);
            assert!(server.is_drained(), "a commit is pending for nobody");
            assert_eq!(
                server.shared.pool.free_bytes(),
                free_at_start,
                "chunks are missing"
            );
            self.finish_syncs(&mut server);
            if !self.storage_failed && self.random.one_in(2) {
                let closed = server.close_log();
                died = self.disk.0.borrow().dead.get();
                assert!(closed.is_ok() || self.disk.0.borrow().failed || died);
            }
            self.figures.clean_ends += 1;
        } else {
            self.figures.crashes += 1;
        }
        self.figures.storage_failures += u64::from(self.storage_failed);
        // The process is gone: nothing that its destructors do reaches anyone.
        self.disk.0.borrow_mut().dead.set(true);
        drop(server);
        for peer in &mut self.peers {
            let server_read = peer.wire.borrow().server_read;
            for (letter, ends_at) in peer.completed.drain(..) {
                self.ledger.letter(letter).ends_at = ends_at;
            }
            for letter in &peer.letters {
                self.ledger.settle(*letter, server_read);
            }
        }
        self.peers.clear();
        self.end_machine();
        self.now = Instant(self.now.0 + 1_000_000_000);
        self.wall_ns += 1_000_000_000;
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
        assert!(self.storage_failed, "a sync does not end");
    }

    fn pass(&mut self, ns: u64) {
        self.now = Instant(self.now.0 + ns);
        // The wall clock is set now and then, backwards too.
        self.wall_ns += ns;
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
        let since = self.disk.0.borrow().sync_since_ns();
        self.sync_stalled |=
            since.is_some_and(|since| self.now.0 - since > self.config.sync_stall_ns);
        if !ending {
            self.arrive();
        }
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            peer.act(ending);
            peer.wire.borrow_mut().writes_in_turn = 0;
        }
        server.begin_turn(self.now, self.wall_ns);
        self.events(server);
        self.accept(server, ending);
        server.end_turn();
        if self.now.since_ns(self.idle_tick_at) > 1_000_000_000 {
            self.idle_tick_at = self.now;
            server.idle_tick();
            if self.random.one_in(4) {
                server.give_back_idle_memory();
            }
        }
        self.consume(server);
        self.look(server);
    }

    /// New clients.
    fn arrive(&mut self) {
        let here = self.peers.iter().filter(|peer| !peer.finished).count();
        if here < self.config.peers_max && self.random.one_in(3) {
            let peer = Peer::new(&mut self.random, &self.config, &mut self.ledger, self.now.0);
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
            let address = SocketAddr::from(([10, 0, (index % 6) as u8, 1], 1_024 + index as u16));
            let token = server
                .accept(address, 0, |_| Ok(stream))
                .expect("there is a place");
            peer.token = Some(token);
            peer.wire.borrow_mut().registered();
        }
    }

    fn events(&mut self, server: &mut SimServer) {
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
            server.ready(token, events.readable, events.writable, events.hung_up);
        }
    }

    fn consume(&mut self, server: &mut SimServer) {
        if !self.config.consumers || !self.random.one_in(4) {
            return;
        }
        let Some(storage) = &mut server.shared.storage else {
            return;
        };
        let log = &mut storage.log;
        if log.failed().is_some() {
            return;
        }
        let name = ["first", "second"][self.random.below(2) as usize];
        let name = ConsumerName::new(name).expect("a good name");
        let Some(consumer) = log.consumer(&name).copied() else {
            if self.random.one_in(8) {
                let start = if self.random.one_in(2) {
                    StartAt::Oldest
                } else {
                    StartAt::Newest
                };
                let consumer = log.register(name, start).expect("there is a place");
                // A drop that a crash undoes brings an older cursor back.
                let consumed = self.consumed.entry(name.as_str().into()).or_default();
                *consumed = consumer.done_pos.max(*consumed);
            }
            return;
        };
        if self.random.one_in(200) {
            log.drop_consumer(&name).expect("it is there");
            return;
        }
        let disk = self.disk.0.borrow();
        let durable = log.durable();
        let contents = ring::read(disk.cache(), log.superblock(), consumer.scan_pos, durable);
        drop(disk);
        let mut ready: Vec<_> = contents
            .messages
            .values()
            .filter(|stored| stored.end > consumer.done_pos)
            .collect();
        ready.sort_by_key(|stored| stored.end);
        for stored in &ready {
            self.ledger.check(stored);
        }
        let take = self.random.below(ready.len() as u64 + 1) as usize;
        if take == 0 {
            return;
        }
        let done = ready[take - 1].end;
        let scan = ready[take..]
            .iter()
            .map(|stored| stored.position)
            .chain(contents.open_at)
            .filter(|position| *position < done)
            .min()
            .unwrap_or(done);
        log.acknowledge(&name, scan.max(consumer.scan_pos), done)
            .expect("forward and durable");
        let consumed = self.consumed.entry(name.as_str().into()).or_default();
        *consumed = done.max(*consumed);
    }

    /// What must be true between two turns.
    fn look(&mut self, server: &mut SimServer) {
        assert_eq!(server.shared.metrics.session_panics, 0);
        self.storage_failed |= server.shared.is_failed() || self.disk.0.borrow().failed;
        if let Some(storage) = &server.shared.storage {
            let log = &storage.log;
            let status = log.status();
            assert!(status.tail <= status.durable && status.durable <= status.written);
            for consumer in log.consumers() {
                assert!(status.tail <= consumer.scan_pos, "a consumer was overtaken");
            }
            let alone = log.consumers().next().is_none();
            if let Some(before) = self.tail_alone.filter(|_| alone) {
                let kept = status.written - before;
                assert!(
                    status.tail == before
                        || self.config.full != FullPolicy::Defer
                            && kept >= self.config.data_size / 2,
                    "the tail moved from {before} to {} without need",
                    status.tail
                );
            }
            self.tail_alone = alone.then_some(status.tail);
            self.tail_decided = self.tail_decided.max(status.tail);
            self.durable_seen = status.durable;
        }
        let circumstances = Circumstances {
            config: &self.config,
            context: &self.context,
            now_ns: self.now.0,
            draining: self.draining,
            storage_failed: self.storage_failed,
            sync_stalled: self.sync_stalled,
        };
        for peer in &mut self.peers {
            assert!(
                peer.wire.borrow().writes_in_turn <= 2,
                "written again in one turn"
            );
            peer.check(&mut self.ledger, &circumstances);
        }
    }
}
