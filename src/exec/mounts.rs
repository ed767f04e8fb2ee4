//! The mounts that a RUN asks for.
//!
//! In: [`Mount`]s in the order of the sandbox's order; first the machine's files, later the image's root. Out: the mounts,
//! at their targets. What always holds: what comes from outside is taken before any path of the image is followed, and a
//! path in a stack or a cache is resolved inside of it; what cannot be written cannot be remounted either, since the
//! command has no right to mount.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::MountFlags;

use super::place::{self, Kind};
use super::root::{failed, write};
use super::wire::{Failure, Order, Stub};
use crate::plan::limits::Security;
use crate::sys::mount::{Overlay, Restrict, Tree, file_system, unmount_later};
use crate::sys::root_dir::RootDir;

/// Something that is mounted for one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where: an absolute path of the image.
    pub target: PathBuf,
    /// The command cannot write to it.
    pub read_only: bool,
    /// What.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A path in a stack of layer trees.
    Stack {
        /// The trees, topmost first.
        lower: Vec<PathBuf>,
        /// The path inside.
        path: String,
        /// An upper and a work folder for what is written, if anything can be.
        writes: Option<(PathBuf, PathBuf)>,
    },
    /// A path in a folder of this machine.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The path inside.
        path: String,
    },
    /// A new file system in memory.
    Memory {
        /// Its size in bytes.
        size: Option<u64>,
    },
    /// A file that is nowhere on a disk.
    File {
        /// What it holds.
        content: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket of this machine.
    Socket(PathBuf),
}

/// What stays in a mounted folder of this machine for a mount inside of it, until somebody removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftStub {
    /// Which mount it is in.
    pub mount: usize,
    /// Its path in the folder.
    pub path: PathBuf,
    /// A folder, not a file.
    pub folder: bool,
}

/// Removes stubs from the folder that they were made in, unless something was put in or took their place.
pub fn remove_stubs(folder: &Path, stubs: &[&LeftStub]) -> Result<(), super::ExecError> {
    let stubs: Vec<Stub> =
        stubs.iter().map(|stub| Stub { path: stub.path.clone(), folder: stub.folder, mount: None }).collect();
    place::remove(folder, &stubs)
}

/// A mount whose source is in hand.
enum Taken {
    Tree(Tree, Kind),
    Memory(Option<u64>),
}

/// Mounts that are attached nowhere yet.
pub(super) struct Mounts {
    taken: Vec<Taken>,
}

impl Mounts {
    /// Takes the sources. `at` is a folder in memory, open as `folder`, that nothing of the image reaches; it has an empty
    /// folder `empty`. What all of them are restricted by: `nodes`.
    pub(super) fn collect(at: &Path, folder: BorrowedFd<'_>, order: &Order, nodes: Restrict) -> Result<Self, Failure> {
        let mounts = &order.rootfs.mounts;
        let mut taken = Vec::with_capacity(mounts.len());
        if !mounts.is_empty() {
            rustix::fs::mkdirat(folder, "mounts", Mode::from_raw_mode(0o700))
                .map_err(|errno| failed("mkdir", "mounts")(errno.into()))?;
        }
        for (number, mount) in mounts.iter().enumerate() {
            let place = at.join("mounts").join(number.to_string());
            // What lies in a read-only mount needs a place there first.
            let restrict = |tree: Tree| {
                if mount.read_only && !holds_another(mounts, number) {
                    tree.restrict(nodes.and(Restrict::READ_ONLY), false)
                } else {
                    tree.restrict(nodes, false)
                }
            };
            taken.push(match &mount.source {
                MountSource::Memory { size } => Taken::Memory(*size),
                MountSource::Stack { lower, path, writes } => {
                    std::fs::create_dir(&place).map_err(failed("mkdir", &place))?;
                    let mut overlay = match writes {
                        Some((upper, work)) => Overlay::open(lower, upper, work)?,
                        None => Overlay::open_read_only(lower)?,
                    };
                    // A view of one tree alone is no overlay to the kernel.
                    overlay.push_lower(&at.join("empty"))?;
                    if lower.is_empty() && writes.is_none() {
                        let second = at.join("mounts").join(format!("{number}-empty"));
                        std::fs::create_dir(&second).map_err(failed("mkdir", &second))?;
                        overlay.push_lower(&second)?;
                    }
                    overlay.mount(&place, MountFlags::empty(), order.user_xattr)?;
                    let (tree, kind) = inside(&place, path)?;
                    unmount_later(&place)?;
                    Taken::Tree(restrict(tree)?, kind)
                }
                MountSource::Folder { folder, path } => {
                    let (tree, kind) = inside(folder, path)?;
                    Taken::Tree(restrict(tree)?, kind)
                }
                MountSource::File { content, mode, uid, gid } => {
                    write(&place, *mode, content)?;
                    let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                    rustix::fs::chownat(CWD, &place, owner.0, owner.1, rustix::fs::AtFlags::empty())
                        .map_err(|errno| failed("give a file of a mount to its user", "")(errno.into()))?;
                    let tree = Tree::copy(CWD, &place, false)?.restrict(Restrict::DATA, false)?;
                    Taken::Tree(tree, Kind::File)
                }
                MountSource::Socket(path) => Taken::Tree(Tree::copy(CWD, path, false)?, Kind::File),
            });
        }
        Ok(Self { taken })
    }

