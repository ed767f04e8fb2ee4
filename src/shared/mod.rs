//! Caches that several machines share.
//!
//! In: cache keys, and the places that a build names. Out: a [`Claim`] for a key, later its index or its layer; the other way
//! round, results of steps for others. What always holds: a claim is believed only so far as it cannot do harm. It is found by
//! builds that name its cache, and never becomes a record of this store; an index is used when its entries give the content
//! that was claimed, a layer when its diffID and its content are right; what is read is limited in size. A cache that does
//! not answer or says what is not so is told of once, and the build goes on.
//!
//! ```text
//! key ──lookup──▶ Claim{content, diffID, created} ─┬─ index ──▶ what COPY and USER ask of it
//!       (one request)                              ├─ bring ──▶ the layer, in the store
//!                                                  └─ blob  ──▶ mounted by a push
//! ```

mod artifact;
mod export;
mod folder;
mod mount;
mod place;

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use self::artifact::{BaseContents, EpochForm, StepResult};
pub use self::export::{Export, Exported, export};
pub use self::folder::Folder;
pub use self::mount::{export_mount, unpack_mount};
pub use self::place::Place;

use self::artifact::{Artifact, MAX_ARTIFACT, MAX_INDEX, MAX_PACKED_INDEX};
use self::place::{Kind, from_io};
use crate::digest::{CacheKey, ChainId, ContentDigest, DiffId, Digest};
use crate::event::{Event, EventSink};
use crate::image::manifest::{Descriptor, Encoding};
use crate::image::reference::Reference;
use crate::layer::compress;
use crate::layer::entry_ref::KindRef;
use crate::layer::index::{IndexBuilder, KEPT_LIMIT, KEPT_PATHS, LayerIndex, Origin};
use crate::output::OutputError;
use crate::registry::RegistryError;
use crate::store::arrive::{ArrivalError, Expected, arrive};
use crate::store::layers::KnownBlob;
use crate::store::lease::Lease;
use crate::store::origins::Origin as BlobOrigin;
use crate::store::{Store, StoreError};

/// So many things that are not so end the trust in a cache for this build.
const MOST_LIES: u32 = 8;

