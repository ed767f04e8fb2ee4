//! The bytes of a layer's files, from the forms that hold them.
//!
//! In: an index, a position in it, and the tar or the tree. Out: a reader of exactly the file's data, holes
//! included. What always holds: the tar is read by offset, so one open file serves several readers and threads.

use crate::layer::entry_ref::KindRef;
use crate::layer::index::{Extent, LayerIndex};
use crate::sys::file::Part;
use crate::sys::root_dir::RootDir;
use std::fs::File;
use std::io::{self, Read};

/// The data of the file at `position`, from the uncompressed tar of the layer. A hard link reads as its file.
pub fn from_tar<'a>(index: &LayerIndex, position: usize, tar: &'a File) -> io::Result<Box<dyn Read + 'a>> {
    let (position, size) = file_at(index, position)?;
    let start = index.offset(position);
    Ok(match index.extents(position) {
        None => Box::new(Part::new(tar, start, size)),
        Some(extents) => Box::new(Sparse { tar, stored: start, extents, next: 0, at: 0, size }),
    })
}

/// The data of the file at `position`, from the tree of the layer. A hard link reads as its file.
pub fn from_tree(index: &LayerIndex, position: usize, tree: &RootDir) -> io::Result<Box<dyn Read + 'static>> {
    let (position, _) = file_at(index, position)?;
    Ok(Box::new(tree.open_file(index.path(position))?))
}

fn file_at(index: &LayerIndex, position: usize) -> io::Result<(usize, u64)> {
    let position = index.data_position(position).ok_or(io::ErrorKind::NotFound)?;
    match index.entry_ref(position).kind {
        KindRef::File { size, .. } => Ok((position, size)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A sparse file, its holes read as zeros.
struct Sparse<'a> {
    tar: &'a File,
    /// Where the rest of the stored pieces begins.
    stored: u64,
    extents: Vec<Extent>,
    /// The first piece that is not read to its end.
    next: usize,
    /// Where in the file we are.
    at: u64,
    size: u64,
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.extents.get(self.next).is_some_and(|extent| extent.start + extent.length <= self.at) {
            self.next += 1;
        }
        let piece = self.extents.get(self.next);
        let hole_end = piece.map_or(self.size, |extent| extent.start);
        let most = |end: u64| buffer.len().min(usize::try_from(end - self.at).unwrap_or(usize::MAX));
        if self.at < hole_end {
            let length = most(hole_end);
            buffer[..length].fill(0);
            self.at += length as u64;
            return Ok(length);
        }
        let Some(extent) = piece else {
            return Ok(0);
        };
        let length = most(extent.start + extent.length);
        let read = Part::new(self.tar, self.stored, length as u64).read(&mut buffer[..length])?;
        self.stored += read as u64;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::scan::scan;
    use std::io::Write;

    #[test]
    fn files_of_a_tar() {
        let packed = include_bytes!("../../testdata/layers/sparse-p10.tar.gz").as_slice();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        let mut tar = tempfile::tempfile().unwrap();
        tar.write_all(&bytes).unwrap();
        let index = scan(bytes.as_slice()).unwrap();
        assert_eq!(index.len(), 3);
        for position in 0..index.len() {
            let KindRef::File { size, sha256 } = index.entry_ref(position).kind else { panic!("only files") };
            for step in [1 << 16, 4097, 100] {
                let mut reader = from_tar(&index, position, &tar).unwrap();
                let (mut data, mut buffer) = (Vec::new(), vec![0; step]);
                loop {
                    match reader.read(&mut buffer).unwrap() {
                        0 => break,
                        read => data.extend_from_slice(&buffer[..read]),
                    }
                }
                assert_eq!((data.len() as u64, Digest::of(&data)), (size, sha256));
            }
        }
        tar.set_len(600).unwrap();
        let error = io::copy(&mut from_tar(&index, 2, &tar).unwrap(), &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
