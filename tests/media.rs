//! Media faults: whatever a disk does to the bytes of a ring, no reader shows a wrong message, no
//! acknowledged one disappears without a word, and `ringmx log rescue` saves all that is whole.
//!
//! Every fault is applied to rings of several kinds; a ledger of what was appended is the oracle.
//! The short form takes a sample of the long lists. `RINGMX_MEDIA=long` runs all of them,
//! `RINGMX_MEDIA_SEED=n` takes another sample.

#[path = "support/random.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod random;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::rc::Rc;

use random::Xorshift;
use ringmx::clock::Instant;
use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::consumer::{Step, Walk};
use ringmx::ringlog::format::{
    ConsumerName, DATA_OFFSET, Header, Kind, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock,
};
use ringmx::ringlog::reader::{Message, Reader, Source, Window};
use ringmx::ringlog::recover::{self, LostRange, NewRing, OpenError, OpenOptions};
use ringmx::ringlog::rescue::{
    KeySource, Report, Rescue, RescueError, RescueOptions, State, SuperblockState,
};
use ringmx::ringlog::writer::{CommitAlign, Log, ReserveError, Slot, StartAt, Survive};

const SIZE: u64 = 65_536;
const SECTOR: usize = 512;
const KEY: u64 = 0x1357_9bdf_0246_8ace;

/// A message as it was appended.
#[derive(Clone, Debug)]
struct Entry {
    number: u64,
    payload: Vec<u8>,
    /// Position and checked bytes (header and payload) of each of its records.
    records: Vec<(u64, u64)>,
    end: u64,
}

/// A ring and what is in it.
struct Image {
    name: &'static str,
    survive: Survive,
    bytes: Vec<u8>,
    /// The same ring some time earlier: what a write that never reached the disk leaves.
    older: Vec<u8>,
    /// What has to be there.
    ledger: BTreeMap<u64, Entry>,
    /// Everything ever appended.
    history: BTreeMap<u64, Entry>,
    tail: u64,
    /// Where the proofs stand that something is durable (file range), and up to which position.
    proofs: Vec<(usize, usize, u64)>,
}

/// A ring that is being written.
struct Writing {
    log: Option<Log<MemoryBacking>>,
    survive: Survive,
    now: u64,
    random: Xorshift,
    ledger: BTreeMap<u64, Entry>,
    history: BTreeMap<u64, Entry>,
}

impl Writing {
    fn new(survive: Survive, seed: u64) -> Writing {
        let mut backing = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + SIZE) as usize],
        };
        let new = NewRing {
            ring_id: *b"media fault ring",
            ring_key: KEY,
            data_size: SIZE,
            created_ns: 1,
        };
        recover::format(&mut backing, &new).unwrap();
        let mut writing = Writing {
            log: None,
            survive,
            now: 100,
            random: Xorshift(seed),
            ledger: BTreeMap::new(),
            history: BTreeMap::new(),
        };
        writing.open(backing);
        writing
    }

    fn open(&mut self, backing: MemoryBacking) {
        let options = OpenOptions::new(self.survive, self.now);
        self.log = Some(Log::open(backing, &options).unwrap().0);
    }

    fn log(&mut self) -> &mut Log<MemoryBacking> {
        self.log.as_mut().unwrap()
    }

    fn write(&mut self, slot: &Slot, payload: &[u8]) {
        let header = self.log().header(slot, 0, crc32c::crc32c(payload));
        let padding = &[0; 64][..slot.padding];
        let parts = [&header[..], payload, padding].map(IoSlice::new);
        self.log().write(&parts).unwrap();
    }

    fn sync(&mut self) {
        self.now += 10;
        let now = Instant(self.now);
        self.log().sync_inline(now).unwrap();
    }

    fn payload(&mut self, len: u64) -> Vec<u8> {
        let salt = self.random.next();
        (0..len)
            .map(|at| (salt.wrapping_mul(at | 1) >> 24) as u8)
            .collect()
    }

    fn small(&mut self) {
        self.now += 1;
        let now = self.now;
        self.log().begin_turn(now);
        let len = 1 + self.random.below(900);
        let payload = self.payload(len);
        let slot = loop {
            match self.log().reserve(len) {
                Ok(slot) => break slot,
                Err(ReserveError::Full { freeing: true }) => self.sync(),
                Err(error) => panic!("{error:?}"),
            }
        };
        self.write(&slot, &payload);
        let entry = Entry {
            number: slot.number,
            payload,
            records: vec![(slot.position, 64 + len)],
            end: slot.end,
        };
        self.note(entry);
    }

    /// A message in three records, with small ones between them.
    fn large(&mut self) {
        self.now += 1;
        let now = self.now;
        self.log().begin_turn(now);
        let payload = self.payload(4_000);
        let mut large = loop {
            match self.log().begin_large(4_000) {
                Ok(large) => break large,
                Err(ReserveError::Full { freeing: true }) => self.sync(),
                Err(error) => panic!("{error:?}"),
            }
        };
        let mut records = Vec::new();
        let mut end = 0;
        for piece in payload.chunks(1_500) {
            let slot = self.log().reserve_fragment(&mut large, piece.len() as u64);
            let slot = slot.unwrap();
            let mut bytes = Vec::new();
            if slot.kind == Kind::Last {
                bytes.extend(large.whole(crc32c::crc32c(&payload)).encode());
            }
            bytes.extend(piece);
            self.write(&slot, &bytes);
            records.push((slot.position, 64 + bytes.len() as u64));
            end = slot.end;
            if slot.kind != Kind::Last {
                self.small();
                self.sync();
            }
        }
        let number = large.number().unwrap();
        let entry = Entry {
            number,
            payload,
            records,
            end,
        };
        self.note(entry);
    }

    fn note(&mut self, entry: Entry) {
        let twice = self.history.insert(entry.number, entry.clone());
        assert!(twice.is_none(), "a number is used twice");
        self.ledger.insert(entry.number, entry);
    }

    /// So many rounds of messages, each synced.
    fn rounds(&mut self, rounds: u32, large: bool) {
        for round in 0..rounds {
            for _ in 0..1 + self.random.below(3) {
                self.small();
            }
            if large && round % 6 == 3 {
                self.large();
            }
            self.sync();
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.log().backing().bytes.clone()
    }

    /// Power is lost amid an unsynced batch of which some sectors stay away; then recovery.
    fn crash(&mut self) {
        let before = self.bytes();
        for _ in 0..4 {
            self.small();
        }
        let mut after = self.bytes();
        let changed: Vec<usize> = (0..after.len() / SECTOR)
            .map(|sector| sector * SECTOR)
            .filter(|at| after[*at..*at + SECTOR] != before[*at..*at + SECTOR])
            .collect();
        let dropped = changed[changed.len() / 2];
        after[dropped..dropped + SECTOR].copy_from_slice(&before[dropped..dropped + SECTOR]);
        self.log = None;
        self.open(MemoryBacking { bytes: after });
        let kept = self.log().written();
        self.ledger.retain(|_, entry| entry.end <= kept);
    }

    fn finish(mut self, name: &'static str, close: bool, older: Vec<u8>) -> Image {
        let bytes = match close {
            true => self.log.take().unwrap().close().unwrap().bytes,
            false => self.bytes(),
        };
        let mut image = Image {
            name,
            survive: self.survive,
            bytes,
            older,
            ledger: self.ledger,
            history: self.history,
            tail: 0,
            proofs: Vec::new(),
        };
        let (report, found) = rescue(&image.bytes, RescueOptions::default()).unwrap();
        image.tail = report.tail.unwrap();
        image.prove(report.end);
        assert_eq!(image.hint(&image.bytes), report.hint, "{name}");
        let tail = image.tail;
        image.ledger.retain(|_, entry| entry.records[0].0 >= tail);
        // Of the pristine ring nothing may be missing.
        assert!(report.is_whole(), "{name}: {report:?}");
        assert_eq!(found.len(), image.ledger.len(), "{name}");
        assert!(found.len() > 5, "{name}");
        image
    }
}

