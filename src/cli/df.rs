//! `rbuild df`: what the store holds, and what it takes.
//!
//! In: the store. Out: a table as `docker system df` prints it, and the bytes on the disk. What always holds: the total is
//! what `du -s -B1` says of the store; SIZE of images is Docker's: uncompressed, layers that several share once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::args::DfArgs;
use super::failure::Failure;
use super::render::table;
use super::rows::Format;
use super::settings::Settings;
use super::stdout::stdout;
use super::{age, find, size};
use crate::digest::DiffId;
use crate::image::reference::Reference;
use crate::store::gc::{CacheEntry, Needed, layer_size};
use crate::store::images::ImageRecord;
use crate::store::usage::Usage;
use crate::store::{Store, base};

const HEADINGS: [(&str, &str); 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];

/// What `--format raw` is.
const RAW: &str = "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\n\
                   reclaimable: {{.Reclaimable}}\n";

/// All that is counted.
struct Counted<'a> {
    store: &'a Store,
    images: Vec<(ImageRecord, Vec<DiffId>)>,
    /// Uncompressed bytes of each layer of an image.
    sizes: BTreeMap<DiffId, u64>,
    needed: Needed,
    entries: Vec<CacheEntry>,
    usage: Usage,
}

/// Prints it.
pub(super) fn run(args: &DfArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let format = Format::parse(args.format.as_deref(), Some(RAW))?;
    let store = find::store(settings)?;
    // Folders of mapped ids are closed to others. Where there is no way in, the rest is worth telling.
    if store.path("trees.format").exists()
        && let Err(error) = find::enter_ids(settings)
    {
        let note = format!("warning: file trees are not counted: {error:#}\n");
        std::io::stderr().write_all(note.as_bytes())?;
    }
    let counted = Counted::new(&store)?;
    let mut out = stdout();
    if args.verbose {
        counted.write_details(&mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = counted.rows();
    let columns = HEADINGS.map(|(field, _)| field);
    match format {
        Format::Table => {
            format.write(&mut out, &columns, &HEADINGS, rows)?;
            let total = counted.usage.total;
            writeln!(out, "\nTotal on disk: {} ({total} bytes) in {}", size::precise(total), store.root().display())?;
        }
        other => other.write(&mut out, &columns, &HEADINGS, rows)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> Counted<'a> {
    fn new(store: &'a Store) -> Result<Self, Failure> {
        let mut images = Vec::new();
        let mut sizes = BTreeMap::new();
        for record in store.images().map_err(anyhow::Error::from)? {
            // A damaged image is counted, its layers are not known.
            let all = base::base_images(store, &record).unwrap_or_default();
            let layers: Vec<_> = all.into_iter().flat_map(|image| image.config.rootfs.diff_ids).collect();
            for layer in &layers {
                if !sizes.contains_key(layer) {
                    sizes.insert(*layer, store.layer_summary(layer).map_or(0, |summary| summary.files_size));
                }
            }
            images.push((record, layers));
        }
        Ok(Self {
            store,
            images,
            sizes,
            needed: store.needed_by_images().map_err(anyhow::Error::from)?,
            entries: store.cache_entries().map_err(anyhow::Error::from)?,
            usage: store.usage(),
        })
    }

    /// How many images have each layer.
    fn users(&self, of: impl Fn(&ImageRecord) -> bool) -> BTreeMap<DiffId, usize> {
        let mut users = BTreeMap::new();
        for (_, layers) in self.images.iter().filter(|(image, _)| of(image)) {
            for layer in layers.iter().collect::<BTreeSet<_>>() {
                *users.entry(*layer).or_default() += 1;
            }
        }
        users
    }

    fn rows(&self) -> Vec<Value> {
        let row = |kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64| {
            let share = (reclaimable.min(bytes) * 100).checked_div(bytes);
            let share = share.map_or_else(String::new, |share| format!(" ({share}%)"));
            json!({
                "Type": kind,
                "TotalCount": total.to_string(),
                "Active": active.to_string(),
                "Size": size::precise(bytes),
                "Reclaimable": format!("{}{share}", size::precise(reclaimable.min(bytes))),
                "Bytes": bytes,
            })
        };
        let folder = |name: &str| self.usage.folders.get(name).copied().unwrap_or(0);
        // Images: those with names are in use, there being no containers.
        let all: u64 = self.sizes.values().sum();
        let named = self.users(|image| !image.names.is_empty());
        let used: u64 = self.sizes.iter().filter(|(layer, _)| named.contains_key(layer)).map(|(_, size)| size).sum();
        let active = self.images.iter().filter(|(image, _)| !image.names.is_empty()).count();
        let images = row("Images", self.images.len(), active, all, all - used);
        // Layers: on the disk, in whichever forms.
        let layers: Vec<&str> = self.usage.entries.keys().filter_map(|name| name.strip_prefix("layers/")).collect();
        let in_images = |name: &&&str| {
            crate::digest::Digest::from_hex(name).is_some_and(|digest| self.needed.layers.contains(&DiffId(digest)))
        };
        let disk = folder("layers") + folder("blobs") + folder("trees");
        let by_cache: BTreeSet<DiffId> = self.entries.iter().filter_map(|entry| entry.layer).collect();
        let unused: u64 = layers
            .iter()
            .filter(|name| !in_images(name))
            .filter_map(|name| self.usage.entries.get(&format!("layers/{name}")))
            .sum();
        let layer_row = row("Layers", layers.len(), layers.iter().filter(in_images).count(), disk, unused);
        // Build cache: what is there for records alone.
        let cache = self.store.cache_size(&self.usage, &self.needed, &self.entries);
        let active = by_cache.intersection(&self.needed.layers).count();
        let cache_row = row("Build Cache", self.entries.len(), active, cache, cache);
        let mounts = self.cache_mounts();
        let mounts_row = row("Cache mounts", mounts, 0, folder(CACHE_MOUNTS), folder(CACHE_MOUNTS));
        let mut total = row("Total", 0, 0, self.usage.total, 0);
        for field in ["TotalCount", "Active", "Reclaimable"] {
            total[field] = json!("");
        }
        vec![images, layer_row, cache_row, mounts_row, total]
    }

    fn cache_mounts(&self) -> usize {
        std::fs::read_dir(self.store.path(CACHE_MOUNTS)).map_or(0, Iterator::count)
    }

    fn write_details(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let now = find::now();
        let users = self.users(|_| true);
        writeln!(out, "Images space usage:\n")?;
        let mut rows = Vec::new();
        for (image, layers) in &self.images {
            let layers: BTreeSet<&DiffId> = layers.iter().collect();
            let bytes = |layer: &&&DiffId| self.sizes.get(**layer).copied().unwrap_or(0);
            let shared: u64 =
                layers.iter().filter(|layer| users.get(**layer).is_some_and(|n| *n > 1)).map(|l| bytes(&l)).sum();
            let unique: u64 = layers.iter().map(|layer| bytes(&layer)).sum::<u64>() - shared;
            let created = find::seconds(image.created.as_deref());
            let names = find::names(image);
            let names: Vec<Option<&Reference>> =
                if names.is_empty() { vec![None] } else { names.iter().map(Some).collect() };
            for name in names {
                let none = || "<none>".to_owned();
                rows.push([
                    name.map_or_else(none, Reference::familiar_name),
                    name.and_then(Reference::tag).map_or_else(none, str::to_owned),
                    find::short(&image.id),
                    created.map_or_else(|| "N/A".to_owned(), |created| age::ago(created, now)),
                    size::human(image.size),
                    size::human(shared),
                    size::human(unique),
                ]);
            }
        }
        table::write(out, &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE"], &rows)?;
        let cache = self.store.cache_size(&self.usage, &self.needed, &self.entries);
        writeln!(out, "\nBuild cache usage: {}\n", size::precise(cache))?;
        let mut entries: Vec<&CacheEntry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        let rows = entries.into_iter().map(|entry| {
            let shared = entry.layer.is_some_and(|layer| self.needed.layers.contains(&layer));
            let used = entry.used.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
            let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let step: String = entry.made_by.chars().take(40).collect();
            [
                name.chars().take(12).collect(),
                step,
                size::human(entry.layer.map_or(0, |layer| layer_size(&self.usage, &layer))),
                age::ago(used, now),
                shared.to_string(),
            ]
        });
        table::write(out, &["CACHE ID", "MADE BY", "SIZE", "LAST USED", "SHARED"], rows.collect::<Vec<_>>())?;
        writeln!(out, "\nTotal on disk: {} ({} bytes)", size::precise(self.usage.total), self.usage.total)?;
        Ok(())
    }
}

/// The store's folder of cache mounts.
const CACHE_MOUNTS: &str = "mounts";
