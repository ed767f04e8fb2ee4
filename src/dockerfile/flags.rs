//! The flags of instructions: which there are, and what their values may be; and what a RUN executes.
//!
//! In: the flags of a [`Node`]. Out: typed values, and a diagnostic for every flag that is unknown, repeated, or has a
//! value that cannot be right. What always holds: a flag that exists is either in the result or in a diagnostic.

use super::ast::{CommandLine, Run, Script, Word};
use super::heredoc::Opener;
use super::node::{Flag, Keyword, Node};
use super::parser;
use crate::diagnostic::{Diagnostic, nearest};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `--name=value`, once.
    Text,
    /// `--name=value`, any number of times.
    List,
    /// `--name`, `--name=true`, `--name=false`, once.
    Switch,
}

/// The flags that an instruction has; `None` where Docker reads flags and ignores them.
fn known(keyword: Keyword) -> Option<&'static [(&'static str, Kind)]> {
    Some(match keyword {
        Keyword::From => &[("platform", Kind::Text)],
        Keyword::Run => {
            &[("mount", Kind::List), ("network", Kind::Text), ("security", Kind::Text), ("device", Kind::List)]
        }
        Keyword::Copy => &[
            ("from", Kind::Text),
            ("chown", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Switch),
            ("parents", Kind::Switch),
            ("exclude", Kind::List),
        ],
        Keyword::Add => &[
            ("chown", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Switch),
            ("exclude", Kind::List),
            ("checksum", Kind::Text),
            ("keep-git-dir", Kind::Switch),
            ("unpack", Kind::Switch),
        ],
        Keyword::Healthcheck => &[
            ("interval", Kind::Text),
            ("timeout", Kind::Text),
            ("start-period", Kind::Text),
            ("start-interval", Kind::Text),
            ("retries", Kind::Text),
        ],
        Keyword::Arg | Keyword::StopSignal => return None,
        _ => &[],
    })
}

/// The flags of one instruction, checked against those that it has.
#[derive(Debug, Default)]
pub(super) struct Flags {
    given: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
enum Value {
    Text(Word),
    Switch(bool),
}

impl Flags {
    /// Reads the flags of `node`. `None`, and diagnostics, if there is anything wrong with them.
    pub(super) fn read(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<Self> {
        let mut flags = Self::default();
        let Some(known) = known(node.keyword) else { return Some(flags) };
        let before = diagnostics.len();
        for flag in &node.flags {
            let Some((name, kind)) = known.iter().find(|(name, _)| *name == flag.name) else {
                diagnostics.push(unknown(node, flag, known));
                continue;
            };
            if *kind != Kind::List && flags.given.iter().any(|(given, _)| given == name) {
                diagnostics.push(
                    Diagnostic::error(flag.word.span, format!("duplicate flag specified: --{name}"))
                        .label("given before")
                        .help(format!("--{name} can be given once only: keep one of them")),
                );
                continue;
            }
            match (kind, &flag.value) {
                (Kind::Switch, None) => flags.given.push((name, Value::Switch(true))),
                (Kind::Switch, Some(value)) => match value.text.to_ascii_lowercase().as_str() {
                    "true" => flags.given.push((name, Value::Switch(true))),
                    "false" => flags.given.push((name, Value::Switch(false))),
                    "" => diagnostics.push(no_value(flag)),
                    _ => diagnostics.push(
                        Diagnostic::error(
                            value.span,
                            format!("expecting boolean value for flag --{name}, not: {}", value.text),
                        )
                        .help(format!("write --{name} or --{name}=false")),
                    ),
                },
                (_, None) => diagnostics.push(no_value(flag)),
                (_, Some(value)) => flags.given.push((name, Value::Text(value.clone()))),
            }
        }
        (diagnostics.len() == before).then_some(flags)
    }

    /// The value of a flag that is given once. An empty value counts as none.
    pub(super) fn text(&self, name: &str) -> Option<Word> {
        self.given_text(name).filter(|word| !word.text.is_empty())
    }

    /// The value of a flag that is given once, be it empty.
    pub(super) fn given_text(&self, name: &str) -> Option<Word> {
        self.list(name).pop()
    }

    /// The values of a flag that may be repeated.
    pub(super) fn list(&self, name: &str) -> Vec<Word> {
        self.given
            .iter()
            .filter(|(given, _)| *given == name)
            .filter_map(|(_, value)| match value {
                Value::Text(word) => Some(word.clone()),
                Value::Switch(_) => None,
            })
            .collect()
    }

    /// Whether a yes-or-no flag is given, and as what.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.given.iter().find_map(|(given, value)| match value {
            Value::Switch(on) if *given == name => Some(*on),
            _ => None,
        })
    }
}

