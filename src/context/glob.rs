//! Compiled path patterns: those of `.dockerignore` and those of COPY's sources.
//!
//! In: the text of a pattern. Out: a [`Glob`] that says whether a path matches, and whether anything below a directory
//! could. What always holds: matching takes at most time proportional to pattern × path, whatever the pattern says (no
//! exponential backtracking), and works on raw bytes: an ill-formed UTF-8 byte counts as one character.

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// These bytes.
    Literal(Vec<u8>),
    /// `?`: one character but `/`.
    Any,
    /// `*`: any characters but `/`.
    Star,
    /// `[…]`: one character of a class.
    Class(Class),
    /// `**/`: nothing, or anything that ends in `/`.
    Directories,
    /// `**` at an end: anything at all.
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn matches(&self, character: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&character)) != self.negated
    }
}

/// Why a pattern is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGlob {
    /// `[` without its `]`.
    #[error("a `[` has no `]` that ends it")]
    OpenClass,
    /// `[]`, `[-x]`, `[x-]`: the place wants a character.
    #[error("inside `[…]`, write `\\-` for `-` and `\\]` for `]`")]
    ClassCharacter,
    /// `[z-a]`.
    #[error("the range {0}-{1} inside `[…]` is upside down")]
    Range(char, char),
    /// `\` at the end.
    #[error("a `\\` at the end escapes nothing")]
    LoneEscape,
}

impl Glob {
    /// Compiles a cleaned pattern of `.dockerignore` or `--exclude`: `*`, `?`, `[…]`, `\x`, and `**` for any number of
    /// elements. `**` also works in the middle of a name, as in Docker: `a**` is all that begins with `a`, and `**a`
    /// all that ends in it, if there is no other wildcard in it.
    pub fn ignore(pattern: &str) -> Result<Self, BadGlob> {
        let mut tokens = Tokens::default();
        let mut rest = pattern.chars().peekable();
        let mut first = true;
        while let Some(character) = rest.next() {
            match character {
                '*' if rest.next_if_eq(&'*').is_some() => {
                    let slash = rest.next_if_eq(&'/').is_some();
                    let plain = !rest.clone().any(|other| matches!(other, '*' | '?' | '[' | ']' | '\\'));
                    if rest.peek().is_none() || (first && !slash && plain) {
                        tokens.push(Token::Rest);
                    } else {
                        tokens.push(Token::Directories);
                    }
                }
                '*' => tokens.push(Token::Star),
                '?' => tokens.push(Token::Any),
                '[' => tokens.push(Token::Class(class(&mut rest)?)),
                '\\' => tokens.literal(rest.next().ok_or(BadGlob::LoneEscape)?),
                other => tokens.literal(other),
            }
            first = false;
        }
        Ok(Self { tokens: tokens.0 })
    }

    /// Compiles one element of a path as Go's `filepath.Match` reads it: `*`, `?`, `[…]`, `\x`.
    pub fn element(pattern: &str) -> Result<Self, BadGlob> {
        let mut tokens = Tokens::default();
        let mut rest = pattern.chars().peekable();
        while let Some(character) = rest.next() {
            match character {
                '*' => tokens.push(Token::Star),
                '?' => tokens.push(Token::Any),
                '[' => tokens.push(Token::Class(class(&mut rest)?)),
                '\\' => tokens.literal(rest.next().ok_or(BadGlob::LoneEscape)?),
                other => tokens.literal(other),
            }
        }
        Ok(Self { tokens: tokens.0 })
    }

