//! Reading an index file: everything that look-ups rely on is checked here, once.

use super::{
    FORMAT_VERSION, HEADER, IndexError, KEPT_LIMIT, LayerIndex, MAGIC, Origin, RECORD, RootMetadata, SPARSE, Summary,
    digest_at, flag, kind, u32_at, u64_at,
};
use crate::digest::{ContentDigest, DiffId};
use crate::layer::entry::{is_clean, shared_prefix};
use std::ops::Range;

impl Summary {
    /// Reads the first [`HEADER`] bytes of an index file; its checksum, which covers the whole file, is not looked at.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, IndexError> {
        if !bytes.starts_with(MAGIC) {
            return Err(IndexError::NotAnIndex);
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => {}
            found => return Err(IndexError::Version { found }),
        }
        Ok(Self {
            diff_id: DiffId(digest_at(bytes, 16)),
            content: ContentDigest(digest_at(bytes, 48)),
            tar_size: u64_at(bytes, 80),
            files_size: u64_at(bytes, 88),
        })
    }
}

impl LayerIndex {
    /// Takes the bytes of an index file, and checks them.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        let index = Self::from_checked_parts(bytes)?;
        if libdeflater::crc32(&index.bytes[16..]) != u32_at(&index.bytes, 12) {
            return Err(IndexError::Damaged("its checksum does not match"));
        }
        index.check()?;
        Ok(index)
    }

    /// Reads the header. The sizes in it are checked; records and heap are not.
    pub(super) fn from_checked_parts(bytes: Vec<u8>) -> Result<Self, IndexError> {
        if bytes.len() < 16 || !bytes.starts_with(MAGIC) {
            return Err(IndexError::NotAnIndex);
        }
        match u32_at(&bytes, 8) {
            FORMAT_VERSION => {}
            found => return Err(IndexError::Version { found }),
        }
        if bytes.len() < HEADER {
            return Err(IndexError::Damaged("it is cut short"));
        }
        let (count, heap_length) = (u32_at(&bytes, 96) as usize, u32_at(&bytes, 100) as usize);
        let heap = count.checked_mul(RECORD).and_then(|records| records.checked_add(HEADER));
        let heap = heap.filter(|heap| heap.checked_add(heap_length) == Some(bytes.len()));
        let heap = heap.ok_or(IndexError::Damaged("its length does not match its header"))?;
        let origin = match u32_at(&bytes, 104) {
            0 => Origin::Foreign,
            writer => Origin::Made { writer },
        };
        let flags = u32_at(&bytes, 108);
        let kept = |which: usize| -> Result<Range<usize>, IndexError> {
            let (start, length) = (u32_at(&bytes, 136 + which * 8), u32_at(&bytes, 140 + which * 8));
            if length as usize > KEPT_LIMIT as usize || start as usize + length as usize > heap_length {
                return Err(IndexError::Damaged("a kept file lies outside it"));
            }
            Ok(heap + start as usize..heap + start as usize + length as usize)
        };
        let kept = [kept(0)?, kept(1)?];
        let root = RootMetadata {
            mode: u32_at(&bytes, 112),
            uid: u32_at(&bytes, 116),
            gid: u32_at(&bytes, 120),
            mtime: u64_at(&bytes, 128) as i64,
        };
        if flags & !flag::ALL != 0 || root.mode > 0o7777 {
            return Err(IndexError::Damaged("its header holds unknown values"));
        }
        Ok(Self {
            diff_id: DiffId(digest_at(&bytes, 16)),
            content: ContentDigest(digest_at(&bytes, 48)),
            tar_size: u64_at(&bytes, 80),
            files_size: u64_at(&bytes, 88),
            count,
            origin,
            flags,
            root,
            kept,
            heap,
            bytes,
        })
    }

    /// Checks records and heap.
    fn check(&self) -> Result<(), IndexError> {
        let heap = &self.bytes[self.heap..];
        let slice = |start: u32, length: u32| heap.get(start as usize..start as usize + length as usize);
        let mut previous: (&[u8], u8) = (b"", kind::DIRECTORY);
        let mut files_size = 0u64;
        let mut seen = 0;
        for (position, record) in self.bytes[HEADER..self.heap].as_chunks::<RECORD>().0.iter().enumerate() {
            let wrong = |what| IndexError::Entry { position, what };
            let path = slice(u32_at(record, 0), u32_at(record, 4)).ok_or(wrong("has its path outside the file"))?;
            let what = record[8];
            check_order(previous, (path, what)).map_err(wrong)?;
            if u16::from_le_bytes([record[10], record[11]]) > 0o7777 {
                return Err(wrong("has an unknown mode"));
            }
            if record[9] & !SPARSE != 0 || (record[9] != 0 && what != kind::FILE) {
                return Err(wrong("has unknown flags"));
            }
            slice(u32_at(record, 48), u32_at(record, 20)).ok_or(wrong("has its capability outside the file"))?;
            match what {
                kind::FILE => {
                    let size = u64_at(record, 32);
                    let stored = if record[9] & SPARSE == 0 {
                        size
                    } else {
                        check_extents(heap, u32_at(record, 52), size).ok_or(wrong("has a wrong map of its holes"))?
                    };
                    if u64_at(record, 40).checked_add(stored).is_none_or(|end| end > self.tar_size) {
                        return Err(wrong("has its data outside the tar"));
                    }
                    files_size = files_size.checked_add(size).ok_or(wrong("is too large"))?;
                }
                kind::HARD_LINK => {
                    let target = slice(u32_at(record, 32), u32_at(record, 36));
                    target.filter(|target| is_clean(target)).ok_or(wrong("has no proper link target"))?;
                }
                kind::SYMLINK => {
                    let target = slice(u32_at(record, 32), u32_at(record, 36));
                    target.filter(|target| !target.contains(&0)).ok_or(wrong("has no proper link target"))?;
                }
                kind::WHITEOUT => seen |= flag::HAS_WHITEOUT,
                kind::OPAQUE => seen |= flag::HAS_OPAQUE,
                kind::DIRECTORY | kind::CHAR_DEVICE | kind::BLOCK_DEVICE | kind::FIFO => {}
                _ => return Err(wrong("is of no known kind")),
            }
            previous = (path, what);
        }
        if files_size != self.files_size || seen != self.flags & (flag::HAS_OPAQUE | flag::HAS_WHITEOUT) {
            return Err(IndexError::Damaged("its header does not match its entries"));
        }
        Ok(())
    }
}

