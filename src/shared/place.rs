//! Where a shared cache is: a repository of a registry, or a folder.
//!
//! In: names, descriptors, bytes. Out: documents and blobs, the same for both kinds. What always holds: a document is under
//! a name that is made of a cache key, so looking one up reads nothing else, and two writers write the same names only for
//! the same steps.

use std::io::Read;

use super::SharedError;
use super::folder::Folder;
use crate::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::registry::pull::Quiet;
use crate::registry::push::BlobSource;
use crate::registry::{Registries, RegistryError};

/// What names begin with where the user gives no tag.
const USUAL_PREFIX: &str = "rbuild";

/// What a cache's documents are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The result of a step.
    Step,
    /// What a cache mount holds.
    Mount,
}

/// A place.
#[derive(Clone)]
pub enum Place<'a> {
    /// A repository; its tag begins names.
    Registry(Reference, &'a Registries),
    /// A folder.
    Folder(Folder),
}

/// Where the bytes of a blob come from.
pub(super) enum Bytes<'a> {
    /// They are here.
    Here(&'a [u8]),
    /// They are opened, each time that they are needed.
    Open(&'a (dyn Fn() -> Result<Box<dyn Read + 'a>, crate::store::StoreError> + Sync)),
    /// Another place has them.
    At(&'a Place<'a>),
}

