//! What applying a tar entry by entry leaves, worked out without touching a file.
//!
//! In: the entries of a tar in its order. Out: the entries of a [`LayerIndex`] in ours. What always holds: no entry
//! lies below one that is no directory; of the names of a file the first in order is the file.

use super::{MAX_PATH, ScanError};
use crate::digest::{DiffId, Digest};
use crate::layer::content::{OPAQUE_NAME, WHITEOUT_PREFIX};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{Extent, IndexBuilder, KEPT_PATHS, LayerIndex, Origin, RootMetadata};
use std::collections::{BTreeMap, BTreeSet};

/// How many links the directory of an entry may lead through.
const LINK_LIMIT: usize = 40;

/// A path with NUL in place of `/`: the order of bytes is then that of components.
type Key = Vec<u8>;

/// What all entries have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) capability: Option<Vec<u8>>,
}

/// Where the data of a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileData {
    pub(super) size: u64,
    pub(super) sha256: Digest,
    pub(super) offset: u64,
    pub(super) extents: Option<Vec<Extent>>,
    pub(super) kept: Option<Vec<u8>>,
}

/// What an entry of the tar is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeKind {
    File(FileData),
    /// A hard link to this path.
    Link(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    CharDevice((u32, u32)),
    BlockDevice((u32, u32)),
    Fifo,
}

enum Node {
    /// A name of the file with this number.
    File(usize),
    /// A hard link to something that the layer does not hold.
    Link(Key, Metadata),
    Other(NodeKind, Metadata),
}

impl Node {
    fn is_directory(&self) -> bool {
        matches!(self, Self::Other(NodeKind::Directory, _))
    }
}

/// The state after some entries.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) root: Option<RootMetadata>,
    nodes: BTreeMap<Key, Node>,
    files: Vec<(FileData, Metadata)>,
    whiteouts: BTreeSet<Key>,
    opaque: BTreeSet<Key>,
    /// The directory of the last entry as the tar names it, and where it is.
    last: Option<(Vec<u8>, Key)>,
}

/// Whether the index keeps the bytes of this file.
pub(super) fn is_kept(path: &[u8]) -> bool {
    KEPT_PATHS.contains(&path)
}

