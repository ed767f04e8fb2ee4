//! The files of an image layout, in a folder or inside a tar.
//!
//! In: a folder, or an archive that may be compressed or a pipe. Out: [`Files`], which opens members by name, from any
//! thread. What always holds: nothing is unpacked, no more of a name table than [`MAX_MEMBERS`] entries is kept, links
//! inside an archive lead to members of the archive only, and a member is never read past its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::{EntryType, Header, PaxExtensions};

use super::LoadError;
use crate::layer::compress;
use crate::store::lease::Lease;
use crate::sys::file::Part;

/// The most entries that an archive may have: an image of 500 layers has some 2,000.
const MAX_MEMBERS: usize = 200_000;

/// The most bytes that a long name or the PAX records of one entry may have.
const MAX_RECORDS: u64 = 1 << 20;

/// The most links that are followed to a file.
const MAX_LINKS: usize = 16;

const BLOCK: u64 = 512;

/// The files of a layout or an archive.
#[derive(Debug)]
pub(crate) struct Files {
    /// As messages name it.
    place: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Archive { file: Arc<File>, members: BTreeMap<String, Place> },
}

/// Where a member of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File { offset: u64, size: u64 },
    Link(String),
    Other,
}

/// One file, open for reading.
#[derive(Debug)]
pub(crate) struct Member(Part<Arc<File>>);

impl Member {
    /// How many bytes are left to read: at first, its size.
    pub(crate) fn size(&self) -> u64 {
        self.0.left()
    }

    /// The first bytes, at most as many as `buffer` holds; reading is not moved on.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut part = self.0.again();
        let mut filled = 0;
        while filled < buffer.len() && part.left() > 0 {
            match part.read(&mut buffer[filled..]) {
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Files {
    /// Those of a folder. Links in it are followed: it is the user's own, and blobs are told by their digests.
    pub(crate) fn folder(path: &Path) -> Self {
        Self { place: path.display().to_string(), source: Source::Folder(path.to_owned()) }
    }

    /// Those of a tar, compressed or not; `place` is its name in messages. What cannot be read at any offset is
    /// copied to the lease's folder first.
    pub(crate) fn archive(mut file: File, place: &str, lease: &Lease) -> Result<Self, LoadError> {
        let failed = |action| LoadError::io(action, place);
        // A file that somebody has read from begins, for us, where they left off.
        let regular =
            file.metadata().map_err(failed("read"))?.is_file() && file.stream_position().map_err(failed("read"))? == 0;
        let mut magic = [0; 6];
        let plain = regular && {
            let member = Member(Part::new(Arc::new(file.try_clone().map_err(failed("read"))?), 0, 6));
            let read = member.peek(&mut magic).map_err(failed("read"))?;
            compress::detect(&magic[..read]).is_none()
        };
        let file = if plain { file } else { spool(file, place, lease)? };
        let members = read_members(&file, place)?;
        Ok(Self { place: place.to_owned(), source: Source::Archive { file: Arc::new(file), members } })
    }

    /// Its name in messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Opens the file `name` (relative, with `/`); `None` where there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Member>, LoadError> {
        match &self.source {
            Source::Folder(folder) => {
                let path = folder.join(name);
                let failed = |error| LoadError::io("open", &path.display().to_string())(error);
                // A named pipe must not hold us up.
                let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
                let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                    Ok(file) => file,
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(failed(error)),
                };
                let metadata = file.metadata().map_err(failed)?;
                Ok(metadata.is_file().then(|| Member(Part::new(Arc::new(file), 0, metadata.len()))))
            }
            Source::Archive { file, members } => {
                let mut name = clean(name.as_bytes()).unwrap_or_default();
                for _ in 0..=MAX_LINKS {
                    match members.get(&name) {
                        None | Some(Place::Other) => return Ok(None),
                        Some(Place::Link(target)) => name.clone_from(target),
                        Some(&Place::File { offset, size }) => {
                            return Ok(Some(Member(Part::new(file.clone(), offset, size))));
                        }
                    }
                }
                Err(LoadError::archive(&self.place, format!("its entry {name} is a link that leads to itself")))
            }
        }
    }
}

/// Copies `from`, decompressed, to a file without a name.
fn spool(from: File, place: &str, lease: &Lease) -> Result<File, LoadError> {
    let mut reader = compress::decompress(Box::new(from)).map_err(LoadError::io("decompress", place))?;
    let folder = lease.folder().display().to_string();
    let file = tempfile::tempfile_in(lease.folder()).map_err(LoadError::io("make a file in", &folder))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = reader.read(&mut buffer).map_err(LoadError::io("decompress", place))?;
        if read == 0 {
            break;
        }
        out.write_all(&buffer[..read]).map_err(LoadError::io("write a copy in", &folder))?;
    }
    out.into_inner().map_err(|error| LoadError::io("write a copy in", &folder)(error.into_error()))
}

