//! Variable expansion, quotes and escapes: what a word as written means in an environment.
//!
//! In: a word of the AST (quotes, escapes and `$` included) and a function that looks variables up. Out: the text, or
//! the words it splits into, and the names that were looked up in vain. What always holds: the result depends on the
//! arguments alone; time is linear in the word but for the patterns of `${x#p}` and `${x/p/r}`, whose work is
//! bounded; depth and the size of what variables add are bounded, whatever the input.
//!
//! This is an evaluator, not a parser, which is why the grammar stops at words: where a quote or a `}` ends depends on
//! the modifiers around it, and nesting has to be bounded by something else than the size of the stack.

use std::collections::BTreeSet;

use super::ast::Escape;
use super::pattern::Pattern;

/// How deep `${x:-${y:-…}}` may be nested.
const MAX_DEPTH: usize = 100;

/// The most bytes that variables may put into one word: `ENV a=$a$a` often enough, or `${x//?/…}` in itself, would fill the
/// memory. The kernel takes no larger variable than 128 KiB.
pub(super) const MAX_ADDED: usize = 1 << 20;

/// The value of a variable, or `None` where it is unset.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// An expanded word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text, without quotes and escapes.
    pub text: String,
    /// Variables that were looked up and not found, in order, for the check `UndefinedVar`.
    pub unset: Vec<String>,
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WordError {
    /// What is wrong: one line, lower case.
    pub message: String,
}

impl WordError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Expands `word` to one text: variables replaced, quotes removed, blanks kept.
pub fn expand(word: &str, escape: Escape, lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    let mut expander = Expander::new(word, escape, lookup);
    let text = expander.until(None, false)?.text;
    Ok(Expanded { text, unset: expander.unset })
}

/// Expands `word` and splits the result on blanks that are not quoted, as EXPOSE does: `$PORTS` may hold several.
pub fn expand_words(word: &str, escape: Escape, lookup: Lookup<'_>) -> Result<Vec<String>, WordError> {
    Ok(Expander::new(word, escape, lookup).until(None, false)?.words.finish())
}

/// Expands the body of a here-document: quotes have no meaning and stay.
///
/// The escape character of bodies is the backslash, whatever `# escape=` says, as with Docker; the second argument
/// is there so that all expansions are called alike.
pub fn expand_heredoc(body: &str, _escape: Escape, lookup: Lookup<'_>) -> Result<Expanded, WordError> {
    let mut expander = Expander::new(body, Escape::Backslash, lookup);
    expander.mode.quotes = Quotes::Ordinary;
    let text = expander.until(None, false)?.text;
    Ok(Expanded { text, unset: expander.unset })
}

/// Splits a line into words as a shell would, and keeps quotes, escapes and variables as written. Fails where quotes
/// or braces are not closed.
pub(super) fn shell_words(line: &str) -> Result<Vec<String>, WordError> {
    let mut expander = Expander::new(line, Escape::Backslash, &|_| None);
    expander.mode = Mode { quotes: Quotes::Kept, keep_unset: true };
    Ok(expander.until(None, true)?.words.finish())
}

/// Takes the quotes off the word that names a here-document: the words it consists of (one, if it is a name), and
/// whether anything in it was quoted.
pub(super) fn heredoc_name(word: &str) -> Result<(Vec<String>, bool), WordError> {
    let mut expander = Expander::new(word, Escape::Backslash, &|_| None);
    expander.mode = Mode { quotes: Quotes::Removed, keep_unset: true };
    let words = expander.until(None, false)?.words.finish();
    Ok((words, expander.quoted))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// They group, and disappear.
    Removed,
    /// They group, and stay.
    Kept,
    /// They are characters like others.
    Ordinary,
}

#[derive(Debug, Clone, Copy)]
struct Mode {
    quotes: Quotes,
    /// Unset variables stay as written.
    keep_unset: bool,
}

