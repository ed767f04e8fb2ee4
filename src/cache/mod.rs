//! What was done before, and how it is found again.
//!
//! In: steps with everything that they depend on. Out: cache keys, and the layers that were recorded under them.
//! What always holds: a key holds every input of a step and nothing else (no time, no host path, no user); a record
//! appears complete or not at all and is read back with its checksum.

pub mod claims;
pub mod explain;
pub mod index;
pub mod key;
pub mod record;
pub mod urls;
