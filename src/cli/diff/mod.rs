//! `rbuild diff`: where two images differ.
//!
//! In: two images. Out: the fields of the config, the layers and the files that differ, as text or JSON. What always
//! holds: exit status 0 when they are equal, 1 when they differ, 2 when they cannot be compared; only indexes of layers
//! are read, and of files that differ the bytes up to the first that does.

mod cause;
mod report;
pub(in crate::cli) mod sides;

use std::io::Write as _;
use std::process::ExitCode;

use super::args::{DiffArgs, DiffFormat};
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::compare as config;
use crate::store::base;

pub(in crate::cli) use self::report::Report;
pub(in crate::cli) use self::sides::{Side, layer_files};

/// Compares them.
pub(super) fn run(args: &DiffArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    // Status 1 says that they differ, so trouble has another one.
    let report = compare(args, settings).map_err(|failure| match failure {
        Failure::Error(error) => Failure::Usage(format!("{error:#}")),
        other => other,
    })?;
    let mut out = stdout();
    match args.format {
        DiffFormat::Text => write!(out, "{}", report.text())?,
        DiffFormat::Json => writeln!(out, "{:#}", report.json())?,
    }
    Ok(if report.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn compare(args: &DiffArgs, settings: &Settings) -> Result<Report, Failure> {
    let store = find::store(settings)?;
    let records = [find::image(&store, &args.a)?, find::image(&store, &args.b)?];
    let mut images = Vec::new();
    for record in &records {
        images.push(base::base_image(&store, record).map_err(anyhow::Error::from)?);
    }
    let [a, b] = images.as_slice() else { unreachable!("two records give two images") };
    for layer in a.config.rootfs.diff_ids.iter().chain(&b.config.rootfs.diff_ids) {
        if store.needs_tree_ids(layer).map_err(anyhow::Error::from)? {
            find::enter_ids(settings)?;
        }
    }
    let lease = find::reading_lease(&store, settings)?;
    let (a, b) = (Side { store: &store, lease: &lease, image: a }, Side { store: &store, lease: &lease, image: b });
    let names = [args.a.clone(), args.b.clone()];
    let contents = [records[0].content, records[1].content];
    let manifests = [records[0].manifest, records[1].manifest];
    Ok(Report {
        names,
        ids: [records[0].id, records[1].id],
        contents,
        manifests,
        config: config::compare(&a.image.config, &b.image.config),
        layers: sides::layers(&a, &b)?,
        files: sides::files(&a, &b)?,
    })
}
