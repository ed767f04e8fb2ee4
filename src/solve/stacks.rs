//! Stacks of layers while a build goes on: their indexes and their trees, each loaded or made once.
//!
//! In: layers, those of steps with the content that keys go by. Out: [`LayerStack`] views, and paths of trees for overlay
//! mounts. What always holds: of a layer that has another content nothing is made; a tree is made by
//! one thread while the others that want it wait; a tree that occurs twice in a stack is mounted once, where it is
//! topmost (the kernel refuses it twice, and the topmost shadows the others exactly).

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Cause;
use crate::digest::{ChainId, ContentDigest, DiffId, Hasher};
use crate::event::{Event, EventSink};
use crate::layer::apply::{self, ApplyError, Previous, TreeOptions};
use crate::layer::entry::Kind;
use crate::layer::index::{KEPT_LIMIT, KEPT_PATHS, LayerIndex};
use crate::layer::stack::{Found, LayerStack, needs_parents};
use crate::layer::write::{Body, LayerWriter};
use crate::shared::SharedCache;
use crate::store::layers::{Form, LayerData};
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// A layer of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) layer: DiffId,
    /// What it holds, where it is the layer of a step: keys of what lies on it go by that. Of one of a base the diffID counts.
    pub(super) content: Option<ContentDigest>,
}

/// Values that are made once per name, by whichever thread asks first.
struct Once<K, V>(Mutex<HashMap<K, Arc<OnceCell<V>>>>);

type OnceCell<V> = (Mutex<()>, OnceLock<V>);

impl<K: Hash + Eq + Copy, V: Clone> Once<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get_or_make<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let cell = {
            let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cells.entry(key).or_default())
        };
        if let Some(value) = cell.1.get() {
            return Ok(value.clone());
        }
        let _making = cell.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = cell.1.get() {
            return Ok(value.clone());
        }
        let value = make()?;
        Ok(cell.1.get_or_init(|| value).clone())
    }
}

/// Indexes and trees of a build.
pub(super) struct Stacks<'a> {
    store: &'a Store,
    lease: &'a Lease,
    events: &'a dyn EventSink,
    absent: &'a (dyn Fn(&DiffId) -> Result<bool, String> + Sync),
    shared: Option<&'a SharedCache<'a>>,
    indexes: Once<DiffId, Arc<LayerIndex>>,
    data: Once<DiffId, Arc<LayerData>>,
    trees: Once<ChainId, PathBuf>,
    /// For a layer that was made now, the one that the same step gave before: most of its files are the same.
    before: Mutex<HashMap<DiffId, DiffId>>,
}

impl<'a> Stacks<'a> {
    pub(super) fn new(
        store: &'a Store,
        lease: &'a Lease,
        events: &'a dyn EventSink,
        absent: &'a (dyn Fn(&DiffId) -> Result<bool, String> + Sync),
        shared: Option<&'a SharedCache<'a>>,
    ) -> Self {
        let (indexes, data, trees, before) = (Once::new(), Once::new(), Once::new(), Mutex::default());
        Self { store, lease, events, absent, shared, indexes, data, trees, before }
    }

    /// Takes the index of a layer that was put into the store: it need not be read from there.
    pub(super) fn knows(&self, index: LayerIndex) {
        let index = Arc::new(index);
        let _: Result<_, StoreError> = self.indexes.get_or_make(index.diff_id(), || Ok(Arc::clone(&index)));
    }

    /// Takes note that `layer` came after `before` in the same place: its tree may link to files of that one.
    pub(super) fn follows(&self, layer: DiffId, before: DiffId) {
        if layer != before {
            self.before.lock().unwrap_or_else(PoisonError::into_inner).insert(layer, before);
        }
    }

    /// The layer that came before in the same place, and its tree, if it has one.
    fn before(&self, layer: &DiffId) -> Option<(LayerIndex, PathBuf)> {
        let before = *self.before.lock().unwrap_or_else(PoisonError::into_inner).get(layer)?;
        let tree = self.store.layer_tree(&before)?;
        // Whatever is wrong with it, the tar has all files.
        Some((self.store.layer_index(&before).ok()??, tree))
    }

