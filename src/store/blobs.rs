//! The content store: bytes by digest.
//!
//! In: bytes. Out: the same bytes, checked. What always holds: a file of this folder has the digest that its name
//! says, or who reads it does not get its last bytes, and it is noted as damaged.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::layout::{Store, StoreError, open_if_there};
use super::lease::Lease;
use crate::digest::{Digest, Hasher, HashingWriter};
use crate::image::manifest::Descriptor;

/// Writes a blob whose digest is not known yet.
pub struct BlobWriter<'a> {
    store: &'a Store,
    lease: &'a Lease,
    out: HashingWriter<NamedTempFile>,
}

/// Reads a file of the store whose digest is known. Where it has another one its last bytes do not come, but the error: who
/// sends as many bytes as there are never asks for an end.
pub struct BlobReader {
    store: Store,
    file: File,
    path: PathBuf,
    expected: Digest,
    /// The bytes that are still to come.
    left: u64,
    /// Until the digest was checked.
    hasher: Option<Hasher>,
}

impl Store {
    /// Where the blob is or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    /// Whether the blob is here.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Whether a small document is here, whole.
    pub fn has_document(&self, bytes: &[u8]) -> bool {
        fs::read(self.blob_path(&Digest::of(bytes))).is_ok_and(|found| found == bytes)
    }

    /// Begins a blob.
    pub fn blob_writer<'a>(&'a self, lease: &'a Lease) -> Result<BlobWriter<'a>, StoreError> {
        let file = NamedTempFile::new_in(lease.folder()).map_err(StoreError::io("make a file in", lease.folder()))?;
        Ok(BlobWriter { store: self, lease, out: HashingWriter::new(file) })
    }

