//! Damaged rings: opening one never panics, reads and writes inside of it only, leaves a ring alone that it
//! refuses, and never yields a message that was not written; nor do readers of the damaged bytes.
//!
//! The first byte chooses the ring and how it is opened. Then each six bytes are one damage: what, where, and a
//! value. Damage that is sealed with a right checksum can forge messages, but can break nothing else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::OnceLock;

use ringmx::clock::Instant;
use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::format::{
    ConsumerName, DATA_OFFSET, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock,
};
use ringmx::ringlog::reader::{Message, NewestFirst, Reader, Source, Step, Walk, Window};
use ringmx::ringlog::recover::{self, NewRing, OpenError, OpenOptions, WINDOW_BYTES};
use ringmx::ringlog::rescue::{Rescue, RescueOptions};
use ringmx::ringlog::writer::{FullPolicy, Log, StartAt, Survive};

/// Damages.
pub const DICTIONARY: &[&[u8]] = &[
    &[0x00, 80, 0, 0, 0, 1],
    &[0x01, 96, 0, 0, 0, 6],
    &[0x02, 0, 1, 0, 0, 0],
    &[0x03, 1, 44, 0, 0, 1],
    &[0x03, 2, 32, 0, 0, 7],
    &[0x0b, 3, 0, 0, 0, 0],
    &[0x13, 1, 0, 4, 0, 0],
    &[0x1a, 0, 0, 1, 0, 0],
    &[0x1f, 2, 0, 5, 0, 0],
    &[0x20, 64, 0, 0, 0, 9],
    &[0x34, 72, 0, 0, 0, 3],
    &[0x35, 80, 0, 0, 0, 5],
    &[0x37, 1, 32, 0, 0, 4],
    &[0x77, 4, 52, 0, 0, 2],
];

const DATA_SIZE: u64 = recover::DATA_BYTES_MIN;
const SECTOR: usize = 512;
const VALUES: [u64; 12] = [
    0,
    1,
    63,
    64,
    4_096,
    DATA_SIZE,
    DATA_SIZE + 64,
    u32::MAX as u64,
    (1 << 62) - 64,
    1 << 62,
    u64::MAX - 63,
    u64::MAX,
];

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Some((&choice, damages)) = bytes.split_first() else {
        return;
    };
    let mut ring = rings()[usize::from(choice & 7)].clone();
    if choice & 7 == 7 {
        // What stands there as it is.
        ring.bytes.truncate(DATA_OFFSET as usize + SECTOR);
        let len = damages.len().min(ring.bytes.len());
        ring.bytes[..len].copy_from_slice(&damages[..len]);
    } else {
        for damage in damages.as_chunks::<6>().0 {
            ring.damage(damage);
        }
    }
    let mut options = OpenOptions::new(
        match choice >> 3 & 3 {
            0 | 1 => Survive::Power,
            2 => Survive::Process,
            _ => Survive::Nothing,
        },
        5_000,
    );
    options.accept_loss = choice & 0x20 != 0;
    options.full = if choice & 0x40 != 0 {
        FullPolicy::Overwrite
    } else {
        FullPolicy::Auto
    };
    read(&ring, u64::from(choice) << 8);
    rescue(&ring, choice);
    open(&ring, &options);
}

/// A rescue gives out each message once, and none that was not written; it ends, whatever the
/// superblocks say.
fn rescue(ring: &Ring, choice: u8) {
    let backing = MemoryBacking {
        bytes: ring.bytes.clone(),
    };
    let options = RescueOptions {
        released: choice & 0x80 != 0,
        ..RescueOptions::default()
    };
    let Ok(mut rescue) = Rescue::look(&backing, options) else {
        return;
    };
    let mut numbers = BTreeSet::new();
    let walked: Result<(), ()> = rescue.walk(&mut |message, _| {
        ring.check(&message);
        let first = numbers.insert((message.number, message.position));
        assert!(first, "a message is given out twice");
        Ok(())
    });
    walked.expect("nothing fails");
    let report = rescue.report();
    let messages: u64 = report.messages.iter().sum();
    assert_eq!(messages, numbers.len() as u64);
    let ranges = report.damage.iter().map(|damage| (damage.from, damage.to));
    assert!(ranges.is_sorted_by(|one, other| one.1 <= other.0));
}

