//! Deterministic messages that can prove their own integrity.
//!
//! Promises: a message is a function of run, sequence number, size and addresses; it states them,
//! its length and its hash in a header field and again in the first line of its body; rendering
//! allocates nothing; the hash of the filler is found without reading the filler.
//! Does not: make text that looks like anything a person wrote.
//!
//! Layout, every line ended by CRLF:
//!
//! ```text
//! X-Loadgen: v=1 run=<16 hex> seq=<10 digits> len=<10 digits> hash=<16 hex>
//! From:, To:, Subject:, Date:, Message-ID:, MIME-Version:, Content-Type:
//!
//! v=1 run=... (the same words once more)
//! filler: lines of 62 characters, of which one in 64 starts with a dot
//! a shorter last line, so that the length is exact
//! ```
//!
//! `len` counts from the X of `X-Loadgen` to the end. `hash` covers everything between the first
//! line and the line that repeats it, and everything after that line.

use crate::corpus::Corpus;
use crate::rng::{Rng, mix};
use std::fmt;

/// Bytes in a filler line, CRLF included.
const LINE: usize = 64;
/// Lines in the filler; it is read as a ring.
const LINES: usize = 1024;
/// Multiplier of the line hash; odd, so that a change in any one line changes the sum.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15 | 1;
/// The name of the field that starts each message.
pub const FIELD: &[u8] = b"X-Loadgen: ";
/// Bytes in `v=1 run=... hash=...`.
const STAMP: usize = 4 + 4 + 16 + 5 + 10 + 5 + 10 + 6 + 16;
const FIXED: &[u8] = b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\n\
Content-Type: text/plain; charset=us-ascii\r\n";

/// What one message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The run it was made in.
    pub run: u64,
    /// Its number in that run.
    pub seq: u64,
    /// Bytes from the start of its stamp field to its end.
    pub len: u64,
    /// Hash of the bytes that are not stamps.
    pub hash: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            run,
            seq,
            len,
            hash,
        } = self;
        write!(
            f,
            "v=1 run={run:016x} seq={seq:010} len={len:010} hash={hash:016x}"
        )
    }
}

impl Stamp {
    /// Reads what `Display` writes; more digits than ten are accepted.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        if words.next()? != "v=1" {
            return None;
        }
        let run = u64::from_str_radix(words.next()?.strip_prefix("run=")?, 16).ok()?;
        let seq = words.next()?.strip_prefix("seq=")?.parse().ok()?;
        let len = words.next()?.strip_prefix("len=")?.parse().ok()?;
        let hash = u64::from_str_radix(words.next()?.strip_prefix("hash=")?, 16).ok()?;
        words.next().is_none().then_some(Self {
            run,
            seq,
            len,
            hash,
        })
    }
}

/// Hashes bytes eight at a time.
pub fn fold(bytes: &[u8]) -> u64 {
    let mut hash = mix(bytes.len() as u64);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(BASE);
        hash ^= hash >> 29;
    }
    for byte in rest {
        hash = (hash.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(BASE);
    }
    hash ^ (hash >> 32)
}

/// Hashes the filler part of a message line by line, as a reader does.
pub fn hash_lines(bytes: &[u8]) -> u64 {
    bytes.chunks(LINE).fold(0u64, |sum, line| {
        sum.wrapping_mul(BASE).wrapping_add(fold(line))
    })
}

fn join(head: u64, filler: u64) -> u64 {
    mix(head ^ filler.rotate_left(17))
}

/// Which bytes of the filler ring a message holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body {
    start: usize,
    lines: usize,
    /// Bytes in the last, shorter line: 0, or 3 to 66.
    tail: usize,
}

/// Bytes still to be sent from a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pos: usize,
    left: u64,
    stuffed: bool,
    /// Which message of the corpus, counted from 1; 0 is the filler.
    entry: u32,
}

impl Cursor {
    /// Makes a cursor over one message of a corpus, `len` bytes in the form given.
    pub fn of_corpus(index: usize, len: usize, stuffed: bool) -> Self {
        Self {
            pos: 0,
            left: len as u64,
            stuffed,
            entry: index as u32 + 1,
        }
    }

