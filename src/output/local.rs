//! `type=local`: the merged root file system as files of a folder.
//!
//! In: a root file system, a folder. Out: the files, owned by whoever runs rbuild, with the image's modes, links and
//! times. What always holds: nothing outside the folder is touched, whatever links the image or the folder holds (each
//! component is opened below the one before, links not followed); files that the image does not have stay; a folder
//! with something in it is never removed to make room for a file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::OutputError;
use super::rootfs::{Data, RootFs};
use crate::layer::entry::{file_name, parent};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::stack::Visible;

/// Writes the files. Notes on what was left out.
pub(super) fn write(rootfs: &RootFs<'_>, dest: &Path, epoch: Option<i64>) -> Result<Vec<String>, OutputError> {
    fs::create_dir_all(dest).map_err(OutputError::io("make", dest))?;
    let root = File::open(dest).map_err(OutputError::io("open", dest))?;
    if !root.metadata().map_err(OutputError::io("open", dest))?.is_dir() {
        return Err(OutputError::NoFolder { path: dest.to_owned() });
    }
    let mut writer = Writer { dest, root: root.into(), open: Vec::new(), epoch, devices: 0 };
    let mut data = rootfs.data();
    for item in rootfs.walk() {
        writer.item(&item, &mut data)?;
    }
    writer.close_down_to(b"")?;
    Ok(match writer.devices {
        0 => Vec::new(),
        1 => vec!["one device node was left out: only root can make them".to_owned()],
        devices => vec![format!("{devices} device nodes were left out: only root can make them")],
    })
}

struct Writer<'a> {
    dest: &'a Path,
    root: OwnedFd,
    /// The folders on the way to the current entry. Their modes and times come last: a folder without write
    /// permission takes no files, and each file would change its time.
    open: Vec<Open<'a>>,
    epoch: Option<i64>,
    devices: usize,
}

struct Open<'a> {
    entry: EntryRef<'a>,
    folder: OwnedFd,
}