/// Reads the headers of a tar: where each member is. Of equal names the last counts, as when unpacking.
fn read_members(file: &File, place: &str) -> Result<BTreeMap<String, Place>, LoadError> {
    let malformed = |why: String| LoadError::archive(place, why);
    let length = file.metadata().map_err(LoadError::io("read", place))?.len();
    let mut members = BTreeMap::new();
    let mut offset = 0;
    let mut long = LongNames::default();
    let mut block = [0; BLOCK as usize];
    while offset < length {
        if length - offset < BLOCK {
            return Err(malformed(format!("it ends inside the header at byte {offset}")));
        }
        file.read_exact_at(&mut block, offset).map_err(LoadError::io("read", place))?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let header = Header::from_byte_slice(&block);
        if !checksum_is_right(header) {
            let why =
                if offset == 0 { "it is no tar".into() } else { format!("the header at byte {offset} is damaged") };
            return Err(malformed(why));
        }
        let kind = header.entry_type();
        let header_size =
            header.entry_size().map_err(|_| malformed(format!("the header at byte {offset} has no size")))?;
        // PAX overrides the size of the entry that it precedes, never its own.
        let size = if is_extension(kind) { header_size } else { long.size.unwrap_or(header_size) };
        let data = offset + BLOCK;
        if size > length - data {
            return Err(malformed(format!("it is cut off: the entry at byte {offset} should have {size} bytes")));
        }
        // Proof: `size` is at most `length`, so the sum stays far from the end of u64.
        offset = data + size.next_multiple_of(BLOCK);
        if is_extension(kind) {
            if size > MAX_RECORDS {
                return Err(malformed(format!("an entry has extended headers of {size} bytes")));
            }
            let mut records = vec![0; size as usize];
            file.read_exact_at(&mut records, data).map_err(LoadError::io("read", place))?;
            long.take(kind, &records).map_err(malformed)?;
            continue;
        }
        let LongNames { path, link, .. } = std::mem::take(&mut long);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let Some(name) = clean(&path) else { continue };
        let link = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        let member = match kind {
            EntryType::Regular | EntryType::Continuous => Place::File { offset: data, size },
            EntryType::Link => clean(&link).map_or(Place::Other, Place::Link),
            EntryType::Symlink => resolve(&name, &link).map_or(Place::Other, Place::Link),
            _ => Place::Other,
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(malformed(format!("it has more than {MAX_MEMBERS} entries")));
        }
    }
    Ok(members)
}

fn checksum_is_right(header: &Header) -> bool {
    let bytes = header.as_bytes();
    // The field itself counts as blanks.
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    header.cksum().is_ok_and(|found| found == sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]))
}

fn is_extension(kind: EntryType) -> bool {
    matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader)
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct LongNames {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl LongNames {
    fn take(&mut self, kind: EntryType, records: &[u8]) -> Result<(), String> {
        let text = || records.strip_suffix(b"\0").unwrap_or(records).to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(text()),
            EntryType::GNULongLink => self.link = Some(text()),
            EntryType::XHeader => {
                for record in PaxExtensions::new(records) {
                    let record = record.map_err(|_| "an entry has PAX records that cannot be read".to_owned())?;
                    let value = record.value_bytes();
                    match record.key_bytes() {
                        b"path" => self.path = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                            self.size = Some(size.ok_or("an entry has a PAX size that is no number")?);
                        }
                        _ => {}
                    }
                }
            }
            // Global headers say nothing of names and sizes that anyone relies on.
            _ => {}
        }
        Ok(())
    }
}

/// `./a//b/` as `a/b`. `None` for what leads out of the archive, names nothing, or is not UTF-8 (no file of a layout
/// has such a name).
fn clean(path: &[u8]) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in std::str::from_utf8(path).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The member that the symbolic link `name` leads to.
fn resolve(name: &str, target: &[u8]) -> Option<String> {
    if target.starts_with(b"/") {
        return clean(target);
    }
    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
    clean(&[parent.as_bytes(), b"/", target].concat())
}
