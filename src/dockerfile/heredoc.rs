//! Here-documents: which of them a line opens, and where their bodies end.
//!
//! In: a logical line, and the source after it. Out: [`Heredoc`] values. What always holds: a body is searched once,
//! up to its terminator or to the end of the file, so no input makes the search quadratic.

use super::ast::Heredoc;
use super::parser;
use super::word::{self, WordError};
use crate::diagnostic::Span;

/// What a word like `<<-"EOF"` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// The terminator.
    pub name: String,
    /// Whether variables in the body are expanded.
    pub expand: bool,
    /// Whether leading tabs are stripped.
    pub chomp: bool,
}

/// A here-document's body, found.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) heredoc: Heredoc,
    /// Offset of the line after the terminator.
    pub(super) next: usize,
    pub(super) terminated: bool,
}

impl Opener {
    /// Reads one word. `None` where it opens nothing.
    pub fn of_word(word: &str) -> Result<Option<Self>, WordError> {
        let Some((chomp, name)) = parser::heredoc_opener(word) else { return Ok(None) };
        let (words, quoted) = word::heredoc_name(&name)?;
        match <[String; 1]>::try_from(words) {
            Ok([name]) => Ok(Some(Self { name, expand: !quoted, chomp })),
            Err(_) => Ok(None),
        }
    }

    /// All that a line opens, in order. A line whose quotes or braces are not closed opens nothing.
    pub fn of_line(line: &str) -> Result<Vec<Self>, WordError> {
        if !line.contains("<<") {
            return Ok(Vec::new());
        }
        let Ok(words) = word::shell_words(line) else { return Ok(Vec::new()) };
        words.iter().filter_map(|word| Self::of_word(word).transpose()).collect()
    }

    /// Reads the body that begins at `start`; also says where the next line begins. Without a terminator the body is
    /// all that is left, and its span holds nothing else.
    pub(super) fn body(&self, source: &str, start: usize) -> Body {
        let mut at = start;
        let mut terminator = None;
        for line in source[start..].split_inclusive('\n') {
            let mut bare = line.trim_end_matches(['\r', '\n']);
            if self.chomp {
                bare = bare.trim_start_matches('\t');
            }
            if bare == self.name {
                terminator = Some((at + line.trim_end_matches(['\r', '\n']).len(), at + line.len()));
                break;
            }
            at += line.len();
        }
        let raw = &source[start..at];
        let content = if self.chomp { without_tabs(raw) } else { raw.to_owned() };
        let heredoc = Heredoc {
            name: self.name.clone(),
            raw: (content != raw).then(|| raw.to_owned()),
            content,
            expand: self.expand,
            chomp: self.chomp,
            span: Span::new(start, terminator.map_or(at, |(end, _)| end)),
        };
        Body { heredoc, next: terminator.map_or(at, |(_, next)| next), terminated: terminator.is_some() }
    }
}

fn without_tabs(body: &str) -> String {
    body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openers() {
        for (word, expected) in [
            ("<<EOF", Some(("EOF", true, false))),
            ("<<-EOF", Some(("EOF", true, true))),
            ("3<<EOF", Some(("EOF", true, false))),
            ("<<'E F'", Some(("E F", false, false))),
            ("<<E\"O\"F", Some(("EOF", false, false))),
            ("<<eo\\'f", Some(("eo'f", true, false))),
            ("<<$EOF", Some(("$EOF", true, false))),
            ("<< -EOF", Some(("-EOF", true, false))),
            ("<<a b", None),
            ("<<", None),
            ("<<-", None),
            ("<<<EOF", None),
            ("x<<EOF", None),
        ] {
            let got = Opener::of_word(word).unwrap();
            let got = got.as_ref().map(|opener| (opener.name.as_str(), opener.expand, opener.chomp));
            assert_eq!(got, expected, "{word}");
        }
        assert!(Opener::of_word("<<'EOF").is_err());
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("RUN cat <<A | tr a b; cat <<-B", &["A", "B"] as &[&str]),
            ("RUN << A", &["A"]),
            ("RUN '<<A' \"<<B\" \\<<C", &[]),
            ("RUN echo it's <<A", &[]),
            ("RUN echo ${x:y} <<A", &["A"]),
            ("RUN echo ${x=y} <<A", &[]),
            ("RUN echo $((1<<2))", &[]),
        ] {
            let names: Vec<_> = Opener::of_line(line).unwrap().into_iter().map(|opener| opener.name).collect();
            assert_eq!(names, expected, "{line}");
        }
    }

    #[test]
    fn bodies_end_at_the_exact_word() {
        let opener = |chomp| Opener { name: "EOF".into(), expand: true, chomp };
        let body = opener(false).body("x\n\ta\n EOF\n\tEOF\nEOF \nEOF\r\nrest", 2);
        assert_eq!((body.heredoc.content.as_str(), body.heredoc.raw), ("\ta\n EOF\n\tEOF\nEOF \n", None));
        assert_eq!((body.heredoc.span, body.next, body.terminated), (Span::new(2, 23), 25, true));
        let body = opener(true).body("\t\ta\n\tEOF\n", 0);
        assert_eq!((body.heredoc.content.as_str(), body.heredoc.raw()), ("a\n", "\t\ta\n"));
        let body = opener(false).body("a\n", 0);
        assert_eq!((body.heredoc.content.as_str(), body.heredoc.span, body.next), ("a\n", Span::new(0, 2), 2));
        assert!(!body.terminated);
    }
}