struct Expander<'a> {
    rest: std::str::Chars<'a>,
    escape: char,
    lookup: Lookup<'a>,
    mode: Mode,
    /// Whether escape characters stay where they protect something: patterns need theirs.
    raw_escapes: bool,
    depth: usize,
    /// Bytes that variables have added.
    added: usize,
    unset: Vec<String>,
    unset_seen: BTreeSet<String>,
    quoted: bool,
}

/// A text, and the words it splits into.
#[derive(Default)]
struct Piece {
    text: String,
    words: Words,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    /// Adds a character that separates words if it is white space.
    fn push(&mut self, character: char) {
        if !character.is_whitespace() {
            self.current.push(character);
        } else if !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

impl Piece {
    fn push_raw(&mut self, text: &str) {
        self.text.push_str(text);
        self.words.current.push_str(text);
    }

    fn push_raw_char(&mut self, character: char) {
        self.text.push(character);
        self.words.current.push(character);
    }
}

impl<'a> Expander<'a> {
    fn new(word: &'a str, escape: Escape, lookup: Lookup<'a>) -> Self {
        Self {
            rest: word.chars(),
            escape: escape.char(),
            lookup,
            mode: Mode { quotes: Quotes::Removed, keep_unset: false },
            raw_escapes: false,
            depth: 0,
            added: 0,
            unset: Vec::new(),
            unset_seen: BTreeSet::new(),
            quoted: false,
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    /// Reads up to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<Piece, WordError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(WordError::new(format!("substitutions are nested more than {MAX_DEPTH} deep")));
        }
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let piece = self.read_until(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        piece
    }

    fn read_until(&mut self, stop: Option<char>) -> Result<Piece, WordError> {
        let quotes = self.mode.quotes != Quotes::Ordinary;
        let mut piece = Piece::default();
        while let Some(character) = self.peek() {
            if Some(character) == stop {
                self.rest.next();
                return Ok(piece);
            }
            match character {
                '$' => {
                    let value = self.dollar()?;
                    piece.text.push_str(&value);
                    value.chars().for_each(|character| piece.words.push(character));
                }
                '\'' if quotes => piece.push_raw(&self.single_quoted()?),
                '"' if quotes => piece.push_raw(&self.double_quoted()?),
                '<' => piece.push_raw(&self.heredoc_mark()),
                _ => {
                    self.rest.next();
                    if character == self.escape {
                        if self.raw_escapes {
                            piece.push_raw_char(character);
                        }
                        let Some(protected) = self.rest.next() else { break };
                        piece.push_raw_char(protected);
                    } else {
                        piece.text.push(character);
                        piece.words.push(character);
                    }
                }
            }
        }
        match stop {
            None => Ok(piece),
            Some('/') => Err(WordError::new("syntax error: missing '/' in ${}")),
            Some(stop) => Err(WordError::new(format!("syntax error: missing '{stop}'"))),
        }
    }

    fn single_quoted(&mut self) -> Result<String, WordError> {
        self.quoted = true;
        self.rest.next();
        let text = self.rest.as_str();
        let Some(length) = text.find('\'') else {
            self.rest = "".chars();
            return Err(WordError::new("unexpected end of statement while looking for matching single-quote"));
        };
        self.rest = text[length + 1..].chars();
        Ok(match self.mode.quotes {
            Quotes::Kept => format!("'{}'", &text[..length]),
            _ => text[..length].to_owned(),
        })
    }

    fn double_quoted(&mut self) -> Result<String, WordError> {
        self.quoted = true;
        let kept = self.mode.quotes == Quotes::Kept;
        let mut text = String::new();
        self.rest.next();
        if kept {
            text.push('"');
        }
        loop {
            match self.peek() {
                None => {
                    return Err(WordError::new("unexpected end of statement while looking for matching double-quote"));
                }
                Some('"') => {
                    self.rest.next();
                    if kept {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(mut character) => {
                    self.rest.next();
                    if character == self.escape {
                        if self.raw_escapes {
                            text.push(character);
                        }
                        match self.peek() {
                            None => continue, // the missing quote is the error
                            // Only these are protected; before others the escape character is itself.
                            Some(next) if next == '"' || next == '$' || next == self.escape => {
                                character = next;
                                self.rest.next();
                            }
                            Some(_) => {}
                        }
                    }
                    text.push(character);
                }
            }
        }
    }

    /// `<<` keeps together with the blanks after it, so that `<< NAME` is one word.
    fn heredoc_mark(&mut self) -> String {
        self.rest.next();
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.rest.next();
        let mut mark = "<<".to_owned();
        if self.peek() == Some('-') {
            self.rest.next();
            mark.push('-');
        }
        while let Some(blank @ (' ' | '\t' | '\r')) = self.peek() {
            self.rest.next();
            mark.push(blank);
        }
        mark
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(digit) if digit.is_numeric() => {
                while let Some(digit) = self.peek().filter(|digit| digit.is_numeric()) {
                    self.rest.next();
                    name.push(digit);
                }
            }
            Some(special @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.rest.next();
                name.push(special);
            }
            _ => {
                while let Some(letter) = self.peek().filter(|letter| letter.is_alphanumeric() || *letter == '_') {
                    self.rest.next();
                    name.push(letter);
                }
            }
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        if value.is_none() && !self.mode.keep_unset && self.unset_seen.insert(name.to_owned()) {
            self.unset.push(name.to_owned());
        }
        value
    }

    /// What stands for `$` and what belongs to it.
    fn dollar(&mut self) -> Result<String, WordError> {
        let value = self.substituted()?;
        self.added += value.len();
        if self.added > MAX_ADDED { Err(too_large()) } else { Ok(value) }
    }

    fn substituted(&mut self) -> Result<String, WordError> {
        self.rest.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.mode.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.rest.next();
        match self.peek() {
            None => return Err(WordError::new("syntax error: missing '}'")),
            Some('{' | '}' | ':') => return Err(WordError::new("syntax error: bad substitution")),
            Some(_) => {}
        }
        let name = self.name();
        match self.rest.next() {
            None => Err(WordError::new("syntax error: missing '}'")),
            Some('}') => Ok(match self.value(&name) {
                None if self.mode.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let modifier = self.rest.next().ok_or_else(|| WordError::new("syntax error: missing '}'"))?;
                self.modified(&name, modifier, true)
            }
            Some(modifier @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, modifier, false),
            Some('/') => self.replaced(&name),
            Some(other) => Err(WordError::new(format!("unsupported modifier ({other}) in substitution"))),
        }
    }

    /// `${name-word}` and its relatives. `colon`: an empty variable counts as unset.
    fn modified(&mut self, name: &str, modifier: char, colon: bool) -> Result<String, WordError> {
        let trims = matches!(modifier, '#' | '%');
        let word = self.until(Some('}'), trims)?.text;
        let value = self.value(name);
        let colon = if colon { ":" } else { "" };
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let is_set = value.is_some();
        let value = value.unwrap_or_default();
        let counts = is_set && (colon.is_empty() || !value.is_empty());
        match modifier {
            '-' => Ok(if counts { value } else { word }),
            '+' => Ok(if counts { word } else { String::new() }),
            '?' if counts => Ok(value),
            '?' => {
                let state = if is_set { "empty" } else { "unset" };
                let message = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                Err(WordError::new(format!("{name}: {message}")))
            }
            '#' | '%' if colon.is_empty() => {
                let (longest, pattern) = match word.strip_prefix(modifier) {
                    Some(pattern) => (true, pattern),
                    None => (false, word.as_str()),
                };
                let pattern = Pattern::new(pattern)?;
                if modifier == '#' {
                    pattern.without_prefix(&value, longest)
                } else {
                    pattern.without_suffix(&value, longest)
                }
            }
            _ => Err(WordError::new(format!("unsupported modifier ({colon}{modifier}) in substitution"))),
        }
    }

    /// `${name/pattern/replacement}`, `${name//pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Result<String, WordError> {
        let all = self.peek() == Some('/');
        if all {
            self.rest.next();
        }
        let pattern = self.until(Some('/'), true)?.text;
        let replacement = self.until(Some('}'), true)?.text;
        match self.value(name) {
            None if self.mode.keep_unset => {
                let slashes = if all { "//" } else { "/" };
                Ok(format!("${{{name}{slashes}{pattern}/{replacement}}}"))
            }
            value => Pattern::new(&pattern)?.replaced(&value.unwrap_or_default(), &replacement, all),
        }
    }
}

pub(super) fn too_large() -> WordError {
    WordError::new(format!("variables make the text larger than {} MiB", MAX_ADDED >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let value = match name {
            "x" => "value",
            "empty" => "",
            "path" => "/usr/lib/app.tar.gz",
            "ports" => "3000 4000/udp",
            "stars" => "a*b*c",
            "0" => "zero",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn words_expand_as_documented() {
        for (word, expected) in [
            ("plain", Ok("plain")),
            ("", Ok("")),
            ("$x-${x}", Ok("value-value")),
            ("$unset|${unset}", Ok("|")),
            ("$1$@$*$#$?$$$!$-", Ok("")),
            ("$0 $", Ok("zero $")),
            ("$. $/", Ok("$. $/")),
            ("'$x' \"$x\"", Ok("$x value")),
            (r"\$x \\ \a", Ok(r"$x \ a")),
            (r#""\$x \" \\ \a""#, Ok(r#"$x " \ \a"#)),
            (r"'a\'", Ok(r"a\")),
            (r"end\", Ok("end")),
            ("${x:-d} ${empty:-d} ${unset:-d}", Ok("value d d")),
            ("${x-d} ${empty-d} ${unset-d}", Ok("value  d")),
            ("${x:+a} ${empty:+a} ${unset:+a}", Ok("a  ")),
            ("${x+a} ${empty+a} ${unset+a}", Ok("a a ")),
            ("${x:?m}${empty?m}", Ok("value")),
            ("${unset?}", Err("unset: is not allowed to be unset")),
            ("${empty:?}", Err("empty: is not allowed to be empty")),
            ("${unset:?give it}", Err("unset: give it")),
            ("${unset:-${x:+${path}}}", Ok("/usr/lib/app.tar.gz")),
            ("${unset:-'}'}", Ok("}")),
            (r"${unset:-\}}", Ok("}")),
            ("${path#*/}|${path##*/}", Ok("usr/lib/app.tar.gz|app.tar.gz")),
            ("${path%.*}|${path%%.*}", Ok("/usr/lib/app.tar|/usr/lib/app")),
            ("${path%/????????gz}|${path%/???}", Ok("/usr/lib|/usr/lib/app.tar.gz")),
            (r"${stars#*\*}|${stars%\**}", Ok("b*c|a*b")),
            ("${path/lib/LIB}|${path//\\//-}", Ok("/usr/LIB/app.tar.gz|-usr-lib-app.tar.gz")),
            ("${stars//[ab]/x}", Ok("a*b*c")),
            ("${x:=d}", Err("unsupported modifier (:=) in substitution")),
            ("${x:#v}", Err("unsupported modifier (:#) in substitution")),
            ("${x^^}", Err("unsupported modifier (^) in substitution")),
            ("${x:0:3}", Err("unsupported modifier (:0) in substitution")),
            ("${", Err("syntax error: missing '}'")),
            ("${x", Err("syntax error: missing '}'")),
            ("${x:", Err("syntax error: missing '}'")),
            ("${x:-d", Err("syntax error: missing '}'")),
            ("${x/a}", Err("syntax error: missing '/' in ${}")),
            ("${x/a/b", Err("syntax error: missing '}'")),
            ("${}", Err("syntax error: bad substitution")),
            ("${{x}", Err("syntax error: bad substitution")),
            ("'a", Err("unexpected end of statement while looking for matching single-quote")),
            ("\"a", Err("unexpected end of statement while looking for matching double-quote")),
            (r"${x#\a}", Err(r"invalid pattern (\a) in substitution: invalid escape '\a'")),
        ] {
            let got = expand(word, Escape::Backslash, &lookup);
            let got = got.as_ref().map(|expanded| expanded.text.as_str()).map_err(|error| error.message.as_str());
            assert_eq!(got, expected, "{word}");
        }
    }

    #[test]
    fn the_escape_character_may_be_a_backtick() {
        for (word, expected) in [("C:\\$x`$x``", "C:\\value$x`"), ("\"`$x\\\"", "$x\\")] {
            assert_eq!(expand(word, Escape::Backtick, &lookup).unwrap().text, expected, "{word}");
        }
    }

    #[test]
    fn unset_variables_are_reported_once_and_in_order() {
        let expanded = expand("$b ${a:-$c} $b $x", Escape::Backslash, &lookup).unwrap();
        assert_eq!(expanded.unset, ["b", "c", "a"]);
    }

    #[test]
    fn words_split_outside_quotes_only() {
        for (word, expected) in [
            ("$ports", &["3000", "4000/udp"] as &[&str]),
            ("\"$ports\"", &["3000 4000/udp"]),
            ("a$ports", &["a3000", "4000/udp"]),
            ("a\\ b c", &["a b", "c"]),
            ("$empty", &[]),
            ("  a  ", &["a"]),
        ] {
            assert_eq!(expand_words(word, Escape::Backslash, &lookup).unwrap(), expected, "{word}");
        }
    }

    #[test]
    fn bodies_keep_their_quotes() {
        for (body, expected) in [
            ("say '$x' \"${x}\"\n", "say 'value' \"value\"\n"),
            ("\\$x \\\\ \\\n", "$x \\ \n"),
            ("it's\n", "it's\n"),
            ("a << b < c\n", "a << b < c\n"),
        ] {
            assert_eq!(expand_heredoc(body, Escape::Backtick, &lookup).unwrap().text, expected, "{body}");
        }
        assert!(expand_heredoc("${", Escape::Backslash, &lookup).is_err());
    }

    #[test]
    fn hostile_words_end() {
        let size = 1 << 17;
        for word in [
            "${".repeat(size),
            "${x:-".repeat(size),
            "\"${x:-".repeat(size),
            "$".repeat(size),
            "\\".repeat(size),
            "'".repeat(size + 1),
            "${x}".repeat(size),
            "${unset}".repeat(size),
            "<".repeat(size),
            "<< ".repeat(size),
        ] {
            for escape in [Escape::Backslash, Escape::Backtick] {
                // The outcome differs; what counts is that there is one.
                drop(expand(&word, escape, &lookup));
                drop(expand_words(&word, escape, &lookup));
                drop(expand_heredoc(&word, escape, &lookup));
                drop(shell_words(&word));
            }
        }
        let mut many = "x".to_owned();
        for _ in 0..20 {
            many = format!("${{x//?/{many}}}");
        }
        let large = "$x".repeat(MAX_ADDED / "value".len() + 1);
        for word in [&many, &large, &format!("\"{large}\"")] {
            let error = expand(word, Escape::Backslash, &lookup).expect_err("too large");
            assert_eq!(error.to_string(), "variables make the text larger than 1 MiB");
        }
        let deep = format!("{}{}", "${u:-".repeat(MAX_DEPTH + 1), "}".repeat(MAX_DEPTH + 1));
        let error = expand(&deep, Escape::Backslash, &lookup).unwrap_err();
        assert_eq!(error.message, "substitutions are nested more than 100 deep");
        let allowed = format!("{}x{}", "${u:-".repeat(MAX_DEPTH - 1), "}".repeat(MAX_DEPTH - 1));
        assert_eq!(expand(&allowed, Escape::Backslash, &lookup).unwrap().text, "x");
    }
}
