//! The live display: a few lines redrawn on a terminal, one line a second otherwise.

use crate::plan::{Mode, Plan};
use crate::report::{grouped, time};
use crate::sys;
use crate::worker::{Live, Shared};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BARS: [char; 8] = [
    '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}',
];

/// Draws progress to standard error.
pub struct Display {
    quiet: bool,
    terminal: bool,
    heading: String,
    total: Option<f64>,
    /// Seconds that are not measured.
    warmup: f64,
    /// Lines on the screen that the next frame replaces.
    drawn: usize,
    last: Sample,
    rates: Vec<f64>,
    tails: Vec<f64>,
    /// Of the second that was shown last.
    rate: f64,
    cpu: f64,
}

#[derive(Clone, Copy, Default)]
struct Sample {
    at: f64,
    accepted: u64,
    cpu_ns: u64,
}

impl Display {
    /// Prepares the display of one run.
    pub fn new(quiet: bool, target: &str, plan: &Plan) -> Self {
        let mode = match plan.mode {
            Mode::Closed => "closed loop".to_owned(),
            Mode::Open { rate, poisson, .. } => {
                format!(
                    "open {}/s{}",
                    grouped(rate),
                    match poisson {
                        _ if plan.trace.is_some() => " on average, from a trace",
                        true => " Poisson",
                        false => "",
                    }
                )
            }
        };
        Self {
            quiet,
            terminal: std::io::stderr().is_terminal(),
            heading: format!("smtp-loadgen  {target}  {mode}  seed {}", plan.seed),
            total: plan
                .duration_ns
                .map(|ns| (ns + plan.warmup_ns) as f64 / 1e9),
            warmup: plan.warmup_ns as f64 / 1e9,
            drawn: 0,
            last: Sample::default(),
            rates: Vec::new(),
            tails: Vec::new(),
            rate: 0.0,
            cpu: 0.0,
        }
    }

    /// Shows the state; called about five times a second.
    pub fn tick(&mut self, shared: &Shared, elapsed: Duration) {
        if self.quiet {
            return;
        }
        let sum = |field: fn(&Live) -> &AtomicU64| -> u64 {
            shared
                .live
                .iter()
                .map(|live| field(live).load(Ordering::Relaxed))
                .sum()
        };
        let most = |field: fn(&Live) -> &AtomicU64| -> u64 {
            shared
                .live
                .iter()
                .map(|live| field(live).load(Ordering::Relaxed))
                .max()
                .unwrap_or(0)
        };
        let at = elapsed.as_secs_f64();
        let accepted = sum(|live| &live.accepted);
        let second = at - self.last.at >= 1.0;
        if second {
            let span = at - self.last.at;
            let cpu_ns = sum(|live| &live.cpu_ns);
            self.rate = (accepted - self.last.accepted) as f64 / span;
            self.cpu = cpu_ns.saturating_sub(self.last.cpu_ns) as f64 / span / 1e7;
            self.last = Sample {
                at,
                accepted,
                cpu_ns,
            };
            push(&mut self.rates, self.rate);
            push(&mut self.tails, most(|live| &live.p99_ns) as f64);
        }
        if !self.terminal && !second {
            return;
        }
        let troubles = format!(
            "4xx {}  5xx {}  failed {}",
            sum(|live| &live.deferred),
            sum(|live| &live.rejected),
            sum(|live| &live.failed)
        );
        let ended = accepted + sum(|l| &l.deferred) + sum(|l| &l.rejected) + sum(|l| &l.failed);
        let flight = sum(|live| &live.attempted).saturating_sub(ended);
        let p50 = latency(most(|live| &live.p50_ns));
        let p99 = latency(most(|live| &live.p99_ns));
        let max = latency(most(|live| &live.max_ns));
        let clock = clock(at, self.warmup, self.total);
        let lines = if self.terminal {
            vec![
                format!("{}  t {clock}", self.heading),
                format!(
                    " accepted {} ({}/s)  {troubles}  in flight {flight}  sessions {}",
                    grouped(accepted as f64),
                    grouped(self.rate),
                    sum(|live| &live.sessions)
                ),
                format!(" last second  p50 {p50}  p99 {p99}  max {max}"),
                format!(" rate {}", bars(&self.rates)),
                format!(" p99  {}", bars(&self.tails)),
                format!(
                    " generator cpu {:.0} %{}",
                    self.cpu,
                    if self.cpu > 90.0 * shared.live.len() as f64 {
                        "  SATURATED"
                    } else {
                        ""
                    }
                ),
            ]
        } else {
            vec![format!(
                "t {clock}  accepted {accepted} ({:.0}/s)  {troubles}  in flight {flight}  \
                 p50 {p50}  p99 {p99}  max {max}  generator cpu {:.0} %",
                self.rate, self.cpu
            )]
        };
        self.draw(&lines);
    }

