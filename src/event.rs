//! What the engine says to the outside while it works.
//!
//! In: nothing; plain values that `solve` and `output` emit. Out: a reporter in `cli::render` draws them. What always
//! holds: nothing below `cli` prints; every step that is `Started` is later `Finished`, `Failed` or `Canceled`.

use std::fmt;
use std::time::Duration;

use crate::diagnostic::Diagnostic;
use crate::digest::{CacheKey, DiffId};
use crate::plan::step::{Plan, StepId};

/// Receives events from any thread, in the order in which they happen per step.
pub trait EventSink: Sync {
    /// Takes note of `event`.
    fn event(&self, event: Event<'_>);
}

/// Which of a command's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The plan stands; its steps are about to be looked up and run.
    Planned(&'a Plan),
    /// A part of the build that is no step of the plan begins (`[internal] load build context`, `exporting to image`).
    Began(&'a str),
    /// That part ended.
    Ended(&'a str, Duration),
    /// A shared cache of that name has the result of the step, which is `Cached` then.
    Imported(StepId, &'a str),
    /// The cache has the result of the step.
    Cached(StepId, CacheKey),
    /// The cache does not have it, and why.
    Missed(StepId, &'a MissReason),
    /// The step runs.
    Started(StepId),
    /// The step's command wrote this.
    Output(StepId, Stream, &'a [u8]),
    /// The step is done: its layer, and how long it took.
    Finished(StepId, DiffId, Duration),
    /// The step failed.
    Failed(StepId, &'a str),
    /// The step was stopped, since another one failed or the user wished it.
    Canceled(StepId),
    /// Something to know that does not stop the build.
    Warning(&'a Diagnostic),
    /// One line to know, without a place in a file.
    Note(&'a str),
}

/// Why a step's result was not in the cache. Shown by `--explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissReason {
    /// No build in this store has run such a step.
    FirstBuild,
    /// `--no-cache` or `--no-cache-filter`.
    Disabled,
    /// The instruction is not what it was.
    OpChanged {
        /// The part that differs (`command`, `environment PATH`, `user` …).
        what: String,
        /// Its value in the nearest record.
        old: String,
        /// Its value now.
        new: String,
    },
    /// What the step builds on has another content.
    ParentChanged,
    /// What a COPY finds where it lands is not what it was.
    LandingChanged,
    /// Files that it copies are not what they were: some of their names.
    FilesChanged {
        /// Up to ten paths.
        paths: Vec<String>,
        /// How many more there are.
        more: usize,
    },
    /// What the mounts of a RUN show is not what it was.
    MountsChanged,
    /// The record is there, its layer is not.
    LayerGone,
    /// The record cannot be read.
    Damaged(String),
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstBuild => f.write_str("never built in this store"),
            Self::Disabled => f.write_str("the cache is off for it (--no-cache)"),
            Self::OpChanged { what, old, new } => write!(f, "{what} changed from {old:?} to {new:?}"),
            Self::ParentChanged => f.write_str("the file system it builds on changed"),
            Self::LandingChanged => f.write_str("what is there at the destination changed"),
            Self::FilesChanged { paths, more } => {
                write!(f, "files changed: {}", paths.join(", "))?;
                if *more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
            Self::MountsChanged => f.write_str("what its mounts show changed"),
            Self::LayerGone => f.write_str("its layer is no longer in the store"),
            Self::Damaged(why) => write!(f, "its cache record is damaged: {why}"),
        }
    }
}
