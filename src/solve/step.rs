//! One step: carried out or taken from the cache, and what is written down when it was made.
//!
//! In: a step whose parents are solved. Out: its [`Solved`]. What always holds: a record is written after the layer it
//! names is in the store; every key that leads to a result is recorded; a step that ran again and gave the same
//! content keeps the layer that the same operation made before, with its diffID and its times.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::copy::{CopyError, SourceView};
use super::lookup::{Hit, Look, Missed};
use super::stacks::Part;
use super::{Cause, Exports, Solved, Solver};
use crate::cache::index::Found;
use crate::cache::key::{self, SourceId};
use crate::cache::record::CacheRecord;
use crate::context::local::ContextError;
use crate::digest::{CacheKey, ChainId, ContentDigest, DiffId, Digest, Hasher, StackId};
use crate::event::Event;
use crate::layer::index::LayerIndex;
use crate::layer::stack::LayerStack;
use crate::plan::step::{BaseId, CopyFrom, CopyOp, INTERNAL, Op, Stack, Step, StepId};
use crate::shared::Claim;
use crate::store::layers::Form;

/// A stack with all that keys and mounts need of it.
#[derive(Debug, Clone)]
pub(super) struct StackState {
    /// ChainID of the layers from outside.
    base: Option<ChainId>,
    /// Contents of those made on them, bottom first.
    made: Vec<ContentDigest>,
    /// All layers, bottom first.
    pub(super) layers: Vec<Part>,
    pub(super) id: StackId,
}

/// A layer that was just made, in the form in which it came.
pub(super) struct NewLayer {
    pub(super) index: LayerIndex,
    pub(super) form: Form,
}

