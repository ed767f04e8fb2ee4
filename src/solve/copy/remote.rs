//! Sources of ADD that were fetched.
//!
//! In: a blob of the store, or the folder of a commit. Out: [`Brought`], which [`super::select()`] takes in place of a
//! path. What always holds: what is named and not here has a digest that says all of its content; the digest of every
//! file that is here is known; files belong to 0:0.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::source::{Node, NodeKind};
use super::{CopyError, FileData};
use crate::context::ignore::Patterns;
use crate::context::local::{ContextKind, LocalContext};
use crate::context::stat_cache::StatCache;
use crate::digest::Digest;

/// What a source of ADD that is fetched has come to.
#[derive(Debug, Clone)]
pub enum Brought {
    /// It is not here, and this digest stands for its content.
    Named(Digest),
    /// A file.
    File {
        /// Where it is: a blob of the store.
        path: PathBuf,
        /// How many bytes it has.
        size: u64,
        /// Their digest.
        sha256: Digest,
        /// Its time.
        mtime: i64,
    },
    /// A folder of files.
    Tree(Checkout),
}

/// The files of a commit.
#[derive(Debug, Clone)]
pub struct Checkout {
    pub(super) nodes: Vec<Node>,
}

impl Checkout {
    /// Reads the files of `folder`, which nobody else writes to. All have the time `mtime`.
    pub fn read(folder: &Path, mtime: i64) -> Result<Self, CopyError> {
        let context = LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), UNIX_EPOCH)?;
        let walk = context.walk(b"")?;
        let files: Vec<_> = walk.iter().filter(|entry| entry.kind == ContextKind::File).collect();
        let mut digests = context.hash(&files)?.into_iter();
        let nodes = (0..walk.len()).map(|number| {
            let entry = walk.file(number);
            let mut node = Node { mtime, ..Node::of_context(&entry) };
            if let NodeKind::File { sha256, .. } = &mut node.kind
                && entry.kind == ContextKind::File
            {
                *sha256 = digests.next();
                node.data = FileData::Fetched(folder.join(std::ffi::OsStr::from_bytes(&entry.path)));
            }
            node
        });
        Ok(Self { nodes: nodes.collect() })
    }
}

/// The file as a node: only its owner reads it, unless `--chmod` says otherwise.
pub(super) fn file(path: &Path, size: u64, sha256: Digest, mtime: i64) -> Node {
    Node {
        path: Vec::new(),
        kind: NodeKind::File { size, sha256: Some(sha256) },
        mode: 0o600,
        owner: None,
        mtime,
        capability: None,
        inode: None,
        data: FileData::Fetched(path.to_owned()),
    }
}
