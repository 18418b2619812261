//! Access to the rings of a directory for tools and consumers: through a running server, or without
//! one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::{self, Clock};
use crate::ctl::{Client, ClientError, Progress, Refusal};
use crate::limits::{RECORD_HEADER_BYTES, SHARDS_MAX};
use crate::ringlog::consumer::{Step, Walk};
use crate::ringlog::format::{
    ConsumerName, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, SuperblockError,
};
use crate::ringlog::reader::{PIECE_BYTES, Reader, Source, Window};
use crate::ringlog::writer::CHECKPOINT_BYTES;
use crate::sys::bus_error;
use crate::sys::file::{Lock, try_lock};
use crate::sys::mmap::RingMap;
use crate::sys::wait;

/// Exit code: anything that is none of the others.
pub const EXIT_OTHER: i32 = 1;
/// Exit code: usage or configuration.
pub const EXIT_USAGE: i32 = 2;
/// Exit code: the storage failed or its contents are damaged.
pub const EXIT_STORAGE: i32 = 74;

/// Why a tool ends: one sentence for the user, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code of the process.
    pub code: i32,
    /// One sentence, lower case, without a full stop. Empty when there is nothing to say (closed
    /// output).
    pub text: String,
    /// A shard does not know the consumer that it was asked about.
    pub unknown_consumer: bool,
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(code: i32, text: impl Into<String>) -> Failure {
        Failure {
            code,
            text: text.into(),
            unknown_consumer: false,
        }
    }

    /// A failure of the kind "anything else".
    pub fn other(text: impl Into<String>) -> Failure {
        Failure {
            code: EXIT_OTHER,
            text: text.into(),
            unknown_consumer: false,
        }
    }

    /// A mistake in the arguments or in what they name.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure {
            code: EXIT_USAGE,
            text: text.into(),
            unknown_consumer: false,
        }
    }

    /// The storage failed or is damaged.
    pub fn storage(text: impl Into<String>) -> Failure {
        Failure {
            code: EXIT_STORAGE,
            text: text.into(),
            unknown_consumer: false,
        }
    }

    /// Writing the output failed: nothing to say when its reader has left, as `head` does.
    pub fn output(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure {
                code: 0,
                text: String::new(),
                unknown_consumer: false,
            },
            _ => Failure::other(format!("writing the output: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure {
            unknown_consumer: matches!(error, ClientError::Refused(Refusal::NoSuchConsumer)),
            ..Failure::other(error.to_string())
        }
    }
}

/// The data area of a ring: a map, or a file where it can't be mapped.
#[derive(Debug)]
pub enum RingSource {
    /// Mapped twice back to back.
    Map(RingMap),
    /// Read in pieces of at most [`PIECE_BYTES`]: on some file systems a longer read stalls the
    /// writer.
    File {
        /// The ring file.
        file: File,
        /// Where the data area begins, bytes.
        data_offset: u64,
        /// Its size, bytes.
        data_size: u64,
    },
}

impl RingSource {
    /// Maps the ring, or falls back to reading the file.
    pub fn new(file: File, superblock: &Superblock) -> RingSource {
        let (data_offset, data_size) = (superblock.data_offset, superblock.data_size);
        bus_error::exit_on_bus_error();
        match RingMap::new(file.as_fd(), data_offset, data_size) {
            Ok(map) => RingSource::Map(map),
            Err(_) => RingSource::File {
                file,
                data_offset,
                data_size,
            },
        }
    }
}

