//! The parser against its own cases in `testdata/dockerfiles`, against hostile and random texts, and ([`corpus`])
//! against data of other projects.

pub mod corpus;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use rbuild::diagnostic::{Severity, Source, Span};
use rbuild::dockerfile::ast::{Escape, InstructionKind, Script};
use rbuild::dockerfile::{Parsed, parse, parse_trigger, print_ast, word};

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

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Collects differences of a whole set, so that one run shows them all.
pub struct Differences {
    set: &'static str,
    found: BTreeMap<String, String>,
    cases: usize,
}

impl Differences {
    pub fn new(set: &'static str) -> Self {
        Self { set, found: BTreeMap::new(), cases: 0 }
    }

    pub fn check(&mut self, case: &str, difference: Option<String>) {
        self.cases += 1;
        if let Some(difference) = difference {
            self.found.entry(case.to_owned()).or_insert(difference);
        }
    }

    pub fn finish(mut self, at_least: usize) {
        for (set, case, why) in corpus::DEVIATIONS.iter().filter(|(set, ..)| *set == self.set) {
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
