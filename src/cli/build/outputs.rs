//! Where a build's result goes: the store, archives, folders, `docker load`.
//!
//! In: the images of a build, `-o` and `--annotation`. Out: documents in the store, files, and which manifest or index
//! each has. What always holds: what cannot be written for these platforms is refused before anything runs; names are
//! given when all that they lead to is durable.

use std::time::Instant;

use super::Job;
use super::finish::{Listed, Made};
use super::load::Loader;
use super::push::Pushes;
use crate::cli::args::BuildArgs;
use crate::cli::failure::Failure;
use crate::cli::output_spec::{CompressionName, Destination, OutputKind, OutputSpec};
use crate::digest::ImageId;
use crate::event::{Event, EventSink};
use crate::image::annotation::{Annotation, Carrier, annotations_of};
use crate::image::assemble::{Assembled, AssembledIndex};
use crate::image::manifest::{Descriptor, Family};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::output::{self, Output, OutputImage, OutputIndex, Subject};
use crate::plan::step::Plan;
use crate::store::images::ImageRecord;
use crate::store::origins::Origin;
use crate::store::{Store, base};

/// Refuses outputs that the planned images cannot be written to.
pub(super) fn check(args: &BuildArgs, plan: &Plan) -> Result<(), Failure> {
    let platforms = || plan.images.iter().map(|image| &image.platform);
    let list = || platforms().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for output in &args.outputs {
        if output.kind == OutputKind::Docker && plan.index {
            return Err(Failure::Usage(format!(
                "{} takes one image, and this result is an index ({}): `docker load` knows none; build one platform \
                 at a time, or write -o type=oci,dest=FILE",
                if output.is_load() { "--load, or type=docker," } else { "type=docker" },
                list()
            )));
        }
        if output.kind == OutputKind::Local && output.platform_split == Some(false) && plan.images.len() > 1 {
            return Err(Failure::Usage(format!(
                "not supported yet: platform-split=false with several platforms ({}), which mixes their files",
                list()
            )));
        }
    }
    let own = args.outputs.iter().flat_map(|output| &output.annotations);
    for annotation in args.annotations.iter().chain(own) {
        let Annotation { carrier, platform, key, .. } = annotation;
        let name = carrier.name();
        if matches!(carrier, Carrier::Index | Carrier::IndexDescriptor) && !plan.index {
            return Err(Failure::Usage(format!(
                "the annotation {key} is for an {name}, and the result is one image without; several platforms have \
                 an index, and --build-arg BUILDKIT_MULTI_PLATFORM=1 makes one"
            )));
        }
        if let Some(platform) = platform
            && !platforms().any(|own| own == platform)
        {
            return Err(Failure::Usage(format!(
                "the annotation {key} is for {name}[{platform}], and there is no such image: the result is for {}",
                list()
            )));
        }
    }
    if !args.annotations.is_empty()
        && let Some(docker) = args.outputs.iter().find(|output| output.oci_mediatypes == Some(false))
    {
        return Err(Failure::Usage(format!(
            "--annotation: Docker's manifests have no annotations; leave oci-mediatypes=false out of -o type={}",
            docker.kind.name()
        )));
    }
    Ok(())
}

/// The documents of a result in the form that one place wants.
pub(super) struct Documents {
    images: Vec<(Platform, Assembled, Descriptor)>,
    index: Option<AssembledIndex>,
}

impl Documents {
    /// Whether the store has them all, whole: a name alone says nothing of what a disk has done.
    fn are_here(&self, store: &Store) -> bool {
        let images = self.images.iter().flat_map(|(_, image, _)| [&image.config_bytes, &image.manifest_bytes]);
        images.chain(self.index.iter().map(|index| &index.bytes)).all(|bytes| store.has_document(bytes))
    }

    /// Their descriptors.
    pub(super) fn listed(&self) -> Listed {
        let manifests: Vec<Descriptor> = self.images.iter().map(|(.., descriptor)| descriptor.clone()).collect();
        let index = self.index.as_ref().map(AssembledIndex::descriptor);
        // Proof: a result without an index has one image.
        let descriptor = index.unwrap_or_else(|| manifests[0].clone());
        Listed { descriptor, manifests }
    }
}

/// The annotations for one place: those of the output count more than those of all.
pub(super) fn annotations(job: &Job<'_>, spec: Option<&OutputSpec>) -> Vec<Annotation> {
    let own = spec.into_iter().flat_map(|spec| &spec.annotations);
    job.args.annotations.iter().chain(own).cloned().collect()
}

