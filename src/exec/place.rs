//! Places for mounts: files and folders that a root file system may lack, made for a while.
//!
//! In: on the inside, a path of the sandbox where something shall be mounted; on the outside, the list of what was made
//! for that. Out: the place, and later the upper folder without it. What always holds: a layer never shows that the
//! sandbox was there. A place is removed only while it is as empty as it was made, its parents get back the very
//! mtime they had, and no link that the command may have left is followed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::root::failed;
use super::wire::{Failure, Stub};
use super::{ExecError, ProcessSpec};

/// What has to be at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
}

/// Sees to it that `path` (absolute, links are followed) can be mounted on; this process is in the sandbox's root.
/// `announce` is told of everything right before it is made.
pub(super) fn make(path: &Path, kind: Kind, announce: &mut dyn FnMut(Stub) -> io::Result<()>) -> Result<(), Failure> {
    let missing = missing(path, kind).map_err(no_place)?;
    let last = missing.len().saturating_sub(1);
    for (index, path) in missing.into_iter().enumerate() {
        let kind = if index == last { kind } else { Kind::Folder };
        make_one(&path, kind, announce).map_err(|error| no_place((path, error)))?;
    }
    Ok(())
}

fn no_place((path, error): (PathBuf, io::Error)) -> Failure {
    failed("make a place to mount on", path)(error)
}

/// Where `path` leads: all links resolved, what is missing kept as it is written.
pub(super) fn real_path(path: &Path) -> Result<PathBuf, Failure> {
    resolve(path).map_err(no_place)
}

