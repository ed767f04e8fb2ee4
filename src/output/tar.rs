//! `type=tar`: the merged root file system as one tar.
//!
//! In: a root file system, a destination. Out: a tar with the headers that layers have, and no whiteouts. What always
//! holds: with an epoch every entry has exactly that time; the same image gives the same bytes.

use std::io::{self, Read, Write};
use std::path::Path;

use super::OutputError;
use super::archive::Sink;
use super::rootfs::RootFs;
use crate::layer::entry_ref::KindRef;
use crate::layer::header;

const BLOCK: u64 = 512;

/// Writes the tar.
pub(super) fn write(rootfs: &RootFs<'_>, sink: Sink, epoch: Option<i64>) -> Result<(), OutputError> {
    let mut data = rootfs.data();
    let mut out = sink.buffered();
    let mut block = Vec::new();
    for item in rootfs.walk() {
        let entry = item.entry;
        block.clear();
        header::encode(&entry, epoch.unwrap_or(entry.mtime), &mut block)?;
        out.write_all(&block).map_err(sink.failed())?;
        if let (KindRef::File { size, .. }, Some((layer, position, _))) = (entry.kind, item.data) {
            let mut reader = data.open(layer, position)?;
            copy_exactly(&mut *reader, &mut out, size, entry.path)?;
            let padding = (size.next_multiple_of(BLOCK) - size) as usize;
            out.write_all(&[0; BLOCK as usize][..padding]).map_err(sink.failed())?;
        }
    }
    out.write_all(&[0; 2 * BLOCK as usize]).and_then(|()| out.flush()).map_err(sink.failed())?;
    drop(out);
    sink.finish()
}

/// Copies a file of the image; anything but `size` bytes is an error.
pub(super) fn copy_exactly(from: &mut dyn Read, to: &mut dyn Write, size: u64, path: &[u8]) -> Result<(), OutputError> {
    let name = || format!("/{}", String::from_utf8_lossy(path));
    let mut limited = from.take(size);
    let copied = io::copy(&mut limited, to).map_err(OutputError::io("write the data of", Path::new(&name())))?;
    if copied == size { Ok(()) } else { Err(OutputError::Short { what: name(), expected: size, found: copied }) }
}
