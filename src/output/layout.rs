//! `type=oci` and `type=docker`: an image layout, as one tar or as a folder.
//!
//! In: an image, a wish about its layers. Out: `oci-layout`, `index.json`, the blobs, and for Docker `manifest.json`. What
//! always holds: members of a tar are in one order and have one time; a folder that holds other images keeps them, and
//! its index names the new one only when its blobs are there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::archive::{ArchiveWriter, Counted, Sink, UNFINISHED};
use super::blobs::{Source, Wish, layer_blob};
use super::{Destination, Output, OutputError, OutputImage, OutputIndex, OutputKind, Subject};
use crate::digest::{DiffId, Digest};
use crate::image::assemble::AssembledIndex;
use crate::image::manifest::{Descriptor, Family, Index, Manifest};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::store::Store;
use crate::store::lease::Lease;

const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Writes a layout of these images. The descriptors of their manifests, or indexes, in it; with each, the manifests that it
/// leads to.
pub(super) fn write(
    output: &Output,
    subjects: &[Subject<'_>],
    store: &Store,
    lease: &Lease,
    epoch: Option<i64>,
) -> Result<Vec<(Descriptor, Vec<Descriptor>)>, OutputError> {
    // The destination is looked at first: nobody waits for a compression to learn that it cannot be written.
    let target = Target::open(output, epoch)?;
    let mut content = Content { output, store, lease, blobs: BTreeMap::new(), items: Vec::new() };
    let mut entries = Vec::with_capacity(subjects.len());
    for subject in subjects {
        entries.push(match subject {
            Subject::Image(image) => {
                let manifest = content.image(image, Some(&image.names))?;
                (manifest.clone(), vec![manifest])
            }
            Subject::Index(index) => content.index(index)?,
        });
    }
    let names = |subject: &Subject<'_>| match subject {
        Subject::Image(image) => image.names.clone(),
        Subject::Index(index) => index.names.clone(),
    };
    let named: Vec<(Descriptor, Vec<Reference>)> =
        entries.iter().map(|(entry, _)| entry.clone()).zip(subjects.iter().map(names)).collect();
    let Content { blobs, items, .. } = content;
    let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    documents.insert("index.json".into(), target.index(&named)?.to_bytes());
    documents.insert("oci-layout".into(), OCI_LAYOUT.into());
    if matches!(output.kind, OutputKind::Docker { .. }) {
        // Proof: no map of this type has keys that are not strings, and writing to a Vec does not fail.
        documents.insert("manifest.json".into(), serde_json::to_vec(&items).expect("a list of images is plain JSON"));
    }
    target.write(store, lease, &documents, &blobs)?;
    Ok(entries)
}

/// What a layout holds, as it is put together.
struct Content<'a> {
    output: &'a Output,
    store: &'a Store,
    lease: &'a Lease,
    blobs: BTreeMap<Digest, Blob>,
    /// For Docker.
    items: Vec<DockerItem>,
}

