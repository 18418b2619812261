//! Was it the generator or the target? Decided from numbers alone.
//!
//! The rules, first match wins; `docs/loadgen.md` repeats them:
//!
//! 1. no message accepted, or errors of this machine: INVALID; but GENERATOR SATURATED if no
//!    message went wrong either and a worker waited for a CPU half of the window
//! 2. a worker was busy 90 % of the window, or 95 % with its waits for a CPU: GENERATOR SATURATED
//! 3. open loop, messages started more than 1 ms late at p99 with a session free: the same
//! 4. open loop, more than 0.1 % never begun or less than 99 % answered: TARGET SATURATED, unless a
//!    worker waited for a CPU half of the window: then the sessions look busy because their replies
//!    lie unread, and it is GENERATOR SATURATED
//! 5. else VALID

use crate::recorder::Recorder;
use crate::report::time;

/// What the numbers are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They describe the target.
    Valid,
    /// They describe this program.
    GeneratorSaturated,
    /// The target did not keep up with the offered rate.
    TargetSaturated,
    /// They describe nothing.
    Invalid,
}

impl State {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::GeneratorSaturated => "GENERATOR SATURATED",
            Self::TargetSaturated => "TARGET SATURATED",
            Self::Invalid => "INVALID",
        }
    }
}

/// Share of the window from which on a worker counts as saturated.
const BUSY_MAX: f64 = 0.90;
/// Share of the window, waiting for a CPU included, from which on it counts as starved.
const WANTED_MAX: f64 = 0.95;
/// Share of the window spent waiting for a CPU from which on a backlog is not the target's.
const WAITED_MAX: f64 = 0.50;
/// Lateness at p99 from which on the generator counts as too slow, ns.
const LAG_MAX_NS: u64 = 1_000_000;

/// The verdict and its reasons in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The verdict.
    pub state: State,
    /// Why.
    pub reasons: Vec<String>,
}

/// A window shorter than this counts as this long where shares are taken, ns.
const WALL_MIN_NS: u64 = 10_000_000;

/// Returns the largest share of the window that any worker used or wanted: (used, used + waited).
pub fn busiest(recorder: &Recorder) -> (f64, f64) {
    recorder
        .loads
        .iter()
        .fold((0.0, 0.0), |(used, wanted): (f64, f64), load| {
            // The share of next to nothing is no share: a run that sent nothing lasted some microseconds.
            let wall = load.wall_ns.max(WALL_MIN_NS) as f64;
            let cpu = load.cpu_ns as f64 / wall;
            (
                used.max(cpu),
                wanted.max(cpu + load.waited_ns as f64 / wall),
            )
        })
}

fn verdict(state: State, reason: impl Into<String>) -> Verdict {
    Verdict {
        state,
        reasons: vec![reason.into()],
    }
}

/// What the workers had of their CPUs, as shares of the window.
#[derive(Clone, Copy)]
struct Shares {
    /// Most that any worker used.
    used: f64,
    /// Most that any worker used or waited for.
    wanted: f64,
    /// The run was so short that these say little.
    short: bool,
}

impl Shares {
    fn of(recorder: &Recorder) -> Self {
        let (used, wanted) = busiest(recorder);
        Self {
            used,
            wanted,
            short: recorder.window.1.saturating_sub(recorder.window.0) < 100_000_000,
        }
    }

    fn waited(self) -> f64 {
        self.wanted - self.used
    }

    /// Something else had the core of a worker for so long that nothing can be said of the target.
    fn is_robbed(self) -> bool {
        self.waited() >= WAITED_MAX && !self.short
    }

    /// Why no more could be asked of the generator, if that is so.
    fn saturation(self) -> Option<String> {
        let (used, waited) = (self.used * 1e2, self.waited() * 1e2);
        if self.short {
            None
        } else if self.used >= BUSY_MAX {
            Some(format!(
                "a worker used {used:.0} % of a CPU; give it --threads or another core"
            ))
        } else if self.wanted >= WANTED_MAX {
            Some(format!(
                "a worker ran {used:.0} % and waited for a CPU {waited:.0} % of the time: something \
                 else has its core"
            ))
        } else {
            None
        }
    }
}

