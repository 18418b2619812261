//! A simulated disk with a page cache in front of it and a sync thread beside it.
//!
//! Each 512-byte sector that was written since the last completed sync keeps its old bytes or takes any of the
//! versions written since, independently of all others, when power is lost. A sync covers what was written
//! before it began. After a failed sync the kernel calls the pages clean: the cache shows the new bytes, the
//! disk may hold the old ones, and no later sync writes them.
//!
//! It also keeps the list of superblocks that a loss of power may leave as the newest: the last that a sync has
//! covered, and all that were written whole since.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use ringmx::clock::Instant;
use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::commit::{SyncDone, SyncRequest};
use ringmx::ringlog::format::{DATA_OFFSET, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock};
use ringmx::ringlog::recover::{self, NewRing};
use ringmx::server::Committer;

use crate::random::Random;

/// Unit of atomicity, bytes.
pub const SECTOR: usize = 512;
/// Unit of atomicity of worse disks, bytes.
const PAGE: usize = 4_096;

/// What the sync thread is doing.
#[derive(Debug)]
enum Stage {
    /// A superblock has to be written first.
    Superblock(u64, Vec<u8>),
    /// fdatasync has not been called yet.
    Called,
    /// It runs; what was written up to this call will be durable.
    Running(u64),
}

#[derive(Debug)]
struct Job {
    target: u64,
    stage: Stage,
    submitted_ns: u64,
    not_before_ns: u64,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this errno.
    Errno(i32),
    /// A write takes nothing, without an error.
    TakesNothing,
}

/// One version of a sector that no sync has covered.
#[derive(Debug)]
struct Version {
    call: u64,
    /// The version before it, plus one; 0 when there is none.
    older: u32,
    bytes: [u8; SECTOR],
}

/// The versions of all sectors that no sync has covered.
#[derive(Debug, Default)]
struct Unsynced {
    /// For each sector its newest version, plus one.
    newest: Vec<u32>,
    /// Sectors that have one, in the order in which they were first written.
    sectors: Vec<u32>,
    versions: Vec<Version>,
    free: Vec<u32>,
}

impl Unsynced {
    fn push(&mut self, sector: usize, call: u64, bytes: &[u8; SECTOR]) {
        if sector >= self.newest.len() {
            self.newest.resize(sector + 1, 0);
        }
        let older = self.newest[sector];
        if older == 0 {
            self.sectors.push(sector as u32);
        }
        let version = Version {
            call,
            older,
            bytes: *bytes,
        };
        self.newest[sector] = match self.free.pop() {
            Some(index) => {
                self.versions[index as usize] = version;
                index + 1
            }
            None => {
                self.versions.push(version);
                self.versions.len() as u32
            }
        };
    }

    /// Gives each sector's newest version made by call `until` or before to `settle`, and forgets it and those
    /// before it.
    fn take_until(&mut self, until: u64, mut settle: impl FnMut(usize, &[u8; SECTOR])) {
        let (newest, versions, free) = (&mut self.newest, &mut self.versions, &mut self.free);
        self.sectors.retain(|sector| {
            let sector = *sector as usize;
            // The link that leads to the newest version that is covered.
            let mut link = newest[sector];
            let mut later = 0;
            while link != 0 && versions[link as usize - 1].call > until {
                later = link;
                link = versions[link as usize - 1].older;
            }
            if link != 0 {
                settle(sector, &versions[link as usize - 1].bytes);
                match later {
                    0 => newest[sector] = 0,
                    later => versions[later as usize - 1].older = 0,
                }
            }
            while link != 0 {
                free.push(link - 1);
                link = versions[link as usize - 1].older;
            }
            newest[sector] != 0
        });
    }
}

