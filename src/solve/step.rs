//! One step: its key, the look-up, and what is written down when it was made.
//!
//! In: a step whose parents are solved. Out: its [`Solved`]. What always holds: a record is written after the layer it
//! names is in the store; every key that leads to a result is recorded; a step that ran again and gave the same
//! content keeps the layer that the same operation made before, with its diffID and its times.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::copy::{Brought, CopyError, Landing, Selection, SourceView, Spool, land, make_dir, select_brought};
use super::{Cause, Solved, Solver};
use crate::cache::explain::{self, Ingredients};
use crate::cache::index::Found;
use crate::cache::key::{self, SourceId};
use crate::cache::record::{self, CacheRecord};
use crate::context::local::ContextError;
use crate::digest::{CacheKey, ChainId, ContentDigest, DiffId, Digest, Hasher, StackId};
use crate::event::{Event, MissReason};
use crate::layer::index::LayerIndex;
use crate::layer::stack::LayerStack;
use crate::plan::step::{BaseId, CopyFrom, CopyOp, INTERNAL, Op, Stack, Step, StepId};
use crate::shared::Claim;
use crate::store::StoreError;
use crate::store::layers::Form;

/// A stack with all that keys and mounts need of it.
#[derive(Debug, Clone)]
pub(super) struct StackState {
    /// ChainID of the layers from outside.
    base: Option<ChainId>,
    /// Contents of those made on them, bottom first.
    made: Vec<ContentDigest>,
    /// All layers, bottom first.
    pub(super) layers: Vec<DiffId>,
    pub(super) id: StackId,
}

/// A layer that was just made, in the form in which it came.
pub(super) struct NewLayer {
    pub(super) index: LayerIndex,
    pub(super) form: Form,
}

/// What is known of a step when it has missed.
pub(super) struct Missed {
    /// All keys that the result will be found under.
    pub(super) keys: Vec<CacheKey>,
    /// So many of them were asked of the shared caches.
    asked: usize,
    pub(super) record: CacheRecord,
    selection: Option<Selection>,
    pub(super) landing: Option<Landing>,
    /// Where archives were unpacked.
    pub(super) spool: Option<Spool>,
}

/// What is known of a step that hit.
pub(super) struct Hit {
    pub(super) record: CacheRecord,
    pub(super) key: CacheKey,
    /// All keys that were tried, the one that hit too.
    keys: Vec<CacheKey>,
    /// A shared cache says so.
    claim: Option<Arc<Claim>>,
}

pub(super) enum Look {
    Hit(Box<Hit>),
    Miss(Box<Missed>),
    /// Nobody can tell before something is fetched.
    Later,
}

