//! Archives that ADD unpacks.
//!
//! In: a file of a build context, or one that was fetched. Out: whether it is an archive, by its content alone, and then a [`Listing`] of its
//! entries in their order, with their data in a [`Spool`]. What always holds: the archive is read as a stream, once;
//! paths are relative and lead nowhere else (an entry that says otherwise is an error by name); nothing but the spool
//! is written.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use tar::EntryType;

use super::source::SourceView;
use super::{CopyError, FileData, lossy};
use crate::digest::{Digest, Hasher, HashingReader};
use crate::layer::capability::to_v2;
use crate::layer::compress::decompress;
use crate::layer::entry::is_clean;
use crate::layer::scan::number::seconds;
use crate::layer::scan::sparse::{self, Map, PaxSparse, hash_zeros};
use crate::layer::scan::{ScanError, is_header};
use crate::sys::file::Part;

/// So much of a sparse file may be holes: they cost nothing in the archive, and much in the image.
const MAX_HOLES: u64 = 16 << 30;

/// So much may be read before an entry is known: its name, its link and its records, each of which is kept in memory.
const MAX_HEADERS: u64 = 4 << 20;

/// Largest number of entries, as for layers.
const MAX_ENTRIES: usize = 4_000_000;

/// Longest path and component that Linux knows.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Where the files of archives are put: one file, one after the other.
#[derive(Debug)]
pub struct Spool {
    out: BufWriter<File>,
    length: u64,
}

impl Spool {
    /// Puts files into `file`, which is empty and open for reading and writing.
    pub fn new(file: File) -> Self {
        Self { out: BufWriter::with_capacity(256 << 10, file), length: 0 }
    }

    /// Reads what [`FileData::Spool`] says.
    pub fn reader(&self, offset: u64, size: u64) -> impl Read + '_ {
        Part::new(self.out.get_ref(), offset, size)
    }
}

/// What an archive holds.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) entries: Vec<Packed>,
}

/// One entry of an archive.
#[derive(Debug)]
pub(super) struct Packed {
    /// Relative to where the archive is unpacked; empty for that directory itself.
    pub(super) path: Vec<u8>,
    pub(super) kind: PackedKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) capability: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) enum PackedKind {
    File { size: u64, sha256: Digest, offset: u64 },
    HardLink(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Whether the file is an archive: a tar, whatever its name, as it is or compressed.
pub(super) fn is_archive(view: &SourceView<'_>, data: &FileData) -> Result<bool, CopyError> {
    let Some(file) = open(view, data)? else { return Ok(false) };
    let mut block = Vec::with_capacity(512);
    // What cannot be decompressed is no archive; it is copied as the file that it is.
    let read = decompress(Box::new(file)).and_then(|reader| reader.take(512).read_to_end(&mut block));
    // Who reads on would find an end mark at once: an empty archive is a file.
    Ok(read.is_ok() && is_header(&block))
}

fn open(view: &SourceView<'_>, data: &FileData) -> Result<Option<File>, CopyError> {
    match (view, data) {
        (SourceView::Context(context), FileData::Context(file)) => Ok(Some(context.open_file(file)?)),
        (_, FileData::Fetched(path)) => match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => Err(CopyError::Archive { archive: path.display().to_string(), why: error.to_string() }),
        },
        _ => Ok(None),
    }
}

/// A reader that gives no more than what is left: a few bytes of a compressed archive can be a name of gigabytes.
struct Metered<'a, R> {
    source: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the headers of one entry have more than 4 MiB"));
        }
        let read = self.source.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