/// What the machine holds: the disk, and the page cache in front of it.
#[derive(Debug)]
pub struct Disk {
    durable: Vec<u8>,
    cache: Vec<u8>,
    unsynced: Unsynced,
    /// Sectors that a failed sync left clean in the cache and old on the disk.
    stale: BTreeSet<usize>,
    /// Calls so far that change something.
    pub calls: u64,
    /// The process dies at this call.
    pub dies_at: Option<u64>,
    /// This call fails.
    pub fails_at: Option<(u64, Failure)>,
    /// So many reads from now one fails.
    pub read_fails_in: Option<u64>,
    /// A read failed.
    pub read_failed: bool,
    /// The process is dead: nothing changes any more, and nothing gets out of it.
    pub dead: Rc<Cell<bool>>,
    /// What is left of the dead process is told that its syncs failed, so that it can be taken apart.
    pub is_dissected: bool,
    /// A call failed.
    pub failed: bool,
    /// The process was told: it must not write or sync again.
    pub reported: bool,
    /// Simulated time.
    pub now_ns: u64,
    /// Longest sync, nanoseconds.
    pub latency_max_ns: u64,
    /// How often a sync takes long, one in so many; 0 for never.
    pub slow_one_in: u64,
    job: Option<Job>,
    done: Option<SyncDone>,
    /// Superblocks that may be the newest after a loss of power, with the call that completed each, or `u64::MAX`
    /// while only a part was written (which another that was written later can make whole). The first is durable.
    superblocks: Vec<(u64, Superblock)>,
    /// The log writes superblocks while a sync runs (all levels but `power`): then one may tear the one that this sync
    /// makes durable, and the one before it is left.
    pub writes_beside_syncs: bool,
    /// What is on the disk can be read past the cache.
    pub reads_medium: bool,
    /// The disk may leave anything in a page of which a sector was being written when power failed.
    pub tears_pages: bool,
    /// Syncs finished.
    pub syncs: u64,
    /// Says each call, and what a loss of power leaves, on the error output.
    pub traces: bool,
    random: Random,
}

