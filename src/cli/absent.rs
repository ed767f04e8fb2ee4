//! Layers of stored images that never came here, for commands that must read them.
//!
//! In: an image of the store, pinned. Out: all its layers in the store. What always holds: where all is here nobody is
//! asked; each layer comes from a registry that is known to have it; what the image holds is written down once it is known.

use super::failure::Failure;
use super::network::{self, Direction, Lines};
use super::settings::Settings;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::store::images::ImageRecord;
use crate::store::lease::Lease;
use crate::store::origins::AbsentLayer;
use crate::store::{Store, base};
use crate::sys::cancel::Cancel;

/// Brings them. `images` are those of the record that are read.
pub(super) fn bring(
    store: &Store,
    lease: &Lease,
    (record, images): (&ImageRecord, &[BaseImage]),
    settings: &Settings,
    cancel: Option<&Cancel>,
) -> Result<(), Failure> {
    let mut came = false;
    for image in images {
        let absent = store.absent_layers(image).map_err(anyhow::Error::from)?;
        // What is here in another form, and nowhere else, will do.
        if !absent.iter().any(|layer| !layer.from.is_empty() || !store.has_layer(&layer.diff_id)) {
            continue;
        }
        let lines = Lines::new(Direction::Pull, false, settings);
        let shown = Reference::parse(&image.name).map_or_else(|_| image.name.clone(), |name| name.familiar());
        lines.say(&format!(
            "{shown} has layers that never came here; they come now from {}",
            places(&absent).join(", ")
        ));
        let registries = network::registries(settings, network::secure(), false, cancel, lines.sayer())?;
        registries.bring(store, lease, image, None, &*lines).map_err(anyhow::Error::from)?;
        came = true;
    }
    if came {
        lease.sync().and_then(|()| base::refresh(store, record)).map_err(anyhow::Error::from)?;
    }
    Ok(())
}

/// The repositories that have these layers, each once: where each was seen last.
pub(super) fn places(absent: &[AbsentLayer]) -> Vec<String> {
    let mut places: Vec<String> =
        absent.iter().filter_map(|layer| layer.from.first()).map(Reference::familiar_name).collect();
    places.sort();
    places.dedup();
    places
}
