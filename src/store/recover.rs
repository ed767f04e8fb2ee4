//! After a power cut, or when a reader found damage: what lies in the store may not be what its name says.
//!
//! In: what [`Store::sweep`] found suspect. Out: the store without those that do not hold what their names say. What always
//! holds: nothing is removed that is right, or that was put into its place since the sweep; a tree that a running command has
//! mounted stays until that has ended; an index that can be made again from the layer's bytes is; an image whose layer had to go
//! says so when it is used, and the next build makes the layer again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use super::layers::KnownBlob;
use super::layout::{Store, StoreError, open_if_there, read_if_there};
use super::lease::Lease;
use super::origins::Origin as Repository;
use super::suspect::Suspect;
use super::sweep::{Swept, identity, part_of};
use super::verify::{bytes_or_entries, layer_content};
use crate::cache::record::CacheRecord;
use crate::digest::{DiffId, Digest, HashingReader};
use crate::layer::entry_ref::KindRef;
use crate::layer::index::{LayerIndex, Origin};
use crate::layer::scan::scan;
use crate::layer::write::{Body, LayerWriter};
use crate::layer::{compress, data};
use crate::sys::root_dir::RootDir;

impl Store {
    /// Checks the suspects, discards those that are damaged, and forgets the lists in which they stand. The paths discarded,
    /// relative to the root. Reads trees: an ordinary user must be inside the user namespace.
    pub fn recover(&self, lease: &Lease, swept: &Swept) -> Result<Vec<String>, StoreError> {
        let store = self.without_notes();
        let (mut discarded, mut left) = (Vec::new(), BTreeSet::new());
        for suspect in &swept.suspects {
            let place = suspect.what.to_string();
            if let Suspect::Layer(layer) = &suspect.what {
                match store.restore_index(lease, layer) {
                    Err(error) if lease.blames_thing(&error) => {}
                    other => other?,
                }
            }
            for (part, seen) in &suspect.parts {
                let path = part_of(&self.path(&place), part);
                let found = store.suspected(suspect.what.clone()).parts;
                if identity(&path).as_ref() != Some(seen) || store.is_whole(lease, &suspect.what, part, &path)? {
                    continue;
                }
                let _exclusive = self.gc_lock(true)?;
                // Another command may have found the same, and made it anew.
                let is_same = if part.is_empty() {
                    store.suspected(suspect.what.clone()).parts == found
                } else {
                    identity(&path).as_ref() == Some(seen)
                };
                let has_tree =
                    matches!((&suspect.what, *part), (Suspect::Tree(_), _) | (Suspect::Layer(_), "tree" | ""));
                if is_same && has_tree && self.is_mounted(&suspect.what, Some(lease))? {
                    lease.shuns(suspect.what.clone());
                    left.insert(suspect.what.clone());
                } else if is_same {
                    self.discard(&path)?;
                    discarded.push(if part.is_empty() { place.clone() } else { format!("{place}/{part}") });
                }
            }
        }
        self.forget(swept, &left)?;
        self.empty_trash()?;
        Ok(discarded)
    }

    /// Discards the suspects unread, where there is no room for anything but renaming them. The paths discarded.
    pub fn discard_suspects(&self, swept: &Swept) -> Result<Vec<String>, StoreError> {
        let (mut discarded, mut left) = (Vec::new(), BTreeSet::new());
        for suspect in &swept.suspects {
            let place = suspect.what.to_string();
            let path = self.path(&place);
            let _exclusive = self.gc_lock(true)?;
            if !suspect.parts.iter().any(|(part, seen)| part.is_empty() && identity(&path).as_ref() == Some(seen)) {
                continue;
            }
            if self.is_mounted(&suspect.what, None)? {
                left.insert(suspect.what.clone());
            } else {
                self.discard(&path)?;
                discarded.push(place);
            }
        }
        // Those first: the note of what is left takes room.
        self.empty_trash()?;
        self.forget(swept, &left)?;
        self.empty_trash()?;
        Ok(discarded)
    }

    /// Whether [`Store::recover`] reads or removes trees.
    pub fn recovering_takes_ids(&self, swept: &Swept) -> bool {
        swept.suspects.iter().any(|suspect| match &suspect.what {
            Suspect::Tree(_) => true,
            Suspect::Layer(layer) => {
                // What cannot be told is taken to be needed.
                suspect.parts.iter().any(|(part, _)| *part == "tree") || self.needs_tree_ids(layer).unwrap_or(true)
            }
            Suspect::Blob(_) | Suspect::Origins(_) | Suspect::Cache { .. } => false,
        })
    }

