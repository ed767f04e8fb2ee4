//! Docker archives: what `docker save` writes.
//!
//! In: the files of a tar with a `manifest.json`. Out: per image its config, its names, and the files of its layers.
//! What always holds: names are checked; nothing in `manifest.json` is taken for a digest, so all digests are made from
//! the bytes themselves.

use serde::Deserialize;

use super::LoadError;
use super::files::Files;
use super::layout::read_small;
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::MAX_MANIFEST_SIZE;
use crate::image::reference::Reference;

/// One image of an archive.
#[derive(Debug)]
pub(super) struct Saved {
    /// The bytes of its config.
    pub(super) config_bytes: Vec<u8>,
    /// The config.
    pub(super) config: ImageConfig,
    /// Its names.
    pub(super) names: Vec<Reference>,
    /// The files of its layers, bottom first: as many as the config has diffIDs.
    pub(super) layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images of an archive; `None` when it is no Docker archive.
pub(super) fn list(files: &Files) -> Result<Option<Vec<Saved>>, LoadError> {
    let document =
        |what: &str, why: String| LoadError::Document { place: files.place().to_owned(), what: what.to_owned(), why };
    let Some(bytes) = read_small(files, "manifest.json", MAX_MANIFEST_SIZE)? else {
        return match files.open("repositories")? {
            Some(_) => Err(document(
                "manifest.json",
                "it is not there: docker wrote such archives before 2016; save the image again with a newer one".into(),
            )),
            None => Ok(None),
        };
    };
    let items: Option<Vec<Item>> =
        serde_json::from_slice(&bytes).map_err(|error| document("manifest.json", error.to_string()))?;
    items.unwrap_or_default().into_iter().map(|item| read(files, item)).collect::<Result<_, _>>().map(Some)
}

fn read(files: &Files, item: Item) -> Result<Saved, LoadError> {
    let document =
        |what: &str, why: String| LoadError::Document { place: files.place().to_owned(), what: what.to_owned(), why };
    let config_bytes = read_small(files, &item.config, MAX_CONFIG_SIZE)?.ok_or_else(|| LoadError::Missing {
        place: files.place().to_owned(),
        what: format!("the config {}", item.config),
    })?;
    let config = ImageConfig::parse(&config_bytes).map_err(|error| document(&item.config, error.to_string()))?;
    let layers = item.layers.unwrap_or_default();
    let known = config.rootfs.diff_ids.len();
    if layers.len() != known {
        let why = format!("it lists {} layers of an image whose config {} has {known}", layers.len(), item.config);
        return Err(document("manifest.json", why));
    }
    let mut names = Vec::new();
    for tag in item.repo_tags.unwrap_or_default() {
        let name = Reference::parse(&tag).map_err(|error| document("manifest.json", error.to_string()))?;
        // The digest is that of a manifest, and a Docker archive has none.
        if name.digest().is_some() {
            let why = format!("RepoTags has {tag}, a name with a digest; only names with tags can be given");
            return Err(document("manifest.json", why));
        }
        names.push(name);
    }
    Ok(Saved { config_bytes, config, names, layers })
}
