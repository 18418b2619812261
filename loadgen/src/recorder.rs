//! What one worker measured: histograms, exact counts, one row a second.
//!
//! Promises: recording allocates nothing except for the first reply of each kind; latencies of what
//! began outside the measured window are left out, counts never are; `merge` loses nothing.

use crate::client::{Fault, Finished, Outcome, PHASES, Phase};
use crate::reply;
use crate::wire::Agreed;
use hdrhistogram::Histogram;

/// Bounds of every histogram, ns: 64 ns to one hour at three digits.
pub const LOWEST_NS: u64 = 64;
/// One hour; longer is counted in `above_range`.
pub const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Makes an empty histogram of the one shape that is used.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, 3).expect("invariant: bounds are valid")
}

/// Buckets of the small histogram in each row: 8 for each power of two.
pub const CELLS: usize = 38 * 8;

/// Returns the bucket of `ns`.
pub fn cell(ns: u64) -> usize {
    let ns = ns.max(1024);
    let power = 63 - ns.leading_zeros() as usize;
    let part = (ns >> (power - 3)) as usize & 7;
    ((power - 10) * 8 + part).min(CELLS - 1)
}

/// Returns the upper end of a bucket, ns.
pub fn cell_end(cell: usize) -> u64 {
    ((8 + cell as u64 % 8 + 1) << (cell / 8 + 10)) >> 3
}

/// One second of the run.
#[derive(Clone, Debug)]
pub struct Row {
    /// Planned to start in this second; equal to `sent` in a closed loop.
    pub offered: u64,
    /// Begun.
    pub sent: u64,
    /// Ended with 2xx.
    pub accepted: u64,
    /// Ended with 4xx.
    pub deferred: u64,
    /// Ended with 5xx.
    pub rejected: u64,
    /// Ended by a lost connection.
    pub failed: u64,
    /// Bytes of accepted messages.
    pub bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// CPU time of the worker, ns.
    pub cpu_ns: u64,
    /// Worst lag of the worker, ns.
    pub lag_ns: u64,
    /// Largest latency, ns.
    pub max_ns: u64,
    /// Latencies of accepted messages.
    pub cells: Box<[u32; CELLS]>,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            offered: 0,
            sent: 0,
            accepted: 0,
            deferred: 0,
            rejected: 0,
            failed: 0,
            bytes: 0,
            connections: 0,
            cpu_ns: 0,
            lag_ns: 0,
            max_ns: 0,
            cells: Box::new([0; CELLS]),
        }
    }
}

impl Row {
    /// Returns the latency that a share of the messages did not exceed; 0 without messages.
    pub fn quantile(&self, share: f64) -> u64 {
        let total: u64 = self.cells.iter().map(|count| u64::from(*count)).sum();
        let rank = (share * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.cells.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return cell_end(index).min(self.max_ns);
            }
        }
        0
    }

    /// Returns all numbers but the latencies: nine that add up, then two of which the larger counts.
    pub fn numbers(&mut self) -> ([&mut u64; 9], [&mut u64; 2]) {
        let Self {
            offered,
            sent,
            accepted,
            deferred,
            rejected,
            failed,
            bytes,
            connections,
            cpu_ns,
            lag_ns,
            max_ns,
            cells: _,
        } = self;
        (
            [
                offered,
                sent,
                accepted,
                deferred,
                rejected,
                failed,
                bytes,
                connections,
                cpu_ns,
            ],
            [lag_ns, max_ns],
        )
    }

    fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        let ((sums, peaks), (more, others)) = (self.numbers(), other.numbers());
        for (mine, theirs) in sums.into_iter().zip(more) {
            *mine += *theirs;
        }
        for (mine, theirs) in peaks.into_iter().zip(others) {
            *mine = (*mine).max(*theirs);
        }
        for (cell, more) in self.cells.iter_mut().zip(other.cells.iter()) {
            *cell += more;
        }
    }
}