    /// Makes the index of a layer again, where it is damaged or lost, from the bytes of the layer.
    fn restore_index(&self, lease: &Lease, layer: &DiffId) -> Result<(), StoreError> {
        match self.layer_index(layer) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(StoreError::Damaged { .. }) => {}
            Err(error) if lease.blames_thing(&error) => {}
            Err(error) => return Err(error),
        }
        let folder = self.path("layers").join(layer.0.hex());
        let of = |tar: Box<dyn io::Read + Send>| scan(tar).ok().filter(|index| index.diff_id() == *layer);
        let mut found = None;
        if let Some(tar) = open_if_there(&folder.join("tar"))? {
            let copy = tar.try_clone().map_err(StoreError::io("open the tar in", &folder))?;
            found = of(Box::new(io::BufReader::with_capacity(1 << 20, copy)));
            // What was made here says so: other forms of it can be made.
            let made = found.as_ref().and_then(|index| written_again(index, &tar));
            found = made.filter(|index| index.diff_id() == *layer).or(found);
        }
        for blob in self.layer_blobs(layer)?.iter().filter(|blob| self.has_blob(&blob.digest)) {
            if found.is_none() {
                found = compress::decompress(Box::new(self.open_blob(&blob.digest)?)).ok().and_then(of);
            }
        }
        found.map_or(Ok(()), |index| self.replace(&folder.join("index"), index.as_bytes()))
    }

    /// Whether a part of a suspect is what its name says. What cannot be read is not.
    fn is_whole(&self, lease: &Lease, what: &Suspect, part: &str, path: &Path) -> Result<bool, StoreError> {
        let whole = match (what, part) {
            (Suspect::Layer(layer), "tar") => digest_of(lease, path).map(|found| found == layer.0),
            (Suspect::Layer(layer), "tree") => self.is_tree_whole(lease, layer, path),
            (Suspect::Layer(_), "blobs") => parses::<Vec<KnownBlob>>(path),
            (Suspect::Layer(layer), "epoch") => self.source_of_epoch(layer).map(|_| true),
            (Suspect::Layer(layer), _) => self.is_layer_whole(lease, layer),
            (Suspect::Blob(digest), _) => digest_of(lease, path).map(|found| found == *digest),
            // A tree on parents is not named after what it holds, and is made again from its layer.
            (Suspect::Tree(_), _) => Ok(false),
            (Suspect::Origins(_), _) => parses::<Vec<Repository>>(path),
            (Suspect::Cache { kind, .. }, _) => is_cache_file_whole(kind, path),
        };
        match whole {
            Err(StoreError::Damaged { .. } | StoreError::Missing { .. }) => Ok(false),
            Err(error) if lease.blames_thing(&error) => Ok(false),
            other => other,
        }
    }

    fn is_tree_whole(&self, lease: &Lease, layer: &DiffId, tree: &Path) -> Result<bool, StoreError> {
        let Some(index) = self.layer_index(layer)? else { return Ok(false) };
        Ok(bytes_or_entries(lease, &index, tree)?.is_none())
    }

    fn is_layer_whole(&self, lease: &Lease, layer: &DiffId) -> Result<bool, StoreError> {
        Ok(layer_content(self, lease, layer)?.is_ok() && self.is_index_whole(layer)?)
    }

    /// Whether all of a layer's index is that of its tar, not the digests in its first bytes alone.
    fn is_index_whole(&self, layer: &DiffId) -> Result<bool, StoreError> {
        let Some(index) = self.layer_index(layer)? else { return Ok(false) };
        if matches!(index.origin(), Origin::Made { .. }) {
            return self.is_index_of_data(layer, &index);
        }
        let Some(tar) = open_if_there(&self.path("layers").join(layer.0.hex()).join("tar"))? else { return Ok(true) };
        Ok(scan(io::BufReader::with_capacity(1 << 20, tar)).is_ok_and(|found| found.as_bytes() == index.as_bytes()))
    }
}

impl Lease {
    /// Whether an error tells of the thing that is looked at: not of this machine's means, of a wish to end, nor of the
    /// command's own unfinished files.
    pub(super) fn blames_thing(&self, error: &StoreError) -> bool {
        let StoreError::Io { action, path, source } = error else { return false };
        let is_own = action.starts_with("write") || path.starts_with(self.folder());
        !is_own && !self.is_stopped() && !is_of_machine(source)
    }
}

