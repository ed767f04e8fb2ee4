//! Standard output, which carries results and nothing else.
//!
//! In: bytes. Out: the same, on standard output. What always holds: a reader that went away (`rbuild images | head -1`)
//! is told apart from every other broken pipe, since it is no failure.

use std::io::{self, Write};

/// Standard output.
#[derive(Debug)]
pub struct Stdout(io::StdoutLock<'static>);

/// Nobody reads standard output any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct Closed;

/// Standard output for one command's results.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(error.kind(), Closed),
        // Callers and the standard library go on after this one.
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

/// Whether `error` comes from standard output that nobody reads.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    let inner = |error: &io::Error| matches!(error.get_ref(), Some(inner) if inner.is::<Closed>());
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(inner))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_standard_outputs_broken_pipe_is_no_failure() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed(&mark(broken()).into()));
        assert!(is_closed(&Err::<(), _>(mark(broken())).context("cannot print").unwrap_err()));
        assert!(!is_closed(&broken().into()));
        assert!(!is_closed(&mark(io::Error::from(io::ErrorKind::StorageFull)).into()));
    }
}