fn images() -> Vec<Image> {
    let mut images = Vec::new();
    let mut add = |name, survive, seed, laps: u32, large, crashes, close, consumer| {
        let mut writing = Writing::new(survive, seed);
        let mut older = Vec::new();
        // About 1,100 bytes a round.
        for _ in 0..laps {
            older = writing.bytes();
            writing.rounds(40, large);
            if crashes {
                writing.crash();
            }
        }
        if consumer {
            let name = ConsumerName::new("reader").unwrap();
            writing.log().register(name, StartAt::Newest).unwrap();
            writing.rounds(3, large);
        }
        images.push(writing.finish(name, close, older));
    };
    let power = Survive::Power;
    add("fresh, closed", power, 11, 1, false, false, true, false);
    add("fresh, not closed", power, 12, 1, true, false, false, true);
    add("wrapped, closed", power, 13, 5, false, false, true, true);
    add("wrapped, large", power, 14, 4, true, false, false, false);
    add("epochs", power, 15, 4, true, true, false, false);
    add("epochs, closed", power, 16, 3, true, true, true, false);
    images
}

/// What a rescue gives out, by number.
type Rescued = BTreeMap<u64, (Message, State)>;

/// Everything that a rescue gives out.
fn rescue(bytes: &[u8], options: RescueOptions) -> Result<(Report, Rescued), RescueError> {
    let backing = MemoryBacking {
        bytes: bytes.to_vec(),
    };
    let mut rescue = Rescue::look(&backing, options)?;
    let mut found = BTreeMap::new();
    let walked: Result<(), ()> = rescue.walk(&mut |message, state| {
        let twice = found.insert(message.number, (message, state));
        assert!(twice.is_none(), "a message is given out twice");
        Ok(())
    });
    walked.unwrap();
    Ok((rescue.report().clone(), found))
}

/// The ring of an open log, for [`Walk`].
struct Area<'a>(&'a [u8]);

impl Source for Area<'_> {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        for (index, byte) in out.iter_mut().enumerate() {
            let place = (position + index as u64) % SIZE;
            *byte = self.0[(DATA_OFFSET + place) as usize];
        }
        Ok(())
    }
}

/// Messages that readers show, and ranges they call damaged.
type Shown = (BTreeMap<u64, Message>, Vec<(u64, u64)>);

/// From where recovery found the log to begin: without consumers, opening may free space at once.
fn read(log: &Log<MemoryBacking>, tail: u64) -> Shown {
    let mut reader = Reader::new(Area(&log.backing().bytes), log.superblock(), 0);
    let window = Window {
        tail,
        end: log.written(),
    };
    let mut walk = Walk::new(window.tail);
    let (mut messages, mut damage) = (BTreeMap::new(), Vec::new());
    loop {
        match walk.step(&reader, window).unwrap() {
            Step::Message(message) => {
                let twice = messages.insert(message.number, message);
                assert!(twice.is_none(), "a message is shown twice");
            }
            Step::Damaged { .. } => {
                damage.push(walk.skip_damage(&mut reader, window.end).unwrap());
            }
            Step::Other => {}
            Step::Lapped { .. } => panic!("nobody writes"),
            Step::End => return (messages, damage),
        }
    }
}

impl Image {
    fn place(position: u64) -> usize {
        (DATA_OFFSET + position % SIZE) as usize
    }