impl Disk {
    /// Counts a call; an error when the process dies in it or the call fails.
    fn enter(&mut self) -> io::Result<()> {
        if self.dead.get() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.calls += 1;
        if self.dies_at.is_some_and(|at| self.calls >= at) {
            self.dead.set(true);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some((at, failure)) = self.fails_at
            && self.calls >= at
        {
            self.fails_at = None;
            self.failed = true;
            return Err(match failure {
                Failure::Errno(errno) => io::Error::from_raw_os_error(errno),
                Failure::TakesNothing => io::ErrorKind::WriteZero.into(),
            });
        }
        Ok(())
    }

    fn store(&mut self, bytes: &[u8], at: usize) {
        if bytes.is_empty() {
            return;
        }
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
        self.note(at, bytes.len());
    }

    /// The cache was changed here.
    fn note(&mut self, at: usize, len: usize) {
        for sector in at / SECTOR..=(at + len - 1) / SECTOR {
            let version = self.cache[sector * SECTOR..]
                .first_chunk()
                .expect("whole sectors");
            self.unsynced.push(sector, self.calls, version);
        }
        if at < DATA_OFFSET as usize {
            self.note_superblock(at);
        }
    }

    fn note_superblock(&mut self, at: usize) {
        for begin in SUPERBLOCK_OFFSETS.map(|begin| begin as usize) {
            if (begin..begin + SUPERBLOCK_BYTES).contains(&at) {
                let bytes = self.cache[begin..].first_chunk().expect("a superblock");
                if let Ok(superblock) = Superblock::decode(bytes) {
                    let newest = self.superblocks().next_back();
                    if newest.is_none_or(|last| last.generation <= superblock.generation) {
                        self.superblocks.push((self.calls, superblock));
                    }
                }
            }
        }
    }

    /// A superblock is about to be written; perhaps not all of it.
    fn intend_superblock(&mut self, at: u64, bytes: &[u8]) {
        if SUPERBLOCK_OFFSETS.contains(&at)
            && let Some(bytes) = bytes.first_chunk()
            && let Ok(superblock) = Superblock::decode(bytes)
        {
            self.superblocks.push((u64::MAX, superblock));
        }
    }

    /// What was written by call `until` is durable.
    fn synced(&mut self, until: u64) {
        let (durable, stale) = (&mut self.durable, &mut self.stale);
        self.unsynced.take_until(until, |sector, bytes| {
            durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
            stale.remove(&sector);
        });
        let covered = self
            .superblocks
            .iter()
            .filter(|(call, _)| *call <= until)
            .map(|(_, superblock)| superblock.generation)
            .max()
            .unwrap_or(0);
        self.superblocks
            .retain(|(_, superblock)| superblock.generation >= covered);
        self.syncs += 1;
    }

    /// The sync failed: some sectors reached the disk, all of them count as clean.
    fn sync_failed(&mut self, until: u64) {
        let random = &mut self.random;
        let (durable, stale) = (&mut self.durable, &mut self.stale);
        self.unsynced.take_until(until, |sector, bytes| {
            if random.one_in(2) {
                durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
            } else {
                stale.insert(sector);
            }
        });
    }

    /// Power is lost; `choose` picks for each sector 0 (old bytes) up to the number of its versions.
    pub fn lose_power(&mut self, mut choose: impl FnMut(usize, usize) -> usize) {
        for sector in std::mem::take(&mut self.stale) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            self.cache[range.clone()].copy_from_slice(&self.durable[range]);
        }
        let mut torn = BTreeSet::new();
        let traces = self.traces;
        let unsynced = &mut self.unsynced;
        for (index, sector) in unsynced.sectors.drain(..).enumerate() {
            let sector = sector as usize;
            torn.insert(sector * SECTOR / PAGE);
            let mut count = 0;
            let mut link = unsynced.newest[sector];
            while link != 0 {
                count += 1;
                link = unsynced.versions[link as usize - 1].older;
            }
            let chosen = choose(index, count + 1);
            if traces {
                eprintln!(
                    "power lost: sector at {}, {chosen} of {count}",
                    sector * SECTOR
                );
            }
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let mut link = std::mem::take(&mut unsynced.newest[sector]);
            for _ in chosen..count {
                link = unsynced.versions[link as usize - 1].older;
            }
            if link != 0 && chosen > 0 {
                let version = &unsynced.versions[link as usize - 1];
                self.durable[range.clone()].copy_from_slice(&version.bytes);
            }
            self.cache[range.clone()].copy_from_slice(&self.durable[range]);
        }
        unsynced.versions.clear();
        unsynced.free.clear();
        for page in torn.into_iter().filter(|_| self.tears_pages) {
            if self.random.one_in(4) {
                let range = page * PAGE..(page + 1) * PAGE;
                if traces {
                    eprintln!("power lost: page at {} torn", range.start);
                }
                for bytes in self.durable[range.clone()].chunks_mut(8) {
                    bytes.copy_from_slice(&self.random.next().to_le_bytes()[..bytes.len()]);
                }
                self.cache[range.clone()].copy_from_slice(&self.durable[range]);
            }
        }
        let newest = SUPERBLOCK_OFFSETS
            .iter()
            .filter_map(|at| Superblock::decode(self.cache[*at as usize..].first_chunk()?).ok())
            .max_by_key(|superblock| superblock.generation)
            .expect("one of two is always whole");
        assert!(
            self.writes_beside_syncs || self.superblocks.iter().any(|(_, other)| *other == newest),
            "the newest durable superblock was written over: generation {} is left",
            newest.generation
        );
        // Sectors of what was written in part are still there.
        self.superblocks
            .retain(|(_, other)| other.generation > newest.generation);
        for (call, _) in &mut self.superblocks {
            *call = u64::MAX;
        }
        self.superblocks.insert(0, (self.calls, newest));
    }

    /// A new process begins: what the old one had asked for is forgotten, what it wrote is not.
    pub fn restart(&mut self) {
        self.dead.set(false);
        self.is_dissected = false;
        self.failed = false;
        self.reported = false;
        self.dies_at = None;
        self.fails_at = None;
        self.read_fails_in = None;
        self.read_failed = false;
        self.job = None;
        self.done = None;
    }

