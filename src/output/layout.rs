//! `type=oci` and `type=docker`: an image layout, as one tar or as a folder.
//!
//! In: an image, a wish about its layers. Out: `oci-layout`, `index.json`, the blobs, and for Docker `manifest.json`. What
//! always holds: members of a tar are in one order and have one time; a folder that holds other images keeps them, and
//! its index names the new one only when its blobs are there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::archive::{ArchiveWriter, Sink};
use super::blobs::{Source, Wish, layer_blob};
use super::{Destination, Output, OutputError, OutputImage, OutputKind};
use crate::digest::{DiffId, Digest};
use crate::image::manifest::{Descriptor, Family, Index, Manifest};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::store::Store;
use crate::store::lease::Lease;

const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Writes a layout of these images. The descriptors of their manifests in it.
pub(super) fn write(
    output: &Output,
    images: &[OutputImage],
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Vec<Descriptor>, OutputError> {
    let docker = matches!(output.kind, OutputKind::Docker { .. });
    // The destination is looked at first: nobody waits for a compression to learn that it cannot be written.
    let target = Target::open(output, epoch)?;
    let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
    let mut manifests = Vec::with_capacity(images.len());
    let mut items = Vec::with_capacity(images.len());
    for image in images {
        let family = output.family.unwrap_or_else(|| image.manifest.family());
        // `docker save` unpacks what it saves; whoever asks for a compression gets it.
        let wish = match output.compression {
            None if docker => Wish { compression: Compression::None, force: true, family },
            compression => {
                let compression = compression.unwrap_or(Compression::GZIP);
                Wish { compression, force: output.force_compression, family }
            }
        };
        let mut layers = Vec::with_capacity(image.diff_ids.len());
        for (diff_id, listed) in image.diff_ids.iter().zip(&image.manifest.layers) {
            layers.push(layer_blob(store, lease, diff_id, listed, wish)?);
        }
        let config = Descriptor::of(family.config(), &image.config);
        let descriptors: Vec<Descriptor> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let bytes = match &image.stored {
            // Bytes from outside are never written anew where they say the same.
            Some(stored) if image.manifest.family() == family && image.manifest.layers == descriptors => stored.clone(),
            _ => {
                let mut manifest = Manifest::new(family, config.clone(), descriptors.clone());
                manifest.annotations.clone_from(&image.manifest.annotations);
                manifest.to_bytes()
            }
        };
        manifests.push(Descriptor::of(family.manifest(), &bytes));
        if docker {
            items.push(docker_item(image, &config.digest, &descriptors));
        }
        for layer in &layers {
            let blob = match layer.source {
                Source::Stored => Blob::Stored(layer.descriptor.size),
                Source::Tar(diff_id) => Blob::Tar(diff_id, layer.descriptor.size),
            };
            blobs.insert(layer.descriptor.digest, blob);
        }
        blobs.insert(config.digest, Blob::Bytes(image.config.clone()));
        blobs.insert(Digest::of(&bytes), Blob::Bytes(bytes));
    }
    documents.insert("index.json".into(), target.index(images, &manifests)?.to_bytes());
    documents.insert("oci-layout".into(), OCI_LAYOUT.into());
    if docker {
        // Proof: no map of this type has keys that are not strings, and writing to a Vec does not fail.
        documents.insert("manifest.json".into(), serde_json::to_vec(&items).expect("a list of images is plain JSON"));
    }
    target.write(store, lease, &documents, &blobs)?;
    Ok(manifests)
}

/// The bytes of a blob.
#[derive(Debug)]
enum Blob {
    Bytes(Vec<u8>),
    Stored(u64),
    Tar(DiffId, u64),
}

/// One image of what `docker load` reads first.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
    layer_sources: BTreeMap<String, Descriptor>,
}