    /// Whether the pattern is `path`.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self.tokens.as_slice() {
            [] => return path.is_empty(),
            [Token::Literal(whole)] => return path == whole,
            [Token::Literal(start), Token::Rest] => return path.starts_with(start),
            [Token::Rest, Token::Literal(end)] => return path.ends_with(end),
            [Token::Directories, Token::Literal(end)] => {
                return path.strip_suffix(end.as_slice()).is_some_and(|head| head.is_empty() || head.ends_with(b"/"));
            }
            [Token::Literal(start), ..] if !path.starts_with(start) => return false,
            [.., Token::Literal(end)] if !path.ends_with(end) => return false,
            _ => {}
        }
        self.search(path, false)
    }

    /// Whether the pattern could be a path below `directory`. Exact but for one case: it never says no wrongly.
    pub fn may_match_below(&self, directory: &[u8]) -> bool {
        if directory.is_empty() {
            return !self.tokens.is_empty();
        }
        let mut start = directory.to_vec();
        start.push(b'/');
        self.search(&start, true)
    }

    /// Tries all ways through the tokens, each (token, position) once. With `open`, `text` is but the beginning of the
    /// path, and it is enough that its end is reached with something left that can go on.
    fn search(&self, text: &[u8], open: bool) -> bool {
        let columns = text.len() + 1;
        let mut seen = vec![0u64; ((self.tokens.len() + 1) * columns).div_ceil(64)];
        let mut todo = vec![(0usize, 0usize)];
        while let Some((token, at)) = todo.pop() {
            let bit = token * columns + at;
            if seen[bit / 64] & 1 << (bit % 64) != 0 {
                continue;
            }
            seen[bit / 64] |= 1 << (bit % 64);
            let Some(wanted) = self.tokens.get(token) else {
                if at == text.len() && !open {
                    return true;
                }
                continue;
            };
            if open && (at == text.len() || matches!(wanted, Token::Directories | Token::Rest)) {
                return true;
            }
            let left = &text[at..];
            match wanted {
                Token::Literal(bytes) => {
                    if left.starts_with(bytes) {
                        todo.push((token + 1, at + bytes.len()));
                    } else if open && bytes.starts_with(left) {
                        return true;
                    }
                }
                Token::Any => {
                    if let Some((character, length)) = first_character(left)
                        && character != '/'
                    {
                        todo.push((token + 1, at + length));
                    }
                }
                Token::Class(class) => {
                    if let Some((character, length)) = first_character(left)
                        && class.matches(character)
                    {
                        todo.push((token + 1, at + length));
                    }
                }
                Token::Star => {
                    if let Some((character, length)) = first_character(left)
                        && character != '/'
                    {
                        todo.push((token, at + length));
                    }
                    todo.push((token + 1, at));
                }
                Token::Directories => {
                    let slashes = left.iter().enumerate().filter(|(_, byte)| **byte == b'/');
                    todo.extend(slashes.map(|(offset, _)| (token + 1, at + offset + 1)));
                    todo.push((token + 1, at));
                }
                Token::Rest if token + 1 == self.tokens.len() => return true,
                Token::Rest => {
                    if let Some((_, length)) = first_character(left) {
                        todo.push((token, at + length));
                    }
                    todo.push((token + 1, at));
                }
            }
        }
        false
    }
}

/// Tokens in the making: neighbouring characters become one literal.
#[derive(Default)]
struct Tokens(Vec<Token>);

impl Tokens {
    fn push(&mut self, token: Token) {
        let repeated = matches!(token, Token::Star | Token::Directories | Token::Rest) && self.0.last() == Some(&token);
        if !repeated {
            self.0.push(token);
        }
    }

    fn literal(&mut self, character: char) {
        let mut buffer = [0; 4];
        let bytes = character.encode_utf8(&mut buffer).as_bytes();
        if let Some(Token::Literal(literal)) = self.0.last_mut() {
            literal.extend_from_slice(bytes);
        } else {
            self.0.push(Token::Literal(bytes.to_vec()));
        }
    }
}

