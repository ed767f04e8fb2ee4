//! `rbuild load`: images from an archive into the store.
//!
//! In: an archive (OCI layout or Docker's, compressed or not) as a file or on standard input. Out: its images, under the
//! names that they have in it. What always holds: names appear only when all images of the archive are there.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;

use super::args::LoadArgs;
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::reference::Reference;
use crate::store::base;
use crate::store::load::{Loaded, load};

/// Loads them.
pub(super) fn run(args: &LoadArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let (archive, place) = match &args.input {
        Some(path) => {
            let place = path.display().to_string();
            (File::open(settings.cwd.join(path)).with_context(|| format!("cannot open {place}"))?, place)
        }
        None if settings.stdin_is_terminal => {
            return Err(Failure::Usage("standard input is a terminal; give the archive by -i FILE or `< FILE`".into()));
        }
        None => {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("cannot open standard input")?;
            (File::from(stdin), "standard input".to_owned())
        }
    };
    let only = args.platforms.iter().map(|platform| find::platform(platform)).collect::<Result<Vec<_>, _>>()?;
    let store = find::store(settings)?;
    let lease = find::lease(&store, settings)?;
    // Layers that came before it failed are in no image.
    let loaded = load(&store, &lease, archive, &place, &find::machine(), &only)
        .inspect_err(|_| store.count_anew())
        .map_err(anyhow::Error::from)?;
    let mut out = stdout();
    for Loaded { mut record, names } in loaded {
        record.names = names.iter().map(Reference::to_string).collect();
        base::keep(&store, &lease, &record).map_err(anyhow::Error::from)?;
        for name in &names {
            writeln!(out, "Loaded image: {}", name.familiar())?;
        }
        if names.is_empty() {
            writeln!(out, "Loaded image ID: {}", record.id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
