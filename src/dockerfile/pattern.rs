//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?`, and a backslash that protects them.
//!
//! In: a pattern and a value. Out: the value with the match cut out or replaced. What always holds: `*` and `?` do
//! not match a newline (as with Docker); work is bounded by [`MAX_STEPS`], beyond which the result is an error.

use super::word::{MAX_ADDED, WordError, too_large};

/// Comparisons that one substitution may take: enough for any real value, little enough to end in a moment.
const MAX_STEPS: usize = 20_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Any,
}

/// A pattern, read.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, WordError> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            tokens.push(match character {
                '*' => Token::Any,
                '?' => Token::One,
                // `}` and `/` are protected from the substitution around the pattern, the others from the pattern.
                '\\' => match rest.next() {
                    Some(protected @ ('}' | '/' | '*' | '?' | '\\')) => Token::Literal(protected),
                    other => {
                        let escape: String = std::iter::once('\\').chain(other).collect();
                        return Err(WordError::new(format!(
                            "invalid pattern ({text}) in substitution: invalid escape '{escape}'"
                        )));
                    }
                },
                other => Token::Literal(other),
            });
        }
        tokens.dedup_by(|a, b| *a == Token::Any && *b == Token::Any);
        Ok(Self { tokens })
    }

    /// `value` without the prefix that matches.
    pub(super) fn without_prefix(&self, value: &str, longest: bool) -> Result<String, WordError> {
        let characters: Vec<char> = value.chars().collect();
        let mut matcher = Matcher::new(&self.tokens);
        let end = matcher.end(&characters, longest)?.unwrap_or(0);
        Ok(characters[end..].iter().collect())
    }

    /// `value` without the suffix that matches.
    pub(super) fn without_suffix(&self, value: &str, longest: bool) -> Result<String, WordError> {
        let characters: Vec<char> = value.chars().rev().collect();
        let tokens: Vec<Token> = self.tokens.iter().rev().copied().collect();
        let mut matcher = Matcher::new(&tokens);
        let end = matcher.end(&characters, longest)?.unwrap_or(0);
        Ok(characters[end..].iter().rev().collect())
    }

    /// `value` with the first or every longest match replaced.
    pub(super) fn replaced(&self, value: &str, replacement: &str, all: bool) -> Result<String, WordError> {
        let characters: Vec<char> = value.chars().collect();
        let mut matcher = Matcher::new(&self.tokens);
        let mut text = String::with_capacity(value.len());
        let mut at = 0;
        let mut previous_end = None;
        while at <= characters.len() {
            match matcher.end(&characters[at..], true)? {
                // An empty match right after another one is a part of that one.
                Some(length) if length > 0 || previous_end != Some(at) => {
                    if text.len() + replacement.len() > MAX_ADDED {
                        return Err(too_large());
                    }
                    text.push_str(replacement);
                    at += length;
                    previous_end = Some(at);
                    if !all {
                        break;
                    }
                    if length > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            text.extend(characters.get(at));
            at += 1;
        }
        text.extend(characters.get(at..).unwrap_or_default());
        Ok(text)
    }
}

/// Runs a pattern over texts, with one set of positions in the pattern.
struct Matcher<'a> {
    tokens: &'a [Token],
    /// Positions in the pattern that the text so far leads to, in order.
    now: Vec<usize>,
    next: Vec<usize>,
    steps: usize,
}

impl<'a> Matcher<'a> {
    fn new(tokens: &'a [Token]) -> Self {
        Self { tokens, now: Vec::new(), next: Vec::new(), steps: 0 }
    }

