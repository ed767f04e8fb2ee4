//! The config of an image: what a container of it starts with, its layers' diffIDs, its history.
//!
//! In: the bytes of a config, OCI's or Docker's. Out: [`ImageConfig`], and bytes again. What always holds: what is
//! not known is kept (at the top, under `config`, in the history), and [`ImageConfig::to_bytes`] writes the same
//! bytes for the same value: the order of the fields is that of images which Docker built, maps are sorted, no blanks.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::Deserializer;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{DiffId, Digest, ImageId};
use crate::image::platform::Platform;

/// The most bytes that a config may have.
pub const MAX_CONFIG_SIZE: usize = 8 << 20;

/// Why some bytes are no image config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Larger than any config that tools accept.
    #[error("image config has {0} bytes; more than {MAX_CONFIG_SIZE} are not read")]
    TooLarge(usize),
    /// No JSON, or not of this form.
    #[error("image config cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// `rootfs.type` is something else than `layers`.
    #[error("image config has a root file system of type \"{0}\"; only \"layers\" is known")]
    RootfsType(String),
}

/// An image config, by the OCI image specification, with Docker's additions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The architecture, by Go's names (`amd64`).
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// Who made it: MAINTAINER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What a container of it starts with.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// When it was made, by RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How it was made, oldest first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// The operating system, by Go's names (`linux`).
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// `os.features`.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// `os.version`.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Its layers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// The variant of the architecture (`v7`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// What a container of the image starts with: `config` of an image config.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// USER.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// EXPOSE: `80/tcp`.
    #[serde(default, with = "keys_of_map", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// ENV: `NAME=value`, in order of first appearance.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// ENTRYPOINT.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// CMD.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// VOLUME.
    #[serde(default, with = "keys_of_map", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// WORKDIR.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// LABEL.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// STOPSIGNAL.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Set by every CMD, as Docker does (it means something on Windows only).
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// HEALTHCHECK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// ONBUILD: the triggers, as text.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// SHELL.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// HEALTHCHECK as image configs hold it. Durations are nanoseconds; 0 is the default of whoever runs the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`, `CMD` and arguments, or `CMD-SHELL` and a text.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time that a check may take.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time that the container may take to start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks while it starts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// One entry of the history.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When, by RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// By which builder (`buildkit.dockerfile.v0`).
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// There is no layer for it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
    /// All other fields, as they were read.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// The diffIDs, bottom first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: layers(), diff_ids: Vec::new() }
    }
}

impl ImageConfig {
    /// Reads a config. Absent and null fields are empty, unknown ones are kept.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_CONFIG_SIZE {
            return Err(ConfigError::TooLarge(bytes.len()));
        }
        let mut config: Self = serde_json::from_slice(bytes)?;
        match config.rootfs.kind.as_str() {
            "layers" => {}
            "" => config.rootfs.kind = layers(),
            other => return Err(ConfigError::RootfsType(other.to_owned())),
        }
        Ok(config)
    }

    /// The canonical bytes: what the image id is the digest of, for images made here. (The id of an image from
    /// elsewhere is the digest of the bytes that it came with.)
    pub fn to_bytes(&self) -> Vec<u8> {
        // Proof: no map of this type has keys that are not strings, and writing to a Vec does not fail.
        serde_json::to_vec(self).expect("an image config is plain JSON")
    }

    /// The image id that [`Self::to_bytes`] leads to.
    pub fn image_id(&self) -> ImageId {
        ImageId(Digest::of(&self.to_bytes()))
    }

    /// What it runs on; an empty field of the config is empty here.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone().unwrap_or_default(),
            os_version: self.os_version.clone().unwrap_or_default(),
        }
    }
}

impl ContainerConfig {
    /// The value of an ENV variable; of several entries with one name the last counts.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| match entry.split_once('=') {
            Some((key, value)) => (key == name).then_some(value),
            None => (entry == name).then_some(""),
        })
    }
}

fn layers() -> String {
    "layers".to_owned()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde wants.
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde wants.
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Go writes absent slices and maps as null.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A set that is written as a map with empty objects for values: `{"80/tcp":{}}`.
mod keys_of_map {
    use super::{BTreeMap, BTreeSet, Deserialize, Deserializer, SerializeMap, Serializer, Value};

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(set.len()))?;
        for key in set {
            map.serialize_entry(key, &serde_json::Map::new())?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
        let map: Option<BTreeMap<String, Value>> = Option::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER_BUILT: &str = concat!(
        r#"{"architecture":"arm","author":"me","config":{"User":"u:g","ExposedPorts":{"443/tcp":{},"80/tcp":{}},"#,
        r#""Env":["PATH=/bin","A=b=c"],"Entrypoint":["/e"],"Cmd":["sh","-c","a && b"],"Volumes":{"/v":{}},"#,
        r#""WorkingDir":"/w","Labels":{"a":"1","b":"2"},"StopSignal":"SIGQUIT","ArgsEscaped":true,"#,
        r#""Healthcheck":{"Test":["CMD","x"],"Interval":30000000000,"Retries":3},"OnBuild":["RUN x"],"Shell":["/bin/sh","-c"],"#,
        r#""Hostname":"h"},"created":"2024-01-02T03:04:05.678Z","history":[{"created":"2024-01-02T03:04:05Z","#,
        r#""created_by":"ADD x / # buildkit","comment":"buildkit.dockerfile.v0"},{"created_by":"CMD","empty_layer":true,"z":1}],"#,
        r#""os":"linux","os.features":["f"],"os.version":"10","rootfs":{"type":"layers","diff_ids":["#,
        r#""sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"variant":"v7","#,
        r#""x.top":{"k":[1,null]}}"#
    );

    #[test]
    fn canonical_bytes_come_back_as_they_were() {
        let config = ImageConfig::parse(DOCKER_BUILT.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), DOCKER_BUILT);
        assert_eq!(config.platform().to_string(), "linux(10)/arm/v7");
        assert_eq!(config.config.extra["Hostname"], "h");
        assert_eq!(config.image_id(), ImageId(Digest::of(DOCKER_BUILT.as_bytes())));
    }

    #[test]
    fn null_and_absent_fields_are_empty() {
        let text = r#"{"config":{"Cmd":null,"Env":null,"Labels":null,"Volumes":null,"ExposedPorts":null,"OnBuild":null,
            "Healthcheck":null,"User":null},"history":null,"rootfs":{"type":"layers","diff_ids":null},"created":null}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config, ImageConfig::default());
        for text in ["{}", r#"{"config":null,"rootfs":null}"#, r#"{"rootfs":{"type":""}}"#] {
            assert_eq!(ImageConfig::parse(text.as_bytes()).unwrap(), ImageConfig::default(), "{text}");
        }
    }

    #[test]
    fn what_is_no_config_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "invalid type"),
            (r#"{"rootfs":{"type":"tar"}}"#, "type \"tar\""),
            (r#"{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}"#, "sha512:00"),
            (r#"{"config":{"Env":[1]}}"#, "expected a string"),
        ] {
            let error = ImageConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let huge = vec![b' '; MAX_CONFIG_SIZE + 1];
        assert!(matches!(ImageConfig::parse(&huge), Err(ConfigError::TooLarge(_))));
    }
}
