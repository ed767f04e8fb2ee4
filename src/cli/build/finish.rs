//! The end of a build: documents, forms under an epoch, outputs, names, and what the user is told.
//!
//! In: a solution. Out: an image in the store and in files, and a [`Report`]. What always holds: what was made is
//! durable before a name leads to it; a build with nothing new writes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde_json::json;

use super::Job;
use crate::cli::args::BuildArgs;
use crate::cli::failure::Failure;
use crate::cli::output_spec::{CompressionName, Destination, OutputKind, OutputSpec};
use crate::cli::render::Built;
use crate::cli::stdout::stdout;
use crate::digest::{ContentDigest, DiffId, ImageId};
use crate::event::{Event, EventSink};
use crate::image::assemble::{self, Assembled, NewLayer, Parts};
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::layer::header::WRITER_VERSION;
use crate::layer::write::{epoch_index, write_form};
use crate::output::{self, Output, OutputImage};
use crate::plan::BaseImage;
use crate::plan::step::Stack;
use crate::solve::{Solution, Solved};
use crate::store::images::ImageRecord;
use crate::store::layers::Form;
use crate::store::{Store, base};

/// Docker does not load images with more layers.
const DOCKERS_MOST_LAYERS: usize = 127;

/// What a build came to.
pub(super) struct Report {
    id: ImageId,
    content: Option<ContentDigest>,
    manifest: Descriptor,
    names: Vec<Reference>,
    /// Per step of the plan.
    steps: Vec<StepReport>,
}

/// What `--metadata-file` says of a step.
struct StepReport {
    name: String,
    layer: DiffId,
    content: ContentDigest,
    cached: bool,
    took: Duration,
}

impl Report {
    /// The layers that this build made.
    pub(super) fn made(&self) -> Vec<DiffId> {
        self.steps.iter().filter(|step| !step.cached).map(|step| step.layer).collect()
    }

    /// What the user is told last.
    pub(super) fn built(&self) -> Built {
        let names = self.names.iter().map(Reference::familiar).collect();
        Built { image: self.id, content: self.content, names }
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

    /// The document of `--metadata-file`: Docker's keys, and rbuild's own under `rbuild.`.
    pub(super) fn metadata(&self) -> serde_json::Value {
        let steps = self.steps.iter().map(|step| {
            json!({
                "name": step.name,
                "layer": step.layer,
                "content": step.content,
                "cached": step.cached,
                "seconds": step.took.as_secs_f64(),
            })
        });
        let mut document = json!({
            "containerimage.config.digest": self.id,
            "containerimage.descriptor": self.manifest,
            "containerimage.digest": self.manifest.digest,
            "rbuild.steps": steps.collect::<Vec<_>>(),
        });
        if !self.names.is_empty() {
            let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
            document["image.name"] = names.join(",").into();
        }
        if let Some(content) = self.content {
            document["rbuild.content.digest"] = content.to_string().into();
        }
        document
    }
}

/// Makes the image of a solution and puts it where it belongs.
pub(super) fn finish(job: &Job<'_>, solution: &Solution) -> Result<Report, Failure> {
    let [planned] = job.plan.images.as_slice() else {
        return Err(anyhow!("internal error: a plan has one image, not {}", job.plan.images.len()).into());
    };
    let epoch = job.epoch();
    let base = planned.base.map(|base| job.bases[base.0].as_ref());
    let mut layers = BTreeMap::new();
    let mut stack = planned.stack;
    while let Stack::Step(step) = stack {
        layers.insert(step, new_layer(job, &solution.steps[step.0], epoch)?);
        stack = job.plan.steps[step.0].parent;
    }
    let reads = |output: &OutputSpec| !output.push && output.kind != OutputKind::CacheOnly;
    if let Some(base) = base.filter(|_| job.args.outputs.is_empty() || job.args.outputs.iter().any(reads)) {
        // Whatever else is made of the image has all its layers. (To be pushed, they need not come here.)
        job.remotes.complete(base, job.reporter)?;
    }
    let contents = base.map(|base| base_contents(job.store, base)).transpose()?.flatten();
    let assembled = assemble::assemble(&Parts {
        image: planned,
        base,
        base_contents: contents.as_deref(),
        layers: &layers,
        epoch,
        family: Family::Oci,
    })
    .map_err(anyhow::Error::from)?;

    let height = assembled.config.rootfs.diff_ids.len();
    if height > DOCKERS_MOST_LAYERS {
        let note = format!("warning: the image has {height} layers; Docker refuses more than {DOCKERS_MOST_LAYERS}");
        job.reporter.event(Event::Note(&note));
    }
    let names = names(job.args)?;
    let wants_store =
        job.args.outputs.is_empty() || job.args.outputs.iter().any(|output| output.kind == OutputKind::Image);
    let absent = assembled.config.rootfs.diff_ids.iter().any(|layer| !job.store.has_layer(layer));
    if wants_store && absent {
        let note = "the image is pushed and not kept in the local store: layers of its base never came here";
        job.reporter.event(Event::Note(note));
    } else if wants_store {
        if let Some(base) = base {
            job.remotes.complete(base, job.reporter)?;
        }
        keep(job, &assembled, &names)?;
    }
    let mut manifest = assembled.descriptor();
    for spec in &job.args.outputs {
        if spec.push {
            let (compression, family) = form(spec);
            // The digest by which others get it.
            manifest = super::push::push(job, spec, compression, family, &assembled, &names)?;
        }
        write_output(job, spec, &assembled, &names)?;
    }
    let steps = job.plan.steps.iter().zip(&solution.steps).map(|(step, solved)| StepReport {
        name: step.name.clone(),
        layer: solved.layer,
        content: solved.content,
        cached: solved.cached,
        took: solved.took,
    });
    Ok(Report { id: assembled.image_id, content: assembled.content, manifest, names, steps: steps.collect() })
}

/// The layer of a step in the form that the image lists.
fn new_layer(job: &Job<'_>, solved: &Solved, epoch: Option<i64>) -> Result<NewLayer, Failure> {
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
        let data = store.layer_data(&solved.layer, lease)?;
        let mut open = |position| Ok(data.open(&index, position)? as Box<dyn io::Read>);
        let (form, _) = write_form(&index, &mut open, Some(epoch), lease.heeding(io::sink()))?;
        if form != solved.layer {
            store.put_layer(lease, &epoch_index(&index, form, epoch)?, Form::Epoch { of: solved.layer, epoch })?;
        }
        store.remember_epoch_form(lease, &solved.content, epoch, WRITER_VERSION, &form)?;
        Ok(form)
    };
    Ok(make()?)
}

