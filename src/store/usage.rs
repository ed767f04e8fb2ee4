//! How much of the disk a store takes.
//!
//! In: a store. Out: bytes, as `du -s -B1` counts them: allocated blocks, folders too, a file with several names once. What
//! always holds: links are not followed, and what disappears while it is counted is left out.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ignore::{WalkBuilder, WalkState};

use super::layout::Store;

/// Bytes on the disk, by what they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of the store.
    pub total: u64,
    /// By the first folder below the root: `cache`, `layers`…; files of the root under "".
    pub folders: BTreeMap<String, u64>,
    /// What of that the folders themselves take, without what is in them.
    pub bare: BTreeMap<String, u64>,
    /// By entry of `layers`, `trees`, `mounts` and `blobs/sha256`: `layers/<hex>`.
    pub entries: BTreeMap<String, u64>,
    /// Paths that could not be looked at.
    pub unseen: usize,
}

impl Store {
    /// Counts. Reads trees: an ordinary user must be inside the user namespace, or some is left out.
    pub fn usage(&self) -> Usage {
        measure(self.root())
    }
}

/// Counts what is below `root`, and `root` itself.
pub fn measure(root: &Path) -> Usage {
    let total = Mutex::new((Usage::default(), HashSet::new()));
    WalkBuilder::new(root).standard_filters(false).follow_links(false).build_parallel().run(|| {
        let mut own = Own { found: Vec::new(), unseen: 0, total: &total };
        Box::new(move |entry| {
            match entry {
                Ok(entry) => match entry.path().symlink_metadata() {
                    Ok(metadata) => {
                        let several =
                            (metadata.nlink() > 1 && !metadata.is_dir()).then(|| (metadata.dev(), metadata.ino()));
                        let name = entry.path().strip_prefix(root).unwrap_or(entry.path()).to_owned();
                        own.found.push((name, metadata.blocks() * 512, metadata.is_dir(), several));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(_) => own.unseen += 1,
                },
                Err(error) if error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {}
                Err(_) => own.unseen += 1,
            }
            if own.found.len() >= 1024 {
                own.hand_over();
            }
            WalkState::Continue
        })
    });
    total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).0
}

/// A path, its bytes, whether it is a folder, and the file it is one of several names of.
type Found = (PathBuf, u64, bool, Option<(u64, u64)>);

/// What one thread found; its destructor hands over the rest.
struct Own<'a> {
    found: Vec<Found>,
    unseen: usize,
    total: &'a Mutex<(Usage, HashSet<(u64, u64)>)>,
}

impl Own<'_> {
    fn hand_over(&mut self) {
        let mut total = self.total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (usage, seen) = &mut *total;
        usage.unseen += std::mem::take(&mut self.unseen);
        for (path, bytes, is_dir, several) in self.found.drain(..) {
            if several.is_some_and(|file| !seen.insert(file)) {
                continue;
            }
            usage.total += bytes;
            let mut parts = path.iter().map(|part| part.to_string_lossy().into_owned());
            let folder = parts.next().unwrap_or_default();
            let rest: Vec<String> = parts.take(2).collect();
            let entry = match (folder.as_str(), rest.as_slice()) {
                ("layers" | "trees" | "mounts", [name, ..]) => Some(format!("{folder}/{name}")),
                ("blobs", [kind, name]) => Some(format!("blobs/{kind}/{name}")),
                _ => None,
            };
            if let Some(entry) = entry {
                *usage.entries.entry(entry).or_default() += bytes;
            }
            if is_dir {
                *usage.bare.entry(folder.clone()).or_default() += bytes;
            }
            let is_file_of_root = rest.is_empty() && bytes > 0 && folder.contains('.');
            *usage.folders.entry(if is_file_of_root { String::new() } else { folder }).or_default() += bytes;
        }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_total_is_that_of_du() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        for number in 0..300 {
            let place = store.path(&format!("layers/{number:064}/tree/.hidden/{number}"));
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("file"), vec![1; number * 100]).unwrap();
            fs::hard_link(place.join("file"), place.join("same")).unwrap();
            std::os::unix::fs::symlink("/", place.join("link")).unwrap();
        }
        // A hole takes no room, and an ignore file ignores nothing here.
        fs::File::create(store.path("blobs/sha256/hole")).unwrap().set_len(1 << 30).unwrap();
        fs::write(store.path("layers/.gitignore"), "*\n").unwrap();
        let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(store.root()).output().unwrap();
        let du: u64 = String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let usage = store.usage();
        assert_eq!((usage.total, usage.unseen), (du, 0));
        assert_eq!(usage.folders.values().sum::<u64>(), du);
        assert!(usage.entries.len() > 300, "{}", usage.entries.len());
        assert_eq!(measure(&store.path("nosuch")).total, 0);
    }
}
