//! `ringmx ring`: creates a ring without a server, gives one another size, and measures the disk
//! under one.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cli::words::Words;
use crate::cli::{EXIT_FAILURE, EXIT_OK, EXIT_STORAGE, EXIT_USAGE, complain, print};
use crate::clock::Clock;
use crate::config::units;
use crate::limits::{KIB, MIB, RING_BYTES_DEFAULT, RING_BYTES_MIN, RING_BYTES_STEP};
use crate::log_cli::RING_DIR_DEFAULT;
use crate::log_cli::view::shards;
use crate::ringlog::backing::{Backing, FileBacking, WriteMethod, fill_with_zeros};
use crate::ringlog::copy::CopyError;
use crate::ringlog::directory::{CreateOptions, ResizeError, create_ring, resize_ring};
use crate::ringlog::recover::OpenError;

/// Text of `ringmx ring --help`.
pub const HELP: &str = "\
Usage: ringmx ring create [--ring DIR] [--ring-size SIZE]
       ringmx ring resize [--ring DIR] --ring-size SIZE
       ringmx ring bench-disk [--ring DIR]

create      makes an empty ring in DIR/shard-0 (./ringmx-data, 1GiB); an existing one is not touched.
            `ringmx serve` makes its ring itself; this is for a size or a place chosen before.
resize      copies what the ring keeps into one of another size, which takes its place by one rename: ids,
            numbers, times and consumers stay. Stop the server and the consumers first. Needs space for both
            rings; at any moment of it the whole ring of before or of after is there.
bench-disk  writes and syncs records of several sizes for some seconds into a file of its own in DIR, deletes
            it, and prints syncs per second and their times: what one commit costs on this disk.

Exit codes: 0 done; 1 there is a ring already, it is in use, or its messages do not fit; 2 usage; 74 the
disk failed or is full, or the ring is damaged.
";

/// Bytes of the file that bench-disk writes.
const BENCH_FILE_BYTES: u64 = 64 * MIB;
/// Time for each size, seconds.
const BENCH_SECONDS: f64 = 1.0;

/// Runs `ringmx ring`; returns the exit code.
pub fn run(args: &[String]) -> i32 {
    let mut ring = PathBuf::from(RING_DIR_DEFAULT);
    let mut ring_size = None;
    let mut command = None;
    let mut args = Words::new(args);
    while let Some((flag, arg)) = args.next() {
        match flag {
            "--help" | "-h" => return print(HELP),
            "--ring" | "--ring-size" => {
                let value = match args.value(flag) {
                    Ok(value) => value,
                    Err(reason) => return usage(&reason),
                };
                if flag == "--ring" {
                    ring = PathBuf::from(value);
                } else {
                    match units::parse_size(&value) {
                        Ok(size) => ring_size = Some(size),
                        Err(reason) => return usage(&format!("--ring-size: {reason}")),
                    }
                }
            }
            "create" | "resize" | "bench-disk" if command.is_none() => {
                command = Some(flag.to_owned());
            }
            _ => return usage(&format!("unexpected argument '{}'", arg.escape_debug())),
        }
    }
    match command.as_deref() {
        Some("create") => create(&ring, ring_size.unwrap_or(RING_BYTES_DEFAULT)),
        Some("resize") => match ring_size {
            Some(size) => resize(&ring, size),
            None => usage("resize needs --ring-size"),
        },
        Some(_) => bench_disk(&ring),
        None => usage("create, resize or bench-disk?"),
    }
}

fn resize(ring: &Path, size: u64) -> i32 {
    if size < RING_BYTES_MIN {
        return usage("--ring-size: at least 2MiB");
    }
    let size = size.next_multiple_of(RING_BYTES_STEP);
    let shards = match shards(ring) {
        Ok(shards) => shards,
        Err(failure) => return usage(&failure.to_string()),
    };
    for shard in shards {
        let dir = shard.path.display();
        match resize_ring(&shard.path, size, Clock::new().wall_ns()) {
            Ok(resized) => {
                let code = print(&format!(
                    "Resized the ring in {dir} from {} to {} MiB; {} messages moved\n",
                    resized.data_size_before / MIB,
                    size / MIB,
                    resized.messages
                ));
                if code != EXIT_OK {
                    return code;
                }
            }
            Err(error) => {
                complain(&format!("ringmx: ring: {dir}: {error}\n"));
                return match error {
                    ResizeError::Open(OpenError::Missing) => EXIT_USAGE,
                    ResizeError::Open(OpenError::InUse)
                    | ResizeError::Copy(CopyError::Full | CopyError::TooLarge { .. }) => {
                        EXIT_FAILURE
                    }
                    _ => EXIT_STORAGE,
                };
            }
        }
    }
    EXIT_OK
}

fn usage(reason: &str) -> i32 {
    complain(&format!("ringmx: ring: {reason}\n"));
    EXIT_USAGE
}

fn create(ring: &Path, size: u64) -> i32 {
    if size < RING_BYTES_MIN {
        return usage("--ring-size: at least 2MiB");
    }
    let options = CreateOptions {
        data_size: size.next_multiple_of(RING_BYTES_STEP),
        group: false,
        wall_ns: Clock::new().wall_ns(),
    };
    let dir = ring.join("shard-0");
    match create_ring(&dir, &options, &mut |_, _| {}) {
        Ok(()) => print(&format!(
            "Created a ring of {} MiB in {}\n",
            options.data_size / MIB,
            dir.display()
        )),
        Err(error) => {
            complain(&format!("ringmx: ring: {}: {error}\n", dir.display()));
            match error {
                OpenError::Exists | OpenError::InUse => EXIT_FAILURE,
                _ => EXIT_STORAGE,
            }
        }
    }
}

fn bench_disk(dir: &Path) -> i32 {
    let path = dir.join(format!("bench-disk-{}", std::process::id()));
    let result = std::fs::create_dir_all(dir).and_then(|()| measure(&path));
    let _ = std::fs::remove_file(&path);
    match result {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&format!("ringmx: ring: {}: {error}\n", path.display()));
            EXIT_STORAGE
        }
    }
}

fn measure(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    fill_with_zeros(&file, BENCH_FILE_BYTES, &mut |_| {})?;
    file.sync_all()?;
    let mut backing = FileBacking::new(file, WriteMethod::Pwrite)?;
    print("bytes per sync   syncs/s    p50 us    p99 us   max us      MB/s\n");
    for size in [512, 4 * KIB, 64 * KIB, MIB] {
        let data = vec![0x5a; size as usize];
        let mut times_us = Vec::new();
        let started = Instant::now();
        let mut at = 0;
        while started.elapsed().as_secs_f64() < BENCH_SECONDS {
            let begun = Instant::now();
            backing.write_at(&[IoSlice::new(&data)], at)?;
            backing.sync()?;
            times_us.push(begun.elapsed().as_micros());
            at = (at + size) % BENCH_FILE_BYTES;
        }
        let seconds = started.elapsed().as_secs_f64();
        times_us.sort_unstable();
        let count = times_us.len();
        let quantile = |share: f64| times_us[((count - 1) as f64 * share) as usize];
        print(&format!(
            "{size:>14} {:>9.0} {:>9} {:>9} {:>8} {:>9.1}\n",
            count as f64 / seconds,
            quantile(0.5),
            quantile(0.99),
            quantile(1.0),
            count as f64 * size as f64 / seconds / 1e6
        ));
    }
    Ok(())
}
