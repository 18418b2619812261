//! Compares the ledger of accepted messages with what a store holds.
//!
//! Promises: every message of the ledger's runs is put in exactly one of found, lost, and
//! corrupt; copies beyond the first are counted; messages of other runs are left alone.

use crate::corpus::{self, named};
use crate::ledger;
use crate::message::{self, Checked, Stamp};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where stored messages are.
#[derive(Clone, Debug)]
pub enum Store {
    /// A Maildir: files in `cur` and `new`.
    Maildir(PathBuf),
    /// An mbox file, mboxrd or mboxo.
    Mbox(PathBuf),
    /// A directory tree with one file for each message.
    Eml(PathBuf),
    /// A ring, read by this `ringmx` program, or the one beside this program or on the PATH.
    Ring(PathBuf, Option<PathBuf>),
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Messages in the ledger.
    pub acknowledged: u64,
    /// Of those, found unharmed at least once.
    pub found: u64,
    /// Of those, not found at all.
    pub lost: u64,
    /// Copies beyond the first, of any message of the runs.
    pub duplicated: u64,
    /// Stored messages that differ from what was sent.
    pub corrupted: u64,
    /// Found unharmed, and no 250 was seen for them.
    pub unacknowledged: u64,
    /// Messages of no run in the ledger.
    pub foreign: u64,
    /// Ledger lines that could not be read.
    pub torn_lines: u64,
    /// Ledger lines that name a message a second time.
    pub repeated_lines: u64,
    /// The first few troubles, in words.
    pub examples: Vec<String>,
}

impl Findings {
    /// Whether nothing was lost, duplicated or corrupted.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.corrupted == 0
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "schema": "smtp-loadgen/verify/1",
            "acknowledged": self.acknowledged,
            "found": self.found,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "corrupted": self.corrupted,
            "unacknowledged_found": self.unacknowledged,
            "foreign": self.foreign,
            "ledger_torn_lines": self.torn_lines,
            "ledger_repeated_lines": self.repeated_lines,
            "examples": self.examples,
            "clean": self.is_clean(),
        })
    }

    /// As text; the first word is the verdict.
    pub fn text(&self) -> String {
        let verdict = if self.is_clean() { "CLEAN" } else { "FAILED" };
        let mut text = format!(
            "{verdict}  acknowledged {}  found {}  lost {}  duplicated {}  corrupted {}  \
             found-but-unacknowledged {}  foreign {}\n",
            self.acknowledged,
            self.found,
            self.lost,
            self.duplicated,
            self.corrupted,
            self.unacknowledged,
            self.foreign,
        );
        if self.torn_lines > 0 {
            text.push_str(&format!(
                "ledger: {} torn line(s) skipped\n",
                self.torn_lines
            ));
        }
        if self.repeated_lines > 0 {
            text.push_str(&format!(
                "ledger: {} line(s) repeated\n",
                self.repeated_lines
            ));
        }
        for example in &self.examples {
            text.push_str(&format!("  {example}\n"));
        }
        text
    }
}

/// Counts stored messages against a ledger.
struct Tally {
    /// Acknowledged messages and how often each was found; the reply's text for examples.
    known: HashMap<(u64, u64), (Stamp, u64, bool, String)>,
    /// Messages of the runs without a 250, and how often each was found.
    others: HashMap<(u64, u64), u64>,
    runs: Vec<u64>,
    findings: Findings,
}

const EXAMPLES_MAX: usize = 10;

impl Tally {
    fn new(contents: ledger::Contents) -> Self {
        let mut findings = Findings {
            torn_lines: contents.torn,
            ..Findings::default()
        };
        let mut known = HashMap::new();
        for entry in contents.entries {
            let stamp = entry.stamp;
            let before = known.insert((stamp.run, stamp.seq), (stamp, 0, false, entry.text));
            findings.repeated_lines += u64::from(before.is_some());
        }
        findings.acknowledged = known.len() as u64;
        Self {
            known,
            others: HashMap::new(),
            runs: contents.runs,
            findings,
        }
    }

    fn example(&mut self, text: String) {
        if self.findings.examples.len() < EXAMPLES_MAX {
            self.findings.examples.push(text);
        }
    }

