//! Compressing layers on all cores, and reading compressed ones.
//!
//! In: bytes. Out: gzip or zstd, or the bytes that they stood for. What always holds: the output depends on the input,
//! the format, the level and [`ENCODER_VERSION`] alone, not on the number of threads; memory is bounded by a few blocks
//! per thread; when a [`Compressor`] is gone, so are its threads.
//!
//! gzip is written as members of 1 MiB each, zstd as frames of 4 MiB: both formats are defined so that their
//! concatenation is the concatenation of what they hold, and every reader of container images knows it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Counts up when the same input gives other bytes: the libraries, block sizes or headers changed.
pub const ENCODER_VERSION: u32 = 1;

/// Bytes of input in a gzip member.
const GZIP_BLOCK: usize = 1 << 20;

/// Bytes of input in a zstd frame.
const ZSTD_BLOCK: usize = 4 << 20;

/// Bytes that are read at once for decompressing.
const READ_BUFFER: usize = 1 << 17;

/// Most memory that an xz layer may ask for, in KiB: what its highest preset takes, and some.
const XZ_MEMORY: u32 = 200 << 10;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// gzip at a level from 0 to 12.
    Gzip(u32),
    /// zstd at a level from 1 to 22.
    Zstd(u32),
}

impl Compression {
    /// gzip at the level that is best for layers: as small as other builders make them, at twice the speed.
    pub const GZIP: Self = Self::Gzip(4);
    /// zstd at its default level.
    pub const ZSTD: Self = Self::Zstd(3);

    /// Checks the level.
    pub fn check(self) -> Result<Self, LevelError> {
        let highest = match self {
            Self::Gzip(level) if level > 12 => (level, "gzip", 0, 12),
            Self::Zstd(level) if !(1..=22).contains(&level) => (level, "zstd", 1, 22),
            _ => return Ok(self),
        };
        let (level, format, least, most) = highest;
        Err(LevelError { level, format, least, most })
    }

    fn block(self) -> usize {
        match self {
            Self::Uncompressed | Self::Gzip(_) => GZIP_BLOCK,
            Self::Zstd(_) => ZSTD_BLOCK,
        }
    }
}

/// A level that a format does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{format} has no compression level {level}: it goes from {least} to {most}")]
pub struct LevelError {
    level: u32,
    format: &'static str,
    least: u32,
    most: u32,
}

/// What the first bytes of a file say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// None of the others.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// Bytes that [`detect`] wants to see.
pub const MAGIC: usize = 6;

/// Tells the format by the first bytes, [`MAGIC`] of them if there are so many.
pub fn detect(start: &[u8]) -> Format {
    match start {
        [0x1f, 0x8b, 8, ..] => Format::Gzip,
        // A frame, or one that holds no data and may come first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Format::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
        _ => Format::Plain,
    }
}

/// Reads what `reader` gives, decompressed if it is compressed.
pub fn decompress<'a>(reader: impl Read + Send + 'a) -> io::Result<(Format, Box<dyn Read + Send + 'a>)> {
    let mut reader = BufReader::with_capacity(READ_BUFFER, reader);
    // A pipe may give less than asked for.
    let mut start = Vec::with_capacity(MAGIC);
    reader.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    let format = detect(&start);
    let reader = BufReader::with_capacity(READ_BUFFER, io::Cursor::new(start).chain(reader));
    Ok((format, decompressor(format, reader)?))
}

/// Reads what `reader` gives, decompressed from a known format.
pub fn decompressor<'a>(format: Format, reader: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match format {
        Format::Plain => Box::new(reader),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY)),
    })
}

/// Compresses what is written to it.
pub struct Compressor<W: Write> {
    out: W,
    compression: Compression,
    block: Vec<u8>,
    threads: usize,
    workers: Option<Workers>,
    /// Blocks handed out, and blocks written.
    taken: u64,
    written: u64,
    /// Compressed blocks that came before their turn.
    early: BTreeMap<u64, Vec<u8>>,
}