    /// Finds everything that says how far the ring was durable.
    fn prove(&mut self, end: u64) {
        for at in SUPERBLOCK_OFFSETS.map(|at| at as usize) {
            let superblock = Superblock::decode(self.bytes[at..].first_chunk().unwrap()).unwrap();
            let to = at + SUPERBLOCK_BYTES;
            self.proofs.push((at, to, superblock.checkpoint));
        }
        for position in (self.tail..end).step_by(64) {
            let at = Image::place(position);
            let bytes = self.bytes[at..].first_chunk().unwrap();
            if let Ok(header) = Header::decode(bytes, KEY)
                && header.position == position
                && let Some(hint) = header.durable_hint()
            {
                self.proofs.push((at, at + 64, hint));
            }
        }
    }

    /// Everything before it is provably durable, from what a fault has left of the proofs.
    fn hint(&self, bytes: &[u8]) -> u64 {
        let left = self
            .proofs
            .iter()
            .filter(|(from, to, _)| bytes.get(*from..*to) == Some(&self.bytes[*from..*to]));
        left.map(|(_, _, hint)| *hint).max().unwrap_or(0)
    }

    /// Whether a fault changed a byte of the message that a checksum covers.
    fn touched(&self, entry: &Entry, bytes: &[u8]) -> bool {
        entry.records.iter().any(|(position, len)| {
            (*position..position + len).any(|position| {
                let at = Image::place(position);
                bytes.get(at) != Some(&self.bytes[at])
            })
        })
    }

    fn right(&self, message: &Message, what: &str) {
        let entry = self.history.get(&message.number);
        let Some(entry) = entry else {
            panic!(
                "{}: {what}: message {} never was",
                self.name, message.number
            );
        };
        assert_eq!(
            message.position, entry.records[0].0,
            "{}: {what}",
            self.name
        );
        assert!(
            message.body() == entry.payload,
            "{}: {what}: message {} is wrong",
            self.name,
            message.number
        );
    }

    fn check(&self, bytes: &[u8], what: &str) {
        self.check_rescue(bytes, what);
        self.check_open(bytes, what);
    }

    fn check_rescue(&self, bytes: &[u8], what: &str) {
        let name = self.name;
        let (report, found) = match rescue(bytes, RescueOptions::default()) {
            Ok(found) => found,
            Err(RescueError::TooShort { .. }) => return,
            Err(error) => panic!("{name}: {what}: {error}"),
        };
        for (message, state) in found.values() {
            self.right(message, what);
            // Without a superblock, or with an old one, released mail is not told from kept mail.
            let told = report.tail.is_some_and(|tail| tail >= self.tail);
            assert!(!told || message.position >= self.tail, "{name}: {what}");
            assert_ne!(*state, State::Released);
        }
        let hint = self.hint(bytes);
        for entry in self.ledger.values() {
            if found.contains_key(&entry.number) {
                continue;
            }
            let position = entry.records[0].0;
            assert!(
                self.touched(entry, bytes),
                "{name}: {what}: message {} at {position} is whole and was not saved: {report:?}",
                entry.number
            );
            if entry.end > hint {
                continue;
            }
            assert!(!report.is_whole(), "{name}: {what}: {}", entry.number);
            let named = report
                .damage
                .iter()
                .any(|damage| damage.from < entry.end && position < damage.to)
                || report
                    .incomplete
                    .iter()
                    .any(|part| part.number == entry.number);
            assert!(
                named || report.tail.is_none(),
                "{name}: {what}: message {} is missing without a word: {report:?}",
                entry.number
            );
            let numbered = report.damage.iter().any(|damage| {
                damage
                    .first_number
                    .is_none_or(|first| first <= entry.number)
                    && damage.last_number.is_none_or(|last| entry.number <= last)
            }) || report
                .incomplete
                .iter()
                .any(|part| part.number == entry.number);
            assert!(
                numbered || report.tail.is_none(),
                "{name}: {what}: number {} is not named: {report:?}",
                entry.number
            );
        }
    }

    fn check_open(&self, bytes: &[u8], what: &str) {
        let name = self.name;
        let mut options = OpenOptions::new(self.survive, 1 << 40);
        let open = |options: &OpenOptions, bytes: &[u8]| {
            Log::open(
                MemoryBacking {
                    bytes: bytes.to_vec(),
                },
                options,
            )
        };
        match open(&options, bytes) {
            Ok((log, recovery)) => {
                assert_eq!(recovery.lost, [], "{name}: {what}");
                self.check_shown(bytes, &read(&log, recovery.tail), recovery.tail, what);
            }
            Err(OpenError::DamagedAcknowledged { lost }) => {
                options.accept_loss = true;
                let (log, recovery) = open(&options, bytes).unwrap();
                assert_eq!(recovery.lost, lost);
                let tail = recovery.tail;
                let mut shown = read(&log, tail);
                shown
                    .1
                    .extend(lost.iter().map(|range: &LostRange| (range.from, range.to)));
                self.check_shown(bytes, &shown, tail, what);
                options.accept_loss = false;
                let again = log.into_backing().bytes;
                let (log, recovery) = open(&options, &again)
                    .unwrap_or_else(|error| panic!("{name}: {what}: again: {error}"));
                assert_eq!(recovery.lost, [], "{name}: {what}");
                let numbers = |shown: &BTreeMap<u64, Message>| -> Vec<u64> {
                    shown.keys().copied().collect()
                };
                let again = read(&log, recovery.tail);
                let kept = shown
                    .0
                    .into_iter()
                    .filter(|(_, message)| message.position >= recovery.tail);
                assert_eq!(
                    numbers(&again.0),
                    numbers(&kept.collect()),
                    "{name}: {what}"
                );
            }
            Err(
                OpenError::NotARing { .. }
                | OpenError::WrongSize { .. }
                | OpenError::NewerFormat { .. },
            ) => {}
            Err(error) => panic!("{name}: {what}: {error}"),
        }
    }

