//! The parser against its own cases in `testdata/dockerfiles` and against data of other projects.
//!
//! The data of others is read from `$RBUILD_CORPUS`, or from `shared/corpus/open` beside the project. Where it is not
//! there, its tests say so by name, and fail if `RBUILD_TEST_REQUIRE` asks for `corpus`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use rbuild::diagnostic::{Severity, Source, Span};
use rbuild::dockerfile::ast::{Escape, InstructionKind, Script};
use rbuild::dockerfile::heredoc::Opener;
use rbuild::dockerfile::{Parsed, parse, parse_trigger, print_ast, syntax, word};
use serde_json::{Value, json};

/// Where rbuild knowingly differs from the data: `(set, case, why)`. A case that is here and does not differ is an
/// error as well.
const DEVIATIONS: &[(&str, &str, &str)] = &[];

fn source(text: &str) -> Source {
    Source { name: "Dockerfile".to_owned(), text: text.to_owned() }
}

/// Parses, and checks what holds for every input.
fn parsed(text: &str) -> Parsed {
    let parsed = parse(&source(text));
    for diagnostic in &parsed.diagnostics {
        if let Some(span) = diagnostic.span {
            assert!(text.get(span.start..span.end).is_some(), "{diagnostic:?} is no range of {text:?}");
        }
        assert!(!diagnostic.message.is_empty() && !diagnostic.message.contains('\n'), "{diagnostic:?}");
    }
    for node in &parsed.nodes {
        for span in [node.span, node.name.span].into_iter().chain(node.args.iter().map(|word| word.span)) {
            assert!(text.get(span.start..span.end).is_some(), "{node:?} has spans out of {text:?}");
        }
    }
    parsed
}

fn errors(parsed: &Parsed) -> Vec<&str> {
    let errors = parsed.diagnostics.iter().filter(|diagnostic| diagnostic.is_error());
    errors.map(|diagnostic| diagnostic.message.as_str()).collect()
}

/// The folder with data of other projects, or `None` after saying that `test` was skipped.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn corpus(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RBUILD_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/open"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "corpus"), "{test}: no corpus in {}", folder.display());
    eprintln!("skipped: {test}: corpus not found in {}", folder.display());
    None
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Collects differences of a whole set, so that one run shows them all.
struct Differences {
    set: &'static str,
    found: BTreeMap<String, String>,
    cases: usize,
}

impl Differences {
    fn new(set: &'static str) -> Self {
        Self { set, found: BTreeMap::new(), cases: 0 }
    }

    fn check(&mut self, case: &str, difference: Option<String>) {
        self.cases += 1;
        if let Some(difference) = difference {
            self.found.entry(case.to_owned()).or_insert(difference);
        }
    }

    fn finish(mut self, at_least: usize) {
        for (set, case, why) in DEVIATIONS.iter().filter(|(set, ..)| *set == self.set) {
            assert!(self.found.remove(*case).is_some(), "{set} {case} no longer differs: it was listed because {why}");
        }
        assert!(self.cases >= at_least, "{}: only {} cases were found", self.set, self.cases);
        let list: String = self.found.iter().fold(String::new(), |mut list, (case, difference)| {
            writeln!(list, "{case}: {difference}").expect("writing to a string");
            list
        });
        assert!(self.found.is_empty(), "{}: {} of {} differ\n{list}", self.set, self.found.len(), self.cases);
    }
}

/// One node as the data of BuildKit has it, reduced to what the command line promises.
fn promised(node: &Value) -> Value {
    let list = |value: &Value| if value.is_null() { json!([]) } else { value.clone() };
    let heredocs: Vec<Value> = node["heredocs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|heredoc| {
            json!([heredoc["name"], heredoc["content"], heredoc["expand"] == true, heredoc["chomp"] == true])
        })
        .collect();
    let mut promised = json!({
        "instruction": node["instruction"].as_str().unwrap_or_default().to_lowercase(),
        "args": list(&node["args"]),
        "flags": list(&node["flags"]),
        "json": node["json"] == true,
        "heredocs": heredocs,
        "lines": [node["start_line"], node["end_line"]],
    });
    if node["sub"].is_object() {
        let mut sub = self::promised(&node["sub"]);
        sub["lines"] = Value::Null; // BuildKit does not fill them in
        promised["sub"] = sub;
    }
    promised
}