    fn stored(&mut self, bytes: &[u8], place: &str) {
        let (stamp, harm) = match message::check(bytes) {
            Checked::Foreign => {
                self.findings.foreign += 1;
                return;
            }
            Checked::Intact(stamp) => (stamp, None),
            Checked::Corrupt(stamp, reason) => (stamp, Some(reason)),
        };
        if !self.runs.contains(&stamp.run) {
            self.findings.foreign += 1;
            return;
        }
        let key = (stamp.run, stamp.seq);
        let entry = self.known.get_mut(&key);
        let harm = match &entry {
            Some((sent, ..)) if harm.is_none() && *sent != stamp => {
                Some("not the message that was acknowledged")
            }
            _ => harm,
        };
        if let Some(reason) = harm {
            if let Some((_, _, corrupt, _)) = entry {
                *corrupt = true;
            }
            self.findings.corrupted += 1;
            return self.example(format!("corrupt: {stamp}: {reason} ({place})"));
        }
        let copies = match entry {
            Some((_, copies, ..)) => copies,
            None => self.others.entry(key).or_insert(0),
        };
        *copies += 1;
        if *copies > 1 {
            self.findings.duplicated += 1;
            self.example(format!("duplicate: {stamp} ({place})"));
        }
    }

    fn finish(mut self) -> Findings {
        self.findings.unacknowledged = self.others.len() as u64;
        let mut lost: Vec<_> = Vec::new();
        for (stamp, copies, corrupt, text) in self.known.values() {
            if *copies > 0 {
                self.findings.found += 1;
            } else if !corrupt {
                self.findings.lost += 1;
                lost.push((stamp.run, stamp.seq, text.clone()));
            }
        }
        lost.sort_unstable();
        for (run, seq, text) in lost.into_iter().take(EXAMPLES_MAX) {
            self.example(format!(
                "lost: run={run:016x} seq={seq}, answered 250 {text}"
            ));
        }
        self.findings
    }
}

/// Reads a ledger and a store and compares them.
///
/// **Errors**: the ledger or the store can't be read; a message that can't be read is an error
/// and not a loss.
pub fn verify(ledger: &Path, store: &Store) -> io::Result<Findings> {
    let contents = ledger::read(ledger).map_err(|error| named(error, ledger))?;
    let mut tally = Tally::new(contents);
    match store {
        Store::Maildir(path) => {
            for part in ["cur", "new"] {
                let part = path.join(part);
                if part.is_dir() {
                    read_tree(&part, &mut tally)?;
                }
            }
            if !path.join("new").is_dir() && !path.join("cur").is_dir() {
                return Err(io::Error::other(format!(
                    "{} is no Maildir",
                    path.display()
                )));
            }
        }
        Store::Eml(path) => read_tree(path, &mut tally)?,
        Store::Mbox(path) => read_mbox(path, &mut tally)?,
        Store::Ring(ring, program) => read_ring(ring, program.as_deref(), &mut tally)?,
    }
    Ok(tally.finish())
}

fn read_tree(path: &Path, tally: &mut Tally) -> io::Result<()> {
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(&path).map_err(|error| named(error, &path))? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let bytes = std::fs::read(&path).map_err(|error| named(error, &path))?;
                tally.stored(&bytes, &path.display().to_string());
            }
        }
    }
    Ok(())
}

/// Reads the messages of an mbox.
fn read_mbox(path: &Path, tally: &mut Tally) -> io::Result<()> {
    let bytes = std::fs::read(path).map_err(|error| named(error, path))?;
    let mut number = 0;
    corpus::split_mbox(&bytes, |message| {
        number += 1;
        tally.stored(message, &format!("message {number} of {}", path.display()));
    });
    Ok(())
}

