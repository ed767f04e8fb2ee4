//! Folders that stay from one command to the next: `RUN --mount=type=cache`.
//!
//! In: a name, and who else may use the folder meanwhile. Out: a [`CacheMount`], held as long as it lives. What always
//! holds: a folder appears by rename, with what it holds at first; who uses one holds a lock on it, which the kernel takes
//! back when the process ends, however it ends. Nothing in here is part of a layer or a key.
//!
//! ```text
//! mounts/HASH/id        the name, for people
//! mounts/HASH/0.lock    locked shared by who shares, exclusively by who does not; its time is that of the last use
//! mounts/HASH/0/        the folder; 1, 2… are for commands that want one of their own while others are used
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags};

use super::layout::{Store, StoreError};
use super::lease::Lease;
use crate::digest::{Digest, Hasher};
use crate::plan::step::Sharing;
use crate::sys::cancel::Cancel;

/// What a cache is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheName {
    /// Its id, as it was written.
    pub id: String,
    /// What it held at first: another seed is another cache.
    pub seed: Option<Digest>,
    /// Mode, user and group that it was made with, where they were given: as with BuildKit, others are another cache.
    pub owner: Option<(u32, u32, u32)>,
}

/// A cache in use.
#[derive(Debug)]
pub struct CacheMount {
    lock: File,
    folder: PathBuf,
    sharing: Sharing,
}

/// The wait between two looks at a lock that somebody else holds.
const PATIENCE: Duration = Duration::from_millis(100);

impl Store {
    /// Takes a cache, waiting where it has to; `waiting` is called when it has to. `None` if `cancel` says so meanwhile.
    pub fn cache_mount(
        &self,
        lease: &Lease,
        name: &CacheName,
        sharing: Sharing,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<CacheMount>, StoreError> {
        let caches = self.path("mounts").join(name.digest().hex());
        let exclusive = sharing != Sharing::Shared;
        let (mut number, mut wait, mut told) = (0_u32, Duration::from_millis(1), false);
        loop {
            let path = caches.join(format!("{number}.lock"));
            let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let lock = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(&caches).map_err(StoreError::io("make", &caches))?;
                    let label = lease.fresh_path();
                    fs::write(&label, &name.id).map_err(StoreError::io("write", &label))?;
                    fs::rename(&label, caches.join("id")).map_err(StoreError::io("rename into place", &label))?;
                    continue;
                }
                other => other.map_err(StoreError::io("open", &path))?,
            };
            let locked = if exclusive { lock.try_lock() } else { lock.try_lock_shared() };
            match locked {
                // Whoever clears caches away may have taken the file from under us.
                Ok(()) if is_at(&lock, &path) => {
                    // Its time says when the cache was used last; a wrong one costs no more than an early end.
                    drop(lock.set_modified(SystemTime::now()));
                    return Ok(Some(CacheMount { lock, folder: caches.join(number.to_string()), sharing }));
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if sharing == Sharing::Private => number += 1,
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting();
                    }
                    if cancel.is_canceled() {
                        return Ok(None);
                    }
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(PATIENCE);
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
            }
        }
    }
}

impl CacheName {
    /// The digest of all that it is known by.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field(b"rbuild cache mount 1");
        hasher.field(self.id.as_bytes());
        hasher.field(self.seed.as_ref().map_or(&[][..], |seed| seed.as_bytes()));
        if let Some((mode, uid, gid)) = self.owner {
            [mode, uid, gid].into_iter().for_each(|number| hasher.update(&number.to_le_bytes()));
        }
        hasher.finish()
    }
}

impl CacheMount {
    /// The folder. It is there after [`CacheMount::fill`].
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts the folder that `make` makes (at a path on the same file system) into its place if there is none.
    pub fn fill<E: From<StoreError>>(&self, make: impl FnOnce() -> Result<PathBuf, E>) -> Result<(), E> {
        if self.folder.is_dir() {
            return Ok(());
        }
        let made = make()?;
        match rustix::fs::renameat_with(CWD, &made, CWD, &self.folder, RenameFlags::NOREPLACE) {
            // Somebody who shares it was faster.
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(errno) => Err(StoreError::io("rename into place", &self.folder)(errno.into()).into()),
        }
    }

