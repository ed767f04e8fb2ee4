//! What the tests share.

pub mod base;
pub mod context;
pub mod env;
pub mod machine;
pub mod oci;
pub mod pty;
pub mod random;
pub mod registry;
pub mod scenario;
pub mod web;
