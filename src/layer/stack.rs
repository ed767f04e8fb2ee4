//! The merged view of a stack of layers, answered from their indexes alone.
//!
//! In: layer indexes, bottom first. Out: what a process would find at a path if the stack were mounted.
//! What always holds: the view is that of applying the layers one after the other: an entry of another type replaces
//! what is below with everything in it, a directory on a directory merges, whiteouts and opaque directories hide, hard
//! links are shown as their file. No file is touched.
//!
//! A layer from outside may count on what lies below it: `lib/x` over the link `lib → usr/lib` is `usr/lib/x`.
//! [`LayerStack::new`] settles that by [`on_parents`], so that each layer in the stack stands for itself.

mod parents;
mod walk;

pub use parents::{needs_parents, on_parents};
pub use walk::{Visible, Walk};

use crate::layer::entry::Entry;
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{At, IndexError, LayerIndex, RootMetadata};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many symbolic links a path may lead through, as in Linux.
pub const LINK_LIMIT: usize = 40;

/// Layers, bottom first.
#[derive(Debug, Clone, Default)]
pub struct LayerStack {
    /// Bottom first. Each stands for itself: see [`LayerStack::new`].
    pub layers: Vec<Arc<LayerIndex>>,
    /// Bytes of files that no index keeps, by path: where links lead from `etc/passwd` and `etc/group`, if somebody looked.
    pub linked: BTreeMap<Vec<u8>, Arc<[u8]>>,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its metadata. Hard links are shown as the file that they name, under the path that was asked for.
    pub entry: Entry,
    /// The layer that holds it: an index into [`LayerStack::layers`].
    pub layer: usize,
    /// Its position there; of a hard link, that of its file. For a directory that has no header anywhere, that of
    /// something below it; for the root, which is never an entry, `usize::MAX`.
    pub position: usize,
}

/// What is at a path, borrowed; fields as in [`Found`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRef<'a> {
    /// As [`Found::entry`].
    pub entry: EntryRef<'a>,
    /// As [`Found::layer`].
    pub layer: usize,
    /// As [`Found::position`].
    pub position: usize,
}

impl FoundRef<'_> {
    /// Copies what is borrowed.
    pub fn to_found(self) -> Found {
        Found { entry: self.entry.to_entry(), layer: self.layer, position: self.position }
    }
}

/// A hard link to nothing: it may name a file of its own layer, or of one below.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("/{} is a hard link to /{}, which is no file of the image", String::from_utf8_lossy(.path), String::from_utf8_lossy(.target))]
pub struct BrokenLink {
    /// The layer that has it: an index into [`LayerStack::layers`].
    pub layer: usize,
    /// Its path.
    pub path: Vec<u8>,
    /// What it names.
    pub target: Vec<u8>,
}

/// Why a path has no end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// More links than the kernel follows.
    #[error("/{} leads through more than {LINK_LIMIT} symbolic links", String::from_utf8_lossy(.path))]
    TooManyLinks {
        /// The path that was asked for.
        path: Vec<u8>,
    },
}

impl LayerStack {
    /// A stack of layers as they came, bottom first. Those that count on what lies below them are replaced by what they
    /// stand for there; positions in [`Found`] are those of the replacement, offsets in the tar stay.
    pub fn new(layers: impl IntoIterator<Item = Arc<LayerIndex>>) -> Result<Self, IndexError> {
        let mut stack = Self::default();
        for layer in layers {
            let layer = if needs_parents(&layer) { Arc::new(on_parents(&layer, &stack)?) } else { layer };
            stack.layers.push(layer);
        }
        Ok(stack)
    }

    /// The lowest hard link that leads nowhere. No layer tells by itself.
    pub fn broken_link(&self) -> Option<BrokenLink> {
        for (height, layer) in self.layers.iter().enumerate() {
            for (position, link) in layer.entries().enumerate() {
                if let KindRef::HardLink { target } = link.kind
                    && layer.data_position(position).is_none()
                    && self.lookup_below(height + 1, link.path).is_none()
                {
                    return Some(BrokenLink { layer: height, path: link.path.to_vec(), target: target.to_vec() });
                }
            }
        }
        None
    }

