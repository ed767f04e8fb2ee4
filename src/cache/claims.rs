//! What shared caches said, kept for builds that name them.
//!
//! In: a document of a cache, under the cache's name and the key. Out: the same, found again. What always holds: it is
//! read back with its checksum; it is nobody's own result, so no look-up but that of a build which names the cache finds it.
//!
//! `cache/claims/<2>/<digest of name and key>`: a line with the checksum, then the document.

use crate::digest::{CacheKey, Digest, Hasher};
use crate::store::layout::read_if_there;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

const FOLDER: &str = "claims";

impl Store {
    /// What the cache of that name said of a key.
    pub fn claim(&self, cache: &str, key: &CacheKey) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(bytes) = read_if_there(&self.cache_path(FOLDER, &name(cache, key)))? else { return Ok(None) };
        let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (sum, document) = bytes.split_at(line);
        let document = document.get(1..).unwrap_or_default();
        // What is damaged is asked for again.
        Ok((Digest::of(document).hex().as_bytes() == sum).then(|| document.to_vec()))
    }

    /// Remembers what it said.
    pub fn remember_claim(
        &self,
        lease: &Lease,
        cache: &str,
        key: &CacheKey,
        document: &[u8],
    ) -> Result<(), StoreError> {
        let mut bytes = format!("{}\n", Digest::of(document).hex()).into_bytes();
        bytes.extend_from_slice(document);
        self.put_cache(lease, FOLDER, &name(cache, key), &bytes)
    }

    /// Forgets what it said: it was not so.
    pub fn forget_claim(&self, cache: &str, key: &CacheKey) {
        // One that is gone already is as well forgotten.
        drop(std::fs::remove_file(self.cache_path(FOLDER, &name(cache, key))));
    }
}

fn name(cache: &str, key: &CacheKey) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field(b"rbuild claim 1");
    hasher.field(cache.as_bytes());
    hasher.field(key.0.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_belongs_to_its_cache() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let key = CacheKey(Digest::of(b"key"));
        store.remember_claim(&lease, "a", &key, b"one\ntwo").unwrap();
        assert_eq!(store.claim("a", &key).unwrap(), Some(b"one\ntwo".to_vec()));
        assert_eq!(store.claim("b", &key).unwrap(), None);
        let path = store.cache_path(FOLDER, &name("a", &key));
        for bytes in ["", "x", "x\none\ntwo"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(store.claim("a", &key).unwrap(), None, "{bytes}");
        }
        store.forget_claim("a", &key);
        store.forget_claim("a", &key);
        assert!(!path.exists());
    }
}
