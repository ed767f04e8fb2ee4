//! One cache that results are taken from, and how far it is trusted in this build.
//!
//! In: keys. Out: claims. What always holds: it is asked for a key once; what it said that is not so counts against it
//! alone, so what another cache says of the same key stands; what is wrong with it is told once, and a cache that does not
//! answer, or was wrong too often, is left alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::artifact::{Artifact, MAX_ARTIFACT};
use super::place::Kind;
use super::{Claim, Place, SharedError, lock};
use crate::digest::{CacheKey, ContentDigest, DiffId};
use crate::event::{Event, EventSink};
use crate::image::manifest::Descriptor;
use crate::registry::RegistryError;
use crate::store::Store;
use crate::store::lease::Lease;

/// So many things that are not so end the trust in a cache for this build.
const MOST_LIES: u32 = 8;

/// A cache.
pub(super) struct Source<'a> {
    pub(super) place: Place<'a>,
    /// Ids of the cache mounts that are taken from it.
    pub(super) mounts: Vec<String>,
    /// Which one it is.
    number: usize,
    store: &'a Store,
    lease: &'a Lease,
    events: &'a dyn EventSink,
    said: Mutex<BTreeMap<CacheKey, Said>>,
    off: AtomicBool,
    asked: AtomicBool,
    warned: AtomicBool,
    lies: AtomicU32,
}

/// What it said of a key.
#[derive(Default)]
struct Said {
    claim: Option<Arc<Claim>>,
    /// What is there is not so, or cannot be had.
    wrong: bool,
    /// Its list of files is not what it should be; the layer may be right.
    index_wrong: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        (number, place, mounts): (usize, Place<'a>, Vec<String>),
        store: &'a Store,
        lease: &'a Lease,
        events: &'a dyn EventSink,
    ) -> Self {
        Self {
            place,
            mounts,
            number,
            store,
            lease,
            events,
            said: Mutex::default(),
            off: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            lies: AtomicU32::new(0),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// What it says of a key, as far as it is trusted.
    pub(super) fn lookup(&self, key: &CacheKey) -> Option<Arc<Claim>> {
        if self.is_off() {
            return None;
        }
        if let Some(said) = lock(&self.said).get(key) {
            return said.trusted();
        }
        let said = match self.ask(key) {
            Ok(claim) => Said { claim: claim.map(Arc::new), ..Said::default() },
            Err(error) => {
                let wrong = error.is_of_content();
                self.doubt(error);
                Said { wrong, ..Said::default() }
            }
        };
        // What was found to be wrong meanwhile stays wrong.
        lock(&self.said).entry(*key).or_insert(said).trusted()
    }

    fn ask(&self, key: &CacheKey) -> Result<Option<Claim>, SharedError> {
        let identity = self.place.identity();
        if let Some(name) = &identity
            && let Ok(Some(bytes)) = self.store.claim(name, key)
            && let Ok(claim) = self.read(&bytes, key)
        {
            return Ok(Some(claim));
        }
        let get = || self.place.get(Kind::Step, &key.0, MAX_ARTIFACT);
        let got = if self.asked.swap(true, Ordering::Relaxed) {
            get()
        } else {
            self.part(&format!("importing cache from {}", self.place.name()), get)
        };
        let Some(bytes) = got? else { return Ok(None) };
        let claim = self.read(&bytes, key)?;
        if let Some(name) = &identity {
            // Without it the next build asks again.
            drop(self.store.remember_claim(self.lease, name, key, &bytes));
        }
        Ok(Some(claim))
    }

    fn read(&self, bytes: &[u8], key: &CacheKey) -> Result<Claim, SharedError> {
        let config = |told: &Descriptor| self.place.read(told, MAX_ARTIFACT as u64);
        let Artifact { result, blob, index } = Artifact::parse(bytes, key, config)?;
        Ok(Claim { result, blob, index, source: self.number })
    }

    /// Shows `work` as a part of the build.
    pub(super) fn part<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        self.events.event(Event::Began(name));
        let done = work();
        self.events.event(Event::Ended(name, began.elapsed()));
        done
    }

    /// The claims that are trusted and that `wanted` says are meant.
    pub(super) fn claims(&self, wanted: impl Fn(&Claim) -> bool) -> Vec<Arc<Claim>> {
        if self.is_off() {
            return Vec::new();
        }
        lock(&self.said).values().filter_map(Said::trusted).filter(|claim| wanted(claim)).collect()
    }

    /// Whether it ever said that this layer holds that, trusted or not.
    pub(super) fn has_claimed(&self, layer: &DiffId, content: &ContentDigest) -> bool {
        lock(&self.said).values().filter_map(|said| said.claim.as_ref()).any(|claim| claim.names(layer, content))
    }

    /// Whether it gave something for the key that is not so.
    pub(super) fn was_wrong(&self, key: &CacheKey) -> bool {
        lock(&self.said).get(key).is_some_and(|said| said.wrong || said.index_wrong)
    }

    /// Whether it gave something for the key that is trusted.
    pub(super) fn gave(&self, key: &CacheKey) -> bool {
        !self.is_off() && lock(&self.said).get(key).is_some_and(|said| said.trusted().is_some())
    }

    /// How much trust in it was lost so far: a number that grows with everything that is found to be wrong.
    pub(super) fn doubts(&self) -> usize {
        lock(&self.said).values().filter(|said| said.wrong).count() + usize::from(self.is_off())
    }

    /// A claim is not so, or what it promises cannot be had: nothing of it is used any more.
    pub(super) fn distrust(&self, claim: &Claim, error: SharedError) {
        for key in &claim.result.keys {
            lock(&self.said).entry(*key).or_default().wrong = true;
            if let Some(name) = self.place.identity() {
                self.store.forget_claim(&name, key);
            }
        }
        self.doubt(error);
    }

    /// The list of files that is beside the layer of a claim is not what it should be.
    pub(super) fn doubt_index(&self, claim: &Claim, error: SharedError) {
        for key in &claim.result.keys {
            if let Some(said) = lock(&self.said).get_mut(key) {
                said.index_wrong = true;
            }
        }
        self.doubt(error);
    }

    /// Something went wrong: said once. A place that does not answer, or that was wrong too often, is left alone.
    pub(super) fn doubt(&self, error: SharedError) {
        if matches!(error, SharedError::Registry(RegistryError::Stopped)) {
            self.off.store(true, Ordering::Relaxed);
            return;
        }
        let of_content = error.is_of_content();
        if !of_content || self.lies.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_LIES {
            self.off.store(true, Ordering::Relaxed);
        }
        if !self.warned.swap(true, Ordering::Relaxed) {
            let rest = if of_content { "what it says of that is left alone" } else { "the build goes on without it" };
            let note = format!("warning: the cache {}: {}; {rest}", self.place.name(), error.told());
            self.events.event(Event::Note(&note));
        }
    }
}

impl Said {
    fn trusted(&self) -> Option<Arc<Claim>> {
        self.claim.as_ref().filter(|_| !self.wrong).map(Arc::clone)
    }
}
