//! The end of a build: documents, forms under an epoch, and what the user is told.
//!
//! In: a solution. Out: the documents of its images, which go where they belong, and a [`Report`]. What always holds:
//! what was made is durable before a name leads to it; a build with nothing new writes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::Job;
use super::load::Loader;
use super::outputs;
use super::push::Pushes;
use super::share;
use crate::cli::args::BuildArgs;
use crate::cli::failure::Failure;
use crate::cli::output_spec::{OutputKind, OutputSpec};
use crate::cli::render::Built;
use crate::cli::stdout::stdout;
use crate::digest::{ContentDigest, DiffId, ImageId};
use crate::event::{Event, EventSink};
use crate::image::assemble::{self, Assembled, NewLayer, Parts, index_content_digest};
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::layer::header::WRITER_VERSION;
use crate::layer::index::Origin;
use crate::layer::write::{WriteError, epoch_index, write_form};
use crate::plan::BaseImage;
use crate::plan::step::PlannedImage;
use crate::solve::{Solution, Solved};
use crate::store::Store;
use crate::store::layers::Form;

/// Docker does not load images with more layers.
const DOCKERS_MOST_LAYERS: usize = 127;

/// What a build made: an image, or one for each platform under an index.
pub(super) struct Made {
    /// In the order of the index.
    pub(super) images: Vec<(Platform, Assembled)>,
    /// They stand under an index.
    pub(super) index: bool,
    /// What names lead to.
    pub(super) names: Vec<Reference>,
    /// It goes to registries by its digest alone: nothing gets a tag.
    pub(super) by_digest: bool,
}

impl Made {
    /// What users call it by: the config's digest, of several images that of their index.
    pub(super) fn id(&self, listed: &Descriptor) -> ImageId {
        match self.images.as_slice() {
            [(_, image)] if !self.index => image.image_id,
            _ => ImageId(listed.digest),
        }
    }

    /// What it holds, times left out.
    pub(super) fn content(&self) -> Option<ContentDigest> {
        match self.images.as_slice() {
            [(_, image)] if !self.index => image.content,
            images => index_content_digest(images.iter().map(|(platform, image)| (platform.clone(), image.content))),
        }
    }
}

/// What an output came to: the manifest or the index that it has.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// Its descriptor.
    pub(super) descriptor: Descriptor,
    /// The descriptors of the manifests in an index; of an image, its own.
    pub(super) manifests: Vec<Descriptor>,
}

/// What a build came to.
pub(super) struct Report {
    made: Made,
    /// What counts as the result: what is in the store, else what went out.
    id: ImageId,
    /// The manifest or index that counts for others: what went out, else what is in the store.
    listed: Listed,
    /// Per step of the plan.
    steps: Vec<StepReport>,
}

/// What `--metadata-file` says of a step.
struct StepReport {
    name: String,
    layer: DiffId,
    content: ContentDigest,
    cached: bool,
    /// The shared cache that had it.
    cache: Option<String>,
    took: Duration,
}

impl Report {
    /// The layers that this build made.
    pub(super) fn made(&self) -> Vec<DiffId> {
        self.steps.iter().filter(|step| !step.cached).map(|step| step.layer).collect()
    }

    /// What the user is told last.
    pub(super) fn built(&self) -> Built {
        let names = self.made.names.iter().filter(|_| !self.made.by_digest).map(Reference::familiar).collect();
        Built { image: self.id, content: self.made.content(), names }
    }

