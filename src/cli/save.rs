//! `rbuild save`: images of the store in one archive.
//!
//! In: names and ids. Out: a tar that `docker load`, skopeo and `rbuild load` read, in a file or on standard output. What
//! always holds: each image is in it once, with the names that were asked for; all are found before anything is written;
//! a terminal is never written to.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;

use super::absent;
use super::args::{ArchiveFormat, SaveArgs};
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use crate::digest::DiffId;
use crate::image::config::MAX_CONFIG_SIZE;
use crate::image::manifest::{Index, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::output::{self, Destination, Output, OutputImage, OutputIndex, OutputKind, Subject};
use crate::plan::BaseImage;
use crate::store::images::ImageRecord;
use crate::store::{Store, base};
use crate::sys::cancel::{self, Cancel};

/// Saves them.
pub(super) fn run(args: &SaveArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let dest = match &args.output {
        Some(path) if path.as_os_str() != "-" => Destination::Path(settings.cwd.join(path)),
        _ if settings.stdout_is_terminal => {
            return Err(Failure::Usage("standard output is a terminal; name a file by -o FILE or `> FILE`".into()));
        }
        _ => Destination::Stdout,
    };
    let mut only: Vec<Platform> = Vec::new();
    for platform in &args.platforms {
        let platform = find::platform(platform)?;
        if !only.contains(&platform) {
            only.push(platform);
        }
    }
    let cancel = Cancel::new().context("cannot prepare for signals")?;
    cancel::install_signal_handlers(&cancel).context("cannot prepare for signals")?;
    let store = find::store(settings)?;
    let mut lease = find::reading_lease(&store, settings)?;
    lease.heed(&cancel);
    let stopped = |failure| cancel.signal().map_or(failure, Failure::Interrupted);
    let mut wanted: Vec<(ImageRecord, Vec<BaseImage>, Vec<Reference>)> = Vec::new();
    for name in &args.images {
        let _shared = lease.shared().map_err(anyhow::Error::from)?;
        for (record, names) in find_all(&store, name)? {
            match wanted.iter_mut().find(|(known, ..)| known.manifest == record.manifest) {
                Some((.., known)) => known.extend(names),
                None => {
                    let mut images = base::pin_record(&store, &lease, &record).map_err(anyhow::Error::from)?;
                    if !only.is_empty() {
                        images = only
                            .iter()
                            .map(|platform| find::for_platform(images.clone(), platform, name))
                            .collect::<Result<_, _>>()?;
                    }
                    wanted.push((record, images, names));
                }
            }
        }
    }
    for (record, images, _) in &wanted {
        absent::bring(&store, &lease, (record, images.as_slice()), settings, Some(&cancel)).map_err(stopped)?;
    }
    let mut images = Vec::with_capacity(wanted.len());
    for (record, from, mut names) in wanted {
        names.sort_by_key(ToString::to_string);
        names.dedup();
        images.push(saved(&store, &record, &from, names)?);
    }
    for layer in images.iter().flat_map(Saved::diff_ids) {
        if store.needs_tree_ids(&layer).map_err(anyhow::Error::from)? {
            find::enter_ids(settings)?;
        }
    }
    let kind = match args.format {
        ArchiveFormat::Docker => OutputKind::Docker { tar: true },
        ArchiveFormat::Oci => OutputKind::Oci { tar: true },
    };
    let compression = (args.format == ArchiveFormat::Oci).then_some(Compression::None);
    let output = Output { kind, dest, compression, force_compression: false, family: None };
    match (output::write_several(&output, &images, &store, &lease, None), cancel.signal()) {
        (Ok(_), _) => Ok(ExitCode::SUCCESS),
        (Err(_), Some(signal)) => Err(Failure::Interrupted(signal)),
        (Err(error), None) => Err(Failure::Error(error.into())),
    }
}

/// The images that `name` stands for, with the names that they are saved under: of a name without a tag all its tags, of
/// an id no name.
fn find_all(store: &Store, name: &str) -> Result<Vec<(ImageRecord, Vec<Reference>)>, Failure> {
    if let Ok(reference) = Reference::parse(name)
        && reference.digest().is_none()
    {
        // What was written without a tag has the usual one now.
        let tagged = name.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
        let fits = |known: &Reference| {
            if tagged { *known == reference } else { known.familiar_name() == reference.familiar_name() }
        };
        let mut found = Vec::new();
        for image in store.images().map_err(anyhow::Error::from)? {
            let names: Vec<Reference> = find::names(&image).into_iter().filter(fits).collect();
            if !names.is_empty() {
                found.push((image, names));
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(vec![(find::image(store, name)?, Vec::new())])
}

/// What is saved of one record.
enum Saved {
    Image(Box<OutputImage>),
    Index(OutputIndex),
}

impl Saved {
    fn diff_ids(&self) -> Vec<DiffId> {
        match self {
            Self::Image(image) => image.diff_ids.clone(),
            Self::Index(index) => index.images.iter().flat_map(|image| image.diff_ids.clone()).collect(),
        }
    }
}

impl<'a> From<&'a Saved> for Subject<'a> {
    fn from(saved: &'a Saved) -> Self {
        match saved {
            Saved::Image(image) => Self::Image(image),
            Saved::Index(index) => Self::Index(index),
        }
    }
}

/// What is saved of a record: these images of it.
fn saved(store: &Store, record: &ImageRecord, images: &[BaseImage], names: Vec<Reference>) -> Result<Saved, Failure> {
    let one = |image, names| output_image(store, record, image, names);
    if let [image] = images
        && !(record.id.0 == record.manifest && is_all(store, record, images)?)
    {
        return Ok(Saved::Image(Box::new(one(image, names)?)));
    }
    let stored = store.read_blob(&record.manifest, MAX_MANIFEST_SIZE as u64).map_err(anyhow::Error::from)?;
    let annotations = Index::parse(&stored).map_err(anyhow::Error::from)?.annotations;
    Ok(Saved::Index(OutputIndex {
        images: images.iter().map(|image| one(image, Vec::new())).collect::<Result<_, _>>()?,
        names,
        annotations,
        descriptor_annotations: BTreeMap::new(),
        // Where some are left out it is not used.
        stored: Some(stored),
        usual: find::machine().best(images.iter().map(|image| &image.platform)).unwrap_or(0),
    }))
}

/// Whether these are all images of an index.
fn is_all(store: &Store, record: &ImageRecord, images: &[BaseImage]) -> Result<bool, Failure> {
    Ok(base::base_images(store, record).map_err(anyhow::Error::from)?.len() == images.len())
}

fn output_image(
    store: &Store,
    record: &ImageRecord,
    image: &BaseImage,
    names: Vec<Reference>,
) -> Result<OutputImage, Failure> {
    let read = |digest, limit: usize| store.read_blob(digest, limit as u64).map_err(anyhow::Error::from);
    let config = read(&image.image_id.0, MAX_CONFIG_SIZE)?;
    let descriptor = image.manifest.as_ref();
    let stored = read(descriptor.map_or(&record.manifest, |manifest| &manifest.digest), MAX_MANIFEST_SIZE)?;
    let manifest = Manifest::parse(&stored).map_err(anyhow::Error::from)?;
    let descriptor_annotations = descriptor.map(|manifest| manifest.annotations.clone()).unwrap_or_default();
    Ok(OutputImage {
        stored: Some(stored),
        platform: image.platform.clone(),
        descriptor_annotations,
        ..OutputImage::new(config, &image.config, manifest, names)
    })
}