/// What the layers of a base hold; `None` where one of them is not indexed.
fn base_contents(store: &Store, base: &BaseImage) -> anyhow::Result<Option<Vec<ContentDigest>>> {
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

/// Puts the image's documents into the store, makes all durable, and gives the names.
fn keep(job: &Job<'_>, image: &Assembled, names: &[Reference]) -> Result<(), Failure> {
    let (store, lease) = (job.store, job.lease);
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let descriptor = image.descriptor();
    let known = store.image_by_manifest(&descriptor.digest).map_err(anyhow::Error::from)?;
    let known = known.filter(|known| known.id == image.image_id);
    if known.as_ref().is_some_and(|known| names.iter().all(|name| known.names.contains(name))) {
        return Ok(());
    }
    // Of a known image too: what nobody names may be collected until this lease lists it.
    store.put_blob(lease, &image.config_bytes).map_err(anyhow::Error::from)?;
    store.put_blob(lease, &image.manifest_bytes).map_err(anyhow::Error::from)?;
    let record = match known {
        Some(known) => ImageRecord { names, ..known },
        None => {
            let mut size = 0;
            for layer in &image.config.rootfs.diff_ids {
                size += store.layer_summary(layer).map_err(anyhow::Error::from)?.files_size;
            }
            ImageRecord {
                id: image.image_id,
                names,
                manifest: descriptor.digest,
                media_type: descriptor.media_type.to_string(),
                manifest_size: descriptor.size,
                content: image.content,
                created: image.config.created.clone(),
                size,
                platform: image.config.platform().to_string(),
            }
        }
    };
    base::keep(store, lease, &record).map_err(anyhow::Error::from)?;
    Ok(())
}

/// How layers are compressed, and whose media types they have.
fn form(spec: &OutputSpec) -> (Option<Compression>, Option<Family>) {
    let level = |usual: u8| spec.level.and_then(|level| u8::try_from(level).ok()).unwrap_or(usual);
    let compression = spec.compression.map(|name| match (name, Compression::GZIP, Compression::ZSTD) {
        (CompressionName::Gzip, Compression::Gzip(usual), _) => Compression::Gzip(level(usual)),
        (CompressionName::Zstd, _, Compression::Zstd(usual)) => Compression::Zstd(level(usual)),
        _ => Compression::None,
    });
    let family = spec.oci_mediatypes.map(|oci| if oci { Family::Oci } else { Family::Docker });
    (compression, family)
}

fn write_output(job: &Job<'_>, spec: &OutputSpec, image: &Assembled, names: &[Reference]) -> Result<(), Failure> {
    let kind = match spec.kind {
        OutputKind::Image | OutputKind::Registry | OutputKind::CacheOnly => return Ok(()),
        OutputKind::Oci => output::OutputKind::Oci { tar: spec.tar },
        OutputKind::Docker => output::OutputKind::Docker { tar: spec.tar },
        OutputKind::Tar => output::OutputKind::Tar,
        OutputKind::Local => output::OutputKind::Local,
    };
    let dest = match &spec.dest {
        Some(Destination::Path(path)) => output::Destination::Path(job.settings.cwd.join(path)),
        Some(Destination::Stdout) | None => output::Destination::Stdout,
    };
    let (compression, family) = form(spec);
    let output = Output { kind, dest, compression, force_compression: spec.force_compression, family };
    let label = format!("exporting to {}", spec.kind.name());
    job.reporter.event(Event::Began(&label));
    let began = Instant::now();
    let manifest = image.manifest.clone();
    let image = OutputImage::new(image.config_bytes.clone(), &image.config, manifest, names.to_vec());
    let written = output::write(&output, &image, job.store, job.lease, job.epoch()).map_err(anyhow::Error::from)?;
    for note in &written.notes {
        job.reporter.event(Event::Note(note));
    }
    job.reporter.event(Event::Ended(&label, began.elapsed()));
    Ok(())
}
