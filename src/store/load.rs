//! Images from elsewhere: OCI layouts (folder or archive) and Docker archives.
//!
//! In: a folder or an archive, compressed or not. Out: the image's blobs and layers in the store, and what the build or
//! `rbuild load` needs to know of it. What always holds: nothing that was read is believed until its digest was right;
//! an image is named in the store only when all of it is there; of an image that is here already only `index.json`,
//! manifest and config are read.

mod docker;
mod files;
mod layers;
mod layout;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;

pub(crate) use layers::links;
pub use layout::Selector;

use self::files::Files;
use self::layers::Wanted;
use super::arrive::Arrived;
use super::base;
use super::images::ImageRecord;
use super::lease::Lease;
use super::{Store, StoreError};
use crate::digest::{DiffId, Digest, ImageId};
use crate::image::manifest::{Descriptor, Family, Kind};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;

/// Where an image of `--build-context` comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayoutSource {
    /// `oci-layout://DIR`.
    Folder(PathBuf),
    /// `oci-archive://FILE`: also a Docker archive, also compressed.
    Archive(PathBuf),
}

/// An image that was brought in, and the names that it had where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the store will know of it; it has no names yet.
    pub record: ImageRecord,
    /// Its names; it may have none.
    pub names: Vec<Reference>,
}

