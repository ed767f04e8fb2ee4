//! The layer of a COPY, ADD or WORKDIR: written from its sources in one pass, without a mount and without a tree.
//!
//! In: a [`Landing`]. Out: a new layer as tar and index. What always holds: each file is opened and read once, or
//! taken from the layer that the step made before; one that is no longer what it was when it was looked at stops the step
//! with its name.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::copy::{self, FileData, LandedEntry, Landing, Spool};
use super::reading::{Before, is_small, read_ahead};
use super::step::NewLayer;
use super::{Cause, Solver};
use crate::context::local::{ContextError, ContextFile, LocalContext};
use crate::layer::entry::Kind;
use crate::layer::stack::LayerStack;
use crate::layer::write::{Body, LayerWriter, WriteError};
use crate::plan::step::{CopyFrom, CopyOp, Stack, StepId};
use crate::store::StoreError;
use crate::store::layers::{Form, LayerData};
use crate::sys::file::EarlyWriter;

impl Solver<'_> {
    /// Writes the layer, and fills the digests of the files into the landing. `before` is the layer that the step gave
    /// last: what did not change is read from there.
    pub(super) fn write_layer(
        &self,
        below: Stack,
        copy: Option<&CopyOp>,
        landing: &mut Landing,
        spool: Option<&Spool>,
        before: Option<&Before>,
    ) -> Result<NewLayer, Cause> {
        landing.date_new(self.now().as_second());
        let source = self.source(below, copy, landing, spool)?;
        let path = self.engine.lease.fresh_path();
        let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
        let mut writer = LayerWriter::new(EarlyWriter::new(file));
        let mut kinds = Vec::with_capacity(landing.entries.len());
        let written = read_ahead(&source, &landing.entries, before, |mut files| {
            for landed in &landing.entries {
                if self.engine.cancel.is_canceled() {
                    return Err(Cause::Canceled);
                }
                let mut entry = landed.entry.clone();
                let body = match &entry.kind {
                    Kind::File { .. } if is_small(landed) => {
                        let (bytes, digest) = files.next(landed)?;
                        Body::Digested(bytes, digest)
                    }
                    Kind::File { .. } => Body::Reader(Box::new(self.engine.lease.heeding(source.open(&landed.data)?))),
                    _ => Body::None,
                };
                match writer.push(&mut entry, body) {
                    Err(WriteError::Changed { path, .. }) => return Err(unsteady(&path)),
                    Err(WriteError::Read { path, source }) => return Err(failed_read(&path, source)),
                    other => other?,
                }
                if landed.is_hashed() && landed.entry.kind != entry.kind {
                    return Err(unsteady(&entry.path));
                }
                kinds.push(entry.kind);
            }
            Ok(())
        });
        drop(source);
        written.map_err(|cause| self.of_layer(cause, read_from(copy, below), landing))?;
        for (landed, kind) in landing.entries.iter_mut().zip(kinds) {
            landed.entry.kind = kind;
        }
        let (_, index) = writer.finish()?;
        Ok(NewLayer { index, form: Form::Tar(path) })
    }

    /// What is not as it was looked at is damage where it comes from a layer, which nobody changes.
    fn of_layer(&self, cause: Cause, stack: Stack, landing: &Landing) -> Cause {
        let Cause::Unsteady(path) = &cause else { return cause };
        let name = path.as_os_str().as_encoded_bytes();
        let landed = landing.entries.iter().find(|landed| landed.entry.path == name);
        let Some(FileData::Layer { layer, .. }) = landed.map(|landed| &landed.data) else { return cause };
        let folder = self.engine.store.path("layers").join(self.stack(stack).layers[*layer].layer.0.hex());
        let why = format!("what is copied from it to {} is not what its index says", path.display());
        self.engine.store.damaged(&folder, why).into()
    }

    /// The layer that a COPY from a context gave last, if its tar is here.
    pub(super) fn layer_before(&self, id: StepId, copy: Option<&CopyOp>) -> Option<Before> {
        let CopyFrom::Context(_) = copy?.from else { return None };
        // Whatever is wrong with it, the context has all files.
        let last = self.engine.store.last_record(&self.place(id)).ok()??.layer;
        let tar = self.engine.store.stored_tar(&last).ok()??;
        let index = self.engine.store.layer_index(&last).ok()??;
        Some(Before { index, tar })
    }

    /// Where the files of a landing are read from; of a stack only the layers that have some of them.
    fn source<'s>(
        &'s self,
        below: Stack,
        copy: Option<&CopyOp>,
        landing: &Landing,
        spool: Option<&'s Spool>,
    ) -> Result<Source<'s>, Cause> {
        let mut source = Source { context: None, view: LayerStack::default(), data: HashMap::new(), spool };
        if let Some(CopyFrom::Context(context)) = copy.map(|copy| copy.from) {
            source.context = Some(&self.engine.contexts[context.0]);
        }
        let stack = self.stack(read_from(copy, below));
        for landed in &landing.entries {
            if let FileData::Layer { layer, .. } = landed.data
                && let Vacant(place) = source.data.entry(layer)
            {
                place.insert(self.stacks.data(&stack.layers[layer])?);
            }
        }
        if !source.data.is_empty() {
            source.view = self.view(&stack)?;
        }
        Ok(source)
    }
}