impl Content<'_> {
    /// Adds an image. `names` are those that it has for `docker load`; `None` keeps it from that.
    fn image(&mut self, image: &OutputImage, names: Option<&[Reference]>) -> Result<Descriptor, OutputError> {
        let docker = matches!(self.output.kind, OutputKind::Docker { .. });
        let family = self.output.family.unwrap_or_else(|| image.manifest.family());
        // `docker save` unpacks what it saves; whoever asks for a compression gets it.
        let wish = match self.output.compression {
            None if docker => Wish { compression: Compression::None, force: true, family, gently: None },
            compression => {
                let compression = compression.unwrap_or(Compression::GZIP);
                Wish { compression, force: self.output.force_compression, family, gently: None }
            }
        };
        let mut layers = Vec::with_capacity(image.diff_ids.len());
        for (diff_id, listed) in image.diff_ids.iter().zip(&image.manifest.layers) {
            layers.push(layer_blob(self.store, self.lease, diff_id, listed, wish)?);
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
        if let (true, Some(names)) = (docker, names) {
            self.items.push(docker_item(image, names, &config.digest, &descriptors));
        }
        for layer in &layers {
            let blob = match layer.source {
                Source::Stored => Blob::Stored(layer.descriptor.size),
                Source::Tar(diff_id) => Blob::Tar(diff_id, layer.descriptor.size),
            };
            self.blobs.insert(layer.descriptor.digest, blob);
        }
        self.blobs.insert(config.digest, Blob::Bytes(image.config.clone()));
        let mut descriptor = Descriptor::of(family.manifest(), &bytes);
        self.blobs.insert(descriptor.digest, Blob::Bytes(bytes));
        descriptor.platform = Some((&image.platform).into());
        descriptor.annotations.clone_from(&image.descriptor_annotations);
        Ok(descriptor)
    }

    /// Adds an index and its images. Its descriptor, and theirs.
    fn index(&mut self, index: &OutputIndex) -> Result<(Descriptor, Vec<Descriptor>), OutputError> {
        let mut manifests = Vec::with_capacity(index.images.len());
        for (number, image) in index.images.iter().enumerate() {
            let names = (number == index.usual).then_some(index.names.as_slice());
            manifests.push((self.image(image, names)?, image.platform.clone()));
        }
        let family = index.images.first().map_or(Family::Oci, |image| image.manifest.family());
        let family = self.output.family.unwrap_or(family);
        let made = AssembledIndex::new(family, manifests, index.annotations.clone());
        let bytes = match &index.stored {
            Some(stored) if is_same(stored, &made.index) => stored.clone(),
            _ => made.bytes,
        };
        let mut descriptor = Descriptor::of(family.index(), &bytes);
        self.blobs.insert(descriptor.digest, Blob::Bytes(bytes));
        descriptor.annotations.clone_from(&index.descriptor_annotations);
        Ok((descriptor, made.index.manifests))
    }
}

