//! A stack from its root to its leaves.
//!
//! In: a stack. Out: its entries in component-wise order, parents first: what [`crate::layer::write::LayerWriter`] wants.
//! What always holds: what a process would see is what comes out; names of one file are hard links where the file is
//! visible under several.

use super::{FoundRef, LayerStack};
use crate::layer::entry_ref::{EntryRef, KindRef};
use std::collections::{HashMap, HashSet};

/// One entry of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Visible<'a> {
    /// Its metadata; a further name of a file that came before is a hard link.
    pub entry: EntryRef<'a>,
    /// For a file and a hard link: the layer that holds the data, the position there, and the number of bytes.
    pub data: Option<(usize, usize, u64)>,
}

/// Iterates over the entries of a stack.
#[derive(Debug)]
pub struct Walk<'a> {
    stack: &'a LayerStack,
    /// The folders that are being listed, the root first.
    open: Vec<std::vec::IntoIter<(&'a [u8], FoundRef<'a>)>>,
    /// Files (layer and position) that have several names in their layer.
    linked: HashSet<(usize, usize)>,
    /// The first name under which such a file was seen.
    names: HashMap<(usize, usize), &'a [u8]>,
}

impl LayerStack {
    /// All entries but the root, parents first.
    pub fn walk(&self) -> Walk<'_> {
        let linked = self.layers.iter().enumerate().flat_map(|(number, layer)| {
            let links =
                (0..layer.len()).filter(|position| matches!(layer.entry_ref(*position).kind, KindRef::HardLink { .. }));
            links.filter_map(|position| layer.data_position(position)).map(move |file| (number, file))
        });
        let open = vec![self.read_dir_ref(b"").into_iter()];
        Walk { stack: self, open, linked: linked.collect(), names: HashMap::new() }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Visible<'a>;

    fn next(&mut self) -> Option<Visible<'a>> {
        let (_, FoundRef { entry, layer, position }) = loop {
            match self.open.last_mut()?.next() {
                Some(next) => break next,
                None => drop(self.open.pop()),
            }
        };
        let KindRef::File { size, .. } = entry.kind else {
            if entry.kind.is_directory() {
                self.open.push(self.stack.read_dir_ref(entry.path).into_iter());
            }
            return Some(Visible { entry, data: None });
        };
        let data = Some((layer, position, size));
        if self.linked.contains(&(layer, position)) {
            if let Some(target) = self.names.get(&(layer, position)) {
                return Some(Visible { entry: EntryRef { kind: KindRef::HardLink { target }, ..entry }, data });
            }
            self.names.insert((layer, position), entry.path);
        }
        Some(Visible { entry, data })
    }
}
