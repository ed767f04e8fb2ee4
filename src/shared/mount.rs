//! What cache mounts hold, from machine to machine.
//!
//! In: the folder of a cache mount, or a place that has one of that name. Out: an artifact with one layer; a folder again.
//! What always holds: there is one artifact for a mount, and who writes last has written it; sockets, pipes and devices stay
//! behind; of what comes, nothing but files, folders and links is taken, no more than a mount may have, and nothing lands outside
//! of its folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
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
use crate::layer::write::{Body, LayerWriter, WriteError};
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

/// The most bytes of a mount, packed and unpacked.
const MAX_PACKED: u64 = 16 << 30;
const MAX_TAR: u64 = 64 << 30;

/// Why a mount stays behind that has more.
const TOO_LARGE: &str = "it has more than the 64 GiB, or 16 GiB packed, that a cache mount may have to go along";

/// The config of such an artifact.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// Which mount.
    mount: Digest,
}

/// Exports what a cache mount holds; why it stays behind, where another build writes to it all the time.
pub fn export_mount(
    place: &Place<'_>,
    name: &Digest,
    folder: &Path,
    lease: &Lease,
) -> Result<Result<(), String>, SharedError> {
    place.make()?;
    let path = lease.fresh_path();
    let packed = match pack_into(folder, &path, lease) {
        Err(PackError::Unsteady(_)) => pack_into(folder, &path, lease),
        other => other,
    };
    let blob = match packed {
        Err(PackError::Unsteady(why)) => return Ok(Err(why)),
        Err(PackError::Large) => return Ok(Err(TOO_LARGE.to_owned())),
        Err(PackError::Failed(error)) => return Err(error),
        Ok(blob) if blob.size > MAX_PACKED => return Ok(Err(TOO_LARGE.to_owned())),
        Ok(blob) => blob,
    };
    let open =
        || File::open(&path).map(|file| Box::new(file) as Box<dyn io::Read>).map_err(StoreError::io("open", &path));
    // Proof: a number and a digest.
    let config = serde_json::to_vec(&Document { version: VERSION, mount: *name }).expect("it is JSON");
    let descriptor = Descriptor::of(CONFIG.into(), &config);
    let manifest = Manifest::new(Family::Oci, descriptor.clone(), vec![blob.clone()]).to_bytes();
    patiently(|| {
        place.put_blob(&blob, &Bytes::Open(&open), &[], false)?;
        place.put_blob(&descriptor, &Bytes::Here(&config), &[], false)?;
        place.put(Kind::Mount, name, &Descriptor::of(Family::Oci.manifest(), &manifest), &manifest)
    })?;
    // It is of no more use, and would take its room until the build ends.
    drop(fs::remove_file(&path));
    Ok(Ok(()))
}

/// Why a folder could not be packed.
enum PackError {
    /// Something in it changed while it was read.
    Unsteady(String),
    /// It has more than a mount may have.
    Large,
    Failed(SharedError),
}

impl<E: Into<SharedError>> From<E> for PackError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Packs a folder into a file.
fn pack_into(folder: &Path, path: &Path, lease: &Lease) -> Result<Descriptor, PackError> {
    let file = File::create(path).map_err(StoreError::io("make", path))?;
    let out = HashingWriter::new(BufWriter::with_capacity(1 << 20, lease.heeding(file)));
    let failed = StoreError::io("write", path);
    let packed = pack(folder, Encoder::new(out, Compression::ZSTD))?;
    let out = packed.finish().and_then(|mut out| out.flush().map(|()| out)).map_err(failed)?;
    let (_, digest, size) = out.finish();
    Ok(Descriptor::new(Family::Oci.layer(Encoding::Zstd), digest, size))
}

