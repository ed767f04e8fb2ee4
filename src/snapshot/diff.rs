//! What a step changed: from overlay's upper directory to a layer.
//!
//! In: the upper directory that a command left, and the view that lay below it. Out: the layer's index (and tar, if
//! wanted), and the upper directory turned into the layer's tree. What always holds: the tree afterwards is what the
//! index says and no more – equal content digests mean equal trees –; each file that belongs to the layer is read
//! once, by one walk over what the command touched.
//!
//! What counts as a change:
//! * An entry that is as below in type, mode, owner, target, capability, data and whole-second time is none, if its time
//!   lies before the step began: opening for writing copies a file up, but what the command wrote is a change. Names of
//!   one file go together. A directory is none, whatever its time, if it is as below otherwise and so is all in it.
//! * A directory that hides what was below (overlay's opaque mark, inherited by all directories below it) becomes one
//!   whiteout for each lower entry that it has not.
//! * The headers of all directories that lead to a change are in the layer, as the command left them.
//! * Sockets are left out. Of extended attributes only capabilities stay. Times are cut to whole seconds.
//! * The root directory itself never changes.

mod walk;

use self::walk::{Item, walk};
use crate::digest::Hasher;
use crate::layer::apply::TreeOptions;
use crate::layer::entry::{Entry, Kind, is_below};
use crate::layer::index::LayerIndex;
use crate::layer::stack::LayerStack;
use crate::layer::write::{Body, LayerWriter, WriteError, show};
use crate::sys::root_dir::{Node, Place, RootDir};
use crate::sys::{file, xattr};
use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a step's changes could not be turned into a layer.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Something in the upper directory could not be read or changed.
    #[error("cannot {action} {}, which the step left", show(.path))]
    Upper {
        /// Its path in the image.
        path: Vec<u8>,
        /// What failed.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Overlay says something there that a layer cannot.
    #[error(
        "{} was changed in a way that no layer can hold (overlay wrote {attribute}): the file system was mounted with other \
         options than rbuild asks for",
        show(.path)
    )]
    Overlay {
        /// Its path in the image.
        path: Vec<u8>,
        /// The attribute.
        attribute: String,
    },
    /// The layer could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Turns the upper directory of a step that began at `began` into a layer over `lower`, and itself into its tree.
pub fn commit(
    upper: &Path,
    lower: &LayerStack,
    began: SystemTime,
    options: &TreeOptions,
) -> Result<LayerIndex, CommitError> {
    commit_to(upper, lower, began, options, io::sink()).map(|(_, index)| index)
}

/// As [`commit`]; the tar goes to `out`.
pub fn commit_to<W: Write>(
    upper: &Path,
    lower: &LayerStack,
    began: SystemTime,
    options: &TreeOptions,
    out: W,
) -> Result<(W, LayerIndex), CommitError> {
    let root = RootDir::open(upper).map_err(failed(b"", "open"))?;
    let mut items = walk(&root, lower, options.flavour)?;
    mark_changes(&root, lower, began, &mut items)?;
    let written = write(&root, &mut items, out)?;
    normalise(&root, lower, &items)?;
    Ok(written)
}

/// Finds out which items are changes.
fn mark_changes(root: &RootDir, lower: &LayerStack, began: SystemTime, items: &mut [Item]) -> Result<(), CommitError> {
    let began = began.duration_since(UNIX_EPOCH).map_or((0, 0), |time| (time.as_secs() as i64, time.subsec_nanos()));
    let mut changed_files: HashSet<(u64, u64)> = HashSet::new();
    for item in items.iter_mut() {
        item.changed = match item.entry.kind {
            _ if item.dropped => false,
            // The walk drops those that hide nothing.
            Kind::Whiteout => true,
            _ => !is_as_below(root, lower, began, item)?,
        };
        if item.changed && item.links > 1 && matches!(item.entry.kind, Kind::File { .. }) {
            changed_files.insert(item.inode);
        }
    }
    // Names of one file go together, and directories go with what is in them.
    let mut open: Vec<usize> = Vec::new();
    for at in 0..items.len() {
        let file = matches!(items[at].entry.kind, Kind::File { .. });
        if file && changed_files.contains(&items[at].inode) {
            items[at].changed = true;
        }
        while open.last().is_some_and(|dir| !is_below(&items[at].entry.path, &items[*dir].entry.path)) {
            open.pop();
        }
        if items[at].changed {
            for dir in &open {
                items[*dir].changed = true;
            }
        }
        if items[at].entry.kind == Kind::Directory {
            open.push(at);
        }
    }
    Ok(())
}

