//! A cache record: which layer a step gave, and what it was made of.
//!
//! In: [`CacheRecord`]. Out: a small text file, and back. What always holds: the first line has the version and the
//! SHA-256 of the rest, so a torn or edited file is found out and counts as damaged, never as something else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{ContentDigest, DiffId, Digest, StackId};
use crate::plan::limits::Security;
use crate::plan::print;
use crate::plan::remote::without_password;
use crate::plan::step::{Chmod, CopySource, Op};

/// Version of the file format; readers refuse others.
const RECORD_VERSION: u32 = 1;

/// The result of a step, and the ingredients of its key in a form for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// What the layer holds, times left out.
    pub content: ContentDigest,
    /// The layer with true times.
    pub layer: DiffId,
    /// The operation alone.
    pub op: Digest,
    /// The stack it was run on.
    pub below: StackId,
    /// Digest of what was copied; for COPY and ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Digest>,
    /// Digest of what was found at the destination; for COPY, ADD and WORKDIR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landing: Option<Digest>,
    /// The operation in words, for `--explain`.
    pub parts: BTreeMap<String, String>,
}

impl CacheRecord {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("a record has string keys only");
        format!("rbuild record {RECORD_VERSION} {}\n{body}", Digest::of(body.as_bytes()).hex()).into_bytes()
    }

    /// Reads a file's bytes; why not, where they are not a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let (head, body) = text.split_once('\n').ok_or("it ends in its first line")?;
        let head = head.strip_prefix("rbuild record ").ok_or("it does not begin as a record")?;
        let (version, sum) = head.split_once(' ').ok_or("its first line is cut off")?;
        if version != RECORD_VERSION.to_string() {
            return Err(format!("it has version {version}"));
        }
        if sum != Digest::of(body.as_bytes()).hex() {
            return Err("its checksum is wrong".to_owned());
        }
        serde_json::from_str(body).map_err(|error| error.to_string())
    }
}

/// The parts of an operation in words: what `--explain` compares and names.
pub fn parts(op: &Op, platform: &str) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        parts.insert(name.to_owned(), value);
    };
    match op {
        Op::Run(run) => {
            put("command", run.args.join(" "));
            if let Some((_, body)) = &run.script {
                put("script", body.clone());
            }
            for pair in &run.env {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                put(&format!("variable {name}"), value.to_owned());
            }
            put(
                "order of variables",
                run.env.iter().map(|pair| pair.split('=').next().unwrap_or("")).collect::<Vec<_>>().join(" "),
            );
            put("directory", run.cwd.clone());
            put("user", run.user.clone());
            put("network", format!("{:?}", run.network).to_lowercase());
            put("host name", run.hostname.clone().unwrap_or_default());
            // Only where they are not as usual: records of before have none of them.
            if run.security == Security::Insecure {
                put("security", "insecure".to_owned());
            }
            for limit in &run.limits.ulimits {
                put(&format!("limit {}", limit.name), format!("{}:{}", limit.soft, limit.hard));
            }
            if run.limits.shm_size > 0 {
                put("size of /dev/shm", run.limits.shm_size.to_string());
            }
            if let Some(parent) = &run.limits.cgroup_parent {
                put("parent of the cgroup", parent.clone());
            }
            if !run.limits.host_names.is_empty() {
                put("further host names", run.limits.host_names.join(" "));
            }
            for mount in &run.mounts {
                let (target, options) = print::mount_in_words(mount);
                put(&format!("mount at {target}"), options);
            }
            put("platform", platform.to_owned());
        }
        Op::Copy(copy) => {
            put("destination", copy.destination.clone());
            let name = |source: &CopySource| match source {
                CopySource::Path(path) => path.clone(),
                CopySource::Inline { name, .. } => format!("<<{name}"),
                CopySource::Remote(remote) => without_password(&remote.text),
            };
            put("sources", copy.sources.iter().map(name).collect::<Vec<_>>().join(" "));
            let owner = copy.chown.as_ref().map(|chown| match &chown.group {
                Some(group) => format!("{}:{group}", chown.user),
                None => chown.user.clone(),
            });
            put("--chown", owner.unwrap_or_default());
            let mode = copy.chmod.as_ref().map(|chmod| match chmod {
                Chmod::Octal(mode) => format!("{mode:o}"),
                Chmod::Symbolic(clauses) => format!("{clauses:?}"),
            });
            put("--chmod", mode.unwrap_or_default());
            put("--link", copy.link.to_string());
            put("--parents", copy.parents.to_string());
            put("--exclude", copy.exclude.join(" "));
            put("unpacking", copy.unpack.to_string());
        }
        Op::MakeDir(make) => {
            put("directory", make.path.clone());
            put("user", make.user.clone());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damage_is_found() {
        let record = CacheRecord {
            content: ContentDigest(Digest::of(b"c")),
            layer: DiffId(Digest::of(b"l")),
            op: Digest::of(b"o"),
            below: StackId(Digest::of(b"b")),
            source: None,
            landing: Some(Digest::of(b"x")),
            parts: BTreeMap::from([("command".to_owned(), "a \"quoted\"\nline".to_owned())]),
        };
        let bytes = record.to_bytes();
        assert_eq!(CacheRecord::parse(&bytes), Ok(record));
        for cut in 0..bytes.len() {
            assert!(CacheRecord::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert!(CacheRecord::parse(&damaged).is_err(), "damaged at {place}");
        }
    }
}
