//! The walk over an upper directory.
//!
//! In: the upper directory and the view below. Out: one [`Item`] for each entry that is there, and for each whiteout that an
//! opaque mark stands for, in the order of layers. Nothing is changed, no data is read.

use super::{CommitError, failed};
use crate::digest::Digest;
use crate::layer::apply::Flavour;
use crate::layer::capability;
use crate::layer::entry::{Entry, Kind};
use crate::layer::stack::LayerStack;
use crate::sys::root_dir::{Dir, RootDir, Stat, StatKind};
use crate::sys::xattr;
use std::collections::BTreeMap;

/// One entry of an upper directory.
#[derive(Debug)]
pub(super) struct Item {
    /// What a layer would say about it. The digest of a file is not known yet.
    pub(super) entry: Entry,
    /// Its file system and inode.
    pub(super) inode: (u64, u64),
    /// Names of its inode.
    pub(super) links: u64,
    /// Its exact time.
    pub(super) mtime: (i64, u32),
    /// It is there; else it is a whiteout to be made.
    pub(super) present: bool,
    /// It can be no part of a layer: a socket, or a whiteout of nothing.
    pub(super) dropped: bool,
    /// Attributes that are no part of a layer.
    pub(super) surplus: Vec<Vec<u8>>,
    /// It is no change until somebody says so.
    pub(super) changed: bool,
}

/// An entry, and whether it is a directory that hides what is below.
struct Child {
    item: Item,
    hides: bool,
}

/// Lists everything in an upper directory.
pub(super) fn walk(root: &RootDir, lower: &LayerStack, flavour: Flavour) -> Result<Vec<Item>, CommitError> {
    let mut items = Vec::new();
    // Not by recursion: a command can nest directories deeper than a thread's stack.
    let mut open = vec![children(root, lower, flavour, b"", false)?.into_iter()];
    while let Some(directory) = open.last_mut() {
        let Some(Child { item, hides }) = directory.next() else {
            open.pop();
            continue;
        };
        if item.entry.kind == Kind::Directory {
            open.push(children(root, lower, flavour, &item.entry.path, hides)?.into_iter());
        }
        items.push(item);
    }
    Ok(items)
}

/// The entries of one directory, in order. If it `hides` what is below, those of its lower entries that it lacks become
/// whiteouts.
fn children(
    root: &RootDir,
    lower: &LayerStack,
    flavour: Flavour,
    path: &[u8],
    hides: bool,
) -> Result<Vec<Child>, CommitError> {
    let dir = root.open_dir(path).map_err(failed(path, "open"))?;
    let join = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
    let mut children = BTreeMap::new();
    if hides {
        for (name, _) in lower.read_dir_ref(path) {
            children.insert(name.to_vec(), Child { item: whiteout(join(name)), hides: false });
        }
    }
    for name in dir.names().map_err(failed(path, "list"))? {
        let path = join(&name);
        let stat = dir.stat(&name).map_err(failed(&path, "examine"))?;
        if stat.kind == StatKind::CharDevice && stat.device == (0, 0) {
            let dropped = lower.lookup_ref(&path).is_none();
            let item = Item { present: true, dropped, ..whiteout(path) };
            children.insert(name, Child { item, hides: false });
            continue;
        }
        let child = examine(&dir, &name, path, &stat, flavour, hides)?;
        children.insert(name, child);
    }
    Ok(children.into_values().collect())
}

/// A whiteout that is yet to be made.
fn whiteout(path: Vec<u8>) -> Item {
    Item {
        entry: Entry { path, kind: Kind::Whiteout, mode: 0, uid: 0, gid: 0, mtime: 0, capability: None },
        inode: (0, 0),
        links: 1,
        mtime: (0, 0),
        present: false,
        dropped: false,
        surplus: Vec::new(),
        changed: false,
    }
}

fn examine(
    dir: &Dir,
    name: &[u8],
    path: Vec<u8>,
    stat: &Stat,
    flavour: Flavour,
    inside_hiding: bool,
) -> Result<Child, CommitError> {
    let (major, minor) = stat.device;
    let kind = match stat.kind {
        // The digest comes when the data is read.
        StatKind::File => Kind::File { size: stat.size, sha256: Digest::from_bytes([0; 32]) },
        StatKind::Directory => Kind::Directory,
        StatKind::Symlink => Kind::Symlink { target: dir.read_link(name).map_err(failed(&path, "read"))? },
        StatKind::CharDevice => Kind::CharDevice { major, minor },
        StatKind::BlockDevice => Kind::BlockDevice { major, minor },
        StatKind::Fifo | StatKind::Socket | StatKind::Other => Kind::Fifo,
    };
    let mut surplus = xattr::list_at(dir, name).map_err(failed(&path, "list the attributes of"))?;
    let mut capability = None;
    if surplus.iter().any(|attribute| attribute == xattr::CAPABILITY.as_bytes()) {
        let value = xattr::get_at(dir, name, xattr::CAPABILITY.as_bytes());
        capability =
            value.map_err(failed(&path, "read the capabilities of"))?.and_then(|value| capability::to_v2(&value));
    }
    let mut hides = inside_hiding;
    for attribute in &surplus {
        let Some(own) = attribute.strip_prefix(flavour.prefix().as_bytes()) else { continue };
        let value = || xattr::get_at(dir, name, attribute).map_err(failed(&path, "read an attribute of"));
        let understood = match own {
            b"opaque" => {
                let opaque = value()?.as_deref() == Some(b"y");
                hides |= opaque;
                opaque
            }
            // Without them the mount would have written what the layer needs.
            b"redirect" | b"metacopy" | b"whiteout" => false,
            _ => true,
        };
        if !understood {
            let attribute = String::from_utf8_lossy(attribute).into_owned();
            return Err(CommitError::Overlay { path, attribute });
        }
    }
    surplus.retain(|attribute| {
        is_surplus(attribute) || (capability.is_none() && attribute == xattr::CAPABILITY.as_bytes())
    });
    let mode = if stat.kind == StatKind::Symlink { 0o777 } else { stat.mode };
    let item = Item {
        entry: Entry { path, kind, mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime.0, capability },
        inode: stat.inode,
        links: stat.links,
        mtime: stat.mtime,
        present: true,
        dropped: matches!(stat.kind, StatKind::Socket | StatKind::Other),
        surplus,
        changed: false,
    };
    Ok(Child { item, hides })
}

/// Whether an attribute goes: all but capabilities and what the machine's own security systems put there, which is
/// none of the image's business, comes back by itself and often cannot be removed.
pub(super) fn is_surplus(attribute: &[u8]) -> bool {
    const KEPT: [&[u8]; 4] = [xattr::CAPABILITY.as_bytes(), b"security.selinux", b"security.ima", b"security.evm"];
    !KEPT.contains(&attribute) && !attribute.starts_with(b"security.SMACK64")
}