/// What can go wrong with a shared cache.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The registry does not do it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The folder cannot be used.
    #[error("cannot {action} {}", path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What is there is not what it should be.
    #[error("{0}")]
    Wrong(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be compressed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl From<String> for SharedError {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

impl SharedError {
    /// Whether one thing is wrong, and not the whole place.
    fn is_of_content(&self) -> bool {
        match self {
            Self::Wrong(_) | Self::Registry(RegistryError::Content { .. }) => true,
            Self::Registry(error) => error.is_not_found(),
            _ => false,
        }
    }

    fn told(self) -> String {
        format!("{:#}", anyhow::Error::from(self))
    }
}

/// What a shared cache says of a step.
#[derive(Debug)]
pub struct Claim {
    /// What the step gave there.
    pub result: StepResult,
    /// The layer's blob, compressed.
    pub blob: Descriptor,
    index: Option<Descriptor>,
    /// Which cache says so.
    source: usize,
}

/// A cache that results are taken from.
struct Source<'a> {
    place: Place<'a>,
    /// Ids of the cache mounts that are taken from it.
    mounts: Vec<String>,
    off: AtomicBool,
    asked: AtomicBool,
    warned: AtomicBool,
    lies: AtomicU32,
}

/// The caches that a build takes results from.
pub struct SharedCache<'a> {
    store: &'a Store,
    lease: &'a Lease,
    events: &'a dyn EventSink,
    sources: Vec<Source<'a>>,
    /// When a solution stands, all layers of its images are to be here.
    keeps: bool,
    /// What was asked for, nothing where nobody has it.
    found: Mutex<HashMap<CacheKey, Option<Arc<Claim>>>>,
    /// By the layer that they name.
    layers: Mutex<HashMap<DiffId, Vec<Arc<Claim>>>>,
    indexes: Mutex<HashMap<DiffId, Option<Arc<LayerIndex>>>>,
    /// Keys of claims that are not so.
    damaged: Mutex<HashSet<CacheKey>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> SharedCache<'a> {
    /// Of these places, in order, each with the ids of the cache mounts that are taken from it. With `keeps`, all layers of
    /// the images are here in the end. Nothing is asked yet.
    pub fn new(
        store: &'a Store,
        lease: &'a Lease,
        events: &'a dyn EventSink,
        places: Vec<(Place<'a>, Vec<String>)>,
        keeps: bool,
    ) -> Self {
        let source = |(place, mounts)| Source {
            place,
            mounts,
            off: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            lies: AtomicU32::new(0),
        };
        Self {
            store,
            lease,
            events,
            sources: places.into_iter().map(source).collect(),
            keeps,
            found: Mutex::default(),
            layers: Mutex::default(),
            indexes: Mutex::default(),
            damaged: Mutex::default(),
        }
    }

    /// Whether all layers of the images are to be here when a solution stands.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The name of the cache that makes a claim.
    pub fn name(&self, claim: &Claim) -> String {
        self.sources[claim.source].place.name()
    }

    fn is_off(&self, source: usize) -> bool {
        self.sources[source].off.load(Ordering::Relaxed)
    }

    /// What the caches say of a key. Each is asked once in a build.
    pub fn lookup(&self, key: &CacheKey) -> Option<Arc<Claim>> {
        if lock(&self.damaged).contains(key) {
            return None;
        }
        match lock(&self.found).get(key) {
            Some(Some(claim)) if !self.is_off(claim.source) => return Some(Arc::clone(claim)),
            Some(None) => return None,
            _ => {}
        }
        let found = (0..self.sources.len()).find_map(|source| self.ask(source, key)).map(Arc::new);
        let found = found.filter(|claim| self.agrees(claim));
        if let Some(claim) = &found {
            lock(&self.layers).entry(claim.result.layer).or_default().push(Arc::clone(claim));
        }
        lock(&self.found).insert(*key, found.clone());
        found
    }

    /// Whether nothing is known that says otherwise of the layer. A layer has one content: of two that are said of it, one
    /// would be taken for the other.
    fn agrees(&self, claim: &Arc<Claim>) -> bool {
        let StepResult { layer, content, .. } = &claim.result;
        let here = self.store.has_layer(layer).then(|| self.store.layer_summary(layer).ok()).flatten();
        let same = here.is_none_or(|here| here.content == *content)
            && self.content(layer).is_none_or(|claimed| claimed == *content);
        if !same {
            self.distrust(claim, &format!("the layer {layer} has another content than it says"));
        }
        same
    }

    /// What is claimed of a layer's content by whom nothing wrong is known.
    pub fn content(&self, layer: &DiffId) -> Option<ContentDigest> {
        self.claim(layer).map(|claim| claim.result.content)
    }

    /// The claims that name a layer, of caches that are still trusted.
    fn claims(&self, layer: &DiffId) -> Vec<Arc<Claim>> {
        let claims = lock(&self.layers).get(layer).cloned().unwrap_or_default();
        let damaged = lock(&self.damaged);
        let trusted = |claim: &Arc<Claim>| {
            !self.is_off(claim.source) && !claim.result.keys.iter().any(|key| damaged.contains(key))
        };
        claims.into_iter().filter(trusted).collect()
    }

    /// A claim that names the layer.
    pub fn claim(&self, layer: &DiffId) -> Option<Arc<Claim>> {
        self.claims(layer).into_iter().next()
    }

    /// The repository that has a claim's blob.
    pub fn repository(&self, claim: &Claim) -> Option<&Reference> {
        self.sources[claim.source].place.repository()
    }

    /// Where a claim comes from.
    fn place(&self, claim: &Claim) -> &Place<'a> {
        &self.sources[claim.source].place
    }

    /// What the layers of a base hold, where a claim says it.
    pub fn base_contents(&self, chain: &ChainId, layers: usize) -> Option<Vec<ContentDigest>> {
        let all = lock(&self.layers);
        let mut bases = all.values().flatten().filter_map(|claim| claim.result.base.as_ref());
        let base = bases.find(|base| base.chain == *chain && base.contents.len() == layers)?;
        Some(base.contents.clone())
    }

    /// Asks one cache.
    fn ask(&self, number: usize, key: &CacheKey) -> Option<Claim> {
        if self.is_off(number) {
            return None;
        }
        let source = &self.sources[number];
        let identity = source.place.identity();
        if let Some(name) = &identity
            && let Ok(Some(bytes)) = self.store.claim(name, key)
            && let Ok(claim) = self.read(number, &bytes, key)
        {
            return Some(claim);
        }
        let get = || source.place.get(Kind::Step, &key.0, MAX_ARTIFACT);
        let got = if source.asked.swap(true, Ordering::Relaxed) {
            get()
        } else {
            self.part(&format!("importing cache from {}", source.place.name()), get)
        };
        let read = got.and_then(|bytes| match bytes {
            Some(bytes) => self.read(number, &bytes, key).map(|claim| Some((claim, bytes))),
            None => Ok(None),
        });
        match read {
            Ok(Some((claim, bytes))) => {
                if let Some(name) = &identity {
                    // Without it the next build asks again.
                    drop(self.store.remember_claim(self.lease, name, key, &bytes));
                }
                Some(claim)
            }
            Ok(None) => None,
            Err(error) => {
                if error.is_of_content() {
                    lock(&self.damaged).insert(*key);
                }
                self.doubt(number, error);
                None
            }
        }
    }

    fn read(&self, number: usize, bytes: &[u8], key: &CacheKey) -> Result<Claim, SharedError> {
        let place = &self.sources[number].place;
        let config = |told: &Descriptor| place.read(told, MAX_ARTIFACT as u64);
        let Artifact { result, blob, index } = Artifact::parse(bytes, key, config)?;
        Ok(Claim { result, blob, index, source: number })
    }

    /// Shows `work` as a part of the build.
    fn part<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        self.events.event(Event::Began(name));
        let done = work();
        self.events.event(Event::Ended(name, began.elapsed()));
        done
    }

    /// Something went wrong with a cache: said once. A place that does not answer, or that was wrong too often, is left alone.
    fn doubt(&self, number: usize, error: SharedError) {
        let source = &self.sources[number];
        if matches!(error, SharedError::Registry(RegistryError::Stopped)) {
            source.off.store(true, Ordering::Relaxed);
            return;
        }
        let of_content = error.is_of_content();
        if !of_content || source.lies.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_LIES {
            source.off.store(true, Ordering::Relaxed);
        }
        if !source.warned.swap(true, Ordering::Relaxed) {
            let rest = if of_content { "what it says of that is left alone" } else { "the build goes on without it" };
            let note = format!("warning: the cache {}: {}; {rest}", source.place.name(), error.told());
            self.events.event(Event::Note(&note));
        }
    }

    /// A claim is not so, or what it promises cannot be had.
    fn distrust(&self, claim: &Claim, why: &str) {
        self.forget(claim);
        self.doubt(claim.source, SharedError::Wrong(why.to_owned()));
    }

    fn forget(&self, claim: &Claim) {
        lock(&self.damaged).extend(claim.result.keys.iter().copied());
        if let Some(name) = self.sources[claim.source].place.identity() {
            claim.result.keys.iter().for_each(|key| self.store.forget_claim(&name, key));
        }
    }

    /// Whether a key of a claim at that place was found to be wrong in this build: what is there is to be written anew.
    fn is_damaged(&self, key: &CacheKey) -> bool {
        lock(&self.damaged).contains(key)
    }

    /// Whether a place gave a claim for the key in this build, and it was not wrong.
    fn has_at(&self, place: &Place<'_>, key: &CacheKey) -> bool {
        let found = lock(&self.found).get(key).cloned().flatten();
        found.is_some_and(|claim| {
            !self.is_off(claim.source) && !self.is_damaged(key) && self.sources[claim.source].place.is_same(place)
        })
    }

    /// What COPY and USER ask of a layer that is not here: the entries that give the claimed content. Times in it are
    /// claimed, and it gives no way to the data. `None` where no cache has it.
    pub fn index(&self, layer: &DiffId) -> Option<Arc<LayerIndex>> {
        if let Some(known) = lock(&self.indexes).get(layer) {
            return known.clone();
        }
        let mut found = None;
        for claim in self.claims(layer) {
            match self.fetch_index(&claim) {
                Ok(Some(index)) => {
                    found = Some(Arc::new(index));
                    break;
                }
                Ok(None) => {}
                Err(error) => self.doubt(claim.source, error),
            }
        }
        lock(&self.indexes).insert(*layer, found.clone());
        found
    }

    fn fetch_index(&self, claim: &Claim) -> Result<Option<LayerIndex>, SharedError> {
        let Some(descriptor) = &claim.index else { return Ok(None) };
        let packed = self.sources[claim.source].place.read(descriptor, MAX_PACKED_INDEX)?;
        let wrong = |why: String| SharedError::Wrong(format!("the index of the layer {}: {why}", claim.result.layer));
        let mut bytes = Vec::new();
        let unpacked = compress::decompress(Box::new(packed.as_slice()))
            .and_then(|reader| reader.take(MAX_INDEX + 1).read_to_end(&mut bytes));
        unpacked.map_err(|error| wrong(error.to_string()))?;
        if bytes.len() as u64 > MAX_INDEX {
            return Err(wrong(format!("it has more than {MAX_INDEX} bytes")));
        }
        let index = LayerIndex::from_bytes(bytes).map_err(|error| wrong(error.to_string()))?;
        let index = retaken(&index).map_err(wrong)?;
        if index.content() != claim.result.content {
            return Err(wrong(format!(
                "its entries have the content {}, not {}",
                index.content(),
                claim.result.content
            )));
        }
        Ok(Some(index))
    }

    /// Brings a layer that a claim names into the store; `None` where none does, `false` where its caches do not have it as
    /// they said, which the user has been told then.
    pub fn bring(&self, layer: &DiffId) -> Option<bool> {
        if !lock(&self.layers).contains_key(layer) {
            return None;
        }
        for claim in &self.claims(layer) {
            let place = &self.sources[claim.source].place;
            let label = format!("[internal] load layer {} of the cache {}", short(&layer.0), place.name());
            match self.part(&label, || self.fetch(claim, place)) {
                Ok(()) => return Some(true),
                Err(error) => {
                    self.forget(claim);
                    self.doubt(claim.source, error);
                }
            }
        }
        Some(false)
    }

    /// What is claimed of a layer is not so.
    pub fn refute(&self, layer: &DiffId) {
        let why = format!("the layer {layer} has another content than it says");
        self.claims(layer).iter().for_each(|claim| self.distrust(claim, &why));
    }

    fn fetch(&self, claim: &Claim, place: &Place<'_>) -> Result<(), SharedError> {
        let StepResult { layer, content, encoder, .. } = &claim.result;
        let what = format!("fetch the layer {}", claim.blob.digest);
        let mut reader = place.open(&claim.blob, &what)?;
        let expected = Expected { blob: Some((claim.blob.digest, claim.blob.size)), diff_id: *layer };
        let arrived = arrive(self.store, self.lease, &mut self.lease.heeding(&mut reader), &expected);
        let arrived = arrived.map_err(|error| not_arrived(error, layer, &what))?;
        let found = self.store.layer_summary(layer)?.content;
        if found != *content {
            return Err(SharedError::Wrong(format!(
                "the layer {layer} has the content {found}, it was to be {content}"
            )));
        }
        if arrived.encoding != Encoding::Tar {
            // So a push of it sends what is there already, and not the same once more in other bytes.
            let media_type = claim.blob.media_type.to_string();
            let (digest, size) = (claim.blob.digest, claim.blob.size);
            let blob = KnownBlob { media_type, digest, size, encoder: Some(encoder.clone()) };
            self.store.add_layer_blob(layer, blob)?;
        }
        if let Some(reference) = place.repository() {
            let repository = format!("{}/{}", reference.registry(), reference.repository());
            self.store.add_origin(layer, BlobOrigin { blob: claim.blob.digest, repository })?;
        }
        Ok(())
    }

    /// What a cache has for a cache mount, in a file of its own; `None` where none has it. `id` is what the mount is
    /// called, `name` all that it is known by.
    pub fn mount(&self, id: &str, name: &Digest) -> Option<PathBuf> {
        let sources = self.sources.iter().enumerate();
        let mut named =
            sources.filter(|(number, source)| !self.is_off(*number) && source.mounts.iter().any(|own| own == id));
        named.find_map(|(number, source)| {
            let label = format!("importing cache mount {id} from {}", source.place.name());
            self.part(&label, || mount::fetch(&source.place, name, self.lease)).unwrap_or_else(|error| {
                self.doubt(number, error);
                None
            })
        })
    }
}