/// A kind of reply or fault, how often it came, and the first text seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Where.
    pub phase: Phase,
    /// The code; 0 for bytes that were no reply and for faults.
    pub code: u16,
    /// The fault, if it is one.
    pub fault: Option<Fault>,
    /// Enhanced status code, only for 4xx and 5xx.
    pub enhanced: String,
    /// How often.
    pub count: u64,
    /// Text of the first.
    pub sample: String,
}

/// Exact counts over the whole run, warm-up and drain included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Transactions begun.
    pub attempted: u64,
    /// Ended with 2xx.
    pub accepted: u64,
    /// Ended with 4xx.
    pub deferred: u64,
    /// Ended with 5xx.
    pub rejected: u64,
    /// Ended by a lost connection or a time-out.
    pub failed: u64,
    /// In flight when the drain ended.
    pub unfinished: u64,
    /// Planned and never begun.
    pub unsent: u64,
    /// Bytes of accepted messages.
    pub message_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// Accepted within the measured window.
    pub window_accepted: u64,
    /// Bytes of those.
    pub window_bytes: u64,
    /// Connections within the measured window.
    pub window_connections: u64,
    /// Begun within the measured window.
    pub window_sent: u64,
    /// Planned within the measured window.
    pub window_offered: u64,
    /// Latencies above the histogram's range.
    pub above_range: u64,
    /// TCP segments sent again, as the sockets say when they are closed.
    pub retransmits: u64,
}

impl Totals {
    /// Returns all of them, in one fixed order.
    pub fn counts(&mut self) -> [&mut u64; 18] {
        // Without a rest pattern: a count that is missing here does not compile.
        let Self {
            attempted,
            accepted,
            deferred,
            rejected,
            failed,
            unfinished,
            unsent,
            message_bytes,
            written_bytes,
            read_bytes,
            connections,
            window_accepted,
            window_bytes,
            window_connections,
            window_sent,
            window_offered,
            above_range,
            retransmits,
        } = self;
        [
            attempted,
            accepted,
            deferred,
            rejected,
            failed,
            unfinished,
            unsent,
            message_bytes,
            written_bytes,
            read_bytes,
            connections,
            window_accepted,
            window_bytes,
            window_connections,
            window_sent,
            window_offered,
            above_range,
            retransmits,
        ]
    }

    fn merge(&mut self, other: &Self) {
        let mut other = *other;
        for (mine, theirs) in self.counts().into_iter().zip(other.counts()) {
            *mine += *theirs;
        }
    }
}

/// CPU use of one worker over the measured window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Time it was ready to run and had no CPU, ns.
    pub waited_ns: u64,
    /// Length of the window, ns.
    pub wall_ns: u64,
}

/// Everything one worker measured.
pub struct Recorder {
    /// One histogram for each phase.
    pub phases: Vec<Histogram<u64>>,
    /// Time from plan to start while a session was free: ours.
    pub lag_generator: Histogram<u64>,
    /// Time from plan to start while no session was free: the target's.
    pub lag_target: Histogram<u64>,
    /// Transaction time of messages that were not accepted.
    pub refused: Histogram<u64>,
    /// Exact counts.
    pub totals: Totals,
    /// Kinds of replies and faults, in the order of their first coming.
    pub kinds: Vec<Kind>,
    /// Index + 1 into `kinds` for each phase and code, for replies without enhanced code.
    index: Box<[[u16; 600]; PHASES]>,
    /// What TLS handshakes came to, and how many.
    pub tls: Vec<(Agreed, u64)>,
    /// TCP congestion control of the first connection, as its socket says.
    pub congestion: Option<String>,
    /// One row a second from the start.
    pub rows: Vec<Row>,
    /// CPU use, one entry for each worker.
    pub loads: Vec<Load>,
    /// Start and end of the measured window, ns from the start.
    pub window: (u64, u64),
    /// When the last reply came, ns from the start.
    pub last_ns: u64,
    open: bool,
}

