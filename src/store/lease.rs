//! What a running command has made so far, and its folder for unfinished files.
//!
//! In: a [`Store`]. Out: [`Lease`]. What always holds: a lease lives as long as the flock on its file; whatever the
//! command renames into place is appended to the file first, and is durable before the file goes; which trees it has mounted
//! stands there too. So a later command can tell what a dead one left, and what a living one needs: see `sweep`.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{Store, StoreError, open_if_there};
use super::suspect::Suspect;
use super::sweep::sync_file_system;
use crate::digest::{ChainId, DiffId, Digest};
use crate::sys::cancel::{Cancel, UntilCanceled};

/// A claim on the store by a running command.
#[derive(Debug)]
pub struct Lease {
    /// `None` where nothing can be written to the store.
    file: Mutex<Option<File>>,
    path: PathBuf,
    folder: PathBuf,
    next: AtomicU64,
    made: AtomicU64,
    /// How many of those are durable.
    durable: AtomicU64,
    cancel: Option<Cancel>,
    /// The lock against garbage collection, if there is one, and how many hold it.
    lock: Mutex<(Option<File>, usize)>,
    used: Mutex<HashSet<String>>,
    /// Files below the root whose bytes this command wrote itself.
    written: Mutex<HashSet<PathBuf>>,
    /// Trees that are damaged, and that another command has mounted.
    spoilt: Mutex<HashSet<Suspect>>,
}

/// Keeps garbage collection away as long as it lives: what was found stays there until it is noted as used.
#[must_use = "the lock goes with the value"]
#[derive(Debug)]
pub struct Shared<'a>(&'a Lease);

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let mut lock = self.0.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lock.1 -= 1;
        if let (Some(file), 0) = (&lock.0, lock.1) {
            // A lock that could not be given back goes with the process.
            let _ = file.unlock();
        }
    }
}

impl Store {
    /// Takes a lease. `boot` is the id of the running boot of the machine, `/proc/sys/kernel/random/boot_id`.
    pub fn lease(&self, boot: &str) -> Result<Lease, StoreError> {
        let lock = self.gc_lock(false)?;
        let leases = self.path("leases");
        let (file, path) = tempfile::Builder::new()
            .prefix("build-")
            .tempfile_in(&leases)
            .and_then(|file| file.keep().map_err(|error| error.error))
            .map_err(self.not_made("take a lease in", &leases))?;
        file.lock().map_err(StoreError::io("lock", &path))?;
        let name = path.file_name().unwrap_or_default();
        let folder = self.path("tmp").join(name);
        if let Err(error) = fs::create_dir(&folder) {
            drop(remove_if_there(&path));
            return Err(StoreError::io("make", &folder)(error));
        }
        let lease = Lease::new(Some(file), path, folder, Some(lock));
        let shared = Shared(&lease);
        lease.append(&format!("boot {boot}\nby {}\n", std::process::id()))?;
        drop(shared);
        Ok(lease)
    }

    /// A lease for a command that only reads, where nothing can be written to the store: its unfinished files lie outside
    /// of it, in `scratch`, and collections are kept away as long as it lives, if they can be.
    pub fn lease_without_writing(&self, scratch: &Path) -> Result<Lease, StoreError> {
        let folder = tempfile::Builder::new().prefix("rbuild-").tempdir_in(scratch);
        let folder = folder.map_err(StoreError::io("make a folder in", scratch))?.keep();
        let path = self.path("lock");
        let lock = open_if_there(&path)?;
        if let Some(lock) = &lock {
            lock.lock_shared().map_err(StoreError::io("lock", &path))?;
        }
        Ok(Lease::new(None, path, folder, lock))
    }

    /// The lock that keeps garbage collection and leases apart: shared to take a lease, exclusive to mark and sweep.
    pub fn gc_lock(&self, exclusive: bool) -> Result<File, StoreError> {
        let path = self.path("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(self.not_made("open", &path))?;
        let locked = if exclusive { file.lock() } else { file.lock_shared() };
        locked.map_err(StoreError::io("lock", &path))?;
        Ok(file)
    }
}

impl Lease {
    /// One whose `lock` is held.
    fn new(file: Option<File>, path: PathBuf, folder: PathBuf, lock: Option<File>) -> Self {
        Self {
            file: Mutex::new(file),
            path,
            folder,
            next: AtomicU64::new(0),
            made: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            cancel: None,
            lock: Mutex::new((lock, 1)),
            used: Mutex::new(HashSet::new()),
            written: Mutex::new(HashSet::new()),
            spoilt: Mutex::new(HashSet::new()),
        }
    }

    /// From now on the command's long copies end when `cancel` says so.
    pub fn heed(&mut self, cancel: &Cancel) {
        self.cancel = Some(cancel.clone());
    }

