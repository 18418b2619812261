//! What content comes to, computed the obvious way: whole input, several passes, allocations.

use ringmx::smtp::data::{BareNewlines, ContentFacts};

/// What a decoder must have given once it was fed all of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Message octets.
    pub body: Vec<u8>,
    /// Facts about them.
    pub facts: ContentFacts,
    /// Octets of the input that belong to the message; the rest are commands.
    pub consumed: usize,
    /// The end of data was reached.
    pub end: bool,
}

/// DATA: transparency is undone, CRLF "." CRLF ends it.
pub fn data(input: &[u8], mode: BareNewlines) -> Outcome {
    let mut sent = Vec::new();
    let mut pos = 0;
    loop {
        let line_len = input[pos..]
            .windows(2)
            .position(|pair| pair == b"\r\n")
            .map(|at| at + 2);
        let line = &input[pos..line_len.map_or(input.len(), |len| pos + len)];
        pos += line.len();
        if line == b".\r\n" {
            return outcome(sent, mode, pos, true);
        }
        // A dot that may yet be the end, and a CR behind it, wait for what follows them.
        if line_len.is_none() && line == b".\r" {
            return outcome(sent, mode, pos, false);
        }
        sent.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        if line_len.is_none() {
            return outcome(sent, mode, pos, false);
        }
    }
}

/// Text of BDAT chunks; `complete` when all chunks have come.
pub fn chunks(input: &[u8], mode: BareNewlines, complete: bool) -> Outcome {
    let mut outcome = outcome(input.to_vec(), mode, input.len(), complete);
    if complete && input.last() == Some(&b'\r') {
        outcome.facts.bare_cr += 1;
        outcome
            .facts
            .first_offset
            .get_or_insert(input.len() as u64 - 1);
        if mode == BareNewlines::Normalize {
            outcome.body.push(b'\n');
        }
    }
    outcome
}

fn outcome(sent: Vec<u8>, mode: BareNewlines, consumed: usize, end: bool) -> Outcome {
    let mut facts = ContentFacts {
        octets: sent.len() as u64,
        ..ContentFacts::default()
    };
    let mut normalized = Vec::new();
    for (at, &octet) in sent.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| sent[at]);
        let after = sent.get(at + 1).copied();
        let bare_lf = octet == b'\n' && before != Some(b'\r');
        let bare_cr = octet == b'\r' && after.is_some_and(|after| after != b'\n');
        facts.bare_lf += u32::from(bare_lf);
        facts.bare_cr += u32::from(bare_cr);
        facts.nul += u32::from(octet == 0);
        if bare_lf || bare_cr || octet == 0 {
            facts.first_offset.get_or_insert(at as u64);
        }
        if bare_lf {
            normalized.push(b'\r');
        }
        normalized.push(octet);
        if bare_cr {
            normalized.push(b'\n');
        }
    }
    let body = if mode == BareNewlines::Normalize {
        normalized
    } else {
        sent
    };
    Outcome {
        body,
        facts,
        consumed,
        end,
    }
}