/// Writes what is in a folder as a layer.
fn pack<W: Write>(folder: &Path, out: W) -> Result<W, PackError> {
    let failed = |source| SharedError::Folder { action: "read the cache mount", path: folder.to_owned(), source };
    let root = RootDir::open(folder).map_err(failed)?;
    let mut packing = Packing { writer: LayerWriter::new(out), seen: std::collections::HashMap::new(), folder };
    let stat = root.dir().stat_self().map_err(failed)?;
    packing.push(TOP, EntryKind::Directory, &stat, Body::None)?;
    packing.entries(root.dir(), TOP)?;
    let (out, index) = packing.writer.finish().map_err(|error| SharedError::Wrong(error.to_string()))?;
    if index.tar_size() > MAX_TAR { Err(PackError::Large) } else { Ok(out) }
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
    ) -> Result<(), PackError> {
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
            let changed = matches!(error, WriteError::Changed { .. });
            let why = format!("{:#}", anyhow::Error::from(error));
            if changed {
                return PackError::Unsteady(why);
            }
            SharedError::Wrong(format!("the cache mount {}: {why}", self.folder.display())).into()
        })
    }

    fn entries(&mut self, dir: &Dir, below: &[u8]) -> Result<(), PackError> {
        let failed = self.failed();
        for name in dir.names().map_err(&failed)? {
            // Another build uses it as well, and names go.
            let Some(stat) = still_there(dir.stat(&name)).map_err(&failed)? else { continue };
            // Names that mean something else in a layer.
            if name.starts_with(b".wh.") {
                continue;
            }
            let path = join(below, &name);
            match stat.kind {
                StatKind::Directory => {
                    let Some(inner) = still_there(dir.open_dir(&name)).map_err(&failed)? else { continue };
                    self.push(&path, EntryKind::Directory, &stat, Body::None)?;
                    self.entries(&inner, &path)?;
                }
                StatKind::Symlink => {
                    let Some(target) = still_there(dir.read_link(&name)).map_err(&failed)? else { continue };
                    self.push(&path, EntryKind::Symlink { target }, &stat, Body::None)?;
                }
                StatKind::File => {
                    if stat.links > 1
                        && let Some(target) = self.seen.get(&stat.inode).cloned()
                    {
                        self.push(&path, EntryKind::HardLink { target }, &stat, Body::None)?;
                        continue;
                    }
                    let Some(file) = still_there(dir.open_file(&name)).map_err(&failed)? else { continue };
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

/// `None` of what is there no more, or has become something of another kind.
fn still_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found.as_ref().err().and_then(Errno::from_io_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => Ok(None),
        _ => found.map(Some),
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
    if blob.size > MAX_PACKED {
        return Err(wrong(TOO_LARGE));
    }
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
    let reader = compress::decompress(Box::new(file)).map_err(|error| wrong(error.to_string()))?;
    let copied = io::copy(&mut reader.take(MAX_TAR + 1), &mut lease.heeding(&mut tar));
    if copied.map_err(|error| wrong(error.to_string()))? > MAX_TAR {
        return Err(wrong(TOO_LARGE.to_owned()));
    }
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

#[cfg(test)]
mod tests {
    use super::super::Folder;
    use super::*;
    use crate::store::Store;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_mount_that_others_write_to_fails_no_export() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let lease = store.lease("boot").unwrap();
        let place = Place::Folder(Folder::new(temp.path().join("cache")));
        let mount = temp.path().join("mount");
        fs::create_dir(&mount).unwrap();
        fs::write(mount.join("large"), vec![7; 1 << 20]).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(mount.join("large")).unwrap();
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    file.write_all(b"more").unwrap();
                    let name = mount.join(format!("passing{}", round % 7));
                    match round % 3 {
                        0 => drop(fs::create_dir(&name)),
                        1 => drop(fs::write(&name, "x")),
                        _ => drop(fs::remove_dir(&name).or_else(|_| fs::remove_file(&name))),
                    }
                    if round % 64 == 0 {
                        file.set_len(1 << 20).unwrap();
                    }
                }
            });
            for round in 0..10 {
                let sent = export_mount(&place, &Digest::of(b"mount"), &mount, &lease);
                if let Err(error) = &sent {
                    over.store(true, Ordering::Relaxed);
                    panic!("round {round}: {error:#}");
                }
                // Why it stays behind is said.
                assert!(sent.unwrap().err().is_none_or(|why| why.contains("changed")));
            }
            over.store(true, Ordering::Relaxed);
        });
        // When all is quiet it goes.
        assert_eq!(export_mount(&place, &Digest::of(b"mount"), &mount, &lease).unwrap(), Ok(()));
        assert!(fetch(&place, &Digest::of(b"mount"), &lease).unwrap().is_some());
    }
}
