//! Images of the store as bases of builds, and the other way round: records of images that were brought in.
//!
//! In: an [`ImageRecord`], or an image whose layers are in the store. Out: a [`BaseImage`], or a record. What always
//! holds: only manifest and config are read for a base, never a layer.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::gc::Needed;
use super::images::ImageRecord;
use super::lease::Lease;
use super::{Store, StoreError};
use crate::digest::{ChainId, ContentDigest, DiffId, Digest, ImageId};
use crate::image::assemble::{image_content_digest, index_content_digest};
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::{Descriptor, Document, Family, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::plan::BaseImage;
use crate::sys::process;

/// The image that a record stands for: of several platforms the one for this machine, else the first.
pub fn base_image(store: &Store, record: &ImageRecord) -> Result<BaseImage, StoreError> {
    let mut images = base_images(store, record)?;
    let here = Platform::of_kernel(&process::machine());
    let best = here.best(images.iter().map(|image| &image.platform)).unwrap_or(0);
    Ok(images.swap_remove(best))
}

/// All images that a record stands for, in order: one, or one for each platform of an index. There is at least one.
pub fn base_images(store: &Store, record: &ImageRecord) -> Result<Vec<BaseImage>, StoreError> {
    let bytes = read(store, &record.manifest, MAX_MANIFEST_SIZE)?;
    let damaged = |why: String| store.damaged(&store.blob_path(&record.manifest), why);
    let name = record.names.first().cloned().unwrap_or_else(|| record.id.to_string());
    match Document::parse(&bytes).map_err(|error| damaged(error.to_string()))? {
        Document::Manifest(manifest) => {
            let descriptor = Descriptor::new(record.media_type.as_str().into(), record.manifest, bytes.len() as u64);
            Ok(vec![image_of(store, descriptor, manifest, name)?])
        }
        Document::Index(index) => {
            let images = index.images().map(|entry| entry_image(store, entry, name.clone()));
            let images = images.collect::<Result<Vec<_>, _>>()?;
            if images.is_empty() { Err(damaged("it is an index without images".to_owned())) } else { Ok(images) }
        }
    }
}

/// The image of an entry of an index.
fn entry_image(store: &Store, entry: &Descriptor, name: String) -> Result<BaseImage, StoreError> {
    let bytes = read(store, &entry.digest, MAX_MANIFEST_SIZE)?;
    let manifest =
        Manifest::parse(&bytes).map_err(|error| store.damaged(&store.blob_path(&entry.digest), error.to_string()))?;
    let mut image = image_of(store, entry.clone(), manifest, name)?;
    if let Some(platform) = &entry.platform {
        image.platform = Platform::from(platform).normalised();
    }
    Ok(image)
}

/// The image of a manifest that was read.
fn image_of(store: &Store, descriptor: Descriptor, manifest: Manifest, name: String) -> Result<BaseImage, StoreError> {
    let damaged = |digest, why: String| store.damaged(&store.blob_path(digest), why);
    let digest = manifest.config.digest;
    let config = read(store, &digest, MAX_CONFIG_SIZE)?;
    let config = ImageConfig::parse(&config).map_err(|error| damaged(&digest, error.to_string()))?;
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        return Err(damaged(&descriptor.digest, "it does not list as many layers as its config".to_owned()));
    }
    Ok(BaseImage {
        name,
        platform: config.platform(),
        config,
        image_id: ImageId(digest),
        manifest: Some(descriptor),
        layers: manifest.layers,
    })
}

/// Adds what an image needs to what must stay: of an index all its images. Of documents that are damaged or not here that
/// is what can be read.
pub(super) fn needed(store: &Store, record: &ImageRecord, all: &mut Needed) -> Result<(), StoreError> {
    all.blobs.insert(record.id.0);
    needed_by_document(store, &record.manifest, true, all)
}

