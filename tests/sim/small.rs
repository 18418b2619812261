//! Exhaustive in the small: a server that takes a few messages dies at each of its storage calls in turn, and for each
//! of them every subset of the sectors that no sync has covered is what a loss of power leaves.
//!
//! `RINGMX_SIM_SECTORS=n`: up to so many such sectors all subsets are tried (8 if not set); of more, those that lose or
//! keep at most two of them, and as many others at random.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use ringmx::clock::Instant;
use ringmx::envelope::Field;
use ringmx::logger::Logger;
use ringmx::metrics::Metrics;
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::recover::{OpenError, OpenOptions};
use ringmx::ringlog::writer::{FullPolicy, Log, Survive};
use ringmx::server::{Listener, Server, Storage};
use ringmx::smtp::reply;
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::Verb;

use crate::config::Config;
use crate::disk::{SimDisk, new_ring};
use crate::net::{SimStream, Wire};
use crate::random::Random;
use crate::ring;

const DATA_SIZE: u64 = 65_536;
const MESSAGES: usize = 10;
const WALL_NS: u64 = 1_790_000_000_000_000_000;

fn body(index: usize) -> Vec<u8> {
    let line = format!("{}\r\n", (b'a' + index as u8) as char).repeat(100 + 37 * index);
    format!("Subject: {index}\r\n\r\n{line}")
        .repeat(1 + index % 3)
        .into_bytes()
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new(Survive::Power, WALL_NS);
    options.full = FullPolicy::Defer;
    options
}

/// What a life has promised: numbers and which message each of them names.
type Promised = BTreeMap<u64, usize>;

/// One life on this disk, which may say when it dies. It takes ten messages, two in each of five pieces of input, most
/// of which are written while the sync of those before runs.
fn live(disk: &SimDisk) -> Promised {
    let mut promised = Promised::new();
    let Ok((log, _)) = Log::open(disk.clone(), &open_options()) else {
        assert!(disk.0.borrow().dead.get());
        return promised;
    };
    let mut config = Config::choose(&mut Random::new(1));
    config.message_max = 4_000;
    config.sessions_max = 1;
    let context = Context::new(ContextOptions {
        server_name: "mx.sim.example".into(),
        ..ContextOptions::default()
    })
    .expect("a good name");
    let address: SocketAddr = ([127, 0, 0, 1], 2525).into();
    let mut now = Instant(1_000_000_000);
    let mut server: Server<SimStream, SimDisk, SimDisk> = Server::new(
        config.options(),
        vec![context],
        vec![Listener::sink(address)],
        Some(Storage {
            log,
            committer: disk.clone(),
        }),
        Metrics::new(Verb::COUNT, reply::ROWS.len()),
        Logger::disabled(),
        now,
    );
    let wire = Rc::new(std::cell::RefCell::new(Wire::new(
        Random::new(3),
        1 << 20,
        1 << 20,
    )));
    let stream = SimStream {
        wire: Rc::clone(&wire),
        dead: Rc::clone(&disk.0.borrow().dead),
    };
    let mut token = None;
    let mut stream = Some(stream);
    for turn in 0..40 {
        now = Instant(now.0 + 1_000_000);
        if let Some(half) = [2, 5, 6, 9, 14].iter().position(|at| *at == turn) {
            let mut input = Vec::new();
            for index in half * 2..half * 2 + 2 {
                let body = body(index);
                let hello = if index == 0 {
                    "EHLO c.sim.example\r\n"
                } else {
                    ""
                };
                let head = format!(
                    "{hello}MAIL FROM:<m{index}@sim.example>\r\nRCPT TO:<r@sim.example>\r\nBDAT {} LAST\r\n",
                    body.len()
                );
                input.extend_from_slice(head.as_bytes());
                input.extend_from_slice(&body);
            }
            wire.borrow_mut().send(&input);
        }
        wire.borrow_mut().deliver(true);
        disk.0.borrow_mut().now_ns = now.0;
        if turn % 3 == 0 || turn > 20 {
            disk.0.borrow_mut().step_sync();
        }
        server.begin_turn(now, WALL_NS + turn);
        if let Some(stream) = stream.take() {
            let made = server.accept(address, 0, |_| Ok(stream));
            token = made.ok();
        }
        let events = std::mem::take(&mut wire.borrow_mut().events);
        if let Some(token) = token.filter(|_| events.any()) {
            server.ready(token, events.readable, events.writable, events.hung_up);
        }
        server.end_turn();
        for line in
            String::from_utf8_lossy(&std::mem::take(&mut wire.borrow_mut().unchecked)).lines()
        {
            if let Some(number) = line.strip_prefix("250 2.0.0 Ok: stored as 0-") {
                promised.insert(number.parse().expect("a number"), promised.len());
            }
        }
        if disk.0.borrow().dead.get() {
            break;
        }
    }
    if !disk.0.borrow().dead.get() {
        assert_eq!(
            promised.len(),
            MESSAGES,
            "undisturbed, all of them are taken"
        );
    }
    // Nothing that its destructors do reaches anyone.
    disk.0.borrow_mut().dead.set(true);
    promised
}