fn nodes_differ(parsed: &Parsed, expected: &Value) -> Option<String> {
    let got = print_ast(&parsed.nodes);
    let (got, expected) = (got.as_array()?, expected.as_array()?);
    if got.len() != expected.len() {
        return Some(format!("{} instructions, expected {}", got.len(), expected.len()));
    }
    got.iter()
        .zip(expected)
        .map(|(got, expected)| (promised(got), promised(expected)))
        .find_map(|(got, expected)| (got != expected).then(|| format!("\n   got {got}\n  want {expected}")))
}

fn verdict_differs(parsed: &Parsed, expect: &str) -> Option<String> {
    match (expect, parsed.has_errors()) {
        ("accept", true) => Some(format!("rejected: {:?}", errors(parsed))),
        ("reject", false) => Some("accepted".to_owned()),
        _ => None,
    }
}

/// Every folder of `testdata/dockerfiles` holds a Dockerfile and what is read from it. `RBUILD_BLESS=1` writes what is
/// read now; the difference is for review.
#[test]
fn own_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/dockerfiles");
    let mut cases: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("testdata/dockerfiles")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    let mut differences = Differences::new("own");
    for case in cases {
        let text = read(&case.join("Dockerfile"));
        let got = report(&text, &parsed(&text));
        if std::env::var_os("RBUILD_BLESS").is_some() {
            fs::write(case.join("expect"), &got).expect("writing what is expected");
        }
        let expected = read(&case.join("expect"));
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        differences.check(&name, first_difference(&got, &expected));
    }
    differences.finish(20);
}

fn first_difference(got: &str, expected: &str) -> Option<String> {
    if got == expected {
        return None;
    }
    let line = got.lines().zip(expected.lines()).take_while(|(got, expected)| got == expected).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    Some(format!("line {} of expect\n   got {}\n  want {}", line + 1, at(got), at(expected)))
}

