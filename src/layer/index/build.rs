//! Making an index: entries go in one by one, in order.

use super::{
    Extent, FORMAT_VERSION, HEADER, IndexError, KEPT_LIMIT, KEPT_PATHS, LayerIndex, MAGIC, Origin, RECORD,
    RootMetadata, SPARSE, flag, kind, u32_at,
};
use crate::digest::{ContentDigest, DiffId};
use crate::layer::content::ContentHasher;
use crate::layer::entry::compare_paths;
use crate::layer::entry_ref::{EntryRef, KindRef};
use std::cmp::Ordering;

/// Collects entries and the bytes that an index keeps.
///
/// The caller pushes entries in component-wise order, each path once (a directory and its opaque mark excepted), and
/// nothing below an entry that is no directory.
pub struct IndexBuilder {
    records: Vec<u8>,
    heap: Vec<u8>,
    content: ContentHasher,
    files_size: u64,
    flags: u32,
    root: RootMetadata,
    kept: [(u32, u32); 2],
    /// Set when something did not fit; reported by `finish`.
    too_large: Option<&'static str>,
    /// The last path: its heap offset and length.
    last: Option<(u32, u32)>,
}

impl Default for IndexBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl IndexBuilder {
    /// Starts an index without entries.
    pub fn new() -> Self {
        Self {
            records: Vec::new(),
            heap: Vec::new(),
            content: ContentHasher::new(),
            files_size: 0,
            flags: 0,
            root: RootMetadata::default(),
            kept: [(0, 0); 2],
            too_large: None,
            last: None,
        }
    }

    /// The path that was pushed last.
    pub fn last_path(&self) -> Option<&[u8]> {
        self.last.map(|(start, length)| &self.heap[start as usize..][..length as usize])
    }