    /// Returns how many bytes are left.
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// The filler text in the two forms that go over the wire, with its prefix hashes.
pub struct Filler {
    raw: Vec<u8>,
    /// With a second dot on lines that start with one (RFC 5321 4.5.2).
    stuffed: Vec<u8>,
    stuffed_at: Vec<u32>,
    /// `prefix[n]` is the hash of the first n lines.
    prefix: Vec<u64>,
    /// `power[n]` is `BASE` to the n.
    power: Vec<u64>,
    /// `tails[n]` is the hash of a last line of n bytes.
    tails: Vec<u64>,
}

impl Default for Filler {
    fn default() -> Self {
        Self::new()
    }
}

impl Filler {
    /// Builds the filler; it is the same in every run.
    pub fn new() -> Self {
        const TEXT: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut rng = Rng::keyed(0, 0, 0);
        let mut raw = Vec::with_capacity(LINE * LINES);
        let mut stuffed = Vec::with_capacity(LINE * LINES + LINES);
        let mut stuffed_at = vec![0];
        let mut prefix = vec![0u64];
        let mut power = vec![1u64];
        for number in 0..LINES {
            let mut line = [0; LINE];
            for byte in &mut line[..LINE - 2] {
                *byte = TEXT[rng.below(64) as usize];
            }
            line[LINE - 2..].copy_from_slice(b"\r\n");
            if number % 64 == 9 {
                line[0] = b'.';
                stuffed.push(b'.');
            }
            raw.extend_from_slice(&line);
            stuffed.extend_from_slice(&line);
            stuffed_at.push(stuffed.len() as u32);
            prefix.push(prefix[number].wrapping_mul(BASE).wrapping_add(fold(&line)));
            power.push(power[number].wrapping_mul(BASE));
        }
        let tails = (0..=LINE + 2)
            .map(|len| {
                let mut line = Vec::new();
                tail_line(len, &mut line);
                line.chunks(LINE).fold(0u64, |sum, part| {
                    sum.wrapping_mul(BASE).wrapping_add(fold(part))
                })
            })
            .collect();
        Self {
            raw,
            stuffed,
            stuffed_at,
            prefix,
            power,
            tails,
        }
    }

    /// Chooses the filler of `len` bytes for message `seq`. `len` is 0 or at least 3.
    pub fn body(&self, seq: u64, len: u64) -> Body {
        let start = (mix(seq) % LINES as u64) as usize;
        let len = usize::try_from(len).expect("invariant: sizes fit memory");
        let (mut lines, mut tail) = (len / LINE, len % LINE);
        if (1..3).contains(&tail) {
            if lines == 0 {
                tail = 3;
            } else {
                lines -= 1;
                tail += LINE;
            }
        }
        Body { start, lines, tail }
    }

    /// Returns what `hash_lines` would for the bytes of `body`.
    fn hash(&self, body: Body) -> u64 {
        let mut sum = 0u64;
        let (mut at, mut left) = (body.start, body.lines);
        while left > 0 {
            let part = left.min(LINES - at);
            let piece =
                self.prefix[at + part].wrapping_sub(self.prefix[at].wrapping_mul(self.power[part]));
            sum = sum.wrapping_mul(self.power[part]).wrapping_add(piece);
            left -= part;
            at = 0;
        }
        let tail_parts = body.tail.div_ceil(LINE);
        sum.wrapping_mul(self.power[tail_parts])
            .wrapping_add(self.tails[body.tail])
    }

    /// Returns a cursor over the full lines of `body`.
    pub fn cursor(&self, body: Body, stuffed: bool) -> Cursor {
        if !stuffed {
            return Cursor {
                pos: body.start * LINE,
                left: (body.lines * LINE) as u64,
                stuffed,
                entry: 0,
            };
        }
        let at = |line: usize| u64::from(self.stuffed_at[line]);
        let end = body.start + body.lines;
        let rounds = (end / LINES) as u64 * self.stuffed.len() as u64;
        Cursor {
            pos: self.stuffed_at[body.start] as usize,
            left: rounds + at(end % LINES) - at(body.start),
            stuffed,
            entry: 0,
        }
    }

    /// Returns the longest run of bytes at the cursor.
    pub fn slice<'a>(&'a self, corpus: &'a Corpus, cursor: &Cursor) -> &'a [u8] {
        let ring = self.ring(corpus, cursor);
        let len = cursor.left.min((ring.len() - cursor.pos) as u64) as usize;
        &ring[cursor.pos..cursor.pos + len]
    }

    /// Moves the cursor over `len` bytes, at most those that `slice` returned.
    pub fn advance(&self, corpus: &Corpus, cursor: &mut Cursor, len: usize) {
        let end = self.ring(corpus, cursor).len();
        cursor.left -= len as u64;
        cursor.pos += len;
        if cursor.pos == end {
            cursor.pos = 0;
        }
    }

