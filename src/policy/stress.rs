//! When the server is under stress: its limits become narrower then, without being asked.
//!
//! Stress begins when one of the [`StressCause`]s holds and ends when none has held for [`CALM_NS`]. The share of
//! sessions has two thresholds, so that a server at the edge does not change its mind with each client.
//! Postfix switches at the same thing, all of its places being taken; storage is watched here as well, because clients
//! pile up behind a slow disk before the last place is gone.

use crate::clock::Instant;
use crate::metrics::StressCause;

/// Share of the sessions in use from which on there is stress, per cent.
pub const SESSIONS_HIGH_PERCENT: usize = 80;
/// Share of the sessions in use below which there is none, per cent.
pub const SESSIONS_LOW_PERCENT: usize = 70;
/// Share of the pool beside its reserve below which there is stress, per cent.
pub const POOL_FREE_PERCENT: u64 = 10;
/// A sync that is under way for longer is stress, nanoseconds.
pub const SYNC_SLOW_NS: u64 = 1_000_000_000;
/// Stress lasts for this long behind its last cause, nanoseconds.
pub const CALM_NS: u64 = 10_000_000_000;

/// What the server carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Open sessions.
    pub sessions: usize,
    /// Sessions at the same time at most.
    pub sessions_max: usize,
    /// Free memory of the pool beside its reserve, bytes.
    pub pool_free_bytes: u64,
    /// All of the pool, bytes.
    pub pool_bytes: u64,
    /// For how long the sync under way has been, nanoseconds; 0 for none.
    pub sync_ns: u64,
}

/// Whether there is stress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stress {
    /// INVARIANT: a time only while there is stress.
    until: Option<Instant>,
}

/// What a look has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stress begins, for this reason.
    Began(StressCause),
    /// Stress is over.
    Ended,
}

impl Stress {
    /// Whether there is stress.
    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// Looks at the load; a change is reported once.
    pub fn look(&mut self, load: &Load, now: Instant) -> Option<Change> {
        let cause = load.cause(self.is_on());
        match (cause, self.until) {
            (Some(cause), before) => {
                self.until = Some(Instant(now.0.saturating_add(CALM_NS)));
                before.is_none().then_some(Change::Began(cause))
            }
            (None, Some(until)) if now >= until => {
                self.until = None;
                Some(Change::Ended)
            }
            (None, _) => None,
        }
    }
}

impl Load {
    fn cause(&self, was_on: bool) -> Option<StressCause> {
        let percent = if was_on {
            SESSIONS_LOW_PERCENT
        } else {
            SESSIONS_HIGH_PERCENT
        };
        if self.sessions * 100 >= self.sessions_max * percent && self.sessions > 0 {
            Some(StressCause::Sessions)
        } else if self.pool_free_bytes < self.pool_bytes / 100 * POOL_FREE_PERCENT {
            Some(StressCause::Pool)
        } else if self.sync_ns > SYNC_SLOW_NS {
            Some(StressCause::Sync)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Load = Load {
        sessions: 0,
        sessions_max: 100,
        pool_free_bytes: 1_000,
        pool_bytes: 1_000,
        sync_ns: 0,
    };

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn each_cause_begins_it_at_its_threshold_and_not_before() {
        for (load, expected) in [
            (CALM, None),
            (
                Load {
                    sessions: 79,
                    ..CALM
                },
                None,
            ),
            (
                Load {
                    sessions: 80,
                    ..CALM
                },
                Some(StressCause::Sessions),
            ),
            (
                Load {
                    pool_free_bytes: 100,
                    ..CALM
                },
                None,
            ),
            (
                Load {
                    pool_free_bytes: 99,
                    ..CALM
                },
                Some(StressCause::Pool),
            ),
            (
                Load {
                    sync_ns: SYNC_SLOW_NS,
                    ..CALM
                },
                None,
            ),
            (
                Load {
                    sync_ns: SYNC_SLOW_NS + 1,
                    ..CALM
                },
                Some(StressCause::Sync),
            ),
            (
                Load {
                    sessions_max: 0,
                    ..CALM
                },
                None,
            ),
        ] {
            let mut stress = Stress::default();
            assert_eq!(
                stress.look(&load, at(0)),
                expected.map(Change::Began),
                "{load:?}"
            );
            assert_eq!(stress.is_on(), expected.is_some());
        }
    }

    #[test]
    fn it_is_reported_once_and_ends_ten_seconds_behind_its_last_cause() {
        let mut stress = Stress::default();
        let high = Load {
            sessions: 80,
            ..CALM
        };
        let between = Load {
            sessions: 70,
            ..CALM
        };
        let low = Load {
            sessions: 69,
            ..CALM
        };
        assert_eq!(
            stress.look(&high, at(0)),
            Some(Change::Began(StressCause::Sessions))
        );
        assert_eq!(stress.look(&high, at(1)), None);
        assert_eq!(stress.look(&between, at(20_000)), None);
        assert_eq!(stress.look(&low, at(29_999)), None);
        assert!(stress.is_on());
        assert_eq!(stress.look(&low, at(30_000)), Some(Change::Ended));
        assert_eq!(stress.look(&low, at(30_001)), None);
        assert_eq!(
            stress.look(&between, at(30_002)),
            None,
            "80 begin it, not 70"
        );
        // A second cause while it lasts prolongs it and is not reported.
        let slow = Load {
            sync_ns: 2 * SYNC_SLOW_NS,
            ..CALM
        };
        assert_eq!(
            stress.look(&high, at(40_000)),
            Some(Change::Began(StressCause::Sessions))
        );
        assert_eq!(stress.look(&slow, at(49_000)), None);
        assert_eq!(stress.look(&CALM, at(58_999)), None);
        assert_eq!(stress.look(&CALM, at(59_000)), Some(Change::Ended));
    }
}
