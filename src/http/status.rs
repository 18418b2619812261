//! What the HTTP pages show: a snapshot that whoever owns the loop fills in.

use crate::metrics::Metrics;

/// Messages on the page and in `/status`, at most.
pub const NEWEST_MAX: usize = 20;
/// Octets of a path that are shown; `...` stands for the rest.
pub const PATH_SHOWN_BYTES_MAX: usize = 256;

/// A snapshot of the server. Only for the routes of which `Route::needs_status` is true.
#[derive(Clone, Debug)]
pub struct Status<'a> {
    /// Name in the greeting.
    pub server_name: &'a str,
    /// When the server started, nanoseconds since 1970.
    pub started_ns: u64,
    /// Now, nanoseconds since 1970.
    pub now_ns: u64,
    /// Addresses that take mail.
    pub listen: &'a [String],
    /// Why the server does not work: storage failed, a sync hangs. `None` while it does.
    pub unhealthy: Option<&'a str>,
    /// Why the server takes no mail now: unhealthy, draining, ring full (and who holds it). `None` while it does.
    pub unready: Option<&'a str>,
    /// Durability level, the value of `--survive`; `discard` where nothing is stored.
    pub survive: &'a str,
    /// The value of `--full`.
    pub full: &'a str,
    /// The value of `--keep-for`, seconds; 0 for off.
    pub keep_for_s: u64,
    /// Open sessions by phase, one entry for each phase, 0 included.
    pub sessions: &'a [(&'a str, u64)],
    /// The value of `--max-sessions`.
    pub sessions_max: u64,
    /// What the limits on clients do; `None` where nothing is limited.
    pub clients: Option<Clients>,
    /// Memory for messages on their way in.
    pub pool: Pool,
    /// The rings, one for each worker; none with `--discard`.
    pub rings: &'a [Ring<'a>],
    /// Registered consumers, of each ring.
    pub consumers: &'a [Consumer<'a>],
    /// Newest messages first; [`NEWEST_MAX`] are shown.
    pub newest: &'a [Message<'a>],
    /// Log lines dropped.
    pub log_lines_dropped: u64,
    /// Counters and histograms.
    pub metrics: &'a Metrics,
    /// Names of [`Metrics::commands`], in order.
    pub commands: &'a [&'a str],
    /// Name of the reason and reply code for [`Metrics::replies`], in order.
    pub replies: &'a [(&'a str, u16)],
}

/// What the limits on clients do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clients {
    /// The limits for stress are in force.
    pub stress: bool,
    /// Sessions whose refusals are held back now.
    pub tarpitted: u64,
    /// Clients that gave way to others in the table.
    pub evictions: u64,
    /// Connections of clients that found no place in it.
    pub untracked: u64,
}

/// Memory for messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pool {
    /// All of it, bytes.
    pub bytes: u64,
    /// In use, bytes.
    pub used_bytes: u64,
}

/// State of the ring log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ring<'a> {
    /// Shard of the ring, the first part of its messages' ids.
    pub shard: u32,
    /// Directory.
    pub directory: &'a str,
    /// How it is written: `pwrite` or `map`.
    pub write: &'a str,
    /// Size of the data area, bytes.
    pub bytes: u64,
    /// From the tail to the head, bytes.
    pub used_bytes: u64,
    /// Position of the oldest record.
    pub tail: u64,
    /// Position behind the newest record.
    pub head: u64,
    /// Position up to which everything is durable.
    pub durable: u64,
    /// Epoch of this opening.
    pub epoch: u32,
    /// Number of the oldest message; equal to `next_number` when there is none.
    pub oldest_number: u64,
    /// Number that the next message takes.
    pub next_number: u64,
}

/// A named consumer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumer<'a> {
    /// Name.
    pub name: &'a str,
    /// Shard of the ring.
    pub shard: u32,
    /// Whether it is connected.
    pub connected: bool,
    /// Messages it has not acknowledged.
    pub lag_messages: u64,
    /// Bytes of ring it holds.
    pub lag_bytes: u64,
    /// Age of the oldest message it has not acknowledged, nanoseconds.
    pub lag_ns: u64,
}

/// A stored message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    /// Shard of the ring.
    pub shard: u32,
    /// Number in its shard.
    pub number: u64,
    /// When its end of data arrived, nanoseconds since 1970.
    pub received_ns: u64,
    /// Octets of the message, trace field included.
    pub octets: u64,
    /// Reverse-path; empty for the null reverse-path.
    pub from: &'a [u8],
    /// First recipient.
    pub to: &'a [u8],
    /// Recipients.
    pub recipients: u32,
}

/// At most [`PATH_SHOWN_BYTES_MAX`] octets of a path as text; what is not printable UTF-8 as `\xNN`.
pub(super) fn path_text(path: &[u8]) -> String {
    use std::fmt::Write as _;
    let shown = &path[..path.len().min(PATH_SHOWN_BYTES_MAX)];
    let mut out = String::with_capacity(shown.len());
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut octets = [0; 4];
                for byte in c.encode_utf8(&mut octets).as_bytes() {
                    // Writing into a String can't fail.
                    let _ = write!(out, "\\x{byte:02X}");
                }
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
    if shown.len() < path.len() {
        out.push_str("...");
    }
    out
}
