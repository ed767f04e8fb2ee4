//! `rbuild df`: what the store holds, and what it takes.
//!
//! In: the store. Out: a table as `docker system df` prints it, and the bytes on the disk. What always holds: the total is
//! what `du -s -B1` says of the store; SIZE of images is Docker's: uncompressed, layers that several share once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::args::DfArgs;
use super::failure::Failure;
use super::render::table;
use super::rows::{Format, text, wrong};
use super::settings::Settings;
use super::stdout::stdout;
use super::template::value::{self as template, field};
use super::{age, find, size};
use crate::digest::{DiffId, Digest};
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

/// The same with `-v`.
const RAW_DETAILS: &str = "{{range .Images}}type: Image\nrepository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\n\
                           created_since: {{.CreatedSince}}\nvirtual_size: {{.Size}}\n\n{{end}}\
                           {{range .Layers}}type: Layer\nlayer_id: {{.ID}}\nsize: {{.Size}}\n\n{{end}}\
                           {{range .BuildCache}}type: Build Cache\nbuild_cache_id: {{.ID}}\n\
                           build_cache_type: {{.CacheType}}\ndescription: {{.Description}}\n\
                           created_since: {{.CreatedSince}}\nlast_used_since: {{.LastUsedSince}}\n\
                           usage_count: {{.UsageCount}}\nin_use: {{.InUse}}\nshared: {{.Shared}}\n\n{{end -}}";

/// The tables of `-v`: the columns of each, and their titles.
const IMAGES: [(&str, &str); 8] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const LAYERS: [(&str, &str); 4] =
    [("ID", "LAYER ID"), ("Size", "SIZE"), ("Images", "IMAGES"), ("Records", "CACHE RECORDS")];
