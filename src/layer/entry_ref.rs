//! Borrowed views of entries, for code that looks at many and keeps few.
//!
//! In: the bytes of a layer index, or an [`Entry`]. Out: [`EntryRef`], which is `Copy` and allocates nothing.
//! What always holds: `EntryRef::from(&entry).to_entry() == entry`.

use crate::digest::Digest;
use crate::layer::entry::{Entry, Kind};

/// What an [`Entry`] says, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// As [`Entry::path`].
    pub path: &'a [u8],
    /// What it is.
    pub kind: KindRef<'a>,
    /// As [`Entry::mode`].
    pub mode: u32,
    /// As [`Entry::uid`].
    pub uid: u32,
    /// As [`Entry::gid`].
    pub gid: u32,
    /// As [`Entry::mtime`].
    pub mtime: i64,
    /// As [`Entry::capability`].
    pub capability: Option<&'a [u8]>,
}

/// What an entry is, borrowed; the cases are those of [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindRef<'a> {
    /// A regular file.
    File {
        /// Bytes of data.
        size: u64,
        /// SHA-256 of the data.
        sha256: Digest,
    },
    /// Another name of a regular file that comes earlier in the same layer.
    HardLink {
        /// Path of the first name.
        target: &'a [u8],
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: &'a [u8],
    },
    /// A character device.
    CharDevice {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// What was there below is gone.
    Whiteout,
    /// The directory hides all that was in it below.
    Opaque,
}

impl KindRef<'_> {
    /// Copies what is borrowed.
    pub fn to_kind(self) -> Kind {
        match self {
            KindRef::File { size, sha256 } => Kind::File { size, sha256 },
            KindRef::HardLink { target } => Kind::HardLink { target: target.to_vec() },
            KindRef::Directory => Kind::Directory,
            KindRef::Symlink { target } => Kind::Symlink { target: target.to_vec() },
            KindRef::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            KindRef::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            KindRef::Fifo => Kind::Fifo,
            KindRef::Whiteout => Kind::Whiteout,
            KindRef::Opaque => Kind::Opaque,
        }
    }

    /// Whether this is a directory.
    pub fn is_directory(self) -> bool {
        matches!(self, KindRef::Directory)
    }
}

impl EntryRef<'_> {
    /// Copies what is borrowed.
    pub fn to_entry(self) -> Entry {
        Entry {
            path: self.path.to_vec(),
            kind: self.kind.to_kind(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            capability: self.capability.map(<[u8]>::to_vec),
        }
    }
}

impl<'a> From<&'a Kind> for KindRef<'a> {
    fn from(kind: &'a Kind) -> Self {
        match kind {
            Kind::File { size, sha256 } => KindRef::File { size: *size, sha256: *sha256 },
            Kind::HardLink { target } => KindRef::HardLink { target },
            Kind::Directory => KindRef::Directory,
            Kind::Symlink { target } => KindRef::Symlink { target },
            Kind::CharDevice { major, minor } => KindRef::CharDevice { major: *major, minor: *minor },
            Kind::BlockDevice { major, minor } => KindRef::BlockDevice { major: *major, minor: *minor },
            Kind::Fifo => KindRef::Fifo,
            Kind::Whiteout => KindRef::Whiteout,
            Kind::Opaque => KindRef::Opaque,
        }
    }
}

impl<'a> From<&'a Entry> for EntryRef<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            path: &entry.path,
            kind: (&entry.kind).into(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            capability: entry.capability.as_deref(),
        }
    }
}