/// Whether an entry is what is below. Reads the data of files of which all else is equal.
fn is_as_below(root: &RootDir, lower: &LayerStack, began: (i64, u32), item: &Item) -> Result<bool, CommitError> {
    let entry = &item.entry;
    let Some(below) = lower.lookup(&entry.path).map(|found| found.entry) else {
        return Ok(false);
    };
    let metadata = |entry: &Entry| (entry.mode, entry.uid, entry.gid, entry.capability.clone());
    if metadata(entry) != metadata(&below) {
        return Ok(false);
    }
    if entry.kind == Kind::Directory && below.kind == Kind::Directory {
        return Ok(true);
    }
    if entry.mtime != below.mtime || item.mtime >= began {
        return Ok(false);
    }
    match (&entry.kind, &below.kind) {
        (Kind::File { size, .. }, Kind::File { size: size_below, sha256 }) => {
            if size != size_below {
                return Ok(false);
            }
            let failed = || failed(&entry.path, "read");
            let mut file = root.open_file(&entry.path).map_err(failed())?;
            let (mut sum, mut buffer) = (Hasher::new(), vec![0; 1 << 16]);
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => sum.update(&buffer[..read]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed()(error)),
                }
            }
            Ok(sum.finish() == *sha256)
        }
        (kind, below) => Ok(kind == below),
    }
}

/// Writes the changes. Of several names of one file the first becomes the file, the others links to it.
fn write<W: Write>(root: &RootDir, items: &mut [Item], out: W) -> Result<(W, LayerIndex), CommitError> {
    let mut writer = LayerWriter::new(out);
    let mut place = Place::new(root);
    let mut names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for item in items.iter_mut().filter(|item| item.changed) {
        let entry = &mut item.entry;
        if !matches!(entry.kind, Kind::File { .. }) {
            writer.push(entry, Body::None)?;
            continue;
        }
        if item.links > 1 {
            if let Some(first) = names.get(&item.inode) {
                entry.kind = Kind::HardLink { target: first.clone() };
                writer.push(entry, Body::None)?;
                continue;
            }
            names.insert(item.inode, entry.path.clone());
        }
        let opened = place.find(&entry.path).and_then(|(dir, name)| dir.open_file(name));
        let opened = opened.map_err(failed(&entry.path, "read"))?;
        writer.push(entry, Body::Reader(Box::new(opened)))?;
    }
    Ok(writer.finish()?)
}

/// Makes the upper directory the tree of the layer: removes what is no change, adds the whiteouts that opaque marks
/// stood for, drops attributes, cuts times.
fn normalise(root: &RootDir, lower: &LayerStack, items: &[Item]) -> Result<(), CommitError> {
    let mut place = Place::new(root);
    // Backwards: what is in a directory before the directory.
    for item in items.iter().rev() {
        let path = item.entry.path.as_slice();
        let (dir, name) = place.find(path).map_err(failed(path, "open the directory of"))?;
        if !item.changed {
            if item.present {
                let directory = item.entry.kind == Kind::Directory;
                let removed = if directory { dir.remove_dir(name) } else { dir.remove_file(name) };
                removed.map_err(failed(path, "remove"))?;
            }
            continue;
        }
        if !item.present {
            dir.make_node(name, Node::CharDevice(0, 0), 0).map_err(failed(path, "delete"))?;
            continue;
        }
        for attribute in &item.surplus {
            xattr::remove_at(dir, name, attribute).map_err(failed(path, "remove an attribute of"))?;
        }
        let directory = item.entry.kind == Kind::Directory;
        if item.entry.kind != Kind::Whiteout && (directory || item.mtime.1 != 0) {
            dir.set_time(name, item.entry.mtime).map_err(failed(path, "set the time of"))?;
        }
    }
    let dir = root.dir();
    let attributes = xattr::list(dir).map_err(failed(b"", "list the attributes of"))?;
    for attribute in attributes.iter().filter(|attribute| walk::is_surplus(attribute)) {
        xattr::remove(dir, attribute).map_err(failed(b"", "remove an attribute of"))?;
    }
    let metadata = lower.root_metadata();
    file::set_owner(dir, metadata.uid, metadata.gid).map_err(failed(b"", "set the owner of"))?;
    file::set_mode(dir, metadata.mode).map_err(failed(b"", "set the mode of"))?;
    file::set_time(dir, metadata.mtime).map_err(failed(b"", "set the time of"))
}

pub(super) fn failed<'p>(path: &'p [u8], action: &'static str) -> impl Fn(io::Error) -> CommitError + use<'p> {
    move |source| CommitError::Upper { path: path.to_vec(), action, source }
}

#[cfg(test)]
mod tests;
