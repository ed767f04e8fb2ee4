//! `type=registry`: an image into a registry.
//!
//! In: an image, the names that it gets there, a wish about its layers. Out: the descriptor of the manifest. What always
//! holds: layers are compressed and sent several at once, each as soon as it can be; one that never came here is mounted
//! or passes through; an image from outside that is not to be changed keeps the bytes of its manifest; the manifest comes
//! last.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::blobs::{LayerBlob, Source, Wish, has_compressed, layer_blob};
use super::{OutputError, OutputImage};
use crate::digest::DiffId;
use crate::image::manifest::{Descriptor, Encoding, Family, Kind, Manifest};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::registry::Registries;
use crate::registry::pull::Transfers;
use crate::registry::push::{BlobSource, Push};
use crate::store::layers::Origin;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// Layers at once.
const AT_ONCE: usize = 4;

/// Where an image goes, and in what form.
pub struct Target<'a> {
    /// Registries.
    pub registries: &'a Registries,
    /// The names that it gets: at least one.
    pub names: &'a [Reference],
    /// It gets no tag: it is found by its digest alone.
    pub by_digest: bool,
    /// How new layers are compressed; `None`: gzip.
    pub compression: Option<Compression>,
    /// Layers of the base are compressed anew too.
    pub force: bool,
    /// Whose media types; `None`: those of the image.
    pub family: Option<Family>,
    /// The bytes of the manifest that the image came with, to be kept where nothing changes.
    pub manifest: Option<&'a [u8]>,
    /// Where a layer is that never came here.
    pub elsewhere: &'a (dyn Fn(&DiffId) -> Option<Reference> + Sync),
    /// Is told of layers on their way.
    pub listener: &'a dyn Transfers,
}

impl Target<'_> {
    fn wish(&self, image: &OutputImage) -> Wish {
        Wish {
            compression: self.compression.unwrap_or(Compression::GZIP),
            force: self.force,
            family: self.family.unwrap_or_else(|| image.manifest.family()),
        }
    }
}

