//! The parser against data of other projects, which is read from `$RBUILD_CORPUS` or from `shared/corpus/open` beside
//! the project. Where it is not there, these tests say so by name, and fail if `RBUILD_TEST_REQUIRE` asks for `corpus`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rbuild::dockerfile::ast::Escape;
use rbuild::dockerfile::heredoc::Opener;
use rbuild::dockerfile::{Parsed, print_ast, syntax, word};
use serde_json::{Value, json};

use super::{Differences, errors, parsed, read, source};

/// Where rbuild knowingly differs from the data: `(set, case, why)`. A case that is here and does not differ is an
/// error as well.
pub(super) const DEVIATIONS: &[(&str, &str, &str)] = &[];

/// The folder with data of other projects, or `None` after saying that `test` was skipped.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn corpus(test: &str) -> Option<PathBuf> {
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

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
