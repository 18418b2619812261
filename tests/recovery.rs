//! The ring after crashes: a disk that loses power, at any call, with any part of what was not synced.

use std::io::IoSlice;

use ringmx::clock::Instant;
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::recover::{self, NewRing, OpenOptions};
use ringmx::ringlog::writer::{Log, Survive};

fn new_ring() -> MemoryBacking {
    let mut backing = MemoryBacking {
        bytes: vec![0; 65_536 + 65_536],
    };
    let new = NewRing {
        ring_id: [7; 16],
        ring_key: 0x5eed,
        data_size: 65_536,
        created_ns: 1,
    };
    recover::format(&mut backing, &new).unwrap();
    backing
}

fn append(log: &mut Log<MemoryBacking>, payload: &[u8]) -> u64 {
    let slot = log.reserve(payload.len() as u64).unwrap();
    let header = log.header(&slot, 0, crc32c::crc32c(payload));
    let padding = [0; 64];
    log.write(&[
        IoSlice::new(&header),
        IoSlice::new(payload),
        IoSlice::new(&padding[..slot.padding]),
    ])
    .unwrap();
    slot.number
}

#[test]
fn ring_that_was_not_closed_opens_with_every_record_and_skips_numbers() {
    let (mut log, recovery) = Log::open(new_ring(), &OpenOptions::new(Survive::Power, 10)).unwrap();
    assert!(recovery.clean);
    assert_eq!(append(&mut log, b"one"), 1);
    assert_eq!(append(&mut log, b"two"), 2);
    let target = log.sync_wanted(Instant(1)).unwrap().target;
    log.sync_completed(target, Ok(())).unwrap();
    assert_eq!(log.durable(), target);

    let (log, recovery) =
        Log::open(log.into_backing(), &OpenOptions::new(Survive::Power, 20)).unwrap();
    assert!(!recovery.clean);
    assert_eq!(recovery.messages, 2);
    assert_eq!(recovery.head, target);
    assert_eq!(recovery.next_number, 3 + 65_536);
    assert_eq!(recovery.epoch, 2);
    let (_, recovery) =
        Log::open(log.close().unwrap(), &OpenOptions::new(Survive::Power, 30)).unwrap();
    assert!(recovery.clean);
    assert_eq!((recovery.messages, recovery.next_number), (2, 3 + 65_536));
}
