//! Compressed layers: from plain bytes on all cores, and back from whatever archives come in.
//!
//! In: bytes of a tar. Out: the same bytes compressed, or a reader of the plain bytes. What always holds: output depends
//! on input, format and level alone, never on the number of threads: blocks of a fixed size are compressed each by
//! itself and joined in order, to one gzip member (RFC 1952; some readers stop after the first) or as frames of one zstd
//! file (RFC 8878).
//!
//! The bytes also depend on the versions of the encoders, which are pinned; [`Compression::encoder`] names them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};

use libdeflater::{CompressionLvl, Compressor, Crc};

use super::deflate::last_block;

/// Plain bytes that gzip compresses by themselves: large enough that each starting anew costs 0.2 % of size.
const GZIP_BLOCK: usize = 1 << 20;

/// Plain bytes in a zstd frame: its matches reach further back.
const ZSTD_BLOCK: usize = 4 << 20;

/// What a gzip file begins with: deflate, no name, no time, no system.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// An empty block that is marked as the last.
const GZIP_LAST_BLOCK: [u8; 2] = [3, 0];

/// What follows the header of an empty block of stored bytes; after it a stream stands at the beginning of a byte.
const EMPTY_STORED: [u8; 4] = [0, 0, 0xff, 0xff];

/// The most that a block of stored bytes holds.
const MOST_STORED: usize = 0xffff;

/// Plain bytes that tell for a block whether compressing it is worth anything.
const GZIP_SAMPLE: usize = 32 << 10;

/// Windows of more than 128 MiB are refused: a hostile frame must not ask for gigabytes.
const ZSTD_WINDOW: u32 = 27;

/// What an xz file may ask for, in KiB: what its highest preset takes, and some.
const XZ_MEMORY: u32 = 200 << 10;

/// How a layer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// gzip, level 0 to 9.
    Gzip(u8),
    /// Zstandard, level 1 to 22.
    Zstd(u8),
}

impl Compression {
    /// gzip at the level that is as small as zlib's usual one and twice as fast.
    pub const GZIP: Self = Self::Gzip(4);
    /// Zstandard at its usual level.
    pub const ZSTD: Self = Self::Zstd(3);

    /// What makes the bytes: format, level, encoder and its version. Equal names give equal bytes.
    pub fn encoder(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Gzip(level) => format!("gzip-{level} libdeflate-1.26.1 one member"),
            Self::Zstd(level) => format!("zstd-{level} zstd-{}", zstd::zstd_safe::version_string()),
        }
    }

    fn block(self) -> usize {
        match self {
            Self::None | Self::Gzip(_) => GZIP_BLOCK,
            Self::Zstd(_) => ZSTD_BLOCK,
        }
    }

    fn compress(self, block: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(block),
            Self::Gzip(level) => deflate(&block, level),
            Self::Zstd(level) => zstd::bulk::compress(&block, i32::from(level)),
        }
    }
}

/// A block as a piece of a deflate stream that others follow: no block of it is marked as the last, and it ends with a byte.
fn deflate(block: &[u8], level: u8) -> io::Result<Vec<u8>> {
    let refused = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("gzip has no level {level}"));
    let mut encoder = Compressor::new(CompressionLvl::new(i32::from(level)).map_err(refused)?);
    if is_noise(block)? {
        return Ok(stored(block));
    }
    let mut out = vec![0; encoder.deflate_compress_bound(block.len()) + 1 + EMPTY_STORED.len()];
    let size = encoder.deflate_compress(block, &mut out).map_err(io::Error::other)?;
    out.truncate(size);
    let last = last_block(&out).ok_or_else(|| io::Error::other("the encoder of gzip made no deflate stream"))?;
    out[last.start / 8] &= !(1 << (last.start % 8));
    // Three bits of zero begin an empty block of stored bytes. The padding has them, or does with another byte.
    if 8 * out.len() - last.end < 3 {
        out.push(0);
    }
    out.extend(EMPTY_STORED);
    Ok(out)
}

/// Whether compressing a block would do next to nothing: all bytes are about as frequent, and a sample does not shrink.
/// Archives and pictures in a layer cost a tenth that way.
fn is_noise(block: &[u8]) -> io::Result<bool> {
    if block.len() < 4 * GZIP_SAMPLE {
        return Ok(false);
    }
    let mut counts = [0_usize; 256];
    block.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let even = block.len() / 256;
    if counts.iter().any(|count| *count < even * 3 / 4 || *count > even * 5 / 4) {
        return Ok(false);
    }
    let sample = &block[block.len() / 2..][..GZIP_SAMPLE];
    let mut encoder = Compressor::new(CompressionLvl::fastest());
    let mut out = vec![0; encoder.deflate_compress_bound(sample.len())];
    let size = encoder.deflate_compress(sample, &mut out).map_err(io::Error::other)?;
    Ok(size >= sample.len() - sample.len() / 64)
}

