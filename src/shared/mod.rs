//! Caches that several machines share.
//!
//! In: cache keys, and the places that a build names. Out: a [`Claim`] for a key, later its index or its layer; the other way
//! round, results of steps for others. What always holds: a claim is believed only so far as it cannot do harm. It is found by
//! builds that name its cache, and no word of it becomes a record of this store: it says which layer a step gave, with what
//! content, and both are checked before anything is made of them. So all that is asked for later is asked for by layer *and*
//! content; layers of a base, whose content nobody claims, never come from here. A cache that does not answer or says what
//! is not so is told of once, and the build goes on.
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
mod outline;
mod place;
mod source;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::artifact::{BaseContents, EpochForm, StepResult};
pub use self::export::{Export, Exported, export};
pub use self::folder::Folder;
pub use self::mount::{export_mount, unpack_mount};
pub use self::place::Place;

use self::place::from_io;
use self::source::Source;
use crate::digest::{CacheKey, ChainId, ContentDigest, DiffId, Digest};
use crate::event::EventSink;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::layer::index::LayerIndex;
use crate::output::OutputError;
use crate::registry::RegistryError;
use crate::store::arrive::{ArrivalError, Expected, arrive};
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::{Store, StoreError};

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

impl Claim {
    fn names(&self, layer: &DiffId, content: &ContentDigest) -> bool {
        (self.result.layer, self.result.content) == (*layer, *content)
    }
}

/// What is to be had of a layer of the image before the image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No more than was said.
    Nothing,
    /// That its blob is still where the cache has it.
    Blob,
    /// The layer, in the store.
    Layer,
}

/// Says what is needed of the layer of a claim; `true` with it where a repository has the blob.
pub type Needs<'a> = dyn Fn(&Claim, bool) -> Need + Sync + 'a;

/// Indexes by the layer that they are of, and what that is said to hold; nothing where no cache has one.
type Indexes = HashMap<(DiffId, ContentDigest), Option<Arc<LayerIndex>>>;

