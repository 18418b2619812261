//! The ring after crashes, over a disk that loses power at any call.
//!
//! Each 512-byte sector that was written since the last completed sync keeps its old bytes or takes
//! any of the versions written since, independently of all others. A ledger of what was
//! acknowledged says what must be there afterwards. `RINGMX_RECOVERY_SEED=n` replays one seed,
//! `RINGMX_RECOVERY_SEEDS=n` runs that many.

#[path = "support/random.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod random;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use random::Xorshift;
use ringmx::clock::Instant;
use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::format::{
    ConsumerName, DATA_OFFSET, Header, Kind, SUPERBLOCK_OFFSETS, Superblock, WHOLE_BYTES, Whole,
};
use ringmx::ringlog::recover::{self, NewRing, OpenError, OpenOptions};
use ringmx::ringlog::writer::{
    CommitAlign, FullPolicy, LargeSlot, Log, ReserveError, StartAt, Survive,
};

const SECTOR: usize = 512;
const PAGE: usize = 4_096;
/// Pages of the file that hold superblocks, and pages of the data area.
const SUPERBLOCK_PAGES: Range<usize> = 0..DATA_OFFSET as usize / PAGE;
const DATA_PAGES: Range<usize> = SUPERBLOCK_PAGES.end..usize::MAX;

/// What the machine holds: the disk, and the page cache in front of it.
struct Disk {
    durable: Vec<u8>,
    cache: Vec<u8>,
    /// Versions of each sector since the last sync that covered it, with the call that made them.
    unsynced: BTreeMap<usize, Vec<(u64, [u8; SECTOR])>>,
    calls: u64,
    /// The process dies at this call.
    dies_at: Option<u64>,
    /// The medium can be read past the cache; what is dirty is written back first.
    reads_medium: bool,
    random: Xorshift,
}

impl Disk {
    fn die(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.dies_at.is_some_and(|at| self.calls >= at) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn store(&mut self, bytes: &[u8], at: usize) {
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
        if bytes.is_empty() {
            return;
        }
        for sector in at / SECTOR..=(at + bytes.len() - 1) / SECTOR {
            let mut version = [0; SECTOR];
            version.copy_from_slice(&self.cache[sector * SECTOR..(sector + 1) * SECTOR]);
            self.unsynced
                .entry(sector)
                .or_default()
                .push((self.calls, version));
        }
    }

    /// What was written by call `until` is durable.
    fn synced(&mut self, until: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|sector, versions| {
            let covered = versions.partition_point(|(call, _)| *call <= until);
            if let Some((_, bytes)) = versions[..covered].last() {
                durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
            }
            versions.drain(..covered);
            !versions.is_empty()
        });
    }

    /// Power is lost; `choose` picks for each sector 0 (old bytes) up to the number of its
    /// versions.
    fn lose_power(&mut self, mut choose: impl FnMut(usize, usize) -> usize) {
        for (index, (sector, versions)) in
            std::mem::take(&mut self.unsynced).into_iter().enumerate()
        {
            let chosen = choose(index, versions.len() + 1);
            if let Some(version) = chosen.checked_sub(1) {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR]
                    .copy_from_slice(&versions[version].1);
            }
        }
        self.cache.clone_from(&self.durable);
    }
}

#[derive(Clone)]
struct SimDisk(Rc<RefCell<Disk>>);

impl SimDisk {
    fn new(bytes: Vec<u8>, seed: u64) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(Disk {
            durable: bytes.clone(),
            cache: bytes,
            unsynced: BTreeMap::new(),
            calls: 0,
            dies_at: None,
            reads_medium: false,
            random: Xorshift(seed | 1),
        })))
    }
}

impl Backing for SimDisk {
    fn len(&self) -> u64 {
        self.0.borrow().cache.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let disk = self.0.borrow();
        let at = at as usize;
        let n = buf.len().min(disk.cache.len() - at);
        buf[..n].copy_from_slice(&disk.cache[at..at + n]);
        Ok(n)
    }

    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        let disk = self.0.borrow();
        for (index, byte) in buf.iter_mut().enumerate() {
            let at = at as usize + index;
            let side = match disk.unsynced.contains_key(&(at / SECTOR)) {
                true => &disk.cache,
                false => &disk.durable,
            };
            *byte = side[at];
        }
        disk.reads_medium
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let dead = disk.die();
        // A dying write, and one in eight others, takes only a part.
        let taken = if dead.is_err() || disk.random.one_in(8) {
            disk.random.below(bytes.len() as u64 + 1).max(1) as usize
        } else {
            bytes.len()
        };
        disk.store(&bytes[..taken.min(bytes.len())], at as usize);
        dead?;
        if disk.random.one_in(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(taken)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.die()?;
        let calls = disk.calls;
        disk.synced(calls);
        Ok(())
    }
}

fn new_ring(data_size: u64) -> Vec<u8> {
    let mut backing = MemoryBacking {
        bytes: vec![0; (DATA_OFFSET + data_size) as usize],
    };
    let new = NewRing {
        ring_id: [7; 16],
        ring_key: 0x5eed,
        data_size,
        created_ns: 1,
    };
    recover::format(&mut backing, &new).unwrap();
    backing.bytes
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    payload: Vec<u8>,
    position: u64,
    end: u64,
    /// A 250 was sent, or a recovery found it: it has to stay.
    promised: bool,
}

