//! The raw log: one line for each message of a run, for questions that the report does not answer.
//!
//! Promises: lines are handed to the kernel at the end of the loop turn that ended their messages;
//! at most [`LINES_MAX`] lines are written, and what is left out is counted. Does not: keep an
//! order between threads, or sync the file.
//!
//! A heading `# smtp-loadgen raw 1 ...`, then lines of twelve fields with a blank between:
//!
//! ```text
//! SEQ INTENDED STARTED MAIL RCPT DATA WRITTEN ENDED BYTES RCPTS RESULT PHASE
//! ```
//!
//! Times are ns since the start of the run; `-` stands for what never came. RESULT is `ok`, a reply
//! code, a fault as the report names it, `unfinished` or `unsent`; PHASE is where it ended.

use crate::client::{Finished, Outcome, Steps};
use crate::lines::Lines;
use crate::recorder::{HIGHEST_NS, histogram};
use hdrhistogram::Histogram;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most lines of one file; about 1 GB.
pub const LINES_MAX: u64 = 10_000_000;
/// Bytes of a line, about.
pub const LINE_BYTES: u64 = 110;

/// Writes lines; each worker has one over the same file.
pub struct RawLog {
    lines: Lines,
    /// Lines asked for so far, by all.
    asked: Arc<AtomicU64>,
    lines_max: u64,
}

impl RawLog {
    /// Makes `path` anew and writes the heading of a run.
    ///
    /// **Errors**: the file can't be made or written.
    pub fn create(path: &Path, heading: &str) -> io::Result<Self> {
        Self::bounded(path, heading, LINES_MAX)
    }

    fn bounded(path: &Path, heading: &str, lines_max: u64) -> io::Result<Self> {
        // Truncated first: append alone would keep an older run.
        File::create(path)?;
        let mut file = File::options().append(true).open(path)?;
        file.write_all(format!("# smtp-loadgen raw 1 {heading}\n").as_bytes())?;
        Ok(Self {
            lines: Lines::new(file, path),
            asked: Arc::default(),
            lines_max,
        })
    }

    /// Opens the file that another process of the run has begun with `create`; `writers` processes
    /// share the lines it may have.
    ///
    /// **Errors**: it can't be opened.
    pub fn join(path: &Path, writers: u64) -> io::Result<Self> {
        Ok(Self {
            lines: Lines::join(path)?,
            asked: Arc::default(),
            lines_max: LINES_MAX / writers.max(1),
        })
    }

    /// Makes another writer of the same file.
    pub fn share(&self) -> Self {
        Self {
            lines: self.lines.share(),
            asked: self.asked.clone(),
            lines_max: self.lines_max,
        }
    }

    /// Returns how many lines were written and how many were left out, by all writers.
    pub fn counts(&self) -> (u64, u64) {
        let asked = self.asked.load(Ordering::Relaxed);
        let written = asked.min(self.lines_max);
        (written, asked - written)
    }

    fn room(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) < self.lines_max
    }

    /// Adds the line of a message that ended; `unfinished` when it was cut off by the end.
    pub fn finished(&mut self, done: &Finished<'_>, unfinished: bool) {
        if !self.room() {
            return;
        }
        let Steps {
            mail_ns,
            rcpt_ns,
            data_ns,
            written_ns,
        } = done.steps;
        // Writing to a Vec can't fail.
        let _ = write!(
            self.lines.buf,
            "{} {} {}",
            done.spec.seq, done.intended_ns, done.started_ns
        );
        for ns in [mail_ns, rcpt_ns, data_ns, written_ns] {
            let _ = match ns {
                0 => write!(self.lines.buf, " -"),
                ns => write!(self.lines.buf, " {ns}"),
            };
        }
        let _ = write!(
            self.lines.buf,
            " {} {} {} ",
            done.now_ns, done.len, done.spec.recipients
        );
        let _ = match done.outcome {
            Outcome::Failed(phase, _) if unfinished => {
                writeln!(self.lines.buf, "unfinished {}", phase.name())
            }
            Outcome::Accepted => writeln!(self.lines.buf, "ok end-of-data"),
            Outcome::Deferred(phase, code) | Outcome::Rejected(phase, code) => {
                writeln!(self.lines.buf, "{code} {}", phase.name())
            }
            Outcome::Failed(phase, fault) => {
                writeln!(self.lines.buf, "{} {}", fault.name(), phase.name())
            }
        };
    }

    /// Adds the line of a message that was due at `intended_ns` and never begun.
    pub fn unsent(&mut self, seq: u64, intended_ns: u64, now_ns: u64) {
        if self.room() {
            let _ = writeln!(
                self.lines.buf,
                "{seq} {intended_ns} - - - - - {now_ns} 0 0 unsent -"
            );
        }
    }

    /// Hands all lines to the kernel.
    ///
    /// **Errors**: the file can't take them.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// What the lines of a time span come to.
pub struct Summary {
    /// Text behind `# smtp-loadgen raw 1 `.
    pub heading: String,
    /// Lines in the span by result, in the order of their first coming.
    pub results: Vec<(String, u64)>,
    /// Planned start to final reply of what was accepted, and to the end of the run of what was
    /// cut off or never begun.
    pub response: Histogram<u64>,
    /// First byte to final reply of what was accepted.
    pub service: Histogram<u64>,
    /// Last byte to final reply of what was accepted.
    pub end_of_data: Histogram<u64>,
    /// Lines that could not be read, one torn by a kill included.
    pub torn: u64,
}

