//! Manifests and indexes: which blobs make an image, and which images make a multi-platform one.
//!
//! In: bytes from a layout, an archive or a registry. Out: [`Manifest`], [`Index`], [`Document`] (either), and bytes
//! again. What always holds: a document that could be read as both kinds is refused, unknown fields are kept, and
//! [`Manifest::to_bytes`] writes the same bytes for the same value. OCI's and Docker's media types are both known.

use std::collections::BTreeMap;

use oci_spec::image::{MediaType, ToDockerV2S2};
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::image::platform::Platform;

/// The most bytes that a manifest or index may have: the limit of registries.
pub const MAX_MANIFEST_SIZE: usize = 4 << 20;

/// Why some bytes are no manifest or index.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any that registries accept.
    #[error("manifest has {0} bytes; more than {MAX_MANIFEST_SIZE} are not read")]
    TooLarge(usize),
    /// No JSON, or not of this form.
    #[error("manifest cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A manifest of Docker's first schema, or of a later one than is known.
    #[error(
        "manifest has schema version {0}, only 2 is known (1 is from before 2017: push it again with a newer docker)"
    )]
    SchemaVersion(i64),
    /// It has fields of an image manifest and of an index.
    #[error("manifest has both layers and manifests, so it could be read as an image or as an index")]
    Ambiguous,
    /// It has fields of neither, or its media type says something else.
    #[error("manifest is neither an image manifest nor an index (media type \"{0}\")")]
    UnknownKind(String),
}

/// What a blob is, and which one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of thing.
    pub media_type: MediaType,
    /// Which bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Where else they can be had.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The bytes themselves, by base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What the image in it runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// What an artifact is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Descriptor {
    /// A descriptor with nothing but what is needed.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
            extra: BTreeMap::new(),
        }
    }

    /// The descriptor of these bytes.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Whether it stands for an image that runs somewhere: not an attestation or another artifact beside one.
    pub fn is_image(&self) -> bool {
        let unknown = |platform: &DescriptorPlatform| platform.os == "unknown" && platform.architecture == "unknown";
        Kind::of(&self.media_type) == Some(Kind::Manifest)
            && self.artifact_type.is_none()
            && !self.platform.as_ref().is_some_and(unknown)
            && !self.annotations.contains_key("vnd.docker.reference.type")
    }
}

/// The platform as descriptors in an index hold it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// `amd64`…
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// `linux`…
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// `os.version`.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// `os.features`.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// `v7`…
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl From<&Platform> for DescriptorPlatform {
    fn from(platform: &Platform) -> Self {
        let Platform { os, architecture, variant, os_version } = platform.clone();
        Self { architecture, os, os_version, variant, ..Self::default() }
    }
}

impl From<&DescriptorPlatform> for Platform {
    fn from(platform: &DescriptorPlatform) -> Self {
        let DescriptorPlatform { os, architecture, variant, os_version, .. } = platform.clone();
        Self { os, architecture, variant, os_version }
    }
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: i64,
    /// What kind of document; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What an artifact is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, bottom first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Box<Descriptor>>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Manifest {
    /// A manifest of that family.
    pub fn new(family: Family, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(family.manifest()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads an image manifest; an index is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        match Document::parse(bytes)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(index) => Err(unknown(index.media_type.as_ref())),
        }
    }

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Proof: no map of this type has keys that are not strings, and writing to a Vec does not fail.
        serde_json::to_vec(self).expect("a manifest is plain JSON")
    }

    /// Whose media types it uses.
    pub fn family(&self) -> Family {
        Family::of(self.media_type.as_ref(), &Family::Docker.manifest())
    }
}

/// Images for several platforms, or the content of an OCI layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: i64,
    /// What kind of document; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What an artifact is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What is in it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Box<Descriptor>>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Index {
    /// An index of that family.
    pub fn new(family: Family, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(family.index()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads an index; an image manifest is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        match Document::parse(bytes)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(manifest) => Err(unknown(manifest.media_type.as_ref())),
        }
    }

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Proof: no map of this type has keys that are not strings, and writing to a Vec does not fail.
        serde_json::to_vec(self).expect("an index is plain JSON")
    }

    /// Whose media types it uses.
    pub fn family(&self) -> Family {
        Family::of(self.media_type.as_ref(), &Family::Docker.index())
    }

    /// The images in it: not the attestations beside them.
    pub fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|entry| entry.is_image())
    }
}

