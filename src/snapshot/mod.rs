//! (being built)
pub mod diff;
