//! The end of a build that goes to a registry.
//!
//! In: the images of a build. Out: the registry has them under their names. What always holds: layers of a base that no
//! step read do not come here for it; an index goes when all its images are there, which have no tags of their own.

use std::time::Instant;

use super::Job;
use super::finish::{Listed, Made};
use super::outputs;
use super::share;
use crate::cli::failure::Failure;
use crate::cli::output_spec::OutputSpec;
use crate::digest::DiffId;
use crate::event::{Event, EventSink};
use crate::image::annotation::{Carrier, annotations_of};
use crate::image::assemble::AssembledIndex;
use crate::image::reference::Reference;
use crate::output::registry::{Target, push as send, push_index};
use crate::registry::pull::Quiet;

/// Pushes them; the documents as the registry has them.
pub(super) fn push(job: &Job<'_>, spec: &OutputSpec, made: &Made) -> Result<Listed, Failure> {
    let shown = made.names.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
    let label = format!("pushing {shown}");
    job.reporter.event(Event::Began(&label));
    let began = Instant::now();
    let annotations = outputs::annotations(job, Some(spec));
    let family = outputs::family(Some(spec));
    let target = Target {
        registries: job.remotes.registries()?,
        names: &made.names,
        by_digest: spec.by_digest || made.index,
        compression: outputs::compression(spec),
        force: spec.force_compression,
        family,
        manifest: None,
        elsewhere: &|layer: &DiffId| job.remotes.elsewhere(layer).or_else(|| share::elsewhere(job, layer)),
        listener: &Quiet,
    };
    let mut manifests = Vec::with_capacity(made.images.len());
    for (platform, image) in &made.images {
        let image = outputs::output_image(platform, image, &annotations, &made.names);
        let mut descriptor = send(&target, &image, job.store, job.lease).map_err(anyhow::Error::from)?;
        if made.index {
            descriptor.platform = Some(platform.into());
            descriptor.annotations = image.descriptor_annotations;
        }
        manifests.push((descriptor, platform.clone()));
    }
    let listed: Vec<_> = manifests.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    let descriptor = if made.index {
        let own = annotations_of(&annotations, Carrier::Index, None);
        let index = AssembledIndex::new(family.unwrap_or_default(), manifests, own);
        let target = Target { by_digest: spec.by_digest, ..target };
        push_index(&target, &index.descriptor(), &index.bytes).map_err(anyhow::Error::from)?;
        index.descriptor()
    } else {
        // Proof: a result without an index has one image.
        listed[0].clone()
    };
    job.reporter.event(Event::Ended(&label, began.elapsed()));
    job.reporter.event(Event::Note(&format!("pushed {shown} digest: {} size: {}", descriptor.digest, descriptor.size)));
    Ok(Listed { descriptor, manifests: listed })
}
