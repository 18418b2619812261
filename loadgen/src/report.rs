//! The report: one JSON value per run, and the text that is rendered from it.
//!
//! Promises: the text shows nothing that is not in the JSON; times are whole ns under names that
//! end in `_ns`; a percentile is absent when fewer than ten messages lie above it.

use crate::ceiling::{self, Ceiling};
use crate::client::Phase;
use crate::hdr;
use crate::plan::{Mode, Plan};
use crate::processes::Process;
use crate::raw::Summary;
use crate::recorder::{Recorder, Row, Totals};
use crate::verdict::{Verdict, busiest};
use hdrhistogram::Histogram;
use rustls::ProtocolVersion;
use serde_json::{Value, json};
use std::fmt::Write;

/// Version of the JSON.
pub const SCHEMA: &str = "smtp-loadgen/run/1";

/// JSON Schemas (2020-12) of everything that is written as JSON, by name.
pub const JSON_SCHEMAS: [(&str, &str); 6] = [
    ("run", include_str!("../../docs/loadgen.schema.json")),
    (
        "search",
        include_str!("../../docs/loadgen.search.schema.json"),
    ),
    ("ab", include_str!("../../docs/loadgen.ab.schema.json")),
    (
        "compare",
        include_str!("../../docs/loadgen.compare.schema.json"),
    ),
    (
        "verify",
        include_str!("../../docs/loadgen.verify.schema.json"),
    ),
    (
        "selftest",
        include_str!("../../docs/loadgen.selftest.schema.json"),
    ),
];

/// What surrounds a run.
pub struct Facts<'a> {
    /// The workload.
    pub plan: &'a Plan,
    /// Target as given.
    pub target: String,
    /// First line the target sent, and its offers, if it was asked before the run.
    pub banner: Option<String>,
    /// Lines of its reply to EHLO.
    pub ehlo: Vec<String>,
    /// The command line.
    pub argv: Vec<String>,
    /// Event loops of each process.
    pub threads: usize,
    /// Processes that reported.
    pub processes: &'a [Process],
    /// Processes asked for.
    pub processes_asked: usize,
    /// Ended by a signal.
    pub interrupted: bool,
    /// The load averages from before the run.
    pub load_before: String,
    /// Whether a ledger was written.
    pub ledger: Option<String>,
    /// What one thread of this program reached here, if known.
    pub ceiling: Option<Ceiling>,
}

/// The commit that a release build was made from; empty otherwise.
const COMMIT: &str = env!("SMTP_LOADGEN_COMMIT");
/// The compiler that made this program.
const RUSTC: &str = env!("SMTP_LOADGEN_RUSTC");

/// The percentiles of every latency table.
pub const QUANTILES: [(f64, &str); 8] = [
    (0.50, "p50_ns"),
    (0.75, "p75_ns"),
    (0.90, "p90_ns"),
    (0.95, "p95_ns"),
    (0.99, "p99_ns"),
    (0.999, "p99_9_ns"),
    (0.9999, "p99_99_ns"),
    (0.99999, "p99_999_ns"),
];

/// Describes a histogram.
pub fn latency(histogram: &Histogram<u64>) -> Value {
    let n = histogram.len();
    let mut value = json!({
        "n": n,
        "min_ns": if n == 0 { 0 } else { histogram.min() },
        "mean_ns": histogram.mean() as u64,
        "sd_ns": histogram.stdev() as u64,
        // What is below the range counts as its lowest value, as in the percentiles.
        "max_ns": if n == 0 { 0 } else { histogram.value_at_quantile(1.0) },
        "hdr_b64": hdr::encode(histogram),
    });
    for (share, name) in QUANTILES {
        // The median of few values still says something.
        if n as f64 * (1.0 - share) >= 10.0 || (share == 0.5 && n > 0) {
            value[name] = histogram.value_at_quantile(share).into();
        }
    }
    value
}

fn row(index: usize, row: &Row) -> Value {
    json!({
        "t_s": index,
        "offered": row.offered,
        "sent": row.sent,
        "accepted": row.accepted,
        "deferred": row.deferred,
        "rejected": row.rejected,
        "failed": row.failed,
        "bytes": row.bytes,
        "connections": row.connections,
        "p50_ns": row.quantile(0.5),
        "p99_ns": row.quantile(0.99),
        "max_ns": row.max_ns,
        "generator_cpu_ns": row.cpu_ns,
        "generator_lag_ns": row.lag_ns,
        "cells": row.cells.iter().enumerate().filter(|(_, count)| **count > 0)
            .map(|(cell, count)| json!([cell, count])).collect::<Vec<_>>(),
    })
}

