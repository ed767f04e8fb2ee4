//! What the engine does only where a build names shared caches.
//!
//! In: steps to be looked up, steps that are left. Out: look-ups at once, layers before they are needed. What always holds:
//! threads are joined before a method returns; a layer that a cache promised and does not have fails no build: all begins
//! anew without that promise, and what was built until then is found in the cache.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use super::stacks::Part;
use super::{Cause, Solver, StepError, schedule};
use crate::plan::step::{INTERNAL, Op, Stack, StepId};
use crate::registry::AT_ONCE;
use crate::shared::Need;
use crate::sys::threads::at_once;

/// Look-ups at once: they wait for a registry, and take no processor.
const LOOKUPS: usize = 8;

impl Solver<'_> {
    /// First pass: looks steps up, those that do not wait for each other at once. What is `done` is left out.
    pub(super) fn follow_at_once(
        &self,
        needs: &[Vec<usize>],
        done: &mut [bool],
        looked_up: &mut [bool],
    ) -> Result<(), StepError> {
        let hits: Vec<AtomicBool> = done.iter().copied().map(AtomicBool::new).collect();
        let looked: Vec<AtomicBool> = looked_up.iter().copied().map(AtomicBool::new).collect();
        let job = |index: usize| {
            // What it needs was looked up before, and may have missed.
            if needs[index].iter().all(|need| hits[*need].load(Ordering::Acquire)) {
                looked[index].store(true, Ordering::Relaxed);
                let hit = self.follow(StepId(index)).map_err(|cause| StepError::new(StepId(index), cause))?;
                hits[index].store(hit, Ordering::Release);
            }
            Ok(())
        };
        schedule::run(needs, done, LOOKUPS, needs.len(), &job, &|| {})?;
        for (index, (hit, was_looked)) in hits.iter().zip(&looked).enumerate() {
            done[index] = hit.load(Ordering::Relaxed);
            looked_up[index] = was_looked.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Before commands run: brings the layers that lie below them. `false` where a shared cache does not have one that it
    /// promised.
    pub(super) fn bring_for_commands(&self, done: &[bool], needs: &[Vec<usize>]) -> Result<bool, StepError> {
        if self.engine.shared.is_none() {
            return Ok(true);
        }
        let mut layers = BTreeSet::new();
        let mut first = None;
        for (index, step) in self.plan.steps.iter().enumerate().filter(|(index, _)| !done[*index]) {
            let Op::Run(run) = &step.op else { continue };
            let mut left = needs[index].iter().filter(|need| !done[**need]).peekable();
            // What it mounts of the context has to be loaded first; then it may still be in the cache.
            if left.peek().is_some() && left.all(|need| self.plan.steps[*need].name.starts_with(INTERNAL)) {
                continue;
            }
            let mounted = run.mounts.iter().filter_map(|mount| Some(mount.kind.input()?.stack));
            for stack in std::iter::once(step.parent).chain(mounted) {
                self.add_absent(stack, &mut layers);
            }
            first.get_or_insert(StepId(index));
        }
        self.for_each(&layers, first.unwrap_or(StepId(0)), |part| self.stacks.index(part).map(drop))
    }

    /// When all is solved: sees to it that what is needed of the images' layers can be had. As [`Self::bring_for_commands`].
    pub(super) fn bring_images(&self) -> Result<bool, StepError> {
        let Some(shared) = self.engine.shared else { return Ok(true) };
        let made = |stack| self.stack(stack).layers.into_iter().filter(|part| part.content.is_some());
        let layers = self.plan.images.iter().flat_map(|image| made(image.stack)).collect();
        self.for_each(&layers, StepId(0), |part| {
            if self.engine.store.has_layer(&part.layer) {
                // It may have come since it was claimed, by another build.
                return self.stacks.check(part);
            }
            let claim = part.content.and_then(|content| shared.claim(&part.layer, &content)).ok_or(Cause::Untrue)?;
            match shared.need(&claim) {
                Need::Nothing => Ok(()),
                Need::Blob => {
                    if shared.has_blob(&claim) {
                        Ok(())
                    } else {
                        Err(Cause::Untrue)
                    }
                }
                Need::Layer => self.stacks.index(part).map(drop),
            }
        })
    }

    /// Adds the layers that steps gave to a stack and that are not here.
    fn add_absent(&self, stack: Stack, layers: &mut BTreeSet<Part>) {
        let own = self.stack(stack).layers.into_iter().filter(|part| part.content.is_some());
        layers.extend(own.filter(|part| !self.engine.store.has_layer(&part.layer)));
    }

    /// Does something with each layer; `false` where a shared cache does not have what it promised.
    fn for_each(
        &self,
        layers: &BTreeSet<Part>,
        for_step: StepId,
        act: impl Fn(&Part) -> Result<(), Cause> + Sync,
    ) -> Result<bool, StepError> {
        let layers: Vec<&Part> = layers.iter().collect();
        // All are tried: what else is not there is then known, too.
        let Ok(causes) = at_once(AT_ONCE, &layers, |layer| Ok::<_, Infallible>(act(layer).err()));
        match causes.into_iter().flatten().next() {
            None => Ok(true),
            _ if self.engine.cancel.is_canceled() => Err(StepError::new(for_step, Cause::Canceled)),
            Some(Cause::Untrue) => Ok(false),
            Some(cause) => Err(StepError::new(for_step, cause)),
        }
    }
}