impl Source for RingSource {
    fn read(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            RingSource::Map(map) => match map.copy_to(position, out) {
                true => Ok(()),
                false => Err(io::Error::from(io::ErrorKind::InvalidInput)),
            },
            RingSource::File {
                file,
                data_offset,
                data_size,
            } => {
                let mut at = position;
                for piece in out.chunks_mut(PIECE_BYTES as usize) {
                    let place = at % data_size;
                    let room = usize::try_from(data_size - place).unwrap_or(usize::MAX);
                    let (head, wrapped) = piece.split_at_mut(room.min(piece.len()));
                    file.read_exact_at(head, data_offset + place)?;
                    file.read_exact_at(wrapped, *data_offset)?;
                    at += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

/// The directory of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDir {
    /// Number of the shard.
    pub shard: u32,
    /// `DIR/shard-N`.
    pub path: PathBuf,
}

/// The shards below `dir`, by number.
///
/// # Errors
/// Usage, when there is none.
pub fn shards(dir: &Path) -> Result<Vec<ShardDir>, Failure> {
    let missing = |error: &dyn fmt::Display| {
        Failure::usage(format!(
            "no ring in '{}': {error} ('ringmx serve --ring {}' makes one)",
            dir.display(),
            dir.display()
        ))
    };
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(&error),
        io::ErrorKind::PermissionDenied => Failure::usage(format!(
            "looking into '{}': {error}; its server's user may, and the members of its --group",
            dir.display()
        )),
        _ => Failure::storage(format!("looking into '{}': {error}", dir.display())),
    };
    let mut found = Vec::new();
    let mut is_empty_shard = false;
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        if let Some(shard) = number.and_then(|number| number.parse().ok())
            && shard < SHARDS_MAX as u32
        {
            // A worker that is just starting has made the directory and not yet the ring.
            if !entry.path().join("ring").exists() && !entry.path().join("ctl").exists() {
                is_empty_shard = true;
                continue;
            }
            found.push(ShardDir {
                shard,
                path: entry.path(),
            });
        }
    }
    if found.is_empty() {
        return Err(match is_empty_shard {
            true => missing(&"a ring in memory (--survive nothing) ends with its server"),
            false => missing(&"there is no 'shard-0'"),
        });
    }
    found.sort_by_key(|shard| shard.shard);
    Ok(found)
}

/// Reads the newest valid superblock of a ring file.
///
/// # Errors
/// Storage, when the file cannot be read or holds none; usage, when it is of a newer format.
pub fn read_superblock(file: &File, name: &Path) -> Result<Superblock, Failure> {
    let mut best: Option<Superblock> = None;
    let mut problem = SuperblockError::Magic;
    for offset in SUPERBLOCK_OFFSETS {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => {
                return Err(Failure::storage(format!(
                    "reading '{}': {error}",
                    name.display()
                )));
            }
        }
        match Superblock::decode(&bytes) {
            Ok(found) => {
                if best
                    .as_ref()
                    .is_none_or(|best| best.generation < found.generation)
                {
                    best = Some(found);
                }
            }
            Err(newer @ SuperblockError::Newer { .. }) => problem = newer,
            Err(error) if problem == SuperblockError::Magic => problem = error,
            Err(_) => {}
        }
    }
    match (best, problem) {
        // A newer program has begun to write here: what it means by the other superblock is not
        // known.
        (_, SuperblockError::Newer { major, minor, .. }) => Err(Failure::usage(format!(
            "'{}' has format {major}.{minor}, which this ringmx does not know: use a newer one",
            name.display()
        ))),
        (Some(best), _) => Ok(best),
        (None, SuperblockError::Magic) => Err(Failure::usage(format!(
            "'{}' is no ring of ringmx",
            name.display()
        ))),
        (None, _) => Err(Failure::storage(format!(
            "both superblocks of '{}' are damaged",
            name.display()
        ))),
    }
}

