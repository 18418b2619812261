//! The directory of one ring: creation, opening, locks, the list of losses.
//!
//! ```text
//! DIR/shard-0/ring   the ring, fixed size
//! DIR/shard-0/ctl    socket of the running server
//! DIR/shard-0/lost   damaged ranges of acknowledged data, if ever
//! ```
//! Files are never followed through a symbolic link and must belong to the user that runs the
//! program.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions as FileOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::backing::{self, FileBacking, WriteMethod};
use super::copy::{CopyError, RingCopy};
use super::format::{Consumer, DATA_OFFSET};
use super::recover::{self, LOST_RANGES_MAX, LostRange, NewRing, OpenError, OpenOptions, Recovery};
use super::rescue::{Damage, Reason, Rescue, RescueOptions, State};
use super::writer::{FullPolicy, Log, Survive};
use crate::clock::{self, Clock};
use crate::sys;
use crate::sys::file::{FileSystem, Lock};

/// Name of the ring in its directory.
pub const RING_FILE: &str = "ring";
/// Name of a ring that is being created.
pub const RING_NEW_FILE: &str = "ring.new";
/// Name of the list of losses.
pub const LOST_FILE: &str = "lost";
/// Name of the server's socket.
pub const CTL_FILE: &str = "ctl";
/// Bytes of an older list of losses that are kept.
const LOST_BYTES_MAX: u64 = 1 << 20;

/// How a ring is created.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Bytes of the data area: a multiple of 4,096, at least 64 KiB. Servers allow only what
    /// `limits` names.
    pub data_size: u64,
    /// Whether the group may read: 0750 and 0640 instead of 0700 and 0600.
    pub group: bool,
    /// Wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |error| OpenError::Io { operation, error }
}

/// Creates the ring in `dir`, which is created too. `progress` is told the bytes written and the
/// bytes in all. The ring is complete and durable when it gets its name.
///
/// # Errors
/// `Exists` when there is a ring, `InUse` when another process is creating it, `NotOurs`, and `Io`,
/// a full disk among them; then nothing is left behind but the directory.
pub fn create_ring(
    dir: &Path,
    options: &CreateOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), OpenError> {
    let file = new_file(dir, options, false)?;
    let made = fill_new(&file, options, progress).and_then(|mut storage| {
        recover::format(&mut storage, &new_ring(options.data_size, options.wall_ns)?)?;
        publish(dir, &file)
    });
    made.map_err(|error| abandoned(dir, error))
}

/// What [`copy_ring`] puts into the new ring.
#[derive(Debug)]
pub struct CopyPlan<'a> {
    /// Size, mode and time of creation of the new ring.
    pub create: CreateOptions,
    /// Identity that it keeps; `None`: a new one.
    pub ring_id: Option<[u8; 16]>,
    /// Last epoch of the old ring.
    pub epoch: u32,
    /// Consumers that go with it.
    pub consumers: &'a [Consumer],
    /// The ring that it replaces, held open with the exclusive lock; `None`: there must be none.
    pub replaces: Option<&'a File>,
}

/// Makes a ring in `dir` that holds what `fill` appends; `fill` returns the next number. The ring is
/// complete and durable when it gets its name, by the one rename that also replaces the old one. The
/// result of `fill` is handed on.
///
/// # Errors
/// Those of `fill`, of [`RingCopy`], and as [`create_ring`]; the old ring is then untouched.
pub fn copy_ring<E: From<OpenError> + From<CopyError>>(
    dir: &Path,
    plan: &CopyPlan<'_>,
    fill: &mut dyn FnMut(&mut RingCopy<FileBacking>) -> Result<u64, E>,
) -> Result<(), E> {
    let file = new_file(dir, &plan.create, plan.replaces.is_some())?;
    let made = copy_into(&file, dir, plan, fill);
    if made.is_err() {
        let _ = std::fs::remove_file(dir.join(RING_NEW_FILE));
    }
    made
}

