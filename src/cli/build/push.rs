//! The end of a build that goes to a registry, and what goes there before the end.
//!
//! In: layers of the result as they come to stand; the images of a build. Out: the registry has them under their names.
//! What always holds: layers of a base that no step read do not come here for it; a layer goes ahead only if it belongs to
//! the result for sure, and of a build that fails nothing gets a name; an index goes when all its images are there, which
//! have no tags of their own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Instant;

use super::Job;
use super::finish::{Listed, Made, names, new_layer, reads_base};
use super::outputs;
use crate::cli::failure::Failure;
use crate::cli::output_spec::OutputSpec;
use crate::digest::{DiffId, Digest};
use crate::event::{Event, EventSink};
use crate::image::annotation::{Carrier, annotations_of};
use crate::image::assemble::AssembledIndex;
use crate::image::manifest::{Descriptor, Family};
use crate::image::reference::Reference;
use crate::output::OutputError;
use crate::output::registry::{Layers, Target, push as send, push_index, send_ahead};
use crate::plan::step::StepId;
use crate::registry::pull::{Transfer, Transfers};
use crate::solve::Solved;

/// Layers that go ahead at once: steps need the processors more.
const AT_ONCE: usize = 2;

/// What is pushed of a build: layers of the result go ahead while later steps run.
pub(super) struct Pushes<'j, 'a> {
    job: &'j Job<'a>,
    /// The outputs that go to a registry.
    outputs: Vec<(&'j OutputSpec, Layers)>,
    names: Vec<Reference>,
    /// The steps whose layers the result has.
    steps: BTreeSet<StepId>,
    parts: Parts<'j>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A layer of the result.
enum Ahead {
    /// Of a step.
    Step(Solved),
    /// Of its base, as that lists it.
    Base(DiffId, Descriptor),
}

/// Layers that are to go ahead.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Ahead>,
    threads: usize,
    /// No further one goes ahead: the steps have ended, or one layer could not be sent. The end of the build sends what is
    /// left, and tells what is wrong.
    closed: bool,
}

impl<'j, 'a> Pushes<'j, 'a> {
    /// Sends nothing yet.
    pub(super) fn new(job: &'j Job<'a>) -> Result<Self, Failure> {
        let mut pushes = Self {
            job,
            outputs: Vec::new(),
            names: Vec::new(),
            steps: BTreeSet::new(),
            parts: Parts { events: job.reporter, layers: Mutex::default() },
            queue: Mutex::default(),
            changed: Condvar::new(),
        };
        if job.plan.shell.is_none() {
            let pushed = job.args.outputs.iter().filter(|output| output.push);
            pushes.outputs.extend(pushed.map(|output| (output, Layers::default())));
        }
        if pushes.outputs.is_empty() {
            return Ok(pushes);
        }
        pushes.names = names(job.args)?;
        for image in &job.plan.images {
            pushes.steps.extend(job.plan.steps_of(image.stack));
            let base = image.base.map(|base| &job.bases[base.0]).filter(|base| !reads_base(job.args, base));
            let layers = base.into_iter().flat_map(|base| base.config.rootfs.diff_ids.iter().zip(&base.layers));
            let layers = layers.map(|(layer, blob)| Ahead::Base(*layer, blob.clone()));
            pushes.queue.get_mut().unwrap_or_else(PoisonError::into_inner).waiting.extend(layers);
        }
        Ok(pushes)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a layer go ahead, if it belongs to the result; before the first, those of the base, as far as nobody reads them
    /// for anything else.
    pub(super) fn take<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, step: StepId, solved: &Solved) {
        if self.outputs.is_empty() {
            return;
        }
        let mut queue = self.queue();
        if self.steps.contains(&step) {
            queue.waiting.push_back(Ahead::Step(solved.clone()));
        }
        while !queue.closed && queue.threads < AT_ONCE.min(queue.waiting.len()) {
            let spawned = thread::Builder::new().name("push".to_owned()).spawn_scoped(scope, move || self.work());
            if spawned.is_err() {
                // Without a thread the layer goes at the end.
                break;
            }
            queue.threads += 1;
        }
        self.changed.notify_all();
    }

    /// Layers go ahead as long as this lives; those on their way then go on to their end.
    pub(super) fn going_ahead(&self) -> GoingAhead<'_, 'j, 'a> {
        GoingAhead(self)
    }

