//! What is known of a step before it is carried out: its keys, whether one of them hits, and why none does.
//!
//! In: a step whose parents are solved. Out: a [`Look`]. What always holds: keys are tried from the one that needs the least to
//! the one that needs the most; a hit is recorded under those that missed before it; why a step missed is told once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copy::{Brought, Landing, Selection, Spool, land, make_dir, select_brought};
use super::step::{StackState, is_unsteady};
use super::{Cause, Solver};
use crate::cache::explain::{self, Ingredients};
use crate::cache::index::Found;
use crate::cache::key::{self, SourceId};
use crate::cache::record::{self, CacheRecord};
use crate::digest::{CacheKey, ContentDigest, DiffId};
use crate::event::{Event, MissReason};
use crate::plan::step::{CopyFrom, CopyOp, Op, Step, StepId};
use crate::shared::Claim;
use crate::store::StoreError;

/// What is known of a step when it has missed.
pub(super) struct Missed {
    /// All keys that the result will be found under.
    pub(super) keys: Vec<CacheKey>,
    /// So many of them were asked of the shared caches.
    pub(super) asked: usize,
    pub(super) record: CacheRecord,
    pub(super) selection: Option<Selection>,
    pub(super) landing: Option<Landing>,
    /// Where archives were unpacked.
    pub(super) spool: Option<Spool>,
}

/// What is known of a step that hit.
pub(super) struct Hit {
    pub(super) record: CacheRecord,
    pub(super) key: CacheKey,
    /// All keys that were tried, the one that hit too.
    pub(super) keys: Vec<CacheKey>,
    /// A shared cache says so.
    pub(super) claim: Option<Arc<Claim>>,
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
    /// Looks a step up. Where a file changes while it is hashed, once more with what it is then.
    pub(super) fn look_up(&self, id: StepId) -> Result<Look, Cause> {
        match self.look_up_once(id) {
            Err(cause) if self.may_restart(id, &cause) => self.look_up_once(id),
            other => other,
        }
    }

    /// Whether a step begins anew: if a file of the context changed under it, and only once.
    pub(super) fn may_restart(&self, id: StepId, cause: &Cause) -> bool {
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
                if let Some(hit) = self.ask_unless_here(step, &below, &mut missed)? {
                    return Ok(hit);
                }
                let landing = make_dir(make, &self.view(&below)?)?;
                let key = key::landing_key(None, &op, &source, &landing.digest());
                missed.record.landing = Some(landing.digest());
                if let Some(hit) = self.try_key(step, key, &mut missed, &mut why)? {
                    return self.hit_also(&missed.keys, hit);
                }
                if let Some(hit) = self.ask_shared(step, &mut missed)? {
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
            if let Some(hit) = self.ask_unless_here(step, &self.stack(stack), missed)? {
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
            if let Some(hit) = self.ask_shared(step, missed)? {
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
                if let Some(hit) = self.ask_unless_here(step, below, missed)? {
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
                if let Some(hit) = self.ask_shared(step, missed)? {
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
    pub(super) fn ask_shared(&self, step: &Step, missed: &mut Missed) -> Result<Option<Look>, Cause> {
        let Some(shared) = self.engine.shared.filter(|_| !step.no_cache) else { return Ok(None) };
        let unasked = std::mem::replace(&mut missed.asked, missed.keys.len());
        for key in &missed.keys[unasked..] {
            if let Some(claim) = shared.lookup(key)? {
                // What it was made of is what was found out here.
                let (content, layer) = (claim.result.content, claim.result.layer);
                let record = CacheRecord { content, layer, ..missed.record.clone() };
                let (key, keys) = (*key, missed.keys.clone());
                return Ok(Some(Look::Hit(Box::new(Hit { record, key, keys, claim: Some(claim) }))));
            }
        }
        Ok(None)
    }

    /// The same, if not all of `stack` is here: what comes next would bring it. What is here can be looked at first, and
    /// who finds a result here asks nobody.
    pub(super) fn ask_unless_here(
        &self,
        step: &Step,
        stack: &StackState,
        missed: &mut Missed,
    ) -> Result<Option<Look>, Cause> {
        let here = stack.layers.iter().all(|part| self.engine.store.has_layer(&part.layer));
        if here { Ok(None) } else { self.ask_shared(step, missed) }
    }

    /// Records a hit under the keys that missed before it, so that the next look-up needs only the quick one.
    pub(super) fn hit_also(&self, keys: &[CacheKey], hit: Look) -> Result<Look, Cause> {
        if let Look::Hit(hit) = &hit {
            self.also_under(keys, &hit.record, &hit.key)?;
        }
        Ok(hit)
    }

    pub(super) fn also_under(&self, keys: &[CacheKey], record: &CacheRecord, found: &CacheKey) -> Result<(), Cause> {
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
}
