//! Message content: DATA with its transparency, and the text of BDAT chunks.
//!
//! Promises: input may be cut at any octet; DATA ends only at CRLF "." CRLF, or "." CRLF right at
//! its start (RFC 5321 4.1.1.4); one dot is removed from a line that begins with one and goes on
//! (RFC 5321 4.5.2); only CRLF begins a line, in every mode; no allocation; one pass.
//! Does not: limit lines or messages, or decide what a bare newline costs (see `session`).

use core::ops::Range;
use core::str::FromStr;

pub use super::sink::ContentFacts;
use crate::sys::scan::first_suspect;

/// What is done about bare LF, bare CR and NUL in content (`--bare-newlines`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BareNewlines {
    /// Count them; the session refuses the message after its real end.
    #[default]
    Reject,
    /// Turn bare LF and bare CR into CRLF. NUL is kept.
    Normalize,
    /// Count them and keep every octet.
    Keep,
}

impl BareNewlines {
    /// The setting's name.
    pub fn as_str(self) -> &'static str {
        match self {
            BareNewlines::Reject => "reject",
            BareNewlines::Normalize => "normalize",
            BareNewlines::Keep => "keep",
        }
    }
}

impl FromStr for BareNewlines {
    /// The names that are allowed.
    type Err = &'static str;

    fn from_str(name: &str) -> Result<BareNewlines, &'static str> {
        match name {
            "reject" => Ok(BareNewlines::Reject),
            "normalize" => Ok(BareNewlines::Normalize),
            "keep" => Ok(BareNewlines::Keep),
            _ => Err("reject, normalize or keep"),
        }
    }
}

/// A part of the message, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These octets of the input.
    Input(Range<usize>),
    /// Octets that are not in this input: a withheld CR, or what normalization inserts.
    Literal(&'static [u8]),
}

/// What [`Decoder::decode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Octets of input that are done with; all of them unless `end`.
    pub consumed: usize,
    /// CRLF "." CRLF was reached; what follows `consumed` is the next command.
    pub end: bool,
}

/// What [`Decoder::decode_in_place`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Octets of the buffer that are done with; all of them unless `end`.
    pub consumed: usize,
    /// Message octets, now at the front of the buffer.
    pub kept: usize,
    /// CRLF "." CRLF was reached; what follows `consumed` is the next command, where it was.
    pub end: bool,
}

/// Decodes the octets after 354.
#[derive(Clone, Copy, Debug)]
pub struct Decoder(Scanner);

const _: () = assert!(size_of::<Decoder>() <= 48);

impl Decoder {
    /// A decoder that stands behind the CRLF of DATA.
    pub fn new(mode: BareNewlines) -> Decoder {
        Decoder(Scanner::new(mode))
    }

    /// Decodes `input` and hands the message octets to `emit` in runs as long as they can be.
    ///
    /// # Bounds
    /// At most `input.len() + 1` octets are emitted, twice as many under
    /// [`BareNewlines::Normalize`]. After `end` a new decoder is needed.
    pub fn decode(&mut self, input: &[u8], mut emit: impl FnMut(Piece)) -> Decoded {
        let mut cursor = Cursor::default();
        loop {
            match self.0.scan::<true>(input, &mut cursor) {
                Step::Octets { range, then } => emit_both(range, then, &mut emit),
                Step::Exhausted => {
                    return Decoded {
                        consumed: input.len(),
                        end: false,
                    };
                }
                Step::End => {
                    return Decoded {
                        consumed: cursor.at,
                        end: true,
                    };
                }
            }
        }
    }

    /// Whether [`Decoder::decode_in_place`] may be called now: not under
    /// [`BareNewlines::Normalize`], and not while a CR is withheld that may belong to the end.
    pub fn can_decode_in_place(&self) -> bool {
        self.0.mode != BareNewlines::Normalize && self.0.state != State::DotCr
    }

    /// Decodes `buf` and moves the message octets to its front; nothing moves before the first
    /// stuffed dot. What follows `consumed` stays where it is.
    ///
    /// When [`Decoder::can_decode_in_place`] is false, the octets that are not in `buf` would be
    /// lost; this is asserted in debug builds.
    pub fn decode_in_place(&mut self, buf: &mut [u8]) -> InPlace {
        debug_assert!(
            self.can_decode_in_place(),
            "a withheld octet has no room in the buffer"
        );
        let mut cursor = Cursor::default();
        let mut kept = 0;
        loop {
            // The scan looks back by one octet at most, to one behind the last dot that was
            // removed; what was moved ends before that dot.
            match self.0.scan::<true>(buf, &mut cursor) {
                Step::Octets { range, then: _ } => {
                    let len = range.len();
                    if range.start != kept {
                        buf.copy_within(range, kept);
                    }
                    kept += len;
                }
                Step::Exhausted => {
                    return InPlace {
                        consumed: buf.len(),
                        kept,
                        end: false,
                    };
                }
                Step::End => {
                    return InPlace {
                        consumed: cursor.at,
                        kept,
                        end: true,
                    };
                }
            }
        }
    }

