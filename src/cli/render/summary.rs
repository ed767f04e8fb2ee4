//! What the build checks say in a build: a line for each, as docker shows it.
//!
//! In: warnings. Out: text. What always holds: a build check is told in one line, what else there is to say about it is
//! left to `--check`.

use std::fmt::Write as _;

use super::diagnostic::{Look, Style};
use super::output::printable;
use crate::diagnostic::{Diagnostic, Lines, Source};
use crate::dockerfile::lint::rule;

/// Whether a diagnostic is the finding of a build check.
pub(crate) fn is_check(diagnostic: &Diagnostic) -> bool {
    !diagnostic.is_error() && diagnostic.rule.and_then(rule).is_some()
}

/// All of them, after an empty line.
pub(crate) fn of(source: &Source, checks: &[Diagnostic], look: Look) -> String {
    let heading = match checks.len() {
        1 => "1 warning found (use --check to expand):".to_owned(),
        count => format!("{count} warnings found (use --check to expand):"),
    };
    let mut text = format!("\n {}\n", look.paint(Style::Warning, &heading));
    let lines = Lines::of(source);
    for check in checks {
        let line = check.span.map_or(String::new(), |span| format!(" (line {})", lines.at(span.start)));
        // Writing to a String does not fail.
        let _ = writeln!(text, " - {}: {}{line}", check.rule.unwrap_or_default(), printable(check.message.as_bytes()));
    }
    text
}