/// A reader that shares nothing with the program but the layout: every complete message from tail
/// to head.
fn read_all<B: Backing>(backing: &B, head: u64) -> (u64, BTreeMap<u64, (Vec<u8>, u64)>) {
    let mut whole = vec![0; backing.len() as usize];
    backing.read_at(&mut whole, 0).unwrap();
    let superblock = SUPERBLOCK_OFFSETS
        .iter()
        .filter_map(|at| {
            let bytes = whole[*at as usize..].first_chunk().unwrap();
            Superblock::decode(bytes).ok()
        })
        .max_by_key(|superblock| superblock.generation)
        .unwrap();
    let byte = |position: u64| whole[superblock.place(position) as usize];
    let bytes = |from: u64, len: u64| (from..from + len).map(byte).collect::<Vec<u8>>();
    let mut messages = BTreeMap::new();
    let mut open: Option<(u64, u64, Vec<u8>, u32)> = None;
    let mut position = superblock.tail;
    let mut last = (0, 0);
    while position < head {
        let header = Header::decode(
            bytes(position, 64).first_chunk().unwrap(),
            superblock.ring_key,
        )
        .unwrap_or_else(|error| panic!("at {position}: {error}"));
        assert_eq!(header.position, position);
        assert!((header.epoch, header.number) >= last, "order at {position}");
        last = (header.epoch, header.number);
        let payload = bytes(position + 64, u64::from(header.len));
        if header.kind != Kind::Pad {
            assert_eq!(crc32c::crc32c(&payload), header.payload_crc);
        }
        let mut add = |number, payload| {
            let twice = messages.insert(number, (payload, position));
            assert_eq!(twice, None, "number {number} names two messages");
        };
        match (header.kind, &mut open) {
            (Kind::Message, _) => add(header.number, payload),
            (Kind::First, _) => open = Some((header.number, position, payload, 1)),
            (Kind::Middle, Some((_, _, body, fragments))) => {
                body.extend(payload);
                *fragments += 1;
            }
            (Kind::Last, Some(_)) => {
                let (number, first_position, mut body, fragments) = open.take().unwrap();
                body.extend(&payload[WHOLE_BYTES..]);
                let expected = Whole {
                    number,
                    first_position,
                    payload_bytes: body.len() as u64,
                    fragments: fragments + 1,
                    crc: crc32c::crc32c(&body),
                };
                assert_eq!(Whole::decode(&payload), Some(expected));
                add(number, body);
            }
            _ => {}
        }
        position = header.end();
    }
    assert_eq!(position, head);
    (superblock.tail, messages)
}

struct World {
    disk: SimDisk,
    options: OpenOptions,
    random: Xorshift,
    now: Instant,
    ledger: BTreeMap<u64, Entry>,
    /// Numbers ever shown to a client.
    shown: BTreeSet<u64>,
    /// What the consumer has acknowledged at most.
    consumed: u64,
    /// The durable position that the last life of the process knew of.
    durable_seen: u64,
    crashes: u32,
}

struct Large {
    slot: LargeSlot,
    payload: Vec<u8>,
    given: usize,
}

impl World {
    fn new(seed: u64, data_size: u64, survive: Survive, full: FullPolicy) -> World {
        let mut options = OpenOptions::new(survive, 10);
        options.full = full;
        World {
            disk: SimDisk::new(new_ring(data_size), seed.wrapping_mul(0x9e37_79b9)),
            options,
            random: Xorshift(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1),
            now: Instant(1),
            ledger: BTreeMap::new(),
            shown: BTreeSet::new(),
            consumed: 0,
            durable_seen: 0,
            crashes: 0,
        }
    }

    fn payload(&mut self, max: u64) -> Vec<u8> {
        let len = if self.random.one_in(3) {
            self.random.below(max)
        } else {
            self.random.below(300)
        };
        let salt = self.random.next();
        (0..len)
            .map(|at| (salt.wrapping_mul(at | 1) >> 24) as u8)
            .collect()
    }

