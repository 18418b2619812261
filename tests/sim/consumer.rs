//! Consumers of the simulated ring: they read with the program's own walk, slowly or fast, die between a delivery and
//! its acknowledgement, begin again at their cursor, and come and go.
//!
//! What each delivers is compared with an index that another reader made: every message, in order, none left out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use ringmx::ringlog::format::{ConsumerName, Superblock};
use ringmx::ringlog::reader::{Reader, Source, Step, Walk, Window};
use ringmx::ringlog::writer::{FullPolicy, Log, StartAt};

use crate::disk::{Disk, SimDisk};
use crate::ledger::Ledger;
use crate::random::Random;
use crate::ring::{Scanner, Stored};

/// A complete message of the ring.
#[derive(Clone, Debug)]
pub struct Entry {
    pub number: u64,
    pub letter: u64,
    pub received_ns: u64,
    /// Where each of its records begins and ends.
    pub records: Vec<(u64, u64)>,
}

/// What the ring holds, kept up to date by a reader of our own.
pub struct Index {
    scanner: Scanner,
    /// Complete messages by the position behind them.
    pub messages: BTreeMap<u64, Entry>,
    /// That position by number.
    pub ends: BTreeMap<u64, u64>,
    /// When the newest of those received that the tail has passed, by the wall clock, nanoseconds.
    pub newest_gone_ns: u64,
    /// Its number.
    pub newest_gone: u64,
}

impl Index {
    /// The index of an empty stretch that begins at `from`.
    pub fn new(from: u64) -> Index {
        Index {
            scanner: Scanner::new(from),
            messages: BTreeMap::new(),
            ends: BTreeMap::new(),
            newest_gone_ns: 0,
            newest_gone: 0,
        }
    }

    /// Takes in what was written up to `head`, and forgets what ended before `tail`.
    pub fn update(
        &mut self,
        file: &[u8],
        superblock: &Superblock,
        tail: u64,
        head: u64,
        ledger: &mut Ledger,
    ) {
        while self.scanner.position < head {
            if let Some(stored) = self.scanner.step(file, superblock, head) {
                self.add(&stored, ledger);
            }
        }
        while let Some(first) = self.messages.first_entry()
            && *first.key() <= tail
        {
            self.ends.remove(&first.get().number);
            self.newest_gone = self.newest_gone.max(first.get().number);
            self.newest_gone_ns = self.newest_gone_ns.max(first.get().received_ns);
            first.remove();
        }
    }

    fn add(&mut self, stored: &Stored, ledger: &mut Ledger) {
        let entry = Entry {
            number: stored.number,
            letter: ledger.check(stored),
            received_ns: stored.received_ns,
            records: stored.records.clone(),
        };
        self.ends.insert(stored.number, stored.end);
        self.messages.insert(stored.end, entry);
    }
}

/// The ring as a reader in another process sees it: what is in the page cache.
struct Map {
    disk: Rc<RefCell<Disk>>,
    data_offset: u64,
    data_size: u64,
}

impl Source for Map {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.borrow();
        let (mut at, mut left) = (position, out);
        while !left.is_empty() {
            let place = at % self.data_size;
            let take = left.len().min((self.data_size - place) as usize);
            let (now, later) = std::mem::take(&mut left).split_at_mut(take);
            let from = (self.data_offset + place) as usize;
            now.copy_from_slice(&disk.cache()[from..from + take]);
            at += take as u64;
            left = later;
        }
        Ok(())
    }
}

/// A process that reads for a consumer.
struct Attached {
    reader: Reader<Map>,
    walk: Walk,
    /// Where it began to read: of a large message whose first record stands before that it knows nothing.
    from: u64,
    /// Position behind the last message delivered; all before it were.
    delivered: u64,
}

impl Attached {
    /// The message that it has to deliver next.
    fn next<'a>(&self, index: &'a Index) -> Option<(u64, &'a Entry)> {
        let mut waiting = index.messages.range(self.delivered + 1..);
        waiting
            .find(|(_, entry)| entry.records.len() == 1 || entry.records[0].0 >= self.from)
            .map(|(end, entry)| (*end, entry))
    }
}

/// One consumer.
pub struct Consumer {
    name: ConsumerName,
    /// Acts once in so many turns.
    pace: u64,
    attached: Option<Attached>,
    /// What the log was last told, if it is registered: scan_pos and done_pos.
    cursor: Option<(u64, u64)>,
    /// Furthest position it ever acknowledged or was set to.
    pub furthest: u64,
}

/// What consumers did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deeds {
    pub delivered: u64,
    pub deaths: u64,
}

impl Consumer {
    /// A consumer that is not registered yet.
    pub fn new(name: &str, random: &mut Random) -> Consumer {
        Consumer {
            name: ConsumerName::new(name).expect("a good name"),
            pace: [2, 4, 16, 100][random.below(4) as usize],
            attached: None,
            cursor: None,
            furthest: 0,
        }
    }

