//! The artifact of a cache key: a small OCI manifest that says what a step gave, and where the bytes are.
//!
//! In: a [`StepResult`] with the descriptors of its layer and its index. Out: the bytes of a manifest and of its config, and
//! back. What always holds: an artifact names the keys that it is for, so that one found under another key is none; what
//! is read is limited in size; no word of a Dockerfile is in it, so neither is a secret that somebody wrote there. Nor is
//! what the step was made of, which its reader knows itself or has no use for.
//!
//! ```text
//! manifest (the tag is made of the key)
//! ├─ config   application/vnd.rbuild.cache.result.v1+json, which the descriptor holds as `data` too: one request is enough
//! ├─ layer    the layer's blob
//! └─ layer    application/vnd.rbuild.layer.index.v1+zstd: the layer index, with true times; read only when it is needed
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::digest::{CacheKey, ChainId, ContentDigest, DiffId, Digest};
use crate::image::manifest::{Descriptor, Family, Kind, Manifest};

/// Version of the config; readers take no other.
const VERSION: u32 = 1;

/// The most bytes of a manifest of this kind, and of its config.
pub(super) const MAX_ARTIFACT: usize = 1 << 20;

/// The most bytes of a layer index, packed and unpacked: that of two million files.
pub(super) const MAX_PACKED_INDEX: u64 = 64 << 20;
pub(super) const MAX_INDEX: u64 = 256 << 20;

/// The most keys, layers of a base and forms that are believed.
const MOST: usize = 1000;

const CONFIG: &str = "application/vnd.rbuild.cache.result.v1+json";
const INDEX: &str = "application/vnd.rbuild.layer.index.v1+zstd";

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    pub(super) version: u32,
    /// All keys that lead to it.
    pub keys: Vec<CacheKey>,
    /// What the layer holds, times left out.
    pub content: ContentDigest,
    /// The layer with true times.
    pub layer: DiffId,
    /// Bytes of its tar.
    pub tar_size: u64,
    /// When the stack that it leads to was first reached: RFC 3339.
    pub created: String,
    /// What compressed the blob.
    pub encoder: String,
    /// What the layers of the base under it hold, where that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseContents>,
    /// What the layer is called under epochs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<EpochForm>,
}

/// The contents of the layers of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseContents {
    /// Which base.
    pub chain: ChainId,
    /// Of its layers, bottom first.
    pub contents: Vec<ContentDigest>,
}

/// A layer with every time replaced by an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochForm {
    /// Seconds since 1970.
    pub epoch: i64,
    /// The writer that makes it.
    pub writer: u32,
    /// What it is called.
    pub layer: DiffId,
    /// Bytes of its tar.
    pub tar_size: u64,
}

impl StepResult {
    /// That layer with that content, found under these keys and reached at that time (RFC 3339); without what an export adds.
    pub fn new(keys: Vec<CacheKey>, layer: DiffId, content: ContentDigest, created: String) -> Self {
        Self {
            version: VERSION,
            keys,
            content,
            layer,
            tar_size: 0,
            created,
            encoder: String::new(),
            base: None,
            forms: Vec::new(),
        }
    }

    /// The form under an epoch by that writer.
    pub fn form(&self, epoch: i64, writer: u32) -> Option<&EpochForm> {
        self.forms.iter().find(|form| (form.epoch, form.writer) == (epoch, writer))
    }
}

/// An artifact.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Artifact {
    /// What the step gave.
    pub(super) result: StepResult,
    /// The layer's blob.
    pub(super) blob: Descriptor,
    /// The layer index.
    pub(super) index: Option<Descriptor>,
}

impl Artifact {
    /// The descriptor of an index that was packed to these bytes.
    pub(super) fn index_descriptor(packed: &[u8]) -> Descriptor {
        Descriptor::of(INDEX.into(), packed)
    }

    /// The bytes of the config, of the manifest, and the descriptors of both.
    pub(super) fn to_documents(&self) -> [(Vec<u8>, Descriptor); 2] {
        // Proof: neither has a map with keys that are no strings.
        let config = serde_json::to_vec(&self.result).expect("digests, texts and numbers are JSON");
        let descriptor = Descriptor::of(CONFIG.into(), &config);
        let held = Descriptor { data: Some(STANDARD.encode(&config)), ..descriptor.clone() };
        let layers = std::iter::once(&self.blob).chain(&self.index).cloned().collect();
        let manifest = Manifest::new(Family::Oci, held, layers).to_bytes();
        let manifest_descriptor = Descriptor::of(Family::Oci.manifest(), &manifest);
        [(config, descriptor), (manifest, manifest_descriptor)]
    }