    /// Whether a regular file of this path was pushed.
    pub fn holds_file(&self, path: &[u8]) -> bool {
        let at = |position: usize| &self.records[position * RECORD..][..RECORD];
        let path_of = |record: &[u8]| u32_at(record, 0) as usize..(u32_at(record, 0) + u32_at(record, 4)) as usize;
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match compare_paths(&self.heap[path_of(at(middle))], path) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return at(middle)[8] == kind::FILE,
                Ordering::Greater => high = middle,
            }
        }
        false
    }

    /// Number of entries so far.
    pub fn len(&self) -> usize {
        self.records.len() / RECORD
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Sets the metadata of the root directory.
    pub fn set_root(&mut self, root: RootMetadata) {
        self.root = RootMetadata { mode: root.mode & 0o7777, ..root };
        self.flags |= flag::ROOT;
    }

    /// Marks the root as hiding everything below the layer. Goes before the first entry.
    pub fn set_opaque_root(&mut self) {
        if self.flags & flag::OPAQUE_ROOT == 0 {
            self.flags |= flag::OPAQUE_ROOT;
            let kind = KindRef::Opaque;
            self.content.push(&EntryRef { path: b"", kind, mode: 0, uid: 0, gid: 0, mtime: 0, capability: None });
        }
    }

    /// Adds an entry whose data, if it is a file, lies at `offset` in the tar.
    pub fn push(&mut self, entry: &EntryRef<'_>, offset: u64) {
        self.push_sparse(entry, offset, None);
    }

    /// Adds a file of which the tar holds only `extents`, one after the other from `offset` on.
    pub fn push_sparse(&mut self, entry: &EntryRef<'_>, offset: u64, extents: Option<&[Extent]>) {
        self.content.push(entry);
        let mut record = [0u8; RECORD];
        let path = self.store(entry.path);
        self.last = Some(path);
        put_pair(&mut record, 0, path);
        match entry.kind {
            KindRef::File { size, sha256 } => {
                record[8] = kind::FILE;
                record[32..40].copy_from_slice(&size.to_le_bytes());
                record[40..48].copy_from_slice(&offset.to_le_bytes());
                record[56..88].copy_from_slice(sha256.as_bytes());
                match self.files_size.checked_add(size) {
                    Some(sum) => self.files_size = sum,
                    None => self.too_large = Some("the sum of its file sizes overflows"),
                }
                if let Some(extents) = extents {
                    record[9] = SPARSE;
                    let mut map = (extents.len() as u32).to_le_bytes().to_vec();
                    for extent in extents {
                        map.extend_from_slice(&extent.start.to_le_bytes());
                        map.extend_from_slice(&extent.length.to_le_bytes());
                    }
                    let (start, _) = self.store(&map);
                    record[52..56].copy_from_slice(&start.to_le_bytes());
                }
            }
            KindRef::HardLink { target } => {
                record[8] = kind::HARD_LINK;
                let target = self.store(target);
                put_pair(&mut record, 32, target);
            }
            KindRef::Directory => record[8] = kind::DIRECTORY,
            KindRef::Symlink { target } => {
                record[8] = kind::SYMLINK;
                let target = self.store(target);
                put_pair(&mut record, 32, target);
            }
            KindRef::CharDevice { major, minor } => {
                record[8] = kind::CHAR_DEVICE;
                put_pair(&mut record, 32, (major, minor));
            }
            KindRef::BlockDevice { major, minor } => {
                record[8] = kind::BLOCK_DEVICE;
                put_pair(&mut record, 32, (major, minor));
            }
            KindRef::Fifo => record[8] = kind::FIFO,
            KindRef::Whiteout => {
                record[8] = kind::WHITEOUT;
                self.flags |= flag::HAS_WHITEOUT;
            }
            KindRef::Opaque => {
                record[8] = kind::OPAQUE;
                self.flags |= flag::HAS_OPAQUE;
            }
        }
        record[10..12].copy_from_slice(&((entry.mode & 0o7777) as u16).to_le_bytes());
        record[12..16].copy_from_slice(&entry.uid.to_le_bytes());
        record[16..20].copy_from_slice(&entry.gid.to_le_bytes());
        record[24..32].copy_from_slice(&entry.mtime.to_le_bytes());
        if let Some(capability) = entry.capability.filter(|value| !value.is_empty()) {
            let (start, length) = self.store(capability);
            record[20..24].copy_from_slice(&length.to_le_bytes());
            record[48..52].copy_from_slice(&start.to_le_bytes());
        }
        self.records.extend_from_slice(&record);
    }

    /// Keeps the bytes of a file if it is one of [`KEPT_PATHS`] and not too long.
    pub fn keep(&mut self, path: &[u8], bytes: &[u8]) {
        if let Some(which) = KEPT_PATHS.iter().position(|kept| *kept == path)
            && bytes.len() as u64 <= KEPT_LIMIT
        {
            self.kept[which] = self.store(bytes);
            self.flags |= flag::KEPT << which;
        }
    }

    /// Ends the index of a tar with this digest and size.
    pub fn finish(self, origin: Origin, diff_id: DiffId, tar_size: u64) -> Result<LayerIndex, IndexError> {
        if let Some(what) = self.too_large {
            return Err(IndexError::TooLarge(what));
        }
        let content: ContentDigest = self.content.finish();
        let mut bytes = Vec::with_capacity(HEADER + self.records.len() + self.heap.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(diff_id.0.as_bytes());
        bytes.extend_from_slice(content.0.as_bytes());
        bytes.extend_from_slice(&tar_size.to_le_bytes());
        bytes.extend_from_slice(&self.files_size.to_le_bytes());
        let count = u32::try_from(self.records.len() / RECORD).map_err(|_| IndexError::TooLarge("too many entries"))?;
        let heap = self.heap.len() as u32; // `store` keeps it below 4 GiB.
        let writer = match origin {
            Origin::Made { writer } => writer,
            Origin::Foreign => 0,
        };
        for number in [count, heap, writer, self.flags, self.root.mode, self.root.uid, self.root.gid, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.root.mtime.to_le_bytes());
        for (start, length) in self.kept {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        debug_assert_eq!(bytes.len(), HEADER);
        bytes.extend_from_slice(&self.records);
        bytes.extend_from_slice(&self.heap);
        let crc = libdeflater::crc32(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        LayerIndex::from_checked_parts(bytes)
    }

    /// Puts `bytes` on the heap.
    fn store(&mut self, bytes: &[u8]) -> (u32, u32) {
        if self.heap.len() + bytes.len() > u32::MAX as usize {
            self.too_large = Some("its names take more than 4 GiB");
            return (0, 0);
        }
        let start = self.heap.len() as u32;
        self.heap.extend_from_slice(bytes);
        (start, bytes.len() as u32)
    }
}

impl LayerIndex {
    /// The same index as if the writer of that version had written the layer. Of a layer from outside that is no way to
    /// its own bytes, but to those that the writer makes of its entries.
    pub fn as_written_by(&self, writer: u32) -> Result<Self, IndexError> {
        let mut bytes = self.as_bytes().to_vec();
        bytes[104..108].copy_from_slice(&writer.to_le_bytes());
        let crc = libdeflater::crc32(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        Self::from_checked_parts(bytes)
    }
}

fn put_pair(record: &mut [u8; RECORD], at: usize, (first, second): (u32, u32)) {
    record[at..at + 4].copy_from_slice(&first.to_le_bytes());
    record[at + 4..at + 8].copy_from_slice(&second.to_le_bytes());
}