    fn ring<'a>(&'a self, corpus: &'a Corpus, cursor: &Cursor) -> &'a [u8] {
        match (cursor.entry as usize, cursor.stuffed) {
            (0, true) => &self.stuffed,
            (0, false) => &self.raw,
            (n, true) => &corpus.entries[n - 1].stuffed,
            (n, false) => &corpus.entries[n - 1].raw,
        }
    }
}

/// Appends a last line of `len` bytes, 0 or at least 3.
fn tail_line(len: usize, out: &mut Vec<u8>) {
    if len >= 3 {
        out.resize(out.len() + len - 2, b'~');
        out.extend_from_slice(b"\r\n");
    }
}

/// What was rendered: the bytes before the full filler lines are in the output already.
#[derive(Clone, Copy, Debug)]
pub struct Rendered {
    /// What the message says of itself.
    pub stamp: Stamp,
    /// The filler that follows.
    pub body: Body,
}

/// Returns the smallest message with these addresses.
pub fn size_min(from: &[u8], to: &[u8]) -> u64 {
    const WORDS: usize = FIELD.len()
        + b"From: <>\r\nTo: <>\r\nSubject: smtp-loadgen 0123456789\r\n".len()
        + b"Message-ID: <0123456789abcdef.0123456789@loadgen.example>\r\n".len()
        + FIXED.len()
        + b"\r\n".len()
        + 2 * (STAMP + 2);
    (WORDS + from.len() + to.len()) as u64
}

/// Returns the true length of a message asked to be `size` bytes.
pub fn length(size: u64, from: &[u8], to: &[u8]) -> u64 {
    let min = size_min(from, to);
    match size.saturating_sub(min) {
        0 => min,
        1..3 => min + 3,
        more => min + more,
    }
}

/// Appends the head of a message of `size` bytes to `out`. A size too small for the head gives
/// the smallest message instead; the stamp has the true length.
pub fn render(
    filler: &Filler,
    run: u64,
    seq: u64,
    size: u64,
    from: &[u8],
    to: &[u8],
    out: &mut Vec<u8>,
) -> Rendered {
    let start = out.len();
    out.extend_from_slice(FIELD);
    out.resize(out.len() + STAMP, b' ');
    out.extend_from_slice(b"\r\n");
    let head = out.len();
    let mut digits = [0; 20];
    let (seq_text, run_text) = (decimal(seq, 10, &mut digits), hex(run));
    out.extend_from_slice(b"From: <");
    out.extend_from_slice(from);
    out.extend_from_slice(b">\r\nTo: <");
    out.extend_from_slice(to);
    out.extend_from_slice(b">\r\nSubject: smtp-loadgen ");
    out.extend_from_slice(seq_text);
    out.extend_from_slice(b"\r\nMessage-ID: <");
    out.extend_from_slice(&run_text);
    out.push(b'.');
    out.extend_from_slice(seq_text);
    out.extend_from_slice(b"@loadgen.example>\r\n");
    out.extend_from_slice(FIXED);
    out.extend_from_slice(b"\r\n");
    let second = out.len();
    let fixed = second - start + STAMP + 2;
    let body = filler.body(seq, size.saturating_sub(fixed as u64));
    let len = (fixed + body.lines * LINE + body.tail) as u64;
    let hash = join(fold(&out[head..second]), filler.hash(body));
    let stamp = Stamp {
        run,
        seq,
        len,
        hash,
    };
    out.extend_from_slice(b"v=1 run=");
    out.extend_from_slice(&run_text);
    out.extend_from_slice(b" seq=");
    out.extend_from_slice(seq_text);
    out.extend_from_slice(b" len=");
    push_decimal(len, 10, out);
    out.extend_from_slice(b" hash=");
    push_hex(hash, out);
    let (before, stamp_text) = out.split_at_mut(second);
    before[start + FIELD.len()..head - 2].copy_from_slice(stamp_text);
    out.extend_from_slice(b"\r\n");
    Rendered { stamp, body }
}

/// Appends what follows the full filler lines.
pub fn render_tail(body: Body, out: &mut Vec<u8>) {
    tail_line(body.tail, out);
}

/// The digits of each octet, and of each number below 100.
const HEX_PAIRS: [[u8; 2]; 256] = pairs(b"0123456789abcdef");
const DECIMAL_PAIRS: [[u8; 2]; 100] = pairs(b"0123456789");

const fn pairs<const COUNT: usize, const BASE: usize>(digits: &[u8; BASE]) -> [[u8; 2]; COUNT] {
    let mut table = [[0; 2]; COUNT];
    let mut index = 0;
    while index < COUNT {
        table[index] = [digits[index / BASE], digits[index % BASE]];
        index += 1;
    }
    table
}

/// Returns `value` as 16 hexadecimal digits.
fn hex(value: u64) -> [u8; 16] {
    let mut text = [0; 16];
    for (index, pair) in text.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *pair = HEX_PAIRS[(value >> (56 - 8 * index)) as usize & 0xff];
    }
    text
}

