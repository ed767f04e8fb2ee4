//! What the checks found, in three forms.
//!
//! In: [`Findings`] and the Dockerfile. Out: text as BuildKit prints it, BuildKit's JSON, or SARIF 2.1.0. What always
//! holds: every warning is in each of them, with the lines of its instruction.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Findings;
use crate::cli::args::VERSION;
use crate::cli::render::base64;
use crate::diagnostic::{Diagnostic, Lines, Severity, Source, Span};
use crate::dockerfile::lint::{RULES, Rule, rule};
use crate::plan::lint::NEED_BASE;

/// So many lines are shown around the ones that are meant.
const AROUND: usize = 4;

/// For people.
pub(super) fn text(findings: &Findings, source: &Source) -> String {
    let mut text = String::new();
    let lines = Lines::of(source);
    for warning in &findings.warnings {
        text.push_str(&one(warning, &source.name, &lines));
    }
    if findings.warnings.is_empty() && findings.errors.is_empty() {
        text.push_str("Check complete, no warnings found.\n");
    }
    text
}

fn one(warning: &Diagnostic, name: &str, lines: &Lines<'_>) -> String {
    let url = warning.rule.and_then(rule).and_then(Rule::url);
    let mut text = String::from("\nWARNING:");
    // Writing to a String does not fail.
    if let Some(rule) = warning.rule {
        let _ = write!(text, " {rule}");
    }
    if let Some(url) = url {
        let _ = write!(text, " - {url}");
    }
    let _ = writeln!(text, "\n{}", printable(&warning.message));
    for help in &warning.help {
        let _ = writeln!(text, "{}", printable(help));
    }
    if let Some(span) = warning.span {
        text.push_str(&excerpt(span, name, lines));
    }
    text
}

/// The lines of a place, marked, with some around them.
fn excerpt(span: Span, name: &str, lines: &Lines<'_>) -> String {
    let (first, last) = lines.touched(span);
    let rule = "-".repeat(20);
    let (mut from, mut to) = (first, last);
    while to - from < last - first + AROUND && (from > 1 || to < lines.count()) {
        from = from.saturating_sub(1).max(1);
        to = (to + 1).min(lines.count());
    }
    let mut text = format!("{name}:{first}\n{rule}\n");
    for number in from..=to {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        // Writing to a String does not fail.
        let _ = writeln!(text, " {number:>3} | {mark} {}", printable(lines.text(number)));
    }
    text.push_str(&rule);
    text.push('\n');
    text
}

/// A text that cannot move a terminal's cursor.
pub(in crate::cli) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\t' { '\u{fffd}' } else { letter }).collect()
}

/// What was not asked, and why.
pub(super) fn left_out(findings: &Findings) -> String {
    let images = findings.absent.join(", ");
    let verb = if findings.absent.len() == 1 { "is" } else { "are" };
    format!("left out where {images} would be needed, which {verb} not in the local store: {}", NEED_BASE.join(", "))
}

/// As BuildKit's, with what was left out beside it.
pub(super) fn json(findings: &Findings, source: &Source) -> String {
    let lines = Lines::of(source);
    let warnings = findings.warnings.iter().map(|warning| {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("ruleName", json!(warning.rule.unwrap_or_default()));
        if let Some(rule) = warning.rule.and_then(rule) {
            put("description", json!(rule.description));
            if let Some(url) = rule.url() {
                put("url", json!(url));
            }
        }
        put("detail", json!(warning.message));
        put("location", location(warning, &lines));
        Value::Object(object)
    });
    let mut report = json!({
        "warnings": warnings.collect::<Vec<_>>(),
        "sources": [{"filename": source.name, "language": "Dockerfile", "data": base64(source.text.as_bytes())}],
    });
    if let Some(error) = findings.errors.first() {
        report["buildError"] = json!({"message": error.message, "location": location(error, &lines)});
    }
    if !findings.absent.is_empty() {
        report["omitted"] = json!({"rules": NEED_BASE, "images": findings.absent});
    }
    format!("{report:#}\n")
}

fn location(diagnostic: &Diagnostic, lines: &Lines<'_>) -> Value {
    match diagnostic.span {
        Some(span) => of_lines(lines.touched(span)),
        // BuildKit's mark of what stands in no file.
        None => json!({"sourceIndex": -1}),
    }
}

/// First and last line as BuildKit writes a place.
pub(in crate::cli) fn of_lines((first, last): (usize, usize)) -> Value {
    json!({"ranges": [{"start": {"line": first}, "end": {"line": last}}]})
}

/// For code scanning: SARIF 2.1.0.
pub(super) fn sarif(findings: &Findings, source: &Source) -> String {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| {
            let mut object = json!({
                "id": rule.name,
                "name": rule.name,
                "shortDescription": {"text": rule.description},
                "defaultConfiguration": {"level": "warning", "enabled": !rule.experimental},
            });
            if let Some(url) = rule.url() {
                object["helpUri"] = json!(url);
            }
            object
        })
        .collect();
    let all = findings.warnings.iter().chain(&findings.errors);
    let lines = Lines::of(source);
    let results: Vec<Value> = all.map(|diagnostic| result(diagnostic, source, &lines)).collect();
    let mut invocation = json!({"executionSuccessful": true});
    if !findings.absent.is_empty() {
        let text = left_out(findings);
        invocation["toolExecutionNotifications"] = json!([{"level": "note", "message": {"text": text}}]);
    }
    let version = VERSION.split(' ').next_back().unwrap_or_default();
    let report = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "rbuild", "semanticVersion": version, "rules": rules}},
            "invocations": [invocation],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    format!("{report:#}\n")
}

fn result(diagnostic: &Diagnostic, source: &Source, lines: &Lines<'_>) -> Value {
    let said = std::iter::once(&diagnostic.message).chain(&diagnostic.help);
    let text = said.map(String::as_str).collect::<Vec<_>>().join("\n");
    let level = if diagnostic.severity == Severity::Error { "error" } else { "warning" };
    let mut physical = json!({"artifactLocation": {"uri": uri(&source.name)}});
    if let Some(span) = diagnostic.span {
        let (first, last) = lines.touched(span);
        physical["region"] = json!({
            "startLine": first,
            "startColumn": column(span.start, source),
            "endLine": last,
            "endColumn": column(span.end.max(span.start), source),
        });
    }
    let mut object = json!({"level": level, "message": {"text": text}, "locations": [{"physicalLocation": physical}]});
    if let Some(name) = diagnostic.rule {
        object["ruleId"] = json!(name);
        if let Some(index) = RULES.iter().position(|rule| rule.name == name) {
            object["ruleIndex"] = json!(index);
        }
    }
    object
}

/// Letters before a place in its line, from 1.
fn column(offset: usize, source: &Source) -> usize {
    let text = &source.text.as_bytes()[..offset.min(source.text.len())];
    // From behind, since a line is short and a file may be long.
    let line = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).chars().count() + 1
}

/// A path as a relative URI reference.
fn uri(path: &str) -> String {
    let mut uri = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => uri.push(char::from(byte)),
            // Writing to a String does not fail.
            other => drop(write!(uri, "%{other:02X}")),
        }
    }
    uri
}
