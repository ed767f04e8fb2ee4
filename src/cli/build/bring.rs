//! Contexts and Dockerfiles that are no folder of the user: fetched or unpacked into the folder of this build's lease.
//!
//! In: a tar on standard input, a [`Remote`], the session of the build. Out: [`Brought`]. What always holds: nothing
//! outside of the brought folder is read through it, whatever links it holds, and nothing in it can make a read wait; the
//! folder goes with the lease.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, poll};

use super::input::LIMIT;
use super::secrets;
use crate::cli::args::BuildArgs;
use crate::cli::args::values::yes_no;
use crate::cli::failure::Failure;
use crate::cli::find;
use crate::cli::settings::Settings;
use crate::context::tar;
use crate::event::{Event, EventSink};
use crate::fetch::{Fetch, FetchError, Secrets};
use crate::http::{Http, shown};
use crate::plan::remote::Remote;
use crate::store::Store;
use crate::store::lease::Lease;
use crate::store::sweep::Swept;
use crate::sys::cancel::{self, Cancel};
use crate::sys::root_dir::RootDir;

/// What a build holds on to from the moment at which it makes files.
pub(super) struct Session {
    pub(super) cancel: Cancel,
    pub(super) store: Store,
    pub(super) lease: Lease,
    /// What the builds of before a power cut had made, and what was found damaged.
    pub(super) swept: Swept,
}

impl Session {
    /// Opens the store, takes a lease and prepares for signals: before anything is made that a signal would leave behind.
    pub(super) fn open(settings: &Settings) -> Result<Self, Failure> {
        let cancel = Cancel::new().context("cannot prepare for signals")?;
        cancel::install_signal_handlers(&cancel).context("cannot prepare for signals")?;
        let root = settings.store_root().map_err(anyhow::Error::from)?;
        let store = Store::open(&root).map_err(anyhow::Error::from)?;
        let boot = find::boot_id()?;
        let swept = store.sweep(&boot).map_err(anyhow::Error::from)?;
        let mut lease = store.lease(&boot).map_err(anyhow::Error::from)?;
        lease.heed(&cancel);
        Ok(Self { cancel, store, lease, swept })
    }
}

/// The network as the settings have it, and the secrets for it; set up when it is used first.
pub(super) struct Network<'a> {
    args: &'a BuildArgs,
    settings: &'a Settings,
    ready: OnceLock<Ready>,
}

struct Ready {
    http: Arc<Http>,
    secrets: Box<Secrets<'static>>,
    /// The environment, with the agent of `--ssh default=SOCKET`.
    env: BTreeMap<String, OsString>,
}

impl<'a> Network<'a> {
    pub(super) fn new(args: &'a BuildArgs, settings: &'a Settings) -> Self {
        Self { args, settings, ready: OnceLock::new() }
    }

    /// Whether `.git` of contexts stays, as BuildKit is told to keep it.
    fn keeps_git_dir(&self) -> bool {
        let given = self.args.build_args.iter().rfind(|(name, _)| name == "BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        given.is_some_and(|(_, value)| yes_no(value) == Ok(true))
    }

    fn env(&self) -> BTreeMap<String, OsString> {
        let mut env = self.settings.env.clone();
        let default = self.args.ssh.iter().rfind(|ssh| ssh.id == "default");
        if let Some([path]) = default.map(|ssh| ssh.paths.as_slice()) {
            let path = self.settings.cwd.join(path);
            // Keys in files are for RUN alone.
            if path.metadata().is_ok_and(|found| found.file_type().is_socket()) {
                env.insert("SSH_AUTH_SOCK".to_owned(), path.into_os_string());
            }
        }
        env
    }

    /// What fetches for a build.
    pub(super) fn fetch<'f>(
        &'f self,
        store: &'f Store,
        lease: &'f Lease,
        cancel: &'f Cancel,
    ) -> Result<Fetch<'f>, Failure> {
        if self.ready.get().is_none() {
            let options = self.settings.http_options().map_err(anyhow::Error::from)?;
            let secrets = secrets::secrets(self.args, self.settings)?;
            let secret =
                move |id: &str| Ok(secrets.iter().rfind(|secret| secret.id == id).map(|secret| secret.value.clone()));
            self.ready.get_or_init(|| Ready {
                http: Arc::new(Http::new(options)),
                secrets: Box::new(secret),
                env: self.env(),
            });
        }
        let Ready { http, secrets, env } = self.ready.get().expect("it was set up above");
        let (http, offline) = (Arc::clone(http), self.args.offline);
        Ok(Fetch { http, store, lease, secrets, env, offline, cancel })
    }
}

/// What came.
pub(super) enum Brought {
    /// A folder.
    Folder(PathBuf),
    /// A Dockerfile alone.
    Dockerfile(Vec<u8>),
}

/// What takes part in bringing something.
pub(super) struct Bringer<'a> {
    pub(super) session: &'a Session,
    pub(super) network: &'a Network<'a>,
    pub(super) events: &'a dyn EventSink,
}