/// A block as it is, in the dress of a deflate stream.
fn stored(block: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + 5 * block.len().div_ceil(MOST_STORED));
    for part in block.chunks(MOST_STORED) {
        // Proof: a part is no longer than MOST_STORED.
        let length = part.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(part);
    }
    out
}

/// Compresses what is written to it, on all cores, in order.
pub struct Encoder<W: Write> {
    out: W,
    compression: Compression,
    block: Vec<u8>,
    /// Blocks in work, oldest first; bounded, so memory is too.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    limit: usize,
    begun: bool,
    /// Of all plain bytes: what a gzip file ends with.
    crc: Crc,
    length: u64,
}

impl<W: Write> Encoder<W> {
    /// Writes to `out`.
    pub fn new(out: W, compression: Compression) -> Self {
        let limit = match compression {
            Compression::None => 0,
            _ => 2 * rayon::current_num_threads(),
        };
        Self {
            out,
            compression,
            block: Vec::new(),
            pending: VecDeque::new(),
            limit,
            begun: false,
            crc: Crc::new(),
            length: 0,
        }
    }

    /// The same with half of the pool at most: others need the processors more.
    pub fn gently(mut self) -> Self {
        self.limit = self.limit.min(rayon::current_num_threads().div_ceil(2));
        self
    }

    /// Writes what is left; the inner writer.
    pub fn finish(mut self) -> io::Result<W> {
        // No bytes at all are one empty block: an empty file is no gzip file.
        if !self.block.is_empty() || !self.begun {
            self.submit()?;
        }
        while !self.pending.is_empty() {
            self.take_oldest()?;
        }
        if let Compression::Gzip(_) = self.compression {
            self.out.write_all(&GZIP_LAST_BLOCK)?;
            self.out.write_all(&self.crc.sum().to_le_bytes())?;
            // The length modulo 2^32, as the format wants it.
            self.out.write_all(&(self.length as u32).to_le_bytes())?;
        }
        Ok(self.out)
    }

    fn submit(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if let Compression::Gzip(_) = self.compression {
            if !self.begun {
                self.out.write_all(&GZIP_HEAD)?;
            }
            self.crc.update(&block);
            self.length += block.len() as u64;
        }
        self.begun = true;
        if self.limit == 0 {
            return self.out.write_all(&block);
        }
        if self.pending.len() >= self.limit {
            self.take_oldest()?;
        }
        let (send, receive) = sync_channel(1);
        let compression = self.compression;
        rayon::spawn(move || {
            // Nobody waits for it when the encoder was dropped after an error.
            drop(send.send(compression.compress(block)));
        });
        self.pending.push_back(receive);
        Ok(())
    }

