//! Archives as they are written: one file that appears whole, and the tar of documents and blobs in it.
//!
//! In: a destination, then members in order. Out: a tar whose bytes are a function of the members and one time. What
//! always holds: a regular file at the destination is replaced by rename when all is written, and is as it was if
//! anything fails; until then the new one has no name, where the file system can do that, so that SIGKILL leaves nothing;
//! pipes, terminals and devices are written to as they are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use tar::{EntryType, Header};
use tempfile::NamedTempFile;

use super::{Destination, OutputError};

const BLOCK: u64 = 512;

/// How the names of unfinished files begin.
pub(super) const UNFINISHED: &str = ".rbuild-";

/// The file that an archive goes to.
#[derive(Debug)]
pub(super) struct Sink {
    /// As messages name it.
    place: String,
    out: Out,
}

#[derive(Debug)]
enum Out {
    /// Written in place: standard output, a pipe, a device.
    Direct(File),
    /// Without a name, until it is complete.
    Unnamed { file: File, path: PathBuf },
    /// Beside its destination, until it is complete.
    New { file: NamedTempFile, path: PathBuf },
}

impl Sink {
    /// Opens the destination.
    pub(super) fn open(dest: &Destination) -> Result<Self, OutputError> {
        let path = match dest {
            Destination::Stdout => {
                let place = "standard output".to_owned();
                let out =
                    io::stdout().as_fd().try_clone_to_owned().map_err(OutputError::io("open", Path::new(&place)))?;
                return Ok(Self { place, out: Out::Direct(File::from(out)) });
            }
            Destination::Stream(stream) => {
                let file = stream.file.try_clone().map_err(OutputError::io("open", Path::new(&stream.name)))?;
                return Ok(Self { place: stream.name.clone(), out: Out::Direct(file) });
            }
            Destination::Path(path) => path,
        };
        let place = path.display().to_string();
        // What a link leads to is replaced, not the link.
        let path = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.clone(),
            Err(error) => return Err(OutputError::io("open", path)(error)),
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Err(OutputError::IsFolder { path }),
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(&path).map_err(OutputError::io("open", &path))?;
                return Ok(Self { place, out: Out::Direct(file) });
            }
            _ => {}
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // 0666 less the umask, as for any file that a program makes.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
            return Ok(Self { place, out: Out::Unnamed { file: File::from(file), path } });
        }
        let file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(OutputError::io("make a file in", folder))?;
        Ok(Self { place, out: Out::New { file, path } })
    }

    fn file(&self) -> &File {
        match &self.out {
            Out::Direct(file) | Out::Unnamed { file, .. } => file,
            Out::New { file, .. } => file.as_file(),
        }
    }

    /// Lets the file appear.
    pub(super) fn finish(self) -> Result<(), OutputError> {
        match self.out {
            Out::Direct(_) => Ok(()),
            Out::Unnamed { file, path } => {
                let failed = |error| OutputError::io("rename into place", &path)(error);
                // A link replaces nothing, so it gets another name first.
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                let named = tempfile::Builder::new()
                    .prefix(UNFINISHED)
                    .make_in(folder, |name| Ok(linkat(CWD, own.as_str(), CWD, name, AtFlags::SYMLINK_FOLLOW)?));
                named.map_err(failed)?.into_temp_path().persist(&path).map_err(|error| failed(error.error))
            }
            Out::New { file, path } => {
                file.persist(&path).map_err(|error| OutputError::io("rename into place", &path)(error.error))?;
                Ok(())
            }
        }
    }

    pub(super) fn failed(&self) -> impl FnOnce(io::Error) -> OutputError + use<> {
        OutputError::io("write", Path::new(&self.place))
    }

    /// The sink as a writer with a buffer; to be flushed.
    pub(super) fn buffered(&self) -> BufWriter<&File> {
        BufWriter::with_capacity(1 << 20, self.file())
    }
}

/// Writes an archive of documents and blobs.
#[derive(Debug)]
pub(super) struct ArchiveWriter {
    sink: Sink,
    mtime: u64,
}

impl ArchiveWriter {
    /// Begins an archive all of whose members have that time.
    pub(super) fn new(sink: Sink, mtime: u64) -> Self {
        Self { sink, mtime }
    }

    /// A folder.
    pub(super) fn folder(&mut self, name: &str) -> Result<(), OutputError> {
        self.header(&format!("{name}/"), EntryType::Directory, 0o755, 0)
    }

    /// A small file.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), OutputError> {
        let failed = self.sink.failed();
        self.stream(name, bytes.len() as u64, |out| out.write_all(bytes).map_err(failed))
    }

    /// A copy of a file that should have `size` bytes. The kernel does the copying.
    pub(super) fn copy(&mut self, name: &str, from: &Path, size: u64) -> Result<(), OutputError> {
        let file = File::open(from).map_err(OutputError::io("open", from))?;
        self.header(name, EntryType::Regular, 0o644, size)?;
        let copied = io::copy(&mut (&file).take(size), &mut self.sink.file()).map_err(self.sink.failed())?;
        if copied != size {
            return Err(OutputError::Short { what: from.display().to_string(), expected: size, found: copied });
        }
        self.pad(size)
    }

    /// A file of exactly `size` bytes that `write` makes.
    pub(super) fn stream(
        &mut self,
        name: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<(), OutputError>,
    ) -> Result<(), OutputError> {
        self.header(name, EntryType::Regular, 0o644, size)?;
        let written = {
            let mut out = Counted::new(self.sink.buffered());
            let done = write(&mut out);
            // Whoever copies to it may take it for what is copied.
            if let Some(error) = out.error {
                return Err(self.sink.failed()(error));
            }
            done?;
            out.flush().map_err(self.sink.failed())?;
            out.written
        };
        if written != size {
            return Err(OutputError::Short { what: name.to_owned(), expected: size, found: written });
        }
        self.pad(size)
    }

    /// Ends the archive; now it appears.
    pub(super) fn finish(self) -> Result<(), OutputError> {
        self.sink.file().write_all(&[0; 2 * BLOCK as usize]).map_err(self.sink.failed())?;
        self.sink.finish()
    }

    fn header(&mut self, name: &str, kind: EntryType, mode: u32, size: u64) -> Result<(), OutputError> {
        let mut header = Header::new_ustar();
        header.set_path(name).map_err(self.sink.failed())?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime);
        // From 8 GiB on this is GNU's binary form, which all readers of images know.
        header.set_size(size);
        header.set_cksum();
        self.sink.file().write_all(header.as_bytes()).map_err(self.sink.failed())
    }

    fn pad(&mut self, size: u64) -> Result<(), OutputError> {
        let padding = (size.next_multiple_of(BLOCK) - size) as usize;
        self.sink.file().write_all(&[0; BLOCK as usize][..padding]).map_err(self.sink.failed())
    }
}

/// Counts what is written, and keeps the error that stopped it: a copy does not tell which side failed.
pub(super) struct Counted<W> {
    pub(super) out: W,
    written: u64,
    pub(super) error: Option<io::Error>,
}

impl<W> Counted<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0, error: None }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.out.write(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kept = error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
                self.error = Some(kept);
                return Err(error);
            }
            other => other?,
        };
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