    /// Writes what goes to standard output and to files.
    pub(super) fn write(&self, job: &Job<'_>) -> Result<ExitCode, Failure> {
        let put = |path: &Path, bytes: &[u8]| {
            fs::write(job.settings.cwd.join(path), bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        if let Some(path) = &job.args.iidfile {
            put(path, self.id.to_string().as_bytes())?;
        }
        if let Some(path) = &job.args.metadata_file {
            put(path, format!("{:#}\n", self.metadata()).as_bytes())?;
        }
        if job.args.quiet {
            writeln!(stdout(), "{}", self.id)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The document of `--metadata-file`: BuildKit's keys, and rbuild's own under `rbuild.`.
    pub(super) fn metadata(&self) -> serde_json::Value {
        let Self { made, listed, .. } = self;
        let steps = self.steps.iter().map(|step| {
            let mut document = json!({
                "name": step.name,
                "layer": step.layer,
                "content": step.content,
                "cached": step.cached,
                "seconds": step.took.as_secs_f64(),
            });
            if let Some(cache) = &step.cache {
                document["cache"] = json!(cache);
            }
            document
        });
        let mut document = json!({
            "containerimage.descriptor": listed.descriptor,
            "containerimage.digest": listed.descriptor.digest,
            "rbuild.image": self.id,
            "rbuild.steps": steps.collect::<Vec<_>>(),
        });
        if made.index {
            let images = made.images.iter().zip(&listed.manifests).map(|((platform, image), manifest)| {
                json!({
                    "platform": platform.to_string(),
                    "containerimage.config.digest": image.image_id,
                    "containerimage.digest": manifest.digest,
                    "rbuild.content.digest": image.content,
                })
            });
            document["rbuild.images"] = images.collect();
        } else if let [(_, image)] = made.images.as_slice() {
            document["containerimage.config.digest"] = json!(image.image_id);
        }
        if !made.names.is_empty() {
            let name = |name: &Reference| {
                if made.by_digest { name.full_name() } else { name.to_string() }
            };
            let names: Vec<String> = made.names.iter().map(name).collect();
            document["image.name"] = names.join(",").into();
        }
        if let Some(content) = made.content() {
            document["rbuild.content.digest"] = content.to_string().into();
        }
        document
    }
}

/// Makes the images of a solution and puts them where they belong.
pub(super) fn finish(
    job: &Job<'_>,
    solution: &Solution,
    loader: Option<Loader>,
    pushes: &Pushes<'_, '_>,
) -> Result<Report, Failure> {
    let mut images = Vec::with_capacity(job.plan.images.len());
    for planned in &job.plan.images {
        images.push((planned.platform.clone(), assemble(job, solution, planned)?));
    }
    let height = images.iter().map(|(_, image)| image.config.rootfs.diff_ids.len()).max().unwrap_or(0);
    if height > DOCKERS_MOST_LAYERS {
        let note = format!("warning: the image has {height} layers; Docker refuses more than {DOCKERS_MOST_LAYERS}");
        job.reporter.event(Event::Note(&note));
    }
    let mut named =
        job.args.outputs.iter().filter(|output| matches!(output.kind, OutputKind::Image | OutputKind::Registry));
    let by_digest = named.clone().next().is_some() && named.all(|output| output.push && output.by_digest);
    let made = Made { images, index: job.plan.index, names: names(job.args)?, by_digest };
    let (kept, sent) = outputs::write(job, &made, loader, pushes)?;
    let listed = match sent.as_ref().or(kept.as_ref()) {
        Some(listed) => listed.clone(),
        // A root file system, or nothing, went out: the documents that the store would have.
        None => outputs::documents(job, &made, None)?.listed(),
    };
    let counts = kept.as_ref().unwrap_or(&listed);
    let id = made.id(&counts.descriptor);
    let steps = job.plan.steps.iter().zip(&solution.steps).map(|(step, solved)| StepReport {
        name: step.name.clone(),
        layer: solved.layer,
        content: solved.content,
        cached: solved.cached,
        cache: solved.cache.clone(),
        took: solved.took,
    });
    Ok(Report { id, listed, steps: steps.collect(), made })
}

/// The documents of one image.
fn assemble(job: &Job<'_>, solution: &Solution, planned: &PlannedImage) -> Result<Assembled, Failure> {
    let epoch = job.epoch();
    let base = planned.base.map(|base| job.bases[base.0].as_ref());
    let mut layers = BTreeMap::new();
    for step in job.plan.steps_of(planned.stack) {
        layers.insert(step, new_layer(job, &solution.steps[step.0], epoch)?);
    }
    if let Some(base) = base.filter(|base| reads_base(job.args, base)) {
        // Whatever else is made of the image has all its layers. (To be pushed, they need not come here.)
        job.remotes.complete(base, job.reporter)?;
    }
    let contents = match base.map(|base| base_contents(job.store, base)).transpose()?.flatten() {
        None => base.and_then(|base| share::base_contents(job, base)),
        known => known,
    };
    let parts =
        Parts { image: planned, base, base_contents: contents.as_deref(), layers: &layers, epoch, family: Family::Oci };
    Ok(assemble::assemble(&parts).map_err(anyhow::Error::from)?)
}

/// Whether an output takes the bytes of the base's layers: what is pushed does not, unless they are compressed anew.
pub(super) fn reads_base(args: &BuildArgs, base: &BaseImage) -> bool {
    let plain = || base.layers.iter().zip(&base.config.rootfs.diff_ids).any(|(blob, layer)| blob.digest == layer.0);
    let reads = |output: &OutputSpec| match output.kind {
        OutputKind::CacheOnly => false,
        _ if output.push => output.force_compression || plain(),
        _ => true,
    };
    args.outputs.is_empty() || args.outputs.iter().any(reads)
}

/// The layer of a step in the form that the image lists.
pub(super) fn new_layer(job: &Job<'_>, solved: &Solved, epoch: Option<i64>) -> Result<NewLayer, Failure> {
    if let Some(layer) = share::cached_layer(job, solved, epoch)? {
        return Ok(layer);
    }
    let diff_id = match epoch {
        None => solved.layer,
        Some(epoch) => epoch_form(job, solved, epoch)?,
    };
    let header = job.store.layer_summary(&diff_id).map_err(anyhow::Error::from)?;
    let descriptor = Descriptor::new(Family::Oci.layer(Encoding::Tar), diff_id.0, header.tar_size);
    Ok(NewLayer { diff_id, content: solved.content, descriptor, created: solved.created.clone() })
}

/// The form of a layer in which every time is the epoch: made by a pass over it, once.
fn epoch_form(job: &Job<'_>, solved: &Solved, epoch: i64) -> Result<DiffId, Failure> {
    let (store, lease) = (job.store, job.lease);
    let make = || -> anyhow::Result<DiffId> {
        if let Some(form) = store.epoch_form(&solved.content, epoch, WRITER_VERSION)?
            && lease.uses_layer(store, &form)?
        {
            return Ok(form);
        }
        let index = store.layer_index(&solved.layer)?.with_context(|| format!("the layer {} is gone", solved.layer))?;
        let mut written = index.clone();
        if index.origin() == Origin::Foreign {
            // It came from a shared cache, as a blob: another machine's rbuild wrote it. The form needs its data at hand.
            written = index.as_written_by(WRITER_VERSION)?;
            if store.stored_tar(&solved.layer)?.is_none() {
                let path = lease.fresh_path();
                let mut file =
                    fs::File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
                store.write_tar(&solved.layer, &mut lease.heeding(&mut file))?;
                store.put_layer(lease, &index, Form::Tar(path))?;
            }
        }
        let data = store.layer_data(&solved.layer, lease)?;
        let mut open = |position| Ok(data.open(&index, position)? as Box<dyn io::Read>);
        let made = write_form(&written, &mut open, Some(epoch), lease.heeding(io::sink()));
        let (form, _) = made.map_err(|error| match error {
            WriteError::Out(_) | WriteError::Thread(_) => anyhow::Error::from(error),
            // What is kept of the layer is not the layer.
            error => {
                let folder = store.path("layers").join(solved.layer.0.hex());
                store.damaged(&folder, format!("{:#}", anyhow::Error::from(error))).into()
            }
        })?;
        if form != solved.layer {
            store.put_layer(lease, &epoch_index(&written, form, epoch)?, Form::Epoch { of: solved.layer, epoch })?;
        }
        store.remember_epoch_form(lease, &solved.content, epoch, WRITER_VERSION, &form)?;
        Ok(form)
    };
    Ok(make()?)
}

/// What the layers of a base hold; `None` where one of them is not indexed.
pub(super) fn base_contents(store: &Store, base: &BaseImage) -> anyhow::Result<Option<Vec<ContentDigest>>> {
    let mut contents = Vec::new();
    for layer in &base.config.rootfs.diff_ids {
        if !store.has_layer(layer) {
            return Ok(None);
        }
        contents.push(store.layer_summary(layer)?.content);
    }
    Ok(Some(contents))
}

/// The names of `-t` and of outputs' `name=`, full, with tags.
pub(super) fn names(args: &BuildArgs) -> Result<Vec<Reference>, Failure> {
    let written = args.tags.iter().chain(args.outputs.iter().flat_map(|output| &output.names));
    written.map(|name| tag(name)).collect()
}

/// A name to give: it may have a tag, not a digest.
pub(super) fn tag(name: &str) -> Result<Reference, Failure> {
    let reference = Reference::parse(name).map_err(|error| Failure::Usage(format!("the name {name:?}: {error}")))?;
    if reference.digest().is_some() {
        return Err(Failure::Usage(format!(
            "the name {name:?} has a digest, which the result cannot be given; use a tag"
        )));
    }
    Ok(reference)
}
