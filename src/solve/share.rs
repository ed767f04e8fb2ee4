//! What the engine does only where a build names shared caches.
//!
//! In: steps to be looked up, steps that are left. Out: look-ups at once, layers before they are needed. What always holds:
//! threads are joined before a method returns; a layer that a cache promised and does not have fails no build: all begins
//! anew without that promise, and what was built until then is found in the cache.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Cause, Solver, StepError, schedule};
use crate::digest::DiffId;
use crate::plan::step::{INTERNAL, Op, Stack, StepId};
use crate::registry::AT_ONCE;
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
        self.bring_layers(&layers, first.unwrap_or(StepId(0)))
    }

    /// When all is solved: brings the layers of the images, if they are to be here. As [`Self::bring_for_commands`].
    pub(super) fn bring_images(&self) -> Result<bool, StepError> {
        if !self.engine.shared.is_some_and(crate::shared::SharedCache::keeps) {
            return Ok(true);
        }
        let mut layers = BTreeSet::new();
        self.plan.images.iter().for_each(|image| self.add_absent(image.stack, &mut layers));
        self.bring_layers(&layers, StepId(0))
    }

    /// Adds the layers of a stack that a shared cache has and this store has not.
    fn add_absent(&self, stack: Stack, layers: &mut BTreeSet<DiffId>) {
        let Some(shared) = self.engine.shared else { return };
        let own = self.steps_of(stack).filter_map(|StepId(step)| self.layer_of(step));
        layers.extend(own.filter(|layer| !self.engine.store.has_layer(layer) && shared.claim(layer).is_some()));
    }

    fn bring_layers(&self, layers: &BTreeSet<DiffId>, for_step: StepId) -> Result<bool, StepError> {
        let layers: Vec<&DiffId> = layers.iter().collect();
        // All are tried: what else is not there is then known, too.
        let Ok(causes) = at_once(AT_ONCE, &layers, |layer| Ok::<_, Infallible>(self.stacks.index(layer).err()));
        match causes.into_iter().flatten().next() {
            None => Ok(true),
            _ if self.engine.cancel.is_canceled() => Err(StepError::new(for_step, Cause::Canceled)),
            Some(Cause::Untrue) => Ok(false),
            Some(cause) => Err(StepError::new(for_step, cause)),
        }
    }
}
