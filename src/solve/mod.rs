//! (being built)

pub mod copy;
