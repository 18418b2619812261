//! The ledger: one line for each 250 after end of data.
//!
//! Promises: a line is handed to the kernel before its message is counted as accepted, so a kill
//! of this process loses no line of a message that any report counted; lines are whole unless the
//! kill came inside one write, and a reader tolerates a torn last line. Does not: survive a loss
//! of power; the file is not synced.
//!
//! Line: `250 RUN SEQ LEN HASH NS TEXT`, run and hash in hexadecimal, NS since the run's start.

use crate::lines::Lines;
use crate::message::Stamp;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Writes lines; each worker has one over the same file.
pub struct Ledger {
    lines: Lines,
}

impl Ledger {
    /// Opens `path` for append and writes the heading of a run.
    pub fn create(path: &Path, heading: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        // A line torn by an earlier kill must not swallow this heading.
        let torn = {
            use std::os::unix::fs::FileExt;
            let len = file.metadata()?.len();
            let mut last = [b'\n'];
            if len > 0 {
                file.read_exact_at(&mut last, len - 1)?;
            }
            last[0] != b'\n'
        };
        let end = if torn { "\n" } else { "" };
        file.write_all(format!("{end}# smtp-loadgen ledger 1 {heading}\n").as_bytes())?;
        Ok(Self {
            lines: Lines::new(file, path),
        })
    }

    /// Opens the file that another process of the run has begun with `create`.
    ///
    /// **Errors**: it can't be opened.
    pub fn join(path: &Path) -> io::Result<Self> {
        Ok(Self {
            lines: Lines::join(path)?,
        })
    }

    /// Makes another writer of the same file.
    pub fn share(&self) -> Self {
        Self {
            lines: self.lines.share(),
        }
    }

    /// Adds the line of one accepted message.
    pub fn accepted(&mut self, stamp: &Stamp, now_ns: u64, text: &[u8]) {
        let Stamp {
            run,
            seq,
            len,
            hash,
        } = stamp;
        // Writing to a Vec can't fail.
        let _ = write!(
            self.lines.buf,
            "250 {run:016x} {seq} {len} {hash:016x} {now_ns} "
        );
        self.lines.buf.extend(
            text.iter()
                .map(|b| if b.is_ascii_control() { b'?' } else { *b }),
        );
        self.lines.buf.push(b'\n');
    }

    /// Hands all lines to the kernel.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// One line read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the accepted message said of itself.
    pub stamp: Stamp,
    /// Text of the 250.
    pub text: String,
}

/// What a ledger holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Runs that wrote to it.
    pub runs: Vec<u64>,
    /// Accepted messages in file order.
    pub entries: Vec<Entry>,
    /// Lines that could not be read, a torn one included.
    pub torn: u64,
}

/// Reads a ledger.
///
/// **Errors**: it can't be read, or no run wrote to it.
pub fn read(path: &Path) -> io::Result<Contents> {
    let bytes = std::fs::read(path)?;
    let mut contents = Contents::default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let whole = line.strip_suffix(b"\n");
        let parsed = whole.and_then(|line| std::str::from_utf8(line).ok());
        match parsed {
            Some("") => {}
            Some(line) if line.starts_with('#') => {
                let run = line.split(' ').find_map(|word| word.strip_prefix("run="));
                if let Some(run) = run.and_then(|run| u64::from_str_radix(run, 16).ok()) {
                    contents.runs.push(run);
                }
            }
            Some(line) => match entry(line) {
                Some(entry) => contents.entries.push(entry),
                None => contents.torn += 1,
            },
            None => contents.torn += 1,
        }
    }
    for entry in &contents.entries {
        if !contents.runs.contains(&entry.stamp.run) {
            contents.runs.push(entry.stamp.run);
        }
    }
    if contents.runs.is_empty() {
        // Whoever names the wrong file must not hear that nothing was lost.
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no run wrote to it, so it is no ledger",
        ));
    }
    Ok(contents)
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.splitn(7, ' ');
    if words.next()? != "250" {
        return None;
    }
    let run = u64::from_str_radix(words.next()?, 16).ok()?;
    let seq = words.next()?.parse().ok()?;
    let len = words.next()?.parse().ok()?;
    let hash = u64::from_str_radix(words.next()?, 16).ok()?;
    let _: u64 = words.next()?.parse().ok()?;
    let text = words.next()?.to_owned();
    Some(Entry {
        stamp: Stamp {
            run,
            seq,
            len,
            hash,
        },
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_costs_only_itself() {
        let path = std::env::temp_dir().join(format!("loadgen-ledger-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let stamp = |seq| Stamp {
            run: 0xab,
            seq,
            len: 1000,
            hash: 0x12,
        };
        let mut ledger = Ledger::create(&path, "run=00000000000000ab seed=1").unwrap();
        ledger.accepted(&stamp(1), 5, b"2.0.0 Ok: stored as 0-17");
        ledger.accepted(&stamp(2), 6, b"");
        ledger.flush().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"250 00000000000000ab 3 10");
        std::fs::write(&path, &bytes).unwrap();
        let contents = read(&path).unwrap();
        assert_eq!(contents.runs, [0xab]);
        assert_eq!(contents.torn, 1);
        let seen: Vec<_> = contents
            .entries
            .iter()
            .map(|e| (e.stamp, e.text.as_str()))
            .collect();
        assert_eq!(
            seen,
            [(stamp(1), "2.0.0 Ok: stored as 0-17"), (stamp(2), "")]
        );

        // The next run starts on a line of its own.
        let mut ledger = Ledger::create(&path, "run=00000000000000cd").unwrap();
        ledger.accepted(
            &Stamp {
                run: 0xcd,
                ..stamp(9)
            },
            5,
            b"Ok",
        );
        ledger.flush().unwrap();
        let contents = read(&path).unwrap();
        assert_eq!(contents.runs, [0xab, 0xcd]);
        assert_eq!((contents.entries.len(), contents.torn), (3, 1));
        std::fs::remove_file(&path).unwrap();
    }
}