const BUILD_CACHE: [(&str, &str); 8] = [
    ("ID", "CACHE ID"),
    ("CacheType", "CACHE TYPE"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
    ("UsageCount", "USAGE"),
    ("Shared", "SHARED"),
    ("Description", "DESCRIPTION"),
];

/// What is not known, as Docker writes it.
const UNKNOWN: &str = "N/A";

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
    let format = Format::parse(args.format.as_deref(), Some(if args.verbose { RAW_DETAILS } else { RAW }))?;
    if args.verbose && matches!(format, Format::Columns(_)) {
        return Err(Failure::Usage(
            "--format: with -v there are several tables, whose columns are given; leave out -v, or use json or a template \
             such as {{range .Images}}{{.ID}} {{end}}"
                .into(),
        ));
    }
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
        counted.write_details(&mut out, &format)?;
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
        let in_images =
            |name: &&&str| Digest::from_hex(name).is_some_and(|digest| self.needed.layers.contains(&DiffId(digest)));
        let disk = folder("layers") + folder("blobs") + folder("trees");
        let by_cache: BTreeSet<DiffId> = self.entries.iter().filter_map(|entry| entry.layer).collect();
        let unused: u64 = layers
            .iter()
            .filter(|name| !in_images(name))
            .filter_map(|name| self.usage.entries.get(&format!("layers/{name}")))
            .sum();
        let layer_row = row("Layers", layers.len(), layers.iter().filter(in_images).count(), disk, unused);
        // Build cache: what is there for records alone.
        let cache = self.store.cache_size(&self.usage, &self.needed);
        let active = by_cache.intersection(&self.needed.layers).count();
        // The folders themselves stay.
        let bare = self.usage.bare.get("cache").copied().unwrap_or(0);
        let cache_row = row("Build Cache", self.entries.len(), active, cache, cache.saturating_sub(bare));
        let mounts = self.cache_mounts();
        let of_mounts = |(name, bytes): (&String, &u64)| name.starts_with("mounts/").then_some(*bytes);
        let going = self.usage.entries.iter().filter_map(of_mounts).sum();
        let mounts_row = row("Cache mounts", mounts, 0, folder(CACHE_MOUNTS), going);
        let mut total = row("Total", 0, 0, self.usage.total, 0);
        for field in ["TotalCount", "Active", "Reclaimable"] {
            total[field] = json!("");
        }
        vec![images, layer_row, cache_row, mounts_row, total]
    }

    fn cache_mounts(&self) -> usize {
        std::fs::read_dir(self.store.path(CACHE_MOUNTS)).map_or(0, Iterator::count)
    }

    fn write_details(&self, out: &mut dyn Write, format: &Format) -> Result<(), Failure> {
        let whole = *format != Format::Table;
        let (images, layers, cache) = (self.image_rows(whole), self.layer_rows(whole), self.cache_rows(whole));
        let rows = |rows: &[Value]| template::Value::List(rows.iter().map(template::Value::structure).collect());
        let all = || {
            template::Value::from(vec![
                field("Images", rows(&images)),
                field("Layers", rows(&layers)),
                field("Containers", rows(&[])),
                field("Volumes", rows(&[])),
                field("BuildCache", rows(&cache)),
            ])
        };
        match format {
            Format::Json => writeln!(out, "{}", all().json())?,
            Format::Template(template) => write!(out, "{}", template.render(&all()).map_err(wrong)?)?,
            Format::Table | Format::Columns(_) => {
                writeln!(out, "Images space usage:\n")?;
                write_table(out, &IMAGES, &images)?;
                writeln!(out, "\nLayers space usage:\n")?;
                write_table(out, &LAYERS, &layers)?;
                let bytes = self.store.cache_size(&self.usage, &self.needed);
                writeln!(out, "\nBuild cache usage: {}\n", size::precise(bytes))?;
                write_table(out, &BUILD_CACHE, &cache)?;
                writeln!(out, "\nTotal on disk: {} ({} bytes)", size::precise(self.usage.total), self.usage.total)?;
            }
        }
        Ok(())
    }

    /// A row per name.
    fn image_rows(&self, whole: bool) -> Vec<Value> {
        let now = find::now();
        let users = self.users(|_| true);
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
                rows.push(json!({
                    "Repository": name.map_or_else(none, Reference::familiar_name),
                    "Tag": name.and_then(Reference::tag).map_or_else(none, str::to_owned),
                    "ID": if whole { image.id.to_string() } else { find::short(&image.id) },
                    "CreatedSince": created.map_or_else(|| UNKNOWN.to_owned(), |created| age::ago(created, now)),
                    "Size": size::human(image.size),
                    "SharedSize": size::human(shared),
                    "UniqueSize": size::human(unique),
                    "Containers": "0",
                }));
            }
        }
        rows
    }

    /// A row per layer, the largest first.
    fn layer_rows(&self, whole: bool) -> Vec<Value> {
        let users = self.users(|_| true);
        let mut records: BTreeMap<DiffId, usize> = BTreeMap::new();
        for layer in self.entries.iter().filter_map(|entry| entry.layer) {
            *records.entry(layer).or_default() += 1;
        }
        let stored = self.usage.entries.iter().filter_map(|(name, bytes)| {
            let layer = Digest::from_hex(name.strip_prefix("layers/")?).map(DiffId)?;
            Some((layer, *bytes))
        });
        let mut stored: Vec<(DiffId, u64)> = stored.collect();
        stored.sort_by_key(|(layer, bytes)| (Reverse(*bytes), *layer));
        let row = |(layer, bytes): (DiffId, u64)| {
            json!({
                "ID": if whole { layer.to_string() } else { shortened(&layer.0.hex()) },
                "Size": size::human(bytes),
                "Images": users.get(&layer).copied().unwrap_or(0).to_string(),
                "Records": records.get(&layer).copied().unwrap_or(0).to_string(),
            })
        };
        stored.into_iter().map(row).collect()
    }

    /// A row per record, what was used last first, and per cache mount. Nobody counts how often they were used.
    fn cache_rows(&self, whole: bool) -> Vec<Value> {
        let now = find::now();
        let since = |time: SystemTime| {
            let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            age::ago(i64::try_from(seconds).unwrap_or(i64::MAX), now)
        };
        let since_or = |time: Option<SystemTime>| time.map_or_else(|| UNKNOWN.to_owned(), since);
        let row = |name: String, kind: &str, bytes: u64, times: [Option<SystemTime>; 2], shared: bool, what: &str| {
            json!({
                "ID": if whole { name } else { shortened(&name) },
                "Parent": "",
                "CacheType": kind,
                "Size": size::human(bytes),
                "CreatedSince": since_or(times[0]),
                "LastUsedSince": since_or(times[1]),
                "UsageCount": UNKNOWN,
                "InUse": "false",
                "Shared": shared.to_string(),
                "Description": if whole { what.to_owned() } else { what.chars().take(40).collect() },
            })
        };
        let mut entries: Vec<&CacheEntry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| Reverse(entry.used));
        let records = entries.into_iter().map(|entry| {
            let shared = entry.layer.is_some_and(|layer| self.needed.layers.contains(&layer));
            let bytes = entry.layer.map_or(0, |layer| layer_size(&self.usage, &layer));
            let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            row(name, "regular", bytes, [entry.made, Some(entry.used)], shared, &entry.made_by)
        });
        let mounts = self.usage.entries.iter().filter_map(|(name, bytes)| {
            let folder = self.store.path(name);
            let name = name.strip_prefix("mounts/")?;
            let time = |file: &str| std::fs::symlink_metadata(folder.join(file)).ok();
            let made = time("id").and_then(|found| found.modified().ok());
            let used = time("0.lock").and_then(|found| found.modified().ok());
            let id = std::fs::read_to_string(folder.join("id")).unwrap_or_default();
            Some(row(name.to_owned(), "exec.cachemount", *bytes, [made, used], false, &id))
        });
        records.chain(mounts).collect()
    }
}

fn write_table(out: &mut dyn Write, columns: &[(&str, &str)], rows: &[Value]) -> Result<(), Failure> {
    let titles: Vec<&str> = columns.iter().map(|(_, title)| *title).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|(name, _)| text(row, name)).collect::<Vec<_>>());
    Ok(table::write(out, &titles, cells)?)
}

/// A name as tables show it.
fn shortened(name: &str) -> String {
    name.chars().take(12).collect()
}

/// The store's folder of cache mounts.
const CACHE_MOUNTS: &str = "mounts";
