//! A directory as a build context.
//!
//! In: its path, the patterns of its ignore file and the cache of its files' digests. Out: lookups, listings and walks
//! of what stays, and open files. What always holds: paths are relative, without `.`, `..` or links, and name real
//! entries; what an ignore pattern excludes is as if it were not there; within one build a folder is walked once.

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use std::{fmt, fs, io, thread};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::ignore::{Above, Pattern, PatternError, Patterns};
use super::open::{open_below, stat_below};
use super::stat_cache::{Facts, Stamp, StatCache};
use super::walk::Walk;
use crate::digest::{Digest, Hasher};
use crate::sys::cancel::Cancel;

/// Something in a build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextEntry {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ContextKind,
    /// What the kernel said of it when it was looked at.
    pub stamp: Stamp,
    /// How many names it has.
    pub links: u64,
    /// SHA-256 of a file's data, if it is known.
    pub sha256: Option<Digest>,
    /// `security.capability` of a file, in version 2.
    pub capability: Option<[u8; 20]>,
}

/// What an entry of a context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its text.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Why a context cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The directory itself.
    #[error("cannot open the build context {}: {source}", path.display())]
    Root {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ignore file.
    #[error("cannot read {}: {source}", path.display())]
    IgnoreFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the ignore file says.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Something in it.
    #[error("cannot {action} {path:?} of the build context: {source}{}", remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// Relative to the root.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it was when the build looked at it first.
    #[error("{path:?} of the build context changed while it was being copied")]
    Changed {
        /// Relative to the root.
        path: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; if the image does not need it, exclude it in .dockerignore",
        _ => "",
    }
}

impl ContextError {
    pub(super) fn io(action: &'static str, path: &[u8], source: io::Error) -> Self {
        let path = if path.is_empty() { ".".into() } else { String::from_utf8_lossy(path).into_owned() };
        Self::Io { action, path, source }
    }
}

impl ContextKind {
    pub(super) fn of(kind: FileType, stat: &Stat) -> Self {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        match kind {
            FileType::Directory => Self::Directory,
            FileType::CharacterDevice => Self::CharDevice(major, minor),
            FileType::BlockDevice => Self::BlockDevice(major, minor),
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::File,
        }
    }
}

impl ContextEntry {
    pub(super) fn new(path: Vec<u8>, kind: ContextKind, stat: &Stat) -> Self {
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The type differs between machines.
        let links = stat.st_nlink as u64;
        Self { path, kind, stamp: Stamp::of(stat), links, sha256: None, capability: None }
    }
}

/// A part of a walk.
#[derive(Debug, Clone)]
pub struct Subtree {
    all: Arc<Vec<ContextEntry>>,
    range: Range<usize>,
}

impl Deref for Subtree {
    type Target = [ContextEntry];

    fn deref(&self) -> &[ContextEntry] {
        &self.all[self.range.clone()]
    }
}

impl Subtree {
    /// These alone.
    pub fn of(entries: Vec<ContextEntry>) -> Self {
        Self { range: 0..entries.len(), all: Arc::new(entries) }
    }

    /// One of them, in sixteen bytes.
    pub fn file(&self, number: usize) -> ContextFile {
        ContextFile { all: Arc::clone(&self.all), at: self.range.start + number }
    }
}

/// An entry of a walk, held without a copy: a build has a hundred thousand of them in several lists.
#[derive(Clone)]
pub struct ContextFile {
    all: Arc<Vec<ContextEntry>>,
    at: usize,
}

impl Deref for ContextFile {
    type Target = ContextEntry;

    fn deref(&self) -> &ContextEntry {
        &self.all[self.at]
    }
}

