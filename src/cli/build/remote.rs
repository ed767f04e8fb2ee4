//! The images of registries that a build uses, and those of the store whose layers never came.
//!
//! In: references, as FROM and `COPY --from` name them; later, layers that a step must read. Out: their documents; their
//! layers in the store. What always holds: nothing is asked before it is needed; what a tag led to is remembered, so that
//! the next build need not ask; a layer that nobody reads does not come; threads are joined before a method returns.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::anyhow;

use crate::cli::args::{BuildArgs, Pull};
use crate::cli::cache_spec::CachePlace;
use crate::cli::network;
use crate::cli::render::Reporter;
use crate::cli::settings::Settings;
use crate::digest::{DiffId, Digest};
use crate::event::{Event, EventSink};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::registry::pull::{Quiet, RemoteImage};
use crate::registry::{Insecure, Registries, RegistryError, Say};
use crate::store::arrive::{Expected, arrived};
use crate::store::lease::Lease;
use crate::store::load::links;
use crate::store::origins::Origin;
use crate::store::{Store, base};
use crate::sys::cancel::Cancel;

/// Registries, and what was found in them.
pub(super) struct Remotes<'a> {
    args: &'a BuildArgs,
    settings: &'a Settings,
    store: &'a Store,
    lease: &'a Lease,
    cancel: &'a Cancel,
    reporter: &'a Reporter,
    registries: OnceLock<Registries>,
    images: Mutex<Vec<Source>>,
    /// One image at a time, its layers several at once.
    bringing: Mutex<()>,
}

/// An image, and the repository that has its layers; `None`: each is where it was seen.
#[derive(Clone)]
struct Source {
    image: Arc<BaseImage>,
    from: Option<Reference>,
}

impl<'a> Remotes<'a> {
    pub(super) fn new(
        args: &'a BuildArgs,
        settings: &'a Settings,
        store: &'a Store,
        lease: &'a Lease,
        cancel: &'a Cancel,
        reporter: &'a Reporter,
    ) -> Self {
        let (registries, images, bringing) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Self { args, settings, store, lease, cancel, reporter, registries, images, bringing }
    }

    /// The registries, as they are set up.
    pub(super) fn registries(&self) -> anyhow::Result<&Registries> {
        if let Some(registries) = self.registries.get() {
            return Ok(registries);
        }
        let reporter = self.reporter.clone();
        let say = Say::new(move |line| reporter.event(Event::Note(line)));
        let (insecure, offline) = (insecure(self.args), self.args.offline);
        let registries = network::registries(self.settings, insecure, offline, Some(self.cancel), say)?;
        Ok(self.registries.get_or_init(|| registries))
    }

