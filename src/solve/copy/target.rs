//! What a layer in the making looks like, seen together with those below it.
//!
//! In: the layers below and what has landed so far. Out: what is at a path, and in the end the entries of the layer.
//! What always holds: what landed hides what was there; nothing lands in a directory that is not there.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::source::NodeKind;
use super::{CopyError, FileData, FileId, LandedEntry, UNREAD, lossy};
use crate::image::accounts::Owner;
use crate::layer::entry::{Entry, Kind, compare_paths, file_name, is_below, join, parent};
use crate::layer::entry_ref::KindRef;
use crate::layer::stack::LayerStack;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Absent,
    Directory,
    Link(Vec<u8>),
    /// Something else; what messages call it.
    Other(&'static str),
}

impl At {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Directory => "directory",
            Self::Link(_) => "symbolic link",
            Self::Other(name) => name,
        }
    }
}

/// Something that landed, at the path that [`Target`] knows it by.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// `None`: that of the build.
    pub(super) mtime: Option<i64>,
    pub(super) capability: Option<Vec<u8>>,
    pub(super) data: FileData,
    pub(super) file: Option<FileId>,
    /// Number of the file, where it may have several names.
    pub(super) inode: Option<usize>,
    /// It hides whatever is below, even if it is a directory.
    pub(super) hides: bool,
}

impl Slot {
    /// A directory that nothing was copied for.
    pub(super) fn directory(mode: u32, owner: Owner) -> Self {
        Self {
            kind: NodeKind::Directory,
            mode,
            uid: owner.uid,
            gid: owner.gid,
            mtime: None,
            capability: None,
            data: FileData::None,
            file: None,
            inode: None,
            hides: false,
        }
    }
}

/// Layers and what landed on them.
pub(super) struct Target<'a> {
    pub(super) below: &'a LayerStack,
    slots: IndexMap<Vec<u8>, Slot>,
}

impl<'a> Target<'a> {
    /// Nothing has landed yet; about `count` entries will.
    pub(super) fn new(below: &'a LayerStack, count: usize) -> Self {
        Self { below, slots: IndexMap::with_capacity(count) }
    }

    /// What landed at `path`.
    pub(super) fn landed(&self, path: &[u8]) -> Option<&Slot> {
        self.slots.get(path)
    }

    /// What is at `path`; its parents have no links.
    pub(super) fn at(&self, path: &[u8]) -> At {
        if path.is_empty() {
            return At::Directory;
        }
        if let Some(slot) = self.landed(path) {
            return match &slot.kind {
                NodeKind::Directory => At::Directory,
                NodeKind::Symlink(target) => At::Link(target.clone()),
                NodeKind::File { .. } => At::Other("file"),
                NodeKind::CharDevice(..) | NodeKind::BlockDevice(..) => At::Other("device"),
                NodeKind::Fifo => At::Other("named pipe"),
            };
        }
        let mut above = parent(path);
        while let Some(dir) = above.filter(|_| !self.slots.is_empty()) {
            if self.landed(dir).is_some_and(|slot| slot.hides) {
                return At::Absent;
            }
            above = parent(dir);
        }
        match self.below.lookup_ref(path).map(|found| found.entry.kind) {
            None | Some(KindRef::Whiteout | KindRef::Opaque) => At::Absent,
            Some(KindRef::Directory) => At::Directory,
            Some(KindRef::Symlink { target }) => At::Link(target.to_vec()),
            Some(KindRef::File { .. } | KindRef::HardLink { .. }) => At::Other("file"),
            Some(KindRef::CharDevice { .. } | KindRef::BlockDevice { .. }) => At::Other("device"),
            Some(KindRef::Fifo) => At::Other("named pipe"),
        }
    }

