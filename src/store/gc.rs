//! Garbage collection: mark and sweep.
//!
//! In: a store, and what of the cache is to go. Out: the store without it, and what went. What always holds: what an
//! image of the store, a running command or a record that stays needs is left alone; things go into the trash under the
//! exclusive lock only, and are removed after it; so a collection waits for no build, and no build fails by it.
//!
//! The slow part, reading all records, is done before the lock is taken. Under it are read again: the images, and what
//! the running commands list in their leases as made or used. A layer that appeared in between is younger than the
//! collection, and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::base::needed;
use super::layout::{Store, StoreError, is_younger, list, read_if_there};
use super::origins;
use super::suspect::Suspect;
use super::sweep::{is_free, text_of};
use super::usage::{Usage, measure};
use crate::cache::record::CacheRecord;
use crate::digest::{ChainId, DiffId, Digest};

/// The clock of file systems may be behind by a tick.
const CLOCK: Duration = Duration::from_millis(20);

/// Nobody takes longer to make the folder of a cache mount and lock it.
const NEW_MOUNT: Duration = Duration::from_secs(60);

/// Where the bytes of the cache stand that were counted last, below the store's root.
pub const COUNTED: &str = "cache/size";

/// What of the build cache is to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachePolicy {
    /// Also what belongs to images, which stay themselves.
    pub all: bool,
    /// Only what was not used since.
    pub before: Option<SystemTime>,
    /// Only as much, what was used longest ago first, that the cache takes at most so many bytes.
    pub keep: Option<u64>,
}

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Keys of the records.
    pub records: Vec<String>,
    /// Layers.
    pub layers: Vec<String>,
    /// Folders of cache mounts.
    pub mounts: usize,
    /// Bytes that the disk has back.
    pub freed: u64,
    /// Things that could not be removed, and are tried again later.
    pub stuck: usize,
}

/// A record of the cache as collections see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its file.
    pub path: PathBuf,
    /// The layer it leads to; `None` where it cannot be read.
    pub layer: Option<DiffId>,
    /// In words, what made the layer.
    pub made_by: String,
    /// When it was made; unknown on some file systems.
    pub made: Option<SystemTime>,
    /// When it was last used.
    pub used: SystemTime,
    /// Bytes on the disk.
    pub size: u64,
}

/// What must stay.
#[derive(Debug, Default)]
pub struct Needed {
    /// Layers, by diffID.
    pub layers: BTreeSet<DiffId>,
    /// Documents, and compressed layers.
    pub blobs: BTreeSet<Digest>,
    /// Layers unpacked on their parents.
    pub chains: BTreeSet<ChainId>,
}

impl Store {
    /// What the images need.
    pub fn needed_by_images(&self) -> Result<Needed, StoreError> {
        let mut all = Needed::default();
        for record in self.images()? {
            needed(self, &record, &mut all)?;
        }
        let layers: Vec<DiffId> = all.layers.iter().copied().collect();
        for layer in layers {
            self.also_needed(&layer, &mut all);
        }
        Ok(all)
    }

    /// What the bytes of a layer come from.
    fn also_needed(&self, layer: &DiffId, all: &mut Needed) {
        // What is damaged needs nothing more; `inspect --verify` tells of it.
        if let Ok(Some(source)) = self.source_of_epoch(layer) {
            all.layers.insert(source);
            all.blobs.extend(self.layer_blobs(&source).unwrap_or_default().iter().map(|blob| blob.digest));
        }
        all.blobs.extend(self.layer_blobs(layer).unwrap_or_default().iter().map(|blob| blob.digest));
    }

    /// All records of the cache.
    pub fn cache_entries(&self) -> Result<Vec<CacheEntry>, StoreError> {
        let mut entries = Vec::new();
        for path in self.files_two_deep("cache/records")? {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let Some(bytes) = read_if_there(&path)? else { continue };
            let record = CacheRecord::parse(&bytes).ok();
            let part = |record: &CacheRecord| {
                let known = ["command", "sources", "directory"].iter().find_map(|part| record.parts.get(*part));
                known.cloned().unwrap_or_default()
            };
            entries.push(CacheEntry {
                path,
                layer: record.as_ref().map(|record| record.layer),
                made_by: record.as_ref().map(part).unwrap_or_default(),
                made: metadata.created().ok(),
                used: metadata.modified().unwrap_or(UNIX_EPOCH),
                size: metadata.blocks() * 512,
            });
        }
        Ok(entries)
    }

