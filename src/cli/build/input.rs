//! What a build reads: the Dockerfile, and the folder that it is built from.
//!
//! In: the arguments. Out: a [`Source`], and [`LocalContext`]s. What always holds: the Dockerfile's name in messages is
//! the one that the user would type.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};

use crate::cli::args::{BuildArgs, BuildContext, DockerfilePath};
use crate::cli::settings::Settings;
use crate::context::ignore::Patterns;
use crate::context::local::LocalContext;
use crate::context::stat_cache::StatCache;
use crate::diagnostic::Source;
use crate::store::Store;

/// The usual names, the first that is there counts.
const NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

/// Larger ones are no Dockerfiles: 16 MiB.
const LIMIT: u64 = 16 << 20;

/// The Dockerfile, and where it was found: `None` for standard input.
pub(in crate::cli) struct Dockerfile {
    pub(in crate::cli) source: Source,
    pub(in crate::cli) path: Option<PathBuf>,
}

/// Reads the Dockerfile.
pub(in crate::cli) fn dockerfile(args: &BuildArgs, settings: &Settings) -> anyhow::Result<Dockerfile> {
    let context_is_stdin = args.context == Some(BuildContext::Stdin);
    let (name, path) = match (&args.file, &args.context) {
        (Some(DockerfilePath::Stdin), _) if context_is_stdin => {
            bail!("both the Dockerfile and the context are to come from standard input; give one of them as a path")
        }
        (Some(DockerfilePath::Stdin), _) | (None, Some(BuildContext::Stdin)) => ("standard input".to_owned(), None),
        (Some(DockerfilePath::Path(path)), _) => (path.display().to_string(), Some(settings.cwd.join(path))),
        (None, Some(BuildContext::Directory(directory))) => find(directory, settings)?,
        (None, None) => bail!("there is neither a context nor a Dockerfile; give -f PATH"),
    };
    let bytes = match &path {
        Some(path) => {
            let file = fs::File::open(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow!("there is no Dockerfile {name}"),
                _ => anyhow!(error).context(format!("cannot open the Dockerfile {name}")),
            })?;
            read(file).with_context(|| format!("cannot read the Dockerfile {name}"))?
        }
        None => read(io::stdin().lock()).context("cannot read the Dockerfile from standard input")?,
    };
    if path.is_none() && looks_like_an_archive(&bytes) {
        bail!("not supported yet: a context in a tar on standard input; unpack it and give the folder");
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        bail!("{name} is UTF-16 text; Dockerfiles are UTF-8: save it as that");
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        anyhow!("{name}, line {line}: this is not UTF-8 text; Dockerfiles are")
    })?;
    Ok(Dockerfile { source: Source { name, text }, path })
}

fn find(directory: &Path, settings: &Settings) -> anyhow::Result<(String, Option<PathBuf>)> {
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
    let shown = if directory == Path::new(".") { PathBuf::from(name) } else { directory.join(name) };
    Ok((shown.display().to_string(), Some(folder.join(name))))
}

fn read(from: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        bail!("it has more than {} MiB", LIMIT >> 20);
    }
    Ok(bytes)
}

/// Whether bytes are a tar, plain or compressed: no Dockerfile begins so.
fn looks_like_an_archive(bytes: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    MAGIC.iter().any(|magic| bytes.starts_with(magic)) || bytes.get(257..262) == Some(b"ustar")
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

/// A context without files, for a Dockerfile on standard input.
pub(super) fn empty_context(folder: &Path, now: SystemTime) -> anyhow::Result<LocalContext> {
    fs::create_dir(folder)?;
    Ok(LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), now)?)
}
