//! Indexing a layer from outside.
//!
//! In: an uncompressed tar of whatever origin, hostile until proven otherwise. Out: a [`LayerIndex`] of what applying the
//! tar would leave, in our order: later entries replace earlier ones, hard links are turned so that the first name
//! in order holds the data, whiteouts hide what is below and never what the layer itself holds. What always holds: one
//! streaming pass, memory bounded by the entries, no panic, no path that leaves the root. The tar itself must be kept:
//! it cannot be made again.
//!
//! Read are ustar, PAX, GNU and old tars: long names of either kind, base-256 numbers, sparse files of all forms. As in
//! Docker, PAX global headers have no effect and absolute paths are relative to the root; unlike there, `..` in a path is
//! an error.

pub(crate) mod number;
mod pax;
mod source;
pub(crate) mod sparse;
mod tree;

use self::number::number;
use self::pax::Pax;
use self::source::Source;
use self::sparse::Map;
use self::tree::{FileData, Metadata, NodeKind, Tree};
use super::header::BLOCK;
use super::write::show;
use crate::digest::Digest;
use crate::layer::capability;
use crate::layer::index::{IndexError, KEPT_LIMIT, LayerIndex, RootMetadata};
use std::io::{self, Read};

/// Largest extended header or long name that is read.
const MAX_EXTENDED: u64 = 1 << 20;

/// Largest number of entries.
const MAX_ENTRIES: usize = 4_000_000;

/// Largest sum of all holes of sparse files: they cost nothing in the tar and much to hash.
const MAX_HOLES: u64 = 16 << 30;