    /// What is known about the content so far. Octets and offsets count what the client sent, with
    /// transparency undone, whatever the mode.
    pub fn facts(&self) -> ContentFacts {
        self.0.facts
    }
}

/// Checks the text of BDAT chunks (any BODY but BINARYMIME); nothing is unstuffed, nothing ends it.
#[derive(Clone, Copy, Debug)]
pub struct Checker(Scanner);

impl Checker {
    /// A checker at the start of a message.
    pub fn new(mode: BareNewlines) -> Checker {
        Checker(Scanner::new(mode))
    }

    /// Checks `input`, a part of a chunk or a whole one, and hands the message octets to `emit`;
    /// they are `input` itself unless the mode is [`BareNewlines::Normalize`].
    ///
    /// # Bounds
    /// At most `2 * input.len() + 1` octets are emitted, `input.len()` in the other modes.
    pub fn check(&mut self, input: &[u8], mut emit: impl FnMut(Piece)) {
        let mut cursor = Cursor::default();
        while let Step::Octets { range, then } = self.0.scan::<false>(input, &mut cursor) {
            emit_both(range, then, &mut emit);
        }
    }

    /// The message ended (after the last octet of BDAT LAST): a CR at its very end is a bare one.
    pub fn finish(&mut self, mut emit: impl FnMut(Piece)) {
        if self.0.state == State::Cr {
            self.0.state = State::Line;
            self.0
                .found(|facts| &mut facts.bare_cr, self.0.facts.octets - 1);
            if self.0.mode == BareNewlines::Normalize {
                emit(Piece::Literal(b"\n"));
            }
        }
    }

    /// What is known about the content so far; complete after [`Checker::finish`]. Octets and
    /// offsets count what the client sent, whatever the mode.
    pub fn facts(&self) -> ContentFacts {
        self.0.facts
    }
}

fn emit_both(range: Range<usize>, then: &'static [u8], emit: &mut impl FnMut(Piece)) {
    if !range.is_empty() {
        emit(Piece::Input(range));
    }
    if !then.is_empty() {
        emit(Piece::Literal(then));
    }
}

/// Where the scanner stands; only CRLF begins a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the start of a line: behind CRLF, or at the very start.
    LineStart,
    /// Behind a dot at the start of a line; the dot is not part of the message either way.
    Dot,
    /// Behind dot and CR at the start of a line: LF ends the data. The CR is withheld.
    DotCr,
    /// Inside a line.
    Line,
    /// Behind a CR that is emitted and counted: LF ends the line, anything else makes it bare.
    Cr,
}

/// What a scan came to.
#[derive(Debug)]
enum Step {
    /// These octets of the input, then these others, are part of the message.
    Octets {
        range: Range<usize>,
        then: &'static [u8],
    },
    /// All input was scanned and emitted, but for a CR withheld in [`State::DotCr`].
    Exhausted,
    /// The data ended in front of the cursor.
    End,
}

/// Position of a scan in its input.
///
/// INVARIANT: start <= at <= input length; the octets from `start` to `at` are part of the message
/// and not yet emitted.
#[derive(Debug, Default)]
struct Cursor {
    start: usize,
    at: usize,
}

/// Octets that go one by one behind one that needs a closer look, before the text is searched again: a search is not
/// worth its call where every octet needs one.
const SINGLE_OCTETS: usize = 4;

/// The state machine under [`Decoder`] and [`Checker`].
#[derive(Clone, Copy, Debug)]
struct Scanner {
    facts: ContentFacts,
    state: State,
    mode: BareNewlines,
}

impl Scanner {
    fn new(mode: BareNewlines) -> Scanner {
        Scanner {
            facts: ContentFacts::default(),
            state: State::LineStart,
            mode,
        }
    }

