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
use crate::image::assemble::AssembledIndex;
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::{Descriptor, Family, Index, Kind, MAX_MANIFEST_SIZE, Manifest};
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
    /// Its manifest; of an index that is here with all its images, theirs.
    pub(super) manifests: Vec<Descriptor>,
    /// The index, and its bytes.
    pub(super) index: Option<(Descriptor, Vec<u8>)>,
    /// Full names; an image may have none.
    pub(super) names: Vec<Reference>,
}

/// The manifests in an index, and its bytes.
type WholeIndex = (Vec<Descriptor>, Vec<u8>);

/// Manifests, and the index over them if there is one.
type ListedPart = (Vec<Descriptor>, Option<(Descriptor, Vec<u8>)>);

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

/// All images, each once. One with several platforms is an index if all of them are there (`docker save` may leave some
/// out), else the image for `platform`. Where platforms are named by `only`, what is for others is left out.
pub(super) fn list(files: &Files, platform: &Platform, only: &[Platform]) -> Result<Vec<Listed>, LoadError> {
    let entries = read_index(files)?;
    let mut search = Search { files, documents: 0 };
    let mut images: Vec<Listed> = Vec::new();
    let mut offered = Vec::new();
    for entry in entries.iter().filter(|entry| is_image_or_index(entry)) {
        let (manifests, index) = match search.whole_index(entry)? {
            whole if !only.is_empty() => match search.part(entry, whole, only, &mut offered)? {
                Some(part) => part,
                None => continue,
            },
            Some((manifests, bytes)) => (manifests, Some((entry.clone(), bytes))),
            None => (vec![search.resolve(entry, platform)?], None),
        };
        let names = names(entry);
        // Each name has an entry, with annotations of its own.
        let key = |index: &Option<(Descriptor, Vec<u8>)>, manifests: &[Descriptor]| {
            let index = index.as_ref().map(|(index, _)| index.digest);
            (index, manifests.iter().map(|manifest| manifest.digest).collect::<Vec<_>>())
        };
        let same = |image: &&mut Listed| key(&image.index, &image.manifests) == key(&index, &manifests);
        match images.iter_mut().find(same) {
            Some(image) => image.names.extend(names),
            None => images.push(Listed { manifests, index, names }),
        }
    }
    if images.is_empty() && !offered.is_empty() {
        return Err(LoadError::platform(files.place(), only, &offered));
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

    /// The images of an entry that is an index, and its bytes: if it is of images alone or of several, and if all that they
    /// are made of is there.
    fn whole_index(&mut self, entry: &Descriptor) -> Result<Option<WholeIndex>, LoadError> {
        if Kind::of(&entry.media_type) != Some(Kind::Index) {
            return Ok(None);
        }
        let bytes = read_blob(self.files, entry, MAX_MANIFEST_SIZE, "index")?;
        // What is wrong with it is told by whoever looks for one image in it.
        let Ok(index) = Index::parse(&bytes) else { return Ok(None) };
        let images: Vec<Descriptor> = index.images().cloned().collect();
        // One image with an attestation beside it is an image: every build of Docker is such an index.
        let is_index = images.len() > 1 || images.len() == 1 && index.manifests.len() == 1;
        let nested = index.manifests.iter().any(|entry| Kind::of(&entry.media_type) == Some(Kind::Index));
        if !is_index || nested || images.len() > MAX_DOCUMENTS {
            return Ok(None);
        }
        for image in &images {
            if !self.is_complete(image)? {
                return Ok(None);
            }
        }
        Ok(Some((images, bytes)))
    }

    /// The images of an entry that are for these platforms, under an index if there are several; `None` where there is none.
    /// What there is for others is added to `offered`.
    fn part(
        &mut self,
        entry: &Descriptor,
        whole: Option<WholeIndex>,
        only: &[Platform],
        offered: &mut Vec<Platform>,
    ) -> Result<Option<ListedPart>, LoadError> {
        let mut leaves = Vec::new();
        self.leaves(entry, 0, &mut leaves)?;
        let mut chosen = Vec::new();
        for leaf in leaves {
            if self.files.open(&blob_name(&leaf.digest))?.is_none() {
                continue;
            }
            let platform = match &leaf.platform {
                Some(platform) => Platform::from(platform).normalised(),
                None if self.documents > MAX_DOCUMENTS => {
                    return Err(LoadError::TooNested { place: self.files.place().to_owned() });
                }
                None => {
                    self.documents += 1;
                    read_image(self.files, &leaf)?.2.platform()
                }
            };
            if only.iter().any(|wanted| wanted.is(&platform)) {
                chosen.push((leaf, platform));
            } else {
                offered.push(platform);
            }
        }
        let manifests: Vec<Descriptor> = chosen.iter().map(|(leaf, _)| leaf.clone()).collect();
        Ok(match (whole, chosen.len()) {
            (_, 0) => None,
            (Some((all, bytes)), count) if all.len() == count => Some((manifests, Some((entry.clone(), bytes)))),
            (_, 1) => Some((manifests, None)),
            _ => {
                let family = if entry.media_type == Family::Docker.index() { Family::Docker } else { Family::Oci };
                let index = AssembledIndex::new(family, chosen, BTreeMap::new());
                Some((manifests, Some((index.descriptor(), index.bytes))))
            }
        })
    }

    /// Whether the files of an image are there: manifest, config and layers.
    fn is_complete(&self, image: &Descriptor) -> Result<bool, LoadError> {
        let Some(bytes) = read_small(self.files, &blob_name(&image.digest), MAX_MANIFEST_SIZE)? else {
            return Ok(false);
        };
        let Ok(manifest) = Manifest::parse(&bytes) else { return Ok(false) };
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if self.files.open(&blob_name(&blob.digest))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
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
        if leaves.len() > 1 {
            // An archive need not hold all that its index lists.
            let mut here = Vec::with_capacity(leaves.len());
            for leaf in &leaves {
                here.push(self.files.open(&blob_name(&leaf.digest))?.is_some());
            }
            if here.contains(&true) {
                let mut here = here.into_iter();
                leaves.retain(|_| here.next() == Some(true));
            }
        }
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
            None => Err(LoadError::platform(self.files.place(), std::slice::from_ref(platform), &offered)),
        }
    }
}
