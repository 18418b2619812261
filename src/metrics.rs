//! Counters and histograms of one loop, passed by `&mut`. Recording allocates nothing and takes a few
//! nanoseconds.
//!
//! This file knows no SMTP: commands and replies are counted by index, and whoever shows them has the names.

use hdrhistogram::Histogram;

use crate::choice::choices;

/// Significant decimal digits of the histograms: values are exact to 1 %.
const DIGITS: u8 = 2;
/// Longest time a histogram tells from longer ones, nanoseconds (1 hour).
const TIME_NS_MAX: u64 = 3_600_000_000_000;
/// Times below this are not told apart, nanoseconds.
const TIME_NS_MIN: u64 = 1_000;
/// Largest count or number of bytes of a batch that is told from larger ones.
const BATCH_MAX: u64 = 1 << 40;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseCause {
    /// QUIT.
    Quit,
    /// The server refused to go on: policy, too many errors, no session free.
    Refused,
    /// The client closed without QUIT.
    PeerClosed,
    /// The connection broke.
    PeerReset,
    /// A time limit ran out while the client was silent.
    TimedOut,
    /// Data came more slowly than the minimum rate, or a request took too long.
    TooSlow,
    /// The client left its replies unread.
    RepliesUnread,
    /// A message waited too long for memory.
    PoolWait,
    /// The server is stopping.
    Draining,
    /// The log stopped after a storage failure.
    StorageFailed,
    /// The session panicked.
    Panicked,
    /// TLS failed, before or after the end of its handshake.
    TlsFailed,
}

impl CloseCause {
    /// Number of causes.
    pub const COUNT: usize = 12;
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; CloseCause::COUNT] = [
        "quit",
        "refused",
        "peer_closed",
        "peer_reset",
        "timed_out",
        "too_slow",
        "replies_unread",
        "pool_wait",
        "draining",
        "storage_failed",
        "panicked",
        "tls_failed",
    ];
}

/// A limit on what a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Limited {
    /// Sessions at the same time.
    Sessions,
    /// Connections per minute.
    Connections,
    /// Messages per minute.
    Messages,
    /// Recipients per minute.
    Recipients,
    /// Octets per minute.
    Bytes,
    /// TLS handshakes per minute.
    Handshakes,
}

impl Limited {
    /// Number of limits.
    pub const COUNT: usize = 6;
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; Limited::COUNT] = [
        "sessions",
        "connections",
        "messages",
        "recipients",
        "bytes",
        "handshakes",
    ];
}

/// Whose limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// An IPv4 address, or an IPv6 /64.
    Client,
    /// The IPv4 /24 or IPv6 /48 around it.
    Network,
}

impl Scope {
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; 2] = ["client", "network"];
}

/// Why limits have become narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StressCause {
    /// Most of the sessions are in use.
    Sessions,
    /// The pool has little left.
    Pool,
    /// A sync takes long.
    Sync,
}

impl StressCause {
    /// Number of causes.
    pub const COUNT: usize = 3;
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; StressCause::COUNT] = ["sessions", "pool", "sync"];
}

/// What a histogram measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// From the accepted connection to its greeting handed to the socket, ns.
    Greeting,
    /// From a complete command line to its reply handed to the socket, ns; replies that wait for a commit apart.
    Command,
    /// From the 354 (or the first BDAT) to the end of data, ns.
    Data,
    /// From the end of data to the commit that covers it, ns.
    CommitWait,
    /// From the end of data to the begin of the sync that covers it, ns.
    SyncWait,
    /// From the end of that sync to the 250 handed to the socket, ns.
    Release,
    /// From the end of data to its 250 handed to the socket, ns.
    EndOfData,
    /// One pwritev, ns.
    Write,
    /// From the order to sync to its begin on the thread that does it, ns.
    SyncStart,
    /// One fdatasync, ns.
    Sync,
    /// One turn of the loop without its wait, ns.
    Turn,
    /// Messages that one commit covered.
    BatchMessages,
    /// Bytes that one commit covered.
    BatchBytes,
}

