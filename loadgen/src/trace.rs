//! A trace: when messages came, how large they were and for how many, to be sent again like that.
//!
//! Promises: message n of the trace is message n of the plan, at its time from the first message, divided by the speed;
//! lines that can't be read are named, none is left out silently. Does not: keep addresses or text. Those come from the
//! plan, so that a trace of real mail tells nothing about who wrote to whom.
//!
//! Two forms are read: what `--raw` wrote, whose planned times, bytes and recipients are taken, and lines of
//!
//! ```text
//! TIME SIZE [RECIPIENTS]
//! ```
//!
//! with TIME as `12.5`, `12.5s` or `12500ms` (seconds of the epoch will do: only differences count), SIZE as `4096` or
//! `4KiB`, one recipient unless it says otherwise, and `#` in front of remarks. Lines need not be in order.

use crate::cli::{parse_size, parse_time};
use crate::corpus::named;
use crate::plan::SIZE_MAX;
use crate::rng;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Most messages of a trace; 16 bytes of memory each.
pub const ROWS_MAX: usize = 10_000_000;
/// Most recipients of one message.
pub const RECIPIENTS_MAX: u32 = 100_000;
/// Longest line.
const LINE_BYTES_MAX: u64 = 4096;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// When, ns from the first message.
    pub at_ns: u64,
    /// How large, bytes.
    pub size: u32,
    /// For how many.
    pub recipients: u32,
}

/// All messages, in the order of their times.
#[derive(PartialEq)]
pub struct Trace {
    /// The messages; never empty.
    pub rows: Vec<Row>,
    /// Depends on every row.
    pub hash: u64,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages, {:016x}", self.rows.len(), self.hash)
    }
}

impl Trace {
    /// Reads a file; times are divided by `speed`, which is above 0.
    ///
    /// **Errors**: it can't be read, has a line that is not understood or too long, no message, or more than
    /// [`ROWS_MAX`].
    pub fn load(path: &Path, speed: f64) -> io::Result<Self> {
        let file = File::open(path).map_err(|error| named(error, path))?;
        Self::read(&mut BufReader::with_capacity(1 << 20, file), speed)
            .map_err(|error| named(error, path))
    }

    fn read(input: &mut impl BufRead, speed: f64) -> io::Result<Self> {
        let mut rows: Vec<Row> = Vec::new();
        let (mut line, mut number, mut raw) = (Vec::new(), 0u64, false);
        loop {
            line.clear();
            input
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)?;
            if line.is_empty() {
                break;
            }
            number += 1;
            let bad = |what: &str| io::Error::other(format!("line {number}: {what}"));
            if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
                return Err(bad("longer than 4095 bytes"));
            }
            let text = std::str::from_utf8(&line).map_err(|_| bad("is not text"))?;
            let text = text.trim();
            raw |= number == 1 && text.starts_with("# smtp-loadgen raw 1 ");
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let row = if raw { raw_row(text) } else { plain_row(text) };
            let row = row.ok_or_else(|| {
                bad(if raw {
                    "is no line of a raw log"
                } else {
                    "is not TIME SIZE [RECIPIENTS], with a size of at most 50 MiB"
                })
            })?;
            if rows.len() == ROWS_MAX {
                return Err(bad("more than 10,000,000 messages"));
            }
            rows.push(row);
        }
        // Stable, so that messages of one moment keep their order.
        rows.sort_by_key(|row| row.at_ns);
        let first = rows
            .first()
            .ok_or_else(|| io::Error::other("it has no message"))?
            .at_ns;
        let mut hash = speed.to_bits();
        for row in &mut rows {
            row.at_ns = ((row.at_ns - first) as f64 / speed) as u64;
            let rest = u64::from(row.size) << 32 | u64::from(row.recipients);
            hash = rng::mix(rng::mix(hash ^ row.at_ns) ^ rest);
        }
        Ok(Self { rows, hash })
    }

    /// Time from the first message to the last, ns.
    pub fn span_ns(&self) -> u64 {
        self.rows.last().map_or(0, |row| row.at_ns)
    }
}

/// Reads a line that `--raw` wrote. What was never begun has no size there and gets the least.
fn raw_row(text: &str) -> Option<Row> {
    let fields: Vec<&str> = text.split(' ').collect();
    let [_, intended, .., bytes, recipients, _, _] = fields[..] else {
        return None;
    };
    if fields.len() != 12 {
        return None;
    }
    row(
        intended.parse().ok()?,
        bytes.parse().ok()?,
        recipients.parse::<u32>().ok()?.max(1),
    )
}

fn plain_row(text: &str) -> Option<Row> {
    let mut fields = text.split_ascii_whitespace();
    let at_ns = moment(fields.next()?)?;
    let size = parse_size(fields.next()?)?;
    let recipients = fields.next().map_or(Ok(1), str::parse).ok()?;
    fields.next().is_none().then_some(())?;
    row(at_ns, size, recipients)
}

