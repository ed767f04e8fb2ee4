//! Making a layer's tree: a directory in the form that overlay takes as a lower one.
//!
//! In: an index, the uncompressed tar, an empty directory. Out: the tree. What always holds: the tree is what the
//! entries say and nothing else: modes, owners, whole-second times, capabilities, hard links; whiteouts are character
//! devices 0/0, opaque directories carry overlay's attribute; no other attribute is set. Nothing is made through a link,
//! and nothing outside the directory.
//!
//! Directories are made first, with a mode of 0700, then everything else on all cores, then hard links; last come the
//! directories' owners, modes and times. A small file costs open, write, futimens and close, and chown or chmod where
//! opening did not give the owner and mode already. With [`Previous`], a file that did not change is one call: a hard link
//! into the tree of an earlier form of the layer.

mod node;

use self::node::{Maker, find};
use super::stack::{Found, LayerStack, needs_parents, on_parents};
use super::write::show;
use crate::layer::entry::Kind;
use crate::layer::entry_ref::KindRef;
use crate::layer::index::{IndexError, LayerIndex, RootMetadata};
use crate::sys::root_dir::{Dir, Place, RootDir};
use crate::sys::{file, xattr};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Entries that a thread takes at once.
const BATCH: usize = 128;

/// More threads than this do not help the file system.
const MAX_THREADS: usize = 8;

/// Where overlay keeps its own attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `trusted.overlay.*`: for root.
    Trusted,
    /// `user.overlay.*`: in user namespaces, mounted with `userxattr`.
    User,
}

impl Flavour {
    /// What the names of all its attributes begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// The attribute that marks a directory as opaque.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// What the machine allows in trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeOptions {
    /// Overlay's attributes.
    pub flavour: Flavour,
    /// Whether device nodes can be made.
    pub devices: bool,
}

/// An earlier form of the layer, whose files serve where they are the same.
#[derive(Debug, Clone, Copy)]
pub struct Previous<'a> {
    /// Its index.
    pub index: &'a LayerIndex,
    /// Its tree, on the same file system.
    pub tree: &'a Path,
}

/// Gives the data of a file of a layer below.
pub type LowerData<'a> = dyn FnMut(&Found) -> io::Result<Box<dyn Read + 'a>> + 'a;

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file could not be made.
    #[error("cannot {action} {} of a layer's tree", show(.path))]
    Make {
        /// Its path in the layer.
        path: Vec<u8>,
        /// What failed.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The tree's directory itself.
    #[error("cannot {action} {}", .path.display())]
    Tree {
        /// The directory.
        path: std::path::PathBuf,
        /// What failed.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The data could not be read.
    #[error("cannot read the data of {} from the layer", show(.path))]
    Data {
        /// Its path in the layer.
        path: Vec<u8>,
        /// What the system said.
        source: io::Error,
    },
    /// An owner that has no number here.
    #[error(
        "{} belongs to {uid}:{gid}, which this user namespace does not have (users {users}, groups {groups}): give it more \
         ids in /etc/subuid and /etc/subgid",
        show(.path)
    )]
    Owner {
        /// Its path in the layer.
        path: Vec<u8>,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// The owners that there are.
        users: String,
        /// The groups that there are.
        groups: String,
    },
    /// A hard link to nothing.
    #[error("{} is a hard link to {}, which is no file", show(.path), show(.target))]
    Link {
        /// Its path in the layer.
        path: Vec<u8>,
        /// Where it leads.
        target: Vec<u8>,
    },
    /// The layer that stands for itself has no room in an index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Makes the tree of a layer in the empty directory `tree`. Returns notes for the user: what was left out, and why.
pub fn apply(index: &LayerIndex, tar: &File, tree: &Path, options: &TreeOptions) -> Result<Vec<String>, ApplyError> {
    apply_like(index, tar, tree, options, None)
}

