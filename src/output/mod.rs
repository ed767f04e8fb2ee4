//! What leaves the store: archives, layouts, tars and folders.
//!
//! In: an image whose documents are known and whose layers are in the store, and a plain description of what is wanted.
//! Out: files. What always holds: the same image and the same wishes give the same bytes, on every machine; a file at the
//! destination is replaced only when the new one is complete; compression happens here, once per layer and encoder, and
//! its result is remembered in the store.

mod archive;
mod blobs;
mod layout;
mod local;
pub mod registry;
mod rootfs;
mod tar;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::DiffId;
use crate::image::config::ImageConfig;
use crate::image::manifest::{Descriptor, Family, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::layer::stack::BrokenLink;
use crate::layer::write::WriteError;
use crate::registry::RegistryError;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};

use self::archive::Sink;
use self::rootfs::RootFs;

/// What is written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What.
    pub kind: OutputKind,
    /// Where.
    pub dest: Destination,
    /// How layers are compressed; `None`: gzip in an OCI layout, not at all for Docker, as each is used to.
    pub compression: Option<Compression>,
    /// Layers of the base are compressed anew too.
    pub force_compression: bool,
    /// Whose media types; `None`: those of the image.
    pub family: Option<Family>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// An OCI image layout: one tar, or a folder.
    Oci {
        /// One file.
        tar: bool,
    },
    /// What `docker load` reads, which is an OCI image layout too: one tar, or a folder.
    Docker {
        /// One file.
        tar: bool,
    },
    /// The merged root file system, as a tar.
    Tar,
    /// The merged root file system, as files.
    Local {
        /// In a folder named after the platform; of several each always is.
        split: bool,
    },
}

/// A place outside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file or a folder.
    Path(PathBuf),
    /// A file that is open: the standard input of a program.
    Stream(Stream),
}

/// An open file that takes one archive.
#[derive(Debug, Clone)]
pub struct Stream {
    /// What messages call it.
    pub name: String,
    /// The file.
    pub file: Arc<File>,
}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }
}

impl Eq for Stream {}

/// The image to be written; its layers are in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputImage {
    /// The bytes of its config.
    pub config: Vec<u8>,
    /// Its manifest as the store has it.
    pub manifest: Manifest,
    /// Its layers, bottom first: as many as the manifest lists.
    pub diff_ids: Vec<DiffId>,
    /// What it runs on.
    pub platform: Platform,
    /// Its names, with tags.
    pub names: Vec<Reference>,
    /// The manifest's bytes, where they came from outside: they are kept if they are still right.
    pub stored: Option<Vec<u8>>,
    /// Annotations of the descriptor that leads to the manifest.
    pub descriptor_annotations: BTreeMap<String, String>,
}

/// Images for several platforms, to be written under one index. Their own names are not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputIndex {
    /// One per platform, in the order of the index.
    pub images: Vec<OutputImage>,
    /// Its names, with tags.
    pub names: Vec<Reference>,
    /// Annotations of the index.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the descriptor that leads to the index.
    pub descriptor_annotations: BTreeMap<String, String>,
    /// The bytes of the index, where they came from outside: they are kept if they are still right.
    pub stored: Option<Vec<u8>>,
    /// Which of the images `docker load` takes where it knows no index.
    pub usual: usize,
}

/// What is written: one image, or several under an index.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// One image.
    Image(&'a OutputImage),
    /// Several.
    Index(&'a OutputIndex),
}

impl<'a> From<&'a OutputImage> for Subject<'a> {
    fn from(image: &'a OutputImage) -> Self {
        Self::Image(image)
    }
}

impl<'a> From<&'a OutputIndex> for Subject<'a> {
    fn from(index: &'a OutputIndex) -> Self {
        Self::Index(index)
    }
}