/// The stack whose layers [`FileData::Layer`] counts.
fn read_from(copy: Option<&CopyOp>, below: Stack) -> Stack {
    match copy.map(|copy| copy.from) {
        Some(CopyFrom::Stack(stack)) => stack,
        Some(CopyFrom::Context(_)) | None => below,
    }
}

/// What a COPY reads files from.
pub(super) struct Source<'a> {
    context: Option<&'a LocalContext>,
    view: LayerStack,
    /// By the layer's place in the view.
    data: HashMap<usize, Arc<LayerData>>,
    spool: Option<&'a Spool>,
}

impl Source<'_> {
    /// The bytes of a file. One of the context fails at its end if it is not what it was when it was looked at.
    pub(super) fn open(&self, data: &FileData) -> Result<Box<dyn Read + '_>, Cause> {
        Ok(match (data, self.context, self.spool) {
            (FileData::Context(entry), Some(context), _) => {
                // Why it cannot be opened matters only as long as it is the file that was looked at.
                let failed = |error| {
                    if context.is_unchanged(entry) {
                        copy::CopyError::Context(error).into()
                    } else {
                        unsteady(&entry.path)
                    }
                };
                let file = context.open_file(entry).map_err(failed)?;
                Box::new(Steady { file, context, entry: entry.clone() })
            }
            (FileData::Fetched(path), ..) => Box::new(File::open(path).map_err(StoreError::io("open", path))?),
            (FileData::Inline(bytes), ..) => Box::new(Cursor::new(Arc::clone(bytes))),
            (FileData::Layer { layer, position }, ..) => {
                let index = &self.view.layers[*layer];
                let name = index.diff_id().to_string();
                self.data[layer].open(index, *position).map_err(StoreError::read("read a file of", name.as_ref()))?
            }
            (FileData::Spool { offset, size }, _, Some(spool)) => Box::new(spool.reader(*offset, *size)),
            _ => Box::new(io::empty()),
        })
    }

    /// Appends the `size` bytes of a small file to `bytes`.
    pub(super) fn read(&self, landed: &LandedEntry, size: usize, bytes: &mut Vec<u8>) -> Result<(), Cause> {
        let start = bytes.len();
        let fill = |bytes: &mut Vec<u8>, reader: &mut dyn Read, most: usize| -> Result<usize, Cause> {
            bytes.resize(start + most, 0);
            let mut filled = 0;
            while filled < most {
                match reader.read(&mut bytes[start + filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed_read(&landed.entry.path, error)),
                }
            }
            bytes.truncate(start + filled);
            Ok(filled)
        };
        let filled = if let (FileData::Context(entry), Some(context)) = (&landed.data, self.context) {
            // One look is enough, and it comes last: the stamp has the size, too.
            let mut file = context.open_unchecked(entry).map_err(|_| unsteady(&entry.path))?;
            let filled = fill(bytes, &mut file, size)?;
            context.check(&file, entry).map_err(|_| unsteady(&entry.path))?;
            filled
        } else {
            // One byte more than there should be: what is too long is found out.
            fill(bytes, &mut *self.open(&landed.data)?, size + 1)?
        };
        if filled == size { Ok(()) } else { Err(unsteady(&landed.entry.path)) }
    }
}

/// A file of the context that is still what it was when its last byte has been read.
struct Steady<'a> {
    file: File,
    context: &'a LocalContext,
    entry: ContextFile,
}

impl Read for Steady<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.context.check(&self.file, &self.entry).map_err(io::Error::other)?;
        }
        Ok(read)
    }
}

/// A file that could not be read, or that changed meanwhile.
fn failed_read(path: &[u8], source: io::Error) -> Cause {
    match source.get_ref() {
        Some(inner) if inner.is::<ContextError>() => unsteady(path),
        _ => WriteError::Read { path: path.to_vec(), source }.into(),
    }
}

