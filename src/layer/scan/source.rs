//! The bytes of a foreign tar, hashed as they are read.
//!
//! In: a reader. Out: blocks and data, in order. What always holds: every byte of the reader counts in the diffID
//! once; large tars are hashed on a second thread, large files on a third.

use super::ScanError;
use crate::digest::{DiffId, Digest, Hasher};
use crate::layer::chunk::{CHUNK, Chunk, HashThread, Pool};
use crate::layer::header::BLOCK;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

/// Files from this size on are hashed on a thread of their own.
const LARGE: u64 = 4 << 20;

/// A tar that is being read.
pub(super) struct Source<R> {
    reader: R,
    chunk: Arc<Chunk>,
    /// Bytes of the chunk that were taken.
    used: usize,
    /// Bytes before the chunk.
    before: u64,
    pool: Pool,
    sum: Hasher,
    tar_thread: Option<HashThread>,
    file_thread: Option<HashThread>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        let mut pool = Pool::default();
        Self {
            reader,
            chunk: Arc::new(pool.take()),
            used: 0,
            before: 0,
            pool,
            sum: Hasher::new(),
            tar_thread: None,
            file_thread: None,
        }
    }

    /// Bytes taken so far.
    pub(super) fn position(&self) -> u64 {
        self.before + self.used as u64
    }

    /// The next block; `None` at the end.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ScanError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let Some(range) = self.piece((BLOCK - filled) as u64)? else {
                return if filled == 0 { Ok(None) } else { Err(ScanError::Truncated { at: self.position() }) };
            };
            let piece = &self.chunk.bytes[range];
            block[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(Some(block))
    }

    /// Gives the next `size` bytes to `take`.
    pub(super) fn data(&mut self, size: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), ScanError> {
        let mut left = size;
        while left > 0 {
            let range = self.piece(left)?.ok_or(ScanError::Truncated { at: self.position() })?;
            left -= range.len() as u64;
            take(&self.chunk.bytes[range]);
        }
        Ok(())
    }

    /// The digest of the next `size` bytes.
    pub(super) fn digest(&mut self, size: u64) -> Result<Digest, ScanError> {
        if size < LARGE {
            let mut sum = Hasher::new();
            self.data(size, &mut |piece| sum.update(piece))?;
            return Ok(sum.finish());
        }
        let thread = match self.file_thread.take() {
            Some(thread) => thread,
            None => HashThread::start(Hasher::new())?,
        };
        let mut left = size;
        while left > 0 {
            let range = self.piece(left)?.ok_or(ScanError::Truncated { at: self.position() })?;
            left -= range.len() as u64;
            thread.update(&self.chunk, range);
        }
        let digest = thread.end();
        self.file_thread = Some(thread);
        Ok(digest)
    }

    /// Skips what fills the last block of `size` bytes.
    pub(super) fn skip_padding(&mut self, size: u64) -> Result<(), ScanError> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.data(padding, &mut |_| {})
    }

    /// Reads to the end.
    pub(super) fn drain(&mut self) -> Result<(), ScanError> {
        while self.piece(u64::MAX)?.is_some() {}
        Ok(())
    }

    /// Ends reading: the digest of all that was read, and how much it was.
    pub(super) fn finish(mut self) -> Result<(DiffId, u64), ScanError> {
        self.drain()?;
        let size = self.position();
        let digest = match self.tar_thread {
            Some(thread) => thread.end(),
            None => self.sum.finish(),
        };
        Ok((DiffId(digest), size))
    }

    /// Takes at most `most` bytes, as a part of the current chunk; `None` at the end.
    fn piece(&mut self, most: u64) -> Result<Option<Range<usize>>, ScanError> {
        if self.used == self.chunk.length {
            self.refill()?;
        }
        let length = (self.chunk.length - self.used).min(usize::try_from(most).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(None);
        }
        self.used += length;
        Ok(Some(self.used - length..self.used))
    }

    /// Reads the next chunk.
    fn refill(&mut self) -> io::Result<()> {
        let mut next = self.pool.take();
        while next.length < CHUNK {
            match self.reader.read(&mut next.bytes[next.length..]) {
                Ok(0) => break,
                Ok(read) => next.length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.before += self.chunk.length as u64;
        self.used = 0;
        self.pool.give(std::mem::replace(&mut self.chunk, Arc::new(next)));
        if self.tar_thread.is_none() && self.chunk.length == CHUNK {
            self.tar_thread = Some(HashThread::start(std::mem::take(&mut self.sum))?);
        }
        match &self.tar_thread {
            Some(thread) => thread.update(&self.chunk, 0..self.chunk.length),
            None => self.sum.update(&self.chunk.bytes[..self.chunk.length]),
        }
        Ok(())
    }
}
