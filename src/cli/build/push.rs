//! The end of a build that goes to a registry.
//!
//! In: the assembled image. Out: the registry has it under its names. What always holds: layers of a base that no step
//! read do not come here for it.

use std::time::Instant;

use super::Job;
use crate::cli::failure::Failure;
use crate::cli::output_spec::OutputSpec;
use crate::digest::{DiffId, Digest};
use crate::event::{Event, EventSink};
use crate::image::assemble::Assembled;
use crate::image::manifest::{Descriptor, Family};
use crate::image::reference::Reference;
use crate::layer::compress::Compression;
use crate::output::OutputImage;
use crate::output::registry::{Target, push as send};
use crate::registry::pull::{Transfer, Transfers};

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
        listener: &Told { job },
    };
    let image = OutputImage::new(image.config_bytes.clone(), &image.config, image.manifest.clone(), names.to_vec());
    let descriptor = send(&target, &image, job.store, job.lease).map_err(anyhow::Error::from)?;
    job.reporter.event(Event::Note(&format!("pushed {shown} digest: {} size: {}", descriptor.digest, descriptor.size)));
    job.reporter.event(Event::Ended(&label, began.elapsed()));
    Ok(descriptor)
}

/// Tells the reporter what became of layers.
struct Told<'a> {
    job: &'a Job<'a>,
}

impl Transfers for Told<'_> {
    fn transfer(&self, blob: &Digest, event: Transfer<'_>) {
        let words = match event {
            Transfer::Moved(_) | Transfer::Begins { .. } => return,
            Transfer::Exists => "Layer already exists".to_owned(),
            Transfer::Done => "Pushed".to_owned(),
            Transfer::Mounted { from } => format!("Mounted from {from}"),
        };
        self.job.reporter.event(Event::Note(&format!("{}: {words}", &blob.hex()[..12])));
    }
}