impl<'a> Writer<'a> {
    fn item(&mut self, item: &Visible<'a>, data: &mut Data<'_>) -> Result<(), OutputError> {
        let entry = item.entry;
        self.close_down_to(parent(entry.path).unwrap_or_default())?;
        let folder = self.open.last().map_or(self.root.as_fd(), |open| open.folder.as_fd());
        let name = OsStr::from_bytes(file_name(entry.path));
        let failed = |action| self.failed(action, entry.path);
        let mode = Mode::from_raw_mode(entry.mode & 0o7777);
        match entry.kind {
            KindRef::Directory => {
                let folder = make_folder(folder, name).map_err(|errno| self.occupied("make", entry.path, errno))?;
                self.open.push(Open { entry, folder });
            }
            KindRef::File { .. } => self.file(folder, name, item, data)?,
            KindRef::HardLink { target } => {
                let linked = self.with_parent_of(target, |from, target| {
                    replace(folder, name, || rustix::fs::linkat(from, target, folder, name, AtFlags::empty()))
                });
                match linked {
                    Ok(()) => {}
                    // Too many links, or a file system without.
                    Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => self.file(folder, name, item, data)?,
                    Err(errno) => return Err(self.occupied("link", entry.path, errno)),
                }
            }
            KindRef::Symlink { target } => {
                replace(folder, name, || rustix::fs::symlinkat(target, folder, name))
                    .map_err(|errno| self.occupied("make the link", entry.path, errno))?;
                rustix::fs::utimensat(folder, name, &self.times(&entry), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the time of"))?;
            }
            KindRef::Fifo | KindRef::CharDevice { .. } | KindRef::BlockDevice { .. } => {
                let (kind, device) = match entry.kind {
                    KindRef::CharDevice { major, minor } => {
                        (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                    }
                    KindRef::BlockDevice { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
                    _ => (FileType::Fifo, 0),
                };
                match replace(folder, name, || rustix::fs::mknodat(folder, name, kind, mode, device)) {
                    Ok(()) => {}
                    Err(Errno::PERM) if kind != FileType::Fifo => {
                        self.devices += 1;
                        return Ok(());
                    }
                    Err(errno) => return Err(self.occupied("make", entry.path, errno)),
                }
                // The umask has cut the mode. What was made a moment ago is no link.
                rustix::fs::chmodat(folder, name, mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
                rustix::fs::utimensat(folder, name, &self.times(&entry), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the time of"))?;
            }
            // A merged view has neither.
            KindRef::Whiteout | KindRef::Opaque => {}
        }
        Ok(())
    }

    fn file(
        &self,
        folder: BorrowedFd<'_>,
        name: &OsStr,
        item: &Visible<'a>,
        data: &mut Data<'_>,
    ) -> Result<(), OutputError> {
        let (entry, Some((_, _, size))) = (item.entry, item.data) else { return Ok(()) };
        let failed = |action| self.failed(action, entry.path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = replace(folder, name, || rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR));
        let mut file = File::from(made.map_err(|errno| self.occupied("make", entry.path, errno))?);
        if size > 0 {
            let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            data.copy(item, &mut file, |error| failed("write")(errno(error)))?;
        }
        if let Some(capability) = entry.capability {
            // Only root may give capabilities; for anyone else the file is there without, as with cp.
            match rustix::fs::fsetxattr(&file, c"security.capability", capability, XattrFlags::empty()) {
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(failed("set the capability of")(errno)),
            }
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o7777)).map_err(failed("set the mode of"))?;
        rustix::fs::futimens(&file, &self.times(&entry)).map_err(failed("set the time of"))
    }

    /// Ends all open folders that `path` is not in.
    fn close_down_to(&mut self, path: &[u8]) -> Result<(), OutputError> {
        while let Some(open) = self.open.pop_if(|open| open.entry.path != path) {
            let Open { entry, folder } = open;
            let failed = |action| self.failed(action, entry.path);
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(entry.mode & 0o7777)).map_err(failed("set the mode of"))?;
            rustix::fs::futimens(&folder, &self.times(&entry)).map_err(failed("set the time of"))?;
        }
        Ok(())
    }

    /// Calls `with` on the folder of `path`, which was written before, and its last component.
    fn with_parent_of<T>(
        &self,
        path: &[u8],
        with: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let name = OsStr::from_bytes(file_name(path));
        let Some(folder) = parent(path) else { return with(self.root.as_fd(), name) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = rustix::fs::openat2(&self.root, OsStr::from_bytes(folder), flags, Mode::empty(), resolve)?;
        with(folder.as_fd(), name)
    }

    fn times(&self, entry: &EntryRef<'_>) -> Timestamps {
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: self.epoch.unwrap_or(entry.mtime), tv_nsec: 0 },
        }
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.dest.join(OsStr::from_bytes(path))
    }

    fn failed(&self, action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> OutputError + use<> {
        let path = self.path(path);
        move |errno| OutputError::Io { action, path, source: errno.into() }
    }

    fn occupied(&self, action: &'static str, path: &[u8], errno: Errno) -> OutputError {
        match errno {
            Errno::NOTEMPTY => OutputError::Occupied { path: self.path(path) },
            errno => self.failed(action, path)(errno),
        }
    }
}

/// Makes something, in the place of what is there.
fn replace<T>(folder: BorrowedFd<'_>, name: &OsStr, mut make: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?,
                other => other?,
            }
            make()
        }
        other => other,
    }
}

/// Makes a folder, or takes the one that is there, and opens it.
fn make_folder(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(folder, name, flags, Mode::empty());
    match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
        Ok(()) => return open(),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    match open() {
        // A link or a file: the image's folder takes its place.
        Err(Errno::LOOP | Errno::NOTDIR) => {
            rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
            rustix::fs::mkdirat(folder, name, Mode::RWXU)?;
            open()
        }
        opened => {
            // A folder of an earlier export may refuse files to its own owner.
            let path = rustix::fs::openat(folder, name, flags | OFlags::PATH, Mode::empty())?;
            let stat = rustix::fs::fstat(&path)?;
            if stat.st_mode & 0o700 != 0o700 {
                let link = format!("/proc/self/fd/{}", path.as_raw_fd());
                rustix::fs::chmod(&link, Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700))?;
                return open();
            }
            opened
        }
    }
}
