//! Today's times for what a command with a cache sees of the context.
//!
//! In: the steps that copy from a context, and the commands that write to caches. Out: layers with the same content and
//! the times that the sources have now. What always holds: contents and keys stay; records lead to the new layer, so that
//! the same build again gives the same image; no command that is in the cache has any of this done for it.
//!
//! A compiler that keeps objects in a cache goes by times. A file that was A, became B and is A again is found in the
//! cache of layers with the time of the first A; beside it, the object made of B is newer, and it would be taken. So what
//! lies below such a command is as old as it is in the context.

use super::copy::{Landing, SourceView, Spool, land, select};
use super::lookup::{Hit, Look};
use super::reading::Before;
use super::stacks::Part;
use super::{Cause, Solver};
use crate::cache::record::CacheRecord;
use crate::digest::DiffId;
use crate::layer::index::LayerIndex;
use crate::plan::step::{CopyFrom, MountOp, Op, StepId};
use crate::store::StoreError;

impl Solver<'_> {
    /// The steps whose layers take today's times: those that copy from a context, and lie below a command that is not
    /// done and writes to a cache, or are mounted for it.
    pub(super) fn below_caches(&self, done: &[bool]) -> Vec<bool> {
        let mut below = vec![false; done.len()];
        for (step, _) in self.plan.steps.iter().zip(done).filter(|(_, done)| !**done) {
            let Op::Run(run) = &step.op else { continue };
            if !run.writes_cache() {
                continue;
            }
            let bound = run.mounts.iter().filter_map(|mount| match &mount.kind {
                MountOp::Bind(input) => Some(input.stack),
                _ => None,
            });
            for stack in std::iter::once(step.parent).chain(bound) {
                for StepId(under) in self.plan.steps_of(stack) {
                    below[under] |= self.copies_context(under);
                }
            }
        }
        below
    }

    fn copies_context(&self, step: usize) -> bool {
        // What is fetched has the times of its server or its commit, whenever it comes.
        matches!(&self.plan.steps[step].op, Op::Copy(copy)
            if matches!(copy.from, CopyFrom::Context(_)) && copy.remotes().next().is_none())
    }

    /// Whether the step's layer takes today's times.
    pub(super) fn is_of_today(&self, id: StepId) -> bool {
        self.today.get().is_some_and(|today| today[id.0])
    }

    /// Gives a step that is solved a layer with today's times, if it has others.
    pub(super) fn date(&self, id: StepId) -> Result<(), Cause> {
        let step = &self.plan.steps[id.0];
        let Op::Copy(copy) = &step.op else { return Ok(()) };
        let CopyFrom::Context(context) = copy.from else { return Ok(()) };
        let Some(solved) = self.solved[id.0].get().filter(|_| self.dated[id.0].get().is_none()) else { return Ok(()) };
        let source = SourceView::Context(&self.engine.contexts[context.0]);
        let mut selection = select(copy, &source)?;
        selection.hash_missing(&source)?;
        let mut spool = None;
        if selection.has_packed_archives() {
            let folder = self.engine.lease.folder();
            let file = tempfile::tempfile_in(folder).map_err(StoreError::io("make a file in", folder))?;
            selection.unpack(&source, spool.insert(Spool::new(file)))?;
        }
        let mut landing = land(copy, &selection, &self.view(&self.stack(step.parent))?)?;
        let index = self.stacks.outline(&Part { layer: solved.layer, content: Some(solved.content) })?;
        if !take_times(&mut landing, &index) {
            return Ok(());
        }
        let tar = self.engine.store.stored_tar(&solved.layer)?;
        let before = tar.map(|tar| Before { index: (*index).clone(), tar });
        let new = self.write_layer(step.parent, Some(copy), &mut landing, spool.as_ref(), before.as_ref())?;
        if new.index.content() != solved.content {
            return Err(Cause::Unsteady(copy.destination.clone().into()));
        }
        let layer = new.index.diff_id();
        self.engine.store.put_layer(self.engine.lease, &new.index, new.form)?;
        self.stacks.knows(new.index);
        self.stacks.follows(layer, solved.layer);
        if let Look::Hit(hit) = self.look_up_once(id)? {
            let Hit { record, key, .. } = *hit;
            let (store, lease) = (self.engine.store, self.engine.lease);
            if record.content == solved.content {
                store.remember_made(lease, &record.content, &record.op, &layer)?;
                // What a shared cache claimed of the content is so: it was made here just now.
                let record = CacheRecord { layer, ..record };
                store.record(lease, &key, &record)?;
                store.remember_last(lease, &self.place(id), &record)?;
            }
        }
        // A step is dated once.
        let _ = self.dated[id.0].set(layer);
        Ok(())
    }

    /// The layer of a step that is solved: the one with today's times, if there is one.
    pub(super) fn layer_of(&self, step: usize) -> Option<DiffId> {
        self.dated[step].get().copied().or_else(|| self.solved[step].get().map(|solved| solved.layer))
    }
}

/// Gives what has no time of its own the time it had before. Whether anything else has another one than then.
fn take_times(landing: &mut Landing, before: &LayerIndex) -> bool {
    let mut differs = false;
    for landed in &mut landing.entries {
        match before.get_ref(&landed.entry.path) {
            Some(old) if landed.is_new => {
                landed.entry.mtime = old.mtime;
                landed.is_new = false;
            }
            Some(old) => differs |= old.mtime != landed.entry.mtime,
            None => differs = true,
        }
    }
    differs
}
