//! One timer for each connection, kept in a hashed wheel (Varghese and Lauck, scheme 6).
//!
//! A connection's timer is linked once and looked at again when it fires; what it waits for may have moved
//! meanwhile without the wheel knowing (see `server`). So the hot path never touches the wheel.
//!
//! Linking and unlinking are O(1). `expired` walks the slots that time has passed; a timer further away than
//! one lap is met once a lap. A sorted structure would cost more per link and is not needed, because nearly no
//! timer fires.

use crate::clock::Instant;

/// Slots of the wheel.
const SLOTS: usize = 1_024;
/// Time of one slot: timers fire up to this late.
pub const TICK_NS: u64 = 50_000_000;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// Tick at which the timer fires; `u64::MAX` when it is not linked.
    due: u64,
    prev: u32,
    next: u32,
}

const UNLINKED: Entry = Entry {
    due: u64::MAX,
    prev: NONE,
    next: NONE,
};

/// The wheel. Keys are small integers, such as slab keys.
pub struct TimerWheel {
    heads: Box<[u32; SLOTS]>,
    /// One bit for each slot that holds a timer.
    occupied: [u64; SLOTS / 64],
    entries: Vec<Entry>,
    /// Next tick to be looked at.
    current: u64,
    len: usize,
}

impl TimerWheel {
    /// An empty wheel for keys below `keys` (it grows when a larger one comes).
    pub fn new(keys: usize, now: Instant) -> TimerWheel {
        TimerWheel {
            heads: Box::new([NONE; SLOTS]),
            occupied: [0; SLOTS / 64],
            entries: Vec::with_capacity(keys),
            current: now.0 / TICK_NS,
            len: 0,
        }
    }

    /// Number of linked timers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is linked.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Links the timer of `key`, moving it when it is linked already.
    pub fn link(&mut self, key: usize, at: Instant) {
        self.unlink(key);
        if key >= self.entries.len() {
            self.entries.resize(key + 1, UNLINKED);
        }
        let due = at.0.div_ceil(TICK_NS).max(self.current);
        let slot = (due % SLOTS as u64) as usize;
        let head = self.heads[slot];
        self.entries[key] = Entry {
            due,
            prev: NONE,
            next: head,
        };
        if head != NONE {
            self.entries[head as usize].prev = key as u32;
        }
        self.heads[slot] = key as u32;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// Unlinks the timer of `key`, if it is linked.
    pub fn unlink(&mut self, key: usize) {
        let Some(&Entry { due, prev, next }) = self.entries.get(key) else {
            return;
        };
        if due == u64::MAX {
            return;
        }
        let slot = (due % SLOTS as u64) as usize;
        if prev == NONE {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        } else {
            self.entries[prev as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].prev = prev;
        }
        self.entries[key] = UNLINKED;
        self.len -= 1;
    }

    /// Unlinks every timer that is due at `now` and pushes its key to `due`.
    pub fn expired(&mut self, now: Instant, due: &mut Vec<usize>) {
        let now_tick = now.0 / TICK_NS;
        if now_tick < self.current {
            return;
        }
        let first = due.len();
        let ticks = (now_tick - self.current + 1).min(SLOTS as u64);
        for tick in self.current..self.current + ticks {
            let slot = (tick % SLOTS as u64) as usize;
            if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                continue;
            }
            let mut key = self.heads[slot];
            while key != NONE {
                let entry = &self.entries[key as usize];
                if entry.due <= now_tick {
                    due.push(key as usize);
                }
                key = entry.next;
            }
        }
        self.current = now_tick + 1;
        for &key in &due[first..] {
            self.unlink(key);
        }
    }

    /// When `expired` may next find something; never later than the first due timer.
    pub fn next_expiry(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let start = (self.current % SLOTS as u64) as usize;
        for step in 0..=SLOTS / 64 {
            let word = (start / 64 + step) % (SLOTS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == SLOTS / 64 {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some(Instant((self.current + ahead as u64) * TICK_NS));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let mut wheel = TimerWheel::new(4, at(0));
        let mut due = Vec::new();
        wheel.link(3, at(120));
        wheel.expired(at(119), &mut due);
        assert!(due.is_empty());
        assert_eq!(wheel.next_expiry(), Some(at(150)));
        wheel.expired(at(150), &mut due);
        assert_eq!(due, [3]);
        wheel.expired(at(10_000), &mut due);
        assert_eq!(due, [3]);
        assert!(wheel.is_empty());
        assert_eq!(wheel.next_expiry(), None);
    }

    #[test]
    fn timers_match_a_sorted_map_over_many_laps() {
        let mut wheel = TimerWheel::new(0, at(0));
        let mut model: BTreeMap<usize, u64> = BTreeMap::new();
        let mut now = 0_u64;
        let mut state = 99_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            match next() % 4 {
                0 | 1 => {
                    let key = (next() % 200) as usize;
                    let deadline = now + next() % 200_000;
                    wheel.link(key, at(deadline));
                    model.insert(key, deadline);
                }
                2 => {
                    let key = (next() % 200) as usize;
                    wheel.unlink(key);
                    model.remove(&key);
                }
                _ => {
                    now += next() % 900;
                    let mut due = Vec::new();
                    wheel.expired(at(now), &mut due);
                    for key in due {
                        let deadline = model.remove(&key).expect("fired twice or never linked");
                        assert!(deadline <= now, "fired early");
                    }
                    let tick_ms = TICK_NS / 1_000_000;
                    assert!(
                        model.values().all(|&deadline| deadline + tick_ms > now),
                        "late"
                    );
                    if let Some(expiry) = wheel.next_expiry() {
                        let first = model.values().min().expect("not empty");
                        assert!(expiry.0 <= at(first.div_ceil(tick_ms) * tick_ms).0);
                        assert!(expiry > at(now));
                    }
                }
            }
            assert_eq!(wheel.len(), model.len());
        }
    }
}