/// Mean and 95 % confidence half-width of the rate, from full seconds inside the window.
fn steadiness(recorder: &Recorder) -> Value {
    let from = recorder.window.0.div_ceil(1_000_000_000) as usize;
    let to = (recorder.window.1 / 1_000_000_000) as usize;
    let rates: Vec<f64> = recorder
        .rows
        .get(from..to.min(recorder.rows.len()))
        .unwrap_or_default()
        .iter()
        .map(|row| row.accepted as f64)
        .collect();
    if rates.len() < 2 {
        return Value::Null;
    }
    let n = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / n;
    let sd = (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    json!({
        "seconds": rates.len(),
        "min_per_s": rates.iter().copied().fold(f64::INFINITY, f64::min),
        "mean_per_s": mean,
        "max_per_s": rates.iter().copied().fold(0.0, f64::max),
        "cv": if mean > 0.0 { sd / mean } else { 0.0 },
        // Normal quantile: a rough guide below ten seconds.
        "ci95_per_s": 1.96 * sd / n.sqrt(),
        "silent_seconds": rates.iter().filter(|rate| **rate == 0.0).count(),
    })
}

/// As people write it.
fn tls_version(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::TLSv1_2 => "TLS 1.2".into(),
        ProtocolVersion::TLSv1_3 => "TLS 1.3".into(),
        other => format!("{other:?}"),
    }
}

/// Settings of the kernel that runs with many connections depend on.
const SYSCTLS: [&str; 6] = [
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The load averages of now, as /proc/loadavg has them; empty where there is none.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.trim().to_owned()
}

fn environment(load_before: &str) -> Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name").map(|rest| rest.to_owned()))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu_model": cpu,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "congestion_control": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "load_average_before": load_before,
        "load_average": read("/proc/loadavg"),
        "mitigations": read("/proc/cmdline")
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("mitigations=").map(str::to_owned)),
        "sysctls": SYSCTLS.iter().map(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            ((*name).to_owned(), Value::from(read(&path).replace('\t', " ")))
        }).collect::<serde_json::Map<String, Value>>(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    })
}

/// The name of the arrival process, and the rate of an open loop, messages a second.
fn mode_and_rate(plan: &Plan) -> (&'static str, Option<f64>) {
    match plan.mode {
        Mode::Closed => ("closed", None),
        Mode::Open { rate, .. } if plan.trace.is_some() => ("open trace", Some(rate)),
        Mode::Open {
            rate,
            poisson: false,
            ..
        } => ("open constant", Some(rate)),
        Mode::Open {
            rate,
            poisson: true,
            ..
        } => ("open poisson", Some(rate)),
    }
}

fn per_s(count: u64, window_ns: u64) -> f64 {
    if window_ns == 0 {
        0.0
    } else {
        count as f64 * 1e9 / window_ns as f64
    }
}

/// What became of the messages, and how much that was in the measured window.
fn totals_json(totals: &Totals, window_ns: u64) -> Value {
    json!({
        "accepted_per_s": per_s(totals.window_accepted, window_ns),
        "offered_per_s": per_s(totals.window_offered, window_ns),
        "bytes_per_s": per_s(totals.window_bytes, window_ns),
        "connections_per_s": per_s(totals.window_connections, window_ns),
        "attempted": totals.attempted,
        "accepted": totals.accepted,
        "deferred": totals.deferred,
        "rejected": totals.rejected,
        "failed": totals.failed,
        "unfinished": totals.unfinished,
        "unsent": totals.unsent,
        "connections": totals.connections,
        "message_bytes": totals.message_bytes,
        "written_bytes": totals.written_bytes,
        "read_bytes": totals.read_bytes,
        "above_range": totals.above_range,
        "retransmitted_segments": totals.retransmits,
        "window_accepted": totals.window_accepted,
        "window_offered": totals.window_offered,
        "window_sent": totals.window_sent,
    })
}