    /// The index of a layer that is in the store, or comes now.
    pub(super) fn index(&self, part: &Part) -> Result<Arc<LayerIndex>, Cause> {
        let Part { layer, content } = part;
        let index = self.indexes.get_or_make(*layer, || {
            let index = match self.store.layer_index(layer)? {
                None if self.bring(part)? => self.store.layer_index(layer)?,
                index => index,
            };
            index.map(Arc::new).ok_or_else(|| Cause::from(self.store.missing(format!("the layer {layer}"))))
        })?;
        match content {
            Some(content) if *content != index.content() => Err(self.untrue(layer, content)),
            _ => Ok(index),
        }
    }

    /// Whether a layer that is here holds what keys go by, without a look at all of its index.
    pub(super) fn check(&self, part: &Part) -> Result<(), Cause> {
        let found = self.store.layer_summary(&part.layer)?.content;
        match &part.content {
            Some(content) if *content != found => Err(self.untrue(&part.layer, content)),
            _ => Ok(()),
        }
    }

    /// A layer has another content than the keys above it go by.
    fn untrue(&self, layer: &DiffId, content: &ContentDigest) -> Cause {
        match self.shared {
            Some(shared) => {
                shared.refute(layer, content);
                Cause::Untrue
            }
            None => {
                let folder = self.store.path("layers").join(layer.0.hex());
                self.store.damaged(&folder, format!("its content is not {content}, as its record says")).into()
            }
        }
    }

    fn bring(&self, part: &Part) -> Result<bool, Cause> {
        if let (Some(shared), Some(content)) = (self.shared, &part.content) {
            match shared.bring(&part.layer, content) {
                Some(true) => return Ok(true),
                Some(false) => return Err(Cause::Untrue),
                None => {}
            }
        }
        (self.absent)(&part.layer).map_err(Cause::Absent)
    }

    /// The index of a layer, or what a shared cache says of one that is not here: its entries, but no way to its data. It does
    /// not come for this where a cache has its index.
    pub(super) fn outline(&self, part: &Part) -> Result<Arc<LayerIndex>, Cause> {
        if let (Some(shared), Some(content)) = (self.shared, &part.content)
            && !self.store.has_layer(&part.layer)
            && let Some(index) = shared.index(&part.layer, content)
        {
            return Ok(index);
        }
        self.index(part)
    }

    /// What is seen through these layers, bottom first; all of them are here then.
    pub(super) fn view(&self, layers: &[Part]) -> Result<LayerStack, Cause> {
        self.seen(layers, |part| self.index(part))
    }

    /// The same, by [`Stacks::outline`].
    pub(super) fn outlines(&self, layers: &[Part]) -> Result<LayerStack, Cause> {
        self.seen(layers, |part| self.outline(part))
    }

    fn seen(
        &self,
        layers: &[Part],
        index: impl Fn(&Part) -> Result<Arc<LayerIndex>, Cause>,
    ) -> Result<LayerStack, Cause> {
        let indexes = layers.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        let mut view =
            LayerStack::new(indexes).map_err(|error| self.store.damaged(self.store.root(), error.to_string()))?;
        for path in KEPT_PATHS {
            let Ok(real) = view.resolve(path, true) else { continue };
            if real != path && view.file_bytes(&real).is_none() {
                // What cannot be read names nobody, which whoever looks for a name then says.
                view.linked.extend(self.small_file(layers, &view, &real).map(|bytes| (real, bytes.into())));
            }
        }
        Ok(view)
    }

