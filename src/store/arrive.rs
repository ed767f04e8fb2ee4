//! One layer from outside into the store, from wherever its bytes come.
//!
//! In: a reader, and what documents say of the layer. Out: the layer in the store with its index. What always holds: each
//! byte is read once, and is checked against the blob's digest and size and against the diffID before anything appears.

use std::fs::File;
use std::io::{self, BufWriter, Read};

use super::intake::{IntakeError, take_in};
use super::layers::{Form, KnownBlob};
use super::lease::Lease;
use super::{Store, StoreError};
use crate::digest::{DiffId, Digest};
use crate::image::manifest::{Encoding, Family, Kind};
use crate::layer::compress::{self, Format};
use crate::layer::index::LayerIndex;
use crate::layer::scan::ScanError;

/// What documents say of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Digest and size of the bytes that come, where a manifest says them.
    pub blob: Option<(Digest, u64)>,
    /// What the config says.
    pub diff_id: DiffId,
}

/// How a layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Its compression.
    pub encoding: Encoding,
    /// Digest of the bytes that came.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// Why a layer did not come in.
#[derive(Debug)]
pub enum ArrivalError {
    /// It could not be read.
    Read(io::Error),
    /// The store failed.
    Store(StoreError),
    /// These are other bytes: their digest.
    Digest(Digest),
    /// This is another layer: its diffID.
    DiffId(DiffId),
    /// It is compressed by something that no image may use.
    Compression(Format),
    /// It makes no sense.
    Scan(ScanError),
}

impl From<StoreError> for ArrivalError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What is here already of a layer, without a look at the bytes; it stays as long as the command runs.
pub fn arrived(store: &Store, lease: &Lease, expected: &Expected) -> Result<Option<Arrived>, StoreError> {
    let Some((digest, size)) = expected.blob else { return Ok(None) };
    if !lease.uses_layer(store, &expected.diff_id)? {
        return Ok(None);
    }
    for blob in store.layer_blobs(&expected.diff_id)? {
        let same = (blob.digest, blob.size) == (digest, size);
        let is_tar = digest == expected.diff_id.0;
        if same && (is_tar || lease.uses_blob(store, &digest)?) && has_size(store, expected, &blob, is_tar)? {
            let encoding = match Kind::of(&blob.media_type.as_str().into()) {
                Some(Kind::Layer(encoding)) => encoding,
                _ => Encoding::Tar,
            };
            return Ok(Some(Arrived { encoding, digest, size }));
        }
    }
    Ok(None)
}

/// Whether as many bytes are kept as there should be: what a power cut cuts short is not taken for the layer.
fn has_size(store: &Store, expected: &Expected, blob: &KnownBlob, is_tar: bool) -> Result<bool, StoreError> {
    if !is_tar {
        return Ok(store.blob_size(&blob.digest)? == blob.size);
    }
    let Some(tar) = store.stored_tar(&expected.diff_id)? else { return Ok(true) };
    Ok(tar.metadata().map_err(StoreError::io("look at the tar of", store.root()))?.len() == blob.size)
}

/// Takes a layer in.
pub fn arrive(store: &Store, lease: &Lease, from: &mut dyn Read, expected: &Expected) -> Result<Arrived, ArrivalError> {
    let mut head = Vec::with_capacity(6);
    (&mut *from).take(6).read_to_end(&mut head).map_err(ArrivalError::Read)?;
    let encoding = match compress::detect(&head) {
        None => Encoding::Tar,
        Some(Format::Gzip) => Encoding::Gzip,
        Some(Format::Zstd) => Encoding::Zstd,
        Some(other) => return Err(ArrivalError::Compression(other)),
    };
    let mut from = io::Cursor::new(head).chain(from);
    match encoding {
        Encoding::Tar => arrive_tar(store, lease, &mut from, expected),
        _ => arrive_blob(store, lease, &mut from, expected, encoding),
    }
}

/// An uncompressed layer: the tar is kept.
fn arrive_tar(store: &Store, lease: &Lease, from: &mut dyn Read, expected: &Expected) -> Result<Arrived, ArrivalError> {
    let path = lease.fresh_path();
    let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
    let mut keep = BufWriter::with_capacity(1 << 20, file);
    let index =
        take_in(from, &mut keep, false).map_err(|error| intake_failed(error, StoreError::io("write", &path)))?;
    let found = index.diff_id();
    if expected.blob.is_some_and(|(expected, _)| expected != found.0) {
        return Err(ArrivalError::Digest(found.0));
    }
    check_diff_id(expected, &index)?;
    let size = index.tar_size();
    store.put_layer(lease, &index, Form::Tar(path))?;
    // The tar itself counts as a blob that is known, so that next time a look at its size is enough.
    let media_type = Family::Oci.layer(Encoding::Tar).to_string();
    let size = expected.blob.map_or(size, |(_, size)| size);
    store.add_layer_blob(&found, KnownBlob { media_type, digest: found.0, size, encoder: None })?;
    Ok(Arrived { encoding: Encoding::Tar, digest: found.0, size })
}

/// A compressed layer: the blob is kept.
fn arrive_blob(
    store: &Store,
    lease: &Lease,
    from: &mut dyn Read,
    expected: &Expected,
    encoding: Encoding,
) -> Result<Arrived, ArrivalError> {
    let mut blob = store.blob_writer(lease)?;
    let index = take_in(from, &mut blob, true)
        .map_err(|error| intake_failed(error, StoreError::io("write a blob in", lease.folder())))?;
    check_diff_id(expected, &index)?;
    let (digest, size) = match expected.blob {
        Some(expected) => match blob.commit_if(expected)? {
            Ok(()) => expected,
            Err((found, _)) => return Err(ArrivalError::Digest(found)),
        },
        None => blob.commit()?,
    };
    let media_type = Family::Oci.layer(encoding).to_string();
    let known = KnownBlob { media_type, digest, size, encoder: None };
    store.put_layer(lease, &index, Form::Blob(known))?;
    Ok(Arrived { encoding, digest, size })
}

fn check_diff_id(expected: &Expected, index: &LayerIndex) -> Result<(), ArrivalError> {
    let found = index.diff_id();
    if expected.diff_id == found { Ok(()) } else { Err(ArrivalError::DiffId(found)) }
}

fn intake_failed(error: IntakeError, keep: impl FnOnce(io::Error) -> StoreError) -> ArrivalError {
    match error {
        IntakeError::Read(error) => ArrivalError::Read(error),
        IntakeError::Keep(error) => ArrivalError::Store(keep(error)),
        IntakeError::Scan(error) => ArrivalError::Scan(error),
    }
}