/// Judges a run.
pub fn judge(recorder: &Recorder, open: bool) -> Verdict {
    let totals = &recorder.totals;
    if let Some(reason) = errors_of_this_machine(recorder) {
        return verdict(State::Invalid, reason);
    }
    let shares = Shares::of(recorder);
    let nothing_came =
        totals.window_accepted == 0 && totals.deferred + totals.rejected + totals.failed == 0;
    if nothing_came && shares.is_robbed() {
        let reason = format!(
            "nothing came about: a worker waited for a CPU {:.0} % of the time, because something \
             else has its core",
            shares.waited() * 1e2
        );
        return verdict(State::GeneratorSaturated, reason);
    }
    if totals.accepted == 0 {
        return verdict(State::Invalid, "no message was accepted");
    }
    if totals.window_accepted == 0 {
        let reason = "no message was accepted within the measured window";
        return verdict(State::Invalid, reason);
    }
    if let Some(reason) = shares.saturation() {
        return verdict(State::GeneratorSaturated, reason);
    }
    if open {
        judge_open(recorder, shares)
    } else {
        judge_closed(recorder, shares)
    }
}

fn errors_of_this_machine(recorder: &Recorder) -> Option<String> {
    let local = || {
        let kinds = recorder.kinds.iter();
        kinds.filter(|kind| kind.fault.is_some_and(|fault| fault.is_generator_side()))
    };
    let count: u64 = local().map(|kind| kind.count).sum();
    let sample = local().next().map_or("", |kind| kind.sample.as_str());
    (count > 0).then(|| format!("{count} errors of this machine: {sample}"))
}

/// An open loop: messages have their planned times, and someone is late or nobody is.
fn judge_open(recorder: &Recorder, shares: Shares) -> Verdict {
    let totals = &recorder.totals;
    let lag = recorder.lag_generator.value_at_quantile(0.99);
    if recorder.lag_generator.len() >= 100 && lag > LAG_MAX_NS {
        let reason = format!(
            "messages started {} late at p99 with a session free",
            time(lag)
        );
        return verdict(State::GeneratorSaturated, reason);
    }
    let planned = totals.attempted + totals.unsent;
    let behind = if totals.unsent * 1000 > planned {
        format!(
            "{} of {planned} planned messages were never begun",
            totals.unsent
        )
    } else if totals.window_accepted * 100 < totals.window_offered * 99 {
        format!(
            "{} of {} offered messages were accepted in the window",
            totals.window_accepted, totals.window_offered
        )
    } else {
        let reason = format!(
            "the offered rate was kept; this generator used {:.0} % of a CPU",
            shares.used * 1e2
        );
        return verdict(State::Valid, reason);
    };
    if !shares.is_robbed() {
        return verdict(State::TargetSaturated, behind);
    }
    let reason = format!(
        "{behind}, and a worker waited for a CPU {:.0} % of the time: something else has its core",
        shares.waited() * 1e2
    );
    verdict(State::GeneratorSaturated, reason)
}

