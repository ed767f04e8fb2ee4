//! Where the last block of a deflate stream (RFC 1951) lies, so that another stream can follow it in one file.
//!
//! In: a whole stream that an encoder made. Out: the bit at which its last block begins, and the one after its end. What
//! always holds: nothing is unpacked, codes are only followed; bytes that are no such stream give `None`, never a panic.
//!
//! An encoder that works on whole buffers marks its last block as the last of all. To join what several made, at the
//! same time, into one gzip member, this mark must be taken away, and only reading all the codes tells where it is.

/// A place in a stream, in bits from its beginning, lowest bit of a byte first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastBlock {
    /// Its first bit: the mark.
    pub(super) start: usize,
    /// The bit after its end. Bits from here to the end of the byte are padding.
    pub(super) end: usize,
}

/// In which order the lengths of the codes for code lengths are written (RFC 1951, 3.2.7).
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The longest code.
const MOST_BITS: usize = 15;

/// The symbol that ends a block.
const END_OF_BLOCK: u16 = 256;

/// Finds the last block of `stream`.
pub(super) fn last_block(stream: &[u8]) -> Option<LastBlock> {
    let mut bits = Bits { stream, position: 0 };
    let (mut literals, mut distances) = (Code::default(), Code::default());
    loop {
        let start = bits.position;
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.position = bits.position.next_multiple_of(8);
                let (length, check) = (bits.take(16)?, bits.take(16)?);
                if length ^ check != 0xffff {
                    return None;
                }
                bits.position += 8 * length as usize;
            }
            1 => {
                literals.fill(&fixed_literals())?;
                distances.fill(&[5; 30])?;
                skip_symbols(&mut bits, &literals, &distances)?;
            }
            2 => {
                read_codes(&mut bits, &mut literals, &mut distances)?;
                skip_symbols(&mut bits, &literals, &distances)?;
            }
            _ => return None,
        }
        if bits.position > 8 * stream.len() {
            return None;
        }
        if last {
            return Some(LastBlock { start, end: bits.position });
        }
    }
}

/// The code lengths of blocks that bring no code of their own (RFC 1951, 3.2.6).
fn fixed_literals() -> [u8; 288] {
    std::array::from_fn(|symbol| match symbol {
        0..144 => 8,
        144..256 => 9,
        256..280 => 7,
        _ => 8,
    })
}

/// Reads the two codes at the beginning of a block.
fn read_codes(bits: &mut Bits<'_>, literals: &mut Code, distances: &mut Code) -> Option<()> {
    let literal_count = bits.take(5)? as usize + 257;
    let distance_count = bits.take(5)? as usize + 1;
    let length_count = bits.take(4)? as usize + 4;
    let mut lengths = [0; 19];
    for place in &LENGTH_ORDER[..length_count] {
        lengths[*place] = bits.take(3)? as u8;
    }
    let mut code = Code::default();
    code.fill(&lengths)?;
    // Run lengths go on from one code into the other.
    let mut lengths = [0; 288 + 32];
    let total = literal_count + distance_count;
    let mut filled = 0;
    while filled < total {
        let (value, count) = match code.read(bits)? {
            symbol @ 0..16 => (symbol as u8, 1),
            16 => (*lengths.get(filled.checked_sub(1)?)?, 3 + bits.take(2)? as usize),
            17 => (0, 3 + bits.take(3)? as usize),
            _ => (0, 11 + bits.take(7)? as usize),
        };
        lengths.get_mut(filled..filled + count)?.fill(value);
        filled += count;
    }
    literals.fill(&lengths[..literal_count])?;
    distances.fill(&lengths[literal_count..total])
}

/// Follows the symbols of a block to its end.
fn skip_symbols(bits: &mut Bits<'_>, literals: &Code, distances: &Code) -> Option<()> {
    loop {
        // A length, a distance and what belongs to both are at most 48 bits; a look has at least 57.
        let mut look = bits.look()?;
        let (symbol, mut used) = literals.decode(look)?;
        if symbol > END_OF_BLOCK {
            // Lengths: 4 symbols for each number of further bits, the last with none.
            let further = match symbol - 257 {
                0..8 | 28 => 0,
                rank @ 8..28 => u32::from(rank) / 4 - 1,
                _ => return None,
            };
            used += further;
            look >>= used;
            let (rank, taken) = distances.decode(look)?;
            let further = if rank < 4 { 0 } else { u32::from(rank) / 2 - 1 };
            used += taken + further;
        }
        bits.position += used as usize;
        if symbol == END_OF_BLOCK {
            return Some(());
        }
    }
}

/// A prefix code as a table: the next bits of the stream, as many as the longest code has, lead to a symbol and the number of
/// bits that it takes.
#[derive(Default)]
struct Code {
    /// Symbol, shifted by 4, and length; 0 is no code.
    table: Vec<u16>,
    mask: u64,
}