impl Bringer<'_> {
    /// What `remote` leads to.
    pub(super) fn remote(&self, remote: &Remote) -> Result<Brought, Failure> {
        let Session { cancel, store, lease, .. } = self.session;
        let fetch = self.network.fetch(store, lease, cancel)?;
        match remote {
            Remote::Git(source) => self.part(&format!("load git source {}", source.shown()), || {
                if fetch.offline {
                    return Err(failed(FetchError::Offline(source.shown())));
                }
                let git = fetch.git(source).map_err(failed)?;
                let folder = lease.fresh_path();
                std::fs::create_dir(&folder)?;
                let keep = source.keep_git_dir.unwrap_or_else(|| self.network.keeps_git_dir());
                let commit = git.resolve(source).map_err(|error| failed(error.into()))?;
                let files = git.fetch(source, &commit, keep, &folder).map_err(|error| failed(error.into()))?;
                Ok(Brought::Folder(files.folder))
            }),
            Remote::Url(url) => self.part(&format!("load {}", shown(url)), || {
                let fetched = fetch.fetch(url, None).map_err(failed)?;
                let file = store.open_blob(&fetched.digest).map_err(anyhow::Error::from)?;
                self.sniff(Box::new(file)).with_context(|| format!("cannot use {}", shown(url))).map_err(Failure::from)
            }),
        }
    }

    /// What comes from standard input: a tar or a Dockerfile.
    pub(super) fn stdin(&self, stdin: Stdin<'_>) -> Result<Brought, Failure> {
        self.part("load build context", || Ok(Brought::Folder(self.unpack(Box::new(stdin))?)))
    }

    /// A tar or a Dockerfile, as its first bytes say.
    fn sniff(&self, mut from: Box<dyn Read + Send + '_>) -> anyhow::Result<Brought> {
        let head = head(&mut from)?;
        if tar::is_archive(&head) {
            return Ok(Brought::Folder(self.unpack(Box::new(io::Cursor::new(head).chain(from)))?));
        }
        let mut bytes = head;
        from.take(LIMIT + 1).read_to_end(&mut bytes)?;
        Ok(Brought::Dockerfile(bytes))
    }

    fn unpack(&self, from: Box<dyn Read + Send + '_>) -> anyhow::Result<PathBuf> {
        let lease = &self.session.lease;
        let (scratch, folder) = (lease.fresh_path(), lease.fresh_path());
        std::fs::create_dir(&folder)?;
        let notes = tar::unpack(Box::new(lease.heeding(from)), &scratch, &folder)
            .context("cannot unpack the tar of the context")?;
        for note in notes {
            self.events.event(Event::Note(&note));
        }
        Ok(folder)
    }

    /// Shows `work` as a part of the build.
    fn part<T>(&self, name: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let name = format!("[internal] {name}");
        let began = Instant::now();
        self.events.event(Event::Began(&name));
        // Whatever fails after the wish to stop: it fails by that.
        let done = work().map_err(|failure| self.session.cancel.signal().map_or(failure, Failure::Interrupted))?;
        self.events.event(Event::Ended(&name, began.elapsed()));
        Ok(done)
    }
}

fn failed(error: FetchError) -> Failure {
    anyhow!(error).context("cannot load the build context").into()
}

/// Standard input, for a build that can be stopped while it waits for it.
pub(super) struct Stdin<'a> {
    head: io::Cursor<Vec<u8>>,
    file: File,
    cancel: Option<&'a Cancel>,
}

impl<'a> Stdin<'a> {
    /// Opens it and reads so much that one can tell what it is.
    pub(super) fn open() -> io::Result<Self> {
        let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let head = io::Cursor::new(head(&mut file)?);
        Ok(Self { head, file, cancel: None })
    }

    /// Whether it is a tar, plain or compressed.
    pub(super) fn is_archive(&self) -> bool {
        tar::is_archive(self.head.get_ref())
    }

    /// The same, which ends when `cancel` says so.
    pub(super) fn heeding(self, cancel: &'a Cancel) -> Self {
        Self { cancel: Some(cancel), ..self }
    }
}

impl Read for Stdin<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.head.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        if let Some(cancel) = self.cancel {
            let stop = cancel.fd();
            let mut fds = [PollFd::new(&self.file, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
            loop {
                match poll(&mut fds, None) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => {
                        other?;
                        break;
                    }
                }
            }
            if cancel.is_canceled() {
                return Err(io::Error::other("stopped"));
            }
        }
        self.file.read(buffer)
    }
}

/// The first bytes, as many as it takes to tell a tar.
fn head(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(tar::HEAD);
    from.take(tar::HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Opens a file of a brought folder, links followed inside it; `None` where there is none.
pub(super) fn open_in(folder: &Path, name: &Path) -> anyhow::Result<Option<File>> {
    let root = RootDir::open(folder)?;
    // From the outside the folder is what `/` is to its links.
    let name = name.strip_prefix("/").unwrap_or(name);
    match root.read_inside(name.as_os_str().as_encoded_bytes()) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(anyhow!("{} in the build context is no regular file", name.display())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(anyhow!(error).context(format!("cannot open {} in the build context", name.display()))),
    }
}
