//! The blobs of an image's layers, compressed as an output wants them.
//!
//! In: the layers of an image, a wish. Out: a descriptor for each, and where its bytes come from. What always holds: a
//! blob that came from outside keeps its digest and size unless the wish is forced; one that was made here is used again
//! only if the same encoder in the same version made it, so that digests do not depend on what lies in the store.

use std::fs::File;
use std::io::{self, BufReader};

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::OutputError;
use crate::digest::DiffId;
use crate::image::manifest::{Descriptor, Encoding, Family, Kind};
use crate::layer::compress::{Compression, Encoder};
use crate::store::layers::KnownBlob;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// What an output wants of layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) compression: Compression,
    /// Blobs from outside are compressed anew, or unpacked.
    pub(super) force: bool,
    pub(super) family: Family,
    /// As long as this is true others need the processors more than compressing does.
    pub(super) gently: Option<&'a Arc<AtomicBool>>,
}

/// A layer in the form that was wished for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerBlob {
    pub(super) descriptor: Descriptor,
    pub(super) source: Source,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In the content store.
    Stored,
    /// They are the tar of a layer.
    Tar(DiffId),
}

/// The blob of a layer that the image's manifest lists as `listed`.
pub(super) fn layer_blob(
    store: &Store,
    lease: &Lease,
    layer: &DiffId,
    listed: &Descriptor,
    wish: Wish<'_>,
) -> Result<LayerBlob, OutputError> {
    let Wish { compression, force, family, gently } = wish;
    // Made here, or saved without compression: there is no blob whose digest anyone knows.
    let uncompressed = listed.digest == layer.0;
    if !uncompressed && !force {
        let Some(Kind::Layer(encoding)) = Kind::of(&listed.media_type) else {
            let why = format!("its manifest gives it the media type {}", listed.media_type);
            return Err(store.damaged(&store.blob_path(&listed.digest), why).into());
        };
        if !lease.uses_blob(store, &listed.digest)? {
            return Err(store.missing(format!("the blob {} of layer {layer}", listed.digest)).into());
        }
        let descriptor = as_listed(listed, family, encoding);
        return Ok(LayerBlob { descriptor, source: Source::Stored });
    }
    let encoding = match compression {
        Compression::None => {
            let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
            let descriptor = Descriptor::new(family.layer(Encoding::Tar), layer.0, index.tar_size());
            return Ok(LayerBlob { descriptor, source: Source::Tar(*layer) });
        }
        Compression::Gzip(_) => Encoding::Gzip,
        Compression::Zstd(_) => Encoding::Zstd,
    };
    let KnownBlob { digest, size, .. } = compressed(store, lease, layer, compression, encoding, gently)?;
    let descriptor = Descriptor::new(family.layer(encoding), digest, size);
    Ok(LayerBlob { descriptor, source: Source::Stored })
}

/// The blob of a layer as its registry has it, where it is not here and nobody asks for another.
pub(super) fn absent_blob(
    store: &Store,
    lease: &Lease,
    layer: &DiffId,
    listed: &Descriptor,
    wish: Wish<'_>,
) -> Result<Option<Descriptor>, StoreError> {
    let Some(Kind::Layer(encoding)) = Kind::of(&listed.media_type).filter(|_| !wish.force) else { return Ok(None) };
    let uncompressed = listed.digest == layer.0;
    let here = if uncompressed { lease.uses_layer(store, layer)? } else { lease.uses_blob(store, &listed.digest)? };
    Ok((!here).then(|| as_listed(listed, wish.family, encoding)))
}

/// The descriptor of a layer's blob that stays as it is, in a manifest of this family.
fn as_listed(listed: &Descriptor, family: Family, encoding: Encoding) -> Descriptor {
    let mut descriptor = Descriptor::new(family.layer(encoding), listed.digest, listed.size);
    descriptor.annotations.clone_from(&listed.annotations);
    descriptor
}

/// The blob that this encoder made of the layer, if it is here; it stays as long as the command runs.
pub(super) fn known_compressed(
    store: &Store,
    lease: &Lease,
    layer: &DiffId,
    compression: Compression,
) -> Result<Option<KnownBlob>, StoreError> {
    let name = compression.encoder();
    for blob in store.layer_blobs(layer)?.into_iter().filter(|blob| blob.encoder.as_deref() == Some(name.as_str())) {
        if lease.uses_blob(store, &blob.digest)? {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

/// The compressed blob of a layer: the one that is known, or a new one.
fn compressed(
    store: &Store,
    lease: &Lease,
    layer: &DiffId,
    compression: Compression,
    encoding: Encoding,
    gently: Option<&Arc<AtomicBool>>,
) -> Result<KnownBlob, OutputError> {
    if let Some(blob) = known_compressed(store, lease, layer, compression)? {
        return Ok(blob);
    }
    let failed = |source| OutputError::Compress { layer: *layer, source };
    let encoder = Encoder::new(store.blob_writer(lease)?, compression);
    let mut encoder = match gently {
        Some(gently) => encoder.gently(Arc::clone(gently)),
        None => encoder,
    };
    match store.own_tar(layer, lease) {
        Some(tar) => {
            let plain = File::open(&tar).map_err(OutputError::io("open", &tar))?;
            io::copy(&mut BufReader::with_capacity(1 << 20, plain), &mut lease.heeding(&mut encoder))
                .map_err(failed)?;
        }
        None => store.write_tar(layer, &mut lease.heeding(&mut encoder))?,
    }
    let (digest, size) = encoder.finish().map_err(failed)?.commit()?;
    let media_type = Family::Oci.layer(encoding).to_string();
    let blob = KnownBlob { media_type, digest, size, encoder: Some(compression.encoder()) };
    store.add_layer_blob(layer, blob.clone())?;
    Ok(blob)
}
