//! Extended attributes of open files, and of entries that cannot be opened.
//!
//! In: open files, or a directory and a name. Out: names and values. What always holds: no link is followed; what a
//! file system does not support reads as "none".

use super::root_dir::Dir;
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;
use std::io;

/// The attribute that holds file capabilities.
pub const CAPABILITY: &str = "security.capability";

/// The names of all attributes of an open file.
pub fn list(file: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    read(&mut names, |names| fs::flistxattr(&file, names)).map(|_| split(&names))
}

/// The value of an attribute of an open file, if it has it.
pub fn get(file: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = Vec::new();
    Ok(read(&mut value, |value| fs::fgetxattr(&file, name, value))?.then_some(value))
}

/// Sets an attribute of an open file.
pub fn set(file: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(file, name, value, XattrFlags::empty())?)
}

/// Removes an attribute of an open file, if it has it.
pub fn remove(file: impl AsFd, name: &[u8]) -> io::Result<()> {
    gone(fs::fremovexattr(file, name))
}

/// The names of all attributes of entry `name`, a link itself included.
pub fn list_at(dir: &Dir, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let path = path(dir, name);
    let mut names = Vec::new();
    read(&mut names, |names| fs::llistxattr(&path, names)).map(|_| split(&names))
}

/// The value of an attribute of entry `name`, if it has it, of a link itself too.
pub fn get_at(dir: &Dir, name: &[u8], attribute: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = path(dir, name);
    let mut value = Vec::new();
    Ok(read(&mut value, |value| fs::lgetxattr(&path, attribute, value))?.then_some(value))
}

/// Removes an attribute of entry `name`, if it has it, of a link itself too.
pub fn remove_at(dir: &Dir, name: &[u8], attribute: &[u8]) -> io::Result<()> {
    gone(fs::lremovexattr(path(dir, name), attribute))
}

/// There are no calls that take a directory and a name, but /proc leads to the directory.
fn path(dir: &Dir, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads into `buffer`, which grows as needed. False when there is nothing to read.
fn read(buffer: &mut Vec<u8>, mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<bool> {
    // Most files have none, and most that have some have little: the first try does.
    buffer.resize(256, 0);
    loop {
        match call(buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(true);
            }
            // 64 KiB is the most that Linux keeps in an attribute or in a list of them.
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(buffer.len() * 16, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {
                buffer.clear();
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn split(names: &[u8]) -> Vec<Vec<u8>> {
    names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::root_dir::RootDir;

    #[test]
    #[allow(clippy::print_stderr)]
    fn attributes() {
        let temp = tempfile::tempdir().unwrap();
        let root = RootDir::open(temp.path()).unwrap();
        let dir = root.dir();
        let file = dir.make_file(b"f", 0o600).unwrap();
        if let Err(error) = set(&file, b"user.a", b"1") {
            eprintln!("skipped: attributes: the file system for temporary files has none: {error}");
            return;
        }
        assert_eq!(get(&file, b"user.a").unwrap().as_deref(), Some(b"1" as &[u8]));
        assert_eq!(get(&file, b"user.b").unwrap(), None);
        let long = vec![b'x'; 1500];
        set(&file, b"user.b", &long).unwrap();
        assert_eq!(get(&file, b"user.b").unwrap(), Some(long));
        let names = list(&file).unwrap();
        assert!(names.contains(&b"user.a".to_vec()) && names.contains(&b"user.b".to_vec()), "{names:?}");
        assert_eq!(list_at(dir, b"f").unwrap(), names);
        remove(&file, b"user.a").unwrap();
        remove(&file, b"user.a").unwrap();
        remove_at(dir, b"f", b"user.b").unwrap();
        remove_at(dir, b"f", b"user.b").unwrap();
        assert!(!list(&file).unwrap().iter().any(|name| name.starts_with(b"user.")));
        dir.make_symlink(b"s", b"f").unwrap();
        set(&file, b"user.c", b"").unwrap();
        assert!(!list_at(dir, b"s").unwrap().contains(&b"user.c".to_vec()), "a link is not followed");
        assert_eq!(get(&file, b"user.c").unwrap().as_deref(), Some(b"" as &[u8]));
    }
}
