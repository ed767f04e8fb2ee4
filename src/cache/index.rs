//! Cache records on disk, and the small maps beside them.
//!
//! In: keys, records. Out: records found again. What always holds: each file is written under a temporary name and
//! renamed; a file that cannot be read whole is damaged and counts as absent; nothing here is needed to use an image.
//!
//! ```text
//! cache/records/<2>/<key>        a step's result
//! cache/contents/<2>/<content>   layers with that content, each with the operation that made it
//! cache/stacks/<2>/<stackID>     when this store first reached that stack (RFC 3339, CRC-32)
//! cache/epochs/<2>/<…>           the form of a content under an epoch
//! cache/urls/<2>/<…>            what a URL gave last: see `cache::urls`
//! cache/claims/<2>/<…>          what shared caches said: see `cache::claims`
//! cache/last/<2>/<…>             the key that a place in a Dockerfile had last, for --explain
//! ```

use std::fs;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::record::CacheRecord;
use crate::digest::{CacheKey, ContentDigest, DiffId, Digest, Hasher, StackId};
use crate::store::layout::{open_if_there, read_if_there};
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// A record that was used within that time does not count as used again: it saves a write for each step of each build.
const USED_WITHIN: Duration = Duration::from_secs(600);

/// Larger files are no records.
const MAX_RECORD: u64 = 16 << 20;

/// The answer to a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The record is there, and so is its layer.
    Hit(CacheRecord),
    /// There is no record.
    Absent,
    /// There is one, and its layer is gone.
    LayerGone,
    /// There is a file that is no record.
    Damaged(String),
}

/// A layer with a known content, and the operation that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeLayer {
    op: Digest,
    layer: DiffId,
}

impl Store {
    pub(super) fn cache_path(&self, kind: &str, name: &Digest) -> PathBuf {
        let hex = name.hex();
        self.path("cache").join(kind).join(&hex[..2]).join(hex)
    }

    /// Looks a step's result up. A layer that is found stays as long as the lease lives, and the record counts as used.
    pub fn lookup(&self, lease: &Lease, key: &CacheKey) -> Result<Found, StoreError> {
        let path = self.cache_path("records", &key.0);
        let Some(file) = open_if_there(&path)? else { return Ok(Found::Absent) };
        let metadata = file.metadata().map_err(StoreError::io("look at", &path))?;
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
        (&file).take(MAX_RECORD).read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        Ok(match CacheRecord::parse(&bytes) {
            Ok(record) if lease.uses_layer(self, &record.layer)? => {
                let age = metadata.modified().ok().and_then(|used| used.elapsed().ok());
                if age.is_none_or(|age| age > USED_WITHIN) {
                    // Whoever may read the store but not write it goes without.
                    let _ = file.set_modified(SystemTime::now());
                }
                Found::Hit(record)
            }
            Ok(_) => Found::LayerGone,
            Err(why) => Found::Damaged(why),
        })
    }

    /// Records a step's result under `key`, replacing what was there.
    pub fn record(&self, lease: &Lease, key: &CacheKey, record: &CacheRecord) -> Result<(), StoreError> {
        self.put_cache(lease, "records", &key.0, &record.to_bytes())
    }

    /// The layer with that content which the same operation made before.
    pub fn made_before(
        &self,
        lease: &Lease,
        content: &ContentDigest,
        op: &Digest,
    ) -> Result<Option<DiffId>, StoreError> {
        for made in self.made_layers(content)?.into_iter().filter(|made| made.op == *op) {
            if lease.uses_layer(self, &made.layer)? {
                return Ok(Some(made.layer));
            }
        }
        Ok(None)
    }

    /// Remembers that `op` made `layer` with that content.
    pub fn remember_made(
        &self,
        lease: &Lease,
        content: &ContentDigest,
        op: &Digest,
        layer: &DiffId,
    ) -> Result<(), StoreError> {
        let mut made = self.made_layers(content)?;
        made.retain(|made| made.op != *op);
        made.push(MadeLayer { op: *op, layer: *layer });
        let bytes = serde_json::to_vec(&made).expect("a list of digests is JSON");
        self.put_cache(lease, "contents", &content.0, &bytes)
    }