impl Tree {
    /// How much the state holds.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() + self.files.len() + self.whiteouts.len() + self.opaque.len()
    }

    /// Applies an entry. `path` is clean and not the root.
    pub(super) fn insert(&mut self, path: &[u8], kind: NodeKind, metadata: Metadata) -> Result<(), &'static str> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = slash.map_or((b"" as &[u8], path), |slash| (&path[..slash], &path[slash + 1..]));
        if dir.split(|byte| *byte == b'/').chain([name]).any(is_aufs) {
            return Ok(());
        }
        if dir.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT_PREFIX)) {
            return Err("lies in a directory whose name means a deletion");
        }
        let dir = self.directory(dir)?;
        if dir.len() + name.len() + 1 > MAX_PATH {
            return Err("has a path of more than 4095 bytes, links followed");
        }
        if name == OPAQUE_NAME {
            self.opaque.insert(dir);
            return Ok(());
        }
        if let Some(victim) = name.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(victim, b"" | b"." | b"..") {
                return Err("deletes its own directory");
            }
            self.whiteouts.insert(join(&dir, victim));
            return Ok(());
        }
        let key = join(&dir, name);
        // Whether such a link leads anywhere only the layers below could tell, and nobody asks them about what is gone.
        if matches!(self.nodes.get(&key), Some(Node::Link(..))) {
            return Err("takes the place of a hard link to a file that the layer does not hold");
        }
        let node = match kind {
            NodeKind::File(data) => {
                self.files.push((data, metadata));
                Node::File(self.files.len() - 1)
            }
            NodeKind::Link(target) => self.link(&key, &target, metadata)?,
            NodeKind::Directory if self.nodes.get(&key).is_some_and(Node::is_directory) => {
                self.nodes.insert(key, Node::Other(NodeKind::Directory, metadata));
                return Ok(());
            }
            kind => Node::Other(kind, metadata),
        };
        // Anything else replaces what is there, with all that is in it.
        let replaced_link = matches!(self.nodes.get(&key), Some(Node::Other(NodeKind::Symlink(_), _)));
        let in_its_place = |(named, real): &(Vec<u8>, Key)| starts(named, path, b'/') || starts(real, &key, 0);
        if replaced_link || self.last.as_ref().is_some_and(in_its_place) {
            self.last = None;
        }
        if !node.is_directory() {
            remove_below(&mut self.nodes, &key);
            for marks in [&mut self.whiteouts, &mut self.opaque] {
                let below: Vec<Key> = marks.range(below(&key)).cloned().collect();
                for mark in &below {
                    marks.remove(mark);
                }
            }
            self.opaque.remove(&key);
        }
        self.nodes.insert(key, node);
        Ok(())
    }

    /// What a hard link to `target` is.
    fn link(&mut self, key: &Key, target: &[u8], metadata: Metadata) -> Result<Node, &'static str> {
        if target.is_empty() {
            return Err("is a hard link to a directory");
        }
        let slash = target.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = slash.map_or((b"" as &[u8], target), |slash| (&target[..slash], &target[slash + 1..]));
        let target = join(&self.directory(dir)?, name);
        if target == *key {
            return Err("is a hard link to itself");
        }
        match self.nodes.get(&target) {
            None if self.nodes.range(below(&target)).next().is_some() => Err("is a hard link to a directory"),
            None => Ok(Node::Link(target, metadata)),
            Some(Node::File(number)) => {
                // One file has one owner and mode, and who applies a link sets them.
                let number = *number;
                self.files[number].1 = Metadata { capability: self.files[number].1.capability.clone(), ..metadata };
                Ok(Node::File(number))
            }
            Some(Node::Link(target, metadata)) => Ok(Node::Link(target.clone(), metadata.clone())),
            Some(Node::Other(NodeKind::Directory, _)) => Err("is a hard link to a directory"),
            // Nobody can tell a second name of a link, device or pipe from a second one.
            Some(Node::Other(kind, metadata)) => Ok(Node::Other(kind.clone(), metadata.clone())),
        }
    }

    /// Where a directory is, links of this layer followed. What the layer does not hold stays as it is.
    fn directory(&mut self, dir: &[u8]) -> Result<Key, &'static str> {
        if let Some((known, key)) = &self.last
            && known == dir
        {
            return Ok(key.clone());
        }
        let mut real: Key = Vec::new();
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let push = |rest: &mut Vec<Vec<u8>>, path: &[u8]| {
            let names = path.split(|byte| *byte == b'/').rev();
            rest.extend(names.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec));
        };
        push(&mut rest, dir);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                real.truncate(real.iter().rposition(|byte| *byte == 0).unwrap_or(0));
                continue;
            }
            let next = join(&real, &name);
            match self.nodes.get(&next) {
                Some(Node::Other(NodeKind::Symlink(target), _)) => {
                    links += 1;
                    if links > LINK_LIMIT || target.contains(&0) {
                        return Err("lies behind too many links");
                    }
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    push(&mut rest, target);
                }
                Some(Node::Other(NodeKind::Directory, _)) | None => real = next,
                Some(_) => return Err("lies below something that is no directory"),
            }
        }
        // Links upon links would make it as long as they like, and each entry would have a copy.
        if real.len() > MAX_PATH {
            return Err("has a path of more than 4095 bytes, links followed");
        }
        self.last = Some((dir.to_vec(), real.clone()));
        Ok(real)
    }

    /// Makes the index.
    pub(super) fn finish(mut self, diff_id: DiffId, size: u64) -> Result<LayerIndex, ScanError> {
        let mut builder = IndexBuilder::new();
        if let Some(root) = self.root {
            builder.set_root(root);
        }
        if self.opaque.remove(b"".as_slice()) {
            builder.set_opaque_root();
        }
        // Whiteouts never hide what the layer itself holds: of a directory they hide what is below.
        for whiteout in std::mem::take(&mut self.whiteouts) {
            let holds = |key: &Key| self.nodes.range(below(key)).next().is_some();
            match self.nodes.get(&whiteout) {
                Some(node) if node.is_directory() => {
                    self.opaque.insert(whiteout);
                }
                Some(_) => {}
                None if holds(&whiteout) => {
                    self.opaque.insert(whiteout);
                }
                None => {
                    self.whiteouts.insert(whiteout);
                }
            }
        }
        let mut keys: Vec<(&Key, Mark)> = self.nodes.keys().map(|key| (key, Mark::Node)).collect();
        keys.extend(self.whiteouts.iter().map(|key| (key, Mark::Whiteout)));
        keys.extend(self.opaque.iter().map(|key| (key, Mark::Opaque)));
        keys.sort();
        let mut first_names: Vec<Option<&Key>> = vec![None; self.files.len()];
        let mut gone: Option<&Key> = None;
        for (key, mark) in keys {
            // In what is gone there can only be more of the same.
            if gone.is_some_and(|gone| starts(key, gone, 0)) {
                continue;
            }
            let path = to_path(key);
            let bare = |kind| EntryRef { path: &path, kind, mode: 0, uid: 0, gid: 0, mtime: 0, capability: None };
            match mark {
                Mark::Whiteout => {
                    gone = Some(key);
                    builder.push(&bare(KindRef::Whiteout), 0);
                }
                Mark::Opaque => builder.push(&bare(KindRef::Opaque), 0),
                Mark::Node => self.push_node(&mut builder, key, &path, &mut first_names),
            }
        }
        Ok(builder.finish(Origin::Foreign, diff_id, size)?)
    }

    fn push_node<'a>(
        &'a self,
        builder: &mut IndexBuilder,
        key: &'a Key,
        path: &[u8],
        first_names: &mut [Option<&'a Key>],
    ) {
        let entry = |kind, metadata: &'a Metadata| EntryRef {
            path: b"",
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            capability: metadata.capability.as_deref(),
        };
        match &self.nodes[key] {
            Node::File(number) => {
                let (data, metadata) = &self.files[*number];
                if let Some(first) = first_names[*number] {
                    let target = to_path(first);
                    let entry = entry(KindRef::Directory, metadata);
                    builder.push(&EntryRef { path, kind: KindRef::HardLink { target: &target }, ..entry }, 0);
                } else {
                    first_names[*number] = Some(key);
                    let kind = KindRef::File { size: data.size, sha256: data.sha256 };
                    let entry = EntryRef { path, ..entry(kind, metadata) };
                    builder.push_sparse(&entry, data.offset, data.extents.as_deref());
                    if let Some(bytes) = &data.kept {
                        builder.keep(path, bytes);
                    }
                }
            }
            Node::Link(target, metadata) => {
                let target = to_path(target);
                let entry = entry(KindRef::Directory, metadata);
                builder.push(&EntryRef { path, kind: KindRef::HardLink { target: &target }, ..entry }, 0);
            }
            Node::Other(kind, metadata) => {
                let kind = match kind {
                    NodeKind::Symlink(target) => KindRef::Symlink { target },
                    NodeKind::CharDevice((major, minor)) => KindRef::CharDevice { major: *major, minor: *minor },
                    NodeKind::BlockDevice((major, minor)) => KindRef::BlockDevice { major: *major, minor: *minor },
                    NodeKind::Fifo => KindRef::Fifo,
                    // Files and links are nodes of their own kind.
                    NodeKind::Directory | NodeKind::File(_) | NodeKind::Link(_) => KindRef::Directory,
                };
                let mut entry = EntryRef { path, ..entry(kind, metadata) };
                if let KindRef::Symlink { .. } = kind {
                    entry.mode = 0o777;
                }
                builder.push(&entry, 0);
            }
        }
    }
}

/// What a key of the result is; a directory comes before its opaque mark.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Node,
    Whiteout,
    Opaque,
}

/// Bookkeeping of AUFS, which old Docker left in layers; other programs skip it too.
fn is_aufs(name: &[u8]) -> bool {
    name.starts_with(b".wh..wh.") && name != OPAQUE_NAME
}

fn join(dir: &[u8], name: &[u8]) -> Key {
    if dir.is_empty() { name.to_vec() } else { [dir, b"\0", name].concat() }
}

/// Whether `path` is `dir` or lies below it.
fn starts(path: &[u8], dir: &[u8], separator: u8) -> bool {
    path.starts_with(dir) && path.get(dir.len()).is_none_or(|byte| *byte == separator)
}

fn to_path(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

/// The keys below `key`.
fn below(key: &[u8]) -> std::ops::Range<Key> {
    [key, b"\0"].concat()..[key, b"\x01"].concat()
}

fn remove_below(nodes: &mut BTreeMap<Key, Node>, key: &[u8]) {
    let below: Vec<Key> = nodes.range(below(key)).map(|(key, _)| key.clone()).collect();
    for key in &below {
        nodes.remove(key);
    }
}