fn docker_item(image: &OutputImage, config: &Digest, layers: &[Descriptor]) -> DockerItem {
    let tags: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    let sources = image.diff_ids.iter().zip(layers).map(|(diff_id, layer)| (diff_id.to_string(), layer.clone()));
    DockerItem {
        config: blob_name(config),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: layers.iter().map(|layer| blob_name(&layer.digest)).collect(),
        layer_sources: sources.collect(),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Where a layout goes.
#[derive(Debug)]
enum Target {
    Archive(ArchiveWriter),
    Folder(PathBuf),
}

impl Target {
    fn open(output: &Output, epoch: Option<i64>) -> Result<Self, OutputError> {
        let (OutputKind::Oci { tar } | OutputKind::Docker { tar }) = output.kind else {
            // Proof: `super::write` comes here for these two kinds only.
            unreachable!("{:?} is no layout", output.kind)
        };
        match &output.dest {
            dest if tar => {
                let mtime = epoch.and_then(|epoch| u64::try_from(epoch).ok()).unwrap_or(0);
                Ok(Self::Archive(ArchiveWriter::new(Sink::open(dest)?, mtime)))
            }
            Destination::Stdout => Err(OutputError::FolderToStdout),
            Destination::Path(path) => {
                fs::create_dir_all(path).map_err(OutputError::io("make", path))?;
                let empty = fs::read_dir(path).map_err(OutputError::io("list", path))?.next().is_none();
                if !empty && !path.join("oci-layout").is_file() {
                    return Err(OutputError::NoLayout { path: path.clone(), why: "it holds other things".into() });
                }
                Ok(Self::Folder(path.clone()))
            }
        }
    }

    /// `index.json` with the images, each once per name; in a folder with those that are there.
    fn index(&self, images: &[OutputImage], manifests: &[Descriptor]) -> Result<Index, OutputError> {
        let mut entries = self.others(images, manifests)?;
        for (image, manifest) in images.iter().zip(manifests) {
            let mut entry = manifest.clone();
            entry.platform = Some((&image.platform).into());
            if image.names.is_empty() {
                entries.push(entry.clone());
            }
            for name in &image.names {
                entry.annotations.insert(IMAGE_NAME.into(), name.to_string());
                if let Some(tag) = name.tag() {
                    entry.annotations.insert(REF_NAME.into(), tag.to_owned());
                }
                entries.push(entry.clone());
            }
        }
        Ok(Index::new(Family::Oci, entries))
    }

    /// The entries of a folder's index that stay: those that do not have one of the names of `images`.
    fn others(&self, images: &[OutputImage], manifests: &[Descriptor]) -> Result<Vec<Descriptor>, OutputError> {
        let Self::Folder(folder) = self else { return Ok(Vec::new()) };
        let path = folder.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(OutputError::io("read", &path)(error)),
        };
        let index = Index::parse(&bytes)
            .map_err(|error| OutputError::NoLayout { path: folder.clone(), why: format!("its index.json: {error}") })?;
        let names = || images.iter().flat_map(|image| &image.names);
        let full: Vec<String> = names().map(Reference::to_string).collect();
        let tags: Vec<&str> = names().filter_map(Reference::tag).collect();
        let stays = |entry: &Descriptor| {
            let (name, tag) = (entry.annotations.get(IMAGE_NAME), entry.annotations.get(REF_NAME));
            match (name, tag) {
                (Some(name), _) => !full.contains(name),
                (None, Some(tag)) => !tags.contains(&tag.as_str()),
                (None, None) => manifests.iter().all(|manifest| manifest.digest != entry.digest),
            }
        };
        Ok(index.manifests.into_iter().filter(stays).collect())
    }

    fn write(
        self,
        store: &Store,
        lease: &Lease,
        documents: &BTreeMap<String, Vec<u8>>,
        blobs: &BTreeMap<Digest, Blob>,
    ) -> Result<(), OutputError> {
        match self {
            Self::Archive(mut archive) => {
                // Documents first: who reads a stream knows at once what will come.
                for (name, bytes) in documents {
                    archive.bytes(name, bytes)?;
                }
                archive.folder("blobs")?;
                archive.folder("blobs/sha256")?;
                for (digest, blob) in blobs {
                    let name = blob_name(digest);
                    match blob {
                        Blob::Bytes(bytes) => archive.bytes(&name, bytes)?,
                        Blob::Stored(size) => archive.copy(&name, &store.blob_path(digest), *size)?,
                        Blob::Tar(layer, size) => {
                            archive.stream(&name, *size, |out| Ok(store.write_tar(layer, &mut lease.heeding(out))?))?;
                        }
                    }
                }
                archive.finish()
            }
            Self::Folder(folder) => {
                let place = folder.join("blobs/sha256");
                fs::create_dir_all(&place).map_err(OutputError::io("make", &place))?;
                for (digest, blob) in blobs {
                    let (Blob::Stored(size) | Blob::Tar(_, size)) = blob else {
                        let Blob::Bytes(bytes) = blob else { continue };
                        put(&folder, &blob_name(digest), |out, path| {
                            out.write_all(bytes).map_err(OutputError::io("write", path))
                        })?;
                        continue;
                    };
                    let path = place.join(digest.hex());
                    if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == *size) {
                        continue;
                    }
                    put(&folder, &blob_name(digest), |out, path| match blob {
                        Blob::Tar(layer, _) => {
                            let mut out = io::BufWriter::with_capacity(1 << 20, out);
                            store.write_tar(layer, &mut lease.heeding(&mut out))?;
                            out.flush().map_err(OutputError::io("write", path))
                        }
                        _ => copy(&store.blob_path(digest), out, path, *size),
                    })?;
                }
                // `index.json` is the last by its place, not by its name: with it the image appears.
                let (index, others): (Vec<_>, Vec<_>) = documents.iter().partition(|(name, _)| *name == "index.json");
                for (name, bytes) in others.into_iter().chain(index) {
                    put(&folder, name, |out, path| out.write_all(bytes).map_err(OutputError::io("write", path)))?;
                }
                Ok(())
            }
        }
    }
}

/// Copies a blob of the store.
fn copy(from: &Path, mut to: &File, place: &Path, size: u64) -> Result<(), OutputError> {
    let file = File::open(from).map_err(OutputError::io("open", from))?;
    let copied = io::copy(&mut (&file).take(size), &mut to).map_err(OutputError::io("write", place))?;
    if copied == size {
        Ok(())
    } else {
        Err(OutputError::Short { what: from.display().to_string(), expected: size, found: copied })
    }
}

/// Makes a file of a folder, at once or not at all.
fn put(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut File, &Path) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    let path = folder.join(name);
    let mut file = tempfile::Builder::new()
        .prefix(".rbuild-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(OutputError::io("make a file in", folder))?;
    write(file.as_file_mut(), &path)?;
    file.persist(&path).map_err(|error| OutputError::io("rename into place", &path)(error.error))?;
    Ok(())
}