/// The first digits of a digest.
fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}

fn not_arrived(error: ArrivalError, layer: &DiffId, what: &str) -> SharedError {
    let why = match error {
        ArrivalError::Store(error) => return error.into(),
        ArrivalError::Read(error) => return from_io(error, what),
        ArrivalError::Digest(found) => format!("what came has the digest {found}"),
        ArrivalError::DiffId(found) => format!("what came has the diffID {found}"),
        ArrivalError::Compression(format) => format!("it is compressed by {format}"),
        ArrivalError::Scan(error) => format!("{:#}", anyhow::Error::from(error)),
    };
    SharedError::Wrong(format!("the layer {layer}: {why}"))
}

/// The same entries, their content computed anew, under a name that no layer has: so nobody takes offsets from it. The kept
/// files are those that the entries say, or it is refused.
fn retaken(index: &LayerIndex) -> Result<LayerIndex, String> {
    if index.root().is_some() || index.is_opaque_root() {
        // The root's header is in no content digest, so it cannot be believed.
        return Err("it has the header of a root directory, which no step's layer has".to_owned());
    }
    let mut builder = IndexBuilder::new();
    for entry in index.entries() {
        builder.push(&entry, 0);
    }
    for path in KEPT_PATHS {
        let entry = index.get_ref(path).map(|entry| entry.kind);
        match (entry, index.file_bytes(path)) {
            (Some(KindRef::File { size, sha256 }), Some(bytes))
                if bytes.len() as u64 == size && Digest::of(bytes) == sha256 =>
            {
                builder.keep(path, bytes);
            }
            (Some(KindRef::File { size, .. }), None) if size > KEPT_LIMIT => {}
            (Some(KindRef::File { .. } | KindRef::HardLink { .. }), _) | (_, Some(_)) => {
                return Err("the accounts that it keeps are not those of its files".to_owned());
            }
            (_, None) => {}
        }
    }
    let name = DiffId(Digest::of(b"an index that a shared cache claims"));
    builder.finish(Origin::Foreign, name, index.tar_size()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry_ref::EntryRef;
    use crate::layer::index::RootMetadata;

    const ACCOUNTS: &[u8] = b"a:x:1:1::/:";

    /// An index with accounts: what etc/passwd is, and what is kept of it.
    fn index(kind: KindRef<'_>, kept: Option<&[u8]>, root: bool) -> LayerIndex {
        let mut builder = IndexBuilder::new();
        if root {
            builder.set_root(RootMetadata::default());
        }
        let mut push = |path: &[u8], kind| {
            builder.push(&EntryRef { path, kind, mode: 0o755, uid: 0, gid: 0, mtime: 7, capability: None }, 512);
        };
        push(b"a", KindRef::File { size: 0, sha256: Digest::of(b"") });
        push(b"etc", KindRef::Directory);
        push(b"etc/passwd", kind);
        if let Some(bytes) = kept {
            builder.keep(b"etc/passwd", bytes);
        }
        builder.finish(Origin::Made { writer: 1 }, DiffId(Digest::of(b"layer")), 4096).unwrap()
    }

    #[test]
    fn an_index_is_believed_as_far_as_its_content_says() {
        let file = KindRef::File { size: ACCOUNTS.len() as u64, sha256: Digest::of(ACCOUNTS) };
        let large = KindRef::File { size: KEPT_LIMIT + 1, sha256: Digest::of(b"large") };
        let good = index(file, Some(ACCOUNTS), false);
        let taken = retaken(&good).unwrap();
        assert_eq!((taken.content(), taken.len()), (good.content(), good.len()));
        assert_eq!(taken.file_bytes(b"etc/passwd"), Some(ACCOUNTS));
        assert!(taken.diff_id() != good.diff_id() && taken.offset(0) == 0, "nobody finds data by it");
        assert_eq!(taken.entry(1).mtime, 7);
        retaken(&index(large, None, false)).unwrap();
        retaken(&index(KindRef::Symlink { target: b"other" }, None, false)).unwrap();
        for (name, kind, kept, root) in [
            ("other accounts", file, Some(&b"b:x:0:0::/:"[..]), false),
            ("no accounts", file, None, false),
            ("accounts of a link", KindRef::Symlink { target: b"other" }, Some(ACCOUNTS), false),
            ("a hard link, which may have accounts", KindRef::HardLink { target: b"a" }, None, false),
            ("a root", file, Some(ACCOUNTS), true),
        ] {
            assert!(retaken(&index(kind, kept, root)).is_err(), "{name}");
        }
    }
}
