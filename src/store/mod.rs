//! Durable state under one root folder.
//!
//! In: bytes and values of the upper tiers. Out: files that appear complete, by rename, or not at all.
//! What always holds: a blob or layer is named by its digest and never changes; whoever loses the race to write one
//! has succeeded; every write is noted in a [`lease::Lease`] first, so that what a power cut damaged is found again.
//!
//! ```text
//! format                       version of this layout
//! images.json                  names → manifests, under images.lock; images.copy.json is the same
//! suspects                     what readers found damaged: checked by the next command
//! blobs/sha256/<hex>           configs, manifests, compressed layers
//! layers/<diffID hex>/         index, and forms of the layer: tar, tree/, blobs (descriptors), epoch (a form of another layer)
//! trees/<chainID hex>/tree/    a layer from outside that is no tree by itself, applied over its parents
//! origins/<hex>                repositories that have a layer (by its diffID), which need not be here, or an image (by its id)
//! cache/                       see `cache::index`, `context::stat_cache` and `bases`
//! mounts/<hash of a name>/     see `cache_mounts`
//! leases/<id>, tmp/<id>/       running builds, and their unfinished files; leases/noted-…: `suspects` while they are checked
//! trash/                       on its way out
//! ```

pub mod arrive;
pub mod base;
mod bases;
pub mod blobs;
pub mod cache_mounts;
pub mod gc;
pub mod images;
pub mod import;
mod intake;
pub mod layers;
pub mod layout;
pub mod lease;
pub mod load;
pub mod origins;
pub mod recover;
pub mod suspect;
pub mod sweep;
pub mod usage;
pub mod verify;

pub use layout::{Store, StoreError};
