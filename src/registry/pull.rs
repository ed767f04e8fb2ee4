//! From a reference to an image: its documents. (Its layers come when they are wanted: see `bring`.)
//!
//! In: a [`Reference`], a platform. Out: a [`RemoteImage`]. What always holds: a document that the store has is not asked
//! for; an index leads to one image, however it is nested; of several servers each is asked until one has it.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::blob::BlobStream;
use super::client::{Call, Endpoint, SMALL};
use super::{Registries, Registry, RegistryError, printable};
use crate::digest::{Digest, ImageId};
use crate::http::{Response, join};
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::{Descriptor, Document, Family, Kind, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::store::Store;
use crate::store::lease::Lease;

/// The deepest nesting of indexes, and the most documents that are read to find one image.
const MAX_DEPTH: usize = 4;
const MAX_DOCUMENTS: usize = 64;

/// Platforms that are listed to who asked for another one.
const MAX_OFFERED: usize = 8;

/// Pages of a list of tags.
const MAX_PAGES: usize = 1000;

/// What happens to a layer on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer<'a> {
    /// It is where it should be.
    Exists,
    /// It is about to move.
    Begins {
        /// Bytes in all.
        size: u64,
    },
    /// So many more bytes are there.
    Moved(u64),
    /// It arrived.
    Done,
    /// The registry had it in another repository.
    Mounted {
        /// Which one.
        from: &'a str,
    },
}

/// Is told of transfers, from any thread.
pub trait Transfers: Sync {
    /// Takes note of what happens to the blob.
    fn transfer(&self, blob: &Digest, event: Transfer<'_>);
}

/// Nobody listens.
pub struct Quiet;

impl Transfers for Quiet {
    fn transfer(&self, _: &Digest, _: Transfer<'_>) {}
}

/// An image of a registry: its documents are in the store, its layers need not be.
#[derive(Debug, Clone)]
pub struct RemoteImage {
    /// Where it is: the repository counts, the rest is as it was asked for.
    pub reference: Reference,
    /// What the reference leads to: the manifest, or the index that it was chosen from.
    pub top: Digest,
    /// The image.
    pub image: BaseImage,
}

/// A document as a registry has it.
struct Fetched {
    media_type: String,
    bytes: Vec<u8>,
}

/// What a repository is called in a scope.
pub(super) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

pub(super) fn accept() -> String {
    let of = |family: Family| [family.index().to_string(), family.manifest().to_string()];
    [of(Family::Oci), of(Family::Docker)].concat().join(", ")
}

impl Registry {
    /// Asks one server after the other for something of at most `limit` bytes: what `take` makes of the first answer that
    /// it can make something of.
    pub(super) fn ask<T>(
        &self,
        serves: impl Fn(&Endpoint) -> bool + Copy,
        call: &Call<'_>,
        limit: usize,
        take: impl Fn(&Endpoint, Response) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut last = None;
        for (_, endpoint, followed) in self.servers(0, serves) {
            let answer = endpoint.call_of(call, followed, Some(limit)).and_then(|response| match response.status {
                200..=299 => take(endpoint, response),
                _ => Err(endpoint.refused(call.what, response)),
            });
            match answer {
                Ok(taken) => return Ok(taken),
                Err(RegistryError::Stopped) => return Err(RegistryError::Stopped),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            RegistryError::content(call.what, format!("hosts.toml names no server of {} for that", self.host))
        }))
    }
}

impl Registries {
    /// The digest that a tag leads to now.
    pub fn digest(&self, reference: &Reference) -> Result<Digest, RegistryError> {
        let what = format!("look up {}", reference.familiar());
        let registry = self.registry(reference.registry(), &what)?;
        let path = manifest_path(reference);
        let scopes = [scope(reference.repository(), "pull")];
        let headers = vec![("accept", accept())];
        let call = Call { method: "HEAD", path: &path, headers, body: None, scopes: &scopes, what: &what };
        let told = |_: &Endpoint, response: Response| {
            Ok(response.header("docker-content-digest").and_then(|digest| digest.parse().ok()))
        };
        match registry.ask(|endpoint| endpoint.host.resolve, &call, 0, told) {
            Ok(Some(digest)) => Ok(digest),
            Ok(None) => self.fetch(reference, &what).map(|fetched| Digest::of(&fetched.bytes)),
            // A HEAD has no words.
            Err(RegistryError::Refused { .. }) => {
                self.fetch(reference, &what).map(|fetched| Digest::of(&fetched.bytes))
            }
            Err(error) => Err(error),
        }
    }

