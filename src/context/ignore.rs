//! `.dockerignore` and `--exclude`: which paths are left out, and which line says so.
//!
//! In: the text of an ignore file, or patterns. Out: [`Patterns`], compiled once. What always holds: the last pattern
//! that matches a path or any directory above it decides; without one the path stays. The rules are Docker's, not
//! git's: a pattern is anchored at the root, and a negated one may bring back what lies in an excluded directory.

use super::glob::{BadGlob, Glob, clean};

/// One line of an ignore file, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// As normalised: without blanks around it, cleaned, with its `!`.
    pub text: String,
    /// The line in the file, or the number of the `--exclude`, from 1.
    pub line: usize,
    /// Begins with `!`: what it matches stays.
    pub negated: bool,
    glob: Glob,
}

/// What a build leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns {
    /// Name of the file in messages; empty for `--exclude`.
    pub file: String,
    patterns: Vec<Pattern>,
}

/// A pattern that cannot be used, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A lone `!`.
    #[error("{place}: illegal exclusion pattern: \"!\": a pattern must follow it")]
    LoneNegation {
        /// Where.
        place: String,
    },
    /// Bad syntax.
    #[error("{place}: bad pattern {pattern:?}: {source}")]
    Syntax {
        /// Where.
        place: String,
        /// The pattern as normalised.
        pattern: String,
        /// Why.
        source: BadGlob,
    },
}

/// Which patterns match a directory or one above it: what matching of its children starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Above(Vec<u64>);

impl Above {
    fn has(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
    }
}

/// The patterns of an ignore file with their line numbers: without comments and blank lines, trimmed, cleaned, no `/`
/// in front.
pub fn lines(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut patterns = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        let (negation, pattern) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest.trim()));
        if line.is_empty() {
            continue;
        }
        let pattern = if pattern.is_empty() { String::new() } else { clean(pattern) };
        let pattern = if pattern.len() > 1 { pattern.strip_prefix('/').unwrap_or(&pattern) } else { &pattern };
        patterns.push((index + 1, format!("{negation}{pattern}")));
    }
    patterns
}

impl Patterns {
    /// Parses the text of an ignore file that messages call `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self, PatternError> {
        Self::compile(file, lines(text))
    }

    /// Compiles the patterns of `--exclude`.
    pub fn from_list<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let numbered = patterns.iter().enumerate().map(|(index, pattern)| (index + 1, pattern.as_ref().to_owned()));
        Self::compile("", numbered.collect())
    }

    fn compile(file: &str, numbered: Vec<(usize, String)>) -> Result<Self, PatternError> {
        let mut patterns = Vec::with_capacity(numbered.len());
        for (line, text) in numbered {
            let place = || if file.is_empty() { "--exclude".to_owned() } else { format!("{file}:{line}") };
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let (negated, body) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest.trim()));
            if body.is_empty() {
                return Err(PatternError::LoneNegation { place: place() });
            }
            let body = clean(body);
            let glob = Glob::ignore(&body).map_err(|source| PatternError::Syntax {
                place: place(),
                pattern: text.to_owned(),
                source,
            })?;
            patterns.push(Pattern { text: format!("{}{body}", if negated { "!" } else { "" }), line, negated, glob });
        }
        Ok(Self { file: file.to_owned(), patterns })
    }

    /// Whether nothing is ever left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.iter().all(|pattern| pattern.negated)
    }

    /// Whether a pattern begins with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated)
    }

    /// Whether `path` is left out. Slashes around it do not count.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.excluded_by(path).is_some()
    }

    /// The pattern by which `path` is left out, if it is.
    pub fn excluded_by(&self, path: &[u8]) -> Option<&Pattern> {
        self.decisive(path).map(|index| &self.patterns[index]).filter(|pattern| !pattern.negated)
    }

    /// Whether a path below the directory `dir` may stay, although `dir` is left out: whether it is worth a look.
    pub fn may_match_below(&self, dir: &[u8]) -> bool {
        let decisive = self.decisive(dir);
        self.may_stay_below(decisive, trimmed(dir))
    }

    /// What matching starts from at the root.
    pub fn at_root(&self) -> Above {
        Above::default()
    }

    /// What matching starts from in the directory `dir`, given that of the directory which holds it.
    pub fn enter(&self, above: &Above, dir: &[u8]) -> Above {
        let mut words = vec![0; self.patterns.len().div_ceil(64)];
        for (index, pattern) in self.patterns.iter().enumerate() {
            if above.has(index) || pattern.glob.matches(dir) {
                words[index / 64] |= 1 << (index % 64);
            }
        }
        Above(words)
    }

    /// Whether `path` is left out, given [`Above`] of the directory that holds it.
    pub fn excludes(&self, above: &Above, path: &[u8]) -> bool {
        let hit = self
            .patterns
            .iter()
            .enumerate()
            .rev()
            .find(|(index, pattern)| above.has(*index) || pattern.glob.matches(path));
        hit.is_some_and(|(_, pattern)| !pattern.negated)
    }

    /// Whether the directory `dir` is left out, and whether something below it may stay nevertheless. `own` is what
    /// [`Patterns::enter`] gave for it.
    pub fn directory(&self, own: &Above, dir: &[u8]) -> (bool, bool) {
        let decisive = (0..self.patterns.len()).rev().find(|index| own.has(*index));
        let excluded = decisive.is_some_and(|index| !self.patterns[index].negated);
        (excluded, !excluded || self.may_stay_below(decisive, dir))
    }

    /// Whether a negated pattern after the `decisive` one can match below `dir`. Those before it cannot win: the
    /// decisive one matches all that is below `dir` too.
    fn may_stay_below(&self, decisive: Option<usize>, dir: &[u8]) -> bool {
        let Some(decisive) = decisive.filter(|index| !self.patterns[*index].negated) else { return true };
        self.patterns[decisive + 1..].iter().any(|pattern| pattern.negated && pattern.glob.may_match_below(dir))
    }

    /// Index of the last pattern that matches `path` or a directory above it.
    fn decisive(&self, path: &[u8]) -> Option<usize> {
        let path = trimmed(path);
        let ends: Vec<usize> =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]).collect();
        let matches = |pattern: &Pattern| ends.iter().rev().any(|end| pattern.glob.matches(&path[..*end]));
        self.patterns.iter().rposition(matches)
    }
}

