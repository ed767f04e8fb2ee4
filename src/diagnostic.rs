//! What rbuild has to say about a text that a user wrote, and where in it.
//!
//! In: a [`Source`] and byte offsets. Out: [`Diagnostic`] values. Rendering (excerpt, caret, colour) lives in
//! `cli::render`; nothing here prints.

use std::fmt;

/// A range of bytes in a [`Source`]: `start` included, `end` not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
}

impl Span {
    /// The range from `start` to before `end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

/// A text with the name that messages give it. Offsets of spans are offsets into `text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name in messages, such as `Dockerfile` or `docker/app.Dockerfile`.
    pub name: String,
    /// The text, exactly as it was read.
    pub text: String,
}

impl Source {
    /// The line (from 1) that holds the byte at `offset`.
    pub fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        self.text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Where the lines of a [`Source`] begin: for whoever asks often.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// The lines of `source`.
    pub fn of(source: &'a Source) -> Self {
        let ends = source.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text: &source.text, starts: std::iter::once(0).chain(ends).collect() }
    }

    /// How many there are; after a line feed at the end comes an empty one.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The line (from 1) that holds the byte at `offset`.
    pub fn at(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// First and last line that `span` touches.
    pub fn touched(&self, span: Span) -> (usize, usize) {
        let first = self.at(span.start);
        (first, self.at(span.end.max(span.start + 1) - 1).max(first))
    }

    /// The text of a line, without its end; empty where there is none.
    pub fn text(&self, number: usize) -> &'a str {
        let Some(start) = number.checked_sub(1).and_then(|index| self.starts.get(index)) else { return "" };
        let end = self.starts.get(number).copied().unwrap_or(self.text.len());
        self.text[*start..end].trim_end_matches(['\r', '\n'])
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The build goes on.
    Warning,
    /// The build cannot go on.
    Error,
}

/// One thing to say about a source: what, where, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the build can go on.
    pub severity: Severity,
    /// Docker's name of the build check (`JSONArgsRecommended`), for those that have one.
    pub rule: Option<&'static str>,
    /// What is wrong: one line, lower case, no full stop.
    pub message: String,
    /// Where; `None` where it is about the whole file.
    pub span: Option<Span>,
    /// A few words under the caret.
    pub label: Option<String>,
    /// Why, or what to do: each a line of its own after the excerpt ("did you mean …", "not supported yet: …").
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span: Some(span),
            label: None,
            help: Vec::new(),
        }
    }

    /// A warning at `span` with Docker's name for the rule.
    pub fn warning(span: Span, rule: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule: Some(rule), ..Self::error(span, message) }
    }

    /// The same with a few words under the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The same with one more line of help.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Whether the build cannot go on.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The candidate nearest to `word`, if it is near enough to be what was meant: at most a third of the letters
/// (and at least one) may differ, letter case apart. For "did you mean".
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = word.to_lowercase().chars().collect();
    let limit = (wanted.len() / 3).max(1);
    candidates
        .into_iter()
        // So many edits are needed at least; most candidates need no closer look.
        .filter(|candidate| candidate.chars().count().abs_diff(wanted.len()) <= limit)
        .map(|candidate| (distance(&wanted, &candidate.to_lowercase().chars().collect::<Vec<_>>()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`: optimal string alignment.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_strangers_are_not() {
        let stages = ["build", "test", "release"];
        for (word, expected) in [
            ("bulid", Some("build")),
            ("BUILD", Some("build")),
            ("tests", Some("test")),
            ("zzz", None),
            ("", None),
            ("relaese", Some("release")),
        ] {
            assert_eq!(nearest(word, stages), expected, "{word}");
        }
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source { name: "Dockerfile".into(), text: "a\nb\n".into() };
        let lines = Lines::of(&source);
        assert_eq!([0, 1, 2, 4, 99].map(|offset| lines.at(offset)), [1, 1, 2, 3, 3]);
        assert_eq!((lines.count(), [0, 1, 2, 3, 4].map(|number| lines.text(number))), (3, ["", "a", "b", "", ""]));
        assert_eq!([(0, 1), (0, 3), (2, 2)].map(|(a, b)| lines.touched(Span::new(a, b))), [(1, 1), (1, 2), (2, 2)]);
        assert_eq!([0, 1, 2, 4, 99].map(|offset| source.line(offset)), [1, 1, 2, 3, 3]);
    }
}
