//! Cost of appending to the ring: header, checksum, one vectored write per batch.
//!
//! `cargo bench --bench ring_append -- [DIR]` writes to a ring in DIR (a directory that it creates
//! and removes again), or in memory without one. Prints nanoseconds per message for each message
//! size and batch, with the durability level; a batch is followed by one sync under `power`.

use std::io::IoSlice;
use std::path::Path;

use ringmx::clock::Clock;
use ringmx::ringlog::backing::FileBacking;
use ringmx::ringlog::directory::{self, CreateOptions};
use ringmx::ringlog::recover::OpenOptions;
use ringmx::ringlog::writer::{Log, Survive};

const DATA_BYTES: u64 = 64 << 20;
const BYTES_PER_RUN: usize = 256 << 20;

fn main() {
    // Cargo passes --bench.
    let dir = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    println!("survive  size     batch  ns/message  MB/s");
    for survive in [Survive::Nothing, Survive::Process, Survive::Power] {
        if survive != Survive::Nothing && dir.is_none() {
            continue;
        }
        for (size, batch) in [
            (1_024, 1),
            (1_024, 32),
            (10_240, 8),
            (102_400, 2),
            (1 << 20, 1),
        ] {
            let ns = match (survive, &dir) {
                (Survive::Nothing, _) | (_, None) => {
                    let options = OpenOptions::new(survive, 1);
                    let (log, _) = directory::memory_ring(DATA_BYTES, &options).expect("memory");
                    run(log, size, batch)
                }
                (_, Some(dir)) => in_directory(Path::new(dir), survive, size, batch),
            };
            let rate = size as f64 * 1_000.0 / ns;
            println!("{survive:<8?} {size:<8} {batch:<6} {ns:<11.0} {rate:.0}");
        }
    }
}

fn in_directory(dir: &Path, survive: Survive, size: usize, batch: usize) -> f64 {
    let shard = dir.join("ring-append-bench");
    let create = CreateOptions {
        data_size: DATA_BYTES,
        group: false,
        wall_ns: 1,
    };
    directory::create_ring(&shard, &create, &mut |_, _| {}).expect("create the ring");
    let options = OpenOptions::new(survive, 1);
    let (log, _) = directory::open_ring(&shard, &options, None).expect("open the ring");
    let ns = run(log, size, batch);
    std::fs::remove_dir_all(&shard).expect("remove the ring");
    ns
}

/// Nanoseconds per message.
fn run(mut log: Log<FileBacking>, size: usize, batch: usize) -> f64 {
    let clock = Clock::new();
    let payload = vec![b'x'; size];
    let padding = [0; 64];
    let messages = (BYTES_PER_RUN / size / 8).max(64) / batch * batch;
    let mut headers = vec![([0; 64], 0); batch];
    let start = clock.now();
    for turn in 0..messages / batch {
        log.begin_turn(turn as u64);
        for header in &mut headers {
            let slot = log.reserve(size as u64).expect("space");
            let crc = crc32c::crc32c(&payload);
            *header = (log.header(&slot, 0, crc), slot.padding);
        }
        let mut parts = Vec::with_capacity(3 * batch);
        for (header, pad) in &headers {
            parts.push(IoSlice::new(header));
            parts.push(IoSlice::new(&payload));
            parts.push(IoSlice::new(&padding[..*pad]));
        }
        log.write(&parts).expect("write");
        log.sync_inline(clock.now()).expect("sync");
    }
    clock.now().since_ns(start) as f64 / messages as f64
}