    /// Mounts them, now that the image's file system is the root. `announce` hears of places that have to be made.
    pub(super) fn attach(self, order: &Order, announce: &mut dyn FnMut(Stub) -> io::Result<()>) -> Result<(), Failure> {
        let mounts = &order.rootfs.mounts;
        let mut attached: Vec<PathBuf> = Vec::with_capacity(mounts.len());
        let mut late = Vec::new();
        for (number, (mount, taken)) in mounts.iter().zip(self.taken).enumerate() {
            let target = mount.target.as_path();
            let kind = match &taken {
                Taken::Tree(_, kind) => *kind,
                Taken::Memory(_) => Kind::Folder,
            };
            let mut announce = |stub: Stub| match attached.iter().rposition(|under| {
                // A mount is named by its real path, as the stub is.
                under.strip_prefix("/").is_ok_and(|under| stub.path.starts_with(under))
            }) {
                None => announce(stub),
                Some(under) => match (&mounts[under].source, attached[under].strip_prefix("/")) {
                    (MountSource::Folder { path, .. }, Ok(top)) => {
                        let below = stub.path.strip_prefix(top).unwrap_or(&stub.path);
                        let path = Path::new(path.trim_start_matches('/')).join(below);
                        announce(Stub { path, mount: Some(under), ..stub })
                    }
                    // It goes with the mount.
                    _ => Ok(()),
                },
            };
            place::make(target, kind, &mut announce)?;
            let real = place::real_path(target)?;
            match taken {
                Taken::Tree(tree, _) => {
                    tree.attach(target)?;
                    if mount.read_only && holds_another(mounts, number) {
                        late.push(tree);
                    }
                }
                Taken::Memory(size) => {
                    let options = size.map_or_else(String::new, |size| format!("size={size}"));
                    let mut flags = MountFlags::NOSUID;
                    if order.process.security == Security::Sandbox {
                        flags |= MountFlags::NODEV;
                    }
                    if mount.read_only && !holds_another(mounts, number) {
                        flags |= MountFlags::RDONLY;
                    }
                    file_system(("mount tmpfs", "tmpfs"), target, flags, &options)?;
                }
            }
            attached.push(real);
        }
        for tree in late {
            tree.restrict(Restrict::READ_ONLY, false)?;
        }
        Ok(())
    }
}

/// Whether a later mount lies in this one.
pub(crate) fn holds_another(mounts: &[Mount], number: usize) -> bool {
    mounts[number + 1..].iter().any(|other| other.target.starts_with(&mounts[number].target))
}

/// What `path` leads to inside of `folder`, and what it is.
fn inside(folder: &Path, path: &str) -> Result<(Tree, Kind), Failure> {
    let root = RootDir::open(folder).map_err(failed("open", folder))?;
    let found = root
        .open_inside(path.trim_start_matches('/').as_bytes())
        .map_err(failed("find what is to be mounted:", path))?;
    let stat = rustix::fs::fstat(&found).map_err(|errno| failed("stat", path)(errno.into()))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Folder,
        _ => Kind::File,
    };
    Ok((Tree::copy(found.as_fd(), Path::new(""), false)?, kind))
}
