//! A disk that notes every write and every flush: a file of a FUSE file system that this process serves. A loop device
//! over it is a block device with a volatile write cache, as a disk has one.
//!
//! Only what the loop driver asks for is answered: one file, its attributes, reads, writes and syncs. The numbers are
//! those of linux/fuse.h.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::mounts;

pub const BLOCK: usize = 4_096;
/// Longest write that the kernel hands over at once.
const WRITE_MAX: usize = 1 << 20;

const INIT: u32 = 26;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
/// Requests without an answer: FORGET, INTERRUPT, BATCH_FORGET.
const UNANSWERED: [u32; 3] = [2, 36, 42];
const ENOSYS: i32 = 38;

/// What is on a disk, by block; what is not there is zero.
#[derive(Clone, Default)]
pub struct Blocks(HashMap<u64, Box<[u8; BLOCK]>>);

impl Blocks {
    pub fn load(image: &Path) -> Blocks {
        let mut blocks = Blocks::default();
        let octets = fs::read(image).unwrap();
        for (index, block) in octets.chunks_exact(BLOCK).enumerate() {
            if block.iter().any(|&octet| octet != 0) {
                blocks.write((index * BLOCK) as u64, block);
            }
        }
        blocks
    }

    /// Writes the image as a file of `bytes`.
    pub fn store(&self, image: &Path, bytes: u64) {
        use std::os::unix::fs::FileExt;
        mounts::empty_image(image, bytes);
        let file = File::options().write(true).open(image).unwrap();
        for (index, block) in &self.0 {
            file.write_all_at(&block[..], index * BLOCK as u64).unwrap();
        }
    }

    pub fn write(&mut self, at: u64, mut octets: &[u8]) {
        let mut at = at as usize;
        while !octets.is_empty() {
            let within = at % BLOCK;
            let n = octets.len().min(BLOCK - within);
            let block = self
                .0
                .entry((at / BLOCK) as u64)
                .or_insert_with(|| Box::new([0; BLOCK]));
            block[within..within + n].copy_from_slice(&octets[..n]);
            octets = &octets[n..];
            at += n;
        }
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        let mut done = 0;
        while done < len {
            let place = at as usize + done;
            let within = place % BLOCK;
            let n = (len - done).min(BLOCK - within);
            if let Some(block) = self.0.get(&((place / BLOCK) as u64)) {
                octets[done..done + n].copy_from_slice(&block[within..within + n]);
            }
            done += n;
        }
        octets
    }
}

/// What happened, in its order. `N` is what the test adds.
pub enum Event<N> {
    Write {
        at: u64,
        octets: Vec<u8>,
    },
    /// Everything before it is on the disk.
    Flush,
    Note(N),
}

/// Disk and history under one lock: a note stands behind the writes that were answered before it.
pub struct History<N> {
    pub events: Vec<Event<N>>,
    blocks: Blocks,
    bytes: u64,
}

/// A disk in a file, recorded.
pub struct Disk<N> {
    file: PathBuf,
    history: Arc<Mutex<History<N>>>,
    server: Option<JoinHandle<()>>,
}

impl<N: Send + 'static> Disk<N> {
    /// Serves `blocks` as the file `file`, which is made.
    pub fn serve(file: &Path, blocks: Blocks, bytes: u64) -> Disk<N> {
        fs::write(file, "").unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let mut command = Command::new("/bin/mount");
        // Without a helper program; the descriptor is its standard input. The root of the file system is a file.
        command
            .args(["-i", "-t", "fuse", "-o"])
            .arg("fd=0,rootmode=100000,user_id=0,group_id=0")
            .args([Path::new("ringmx-disk"), file])
            .stdin(Stdio::from(device.try_clone().unwrap()));
        let status = command.status().unwrap();
        assert!(status.success(), "{command:?}");
        let history = Arc::new(Mutex::new(History {
            events: Vec::new(),
            blocks,
            bytes,
        }));
        let theirs = history.clone();
        let server = std::thread::spawn(move || answer_all(device, &theirs));
        Disk {
            file: file.to_owned(),
            history,
            server: Some(server),
        }
    }

    pub fn history(&self) -> MutexGuard<'_, History<N>> {
        self.history.lock().unwrap()
    }

    /// Something that clients can use to add notes.
    pub fn notes(&self) -> impl Fn(N) + Clone + Send + 'static {
        let history = self.history.clone();
        move |note| history.lock().unwrap().events.push(Event::Note(note))
    }
}