/// A closed loop: each session sends when it has its answer, so that nobody can be late.
fn judge_closed(recorder: &Recorder, shares: Shares) -> Verdict {
    let unsent = recorder.totals.unsent;
    let mut reasons = Vec::new();
    if unsent > 0 {
        reasons.push(format!("{unsent} planned messages were never begun"));
    }
    reasons.push(format!(
        "closed loop: target and round trips set the pace; this generator used {:.0} % of a CPU",
        shares.used * 1e2
    ));
    if shares.short {
        reasons.push("the run is shorter than 100 ms: rates and CPU shares are rough".into());
    }
    let state = if unsent > 0 {
        State::Invalid
    } else {
        State::Valid
    };
    Verdict { state, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Fault, Phase};
    use crate::recorder::Load;

    /// A run of ten seconds with a worker that used and waited these shares.
    fn recorder(used: f64, waited: f64, open: bool) -> Recorder {
        let mut recorder = Recorder::new(0, 10_000_000_000, open);
        recorder.totals.attempted = 1000;
        recorder.totals.accepted = 1000;
        recorder.totals.window_accepted = 1000;
        recorder.totals.window_offered = 1000;
        let share = |part: f64| (part * 1e10) as u64;
        let (cpu_ns, waited_ns) = (share(used), share(waited));
        recorder.loads.push(Load {
            cpu_ns,
            waited_ns,
            wall_ns: 10_000_000_000,
        });
        recorder
    }

    #[test]
    fn a_busy_or_starved_worker_saturates_the_generator() {
        assert_eq!(judge(&recorder(0.5, 0.1, false), false).state, State::Valid);
        assert_eq!(
            judge(&recorder(0.93, 0.0, false), false).state,
            State::GeneratorSaturated
        );
        let starved = judge(&recorder(0.3, 0.68, false), false);
        assert_eq!(starved.state, State::GeneratorSaturated);
        assert!(
            starved.reasons[0].contains("something else has its core"),
            "{starved:?}"
        );
    }

    #[test]
    fn lateness_with_a_free_session_is_ours_and_a_backlog_is_the_targets() {
        let mut late = recorder(0.3, 0.0, true);
        late.lag_generator.record_n(5_000_000, 1000).unwrap();
        assert_eq!(judge(&late, true).state, State::GeneratorSaturated);
        let mut behind = recorder(0.3, 0.0, true);
        behind.totals.unsent = 10;
        assert_eq!(judge(&behind, true).state, State::TargetSaturated);
        let mut short = recorder(0.3, 0.0, true);
        short.totals.window_offered = 1100;
        assert_eq!(judge(&short, true).state, State::TargetSaturated);
        assert_eq!(judge(&recorder(0.3, 0.0, true), true).state, State::Valid);
    }

    #[test]
    fn a_backlog_of_a_starved_generator_is_not_the_targets() {
        // Symptom: few sessions, a generator that ran 0.4 % and waited 92 % of the time. Replies
        // lay unread, so that no session was free, and the target was blamed.
        let mut starved = recorder(0.004, 0.92, true);
        starved.totals.unsent = 900;
        let verdict = judge(&starved, true);
        assert_eq!(verdict.state, State::GeneratorSaturated);
        assert_eq!(
            verdict.reasons,
            [
                "900 of 1900 planned messages were never begun, and a worker waited for a CPU \
                 92 % of the time: something else has its core"
            ]
        );
        // A rate that was kept all the same is kept.
        let kept = recorder(0.004, 0.92, true);
        assert_eq!(judge(&kept, true).state, State::Valid);
        let mut nothing = recorder(0.001, 0.98, false);
        (nothing.totals.accepted, nothing.totals.window_accepted) = (0, 0);
        assert_eq!(judge(&nothing, false).state, State::GeneratorSaturated);
        nothing.totals.rejected = 1;
        assert_eq!(judge(&nothing, false).state, State::Invalid);
        let mut short_of_cpu = recorder(0.3, 0.3, true);
        short_of_cpu.totals.unsent = 900;
        assert_eq!(judge(&short_of_cpu, true).state, State::TargetSaturated);
    }

    #[test]
    fn nothing_accepted_and_errors_of_this_machine_are_invalid() {
        let mut none = recorder(0.3, 0.0, false);
        none.totals.accepted = 0;
        assert_eq!(judge(&none, false).state, State::Invalid);
        let mut local = recorder(0.3, 0.0, false);
        local.fault(
            Phase::Connect,
            Fault::OutOfDescriptors,
            "too many open files",
        );
        let verdict = judge(&local, false);
        assert_eq!(verdict.state, State::Invalid);
        assert!(verdict.reasons[0].contains("too many open files"));
    }
}
