//! The layer of a COPY, ADD or WORKDIR: written from its sources in one pass, without a mount and without a tree.
//!
//! In: a [`Landing`]. Out: a new layer as tar and index. What always holds: each file is opened and read once; one
//! that is no longer what it was when it was looked at stops the step with its name.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::copy::{FileData, Spool};
use super::step::{Missed, NewLayer};
use super::{Cause, Solver};
use crate::layer::entry::Kind;
use crate::layer::write::{Body, LayerWriter, WriteError};
use crate::plan::step::{CopyFrom, CopyOp};
use crate::store::StoreError;
use crate::store::layers::Form;

impl Solver<'_> {
    /// Writes the layer, and fills the digests of the files into the landing.
    pub(super) fn write_layer(&self, copy: Option<&CopyOp>, missed: &mut Missed) -> Result<NewLayer, Cause> {
        let Missed { landing, spool, .. } = missed;
        let landing = landing.as_mut().expect("a step that missed has a landing");
        landing.date_new(self.now().as_second());
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
                Kind::File { .. } => Body::Reader(self.open(copy, &landed.data, spool.as_ref())?),
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

    fn open<'s>(&'s self, copy: Option<&CopyOp>, data: &FileData, spool: Option<&'s Spool>) -> Result<Box<dyn Read + 's>, Cause> {
        let from = copy.map(|copy| copy.from);
        Ok(match (data, from, spool) {
            (FileData::Context { path, stamp }, Some(CopyFrom::Context(context)), _) => {
                Box::new(self.engine.contexts[context.0].open_file(path, stamp).map_err(|_| unsteady(path))?)
            }
            (FileData::Inline(bytes), ..) => Box::new(Cursor::new(Arc::clone(bytes))),
            (FileData::Layer { layer, position }, Some(CopyFrom::Stack(stack)), _) => {
                let source = self.stack(stack);
                let index = Arc::clone(&self.view(&source)?.layers[*layer]);
                let layer = source.layers[*layer];
                let data = self.stacks.data(&layer)?;
                data.open(&index, *position).map_err(StoreError::io("read a file of", layer.to_string().as_ref()))?
            }
            (FileData::Spool { offset, size }, _, Some(spool)) => Box::new(spool.reader(*offset, *size)),
            _ => Box::new(io::empty()),
        })
    }
}

fn unsteady(path: &[u8]) -> Cause {
    Cause::Unsteady(String::from_utf8_lossy(path).into_owned().into())
}