impl Recorder {
    /// Makes an empty one that measures from `from_ns` to `to_ns`.
    pub fn new(from_ns: u64, to_ns: u64, open: bool) -> Self {
        Self {
            phases: Phase::ALL.iter().map(|_| histogram()).collect(),
            lag_generator: histogram(),
            lag_target: histogram(),
            refused: histogram(),
            totals: Totals::default(),
            kinds: Vec::new(),
            index: Box::new([[0; 600]; PHASES]),
            tls: Vec::new(),
            congestion: None,
            rows: Vec::new(),
            loads: Vec::new(),
            window: (from_ns, to_ns),
            last_ns: 0,
            open,
        }
    }

    /// Whether `at_ns` is in the measured window.
    pub fn measures(&self, at_ns: u64) -> bool {
        (self.window.0..self.window.1).contains(&at_ns)
    }

    /// Returns the row of the second that holds `at_ns`.
    pub fn row(&mut self, at_ns: u64) -> &mut Row {
        let index = ((at_ns / 1_000_000_000) as usize).min(86_400);
        if self.rows.len() <= index {
            self.rows.resize_with(index + 1, Row::default);
        }
        &mut self.rows[index]
    }

    /// Records a latency.
    pub fn latency(&mut self, phase: Phase, ns: u64) {
        if ns > HIGHEST_NS {
            self.totals.above_range += 1;
        }
        self.phases[phase as usize].saturating_record(ns);
    }

    /// Counts a reply.
    pub fn reply(&mut self, phase: Phase, code: u16, text: &[u8]) {
        let enhanced = if code >= 400 {
            reply::enhanced_code(text)
        } else {
            b""
        };
        if enhanced.is_empty() {
            let slot = &mut self.index[phase as usize][usize::from(code).min(599)];
            if *slot == 0 {
                self.kinds.push(kind(phase, code, None, enhanced, text));
                *slot = self.kinds.len() as u16;
            } else {
                self.kinds[usize::from(*slot) - 1].count += 1;
            }
            return;
        }
        let known = self.kinds.iter_mut().find(|kind| {
            kind.phase == phase && kind.code == code && kind.enhanced.as_bytes() == enhanced
        });
        match known {
            Some(kind) => kind.count += 1,
            None => self.kinds.push(kind(phase, code, None, enhanced, text)),
        }
    }

    /// Counts a fault.
    pub fn fault(&mut self, phase: Phase, fault: Fault, text: &str) {
        let known = self
            .kinds
            .iter_mut()
            .find(|k| k.phase == phase && k.fault == Some(fault));
        match known {
            Some(kind) => kind.count += 1,
            None => self
                .kinds
                .push(kind(phase, 0, Some(fault), b"", text.as_bytes())),
        }
    }

    /// Counts `count` TLS handshakes that came to `agreed`.
    pub fn secured(&mut self, agreed: Agreed, count: u64) {
        match self.tls.iter_mut().find(|(known, _)| *known == agreed) {
            Some((_, known)) => *known += count,
            None => self.tls.push((agreed, count)),
        }
    }

    /// Counts the start of a transaction.
    pub fn begun(&mut self, now: u64) {
        self.totals.attempted += 1;
        self.totals.window_sent += u64::from(self.measures(now));
        self.row(now).sent += 1;
    }

    /// Counts the end of a transaction.
    pub fn finished(&mut self, done: &Finished<'_>) {
        let now = done.now_ns;
        self.last_ns = self.last_ns.max(now);
        // By its start: a stall that outlasts the window would take its own victims out of the
        // tables if they were sorted by their end.
        let measured = self.measures(done.intended_ns);
        let response = now.saturating_sub(done.intended_ns);
        let row = self.row(now);
        match done.outcome {
            Outcome::Accepted => {
                let bytes = done.len;
                row.accepted += 1;
                row.bytes += bytes;
                row.max_ns = row.max_ns.max(response);
                row.cells[cell(response)] += 1;
                self.totals.accepted += 1;
                self.totals.message_bytes += bytes;
                if self.measures(now) {
                    self.totals.window_accepted += 1;
                    self.totals.window_bytes += bytes;
                }
                if measured {
                    self.latency(Phase::Transaction, now.saturating_sub(done.started_ns));
                    if self.open {
                        self.latency(Phase::Response, response);
                    }
                }
            }
            Outcome::Deferred(..) => {
                row.deferred += 1;
                self.totals.deferred += 1;
            }
            Outcome::Rejected(..) => {
                row.rejected += 1;
                self.totals.rejected += 1;
            }
            Outcome::Failed(..) => {
                row.failed += 1;
                self.totals.failed += 1;
            }
        }
        if measured && done.outcome != Outcome::Accepted {
            self.refused
                .saturating_record(now.saturating_sub(done.started_ns));
        }
    }