impl<W: Write> Compressor<W> {
    /// Compresses to `out` on all cores.
    pub fn new(out: W, compression: Compression) -> Result<Self, LevelError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads(out, compression, threads)
    }

    /// Compresses to `out` on so many threads.
    pub fn with_threads(out: W, compression: Compression, threads: usize) -> Result<Self, LevelError> {
        let compression = compression.check()?;
        Ok(Self {
            out,
            compression,
            block: Vec::new(),
            threads: threads.max(1),
            workers: None,
            taken: 0,
            written: 0,
            early: BTreeMap::new(),
        })
    }

    /// Compresses what is left and returns the writer.
    pub fn finish(mut self) -> io::Result<W> {
        if self.compression != Compression::Uncompressed {
            if self.taken == 0 {
                // Little or nothing: no thread is worth its start, but even nothing is a member.
                let block = Encoder::new(self.compression)?.encode(&self.block)?;
                self.out.write_all(&block)?;
            } else if !self.block.is_empty() {
                self.submit()?;
            }
            while self.written < self.taken {
                self.receive()?;
            }
        }
        self.out.flush()?;
        // The rest, threads included, ends here.
        let Self { out, workers, .. } = self;
        drop(workers);
        Ok(out)
    }

    /// Hands the current block to a thread.
    fn submit(&mut self) -> io::Result<()> {
        while self.taken - self.written >= 2 * self.threads as u64 {
            self.receive()?;
        }
        let workers = match &mut self.workers {
            Some(workers) => workers,
            none => none.insert(Workers::start(self.compression, self.threads)?),
        };
        let next = Vec::with_capacity(self.compression.block());
        let block = std::mem::replace(&mut self.block, next);
        workers.send(self.taken, block)?;
        self.taken += 1;
        Ok(())
    }

    /// Waits for a block, and writes what has its turn.
    fn receive(&mut self) -> io::Result<()> {
        let workers = self.workers.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (number, block) = workers.done.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.early.insert(number, block?);
        while let Some(block) = self.early.remove(&self.written) {
            self.out.write_all(&block)?;
            self.written += 1;
        }
        Ok(())
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.compression == Compression::Uncompressed {
            return self.out.write(bytes);
        }
        let size = self.compression.block();
        if self.block.len() == size {
            self.submit()?;
        }
        let length = bytes.len().min(size - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    /// Does nothing to the block that is not full: how often somebody flushes must not show in the output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Threads that compress blocks.
struct Workers {
    /// `None` only while it is dropped.
    todo: Option<SyncSender<(u64, Vec<u8>)>>,
    done: Receiver<(u64, io::Result<Vec<u8>>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(compression: Compression, count: usize) -> io::Result<Self> {
        let (todo, jobs) = sync_channel::<(u64, Vec<u8>)>(2 * count);
        let jobs = Arc::new(Mutex::new(jobs));
        let (results, done) = channel();
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let (jobs, results) = (Arc::clone(&jobs), results.clone());
            let mut encoder = Encoder::new(compression)?;
            let work = move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, block)) = job else { break };
                    // Nobody waits any more when the writer failed.
                    if results.send((number, encoder.encode(&block))).is_err() {
                        break;
                    }
                }
            };
            match std::thread::Builder::new().name("compress".to_owned()).spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                // Fewer do it too.
                Err(_) => break,
            }
        }
        Ok(Self { todo: Some(todo), done, threads })
    }

    fn send(&self, number: u64, block: Vec<u8>) -> io::Result<()> {
        let todo = self.todo.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        todo.send((number, block)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.todo.take());
        for thread in self.threads.drain(..) {
            // One that panicked gave no block, which the writer noticed.
            drop(thread.join());
        }
    }
}