/// Lets `ringmx` write the ring's messages to a directory and reads that.
fn read_ring(ring: &Path, program: Option<&Path>, tally: &mut Tally) -> io::Result<()> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => {
            let beside = std::env::current_exe()?.with_file_name("ringmx");
            if beside.is_file() {
                beside
            } else {
                PathBuf::from("ringmx")
            }
        }
    };
    let place = std::env::temp_dir().join(format!("smtp-loadgen-verify-{}", std::process::id()));
    std::fs::create_dir(&place).map_err(|error| named(error, &place))?;
    let output = Command::new(&program)
        .args(["log", "export", "--eml"])
        .arg(&place)
        .arg("--ring")
        .arg(ring)
        .output();
    let result = match output {
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "{}: {error}; give its place with --ringmx",
                program.display()
            ),
        )),
        Ok(output) if !output.status.success() => Err(io::Error::other(format!(
            "{} log export failed with {}: {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
        ))),
        Ok(_) => read_tree(&place, tally),
    };
    std::fs::remove_dir_all(&place).map_err(|error| named(error, &place))?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::message::{Filler, whole};

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("loadgen-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn text(seq: u64) -> Vec<u8> {
        whole(&Filler::new(), 7, seq, 1200, b"a@x.example", b"b@y.example")
    }

    fn write_ledger(path: &Path, seqs: impl Iterator<Item = u64>) {
        let mut ledger = Ledger::create(path, "run=0000000000000007").unwrap();
        for seq in seqs {
            let Checked::Intact(stamp) = message::check(&text(seq)) else {
                panic!()
            };
            ledger.accepted(&stamp, 1, b"2.0.0 Ok");
        }
        ledger.flush().unwrap();
    }

    #[test]
    fn every_kind_of_trouble_is_counted_exactly() {
        let place = Place::new("verify-kinds");
        let ledger = place.0.join("ledger");
        write_ledger(&ledger, 0..10);
        let store = place.0.join("store");
        std::fs::create_dir(&store).unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(store.join(name), bytes).unwrap();
        for seq in 0..7 {
            put(
                &format!("{seq}"),
                &[b"Received: x\r\n", &text(seq)[..]].concat(),
            );
        }
        // 7 and 8 are lost, 9 is harmed, 3 comes twice, 20 has no 250.
        let mut harmed = text(9);
        harmed[1100] ^= 1;
        put("9", &harmed);
        put("3b", &text(3));
        put("20", &text(20));
        put("mail", b"Subject: something else\r\n\r\nhello\r\n");
        let other = whole(&Filler::new(), 8, 1, 1200, b"a@x.example", b"b@y.example");
        put("other-run", &other);
        let findings = verify(&ledger, &Store::Eml(store)).unwrap();
        assert_eq!(
            (
                findings.acknowledged,
                findings.found,
                findings.lost,
                findings.duplicated
            ),
            (10, 7, 2, 1)
        );
        assert_eq!(
            (
                findings.corrupted,
                findings.unacknowledged,
                findings.foreign
            ),
            (1, 1, 2)
        );
        assert!(!findings.is_clean());
    }

    #[test]
    fn mbox_and_maildir_stores_are_read() {
        let place = Place::new("verify-stores");
        let ledger = place.0.join("ledger");
        write_ledger(&ledger, 0..3);
        let mut mbox = Vec::new();
        for seq in 0..3 {
            mbox.extend_from_slice(b"From a@x.example Thu Jan  1 00:00:00 2026\n");
            mbox.extend(text(seq).iter().filter(|byte| **byte != b'\r'));
            mbox.push(b'\n');
        }
        std::fs::write(place.0.join("mbox"), mbox).unwrap();
        let findings = verify(&ledger, &Store::Mbox(place.0.join("mbox"))).unwrap();
        assert!(findings.is_clean(), "{}", findings.text());
        assert_eq!((findings.found, findings.foreign), (3, 0));

        for part in ["cur", "new", "tmp"] {
            std::fs::create_dir(place.0.join(part)).unwrap();
        }
        std::fs::write(place.0.join("new/1"), text(0)).unwrap();
        std::fs::write(place.0.join("cur/2:2,S"), text(1)).unwrap();
        std::fs::write(place.0.join("tmp/3"), text(2)).unwrap();
        let findings = verify(&ledger, &Store::Maildir(place.0.clone())).unwrap();
        assert_eq!((findings.found, findings.lost), (2, 1));
    }
}