    /// A manifest or index, by tag or digest; checked where there is a digest.
    fn fetch(&self, reference: &Reference, what: &str) -> Result<Fetched, RegistryError> {
        let registry = self.registry(reference.registry(), what)?;
        let path = manifest_path(reference);
        let scopes = [scope(reference.repository(), "pull")];
        let headers = vec![("accept", accept())];
        let call = Call { method: "GET", path: &path, headers, body: None, scopes: &scopes, what };
        let serves = |endpoint: &Endpoint| match reference.digest() {
            Some(_) => endpoint.host.pull,
            None => endpoint.host.resolve,
        };
        let fail = |why: String| RegistryError::content(what, why);
        let take = |endpoint: &Endpoint, response: Response| {
            let media_type = response.header("content-type").unwrap_or_default().to_owned();
            let told: Option<Digest> = response.header("docker-content-digest").and_then(|digest| digest.parse().ok());
            let bytes = response.into_bytes(MAX_MANIFEST_SIZE).map_err(|error| endpoint.no_answer(what, error))?;
            let bytes = bytes.ok_or_else(|| fail(format!("its manifest has more than {MAX_MANIFEST_SIZE} bytes")))?;
            let (found, name) = (Digest::of(&bytes), &endpoint.host.name);
            if let Some(expected) = reference.digest().or(told).filter(|expected| *expected != found) {
                return Err(fail(format!("{name} sent a manifest with the digest {found}, not {expected}")));
            }
            // A mirror may have a page for those who look at it.
            if endpoint.host.mirror {
                Document::parse(&bytes).map_err(|error| fail(format!("{name}: {found}: {error}")))?;
            }
            Ok(Fetched { media_type, bytes })
        };
        let asked = registry.ask(serves, &call, MAX_MANIFEST_SIZE, take);
        asked.map_err(|error| Self::explain(error, reference, &registry))
    }

    /// Says which tags there are where one is not.
    fn explain(error: RegistryError, reference: &Reference, registry: &Registry) -> RegistryError {
        match error {
            RegistryError::Refused { what, status: 404, why, .. } => {
                let Some(tag) = reference.tag() else {
                    return RegistryError::Refused { what, status: 404, why, help: String::new() };
                };
                // Only a first page: it is a hint.
                let tags = Self::tag_page(reference, registry, &format!("{}/tags/list?n=1000", reference.repository()));
                let help = match tags {
                    Ok((tags, _)) if !tags.is_empty() => {
                        let name = reference.familiar_name();
                        match crate::diagnostic::nearest(tag, tags.iter().map(String::as_str)) {
                            Some(near) => format!("there is no tag {tag}; did you mean {name}:{near}?"),
                            None => {
                                let some = tags.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                                format!(
                                    "there is no tag {tag}; {name} has {some}{}",
                                    if tags.len() > 8 { ", …" } else { "" }
                                )
                            }
                        }
                    }
                    _ => "check the name and the tag".to_owned(),
                };
                RegistryError::Refused { what, status: 404, why, help: printable(&help) }
            }
            error => error,
        }
    }

    fn tag_page(
        reference: &Reference,
        registry: &Registry,
        path: &str,
    ) -> Result<(Vec<String>, Option<String>), RegistryError> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let what = format!("list the tags of {}", reference.familiar_name());
        let scopes = [scope(reference.repository(), "pull")];
        let call = Call { method: "GET", path, headers: Vec::new(), body: None, scopes: &scopes, what: &what };
        registry.ask(
            |endpoint| endpoint.host.resolve,
            &call,
            SMALL,
            |endpoint, response| {
                let next = response.header("link").and_then(|link| {
                    let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
                    rest.contains("next").then(|| join(&response.url, url))?
                });
                let page: Page = serde_json::from_slice(&endpoint.small(&what, response)?).map_err(|error| {
                    RegistryError::content(&what, format!("the answer is no list of tags: {error}"))
                })?;
                Ok((page.tags.unwrap_or_default(), next))
            },
        )
    }

