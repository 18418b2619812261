//! Message content: DATA with its transparency, and the text of BDAT chunks.

use core::ops::Range;
use core::str::FromStr;

pub use super::sink::ContentFacts;

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
pub struct Decoder {
    facts: ContentFacts,
    mode: BareNewlines,
}

impl Decoder {
    /// A decoder that stands behind the CRLF of DATA.
    pub fn new(mode: BareNewlines) -> Decoder {
        Decoder {
            facts: ContentFacts::default(),
            mode,
        }
    }

    /// Decodes `input` and hands the message octets to `emit`.
    pub fn decode(&mut self, input: &[u8], mut emit: impl FnMut(Piece)) -> Decoded {
        emit(Piece::Input(0..input.len()));
        Decoded {
            consumed: input.len(),
            end: false,
        }
    }

    /// Whether [`Decoder::decode_in_place`] may be called now.
    pub fn can_decode_in_place(&self) -> bool {
        self.mode != BareNewlines::Normalize
    }

    /// Decodes `buf` and moves the message octets to its front.
    pub fn decode_in_place(&mut self, buf: &mut [u8]) -> InPlace {
        InPlace {
            consumed: buf.len(),
            kept: buf.len(),
            end: false,
        }
    }

    /// What is known about the content so far.
    pub fn facts(&self) -> ContentFacts {
        self.facts
    }
}

/// Checks the text of BDAT chunks (any BODY but BINARYMIME); nothing is unstuffed, nothing ends it.
#[derive(Clone, Copy, Debug)]
pub struct Checker {
    facts: ContentFacts,
}

impl Checker {
    /// A checker at the start of a message.
    pub fn new(mode: BareNewlines) -> Checker {
        let _ = mode;
        Checker {
            facts: ContentFacts::default(),
        }
    }

    /// Checks `input`, a part of a chunk or a whole one, and hands the message octets to `emit`.
    pub fn check(&mut self, input: &[u8], mut emit: impl FnMut(Piece)) {
        emit(Piece::Input(0..input.len()));
    }

    /// The message ended (after the last octet of BDAT LAST): a CR at its very end is a bare one.
    pub fn finish(&mut self, emit: impl FnMut(Piece)) {
        let _ = emit;
    }

    /// What is known about the content so far; complete after [`Checker::finish`].
    pub fn facts(&self) -> ContentFacts {
        self.facts
    }
}
