//! `rbuild tag`: one more name for an image.
//!
//! In: an image and a name. Out: nothing. What always holds: a name that another image had moves.

use std::process::ExitCode;

use super::args::TagArgs;
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use crate::image::reference::Reference;
use crate::store::images::ImageRecord;

/// Gives it.
pub(super) fn run(args: &TagArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let name = new_name(&args.target)?;
    let store = find::store(settings)?;
    // What is found stays until it has its name.
    let _shared = store.gc_lock(false).map_err(anyhow::Error::from)?;
    let image = find::image(&store, &args.source)?;
    store.tag(&ImageRecord { names: vec![name.to_string()], ..image }).map_err(anyhow::Error::from)?;
    Ok(ExitCode::SUCCESS)
}

/// A name that an image can be given.
pub(super) fn new_name(text: &str) -> Result<Reference, Failure> {
    let name = Reference::parse(text).map_err(anyhow::Error::from)?;
    if name.digest().is_some() {
        return Err(Failure::Error(anyhow::anyhow!(
            "{text} has a digest, which follows from the image; give a name and a tag"
        )));
    }
    Ok(name)
}
