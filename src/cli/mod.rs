//! (being built)

pub mod render;