    /// Scans on until octets have to be emitted or nothing is left. `DOTS`: transparency is undone.
    ///
    /// Runs in which every LF follows a CR, every CR is followed by LF, and there is neither NUL nor LF "." leave the
    /// machine where their last octet says; all other octets go one by one.
    fn scan<const DOTS: bool>(&mut self, input: &[u8], cursor: &mut Cursor) -> Step {
        // The search looks back by one octet, so the first octet of a call goes alone.
        let mut search_from = cursor.at + 1;
        while let Some(&octet) = input.get(cursor.at) {
            if cursor.at >= search_from && !matches!(self.state, State::Dot | State::DotCr) {
                let suspect = first_suspect::<DOTS>(input, cursor.at);
                // It is known that the suspect needs a closer look: a search from there would find it again.
                search_from = suspect + SINGLE_OCTETS;
                if suspect > cursor.at {
                    cursor.at = suspect;
                    self.state = match input[suspect - 1] {
                        b'\r' => State::Cr,
                        b'\n' => State::LineStart,
                        _ => State::Line,
                    };
                    continue;
                }
            }
            match self.state {
                State::DotCr if octet == b'\n' => {
                    cursor.at += 1;
                    return Step::End;
                }
                State::DotCr => {
                    // The dot was a stuffed one; its CR is part of the message after all.
                    self.state = State::Cr;
                    if cursor.at > cursor.start {
                        continue;
                    }
                    self.facts.octets += 1;
                    return Step::Octets {
                        range: 0..0,
                        then: b"\r",
                    };
                }
                State::Dot if octet == b'\r' => {
                    self.state = State::DotCr;
                    cursor.at += 1;
                    // From here on the CR is in the run, unless the input ends or the data does.
                    match input.get(cursor.at) {
                        None => {
                            cursor.start = cursor.at;
                            return Step::Exhausted;
                        }
                        Some(b'\n') => cursor.start = cursor.at,
                        Some(_) => {}
                    }
                    continue;
                }
                State::LineStart if DOTS && octet == b'.' => {
                    self.state = State::Dot;
                    let step = self.emit(cursor, b"");
                    cursor.at += 1;
                    cursor.start = cursor.at;
                    match step {
                        Some(step) => return step,
                        None => continue,
                    }
                }
                State::Cr if octet == b'\n' => {
                    self.state = State::LineStart;
                    cursor.at += 1;
                    continue;
                }
                State::Cr => {
                    self.state = State::Line;
                    let offset = self.offset(cursor) - 1;
                    self.found(|facts| &mut facts.bare_cr, offset);
                    if self.mode == BareNewlines::Normalize
                        && let Some(step) = self.emit(cursor, b"\n")
                    {
                        return step;
                    }
                }
                State::LineStart | State::Dot | State::Line => {}
            }
            self.state = State::Line;
            let offset = self.offset(cursor);
            match octet {
                b'\r' => self.state = State::Cr,
                b'\n' => {
                    self.found(|facts| &mut facts.bare_lf, offset);
                    if self.mode == BareNewlines::Normalize {
                        let step = self.emit(cursor, b"\r");
                        cursor.at += 1;
                        if let Some(step) = step {
                            return step;
                        }
                        continue;
                    }
                }
                0 => self.found(|facts| &mut facts.nul, offset),
                _ => {}
            }
            cursor.at += 1;
        }
        self.emit(cursor, b"").unwrap_or(Step::Exhausted)
    }

    /// Ends the run of the cursor and emits it with `then` behind it, if there is anything.
    fn emit(&mut self, cursor: &mut Cursor, then: &'static [u8]) -> Option<Step> {
        let range = cursor.start..cursor.at;
        cursor.start = cursor.at;
        self.facts.octets += range.len() as u64;
        (!range.is_empty() || !then.is_empty()).then_some(Step::Octets { range, then })
    }

    /// Offset of the octet at the cursor in the message as sent, transparency undone.
    fn offset(&self, cursor: &Cursor) -> u64 {
        self.facts.octets + (cursor.at - cursor.start) as u64
    }