/// A ring, and what was ever written to it.
#[derive(Clone, Default)]
struct Ring {
    bytes: Vec<u8>,
    messages: BTreeMap<u64, Vec<u8>>,
    /// Where record headers stand in the file.
    headers: Vec<usize>,
    /// Something was sealed with a right checksum.
    forged: bool,
}

impl Ring {
    fn new() -> Ring {
        let mut backing = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + DATA_SIZE) as usize],
        };
        let new = NewRing {
            ring_id: [7; 16],
            ring_key: 0x5eed,
            data_size: DATA_SIZE,
            created_ns: 1,
        };
        recover::format(&mut backing, &new).expect("memory");
        Ring {
            bytes: backing.bytes,
            ..Ring::default()
        }
    }

    /// One life of a server: messages of these sizes, then a close in order or none.
    fn live(mut self, survive: Survive, sizes: &[usize], consumer: bool, close: bool) -> Ring {
        let backing = MemoryBacking { bytes: self.bytes };
        let options = OpenOptions::new(survive, 10);
        let (mut log, _) = Log::open(backing, &options).expect("a good ring");
        if consumer {
            let name = ConsumerName::new("archive").expect("a name");
            log.register(name, StartAt::Newest).expect("room");
        }
        for (turn, &size) in sizes.iter().enumerate() {
            log.begin_turn(1_000 + turn as u64);
            let written = append(&mut log, size, turn as u8).or_else(|| {
                // Space is free again when the superblock that says so is durable.
                log.sync_inline(Instant(turn as u64)).expect("memory");
                log.sync_inline(Instant(turn as u64)).expect("memory");
                append(&mut log, size, turn as u8)
            });
            let (number, payload, at) = written.expect("room");
            self.messages.insert(number, payload);
            self.headers.extend(at);
            // The last one is written and not synced.
            if turn + 1 < sizes.len() {
                log.sync_inline(Instant(turn as u64 + 1)).expect("memory");
            }
        }
        let backing = match close {
            true => log.close().expect("memory"),
            false => log.into_backing(),
        };
        self.bytes = backing.bytes;
        self
    }

    fn damage(&mut self, damage: &[u8; 6]) {
        let &[op, a, b, c, d, value] = damage;
        let len = self.bytes.len();
        let data = DATA_OFFSET as usize;
        let spot = u16::from_le_bytes([a, b]);
        // Where: a superblock, anywhere in the data, or at a record.
        let (start, at) = match op & 3 {
            0 => (0, usize::from(spot) % SUPERBLOCK_BYTES),
            1 => {
                let start = SUPERBLOCK_OFFSETS[1] as usize;
                (start, start + usize::from(spot) % SUPERBLOCK_BYTES)
            }
            2 => (data + usize::from(spot) / 64 * 64, data + usize::from(spot)),
            _ => {
                let start = match self.headers.get(usize::from(a) % self.headers.len().max(1)) {
                    Some(&start) => start,
                    None => data,
                };
                (start, start + usize::from(b) % 96)
            }
        };
        let other = u16::from_le_bytes([c, d]);
        match op >> 2 & 7 {
            0 => self.store(at, 1, |byte| *byte ^= 1 << (value & 7)),
            1 => self.store(at, 1, |byte| *byte = value),
            2 => self.store(at / SECTOR * SECTOR, SECTOR, |byte| *byte = 0),
            3 => self.store(at, 64, |byte| *byte = value),
            4 | 7 => {
                let unit = if op >> 2 & 7 == 4 { SECTOR } else { 64 };
                let from = (data + usize::from(other) / unit * unit).min(len);
                let to = at / unit * unit;
                let part = self.bytes[from..len.min(from + unit)].to_vec();
                let mut part = part.into_iter();
                self.store(to, unit, |byte| *byte = part.next().unwrap_or(*byte));
            }
            5 => {
                let number = VALUES[usize::from(value) % VALUES.len()];
                let number = number.wrapping_add(u64::from(other));
                let width = if value & 0x80 == 0 { 8 } else { 4 };
                let mut octets = number.to_le_bytes().into_iter();
                self.store(at, width, |byte| *byte = octets.next().unwrap_or(0));
            }
            // Cut, but not so often that nothing else is tried.
            _ if value == 6 => self.bytes.truncate(at.min(len)),
            _ => {}
        }
        if op & 0x20 != 0 {
            self.seal(start, op & 0x40 != 0);
        }
    }

    fn store(&mut self, at: usize, len: usize, change: impl FnMut(&mut u8)) {
        let end = self.bytes.len().min(at + len);
        self.bytes[at.min(end)..end].iter_mut().for_each(change);
    }

    /// Gives the superblock or the record at `start` right checksums.
    fn seal(&mut self, start: usize, payload_too: bool) {
        self.forged = true;
        if start < DATA_OFFSET as usize {
            if let Some(superblock) = self.bytes.get_mut(start..start + SUPERBLOCK_BYTES) {
                let crc = crc32c(&superblock[12..]);
                superblock[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            return;
        }
        let Some((header, rest)) = self
            .bytes
            .get_mut(start..)
            .and_then(|bytes| bytes.split_first_chunk_mut::<64>())
        else {
            return;
        };
        if payload_too {
            let mut len = [0; 4];
            len.copy_from_slice(&header[32..36]);
            if let Some(payload) = rest.get(..u32::from_le_bytes(len) as usize) {
                header[36..40].copy_from_slice(&crc32c(payload).to_le_bytes());
            }
        }
        let crc = crc32c(&header[8..]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Whether this message was written, or may have been forged.
    fn check(&self, message: &Message) {
        let payload = [message.envelope_bytes(), message.body()].concat();
        assert!(
            self.forged || self.messages.get(&message.number) == Some(&payload),
            "message {} was not written",
            message.number
        );
    }
}

/// CRC32C, one bit at a time: the library that the ring uses is not linked into the fuzzer's workspace.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// The rings that are damaged, made once.
fn rings() -> &'static [Ring; 8] {
    static RINGS: OnceLock<[Ring; 8]> = OnceLock::new();
    RINGS.get_or_init(|| {
        let few = [100, 0, 64, 700, 5_000];
        let many: Vec<usize> = (0..60).map(|at| at * 977 % 8_000).collect();
        [
            Ring::new().live(Survive::Power, &few, false, true),
            Ring::new().live(Survive::Power, &few, true, false),
            Ring::new().live(Survive::Power, &many, false, false),
            Ring::new().live(Survive::Process, &many, false, false),
            Ring::new()
                .live(Survive::Power, &few, false, false)
                .live(Survive::Power, &few, true, true)
                .live(Survive::Power, &few, false, false),
            Ring::new(),
            Ring::new().live(Survive::Power, &many, false, true),
            Ring {
                bytes: vec![0; (DATA_OFFSET + DATA_SIZE) as usize],
                forged: true,
                ..Ring::default()
            },
        ]
    })
}

type Written = (u64, Vec<u8>, Vec<usize>);

/// Appends one message, in fragments when it is over 4,000 bytes; `None` when there is no room.
fn append<B: Backing>(log: &mut Log<B>, size: usize, fill: u8) -> Option<Written> {
    let payload: Vec<u8> = (0..size).map(|at| fill.wrapping_add(at as u8)).collect();
    if size <= 4_000 {
        let slot = log.reserve(size as u64).ok()?;
        let header = log.header(&slot, (size / 3) as u32, crc32c(&payload));
        let padding = vec![0; slot.padding];
        let parts = [
            IoSlice::new(&header),
            IoSlice::new(&payload),
            IoSlice::new(&padding),
        ];
        log.write(&parts).expect("memory");
        let at = log.superblock().place(slot.position) as usize;
        return Some((slot.number, payload, vec![at]));
    }
    let mut large = log.begin_large(size as u64).ok()?;
    let mut headers = Vec::new();
    for part in payload.chunks(size / 3 + 1) {
        let slot = log.reserve_fragment(&mut large, part.len() as u64).ok()?;
        let whole = large.whole(crc32c(&payload)).encode();
        let last = large.remaining() == 0;
        let content = [if last { &whole[..] } else { &[] }, part].concat();
        let header = log.header(&slot, 0, crc32c(&content));
        let padding = vec![0; slot.padding];
        let parts = [
            IoSlice::new(&header),
            IoSlice::new(&content),
            IoSlice::new(&padding),
        ];
        log.write(&parts).expect("memory");
        headers.push(log.superblock().place(slot.position) as usize);
    }
    Some((large.number()?, payload, headers))
}

/// Storage that outlives the log and watches what is asked of it.
#[derive(Clone)]
struct Watched {
    bytes: Rc<RefCell<Vec<u8>>>,
}

impl Backing for Watched {
    fn len(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        assert!(buf.len() <= WINDOW_BYTES, "{} bytes at once", buf.len());
        let bytes = self.bytes.borrow();
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut bytes = self.bytes.borrow_mut();
        let mut at = at as usize;
        let begin = at;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(at - begin)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The data area for readers.
struct Area<'a> {
    bytes: &'a [u8],
    superblock: Superblock,
}

impl Source for Area<'_> {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        assert!(
            out.len() as u64 <= self.superblock.data_size,
            "more than a ring at once"
        );
        let size = self.superblock.data_size;
        let data = &self.bytes[self.superblock.data_offset as usize..];
        let at = (position % size) as usize;
        let front = out.len().min(size as usize - at);
        out[..front].copy_from_slice(&data[at..at + front]);
        let behind = out.len() - front;
        out[front..].copy_from_slice(&data[..behind]);
        Ok(())
    }
}