impl Phase {
    /// Number of histograms.
    pub const COUNT: usize = 13;
    /// All of them, in order.
    pub const ALL: [Phase; Phase::COUNT] = [
        Phase::Greeting,
        Phase::Command,
        Phase::Data,
        Phase::CommitWait,
        Phase::SyncWait,
        Phase::Release,
        Phase::EndOfData,
        Phase::Write,
        Phase::SyncStart,
        Phase::Sync,
        Phase::Turn,
        Phase::BatchMessages,
        Phase::BatchBytes,
    ];
    /// The histograms of times, in order; the rest are counts.
    pub const TIMES: [Phase; 11] = [
        Phase::Greeting,
        Phase::Command,
        Phase::Data,
        Phase::CommitWait,
        Phase::SyncWait,
        Phase::Release,
        Phase::EndOfData,
        Phase::Write,
        Phase::SyncStart,
        Phase::Sync,
        Phase::Turn,
    ];
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; Phase::COUNT] = [
        "greeting",
        "command",
        "data",
        "commit_wait",
        "sync_wait",
        "release",
        "end_of_data",
        "write",
        "sync_start",
        "sync",
        "turn",
        "batch_messages",
        "batch_bytes",
    ];

    /// Name.
    pub fn name(self) -> &'static str {
        Phase::NAMES[self as usize]
    }
}

/// A histogram of fixed memory (at most 40 KiB, of which untouched pages cost nothing) and the exact sum.
#[derive(Clone, Debug)]
pub struct Distribution {
    histogram: Histogram<u64>,
    sum: u64,
}

impl Distribution {
    fn of(min: u64, max: u64) -> Distribution {
        Distribution {
            // Fails only for bounds that the constants above do not have.
            histogram: Histogram::new_with_bounds(min, max, DIGITS)
                .expect("constant bounds are valid"),
            sum: 0,
        }
    }

    /// Counts one value; one beyond the largest counts as the largest.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.histogram.saturating_record(value);
        self.sum = self.sum.saturating_add(value);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Exact sum of the values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Largest value, exact to the histogram's digits; 0 when nothing was counted.
    pub fn max(&self) -> u64 {
        self.histogram.max()
    }

    /// The value that a share `quantile` (0 to 1) of the values does not exceed; 0 when nothing was counted.
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile)
    }

    /// What was counted, as values (as exact as the histogram is) and how often each; and the exact sum.
    pub fn pairs(&self) -> (Vec<(u64, u64)>, u64) {
        let recorded = self.histogram.iter_recorded();
        let pairs = recorded.map(|value| {
            (
                value.value_iterated_to(),
                value.count_since_last_iteration(),
            )
        });
        (pairs.collect(), self.sum)
    }

    /// Counts what another one of the same kind has counted.
    fn merge(&mut self, other: &Distribution) {
        for value in other.histogram.iter_recorded() {
            let count = value.count_since_last_iteration();
            self.histogram
                .saturating_record_n(value.value_iterated_to(), count);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// For each of the rising `bounds`, how many values do not exceed it. One pass over the histogram.
    pub fn cumulative(&self, bounds: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; bounds.len()];
        let mut at = 0;
        let mut seen = 0;
        for value in self.histogram.iter_recorded() {
            while at < bounds.len()
                && self.histogram.lowest_equivalent(bounds[at])
                    < self.histogram.lowest_equivalent(value.value_iterated_to())
            {
                counts[at] = seen;
                at += 1;
            }
            seen += value.count_since_last_iteration();
        }
        counts[at..].fill(seen);
        counts
    }
}

choices! {
    /// Why TLS failed, for counters and log lines.
    #[derive(Default)]
    TlsFailure {
        /// What came is no TLS.
        #[default]
        NotTls = "not_tls",
        /// The client speaks no version from 1.2 on.
        Version = "version",
        /// No cipher suite, group or signature in common.
        NothingInCommon = "nothing_in_common",
        /// The client's certificate is missing or not good.
        ClientCertificate = "client_certificate",
        /// The client sent an alert: it does not trust the certificate, or gave up for a reason of its own.
        Alert = "alert",
        /// The client broke the protocol, or its octets were changed on their way.
        Misbehaved = "misbehaved",
        /// A message of the handshake, or of its kind, is longer than is taken.
        TooLong = "too_long",
        /// The connection ended amid the handshake.
        Closed = "closed",
        /// The handshake took too long.
        TimedOut = "timed_out",
        /// No place on the helper's queue.
        Busy = "busy",
        /// Ours.
        Internal = "internal",
    }
}

/// What became of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsCounters {
    /// Handshakes that ended with TLS 1.2, and with 1.3.
    pub completed: [u64; 2],
    /// How many of them resumed an earlier session.
    pub resumed: u64,
    /// How many of them came with a certificate of the client.
    pub with_client_certificate: u64,
    /// Handshakes that failed, by [`TlsFailure`].
    pub failed: [u64; TlsFailure::ALL.len()],
    /// Open sessions that failed.
    pub broken: u64,
    /// Open sessions whose client ended the connection without close_notify.
    pub truncated: u64,
    /// Handshakes not taken because enough were under way.
    pub refused: u64,
    /// Handshakes done by the helper.
    pub offloaded: u64,
    /// Times that certificates were read again, and that they could not be.
    pub reloads: [u64; 2],
    /// Octets of plaintext received and sent under TLS.
    pub plaintext: [u64; 2],
}

