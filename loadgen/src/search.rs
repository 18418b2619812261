//! Finding the highest rate a target sustains: doubling, bisection, confirmation, then a table of
//! 80, 100 and 120 per cent of what was found.
//!
//! Promises: a step counts as passed only if it kept its rate and met every limit; when the
//! generator saturates before the target, the answer says "at least"; the number of steps is
//! bounded. A step that passed although the generator was short of CPU did pass: its lateness is
//! part of the response time and can only make the target look worse.

use crate::plan::Plan;
use crate::report::{ceiling_text, grouped, time};
use crate::verdict::State;
use serde_json::{Value, json};

/// Version of the JSON.
pub const SCHEMA: &str = "smtp-loadgen/search/1";
/// Bisection ends when the interval is this share of the rate.
const RESOLUTION: f64 = 0.01;
/// Most doublings; enough for 2^20 times the first rate.
const DOUBLINGS_MAX: u32 = 20;
/// Most bisections; enough for the resolution from one doubling.
const BISECTIONS_MAX: u32 = 8;
/// Most rates that confirmation is tried at.
const CONFIRMS_MAX: u32 = 10;

/// What a step must meet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Response time that 99 % may not exceed, ns.
    pub p99_ns: u64,
    /// Share of messages that may go wrong.
    pub errors: f64,
}

/// One run at one rate.
#[derive(Clone, Debug)]
pub struct Step {
    /// Rate asked for.
    pub offered: f64,
    /// Rate reached.
    pub accepted: f64,
    /// Median response, ns.
    pub p50_ns: u64,
    /// 99 % response, ns.
    pub p99_ns: u64,
    /// Largest response, ns.
    pub max_ns: u64,
    /// Share of messages begun or due that were not accepted.
    pub errors: f64,
    /// Verdict of the run.
    pub state: State,
    /// Met every limit.
    pub pass: bool,
    /// The part of the search it belongs to.
    pub part: &'static str,
}

impl Step {
    /// Judges the report of a run.
    pub fn judge(
        rate: f64,
        report: &Value,
        state: State,
        limits: &Limits,
        part: &'static str,
    ) -> Self {
        let totals = &report["totals"];
        let count = |name: &str| totals[name].as_f64().unwrap_or(0.0);
        let response = &report["latency"]["response"];
        let ns = |name: &str| response[name].as_u64();
        let planned = count("attempted") + count("unsent");
        let errors = 1.0 - count("accepted") / planned.max(1.0);
        let max_ns = ns("max_ns").unwrap_or(u64::MAX);
        // Too few messages for a percentile: the largest stands for it.
        let p99_ns = ns("p99_ns").unwrap_or(max_ns);
        let kept = count("window_accepted") >= 0.99 * count("window_offered");
        Self {
            offered: rate,
            accepted: count("accepted_per_s"),
            p50_ns: ns("p50_ns").unwrap_or(0),
            p99_ns,
            max_ns,
            errors,
            state,
            pass: !matches!(state, State::Invalid | State::TargetSaturated)
                && kept
                && p99_ns <= limits.p99_ns
                && errors <= limits.errors,
            part,
        }
    }

    /// As one line.
    pub fn line(&self) -> String {
        format!(
            "{:<9} {:>10}/s offered {:>10}/s accepted   p50 {:>8}   p99 {:>8}   max {:>8}   errors \
             {:.2} %   {}{}",
            self.part,
            grouped(self.offered),
            grouped(self.accepted),
            time(self.p50_ns),
            time(self.p99_ns),
            time(self.max_ns),
            self.errors * 100.0,
            self.state.name(),
            if self.pass { "   passed" } else { "" },
        )
    }

    fn json(&self) -> Value {
        json!({
            "part": self.part,
            "offered_per_s": self.offered,
            "accepted_per_s": self.accepted,
            "p50_ns": self.p50_ns,
            "p99_ns": self.p99_ns,
            "max_ns": self.max_ns,
            "error_share": self.errors,
            "verdict": self.state.name(),
            "pass": self.pass,
        })
    }
}

/// What the search came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Highest rate that passed and was confirmed; 0 if none.
    pub rate: f64,
    /// The generator ended before the target did.
    pub at_least: bool,
    /// Two of three runs at that rate passed.
    pub confirmed: bool,
    /// A signal ended it before its end; what it found so far is no answer.
    pub cut_short: bool,
    /// All runs in order.
    pub steps: Vec<Step>,
}

