//! `type=registry`: an image into a registry.
//!
//! In: an image, the names that it gets there, a wish about its layers. Out: the descriptor of the manifest. What always
//! holds: layers are compressed and sent several at once, each as soon as it can be and once to each repository; one that
//! never came here is mounted or passes through; an image from outside that is not to be changed keeps the bytes of its
//! manifest; the manifest comes last.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::blobs::{LayerBlob, Source, Wish, absent_blob, known_compressed, layer_blob};
use super::{OutputError, OutputImage, check_layers};
use crate::digest::{DiffId, Digest};
use crate::image::manifest::{Descriptor, Encoding, Family, Kind, Manifest};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::registry::pull::Transfers;
use crate::registry::push::{BlobSource, Push};
use crate::registry::{AT_ONCE, Registries, RegistryError};
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::{Store, StoreError};
use crate::sys::threads::at_once;

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
    /// Where a layer is that never came here, beside what the store knows of it.
    pub elsewhere: &'a (dyn Fn(&DiffId) -> Option<Reference> + Sync),
    /// What is on its way already, or there.
    pub layers: &'a Layers,
    /// Is told of layers on their way.
    pub listener: &'a dyn Transfers,
}

impl Target<'_> {
    /// The names, by registry and repository.
    fn repositories(&self) -> BTreeMap<(&str, &str), Vec<&Reference>> {
        let mut repositories: BTreeMap<(&str, &str), Vec<&Reference>> = BTreeMap::new();
        for name in self.names {
            repositories.entry((name.registry(), name.repository())).or_default().push(name);
        }
        repositories
    }

    /// Sends a manifest or an index whose parts are there, under its names or by its digest alone.
    fn name(
        &self,
        push: &Push<'_>,
        names: &[&Reference],
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<(), OutputError> {
        if self.by_digest {
            push.manifest(None, descriptor, bytes)?;
        }
        for name in names.iter().filter(|_| !self.by_digest) {
            push.manifest(name.tag(), descriptor, bytes)?;
        }
        Ok(())
    }

    fn wish(&self, usual: Family) -> Wish<'_> {
        Wish {
            compression: self.compression.unwrap_or(Compression::GZIP),
            force: self.force,
            family: self.family.unwrap_or(usual),
            gently: None,
        }
    }
}

/// Pushes an index whose images are there.
pub fn push_index(target: &Target<'_>, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), OutputError> {
    for names in target.repositories().values() {
        // Proof: an entry is made with the first of its names.
        let push = target.registries.push(names[0], target.listener)?;
        target.name(&push, names, descriptor, bytes)?;
    }
    Ok(())
}

/// Whether file trees must be read to push the image.
pub fn reads_trees(
    store: &Store,
    lease: &Lease,
    image: &OutputImage,
    compression: Option<Compression>,
    force: bool,
) -> Result<bool, StoreError> {
    for (diff_id, listed) in image.diff_ids.iter().zip(&image.manifest.layers) {
        let new = listed.digest == diff_id.0 || force || !lease.uses_blob(store, &listed.digest)?;
        let compression = compression.unwrap_or(Compression::GZIP);
        if new && store.needs_tree_ids(diff_id)? && known_compressed(store, lease, diff_id, compression)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Layers that are on their way to registries, or there. Each is made ready once, and goes once to each repository: who
/// comes second waits for the first.
pub struct Layers {
    known: Mutex<Vec<(LayerKey, Arc<Mutex<LayerState>>)>>,
    /// Held while one is made ready ahead of its image: one at a time.
    ahead: Mutex<()>,
    /// What is made ready ahead of its image takes half of the processors.
    gently: Arc<AtomicBool>,
}

impl Default for Layers {
    fn default() -> Self {
        Self { known: Mutex::default(), ahead: Mutex::default(), gently: Arc::new(AtomicBool::new(true)) }
    }
}

/// A layer in the form that is sent: of two manifests that list it differently there are two.
type LayerKey = (DiffId, Digest, Family);

#[derive(Default)]
struct LayerState {
    ready: Option<Ready>,
    /// Registry and repository.
    there: Vec<String>,
}

impl Layers {
    /// From now on nobody else needs the processors.
    pub fn hurry(&self) {
        self.gently.store(false, Ordering::Relaxed);
    }

    fn state(&self, key: LayerKey) -> Arc<Mutex<LayerState>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, state)) = known.iter().find(|(known, _)| *known == key) {
            return Arc::clone(state);
        }
        let state = Arc::default();
        known.push((key, Arc::clone(&state)));
        state
    }
}

/// Sends a layer to all repositories ahead of its image, with half of the processors at most: `listed` is how the image's
/// manifest, of this family unless the target wants another, will list it.
pub fn send_ahead(
    target: &Target<'_>,
    store: &Store,
    lease: &Lease,
    diff_id: &DiffId,
    listed: &Descriptor,
    family: Family,
) -> Result<(), OutputError> {
    let wish = Wish { gently: Some(&target.layers.gently), ..target.wish(family) };
    for names in target.repositories().values() {
        Sending::new(target, names, store, lease, wish)?.layer(diff_id, listed)?;
    }
    Ok(())
}

/// A layer that is ready to go.
struct Ready {
    descriptor: Descriptor,
    from: From,
}

enum From {
    Blob,
    Tar,
    /// One of these repositories: there is at least one.
    Elsewhere(Vec<Reference>),
}

