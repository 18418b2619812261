//! Files: vectored positioned writes, write-back hints, locks, anonymous memory files, random
//! bytes.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
#[cfg(not(target_os = "freebsd"))]
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Parts that one [`pwritev`] takes at most (IOV_MAX of Linux).
pub const IOV_MAX: usize = 1_024;

/// Writes `parts` one after the other at byte `at`, in one system call. Returns the bytes written,
/// which may be fewer than given; only the first [`IOV_MAX`] parts are looked at.
///
/// # Errors
/// As pwritev(2), EINTR included.
pub fn pwritev(file: &File, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
    let at = libc::off_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let count = parts.len().min(IOV_MAX) as libc::c_int;
    // SAFETY: IoSlice is guaranteed to have the layout of iovec; `parts` outlives the call and has
    // at least `count` elements; the kernel only reads through them.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr().cast(), count, at) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Starts write-back of `len` bytes at `at` without waiting for it. A hint: it makes nothing
/// durable, and failures are left for fdatasync to report.
pub fn start_writeback(file: &File, at: u64, len: u64) {
    #[cfg(target_os = "linux")]
    if let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) {
        // SAFETY: takes a descriptor and numbers, touches no memory of ours.
        unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, at, len);
}

/// How many directory entries the file has, and nothing else of it where that can be asked for: behind a look at the
/// times Linux (6.13 and later) stamps the next write to the nanosecond, so that every sync would write the inode too.
///
/// # Errors
/// As fstat(2).
pub fn links(file: &File) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        let mut about = std::mem::MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the path is a C string, AT_EMPTY_PATH makes it the descriptor; `about` is as large as the kernel
        // takes it to be, and lives through the call.
        let result = unsafe {
            libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_NLINK,
                about.as_mut_ptr(),
            )
        };
        if result == 0 {
            // SAFETY: all of it is integers, for which zeros are values too; the kernel has filled in what it
            // knows.
            let about = unsafe { about.assume_init() };
            return Ok(u64::from(about.stx_nlink));
        }
    }
    // Old kernels have no statx, and some filters of system calls forbid it; the library knows what to ask then.
    Ok(file.metadata()?.nlink())
}

/// What tells one state of a file from the next: device, inode, length and time of change.
type Stamp = (u64, u64, u64, i64, i64);

/// The state of some files; one that differs from the last says that a file was changed, replaced, made or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps(Vec<Option<Stamp>>);

