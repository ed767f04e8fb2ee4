//! Layers by diffID, in whichever forms somebody has needed.
//!
//! In: a [`LayerIndex`] and one form of the layer. Out: the index, and any other form on demand. What always holds: a
//! layer's folder appears with its index and at least one form from which the exact tar comes; forms are added by
//! rename, and whoever loses the race has succeeded.
//!
//! Forms: `tar`, the uncompressed bytes; `tree/`, unpacked for overlay mounts; `blobs`, descriptors of compressed
//! blobs in the content store; `epoch`, the name of the layer that differs from this one in its times alone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::{Store, StoreError, open_if_there, read_if_there};
use super::lease::Lease;
use super::verify::is_damage;
use crate::digest::{ChainId, DiffId, Digest, HashingWriter};
use crate::layer::index::{HEADER, LayerIndex, Summary};
use crate::layer::write::{WriteError, write_form};
use crate::layer::{compress, data};
use crate::sys::root_dir::RootDir;

/// A form in which a new layer comes.
#[derive(Debug)]
pub enum Form {
    /// The uncompressed tar: a file on the store's file system, which is taken.
    Tar(PathBuf),
    /// A tree in overlay form: a folder on the store's file system, which is taken.
    Tree(PathBuf),
    /// The layer `of`, with every time replaced by `epoch`.
    Epoch {
        /// The layer with true times; it is in the store.
        of: DiffId,
        /// Seconds since 1970.
        epoch: i64,
    },
    /// A compressed blob that is in the content store.
    Blob(KnownBlob),
}

/// A blob that holds a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownBlob {
    /// Media type under which it is listed.
    pub media_type: String,
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Size of the compressed bytes.
    pub size: u64,
    /// What compressed it (`gzip-4 …`); `None` for blobs that came from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EpochOf {
    of: DiffId,
    epoch: i64,
}

/// Where the data of a layer's files are read from.
pub struct LayerData {
    store: Store,
    /// The layer's.
    folder: PathBuf,
    place: Place,
}

enum Place {
    Tree(RootDir),
    /// With its own index: another form of the layer has its data at other offsets.
    Tar {
        tar: File,
        index: LayerIndex,
    },
}

impl Store {
    fn layer_path(&self, layer: &DiffId) -> PathBuf {
        self.path("layers").join(layer.0.hex())
    }

    /// Whether the layer is here.
    pub fn has_layer(&self, layer: &DiffId) -> bool {
        self.layer_path(layer).join("index").exists()
    }

    /// Whether the layer is here with something that its bytes come from: a form under an epoch is no more than headers,
    /// and the layer that it is the form of may be gone.
    pub fn has_bytes(&self, layer: &DiffId) -> bool {
        let source = match self.epoch_of(layer) {
            Ok(Some(form)) => self.layer_path(layer).join("tar").exists() || self.has_layer(&form.of),
            Ok(None) => true,
            Err(_) => false,
        };
        source && self.has_layer(layer)
    }

    /// The layer's index; `None` where the layer is not here.
    pub fn layer_index(&self, layer: &DiffId) -> Result<Option<LayerIndex>, StoreError> {
        let path = self.layer_path(layer).join("index");
        let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
        let index = LayerIndex::from_bytes(bytes).map_err(|error| self.damaged(&path, error.to_string()))?;
        if index.diff_id() != *layer {
            return Err(self.damaged(&path, format!("it is the index of {}", index.diff_id())));
        }
        Ok(Some(index))
    }

