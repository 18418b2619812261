//! Circumstances that a seed chooses: sizes, limits, policies, speeds.

use std::time::Duration;

use ringmx::limits::{ENVELOPE_BYTES_MAX, KIB, MIB};
use ringmx::ringlog::writer::{CommitAlign, FullPolicy, Survive};
use ringmx::server::Options;
use ringmx::smtp::data::BareNewlines;

use crate::peer::CHUNK_BYTES;
use crate::random::Random;

/// What one seed simulates.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_size: u64,
    pub survive: Survive,
    pub full: FullPolicy,
    /// What the disk leaves whole, and the writer counts on.
    pub commit_align: CommitAlign,
    /// The disk can be read past the page cache.
    pub reads_medium: bool,
    /// Mail that nobody holds goes after this time.
    pub keep_for: Option<Duration>,
    /// Consumers come, read, acknowledge and go.
    pub consumers: bool,
    pub pool_bytes: u64,
    /// Chunks may run out.
    pub pool_is_tight: bool,
    pub message_max: u64,
    /// Some messages are longer than that.
    pub exceeds: bool,
    pub recipients_max: u32,
    pub messages_max: u32,
    pub sessions_max: usize,
    pub bare: BareNewlines,
    /// Letters of one client at most.
    pub letters_max: u64,
    /// Clients at the same time.
    pub peers_max: usize,
    pub latency_max_ns: u64,
    pub slow_one_in: u64,
    pub timeout: Duration,
    pub shortest_timeout_ns: u64,
    pub request_deadline_ns: u64,
    pub data_grace_ns: u64,
    pub pool_wait_max_ns: u64,
    pub sync_stall_ns: u64,
    pub linger_ns: u64,
    /// Crashes, if nothing else is asked for.
    pub crashes: u64,
    /// Clock jumps beyond the time-outs happen.
    pub jumps: bool,
}

impl Config {
    pub fn choose(random: &mut Random) -> Config {
        // Large rings take long in a debug build.
        let kind = match random.below(48) {
            0 => 0,
            n => 1 + n % 15,
        };
        let large = kind == 0;
        let tight = kind <= 3;
        let data_size = match kind {
            0 => 12 * MIB,
            1..=2 => 2 * MIB,
            3 => MIB,
            4..=6 => 512 * KIB,
            7..=9 => 256 * KIB,
            _ => 64 * KIB * (1 + random.below(2)),
        };
        let survive = match random.below(8) {
            0 => Survive::Nothing,
            1 | 2 => Survive::Process,
            _ => Survive::Power,
        };
        let commit_align = if survive == Survive::Power && random.one_in(4) {
            CommitAlign::Page
        } else {
            CommitAlign::Sector
        };
        let full = match random.below(3) {
            0 => FullPolicy::Defer,
            1 => FullPolicy::Overwrite,
            _ => FullPolicy::Auto,
        };
        let message_max = match kind {
            0 => 1_100 * KIB + random.below(300) * KIB,
            _ => data_size / 16 + random.below(data_size / 32),
        };
        // What the server sets aside, twice: half of the pool may be taken by the many.
        let pool_bytes = if tight {
            2 * (256 * KIB + message_max + 896 * KIB) + 128 * KIB
        } else {
            6 * MIB + 4 * message_max
        };
        let ms = |random: &mut Random, low: u64, high: u64| {
            Duration::from_millis(random.between(low, high))
        };
        let timeout = ms(random, 20_000, 120_000);
        Config {
            data_size,
            survive,
            full,
            commit_align,
            reads_medium: commit_align == CommitAlign::Page || random.one_in(2),
            keep_for: random
                .one_in(6)
                .then(|| Duration::from_secs(1 + random.below(300))),
            consumers: full == FullPolicy::Defer || full == FullPolicy::Auto && random.one_in(2),
            pool_bytes,
            pool_is_tight: tight,
            message_max,
            exceeds: random.one_in(3),
            recipients_max: 1 + random.below(6) as u32,
            messages_max: if random.one_in(8) { 2 } else { 999_999 },
            sessions_max: if tight {
                8 + random.below(16) as usize
            } else {
                1 + random.below(12) as usize
            },
            bare: if random.one_in(4) {
                BareNewlines::Keep
            } else {
                BareNewlines::Reject
            },
            letters_max: 1 + random.below(12),
            peers_max: if large {
                6
            } else if tight {
                24
            } else {
                1 + random.below(14) as usize
            },
            latency_max_ns: [0, 200_000, 20_000_000][random.below(3) as usize],
            slow_one_in: if random.one_in(4) { 40 } else { 0 },
            timeout,
            shortest_timeout_ns: timeout.as_nanos() as u64,
            request_deadline_ns: timeout.as_nanos() as u64 * 2,
            data_grace_ns: 30_000_000_000,
            pool_wait_max_ns: [3_000_000, 300_000_000, 15_000_000_000][random.below(3) as usize],
            sync_stall_ns: 5_000_000_000,
            linger_ns: 2_000_000_000,
            crashes: if large { 10 } else { 50 },
            jumps: random.one_in(4),
        }
    }

    /// Bytes of the pool as the server makes it.
    pub fn pool_total(&self) -> u64 {
        self.pool_bytes / CHUNK_BYTES * CHUNK_BYTES
    }

    /// What the server sets aside of them.
    pub fn pool_reserve(&self) -> u64 {
        let reserve = 4 * CHUNK_BYTES + self.message_max + ENVELOPE_BYTES_MAX as u64;
        let chunks = reserve.div_ceil(CHUNK_BYTES);
        chunks.min(self.pool_total() / CHUNK_BYTES / 2) * CHUNK_BYTES
    }

    /// The server's options.
    pub fn options(&self) -> Options {
        let ns = Duration::from_nanos;
        Options {
            sessions_max: self.sessions_max,
            pool_bytes: self.pool_bytes,
            message_bytes_max: self.message_max,
            discard: false,
            shard: 0,
            timeout_greeting: self.timeout,
            timeout_command: self.timeout,
            timeout_data: self.timeout,
            timeout_reply: self.timeout,
            request_deadline: ns(self.request_deadline_ns),
            data_rate_min: 1,
            data_grace: ns(self.data_grace_ns),
            pool_wait_max: ns(self.pool_wait_max_ns),
            linger: ns(self.linger_ns),
            sync_stall: ns(self.sync_stall_ns),
            prefix_key: 7,
        }
    }
}