    fn check_shown(&self, bytes: &[u8], shown: &Shown, tail: u64, what: &str) {
        let name = self.name;
        let (messages, damage) = shown;
        for message in messages.values() {
            self.right(message, what);
        }
        let hint = self.hint(bytes);
        for entry in self.ledger.values() {
            if messages.contains_key(&entry.number) || entry.end > hint {
                continue;
            }
            let position = entry.records[0].0;
            assert!(
                self.touched(entry, bytes),
                "{name}: {what}: message {} at {position} is whole and not shown, tail {tail}, {damage:?}",
                entry.number
            );
            assert!(
                entry.records.iter().any(|(position, len)| {
                    damage
                        .iter()
                        .any(|(from, to)| *from < position + len && position < to)
                }),
                "{name}: {what}: message {} at {position} is missing without a word, tail {tail}",
                entry.number
            );
        }
    }
}

/// What a disk can do.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A bit is another.
    Bit(usize, u8),
    /// A sector reads as zeros.
    Zero(usize),
    /// A write of a sector never arrived.
    Stale(usize),
    /// Two sectors changed places.
    Exchange(usize, usize),
    /// A sector was written to the place of another as well.
    Misdirected(usize, usize),
    /// So many bytes, from a record's beginning, stand at another place as well.
    Record(usize, usize, usize),
}

impl Fault {
    fn apply(self, image: &Image, bytes: &mut [u8]) {
        match self {
            Fault::Bit(at, bit) => bytes[at] ^= 1 << bit,
            Fault::Zero(at) => bytes[at..at + SECTOR].fill(0),
            Fault::Stale(at) => {
                bytes[at..at + SECTOR].copy_from_slice(&image.older[at..at + SECTOR]);
            }
            Fault::Exchange(a, b) => {
                let first = bytes[a..a + SECTOR].to_vec();
                bytes.copy_within(b..b + SECTOR, a);
                bytes[b..b + SECTOR].copy_from_slice(&first);
            }
            Fault::Misdirected(from, to) => bytes.copy_within(from..from + SECTOR, to),
            Fault::Record(from, len, to) => {
                let len = len.min(bytes.len() - from).min(bytes.len() - to);
                bytes.copy_within(from..from + len, to);
            }
        }
    }
}

fn long() -> bool {
    std::env::var("RINGMX_MEDIA").is_ok_and(|value| value == "long")
}

/// All of `faults`, or `count` of them.
fn sample(faults: Vec<Fault>, count: usize, seed: u64) -> Vec<Fault> {
    if long() || faults.len() <= count {
        return faults;
    }
    let given = std::env::var("RINGMX_MEDIA_SEED").ok();
    let given: u64 = given.and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = Xorshift(given.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed | 1);
    (0..count)
        .map(|_| faults[random.below(faults.len() as u64) as usize])
        .collect()
}

fn run(images: &[Image], faults: impl Fn(&Image) -> Vec<Fault>, count: usize) {
    for (index, image) in images.iter().enumerate() {
        let all = faults(image);
        for fault in sample(all, count, index as u64) {
            let mut bytes = image.bytes.clone();
            fault.apply(image, &mut bytes);
            image.check(&bytes, &format!("{fault:?}"));
        }
    }
}

fn superblock_sectors() -> Vec<usize> {
    let sectors = |at: u64| (0..SUPERBLOCK_BYTES / SECTOR).map(move |n| at as usize + n * SECTOR);
    SUPERBLOCK_OFFSETS.into_iter().flat_map(sectors).collect()
}

fn data_sectors() -> Vec<usize> {
    (DATA_OFFSET as usize..(DATA_OFFSET + SIZE) as usize)
        .step_by(SECTOR)
        .collect()
}

fn sectors() -> Vec<usize> {
    [superblock_sectors(), data_sectors()].concat()
}

/// Byte ranges of the headers of all records that the ledger knows.
fn headers(image: &Image) -> Vec<usize> {
    let entries = image.ledger.values();
    entries
        .flat_map(|entry| entry.records.iter())
        .map(|(position, _)| Image::place(*position))
        .collect()
}

#[test]
fn flipped_bit_of_a_superblock_costs_nothing() {
    let bits = |_: &Image| {
        let bytes = SUPERBLOCK_OFFSETS
            .into_iter()
            .flat_map(|at| at as usize..at as usize + SUPERBLOCK_BYTES);
        bytes
            .flat_map(|at| (0..8).map(move |bit| Fault::Bit(at, bit)))
            .collect()
    };
    run(&images(), bits, 40);
}

#[test]
fn flipped_bit_of_a_header_costs_that_record_and_is_named() {
    let bits = |image: &Image| {
        let bytes = headers(image).into_iter().flat_map(|at| at..at + 64);
        bytes
            .flat_map(|at| (0..8).map(move |bit| Fault::Bit(at, bit)))
            .collect()
    };
    run(&images(), bits, 120);
}

#[test]
fn every_bit_of_the_first_headers_costs_that_record_and_is_named() {
    let images = images();
    let image = &images[1];
    let mut first = headers(image);
    first.truncate(if long() { 200 } else { 1 });
    for at in first.into_iter().flat_map(|at| at..at + 64) {
        for bit in 0..8 {
            let mut bytes = image.bytes.clone();
            bytes[at] ^= 1 << bit;
            image.check(&bytes, &format!("bit {bit} of byte {at}"));
        }
    }
}

#[test]
fn flipped_bit_anywhere_in_the_data_never_gives_a_wrong_message() {
    let bits = |_: &Image| {
        (DATA_OFFSET as usize..(DATA_OFFSET + SIZE) as usize)
            .map(|at| Fault::Bit(at, (at % 7) as u8))
            .collect()
    };
    run(&images(), bits, 80);
}

#[test]
fn sector_of_zeros_costs_what_it_held_and_is_named() {
    let faults = |_: &Image| sectors().into_iter().map(Fault::Zero).collect();
    run(&images(), faults, 60);
}

#[test]
fn sector_with_its_content_of_some_time_ago_costs_what_it_held_and_is_named() {
    let faults = |_: &Image| sectors().into_iter().map(Fault::Stale).collect();
    run(&images(), faults, 60);
}

