//! (being built)

pub mod accounts;
pub mod config;
pub mod platform;
