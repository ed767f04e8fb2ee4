//! One layer from a layout or an archive into the store.
//!
//! In: a file, and what its documents say of it. Out: the layer in the store with its index. What always holds: each
//! byte is read once, and is checked against the blob's digest and size and against the diffID before anything appears;
//! a layer that is here already in the same form is not read at all.

use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::LoadError;
use super::files::{Files, Member};
use crate::digest::{DiffId, Digest};
use crate::image::manifest::{Encoding, Family};
use crate::layer::compress::{self, Format};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::LayerIndex;
use crate::layer::scan::ScanError;
use crate::layer::stack::LayerStack;
use crate::store::intake::{IntakeError, take_in};
use crate::store::layers::{Form, KnownBlob};
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

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
}

/// How a layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brought {
    /// Its compression.
    pub(super) encoding: Encoding,
    /// Digest of the file.
    pub(super) digest: Digest,
    /// Size of the file.
    pub(super) size: u64,
}

/// Brings layers in, several at once. What each became, in order.
pub(super) fn bring(store: &Store, lease: &Lease, files: &Files, wanted: &[Wanted]) -> Result<Vec<Brought>, LoadError> {
    let mut brought = Vec::with_capacity(wanted.len());
    for layer in wanted {
        brought.push(known(store, lease, layer)?);
    }
    // The threads are joined here: who enters a user namespace later must be alone in the process.
    let missing: Vec<usize> = (0..wanted.len())
        .filter(|&number| brought[number].is_none() && !wanted[..number].contains(&wanted[number]))
        .collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&number) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = bring_one(store, lease, files, &wanted[number]);
            if result.is_err() {
                next.store(missing.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Of several errors, that of the lowest layer: the same one every time, where they do not race.
    results.sort_by_key(|(number, _)| *number);
    for (number, result) in results {
        brought[number] = Some(result?);
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

/// What is here already, without a look at the file.
fn known(store: &Store, lease: &Lease, wanted: &Wanted) -> Result<Option<Brought>, LoadError> {
    let Some((digest, size)) = wanted.blob else { return Ok(None) };
    if !lease.uses_layer(store, &wanted.diff_id)? {
        return Ok(None);
    }
    for blob in store.layer_blobs(&wanted.diff_id)? {
        if (blob.digest, blob.size) == (digest, size)
            && (digest == wanted.diff_id.0 || lease.uses_blob(store, &digest)?)
        {
            let encoding = encoding_of(&blob.media_type);
            return Ok(Some(Brought { encoding, digest, size }));
        }
    }
    Ok(None)
}

fn encoding_of(media_type: &str) -> Encoding {
    use oci_spec::image::MediaType;

    use crate::image::manifest::Kind;
    match Kind::of(&MediaType::from(media_type)) {
        Some(Kind::Layer(encoding)) => encoding,
        _ => Encoding::Tar,
    }
}

fn bring_one(store: &Store, lease: &Lease, files: &Files, wanted: &Wanted) -> Result<Brought, LoadError> {
    let member = files.open(&wanted.name)?.ok_or_else(|| files_lost(files, wanted))?;
    let size = member.size();
    if let Some((_, expected)) = wanted.blob.filter(|(_, expected)| *expected != size) {
        let what = format!("the layer {}", wanted.shown());
        return Err(LoadError::Size { place: files.place().to_owned(), what, expected, found: size });
    }
    let mut magic = [0; 6];
    let filled = member.peek(&mut magic).map_err(LoadError::io("read", files.place()))?;
    let encoding = match compress::detect(&magic[..filled]) {
        None => return bring_tar(store, lease, files, member, wanted),
        Some(Format::Gzip) => Encoding::Gzip,
        Some(Format::Zstd) => Encoding::Zstd,
        Some(other) => {
            let why = format!("it is compressed by {other}, which no image may use for its layers");
            return Err(LoadError::layer(files.place(), &wanted.shown(), why));
        }
    };
    bring_blob(store, lease, files, member, wanted, encoding)
}

/// An uncompressed layer: the tar is kept.
fn bring_tar(
    store: &Store,
    lease: &Lease,
    files: &Files,
    mut member: Member,
    wanted: &Wanted,
) -> Result<Brought, LoadError> {
    let size = member.size();
    let path = lease.fresh_path();
    let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
    let mut keep = BufWriter::with_capacity(1 << 20, file);
    let index = take_in(&mut member, &mut keep, false)
        .map_err(|error| intake_failed(files, wanted, error, StoreError::io("write", &path)))?;
    let found = index.diff_id();
    if let Some((expected, _)) = wanted.blob.filter(|(expected, _)| *expected != found.0) {
        let what = format!("the layer {expected}");
        return Err(LoadError::Digest { place: files.place().to_owned(), what, found: found.0 });
    }
    check_diff_id(files, wanted, &index)?;
    store.put_layer(lease, &index, Form::Tar(path))?;
    // The tar itself counts as a blob that is known, so that next time a look at its size is enough.
    let media_type = Family::Oci.layer(Encoding::Tar).to_string();
    store.add_layer_blob(&found, KnownBlob { media_type, digest: found.0, size, encoder: None })?;
    Ok(Brought { encoding: Encoding::Tar, digest: found.0, size })
}

/// A compressed layer: the blob is kept.
fn bring_blob(
    store: &Store,
    lease: &Lease,
    files: &Files,
    mut member: Member,
    wanted: &Wanted,
    encoding: Encoding,
) -> Result<Brought, LoadError> {
    let mut blob = store.blob_writer(lease)?;
    let index = take_in(&mut member, &mut blob, true)
        .map_err(|error| intake_failed(files, wanted, error, StoreError::io("write a blob in", lease.folder())))?;
    check_diff_id(files, wanted, &index)?;
    let (digest, size) = match wanted.blob {
        Some(expected) => match blob.commit_if(expected)? {
            Ok(()) => expected,
            Err((found, _)) => {
                let what = format!("the layer {}", expected.0);
                return Err(LoadError::Digest { place: files.place().to_owned(), what, found });
            }
        },
        None => blob.commit()?,
    };
    let media_type = Family::Oci.layer(encoding).to_string();
    let known = KnownBlob { media_type, digest, size, encoder: None };
    store.put_layer(lease, &index, Form::Blob(known))?;
    Ok(Brought { encoding, digest, size })
}

fn check_diff_id(files: &Files, wanted: &Wanted, index: &LayerIndex) -> Result<(), LoadError> {
    let (expected, found) = (wanted.diff_id, index.diff_id());
    if expected == found {
        return Ok(());
    }
    let layer = wanted.shown();
    Err(LoadError::DiffId { place: files.place().to_owned(), layer, expected, found })
}

/// A hard link may name a file of a layer below, and of nothing else: whether there is one, no layer tells by itself.
pub(super) fn check_links(store: &Store, files: &Files, diff_ids: &[DiffId]) -> Result<(), LoadError> {
    let mut indexes = Vec::with_capacity(diff_ids.len());
    for layer in diff_ids {
        let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
        indexes.push(Arc::new(index));
    }
    let failed = |layer: &DiffId, why| LoadError::layer(files.place(), &layer.to_string(), why);
    let Some(top) = diff_ids.last() else { return Ok(()) };
    let stack = LayerStack::new(indexes).map_err(|error| failed(top, error.to_string()))?;
    for (height, layer) in stack.layers.iter().enumerate() {
        let is_link = |entry: &EntryRef<'_>| matches!(entry.kind, KindRef::HardLink { .. });
        let links = layer.entries().enumerate().filter(|(_, entry)| is_link(entry));
        let mut open = links.filter(|(position, _)| layer.data_position(*position).is_none()).peekable();
        if open.peek().is_none() {
            continue;
        }
        let below = LayerStack { layers: stack.layers[..=height].to_vec() };
        for (_, link) in open {
            if let (None, KindRef::HardLink { target }) = (below.lookup_ref(link.path), link.kind) {
                let shown = |path| String::from_utf8_lossy(path).into_owned();
                let why = format!(
                    "/{} is a hard link to /{}, which is no file of the image",
                    shown(link.path),
                    shown(target)
                );
                return Err(failed(&diff_ids[height], why));
            }
        }
    }
    Ok(())
}

fn intake_failed(
    files: &Files,
    wanted: &Wanted,
    error: IntakeError,
    keep: impl FnOnce(io::Error) -> StoreError,
) -> LoadError {
    match error {
        IntakeError::Read(error) => LoadError::io("read", files.place())(error),
        IntakeError::Keep(error) => keep(error).into(),
        IntakeError::Scan(error) => scan_failed(files, wanted, &error),
    }
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
