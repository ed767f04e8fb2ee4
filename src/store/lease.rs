//! What a running command has made so far, and its folder for unfinished files.
//!
//! In: a [`Store`]. Out: [`Lease`]. What always holds: a lease lives as long as the flock on its file; whatever the
//! command renames into place is appended to the file first. So a later command can tell what a dead one left: its
//! unfinished files go, and what it had made before the machine went down (another boot) is checked against its digest.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::layout::{SUSPECTS, Store, StoreError, is_younger, list, open_if_there};
use crate::digest::{DiffId, Digest};
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
    cancel: Option<Cancel>,
    /// The lock against garbage collection, if there is one, and how many hold it.
    lock: Mutex<(Option<File>, usize)>,
    used: Mutex<HashSet<String>>,
    /// Files below the root whose bytes this command wrote itself.
    written: Mutex<HashSet<PathBuf>>,
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

/// What [`Store::sweep`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Paths, relative to the root, that a dead command of an earlier boot made, or that somebody found damaged: they need
    /// to be checked.
    pub suspects: Vec<String>,
    /// Unfinished files that could not be removed, since they belong to mapped ids.
    pub stuck: usize,
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
    /// of it, and collections are kept away as long as it lives, if they can be.
    pub fn lease_without_writing(&self) -> Result<Lease, StoreError> {
        let folder = tempfile::Builder::new().prefix("rbuild-").tempdir();
        let folder = folder.map_err(StoreError::io("make a folder in", &std::env::temp_dir()))?.keep();
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

    /// Clears away what dead commands left in `tmp`. Leases of another boot, and what readers noted, are kept until
    /// [`Store::forget`]: the caller checks the suspects first.
    pub fn sweep(&self, boot: &str) -> Result<Swept, StoreError> {
        let mut suspects = self.suspects()?;
        let (leases, tmp) = (self.path("leases"), self.path("tmp"));
        if !list(&leases)?.is_empty() || !list(&tmp)?.is_empty() {
            // Exclusive: nobody is between making a lease and locking it, or replacing a small file.
            let _exclusive = self.gc_lock(true)?;
            for path in list(&leases)? {
                let Ok(file) = File::open(&path) else { continue };
                // Not by its name: the command may end, and its lease with it.
                let text = io::read_to_string(&file).map_err(StoreError::io("read", &path))?;
                if !is_free(&file, &text) {
                    continue;
                }
                let known = suspects.len();
                if !text.starts_with(&format!("boot {boot}\n")) {
                    suspects.extend(text.lines().filter_map(|line| line.strip_prefix("made ")).map(str::to_owned));
                    // The lease is no more durable than what it lists: its last lines may be lost, or all.
                    suspects.extend(self.made_since(&file)?);
                }
                let name = path.file_name().unwrap_or_default();
                self.discard(&tmp.join(name))?;
                if suspects.len() == known {
                    remove_if_there(&path)?;
                }
            }
            // What belongs to no lease: files that were to replace others.
            for path in list(&tmp)? {
                if !leases.join(path.file_name().unwrap_or_default()).exists() {
                    self.discard(&path)?;
                }
            }
        }
        suspects.sort();
        suspects.dedup();
        Ok(Swept { suspects, stuck: self.empty_trash()? })
    }

    /// What appeared in the store since that file was made, as leases list it.
    fn made_since(&self, lease: &File) -> Result<Vec<String>, StoreError> {
        // Where the file system does not say when that was, everything is suspect.
        let born = lease.metadata().and_then(|metadata| metadata.created()).unwrap_or(UNIX_EPOCH);
        let mut paths = Vec::new();
        for folder in ["layers", "trees", "blobs/sha256"] {
            paths.extend(list(&self.path(folder))?);
        }
        let cache = walkdir::WalkDir::new(self.path("cache")).into_iter().flatten();
        paths.extend(cache.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path));
        paths.retain(|path| is_younger(path, born));
        let relative = |path: PathBuf| Some(path.strip_prefix(self.root()).ok()?.to_str()?.to_owned());
        Ok(paths.into_iter().filter_map(relative).collect())
    }

    /// Renames `path` into the trash, from where [`Store::empty_trash`] removes it. Under the exclusive lock only. It takes
    /// no room: on a full disk this is how there comes to be some.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let trash = self.path("trash");
        loop {
            let place = trash.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let renamed = match renameat_with(CWD, path, CWD, &place, RenameFlags::NOREPLACE) {
                // A process of another container has the same number.
                Err(Errno::EXIST) => continue,
                // Some file systems do not know the flag.
                Err(Errno::INVAL) => fs::rename(path, &place),
                other => other.map_err(io::Error::from),
            };
            match renamed {
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                    return Ok(());
                }
                other => return other.map_err(StoreError::io("discard", path)),
            }
        }
    }

    /// Removes what lies in the trash. How many things could not be removed: an ordinary user must be inside the user
    /// namespace to remove files of mapped ids.
    pub fn empty_trash(&self) -> Result<usize, StoreError> {
        Ok(list(&self.path("trash"))?.iter().filter(|path| !remove_patiently(path)).count())
    }

    /// Drops the leases of dead commands and the notes of readers, once their suspects have been checked.
    pub fn forget(&self) -> Result<(), StoreError> {
        let _exclusive = self.gc_lock(true)?;
        remove_if_there(&self.path(SUSPECTS))?;
        for path in list(&self.path("leases"))? {
            let Ok(file) = File::open(&path) else { continue };
            let folder = self.path("tmp").join(path.file_name().unwrap_or_default());
            if file.try_lock().is_ok() && !folder.exists() {
                remove_if_there(&path)?;
            }
        }
        Ok(())
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
            cancel: None,
            lock: Mutex::new((lock, 1)),
            used: Mutex::new(HashSet::new()),
            written: Mutex::new(HashSet::new()),
        }
    }

    /// From now on the command's long copies end when `cancel` says so.
    pub fn heed(&mut self, cancel: &Cancel) {
        self.cancel = Some(cancel.clone());
    }

    /// What a long copy reads from or writes to, so that it ends when the command shall.
    pub fn heeding<T>(&self, inner: T) -> UntilCanceled<'_, T> {
        UntilCanceled { inner, cancel: self.cancel.as_ref() }
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

    /// Notes that `path` (relative to the root) is about to be renamed into place.
    pub fn will_make(&self, path: &str) -> Result<(), StoreError> {
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

    /// Makes everything that was made durable: one `syncfs`, however many files.
    pub fn sync(&self) -> Result<(), StoreError> {
        let folder = File::open(&self.folder).map_err(StoreError::io("open", &self.folder))?;
        rustix::fs::syncfs(&folder)
            .map_err(|error| StoreError::io("sync the file system of", &self.folder)(error.into()))
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
        // What cannot be removed now is swept by the next command: the lease file goes last and only if its folder went.
        let file = self.file.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if remove_tree(&self.folder).is_ok() && file.is_some() {
            drop(remove_if_there(&self.path));
        }
    }
}

