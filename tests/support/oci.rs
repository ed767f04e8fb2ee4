//! Reads the archives that rbuild writes as a stranger would, and believes nothing: every blob is hashed again.
//!
//! In: the path of an OCI layout tar. Out: config, layers and the merged tree. What always holds: whoever gets an
//! [`Image`] has one whose digests, sizes, diffIDs and history agree, or the test has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// `sha256:` and the digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("memory takes every write");
    }
    text
}

/// One image of an archive.
#[derive(Debug)]
pub struct Image {
    /// Its names, as annotations of the index.
    pub names: Vec<String>,
    /// The manifest's digest.
    pub digest: String,
    /// The manifest.
    pub manifest: Value,
    /// The digest of the config.
    pub id: String,
    /// The config.
    pub config: Value,
    /// The uncompressed layers, lowest first.
    pub layers: Vec<Vec<u8>>,
}

/// Something in the merged tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `-`, `d`, `l`, `c`, `b`, `p`.
    pub kind: char,
    /// Permissions with setuid, setgid and sticky bit.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u64, u64),
    /// Size of a file.
    pub size: u64,
    /// Digest of a file's bytes.
    pub sha256: String,
    /// Target of a symbolic link; numbers of a device.
    pub link: String,
    /// The name that stands first in the layer, for the further names of a file.
    pub same_as: Option<String>,
    /// The same number for all names of one file of the tree.
    pub file: usize,
    /// Seconds.
    pub mtime: u64,
    /// Extended attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

/// All files of an archive by name, in memory.
fn files_of(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().expect("a tar") {
        let mut entry = entry.expect("a whole tar");
        let name = String::from_utf8(entry.path_bytes().into_owned()).expect("names of a layout are ASCII");
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("a whole tar");
        assert!(files.insert(name.clone(), data).is_none() || name.ends_with('/'), "{name} is in the archive twice");
    }
    files
}

impl Image {
    /// The only image of an OCI layout tar.
    #[track_caller]
    pub fn read(archive: &Path) -> Self {
        let mut images = Self::read_all(archive);
        assert_eq!(images.len(), 1, "{} holds several images", archive.display());
        images.remove(0)
    }