/// Why an image cannot be brought in.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A system call failed.
    #[error("cannot {action} {place}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        place: String,
        /// Why not.
        source: io::Error,
    },
    /// The archive's own form is broken.
    #[error("cannot read the archive {place}: {why}")]
    Archive {
        /// The archive.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Neither a layout nor an archive of an image.
    #[error(
        "{place} holds no image: it has neither an index.json (OCI layout) nor a manifest.json (docker save){hint}"
    )]
    NoImage {
        /// What was looked at.
        place: String,
        /// What it may be instead.
        hint: &'static str,
    },
    /// Something that a document names is not there.
    #[error("{place} is incomplete: {what} is not in it")]
    Missing {
        /// The layout or archive.
        place: String,
        /// What is missing.
        what: String,
    },
    /// Bytes are not those that a document names.
    #[error("{place} is damaged: {what} has the digest {found}")]
    Digest {
        /// The layout or archive.
        place: String,
        /// What it should be.
        what: String,
        /// What it is.
        found: Digest,
    },
    /// A file is longer or shorter than a document says.
    #[error("{place} is damaged: {what} has {found} bytes, its descriptor says {expected}")]
    Size {
        /// The layout or archive.
        place: String,
        /// What.
        what: String,
        /// By the descriptor.
        expected: u64,
        /// In fact.
        found: u64,
    },
    /// A layer is not the one that the config names.
    #[error("{place} is damaged: the layer {layer} has the diffID {found}, its image's config says {expected}")]
    DiffId {
        /// The layout or archive.
        place: String,
        /// The layer's file.
        layer: String,
        /// By the config.
        expected: DiffId,
        /// In fact.
        found: DiffId,
    },
    /// A layer's tar or its compression is broken, or it would lead out of the image.
    #[error("{place}: the layer {layer} cannot be used: {why}")]
    Layer {
        /// The layout or archive.
        place: String,
        /// The layer's file.
        layer: String,
        /// What is wrong.
        why: String,
    },
    /// A document cannot be read.
    #[error("{place}: {what}: {why}")]
    Document {
        /// The layout or archive.
        place: String,
        /// Which document.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A blob is something else than what stands in an image.
    #[error("{place}: {what} has the media type {media_type}, which is none that rbuild knows there")]
    MediaType {
        /// The layout or archive.
        place: String,
        /// Which blob.
        what: String,
        /// What its descriptor says.
        media_type: String,
    },
    /// Indexes that lead to indexes, or repeat themselves.
    #[error("{place} has too many indexes inside of indexes")]
    TooNested {
        /// The layout or archive.
        place: String,
    },
    /// The wanted image is not there.
    #[error("{place} does not have {wanted}; it has {offered}")]
    NoMatch {
        /// The layout or archive.
        place: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// There are several, and nothing says which.
    #[error("{place} has several images; say which by :TAG or @DIGEST: {offered}")]
    Several {
        /// The layout or archive.
        place: String,
        /// What there is.
        offered: String,
    },
    /// The image is for other machines.
    #[error("{place} has no image for {wanted}; it has {offered}")]
    Platform {
        /// The layout or archive.
        place: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
}

impl LoadError {
    fn io(action: &'static str, place: &str) -> impl Fn(io::Error) -> Self + use<> {
        let place = place.to_owned();
        move |source| Self::Io { action, place: place.clone(), source }
    }

    fn archive(place: &str, why: String) -> Self {
        Self::Archive { place: place.to_owned(), why }
    }

    fn platform(place: &str, wanted: &[Platform], offered: &[Platform]) -> Self {
        let list = |platforms: &[Platform]| platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ");
        let offered = if offered.is_empty() { "nothing".to_owned() } else { list(offered) };
        Self::Platform { place: place.to_owned(), wanted: list(wanted), offered }
    }

    fn layer(place: &str, layer: &str, why: String) -> Self {
        Self::Layer { place: place.to_owned(), layer: layer.to_owned(), why }
    }
}

/// Brings the wanted image of a layout in, for a build. Its `name` is that of the place it came from.
pub fn bring_layout(
    store: &Store,
    lease: &Lease,
    source: &LayoutSource,
    wanted: &Selector,
    platform: &Platform,
) -> Result<BaseImage, LoadError> {
    let files = match source {
        LayoutSource::Folder(folder) => Files::folder(folder),
        LayoutSource::Archive(path) => {
            let place = path.display().to_string();
            let file = File::open(path).map_err(LoadError::io("open", &place))?;
            Files::archive(file, &place, lease)?
        }
    };
    if layout::is_layout(&files)? {
        // An archive of Docker 25 has a layout beside its manifest.json that lists nothing.
        match layout::select(&files, wanted, platform) {
            Ok(manifest) => return bring_listed(store, lease, &files, &manifest),
            Err(LoadError::NoMatch { .. }) if files.open("manifest.json")?.is_some() => {}
            Err(error) => return Err(error),
        }
    }
    let saved = docker::list(&files)?.ok_or_else(|| no_image(&files))?;
    let offered = || {
        let names: Vec<String> = saved.iter().flat_map(|image| &image.names).map(Reference::familiar).collect();
        if names.is_empty() { format!("{} images without names", saved.len()) } else { names.join(", ") }
    };
    let fits = |image: &&docker::Saved| match wanted {
        Selector::Any => true,
        Selector::Tag(tag) => image
            .names
            .iter()
            .any(|name| name.tag() == Some(tag) || Reference::parse(tag).is_ok_and(|wanted| wanted == *name)),
        Selector::Digest(digest) => Digest::of(&image.config_bytes) == *digest,
    };
    let place = files.place().to_owned();
    match (wanted, saved.iter().filter(fits).collect::<Vec<_>>().as_slice()) {
        (_, [one]) => bring_saved(store, lease, &files, one),
        (Selector::Any, []) => Err(no_image(&files)),
        (Selector::Tag(tag), []) => {
            Err(LoadError::NoMatch { place, wanted: format!("the tag {tag}"), offered: offered() })
        }
        (Selector::Digest(digest), []) => {
            Err(LoadError::NoMatch { place, wanted: format!("the digest {digest}"), offered: offered() })
        }
        _ => Err(LoadError::Several { place, offered: offered() }),
    }
}

/// Brings all images of an archive in, or what of them is for one of the platforms `only`, if any is named; `place` is the
/// archive's name in messages. An image with several platforms comes with all of them if the archive has all, else it is the
/// one for `platform`. They get no names in the store: see [`Loaded::names`].
pub fn load(
    store: &Store,
    lease: &Lease,
    archive: File,
    place: &str,
    platform: &Platform,
    only: &[Platform],
) -> Result<Vec<Loaded>, LoadError> {
    let files = Files::archive(archive, place, lease)?;
    let listed = if layout::is_layout(&files)? { layout::list(&files, platform, only)? } else { Vec::new() };
    let mut loaded: Vec<Loaded> = Vec::new();
    let mut add =
        |record: ImageRecord, names: Vec<Reference>| match loaded.iter_mut().find(|known| known.record.id == record.id)
        {
            Some(known) => known.names.extend(names),
            None => loaded.push(Loaded { record, names }),
        };
    for image in &listed {
        let mut records = Vec::with_capacity(image.manifests.len());
        let mut all = Vec::with_capacity(image.manifests.len());
        for manifest in &image.manifests {
            let brought = bring_listed(store, lease, &files, manifest)?;
            let platform = manifest.platform.as_ref().map_or_else(|| brought.platform.clone(), Platform::from);
            records.push((platform.normalised(), base::record(store, &brought)?));
            all.push(brought);
        }
        match &image.index {
            Some((index, bytes)) => {
                store.put_blob(lease, bytes)?;
                let all = all.iter().map(|image| (image.config.rootfs.diff_ids.as_slice(), image.layers.as_slice()));
                let size = base::size_of_all(store, all)?;
                add(base::index_record(index, &records, size), image.names.clone());
            }
            None => records.into_iter().for_each(|(_, record)| add(record, image.names.clone())),
        }
    }
    if listed.is_empty() {
        let mut saved = docker::list(&files)?.ok_or_else(|| no_image(&files))?;
        let offered: Vec<Platform> = saved.iter().map(|image| image.config.platform()).collect();
        if !only.is_empty() {
            saved.retain(|image| only.iter().any(|wanted| wanted.is(&image.config.platform())));
        }
        if saved.is_empty() && !offered.is_empty() {
            return Err(LoadError::platform(files.place(), only, &offered));
        }
        for image in saved {
            add(base::record(store, &bring_saved(store, lease, &files, &image)?)?, image.names);
        }
    }
    for image in &mut loaded {
        image.names.sort();
        image.names.dedup();
    }
    if loaded.is_empty() { Err(no_image(&files)) } else { Ok(loaded) }
}

fn no_image(files: &Files) -> LoadError {
    let is = |name| files.open(name).is_ok_and(|member| member.is_some());
    let rootfs = is("etc/passwd") || is("bin/sh") || is("usr/bin/sh") || is("bin/busybox");
    let hint = if rootfs { "; it looks like a root file system, which `rbuild import` makes an image of" } else { "" };
    LoadError::NoImage { place: files.place().to_owned(), hint }
}

/// An image of a layout.
fn bring_listed(store: &Store, lease: &Lease, files: &Files, listed: &Descriptor) -> Result<BaseImage, LoadError> {
    let (documents, manifest, config) = layout::read_image(files, listed)?;
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        let what = format!("the manifest {}", listed.digest);
        let why = format!("it lists {layers} layers, its config {diff_ids}");
        return Err(LoadError::Document { place: files.place().to_owned(), what, why });
    }
    let mut wanted = Vec::with_capacity(layers);
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let Some(Kind::Layer(_)) = Kind::of(&layer.media_type) else {
            let (what, media_type) = (format!("the layer {}", layer.digest), layer.media_type.to_string());
            return Err(LoadError::MediaType { place: files.place().to_owned(), what, media_type });
        };
        let blob = Some((layer.digest, layer.size));
        wanted.push(Wanted { name: layout::blob_name(&layer.digest), blob, diff_id: *diff_id });
    }
    layers::bring(store, lease, files, &wanted)?;
    // An image that is known with what it holds has been through this; a pull that was refused leaves all but that.
    if !store.knows_content(&listed.digest)? {
        layers::check_links(store, files, &config.rootfs.diff_ids)?;
    }
    let image_id = ImageId(store.put_blob(lease, &documents.config)?);
    let digest = store.put_blob(lease, &documents.manifest)?;
    let descriptor = Descriptor::new(listed.media_type.clone(), digest, documents.manifest.len() as u64);
    Ok(BaseImage {
        name: files.place().to_owned(),
        platform: config.platform(),
        config,
        image_id,
        manifest: Some(descriptor),
        layers: manifest.layers,
    })
}

/// An image of a Docker archive: it has no manifest, so it gets one.
fn bring_saved(store: &Store, lease: &Lease, files: &Files, saved: &docker::Saved) -> Result<BaseImage, LoadError> {
    let wanted: Vec<Wanted> = saved
        .layers
        .iter()
        .zip(&saved.config.rootfs.diff_ids)
        .map(|(name, diff_id)| Wanted { name: name.clone(), blob: None, diff_id: *diff_id })
        .collect();
    let brought = layers::bring(store, lease, files, &wanted)?;
    layers::check_links(store, files, &saved.config.rootfs.diff_ids)?;
    let family = Family::Oci;
    let layers: Vec<Descriptor> = brought
        .into_iter()
        .map(|Arrived { encoding, digest, size }| Descriptor::new(family.layer(encoding), digest, size))
        .collect();
    base::put_image(store, lease, family, &saved.config_bytes, saved.config.clone(), layers, files.place())
        .map_err(LoadError::from)
}