    /// The server begins: whoever was attached has lost it, and the log knows what survived.
    pub fn server_began(&mut self, log: &Log<SimDisk>) {
        self.attached = None;
        self.cursor = log.consumer(&self.name).map(|consumer| {
            assert!(
                consumer.done_pos <= self.furthest,
                "the cursor of {} is ahead of what it did",
                self.name
            );
            (consumer.scan_pos, consumer.done_pos)
        });
    }

    /// The log knows what it was told, and nothing else.
    pub fn check(&self, log: &Log<SimDisk>) {
        let known = log
            .consumer(&self.name)
            .map(|consumer| (consumer.scan_pos, consumer.done_pos));
        assert_eq!(known, self.cursor, "cursor of {}", self.name);
    }

    /// Does something, or nothing. True when the log was told something.
    pub fn act(
        &mut self,
        disk: &SimDisk,
        log: &mut Log<SimDisk>,
        index: &Index,
        ledger: &Ledger,
        random: &mut Random,
        deeds: &mut Deeds,
    ) -> bool {
        if !random.one_in(self.pace) {
            return false;
        }
        if self.cursor.is_none() {
            return random.one_in(8) && self.register(log, random);
        }
        match random.below(256) {
            0 => {
                log.drop_consumer(&self.name).expect("it is there");
                self.cursor = None;
                self.attached = None;
                return true;
            }
            1 => {
                let start = start(random);
                let moved = log.seek(&self.name, start).expect("it is there");
                self.set(moved.scan_pos, moved.done_pos);
                self.attached = None;
                return true;
            }
            2..=5 => {
                // What it delivered and did not acknowledge it delivers again.
                deeds.deaths += u64::from(self.attached.is_some());
                self.attached = None;
                return false;
            }
            _ => {}
        }
        if self.attached.is_none() {
            self.attach(disk, log);
        }
        self.deliver(log, index, ledger, random, deeds);
        random.one_in(2) && self.acknowledge(log)
    }

    fn set(&mut self, scan: u64, done: u64) {
        self.cursor = Some((scan, done));
        self.furthest = self.furthest.max(done);
    }

    fn register(&mut self, log: &mut Log<SimDisk>, random: &mut Random) -> bool {
        if log.settings().full == FullPolicy::Overwrite {
            return false;
        }
        let consumer = log
            .register(self.name, start(random))
            .expect("there is a place");
        self.set(consumer.scan_pos, consumer.done_pos);
        true
    }

    fn attach(&mut self, disk: &SimDisk, log: &Log<SimDisk>) {
        let (scan, done) = self.cursor.expect("looked at");
        let superblock = log.superblock();
        let map = Map {
            disk: Rc::clone(&disk.0),
            data_offset: superblock.data_offset,
            data_size: superblock.data_size,
        };
        self.attached = Some(Attached {
            reader: Reader::new(map, superblock, 0),
            walk: Walk::resume(scan, done),
            from: scan,
            delivered: done,
        });
    }

    fn deliver(
        &mut self,
        log: &Log<SimDisk>,
        index: &Index,
        ledger: &Ledger,
        random: &mut Random,
        deeds: &mut Deeds,
    ) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let window = Window {
            tail: log.tail(),
            end: log.acknowledged(),
        };
        for _ in 0..random.below(40) {
            let step = attached
                .walk
                .step(&attached.reader, window)
                .expect("reading a map fails with a signal, or not at all");
            match step {
                Step::Message(message) => {
                    let (end, entry) = attached.next(index).expect("what it read was written");
                    assert_eq!(
                        (message.number, message.end),
                        (entry.number, end),
                        "{} left a message out",
                        self.name
                    );
                    let body = &ledger.letters[&entry.letter].body;
                    assert!(message.body().ends_with(body), "delivered otherwise");
                    attached.delivered = message.end;
                    deeds.delivered += 1;
                }
                Step::Other => {}
                Step::End => break,
                Step::Lapped { .. } | Step::Damaged { .. } => {
                    panic!("{} came upon {step:?} in {window:?}", self.name)
                }
            }
        }
        // Whatever ends before the place where it stands has been delivered.
        let passed = attached.walk.position();
        if let Some((end, entry)) = attached.next(index) {
            assert!(end > passed, "{} left {entry:?} out", self.name);
        }
    }

    fn acknowledge(&mut self, log: &mut Log<SimDisk>) -> bool {
        let Some(attached) = &self.attached else {
            return false;
        };
        let (scan, done) = (attached.walk.scan_position(), attached.walk.position());
        log.acknowledge(&self.name, scan, done)
            .expect("it was given what it acknowledges");
        self.set(scan, done);
        true
    }
}

fn start(random: &mut Random) -> StartAt {
    if random.one_in(2) {
        StartAt::Oldest
    } else {
        StartAt::Newest
    }
}
