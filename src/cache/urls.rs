//! What URLs gave when they were fetched last.
//!
//! In: a URL and what a server said of it. Out: the same, found again. What always holds: the entry names the blob by
//! its digest and promises nothing about the server: whether it still holds, the server is asked.
//!
//! `cache/urls/<2>/<digest of the URL>` is JSON; an entry that cannot be read counts as absent.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::store::layout::read_if_there;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

/// What a URL gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUrl {
    /// The URL.
    pub url: String,
    /// The digest of the body.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// Seconds since 1970 at which the server says that it was made; 0 where it says nothing.
    pub mtime: i64,
    /// The server's mark of this version.
    pub etag: Option<String>,
    /// `Last-Modified` as it came, where it can tell versions apart.
    pub modified: Option<String>,
}

impl Store {
    /// What `url` gave last.
    pub fn known_url(&self, url: &str) -> Result<Option<KnownUrl>, StoreError> {
        let bytes = read_if_there(&self.cache_path("urls", &Digest::of(url.as_bytes())))?;
        let known = bytes.and_then(|bytes| serde_json::from_slice::<KnownUrl>(&bytes).ok());
        Ok(known.filter(|known| known.url == url))
    }

    /// Remembers what a URL gave.
    pub fn remember_url(&self, lease: &Lease, known: &KnownUrl) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(known).expect("texts and numbers are JSON");
        self.put_cache(lease, "urls", &Digest::of(known.url.as_bytes()), &bytes)
    }
}
