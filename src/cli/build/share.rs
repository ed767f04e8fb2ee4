//! The shared caches of a build: `--cache-from` and `--cache-to`.
//!
//! In: specifications, the plan, at the end a solution. Out: a [`SharedCache`] for the engine; layers of the image that
//! never came here; artifacts for other machines. What always holds: a build that names no cache does nothing of this; what
//! is exported was built to its end, and the image is where it belongs before the cache is.

use std::time::Instant;

use super::Job;
use super::bring::Session;
use super::finish::base_contents as contents_here;
use super::outputs;
use super::remote::Remotes;
use crate::cli::args::BuildArgs;
use crate::cli::cache_spec::{CacheMode, CachePlace, CacheSpec};
use crate::cli::failure::Failure;
use crate::cli::output_spec::{OutputKind, OutputSpec};
use crate::cli::settings::Settings;
use crate::diagnostic::nearest;
use crate::digest::{ChainId, ContentDigest};
use crate::event::{Event, EventSink};
use crate::image::assemble::NewLayer;
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::layer::compress::Compression;
use crate::layer::header::WRITER_VERSION;
use crate::plan::BaseImage;
use crate::plan::step::{INTERNAL, MountOp, Op, Plan, Sharing, Stack, StepId};
use crate::shared::{
    self, BaseContents, Claim, EpochForm, Export, Exported, Folder, Need, Place, SharedCache, SharedError, StepResult,
};
use crate::solve::{Solution, Solved};
use crate::store::StoreError;
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
    let needs = Box::new(|claim: &Claim, in_registry| need(args, claim, in_registry));
    Ok(Some(SharedCache::new(&session.store, &session.lease, events, places, needs)))
}

/// What is to be had of a layer of the image that a cache has: nothing comes just to be pushed as it is.
fn need(args: &BuildArgs, claim: &Claim, in_registry: bool) -> Need {
    let epoch = args.epoch.as_ref().and_then(|epoch| epoch.seconds);
    let mut written = args.outputs.iter().filter(|output| output.kind != OutputKind::CacheOnly).peekable();
    if written.peek().is_none() && !args.outputs.is_empty() {
        let form = epoch.map(|epoch| claim.result.form(epoch, WRITER_VERSION));
        return if form == Some(None) { Need::Layer } else { Need::Nothing };
    }
    // Another compression than that of the blob makes other bytes, and they are made of the layer.
    let as_it_is = |output: &OutputSpec| {
        let encoder = outputs::compression(output).unwrap_or(Compression::GZIP).encoder();
        output.push && encoder == claim.result.encoder && !output.force_compression
    };
    let passes = in_registry && epoch.is_none() && !args.outputs.is_empty() && written.all(as_it_is);
    if passes { Need::Blob } else { Need::Layer }
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

/// What a cache says of the layers of a base that never came here.
pub(super) fn base_contents(job: &Job<'_>, base: &BaseImage) -> Option<Vec<ContentDigest>> {
    let layers = &base.config.rootfs.diff_ids;
    job.shared?.base_contents(&ChainId::of(layers)?, layers.len())
}

/// A layer of the image as a shared cache has it; `None` where the image lists what is here, or comes now.
pub(super) fn cached_layer(job: &Job<'_>, solved: &Solved, epoch: Option<i64>) -> Result<Option<NewLayer>, Failure> {
    let Some(shared) = job.shared else { return Ok(None) };
    let failed = |error: StoreError| Failure::from(anyhow::Error::from(error));
    let Solved { layer, content, created, .. } = solved;
    let is_here = job.store.has_layer(layer);
    let listed =
        |diff_id, descriptor| Ok(Some(NewLayer { diff_id, content: *content, descriptor, created: created.clone() }));
    let claim = shared.claim(layer, content);
    if let Some(claim) = &claim {
        // One that is here counts as the blob only if it came as that.
        let came =
            || Ok::<_, StoreError>(job.store.layer_blobs(layer)?.iter().any(|own| own.digest == claim.blob.digest));
        match (shared.need(claim), epoch.map(|epoch| claim.result.form(epoch, WRITER_VERSION))) {
            (Need::Nothing, Some(Some(form))) if !is_here => {
                return listed(
                    form.layer,
                    Descriptor::new(Family::Oci.layer(Encoding::Tar), form.layer.0, form.tar_size),
                );
            }
            (Need::Nothing, None) if !is_here => return listed(*layer, claim.blob.clone()),
            (Need::Blob, _) if !is_here || came().map_err(failed)? => {
                if let Some(reference) = shared.repository(claim) {
                    // Who pushes the image, or reads it later, finds the blob there. The lease lists the layer.
                    let origin = Origin { blob: claim.blob.digest, repository: reference.full_name() };
                    job.store.expect_layer(layer, origin).map_err(failed)?;
                }
                return listed(*layer, claim.blob.clone());
            }
            _ => {}
        }
    }
    if is_here || shared.bring(layer, content) == Some(true) {
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
        job.reporter.event(Event::Ended(&label, began.elapsed()));
        if let Some(signal) = job.cancel.signal() {
            return Err(Failure::Interrupted(signal));
        }
        match result {
            Ok(Exported { written, there }) => {
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
        job.plan.steps_of(image.stack).for_each(|StepId(step)| wanted[step] = true);
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
        if !mount.folder().is_dir() {
            continue;
        }
        let sent = shared::export_mount(&export.place, &name.digest(), mount.folder(), job.lease).map_err(failed)?;
        if let Err(why) = sent {
            let note = format!("warning: the cache mount {} is not in {} now: {why}", name.id, spec.name());
            job.reporter.event(Event::Note(&note));
        }
    }
    Ok(exported)
}

/// What a step gave, as others get it.
fn result(job: &Job<'_>, solution: &Solution, id: StepId) -> Result<StepResult, Failure> {
    let Solved { keys, layer, content, created, .. } = &solution.steps[id.0];
    let mut result = StepResult::new(keys.clone(), *layer, *content, created.clone());
    result.base = base_of(job, job.plan.steps[id.0].parent)?;
    if let Some(epoch) = job.epoch() {
        result.forms.extend(form(job, content, epoch)?);
    }
    Ok(result)
}

/// What the layers of the base under a step hold.
fn base_of(job: &Job<'_>, mut stack: Stack) -> Result<Option<BaseContents>, Failure> {
    while let Stack::Step(StepId(step)) = stack {
        stack = job.plan.steps[step].parent;
    }
    let Stack::Base(base) = stack else { return Ok(None) };
    let base = &job.bases[base.0];
    let Some(chain) = ChainId::of(&base.config.rootfs.diff_ids) else { return Ok(None) };
    // What another cache says of it is not said again.
    Ok(contents_here(job.store, base)?.map(|contents| BaseContents { chain, contents }))
}

/// What a layer is called under the epoch of this build.
fn form(job: &Job<'_>, content: &ContentDigest, epoch: i64) -> Result<Option<EpochForm>, Failure> {
    let known = job.store.epoch_form(content, epoch, WRITER_VERSION).map_err(anyhow::Error::from)?;
    let Some(layer) = known else { return Ok(None) };
    let tar_size = job.store.layer_summary(&layer).map_err(anyhow::Error::from)?.tar_size;
    Ok(Some(EpochForm { epoch, writer: WRITER_VERSION, layer, tar_size }))
}