    fn made_layers(&self, content: &ContentDigest) -> Result<Vec<MadeLayer>, StoreError> {
        let bytes = read_if_there(&self.cache_path("contents", &content.0))?;
        // What cannot be read is forgotten: the worst that follows is one more layer with the same content.
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// When this store first reached `stack`: `now` where it is the first time. RFC 3339.
    pub fn first_reached(
        &self,
        lease: &Lease,
        stack: &StackId,
        now: impl FnOnce() -> String,
    ) -> Result<String, StoreError> {
        let path = self.cache_path("stacks", &stack.0);
        if let Some(time) = read_time(&path)? {
            return Ok(time);
        }
        let mut file = tempfile::NamedTempFile::new_in(lease.folder())
            .map_err(StoreError::io("make a file in", lease.folder()))?;
        let time = now();
        file.write_all(with_sum(&time).as_bytes()).map_err(StoreError::io("write", file.path()))?;
        make_parent(&path)?;
        lease.will_make(&self.relative(&path))?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(time),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                // Another build was first, and its time is the one; a damaged file is replaced.
                if let Some(time) = read_time(&path)? {
                    return Ok(time);
                }
                error.file.persist(&path).map_err(|error| StoreError::io("rename into place", &path)(error.error))?;
                Ok(time)
            }
            Err(error) => Err(StoreError::io("rename into place", &path)(error.error)),
        }
    }

    /// The form of a content under an epoch, as the writer of that version makes it.
    pub fn epoch_form(&self, content: &ContentDigest, epoch: i64, writer: u32) -> Result<Option<DiffId>, StoreError> {
        let bytes = read_if_there(&self.cache_path("epochs", &epoch_name(content, epoch, writer)))?;
        let form = bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.parse::<DiffId>().ok());
        Ok(form.filter(|form| self.has_bytes(form)))
    }

    /// Remembers the form of a content under an epoch.
    pub fn remember_epoch_form(
        &self,
        lease: &Lease,
        content: &ContentDigest,
        epoch: i64,
        writer: u32,
        form: &DiffId,
    ) -> Result<(), StoreError> {
        self.put_cache(lease, "epochs", &epoch_name(content, epoch, writer), form.to_string().as_bytes())
    }

    /// The record that the step at this place (of a Dockerfile, a stage) had last.
    pub fn last_record(&self, place: &Digest) -> Result<Option<CacheRecord>, StoreError> {
        let bytes = read_if_there(&self.cache_path("last", place))?;
        Ok(bytes.and_then(|bytes| CacheRecord::parse(&bytes).ok()))
    }

    /// Remembers the record that the step at this place has now.
    pub fn remember_last(&self, lease: &Lease, place: &Digest, record: &CacheRecord) -> Result<(), StoreError> {
        self.put_cache(lease, "last", place, &record.to_bytes())
    }

    pub(super) fn put_cache(&self, lease: &Lease, kind: &str, name: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.cache_path(kind, name);
        let fresh = lease.fresh_path();
        fs::write(&fresh, bytes).map_err(StoreError::io("write", &fresh))?;
        lease.will_make(&self.relative(&path))?;
        match fs::rename(&fresh, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_parent(&path)?;
                fs::rename(&fresh, &path)
            }
            other => other,
        }
        .map_err(StoreError::io("rename into place", &path))
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(self.root()).unwrap_or(path).to_string_lossy().into_owned()
    }
}

fn make_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(StoreError::io("make", parent))
}

/// A time and its checksum: it goes into image ids, so that a wrong digit would be another image.
fn with_sum(time: &str) -> String {
    format!("{time} {:08x}", libdeflater::crc32(time.as_bytes()))
}

/// A time that was written whole and is what it was; `None` for anything else.
fn read_time(path: &Path) -> Result<Option<String>, StoreError> {
    let text = read_if_there(path)?.and_then(|bytes| String::from_utf8(bytes).ok());
    let time = text.as_deref().and_then(|text| Some((text, text.split_once(' ')?.0)));
    Ok(time.filter(|(text, time)| with_sum(time) == *text).map(|(_, time)| time.to_owned()))
}

fn epoch_name(content: &ContentDigest, epoch: i64, writer: u32) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field(content.0.as_bytes());
    hasher.field(&epoch.to_le_bytes());
    hasher.field(&writer.to_le_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(name: &str) -> StackId {
        StackId(Digest::of(name.as_bytes()))
    }

    #[test]
    fn the_first_time_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let first = "2026-01-01T00:00:00Z";
        assert_eq!(store.first_reached(&lease, &stack("a"), || first.into()).unwrap(), first);
        assert_eq!(store.first_reached(&lease, &stack("a"), || "2027-01-01T00:00:00Z".into()).unwrap(), first);
        let path = store.cache_path("stacks", &stack("a").0);
        let other_digit = fs::read_to_string(&path).unwrap().replace("2026", "2027");
        for (damaged, healed) in [("", "2028-01-01T00:00:00Z"), (&other_digit, "2029-01-01T00:00:00Z")] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(store.first_reached(&lease, &stack("a"), || healed.into()).unwrap(), healed);
            assert_eq!(store.first_reached(&lease, &stack("a"), || first.into()).unwrap(), healed);
        }
    }

    #[test]
    fn damaged_records_are_named_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let key = CacheKey(Digest::of(b"key"));
        assert_eq!(store.lookup(&lease, &key).unwrap(), Found::Absent);
        let record = CacheRecord {
            content: ContentDigest(Digest::of(b"c")),
            layer: DiffId(Digest::of(b"l")),
            op: Digest::of(b"o"),
            below: stack("b"),
            source: None,
            landing: None,
            parts: std::collections::BTreeMap::new(),
        };
        store.record(&lease, &key, &record).unwrap();
        assert_eq!(store.lookup(&lease, &key).unwrap(), Found::LayerGone);
        fs::create_dir_all(store.path("layers").join(record.layer.0.hex())).unwrap();
        fs::write(store.path("layers").join(record.layer.0.hex()).join("index"), "").unwrap();
        assert_eq!(store.lookup(&lease, &key).unwrap(), Found::Hit(record.clone()));
        fs::write(store.cache_path("records", &key.0), "rbuild record").unwrap();
        assert!(matches!(store.lookup(&lease, &key).unwrap(), Found::Damaged(_)));
        store.record(&lease, &key, &record).unwrap();
        assert!(matches!(store.lookup(&lease, &key).unwrap(), Found::Hit(_)));
    }
}
