//! The end of a build that goes to a registry.
//!
//! In: the assembled image. Out: the registry has it under its names. What always holds: layers of a base that no step
//! read do not come here for it.

use std::time::Instant;

use super::Job;
use crate::cli::failure::Failure;
use crate::cli::output_spec::OutputSpec;
use crate::digest::DiffId;
use crate::event::{Event, EventSink};
use crate::image::assemble::Assembled;
use crate::image::manifest::{Descriptor, Family};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::output::OutputImage;
use crate::output::registry::{Target, push as send};
use crate::registry::pull::Quiet;

/// Pushes it; the manifest as the registry has it.
pub(super) fn push(
    job: &Job<'_>,
    spec: &OutputSpec,
    compression: Option<Compression>,
    family: Option<Family>,
    image: &Assembled,
    names: &[Reference],
) -> Result<Descriptor, Failure> {
    let registries = job.remotes.registries()?;
    let shown = names.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
    let label = format!("pushing {shown}");
    job.reporter.event(Event::Began(&label));
    let began = Instant::now();
    let target = Target {
        registries,
        names,
        by_digest: spec.by_digest,
        compression,
        force: spec.force_compression,
        family,
        manifest: None,
        elsewhere: &|layer: &DiffId| job.remotes.elsewhere(layer),
        listener: &Quiet,
    };
    let image = OutputImage::new(image.config_bytes.clone(), &image.config, image.manifest.clone(), names.to_vec());
    let descriptor = send(&target, &image, job.store, job.lease).map_err(anyhow::Error::from)?;
    job.reporter.event(Event::Ended(&label, began.elapsed()));
    job.reporter.event(Event::Note(&format!("pushed {shown} digest: {} size: {}", descriptor.digest, descriptor.size)));
    Ok(descriptor)
}