    /// Whether the command shall end.
    pub(super) fn is_stopped(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_canceled)
    }

    /// What a long copy reads from or writes to, so that it ends when the command shall.
    pub fn heeding<T>(&self, inner: T) -> UntilCanceled<'_, T> {
        UntilCanceled { inner, cancel: self.cancel.as_ref() }
    }

    /// The lease's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder for unfinished files: on the store's file system, gone with the lease.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in [`Lease::folder`] that nobody else gets.
    pub fn fresh_path(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Keeps garbage collection away for a moment. It is held while something is looked up and noted as used, or noted as
    /// made and renamed into place, and never for long.
    pub fn shared(&self) -> Result<Shared<'_>, StoreError> {
        let mut lock = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(file), 0) = (&lock.0, lock.1) {
            file.lock_shared().map_err(StoreError::io("lock", &self.path))?;
        }
        lock.1 += 1;
        Ok(Shared(self))
    }

    /// Notes that the command needs these paths (relative to the root) until it ends. To be called while
    /// [`Lease::shared`] is held, before one looks whether they are there.
    pub fn uses(&self, paths: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        let mut used = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut lines = String::new();
        for path in paths {
            if !used.contains(&path) {
                lines.push_str(&format!("used {path}\n"));
                used.insert(path);
            }
        }
        if lines.is_empty() { Ok(()) } else { self.append(&lines) }
    }

    /// Whether a blob is there; if so it stays as long as the command runs.
    pub fn uses_blob(&self, store: &Store, digest: &Digest) -> Result<bool, StoreError> {
        let _shared = self.shared()?;
        if !store.has_blob(digest) {
            return Ok(false);
        }
        self.uses([format!("blobs/sha256/{}", digest.hex())]).map(|()| true)
    }

    /// Whether a layer is there; if so it stays as long as the command runs.
    pub fn uses_layer(&self, store: &Store, layer: &DiffId) -> Result<bool, StoreError> {
        let _shared = self.shared()?;
        if !store.has_layer(layer) {
            return Ok(false);
        }
        self.uses([format!("layers/{}", layer.0.hex())]).map(|()| true)
    }

    /// The tree of a layer, where it has one: noted as mounted until the command ends, so that nobody takes it away.
    pub fn mounts_layer(&self, store: &Store, layer: &DiffId) -> Result<Option<PathBuf>, StoreError> {
        let _shared = self.shared()?;
        store.layer_tree(layer).map(|tree| self.mounts(&Suspect::Layer(*layer), tree)).transpose()
    }

    /// The same of the tree of a layer that is no tree by itself, on the parents that `chain` names.
    pub fn mounts_chain(&self, store: &Store, chain: &ChainId) -> Result<Option<PathBuf>, StoreError> {
        let _shared = self.shared()?;
        store.chain_tree(chain).map(|tree| self.mounts(&Suspect::Tree(*chain), tree)).transpose()
    }

    fn mounts(&self, what: &Suspect, tree: PathBuf) -> Result<PathBuf, StoreError> {
        if self.spoilt.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(what) {
            let why = "another build works with it as it is; build again when that has ended".to_owned();
            return Err(StoreError::Damaged { path: tree, why });
        }
        self.append(&format!("mounts {what}\n")).map(|()| tree)
    }

    /// Notes that a tree is damaged and stays, as another command has it mounted: this one must not.
    pub(super) fn shuns(&self, tree: Suspect) {
        self.spoilt.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(tree);
    }

    /// Notes that `path` (relative to the root) is about to be renamed into place.
    pub fn will_make(&self, path: &str) -> Result<(), StoreError> {
        debug_assert!(Suspect::parse(path).is_some(), "after a power cut nobody would look for {path}");
        self.made.fetch_add(1, Ordering::Relaxed);
        self.append(&format!("made {path}\n"))
    }

    /// Notes that the file now at `path` is one that this command wrote, with the digest that it goes by.
    pub(super) fn wrote(&self, path: PathBuf) {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(path);
    }

    /// Whether this command wrote the file at `path`.
    pub(super) fn has_written(&self, path: &Path) -> bool {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(path)
    }

    /// Whether anything was made under this lease.
    pub fn made_something(&self) -> bool {
        self.made.load(Ordering::Relaxed) > 0
    }

    /// Whether all that was made is durable.
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed) == self.made.load(Ordering::Relaxed)
    }

    /// Makes everything that was made durable: one `syncfs`, however many files.
    pub fn sync(&self) -> Result<(), StoreError> {
        let made = self.made.load(Ordering::Relaxed);
        let file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Without a file nothing is made.
        if let Some(file) = file.as_ref() {
            sync_file_system(file).map_err(StoreError::io("sync the file system of", &self.path))?;
        }
        self.durable.store(made, Ordering::Relaxed);
        Ok(())
    }

    fn append(&self, line: &str) -> Result<(), StoreError> {
        // A poisoned lock means that another thread panicked between two appends; the file is whole all the same.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Without a file there is the lock, which is held until the command ends.
        let Some(file) = file.as_mut() else { return Ok(()) };
        file.write_all(line.as_bytes()).map_err(StoreError::io("write", &self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next command: the lease file goes last, only if its folder went, and
        // what it lists will outlive a power cut.
        let gone = remove_tree(&self.folder).is_ok();
        let has_file = self.file.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).is_some();
        if gone && has_file && (self.is_durable() || self.sync().is_ok()) {
            drop(remove_if_there(&self.path));
        }
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file, or a folder with all that is in it, folders without write permission too.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            for entry in walkdir::WalkDir::new(path) {
                let entry = entry?;
                if entry.file_type().is_dir() {
                    use std::os::unix::fs::PermissionsExt;
                    fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700))?;
                }
            }
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

