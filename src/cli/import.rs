//! `rbuild import`: the tar of a root file system into the store, as an image.
//!
//! In: a tar, compressed or not, as a file, on standard input or behind a URL. Out: the image's id. What always holds: with
//! an epoch the same tar gives the same id, whenever it is imported.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

use super::args::{ImportArgs, epoch};
use super::failure::Failure;
use super::settings::Settings;
use super::stdout::stdout;
use super::{find, tag};
use crate::fetch::Fetch;
use crate::http::{self, Http};
use crate::image::assemble::rfc3339;
use crate::image::platform::Platform;
use crate::plan::remote;
use crate::store::blobs::BlobReader;
use crate::store::import::{ImportError, ImportOptions, import};
use crate::store::lease::Lease;
use crate::store::{Store, base};
use crate::sys::cancel::{self, Cancel, UntilCanceled};

/// Imports it.
pub(super) fn run(args: &ImportArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let name = args.reference.as_deref().map(tag::new_name).transpose()?;
    let given = settings.var("SOURCE_DATE_EPOCH")?;
    let epoch = epoch::choose(None, &[], given.as_deref()).map_err(Failure::Usage)?.and_then(|epoch| epoch.seconds);
    let platform = match &args.platform {
        None => find::machine(),
        Some(text) => match Platform::parse_list([text.as_str()], &find::machine()).map(<[Platform; 1]>::try_from) {
            Ok(Ok([one])) => one,
            Ok(Err(_)) => {
                return Err(Failure::Usage(format!("--platform {text}: a root file system is for one platform")));
            }
            Err(error) => return Err(Failure::Usage(format!("--platform: {error}"))),
        },
    };
    // A file that is not there is told before a store is made.
    let source = source(args, settings)?;
    let store = find::store(settings)?;
    let lease = find::lease(&store, settings)?;
    let created = epoch.map_or_else(|| jiff::Timestamp::now().to_string(), rfc3339);
    let options = ImportOptions { changes: args.changes.clone(), message: args.message.clone(), platform, created };
    let import = |tar, place: &str| import(&store, &lease, tar, place, &options).map_err(failure);
    let mut record = match source {
        Source::Open(tar, place) => import(tar, &place)?,
        Source::Url(url) => {
            let cancel = Cancel::new().context("cannot prepare for signals")?;
            cancel::install_signal_handlers(&cancel).context("cannot prepare for signals")?;
            fetch(&url, settings, &store, &lease, &cancel)
                .and_then(|tar| {
                    import(Box::new(UntilCanceled { inner: tar, cancel: Some(&cancel) }), &http::shown(&url))
                })
                .map_err(|failure| cancel.signal().map_or(failure, Failure::Interrupted))?
        }
    };
    record.names.extend(name.map(|name| name.to_string()));
    base::keep(&store, &lease, &record).map_err(anyhow::Error::from)?;
    writeln!(stdout(), "{}", record.id)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the tar is.
enum Source {
    /// It is open; what messages call it.
    Open(Box<dyn Read + Send>, String),
    /// It has to come first.
    Url(String),
}

fn source(args: &ImportArgs, settings: &Settings) -> Result<Source, Failure> {
    let place = args.file.display().to_string();
    if args.file == Path::new("-") {
        if settings.stdin_is_terminal {
            return Err(Failure::Usage("standard input is a terminal; give the tar as FILE or by `< FILE`".into()));
        }
        return Ok(Source::Open(Box::new(std::io::stdin()), "standard input".to_owned()));
    }
    if remote::is_url(&place) {
        return Ok(Source::Url(place));
    }
    if place.contains("://") {
        return Err(Failure::Usage(format!("not supported: importing from {place}; there are http:// and https://")));
    }
    let file = File::open(settings.cwd.join(&args.file)).with_context(|| format!("cannot open {place}"))?;
    Ok(Source::Open(Box::new(file), place))
}

/// What is behind the URL: a blob of the store then.
fn fetch(url: &str, settings: &Settings, store: &Store, lease: &Lease, cancel: &Cancel) -> Result<BlobReader, Failure> {
    let http = Arc::new(Http::new(settings.http_options().map_err(anyhow::Error::from)?));
    let fetch = Fetch { http, store, lease, secrets: &|_| Ok(None), env: &settings.env, offline: false, cancel };
    let fetched = fetch.fetch(url, None);
    let fetched = fetched.with_context(|| format!("cannot import {}", http::shown(url)))?;
    Ok(store.open_blob(&fetched.digest).map_err(anyhow::Error::from)?)
}

fn failure(error: ImportError) -> Failure {
    match error {
        ImportError::Changes { source_text, diagnostics } => {
            Failure::Diagnostics { source: source_text, list: diagnostics }
        }
        error => Failure::Error(error.into()),
    }
}