pub(super) fn unsteady(path: &[u8]) -> Cause {
    Cause::Unsteady(String::from_utf8_lossy(path).into_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ignore::Patterns;
    use crate::context::local::Subtree;
    use crate::context::stat_cache::StatCache;
    use crate::digest::Digest;
    use crate::layer::entry::Entry;
    use std::fs;
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    fn context(folder: &Path) -> LocalContext {
        LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), UNIX_EPOCH).expect("opens")
    }

    fn landed(context: &LocalContext, path: &str) -> LandedEntry {
        let found = context.lookup(path.as_bytes()).expect("looks").expect("is there");
        let file = Subtree::of(vec![found]).file(0);
        let size = file.stamp.size;
        let kind = Kind::File { size, sha256: Digest::from_bytes([0; 32]) };
        let entry = Entry { path: file.path.clone(), kind, mode: 0o644, uid: 0, gid: 0, mtime: 0, capability: None };
        LandedEntry::of_context(entry, file)
    }

    fn source(context: &LocalContext) -> Source<'_> {
        Source { context: Some(context), view: LayerStack::default(), data: HashMap::new(), spool: None }
    }

    #[test]
    fn a_small_file_is_read_as_it_was_or_not_at_all() {
        for (change, read) in [("aa", true), ("a", false), ("aaa", false), ("bb", false)] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("f");
            fs::write(&path, "aa").expect("writes");
            let context = context(folder.path());
            let landed = landed(&context, "f");
            if change != "aa" {
                // A new file: the clock may be too coarse for the old one's times to tell.
                fs::remove_file(&path).expect("removes");
                fs::write(folder.path().join("other"), "").expect("writes");
                fs::write(&path, change).expect("writes");
            }
            let mut bytes = b"before".to_vec();
            match source(&context).read(&landed, 2, &mut bytes) {
                Ok(()) => assert!(read && bytes == b"beforeaa", "{change}"),
                Err(Cause::Unsteady(path)) => assert!(!read && path == Path::new("f"), "{change}"),
                Err(other) => panic!("{change}: {other}"),
            }
        }
    }

    #[test]
    fn a_large_file_that_changes_meanwhile_fails_at_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        fs::write(&path, "aa").expect("writes");
        let context = context(folder.path());
        let landed = landed(&context, "f");
        let source = source(&context);
        let mut reader = source.open(&landed.data).expect("opens");
        let mut byte = [0];
        reader.read_exact(&mut byte).expect("reads");
        // Same size, other times.
        File::options().write(true).open(&path).and_then(|file| file.set_modified(UNIX_EPOCH)).expect("sets");
        let error = io::copy(&mut reader, &mut io::sink()).expect_err("it changed");
        assert!(matches!(failed_read(b"f", error), Cause::Unsteady(_)));
        let error = io::Error::other("disk");
        assert!(matches!(failed_read(b"f", error), Cause::Write(_)));
    }

    #[test]
    fn many_files_come_in_order_from_the_context_or_from_the_layer_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = |n: usize| format!("{n}").repeat(n % 50);
        for n in 0..600 {
            fs::write(folder.path().join(format!("{n:03}")), data(n)).expect("writes");
        }
        let context = context(folder.path());
        let source = source(&context);
        let mut entries: Vec<_> = (0..600).map(|n| landed(&context, &format!("{n:03}"))).collect();
        let read = |entries: &[LandedEntry], before: Option<&Before>| {
            read_ahead(&source, entries, before, |mut files| {
                let mut found = Vec::new();
                for landed in entries {
                    let (bytes, digest) = files.next(landed)?;
                    assert_eq!(Digest::of(bytes), digest);
                    found.push(bytes.to_vec());
                }
                Ok(found)
            })
        };
        let expected: Vec<_> = (0..600).map(|n| data(n).into_bytes()).collect();
        assert_eq!(read(&entries, None).expect("reads"), expected);

        let mut writer = LayerWriter::new(tempfile::tempfile().expect("a file"));
        for (landed, bytes) in entries.iter_mut().zip(&expected) {
            writer.push(&mut landed.entry, Body::Bytes(bytes)).expect("writes");
        }
        let (tar, index) = writer.finish().expect("writes");
        let before = Before { index, tar };
        // Known files are not looked for in the context.
        fs::remove_file(folder.path().join("123")).expect("removes");
        assert_eq!(read(&entries, Some(&before)).expect("reads"), expected);
        assert!(matches!(read(&entries, None), Err(Cause::Unsteady(path)) if path == Path::new("123")));
        // What is damaged there is taken from the context after all.
        use std::os::unix::fs::FileExt;
        before.tar.write_all_at(b"X", before.index.offset(77)).expect("writes");
        assert_eq!(read(&entries, Some(&before)).expect("reads"), expected);
    }
}