#[test]
fn exchanged_sectors_cost_what_they_held_and_are_named() {
    let faults = |_: &Image| {
        let sectors = sectors();
        let others = |(index, a): (usize, &usize)| {
            let a = *a;
            sectors[..index]
                .iter()
                .map(move |b| Fault::Exchange(a, *b))
                .collect::<Vec<_>>()
        };
        sectors.iter().enumerate().flat_map(others).collect()
    };
    run(&images(), faults, 60);
}

#[test]
fn sector_written_to_the_place_of_another_costs_what_stood_there_and_is_named() {
    let faults = |_: &Image| {
        let sectors = sectors();
        let to = |from: &usize| {
            let from = *from;
            sectors
                .iter()
                .map(move |to| Fault::Misdirected(from, *to))
                .collect::<Vec<_>>()
        };
        sectors.iter().flat_map(to).collect()
    };
    run(&images(), faults, 60);
}

#[test]
fn whole_record_in_the_place_of_another_is_not_believed() {
    let faults = |image: &Image| {
        let records: Vec<(usize, usize)> = image
            .ledger
            .values()
            .flat_map(|entry| entry.records.iter())
            .map(|(position, len)| (Image::place(*position), len.next_multiple_of(64) as usize))
            .collect();
        let to = |(from, len): &(usize, usize)| {
            let (from, len) = (*from, *len);
            records
                .iter()
                .map(move |(to, _)| Fault::Record(from, len, *to))
                .collect::<Vec<_>>()
        };
        records.iter().flat_map(to).collect()
    };
    run(&images(), faults, 60);
}

/// The newest superblock of an image, and the other.
fn slots(image: &Image) -> (usize, usize) {
    let [a, b] = SUPERBLOCK_OFFSETS.map(|at| at as usize);
    let generation = |at: usize| {
        let bytes = image.bytes[at..].first_chunk().unwrap();
        Superblock::decode(bytes).unwrap().generation
    };
    match generation(a) > generation(b) {
        true => (a, b),
        false => (b, a),
    }
}