/// Reads the archive that messages call `name`.
pub(super) fn unpack(
    view: &SourceView<'_>,
    name: &str,
    data: &FileData,
    spool: &mut Spool,
) -> Result<Listing, CopyError> {
    let fail = |why: String| CopyError::Archive { archive: name.to_owned(), why };
    let broken = |error: io::Error| fail(error.to_string());
    let Some(file) = open(view, data)? else { return Err(fail("it is not in a build context".to_owned())) };
    let held = file.try_clone().map_err(broken)?;
    let left = Cell::new(MAX_HEADERS);
    let source = decompress(Box::new(file)).map_err(broken)?;
    let mut archive = tar::Archive::new(Metered { source, left: &left });
    let mut entries: Vec<Packed> = Vec::new();
    let mut holes = 0_u64;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        // From here on it is data, until the next one.
        left.set(u64::MAX);
        let Extended { mtime, capability, sparse } = extensions(&mut entry).map_err(broken)?;
        // The header of a sparse file has a name that is made up.
        let written = sparse.name.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
        let shown = lossy(&written);
        let escapes = || fail(format!("{shown:?} leads out of the directory that it is unpacked into"));
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
            left.set(MAX_HEADERS);
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(fail(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let path = cleaned(&written).ok_or_else(escapes)?;
        if path.len() > MAX_PATH || path.split(|byte| *byte == b'/').any(|name| name.len() > MAX_NAME) {
            let start = lossy(&written[..written.len().min(60)]);
            return Err(fail(format!("the name that begins with {start:?} is longer than Linux allows")));
        }
        if path.contains(&0) {
            return Err(fail(format!("the name {shown:?} has a zero byte in it")));
        }
        let size = entry.size();
        let map = map(&sparse, size, &mut entry).map_err(|error| match error {
            ScanError::Header { why, .. } => fail(format!("{shown:?} {why}")),
            other => fail(other.to_string()),
        })?;
        // The reader knows the old form itself: what it gives has the holes.
        let stored = entry.header().entry_size().map_err(broken)?;
        let sparse_size = map.as_ref().map_or(size, |map| map.size);
        holes = holes.saturating_add(sparse_size.saturating_sub(stored));
        if holes > MAX_HOLES {
            return Err(fail(format!("{shown:?} has holes of more than {} GiB", MAX_HOLES >> 30)));
        }
        let header = entry.header().clone();
        let link = || -> Result<Vec<u8>, CopyError> {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            if target.contains(&0) || target.is_empty() {
                return Err(fail(format!("{shown:?} is a link that names nothing")));
            }
            if target.len() > MAX_PATH {
                return Err(fail(format!("{shown:?} is a link to a name that is longer than Linux allows")));
            }
            Ok(target)
        };
        let numbers = || -> Result<(u32, u32), CopyError> {
            let major = header.device_major().map_err(broken)?.unwrap_or_default();
            Ok((major, header.device_minor().map_err(broken)?.unwrap_or_default()))
        };
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if written.ends_with(b"/") {
                    PackedKind::Directory
                } else {
                    let offset = spool.length;
                    let (sha256, size) = match &map {
                        Some(map) => expand(map, &mut entry, &mut spool.out).map_err(broken)?,
                        None => {
                            let mut reader = HashingReader::new(&mut entry);
                            io::copy(&mut reader, &mut spool.out).map_err(broken)?;
                            let (_, sha256, size) = reader.finish();
                            (sha256, size)
                        }
                    };
                    spool.length += size;
                    PackedKind::File { size, sha256, offset }
                }
            }
            EntryType::Link => PackedKind::HardLink(cleaned(&link()?).ok_or_else(escapes)?),
            EntryType::Symlink => PackedKind::Symlink(link()?),
            EntryType::Directory => PackedKind::Directory,
            EntryType::Char => numbers().map(|(major, minor)| PackedKind::CharDevice(major, minor))?,
            EntryType::Block => numbers().map(|(major, minor)| PackedKind::BlockDevice(major, minor))?,
            EntryType::Fifo => PackedKind::Fifo,
            other => return Err(fail(format!("{shown:?} is of a type that is not known: {:?}", other.as_byte()))),
        };
        // Links may bring data too, which nobody asked for.
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
        left.set(MAX_HEADERS);
        if path.is_empty() && !matches!(kind, PackedKind::Directory) {
            // Some archives begin with a nameless file. The destination is there and a directory: Docker goes on too.
            continue;
        }
        let id = |id: u64| {
            // The largest means "nobody" to the kernel.
            let known = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            known.ok_or_else(|| fail(format!("the owner of {shown:?} is out of range: {id}")))
        };
        entries.push(Packed {
            path,
            mode: match kind {
                PackedKind::Symlink(_) => 0o777,
                _ => header.mode().map_err(broken)? & 0o7777,
            },
            kind,
            uid: id(header.uid().map_err(broken)?)?,
            gid: id(header.gid().map_err(broken)?)?,
            mtime: mtime.map_or_else(|| header.mtime().map(u64::cast_signed), Ok).map_err(broken)?,
            capability,
        });
    }
    spool.out.flush().map_err(broken)?;
    if let (SourceView::Context(context), FileData::Context(file)) = (view, data) {
        context.check(&held, file)?;
    }
    Ok(Listing { entries })
}