    /// All tags of a repository.
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        let what = format!("list the tags of {}", reference.familiar_name());
        let registry = self.registry(reference.registry(), &what)?;
        let mut path = format!("{}/tags/list", reference.repository());
        let mut tags = Vec::new();
        for _ in 0..MAX_PAGES {
            let (page, next) = Self::tag_page(reference, &registry, &path)?;
            tags.extend(page);
            match next {
                Some(next) if next != path => path = next,
                _ => return Ok(tags),
            }
        }
        Err(RegistryError::content(what, format!("the list has more than {MAX_PAGES} pages")))
    }

    /// Finds the image for `platform`: its documents come into the store. `top` is what the reference leads to, where
    /// that is known already.
    pub fn image(
        &self,
        store: &Store,
        lease: &Lease,
        reference: &Reference,
        platform: &Platform,
        top: Option<Digest>,
    ) -> Result<RemoteImage, RegistryError> {
        let what = format!("pull {}", reference.familiar());
        let search = Search { registries: self, store, lease, reference, platform, what: &what, documents: 0.into() };
        let (top, media_type, bytes) = match top.or(reference.digest()) {
            Some(digest) => {
                let (media_type, bytes) = search.document(&digest, None)?;
                (digest, media_type, bytes)
            }
            None => {
                let fetched = self.fetch(reference, &what)?;
                search.check_media_type(&fetched.media_type)?;
                let digest = store.put_blob(lease, &fetched.bytes)?;
                (digest, fetched.media_type, fetched.bytes)
            }
        };
        let (descriptor, manifest) = search.manifest(top, &media_type, &bytes)?;
        let config = search.config(&manifest)?;
        Ok(RemoteImage {
            reference: reference.clone(),
            top,
            image: BaseImage {
                name: reference.to_string(),
                platform: config.platform(),
                config,
                image_id: ImageId(manifest.config.digest),
                manifest: Some(descriptor),
                layers: manifest.layers,
            },
        })
    }
}

fn manifest_path(reference: &Reference) -> String {
    let name = reference.digest().map(|digest| digest.to_string());
    let name = name.or_else(|| reference.tag().map(str::to_owned)).unwrap_or_else(|| "latest".to_owned());
    format!("{}/manifests/{name}", reference.repository())
}

/// The error that went through a reader.
pub(super) fn unwrap_io(error: io::Error, what: &str) -> RegistryError {
    let found = error.downcast().or_else(|error| error.downcast().map(RegistryError::Store));
    found.unwrap_or_else(|error| RegistryError::content(what, error.to_string()))
}

/// On the way from a reference to one image.
struct Search<'a> {
    registries: &'a Registries,
    store: &'a Store,
    lease: &'a Lease,
    reference: &'a Reference,
    platform: &'a Platform,
    what: &'a str,
    documents: AtomicUsize,
}

