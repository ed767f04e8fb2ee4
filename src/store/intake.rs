//! Bytes of a layer on their way in: kept and indexed at once.
//!
//! In: a reader of a layer from outside, and where its bytes are to be kept. Out: its index. What always holds: each
//! byte is read once; one thread reads and keeps, another unpacks and indexes; memory does not grow with the layer.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::layer::compress;
use crate::layer::index::LayerIndex;
use crate::layer::scan::{ScanError, scan};

/// Bytes that are handed from thread to thread at a time, and how many such pieces may wait.
const PIECE: usize = 1 << 18;
const WAITING: usize = 8;

/// Why a layer did not come in.
#[derive(Debug)]
pub(super) enum IntakeError {
    /// It could not be read.
    Read(io::Error),
    /// It could not be kept.
    Keep(io::Error),
    /// It makes no sense.
    Scan(ScanError),
}

/// Copies all of `from` to `keep` and indexes it on the way; with `packed`, what is indexed is what it unpacks to.
pub(super) fn take_in(from: &mut dyn Read, keep: &mut dyn Write, packed: bool) -> Result<LayerIndex, IntakeError> {
    let failed = AtomicBool::new(false);
    let (sender, receiver) = sync_channel::<Vec<u8>>(WAITING);
    let (fed, scanned) = std::thread::scope(|scope| {
        let scanning = scope.spawn(|| {
            let pieces = Pieces { receiver, current: io::Cursor::new(Vec::new()) };
            let scanned = if packed {
                compress::decompress(Box::new(pieces)).map_err(ScanError::from).and_then(scan)
            } else {
                scan(pieces)
            };
            failed.store(scanned.is_err(), Ordering::Relaxed);
            scanned
        });
        (feed(from, keep, sender, &failed), scanning.join())
    });
    // A reader that failed looks to the other thread like one that ended early: the first cause is told.
    fed?;
    match scanned {
        Ok(scanned) => scanned.map_err(IntakeError::Scan),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Reads all of `from` into `keep`, and passes it on for as long as somebody listens.
fn feed(
    from: &mut dyn Read,
    keep: &mut dyn Write,
    sender: SyncSender<Vec<u8>>,
    failed: &AtomicBool,
) -> Result<(), IntakeError> {
    let mut sender = Some(sender);
    while !failed.load(Ordering::Relaxed) {
        let mut piece = Vec::with_capacity(PIECE);
        if (&mut *from).take(PIECE as u64).read_to_end(&mut piece).map_err(IntakeError::Read)? == 0 {
            break;
        }
        keep.write_all(&piece).map_err(IntakeError::Keep)?;
        // Bytes after the end of a compressed stream are kept, and mean nothing.
        if sender.as_ref().is_some_and(|sender| sender.send(piece).is_err()) {
            sender = None;
        }
    }
    keep.flush().map_err(IntakeError::Keep)
}

/// What comes through a channel, as a reader.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.receiver.recv() {
                Ok(piece) => self.current = io::Cursor::new(piece),
                // The other end is done.
                Err(_) => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::compress::{Compression, Encoder};

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("full"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3_000_000);
        tar.append_data(&mut header, "f", io::repeat(7).take(3_000_000)).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn everything_is_kept_and_the_layer_is_indexed() {
        let tar = tar();
        let mut encoder = Encoder::new(Vec::new(), Compression::ZSTD);
        encoder.write_all(&tar).unwrap();
        let packed = encoder.finish().unwrap();
        for (bytes, is_packed) in [(&tar, false), (&packed, true), (&tar, true)] {
            let mut kept = Vec::new();
            let index = take_in(&mut bytes.as_slice(), &mut kept, is_packed).unwrap();
            assert!(kept == *bytes);
            assert_eq!((index.len(), index.diff_id().0), (1, crate::digest::Digest::of(&tar)));
        }
    }

    #[test]
    fn the_first_cause_is_told() {
        let tar = tar();
        let mut cut = tar.as_slice().take(100_000).chain(Broken);
        assert!(matches!(take_in(&mut cut, &mut io::sink(), false), Err(IntakeError::Read(_))));
        assert!(matches!(take_in(&mut tar.as_slice(), &mut Broken, false), Err(IntakeError::Keep(_))));
        assert!(matches!(take_in(&mut &tar[..100_000], &mut io::sink(), false), Err(IntakeError::Scan(_))));
        // Who has nothing to index any more does not read for ever.
        let mut endless = [b'x'; 512].as_slice().chain(io::repeat(b'x'));
        assert!(matches!(take_in(&mut endless, &mut io::sink(), false), Err(IntakeError::Scan(_))));
    }
}
