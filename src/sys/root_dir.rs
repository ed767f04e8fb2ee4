//! Directories as the only way to files: nothing is opened by a path that could lead out of its root.
//!
//! In: a directory, and names or relative paths in it. Out: open files, metadata, new entries. What always holds: a path
//! from an image is resolved by the kernel below the root (`openat2`), through no symbolic link unless the method says
//! so; what takes a *name* never follows a link at that name.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Timespec, Timestamps, Uid,
};
use std::fs::File;
use std::io;
use std::path::Path;

/// A directory from which paths are opened.
#[derive(Debug)]
pub struct RootDir {
    dir: Dir,
}

/// An open directory, whose entries are named by single components.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// A directory that stays open while entries in it are worked on, one after the other.
#[derive(Debug)]
pub struct Place<'a> {
    root: &'a RootDir,
    path: Vec<u8>,
    dir: Option<Dir>,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its kind.
    pub kind: StatKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner, as this process sees it.
    pub uid: u32,
    /// Group, as this process sees it.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Modification time: whole seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// When anything of it changed, which nobody can set: whole seconds and nanoseconds.
    pub ctime: (i64, u32),
    /// Numbers of a device.
    pub device: (u32, u32),
    /// Which file system and which file: equal for hard links of one file.
    pub inode: (u64, u64),
    /// Number of names.
    pub links: u64,
}

/// Which file it is: told from one that got its inode when it was gone, where the file system keeps the time of birth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which file system and which file.
    pub inode: (u64, u64),
    /// When it was made: whole seconds and nanoseconds; zero where that is not kept.
    pub born: (i64, u32),
}

impl Identity {
    /// That of what is at `path`, which may be a link.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::statx(fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO | StatxFlags::BTIME)?))
    }
}

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        let inode = (fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino);
        Self { inode, born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) }
    }
}

/// The kinds of directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// None that Linux has today.
    Other,
}

/// Kinds of nodes that [`Dir::make_node`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

impl RootDir {
    /// Opens the directory at `path`; links in `path` itself are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: Dir { fd: fs::open(path, flags, Mode::empty())? } })
    }

    /// The root directory itself.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Opens the directory at the relative `path`, through no link; "" is the root itself.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        self.open_beneath(path, flags).map(|fd| Dir { fd })
    }

    /// Opens the file at the relative `path` for reading, through no link.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        // Non-blocking, or a named pipe put there would hold us up; files do not care.
        self.open_beneath(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).map(File::from)
    }

    /// Opens what the relative `path` leads to inside this root, as it would with this as `/`: links are followed, but not out
    /// of it. Only a handle (`O_PATH`): it can be examined and mounted, not read.
    pub fn open_inside(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        retry(|| fs::openat2(&self.dir.fd, or_dot(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve))
    }

    /// Opens for reading what the relative `path` leads to inside this root, as [`Self::open_inside`] does.
    pub fn read_inside(&self, path: &[u8]) -> io::Result<File> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        retry(|| fs::openat2(&self.dir.fd, or_dot(path), flags, Mode::empty(), resolve)).map(File::from)
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        retry(|| fs::openat2(&self.dir.fd, or_dot(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve))
    }
}

impl<'a> Place<'a> {
    /// Starts at `root`.
    pub fn new(root: &'a RootDir) -> Self {
        Self { root, path: Vec::new(), dir: None }
    }

    /// The directory and the name of the relative `path`, which is not empty; it is opened through no link.
    pub fn find<'p>(&mut self, path: &'p [u8]) -> io::Result<(&Dir, &'p [u8])> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = slash.map_or((b"" as &[u8], path), |slash| (&path[..slash], &path[slash + 1..]));
        if self.path != dir {
            self.dir = None;
            self.path = dir.to_vec();
        }
        let open = match &mut self.dir {
            _ if dir.is_empty() => self.root.dir(),
            Some(open) => open,
            none => none.insert(self.root.open_dir(dir)?),
        };
        Ok((open, name))
    }
}

