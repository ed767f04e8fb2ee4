//! The store's folder: where things are, and which version of the layout they have.
//!
//! In: the root's path. Out: [`Store`], which the other modules of `store` add their methods to. What always holds:
//! a store of a newer version is refused, a new one is made with mode 0700 (it will hold setuid files).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::images::Listed;
use super::suspect::Suspect;

/// Version of the layout; readers refuse others.
const STORE_VERSION: &str = "rbuild store 1\n";

/// What becomes of what is damaged.
const REMEDY: &str = "; the next command that writes to the store removes it: build, load or pull again";

/// Where readers note what they found damaged: a path relative to the root in each line.
pub(super) const SUSPECTS: &str = "suspects";

const FOLDERS: [&str; 7] = ["blobs/sha256", "layers", "trees", "cache/files", "leases", "tmp", "trash"];

/// An open store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// The list of images as it was read last.
    pub(super) listed: Arc<Mutex<Option<Listed>>>,
    /// Whether damage is noted.
    notes: bool,
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `open`, `write`, `rename into place`…
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder is a store of another version, or something else.
    #[error("{} is no store of this version of rbuild (its file \"format\" says {found:?}); choose another folder with --root. If the disk had a fault, remove that file", root.display())]
    Format {
        /// The store's root.
        root: PathBuf,
        /// The file's first bytes.
        found: String,
    },
    /// The folder cannot be had.
    #[error("cannot use {} as the store; choose another folder with --root or RBUILD_ROOT", root.display())]
    Root {
        /// The store's root.
        root: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Trees were made under another user id map or attribute namespace.
    #[error("the trees of the store {} were made for {found}, this process would use {expected} (its file trees.format says so; if nobody's ids have changed the file is damaged, and can be removed); use another --root, or empty the store with the user who made it", root.display())]
    Ownership {
        /// The store's root.
        root: PathBuf,
        /// What the store says.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// Nothing can be written to the store.
    #[error("the store {} cannot be written; images, inspect, history, save and diff need only to read it, and --root names another one", root.display())]
    ReadOnly {
        /// The store's root.
        root: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A blob or layer that is named somewhere is not here.
    #[error("{what} is not in the store {}; build, load or pull it again", root.display())]
    Missing {
        /// What, with its digest.
        what: String,
        /// The store's root.
        root: PathBuf,
    },
    /// Bytes are not what their name says.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl StoreError {
    /// Wraps an I/O error with what was tried on which path. For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl Store {
    /// Opens the store at `root`, making it where there is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned(), listed: Arc::default(), notes: true };
        let format = root.join("format");
        match fs::read(&format) {
            Ok(found) if found == STORE_VERSION.as_bytes() => return Ok(store),
            // Something went wrong with a disk: what never had another version has this one.
            Ok(found) if is_unwritten(&found, STORE_VERSION.as_bytes()) => {}
            Ok(found) => {
                let found = String::from_utf8_lossy(&found[..found.len().min(60)]).into_owned();
                return Err(StoreError::Format { root: root.to_owned(), found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Root { root: root.to_owned(), source }),
        }
        store.make_folders()?;
        // The file comes last: a store that was cut off in the making is simply made again.
        store.replace(&format, STORE_VERSION.as_bytes())?;
        Ok(store)
    }

    /// Makes the folders that are not there.
    pub(super) fn make_folders(&self) -> Result<(), StoreError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for folder in FOLDERS {
            let failed = |source| StoreError::Root { root: self.root.clone(), source };
            builder.create(self.root.join(folder)).map_err(failed)?;
        }
        Ok(())
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `relative` inside the root.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Notes for whom this store's trees are made (id map and attribute namespace), and refuses another.
    pub fn claim_trees(&self, expected: &str) -> Result<(), StoreError> {
        let path = self.path("trees.format");
        match fs::read(&path) {
            Ok(found) if found == expected.as_bytes() => Ok(()),
            Ok(found) if is_unwritten(&found, expected.as_bytes()) => self.replace(&path, expected.as_bytes()),
            Ok(found) => {
                let found = String::from_utf8_lossy(&found).into_owned();
                Err(StoreError::Ownership { root: self.root.clone(), found, expected: expected.to_owned() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(&path, expected.as_bytes()),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// The error for bytes that are not what they should be. What is damaged below `layers`, `trees`, `blobs`, `origins` or
    /// `cache` is noted in the file `suspects`, so that the next command checks it, removes it and makes it anew.
    pub(crate) fn damaged(&self, path: &Path, why: impl Into<String>) -> StoreError {
        let mut why = why.into();
        let suspect = path.strip_prefix(&self.root).ok().and_then(Suspect::around).filter(|_| self.notes);
        if let Some(suspect) = suspect {
            let note = OpenOptions::new().create(true).append(true).open(self.path(SUSPECTS));
            // Who cannot write here is told of the damage all the same. No lock: a line is appended whole.
            if note.and_then(|mut file| file.write_all(format!("{suspect}\n").as_bytes())).is_ok() {
                why.push_str(REMEDY);
            }
        }
        StoreError::Damaged { path: path.to_owned(), why }
    }

    /// The same store for who deals with the damage that is found: it is not noted.
    pub(super) fn without_notes(&self) -> Self {
        Self { notes: false, ..self.clone() }
    }

    /// What readers noted, each once.
    #[cfg(test)]
    pub(super) fn suspects(&self) -> Result<Vec<String>, StoreError> {
        let noted = read_if_there(&self.path(SUSPECTS))?.unwrap_or_default();
        let text = String::from_utf8_lossy(&noted);
        let suspects: std::collections::BTreeSet<_> = text.lines().filter_map(Suspect::parse).collect();
        Ok(suspects.iter().map(ToString::to_string).collect())
    }

    /// The error for something that could not be made or locked.
    pub(super) fn not_made(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let (root, path) = (self.root.clone(), path.to_owned());
        move |source| match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                StoreError::ReadOnly { root, source }
            }
            _ => StoreError::Io { action, path, source },
        }
    }

    /// Replaces the small file `path` of the store by `bytes`, at once or not at all. When it returns the change outlives
    /// a power cut: a rename may come to the disk before the data of the file, and its folder after both.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace_as(path, bytes, true)
    }

    /// As [`Store::replace`], but a power cut may take the change, and leave half of it.
    pub(super) fn replace_later(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace_as(path, bytes, false)
    }

    fn replace_as(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
        // Shared: who sweeps `tmp` takes what has no lease for left behind.
        let _shared = self.gc_lock(false)?;
        let tmp = self.path("tmp");
        let mut file = tempfile::NamedTempFile::new_in(&tmp).map_err(self.not_made("make a file in", &tmp))?;
        file.write_all(bytes).map_err(StoreError::io("write", file.path()))?;
        if durable {
            file.as_file().sync_all().map_err(StoreError::io("sync", file.path()))?;
        }
        file.persist(path).map_err(|error| StoreError::io("rename into place", path)(error.error))?;
        let folder = path.parent().unwrap_or(&self.root);
        match File::open(folder) {
            Ok(folder) if durable => folder.sync_all(),
            other => other.map(drop),
        }
        .map_err(StoreError::io("sync", folder))
    }
}

/// Whether a small file has only a part of what it should have, or nothing but zeros: a write that never came to the disk.
fn is_unwritten(found: &[u8], expected: &[u8]) -> bool {
    expected.starts_with(found) || found.iter().all(|byte| *byte == 0)
}

/// The paths in a folder; of one that is not there none.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(StoreError::io("list", folder)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(StoreError::io("list", folder)(error)),
    }
}

/// Whether something appeared since: by the time at which it was renamed into place, which nobody can set.
pub(super) fn is_younger(path: &Path, than: SystemTime) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return true };
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).unwrap_or(0)) >= than
}