/// Sees to it that a command's working directory is there. What is missing belongs to the command's user and stays in the
/// layer, as BuildKit has it.
pub(super) fn make_working_dir(process: &ProcessSpec) -> Result<(), Failure> {
    let refused = |(path, error)| failed("make the working directory", path)(error);
    let owner = (Some(Uid::from_raw(process.uid)), Some(Gid::from_raw(process.gid)));
    for path in missing(Path::new(&process.cwd), Kind::Folder).map_err(refused)? {
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
            .and_then(|()| rustix::fs::chownat(CWD, &path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(|errno| refused((path, errno.into())))?;
    }
    Ok(())
}

/// What is not there of a path: the topmost folder first, the path itself last, links resolved. An error where something
/// else is in the way.
fn missing(path: &Path, kind: Kind) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    match rustix::fs::stat(path) {
        Ok(stat) => return fits(&stat, kind).map(|()| Vec::new()).map_err(|errno| (path.to_owned(), errno.into())),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err((path.to_owned(), errno.into())),
    }
    let real = resolve(path)?;
    let mut missing = Vec::new();
    for ancestor in real.ancestors() {
        let kind = if ancestor == real { kind } else { Kind::Folder };
        match rustix::fs::lstat(ancestor) {
            Ok(stat) => {
                fits(&stat, kind).map_err(|errno| (ancestor.to_owned(), errno.into()))?;
                break;
            }
            Err(Errno::NOENT) => missing.push(ancestor.to_owned()),
            Err(errno) => return Err((ancestor.to_owned(), errno.into())),
        }
    }
    missing.reverse();
    Ok(missing)
}

fn fits(stat: &Stat, kind: Kind) -> Result<(), Errno> {
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (kind, folder) {
        (Kind::File, true) => Err(Errno::ISDIR),
        (Kind::Folder, false) => Err(Errno::NOTDIR),
        _ => Ok(()),
    }
}

fn make_one(path: &Path, kind: Kind, announce: &mut dyn FnMut(Stub) -> io::Result<()>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let before = rustix::fs::stat(parent)?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    announce(Stub { path: inside.to_owned(), folder: kind == Kind::Folder, mount: None })?;
    match kind {
        Kind::Folder => rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    Ok(rustix::fs::utimensat(CWD, parent, &only_mtime(&before), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The mtime of `stat`, to be set without touching the atime.
pub(super) fn only_mtime(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn resolve(path: &Path) -> Result<PathBuf, (PathBuf, io::Error)> {
    const MOST_LINKS: usize = 40;
    let mut real = PathBuf::from("/");
    let mut links = 0;
    let mut todo: VecDeque<OsString> = names(path).collect();
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        match rustix::fs::readlink(&next, Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err((path.to_owned(), Errno::LOOP.into()));
                }
                let target = PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                for name in names(&target).rev().collect::<Vec<_>>() {
                    todo.push_front(name);
                }
            }
            // No link, or nothing there at all.
            Err(Errno::INVAL | Errno::NOENT) => real = next,
            Err(errno) => return Err((next, errno.into())),
        }
    }
    Ok(real)
}

/// The names in a path: `..` is one, `.` and `/` are none.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Removes from the upper folder what was made for mounts and is as it was made. The overlay is no longer mounted.
pub(super) fn remove(upper: &Path, stubs: &[Stub]) -> Result<(), ExecError> {
    if stubs.is_empty() {
        return Ok(());
    }
    let open_root = || {
        rustix::fs::open(upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| ExecError::Place { path: upper.to_owned(), source: errno.into() })
    };
    let root = open_root()?;
    for stub in stubs.iter().rev() {
        remove_one(&root, stub)
            .map_err(|errno| ExecError::Place { path: upper.join(&stub.path), source: errno.into() })?;
    }
    Ok(())
}

/// Empties the work folder: what overlay leaves there keeps it from being mounted with the folder again.
pub(super) fn clear(work: &Path) -> Result<(), ExecError> {
    let path = work.join("work");
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ExecError::Place { path, source }),
        _ => Ok(()),
    }
}

fn remove_one(root: &OwnedFd, stub: &Stub) -> Result<(), Errno> {
    let Some(name) = stub.path.file_name() else { return Ok(()) };
    let parent = match stub.path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The command could have moved folders and left links in their place.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let before = rustix::fs::fstat(&parent)?;
    let removed = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if stub.folder => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
        FileType::RegularFile if !stub.folder && stat.st_size == 0 && stat.st_nlink == 1 => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
        }
        // Something else took its place: the command's.
        _ => return Ok(()),
    };
    match removed {
        Ok(()) => rustix::fs::futimens(&parent, &only_mtime(&before)),
        // The command put something in.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::time::{Duration, SystemTime};

    fn stub(path: &str, folder: bool) -> Stub {
        Stub { path: path.into(), folder, mount: None }
    }

    #[test]
    fn only_what_is_untouched_is_removed_and_nothing_else_changes() {
        let temp = tempfile::tempdir().expect("a folder");
        let upper = temp.path().join("upper");
        let outside = temp.path().join("outside");
        for folder in ["etc", "proc", "dev/inner", "run/a/b"] {
            fs::create_dir_all(upper.join(folder)).expect("a folder");
        }
        fs::create_dir(&outside).expect("a folder");
        fs::write(outside.join("hosts"), "").expect("a file");
        fs::write(upper.join("etc/hosts"), "").expect("a file");
        fs::write(upper.join("etc/hostname"), "mine").expect("a file");
        symlink("hosts", upper.join("etc/resolv.conf")).expect("a link");
        symlink(&outside, upper.join("moved")).expect("a link");
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 123_456_789);
        for folder in ["etc", "."] {
            fs::File::open(upper.join(folder)).and_then(|file| file.set_modified(then)).expect("mtime");
        }
        let stubs = [
            stub("etc", true),
            stub("etc/hosts", false),
            stub("etc/hostname", false),
            stub("etc/resolv.conf", false),
            stub("moved/hosts", false),
            stub("proc", true),
            stub("dev", true),
            stub("run", true),
            stub("run/a", true),
            stub("run/a/b", true),
            stub("gone/x", false),
        ];
        remove(&upper, &stubs).expect("removed");
        let left = |path: &str| fs::symlink_metadata(upper.join(path)).is_ok();
        assert!(!left("etc/hosts") && !left("proc") && !left("run"));
        assert!(left("etc/hostname") && left("etc/resolv.conf") && left("dev/inner") && left("moved"));
        assert!(outside.join("hosts").exists(), "a link was followed");
        for folder in ["etc", "."] {
            let meta = fs::metadata(upper.join(folder)).expect("there");
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000, 123_456_789), "{folder}");
        }
    }

    #[test]
    fn places_are_made_behind_links_with_their_parents() {
        let temp = tempfile::tempdir().expect("a folder");
        // The temporary folder may itself be reached by a link.
        let base = fs::canonicalize(temp.path()).expect("real");
        symlink("a/b", base.join("link")).expect("a link");
        symlink("loop", base.join("loop")).expect("a link");
        let mut made = Vec::new();
        let mut announce = |stub: Stub| {
            made.push((stub.path, stub.folder));
            Ok(())
        };
        make(&base.join("link/../c"), Kind::File, &mut announce).expect("made");
        make(&base.join("link"), Kind::Folder, &mut announce).expect("made");
        make(&base.join("link"), Kind::Folder, &mut announce).expect("is there");
        assert!(make(&base.join("link"), Kind::File, &mut announce).is_err());
        assert!(make(&base.join("loop/x"), Kind::File, &mut announce).is_err());
        let inside = base.strip_prefix("/").expect("absolute");
        assert_eq!(
            made,
            [("a", true), ("a/c", false), ("a/b", true)].map(|(path, folder)| (inside.join(path), folder))
        );
    }
}