/// The consumers that are registered in a shard: its server knows best, if one runs. None where there is no ring yet.
///
/// # Errors
/// The ring can't be read, or its server refuses to tell.
pub fn registered(dir: &ShardDir) -> Result<Vec<ConsumerName>, Failure> {
    if let Ok(mut client) = Client::connect(&dir.path.join("ctl")) {
        match client.list() {
            Ok(listed) => {
                let names = listed.iter().map(|row| ConsumerName::new(&row.name));
                return Ok(names.flatten().collect());
            }
            // It ended meanwhile; what it knew is in its superblock.
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let path = dir.path.join("ring");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let superblock = read_superblock(&open_ring(&path)?, &path)?;
    let consumers = superblock.consumers.iter().flatten();
    Ok(consumers.map(|consumer| consumer.name).collect())
}

/// Opens the ring file of a shard for reading only.
fn open_ring(path: &Path) -> Result<File, Failure> {
    let mut options = File::options();
    options.read(true).custom_flags(NO_FOLLOW);
    options.open(path).map_err(|error| {
        let text = format!("opening '{}': {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Failure::usage(text),
            _ => Failure::storage(text),
        }
    })
}

/// O_NOFOLLOW: the ring is never a symbolic link.
const NO_FOLLOW: i32 = wait::O_NOFOLLOW;
/// Time for which a locked ring without an answering server is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// One shard, ready to be read.
#[derive(Debug)]
pub struct View {
    /// Reads its records.
    pub reader: Reader<RingSource>,
    /// What may be read; [`View::refresh`] brings it up to date.
    pub window: Window,
    superblock: Superblock,
    /// Kept for reading superblocks, and because the shared lock lives as long as it.
    file: File,
    client: Option<Client>,
    next_number: u64,
}

impl View {
    /// Connects to the server of the shard, or reads without one under a shared lock.
    ///
    /// # Errors
    /// Usage, when there is no ring; other, when it is in use and nobody answers; storage.
    pub fn open(dir: &ShardDir) -> Result<View, Failure> {
        let clock = Clock::new();
        loop {
            if let Some(view) = View::live(dir)? {
                return Ok(view);
            }
            if let Some(view) = View::offline(dir)? {
                return Ok(view);
            }
            // A server that is starting or ending, or a consumer that reads without one.
            if clock.now().0 > clock::nanos(LOCK_WAIT) {
                return Err(Failure::other(format!(
                    "the ring in '{}' is in use and its server does not answer",
                    dir.path.display()
                )));
            }
            wait::readable(&[], Some(Duration::from_millis(20)))
                .map_err(|error| Failure::other(format!("waiting: {error}")))?;
        }
    }

    /// Connects to the server of the shard; `None` when none runs.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn live(dir: &ShardDir) -> Result<Option<View>, Failure> {
        let mut client = match Client::connect(&dir.path.join("ctl")) {
            Ok(client) => client,
            Err(ClientError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Failure::usage(format!(
                    "the server of '{}' may not be asked: {error}",
                    dir.path.display()
                )));
            }
            // It died between taking the connection and answering.
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let descriptor = client
            .take_descriptor()
            .ok_or_else(|| Failure::other("the server sent no descriptor of its ring"))?;
        let file = File::from(descriptor);
        match client.watch() {
            Err(error) if error.is_gone() => return Ok(None),
            result => result?,
        }
        let mut view = View::build(file, dir)?;
        view.window = window(client.progress());
        view.next_number = client.progress().next_number;
        view.client = Some(client);
        Ok(Some(view))
    }

    /// Reads without a server: what the checkpoint covers and what an unbroken chain behind it
    /// holds. `None` when another process holds the ring.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn offline(dir: &ShardDir) -> Result<Option<View>, Failure> {
        let file = open_ring(&dir.path.join("ring"))?;
        let locked = try_lock(&file, Lock::Shared)
            .map_err(|error| Failure::storage(format!("locking the ring: {error}")))?;
        if !locked {
            return Ok(None);
        }
        let mut view = View::build(file, dir)?;
        let Superblock {
            tail, checkpoint, ..
        } = view.superblock;
        let failed = |error: io::Error| Failure::storage(format!("reading the ring: {error}"));
        let (mut end, mut last) = view.reader.verified_end(tail, checkpoint).map_err(failed)?;
        // Where the chain breaks off, acknowledged records may be damaged and others follow. How far
        // a server gets ahead of its checkpoint is bounded.
        let limit = tail.saturating_add(view.reader.data_size());
        let limit = limit.min(checkpoint.saturating_add(2 * CHECKPOINT_BYTES));
        while !view.superblock.clean
            && let Some(next) = view.reader.durable_behind(end, limit).map_err(failed)?
        {
            (end, last) = view.reader.verified_end(tail, next).map_err(failed)?;
        }
        view.window = Window { tail, end };
        view.next_number = match last {
            Some(last) => last.number + u64::from(last.kind.takes_number()),
            None => view.superblock.checkpoint_number,
        };
        Ok(Some(view))
    }

    fn build(file: File, dir: &ShardDir) -> Result<View, Failure> {
        let superblock = read_superblock(&file, &dir.path.join("ring"))?;
        let copy = file
            .try_clone()
            .map_err(|error| Failure::other(format!("duplicating a descriptor: {error}")))?;
        let source = RingSource::new(copy, &superblock);
        Ok(View {
            reader: Reader::new(source, &superblock, dir.shard),
            window: Window::default(),
            superblock,
            file,
            client: None,
            next_number: 0,
        })
    }

    /// The connection to the server, when there is one.
    pub fn client(&mut self) -> Option<&mut Client> {
        self.client.as_mut()
    }

    /// Whether a server writes to the ring.
    pub fn is_live(&self) -> bool {
        self.client.is_some()
    }

    /// Number that the next message will take.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Opens the ring for reading beside a log that this process holds itself.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn beside(dir: &ShardDir, window: Window) -> Result<View, Failure> {
        let mut view = View::build(open_ring(&dir.path.join("ring"))?, dir)?;
        view.window = window;
        Ok(view)
    }

    /// The superblock read last.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Takes in what the server has reported.
    ///
    /// # Errors
    /// The server has gone.
    pub fn refresh(&mut self) -> Result<Window, ClientError> {
        if let Some(client) = &mut self.client {
            let progress = client.poll_progress()?;
            self.window = window(progress);
            self.next_number = progress.next_number;
        }
        Ok(self.window)
    }

    /// Waits until there is more to read than now, at most `wait` long. Without a server it returns
    /// at once.
    ///
    /// # Errors
    /// The server has gone.
    pub fn wait(&mut self, wait: Duration) -> Result<Window, ClientError> {
        if let Some(client) = &mut self.client {
            let known = client.progress();
            let progress = client.wait_progress(known, wait)?;
            self.window = window(progress);
            self.next_number = progress.next_number;
        }
        Ok(self.window)
    }

    /// One step of `walk`. What looks damaged because the writer has come round is reported as
    /// lapped.
    ///
    /// # Errors
    /// Storage.
    pub fn step(&mut self, walk: &mut Walk) -> Result<Step, Failure> {
        let failed = |error: io::Error| Failure::storage(format!("reading the ring: {error}"));
        let step = walk.step(&self.reader, self.window).map_err(failed)?;
        let Step::Damaged { position, .. } = step else {
            return Ok(step);
        };
        // A tail is written to the superblock before anything behind it is overwritten, so the
        // superblock tells it even when the report is still on its way.
        self.reread_superblock()?;
        match position < self.window.tail {
            true => walk.step(&self.reader, self.window).map_err(failed),
            false => Ok(step),
        }
    }

    /// Reads the superblock again and moves the window's tail to where it says.
    ///
    /// # Errors
    /// Storage.
    pub fn reread_superblock(&mut self) -> Result<(), Failure> {
        self.superblock = read_superblock(&self.file, Path::new("ring"))?;
        self.window.tail = self.window.tail.max(self.superblock.tail);
        self.window.end = self.window.end.max(self.window.tail);
        Ok(())
    }

    /// Number that the message behind `position` takes: for lag and for `info`. `None` when nothing
    /// good stands there.
    pub fn number_at(&self, position: u64) -> Option<u64> {
        let header = self.reader.header(position, self.window.end).ok()?.ok()?;
        Some(header.number)
    }
}

fn window(progress: Progress) -> Window {
    // A server that reports nonsense is not followed into it.
    let align = RECORD_HEADER_BYTES as u64;
    let end = progress.durable - progress.durable % align;
    Window {
        tail: progress.tail.min(end),
        end,
    }
}
