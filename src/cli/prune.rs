//! `rbuild prune`: removes what is no longer needed.
//!
//! In: what may go. Out: what went, and the space that the disk has back. What always holds: it asks first, unless it is
//! told not to; what a running build needs stays, and without `-a` what has a name, with the cache that it is built from.

use std::io::{self, BufRead as _, Write};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::anyhow;

use super::args::{PruneArgs, PruneFilter, PruneOnly};
use super::failure::Failure;
use super::settings::Settings;
use super::stdout::stdout;
use super::{find, size};
use crate::image::reference::Reference;
use crate::store::gc::CachePolicy;
use crate::store::images::ImageRecord;
use crate::store::{Store, base};

/// Keys of records that are listed.
const MOST_LISTED: usize = 100;

/// Removes it.
pub(super) fn run(args: &PruneArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let images = args.only != Some(PruneOnly::Cache);
    let cache = args.only != Some(PruneOnly::Images);
    let labels = args.filters.iter().any(|filter| matches!(filter, PruneFilter::Label { .. }));
    if !images && labels {
        return Err(Failure::Usage("the build cache has no labels; its filter is until=".into()));
    }
    if !cache && args.keep_storage.is_some() {
        return Err(Failure::Usage(
            "--keep-storage is about the build cache; use it with `rbuild builder prune`".into(),
        ));
    }
    let store = find::store(settings)?;
    if !args.force && !confirmed(args, images, cache && !labels)? {
        return Err(Failure::Error(anyhow!("nothing was removed, as it was not confirmed; -f does not ask")));
    }
    // Also what a killed build left is cleared away, and this user may remove what mapped ids own.
    if store.path("trees.format").exists() {
        find::enter_ids(settings)?;
    }
    let mut out = stdout();
    if args.everything {
        // What is damaged goes with all else, unread.
        if store.is_busy().map_err(anyhow::Error::from)? {
            return Err(Failure::Error(anyhow!(
                "other commands are at work on this store; wait for them, and try again"
            )));
        }
        let gone = store.empty().map_err(anyhow::Error::from)?;
        writeln!(out, "Total reclaimed space: {}", size::precise(gone.freed))?;
        return Ok(ExitCode::SUCCESS);
    }
    find::clear(&store, settings)?;
    let now = find::now();
    let before = args.filters.iter().find_map(|filter| match filter {
        PruneFilter::Until(until) => {
            let seconds = u64::try_from(until.seconds(now)).unwrap_or(0);
            Some(UNIX_EPOCH + Duration::from_secs(seconds))
        }
        PruneFilter::Label { .. } => None,
    });
    let policy = CachePolicy { all: args.all, before, keep: args.keep_storage };
    let mut untagged_any = false;
    if images {
        let gone = prune_images(&store, args, now)?;
        untagged_any = !gone.is_empty();
        if untagged_any {
            writeln!(out, "Deleted Images:")?;
        }
        for image in &gone {
            for name in &image.names {
                let shown = Reference::parse(name).map_or_else(|_| name.clone(), |name| name.familiar());
                writeln!(out, "untagged: {shown}")?;
            }
            writeln!(out, "deleted: {}", image.id)?;
        }
    }
    let collected = store.collect((cache && !labels).then_some(&policy)).map_err(anyhow::Error::from)?;
    if !collected.records.is_empty() {
        let blank = if untagged_any { "\n" } else { "" };
        writeln!(out, "{blank}Deleted build cache objects:")?;
        for record in collected.records.iter().take(MOST_LISTED) {
            writeln!(out, "{record}")?;
        }
        if collected.records.len() > MOST_LISTED {
            writeln!(out, "and {} more", collected.records.len() - MOST_LISTED)?;
        }
    }
    if collected.mounts > 0 {
        writeln!(out, "Deleted cache mounts: {}", collected.mounts)?;
    }
    if untagged_any || !collected.records.is_empty() || collected.mounts > 0 {
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", size::precise(collected.freed))?;
    if collected.stuck > 0 {
        return Err(Failure::Error(anyhow!(
            "{} things could not be removed yet; the next command that can will do it",
            collected.stuck
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks, as Docker does.
fn confirmed(args: &PruneArgs, images: bool, cache: bool) -> Result<bool, Failure> {
    let mut what = Vec::new();
    if args.everything {
        what.push("everything in the store: all images, the build cache, cache mounts");
    } else {
        if images {
            what.push(if args.all { "all images, those with names too" } else { "all images without a name" });
        }
        if cache {
            what.push(if args.all {
                "all build cache, with the cache mounts"
            } else {
                "all build cache that no image is made of, with the cache mounts"
            });
        }
    }
    let mut text = String::from("WARNING! This will remove:\n");
    for what in what {
        text.push_str(&format!("  - {what}\n"));
    }
    text.push_str("Are you sure you want to continue? [y/N] ");
    let mut error = io::stderr().lock();
    error.write_all(text.as_bytes())?;
    error.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

/// Forgets images. Those that went.
fn prune_images(store: &Store, args: &PruneArgs, now: i64) -> Result<Vec<ImageRecord>, Failure> {
    let mut going = Vec::new();
    for image in store.images().map_err(anyhow::Error::from)? {
        if (args.all || image.names.is_empty()) && fits(store, &image, &args.filters, now)? {
            going.push(image);
        }
    }
    Ok(store.remove_images(&going).map_err(anyhow::Error::from)?)
}

fn fits(store: &Store, image: &ImageRecord, filters: &[PruneFilter], now: i64) -> Result<bool, Failure> {
    let mut labels = None;
    for filter in filters {
        let fits = match filter {
            // An image that does not say when it was made was made long ago.
            PruneFilter::Until(until) => {
                find::seconds(image.created.as_deref()).is_none_or(|created| created <= until.seconds(now))
            }
            PruneFilter::Label { key, value, has } => {
                let labels = match &labels {
                    Some(labels) => labels,
                    None => {
                        let image = base::base_image(store, image).map_err(anyhow::Error::from)?;
                        &*labels.insert(image.config.config.labels)
                    }
                };
                let found = labels.get(key).is_some_and(|label| value.as_ref().is_none_or(|value| value == label));
                found == *has
            }
        };
        if !fits {
            return Ok(false);
        }
    }
    Ok(true)
}
