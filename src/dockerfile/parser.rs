//! Runs `grammar/dockerfile.pest` and gives what it found as plain values; nobody else sees a pest rule.
//!
//! In: pieces of the source. Out: ranges of bytes and unquoted text. What always holds: ranges lie within the text
//! that was passed in, on character boundaries; no call looks further than what it consumes, so reading a whole file
//! chunk by chunk is linear; a failure is a value, never a panic.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Once;

use pest::Parser as _;
use pest::iterators::Pair;
use pest_derive::Parser;

use super::ast::Escape;
use super::node::Keyword;

#[derive(Parser)]
#[grammar = "../grammar/dockerfile.pest"]
struct Grammar;

/// Rule calls that one parse may take. No rule needs more than a few dozen per byte; the limit turns a mistake in the
/// grammar into an error instead of an endless build.
const CALL_LIMIT: NonZeroUsize = NonZeroUsize::new(1 << 31).unwrap();

type Pairs<'i> = pest::iterators::Pairs<'i, Rule>;

fn run(rule: Rule, text: &str) -> Option<Pairs<'_>> {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| pest::set_call_limit(Some(CALL_LIMIT)));
    Grammar::parse(rule, text).ok()
}

fn range(pair: &Pair<'_, Rule>) -> Range<usize> {
    let span = pair.as_span();
    span.start()..span.end()
}

/// What lies between two instructions, and the next instruction.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Comments on lines of their own, without the `#`.
    pub(super) comments: Vec<Range<usize>>,
    /// The next instruction, if there is one.
    pub(super) statement: Option<Statement>,
    /// Offset after all that was read.
    pub(super) end: usize,
}

/// An instruction over its physical lines.
#[derive(Debug, Default)]
pub(super) struct Statement {
    /// From the first character of the instruction to the end of its last line.
    pub(super) span: Range<usize>,
    /// The parts of the lines that belong to it, continuations taken off.
    pub(super) pieces: Vec<Range<usize>>,
    /// Blank lines in its middle.
    pub(super) blanks: Vec<Range<usize>>,
}

/// Reads comments, blank lines and one instruction from the beginning of `text`. `None` is a failure of the grammar.
pub(super) fn chunk(text: &str, escape: Escape) -> Option<Chunk> {
    let rule = match escape {
        Escape::Backslash => Rule::chunk_backslash,
        Escape::Backtick => Rule::chunk_backtick,
    };
    let top = run(rule, text)?.next()?;
    let mut chunk = Chunk { end: range(&top).end, ..Chunk::default() };
    for pair in top.into_inner() {
        match pair.as_rule() {
            Rule::comment => {
                let texts = pair.into_inner().filter(|inner| inner.as_rule() == Rule::comment_text);
                chunk.comments.extend(texts.map(|inner| range(&inner)));
            }
            Rule::statement_backslash | Rule::statement_backtick => {
                let mut statement = Statement { span: range(&pair), ..Statement::default() };
                for inner in pair.into_inner() {
                    match inner.as_rule() {
                        Rule::inner_blank => statement.blanks.push(range(&inner)),
                        Rule::piece_backslash | Rule::piece_backtick => statement.pieces.push(range(&inner)),
                        _ => {}
                    }
                }
                statement.span.start = statement.pieces.first().map_or(statement.span.start, |piece| piece.start);
                chunk.statement = Some(statement);
            }
            _ => {}
        }
    }
    Some(chunk)
}

/// The notation of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// `# key=value`
    Hash,
    /// `// key=value`
    Slashes,
}

/// Reads one line, without its line end, as `# key=value`: where the key and the value (untrimmed) are.
pub(super) fn directive(line: &str, notation: Notation) -> Option<(Range<usize>, Range<usize>)> {
    let rule = match notation {
        Notation::Hash => Rule::directive,
        Notation::Slashes => Rule::slash_directive,
    };
    let mut inner = run(rule, line)?.next()?.into_inner();
    Some((range(&inner.next()?), range(&inner.next()?)))
}

/// A text of a logical line and where it stands; quotes and escapes may have been taken off the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) at: Range<usize>,
}

/// The arguments of an instruction, by their form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// There are none.
    None,
    /// One text, to the end of the line.
    Text(Piece),
    /// Words.
    Words(Vec<Piece>),
    /// A JSON array of strings.
    Exec(Vec<Piece>),
}

/// A logical line, cut into its parts.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) keyword: Keyword,
    pub(super) name: Piece,
    pub(super) flags: Vec<Piece>,
    /// `CMD` or `NONE` of a HEALTHCHECK.
    pub(super) check_kind: Option<Piece>,
    pub(super) arguments: Arguments,
    /// Where the flags end: all after it is arguments.
    pub(super) arguments_at: usize,
}

/// Reads a logical line that has no white space at its ends. `None` is a failure of the grammar.
pub(super) fn line(text: &str, escape: Escape) -> Option<Line> {
    let rule = match escape {
        Escape::Backslash => Rule::instruction_backslash,
        Escape::Backtick => Rule::instruction_backtick,
    };
    let top = run(rule, text)?.next()?;
    let mut line = Line {
        keyword: keyword(top.as_rule()),
        name: Piece { text: String::new(), at: 0..0 },
        flags: Vec::new(),
        check_kind: None,
        arguments: Arguments::None,
        arguments_at: text.len(),
    };
    for pair in top.into_inner() {
        match pair.as_rule() {
            Rule::name => line.name = piece(&pair),
            Rule::flags => {
                line.arguments_at = range(&pair).end;
                line.flags = pair.into_inner().map(flag).collect();
            }
            Rule::check_kind => line.check_kind = Some(piece(&pair)),
            Rule::text => line.arguments = Arguments::Text(piece(&pair)),
            Rule::exec => line.arguments = Arguments::Exec(pair.into_inner().map(json_string).collect()),
            Rule::list | Rule::words_backslash | Rule::words_backtick => {
                line.arguments = Arguments::Words(pair.into_inner().map(|inner| piece(&inner)).collect());
            }
            _ => {}
        }
    }
    Some(line)
}

