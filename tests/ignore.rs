//! `.dockerignore`: own cases, and those of moby/patternmatcher where the corpus is there.

use std::path::PathBuf;
use std::{env, fs};

use rbuild::context::ignore::{Patterns, lines};
use serde_json::Value;

/// A file of the corpus; `None` (and a line that says so) where it is not there and not demanded.
fn corpus(file: &str) -> Option<Value> {
    let root = env::var_os("RBUILD_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/open"), PathBuf::from);
    let path = root.join("dockerignore").join(file);
    match fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).expect("the corpus is JSON")),
        Err(error) => {
            let required =
                env::var("RBUILD_TEST_REQUIRE").is_ok_and(|list| list.split(',').any(|word| word == "corpus"));
            assert!(!required, "{}: {error}; RBUILD_TEST_REQUIRE demands the corpus", path.display());
            eprintln!("skipped: dockerignore corpus: {}: {error}", path.display());
            None
        }
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

#[test]
fn patterns_match_as_in_docker() {
    let Some(cases) = corpus("patternmatcher.json") else { return };
    let cases = cases.as_array().expect("a list of cases");
    assert!(cases.len() > 100, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let refused = case["bad_pattern"] == true || case["error"] == true;
        let expected = if refused { None } else { case["match"].as_bool() };
        let path = case["path"].as_str().expect("a path");
        let found =
            Patterns::from_list(&texts(&case["patterns"])).ok().map(|patterns| patterns.matches(path.as_bytes()));
        if found != expected {
            wrong.push(format!("{case}: found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn ignore_files_are_read_as_in_docker() {
    let Some(cases) = corpus("ignorefile.json") else { return };
    for case in cases.as_array().expect("a list of cases") {
        let content = case["content"].as_str().expect("a text");
        let found: Vec<String> = lines(content).into_iter().map(|(_, pattern)| pattern).collect();
        assert_eq!(found, texts(&case["patterns"]), "{content:?}");
    }
}

#[test]
fn own_cases() {
    let text = include_str!("../testdata/ignore/cases.txt");
    let mut cases = 0;
    for case in text.split("\n== ").skip(1) {
        let (name, body) = case.split_once('\n').expect("a name and a body");
        let (file, paths) = body.split_once("\n--\n").expect("an ignore file and paths");
        let patterns = Patterns::parse(".dockerignore", file).unwrap_or_else(|error| panic!("{name}: {error}"));
        for line in paths.lines().filter(|line| !line.is_empty()) {
            let (expected, path) = match line.split_at_checked(2) {
                Some(("- ", path)) => (true, path),
                Some(("+ ", path)) => (false, path),
                _ => panic!("{name}: {line:?} begins with neither `- ` nor `+ `"),
            };
            assert_eq!(patterns.matches(path.as_bytes()), expected, "{name}: {path}");
            cases += 1;
        }
    }
    assert!(cases > 80, "only {cases} paths");
}
