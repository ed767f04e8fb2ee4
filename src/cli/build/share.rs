//! The shared caches of a build: `--cache-from` and `--cache-to`.
//!
//! In: specifications, the plan, at the end a solution. Out: a [`SharedCache`] for the engine; layers of the image that
//! never came here; artifacts for other machines. What always holds: a build that names no cache does nothing of this; what
//! is exported was built to its end, and the image is where it belongs before the cache is.

use std::time::Instant;

use super::Job;
use super::bring::Session;
use super::finish::{Made, base_contents as contents_here};
use super::outputs;
use super::remote::Remotes;
use crate::cache::key::{self, SourceId};
use crate::cache::record::CacheRecord;
use crate::cli::args::BuildArgs;
use crate::cli::cache_spec::{CacheMode, CachePlace, CacheSpec};
use crate::cli::failure::Failure;
use crate::cli::output_spec::{OutputKind, OutputSpec};
use crate::cli::settings::Settings;
use crate::diagnostic::nearest;
use crate::digest::{ChainId, ContentDigest, DiffId};
use crate::event::{Event, EventSink};
use crate::image::assemble::NewLayer;
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::layer::header::WRITER_VERSION;
use crate::plan::BaseImage;
use crate::plan::step::{CopyOp, INTERNAL, MountOp, Op, Plan, Sharing, Stack, StepId};
use crate::shared::{
    self, BaseContents, EpochForm, Export, Exported, Folder, Place, SharedCache, SharedError, StepResult,
};
use crate::solve::{Solution, Solved};
use crate::store::origins::Origin;

/// The caches that the build takes from.
pub(super) fn open<'a>(
    args: &'a BuildArgs,
    settings: &Settings,
    session: &'a Session,
    remotes: &'a Remotes<'a>,
    events: &'a dyn EventSink,
    plan: &Plan,
) -> Result<Option<SharedCache<'a>>, Failure> {
    if args.cache_from.iter().chain(&args.cache_to).any(|spec| !spec.mounts.is_empty()) {
        check_mounts(args, plan, events);
    }
    if args.cache_from.is_empty() {
        return Ok(None);
    }
    let mut places = Vec::new();
    for spec in &args.cache_from {
        places.push((place(spec, settings, remotes)?, spec.mounts.clone()));
    }
    let epoch = args.epoch.as_ref().is_some_and(|epoch| epoch.seconds.is_some());
    let reads = |output: &OutputSpec| output.kind != OutputKind::CacheOnly && (!output.push || epoch);
    let keeps = args.outputs.is_empty() || args.outputs.iter().any(reads);
    Ok(Some(SharedCache::new(&session.store, &session.lease, events, places, keeps)))
}

fn place<'a>(spec: &CacheSpec, settings: &Settings, remotes: &'a Remotes<'a>) -> Result<Place<'a>, Failure> {
    Ok(match &spec.place {
        CachePlace::Registry(reference) => Place::Registry(reference.clone(), remotes.registries()?),
        CachePlace::Local(folder) => Place::Folder(Folder::new(settings.cwd.join(folder))),
    })
}

/// Warns of ids that no command has: one may be from another Dockerfile, or mistyped.
fn check_mounts(args: &BuildArgs, plan: &Plan, events: &dyn EventSink) {
    let mut ids: Vec<&str> = Vec::new();
    for step in &plan.steps {
        let Op::Run(run) = &step.op else { continue };
        ids.extend(run.mounts.iter().filter_map(|mount| match &mount.kind {
            MountOp::Cache { id, .. } => Some(id.as_str()),
            _ => None,
        }));
    }
    let mut told: Vec<&str> = Vec::new();
    for id in args.cache_from.iter().chain(&args.cache_to).flat_map(|spec| &spec.mounts) {
        if ids.contains(&id.as_str()) || told.contains(&id.as_str()) {
            continue;
        }
        told.push(id);
        let help = match nearest(id, ids.iter().copied()) {
            Some(near) => format!("; did you mean {near}?"),
            None => String::new(),
        };
        events.event(Event::Note(&format!(
            "warning: mounts={id}: no RUN of this build has a cache mount of that id{help}"
        )));
    }
}

/// The repository of a shared cache that has a layer which never came here.
pub(super) fn elsewhere(job: &Job<'_>, layer: &DiffId) -> Option<Reference> {
    let shared = job.shared?;
    shared.repository(&*shared.claim(layer)?).cloned()
}

