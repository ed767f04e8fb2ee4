//! Opening what lies below a directory, and never anything else.
//!
//! In: a directory's descriptor and a relative path. Out: a descriptor. What always holds: no component of the path is
//! followed if it is a symbolic link, and `..` is refused, so whoever exchanges a folder for a link while a build runs
//! gets an error, not a file from outside.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Opens `path` below `root`; `""` is `root` itself.
pub(super) fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let name = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
            // Somebody renames around here, so the kernel cannot vouch for the path: once more.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Old kernels and old container runtimes' filters do not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_stepwise(root, path, flags),
            other => return Ok(other?),
        }
    }
}

/// The same without `openat2`: one component after the other.
fn open_stepwise(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (parents, name) = path.iter().rposition(|byte| *byte == b'/').map_or((&[] as &[u8], path), |slash| {
        let (parents, name) = path.split_at(slash);
        (parents, &name[1..])
    });
    let mut held: Option<OwnedFd> = None;
    for part in parents.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        if part == b".." {
            return Err(Errno::XDEV.into());
        }
        let at = held.as_ref().map_or(root, AsFd::as_fd);
        held = Some(rustix::fs::openat(at, OsStr::from_bytes(part), through, Mode::empty())?);
    }
    if name == b".." {
        return Err(Errno::XDEV.into());
    }
    let name = if name.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(name) };
    Ok(rustix::fs::openat(held.as_ref().map_or(root, AsFd::as_fd), name, flags, Mode::empty())?)
}

/// The metadata of `path` below `root`, of a link itself; `None` where nothing is, or where a parent is no directory.
pub(super) fn stat_below(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<Stat>> {
    match open_below(root, path, OFlags::PATH) {
        Ok(fd) => Ok(Some(rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_parents_lead_nowhere() {
        let outside = tempfile::tempdir().expect("a temporary folder");
        fs::write(outside.path().join("secret"), "s").expect("writes");
        let inside = outside.path().join("context");
        fs::create_dir_all(inside.join("dir")).expect("makes a folder");
        fs::write(inside.join("dir/file"), "data").expect("writes");
        symlink(outside.path(), inside.join("out")).expect("links");
        symlink("dir", inside.join("alias")).expect("links");
        symlink("dir/file", inside.join("last")).expect("links");
        let root = fs::File::open(&inside).expect("opens");
        type Open = fn(BorrowedFd<'_>, &[u8], OFlags) -> io::Result<OwnedFd>;
        for open in
            [open_below as Open, (|root, path, flags| open_stepwise(root, path, flags | OFlags::NOFOLLOW)) as Open]
        {
            let mut text = String::new();
            let file = open(root.as_fd(), b"dir/file", OFlags::RDONLY).expect("a plain path opens");
            fs::File::from(file).read_to_string(&mut text).expect("reads");
            assert_eq!(text, "data");
            for path in ["out/secret", "alias/file", "last", "../secret", "dir/../../secret", "..", "missing"] {
                assert!(open(root.as_fd(), path.as_bytes(), OFlags::RDONLY).is_err(), "{path}");
            }
            assert!(open(root.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
        }
        assert!(stat_below(root.as_fd(), b"out/secret").expect("no error").is_none());
        assert!(stat_below(root.as_fd(), b"out").expect("no error").is_some());
        assert!(stat_below(root.as_fd(), b"dir/file/x").expect("no error").is_none());
    }
}
