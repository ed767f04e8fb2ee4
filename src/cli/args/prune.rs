//! The flags of `prune`.
//!
//! In: what clap matched. Out: plain values; times stay relative until the clock is known.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values::bytes;

/// `rbuild prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Remove images without a name, and build cache that no image uses")]
pub struct PruneArgs {
    /// Remove images with names too, and all build cache
    #[arg(short, long)]
    pub all: bool,
    /// Remove what fits: until=24h, until=2026-01-31, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = prune_filter)]
    pub filters: Vec<PruneFilter>,
    /// Keep so much of the build cache: what was used last
    #[arg(long, visible_alias = "reserved-space", alias = "max-used-space", value_name = "SIZE", value_parser = bytes)]
    pub keep_storage: Option<u64>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Empty the store: images, cache, cache mounts
    #[arg(long, conflicts_with_all = ["all", "filters", "keep_storage"])]
    pub everything: bool,
    /// images or cache; what `image prune` and `builder prune` say
    #[arg(long, value_enum, value_name = "WHAT", hide = true)]
    pub only: Option<PruneOnly>,
}

/// Half of what `rbuild prune` removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PruneOnly {
    /// `rbuild image prune`.
    Images,
    /// `rbuild builder prune`.
    Cache,
}

/// `prune` as help shows `builder prune`, or else `image prune`: with the flags that mean something there.
pub(super) fn of_half(command: clap::Command, cache: bool) -> clap::Command {
    let (usage, about, all, out) = if cache {
        let about = "Remove build cache that no image is made of, with the cache mounts";
        ("rbuild builder prune [OPTIONS]", about, "Remove all build cache", &["everything"][..])
    } else {
        let about = "Remove images without a name";
        ("rbuild image prune [OPTIONS]", about, "Remove images with names too", &["everything", "keep_storage"][..])
    };
    let command = command.override_usage(usage).about(about).mut_arg("all", |arg| arg.help(all));
    let command = out.iter().fold(command, |command, name| command.mut_arg(name, |arg| arg.hide(true)));
    if !cache {
        return command;
    }
    command.mut_arg("filters", |arg| arg.help("Remove what was not used since: until=24h, until=2026-01-31"))
}

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PruneFilter {
    /// What was made, or used, before that.
    Until(Until),
    /// Images with that label, or with `false` those without.
    Label {
        /// Its name.
        key: String,
        /// Its value; `None` is any.
        value: Option<String>,
        /// Whether they are to have it.
        has: bool,
    },
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// So long ago.
    Ago(Duration),
    /// Seconds since 1970.
    At(i64),
}

fn prune_filter(text: &str) -> Result<PruneFilter, String> {
    let expected = "expected until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]";
    let (key, value) = text.split_once('=').ok_or(expected)?;
    match key.trim() {
        "until" | "unused-for" => until(value.trim()).map(PruneFilter::Until),
        "label" | "label!" if !value.trim().is_empty() => {
            let (name, content) = value.split_once('=').map_or((value, None), |(name, content)| (name, Some(content)));
            let (key, value) = (name.trim().to_owned(), content.map(str::to_owned));
            Ok(PruneFilter::Label { key, value, has: !text.starts_with("label!") })
        }
        _ => Err(expected.to_owned()),
    }
}

/// A moment as Docker's `until` takes it: an age such as `24h` or `1h30m`, a date or time, or seconds since 1970.
pub(crate) fn until(text: &str) -> Result<Until, String> {
    if let Some(age) = go_duration(text) {
        return Ok(Until::Ago(age));
    }
    let seconds = text.split('.').next().unwrap_or(text);
    if let Ok(seconds) = seconds.parse::<i64>() {
        return Ok(Until::At(seconds));
    }
    let zoned = text.parse::<jiff::Timestamp>().ok();
    let civil = || {
        let time = text.parse::<jiff::civil::DateTime>().ok()?;
        time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
    };
    match zoned.or_else(civil) {
        Some(time) => Ok(Until::At(time.as_second())),
        None => Err(format!(
            "{text:?} is no time; expected an age such as 24h or 1h30m, a date such as 2026-01-31, a \
                             time such as 2026-01-31T12:00:00Z, or seconds since 1970"
        )),
    }
}

/// A length of time as Go writes it; days, which Go does not know, are welcome too.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(sum).ok())?
}

impl Until {
    /// Seconds since 1970, when it is `now`.
    pub(crate) fn seconds(self, now: i64) -> i64 {
        match self {
            Self::At(seconds) => seconds,
            Self::Ago(age) => now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("24h", Some(1_000_000 - 86_400)),
            ("1h30m", Some(1_000_000 - 5400)),
            ("1.5h", Some(1_000_000 - 5400)),
            ("2d", Some(1_000_000 - 172_800)),
            ("0s", Some(1_000_000)),
            ("7", Some(7)),
            ("7.123456789", Some(7)),
            ("1970-01-02", Some(86_400)),
            ("1970-01-02T00:00:01", Some(86_401)),
            ("1970-01-02T00:00:01Z", Some(86_401)),
            ("1970-01-02T01:00:01+01:00", Some(86_401)),
            ("", None),
            ("h", None),
            ("24x", None),
            ("yesterday", None),
        ] {
            assert_eq!(until(text).ok().map(|until| until.seconds(1_000_000)), expected, "{text}");
        }
    }

    #[test]
    fn filters() {
        let label = |key: &str, value: Option<&str>, has| PruneFilter::Label {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            has,
        };
        for (text, expected) in [
            ("label=a", Some(label("a", None, true))),
            ("label=a=b=c", Some(label("a", Some("b=c"), true))),
            ("label!=a=b", Some(label("a", Some("b"), false))),
            ("until=5", Some(PruneFilter::Until(Until::At(5)))),
            ("label=", None),
            ("until", None),
            ("dangling=true", None),
        ] {
            assert_eq!(prune_filter(text).ok(), expected, "{text}");
        }
    }
}