fn needed_by_document(store: &Store, digest: &Digest, may_be_index: bool, all: &mut Needed) -> Result<(), StoreError> {
    all.blobs.insert(*digest);
    let Some(document) = document(store, digest, MAX_MANIFEST_SIZE)? else { return Ok(()) };
    match Document::parse(&document) {
        Ok(Document::Manifest(manifest)) => {
            all.blobs.insert(manifest.config.digest);
            all.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
            let config = document_of(store, &manifest.config.digest)?;
            let layers = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
            let mut chain = None;
            for layer in layers {
                let extended = ChainId::extend(chain.as_ref(), &layer);
                all.layers.insert(layer);
                all.chains.insert(extended);
                chain = Some(extended);
            }
            Ok(())
        }
        // An index in an index is no image that anyone can use.
        Ok(Document::Index(index)) if may_be_index => {
            index.manifests.iter().try_for_each(|entry| needed_by_document(store, &entry.digest, false, all))
        }
        _ => Ok(()),
    }
}

fn document_of(store: &Store, digest: &Digest) -> Result<Option<ImageConfig>, StoreError> {
    let bytes = document(store, digest, MAX_CONFIG_SIZE)?;
    Ok(bytes.and_then(|bytes| ImageConfig::parse(&bytes).ok()))
}

/// Reads a document. One that the disk does not give is noted like one that is damaged: else it would be in the way for good.
fn read(store: &Store, digest: &Digest, limit: usize) -> Result<Vec<u8>, StoreError> {
    let found = store.read_blob(digest, limit as u64);
    if let Err(StoreError::Io { source, .. }) = &found
        && source.raw_os_error() == Some(Errno::IO.raw_os_error())
    {
        drop(store.damaged(&store.blob_path(digest), source.to_string()));
    }
    found
}

