//! What was sent, what became of it, and what therefore must, may or must not be found in the ring.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ringmx::envelope::Field;

use crate::ring::{Contents, Stored};

/// What may be found of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is being sent.
    Open,
    /// It was not wholly and validly sent, or was refused: it must never appear.
    Never,
    /// It was wholly sent and not refused for good: it may appear, or not.
    May,
    /// It was promised, or found by a recovery: it must be there, with this number.
    Must(u64),
    /// It may have been overwritten or lost before it was promised: it must not come back.
    Gone,
}

/// One message of one client.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Reverse-path; names the letter.
    pub from: String,
    /// Forward-paths in the order in which they were sent.
    pub offered: Vec<String>,
    /// Forward-paths that were accepted, where all replies came.
    pub accepted: Option<Vec<String>>,
    /// As it must be stored.
    pub body: Rc<Vec<u8>>,
    /// Whether it may be accepted.
    pub is_valid: bool,
    /// Octets of the client's stream up to its end; `u64::MAX` while it was not put on its way.
    pub ends_at: u64,
    pub fate: Fate,
}

/// All letters, by number in their reverse-path.
#[derive(Default)]
pub struct Ledger {
    pub letters: BTreeMap<u64, Letter>,
    /// Those that may yet be found in the ring.
    active: BTreeSet<u64>,
    /// Which letter a message number was ever seen to name.
    numbers: BTreeMap<u64, u64>,
    /// Numbers of messages promised since somebody last looked.
    pub fresh: Vec<u64>,
    /// Promises made.
    pub promised: u64,
    /// Promised letters that a recovery found again.
    pub found: u64,
}

impl Ledger {
    /// Takes a new letter; returns its key.
    pub fn add(&mut self, make: impl FnOnce(u64) -> Letter) -> u64 {
        let key = self.letters.len() as u64 + 1;
        self.letters.insert(key, make(key));
        self.active.insert(key);
        key
    }

    pub fn letter(&mut self, key: u64) -> &mut Letter {
        self.letters
            .get_mut(&key)
            .expect("letters are never removed")
    }

    /// A 250 that names the letter was sent.
    pub fn promise(&mut self, key: u64, number: u64, accepted: &[String]) {
        self.name(number, key);
        let letter = self.letter(key);
        assert!(letter.is_valid, "{} was accepted", letter.from);
        assert_eq!(letter.fate, Fate::Open, "{}", letter.from);
        letter.fate = Fate::Must(number);
        letter.accepted = Some(accepted.to_vec());
        self.promised += 1;
        self.fresh.push(number);
    }

    fn name(&mut self, number: u64, key: u64) {
        let before = self.numbers.insert(number, key);
        assert!(
            before.is_none_or(|before| before == key),
            "number {number} names letters {before:?} and {key}"
        );
    }

    /// Compares a message with the letter it came from; returns the letter's key.
    pub fn check(&mut self, stored: &Stored) -> u64 {
        let from = stored
            .field(Field::ReversePath)
            .expect("an envelope has one");
        let from = String::from_utf8_lossy(from);
        let key = from
            .strip_prefix('m')
            .and_then(|rest| rest.split('@').next()?.parse().ok())
            .unwrap_or_else(|| panic!("nobody sent {from}"));
        self.name(stored.number, key);
        let letter = self
            .letters
            .get(&key)
            .unwrap_or_else(|| panic!("nobody sent {from}"));
        assert_eq!(letter.from, from);
        assert!(
            stored.body() == &letter.body[..],
            "body of {from} as 0-{}: {} octets instead of {}: {letter:?} {:?}",
            stored.number,
            stored.body().len(),
            letter.body.len(),
            String::from_utf8_lossy(&stored.payload)
        );
        let paths: Vec<String> = stored
            .fields(Field::ForwardPath)
            .iter()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        match &letter.accepted {
            Some(accepted) => assert_eq!(*accepted, paths, "recipients of {from}"),
            None => {
                let mut offered = letter.offered.iter();
                let in_order = paths.iter().all(|path| offered.any(|other| other == path));
                assert!(
                    in_order && !paths.is_empty(),
                    "recipients of {from}: {paths:?}"
                );
            }
        }
        let id = format!("0-{}", stored.number);
        let trace = String::from_utf8_lossy(stored.trace());
        assert!(
            trace
                .split(|c: char| c.is_whitespace() || c == ';')
                .any(|word| word == id),
            "trace field of {from} without {id}: {trace}"
        );
        key
    }

    /// A life of the process ended; `server_read` tells how much of a letter's stream the server had read.
    pub fn settle(&mut self, key: u64, server_read: u64) {
        let letter = self.letter(key);
        if letter.fate == Fate::Open {
            letter.fate = if letter.is_valid && letter.ends_at <= server_read {
                Fate::May
            } else {
                Fate::Never
            };
        }
    }

    /// Promises that a crash of this kind breaks legitimately: `is_kept` says of a number whether it holds.
    pub fn weaken(&mut self, is_kept: impl Fn(u64) -> bool) {
        for key in &self.active {
            let letter = self.letters.get_mut(key).expect("never removed");
            if let Fate::Must(number) = letter.fate
                && !is_kept(number)
            {
                letter.fate = Fate::May;
            }
        }
    }

    /// Compares what a recovery left in the ring with what must, may and must not be there.
    pub fn compare(&mut self, contents: &Contents) {
        let mut seen = BTreeMap::new();
        for stored in contents.messages.values() {
            let key = self.check(stored);
            let twice = seen.insert(key, stored.number);
            assert_eq!(twice, None, "letter {key} was stored twice");
            let letter = self.letter(key);
            match letter.fate {
                Fate::May => {}
                Fate::Must(number) => assert_eq!(number, stored.number, "{}", letter.from),
                fate => panic!("{} is in the ring although it is {fate:?}", letter.from),
            }
        }
        let letters = &mut self.letters;
        let found = &mut self.found;
        self.active.retain(|key| {
            let letter = letters.get_mut(key).expect("never removed");
            if let Some(number) = seen.get(key) {
                *found += u64::from(matches!(letter.fate, Fate::Must(_)));
                letter.fate = Fate::Must(*number);
                return true;
            }
            match letter.fate {
                Fate::Must(number) => assert!(
                    number < contents.first_number,
                    "{} was promised as 0-{number} and is gone, although the ring begins with 0-{}",
                    letter.from,
                    contents.first_number
                ),
                Fate::May => {}
                Fate::Never | Fate::Gone => return false,
                Fate::Open => unreachable!("every life settles its letters"),
            }
            letter.fate = Fate::Gone;
            letter.body = Rc::default();
            false
        });
    }
}
