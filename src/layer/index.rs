//! The layer index: the entries of one layer, sorted, searchable as they lie in one block of bytes.
//!
//! In: the bytes of an index file, or entries pushed into an [`IndexBuilder`]. Out: [`LayerIndex`].
//! What always holds of a `LayerIndex`: paths are clean (see [`is_clean`]) and strictly ascending in
//! component-wise order, but for a directory and its opaque mark, which follows it; nothing lies below an entry that is
//! no directory; every offset that the file holds lies inside it. [`LayerIndex::from_bytes`] checks all of this once, so
//! hostile bytes end there as an [`IndexError`], and look-ups afterwards neither fail nor allocate.
//!
//! # The file
//! Numbers are little endian. A header of [`HEADER`] bytes, one record of [`RECORD`] bytes per entry, then the heap:
//! paths, link targets, capabilities, maps of sparse files, and the bytes of `etc/passwd` and `etc/group`.
//!
//! | header | bytes | | record | bytes |
//! |---|---|---|---|---|
//! | 0 | `rbuildLI` | | 0 | path: heap offset, length (4 + 4) |
//! | 8 | format version (4) | | 8 | kind (1), flags (1: sparse), mode (2) |
//! | 12 | CRC-32 of all that follows (4) | | 12 | uid, gid (4 + 4) |
//! | 16 | diffID (32) | | 20 | length of the capability (4) |
//! | 48 | content digest (32) | | 24 | mtime (8) |
//! | 80 | size of the tar (8) | | 32 | size, or target: heap offset and length, or major and minor (8) |
//! | 88 | sum of the file sizes (8) | | 40 | offset of the data in the tar (8) |
//! | 96 | entries (4), length of the heap (4) | | 48 | heap offset of the capability (4) |
//! | 104 | writer version, 0: foreign (4); flags (4) | | 52 | heap offset of the sparse map (4) |
//! | 112 | root: mode, uid, gid (4 each), 0 (4), mtime (8) | | 56 | SHA-256 of the data (32) |
//! | 136 | passwd, group: heap offset, length (4 each) | | | |

mod build;
mod check;

pub use build::IndexBuilder;

use crate::digest::{ContentDigest, DiffId, Digest};
use crate::layer::entry::{Entry, compare_paths, is_below};
use crate::layer::entry_ref::{EntryRef, KindRef};
use std::cmp::Ordering;
use std::ops::Range;

#[cfg(doc)]
use crate::layer::entry::is_clean;

/// Version of the file format; a reader refuses every other.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of the header.
pub const HEADER: usize = 152;

/// Bytes of a record.
pub const RECORD: usize = 88;

/// Files longer than this are not kept, even if they are `etc/passwd` or `etc/group`.
pub const KEPT_LIMIT: u64 = 1 << 20;

/// The paths whose bytes an index keeps, so that names of users resolve without the layer.
pub const KEPT_PATHS: [&[u8]; 2] = [b"etc/passwd", b"etc/group"];

const MAGIC: &[u8; 8] = b"rbuildLI";

/// Bits of the header's flags.
mod flag {
    pub(super) const ROOT: u32 = 1;
    pub(super) const OPAQUE_ROOT: u32 = 2;
    pub(super) const HAS_OPAQUE: u32 = 4;
    pub(super) const HAS_WHITEOUT: u32 = 8;
    /// The first kept file; the second has the next bit.
    pub(super) const KEPT: u32 = 16;
    pub(super) const ALL: u32 = 63;
}

/// Values of a record's kind.
mod kind {
    pub(super) const FILE: u8 = 0;
    pub(super) const HARD_LINK: u8 = 1;
    pub(super) const DIRECTORY: u8 = 2;
    pub(super) const SYMLINK: u8 = 3;
    pub(super) const CHAR_DEVICE: u8 = 4;
    pub(super) const BLOCK_DEVICE: u8 = 5;
    pub(super) const FIFO: u8 = 6;
    pub(super) const WHITEOUT: u8 = 7;
    pub(super) const OPAQUE: u8 = 8;
}

/// Bit of a record's flags: the data lies in the tar without its holes.
const SPARSE: u8 = 1;

