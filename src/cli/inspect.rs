//! `rbuild inspect`: all that is known of images, as JSON.
//!
//! In: names or ids. Out: a JSON array with Docker's fields and `ContentDigest`, or a line per image by a template. What
//! always holds: images that are there are shown even if others are not, which is still a failure.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::{Value, json};

use super::absent;
use super::args::InspectArgs;
use super::failure::Failure;
use super::find;
use super::rows::template;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::store::images::ImageRecord;
use crate::store::origins::AbsentLayer;
use crate::store::verify::verify;
use crate::store::{Store, base};

/// Prints it.
pub(super) fn run(args: &InspectArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let template = match args.format.as_deref() {
        None | Some("json") => None,
        Some(text) => Some(template(text)?),
    };
    let platform = args.platform.as_deref().map(find::platform).transpose()?;
    let store = find::store(settings)?;
    let mut shown = Vec::new();
    let mut failures = Vec::new();
    if args.verify {
        let problem = store.images_problem().map_err(anyhow::Error::from)?;
        // Where nothing can be written, the copy does its work.
        let _ = problem.is_some() && store.restore_images().is_ok();
        failures.extend(problem);
    }
    for name in &args.images {
        match find::image(&store, name) {
            Ok(record) => {
                let damaged = if args.verify { problems(&store, &record, name, settings)? } else { Vec::new() };
                // Of an image whose documents are damaged there is nothing to show.
                match describe(&store, &record, name, platform.as_ref()) {
                    Err(_) if !damaged.is_empty() => {}
                    Err(Failure::Error(error)) => failures.push(format!("{error:#}")),
                    described => shown.push(described?),
                }
                failures.extend(damaged);
            }
            Err(Failure::Error(error)) => failures.push(error.to_string()),
            Err(other) => return Err(other),
        }
    }
    let mut out = stdout();
    match (template, args.format.is_some()) {
        (Some(template), _) => {
            for image in &shown {
                let line = template.render(image).map_err(|why| Failure::Usage(format!("--format: {why}")))?;
                writeln!(out, "{line}")?;
            }
        }
        (None, true) => writeln!(out, "{}", Value::Array(shown))?,
        (None, false) => {
            let mut text = Vec::new();
            let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
            Value::Array(shown).serialize(&mut serializer).map_err(anyhow::Error::from)?;
            text.push(b'\n');
            out.write_all(&text)?;
        }
    }
    out.flush()?;
    if failures.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::Error(anyhow!(failures.join("\n")))) }
}

/// What is wrong with the image's bytes.
fn problems(store: &Store, record: &ImageRecord, name: &str, settings: &Settings) -> Result<Vec<String>, Failure> {
    let images = base::base_images(store, record).unwrap_or_default();
    // Files of trees are read too, and may belong to mapped ids.
    if store.path("trees.format").exists() {
        find::enter_ids(settings)?;
    }
    for image in &images {
        let absent = store.absent_layers(image).map_err(anyhow::Error::from)?;
        let places = absent::places(&absent);
        if !places.is_empty() {
            let (count, places) = (absent.len(), places.join(", "));
            let note = format!("{name}: layers that never came here were not checked: {count}, which {places} has\n");
            std::io::stderr().write_all(note.as_bytes())?;
        }
    }
    let lease = find::reading_lease(store, settings)?;
    let problems = verify(store, &lease, record).map_err(anyhow::Error::from)?;
    Ok(problems.into_iter().map(|problem| format!("{name} is damaged: {problem}")).collect())
}

/// The fields of an image; of one for several platforms those of the image for this machine, or, where one is asked for,
/// all of that one.
fn describe(store: &Store, record: &ImageRecord, name: &str, wanted: Option<&Platform>) -> Result<Value, Failure> {
    let failed = anyhow::Error::from;
    let (image, chosen) = match wanted {
        None => (base::base_image(store, record).map_err(failed)?, None),
        Some(wanted) => {
            let images = base::base_images(store, record).map_err(failed)?;
            let image = find::for_platform(images, wanted, name)?;
            let own = base::record(store, &image).map_err(failed)?;
            (image, Some(ImageRecord { names: record.names.clone(), ..own }))
        }
    };
    let record = chosen.as_ref().unwrap_or(record);
    let config = &image.config;
    let is_index = record.id.0 == record.manifest;
    let absent = store.absent_layers(&image).map_err(failed)?;
    // Layers may have come since it was made.
    let content = match record.content {
        None if !is_index && absent.is_empty() => base::record(store, &image).map_err(failed)?.content,
        content => content,
    };
    let names = find::names(record);
    let repositories = find::repositories(store, record)?;
    let digests = names
        .iter()
        .chain(&repositories)
        .map(|name| Ok(format!("{}@{}", name.familiar_name(), find::digest(store, record, name)?)));
    let digests = digests.collect::<Result<BTreeSet<String>, Failure>>()?;
    let container = serde_json::to_value(&config.config).map_err(anyhow::Error::from)?;
    let mut value = json!({
        "Id": record.id.to_string(),
        "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Comment": config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": config.created,
        "Author": config.author.clone().unwrap_or_default(),
        "Config": container,
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "OsVersion": config.os_version.clone().unwrap_or_default(),
        "Size": record.size,
        "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
        "Descriptor": {"mediaType": record.media_type, "digest": record.manifest, "size": record.manifest_size},
        "ContentDigest": content.map(|content| content.to_string()),
    });
    // One image among several: which there are, and their ids.
    if is_index {
        let images = base::base_images(store, record).map_err(anyhow::Error::from)?;
        let one = |image: &BaseImage| {
            json!({
                "Id": image.image_id.to_string(),
                "Platform": image.platform.to_string(),
                "Descriptor": image.manifest,
            })
        };
        value["Manifests"] = images.iter().map(one).collect();
    }
    if content.is_none() {
        value["ContentDigestUnknown"] = json!("layers of its base never came to this machine");
    }
    let absent = absent.iter().filter(|layer| !store.has_layer(&layer.diff_id));
    let absent: Vec<Value> = absent
        .map(|AbsentLayer { diff_id, blob, from }| {
            let from = from.iter().map(Reference::familiar_name).collect::<Vec<_>>();
            json!({"Layer": diff_id, "Digest": blob.digest, "Size": blob.size, "From": from})
        })
        .collect();
    if !absent.is_empty() {
        value["AbsentLayers"] = absent.into();
    }
    Ok(value)
}
