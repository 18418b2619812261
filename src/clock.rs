//! Time: the only file that reads a clock.

use std::time::Duration;

/// A point on the monotonic clock, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant moved forward, saturating.
    pub fn after(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(nanos(by)))
    }

    /// Nanoseconds from `earlier` to this instant; 0 when it is not earlier.
    pub fn since_ns(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A duration in nanoseconds, saturating at 584 years.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads both clocks: CLOCK_MONOTONIC for timers, CLOCK_REALTIME for what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

impl Clock {
    /// A clock whose monotonic readings count from now.
    pub fn new() -> Clock {
        Clock {
            start: std::time::Instant::now(),
        }
    }

    /// The monotonic clock.
    pub fn now(&self) -> Instant {
        Instant(nanos(self.start.elapsed()))
    }

    /// Nanoseconds since 1970, 0 when the system clock stands before that.
    pub fn wall_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, nanos)
    }
}

/// A calendar date and time in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// Year, for example 2026.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 is Sunday.
    pub weekday: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// Splits seconds since 1970 into a UTC date (proleptic Gregorian calendar).
pub fn calendar(unix_seconds: u64) -> Calendar {
    let days = i64::try_from(unix_seconds / 86_400).unwrap_or(i64::MAX / 2);
    let of_day = unix_seconds % 86_400;
    // Days are counted from 0000-03-01, so that the leap day is the last day of a year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    Calendar {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month: month as u8,
        day: day as u8,
        weekday: (days + 4).rem_euclid(7) as u8,
        hour: (of_day / 3_600) as u8,
        minute: (of_day / 60 % 60) as u8,
        second: (of_day % 60) as u8,
    }
}

/// A date as mail and HTTP write it (RFC 5322 3.3, RFC 9110 5.6.7), in UTC, which `zone` names.
pub fn internet_date(wall_ns: u64, zone: &str) -> String {
    let c = calendar(wall_ns / 1_000_000_000);
    format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} {zone}",
        WEEKDAYS[usize::from(c.weekday % 7)],
        c.day,
        MONTHS[usize::from((c.month + 11) % 12)],
        c.year,
        c.hour,
        c.minute,
        c.second
    )
}

/// Names of the months as RFC 5322 writes them.
pub const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// Names of the days as RFC 5322 writes them, Sunday first.
pub const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/// `2026-11-23T01:02:03.456Z` for nanoseconds since 1970 (RFC 3339).
pub fn rfc3339(wall_ns: u64) -> String {
    let c = calendar(wall_ns / 1_000_000_000);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        c.year,
        c.month,
        c.day,
        c.hour,
        c.minute,
        c.second,
        wall_ns / 1_000_000 % 1_000
    )
}

/// A date and time as RFC 3339 writes it, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// Seconds since 1970, the offset taken off; before 1970 they are negative. A leap second counts as the second
    /// behind it.
    pub unix_seconds: i64,
    /// Whether it had a fraction of a second, which is cut off.
    pub has_fraction: bool,
    /// Whether it was written in UTC: `Z`, or an offset of zero.
    pub is_utc: bool,
}

/// Reads a date-time of RFC 3339 5.6; `None` when `text` is none, or names a day that does not exist.
pub fn parse_rfc3339(text: &[u8]) -> Option<DateTime> {
    let digits = |at: usize, len: usize| {
        let part = text.get(at..at + len)?;
        part.iter().try_fold(0i64, |value, octet| {
            let digit = octet.is_ascii_digit().then(|| i64::from(octet - b'0'))?;
            Some(value * 10 + digit)
        })
    };
    let is = |at: usize, octet: u8| text.get(at).is_some_and(|o| o.eq_ignore_ascii_case(&octet));
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !marks.iter().all(|(at, octet)| is(*at, *octet)) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut zone_at = 19;
    if is(19, b'.') {
        zone_at += 1 + text
            .get(20..)?
            .iter()
            .take_while(|o| o.is_ascii_digit())
            .count();
        if zone_at == 20 {
            return None;
        }
    }
    let offset_minutes = match text.get(zone_at..)? {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (digits(zone_at + 1, 2)?, digits(zone_at + 4, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let magnitude = hours * 60 + minutes;
            if *sign == b'-' { -magnitude } else { magnitude }
        }
        _ => return None,
    };
    // Years that begin in March have their leap day at the end, as in `calendar`.
    let march_year = year - i64::from(month <= 2);
    let era = march_year.div_euclid(400);
    let year_of_era = march_year.rem_euclid(400);
    let month_index = (month + 9) % 12;
    let day_of_year = (153 * month_index + 2) / 5 + day - 1;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(DateTime {
        unix_seconds: days * 86_400 + hour * 3_600 + (minute - offset_minutes) * 60 + second,
        has_fraction: zone_at != 19,
        is_utc: offset_minutes == 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_of_rfc3339_reads_back_as_written() {
        let read = |text: &str| parse_rfc3339(text.as_bytes());
        let utc = |unix_seconds| {
            Some(DateTime {
                unix_seconds,
                has_fraction: false,
                is_utc: true,
            })
        };
        for seconds in [0, 951_782_400, 951_868_800, 1_795_395_723, 4_107_542_399] {
            let whole = rfc3339(seconds * 1_000_000_000).replace(".000", "");
            assert_eq!(read(&whole), utc(seconds as i64), "{whole}");
        }
        assert_eq!(read("9999-12-31T23:59:59Z"), utc(253_402_300_799));
        assert_eq!(read("0000-03-01t00:00:00z"), utc(-62_162_035_200));
        assert_eq!(read("1990-12-31T23:59:60Z"), utc(662_688_000));
        assert_eq!(
            read("1990-12-31T15:59:60.25-08:00"),
            Some(DateTime {
                unix_seconds: 662_688_000,
                has_fraction: true,
                is_utc: false,
            })
        );
        assert_eq!(read("2026-11-23T01:02:03+00:00"), utc(1_795_395_723));
    }

    #[test]
    fn what_is_no_date_of_rfc3339_is_none() {
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T01:02:03",
            "2026-11-23 01:02:03Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T01:60:00Z",
            "2026-11-23T01:02:61Z",
            "2026-11-23T01:02:03.Z",
            "2026-11-23T01:02:03ZZ",
            "2026-11-23T01:02:03+24:00",
            "2026-11-23T01:02:03+00:60",
            "2026-11-23T01:02:03+0000",
            "+026-11-23T01:02:03Z",
            "2026-11-23T01:02:0\u{661}Z",
        ] {
            assert_eq!(parse_rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn calendar_knows_leap_days_and_century_rules() {
        let at = |seconds| {
            let c = calendar(seconds);
            (
                c.year, c.month, c.day, c.weekday, c.hour, c.minute, c.second,
            )
        };
        assert_eq!(at(0), (1970, 1, 1, 4, 0, 0, 0));
        assert_eq!(at(951_782_400), (2000, 2, 29, 2, 0, 0, 0));
        assert_eq!(at(951_868_800), (2000, 3, 1, 3, 0, 0, 0));
        assert_eq!(at(1_795_395_723), (2026, 11, 23, 1, 1, 2, 3));
        assert_eq!(at(4_107_542_399), (2100, 2, 28, 0, 23, 59, 59));
        assert_eq!(at(4_107_542_400), (2100, 3, 1, 1, 0, 0, 0));
    }

    #[test]
    fn rfc3339_writes_milliseconds_in_utc() {
        assert_eq!(
            rfc3339(1_795_395_723_456_789_012),
            "2026-11-23T01:02:03.456Z"
        );
    }
}