/// Whether the lock of a lease can be had: its command is dead. A child that a killed command was about to make still
/// holds the lock for the moment in which it dies too, and that moment is waited for.
fn is_free(file: &File, text: &str) -> bool {
    let owner = text.lines().find_map(|line| line.strip_prefix("by ")?.parse::<u32>().ok());
    let seems_dead = || owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists());
    for _ in 0..50 {
        if file.try_lock().is_ok() {
            return true;
        }
        // It may live in another container, where it has another number, so this is no proof.
        if !seems_dead() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder in which the processes of a killed command may still be at work: they are on their way out.
fn remove_patiently(path: &Path) -> bool {
    const TRIES: u32 = 300;
    for _ in 0..TRIES {
        match remove_tree(path) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && has_foreign(path) => return false,
            // They make folders that nobody may enter, and remove what is just being looked at.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    false
}

/// Whether something in a folder belongs to somebody else: waiting does not help against that.
fn has_foreign(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    let entries = walkdir::WalkDir::new(path).into_iter().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).any(|metadata| metadata.uid() != own)
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
mod tests {
    use super::*;

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
    fn no_program_that_is_started_inherits_a_lease() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        let flags = rustix::io::fcntl_getfd(lease.file.lock().unwrap().as_ref().unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a child would keep it alive");
    }

    #[test]
    fn what_a_killed_command_left_is_swept() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        fs::create_dir(lease.folder().join("locked")).unwrap();
        lease.will_make("layers/abc").unwrap();
        // As SIGKILL would: the lock goes with the process, the files stay.
        lease.file.lock().unwrap().as_ref().unwrap().unlock().unwrap();
        std::mem::forget(lease);
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (0, 0));
    }

    #[test]
    fn a_small_file_that_was_never_renamed_is_swept() {
        let (_folder, store) = store();
        fs::write(store.path("tmp/.tmpAbCdEf"), "half of images.j").unwrap();
        let lease = store.lease("boot-a").unwrap();
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!((count(&store.path("tmp")), count(&store.path("trash"))), (1, 0), "the lease's folder alone");
        assert!(lease.folder().exists());
    }

    #[test]
    fn a_lock_that_outlives_its_command_by_a_moment_is_waited_for() {
        let (_folder, store) = store();
        let path = store.path("leases/build-x");
        // No process has this number.
        fs::write(&path, "boot boot-a\nby 4294967295\n").unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                held.unlock().unwrap();
            });
            store.sweep("boot-a").unwrap();
        });
        assert_eq!(count(&store.path("leases")), 0);
        fs::write(&path, format!("boot boot-a\nby {}\n", std::process::id())).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        store.sweep("boot-a").unwrap();
        assert_eq!(count(&store.path("leases")), 1, "its command lives");
    }

    #[test]
    fn many_commands_sweep_at_once() {
        let (_folder, store) = store();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..50 {
                        let lease = store.lease("boot-a").unwrap();
                        fs::write(lease.fresh_path(), "x").unwrap();
                        store.replace(&store.path("small"), b"small").unwrap();
                        if round % 2 == 0 {
                            lease.file.lock().unwrap().as_ref().unwrap().unlock().unwrap();
                            std::mem::forget(lease);
                        }
                        assert_eq!(store.sweep("boot-a").unwrap().suspects, [""; 0]);
                    }
                });
            }
        });
        store.sweep("boot-a").unwrap();
        let left = ["leases", "tmp", "trash"].map(|folder| count(&store.path(folder)));
        assert_eq!(left, [0; 3]);
    }

    #[test]
    fn after_another_boot_what_was_made_is_suspect_until_checked() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        lease.will_make("layers/abc").unwrap();
        lease.file.lock().unwrap().as_ref().unwrap().unlock().unwrap();
        std::mem::forget(lease);
        let expected = Swept { suspects: vec!["layers/abc".to_owned()], stuck: 0 };
        assert_eq!(store.sweep("boot-b").unwrap(), expected);
        assert_eq!(store.sweep("boot-b").unwrap(), expected, "a check that was cut off is made again");
        store.forget().unwrap();
        assert_eq!(count(&store.path("leases")), 0);
    }

    #[test]
    fn a_lease_of_another_boot_that_made_nothing_goes() {
        let (_folder, store) = store();
        for text in ["boot boot-a\n", "boot", ""] {
            fs::write(store.path("leases/build-x"), text).unwrap();
            assert_eq!(store.sweep("boot-b").unwrap(), Swept::default());
            assert_eq!(count(&store.path("leases")), 0, "{text:?}");
        }
    }

    #[test]
    fn what_a_lease_lost_is_found_by_its_time() {
        let (_folder, store) = store();
        fs::create_dir(store.path("layers/old")).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        for torn in ["", "boo", "boot boot-a\nmade lay"] {
            fs::write(store.path("leases/build-x"), torn).unwrap();
            fs::create_dir_all(store.path("layers/new")).unwrap();
            fs::create_dir_all(store.path("cache/records/ab")).unwrap();
            fs::write(store.path("cache/records/ab/new"), torn).unwrap();
            let found = store.sweep("boot-b").unwrap().suspects;
            assert!(found.contains(&"layers/new".to_owned()), "{torn:?}: {found:?}");
            assert!(found.contains(&"cache/records/ab/new".to_owned()), "{torn:?}: {found:?}");
            assert!(!found.contains(&"layers/old".to_owned()), "{torn:?}: {found:?}");
            store.forget().unwrap();
            fs::remove_dir(store.path("layers/new")).unwrap();
        }
    }

    #[test]
    fn what_readers_found_is_suspect_until_checked() {
        let (_folder, store) = store();
        drop(store.damaged(&store.path("layers/abc/tar"), "it is not what it was"));
        let expected = Swept { suspects: vec!["layers/abc".to_owned()], stuck: 0 };
        assert_eq!(store.sweep("boot-a").unwrap(), expected);
        assert_eq!(store.sweep("boot-a").unwrap(), expected, "a check that was cut off is made again");
        store.forget().unwrap();
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
    }

    #[test]
    fn a_reader_of_a_store_that_cannot_be_written_keeps_collections_away() {
        let (_folder, store) = store();
        drop(store.gc_lock(false).unwrap());
        let lease = store.lease_without_writing().unwrap();
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (0, 0));
        lease.uses(["layers/abc".to_owned()]).unwrap();
        drop(lease.shared().unwrap());
        let path = store.path("lock");
        assert!(File::open(&path).unwrap().try_lock().is_err(), "a collection must wait");
        let folder = lease.folder().to_owned();
        drop(lease);
        File::open(&path).unwrap().try_lock().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn things_go_to_the_trash_one_beside_the_other() {
        let (_folder, store) = store();
        for _ in 0..3 {
            fs::write(store.path("layers/x"), "x").unwrap();
            store.discard(&store.path("layers/x")).unwrap();
        }
        store.discard(&store.path("layers/gone")).unwrap();
        assert_eq!(count(&store.path("trash")), 3);
        assert_eq!(store.empty_trash().unwrap(), 0);
        assert_eq!(count(&store.path("trash")), 0);
    }
}
