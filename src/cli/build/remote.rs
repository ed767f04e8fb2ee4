//! The images of registries that a build uses.
//!
//! In: references, as FROM and `COPY --from` name them; later, layers that a step must read. Out: their documents; their
//! layers in the store. What always holds: nothing is asked before it is needed; what a tag led to is remembered, so that
//! the next build need not ask; a layer that nobody reads does not come; threads are joined before a method returns.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::cli::args::{BuildArgs, Pull};
use crate::cli::network;
use crate::cli::settings::Settings;
use crate::digest::{DiffId, Digest};
use crate::event::{Event, EventSink};
use crate::image::manifest::Descriptor;
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::registry::pull::{Quiet, RemoteImage};
use crate::registry::{Registries, RegistryError};
use crate::store::arrive::{Expected, arrived};
use crate::store::lease::Lease;
use crate::store::{Store, base};
use crate::sys::cancel::Cancel;

/// Registries, and what was found in them.
pub(super) struct Remotes<'a> {
    args: &'a BuildArgs,
    settings: &'a Settings,
    store: &'a Store,
    lease: &'a Lease,
    cancel: &'a Cancel,
    registries: OnceLock<Registries>,
    images: Mutex<Vec<Arc<RemoteImage>>>,
    /// One image at a time, its layers several at once.
    bringing: Mutex<()>,
}

impl<'a> Remotes<'a> {
    pub(super) fn new(
        args: &'a BuildArgs,
        settings: &'a Settings,
        store: &'a Store,
        lease: &'a Lease,
        cancel: &'a Cancel,
    ) -> Self {
        let (registries, images, bringing) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Self { args, settings, store, lease, cancel, registries, images, bringing }
    }

    /// The registries, as they are set up.
    pub(super) fn registries(&self) -> anyhow::Result<&Registries> {
        if let Some(registries) = self.registries.get() {
            return Ok(registries);
        }
        let caches = self.args.cache_from.iter().chain(&self.args.cache_to).map(|cache| &cache.form);
        let insecure = self.args.outputs.iter().chain(caches).any(|output| output.insecure);
        let offline = self.args.offline;
        let registries = network::registries(self.settings, insecure, offline, Some(self.cancel))?;
        Ok(self.registries.get_or_init(|| registries))
    }

    /// The image without the network: pinned by a digest, or by what its tag led to before. `None` where that takes
    /// a question.
    pub(super) fn known(&self, reference: &Reference, platform: &Platform) -> anyhow::Result<Option<Arc<RemoteImage>>> {
        let top = match reference.digest() {
            Some(digest) => Some(digest),
            None if matches!(self.args.pull, Pull::Always) => None,
            None => self.store.remembered_base(&reference.to_string())?,
        };
        let Some(top) = top.filter(|top| self.store.has_blob(top)) else { return Ok(None) };
        let offline = Registries::offline();
        match offline.image(self.store, self.lease, reference, platform, Some(top)) {
            Ok(image) => self.add(image).map(Some),
            Err(RegistryError::Offline { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The image, as the registry has it now.
    pub(super) fn ask(&self, reference: &Reference, platform: &Platform) -> anyhow::Result<Arc<RemoteImage>> {
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

    fn add(&self, image: RemoteImage) -> anyhow::Result<Arc<RemoteImage>> {
        let shared = self.lease.shared()?;
        base::pin(self.lease, &image.image)?;
        drop(shared);
        let image = Arc::new(image);
        self.images.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&image));
        Ok(image)
    }

    fn having(&self, layer: &DiffId) -> Option<Arc<RemoteImage>> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.iter().find(|remote| remote.image.config.rootfs.diff_ids.contains(layer)).cloned()
    }

    /// The repository that has a layer which is not here.
    pub(super) fn elsewhere(&self, layer: &DiffId) -> Option<Reference> {
        self.having(layer).map(|remote| remote.reference.clone())
    }

    /// Brings the image that has this layer, unless the layer is here; `false` where no image has it.
    pub(super) fn bring(&self, layer: &DiffId, events: &dyn EventSink) -> anyhow::Result<bool> {
        let _one = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.has_layer(layer) {
            return Ok(true);
        }
        let Some(remote) = self.having(layer) else { return Ok(false) };
        self.bring_image(&remote, events).map(|()| true)
    }

    /// Brings what is not here of a base that is to be kept: all blobs that its manifest lists.
    pub(super) fn complete(&self, base: &BaseImage, events: &dyn EventSink) -> anyhow::Result<()> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(remote) = images.iter().find(|remote| remote.image.manifest == base.manifest) else { return Ok(()) };
        let layers = base.layers.iter().zip(&base.config.rootfs.diff_ids);
        let here = |(layer, diff_id): (&Descriptor, &DiffId)| {
            arrived(self.store, self.lease, &Expected { blob: Some((layer.digest, layer.size)), diff_id: *diff_id })
        };
        for layer in layers {
            if here(layer)?.is_none() {
                return self.bring_image(remote, events);
            }
        }
        Ok(())
    }

    fn bring_image(&self, remote: &RemoteImage, events: &dyn EventSink) -> anyhow::Result<()> {
        let label = format!("[internal] pull {}", remote.reference.familiar());
        events.event(Event::Began(&label));
        let began = Instant::now();
        self.registries()?.bring(self.store, self.lease, remote, &Quiet)?;
        events.event(Event::Ended(&label, began.elapsed()));
        Ok(())
    }
}
