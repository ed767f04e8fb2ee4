//! What a layer that counts on the layers below it stands for there.
//!
//! Layers from outside may lack the headers of directories, may go through links of a lower layer, may link to its
//! files, and may hide what is not there. None of that can be a tree of its own.

use super::LayerStack;
use crate::layer::entry::{compare_paths, file_name, is_below, join, parent};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{IndexBuilder, IndexError, LayerIndex, Origin, RootMetadata};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Whether `index` may mean something else on other layers: only layers from outside ever do.
pub fn needs_parents(index: &LayerIndex) -> bool {
    if index.origin() != Origin::Foreign {
        return false;
    }
    if index.has_whiteouts() {
        return true;
    }
    let mut checked: &[u8] = b"";
    index.entries().enumerate().any(|(position, entry)| {
        if index.data_position(position).is_none() {
            return true;
        }
        match parent(entry.path) {
            Some(dir) if dir != checked => {
                checked = dir;
                !index.get_ref(dir).is_some_and(|entry| entry.kind.is_directory())
            }
            _ => false,
        }
    })
}

/// The layer that does over `below` what `index` does there, and stands for itself: links of lower layers in its paths
/// are resolved, directories that it goes through have headers (those from below, else 0755 0:0), whiteouts of what is
/// not there are gone. A hard link to a file of a lower layer stays one, its target resolved.
///
/// Its diffID and offsets are those of `index`; its content digest is its own.
pub fn on_parents(index: &LayerIndex, below: &LayerStack) -> Result<LayerIndex, IndexError> {
    let mut entries: BTreeMap<Key, Source<'_>> = BTreeMap::new();
    let mut last: Option<(&[u8], Vec<u8>)> = None;
    let mut opaque_root = index.is_opaque_root();
    for (position, entry) in index.entries().enumerate() {
        let opaque = matches!(entry.kind, KindRef::Opaque);
        let path = if opaque {
            real_directory(index, below, entry.path)
        } else {
            let dir = parent(entry.path).unwrap_or_default();
            // Neighbours mostly share their directory.
            let real = match last.take() {
                Some((known, real)) if known == dir => real,
                _ => real_directory(index, below, dir),
            };
            let path = join(&real, file_name(entry.path));
            last = Some((dir, real));
            path
        };
        if path.is_empty() {
            opaque_root = true;
            continue;
        }
        let victim = below.lookup_ref(&path);
        if matches!(entry.kind, KindRef::Whiteout) && (victim.is_none() || index.place(entry.path).cut) {
            continue;
        }
        add_ancestors(&mut entries, index, below, &path);
        if opaque {
            entries.entry(Key { path: path.clone(), opaque: false }).or_insert_with(|| made_up(below, &path));
            if !victim.is_some_and(|found| found.entry.kind.is_directory()) {
                continue;
            }
        }
        entries.insert(Key { path, opaque }, Source::Entry(position));
    }
    build(index, below, &entries, opaque_root)
}

/// Order of the entries of an index: by path, the opaque mark behind its directory.
#[derive(PartialEq, Eq)]
struct Key {
    path: Vec<u8>,
    opaque: bool,
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_paths(&self.path, &other.path).then(self.opaque.cmp(&other.opaque))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Where an entry comes from.
enum Source<'a> {
    /// A position of the index.
    Entry(usize),
    /// A directory that a lower layer has.
    Below(EntryRef<'a>),
    /// A directory that nobody has.
    New,
}

fn made_up<'a>(below: &'a LayerStack, path: &[u8]) -> Source<'a> {
    match below.lookup_ref(path) {
        Some(found) if found.entry.kind.is_directory() => Source::Below(found.entry),
        _ => Source::New,
    }
}

/// Where directory `dir` of the layer lies: a component of which the layer itself has no header may be a link below.
fn real_directory(index: &LayerIndex, below: &LayerStack, dir: &[u8]) -> Vec<u8> {
    let mut real = Vec::new();
    let mut end = 0;
    while end < dir.len() {
        let start = end;
        end = dir[start..].iter().position(|byte| *byte == b'/').map_or(dir.len(), |length| start + length);
        let named = join(&real, &dir[start..end]);
        let own = index.get_ref(&dir[..end]).is_some_and(|entry| entry.kind.is_directory());
        real = if own {
            named
        } else {
            // Links without an end are no directory: the layer's own directory replaces them.
            below.resolve(&named, true).unwrap_or(named)
        };
        end += 1;
    }
    real
}

/// Adds headers for all ancestors of `path` that have none yet.
fn add_ancestors<'a>(entries: &mut BTreeMap<Key, Source<'a>>, index: &LayerIndex, below: &'a LayerStack, path: &[u8]) {
    let mut dir = parent(path);
    while let Some(path) = dir {
        let key = Key { path: path.to_vec(), opaque: false };
        if entries.contains_key(&key) {
            return;
        }
        let source = match index.position(path) {
            Some(position) if index.entry_ref(position).kind.is_directory() => Source::Entry(position),
            _ => made_up(below, path),
        };
        entries.insert(key, source);
        dir = parent(path);
    }
}

fn build(
    index: &LayerIndex,
    below: &LayerStack,
    entries: &BTreeMap<Key, Source<'_>>,
    opaque_root: bool,
) -> Result<LayerIndex, IndexError> {
    let mut builder = IndexBuilder::new();
    if let Some(root) = index.root() {
        builder.set_root(root);
    }
    if opaque_root {
        builder.set_opaque_root();
    }
    // Two names of the layer may lead to one place, so what came last may have replaced a directory.
    let mut blocked: Option<&[u8]> = None;
    for (Key { path, .. }, source) in entries {
        if blocked.is_some_and(|blocked| path.as_slice() == blocked || is_below(path, blocked)) {
            continue;
        }
        match source {
            Source::Entry(position) => {
                let mut entry = EntryRef { path, ..index.entry_ref(*position) };
                if !entry.kind.is_directory() && !matches!(entry.kind, KindRef::Opaque) {
                    blocked = Some(path);
                }
                let real_target;
                if let KindRef::HardLink { target } = entry.kind {
                    let dir = real_directory(index, below, parent(target).unwrap_or_default());
                    real_target = join(&dir, file_name(target));
                    entry.kind = KindRef::HardLink { target: &real_target };
                    if index.data_position(*position).is_none()
                        && let Some(found) = below.lookup_ref(&real_target)
                    {
                        // The metadata is the file's, not that of its other name. A link to a link is one more link.
                        entry = EntryRef { path, ..found.entry };
                        if matches!(entry.kind, KindRef::File { .. } | KindRef::Directory) {
                            entry.kind = KindRef::HardLink { target: &real_target };
                        }
                    }
                }
                let extents = index.extents(*position);
                builder.push_sparse(&entry, index.offset(*position), extents.as_deref());
                if let Some(bytes) = index.file_bytes(index.path(*position)) {
                    builder.keep(path, bytes);
                }
            }
            Source::Below(directory) => builder.push(&EntryRef { path, ..*directory }, 0),
            Source::New => {
                let RootMetadata { mode, uid, gid, mtime } = RootMetadata::default();
                let kind = KindRef::Directory;
                builder.push(&EntryRef { path, kind, mode, uid, gid, mtime, capability: None }, 0);
            }
        }
    }
    builder.finish(Origin::Foreign, index.diff_id(), index.tar_size())
}