fn reader<'a>(bytes: &'a [u8], superblock: &Superblock) -> Reader<Area<'a>> {
    let area = Area {
        bytes,
        superblock: superblock.clone(),
    };
    Reader::new(area, superblock, 0)
}

/// Every message of the window, as a consumer reads it.
fn walk(ring: &Ring, reader: &mut Reader<Area<'_>>, window: Window) -> BTreeMap<u64, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut walk = Walk::new(window.tail);
    let mut steps = 0;
    loop {
        match walk.step(reader, window).expect("memory") {
            Step::Message(message) => {
                ring.check(&message);
                let payload = [message.envelope_bytes(), message.body()].concat();
                let twice = found.insert(message.number, payload);
                assert!(ring.forged || twice.is_none(), "a number names one message");
            }
            Step::Other | Step::Lapped { .. } => {}
            Step::Damaged { .. } => {
                let (from, to) = walk.skip_damage(reader, window.end).expect("memory");
                assert!(from < to);
            }
            Step::End => return found,
        }
        steps += 1;
        assert!(steps <= 4 * DATA_SIZE / 64, "the walk does not end");
    }
}

/// Reads the damaged bytes in every way there is.
fn read(ring: &Ring, seed: u64) {
    let backing = Watched {
        bytes: Rc::new(RefCell::new(ring.bytes.clone())),
    };
    let Ok(found) = recover::find_superblock(&backing) else {
        return;
    };
    let superblock = found.superblock;
    let mut reader = reader(&ring.bytes, &superblock);
    let (end, _) = reader
        .verified_end(superblock.tail, superblock.checkpoint)
        .expect("memory");
    assert!(end <= superblock.tail + superblock.data_size || end == superblock.checkpoint);
    let window = Window {
        tail: superblock.tail,
        end,
    };
    let found = walk(ring, &mut reader, window);
    let mut newest = NewestFirst::new(window);
    let mut before = u64::MAX;
    while let Some(position) = newest.next(&mut reader, window).expect("memory") {
        assert!(position < before, "from the newest to the oldest");
        before = position;
        if let Some(message) = reader.message_at(window, position).expect("memory") {
            ring.check(&message);
        }
    }
    for number in ring.messages.keys().copied().chain([0, seed, u64::MAX]) {
        if let Some(message) = reader.message(window, number).expect("memory") {
            assert_eq!(message.number, number);
            ring.check(&message);
            assert!(ring.forged || found.contains_key(&number));
        }
    }
    for time in [0, 1_002, seed, u64::MAX] {
        let position = reader.position_of_time(window, time).expect("memory");
        assert!((window.tail..=window.end).contains(&position));
    }
}