type Change = (&'static str, fn(&Image, &mut Vec<u8>));

/// What can become of the superblocks.
const SUPERBLOCKS: &[Change] = &[
    ("newest of zeros", |image, bytes| {
        let (newest, _) = slots(image);
        bytes[newest..newest + SUPERBLOCK_BYTES].fill(0);
    }),
    ("other of zeros", |image, bytes| {
        let (_, other) = slots(image);
        bytes[other..other + SUPERBLOCK_BYTES].fill(0);
    }),
    ("exchanged", |image, bytes| {
        let (newest, other) = slots(image);
        bytes.copy_within(newest..newest + SUPERBLOCK_BYTES, other);
        bytes[newest..newest + SUPERBLOCK_BYTES]
            .copy_from_slice(&image.bytes[other..other + SUPERBLOCK_BYTES]);
    }),
    ("newest over the other", |image, bytes| {
        let (newest, other) = slots(image);
        bytes.copy_within(newest..newest + SUPERBLOCK_BYTES, other);
    }),
    ("other over the newest", |image, bytes| {
        let (newest, other) = slots(image);
        bytes.copy_within(other..other + SUPERBLOCK_BYTES, newest);
    }),
    ("newest of some time ago", |image, bytes| {
        let (newest, _) = slots(image);
        let range = newest..newest + SUPERBLOCK_BYTES;
        bytes[range.clone()].copy_from_slice(&image.older[range]);
    }),
    ("newest of zeros, other of some time ago", |image, bytes| {
        let (newest, other) = slots(image);
        let range = other..other + SUPERBLOCK_BYTES;
        bytes[range.clone()].copy_from_slice(&image.older[range]);
        bytes[newest..newest + SUPERBLOCK_BYTES].fill(0);
    }),
    ("both of some time ago", |image, bytes| {
        let end = DATA_OFFSET as usize;
        bytes[..end].copy_from_slice(&image.older[..end]);
    }),
    ("a bit of each is another", |_, bytes| {
        for at in SUPERBLOCK_OFFSETS {
            bytes[at as usize + 100] ^= 1;
        }
    }),
    ("both of zeros", |_, bytes| {
        bytes[..DATA_OFFSET as usize].fill(0);
    }),
];

#[test]
fn no_fate_of_the_superblocks_costs_a_message() {
    for image in &images() {
        for (what, change) in SUPERBLOCKS {
            let mut bytes = image.bytes.clone();
            change(image, &mut bytes);
            image.check(&bytes, what);
            let (report, found) = rescue(&bytes, RescueOptions::default()).unwrap();
            for entry in image
                .ledger
                .values()
                .filter(|entry| entry.end <= image.hint(&bytes))
            {
                assert!(found.contains_key(&entry.number), "{}: {what}", image.name);
            }
            let none = report
                .slots
                .iter()
                .all(|slot| !matches!(slot, SuperblockState::Good { .. }));
            assert_eq!(none, matches!(report.key, KeySource::Records { .. }));
            if none {
                assert!(!report.is_whole(), "which were released nobody knows");
            }
        }
    }
}

#[test]
fn old_superblock_that_says_clean_is_not_believed_beside_a_damaged_one() {
    // The ring was closed, opened again, and took mail. A superblock write of then never arrived, so
    // that one place still says how it was closed; the other place, with the newest, goes bad.
    // Believing the first would end the log where it was closed: all mail since would be gone.
    let mut writing = Writing::new(Survive::Power, 31);
    writing.rounds(5, false);
    let closed = writing.log.take().unwrap().close().unwrap();
    let older = closed.bytes.clone();
    writing.open(closed);
    writing.rounds(5, true);
    let image = writing.finish("opened again", false, older);
    for clean in SUPERBLOCK_OFFSETS.map(|at| at as usize) {
        let superblock = Superblock::decode(image.older[clean..].first_chunk().unwrap());
        if !superblock.unwrap().clean {
            continue;
        }
        for other in [0, 0xff] {
            let mut bytes = image.bytes.clone();
            for at in SUPERBLOCK_OFFSETS.map(|at| at as usize) {
                bytes[at..at + SUPERBLOCK_BYTES].fill(other);
            }
            let range = clean..clean + SUPERBLOCK_BYTES;
            bytes[range.clone()].copy_from_slice(&image.older[range]);
            image.check(&bytes, "the clean one is old");
        }
    }
}

#[test]
fn damage_beside_a_lost_or_old_superblock_is_named_all_the_same() {
    let images = images();
    for (index, image) in images.iter().enumerate() {
        let bits = (DATA_OFFSET as usize..(DATA_OFFSET + SIZE) as usize)
            .map(|at| Fault::Bit(at, (at % 5) as u8))
            .collect();
        for (at, fault) in sample(bits, 80, index as u64).into_iter().enumerate() {
            let (what, change) = SUPERBLOCKS[at % SUPERBLOCKS.len()];
            let mut bytes = image.bytes.clone();
            change(image, &mut bytes);
            fault.apply(image, &mut bytes);
            image.check(&bytes, &format!("{what}, {fault:?}"));
        }
    }
}

#[test]
fn file_that_was_cut_short_or_grew_gives_what_is_left() {
    for image in &images() {
        let len = image.bytes.len();
        let mut random = Xorshift(77);
        let lens = [
            0,
            1,
            4_095,
            65_535,
            65_536,
            65_600,
            70_000,
            len - 1,
            len - 512,
        ];
        let more = (0..20).map(|_| random.below(len as u64) as usize);
        for cut in lens.into_iter().chain(more.collect::<Vec<_>>()) {
            let mut bytes = image.bytes[..cut].to_vec();
            image.check(&bytes, &format!("cut to {cut}"));
            if cut > DATA_OFFSET as usize + 1_024 {
                bytes[..DATA_OFFSET as usize].fill(0);
                if let Err(error) = rescue(&bytes, RescueOptions::default()) {
                    assert!(matches!(error, RescueError::NothingFound), "{error}");
                    bytes.extend(vec![0; len - bytes.len()]);
                    assert!(
                        image
                            .ledger
                            .values()
                            .all(|entry| image.touched(entry, &bytes))
                    );
                } else {
                    image.check_rescue(&bytes, &format!("cut to {cut}, no superblocks"));
                }
            }
        }
        let mut bytes = image.bytes.clone();
        bytes.extend([7; 100_000]);
        image.check(&bytes, "grown");
    }
}

#[test]
fn released_mail_is_given_out_only_when_asked_for_and_marked() {
    let images = images();
    for image in &images[2..4] {
        let options = RescueOptions {
            released: true,
            ..RescueOptions::default()
        };
        let (report, found) = rescue(&image.bytes, options).unwrap();
        assert!(report.is_whole(), "{}: {report:?}", image.name);
        let mut released = 0;
        for (message, state) in found.values() {
            image.right(message, "released");
            let before = message.position < image.tail;
            assert_eq!(*state == State::Released, before, "{}", message.number);
            released += u64::from(before);
        }
        assert!(released > 3, "{}: {released}", image.name);
        assert_eq!(report.messages[State::Released as usize], released);
        assert_eq!(found.len() as u64 - released, image.ledger.len() as u64);
    }
}

#[test]
fn records_that_a_sender_made_up_are_never_taken_for_messages() {
    // A body may hold anything, whole records of another key with fitting checksums among it, each
    // standing where it says. Without a superblock the key has to be found among them.
    const FORGED_KEY: u64 = 0x6666_6666_6666_6666;
    let mut writing = Writing::new(Survive::Power, 41);
    for round in 0..12 {
        writing.rounds(1, false);
        let position = writing.log().written() + 64;
        let forged: Vec<u8> = (0..10_u64)
            .flat_map(|index| {
                let header = Header {
                    position: position + index * 128,
                    number: 1 + round * 10 + index,
                    len: 50,
                    payload_crc: crc32c::crc32c(&[b'!'; 50]),
                    epoch: 1,
                    kind: Kind::Message,
                    flags: 0,
                    env_len: 0,
                    hint_back: 0,
                    received_ns: 7,
                };
                let mut bytes = header.encode(FORGED_KEY).to_vec();
                bytes.extend([b'!'; 50]);
                bytes.resize(128, 0);
                bytes
            })
            .collect();
        writing.now += 1;
        let now = writing.now;
        writing.log().begin_turn(now);
        let len = forged.len() as u64;
        let slot = writing.log().reserve(len).unwrap();
        assert_eq!(slot.position + 64, position);
        writing.write(&slot, &forged);
        writing.note(Entry {
            number: slot.number,
            payload: forged,
            records: vec![(slot.position, 64 + len)],
            end: slot.end,
        });
        writing.sync();
    }
    let older = writing.bytes();
    let image = writing.finish("forged", true, older);
    let mut random = Xorshift(9);
    for round in 0..40 {
        let mut bytes = image.bytes.clone();
        bytes[..DATA_OFFSET as usize].fill(0);
        // Where the true header is damaged, the forged records lie bare.
        for _ in 0..round % 4 {
            let headers = headers(&image);
            let at = headers[random.below(headers.len() as u64) as usize];
            bytes[at + 20] ^= 1;
        }
        image.check_rescue(&bytes, "no superblocks");
        let (report, found) = rescue(&bytes, RescueOptions::default()).unwrap();
        assert!(found.len() + 3 >= image.ledger.len(), "{report:?}");
    }
}

/// A disk on which some sectors can't be read.
struct BadSectors {
    bytes: Vec<u8>,
    bad: Vec<u64>,
}

impl Backing for BadSectors {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let end = at + buf.len() as u64;
        if self
            .bad
            .iter()
            .any(|bad| *bad < end && at < bad + SECTOR as u64)
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let at = at as usize;
        let len = buf.len().min(self.bytes.len() - at);
        buf[..len].copy_from_slice(&self.bytes[at..at + len]);
        Ok(len)
    }

    fn write_at(&mut self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        panic!("a rescue writes nothing");
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a rescue syncs nothing");
    }
}