/// Notes where the layers are that an image is kept without.
pub(super) fn expect(job: &Job<'_>, made: &Made) -> Result<(), Failure> {
    let Some(shared) = job.shared else { return Ok(()) };
    let layers = made.images.iter().flat_map(|(_, image)| &image.config.rootfs.diff_ids);
    for layer in layers.filter(|layer| !job.store.has_layer(layer)) {
        let Some(claim) = shared.claim(layer) else { continue };
        let Some(reference) = shared.repository(&claim) else { continue };
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        let keep = || {
            let _shared = job.lease.shared()?;
            job.lease.uses([format!("layers/{}", layer.0.hex())])?;
            job.store.expect_layer(layer, Origin { blob: claim.blob.digest, repository })
        };
        keep().map_err(anyhow::Error::from)?;
    }
    Ok(())
}

/// What a cache says of the layers of a base that never came here.
pub(super) fn base_contents(job: &Job<'_>, base: &BaseImage) -> Option<Vec<ContentDigest>> {
    let layers = &base.config.rootfs.diff_ids;
    job.shared?.base_contents(&ChainId::of(layers)?, layers.len())
}

/// A layer of the image that never came here, as the image lists it; `None` where it is here, or is to come now.
pub(super) fn absent_layer(job: &Job<'_>, solved: &Solved, epoch: Option<i64>) -> Result<Option<NewLayer>, Failure> {
    let Some(shared) = job.shared.filter(|_| !job.store.has_layer(&solved.layer)) else { return Ok(None) };
    let layer = |diff_id, descriptor| {
        Ok(Some(NewLayer { diff_id, content: solved.content, descriptor, created: solved.created.clone() }))
    };
    let claim = shared.claim(&solved.layer);
    if let (Some(claim), Some(epoch)) = (&claim, epoch)
        && !job.args.outputs.iter().any(|output| output.kind != OutputKind::CacheOnly)
        && let Some(form) = claim.result.form(epoch, WRITER_VERSION)
    {
        let descriptor = Descriptor::new(Family::Oci.layer(Encoding::Tar), form.layer.0, form.tar_size);
        return layer(form.layer, descriptor);
    }
    if let (Some(claim), None) = (&claim, epoch) {
        // Another compression than that of the blob makes other bytes, and they are made of the layer.
        let as_wished = |output: &&OutputSpec| {
            let encoder = outputs::compression(output).unwrap_or(Compression::GZIP).encoder();
            encoder == claim.result.encoder && !output.force_compression
        };
        let mut pushed = job.args.outputs.iter().filter(|output| output.push);
        let nobody_reads = shared.repository(claim).is_some() || pushed.clone().next().is_none();
        if nobody_reads && pushed.all(|output| as_wished(&output)) {
            return layer(solved.layer, claim.blob.clone());
        }
    }
    if shared.bring(&solved.layer) == Some(true) {
        return Ok(None);
    }
    // It was told why.
    let why = "a shared cache does not have a layer that is needed now; build again without it, or with a local output";
    Err(anyhow::Error::msg(why).into())
}

