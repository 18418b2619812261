//! Storage under the ring: a file, memory, or whatever a test puts there.
//!
//! The ring needs five operations and nothing else; a simulated disk that implements them can lose
//! power at any of them.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::clock::Clock;
use crate::limits::PAGE_BYTES;
use crate::sys;
use crate::sys::mmap::WriteMap;

/// Storage as the ring needs it. Places are bytes of the file, superblocks included.
pub trait Backing {
    /// Size, bytes. Does not change while the ring is open.
    fn len(&self) -> u64;

    /// Whether there is not a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads into `buf`; may read less, 0 at the end.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Reads all of `buf` from the medium, past a cache that may hold what a failed write-back has
    /// not brought there. False, and `buf` is worth nothing: the storage can't tell the two apart,
    /// or the medium can't be read there.
    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        let _ = (buf, at);
        false
    }

    /// Writes `parts` one after the other; may write less than given. Not durable before
    /// [`Backing::sync`].
    ///
    /// # Errors
    /// Whatever the storage reports; the log never writes again after one, other than
    /// `Interrupted`.
    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// Whatever the storage reports; never called again after one.
    fn sync(&self) -> io::Result<()>;

    /// Time spent in [`Backing::write_at`] since the last call, nanoseconds; 0 where nobody measures it.
    fn take_write_ns(&mut self) -> u64 {
        0
    }

    /// Starts write-back of a range early. A hint.
    fn start_writeback(&self, at: u64, len: u64) {
        let _ = (at, len);
    }
}