impl Dir {
    /// Opens directory `name`.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: fs::openat(&self.fd, name, flags, Mode::empty())? })
    }

    /// Opens file `name` for reading.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(fs::openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    /// Makes file `name`, which must not exist, with the mode that `mode` and the umask give, open for writing.
    pub fn make_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    /// Makes directory `name`, which must not exist, with the mode that `mode` and the umask give.
    pub fn make_dir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))?)
    }

    /// Makes the symbolic link `name`, which must not exist.
    pub fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(fs::symlinkat(target, &self.fd, name)?)
    }

    /// Makes a device or pipe, which must not exist. The character device 0/0 is a whiteout, which needs no privilege.
    pub fn make_node(&self, name: &[u8], node: Node, mode: u32) -> io::Result<()> {
        let (kind, device) = match node {
            Node::CharDevice(major, minor) => (FileType::CharacterDevice, fs::makedev(major, minor)),
            Node::BlockDevice(major, minor) => (FileType::BlockDevice, fs::makedev(major, minor)),
            Node::Fifo => (FileType::Fifo, 0),
        };
        Ok(fs::mknodat(&self.fd, name, kind, Mode::from_raw_mode(mode), device)?)
    }

    /// Makes `name`, which must not exist, another name of `old_name` in `old_dir`.
    pub fn make_link(&self, name: &[u8], old_dir: &Self, old_name: &[u8]) -> io::Result<()> {
        Ok(fs::linkat(&old_dir.fd, old_name, &self.fd, name, AtFlags::empty())?)
    }

    /// Renames entry `name` to `new_name` in `new_dir`, replacing what is there.
    pub fn rename(&self, name: &[u8], new_dir: &Self, new_name: &[u8]) -> io::Result<()> {
        Ok(fs::renameat(&self.fd, name, &new_dir.fd, new_name)?)
    }

    /// Removes entry `name`, which is no directory.
    pub fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Removes the empty directory `name`.
    pub fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// What `name` is.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(Stat::from(&fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Which file `name` is.
    pub fn identity(&self, name: &[u8]) -> io::Result<Identity> {
        let flags = StatxFlags::INO | StatxFlags::BTIME;
        Ok(Identity::from(&fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, flags)?))
    }

    /// What this directory is.
    pub fn stat_self(&self) -> io::Result<Stat> {
        Ok(Stat::from(&fs::fstat(&self.fd)?))
    }

    /// The text of the symbolic link `name`.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// The names in this directory, in byte order, without `.` and `..`.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Sets owner and group of `name`.
    pub fn set_owner(&self, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        Ok(fs::chownat(&self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the permission bits of `name`, which is no symbolic link: one would be followed.
    pub fn set_mode(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    /// Sets access and modification time of `name`, in whole seconds.
    pub fn set_time(&self, name: &[u8], seconds: i64) -> io::Result<()> {
        Ok(fs::utimensat(&self.fd, name, &times(seconds), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<&fs::Stat> for Stat {
    // The widths of these fields differ between architectures.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from(stat: &fs::Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => StatKind::File,
            FileType::Directory => StatKind::Directory,
            FileType::Symlink => StatKind::Symlink,
            FileType::CharacterDevice => StatKind::CharDevice,
            FileType::BlockDevice => StatKind::BlockDevice,
            FileType::Fifo => StatKind::Fifo,
            FileType::Socket => StatKind::Socket,
            FileType::Unknown => StatKind::Other,
        };
        Self {
            kind,
            mode: stat.st_mode as u32 & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            device: (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
            inode: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
        }
    }
}

/// Ids as the kernel takes them; the largest means "leave it" there, so no file can have it.
pub(crate) fn owner(uid: u32, gid: u32) -> io::Result<(Uid, Gid)> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// Whole seconds as the kernel takes them, for access and modification.
pub(crate) fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// `openat2` gives up with EAGAIN when something was renamed meanwhile.
fn retry(mut open: impl FnMut() -> rustix::io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        match open() {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_below_the_root() {
        let temp = tempfile::tempdir().unwrap();
        let root_path = temp.path().join("root");
        std::fs::create_dir_all(root_path.join("a/b")).unwrap();
        std::fs::write(temp.path().join("secret"), "outside").unwrap();
        std::fs::write(root_path.join("a/file"), "inside").unwrap();
        symlink("..", root_path.join("up")).unwrap();
        symlink("../../secret", root_path.join("a/secret")).unwrap();
        symlink("/a/file", root_path.join("abs")).unwrap();
        symlink("a", root_path.join("dir")).unwrap();
        let root = RootDir::open(&root_path).unwrap();
        for path in ["up", "../secret", "up/secret", "a/secret", "dir/file", "abs", "/a/file", "a/b/../../../secret"] {
            assert!(root.open_file(path.as_bytes()).is_err(), "{path}");
            assert!(root.open_dir(path.as_bytes()).is_err(), "{path}");
        }
        let mut text = String::new();
        root.open_file(b"a/file").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(
            root.open_dir(b"a").unwrap().names().unwrap(),
            [b"b".to_vec(), b"file".to_vec(), b"secret".to_vec()]
        );
        assert_eq!(root.open_dir(b"").unwrap().stat_self().unwrap(), root.dir().stat_self().unwrap());
        // With links, but inside.
        let inode = |path: &[u8]| fs::fstat(root.open_inside(path).unwrap()).unwrap().st_ino;
        let file = root.open_dir(b"a").unwrap().stat(b"file").unwrap().inode.1;
        assert_eq!([inode(b"abs"), inode(b"dir/file"), inode(b"up/a/file")], [file; 3]);
        assert!(root.open_inside(b"a/secret").is_err());
    }

    #[test]
    fn makes_and_examines() {
        let temp = tempfile::tempdir().unwrap();
        let root = RootDir::open(temp.path()).unwrap();
        let dir = root.dir();
        dir.make_dir(b"d", 0o700).unwrap();
        drop(dir.make_file(b"f", 0o600).unwrap());
        dir.make_symlink(b"s", b"no\xffwhere").unwrap();
        dir.make_node(b"p", Node::Fifo, 0o600).unwrap();
        dir.make_link(b"f2", dir, b"f").unwrap();
        dir.set_mode(b"f", 0o640).unwrap();
        dir.set_time(b"f", -5).unwrap();
        dir.set_time(b"s", 77).unwrap();
        let (f, f2) = (dir.stat(b"f").unwrap(), dir.stat(b"f2").unwrap());
        assert_eq!((f.kind, f.mode, f.mtime, f.links, f.inode == f2.inode), (StatKind::File, 0o640, (-5, 0), 2, true));
        assert_eq!((dir.stat(b"s").unwrap().mtime, dir.read_link(b"s").unwrap()), ((77, 0), b"no\xffwhere".to_vec()));
        assert_eq!(dir.stat(b"p").unwrap().kind, StatKind::Fifo);
        assert!(dir.make_file(b"s", 0o600).is_err() && dir.make_dir(b"f", 0o700).is_err(), "nothing is replaced");
        assert!(dir.open_file(b"s").is_err() && dir.open_dir(b"s").is_err(), "no link is followed");
        assert!(dir.set_owner(b"f", u32::MAX, 0).is_err(), "not an id");
        dir.remove_dir(b"d").unwrap();
        dir.remove_file(b"f").unwrap();
        assert_eq!(dir.names().unwrap(), [b"f2".to_vec(), b"p".to_vec(), b"s".to_vec()]);
    }
}