/// As [`apply`]; files that are the same in `previous` – bytes, mode, owner, time, capability – become hard links to those
/// there, as far as the file system has room for links.
pub fn apply_like(
    index: &LayerIndex,
    tar: &File,
    tree: &Path,
    options: &TreeOptions,
    previous: Option<&Previous<'_>>,
) -> Result<Vec<String>, ApplyError> {
    if needs_parents(index) {
        // At the bottom of a stack there is nothing that it could count on.
        let alone = on_parents(index, &LayerStack::default())?;
        return Task::new(&alone, tar, tree, options, previous)?.run(None);
    }
    Task::new(index, tar, tree, options, previous)?.run(None)
}

/// Makes the tree of a layer that counts on the layers below it (see [`needs_parents`]): it is good for a stack over
/// `below` alone. `data` gives the bytes of the lower files that it links to.
pub fn apply_on_parents(
    index: &LayerIndex,
    tar: &File,
    below: &LayerStack,
    data: &mut LowerData<'_>,
    tree: &Path,
    options: &TreeOptions,
) -> Result<Vec<String>, ApplyError> {
    let alone = on_parents(index, below)?;
    Task::new(&alone, tar, tree, options, None)?.run(Some(Lower { below, data, made: HashMap::new() }))
}

/// The layers below, for hard links to their files.
struct Lower<'a, 'd> {
    below: &'a LayerStack,
    data: &'a mut LowerData<'d>,
    /// The name in this tree that each file already has.
    made: HashMap<Vec<u8>, Vec<u8>>,
}

struct Task<'a> {
    index: &'a LayerIndex,
    maker: Maker<'a>,
    root: RootDir,
    tree: &'a Path,
    options: &'a TreeOptions,
}

impl<'a> Task<'a> {
    fn new(
        index: &'a LayerIndex,
        tar: &'a File,
        tree: &'a Path,
        options: &'a TreeOptions,
        previous: Option<&Previous<'a>>,
    ) -> Result<Self, ApplyError> {
        let failed = |action, source| ApplyError::Tree { path: tree.to_path_buf(), action, source };
        let root = RootDir::open(tree).map_err(|source| failed("open", source))?;
        // Entries would inherit these, and a tree is no more than its layer says.
        for list in ["system.posix_acl_default", "system.posix_acl_access"] {
            xattr::remove(root.dir(), list.as_bytes()).map_err(|source| failed("remove the access list of", source))?;
        }
        file::set_mode(root.dir(), 0o700).map_err(|source| failed("set the mode of", source))?;
        let maker = Maker::new(index, tar, previous);
        Ok(Self { index, maker, root, tree, options })
    }

    fn run(self, mut lower: Option<Lower<'_, '_>>) -> Result<Vec<String>, ApplyError> {
        let mut directories = Vec::new();
        let mut links = Vec::new();
        let mut others = Vec::new();
        let mut devices = Vec::new();
        for (position, entry) in self.index.entries().enumerate() {
            match entry.kind {
                KindRef::Directory => directories.push(position),
                KindRef::HardLink { .. } => links.push(position),
                KindRef::Opaque => {}
                KindRef::CharDevice { .. } | KindRef::BlockDevice { .. } if !self.options.devices => {
                    devices.push(position);
                }
                _ => others.push(position),
            }
        }
        let mut place = Place::new(&self.root);
        for position in &directories {
            let (dir, name) = find(&mut place, self.index.path(*position))?;
            // Only its owner's until all is in it, and without setgid, which would be inherited.
            dir.make_dir(name, 0o700).map_err(|source| self.failed(*position, "make directory", source))?;
        }
        self.make_all(&others)?;
        for position in links {
            self.link(position, lower.as_mut())?;
        }
        for position in directories.into_iter().rev() {
            self.finish_directory(position, &mut place)?;
        }
        self.finish_root()?;
        Ok(self.notes(&devices))
    }