    fn take_oldest(&mut self) -> io::Result<()> {
        if let Some(oldest) = self.pending.pop_front() {
            let block =
                oldest.recv().map_err(|_| io::Error::other("a compressing thread ended without a result"))??;
            self.out.write_all(&block)?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = self.compression.block();
        if self.block.capacity() == 0 {
            self.block.reserve_exact(size);
        }
        let taken = bytes.len().min(size - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == size {
            self.submit()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A block ends where it is full, or the result would depend on who flushes.
        Ok(())
    }
}

/// A format of compressed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// The format that bytes begin with, by its magic number; six bytes tell all. `None` is anything else.
pub fn detect(bytes: &[u8]) -> Option<Format> {
    // A zstd file may begin with skippable frames, whose magic numbers differ in four bits.
    let skippable = bytes.len() >= 4 && bytes[0] & 0xf0 == 0x50 && bytes[1..4] == [0x2a, 0x4d, 0x18];
    match bytes {
        [0x1f, 0x8b, ..] => Some(Format::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
        _ if skippable => Some(Format::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Format::Bzip2),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Format::Xz),
        _ => None,
    }
}

/// A reader of the plain bytes of `source`, whatever it is compressed by. What is not compressed passes as it is.
pub fn decompress<'a>(source: Box<dyn Read + Send + 'a>) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut source = BufReader::with_capacity(1 << 17, source);
    let mut head = [0; 6];
    let mut filled = 0;
    // A short first read says nothing: a pipe gives what it has.
    while filled < head.len() {
        match source.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = head[..filled].to_vec();
    let format = detect(&head);
    let source = BufReader::with_capacity(1 << 17, io::Cursor::new(head).chain(source));
    Ok(match format {
        None => Box::new(source),
        Some(Format::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Some(Format::Zstd) => {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Some(Format::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        Some(Format::Xz) => Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, XZ_MEMORY)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    /// Bytes that compress somewhat and are the same on every machine.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 26) as u8
        };
        (0..size).map(|_| b'a' + next() % 20).collect()
    }

    fn compressed(bytes: &[u8], compression: Compression, pieces: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression);
        bytes.chunks(pieces).for_each(|piece| encoder.write_all(piece).unwrap());
        encoder.finish().unwrap()
    }

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(Box::new(bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_compressed_comes_back() {
        for size in [0, 1, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, 2 * ZSTD_BLOCK + 5] {
            let bytes = sample(size);
            for compression in [Compression::None, Compression::GZIP, Compression::Gzip(0), Compression::ZSTD] {
                let small = compressed(&bytes, compression, 1 << 16);
                assert_eq!(plain(&small).unwrap(), bytes, "{compression:?} {size}");
                assert_eq!(small, compressed(&bytes, compression, 700_001), "{compression:?} {size}: pieces show");
            }
        }
    }

    /// Readers that stop after the first member see all, noise is stored as it is, and other programs agree.
    #[test]
    fn gzip_is_one_member_whatever_is_in_it() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(GZIP_BLOCK + GZIP_BLOCK / 2)
        .collect();
        let bytes = [sample(GZIP_BLOCK + 77), noise.clone(), vec![0; 2 * GZIP_BLOCK], sample(3)].concat();
        for level in [0, 1, 4, 9, 12] {
            let small = compressed(&bytes, Compression::Gzip(level), 1 << 20);
            let mut out = Vec::new();
            flate2::bufread::GzDecoder::new(&small[..]).read_to_end(&mut out).unwrap();
            assert!(out == bytes, "level {level}");
        }
        assert!(is_noise(&noise).unwrap() && !is_noise(&sample(GZIP_BLOCK)).unwrap());
        let stored = compressed(&noise, Compression::GZIP, 1 << 20).len();
        assert!(stored > noise.len() && stored < noise.len() + 200, "{stored}");
    }

    /// A changed digest here is a changed blob for every user: the encoders are pinned for that reason.
    #[test]
    fn bytes_are_what_they_were() {
        let bytes = sample(3 * GZIP_BLOCK / 2);
        let found = [Compression::GZIP, Compression::ZSTD].map(|compression| {
            format!("{} {}\n", compression.encoder(), Digest::of(&compressed(&bytes, compression, 1 << 20)))
        });
        assert_eq!(found.concat(), include_str!("../../testdata/layers/compressed.txt"));
    }

    #[test]
    fn foreign_formats_are_read() {
        // `printf hello | bzip2 -9`, written down once.
        let bzip2 = b"BZh91AY&SY\x19\x31\x65\x3d\0\0\0\x81\0\x02\x44\xa0\0\x21\x9a\x68\x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80";
        assert_eq!(plain(bzip2).unwrap(), b"hello");
        // `printf 'some text, some text, some text' | xz`
        let xz = include_bytes!("../../testdata/layers/text.xz");
        assert_eq!(plain(xz).unwrap(), b"some text, some text, some text");
        assert!(plain(&xz[..xz.len() - 9]).is_err(), "cut short");
        assert_eq!(plain(b"no archive").unwrap(), b"no archive");
        assert_eq!(plain(b"").unwrap(), b"");
        for (head, format) in [
            (&b"\x1f\x8b\x08"[..], Some(Format::Gzip)),
            (b"\x28\xb5\x2f\xfd\0\0", Some(Format::Zstd)),
            (b"\x53\x2a\x4d\x18\0\0", Some(Format::Zstd)),
            (b"BZh9", Some(Format::Bzip2)),
            (b"BZh0", None),
            (b"\xfd7zXZ\0", Some(Format::Xz)),
            (b"\xfd7zXZ", None),
            (b"", None),
        ] {
            assert_eq!(detect(head), format, "{head:?}");
        }
    }

    #[test]
    fn cut_off_bytes_are_an_error() {
        for compression in [Compression::GZIP, Compression::ZSTD] {
            let small = compressed(&sample(100_000), compression, 1 << 20);
            for cut in [10, small.len() / 2, small.len() - 1] {
                assert!(plain(&small[..cut]).is_err(), "{compression:?} cut at {cut}");
            }
        }
    }
}
