//! Whole lines that several writers append to one file.
//!
//! Promises: what one writer flushes goes to the kernel in one write, so that lines of different writers do not mix.
//! Does not: sync the file.

use crate::corpus::named;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes that a writer collects without asking for memory.
const BUF_BYTES: usize = 64 << 10;

/// One writer.
pub struct Lines {
    /// Opened for append.
    file: Arc<File>,
    /// For errors.
    path: Arc<Path>,
    /// Lines that were not handed to the kernel yet.
    pub buf: Vec<u8>,
}

impl Lines {
    /// Makes the first writer of `file`, which was opened for append from `path`.
    pub fn new(file: File, path: &Path) -> Self {
        Self {
            file: Arc::new(file),
            path: path.into(),
            buf: Vec::with_capacity(BUF_BYTES),
        }
    }

    /// Makes a writer of a file that another process has begun.
    ///
    /// **Errors**: it can't be opened.
    pub fn join(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).open(path)?;
        Ok(Self::new(file, path))
    }

    /// Makes another writer of the same file.
    pub fn share(&self) -> Self {
        Self {
            file: self.file.clone(),
            path: self.path.clone(),
            buf: Vec::with_capacity(BUF_BYTES),
        }
    }

    /// Hands all lines to the kernel.
    ///
    /// **Errors**: the file can't take them.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        let done = (&*self.file).write_all(&self.buf);
        self.buf.clear();
        done.map_err(|error| named(error, &self.path))
    }
}