/// The caches that a build takes results from.
pub struct SharedCache<'a> {
    store: &'a Store,
    lease: &'a Lease,
    sources: Vec<Source<'a>>,
    needs: Box<Needs<'a>>,
    indexes: Mutex<Indexes>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> SharedCache<'a> {
    /// Of these places, in order, each with the ids of the cache mounts that are taken from it. Nothing is asked yet.
    pub fn new(
        store: &'a Store,
        lease: &'a Lease,
        events: &'a dyn EventSink,
        places: Vec<(Place<'a>, Vec<String>)>,
        needs: Box<Needs<'a>>,
    ) -> Self {
        let places = places.into_iter().enumerate();
        let sources =
            places.map(|(number, (place, mounts))| Source::new((number, place, mounts), store, lease, events));
        Self { store, lease, sources: sources.collect(), needs, indexes: Mutex::default() }
    }

    /// What is to be had of the layer of a claim before the image is made.
    pub fn need(&self, claim: &Claim) -> Need {
        (self.needs)(claim, self.repository(claim).is_some())
    }

    fn source(&self, claim: &Claim) -> &Source<'a> {
        &self.sources[claim.source]
    }

    /// The name of the cache that makes a claim.
    pub fn name(&self, claim: &Claim) -> String {
        self.source(claim).place.name()
    }

    /// What the caches say of a key: the first that has it. Each is asked once in a build. Whether the layer is here or
    /// another command brings it: from now on it stays as long as the lease lives.
    pub fn lookup(&self, key: &CacheKey) -> Result<Option<Arc<Claim>>, StoreError> {
        for source in &self.sources {
            let Some(claim) = source.lookup(key) else { continue };
            let shared = self.lease.shared()?;
            self.lease.uses([format!("layers/{}", claim.result.layer.0.hex())])?;
            drop(shared);
            if self.agrees(&claim) {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Whether the layer holds what is claimed, as far as that can be told now.
    fn agrees(&self, claim: &Claim) -> bool {
        let StepResult { layer, content, .. } = &claim.result;
        let here = self.store.has_layer(layer).then(|| self.store.layer_summary(layer).ok()).flatten();
        let same = here.is_none_or(|here| here.content == *content);
        if !same {
            self.refute(layer, content);
        }
        same
    }

    /// The claims that are trusted of a layer and what it holds.
    fn claims(&self, layer: &DiffId, content: &ContentDigest) -> Vec<Arc<Claim>> {
        self.sources.iter().flat_map(|source| source.claims(|claim| claim.names(layer, content))).collect()
    }

    /// One of them.
    pub fn claim(&self, layer: &DiffId, content: &ContentDigest) -> Option<Arc<Claim>> {
        self.claims(layer, content).into_iter().next()
    }

    /// The repository that has a claim's blob.
    pub fn repository(&self, claim: &Claim) -> Option<&Reference> {
        self.source(claim).place.repository()
    }

    /// What the layers of a base hold, where the claims that say it say the same.
    pub fn base_contents(&self, chain: &ChainId, layers: usize) -> Option<Vec<ContentDigest>> {
        let of_base = |claim: &Claim| {
            claim.result.base.as_ref().is_some_and(|base| base.chain == *chain && base.contents.len() == layers)
        };
        let claims: Vec<Arc<Claim>> = self.sources.iter().flat_map(|source| source.claims(of_base)).collect();
        let mut said = claims.iter().filter_map(|claim| claim.result.base.as_ref());
        let first = said.next()?;
        said.all(|other| other == first).then(|| first.contents.clone())
    }

    /// How much trust was lost so far: a number that grows with everything that is found to be wrong.
    pub fn doubts(&self) -> usize {
        self.sources.iter().map(Source::doubts).sum()
    }

    /// Whether that place gave something for the key in this build that was wrong: it is to be written anew.
    fn is_damaged(&self, place: &Place<'_>, key: &CacheKey) -> bool {
        self.sources.iter().any(|source| source.place.is_same(place) && source.was_wrong(key))
    }

    /// Whether that place gave a claim for the key in this build, and it was not wrong.
    fn has_at(&self, place: &Place<'_>, key: &CacheKey) -> bool {
        self.sources.iter().any(|source| source.place.is_same(place) && source.gave(key))
    }

    /// What COPY and USER ask of a layer that is not here: the entries that give that content. Times in it are
    /// claimed, and it gives no way to the data. `None` where no cache has it.
    pub fn index(&self, layer: &DiffId, content: &ContentDigest) -> Option<Arc<LayerIndex>> {
        if let Some(known) = lock(&self.indexes).get(&(*layer, *content)) {
            return known.clone();
        }
        let found = self.claims(layer, content).iter().find_map(|claim| {
            let source = self.source(claim);
            outline::fetch(claim, &source.place).unwrap_or_else(|error| {
                source.doubt_index(claim, error);
                None
            })
        });
        let found = found.map(Arc::new);
        lock(&self.indexes).insert((*layer, *content), found.clone());
        found
    }

    /// Brings a layer that is claimed to hold that into the store; `None` where nobody ever claimed it, `false` where the caches
    /// do not have it as they said, which the user has been told then.
    pub fn bring(&self, layer: &DiffId, content: &ContentDigest) -> Option<bool> {
        if !self.sources.iter().any(|source| source.has_claimed(layer, content)) {
            return None;
        }
        Some(self.claims(layer, content).iter().any(|claim| {
            let source = self.source(claim);
            let label = format!("[internal] load layer {} of the cache {}", short(&layer.0), source.place.name());
            source
                .part(&label, || self.fetch(claim, &source.place))
                .map_err(|error| source.distrust(claim, error))
                .is_ok()
        }))
    }

    /// Whether the blob of a claim is still there; if not the claim is trusted no more.
    pub fn has_blob(&self, claim: &Claim) -> bool {
        let source = self.source(claim);
        let there = source.place.has_blob(&claim.blob).and_then(|there| {
            there
                .then_some(())
                .ok_or_else(|| SharedError::Wrong(format!("the layer {} is no longer there", claim.result.layer)))
        });
        there.map_err(|error| source.distrust(claim, error)).is_ok()
    }

    /// A layer turned out to hold something else than was claimed.
    pub fn refute(&self, layer: &DiffId, content: &ContentDigest) {
        for claim in self.claims(layer, content) {
            let why = format!("the layer {layer} has another content than it says");
            self.source(&claim).distrust(&claim, SharedError::Wrong(why));
        }
    }

    fn fetch(&self, claim: &Claim, place: &Place<'_>) -> Result<(), SharedError> {
        let StepResult { layer, content, .. } = &claim.result;
        let what = format!("fetch the layer {}", claim.blob.digest);
        let mut reader = place.open(&claim.blob, &what)?;
        let expected = Expected { blob: Some((claim.blob.digest, claim.blob.size)), diff_id: *layer };
        // What compressed the blob is a word of the claim, and not written down.
        arrive(self.store, self.lease, &mut self.lease.heeding(&mut reader), &expected)
            .map_err(|error| not_arrived(error, layer, &what))?;
        let found = self.store.layer_summary(layer)?.content;
        if found != *content {
            return Err(SharedError::Wrong(format!(
                "the layer {layer} has the content {found}, it was to be {content}"
            )));
        }
        if let Some(reference) = place.repository() {
            let repository = reference.full_name();
            self.store.add_origin(layer, Origin { blob: claim.blob.digest, repository })?;
        }
        Ok(())
    }

    /// What a cache has for a cache mount, in a file of its own; `None` where none has it. `id` is what the mount is
    /// called, `name` all that it is known by.
    pub fn mount(&self, id: &str, name: &Digest) -> Option<PathBuf> {
        let mut named =
            self.sources.iter().filter(|source| !source.is_off() && source.mounts.iter().any(|own| own == id));
        named.find_map(|source| {
            let label = format!("importing cache mount {id} from {}", source.place.name());
            source.part(&label, || mount::fetch(&source.place, name, self.lease)).unwrap_or_else(|error| {
                source.doubt(error);
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

#[cfg(test)]
mod tests {
    use super::artifact::Artifact;
    use super::place::{Bytes, Kind};
    use super::*;
    use crate::image::manifest::{Encoding, Family};

    struct Silence;

    impl EventSink for Silence {
        fn event(&self, _: crate::event::Event<'_>) {}
    }

    fn key(name: &str) -> CacheKey {
        CacheKey(Digest::of(name.as_bytes()))
    }

    /// A result under these keys, whose layer and contents have these names.
    fn result(keys: &[&str], layer: &str, content: &str, base: &str) -> StepResult {
        let digest = |name: &str| Digest::of(name.as_bytes());
        let keys = keys.iter().map(|name| key(name)).collect();
        let (layer, content) = (DiffId(digest(layer)), ContentDigest(digest(content)));
        let mut result = StepResult::new(keys, layer, content, "2026-01-01T00:00:00Z".to_owned());
        result.base =
            Some(BaseContents { chain: ChainId(digest("chain")), contents: vec![ContentDigest(digest(base))] });
        result
    }

    /// A folder with results; their blobs are not there.
    fn folder(temp: &tempfile::TempDir, name: &str, results: &[StepResult]) -> Place<'static> {
        let place = Place::Folder(Folder::new(temp.path().join(name)));
        place.make().unwrap();
        for result in results {
            let blob = Descriptor::of(Family::Oci.layer(Encoding::Gzip), b"blob");
            let [(config, told), (manifest, descriptor)] =
                Artifact { result: result.clone(), blob, index: None }.to_documents();
            place.put_blob(&told, &Bytes::Here(&config), &[], false).unwrap();
            for key in &result.keys {
                place.put(Kind::Step, &key.0, &descriptor, &manifest).unwrap();
            }
        }
        place
    }

    #[test]
    fn each_cache_is_trusted_by_itself_and_each_claim_as_a_whole() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let lease = store.lease("boot").unwrap();
        // The first says another content of the layer, and names keys of others.
        let lie = result(&["a", "b"], "layer", "lie", "lie");
        let (a, b) = (result(&["a"], "layer", "true", "base"), result(&["b"], "other", "true", "base"));
        let places = vec![
            (folder(&temp, "bad", std::slice::from_ref(&lie)), Vec::new()),
            (folder(&temp, "good", &[a.clone(), b.clone()]), Vec::new()),
        ];
        let shared = SharedCache::new(&store, &lease, &Silence, places, Box::new(|_, _| Need::Layer));
        let looked = |name: &str| shared.lookup(&key(name)).unwrap().map(|claim| claim.result.clone());
        assert_eq!(looked("a"), Some(lie.clone()));
        assert_eq!((looked("nobody"), shared.doubts()), (None, 0));
        let chain = ChainId(Digest::of(b"chain"));
        let base = |names: &str| Some(vec![ContentDigest(Digest::of(names.as_bytes()))]);
        assert_eq!(shared.base_contents(&chain, 1), base("lie"));
        // What is asked for is a layer with a content: nobody else's word counts for it.
        assert!(shared.claim(&a.layer, &lie.content).is_some() && shared.claim(&a.layer, &a.content).is_none());
        assert_eq!((shared.bring(&a.layer, &a.content), shared.doubts()), (None, 0));
        assert!(shared.index(&a.layer, &a.content).is_none());
        assert_eq!(shared.bring(&lie.layer, &lie.content), Some(false), "there is no blob");
        // The cache that lied is wrong about both keys, the other about none.
        assert_eq!(shared.doubts(), 2);
        assert_eq!((looked("a"), looked("b")), (Some(a.clone()), Some(b.clone())));
        assert_eq!(shared.base_contents(&chain, 1), base("base"));
        assert_eq!(shared.bring(&lie.layer, &lie.content), Some(false), "it was claimed once");
        assert_eq!(shared.doubts(), 2);
        let claim = shared.claim(&b.layer, &b.content).unwrap();
        assert!(!shared.has_blob(&claim));
        assert_eq!((shared.doubts(), looked("b")), (3, None));
    }

    #[test]
    fn what_two_caches_say_of_a_base_counts_if_it_is_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let lease = store.lease("boot").unwrap();
        for (other, said) in [("base", true), ("lie", false)] {
            let first = folder(&temp, &format!("first-{other}"), &[result(&["a"], "a", "a", "base")]);
            let second = folder(&temp, &format!("second-{other}"), &[result(&["b"], "b", "b", other)]);
            let places = vec![(first, Vec::new()), (second, Vec::new())];
            let shared = SharedCache::new(&store, &lease, &Silence, places, Box::new(|_, _| Need::Layer));
            assert!(["a", "b"].iter().all(|name| shared.lookup(&key(name)).unwrap().is_some()));
            assert_eq!(shared.base_contents(&ChainId(Digest::of(b"chain")), 1).is_some(), said, "{other}");
            assert_eq!(shared.base_contents(&ChainId(Digest::of(b"chain")), 2), None);
        }
    }
}