/// Why bytes are no layer index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not this kind of file.
    #[error("this is no layer index")]
    NotAnIndex,
    /// Made by another version of rbuild.
    #[error(
        "the layer index has format {found}, this rbuild reads {FORMAT_VERSION}; it can be made again from the layer"
    )]
    Version {
        /// What the file says.
        found: u32,
    },
    /// Damaged on its way or on disk.
    #[error("the layer index is damaged: {0}; delete it, it can be made again from the layer")]
    Damaged(&'static str),
    /// An entry that no layer can have.
    #[error("the layer index is damaged: entry {position} {what}; delete it, it can be made again from the layer")]
    Entry {
        /// Which entry.
        position: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More entries or longer names than the format has room for.
    #[error("the layer is too large for an index: {0}")]
    TooLarge(&'static str),
}

/// Where the tar of a layer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Written by rbuild: its tar can be made again from the index and the data.
    Made {
        /// Version of the writer, [`crate::layer::header::WRITER_VERSION`] at the time.
        writer: u32,
    },
    /// From outside: the exact tar must be kept.
    Foreign,
}

/// Metadata of the root directory, which is never an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootMetadata {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whole seconds since 1970.
    pub mtime: i64,
}

impl Default for RootMetadata {
    /// That of a root directory of which no layer says anything.
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: 0 }
    }
}

/// A piece of a sparse file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub start: u64,
    /// Bytes of it.
    pub length: u64,
}

/// The entries of one layer.
#[derive(Clone)]
pub struct LayerIndex {
    bytes: Vec<u8>,
    diff_id: DiffId,
    content: ContentDigest,
    tar_size: u64,
    files_size: u64,
    count: usize,
    origin: Origin,
    flags: u32,
    root: RootMetadata,
    kept: [Range<usize>; 2],
    /// Where the heap begins in `bytes`.
    heap: usize,
}

/// What an index says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What is there.
    pub at: At,
    /// The layer hides what is below: one of the ancestors is opaque.
    pub cut: bool,
    /// The path itself is an opaque directory.
    pub opaque: bool,
}

/// What is at a path of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Nothing: the layers below decide.
    Absent,
    /// The entry at this position (never an opaque mark).
    Entry(usize),
    /// A directory without a header of its own; the first entry below it is at this position.
    Implied(usize),
    /// Nothing, whatever the layers below hold: an ancestor is a whiteout or no directory.
    Hidden,
}

/// What an index says of its layer as a whole; read from the first [`HEADER`] bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of what the layer holds.
    pub content: ContentDigest,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Sum of the sizes of the files.
    pub files_size: u64,
}

impl LayerIndex {
    /// The bytes of the index file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the uncompressed tar.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// Digest of what the layer holds, times left out.
    pub fn content(&self) -> ContentDigest {
        self.content
    }

    /// Bytes of the uncompressed tar.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sum of the sizes of the files, hard-linked ones counted once: what Docker shows as SIZE.
    pub fn files_size(&self) -> u64 {
        self.files_size
    }

    /// Where the tar came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Metadata of the root directory, if the layer holds a header for it (only layers from outside do).
    pub fn root(&self) -> Option<RootMetadata> {
        (self.flags & flag::ROOT != 0).then_some(self.root)
    }

    /// Whether the layer hides everything below it.
    pub fn is_opaque_root(&self) -> bool {
        self.flags & flag::OPAQUE_ROOT != 0
    }

    /// Whether the layer hides anything below it: holds a whiteout or an opaque mark.
    pub fn has_whiteouts(&self) -> bool {
        self.flags & (flag::OPAQUE_ROOT | flag::HAS_OPAQUE | flag::HAS_WHITEOUT) != 0
    }

    /// The entry at `position`, owned.
    ///
    /// # Panics
    /// When `position` is not below [`Self::len`], as slices do.
    pub fn entry(&self, position: usize) -> Entry {
        self.entry_ref(position).to_entry()
    }

