//! Are two runs different, or is it noise?
//!
//! Throughput: Welch's test on the accepted messages of each full second, with the number of
//! seconds reduced for their correlation. Latency: the ratio of percentiles under 500 bootstrap
//! resamples of whole seconds. Both at 95 %; when the interval holds "equal", the answer is "no
//! difference". Does not: see anything slower than the runs are long.

use crate::plan::Plan;
use crate::recorder::{CELLS, cell_end};
use crate::report::{grouped, time};
use crate::rng::Rng;
use crate::verdict::State;
use serde_json::{Value, json};

const RESAMPLES: usize = 500;

struct Second {
    accepted: f64,
    cells: Vec<(usize, f64)>,
}

/// Full seconds inside the measured window.
fn seconds(report: &Value) -> Vec<Second> {
    let warmup = report["window"]["warmup_ns"].as_u64().unwrap_or(0);
    let measured = report["window"]["measured_ns"].as_u64().unwrap_or(0);
    let from = warmup.div_ceil(1_000_000_000) as usize;
    let to = ((warmup + measured) / 1_000_000_000) as usize;
    let series = report["series"].as_array().map_or(&[][..], Vec::as_slice);
    series
        .get(from..to.min(series.len()))
        .unwrap_or_default()
        .iter()
        .map(|row| Second {
            accepted: row["accepted"].as_f64().unwrap_or(0.0),
            cells: row["cells"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|pair| Some((pair[0].as_u64()? as usize, pair[1].as_f64()?)))
                .filter(|(cell, _)| *cell < CELLS)
                .collect(),
        })
        .collect()
}

/// Mean, variance, and the number of seconds they are worth.
fn moments(values: &[f64]) -> (f64, f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square = |value: &f64| (value - mean).powi(2);
    let sum: f64 = values.iter().map(square).sum();
    let lag: f64 = values
        .windows(2)
        .map(|pair| (pair[0] - mean) * (pair[1] - mean))
        .sum();
    let correlation = if sum > 0.0 {
        (lag / sum).clamp(0.0, 0.9)
    } else {
        0.0
    };
    let effective = (n * (1.0 - correlation) / (1.0 + correlation)).max(2.0);
    (mean, sum / (n - 1.0), effective)
}

/// The 97.5 % point of Student's distribution (Cornish-Fisher).
fn student(freedom: f64) -> f64 {
    let (z, v) = (1.959_964_f64, freedom.max(1.0));
    z + (z.powi(3) + z) / (4.0 * v)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * v * v)
}

fn quantile(seconds: &[Second], picks: &[usize], share: f64) -> f64 {
    let mut cells = [0.0; CELLS];
    for pick in picks {
        for (cell, count) in &seconds[*pick].cells {
            cells[*cell] += count;
        }
    }
    let rank = share * cells.iter().sum::<f64>();
    let mut seen = 0.0;
    for (index, count) in cells.iter().enumerate() {
        if seen + count >= rank && *count > 0.0 {
            let start = if index == 0 { 0 } else { cell_end(index - 1) } as f64;
            return start + (cell_end(index) as f64 - start) * (rank - seen) / count;
        }
        seen += count;
    }
    0.0
}

fn verdict(low: f64, high: f64) -> &'static str {
    if low <= 1.0 && high >= 1.0 {
        "no difference at 95 %"
    } else if low > 1.0 {
        "B is higher"
    } else {
        "B is lower"
    }
}

/// Version of the JSON of `compare`.
pub const SCHEMA: &str = "smtp-loadgen/compare/1";

