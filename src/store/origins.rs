//! Repositories that have a blob of a layer, whether the layer is here or not; and those that have an image.
//!
//! In: a layer, and where a blob of it was seen. Out: where it can be mounted from, or fetched when somebody must read it.
//! What always holds: what is remembered of a layer stays as long as an image, a record or a command needs the layer, and
//! goes with it; so an image may have layers that never came here. It is a hint: one that cannot be read is none.

use std::fs;

use serde::{Deserialize, Serialize};

use super::Store;
use super::layout::{StoreError, read_if_there};
use crate::digest::{DiffId, Digest, ImageId};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::plan::BaseImage;

/// A repository of a registry that has a blob of a layer: from there other repositories can mount it. Or one that has an
/// image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The blob; of an image its manifest or index, as it is there.
    pub blob: Digest,
    /// Registry and repository: `docker.io/library/nginx`.
    pub repository: String,
}

/// A layer of an image that is not here, or not in the blob that the image's manifest lists.
#[derive(Debug, Clone, PartialEq)]
pub struct AbsentLayer {
    /// The layer.
    pub diff_id: DiffId,
    /// Its blob.
    pub blob: Descriptor,
    /// Repositories that have it, where it was seen last first; none where nobody knows any.
    pub from: Vec<Reference>,
}

/// Origins that are kept for a layer.
const MOST: usize = 16;

impl Store {
    /// Repositories that are known to have a blob of the layer, the latest last.
    pub fn origins(&self, layer: &DiffId) -> Result<Vec<Origin>, StoreError> {
        self.read_origins(&layer.0)
    }

    /// Repositories that an image was pushed to or pulled from, each once, the latest last.
    pub fn origins_of_image(&self, image: &ImageId) -> Result<Vec<Origin>, StoreError> {
        self.read_origins(&image.0)
    }

    /// Remembers what an image of the store is in a repository now.
    pub fn add_origin_of_image(&self, image: &ImageId, origin: Origin) -> Result<(), StoreError> {
        let mut origins = self.origins_of_image(image)?;
        if origins.contains(&origin) {
            return Ok(());
        }
        origins.retain(|known| known.repository != origin.repository);
        origins.push(origin);
        self.write_origins(&image.0, &origins)
    }

    /// Those of them that have this blob, the latest first.
    pub fn origins_of_blob(&self, layer: &DiffId, blob: &Digest) -> Result<Vec<Reference>, StoreError> {
        let known = self.origins(layer)?.into_iter().rev().filter(|origin| origin.blob == *blob);
        Ok(known.filter_map(|origin| Reference::parse(&origin.repository).ok()).collect())
    }

    /// Remembers one more, for a layer that is here or of which one is known: of others nobody would ask for it.
    pub fn add_origin(&self, layer: &DiffId, origin: Origin) -> Result<(), StoreError> {
        if self.has_layer(layer) || self.origins_path(&layer.0).exists() {
            self.expect_layer(layer, origin)?;
        }
        Ok(())
    }

    /// Remembers one for a layer of an image that is kept without it. The caller's lease lists the layer as used.
    pub fn expect_layer(&self, layer: &DiffId, origin: Origin) -> Result<(), StoreError> {
        let mut origins = self.origins(layer)?;
        if origins.contains(&origin) {
            return Ok(());
        }
        origins.push(origin);
        self.write_origins(&layer.0, &origins)
    }

    fn read_origins(&self, name: &Digest) -> Result<Vec<Origin>, StoreError> {
        let bytes = read_if_there(&self.origins_path(name))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    fn write_origins(&self, name: &Digest, origins: &[Origin]) -> Result<(), StoreError> {
        let from = origins.len().saturating_sub(MOST);
        let path = self.origins_path(name);
        let bytes = serde_json::to_vec(&origins[from..])
            .map_err(|error| StoreError::Damaged { path: path.clone(), why: error.to_string() })?;
        let folder = self.path(FOLDER);
        fs::create_dir_all(&folder).map_err(StoreError::io("make", &folder))?;
        // Nobody waits for the disk: what a power cut leaves torn is no list, and a hint less.
        self.replace_later(&path, &bytes)
    }

    /// Whether the layer, or the blob of it that a manifest lists, is not here. (One that is listed uncompressed is made of
    /// any form.)
    pub fn lacks(&self, layer: &DiffId, blob: &Digest) -> bool {
        !self.has_layer(layer) || (*blob != layer.0 && !self.has_blob(blob))
    }

    /// The layers of an image that are not here, each once.
    pub fn absent_layers(&self, image: &BaseImage) -> Result<Vec<AbsentLayer>, StoreError> {
        let mut absent: Vec<AbsentLayer> = Vec::new();
        for (blob, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let known = absent.iter().any(|known| (known.diff_id, known.blob.digest) == (*diff_id, blob.digest));
            if !known && self.lacks(diff_id, &blob.digest) {
                let from = self.origins_of_blob(diff_id, &blob.digest)?;
                absent.push(AbsentLayer { diff_id: *diff_id, blob: blob.clone(), from });
            }
        }
        Ok(absent)
    }

    fn origins_path(&self, name: &Digest) -> std::path::PathBuf {
        self.path(FOLDER).join(name.hex())
    }
}

/// Where they are, below the store's root: a file for each layer or image.
pub(super) const FOLDER: &str = "origins";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_kept_for_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (layer, blob) = (DiffId(Digest::of(b"layer")), Digest::of(b"blob"));
        let origin = |number: usize| Origin { blob, repository: format!("r.example/{number}") };
        store.add_origin(&layer, origin(0)).unwrap();
        assert_eq!(store.origins(&layer).unwrap(), [], "nobody knows the layer");
        store.expect_layer(&layer, origin(0)).unwrap();
        for number in 0..20 {
            store.add_origin(&layer, origin(number)).unwrap();
        }
        let other = Origin { blob: Digest::of(b"other"), repository: "r.example/other".to_owned() };
        store.add_origin(&layer, other.clone()).unwrap();
        assert_eq!(store.origins(&layer).unwrap().len(), MOST);
        let found = store.origins_of_blob(&layer, &blob).unwrap();
        assert_eq!((found.len(), found[0].repository()), (MOST - 1, "19"));
        assert_eq!(store.origins_of_blob(&layer, &other.blob).unwrap()[0].repository(), "other");
        // Torn by a power cut: a hint less.
        fs::write(store.origins_path(&layer.0), b"[{").unwrap();
        assert_eq!(store.origins(&layer).unwrap(), []);
        // Of an image a repository has one manifest at a time.
        let image = ImageId(Digest::of(b"image"));
        for blob in [blob, other.blob] {
            store.add_origin_of_image(&image, Origin { blob, repository: "r.example/1".to_owned() }).unwrap();
        }
        let known = store.origins_of_image(&image).unwrap();
        assert_eq!(known, [Origin { blob: other.blob, repository: "r.example/1".to_owned() }]);
    }
}