impl<'a> Subject<'a> {
    /// Its images.
    fn images(self) -> &'a [OutputImage] {
        match self {
            Self::Image(image) => std::slice::from_ref(image),
            Self::Index(index) => &index.images,
        }
    }

    /// The folders of its root file systems: for several platforms one each, such as `linux_arm_v7`.
    fn root_filesystems(self, split: bool) -> Vec<(Option<String>, &'a OutputImage)> {
        let folder = |image: &OutputImage| image.platform.to_string().replace('/', "_");
        let split = split || matches!(self, Self::Index(_));
        self.images().iter().map(|image| (split.then(|| folder(image)), image)).collect()
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Written {
    /// The manifest or index that was written; a root file system has none.
    pub manifest: Option<Descriptor>,
    /// The manifests in an index; of an image, its own.
    pub manifests: Vec<Descriptor>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file was to be written where a folder is.
    #[error("cannot write {}: it is a folder; name a file", path.display())]
    IsFolder {
        /// The destination.
        path: PathBuf,
    },
    /// A folder was to be written where something else is.
    #[error("cannot write into {}: it is no folder", path.display())]
    NoFolder {
        /// The destination.
        path: PathBuf,
    },
    /// A folder with something in it is where the image has something else.
    #[error("cannot replace {}: it is a folder with something in it, in the image it is none; remove it or choose another destination", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A folder holds something else than an image layout.
    #[error("cannot write an image layout into {}: {why}; choose an empty folder", path.display())]
    NoLayout {
        /// The destination.
        path: PathBuf,
        /// What it holds.
        why: String,
    },
    /// Standard output takes one file.
    #[error("a folder cannot be written to standard output")]
    FolderToStdout,
    /// The store gave another number of bytes than it should.
    #[error(
        "{what} should have {expected} bytes and has {found}: the store may be damaged, see `rbuild inspect --verify`"
    )]
    Short {
        /// Of what.
        what: String,
        /// How many there should be.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// A layer cannot be compressed.
    #[error("cannot compress the layer {layer}")]
    Compress {
        /// Which.
        layer: DiffId,
        /// Why not.
        source: io::Error,
    },
    /// A hard link leads nowhere.
    #[error("the layer {layer}: {link}")]
    Link {
        /// Of which layer.
        layer: DiffId,
        /// Which one.
        link: BrokenLink,
    },
    /// An entry has no form in a tar.
    #[error(transparent)]
    Entry(#[from] WriteError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is to be pushed, and where to is not known.
    #[error("an image that is pushed needs a name")]
    NoName,
    /// Config and manifest do not agree.
    #[error("the image has {diff_ids} layers in its config and {layers} in its manifest")]
    Layers {
        /// How many the config lists.
        diff_ids: usize,
        /// How many the manifest lists.
        layers: usize,
    },
}

impl OutputError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl OutputImage {
    /// The image of these documents.
    pub fn new(config: Vec<u8>, parsed: &ImageConfig, manifest: Manifest, names: Vec<Reference>) -> Self {
        Self {
            config,
            manifest,
            diff_ids: parsed.rootfs.diff_ids.clone(),
            platform: parsed.platform(),
            names,
            stored: None,
            descriptor_annotations: BTreeMap::new(),
        }
    }
}

/// Writes an image, or several under an index. `epoch` is the time of everything in a root file system, and of the members
/// of an archive.
pub fn write<'a>(
    output: &Output,
    subject: impl Into<Subject<'a>>,
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Written, OutputError> {
    let subject = subject.into();
    subject.images().iter().try_for_each(check_layers)?;
    match (output.kind, &output.dest) {
        (OutputKind::Tar, dest) => {
            let sink = Sink::open(dest)?;
            let mut tar = tar::Writer::new(sink, epoch);
            for (folder, image) in subject.root_filesystems(false) {
                tar.add(&RootFs::new(store, lease, &image.diff_ids)?, folder.as_deref())?;
            }
            tar.finish()?;
            Ok(Written::default())
        }
        (OutputKind::Local { split }, Destination::Path(dest)) => {
            let mut notes = Vec::new();
            for (folder, image) in subject.root_filesystems(split) {
                let dest = folder.map_or_else(|| dest.clone(), |folder| dest.join(folder));
                notes.extend(local::write(&RootFs::new(store, lease, &image.diff_ids)?, &dest, epoch)?);
            }
            notes.dedup();
            Ok(Written { notes, ..Written::default() })
        }
        (OutputKind::Local { .. }, _) => Err(OutputError::FolderToStdout),
        (OutputKind::Oci { .. } | OutputKind::Docker { .. }, _) => {
            let mut written = layout::write(output, &[subject], store, lease, epoch)?;
            let (manifest, manifests) = written.pop().unzip();
            Ok(Written { manifest, manifests: manifests.unwrap_or_default(), notes: Vec::new() })
        }
    }
}

/// Writes several images into one layout: `output` is of kind `Oci` or `Docker`. The descriptors of their manifests, or
/// indexes.
pub fn write_several<'a>(
    output: &Output,
    subjects: impl IntoIterator<Item: Into<Subject<'a>>>,
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Vec<Descriptor>, OutputError> {
    let subjects: Vec<Subject<'a>> = subjects.into_iter().map(Into::into).collect();
    subjects.iter().flat_map(|subject| subject.images()).try_for_each(check_layers)?;
    let written = layout::write(output, &subjects, store, lease, epoch)?;
    Ok(written.into_iter().map(|(descriptor, _)| descriptor).collect())
}

/// The blobs of an image's layers under a compression, made where they are missing: for a manifest that the store keeps. A
/// layer that never came here stays as it is.
/// `wish` is the compression, whether blobs from outside are compressed anew, and whose media types are used.
pub fn compress(
    store: &Store,
    lease: &Lease,
    diff_ids: &[DiffId],
    listed: &[Descriptor],
    wish: (Compression, bool, Family),
) -> Result<Vec<Descriptor>, OutputError> {
    let (compression, force, family) = wish;
    let wish = blobs::Wish { compression, force, family, gently: None };
    let one = |(layer, listed)| match blobs::absent_blob(store, lease, layer, listed, wish)? {
        Some(blob) => Ok(blob),
        None => Ok(blobs::layer_blob(store, lease, layer, listed, wish)?.descriptor),
    };
    diff_ids.iter().zip(listed).map(one).collect()
}

fn check_layers(image: &OutputImage) -> Result<(), OutputError> {
    let (diff_ids, layers) = (image.diff_ids.len(), image.manifest.layers.len());
    if diff_ids == layers { Ok(()) } else { Err(OutputError::Layers { diff_ids, layers }) }
}
