//! A shared cache in a folder.
//!
//! In: documents by name, blobs by digest. Out: the same again. What always holds: a file appears whole, by rename; nobody
//! writes to a file that is there, so any number of builds can read and write at once; nothing is opened through a link,
//! so a folder that somebody else fills leads nowhere.
//!
//! ```text
//! rbuild-cache           what it is, and of which version
//! blobs/sha256/<hex>     blobs, as in an OCI layout
//! names/<2>/<name>       a manifest each: what a registry has under a tag
//! tmp/                   what is being written
//! ```
//!
//! It is no OCI layout: that has one `index.json` for all, which many writers would take from each other.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use super::SharedError;
use crate::digest::{Digest, Hasher, HashingWriter};
use crate::image::manifest::Descriptor;
use crate::sys::root_dir::RootDir;

/// What the folder says of itself.
const FORMAT: &[u8] = b"rbuild cache 1\n";

/// What is being written for longer than that is written by nobody any more.
const STALE: Duration = Duration::from_secs(86_400);

/// A folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// That folder, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> SharedError + use<> {
        let path = self.path.clone();
        move |source| SharedError::Folder { action, path, source }
    }

    /// Opens it; `None` where there is none, or an empty one.
    fn open(&self) -> Result<Option<RootDir>, SharedError> {
        let root = match RootDir::open(&self.path) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("open")(error)),
        };
        let other = |what: &str| Err(SharedError::Wrong(format!("{} {what}", self.path.display())));
        match read(&root, b"rbuild-cache", 100) {
            Ok(Some(format)) if format == FORMAT => Ok(Some(root)),
            Ok(Some(_)) => other("is a cache of another version of rbuild"),
            Ok(None) if root.dir().stat(b"index.json").is_ok() => {
                other("is an OCI layout, perhaps a cache of BuildKit, which rbuild cannot read; choose another folder")
            }
            Ok(None) if root.dir().names().is_ok_and(|names| names.is_empty()) => Ok(None),
            Ok(None) => other("is no cache of rbuild and not empty; choose another folder"),
            Err(error) => Err(self.io("read")(error)),
        }
    }

    /// The document under a name, of at most `limit` bytes.
    pub fn get(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, SharedError> {
        let Some(root) = self.open()? else { return Ok(None) };
        read(&root, name_path(name).as_bytes(), limit).map_err(self.io("read"))
    }

    /// Whether there is a document under a name.
    pub fn has(&self, name: &str) -> Result<bool, SharedError> {
        let Some(root) = self.open()? else { return Ok(false) };
        is_there(root.open_file(name_path(name).as_bytes())).map_err(self.io("look into"))
    }

    /// A blob, checked at its end.
    pub fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read>, SharedError> {
        let missing = || SharedError::Wrong(format!("{} has no blob {}", self.path.display(), blob.digest));
        let root = self.open()?.ok_or_else(missing)?;
        match root.open_file(blob_path(&blob.digest).as_bytes()) {
            Ok(file) => {
                let (blob, left) = (blob.clone(), blob.size);
                Ok(Box::new(Checked { file, hasher: Some(Hasher::new()), blob, left }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(self.io("read")(error)),
        }
    }

    /// Makes what is not there of it.
    pub fn make(&self) -> Result<(), SharedError> {
        if self.open()?.is_some() {
            return Ok(());
        }
        fs::create_dir_all(self.path.join("tmp")).map_err(self.io("make"))?;
        self.put(Path::new("rbuild-cache"), &mut &FORMAT[..], None)
    }

    /// Puts a blob in, unless it is there.
    pub fn put_blob(&self, blob: &Descriptor, from: &mut dyn Read) -> Result<(), SharedError> {
        let root = self.open()?;
        let path = blob_path(&blob.digest);
        let there = root.map_or(Ok(false), |root| is_there(root.open_file(path.as_bytes())));
        if there.map_err(self.io("look into"))? {
            return Ok(());
        }
        self.put(Path::new(&path), from, Some(&blob.digest))
    }

    /// Puts a document under a name.
    pub fn put_name(&self, name: &str, bytes: &[u8]) -> Result<(), SharedError> {
        self.put(Path::new(&name_path(name)), &mut &bytes[..], None)
    }

    /// Writes a file and renames it into its place.
    fn put(&self, place: &Path, from: &mut dyn Read, digest: Option<&Digest>) -> Result<(), SharedError> {
        let tmp = self.folder_of(Path::new("tmp/x"))?;
        let tmp = tmp.parent().unwrap_or(&self.path);
        let file = NamedTempFile::new_in(tmp).map_err(self.io("make a file in"))?;
        let mut out = HashingWriter::new(file);
        io::copy(from, &mut out).map_err(self.io("write into"))?;
        out.flush().map_err(self.io("write into"))?;
        let (file, found, _) = out.finish();
        if let Some(digest) = digest.filter(|digest| **digest != found) {
            return Err(SharedError::Wrong(format!("what was to be kept as {digest} has the digest {found}")));
        }
        // Whoever may read the folder shall be able to read what is in it.
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(self.io("write into"))?;
        let target = self.folder_of(place)?;
        file.persist(target).map_err(|error| self.io("write into")(error.error))?;
        Ok(())
    }

    /// Makes the folders of a place, through no link. The place.
    fn folder_of(&self, place: &Path) -> Result<PathBuf, SharedError> {
        let mut path = self.path.clone();
        for part in place.parent().into_iter().flat_map(Path::components) {
            path.push(part);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(self.io("write into")(error)),
                _ => {}
            }
            if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                return Err(SharedError::Wrong(format!("{} is no folder of the cache", path.display())));
            }
        }
        Ok(self.path.join(place))
    }

    /// Clears away what writers left that were killed.
    pub fn sweep(&self) {
        let old = |path: &Path| {
            let changed = path.symlink_metadata().and_then(|found| found.modified());
            changed.is_ok_and(|time| time + STALE < SystemTime::now())
        };
        for entry in fs::read_dir(self.path.join("tmp")).into_iter().flatten().flatten() {
            if old(&entry.path()) {
                // What cannot be removed is in nobody's way.
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn name_path(name: &str) -> String {
    // Names end with hexadecimal digits, and those are spread evenly.
    format!("names/{}/{name}", &name[name.len() - 2..])
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The bytes of a file; `None` where there is none.
fn read(root: &RootDir, path: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match root.open_file(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("a document of more than {limit} bytes")));
    }
    Ok(Some(bytes))
}

fn is_there(opened: io::Result<File>) -> io::Result<bool> {
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file that has to have a size and a digest.
struct Checked {
    file: File,
    hasher: Option<Hasher>,
    blob: Descriptor,
    left: u64,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        let wrong = |why: String| Err(io::Error::other(format!("the blob {}: {why}", self.blob.digest)));
        match self.left.checked_sub(read as u64) {
            None => return wrong(format!("it has more than {} bytes", self.blob.size)),
            Some(left) => self.left = left,
        }
        if read == 0 && !buffer.is_empty() {
            if self.left > 0 {
                return wrong(format!("it ends {} bytes early", self.left));
            }
            if let Some(found) = self.hasher.take().map(Hasher::finish)
                && found != self.blob.digest
            {
                return wrong(format!("what is there has the digest {found}"));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn name() -> String {
        format!("rbuild-{}", Digest::of(b"key").hex())
    }

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor::of("application/octet-stream".into(), bytes)
    }

    #[test]
    fn what_is_kept_comes_back_and_damage_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::new(temp.path().join("a/cache"));
        assert_eq!((folder.get(&name(), 10).unwrap(), folder.has(&name()).unwrap()), (None, false));
        folder.make().unwrap();
        folder.make().unwrap();
        folder.put_name(&name(), b"document").unwrap();
        assert_eq!((folder.get(&name(), 8).unwrap(), folder.has(&name()).unwrap()), (Some(b"document".to_vec()), true));
        assert!(folder.get(&name(), 7).unwrap_err().to_string().contains("cannot read"));
        folder.put_blob(&blob(b"bytes"), &mut &b"bytes"[..]).unwrap();
        folder.put_blob(&blob(b"bytes"), &mut &b"not looked at"[..]).unwrap();
        folder.put_blob(&blob(b"other"), &mut &b"wrong"[..]).unwrap_err();
        let read = |blob: &Descriptor| {
            let mut bytes = Vec::new();
            folder.blob(blob).map_err(|error| error.to_string())?.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
            Ok::<_, String>(bytes)
        };
        assert_eq!(read(&blob(b"bytes")), Ok(b"bytes".to_vec()));
        assert!(read(&blob(b"other")).unwrap_err().contains("has no blob"));
        let path = folder.path().join(blob_path(&blob(b"bytes").digest));
        for (bytes, said) in [("Bytes", "has the digest"), ("byte", "early"), ("bytes more", "more than 5")] {
            fs::write(&path, bytes).unwrap();
            assert!(read(&blob(b"bytes")).unwrap_err().contains(said), "{bytes}");
        }
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn other_folders_and_links_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::new(temp.path().join("c"));
        fs::create_dir(folder.path()).unwrap();
        assert_eq!(folder.get(&name(), 10).unwrap(), None, "an empty one will do");
        fs::write(folder.path().join("index.json"), "{}").unwrap();
        assert!(folder.make().unwrap_err().to_string().contains("OCI layout"));
        fs::remove_file(folder.path().join("index.json")).unwrap();
        fs::write(folder.path().join("f"), "").unwrap();
        assert!(folder.get(&name(), 10).unwrap_err().to_string().contains("no cache of rbuild"));
        fs::remove_file(folder.path().join("f")).unwrap();
        folder.make().unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, folder.path().join("blobs")).unwrap();
        folder.put_blob(&blob(b"x"), &mut &b"x"[..]).unwrap_err();
        symlink(&outside, folder.path().join("names")).unwrap();
        folder.put_name(&name(), b"x").unwrap_err();
        fs::write(outside.join("secret"), "x").unwrap();
        folder.get(&name(), 10).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