/// A document, if it is here and whole.
fn document(store: &Store, digest: &Digest, limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
    match read(store, digest, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::Damaged { .. } | StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets the image's layers stay as long as the command runs. To be called while [`Lease::shared`] is held, which was
/// taken before the image was looked up.
pub fn pin(lease: &Lease, image: &BaseImage) -> Result<(), StoreError> {
    let layers = image.config.rootfs.diff_ids.iter().map(|layer| format!("layers/{}", layer.0.hex()));
    let blobs = image.layers.iter().map(|blob| blob.digest).chain([image.image_id.0]);
    let blobs = blobs.chain(image.manifest.iter().map(|manifest| manifest.digest));
    lease.uses(layers.chain(blobs.map(|blob| format!("blobs/sha256/{}", blob.hex()))))
}

/// As [`pin`], for all images of a record, and their index.
pub fn pin_record(store: &Store, lease: &Lease, record: &ImageRecord) -> Result<Vec<BaseImage>, StoreError> {
    lease.uses([format!("blobs/sha256/{}", record.manifest.hex())])?;
    let images = base_images(store, record)?;
    images.iter().try_for_each(|image| pin(lease, image))?;
    Ok(images)
}

/// The record of an image whose documents are in the store; it has no names. What its layers hold is known only if all of
/// them are here too.
pub fn record(store: &Store, image: &BaseImage) -> Result<ImageRecord, StoreError> {
    let manifest = image.manifest.clone().ok_or_else(|| store.missing(format!("the manifest of {}", image.name)))?;
    let layers = &image.config.rootfs.diff_ids;
    let mut contents: Vec<ContentDigest> = Vec::new();
    for layer in layers {
        match store.layer_summary(layer) {
            Ok(summary) => contents.push(summary.content),
            Err(StoreError::Missing { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    let complete = contents.len() == layers.len();
    Ok(ImageRecord {
        id: image.image_id,
        names: Vec::new(),
        manifest: manifest.digest,
        media_type: manifest.media_type.to_string(),
        manifest_size: manifest.size,
        content: complete.then(|| image_content_digest(&image.config, &contents)),
        created: image.config.created.clone(),
        size: size(store, layers, &image.layers)?,
        platform: image.platform.to_string(),
    })
}

/// Docker's SIZE of these layers: the bytes of their files. Of a layer that is not here nobody knows them; it counts by the
/// size of its blob.
pub fn size(store: &Store, layers: &[DiffId], blobs: &[Descriptor]) -> Result<u64, StoreError> {
    layers.iter().zip(blobs).map(|(layer, blob)| layer_size(store, layer, blob)).sum()
}

/// The same of one layer.
pub fn layer_size(store: &Store, layer: &DiffId, blob: &Descriptor) -> Result<u64, StoreError> {
    match store.layer_summary(layer) {
        Ok(summary) => Ok(summary.files_size),
        Err(StoreError::Missing { .. }) => Ok(blob.size),
        Err(error) => Err(error),
    }
}

/// Writes down what is known of an image now that layers of it came which were not here when it was made.
pub fn refresh(store: &Store, known: &ImageRecord) -> Result<(), StoreError> {
    let images = base_images(store, known)?;
    let mut records = images
        .iter()
        .map(|image| Ok((image.platform.clone(), record(store, image)?)))
        .collect::<Result<Vec<_>, StoreError>>()?;
    let found = if known.id.0 == known.manifest {
        let index = Descriptor::new(known.media_type.as_str().into(), known.manifest, known.manifest_size);
        let all = images.iter().map(|image| (image.config.rootfs.diff_ids.as_slice(), image.layers.as_slice()));
        index_record(&index, &records, size_of_all(store, all)?)
    } else {
        // Proof: an image that is no index is one.
        records.swap_remove(0).1
    };
    store.refresh_image(&found).map(drop)
}

/// The size of several images: of layers that more than one has, once.
pub fn size_of_all<'a>(
    store: &Store,
    images: impl IntoIterator<Item = (&'a [DiffId], &'a [Descriptor])>,
) -> Result<u64, StoreError> {
    let layers = images.into_iter().flat_map(|(layers, blobs)| layers.iter().zip(blobs));
    let layers: BTreeMap<&DiffId, &Descriptor> = layers.collect();
    layers.into_iter().map(|(layer, blob)| layer_size(store, layer, blob)).sum()
}

/// The record of an index over images: `records` are theirs, in order, `size` is that of all. It has no names.
pub fn index_record(index: &Descriptor, records: &[(Platform, ImageRecord)], size: u64) -> ImageRecord {
    let platforms: Vec<String> = records.iter().map(|(platform, _)| platform.to_string()).collect();
    ImageRecord {
        id: ImageId(index.digest),
        names: Vec::new(),
        manifest: index.digest,
        media_type: index.media_type.to_string(),
        manifest_size: index.size,
        content: index_content_digest(records.iter().map(|(platform, record)| (platform.clone(), record.content))),
        // The same format in all, so that the last in the alphabet is the last in time.
        created: records.iter().filter_map(|(_, record)| record.created.clone()).max(),
        size,
        platform: platforms.join(","),
    }
}

/// Puts config and a new manifest of an image in, whose layers are in the store.
pub(super) fn put_image(
    store: &Store,
    lease: &Lease,
    family: Family,
    config_bytes: &[u8],
    config: ImageConfig,
    layers: Vec<Descriptor>,
    name: &str,
) -> Result<BaseImage, StoreError> {
    let digest = store.put_blob(lease, config_bytes)?;
    let manifest = Manifest::new(family, Descriptor::new(family.config(), digest, config_bytes.len() as u64), layers);
    let bytes = manifest.to_bytes();
    let descriptor = Descriptor::new(family.manifest(), store.put_blob(lease, &bytes)?, bytes.len() as u64);
    Ok(BaseImage {
        name: name.to_owned(),
        platform: config.platform(),
        config,
        image_id: ImageId(digest),
        manifest: Some(descriptor),
        layers: manifest.layers,
    })
}

/// Makes durable what was made under the lease, or by a command that has not come to that yet, as the image may be made of
/// it; then lets the image have its names.
pub fn keep(store: &Store, lease: &Lease, record: &ImageRecord) -> Result<bool, StoreError> {
    if !lease.is_durable() || store.others_made(lease)? {
        lease.sync()?;
    }
    store.tag(record)
}