#[test]
fn sectors_that_cannot_be_read_cost_the_messages_in_their_pages_and_no_other() {
    for image in &images() {
        let mut random = Xorshift(5);
        for round in 0..10 {
            let bad: Vec<u64> = (0..1 + round % 3)
                .map(|_| DATA_OFFSET + random.below(SIZE / 512) * 512)
                .chain((round == 9).then_some(0))
                .collect();
            let backing = BadSectors {
                bytes: image.bytes.clone(),
                bad: bad.clone(),
            };
            let mut rescue = Rescue::look(&backing, RescueOptions::default()).unwrap();
            let mut found = BTreeMap::new();
            let walked: Result<(), ()> = rescue.walk(&mut |message, _| {
                image.right(&message, "unreadable");
                found.insert(message.number, ());
                Ok(())
            });
            walked.unwrap();
            // The page around a bad sector is lost with it.
            let mut bytes = image.bytes.clone();
            for at in bad.iter().filter(|at| **at >= DATA_OFFSET) {
                let page = (*at - at % 4_096) as usize;
                let pristine = &image.bytes[page..page + 4_096];
                for (byte, pristine) in bytes[page..page + 4_096].iter_mut().zip(pristine) {
                    *byte = !pristine;
                }
            }
            for entry in image.ledger.values() {
                assert!(
                    found.contains_key(&entry.number) || image.touched(entry, &bytes),
                    "{}: {bad:?}: message {} is readable and was not saved",
                    image.name,
                    entry.number
                );
            }
            assert!(!rescue.report().unreadable.is_empty());
            assert!(!rescue.report().is_whole());
        }
    }
}

/// A disk of which a page that is being written when power fails may hold anything afterwards.
#[derive(Clone)]
struct Pages(Rc<RefCell<PageState>>);

struct PageState {
    bytes: Vec<u8>,
    /// Calls that wrote.
    calls: u64,
    /// Pages written since the last completed sync, and by which call last.
    writing: BTreeMap<usize, u64>,
    /// Pages that hold acknowledged bytes.
    promised: BTreeSet<usize>,
    /// Writes to those.
    rewritten: u64,
}

const PAGE: usize = 4_096;

impl Pages {
    /// An empty ring whose data area has this many bytes.
    fn empty_ring(data_size: u64) -> Pages {
        let mut memory = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + data_size) as usize],
        };
        let new = NewRing {
            ring_id: [3; 16],
            ring_key: KEY,
            data_size,
            created_ns: 1,
        };
        recover::format(&mut memory, &new).unwrap();
        Pages(Rc::new(RefCell::new(PageState {
            bytes: memory.bytes,
            calls: 0,
            writing: BTreeMap::new(),
            promised: BTreeSet::new(),
            rewritten: 0,
        })))
    }
}

fn aligned(commit_align: CommitAlign) -> OpenOptions {
    let mut options = OpenOptions::new(Survive::Power, 10);
    options.commit_align = commit_align;
    options
}

impl Backing for Pages {
    fn len(&self) -> u64 {
        self.0.borrow().bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.0.borrow();
        let at = at as usize;
        let len = buf.len().min(state.bytes.len() - at);
        buf[..len].copy_from_slice(&state.bytes[at..at + len]);
        Ok(len)
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut state = self.0.borrow_mut();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let at = at as usize;
        state.calls += 1;
        let call = state.calls;
        state.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        for page in at / PAGE..(at + bytes.len()).div_ceil(PAGE) {
            state.rewritten += u64::from(state.promised.contains(&page));
            state.writing.insert(page, call);
        }
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.borrow_mut().writing.clear();
        Ok(())
    }
}

/// Appends messages in turns whose syncs overlap with the turns after them, and loses power at every
/// turn. Returns pages with acknowledged bytes that were written again, and acknowledged messages
/// that were gone after a loss of power.
fn lose_pages(commit_align: CommitAlign, seed: u64) -> (u64, u64) {
    let options = aligned(commit_align);
    let Pages(state) = Pages::empty_ring(384 << 10);
    let (mut log, _) = Log::open(Pages(Rc::clone(&state)), &options).unwrap();
    let mut random = Xorshift(seed);
    let mut acknowledged: Vec<(u64, u64)> = Vec::new();
    let mut appended: Vec<(u64, u64)> = Vec::new();
    let mut in_flight: Option<(u64, u64)> = None;
    let (mut promised, mut gone) = (0, 0);
    for turn in 0..40 {
        // Power is lost: each page that was being written is anything.
        let mut crashed = MemoryBacking {
            bytes: state.borrow().bytes.clone(),
        };
        for page in state.borrow().writing.keys() {
            if random.below(2) == 0 {
                crashed.bytes[page * PAGE..(page + 1) * PAGE].fill(random.next() as u8);
            }
        }
        if let Ok((recovered, recovery)) = Log::open(crashed, &options) {
            let area = LongArea(&recovered.backing().bytes);
            let mut reader = Reader::new(area, recovered.superblock(), 0);
            let window = Window {
                tail: recovery.tail,
                end: recovered.written(),
            };
            for (number, position) in &acknowledged {
                let message = reader.message(window, *number).unwrap();
                gone += u64::from(message.is_none_or(|message| message.position != *position));
            }
        } else {
            gone += acknowledged.len() as u64;
        }

        log.begin_turn(20 + turn);
        for _ in 0..random.below(4) {
            let payload = vec![turn as u8; random.below(3_000) as usize];
            let slot = log.reserve(payload.len() as u64).unwrap();
            let header = log.header(&slot, 0, crc32c::crc32c(&payload));
            let parts = [&header[..], &payload, &[0; 64][..slot.padding]];
            log.write(&parts.map(IoSlice::new)).unwrap();
            appended.push((slot.number, slot.position));
        }
        // A sync takes some turns; what is written meanwhile is not covered by it.
        if in_flight.is_some() && random.below(2) == 0 {
            let (target, covered) = in_flight.take().unwrap();
            state.borrow_mut().writing.retain(|_, call| *call > covered);
            log.sync_completed(target, Ok(())).unwrap();
            let durable = log.durable();
            let mut pages = state.borrow_mut();
            for position in (promised..durable).step_by(64) {
                pages
                    .promised
                    .insert((DATA_OFFSET + position) as usize / PAGE);
            }
            promised = durable;
            acknowledged = appended
                .iter()
                .copied()
                .filter(|(_, position)| *position < durable)
                .collect();
        }
        if let Some(request) = log.sync_wanted(Instant(turn)) {
            let (target, at) = (request.target, request.superblock.map(|(at, _)| at));
            assert_eq!(at, None, "a second does not pass");
            in_flight = Some((target, state.borrow().calls));
        }
    }
    assert!(acknowledged.len() > 20);
    let rewritten = state.borrow().rewritten;
    (rewritten, gone)
}

