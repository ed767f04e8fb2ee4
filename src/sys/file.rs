//! Open files: metadata, parts, and fast copies.
//!
//! In: open files. Out: metadata set, bytes copied inside the kernel where it can. What always holds: a copy is
//! complete or an error.

use super::root_dir::{Stat, owner, times};
use rustix::fd::AsFd;
use rustix::fs::{self, Mode};
use rustix::io::Errno;
use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Bytes that are copied at once where the kernel cannot.
const BUFFER: usize = 1 << 18;

/// What an open file is.
pub fn stat(file: impl AsFd) -> io::Result<Stat> {
    Ok(Stat::from(&fs::fstat(file)?))
}

/// Sets owner and group.
pub fn set_owner(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = owner(uid, gid)?;
    Ok(fs::fchown(file, Some(uid), Some(gid))?)
}

/// Sets the permission bits.
pub fn set_mode(file: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Sets access and modification time, in whole seconds.
pub fn set_time(file: impl AsFd, seconds: i64) -> io::Result<()> {
    Ok(fs::futimens(file, &times(seconds))?)
}

/// Copies `length` bytes of `from`, starting at `from_start`, to `to` at `to_start`.
pub fn copy_range(from: &File, from_start: u64, to: &File, to_start: u64, length: u64) -> io::Result<()> {
    let (mut from_at, mut to_at, mut left) = (from_start, to_start, length);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
        match fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), most) {
            // At the end of `from`; on some file systems in /proc and /sys also where there is more.
            Ok(0) => break,
            Ok(copied) => left -= copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::ISDIR) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if left == 0 {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match from.read_at(&mut buffer[..most], from_at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                to.write_all_at(&buffer[..read], to_at)?;
                from_at += read as u64;
                to_at += read as u64;
                left -= read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes that are collected until the kernel is asked to begin writing them to the disk.
const EARLY: u64 = 16 << 20;

/// A file that is on its way to the disk while it is written, so that whoever makes it durable in the end waits for the
/// last bytes alone.
#[derive(Debug)]
pub struct EarlyWriter {
    file: File,
    written: u64,
    begun: u64,
}

impl EarlyWriter {
    /// Writes to `file`, which is empty.
    pub fn new(file: File) -> Self {
        Self { file, written: 0, begun: 0 }
    }
}

impl io::Write for EarlyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.written += length as u64;
        if self.written - self.begun >= EARLY {
            begin_writing(&self.file, self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Asks the kernel to begin writing a part of `file` to the disk. Only a hint: what it says to that does not matter.
fn begin_writing(file: &File, start: u64, length: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers; the descriptor is open as long as `file` is borrowed.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), start as i64, length as i64, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// A part of an open file, read by offset: one open file serves several readers and threads. That the file ends before
/// the part is an error.
#[derive(Debug)]
pub struct Part<F> {
    file: F,
    at: u64,
    left: u64,
}

impl<F: Borrow<File>> Part<F> {
    /// `length` bytes of `file`, from `start` on.
    pub fn new(file: F, start: u64, length: u64) -> Self {
        Self { file, at: start, left: length }
    }

    /// How many bytes are left to read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The same part, from where it is now, on its own.
    pub fn again(&self) -> Part<&File> {
        Part { file: self.file.borrow(), at: self.at, left: self.left }
    }
}

impl<F: Borrow<File>> Read for Part<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.borrow().read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Owner and group that files have which this process makes.
pub fn owner_of_new_files() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// The bits that the umask of this process takes from the modes of new files, without changing it.
pub fn umask() -> io::Result<u32> {
    // umask() itself can only tell by setting, which would show in files that other threads make meanwhile.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|bits| u32::from_str_radix(bits.trim(), 8).ok()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn copies_ranges() {
        let temp = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..700_000u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(temp.path().join("from"), &bytes).unwrap();
        let from = File::open(temp.path().join("from")).unwrap();
        for (start, length) in [(0, 0), (0, 1), (511, 600_000), (0, 700_000), (699_999, 1)] {
            let path = temp.path().join("to");
            copy_range(&from, start, &File::create(&path).unwrap(), 0, length).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes[start as usize..][..length as usize], "{start} {length}");
        }
        let to = File::create(temp.path().join("to")).unwrap();
        assert_eq!(copy_range(&from, 699_999, &to, 0, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Where the kernel cannot copy by itself.
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(copy_range(&pipe, 0, &to, 0, 1).is_err(), "a pipe has no offsets");
    }

    #[test]
    fn sets_metadata() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let file = temp.as_file();
        set_mode(file, 0o4711).unwrap();
        set_time(file, 1_234_567_890).unwrap();
        let stat = stat(file).unwrap();
        assert_eq!((stat.mode, stat.mtime, stat.size), (0o4711, (1_234_567_890, 0), 0));
        assert!(set_owner(file, 0, u32::MAX).is_err());
    }

    #[test]
    fn knows_the_umask() {
        let temp = tempfile::tempdir().unwrap();
        let dir = super::super::root_dir::RootDir::open(temp.path()).unwrap();
        drop(dir.dir().make_file(b"f", 0o666).unwrap());
        let mode = std::fs::metadata(temp.path().join("f")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o666 & !umask().unwrap());
    }
}
