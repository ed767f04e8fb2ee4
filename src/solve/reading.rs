//! The small files of a COPY, read and hashed ahead of the thread that writes the layer.
//!
//! In: the landed entries and where their bytes are. Out: bytes and digest of each small file, in the order of the
//! entries. What always holds: at most a few batches wait, so memory is bounded; each file's bytes are those of the
//! moment that its stamp names; the threads are gone when [`read_ahead`] returns.
//!
//! Opening fifty thousand files takes longer than hashing what is in them, so both happen beside the writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::Cause;
use super::copy::{FileData, LandedEntry};
use super::layer::Source;
use crate::digest::Digest;
use crate::layer::entry::{Kind, compare_paths};
use crate::layer::entry_ref::KindRef;
use crate::layer::index::LayerIndex;

/// Files up to this size are read ahead.
const SMALL: u64 = 256 << 10;

/// A batch ends with the file that brings it to this many bytes, or files.
const BATCH_BYTES: u64 = 1 << 19;
const BATCH_FILES: usize = 128;

/// Batches that wait for the writer, per thread.
const WAITING: usize = 2;

/// More threads than this only fight for the directories.
const MOST_THREADS: usize = 4;

/// Fewer files are read where they are needed.
const WORTH_A_THREAD: usize = 32;

/// Bytes that are read of an earlier tar at once: neighbours' data lies together.
const WINDOW: usize = 1 << 19;

/// The layer that a COPY made before: what did not change since is read from its tar, which is one file.
pub(super) struct Before {
    pub(super) index: LayerIndex,
    pub(super) tar: File,
}

/// Files that were read: their bytes one after the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    files: Vec<(usize, Digest)>,
    /// Why the file after the last one could not be read.
    failure: Option<Cause>,
}

/// The small files of a layer, in order.
pub(super) struct Files<'a> {
    source: &'a Source<'a>,
    /// From each thread in turn.
    batches: Vec<(Receiver<Batch>, Sender<Batch>)>,
    turn: usize,
    batch: Batch,
    /// The next file of the batch, and where its bytes begin.
    next: usize,
    at: usize,
    buffer: Vec<u8>,
}

/// Whether the bytes of `landed` come from [`Files::next`].
pub(super) fn is_small(landed: &LandedEntry) -> bool {
    matches!(landed.entry.kind, Kind::File { size, .. } if size <= SMALL)
}

