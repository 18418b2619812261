//! Reply reader: turns the bytes a server sends into reply lines.
//!
//! Promises: accepts input cut at any byte; allocates only when a line is cut; bounds the length
//! of a line and the number of lines, so a server that talks without end is an error and no leak.
//! Does not: know which command a reply answers (see `client`).

use std::fmt;

/// The longest reply line accepted. RFC 5321 4.5.3.1.5 allows 512; real servers send more.
pub const LINE_MAX: usize = 4096;

/// The most lines accepted in one reply.
pub const LINES_MAX: u32 = 256;

/// One line of a reply, borrowed from the input or from the carry buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLine<'a> {
    /// The three digits: 200 to 599.
    pub code: u16,
    /// No line of the same reply follows (RFC 5321 4.2.1).
    pub last: bool,
    /// What stands after the code and its separator.
    pub text: &'a [u8],
}

/// What was wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// A line does not start with three digits and a separator.
    NotAReply,
    /// The lines of one reply carry different codes.
    CodeChanged,
    /// A line is longer than `LINE_MAX`.
    LineTooLong,
    /// A reply has more than `LINES_MAX` lines.
    TooManyLines,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAReply => "line is not an SMTP reply",
            Self::CodeChanged => "code changes within one reply",
            Self::LineTooLong => "reply line is longer than 4096 bytes",
            Self::TooManyLines => "reply has more than 256 lines",
        })
    }
}

/// Keeps what is known of a reply that has not ended yet.
#[derive(Debug, Default)]
pub struct ReplyReader {
    /// A line whose end has not arrived. Empty most of the time.
    carry: Vec<u8>,
    /// Code of the reply in progress; 0 between replies.
    code: u16,
    lines: u32,
}

impl ReplyReader {
    /// Forgets everything, keeping the memory.
    pub fn reset(&mut self) {
        self.carry.clear();
        self.code = 0;
        self.lines = 0;
    }

    /// Returns whether a reply has begun and not ended.
    pub fn in_reply(&self) -> bool {
        !self.carry.is_empty() || self.code != 0
    }

    /// Feeds bytes and hands each complete line to `each`, until `each` returns false or the
    /// input ends. Returns how many bytes were consumed.
    ///
    /// **Errors**: see `ReplyError`; the reader is useless afterwards until `reset`.
    pub fn feed(
        &mut self,
        input: &[u8],
        mut each: impl FnMut(ReplyLine<'_>) -> bool,
    ) -> Result<usize, ReplyError> {
        let mut pos = 0;
        while pos < input.len() {
            let rest = &input[pos..];
            let Some(end) = memchr::memchr(b'\n', rest) else {
                if self.carry.len() + rest.len() > LINE_MAX {
                    return Err(ReplyError::LineTooLong);
                }
                self.carry.extend_from_slice(rest);
                return Ok(input.len());
            };
            pos += end + 1;
            let go_on = if self.carry.is_empty() {
                each(self.line(&rest[..end])?)
            } else {
                if self.carry.len() + end > LINE_MAX {
                    return Err(ReplyError::LineTooLong);
                }
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(&rest[..end]);
                let go_on = each(self.line(&whole)?);
                whole.clear();
                self.carry = whole;
                go_on
            };
            if !go_on {
                break;
            }
        }
        Ok(pos)
    }

    /// Reads one line that has lost its LF.
    fn line<'a>(&mut self, line: &'a [u8]) -> Result<ReplyLine<'a>, ReplyError> {
        if line.len() > LINE_MAX {
            return Err(ReplyError::LineTooLong);
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::NotAReply)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(ReplyError::NotAReply);
        }
        let code = digits
            .iter()
            .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        let (last, text) = match rest.split_first() {
            // RFC 5321 4.2: a bare code is accepted from servers that send no text.
            None => (true, rest),
            Some((b' ', text)) => (true, text),
            Some((b'-', text)) => (false, text),
            Some(_) => return Err(ReplyError::NotAReply),
        };
        if !(200..600).contains(&code) {
            return Err(ReplyError::NotAReply);
        }
        if self.code != 0 && self.code != code {
            return Err(ReplyError::CodeChanged);
        }
        self.lines += 1;
        if self.lines > LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        self.code = if last { 0 } else { code };
        if last {
            self.lines = 0;
        }
        Ok(ReplyLine { code, last, text })
    }
}