/// Appends `value` as 16 hexadecimal digits.
pub fn push_hex(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&hex(value));
}

/// Writes `value` with at least `width` digits, `width` at most 20, to the end of `text`; returns the digits.
fn decimal(mut value: u64, width: usize, text: &mut [u8; 20]) -> &[u8] {
    *text = [b'0'; 20];
    let mut at = text.len();
    while value >= 10 {
        at -= 2;
        text[at..at + 2].copy_from_slice(&DECIMAL_PAIRS[(value % 100) as usize]);
        value /= 100;
    }
    if value > 0 {
        at -= 1;
        text[at] = b'0' + value as u8;
    }
    &text[at.min(text.len() - width)..]
}

/// Appends `value` with at least `width` digits, `width` at most 20.
pub fn push_decimal(value: u64, width: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(decimal(value, width, &mut [0; 20]));
}

/// What a stored message turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It is one of ours, unharmed.
    Intact(Stamp),
    /// It is one of ours, and not what was sent.
    Corrupt(Stamp, &'static str),
    /// It is not one of ours.
    Foreign,
}

/// Checks a stored message. Header fields before the stamp are a receiver's trace and are
/// skipped; `LF` line ends are read as CRLF, for stores that keep text in their own way.
pub fn check(stored: &[u8]) -> Checked {
    let Some(at) = find_field(stored) else {
        return Checked::Foreign;
    };
    let text = &stored[at..];
    let bare_lf = memchr::memchr(b'\n', text).is_some_and(|end| end == 0 || text[end - 1] != b'\r');
    let normal;
    let text = if bare_lf {
        normal = with_crlf(text);
        &normal[..]
    } else {
        text
    };
    let end = memchr::memchr(b'\n', text).unwrap_or(text.len());
    let line = text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]);
    let Some(stamp) = Stamp::parse(&line[FIELD.len()..]) else {
        return Checked::Foreign;
    };
    let wrong = |reason| Checked::Corrupt(stamp, reason);
    if (text.len() as u64) < stamp.len {
        return wrong("shorter than sent");
    }
    // A mailbox format may add empty lines at the end, and nothing else.
    let (text, extra) = text.split_at(stamp.len as usize);
    if extra.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
        return wrong("longer than sent");
    }
    let Some(blank) = memchr::memmem::find(text, b"\r\n\r\n") else {
        return wrong("no end of header");
    };
    let second = blank + 4;
    let after = second + line.len() - FIELD.len() + 2;
    let repeated = text
        .get(second..after)
        .and_then(|line| line.strip_suffix(b"\r\n"));
    if repeated != Some(&line[FIELD.len()..]) {
        return wrong("stamps in header and body differ");
    }
    if end + 1 > second {
        return wrong("no end of header");
    }
    let hash = join(fold(&text[end + 1..second]), hash_lines(&text[after..]));
    if hash == stamp.hash {
        Checked::Intact(stamp)
    } else {
        wrong("hash differs")
    }
}

/// Finds the stamp field at the start of a line of the header.
fn find_field(stored: &[u8]) -> Option<usize> {
    for at in memchr::memmem::find_iter(stored, FIELD) {
        if at == 0 || stored[at - 1] == b'\n' {
            let header = &stored[..at];
            let ended = memchr::memmem::find(header, b"\r\n\r\n").is_some()
                || memchr::memmem::find(header, b"\n\n").is_some();
            return (!ended).then_some(at);
        }
    }
    None
}

/// Turns lone LF into CRLF.
pub fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32);
    let mut before = 0;
    for byte in text {
        if *byte == b'\n' && before != b'\r' {
            out.push(b'\r');
        }
        out.push(*byte);
        before = *byte;
    }
    out
}

/// Returns the whole message as it should be stored; slow, for tests and `--dry-run`.
pub fn whole(filler: &Filler, run: u64, seq: u64, size: u64, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    whole_into(filler, run, seq, size, from, to, &mut out);
    out
}

