//! Making single entries of a tree.

use super::{ApplyError, Previous};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::LayerIndex;
use crate::sys::root_dir::{Dir, Node, Place, RootDir};
use crate::sys::{file, xattr};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// Bytes of the tar that a thread reads at once.
const WINDOW: usize = 1 << 18;

/// Files from this size on are copied inside the kernel.
const LARGE: u64 = 1 << 17;

/// What all threads know.
pub(super) struct Maker<'a> {
    index: &'a LayerIndex,
    tar: &'a File,
    umask: u32,
    /// The owner that new files have.
    me: (u32, u32),
    previous: Option<PreviousTree<'a>>,
}

/// An earlier tree whose files serve again.
struct PreviousTree<'a> {
    index: &'a LayerIndex,
    root: RootDir,
    /// Its files with several names: names that the new layer may not join.
    linked: HashSet<&'a [u8]>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(index: &'a LayerIndex, tar: &'a File, previous: Option<&Previous<'a>>) -> Self {
        let previous = previous.and_then(|previous| {
            // A tree that is gone only costs time.
            let root = RootDir::open(previous.tree).ok()?;
            let index = previous.index;
            let linked = index.entries().filter_map(|entry| match entry.kind {
                KindRef::HardLink { target } => Some(target),
                _ => None,
            });
            Some(PreviousTree { index, root, linked: linked.collect() })
        });
        Self {
            index,
            tar,
            // Without knowing it, every mode is set.
            umask: file::umask().unwrap_or(0o777),
            me: file::owner_of_new_files(),
            previous,
        }
    }

    /// One thread's state.
    pub(super) fn worker<'w>(&'w self, root: &'w RootDir) -> Worker<'w> {
        Worker {
            maker: self,
            place: Place::new(root),
            previous: self.previous.as_ref().map(|previous| Place::new(&previous.root)),
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// Sets owner, mode and time of an entry that was made with `mode` and the owner of this process.
    pub(super) fn finish(&self, entry: &EntryRef<'_>, dir: &Dir, name: &[u8], mode: u32) -> Result<(), ApplyError> {
        if (entry.uid, entry.gid) != self.me {
            dir.set_owner(name, entry.uid, entry.gid).map_err(|source| owner_failed(entry, source))?;
        }
        let symlink = matches!(entry.kind, KindRef::Symlink { .. });
        if !symlink && (mode & !self.umask != entry.mode || entry.mode & 0o7000 != 0) {
            dir.set_mode(name, entry.mode).map_err(failed(entry, "set the mode of"))?;
        }
        dir.set_time(name, entry.mtime).map_err(failed(entry, "set the time of"))
    }
}

fn owner_failed(entry: &EntryRef<'_>, source: io::Error) -> ApplyError {
    if source.kind() != io::ErrorKind::InvalidInput {
        return failed(entry, "set the owner of")(source);
    }
    let ids = |file: &str| {
        let map = std::fs::read_to_string(file).unwrap_or_default();
        let ranges = map.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().ok());
            let (start, count) = (numbers.next()??, numbers.nth(1)??);
            Some(format!("{start}-{}", start + count.saturating_sub(1)))
        });
        ranges.collect::<Vec<_>>().join(", ")
    };
    ApplyError::Owner {
        path: entry.path.to_vec(),
        uid: entry.uid,
        gid: entry.gid,
        users: ids("/proc/self/uid_map"),
        groups: ids("/proc/self/gid_map"),
    }
}

/// Makes entries, one after the other.
pub(super) struct Worker<'a> {
    maker: &'a Maker<'a>,
    place: Place<'a>,
    previous: Option<Place<'a>>,
    /// Bytes of the tar, from `window_start` on: neighbours' data lies together.
    window: Vec<u8>,
    window_start: u64,
}