/// Whether an error tells that the machine has not enough of something.
fn is_of_machine(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    error.raw_os_error().is_some_and(|number| lacks.iter().any(|lack| lack.raw_os_error() == number))
}

/// What is wrong with the files of a tree that is to hold what an index says.
pub(super) fn tree_problem(lease: &Lease, index: &LayerIndex, tree: &Path) -> Result<Option<String>, StoreError> {
    let judge = |error: StoreError| match &error {
        StoreError::Io { source, .. } if lease.blames_thing(&error) => Ok(Some(source.to_string())),
        _ => Err(error),
    };
    let root = match RootDir::open(tree).map_err(StoreError::io("open", tree)) {
        Ok(root) => root,
        Err(error) => return judge(error),
    };
    for (position, entry) in index.entries().enumerate() {
        let KindRef::File { sha256, .. } = entry.kind else { continue };
        let sum = data::from_tree(index, position, &root).and_then(|file| {
            let mut reader = HashingReader::new(lease.heeding(file));
            io::copy(&mut reader, &mut io::sink())?;
            Ok(reader.finish().1)
        });
        let name = String::from_utf8_lossy(entry.path);
        match sum {
            Ok(sum) if sum == sha256 => {}
            Ok(_) => return Ok(Some(format!("its file {name} has other bytes than the layer"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(format!("its file {name} is not there")));
            }
            Err(error) => {
                let problem = judge(StoreError::io("read a file of", tree)(error))?;
                return Ok(problem.map(|why| format!("its file {name} cannot be read: {why}")));
            }
        }
    }
    Ok(None)
}

/// The index that rbuild's own writer makes of the entries of a tar.
fn written_again(index: &LayerIndex, tar: &File) -> Option<LayerIndex> {
    let mut writer = LayerWriter::new(io::sink());
    for (position, entry) in index.entries().enumerate() {
        let body = match entry.kind {
            KindRef::File { .. } => Body::Reader(data::from_tar(index, position, tar).ok()?),
            _ => Body::None,
        };
        writer.push(&mut entry.to_entry(), body).ok()?;
    }
    writer.finish().ok().map(|(_, index)| index)
}

/// Whether a file of the cache is what such files are.
fn is_cache_file_whole(kind: &str, path: &Path) -> Result<bool, StoreError> {
    let bytes = read_if_there(path)?.unwrap_or_default();
    Ok(match kind {
        "records" | "last" => CacheRecord::parse(&bytes).is_ok(),
        "contents" => serde_json::from_slice::<serde_json::Value>(&bytes).is_ok(),
        // Readers check the others as they read.
        _ => bytes.iter().any(|byte| *byte != 0),
    })
}

/// Whether a file holds such a value.
fn parses<T: serde::de::DeserializeOwned>(path: &Path) -> Result<bool, StoreError> {
    Ok(read_if_there(path)?.is_some_and(|bytes| serde_json::from_slice::<T>(&bytes).is_ok()))
}

fn digest_of(lease: &Lease, path: &Path) -> Result<Digest, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut reader = HashingReader::new(lease.heeding(file));
    io::copy(&mut reader, &mut io::sink()).map_err(StoreError::io("read", path))?;
    Ok(reader.finish().1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ChainId;
    use crate::layer::sample;
    use crate::store::layers::Form;
    use std::fs;

    fn swept(store: &Store, suspects: &[&str]) -> Swept {
        let suspects = suspects.iter().map(|suspect| store.suspected(Suspect::parse(suspect).unwrap()));
        Swept { suspects: suspects.collect(), ..Swept::default() }
    }

    #[test]
    fn only_what_is_damaged_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let right = store.put_blob(&lease, b"right").unwrap();
        let wrong = store.put_blob(&lease, b"wrong").unwrap();
        fs::write(store.blob_path(&wrong), "").unwrap();
        let record = format!("cache/records/ab/ab{}", "0".repeat(62));
        fs::create_dir_all(store.path("cache/records/ab")).unwrap();
        fs::write(store.path(&record), "rbuild rec").unwrap();
        let name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let gone = format!("layers/{}", wrong.hex());
        let swept = swept(&store, &[&name(&right), &name(&wrong), &record, &gone]);
        assert_eq!(store.recover(&lease, &swept).unwrap(), [name(&wrong), record]);
        assert!(store.has_blob(&right) && !store.has_blob(&wrong));
        assert_eq!(fs::read_dir(store.path("trash")).unwrap().count(), 0);
    }

    /// A layer of one file, as tar and as tree; its diffID and its folder in the store.
    fn layer(store: &Store, lease: &Lease) -> (DiffId, String) {
        use std::os::unix::fs::MetadataExt as _;
        let tree = lease.fresh_path();
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("f"), "data").unwrap();
        File::open(tree.join("f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let made = fs::metadata(tree.join("f")).unwrap();
        let entry = format!("file f {:o} {} {} data", made.mode() & 0o7777, made.uid(), made.gid());
        let mut writer = LayerWriter::new(Vec::new());
        let body = Body::Reader(Box::new(&b"data"[..]));
        writer.push(&mut sample::entry(&entry), body).unwrap();
        let (tar, index) = writer.finish().unwrap();
        let tar_path = lease.fresh_path();
        fs::write(&tar_path, &tar).unwrap();
        store.put_layer(lease, &index, Form::Tar(tar_path)).unwrap();
        store.put_layer(lease, &index, Form::Tree(tree)).unwrap();
        (index.diff_id(), format!("layers/{}", index.diff_id().0.hex()))
    }

    #[test]
    fn each_form_of_a_layer_is_checked_by_itself() {
        for (broken, gone, stays) in [
            (vec![], vec![], vec!["tar", "tree"]),
            (vec!["tree/f"], vec!["/tree"], vec!["tar"]),
            (vec!["tar"], vec!["/tar"], vec!["tree"]),
            (vec!["tar", "tree/f"], vec!["/tar", "/tree", ""], vec![]),
            (vec!["index"], vec![], vec!["tar", "tree"]),
            (vec!["index", "tree/f"], vec!["/tree"], vec!["tar"]),
            (vec!["index", "tar"], vec!["/tar", "/tree", ""], vec![]),
            (vec!["blobs"], vec!["/blobs"], vec!["tar", "tree"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let lease = store.lease("boot").unwrap();
            let (id, name) = layer(&store, &lease);
            for file in &broken {
                fs::write(store.path(&name).join(file), "").unwrap();
            }
            let expected: Vec<String> = gone.iter().map(|form| format!("{name}{form}")).collect();
            let swept = swept(&store, &[&name]);
            assert!(store.recovering_takes_ids(&swept));
            assert_eq!(store.recover(&lease, &swept).unwrap(), expected, "{broken:?}");
            assert_eq!(store.suspects().unwrap(), [""; 0], "{broken:?}: what is dealt with is not noted");
            let left = ["tar", "tree"].into_iter().filter(|form| store.path(&name).join(form).exists());
            assert_eq!(left.collect::<Vec<_>>(), stays, "{broken:?}");
            assert_eq!(store.has_layer(&id), !stays.is_empty());
            if let Some(index) = store.layer_index(&id).unwrap() {
                assert!(matches!(index.origin(), Origin::Made { .. }), "{broken:?}: it was made here");
            }
        }
    }

    #[test]
    fn ids_are_asked_for_only_where_there_are_trees() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let (_, name) = layer(&store, &lease);
        fs::remove_dir_all(store.path(&name).join("tree")).unwrap();
        let hex = Digest::of(b"x").hex();
        assert!(!store.recovering_takes_ids(&swept(&store, &[&name, &format!("blobs/sha256/{hex}")])));
        assert!(store.recovering_takes_ids(&swept(&store, &[&format!("trees/{hex}")])));
    }

    /// A tree of a layer on its parents, with one file.
    fn chain_tree(store: &Store, lease: &Lease) -> (ChainId, String) {
        let (chain, tree) = (ChainId(Digest::of(b"chain")), lease.fresh_path());
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("f"), "data").unwrap();
        store.put_chain_tree(lease, &chain, &tree).unwrap();
        (chain, format!("trees/{}", chain.0.hex()))
    }

    #[test]
    fn a_tree_that_a_running_command_has_mounted_stays_until_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (lease, user) = (store.lease("boot").unwrap(), store.lease("boot").unwrap());
        let (chain, tree) = chain_tree(&store, &lease);
        let (id, name) = layer(&store, &lease);
        fs::remove_file(store.path(&name).join("tar")).unwrap();
        fs::write(store.path(&name).join("tree/f"), "DATA").unwrap();
        assert!(user.mounts_chain(&store, &chain).unwrap().is_some());
        assert!(user.mounts_layer(&store, &id).unwrap().is_some());
        assert_eq!(store.recover(&lease, &swept(&store, &[&tree, &name])).unwrap(), [""; 0]);
        assert_eq!(store.discard_suspects(&swept(&store, &[&tree, &name])).unwrap(), [""; 0]);
        // Its user goes on; whoever found it damaged does not begin with it.
        assert!(user.mounts_chain(&store, &chain).unwrap().is_some());
        let error = lease.mounts_chain(&store, &chain).unwrap_err().to_string();
        assert!(error.contains("is damaged: another build works with it"), "{error}");
        assert!(lease.mounts_layer(&store, &id).is_err());
        drop((user, lease));
        let next = store.sweep("boot").unwrap();
        let lease = store.lease("boot").unwrap();
        assert_eq!(store.recover(&lease, &next).unwrap(), [format!("{name}/tree"), name, tree], "it was noted again");
        assert_eq!(lease.mounts_chain(&store, &chain).unwrap(), None);
    }

    #[test]
    fn what_another_command_made_since_the_sweep_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let (_, tree) = chain_tree(&store, &lease);
        let (slow, quick) = (swept(&store, &[&tree]), swept(&store, &[&tree]));
        assert_eq!(store.recover(&lease, &quick).unwrap(), std::slice::from_ref(&tree));
        chain_tree(&store, &lease);
        assert_eq!(store.recover(&lease, &slow).unwrap(), [""; 0]);
        assert!(store.path(&tree).join("tree/f").exists());
    }

    #[test]
    fn what_cannot_be_read_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let (_, name) = layer(&store, &lease);
        let hex = Digest::of(b"x").hex();
        let fault = |path: &Path| {
            let _ = fs::remove_file(path);
            std::os::unix::fs::symlink("/proc/self/mem", path).unwrap();
        };
        let names = [format!("blobs/sha256/{hex}"), format!("cache/files/{hex}"), format!("origins/{hex}")];
        fs::create_dir(store.path("origins")).unwrap();
        names.iter().for_each(|name| fault(&store.path(name)));
        let folders = [format!("cache/records/{}/{hex}", &hex[..2]), format!("cache/bases/{hex}")];
        folders.iter().for_each(|name| fs::create_dir_all(store.path(name)).unwrap());
        for part in ["tar", "blobs", "epoch", "index"] {
            fault(&store.path(&name).join(part));
        }
        fs::remove_dir_all(store.path(&name).join("tree")).unwrap();
        fs::write(store.path(&name).join("tree"), "no folder").unwrap();
        let no_layer = format!("layers/{hex}");
        fs::write(store.path(&no_layer), "no folder").unwrap();
        let all: Vec<&str> = names.iter().chain(&folders).chain([&no_layer, &name]).map(String::as_str).collect();
        let gone = store.recover(&lease, &swept(&store, &all)).unwrap();
        assert_eq!(gone.len(), all.len() + 4, "each, and four forms of the layer: {gone:?}");
        assert!(all.iter().all(|name| store.path(name).symlink_metadata().is_err()));
        // What is right beside it stays, and the index is made again.
        let (id, name) = layer(&store, &lease);
        fault(&store.path(&name).join("index"));
        assert_eq!(store.recover(&lease, &swept(&store, &[&name])).unwrap(), [""; 0]);
        assert!(store.layer_index(&id).unwrap().is_some() && store.stored_tar(&id).unwrap().is_some());
    }

    #[test]
    fn a_folder_of_a_tree_that_is_none_is_damage() {
        let mut writer = LayerWriter::new(Vec::new());
        writer.push(&mut sample::entry("dir d 0755 0 0"), Body::None).unwrap();
        let body = Body::Reader(Box::new(&b"data"[..]));
        writer.push(&mut sample::entry("file d/f 0644 0 0 data"), body).unwrap();
        let (_, index) = writer.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("d"), "").unwrap();
        let problem = tree_problem(&lease, &index, &tree).unwrap().unwrap();
        assert!(problem.contains("d/f"), "{problem}");
    }

    #[test]
    fn who_shall_end_finds_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut lease = store.lease("boot").unwrap();
        let cancel = crate::sys::cancel::Cancel::new().unwrap();
        lease.heed(&cancel);
        let (_, name) = layer(&store, &lease);
        cancel.cancel();
        assert!(store.recover(&lease, &swept(&store, &[&name])).is_err());
        assert!(store.path(&name).join("tar").exists() && store.path(&name).join("tree/f").exists());
    }

    #[test]
    fn on_a_full_disk_suspects_go_unread() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let (_, name) = layer(&store, &lease);
        let other = store.put_blob(&lease, b"not suspect").unwrap();
        assert_eq!(store.discard_suspects(&swept(&store, &[&name])).unwrap(), std::slice::from_ref(&name));
        assert!(!store.path(&name).exists() && store.has_blob(&other));
    }
}