/// It is something else, or of the other kind.
fn unknown(media_type: Option<&MediaType>) -> ManifestError {
    ManifestError::UnknownKind(media_type.map_or_else(|| "none given".to_owned(), ToString::to_string))
}

/// What stands where an image is named: one image, or several.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // Few of them live at a time.
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

impl Document {
    /// Reads either, by its media type and, where that is absent, by its fields.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            schema_version: i64,
            #[serde(default)]
            media_type: Option<MediaType>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        if bytes.len() > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let outline: Outline = serde_json::from_slice(bytes)?;
        if outline.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(outline.schema_version));
        }
        let image = outline.config.is_some() || outline.layers.is_some();
        if image && outline.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let said = outline.media_type.as_ref().map(Kind::of);
        match (said, image, outline.manifests.is_some()) {
            (Some(Some(Kind::Manifest)) | None, true, false) => Ok(Self::Manifest(serde_json::from_slice(bytes)?)),
            // `"manifests":null` is what Go writes for an empty list.
            (Some(Some(Kind::Index)), false, _) | (None, false, true) => {
                Ok(Self::Index(serde_json::from_slice(bytes)?))
            }
            _ => Err(unknown(outline.media_type.as_ref())),
        }
    }
}

/// The kinds of blob that make images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An image manifest.
    Manifest,
    /// An index, or Docker's manifest list.
    Index,
    /// An image config.
    Config,
    /// A layer's tar, in that encoding.
    Layer(Encoding),
}

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// Not at all.
    Tar,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

impl Kind {
    /// What a media type stands for; `None` when it is none of OCI's or Docker's for images.
    pub fn of(media_type: &MediaType) -> Option<Self> {
        Some(match media_type {
            MediaType::ImageManifest => Self::Manifest,
            MediaType::ImageIndex => Self::Index,
            MediaType::ImageConfig => Self::Config,
            MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => Self::Layer(Encoding::Tar),
            MediaType::ImageLayerGzip | MediaType::ImageLayerNonDistributableGzip => Self::Layer(Encoding::Gzip),
            MediaType::ImageLayerZstd | MediaType::ImageLayerNonDistributableZstd => Self::Layer(Encoding::Zstd),
            MediaType::Other(other) => match other.as_str() {
                "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
                "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
                "application/vnd.docker.container.image.v1+json" => Self::Config,
                DOCKER_LAYER | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Self::Layer(Encoding::Tar),
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::Layer(Encoding::Gzip),
                "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Layer(Encoding::Zstd),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Family {
    /// The OCI image specification's.
    #[default]
    Oci,
    /// Docker's, of schema 2.
    Docker,
}

impl Family {
    /// That of an image manifest.
    pub fn manifest(self) -> MediaType {
        self.media_type(MediaType::ImageManifest)
    }

    /// That of an index.
    pub fn index(self) -> MediaType {
        self.media_type(MediaType::ImageIndex)
    }

    /// That of an image config.
    pub fn config(self) -> MediaType {
        self.media_type(MediaType::ImageConfig)
    }

    /// That of a layer.
    pub fn layer(self, encoding: Encoding) -> MediaType {
        match (self, encoding) {
            (_, Encoding::Gzip) => self.media_type(MediaType::ImageLayerGzip),
            (Self::Oci, Encoding::Tar) => MediaType::ImageLayer,
            (Self::Oci, Encoding::Zstd) => MediaType::ImageLayerZstd,
            (Self::Docker, Encoding::Tar) => MediaType::Other(DOCKER_LAYER.to_owned()),
            (Self::Docker, Encoding::Zstd) => MediaType::Other(format!("{DOCKER_LAYER}.zstd")),
        }
    }

    /// Docker's where the media type is its own.
    fn of(media_type: Option<&MediaType>, docker: &MediaType) -> Self {
        if media_type == Some(docker) { Self::Docker } else { Self::Oci }
    }

    fn media_type(self, oci: MediaType) -> MediaType {
        match self {
            Self::Oci => oci,
            Self::Docker => match oci.to_docker_v2s2() {
                Ok(docker) => MediaType::Other(docker.to_owned()),
                Err(_) => oci,
            },
        }
    }
}

/// Go writes absent slices and maps as null.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn with(fields: &str) -> String {
        format!("{{\"schemaVersion\":2{fields}}}").replace("EMPTY", EMPTY)
    }

    const CONFIG: &str = r#"{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"EMPTY","size":0}"#;

    #[test]
    fn canonical_bytes_come_back_as_they_were() {
        let text = with(&format!(
            r#","mediaType":"application/vnd.oci.image.manifest.v1+json","config":{CONFIG},"layers":[{{"mediaType":"x/y","digest":"EMPTY","size":7,"urls":["u"],"annotations":{{"a":"1","b":"2"}},"data":"","x":1}}],"subject":{CONFIG},"annotations":{{"k":"v"}},"z":[]"#
        ));
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(manifest.to_bytes()).unwrap(), text);
        let text = with(
            r#","mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"EMPTY","size":3,"platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7","y":2}}]"#,
        );
        let index = Index::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(index.to_bytes()).unwrap(), text);
        let platform: Platform = index.manifests[0].platform.as_ref().unwrap().into();
        assert_eq!(platform.to_string(), "linux(1)/arm/v7");
    }

