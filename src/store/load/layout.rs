//! OCI image layouts: from `index.json` to one image manifest.
//!
//! In: the files of a layout, which image is wanted, a platform. Out: the descriptor of a manifest, checked documents.
//! What always holds: a document is used only when size and digest are those of its descriptor; however indexes are
//! nested and repeated, at most [`MAX_DOCUMENTS`] documents are read to find an image.

use std::collections::BTreeMap;
use std::io::Read;

use super::LoadError;
use super::files::Files;
use crate::digest::Digest;
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::{Descriptor, Index, Kind, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;

/// The most documents that are read to find one image.
const MAX_DOCUMENTS: usize = 256;

/// The deepest nesting of indexes: that of tools is 2.
const MAX_DEPTH: usize = 8;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Which image of a layout is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The only one; of several, that with the tag `latest`.
    Any,
    /// The one with this tag or name.
    Tag(String),
    /// The one whose manifest, or the index that holds it, has this digest.
    Digest(Digest),
}

/// One image of a layout, with the names that it has there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    /// Of an image manifest.
    pub(super) manifest: Descriptor,
    /// Full names; an image may have none.
    pub(super) names: Vec<Reference>,
}

/// Whether the files are a layout.
pub(super) fn is_layout(files: &Files) -> Result<bool, LoadError> {
    Ok(files.open("index.json")?.is_some())
}

/// The manifest that is wanted.
pub(super) fn select(files: &Files, wanted: &Selector, platform: &Platform) -> Result<Descriptor, LoadError> {
    let entries = read_index(files)?;
    let candidates: Vec<&Descriptor> = match wanted {
        Selector::Any => entries.iter().filter(|entry| is_image_or_index(entry)).collect(),
        Selector::Tag(tag) => entries.iter().filter(|entry| has_name(entry, tag)).collect(),
        Selector::Digest(digest) => entries.iter().filter(|entry| entry.digest == *digest).collect(),
    };
    let no_match =
        |wanted: String| LoadError::NoMatch { place: files.place().to_owned(), wanted, offered: offer(&entries) };
    let mut search = Search { files, documents: 0 };
    let chosen = match (wanted, distinct(&candidates).as_slice()) {
        (_, [one]) => (*one).clone(),
        (Selector::Any, []) => return Err(no_match("an image".into())),
        (Selector::Tag(tag), []) => return Err(no_match(format!("the tag {tag}"))),
        (Selector::Digest(digest), []) => {
            // It may be one of the images of an index.
            let mut leaves = Vec::new();
            for entry in &entries {
                search.leaves(entry, 0, &mut leaves)?;
            }
            leaves
                .into_iter()
                .find(|leaf| leaf.digest == *digest)
                .ok_or_else(|| no_match(format!("the digest {digest}")))?
        }
        (_, several) if several.iter().all(|entry| entry.platform.is_some() && names(entry).is_empty()) => {
            // A layout that is itself the list of one image's platforms.
            return search.choose(several.iter().map(|entry| (*entry).clone()).collect(), platform);
        }
        (Selector::Any, several) => match several.iter().find(|entry| has_name(entry, "latest")) {
            Some(latest) => (*latest).clone(),
            None => return Err(LoadError::Several { place: files.place().to_owned(), offered: offer(&entries) }),
        },
        (_, _) => return Err(LoadError::Several { place: files.place().to_owned(), offered: offer(&entries) }),
    };
    search.resolve(&chosen, platform)
}

/// All images, each once; of one with several platforms the one for `platform`.
pub(super) fn list(files: &Files, platform: &Platform) -> Result<Vec<Listed>, LoadError> {
    let entries = read_index(files)?;
    let mut search = Search { files, documents: 0 };
    let mut images: Vec<Listed> = Vec::new();
    for entry in entries.iter().filter(|entry| is_image_or_index(entry)) {
        let manifest = search.resolve(entry, platform)?;
        let names = names(entry);
        match images.iter_mut().find(|image| image.manifest.digest == manifest.digest) {
            Some(image) => image.names.extend(names),
            None => images.push(Listed { manifest, names }),
        }
    }
    Ok(images)
}