    /// Opens the ring, dying inside a few times, and compares it with the ledger.
    fn open(&mut self) -> Log<SimDisk> {
        let mut deaths = self.random.below(4);
        loop {
            {
                let mut disk = self.disk.0.borrow_mut();
                disk.dies_at = None;
                if deaths > 0 {
                    let at = disk.calls + 1 + self.random.below(12);
                    disk.dies_at = Some(at);
                }
            }
            deaths = deaths.saturating_sub(1);
            match Log::open(self.disk.clone(), &self.options) {
                Ok((log, recovery)) => {
                    assert_eq!(recovery.lost, []);
                    // Without a sync behind each superblock an old cursor may be all that is left.
                    assert!(
                        recovery.consumers_moved == 0 && recovery.tail_moved_bytes == 0
                            || self.options.survive == Survive::Process
                    );
                    self.disk.0.borrow_mut().dies_at = None;
                    self.compare(&log, recovery.messages);
                    return log;
                }
                Err(OpenError::Failed(_)) => self.crash(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn compare(&mut self, log: &Log<SimDisk>, messages: u64) {
        let (tail, found) = read_all(&self.disk, log.written());
        // A large message whose beginning lies before the tail is counted until its LAST has gone
        // too.
        assert!((0..=1).contains(&(messages - found.len() as u64)));
        for (number, (payload, _)) in &found {
            let entry = self.ledger.get(number);
            assert_eq!(entry.map(|entry| &entry.payload), Some(payload), "{number}");
        }
        for (number, entry) in &self.ledger {
            assert!(
                !entry.promised || entry.position < tail || found.contains_key(number),
                "message {number} at {} was promised and is gone, tail {tail}",
                entry.position
            );
        }
        if let Some(consumer) = log.consumers().next() {
            assert!(tail <= consumer.scan_pos && consumer.done_pos <= self.consumed);
        }
        self.ledger.retain(|number, entry| {
            entry.promised = true;
            found.contains_key(number)
        });
    }

    fn crash(&mut self) {
        self.crashes += 1;
        let power = self.options.survive == Survive::Power && !self.random.one_in(3)
            || self.random.one_in(3);
        if !power {
            return;
        }
        let disk = Rc::clone(&self.disk.0);
        let random = &mut self.random;
        // From almost everything lost to almost everything kept.
        let bias = random.below(8);
        disk.borrow_mut().lose_power(|_, choices| {
            if random.below(8) < bias {
                choices - 1
            } else {
                random.below(choices as u64) as usize
            }
        });
        if self.options.survive == Survive::Process {
            // What was only in the page cache is not promised any more.
            for entry in self.ledger.values_mut() {
                entry.promised &= entry.end <= self.durable_seen;
            }
        }
    }

    /// One life of the process: random work until the disk dies, the work is done, or it is killed.
    fn live(&mut self, turns: u64) {
        let mut log = self.open();
        self.durable_seen = log.durable();
        if self.random.one_in(2) {
            let at = self.disk.0.borrow().calls + 1 + self.random.below(turns * 2);
            self.disk.0.borrow_mut().dies_at = Some(at);
        }
        let mut in_flight: Option<(u64, u64)> = None;
        let mut large: Option<Large> = None;
        for _ in 0..turns {
            if self.turn(&mut log, &mut in_flight, &mut large).is_none() {
                break;
            }
        }
        if in_flight.is_none() && log.failed().is_none() && self.random.one_in(4) {
            self.disk.0.borrow_mut().dies_at = None;
            if log.close().is_ok() {
                return;
            }
        }
        self.crash();
    }

    /// `None` when the process has died.
    fn turn(
        &mut self,
        log: &mut Log<SimDisk>,
        in_flight: &mut Option<(u64, u64)>,
        large: &mut Option<Large>,
    ) -> Option<()> {
        self.now = self
            .now
            .after(Duration::from_millis(self.random.below(400)));
        if let Some((target, until)) = *in_flight
            && self.random.one_in(2)
        {
            let died = self.disk.0.borrow_mut().die();
            died.ok()?;
            *in_flight = None;
            if self.random.one_in(40) {
                // After a failed write-back the pages count as clean, with new bytes in the cache
                // only. The next sync of such pages succeeds and writes nothing.
                self.disk.0.borrow_mut().unsynced.clear();
                let eio = io::Error::from_raw_os_error(libc::EIO);
                assert!(log.sync_completed(target, Err(eio)).is_err());
                return None;
            }
            self.disk.0.borrow_mut().synced(until);
            log.sync_completed(target, Ok(())).ok()?;
            self.durable_seen = log.durable();
        }
        log.begin_turn(self.now.0);
        self.consume(log);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for _ in 0..self.random.below(5) {
            self.small(log, &mut parts);
        }
        if self.random.one_in(3) {
            self.fragment(log, large, &mut parts);
        }
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        log.write(&slices).ok()?;
        if self.random.one_in(4) {
            log.idle_tick().ok()?;
        }
        self.promise(log);
        if let Some(request) = log.sync_wanted(self.now) {
            assert!(in_flight.is_none());
            if let Some((at, bytes)) = request.superblock {
                let mut disk = self.disk.0.borrow_mut();
                let died = disk.die();
                let taken = if died.is_err() { 700 } else { bytes.len() };
                disk.store(&bytes[..taken], at as usize);
                died.ok()?;
            }
            *in_flight = Some((request.target, self.disk.0.borrow().calls));
        }
        log.failed().is_none().then_some(())
    }

    fn promise(&mut self, log: &Log<SimDisk>) {
        for (number, entry) in &mut self.ledger {
            if entry.end <= log.acknowledged() && !entry.promised {
                entry.promised = true;
                assert!(
                    self.shown.insert(*number),
                    "number {number} was used before"
                );
            }
        }
    }

    fn small(&mut self, log: &mut Log<SimDisk>, parts: &mut Vec<Vec<u8>>) {
        let payload = self.payload(log.payload_bytes_max());
        let slot = match log.reserve(payload.len() as u64) {
            Ok(slot) => slot,
            Err(ReserveError::Full { .. } | ReserveError::Failed(_)) => return,
            Err(error) => panic!("{error:?}"),
        };
        parts.push(log.header(&slot, 0, crc32c::crc32c(&payload)).to_vec());
        parts.push(payload.clone());
        parts.push(vec![0; slot.padding]);
        let entry = Entry {
            payload,
            position: slot.position,
            end: slot.end,
            promised: false,
        };
        assert_eq!(self.ledger.insert(slot.number, entry), None);
    }

    fn fragment(
        &mut self,
        log: &mut Log<SimDisk>,
        large: &mut Option<Large>,
        parts: &mut Vec<Vec<u8>>,
    ) {
        if large.is_none() {
            let mut payload = self.payload(log.payload_bytes_max());
            payload.extend(b"at least two fragments");
            payload.truncate(log.payload_bytes_max() as usize);
            let Ok(slot) = log.begin_large(payload.len() as u64) else {
                return;
            };
            *large = Some(Large {
                slot,
                payload,
                given: 0,
            });
        }
        let open = large.as_mut().unwrap();
        let rest = open.payload.len() - open.given;
        let mut bytes = 1 + self.random.below(rest as u64) as usize;
        if open.given == 0 && bytes == rest {
            bytes -= 1;
        }
        let Ok(slot) = log.reserve_fragment(&mut open.slot, bytes as u64) else {
            return;
        };
        let mut piece = Vec::new();
        if slot.kind == Kind::Last {
            let whole = open.slot.whole(crc32c::crc32c(&open.payload));
            piece.extend(whole.encode());
        }
        piece.extend(&open.payload[open.given..open.given + bytes]);
        open.given += bytes;
        parts.push(log.header(&slot, 0, crc32c::crc32c(&piece)).to_vec());
        parts.push(piece);
        parts.push(vec![0; slot.padding]);
        if slot.kind == Kind::Last {
            let open = large.take().unwrap();
            let whole = open.slot.whole(0);
            let entry = Entry {
                payload: open.payload,
                position: whole.first_position,
                end: slot.end,
                promised: false,
            };
            assert_eq!(self.ledger.insert(whole.number, entry), None);
        }
    }

    fn consume(&mut self, log: &mut Log<SimDisk>) {
        if self.options.full == FullPolicy::Overwrite {
            return;
        }
        let name = ConsumerName::new("sim").unwrap();
        match log.consumer(&name).copied() {
            None if self.random.one_in(20) => {
                let consumer = log.register(name, StartAt::Newest).unwrap();
                self.consumed = consumer.done_pos;
            }
            Some(consumer) if self.random.one_in(3) => {
                // Any promised message's end; scanning goes on at the oldest message still open.
                let ends: Vec<(u64, u64)> = self
                    .ledger
                    .values()
                    .filter(|entry| entry.end <= log.durable() && entry.end > consumer.done_pos)
                    .map(|entry| (entry.position, entry.end))
                    .collect();
                if ends.is_empty() {
                    return;
                }
                let done = ends[self.random.below(ends.len() as u64) as usize].1;
                let scan = ends
                    .iter()
                    .filter(|(position, end)| *end > done && *position < done)
                    .map(|(position, _)| *position)
                    .min()
                    .unwrap_or(done)
                    .max(consumer.scan_pos);
                log.acknowledge(&name, scan, done).unwrap();
                self.consumed = self.consumed.max(done);
            }
            Some(_) if self.random.one_in(60) => log.drop_consumer(&name).unwrap(),
            _ => {}
        }
    }
}

fn run(seed: u64) {
    let mut pick = Xorshift(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    pick.next();
    let survive = match pick.below(4) {
        0 => Survive::Process,
        _ => Survive::Power,
    };
    let full = match pick.below(3) {
        0 => FullPolicy::Defer,
        1 => FullPolicy::Overwrite,
        _ => FullPolicy::Auto,
    };
    let data_size = 65_536 * (1 + pick.below(2));
    let mut world = World::new(pick.next(), data_size, survive, full);
    while world.crashes < 20 {
        let turns = 5 + world.random.below(120);
        world.live(turns);
        if world.random.one_in(12) {
            world.crashes += 1;
        }
    }
    world.open();
}

#[test]
fn promised_messages_survive_crashes_at_any_call_with_any_unsynced_sectors() {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("RINGMX_RECOVERY_SEED") {
        return run(seed);
    }
    for seed in 0..number("RINGMX_RECOVERY_SEEDS").unwrap_or(12) {
        println!("RINGMX_RECOVERY_SEED={seed} cargo test --test recovery promised");
        run(seed);
    }
}

/// Messages of `payloads` appended in one write each, synced up to and including `synced`.
fn fill(disk: &SimDisk, payloads: &[Vec<u8>], synced: usize) -> Vec<(u64, u64)> {
    let options = OpenOptions::new(Survive::Power, 10);
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    let mut places = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        log.begin_turn(20 + index as u64);
        let slot = log.reserve(payload.len() as u64).unwrap();
        places.push((slot.position, slot.end));
        let header = log.header(&slot, 0, crc32c::crc32c(payload));
        let parts = [&header[..], payload, &[0; 64][..slot.padding]];
        log.write(&parts.map(IoSlice::new)).unwrap();
        if index < synced {
            log.sync_inline(Instant(1 + index as u64)).unwrap();
        }
    }
    places
}

fn payloads(count: u8, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| vec![b'a' + index; len]).collect()
}

#[test]
fn every_subset_of_unsynced_sectors_keeps_what_was_synced_and_shows_nothing_else() {
    // Three messages of 640 bytes behind two synced ones: few enough sectors for all subsets.
    let payloads = payloads(5, 576);
    let image = SimDisk::new(new_ring(65_536), 0);
    fill(&image, &payloads, 2);
    let sectors = image.0.borrow().unsynced.len() as u32;
    assert!((4..=12).contains(&sectors), "{sectors}");
    for subset in 0..1_u32 << sectors {
        let disk = SimDisk::new(Vec::new(), 3);
        {
            let from = image.0.borrow();
            let mut to = disk.0.borrow_mut();
            to.durable.clone_from(&from.durable);
            to.unsynced.clone_from(&from.unsynced);
            to.lose_power(|index, choices| (subset as usize >> index & 1) * (choices - 1));
        }
        let options = OpenOptions::new(Survive::Power, 30);
        let (log, recovery) = Log::open(disk.clone(), &options).unwrap();
        assert_eq!(recovery.lost, []);
        let (_, found) = read_all(&disk, log.written());
        let count = found.len();
        assert!((2..=5).contains(&count), "subset {subset:b}");
        for (index, (number, (payload, _))) in found.iter().enumerate() {
            assert_eq!((*number, payload), (index as u64 + 1, &payloads[index]));
        }
        // Twice is once: the same messages, no more and no fewer.
        let (log, again) = Log::open(log.into_backing(), &options).unwrap();
        assert_eq!(again.messages, count as u64);
        assert_eq!(read_all(&disk, log.written()).1, found);
    }
}

/// Puts a whole record of the first epoch at position `place` on the disk; its header names `position` and `number`.
fn store_record(disk: &SimDisk, place: u64, position: u64, number: u64, payload: &[u8]) {
    let header = Header {
        position,
        number,
        len: payload.len() as u32,
        payload_crc: crc32c::crc32c(payload),
        epoch: 1,
        kind: Kind::Message,
        flags: 0,
        env_len: 0,
        hint_back: 0,
        received_ns: 22,
    };
    let mut disk = disk.0.borrow_mut();
    let at = (DATA_OFFSET + place) as usize;
    disk.store(&header.encode(0x5eed), at);
    disk.store(payload, at + 64);
}

#[test]
fn record_of_an_earlier_epoch_never_follows_a_later_one() {
    // The second of two unacknowledged records reaches the disk, the first does not. Recovery cuts
    // there, and a new record of the same length takes the first one's place. Without epochs the
    // old second record would fit behind it.
    let payloads = payloads(3, 448);
    let disk = SimDisk::new(new_ring(65_536), 0);
    let places = fill(&disk, &payloads, 1);
    // The sector that holds its header keeps its old bytes: the end of the first message, zeros.
    let header_at = (DATA_OFFSET + places[1].0) as usize;
    disk.0.borrow_mut().lose_power(|_, choices| choices - 1);
    disk.0.borrow_mut().cache[header_at..header_at.next_multiple_of(SECTOR)].fill(0);
    let options = OpenOptions::new(Survive::Power, 30);
    let (mut log, recovery) = Log::open(disk.clone(), &options).unwrap();
    assert_eq!((recovery.messages, recovery.discarded_records), (1, 1));
    // The EPOCH record takes 64 bytes of the gap; the new record takes the rest.
    let slot = log.reserve(384).unwrap();
    assert_eq!(slot.end, places[2].0);
    let payload = [b'z'; 384];
    let header = log.header(&slot, 0, crc32c::crc32c(&payload));
    log.write(&[IoSlice::new(&header), IoSlice::new(&payload)])
        .unwrap();
    // Page filling would hide the old record; put it back as a dropped sector leaves it.
    let place = places[2].0;
    // Larger than the skipped numbers reach: the epoch alone tells it.
    store_record(&disk, place, place, 200_000, &payloads[2]);
    let (log, recovery) = Log::open(disk.clone(), &options).unwrap();
    assert_eq!((recovery.messages, recovery.discarded_records), (2, 1));
    let found = read_all(&disk, log.written()).1;
    let bodies: Vec<&Vec<u8>> = found.values().map(|(payload, _)| payload).collect();
    assert_eq!(bodies, [&payloads[0], &payload.to_vec()]);
}

#[test]
fn record_that_names_another_place_is_not_taken_for_the_one_of_this_place() {
    // A write that the disk misdirected: a later record of this ring and this epoch, whole, with a number that
    // fits behind those before it. Neither checksum nor number nor epoch tell that it does not belong here.
    let payloads = payloads(3, 448);
    let disk = SimDisk::new(new_ring(65_536), 0);
    let places = fill(&disk, &payloads, 2);
    let place = places[2].0;
    store_record(&disk, place, place + 4 * 512, 7, &payloads[2]);
    let options = OpenOptions::new(Survive::Power, 30);
    let (log, recovery) = Log::open(disk.clone(), &options).unwrap();
    assert_eq!((recovery.messages, recovery.head), (2, places[2].0));
    let numbers: Vec<u64> = read_all(&disk, log.written()).1.into_keys().collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn flipped_bits_in_acknowledged_records_are_never_cut_and_never_shown() {
    let payloads = payloads(8, 200);
    let image = SimDisk::new(new_ring(65_536), 0);
    let places = fill(&image, &payloads, 8);
    let bytes = image.0.borrow().durable.clone();
    let mut random = Xorshift(99);
    // The hint names all but the last batch; damage there looks torn.
    let end = places[6].1;
    for _ in 0..300 {
        let position = 64 + random.below(end - 64);
        let mut damaged = bytes.clone();
        damaged[(DATA_OFFSET + position) as usize] ^= 1 << random.below(8);
        let hit = places
            .iter()
            .position(|(from, to)| (*from..*to).contains(&position))
            .unwrap();
        let padding = position >= places[hit].0 + 64 + 200;
        let disk = SimDisk::new(damaged.clone(), 5);
        let mut options = OpenOptions::new(Survive::Power, 30);
        let refused = Log::open(disk.clone(), &options).map(|_| ());
        if padding {
            assert!(refused.is_ok(), "padding is not checked");
            continue;
        }
        let Err(OpenError::DamagedAcknowledged { lost }) = refused else {
            panic!("byte {position}: {refused:?}");
        };
        assert_eq!((lost[0].from, lost[0].to), places[hit]);
        assert_eq!(
            disk.0.borrow().cache,
            damaged,
            "a refused ring is untouched"
        );

        options.accept_loss = true;
        let (log, recovery) = Log::open(disk.clone(), &options).unwrap();
        assert_eq!(recovery.lost, lost);
        let found = read_all(&disk, log.written()).1;
        let expected: Vec<&Vec<u8>> = payloads
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != hit)
            .map(|(_, payload)| payload)
            .collect();
        assert_eq!(
            found.values().map(|(body, _)| body).collect::<Vec<_>>(),
            expected
        );
        options.accept_loss = false;
        let (_, again) = Log::open(disk, &options).unwrap();
        assert_eq!((again.messages, again.lost), (7, vec![]));
    }
}

#[test]
fn idle_log_writes_one_epoch_record_and_then_damage_to_the_last_message_is_recognised() {
    let disk = SimDisk::new(new_ring(65_536), 0);
    let options = OpenOptions::new(Survive::Power, 10);
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    assert_eq!(log.idle_tick(), Ok(false));
    log.begin_turn(11);
    let slot = log.reserve(100).unwrap();
    let header = log.header(&slot, 0, crc32c::crc32c(&[7; 100]));
    log.write(&[
        IoSlice::new(&header),
        IoSlice::new(&[7; 100]),
        IoSlice::new(&[0; 28]),
    ])
    .unwrap();
    assert_eq!(log.idle_tick(), Ok(false), "not durable yet");
    assert!(log.sync_inline(Instant(1)).unwrap());
    assert_eq!(log.idle_tick(), Ok(true));
    assert!(log.sync_inline(Instant(2)).unwrap());
    assert_eq!(log.idle_tick(), Ok(false));
    drop(log);
    let at = (DATA_OFFSET + slot.position) as usize + 70;
    disk.0.borrow_mut().cache[at] ^= 1;
    let refused = Log::open(disk, &options).map(|_| ());
    assert!(matches!(
        refused,
        Err(OpenError::DamagedAcknowledged { .. })
    ));
}

#[test]
fn older_superblock_counts_when_the_newest_is_damaged() {
    let payloads = payloads(4, 100);
    let disk = SimDisk::new(new_ring(65_536), 0);
    fill(&disk, &payloads, 4);
    let options = OpenOptions::new(Survive::Power, 10);
    let found = recover::find_superblock(&disk).unwrap();
    disk.0.borrow_mut().cache[SUPERBLOCK_OFFSETS[found.slot] as usize + 90] ^= 1;
    let (_, recovery) = Log::open(disk.clone(), &options).unwrap();
    assert_eq!((recovery.messages, recovery.lost), (4, vec![]));
    for at in SUPERBLOCK_OFFSETS {
        disk.0.borrow_mut().cache[at as usize + 90] ^= 1;
    }
    let refused = Log::open(disk, &options).map(|_| ());
    assert!(matches!(
        refused,
        Err(OpenError::NotARing { damaged: true })
    ));
}

#[test]
fn consumer_acknowledges_what_it_was_given_early_and_its_stored_cursor_is_durable() {
    // With --survive process consumers are given what is written. What they acknowledged of it was refused until a
    // background sync had covered it, and the consumer ended.
    let disk = SimDisk::new(new_ring(65_536), 0);
    let options = OpenOptions::new(Survive::Process, 10);
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    let name = ConsumerName::new("early").unwrap();
    let begin = log.register(name, StartAt::Newest).unwrap().done_pos;
    let slot = log.reserve(0).unwrap();
    let header = log.header(&slot, 0, 0);
    log.write(&[IoSlice::new(&header)]).unwrap();
    assert_eq!((log.acknowledged(), log.durable()), (slot.end, begin));
    assert_eq!(log.acknowledge(&name, slot.end, slot.end), Ok(()));
    // The superblock goes out before the sync that covers the message.
    assert!(log.sync_wanted(Instant(5_000_000_000)).is_some());
    let stored = recover::find_superblock(&disk).unwrap().superblock;
    let cursor = stored.consumers[0].unwrap();
    assert_eq!((cursor.scan_pos, cursor.done_pos), (begin, begin));
    assert_eq!(log.consumer(&name).unwrap().done_pos, slot.end);
    log.sync_completed(slot.end, Ok(())).unwrap();
    // The next one stores all of it.
    assert!(log.sync_inline(Instant(9_000_000_000)).unwrap());
    let stored = recover::find_superblock(&disk).unwrap().superblock;
    assert_eq!(stored.consumers[0].unwrap().done_pos, slot.end);
}

/// A machine that holds the same as this one.
fn copy_of(image: &SimDisk) -> SimDisk {
    let copy = SimDisk::new(Vec::new(), 3);
    {
        let (from, mut to) = (image.0.borrow(), copy.0.borrow_mut());
        to.durable.clone_from(&from.durable);
        to.cache.clone_from(&from.cache);
        to.unsynced.clone_from(&from.unsynced);
        to.reads_medium = from.reads_medium;
        to.calls = from.calls;
    }
    copy
}

/// The machine dies at each call of an opening in turn; `lose` says what the loss of power leaves. Whatever it is,
/// the next opening finds each of `messages` that stands at or behind the tail, and nothing damaged. Returns at how
/// many calls it died.
fn die_at_each_call_of_an_opening(
    image: &SimDisk,
    options: &OpenOptions,
    messages: &BTreeMap<u64, (Vec<u8>, u64)>,
    lose: impl Fn(&mut Disk),
) -> u64 {
    for call in 1.. {
        let disk = copy_of(image);
        let at = disk.0.borrow().calls + call;
        disk.0.borrow_mut().dies_at = Some(at);
        match Log::open(disk.clone(), options) {
            Ok(_) => return call - 1,
            Err(OpenError::Failed(_)) => {}
            Err(error) => panic!("call {call}: {error:?}"),
        }
        disk.0.borrow_mut().dies_at = None;
        lose(&mut disk.0.borrow_mut());
        let opened = Log::open(disk.clone(), options);
        let (log, recovery) = opened.unwrap_or_else(|error| panic!("call {call}: {error:?}"));
        assert_eq!(recovery.lost, [], "call {call}");
        let (tail, found) = read_all(&disk, log.written());
        let mut kept = messages.clone();
        kept.retain(|_, (_, position)| *position >= tail);
        assert!(
            found.keys().eq(kept.keys()),
            "call {call}: {:?}",
            found.keys()
        );
        assert!(found == kept && !found.is_empty(), "call {call}");
    }
    unreachable!("it dies at some call or does not")
}

/// Power is lost. Nothing that was being written gets there, and those of its pages that are among `pages` hold
/// garbage behind their first `kept` bytes.
fn leave_garbage(disk: &mut Disk, pages: Range<usize>, kept: usize) {
    let torn: BTreeSet<usize> = disk
        .unsynced
        .keys()
        .map(|sector| sector * SECTOR / PAGE)
        .filter(|page| pages.contains(page))
        .collect();
    disk.lose_power(|_, _| 0);
    for page in torn {
        disk.cache[page * PAGE + kept..(page + 1) * PAGE].fill(0xa5);
    }
    disk.durable.clone_from(&disk.cache);
}

/// Options for a disk that may leave anything in a page.
fn page_options() -> OpenOptions {
    let mut options = OpenOptions::new(Survive::Power, 10);
    options.commit_align = CommitAlign::Page;
    options
}

/// Appends one message, which fills a page, and syncs it; false when the ring has no place.
fn append_page(log: &mut Log<SimDisk>, turn: u64) -> bool {
    log.begin_turn(turn);
    let payload = [turn as u8; 1_000];
    let Ok(slot) = log.reserve(1_000) else {
        return false;
    };
    let header = log.header(&slot, 0, crc32c::crc32c(&payload));
    let parts = [&header[..], &payload, &[0; 64][..slot.padding]];
    log.write(&parts.map(IoSlice::new)).unwrap();
    log.sync_inline(Instant(turn)).unwrap();
    true
}

#[test]
fn space_that_only_an_unsynced_superblock_frees_is_not_written_by_recovery() {
    // A ring full to its last page, which openings that got no further have used up. A consumer frees space, the
    // superblock that says so is written, and the process dies before its sync. Recovery found it in the page cache
    // and put its EPOCH record where the oldest records stood. Then power failed within that write: the superblock of
    // before counted again, the page was garbage, and the start was refused because of damaged mail.
    let disk = SimDisk::new(new_ring(65_536), 0);
    disk.0.borrow_mut().reads_medium = true;
    let options = page_options();
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    let name = ConsumerName::new("holder").unwrap();
    log.register(name, StartAt::Oldest).unwrap();
    let turns = (1..100)
        .take_while(|turn| append_page(&mut log, *turn))
        .count();
    assert_eq!(turns, 14);
    while log.written() < log.tail() + 65_536 {
        drop(log);
        log = Log::open(disk.clone(), &options).unwrap().0;
    }
    let (_, messages) = read_all(&disk, log.written());
    assert_eq!(messages.len(), turns);
    let middle = messages[&8].1;
    log.acknowledge(&name, middle, middle).unwrap();
    log.begin_turn(100);
    let request = log.sync_wanted(Instant(1 << 40)).unwrap();
    let (at, bytes) = request.superblock.unwrap();
    disk.0.borrow_mut().store(bytes, at as usize);
    assert!(log.tail() > 0);
    drop(log);
    for kept in [0, SECTOR] {
        let lose = |disk: &mut Disk| leave_garbage(disk, DATA_PAGES, kept);
        let deaths = die_at_each_call_of_an_opening(&disk, &options, &messages, lose);
        assert!(deaths >= 5, "{deaths}");
    }
}

#[test]
fn space_that_recovery_frees_itself_is_not_written_before_a_superblock_says_so() {
    // The newest superblock is damaged; the older one has a tail that has been overwritten since, and recovery moves
    // it. It put the EPOCH record into space that only the moved tail frees. Where power failed within that write,
    // the next recovery found garbage in front of the records that it moves the tail to.
    let disk = SimDisk::new(new_ring(65_536), 0);
    disk.0.borrow_mut().reads_medium = true;
    let options = page_options();
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    let mut turns = 1..200;
    assert!(
        turns
            .by_ref()
            .take(40)
            .all(|turn| append_page(&mut log, turn))
    );
    let old = disk.0.borrow().durable[..DATA_OFFSET as usize].to_vec();
    let found = recover::find_superblock(&disk).unwrap();
    while log.written() <= found.superblock.tail + 65_536 {
        assert!(append_page(&mut log, turns.next().unwrap()));
    }
    drop(log);
    {
        let mut disk = disk.0.borrow_mut();
        assert!(disk.unsynced.is_empty());
        disk.cache[..old.len()].copy_from_slice(&old);
        disk.cache[SUPERBLOCK_OFFSETS[1 - found.slot] as usize + 90] ^= 1;
        disk.durable = disk.cache.clone();
    }
    let (log, recovery) = Log::open(copy_of(&disk), &options).unwrap();
    assert!(recovery.tail_moved_bytes > 0);
    let (_, messages) = read_all(log.backing(), log.written());
    for kept in [0, SECTOR] {
        let lose = |disk: &mut Disk| leave_garbage(disk, DATA_PAGES, kept);
        let deaths = die_at_each_call_of_an_opening(&disk, &options, &messages, lose);
        assert!(deaths >= 5, "{deaths}");
    }
}

#[test]
fn clean_superblock_whose_sync_failed_is_written_again_before_the_other_is() {
    // The sync behind the superblock of an orderly end fails: the page cache has it and counts as clean, the disk has
    // half of it. The next start believed it, and the superblock that it wrote over the other one was torn by a loss
    // of power: none was left.
    for reads_medium in [false, true] {
        let disk = SimDisk::new(new_ring(65_536), 0);
        disk.0.borrow_mut().reads_medium = reads_medium;
        let options = page_options();
        let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
        assert!((1..=3).all(|turn| append_page(&mut log, turn)));
        log.close().unwrap();
        let found = recover::find_superblock(&disk).unwrap();
        assert!(found.superblock.clean);
        let half = SUPERBLOCK_OFFSETS[found.slot] as usize;
        disk.0.borrow_mut().durable[half..half + 4 * SECTOR].fill(0);
        let log = Log::open(copy_of(&disk), &options).unwrap().0;
        let (_, messages) = read_all(log.backing(), log.written());
        assert_eq!(messages.len(), 3);
        let lose = |disk: &mut Disk| leave_garbage(disk, SUPERBLOCK_PAGES, 0);
        let deaths = die_at_each_call_of_an_opening(&disk, &options, &messages, lose);
        assert!(deaths >= 5, "{deaths}");
    }
}

/// Storage whose cache has what a failed write-back has not brought to the medium. Notes what is written.
struct TwoFaced {
    cache: Vec<u8>,
    medium: Vec<u8>,
    /// Place and length of each write since the last sync, and whether there was a sync.
    first_writes: RefCell<(Vec<(u64, usize)>, bool)>,
}

impl Backing for TwoFaced {
    fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = &self.cache[at as usize..];
        let n = buf.len().min(bytes.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        buf.copy_from_slice(&self.medium[at as usize..at as usize + buf.len()]);
        true
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (writes, synced) = self.first_writes.get_mut();
        if !*synced {
            writes.push((at, bytes.len()));
        }
        for side in [&mut self.cache, &mut self.medium] {
            side[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.first_writes.borrow_mut().1 = true;
        Ok(())
    }
}

#[test]
fn pages_on_which_cache_and_medium_agree_are_not_written_again_where_pages_tear() {
    // Recovery compared cache and medium in pieces of 256 KiB. One page that a failed sync had left old on the disk had
    // all pages of its piece written again, the one with an acknowledged message among them; power failed within that
    // write, and the message was gone.
    let disk = SimDisk::new(new_ring(65_536), 0);
    let options = page_options();
    let (mut log, _) = Log::open(disk.clone(), &options).unwrap();
    assert!((1..=5).all(|turn| append_page(&mut log, turn)));
    drop(log);
    let medium = disk.0.borrow().durable.clone();
    let mut cache = medium.clone();
    // Pages 1 to 5 hold one message each; what differs is not looked at by anybody.
    let differing = [2, 4].map(|page| DATA_OFFSET + page * 4_096);
    for at in differing {
        cache[at as usize + 4_000] ^= 1;
    }
    let backing = TwoFaced {
        cache,
        medium: medium.clone(),
        first_writes: RefCell::default(),
    };
    let (log, recovery) = Log::open(backing, &options).unwrap();
    assert_eq!(
        (recovery.messages, recovery.rewritten_bytes),
        (5, 2 * 4_096)
    );
    let (writes, _) = log.backing().first_writes.take();
    assert_eq!(writes, differing.map(|at| (at, 4_096)));
    let kept = DATA_OFFSET as usize..DATA_OFFSET as usize + 6 * 4_096;
    assert_eq!(log.backing().cache[kept.clone()], medium[kept]);
}

#[test]
fn failed_sync_stops_the_log_for_good() {
    let disk = SimDisk::new(new_ring(65_536), 0);
    let (mut log, _) = Log::open(disk, &OpenOptions::new(Survive::Power, 10)).unwrap();
    let slot = log.reserve(0).unwrap();
    let header = log.header(&slot, 0, 0);
    log.write(&[IoSlice::new(&header)]).unwrap();
    let target = log.sync_wanted(Instant(1)).unwrap().target;
    let durable = log.durable();
    let failed = log
        .sync_completed(target, Err(io::Error::from_raw_os_error(libc::EIO)))
        .unwrap_err();
    assert_eq!(failed.errno, libc::EIO);
    assert_eq!(log.failed(), Some(failed));
    assert_eq!(log.durable(), durable);
    assert_eq!(log.reserve(1), Err(ReserveError::Failed(failed)));
    assert_eq!(log.write(&[]), Err(failed));
    assert!(log.sync_wanted(Instant(u64::MAX)).is_none());
    assert!(!log.accepting());
    assert!(log.close().is_err());
}

#[test]
fn damaged_bytes_anywhere_give_an_answer_and_no_panic() {
    let image = SimDisk::new(new_ring(65_536), 0);
    fill(&image, &payloads(8, 300), 6);
    let bytes = image.0.borrow().cache.clone();
    let mut random = Xorshift(1234);
    for round in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(20) {
            let at = random.below(damaged.len() as u64) as usize;
            let near = random.below(8_192) as usize;
            let at = if random.one_in(2) {
                at
            } else {
                DATA_OFFSET as usize + near
            };
            damaged[at] = random.next() as u8;
        }
        if random.one_in(3) {
            // A sector in the wrong place, with a checksum that fits.
            let from = DATA_OFFSET as usize + random.below(8) as usize * SECTOR;
            let to = DATA_OFFSET as usize + random.below(120) as usize * SECTOR;
            damaged.copy_within(from..from + SECTOR, to);
        }
        if round % 50 == 0 {
            damaged.truncate(random.below(damaged.len() as u64) as usize);
        }
        let mut options = OpenOptions::new(Survive::Power, 30);
        options.accept_loss = round % 2 == 0;
        let disk = MemoryBacking { bytes: damaged };
        if let Ok((log, _)) = Log::open(disk, &options) {
            let _ = read_headers(&log);
        }
    }
}

/// Follows the log of an opened ring; payloads before the checkpoint may be damaged.
fn read_headers(log: &Log<MemoryBacking>) -> usize {
    let superblock = log.superblock();
    let (mut position, mut count) = (log.tail(), 0);
    while position < log.written() {
        let mut bytes = [0; 64];
        log.backing()
            .read_at(&mut bytes, superblock.place(position))
            .unwrap();
        position = Header::decode(&bytes, superblock.ring_key).unwrap().end();
        count += 1;
    }
    assert_eq!(position, log.written());
    count
}