/// Opens what is left and compares it with what was promised. Twice: the second time changes nothing.
fn check(bytes: &[u8], promised: &Promised, what: &str) {
    let mut left = MemoryBacking {
        bytes: bytes.to_vec(),
    };
    let mut before = None;
    for _ in 0..2 {
        let (log, recovery) =
            Log::open(left, &open_options()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(recovery.lost, [], "{what}");
        let written = log.written();
        left = log.into_backing();
        let newest = ring::superblock(&left.bytes);
        let contents = ring::read(&left.bytes, &newest, newest.tail, written);
        let mut found: Vec<_> = contents.messages.values().collect();
        found.sort_by_key(|stored| stored.position);
        for (index, stored) in found.iter().enumerate() {
            let from = stored.field(Field::ReversePath).expect("there is one");
            assert_eq!(
                from,
                format!("m{index}@sim.example").as_bytes(),
                "{what}: order"
            );
            assert!(stored.body() == body(index), "{what}: body of {index}");
        }
        for (number, index) in promised {
            let stored = contents.messages.get(number);
            let stored = stored.unwrap_or_else(|| panic!("{what}: 0-{number} was promised"));
            assert!(
                stored.body() == body(*index),
                "{what}: 0-{number} is another"
            );
        }
        if let Some(before) = before.replace(contents.messages) {
            assert!(
                before == contents_of(&left.bytes, written),
                "{what}: not once"
            );
        }
    }
}

fn contents_of(bytes: &[u8], head: u64) -> BTreeMap<u64, ring::Stored> {
    let newest = ring::superblock(bytes);
    ring::read(bytes, &newest, newest.tail, head).messages
}

/// Calls `with` for what each loss of power can leave. Returns how many there were.
fn each_loss(disk: &SimDisk, sectors_max: usize, mut with: impl FnMut(&[u8], usize)) -> u64 {
    let disk = disk.0.borrow();
    let differing = disk.differing_sectors();
    let count = differing.len();
    let mut bytes = disk.durable().to_vec();
    let mut tried = 0;
    let mut lose = |kept: &dyn Fn(usize) -> bool| {
        for (index, sector) in differing.iter().enumerate() {
            let range = disk.sector_range(*sector);
            let from = if kept(index) {
                disk.cache()
            } else {
                disk.durable()
            };
            bytes[range.clone()].copy_from_slice(&from[range]);
        }
        tried += 1;
        with(&bytes, tried as usize);
    };
    if count <= sectors_max {
        for subset in 0..1_u64 << count {
            lose(&|index| subset >> index & 1 == 1);
        }
        return tried;
    }
    for first in 0..=count {
        for second in first..=count {
            lose(&|index| index == first || index == second);
            lose(&|index| index != first && index != second);
        }
    }
    let mut random = Random::new(count as u64);
    for _ in 0..1_u64 << sectors_max {
        let subset = random.next();
        lose(&|index| subset >> (index % 64) & 1 == 1);
    }
    tried
}

fn sectors_max() -> usize {
    crate::number("RINGMX_SIM_SECTORS").map_or(8, |count| count as usize)
}

#[test]
fn every_crash_point_times_every_subset_of_unsynced_sectors_keeps_what_was_promised() {
    let ring = new_ring(DATA_SIZE);
    let (mut points, mut losses) = (0, 0);
    loop {
        let disk = SimDisk::new(ring.clone(), Random::new(11));
        disk.0.borrow_mut().dies_at = Some(points + 1);
        let promised = live(&disk);
        let lived = disk.0.borrow().calls <= points;
        losses += each_loss(&disk, sectors_max(), |bytes, loss| {
            check(
                bytes,
                &promised,
                &format!("death at call {}, loss {loss}", points + 1),
            );
        });
        // The end of the process alone loses nothing.
        check(
            disk.0.borrow().cache(),
            &promised,
            &format!("death at call {}", points + 1),
        );
        if lived {
            break;
        }
        points += 1;
    }
    println!("{points} crash points, {losses} losses of power");
    assert!(points > 14, "only {points} storage calls");
}

#[test]
fn every_crash_point_of_a_recovery_times_every_subset_leaves_what_the_next_recovery_needs() {
    // A life that dies in the middle of its commits, with all that it wrote, none of it, or every other sector.
    let ring = new_ring(DATA_SIZE);
    let (mut points, mut losses) = (0, 0);
    let undisturbed = SimDisk::new(ring.clone(), Random::new(11));
    live(&undisturbed);
    let calls = undisturbed.0.borrow().calls;
    // From the first write of a message on.
    for death in 7..=calls {
        let disk = SimDisk::new(ring.clone(), Random::new(11));
        disk.0.borrow_mut().dies_at = Some(death);
        let promised = live(&disk);
        for keep in [0b00, 0b11, 0b01, 0b10] {
            let mut image = disk.0.borrow().durable().to_vec();
            for (index, sector) in disk.0.borrow().differing_sectors().into_iter().enumerate() {
                if keep >> (index % 2) & 1 == 1 {
                    let range = disk.0.borrow().sector_range(sector);
                    image[range.clone()].copy_from_slice(&disk.0.borrow().cache()[range]);
                }
            }
            for call in 1.. {
                let again = SimDisk::new(image.clone(), Random::new(call));
                again.0.borrow_mut().dies_at = Some(call);
                let opened = Log::open(again.clone(), &open_options());
                let what =
                    format!("death at call {death}, {keep:02b} kept, then at {call} of recovery");
                losses += each_loss(&again, sectors_max(), |bytes, loss| {
                    check(bytes, &promised, &format!("{what}, loss {loss}"));
                });
                points += 1;
                match opened {
                    Ok(_) => break,
                    Err(OpenError::Failed(_)) => {}
                    Err(error) => panic!("{what}: {error:?}"),
                }
            }
        }
    }
    println!("{points} crash points of recoveries, {losses} losses of power");
}

/// What a message's content can be made of to look like records.
#[derive(Clone, Copy, Debug)]
enum Forged {
    /// Records of this ring as they stand in it: somebody mails a copy of it.
    Copied,
    /// Records for the very places where they will stand, by somebody who does not know the ring's key.
    WithoutKey,
    /// The same with the key, which is in no message, no page and no log. The durable position that a header can name
    /// is left out: whoever has the key could claim with it that something acknowledged is missing, and the server
    /// would refuse to start rather than believe that nothing is.
    WithKey,
}

fn forge(kind: Forged, key: u64, file: &[u8], begin: u64, aligned: bool) -> Vec<u8> {
    use ringmx::ringlog::format::{DATA_OFFSET, HINT_UNKNOWN, Header, Kind};
    let payload = b"forged message of nobody";
    let mut body = if aligned { Vec::new() } else { vec![b'x'; 8] };
    if matches!(kind, Forged::Copied) {
        body.extend_from_slice(&file[DATA_OFFSET as usize..][..7_936]);
        return body;
    }
    for step in 0..60_u64 {
        let header = Header {
            position: begin + step * 128,
            number: 1_000 + step,
            len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            epoch: 1,
            kind: Kind::Message,
            flags: 0,
            env_len: 0,
            hint_back: HINT_UNKNOWN,
            received_ns: WALL_NS,
        };
        let key = if matches!(kind, Forged::WithKey) {
            key
        } else {
            !key
        };
        body.extend_from_slice(&header.encode(key));
        body.extend_from_slice(payload);
        body.resize(
            body.len().next_multiple_of(64) + if aligned { 0 } else { 8 },
            0,
        );
    }
    body
}

#[test]
fn content_made_of_whole_records_changes_nothing_in_recovery_wherever_it_is_cut() {
    for kind in [Forged::Copied, Forged::WithoutKey, Forged::WithKey] {
        for aligned in [false, true] {
            cut_everywhere(kind, aligned);
        }
    }
}

fn cut_everywhere(kind: Forged, aligned: bool) {
    let ring = new_ring(DATA_SIZE);
    let key = ring::superblock(&ring).ring_key;
    let disk = SimDisk::new(ring, Random::new(5));
    let (mut log, _) = Log::open(disk.clone(), &open_options()).expect("an empty ring");
    let mut expected: Vec<u64> = (0..12).map(|_| append(&mut log, &[b'h'; 600])).collect();
    log.sync_inline(Instant(1)).expect("it lives");
    let body = forge(
        kind,
        key,
        disk.0.borrow().cache(),
        log.written() + 64,
        aligned,
    );
    expected.push(append(&mut log, &body));
    expected.push(append(&mut log, b"behind it"));
    let cache = disk.0.borrow().cache().to_vec();
    let durable = disk.0.borrow().durable().to_vec();
    let sectors = disk.0.borrow().differing_sectors();
    assert!(sectors.len() >= 15, "{} sectors", sectors.len());
    let range = |index: usize| disk.0.borrow().sector_range(sectors[index]);
    let open = |bytes: Vec<u8>, what: &str| {
        let (log, recovery) = Log::open(MemoryBacking { bytes }, &open_options())
            .unwrap_or_else(|error| panic!("{kind:?} {aligned}, {what}: {error:?}"));
        assert_eq!(recovery.lost, [], "{kind:?} {aligned}, {what}");
        let head = log.written();
        let found = contents_of(&log.into_backing().bytes, head);
        let numbers: Vec<u64> = found.keys().copied().collect();
        assert!(
            expected.starts_with(&numbers) && numbers.len() >= 12,
            "{kind:?} {aligned}, {what}: {numbers:?}"
        );
        numbers.len()
    };
    for cut in 0..=sectors.len() {
        // Everything before the cut reached the disk and nothing behind it, or the other way round.
        let mut front = durable.clone();
        let mut back = durable.clone();
        for index in 0..sectors.len() {
            let to = if index < cut { &mut front } else { &mut back };
            to[range(index)].copy_from_slice(&cache[range(index)]);
        }
        open(front, &format!("cut at {cut}"));
        if cut > 0 {
            open(back, &format!("begun at {cut}"));
        }
        // One sector alone is missing, or alone there.
        if cut < sectors.len() {
            let mut hole = cache.clone();
            hole[range(cut)].copy_from_slice(&durable[range(cut)]);
            open(hole, &format!("without {cut}"));
            let mut island = durable.clone();
            island[range(cut)].copy_from_slice(&cache[range(cut)]);
            open(island, &format!("{cut} alone"));
        }
    }
    assert_eq!(open(cache.clone(), "nothing lost"), expected.len());
}

fn append(log: &mut Log<SimDisk>, payload: &[u8]) -> u64 {
    use std::io::IoSlice;
    log.begin_turn(WALL_NS);
    let slot = log.reserve(payload.len() as u64).expect("there is room");
    let header = log.header(&slot, 0, crc32c::crc32c(payload));
    let padding = vec![0; slot.padding];
    log.write(&[&header[..], payload, &padding].map(IoSlice::new))
        .expect("it lives");
    slot.number
}