/// Ring bytes for each message of 1 KiB, and pages written for each commit, in hundredths, when every
/// commit takes so many messages.
fn cost(commit_align: CommitAlign, batch: u64) -> (u64, u64) {
    let Pages(state) = Pages::empty_ring(2 << 20);
    let (mut log, _) = Log::open(Pages(Rc::clone(&state)), &aligned(commit_align)).unwrap();
    let from = log.written();
    let payload = [7; 1_024];
    let (mut messages, mut pages) = (0, 0);
    let commits = 256 / batch;
    for _ in 0..commits {
        log.begin_turn(20);
        let mut parts = Vec::new();
        for _ in 0..batch {
            let slot = log.reserve(1_024).unwrap();
            parts.push(log.header(&slot, 0, crc32c::crc32c(&payload)).to_vec());
            parts.push(payload.to_vec());
            messages += 1;
        }
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        log.write(&slices).unwrap();
        pages += state.borrow().writing.len() as u64;
        assert!(log.sync_inline(Instant(1)).unwrap());
    }
    ((log.written() - from) / messages, pages * 100 / commits)
}

#[test]
fn commit_align_costs_the_rest_of_a_page_of_the_ring_and_no_more_writing() {
    let costs = [1, 4, 16, 64].map(|batch| {
        (
            batch,
            cost(CommitAlign::Sector, batch),
            cost(CommitAlign::Page, batch),
        )
    });
    println!("{costs:?}");
    for (batch, sector, page) in costs {
        let extent = 1_024 + 64;
        assert_eq!(sector.0, extent);
        assert_eq!(page.0, (batch * extent).next_multiple_of(4_096) / batch);
        assert_eq!(page.1, (batch * extent).div_ceil(4_096) * 100);
        assert!(page.1 < sector.1);
    }
}

/// As [`Area`], for the larger ring.
struct LongArea<'a>(&'a [u8]);

impl Source for LongArea<'_> {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        let at = (DATA_OFFSET + position) as usize;
        out.copy_from_slice(&self.0[at..at + out.len()]);
        Ok(())
    }
}

#[test]
fn with_commit_align_4096_a_torn_page_takes_nothing_that_was_acknowledged() {
    let (mut rewritten, mut gone) = (0, 0);
    for seed in 1..=3 {
        assert_eq!(lose_pages(CommitAlign::Page, seed), (0, 0), "seed {seed}");
        let without = lose_pages(CommitAlign::Sector, seed);
        rewritten += without.0;
        gone += without.1;
    }
    // Without it such a disk does harm: the loop above can fail.
    assert!(rewritten > 10 && gone > 10, "{rewritten} {gone}");
}

/// A disk that has lost what a failed write-back was to bring there: the cache has it, and calls its
/// pages clean.
struct Lying {
    cache: Vec<u8>,
    medium: Vec<u8>,
}

impl Backing for Lying {
    fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let at = at as usize;
        let len = buf.len().min(self.cache.len() - at);
        buf[..len].copy_from_slice(&self.cache[at..at + len]);
        Ok(len)
    }

    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        let at = at as usize;
        buf.copy_from_slice(&self.medium[at..at + buf.len()]);
        true
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let at = at as usize;
        for copy in [&mut self.cache, &mut self.medium] {
            copy[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn recovery_believes_the_medium_and_not_the_cache_behind_the_checkpoint() {
    for commit_align in [CommitAlign::Sector, CommitAlign::Page] {
        let mut writing = Writing::new(Survive::Power, 21);
        writing.rounds(5, false);
        let durable = writing.log().durable();
        let medium = writing.bytes();
        // The sync of these failed: no page of them has reached the disk.
        writing.small();
        writing.small();
        let cache = writing.bytes();
        assert_ne!(cache, medium);
        let mut options = OpenOptions::new(Survive::Power, 1 << 30);
        options.commit_align = commit_align;
        let (log, recovery) = Log::open(Lying { cache, medium }, &options).unwrap();
        assert_eq!(recovery.head, durable);
        assert_eq!(
            (recovery.discarded_records, &recovery.lost[..]),
            (2, &[][..])
        );
        // From now on the two agree wherever anybody reads.
        let disk = log.into_backing();
        let from = Image::place(recovery.tail);
        let to = Image::place(recovery.head) + 64;
        assert_eq!(disk.cache[from..to], disk.medium[from..to]);
        assert_eq!(disk.cache[..from], disk.medium[..from]);
    }
}