fn copy_into<E: From<OpenError> + From<CopyError>>(
    file: &File,
    dir: &Path,
    plan: &CopyPlan<'_>,
    fill: &mut dyn FnMut(&mut RingCopy<FileBacking>) -> Result<u64, E>,
) -> Result<(), E> {
    let failed = |error| failed("creating")(error);
    let storage = fill_new(file, &plan.create, &mut |_, _| {}).map_err(failed)?;
    let mut new = new_ring(plan.create.data_size, plan.create.wall_ns).map_err(failed)?;
    new.ring_id = plan.ring_id.unwrap_or(new.ring_id);
    if let Some(old) = plan.replaces {
        adopt_owner(file, old).map_err(failed)?;
    }
    let mut copy = RingCopy::new(storage, &new, plan.epoch, plan.consumers)?;
    let next_number = fill(&mut copy)?;
    copy.finish(next_number, plan.create.wall_ns, Clock::new().now())?;
    Ok(publish(dir, file).map_err(failed)?)
}

/// Why a ring keeps its size. It is as it was.
#[derive(Debug)]
pub enum ResizeError {
    /// It does not open.
    Open(OpenError),
    /// The new one can't be made.
    Copy(CopyError),
    /// Something in it is damaged.
    Damaged,
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeError::Open(error) => error.fmt(f),
            ResizeError::Copy(error @ (CopyError::Full | CopyError::TooLarge { .. })) => {
                write!(f, "{error}; nothing was changed")
            }
            ResizeError::Copy(error) => error.fmt(f),
            ResizeError::Damaged => f.write_str(
                "messages in the ring are damaged: ringmx log verify names them, ringmx log rescue \
                 --to-ring makes a ring of the others",
            ),
        }
    }
}

impl std::error::Error for ResizeError {}

impl From<OpenError> for ResizeError {
    fn from(error: OpenError) -> ResizeError {
        ResizeError::Open(error)
    }
}

impl From<CopyError> for ResizeError {
    fn from(error: CopyError) -> ResizeError {
        ResizeError::Copy(error)
    }
}

/// What became of a ring that got another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Bytes of the data area before.
    pub data_size_before: u64,
    /// Messages that moved.
    pub messages: u64,
}

/// Gives the ring in `dir` a data area of `data_size` bytes: copies what it keeps into a new ring,
/// which takes its place by one rename. Id, numbers, times and epochs go on; consumers are given what
/// they had not had. Recovers the ring first, as every opening does. Needs space for both.
///
/// # Errors
/// [`ResizeError`]; the ring is then as it was, and a crash leaves it so or resized.
pub fn resize_ring(dir: &Path, data_size: u64, wall_ns: u64) -> Result<Resized, ResizeError> {
    let mut options = OpenOptions::new(Survive::Power, wall_ns);
    // What it holds, it keeps.
    options.full = FullPolicy::Defer;
    let (log, _) = open_ring(dir, &options, Some(WriteMethod::Pwrite))?;
    // The lock lives as long as the storage.
    let storage = log
        .close()
        .map_err(|failed| ResizeError::Open(failed.into()))?;
    let old = File::from(
        storage
            .file()
            .try_clone_to_owned()
            .map_err(failed("examining"))?,
    );
    let unreadable = |_| ResizeError::Damaged;
    let mut rescue = Rescue::look(&storage, RescueOptions::default()).map_err(unreadable)?;
    let superblock = rescue.superblock().cloned().ok_or(ResizeError::Damaged)?;
    let consumers: Vec<Consumer> = superblock.consumers.iter().flatten().copied().collect();
    let plan = CopyPlan {
        create: CreateOptions {
            data_size,
            group: false,
            wall_ns: superblock.created_ns,
        },
        ring_id: Some(superblock.ring_id),
        epoch: superblock.epoch,
        consumers: &consumers,
        replaces: Some(&old),
    };
    let mut messages = 0;
    let mut fill = |copy: &mut RingCopy<FileBacking>| {
        rescue.walk(&mut |message, state| match state {
            State::Kept => copy.append(&message).map_err(ResizeError::Copy),
            // Behind an orderly end nothing stands.
            State::Unconfirmed | State::Released => Err(ResizeError::Damaged),
        })?;
        let report = rescue.report();
        messages = copy.messages();
        // What was given up earlier is no news.
        let given_up = |damage: &Damage| damage.reason == Reason::GivenUp;
        match report.tail.is_some() && report.damage.iter().all(given_up) {
            true => Ok(report.next_number),
            false => Err(ResizeError::Damaged),
        }
    };
    copy_ring(dir, &plan, &mut fill)?;
    Ok(Resized {
        data_size_before: superblock.data_size,
        messages,
    })
}

