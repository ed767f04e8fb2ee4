//! A tar as a build context: unpacked into a folder, which then is a context like any other.
//!
//! In: the bytes of a tar of whatever origin, plain or compressed, and an empty folder. Out: its files in the folder,
//! owned by whoever runs this (owners of a context do not count), and notes on what could not be made. What always
//! holds: what the tar says is worked out by [`crate::layer::scan`] before a file is made, so nothing is made through a
//! link or outside of the folder; its size and the number of its entries are bounded.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::layer::apply::{ApplyError, Flavour, TreeOptions, apply};
use crate::layer::compress::{self, decompress};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{IndexBuilder, IndexError, LayerIndex, Origin, RootMetadata};
use crate::layer::scan::{ScanError, is_header, scan};
use crate::layer::stack::{LayerStack, needs_parents, on_parents};
use crate::sys::file::owner_of_new_files;

/// A larger tar is no context: 64 GiB.
const LIMIT: u64 = 64 << 30;

/// So many bytes of a file tell whether it is a tar.
pub const HEAD: usize = 512;

/// Why a tar is no context.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It makes no sense.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// It cannot be read or kept.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its files cannot be made.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// It has no room in an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A name that means something else in a layer.
    #[error("the deletion of {0:?}: names that begin with .wh. cannot be in an image, where they mean that")]
    Reserved(String),
}

/// Whether bytes begin a tar, as it is or compressed; `head` is all there is or its first [`HEAD`] bytes.
pub fn is_archive(head: &[u8]) -> bool {
    compress::detect(head).is_some() || is_header(head)
}

/// Unpacks the tar `from` into the empty folder `folder`. `scratch` is a path for a file that is needed meanwhile.
pub fn unpack(from: Box<dyn Read + Send + '_>, scratch: &Path, folder: &Path) -> Result<Vec<String>, TarError> {
    let mut tee = Tee { from: decompress(from)?, to: File::create_new(scratch)?, left: LIMIT };
    let index = scan(&mut tee)?;
    drop(tee);
    check(&index)?;
    let alone = if needs_parents(&index) { on_parents(&index, &LayerStack::default())? } else { index };
    let (own, notes) = for_caller(&alone)?;
    let tar = File::open(scratch)?;
    apply(&own, &tar, folder, &TreeOptions { flavour: Flavour::User, devices: false })?;
    std::fs::remove_file(scratch)?;
    Ok(notes)
}