    /// Lets the sync thread go one step further, if it can.
    pub fn step_sync(&mut self) {
        if self.dead.get() {
            return;
        }
        let Some(mut job) = self.job.take() else {
            return;
        };
        match job.stage {
            Stage::Superblock(at, bytes) => {
                let entered = self.enter();
                if self.traces {
                    eprintln!("{}: sync thread writes at {at}, {entered:?}", self.calls);
                }
                let taken = match entered {
                    Ok(()) => bytes.len(),
                    Err(_) => self.random.below(bytes.len() as u64 + 1) as usize,
                };
                self.intend_superblock(at, &bytes);
                self.store(&bytes[..taken], at as usize);
                if let Err(error) = entered {
                    self.finish(&job.target, job.submitted_ns, Err(error));
                    return;
                }
                job.stage = Stage::Called;
            }
            Stage::Called => job.stage = Stage::Running(self.calls),
            Stage::Running(until) => {
                if self.now_ns >= job.not_before_ns {
                    let entered = self.enter();
                    if self.traces {
                        eprintln!(
                            "{}: sync of what was written up to {until}, {entered:?}",
                            self.calls
                        );
                    }
                    match entered {
                        Ok(()) => {
                            self.synced(until);
                            self.finish(&job.target, job.submitted_ns, Ok(()));
                        }
                        Err(error) => {
                            if !self.dead.get() {
                                self.sync_failed(until);
                            }
                            self.finish(&job.target, job.submitted_ns, Err(error));
                        }
                    }
                    return;
                }
                job.stage = Stage::Running(until);
            }
        }
        self.job = Some(job);
    }

    fn finish(&mut self, target: &u64, submitted_ns: u64, result: io::Result<()>) {
        self.done = Some(SyncDone {
            target: *target,
            result,
            asked: Instant(submitted_ns),
            began: Instant(submitted_ns),
            took: Duration::from_nanos(self.now_ns - submitted_ns),
        });
    }

    /// When the sync under way was asked for.
    pub fn sync_since_ns(&self) -> Option<u64> {
        self.job.as_ref().map(|job| job.submitted_ns)
    }

    /// The sync under way may end now.
    pub fn hurry(&mut self) {
        if let Some(job) = &mut self.job {
            job.not_before_ns = 0;
        }
    }

    /// The bytes as a process reads them.
    pub fn cache(&self) -> &[u8] {
        &self.cache
    }

    /// Largest generation of a superblock that was written, be it in part.
    pub fn newest_intended(&self) -> u64 {
        let generations = self
            .superblocks
            .iter()
            .map(|(_, superblock)| superblock.generation);
        generations.max().unwrap_or(0)
    }

    /// The bytes as a loss of power leaves them that takes everything that no sync has covered.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Sectors of which the cache holds other bytes than the disk, in order.
    pub fn differing_sectors(&self) -> Vec<usize> {
        let sectors = self.cache.len() / SECTOR;
        let differs = |sector: &usize| {
            let range = self.sector_range(*sector);
            self.cache[range.clone()] != self.durable[range]
        };
        (0..sectors).filter(differs).collect()
    }

    /// Where this sector stands.
    pub fn sector_range(&self, sector: usize) -> std::ops::Range<usize> {
        sector * SECTOR..(sector + 1) * SECTOR
    }

    /// Whether a loss of power at this moment would leave these bytes as they are.
    pub fn is_durable(&self, at: usize, len: usize) -> bool {
        let pages = at / PAGE * (PAGE / SECTOR)..(at + len).div_ceil(PAGE) * (PAGE / SECTOR);
        let being_written = |sector| {
            self.unsynced
                .newest
                .get(sector)
                .is_some_and(|link| *link != 0)
        };
        if self.tears_pages && pages.into_iter().any(being_written) {
            return false;
        }
        self.durable[at..at + len] == self.cache[at..at + len]
            && self
                .unsynced
                .newest
                .get(at / SECTOR..)
                .is_none_or(|newest| {
                    let sectors = (at + len).div_ceil(SECTOR) - at / SECTOR;
                    // Versions between the durable one and the newest may differ from both.
                    newest
                        .iter()
                        .take(sectors)
                        .enumerate()
                        .all(|(index, link)| {
                            self.versions_agree(at, len, at / SECTOR + index, *link)
                        })
                })
    }