/// Sums up the messages that were planned from `from_ns` to before `to_ns`. Memory does not grow
/// with the file.
///
/// **Errors**: the file can't be read, or is no raw log.
pub fn summary(path: &Path, from_ns: u64, to_ns: u64) -> io::Result<Summary> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    // No line that this program writes is longer.
    let mut next = |line: &mut Vec<u8>| -> io::Result<bool> {
        line.clear();
        let mut limited = io::Read::take(&mut reader, 4096);
        limited.read_until(b'\n', line).map(|len| len > 0)
    };
    next(&mut line)?;
    let heading = std::str::from_utf8(&line)
        .ok()
        .and_then(|line| line.strip_prefix("# smtp-loadgen raw 1 "))
        .ok_or_else(|| io::Error::other("it does not begin with `# smtp-loadgen raw 1`"))?;
    let mut summary = Summary {
        heading: heading.trim_end().to_owned(),
        results: Vec::new(),
        response: histogram(),
        service: histogram(),
        end_of_data: histogram(),
        torn: 0,
    };
    while next(&mut line)? {
        let text = line.strip_suffix(b"\n");
        let fields = text.and_then(|text| std::str::from_utf8(text).ok());
        if fields
            .and_then(|line| summary.add(line, from_ns, to_ns))
            .is_none()
        {
            summary.torn += 1;
        }
    }
    Ok(summary)
}

impl Summary {
    fn add(&mut self, line: &str, from_ns: u64, to_ns: u64) -> Option<()> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, intended, started, .., written, ended, _, _, result, _] = fields[..] else {
            return None;
        };
        if fields.len() != 12 {
            return None;
        }
        let intended: u64 = intended.parse().ok()?;
        let ended: u64 = ended.parse().ok()?;
        if !(from_ns..to_ns).contains(&intended) {
            return Some(());
        }
        let since = |text: &str| text.parse::<u64>().ok().map(|at| ended.saturating_sub(at));
        let record = |histogram: &mut Histogram<u64>, ns: u64| {
            histogram.saturating_record(ns.min(HIGHEST_NS));
        };
        if matches!(result, "ok" | "unfinished" | "unsent") {
            record(&mut self.response, ended.saturating_sub(intended));
        }
        if result == "ok" {
            record(&mut self.service, since(started)?);
            record(&mut self.end_of_data, since(written)?);
        }
        match self.results.iter_mut().find(|(known, _)| known == result) {
            Some((_, count)) => *count += 1,
            None => self.results.push((result.to_owned(), 1)),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Fault, Phase};
    use crate::plan::Spec;

    fn done(seq: u64, outcome: Outcome) -> Finished<'static> {
        Finished {
            spec: Spec {
                seq,
                size: 1000,
                recipients: 2,
            },
            stamp: None,
            len: 1000,
            outcome,
            text: b"",
            started_ns: 2_000_000,
            intended_ns: 1_000_000 * (seq + 1),
            now_ns: 9_000_000,
            steps: Steps {
                mail_ns: 3_000_000,
                written_ns: 8_000_000,
                ..Steps::default()
            },
        }
    }

    #[test]
    fn lines_have_their_form_and_are_summed_up_again() {
        let path = std::env::temp_dir().join(format!("loadgen-raw-{}", std::process::id()));
        let mut raw = RawLog::bounded(&path, "run=ab", 5).unwrap();
        raw.finished(&done(0, Outcome::Accepted), false);
        raw.finished(&done(1, Outcome::Deferred(Phase::Rcpt, 451)), false);
        let mut other = raw.share();
        other.finished(&done(2, Outcome::Failed(Phase::Body, Fault::Reset)), false);
        let cut = done(3, Outcome::Failed(Phase::EndOfData, Fault::Timeout));
        other.finished(&cut, true);
        raw.unsent(4, 5_000_000, 9_500_000);
        raw.unsent(5, 6_000_000, 9_500_000);
        raw.flush().unwrap();
        other.flush().unwrap();
        assert_eq!((raw.counts(), other.counts()), ((5, 1), (5, 1)));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "# smtp-loadgen raw 1 run=ab\n\
             0 1000000 2000000 3000000 - - 8000000 9000000 1000 2 ok end-of-data\n\
             1 2000000 2000000 3000000 - - 8000000 9000000 1000 2 451 rcpt\n\
             4 5000000 - - - - - 9500000 0 0 unsent -\n\
             2 3000000 2000000 3000000 - - 8000000 9000000 1000 2 reset body-written\n\
             3 4000000 2000000 3000000 - - 8000000 9000000 1000 2 unfinished end-of-data\n"
        );
        let mut torn = File::options().append(true).open(&path).unwrap();
        torn.write_all(b"6 7000000 70").unwrap();
        let all = summary(&path, 0, u64::MAX).unwrap();
        assert_eq!((all.heading.as_str(), all.torn), ("run=ab", 1));
        let results: Vec<_> = all
            .results
            .iter()
            .map(|(result, count)| (result.as_str(), *count))
            .collect();
        assert_eq!(
            results,
            [
                ("ok", 1),
                ("451", 1),
                ("unsent", 1),
                ("reset", 1),
                ("unfinished", 1)
            ]
        );
        let lens = [&all.response, &all.service, &all.end_of_data].map(Histogram::len);
        assert_eq!(lens, [3, 1, 1]);
        assert!(all.end_of_data.equivalent(all.end_of_data.max(), 1_000_000));
        let part = summary(&path, 2_000_000, 4_000_000).unwrap();
        assert_eq!(part.results.len(), 2);
        std::fs::write(&path, "250 no raw log\n").unwrap();
        assert!(summary(&path, 0, 1).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