    /// Adds what another worker measured.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.phases.iter_mut().zip(&other.phases) {
            mine.add(theirs)
                .expect("invariant: all histograms have one shape");
        }
        for (mine, theirs) in [
            (&mut self.lag_generator, &other.lag_generator),
            (&mut self.lag_target, &other.lag_target),
            (&mut self.refused, &other.refused),
        ] {
            mine.add(theirs)
                .expect("invariant: all histograms have one shape");
        }
        self.totals.merge(&other.totals);
        if self.congestion.is_none() {
            self.congestion.clone_from(&other.congestion);
        }
        for (agreed, count) in &other.tls {
            self.secured(*agreed, *count);
        }
        for theirs in &other.kinds {
            let same = self.kinds.iter_mut().find(|mine| {
                mine.phase == theirs.phase
                    && mine.code == theirs.code
                    && mine.fault == theirs.fault
                    && mine.enhanced == theirs.enhanced
            });
            match same {
                Some(mine) => mine.count += theirs.count,
                None => self.kinds.push(theirs.clone()),
            }
        }
        if self.rows.len() < other.rows.len() {
            self.rows.resize_with(other.rows.len(), Row::default);
        }
        for (mine, theirs) in self.rows.iter_mut().zip(&other.rows) {
            mine.merge(theirs);
        }
        self.loads.extend_from_slice(&other.loads);
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

fn kind(phase: Phase, code: u16, fault: Option<Fault>, enhanced: &[u8], text: &[u8]) -> Kind {
    let sample = &text[..text.len().min(200)];
    Kind {
        phase,
        code,
        fault,
        enhanced: String::from_utf8_lossy(enhanced).into_owned(),
        count: 1,
        sample: String::from_utf8_lossy(sample).replace(char::is_control, "?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cover_their_values() {
        for ns in [
            0,
            1,
            1024,
            1025,
            5000,
            123_456,
            99_999_999,
            3_600_000_000_000,
        ] {
            let index = cell(ns);
            assert!(cell_end(index) >= ns.max(1024), "{ns}");
            assert!(index == 0 || cell_end(index - 1) <= ns.max(1024), "{ns}");
        }
    }

    #[test]
    fn replies_are_counted_by_phase_code_and_enhanced_code() {
        let mut recorder = Recorder::new(0, u64::MAX, false);
        for _ in 0..3 {
            recorder.reply(Phase::Rcpt, 451, b"4.7.1 greylisted");
            recorder.reply(Phase::Rcpt, 451, b"4.3.0 other");
            recorder.reply(Phase::Rcpt, 250, b"ok one");
            recorder.reply(Phase::Mail, 250, b"ok two");
        }
        let seen: Vec<_> = recorder
            .kinds
            .iter()
            .map(|k| {
                (
                    k.phase,
                    k.code,
                    k.enhanced.as_str(),
                    k.count,
                    k.sample.as_str(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (Phase::Rcpt, 451, "4.7.1", 3, "4.7.1 greylisted"),
                (Phase::Rcpt, 451, "4.3.0", 3, "4.3.0 other"),
                (Phase::Rcpt, 250, "", 3, "ok one"),
                (Phase::Mail, 250, "", 3, "ok two"),
            ]
        );
    }
}