    /// Puts a small document in; does nothing where it is already, and whole.
    pub fn put_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !lease.uses_blob(self, &digest)? || !self.has_document(bytes) {
            let mut writer = self.blob_writer(lease)?;
            writer.write_all(bytes).map_err(StoreError::io("write a blob in", lease.folder()))?;
            writer.commit()?;
        }
        Ok(digest)
    }

    /// Opens a blob for reading; its end is reached only when its digest was right.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader, StoreError> {
        let path = self.blob_path(digest);
        let file = open_if_there(&path)?.ok_or_else(|| self.missing(format!("the blob {digest}")))?;
        self.checked(file, path, digest)
    }

    /// As [`Self::open_blob`], for who has promised to send as many bytes as the descriptor says.
    pub fn open_listed_blob(&self, blob: &Descriptor) -> Result<BlobReader, StoreError> {
        self.open_blob(&blob.digest)?.of_size(blob.size)
    }

    /// Reads a file of the store that is to have this digest.
    pub(super) fn checked(&self, file: File, path: PathBuf, expected: &Digest) -> Result<BlobReader, StoreError> {
        let left = file.metadata().map_err(StoreError::io("look at", &path))?.len();
        Ok(BlobReader { store: self.clone(), file, path, expected: *expected, left, hasher: Some(Hasher::new()) })
    }

    /// Copies a blob. Its digest has been checked when this returns; bytes that were written before a mismatch was found
    /// must not be used.
    pub fn copy_blob(&self, digest: &Digest, to: &mut dyn Write) -> Result<(), StoreError> {
        let mut reader = self.open_blob(digest)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = reader.read(&mut buffer).map_err(StoreError::read("read", &reader.path))?;
            if read == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..read]).map_err(StoreError::io("write a copy of", &reader.path))?;
        }
    }

    /// Reads a small document whole, checked. Larger than `limit` bytes is an error.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let reader = self.open_blob(digest)?;
        let path = reader.path.clone();
        let mut bytes = Vec::new();
        match reader.take(limit + 1).read_to_end(&mut bytes) {
            Err(error) => Err(StoreError::read("read", &path)(error)),
            Ok(_) if bytes.len() as u64 > limit => {
                Err(self.damaged(&path, format!("it is a document of more than {limit} bytes")))
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// The size of a blob.
    pub fn blob_size(&self, digest: &Digest) -> Result<u64, StoreError> {
        let path = self.blob_path(digest);
        Ok(std::fs::metadata(&path).map_err(StoreError::io("look at", &path))?.len())
    }

    /// The error for something that is named and not here.
    pub(crate) fn missing(&self, what: String) -> StoreError {
        StoreError::Missing { what, root: self.root().to_owned() }
    }
}

impl StoreError {
    /// As [`Self::io`], for reads: what is damaged, and was noted by the reader that found it, is said as that.
    pub(crate) fn read(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| error.downcast().unwrap_or_else(Self::io(action, path))
    }
}

impl BlobWriter<'_> {
    /// Ends the blob and lets it appear under its digest; its digest and size.
    pub fn commit(self) -> Result<(Digest, u64), StoreError> {
        let Self { store, lease, out } = self;
        let (file, digest, size) = out.finish();
        Self::persist(store, lease, file, &digest)?;
        Ok((digest, size))
    }

    /// As [`Self::commit`] if it has this digest and size; else nothing appears, and those that it has come back.
    pub fn commit_if(self, expected: (Digest, u64)) -> Result<Result<(), (Digest, u64)>, StoreError> {
        let Self { store, lease, out } = self;
        let (file, digest, size) = out.finish();
        if (digest, size) != expected {
            return Ok(Err((digest, size)));
        }
        Self::persist(store, lease, file, &digest).map(Ok)
    }

    fn persist(store: &Store, lease: &Lease, file: NamedTempFile, digest: &Digest) -> Result<(), StoreError> {
        let path = store.blob_path(digest);
        let _shared = lease.shared()?;
        lease.will_make(&format!("blobs/sha256/{}", digest.hex()))?;
        // Blobs are read by tools of other users too; a temporary file has mode 0600.
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(StoreError::io("set the mode of", file.path()))?;
        file.persist(&path).map_err(|error| StoreError::io("rename into place", &path)(error.error))?;
        Ok(())
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl BlobReader {
    /// The same, if there are as many bytes as there should be.
    pub(super) fn of_size(self, size: u64) -> Result<Self, StoreError> {
        if self.left == size {
            return Ok(self);
        }
        Err(self.store.damaged(&self.path, format!("it has {} bytes instead of {size}", self.left)))
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        let ends = self.left == 0 || (read == 0 && !buffer.is_empty());
        if ends && let Some(hasher) = self.hasher.take() {
            let found = hasher.finish();
            if found != self.expected {
                let error = self.store.damaged(&self.path, format!("its digest is {found}"));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_come_back_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let digest = store.put_blob(&lease, b"hello").unwrap();
        assert_eq!(store.put_blob(&lease, b"hello").unwrap(), digest);
        assert_eq!(store.read_blob(&digest, 5).unwrap(), b"hello");
        assert!(store.read_blob(&digest, 4).is_err());
        fs::write(store.blob_path(&digest), "hellO").unwrap();
        let error = store.read_blob(&digest, 5).unwrap_err();
        assert!(error.to_string().contains("is damaged: its digest is"), "{error}");
        assert_eq!(store.suspects().unwrap(), [format!("blobs/sha256/{}", digest.hex())]);
        assert_eq!(store.put_blob(&lease, b"hello").unwrap(), digest);
        assert_eq!(store.read_blob(&digest, 5).unwrap(), b"hello", "it was written again");
        let missing = store.read_blob(&Digest::of(b"other"), 5).unwrap_err().to_string();
        assert!(missing.contains("is not in the store"), "{missing}");
    }

    #[test]
    fn the_last_bytes_of_what_is_damaged_do_not_come() {
        for (bytes, whole) in [("hello", true), ("hellO", false), ("hell", false), ("", false), ("hello ", false)] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let lease = store.lease("boot").unwrap();
            let digest = store.put_blob(&lease, b"hello").unwrap();
            fs::write(store.blob_path(&digest), bytes).unwrap();
            // Who wants five bytes asks for no more, not even for the end.
            let mut found = [0; 5];
            let read = store.open_blob(&digest).unwrap().read_exact(&mut found);
            assert_eq!(read.is_ok(), whole || bytes.len() > 5, "{bytes}");
            let listed = Descriptor::new("x".into(), digest, 5);
            let read = store.open_listed_blob(&listed).map(|mut blob| blob.read_exact(&mut found).is_ok());
            assert_eq!(read.unwrap_or(false), whole, "{bytes}");
            assert_eq!(store.suspects().unwrap().len(), usize::from(!whole), "{bytes}");
        }
    }
}