/// The documents as the store has them, by `spec` where one of type image says how.
pub(super) fn documents(job: &Job<'_>, made: &Made, spec: Option<&OutputSpec>) -> Result<Documents, Failure> {
    let annotations = annotations(job, spec);
    let family = family(spec).unwrap_or_default();
    let mut images = Vec::with_capacity(made.images.len());
    for (platform, image) in &made.images {
        let own = annotations_of(&annotations, Carrier::Manifest, Some(platform));
        let layers = match spec.and_then(compression) {
            None => image.manifest.layers.clone(),
            Some(compression) => {
                let force = spec.is_some_and(|spec| spec.force_compression);
                let (diff_ids, listed) = (&image.config.rootfs.diff_ids, &image.manifest.layers);
                output::compress(job.store, job.lease, diff_ids, listed, (compression, force, family))
                    .map_err(anyhow::Error::from)?
            }
        };
        let image = image.listed(family, layers, own);
        let mut descriptor = image.descriptor();
        descriptor.platform = Some(platform.into());
        if made.index {
            descriptor.annotations = annotations_of(&annotations, Carrier::ManifestDescriptor, Some(platform));
        }
        images.push((platform.clone(), image, descriptor));
    }
    let index = made.index.then(|| {
        let manifests = images.iter().map(|(platform, _, descriptor)| (descriptor.clone(), platform.clone())).collect();
        AssembledIndex::new(family, manifests, annotations_of(&annotations, Carrier::Index, None))
    });
    Ok(Documents { images, index })
}

/// Writes all outputs. What is in the store, and what went out last.
pub(super) fn write(
    job: &Job<'_>,
    made: &Made,
    mut loader: Option<Loader>,
    pushes: &Pushes<'_, '_>,
) -> Result<(Option<Listed>, Option<Listed>), Failure> {
    let (mut kept, mut sent) = (None, None);
    if job.args.outputs.is_empty() {
        kept = Some(keep(job, made, None)?);
    }
    for spec in &job.args.outputs {
        match spec.kind {
            OutputKind::CacheOnly => {}
            OutputKind::Image | OutputKind::Registry => {
                if spec.kind == OutputKind::Image {
                    kept = Some(keep(job, made, Some(spec))?);
                }
                if spec.push {
                    // The digest by which others get it.
                    let pushed = sent.insert(pushes.push(spec, made)?);
                    if let Some(kept) = kept.as_ref().filter(|_| spec.kind == OutputKind::Image) {
                        remember_pushed(job, made, kept, pushed)?;
                    }
                }
            }
            _ => sent = write_one(job, spec, made, &mut loader)?.or(sent),
        }
    }
    Ok((kept, sent))
}

/// Writes down as what registries know an image of the store.
fn remember_pushed(job: &Job<'_>, made: &Made, kept: &Listed, pushed: &Listed) -> Result<(), Failure> {
    let id = made.id(&kept.descriptor);
    for name in &made.names {
        let repository = name.full_name();
        let origin = Origin { blob: pushed.descriptor.digest, repository };
        job.store.add_origin_of_image(&id, origin).map_err(anyhow::Error::from)?;
    }
    Ok(())
}

/// Puts the documents into the store, makes all durable, and gives the names.
fn keep(job: &Job<'_>, made: &Made, spec: Option<&OutputSpec>) -> Result<Listed, Failure> {
    let (store, lease) = (job.store, job.lease);
    let by_digest = spec.is_some_and(|spec| spec.push && spec.by_digest);
    // What gets no tag there gets none here.
    let names: Vec<String> = if by_digest { Vec::new() } else { made.names.iter().map(ToString::to_string).collect() };
    let documents = documents(job, made, spec)?;
    let listed = documents.listed();
    let id = match (&documents.index, documents.images.as_slice()) {
        (None, [(_, image, _)]) => image.image_id,
        _ => ImageId(listed.descriptor.digest),
    };
    let mut bases = job.plan.images.iter().filter_map(|planned| planned.base).map(|base| &job.bases[base.0]);
    if spec.is_some_and(|spec| spec.push) {
        // Layers that no step read need not come here for it.
        bases.clone().try_for_each(|base| job.remotes.expect(base))?;
    }
    let known = store.image_by_manifest(&listed.descriptor.digest).map_err(anyhow::Error::from)?;
    let content = made.content();
    let said = |known: &ImageRecord| content.is_none() || known.content == content;
    let named =
        |known: &ImageRecord| known.id == id && said(known) && names.iter().all(|name| known.names.contains(name));
    if known.as_ref().is_some_and(named) && documents.are_here(store) {
        return Ok(listed);
    }
    bases.try_for_each(|base| job.remotes.check(base))?;
    // Of a known image too: what nobody names may be collected until this lease lists it.
    let record = ImageRecord { names, ..put(job, &documents)? };
    base::keep(store, lease, &record).map_err(anyhow::Error::from)?;
    Ok(listed)
}