/// Reads a time, in ns. Bare numbers are seconds, exact to the ns: of the epoch they are too large for a float.
fn moment(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return parse_time(text);
    }
    let part = format!("{part:0<9.9}").parse::<u64>().ok()?;
    let seconds = whole.parse::<u64>().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(part)
}

fn row(at_ns: u64, size: u64, recipients: u32) -> Option<Row> {
    let size = u32::try_from(size)
        .ok()
        .filter(|size| u64::from(*size) <= SIZE_MAX)?;
    (1..=RECIPIENTS_MAX).contains(&recipients).then_some(Row {
        at_ns,
        size,
        recipients,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, speed: f64) -> Result<Vec<(u64, u32, u32)>, String> {
        let trace = Trace::read(&mut text.as_bytes(), speed).map_err(|error| error.to_string())?;
        let row = |row: &Row| (row.at_ns, row.size, row.recipients);
        Ok(trace.rows.iter().map(row).collect())
    }

    #[test]
    fn lines_become_messages_in_the_order_of_their_times() {
        let text =
            "# a remark\n\n1700000002 4KiB 3\n1700000001.5 1000\n1700000002 50MiB\n1700000001 2048";
        assert_eq!(
            rows(text, 1.0).unwrap(),
            [
                (0, 2048, 1),
                (500_000_000, 1000, 1),
                (1_000_000_000, 4096, 3),
                (1_000_000_000, 50 << 20, 1)
            ]
        );
        let halves: Vec<u64> = rows(text, 2.0).unwrap().iter().map(|row| row.0).collect();
        assert_eq!(halves, [0, 250_000_000, 500_000_000, 500_000_000]);
    }

    #[test]
    fn times_are_exact_to_the_nanosecond() {
        for (text, ns) in [
            ("1700000000.123456789", Some(1_700_000_000_123_456_789)),
            ("1700000000.1234567899", Some(1_700_000_000_123_456_789)),
            ("1.5", Some(1_500_000_000)),
            ("7", Some(7_000_000_000)),
            ("7.", Some(7_000_000_000)),
            ("250ms", Some(250_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("99999999999999999999", None),
            ("18446744074", None),
            ("-1", None),
            ("1.x", None),
        ] {
            assert_eq!(moment(text), ns, "{text}");
        }
    }

    #[test]
    fn a_raw_log_is_a_trace() {
        let text = "# smtp-loadgen raw 1 run=ab\n\
                    0 1000000 2000000 3000000 - - 8000000 9000000 1000 2 ok end-of-data\n\
                    2 5000000 - - - - - 9500000 0 0 unsent -\n\
                    1 3000000 2000000 3000000 - - 8000000 9000000 700 1 451 rcpt\n";
        assert_eq!(
            rows(text, 1.0).unwrap(),
            [(0, 1000, 2), (2_000_000, 700, 1), (4_000_000, 0, 1)]
        );
        let torn = format!("{text}3 7000000 70");
        assert_eq!(
            rows(&torn, 1.0).unwrap_err(),
            "line 5: is no line of a raw log"
        );
    }

    #[test]
    fn what_is_no_trace_is_refused_by_line() {
        let form = "is not TIME SIZE [RECIPIENTS], with a size of at most 50 MiB";
        for (text, trouble) in [
            ("", "it has no message".to_owned()),
            ("# only this\n", "it has no message".to_owned()),
            ("1 1000\n1\n", format!("line 2: {form}")),
            ("x 1000", format!("line 1: {form}")),
            ("1 1000 0", format!("line 1: {form}")),
            ("1 1000 100001", format!("line 1: {form}")),
            ("1 1000 1 1", format!("line 1: {form}")),
            ("1 51MiB", format!("line 1: {form}")),
            ("-1 1000", format!("line 1: {form}")),
            (
                &"1".repeat(5000),
                "line 1: longer than 4095 bytes".to_owned(),
            ),
        ] {
            assert_eq!(rows(text, 1.0), Err(trouble), "{text:.20}");
        }
        let binary = Trace::read(&mut &b"1 1000\n\xff 1\n"[..], 1.0);
        assert_eq!(binary.unwrap_err().to_string(), "line 2: is not text");
    }

    #[test]
    fn the_hash_tells_traces_and_speeds_apart() {
        let hash = |text: &str, speed| Trace::read(&mut text.as_bytes(), speed).unwrap().hash;
        let all = [
            hash("1 1000\n2 1000", 1.0),
            hash("1 1000\n2 1001", 1.0),
            hash("1 1000\n2 1000 2", 1.0),
            hash("1 1000\n3 1000", 1.0),
            hash("1 1000\n2 1000", 2.0),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(hash("1 1000\n2 1000", 1.0), hash("5 1000\n6 1000", 1.0));
    }
}
