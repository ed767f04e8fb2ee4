//! `rbuild diff`: where two images differ.
//!
//! In: two images, or images for several platforms. Out: the fields of the config, the layers and the files that differ, as
//! text or JSON; of several platforms, for each. What always holds: exit status 0 when they are equal, 1 when they differ, 2
//! when they cannot be compared; only indexes of layers are read, and of files that differ the bytes up to the first that
//! does.

mod cause;
mod platforms;
mod report;
pub(in crate::cli) mod sides;

use std::io::Write as _;
use std::process::ExitCode;

use super::absent;
use super::args::{DiffArgs, DiffFormat};
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::compare as config;
use crate::plan::BaseImage;
use crate::store::base;
use crate::store::images::ImageRecord;

use self::platforms::IndexReport;

pub(in crate::cli) use self::report::Report;
pub(in crate::cli) use self::sides::{Side, layer_files};

/// Compares them.
pub(super) fn run(args: &DiffArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    // Status 1 says that they differ, so trouble has another one.
    let found = compare(args, settings).map_err(|failure| match failure {
        Failure::Error(error) => Failure::Usage(format!("{error:#}")),
        other => other,
    })?;
    let mut out = stdout();
    let (text, json, equal) = match &found {
        Found::Image(report) => (report.text(), report.json(), report.is_empty()),
        Found::Indexes(report) => (report.text(), report.json(), report.is_empty()),
    };
    match args.format {
        DiffFormat::Text => write!(out, "{text}")?,
        DiffFormat::Json => writeln!(out, "{json:#}")?,
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What a comparison found.
enum Found {
    /// Of two images.
    Image(Box<Report>),
    /// Of two, of which one at least is for several platforms.
    Indexes(Box<IndexReport>),
}

fn compare(args: &DiffArgs, settings: &Settings) -> Result<Found, Failure> {
    let store = find::store(settings)?;
    let lease = find::reading_lease(&store, settings)?;
    let names = [args.a.clone(), args.b.clone()];
    let [(record_a, images_a), (record_b, images_b)] =
        [find::pinned(&store, &lease, &args.a)?, find::pinned(&store, &lease, &args.b)?];
    for (record, images) in [(&record_a, &images_a), (&record_b, &images_b)] {
        absent::bring(&store, &lease, (record, images.as_slice()), settings, None)?;
    }
    for layer in images_a.iter().chain(&images_b).flat_map(|image| &image.config.rootfs.diff_ids) {
        if store.needs_tree_ids(layer).map_err(anyhow::Error::from)? {
            find::enter_ids(settings)?;
        }
    }
    let side = |image| Side { store: &store, lease: &lease, image };
    let is_index = |record: &ImageRecord| record.id.0 == record.manifest;
    if let ([a], [b]) = (images_a.as_slice(), images_b.as_slice())
        && !is_index(&record_a)
        && !is_index(&record_b)
    {
        return Ok(Found::Image(Box::new(images(&names, &side(a), &side(b))?)));
    }
    let (mut same, mut only) = (Vec::new(), [Vec::new(), Vec::new()]);
    for a in &images_a {
        match images_b.iter().find(|b| b.platform == a.platform) {
            Some(b) => same.push((a.platform.clone(), images(&names, &side(a), &side(b))?)),
            None => only[0].push(a.platform.clone()),
        }
    }
    let missing = |b: &&BaseImage| images_a.iter().all(|a| a.platform != b.platform);
    only[1].extend(images_b.iter().filter(missing).map(|b| b.platform.clone()));
    let records = [record_a, record_b];
    Ok(Found::Indexes(Box::new(IndexReport {
        names,
        ids: records.each_ref().map(|record| record.id),
        contents: records.each_ref().map(|record| record.content),
        only,
        same,
    })))
}

/// Compares two images.
fn images(names: &[String; 2], a: &Side<'_>, b: &Side<'_>) -> Result<Report, Failure> {
    let manifest =
        |side: &Side<'_>| side.image.manifest.as_ref().map_or(side.image.image_id.0, |manifest| manifest.digest);
    let content = |side: &Side<'_>| -> Result<_, Failure> {
        Ok(base::record(side.store, side.image).map_err(anyhow::Error::from)?.content)
    };
    Ok(Report {
        names: names.clone(),
        ids: [a.image.image_id, b.image.image_id],
        contents: [content(a)?, content(b)?],
        manifests: [manifest(a), manifest(b)],
        config: config::compare(&a.image.config, &b.image.config),
        layers: sides::layers(a, b)?,
        files: sides::files(a, b)?,
    })
}
