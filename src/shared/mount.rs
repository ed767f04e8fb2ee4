//! What cache mounts hold, from machine to machine.
//!
//! In: the folder of a cache mount, or a place that has one of that name. Out: an artifact with one layer; a folder again.
//! What always holds: there is one artifact for a mount, and who writes last has written it; sockets, pipes and devices stay
//! behind; of what comes, nothing but files, folders and links is taken, and nothing lands outside of its folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::export::patiently;
use super::place::{Bytes, Kind, from_io};
use super::{Place, SharedError};
use crate::digest::{Digest, HashingWriter};
use crate::image::manifest::{Descriptor, Encoding, Family, Manifest};
use crate::layer::apply::{self, TreeOptions};
use crate::layer::compress::{self, Compression, Encoder};
use crate::layer::entry::{Entry, Kind as EntryKind, join};
use crate::layer::entry_ref::KindRef;
use crate::layer::scan::scan;
use crate::layer::write::{Body, LayerWriter};
use crate::store::StoreError;
use crate::store::lease::Lease;
use crate::sys::root_dir::{Dir, RootDir, StatKind};

const VERSION: u32 = 1;
const CONFIG: &str = "application/vnd.rbuild.cache.mount.v1+json";

/// The folder in the layer; its own header is that of the mount's folder.
const TOP_NAME: &str = "mount";
const TOP: &[u8] = TOP_NAME.as_bytes();

/// The most bytes of the documents.
const MAX: usize = 1 << 16;

/// The config of such an artifact.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// Which mount.
    mount: Digest,
}

/// Exports what a cache mount holds.
pub fn export_mount(place: &Place<'_>, name: &Digest, folder: &Path, lease: &Lease) -> Result<(), SharedError> {
    place.make()?;
    let path = lease.fresh_path();
    let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
    let out = HashingWriter::new(BufWriter::with_capacity(1 << 20, lease.heeding(file)));
    let failed = |error: io::Error| SharedError::from(StoreError::io("write", &path)(error));
    let mut out = pack(folder, Encoder::new(out, Compression::ZSTD))?.finish().map_err(failed)?;
    out.flush().map_err(failed)?;
    let (_, digest, size) = out.finish();
    let blob = Descriptor::new(Family::Oci.layer(Encoding::Zstd), digest, size);
    let open =
        || File::open(&path).map(|file| Box::new(file) as Box<dyn io::Read>).map_err(StoreError::io("open", &path));
    // Proof: a number and a digest.
    let config = serde_json::to_vec(&Document { version: VERSION, mount: *name }).expect("it is JSON");
    let descriptor = Descriptor::of(CONFIG.into(), &config);
    let manifest = Manifest::new(Family::Oci, descriptor.clone(), vec![blob.clone()]).to_bytes();
    patiently(|| {
        place.put_blob(&blob, &Bytes::Open(&open), &[])?;
        place.put_blob(&descriptor, &Bytes::Here(&config), &[])?;
        place.put(Kind::Mount, name, &Descriptor::of(Family::Oci.manifest(), &manifest), &manifest)
    })?;
    // It is of no more use, and would take its room until the build ends.
    drop(fs::remove_file(&path));
    Ok(())
}

/// Writes what is in a folder as a layer.
fn pack<W: Write>(folder: &Path, out: W) -> Result<W, SharedError> {
    let failed = |source| SharedError::Folder { action: "read the cache mount", path: folder.to_owned(), source };
    let root = RootDir::open(folder).map_err(failed)?;
    let mut packing = Packing { writer: LayerWriter::new(out), seen: std::collections::HashMap::new(), folder };
    let stat = root.dir().stat_self().map_err(failed)?;
    packing.push(TOP, EntryKind::Directory, &stat, Body::None)?;
    packing.entries(root.dir(), TOP)?;
    let (out, _) = packing.writer.finish().map_err(|error| SharedError::Wrong(error.to_string()))?;
    Ok(out)
}

struct Packing<'a, W: Write> {
    writer: LayerWriter<W>,
    /// The first name of each file that has several.
    seen: std::collections::HashMap<(u64, u64), Vec<u8>>,
    folder: &'a Path,
}