    fn draw(&mut self, lines: &[String]) {
        let mut frame = String::new();
        if self.terminal && self.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A", self.drawn));
        }
        let columns = if self.terminal {
            sys::terminal_columns().unwrap_or(80)
        } else {
            usize::MAX
        };
        for line in lines {
            let line: String = line.chars().take(columns.saturating_sub(1)).collect();
            frame.push_str(&line);
            frame.push_str(if self.terminal { "\x1b[K\n" } else { "\n" });
        }
        self.drawn = lines.len();
        // A display that can't be shown must not end the run.
        let _ = std::io::stderr().write_all(frame.as_bytes());
    }

    /// Takes the frame off the terminal.
    pub fn clear(&mut self) {
        if self.terminal && self.drawn > 0 {
            let _ = std::io::stderr().write_all(format!("\x1b[{}A\x1b[J", self.drawn).as_bytes());
        }
    }
}

/// A percentile of the last second; a second that nobody has told of yet, or in which nothing ended, has none.
fn latency(ns: u64) -> String {
    match ns {
        0 => "-".to_owned(),
        ns => time(ns),
    }
}

/// Where a run stands: seconds since its start, of its warm-up, and of both when its duration is known.
fn clock(at: f64, warmup: f64, total: Option<f64>) -> String {
    let part = if at < warmup { ", warming up" } else { "" };
    match total {
        Some(total) if at > total + 0.5 => {
            format!("{total:.0}/{total:.0} s, draining {:.0} s", at - total)
        }
        Some(total) => format!("{at:.0}/{total:.0} s{part}"),
        None => format!("{at:.0} s{part}"),
    }
}

fn push(values: &mut Vec<f64>, value: f64) {
    if values.len() == 60 {
        values.remove(0);
    }
    values.push(value);
}

/// Draws values as bars, the largest at full height.
fn bars(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    values
        .iter()
        .map(|value| {
            let height = if most > 0.0 { value / most * 7.0 } else { 0.0 };
            BARS[(height.round() as usize).min(7)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first line of a run said `p50 0` where no thread had told of its first second yet.
    #[test]
    fn a_second_without_figures_shows_none() {
        assert_eq!(latency(0), "-");
        assert_eq!(latency(1_500_000), time(1_500_000));
    }

    #[test]
    fn the_clock_tells_warm_up_run_and_drain_apart() {
        assert_eq!(clock(0.4, 1.0, Some(7.0)), "0/7 s, warming up");
        assert_eq!(clock(5.0, 1.0, Some(7.0)), "5/7 s");
        assert_eq!(clock(7.2, 1.0, Some(7.0)), "7/7 s");
        assert_eq!(clock(10.1, 1.0, Some(7.0)), "7/7 s, draining 3 s");
        assert_eq!(clock(10.1, 0.0, None), "10 s");
    }

    #[test]
    fn bars_scale_to_the_largest_value() {
        assert_eq!(bars(&[0.0, 7.0, 3.5]), "\u{2581}\u{2588}\u{2585}");
        assert_eq!(bars(&[]), "");
    }
}
