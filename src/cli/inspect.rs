//! `rbuild inspect`: all that is known of images, as JSON.
//!
//! In: names or ids. Out: a JSON array with Docker's fields and `ContentDigest`, or a line per image by a template. What
//! always holds: images that are there are shown even if others are not, which is still a failure.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::json;

use super::absent;
use super::args::InspectArgs;
use super::failure::Failure;
use super::find;
use super::rows::wrong;
use super::settings::Settings;
use super::stdout::stdout;
use super::template::Template;
use super::template::value::{Field, Nil, Value, field, optional};
use crate::image::config::ContainerConfig;
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
        None | Some("json" | "") => None,
        Some(text) => Some(Template::parse(text).map_err(wrong)?),
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
    match (template, args.format.as_deref() == Some("json")) {
        (Some(template), _) => {
            for image in &shown {
                let line = template.render(image).map_err(wrong)?;
                writeln!(out, "{line}")?;
            }
        }
        (None, true) => writeln!(out, "{}", Value::List(shown).json())?,
        (None, false) => {
            let mut text = Vec::new();
            let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
            Value::List(shown).json().serialize(&mut serializer).map_err(anyhow::Error::from)?;
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
    let root_fs = vec![field("Type", config.rootfs.kind.as_str()), field("Layers", texts(&config.rootfs.diff_ids))];
    let mut fields = vec![
        field("Id", record.id.to_string()),
        field("RepoTags", texts(names.iter().map(Reference::familiar))),
        field("RepoDigests", texts(digests)),
        field("Parent", ""),
        field("Comment", config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default()),
        field("Created", config.created.clone().unwrap_or_default()),
        optional("Container", ""),
        optional("ContainerConfig", Value::Nil(Nil::Pointer)),
        field("DockerVersion", ""),
        field("Author", config.author.clone().unwrap_or_default()),
        field("Config", container(&config.config)),
        field("Architecture", config.architecture.as_str()),
        field("Variant", config.variant.clone().unwrap_or_default()),
        field("Os", config.os.as_str()),
        field("OsVersion", config.os_version.clone().unwrap_or_default()),
        field("Size", record.size),
        field("VirtualSize", record.size),
        field("GraphDriver", vec![field("Data", Value::Nil(Nil::Map)), field("Name", "")]),
        field("RootFS", root_fs),
        field("Metadata", vec![field("LastTagTime", "0001-01-01T00:00:00Z")]),
        field(
            "Descriptor",
            json!({"mediaType": record.media_type, "digest": record.manifest, "size": record.manifest_size}),
        ),
        field("ContentDigest", content.map_or(Value::Nil(Nil::Pointer), |content| content.to_string().into())),
    ];
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
        fields.push(field("Manifests", images.iter().map(one).collect::<serde_json::Value>()));
    }
    if content.is_none() {
        fields.push(field("ContentDigestUnknown", "layers of its base never came to this machine"));
    }
    let absent = absent.iter().filter(|layer| !store.has_layer(&layer.diff_id));
    let absent: Vec<serde_json::Value> = absent
        .map(|AbsentLayer { diff_id, blob, from }| {
            let from = from.iter().map(Reference::familiar_name).collect::<Vec<_>>();
            json!({"Layer": diff_id, "Digest": blob.digest, "Size": blob.size, "From": from})
        })
        .collect();
    if !absent.is_empty() {
        fields.push(field("AbsentLayers", serde_json::Value::from(absent)));
    }
    Ok(fields.into())
}

fn texts(items: impl IntoIterator<Item = impl ToString>) -> Value {
    Value::List(items.into_iter().map(|item| item.to_string().into()).collect())
}

/// What a container of the image starts with: all fields that Docker knows, and what else the image has. As in Docker's
/// JSON, what is empty is left out there, and those that OCI knows stand apart from Docker's own.
fn container(config: &ContainerConfig) -> Value {
    let set = |names: &BTreeSet<String>| {
        Value::map_or_nil(names.iter().map(|name| (name.clone(), Value::Struct(Vec::new()))))
    };
    let list = |items: &[String]| Value::list_or_nil(items.iter().map(String::as_str));
    let healthcheck = config.healthcheck.as_ref().map_or(Value::Nil(Nil::Pointer), |check| {
        Value::from(vec![
            optional("Test", list(&check.test)),
            optional("Interval", Value::Duration(check.interval)),
            optional("Timeout", Value::Duration(check.timeout)),
            optional("StartPeriod", Value::Duration(check.start_period)),
            optional("StartInterval", Value::Duration(check.start_interval)),
            optional("Retries", check.retries),
        ])
    });
    let of_oci = vec![
        optional("User", config.user.as_str()),
        optional("ExposedPorts", set(&config.exposed_ports)),
        optional("Env", list(&config.env)),
        optional("Entrypoint", list(&config.entrypoint)),
        optional("Cmd", list(&config.cmd)),
        optional("Volumes", set(&config.volumes)),
        optional("WorkingDir", config.working_dir.as_str()),
        optional("Labels", Value::map_or_nil(config.labels.clone())),
        optional("StopSignal", config.stop_signal.as_str()),
        optional("ArgsEscaped", config.args_escaped),
    ];
    let mut of_docker = vec![
        optional("Healthcheck", healthcheck),
        optional("OnBuild", list(&config.on_build)),
        optional("Shell", list(&config.shell)),
    ];
    of_docker.extend(config.extra.iter().map(|(name, value)| field(name.as_str(), value)));
    let all: Vec<Field> = vec![field("", of_oci), field("", of_docker)];
    all.into()
}