/// Everything one loop counts. All counters start at 0 and only rise.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// SMTP connections accepted from the kernel.
    pub connections_accepted: u64,
    /// SMTP connections ended, by [`CloseCause`].
    pub connections_closed: [u64; CloseCause::COUNT],
    /// Connections refused because all session places were taken.
    pub sessions_refused: u64,
    /// Connections closed before their session for want of a good header of the PROXY protocol.
    pub proxy_headers_refused: u64,
    /// What became of TLS.
    pub tls: TlsCounters,
    /// Times that accepting stopped for want of descriptors or memory.
    pub accept_pauses: u64,
    /// Commands, by index of the verb.
    pub commands: Vec<u64>,
    /// Replies, by row of the reply table.
    pub replies: Vec<u64>,
    /// Octets read from SMTP clients.
    pub bytes_in: u64,
    /// Octets written to SMTP clients.
    pub bytes_out: u64,
    /// Messages that got their 250.
    pub messages_accepted: u64,
    /// Octets of these messages, trace field included.
    pub message_bytes_accepted: u64,
    /// Messages refused at or after their end of data.
    pub messages_refused: u64,
    /// Messages that never ended: RSET, a lost connection, a time limit.
    pub messages_aborted: u64,
    /// LF without CR in content.
    pub bare_lf: u64,
    /// CR without LF in content.
    pub bare_cr: u64,
    /// NUL in content.
    pub nul: u64,
    /// Commits: batches of messages released together.
    pub batches: u64,
    /// fdatasync calls that returned, failures included.
    pub syncs: u64,
    /// Writes or syncs that failed; at most 1, the log stops.
    pub storage_failures: u64,
    /// Bytes appended to the ring: headers, envelopes, padding and zero fill included.
    pub ring_bytes_written: u64,
    /// Messages overwritten before any consumer or reader had them.
    pub overwritten_unread: u64,
    /// Times that the pool had no room for a message.
    pub pool_low_events: u64,
    /// 452 sent after the end of data for want of ring space: the last resort.
    pub no_space_after_data: u64,
    /// Messages committed after their client had gone: it will send them again.
    pub unacknowledged_commits: u64,
    /// Sessions closed because their code panicked.
    pub session_panics: u64,
    /// Refusals because a client used too much, by [`Limited`] and [`Scope`].
    pub limited: [[u64; Scope::NAMES.len()]; Limited::COUNT],
    /// Refusals that were held back for a while.
    pub tarpitted: u64,
    /// Clients that talked before their greeting.
    pub early_talkers: u64,
    /// Times that stress began, by [`StressCause`].
    pub stress_began: [u64; StressCause::COUNT],
    /// Times that the access rules were read again and put in force.
    pub rules_loaded: u64,
    /// Times that they could not be read again.
    pub rules_refused: u64,
    /// HTTP requests answered.
    pub http_requests: u64,
    /// Turns of the loop.
    pub turns: u64,
    distributions: [Distribution; Phase::COUNT],
}

impl Metrics {
    /// Counters for so many verbs and rows of replies, all 0.
    pub fn new(verbs: usize, replies: usize) -> Metrics {
        let time = Distribution::of(TIME_NS_MIN, TIME_NS_MAX);
        let batch = Distribution::of(1, BATCH_MAX);
        Metrics {
            connections_accepted: 0,
            connections_closed: [0; CloseCause::COUNT],
            sessions_refused: 0,
            proxy_headers_refused: 0,
            tls: TlsCounters::default(),
            accept_pauses: 0,
            commands: vec![0; verbs],
            replies: vec![0; replies],
            bytes_in: 0,
            bytes_out: 0,
            messages_accepted: 0,
            message_bytes_accepted: 0,
            messages_refused: 0,
            messages_aborted: 0,
            bare_lf: 0,
            bare_cr: 0,
            nul: 0,
            batches: 0,
            syncs: 0,
            storage_failures: 0,
            ring_bytes_written: 0,
            overwritten_unread: 0,
            pool_low_events: 0,
            no_space_after_data: 0,
            unacknowledged_commits: 0,
            session_panics: 0,
            limited: [[0; Scope::NAMES.len()]; Limited::COUNT],
            tarpitted: 0,
            early_talkers: 0,
            stress_began: [0; StressCause::COUNT],
            rules_loaded: 0,
            rules_refused: 0,
            http_requests: 0,
            turns: 0,
            distributions: std::array::from_fn(|at| {
                let counts = at >= Phase::TIMES.len();
                if counts { batch.clone() } else { time.clone() }
            }),
        }
    }

