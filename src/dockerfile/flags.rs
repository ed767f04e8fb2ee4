//! (being built)
use super::ast::{Run, Script};

pub(crate) fn run_script(_run: &Run) -> Script {
    unimplemented!()
}