    /// Puts `slot` at `path`, in the place of what is there.
    pub(super) fn land(&mut self, path: Vec<u8>, mut slot: Slot) -> Result<(), CopyError> {
        if file_name(&path).starts_with(b".wh.") {
            return Err(CopyError::ReservedName { path: lossy(&path) });
        }
        let is_directory = slot.kind == NodeKind::Directory;
        slot.hides |= !is_directory;
        if let Some(old) = self.slots.get(&path) {
            slot.hides |= old.hides;
            if old.kind == NodeKind::Directory && !is_directory {
                self.slots.retain(|other, _| !is_below(other, &path));
            }
        }
        self.slots.insert(path, slot);
        Ok(())
    }

    /// The entries of the layer: sorted, with the headers of all directories above them.
    pub(super) fn finish(mut self) -> Vec<LandedEntry> {
        let mut further = self.whiteouts();
        self.slots.sort_unstable_by(|a, _, b, _| compare_paths(a, b));
        let mut first_names: HashMap<usize, Vec<u8>> = HashMap::new();
        let landed = self.slots.into_iter().map(|(path, slot)| slot.finish(path, &mut first_names));
        let mut entries: Vec<LandedEntry> = landed.collect();
        let mut before: &[u8] = b"";
        for landed in &entries {
            let path = &landed.entry.path;
            let above = std::iter::successors(parent(path), |dir| parent(dir));
            for dir in above.take_while(|dir| before != *dir && !is_below(before, dir)) {
                // What lies above an entry landed or is below.
                if let Some(found) = self.below.lookup(dir) {
                    further.push(LandedEntry::of_below(Entry { path: dir.to_vec(), ..found.entry }));
                }
            }
            before = path;
        }
        if !further.is_empty() {
            entries.extend(further);
            entries.sort_by(|a, b| compare_paths(&a.entry.path, &b.entry.path));
        }
        entries
    }

    /// A directory that took the place of something else, which had itself taken that of a directory below, must not
    /// show what that one held.
    fn whiteouts(&self) -> Vec<LandedEntry> {
        let mut entries = Vec::new();
        for (dir, _) in self.slots.iter().filter(|(_, slot)| slot.kind == NodeKind::Directory) {
            let above = std::iter::successors(Some(dir.as_slice()), |dir| parent(dir));
            if !above.into_iter().any(|dir| self.landed(dir).is_some_and(|slot| slot.hides)) {
                continue;
            }
            for (name, _) in self.below.read_dir(dir) {
                let path = join(dir, &name);
                if self.landed(&path).is_none() {
                    let entry =
                        Entry { path, kind: Kind::Whiteout, mode: 0, uid: 0, gid: 0, mtime: 0, capability: None };
                    entries.push(LandedEntry::of_below(entry));
                }
            }
        }
        entries
    }
}

impl LandedEntry {
    fn of_below(entry: Entry) -> Self {
        Self { entry, data: FileData::None, is_new: false, file: None, is_below: true }
    }
}

impl Slot {
    /// The entry. Of several names of a file the first one holds the data.
    fn finish(self, path: Vec<u8>, first_names: &mut HashMap<usize, Vec<u8>>) -> LandedEntry {
        let mut data = self.data;
        let kind = match self.kind {
            NodeKind::File { size, sha256 } => {
                if let Some(target) = self.inode.and_then(|inode| first_names.get(&inode)) {
                    data = FileData::None;
                    Kind::HardLink { target: target.clone() }
                } else {
                    if let Some(inode) = self.inode {
                        first_names.insert(inode, path.clone());
                    }
                    Kind::File { size, sha256: sha256.unwrap_or(UNREAD) }
                }
            }
            NodeKind::Directory => Kind::Directory,
            NodeKind::Symlink(target) => Kind::Symlink { target },
            NodeKind::CharDevice(major, minor) => Kind::CharDevice { major, minor },
            NodeKind::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
            NodeKind::Fifo => Kind::Fifo,
        };
        let file = self.file.filter(|_| matches!(kind, Kind::File { .. }));
        let entry = Entry {
            path,
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime.unwrap_or_default(),
            capability: self.capability,
        };
        LandedEntry { entry, data, is_new: self.mtime.is_none(), file, is_below: false }
    }
}