impl Found {
    /// Makes one of the steps of a sweep.
    pub fn of_sweep(steps: Vec<Step>) -> Self {
        let passed = steps.iter().filter(|step| step.pass);
        let rate = passed.map(|step| step.offered).fold(0.0, f64::max);
        Self {
            rate,
            at_least: false,
            confirmed: false,
            cut_short: false,
            steps,
        }
    }

    /// Makes one of the steps that were done when a signal came.
    pub fn cut_short(steps: Vec<Step>) -> Self {
        Self {
            rate: 0.0,
            at_least: false,
            confirmed: false,
            cut_short: true,
            steps,
        }
    }
}

/// Searches. `ask` runs one step at a rate, for a part of the search.
///
/// **Errors**: those of `ask`.
pub fn find_max<E>(
    start: f64,
    ask: &mut impl FnMut(f64, &'static str) -> Result<Step, E>,
) -> Result<Found, E> {
    let mut steps: Vec<Step> = Vec::new();
    let mut run = |rate: f64, part: &'static str, steps: &mut Vec<Step>| -> Result<Step, E> {
        let step = ask(rate, part)?;
        steps.push(step.clone());
        Ok(step)
    };
    let (mut low, mut high) = (0.0, start);
    let mut own_end = false;
    for _ in 0..DOUBLINGS_MAX {
        let step = run(high, "double", &mut steps)?;
        if !step.pass {
            own_end = step.state == State::GeneratorSaturated;
            break;
        }
        low = high;
        high *= 2.0;
    }
    if low == 0.0 {
        // The first guess was too high: go down until something passes.
        for _ in 0..DOUBLINGS_MAX {
            let rate = high / 2.0;
            if rate < 1.0 {
                break;
            }
            if run(rate, "halve", &mut steps)?.pass {
                low = rate;
                break;
            }
            high = rate;
        }
    }
    if low > 0.0 {
        for _ in 0..BISECTIONS_MAX {
            if (high - low) / high <= RESOLUTION {
                break;
            }
            let middle = f64::midpoint(low, high).round();
            let step = run(middle, "bisect", &mut steps)?;
            if step.pass {
                low = middle;
            } else {
                own_end = step.state == State::GeneratorSaturated;
                high = middle;
            }
        }
    }
    // Chance may have let one run pass: two of three more must, or the rate goes down, by 5 % at
    // first and by 10 % then.
    let mut confirmed = false;
    for attempt in 0..CONFIRMS_MAX {
        if low < 1.0 || confirmed {
            break;
        }
        let mut passes = 0;
        for run_number in 0..3 {
            passes += u32::from(run(low, "confirm", &mut steps)?.pass);
            if passes == 2 || (run_number == 1 && passes == 0) {
                break;
            }
        }
        confirmed = passes >= 2;
        if !confirmed {
            low = (low * if attempt == 0 { 0.95 } else { 0.9 }).floor();
        }
    }
    if confirmed {
        for (share, part) in [(0.8, "80 %"), (1.0, "100 %"), (1.2, "120 %")] {
            run((low * share).round(), part, &mut steps)?;
        }
    }
    Ok(Found {
        rate: if confirmed { low } else { 0.0 },
        at_least: own_end,
        confirmed,
        cut_short: false,
        steps,
    })
}

/// Builds the report of a search or sweep.
pub fn report(found: &Found, limits: &Limits, target: &str, plan: &Plan) -> Value {
    let state = if found.rate > 0.0 { "VALID" } else { "INVALID" };
    let rate = grouped(found.rate);
    let reason = match (found.rate > 0.0, found.confirmed, found.at_least) {
        _ if found.cut_short => "interrupted: these are the steps that were done".to_owned(),
        (false, ..) if found.steps.iter().any(|step| step.pass) => {
            "no rate met the limits twice: the machine or the target is unsteady".to_owned()
        }
        (false, ..) => "no rate met the limits".to_owned(),
        (true, true, true) => {
            format!("at least {rate} a second: the generator saturated before the target did")
        }
        (true, true, false) => format!("{rate} a second is the highest rate that met the limits"),
        (true, false, _) => {
            format!("{rate} a second is the highest rate that passed; not confirmed")
        }
    };
    let p99 = (limits.p99_ns != u64::MAX).then_some(limits.p99_ns);
    json!({
        "schema": SCHEMA,
        "target": { "address": target },
        "found_per_s": found.rate,
        "generator_limited": found.at_least,
        "confirmed": found.confirmed,
        "limits": { "p99_ns": p99, "error_share": limits.errors },
        "config": { "plan": plan.text(), "seed": plan.seed },
        "steps": found.steps.iter().map(Step::json).collect::<Vec<_>>(),
        "totals": { "accepted_per_s": found.rate },
        "generator": { "ceiling": null },
        "verdict": { "state": state, "reasons": [reason] },
    })
}

