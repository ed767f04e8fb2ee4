//! Text becomes typed instructions: the whole syntax of a Dockerfile.
//!
//! In: a [`Source`]. Out: [`Parsed`]: the instructions as written ([`Node`]), the same typed ([`ast::Dockerfile`]), and
//! everything that is wrong with them. What always holds: parsing never fails and never panics; every span lies within
//! the source; time is linear in its size and depth is bounded, whatever the input; nothing is expanded or looked up.
//!
//! The road: `directive` reads the comments at the top; `parser` (the only user of `grammar/dockerfile.pest`) cuts
//! the text into logical lines (`line`) and these into names, flags and arguments; [`node`] and [`heredoc`] make
//! nodes of them; `instructions`, [`flags`] and `mount` make typed instructions of the nodes. [`word`] expands
//! variables later, when the planner knows them.

pub mod ast;
mod directive;
pub mod flags;
pub mod heredoc;
mod instructions;
mod line;
pub mod lint;
mod mount;
pub mod node;
mod parser;
mod pattern;
mod print;
pub mod word;

pub use directive::syntax;
pub use node::Node;
pub use print::print_ast;

use ast::{Dockerfile, Escape, Instruction, Stage, Word};
use directive::Directives;
use heredoc::Opener;
use instructions::{Typed, typed};
use line::LogicalLine;
use node::Keyword;

use crate::diagnostic::{Diagnostic, Severity, Source, Span};

/// A physical line may not be longer: Docker's limit.
const MAX_LINE: usize = 65_535;

/// So many errors are reported one by one: a file that has more is no Dockerfile.
const MAX_ERRORS: usize = 100;

/// What a text says, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Every instruction as written.
    pub nodes: Vec<Node>,
    /// The instructions, typed. Where there are errors, what is wrong is left out.
    pub dockerfile: Dockerfile,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether the text cannot be built.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Reads a Dockerfile.
pub fn parse(source: &Source) -> Parsed {
    let text = source.text.as_str();
    let mut diagnostics = Vec::new();
    if text.is_empty() {
        diagnostics.push(whole_file("the Dockerfile cannot be empty", "the smallest one is a line like FROM scratch"));
        return Parsed { diagnostics, ..Parsed::default() };
    }
    let start = text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len();
    let directives = Directives::read(text, start, &mut diagnostics);
    let mut reader = Reader::new(text, directives.escape);
    reader.skip(start);
    reader.skip(directives.end - start);
    reader.diagnostics.append(&mut diagnostics);
    let nodes = reader.nodes();
    let mut diagnostics = reader.diagnostics;
    if nodes.is_empty() && !reader.cut {
        diagnostics
            .push(whole_file("file with no instructions", "the smallest Dockerfile is a line like FROM scratch"));
    }
    let mut dockerfile = Dockerfile {
        escape: directives.escape,
        syntax: syntax(text),
        check: directives.check,
        ..Dockerfile::default()
    };
    assemble(&nodes, &mut dockerfile, &mut diagnostics);
    // Errors of the text come before those of the whole file; the sort is stable.
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.map_or(usize::MAX, |span| span.start));
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    if errors > MAX_ERRORS {
        let mut shown = 0;
        diagnostics.retain(|diagnostic| {
            shown += usize::from(diagnostic.is_error());
            !diagnostic.is_error() || shown <= MAX_ERRORS
        });
        diagnostics.push(whole_file(&format!("{} more errors", errors - MAX_ERRORS), "is this file a Dockerfile?"));
    }
    Parsed { nodes, dockerfile, diagnostics }
}

/// Reads the trigger of an ONBUILD, as an image config holds it: one instruction, here-documents included.
pub fn parse_trigger(text: &str, escape: Escape) -> Result<Instruction, Vec<Diagnostic>> {
    let mut reader = Reader::new(text, escape);
    let nodes = reader.nodes();
    let mut diagnostics = reader.diagnostics;
    let mut instruction = None;
    match nodes.as_slice() {
        [node] if matches!(node.keyword, Keyword::From | Keyword::OnBuild | Keyword::Maintainer) => {
            let name = node.keyword.name();
            diagnostics.push(Diagnostic::error(node.name.span, format!("{name} isn't allowed as an ONBUILD trigger")));
        }
        [node] => match typed(node, escape, &mut diagnostics) {
            Some(Typed::Instruction(typed)) => instruction = Some(typed),
            Some(Typed::Stage(_)) | None => {}
        },
        _ => diagnostics.push(Diagnostic::error(
            Span::new(0, text.len()),
            format!("an ONBUILD trigger is one instruction, this one holds {}", nodes.len()),
        )),
    }
    diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Error);
    match instruction {
        Some(instruction) if diagnostics.is_empty() => Ok(instruction),
        _ => Err(diagnostics),
    }
}

fn whole_file(message: &str, help: &str) -> Diagnostic {
    Diagnostic { span: None, ..Diagnostic::error(Span::default(), message).help(help) }
}

