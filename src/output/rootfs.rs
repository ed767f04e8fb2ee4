//! The merged root file system of an image, entry by entry.
//!
//! In: an image whose layers are in the store. Out: its entries in component-wise order, parents first, and the data of
//! its files. What always holds: what comes out of a file has the digest that the layer says; nothing is unpacked first;
//! what a process in the image would see is what comes out; hard links stay hard links where their file is visible under
//! several names, and one that leads nowhere is an error.

use std::io::{self, Read as _, Write};
use std::sync::Arc;

use super::OutputError;
use super::archive::Counted;
use crate::digest::{DiffId, HashingReader};
use crate::layer::entry_ref::KindRef;
use crate::layer::index::LayerIndex;
use crate::layer::stack::{LayerStack, Visible, Walk};
use crate::store::layers::LayerData;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// The root file system of an image.
pub(super) struct RootFs<'a> {
    store: &'a Store,
    lease: &'a Lease,
    diff_ids: &'a [DiffId],
    stack: LayerStack,
}

impl<'a> RootFs<'a> {
    /// That of these layers, bottom first.
    pub(super) fn new(store: &'a Store, lease: &'a Lease, diff_ids: &'a [DiffId]) -> Result<Self, OutputError> {
        let mut indexes: Vec<Arc<LayerIndex>> = Vec::with_capacity(diff_ids.len());
        for layer in diff_ids {
            let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
            indexes.push(Arc::new(index));
        }
        let stack =
            LayerStack::new(indexes).map_err(|error| store.damaged(&store.path("layers"), error.to_string()))?;
        // A base need not be checked before all of it is read.
        if let Some(link) = stack.broken_link() {
            return Err(OutputError::Link { layer: diff_ids[link.layer], link });
        }
        Ok(Self { store, lease, diff_ids, stack })
    }

    /// All entries but the root, parents first.
    pub(super) fn walk(&self) -> Walk<'_> {
        self.stack.walk()
    }

    /// A reader of files' data; layers are opened when they are first needed.
    pub(super) fn data(&self) -> Data<'_> {
        Data { rootfs: self, layers: (0..self.diff_ids.len()).map(|_| None).collect() }
    }
}

/// Reads the data of files.
pub(super) struct Data<'a> {
    rootfs: &'a RootFs<'a>,
    layers: Vec<Option<LayerData>>,
}

impl Data<'_> {
    /// Copies the bytes of a file; an error is returned if they are not those that the layer's index says. `failed` tells of
    /// what could not be written.
    pub(super) fn copy(
        &mut self,
        file: &Visible<'_>,
        to: &mut dyn Write,
        failed: impl FnOnce(io::Error) -> OutputError,
    ) -> Result<(), OutputError> {
        let (KindRef::File { size, sha256 }, Some((layer, position, _))) = (file.entry.kind, file.data) else {
            return Ok(());
        };
        let RootFs { store, lease, diff_ids, ref stack, .. } = *self.rootfs;
        let folder = store.path("layers").join(diff_ids[layer].0.hex());
        let data = match &mut self.layers[layer] {
            Some(data) => data,
            none => none.insert(store.layer_data(&diff_ids[layer], lease)?),
        };
        let reader = data.open(&stack.layers[layer], position).map_err(StoreError::read("read a file of", &folder))?;
        let mut reader = HashingReader::new(lease.heeding(reader).take(size));
        let mut to = Counted::new(to);
        let copied = io::copy(&mut reader, &mut to);
        if let Some(error) = to.error {
            return Err(failed(error));
        }
        copied.map_err(StoreError::read("read a file of", &folder))?;
        if reader.finish().1 == sha256 {
            return Ok(());
        }
        let why = format!("its file {} is not what its index says", String::from_utf8_lossy(file.entry.path));
        Err(store.damaged(&folder, why).into())
    }
}