    /// The entry at `position`, borrowed.
    ///
    /// # Panics
    /// When `position` is not below [`Self::len`], as slices do.
    pub fn entry_ref(&self, position: usize) -> EntryRef<'_> {
        let record = self.record(position);
        let kind = match record[8] {
            kind::FILE => KindRef::File { size: u64_at(record, 32), sha256: digest_at(record, 56) },
            kind::HARD_LINK => KindRef::HardLink { target: self.heap(u32_at(record, 32), u32_at(record, 36)) },
            kind::DIRECTORY => KindRef::Directory,
            kind::SYMLINK => KindRef::Symlink { target: self.heap(u32_at(record, 32), u32_at(record, 36)) },
            kind::CHAR_DEVICE => KindRef::CharDevice { major: u32_at(record, 32), minor: u32_at(record, 36) },
            kind::BLOCK_DEVICE => KindRef::BlockDevice { major: u32_at(record, 32), minor: u32_at(record, 36) },
            kind::FIFO => KindRef::Fifo,
            kind::WHITEOUT => KindRef::Whiteout,
            // `check` lets no other value than `OPAQUE` through.
            _ => KindRef::Opaque,
        };
        let capability = u32_at(record, 20);
        EntryRef {
            path: self.heap(u32_at(record, 0), u32_at(record, 4)),
            kind,
            mode: u32::from(u16::from_le_bytes([record[10], record[11]])),
            uid: u32_at(record, 12),
            gid: u32_at(record, 16),
            mtime: u64_at(record, 24) as i64,
            capability: (capability != 0).then(|| self.heap(u32_at(record, 48), capability)),
        }
    }

    /// All entries in order, borrowed.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = EntryRef<'_>> + DoubleEndedIterator {
        (0..self.count).map(|position| self.entry_ref(position))
    }

    /// The path of the entry at `position`: cheaper than the entry.
    pub fn path(&self, position: usize) -> &[u8] {
        let record = self.record(position);
        self.heap(u32_at(record, 0), u32_at(record, 4))
    }

    /// Offset of a file's data in the uncompressed tar. That of a sparse file lies there without its holes:
    /// see [`Self::extents`].
    pub fn offset(&self, position: usize) -> u64 {
        u64_at(self.record(position), 40)
    }

    /// The pieces of a sparse file, which lie in the tar one after the other from [`Self::offset`] on;
    /// `None` for files whose data lies there as it is.
    pub fn extents(&self, position: usize) -> Option<Vec<Extent>> {
        let record = self.record(position);
        (record[9] & SPARSE != 0).then(|| {
            let start = u32_at(record, 52);
            let count = u32_at(self.heap(start, 4), 0);
            self.heap(start + 4, count * 16)
                .chunks_exact(16)
                .map(|extent| Extent { start: u64_at(extent, 0), length: u64_at(extent, 8) })
                .collect()
        })
    }

    /// The position of `path`, whatever is there; an opaque mark alone counts as nothing.
    pub fn position(&self, path: &[u8]) -> Option<usize> {
        let position = self.lower_bound(0, path);
        (position < self.count && self.path(position) == path && !self.is_opaque_mark(position)).then_some(position)
    }

    /// The entry at `path`.
    pub fn get(&self, path: &[u8]) -> Option<Entry> {
        self.position(path).map(|position| self.entry(position))
    }

    /// The entry at `path`, borrowed.
    pub fn get_ref(&self, path: &[u8]) -> Option<EntryRef<'_>> {
        self.position(path).map(|position| self.entry_ref(position))
    }

    /// What the layer says about `path`, its ancestors included; "" is the root.
    pub fn place(&self, path: &[u8]) -> Place {
        let mut cut = self.is_opaque_root();
        if path.is_empty() {
            return Place { at: At::Implied(0), cut: false, opaque: cut };
        }
        let mut from = 0;
        let mut end = 0;
        loop {
            end = path[end..].iter().position(|byte| *byte == b'/').map_or(path.len(), |length| end + length);
            let (prefix, last) = (&path[..end], end == path.len());
            let at = self.lower_bound(from, prefix);
            let here = if at < self.count { self.path(at) } else { b"" };
            if here == prefix {
                let directory = self.record(at)[8] == kind::DIRECTORY;
                let opaque = self.is_opaque_mark(at)
                    || (directory && at + 1 < self.count && self.is_opaque_mark(at + 1) && self.path(at + 1) == prefix);
                if last {
                    let found = if self.is_opaque_mark(at) { At::Implied(at) } else { At::Entry(at) };
                    return Place { at: found, cut, opaque };
                }
                if !directory && !opaque {
                    return Place { at: At::Hidden, cut, opaque: false };
                }
                cut |= opaque;
                from = at + 1;
            } else if at < self.count && is_below(here, prefix) {
                if last {
                    return Place { at: At::Implied(at), cut, opaque: false };
                }
                from = at;
            } else {
                return Place { at: At::Absent, cut, opaque: false };
            }
            end += 1;
        }
    }

    /// Positions of the direct children of `dir` ("" is the root) that have an entry of their own, whiteouts
    /// included, opaque marks not.
    pub fn children(&self, dir: &[u8]) -> impl Iterator<Item = usize> + use<'_> {
        self.names(dir).filter_map(|child| child.position)
    }

    /// The names directly below `dir` ("" is the root), in order; also those that only appear as the directory of
    /// something deeper.
    pub fn names(&self, dir: &[u8]) -> Names<'_> {
        let mut next = 0;
        if !dir.is_empty() {
            next = self.lower_bound(0, dir);
            while next < self.count && self.path(next) == dir {
                next += 1;
            }
            if next < self.count && !is_below(self.path(next), dir) {
                next = self.count;
            }
        }
        // The first entry below says what `dir` is, so that the iterator need not borrow the argument.
        let prefix = if next < self.count { &self.path(next)[..dir.len()] } else { b"" };
        Names { index: self, next, prefix }
    }

    /// Kept bytes of `etc/passwd` and `etc/group`, where the layer has them as files of at most 1 MiB.
    pub fn file_bytes(&self, path: &[u8]) -> Option<&[u8]> {
        let which = KEPT_PATHS.iter().position(|kept| *kept == path)?;
        (self.flags & (flag::KEPT << which) != 0).then(|| &self.bytes[self.kept[which].clone()])
    }

    /// The file that the hard link at `position` stands for: the position of its data; any other entry's own position;
    /// `None` when the layer does not hold the file.
    pub fn data_position(&self, position: usize) -> Option<usize> {
        match self.entry_ref(position).kind {
            KindRef::HardLink { target } => {
                self.position(target).filter(|target| self.record(*target)[8] == kind::FILE)
            }
            _ => Some(position),
        }
    }

    /// The first position from `from` on whose path is not before `path`.
    fn lower_bound(&self, from: usize, path: &[u8]) -> usize {
        let (mut low, mut high) = (from, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if compare_paths(self.path(middle), path) == Ordering::Less {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first position after `position` whose path is not below `dir`, which is at `position` or below it there.
    fn end_of(&self, position: usize, dir: &[u8]) -> usize {
        // Most directories are small: gallop before searching.
        let (mut low, mut step) = (position, 1);
        while low + step < self.count && is_below(self.path(low + step), dir) {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(self.count);
        low += 1;
        while low < high {
            let middle = low + (high - low) / 2;
            if is_below(self.path(middle), dir) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn is_opaque_mark(&self, position: usize) -> bool {
        self.record(position)[8] == kind::OPAQUE
    }

    #[inline]
    fn record(&self, position: usize) -> &[u8; RECORD] {
        &self.bytes[HEADER..self.heap].as_chunks::<RECORD>().0[position]
    }

    fn heap(&self, start: u32, length: u32) -> &[u8] {
        &self.bytes[self.heap + start as usize..][..length as usize]
    }
}

impl std::fmt::Debug for LayerIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerIndex")
            .field("diff_id", &self.diff_id)
            .field("content", &self.content)
            .field("origin", &self.origin)
            .field("len", &self.count)
            .finish_non_exhaustive()
    }
}

/// A name directly below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child<'a> {
    /// The last component.
    pub name: &'a [u8],
    /// Its entry; `None` when it only appears as the directory of something deeper.
    pub position: Option<usize>,
    /// The first entry at or below it.
    pub first: usize,
}

/// Iterates over the names directly below a directory.
pub struct Names<'a> {
    index: &'a LayerIndex,
    next: usize,
    prefix: &'a [u8],
}

impl<'a> Iterator for Names<'a> {
    type Item = Child<'a>;

    fn next(&mut self) -> Option<Child<'a>> {
        let index = self.index;
        let first = self.next;
        if first >= index.count || !is_below(index.path(first), self.prefix) {
            return None;
        }
        let path = index.path(first);
        let start = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let end = path[start..].iter().position(|byte| *byte == b'/').map_or(path.len(), |length| start + length);
        let own = end == path.len() && !index.is_opaque_mark(first);
        let mut after = first;
        if end == path.len() {
            // The entry itself, and an opaque mark behind it.
            after += 1;
            while after < index.count && index.path(after) == path {
                after += 1;
            }
        }
        if after < index.count && is_below(index.path(after), &path[..end]) {
            after = index.end_of(after, &path[..end]);
        }
        self.next = after;
        Some(Child { name: &path[start..end], position: own.then_some(first), first })
    }
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[inline]
fn digest_at(bytes: &[u8], at: usize) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(&bytes[at..at + 32]);
    Digest::from_bytes(digest)
}

#[cfg(test)]
mod tests;