/// Reads the image manifest and its config.
pub(super) fn read_image(
    files: &Files,
    manifest: &Descriptor,
) -> Result<(Documents, Manifest, ImageConfig), LoadError> {
    let what = |what: &str, digest: &Digest| format!("the {what} {digest}");
    let manifest_bytes = read_blob(files, manifest, MAX_MANIFEST_SIZE, "manifest")?;
    let document = |what: String, why: String| LoadError::Document { place: files.place().to_owned(), what, why };
    let parsed = Manifest::parse(&manifest_bytes)
        .map_err(|error| document(what("manifest", &manifest.digest), error.to_string()))?;
    if Kind::of(&parsed.config.media_type) != Some(Kind::Config) {
        let why = format!("it is no image: its config has the media type {}", parsed.config.media_type);
        return Err(document(what("manifest", &manifest.digest), why));
    }
    let config_bytes = read_blob(files, &parsed.config, MAX_CONFIG_SIZE, "config")?;
    let config = ImageConfig::parse(&config_bytes)
        .map_err(|error| document(what("config", &parsed.config.digest), error.to_string()))?;
    Ok((Documents { manifest: manifest_bytes, config: config_bytes }, parsed, config))
}

/// The bytes of an image's documents, as they were found.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
}

/// The name of a blob's file.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_small(files: &Files, name: &str, limit: usize) -> Result<Option<Vec<u8>>, LoadError> {
    let Some(member) = files.open(name)? else { return Ok(None) };
    if member.size() > limit as u64 {
        let why = format!("it has {} bytes; more than {limit} are not read", member.size());
        return Err(LoadError::Document { place: files.place().to_owned(), what: name.to_owned(), why });
    }
    let mut bytes = Vec::with_capacity(member.size() as usize);
    member.take(limit as u64).read_to_end(&mut bytes).map_err(LoadError::io("read", files.place()))?;
    Ok(Some(bytes))
}

fn read_blob(files: &Files, descriptor: &Descriptor, limit: usize, kind: &'static str) -> Result<Vec<u8>, LoadError> {
    let Descriptor { digest, size, .. } = descriptor;
    let what = format!("the {kind} {digest}");
    let bytes = read_small(files, &blob_name(digest), limit)?
        .ok_or_else(|| LoadError::Missing { place: files.place().to_owned(), what: what.clone() })?;
    if bytes.len() as u64 != *size {
        let (expected, found) = (*size, bytes.len() as u64);
        return Err(LoadError::Size { place: files.place().to_owned(), what, expected, found });
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(LoadError::Digest { place: files.place().to_owned(), what, found });
    }
    Ok(bytes)
}

fn read_index(files: &Files) -> Result<Vec<Descriptor>, LoadError> {
    let bytes = read_small(files, "index.json", MAX_MANIFEST_SIZE)?
        .ok_or_else(|| LoadError::Missing { place: files.place().to_owned(), what: "index.json".into() })?;
    let index = Index::parse(&bytes).map_err(|error| LoadError::Document {
        place: files.place().to_owned(),
        what: "index.json".into(),
        why: error.to_string(),
    })?;
    Ok(index.manifests)
}

fn is_image_or_index(entry: &Descriptor) -> bool {
    entry.is_image() || Kind::of(&entry.media_type) == Some(Kind::Index)
}

/// The full names that an entry of `index.json` gives its image. A bare tag is none: of what would it be the tag?
fn names(entry: &Descriptor) -> Vec<Reference> {
    let named = |key: &str| entry.annotations.get(key).map(String::as_str);
    let full = |name: &&str| name.contains([':', '/']);
    let texts = named(IMAGE_NAME).into_iter().chain(named(REF_NAME).filter(full));
    let mut names: Vec<Reference> =
        texts.filter_map(|text| Reference::parse(text).ok()).filter(|name| name.tag().is_some()).collect();
    names.sort();
    names.dedup();
    names
}

/// Whether an entry has that tag, or that name.
fn has_name(entry: &Descriptor, wanted: &str) -> bool {
    let is = |key: &str| entry.annotations.get(key).is_some_and(|name| name == wanted);
    let whole = if wanted.contains([':', '/']) { Reference::parse(wanted).ok() } else { None };
    let by_name = |name: &Reference| name.tag() == Some(wanted) || Some(name) == whole.as_ref();
    is(REF_NAME) || is(IMAGE_NAME) || names(entry).iter().any(by_name)
}

