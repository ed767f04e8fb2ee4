//! What of a selection counts in cache keys.
//!
//! In: a [`Selection`]. Out: its digest. What always holds: it depends on what would be copied alone: relative paths,
//! types, final modes, link texts, sizes, bytes, capabilities, which names are one file, owners where they are kept, and
//! the name of a single file. It does not depend on times, on the directory that a source lies in, on the metadata of a
//! directory whose contents are copied, on host owners, or on modes that `--chmod` replaces.

use super::select::{Selected, Selection, Shape};
use super::source::NodeKind;
use crate::digest::Digest;
use crate::layer::entry::shared_prefix;

impl Selection {
    /// The digest of what is copied; `None` while there are files that nobody has read.
    pub fn digest(&self) -> Option<Digest> {
        let entries = self.sources.iter().map(|source| source.entries.len()).sum::<usize>();
        let mut out = Encoder { bytes: Vec::with_capacity(80 * entries), last: &[] };
        out.field(b"rbuild copy 1");
        out.number(self.sources.len() as u64);
        for source in &self.sources {
            match &source.shape {
                Shape::Tree { keep_existing } => out.bytes.extend_from_slice(&[0, u8::from(*keep_existing)]),
                Shape::Leaf { name } => {
                    out.bytes.push(1);
                    out.field(name);
                }
                Shape::Archive { .. } => out.bytes.push(2),
                Shape::Named(id) => {
                    out.bytes.push(3);
                    out.bytes.extend_from_slice(id.as_bytes());
                }
            }
            out.number(source.entries.len() as u64);
            out.last = &[];
            for entry in &source.entries {
                if matches!(source.shape, Shape::Archive { .. }) {
                    // All that counts of an archive is in its bytes.
                    let NodeKind::File { sha256, .. } = entry.kind else { return None };
                    out.bytes.extend_from_slice(sha256?.as_bytes());
                } else {
                    out.entry(entry)?;
                }
            }
        }
        Some(Digest::of(&out.bytes))
    }
}

/// Writes so that it could be read again: what differs has different bytes. Short, since hashing the bytes is most of
/// the work where the processor does not help with it.
struct Encoder<'a> {
    bytes: Vec<u8>,
    /// The path before: of the next one, only what differs is written.
    last: &'a [u8],
}

impl<'a> Encoder<'a> {
    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn field(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    fn entry(&mut self, entry: &'a Selected) -> Option<()> {
        // No time: see above. Where the bytes are is no property of them.
        let Selected { path, kind, mode, owner, mtime: _, capability, inode, data: _ } = entry;
        let shared = shared_prefix(self.last, path);
        self.number(shared as u64);
        self.field(&path[shared..]);
        self.last = path;
        match kind {
            NodeKind::File { size, sha256 } => {
                self.bytes.push(b'f');
                self.number(*size);
                self.bytes.extend_from_slice((*sha256)?.as_bytes());
            }
            NodeKind::Directory => self.bytes.push(b'd'),
            NodeKind::Symlink(target) => {
                self.bytes.push(b'l');
                self.field(target);
            }
            NodeKind::CharDevice(major, minor) => {
                self.bytes.push(b'c');
                self.number(u64::from(*major));
                self.number(u64::from(*minor));
            }
            NodeKind::BlockDevice(major, minor) => {
                self.bytes.push(b'b');
                self.number(u64::from(*major));
                self.number(u64::from(*minor));
            }
            NodeKind::Fifo => self.bytes.push(b'p'),
        }
        self.number(u64::from(*mode));
        match owner {
            None => self.bytes.push(0),
            Some((uid, gid)) => {
                self.bytes.push(1);
                self.number(u64::from(*uid));
                self.number(u64::from(*gid));
            }
        }
        // No capability has no bytes.
        self.field(capability.as_deref().unwrap_or_default());
        self.number(inode.map_or(0, |inode| inode as u64 + 1));
        Some(())
    }
}
