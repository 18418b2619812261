//! What this program can reach on this machine: measured by `selftest`, kept in a file, and set
//! beside every later result.
//!
//! Promises: a figure of another machine, another kernel or another version of this program is
//! never used; a file that can't be read or written costs the figure and nothing else.

use crate::plan::{Count, Mode, Pipelining, Plan};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Version of the JSON of `selftest`.
pub const SCHEMA: &str = "smtp-loadgen/selftest/1";
/// Largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Mean message size from which on a workload is held against the one with large messages, bytes.
const LARGE: u64 = 256 << 10;

/// The workloads of `selftest`, by what they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One command, one reply.
    LockStep,
    /// MAIL, RCPT and DATA together.
    Pipelined,
    /// BDAT with its envelope in one send.
    Chunked,
    /// A connection for each message.
    PerConnection,
    /// Messages of 1 MiB.
    Large,
}

impl Workload {
    /// All, in the order of `selftest`.
    pub const ALL: [Self; 5] = [
        Self::LockStep,
        Self::Pipelined,
        Self::Chunked,
        Self::PerConnection,
        Self::Large,
    ];

    /// As `selftest` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LockStep => "kept, lock-step, 1 KiB",
            Self::Pipelined => "kept, pipelined, 1 KiB",
            Self::Chunked => "kept, pipelined BDAT, 1 KiB",
            Self::PerConnection => "connection per message, 1 KiB",
            Self::Large => "kept, pipelined, 1 MiB",
        }
    }

    /// Returns the one that `plan` is most like.
    pub fn like(plan: &Plan) -> Self {
        let sizes: u64 = (0..1000).map(|seq| plan.message(seq).size).sum();
        let by_connection = matches!(
            plan.mode,
            Mode::Open {
                by_connection: true,
                ..
            }
        );
        if plan.corpus == 0 && sizes / 1000 >= LARGE {
            Self::Large
        } else if by_connection || plan.per_connection == Count::Fixed(1) {
            Self::PerConnection
        } else if plan.pipelining == Pipelining::Off {
            Self::LockStep
        } else if plan.chunking {
            Self::Chunked
        } else {
            Self::Pipelined
        }
    }
}

/// The rate that one thread of this program reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceiling {
    /// Messages a second.
    pub per_s: f64,
    /// The workload of `selftest`; nothing when the rate was given by hand.
    pub workload: Option<&'static str>,
    /// When it was measured, seconds since 1970; nothing when it was given by hand.
    pub measured_unix_s: Option<u64>,
}

impl Ceiling {
    /// As a report states it; `accepted_per_s` is what was reached by `threads` threads.
    pub fn json(&self, accepted_per_s: f64, threads: usize) -> Value {
        json!({
            "per_s": self.per_s,
            "threads": threads,
            "share": accepted_per_s / (self.per_s * threads.max(1) as f64),
            "workload": self.workload,
            "measured_unix_s": self.measured_unix_s,
        })
    }

    /// Takes the figure for `plan` out of what `selftest` wrote on this machine.
    pub fn of(selftest: &Value, plan: &Plan) -> Option<Self> {
        if selftest["schema"] != SCHEMA || selftest["machine"] != machine() {
            return None;
        }
        let workload = Workload::like(plan).name();
        let row = selftest["rows"]
            .as_array()?
            .iter()
            .find(|row| row["workload"] == workload)?;
        let per_s = row["accepted_per_s"].as_f64().filter(|rate| *rate > 0.0)?;
        Some(Self {
            per_s,
            workload: Some(workload),
            measured_unix_s: selftest["measured_unix_s"].as_u64(),
        })
    }
}

/// What a figure depends on.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    json!({
        "host": read("/proc/sys/kernel/hostname").trim(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu_model": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "version": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
    })
}

/// Describes what `selftest` measured.
pub fn document(rows: Vec<Value>) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    json!({
        "schema": SCHEMA,
        "machine": machine(),
        "measured_unix_s": now.map_or(0, |since| since.as_secs()),
        "rows": rows,
    })
}

/// Where the figures are kept: `smtp-loadgen/selftest.json` in `$XDG_CACHE_HOME`, or in `.cache` of
/// the home directory.
pub fn place() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|path| !path.is_empty());
    let base = match named("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(named("HOME")?).join(".cache"),
    };
    Some(base.join("smtp-loadgen").join("selftest.json"))
}

/// Keeps what `selftest` measured.
///
/// **Errors**: the directory or the file can't be written.
pub fn keep(path: &Path, document: &Value) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, format!("{document:#}\n"))
}

/// Reads what `selftest` wrote.
pub fn read(path: &Path) -> Option<Value> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > FILE_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a time as the date in UTC (Hinnant's algorithm for the Gregorian calendar).
pub fn date(unix_s: u64) -> String {
    // Years begin in March, so that a leap day is the last of its year.
    let days = unix_s / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Sizes;
    use crate::plan::tests::plan;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(951_868_800), "2000-03-01");
        assert_eq!(date(1_795_392_000), "2026-11-23");
        assert_eq!(date(4_107_542_399), "2100-02-28");
        assert_eq!(date(4_107_542_400), "2100-03-01");
    }

    #[test]
    fn a_plan_is_held_against_the_workload_that_it_is_like() {
        let of = |change: fn(&mut Plan)| {
            let mut plan = plan();
            change(&mut plan);
            Workload::like(&plan)
        };
        assert_eq!(of(|_| ()), Workload::Pipelined);
        assert_eq!(of(|p| p.chunking = true), Workload::Chunked);
        assert_eq!(of(|p| p.pipelining = Pipelining::Off), Workload::LockStep);
        let one = |p: &mut Plan| p.per_connection = Count::Fixed(1);
        assert_eq!(of(one), Workload::PerConnection);
        assert_eq!(of(|p| p.sizes = Sizes::Fixed(1 << 20)), Workload::Large);
    }

    #[test]
    fn figures_of_other_machines_and_versions_are_not_used() {
        let rows =
            vec![json!({ "workload": Workload::Pipelined.name(), "accepted_per_s": 5000.0 })];
        let here = document(rows);
        let found = Ceiling::of(&here, &plan()).unwrap();
        assert_eq!(
            (found.per_s, found.workload),
            (5000.0, Some("kept, pipelined, 1 KiB"))
        );
        assert_eq!(found.json(2500.0, 2)["share"], 0.25);
        for (name, other) in [
            ("kernel", json!("0.1")),
            ("version", json!("0.0.0")),
            ("cpus", json!(4096)),
        ] {
            let mut there = here.clone();
            there["machine"][name] = other;
            assert_eq!(Ceiling::of(&there, &plan()), None, "{name}");
        }
        let mut empty = here;
        empty["rows"] = json!([]);
        assert_eq!(Ceiling::of(&empty, &plan()), None);
    }
}
