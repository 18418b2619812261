//! A simulated disk with a page cache in front of it and a sync thread beside it.
//!
//! Each 512-byte sector that was written since the last completed sync keeps its old bytes or takes any of the
//! versions written since, independently of all others, when power is lost. A sync covers what was written
//! before it began. After a failed sync the kernel calls the pages clean: the cache shows the new bytes, the
//! disk may hold the old ones, and no later sync writes them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::commit::{SyncDone, SyncRequest};
use ringmx::ringlog::format::{DATA_OFFSET, Superblock};
use ringmx::ringlog::recover::{self, NewRing};
use ringmx::server::Committer;

use crate::random::Random;

/// Unit of atomicity, bytes.
pub const SECTOR: usize = 512;

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
    superblock: Option<Superblock>,
}

/// What the machine holds: the disk, and the page cache in front of it.
#[derive(Debug)]
pub struct Disk {
    durable: Vec<u8>,
    cache: Vec<u8>,
    /// Versions of each sector since the last sync that covered it, with the call that made them.
    unsynced: BTreeMap<usize, Vec<(u64, [u8; SECTOR])>>,
    /// Sectors that a failed sync left clean in the cache and old on the disk.
    stale: BTreeSet<usize>,
    /// Calls so far that change something.
    pub calls: u64,
    /// The process dies at this call.
    pub dies_at: Option<u64>,
    /// This call fails.
    pub fails_at: Option<u64>,
    /// The process is dead: nothing changes any more, and nothing gets out of it.
    pub dead: Rc<Cell<bool>>,
    /// A call failed.
    pub failed: bool,
    /// The process was told: it must not write or sync again.
    reported: bool,
    /// Simulated time.
    pub now_ns: u64,
    /// Longest sync, nanoseconds.
    pub latency_max_ns: u64,
    /// How often a sync takes long, one in so many; 0 for never.
    pub slow_one_in: u64,
    job: Option<Job>,
    done: Option<SyncDone>,
    /// The last superblock that a finished sync covered.
    pub durable_superblock: Option<Superblock>,
    /// Syncs finished.
    pub syncs: u64,
    random: Random,
}

impl Disk {
    /// Counts a call; an error when the process dies in it or the call fails.
    fn enter(&mut self) -> io::Result<()> {
        let error = || io::Error::from_raw_os_error(EIO);
        if self.dead.get() {
            return Err(error());
        }
        self.calls += 1;
        if self.dies_at.is_some_and(|at| self.calls >= at) {
            self.dead.set(true);
            return Err(error());
        }
        if self.fails_at.is_some_and(|at| self.calls >= at) {
            self.fails_at = None;
            self.failed = true;
            return Err(error());
        }
        Ok(())
    }

    fn store(&mut self, bytes: &[u8], at: usize) {
        if bytes.is_empty() {
            return;
        }
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
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
        let (durable, stale) = (&mut self.durable, &mut self.stale);
        self.unsynced.retain(|sector, versions| {
            let covered = versions.partition_point(|(call, _)| *call <= until);
            if let Some((_, bytes)) = versions[..covered].last() {
                durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
                stale.remove(sector);
            }
            versions.drain(..covered);
            !versions.is_empty()
        });
        self.syncs += 1;
    }

    /// The sync failed: some sectors reached the disk, all of them count as clean.
    fn sync_failed(&mut self, until: u64) {
        let random = &mut self.random;
        let (durable, stale) = (&mut self.durable, &mut self.stale);
        self.unsynced.retain(|sector, versions| {
            let covered = versions.partition_point(|(call, _)| *call <= until);
            if covered > 0 {
                if random.one_in(2) {
                    let bytes = &versions[covered - 1].1;
                    durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
                } else {
                    stale.insert(*sector);
                }
            }
            versions.drain(..covered);
            !versions.is_empty()
        });
    }

    /// Power is lost; `choose` picks for each sector 0 (old bytes) up to the number of its versions.
    pub fn lose_power(&mut self, mut choose: impl FnMut(usize, usize) -> usize) {
        let mut changed = std::mem::take(&mut self.stale);
        let unsynced = std::mem::take(&mut self.unsynced);
        for (index, (sector, versions)) in unsynced.into_iter().enumerate() {
            let chosen = choose(index, versions.len() + 1);
            if let Some(version) = chosen.checked_sub(1) {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR]
                    .copy_from_slice(&versions[version].1);
            }
            changed.insert(sector);
        }
        for sector in changed {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            self.cache[range.clone()].copy_from_slice(&self.durable[range]);
        }
    }

    /// A new process begins: what the old one had asked for is forgotten, what it wrote is not.
    pub fn restart(&mut self) {
        self.dead.set(false);
        self.failed = false;
        self.reported = false;
        self.dies_at = None;
        self.fails_at = None;
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
                let taken = match entered {
                    Ok(()) => bytes.len(),
                    Err(_) => self.random.below(bytes.len() as u64 + 1) as usize,
                };
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
                    match self.enter() {
                        Ok(()) => {
                            self.synced(until);
                            if job.superblock.is_some() {
                                self.durable_superblock = job.superblock;
                            }
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
}

const EIO: i32 = 5;

/// The disk as storage of the ring, and as its sync thread.
#[derive(Clone, Debug)]
pub struct SimDisk(pub Rc<RefCell<Disk>>);

impl SimDisk {
    /// A disk that holds these bytes.
    pub fn new(bytes: Vec<u8>, random: Random) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(Disk {
            durable: bytes.clone(),
            cache: bytes,
            unsynced: BTreeMap::new(),
            stale: BTreeSet::new(),
            calls: 0,
            dies_at: None,
            fails_at: None,
            dead: Rc::default(),
            failed: false,
            reported: false,
            now_ns: 0,
            latency_max_ns: 0,
            slow_one_in: 0,
            job: None,
            done: None,
            durable_superblock: None,
            syncs: 0,
            random,
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

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        // The sync thread runs beside the loop.
        while disk.random.one_in(4) && disk.job.is_some() {
            disk.step_sync();
        }
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        assert!(!disk.reported, "the ring was written after a failure");
        let entered = disk.enter();
        disk.reported |= entered.is_err() && !disk.dead.get();
        // A dying or failing write, and one in eight others, takes only a part.
        let taken = if entered.is_err() || disk.random.one_in(8) {
            disk.random.below(bytes.len() as u64 + 1).max(1) as usize
        } else {
            bytes.len()
        };
        disk.store(&bytes[..taken.min(bytes.len())], at as usize);
        entered?;
        if disk.random.one_in(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(taken)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        assert!(!disk.reported, "the ring was synced after a failure");
        if let Err(error) = disk.enter() {
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
        if disk.dead.get() {
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
            superblock: request
                .superblock
                .map(|(_, bytes)| Superblock::decode(bytes).expect("the log wrote it")),
        });
    }

    fn poll(&mut self) -> Option<SyncDone> {
        let mut disk = self.0.borrow_mut();
        if disk.dead.get() {
            return None;
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