/// Puts documents into the store. Their record.
fn put(job: &Job<'_>, documents: &Documents) -> Result<ImageRecord, Failure> {
    let put = |bytes: &[u8]| job.store.put_blob(job.lease, bytes).map_err(anyhow::Error::from);
    let mut records = Vec::with_capacity(documents.images.len());
    for (platform, image, descriptor) in &documents.images {
        put(&image.config_bytes)?;
        put(&image.manifest_bytes)?;
        let layers = &image.config.rootfs.diff_ids;
        let size = base::size(job.store, layers, &image.manifest.layers).map_err(anyhow::Error::from)?;
        let record = ImageRecord {
            id: image.image_id,
            names: Vec::new(),
            manifest: descriptor.digest,
            media_type: descriptor.media_type.to_string(),
            manifest_size: descriptor.size,
            content: image.content,
            created: image.config.created.clone(),
            size,
            platform: platform.to_string(),
        };
        records.push((platform.clone(), record));
    }
    match &documents.index {
        Some(index) => {
            put(&index.bytes)?;
            let all = documents
                .images
                .iter()
                .map(|(_, image, _)| (image.config.rootfs.diff_ids.as_slice(), image.manifest.layers.as_slice()));
            let size = base::size_of_all(job.store, all).map_err(anyhow::Error::from)?;
            Ok(base::index_record(&index.descriptor(), &records, size))
        }
        // Proof: a result without an index has one image.
        None => Ok(records.swap_remove(0).1),
    }
}

/// Writes one output that is a file or a folder, or goes to `docker load`. What manifest or index it has.
fn write_one(
    job: &Job<'_>,
    spec: &OutputSpec,
    made: &Made,
    loader: &mut Option<Loader>,
) -> Result<Option<Listed>, Failure> {
    let kind = match spec.kind {
        OutputKind::Oci => output::OutputKind::Oci { tar: spec.tar },
        OutputKind::Docker => output::OutputKind::Docker { tar: spec.tar },
        OutputKind::Tar => output::OutputKind::Tar,
        OutputKind::Local => output::OutputKind::Local { split: spec.platform_split == Some(true) },
        OutputKind::Image | OutputKind::Registry | OutputKind::CacheOnly => return Ok(None),
    };
    let loader = if spec.is_load() { loader.take() } else { None };
    let dest = match (&spec.dest, &loader) {
        (Some(Destination::Path(path)), _) => output::Destination::Path(job.settings.cwd.join(path)),
        (None, Some(loader)) => output::Destination::Stream(loader.stream()),
        (Some(Destination::Stdout), _) | (None, None) => output::Destination::Stdout,
    };
    let output = Output {
        kind,
        dest,
        compression: compression(spec),
        force_compression: spec.force_compression,
        family: family(Some(spec)),
    };
    let label = match &loader {
        Some(loader) => format!("loading by {}", loader.name()),
        None => format!("exporting to {}", spec.kind.name()),
    };
    job.reporter.event(Event::Began(&label));
    let began = Instant::now();
    let annotations = annotations(job, Some(spec));
    let image = |platform: &Platform, image: &Assembled, names: &[Reference]| {
        output_image(platform, image, &annotations, names)
    };
    let index = made.index.then(|| OutputIndex {
        images: made.images.iter().map(|(platform, one)| image(platform, one, &[])).collect(),
        names: made.names.clone(),
        annotations: annotations_of(&annotations, Carrier::Index, None),
        descriptor_annotations: annotations_of(&annotations, Carrier::IndexDescriptor, None),
        stored: None,
        usual: 0,
    });
    let only = made.images.first().map(|(platform, one)| image(platform, one, &made.names));
    let subject = match (&index, &only) {
        (Some(index), _) => Subject::from(index),
        (None, Some(image)) => Subject::from(image),
        (None, None) => return Ok(None),
    };
    let written = output::write(&output, subject, job.store, job.lease, job.epoch()).map_err(anyhow::Error::from);
    drop(output);
    if let Some(loader) = loader {
        for line in loader.finish(written.as_ref().err())? {
            job.reporter.event(Event::Note(&line));
        }
    }
    let written = written?;
    for note in &written.notes {
        job.reporter.event(Event::Note(note));
    }
    job.reporter.event(Event::Ended(&label, began.elapsed()));
    let manifests = written.manifests;
    Ok(written.manifest.map(|descriptor| Listed { descriptor, manifests }))
}

/// An image as an output takes it.
pub(super) fn output_image(
    platform: &Platform,
    image: &Assembled,
    annotations: &[Annotation],
    names: &[Reference],
) -> OutputImage {
    let mut manifest = image.manifest.clone();
    manifest.annotations = annotations_of(annotations, Carrier::Manifest, Some(platform));
    OutputImage {
        platform: platform.clone(),
        descriptor_annotations: annotations_of(annotations, Carrier::ManifestDescriptor, Some(platform)),
        ..OutputImage::new(image.config_bytes.clone(), &image.config, manifest, names.to_vec())
    }
}

pub(super) fn family(spec: Option<&OutputSpec>) -> Option<Family> {
    spec?.oci_mediatypes.map(|oci| if oci { Family::Oci } else { Family::Docker })
}

/// The compression that a specification names.
pub(super) fn compression(spec: &OutputSpec) -> Option<Compression> {
    let level = |usual: u8| spec.level.and_then(|level| u8::try_from(level).ok()).unwrap_or(usual);
    spec.compression.map(|name| match (name, Compression::GZIP, Compression::ZSTD) {
        (CompressionName::Gzip, Compression::Gzip(usual), _) => Compression::Gzip(level(usual)),
        (CompressionName::Zstd, _, Compression::Zstd(usual)) => Compression::Zstd(level(usual)),
        _ => Compression::None,
    })
}
