//! Results of steps, put where other machines find them.
//!
//! In: results whose layers are in the store, or in another cache. Out: an artifact under each of their keys. What always
//! holds: what is there already is not written again, so of two builds that export the same step one does the work, and
//! either's artifact is right; what an artifact lists is there before it is; several steps go at once.

use std::io::{Read, Write as _};
use std::time::Duration;

use super::artifact::{Artifact, MAX_INDEX, StepResult};
use super::place::{Bytes, Kind};
use super::{Claim, Place, SharedCache, SharedError};
use crate::digest::CacheKey;
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::layer::compress::{Compression, Encoder};
use crate::output;
use crate::registry::{AT_ONCE, RegistryError};
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::{Store, StoreError};
use crate::sys::threads::at_once;

/// How often something is tried, and the wait after the first time.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// Where results go, and in what form.
pub struct Export<'a> {
    /// Where.
    pub place: Place<'a>,
    /// How layers are compressed that are in the store.
    pub compression: Compression,
    /// Layers that never came here are compressed so as well.
    pub force: bool,
    /// The store.
    pub store: &'a Store,
    /// The claim of this build on it.
    pub lease: &'a Lease,
    /// Where layers are that never came here.
    pub shared: Option<&'a SharedCache<'a>>,
}

/// What went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Steps that were written.
    pub written: usize,
    /// Steps that were there.
    pub there: usize,
}

/// Exports the results of steps.
pub fn export(export: &Export<'_>, steps: &[StepResult]) -> Result<Exported, SharedError> {
    export.place.make()?;
    let written = at_once(AT_ONCE, steps, |step| patiently(|| export.one(step)))?;
    let count = written.iter().filter(|written| **written).count();
    Ok(Exported { written: count, there: written.len() - count })
}

impl Export<'_> {
    /// Exports one step; whether there was anything to do.
    fn one(&self, step: &StepResult) -> Result<bool, SharedError> {
        let is_damaged = |key: &CacheKey| self.shared.is_some_and(|shared| shared.is_damaged(&self.place, key));
        let anew = step.keys.iter().any(is_damaged);
        let mut missing: Vec<&CacheKey> = Vec::new();
        for key in &step.keys {
            if is_damaged(key) || !self.has(key)? {
                missing.push(key);
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        let artifact = self.send_layer(step, anew)?;
        let [(config, config_descriptor), (manifest, descriptor)] = artifact.to_documents();
        self.place.put_blob(&config_descriptor, &Bytes::Here(&config), &[], anew)?;
        for key in missing {
            self.place.put(Kind::Step, &key.0, &descriptor, &manifest)?;
        }
        Ok(true)
    }

    fn has(&self, key: &CacheKey) -> Result<bool, SharedError> {
        if self.shared.is_some_and(|shared| shared.has_at(&self.place, key)) {
            return Ok(true);
        }
        self.place.has(Kind::Step, &key.0)
    }

    /// Sends the layer and its index; the artifact that lists them. `anew`: what is there may be damaged.
    fn send_layer(&self, step: &StepResult, anew: bool) -> Result<Artifact, SharedError> {
        let layer = &step.layer;
        if !self.store.has_layer(layer)
            && let Some(shared) = self.shared
        {
            match shared.claim(layer, &step.content) {
                Some(claim) if self.may_pass_on(shared, &claim, anew) => {
                    return self.pass_on(step, &shared.source(&claim).place, &claim, anew);
                }
                // What cannot be had is missed below.
                _ => drop(shared.bring(layer, &step.content)),
            }
        }
        let (store, lease) = (self.store, self.lease);
        let index = store.layer_index(layer)?.ok_or_else(|| store.missing(format!("the layer {layer}")))?;
        let listed = Descriptor::new(Family::Oci.layer(Encoding::Tar), layer.0, index.tar_size());
        let wish = (self.compression, false, Family::Oci);
        let made = output::compress(store, lease, std::slice::from_ref(layer), &[listed], wish)?;
        let blob = made.into_iter().next().ok_or_else(|| store.missing(format!("a blob of the layer {layer}")))?;
        let known = store.origins(layer)?.into_iter().rev().filter(|origin| origin.blob == blob.digest);
        let origins: Vec<String> = known.map(|origin| origin.repository).collect();
        let open = || -> Result<Box<dyn Read + '_>, StoreError> {
            if blob.digest == layer.0 {
                return Ok(Box::new(lease.heeding(store.listed_tar(layer, blob.size, lease)?)));
            }
            Ok(Box::new(lease.heeding(store.open_listed_blob(&blob)?)))
        };
        self.place.put_blob(&blob, &Bytes::Open(&open), &origins, anew)?;
        if let Some(reference) = self.place.repository() {
            store.add_origin(layer, Origin { blob: blob.digest, repository: reference.full_name() })?;
        }
        let packed = (index.as_bytes().len() as u64 <= MAX_INDEX).then(|| pack(index.as_bytes())).transpose()?;
        let index_descriptor = packed.as_deref().map(Artifact::index_descriptor);
        if let (Some(packed), Some(descriptor)) = (&packed, &index_descriptor) {
            self.place.put_blob(descriptor, &Bytes::Here(packed), &[], anew)?;
        }
        let result = StepResult { tar_size: index.tar_size(), encoder: self.compression.encoder(), ..step.clone() };
        Ok(Artifact { result, blob, index: index_descriptor })
    }

    /// Whether what a cache has goes on as it is: not in another form than is wished for, and what is damaged there cannot
    /// come from there.
    fn may_pass_on(&self, shared: &SharedCache<'_>, claim: &Claim, anew: bool) -> bool {
        let as_wished = !self.force || claim.result.encoder == self.compression.encoder();
        as_wished && !(anew && shared.source(claim).place.is_same(&self.place))
    }

    /// Sends what never came here: from the cache that has it.
    fn pass_on(&self, step: &StepResult, from: &Place<'_>, claim: &Claim, anew: bool) -> Result<Artifact, SharedError> {
        self.place.put_blob(&claim.blob, &Bytes::At(from), &[], anew)?;
        if let Some(index) = &claim.index {
            self.place.put_blob(index, &Bytes::At(from), &[], anew)?;
        }
        let (tar_size, encoder) = (claim.result.tar_size, claim.result.encoder.clone());
        let result = StepResult { tar_size, encoder, ..step.clone() };
        Ok(Artifact { result, blob: claim.blob.clone(), index: claim.index.clone() })
    }
}

/// Where somebody else sends the same blobs at the same moment, some registries know nothing of them for a while: then what
/// `act` does is done once more, from the look at what is missing on.
pub(super) fn patiently<T>(mut act: impl FnMut() -> Result<T, SharedError>) -> Result<T, SharedError> {
    let mut attempt = 1;
    loop {
        match act() {
            Err(SharedError::Registry(RegistryError::Refused { status: 400 | 404 | 409, .. }))
                if attempt < ATTEMPTS =>
            {
                std::thread::sleep(PAUSE * attempt);
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Packs an index.
fn pack(index: &[u8]) -> Result<Vec<u8>, SharedError> {
    let failed = |error: std::io::Error| SharedError::Wrong(format!("an index cannot be compressed: {error}"));
    let mut encoder = Encoder::new(Vec::new(), Compression::ZSTD);
    encoder.write_all(index).map_err(failed)?;
    encoder.finish().map_err(failed)
}