/// Puts typed instructions where they belong: before the first FROM, or into its stage.
fn assemble(nodes: &[Node], dockerfile: &mut Dockerfile, diagnostics: &mut Vec<Diagnostic>) {
    let mut any_stage = false;
    let mut stray = false;
    for node in nodes {
        let typed = typed(node, dockerfile.escape, diagnostics);
        match (typed, node.keyword, dockerfile.stages.last_mut()) {
            (Some(Typed::Stage(stage)), ..) => dockerfile.stages.push(stage),
            // A stage stands in for the wrong one, so that what follows has a place and is checked.
            (None, Keyword::From, _) => dockerfile.stages.push(Stage {
                image: node.args.first().cloned().unwrap_or(Word { text: String::new(), span: node.span }),
                platform: None,
                name: None,
                span: node.span,
                lines: node.lines,
                description: None,
                instructions: Vec::new(),
            }),
            (Some(Typed::Instruction(instruction)), _, Some(stage)) => stage.instructions.push(instruction),
            (Some(Typed::Instruction(instruction)), Keyword::Arg, None) => dockerfile.global_args.push(instruction),
            (Some(Typed::Instruction(_)), _, None) if !stray => {
                stray = true;
                diagnostics.push(
                    Diagnostic::error(node.span, "no build stage in current context")
                        .label("before the first FROM")
                        .help("only ARG may stand before the first FROM: begin the file with FROM IMAGE"),
                );
            }
            _ => {}
        }
        any_stage |= node.keyword == Keyword::From;
    }
    if !any_stage && !nodes.is_empty() && !diagnostics.iter().any(Diagnostic::is_error) {
        diagnostics.push(whole_file("dockerfile contains no stages to build", "add a line FROM IMAGE"));
    }
}

/// Walks over a text, statement by statement.
struct Reader<'a> {
    text: &'a str,
    escape: Escape,
    offset: usize,
    /// The line of `offset`, from 1.
    line: usize,
    /// Whether the text was cut at a line that is too long.
    cut: bool,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, escape: Escape) -> Self {
        let mut reader = Self { text, escape, offset: 0, line: 1, cut: false, diagnostics: Vec::new() };
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let length = line.strip_suffix('\n').unwrap_or(line).len();
            if length > MAX_LINE {
                reader.cut = true;
                reader.text = &text[..at];
                let shown = line.char_indices().nth(20).map_or(length, |(end, _)| end);
                reader.diagnostics.push(
                    Diagnostic::error(
                        Span::new(at, at + shown),
                        format!("dockerfile line greater than max allowed size of {MAX_LINE}"),
                    )
                    .label(format!("this line has {length} bytes; what follows was not read"))
                    .help("end lines with the escape character, or put the data into a file and COPY it"),
                );
                break;
            }
            at += line.len();
        }
        reader
    }

    /// Moves on. All line numbers come from here.
    fn skip(&mut self, length: usize) {
        let end = (self.offset + length).min(self.text.len());
        self.line += newlines(&self.text[self.offset.min(end)..end]);
        self.offset = end;
    }

    fn nodes(&mut self) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut comments: Vec<String> = Vec::new();
        while self.offset < self.text.len() {
            let Some(chunk) = parser::chunk(&self.text[self.offset..], self.escape).filter(|chunk| chunk.end > 0)
            else {
                self.diagnostics.push(Diagnostic::error(
                    Span::new(self.offset, self.offset),
                    "the text from here on cannot be read",
                ));
                break;
            };
            let base = self.offset;
            for comment in chunk.comments {
                match self.text[base + comment.start..base + comment.end].trim() {
                    "" => comments.clear(),
                    comment => comments.push(comment.to_owned()),
                }
            }
            let Some(statement) = chunk.statement else {
                self.skip(chunk.end);
                continue;
            };
            self.skip(statement.span.start);
            let first_line = self.line;
            self.skip(base + chunk.end - self.offset);
            let line = LogicalLine::new(self.text, base, &statement.pieces);
            if let Some(blank) = statement.blanks.first() {
                // Docker names the last line of the instruction.
                let last = statement.pieces.last().unwrap_or(&statement.span);
                let blank = first_line + newlines(&self.text[base + statement.span.start..base + blank.start]);
                self.diagnostics.push(
                    Diagnostic::warning(
                        Span::new(base + last.start, base + last.end),
                        "NoEmptyContinuation",
                        "Empty continuation line",
                    )
                    .help(format!(
                        "line {blank} is empty: remove it or make it a comment, Docker will refuse it one day"
                    )),
                );
            }
            let mut node = Node::read(&line, line.trimmed(), self.escape, &mut self.diagnostics);
            node.comments = std::mem::take(&mut comments);
            self.heredocs(&line, &mut node);
            node.lines = (first_line, self.last_line());
            nodes.push(node);
        }
        nodes
    }

    /// The line that ends before the offset.
    fn last_line(&self) -> usize {
        if self.text[..self.offset].ends_with('\n') { self.line - 1 } else { self.line }
    }

    fn heredocs(&mut self, line: &LogicalLine, node: &mut Node) {
        if !node.takes_heredocs() {
            return;
        }
        let openers = match Opener::of_line(&line.text) {
            Ok(openers) => openers,
            Err(error) => {
                node.sound = false;
                self.diagnostics
                    .push(Diagnostic::error(node.span, format!("bad here-document: {error}")).help(
                        "the word after << is the line that ends the here-document; quotes in it must be closed",
                    ));
                return;
            }
        };
        for opener in openers {
            let body = opener.body(self.text, self.offset);
            self.skip(body.next - self.offset);
            if !body.terminated {
                node.sound = false;
                if !self.cut {
                    let name = &opener.name;
                    self.diagnostics.push(
                        Diagnostic::error(node.span, "unterminated heredoc")
                            .label(format!("no line below is exactly {name}"))
                            .help(format!("end it with a line that holds {name} and nothing else, no blanks either")),
                    );
                }
                node.heredocs.push(body.heredoc);
                return;
            }
            node.span.end = body.heredoc.span.end;
            node.heredocs.push(body.heredoc);
        }
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}
