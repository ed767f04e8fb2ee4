//! What tags of registries led to when a build last asked.
//!
//! In: a full reference. Out: the digest of the manifest or index. What always holds: an entry is a hint; the documents that it
//! names may be gone, and then the registry is asked again.

use std::fs;
use std::path::PathBuf;

use super::layout::{Store, StoreError, read_if_there};
use crate::digest::Digest;

impl Store {
    fn base_path(&self, reference: &str) -> PathBuf {
        self.path("cache/bases").join(Digest::of(reference.as_bytes()).hex())
    }

    /// What the reference led to.
    pub fn remembered_base(&self, reference: &str) -> Result<Option<Digest>, StoreError> {
        let Some(bytes) = read_if_there(&self.base_path(reference))? else { return Ok(None) };
        // Whatever else stands there says nothing.
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Remembers what it leads to now.
    pub fn remember_base(&self, reference: &str, top: &Digest) -> Result<(), StoreError> {
        if self.remembered_base(reference)?.as_ref() == Some(top) {
            return Ok(());
        }
        let folder = self.path("cache/bases");
        fs::create_dir_all(&folder).map_err(StoreError::io("make", &folder))?;
        self.replace(&self.base_path(reference), format!("{top}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_remembered_until_it_moves() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(store.remembered_base("a:1").unwrap(), None);
        store.remember_base("a:1", &one).unwrap();
        store.remember_base("a:2", &two).unwrap();
        assert_eq!(store.remembered_base("a:1").unwrap(), Some(one));
        store.remember_base("a:1", &two).unwrap();
        assert_eq!(store.remembered_base("a:1").unwrap(), Some(two));
        fs::write(store.base_path("a:1"), "nonsense").unwrap();
        assert_eq!(store.remembered_base("a:1").unwrap(), None);
    }
}