/// Pushes an image.
pub fn push(target: &Target<'_>, image: &OutputImage, store: &Store, lease: &Lease) -> Result<Descriptor, OutputError> {
    check_layers(image)?;
    let wish = target.wish(image.manifest.family());
    let config = Descriptor::of(wish.family.config(), &image.config);
    let layers: Vec<(&DiffId, &Descriptor)> = image.diff_ids.iter().zip(&image.manifest.layers).collect();
    let mut descriptor = None;
    for names in target.repositories().values() {
        let sending = Sending::new(target, names, store, lease, wish)?;
        let listed = at_once(AT_ONCE, &layers, |(diff_id, listed)| sending.layer(diff_id, listed))?;
        sending.push.blob(&config, &BlobSource::Bytes(&image.config), &[])?;
        let (bytes, as_descriptor) = manifest(target, image, wish.family, config.clone(), listed);
        target.name(&sending.push, names, &as_descriptor, &bytes)?;
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

/// Layers on their way to one repository.
struct Sending<'a> {
    target: &'a Target<'a>,
    store: &'a Store,
    lease: &'a Lease,
    wish: Wish<'a>,
    push: Push<'a>,
    /// Registry and repository.
    place: String,
}

impl<'a> Sending<'a> {
    /// To the repository of these names.
    fn new(
        target: &'a Target<'a>,
        names: &[&Reference],
        store: &'a Store,
        lease: &'a Lease,
        wish: Wish<'a>,
    ) -> Result<Self, OutputError> {
        // Proof: an entry of `Target::repositories` is made with the first of its names.
        let to = names[0];
        let push = target.registries.push(to, target.listener)?;
        Ok(Self { target, store, lease, wish, push, place: to.full_name() })
    }

    /// Sees to it that a layer is there. How a manifest lists it.
    fn layer(&self, diff_id: &DiffId, listed: &Descriptor) -> Result<Descriptor, OutputError> {
        let layers = self.target.layers;
        let state = layers.state((*diff_id, listed.digest, self.wish.family));
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let LayerState { ready, there } = &mut *state;
        let ready = match ready {
            Some(ready) => ready,
            None => {
                let ahead = || layers.ahead.lock().unwrap_or_else(PoisonError::into_inner);
                let _one = self.wish.gently.map(|_| ahead());
                ready.insert(self.prepare(diff_id, listed)?)
            }
        };
        if !there.contains(&self.place) {
            self.send(diff_id, ready)?;
            there.push(self.place.clone());
        }
        Ok(ready.descriptor.clone())
    }

    fn prepare(&self, diff_id: &DiffId, listed: &Descriptor) -> Result<Ready, OutputError> {
        let Self { target, store, lease, wish, .. } = *self;
        let absent = absent_blob(store, lease, diff_id, listed, wish)?;
        let gone = absent.is_some();
        if let Some(descriptor) = absent {
            let mut from = store.origins_of_blob(diff_id, &listed.digest)?;
            if let Some(base) = (target.elsewhere)(diff_id) {
                from.insert(0, base);
            }
            if !from.is_empty() {
                return Ok(Ready { descriptor, from: From::Elsewhere(from) });
            }
        }
        let packed = matches!(Kind::of(&listed.media_type), Some(Kind::Layer(Encoding::Gzip | Encoding::Zstd)));
        // A blob that is gone, or an uncompressed one: the layer in another form will do.
        let uncompressed = Descriptor::new(wish.family.layer(Encoding::Tar), diff_id.0, listed.size);
        let listed = if gone || !packed { &uncompressed } else { listed };
        let LayerBlob { descriptor, source } = layer_blob(store, lease, diff_id, listed, wish)?;
        let from = match source {
            Source::Stored => From::Blob,
            Source::Tar(_) => From::Tar,
        };
        Ok(Ready { descriptor, from })
    }

    fn send(&self, diff_id: &DiffId, layer: &Ready) -> Result<(), OutputError> {
        let Self { store, lease, push, place, .. } = self;
        let blob = &layer.descriptor;
        let known = store.origins(diff_id)?.into_iter().rev();
        let origins: Vec<String> =
            known.filter(|origin| origin.blob == blob.digest).map(|origin| origin.repository).collect();
        match &layer.from {
            From::Blob => {
                let open = || Ok(Box::new(lease.heeding(store.open_listed_blob(blob)?)) as Box<dyn Read>);
                push.blob(blob, &BlobSource::Open(&open), &origins)?;
            }
            From::Tar => {
                let open =
                    || Ok(Box::new(lease.heeding(store.listed_tar(diff_id, blob.size, lease)?)) as Box<dyn Read>);
                push.blob(blob, &BlobSource::Open(&open), &origins)?;
            }
            From::Elsewhere(places) => pass_through(push, blob, places)?,
        }
        store.add_origin(diff_id, Origin { blob: blob.digest, repository: place.clone() })?;
        Ok(())
    }
}

/// Sends a blob that another repository has. Where a registry is not reached, its other repositories are not asked.
fn pass_through(push: &Push<'_>, blob: &Descriptor, places: &[Reference]) -> Result<(), OutputError> {
    let origins: Vec<String> = places.iter().map(Reference::full_name).collect();
    let (mut first, mut unreached) = (None, Vec::new());
    for from in places {
        if unreached.contains(&from.registry()) {
            continue;
        }
        match push.blob(blob, &BlobSource::Remote(from), &origins) {
            Ok(()) => return Ok(()),
            Err(error @ (RegistryError::Stopped | RegistryError::Store(_))) => return Err(error.into()),
            Err(error) => {
                if matches!(error, RegistryError::Http { .. }) {
                    unreached.push(from.registry());
                }
                first.get_or_insert(error);
            }
        }
    }
    // Proof: there is a place, and all failed.
    Err(first.unwrap_or(RegistryError::Stopped).into())
}