    /// What the layer's index says of the layer as a whole, without reading all of it.
    pub fn layer_summary(&self, layer: &DiffId) -> Result<Summary, StoreError> {
        let path = self.layer_path(layer).join("index");
        let mut file = open_if_there(&path)?.ok_or_else(|| self.missing(format!("the layer {layer}")))?;
        let mut header = [0; HEADER];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged(&path, "it is cut short"));
            }
            other => other.map_err(StoreError::io("read", &path))?,
        }
        match Summary::parse(&header) {
            Ok(summary) if summary.diff_id == *layer => Ok(summary),
            Ok(summary) => Err(self.damaged(&path, format!("it is the index of {}", summary.diff_id))),
            Err(error) => Err(self.damaged(&path, error.to_string())),
        }
    }

    /// The layer's tree, where it has one.
    pub fn layer_tree(&self, layer: &DiffId) -> Option<PathBuf> {
        let tree = self.layer_path(layer).join("tree");
        tree.exists().then_some(tree)
    }

    /// The tree of a layer that is no tree by itself, on the parents that `chain` names.
    pub fn chain_tree(&self, chain: &ChainId) -> Option<PathBuf> {
        let tree = self.path("trees").join(chain.0.hex()).join("tree");
        tree.exists().then_some(tree)
    }

    /// Puts such a tree in: a folder on the store's file system, which is taken.
    pub fn put_chain_tree(&self, lease: &Lease, chain: &ChainId, tree: &Path) -> Result<(), StoreError> {
        let name = format!("trees/{}", chain.0.hex());
        let place = self.path(&name);
        let folder = lease.fresh_path();
        fs::create_dir(&folder).map_err(StoreError::io("make", &folder))?;
        take(tree, &folder.join("tree"))?;
        let _shared = lease.shared()?;
        lease.will_make(&name)?;
        match fs::rename(&folder, &place) {
            Err(_) if place.join("tree").exists() => Ok(()),
            other => other.map_err(StoreError::io("rename into place", &place)),
        }
    }

    /// Puts a layer in, or adds a form to one that is here.
    pub fn put_layer(&self, lease: &Lease, index: &LayerIndex, form: Form) -> Result<(), StoreError> {
        let name = format!("layers/{}", index.diff_id().0.hex());
        let place = self.path(&name);
        let _shared = lease.shared()?;
        if let (true, Form::Tree(tree)) = (self.has_layer(&index.diff_id()), &form) {
            // The usual case of a form that comes later; the index need not be written again for it.
            lease.will_make(&name)?;
            let target = place.join("tree");
            return match fs::rename(tree, &target) {
                Err(_) if target.exists() => Ok(()),
                other => other.map_err(StoreError::io("rename into place", &target)),
            };
        }
        let folder = lease.fresh_path();
        fs::create_dir(&folder).map_err(StoreError::io("make", &folder))?;
        let index_path = folder.join("index");
        fs::write(&index_path, index.as_bytes()).map_err(StoreError::io("write", &index_path))?;
        let form_name = match &form {
            Form::Tar(file) => take(file, &folder.join("tar")).map(|()| "tar")?,
            Form::Tree(tree) => take(tree, &folder.join("tree")).map(|()| "tree")?,
            Form::Epoch { of, epoch } => {
                write_json(&folder.join("epoch"), &EpochOf { of: *of, epoch: *epoch }).map(|()| "epoch")?
            }
            Form::Blob(blob) => write_json(&folder.join("blobs"), &[blob]).map(|()| "blobs")?,
        };
        lease.will_make(&name)?;
        match fs::rename(&folder, &place) {
            Ok(()) => {
                lease.wrote(place.join(form_name));
                return Ok(());
            }
            Err(error) if !place.is_dir() => return Err(StoreError::io("rename into place", &place)(error)),
            Err(_) => {}
        }
        let own_index = place.join("index");
        if !own_index.exists() {
            // Only a disk that lost it leaves a layer without. What else is there was never checked.
            fs::rename(&index_path, &own_index).map_err(StoreError::io("rename into place", &own_index))?;
            drop(self.damaged(&place, "its index was lost"));
        }
        // It is here already: add the form, unless it has that too.
        if let Form::Blob(blob) = form {
            return self.add_layer_blob(&index.diff_id(), blob);
        }
        let target = place.join(form_name);
        let stale = match form_name {
            "epoch" => !self.has_bytes(&index.diff_id()),
            // A power cut may have cut it short.
            "tar" => fs::metadata(&target).is_ok_and(|known| known.len() != index.tar_size()),
            _ => false,
        };
        if target.exists() && !stale {
            return Ok(());
        }
        match fs::rename(folder.join(form_name), &target) {
            Err(_) if target.exists() => Ok(()),
            other => other.map_err(StoreError::io("rename into place", &target)),
        }
    }

    /// The compressed blobs known to hold the layer.
    pub fn layer_blobs(&self, layer: &DiffId) -> Result<Vec<KnownBlob>, StoreError> {
        // One that cannot be read says nothing: what is known from there alone is missed by whoever needs it.
        let path = self.layer_path(layer).join("blobs");
        let Some(bytes) = read_if_there(&path)? else { return Ok(Vec::new()) };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            drop(self.damaged(&path, error.to_string()));
            Vec::new()
        }))
    }

    /// Remembers one more compressed blob of a layer that is here.
    pub fn add_layer_blob(&self, layer: &DiffId, blob: KnownBlob) -> Result<(), StoreError> {
        let mut blobs = self.layer_blobs(layer)?;
        if blobs.contains(&blob) {
            return Ok(());
        }
        blobs.push(blob);
        let path = self.layer_path(layer).join("blobs");
        let bytes = serde_json::to_vec(&blobs).map_err(|error| self.damaged(&path, error.to_string()))?;
        // Beside another form of the layer it is a hint, and what a power cut leaves torn is no list: nobody waits for the
        // disk. Where the layer is in its blobs alone, they must be found.
        let is_hint = ["tar", "tree", "epoch"].iter().any(|form| self.layer_path(layer).join(form).exists());
        if is_hint { self.replace_later(&path, &bytes) } else { self.replace(&path, &bytes) }
    }

    /// Writes the layer's uncompressed tar, made from whichever form is here. Its digest has been checked when this
    /// returns; bytes that were written before a mismatch was found must not be used.
    pub fn write_tar(&self, layer: &DiffId, out: &mut dyn Write) -> Result<(), StoreError> {
        let folder = self.layer_path(layer);
        if let Some(mut tar) = open_if_there(&folder.join("tar"))? {
            return self.copy_checked(&mut tar, out, layer, &folder.join("tar"));
        }
        for blob in self.layer_blobs(layer)? {
            if self.has_blob(&blob.digest) {
                let path = self.blob_path(&blob.digest);
                let tar = compress::decompress(Box::new(self.open_blob(&blob.digest)?));
                let mut tar = tar.map_err(|error| self.unreadable(&path, error))?;
                return self.copy_checked(&mut tar, out, layer, &path);
            }
        }
        let index = self.layer_index(layer)?.ok_or_else(|| self.missing(format!("the layer {layer}")))?;
        let form = self.epoch_of(layer)?;
        let data = match self.layer_data_of(form.as_ref().map_or(layer, |form| &form.of)) {
            Err(StoreError::Missing { .. }) => {
                return Err(self.damaged(&folder, "nothing that the layer's bytes come from is there"));
            }
            other => other?,
        };
        let mut open = |position| Ok(data.open(&index, position)? as Box<dyn Read>);
        match write_form(&index, &mut open, form.map(|form| form.epoch), out) {
            Ok((found, _)) if found == *layer => Ok(()),
            Ok((found, _)) => Err(self.damaged(&folder, format!("its tar has the digest {found}"))),
            Err(WriteError::Out(source) | WriteError::Thread(source)) => {
                Err(StoreError::Io { action: "write the tar of", path: folder, source })
            }
            Err(error) => Err(self.damaged(&folder, error.to_string())),
        }
    }

    fn copy_checked(
        &self,
        from: &mut dyn Read,
        to: &mut dyn Write,
        expected: &DiffId,
        path: &Path,
    ) -> Result<(), StoreError> {
        let mut out = HashingWriter::new(to);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = from.read(&mut buffer).map_err(|error| self.unreadable(path, error))?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).map_err(StoreError::io("write a copy of", path))?;
        }
        let (_, found, _) = out.finish();
        if found != expected.0 {
            return Err(self.damaged(path, format!("its tar has the digest {found}, not {expected}")));
        }
        Ok(())
    }

    /// What an error in reading a layer says: that its bytes are wrong, or that they could not be had.
    fn unreadable(&self, path: &Path, error: io::Error) -> StoreError {
        match StoreError::read("read", path)(error) {
            StoreError::Io { source, .. } if is_damage(&source) => self.damaged(path, source.to_string()),
            error => error,
        }
    }

    /// The layer's uncompressed tar, if this very command made it: its digest is known, and nobody needs to compute it
    /// once more.
    pub fn own_tar(&self, layer: &DiffId, lease: &Lease) -> Option<PathBuf> {
        let tar = self.layer_path(layer).join("tar");
        lease.has_written(&tar).then_some(tar)
    }

    /// The layer's uncompressed tar, where the store has it as a file.
    pub fn stored_tar(&self, layer: &DiffId) -> Result<Option<File>, StoreError> {
        open_if_there(&self.layer_path(layer).join("tar"))
    }

    /// Whether the index of a layer that was made here, together with the data that is here, gives the layer.
    pub(super) fn is_index_of_data(&self, layer: &DiffId, index: &LayerIndex) -> Result<bool, StoreError> {
        let form = self.epoch_of(layer)?;
        let data = match self.layer_data_of(form.as_ref().map_or(layer, |form| &form.of)) {
            // It is kept compressed, and nothing reads it by its index.
            Err(StoreError::Missing { .. }) => return Ok(true),
            other => other?,
        };
        let mut open = |position| Ok(data.open(index, position)? as Box<dyn Read>);
        let made = write_form(index, &mut open, form.map(|form| form.epoch), io::sink());
        Ok(made.is_ok_and(|(made, _)| made == *layer))
    }

    /// The layer's uncompressed tar as a file that can be read at any offset: the one in the store, or a temporary one.
    pub fn tar_file(&self, layer: &DiffId, lease: &Lease) -> Result<File, StoreError> {
        if let Some(tar) = self.stored_tar(layer)? {
            return Ok(tar);
        }
        let folder = lease.folder();
        let file = tempfile::tempfile_in(folder).map_err(StoreError::io("make a file in", folder))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        self.write_tar(layer, &mut lease.heeding(&mut out))?;
        let mut file =
            out.into_inner().map_err(|error| StoreError::io("write a file in", folder)(error.into_error()))?;
        file.rewind().map_err(StoreError::io("read a file in", folder))?;
        Ok(file)
    }

    /// As [`Self::tar_file`], to be read once from its beginning, for who has promised to send `size` bytes. A tar of the store
    /// is checked on the way, unless this very command made it.
    pub fn listed_tar(&self, layer: &DiffId, size: u64, lease: &Lease) -> Result<Box<dyn Read>, StoreError> {
        let path = self.layer_path(layer).join("tar");
        match self.stored_tar(layer)? {
            Some(tar) if !lease.has_written(&path) => Ok(Box::new(self.checked(tar, path, &layer.0)?.of_size(size)?)),
            Some(tar) => Ok(Box::new(tar)),
            None => Ok(Box::new(self.tar_file(layer, lease)?)),
        }
    }

    /// The layer that this one is a form of under an epoch, if it is one: its bytes come from there.
    pub(super) fn source_of_epoch(&self, layer: &DiffId) -> Result<Option<DiffId>, StoreError> {
        Ok(self.epoch_of(layer)?.map(|form| form.of))
    }

    /// What the layer is the form of, where it is one under an epoch.
    fn epoch_of(&self, layer: &DiffId) -> Result<Option<EpochOf>, StoreError> {
        let path = self.layer_path(layer).join("epoch");
        let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| self.damaged(&path, error.to_string()))
    }

    /// Access to the data of the layer's files.
    pub fn layer_data(&self, layer: &DiffId, lease: &Lease) -> Result<LayerData, StoreError> {
        let source = self.epoch_of(layer)?.map_or(*layer, |form| form.of);
        if !self.layer_path(&source).join("tar").exists() {
            // Each of its files is checked as it is read; but the tree must stay.
            lease.mounts_layer(self, &source)?;
        }
        match self.layer_data_of(&source) {
            Err(StoreError::Missing { .. }) => {
                let tar = self.tar_file(&source, lease)?;
                let index = self.layer_index(&source)?.ok_or_else(|| self.missing(format!("the layer {source}")))?;
                Ok(self.data_in(&source, Place::Tar { tar, index }))
            }
            other => other,
        }
    }

    fn layer_data_of(&self, layer: &DiffId) -> Result<LayerData, StoreError> {
        if let Some(tar) = open_if_there(&self.layer_path(layer).join("tar"))? {
            let index = self.layer_index(layer)?.ok_or_else(|| self.missing(format!("the layer {layer}")))?;
            return Ok(self.data_in(layer, Place::Tar { tar, index }));
        }
        let tree = self.layer_tree(layer).ok_or_else(|| self.missing(format!("the data of layer {layer}")))?;
        let dir = RootDir::open(&tree).map_err(StoreError::io("open", &tree))?;
        Ok(self.data_in(layer, Place::Tree(dir)))
    }

    fn data_in(&self, layer: &DiffId, place: Place) -> LayerData {
        LayerData { store: self.clone(), folder: self.layer_path(layer), place }
    }

    /// Whether reading the layer's files needs the ids that the store's trees were made with: they are read from a tree
    /// where there is one and no tar.
    pub fn needs_tree_ids(&self, layer: &DiffId) -> Result<bool, StoreError> {
        let source = self.epoch_of(layer)?.map_or(*layer, |form| form.of);
        let folder = self.layer_path(&source);
        Ok(!folder.join("tar").exists() && folder.join("tree").exists())
    }
}

impl LayerData {
    /// Opens the data of the file at `position` of `index`: of this layer, another form of it, or what it stands for on
    /// its parents. A file that was lost is noted.
    pub fn open(&self, index: &LayerIndex, position: usize) -> io::Result<Box<dyn Read + '_>> {
        let opened = match &self.place {
            Place::Tree(tree) => data::from_tree(index, position, tree).map(|reader| reader as Box<dyn Read>),
            Place::Tar { tar, index: own } if index.diff_id() == own.diff_id() => data::from_tar(index, position, tar),
            Place::Tar { tar, index: own } => match own.position(index.path(position)) {
                Some(position) => data::from_tar(own, position, tar),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                let why = format!("its file {} is not there", String::from_utf8_lossy(index.path(position)));
                io::Error::new(io::ErrorKind::InvalidData, self.store.damaged(&self.folder, why))
            }
            _ => error,
        })
    }
}

fn take(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(StoreError::io("take over", from))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::io("write", path)(io::Error::other(error)))?;
    fs::write(path, bytes).map_err(StoreError::io("write", path))
}
