//! Layers of an image from registries into the store.
//!
//! In: an image whose documents are here, and perhaps the repository that it is of. Out: its layers in the store. What
//! always holds: what is here does not come again; several come at once, and the threads are joined; a blob that is cut off
//! goes on where it was; what comes is checked before it appears.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::blob::BlobStream;
use super::pull::{Transfer, Transfers, unwrap_io};
use super::{AT_ONCE, Registries, RegistryError};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::store::Store;
use crate::store::arrive::{ArrivalError, Expected, arrive, arrived};
use crate::store::lease::Lease;
use crate::store::load::links;
use crate::store::origins::Origin;
use crate::sys::threads::at_once;

impl Registries {
    /// Brings layers of an image that are not in the store: all from one repository, or, where none is given, each from where
    /// it was seen.
    pub fn bring(
        &self,
        store: &Store,
        lease: &Lease,
        image: &BaseImage,
        from: Option<&Reference>,
        listener: &dyn Transfers,
    ) -> Result<(), RegistryError> {
        let failed = AtomicBool::new(false);
        let bring = Bring { registries: self, store, lease, image, from, listener, failed: &failed };
        let mut wanted: Vec<(&Descriptor, Expected)> = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let expected = Expected { blob: Some((layer.digest, layer.size)), diff_id: *diff_id };
            if wanted.iter().any(|(_, known)| *known == expected) {
                continue;
            }
            // The blob itself, also where the layer is here in another form: manifests that list it are kept. What was made
            // here and is listed uncompressed has no blob.
            let made_here = from.is_none() && layer.digest == diff_id.0 && lease.uses_layer(store, diff_id)?;
            if made_here || arrived(store, lease, &expected)?.is_some() {
                listener.transfer(&layer.digest, Transfer::Exists);
            } else {
                wanted.push((layer, expected));
            }
        }
        // What another time brought may have been refused then.
        let known = || image.manifest.as_ref().map_or(Ok(false), |manifest| store.knows_content(&manifest.digest));
        if wanted.is_empty() && known()? {
            return Ok(());
        }
        let first = Mutex::new(None);
        let came = at_once(AT_ONCE, &wanted, |(layer, expected)| {
            bring.layer(layer, expected).map_err(|error| {
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                // Nobody waits for the others.
                failed.store(true, Ordering::Relaxed);
            })
        });
        if let (Err(()), Some(error)) = (came, first.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            return Err(error);
        }
        links(store, &image.config.rootfs.diff_ids)?
            .map_err(|(layer, why)| RegistryError::content(bring.what(), format!("the layer {layer}: {why}")))
    }
}

/// Layers on their way from registries.
struct Bring<'a> {
    registries: &'a Registries,
    store: &'a Store,
    lease: &'a Lease,
    image: &'a BaseImage,
    from: Option<&'a Reference>,
    listener: &'a dyn Transfers,
    /// One of them did not come.
    failed: &'a AtomicBool,
}

impl Bring<'_> {
    /// The image, as users call it.
    fn shown(&self) -> String {
        Reference::parse(&self.image.name).map_or_else(|_| self.image.name.clone(), |name| name.familiar())
    }

    fn what(&self) -> String {
        format!("pull {}", self.from.map_or_else(|| self.shown(), Reference::familiar))
    }

    fn layer(&self, layer: &Descriptor, expected: &Expected) -> Result<(), RegistryError> {
        if let Some(from) = self.from {
            return self.layer_from(from, layer, expected, &self.what());
        }
        let absent = |why: String| RegistryError::Absent { layer: expected.diff_id, image: self.shown(), why };
        let (mut reasons, mut unreached) = (Vec::new(), Vec::new());
        for from in self.store.origins_of_blob(&expected.diff_id, &layer.digest)? {
            if unreached.iter().any(|registry| registry == from.registry()) {
                continue;
            }
            let what = format!("fetch it from {}", from.familiar_name());
            match self.layer_from(&from, layer, expected, &what) {
                Ok(()) => return Ok(()),
                Err(error @ (RegistryError::Stopped | RegistryError::Store(_))) => return Err(error),
                Err(error) => {
                    if matches!(error, RegistryError::Http { .. } | RegistryError::Offline { .. }) {
                        unreached.push(from.registry().to_owned());
                    }
                    reasons.push(error.to_string());
                }
            }
        }
        if reasons.is_empty() && self.store.has_layer(&expected.diff_id) {
            // It is here in another form. Who needs the blob itself says so.
            return Ok(());
        }
        if reasons.is_empty() {
            return Err(absent("no registry is known to have it; pull or build the image again".to_owned()));
        }
        Err(absent(format!("{}; try again when that is mended, or pull or build the image again", reasons.join("; "))))
    }

    fn layer_from(
        &self,
        from: &Reference,
        layer: &Descriptor,
        expected: &Expected,
        what: &str,
    ) -> Result<(), RegistryError> {
        let (store, lease, listener) = (self.store, self.lease, self.listener);
        let registry = self.registries.registry(from.registry(), what)?;
        listener.transfer(&layer.digest, Transfer::Begins { size: layer.size });
        let mut stream = BlobStream::new(registry, from.repository(), layer, what, listener).until(self.failed);
        let fail = |why: String| RegistryError::content(what, format!("the layer {}: {why}", layer.digest));
        let came = loop {
            match arrive(store, lease, &mut lease.heeding(&mut stream), expected) {
                Ok(arrived) => break Ok(arrived),
                Err(error @ ArrivalError::Store(_)) => break Err(error),
                Err(_) if stream.begins_anew() => {}
                Err(error) => break Err(error),
            }
        };
        match came {
            Ok(_) => {
                let repository = from.full_name();
                store.add_origin(&expected.diff_id, Origin { blob: layer.digest, repository })?;
                listener.transfer(&layer.digest, Transfer::Done);
                Ok(())
            }
            Err(ArrivalError::Store(error)) => Err(error.into()),
            Err(ArrivalError::Read(error)) => Err(unwrap_io(error, what)),
            Err(ArrivalError::Digest(found)) => Err(fail(format!("what came has the digest {found}"))),
            Err(ArrivalError::DiffId(found)) => {
                Err(fail(format!("its diffID is {found}, the image's config says {}", expected.diff_id)))
            }
            Err(ArrivalError::Compression(format)) => {
                Err(fail(format!("it is compressed by {format}, which no image may use for its layers")))
            }
            // Most often it is damaged, which the digest at its end tells better.
            Err(ArrivalError::Scan(error)) => match io::copy(&mut stream, &mut io::sink()) {
                Err(error) => Err(unwrap_io(error, what)),
                Ok(_) => Err(fail(format!("{:#}", anyhow::Error::from(error)))),
            },
        }
    }
}
