//! The method on a simulated clock: a target that freezes for a second, and percentiles that can
//! be worked out on paper.

use smtp_loadgen::client::{Finished, Outcome, Phase, Steps};
use smtp_loadgen::plan::{Schedule, Spec};
use smtp_loadgen::recorder::Recorder;

const MS: u64 = 1_000_000;

/// Plays ten seconds at 1,000 a second through one session against a target that takes 0.1 ms for
/// each message and nothing else, but for the second from 5 s to 6 s, in which it does nothing.
fn play() -> (Recorder, Vec<u64>) {
    let mut recorder = Recorder::new(0, 10_000 * MS, true);
    let mut schedule = Schedule::new(1, 1000.0, false, 0, 1);
    let (mut free_at, mut responses) = (0, Vec::new());
    loop {
        let (seq, intended_ns) = schedule.next();
        if intended_ns >= 10_000 * MS {
            return (recorder, responses);
        }
        schedule.advance();
        let started_ns = intended_ns.max(free_at);
        let frozen = (5000 * MS..6000 * MS).contains(&started_ns);
        let now_ns = if frozen { 6000 * MS } else { started_ns } + MS / 10;
        free_at = now_ns;
        responses.push(now_ns - intended_ns);
        recorder.begun(started_ns);
        recorder.finished(&Finished {
            spec: Spec {
                seq,
                size: 1000,
                recipients: 1,
            },
            stamp: None,
            len: 1000,
            outcome: Outcome::Accepted,
            text: b"",
            started_ns,
            intended_ns,
            now_ns,
            steps: Steps::default(),
        });
    }
}

#[test]
fn a_freeze_of_one_second_is_in_the_response_as_computed_and_not_in_the_service() {
    // The message due i ms after the freeze began ends 1,000.1 - 0.9 i ms late, until the backlog
    // is gone at i = 1,111. Of 10,000 messages, 100 have i < 100 and 1,000 have i < 1,000.
    let (recorder, mut responses) = play();
    let response = &recorder.phases[Phase::Response as usize];
    let service = &recorder.phases[Phase::Transaction as usize];
    assert_eq!((response.len(), service.len()), (10_000, 10_000));
    let near = |ns: u64, ms: f64| {
        let expected = ms * MS as f64;
        assert!(
            (ns as f64 - expected).abs() < expected * 0.002 + 1e6,
            "{ns} instead of {ms} ms"
        );
    };
    near(response.max(), 1000.1);
    near(response.value_at_quantile(0.99), 1000.1 - 0.9 * 100.0);
    near(response.value_at_quantile(0.95), 1000.1 - 0.9 * 500.0);
    near(response.value_at_quantile(0.90), 1000.1 - 0.9 * 1000.0);
    assert!(response.value_at_quantile(0.85) < MS);
    // And to the last digit that the histogram has: the value whose rank the percentile names.
    responses.sort_unstable();
    for share in [0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999] {
        let rank = (share * responses.len() as f64).ceil() as usize;
        let told = response.value_at_quantile(share);
        let exact = responses[rank - 1];
        assert!(
            response.equivalent(told, exact),
            "p{}: {told} instead of {exact}",
            share * 100.0
        );
    }
    // One message saw the freeze from inside: service alone would have hidden it.
    assert!(service.value_at_quantile(0.999) < MS);
    near(service.max(), 1000.1);
}

#[test]
fn the_rows_show_the_second_in_which_nothing_came() {
    let (recorder, _) = play();
    let accepted: Vec<u64> = recorder.rows.iter().map(|row| row.accepted).collect();
    assert_eq!(accepted.len(), 10);
    assert_eq!(accepted.iter().sum::<u64>(), 10_000);
    // All that were due in it ended in the next.
    assert_eq!(accepted[5], 0);
    assert_eq!(accepted[6], 2000);
}