/// Gives `file` mode, owner and group of `old`.
fn adopt_owner(file: &File, old: &File) -> io::Result<()> {
    let about = old.metadata()?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (about.uid(), about.gid()) {
        std::os::unix::fs::fchown(file, Some(about.uid()), Some(about.gid()))?;
    }
    file.set_permissions(about.permissions())
}

/// Syncs the finished ring and gives it its name.
fn publish(dir: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    std::fs::rename(dir.join(RING_NEW_FILE), dir.join(RING_FILE))?;
    File::open(dir)?.sync_all()
}

fn abandoned(dir: &Path, error: io::Error) -> OpenError {
    let _ = std::fs::remove_file(dir.join(RING_NEW_FILE));
    failed("creating")(error)
}

/// Makes the directory and, in it, the locked file that is going to be a ring.
fn new_file(dir: &Path, options: &CreateOptions, replaces: bool) -> Result<File, OpenError> {
    let (dir_mode, file_mode) = if options.group {
        (0o750, 0o640)
    } else {
        (0o700, 0o600)
    };
    DirBuilder::new()
        .recursive(true)
        .mode(dir_mode)
        .create(dir)
        .map_err(failed("creating the directory of"))?;
    check_directory(dir)?;
    // Before the ring gets its name: a ring that is found by a later start has all its directories.
    sync_parents(dir).map_err(failed("syncing the directories of"))?;
    let new_path = dir.join(RING_NEW_FILE);
    let file = FileOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(file_mode)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&new_path)
        .map_err(failed("creating"))?;
    lock(&file, Lock::Exclusive)?;
    // Looked at under the lock: whoever created the ring in the meantime has given it its name.
    let taken = match dir.join(RING_FILE).symlink_metadata() {
        Ok(_) if replaces => None,
        Ok(_) => Some(OpenError::Exists),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // It may be there, and the rename below would replace it.
        Err(error) => Some(failed("examining")(error)),
    };
    if let Some(error) = taken {
        let _ = std::fs::remove_file(&new_path);
        return Err(error);
    }
    Ok(file)
}

/// Fills the file with zeros, all of them written.
fn fill_new(
    file: &File,
    options: &CreateOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<FileBacking> {
    let len = options
        .data_size
        .checked_add(DATA_OFFSET)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // What an interrupted creation left is not trusted.
    file.set_len(0)?;
    backing::fill_with_zeros(file, len, &mut |written| progress(written, len))?;
    FileBacking::new(file.try_clone()?, WriteMethod::Pwrite)
}

fn new_ring(data_size: u64, wall_ns: u64) -> io::Result<NewRing> {
    let mut ring_id = [0; 16];
    let mut ring_key = [0; 8];
    sys::file::random(&mut ring_id)?;
    sys::file::random(&mut ring_key)?;
    Ok(NewRing {
        ring_id,
        ring_key: u64::from_le_bytes(ring_key),
        data_size,
        created_ns: wall_ns,
    })
}

/// Makes the entry of `dir` durable in the directory that holds it, and so on upwards within its file
/// system: any of them may be new, made by this start or by one that was killed. A directory that may
/// not be read is passed over.
///
/// Bounds: one fsync for each directory of the path.
fn sync_parents(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    let device = dir.metadata()?.dev();
    for parent in dir.ancestors().skip(1) {
        let parent = match File::open(parent) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(error),
        };
        if parent.metadata()?.dev() != device {
            return Ok(());
        }
        parent.sync_all()?;
    }
    Ok(())
}