impl<N> Drop for Disk<N> {
    fn drop(&mut self) {
        let unmounted = Command::new("/bin/umount").arg(&self.file).status();
        if unmounted.is_ok_and(|status| status.success()) {
            // The device says so to whoever reads it.
            let _ = self.server.take().map(JoinHandle::join);
        }
    }
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(octets[at..at + 4].try_into().unwrap())
}

fn u64_at(octets: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(octets[at..at + 8].try_into().unwrap())
}

fn answer_all<N>(mut device: File, history: &Mutex<History<N>>) {
    let mut buf = vec![0; WRITE_MAX + 2 * BLOCK];
    loop {
        let len = match device.read(&mut buf) {
            Ok(0) => return,
            Ok(len) => len,
            // A request was withdrawn while it was read.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NotFound) => {
                continue;
            }
            Err(_) => return,
        };
        let (operation, unique) = (u32_at(&buf, 4), u64_at(&buf, 8));
        if UNANSWERED.contains(&operation) {
            continue;
        }
        let answer = answer(operation, &buf[40..len], &mut history.lock().unwrap());
        let (error, payload) = match answer {
            Ok(payload) => (0, payload),
            Err(error) => (-error, Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + payload.len());
        reply.extend_from_slice(&(16 + payload.len() as u32).to_le_bytes());
        reply.extend_from_slice(&error.to_le_bytes());
        reply.extend_from_slice(&unique.to_le_bytes());
        reply.extend_from_slice(&payload);
        // Whoever asked may have been interrupted.
        let _ = device.write_all(&reply);
    }
}

fn answer<N>(operation: u32, body: &[u8], history: &mut History<N>) -> Result<Vec<u8>, i32> {
    Ok(match operation {
        INIT => init_out(),
        GETATTR | SETATTR => attr_out(history.bytes),
        OPEN => {
            let mut out = vec![0; 16];
            // FOPEN_DIRECT_IO: the kernel keeps no pages of its own over the disk.
            out[8] = 1;
            out
        }
        READ => {
            let (at, len) = (u64_at(body, 8), u32_at(body, 16) as usize);
            let len = len.min(history.bytes.saturating_sub(at) as usize);
            history.blocks.read(at, len)
        }
        WRITE => {
            let (at, len) = (u64_at(body, 8), u32_at(body, 16) as usize);
            let octets = body[40..40 + len].to_vec();
            history.blocks.write(at, &octets);
            history.events.push(Event::Write { at, octets });
            [(len as u32).to_le_bytes(), [0; 4]].concat()
        }
        FSYNC => {
            history.events.push(Event::Flush);
            Vec::new()
        }
        RELEASE | FLUSH => Vec::new(),
        _ => return Err(ENOSYS),
    })
}

fn init_out() -> Vec<u8> {
    const MINOR: u32 = 31;
    // BIG_WRITES, MAX_PAGES.
    const FLAGS: u32 = 1 << 5 | 1 << 22;
    let mut out = Vec::new();
    for word in [7, MINOR, 0, FLAGS] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    for half in [16, 12] {
        out.extend_from_slice(&u16::to_le_bytes(half));
    }
    out.extend_from_slice(&(WRITE_MAX as u32).to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&((WRITE_MAX / BLOCK) as u16).to_le_bytes());
    out.resize(64, 0);
    out
}

fn attr_out(bytes: u64) -> Vec<u8> {
    let mut out = vec![0; 16];
    for word in [1, bytes, bytes / 512, 0, 0, 0] {
        out.extend_from_slice(&u64::to_le_bytes(word));
    }
    // Nanoseconds of three times, mode, links, user, group, device, size of a block, flags.
    for word in [0, 0, 0, 0o100_600, 1, 0, 0, 0, BLOCK as u32, 0] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    out
}