/// What extended headers say beyond what the reader takes from them itself.
#[derive(Default)]
struct Extended {
    mtime: Option<i64>,
    capability: Option<Vec<u8>>,
    /// What they say of holes.
    sparse: PaxSparse,
}

fn extensions<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Extended> {
    let mut extended = Extended::default();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(extended) };
    for extension in extensions {
        let extension = extension?;
        match extension.key_bytes() {
            b"mtime" => extended.mtime = seconds(extension.value_bytes()),
            b"SCHILY.xattr.security.capability" => {
                let value = to_v2(extension.value_bytes());
                extended.capability = Some(value.ok_or_else(|| io::Error::other("an entry has broken capabilities"))?);
            }
            key => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    let broken = || io::Error::other("a broken PAX header");
                    extended.sparse.set(key, extension.value_bytes()).ok_or_else(broken)?;
                }
            }
        }
    }
    Ok(extended)
}

/// The map of a sparse file in one of the PAX forms; it is read where it lies before the data, which are `stored` bytes
/// with it.
fn map(sparse: &PaxSparse, stored: u64, data: &mut dyn Read) -> Result<Option<Map>, ScanError> {
    if !sparse.in_data() {
        return sparse.map(stored);
    }
    let block = || {
        let mut block = [0; 512];
        data.read_exact(&mut block).map(|()| block).map_err(ScanError::Read)
    };
    sparse::in_data(sparse, stored, block).map(Some)
}

/// Writes the pieces of a sparse file with the holes between them; digest and size of it all.
fn expand(map: &Map, data: &mut dyn Read, out: &mut dyn Write) -> io::Result<(Digest, u64)> {
    let mut sum = Hasher::new();
    let mut position = 0;
    let hole = |sum: &mut Hasher, out: &mut dyn Write, length: u64| {
        hash_zeros(sum, length);
        io::copy(&mut io::repeat(0).take(length), out).map(drop)
    };
    let mut buffer = vec![0; 1 << 16];
    for extent in &map.extents {
        hole(&mut sum, out, extent.start - position)?;
        let mut left = extent.length;
        while left > 0 {
            let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            data.read_exact(&mut buffer[..length])?;
            sum.update(&buffer[..length]);
            out.write_all(&buffer[..length])?;
            left -= length as u64;
        }
        position = extent.start + extent.length;
    }
    hole(&mut sum, out, map.size - position)?;
    Ok((sum.finish(), map.size))
}

/// `path` without `.`, `..` and slashes that do nothing; `None` if it leads out.
fn cleaned(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    debug_assert!(path.is_empty() || path.contains(&0) || is_clean(&path));
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/a", Some("a")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("../a", None),
            ("a/../../b", None),
        ] {
            assert_eq!(cleaned(path.as_bytes()), expected.map(|path| path.as_bytes().to_vec()), "{path}");
        }
    }
}