    /// What is at `path`; "" is the root. Links in it are not followed: see [`Self::resolve`].
    pub fn lookup(&self, path: &[u8]) -> Option<Found> {
        self.lookup_ref(path).map(FoundRef::to_found)
    }

    /// What is at `path`, borrowed.
    pub fn lookup_ref(&self, path: &[u8]) -> Option<FoundRef<'_>> {
        if path.is_empty() {
            return Some(self.root());
        }
        self.lookup_below(self.layers.len(), path)
    }

    /// What the layers under number `top` hold at `path`, which is not empty.
    fn lookup_below(&self, top: usize, path: &[u8]) -> Option<FoundRef<'_>> {
        let mut implied = None;
        for number in (0..top).rev() {
            let layer = &self.layers[number];
            let place = layer.place(path);
            match place.at {
                At::Hidden => break,
                At::Entry(position) => {
                    let entry = layer.entry_ref(position);
                    match entry.kind {
                        KindRef::Whiteout => break,
                        KindRef::HardLink { target } => {
                            // A file that the layer does not hold itself is one of a layer below.
                            let file = match layer.data_position(position) {
                                Some(at) => Some(FoundRef { entry: layer.entry_ref(at), layer: number, position: at }),
                                None if layer.position(target).is_none() => self.lookup_below(number, target),
                                None => None,
                            };
                            let file = file.filter(|file| matches!(file.entry.kind, KindRef::File { .. }));
                            return implied.or(file
                                .map(|file| FoundRef { entry: EntryRef { path: entry.path, ..file.entry }, ..file }));
                        }
                        // A directory without a header merges with the one below, and hides anything else.
                        _ if implied.is_some() && !entry.kind.is_directory() => break,
                        _ => return Some(FoundRef { entry, layer: number, position }),
                    }
                }
                At::Implied(first) if implied.is_none() && self.holds_something(number, first, path) => {
                    let RootMetadata { mode, uid, gid, mtime } = RootMetadata::default();
                    let path = &layer.path(first)[..path.len()];
                    let entry = EntryRef { path, kind: KindRef::Directory, mode, uid, gid, mtime, capability: None };
                    implied = Some(FoundRef { entry, layer: number, position: first });
                }
                At::Implied(_) | At::Absent => {}
            }
            if place.cut || (place.opaque && implied.is_some()) {
                break;
            }
        }
        implied
    }

    /// Whether anything at or below `path`, from `first` on, makes a directory of it: whiteouts alone do not.
    fn holds_something(&self, number: usize, first: usize, path: &[u8]) -> bool {
        let layer = &self.layers[number];
        (first..layer.len())
            .map(|position| layer.entry_ref(position))
            .take_while(|entry| entry.path == path || crate::layer::entry::is_below(entry.path, path))
            .any(|entry| !matches!(entry.kind, KindRef::Whiteout))
    }

    /// The names in directory `dir` ("" is the root), in byte order, with what is there. Empty when it is no directory.
    pub fn read_dir(&self, dir: &[u8]) -> Vec<(Vec<u8>, Found)> {
        self.read_dir_ref(dir).into_iter().map(|(name, found)| (name.to_vec(), found.to_found())).collect()
    }

    /// The names in directory `dir`, borrowed.
    pub fn read_dir_ref(&self, dir: &[u8]) -> Vec<(&[u8], FoundRef<'_>)> {
        // What the topmost layer that says anything about a name says about it.
        let mut names: BTreeMap<&[u8], Option<FoundRef<'_>>> = BTreeMap::new();
        for number in (0..self.layers.len()).rev() {
            let layer = &self.layers[number];
            let place = layer.place(dir);
            match place.at {
                At::Absent => {}
                At::Hidden => break,
                At::Entry(position) if !layer.entry_ref(position).kind.is_directory() => break,
                At::Entry(_) | At::Implied(_) => {
                    for child in layer.names(dir) {
                        if names.contains_key(child.name) {
                            continue;
                        }
                        let found = match child.position.map(|position| (position, layer.entry_ref(position))) {
                            Some((_, entry)) if matches!(entry.kind, KindRef::Whiteout) => None,
                            Some((position, entry)) if !matches!(entry.kind, KindRef::HardLink { .. }) => {
                                Some(FoundRef { entry, layer: number, position })
                            }
                            // Hard links, and directories without a header: the general way.
                            _ => {
                                let end = if dir.is_empty() { 0 } else { dir.len() + 1 } + child.name.len();
                                self.lookup_below(number + 1, &layer.path(child.first)[..end])
                            }
                        };
                        names.insert(child.name, found);
                    }
                }
            }
            if place.cut || place.opaque {
                break;
            }
        }
        names.into_iter().filter_map(|(name, found)| found.map(|found| (name, found))).collect()
    }

    /// The real path of `path`: relative to the root, without links, "" for the root itself. Links lead inside the
    /// root, `..` stops there, and components that do not exist stay as they are. Unless `follow_last`, a link at the
    /// very end stays too.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Vec<u8>, ResolveError> {
        let mut real: Vec<u8> = Vec::with_capacity(path.len());
        // Components still to be walked, the next one last.
        let mut rest: Vec<&[u8]> = Vec::new();
        push_components(&mut rest, path);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                real.truncate(real.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let parent = real.len();
            if parent != 0 {
                real.push(b'/');
            }
            real.extend_from_slice(name);
            if rest.is_empty() && !follow_last {
                break;
            }
            let Some(KindRef::Symlink { target }) = self.lookup_ref(&real).map(|found| found.entry.kind) else {
                continue;
            };
            links += 1;
            if links > LINK_LIMIT {
                return Err(ResolveError::TooManyLinks { path: path.to_vec() });
            }
            real.truncate(if target.starts_with(b"/") { 0 } else { parent });
            push_components(&mut rest, target);
        }
        Ok(real)
    }

    /// Kept bytes of `etc/passwd` or `etc/group`, if the stack has a file there whose layer kept them, or of what is
    /// [`linked`](Self::linked). A link is not followed, so `None` need not mean that there is no such file.
    pub fn file_bytes(&self, path: &[u8]) -> Option<&[u8]> {
        if let Some(bytes) = self.linked.get(path) {
            return Some(bytes);
        }
        let found = self.lookup_ref(path)?;
        let layer = &self.layers[found.layer];
        layer.file_bytes(path).or_else(|| layer.file_bytes(layer.path(found.position)))
    }

    /// The same of what `path` leads to.
    pub fn linked_bytes(&self, path: &[u8]) -> Option<&[u8]> {
        self.file_bytes(&self.resolve(path, true).ok()?)
    }

    /// Metadata of the root directory: the topmost that a layer has, else 0755 0:0.
    pub fn root_metadata(&self) -> RootMetadata {
        self.layers.iter().rev().find_map(|layer| layer.root()).unwrap_or_default()
    }

    fn root(&self) -> FoundRef<'_> {
        let RootMetadata { mode, uid, gid, mtime } = self.root_metadata();
        let entry = EntryRef { path: b"", kind: KindRef::Directory, mode, uid, gid, mtime, capability: None };
        FoundRef { entry, layer: self.layers.len().saturating_sub(1), position: usize::MAX }
    }
}

/// Puts the components of `path` on `rest` so that the first one is popped first.
fn push_components<'a>(rest: &mut Vec<&'a [u8]>, path: &'a [u8]) {
    rest.extend(path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty() && *name != b"."));
}

#[cfg(test)]
mod tests;
