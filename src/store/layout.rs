//! The store's folder: where things are, and which version of the layout they have.
//!
//! In: the root's path. Out: [`Store`], which the other modules of `store` add their methods to. What always holds:
//! a store of a newer version is refused, a new one is made with mode 0700 (it will hold setuid files).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Version of the layout; readers refuse others.
const STORE_VERSION: &str = "rbuild store 1\n";

const FOLDERS: [&str; 7] = ["blobs/sha256", "layers", "trees", "cache/files", "leases", "tmp", "trash"];

/// An open store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
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
    #[error("{} is no store of this version of rbuild (its file \"format\" says {found:?}); choose another folder with --root, or remove it", root.display())]
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
    #[error("the trees of the store {} were made for {found}, this process would use {expected}; use another --root, or empty the store with the user who made it", root.display())]
    Ownership {
        /// The store's root.
        root: PathBuf,
        /// What the store says.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A blob or layer that is named somewhere is not here.
    #[error("{what} is not in the store {}", root.display())]
    Missing {
        /// What, with its digest.
        what: String,
        /// The store's root.
        root: PathBuf,
    },
    /// Bytes are not what their name says.
    #[error("{} is damaged: {why}; remove it and build or load again", path.display())]
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
        let store = Self { root: root.to_owned() };
        let format = root.join("format");
        match fs::read(&format) {
            Ok(found) if found == STORE_VERSION.as_bytes() => return Ok(store),
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
        match fs::read_to_string(&path) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(StoreError::Ownership { root: self.root.clone(), found, expected: expected.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(&path, expected.as_bytes()),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Replaces the small file `path` of the store by `bytes`, at once or not at all. When it returns the change outlives
    /// a power cut: a rename may come to the disk before the data of the file, and its folder after both.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        // Shared: who sweeps `tmp` takes what has no lease for left behind.
        let _shared = self.gc_lock(false)?;
        let tmp = self.path("tmp");
        let mut file = tempfile::NamedTempFile::new_in(&tmp).map_err(StoreError::io("make a file in", &tmp))?;
        file.write_all(bytes).map_err(StoreError::io("write", file.path()))?;
        file.as_file().sync_all().map_err(StoreError::io("sync", file.path()))?;
        file.persist(path).map_err(|error| StoreError::io("rename into place", path)(error.error))?;
        let folder = path.parent().unwrap_or(&self.root);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
    }
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
    fn trees_belong_to_one_id_map() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.claim_trees("root, trusted").unwrap();
        store.claim_trees("root, trusted").unwrap();
        let error = store.claim_trees("1000+100000, user").unwrap_err().to_string();
        assert!(error.contains("root, trusted") && error.contains("1000+100000, user"), "{error}");
    }
}