impl Place<'_> {
    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Registry(reference, _) if self.prefix() == USUAL_PREFIX => reference.familiar_name(),
            Self::Registry(reference, _) => reference.familiar(),
            Self::Folder(folder) => folder.path().display().to_string(),
        }
    }

    /// What it is called among the things that are kept of caches; nothing is kept of folders, which are near enough.
    pub(super) fn identity(&self) -> Option<String> {
        match self {
            Self::Registry(reference, _) => Some(format!("{}:{}", reference.full_name(), self.prefix())),
            Self::Folder(_) => None,
        }
    }

    /// Whether both are one place.
    pub(super) fn is_same(&self, other: &Place<'_>) -> bool {
        match (self, other) {
            (Self::Registry(..), Place::Registry(..)) => self.identity() == other.identity(),
            (Self::Folder(own), Place::Folder(other)) => own == other,
            _ => false,
        }
    }

    /// The repository.
    pub fn repository(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference, _) => Some(reference),
            Self::Folder(_) => None,
        }
    }

    fn prefix(&self) -> &str {
        match self {
            Self::Registry(reference, _) => reference.tag().filter(|tag| *tag != "latest").unwrap_or(USUAL_PREFIX),
            Self::Folder(_) => USUAL_PREFIX,
        }
    }

    fn name_of(&self, kind: Kind, key: &Digest) -> String {
        let middle = match kind {
            Kind::Step => "",
            Kind::Mount => "mount-",
        };
        format!("{}-{middle}{}", self.prefix(), key.hex())
    }

    /// The document for a key, of at most `limit` bytes.
    pub(super) fn get(&self, kind: Kind, key: &Digest, limit: usize) -> Result<Option<Vec<u8>>, SharedError> {
        let name = self.name_of(kind, key);
        match self {
            Self::Registry(reference, registries) => Ok(registries.tagged(reference, &name, limit)?),
            Self::Folder(folder) => folder.get(&name, limit),
        }
    }

    /// Whether there is a document for a key.
    pub(super) fn has(&self, kind: Kind, key: &Digest) -> Result<bool, SharedError> {
        let name = self.name_of(kind, key);
        match self {
            Self::Registry(reference, registries) => Ok(registries.has_tag(reference, &name)?),
            Self::Folder(folder) => folder.has(&name),
        }
    }

    /// Whether a blob is there.
    pub(super) fn has_blob(&self, blob: &Descriptor) -> Result<bool, SharedError> {
        match self {
            Self::Registry(reference, registries) => Ok(registries.has_blob(reference, &blob.digest)?),
            Self::Folder(folder) => folder.has_blob(blob),
        }
    }

    /// A blob as it comes, checked at its end.
    pub(super) fn open<'b>(&self, blob: &'b Descriptor, what: &'b str) -> Result<Box<dyn Read + 'b>, SharedError> {
        match self {
            Self::Registry(reference, registries) => Ok(registries.blob(reference, blob, what)?),
            Self::Folder(folder) => folder.blob(blob).map(|reader| reader as Box<dyn Read>),
        }
    }

    /// A small blob, whole.
    pub(super) fn read(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, SharedError> {
        if blob.size > limit {
            return Err(SharedError::Wrong(format!("the blob {} has {} bytes", blob.digest, blob.size)));
        }
        let what = format!("read a blob of the cache {}", self.name());
        let mut bytes = Vec::new();
        let read = self.open(blob, &what)?.read_to_end(&mut bytes);
        read.map_err(|error| from_io(error, &what))?;
        Ok(bytes)
    }

    /// Makes it ready to be written to.
    pub(super) fn make(&self) -> Result<(), SharedError> {
        match self {
            Self::Registry(..) => Ok(()),
            Self::Folder(folder) => {
                folder.make()?;
                folder.sweep();
                Ok(())
            }
        }
    }

    /// Puts a blob in, unless it is there; `anew` also where it seems to be, since what is there may be damaged. (A registry
    /// sees to its blobs itself.) `origins` are repositories that have it.
    pub(super) fn put_blob(
        &self,
        blob: &Descriptor,
        from: &Bytes<'_>,
        origins: &[String],
        anew: bool,
    ) -> Result<(), SharedError> {
        match (self, from) {
            (Self::Registry(reference, registries), from) => {
                let push = registries.push(reference, &Quiet)?;
                match from {
                    Bytes::Here(bytes) => push.blob(blob, &BlobSource::Bytes(bytes), origins)?,
                    Bytes::Open(open) => push.blob(blob, &BlobSource::Open(*open), origins)?,
                    Bytes::At(Place::Registry(other, _)) => {
                        let origins: Vec<String> =
                            std::iter::once(other.full_name()).chain(origins.iter().cloned()).collect();
                        push.blob(blob, &BlobSource::Remote(other), &origins)?;
                    }
                    Bytes::At(Place::Folder(folder)) => {
                        let open = || {
                            let failed = |error: SharedError| crate::store::StoreError::Io {
                                action: "read a blob of",
                                path: folder.path().to_owned(),
                                source: std::io::Error::other(error.to_string()),
                            };
                            folder.blob(blob).map(|reader| reader as Box<dyn Read>).map_err(failed)
                        };
                        push.blob(blob, &BlobSource::Open(&open), origins)?;
                    }
                }
                Ok(())
            }
            (Self::Folder(folder), Bytes::Here(bytes)) => folder.put_blob(blob, &mut &bytes[..], anew),
            (Self::Folder(folder), Bytes::Open(open)) => folder.put_blob(blob, &mut open()?, anew),
            (Self::Folder(folder), Bytes::At(place)) => {
                let what = format!("copy a blob to the cache {}", self.name());
                folder.put_blob(blob, &mut place.open(blob, &what)?, anew)
            }
        }
    }

    /// Puts a document in for a key; what it lists is there.
    pub(super) fn put(&self, kind: Kind, key: &Digest, manifest: &Descriptor, bytes: &[u8]) -> Result<(), SharedError> {
        let name = self.name_of(kind, key);
        match self {
            Self::Registry(reference, registries) => {
                Ok(registries.push(reference, &Quiet)?.manifest(Some(&name), manifest, bytes)?)
            }
            Self::Folder(folder) => folder.put_name(&name, bytes),
        }
    }
}

/// The error that went through a reader.
pub(super) fn from_io(error: std::io::Error, what: &str) -> SharedError {
    match error.downcast::<RegistryError>() {
        Ok(error) => error.into(),
        Err(error) => SharedError::Wrong(format!("cannot {what}: {error}")),
    }
}