/// Opens a file for reading; `None` where there is none.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path)(error)),
    }
}

/// Reads a whole file; `None` where there is none.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_once_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        Store::open(&root).unwrap();
        Store::open(&root).unwrap();
        fs::write(root.join("format"), "rbuild store 99\n").unwrap();
        let error = Store::open(&root).unwrap_err().to_string();
        assert!(error.contains("rbuild store 99"), "{error}");
    }

    #[test]
    fn what_never_came_to_the_disk_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for torn in [&b""[..], b"rbuild st", &[0; 15]] {
            fs::write(folder.path().join("format"), torn).unwrap();
            Store::open(folder.path()).unwrap();
            assert_eq!(fs::read(folder.path().join("format")).unwrap(), STORE_VERSION.as_bytes());
            fs::write(folder.path().join("trees.format"), torn).unwrap();
            store.claim_trees("rbuild stands for somebody").unwrap();
            assert!(store.claim_trees("somebody else").is_err());
        }
    }

    #[test]
    fn damage_is_noted_once_and_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.suspects().unwrap(), [""; 0]);
        let hex = crate::digest::Digest::of(b"x").hex();
        let layer = format!("layers/{hex}");
        let record = format!("cache/records/{}/{hex}", &hex[..2]);
        let blob = format!("blobs/sha256/{hex}");
        for path in
            [&format!("{layer}/tree/bin/sh"), &format!("{layer}/index"), &blob, &record, "layers", "images.json"]
        {
            store.damaged(&store.path(path), "it is not");
        }
        store.damaged(&Path::new("/elsewhere").join(&layer), "it is not");
        store.without_notes().damaged(&store.path(&format!("trees/{hex}")), "it is not");
        let note = OpenOptions::new().append(true).open(store.path(SUSPECTS));
        note.unwrap().write_all(b"layers/../../home\nlayers\nbl").unwrap();
        assert_eq!(store.suspects().unwrap(), [layer, blob, record]);
    }

    #[test]
    fn trees_belong_to_one_id_map() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.claim_trees("root, trusted").unwrap();
        store.claim_trees("root, trusted").unwrap();
        let error = store.claim_trees("1000+100000, user").unwrap_err().to_string();
        assert!(error.contains("root, trusted") && error.contains("1000+100000, user"), "{error}");
    }
}
