//! What a step leaves: sets of entries, their digests, and the forms they take.
//!
//! A layer is a sorted list of [`entry::Entry`] values and the bytes of its files. The list lives in a
//! [`index::LayerIndex`]; the bytes live in a tar or in a tree. Data flows
//!
//! ```text
//! entries + bytes ──write──▶ tar + index ──apply──▶ tree in overlay form
//! foreign tar ──────scan───▶       index
//! indexes ─────────stack───▶ merged view
//! ```
//!
//! `entry`, `entry_ref`, `index`, `compare`, `content` and `stack` are pure: they touch no file and no clock.

pub mod apply;
pub mod capability;
mod chunk;
pub mod compare;
pub mod compress;
pub mod content;
pub mod data;
mod deflate;
pub mod entry;
pub mod entry_ref;
pub mod header;
pub mod index;
pub mod scan;
pub mod stack;
mod stream;
pub mod write;

#[cfg(test)]
pub(crate) mod sample;
