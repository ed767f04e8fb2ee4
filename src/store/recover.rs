//! After a power cut, or when a reader found damage: what lies in the store may not be what its name says.
//!
//! In: the paths that dead leases of another boot list as made, and those that readers noted. Out: the store without those
//! that do not hold what their names say. What always holds: nothing is removed that is right; an index that can be made
//! again from the layer's bytes is; an image whose layer had to go says so when it is used, and the next build makes the
//! layer again.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::layers::KnownBlob;
use super::layout::{Store, StoreError, open_if_there};
use super::lease::Lease;
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
    /// Checks `suspects` (paths relative to the root) and discards those that are damaged. The paths discarded.
    /// Reads trees: an ordinary user must be inside the user namespace.
    pub fn recover(&self, lease: &Lease, suspects: &[String]) -> Result<Vec<String>, StoreError> {
        let mut discarded = Vec::new();
        for suspect in suspects {
            // Each form of a layer is used by itself: a right tar says nothing of the tree beside it.
            let layer = suspect.strip_prefix("layers/").and_then(Digest::from_hex).map(DiffId);
            let forms = if layer.is_some() { &["tar", "tree", "blobs", "epoch", ""][..] } else { &[""] };
            if let Some(layer) = layer {
                self.restore_index(&layer)?;
            }
            for form in forms {
                let suspect = if form.is_empty() { suspect.clone() } else { format!("{suspect}/{form}") };
                let path = self.path(&suspect);
                let looked_at = identity(&path);
                if looked_at.is_some() && !self.is_whole(lease, &suspect, &path)? {
                    let _exclusive = self.gc_lock(true)?;
                    // Another command may have found the same, and made it anew.
                    if identity(&path) == looked_at {
                        self.discard(&path)?;
                        discarded.push(suspect);
                    }
                }
            }
        }
        self.empty_trash()?;
        Ok(discarded)
    }

    /// Whether [`Store::recover`] reads or removes trees.
    pub fn recovering_takes_ids(&self, suspects: &[String]) -> bool {
        suspects.iter().any(|suspect| match suspect.split_once('/') {
            Some(("trees", _)) => true,
            Some(("layers", name)) => {
                // What cannot be told is taken to be needed.
                let takes_ids = |layer| self.needs_tree_ids(&DiffId(layer)).unwrap_or(true);
                self.path(suspect).join("tree").exists() || Digest::from_hex(name).is_some_and(takes_ids)
            }
            _ => false,
        })
    }

    /// Makes the index of a layer again, where it is damaged or lost, from the bytes of the layer.
    fn restore_index(&self, layer: &DiffId) -> Result<(), StoreError> {
        match self.layer_index(layer) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(StoreError::Damaged { .. }) => {}
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

    fn is_whole(&self, lease: &Lease, suspect: &str, path: &Path) -> Result<bool, StoreError> {
        let mut parts = suspect.split('/');
        let kind = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let form = parts.next();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_hex);
        Ok(match (kind, name) {
            (("layers", layer), _) if form == Some("tar") => Some(digest_of(path)?) == Digest::from_hex(layer),
            (("layers", layer), _) if form == Some("tree") => {
                let index = Digest::from_hex(layer).map(|layer| self.layer_index(&DiffId(layer)));
                match index {
                    Some(Ok(Some(index))) => bytes_or_entries(&index, path)?.is_none(),
                    None | Some(Ok(None) | Err(StoreError::Damaged { .. })) => false,
                    Some(Err(error)) => return Err(error),
                }
            }
            (("layers", _), _) if form == Some("blobs") => parses::<Vec<KnownBlob>>(path)?,
            (("layers", layer), _) if form == Some("epoch") => {
                Digest::from_hex(layer).is_some_and(|layer| self.source_of_epoch(&DiffId(layer)).is_ok())
            }
            (("blobs", _), Some(name)) => digest_of(path)? == name,
            (("layers", _), Some(name)) => {
                layer_content(self, lease, &DiffId(name))?.is_ok() && self.is_index_whole(&DiffId(name))?
            }
            // A tree on parents is not named after what it holds, and is made again from its layer.
            (("trees", _), _) => false,
            (("cache", "records" | "last"), _) => read(path)?.is_some_and(|bytes| CacheRecord::parse(&bytes).is_ok()),
            (("cache", "contents"), _) => parses::<serde_json::Value>(path)?,
            // Readers check these two as they read.
            (("cache", _), _) => read(path)?.is_some_and(|bytes| !bytes.is_empty()),
            _ => false,
        })
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

/// What is wrong with the files of a tree that is to hold what an index says.
pub(super) fn tree_problem(index: &LayerIndex, tree: &Path) -> Result<Option<String>, StoreError> {
    let root = RootDir::open(tree).map_err(StoreError::io("open", tree))?;
    for (position, entry) in index.entries().enumerate() {
        let KindRef::File { sha256, .. } = entry.kind else { continue };
        let sum = data::from_tree(index, position, &root).and_then(|file| {
            let mut reader = HashingReader::new(file);
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
            Err(error) => return Err(StoreError::io("read a file of", tree)(error)),
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

/// Whether a file holds such a value.
fn parses<T: serde::de::DeserializeOwned>(path: &Path) -> Result<bool, StoreError> {
    Ok(read(path)?.is_some_and(|bytes| serde_json::from_slice::<T>(&bytes).is_ok()))
}

/// Which file or folder is at a path, if there is one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    super::layout::read_if_there(path)
}

fn digest_of(path: &Path) -> Result<Digest, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut reader = HashingReader::new(file);
    io::copy(&mut reader, &mut io::sink()).map_err(StoreError::io("read", path))?;
    Ok(reader.finish().1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample;
    use crate::store::layers::Form;
    use std::fs;

    #[test]
    fn only_what_is_damaged_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let right = store.put_blob(&lease, b"right").unwrap();
        let wrong = store.put_blob(&lease, b"wrong").unwrap();
        fs::write(store.blob_path(&wrong), "").unwrap();
        fs::create_dir_all(store.path("cache/records/ab")).unwrap();
        fs::write(store.path("cache/records/ab/cd"), "rbuild rec").unwrap();
        let name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let suspects = [name(&right), name(&wrong), "cache/records/ab/cd".to_owned(), "layers/gone".to_owned()];
        assert_eq!(store.recover(&lease, &suspects).unwrap(), [name(&wrong), "cache/records/ab/cd".to_owned()]);
        assert!(store.has_blob(&right) && !store.has_blob(&wrong));
        assert_eq!(fs::read_dir(store.path("trash")).unwrap().count(), 0);
    }

    /// A layer of one file, as tar and as tree; its diffID and its folder in the store.
    fn layer(store: &Store, lease: &Lease) -> (DiffId, String) {
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
            let suspects = [name.clone()];
            assert!(store.recovering_takes_ids(&suspects));
            assert_eq!(store.recover(&lease, &suspects).unwrap(), expected, "{broken:?}");
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
        assert!(!store.recovering_takes_ids(&[name, "blobs/sha256/x".to_owned()]));
        assert!(store.recovering_takes_ids(&["trees/x".to_owned()]));
    }
}
