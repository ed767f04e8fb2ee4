//! Mounts: file systems, copies of mounted trees, overlays, and the change of root.
//!
//! In: paths, in a mount namespace that belongs to the caller. Out: mounts in that namespace. What always holds: every
//! error names the call and the path; nothing is ever mounted where another process of the machine could see it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

/// A call about mounts that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", path.display())]
pub struct MountError {
    /// What was tried: `mount overlay`, `pivot_root`.
    pub call: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl MountError {
    fn new(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self { call, path, source: errno.into() }
    }
}

/// Changes of mounts reach nobody else from now on, and those of others do not reach us.
pub fn make_private() -> Result<(), MountError> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(MountError::new("make private the mounts below", "/"))
}

/// Mounts a new file system of `kind` (a call for errors, its name for the kernel) at `target`.
pub fn file_system(
    (call, kind): (&'static str, &'static str),
    target: &Path,
    flags: MountFlags,
    options: &str,
) -> Result<(), MountError> {
    let data = c_string(options).map_err(MountError::new(call, target))?;
    rustix::mount::mount(kind, target, kind, flags, data.as_c_str()).map_err(MountError::new(call, target))
}

fn c_string(text: &str) -> Result<CString, rustix::io::Errno> {
    CString::new(text).map_err(|_| rustix::io::Errno::INVAL)
}

/// What may be done below a mount; a set that [`Tree::restrict`] adds to what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restrict(u64);

impl Restrict {
    /// Nothing can be written.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Read-only, and neither set-user-id nor devices nor programs have an effect.
    pub const DATA: Self =
        Self(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC);
    /// As [`Self::DATA`], but what can be written can be written.
    pub const INERT: Self = Self(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC);
    /// Set-user-id has no effect.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device nodes can be there, and not be opened.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Everything.
    pub const NOTHING: Self = Self(0);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A copy of a mounted tree (or of one file) that is not attached anywhere yet.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    of: PathBuf,
}

impl Tree {
    /// A new file system of `kind` (a call for errors, its name for the kernel), without options.
    pub fn of_file_system((call, kind): (&'static str, &'static str), restrict: Restrict) -> Result<Self, MountError> {
        let make = || {
            let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(&context)?;
            let attributes = MountAttrFlags::from_bits_retain(restrict.0 as _);
            rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        };
        Ok(Self { fd: make().map_err(MountError::new(call, ""))?, of: PathBuf::from(kind) })
    }

    /// Copies what is mounted at `path`, relative to `dir`; with all that is mounted below if `recursive`.
    pub fn copy(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<Self, MountError> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if path.as_os_str().is_empty() {
            flags |= OpenTreeFlags::AT_EMPTY_PATH;
        }
        let fd = rustix::mount::open_tree(dir, path, flags).map_err(MountError::new("open_tree", path))?;
        Ok(Self { fd, of: path.to_owned() })
    }