/// All that parsing says about a text, one thing a line, with places as `line:column`.
fn report(text: &str, parsed: &Parsed) -> String {
    let mut lines = Vec::new();
    let at = |span: Span| {
        let place = |offset: usize| {
            let before = &text[..offset];
            let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
            format!("{}:{column}", before.matches('\n').count() + 1)
        };
        format!("{}-{}", place(span.start), place(span.end))
    };
    lines.push(format!("escape {:?}", parsed.dockerfile.escape));
    for (name, word) in [("syntax", &parsed.dockerfile.syntax), ("check", &parsed.dockerfile.check)] {
        lines.extend(word.iter().map(|word| format!("{name} {:?} at {}", word.text, at(word.span))));
    }
    lines.push(String::new());
    for node in print_ast(&parsed.nodes).as_array().expect("a list") {
        lines.push(format!("node {node}"));
    }
    lines.push(String::new());
    for instruction in &parsed.dockerfile.global_args {
        lines.push(format!("{} global {}", at(instruction.span), compact(&instruction.kind, &at)));
    }
    for stage in &parsed.dockerfile.stages {
        let (image, platform, name) = (&stage.image, &stage.platform, &stage.name);
        let what = compact(&(image, platform, name), &at);
        lines.push(format!("{} lines {:?} stage {what}", at(stage.span), stage.lines));
        for instruction in &stage.instructions {
            let what = compact(&instruction.kind, &at);
            lines.push(format!("{} lines {:?} {what}", at(instruction.span), instruction.lines));
        }
    }
    lines.push(String::new());
    for diagnostic in &parsed.diagnostics {
        let severity = match (diagnostic.severity, diagnostic.rule) {
            (Severity::Error, _) => "error".to_owned(),
            (Severity::Warning, rule) => format!("warning {}", rule.unwrap_or("-")),
        };
        let place = diagnostic.span.map_or("-".to_owned(), at);
        lines.push(format!("{severity} {place} {}", diagnostic.message));
        lines.extend(diagnostic.label.iter().map(|label| format!("    ^ {label}")));
        lines.extend(diagnostic.help.iter().map(|help| format!("    = {help}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The `Debug` form of a typed value, spans as places, and without what is not there.
fn compact(value: &dyn std::fmt::Debug, at: &dyn Fn(Span) -> String) -> String {
    let debug = format!("{value:?}");
    let mut text = String::new();
    let mut rest = debug.as_str();
    while let Some((before, after)) = rest.split_once("Span { start: ") {
        text.push_str(before);
        let (start, after) = after.split_once(", end: ").expect("an end");
        let (end, after) = after.split_once(" }").expect("a brace");
        text.push_str(&at(Span::new(start.parse().expect("a number"), end.parse().expect("a number"))));
        rest = after;
    }
    text.push_str(rest);
    text.replace("Word { text: ", "{").replace(", span: ", " at ")
}

#[test]
fn triggers() {
    let right = parse_trigger("RUN <<EOF cat\nhello\nEOF", Escape::Backslash).expect("a trigger");
    match right.kind {
        InstructionKind::Run(run) => {
            assert_eq!(run.script(), Script::Shell("<<EOF cat\nhello\nEOF".to_owned()));
        }
        other => panic!("{other:?}"),
    }
    let copy = parse_trigger("COPY --chown=1 a` b", Escape::Backtick).expect("a trigger");
    assert!(matches!(copy.kind, InstructionKind::Copy(_)));
    for (text, message) in [
        ("FROM a", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD RUN a", "ONBUILD isn't allowed as an ONBUILD trigger"),
        ("MAINTAINER a", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("NONSENSE a", "unknown instruction: NONSENSE"),
        ("RUN a\nRUN b", "an ONBUILD trigger is one instruction, this one holds 2"),
        ("", "an ONBUILD trigger is one instruction, this one holds 0"),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("RUN <<EOF\nx", "unterminated heredoc"),
        ("ENV a", "ENV must have two arguments"),
    ] {
        let errors = parse_trigger(text, Escape::Backslash).expect_err(text);
        assert_eq!(errors.iter().map(|error| error.message.as_str()).collect::<Vec<_>>(), [message], "{text}");
    }
}

/// What a RUN executes.
#[test]
fn scripts() {
    let shell = |text: &str| Script::Shell(text.to_owned());
    for (run, expected) in [
        ("RUN echo  a \\\n  b", shell("echo  a   b")),
        ("RUN [\"a\", \"b c\"]", Script::Exec(vec!["a".to_owned(), "b c".to_owned()])),
        ("RUN [\"a\"] b", shell("[\"a\"] b")),
        ("RUN", shell("")),
        ("RUN <<EOF\na\n$b\nEOF", shell("a\n$b\n")),
        ("RUN <<-EOF\n\ta\n\t\tb\n\tEOF", shell("a\nb\n")),
        ("RUN << EOF\na\nEOF", shell("a\n")),
        (
            "RUN <<EOF\n#!/bin/awk -f\nx\nEOF",
            Script::File { name: "EOF".to_owned(), body: "#!/bin/awk -f\nx\n".to_owned() },
        ),
        ("RUN <<-EOF\n\t#!/bin/sh\n\tEOF", Script::File { name: "EOF".to_owned(), body: "#!/bin/sh\n".to_owned() }),
        ("RUN cat <<A <<-B | tr a b\n1\nA\n\t2\n\tB", shell("cat <<A <<-B | tr a b\n1\nA\n\t2\nB")),
        ("RUN <<EOF sh\n#!x\nEOF", shell("<<EOF sh\n#!x\nEOF")),
    ] {
        let parsed = parsed(&format!("FROM a\n{run}\n"));
        assert_eq!(errors(&parsed), [] as [&str; 0], "{run}");
        let Some(InstructionKind::Run(run_kind)) =
            parsed.dockerfile.stages[0].instructions.first().map(|run| &run.kind)
        else {
            panic!("no RUN in {run}");
        };
        assert_eq!(run_kind.script(), expected, "{run}");
    }
}

/// Inputs made to take long or to go deep. A parser that is not linear, or that recurses, does not come back from them.
#[test]
fn hostile_files_end() {
    let long = |piece: &str| piece.repeat((1 << 16) / piece.len());
    let lines = |line: &str| line.repeat((1 << 14) / line.len());
    for text in [
        long("ONBUILD "),
        long("ONBUILD\\\n"),
        format!("FROM a\nRUN {}", long("[")),
        format!("FROM a\nRUN {}", long("[\\\n")),
        format!("FROM a\nRUN {}", long("{\"a\":\\\n")),
        format!("FROM a\nRUN {}", long("${\\\n")),
        format!("FROM a\nRUN <<A {}", long("${x:-\\\n")),
        format!("FROM a\nENV a={}", long("\"'\\\n")),
        format!("FROM a\nENV {}", long("a=b\\\n ")),
        format!("FROM a\nRUN {}", long("--mount=type=bind \\\n")),
        format!("FROM a\nRUN --mount={}", long("\"\\\n")),
        format!("FROM a\nRUN --mount={}", long("a,\\\n")),
        format!("FROM a\n{}", long("RUN <<A\n")),
        format!("FROM a\nRUN {}", long("<<A \\\n")),
        format!("FROM a\nRUN {}", long("\\\n")),
        format!("FROM a\nRUN {}", long("\\\n\n\n#\n")),
        format!("FROM a\nRUN {}", long("\r")),
        format!("FROM a\nRUN {}y", &long("\r")[..65_000]),
        format!("FROM a\nRUN {}", &long("\\ ")[..65_000]),
        format!("FROM a\nRUN {}", &long(" ")[..65_000]),
        format!("# escape={}x", &long(" ")[..65_000]),
        format!("FROM a\nRUN {}", long("x")),
        lines("\n"),
        lines("#\n"),
        lines("# syntax=a\n"),
        lines("\u{feff}\n"),
        lines("--\n"),
        lines("\u{85}\u{2028}\n"),
        lines("FROM\n"),
        lines("FROM a\n"),
        lines("a=\n"),
        lines("'\n"),
    ] {
        let parsed = parsed(&text);
        assert!(!parsed.nodes.is_empty() || parsed.has_errors());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text: no panic, spans within it, and the same result again.
    #[test]
    fn any_text_is_read(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)) {
        let text = pieces.concat();
        let first = parsed(&text);
        let second = parsed(&text);
        prop_assert_eq!(&first.nodes, &second.nodes);
        prop_assert_eq!(&first.diagnostics, &second.diagnostics);
        // A file that is accepted has all of its instructions in typed form.
        if !first.has_errors() {
            let stages = first.dockerfile.stages.iter();
            let typed = first.dockerfile.global_args.len() + stages.map(|stage| 1 + stage.instructions.len()).sum::<usize>();
            prop_assert_eq!(first.nodes.len(), typed);
        }
    }

    /// CRLF makes no difference outside here-documents.
    #[test]
    fn line_ends_do_not_matter(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)) {
        let text = pieces.concat().replace('\r', "");
        let nodes = |text: &str| {
            let nodes = parsed(text).nodes.into_iter();
            nodes.map(|node| (node.text, node.args.into_iter().map(|word| word.text).collect::<Vec<_>>())).collect::<Vec<_>>()
        };
        prop_assert_eq!(nodes(&text), nodes(&text.replace('\n', "\r\n")));
    }

    /// Words never panic either, and quoting a plain word changes nothing.
    #[test]
    fn any_word_is_expanded(pieces in proptest::collection::vec(proptest::sample::select(WORD_PIECES), 0..20)) {
        let text = pieces.concat();
        let lookup = |name: &str| (name != "u").then(|| "v*/x".to_owned());
        for escape in [Escape::Backslash, Escape::Backtick] {
            let whole = word::expand(&text, escape, &lookup);
            let words = word::expand_words(&text, escape, &lookup);
            prop_assert_eq!(whole.is_ok(), words.is_ok());
            drop(word::expand_heredoc(&text, escape, &lookup));
        }
        let plain: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let quoted = word::expand(&format!("'{plain}'"), Escape::Backslash, &lookup);
        prop_assert_eq!(quoted.map(|expanded| expanded.text), Ok(plain));
    }
}

const PIECES: &[&str] = &[
    "FROM a\n",
    "FROM a AS b\n",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "LABEL ",
    "ARG ",
    "ONBUILD ",
    "HEALTHCHECK ",
    "CMD ",
    "SHELL ",
    "VOLUME ",
    "EXPOSE ",
    "# escape=`\n",
    "# syntax=x\n",
    "#",
    "\n",
    "\n",
    "\n",
    "\r\n",
    "\r",
    "\\",
    "\\\n",
    "`\n",
    "\\ \t\n",
    " ",
    "\t",
    "a",
    "b=c",
    "=",
    "\"",
    "'",
    "$",
    "${",
    "}",
    "${x:-",
    "<<E",
    "<<-E ",
    "<<\"E\"",
    "E\n",
    "\tE\n",
    "[",
    "]",
    "[\"a\"]",
    ",",
    "--",
    "--from=x ",
    "--mount=type=cache,target=/x ",
    "--link ",
    "é",
    "\u{feff}",
    "\u{a0}",
    "\u{2028}",
    "\0",
    "1s",
    "NONE",
];

const WORD_PIECES: &[&str] = &[
    "$", "{", "}", "${", "${x", "${u", ":", "-", "+", "?", "#", "%", "/", "*", "\\", "`", "'", "\"", "x", "u", "1",
    " ", "<", "é", "\n",
];

/// The limit counts the bytes of a line without its line feed, in here-documents too.
#[test]
fn long_lines_are_refused() {
    for (length, refused) in [(65_535, false), (65_536, true)] {
        for (before, after) in [("", "\n"), ("", ""), ("", "\nRUN b\n"), ("RUN <<E\n", "\nE\n"), ("# ", "\nRUN b\n")] {
            let begin = before.rsplit('\n').next().unwrap_or_default();
            let begin = if before.ends_with('\n') { begin.to_owned() } else { format!("{begin}RUN ") };
            let line = format!("{begin}{}", "x".repeat(length - begin.len()));
            let head = before.rsplit_once('\n').map_or(String::new(), |(head, _)| format!("{head}\n"));
            let text = format!("FROM a\n{head}{line}{after}");
            let expected: &[&str] =
                if refused { &["dockerfile line greater than max allowed size of 65535"] } else { &[] };
            assert_eq!(errors(&parsed(&text)), expected, "{length} {before:?} {after:?}");
        }
    }
}

#[test]
fn corpus_parser_testfiles() {
    let Some(corpus) = corpus("corpus_parser_testfiles") else { return };
    let golden = read_json(&corpus.join("parser/ast_golden.json"));
    let mut differences = Differences::new("testfiles");
    for (name, case) in golden["files"].as_object().expect("an object of files") {
        let parsed = parsed(&read(&corpus.join("parser").join(name)));
        if !case["parse_error"].is_null() {
            differences.check(name, verdict_differs(&parsed, "reject"));
            continue;
        }
        differences.check(name, nodes_differ(&parsed, &case["nodes"]));
        let expect = if case["instructions_error"].is_null() { "accept" } else { "reject" };
        differences.check(name, verdict_differs(&parsed, expect));
        if name.starts_with("testfiles/") {
            let result = read(&corpus.join("parser").join(name).with_file_name("result"));
            let dump = dump(&print_ast(&parsed.nodes));
            differences.check(name, (dump.trim() != result.trim()).then(|| format!("\n{dump}\nexpected\n{result}")));
        }
    }
    differences.finish(60);
}

/// The AST in the notation of BuildKit's `result` files.
fn dump(nodes: &Value) -> String {
    let lines = nodes.as_array().into_iter().flatten().map(|node| format!("({})\n", dump_one(node)));
    lines.collect()
}

fn dump_one(node: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words =
        |value: &Value| value.as_array().into_iter().flatten().map(text).map(|word| quote(&word)).collect::<Vec<_>>();
    let flags = words(&node["flags"]);
    let mut parts = vec![text(&node["instruction"]).to_lowercase()];
    parts.extend((!flags.is_empty()).then(|| format!("[{}]", flags.join(" "))));
    parts.extend(node["sub"].is_object().then(|| format!("({})", dump_one(&node["sub"]))));
    parts.extend(words(&node["args"]));
    parts.join(" ")
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\t' => quoted.push_str("\\t"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\0' => quoted.push_str("\\x00"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[test]
fn corpus_parser_tables() {
    let Some(corpus) = corpus("corpus_parser_tables") else { return };
    let table = |name: &str| read_json(&corpus.join("parser").join(name));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut differences = Differences::new("tables");

    let arrays = table("json_arrays.json");
    for array in arrays["invalid"].as_array().expect("a list") {
        let parsed = parsed(&format!("FROM a\nRUN {}", text(array)));
        differences.check(&text(array), verdict_differs(&parsed, "reject"));
    }
    for case in arrays["valid"].as_array().expect("a list") {
        let parsed = parsed(&format!("FROM a\nRUN {}", text(&case[0])));
        let node = &print_ast(&parsed.nodes)[1];
        let right = node["json"] == true && node["args"] == case[1] && !parsed.has_errors();
        differences.check(&text(&case[0]), (!right).then(|| node.to_string()));
    }

    let words = table("heredoc_words.json");
    for word in words["valid_name_EOF"].as_array().expect("a list") {
        let got = Opener::of_word(&text(word));
        let right = matches!(&got, Ok(Some(opener)) if opener.name == "EOF");
        differences.check(&text(word), (!right).then(|| format!("{got:?}")));
    }
    for word in words["invalid"].as_array().expect("a list") {
        let got = Opener::of_word(&text(word));
        differences.check(&text(word), got.is_ok().then(|| format!("{got:?}")));
    }
    for word in words["not_heredoc"].as_array().expect("a list") {
        let got = Opener::of_word(&text(word));
        differences.check(&text(word), (got != Ok(None)).then(|| format!("{got:?}")));
    }
    for case in words["names_from_line"].as_array().expect("a list") {
        let got = Opener::of_line(&text(&case[0]))
            .map(|openers| Value::Array(openers.into_iter().map(|opener| Value::String(opener.name)).collect()));
        differences.check(&text(&case[0]), (got.as_ref() != Ok(&case[1])).then(|| format!("{got:?}")));
    }

    for case in table("syntax_directive.json").as_array().expect("a list") {
        let file = text(&case["text"]);
        let got = syntax(&file);
        let reference =
            got.as_ref().and_then(|word| word.text.split(' ').next()).map_or(Value::Null, |name| json!(name));
        differences.check(&file, (reference != case["ref"]).then(|| format!("{got:?}")));
        if let (Some(whole), Some(got)) = (case["cmdline"].as_str(), &got) {
            differences.check(&file, (got.text != whole).then(|| format!("{got:?}")));
        }
        if let (Some(line), Some(got)) = (case["line"].as_u64(), &got) {
            let at = source(&file).line(got.span.start) as u64;
            differences.check(&file, (at != line).then(|| format!("line {at}")));
        }
    }

    for case in table("instruction_errors.json").as_array().expect("a list") {
        let parsed = parsed(&text(&case["text"]));
        let wanted = text(&case["error_contains"]);
        let right = errors(&parsed).iter().any(|error| error.contains(&wanted));
        differences.check(&text(&case["text"]), (!right).then(|| format!("{:?}", errors(&parsed))));
    }
    differences.finish(50);
}

#[test]
fn corpus_shell() {
    let Some(corpus) = corpus("corpus_shell") else { return };
    let table = |name: &str| read_json(&corpus.join("shell").join(name));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut differences = Differences::new("shell");

    let unix = table("env_var_unix.json");
    for case in unix["cases"].as_array().expect("a list") {
        let lookup = |name: &str| unix["env"][name].as_str().map(str::to_owned);
        let got = word::expand(&text(&case["input"]), Escape::Backslash, &lookup);
        let right = match &got {
            Ok(got) => case["error"] == false && case["expected"] == got.text.as_str(),
            Err(_) => case["error"] == true,
        };
        differences.check(&text(&case["input"]), (!right).then(|| format!("{got:?}, expected {}", case["expected"])));
    }

    for case in table("words.json").as_array().expect("a list") {
        let lookup = |name: &str| {
            let pairs = case["env"].as_array()?.iter().filter_map(|pair| pair.as_str()?.split_once('='));
            pairs.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned()).next_back()
        };
        let got = word::expand_words(&text(&case["input"]), Escape::Backslash, &lookup);
        let right = match &got {
            Ok(got) => case["error"] == false && case["expected"] == json!(got),
            Err(_) => case["error"] == true,
        };
        differences.check(&text(&case["input"]), (!right).then(|| format!("{got:?}, expected {}", case["expected"])));
    }

    for case in table("process_word.json").as_array().expect("a list") {
        let matched = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            let value = case["env"][name].as_str().map(str::to_owned);
            if value.is_some() {
                matched.borrow_mut().insert(name.to_owned());
            }
            value
        };
        let got = word::expand(&text(&case["input"]), Escape::Backslash, &lookup);
        let right = match &got {
            Ok(got) => {
                let unset: BTreeSet<_> = got.unset.iter().cloned().collect();
                case["error"] == false
                    && case["expected"] == got.text.as_str()
                    && case["unmatched"] == json!(unset)
                    && case["matched"] == json!(*matched.borrow())
            }
            Err(_) => case["error"] == true,
        };
        differences.check(&text(&case["input"]), (!right).then(|| format!("{got:?}, expected {case}")));
    }
    differences.finish(150);
}

#[test]
fn corpus_snippets() {
    let Some(corpus) = corpus("corpus_snippets") else { return };
    let mut differences = Differences::new("snippets");
    for case in read_json(&corpus.join("snippets/buildkit_snippets.json")).as_array().expect("a list") {
        let buildkit = &case["buildkit"];
        let id = format!("{} {}", case["from"], case["id"]);
        let parsed = parsed(case["dockerfile"].as_str().expect("a text"));
        let expect = match () {
            () if !buildkit["parse_error"].is_null() || !buildkit["instructions_error"].is_null() => "reject",
            () if !buildkit["convert_error"].is_null() => "either",
            () => "accept",
        };
        differences.check(&id, verdict_differs(&parsed, expect));
        if buildkit["parse_error"].is_null() {
            differences.check(&id, nodes_differ(&parsed, &buildkit["nodes"]));
        }
    }
    differences.finish(200);
}

#[test]
fn corpus_real_files() {
    let Some(corpus) = corpus("corpus_real_files") else { return };
    let mut differences = Differences::new("real");
    for case in read_json(&corpus.join("real_expect.json"))["files"].as_array().expect("a list") {
        let name = case["file"].as_str().expect("a name");
        let parsed = parsed(&read(&corpus.join("real").join(name)));
        differences.check(name, verdict_differs(&parsed, case["expect"].as_str().expect("a verdict")));
    }
    for line in read(&corpus.join("real_ast.jsonl")).lines() {
        let case: Value = serde_json::from_str(line).expect("a line of JSON");
        let name = case["file"].as_str().expect("a name");
        let nodes = case["nodes"].as_array().expect("a list").iter().map(|node| {
            let heredocs = node[6].as_array().into_iter().flatten().map(
                |heredoc| json!({"name": heredoc[0], "content": heredoc[1], "expand": heredoc[2], "chomp": heredoc[3]}),
            );
            json!({
                "instruction": node[0], "args": node[1], "flags": node[2], "start_line": node[3], "end_line": node[4],
                "json": node[5] == 1 || node[5] == true, "heredocs": heredocs.collect::<Vec<_>>(),
            })
        });
        let expected = Value::Array(nodes.collect());
        let mut parsed = parsed(&read(&corpus.join("real").join(name)));
        parsed.nodes.iter_mut().for_each(|node| node.sub = None); // this table has no triggers
        differences.check(name, nodes_differ(&parsed, &expected));
    }
    differences.finish(1_500);
}
