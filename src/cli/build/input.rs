//! What a build reads: the Dockerfile, and the folder that it is built from.
//!
//! In: the arguments. Out: a [`Source`], a [`Root`], and [`LocalContext`]s. What always holds: the Dockerfile's name in messages is
//! the one that the user would type.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};

use super::bring::{Bringer, Brought, Network, Session, Stdin, open_in};
use crate::cli::args::{BuildArgs, BuildContext, DockerfilePath};
use crate::cli::failure::Failure;
use crate::cli::settings::Settings;
use crate::context::ignore::Patterns;
use crate::context::local::LocalContext;
use crate::context::stat_cache::StatCache;
use crate::context::tar;
use crate::diagnostic::Source;
use crate::event::EventSink;
use crate::http::shown;
use crate::store::Store;

/// The usual names, the first that is there counts.
const NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

/// Larger ones are no Dockerfiles: 16 MiB.
pub(super) const LIMIT: u64 = 16 << 20;

/// The Dockerfile, and where it was found: `None` where it is no file of the user's.
pub(super) struct Dockerfile {
    pub(super) source: Source,
    pub(super) path: Option<PathBuf>,
}

/// What a build is made from, once it is here.
pub(super) enum Root {
    /// A folder of the user's.
    Folder(PathBuf),
    /// A folder that was brought for this build.
    Brought(PathBuf),
    /// A Dockerfile alone.
    Nothing,
}

/// Reads the Dockerfile, and brings the context if it is no folder of the user's: then `session` is opened for it.
pub(super) fn read(
    args: &BuildArgs,
    settings: &Settings,
    network: &Network<'_>,
    events: &dyn EventSink,
    session: &mut Option<Session>,
) -> Result<(Dockerfile, Root), Failure> {
    let mut brought = None;
    let open = |session: &mut Option<Session>| -> Result<(), Failure> {
        if session.is_none() {
            *session = Some(Session::open(settings)?);
        }
        Ok(())
    };
    let folder = match &args.context {
        Some(BuildContext::Directory(folder)) => Some(folder.clone()),
        // A folder may have the name that would mean GitHub.
        Some(BuildContext::Remote(text, _)) if !text.contains("://") && settings.cwd.join(text).is_dir() => {
            Some(PathBuf::from(text))
        }
        Some(BuildContext::Remote(_, remote)) => {
            open(session)?;
            let session = session.as_ref().expect("it was opened above");
            brought = Some(Bringer { session, network, events }.remote(remote)?);
            None
        }
        Some(BuildContext::Stdin) => {
            let stdin = Stdin::open().context("cannot read standard input")?;
            if stdin.is_archive() {
                open(session)?;
                let session = session.as_ref().expect("it was opened above");
                brought = Some(Bringer { session, network, events }.stdin(stdin.heeding(&session.cancel))?);
            } else if args.file.is_some() {
                return Err(anyhow!(
                    "standard input has no tar, and -f names the Dockerfile; to build from a folder, give it instead of -"
                )
                .into());
            } else {
                let bytes = read_all(stdin).context("cannot read the Dockerfile from standard input")?;
                return Ok((dockerfile("standard input", None, bytes)?, Root::Nothing));
            }
            None
        }
        None => None,
    };
    let root = match brought {
        None => folder.as_ref().map_or(Root::Nothing, |folder| Root::Folder(settings.cwd.join(folder))),
        Some(Brought::Folder(folder)) => Root::Brought(folder),
        Some(Brought::Dockerfile(bytes)) if args.file.is_none() => {
            let name = match &args.context {
                Some(BuildContext::Remote(text, _)) => shown(text),
                _ => "the Dockerfile".to_owned(),
            };
            return Ok((dockerfile(&name, None, bytes)?, Root::Nothing));
        }
        Some(Brought::Dockerfile(_)) => {
            return Err(anyhow!("the URL leads to a Dockerfile, not to a context, and -f names another one").into());
        }
    };
    let of_user = |path: &Path| -> anyhow::Result<Dockerfile> {
        let (name, path) = (path.display().to_string(), settings.cwd.join(path));
        let file = fs::File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("there is no Dockerfile {name}"),
            _ => anyhow!(error).context(format!("cannot open the Dockerfile {name}")),
        })?;
        let bytes = read_all(file).with_context(|| format!("cannot read the Dockerfile {name}"))?;
        dockerfile(&name, Some(path), bytes)
    };
    Ok(match (&args.file, root) {
        (Some(DockerfilePath::Stdin), root) => {
            let bytes = read_all(io::stdin().lock()).context("cannot read the Dockerfile from standard input")?;
            if tar::is_archive(&bytes[..bytes.len().min(tar::HEAD)]) {
                return Err(
                    anyhow!("standard input has a tar, and -f - wants a Dockerfile; for a context write -").into()
                );
            }
            (dockerfile("standard input", None, bytes)?, root)
        }
        (Some(DockerfilePath::Url(url)), root) => {
            open(session)?;
            let Session { cancel, store, lease, .. } = session.as_ref().expect("it was opened above");
            let fetched = network.fetch(store, lease, cancel)?.fetch(url, None);
            let fetched = fetched.map_err(|error| match cancel.signal() {
                Some(signal) => Failure::Interrupted(signal),
                None => anyhow!(error).context("cannot fetch the Dockerfile").into(),
            })?;
            let bytes = store.read_blob(&fetched.digest, LIMIT).map_err(anyhow::Error::from)?;
            (dockerfile(&shown(url), None, bytes)?, root)
        }
        (file, Root::Brought(folder)) => match (in_brought(&folder, file.as_ref())?, file) {
            (Some((path, bytes)), _) => (dockerfile(&path.display().to_string(), None, bytes)?, Root::Brought(folder)),
            // Given separately.
            (None, Some(DockerfilePath::Path(path))) if settings.cwd.join(path).is_file() => {
                (of_user(path)?, Root::Brought(folder))
            }
            (None, Some(DockerfilePath::Path(path))) => {
                return Err(anyhow!(
                    "there is no Dockerfile {}, neither in the build context nor on this machine",
                    path.display()
                )
                .into());
            }
            (None, _) => {
                return Err(anyhow!(
                    "there is no Dockerfile in the build context (looked for {}); name it with -f",
                    NAMES.join(", ")
                )
                .into());
            }
        },
        (Some(DockerfilePath::Path(path)), root) => (of_user(path)?, root),
        (None, root) => {
            let Some(folder) = folder else {
                return Err(anyhow!("there is neither a context nor a Dockerfile; give -f PATH").into());
            };
            (of_user(&find(&folder, settings)?)?, root)
        }
    })
}

