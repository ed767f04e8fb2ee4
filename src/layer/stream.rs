//! A tar as it is written: blocks go out in large pieces, sums are made on the way.
//!
//! In: header blocks and file data. Out: the tar in `out`, its diffID, and the SHA-256 of each file.
//! What always holds: each file is read once; `out` sees writes of 1 MiB but for the last; large tars are hashed on a
//! second thread, large files on a third.

use super::chunk::{CHUNK, Chunk, HashThread, Pool};
use super::header::{BLOCK, encode};
use super::write::WriteError;
use crate::digest::{DiffId, Digest, Hasher};
use crate::layer::entry_ref::{EntryRef, KindRef};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Files from this size on are hashed on a thread of their own.
const LARGE: u64 = 4 << 20;

/// Two zero blocks end a tar.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Where the bytes of an entry come from.
pub enum Body<'a> {
    /// There are none.
    None,
    /// From memory.
    Bytes(&'a [u8]),
    /// From memory, with their digest, which somebody computed from these very bytes.
    Digested(&'a [u8], Digest),
    /// From a reader, which must give exactly as many as the entry says.
    Reader(Box<dyn Read + 'a>),
}

/// A tar that is being written.
pub(crate) struct TarStream<W> {
    out: W,
    chunk: Chunk,
    pool: Pool,
    /// Bytes before the current chunk.
    flushed: u64,
    /// The sum of the tar while it is small.
    sum: Hasher,
    tar_thread: Option<HashThread>,
    file_thread: Option<HashThread>,
    /// Where the data of a large file begins in the current chunk; `None` outside of such data.
    large_from: Option<usize>,
    block: Vec<u8>,
}

impl<W: Write> TarStream<W> {
    pub(crate) fn new(out: W) -> Self {
        let mut pool = Pool::default();
        Self {
            out,
            chunk: pool.take(),
            pool,
            flushed: 0,
            sum: Hasher::new(),
            tar_thread: None,
            file_thread: None,
            large_from: None,
            block: Vec::with_capacity(3 * BLOCK),
        }
    }

    /// Bytes of the tar so far.
    pub(crate) fn position(&self) -> u64 {
        self.flushed + self.chunk.length as u64
    }

    /// Writes an entry with `mtime` as its time. Returns where its data begins and, for a file, the digest of the data;
    /// `keep` takes the bytes too.
    pub(crate) fn entry(
        &mut self,
        entry: &EntryRef<'_>,
        mtime: i64,
        body: Body<'_>,
        keep: Option<&mut Vec<u8>>,
    ) -> Result<(u64, Digest), WriteError> {
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        encode(entry, mtime, &mut block)?;
        self.bytes(&block)?;
        self.block = block;
        let offset = self.position();
        let KindRef::File { size, .. } = entry.kind else {
            return match body {
                Body::None => Ok((offset, Digest::of(b""))),
                _ => Err(WriteError::Entry { path: entry.path.to_vec(), why: "only a file has data" }),
            };
        };
        let digest = match body {
            Body::None => self.data(entry.path, size, &mut io::empty(), keep),
            Body::Bytes(mut bytes) => self.data(entry.path, size, &mut bytes, keep),
            Body::Digested(bytes, _) if bytes.len() as u64 != size => {
                Err(WriteError::Changed { path: entry.path.to_vec(), size })
            }
            Body::Digested(bytes, digest) => {
                if let Some(keep) = keep {
                    keep.extend_from_slice(bytes);
                }
                self.bytes(bytes).map(|()| digest)
            }
            Body::Reader(mut reader) => self.data(entry.path, size, &mut *reader, keep),
        }?;
        let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        self.bytes(&END[..padding])?;
        Ok((offset, digest))
    }

    /// Ends the tar.
    pub(crate) fn finish(mut self) -> Result<(W, DiffId, u64), WriteError> {
        self.bytes(&END)?;
        let size = self.position();
        let digest = if let Some(thread) = &self.tar_thread {
            let chunk = Arc::new(self.chunk);
            thread.update(&chunk, 0..chunk.length);
            self.out.write_all(&chunk.bytes[..chunk.length]).map_err(WriteError::Out)?;
            thread.end()
        } else {
            let bytes = &self.chunk.bytes[..self.chunk.length];
            self.sum.update(bytes);
            self.out.write_all(bytes).map_err(WriteError::Out)?;
            self.sum.finish()
        };
        self.out.flush().map_err(WriteError::Out)?;
        Ok((self.out, DiffId(digest), size))
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            self.chunk.length += length;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// The free part of the current chunk, never empty.
    fn room(&mut self) -> Result<&mut [u8], WriteError> {
        if self.chunk.length == CHUNK {
            self.flush()?;
        }
        Ok(&mut self.chunk.bytes[self.chunk.length..])
    }

    /// Passes the current chunk on and starts a new one.
    fn flush(&mut self) -> Result<(), WriteError> {
        let next = self.pool.take();
        let chunk = Arc::new(std::mem::replace(&mut self.chunk, next));
        self.flushed += chunk.length as u64;
        let thread = match &mut self.tar_thread {
            Some(thread) => thread,
            none => none.insert(HashThread::start(std::mem::take(&mut self.sum)).map_err(WriteError::Thread)?),
        };
        thread.update(&chunk, 0..chunk.length);
        if let (Some(from), Some(thread)) = (self.large_from, &self.file_thread) {
            thread.update(&chunk, from..chunk.length);
            self.large_from = Some(0);
        }
        self.out.write_all(&chunk.bytes[..chunk.length]).map_err(WriteError::Out)?;
        self.pool.give(chunk);
        Ok(())
    }

    /// Copies exactly `size` bytes of a file and digests them.
    fn data(
        &mut self,
        path: &[u8],
        size: u64,
        reader: &mut dyn Read,
        mut keep: Option<&mut Vec<u8>>,
    ) -> Result<Digest, WriteError> {
        let large = size >= LARGE;
        if large {
            if self.file_thread.is_none() {
                self.file_thread = Some(HashThread::start(Hasher::new()).map_err(WriteError::Thread)?);
            }
            self.large_from = Some(self.chunk.length);
        }
        let mut sum = Hasher::new();
        let mut left = size;
        while left > 0 {
            let room = self.room()?;
            let length = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match reader.read(&mut room[..length]) {
                Ok(0) => return Err(WriteError::Changed { path: path.to_vec(), size }),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(WriteError::Read { path: path.to_vec(), source }),
            };
            if !large {
                sum.update(&room[..read]);
            }
            if let Some(keep) = &mut keep {
                keep.extend_from_slice(&room[..read]);
            }
            self.chunk.length += read;
            left -= read as u64;
        }
        // A file that grew since its size was taken is as wrong as one that shrank.
        let mut more = [0];
        loop {
            match reader.read(&mut more) {
                Ok(0) => break,
                Ok(_) => return Err(WriteError::Changed { path: path.to_vec(), size }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(WriteError::Read { path: path.to_vec(), source }),
            }
        }
        if !large {
            return Ok(sum.finish());
        }
        // What lies in the current chunk must get to the thread, so the chunk goes out as it is.
        self.flush()?;
        self.large_from = None;
        Ok(self.file_thread.as_ref().expect("started above").end())
    }
}
