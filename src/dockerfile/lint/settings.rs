//! Which checks count: `# check=skip=…;error=…;experimental=…`.
//!
//! In: the directive at the top of the file or what overrides it, the comments above instructions, and all that was
//! found. Out: what is to be told, at the places where Docker tells it. What always holds: a comment speaks for the
//! instruction below it alone, in addition to what holds for the file; errors are never dropped.

use super::super::Parsed;
use super::super::ast::Word;
use super::super::node::{Keyword, Node};
use super::{RULES, Rule, rule};
use crate::diagnostic::{Diagnostic, Span, nearest};

/// The build argument that overrides the directive.
pub const OVERRIDE: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What one `check=` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    skip: Names,
    experimental: Names,
    /// A warning ends the build.
    error: bool,
}

/// Some rules, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    listed: Vec<String>,
}

impl Names {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "all" => Self { all: true, listed: Vec::new() },
            list => Self { all: false, listed: list.split(',').map(|name| name.trim().to_owned()).collect() },
        }
    }

    fn has(&self, name: &str) -> bool {
        self.all || self.listed.iter().any(|listed| listed == name)
    }
}

impl Settings {
    /// Reads the text after `check=`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        let text = first_word(text);
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else { return Err(format!("invalid check option {part:?}")) };
            match key.trim() {
                "skip" => settings.skip = Names::parse(value),
                "experimental" => settings.experimental = Names::parse(value),
                "error" => match boolean(value.trim()) {
                    Some(error) => settings.error = error,
                    None => return Err(format!("invalid check option {part:?}: true or false")),
                },
                key => return Err(format!("invalid check option {key:?}: it is skip, error or experimental")),
            }
        }
        Ok(settings)
    }

    /// Both of them.
    fn and(&self, other: &Self) -> Self {
        let both = |a: &Names, b: &Names| Names {
            all: a.all || b.all,
            listed: a.listed.iter().chain(&b.listed).cloned().collect(),
        };
        Self {
            skip: both(&self.skip, &other.skip),
            experimental: both(&self.experimental, &other.experimental),
            error: self.error || other.error,
        }
    }

    /// Whether a warning of that name is told. What is experimental is asked for, and cannot be skipped: Docker's way.
    fn admits(&self, name: &str) -> bool {
        match rule(name) {
            Some(Rule { experimental: true, .. }) => self.experimental.has(name),
            _ => !self.skip.has(name),
        }
    }

    /// The names in it that are no checks.
    fn unknown(&self) -> impl Iterator<Item = &str> {
        let listed = self.skip.listed.iter().chain(&self.experimental.listed);
        listed.map(String::as_str).filter(|name| !name.is_empty() && rule(name).is_none() && !OWN.contains(name))
    }
}

/// rbuild's own warnings that have a name: they can be skipped too, and never become errors.
const OWN: [&str; 3] = ["UnusedBuildArg", "UnknownStage", "EpochNotDeclared"];

/// The text up to the first blank, where Docker stops reading, but for blanks around `,`, `;` and `=`.
fn first_word(text: &str) -> String {
    let joints = [',', ';', '='];
    let mut word = String::new();
    for part in text.split_whitespace() {
        if !(word.is_empty() || word.ends_with(joints) || part.starts_with(joints)) {
            break;
        }
        word.push_str(part);
    }
    word
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The checks of one file.
#[derive(Debug)]
pub struct Checks<'a> {
    nodes: &'a [Node],
    settings: Settings,
}

/// What is left to tell.
#[derive(Debug, Default)]
pub struct Settled {
    /// Warnings, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// The error that warnings amount to, where `error=true`.
    pub violation: Option<Diagnostic>,
}

impl<'a> Checks<'a> {
    /// The checks of `parsed`, as its directive or else `given` says. Beside them, what is wrong with its directives.
    pub fn new(parsed: &'a Parsed, given: Option<&str>) -> (Self, Vec<Diagnostic>) {
        let (text, span) = match (given, &parsed.dockerfile.check) {
            (Some(text), _) => (text, None),
            (None, Some(Word { text, span })) => (text.as_str(), Some(*span)),
            (None, None) => ("", None),
        };
        let at = |diagnostic: Diagnostic| Diagnostic { span, ..diagnostic };
        let (settings, mut wrong): (_, Vec<_>) = match Settings::parse(text) {
            Ok(settings) => {
                let unknown = settings.unknown().map(unknown_rule).map(at).collect();
                (settings, unknown)
            }
            Err(why) => {
                let help = "write # check=skip=RULE,RULE;error=true";
                (Settings::default(), vec![at(Diagnostic::error(Span::default(), why).help(help))])
            }
        };
        wrong.extend(parsed.dockerfile.syntax.as_ref().and_then(foreign_syntax));
        (Self { nodes: &parsed.nodes, settings }, wrong)
    }

