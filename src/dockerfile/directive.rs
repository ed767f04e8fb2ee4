//! Parser directives: the comments at the very top that say how to read the rest.
//!
//! In: the beginning of the file. Out: [`Directives`] and where the rest begins. What always holds: the first line
//! that is no directive ends them, an empty line too; each may be given once.

use super::ast::{Escape, Word};
use super::parser::{self, Notation};
use crate::diagnostic::{Diagnostic, Span};

/// What the directives say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) escape: Escape,
    pub(super) check: Option<Word>,
    /// Offset of the first line that is no directive.
    pub(super) end: usize,
}

const KEYS: [&str; 3] = ["syntax", "escape", "check"];

impl Directives {
    /// Reads the directives of `source`, from `start` on.
    pub(super) fn read(source: &str, start: usize, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut directives = Self { end: start, ..Self::default() };
        let mut seen: Vec<&str> = Vec::new();
        for line in source[start..].split_inclusive('\n') {
            let indent = line.len() - line.trim_start().len();
            let Some((key, word)) = directive(line.trim_start(), directives.end + indent, Notation::Hash) else {
                break;
            };
            directives.end += line.len();
            if seen.contains(&key) {
                diagnostics.push(
                    Diagnostic::error(word.span, format!("only one {key} parser directive can be used"))
                        .label("given before")
                        .help("remove all but one of them"),
                );
                continue;
            }
            seen.push(key);
            match (key, word.text.as_str()) {
                ("escape", "\\") => directives.escape = Escape::Backslash,
                ("escape", "`") => directives.escape = Escape::Backtick,
                ("escape", other) => diagnostics.push(
                    Diagnostic::error(word.span, format!("invalid escape token '{other}' does not match ` or \\"))
                        .help("write # escape=` or leave the line out"),
                ),
                ("check", _) => directives.check = Some(word),
                // Where it stands is decided by other rules: see `syntax`.
                _ => {}
            }
        }
        directives
    }
}

/// Reads one line as a directive: its key, and its value with the span of the value.
fn directive(line: &str, offset: usize, notation: Notation) -> Option<(&'static str, Word)> {
    let line = line.trim_end_matches(['\r', '\n']);
    let (key, value) = parser::directive(line, notation)?;
    let key = line[key].to_ascii_lowercase();
    let key = KEYS.into_iter().find(|known| *known == key)?;
    let raw = &line[value.clone()];
    let gaps: &[char] = &[' ', '\t', '\n', '\u{c}', '\r'];
    let start = offset + value.start + (raw.len() - raw.trim_start_matches(gaps).len());
    // Of blanks alone one is left: `# escape= ` is a directive with a wrong value, not a comment.
    let text = match raw.trim_matches(gaps) {
        "" => &raw[..1],
        text => text,
    };
    let start = start.min(offset + value.end - text.len());
    Some((key, Word { text: text.to_owned(), span: Span::new(start, start + text.len()) }))
}

/// The value of the `syntax` directive, whole (`reference options…`).
///
/// It may stand after a first line `#!…`, be written `// syntax=…`, or be a field of a JSON object: so that a file in
/// another language can name the program that reads it.
pub fn syntax(source: &str) -> Option<Word> {
    let bom = source.len() - source.trim_start_matches('\u{feff}').len();
    let bom = bom.min('\u{feff}'.len_utf8());
    let shebang = match source[bom..].strip_prefix("#!") {
        Some(_) => source[bom..].find('\n').map_or(source.len(), |at| bom + at + 1),
        None => bom,
    };
    [Notation::Hash, Notation::Slashes].into_iter().find_map(|notation| in_notation(source, shebang, notation)).or_else(
        || {
            let json: serde_json::Value = serde_json::from_str(&source[shebang..]).ok()?;
            let text = json.as_object()?.get("syntax")?.as_str()?.to_owned();
            Some(Word { text, span: Span::new(shebang, source.len()) })
        },
    )
}

fn in_notation(source: &str, start: usize, notation: Notation) -> Option<Word> {
    let mut at = start;
    let mut seen: Vec<&str> = Vec::new();
    for line in source[start..].split_inclusive('\n') {
        let (key, word) = directive(line, at, notation)?;
        if seen.contains(&key) {
            return None;
        }
        if key == "syntax" {
            return Some(word);
        }
        seen.push(key);
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_end_with_the_first_other_line() {
        for (text, escape, check, rest, errors) in [
            ("# escape=`\nFROM a", Escape::Backtick, None, "FROM a", 0),
            ("#Escape = `  \r\n  # check = skip=all \nx", Escape::Backtick, Some("skip=all"), "x", 0),
            ("# syntax=a\n# escape=`\n", Escape::Backtick, None, "", 0),
            ("# comment\n# escape=`\n", Escape::Backslash, None, "# comment\n# escape=`\n", 0),
            ("\n# escape=`\n", Escape::Backslash, None, "\n# escape=`\n", 0),
            ("# other=1\n# escape=`\n", Escape::Backslash, None, "# other=1\n# escape=`\n", 0),
            ("# escape=`\n# escape=`\n", Escape::Backtick, None, "", 1),
            ("# escape=x\n", Escape::Backslash, None, "", 1),
            ("# escape=\n", Escape::Backslash, None, "# escape=\n", 0),
            ("# escape= \n", Escape::Backslash, None, "", 1),
        ] {
            let mut diagnostics = Vec::new();
            let directives = Directives::read(text, 0, &mut diagnostics);
            let got = (directives.escape, directives.check.as_ref().map(|word| word.text.as_str()));
            assert_eq!((got, &text[directives.end..]), ((escape, check), rest), "{text}");
            assert_eq!(diagnostics.len(), errors, "{text}: {diagnostics:?}");
            assert!(
                diagnostics.iter().all(|error| error.span.is_some_and(|span| text.get(span.start..span.end).is_some()))
            );
        }
    }

    #[test]
    fn syntax_is_found_in_every_notation() {
        for (text, expected) in [
            ("# syntax=docker/dockerfile:1\nFROM a", Some("docker/dockerfile:1")),
            ("\u{feff}#syntax=a b\n", Some("a b")),
            ("# escape=`\n# syntax=a\n", Some("a")),
            ("#!/bin/x\n# syntax=a\n", Some("a")),
            ("#!/bin/x\n\n# syntax=a\n", None),
            ("// syntax=a\n", Some("a")),
            ("{\"syntax\": \"a\"}", Some("a")),
            ("{\"syntax\": 1}", None),
            ("FROM a\n# syntax=a\n", None),
            ("", None),
            ("#!", None),
        ] {
            let got = syntax(text);
            assert_eq!(got.as_ref().map(|word| word.text.as_str()), expected, "{text}");
            assert!(got.is_none_or(|word| text.get(word.span.start..word.span.end).is_some()));
        }
    }
}
