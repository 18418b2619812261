//! Content decoders against the naive oracle, cut anywhere.
//!
//! The first eight bytes of the input seed the cuts, the rest is content.

use super::data_oracle::{self, Outcome};
use ringmx::smtp::data::{BareNewlines, Checker, Decoder, Piece};

/// Tokens around which decoders go wrong.
pub const DICTIONARY: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b".",
    b"\0",
    b"x",
    b"\r\n.\r\n",
    b"\r\n..",
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\r\n",
    b".\r\n",
    b"a line of seventy-eight octets, the length that most mail readers fold to..\r\n",
];

/// All modes.
pub const MODES: [BareNewlines; 3] = [
    BareNewlines::Reject,
    BareNewlines::Normalize,
    BareNewlines::Keep,
];

/// Compares every decoder with the oracle, whole, byte by byte and at random cuts.
pub fn run(bytes: &[u8]) {
    let (seed, input) = bytes.split_at(bytes.len().min(8));
    let seed = seed
        .iter()
        .fold(1, |seed: u64, &byte| seed.rotate_left(8) ^ u64::from(byte));
    // Long inputs cost time, and show with one mode and coarse cuts what they can show.
    let long = input.len() > 256;
    for (number, mode) in MODES.into_iter().enumerate() {
        if long && seed % 3 != number as u64 {
            continue;
        }
        let expected = data_oracle::data(input, mode);
        let expected_chunks = data_oracle::chunks(input, mode, true);
        for cuts in [Cuts::Whole, Cuts::Random(seed | 1), Cuts::Bytes] {
            if long && matches!(cuts, Cuts::Bytes) {
                continue;
            }
            assert_eq!(
                decode(input, mode, cuts, false),
                expected,
                "{mode:?} {cuts:?}"
            );
            assert_eq!(
                decode(input, mode, cuts, true),
                expected,
                "in place {mode:?} {cuts:?}"
            );
            assert_eq!(
                check(input, mode, cuts),
                expected_chunks,
                "chunks {mode:?} {cuts:?}"
            );
        }
    }
}

/// How an input is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cuts {
    /// Not at all.
    Whole,
    /// Behind every octet.
    Bytes,
    /// Once, behind this many octets.
    Once(usize),
    /// At random, from this seed, which is not 0.
    Random(u64),
}

impl Cuts {
    /// Length of the next part of what is left, at least 1 while there is something.
    pub fn next_len(&mut self, rest: usize) -> usize {
        match self {
            Cuts::Whole => rest,
            Cuts::Bytes => 1,
            Cuts::Once(at) => match core::mem::replace(at, 0) {
                0 => rest,
                at => at.min(rest),
            },
            Cuts::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                // Short parts mostly, so that marks are cut, and some that hold whole blocks.
                let most = if *state & 0x700 == 0 { 700 } else { 7 };
                (1 + (*state >> 16) as usize % most).min(rest)
            }
        }
    }
}

/// Decodes DATA, in place where the decoder allows it and `in_place` is set.
pub fn decode(input: &[u8], mode: BareNewlines, mut cuts: Cuts, in_place: bool) -> Outcome {
    let mut decoder = Decoder::new(mode);
    let mut body = Vec::new();
    let mut consumed = 0;
    while consumed < input.len() {
        let part = &input[consumed..];
        let part = &part[..cuts.next_len(part.len())];
        let (part_consumed, end) = if in_place && decoder.can_decode_in_place() {
            let mut buf = part.to_vec();
            let done = decoder.decode_in_place(&mut buf);
            body.extend_from_slice(&buf[..done.kept]);
            assert!(done.kept <= done.consumed);
            assert_eq!(buf[done.consumed..], part[done.consumed..]);
            (done.consumed, done.end)
        } else {
            let before = body.len();
            let done = decoder.decode(part, |piece| push(&mut body, part, &piece));
            let factor = if mode == BareNewlines::Normalize {
                2
            } else {
                1
            };
            assert!(body.len() - before <= factor * (part.len() + 1));
            (done.consumed, done.end)
        };
        consumed += part_consumed;
        if end {
            return Outcome {
                body,
                facts: decoder.facts(),
                consumed,
                end,
            };
        }
        assert_eq!(part_consumed, part.len());
    }
    Outcome {
        body,
        facts: decoder.facts(),
        consumed,
        end: false,
    }
}

/// Checks the text of chunks.
pub fn check(input: &[u8], mode: BareNewlines, mut cuts: Cuts) -> Outcome {
    let mut checker = Checker::new(mode);
    let mut body = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (part, next) = rest.split_at(cuts.next_len(rest.len()));
        checker.check(part, |piece| push(&mut body, part, &piece));
        rest = next;
    }
    checker.finish(|piece| push(&mut body, b"", &piece));
    Outcome {
        body,
        facts: checker.facts(),
        consumed: input.len(),
        end: true,
    }
}

fn push(body: &mut Vec<u8>, part: &[u8], piece: &Piece) {
    match piece {
        Piece::Input(range) => {
            assert!(!range.is_empty());
            body.extend_from_slice(&part[range.clone()]);
        }
        Piece::Literal(octets) => {
            assert!(!octets.is_empty());
            body.extend_from_slice(octets);
        }
    }
}