/// The candidates without those that say the same digest again.
fn distinct<'a>(candidates: &[&'a Descriptor]) -> Vec<&'a Descriptor> {
    let by_digest: BTreeMap<Digest, &Descriptor> =
        candidates.iter().rev().map(|entry| (entry.digest, *entry)).collect();
    candidates.iter().copied().filter(|entry| std::ptr::eq(by_digest[&entry.digest], *entry)).collect()
}

/// What a layout holds, for messages.
fn offer(entries: &[Descriptor]) -> String {
    const SHOWN: usize = 10;
    let show = |entry: &Descriptor| {
        let name = entry.annotations.get(REF_NAME).or_else(|| entry.annotations.get(IMAGE_NAME));
        name.cloned().unwrap_or_else(|| entry.digest.to_string())
    };
    let mut shown: Vec<String> = entries.iter().take(SHOWN).map(show).collect();
    if entries.len() > SHOWN {
        shown.push(format!("{} more", entries.len() - SHOWN));
    }
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

/// Walks down nested indexes.
struct Search<'a> {
    files: &'a Files,
    documents: usize,
}

impl Search<'_> {
    /// From an entry of `index.json` to the image manifest for `platform`.
    fn resolve(&mut self, entry: &Descriptor, platform: &Platform) -> Result<Descriptor, LoadError> {
        let mut leaves = Vec::new();
        self.leaves(entry, 0, &mut leaves)?;
        self.choose(leaves, platform)
    }

    /// All image manifests that an entry leads to.
    fn leaves(&mut self, entry: &Descriptor, depth: usize, leaves: &mut Vec<Descriptor>) -> Result<(), LoadError> {
        let place = || self.files.place().to_owned();
        match Kind::of(&entry.media_type) {
            Some(Kind::Manifest) => leaves.push(entry.clone()),
            Some(Kind::Index) => {
                self.documents += 1;
                if depth > MAX_DEPTH || self.documents > MAX_DOCUMENTS || leaves.len() > MAX_DOCUMENTS {
                    return Err(LoadError::TooNested { place: place() });
                }
                let bytes = read_blob(self.files, entry, MAX_MANIFEST_SIZE, "index")?;
                let what = || format!("the index {}", entry.digest);
                let index = Index::parse(&bytes).map_err(|error| LoadError::Document {
                    place: place(),
                    what: what(),
                    why: error.to_string(),
                })?;
                for child in index.manifests.iter().filter(|child| is_image_or_index(child)) {
                    self.leaves(child, depth + 1, leaves)?;
                }
            }
            // Attestations, signatures and the like lie beside images.
            _ if depth > 0 => {}
            _ => {
                let (what, media_type) = (entry.digest.to_string(), entry.media_type.to_string());
                return Err(LoadError::MediaType { place: place(), what, media_type });
            }
        }
        Ok(())
    }

    /// The manifest that serves `platform` best. A single one is taken whatever it is for: it was asked for by name.
    fn choose(&mut self, mut leaves: Vec<Descriptor>, platform: &Platform) -> Result<Descriptor, LoadError> {
        if leaves.len() == 1 {
            return Ok(leaves.remove(0));
        }
        let mut offered = Vec::with_capacity(leaves.len());
        for leaf in &leaves {
            if let Some(platform) = &leaf.platform {
                offered.push(Platform::from(platform));
                continue;
            }
            self.documents += 1;
            if self.documents > MAX_DOCUMENTS {
                return Err(LoadError::TooNested { place: self.files.place().to_owned() });
            }
            offered.push(read_image(self.files, leaf)?.2.platform());
        }
        match platform.best(&offered) {
            Some(best) => Ok(leaves.swap_remove(best)),
            None => Err(LoadError::Platform {
                place: self.files.place().to_owned(),
                wanted: platform.to_string(),
                offered: if offered.is_empty() {
                    "nothing".to_owned()
                } else {
                    offered.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
                },
            }),
        }
    }
}