fn unknown(node: &Node, flag: &Flag, known: &[(&'static str, Kind)]) -> Diagnostic {
    let name = node.keyword.name();
    let error = Diagnostic::error(flag.word.span, format!("unknown flag: --{}", flag.name));
    match meant(&flag.name, known.iter().map(|(name, _)| *name)) {
        Some(meant) => error.label(format!("did you mean --{meant}?")),
        None => error.label(format!("{name} has no such flag")),
    }
    .help(match known {
        [] => format!(
            "{name} takes no flags; a lone -- before the arguments keeps words that begin with -- from being flags"
        ),
        _ => format!(
            "flags of {name}: {}",
            known.iter().map(|(name, _)| format!("--{name}")).collect::<Vec<_>>().join(" ")
        ),
    })
}

/// The name that was meant: the nearest, or the only one that begins so.
pub(super) fn meant<'a>(word: &str, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    if word.len() > 64 {
        return None; // no name is nearly so long, and comparing takes its time
    }
    nearest(word, names.clone()).or_else(|| {
        let mut longer = names.filter(|name| word.len() > 1 && name.starts_with(&word.to_lowercase()));
        longer.next().filter(|_| longer.next().is_none())
    })
}

fn no_value(flag: &Flag) -> Diagnostic {
    Diagnostic::error(flag.word.span, format!("missing a value on flag: --{}", flag.name))
        .help(format!("write --{}=VALUE, without blanks around the =", flag.name))
}

/// Reads a duration as Go does: `1m30s`, `1.5h`, `0`; in nanoseconds. `None` if it is none, or too large.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, parts) = parser::duration(text)?;
    let mut total: i128 = 0;
    for (number, unit) in parts {
        let unit: i128 = match unit.as_str() {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.into() };
        // An hour has 13 digits of nanoseconds: what comes after 18 digits is nothing.
        let fraction = &fraction[..fraction.len().min(18)]; // all ASCII digits
        let scale = 10_i128.pow(fraction.len() as u32);
        let fraction: i128 = if fraction.is_empty() { 0 } else { fraction.parse::<i64>().ok()?.into() };
        total += whole * unit + fraction * unit / scale;
        if total > i128::from(i64::MAX) {
            return None;
        }
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// What a RUN executes, here-documents taken in.
pub fn run_script(run: &Run) -> Script {
    let command = match &run.command {
        CommandLine::Exec(words) => return Script::Exec(words.clone()),
        CommandLine::Shell(command) => command,
    };
    let Some(first) = run.heredocs.first() else { return Script::Shell(command.clone()) };
    if matches!(Opener::of_word(command), Ok(Some(_))) {
        // Nothing but the here-document: its body is the script, whatever the shell.
        return if first.content.starts_with("#!") {
            Script::File { name: first.name.clone(), body: first.content.clone() }
        } else {
            Script::Shell(first.content.clone())
        };
    }
    let mut script = command.clone();
    for heredoc in &run.heredocs {
        script.push('\n');
        script.push_str(heredoc.raw());
        script.push_str(&heredoc.name);
    }
    Script::Shell(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("0", Some(0)),
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            (".5ms", Some(500_000)),
            ("1.ms", Some(1_000_000)),
            ("-1s", Some(-1_000_000_000)),
            ("+1us1µs1μs1ns", Some(3_001)),
            ("0.1234567890123456789s", Some(123_456_789)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("9223372036854775808ns", None),
            ("9999999999h", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("", None),
            ("1 s", None),
            ("1d", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
