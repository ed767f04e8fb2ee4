//! The layer of a COPY, ADD or WORKDIR: written from its sources in one pass, without a mount and without a tree.
//!
//! In: a [`Landing`]. Out: a new layer as tar and index. What always holds: each file is opened and read once; one
//! that is no longer what it was when it was looked at stops the step with its name.

use std::fs::File;
use std::io::{self, Cursor, Read};

use super::copy::{FileData, Landing};
use super::step::NewLayer;
use super::{Cause, Solver};
use crate::layer::entry::Kind;
use crate::layer::write::{Body, LayerWriter, WriteError};
use crate::plan::step::{CopyFrom, CopyOp};
use crate::store::StoreError;
use crate::store::layers::Form;

impl Solver<'_> {
    pub(super) fn write_layer(&self, copy: Option<&CopyOp>, landing: Option<&Landing>) -> Result<NewLayer, Cause> {
        let landing = landing.expect("a step that missed has a landing");
        let path = self.engine.lease.fresh_path();
        let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
        let mut writer = LayerWriter::new(file);
        for landed in &landing.entries {
            if self.engine.cancel.is_canceled() {
                return Err(Cause::Canceled);
            }
            let mut entry = landed.entry.clone();
            let known = match &entry.kind {
                Kind::File { sha256, .. } => Some(*sha256),
                _ => None,
            };
            let body = match known {
                Some(_) => Body::Reader(self.open(copy, &landed.data)?),
                None => Body::None,
            };
            match writer.push(&mut entry, body) {
                Err(WriteError::Changed { path }) => return Err(Cause::Unsteady(path)),
                other => other?,
            }
            if let (Some(known), Kind::File { sha256, .. }) = (known, &entry.kind)
                && known != *sha256
            {
                return Err(Cause::Unsteady(String::from_utf8_lossy(&entry.path).into_owned().into()));
            }
        }
        let (_, index) = writer.finish()?;
        Ok(NewLayer { index, form: Form::Tar(path) })
    }

    fn open(&self, copy: Option<&CopyOp>, data: &FileData) -> Result<Box<dyn Read + Send>, Cause> {
        let from = copy.map(|copy| copy.from);
        Ok(match (data, from) {
            (FileData::Context(path), Some(CopyFrom::Context(context))) => {
                Box::new(self.engine.contexts[context.0].open(path).map_err(|_| Cause::Unsteady(path.clone()))?)
            }
            (FileData::Inline(bytes), _) => Box::new(Cursor::new(bytes.clone())),
            (FileData::Layer { layer, position }, Some(CopyFrom::Stack(stack))) => {
                let layer = self.stack(stack).layers[*layer];
                let index = self.stacks.index(&layer)?;
                let data = self.stacks.data(&layer)?;
                data.open(&index, *position)
                    .map_err(StoreError::io("read a file of layer", layer.to_string().as_ref()))?
            }
            (FileData::Spool(spool), _) => Box::new(spool.reader()),
            _ => Box::new(io::empty()),
        })
    }
}