/// Whether file trees must be read to push the image.
pub fn reads_trees(
    store: &Store,
    image: &OutputImage,
    compression: Option<Compression>,
    force: bool,
) -> Result<bool, StoreError> {
    for (diff_id, listed) in image.diff_ids.iter().zip(&image.manifest.layers) {
        let new = listed.digest == diff_id.0 || force || !store.has_blob(&listed.digest);
        let compression = compression.unwrap_or(Compression::GZIP);
        if new && store.needs_tree_ids(diff_id)? && !has_compressed(store, diff_id, compression)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A layer that is ready to go.
struct Ready {
    descriptor: Descriptor,
    from: From,
}

enum From {
    Blob,
    Tar,
    Elsewhere(Reference),
}

/// Pushes it.
pub fn push(target: &Target<'_>, image: &OutputImage, store: &Store, lease: &Lease) -> Result<Descriptor, OutputError> {
    let (diff_ids, layers) = (image.diff_ids.len(), image.manifest.layers.len());
    if diff_ids != layers {
        return Err(OutputError::Layers { diff_ids, layers });
    }
    let wish = target.wish(image);
    let mut repositories: BTreeMap<(&str, &str), Vec<&Reference>> = BTreeMap::new();
    for name in target.names {
        repositories.entry((name.registry(), name.repository())).or_default().push(name);
    }
    let ready: Vec<OnceLock<Ready>> = (0..layers).map(|_| OnceLock::new()).collect();
    let config = Descriptor::of(wish.family.config(), &image.config);
    let mut descriptor = None;
    for names in repositories.values() {
        // Proof: an entry is made with the first of its names.
        let first = names[0];
        let push = target.registries.push(first, target.listener)?;
        send_layers(target, image, store, lease, wish, &push, first, &ready)?;
        push.blob(&config, &BlobSource::Bytes(&image.config), &[])?;
        let listed = ready.iter().filter_map(|ready| Some(ready.get()?.descriptor.clone())).collect();
        let (bytes, as_descriptor) = manifest(target, image, wish.family, config.clone(), listed);
        if target.by_digest {
            push.manifest(None, &as_descriptor, &bytes)?;
        }
        for name in names.iter().filter(|_| !target.by_digest) {
            push.manifest(name.tag(), &as_descriptor, &bytes)?;
        }
        descriptor = Some(as_descriptor);
    }
    descriptor.ok_or(OutputError::NoName)
}

fn manifest(
    target: &Target<'_>,
    image: &OutputImage,
    family: Family,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> (Vec<u8>, Descriptor) {
    let same = |(one, other): (&Descriptor, &Descriptor)| {
        (one.digest, one.size, &one.media_type) == (other.digest, other.size, &other.media_type)
    };
    let unchanged = family == image.manifest.family() && layers.iter().zip(&image.manifest.layers).all(same);
    let bytes = match target.manifest.filter(|_| unchanged) {
        Some(bytes) => bytes.to_vec(),
        None => {
            let mut manifest = Manifest::new(family, config, layers);
            manifest.annotations.clone_from(&image.manifest.annotations);
            manifest.to_bytes()
        }
    };
    let media_type = image.manifest.media_type.clone().filter(|_| unchanged).unwrap_or_else(|| family.manifest());
    let descriptor = Descriptor::of(media_type, &bytes);
    (bytes, descriptor)
}

#[allow(clippy::too_many_arguments)]
fn send_layers(
    target: &Target<'_>,
    image: &OutputImage,
    store: &Store,
    lease: &Lease,
    wish: Wish,
    push: &Push<'_>,
    to: &Reference,
    ready: &[OnceLock<Ready>],
) -> Result<(), OutputError> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let one = |number: usize| -> Result<(), OutputError> {
        let (diff_id, listed) = (&image.diff_ids[number], &image.manifest.layers[number]);
        if ready[number].get().is_none() {
            let made = prepare(target, store, lease, diff_id, listed, wish)?;
            ready[number].get_or_init(|| made);
        }
        // A layer that is there twice goes once: the first.
        let first =
            (0..number).any(|other| (image.diff_ids[other], &image.manifest.layers[other]) == (*diff_id, listed));
        match ready[number].get() {
            Some(layer) if !first => send(store, lease, diff_id, layer, push, to),
            _ => Ok(()),
        }
    };
    let work = || {
        while next.load(Ordering::Relaxed) < ready.len() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= ready.len() {
                break;
            }
            if let Err(error) = one(number) {
                next.store(ready.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    // Joined here: who enters a user namespace later must be alone in the process.
    std::thread::scope(|scope| {
        for _ in 1..AT_ONCE.min(ready.len()) {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn prepare(
    target: &Target<'_>,
    store: &Store,
    lease: &Lease,
    diff_id: &DiffId,
    listed: &Descriptor,
    wish: Wish,
) -> Result<Ready, OutputError> {
    let packed = matches!(Kind::of(&listed.media_type), Some(Kind::Layer(Encoding::Gzip | Encoding::Zstd)));
    let absent = listed.digest != diff_id.0 && !wish.force && !store.has_blob(&listed.digest);
    if absent
        && let (Some(Kind::Layer(encoding)), Some(from)) = (Kind::of(&listed.media_type), (target.elsewhere)(diff_id))
    {
        let mut descriptor = Descriptor::new(wish.family.layer(encoding), listed.digest, listed.size);
        descriptor.annotations.clone_from(&listed.annotations);
        return Ok(Ready { descriptor, from: From::Elsewhere(from) });
    }
    // A blob that is gone, or an uncompressed one: the layer in another form will do.
    let uncompressed = Descriptor::new(wish.family.layer(Encoding::Tar), diff_id.0, listed.size);
    let listed = if absent || !packed { &uncompressed } else { listed };
    let LayerBlob { descriptor, source } = layer_blob(store, lease, diff_id, listed, wish)?;
    let from = match source {
        Source::Stored => From::Blob,
        Source::Tar(_) => From::Tar,
    };
    Ok(Ready { descriptor, from })
}

fn send(
    store: &Store,
    lease: &Lease,
    diff_id: &DiffId,
    layer: &Ready,
    push: &Push<'_>,
    to: &Reference,
) -> Result<(), OutputError> {
    let blob = &layer.descriptor;
    let name = |reference: &Reference| format!("{}/{}", reference.registry(), reference.repository());
    let known = store.origins(diff_id)?.into_iter().rev();
    let mut origins: Vec<String> =
        known.filter(|origin| origin.blob == blob.digest).map(|origin| origin.repository).collect();
    match &layer.from {
        From::Blob => {
            let open = || Ok(Box::new(lease.heeding(store.open_blob(&blob.digest)?)) as Box<dyn Read>);
            push.blob(blob, &BlobSource::Open(&open), &origins)?;
        }
        From::Tar => {
            let open = || Ok(Box::new(lease.heeding(store.tar_file(diff_id, lease)?)) as Box<dyn Read>);
            push.blob(blob, &BlobSource::Open(&open), &origins)?;
        }
        From::Elsewhere(from) => {
            origins.insert(0, name(from));
            push.blob(blob, &BlobSource::Remote(from), &origins)?;
        }
    }
    store.add_origin(diff_id, Origin { blob: blob.digest, repository: name(to) })?;
    Ok(())
}
