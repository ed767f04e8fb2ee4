//! How a command ends when it does not succeed.
//!
//! In: what went wrong, as the commands return it. Out: a text for standard error and an exit status: 1 for a build or
//! a command that failed, 2 for wrong usage, 130 or 143 for an interruption.

use std::io;
use std::process::ExitCode;

use super::render::diagnostic::{self, Look};
use super::render::output::Tail;
use super::render::summary;
use super::settings::SettingsError;
use crate::diagnostic::{Diagnostic, Source};

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The words on the command line are wrong, or ask for what rbuild cannot do yet. Exit status 2.
    Usage(String),
    /// The Dockerfile is wrong. Exit status 1.
    Diagnostics {
        /// What they are about.
        source: Source,
        /// Errors, and warnings that were not shown yet; not empty.
        list: Vec<Diagnostic>,
    },
    /// A step failed. Exit status 1, whatever status its command had.
    Step {
        /// The Dockerfile.
        source: Source,
        /// What failed, at its instruction.
        diagnostic: Box<Diagnostic>,
        /// The end of what it wrote.
        tail: Tail,
    },
    /// Anything else. Exit status 1.
    Error(anyhow::Error),
    /// The user stopped it with this signal. Exit status 128 and the signal's number.
    Interrupted(i32),
}

impl Failure {
    /// The status that the process ends with.
    pub fn status(&self) -> u8 {
        match self {
            Self::Diagnostics { .. } | Self::Step { .. } | Self::Error(_) => 1,
            Self::Usage(_) => 2,
            // Signals are 1 to 64: anything else was no signal.
            Self::Interrupted(signal) => {
                u8::try_from(*signal).ok().and_then(|signal| signal.checked_add(128)).unwrap_or(1)
            }
        }
    }

    /// The status as what `main` returns.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    /// What the user is told.
    pub fn text(&self, look: Look) -> String {
        match self {
            Self::Usage(message) => diagnostic::message(message, look),
            Self::Diagnostics { source, list } => {
                let (checks, rest): (Vec<_>, Vec<_>) = list.iter().cloned().partition(summary::is_check);
                let summary = if checks.is_empty() { String::new() } else { summary::of(source, &checks, look) };
                summary + &diagnostic::diagnostics(source, &rest, look)
            }
            Self::Step { source, diagnostic, tail } => diagnostic::failed_step(source, diagnostic, tail, look),
            Self::Error(error) => diagnostic::error(error, look),
            Self::Interrupted(_) => "interrupted\n".to_owned(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::Error(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Span;

    #[test]
    fn every_failure_has_its_status_and_its_text() {
        let source = || Source { name: "Dockerfile".into(), text: "RUN x\n".into() };
        let diagnostic = || Diagnostic::error(Span::new(0, 5), "RUN failed with exit status 42");
        for (failure, status, text) in [
            (Failure::Usage("what?".into()), 2, "error: what?\n"),
            (
                Failure::Diagnostics { source: source(), list: vec![diagnostic()] },
                1,
                "error: RUN failed with exit status 42\n --> Dockerfile:1:1\n  |\n1 | RUN x\n  | ^^^^^\n",
            ),
            (
                Failure::Step { source: source(), diagnostic: Box::new(diagnostic()), tail: Tail::default() },
                1,
                "error: RUN failed with exit status 42\n --> Dockerfile:1:1\n  |\n1 | RUN x\n  | ^^^^^\n\
                 It wrote no output.\n",
            ),
            (Failure::from(anyhow::anyhow!("why").context("what")), 1, "error: what\n  caused by: why\n"),
            (Failure::Interrupted(2), 130, "interrupted\n"),
            (Failure::Interrupted(15), 143, "interrupted\n"),
            (Failure::Interrupted(-1), 1, "interrupted\n"),
        ] {
            assert_eq!(failure.status(), status, "{failure:?}");
            assert_eq!(failure.text(Look { color: false, width: 80 }), text);
        }
    }
}
