//! (being built)

pub mod age;
pub mod args;
pub mod output_spec;
pub mod render;
pub mod settings;
pub mod size;