    /// Reads a manifest that was found under `key`. `config` gives the bytes of the config where the manifest does not
    /// hold them; why it is no artifact of that key, else.
    pub(super) fn parse<E: From<String>>(
        bytes: &[u8],
        key: &CacheKey,
        config: impl FnOnce(&Descriptor) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let manifest = Manifest::parse(bytes).map_err(|error| error.to_string())?;
        let told = manifest.config;
        if told.media_type.to_string() != CONFIG {
            return Err(format!("its config is of the type {}, which is no step's", told.media_type).into());
        }
        if told.size > MAX_ARTIFACT as u64 {
            return Err(format!("its config has {} bytes", told.size).into());
        }
        let bytes = match &told.data {
            Some(data) => STANDARD.decode(data).map_err(|_| "the data of its config is no base64".to_owned())?,
            None => config(&told)?,
        };
        if Digest::of(&bytes) != told.digest {
            return Err(format!("its config has the digest {}, not {}", Digest::of(&bytes), told.digest).into());
        }
        let result = Self::result(&bytes, key)?;
        let mut layers = manifest.layers.into_iter();
        let is_layer = |blob: &Descriptor| matches!(Kind::of(&blob.media_type), Some(Kind::Layer(_)));
        let blob = layers.next().filter(is_layer).ok_or("its first blob is no layer".to_owned())?;
        let index = layers.next().filter(|index| index.media_type.to_string() == INDEX);
        Ok(Self { result, blob, index })
    }

    fn result(bytes: &[u8], key: &CacheKey) -> Result<StepResult, String> {
        #[derive(Deserialize)]
        struct Outline {
            version: u32,
        }
        let unread = |error: serde_json::Error| format!("its config cannot be read: {error}");
        let Outline { version } = serde_json::from_slice(bytes).map_err(unread)?;
        if version != VERSION {
            return Err(format!("its config has version {version}, of another rbuild"));
        }
        let mut result: StepResult = serde_json::from_slice(bytes).map_err(unread)?;
        if !result.keys.contains(key) {
            return Err(format!("it is the result of another step than {key}"));
        }
        let base = result.base.as_ref().map_or(0, |base| base.contents.len());
        if result.keys.len() > MOST || result.forms.len() > MOST || base > MOST {
            return Err("its config lists more than a step has".to_owned());
        }
        let time: jiff::Timestamp =
            result.created.parse().map_err(|_| format!("it was made at {:?}, which is no time", result.created))?;
        // As it is written here: history entries have nothing else.
        result.created = time.to_string();
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Encoding;

    fn key(name: &str) -> CacheKey {
        CacheKey(Digest::of(name.as_bytes()))
    }

    fn artifact() -> Artifact {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let keys = vec![key("quick"), key("landing")];
        let (layer, content) = (DiffId(digest("l")), ContentDigest(digest("c")));
        let mut result = StepResult::new(keys, layer, content, "2026-01-01T00:00:00Z".to_owned());
        result.tar_size = 1024;
        result.forms = vec![EpochForm { epoch: 7, writer: 1, layer: DiffId(digest("e")), tar_size: 1024 }];
        let blob = Descriptor::of(Family::Oci.layer(Encoding::Gzip), b"blob");
        Artifact { result, blob, index: Some(Artifact::index_descriptor(b"packed")) }
    }

    fn parse(bytes: &[u8], name: &str) -> Result<Artifact, String> {
        Artifact::parse(bytes, &key(name), |_| Err("asked for".to_owned()))
    }

    #[test]
    fn artifacts_come_back_under_their_keys_alone() {
        let artifact = artifact();
        let [(config, descriptor), (manifest, _)] = artifact.to_documents();
        for name in ["quick", "landing"] {
            assert_eq!(parse(&manifest, name).as_ref(), Ok(&artifact), "{name}");
        }
        let other = parse(&manifest, "other").unwrap_err();
        assert!(other.contains("another step"), "{other}");
        // A registry that drops what descriptors hold is asked for the config.
        let text = String::from_utf8(manifest).unwrap();
        let start = text.find(r#","data":""#).unwrap();
        let end = start + 9 + text[start + 9..].find('"').unwrap() + 1;
        let plain = format!("{}{}", &text[..start], &text[end..]);
        assert_eq!(parse(plain.as_bytes(), "quick"), Err("asked for".to_owned()));
        let fetched = Artifact::parse(plain.as_bytes(), &key("quick"), |told| {
            assert_eq!(*told, descriptor);
            Ok::<_, String>(config.clone())
        });
        assert_eq!(fetched, Ok(artifact));
        let false_config = |_: &Descriptor| Ok::<_, String>(b"{}".to_vec());
        let error = Artifact::parse(plain.as_bytes(), &key("quick"), false_config).unwrap_err();
        assert!(error.contains("has the digest"), "{error}");
    }

    #[test]
    fn what_is_no_artifact_is_refused() {
        let changed = |change: fn(&mut Artifact)| {
            let mut artifact = artifact();
            change(&mut artifact);
            let [_, (manifest, _)] = artifact.to_documents();
            parse(&manifest, "quick").map(drop).unwrap_err()
        };
        for (change, said) in [
            ((|artifact| artifact.result.version = 2) as fn(&mut Artifact), "version 2"),
            (|artifact| artifact.result.created = "yesterday".to_owned(), "no time"),
            (|artifact| artifact.blob.media_type = INDEX.into(), "no layer"),
            (|artifact| artifact.result.keys = vec![key("quick"); MOST + 1], "more than a step has"),
            (|artifact| artifact.result.keys.clear(), "another step"),
        ] {
            let error = changed(change);
            assert!(error.contains(said), "{error}");
        }
        for bytes in ["", "{}", "[]", r#"{"schemaVersion":2,"manifests":[]}"#] {
            parse(bytes.as_bytes(), "quick").unwrap_err();
        }
        let image = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
        assert!(parse(image.as_bytes(), "quick").unwrap_err().contains("no step's"));
    }
}