/// Appends the whole message as it should be stored; returns what it says of itself.
pub fn whole_into(
    filler: &Filler,
    run: u64,
    seq: u64,
    size: u64,
    from: &[u8],
    to: &[u8],
    out: &mut Vec<u8>,
) -> Stamp {
    let none = Corpus::default();
    let rendered = render(filler, run, seq, size, from, to, out);
    let mut cursor = filler.cursor(rendered.body, false);
    while cursor.left() > 0 {
        let slice = filler.slice(&none, &cursor);
        out.extend_from_slice(slice);
        let len = slice.len();
        filler.advance(&none, &mut cursor, len);
    }
    render_tail(rendered.body, out);
    rendered.stamp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_standard_library() {
        let values = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]);
        for value in values
            .chain(0..1100)
            .chain([u64::MAX, 9_999_999_999, 10_000_000_000])
        {
            for width in [1, 2, 10, 20] {
                let mut text = b"=".to_vec();
                push_decimal(value, width, &mut text);
                assert_eq!(text, format!("={value:0width$}").into_bytes());
            }
            let mut text = b"=".to_vec();
            push_hex(value, &mut text);
            assert_eq!(text, format!("={value:016x}").into_bytes());
        }
    }

    const FROM: &[u8] = b"sender@loadgen.example";
    const TO: &[u8] = b"user@test.example";

    #[test]
    fn every_size_is_exact_and_intact() {
        let filler = Filler::new();
        let min = size_min(FROM, TO);
        for size in (min + 3..min + 300).chain([65_536, 65_537, 200_000, 1 << 20]) {
            let text = whole(&filler, 7, size, size, FROM, TO);
            assert_eq!(text.len() as u64, size);
            let Checked::Intact(stamp) = check(&text) else {
                panic!("{size}: {:?}", check(&text))
            };
            assert_eq!((stamp.run, stamp.seq, stamp.len), (7, size, size));
        }
    }

    #[test]
    fn a_size_too_small_gives_the_smallest_message() {
        let filler = Filler::new();
        let text = whole(&filler, 7, 1, 10, FROM, TO);
        assert_eq!(text.len() as u64, size_min(FROM, TO));
        assert!(matches!(check(&text), Checked::Intact(_)));
    }

    #[test]
    fn the_stuffed_form_is_the_raw_form_with_dots_doubled() {
        let (filler, none) = (Filler::new(), Corpus::default());
        for (seq, size) in [(1, 100), (2, 64 * 64), (3, 70_000), (4, 300_000)] {
            let body = filler.body(seq, size);
            let read = |stuffed| {
                let mut cursor = filler.cursor(body, stuffed);
                let mut text = Vec::new();
                while cursor.left() > 0 {
                    let len = filler.slice(&none, &cursor).len().min(1000);
                    text.extend_from_slice(&filler.slice(&none, &cursor)[..len]);
                    filler.advance(&none, &mut cursor, len);
                }
                String::from_utf8(text).unwrap()
            };
            let expected: String = read(false)
                .split_inclusive("\r\n")
                .map(|line| {
                    if line.starts_with('.') {
                        format!(".{line}")
                    } else {
                        line.into()
                    }
                })
                .collect();
            assert_eq!(read(true), expected);
        }
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let filler = Filler::new();
        let text = whole(&filler, 7, 3, 1500, FROM, TO);
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 1;
            assert!(!matches!(check(&bad), Checked::Intact(_)), "byte {at}");
        }
        assert!(matches!(
            check(&text[..text.len() - 1]),
            Checked::Corrupt(..)
        ));
        assert!(matches!(
            check(&[&text[..], b"x"].concat()),
            Checked::Corrupt(..)
        ));
    }

    #[test]
    fn trace_fields_and_local_line_ends_are_tolerated() {
        let filler = Filler::new();
        let text = whole(&filler, 7, 3, 1500, FROM, TO);
        let traced = [
            b"Return-Path: <x@y>\r\nReceived: from a\r\n\tby b; date\r\n",
            &text[..],
        ]
        .concat();
        assert!(matches!(check(&traced), Checked::Intact(_)));
        let local: Vec<u8> = traced
            .iter()
            .copied()
            .filter(|byte| *byte != b'\r')
            .collect();
        assert!(matches!(
            check(&[&local[..], b"\n"].concat()),
            Checked::Intact(_)
        ));
        assert_eq!(
            check(b"From: <a@b>\r\n\r\nX-Loadgen: v=1\r\n"),
            Checked::Foreign
        );
    }

    #[test]
    fn decimals_are_padded_and_may_grow() {
        let mut out = Vec::new();
        push_decimal(42, 5, &mut out);
        push_decimal(12_345_678_901, 10, &mut out);
        push_decimal(0, 1, &mut out);
        assert_eq!(out, b"00042123456789010");
    }
}