fn open(ring: &Ring, options: &OpenOptions) {
    let bytes = Rc::new(RefCell::new(ring.bytes.clone()));
    let backing = Watched {
        bytes: Rc::clone(&bytes),
    };
    let (mut log, recovery) = match Log::open(backing, options) {
        Ok(opened) => opened,
        Err(error @ (OpenError::Failed(_) | OpenError::Io { .. })) => {
            panic!("memory fails only where it ends: {error}")
        }
        Err(_) => {
            assert_eq!(*bytes.borrow(), ring.bytes, "a refused ring was changed");
            return;
        }
    };
    assert!(options.accept_loss || recovery.lost.is_empty());
    assert!(recovery.tail <= recovery.head);
    let window = |log: &Log<Watched>| Window {
        tail: log.tail(),
        end: log.written(),
    };
    let found = walk(
        ring,
        &mut reader(&bytes.borrow(), log.superblock()),
        window(&log),
    );
    let mut ring = ring.clone();
    log.begin_turn(6_000);
    let added = append(&mut log, 300, 99);
    if let Some((number, payload, _)) = &added {
        let twice = ring.messages.insert(*number, payload.clone());
        assert!(
            ring.forged || twice.is_none(),
            "number {number} was used before"
        );
    }
    log.sync_inline(Instant(1)).expect("memory");
    let kept = walk(
        &ring,
        &mut reader(&bytes.borrow(), log.superblock()),
        window(&log),
    );
    if let Some((number, payload, _)) = added {
        assert_eq!(
            kept.get(&number),
            Some(&payload),
            "what is taken can be read"
        );
    }
    let oldest = kept.keys().next().copied().unwrap_or(u64::MAX);
    assert!(
        ring.forged
            || found
                .iter()
                .all(|(number, payload)| *number < oldest || kept.get(number) == Some(payload))
    );
    drop(log.into_backing());
    reopen(&ring, &bytes, options, recovery.clean, &kept);
}

