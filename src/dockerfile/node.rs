//! One instruction as it is written: name, flags, arguments, here-documents. What `rbuild --print ast` prints.
//!
//! In: logical lines, cut up by the grammar. Out: [`Node`] values, and diagnostics for what cannot be an instruction
//! whatever its name means (an ENV without a value, a JSON array that holds numbers). What always holds: there is a
//! node for every instruction of the file, in order, the wrong ones included.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::ast::{Escape, Heredoc, Word};
use super::line::LogicalLine;
use super::parser::{self, Arguments, Piece};
use crate::diagnostic::{Diagnostic, Span};

/// What an instruction's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Keyword {
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
    /// No instruction of this name exists.
    Unknown,
}

impl Keyword {
    /// Every instruction that exists.
    pub const ALL: [Self; 18] = [
        Self::Add,
        Self::Arg,
        Self::Cmd,
        Self::Copy,
        Self::Entrypoint,
        Self::Env,
        Self::Expose,
        Self::From,
        Self::Healthcheck,
        Self::Label,
        Self::Maintainer,
        Self::OnBuild,
        Self::Run,
        Self::Shell,
        Self::StopSignal,
        Self::User,
        Self::Volume,
        Self::Workdir,
    ];

    /// The name in capitals; empty for [`Keyword::Unknown`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Arg => "ARG",
            Self::Cmd => "CMD",
            Self::Copy => "COPY",
            Self::Entrypoint => "ENTRYPOINT",
            Self::Env => "ENV",
            Self::Expose => "EXPOSE",
            Self::From => "FROM",
            Self::Healthcheck => "HEALTHCHECK",
            Self::Label => "LABEL",
            Self::Maintainer => "MAINTAINER",
            Self::OnBuild => "ONBUILD",
            Self::Run => "RUN",
            Self::Shell => "SHELL",
            Self::StopSignal => "STOPSIGNAL",
            Self::User => "USER",
            Self::Volume => "VOLUME",
            Self::Workdir => "WORKDIR",
            Self::Unknown => "",
        }
    }

    /// Whether `<<NAME` in its arguments opens a here-document.
    const fn takes_heredocs(self) -> bool {
        matches!(self, Self::Add | Self::Copy | Self::Run)
    }
}

/// A flag of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// `--name=value`, quotes and escapes taken off.
    pub word: Word,
    /// The part before the `=`, without the dashes.
    pub name: String,
    /// The part after the `=`, if there is one.
    pub value: Option<Word>,
}

/// One instruction as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the name says.
    pub keyword: Keyword,
    /// The name as written.
    pub name: Word,
    /// The flags, in order.
    pub flags: Vec<Flag>,
    /// The words: one for a shell form; name, value and separator (`=` or nothing) for each pair of ENV and LABEL;
    /// `NAME=value` for ARG; one empty word for an unknown instruction.
    pub args: Vec<Word>,
    /// Whether the arguments are a JSON array.
    pub json: bool,
    /// The here-documents that its line opens, in order. Those of a trigger belong to the ONBUILD.
    pub heredocs: Vec<Heredoc>,
    /// The trigger of an ONBUILD.
    pub sub: Option<Box<Node>>,
    /// The comments directly above, without `#`; parser directives left out.
    pub comments: Vec<String>,
    /// The instruction on one line, here-documents left out.
    pub text: String,
    /// The whole instruction, here-documents included.
    pub span: Span,
    /// First and last line, from 1.
    pub lines: (usize, usize),
    /// Whether the arguments could be read. The typed instruction of an unsound node would be a guess.
    pub(super) sound: bool,
}

/// Triggers in triggers are an error; this many are read nevertheless, for the AST.
const TRIGGER_DEPTH: usize = 8;

impl Node {
    /// Reads the part of a logical line that `range` names. Says in `diagnostics` what is wrong with it.
    pub(super) fn read(
        line: &LogicalLine,
        range: Range<usize>,
        escape: Escape,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        Reader { line, escape, diagnostics }.node(range, TRIGGER_DEPTH)
    }

    /// What the comments above say of `name`: the rest of the first one that begins with it.
    pub(super) fn description(&self, name: &str) -> Option<String> {
        let mut about = self.comments.iter().filter_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '));
        about.next().map(str::to_owned)
    }

    /// Whether `<<NAME` in its line opens a here-document.
    pub(super) fn takes_heredocs(&self) -> bool {
        let node = match (&self.sub, self.keyword) {
            (Some(sub), Keyword::OnBuild) => sub,
            _ => self,
        };
        node.keyword.takes_heredocs() && !node.json
    }
}