/// Opens the ring in `dir` for writing, with the exclusive lock, and recovers it. `method` `None`
/// chooses: a map on a file system in memory, `pwritev` elsewhere. Damaged ranges are added to `lost`
/// before they are given up.
///
/// # Errors
/// [`OpenError`].
pub fn open_ring(
    dir: &Path,
    options: &OpenOptions,
    method: Option<WriteMethod>,
) -> Result<(Log<FileBacking>, Recovery), OpenError> {
    let file = open_file(dir, true)?;
    lock(&file, Lock::Exclusive)?;
    still_named(dir, &file)?;
    // Whoever created the ring may have been killed before its name was durable.
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("syncing the directory of"))?;
    let method = match method {
        Some(method) => method,
        None => write_method(&file).map_err(failed("examining"))?,
    };
    let direct = direct(dir, &file, method);
    let storage = FileBacking::new(file, method)
        .map_err(failed("mapping"))?
        .with_direct(direct);
    if options.accept_loss {
        let lost = recover::find_lost(&storage)?;
        // Before anything is given up: a crash in between notes it twice, never not at all.
        if (1..=LOST_RANGES_MAX).contains(&lost.len()) {
            note_lost(dir, &lost, options.wall_ns).map_err(failed("noting the losses of"))?;
        }
    }
    Log::open(storage, options)
}

/// A second descriptor of the ring, past the page cache: after a failed write-back the cache may hold
/// what the disk does not. `None` where the file system has no such reads.
fn direct(dir: &Path, file: &File, method: WriteMethod) -> Option<File> {
    if method == WriteMethod::Map {
        return None;
    }
    let direct = sys::file::open_direct(&dir.join(RING_FILE)).ok()?;
    let (one, other) = (file.metadata().ok()?, direct.metadata().ok()?);
    ((one.dev(), one.ino()) == (other.dev(), other.ino())).then_some(direct)
}

/// Opens the ring in `dir` read-only, for a tool that works without the server. False: a server has
/// it open and goes on writing; the tool should ask the server instead.
///
/// # Errors
/// `Missing`, `NotOurs`, `Io`.
pub fn open_ring_read_only(dir: &Path) -> Result<(File, bool), OpenError> {
    let file = open_file(dir, false)?;
    let alone = sys::file::try_lock(&file, Lock::Shared).map_err(failed("locking"))?;
    still_named(dir, &file)?;
    Ok((file, alone))
}

/// A ring of another size may have taken the name between opening and locking.
fn still_named(dir: &Path, file: &File) -> Result<(), OpenError> {
    let identity = |about: &std::fs::Metadata| (about.dev(), about.ino());
    let opened = file.metadata().map_err(failed("examining"))?;
    match dir.join(RING_FILE).symlink_metadata() {
        Ok(named) if identity(&named) == identity(&opened) => Ok(()),
        _ => Err(OpenError::InUse),
    }
}

/// A new ring in anonymous memory, for `--survive nothing`. It ends with the process.
///
/// # Errors
/// `Io` when there is not that much memory.
pub fn memory_ring(
    data_size: u64,
    options: &OpenOptions,
) -> Result<(Log<FileBacking>, Recovery), OpenError> {
    let len = data_size
        .checked_add(DATA_OFFSET)
        .ok_or_else(|| failed("creating")(io::ErrorKind::InvalidInput.into()))?;
    let mut storage =
        FileBacking::in_memory(c"ringmx-ring", len).map_err(failed("reserving memory for"))?;
    let new = new_ring(data_size, options.wall_ns).map_err(failed("creating"))?;
    recover::format(&mut storage, &new).map_err(failed("creating"))?;
    Log::open(storage, options)
}

/// The method that suits the file system of `file`.
///
/// # Errors
/// As fstatfs(2).
pub fn write_method(file: &File) -> io::Result<WriteMethod> {
    Ok(match sys::file::file_system(file)? {
        FileSystem::Memory => WriteMethod::Map,
        _ => WriteMethod::Pwrite,
    })
}

fn open_file(dir: &Path, write: bool) -> Result<File, OpenError> {
    match check_directory(dir) {
        Err(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing);
        }
        result => result?,
    }
    let file = FileOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(dir.join(RING_FILE))
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => OpenError::Missing,
            Some(libc::ELOOP) => OpenError::NotOurs("the ring is a symbolic link"),
            _ => failed("opening")(error),
        })?;
    let about = file.metadata().map_err(failed("examining"))?;
    if !about.is_file() {
        return Err(OpenError::NotOurs("the ring is not a plain file"));
    }
    if write && about.uid() != sys::privileges::effective_user() {
        return Err(OpenError::NotOurs(
            "the ring belongs to another user; run as that user",
        ));
    }
    Ok(file)
}

