//! What is worth saying about a Dockerfile that is not wrong.
//!
//! In: the typed file, and the warnings that parser and planner have. Out: warnings. What always holds: what is the same
//! everywhere is said once, with the lines of the other places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::diagnostic::{Diagnostic, Lines, Source, Span};
use crate::dockerfile::ast::{CommandLine, Dockerfile, Instruction, InstructionKind};
use crate::dockerfile::lint;

/// Lines of other places that are named.
const PLACES: usize = 6;

/// Commands that were meant to be JSON arrays and are none: the shell would get them, brackets and all.
pub(super) fn almost_json(dockerfile: &Dockerfile, source: &Source) -> Vec<Diagnostic> {
    dockerfile.stages.iter().flat_map(|stage| &stage.instructions).filter_map(|one| not_json(one, source)).collect()
}

fn not_json(instruction: &Instruction, source: &Source) -> Option<Diagnostic> {
    let (name, command) = match &instruction.kind {
        InstructionKind::Cmd(command) => ("CMD", command),
        InstructionKind::Entrypoint(command) => ("ENTRYPOINT", command),
        InstructionKind::Run(run) => ("RUN", &run.command),
        _ => return None,
    };
    let CommandLine::Shell(text) = command else { return None };
    // `[ "$A" = b ]` is a fine command for a shell; with nothing between bracket and quote there is no such program.
    let begins = text.starts_with("[\"") || text.starts_with("['");
    if !begins || !text.trim_end().ends_with(']') {
        return None;
    }
    let error = serde_json::from_str::<Vec<String>>(text).err()?;
    let written = source.text.get(instruction.span.start..instruction.span.end)?;
    let span = match (written.find(text.as_str()), error.line()) {
        (Some(at), 1) => {
            let start = instruction.span.start + at + error.column().saturating_sub(1);
            let letter = source.text.get(start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            Span::new(start, start + letter)
        }
        _ => instruction.span,
    };
    let why = error.to_string();
    let why = why.split(" at line ").next().unwrap_or_default();
    let message = format!("this {name} looks like a JSON array and is none, so a shell gets it as it is");
    let help = format!("in JSON every word has double quotes, with commas between: {name} [\"program\", \"argument\"]");
    Some(Diagnostic { rule: None, ..Diagnostic::warning(span, "", message) }.label(why).help(help))
}

/// Each warning once: where rule and message are the same, the first place is shown and the lines of the others named.
pub(super) fn compact(warnings: Vec<Diagnostic>, source: &Source) -> Vec<Diagnostic> {
    let mut kept: Vec<(Diagnostic, Vec<usize>)> = Vec::new();
    let mut places = HashMap::new();
    let lines = Lines::of(source);
    for warning in warnings {
        if lint::rule(warning.rule.unwrap_or_default()).is_some() {
            kept.push((warning, Vec::new())); // a line each, in the summary
            continue;
        }
        let line = warning.span.map(|span| lines.at(span.start));
        match places.entry((warning.rule, warning.message.clone())) {
            Entry::Occupied(place) => {
                let at: usize = *place.get();
                kept[at].1.extend(line);
            }
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push((warning, Vec::new()));
            }
        }
    }
    let told = |(warning, mut lines): (Diagnostic, Vec<usize>)| {
        lines.dedup();
        if lines.is_empty() {
            return warning;
        }
        let named: Vec<String> = lines.iter().take(PLACES).map(ToString::to_string).collect();
        let more = match lines.len().saturating_sub(PLACES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let word = if lines.len() == 1 { "line" } else { "lines" };
        warning.help(format!("the same in {word} {}{more}", named.join(", ")))
    };
    kept.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "Dockerfile".into(), text: text.into() }
    }

    #[test]
    fn what_looks_like_json_is_told_where_it_stops_being_json() {
        for (line, expected) in [
            (r#"CMD ["echo" "hello"]"#, Some("\"")),
            (r"CMD ['echo', 'hello']", Some("'")),
            (r#"ENTRYPOINT ["a", b]"#, Some("b")),
            (r#"RUN ["a", "é" é]"#, Some("é")),
            (r#"CMD ["echo", "hello"]"#, None),
            (r#"RUN [ "$A" = b ]"#, None),
            (r#"RUN ["a" ] && echo"#, None),
            ("CMD echo", None),
        ] {
            let source = source(&format!("FROM x\n{line}\n"));
            let found = almost_json(&crate::dockerfile::parse(&source).dockerfile, &source);
            let at = found.first().and_then(|hint| hint.span).map(|span| &source.text[span.start..span.end]);
            assert_eq!(at, expected, "{line}");
        }
    }

    #[test]
    fn the_same_warning_is_told_once() {
        let source = source(&"RUN x\n".repeat(20));
        let warning = |line: usize, message: &str| Diagnostic::warning(Span::new(line * 6, line * 6 + 5), "R", message);
        let mut all: Vec<Diagnostic> = (0..20).map(|line| warning(line, "same")).collect();
        all.insert(3, warning(2, "other"));
        let kept = compact(all, &source);
        assert_eq!(kept.iter().map(|one| one.message.as_str()).collect::<Vec<_>>(), ["same", "other"]);
        assert_eq!(kept[0].help, ["the same in lines 2, 3, 4, 5, 6, 7 and 13 more"]);
        assert_eq!(kept[1].help, Vec::<String>::new());
    }
}
