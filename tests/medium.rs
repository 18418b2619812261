//! A disk that fails to write, under a real file system: a loop device whose end is moved to the
//! front while the file system is mounted, so that every write behind it fails with EIO; afterwards
//! the disk works again. Needs root, losetup, mkfs.ext4 and filefrag, and is skipped by name without.

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringmx::clock::{Clock, Instant};
use ringmx::ringlog::backing::FileBacking;
use ringmx::ringlog::directory::{CreateOptions, create_ring, open_ring};
use ringmx::ringlog::format::DATA_OFFSET;
use ringmx::ringlog::recover::{OpenError, OpenOptions, Recovery};
use ringmx::ringlog::writer::{Log, Survive};
use ringmx::sys::wait;

/// A file system on a loop device, taken down at the end.
struct Disk {
    dir: PathBuf,
    device: Option<String>,
    mounted: bool,
}

fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command).args(arguments).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!(
            "{command} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

impl Disk {
    fn new() -> Result<Disk, String> {
        let dir = std::env::temp_dir().join(format!("ringmx-medium-{}", std::process::id()));
        let mut disk = Disk {
            dir,
            device: None,
            mounted: false,
        };
        fs::create_dir_all(disk.dir.join("disk")).map_err(|error| error.to_string())?;
        run("truncate", &["-s", "32M", &disk.path("image")])?;
        let device = run("losetup", &["-f", "--show", &disk.path("image")])?;
        disk.device = Some(device.clone());
        // Without a journal a failed write is a failed write and not the end of the file system; with
        // pages for blocks all of its own data stands in front.
        let options = [
            "-q",
            "-b",
            "4096",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0",
        ];
        run("mkfs.ext4", &[&options[..], &[&device]].concat())?;
        run("filefrag", &["-V"])?;
        disk.mount()?;
        Ok(disk)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn mount(&mut self) -> Result<(), String> {
        let device = self.device.clone().unwrap_or_default();
        run("mount", &[&device, &self.path("disk")])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        run("umount", &[&self.path("disk")])?;
        self.mounted = false;
        Ok(())
    }

    /// From now on nothing can be written at or behind byte `at` of the file, where the disk has zeros.
    fn fail_from(&self, file: &Path, at: u64) {
        run("sync", &["-f", &self.path("disk")]).unwrap();
        let places = run("filefrag", &["-v", file.to_str().unwrap()]).unwrap();
        let first = places
            .lines()
            .find(|line| line.trim_start().starts_with("0:"));
        let physical = first.unwrap().split(':').nth(2).unwrap();
        let block: u64 = physical.split("..").next().unwrap().trim().parse().unwrap();
        self.resize(block * 4_096 + at);
    }

    fn heal(&self) {
        self.resize(32 << 20);
    }

    fn resize(&self, bytes: u64) {
        run("truncate", &["-s", &bytes.to_string(), &self.path("image")]).unwrap();
        run("losetup", &["-c", self.device.as_ref().unwrap()]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run("umount", &["-l", &self.path("disk")]);
        }
        if let Some(device) = &self.device {
            let _ = run("losetup", &["-d", device]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn open(dir: &Path) -> (Log<FileBacking>, Recovery) {
    let options = OpenOptions::new(Survive::Power, 100);
    let clock = Clock::new();
    loop {
        match open_ring(dir, &options, None) {
            // A process that was just started holds copies of all descriptors for a moment.
            Err(OpenError::InUse) if clock.now().0 < 5_000_000_000 => {
                wait::readable(&[], Some(std::time::Duration::from_millis(5))).unwrap();
            }
            result => return result.unwrap(),
        }
    }
}

fn append(log: &mut Log<FileBacking>, letter: u8, len: usize) {
    log.begin_turn(100);
    let payload = vec![letter; len];
    let slot = log.reserve(payload.len() as u64).unwrap();
    let header = log.header(&slot, 0, crc32c::crc32c(&payload));
    let parts = [&header[..], &payload, &[0; 64][..slot.padding]];
    log.write(&parts.map(IoSlice::new)).unwrap();
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_alone_is_not_believed_by_the_next_start() {
    let mut disk = match Disk::new() {
        Ok(disk) => disk,
        Err(reason) => {
            println!("skipped: a disk that fails to write: {reason}");
            return;
        }
    };
    let dir = disk.dir.join("disk/shard-0");
    let create = CreateOptions {
        data_size: 2 << 20,
        group: false,
        wall_ns: 1,
    };
    create_ring(&dir, &create, &mut |_, _| {}).unwrap();
    let (mut log, _) = open(&dir);
    append(&mut log, b'a', 1_000);
    assert!(log.sync_inline(Instant(1)).unwrap());
    let durable = log.durable();
    let place = DATA_OFFSET + durable.next_multiple_of(4_096);
    disk.fail_from(&dir.join("ring"), place);
    append(&mut log, b'b', 20_000);
    let failed = log.sync_inline(Instant(2)).unwrap_err();
    assert_eq!(failed.operation, "sync");
    assert!(
        [libc::EIO, libc::ENOSPC].contains(&failed.errno),
        "{failed}"
    );
    assert_eq!(log.durable(), durable);
    drop(log);
    disk.heal();
    // The kernel gives the new bytes to whoever asks.
    let mut cached = [0; 100];
    let at = DATA_OFFSET + durable + 10_000;
    let ring = File::open(dir.join("ring")).unwrap();
    ring.read_exact_at(&mut cached, at).unwrap();
    let lies = cached == [b'b'; 100];
    drop(ring);
    let (mut log, recovery) = open(&dir);
    assert_eq!(
        (recovery.head, recovery.messages),
        (durable, 1),
        "cache lies: {lies}"
    );
    assert_eq!(recovery.lost, []);
    append(&mut log, b'c', 9_000);
    assert!(log.sync_inline(Instant(3)).unwrap());
    let written = log.written();
    drop(log);
    // What the disk has is what recovery said.
    disk.unmount().unwrap();
    disk.mount().unwrap();
    let (log, recovery) = open(&dir);
    assert_eq!((recovery.head, recovery.messages), (written, 2));
    assert_eq!((recovery.lost, recovery.discarded_records), (vec![], 0));
    drop(log.close().unwrap());
    println!("the cache lied: {lies}");
}
