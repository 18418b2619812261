//! Other forms of a report: CSV of its seconds, Prometheus text, HdrHistogram's log.

use crate::hdr;
use crate::recorder::{CELLS, cell_end, histogram};
use crate::report::QUANTILES;
use serde_json::Value;
use std::fmt::Write;

/// One line for each second.
pub fn csv(report: &Value) -> String {
    const COLUMNS: [&str; 14] = [
        "t_s",
        "offered",
        "sent",
        "accepted",
        "deferred",
        "rejected",
        "failed",
        "bytes",
        "connections",
        "p50_ns",
        "p99_ns",
        "max_ns",
        "generator_cpu_ns",
        "generator_lag_ns",
    ];
    let mut text = COLUMNS.join(",") + "\n";
    for row in report["series"].as_array().into_iter().flatten() {
        let cells: Vec<String> = COLUMNS.iter().map(|name| row[*name].to_string()).collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// Prometheus text exposition, for a text-file collector.
pub fn prometheus(report: &Value) -> String {
    let mut text = String::new();
    if let Some(totals) = report["totals"].as_object() {
        for (name, value) in totals {
            let kind = if name.ends_with("_per_s") {
                "gauge"
            } else {
                "counter"
            };
            let suffix = if kind == "counter" { "_total" } else { "" };
            let _ = writeln!(text, "# TYPE smtp_loadgen_{name}{suffix} {kind}");
            let _ = writeln!(text, "smtp_loadgen_{name}{suffix} {value}");
        }
    }
    let _ = writeln!(text, "# TYPE smtp_loadgen_latency_seconds summary");
    let latency = &report["latency"];
    let named = ["response", "service", "end_of_data"].map(|name| (name, &latency[name]));
    let phases = latency["phases"].as_object().into_iter().flatten();
    let phases = phases.map(|(name, table)| (name.as_str(), table));
    for (name, table) in named
        .into_iter()
        .filter(|(_, table)| table.is_object())
        .chain(phases)
    {
        for (quantile, key) in QUANTILES {
            if let Some(ns) = table[key].as_f64() {
                let _ = writeln!(
                    text,
                    "smtp_loadgen_latency_seconds{{phase=\"{name}\",quantile=\"{quantile}\"}} {}",
                    ns / 1e9
                );
            }
        }
        let n = table["n"].as_f64().unwrap_or(0.0);
        let mean = table["mean_ns"].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            text,
            "smtp_loadgen_latency_seconds_count{{phase=\"{name}\"}} {n}"
        );
        let _ = writeln!(
            text,
            "smtp_loadgen_latency_seconds_sum{{phase=\"{name}\"}} {}",
            mean * n / 1e9
        );
    }
    let _ = writeln!(text, "# TYPE smtp_loadgen_replies_total counter");
    for row in report["outcomes"].as_array().into_iter().flatten() {
        let fault = row["fault"].as_str().unwrap_or("");
        let _ = writeln!(
            text,
            "smtp_loadgen_replies_total{{phase=\"{}\",code=\"{}\",enhanced=\"{}\",fault=\"{fault}\"}} {}",
            row["phase"].as_str().unwrap_or(""),
            row["code"],
            row["enhanced"].as_str().unwrap_or(""),
            row["count"],
        );
    }
    let valid = u8::from(report["verdict"]["state"] == "VALID");
    let _ = writeln!(
        text,
        "# TYPE smtp_loadgen_valid gauge\nsmtp_loadgen_valid {valid}"
    );
    text
}

/// HdrHistogram's interval log, version 1.3. The whole window is tagged `response`, `service`,
/// `end_of_data` and by phase, at full resolution; each second is tagged `second`, as coarse as the
/// report keeps it (eight steps for each power of two). Times of the lines are seconds since the
/// start of the run, values are ns, maxima are ms.
pub fn hlog(report: &Value) -> String {
    let mut text = String::from(
        "#[Logged by smtp-loadgen]\n#[Histogram log format version 1.3]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
         \"Interval_Compressed_Histogram\"\n",
    );
    let mut line = |tag: &str, start_s: f64, length_s: f64, max_ns: f64, coded: &str| {
        let _ = writeln!(
            text,
            "Tag={tag},{start_s:.3},{length_s:.3},{:.6},{coded}",
            max_ns / 1e6
        );
    };
    for row in report["series"].as_array().into_iter().flatten() {
        let mut second = histogram();
        for pair in row["cells"].as_array().into_iter().flatten() {
            if let (Some(cell), Some(count)) = (pair[0].as_u64(), pair[1].as_u64())
                && cell < CELLS as u64
            {
                let _ = second.record_n(cell_end(cell as usize), count);
            }
        }
        let (at, max) = (row["t_s"].as_f64(), row["max_ns"].as_f64());
        let (at, max) = (at.unwrap_or(0.0), max.unwrap_or(0.0));
        line("second", at, 1.0, max, &hdr::encode(&second));
    }
    let window = |name: &str| report["window"][name].as_f64().unwrap_or(0.0) / 1e9;
    let (start, length) = (window("warmup_ns"), window("measured_ns"));
    let latency = &report["latency"];
    let named = ["response", "service", "end_of_data"].map(|name| (name, &latency[name]));
    let phases = latency["phases"].as_object().into_iter().flatten();
    let phases = phases.map(|(name, table)| (name.as_str(), table));
    for (name, table) in named.into_iter().chain(phases) {
        if let Some(coded) = table["hdr_b64"].as_str() {
            let max = table["max_ns"].as_f64().unwrap_or(0.0);
            line(name, start, length, max, coded);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn csv_has_one_line_for_each_second() {
        let report =
            json!({ "series": [{ "t_s": 0, "accepted": 5 }, { "t_s": 1, "accepted": 6 }] });
        let text = csv(&report);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(2).unwrap().starts_with("1,null,null,6,"));
    }

    #[test]
    fn an_hlog_has_its_form_and_its_histograms_are_read_back() {
        let mut service = histogram();
        service.record_n(2_000_000, 7).unwrap();
        let report = json!({
            "window": { "warmup_ns": 1_000_000_000, "measured_ns": 2_500_000_000u64 },
            "latency": { "service": { "max_ns": 2_000_000, "hdr_b64": hdr::encode(&service) } },
            "series": [{ "t_s": 0, "max_ns": 1500, "cells": [[0, 3], [4, 2]] }],
        });
        let text = hlog(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[1], "#[Histogram log format version 1.3]");
        let fields: Vec<&str> = lines[3].split(',').collect();
        assert_eq!(fields[..4], ["Tag=second", "0.000", "1.000", "0.001500"]);
        assert_eq!(hdr::decode(fields[4]).unwrap().len(), 5);
        let fields: Vec<&str> = lines[4].split(',').collect();
        assert_eq!(fields[..4], ["Tag=service", "1.000", "2.500", "2.000000"]);
        let read = hdr::decode(fields[4]).unwrap();
        assert_eq!((read.len(), read.max()), (7, service.max()));
    }

    #[test]
    fn prometheus_text_names_phases_and_units() {
        let report = json!({
            "totals": { "accepted": 7, "accepted_per_s": 3.5 },
            "latency": { "service": { "n": 7, "mean_ns": 1000, "p50_ns": 2_000_000 } },
            "outcomes": [{ "phase": "rcpt", "code": 451, "enhanced": "4.7.1", "count": 2 }],
            "verdict": { "state": "VALID" },
        });
        let text = prometheus(&report);
        assert!(text.contains("smtp_loadgen_accepted_total 7\n"));
        assert!(text.contains("smtp_loadgen_accepted_per_s 3.5\n"));
        assert!(
            text.contains(
                "smtp_loadgen_latency_seconds{phase=\"service\",quantile=\"0.5\"} 0.002\n"
            )
        );
        assert!(text.contains("code=\"451\",enhanced=\"4.7.1\",fault=\"\"} 2\n"));
        assert!(text.ends_with("smtp_loadgen_valid 1\n"));
    }
}