/// Compares two reports. `force` allows different plans.
///
/// **Errors**: the plans differ, a run is not VALID, or a run is too short to tell anything.
pub fn document(a: &Value, b: &Value, force: bool) -> Result<Value, String> {
    let (plan_a, plan_b) = (&a["config"]["plan_hash"], &b["config"]["plan_hash"]);
    if plan_a != plan_b && !force {
        return Err(format!(
            "the runs followed different plans, {plan_a} and {plan_b}; --force"
        ));
    }
    for (name, report) in [("A", a), ("B", b)] {
        if report["verdict"]["state"] != "VALID" && !force {
            let state = report["verdict"]["state"].as_str().unwrap_or("?");
            return Err(format!(
                "run {name} is {state}, so its numbers mean little; --force"
            ));
        }
    }
    let (seconds_a, seconds_b) = (seconds(a), seconds(b));
    if seconds_a.len() < 3 || seconds_b.len() < 3 {
        return Err("each run needs at least three full measured seconds".into());
    }
    let rates = |seconds: &[Second]| seconds.iter().map(|s| s.accepted).collect::<Vec<_>>();
    let (mean_a, var_a, n_a) = moments(&rates(&seconds_a));
    let (mean_b, var_b, n_b) = moments(&rates(&seconds_b));
    let (part_a, part_b) = (var_a / n_a, var_b / n_b);
    let error = (part_a + part_b).sqrt();
    let freedom = (part_a + part_b).powi(2)
        / (part_a.powi(2) / (n_a - 1.0) + part_b.powi(2) / (n_b - 1.0)).max(f64::MIN_POSITIVE);
    let half = student(freedom) * error;
    let ratio = |difference: f64| 1.0 + difference / mean_a.max(f64::MIN_POSITIVE);
    let (low, high) = (ratio(mean_b - mean_a - half), ratio(mean_b - mean_a + half));
    let mut rows = vec![json!({
        "name": "accepted_per_s", "a": mean_a, "b": mean_b, "ratio": ratio(mean_b - mean_a),
        "low": low, "high": high, "answer": verdict(low, high),
    })];
    for (share, name) in [(0.5, "p50_ns"), (0.9, "p90_ns"), (0.99, "p99_ns")] {
        let whole =
            |seconds: &[Second]| quantile(seconds, &(0..seconds.len()).collect::<Vec<_>>(), share);
        let (value_a, value_b) = (whole(&seconds_a), whole(&seconds_b));
        if value_a == 0.0 || value_b == 0.0 {
            continue;
        }
        let mut rng = Rng::keyed(1, 77, (share * 1e6) as u64);
        let mut ratios: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut pick = |seconds: &[Second]| {
                    let n = seconds.len() as u64;
                    let picks: Vec<usize> = (0..n).map(|_| rng.below(n) as usize).collect();
                    quantile(seconds, &picks, share)
                };
                let of_a = pick(&seconds_a);
                pick(&seconds_b) / of_a.max(1.0)
            })
            .collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let (low, high) = (
            ratios[RESAMPLES / 40],
            ratios[RESAMPLES - 1 - RESAMPLES / 40],
        );
        rows.push(json!({
            "name": name, "a": value_a as u64, "b": value_b as u64, "ratio": value_b / value_a,
            "low": low, "high": high, "answer": verdict(low, high),
        }));
    }
    Ok(json!({
        "schema": SCHEMA,
        "plan_hash": { "a": plan_a, "b": plan_b },
        "verdict": { "a": a["verdict"]["state"], "b": b["verdict"]["state"] },
        "seconds": { "a": seconds_a.len(), "b": seconds_b.len() },
        "forced": force,
        "rows": rows,
    }))
}

/// Renders what `document` found.
pub fn text(answer: &Value) -> String {
    let mut text = format!(
        "{:<12} {:>12} {:>12} {:>8}  {:<17} answer\n",
        "", "A", "B", "B / A", "95 % interval"
    );
    for row in answer["rows"].as_array().into_iter().flatten() {
        let name = row["name"].as_str().unwrap_or("");
        let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let (title, value): (_, fn(f64) -> String) = match name.strip_suffix("_ns") {
            Some(title) => (title, |ns| time(ns as u64)),
            None => ("msg/s", grouped),
        };
        text.push_str(&format!(
            "{title:<12} {:>12} {:>12} {:>8.3}  {:.3} to {:.3}    {}\n",
            value(number("a")),
            value(number("b")),
            number("ratio"),
            number("low"),
            number("high"),
            row["answer"].as_str().unwrap_or("")
        ));
    }
    let seconds = &answer["seconds"];
    text.push_str(&format!(
        "from {} and {} full seconds\n",
        seconds["a"], seconds["b"]
    ));
    text
}

/// One round of `ab`.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    a: f64,
    b: f64,
    p99_a: f64,
    p99_b: f64,
    states: (&'static str, &'static str),
}

impl Round {
    /// Takes what it needs from two reports and their verdicts.
    pub fn new(a: &Value, b: &Value, states: (State, State)) -> Self {
        let rate = |report: &Value| report["totals"]["accepted_per_s"].as_f64().unwrap_or(0.0);
        let p99 = |report: &Value| {
            let table = &report["latency"]["response"];
            let table = if table.is_object() {
                table
            } else {
                &report["latency"]["service"]
            };
            table["p99_ns"].as_f64().unwrap_or(0.0)
        };
        Self {
            a: rate(a),
            b: rate(b),
            p99_a: p99(a),
            p99_b: p99(b),
            states: (states.0.name(), states.1.name()),
        }
    }