/// Builds the report of a run.
pub fn run(facts: &Facts<'_>, recorder: &Recorder, verdict: &Verdict) -> Value {
    let window_ns = recorder.window.1.saturating_sub(recorder.window.0);
    let (used, wanted) = busiest(recorder);
    let phases: serde_json::Map<String, Value> = Phase::ALL
        .iter()
        .filter(|phase| !matches!(phase, Phase::Transaction | Phase::Response))
        .map(|phase| (phase, &recorder.phases[*phase as usize]))
        .filter(|(_, histogram)| !histogram.is_empty())
        .map(|(phase, histogram)| (phase.name().to_owned(), latency(histogram)))
        .collect();
    let (mode, rate) = mode_and_rate(facts.plan);
    let accepted_per_s = per_s(recorder.totals.window_accepted, window_ns);
    let sum = |part: fn(&Process) -> u64| facts.processes.iter().map(part).sum::<u64>();
    let mut value = json!({
        "schema": SCHEMA,
        "tool": {
            "name": "smtp-loadgen",
            "version": env!("CARGO_PKG_VERSION"),
            "commit": (!COMMIT.is_empty()).then_some(COMMIT),
            "rustc": RUSTC,
        },
        "env": environment(&facts.load_before),
        "target": {
            "address": facts.target,
            "banner": facts.banner,
            "ehlo": facts.ehlo,
            "tls": recorder.tls.iter().map(|(agreed, count)| json!({
                "version": tls_version(agreed.version),
                "cipher": agreed.cipher.as_str(),
                "resumed": agreed.resumed,
                "connections": count,
            })).collect::<Vec<_>>(),
        },
        "config": {
            "argv": facts.argv,
            "mode": mode,
            "rate_per_s": rate,
            "sessions": facts.plan.sessions,
            "threads": facts.threads,
            "processes": facts.processes_asked,
            "seed": facts.plan.seed,
            "run": format!("{:016x}", facts.plan.run),
            "plan_hash": format!("{:016x}", facts.plan.hash()),
            "plan": facts.plan.text(),
            "ledger": facts.ledger,
        },
        "window": {
            "warmup_ns": recorder.window.0,
            "measured_ns": window_ns,
            "drain_ns": facts.plan.drain_ns,
        },
        "totals": totals_json(&recorder.totals, window_ns),
        "latency": {
            "end_of_data": latency(&recorder.phases[Phase::EndOfData as usize]),
            "service": latency(&recorder.phases[Phase::Transaction as usize]),
            "refused": latency(&recorder.refused),
            "phases": phases,
        },
        "outcomes": recorder.kinds.iter().map(|kind| json!({
            "phase": kind.phase.name(),
            "code": kind.code,
            "fault": kind.fault.map(|fault| fault.name()),
            "side": kind.fault.map(|f| if f.is_generator_side() { "generator" } else { "target" }),
            "enhanced": kind.enhanced,
            "count": kind.count,
            "sample": kind.sample,
        })).collect::<Vec<_>>(),
        "steadiness": steadiness(recorder),
        "series": recorder.rows.iter().enumerate().map(|(i, r)| row(i, r)).collect::<Vec<_>>(),
        "generator": {
            "cpu_share": used,
            "cpu_wanted_share": wanted,
            "threads": recorder.loads.iter().map(|load| json!({
                "cpu_ns": load.cpu_ns, "waited_ns": load.waited_ns, "wall_ns": load.wall_ns,
            })).collect::<Vec<_>>(),
            "processes": facts.processes.iter().map(|process| json!({
                "pid": process.pid,
                "sessions": process.sessions,
                "resident_max_bytes": process.resident_max,
            })).collect::<Vec<_>>(),
            "resident_max_bytes": sum(|process| process.resident_max),
            "resident_per_session_bytes":
                sum(|process| process.resident_grown) / sum(|process| process.sessions).max(1),
            "congestion_control": recorder.congestion,
            "ceiling": facts.ceiling.as_ref()
                .map(|ceiling| ceiling.json(accepted_per_s, recorder.loads.len())),
        },
        "thresholds": [],
        "interrupted": facts.interrupted,
        "verdict": { "state": verdict.state.name(), "reasons": verdict.reasons },
    });
    if rate.is_some() {
        value["latency"]["response"] = latency(&recorder.phases[Phase::Response as usize]);
        value["latency"]["lag_generator"] = latency(&recorder.lag_generator);
        value["latency"]["lag_target"] = latency(&recorder.lag_target);
    }
    value
}

