//! The kernel: the only `unsafe` code and the only raw system calls.
//!
//! In: paths, descriptors, numbers. Out: what the kernel answers, as `io::Error` where it refuses. What always holds:
//! nothing here knows of images, layers or builds.
#![allow(unsafe_code)]

pub mod cancel;
pub mod file;
pub mod idmap;
pub mod mount;
pub mod namespace;
pub mod process;
pub mod root_dir;
pub mod threads;
pub mod xattr;