/// Compresses single blocks.
enum Encoder {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    fn new(compression: Compression) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        match compression {
            Compression::Gzip(level) => {
                let level = libdeflater::CompressionLvl::new(level as i32).map_err(|_| invalid())?;
                Ok(Self::Gzip(libdeflater::Compressor::new(level)))
            }
            Compression::Zstd(level) => Ok(Self::Zstd(zstd::bulk::Compressor::new(level as i32)?)),
            Compression::Uncompressed => Err(invalid()),
        }
    }

    fn encode(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(compressor) => {
                let mut out = vec![0; compressor.gzip_compress_bound(block.len())];
                // The bound is such that it fits.
                let length = compressor.gzip_compress(block, &mut out).map_err(|_| io::ErrorKind::WriteZero)?;
                out.truncate(length);
                Ok(out)
            }
            Self::Zstd(compressor) => compressor.compress(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::sample;
    use std::fmt::Write as _;

    /// Bytes that compress somewhat, the same on every machine.
    fn bytes(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..length).map(|at| if at % 7 < 3 { (at / 1000) as u8 } else { next() as u8 & 15 }).collect()
    }

    fn compressed(bytes: &[u8], compression: Compression, threads: usize, step: usize) -> Vec<u8> {
        let mut compressor = Compressor::with_threads(Vec::new(), compression, threads).unwrap();
        for piece in bytes.chunks(step) {
            compressor.write_all(piece).unwrap();
            compressor.flush().unwrap();
        }
        compressor.finish().unwrap()
    }

    #[test]
    fn golden_digests() {
        // A change here needs a new ENCODER_VERSION.
        let mut found = String::from("# Digest and size of the compressed forms of compress.rs; encoder version 1.\n");
        for length in [0, 1, 70_000, GZIP_BLOCK + 1, ZSTD_BLOCK + 1] {
            let bytes = bytes(length);
            for compression in [1, 4, 9].map(Compression::Gzip).into_iter().chain([1, 3].map(Compression::Zstd)) {
                if length > 100_000 && ![Compression::GZIP, Compression::ZSTD].contains(&compression) {
                    continue;
                }
                let out = compressed(&bytes, compression, 2, 100_000);
                writeln!(found, "{} {:8} {length:8} {compression:?}", Digest::of(&out), out.len()).unwrap();
            }
        }
        sample::golden("compressed.txt", &found);
    }

    #[test]
    fn threads_and_pieces_do_not_show() {
        let bytes = bytes(5 << 20);
        for compression in [Compression::GZIP, Compression::ZSTD, Compression::Uncompressed] {
            let expected = Digest::of(&compressed(&bytes, compression, 1, bytes.len()));
            for (threads, step) in [(1, 4096), (3, 777_777)] {
                let found = Digest::of(&compressed(&bytes, compression, threads, step));
                assert_eq!(found, expected, "{compression:?} {threads} {step}");
            }
        }
    }

    #[test]
    fn reads_what_it_writes() {
        for length in [0, 1, GZIP_BLOCK, ZSTD_BLOCK + 5] {
            let bytes = bytes(length);
            for compression in [Compression::Uncompressed, Compression::GZIP, Compression::ZSTD] {
                let packed = compressed(&bytes, compression, 2, 1 << 20);
                let (format, mut reader) = decompress(packed.as_slice()).unwrap();
                let expected = match compression {
                    Compression::Uncompressed => Format::Plain,
                    Compression::Gzip(_) => Format::Gzip,
                    Compression::Zstd(_) => Format::Zstd,
                };
                let mut read = Vec::new();
                reader.read_to_end(&mut read).unwrap();
                assert!(format == expected && read == bytes, "{compression:?} {length}");
            }
        }
    }

    #[test]
    fn reads_other_formats() {
        let text = b"some text, some text, some text";
        let mut bzip2 = bzip2::read::BzEncoder::new(text.as_slice(), bzip2::Compression::fast());
        let mut packed = Vec::new();
        bzip2.read_to_end(&mut packed).unwrap();
        // `printf 'some text, some text, some text' | xz`
        let xz = include_bytes!("../../testdata/layers/text.xz").as_slice();
        for (packed, format) in [(packed.as_slice(), Format::Bzip2), (xz, Format::Xz)] {
            let mut read = Vec::new();
            let (found, mut reader) = decompress(packed).unwrap();
            reader.read_to_end(&mut read).unwrap();
            assert_eq!((found, read.as_slice()), (format, text.as_slice()));
            // Cut short it is an error, not less text.
            let (_, mut reader) = decompress(&packed[..packed.len() - 9]).unwrap();
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{format}");
        }
    }

    #[test]
    fn tells_formats() {
        for (start, format) in [
            (b"\x1f\x8b\x08\x00\x00\x00" as &[u8], Format::Gzip),
            (b"\x1f\x8b\x07\x00\x00\x00", Format::Plain),
            (b"\x28\xb5\x2f\xfd\x00\x00", Format::Zstd),
            (b"\x51\x2a\x4d\x18\x00\x00", Format::Zstd),
            (b"BZh91A", Format::Bzip2),
            (b"BZhello", Format::Plain),
            (b"\xfd7zXZ\x00", Format::Xz),
            (b"\xfd7zXZ", Format::Plain),
            (b"usr/", Format::Plain),
            (b"", Format::Plain),
        ] {
            assert_eq!(detect(start), format, "{start:?}");
        }
    }

    #[test]
    fn levels() {
        for (compression, error) in [
            (Compression::Gzip(13), "gzip has no compression level 13: it goes from 0 to 12"),
            (Compression::Zstd(0), "zstd has no compression level 0: it goes from 1 to 22"),
            (Compression::Zstd(23), "zstd has no compression level 23: it goes from 1 to 22"),
        ] {
            assert_eq!(compression.check().unwrap_err().to_string(), error);
            assert!(Compressor::new(Vec::new(), compression).is_err());
        }
        assert_eq!(Compression::Gzip(0).check(), Ok(Compression::Gzip(0)));
    }

    /// Fails after some bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let bytes = bytes(6 << 20);
        for room in [0, 1 << 20] {
            let mut compressor = Compressor::with_threads(Full(room), Compression::GZIP, 2).unwrap();
            let result = compressor.write_all(&bytes).and_then(|()| compressor.finish().map(drop));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
