//! Writing a layer: entries and bytes in, canonical tar and index out.
//!
//! In: entries in component-wise order, parents first, and the bytes of files. Out: the tar, and a [`LayerIndex`] with
//! diffID, content digest and the digest of each file, all from one read of each file. What always holds: equal entries
//! and bytes give equal tars, whatever machine, thread count or order of sources; see [`super::header`] for the form.
//! [`write_form`] makes the tar again from index and data, with the true times or with an epoch.

use super::header::{BLOCK, WRITER_VERSION, encode};
pub use super::stream::Body;
use super::stream::TarStream;
use crate::digest::{DiffId, Digest};
use crate::layer::entry::{Entry, Kind, compare_paths, is_clean, parent};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{IndexBuilder, IndexError, KEPT_LIMIT, KEPT_PATHS, LayerIndex, Origin};
use std::cmp::Ordering;
use std::io::{self, Read, Write};

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The tar could not be written.
    #[error("cannot write the layer")]
    Out(#[source] io::Error),
    /// A file could not be read.
    #[error("cannot read {}", show(.path))]
    Read {
        /// Its path in the layer.
        path: Vec<u8>,
        /// What the system said.
        source: io::Error,
    },
    /// No thread for hashing.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A file has not the size that it had when the step looked at it.
    #[error("{} changed while it was read: it no longer has {size} bytes", show(.path))]
    Changed {
        /// Its path in the layer.
        path: Vec<u8>,
        /// The size that it had.
        size: u64,
    },
    /// A file has not the data that the index says.
    #[error("the data of {} is not that of the layer: {found} instead of {expected}", show(.path))]
    WrongData {
        /// Its path in the layer.
        path: Vec<u8>,
        /// What the index says.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// An entry that cannot be in a layer.
    #[error("{} cannot be in a layer: {why}", show(.path))]
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// What is wrong.
        why: &'static str,
    },
    /// The layer came from outside, so only its own tar has its bytes.
    #[error("layer {0} was not written by rbuild, so its tar cannot be made again")]
    Foreign(DiffId),
    /// The layer was written by a later rbuild.
    #[error("layer {diff_id} was written in form {writer}, which this rbuild does not know: use a newer one")]
    Version {
        /// The layer.
        diff_id: DiffId,
        /// Its form.
        writer: u32,
    },
    /// The tar came out otherwise, though all data is right: the index is not that of the layer.
    #[error("the tar made from the index is {found}, not {expected}: the index is wrong")]
    NotReproduced {
        /// What the index says.
        expected: DiffId,
        /// What was made.
        found: DiffId,
    },
    /// The index has no room.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A path for messages: as in the image, starting at the root.
pub(crate) fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Writes a layer, entry by entry.
pub struct LayerWriter<W: Write> {
    stream: TarStream<W>,
    builder: IndexBuilder,
    /// Whether the last entry is a directory.
    in_directory: bool,
    kept: Vec<u8>,
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer.
    pub fn new(out: W) -> Self {
        Self { stream: TarStream::new(out), builder: IndexBuilder::new(), in_directory: false, kept: Vec::new() }
    }

    /// Adds an entry. Its directory comes before it, and so does the file that it is a hard link to. What the writer
    /// knows better is set in `entry`: the digest of a file's data, and the metadata of whiteouts and symbolic links.
    pub fn push(&mut self, entry: &mut Entry, body: Body<'_>) -> Result<(), WriteError> {
        self.check(entry)?;
        match entry.kind {
            Kind::Whiteout => {
                (entry.mode, entry.uid, entry.gid, entry.mtime, entry.capability) = (0, 0, 0, 0, None);
            }
            Kind::Symlink { .. } => entry.mode = 0o777,
            _ => entry.mode &= 0o7777,
        }
        let keep = match entry.kind {
            Kind::File { size, .. } => size <= KEPT_LIMIT && KEPT_PATHS.contains(&entry.path.as_slice()),
            _ => false,
        };
        self.kept.clear();
        let view = EntryRef::from(&*entry);
        let (offset, digest) = self.stream.entry(&view, entry.mtime, body, keep.then_some(&mut self.kept))?;
        if let Kind::File { sha256, .. } = &mut entry.kind {
            *sha256 = digest;
        }
        self.builder.push(&EntryRef::from(&*entry), offset);
        if keep {
            self.builder.keep(&entry.path, &self.kept);
        }
        self.in_directory = entry.kind == Kind::Directory;
        Ok(())
    }

    /// Ends the layer.
    pub fn finish(self) -> Result<(W, LayerIndex), WriteError> {
        let (out, diff_id, size) = self.stream.finish()?;
        Ok((out, self.builder.finish(Origin::Made { writer: WRITER_VERSION }, diff_id, size)?))
    }

    /// Whether `entry` may come next.
    fn check(&self, entry: &Entry) -> Result<(), WriteError> {
        let wrong = |why| Err(WriteError::Entry { path: entry.path.clone(), why });
        if !is_clean(&entry.path) {
            return wrong("its path is not clean");
        }
        let last = self.builder.last_path().unwrap_or_default();
        if !last.is_empty() && compare_paths(last, &entry.path) != Ordering::Less {
            return wrong("it does not come in order");
        }
        // The last entry had all its directories before it, so what it shares with this one is there.
        if let Some(dir) = parent(&entry.path) {
            let there = if last == dir { self.in_directory } else { last.starts_with(dir) && last[dir.len()] == b'/' };
            if !there {
                return wrong("its directory does not come before it");
            }
        }
        match &entry.kind {
            Kind::HardLink { target } if !self.builder.holds_file(target) => {
                wrong("the file that it links to does not come before it")
            }
            _ => Ok(()),
        }
    }
}

/// Writes the tar of a layer again: with its true times, or with `epoch` as the time of each entry. `data` gives the
/// bytes of the file at a position of the index. Returns diffID and size.
///
/// With true times the result is exactly the tar that the index was made with, or an error.
pub fn write_form<'d>(
    index: &LayerIndex,
    data: &mut dyn FnMut(usize) -> io::Result<Box<dyn Read + 'd>>,
    epoch: Option<i64>,
    out: impl Write,
) -> Result<(DiffId, u64), WriteError> {
    check_writer(index)?;
    let mut stream = TarStream::new(out);
    for (position, entry) in index.entries().enumerate() {
        let body = match entry.kind {
            KindRef::File { .. } => {
                Body::Reader(data(position).map_err(|source| WriteError::Read { path: entry.path.to_vec(), source })?)
            }
            _ => Body::None,
        };
        let (_, found) = stream.entry(&entry, epoch.unwrap_or(entry.mtime), body, None)?;
        if let KindRef::File { sha256: expected, .. } = entry.kind
            && found != expected
        {
            return Err(WriteError::WrongData { path: entry.path.to_vec(), expected, found });
        }
    }
    let (_, diff_id, size) = stream.finish()?;
    if epoch.is_none() && diff_id != index.diff_id() {
        return Err(WriteError::NotReproduced { expected: index.diff_id(), found: diff_id });
    }
    Ok((diff_id, size))
}