    fn ratio(&self) -> f64 {
        self.b / self.a.max(f64::MIN_POSITIVE)
    }

    /// As one line.
    pub fn line(&self, number: u32) -> String {
        let p99 = if self.p99_a > 0.0 {
            self.p99_b / self.p99_a
        } else {
            0.0
        };
        format!(
            "{number:>5} {:>12} {:>12} {:>8.3}  {p99:.3}",
            grouped(self.a),
            grouped(self.b),
            self.ratio()
        )
    }
}

fn spread(rounds: &[Round]) -> (f64, f64, f64) {
    let mut ratios: Vec<f64> = rounds.iter().map(Round::ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let n = ratios.len();
    if n == 0 {
        return (0.0, 0.0, 0.0);
    }
    (
        ratios[0],
        f64::midpoint(ratios[(n - 1) / 2], ratios[n / 2]),
        ratios[n - 1],
    )
}

/// The closing words of `ab`.
pub fn rounds_text(rounds: &[Round]) -> String {
    let (low, middle, high) = spread(rounds);
    let answer = if low <= 1.0 && high >= 1.0 {
        "the rounds disagree on which is faster: no difference shown"
    } else if low > 1.0 {
        "b was faster in every round"
    } else {
        "a was faster in every round"
    };
    format!("b / a: median {middle:.3}, from {low:.3} to {high:.3}; {answer}\n")
}

/// The rounds as JSON.
pub fn rounds_json(a: &str, b: &str, plan: &Plan, rounds: &[Round]) -> Value {
    let (low, middle, high) = spread(rounds);
    json!({
        "schema": "smtp-loadgen/ab/1",
        "a": a,
        "b": b,
        "config": {
            "plan": plan.text(),
            "plan_hash": format!("{:016x}", plan.hash()),
            "seed": plan.seed,
        },
        "ratio": { "min": low, "median": middle, "max": high },
        "rounds": rounds.iter().map(|round| json!({
            "a_per_s": round.a, "b_per_s": round.b,
            "a_p99_ns": round.p99_a as u64, "b_p99_ns": round.p99_b as u64,
            "a_verdict": round.states.0, "b_verdict": round.states.1,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(a: &Value, b: &Value, force: bool) -> Result<String, String> {
        document(a, b, force).map(|answer| text(&answer))
    }

    fn report(mean: f64, noise: f64, seed: u64, cell: u64) -> Value {
        let mut rng = Rng::keyed(seed, 0, 0);
        let rows: Vec<Value> = (0..20)
            .map(|t| {
                let accepted = (mean + noise * rng.normal()) as u64;
                json!({ "t_s": t, "accepted": accepted, "cells": [[cell, accepted], [cell + 9, 30]] })
            })
            .collect();
        json!({
            "config": { "plan_hash": "1" },
            "verdict": { "state": "VALID" },
            "window": { "warmup_ns": 0, "measured_ns": 20_000_000_000u64 },
            "series": rows,
        })
    }

    #[test]
    fn equal_runs_show_no_difference_and_unequal_ones_do() {
        let a = report(1000.0, 30.0, 1, 50);
        let same = told(&a, &report(1000.0, 30.0, 2, 50), false).unwrap();
        assert_eq!(same.matches("no difference").count(), 4, "{same}");
        let better = told(&a, &report(1200.0, 30.0, 2, 40), false).unwrap();
        assert!(
            better.lines().nth(1).unwrap().ends_with("B is higher"),
            "{better}"
        );
        assert!(
            better.lines().nth(2).unwrap().ends_with("B is lower"),
            "{better}"
        );
    }

    #[test]
    fn different_plans_and_invalid_runs_are_refused() {
        let a = report(1000.0, 30.0, 1, 50);
        let mut b = report(1000.0, 30.0, 2, 50);
        b["config"]["plan_hash"] = "2".into();
        assert!(told(&a, &b, false).unwrap_err().contains("different plans"));
        assert!(told(&a, &b, true).is_ok());
        let mut b = report(1000.0, 30.0, 2, 50);
        b["verdict"]["state"] = "INVALID".into();
        assert!(told(&a, &b, false).unwrap_err().contains("INVALID"));
    }
}