    fn versions_agree(&self, at: usize, len: usize, sector: usize, mut link: u32) -> bool {
        let begin = at.max(sector * SECTOR);
        let end = (at + len).min((sector + 1) * SECTOR);
        while link != 0 {
            let version = &self.unsynced.versions[link as usize - 1];
            let bytes = &version.bytes[begin - sector * SECTOR..end - sector * SECTOR];
            if *bytes != self.durable[begin..end] {
                return false;
            }
            link = version.older;
        }
        true
    }

    /// Superblocks that were written whole and of which one may be the newest after a loss of power, oldest first;
    /// after the end of the process alone it is the last.
    pub fn superblocks(&self) -> impl DoubleEndedIterator<Item = &Superblock> {
        self.superblocks
            .iter()
            .filter(|(call, _)| *call != u64::MAX)
            .map(|(_, superblock)| superblock)
    }
}

/// I/O error.
pub const EIO: i32 = 5;
/// No space left on the device.
pub const ENOSPC: i32 = 28;

/// The disk as storage of the ring, and as its sync thread.
#[derive(Clone, Debug)]
pub struct SimDisk(pub Rc<RefCell<Disk>>);

impl SimDisk {
    /// A disk that holds these bytes.
    pub fn new(bytes: Vec<u8>, random: Random) -> SimDisk {
        let superblocks = SUPERBLOCK_OFFSETS
            .iter()
            .filter_map(|at| Superblock::decode(bytes.get(*at as usize..)?.first_chunk()?).ok())
            .max_by_key(|superblock| superblock.generation)
            .map(|superblock| (0, superblock))
            .into_iter()
            .collect();
        SimDisk(Rc::new(RefCell::new(Disk {
            durable: bytes.clone(),
            unsynced: Unsynced::default(),
            stale: BTreeSet::new(),
            calls: 0,
            dies_at: None,
            fails_at: None,
            read_fails_in: None,
            read_failed: false,
            dead: Rc::default(),
            is_dissected: false,
            failed: false,
            reported: false,
            now_ns: 0,
            latency_max_ns: 0,
            slow_one_in: 0,
            job: None,
            done: None,
            superblocks,
            writes_beside_syncs: false,
            reads_medium: false,
            tears_pages: false,
            cache: bytes,
            syncs: 0,
            traces: false,
            random,
        })))
    }
}

