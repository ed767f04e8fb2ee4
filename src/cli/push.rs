//! `rbuild push`: an image of the store into a registry.
//!
//! In: a name that an image has. Out: the registry has the image under it; Docker's lines. What always holds: the name
//! appears there when all layers are there.

use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;

use super::args::PushArgs;
use super::failure::Failure;
use super::find;
use super::network::{self, Direction, Lines};
use super::pull;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::config::{ImageConfig, MAX_CONFIG_SIZE};
use crate::image::manifest::{Descriptor, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::output::OutputImage;
use crate::output::registry::{Target, push, reads_trees};
use crate::registry::Registries;
use crate::store::Store;
use crate::store::images::ImageRecord;
use crate::store::lease::Lease;

/// Pushes it.
pub(super) fn run(args: &PushArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let reference = Reference::parse(&args.name).map_err(|error| Failure::Usage(error.to_string()))?;
    if reference.digest().is_some() {
        return Err(Failure::Usage("an image is pushed by a tag; give NAME:TAG without a digest".to_owned()));
    }
    let tagged = args.name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if args.all_tags && tagged {
        return Err(Failure::Usage("with --all-tags give the name without a tag".to_owned()));
    }
    let store = find::store(settings)?;
    let wanted = pull::platform(args.platform.as_deref(), settings)?.filter(|_| args.platform.is_some());
    let mut images: Vec<(Reference, ImageRecord)> = Vec::new();
    if args.all_tags {
        for record in store.images().map_err(anyhow::Error::from)? {
            let same = |name: &Reference| name.familiar_name() == reference.familiar_name();
            images.extend(find::names(&record).into_iter().filter(same).map(|name| (name, record.clone())));
        }
        images.sort_by(|(one, _), (other, _)| one.cmp(other));
        if images.is_empty() {
            return Err(anyhow!("there is no image with the name {}", reference.familiar_name()).into());
        }
    } else {
        let record = store.image_by_name(&reference.to_string()).map_err(anyhow::Error::from)?;
        let record = match record {
            Some(record) => record,
            None => find::image(&store, &args.name).and_then(|_| {
                Err(anyhow!("an image is pushed by its name; give it one: rbuild tag {} NAME:TAG", args.name).into())
            })?,
        };
        images.push((reference.clone(), record));
    }
    if let Some(wanted) = &wanted
        && let Some((name, record)) = images.iter().find(|(_, record)| {
            Platform::parse(&record.platform, wanted).ok().and_then(|platform| wanted.fit(&platform)).is_none()
        })
    {
        return Err(anyhow!("{} is for {}, not for {wanted}", name.familiar(), record.platform).into());
    }
    for (_, record) in &images {
        let (image, _) = documents(&store, record)?;
        if reads_trees(&store, &image, None, false).map_err(anyhow::Error::from)? {
            find::enter_ids(settings)?;
            break;
        }
    }
    let lease = find::lease(&store, settings)?;
    let registries = network::registries(settings, args.insecure, false, None)?;
    let lines = Lines::new(Direction::Push, args.quiet, settings);
    lines.say(&format!("The push refers to repository [{}/{}]", reference.registry(), reference.repository()));
    let mut out = stdout();
    for (name, record) in &images {
        let descriptor = send(&registries, &store, &lease, record, name, &lines)?;
        if args.quiet {
            writeln!(out, "{name}")?;
        } else {
            let tag = name.tag().unwrap_or("latest");
            writeln!(out, "{tag}: digest: {} size: {}", descriptor.digest, descriptor.size)?;
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The image that a record stands for, and the bytes of its manifest.
fn documents(store: &Store, record: &ImageRecord) -> Result<(OutputImage, Vec<u8>), Failure> {
    let read = || -> anyhow::Result<(OutputImage, Vec<u8>)> {
        let bytes = store.read_blob(&record.manifest, MAX_MANIFEST_SIZE as u64)?;
        let manifest = Manifest::parse(&bytes)?;
        let config = store.read_blob(&manifest.config.digest, MAX_CONFIG_SIZE as u64)?;
        let parsed = ImageConfig::parse(&config)?;
        Ok((OutputImage::new(config, &parsed, manifest, Vec::new()), bytes))
    };
    Ok(read()?)
}

fn send(
    registries: &Registries,
    store: &Store,
    lease: &Lease,
    record: &ImageRecord,
    name: &Reference,
    lines: &Lines,
) -> Result<Descriptor, Failure> {
    let (image, manifest) = documents(store, record)?;
    let target = Target {
        registries,
        names: std::slice::from_ref(name),
        by_digest: false,
        compression: None,
        force: false,
        family: None,
        manifest: Some(&manifest),
        elsewhere: &|_| None,
        listener: lines,
    };
    Ok(push(&target, &image, store, lease).map_err(anyhow::Error::from)?)
}