/// Whether an entry may follow `previous`, and has a clean path. The start that it shares with the one before is
/// known to be clean, so each byte of a long list is looked at about once.
fn check_order(previous: (&[u8], u8), current: (&[u8], u8)) -> Result<(), &'static str> {
    let ((before, before_kind), (path, what)) = (previous, current);
    let shared = shared_prefix(before, path);
    if shared == path.len() {
        // Equal, or a start of the one before.
        let mark = shared == before.len() && before_kind == kind::DIRECTORY && what == kind::OPAQUE;
        return if mark && !path.is_empty() { Ok(()) } else { Err("is out of order") };
    }
    if shared == before.len() {
        let below = before.is_empty() || path[shared] == b'/';
        if below && !matches!(before_kind, kind::DIRECTORY | kind::OPAQUE) {
            return Err("lies below something that is no directory");
        }
    } else {
        let key = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        if key(before[shared]) > key(path[shared]) {
            return Err("is out of order");
        }
    }
    let clean = if path[shared..].iter().any(|byte| matches!(byte, 0 | b'/')) {
        let component = path[..shared].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        is_clean(&path[component..])
    } else {
        // Only the last component differs, as among the files of one directory.
        !(path == b"." || path == b".." || path.ends_with(b"/.") || path.ends_with(b"/.."))
    };
    if clean { Ok(()) } else { Err("has a path that no layer may have") }
}

/// Checks a map of extents and returns how many bytes they hold together.
fn check_extents(heap: &[u8], start: u32, size: u64) -> Option<u64> {
    let start = start as usize;
    let count = u32_at(heap.get(start..start.checked_add(4)?)?, 0) as usize;
    let map = heap.get(start + 4..(start + 4).checked_add(count.checked_mul(16)?)?)?;
    let (mut stored, mut end) = (0u64, 0u64);
    for extent in map.chunks_exact(16) {
        let (from, length) = (u64_at(extent, 0), u64_at(extent, 8));
        if from < end {
            return None;
        }
        end = from.checked_add(length).filter(|end| *end <= size)?;
        stored += length;
    }
    Some(stored)
}
