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
use crate::image::manifest::{Descriptor, Document, Family, Index, MAX_MANIFEST_SIZE, Manifest};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::output::OutputImage;
use crate::output::registry::{Layers, Target, push, push_index, reads_trees};
use crate::registry::Registries;
use crate::store::images::ImageRecord;
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::{Store, base};

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
    let lease = find::lease(&store, settings)?;
    // What is found stays as long as it is pushed, also where somebody takes its name away.
    let shared = lease.shared().map_err(anyhow::Error::from)?;
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
    for (_, record) in &images {
        base::pin_record(&store, &lease, record).map_err(anyhow::Error::from)?;
    }
    drop(shared);
    for (_, record) in &images {
        let mut images = Documents::read(&store, record, wanted.as_ref())?.images.into_iter();
        let reads = images.try_fold(false, |reads, listed| {
            Ok::<_, anyhow::Error>(reads || reads_trees(&store, &lease, &listed.image, None, false)?)
        });
        if reads? {
            find::enter_ids(settings)?;
            break;
        }
    }
    let insecure = network::insecure(args.insecure, reference.registry());
    let lines = Lines::new(Direction::Push, args.quiet, settings);
    let registries = network::registries(settings, insecure, false, None, lines.sayer())?;
    if !tagged && !args.all_tags {
        lines.say("Using default tag: latest");
    }
    lines.say(&format!("The push refers to repository [{}]", reference.full_name()));
    let mut out = stdout();
    for (name, record) in &images {
        let documents = Documents::read(&store, record, wanted.as_ref())?;
        let descriptor = send(&registries, &store, &lease, documents, name, &lines)?;
        if wanted.is_none() {
            let repository = name.full_name();
            let origin = Origin { blob: descriptor.digest, repository };
            store.add_origin_of_image(&record.id, origin).map_err(anyhow::Error::from)?;
        }
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

/// What a record stands for: an image, or an index and its images.
struct Documents {
    images: Vec<Listed>,
    index: Option<(Index, Vec<u8>)>,
}

/// An image as its index lists it.
struct Listed {
    descriptor: Descriptor,
    image: OutputImage,
    /// The bytes of its manifest.
    manifest: Vec<u8>,
}

impl Documents {
    /// Those of a record, or of the image in it that is for one platform.
    fn read(store: &Store, record: &ImageRecord, wanted: Option<&Platform>) -> anyhow::Result<Self> {
        let Some(wanted) = wanted else { return Self::read_all(store, record) };
        let name = record.names.first().and_then(|name| Reference::parse(name).ok());
        let name = name.map_or_else(|| record.id.to_string(), |name| name.familiar());
        let chosen = find::for_platform(base::base_images(store, record)?, wanted, &name)?;
        let mut images = Self::read_all(store, record)?.images;
        images.retain(|listed| {
            Some(listed.descriptor.digest) == chosen.manifest.as_ref().map(|manifest| manifest.digest)
        });
        Ok(Self { images, index: None })
    }

    fn read_all(store: &Store, record: &ImageRecord) -> anyhow::Result<Self> {
        let bytes = store.read_blob(&record.manifest, MAX_MANIFEST_SIZE as u64)?;
        let whole = Descriptor::new(record.media_type.as_str().into(), record.manifest, bytes.len() as u64);
        Ok(match Document::parse(&bytes)? {
            Document::Manifest(manifest) => {
                Self { images: vec![Listed::read(store, whole, manifest, bytes)?], index: None }
            }
            Document::Index(index) => {
                let images = index.images().map(|entry| {
                    let bytes = store.read_blob(&entry.digest, MAX_MANIFEST_SIZE as u64)?;
                    Listed::read(store, entry.clone(), Manifest::parse(&bytes)?, bytes)
                });
                Self { images: images.collect::<anyhow::Result<_>>()?, index: Some((index, bytes)) }
            }
        })
    }
}

impl Listed {
    fn read(store: &Store, descriptor: Descriptor, parsed: Manifest, manifest: Vec<u8>) -> anyhow::Result<Self> {
        let config = store.read_blob(&parsed.config.digest, MAX_CONFIG_SIZE as u64)?;
        let image = OutputImage::new(config.clone(), &ImageConfig::parse(&config)?, parsed, Vec::new());
        Ok(Self { descriptor, image, manifest })
    }
}

fn send(
    registries: &Registries,
    store: &Store,
    lease: &Lease,
    Documents { images, index }: Documents,
    name: &Reference,
    lines: &Lines,
) -> anyhow::Result<Descriptor> {
    let target = Target {
        registries,
        names: std::slice::from_ref(name),
        by_digest: index.is_some(),
        compression: None,
        force: false,
        family: None,
        manifest: None,
        elsewhere: &|_| None,
        layers: &Layers::default(),
        listener: lines,
    };
    let mut sent = Vec::with_capacity(images.len());
    for Listed { descriptor, image, manifest } in &images {
        let Descriptor { media_type, digest, size, .. } =
            push(&Target { manifest: Some(manifest), ..target }, image, store, lease)?;
        sent.push(Descriptor { media_type, digest, size, ..descriptor.clone() });
    }
    let Some((index, bytes)) = index else { return Ok(sent.swap_remove(0)) };
    let media_type = index.media_type.clone().unwrap_or_else(|| Family::Oci.index());
    let (descriptor, bytes) = if index.manifests == sent {
        (Descriptor::of(media_type, &bytes), bytes)
    } else {
        // New layers are compressed for a registry, so the manifests are others, and those that are no images stay here.
        let bytes = Index { manifests: sent, ..index }.to_bytes();
        (Descriptor::of(media_type, &bytes), bytes)
    };
    push_index(&Target { by_digest: false, ..target }, &descriptor, &bytes)?;
    Ok(descriptor)
}
