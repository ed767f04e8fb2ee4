//! (being built)

pub mod config;
pub mod platform;