/// Writes what was built to the caches of `--cache-to`.
pub(super) fn export(job: &Job<'_>, solution: &Solution) -> Result<(), Failure> {
    for spec in &job.args.cache_to {
        let label = format!("exporting cache to {}", spec.name());
        job.reporter.event(Event::Began(&label));
        let began = Instant::now();
        let result = export_one(job, solution, spec);
        if let Some(signal) = job.cancel.signal() {
            return Err(Failure::Interrupted(signal));
        }
        match result {
            Ok(Exported { written, there }) => {
                job.reporter.event(Event::Ended(&label, began.elapsed()));
                let note = format!("cache {}: {written} steps were written, {there} were there", spec.name());
                job.reporter.event(Event::Note(&note));
            }
            Err(Failure::Error(error)) => {
                let why = format!("the cache cannot be written to {}: {error:#}", spec.name());
                if !spec.ignore_error {
                    let help = "the image itself is built; ignore-error=true lets a build pass without its cache";
                    return Err(anyhow::anyhow!("{why}; {help}").into());
                }
                job.reporter.event(Event::Note(&format!("warning: {why}")));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

fn export_one(job: &Job<'_>, solution: &Solution, spec: &CacheSpec) -> Result<Exported, Failure> {
    let failed = |error: SharedError| Failure::from(anyhow::Error::from(error));
    let mut wanted = vec![spec.mode == CacheMode::Max; job.plan.steps.len()];
    for image in &job.plan.images {
        steps_of(job.plan, image.stack).for_each(|StepId(step)| wanted[step] = true);
    }
    // What was loaded of a context for a mount is of no use without that context, which has it.
    let steps =
        job.plan.steps.iter().enumerate().filter(|(index, step)| wanted[*index] && !step.name.starts_with(INTERNAL));
    let results =
        steps.map(|(index, _)| result(job, solution, StepId(index))).collect::<Result<Vec<StepResult>, Failure>>()?;
    let export = Export {
        place: place(spec, job.settings, job.remotes)?,
        compression: outputs::compression(&spec.form).unwrap_or(Compression::GZIP),
        force: spec.form.force_compression,
        store: job.store,
        lease: job.lease,
        shared: job.shared,
    };
    let exported = shared::export(&export, &results).map_err(failed)?;
    for name in solution.caches.iter().filter(|name| spec.mounts.contains(&name.id)) {
        let mut waiting = || {};
        let taken = job.store.cache_mount(job.lease, name, Sharing::Shared, job.cancel, &mut waiting);
        let Some(mount) = taken.map_err(anyhow::Error::from)? else { continue };
        if mount.folder().is_dir() {
            shared::export_mount(&export.place, &name.digest(), mount.folder(), job.lease).map_err(failed)?;
        }
    }
    Ok(exported)
}

/// The steps of a stack.
fn steps_of(plan: &Plan, stack: Stack) -> impl Iterator<Item = StepId> + '_ {
    let step = |stack| match stack {
        Stack::Step(step) => Some(step),
        Stack::Base(_) | Stack::Scratch => None,
    };
    std::iter::successors(step(stack), move |id| step(plan.steps[id.0].parent))
}

/// What a step gave, as others get it.
fn result(job: &Job<'_>, solution: &Solution, id: StepId) -> Result<StepResult, Failure> {
    let solved = &solution.steps[id.0];
    let step = &job.plan.steps[id.0];
    let record = &solved.record;
    let mut keys = solved.keys.clone();
    // A step that hit by its first key did not look for the others; its record says them.
    let copy: Option<(Option<&CopyOp>, SourceId)> = match &step.op {
        Op::Copy(copy) => record.source.map(|source| (Some(copy), SourceId::Content(source))),
        Op::MakeDir(_) => Some((None, SourceId::Nothing)),
        Op::Run(_) => None,
    };
    if let Some((copy, source)) = copy {
        let op = key::op_digest(&step.op, &step.platform);
        keys.push(key::quick_key(copy, &op, &source, &below(job, solution, step.parent)));
        keys.extend(record.landing.map(|landing| key::landing_key(copy, &op, &source, &landing)));
    }
    keys.sort_unstable();
    keys.dedup();
    let record = CacheRecord { layer: solved.layer, content: solved.content, ..record.clone() };
    let mut result = StepResult::new(&record, keys, solved.created.clone());
    result.base = base_of(job, step.parent)?;
    if let Some(epoch) = job.epoch() {
        result.forms.extend(form(job, solved, epoch)?);
    }
    Ok(result)
}

/// The StackId that a step is run on.
fn below(job: &Job<'_>, solution: &Solution, parent: Stack) -> crate::digest::StackId {
    match parent {
        Stack::Step(StepId(step)) => solution.steps[step].stack,
        Stack::Base(base) => key::stack_id(ChainId::of(&job.bases[base.0].config.rootfs.diff_ids).as_ref(), &[]),
        Stack::Scratch => key::stack_id(None, &[]),
    }
}

/// What the layers of the base under a step hold.
fn base_of(job: &Job<'_>, mut stack: Stack) -> Result<Option<BaseContents>, Failure> {
    while let Stack::Step(StepId(step)) = stack {
        stack = job.plan.steps[step].parent;
    }
    let Stack::Base(base) = stack else { return Ok(None) };
    let base = &job.bases[base.0];
    let Some(chain) = ChainId::of(&base.config.rootfs.diff_ids) else { return Ok(None) };
    let contents = contents_here(job.store, base)?.or_else(|| base_contents(job, base));
    Ok(contents.map(|contents| BaseContents { chain, contents }))
}

/// What a layer is called under the epoch of this build.
fn form(job: &Job<'_>, solved: &Solved, epoch: i64) -> Result<Option<EpochForm>, Failure> {
    let known = job.store.epoch_form(&solved.content, epoch, WRITER_VERSION).map_err(anyhow::Error::from)?;
    let Some(layer) = known else { return Ok(None) };
    let tar_size = job.store.layer_summary(&layer).map_err(anyhow::Error::from)?.tar_size;
    Ok(Some(EpochForm { epoch, writer: WRITER_VERSION, layer, tar_size }))
}
