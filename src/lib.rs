//! rbuild builds container images from Dockerfiles.
//!
//! Modules are listed in the order in which data flows through them:
//! text → `Dockerfile` → `StageGraph` → `Plan` → (`CacheKey`, step) → `Layer` → image → output.

pub mod diagnostic;
pub mod digest;
pub mod event;

pub mod dockerfile;

pub mod image;
pub mod plan;

pub mod cache;
pub mod context;

pub mod layer;
pub mod snapshot;
pub mod store;

pub mod exec;
pub mod fetch;
pub mod git;
pub mod http;
pub mod registry;

pub mod output;
pub mod shared;
pub mod solve;

pub mod cli;
pub mod sys;