impl<W: Write> Packing<'_, W> {
    fn failed(&self) -> impl Fn(io::Error) -> SharedError + use<W> {
        let path = self.folder.to_owned();
        move |source| SharedError::Folder { action: "read the cache mount", path: path.clone(), source }
    }

    fn push(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        stat: &crate::sys::root_dir::Stat,
        body: Body<'_>,
    ) -> Result<(), SharedError> {
        let mut entry = Entry {
            path: path.to_vec(),
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime.0,
            capability: None,
        };
        self.writer.push(&mut entry, body).map_err(|error| {
            SharedError::Wrong(format!("the cache mount {}: {:#}", self.folder.display(), anyhow::Error::from(error)))
        })
    }

    fn entries(&mut self, dir: &Dir, below: &[u8]) -> Result<(), SharedError> {
        let failed = self.failed();
        for name in dir.names().map_err(&failed)? {
            let stat = match dir.stat(&name) {
                // Another build uses it as well.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                stat => stat.map_err(&failed)?,
            };
            // Names that mean something else in a layer.
            if name.starts_with(b".wh.") {
                continue;
            }
            let path = join(below, &name);
            match stat.kind {
                StatKind::Directory => {
                    self.push(&path, EntryKind::Directory, &stat, Body::None)?;
                    self.entries(&dir.open_dir(&name).map_err(&failed)?, &path)?;
                }
                StatKind::Symlink => {
                    let target = dir.read_link(&name).map_err(&failed)?;
                    self.push(&path, EntryKind::Symlink { target }, &stat, Body::None)?;
                }
                StatKind::File => {
                    if stat.links > 1
                        && let Some(target) = self.seen.get(&stat.inode).cloned()
                    {
                        self.push(&path, EntryKind::HardLink { target }, &stat, Body::None)?;
                        continue;
                    }
                    let file = dir.open_file(&name).map_err(&failed)?;
                    let kind = EntryKind::File { size: stat.size, sha256: Digest::from_bytes([0; 32]) };
                    self.push(&path, kind, &stat, Body::Reader(Box::new(file)))?;
                    self.seen.insert(stat.inode, path);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Fetches what a place has for a mount: a tar, checked, in a file of its own.
pub(super) fn fetch(place: &Place<'_>, name: &Digest, lease: &Lease) -> Result<Option<PathBuf>, SharedError> {
    let Some(manifest) = place.get(Kind::Mount, name, MAX)? else { return Ok(None) };
    let wrong = |why: &str| SharedError::Wrong(format!("what it has for a cache mount: {why}"));
    let manifest = Manifest::parse(&manifest).map_err(|error| wrong(&error.to_string()))?;
    let config = place.read(&manifest.config, MAX as u64)?;
    let document: Document = serde_json::from_slice(&config).map_err(|error| wrong(&error.to_string()))?;
    if (document.version, document.mount) != (VERSION, *name) {
        return Err(wrong("it is another mount, or of another rbuild"));
    }
    let [blob] = manifest.layers.as_slice() else { return Err(wrong("it has not one layer")) };
    let what = "fetch a cache mount";
    let path = lease.fresh_path();
    let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
    let mut packed = BufWriter::with_capacity(1 << 20, file);
    // The digest is right when the end is reached: only then anything is made of it.
    io::copy(&mut lease.heeding(place.open(blob, what)?), &mut packed).map_err(|error| from_io(error, what))?;
    packed.flush().map_err(StoreError::io("write", &path))?;
    Ok(Some(path))
}

/// Makes the folder of a cache mount of what was fetched.
pub fn unpack_mount(packed: &Path, lease: &Lease, options: &TreeOptions) -> Result<PathBuf, SharedError> {
    let wrong = |why: String| SharedError::Wrong(format!("what came for a cache mount: {why}"));
    let file = File::open(packed).map_err(StoreError::io("open", packed))?;
    let path = lease.fresh_path();
    let mut tar =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(StoreError::io("make", &path))?;
    let mut reader = compress::decompress(Box::new(file)).map_err(|error| wrong(error.to_string()))?;
    io::copy(&mut reader, &mut lease.heeding(&mut tar)).map_err(|error| wrong(error.to_string()))?;
    let tar_again = File::open(&path).map_err(StoreError::io("open", &path))?;
    let index =
        scan(io::BufReader::new(tar_again)).map_err(|error| wrong(format!("{:#}", anyhow::Error::from(error))))?;
    let plain = |kind: &KindRef<'_>| {
        matches!(kind, KindRef::File { .. } | KindRef::Directory | KindRef::Symlink { .. } | KindRef::HardLink { .. })
    };
    if let Some(entry) = index.entries().find(|entry| !plain(&entry.kind)) {
        return Err(wrong(format!("{} is neither file, folder nor link", String::from_utf8_lossy(entry.path))));
    }
    let tree = lease.fresh_path();
    fs::create_dir(&tree).map_err(StoreError::io("make", &tree))?;
    apply::apply(&index, &tar, &tree, options).map_err(|error| wrong(format!("{:#}", anyhow::Error::from(error))))?;
    let top = tree.join(TOP_NAME);
    if !top.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Err(wrong("it has no folder".to_owned()));
    }
    for used in [packed, path.as_path()] {
        // It takes room until the build ends.
        drop(fs::remove_file(used));
    }
    Ok(top)
}
