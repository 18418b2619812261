//! Every line-ending variant around the terminating dot, in every mode and at every cut: the exact
//! message, the exact counts, and the exact octets that are left for the command parser.
//!
//! SMTP smuggling works where two servers disagree about the end of data. Here only CRLF "." CRLF
//! ends it, so each variant below is content up to the real end.

#[path = "fuzz/src/lib.rs"]
#[allow(dead_code, reason = "the fuzz targets use what this test does not")]
mod fuzz;

use fuzz::data::{Cuts, decode};
use fuzz::data_oracle::Outcome;
use ringmx::smtp::data::{BareNewlines, ContentFacts};

/// One variant between `a` and `b`, and what becomes of it.
struct Case {
    sent: &'static [u8],
    kept: &'static [u8],
    normalized: &'static [u8],
    bare_lf: u32,
    bare_cr: u32,
    nul: u32,
    /// Offset of the first of these behind `a`.
    first: Option<u64>,
}

const fn case(
    sent: &'static [u8],
    kept: &'static [u8],
    normalized: &'static [u8],
    [bare_lf, bare_cr, nul]: [u32; 3],
    first: Option<u64>,
) -> Case {
    Case {
        sent,
        kept,
        normalized,
        bare_lf,
        bare_cr,
        nul,
        first,
    }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Of the public scanners, inbound.
    case(b"\n.\n",           b"\n.\n",         b"\r\n.\r\n",           [2, 0, 0], Some(0)),
    case(b"\n.\r",           b"\n.\r",         b"\r\n.\r\n",           [1, 1, 0], Some(0)),
    case(b"\r.\n",           b"\r.\n",         b"\r\n.\r\n",           [1, 1, 0], Some(0)),
    case(b"\r.\r",           b"\r.\r",         b"\r\n.\r\n",           [0, 2, 0], Some(0)),
    case(b"\n.\r\n",         b"\n.\r\n",       b"\r\n.\r\n",           [1, 0, 0], Some(0)),
    case(b"\r.\r\n",         b"\r.\r\n",       b"\r\n.\r\n",           [0, 1, 0], Some(0)),
    case(b"\r\n\0.\r\n",     b"\r\n\0.\r\n",   b"\r\n\0.\r\n",         [0, 0, 1], Some(2)),
    // Outbound: the dot begins a line and goes on, so it is a stuffed one and removed.
    case(b"\r\n.\r\r\n",     b"\r\n\r\r\n",    b"\r\n\r\n\r\n",        [0, 1, 0], Some(2)),
    case(b"\r\r\n.x\r\n",    b"\r\r\nx\r\n",   b"\r\n\r\nx\r\n",       [0, 1, 0], Some(0)),
    case(b"\r\n.\n",         b"\r\n\n",        b"\r\n\r\n",            [1, 0, 0], Some(2)),
    case(b"\r\n.\r",         b"\r\n\r",        b"\r\n\r\n",            [0, 1, 0], Some(2)),
    case(b"\r\n.\0\r\n",     b"\r\n\0\r\n",    b"\r\n\0\r\n",          [0, 0, 1], Some(2)),
    // Neighbours of the end.
    case(b"\r\n.\r\0\n",     b"\r\n\r\0\n",    b"\r\n\r\n\0\r\n",      [1, 1, 1], Some(2)),
    case(b"\r\n. \r\n",      b"\r\n \r\n",     b"\r\n \r\n",           [0, 0, 0], None),
    case(b"\r\n..\r\n",      b"\r\n.\r\n",     b"\r\n.\r\n",           [0, 0, 0], None),
    case(b"\r\n .\r\n",      b"\r\n .\r\n",    b"\r\n .\r\n",          [0, 0, 0], None),
    case(b"\r\n\n.\r\n",     b"\r\n\n.\r\n",   b"\r\n\r\n.\r\n",       [1, 0, 0], Some(2)),
    case(b"\r\n\r.\r\n",     b"\r\n\r.\r\n",   b"\r\n\r\n.\r\n",       [0, 1, 0], Some(2)),
    case(b"\n\n.\n\n",       b"\n\n.\n\n",     b"\r\n\r\n.\r\n\r\n",   [4, 0, 0], Some(0)),
    case(b"\n..\r\n",        b"\n..\r\n",      b"\r\n..\r\n",          [1, 0, 0], Some(0)),
];