#[cfg(test)]
impl Lease {
    /// As SIGKILL would: the lock goes with the process, the files stay.
    pub(super) fn kill(self) {
        self.file.lock().unwrap().as_ref().unwrap().unlock().unwrap();
        std::mem::forget(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sweep::{SYNCS, Swept};

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn a_lease_takes_its_folder_with_it() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        fs::write(lease.fresh_path(), "x").unwrap();
        assert_ne!(lease.fresh_path(), lease.fresh_path());
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default(), "a living lease is left alone");
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (1, 1));
        drop(lease);
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (0, 0));
    }

    #[test]
    fn what_was_made_is_durable_before_nobody_lists_it() {
        let (_folder, store) = store();
        let begun = SYNCS.get();
        let syncs = || SYNCS.get() - begun;
        let lease = store.lease("boot-a").unwrap();
        lease.uses(["layers/abc".to_owned()]).unwrap();
        drop(lease);
        assert_eq!(syncs(), 0, "it made nothing");
        let lease = store.lease("boot-a").unwrap();
        store.put_blob(&lease, b"1").unwrap();
        drop(lease);
        assert_eq!(syncs(), 1);
        let lease = store.lease("boot-a").unwrap();
        store.put_blob(&lease, b"2").unwrap();
        assert!(!lease.is_durable());
        lease.sync().unwrap();
        assert!(lease.is_durable());
        // Another command is at work.
        let other = store.lease("boot-a").unwrap();
        assert!(store.others_made(&other).unwrap() && !store.others_made(&lease).unwrap());
        drop((lease, other));
        assert_eq!(syncs(), 2, "no more than once");
    }

    #[test]
    fn a_name_waits_until_what_others_made_is_durable() {
        use crate::digest::ImageId;
        use crate::store::{base, images::ImageRecord};
        let (_folder, store) = store();
        let (maker, namer) = (store.lease("boot-a").unwrap(), store.lease("boot-a").unwrap());
        let record = |name: &str| ImageRecord {
            id: ImageId(Digest::of(b"image")),
            names: vec![format!("docker.io/library/{name}:latest")],
            manifest: Digest::of(b"manifest"),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest_size: 3,
            content: None,
            created: None,
            size: 0,
            platform: "linux/amd64".into(),
        };
        let begun = SYNCS.get();
        base::keep(&store, &namer, &record("a")).unwrap();
        assert_eq!(SYNCS.get(), begun, "nobody made anything");
        store.put_blob(&maker, b"manifest").unwrap();
        base::keep(&store, &namer, &record("b")).unwrap();
        assert_eq!(SYNCS.get(), begun + 1);
        base::keep(&store, &maker, &record("c")).unwrap();
        assert_eq!(SYNCS.get(), begun + 2);
    }

    #[test]
    fn no_program_that_is_started_inherits_a_lease() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        let flags = rustix::io::fcntl_getfd(lease.file.lock().unwrap().as_ref().unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a child would keep it alive");
    }

    #[test]
    fn a_reader_of_a_store_that_cannot_be_written_keeps_collections_away() {
        let (_folder, store) = store();
        drop(store.gc_lock(false).unwrap());
        let lease = store.lease_without_writing(&store.path("tmp")).unwrap();
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (0, 1));
        lease.uses(["layers/abc".to_owned()]).unwrap();
        drop(lease.shared().unwrap());
        let path = store.path("lock");
        assert!(File::open(&path).unwrap().try_lock().is_err(), "a collection must wait");
        let folder = lease.folder().to_owned();
        drop(lease);
        File::open(&path).unwrap().try_lock().unwrap();
        assert!(!folder.exists());
    }
}
