#![allow(unsafe_code)]
//! (being built)

pub mod cancel;
pub mod idmap;
pub mod mount;
pub mod namespace;
pub mod process;