fn check_directory(dir: &Path) -> Result<(), OpenError> {
    let about = dir
        .symlink_metadata()
        .map_err(failed("examining the directory of"))?;
    if !about.is_dir() {
        return Err(OpenError::NotOurs(
            "the directory of the ring is not a plain directory",
        ));
    }
    Ok(())
}

fn lock(file: &File, lock: Lock) -> Result<(), OpenError> {
    match sys::file::try_lock(file, lock) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::InUse),
        Err(error) => Err(failed("locking")(error)),
    }
}

/// Adds ranges to the list of losses: one line each, written new, synced, renamed.
fn note_lost(dir: &Path, ranges: &[LostRange], wall_ns: u64) -> io::Result<()> {
    let path = dir.join(LOST_FILE);
    let new_path = dir.join("lost.new");
    let mut text = String::new();
    match File::open(&path) {
        Ok(old) => {
            old.take(LOST_BYTES_MAX).read_to_string(&mut text)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for range in ranges {
        text.push_str(&format!(
            "{} from {} to {} number {} epoch {}\n",
            clock::rfc3339(wall_ns),
            range.from,
            range.to,
            range.number,
            range.epoch
        ));
    }
    let mut file = FileOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&new_path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new_path, &path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Instant};
    use crate::ringlog::commit::SyncThread;
    use std::io::IoSlice;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::mpsc;

    /// A directory of this test's own, removed at its end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("ringmx-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Place(path)
        }

        fn create(&self) -> Result<(), OpenError> {
            let options = CreateOptions {
                data_size: 65_536,
                group: false,
                wall_ns: 5,
            };
            create_ring(&self.0.join("shard-0"), &options, &mut |_, _| {})
        }

        fn dir(&self) -> PathBuf {
            self.0.join("shard-0")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn ring_is_created_once_private_and_full_of_zeros() {
        let place = Place::new("create");
        place.create().unwrap();
        let mode = |name: &str| {
            let about = std::fs::metadata(place.dir().join(name)).unwrap();
            (
                about.permissions().mode() & 0o777,
                about.len(),
                about.blocks() > 0,
            )
        };
        assert_eq!(mode("ring"), (0o600, 2 * 65_536, true));
        assert_eq!(mode(".").0, 0o700);
        assert!(!place.dir().join("ring.new").exists());
        assert!(matches!(place.create(), Err(OpenError::Exists)));
        let bytes = std::fs::read(place.dir().join("ring")).unwrap();
        assert!(bytes[65_536..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn ring_is_open_for_one_writer_and_is_found_closed_by_the_next() {
        let place = Place::new("writers");
        place.create().unwrap();
        let options = OpenOptions::new(Survive::Power, 7);
        let (log, recovery) = open_ring(&place.dir(), &options, None).unwrap();
        assert!(recovery.clean);
        let second = open_ring(&place.dir(), &options, None).map(|_| ());
        assert!(matches!(second, Err(OpenError::InUse)));
        assert!(!open_ring_read_only(&place.dir()).unwrap().1);
        drop(log.close().unwrap());
        assert!(open_ring_read_only(&place.dir()).unwrap().1);
        let (_, recovery) = open_ring(&place.dir(), &options, Some(WriteMethod::Map)).unwrap();
        assert!(recovery.clean);
        assert_eq!(recovery.epoch, 2);
    }

    #[test]
    fn missing_foreign_and_linked_files_are_refused_and_left_alone() {
        let place = Place::new("foreign");
        let options = OpenOptions::new(Survive::Power, 7);
        let open = || open_ring(&place.dir(), &options, None).map(|_| ());
        assert!(matches!(open(), Err(OpenError::Missing)));
        std::fs::create_dir_all(place.dir()).unwrap();
        assert!(matches!(open(), Err(OpenError::Missing)));
        let ring = place.dir().join("ring");
        std::fs::write(&ring, b"not a ring").unwrap();
        assert!(matches!(
            open(),
            Err(OpenError::NotARing { damaged: false })
        ));
        assert_eq!(std::fs::read(&ring).unwrap(), b"not a ring");
        assert!(matches!(place.create(), Err(OpenError::Exists)));
        std::fs::rename(&ring, place.dir().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &ring).unwrap();
        assert!(matches!(open(), Err(OpenError::NotOurs(_))));
    }

    #[test]
    fn lock_on_a_ring_that_another_has_replaced_meanwhile_counts_for_nothing() {
        // A process may open the ring, wait for its lock, and get it when the name stands for
        // another file: it would write where nobody reads.
        let place = Place::new("replaced");
        place.create().unwrap();
        let opened = open_file(&place.dir(), true).unwrap();
        still_named(&place.dir(), &opened).unwrap();
        let resized = resize_ring(&place.dir(), 131_072, 9).unwrap();
        assert_eq!(resized.data_size_before, 65_536);
        lock(&opened, Lock::Exclusive).unwrap();
        let named = still_named(&place.dir(), &opened);
        assert!(matches!(named, Err(OpenError::InUse)));
    }

    #[test]
    fn losses_are_added_to_the_list() {
        let place = Place::new("lost");
        place.create().unwrap();
        let range = LostRange {
            from: 64,
            to: 128,
            number: 3,
            epoch: 2,
            received_ns: 1,
        };
        note_lost(&place.dir(), &[range], 0).unwrap();
        note_lost(&place.dir(), &[range], 1_000_000_000).unwrap();
        assert_eq!(
            std::fs::read_to_string(place.dir().join("lost")).unwrap(),
            "1970-01-01T00:00:00.000Z from 64 to 128 number 3 epoch 2\n\
             1970-01-01T00:00:01.000Z from 64 to 128 number 3 epoch 2\n"
        );
    }

    #[test]
    fn messages_committed_by_the_sync_thread_are_there_when_the_file_is_opened_again() {
        let place = Place::new("commit");
        place.create().unwrap();
        let options = OpenOptions::new(Survive::Power, 7);
        let (mut log, _) = open_ring(&place.dir(), &options, None).unwrap();
        let (wake_in, wakes) = mpsc::channel();
        let wake = move || {
            let _ = wake_in.send(());
        };
        let flush = Box::new(log.backing().flusher().unwrap());
        let mut thread = SyncThread::start(flush, Box::new(wake), Clock::new()).unwrap();
        let mut last = 0;
        for turn in 0..300 {
            log.begin_turn(turn);
            if let Ok(slot) = log.reserve(448) {
                let payload = [turn as u8; 448];
                let header = log.header(&slot, 0, crc32c::crc32c(&payload));
                log.write(&[IoSlice::new(&header), IoSlice::new(&payload)])
                    .unwrap();
                last = slot.end;
            }
            // Every third turn finds the sync still running.
            if log.sync_in_flight() && turn % 3 != 0 {
                wakes.recv().unwrap();
                let done = thread.completed().unwrap();
                log.sync_completed(done.target, done.result).unwrap();
            }
            if let Some(request) = log.sync_wanted(Instant(turn)) {
                thread.submit(&request);
            }
        }
        while log.acknowledged() < last {
            wakes.recv().unwrap();
            let done = thread.completed().unwrap();
            log.sync_completed(done.target, done.result).unwrap();
            if let Some(request) = log.sync_wanted(Instant(300)) {
                thread.submit(&request);
            }
        }
        let status = log.status();
        assert!(status.overwritten_unread > 100, "{status:?}");
        drop((thread, log));
        let (log, recovery) = open_ring(&place.dir(), &options, None).unwrap();
        assert_eq!((recovery.head, recovery.discarded_records), (last, 0));
        assert_eq!(log.status().messages, recovery.messages);
        assert!(
            recovery.messages >= status.messages,
            "the tail moves only with a superblock"
        );
    }

    #[test]
    fn ring_in_memory_writes_through_a_map() {
        let options = OpenOptions::new(Survive::Nothing, 7);
        let (log, _) = memory_ring(65_536, &options).unwrap();
        assert_eq!(log.backing().method(), WriteMethod::Map);
    }
}