/// The index of the form of a layer that has `epoch` as the time of each entry; its diffID is that of [`write_form`].
pub fn epoch_index(index: &LayerIndex, diff_id: DiffId, epoch: i64) -> Result<LayerIndex, WriteError> {
    check_writer(index)?;
    let mut builder = IndexBuilder::new();
    let mut block = Vec::with_capacity(3 * BLOCK);
    let mut offset = 0;
    for entry in index.entries() {
        block.clear();
        encode(&entry, epoch, &mut block)?;
        offset += block.len() as u64;
        builder.push(&EntryRef { mtime: epoch, ..entry }, offset);
        if let Some(bytes) = index.file_bytes(entry.path) {
            builder.keep(entry.path, bytes);
        }
        if let KindRef::File { size, .. } = entry.kind {
            offset += size.next_multiple_of(BLOCK as u64);
        }
    }
    Ok(builder.finish(index.origin(), diff_id, offset + 2 * BLOCK as u64)?)
}

fn check_writer(index: &LayerIndex) -> Result<(), WriteError> {
    match index.origin() {
        Origin::Foreign => Err(WriteError::Foreign(index.diff_id())),
        Origin::Made { writer: WRITER_VERSION } => Ok(()),
        Origin::Made { writer } => Err(WriteError::Version { diff_id: index.diff_id(), writer }),
    }
}

#[cfg(test)]
mod tests;