/// Writes a time in the unit that suits it.
pub fn time(ns: u64) -> String {
    match ns {
        0 => "0".into(),
        1..10_000 => format!("{:.2} us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// Writes a number with commas.
pub fn grouped(number: f64) -> String {
    let whole = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

/// One line of percentiles.
fn line(title: &str, table: &Value) -> String {
    let mut text = format!("{title:<12}");
    for (_, name) in QUANTILES {
        if let Some(ns) = table[name].as_u64() {
            let short = name.trim_end_matches("_ns").replace('_', ".");
            let _ = write!(text, "{short} {}   ", time(ns));
        }
    }
    let _ = write!(
        text,
        "max {}   n {}",
        time(table["max_ns"].as_u64().unwrap_or(0)),
        table["n"]
    );
    text
}

/// Breaks lines of more than `columns` characters where words are apart, where parts are apart if
/// there is such a place; what follows is indented.
pub fn folded(text: &str, columns: usize) -> String {
    const INDENT: usize = 12;
    let columns = columns.max(2 * INDENT);
    let mut out = String::new();
    for line in text.lines() {
        let (mut rest, mut indent) = (line, 0);
        loop {
            let room = columns - indent;
            let end = match rest.char_indices().nth(room) {
                Some((end, _)) => end,
                None => break,
            };
            // Not within the title in front.
            let from = rest
                .char_indices()
                .nth(INDENT - indent)
                .map_or(0, |(at, _)| at);
            let part = &rest[from..end];
            let gap = part
                .rfind("   ")
                .or_else(|| part.rfind(' '))
                .filter(|gap| *gap > 0);
            let cut = gap.map_or(end, |gap| from + gap);
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(rest[..cut].trim_end());
            out.push('\n');
            (rest, indent) = (rest[cut..].trim_start(), INDENT);
        }
        if !rest.is_empty() || indent == 0 {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(rest);
            out.push('\n');
        }
    }
    out
}

/// Renders what `raw` found.
pub fn raw_text(summary: &Summary) -> String {
    let mut text = format!("Run         {}\nMessages   ", summary.heading);
    for (result, count) in &summary.results {
        let _ = write!(text, " {result} {}  ", grouped(*count as f64));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    for (title, histogram, from) in [
        ("Response", &summary.response, "planned start"),
        ("Service", &summary.service, "first byte sent"),
        ("End of data", &summary.end_of_data, "last byte written"),
    ] {
        let _ = writeln!(
            text,
            "{}   (from the {from})",
            line(title, &latency(histogram))
        );
    }
    if summary.torn > 0 {
        let _ = writeln!(text, "Unreadable  {} lines", summary.torn);
    }
    text
}

/// States the share of this machine's ceiling that was used.
pub fn ceiling_text(ceiling: &Value) -> String {
    let Some(share) = ceiling["share"].as_f64() else {
        return "not known here: run smtp-loadgen selftest once".into();
    };
    let rate = grouped(ceiling["per_s"].as_f64().unwrap_or(0.0));
    let threads = match ceiling["threads"].as_u64() {
        Some(threads) if threads > 1 => format!(" for each of {threads} threads"),
        _ => String::new(),
    };
    let origin = match (
        ceiling["workload"].as_str(),
        ceiling["measured_unix_s"].as_u64(),
    ) {
        (Some(workload), Some(at)) => format!("selftest of {}, {workload}", ceiling::date(at)),
        _ => "as given".into(),
    };
    format!(
        "{:.0} % of the {rate} msg/s this generator reaches here{threads} ({origin})",
        share * 100.0
    )
}

/// What was observed of a threshold, in the unit of its limit.
fn observed(threshold: &Value) -> String {
    let expr = threshold["expr"].as_str().unwrap_or("");
    match threshold["observed"].as_f64() {
        None => "nothing: too few messages to tell".to_owned(),
        Some(share) if expr.ends_with('%') => format!("{:.3} %", share * 100.0),
        Some(ns) if expr.ends_with('s') => time(ns as u64),
        Some(number) if number.fract() == 0.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.4}"),
    }
}

/// Renders a run's JSON as text.
pub fn text(report: &Value) -> String {
    let mut text = String::new();
    for part in [
        verdict_text,
        totals_text,
        latency_text,
        outcomes_text,
        network_text,
        hostile_text,
        steadiness_text,
        generator_text,
        plan_text,
    ] {
        part(report, &mut text);
    }
    text
}

/// What the run is worth, and which thresholds it kept.
fn verdict_text(report: &Value, text: &mut String) {
    let verdict = &report["verdict"];
    let reasons: Vec<&str> = verdict["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let _ = writeln!(
        text,
        "VERDICT     {}  ({})",
        verdict["state"].as_str().unwrap_or("?"),
        reasons.join("; ")
    );
    for threshold in report["thresholds"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "Threshold   {}: fail if {}, observed {}",
            if threshold["pass"] == true {
                "passed"
            } else {
                "FAILED"
            },
            threshold["expr"].as_str().unwrap_or(""),
            observed(threshold)
        );
    }
    if report["interrupted"] == true {
        let _ = writeln!(
            text,
            "            interrupted: what follows is the part that was run"
        );
    }
}

/// What became of the messages.
fn totals_text(report: &Value, text: &mut String) {
    let totals = &report["totals"];
    let number = |value: &Value| grouped(value.as_f64().unwrap_or(0.0));
    let count = |name: &str| totals[name].as_u64().unwrap_or(0);
    let attempted = count("attempted").max(1);
    let _ = writeln!(
        text,
        "Accepted    {} of {} messages ({:.2} %)   {} msg/s   {}/s   {} conn/s",
        grouped(count("accepted") as f64),
        grouped(count("attempted") as f64),
        count("accepted") as f64 * 100.0 / attempted as f64,
        number(&totals["accepted_per_s"]),
        size(totals["bytes_per_s"].as_f64().unwrap_or(0.0)),
        number(&totals["connections_per_s"]),
    );
    let _ = writeln!(
        text,
        "Others      deferred (4xx) {}   rejected (5xx) {}   failed {}   unfinished {}   unsent {}",
        count("deferred"),
        count("rejected"),
        count("failed"),
        count("unfinished"),
        count("unsent"),
    );
}

/// How long messages took, and each phase of them.
fn latency_text(report: &Value, text: &mut String) {
    let latency = &report["latency"];
    if latency["response"].is_object() {
        let _ = writeln!(
            text,
            "{}   (from the planned start)",
            line("Response", &latency["response"])
        );
    }
    let _ = writeln!(
        text,
        "{}   (from the first byte sent)",
        line("Service", &latency["service"])
    );
    let _ = writeln!(
        text,
        "{}   (end of data to final reply)",
        line("End of data", &latency["end_of_data"])
    );
    if latency["response"].is_object() {
        let _ = writeln!(
            text,
            "{}   (a session was free)",
            line("Late, ours", &latency["lag_generator"])
        );
        let _ = writeln!(
            text,
            "{}   (none was free)",
            line("Late, its", &latency["lag_target"])
        );
    }
    let _ = writeln!(
        text,
        "\nPhase              n         p50         p99         max"
    );
    for phase in Phase::ALL {
        let table = &latency["phases"][phase.name()];
        if table.is_object() {
            let cell = |name: &str| table[name].as_u64().map_or("-".into(), time);
            let _ = writeln!(
                text,
                "{:<13}{:>7} {:>11} {:>11} {:>11}",
                phase.name(),
                table["n"].as_u64().unwrap_or(0),
                cell("p50_ns"),
                cell("p99_ns"),
                cell("max_ns"),
            );
        }
    }
}

/// Every other end than an accepted message, with the first reply or error that was seen.
fn outcomes_text(report: &Value, text: &mut String) {
    let _ = writeln!(text, "\nOutcome       code           count  first text");
    for outcome in report["outcomes"].as_array().into_iter().flatten() {
        let code = match outcome["fault"].as_str() {
            Some(fault) => fault.to_owned(),
            None => format!(
                "{} {}",
                outcome["code"],
                outcome["enhanced"].as_str().unwrap_or("")
            ),
        };
        let side = outcome["side"]
            .as_str()
            .map_or(String::new(), |side| format!(" [{side} side]"));
        let _ = writeln!(
            text,
            "{:<13} {:<11} {:>8}  {}{side}",
            outcome["phase"].as_str().unwrap_or(""),
            code.trim(),
            outcome["count"].as_u64().unwrap_or(0),
            outcome["sample"].as_str().unwrap_or(""),
        );
    }
}

/// Connections, octets and what TLS agreed on.
fn network_text(report: &Value, text: &mut String) {
    let totals = &report["totals"];
    let count = |name: &str| totals[name].as_u64().unwrap_or(0);
    let _ = writeln!(
        text,
        "\nNetwork     segments sent again {}   connections {}   written {}   read {}",
        count("retransmitted_segments"),
        grouped(count("connections") as f64),
        size(count("written_bytes") as f64),
        size(count("read_bytes") as f64),
    );
    for tls in report["target"]["tls"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "TLS         {} {}{} on {} connections",
            tls["version"].as_str().unwrap_or(""),
            tls["cipher"].as_str().unwrap_or(""),
            if tls["resumed"] == true {
                ", resumed,"
            } else {
                ""
            },
            grouped(tls["connections"].as_f64().unwrap_or(0.0)),
        );
    }
}

/// What the hostile sessions beside the run came to.
fn hostile_text(report: &Value, text: &mut String) {
    for row in report["hostile"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "{}Hostile     {} x {}: connections {}  completed {}  cut by target {}  refused {}  \
             unanswered {}  replies 2xx/3xx {}  4xx {}  5xx {}",
            if row == &report["hostile"][0] {
                "\n"
            } else {
                ""
            },
            row["sessions"],
            row["kind"].as_str().unwrap_or(""),
            row["connections"],
            row["completed"],
            row["cut_by_target"],
            row["refused"],
            row["unanswered"],
            row["replies_2xx_3xx"],
            row["replies_4xx"],
            row["replies_5xx"],
        );
    }
}

/// How the rate varied from second to second.
fn steadiness_text(report: &Value, text: &mut String) {
    let number = |value: &Value| grouped(value.as_f64().unwrap_or(0.0));
    let steady = &report["steadiness"];
    if steady.is_object() {
        let _ = writeln!(
            text,
            "\nSteadiness  {} full seconds: min {}  mean {} +- {} (95 %)  max {} msg/s  CV {:.1} %  \
             silent seconds {}",
            steady["seconds"],
            number(&steady["min_per_s"]),
            number(&steady["mean_per_s"]),
            number(&steady["ci95_per_s"]),
            number(&steady["max_per_s"]),
            steady["cv"].as_f64().unwrap_or(0.0) * 100.0,
            steady["silent_seconds"],
        );
    }
}

/// What the generator used, and how far it was from its ceiling.
fn generator_text(report: &Value, text: &mut String) {
    let config = &report["config"];
    let generator = &report["generator"];
    let _ = writeln!(
        text,
        "\nGenerator   cpu {:.0} % of a core, with waiting {:.0} %, in the busiest of {} thread(s){}; \
         resident {}{}{}\nCeiling     {}",
        generator["cpu_share"].as_f64().unwrap_or(0.0) * 100.0,
        generator["cpu_wanted_share"].as_f64().unwrap_or(0.0) * 100.0,
        generator["threads"].as_array().map_or(0, Vec::len),
        match config["processes"].as_u64() {
            Some(processes @ 2..) => format!(" of {processes} processes"),
            _ => String::new(),
        },
        size(generator["resident_max_bytes"].as_f64().unwrap_or(0.0)),
        match config["sessions"].as_u64() {
            // With few sessions the fixed part would be counted against them.
            Some(10_000..) => format!(
                ", {} bytes a session",
                generator["resident_per_session_bytes"]
            ),
            _ => String::new(),
        },
        generator["congestion_control"]
            .as_str()
            .map_or(String::new(), |name| format!("; congestion control {name}")),
        ceiling_text(&generator["ceiling"]),
    );
}

/// What was sent to whom, and when.
fn plan_text(report: &Value, text: &mut String) {
    let config = &report["config"];
    let _ = writeln!(
        text,
        "Plan        {} loop, {} sessions, seed {}, plan {}, run {}",
        config["mode"].as_str().unwrap_or(""),
        config["sessions"],
        config["seed"],
        config["plan_hash"].as_str().unwrap_or(""),
        config["run"].as_str().unwrap_or(""),
    );
    let _ = writeln!(
        text,
        "Window      measured {} after {} of warm-up; target {} {}",
        time(report["window"]["measured_ns"].as_u64().unwrap_or(0)),
        time(report["window"]["warmup_ns"].as_u64().unwrap_or(0)),
        report["target"]["address"].as_str().unwrap_or(""),
        report["target"]["banner"].as_str().unwrap_or(""),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_where_their_parts_are_apart() {
        let text = "Response    p50 1 ms   p99 2 ms   max 3 ms   n 4   (from the start)\n\nshort\n";
        assert_eq!(folded(text, 80), text);
        assert_eq!(
            folded(text, 46),
            "Response    p50 1 ms   p99 2 ms   max 3 ms\n            n 4   (from the start)\n\nshort\n"
        );
        for columns in 0..70 {
            let folded = folded(text, columns);
            let most = folded.lines().map(|line| line.chars().count()).max();
            assert!(most.unwrap() <= columns.max(24), "{columns}: {folded}");
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words(&folded), words(text), "{columns}");
        }
        // A word that fits nowhere is cut, and nothing is lost.
        assert_eq!(
            folded(&"x".repeat(30), 24),
            format!("{}\n{}{}\n", "x".repeat(24), " ".repeat(12), "x".repeat(6))
        );
    }
}
