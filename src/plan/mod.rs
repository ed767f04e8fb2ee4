//! (being built)

pub mod step;
