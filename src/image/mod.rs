//! The documents that make an image: config, manifest, index, and the names and platforms in them.
//!
//! In: bytes and texts. Out: typed values and canonical bytes. What always holds: nothing here reads a file, the
//! environment or the clock.

pub mod accounts;
pub mod annotation;
pub mod assemble;
pub mod compare;
pub mod config;
pub mod manifest;
pub mod platform;
pub mod reference;