    /// Takes away what it holds, so that it is filled anew, if nobody else uses it. It goes with the lease.
    pub fn empty(&self, lease: &Lease) -> Result<(), StoreError> {
        if !self.is_alone()? {
            return Ok(());
        }
        match fs::rename(&self.folder, lease.fresh_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("take away", &self.folder)(error))
            }
            _ => self.share_again(),
        }
    }

    /// Whether nobody else uses it; if so, nobody can until [`CacheMount::share_again`].
    pub fn is_alone(&self) -> Result<bool, StoreError> {
        if self.sharing != Sharing::Shared || self.lock.try_lock().is_ok() {
            return Ok(true);
        }
        // The kernel gives a lock back before it tries for the other kind.
        self.share_again().map(|()| false)
    }

    /// Lets others in again who share it.
    pub fn share_again(&self) -> Result<(), StoreError> {
        match self.sharing {
            Sharing::Shared => self.lock.lock_shared().map_err(StoreError::io("lock", &self.folder)),
            Sharing::Private | Sharing::Locked => Ok(()),
        }
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        // Closing the file is not enough: a program that is being started elsewhere has it, too, for a moment.
        drop(self.lock.unlock());
    }
}

/// Whether the open file is the one at that path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if identity(&a) == identity(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        _folder: tempfile::TempDir,
        store: Store,
        lease: Lease,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let lease = store.lease("boot").unwrap();
            Self { _folder: folder, store, lease }
        }

        fn take(&self, id: &str, sharing: Sharing) -> CacheMount {
            let cancel = Cancel::new().unwrap();
            let name = CacheName { id: id.to_owned(), seed: None, owner: None };
            let cache = self.store.cache_mount(&self.lease, &name, sharing, &cancel, &mut || cancel.cancel()).unwrap();
            let cache = cache.expect("free");
            cache.fill::<StoreError>(|| Ok(self.made(""))).unwrap();
            cache
        }

        fn is_taken(&self, id: &str, sharing: Sharing) -> bool {
            let cancel = Cancel::new().unwrap();
            let name = CacheName { id: id.to_owned(), seed: None, owner: None };
            let taken = self.store.cache_mount(&self.lease, &name, sharing, &cancel, &mut || cancel.cancel());
            taken.unwrap().is_none()
        }

        fn made(&self, text: &str) -> PathBuf {
            let path = self.lease.fresh_path();
            fs::create_dir(&path).unwrap();
            fs::write(path.join("f"), text).unwrap();
            path
        }
    }

    #[test]
    fn who_shares_and_who_waits() {
        let bench = Bench::new();
        let first = bench.take("a", Sharing::Shared);
        let second = bench.take("a", Sharing::Shared);
        assert_eq!(first.folder(), second.folder());
        assert!(bench.is_taken("a", Sharing::Locked));
        let private = bench.take("a", Sharing::Private);
        assert_ne!(private.folder(), first.folder());
        assert_ne!(bench.take("b", Sharing::Locked).folder(), first.folder());
        drop((first, second, private));
        let locked = bench.take("a", Sharing::Locked);
        assert!(bench.is_taken("a", Sharing::Shared) && bench.is_taken("a", Sharing::Locked));
        let folder = locked.folder().to_owned();
        drop(locked);
        assert_eq!(bench.take("a", Sharing::Private).folder(), folder, "the first one, now that it is free");
    }

    #[test]
    fn two_private_ones_and_then_the_first_again() {
        let bench = Bench::new();
        let (first, second) = (bench.take("a", Sharing::Private), bench.take("a", Sharing::Private));
        assert_ne!(first.folder(), second.folder());
        let folder = first.folder().to_owned();
        drop(first);
        assert_eq!(bench.take("a", Sharing::Private).folder(), folder);
    }

    #[test]
    fn a_cache_is_filled_once_and_emptied_only_alone() {
        let bench = Bench::new();
        let cache = bench.take("a", Sharing::Shared);
        fs::write(cache.folder().join("f"), "kept").unwrap();
        cache.fill::<StoreError>(|| Ok(bench.made("new"))).unwrap();
        let other = bench.take("a", Sharing::Shared);
        cache.empty(&bench.lease).unwrap();
        assert_eq!(fs::read_to_string(cache.folder().join("f")).unwrap(), "kept", "the other one uses it");
        drop(other);
        cache.empty(&bench.lease).unwrap();
        assert!(!cache.folder().exists());
        cache.fill::<StoreError>(|| Ok(bench.made("new"))).unwrap();
        assert_eq!(fs::read_to_string(cache.folder().join("f")).unwrap(), "new");
        assert!(!bench.is_taken("a", Sharing::Shared), "it is shared again");
    }

    #[test]
    fn a_cache_that_is_cleared_away_is_made_again() {
        let bench = Bench::new();
        let folder = bench.take("a", Sharing::Locked).folder().to_owned();
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
        assert_eq!(bench.take("a", Sharing::Locked).folder(), folder);
        assert_eq!(fs::read_to_string(folder.parent().unwrap().join("id")).unwrap(), "a");
    }
}
