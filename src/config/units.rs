//! Sizes and durations as an operator writes them: a whole number and a unit.

use std::time::Duration;

use crate::limits::{GIB, KIB, MIB};

/// What [`parse_size`] takes, for error messages and documents.
pub const SIZE_ALLOWED: &str =
    "a whole number and B, KiB, MiB, GiB, TiB or kB, MB, GB, TB, such as 50MiB";
/// What [`parse_duration`] takes, for error messages and documents.
pub const DURATION_ALLOWED: &str = "a whole number and us, ms, s, min, h or d, such as 30s";

const TIB: u64 = 1024 * GIB;

/// Largest first, so that [`size_text`] finds the shortest exact form.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", TIB),
    ("GiB", GIB),
    ("MiB", MIB),
    ("KiB", KIB),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];

/// Bytes named by `text`: a whole number and a unit without regard to case; without a unit, bytes.
///
/// # Errors
/// A phrase that says what is wrong and what is allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split(text);
    let factor = if unit.is_empty() {
        Some(1)
    } else {
        factor_of(&SIZE_UNITS, unit, true)
    };
    let (Ok(number), Some(factor)) = (digits.parse::<u64>(), factor) else {
        return Err(not_a("size", text, digits, SIZE_ALLOWED));
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{} is too large a size", quoted(text)))
}

/// The time named by `text`: a whole number and a unit. Only 0 may stand without a unit.
///
/// # Errors
/// A phrase that says what is wrong and what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split(text);
    let factor = factor_of(&DURATION_UNITS, unit, false);
    let (Ok(number), Some(factor)) = (digits.parse::<u64>(), factor) else {
        if text == "0" {
            return Ok(Duration::ZERO);
        }
        if unit.is_empty() && !digits.is_empty() {
            return Err(format!(
                "{} has no unit; allowed: {DURATION_ALLOWED}",
                quoted(text)
            ));
        }
        return Err(not_a("duration", text, digits, DURATION_ALLOWED));
    };
    number
        .checked_mul(factor)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("{} is too long a duration", quoted(text)))
}

/// The shortest exact text that [`parse_size`] reads back as `bytes`, in powers of 1024 where one fits.
pub fn size_text(bytes: u64) -> String {
    let binary = SIZE_UNITS
        .iter()
        .take(4)
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    match binary {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// The shortest text that [`parse_duration`] reads back as `duration`, whole microseconds.
pub fn duration_text(duration: Duration) -> String {
    let ns = crate::clock::nanos(duration);
    let unit = DURATION_UNITS
        .iter()
        .filter(|(unit, _)| *unit != "m")
        .find(|(_, factor)| ns != 0 && ns.is_multiple_of(*factor));
    match unit {
        Some((unit, factor)) => format!("{}{unit}", ns / factor),
        None if ns == 0 => "0s".to_owned(),
        None => format!("{}us", ns / 1_000),
    }
}

/// `text` between double quotes, control characters and quotes escaped: safe on a terminal and in a log.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn split(text: &str) -> (&str, &str) {
    let end = text
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start_matches(' '))
}

fn factor_of(units: &[(&str, u64)], unit: &str, any_case: bool) -> Option<u64> {
    units
        .iter()
        .find(|(name, _)| *name == unit || any_case && name.eq_ignore_ascii_case(unit))
        .map(|(_, factor)| *factor)
}

fn not_a(what: &str, text: &str, digits: &str, allowed: &str) -> String {
    if !digits.is_empty() && digits.parse::<u64>().is_err() {
        return format!("{} is too large a number", quoted(text));
    }
    format!("{} is not a {what}; allowed: {allowed}", quoted(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        let read = |text| parse_size(text);
        assert_eq!(read("0"), Ok(0));
        assert_eq!(read("512"), Ok(512));
        assert_eq!(read("512B"), Ok(512));
        assert_eq!(read("1KiB"), Ok(1_024));
        assert_eq!(read("1kib"), Ok(1_024));
        assert_eq!(read("50 MiB"), Ok(52_428_800));
        assert_eq!(read("1GiB"), Ok(1_073_741_824));
        assert_eq!(read("1GB"), Ok(1_000_000_000));
        assert_eq!(read("2TiB"), Ok(2_199_023_255_552));
    }

    #[test]
    fn a_bad_size_is_refused_with_what_is_allowed() {
        let tail =
            "allowed: a whole number and B, KiB, MiB, GiB, TiB or kB, MB, GB, TB, such as 50MiB";
        for text in ["", "GiB", "-1", "1.5GiB", "1 G", "1GiBs", "0x10", " 1"] {
            assert_eq!(
                parse_size(text),
                Err(format!("{text:?} is not a size; {tail}"))
            );
        }
        assert_eq!(
            parse_size("99999999999999999999"),
            Err("\"99999999999999999999\" is too large a number".to_owned())
        );
        assert_eq!(
            parse_size("99999999TiB"),
            Err("\"99999999TiB\" is too large a size".to_owned())
        );
    }

    #[test]
    fn durations_need_a_unit_unless_zero() {
        let read = |text| parse_duration(text);
        assert_eq!(read("0"), Ok(Duration::ZERO));
        assert_eq!(read("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(read("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(read("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(read("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(read("5 min"), Ok(Duration::from_secs(300)));
        assert_eq!(read("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(read("7d"), Ok(Duration::from_secs(604_800)));
        let allowed = "allowed: a whole number and us, ms, s, min, h or d, such as 30s";
        assert_eq!(read("300"), Err(format!("\"300\" has no unit; {allowed}")));
        assert_eq!(
            read("5 M"),
            Err(format!("\"5 M\" is not a duration; {allowed}"))
        );
        assert_eq!(read(""), Err(format!("\"\" is not a duration; {allowed}")));
        assert_eq!(
            read("9999999999d"),
            Err("\"9999999999d\" is too long a duration".to_owned())
        );
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [0, 1, 1_000, 1_024, 52_428_800, GIB, 3 * GIB / 2, u64::MAX] {
            assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
        }
        assert_eq!(size_text(52_428_800), "50MiB");
        for us in [0, 1, 999, 1_000, 1_500_000, 60_000_000, 604_800_000_000] {
            let duration = Duration::from_micros(us);
            assert_eq!(parse_duration(&duration_text(duration)), Ok(duration));
        }
        assert_eq!(duration_text(Duration::from_secs(604_800)), "7d");
        assert_eq!(duration_text(Duration::from_secs(300)), "5min");
    }
}