/// Whether an index from outside leads to the same manifests and to nothing else.
fn is_same(stored: &[u8], made: &Index) -> bool {
    Index::parse(stored).is_ok_and(|stored| {
        let digests = |index: &Index| index.manifests.iter().map(|entry| entry.digest).collect::<Vec<_>>();
        stored.family() == made.family() && digests(&stored) == digests(made)
    })
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

fn docker_item(image: &OutputImage, names: &[Reference], config: &Digest, layers: &[Descriptor]) -> DockerItem {
    let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
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
            Destination::Stdout | Destination::Stream(_) => Err(OutputError::FolderToStdout),
            Destination::Path(path) => {
                fs::create_dir_all(path).map_err(OutputError::io("make", path))?;
                // What somebody began who was killed does not count.
                let unfinished =
                    |entry: fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
                let mut entries = fs::read_dir(path).map_err(OutputError::io("list", path))?;
                let empty = entries.all(|entry| entry.is_ok_and(unfinished));
                if !empty && !path.join("oci-layout").is_file() {
                    return Err(OutputError::NoLayout { path: path.clone(), why: "it holds other things".into() });
                }
                Ok(Self::Folder(path.clone()))
            }
        }
    }

    /// `index.json` with the images, each once per name; in a folder with those that are there.
    fn index(&self, named: &[(Descriptor, Vec<Reference>)]) -> Result<Index, OutputError> {
        let mut entries = self.others(named)?;
        for (descriptor, names) in named {
            let mut entry = descriptor.clone();
            if names.is_empty() {
                entries.push(entry.clone());
            }
            for name in names {
                entry.annotations.insert(IMAGE_NAME.into(), name.to_string());
                if let Some(tag) = name.tag() {
                    entry.annotations.insert(REF_NAME.into(), tag.to_owned());
                }
                entries.push(entry.clone());
            }
        }
        Ok(Index::new(Family::Oci, entries))
    }

    /// The entries of a folder's index that stay: those that do not have one of the names.
    fn others(&self, named: &[(Descriptor, Vec<Reference>)]) -> Result<Vec<Descriptor>, OutputError> {
        let Self::Folder(folder) = self else { return Ok(Vec::new()) };
        let path = folder.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(OutputError::io("read", &path)(error)),
        };
        let index = Index::parse(&bytes)
            .map_err(|error| OutputError::NoLayout { path: folder.clone(), why: format!("its index.json: {error}") })?;
        let names = || named.iter().flat_map(|(_, names)| names);
        let full: Vec<String> = names().map(Reference::to_string).collect();
        let tags: Vec<&str> = names().filter_map(Reference::tag).collect();
        let stays = |entry: &Descriptor| {
            let (name, tag) = (entry.annotations.get(IMAGE_NAME), entry.annotations.get(REF_NAME));
            match (name, tag) {
                (Some(name), _) => !full.contains(name),
                (None, Some(tag)) => !tags.contains(&tag.as_str()),
                (None, None) => named.iter().all(|(manifest, _)| manifest.digest != entry.digest),
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
                        Blob::Stored(size) => {
                            archive.stream(
                                &name,
                                *size,
                                |out| Ok(store.copy_blob(digest, &mut lease.heeding(out))?),
                            )?;
                        }
                        Blob::Tar(layer, size) => match store.own_tar(layer, lease) {
                            Some(tar) => archive.copy(&name, &tar, *size)?,
                            None => archive
                                .stream(&name, *size, |out| Ok(store.write_tar(layer, &mut lease.heeding(out))?))?,
                        },
                    }
                }
                archive.finish()
            }
            Self::Folder(folder) => {
                let document = |name: &String, bytes: &Vec<u8>| put(&folder, name, |out| whole(out, bytes));
                // `oci-layout` is the first: what fails halfway leaves a layout, which the next try takes. `index.json` is
                // the last: with it the image appears.
                let (index, mut others): (Vec<_>, Vec<_>) =
                    documents.iter().partition(|(name, _)| *name == "index.json");
                others.sort_by_key(|(name, _)| *name != "oci-layout");
                for (name, bytes) in others {
                    document(name, bytes)?;
                }
                let place = folder.join("blobs/sha256");
                fs::create_dir_all(&place).map_err(OutputError::io("make", &place))?;
                for (digest, blob) in blobs {
                    let (Blob::Stored(size) | Blob::Tar(_, size)) = blob else {
                        let Blob::Bytes(bytes) = blob else { continue };
                        put(&folder, &blob_name(digest), |out| whole(out, bytes))?;
                        continue;
                    };
                    let path = place.join(digest.hex());
                    if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == *size) {
                        continue;
                    }
                    let own = match blob {
                        Blob::Tar(layer, _) => store.own_tar(layer, lease),
                        _ => None,
                    };
                    put(&folder, &blob_name(digest), |out| match (blob, own) {
                        (_, Some(tar)) => {
                            let mut tar = File::open(&tar).map_err(OutputError::io("open", &tar))?;
                            io::copy(&mut tar, &mut out.out).map(drop).map_err(OutputError::io("write", &path))
                        }
                        (Blob::Tar(layer, _), None) => {
                            let mut out = io::BufWriter::with_capacity(1 << 20, out);
                            store.write_tar(layer, &mut lease.heeding(&mut out))?;
                            out.flush().map_err(OutputError::io("write", &path))
                        }
                        _ => Ok(store.copy_blob(digest, &mut lease.heeding(out))?),
                    })?;
                }
                index.into_iter().try_for_each(|(name, bytes)| document(name, bytes))
            }
        }
    }
}

fn whole(out: &mut dyn Write, bytes: &[u8]) -> Result<(), OutputError> {
    out.write_all(bytes).map_err(OutputError::io("write", Path::new("")))
}

/// Makes a file of a folder, at once or not at all.
fn put(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut Counted<&mut File>) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    let path = folder.join(name);
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(OutputError::io("make a file in", folder))?;
    let mut out = Counted::new(file.as_file_mut());
    let done = write(&mut out);
    // Whoever copies to it may take it for what is copied.
    if let Some(error) = out.error {
        return Err(OutputError::io("write", &path)(error));
    }
    done?;
    file.persist(&path).map_err(|error| OutputError::io("rename into place", &path)(error.error))?;
    Ok(())
}