    /// All images of an OCI layout tar, validated. Names that point at one manifest are one image.
    #[track_caller]
    pub fn read_all(archive: &Path) -> Vec<Self> {
        let files = files_of(archive);
        let json = |name: &str| -> Value {
            let bytes = files.get(name).unwrap_or_else(|| panic!("the archive has no {name}"));
            serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/sha256/") && !name.ends_with('/'))
        {
            assert_eq!(
                sha256(bytes),
                format!("sha256:{}", &name["blobs/sha256/".len()..]),
                "a blob that is not its name"
            );
        }
        let mut used = BTreeSet::new();
        let mut blob = |descriptor: &Value| -> Vec<u8> {
            let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
            let name = digest.replacen("sha256:", "blobs/sha256/", 1);
            let bytes = files.get(&name).unwrap_or_else(|| panic!("the archive has no {name}")).clone();
            assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64), "size of {name}");
            used.insert(name);
            bytes
        };
        let index = json("index.json");
        assert_eq!(index["schemaVersion"], 2);
        let mut images: Vec<Self> = Vec::new();
        for descriptor in index["manifests"].as_array().expect("an index has manifests") {
            let digest = descriptor["digest"].as_str().expect("a digest").to_owned();
            let name = descriptor["annotations"]["io.containerd.image.name"].as_str().map(str::to_owned);
            if let Some(known) = images.iter_mut().find(|image| image.digest == digest) {
                known.names.extend(name);
                continue;
            }
            let manifest: Value = serde_json::from_slice(&blob(descriptor)).expect("a manifest is JSON");
            assert_eq!(manifest["schemaVersion"], 2);
            let config = blob(&manifest["config"]);
            let layers = manifest["layers"].as_array().expect("a manifest has layers");
            let layers = layers.iter().map(|layer| uncompressed(layer, &blob(layer))).collect();
            images.push(Self {
                names: name.into_iter().collect(),
                digest,
                id: sha256(&config),
                config: serde_json::from_slice(&config).expect("a config is JSON"),
                manifest,
                layers,
            });
        }
        let held: BTreeSet<String> =
            files.keys().filter(|name| name.starts_with("blobs/sha256/") && !name.ends_with('/')).cloned().collect();
        assert_eq!(held, used, "blobs that nothing in the archive names");
        for image in &images {
            image.validate();
            image.layers.iter().for_each(|layer| canonical(layer));
        }
        images
    }

    /// The only image of a `docker save` archive that rbuild wrote.
    #[track_caller]
    pub fn read_docker(archive: &Path) -> Self {
        let image = Self::read_foreign_docker(archive);
        image.layers.iter().for_each(|layer| canonical(layer));
        image
    }

    /// The only image of a `docker save` archive whose layers another builder wrote.
    #[track_caller]
    pub fn read_foreign_docker(archive: &Path) -> Self {
        let files = files_of(archive);
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).expect("manifest.json is JSON");
        let entries = manifest.as_array().expect("manifest.json is a list");
        assert_eq!(entries.len(), 1, "{} holds several images", archive.display());
        let named = |value: &Value| files[value.as_str().expect("a file name")].clone();
        let strings = |value: &Value| -> Vec<String> {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let config = named(&entries[0]["Config"]);
        let layers = entries[0]["Layers"].as_array().expect("a list of layers").iter();
        let layers = layers.map(|layer| inflated(&named(layer))).collect();
        let image = Self {
            names: strings(&entries[0]["RepoTags"]),
            digest: String::new(),
            id: sha256(&config),
            config: serde_json::from_slice(&config).expect("a config is JSON"),
            manifest: entries[0].clone(),
            layers,
        };
        image.validate();
        image
    }

    fn validate(&self) {
        let diff_ids: Vec<&str> =
            self.config["rootfs"]["diff_ids"].as_array().expect("diffIDs").iter().filter_map(Value::as_str).collect();
        let found: Vec<String> = self.layers.iter().map(|layer| sha256(layer)).collect();
        assert_eq!(diff_ids, found, "diffIDs of the config against the layers");
        let history = self.history();
        let filled = history.iter().filter(|(_, empty)| !empty).count();
        assert!(
            history.is_empty() || filled == found.len(),
            "{filled} entries of the history for {} layers",
            found.len()
        );
    }

    /// `created_by` and `empty_layer` of each entry of the history, oldest first.
    pub fn history(&self) -> Vec<(String, bool)> {
        let entries = self.config["history"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |entry: &Value| entry["created_by"].as_str().unwrap_or_default().to_owned();
        entries.iter().map(|entry| (text(entry), entry["empty_layer"] == true)).collect()
    }

    /// The tree that all layers give.
    pub fn tree(&self) -> BTreeMap<String, Node> {
        let (mut tree, mut files) = (BTreeMap::new(), 0);
        for layer in &self.layers {
            apply(&mut tree, &mut files, layer);
        }
        tree
    }

    /// The tree as text, one line per path; below `prefix` only.
    pub fn listing(&self, prefix: &str) -> String {
        let mut text = String::new();
        for (path, node) in self.tree().range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix)) {
            let owner = format!("{}:{}", node.owner.0, node.owner.1);
            write!(text, "{}{:04o} {owner} {path}", node.kind, node.mode).expect("memory takes every write");
            match (node.kind, &node.same_as) {
                (_, Some(first)) => write!(text, " = {first}"),
                ('l' | 'c' | 'b', None) => write!(text, " -> {}", node.link),
                ('-', None) => write!(text, " {}", node.size),
                _ => Ok(()),
            }
            .expect("memory takes every write");
            text.push('\n');
        }
        text
    }

    /// The bytes of a file of the merged tree.
    #[track_caller]
    pub fn file(&self, path: &str) -> Vec<u8> {
        let node = self.tree().remove(path).unwrap_or_else(|| panic!("the image has no {path}"));
        let wanted = node.same_as.unwrap_or_else(|| path.to_owned());
        for layer in self.layers.iter().rev() {
            let mut found = None;
            for_each(layer, |name, _, data| {
                if name == wanted && !data.is_empty() {
                    found = Some(data.to_vec());
                }
            });
            if let Some(data) = found {
                return data;
            }
        }
        Vec::new()
    }

    /// The names in the top layer, as they stand in the tar.
    pub fn top_layer(&self) -> Vec<String> {
        let mut names = Vec::new();
        for_each(self.layers.last().expect("an image with layers"), |name, _, _| names.push(name.to_owned()));
        names
    }
}

fn uncompressed(descriptor: &Value, blob: &[u8]) -> Vec<u8> {
    let media = descriptor["mediaType"].as_str().expect("a descriptor has a media type");
    let expected: &[u8] = match media {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => b"",
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            b"\x1f\x8b"
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" => b"\x28\xb5\x2f\xfd",
        other => panic!("media type {other} of a layer"),
    };
    assert!(blob.starts_with(expected), "a layer that is not what its media type {media} says");
    inflated(blob)
}

fn inflated(blob: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if blob.starts_with(b"\x1f\x8b") {
        flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut bytes).expect("whole gzip");
    } else if blob.starts_with(b"\x28\xb5\x2f\xfd") {
        bytes = zstd::decode_all(blob).expect("whole zstd");
    } else {
        bytes.extend_from_slice(blob);
    }
    bytes
}

