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

use super::copy::{FileData, LandedEntry, Landing, Spool};
use super::reading::{Before, is_small, read_ahead};
use super::step::{Missed, NewLayer};
use super::{Cause, Solver};
use crate::context::local::{ContextError, LocalContext};
use crate::context::stat_cache::Stamp;
use crate::layer::entry::Kind;
use crate::layer::stack::LayerStack;
use crate::layer::write::{Body, LayerWriter, WriteError};
use crate::plan::step::{CopyFrom, CopyOp, StepId};
use crate::store::StoreError;
use crate::store::layers::{Form, LayerData};
use crate::sys::file::EarlyWriter;

impl Solver<'_> {
    /// Writes the layer, and fills the digests of the files into the landing. `before` is the layer that the step gave
    /// last: what did not change is read from there.
    pub(super) fn write_layer(
        &self,
        copy: Option<&CopyOp>,
        missed: &mut Missed,
        before: Option<&Before>,
    ) -> Result<NewLayer, Cause> {
        let Missed { landing, spool, .. } = missed;
        let landing = landing.as_mut().expect("a step that missed has a landing");
        landing.date_new(self.now().as_second());
        let source = self.source(copy, landing, spool.as_ref())?;
        let path = self.engine.lease.fresh_path();
        let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
        let mut writer = LayerWriter::new(EarlyWriter::new(file));
        let mut kinds = Vec::with_capacity(landing.entries.len());
        read_ahead(&source, &landing.entries, before, |mut files| {
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
                    Kind::File { .. } => Body::Reader(source.open(&landed.data)?),
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
        })?;
        drop(source);
        for (landed, kind) in landing.entries.iter_mut().zip(kinds) {
            landed.entry.kind = kind;
        }
        let (_, index) = writer.finish()?;
        Ok(NewLayer { index, form: Form::Tar(path) })
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
    fn source<'s>(&'s self, copy: Option<&CopyOp>, landing: &Landing, spool: Option<&'s Spool>) -> Result<Source<'s>, Cause> {
        let mut source = Source { context: None, view: LayerStack::default(), data: HashMap::new(), spool };
        match copy.map(|copy| copy.from) {
            Some(CopyFrom::Context(context)) => source.context = Some(&self.engine.contexts[context.0]),
            Some(CopyFrom::Stack(stack)) => {
                let stack = self.stack(stack);
                source.view = self.view(&stack)?;
                for landed in &landing.entries {
                    if let FileData::Layer { layer, .. } = landed.data
                        && let Vacant(place) = source.data.entry(layer)
                    {
                        place.insert(self.stacks.data(&stack.layers[layer])?);
                    }
                }
            }
            None => {}
        }
        Ok(source)
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
            (FileData::Context { path, stamp }, Some(context), _) => {
                let file = context.open_file(path, stamp).map_err(|_| unsteady(path))?;
                Box::new(Steady { file, context, path: path.clone(), stamp: *stamp })
            }
            (FileData::Inline(bytes), ..) => Box::new(Cursor::new(Arc::clone(bytes))),
            (FileData::Layer { layer, position }, ..) => {
                let index = &self.view.layers[*layer];
                let name = index.diff_id().to_string();
                self.data[layer].open(index, *position).map_err(StoreError::io("read a file of", name.as_ref()))?
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
        let filled = if let (FileData::Context { path, stamp }, Some(context)) = (&landed.data, self.context) {
            // One look is enough, and it comes last: the stamp has the size, too.
            let mut file = context.open_unchecked(path).map_err(|_| unsteady(path))?;
            let filled = fill(bytes, &mut file, size)?;
            context.check(&file, path, stamp).map_err(|_| unsteady(path))?;
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
    path: Vec<u8>,
    stamp: Stamp,
}

impl Read for Steady<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.context.check(&self.file, &self.path, &self.stamp).map_err(io::Error::other)?;
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
