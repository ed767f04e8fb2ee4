//! Errors and warnings as text.
//!
//! In: diagnostics with their source, failed steps with the end of their output, chains of causes. Out: text for
//! standard error, ending in a line end: what, where, an excerpt with carets, why, what to do. What always holds: any
//! span gives some text (no panic), and whatever a file or a command wrote is shown without its control characters.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::output::Tail;
use crate::diagnostic::{Diagnostic, Severity, Source, Span};

/// How text is dressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// With colour.
    pub color: bool,
    /// Columns there are.
    pub width: usize,
}

impl Look {
    /// `text` between the escape sequence of `style` and the one that ends it; bare without colour.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.color { format!("\u{1b}[{}m{text}\u{1b}[0m", style.code()) } else { text.to_owned() }
    }
}

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `error:`.
    Error,
    /// `warning:`.
    Warning,
    /// What was taken from the cache.
    Cached,
    /// Less important.
    Faint,
    /// A heading.
    Bold,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Error => "1;91",
            Self::Warning => "33",
            Self::Cached => "36",
            Self::Faint => "2",
            Self::Bold => "1",
        }
    }
}

/// One diagnostic about `source`.
pub fn diagnostic(source: &Source, diagnostic: &Diagnostic, look: Look) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(&diagnostic.message);
    let title = match diagnostic.rule {
        Some(rule) => title.id(rule),
        None => title,
    };
    let group = Group::with_title(title);
    let excerpt = diagnostic.span.map(|span| Excerpt::of(source, span));
    let mut group = match &excerpt {
        Some(excerpt) => {
            let annotation =
                AnnotationKind::Primary.span(excerpt.start..excerpt.end).label(diagnostic.label.as_deref());
            let snippet = Snippet::source(&excerpt.text).line_start(excerpt.line).path(&source.name);
            group.element(snippet.annotation(annotation))
        }
        None => group.element(Origin::path(&source.name)),
    };
    for help in &diagnostic.help {
        group = group.element(Level::HELP.message(help));
    }
    let renderer = if look.color { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.term_width(look.width.max(40)).render(&[group]);
    text.push('\n');
    text
}

/// All of them, one after the other.
pub fn diagnostics(source: &Source, list: &[Diagnostic], look: Look) -> String {
    list.iter().map(|one| diagnostic(source, one, look)).collect::<Vec<_>>().join("\n")
}

/// A step that failed: the diagnostic about its instruction, and the end of what it wrote.
pub fn failed_step(source: &Source, failure: &Diagnostic, tail: &Tail, look: Look) -> String {
    let mut text = diagnostic(source, failure, look);
    if tail.lines.is_empty() {
        text.push_str("It wrote no output.\n");
        return text;
    }
    let heading = if tail.seen > tail.lines.len() {
        format!("The last {} of {} lines that it wrote:", tail.lines.len(), tail.seen)
    } else {
        "What it wrote:".to_owned()
    };
    text.push_str(&look.paint(Style::Bold, &heading));
    text.push('\n');
    for line in &tail.lines {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// An error and what caused it. A cause that the error's own text already tells is not told again.
pub fn error(error: &anyhow::Error, look: Look) -> String {
    let mut said = error.to_string();
    let mut text = message(&said, look);
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            text.push_str("  caused by: ");
            text.push_str(&indent(&cause));
            text.push('\n');
            said = cause;
        }
    }
    text
}

/// A message after `error: `.
pub fn message(text: &str, look: Look) -> String {
    format!("{} {}\n", look.paint(Style::Error, "error:"), text.trim_end())
}

fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

/// The lines of a source that a span touches.
struct Excerpt {
    text: String,
    /// The number of the first of them.
    line: usize,
    /// The span within `text`.
    start: usize,
    end: usize,
}

impl Excerpt {
    fn of(source: &Source, span: Span) -> Self {
        let text = source.text.as_str();
        let start = boundary(text, span.start.min(text.len()));
        let end = boundary(text, span.end.clamp(start, text.len()));
        // Blanks and line ends at the end of a span would put the caret on a line that says nothing.
        let end = start + text[start..end].trim_end().len();
        let from = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let to = text[end..].find('\n').map_or(text.len(), |newline| end + newline);
        let cut = &text[from..to.max(end)];
        Self { text: cut.to_owned(), line: source.line(from), start: start - from, end: end - from }
    }
}

/// The last place at or before `offset` where a character begins.
fn boundary(text: &str, offset: usize) -> usize {
    (0..=offset).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
