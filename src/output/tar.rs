//! `type=tar`: the merged root file system as one tar.
//!
//! In: root file systems, a destination. Out: a tar with the headers that layers have, and no whiteouts. What always
//! holds: with an epoch every entry has exactly that time; the same image gives the same bytes.

use std::io::Write;

use super::OutputError;
use super::archive::Sink;
use super::rootfs::RootFs;
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::header;

const BLOCK: u64 = 512;

/// Writes the tar.
#[derive(Debug)]
pub(super) struct Writer {
    sink: Sink,
    epoch: Option<i64>,
}

impl Writer {
    /// Begins one all of whose entries have the time `epoch`, where there is one.
    pub(super) fn new(sink: Sink, epoch: Option<i64>) -> Self {
        Self { sink, epoch }
    }

    /// Adds a root file system, in a folder of its own if there are several.
    pub(super) fn add(&mut self, rootfs: &RootFs<'_>, folder: Option<&str>) -> Result<(), OutputError> {
        let (sink, epoch) = (&self.sink, self.epoch);
        let mut data = rootfs.data();
        let mut out = sink.buffered();
        let mut block = Vec::new();
        if let Some(folder) = folder {
            let (kind, mtime) = (KindRef::Directory, epoch.unwrap_or(0));
            let entry =
                EntryRef { path: folder.as_bytes(), kind, mode: 0o755, uid: 0, gid: 0, mtime, capability: None };
            header::encode(&entry, mtime, &mut block)?;
            out.write_all(&block).map_err(sink.failed())?;
        }
        let below = |path: &[u8]| folder.map(|folder| [folder.as_bytes(), b"/", path].concat());
        for item in rootfs.walk() {
            let mut entry = item.entry;
            let path = below(entry.path);
            let target = if let KindRef::HardLink { target } = entry.kind { below(target) } else { None };
            entry.path = path.as_deref().unwrap_or(entry.path);
            if let Some(target) = &target {
                entry.kind = KindRef::HardLink { target };
            }
            block.clear();
            header::encode(&entry, epoch.unwrap_or(entry.mtime), &mut block)?;
            out.write_all(&block).map_err(sink.failed())?;
            if let KindRef::File { size, .. } = entry.kind {
                data.copy(&item, &mut out, sink.failed())?;
                let padding = (size.next_multiple_of(BLOCK) - size) as usize;
                out.write_all(&[0; BLOCK as usize][..padding]).map_err(sink.failed())?;
            }
        }
        out.flush().map_err(sink.failed())
    }

    /// Ends the tar; now it appears.
    pub(super) fn finish(self) -> Result<(), OutputError> {
        let mut out = self.sink.buffered();
        let ended = out.write_all(&[0; 2 * BLOCK as usize]).and_then(|()| out.flush()).map_err(self.sink.failed());
        drop(out);
        ended?;
        self.sink.finish()
    }
}
