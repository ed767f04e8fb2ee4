//! What this machine allows.
use std::io;

pub(super) const ARGUMENT: &str = "probe";

pub(super) fn init() -> io::Result<()> {
    Ok(())
}