/// Calls `write` with the small files of `entries`, which other threads read meanwhile if there are many.
pub(super) fn read_ahead<T>(
    source: &Source<'_>,
    entries: &[LandedEntry],
    before: Option<&Before>,
    write: impl FnOnce(Files<'_>) -> Result<T, Cause>,
) -> Result<T, Cause> {
    let batches = batches(entries);
    let files: usize = batches.iter().map(Vec::len).sum();
    let none =
        |batches| Files { source, batches, turn: 0, batch: Batch::default(), next: 0, at: 0, buffer: Vec::new() };
    if files < WORTH_A_THREAD {
        return write(none(Vec::new()));
    }
    // The writer and the hash of the tar take a processor together.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = (processors / 2).clamp(1, MOST_THREADS).min(batches.len());
    thread::scope(|scope| {
        let mut channels = Vec::with_capacity(threads);
        for first in 0..threads {
            let (ready, take) = sync_channel(WAITING);
            let (give_back, empty) = channel();
            let mine = batches.iter().skip(first).step_by(threads);
            let reader = Reader { source, entries, before: before.map(Window::new), ready, empty };
            let spawned = thread::Builder::new().name("read".to_owned()).spawn_scoped(scope, move || reader.work(mine));
            if let Err(error) = spawned {
                return Err(Cause::Write(crate::layer::write::WriteError::Thread(error)));
            }
            channels.push((take, give_back));
        }
        // Dropped when `write` returns, whatever it returns: then the readers end, too.
        write(none(channels))
    })
}

/// The positions of the small files, in batches.
fn batches(entries: &[LandedEntry]) -> Vec<Vec<usize>> {
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (position, landed) in entries.iter().enumerate().filter(|(_, landed)| is_small(landed)) {
        let Kind::File { size, .. } = landed.entry.kind else { continue };
        batch.push(position);
        bytes += size;
        if bytes >= BATCH_BYTES || batch.len() >= BATCH_FILES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

impl Files<'_> {
    /// Bytes and digest of the next small file, which is `landed`.
    pub(super) fn next(&mut self, landed: &LandedEntry) -> Result<(&[u8], Digest), Cause> {
        if self.batches.is_empty() {
            self.buffer.clear();
            read(self.source, landed, &mut self.buffer)?;
            return Ok((&self.buffer, Digest::of(&self.buffer)));
        }
        while self.next == self.batch.files.len() {
            if let Some(failure) = self.batch.failure.take() {
                return Err(failure);
            }
            let threads = self.batches.len();
            let (take, _) = &self.batches[self.turn % threads];
            // A reader ends early only after a failure, which was told.
            let batch = take.recv().map_err(|_| Cause::Canceled)?;
            let used = std::mem::replace(&mut self.batch, batch);
            if self.turn >= threads {
                // The reader may have ended; then nobody needs it.
                drop(self.batches[(self.turn - 1) % threads].1.send(used));
            }
            (self.next, self.at) = (0, 0);
            self.turn += 1;
        }
        let (length, digest) = self.batch.files[self.next];
        let bytes = &self.batch.bytes[self.at..self.at + length];
        self.next += 1;
        self.at += length;
        Ok((bytes, digest))
    }
}

/// One reading thread.
struct Reader<'a> {
    source: &'a Source<'a>,
    entries: &'a [LandedEntry],
    before: Option<Window<'a>>,
    ready: SyncSender<Batch>,
    empty: Receiver<Batch>,
}

impl Reader<'_> {
    fn work<'b>(mut self, batches: impl Iterator<Item = &'b Vec<usize>>) {
        for positions in batches {
            let mut batch = self.empty.try_recv().unwrap_or_default();
            batch.bytes.clear();
            batch.files.clear();
            for position in positions {
                match self.one(&self.entries[*position], &mut batch.bytes) {
                    Ok(file) => batch.files.push(file),
                    Err(cause) => {
                        batch.failure = Some(cause);
                        break;
                    }
                }
            }
            let failed = batch.failure.is_some();
            if self.ready.send(batch).is_err() || failed {
                return;
            }
        }
    }

    /// Appends a file's bytes; their number and digest.
    fn one(&mut self, landed: &LandedEntry, bytes: &mut Vec<u8>) -> Result<(usize, Digest), Cause> {
        if let Some(before) = &mut self.before
            && let Some(data) = before.same(landed)
        {
            bytes.extend_from_slice(data.0);
            return Ok((data.0.len(), data.1));
        }
        let start = bytes.len();
        read(self.source, landed, bytes)?;
        Ok((bytes.len() - start, Digest::of(&bytes[start..])))
    }
}

/// Appends the bytes of a small file.
fn read(source: &Source<'_>, landed: &LandedEntry, bytes: &mut Vec<u8>) -> Result<(), Cause> {
    match landed.entry.kind {
        Kind::File { size, .. } => source.read(landed, size as usize, bytes),
        _ => Ok(()),
    }
}

/// A window over the tar of the layer before.
struct Window<'a> {
    before: &'a Before,
    /// The first entry that may be the next one's.
    position: usize,
    bytes: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    fn new(before: &'a Before) -> Self {
        Self { before, position: 0, bytes: Vec::new(), start: 0 }
    }

    /// Bytes and digest of `landed`, whose digest is known, if the layer before has a file of that name and content.
    /// Whatever is wrong there, the context has the file.
    fn same(&mut self, landed: &LandedEntry) -> Option<(&[u8], Digest)> {
        let Kind::File { size, sha256 } = landed.entry.kind else { return None };
        let (FileData::Context(_), true) = (&landed.data, landed.is_hashed()) else { return None };
        let index = &self.before.index;
        while self.position < index.len() && compare_paths(index.path(self.position), &landed.entry.path).is_lt() {
            self.position += 1;
        }
        if self.position == index.len() || index.path(self.position) != landed.entry.path {
            return None;
        }
        if index.entry_ref(self.position).kind != (KindRef::File { size, sha256 }) {
            return None;
        }
        let offset = index.offset(self.position);
        let data = self.window(offset, size as usize).ok()?;
        let digest = Digest::of(data);
        (digest == sha256).then_some((data, digest))
    }

    fn window(&mut self, start: u64, length: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if start < self.start || start + length as u64 > end {
            self.bytes.resize(WINDOW.max(length), 0);
            self.start = start;
            let mut filled = 0;
            while filled < self.bytes.len() {
                match self.before.tar.read_at(&mut self.bytes[filled..], start + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.bytes.clear();
                        return Err(error);
                    }
                }
            }
            self.bytes.truncate(filled);
        }
        let from = (start - self.start) as usize;
        self.bytes.get(from..from + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