/// Renders that report.
pub fn text(report: &Value) -> String {
    let mut text = format!(
        "VERDICT     {}  ({})\n",
        report["verdict"]["state"].as_str().unwrap_or("?"),
        report["verdict"]["reasons"][0].as_str().unwrap_or("")
    );
    let limits = &report["limits"];
    if let Some(p99) = limits["p99_ns"].as_u64() {
        text.push_str(&format!(
            "Limits      p99 response {}, errors {:.2} %\n",
            time(p99),
            limits["error_share"].as_f64().unwrap_or(0.0) * 100.0
        ));
    }
    text.push_str(&format!(
        "\n{:<9} {:>11} {:>11} {:>10} {:>10} {:>10} {:>8}  verdict\n",
        "part", "offered/s", "accepted/s", "p50", "p99", "max", "errors"
    ));
    for step in report["steps"].as_array().into_iter().flatten() {
        let rate = |name: &str| grouped(step[name].as_f64().unwrap_or(0.0));
        let ns = |name: &str| time(step[name].as_u64().unwrap_or(0));
        text.push_str(&format!(
            "{:<9} {:>11} {:>11} {:>10} {:>10} {:>10} {:>6.2} %  {}{}\n",
            step["part"].as_str().unwrap_or(""),
            rate("offered_per_s"),
            rate("accepted_per_s"),
            ns("p50_ns"),
            ns("p99_ns"),
            ns("max_ns"),
            step["error_share"].as_f64().unwrap_or(0.0) * 100.0,
            step["verdict"].as_str().unwrap_or(""),
            if step["pass"] == true { ", passed" } else { "" },
        ));
    }
    let ceiling = &report["generator"]["ceiling"];
    text.push_str(&format!("\nCeiling     {}\n", ceiling_text(ceiling)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that passes up to `ceiling`; the generator ends at `own`.
    fn search(ceiling: f64, own: f64, start: f64) -> Found {
        let mut ask = |rate: f64, part| -> Result<Step, ()> {
            let state = match rate {
                rate if rate > own => State::GeneratorSaturated,
                rate if rate > ceiling => State::TargetSaturated,
                _ => State::Valid,
            };
            let pass = state == State::Valid;
            Ok(Step {
                offered: rate,
                accepted: rate.min(ceiling),
                p50_ns: 1,
                p99_ns: 1,
                max_ns: 1,
                errors: 0.0,
                state,
                pass,
                part,
            })
        };
        find_max(start, &mut ask).unwrap()
    }

    #[test]
    fn the_ceiling_is_found_within_one_per_cent_from_either_side() {
        for (ceiling, start) in [(12_345.0, 1000.0), (12_345.0, 500_000.0), (777.0, 1000.0)] {
            let found = search(ceiling, 1e9, start);
            assert!(
                found.rate <= ceiling && found.rate >= ceiling * 0.985,
                "{found:?}"
            );
            assert!(found.confirmed && !found.at_least);
            let parts: Vec<_> = found
                .steps
                .iter()
                .rev()
                .take(3)
                .map(|step| step.part)
                .collect();
            assert_eq!(parts, ["120 %", "100 %", "80 %"]);
        }
    }

    #[test]
    fn a_step_that_met_its_limits_passed_even_with_a_late_generator() {
        let report = json!({
            "totals": { "accepted": 100, "attempted": 100, "window_accepted": 100,
                "window_offered": 100, "accepted_per_s": 10.0 },
            "latency": { "response": { "p50_ns": 1, "max_ns": 5_000_000 } },
        });
        let limits = Limits {
            p99_ns: 5_000_000,
            errors: 0.0,
        };
        let judge = |state, limits: &Limits| Step::judge(10.0, &report, state, limits, "").pass;
        assert!(judge(State::Valid, &limits) && judge(State::GeneratorSaturated, &limits));
        assert!(!judge(State::TargetSaturated, &limits));
        assert!(!judge(
            State::Valid,
            &Limits {
                p99_ns: 4_999_999,
                ..limits
            }
        ));
    }

    #[test]
    fn an_end_of_the_generator_is_no_end_of_the_target() {
        let found = search(1e9, 40_000.0, 1000.0);
        assert!(
            found.at_least && found.rate <= 40_000.0 && found.rate > 39_000.0,
            "{found:?}"
        );
    }

    #[test]
    fn a_target_that_passes_nothing_gives_nothing() {
        let found = search(0.0, 1e9, 1000.0);
        assert_eq!((found.rate, found.confirmed), (0.0, false));
    }
}