/// Longest path and component that Linux knows.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Why a tar cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It could not be read.
    #[error("cannot read the tar")]
    Read(#[from] io::Error),
    /// It ends in the middle of something.
    #[error("the tar is cut short: it ends after {at} bytes")]
    Truncated {
        /// Its length.
        at: u64,
    },
    /// Something in it is no header.
    #[error("this is no tar: {why} at byte {at}")]
    Header {
        /// Where.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// An entry that no image can have.
    #[error("{} in the tar {why}", show(.path))]
    Entry {
        /// Its path, as the tar has it.
        path: Vec<u8>,
        /// What is wrong.
        why: &'static str,
    },
    /// More than is ever needed.
    #[error("the tar has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// The index has no room.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Indexes an uncompressed tar.
pub fn scan(tar: impl Read) -> Result<LayerIndex, ScanError> {
    let mut scan = Scan { source: Source::new(tar), tree: Tree::default(), next: Next::default(), holes: 0 };
    while let Some((at, block)) = scan.next_header()? {
        scan.header(at, &block)?;
    }
    let (diff_id, size) = scan.source.finish()?;
    scan.tree.finish(diff_id, size)
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Next {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

struct Scan<R> {
    source: Source<R>,
    tree: Tree,
    next: Next,
    holes: u64,
}

impl<R: Read> Scan<R> {
    /// The next header block and its offset; `None` at the end of the archive.
    fn next_header(&mut self) -> Result<Option<(u64, [u8; BLOCK])>, ScanError> {
        let at = self.source.position();
        let Some(block) = self.source.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some((at, block)));
        }
        match self.source.block()? {
            Some(block) if block != [0; BLOCK] => Err(ScanError::Header { at, why: "a single zero block" }),
            _ => {
                // What follows the end counts in the diffID and for nothing else.
                self.source.drain()?;
                Ok(None)
            }
        }
    }

    fn header(&mut self, at: u64, block: &[u8; BLOCK]) -> Result<(), ScanError> {
        if !checksum_matches(block) {
            return Err(ScanError::Header { at, why: "a wrong checksum" });
        }
        let wrong = |why| ScanError::Header { at, why };
        let size = number(&block[124..136]).ok_or(wrong("a size that is no number"))?;
        let size = u64::try_from(size).map_err(|_| wrong("a negative size"))?;
        match block[156] {
            b'x' => {
                let records = self.extended(at, size)?;
                self.next.pax = Pax::parse(&records).ok_or(wrong("a broken PAX header"))?;
            }
            b'g' => {
                // Checked and dropped, as in Docker.
                let records = self.extended(at, size)?;
                Pax::parse(&records).ok_or(wrong("a broken PAX header"))?;
            }
            b'L' => self.next.long_name = Some(until_nul(&self.extended(at, size)?).to_vec()),
            b'K' => self.next.long_link = Some(until_nul(&self.extended(at, size)?).to_vec()),
            _ => {
                let next = std::mem::take(&mut self.next);
                self.entry(at, block, size, next)?;
            }
        }
        Ok(())
    }

    /// Reads the data of an extended header.
    fn extended(&mut self, at: u64, size: u64) -> Result<Vec<u8>, ScanError> {
        if size > MAX_EXTENDED {
            return Err(ScanError::Header { at, why: "an extended header of more than 1 MiB" });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        self.source.data(size, &mut |piece| bytes.extend_from_slice(piece))?;
        self.source.skip_padding(size)?;
        Ok(bytes)
    }

    fn entry(&mut self, at: u64, block: &[u8; BLOCK], size: u64, next: Next) -> Result<(), ScanError> {
        let Next { pax, long_name, long_link } = next;
        let raw = long_name.or(pax.sparse.name.clone()).or(pax.path).unwrap_or_else(|| header_name(block));
        let link = long_link.or(pax.link).unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        let wrong = |why| ScanError::Entry { path: trimmed(&raw).to_vec(), why };
        let size = pax.size.unwrap_or(size);
        let field = |range: std::ops::Range<usize>| number(&block[range]);
        let id = |given: Option<u64>, range| {
            let id = match given {
                Some(id) => Some(id),
                None => field(range).and_then(|id| u64::try_from(id).ok()),
            };
            // The largest means "nobody" to the kernel.
            id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX).ok_or(wrong("has no proper owner"))
        };
        let mode = field(100..108).ok_or(wrong("has no proper mode"))?;
        let metadata = Metadata {
            mode: (mode & 0o7777) as u32,
            uid: id(pax.uid, 108..116)?,
            gid: id(pax.gid, 116..124)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => field(136..148)
                    .and_then(|mtime| i64::try_from(mtime).ok())
                    .ok_or(wrong("has no proper modification time"))?,
            },
            capability: match pax.capability {
                Some(value) => Some(capability::to_v2(&value).ok_or(wrong("has broken capabilities"))?),
                None => None,
            },
        };
        let device = || {
            let part = |range| field(range).and_then(|part| u32::try_from(part).ok());
            part(329..337).zip(part(337..345)).ok_or(wrong("has no proper device number"))
        };
        let mut kind = block[156];
        if kind == 0 && raw.ends_with(b"/") {
            kind = b'5';
        }
        let path = clean(&raw).map_err(wrong)?;
        let kind = match kind {
            0 | b'0' | b'7' | b'S' => {
                let map = self.sparse_map(block, size, &pax.sparse).map_err(|error| match error {
                    ScanError::Header { why, .. } => wrong(why),
                    other => other,
                })?;
                let data = self.file(&path, size, map).map_err(|error| match error {
                    ScanError::Header { why, .. } => wrong(why),
                    other => other,
                })?;
                NodeKind::File(data)
            }
            b'1' => NodeKind::Link(clean(&link).map_err(|_| wrong("is a hard link out of the image"))?),
            b'2' if link.contains(&0) => return Err(wrong("is a link to a name with a NUL")),
            b'2' if link.is_empty() => return Err(wrong("is a link to nothing")),
            // Linux has none. Hard links to it repeat it, so it must not cost more than its entry.
            b'2' if link.len() > MAX_PATH => return Err(wrong("is a link to a path of more than 4095 bytes")),
            b'2' => NodeKind::Symlink(link),
            b'3' => NodeKind::CharDevice(device()?),
            b'4' => NodeKind::BlockDevice(device()?),
            b'5' => NodeKind::Directory,
            b'6' => NodeKind::Fifo,
            _ => return Err(wrong("is of a kind that no image can hold")),
        };
        if path.is_empty() {
            if kind != NodeKind::Directory {
                return Err(wrong("is the root, but no directory"));
            }
            let Metadata { mode, uid, gid, mtime, .. } = metadata;
            self.tree.root = Some(RootMetadata { mode, uid, gid, mtime });
            return Ok(());
        }
        if self.tree.len() >= MAX_ENTRIES {
            return Err(ScanError::TooMany);
        }
        debug_assert!(self.source.position() > at);
        self.tree.insert(&path, kind, metadata).map_err(wrong)
    }

    /// The map of a sparse file; what of it lies in the tar is read.
    fn sparse_map(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        pax: &sparse::PaxSparse,
    ) -> Result<Option<Map>, ScanError> {
        if block[156] == b'S' {
            sparse::old(block, size, || self.source.block()?.ok_or(ScanError::Truncated { at: self.source.position() }))
                .map(Some)
        } else if pax.in_data() {
            sparse::in_data(pax, size, || {
                self.source.block()?.ok_or(ScanError::Truncated { at: self.source.position() })
            })
            .map(Some)
        } else {
            pax.map(size)
        }
    }

    /// Reads the data of a file.
    fn file(&mut self, path: &[u8], size: u64, map: Option<Map>) -> Result<FileData, ScanError> {
        let offset = self.source.position();
        let Some(Map { size: full, stored, extents }) = map else {
            let mut kept = None;
            let sha256 = if tree::is_kept(path) && size <= KEPT_LIMIT {
                let mut bytes = Vec::new();
                self.source.data(size, &mut |piece| bytes.extend_from_slice(piece))?;
                let digest = Digest::of(&bytes);
                kept = Some(bytes);
                digest
            } else {
                self.source.digest(size)?
            };
            self.source.skip_padding(size)?;
            return Ok(FileData { size, sha256, offset, extents: None, kept });
        };
        self.holes = self.holes.saturating_add(full - stored);
        if self.holes > MAX_HOLES {
            return Err(ScanError::Header { at: offset, why: "has too large holes" });
        }
        let mut sum = crate::digest::Hasher::new();
        let mut position = 0;
        for extent in &extents {
            sparse::hash_zeros(&mut sum, extent.start - position);
            self.source.data(extent.length, &mut |piece| sum.update(piece))?;
            position = extent.start + extent.length;
        }
        sparse::hash_zeros(&mut sum, full - position);
        self.source.skip_padding(stored)?;
        let whole = stored == full;
        let extents = (!whole).then_some(extents);
        Ok(FileData { size: full, sha256: sum.finish(), offset, extents, kept: None })
    }
}

/// Whether `block`, the first 512 bytes of a file, is the header of a tar's entry.
pub fn is_header(block: &[u8]) -> bool {
    block.first_chunk().is_some_and(checksum_matches)
}

/// Whether the checksum of a header is right: the sum of its bytes, its own counted as blanks. Some old programs
/// summed signed bytes.
fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Some(expected) = number(&block[148..156]) else {
        return false;
    };
    let rest = || block[..148].iter().chain(&block[156..]);
    let unsigned: i128 = rest().map(|byte| i128::from(*byte)).sum::<i128>() + 8 * 32;
    let signed: i128 = rest().map(|byte| i128::from(*byte as i8)).sum::<i128>() + 8 * 32;
    expected == unsigned || expected == signed
}

/// The name in the header itself, prefix included.
fn header_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // GNU headers have times in place of the prefix; those of star have times at its end.
    let prefix: &[u8] = match (&block[257..263], &block[508..512]) {
        (b"ustar\0", b"tar\0") => until_nul(&block[345..476]),
        (b"ustar\0", _) => until_nul(&block[345..500]),
        _ => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A path for messages: without what stands before its first name.
fn trimmed(raw: &[u8]) -> &[u8] {
    let raw = raw.strip_prefix(b"./").unwrap_or(raw);
    raw.strip_prefix(b"/").unwrap_or(raw)
}

/// The path inside the root; "" for the root itself.
fn clean(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut path = Vec::with_capacity(raw.len());
    for name in raw.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return Err("leads out of its directory by \"..\""),
            _ if name.len() > MAX_NAME => return Err("has a name of more than 255 bytes"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    if path.contains(&0) {
        return Err("has a NUL in its name");
    }
    if path.len() > MAX_PATH { Err("has a path of more than 4095 bytes") } else { Ok(path) }
}

#[cfg(test)]
mod tests;