impl PartialEq for ContextFile {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for ContextFile {}

impl fmt::Debug for ContextFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

/// A directory that COPY reads from.
#[derive(Debug)]
pub struct LocalContext {
    root: PathBuf,
    dir: OwnedFd,
    patterns: Patterns,
    cache: StatCache,
    opened_at: SystemTime,
    walks: Mutex<Vec<(Vec<u8>, Subtree)>>,
    cancel: Option<Cancel>,
}

impl LocalContext {
    /// Opens the directory `root`. `now` is the time, or one before it: whatever changes later is too young to be
    /// trusted by the next build.
    pub fn open(root: &Path, patterns: Patterns, cache: StatCache, now: SystemTime) -> Result<Self, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| ContextError::Root { path: root.to_owned(), source: error.into() })?;
        let root = root.to_owned();
        Ok(Self { root, dir, patterns, cache, opened_at: now, walks: Mutex::default(), cancel: None })
    }

    /// From now on [`LocalContext::hash`] ends when `cancel` says so, with an error.
    pub fn heed(&mut self, cancel: &Cancel) {
        self.cancel = Some(cancel.clone());
    }

    /// Reads the ignore file that holds for a build of `dockerfile` in the context `root`: `DOCKERFILE.dockerignore`
    /// beside it, else the root's `.dockerignore`, else none. `None` is a Dockerfile without a path.
    pub fn read_ignore_file(root: &Path, dockerfile: Option<&Path>) -> Result<Patterns, ContextError> {
        let beside = dockerfile.map(|dockerfile| {
            let mut name = dockerfile.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        for path in beside.into_iter().chain([root.join(".dockerignore")]) {
            match fs::read(&path) {
                Ok(bytes) => {
                    let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                    return Ok(Patterns::parse(&name, &String::from_utf8_lossy(&bytes))?);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(source) => return Err(ContextError::IgnoreFile { path, source }),
            }
        }
        Ok(Patterns::default())
    }

    /// The directory's path, as it was given.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is left out.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    fn walker(&self) -> Walk<'_> {
        Walk { root: self.dir.as_fd(), root_path: &self.root, patterns: &self.patterns, cache: &self.cache }
    }

    /// What is at `path`, if it stays. Links are not followed, not even in the parents.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<ContextEntry>, ContextError> {
        let excluded = !path.is_empty() && self.patterns.matches(path);
        if excluded && !self.patterns.may_match_below(path) {
            return Ok(None);
        }
        let Some(entry) = self.look(path)? else { return Ok(None) };
        let stays = !excluded || (entry.kind == ContextKind::Directory && !self.walk(path)?.is_empty());
        Ok(stays.then_some(entry))
    }

    /// The pattern that hides what is at `path`. `None` where nothing is, or nothing is hidden.
    pub fn hidden_by(&self, path: &[u8]) -> Option<&Pattern> {
        let pattern = self.patterns.excluded_by(path)?;
        matches!(stat_below(self.dir.as_fd(), path), Ok(Some(_))).then_some(pattern)
    }

    /// What is at `path`, patterns or not.
    fn look(&self, path: &[u8]) -> Result<Option<ContextEntry>, ContextError> {
        let fail = |source| ContextError::io("look at", path, source);
        let Some(stat) = stat_below(self.dir.as_fd(), path).map_err(fail)? else { return Ok(None) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Some(ContextEntry::new(path.to_vec(), ContextKind::Directory, &stat))),
            FileType::Symlink => {
                let link = open_below(self.dir.as_fd(), path, OFlags::PATH).map_err(fail)?;
                self.walker().entry(&link, c"", path.to_vec(), &stat)
            }
            _ => self.walker().entry(&self.dir, c"", path.to_vec(), &stat),
        }
    }

    /// The direct children of the directory `dir` that stay, sorted by name.
    pub fn read_dir(&self, dir: &[u8]) -> Result<Vec<ContextEntry>, ContextError> {
        if let Some(walk) = self.walked(dir) {
            let start = if dir.is_empty() { 0 } else { dir.len() + 1 };
            return Ok(walk.iter().filter(|entry| !entry.path[start..].contains(&b'/')).cloned().collect());
        }
        let mut children = Vec::new();
        for (entry, excluded) in self.walker().children(dir, &self.above(dir))? {
            if !excluded || !self.walk(&entry.path)?.is_empty() {
                children.push(entry);
            }
        }
        Ok(children)
    }

    fn above(&self, dir: &[u8]) -> Above {
        let mut above = self.patterns.at_root();
        for end in dir.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([dir.len()]) {
            if end > 0 {
                above = self.patterns.enter(&above, &dir[..end]);
            }
        }
        above
    }

    /// All that stays below the directory `dir`, without itself, sorted component-wise.
    pub fn walk(&self, dir: &[u8]) -> Result<Subtree, ContextError> {
        if let Some(walk) = self.walked(dir) {
            return Ok(walk);
        }
        let subtree = Subtree::of(self.walker().run(dir)?);
        self.lock_walks().push((dir.to_vec(), subtree.clone()));
        Ok(subtree)
    }

    /// `dir`, if it is part of a walk that was made.
    fn walked(&self, dir: &[u8]) -> Option<Subtree> {
        let is_below = |path: &[u8], top: &[u8]| {
            top.is_empty() || path.strip_prefix(top).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        let walks = self.lock_walks();
        let (top, walk) = walks.iter().find(|(top, _)| top == dir || is_below(dir, top))?;
        if top == dir {
            return Some(walk.clone());
        }
        let start = walk.partition_point(|entry| crate::layer::entry::compare_paths(&entry.path, dir).is_le());
        let length = walk[start..].iter().take_while(|entry| is_below(&entry.path, dir)).count();
        Some(Subtree { all: walk.all.clone(), range: walk.range.start + start..walk.range.start + start + length })
    }

    fn lock_walks(&self) -> std::sync::MutexGuard<'_, Vec<(Vec<u8>, Subtree)>> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was walked: the next look sees the directory as it is now.
    pub fn forget(&self) {
        self.lock_walks().clear();
    }

    /// Opens a file for reading, if it is still the one that was looked at.
    pub fn open_file(&self, entry: &ContextEntry) -> Result<File, ContextError> {
        let file = self.open_unchecked(entry)?;
        self.check(&file, entry)?;
        Ok(file)
    }

    /// Opens whatever is now where `entry` was. For who asks [`Self::check`] when all is read.
    pub fn open_unchecked(&self, entry: &ContextEntry) -> Result<File, ContextError> {
        let fail = |source| ContextError::io("open", &entry.path, source);
        // Without NONBLOCK, opening what has become a named pipe would wait forever.
        open_below(self.dir.as_fd(), &entry.path, OFlags::RDONLY | OFlags::NONBLOCK).map(File::from).map_err(fail)
    }

    /// Whether the open `file` is as `entry` was: an error by name if not. To be asked once more after reading.
    pub fn check(&self, file: &File, entry: &ContextEntry) -> Result<(), ContextError> {
        let fail = |error: rustix::io::Errno| ContextError::io("look at", &entry.path, error.into());
        let stat = rustix::fs::fstat(file).map_err(fail)?;
        if Stamp::of(&stat) == entry.stamp { Ok(()) } else { Err(changed(&entry.path)) }
    }

    /// Whether what is there is still what was looked at.
    pub fn is_unchanged(&self, entry: &ContextEntry) -> bool {
        matches!(stat_below(self.dir.as_fd(), &entry.path), Ok(Some(stat)) if Stamp::of(&stat) == entry.stamp)
    }

    /// SHA-256 of each of `files`, on all processors; what is learned is remembered.
    pub fn hash(&self, files: &[&ContextEntry]) -> Result<Vec<Digest>, ContextError> {
        let mut order: Vec<usize> = (0..files.len()).collect();
        // The largest first, so that no thread is left alone with it at the end.
        order.sort_by_key(|index| std::cmp::Reverse(files[*index].stamp.size));
        let next = AtomicUsize::new(0);
        let results = Mutex::new(vec![None; files.len()]);
        let work = || -> Result<(), ContextError> {
            let mut buffer = vec![0; 128 << 10];
            let mut found = Vec::new();
            while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.hash_one(files[*index], &mut buffer) {
                    Ok(digest) => found.push((*index, digest)),
                    Err(error) => {
                        next.store(files.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            for (index, digest) in found {
                results[index] = Some(digest);
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(files.len().div_ceil(4)).min(16);
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut outcome = work();
            for other in others {
                // A panic there is a panic here.
                let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                outcome = outcome.and(theirs);
            }
            outcome
        })?;
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Every index was taken by a thread that ended well, so none is left out.
        Ok(results.into_iter().flatten().collect())
    }

    fn hash_one(&self, entry: &ContextEntry, buffer: &mut [u8]) -> Result<Digest, ContextError> {
        let mut file = self.open_file(entry)?;
        let mut hasher = Hasher::new();
        loop {
            if self.cancel.as_ref().is_some_and(Cancel::is_canceled) {
                return Err(ContextError::io("read", &entry.path, io::Error::other("the build was stopped")));
            }
            match file.read(buffer) {
                Ok(0) => break,
                Ok(length) => hasher.update(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ContextError::io("read", &entry.path, source)),
            }
        }
        self.check(&file, entry)?;
        if hasher.seen() != entry.stamp.size {
            return Err(changed(&entry.path));
        }
        let sha256 = hasher.finish();
        self.remember(entry.stamp, Facts { sha256, capability: entry.capability });
        Ok(sha256)
    }

    /// Takes note of what a file with this stamp holds, read by this build.
    pub fn remember(&self, stamp: Stamp, facts: Facts) {
        self.cache.put(stamp, facts, self.opened_at);
    }

    /// Writes what was learned for the next build; says whether there was something. `scratch` is for the unfinished file.
    pub fn save(&self, scratch: &Path) -> io::Result<bool> {
        self.cache.save(scratch)
    }
}

fn changed(path: &[u8]) -> ContextError {
    ContextError::Changed { path: String::from_utf8_lossy(path).into_owned() }
}

/// The path of an entry as the file system takes it.
pub fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests;
