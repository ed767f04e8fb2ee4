//! The merged root file system of an image, entry by entry.
//!
//! In: an image whose layers are in the store. Out: its entries in component-wise order, parents first, and the data of
//! its files. What always holds: nothing is unpacked first; what a process in the image would see is what comes out;
//! hard links stay hard links where their file is visible under several names.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use super::OutputError;
use crate::digest::DiffId;
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::LayerIndex;
use crate::layer::stack::{FoundRef, LayerStack};
use crate::store::layers::LayerData;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// The root file system of an image.
pub(super) struct RootFs<'a> {
    store: &'a Store,
    lease: &'a Lease,
    diff_ids: &'a [DiffId],
    stack: LayerStack,
    /// Files (layer and position) that have several names in their layer.
    linked: HashSet<(usize, usize)>,
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    /// Its metadata; a further name of a file that came before is a hard link.
    pub(super) entry: EntryRef<'a>,
    /// For a file and a hard link: the layer that holds the data, the position there, and the number of bytes.
    pub(super) data: Option<(usize, usize, u64)>,
}

impl<'a> RootFs<'a> {
    /// That of these layers, bottom first.
    pub(super) fn new(store: &'a Store, lease: &'a Lease, diff_ids: &'a [DiffId]) -> Result<Self, OutputError> {
        let mut indexes: Vec<Arc<LayerIndex>> = Vec::with_capacity(diff_ids.len());
        for layer in diff_ids {
            let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
            indexes.push(Arc::new(index));
        }
        let damaged = |error: crate::layer::index::IndexError| StoreError::Damaged {
            path: store.path("layers"),
            why: error.to_string(),
        };
        let stack = LayerStack::new(indexes).map_err(damaged)?;
        let linked = stack
            .layers
            .iter()
            .enumerate()
            .flat_map(|(number, layer)| {
                let links = (0..layer.len())
                    .filter(|position| matches!(layer.entry_ref(*position).kind, KindRef::HardLink { .. }));
                links.filter_map(|position| layer.data_position(position)).map(move |file| (number, file))
            })
            .collect();
        Ok(Self { store, lease, diff_ids, stack, linked })
    }

    /// All entries but the root, parents first.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk { rootfs: self, open: vec![self.stack.read_dir_ref(b"").into_iter()], names: HashMap::new() }
    }

    /// A reader of files' data; layers are opened when they are first needed.
    pub(super) fn data(&self) -> Data<'_> {
        Data { rootfs: self, layers: (0..self.diff_ids.len()).map(|_| None).collect() }
    }
}

/// Iterates over the entries of a root file system.
pub(super) struct Walk<'a> {
    rootfs: &'a RootFs<'a>,
    /// The folders that are being listed, the root first.
    open: Vec<std::vec::IntoIter<(&'a [u8], FoundRef<'a>)>>,
    /// The first name under which a file with several was seen.
    names: HashMap<(usize, usize), &'a [u8]>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let (_, found) = loop {
            match self.open.last_mut()?.next() {
                Some(next) => break next,
                None => drop(self.open.pop()),
            }
        };
        let FoundRef { entry, layer, position } = found;
        match entry.kind {
            KindRef::Directory => {
                self.open.push(self.rootfs.stack.read_dir_ref(entry.path).into_iter());
                Some(Item { entry, data: None })
            }
            KindRef::File { size, .. } => {
                let data = Some((layer, position, size));
                if self.rootfs.linked.contains(&(layer, position)) {
                    if let Some(target) = self.names.get(&(layer, position)) {
                        let entry = EntryRef { kind: KindRef::HardLink { target }, ..entry };
                        return Some(Item { entry, data });
                    }
                    self.names.insert((layer, position), entry.path);
                }
                Some(Item { entry, data })
            }
            _ => Some(Item { entry, data: None }),
        }
    }
}

/// Reads the data of files.
pub(super) struct Data<'a> {
    rootfs: &'a RootFs<'a>,
    layers: Vec<Option<LayerData>>,
}

impl Data<'_> {
    /// Opens the data of the file at `position` of `layer`.
    pub(super) fn open(&mut self, layer: usize, position: usize) -> Result<Box<dyn Read + '_>, OutputError> {
        let RootFs { store, lease, diff_ids, ref stack, .. } = *self.rootfs;
        let data = match &mut self.layers[layer] {
            Some(data) => data,
            none => none.insert(store.layer_data(&diff_ids[layer], lease)?),
        };
        data.open(&stack.layers[layer], position)
            .map_err(StoreError::io("read a file of", &store.path(&format!("layers/{}", diff_ids[layer].0.hex()))))
            .map_err(OutputError::from)
    }
}