    /// How many characters from the beginning of `text` match: the most, or the fewest.
    fn end(&mut self, text: &[char], longest: bool) -> Result<Option<usize>, WordError> {
        self.now.clear();
        Self::add(self.tokens, &mut self.now, 0);
        let mut found = None;
        for length in 0..=text.len() {
            if self.now.last() == Some(&self.tokens.len()) {
                found = Some(length);
                if !longest {
                    break;
                }
            }
            let Some(character) = text.get(length).filter(|_| !self.now.is_empty()) else { break };
            self.steps += self.now.len();
            if self.steps > MAX_STEPS {
                return Err(WordError::new("the pattern takes too long to match: it or the value is too large"));
            }
            self.next.clear();
            for &position in &self.now {
                match self.tokens.get(position) {
                    Some(Token::Literal(literal)) if literal == character => {
                        Self::add(self.tokens, &mut self.next, position + 1);
                    }
                    Some(Token::One) if *character != '\n' => Self::add(self.tokens, &mut self.next, position + 1),
                    Some(Token::Any) if *character != '\n' => Self::add(self.tokens, &mut self.next, position),
                    _ => {}
                }
            }
            std::mem::swap(&mut self.now, &mut self.next);
        }
        Ok(found)
    }

    /// Adds a position, and the one after it if a `*` may be skipped. Positions arrive in ascending order.
    fn add(tokens: &[Token], set: &mut Vec<usize>, position: usize) {
        if set.last().is_none_or(|last| *last < position) {
            set.push(position);
        }
        if tokens.get(position) == Some(&Token::Any) && set.last().is_none_or(|last| *last < position + 1) {
            set.push(position + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_suffixes() {
        for (pattern, value, prefix, longest_prefix, suffix, longest_suffix) in [
            ("", "abc", "abc", "abc", "abc", "abc"),
            ("*", "abc", "abc", "", "abc", ""),
            ("?", "abc", "bc", "bc", "ab", "ab"),
            ("a*b", "aXbYb", "Yb", "", "", ""),
            ("*b", "aXbYb", "Yb", "", "aXbY", ""),
            ("**b", "aXbYb", "Yb", "", "aXbY", ""),
            ("b*", "aXbYb", "aXbYb", "aXbYb", "aXbY", "aX"),
            ("a*", "a\nb", "\nb", "\nb", "a\nb", "a\nb"),
            ("abcd", "abc", "abc", "abc", "abc", "abc"),
            (r"\*", "*a*", "a*", "a*", "*a", "*a"),
            ("é?", "éàé", "é", "é", "éàé", "éàé"),
        ] {
            let read = Pattern::new(pattern).unwrap();
            let got = (
                read.without_prefix(value, false).unwrap(),
                read.without_prefix(value, true).unwrap(),
                read.without_suffix(value, false).unwrap(),
                read.without_suffix(value, true).unwrap(),
            );
            let expected = (prefix, longest_prefix, suffix, longest_suffix);
            assert_eq!((got.0.as_str(), got.1.as_str(), got.2.as_str(), got.3.as_str()), expected, "{pattern} {value}");
        }
    }

    #[test]
    fn replacements() {
        for (pattern, value, first, all) in [
            ("", "ab", "-ab", "-a-b-"),
            ("*", "ab", "-", "-"),
            ("b", "abcb", "a-cb", "a-c-"),
            ("b*", "abcb", "a-", "a-"),
            ("x", "ab", "ab", "ab"),
            ("?", "ab", "-b", "--"),
        ] {
            let read = Pattern::new(pattern).unwrap();
            assert_eq!(read.replaced(value, "-", false).unwrap(), first, "{pattern} {value}");
            assert_eq!(read.replaced(value, "-", true).unwrap(), all, "{pattern} {value}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let value = "a".repeat(1 << 20);
        let pattern = Pattern::new(&"*a?".repeat(1 << 14)).unwrap();
        assert!(pattern.without_prefix(&value, true).is_err());
        assert!(pattern.without_suffix(&value, true).is_err());
        assert!(pattern.replaced(&value, "", true).is_err());
        assert_eq!(Pattern::new(&"*".repeat(1 << 20)).unwrap().without_prefix(&value, true).unwrap(), "");
    }
}
