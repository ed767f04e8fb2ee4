//! The layers and files of two images, compared.
//!
//! In: two images, each with the store that holds it. Out: the layers that differ, and the files. What always holds:
//! where both have as many layers, each is compared with the one at its place, so that also what a later layer hides is
//! told; else what a process in the image would see is compared.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;

use crate::cli::failure::Failure;
use crate::digest::{ContentDigest, DiffId};
use crate::layer::compare::{Aspect, Change, compare};
use crate::layer::entry_ref::EntryRef;
use crate::layer::index::LayerIndex;
use crate::layer::stack::LayerStack;
use crate::plan::BaseImage;
use crate::store::layers::LayerData;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

use super::cause::{self, Surroundings};
use super::report::{EntryReport, FileReport, LayerReport};

/// Of so many files the first byte that differs is looked for: each takes reading.
const LOOKED_INTO: usize = 500;

/// One image, and where it is.
#[derive(Clone, Copy)]
pub(in crate::cli) struct Side<'a> {
    pub(in crate::cli) store: &'a Store,
    pub(in crate::cli) lease: &'a Lease,
    pub(in crate::cli) image: &'a BaseImage,
}

impl<'a> Side<'a> {
    fn diff_ids(&self) -> &'a [DiffId] {
        &self.image.config.rootfs.diff_ids
    }

    fn index(&self, layer: &DiffId) -> Result<Arc<LayerIndex>, Failure> {
        layer_index(self.store, layer)
    }

    /// The instruction that made the layer at this place.
    fn step(&self, number: usize) -> Option<String> {
        let made = self.image.config.history.iter().filter(|entry| !entry.empty_layer).nth(number);
        made.map(|entry| entry.created_by.clone()).filter(|text| !text.is_empty())
    }
}

fn layer_index(store: &Store, layer: &DiffId) -> Result<Arc<LayerIndex>, Failure> {
    let found = store.layer_index(layer).map_err(anyhow::Error::from)?;
    let missing = || Failure::Error(store.missing(format!("the layer {layer}")).into());
    Ok(Arc::new(found.ok_or_else(missing)?))
}

/// The layers that are not the same.
pub(super) fn layers(a: &Side<'_>, b: &Side<'_>) -> Result<Vec<LayerReport>, Failure> {
    let content = |side: &Side<'_>, layer: &DiffId| -> Result<Option<ContentDigest>, Failure> {
        let found = side.store.layer_index(layer).map_err(anyhow::Error::from)?;
        Ok(found.map(|index| index.content()))
    };
    let mut reports = Vec::new();
    for number in 0..a.diff_ids().len().max(b.diff_ids().len()) {
        let (x, y) = (a.diff_ids().get(number), b.diff_ids().get(number));
        if x == y {
            continue;
        }
        let contents = [
            x.map(|layer| content(a, layer)).transpose()?.flatten(),
            y.map(|layer| content(b, layer)).transpose()?.flatten(),
        ];
        let steps = [x.and_then(|_| a.step(number)), y.and_then(|_| b.step(number))];
        reports.push(LayerReport { number, layers: [x.copied(), y.copied()], contents, steps });
    }
    Ok(reports)
}

/// The files that are not the same.
pub(super) fn files(a: &Side<'_>, b: &Side<'_>) -> Result<Vec<FileReport>, Failure> {
    let (x, y) = (a.diff_ids(), b.diff_ids());
    if x.len() != y.len() {
        return visible_files(a, b);
    }
    let mut reports = Vec::new();
    for (number, (x, y)) in x.iter().zip(y).enumerate().filter(|(_, (x, y))| x != y) {
        reports.extend(layer_files(number, (a.store, a.lease, x), (b.store, b.lease, y))?);
    }
    Ok(reports)
}

/// The entries of two layers that are not the same.
pub(in crate::cli) fn layer_files(
    number: usize,
    (store_a, lease_a, layer_a): (&Store, &Lease, &DiffId),
    (store_b, lease_b, layer_b): (&Store, &Lease, &DiffId),
) -> Result<Vec<FileReport>, Failure> {
    let (index_a, index_b) = (layer_index(store_a, layer_a)?, layer_index(store_b, layer_b)?);
    let changes = compare(index_a.entries(), index_b.entries());
    let about = Surroundings::read();
    let only = |first: bool| -> BTreeSet<&[u8]> {
        let alone = changes.iter().filter(|change| change.aspects.is_empty() && change.a.is_some() == first);
        alone.filter_map(|change| change.a.or(change.b)).map(|entry| entry.path).collect()
    };
    let only = [only(true), only(false)];
    let mut data = None;
    let mut reports = Vec::new();
    for change in &changes {
        let mut found = report(Some(number), change);
        if change.aspects.is_empty() {
            found.cause = cause::of_name(&found.path, &only[usize::from(change.a.is_some())]);
        } else if let (Some(a), Some(b), true) = (change.a, change.b, change.aspects.contains(&Aspect::Content))
            && reports.len() < LOOKED_INTO
        {
            let (data_a, data_b) = match &data {
                Some(data) => data,
                None => {
                    let open =
                        |store: &Store, layer, lease| store.layer_data(layer, lease).map_err(anyhow::Error::from);
                    &*data.insert((open(store_a, layer_a, lease_a)?, open(store_b, layer_b, lease_b)?))
                }
            };
            let failed = |error| Failure::Error(StoreError::read("read a file of", store_a.root())(error).into());
            let a = start_of(data_a, &index_a, a.path).map_err(failed)?;
            let b = start_of(data_b, &index_b, b.path).map_err(failed)?;
            found.offset = first_difference(&a, &b);
            found.cause = cause::of_content(&found.path, &a, &b, &about);
        }
        reports.push(found);
    }
    Ok(reports)
}

/// The first bytes of a file.
fn start_of(data: &LayerData, index: &LayerIndex, path: &[u8]) -> io::Result<Vec<u8>> {
    let position = index.position(path).ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = Vec::new();
    data.open(index, position)?.take(SAMPLE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How much of a file is read: differences further behind are not looked for.
const SAMPLE: u64 = 4 << 20;

fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    let shared = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    (shared as u64 != SAMPLE && (shared < a.len() || shared < b.len())).then_some(shared as u64)
}

/// What a process in the images would see differently.
fn visible_files(a: &Side<'_>, b: &Side<'_>) -> Result<Vec<FileReport>, Failure> {
    let stack = |side: &Side<'_>| -> Result<LayerStack, Failure> {
        let indexes = side.diff_ids().iter().map(|layer| side.index(layer)).collect::<Result<Vec<_>, _>>()?;
        LayerStack::new(indexes).map_err(|error| Failure::Error(error.into()))
    };
    let (stack_a, stack_b) = (stack(a)?, stack(b)?);
    let changes = compare(stack_a.walk().map(|found| found.entry), stack_b.walk().map(|found| found.entry));
    Ok(changes.iter().map(|change| report(None, change)).collect())
}

fn report(layer: Option<usize>, change: &Change<'_, '_>) -> FileReport {
    let path = change.a.or(change.b).map(|entry| entry.path.to_vec()).unwrap_or_default();
    let side = |entry: &EntryRef<'_>| EntryReport::of(entry);
    FileReport {
        layer,
        path,
        a: change.a.as_ref().map(side),
        b: change.b.as_ref().map(side),
        aspects: change.aspects.clone(),
        offset: None,
        cause: None,
    }
}
