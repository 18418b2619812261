//! What the server stored: a ring, a Maildir, or a directory of files, looked at without changing anything.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::MIB;
use crate::log_cli::view::{View, shards};
use crate::ringlog::consumer::{Step, Walk};
use crate::sys::wait;

/// Larger files are no message of this tool, bytes.
const FILE_BYTES_MAX: u64 = 64 * MIB;
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the server stores.
pub enum Store {
    /// Ring of ringmx.
    Ring(PathBuf),
    /// Maildir, or a directory of one file for each message. Files that were there before don't count.
    Files {
        /// Directories that are looked at.
        directories: Vec<PathBuf>,
        /// Names that were there before.
        before: HashSet<PathBuf>,
    },
}

impl Store {
    /// A Maildir.
    pub fn maildir(dir: &Path) -> Store {
        Store::files(vec![dir.join("new"), dir.join("cur")])
    }

    /// A directory of files.
    pub fn eml(dir: &Path) -> Store {
        Store::files(vec![dir.to_owned()])
    }

    fn files(directories: Vec<PathBuf>) -> Store {
        let before = directories.iter().flat_map(|dir| names(dir)).collect();
        Store::Files {
            directories,
            before,
        }
    }

    /// Whether the store keeps lines with LF alone, as Maildirs do.
    pub fn ends_lines_in_lf(&self) -> bool {
        matches!(self, Store::Files { .. })
    }

    /// Waits a moment.
    pub fn pause(&self) {
        // Nothing can be wrong with waiting for nothing.
        let _ = wait::readable(&[], Some(PAUSE));
    }

    /// Every stored message that holds `token`.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn find(&mut self, token: &str) -> Result<Vec<Vec<u8>>, String> {
        let finder = memchr::memmem::Finder::new(token);
        match self {
            Store::Ring(dir) => {
                let mut found = Vec::new();
                for shard in shards(dir).map_err(|failure| failure.text)? {
                    let mut view = View::open(&shard).map_err(|failure| failure.text)?;
                    let window = view.refresh().map_err(|error| error.to_string())?;
                    let mut walk = Walk::new(window.tail);
                    loop {
                        match view.step(&mut walk).map_err(|failure| failure.text)? {
                            Step::Message(message) if finder.find(message.body()).is_some() => {
                                found.push(message.body().to_vec());
                            }
                            Step::Message(_) | Step::Other | Step::Lapped { .. } => {}
                            Step::Damaged { position, reason } => {
                                return Err(format!(
                                    "the ring is damaged at {position}: {reason:?}"
                                ));
                            }
                            Step::End => break,
                        }
                    }
                }
                Ok(found)
            }
            Store::Files {
                directories,
                before,
            } => {
                let mut found = Vec::new();
                for path in directories.iter().flat_map(|dir| names(dir)) {
                    if before.contains(&path) {
                        continue;
                    }
                    let mut content = Vec::new();
                    // A file may be renamed between the listing and this.
                    let read = fs::File::open(&path)
                        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut content));
                    if read.is_ok() && finder.find(&content).is_some() {
                        found.push(content);
                    }
                }
                Ok(found)
            }
        }
    }
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .collect()
}