impl Search<'_> {
    fn fail(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::content(self.what, why)
    }

    fn check_media_type(&self, media_type: &str) -> Result<(), RegistryError> {
        if media_type.starts_with("application/vnd.docker.distribution.manifest.v1") {
            return Err(self.fail(
                "its manifest is of Docker's schema 1, which is from before 2017; push it again with a newer docker",
            ));
        }
        Ok(())
    }

    /// A document by its digest, from the store or the registry: media type and bytes.
    fn document(&self, digest: &Digest, listed: Option<&Descriptor>) -> Result<(String, Vec<u8>), RegistryError> {
        let told = listed.map_or_else(String::new, |listed| listed.media_type.to_string());
        if self.lease.uses_blob(self.store, digest)? {
            return Ok((told, self.store.read_blob(digest, MAX_MANIFEST_SIZE as u64)?));
        }
        if self.documents.fetch_add(1, Ordering::Relaxed) > MAX_DOCUMENTS {
            return Err(self.fail("it has too many indexes inside of indexes"));
        }
        let fetched = self.registries.fetch(&self.reference.at(*digest), self.what)?;
        self.check_media_type(&fetched.media_type)?;
        if let Some(listed) = listed.filter(|listed| listed.size != fetched.bytes.len() as u64) {
            let why =
                format!("the manifest {digest} has {} bytes, its index says {}", fetched.bytes.len(), listed.size);
            return Err(self.fail(why));
        }
        self.store.put_blob(self.lease, &fetched.bytes)?;
        Ok((fetched.media_type, fetched.bytes))
    }

    fn parse(&self, digest: &Digest, bytes: &[u8]) -> Result<Document, RegistryError> {
        Document::parse(bytes).map_err(|error| self.fail(format!("{digest}: {error}")))
    }

    /// The manifest of the image that a document is or leads to.
    fn manifest(&self, digest: Digest, told: &str, bytes: &[u8]) -> Result<(Descriptor, Manifest), RegistryError> {
        let document = self.parse(&digest, bytes)?;
        let (descriptor, manifest) = match document {
            Document::Manifest(manifest) => {
                let media_type = manifest.media_type.clone().unwrap_or_else(|| match Kind::of(&told.into()) {
                    Some(Kind::Manifest) => told.into(),
                    _ => manifest.family().manifest(),
                });
                (Descriptor::new(media_type, digest, bytes.len() as u64), manifest)
            }
            Document::Index(index) => {
                let mut leaves = Vec::new();
                self.leaves(index.manifests, 0, &mut leaves)?;
                let chosen = self.choose(leaves)?;
                let (_, bytes) = self.document(&chosen.digest, Some(&chosen))?;
                match self.parse(&chosen.digest, &bytes)? {
                    Document::Manifest(manifest) => {
                        (Descriptor::new(chosen.media_type, chosen.digest, bytes.len() as u64), manifest)
                    }
                    Document::Index(_) => {
                        return Err(self.fail(format!("{} is listed as an image and is an index", chosen.digest)));
                    }
                }
            }
        };
        for layer in &manifest.layers {
            if !matches!(Kind::of(&layer.media_type), Some(Kind::Layer(_))) {
                let why = format!(
                    "the layer {} has the media type {}, which is none of images' layers",
                    layer.digest, layer.media_type
                );
                return Err(self.fail(why));
            }
        }
        Ok((descriptor, manifest))
    }

    fn leaves(
        &self,
        entries: Vec<Descriptor>,
        depth: usize,
        leaves: &mut Vec<Descriptor>,
    ) -> Result<(), RegistryError> {
        for entry in entries {
            if entry.is_image() {
                leaves.push(entry);
            } else if Kind::of(&entry.media_type) == Some(Kind::Index) {
                if depth >= MAX_DEPTH {
                    return Err(self.fail("it has too many indexes inside of indexes"));
                }
                let (_, bytes) = self.document(&entry.digest, Some(&entry))?;
                match self.parse(&entry.digest, &bytes)? {
                    Document::Index(index) => self.leaves(index.manifests, depth + 1, leaves)?,
                    Document::Manifest(_) => {
                        return Err(self.fail(format!("{} is listed as an index and is an image", entry.digest)));
                    }
                }
            }
        }
        Ok(())
    }

    fn choose(&self, mut leaves: Vec<Descriptor>) -> Result<Descriptor, RegistryError> {
        let platforms: Vec<Platform> = leaves
            .iter()
            .map(|leaf| leaf.platform.as_ref().map_or_else(|| Platform::new("", "", ""), Platform::from))
            .collect();
        match self.platform.best(&platforms) {
            Some(best) => Ok(leaves.swap_remove(best)),
            None if leaves.len() == 1 && leaves[0].platform.is_none() => Ok(leaves.swap_remove(0)),
            None if leaves.is_empty() => Err(self.fail("its index lists no image")),
            None => {
                let name = |platform: &Platform| match platform.to_string() {
                    name if name.is_empty() => "unknown".to_owned(),
                    name => name,
                };
                let mut offered: Vec<String> = platforms.iter().map(name).collect();
                offered.sort();
                offered.dedup();
                let more = if offered.len() > MAX_OFFERED { ", …" } else { "" };
                offered.truncate(MAX_OFFERED);
                let offered = offered.join(", ");
                Err(self.fail(format!("there is no image for {} in it, only for {offered}{more}", self.platform)))
            }
        }
    }

    /// The config of an image, which fits its manifest.
    fn config(&self, manifest: &Manifest) -> Result<ImageConfig, RegistryError> {
        let listed = &manifest.config;
        if Kind::of(&listed.media_type) != Some(Kind::Config) {
            let why =
                format!("it is no image but another artifact: its config has the media type {}", listed.media_type);
            return Err(self.fail(why));
        }
        if listed.size > MAX_CONFIG_SIZE as u64 {
            let why = format!("its config has {} bytes; more than {MAX_CONFIG_SIZE} are not read", listed.size);
            return Err(self.fail(why));
        }
        let bytes = if self.lease.uses_blob(self.store, &listed.digest)? {
            self.store.read_blob(&listed.digest, MAX_CONFIG_SIZE as u64)?
        } else {
            let registry = self.registries.registry(self.reference.registry(), self.what)?;
            let mut stream = BlobStream::new(registry, self.reference.repository(), listed, self.what, &Quiet);
            let mut bytes = Vec::new();
            while let Err(error) = stream.read_to_end(&mut bytes) {
                if !stream.begins_anew() {
                    return Err(unwrap_io(error, self.what));
                }
                bytes.clear();
            }
            self.store.put_blob(self.lease, &bytes)?;
            bytes
        };
        let config = ImageConfig::parse(&bytes).map_err(|error| self.fail(format!("{}: {error}", listed.digest)))?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(self.fail(format!("its manifest lists {layers} layers, its config {diff_ids}")));
        }
        Ok(config)
    }
}
