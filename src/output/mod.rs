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

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::DiffId;
use crate::image::config::ImageConfig;
use crate::image::manifest::{Descriptor, Family, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
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
    Local,
}

/// A place outside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file or a folder.
    Path(PathBuf),
}

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
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Written {
    /// The manifest that was written; a root file system has none.
    pub manifest: Option<Descriptor>,
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
        }
    }
}

/// Writes the image. `epoch` is the time of everything in a root file system, and of the members of an archive.
pub fn write(
    output: &Output,
    image: &OutputImage,
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Written, OutputError> {
    check_layers(image)?;
    match (output.kind, &output.dest) {
        (OutputKind::Tar, dest) => {
            let sink = Sink::open(dest)?;
            tar::write(&RootFs::new(store, lease, &image.diff_ids)?, sink, epoch)?;
            Ok(Written::default())
        }
        (OutputKind::Local, Destination::Path(dest)) => {
            let notes = local::write(&RootFs::new(store, lease, &image.diff_ids)?, dest, epoch)?;
            Ok(Written { manifest: None, notes })
        }
        (OutputKind::Local, Destination::Stdout) => Err(OutputError::FolderToStdout),
        (OutputKind::Oci { .. } | OutputKind::Docker { .. }, _) => {
            let mut manifests = layout::write(output, std::slice::from_ref(image), store, lease, epoch)?;
            Ok(Written { manifest: manifests.pop(), notes: Vec::new() })
        }
    }
}

/// Writes several images into one layout: `output` is of kind `Oci` or `Docker`. The descriptors of their manifests.
pub fn write_several(
    output: &Output,
    images: &[OutputImage],
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Vec<Descriptor>, OutputError> {
    images.iter().try_for_each(check_layers)?;
    layout::write(output, images, store, lease, epoch)
}

fn check_layers(image: &OutputImage) -> Result<(), OutputError> {
    let (diff_ids, layers) = (image.diff_ids.len(), image.manifest.layers.len());
    if diff_ids == layers { Ok(()) } else { Err(OutputError::Layers { diff_ids, layers }) }
}
