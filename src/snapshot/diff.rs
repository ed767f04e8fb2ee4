//! stub
use crate::layer::{index::LayerIndex, stack::LayerStack, apply::TreeOptions};
use std::path::Path;
use std::time::SystemTime;
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct CommitError;
pub fn commit(_: &Path, _: &LayerStack, _: SystemTime, _: &TreeOptions) -> Result<LayerIndex, CommitError> { Err(CommitError) }
