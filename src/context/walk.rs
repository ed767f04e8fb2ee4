//! The parallel walk of a context's folder.
//!
//! In: a folder, the patterns and the stat cache. Out: all that stays below it, sorted component-wise, with stats, link
//! targets and the digests that are known. What always holds: one `stat` per entry that stays and none for others; an
//! excluded folder is entered only if a negated pattern may match in it, and appears only if one did; every thread has
//! ended when the walk returns.

use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::ignore::{Above, Patterns};
use super::local::{ContextEntry, ContextError, ContextKind};
use super::open::open_below;
use super::stat_cache::StatCache;
use crate::layer::entry::join;

/// Where a walk happens and what it goes by.
pub(super) struct Walk<'a> {
    /// The context's root.
    pub(super) root: BorrowedFd<'a>,
    /// Its path, for messages and for extended attributes.
    pub(super) root_path: &'a Path,
    /// What is left out.
    pub(super) patterns: &'a Patterns,
    /// What is known of files.
    pub(super) cache: &'a StatCache,
}

/// A folder to be read.
struct Task {
    slot: usize,
    path: Vec<u8>,
    above: Above,
}

/// A folder that has been read: what stays of it, sorted by name.
type Listing = Vec<Child>;

struct Child {
    entry: ContextEntry,
    /// Where its listing will be, if it is a folder.
    slot: Option<usize>,
    /// It stays only if something below it does.
    excluded: bool,
}

/// What the threads of a walk share.
#[derive(Default)]
struct Shared {
    queue: Vec<Task>,
    /// Folders queued or being read.
    open: usize,
    listings: Vec<Listing>,
    error: Option<ContextError>,
}

/// So many folders in the queue are worth another thread.
const WORTH_A_THREAD: usize = 4;
const MOST_THREADS: usize = 8;