const MODES: [BareNewlines; 3] = fuzz::data::MODES;

fn every_cut(input: &[u8]) -> impl Iterator<Item = Cuts> {
    (1..input.len())
        .map(Cuts::Once)
        .chain([Cuts::Whole, Cuts::Bytes])
        .chain((1..9).map(|seed| Cuts::Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed))))
}

fn assert_decodes(input: &[u8], mode: BareNewlines, expected: &Outcome) {
    for cuts in every_cut(input) {
        for in_place in [false, true] {
            let outcome = decode(input, mode, cuts, in_place);
            assert_eq!(
                &outcome,
                expected,
                "{} {mode:?} {cuts:?}",
                input.escape_ascii()
            );
        }
    }
}

#[test]
fn no_variant_ends_the_data_and_what_follows_the_real_end_is_left_over() {
    for case in CASES {
        for padding in [0, 127, 128, 300] {
            let line = [&vec![b'p'; padding][..], b"\r\n"].concat();
            let smuggled = b"MAIL FROM:<admin@example.com>\r\n";
            let message = [&line[..], b"a", case.sent, b"b\r\n", smuggled].concat();
            let input = [&message[..], b".\r\nRSET\r\n"].concat();
            for mode in MODES {
                let content = match mode {
                    BareNewlines::Normalize => case.normalized,
                    BareNewlines::Reject | BareNewlines::Keep => case.kept,
                };
                let rest = [&b"b\r\n"[..], smuggled].concat();
                let expected = Outcome {
                    body: [&line[..], b"a", content, &rest].concat(),
                    facts: ContentFacts {
                        octets: (line.len() + 1 + case.kept.len() + rest.len()) as u64,
                        bare_lf: case.bare_lf,
                        bare_cr: case.bare_cr,
                        nul: case.nul,
                        first_offset: case.first.map(|first| first + line.len() as u64 + 1),
                    },
                    consumed: input.len() - b"RSET\r\n".len(),
                    end: true,
                };
                assert_decodes(&input, mode, &expected);
            }
        }
    }
}

#[test]
fn the_real_end_ends_the_data_wherever_it_stands() {
    for (input, body, bare_cr) in [
        (&b".\r\n"[..], &b""[..], 0),
        (b"\r\n.\r\n", b"\r\n", 0),
        (b"a\r\n.\r\n", b"a\r\n", 0),
        (b"..\r\n.\r\n", b".\r\n", 0),
        (b"a\r\r\n.\r\n", b"a\r\r\n", 1),
    ] {
        for mode in [BareNewlines::Reject, BareNewlines::Keep] {
            let expected = Outcome {
                body: body.to_vec(),
                facts: ContentFacts {
                    octets: body.len() as u64,
                    bare_cr,
                    first_offset: (bare_cr > 0).then_some(1),
                    ..ContentFacts::default()
                },
                consumed: input.len(),
                end: true,
            };
            let pipelined = [input, b"QUIT\r\n.\r\n"].concat();
            assert_decodes(&pipelined, mode, &expected);
        }
    }
}

#[test]
fn without_the_real_end_the_data_goes_on() {
    for case in CASES {
        for start in [&b""[..], b"a"] {
            let input = [start, case.sent].concat();
            for mode in MODES {
                for cuts in every_cut(&input) {
                    let outcome = decode(&input, mode, cuts, false);
                    assert!(!outcome.end, "{} {mode:?} {cuts:?}", input.escape_ascii());
                    assert_eq!(outcome.consumed, input.len());
                }
            }
        }
    }
}

#[test]
fn dots_are_removed_once_from_every_line_that_begins_with_one() {
    let mut sent = Vec::new();
    let mut body = Vec::new();
    for dots in 1..=6 {
        let line = [&vec![b'.'; dots][..], b"text\r\n"].concat();
        sent.extend_from_slice(b".");
        sent.extend_from_slice(&line);
        body.extend_from_slice(&line);
    }
    sent.extend_from_slice(b".\r\n");
    let expected = Outcome {
        facts: ContentFacts {
            octets: body.len() as u64,
            ..ContentFacts::default()
        },
        body,
        consumed: sent.len(),
        end: true,
    };
    for mode in MODES {
        assert_decodes(&sent, mode, &expected);
    }
}