impl Solver<'_> {
    /// First pass: solves the step if the cache has it.
    pub(super) fn follow(&self, id: StepId) -> Result<bool, Cause> {
        match self.look_up(id)? {
            Look::Hit(hit) => self.hit(id, &hit).map(|()| true),
            Look::Later => Ok(false),
            Look::Miss(missed) => {
                *self.missed[id.0].lock().unwrap_or_else(PoisonError::into_inner) = Some(missed);
                Ok(false)
            }
        }
    }

    /// Second pass: solves the step, from the cache or by doing it.
    pub(super) fn carry_out(&self, id: StepId) -> Result<(), Cause> {
        if self.engine.cancel.is_canceled() {
            return Err(Cause::Canceled);
        }
        let known = self.missed[id.0].lock().unwrap_or_else(PoisonError::into_inner).take();
        let missed = match known {
            Some(missed) => missed,
            None => match self.look_up(id)? {
                Look::Hit(hit) => return self.hit(id, &hit),
                Look::Miss(missed) => missed,
                Look::Later => unreachable!("the second pass fetches"),
            },
        };
        self.engine.events.event(Event::Started(id));
        let began = Instant::now();
        let step = &self.plan.steps[id.0];
        let (missed, new) = match &step.op {
            Op::Run(run) => {
                let new = self.run(id, run, &self.stack(step.parent))?;
                (missed, new)
            }
            Op::MakeDir(_) => self.write(id, None, missed)?,
            Op::Copy(copy) => match self.write(id, Some(copy), missed) {
                Err(cause) if self.may_restart(id, &cause) => {
                    // A file changed between look and read. Once more with what it is now: its key is another one too.
                    match self.look_up(id)? {
                        Look::Hit(hit) => return self.hit(id, &hit),
                        Look::Miss(missed) => self.write(id, Some(copy), missed)?,
                        Look::Later => unreachable!("the second pass fetches"),
                    }
                }
                other => other?,
            },
        };
        if let Some(hit) = self.written_before(step, &missed)? {
            return self.hit(id, &hit);
        }
        let layer = self.keep(id, &missed, new, began)?;
        self.engine.events.event(Event::Finished(id, layer, began.elapsed()));
        Ok(())
    }

    /// Writes the layer of a COPY, ADD or WORKDIR, and finishes what is known of it: digests of files that were read
    /// for the first time, and so the keys.
    fn write(
        &self,
        id: StepId,
        copy: Option<&CopyOp>,
        mut missed: Box<Missed>,
    ) -> Result<(Box<Missed>, NewLayer), Cause> {
        let before = self.layer_before(id, copy);
        let landing = missed.landing.as_mut().expect("a step that missed has a landing");
        let new =
            self.write_layer(self.plan.steps[id.0].parent, copy, landing, missed.spool.as_ref(), before.as_ref())?;
        if let (Some(copy), Some(mut selection)) = (copy, missed.selection.take()) {
            if let Some(landing) = &missed.landing {
                let was_hashed = selection.is_hashed();
                self.with_source(copy, |view| Ok(selection.learn(landing, view)?))?;
                if !was_hashed {
                    let source = selection.digest().ok_or_else(|| Cause::Unsteady(copy.destination.clone().into()))?;
                    missed.record.source = Some(source);
                    let landing = landing.digest();
                    let (op, content) = (missed.record.op, SourceId::Content(source));
                    let below = missed.record.below;
                    missed.keys.extend(key::both_keys(Some(copy), &op, &content, &below, Some(&landing)));
                }
            }
            missed.selection = Some(selection);
        }
        Ok((missed, new))
    }

    /// The record under a key that became known only when the layer was written: the layer is not needed then.
    fn written_before(&self, step: &Step, missed: &Missed) -> Result<Option<Hit>, Cause> {
        if step.no_cache || !matches!(step.op, Op::Copy(_)) {
            return Ok(None);
        }
        for key in &missed.keys {
            if let Found::Hit(record) = self.engine.store.lookup(self.engine.lease, key)? {
                self.also_under(&missed.keys, &record, key)?;
                return Ok(Some(Hit { record, key: *key, keys: missed.keys.clone(), claim: None }));
            }
        }
        Ok(None)
    }

    /// Calls `act` with what a COPY reads from.
    pub(super) fn with_source<T>(
        &self,
        copy: &CopyOp,
        act: impl FnOnce(&SourceView<'_>) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        match copy.from {
            CopyFrom::Context(context) => act(&SourceView::Context(&self.engine.contexts[context.0])),
            CopyFrom::Stack(stack) => act(&SourceView::Stack(&self.view(&self.stack(stack))?)),
        }
    }

    /// The state of a stack that is solved.
    pub(super) fn stack(&self, stack: Stack) -> StackState {
        let (mut state, own) = match stack {
            Stack::Scratch => (StackState::new(None, Vec::new()), None),
            Stack::Base(BaseId(base)) => {
                let layers = self.engine.bases[base].config.rootfs.diff_ids.clone();
                let parts = layers.iter().map(|layer| Part { layer: *layer, content: None }).collect();
                (StackState::new(ChainId::of(&layers), parts), None)
            }
            Stack::Step(StepId(step)) => {
                let own = self.solved[step].get().zip(self.layer_of(step));
                (self.stack(self.plan.steps[step].parent), own)
            }
        };
        if let Some((own, layer)) = own {
            state.made.push(own.content);
            state.layers.push(Part { layer, content: Some(own.content) });
            state.id = own.stack;
        }
        state
    }

    /// Whether reading files of a base takes the ids of its trees.
    pub(super) fn base_needs_ids(&self, base: BaseId) -> bool {
        self.engine.bases[base.0].config.rootfs.diff_ids.iter().any(|layer| self.layer_needs_ids(layer))
    }

    /// Whether reading files of a layer takes the ids of its tree.
    pub(super) fn layer_needs_ids(&self, layer: &DiffId) -> bool {
        // What cannot be told is taken to be needed: the worst that follows is a namespace too many.
        self.engine.store.needs_tree_ids(layer).unwrap_or(true)
    }

    /// Where a step stands, from one build of a Dockerfile to the next.
    pub(super) fn place(&self, id: StepId) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field(self.engine.identity.as_bytes());
        hasher.field(self.plan.steps[id.0].platform.to_string().as_bytes());
        // The stage and the ordinal in it (`[build 2/5]`): they outlive edits of the instruction itself. Of several
        // platforms one stands before them.
        let name = &self.plan.steps[id.0].name;
        if name.starts_with(INTERNAL) {
            hasher.field(name.as_bytes());
            return hasher.finish();
        }
        let bracket = name.split_once(']').map_or(name.as_str(), |(bracket, _)| bracket);
        let place = bracket.rsplit_once('/').map_or(bracket, |(place, _)| place);
        hasher.field(place.as_bytes());
        hasher.finish()
    }

    fn hit(&self, id: StepId, hit: &Hit) -> Result<(), Cause> {
        let Hit { record, key, keys, claim } = hit;
        self.solve_as(id, record, keys.clone(), claim.as_deref(), None)?;
        if self.is_of_today(id) {
            self.date(id)?;
        }
        if let (Some(claim), Some(shared)) = (claim, self.engine.shared) {
            self.engine.events.event(Event::Imported(id, &shared.name(claim)));
        }
        self.engine.events.event(Event::Cached(id, *key));
        Ok(())
    }

    /// Puts a new layer into the store, unless the same operation made the same before, and records it.
    fn keep(&self, id: StepId, missed: &Missed, new: NewLayer, began: Instant) -> Result<DiffId, Cause> {
        let (store, lease) = (self.engine.store, self.engine.lease);
        let content = new.index.content();
        let op = missed.record.op;
        let layer = match store.made_before(lease, &content, &op)? {
            Some(layer) if !self.is_of_today(id) => layer,
            _ => {
                let layer = new.index.diff_id();
                store.put_layer(lease, &new.index, new.form)?;
                store.remember_made(lease, &content, &op, &layer)?;
                self.stacks.knows(new.index);
                layer
            }
        };
        let record = CacheRecord { content, layer, ..missed.record.clone() };
        for key in &missed.keys {
            store.record(lease, key, &record)?;
        }
        let place = self.place(id);
        if let Some(last) = store.last_record(&place)?
            && matches!(self.plan.steps[id.0].op, Op::Copy(_))
        {
            self.stacks.follows(layer, last.layer);
        }
        store.remember_last(lease, &place, &record)?;
        self.solve_as(id, &record, missed.keys.clone(), None, Some(began.elapsed()))?;
        Ok(layer)
    }

    fn solve_as(
        &self,
        id: StepId,
        record: &CacheRecord,
        mut keys: Vec<CacheKey>,
        claim: Option<&Claim>,
        took: Option<Duration>,
    ) -> Result<(), Cause> {
        let (content, layer) = (record.content, record.layer);
        let step = &self.plan.steps[id.0];
        let mut state = self.stack(step.parent);
        if self.engine.exports == Exports::Steps {
            // A step that hit by its first key did not look for the others; its record says them.
            let copied = match &step.op {
                Op::Copy(copy) => record.source.map(|source| (Some(copy), SourceId::Content(source))),
                Op::MakeDir(_) => Some((None, SourceId::Nothing)),
                Op::Run(_) => None,
            };
            let landing = record.landing.as_ref();
            keys.extend(copied.into_iter().flat_map(|(copy, source)| {
                key::both_keys(copy, &record.op, &source, &state.id, landing).collect::<Vec<_>>()
            }));
            keys.sort_unstable();
            keys.dedup();
        }
        state.made.push(content);
        let stack = key::stack_id(state.base.as_ref(), &state.made);
        let created = match claim {
            // It is a claim as well, and not for this store's own history.
            Some(claim) => claim.result.created.clone(),
            None => self.engine.store.first_reached(self.engine.lease, &stack, || self.now().to_string())?,
        };
        let cache = claim.zip(self.engine.shared).map(|(claim, shared)| shared.name(claim));
        // A step is carried out once.
        let _ = self.solved[id.0].set(Solved {
            content,
            layer,
            stack,
            created,
            cached: took.is_none(),
            took: took.unwrap_or_default(),
            keys,
            cache,
        });
        Ok(())
    }

    /// What is seen through the layers of a stack, which need not be here: enough for keys, and for what lands on it.
    pub(super) fn view(&self, state: &StackState) -> Result<LayerStack, Cause> {
        self.stacks.outlines(&state.layers)
    }

    /// The same, of layers that are here and were looked at whole: for commands.
    pub(super) fn checked_view(&self, state: &StackState) -> Result<LayerStack, Cause> {
        self.stacks.view(&state.layers)
    }

    pub(super) fn now(&self) -> jiff::Timestamp {
        // A clock before the year -9999 or after 9999 is no clock; 1970 then.
        jiff::Timestamp::try_from((self.engine.clock)()).unwrap_or_default()
    }
}

/// Whether a file was no longer what it was a moment before.
pub(super) fn is_unsteady(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::Unsteady(_) | Cause::Copy(CopyError::Changed { .. } | CopyError::Context(ContextError::Changed { .. }))
    )
}

impl StackState {
    fn new(base: Option<ChainId>, layers: Vec<Part>) -> Self {
        let id = key::stack_id(base.as_ref(), &[]);
        Self { base, made: Vec::new(), layers, id }
    }
}
