//! What of a selection counts in cache keys.
//!
//! In: a [`Selection`]. Out: its digest. What always holds: it depends on what would be copied alone: relative paths,
//! types, final modes, link texts, sizes, bytes, capabilities, which names are one file, owners where they are kept, and
//! the name of a single file. It does not depend on times, on the directory that a source lies in, on the metadata of a
//! directory whose contents are copied, on host owners, or on modes that `--chmod` replaces.

use super::select::{Selected, Selection, Shape};
use super::source::NodeKind;
use crate::digest::{Digest, Hasher};

impl Selection {
    /// The digest of what is copied; `None` while there are files that nobody has read.
    pub fn digest(&self) -> Option<Digest> {
        let mut bytes = Vec::with_capacity(128 * self.sources.iter().map(|source| source.entries.len()).sum::<usize>());
        field(&mut bytes, b"rbuild copy 1");
        number(&mut bytes, self.sources.len() as u64);
        for source in &self.sources {
            match &source.shape {
                Shape::Tree { keep_existing } => bytes.extend_from_slice(&[0, u8::from(*keep_existing)]),
                Shape::Leaf { name } => {
                    bytes.push(1);
                    field(&mut bytes, name);
                }
                Shape::Archive { .. } => bytes.push(2),
            }
            number(&mut bytes, source.entries.len() as u64);
            for entry in &source.entries {
                if matches!(source.shape, Shape::Archive { .. }) {
                    // All that counts of an archive is in its bytes.
                    let NodeKind::File { sha256, .. } = entry.kind else { return None };
                    bytes.extend_from_slice(sha256?.as_bytes());
                } else {
                    feed(&mut bytes, entry)?;
                }
            }
        }
        let mut hasher = Hasher::new();
        hasher.update(&bytes);
        Some(hasher.finish())
    }
}

fn number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn field(bytes: &mut Vec<u8>, value: &[u8]) {
    number(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn feed(bytes: &mut Vec<u8>, entry: &Selected) -> Option<()> {
    // No time: see above. Where the bytes are is no property of them.
    let Selected { path, kind, mode, owner, mtime: _, capability, inode, data: _ } = entry;
    field(bytes, path);
    match kind {
        NodeKind::File { size, sha256 } => {
            bytes.push(b'f');
            number(bytes, *size);
            bytes.extend_from_slice((*sha256)?.as_bytes());
        }
        NodeKind::Directory => bytes.push(b'd'),
        NodeKind::Symlink(target) => {
            bytes.push(b'l');
            field(bytes, target);
        }
        NodeKind::CharDevice(major, minor) => {
            bytes.push(b'c');
            number(bytes, u64::from(*major) << 32 | u64::from(*minor));
        }
        NodeKind::BlockDevice(major, minor) => {
            bytes.push(b'b');
            number(bytes, u64::from(*major) << 32 | u64::from(*minor));
        }
        NodeKind::Fifo => bytes.push(b'p'),
    }
    number(bytes, u64::from(*mode));
    match owner {
        None => bytes.push(0),
        Some((uid, gid)) => {
            bytes.push(1);
            number(bytes, u64::from(*uid) << 32 | u64::from(*gid));
        }
    }
    match capability {
        None => bytes.push(0),
        Some(value) => {
            bytes.push(1);
            field(bytes, value);
        }
    }
    number(bytes, inode.map_or(0, |inode| inode as u64 + 1));
    Some(())
}
