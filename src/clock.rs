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

#[cfg(test)]
mod tests {
    use super::*;

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
