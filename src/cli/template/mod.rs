//! `--format`: Go's templates, as far as scripts for Docker use them.
//!
//! In: a template such as `{{range .RepoTags}}{{.}} {{end}}`, and values. Out: text as Go prints it. What always
//! holds: what is not understood is refused when the template is read, with its place, before anything is printed.
//!
//! ```text
//! text ──lex──▶ pieces and tokens ──parse──▶ nodes ──eval──▶ text
//! ```

mod eval;
mod functions;
mod lex;
mod parse;
mod print;
pub(crate) mod value;

use self::value::Value;

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    source: String,
    nodes: Vec<parse::Node>,
}

/// What is wrong, and at which byte of the template.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    at: usize,
    why: String,
}

impl Mistake {
    fn new(at: usize, why: impl Into<String>) -> Self {
        Self { at, why: why.into() }
    }

    /// With the place in the template, which a line can show.
    fn text(&self, source: &str) -> String {
        let at = (0..=self.at.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
        if source.chars().any(char::is_control) {
            let line = source[..at].matches('\n').count() + 1;
            return format!("{} (line {line} of the template)", self.why);
        }
        format!("{}\n  {source}\n  {}^", self.why, " ".repeat(unicode_width::UnicodeWidthStr::width(&source[..at])))
    }
}

impl Template {
    /// Reads a template. The error fits after "--format: ".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::read(text, false)
    }

    /// The same for rows of a list, in whose text, as shells make it hard to write tabs and line ends, `\t` and `\n` are
    /// such.
    pub(crate) fn of_rows(text: &str) -> Result<Self, String> {
        Self::read(text, true)
    }

    fn read(text: &str, escapes: bool) -> Result<Self, String> {
        let pieces = lex::lex(text, escapes);
        let nodes = pieces.and_then(|pieces| parse::parse(&pieces)).map_err(|mistake| mistake.text(text))?;
        Ok(Self { source: text.to_owned(), nodes })
    }

    /// The text for `value`. A field that a struct does not have is an error.
    pub(crate) fn render(&self, value: &Value) -> Result<String, String> {
        eval::render(&self.nodes, value, false).map_err(|mistake| mistake.text(&self.source))
    }

    /// The text for the titles of columns: functions that change a text leave them as they are.
    pub(crate) fn render_titles(&self, titles: &Value) -> Result<String, String> {
        eval::render(&self.nodes, titles, true).map_err(|mistake| mistake.text(&self.source))
    }
}

#[cfg(test)]
mod tests;