impl Stamps {
    /// The state of these files now. `None` when one of them can't be looked at: not that it is not there, but that a
    /// directory may not be entered, for example.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Option<Stamps> {
        let stamp = |path: &Path| match std::fs::metadata(path) {
            Ok(m) => Some(Some((m.dev(), m.ino(), m.len(), m.ctime(), m.ctime_nsec()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
            Err(_) => None,
        };
        paths
            .into_iter()
            .map(stamp)
            .collect::<Option<_>>()
            .map(Stamps)
    }
}

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Several holders.
    Shared,
    /// One holder.
    Exclusive,
}

/// Locks the whole file for this open file description, without waiting. False when another holds
/// it. The lock ends when the last descriptor of this open file description is closed.
///
/// # Errors
/// As fcntl(2) F_OFD_SETLK, where the file system knows no locks for example.
pub fn try_lock(file: &File, lock: Lock) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    let result = {
        // SAFETY: flock is a plain structure of integers, for which all zeros is a value.
        let mut request: libc::flock = unsafe { std::mem::zeroed() };
        request.l_type = match lock {
            Lock::Shared => libc::F_RDLCK,
            Lock::Exclusive => libc::F_WRLCK,
        } as libc::c_short;
        request.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: `request` is a valid flock that outlives the call.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) }
    };
    #[cfg(not(target_os = "linux"))]
    let result = {
        let operation = match lock {
            Lock::Shared => libc::LOCK_SH,
            Lock::Exclusive => libc::LOCK_EX,
        };
        // SAFETY: takes a descriptor and a number.
        unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Opens a file for reading past the page cache. Reads have to be aligned to the device's blocks in
/// place, length and memory.
///
/// # Errors
/// As open(2); `InvalidInput` where the file system can't, `Unsupported` where the system can't.
pub fn open_direct(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// An anonymous file in memory, closed on exec. It vanishes with its last descriptor and map.
///
/// # Errors
/// As memfd_create(2); where the system has none, those of a file that is made in the directory for temporary files
/// and taken out of it at once.
pub fn memory_file(name: &CStr) -> io::Result<File> {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    {
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and is owned by nobody else.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    {
        let mut suffix = [0; 16];
        random(&mut suffix)?;
        let name = format!(
            "{}-{:032x}",
            name.to_string_lossy(),
            u128::from_ne_bytes(suffix)
        );
        let path = std::env::temp_dir().join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

/// Fills `bytes` with random bytes of the system, fit for secrets.
///
/// # Errors
/// As getentropy(3). At most 256 bytes can be asked for.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `bytes`, which the call fills.
    let result = unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The error of a file that is not there.
pub fn no_such_file() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// What a file system promises about data after fdatasync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Memory: nothing survives a reboot.
    Memory,
    /// An overlay: it is as good as its upper layer, which may be memory.
    Overlay,
    /// A network or pass-through file system: as good as the server behind it.
    Remote,
    /// Anything else.
    Local,
}

/// The kind of file system that holds `file`.
///
/// # Errors
/// As fstatfs(2).
pub fn file_system(file: &File) -> io::Result<FileSystem> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: statfs is a plain structure of integers, for which all zeros is a value.
        let mut about: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `about` is a valid statfs that the call fills.
        if unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) } != 0 {
            return Err(io::Error::last_os_error());
        }
        const RAMFS: i64 = 0x8584_58f6;
        const V9FS: i64 = 0x0102_1997;
        const CIFS: i64 = 0xff53_4d42;
        const SMB2: i64 = 0xfe53_4d42;
        #[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
        Ok(match about.f_type as i64 {
            RAMFS => FileSystem::Memory,
            magic if magic == libc::TMPFS_MAGIC as i64 => FileSystem::Memory,
            magic if magic == libc::OVERLAYFS_SUPER_MAGIC as i64 => FileSystem::Overlay,
            magic if magic == libc::NFS_SUPER_MAGIC as i64 => FileSystem::Remote,
            magic if magic == libc::FUSE_SUPER_MAGIC as i64 => FileSystem::Remote,
            V9FS | CIFS | SMB2 => FileSystem::Remote,
            _ => FileSystem::Local,
        })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Ok(FileSystem::Local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pwritev_writes_the_parts_in_order_at_the_place() {
        let file = memory_file(c"pwritev").unwrap();
        let parts = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        assert_eq!(pwritev(&file, &parts, 3).unwrap(), 5);
        let mut read = [9; 8];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"\0\0\0abcde");
        assert!(pwritev(&file, &parts, u64::MAX).is_err());
    }

    #[test]
    fn second_open_of_a_file_does_not_get_the_exclusive_lock_until_the_first_is_closed() {
        let path = std::env::temp_dir().join(format!("ringmx-lock-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let second = File::open(&path).unwrap();
        assert!(try_lock(&first, Lock::Exclusive).unwrap());
        assert!(try_lock(&first, Lock::Exclusive).unwrap());
        assert!(!try_lock(&second, Lock::Shared).unwrap());
        drop(first);
        assert!(try_lock(&second, Lock::Shared).unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn stamps_tell_a_file_that_was_changed_replaced_or_removed() {
        let path = std::env::temp_dir().join(format!("ringmx-stamps-{}", std::process::id()));
        let other = path.with_extension("new");
        let stamps = || Stamps::of([path.as_path(), Path::new("/")]).unwrap();
        let none = stamps();
        std::fs::write(&path, "one").unwrap();
        let one = stamps();
        assert_eq!(one, stamps());
        std::fs::write(&path, "longer").unwrap();
        let longer = stamps();
        // Of the same length: another inode.
        std::fs::write(&other, "others").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let others = stamps();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(stamps(), none);
        let states = [none, one, longer, others];
        for (at, state) in states.iter().enumerate() {
            assert!(!states[..at].contains(state), "{at}");
        }
        // A file can't be entered, whoever asks.
        let inside = std::env::current_exe().unwrap().join("inside");
        assert_eq!(Stamps::of([inside.as_path()]), None);
    }

    #[test]
    fn memory_files_are_told_from_disk() {
        let file = memory_file(c"kind").unwrap();
        assert_eq!(file_system(&file).unwrap(), FileSystem::Memory);
    }

    #[test]
    fn random_bytes_differ() {
        let (mut a, mut b) = ([0; 16], [0; 16]);
        random(&mut a).unwrap();
        random(&mut b).unwrap();
        assert_ne!(a, b);
    }
}
