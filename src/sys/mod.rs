//! (being built)
#![allow(unsafe_code)]

pub mod file;
pub mod root_dir;
pub mod xattr;
