//! (being built)

pub mod ast;
pub mod flags;
