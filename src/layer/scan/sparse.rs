//! Sparse files in tars: which pieces of a file the tar holds, in each of the forms that GNU tar has written.
//!
//! | form | where the map is |
//! |---|---|
//! | old GNU, type `S` | in the header, and in blocks behind it |
//! | PAX 0.0 | pairs of records `offset` and `numbytes` |
//! | PAX 0.1 | record `map`: offsets and lengths, with commas |
//! | PAX 1.0 | decimal lines before the data |

use super::ScanError;
use super::number::{decimal, number};
use crate::digest::Hasher;
use crate::layer::header::BLOCK;
use crate::layer::index::Extent;

/// A sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Its size with holes.
    pub(crate) size: u64,
    /// Its size without.
    pub(crate) stored: u64,
    /// Its pieces, in order, none empty.
    pub(crate) extents: Vec<Extent>,
}

/// What PAX records say about a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PaxSparse {
    pub(crate) name: Option<Vec<u8>>,
    size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Option<Vec<u64>>,
}

impl PaxSparse {
    /// Takes the record `GNU.sparse.key`; `None` when its value is broken.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"offset" | b"numbytes" => {
                let numbers = self.numbers.get_or_insert_default();
                if numbers.len().is_multiple_of(2) != (key == b"offset") {
                    return None;
                }
                numbers.push(decimal(value)?);
            }
            b"map" => {
                let parts = value.split(|byte| *byte == b',').filter(|part| !part.is_empty());
                self.numbers = Some(parts.map(decimal).collect::<Option<Vec<u64>>>()?);
            }
            _ => {}
        }
        Some(())
    }

    /// Whether the map lies before the data.
    pub(crate) fn in_data(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }

    /// The map in the records themselves; `None` when the file is not sparse. `stored` is the size of the data.
    pub(crate) fn map(&self, stored: u64) -> Result<Option<Map>, ScanError> {
        match (&self.numbers, self.size, self.major) {
            (Some(numbers), Some(size), _) => check(pairs(numbers)?, size, stored).map(Some),
            (None, _, None | Some(0)) => Ok(None),
            _ => Err(broken()),
        }
    }
}

/// Reads the map of the old form: four pieces in the header, 21 in each block behind it.
pub(crate) fn old(
    header: &[u8; BLOCK],
    stored: u64,
    mut block: impl FnMut() -> Result<[u8; BLOCK], ScanError>,
) -> Result<Map, ScanError> {
    let size = number(&header[483..495]).and_then(|size| u64::try_from(size).ok()).ok_or_else(broken)?;
    let mut extents = Vec::new();
    let mut take = |fields: &[u8]| -> Result<(), ScanError> {
        for piece in fields.chunks_exact(24).filter(|piece| piece[0] != 0 && piece[12] != 0) {
            let part = |field| number(field).and_then(|part| u64::try_from(part).ok()).ok_or_else(broken);
            extents.push(Extent { start: part(&piece[..12])?, length: part(&piece[12..])? });
        }
        Ok(())
    };
    take(&header[386..482])?;
    let mut extended = header[482] != 0;
    while extended {
        let more = block()?;
        take(&more[..504])?;
        extended = more[504] != 0;
    }
    check(extents, size, stored)
}

/// Reads a map before the data: the number of pieces, then offset and length of each, a line each, filled up to whole
/// blocks. `data` is the size of map and pieces together.
pub(crate) fn in_data(
    pax: &PaxSparse,
    data: u64,
    mut block: impl FnMut() -> Result<[u8; BLOCK], ScanError>,
) -> Result<Map, ScanError> {
    let size = pax.size.ok_or_else(broken)?;
    let mut read = 0u64;
    let mut line: Vec<u8> = Vec::new();
    let mut numbers: Vec<u64> = Vec::new();
    // The first number says how many follow.
    let mut expected = None;
    while expected != Some(numbers.len() as u64) {
        read += BLOCK as u64;
        if read > data {
            return Err(broken());
        }
        for byte in block()? {
            if expected == Some(numbers.len() as u64) {
                break;
            }
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(broken());
                }
                continue;
            }
            let number = decimal(&line).ok_or_else(broken)?;
            line.clear();
            if expected.is_none() {
                expected = Some(number.checked_mul(2).ok_or_else(broken)?);
            } else {
                numbers.push(number);
            }
        }
    }
    check(pairs(&numbers)?, size, data - read)
}

fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, ScanError> {
    if !numbers.len().is_multiple_of(2) {
        return Err(broken());
    }
    Ok(numbers.chunks_exact(2).map(|pair| Extent { start: pair[0], length: pair[1] }).collect())
}

/// Checks that the pieces are in order, inside the file, and together as long as the data.
fn check(mut extents: Vec<Extent>, size: u64, stored: u64) -> Result<Map, ScanError> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in &extents {
        if extent.start < end {
            return Err(broken());
        }
        end = extent.start.checked_add(extent.length).filter(|end| *end <= size).ok_or_else(broken)?;
        sum += extent.length;
    }
    if sum != stored {
        return Err(broken());
    }
    extents.retain(|extent| extent.length > 0);
    Ok(Map { size, stored, extents })
}

/// The caller knows the name of the entry.
fn broken() -> ScanError {
    ScanError::Header { at: 0, why: "has a broken map of its holes" }
}

/// Adds `count` zeros to a sum.
pub(crate) fn hash_zeros(sum: &mut Hasher, mut count: u64) {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while count > 0 {
        let length = count.min(ZEROS.len() as u64);
        sum.update(&ZEROS[..length as usize]);
        count -= length;
    }
}