/// Reads a class; its `[` has been read.
fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Class, BadGlob> {
    let mut class = Class { negated: rest.next_if_eq(&'^').is_some(), ranges: Vec::new() };
    loop {
        if !class.ranges.is_empty() && rest.next_if_eq(&']').is_some() {
            return Ok(class);
        }
        let low = class_character(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { class_character(rest)? } else { low };
        if high < low {
            return Err(BadGlob::Range(low, high));
        }
        class.ranges.push((low, high));
    }
}

fn class_character(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadGlob> {
    match rest.next() {
        None => Err(BadGlob::OpenClass),
        Some('-' | ']') => Err(BadGlob::ClassCharacter),
        Some('\\') => rest.next().ok_or(BadGlob::OpenClass),
        Some(other) => Ok(other),
    }
}

/// The first character of `bytes` and its length; U+FFFD and 1 where it is ill-formed.
fn first_character(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((char::from(first), 1));
    }
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let character =
        bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|text| text.chars().next());
    Some(character.map_or((char::REPLACEMENT_CHARACTER, 1), |character| (character, length)))
}

/// Cleans a path as Go's `path.Clean` does: no empty elements, no `.`, `..` taken as far as it goes; `.` when nothing
/// is left; a leading `/` stays.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_match_as_in_go() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("*.go", "a.go", true),
            ("*.go", ".go", true),
            ("*.go", "a.god", false),
            ("f?o", "foo", true),
            ("f?o", "fo", false),
            ("a**b", "axxb", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[!a]", "!", true),
            ("[!a]", "b", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[[]id].js", "[id].js", true),
            ("a?b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("{a,b}", "a", false),
            ("{a,b}", "{a,b}", true),
        ] {
            assert_eq!(
                Glob::element(pattern).map(|glob| glob.matches(name.as_bytes())),
                Ok(expected),
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for (pattern, error) in [
            ("[", BadGlob::OpenClass),
            ("[a", BadGlob::OpenClass),
            ("[]a]", BadGlob::ClassCharacter),
            ("[a-]", BadGlob::ClassCharacter),
            ("[z-a]", BadGlob::Range('z', 'a')),
            ("a\\", BadGlob::LoneEscape),
        ] {
            assert_eq!(Glob::ignore(pattern), Err(error.clone()), "{pattern}");
            assert_eq!(Glob::element(pattern), Err(error), "{pattern}");
        }
    }

    #[test]
    fn ill_formed_bytes_are_characters() {
        let one = Glob::element("a?b").expect("a good pattern");
        assert!(one.matches(b"a\xffb"));
        assert!(!one.matches(b"a\xff\xfeb"));
        assert!(Glob::element("a*").expect("a good pattern").matches(b"a\xff\xfe"));
    }

    #[test]
    fn below() {
        for (pattern, directory, expected) in [
            ("a/b/c", "a", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "a/b/c", false),
            ("a/b/c", "a/x", false),
            ("a/b/c", "", true),
            ("ab", "a", false),
            ("*.md", "docs", false),
            ("*/README", "docs", true),
            ("*/README", "docs/x", false),
            ("**/README", "docs/x", true),
            ("docs/**", "docs", true),
            ("docs/**", "doc", false),
            ("d*/x", "docs", true),
            ("d*/x", "src", false),
            ("a[^x]b/c", "ayb", true),
        ] {
            let glob = Glob::ignore(pattern).expect("a good pattern");
            assert_eq!(glob.may_match_below(directory.as_bytes()), expected, "{pattern} {directory}");
        }
    }

    #[test]
    fn hostile_patterns_stay_cheap() {
        let glob = Glob::ignore(&"*a".repeat(200)).expect("a good pattern");
        assert!(!glob.matches("a".repeat(5000).as_bytes().iter().chain(b"b").copied().collect::<Vec<_>>().as_slice()));
        let glob = Glob::ignore(&"**/a*".repeat(60)).expect("a good pattern");
        assert!(!glob.matches("a/".repeat(400).as_bytes()));
    }

    #[test]
    fn cleaning() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("a/", "a"),
            ("./a//b/../c", "a/c"),
            ("/../a", "/a"),
            ("../a", "../a"),
            ("a/../..", ".."),
            ("/a/..", "/"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
