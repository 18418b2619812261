//! The ring log: durable, fixed-size, one writer, many readers.
//!
//! `format` is the byte layout, `backing` the storage, `writer` the appending side, `commit` the
//! group commit and its thread, `handshake` how the two talk, `recover` what opening does, `directory` the files,
//! `reader` and `consumer` the reading side, `rescue` reading what is damaged, `copy` writing another ring from it.
//! `docs/ring-log.md` is normative.

pub mod backing;
pub mod commit;
pub mod consumer;
pub mod copy;
pub mod directory;
pub mod format;
mod handshake;
pub mod reader;
pub mod recover;
pub mod rescue;
pub mod writer;

/// The primitives of `handshake`, in whose place tests/loom puts loom's.
mod sync {
    pub(super) use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
}