    /// The bytes of a file that is small enough to list users. Its layer comes for it, if it is not here.
    fn small_file(&self, layers: &[Part], view: &LayerStack, path: &[u8]) -> Option<Vec<u8>> {
        let found = view.lookup(path)?;
        let Kind::File { size, .. } = found.entry.kind else { return None };
        let part = layers.get(found.layer).filter(|_| size <= KEPT_LIMIT)?;
        self.index(part).ok()?;
        let data = self.data(part).ok()?;
        let mut bytes = Vec::new();
        data.open(&view.layers[found.layer], found.position).ok()?.take(size).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The data of a layer's files.
    pub(super) fn data(&self, part: &Part) -> Result<Arc<LayerData>, Cause> {
        if self.shared.is_some() {
            // Perhaps nothing but its outline was needed so far.
            self.index(part)?;
        }
        let made = || self.store.layer_data(&part.layer, self.lease).map(Arc::new);
        Ok(self.data.get_or_make(part.layer, made)?)
    }

    /// The trees of these layers (bottom first), topmost first, each once; made where they are not there. Of more than
    /// the kernel mounts, the lowest are merged into one.
    pub(super) fn trees(&self, layers: &[Part], options: &TreeOptions) -> Result<Vec<PathBuf>, Cause> {
        if self.shared.is_some() {
            // A tree that is here may be that of a layer which was claimed to hold something else.
            layers.iter().try_for_each(|part| self.index(part).map(drop))?;
        }
        let merged = merged_layers(layers.len());
        let mut chain = None;
        for part in &layers[..merged] {
            chain = Some(ChainId::extend(chain.as_ref(), &part.layer));
        }
        let mut trees = Vec::with_capacity(layers.len() - merged + 1);
        if let Some(chain) = chain.filter(|_| merged > 0) {
            let name = merged_name(&chain);
            trees.push(self.trees.get_or_make(name, || self.merge(&layers[..merged], &name, options))?);
        }
        for (height, part) in layers.iter().enumerate().skip(merged) {
            let own = ChainId::extend(chain.as_ref(), &part.layer);
            trees.push(self.trees.get_or_make(own, || self.tree(&layers[..=height], &own, options))?);
            chain = Some(own);
        }
        let mut topmost_first: Vec<PathBuf> = Vec::with_capacity(trees.len());
        for tree in trees.into_iter().rev() {
            if !topmost_first.contains(&tree) {
                topmost_first.push(tree);
            }
        }
        Ok(topmost_first)
    }

    /// The tree of the last of `layers`: its own, or, where it is no tree by itself, the one on these parents.
    fn tree(&self, layers: &[Part], chain: &ChainId, options: &TreeOptions) -> Result<PathBuf, Cause> {
        let (part, below) = layers.split_last().expect("a chain has a layer");
        let layer = &part.layer;
        if let Some(tree) = self.lease.mounts_layer(self.store, layer)? {
            return Ok(tree);
        }
        let index = self.index(part)?;
        let on_parents = needs_parents(&index);
        if on_parents && let Some(tree) = self.lease.mounts_chain(self.store, chain)? {
            return Ok(tree);
        }
        let tar = self.store.tar_file(layer, self.lease)?;
        let tree = self.lease.fresh_path();
        if on_parents {
            let view = self.view(below)?;
            let data = below.iter().map(|part| self.data(part)).collect::<Result<Vec<_>, _>>()?;
            let mut lower = |found: &Found| data[found.layer].open(&view.layers[found.layer], found.position);
            std::fs::create_dir(&tree).map_err(StoreError::io("make", &tree))?;
            let made = apply::apply_on_parents(&index, &tar, &view, &mut lower, &tree, options);
            self.tell(&made.map_err(|error| self.unreadable(layer, error))?);
            self.put_chain(chain, &tree)
        } else {
            std::fs::create_dir(&tree).map_err(StoreError::io("make", &tree))?;
            let before = self.before(layer);
            let before = before.as_ref().map(|(index, tree)| Previous { index, tree });
            let made = apply::apply_like(&index, &tar, &tree, options, before.as_ref());
            self.tell(&made.map_err(|error| self.unreadable(layer, error))?);
            self.store.put_layer(self.lease, &index, Form::Tree(tree))?;
            let tree = self.lease.mounts_layer(self.store, layer)?;
            Ok(tree.ok_or_else(|| self.store.missing(format!("the tree of {layer}")))?)
        }
    }

    fn put_chain(&self, chain: &ChainId, tree: &Path) -> Result<PathBuf, Cause> {
        self.store.put_chain_tree(self.lease, chain, tree)?;
        let tree = self.lease.mounts_chain(self.store, chain)?;
        Ok(tree.ok_or_else(|| self.store.missing(format!("the tree of {}", chain.0)))?)
    }

    /// Why a tree could not be made: a layer whose bytes end early is damaged.
    fn unreadable(&self, layer: &DiffId, error: ApplyError) -> Cause {
        match &error {
            ApplyError::Data { source, .. } if source.kind() == ErrorKind::UnexpectedEof => {
                let folder = self.store.path("layers").join(layer.0.hex());
                self.store.damaged(&folder, "its bytes end early").into()
            }
            _ => error.into(),
        }
    }

    /// One tree for all of `layers`, which are the lowest of a stack: what is seen through them.
    fn merge(&self, layers: &[Part], name: &ChainId, options: &TreeOptions) -> Result<PathBuf, Cause> {
        if let Some(tree) = self.lease.mounts_chain(self.store, name)? {
            return Ok(tree);
        }
        self.put_chain(name, &self.flatten(layers, options)?)
    }

    /// A new folder with what is seen through `layers`, for the caller alone.
    pub(super) fn flatten(&self, layers: &[Part], options: &TreeOptions) -> Result<PathBuf, Cause> {
        let folder = self.lease.folder();
        let view = self.view(layers)?;
        let tar = tempfile::tempfile_in(folder).map_err(StoreError::io("make a file in", folder))?;
        let mut writer = LayerWriter::new(tar);
        for visible in view.walk() {
            let mut entry = visible.entry.to_entry();
            match visible.data.filter(|_| matches!(entry.kind, Kind::File { .. })) {
                None => writer.push(&mut entry, Body::None)?,
                Some((layer, position, _)) => {
                    let data = self.data(&layers[layer])?;
                    let reader = data.open(&view.layers[layer], position);
                    let reader =
                        reader.map_err(StoreError::io("read a file of", layers[layer].layer.to_string().as_ref()))?;
                    writer.push(&mut entry, Body::Reader(reader))?;
                }
            }
        }
        let (tar, index) = writer.finish()?;
        let tree = self.lease.fresh_path();
        std::fs::create_dir(&tree).map_err(StoreError::io("make", &tree))?;
        self.tell(&apply::apply(&index, &tar, &tree, options)?);
        Ok(tree)
    }

    /// What could not be made in a tree.
    fn tell(&self, notes: &[String]) {
        notes.iter().for_each(|note| self.events.event(Event::Note(note)));
    }
}

/// As many lower directories as are mounted at once; the kernel's limit is 500.
const MOST_TREES: usize = 450;

/// The lowest layers are merged in multiples of so many, so that the next steps find the merged tree again.
const MERGED_AT_ONCE: usize = 400;

/// How many of the lowest of `count` layers become one tree.
fn merged_layers(count: usize) -> usize {
    match count {
        0..=MOST_TREES => 0,
        _ => (count - (MOST_TREES - MERGED_AT_ONCE)) / MERGED_AT_ONCE * MERGED_AT_ONCE,
    }
}

/// What the merged tree of a chain is kept as: the chain's own name is that of its topmost layer on its parents.
fn merged_name(chain: &ChainId) -> ChainId {
    let mut hasher = Hasher::new();
    hasher.field(b"rbuild merged tree 1");
    hasher.field(chain.0.as_bytes());
    ChainId(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stack_is_higher_than_the_kernel_allows() {
        for count in 0..5000 {
            let merged = merged_layers(count);
            let mounted = count - merged + usize::from(merged > 0);
            assert!(mounted <= MOST_TREES && merged <= count && merged.is_multiple_of(MERGED_AT_ONCE), "{count}");
        }
        assert_eq!(
            (merged_layers(450), merged_layers(451), merged_layers(849), merged_layers(850)),
            (0, 400, 400, 800)
        );
    }
}