    #[test]
    fn the_kind_is_known_or_it_is_refused() {
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let index = "application/vnd.oci.image.index.v1+json";
        for (fields, expected) in [
            (format!(r#","config":{CONFIG},"layers":[]"#), "manifest"),
            (format!(r#","config":{CONFIG},"layers":null"#), "manifest"),
            (format!(r#","config":{CONFIG}"#), "manifest"),
            (format!(r#","mediaType":"{manifest}","config":{CONFIG}"#), "manifest"),
            (r#","manifests":[]"#.into(), "index"),
            (format!(r#","mediaType":"{index}","manifests":null"#), "index"),
            (format!(r#","config":{CONFIG},"manifests":[]"#), "both layers and manifests"),
            (r#","layers":[],"manifests":[]"#.into(), "both layers and manifests"),
            (format!(r#","mediaType":"{index}","config":{CONFIG}"#), "neither"),
            (format!(r#","mediaType":"{manifest}","manifests":[]"#), "neither"),
            (format!(r#","mediaType":"text/plain","config":{CONFIG}"#), "neither"),
            (String::new(), "neither"),
            (r#","layers":[]"#.into(), "missing field"),
            (r#","config":{"mediaType":"x","digest":"EMPTY","size":-1}"#.into(), "-1"),
            (r#","config":{"mediaType":"x","digest":"md5:0","size":1}"#.into(), "md5:0"),
        ] {
            let found = match Document::parse(with(&fields).as_bytes()) {
                Ok(Document::Manifest(_)) => "manifest".to_owned(),
                Ok(Document::Index(_)) => "index".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(expected), "{fields}: {found}");
        }
        let old = Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#).unwrap_err().to_string();
        assert!(old.contains("schema version 1") && old.contains("2017"), "{old}");
        assert!(matches!(Document::parse(&vec![b' '; MAX_MANIFEST_SIZE + 1]), Err(ManifestError::TooLarge(_))));
        assert!(Index::parse(with(&format!(r#","config":{CONFIG}"#)).as_bytes()).is_err());
        assert!(Manifest::parse(with(r#","manifests":[]"#).as_bytes()).is_err());
    }

    #[test]
    fn media_types_of_both_families_are_known() {
        for family in [Family::Oci, Family::Docker] {
            assert_eq!(Kind::of(&family.manifest()), Some(Kind::Manifest));
            assert_eq!(Kind::of(&family.index()), Some(Kind::Index));
            assert_eq!(Kind::of(&family.config()), Some(Kind::Config));
            for encoding in [Encoding::Tar, Encoding::Gzip, Encoding::Zstd] {
                assert_eq!(Kind::of(&family.layer(encoding)), Some(Kind::Layer(encoding)));
            }
        }
        assert_eq!(Family::Docker.layer(Encoding::Gzip).as_ref(), "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(Family::Docker.config().as_ref(), "application/vnd.docker.container.image.v1+json");
        assert_eq!(Kind::of(&MediaType::EmptyJSON), None);
    }

    #[test]
    fn attestations_are_no_images() {
        let image = Descriptor::of(Family::Oci.manifest(), b"x");
        let mut attestation = image.clone();
        attestation.platform = Some((&Platform::new("unknown", "unknown", "")).into());
        assert!(image.is_image());
        assert!(!attestation.is_image());
        assert!(!Descriptor::of(Family::Oci.index(), b"x").is_image());
    }
}