    /// Counts a command; an index beyond those of [`Metrics::new`] is not counted.
    #[inline]
    pub fn command(&mut self, verb: usize) {
        if let Some(count) = self.commands.get_mut(verb) {
            *count += 1;
        }
    }

    /// Counts a reply; an index beyond those of [`Metrics::new`] is not counted.
    #[inline]
    pub fn reply(&mut self, row: usize) {
        if let Some(count) = self.replies.get_mut(row) {
            *count += 1;
        }
    }

    /// Counts the end of a connection.
    #[inline]
    pub fn closed(&mut self, cause: CloseCause) {
        self.connections_closed[cause as usize] += 1;
    }

    /// Counts the same value `count` times.
    pub fn record_many(&mut self, phase: Phase, value: u64, count: u64) {
        let distribution = &mut self.distributions[phase as usize];
        distribution.histogram.saturating_record_n(value, count);
        distribution.sum = distribution.sum.saturating_add(value.saturating_mul(count));
    }

    /// Counts one value: nanoseconds for times, otherwise messages or bytes.
    #[inline]
    pub fn record(&mut self, phase: Phase, value: u64) {
        self.distributions[phase as usize].record(value);
    }

    /// Lends every counter, always in the same order: what several loops count is sent and added by it.
    pub fn each_counter(&mut self, each: &mut dyn FnMut(&mut u64)) {
        // Taken apart by name, so that a new counter can't be forgotten here.
        let Metrics {
            connections_accepted,
            connections_closed,
            sessions_refused,
            proxy_headers_refused,
            tls,
            accept_pauses,
            commands,
            replies,
            bytes_in,
            bytes_out,
            messages_accepted,
            message_bytes_accepted,
            messages_refused,
            messages_aborted,
            bare_lf,
            bare_cr,
            nul,
            batches,
            syncs,
            storage_failures,
            ring_bytes_written,
            overwritten_unread,
            pool_low_events,
            no_space_after_data,
            unacknowledged_commits,
            session_panics,
            limited,
            tarpitted,
            early_talkers,
            stress_began,
            rules_loaded,
            rules_refused,
            http_requests,
            turns,
            distributions: _,
        } = self;
        let TlsCounters {
            completed,
            resumed,
            with_client_certificate,
            failed,
            broken,
            truncated,
            refused,
            offloaded,
            reloads,
            plaintext,
        } = tls;
        let single = [
            connections_accepted,
            sessions_refused,
            proxy_headers_refused,
            accept_pauses,
            bytes_in,
            bytes_out,
            messages_accepted,
            message_bytes_accepted,
            messages_refused,
            messages_aborted,
            bare_lf,
            bare_cr,
            nul,
            batches,
            syncs,
            storage_failures,
            ring_bytes_written,
            overwritten_unread,
            pool_low_events,
            no_space_after_data,
            unacknowledged_commits,
            session_panics,
            tarpitted,
            early_talkers,
            rules_loaded,
            rules_refused,
            http_requests,
            turns,
            resumed,
            with_client_certificate,
            broken,
            truncated,
            refused,
            offloaded,
        ];
        let rows = [
            &mut connections_closed[..],
            commands,
            replies,
            stress_began,
            completed,
            failed,
            reloads,
            plaintext,
        ];
        let rows = rows.into_iter().flatten();
        let tables = limited.iter_mut().flatten();
        for counter in single.into_iter().chain(rows).chain(tables) {
            each(counter);
        }
    }

    /// Adds what another loop has counted.
    pub fn merge(&mut self, other: &Metrics) {
        let mut values = Vec::new();
        other.clone().each_counter(&mut |value| values.push(*value));
        let mut values = values.into_iter();
        self.each_counter(&mut |counter| {
            *counter = counter.saturating_add(values.next().unwrap_or(0));
        });
        for (mine, theirs) in self.distributions.iter_mut().zip(&other.distributions) {
            mine.merge(theirs);
        }
    }

    /// Counts a value of a distribution `count` times without adding to its sum, which [`Metrics::add_sum`] does.
    pub fn record_counted(&mut self, phase: Phase, value: u64, count: u64) {
        let distribution = &mut self.distributions[phase as usize];
        distribution.histogram.saturating_record_n(value, count);
    }

