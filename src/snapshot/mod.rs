//! What a step changed.
//!
//! In: the upper folder of an overlay in which a command ran, and the layers below it. Out: a layer of what it added,
//! changed and removed. What always holds: only the upper folder is walked, never the whole root; what the command left
//! as it was is no part of the layer.

pub mod copied;
pub mod diff;