impl Backing for SimDisk {
    fn len(&self) -> u64 {
        self.0.borrow().cache.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        if let Some(left) = &mut disk.read_fails_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                disk.read_fails_in = None;
                disk.read_failed = true;
                return Err(io::Error::from_raw_os_error(EIO));
            }
        }
        let at = at as usize;
        let n = buf.len().min(disk.cache.len() - at);
        buf[..n].copy_from_slice(&disk.cache[at..at + n]);
        Ok(n)
    }

    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        let disk = self.0.borrow();
        if !disk.reads_medium {
            return false;
        }
        let (begin, end) = (at as usize, at as usize + buf.len());
        let Some(bytes) = disk.cache.get(begin..end) else {
            return false;
        };
        // What is dirty is written back first. What a failed sync left clean is as the disk has it.
        buf.copy_from_slice(bytes);
        for sector in disk.stale.range(begin / SECTOR..end.div_ceil(SECTOR)) {
            let dirty = disk
                .unsynced
                .newest
                .get(*sector)
                .is_some_and(|link| *link != 0);
            let from = begin.max(sector * SECTOR);
            let to = end.min((sector + 1) * SECTOR);
            if !dirty {
                buf[from - begin..to - begin].copy_from_slice(&disk.durable[from..to]);
            }
        }
        true
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        if disk.dead.get() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        // The sync thread runs beside the loop.
        while disk.random.one_in(4) && disk.job.is_some() {
            disk.step_sync();
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(!disk.reported, "the ring was written after a failure");
        let entered = disk.enter();
        disk.reported |= entered.is_err() && !disk.dead.get();
        // A dying or failing write, and one in eight others, takes only a part.
        let taken = if entered.is_err() || disk.random.one_in(8) {
            (disk.random.below(len as u64 + 1).max(1) as usize).min(len)
        } else {
            len
        };
        if let [part] = parts {
            disk.intend_superblock(at, part);
        }
        if disk.traces {
            eprintln!(
                "{}: write {at}+{len}, {taken} taken, {entered:?}",
                disk.calls
            );
        }
        let (mut to, mut left) = (at as usize, taken);
        for part in parts {
            let take = part.len().min(left);
            disk.cache[to..to + take].copy_from_slice(&part[..take]);
            to += take;
            left -= take;
        }
        if taken > 0 {
            disk.note(at as usize, taken);
        }
        match entered {
            Err(error) if error.kind() == io::ErrorKind::WriteZero => return Ok(0),
            entered => entered?,
        }
        if disk.random.one_in(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(taken)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        assert!(!disk.reported, "the ring was synced after a failure");
        let entered = disk.enter();
        if disk.traces {
            eprintln!("{}: sync, {entered:?}", disk.calls);
        }
        if let Err(error) = entered {
            disk.reported = !disk.dead.get();
            if !disk.dead.get() {
                let calls = disk.calls;
                disk.sync_failed(calls);
            }
            return Err(error);
        }
        let calls = disk.calls;
        disk.synced(calls);
        Ok(())
    }
}

impl Committer for SimDisk {
    fn submit(&mut self, request: &SyncRequest<'_>) {
        let mut disk = self.0.borrow_mut();
        assert!(
            disk.job.is_none() && disk.done.is_none(),
            "one sync at a time"
        );
        assert!(!disk.reported, "the ring was synced after a failure");
        if disk.dead.get() && !disk.is_dissected {
            return;
        }
        let mut latency = disk.latency_max_ns;
        if disk.slow_one_in > 0 {
            let one_in = disk.slow_one_in;
            if disk.random.one_in(one_in) {
                latency = 8_000_000_000;
            }
        }
        let not_before_ns = disk.now_ns + disk.random.below(latency + 1);
        let stage = match request.superblock {
            Some((at, bytes)) => Stage::Superblock(at, bytes.to_vec()),
            None => Stage::Called,
        };
        disk.job = Some(Job {
            target: request.target,
            stage,
            submitted_ns: disk.now_ns,
            not_before_ns,
        });
    }

    fn poll(&mut self) -> Option<SyncDone> {
        let mut disk = self.0.borrow_mut();
        if disk.dead.get() {
            // A sync of a process that was dead before it ended.
            if !disk.is_dissected {
                return None;
            }
            if let Some(done) = disk.done.take() {
                return Some(done);
            }
            let job = disk.job.take()?;
            let error = io::Error::from_raw_os_error(EIO);
            disk.finish(&job.target, job.submitted_ns, Err(error));
            return disk.done.take();
        }
        let done = disk.done.take();
        disk.reported |= done.as_ref().is_some_and(|done| done.result.is_err());
        done
    }
}

/// The bytes of an empty ring.
pub fn new_ring(data_size: u64) -> Vec<u8> {
    let mut backing = MemoryBacking {
        bytes: vec![0; (DATA_OFFSET + data_size) as usize],
    };
    let new = NewRing {
        ring_id: [7; 16],
        ring_key: 0x5eed,
        data_size,
        created_ns: 1,
    };
    recover::format(&mut backing, &new).expect("the size fits");
    backing.bytes
}