    /// Adds to the exact sum of a distribution.
    pub fn add_sum(&mut self, phase: Phase, sum: u64) {
        let distribution = &mut self.distributions[phase as usize];
        distribution.sum = distribution.sum.saturating_add(sum);
    }

    /// The values counted for `phase`.
    pub fn distribution(&self, phase: Phase) -> &Distribution {
        &self.distributions[phase as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_ignore_an_index_they_do_not_have() {
        let mut metrics = Metrics::new(2, 1);
        metrics.command(1);
        metrics.command(2);
        metrics.reply(0);
        metrics.reply(9);
        metrics.closed(CloseCause::Panicked);
        assert_eq!(metrics.commands, [0, 1]);
        assert_eq!(metrics.replies, [1]);
        assert_eq!(
            metrics.connections_closed,
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
    }

    #[test]
    fn names_stand_in_the_order_of_the_variants() {
        assert_eq!(CloseCause::NAMES[CloseCause::Panicked as usize], "panicked");
        assert_eq!(
            CloseCause::NAMES[CloseCause::PoolWait as usize],
            "pool_wait"
        );
        assert_eq!(Phase::BatchBytes.name(), "batch_bytes");
        assert_eq!(Limited::NAMES[Limited::Handshakes as usize], "handshakes");
        assert_eq!(Scope::NAMES[Scope::Network as usize], "network");
        assert_eq!(StressCause::NAMES[StressCause::Sync as usize], "sync");
        for (at, phase) in Phase::TIMES.iter().enumerate() {
            assert_eq!(*phase as usize, at);
        }
    }

    #[test]
    fn a_histogram_counts_values_at_and_below_each_bound() {
        let mut metrics = Metrics::new(0, 0);
        for ns in [0, 1_000, 100_000, 100_000, 5_000_000, u64::MAX] {
            metrics.record(Phase::Sync, ns);
        }
        let sync = metrics.distribution(Phase::Sync);
        assert_eq!(sync.count(), 6);
        assert_eq!(sync.sum(), u64::MAX);
        let bounds = [500, 100_000, 1_000_000, 10_000_000, 60_000_000_000];
        assert_eq!(sync.cumulative(&bounds), [1, 4, 4, 5, 5]);
        assert_eq!(sync.cumulative(&[u64::MAX]), [6]);
        assert_eq!(
            metrics.distribution(Phase::Write).cumulative(&bounds),
            [0; 5]
        );
    }

    #[test]
    fn merged_counters_and_histograms_are_those_of_one_loop_that_did_it_all() {
        let mut next = 1;
        let mut filled = |counted: &[u64]| {
            let mut metrics = Metrics::new(3, 2);
            metrics.each_counter(&mut |counter| {
                *counter = next;
                next += 1;
            });
            for value in counted {
                metrics.record(Phase::Sync, *value);
                metrics.record(Phase::BatchBytes, *value);
            }
            metrics
        };
        let (mut first, second) = (filled(&[1, 70_000, u64::MAX / 4]), filled(&[5_000, 70_000]));
        let mut counters = Vec::new();
        second.clone().each_counter(&mut |c| counters.push(*c));
        let len = counters.len() as u64;
        assert_eq!(counters, (len + 1..=2 * len).collect::<Vec<_>>());
        first.merge(&second);
        let mut sums = Vec::new();
        first.each_counter(&mut |counter| sums.push(*counter));
        assert_eq!(sums, (1..=len).map(|n| n + n + len).collect::<Vec<_>>());
        let mut expected = Metrics::new(0, 0);
        for value in [1, 70_000, u64::MAX / 4, 5_000, 70_000] {
            expected.record(Phase::Sync, value);
            expected.record(Phase::BatchBytes, value);
        }
        for phase in [Phase::Sync, Phase::BatchBytes, Phase::Turn] {
            let (merged, expected) = (first.distribution(phase), expected.distribution(phase));
            assert_eq!(merged.pairs(), expected.pairs());
            assert_eq!(merged.max(), expected.max());
        }
    }

    #[test]
    fn a_batch_of_any_size_is_recorded() {
        let mut metrics = Metrics::new(0, 0);
        for value in [0, 1, 64, 1 << 40, u64::MAX] {
            metrics.record(Phase::BatchMessages, value);
        }
        let batch = metrics.distribution(Phase::BatchMessages);
        assert_eq!(batch.cumulative(&[1, 63, 64]), [2, 2, 3]);
        assert_eq!(batch.quantile(0.5), 64);
    }
}