    /// Makes entries that depend on nothing but their directories, on all cores.
    fn make_all(&self, positions: &[usize]) -> Result<(), ApplyError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let threads = threads.min(positions.len().div_ceil(BATCH));
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure: Mutex<Option<ApplyError>> = Mutex::new(None);
        let work = || {
            let mut worker = self.maker.worker(&self.root);
            while !stop.load(Ordering::Relaxed) {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                let Some(batch) = positions.get(start..(start + BATCH).min(positions.len())) else { break };
                for position in batch {
                    if let Err(error) = worker.make(*position) {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
                if batch.is_empty() {
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // This thread works too, so one that does not start only costs time.
                if std::thread::Builder::new().name("apply".to_owned()).spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let failure = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.map_or(Ok(()), Err)
    }

    /// Makes a hard link.
    fn link(&self, position: usize, lower: Option<&mut Lower<'_, '_>>) -> Result<(), ApplyError> {
        let entry = self.index.entry_ref(position);
        let KindRef::HardLink { target } = entry.kind else { return Ok(()) };
        let broken = || ApplyError::Link { path: entry.path.to_vec(), target: target.to_vec() };
        if let Some(file) = self.index.data_position(position) {
            if self.make_link(entry.path, target)? {
                return Ok(());
            }
            // The file has as many names as it can: this one gets a copy.
            return self.maker.worker(&self.root).copy(file, entry.path);
        }
        let lower = lower.ok_or_else(broken)?;
        let found = lower.below.lookup(target).ok_or_else(broken)?;
        if !matches!(found.entry.kind, Kind::File { .. }) {
            return Err(broken());
        }
        if let Some(made) = lower.made.get(target)
            && self.make_link(entry.path, made)?
        {
            return Ok(());
        }
        let unreadable = |source| ApplyError::Data { path: target.to_vec(), source };
        let mut data = (lower.data)(&found).map_err(unreadable)?;
        self.maker.worker(&self.root).make_from(&(&found.entry).into(), entry.path, &mut *data)?;
        lower.made.insert(target.to_vec(), entry.path.to_vec());
        Ok(())
    }

    /// Gives the file `old` another name; false when it can have no more.
    fn make_link(&self, path: &[u8], old: &[u8]) -> Result<bool, ApplyError> {
        let (mut new_place, mut old_place) = (Place::new(&self.root), Place::new(&self.root));
        let (dir, name) = find(&mut new_place, path)?;
        let (old_dir, old_name) = find(&mut old_place, old)?;
        match dir.make_link(name, old_dir, old_name) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::TooManyLinks => Ok(false),
            Err(source) => Err(ApplyError::Make { path: path.to_vec(), action: "make hard link", source }),
        }
    }

    fn finish_directory(&self, position: usize, place: &mut Place<'_>) -> Result<(), ApplyError> {
        let entry = self.index.entry_ref(position);
        let (dir, name) = find(place, entry.path)?;
        if self.index.place(entry.path).opaque {
            let opened = dir.open_dir(name).map_err(|source| self.failed(position, "open", source))?;
            self.set_opaque(&opened).map_err(|source| self.failed(position, "mark as opaque", source))?;
        }
        self.maker.finish(&entry, dir, name, 0o700)
    }

    fn set_opaque(&self, dir: &Dir) -> io::Result<()> {
        xattr::set(dir, self.options.flavour.opaque().as_bytes(), b"y")
    }

    /// Gives the tree's own directory the metadata of the image's root.
    fn finish_root(&self) -> Result<(), ApplyError> {
        let RootMetadata { mode, uid, gid, mtime } = self.index.root().unwrap_or_default();
        let dir = self.root.dir();
        let failed = |action| move |source| ApplyError::Tree { path: self.tree.to_path_buf(), action, source };
        if self.index.is_opaque_root() {
            self.set_opaque(dir).map_err(failed("mark as opaque"))?;
        }
        file::set_owner(dir, uid, gid).map_err(failed("set the owner of"))?;
        file::set_mode(dir, mode).map_err(failed("set the mode of"))?;
        file::set_time(dir, mtime).map_err(failed("set the time of"))
    }

    fn notes(&self, devices: &[usize]) -> Vec<String> {
        let Some(first) = devices.first() else { return Vec::new() };
        let first = show(self.index.path(*first));
        let what = match devices.len() {
            1 => format!("the device file {first} cannot be made here; RUN will not see it"),
            count => format!("{count} device files, {first} the first, cannot be made here; RUN will not see them"),
        };
        vec![format!("{what}, the image keeps what its layers hold")]
    }

    fn failed(&self, position: usize, action: &'static str, source: io::Error) -> ApplyError {
        ApplyError::Make { path: self.index.path(position).to_vec(), action, source }
    }
}

#[cfg(test)]
mod tests;