    /// Waits until none is on its way.
    pub(super) fn wait(&self) {
        let mut queue = self.queue();
        while queue.threads > 0 {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        let mut queue = self.queue();
        while !queue.closed {
            let Some(layer) = queue.waiting.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let sent = self.send_ahead(&layer);
            if let (Err(Failure::Error(error)), false) = (&sent, self.job.cancel.is_canceled()) {
                let note =
                    format!("warning: no layer goes ahead any more: {error:#}; the end of the build tries again");
                self.job.reporter.event(Event::Note(&note));
            }
            queue = self.queue();
            queue.closed |= sent.is_err();
        }
        queue.threads -= 1;
        self.changed.notify_all();
    }

    fn send_ahead(&self, layer: &Ahead) -> Result<(), Failure> {
        let job = self.job;
        let (diff_id, listed) = match layer {
            Ahead::Base(layer, blob) => (*layer, blob.clone()),
            Ahead::Step(solved) => {
                let made = new_layer(job, solved, job.epoch())?;
                (made.diff_id, made.descriptor)
            }
        };
        for (spec, layers) in &self.outputs {
            self.with_target(spec, layers, false, |target| {
                send_ahead(target, job.store, job.lease, &diff_id, &listed, Family::Oci)
            })?;
        }
        Ok(())
    }

    /// Acts on where an output goes; images of an index have no tags.
    fn with_target<T>(
        &self,
        spec: &OutputSpec,
        layers: &Layers,
        index: bool,
        act: impl FnOnce(&Target<'_>) -> Result<T, OutputError>,
    ) -> Result<T, Failure> {
        let target = Target {
            registries: self.job.remotes.registries()?,
            names: &self.names,
            by_digest: spec.by_digest || index,
            compression: outputs::compression(spec),
            force: spec.force_compression,
            family: outputs::family(Some(spec)),
            manifest: None,
            elsewhere: &|layer: &DiffId| self.job.remotes.elsewhere(layer),
            layers,
            listener: &self.parts,
        };
        Ok(act(&target).map_err(anyhow::Error::from)?)
    }

    /// Pushes the images for one output; the documents as the registry has them.
    pub(super) fn push(&self, spec: &OutputSpec, made: &Made) -> Result<Listed, Failure> {
        let job = self.job;
        let familiar = if spec.by_digest { Reference::familiar_name } else { Reference::familiar };
        let shown = self.names.iter().map(familiar).collect::<Vec<_>>().join(", ");
        let label = format!("pushing {shown}");
        job.reporter.event(Event::Began(&label));
        let began = Instant::now();
        let annotations = outputs::annotations(job, Some(spec));
        let none = Layers::default();
        let ahead = self.outputs.iter().find(|(output, _)| std::ptr::eq(*output, spec));
        let layers = ahead.map_or(&none, |(_, layers)| layers);
        let mut manifests = Vec::with_capacity(made.images.len());
        for (platform, image) in &made.images {
            let image = outputs::output_image(platform, image, &annotations, &self.names);
            let mut descriptor =
                self.with_target(spec, layers, made.index, |target| send(target, &image, job.store, job.lease))?;
            if made.index {
                descriptor.platform = Some(platform.into());
                descriptor.annotations = image.descriptor_annotations;
            }
            manifests.push((descriptor, platform.clone()));
        }
        let listed: Vec<_> = manifests.iter().map(|(descriptor, _)| descriptor.clone()).collect();
        let descriptor = if made.index {
            let own = annotations_of(&annotations, Carrier::Index, None);
            let index = AssembledIndex::new(outputs::family(Some(spec)).unwrap_or_default(), manifests, own);
            self.with_target(spec, layers, false, |target| push_index(target, &index.descriptor(), &index.bytes))?;
            index.descriptor()
        } else {
            // Proof: a result without an index has one image.
            listed[0].clone()
        };
        job.reporter.event(Event::Ended(&label, began.elapsed()));
        let note = format!("pushed {shown} digest: {} size: {}", descriptor.digest, descriptor.size);
        job.reporter.event(Event::Note(&note));
        Ok(Listed { descriptor, manifests: listed })
    }
}

/// The time in which layers go ahead.
pub(super) struct GoingAhead<'p, 'j, 'a>(&'p Pushes<'j, 'a>);

impl Drop for GoingAhead<'_, '_, '_> {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.outputs.iter().for_each(|(_, layers)| layers.hurry());
        self.0.changed.notify_all();
    }
}

/// Shows layers on their way as parts of the build.
struct Parts<'a> {
    events: &'a dyn EventSink,
    layers: Mutex<HashMap<Digest, Shown>>,
}

/// What is shown of a layer.
#[derive(Default)]
struct Shown {
    /// Since when it moves.
    since: Option<Instant>,
    /// To how many repositories it went.
    times: usize,
}

impl Transfers for Parts<'_> {
    fn transfer(&self, blob: &Digest, event: Transfer<'_>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = layers.entry(*blob).or_default();
        let label = |times: usize| match times {
            0 => format!("pushing layer {}", &blob.hex()[..12]),
            // Each part has a name of its own.
            times => format!("pushing layer {} to repository {}", &blob.hex()[..12], times + 1),
        };
        match event {
            // One that broke off, and is sent again at the end of the build, is still shown.
            Transfer::Begins { .. } if shown.since.is_none() => {
                shown.since = Some(Instant::now());
                self.events.event(Event::Began(&label(shown.times)));
            }
            Transfer::Done => {
                let took = shown.since.take().map(|since| since.elapsed()).unwrap_or_default();
                self.events.event(Event::Ended(&label(shown.times), took));
                shown.times += 1;
            }
            Transfer::Begins { .. } | Transfer::Exists | Transfer::Moved(_) | Transfer::Mounted { .. } => {}
        }
    }
}