fn for_each(layer: &[u8], mut visit: impl FnMut(&str, &Node, &[u8])) {
    for entry in tar::Archive::new(layer).entries().expect("a layer is a tar") {
        let mut entry = entry.expect("a layer is a whole tar");
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut attributes = BTreeMap::new();
        for pair in entry.pax_extensions().expect("extension records").into_iter().flatten() {
            let pair = pair.expect("a whole extension record");
            if let Some(key) = pair.key().expect("keys are UTF-8").strip_prefix("SCHILY.xattr.") {
                attributes.insert(key.to_owned(), pair.value_bytes().to_vec());
            }
        }
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default();
        let header = entry.header().clone();
        let devices = format!("{},{}", number(header.device_major()), number(header.device_minor()));
        let (kind, link, same_as) = match header.entry_type() {
            tar::EntryType::Directory => ('d', String::new(), None),
            tar::EntryType::Symlink => ('l', link, None),
            tar::EntryType::Link => ('-', String::new(), Some(link)),
            tar::EntryType::Char => ('c', devices, None),
            tar::EntryType::Block => ('b', devices, None),
            tar::EntryType::Fifo => ('p', String::new(), None),
            tar::EntryType::Regular | tar::EntryType::Continuous => ('-', String::new(), None),
            other => panic!("{name}: an entry of type {other:?}"),
        };
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("a layer is a whole tar");
        let node = Node {
            kind,
            mode: header.mode().expect("a mode") & 0o7777,
            owner: (entry_id(&mut entry, true), entry_id(&mut entry, false)),
            size: data.len() as u64,
            sha256: sha256(&data),
            link,
            same_as,
            file: 0,
            mtime: header.mtime().expect("a time"),
            attributes,
        };
        visit(&name, &node, &data);
    }
}

fn number(field: std::io::Result<Option<u32>>) -> u32 {
    field.ok().flatten().unwrap_or_default()
}

fn entry_id<R: std::io::Read>(entry: &mut tar::Entry<'_, R>, user: bool) -> u64 {
    let header = entry.header();
    if user { header.uid() } else { header.gid() }.expect("an owner")
}

fn apply(tree: &mut BTreeMap<String, Node>, files: &mut usize, layer: &[u8]) {
    let mut entries = Vec::new();
    for_each(layer, |name, node, _| {
        entries.push((name.trim_start_matches("./").trim_end_matches('/').to_owned(), node.clone()));
    });
    let removed = |tree: &mut BTreeMap<String, Node>, path: &str, whole: bool| {
        let below = format!("{path}/");
        tree.retain(|name, _| !((whole && name == path) || name.starts_with(&below)));
    };
    for (name, _) in &entries {
        let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
        if last == ".wh..wh..opq" {
            removed(tree, parent, false);
        } else if let Some(gone) = last.strip_prefix(".wh.") {
            removed(tree, &if parent.is_empty() { gone.to_owned() } else { format!("{parent}/{gone}") }, true);
        }
    }
    for (name, mut node) in entries {
        let last = name.rsplit('/').next().unwrap_or(&name);
        if name.is_empty() || last.starts_with(".wh.") {
            continue;
        }
        if node.kind != 'd' {
            removed(tree, &name, true);
        }
        *files += 1;
        node.file = *files;
        if let Some(first) = &node.same_as {
            let first = first.trim_start_matches("./").to_owned();
            let target = tree.get(&first).unwrap_or_else(|| panic!("{name}: hard link to {first}, which is not there"));
            node = Node { same_as: Some(target.same_as.clone().unwrap_or(first)), ..target.clone() };
        }
        tree.insert(name, node);
    }
}

/// Layers made by rbuild: parents come first, no name twice, no root, no opaque mark. Layers from outside, which the
/// tests write with a time of their own, may be anything.
fn canonical(layer: &[u8]) {
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for_each(layer, |name, node, _| {
        let path = name.trim_end_matches('/').to_owned();
        if let Some((parent, _)) = path.rsplit_once('/')
            && !seen.contains(parent)
        {
            problems.push(format!("{name} comes before its parent"));
        }
        if path.is_empty() || path == "." || name.ends_with(".wh..wh..opq") {
            problems.push(format!("an entry {name:?}"));
        }
        if (node.kind == 'd') != name.ends_with('/') {
            problems.push(format!("{name}: only directories end in a slash"));
        }
        if !seen.insert(path) {
            problems.push(format!("{name} twice"));
        }
    });
    assert!(problems.is_empty() || layer.starts_with(b"./"), "a layer that is not canonical: {}", problems.join(", "));
}
