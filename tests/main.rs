//! The tests that look at rbuild from outside: one binary, the real program, real stores, the real kernel.
//!
//! Each module is one subject. `support` holds what they share: a store and a home of its own for each test, a base
//! image made from Debian's static busybox, and a reader that re-hashes every image it reads.
#![allow(clippy::print_stdout, clippy::print_stderr, unreachable_pub)]

mod support;

mod build;
mod cache;
mod cases;
mod changing;
mod concurrent;
mod conformance;
mod damage;
mod decisions;
mod differential;
mod explain;
mod ignore;
mod images;
mod isolation;
mod kill;
mod layering;
mod lint;
mod mounts;
mod parse;
mod plan;
mod platforms;
mod prune;
mod push;
mod random;
mod recovery;
mod registry;
mod remote;
mod reproducible;
mod rootless;
mod save;
mod scenarios;
mod seeds;
mod servers;
mod shared;
mod shell;
mod signals;
