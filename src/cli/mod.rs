//! (being built)

pub mod args;
pub mod output_spec;
pub mod render;
pub mod settings;
