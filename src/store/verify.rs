//! Whether an image of the store is what its digests say.
//!
//! In: an [`ImageRecord`]. Out: what is wrong, in words; nothing when all is right. What always holds: every byte that
//! belongs to the image is read and digested: its documents, the blobs of its layers, and the tar of each layer in
//! whichever form it is kept.

use std::io::{self, Read};

use super::base::base_image;
use super::images::ImageRecord;
use super::lease::Lease;
use super::{Store, StoreError};
use crate::digest::{ContentDigest, DiffId, Digest, HashingReader};
use crate::image::assemble::image_content_digest;
use crate::image::manifest::Descriptor;
use crate::layer::compress;
use crate::layer::scan::scan;

/// Checks the image. Problems are returned; an error is what kept it from looking.
pub fn verify(store: &Store, lease: &Lease, record: &ImageRecord) -> Result<Vec<String>, StoreError> {
    let mut problems = Vec::new();
    let image = match base_image(store, record) {
        Ok(image) => image,
        Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => return Ok(vec![error.to_string()]),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            return Ok(vec![source.to_string()]);
        }
        Err(error) => return Err(error),
    };
    if image.image_id != record.id {
        problems.push(format!("its config is {}, not {}", image.image_id, record.id));
    }
    if let Some(manifest) = image.manifest.as_ref().filter(|manifest| manifest.size != record.manifest_size) {
        problems.push(format!("its manifest has {} bytes, not {}", manifest.size, record.manifest_size));
    }
    let mut contents: Vec<ContentDigest> = Vec::new();
    for (layer, blob) in image.config.rootfs.diff_ids.iter().zip(&image.layers) {
        if blob.digest != layer.0 {
            problems.extend(blob_problem(store, layer, blob)?);
        }
        match layer_content(store, lease, layer)? {
            Ok(content) => contents.push(content),
            Err(problem) => problems.push(problem),
        }
    }
    if contents.len() == image.layers.len() {
        let content = image_content_digest(&image.config, &contents);
        if record.content.is_some_and(|known| known != content) {
            problems.push(format!("its content digest is {content}"));
        }
    }
    Ok(problems)
}

/// Reads a layer's blob, packed and unpacked.
fn blob_problem(store: &Store, layer: &DiffId, blob: &Descriptor) -> Result<Option<String>, StoreError> {
    let path = store.blob_path(&blob.digest);
    if !store.has_blob(&blob.digest) {
        return Ok(Some(format!("the blob {} of layer {layer} is not there", blob.digest)));
    }
    let file = std::fs::File::open(&path).map_err(StoreError::io("open", &path))?;
    let mut packed = HashingReader::new(file);
    let unpacked = compress::decompress(Box::new(&mut packed)).and_then(|mut plain| digest(&mut plain));
    // Bytes after the compressed stream belong to the blob too.
    io::copy(&mut packed, &mut io::sink()).map_err(StoreError::io("read", &path))?;
    let (_, found, size) = packed.finish();
    Ok(if (found, size) != (blob.digest, blob.size) {
        Some(format!("the blob {} of layer {layer} has {size} bytes with the digest {found}", blob.digest))
    } else {
        match unpacked {
            Ok(found) if found == layer.0 => None,
            Ok(found) => Some(format!("the blob {} does not hold layer {layer} but {found}", blob.digest)),
            Err(error) => Some(format!("the blob {} cannot be unpacked: {error}", blob.digest)),
        }
    })
}

fn digest(reader: &mut dyn Read) -> io::Result<Digest> {
    let mut reader = HashingReader::new(reader);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish().1)
}

/// Makes the layer's tar from the form that is there, indexes it anew and compares.
fn layer_content(store: &Store, lease: &Lease, layer: &DiffId) -> Result<Result<ContentDigest, String>, StoreError> {
    let tar = match store.tar_file(layer, lease) {
        Ok(tar) => tar,
        Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => return Ok(Err(error.to_string())),
        Err(StoreError::Io { source, path, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            return Ok(Err(format!("{}: {source}", path.display())));
        }
        Err(error) => return Err(error),
    };
    let index = match store.layer_index(layer) {
        Ok(Some(index)) => index,
        Ok(None) => return Ok(Err(format!("the index of layer {layer} is not there"))),
        Err(error @ StoreError::Damaged { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    Ok(match scan(tar) {
        Ok(found) if found.diff_id() != *layer => Err(format!("layer {layer} holds {}", found.diff_id())),
        Ok(found) if found.content() != index.content() => {
            Err(format!("the index of layer {layer} is not that of its tar"))
        }
        Ok(found) => Ok(found.content()),
        Err(error) => Err(format!("layer {layer} cannot be read: {error}")),
    })
}
