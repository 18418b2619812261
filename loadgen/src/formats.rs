//! Other forms of a report: CSV of its seconds, Prometheus text.

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
