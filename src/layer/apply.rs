//! stub
use super::index::LayerIndex;
use super::stack::LayerStack;
use std::fs::File;
use std::path::Path;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour { Trusted, User }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeOptions { pub flavour: Flavour, pub devices: bool }
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct ApplyError;
pub fn apply(_: &LayerIndex, _: &File, _: &Path, _: &TreeOptions) -> Result<Vec<String>, ApplyError> { Err(ApplyError) }
pub fn apply_on_parents(_: &LayerIndex, _: &LayerStack, _: &File, _: &Path, _: &TreeOptions) -> Result<Vec<String>, ApplyError> { Err(ApplyError) }
pub fn needs_parents(_: &LayerIndex) -> bool { false }
