//! The layer of a COPY, ADD or WORKDIR: written from its sources in one pass, without a mount and without a tree.
//!
//! In: a [`Landing`]. Out: a new layer as tar and index. What always holds: each file is opened and read once; one
//! that is no longer what it was when it was looked at stops the step with its name.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::copy::{self, FileData, Landing, Spool};
use super::step::{Missed, NewLayer};
use super::{Cause, Solver};
use crate::context::local::LocalContext;
use crate::layer::entry::Kind;
use crate::layer::stack::LayerStack;
use crate::layer::write::{Body, LayerWriter, WriteError};
use crate::plan::step::{CopyFrom, CopyOp};
use crate::store::StoreError;
use crate::store::layers::{Form, LayerData};

impl Solver<'_> {
    /// Writes the layer, and fills the digests of the files into the landing.
    pub(super) fn write_layer(&self, copy: Option<&CopyOp>, missed: &mut Missed) -> Result<NewLayer, Cause> {
        let Missed { landing, spool, .. } = missed;
        let landing = landing.as_mut().expect("a step that missed has a landing");
        landing.date_new(self.now().as_second());
        let source = self.source(copy, landing, spool.as_ref())?;
        let path = self.engine.lease.fresh_path();
        let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
        let mut writer = LayerWriter::new(file);
        for landed in &mut landing.entries {
            if self.engine.cancel.is_canceled() {
                return Err(Cause::Canceled);
            }
            let known = landed.is_hashed();
            let expected = landed.entry.kind.clone();
            let body = match &expected {
                Kind::File { .. } => Body::Reader(Box::new(self.engine.lease.heeding(source.open(&landed.data)?))),
                _ => Body::None,
            };
            match writer.push(&mut landed.entry, body) {
                Err(WriteError::Changed { path, .. }) => return Err(unsteady(&path)),
                other => other?,
            }
            if known && landed.entry.kind != expected {
                return Err(unsteady(&landed.entry.path));
            }
        }
        let (_, index) = writer.finish()?;
        Ok(NewLayer { index, form: Form::Tar(path) })
    }

    /// Where the files of a landing are read from; of a stack only the layers that have some of them.
    fn source<'s>(
        &'s self,
        copy: Option<&CopyOp>,
        landing: &Landing,
        spool: Option<&'s Spool>,
    ) -> Result<Source<'s>, Cause> {
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
struct Source<'a> {
    context: Option<&'a LocalContext>,
    view: LayerStack,
    /// By the layer's place in the view.
    data: HashMap<usize, Arc<LayerData>>,
    spool: Option<&'a Spool>,
}

impl Source<'_> {
    fn open(&self, data: &FileData) -> Result<Box<dyn Read + '_>, Cause> {
        Ok(match (data, self.context, self.spool) {
            (FileData::Context { path, stamp }, Some(context), _) => {
                let opened = context.open_file(path, stamp);
                // Why it cannot be opened matters only as long as it is the file that was looked at.
                let failed = |error| {
                    if context.is_unchanged(path, stamp) {
                        copy::CopyError::Context(error).into()
                    } else {
                        unsteady(path)
                    }
                };
                Box::new(opened.map_err(failed)?)
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
}

fn unsteady(path: &[u8]) -> Cause {
    Cause::Unsteady(String::from_utf8_lossy(path).into_owned().into())
}