struct Reader<'a> {
    line: &'a LogicalLine,
    escape: Escape,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn node(&mut self, range: Range<usize>, depth: usize) -> Node {
        let text = &self.line.text[range.clone()];
        let span = self.line.span(range.clone());
        let mut node = Node {
            keyword: Keyword::Unknown,
            name: Word { text: String::new(), span },
            flags: Vec::new(),
            args: Vec::new(),
            json: false,
            heredocs: Vec::new(),
            sub: None,
            comments: Vec::new(),
            text: text.to_owned(),
            span,
            lines: (0, 0),
            sound: true,
        };
        let Some(parts) = parser::line(text, self.escape) else {
            node.sound = false;
            self.diagnostics.push(
                Diagnostic::error(span, "this instruction cannot be read")
                    .help("it is too long or too complex for the parser: move the data into a file and COPY it"),
            );
            return node;
        };
        let base = range.start;
        node.keyword = parts.keyword;
        node.name = self.word(base, parts.name);
        node.flags = parts.flags.into_iter().map(|flag| self.flag(base, flag)).collect();
        let rest = base + parts.arguments_at..range.end;
        node.args.extend(parts.check_kind.map(|kind| self.word(base, kind)));
        match parts.arguments {
            Arguments::None => {}
            Arguments::Exec(words) => {
                node.json = true;
                node.args.extend(words.into_iter().map(|word| self.word(base, word)));
            }
            Arguments::Text(text) if node.keyword == Keyword::OnBuild => match depth.checked_sub(1) {
                Some(depth) => node.sub = Some(Box::new(self.node(base + text.at.start..base + text.at.end, depth))),
                None => node.sound = false,
            },
            Arguments::Text(_) if node.keyword == Keyword::Unknown => {}
            Arguments::Text(text) => {
                node.sound = self.is_text(node.keyword, base + text.at.start..base + text.at.end);
                node.args.push(self.word(base, text));
            }
            Arguments::Words(words) => match node.keyword {
                Keyword::Env | Keyword::Label => self.pairs(&mut node, base, rest, words),
                Keyword::Add | Keyword::Copy | Keyword::Volume => {
                    node.sound = self.is_text(node.keyword, rest);
                    node.args = words.into_iter().map(|word| self.word(base, word)).collect();
                }
                _ => node.args = words.into_iter().map(|word| self.word(base, word)).collect(),
            },
        }
        if node.keyword == Keyword::Unknown {
            node.args = vec![Word { text: String::new(), span: self.line.span(range.end..range.end) }];
        }
        node
    }

    fn word(&self, base: usize, piece: Piece) -> Word {
        Word { span: self.line.span(base + piece.at.start..base + piece.at.end), text: piece.text }
    }

    fn flag(&self, base: usize, piece: Piece) -> Flag {
        let at = base + piece.at.start..base + piece.at.end;
        // With quotes or escapes in it, offsets in the text are no offsets in the line.
        let plain = self.line.text[at.clone()] == piece.text;
        let (name, value) = match piece.text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (piece.text.as_str(), None),
        };
        let value = value.map(|value| {
            let range = if plain { at.end - value.len()..at.end } else { at.clone() };
            Word { text: value.to_owned(), span: self.line.span(range) }
        });
        let name = name.strip_prefix("--").unwrap_or(name).to_owned();
        Flag { word: Word { span: self.line.span(at), text: piece.text }, name, value }
    }

    /// Whether the arguments may be taken as text: a valid JSON array that holds something else than strings is an
    /// error, while invalid JSON is text.
    fn is_text(&mut self, keyword: Keyword, range: Range<usize>) -> bool {
        let takes_json = matches!(
            keyword,
            Keyword::Add
                | Keyword::Cmd
                | Keyword::Copy
                | Keyword::Entrypoint
                | Keyword::Healthcheck
                | Keyword::Run
                | Keyword::Shell
                | Keyword::Volume
        );
        let text = &self.line.text[range.clone()];
        if !takes_json || !text.starts_with('[') || serde_json::from_str::<IgnoredAny>(text).is_err() {
            return true;
        }
        self.diagnostics.push(
            Diagnostic::error(
                self.line.span(range),
                "when using JSON array syntax, arrays must be comprised of strings only",
            )
            .label("a JSON array with other values")
            .help("put every element in double quotes"),
        );
        false
    }

    /// `NAME=value …`, or `NAME value` of old.
    fn pairs(&mut self, node: &mut Node, base: usize, rest: Range<usize>, words: Vec<Piece>) {
        let name = node.keyword.name();
        let Some(first) = words.first() else { return };
        if !first.text.contains('=') {
            let legacy = parser::legacy_pair(&self.line.text[rest.clone()]);
            if let Some((key, Some(value))) = legacy {
                let end = Word { text: String::new(), span: self.line.span(rest.end..rest.end) };
                node.args = vec![self.word(rest.start, key), self.word(rest.start, value), end];
            } else {
                node.sound = false;
                node.args = vec![self.word(base, first.clone())];
                self.diagnostics.push(
                    Diagnostic::error(node.args[0].span, format!("{name} must have two arguments"))
                        .label("a name without a value")
                        .help(format!("write {name} {}=value, or {0}= for an empty value", first.text)),
                );
            }
            return;
        }
        for word in words {
            let at = base + word.at.start..base + word.at.end;
            let Some((key, value)) = word.text.split_once('=') else {
                node.sound = false;
                self.diagnostics.push(
                    Diagnostic::error(
                        self.line.span(at),
                        format!("syntax error - can't find = in {:?}. Must be of the form: name=value", word.text),
                    )
                    .label("no = in this word")
                    .help("a value with blanks in it needs quotes, or a backslash before each blank"),
                );
                continue;
            };
            let equals = at.start + key.len();
            node.args.extend([
                Word { text: key.to_owned(), span: self.line.span(at.start..equals) },
                Word { text: value.to_owned(), span: self.line.span(equals + 1..at.end) },
                Word { text: "=".to_owned(), span: self.line.span(equals..equals + 1) },
            ]);
        }
    }
}
