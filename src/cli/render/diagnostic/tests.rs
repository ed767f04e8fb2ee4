//! Diagnostics in, text out.

use proptest::prelude::*;

use super::*;

const LOOK: Look = Look { color: false, width: 100 };

fn source(text: &str) -> Source {
    Source { name: "Dockerfile".into(), text: text.into() }
}

#[test]
fn one_line() {
    let source = source("FROM a\nRNU make\nCMD x\n");
    let error = Diagnostic::error(Span::new(7, 10), "unknown instruction: RNU")
        .label("not an instruction")
        .help("did you mean RUN?")
        .help("or else");
    insta::assert_snapshot!(diagnostic(&source, &error, LOOK), @r#"
    error: unknown instruction: RNU
     --> Dockerfile:2:1
      |
    2 | RNU make
      | ^^^ not an instruction
      |
      = help: did you mean RUN?
      = help: or else
    "#);
}

#[test]
fn a_warning_with_its_rule() {
    let source = source("FROM a\nCMD x\n");
    let warning = Diagnostic::warning(Span::new(7, 13), "JSONArgsRecommended", "JSON arguments recommended for CMD");
    insta::assert_snapshot!(diagnostic(&source, &warning, LOOK), @r#"
    warning[JSONArgsRecommended]: JSON arguments recommended for CMD
     --> Dockerfile:2:1
      |
    2 | CMD x
      | ^^^^^
    "#);
}

#[test]
fn several_lines_and_what_the_step_wrote() {
    let source = source("FROM a\nRUN apt-get update && \\\r\n    apt-get install -y nginxx\nCMD x\n");
    let failure = Diagnostic::error(Span::new(7, source.text.len() - 6), "RUN failed with exit status 100");
    let mut tail = Tail::default();
    tail.push(b"Reading package lists...");
    tail.push(b"\x1b[31mE: Unable to locate package nginxx\x1b[0m");
    insta::assert_snapshot!(failed_step(&source, &failure, &tail, LOOK), @r#"
    error: RUN failed with exit status 100
     --> Dockerfile:2:1
      |
    2 | / RUN apt-get update && \
    3 | |     apt-get install -y nginxx
      | |_____________________________^
    What it wrote:
      Reading package lists...
      E: Unable to locate package nginxx
    "#);
    for _ in 0..30 {
        tail.push(b"more");
    }
    let text = failed_step(&source, &failure, &tail, LOOK);
    assert!(text.contains("The last 20 of 32 lines that it wrote:\n  more\n"), "{text}");
    let text = failed_step(&source, &failure, &Tail::default(), LOOK);
    assert!(text.ends_with("It wrote no output.\n"), "{text}");
}

#[test]
fn a_long_instruction_is_shortened() {
    let body: Vec<String> = (0..40).map(|i| format!("echo {i}")).collect();
    let source = source(&format!("FROM a\nRUN <<EOF\n{}\nEOF\n", body.join("\n")));
    let failure = Diagnostic::error(Span::new(7, source.text.len()), "RUN failed with exit status 1");
    insta::assert_snapshot!(diagnostic(&source, &failure, LOOK), @r#"
    error: RUN failed with exit status 1
      --> Dockerfile:2:1
       |
     2 | / RUN <<EOF
     3 | | echo 0
     4 | | echo 1
     5 | | echo 2
    ...  |
    42 | | echo 39
    43 | | EOF
       | |___^
    "#);
}

#[test]
fn the_whole_file() {
    let empty = Diagnostic { span: None, ..Diagnostic::error(Span::default(), "the file has no instructions") };
    insta::assert_snapshot!(diagnostic(&source(""), &empty, LOOK), @r#"
    error: the file has no instructions
    --> Dockerfile
    "#);
}

#[test]
fn several_at_once() {
    let source = source("A\nB\n");
    let list = [Diagnostic::error(Span::new(0, 1), "one"), Diagnostic::error(Span::new(2, 3), "two")];
    insta::assert_snapshot!(diagnostics(&source, &list, LOOK), @r#"
    error: one
     --> Dockerfile:1:1
      |
    1 | A
      | ^

    error: two
     --> Dockerfile:2:1
      |
    2 | B
      | ^
    "#);
}

#[test]
fn causes_are_told_once() {
    let chain = |texts: &[&str]| {
        let mut texts = texts.iter().rev().map(|text| (*text).to_owned());
        let first = anyhow::Error::msg(texts.next().unwrap());
        texts.fold(first, anyhow::Error::context)
    };
    for (texts, expected) in [
        (vec!["no room"], "error: no room\n"),
        (vec!["cannot write x", "no room"], "error: cannot write x\n  caused by: no room\n"),
        (vec!["cannot write x: no room", "no room"], "error: cannot write x: no room\n"),
        (vec!["a", "b", "b", "c\nd"], "error: a\n  caused by: b\n  caused by: c\n    d\n"),
    ] {
        assert_eq!(error(&chain(&texts), LOOK), expected, "{texts:?}");
    }
}

#[test]
fn colour_is_there_when_asked_for() {
    let color = Look { color: true, ..LOOK };
    assert_eq!(message("x", color), "\u{1b}[1;91merror:\u{1b}[0m x\n");
    let error = Diagnostic::error(Span::new(0, 1), "x");
    assert!(diagnostic(&source("A"), &error, color).contains('\u{1b}'));
    assert!(!diagnostic(&source("A\u{1b}[31m"), &error, LOOK).contains('\u{1b}'));
}

proptest! {
    #[test]
    fn no_span_is_too_odd(text in "(\\PC|[\n\r\t\u{0}\u{1b}üあ\u{301}]){0,60}", start in 0_usize..100, end in 0_usize..100, width in 0_usize..200) {
        let error = Diagnostic::error(Span { start, end }, "x").label("y");
        let shown = diagnostic(&source(&text), &error, Look { color: false, width });
        prop_assert!(shown.starts_with("error: x\n"));
    }
}