impl Code {
    /// Makes the code in which each symbol has the length given (RFC 1951, 3.2.2).
    fn fill(&mut self, lengths: &[u8]) -> Option<()> {
        let longest = usize::from(*lengths.iter().max()?);
        let mut counts = [0_u32; MOST_BITS + 1];
        for length in lengths {
            *counts.get_mut(usize::from(*length))? += 1;
        }
        counts[0] = 0;
        let mut next = [0_u32; MOST_BITS + 2];
        for length in 1..=MOST_BITS {
            next[length + 1] = (next[length] + counts[length]) << 1;
        }
        self.mask = (1 << longest) - 1;
        self.table.clear();
        self.table.resize(1 << longest, 0);
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let length = u32::from(*length);
            let code = next[length as usize];
            next[length as usize] += 1;
            // Codes are written highest bit first, all else lowest bit first.
            let first = (code.reverse_bits() >> (32 - length)) as usize;
            if code >> length != 0 {
                return None;
            }
            let entry = (symbol as u16) << 4 | length as u16;
            self.table.iter_mut().skip(first).step_by(1 << length).for_each(|place| *place = entry);
        }
        Some(())
    }

    /// The symbol that `look` begins with, and its length.
    fn decode(&self, look: u64) -> Option<(u16, u32)> {
        let entry = *self.table.get((look & self.mask) as usize)?;
        (entry != 0).then_some((entry >> 4, u32::from(entry & 15)))
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<u16> {
        let (symbol, length) = self.decode(bits.look()?)?;
        bits.position += length as usize;
        Some(symbol)
    }
}

/// Bits of a stream, lowest bit of each byte first.
struct Bits<'a> {
    stream: &'a [u8],
    /// The next one.
    position: usize,
}

impl Bits<'_> {
    /// The next bits, at least 57; past the end there are zeros. `None` if all of them would be.
    fn look(&self) -> Option<u64> {
        let rest = self.stream.get(self.position / 8..).filter(|rest| !rest.is_empty())?;
        let word = match rest.first_chunk::<8>() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => {
                let mut bytes = [0; 8];
                bytes[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(bytes)
            }
        };
        Some(word >> (self.position % 8))
    }

    /// Takes at most 16 bits.
    fn take(&mut self, count: u32) -> Option<u32> {
        let value = self.look()? & ((1 << count) - 1);
        self.position += count as usize;
        Some(value as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deflated(bytes: &[u8], level: i32) -> Vec<u8> {
        let mut encoder = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(level).unwrap());
        let mut out = vec![0; encoder.deflate_compress_bound(bytes.len())];
        let size = encoder.deflate_compress(bytes, &mut out).unwrap();
        out.truncate(size);
        out
    }

    /// Text, noise, zeros: blocks of every kind.
    fn samples() -> Vec<Vec<u8>> {
        let mut state = 7_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let noise: Vec<u8> = (0..200_000).map(|_| next()).collect();
        let text: Vec<u8> = noise.iter().map(|byte| b"etaoin shrdlu\n"[usize::from(*byte) % 14]).collect();
        let mixed = [&text[..50_000], &noise[..70_000], &vec![0; 90_000], &text[50_000..]].concat();
        vec![Vec::new(), b"a".to_vec(), vec![0; 100_000], noise, text, mixed]
    }

    #[test]
    fn the_mark_is_on_the_last_block_and_nothing_follows_it() {
        for sample in samples() {
            for level in [0, 1, 4, 9, 12] {
                let mut stream = deflated(&sample, level);
                let found = last_block(&stream).unwrap();
                assert_eq!(found.end.div_ceil(8), stream.len(), "level {level}, {} bytes", sample.len());
                // Without the mark the stream is one that goes on.
                stream[found.start / 8] &= !(1 << (found.start % 8));
                let mut inflate = flate2::Decompress::new(false);
                let mut out = Vec::with_capacity(sample.len() + 1);
                let status = inflate.decompress_vec(&stream, &mut out, flate2::FlushDecompress::None).unwrap();
                assert_eq!((status, out == sample), (flate2::Status::Ok, true), "level {level}, {}", sample.len());
                assert_eq!(last_block(&stream), None, "without an end");
            }
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let stream = deflated(&samples()[5], 4);
        for cut in [0, 1, 5, stream.len() / 2, stream.len() - 1] {
            assert_eq!(last_block(&stream[..cut]), None, "cut at {cut}");
        }
        for bytes in [&b"\x07"[..], b"\x01\x05\x00\x00\x00hello", b"\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(last_block(bytes), None, "{bytes:?}");
        }
        // Whatever is written over a stream, nothing panics.
        let stream = deflated(&samples()[5][45_000..55_000], 4);
        for place in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[place] ^= 0x5a;
            let _ = last_block(&damaged);
        }
    }
}