    /// The files of the folders of a folder.
    fn files_two_deep(&self, folder: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        for folder in list(&self.path(folder))? {
            files.extend(list(&folder)?);
        }
        Ok(files)
    }

    /// Removes what nothing needs, and of the cache what `policy` says; `None`: nothing that is whole.
    /// Reads and removes trees: as [`Store::empty_trash`].
    pub fn collect(&self, policy: Option<&CachePolicy>) -> Result<Collected, StoreError> {
        let began = SystemTime::now() - CLOCK;
        let images = self.needed_by_images()?;
        let (going, staying) = self.choose(policy, &images)?;
        let mut collected = Collected::default();
        {
            let _exclusive = self.gc_lock(true)?;
            // Leases before images: a command that ends in between has named its image before it dropped its lease.
            let mut stay = Needed::default();
            let busy = self.needed_by_commands(&mut stay)?;
            let Needed { layers, blobs, chains } = self.needed_by_images()?;
            stay.layers.extend(layers);
            stay.blobs.extend(blobs);
            stay.chains.extend(chains);
            let from_records = staying.iter().filter_map(|entry| entry.layer);
            stay.layers.extend(from_records);
            let layers: Vec<DiffId> = stay.layers.iter().copied().collect();
            for layer in layers {
                self.also_needed(&layer, &mut stay);
            }
            for (folder, stays) in [
                ("layers", (|name, stay| stay.layers.contains(&DiffId(name))) as fn(Digest, &Needed) -> bool),
                (origins::FOLDER, |name, stay| stay.layers.contains(&DiffId(name)) || stay.blobs.contains(&name)),
                ("blobs/sha256", |name, stay| stay.blobs.contains(&name)),
                ("trees", |name, stay| stay.chains.contains(&ChainId(name))),
            ] {
                if folder == "trees" && busy {
                    continue;
                }
                for path in list(&self.path(folder))? {
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
                    if Digest::from_hex(&name).is_some_and(|name| stays(name, &stay)) || is_younger(&path, began) {
                        continue;
                    }
                    self.discard(&path)?;
                    if folder == "layers" {
                        collected.layers.push(format!("sha256:{name}"));
                    }
                }
            }
        }
        if policy.is_some_and(|policy| policy.keep.is_none()) {
            collected.mounts = self.discard_mounts(policy.and_then(|policy| policy.before))?;
        }
        for entry in going {
            if fs::remove_file(&entry.path).is_ok() {
                collected.freed += entry.size;
                collected.records.push(entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        if let Some(policy) = policy {
            collected.freed += self.forget_maps(policy)?;
        }
        // What has another name outside of the trash takes its room on.
        self.count_anew();
        let trash = self.path("trash");
        let before = freed_by_removing(&trash);
        collected.stuck = self.empty_trash()?;
        collected.freed += before.saturating_sub(freed_by_removing(&trash));
        Ok(collected)
    }

    /// Which records go, and which stay.
    fn choose(
        &self,
        policy: Option<&CachePolicy>,
        images: &Needed,
    ) -> Result<(Vec<CacheEntry>, Vec<CacheEntry>), StoreError> {
        let mut entries = self.cache_entries()?;
        let Some(policy) = policy else { return Ok((Vec::new(), entries)) };
        entries.sort_by_key(|entry| entry.used);
        let of_image = |entry: &CacheEntry| entry.layer.is_some_and(|layer| images.layers.contains(&layer));
        let may_go = |entry: &CacheEntry| {
            (policy.all || !of_image(entry)) && policy.before.is_none_or(|before| entry.used < before)
        };
        let Some(keep) = policy.keep else { return Ok(entries.into_iter().partition(may_go)) };
        let usage = self.usage();
        // What nobody needs goes first, and always: what is left to choose from is what records lead to.
        let mut known =
            Needed { layers: entries.iter().filter_map(|entry| entry.layer).collect(), ..Needed::default() };
        for layer in known.layers.clone() {
            self.also_needed(&layer, &mut known);
        }
        let mut size = Self::bytes_of(&usage, |layer, blob| {
            layer.is_some_and(|layer| known.layers.contains(&layer) && !images.layers.contains(&layer))
                || blob.is_some_and(|blob| known.blobs.contains(&blob) && !images.blobs.contains(&blob))
        });
        size += usage.folders.get("cache").copied().unwrap_or(0);
        // A layer goes with the last record that leads to it.
        let mut leading: BTreeMap<DiffId, usize> = BTreeMap::new();
        for layer in entries.iter().filter_map(|entry| entry.layer) {
            *leading.entry(layer).or_default() += 1;
        }
        let (mut going, mut staying) = (Vec::new(), Vec::new());
        for entry in entries {
            if size <= keep || !may_go(&entry) {
                staying.push(entry);
                continue;
            }
            size = size.saturating_sub(entry.size);
            if let Some(layer) = entry.layer
                && let Some(left) = leading.get_mut(&layer)
            {
                *left -= 1;
                if *left == 0 && !images.layers.contains(&layer) {
                    let own = self.layer_blobs(&layer).unwrap_or_default();
                    let blobs = own.iter().map(|blob| blob.digest).filter(|blob| !images.blobs.contains(blob));
                    let blobs: u64 = blobs.map(|blob| blob_size(&usage, &blob)).sum();
                    size = size.saturating_sub(layer_size(&usage, &layer) + blobs);
                }
            }
            going.push(entry);
        }
        Ok((going, staying))
    }

    /// Bytes of the cache: all that is stored and that no image needs, whether or not a record leads to it, and the
    /// records. (Layers without a record are those of images that were removed, and of a `pull` or `load` that failed.)
    pub fn cache_size(&self, usage: &Usage, images: &Needed) -> u64 {
        let stored = Self::bytes_of(usage, |layer, blob| {
            layer.is_some_and(|layer| !images.layers.contains(&layer))
                || blob.is_some_and(|blob| !images.blobs.contains(&blob))
        });
        stored + usage.folders.get("cache").copied().unwrap_or(0)
    }

    /// Bytes of the layers and blobs that `counts` takes.
    fn bytes_of(usage: &Usage, counts: impl Fn(Option<DiffId>, Option<Digest>) -> bool) -> u64 {
        let counts = |name: &str| {
            let layer = name.strip_prefix("layers/").and_then(Digest::from_hex).map(DiffId);
            let blob = name.strip_prefix("blobs/sha256/").and_then(Digest::from_hex);
            counts(layer, blob)
        };
        usage.entries.iter().filter(|(name, _)| counts(name)).map(|(_, bytes)| bytes).sum()
    }

    /// Has the next build that makes something count the cache: what was counted is no longer so.
    pub fn count_anew(&self) {
        // Where that fails it is counted within a day.
        let _ = fs::remove_file(self.path(COUNTED));
    }

    /// The small maps beside the records: those that lead nowhere go, with the whole cache all.
    fn forget_maps(&self, policy: &CachePolicy) -> Result<u64, StoreError> {
        let whole = policy.all && policy.before.is_none() && policy.keep.is_none();
        let mut freed = 0;
        for (folder, is_list) in [
            ("contents", true),
            ("epochs", false),
            ("last", false),
            ("stacks", false),
            ("urls", false),
            ("claims", false),
        ] {
            for path in self.files_two_deep(&format!("cache/{folder}"))? {
                let dead = match folder {
                    _ if whole => true,
                    "contents" | "epochs" => !self.leads_somewhere(&path, is_list),
                    _ => policy.before.is_some_and(|before| !is_younger(&path, before)),
                };
                freed += if dead { remove_file(&path) } else { 0 };
            }
        }
        for path in list(&self.path("cache/files"))? {
            let old = |before: SystemTime| !is_younger(&path, before);
            if whole || policy.before.is_some_and(old) {
                freed += remove_file(&path);
            }
        }
        Ok(freed)
    }

    /// Discards the folders of cache mounts that nobody uses, and that did not change since `before`. How many.
    fn discard_mounts(&self, before: Option<SystemTime>) -> Result<usize, StoreError> {
        let mut gone = 0;
        let _exclusive = self.gc_lock(true)?;
        for folder in list(&self.path("mounts"))? {
            let parts = list(&folder)?;
            let modified = |path: &PathBuf| fs::symlink_metadata(path).ok().and_then(|found| found.modified().ok());
            if before.is_some_and(|before| parts.iter().filter_map(modified).any(|time| time >= before)) {
                continue;
            }
            // Who uses a folder holds the lock beside it.
            let locks = parts.iter().filter(|path| path.extension().is_some_and(|extension| extension == "lock"));
            let locks: Vec<File> = locks.filter_map(|path| File::open(path).ok()).collect();
            // One without a lock is being made.
            let finished = !locks.is_empty() || !is_younger(&folder, SystemTime::now() - NEW_MOUNT);
            if finished && locks.iter().all(|lock| lock.try_lock().is_ok()) {
                self.discard(&folder)?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    fn leads_somewhere(&self, path: &std::path::Path, is_list: bool) -> bool {
        let Ok(text) = fs::read_to_string(path) else { return false };
        if !is_list {
            return text.parse::<DiffId>().is_ok_and(|layer| self.has_layer(&layer));
        }
        let made: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        let layer = |made: &serde_json::Value| made["layer"].as_str().and_then(|text| text.parse::<DiffId>().ok());
        made.iter().filter_map(layer).any(|layer| self.has_layer(&layer))
    }

    /// Adds what running commands list as made or used; whether there is any. Under the exclusive lock only.
    fn needed_by_commands(&self, all: &mut Needed) -> Result<bool, StoreError> {
        let mut busy = false;
        for path in list(&self.path("leases"))? {
            let Ok(file) = File::open(&path) else { continue };
            // Nobody makes a lease now: one whose lock can be had is that of a dead command. What that made is checked
            // by the next build before anything uses it, and may go.
            let text = text_of(&file);
            if is_free(&file, text.as_deref().unwrap_or_default()) {
                continue;
            }
            busy = true;
            let text = text.map_err(StoreError::io("read", &path))?;
            for name in text.lines().filter_map(|line| line.strip_prefix("made ").or(line.strip_prefix("used "))) {
                match Suspect::parse(name) {
                    Some(Suspect::Layer(layer)) => drop(all.layers.insert(layer)),
                    Some(Suspect::Blob(digest)) => drop(all.blobs.insert(digest)),
                    Some(Suspect::Tree(chain)) => drop(all.chains.insert(chain)),
                    Some(Suspect::Origins(_) | Suspect::Cache { .. }) | None => {}
                }
            }
        }
        Ok(busy)
    }

    /// Whether other commands are at work on this store.
    pub fn is_busy(&self) -> Result<bool, StoreError> {
        let _exclusive = self.gc_lock(true)?;
        self.needed_by_commands(&mut Needed::default())
    }

    /// Throws everything away, whatever needs it, unread, with what dead commands left. The bytes that the disk has back. The caller has seen to it that
    /// nobody is at work.
    pub fn empty(&self) -> Result<Collected, StoreError> {
        let before = measure(self.root()).total;
        {
            let _exclusive = self.gc_lock(true)?;
            let busy = self.needed_by_commands(&mut Needed::default())?;
            if !busy {
                // First: a store without it is made anew by whoever opens it, should this be cut off.
                self.discard(&self.path("format"))?;
                for entry in list(self.root())? {
                    let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
                    if !["lock", "trash"].contains(&name.as_str()) {
                        self.discard(&entry)?;
                    }
                }
                // At once: who opened the store before finds a place for what it makes. On a full disk there is room for them
                // when the trash is empty.
                drop(self.make_folders());
            }
        }
        let stuck = self.empty_trash()?;
        Self::open(self.root())?;
        let freed = before.saturating_sub(measure(self.root()).total);
        Ok(Collected { freed, stuck, ..Collected::default() })
    }
}

/// What a layer takes.
pub fn layer_size(usage: &Usage, layer: &DiffId) -> u64 {
    usage.entries.get(&format!("layers/{}", layer.0.hex())).copied().unwrap_or(0)
}

fn blob_size(usage: &Usage, blob: &Digest) -> u64 {
    usage.entries.get(&format!("blobs/sha256/{}", blob.hex())).copied().unwrap_or(0)
}

fn remove_file(path: &std::path::Path) -> u64 {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    if fs::remove_file(path).is_ok() { size } else { 0 }
}

/// Bytes that removing a folder gives back: files that have further names elsewhere give nothing.
fn freed_by_removing(folder: &std::path::Path) -> u64 {
    let mut names: BTreeMap<(u64, u64), (u64, u64, u64)> = BTreeMap::new();
    let mut freed = 0;
    for entry in walkdir::WalkDir::new(folder).min_depth(1).into_iter().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        let bytes = metadata.blocks() * 512;
        if metadata.is_dir() || metadata.nlink() == 1 {
            freed += bytes;
        } else {
            let (seen, ..) = names.entry((metadata.dev(), metadata.ino())).or_insert((0, metadata.nlink(), bytes));
            *seen += 1;
        }
    }
    freed + names.values().filter(|(seen, links, _)| seen == links).map(|(.., bytes)| bytes).sum::<u64>()
}

#[cfg(test)]
mod tests;