/// Finds what a layer could hold, which has layers below, and a context cannot.
fn check(index: &LayerIndex) -> Result<(), TarError> {
    for (position, entry) in index.entries().enumerate() {
        match entry.kind {
            KindRef::Whiteout | KindRef::Opaque => {
                return Err(TarError::Reserved(String::from_utf8_lossy(entry.path).into_owned()));
            }
            KindRef::HardLink { target } if index.data_position(position).is_none() => {
                return Err(ApplyError::Link { path: entry.path.to_vec(), target: target.to_vec() }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same entries, owned by this process, without what it may not make.
fn for_caller(index: &LayerIndex) -> Result<(LayerIndex, Vec<String>), TarError> {
    let (uid, gid) = owner_of_new_files();
    let mut builder = IndexBuilder::new();
    builder.set_root(RootMetadata { mode: 0o755, uid, gid, mtime: index.root().unwrap_or_default().mtime });
    let (mut devices, mut capabilities) = (Vec::new(), Vec::new());
    for position in 0..index.len() {
        let entry = index.entry_ref(position);
        let path = || String::from_utf8_lossy(entry.path).into_owned();
        match entry.kind {
            KindRef::CharDevice { .. } | KindRef::BlockDevice { .. } => {
                devices.push(path());
                continue;
            }
            _ => {}
        }
        if entry.capability.is_some() {
            capabilities.push(path());
        }
        let own = EntryRef { uid, gid, capability: None, ..entry };
        builder.push_sparse(&own, index.offset(position), index.extents(position).as_deref());
    }
    let note = |what: &str, paths: &[String]| {
        let first = paths.first()?;
        let more = if paths.len() > 1 { format!(" and {} more", paths.len() - 1) } else { String::new() };
        Some(format!("warning: the tar of the context: {what} {first}{more}"))
    };
    let notes = [note("left out device", &devices), note("left out the capabilities of", &capabilities)];
    let own = builder.finish(Origin::Foreign, index.diff_id(), index.tar_size())?;
    Ok((own, notes.into_iter().flatten().collect()))
}

/// Writes what is read to a file as well.
struct Tee<R> {
    from: R,
    to: File,
    left: u64,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(format!("the tar has more than {} GiB", LIMIT >> 30)))?;
        self.to.write_all(&buffer[..read])?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::compress::{Compression, Encoder};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tar::EntryType;

    fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, mode: u32, link: &str, data: &str) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(4242);
        header.set_gid(4243);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, data.as_bytes()).unwrap();
    }

    fn made(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, Result<Vec<String>, TarError>) {
        let mut tar = tar::Builder::new(Vec::new());
        build(&mut tar);
        let bytes = tar.into_inner().unwrap();
        let mut encoder = Encoder::new(Vec::new(), Compression::ZSTD);
        encoder.write_all(&bytes).unwrap();
        let packed = encoder.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        assert!(is_archive(&packed) && is_archive(&bytes[..HEAD]));
        let result = unpack(Box::new(packed.as_slice()), &folder.path().join("scratch"), &root);
        (folder, result)
    }

    #[test]
    fn files_come_with_modes_times_and_links_and_belong_to_the_caller() {
        let (folder, result) = made(|tar| {
            entry(tar, EntryType::Regular, "implied/dir/file", 0o640, "", "data");
            entry(tar, EntryType::Directory, "closed/", 0o555, "", "");
            entry(tar, EntryType::Regular, "closed/s", 0o4755, "", "x");
            entry(tar, EntryType::Symlink, "link", 0o777, "/etc/passwd", "");
            entry(tar, EntryType::Link, "twin", 0o640, "implied/dir/file", "");
            entry(tar, EntryType::Char, "null", 0o666, "", "");
        });
        assert_eq!(result.unwrap(), ["warning: the tar of the context: left out device null"]);
        let root = folder.path().join("root");
        let file = std::fs::metadata(root.join("implied/dir/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o640, 1_000_000_000, 2));
        assert_eq!((file.uid(), file.gid()), owner_of_new_files());
        assert_eq!(std::fs::metadata(root.join("closed")).unwrap().mode() & 0o7777, 0o555);
        assert_eq!(std::fs::metadata(root.join("closed/s")).unwrap().mode() & 0o7777, 0o4755);
        assert_eq!(std::fs::read_link(root.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!root.join("null").exists() && !folder.path().join("scratch").exists());
        std::fs::set_permissions(root.join("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn nothing_is_made_outside() {
        type Build = fn(&mut tar::Builder<Vec<u8>>);
        let hostile: [Build; 4] = [
            |tar| entry(tar, EntryType::Regular, "../out", 0o644, "", "x"),
            |tar| entry(tar, EntryType::Link, "in", 0o644, "../../etc/passwd", ""),
            |tar| entry(tar, EntryType::Link, "in", 0o644, "nowhere", ""),
            |tar| entry(tar, EntryType::Regular, "a/.wh.b", 0o644, "", ""),
        ];
        for build in hostile {
            let (folder, result) = made(build);
            result.expect_err("a hostile tar");
            assert!(!folder.path().join("out").exists());
        }
        // A path through a link of the tar leads where the link leads inside the folder.
        let (folder, result) = made(|tar| {
            entry(tar, EntryType::Symlink, "up", 0o777, "/..", "");
            entry(tar, EntryType::Regular, "up/file", 0o644, "", "x");
        });
        result.unwrap();
        assert_eq!(std::fs::read(folder.path().join("root/file")).unwrap(), b"x");
    }

    #[test]
    fn what_is_no_archive() {
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(&[b'F'; HEAD]) && !is_archive(&[0; HEAD]));
    }
}