/// Reads exactly `buf.len()` bytes.
///
/// # Errors
/// What the storage reports other than `Interrupted`; `UnexpectedEof` at its end.
pub fn read_exact_at<B: Backing>(backing: &B, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match backing.read_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = buf.get_mut(n..).unwrap_or_default();
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `bytes`.
///
/// # Errors
/// What the storage reports other than `Interrupted`; `WriteZero` when it takes nothing.
pub fn write_all_at<B: Backing>(backing: &mut B, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match backing.write_at(&[IoSlice::new(bytes)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the sync thread does with the storage, on a handle of its own.
pub trait Flush: Send {
    /// Writes a superblock.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn write_superblock(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes everything written so far, through any handle, durable.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn sync(&mut self) -> io::Result<()>;
}

/// How a [`FileBacking`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMethod {
    /// `pwritev`: right for files on a disk, where a store through a map faults on each page after
    /// each sync.
    Pwrite,
    /// Stores through a shared map: right for files in memory, which are never written back.
    Map,
}

/// A ring file.
#[derive(Debug)]
pub struct FileBacking {
    file: File,
    /// The same file, read past the page cache (O_DIRECT), where the file system allows it.
    direct: Option<File>,
    /// It stood in a directory when it was opened, as one in memory never does.
    has_name: bool,
    len: u64,
    map: Option<WriteMap>,
    clock: Clock,
    write_ns: u64,
}

impl FileBacking {
    /// Wraps an open file of fixed size.
    ///
    /// # Errors
    /// As fstat(2) and mmap(2).
    pub fn new(file: File, method: WriteMethod) -> io::Result<FileBacking> {
        let about = file.metadata()?;
        let len = about.len();
        let map = match method {
            WriteMethod::Pwrite => None,
            WriteMethod::Map => Some(WriteMap::new(&file, len)?),
        };
        Ok(FileBacking {
            file,
            direct: None,
            has_name: about.nlink() > 0,
            len,
            map,
            clock: Clock::new(),
            write_ns: 0,
        })
    }

    /// With a descriptor of the same file that was opened with O_DIRECT, for
    /// [`Backing::read_medium_at`].
    pub fn with_direct(mut self, direct: Option<File>) -> FileBacking {
        self.direct = direct;
        self
    }

    /// An anonymous file in memory, `len` bytes long, written through a map. It is lost when the
    /// process and all readers have ended.
    ///
    /// # Errors
    /// As memfd_create(2), ftruncate(2), fallocate(2) and mmap(2).
    pub fn in_memory(name: &CStr, len: u64) -> io::Result<FileBacking> {
        let file = sys::file::memory_file(name)?;
        // Every page exists from now on: a store can't fail for lack of memory later.
        fill_with_zeros(&file, len, &mut |_| {})?;
        FileBacking::new(file, WriteMethod::Map)
    }

    /// The file, for readers that are handed its descriptor.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How it writes.
    pub fn method(&self) -> WriteMethod {
        if self.map.is_some() {
            WriteMethod::Map
        } else {
            WriteMethod::Pwrite
        }
    }

    /// Whether the file was removed since it was opened: what is in it ends with the processes that have it open.
    pub fn is_removed(&self) -> bool {
        self.has_name && sys::file::links(&self.file).is_ok_and(|links| links == 0)
    }

    /// A second handle for the sync thread.
    ///
    /// # Errors
    /// As dup(2).
    pub fn flusher(&self) -> io::Result<FileFlush> {
        Ok(FileFlush {
            file: self.file.try_clone()?,
            has_name: self.has_name,
        })
    }
}

impl FileBacking {
    fn store(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let Some(map) = &mut self.map else {
            return sys::file::pwritev(&self.file, parts, at);
        };
        let mut written = 0;
        for part in parts {
            if !map.store(part, at + written as u64) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            written += part.len();
        }
        Ok(written)
    }
}

impl Backing for FileBacking {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buf, at)
    }

    fn read_medium_at(&self, buf: &mut [u8], at: u64) -> bool {
        let Some(direct) = &self.direct else {
            return false;
        };
        // Such reads want place, length and memory to be multiples of the device's block; a page is
        // one of all that are in use.
        let from = at - at % PAGE_BYTES;
        let to = (at + buf.len() as u64).next_multiple_of(PAGE_BYTES);
        let len = (to - from) as usize;
        let mut memory = vec![0_u8; len + PAGE_BYTES as usize];
        let start = memory.as_ptr().align_offset(PAGE_BYTES as usize);
        let Some(aligned) = memory.get_mut(start..start + len) else {
            return false;
        };
        let skip = (at - from) as usize;
        if direct.read_exact_at(aligned, from).is_err() {
            return false;
        }
        buf.copy_from_slice(&aligned[skip..skip + buf.len()]);
        true
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let begun = self.clock.now();
        let result = self.store(parts, at);
        self.write_ns += self.clock.now().since_ns(begun);
        result
    }

    fn take_write_ns(&mut self) -> u64 {
        std::mem::take(&mut self.write_ns)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_writeback(&self, at: u64, len: u64) {
        sys::file::start_writeback(&self.file, at, len);
    }
}

/// The sync thread's handle of a ring file.
#[derive(Debug)]
pub struct FileFlush {
    file: File,
    has_name: bool,
}

impl Flush for FileFlush {
    fn write_superblock(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// A file that was removed is as good as a disk that fails: what is in it ends with this process.
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.has_name && sys::file::links(&self.file)? == 0 {
            return Err(sys::file::no_such_file());
        }
        Ok(())
    }
}

/// Extends `file` to `len` bytes of zeros, all of them written, so that no block is missing later.
/// `progress` is told the bytes written so far after each piece of at most 4 MiB.
///
/// # Errors
/// As write(2): a full disk is found here and not when mail arrives.
pub fn fill_with_zeros(file: &File, len: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let zeros = vec![0_u8; 4 << 20];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..piece as usize], at)?;
        at += piece;
        progress(at);
    }
    Ok(())
}

/// A ring in a vector. For tests and simulations; sync does nothing.
#[derive(Clone, Debug, Default)]
pub struct MemoryBacking {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
}

impl Backing for MemoryBacking {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut written = 0;
        for part in parts {
            let target = at
                .checked_add(part.len())
                .and_then(|end| self.bytes.get_mut(at..end))
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            target.copy_from_slice(part);
            at += part.len();
            written += part.len();
        }
        Ok(written)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
