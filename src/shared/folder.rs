//! A shared cache in a folder.
//!
//! In: documents by name, blobs by digest. Out: the same again. What always holds: a file appears whole, by rename; nobody
//! writes to a file that is there, so any number of builds can read and write at once; nothing in it is opened, made or removed
//! through a link, so a folder that somebody else fills leads nowhere.
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
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::SharedError;
use crate::digest::{Digest, Hasher, HashingWriter};
use crate::image::manifest::Descriptor;
use crate::sys::root_dir::{Dir, RootDir, Stat};

/// What the folder says of itself.
const FORMAT: &[u8] = b"rbuild cache 1\n";

/// Where files are written.
const TMP: &str = "tmp";

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
            // One that somebody makes just now has no more than that.
            Ok(None) if root.dir().names().is_ok_and(|names| names.iter().all(|name| name == TMP.as_bytes())) => {
                Ok(None)
            }
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

    /// Whether there is a blob of that size.
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool, SharedError> {
        let Some(root) = self.open()? else { return Ok(false) };
        has_blob(&root, blob).map_err(self.io("look into"))
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
        fs::create_dir_all(&self.path).map_err(self.io("make"))?;
        let root = RootDir::open(&self.path).map_err(self.io("open"))?;
        self.put(&root, "rbuild-cache", &mut &FORMAT[..], None)
    }

    /// Opens it, to write to it.
    fn made(&self) -> Result<RootDir, SharedError> {
        let gone = || SharedError::Wrong(format!("{} is no cache any more", self.path.display()));
        self.open()?.ok_or_else(gone)
    }

    /// Puts a blob in, unless one of that size is there; `anew` also then.
    pub fn put_blob(&self, blob: &Descriptor, from: &mut dyn Read, anew: bool) -> Result<(), SharedError> {
        let root = self.made()?;
        if !anew && has_blob(&root, blob).map_err(self.io("look into"))? {
            return Ok(());
        }
        self.put(&root, &blob_path(&blob.digest), from, Some(&blob.digest))
    }

    /// Puts a document under a name.
    pub fn put_name(&self, name: &str, bytes: &[u8]) -> Result<(), SharedError> {
        self.put(&self.made()?, &name_path(name), &mut &bytes[..], None)
    }

    /// Writes a file and renames it into its place.
    fn put(
        &self,
        root: &RootDir,
        place: &str,
        from: &mut dyn Read,
        digest: Option<&Digest>,
    ) -> Result<(), SharedError> {
        let (folder, name) = place.rsplit_once('/').unwrap_or(("", place));
        let tmp = self.folder(root, TMP)?;
        let (file, unfinished) = self.unfinished(&tmp)?;
        let written = self.write(file, from, digest).and_then(|()| {
            let folder = self.folder(root, folder)?;
            tmp.rename(&unfinished, &folder, name.as_bytes()).map_err(self.io("write into"))
        });
        if written.is_err() {
            // What cannot be removed is swept one day.
            drop(tmp.remove_file(&unfinished));
        }
        written
    }

    /// A new file that nobody else writes to, and its name.
    fn unfinished(&self, tmp: &Dir) -> Result<(File, Vec<u8>), SharedError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes();
            match tmp.make_file(&name, 0o644) {
                // A process of another machine, or one that was killed, has the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return Ok((made.map_err(self.io("make a file in"))?, name)),
            }
        }
    }

    fn write(&self, file: File, from: &mut dyn Read, digest: Option<&Digest>) -> Result<(), SharedError> {
        let mut out = HashingWriter::new(file);
        io::copy(from, &mut out).map_err(self.io("write into"))?;
        out.flush().map_err(self.io("write into"))?;
        let (file, found, _) = out.finish();
        if let Some(digest) = digest.filter(|digest| **digest != found) {
            return Err(SharedError::Wrong(format!("what was to be kept as {digest} has the digest {found}")));
        }
        // Whoever may read the folder shall be able to read what is in it.
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(self.io("write into"))?;
        // The name may outlive a power cut that the bytes do not.
        file.sync_data().map_err(self.io("write into"))
    }

    /// Opens a folder in it, through no link; makes what is missing of it.
    fn folder(&self, root: &RootDir, path: &str) -> Result<Dir, SharedError> {
        let mut folder = root.open_dir(b"").map_err(self.io("open"))?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match folder.make_dir(part.as_bytes(), 0o777) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(self.io("write into")(error)),
                _ => {}
            }
            folder = folder.open_dir(part.as_bytes()).map_err(|_| {
                SharedError::Wrong(format!("{} is no folder of the cache", self.path.join(path).display()))
            })?;
        }
        Ok(folder)
    }

    /// Clears away what writers left that were killed.
    pub fn sweep(&self) {
        let Ok(Some(root)) = self.open() else { return };
        let Ok(tmp) = root.open_dir(TMP.as_bytes()) else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let old = |found: Stat| u64::try_from(found.mtime.0).unwrap_or(0) + STALE.as_secs() < now.as_secs();
        for name in tmp.names().unwrap_or_default() {
            if tmp.stat(&name).is_ok_and(old) {
                // What cannot be removed is in nobody's way.
                drop(tmp.remove_file(&name));
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

fn has_blob(root: &RootDir, blob: &Descriptor) -> io::Result<bool> {
    match root.open_file(blob_path(&blob.digest).as_bytes()).and_then(|file| file.metadata()) {
        Ok(found) => Ok(found.len() == blob.size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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
        folder.put_blob(&blob(b"bytes"), &mut &b"bytes"[..], false).unwrap();
        folder.put_blob(&blob(b"bytes"), &mut &b"not looked at"[..], false).unwrap();
        assert_eq!(
            (folder.has_blob(&blob(b"bytes")).unwrap(), folder.has_blob(&blob(b"other")).unwrap()),
            (true, false)
        );
        folder.put_blob(&blob(b"other"), &mut &b"wrong"[..], false).unwrap_err();
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
        // One of another size is written anew; one that is damaged without that, when somebody says so.
        assert!(!folder.has_blob(&blob(b"bytes")).unwrap());
        folder.put_blob(&blob(b"bytes"), &mut &b"bytes"[..], false).unwrap();
        assert_eq!(read(&blob(b"bytes")), Ok(b"bytes".to_vec()));
        fs::write(&path, "Bytes").unwrap();
        folder.put_blob(&blob(b"bytes"), &mut &b"bytes"[..], true).unwrap();
        assert_eq!(read(&blob(b"bytes")), Ok(b"bytes".to_vec()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn only_what_writers_left_is_swept() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, victim) = (Folder::new(temp.path().join("c")), temp.path().join("victim"));
        folder.make().unwrap();
        fs::create_dir(&victim).unwrap();
        let tmp = folder.path().join("tmp");
        let write = |path: PathBuf, age: u64| {
            let file = File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        write(tmp.join("old"), 90_000);
        write(tmp.join("new"), 80_000);
        write(victim.join("old"), 90_000);
        folder.sweep();
        assert!(!tmp.join("old").exists() && tmp.join("new").exists());
        fs::remove_dir_all(&tmp).unwrap();
        symlink(&victim, &tmp).unwrap();
        folder.sweep();
        assert!(victim.join("old").exists());
        assert!(folder.put_name(&name(), b"x").unwrap_err().to_string().contains("no folder of the cache"));
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    }

    #[test]
    fn other_folders_and_links_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::new(temp.path().join("c"));
        fs::create_dir(folder.path()).unwrap();
        assert_eq!(folder.get(&name(), 10).unwrap(), None, "an empty one will do");
        fs::create_dir(folder.path().join("tmp")).unwrap();
        assert_eq!(folder.get(&name(), 10).unwrap(), None, "another command is about to make it");
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
        folder.put_blob(&blob(b"x"), &mut &b"x"[..], false).unwrap_err();
        symlink(&outside, folder.path().join("names")).unwrap();
        folder.put_name(&name(), b"x").unwrap_err();
        fs::write(outside.join("secret"), "x").unwrap();
        folder.get(&name(), 10).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