impl Worker<'_> {
    /// Makes the entry at `position`, which is no directory and no hard link.
    pub(super) fn make(&mut self, position: usize) -> Result<(), ApplyError> {
        let entry = self.maker.index.entry_ref(position);
        let (dir, name) = find(&mut self.place, entry.path)?;
        match entry.kind {
            KindRef::File { .. } => {
                if self.link_previous(&entry)? {
                    return Ok(());
                }
                return self.copy(position, entry.path);
            }
            KindRef::Symlink { target } => dir.make_symlink(name, target).map_err(failed(&entry, "make link"))?,
            KindRef::CharDevice { major, minor } => {
                dir.make_node(name, Node::CharDevice(major, minor), 0o600).map_err(failed(&entry, "make device"))?;
            }
            KindRef::BlockDevice { major, minor } => {
                dir.make_node(name, Node::BlockDevice(major, minor), 0o600).map_err(failed(&entry, "make device"))?;
            }
            KindRef::Fifo => dir.make_node(name, Node::Fifo, 0o600).map_err(failed(&entry, "make pipe"))?,
            KindRef::Whiteout => {
                return dir.make_node(name, Node::CharDevice(0, 0), 0).map_err(failed(&entry, "make whiteout"));
            }
            KindRef::Directory | KindRef::HardLink { .. } | KindRef::Opaque => return Ok(()),
        }
        self.maker.finish(&entry, dir, name, 0o600)
    }

    /// Makes a file by linking to the one in the previous tree, if that is the same.
    fn link_previous(&mut self, entry: &EntryRef<'_>) -> Result<bool, ApplyError> {
        let (Some(tree), Some(place)) = (&self.maker.previous, &mut self.previous) else {
            return Ok(false);
        };
        if tree.index.get_ref(entry.path).as_ref() != Some(entry) || tree.linked.contains(entry.path) {
            return Ok(false);
        }
        // Whatever is wrong over there, the tar has the data too.
        let Ok((old_dir, old_name)) = place.find(entry.path) else {
            return Ok(false);
        };
        let (dir, name) = find(&mut self.place, entry.path)?;
        match dir.make_link(name, old_dir, old_name) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(failed(entry, "make file")(error)),
            Err(_) => Ok(false),
        }
    }

    /// Makes a file at `path` with data and metadata of the one at `position`.
    pub(super) fn copy(&mut self, position: usize, path: &[u8]) -> Result<(), ApplyError> {
        let maker = self.maker;
        let entry = maker.index.entry_ref(position);
        let KindRef::File { size, .. } = entry.kind else { return Ok(()) };
        let new = self.make_file(&entry, path)?;
        let start = maker.index.offset(position);
        let unreadable = |source| ApplyError::Data { path: entry.path.to_vec(), source };
        if let Some(extents) = maker.index.extents(position) {
            new.set_len(size).map_err(failed(&entry, "make file"))?;
            let mut stored = start;
            for extent in extents {
                file::copy_range(maker.tar, stored, &new, extent.start, extent.length).map_err(unreadable)?;
                stored += extent.length;
            }
        } else if size >= LARGE {
            file::copy_range(maker.tar, start, &new, 0, size).map_err(unreadable)?;
        } else if size > 0 {
            let data = self.window(start, size as usize).map_err(unreadable)?;
            (&new).write_all(data).map_err(failed(&entry, "write"))?;
        }
        self.finish_file(&entry, &new)
    }

    /// Makes a file at `path` with the metadata of `entry` and the data of `reader`.
    pub(super) fn make_from(
        &mut self,
        entry: &EntryRef<'_>,
        path: &[u8],
        reader: &mut dyn Read,
    ) -> Result<(), ApplyError> {
        let mut new = self.make_file(entry, path)?;
        let copied =
            io::copy(reader, &mut new).map_err(|source| ApplyError::Data { path: entry.path.to_vec(), source })?;
        if let KindRef::File { size, .. } = entry.kind
            && copied != size
        {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(ApplyError::Data { path: entry.path.to_vec(), source });
        }
        self.finish_file(entry, &new)
    }

    fn make_file(&mut self, entry: &EntryRef<'_>, path: &[u8]) -> Result<File, ApplyError> {
        let (dir, name) = find(&mut self.place, path)?;
        dir.make_file(name, entry.mode & 0o777).map_err(failed(entry, "make file"))
    }

    /// Sets what making and writing a file did not.
    fn finish_file(&self, entry: &EntryRef<'_>, new: &File) -> Result<(), ApplyError> {
        let maker = self.maker;
        if (entry.uid, entry.gid) != maker.me {
            file::set_owner(new, entry.uid, entry.gid).map_err(|source| owner_failed(entry, source))?;
        }
        // Changing the owner drops setuid and setgid, and capabilities.
        if entry.mode & (0o7000 | maker.umask) != 0 {
            file::set_mode(new, entry.mode).map_err(failed(entry, "set the mode of"))?;
        }
        if let Some(capability) = entry.capability {
            xattr::set(new, xattr::CAPABILITY.as_bytes(), capability)
                .map_err(failed(entry, "set the capabilities of"))?;
        }
        file::set_time(new, entry.mtime).map_err(failed(entry, "set the time of"))
    }

    /// `length` bytes of the tar.
    fn window(&mut self, start: u64, length: usize) -> io::Result<&[u8]> {
        let inside =
            start >= self.window_start && start + length as u64 <= self.window_start + self.window.len() as u64;
        if !inside {
            self.window.resize(WINDOW.max(length), 0);
            self.window_start = start;
            let mut filled = 0;
            while filled < self.window.len() {
                match self.maker.tar.read_at(&mut self.window[filled..], start + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.window.clear();
                        return Err(error);
                    }
                }
            }
            self.window.truncate(filled);
            if filled < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let from = (start - self.window_start) as usize;
        Ok(&self.window[from..from + length])
    }
}

/// The open directory and the name of `path`.
pub(super) fn find<'a, 'p>(place: &'a mut Place<'_>, path: &'p [u8]) -> Result<(&'a Dir, &'p [u8]), ApplyError> {
    let failed = |source| ApplyError::Make { path: path.to_vec(), action: "open the directory of", source };
    place.find(path).map_err(failed)
}

fn failed<'e>(entry: &EntryRef<'e>, action: &'static str) -> impl FnOnce(io::Error) -> ApplyError + use<'e> {
    let path = entry.path;
    move |source| ApplyError::Make { path: path.to_vec(), action, source }
}