fn piece(pair: &Pair<'_, Rule>) -> Piece {
    Piece { text: pair.as_str().to_owned(), at: range(pair) }
}

fn keyword(rule: Rule) -> Keyword {
    match rule {
        Rule::from => Keyword::From,
        Rule::run => Keyword::Run,
        Rule::copy => Keyword::Copy,
        Rule::add => Keyword::Add,
        Rule::workdir => Keyword::Workdir,
        Rule::user => Keyword::User,
        Rule::cmd => Keyword::Cmd,
        Rule::entrypoint => Keyword::Entrypoint,
        Rule::expose => Keyword::Expose,
        Rule::volume => Keyword::Volume,
        Rule::shell => Keyword::Shell,
        Rule::stopsignal => Keyword::StopSignal,
        Rule::healthcheck => Keyword::Healthcheck,
        Rule::onbuild => Keyword::OnBuild,
        Rule::maintainer => Keyword::Maintainer,
        Rule::arg_backslash | Rule::arg_backtick => Keyword::Arg,
        Rule::env_backslash | Rule::env_backtick => Keyword::Env,
        Rule::label_backslash | Rule::label_backtick => Keyword::Label,
        _ => Keyword::Unknown,
    }
}

fn flag(pair: Pair<'_, Rule>) -> Piece {
    let at = range(&pair);
    let mut text = String::with_capacity(at.len());
    for inner in pair.into_inner() {
        match inner.as_rule() {
            Rule::flag_escape => text.push_str(&inner.as_str()[1..]), // the backslash is one byte
            _ => text.push_str(inner.as_str()),
        }
    }
    Piece { text, at }
}

/// Decodes a JSON string. A lone half of a surrogate pair becomes U+FFFD.
fn json_string(pair: Pair<'_, Rule>) -> Piece {
    let at = range(&pair);
    let mut text = String::with_capacity(at.len());
    let mut high: Option<u16> = None;
    for inner in pair.into_inner() {
        let raw = inner.as_str();
        let unit = match inner.as_rule() {
            Rule::json_unicode => u16::from_str_radix(&raw[2..], 16).ok(),
            _ => None,
        };
        if let (Some(first), Some(second)) = (high, unit)
            && let Some(Ok(character)) = char::decode_utf16([first, second]).next()
        {
            text.push(character);
            high = None;
            continue;
        }
        if high.take().is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        match inner.as_rule() {
            Rule::json_unicode => match unit {
                Some(unit) if (0xD800..0xDC00).contains(&unit) => high = Some(unit),
                Some(unit) => text.push(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)),
                None => text.push(char::REPLACEMENT_CHARACTER),
            },
            Rule::json_escape => text.push(match raw.as_bytes().last() {
                Some(b'b') => '\u{8}',
                Some(b'f') => '\u{c}',
                Some(b'n') => '\n',
                Some(b'r') => '\r',
                Some(b't') => '\t',
                Some(other) => char::from(*other),
                None => char::REPLACEMENT_CHARACTER,
            }),
            _ => text.push_str(raw),
        }
    }
    if high.is_some() {
        text.push(char::REPLACEMENT_CHARACTER);
    }
    Piece { text, at }
}

/// Reads `NAME rest of the line`.
pub(super) fn legacy_pair(text: &str) -> Option<(Piece, Option<Piece>)> {
    let mut inner = run(Rule::legacy_pair, text)?.next()?.into_inner();
    let name = piece(&inner.next()?);
    let value = inner.next().filter(|pair| pair.as_rule() == Rule::legacy_value).map(|pair| piece(&pair));
    Some((name, value))
}

/// Reads a word that opens a here-document: whether tabs are stripped, and the terminator as written.
pub(super) fn heredoc_opener(word: &str) -> Option<(bool, String)> {
    let mut chomp = false;
    let mut name = None;
    for pair in run(Rule::heredoc_opener, word)?.next()?.into_inner() {
        match pair.as_rule() {
            Rule::heredoc_chomp => chomp = true,
            Rule::heredoc_word => name = Some(pair.as_str().to_owned()),
            _ => {}
        }
    }
    Some((chomp, name?))
}

/// Reads options between commas.
pub(super) fn options(text: &str) -> Option<Vec<Piece>> {
    let top = run(Rule::options, text)?.next()?;
    Some(
        top.into_inner()
            .filter(|pair| pair.as_rule() == Rule::option)
            .filter_map(|pair| pair.into_inner().next())
            .map(|inner| {
                let mut piece = piece(&inner);
                if inner.as_rule() == Rule::option_quoted {
                    piece.text = piece.text.replace("\"\"", "\"");
                }
                piece
            })
            .collect(),
    )
}

/// Reads a duration: whether it is negative, and its parts as number and unit.
pub(super) fn duration(text: &str) -> Option<(bool, Vec<(String, String)>)> {
    let mut negative = false;
    let mut parts = Vec::new();
    for pair in run(Rule::duration, text)?.next()?.into_inner() {
        match pair.as_rule() {
            Rule::duration_sign => negative = pair.as_str() == "-",
            Rule::duration_part => {
                let mut inner = pair.into_inner().map(|inner| inner.as_str().to_owned());
                parts.push((inner.next()?, inner.next()?));
            }
            _ => {}
        }
    }
    Some((negative, parts))
}