/// COPY hashes before it writes only where that costs little: up to so many bytes that nobody has read yet, or up to
/// half of all. Else files are hashed while they are written, and what was written is thrown away if the key then hits.
const HASH_FIRST: u64 = 1 << 20;

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
        let new = self.write_layer(copy, landing, missed.spool.as_ref(), before.as_ref())?;
        if let (Some(copy), Some(mut selection)) = (copy, missed.selection.take()) {
            if let Some(landing) = &missed.landing {
                let was_hashed = selection.is_hashed();
                self.with_source(copy, |view| Ok(selection.learn(landing, view)?))?;
                if !was_hashed {
                    let source = selection.digest().ok_or_else(|| Cause::Unsteady(copy.destination.clone().into()))?;
                    missed.record.source = Some(source);
                    let (op, content) = (missed.record.op, SourceId::Content(source));
                    missed.keys.push(key::quick_key(Some(copy), &op, &content, &missed.record.below));
                    missed.keys.push(key::landing_key(Some(copy), &op, &content, &landing.digest()));
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
    fn with_source<T>(&self, copy: &CopyOp, act: impl FnOnce(&SourceView<'_>) -> Result<T, Cause>) -> Result<T, Cause> {
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
                (StackState::new(ChainId::of(&layers), layers), None)
            }
            Stack::Step(StepId(step)) => {
                let own = self.solved[step].get().zip(self.layer_of(step));
                (self.stack(self.plan.steps[step].parent), own)
            }
        };
        if let Some((own, layer)) = own {
            state.made.push(own.content);
            state.layers.push(layer);
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

    /// Looks a step up. Where a file changes while it is hashed, once more with what it is then.
    fn look_up(&self, id: StepId) -> Result<Look, Cause> {
        match self.look_up_once(id) {
            Err(cause) if self.may_restart(id, &cause) => self.look_up_once(id),
            other => other,
        }
    }

    /// Whether a step begins anew: if a file of the context changed under it, and only once.
    fn may_restart(&self, id: StepId, cause: &Cause) -> bool {
        let Op::Copy(CopyOp { from: CopyFrom::Context(context), .. }) = &self.plan.steps[id.0].op else { return false };
        let restart = is_unsteady(cause) && self.restarted[id.0].set(()).is_ok();
        if restart {
            self.engine.contexts[context.0].forget();
        }
        restart
    }

    pub(super) fn look_up_once(&self, id: StepId) -> Result<Look, Cause> {
        let step = &self.plan.steps[id.0];
        let below = self.stack(step.parent);
        let op = key::op_digest(&step.op, &step.platform);
        let mut missed = Missed {
            keys: Vec::new(),
            asked: 0,
            record: CacheRecord {
                // Both are filled in when the layer is made.
                content: ContentDigest(op),
                layer: DiffId(op),
                op,
                below: below.id,
                source: None,
                landing: None,
                parts: BTreeMap::new(),
            },
            selection: None,
            landing: None,
            spool: None,
        };
        let mut why = MissReason::FirstBuild;
        match &step.op {
            Op::Run(run) => {
                if let Some(hit) = self.look_up_run(step, run, &below, &mut missed, &mut why)? {
                    return Ok(hit);
                }
            }
            Op::Copy(copy) => {
                if let Some(hit) = self.look_up_copy(id, copy, &below, &mut missed, &mut why)? {
                    return Ok(hit);
                }
            }
            Op::MakeDir(make) => {
                let source = SourceId::Nothing;
                let quick = key::quick_key(None, &op, &source, &below.id);
                if let Some(hit) = self.try_key(step, quick, &mut missed, &mut why)? {
                    return Ok(hit);
                }
                if let Some(hit) = self.ask_unless_here(step, &below, &mut missed) {
                    return Ok(hit);
                }
                let landing = make_dir(make, &self.view(&below)?)?;
                let key = key::landing_key(None, &op, &source, &landing.digest());
                missed.record.landing = Some(landing.digest());
                if let Some(hit) = self.try_key(step, key, &mut missed, &mut why)? {
                    return self.hit_also(&missed.keys, hit);
                }
                if let Some(hit) = self.ask_shared(step, &mut missed) {
                    return Ok(hit);
                }
                missed.landing = Some(landing);
            }
        }
        missed.record.parts = record::parts(&step.op, &step.platform.to_string());
        self.explain(id, &missed, why)?;
        Ok(Look::Miss(Box::new(missed)))
    }

    fn look_up_copy(
        &self,
        id: StepId,
        copy: &CopyOp,
        below: &StackState,
        missed: &mut Missed,
        why: &mut MissReason,
    ) -> Result<Option<Look>, Cause> {
        let step = &self.plan.steps[id.0];
        let op = missed.record.op;
        if let CopyFrom::Stack(stack) = copy.from {
            let source = SourceId::Stack(self.stack(stack).id);
            let quick = key::quick_key(Some(copy), &op, &source, &below.id);
            if let Some(hit) = self.try_key(step, quick, missed, why)? {
                return Ok(Some(hit));
            }
            if let Some(hit) = self.ask_unless_here(step, &self.stack(stack), missed) {
                return Ok(Some(hit));
            }
        }
        let mut brought = Vec::new();
        if !self.remotes.of_step(id).is_empty() {
            let fetching = self.fetching.load(Ordering::Relaxed);
            if fetching && self.remotes.names(id).is_none() {
                self.bring_all(id)?;
            }
            let Some(names) = self.remotes.names(id) else { return Ok(Some(Look::Later)) };
            if let Some(hit) = self.try_names(step, copy, &names, below, missed, why)? {
                return Ok(Some(hit));
            }
            // Before anything is fetched.
            if let Some(hit) = self.ask_shared(step, missed) {
                return Ok(Some(hit));
            }
            if !fetching {
                return Ok(Some(Look::Later));
            }
            brought = self.bring_all(id)?;
        }
        self.with_source(copy, |view| {
            let mut selection = select_brought(copy, view, &brought)?;
            let unread = selection.unknown_bytes();
            // Nothing is known of the files on a machine that was never here, and shared caches are for those.
            let shared = self.engine.shared.is_some();
            if shared || unread <= HASH_FIRST || unread <= selection.total_bytes() / 2 {
                selection.hash_missing(view)?;
            }
            let source = selection.digest();
            missed.record.source = source;
            if let Some(source) = source {
                let quick = key::quick_key(Some(copy), &op, &SourceId::Content(source), &below.id);
                if let Some(hit) = self.try_key(step, quick, missed, why)? {
                    return self.hit_also(&missed.keys, hit).map(Some);
                }
                if let Some(hit) = self.ask_unless_here(step, below, missed) {
                    return Ok(Some(hit));
                }
            }
            if selection.has_packed_archives() {
                let folder = self.engine.lease.folder();
                let file = tempfile::tempfile_in(folder).map_err(StoreError::io("make a file in", folder))?;
                let mut spool = Spool::new(file);
                selection.unpack(view, &mut spool)?;
                missed.spool = Some(spool);
            }
            let landing = land(copy, &selection, &self.view(below)?)?;
            missed.record.landing = Some(landing.digest());
            if let Some(source) = source {
                let key = key::landing_key(Some(copy), &op, &SourceId::Content(source), &landing.digest());
                if let Some(hit) = self.try_key(step, key, missed, why)? {
                    return self.hit_also(&missed.keys, hit).map(Some);
                }
                if let Some(hit) = self.ask_shared(step, missed) {
                    return Ok(Some(hit));
                }
            }
            missed.selection = Some(selection);
            missed.landing = Some(landing);
            Ok(None)
        })
    }

    /// Looks up what was made of fetched sources by the digests that stand for them.
    fn try_names(
        &self,
        step: &Step,
        copy: &CopyOp,
        names: &[Brought],
        below: &StackState,
        missed: &mut Missed,
        why: &mut MissReason,
    ) -> Result<Option<Look>, Cause> {
        self.with_source(copy, |view| {
            let mut selection = select_brought(copy, view, names)?;
            selection.hash_missing(view)?;
            let Some(source) = selection.digest() else { return Ok(None) };
            let quick = key::quick_key(Some(copy), &missed.record.op, &SourceId::Content(source), &below.id);
            self.try_key(step, quick, missed, why)
        })
    }

    /// Looks one key up. A miss adds it to the keys that the result will be recorded under.
    pub(super) fn try_key(
        &self,
        step: &Step,
        key: CacheKey,
        missed: &mut Missed,
        why: &mut MissReason,
    ) -> Result<Option<Look>, Cause> {
        missed.keys.push(key);
        if step.no_cache {
            *why = MissReason::Disabled;
            return Ok(None);
        }
        match self.engine.store.lookup(self.engine.lease, &key)? {
            Found::Hit(record) => {
                let keys = missed.keys.clone();
                return Ok(Some(Look::Hit(Box::new(Hit { record, key, keys, claim: None }))));
            }
            Found::Absent => {}
            Found::LayerGone => *why = MissReason::LayerGone,
            Found::Damaged(damage) => *why = MissReason::Damaged(damage),
        }
        Ok(None)
    }

    /// Asks the shared caches for the keys that missed here and were not asked for yet.
    pub(super) fn ask_shared(&self, step: &Step, missed: &mut Missed) -> Option<Look> {
        let shared = self.engine.shared.filter(|_| !step.no_cache)?;
        let unasked = std::mem::replace(&mut missed.asked, missed.keys.len());
        let found = missed.keys[unasked..].iter().find_map(|key| Some((shared.lookup(key)?, *key)));
        let (claim, key) = found?;
        let (record, keys) = (claim.record(), missed.keys.clone());
        Some(Look::Hit(Box::new(Hit { record, key, keys, claim: Some(claim) })))
    }

    /// The same, if not all of `stack` is here: what comes next would bring it. What is here can be looked at first, and
    /// who finds a result here asks nobody.
    pub(super) fn ask_unless_here(&self, step: &Step, stack: &StackState, missed: &mut Missed) -> Option<Look> {
        let here = stack.layers.iter().all(|layer| self.engine.store.has_layer(layer));
        if here { None } else { self.ask_shared(step, missed) }
    }

    /// The steps of a stack, topmost first.
    pub(super) fn steps_of(&self, stack: Stack) -> impl Iterator<Item = StepId> + '_ {
        let step = |stack| match stack {
            Stack::Step(step) => Some(step),
            Stack::Base(_) | Stack::Scratch => None,
        };
        std::iter::successors(step(stack), move |id| step(self.plan.steps[id.0].parent))
    }

    /// Records a hit under the keys that missed before it, so that the next look-up needs only the quick one.
    pub(super) fn hit_also(&self, keys: &[CacheKey], hit: Look) -> Result<Look, Cause> {
        if let Look::Hit(hit) = &hit {
            self.also_under(keys, &hit.record, &hit.key)?;
        }
        Ok(hit)
    }

    fn also_under(&self, keys: &[CacheKey], record: &CacheRecord, found: &CacheKey) -> Result<(), Cause> {
        for key in keys.iter().filter(|key| *key != found) {
            self.engine.store.record(self.engine.lease, key, record)?;
        }
        Ok(())
    }

    fn explain(&self, id: StepId, missed: &Missed, why: MissReason) -> Result<(), Cause> {
        if self.told[id.0].set(()).is_err() {
            return Ok(());
        }
        let reason = match why {
            MissReason::FirstBuild => {
                let last = self.engine.store.last_record(&self.place(id))?;
                let now = Ingredients {
                    parts: &missed.record.parts,
                    below: missed.record.below,
                    source: missed.record.source,
                    landing: missed.record.landing,
                };
                let changed = || match (&last, &missed.selection, &missed.landing) {
                    (Some(last), Some(_), Some(landing)) if self.engine.explain => {
                        self.changed_files(&last.layer, landing)
                    }
                    _ => (Vec::new(), 0),
                };
                match explain::reason(last.as_ref(), &now, changed) {
                    // Which files did, the step that loaded them says.
                    MissReason::FilesChanged { .. } if matches!(self.plan.steps[id.0].op, Op::Run(_)) => {
                        MissReason::MountsChanged
                    }
                    reason => reason,
                }
            }
            other => other,
        };
        self.engine.events.event(Event::Missed(id, &reason));
        Ok(())
    }

    /// Files that differ between the layer that the step gave last and the one that it will give now.
    fn changed_files(&self, last: &DiffId, landing: &Landing) -> (Vec<String>, usize) {
        const SHOWN: usize = 10;
        let Ok(Some(last)) = self.engine.store.layer_index(last) else { return (Vec::new(), 0) };
        let mut paths = Vec::new();
        let mut count = 0;
        let mut note = |path: &[u8]| {
            count += 1;
            if paths.len() < SHOWN {
                paths.push(String::from_utf8_lossy(path).into_owned());
            }
        };
        let mut kept = 0;
        for landed in &landing.entries {
            match last.get(&landed.entry.path) {
                Some(old)
                    if (&old.kind, old.mode, old.uid, old.gid)
                        == (&landed.entry.kind, landed.entry.mode, landed.entry.uid, landed.entry.gid) =>
                {
                    kept += 1;
                }
                Some(_) => {
                    kept += 1;
                    note(&landed.entry.path);
                }
                None => note(&landed.entry.path),
            }
        }
        if kept < last.len() {
            let now: std::collections::HashSet<&[u8]> =
                landing.entries.iter().map(|landed| landed.entry.path.as_slice()).collect();
            for position in 0..last.len() {
                let entry = last.entry(position);
                if !now.contains(entry.path.as_slice()) {
                    note(&entry.path);
                }
            }
        }
        (paths, count - count.min(SHOWN))
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
        self.solve_as(id, record.clone(), keys.clone(), claim.as_deref(), None)?;
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
        self.solve_as(id, record, missed.keys.clone(), None, Some(began.elapsed()))?;
        Ok(layer)
    }

    fn solve_as(
        &self,
        id: StepId,
        record: CacheRecord,
        keys: Vec<CacheKey>,
        claim: Option<&Claim>,
        took: Option<Duration>,
    ) -> Result<(), Cause> {
        let (content, layer) = (record.content, record.layer);
        let mut state = self.stack(self.plan.steps[id.0].parent);
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
            record,
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
    fn new(base: Option<ChainId>, layers: Vec<DiffId>) -> Self {
        let id = key::stack_id(base.as_ref(), &[]);
        Self { base, made: Vec::new(), layers, id }
    }
}