    /// The image without the network: pinned by a digest, or by what its tag led to before. `None` where that takes
    /// a question.
    pub(super) fn known(&self, reference: &Reference, platform: &Platform) -> anyhow::Result<Option<Arc<BaseImage>>> {
        let top = match reference.digest() {
            Some(digest) => Some(digest),
            None if matches!(self.args.pull, Pull::Always) => None,
            None => self.store.remembered_base(&reference.to_string())?,
        };
        let Some(top) = top else { return Ok(None) };
        if !self.lease.uses_blob(self.store, &top)? {
            return Ok(None);
        }
        let offline = Registries::offline();
        match offline.image(self.store, self.lease, reference, platform, Some(top)) {
            Ok(image) => self.add(image).map(Some),
            Err(RegistryError::Offline { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The image, as the registry has it now.
    pub(super) fn ask(&self, reference: &Reference, platform: &Platform) -> anyhow::Result<Arc<BaseImage>> {
        let registries = self.registries()?;
        let top: Option<Digest> = match reference.digest() {
            Some(digest) => Some(digest),
            None if self.store.remembered_base(&reference.to_string())?.is_some() => {
                Some(registries.digest(reference)?)
            }
            None => None,
        };
        let image = registries.image(self.store, self.lease, reference, platform, top)?;
        if reference.digest().is_none() {
            self.store.remember_base(&reference.to_string(), &image.top)?;
        }
        self.add(image)
    }

    fn add(&self, remote: RemoteImage) -> anyhow::Result<Arc<BaseImage>> {
        let shared = self.lease.shared()?;
        base::pin(self.lease, &remote.image)?;
        drop(shared);
        let image = Arc::new(remote.image);
        self.note(Source { image: Arc::clone(&image), from: Some(remote.reference) });
        Ok(image)
    }

    /// Takes note of an image of the store, which is pinned: layers of it may be where they were seen.
    pub(super) fn add_stored(&self, image: &Arc<BaseImage>) {
        self.note(Source { image: Arc::clone(image), from: None });
    }

    fn note(&self, source: Source) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// The image that has this layer: one of a registry before one of the store.
    fn having(&self, layer: &DiffId) -> Option<Source> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |source: &&Source| source.image.config.rootfs.diff_ids.contains(layer);
        images.iter().filter(has).max_by_key(|source| source.from.is_some()).cloned()
    }

    /// The repository that has a layer which is not here, where it is that of a base.
    pub(super) fn elsewhere(&self, layer: &DiffId) -> Option<Reference> {
        self.having(layer)?.from
    }

    /// Brings the image that has this layer, unless the layer is here; `false` where no image has it.
    pub(super) fn bring(&self, layer: &DiffId, events: &dyn EventSink) -> anyhow::Result<bool> {
        let _one = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.has_layer(layer) {
            return Ok(true);
        }
        let Some(source) = self.having(layer) else { return Ok(false) };
        self.bring_image(&source, events).map(|()| true)
    }

    /// Brings what is not here of a base that is to be kept: all blobs that its manifest lists. (The base is pinned.)
    pub(super) fn complete(&self, base: &BaseImage, events: &dyn EventSink) -> anyhow::Result<()> {
        let Some(source) = self.source(base) else {
            // An image of the store has all its layers, unless one was damaged and had to go.
            let mut gone = base.config.rootfs.diff_ids.iter().filter(|layer| !self.store.has_layer(layer));
            return gone.next().map_or(Ok(()), |layer| {
                Err(self.store.missing(format!("the layer {layer} of the base {}", base.name)).into())
            });
        };
        let layers = base.layers.iter().zip(&base.config.rootfs.diff_ids);
        for (layer, diff_id) in layers {
            let here = match &source.from {
                None => !self.store.lacks(diff_id, &layer.digest),
                Some(_) => {
                    let expected = Expected { blob: Some((layer.digest, layer.size)), diff_id: *diff_id };
                    arrived(self.store, self.lease, &expected)?.is_some()
                }
            };
            if !here {
                return self.bring_image(&source, events);
            }
        }
        Ok(())
    }

    /// Writes down where the layers of a base are that are not here: an image that has them is kept without them.
    pub(super) fn expect(&self, base: &BaseImage) -> anyhow::Result<()> {
        let Some(Source { image, from: Some(from) }) = self.source(base) else { return Ok(()) };
        for absent in self.store.absent_layers(&image)? {
            let repository = from.full_name();
            self.store.expect_layer(&absent.diff_id, Origin { blob: absent.blob.digest, repository })?;
        }
        Ok(())
    }

    /// Refuses a base that is no image. Its layers are checked as they come, and may be here from a time when it was refused.
    pub(super) fn check(&self, base: &BaseImage) -> anyhow::Result<()> {
        let Some(Source { image, from: Some(from) }) = self.source(base) else { return Ok(()) };
        let layers = &image.config.rootfs.diff_ids;
        let known = image.manifest.as_ref().map(|manifest| self.store.knows_content(&manifest.digest)).transpose()?;
        if known == Some(true) || !layers.iter().all(|layer| self.store.has_layer(layer)) {
            return Ok(());
        }
        links(self.store, layers)?
            .map_err(|(layer, why)| anyhow!("cannot use {}: the layer {layer}: {why}", from.familiar()))
    }

    fn source(&self, base: &BaseImage) -> Option<Source> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.iter().find(|source| source.image.manifest == base.manifest).cloned()
    }

    fn bring_image(&self, source: &Source, events: &dyn EventSink) -> anyhow::Result<()> {
        let name =
            || Reference::parse(&source.image.name).map_or_else(|_| source.image.name.clone(), |name| name.familiar());
        let label = format!("[internal] pull {}", source.from.as_ref().map_or_else(name, Reference::familiar));
        events.event(Event::Began(&label));
        let began = Instant::now();
        self.registries()?.bring(self.store, self.lease, &source.image, source.from.as_ref(), &Quiet)?;
        events.event(Event::Ended(&label, began.elapsed()));
        // Of an image of the store it is known now what it holds.
        let stored = source.image.manifest.as_ref().filter(|_| source.from.is_none());
        let record = stored.map(|manifest| self.store.image_by_manifest(&manifest.digest)).transpose()?.flatten();
        Ok(record.map_or(Ok(()), |record| base::refresh(self.store, &record))?)
    }
}

/// The registries that an output or a cache has allowed not to be secure: of an output those of the names that are its own or
/// everybody's.
fn insecure(args: &BuildArgs) -> Insecure {
    let outputs = args.outputs.iter().filter(|output| output.insecure && output.push);
    let names = outputs.flat_map(|output| output.names.iter().chain(&args.tags));
    let names = names.filter_map(|name| Reference::parse(name).ok());
    let caches = args.cache_from.iter().chain(&args.cache_to).filter(|cache| cache.form.insecure);
    let places = caches.filter_map(|cache| match &cache.place {
        CachePlace::Registry(reference) => Some(reference.clone()),
        CachePlace::Local(_) => None,
    });
    let by = "registry.insecure=true of that output or cache, or by skip_verify = true in its hosts.toml";
    Insecure { hosts: names.chain(places).map(|name| name.registry().to_owned()).collect(), by }
}