    /// What of `found` is to be told. Of rules that are asked only of stages that are built, those in other stages are
    /// dropped; `built` has one entry for each FROM, and `None` is all of them.
    pub fn settle(&self, found: Vec<Diagnostic>, built: Option<&[bool]>) -> Settled {
        let mut settled = Settled::default();
        let mut violated: Vec<&'static str> = Vec::new();
        let mut first = None;
        let stages = if found.is_empty() { Vec::new() } else { self.stages() };
        for mut warning in found {
            let Some(name) = warning.rule else {
                settled.warnings.push(warning);
                continue;
            };
            let rule = rule(name);
            let node = warning.span.and_then(|span| self.node_at(span));
            let settings = node.and_then(|index| self.above(index)).map(|own| self.settings.and(&own));
            let settings = settings.as_ref().unwrap_or(&self.settings);
            let stage = node.and_then(|index| stages[index]);
            let out_of_sight = rule.is_some_and(|rule| rule.built)
                && stage.zip(built).is_some_and(|(stage, built)| built.get(stage) == Some(&false));
            if out_of_sight || !settings.admits(name) {
                continue;
            }
            // Docker tells the whole instruction; of an empty line in its middle it tells the end.
            if let (Some(rule), Some(index)) = (rule, node)
                && rule.name != "NoEmptyContinuation"
            {
                warning.span = Some(self.nodes[index].span);
            }
            if settings.error && rule.is_some() {
                first = first.or(warning.span);
                if !violated.contains(&name) {
                    violated.push(name);
                }
            }
            settled.warnings.push(warning);
        }
        // Stable: what has no place comes first.
        settled.warnings.sort_by_key(|warning| warning.span.map(|span| span.start));
        if !violated.is_empty() {
            let message = format!("lint violation found for rules: {}", violated.join(", "));
            let error = Diagnostic::error(Span::default(), message).help("# check=error=true makes warnings errors");
            settled.violation = Some(Diagnostic { span: first, ..error });
        }
        settled
    }

    /// The instruction that a place lies in.
    fn node_at(&self, span: Span) -> Option<usize> {
        let index = self.nodes.partition_point(|node| node.span.start <= span.start).checked_sub(1)?;
        (span.start <= self.nodes[index].span.end).then_some(index)
    }

    /// What the comments above an instruction say.
    fn above(&self, index: usize) -> Option<Settings> {
        self.nodes[index].comments.iter().find_map(|comment| {
            let (key, value) = comment.split_once('=')?;
            key.trim().eq_ignore_ascii_case("check").then(|| Settings::parse(value).ok())?
        })
    }

    /// For each instruction its stage; none before the first FROM.
    fn stages(&self) -> Vec<Option<usize>> {
        let begins = |count: &mut usize, node: &Node| {
            *count += usize::from(node.keyword == Keyword::From);
            Some(count.checked_sub(1))
        };
        self.nodes.iter().scan(0, begins).collect()
    }
}

/// `# syntax=` of another language, or of a dialect: the file is read as a Dockerfile all the same.
fn foreign_syntax(word: &Word) -> Option<Diagnostic> {
    let reference = word.text.split_whitespace().next().unwrap_or_default();
    let name = reference.split('@').next().unwrap_or_default();
    let (folder, last) = name.rsplit_once('/').unwrap_or(("", name));
    let last = last.split(':').next().unwrap_or_default();
    let docker = folder == "docker" || folder.ends_with("/docker");
    if name == "dockerfile.v0" || docker && matches!(last, "dockerfile" | "dockerfile-upstream") {
        return None;
    }
    let message = format!("# syntax={reference} is not fetched: rbuild reads the file as Docker's own Dockerfile");
    let warning = Diagnostic { rule: None, ..Diagnostic::warning(word.span, "", message) };
    Some(
        warning
            .help("what only that frontend knows is an error; # syntax=docker/dockerfile:1 says the same as no line"),
    )
}

fn unknown_rule(name: &str) -> Diagnostic {
    let warning =
        Diagnostic { rule: None, ..Diagnostic::warning(Span::default(), "", format!("there is no check {name:?}")) };
    match nearest(name, RULES.iter().map(|rule| rule.name)) {
        Some(near) => warning.help(format!("did you mean {near}?")),
        None => warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let names =
            |all, listed: &[&str]| Names { all, listed: listed.iter().map(|name| (*name).to_owned()).collect() };
        for (text, expected) in [
            ("", Some(Settings::default())),
            ("skip=all", Some(Settings { skip: names(true, &[]), ..Settings::default() })),
            (
                " skip = A , B ; error = 1 ; experimental = C",
                Some(Settings { skip: names(false, &["A", "B"]), experimental: names(false, &["C"]), error: true }),
            ),
            ("error=false;", Some(Settings::default())),
            ("skip=A // but not B", Some(Settings { skip: names(false, &["A"]), ..Settings::default() })),
            ("error=yes", None),
            ("skip", None),
            ("skp=all", None),
        ] {
            assert_eq!(Settings::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn frontends_of_docker_are_no_news() {
        for (text, news) in [
            ("docker/dockerfile:1", false),
            ("docker.io/docker/dockerfile:1.7-labs@sha256:0", false),
            ("mirror.example:5000/docker/dockerfile-upstream:master", false),
            ("dockerfile.v0", false),
            ("example/dockerfile:1", true),
            ("docker/other", true),
            ("dockerfile", true),
            ("", true),
        ] {
            let word = Word { text: text.to_owned(), span: Span::new(0, 1) };
            assert_eq!(foreign_syntax(&word).is_some(), news, "{text}");
        }
    }

    #[test]
    fn what_is_experimental_is_asked_for() {
        let admits = |text: &str, name: &str| Settings::parse(text).unwrap().admits(name);
        for (text, name, expected) in [
            ("", "StageNameCasing", true),
            ("skip=all", "StageNameCasing", false),
            ("skip=StageNameCasing", "StageNameCasing", false),
            ("skip=FromAsCasing", "StageNameCasing", true),
            ("", "InvalidDefinitionDescription", false),
            ("experimental=all", "InvalidDefinitionDescription", true),
            ("skip=all;experimental=InvalidDefinitionDescription", "InvalidDefinitionDescription", true),
            ("skip=all", "UnusedBuildArg", false),
            ("", "UnusedBuildArg", true),
        ] {
            assert_eq!(admits(text, name), expected, "{text} {name}");
        }
    }
}
