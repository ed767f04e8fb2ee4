//! The checks that need no more than the instructions as they are written.
//!
//! In: nodes. Out: warnings, in no order. What always holds: one function per rule; each looks at every node once.

use super::super::ast::Word;
use super::super::node::{Keyword, Node};
use crate::diagnostic::{Diagnostic, Span};

/// A rule: all that it finds in a file.
type Check = fn(&[Node], &mut Vec<Diagnostic>);

const CHECKS: [Check; 9] = [
    stage_name_casing,
    from_as_casing,
    consistent_instruction_casing,
    duplicate_stage_name,
    reserved_stage_name,
    maintainer_deprecated,
    multiple_instructions_disallowed,
    legacy_key_value_format,
    invalid_definition_description,
];

/// Names that mean something else than a stage.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Asks all of them.
pub fn check(nodes: &[Node]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for check in CHECKS {
        check(nodes, &mut found);
    }
    found
}

/// The AS and the name of each FROM that has them.
fn named_stages(nodes: &[Node]) -> impl Iterator<Item = (&Node, &Word, &Word)> {
    nodes.iter().filter(|node| node.keyword == Keyword::From).filter_map(|node| match node.args.as_slice() {
        [_, keyword, name] => Some((node, keyword, name)),
        _ => None,
    })
}

fn stage_name_casing(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for (_, _, name) in named_stages(nodes).filter(|(.., name)| name.text != name.text.to_lowercase()) {
        let message = format!("Stage name '{}' should be lowercase", name.text);
        found.push(Diagnostic::warning(name.span, "StageNameCasing", message));
    }
}

fn from_as_casing(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for (node, keyword, _) in named_stages(nodes) {
        // A FROM of mixed case is told by another rule.
        let Some(case) = Case::of(&node.name.text) else { continue };
        if Case::of(&keyword.text) != Some(case) {
            let message = format!("'{}' and '{}' keywords' casing do not match", keyword.text, node.name.text);
            found.push(Diagnostic::warning(keyword.span, "FromAsCasing", message));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

impl Case {
    /// The case of a word that has only one.
    fn of(word: &str) -> Option<Self> {
        match word {
            _ if word == word.to_lowercase() => Some(Self::Lower),
            _ if word == word.to_uppercase() => Some(Self::Upper),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Lower => "lowercase",
            Self::Upper => "uppercase",
        }
    }
}

fn consistent_instruction_casing(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    // What stands before the first FROM belongs to no stage, and does not count.
    let first = nodes.iter().position(|node| node.keyword == Keyword::From).unwrap_or(nodes.len());
    let nodes = &nodes[first..];
    let count = |case| nodes.iter().filter(|node| Case::of(&node.name.text) == Some(case)).count();
    let majority = if count(Case::Lower) > count(Case::Upper) { Case::Lower } else { Case::Upper };
    for node in nodes.iter().filter(|node| Case::of(&node.name.text) != Some(majority)) {
        let (name, case) = (&node.name.text, majority.name());
        let message = format!("Command '{name}' should match the case of the command majority ({case})");
        found.push(Diagnostic::warning(node.name.span, "ConsistentInstructionCasing", message));
    }
}

fn duplicate_stage_name(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    let mut seen = std::collections::BTreeSet::new();
    for (_, _, name) in named_stages(nodes) {
        let lower = name.text.to_lowercase();
        if !seen.insert(lower.clone()) {
            let message = format!("Duplicate stage name {lower:?}, stage names should be unique");
            found.push(Diagnostic::warning(name.span, "DuplicateStageName", message));
        }
    }
}

fn reserved_stage_name(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for (_, _, name) in named_stages(nodes) {
        let lower = name.text.to_lowercase();
        if RESERVED.contains(&lower.as_str()) {
            let message = format!("Stage name should not use the same name as reserved stage {lower:?}");
            found.push(Diagnostic::warning(name.span, "ReservedStageName", message));
        }
    }
}

fn maintainer_deprecated(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for node in nodes.iter().filter(|node| node.keyword == Keyword::Maintainer) {
        let message = "Maintainer instruction is deprecated in favor of using label";
        found.push(
            Diagnostic::warning(node.name.span, "MaintainerDeprecated", message)
                .help("write LABEL org.opencontainers.image.authors=\"…\""),
        );
    }
}

/// Told at the instruction that has no effect, not at the one that overrides it.
fn multiple_instructions_disallowed(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    const ONCE: [Keyword; 3] = [Keyword::Cmd, Keyword::Entrypoint, Keyword::Healthcheck];
    let mut before: [Option<Span>; 3] = [None; 3];
    for node in nodes {
        if node.keyword == Keyword::From {
            before = [None; 3];
        }
        let Some(which) = ONCE.iter().position(|keyword| *keyword == node.keyword) else { continue };
        if let Some(span) = before[which].replace(node.name.span) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                node.name.text
            );
            found.push(Diagnostic::warning(span, "MultipleInstructionsDisallowed", message));
        }
    }
}

fn legacy_key_value_format(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for node in nodes.iter().filter(|node| matches!(node.keyword, Keyword::Env | Keyword::Label)) {
        // Name, value, separator.
        let [name, _, separator] = node.args.as_slice() else { continue };
        if separator.text.is_empty() {
            let keyword = &node.name.text;
            let message =
                format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
            found.push(Diagnostic::warning(name.span, "LegacyKeyValueFormat", message));
        }
    }
}

fn invalid_definition_description(nodes: &[Node], found: &mut Vec<Diagnostic>) {
    for node in nodes {
        let names: Vec<String> = match (node.keyword, node.args.as_slice()) {
            (Keyword::From, [_, _, name]) => vec![name.text.to_lowercase()],
            (Keyword::Arg, words) => {
                let name = |word: &Word| word.text.split('=').next().unwrap_or_default().to_owned();
                words.iter().map(name).collect()
            }
            _ => continue,
        };
        let (Some(comment), Some(first)) = (node.comments.last(), names.first()) else { continue };
        let described = comment.split(' ').next().unwrap_or_default();
        if !names.iter().any(|name| name == described) {
            let name = if names.len() > 1 { "<arg_key>" } else { first };
            let keyword = node.keyword.name();
            let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
            found.push(Diagnostic::warning(node.name.span, "InvalidDefinitionDescription", message));
        }
    }
}
