//! Moments, and ages as Docker writes them.
//!
//! In: a time of a config, or two moments in seconds since 1970. Out: the moment, or in the zone of this machine, or the
//! words between them: `About an hour ago`, `3 weeks ago`.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time of a config.
pub fn moment(created: Option<&str>) -> Option<Timestamp> {
    created?.parse().ok()
}

/// A moment in the zone of this machine: by `zoned`, or in UTC by `utc`, which is also that of a machine without a zone.
pub fn local(seconds: i64, zoned: &str, utc: &str) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::system());
    time.strftime(if time.offset().is_zero() { utc } else { zoned }).to_string()
}

/// How long ago `then` was at `now`. What lies ahead counts as just now.
pub fn ago(then: i64, now: i64) -> String {
    format!("{} ago", span(now.saturating_sub(then).max(0).unsigned_abs()))
}

/// A length of time, in seconds, in words.
pub fn span(seconds: u64) -> String {
    let minutes = seconds / 60;
    // Hours are rounded, all else is cut: Docker's way.
    let hours = seconds.saturating_add(1800) / 3600;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 0 | 1) => "About an hour".to_owned(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1440) => format!("{} weeks", hours / 24 / 7),
        (.., 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_docker_like() {
        const HOUR: u64 = 3600;
        const DAY: u64 = 24 * HOUR;
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (2, "2 seconds"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (HOUR - 1, "59 minutes"),
            (HOUR, "About an hour"),
            (HOUR + 1799, "About an hour"),
            (HOUR + 1800, "2 hours"),
            (47 * HOUR, "47 hours"),
            (2 * DAY, "2 days"),
            (13 * DAY, "13 days"),
            (14 * DAY, "2 weeks"),
            (59 * DAY, "8 weeks"),
            (60 * DAY, "2 months"),
            (729 * DAY, "24 months"),
            (730 * DAY, "2 years"),
            (u64::MAX, "584942417355 years"),
        ] {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
        assert_eq!(ago(100, 400), "5 minutes ago");
        assert_eq!(ago(400, 100), "Less than a second ago");
        assert_eq!(ago(i64::MIN, i64::MAX), "292471208677 years ago");
    }
}