/// Returns the enhanced status code (RFC 3463) that `text` starts with, or nothing.
pub fn enhanced_code(text: &[u8]) -> &[u8] {
    let end = text
        .iter()
        .position(|byte| *byte == b' ')
        .unwrap_or(text.len());
    let word = &text[..end];
    let mut parts = word.split(|byte| *byte == b'.');
    let good = |part: Option<&[u8]>| {
        part.is_some_and(|p| (1..=3).contains(&p.len()) && p.iter().all(u8::is_ascii_digit))
    };
    let class = matches!(word.first(), Some(b'2' | b'4' | b'5'));
    if class
        && good(parts.next())
        && good(parts.next())
        && good(parts.next())
        && parts.next().is_none()
    {
        word
    } else {
        b""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    type Lines = Vec<(u16, bool, Vec<u8>)>;

    /// Feeds `input` cut before each position in `cuts`.
    fn read(input: &[u8], cuts: &[usize]) -> Result<Lines, ReplyError> {
        let mut reader = ReplyReader::default();
        let mut lines = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([input.len()]) {
            let used = reader.feed(&input[from..cut], |line| {
                lines.push((line.code, line.last, line.text.to_vec()));
                true
            })?;
            assert_eq!(used, cut - from);
            from = cut;
        }
        Ok(lines)
    }

    /// Reads whole, byte by byte and at random splits; the results must be equal.
    fn every_split(input: &[u8]) -> Result<Lines, ReplyError> {
        let whole = read(input, &[]);
        assert_eq!(whole, read(input, &(0..input.len()).collect::<Vec<_>>()));
        let mut rng = Rng::keyed(1, 0, input.len() as u64);
        for _ in 0..50 {
            let mut cuts: Vec<usize> = (0..4)
                .map(|_| rng.below(input.len() as u64) as usize)
                .collect();
            cuts.sort_unstable();
            assert_eq!(whole, read(input, &cuts));
        }
        whole
    }

    #[test]
    fn a_reply_may_be_cut_anywhere() {
        let lines = every_split(b"250-one\r\n250-SIZE 10\r\n250 end\r\n354 go\n221\r\n").unwrap();
        assert_eq!(
            lines,
            vec![
                (250, false, b"one".to_vec()),
                (250, false, b"SIZE 10".to_vec()),
                (250, true, b"end".to_vec()),
                (354, true, b"go".to_vec()),
                (221, true, b"".to_vec()),
            ]
        );
    }

    #[test]
    fn nonsense_is_told_apart() {
        assert_eq!(every_split(b"hello\r\n"), Err(ReplyError::NotAReply));
        assert_eq!(every_split(b"25\r\n"), Err(ReplyError::NotAReply));
        assert_eq!(every_split(b"250x\r\n"), Err(ReplyError::NotAReply));
        assert_eq!(every_split(b"199 no\r\n"), Err(ReplyError::NotAReply));
        assert_eq!(
            every_split(b"250-a\r\n251 b\r\n"),
            Err(ReplyError::CodeChanged)
        );
    }

    #[test]
    fn an_endless_line_and_an_endless_reply_are_errors() {
        assert_eq!(
            every_split(&[b'2'; LINE_MAX + 2]),
            Err(ReplyError::LineTooLong)
        );
        let mut long = b"250-x\r\n".repeat(LINES_MAX as usize);
        assert_eq!(every_split(&long).unwrap().len(), LINES_MAX as usize);
        long.extend_from_slice(b"250 x\r\n");
        assert_eq!(every_split(&long), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn enhanced_codes_are_recognised_only_when_well_formed() {
        assert_eq!(enhanced_code(b"4.7.1 wait"), b"4.7.1");
        assert_eq!(enhanced_code(b"2.0.0"), b"2.0.0");
        assert_eq!(enhanced_code(b"1.2.3.4 is blocked"), b"");
        assert_eq!(enhanced_code(b"Ok"), b"");
    }
}