/// The process died behind its last sync: the next one finds the same.
fn reopen(
    ring: &Ring,
    bytes: &Rc<RefCell<Vec<u8>>>,
    options: &OpenOptions,
    was_clean: bool,
    kept: &BTreeMap<u64, Vec<u8>>,
) {
    let backing = Watched {
        bytes: Rc::clone(bytes),
    };
    let mut again = *options;
    again.accept_loss = false;
    match Log::open(backing, &again) {
        Ok((log, recovery)) => {
            assert_eq!(recovery.lost, []);
            let window = Window {
                tail: log.tail(),
                end: log.written(),
            };
            let found = walk(ring, &mut reader(&bytes.borrow(), log.superblock()), window);
            let mut kept = kept.clone();
            if recovery.tail_moved_bytes > 0 {
                // Where records were acknowledged before they were durable, damage near the tail is
                // taken for space in use again: what stands before it is given up.
                let oldest = found.keys().next().copied().unwrap_or(u64::MAX);
                kept.retain(|number, _| *number >= oldest);
            }
            assert!(
                ring.forged || found == kept,
                "the next opening finds other messages"
            );
        }
        // A ring that was closed in order is not scanned: its damage shows at the next scan.
        Err(OpenError::DamagedAcknowledged { .. }) if was_clean => {}
        Err(error) => assert!(ring.forged, "the next opening refuses: {error}"),
    }
}
