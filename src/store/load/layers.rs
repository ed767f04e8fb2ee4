//! One layer from a layout or an archive into the store.
//!
//! In: a file, and what its documents say of it. Out: the layer in the store with its index. What always holds: each
//! byte is read once, and is checked against the blob's digest and size and against the diffID before anything appears;
//! a layer that is here already in the same form is not read at all.

use std::sync::Arc;

use super::LoadError;
use super::files::Files;
use crate::digest::{DiffId, Digest};
use crate::layer::scan::ScanError;
use crate::layer::stack::LayerStack;
use crate::store::arrive::{ArrivalError, Arrived, Expected, arrive, arrived};
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};
use crate::sys::threads::at_once;

/// A layer as the documents have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The file.
    pub(super) name: String,
    /// Digest and size of the file, where a manifest says them.
    pub(super) blob: Option<(Digest, u64)>,
    /// What the config says.
    pub(super) diff_id: DiffId,
}

impl Wanted {
    /// As messages name it.
    fn shown(&self) -> String {
        self.blob.map_or_else(|| self.name.clone(), |(digest, _)| digest.to_string())
    }

    fn expected(&self) -> Expected {
        Expected { blob: self.blob, diff_id: self.diff_id }
    }
}

/// Brings layers in, several at once. What each became, in order.
pub(super) fn bring(store: &Store, lease: &Lease, files: &Files, wanted: &[Wanted]) -> Result<Vec<Arrived>, LoadError> {
    let mut brought = Vec::with_capacity(wanted.len());
    for layer in wanted {
        brought.push(arrived(store, lease, &layer.expected())?);
    }
    let missing: Vec<usize> = (0..wanted.len())
        .filter(|&number| brought[number].is_none() && !wanted[..number].contains(&wanted[number]))
        .collect();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let came = at_once(processors, &missing, |number| bring_one(store, lease, files, &wanted[*number]))?;
    for (number, layer) in missing.into_iter().zip(came) {
        brought[number] = Some(layer);
    }
    (0..wanted.len())
        .map(|number| {
            // Proof: what was neither known nor missing says the same as a layer before it, which was one of the two.
            let first = wanted.iter().position(|layer| *layer == wanted[number]).unwrap_or(number);
            brought[first].ok_or_else(|| files_lost(files, &wanted[number]))
        })
        .collect()
}

fn files_lost(files: &Files, wanted: &Wanted) -> LoadError {
    LoadError::Missing { place: files.place().to_owned(), what: format!("the layer {}", wanted.shown()) }
}

fn bring_one(store: &Store, lease: &Lease, files: &Files, wanted: &Wanted) -> Result<Arrived, LoadError> {
    let mut member = files.open(&wanted.name)?.ok_or_else(|| files_lost(files, wanted))?;
    let size = member.size();
    if let Some((_, expected)) = wanted.blob.filter(|(_, expected)| *expected != size) {
        let what = format!("the layer {}", wanted.shown());
        return Err(LoadError::Size { place: files.place().to_owned(), what, expected, found: size });
    }
    arrive(store, lease, &mut member, &wanted.expected()).map_err(|error| match error {
        ArrivalError::Read(error) => LoadError::io("read", files.place())(error),
        ArrivalError::Store(error) => error.into(),
        ArrivalError::Digest(found) => {
            let what = format!("the layer {}", wanted.shown());
            LoadError::Digest { place: files.place().to_owned(), what, found }
        }
        ArrivalError::DiffId(found) => {
            let layer = wanted.shown();
            LoadError::DiffId { place: files.place().to_owned(), layer, expected: wanted.diff_id, found }
        }
        ArrivalError::Compression(format) => {
            let why = format!("it is compressed by {format}, which no image may use for its layers");
            LoadError::layer(files.place(), &wanted.shown(), why)
        }
        ArrivalError::Scan(error) => scan_failed(files, wanted, &error),
    })
}

/// As [`links`], for the layers of a place.
pub(super) fn check_links(store: &Store, files: &Files, diff_ids: &[DiffId]) -> Result<(), LoadError> {
    links(store, diff_ids)?.map_err(|(layer, why)| LoadError::layer(files.place(), &layer.to_string(), why))
}

/// Whether each hard link of an image names a file of it: else the layer with one that does not, and why.
pub(crate) fn links(store: &Store, diff_ids: &[DiffId]) -> Result<Result<(), (DiffId, String)>, StoreError> {
    let mut indexes = Vec::with_capacity(diff_ids.len());
    for layer in diff_ids {
        let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
        indexes.push(Arc::new(index));
    }
    let Some(top) = diff_ids.last() else { return Ok(Ok(())) };
    let stack = match LayerStack::new(indexes) {
        Ok(stack) => stack,
        Err(error) => return Ok(Err((*top, error.to_string()))),
    };
    Ok(stack.broken_link().map_or(Ok(()), |link| Err((diff_ids[link.layer], link.to_string()))))
}

/// Why a layer cannot be indexed: most often it is damaged, which its digest tells better than the place where the tar
/// makes no sense.
fn scan_failed(files: &Files, wanted: &Wanted, error: &ScanError) -> LoadError {
    let found = wanted.blob.and_then(|(expected, _)| {
        let member = files.open(&wanted.name).ok()??;
        Digest::of_reader(member).ok().filter(|found| *found != expected)
    });
    match found {
        Some(found) => {
            let what = format!("the layer {}", wanted.shown());
            LoadError::Digest { place: files.place().to_owned(), what, found }
        }
        None => LoadError::layer(files.place(), &wanted.shown(), chain(error)),
    }
}

/// An error and what it came from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