/// The Dockerfile of a brought folder, by its name or one of the usual ones.
fn in_brought(folder: &Path, file: Option<&DockerfilePath>) -> anyhow::Result<Option<(PathBuf, Vec<u8>)>> {
    let names = match file {
        Some(DockerfilePath::Path(path)) => vec![path.clone()],
        _ => NAMES.iter().map(PathBuf::from).collect(),
    };
    for name in names {
        if let Some(file) = open_in(folder, &name)? {
            let bytes = read_all(file).with_context(|| format!("cannot read the Dockerfile {}", name.display()))?;
            return Ok(Some((name, bytes)));
        }
    }
    Ok(None)
}

fn dockerfile(name: &str, path: Option<PathBuf>, bytes: Vec<u8>) -> anyhow::Result<Dockerfile> {
    if bytes.len() as u64 > LIMIT {
        bail!("{name} has more than {} MiB; that is no Dockerfile", LIMIT >> 20);
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        bail!("{name} is UTF-16 text; Dockerfiles are UTF-8: save it as that");
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        anyhow!("{name}, line {line}: this is not UTF-8 text; Dockerfiles are")
    })?;
    Ok(Dockerfile { source: Source { name: name.to_owned(), text }, path })
}

/// The Dockerfile of a folder of the user's, as the user would name it.
fn find(directory: &Path, settings: &Settings) -> anyhow::Result<PathBuf> {
    let folder = settings.cwd.join(directory);
    let metadata = fs::metadata(&folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no folder {} to build from", directory.display()),
        _ => anyhow!(error).context(format!("cannot look at the context {}", directory.display())),
    })?;
    if !metadata.is_dir() {
        bail!("{} is not a folder; give the folder to build from, and the Dockerfile with -f", directory.display());
    }
    let found = NAMES.iter().find(|name| folder.join(name).exists());
    let Some(name) = found else {
        bail!(
            "there is no Dockerfile in {} (looked for {}); write one, or name it with -f",
            // Without the `.` of `rbuild .`.
            folder.components().collect::<PathBuf>().display(),
            NAMES.join(", ")
        );
    };
    Ok(if directory == Path::new(".") { PathBuf::from(name) } else { directory.join(name) })
}

fn read_all(from: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        bail!("it has more than {} MiB", LIMIT >> 20);
    }
    Ok(bytes)
}

/// Opens a folder as a build context: with its own ignore file, or that of `dockerfile`.
pub(super) fn open_context(
    folder: &Path,
    dockerfile: Option<&Path>,
    store: &Store,
    now: SystemTime,
) -> anyhow::Result<LocalContext> {
    let folder = fs::canonicalize(folder).with_context(|| format!("cannot open the context {}", folder.display()))?;
    let patterns = LocalContext::read_ignore_file(&folder, dockerfile)?;
    let cache = StatCache::load(store.path("cache/files").join(StatCache::file_name(&folder)));
    Ok(LocalContext::open(&folder, patterns, cache, now)?)
}

/// Opens a brought folder as a build context. As with BuildKit no ignore file holds for what is no folder of the user's.
pub(super) fn open_brought(folder: &Path, now: SystemTime) -> anyhow::Result<LocalContext> {
    // Its path is another one in the next build: nothing to remember.
    Ok(LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), now)?)
}

/// A context without files, for a Dockerfile on standard input.
pub(super) fn empty_context(folder: &Path, now: SystemTime) -> anyhow::Result<LocalContext> {
    fs::create_dir(folder)?;
    Ok(LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), now)?)
}
