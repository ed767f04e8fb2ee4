//! Build contexts: where COPY and ADD take files from, and what of them a build may see.
//!
//! In: a directory and the patterns of its ignore file. Out: sorted entries with stats and, where they are known, the
//! SHA-256 of the data. What always holds: nothing outside the directory is ever read through it, whatever symbolic
//! links it holds, and excluded folders are never entered.

pub mod glob;
pub mod ignore;
pub mod local;
mod open;
pub mod stat_cache;
pub mod tar;
mod walk;