    /// The same, or `None` where nothing is there.
    pub fn copy_if_there(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<Option<Self>, MountError> {
        match Self::copy(dir, path, recursive) {
            Ok(tree) => Ok(Some(tree)),
            Err(error) if matches!(error.source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Restricts it, attached or not, and with `recursive` all that is mounted below in it.
    pub fn restrict(self, restrict: Restrict, recursive: bool) -> Result<Self, MountError> {
        let attributes = libc::mount_attr { attr_set: restrict.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the path is an empty string, the structure is of the size that is given; both live through the call.
        let code = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.fd.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if code == 0 {
            Ok(self)
        } else {
            Err(MountError { call: "mount_setattr", path: self.of, source: io::Error::last_os_error() })
        }
    }

    /// Mounts it at `target`, following links. Only once; but an attached tree can be copied again, by its descriptor.
    pub fn attach(&self, target: &Path) -> Result<(), MountError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        rustix::mount::move_mount(&self.fd, "", CWD, target, flags).map_err(MountError::new("move_mount", target))
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tree> for OwnedFd {
    fn from(tree: Tree) -> Self {
        tree.fd
    }
}

/// The folders of an overlay, opened: they may be covered by other mounts before it is mounted.
#[derive(Debug)]
pub struct Overlay {
    lower: Vec<OwnedFd>,
    /// The upper and the work folder; nothing can be written where there are none.
    writes: Option<(OwnedFd, OwnedFd)>,
}

impl Overlay {
    /// Opens the folders. A tree that is named twice in `lower` (topmost first) counts at its topmost place, which
    /// hides the others wholly; the kernel would refuse it.
    pub fn open(lower: &[PathBuf], upper: &Path, work: &Path) -> Result<Self, MountError> {
        Ok(Self { writes: Some((open_folder(upper)?, open_folder(work)?)), ..Self::open_read_only(lower)? })
    }

    /// The same without a folder for changes: the kernel wants at least two trees then.
    pub fn open_read_only(lower: &[PathBuf]) -> Result<Self, MountError> {
        let mut seen = std::collections::HashSet::new();
        let lower = lower.iter().filter(|path| seen.insert(path.as_path())).map(|path| open_folder(path));
        Ok(Self { lower: lower.collect::<Result<_, _>>()?, writes: None })
    }

    /// Whether there is nothing below the upper folder. Such an overlay does not mount: give it an empty folder.
    pub fn is_bottomless(&self) -> bool {
        self.lower.is_empty()
    }

    /// Puts a folder below all others.
    pub fn push_lower(&mut self, path: &Path) -> Result<(), MountError> {
        self.lower.push(open_folder(path)?);
        Ok(())
    }

    /// Mounts it at `target`; with `user_xattr` its marks are `user.overlay.*`, as only they can be set in a user
    /// namespace. Needs /proc; changes the working directory to `/`.
    pub fn mount(&self, target: &Path, flags: MountFlags, user_xattr: bool) -> Result<(), MountError> {
        const CALL: &str = "mount overlay";
        // The kernel takes one page of options. Named by path, a few dozen trees fill it; as names in /proc/self/fd,
        // nine hundred fit, more than overlay stacks at all, and no character of a path needs escaping.
        const FOLDER: &str = "/proc/self/fd";
        let lower: Vec<String> = self.lower.iter().map(|folder| folder.as_raw_fd().to_string()).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.writes {
            options.push_str(&format!(",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd()));
        }
        // What distributions set differently by default is set here, else layers would differ between machines.
        // volatile: unmounting would otherwise sync the whole file system below (and each fsync of the command wait for
        // the disk); the store syncs what it keeps.
        options.push_str(",index=off,metacopy=off,nfs_export=off,xino=off,redirect_dir=nofollow");
        if self.writes.is_some() {
            options.push_str(",volatile");
        }
        if user_xattr {
            options.push_str(",userxattr");
        }
        let data = c_string(&options).map_err(MountError::new(CALL, target))?;
        rustix::process::chdir(FOLDER).map_err(MountError::new("chdir", FOLDER))?;
        let mounted = rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str());
        rustix::process::chdir("/").map_err(MountError::new("chdir", "/"))?;
        mounted.map_err(MountError::new(CALL, target))
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, MountError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(MountError::new("open", path))
}

/// Takes away the mount at `path`.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(path, UnmountFlags::empty()).map_err(MountError::new("unmount", path))
}

/// Takes away the mount at `path`; what holds on to it keeps it.
pub fn unmount_later(path: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(MountError::new("unmount", path))
}

/// Makes the mount at `new` the root of this mount namespace and of this process, and unmounts all that is not in it.
pub fn pivot(new: &Path) -> Result<(), MountError> {
    let old = open_folder(Path::new("/"))?;
    rustix::process::chdir(new).map_err(MountError::new("chdir", new))?;
    // With both arguments the same, the old root ends up on top of the new one, and no folder is needed to put it.
    // It must go at once: as long as it is there, a `..` that leads to the root leads into it.
    rustix::process::pivot_root(".", ".").map_err(MountError::new("pivot_root", new))?;
    rustix::process::fchdir(&old).map_err(MountError::new("fchdir", "the old root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(MountError::new("unmount", "the old root"))?;
    rustix::process::chdir("/").map_err(MountError::new("chdir", "/"))
}
