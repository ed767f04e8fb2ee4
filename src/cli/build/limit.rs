//! `RBUILD_CACHE_LIMIT`: the cache is kept small without anyone asking.
//!
//! In: a build that made something. Out: a cache that takes no more than the limit. What always holds: the store is
//! looked through only when a running sum says that it may be too much, or once a day; what this build, another that
//! runs or an image needs stays; a build never fails by it.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Job;
use crate::cli::args::values;
use crate::cli::settings::Settings;
use crate::cli::size;
use crate::digest::DiffId;
use crate::event::{Event, EventSink};
use crate::store::gc::{COUNTED, CachePolicy};
use crate::store::{Store, StoreError};

const VARIABLE: &str = "RBUILD_CACHE_LIMIT";
/// The most that is kept where nothing is said.
const USUAL: u64 = 20_000_000_000;
/// Collecting stops below the limit, so that not every build has to collect.
const PARTS: (u64, u64) = (4, 5);
/// What was not counted anew for so long is.
const STALE: Duration = Duration::from_secs(86_400);

/// The limit that the user sets; `None` for none.
fn limit(settings: &Settings, store: &Store) -> Result<Option<u64>, String> {
    let given = settings.var(VARIABLE).map_err(|error| error.to_string())?.unwrap_or_default();
    match given.trim() {
        "" => {
            let disk = rustix::fs::statvfs(store.root()).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize));
            Ok(Some(disk.map_or(USUAL, |disk| (disk / 10).min(USUAL))))
        }
        "off" | "none" | "unlimited" => Ok(None),
        text => values::bytes(text)
            .map(Some)
            .map_err(|why| format!("{VARIABLE} is {text:?}: {why}, or off; nothing was removed from the cache")),
    }
}

/// Checks the cache after a build, and makes room.
pub(super) fn check(job: &Job<'_>, made: &[DiffId]) {
    if !job.lease.made_something() {
        return;
    }
    let note = match collect(job, made) {
        Ok(0) => return,
        Ok(freed) => format!("the build cache was larger than its limit: {} were removed", size::precise(freed)),
        Err(why) => format!("warning: {why}"),
    };
    job.reporter.event(Event::Note(&note));
}

fn collect(job: &Job<'_>, made: &[DiffId]) -> Result<u64, String> {
    let Some(limit) = limit(job.settings, job.store)? else { return Ok(0) };
    let store = job.store;
    let text = |error: StoreError| format!("the build cache cannot be kept below its limit: {error}");
    let added: u64 =
        made.iter().filter_map(|layer| store.layer_summary(layer).ok()).map(|summary| summary.tar_size).sum();
    let path = store.path(COUNTED);
    if let Some(sum) = fs::read_to_string(&path).ok().and_then(|text| Sum::parse(&text))
        && sum.bytes.saturating_add(added) <= limit
        && sum.counted + STALE > SystemTime::now()
    {
        // Of two builds that write at once one may be forgotten: the next count finds out.
        let _ = fs::write(&path, Sum { bytes: sum.bytes + added, ..sum }.text());
        return Ok(0);
    }
    let size = || -> Result<u64, StoreError> { Ok(store.cache_size(&store.usage(), &store.needed_by_images()?)) };
    let mut bytes = size().map_err(text)?;
    let mut freed = 0;
    if bytes > limit {
        let policy = CachePolicy { keep: Some(limit / PARTS.1 * PARTS.0), ..CachePolicy::default() };
        freed = store.collect(Some(&policy)).map_err(text)?.freed;
        bytes = size().map_err(text)?;
    }
    let _ = fs::write(&path, Sum { bytes, counted: SystemTime::now() }.text());
    Ok(freed)
}

/// Bytes of the cache, and when they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum {
    bytes: u64,
    counted: SystemTime,
}

impl Sum {
    fn parse(text: &str) -> Option<Self> {
        let (bytes, counted) = text.trim_end().split_once(' ')?;
        let counted = UNIX_EPOCH.checked_add(Duration::from_secs(counted.parse().ok()?))?;
        Some(Self { bytes: bytes.parse().ok()?, counted })
    }

    fn text(self) -> String {
        let counted = self.counted.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        format!("{} {counted}\n", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_comes_back() {
        let sum = Sum { bytes: 12, counted: UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
        assert_eq!(Sum::parse(&sum.text()), Some(sum));
        for damaged in ["", "12", "x 1", "1 x", "1 99999999999999999999"] {
            assert_eq!(Sum::parse(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn limits_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for (text, expected) in [("1g", Ok(Some(1 << 30))), ("off", Ok(None)), ("0", Ok(Some(0))), ("much", Err(()))] {
            let found = limit(&Settings::for_test(&[(VARIABLE, text)]), &store);
            assert_eq!(found.map_err(drop), expected, "{text}");
        }
        let usual = limit(&Settings::for_test(&[]), &store).unwrap().unwrap();
        assert!(usual > 0 && usual <= USUAL, "{usual}");
    }
}
