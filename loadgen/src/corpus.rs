//! Real messages, sent as they are: from a Maildir, a directory of files, an mbox, or a file with one message.
//!
//! Promises: line ends become CRLF and nothing else changes; a file that can't be read is named.
//! Does not: mark messages, so what was sent can't be verified afterwards.

use crate::message::with_crlf;
use std::io;
use std::path::Path;

/// One message in the forms that go over the wire.
pub struct Entry {
    /// As BDAT sends it.
    pub raw: Vec<u8>,
    /// As DATA sends it: with leading dots doubled, and without the terminator.
    pub stuffed: Vec<u8>,
    /// It has bytes above 127.
    pub eight_bit: bool,
}

/// All messages, in the order of their paths.
#[derive(Default)]
pub struct Corpus {
    /// The messages.
    pub entries: Vec<Entry>,
}

impl Corpus {
    /// Reads a directory, at any depth and leaving out `tmp` of a Maildir, an mbox file, or a file with one message.
    ///
    /// **Errors**: something can't be read, or there is no message.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut entries = Vec::new();
        if path.is_file() {
            split_file(&std::fs::read(path)?, |message| {
                entries.push(Entry::new(message))
            });
        } else {
            let mut files = Vec::new();
            let mut waiting = vec![path.to_owned()];
            while let Some(folder) = waiting.pop() {
                let named = |error| named(error, &folder);
                for entry in std::fs::read_dir(&folder).map_err(named)? {
                    let path = entry?.path();
                    if !path.is_dir() {
                        files.push(path);
                    } else if path.file_name().is_none_or(|name| name != "tmp") {
                        waiting.push(path);
                    }
                }
            }
            files.sort();
            for file in files {
                let bytes = std::fs::read(&file).map_err(|error| named(error, &file))?;
                entries.push(Entry::new(&bytes));
            }
        }
        if entries.is_empty() {
            return Err(io::Error::other(format!(
                "{} holds no message",
                path.display()
            )));
        }
        Ok(Self { entries })
    }
}

/// Adds the path to an error.
pub fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Entry {
    fn new(bytes: &[u8]) -> Self {
        let mut raw = with_crlf(bytes);
        if !raw.ends_with(b"\r\n") {
            raw.extend_from_slice(b"\r\n");
        }
        let mut stuffed = Vec::with_capacity(raw.len() + 16);
        for line in raw.split_inclusive(|byte| *byte == b'\n') {
            if line.starts_with(b".") {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        let eight_bit = !raw.is_ascii();
        Self {
            raw,
            stuffed,
            eight_bit,
        }
    }
}

/// Calls `each` with every message of a file: those of an mbox, which begins with a `From ` line, or the one that
/// it is.
pub fn split_file(bytes: &[u8], mut each: impl FnMut(&[u8])) {
    if bytes.starts_with(b"From ") {
        split_mbox(bytes, each);
    } else if !bytes.is_empty() {
        each(bytes);
    }
}

/// Splits an mbox at lines that start with `From ` behind an empty line, and undoes `>From `.
pub fn split_mbox(bytes: &[u8], mut each: impl FnMut(&[u8])) {
    let mut message: Vec<u8> = Vec::new();
    let mut inside = false;
    let mut empty_before = true;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if empty_before && line.starts_with(b"From ") {
            if inside {
                each(&message);
            }
            message.clear();
            (inside, empty_before) = (true, false);
            continue;
        }
        let quotes = line.iter().take_while(|byte| **byte == b'>').count();
        let quoted = quotes > 0 && line[quotes..].starts_with(b"From ");
        message.extend_from_slice(if quoted { &line[1..] } else { line });
        empty_before = matches!(line, b"\n" | b"\r\n");
    }
    if inside {
        each(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_an_mbox_or_one_message() {
        let split = |bytes: &[u8]| {
            let mut found = Vec::new();
            split_file(bytes, |message| found.push(message.to_vec()));
            found
        };
        let mbox = b"From a\nSubject: 1\n\none\n\nFrom b\nSubject: 2\n\ntwo\n";
        assert_eq!(
            split(mbox),
            [&b"Subject: 1\n\none\n\n"[..], b"Subject: 2\n\ntwo\n"]
        );
        let one = b"Subject: 1\n\none\n\nFrom here on it is text\n";
        assert_eq!(split(one), [&one[..]]);
        assert_eq!(split(b""), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn line_ends_become_crlf_and_dots_are_doubled() {
        let entry = Entry::new(b"Subject: x\n\n.one\r\n..two\nend");
        assert_eq!(entry.raw, b"Subject: x\r\n\r\n.one\r\n..two\r\nend\r\n");
        assert_eq!(
            entry.stuffed,
            b"Subject: x\r\n\r\n..one\r\n...two\r\nend\r\n"
        );
        assert!(!entry.eight_bit);
        assert!(Entry::new("\u{e4}\n".as_bytes()).eight_bit);
    }

    #[test]
    fn an_mbox_is_split_at_its_from_lines() {
        let mut messages = Vec::new();
        let mbox = b"From a\nSubject: 1\n\n>From x\nFrom y\n\nFrom b\nSubject: 2\n\n>>From z\n";
        split_mbox(mbox, |message| messages.push(message.to_vec()));
        assert_eq!(
            messages,
            [
                &b"Subject: 1\n\nFrom x\nFrom y\n\n"[..],
                b"Subject: 2\n\n>From z\n"
            ]
        );
        split_mbox(b"no mbox at all\n", |_| panic!("found a message"));
    }
}