fn trimmed(mut path: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] | [rest @ .., b'/'] = path {
        path = rest;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_can_name_the_line() {
        let text = "# build output\n\n/target/\n node_modules \n!node_modules/keep\nnode_modules/keep/not\n";
        let patterns = Patterns::parse(".dockerignore", text).expect("good patterns");
        for (path, line) in [
            ("target", Some(3)),
            ("target/debug/app", Some(3)),
            ("node_modules/x", Some(4)),
            ("node_modules/keep/a", None),
            ("node_modules/keep/not/a", Some(6)),
            ("src/target", None),
        ] {
            assert_eq!(patterns.excluded_by(path.as_bytes()).map(|pattern| pattern.line), line, "{path}");
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = |text: &str| Patterns::parse("docker/.dockerignore", text).expect_err("a bad pattern").to_string();
        assert!(error("a\n! \n").starts_with("docker/.dockerignore:2: illegal exclusion pattern: \"!\""));
        assert!(error("a\n\n[z-a]\n").starts_with("docker/.dockerignore:3: bad pattern \"[z-a]\""));
        let error = Patterns::from_list(&["a["]).expect_err("a bad pattern").to_string();
        assert!(error.starts_with("--exclude: bad pattern \"a[\""), "{error}");
    }

    #[test]
    fn folders_are_entered_only_where_something_may_stay() {
        for (text, dir, expected) in [
            ("node_modules", "node_modules", false),
            ("node_modules\n!node_modules/a/b", "node_modules", true),
            ("node_modules\n!node_modules/a/b", "node_modules/a", true),
            ("node_modules\n!node_modules/a/b", "node_modules/x", false),
            ("!node_modules/a\nnode_modules", "node_modules", false),
            ("*\n!src", "target", false),
            ("*\n!src", "src", true),
            ("*\n!**/x", "target", true),
            ("a", "b", true),
            ("**\n!*.md", "docs", false),
        ] {
            let patterns = Patterns::parse("f", text).expect("good patterns");
            assert_eq!(patterns.may_match_below(dir.as_bytes()), expected, "{text:?} {dir}");
            let own = patterns.enter(&patterns.at_root(), dir.as_bytes());
            if !dir.contains('/') {
                assert_eq!(patterns.directory(&own, dir.as_bytes()).1, expected, "{text:?} {dir} by steps");
            }
        }
    }

    /// Matching step by step, as the walk does it, is matching whole paths.
    #[test]
    fn steps_and_whole_paths_agree() {
        let texts = ["*\n!a\na/b\n!a/b/c", "**/x\n!a/x", "a/**\n!a/b\n", "!a\n*/b", "a*\n!*/b\n*/b/c\n!**/c"];
        for text in texts {
            let patterns = Patterns::parse("f", text).expect("good patterns");
            for path in ["a", "a/b", "a/b/c", "a/b/c/x", "a/x", "x", "b/x/b", "ab/b/c", "ab/b/d"] {
                let parts: Vec<&str> = path.split('/').collect();
                let mut above = patterns.at_root();
                for end in 1..parts.len() {
                    above = patterns.enter(&above, parts[..end].join("/").as_bytes());
                }
                assert_eq!(
                    patterns.excludes(&above, path.as_bytes()),
                    patterns.matches(path.as_bytes()),
                    "{text:?} {path}"
                );
            }
        }
    }

    #[test]
    fn more_patterns_than_a_word_has_bits() {
        let mut lines: Vec<String> = (0..200).map(|number| format!("dir{number}")).collect();
        lines.push("!dir150/x".to_owned());
        let patterns = Patterns::parse("f", &lines.join("\n")).expect("good patterns");
        let above = patterns.enter(&patterns.at_root(), b"dir150");
        assert!(patterns.excludes(&above, b"dir150/y"));
        assert!(!patterns.excludes(&above, b"dir150/x"));
    }
}