    /// Counts one finding at `offset`. Counts saturate.
    fn found(&mut self, count: fn(&mut ContentFacts) -> &mut u32, offset: u64) {
        let count = count(&mut self.facts);
        *count = count.saturating_add(1);
        self.facts.first_offset.get_or_insert(offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, input: &[u8]) -> (Vec<Vec<u8>>, Decoded) {
        let mut pieces = Vec::new();
        let decoded = decoder.decode(input, |piece| {
            pieces.push(match piece {
                Piece::Input(range) => input[range].to_vec(),
                Piece::Literal(octets) => octets.to_vec(),
            });
        });
        (pieces, decoded)
    }

    fn pieces(mode: BareNewlines, input: &[u8]) -> Vec<Vec<u8>> {
        decode(&mut Decoder::new(mode), input).0
    }

    #[test]
    fn runs_are_as_long_as_stuffed_dots_allow() {
        let input = b"one\r\ntwo\r\n..three\r\n.four\r\n.\r\nQUIT\r\n";
        let mut decoder = Decoder::new(BareNewlines::Reject);
        let (pieces, decoded) = decode(&mut decoder, input);
        let expected: [&[u8]; 3] = [b"one\r\ntwo\r\n", b".three\r\n", b"four\r\n"];
        assert_eq!(pieces, expected);
        assert_eq!(
            decoded,
            Decoded {
                consumed: input.len() - 6,
                end: true
            }
        );
        assert_eq!(
            decoder.facts(),
            ContentFacts {
                octets: 24,
                ..ContentFacts::default()
            }
        );
    }

    #[test]
    fn keep_and_reject_pass_bare_newlines_untouched_and_count_them() {
        for mode in [BareNewlines::Reject, BareNewlines::Keep] {
            let mut decoder = Decoder::new(mode);
            let (pieces, decoded) = decode(&mut decoder, b"ab\ncd\re\0\r\n.\r\n");
            assert_eq!(pieces, [b"ab\ncd\re\0\r\n"]);
            assert_eq!(
                decoded,
                Decoded {
                    consumed: 13,
                    end: true
                }
            );
            let facts = ContentFacts {
                octets: 10,
                bare_lf: 1,
                bare_cr: 1,
                nul: 1,
                first_offset: Some(2),
            };
            assert_eq!(decoder.facts(), facts);
        }
    }

    #[test]
    fn normalize_writes_crlf_and_takes_no_new_line_for_a_real_one() {
        let expected: [&[u8]; 5] = [b"a", b"\r", b"\n.", b"\r", b"\nb\r\n"];
        assert_eq!(
            pieces(BareNewlines::Normalize, b"a\n.\nb\r\n.\r\n"),
            expected
        );
        let expected: [&[u8]; 5] = [b"a\r", b"\n", b".\r", b"\n", b"b\r\n"];
        assert_eq!(
            pieces(BareNewlines::Normalize, b"a\r.\rb\r\n.\r\n"),
            expected
        );
    }

    #[test]
    fn a_withheld_cr_comes_with_the_next_input_and_forbids_decoding_in_place() {
        let mut decoder = Decoder::new(BareNewlines::Keep);
        assert!(decoder.can_decode_in_place());
        assert_eq!(
            decode(&mut decoder, b".\r"),
            (
                vec![],
                Decoded {
                    consumed: 2,
                    end: false
                }
            )
        );
        assert!(!decoder.can_decode_in_place());
        let expected = vec![b"\r".to_vec(), b"x".to_vec()];
        assert_eq!(
            decode(&mut decoder, b"x"),
            (
                expected,
                Decoded {
                    consumed: 1,
                    end: false
                }
            )
        );
        assert!(decoder.can_decode_in_place());
        assert!(!Decoder::new(BareNewlines::Normalize).can_decode_in_place());
    }

    #[test]
    fn decoding_in_place_moves_octets_behind_the_first_stuffed_dot_and_leaves_the_rest() {
        let mut buf = *b"a\r\n..b\r\n.c\r\n.\r\nQUIT\r\n";
        let mut decoder = Decoder::new(BareNewlines::Reject);
        let done = decoder.decode_in_place(&mut buf);
        assert_eq!(
            done,
            InPlace {
                consumed: 15,
                kept: 10,
                end: true
            }
        );
        assert_eq!(&buf[..done.kept], b"a\r\n.b\r\nc\r\n");
        assert_eq!(&buf[done.consumed..], b"QUIT\r\n");
    }

    #[test]
    fn a_cr_at_the_very_end_of_chunks_is_bare() {
        for (mode, literal) in [
            (BareNewlines::Reject, &b""[..]),
            (BareNewlines::Normalize, b"\n"),
        ] {
            let mut checker = Checker::new(mode);
            checker.check(b".\r\na\r", |piece| assert_eq!(piece, Piece::Input(0..5)));
            assert_eq!(
                checker.facts(),
                ContentFacts {
                    octets: 5,
                    ..ContentFacts::default()
                }
            );
            let mut emitted = Vec::new();
            checker.finish(|piece| emitted.push(piece));
            let expected: Vec<Piece> = (!literal.is_empty())
                .then_some(Piece::Literal(b"\n"))
                .into_iter()
                .collect();
            assert_eq!(emitted, expected);
            let facts = ContentFacts {
                octets: 5,
                bare_cr: 1,
                first_offset: Some(4),
                ..ContentFacts::default()
            };
            assert_eq!(checker.facts(), facts);
            checker.finish(|_| panic!("a message ends once"));
            assert_eq!(checker.facts(), facts);
        }
    }

    #[test]
    fn blocks_are_checked_as_octets_are() {
        // One octet of a clean text of several blocks is replaced, at every offset.
        let line = b"0123456789012345678901234567890123456789\r\n";
        let text = line.repeat(12);
        for at in 0..text.len() {
            for octet in [b'\r', b'\n', 0, b'.', b'x'] {
                let mut input = text.clone();
                input[at] = octet;
                let mut whole = Decoder::new(BareNewlines::Keep);
                let (body, decoded) = decode(&mut whole, &input);
                let mut single = Decoder::new(BareNewlines::Keep);
                let mut expected = Vec::new();
                for octet in &input {
                    expected.extend(decode(&mut single, &[*octet]).0.concat());
                }
                assert_eq!(body.concat(), expected, "{octet} at {at}");
                assert_eq!(whole.facts(), single.facts(), "{octet} at {at}");
                assert_eq!(
                    decoded,
                    Decoded {
                        consumed: input.len(),
                        end: false
                    }
                );
            }
        }
    }

    #[test]
    fn any_mixture_is_decoded_and_checked_as_octet_by_octet() {
        // The search leaves off at each suspect and goes on some octets later: suspects stand at any distance.
        let mut state = 11_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..600 {
            let rare = 1 + next() % 60;
            let lines = 1 + next() % 12;
            let mut input = Vec::new();
            for _ in 0..lines {
                if next().is_multiple_of(2) {
                    input.push(b'.');
                }
                let len = next() % 90;
                input.extend((0..len).map(|_| match next() % (8 * rare) {
                    0 => b'\r',
                    1 => b'\n',
                    2 => 0,
                    3 | 4 => b'.',
                    _ => b'x',
                }));
                input.extend_from_slice(b"\r\n");
            }
            let mode = [BareNewlines::Keep, BareNewlines::Normalize][round % 2];
            let mut whole = Decoder::new(mode);
            let (body, decoded) = decode(&mut whole, &input);
            let mut single = Decoder::new(mode);
            let mut expected = Vec::new();
            let mut taken = 0;
            for octet in &input {
                let (pieces, one) = decode(&mut single, &[*octet]);
                expected.extend(pieces.concat());
                taken += 1;
                if one.end {
                    break;
                }
            }
            let ended = decoded.end;
            assert_eq!(decoded.consumed, taken, "round {round}");
            assert_eq!(body.concat(), expected, "round {round}");
            assert_eq!(whole.facts(), single.facts(), "round {round}");
            if mode == BareNewlines::Keep {
                let mut buf = input.clone();
                let mut in_place = Decoder::new(mode);
                let done = in_place.decode_in_place(&mut buf);
                assert_eq!((done.consumed, done.end), (taken, ended), "round {round}");
                // A CR withheld at the very end of the input is in neither.
                assert_eq!(&buf[..done.kept], expected, "round {round}");
                assert_eq!(in_place.facts(), whole.facts(), "round {round}");
            }
            let mut whole = Checker::new(mode);
            let mut single = Checker::new(mode);
            let (mut body, mut expected) = (Vec::new(), Vec::new());
            let push = |into: &mut Vec<u8>, from: &[u8], piece: Piece| match piece {
                Piece::Input(range) => into.extend_from_slice(&from[range]),
                Piece::Literal(octets) => into.extend_from_slice(octets),
            };
            whole.check(&input, |piece| push(&mut body, &input, piece));
            for octet in input.chunks(1) {
                single.check(octet, |piece| push(&mut expected, octet, piece));
            }
            assert_eq!(body, expected, "round {round}");
            assert_eq!(whole.facts(), single.facts(), "round {round}");
        }
    }

    #[test]
    fn modes_have_names() {
        for mode in [
            BareNewlines::Reject,
            BareNewlines::Normalize,
            BareNewlines::Keep,
        ] {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        assert_eq!(
            "Reject".parse::<BareNewlines>(),
            Err("reject, normalize or keep")
        );
        assert_eq!(BareNewlines::default(), BareNewlines::Reject);
    }
}