impl Walk<'_> {
    /// All that stays below `top`, an existing folder (`""` is the root), without `top` itself.
    pub(super) fn run(&self, top: &[u8]) -> Result<Vec<ContextEntry>, ContextError> {
        let mut above = self.patterns.at_root();
        for end in top.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([top.len()]) {
            if end > 0 {
                above = self.patterns.enter(&above, &top[..end]);
            }
        }
        let shared = Shared {
            queue: vec![Task { slot: 0, path: top.to_vec(), above }],
            open: 1,
            listings: vec![Vec::new()],
            error: None,
        };
        let (shared, more) = (Mutex::new(shared), Condvar::new());
        self.work(&shared, &more, true);
        if !lock(&shared).queue.is_empty() {
            let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
            thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|| self.work(&shared, &more, false));
                }
                self.work(&shared, &more, false);
            });
        }
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.error {
            Some(error) => Err(error),
            None => Ok(assemble(shared.listings)),
        }
    }

    /// The direct children of `dir` that stay. Excluded folders in which something may stay are among them, marked.
    pub(super) fn children(&self, dir: &[u8], above: &Above) -> Result<Vec<(ContextEntry, bool)>, ContextError> {
        let mut tasks = Vec::new();
        let listing = self.read(dir, above, &mut tasks)?;
        Ok(listing.into_iter().map(|child| (child.entry, child.excluded)).collect())
    }

    /// Takes folders off the queue until there are none left, or (`alone`) until there are enough for several threads.
    fn work(&self, shared: &Mutex<Shared>, more: &Condvar, alone: bool) {
        let mut state = lock(shared);
        loop {
            if state.open == 0 || state.error.is_some() || (alone && state.queue.len() >= WORTH_A_THREAD) {
                more.notify_all();
                return;
            }
            let Some(task) = state.queue.pop() else {
                state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let mut found = Vec::new();
            let result = self.read(&task.path, &task.above, &mut found);
            state = lock(shared);
            match result {
                Ok(mut listing) => {
                    let first = state.listings.len();
                    for child in &mut listing {
                        child.slot = child.slot.map(|slot| first + slot);
                    }
                    state.listings.resize_with(first + found.len(), Vec::new);
                    state.listings[task.slot] = listing;
                    state.open += found.len();
                    state.queue.extend(found.into_iter().map(|task| Task { slot: first + task.slot, ..task }));
                }
                Err(error) => state.error = Some(state.error.take().unwrap_or(error)),
            }
            state.open -= 1;
            more.notify_all();
        }
    }

    /// Reads one folder. What is to be entered is added to `tasks`, numbered from 0.
    fn read(&self, dir: &[u8], above: &Above, tasks: &mut Vec<Task>) -> Result<Listing, ContextError> {
        let fail = |action, path: &[u8], source: io::Error| ContextError::io(action, path, source);
        let folder = open_below(self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|source| fail("open the folder", dir, source))?;
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut names = RawDir::new(&folder, &mut buffer);
        let mut listing = Vec::new();
        while let Some(name) = names.next() {
            let name = name.map_err(|error| fail("read the folder", dir, error.into()))?;
            if matches!(name.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let path = join(dir, name.file_name().to_bytes());
            let known = name.file_type();
            if known != FileType::Unknown && known != FileType::Directory && self.patterns.excludes(above, &path) {
                continue;
            }
            let Some(stat) = stat(&folder, name.file_name(), &path)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let own = self.patterns.enter(above, &path);
                let (excluded, enter) = self.patterns.directory(&own, &path);
                if enter {
                    let entry = ContextEntry::new(path.clone(), ContextKind::Directory, &stat);
                    listing.push(Child { entry, slot: Some(tasks.len()), excluded });
                    tasks.push(Task { slot: tasks.len(), path, above: own });
                }
                continue;
            }
            if known == FileType::Unknown && self.patterns.excludes(above, &path) {
                continue;
            }
            if let Some(entry) = self.entry(&folder, name.file_name(), path, &stat)? {
                listing.push(Child { entry, slot: None, excluded: false });
            }
        }
        // All begin with the folder's path.
        let start = dir.len();
        listing.sort_unstable_by(|a, b| a.entry.path[start..].cmp(&b.entry.path[start..]));
        Ok(listing)
    }

    /// The entry of something that is no directory; `None` if it went away.
    pub(super) fn entry(
        &self,
        folder: impl AsFd,
        name: &CStr,
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<Option<ContextEntry>, ContextError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => match rustix::fs::readlinkat(folder, name, Vec::new()) {
                Ok(target) => ContextKind::Symlink(target.into_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(ContextError::io("read the link", &path, error.into())),
            },
            other => ContextKind::of(other, stat),
        };
        let mut entry = ContextEntry::new(path, kind, stat);
        if entry.kind == ContextKind::File {
            self.learn(&mut entry);
        }
        Ok(Some(entry))
    }

    /// Fills in what the cache knows of a file. Where it knows nothing, the capability is asked for: the header of a
    /// layer's entry needs it before the data is read.
    fn learn(&self, entry: &mut ContextEntry) {
        if let Some(facts) = self.cache.get(&entry.stamp) {
            entry.sha256 = Some(facts.sha256);
            entry.capability = facts.capability;
        } else {
            let mut value = [0; 64];
            let path = self.root_path.join(OsStr::from_bytes(&entry.path));
            // No attribute, no support for any, no permission: for a build all that means none.
            if let Ok(length) = rustix::fs::lgetxattr(&path, c"security.capability", &mut value[..]) {
                let v2 = crate::layer::capability::to_v2(&value[..length.min(value.len())]);
                entry.capability = v2.and_then(|value| value.try_into().ok());
            }
        }
    }
}

/// The metadata of what is in `folder`; `None` if it was removed since the folder was read: as if it had never been there.
fn stat(folder: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Option<Stat>, ContextError> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(ContextError::io("look at", path, error.into())),
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts listings together, each folder before what is in it. That is component-wise order. An excluded folder in which
/// nothing stays goes.
fn assemble(mut listings: Vec<Listing>) -> Vec<ContextEntry> {
    let mut entries = Vec::with_capacity(listings.iter().map(Vec::len).sum());
    let Some(top) = listings.first_mut().map(std::mem::take) else { return entries };
    // Folders that are open: what is left of their listing, and where to go back to if nothing stays.
    let mut open = vec![(top.into_iter(), None)];
    while let Some((children, _)) = open.last_mut() {
        let Some(child) = children.next() else {
            let (_, excluded) = open.pop().unwrap_or_else(|| (Vec::new().into_iter(), None));
            if excluded.is_some_and(|start| start + 1 == entries.len()) {
                entries.pop();
            }
            continue;
        };
        let start = entries.len();
        entries.push(child.entry);
        if let Some(slot) = child.slot {
            let listing = std::mem::take(&mut listings[slot]);
            open.push((listing.into_iter(), child.excluded.then_some(start)));
        }
    }
    entries
}
