//! The build checks against their own cases in `testdata/lint`, and against what BuildKit says of the files of others.
//!
//! A file of cases is called like the rule that it is about, and holds `=== title`, then sections: `--- dockerfile`,
//! `--- dockerignore`, `--- options` (one for each line), `--- base` (one for each image: its name, then `ENV …`,
//! `SHELL`, a platform, or `absent`; images that no line describes set PATH alone), `--- warnings` and `--- errors`. What
//! no section expects is a failure. `RBUILD_BLESS=1` writes what comes out into the files, to be read in a diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild::cli::check::{Findings, findings};
use rbuild::context::ignore::Patterns;
use rbuild::diagnostic::{Diagnostic, Source};
use rbuild::dockerfile::lint::{RULES, rule};
use rbuild::dockerfile::parse;
use rbuild::image::config::ImageConfig;
use rbuild::image::manifest::{Descriptor, Encoding, Family};
use rbuild::image::platform::Platform;
use rbuild::plan::{BaseImage, BaseRequest, PlanOptions, Resolved};
use serde_json::Value;

use crate::parse::Differences;
use crate::parse::corpus::{corpus, read_json};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn source(text: &str) -> Source {
    Source { name: "Dockerfile".to_owned(), text: text.to_owned() }
}

/// An image that sets PATH, and what `words` say.
fn base(request: &BaseRequest, words: &[&str]) -> Resolved {
    if words == ["absent"] {
        return Resolved::Absent;
    }
    let mut platform = request.platform.clone();
    let mut config = ImageConfig::default();
    config.config.env.push(PATH.into());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "ENV" => config.config.env.push((*words.next().expect("NAME=value")).to_owned()),
            "SHELL" => config.config.shell.push("/bin/other".to_owned()),
            other => platform = other.parse().expect("a platform"),
        }
    }
    let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    config.rootfs.diff_ids.push(empty.parse().expect("a digest"));
    (config.os, config.architecture) = (platform.os.clone(), platform.architecture.clone());
    Resolved::Image(Arc::new(BaseImage {
        name: request.name.clone(),
        image_id: empty.parse().expect("a digest"),
        manifest: None,
        layers: config
            .rootfs
            .diff_ids
            .iter()
            .map(|id| Descriptor::new(Family::Oci.layer(Encoding::Gzip), id.0, 1))
            .collect(),
        platform,
        config,
    }))
}

/// What the checks say of a file on bases that set PATH alone.
fn checked(text: &str, dockerignore: Option<&str>, options: &PlanOptions) -> Findings {
    let parsed = parse(&source(text));
    let patterns = Patterns::parse(".dockerignore", dockerignore.unwrap_or_default()).expect("patterns");
    findings(&parsed, options, &patterns, &mut |request| base(request, &[]))
}

/// Rule and line of each warning that Docker has, sorted.
fn found(findings: &Findings, text: &str) -> Vec<(String, u64)> {
    let source = source(text);
    let named = findings.warnings.iter().filter_map(|warning| {
        let rule = rule(warning.rule?)?;
        Some((rule.name.to_owned(), source.line(warning.span?.start) as u64))
    });
    let mut list: Vec<_> = named.collect();
    list.sort();
    list
}

fn expected(list: &Value) -> Vec<(String, u64)> {
    let one = |warning: &Value| {
        (warning["rule"].as_str().expect("a rule").to_owned(), warning["line"].as_u64().expect("a line"))
    };
    let mut list: Vec<_> = list.as_array().into_iter().flatten().map(one).collect();
    list.sort();
    list
}

fn differ(got: &[(String, u64)], expected: &[(String, u64)]) -> Option<String> {
    (got != expected).then(|| format!("\n  got      {got:?}\n  expected {expected:?}"))
}

#[test]
fn corpus_lint_cases() {
    let Some(corpus) = corpus("corpus_lint_cases") else { return };
    let mut differences = Differences::new("lint");
    for case in read_json(&corpus.join("lint/lint_cases.json")).as_array().expect("a list") {
        let id = case["id"].as_str().expect("a name");
        let text = case["dockerfile"].as_str().expect("a text");
        let mut options = PlanOptions { all_stages: true, ..PlanOptions::default() };
        for (name, value) in case["frontend_attrs"].as_object().into_iter().flatten() {
            let name = name.strip_prefix("build-arg:").expect("a build argument");
            options.build_args.push((name.to_owned(), value.as_str().expect("a text").to_owned()));
        }
        let findings = checked(text, case["dockerignore"].as_str(), &options);
        // The lists of warnings are of calls with the arguments, `check_only` of one without.
        let attributes = case["frontend_attrs"].is_object();
        let wanted = if attributes { &case["warnings"] } else { &case["check_only"]["warnings"] };
        differences.check(id, differ(&found(&findings, text), &expected(wanted)));
        let errors = case["check_only"]["error"] == true;
        differences
            .check(id, (!attributes && errors == findings.errors.is_empty()).then(|| format!("{:?}", findings.errors)));
        for warning in case["warnings"].as_array().into_iter().flatten() {
            let detail = warning["detail"].as_str().expect("a message");
            let same = findings.warnings.iter().find(|found| found.message == detail);
            let Some(same) = same else {
                differences.check(id, Some(format!("nobody says {detail}: {:?}", findings.warnings)));
                continue;
            };
            let rule = same.rule.and_then(rule).expect("a rule");
            differences.check(id, (warning["description"] != rule.description).then(|| rule.description.to_owned()));
            let url = rule.url().unwrap_or_default();
            differences.check(id, (warning["url"].as_str().unwrap_or_default() != url).then_some(url));
        }
        if let (Some(message), Some(line)) = (case["build_error"].as_str(), case["build_error_line"].as_u64()) {
            let at = |error: &&Diagnostic| error.span.is_some_and(|span| source(text).line(span.start) as u64 == line);
            differences
                .check(id, (!findings.errors.iter().any(|error| at(&error))).then(|| format!("{:?}", findings.errors)));
            if message.starts_with("lint violation") {
                differences
                    .check(id, (findings.errors[0].message != message).then(|| findings.errors[0].message.clone()));
            }
        }
    }
    differences.finish(40);
}

#[test]
fn corpus_lint_snippets() {
    let Some(corpus) = corpus("corpus_lint_snippets") else { return };
    let mut differences = Differences::new("lint snippets");
    for case in read_json(&corpus.join("snippets/buildkit_snippets.json")).as_array().expect("a list") {
        let buildkit = &case["buildkit"];
        if ["parse_error", "instructions_error", "convert_error"].iter().any(|key| !buildkit[key].is_null()) {
            continue; // BuildKit stops there, rbuild goes on
        }
        let id = format!("{} {}", case["from"], case["id"]);
        let text = case["dockerfile"].as_str().expect("a text");
        let findings = checked(text, None, &PlanOptions { all_stages: true, ..PlanOptions::default() });
        differences.check(&id, differ(&found(&findings, text), &expected(&buildkit["warnings"])));
        for warning in buildkit["warnings"].as_array().into_iter().flatten() {
            let detail = warning["detail"].as_str().expect("a message");
            let said = findings.warnings.iter().any(|found| found.message == detail);
            differences.check(&id, (!said).then(|| format!("nobody says {detail}")));
        }
    }
    differences.finish(150);
}

#[test]
fn corpus_lint_real_files() {
    let Some(corpus) = corpus("corpus_lint_real_files") else { return };
    let mut differences = Differences::new("lint real");
    for case in read_json(&corpus.join("real_expect.json"))["files"].as_array().expect("a list") {
        if case["expect"] != "accept" {
            continue;
        }
        let name = case["file"].as_str().expect("a name");
        let text = fs::read_to_string(corpus.join("real").join(name)).expect("UTF-8");
        let findings = checked(&text, None, &PlanOptions { all_stages: true, ..PlanOptions::default() });
        differences.check(name, differ(&found(&findings, &text), &expected(&case["warnings"])));
    }
    differences.finish(600);
}

type Sections = Vec<(String, String)>;

fn cases(text: &str) -> Vec<(String, Sections)> {
    let mut cases: Vec<(String, Sections)> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(title) = line.strip_prefix("=== ") {
            cases.push((title.trim().to_owned(), Vec::new()));
        } else if let Some(name) = line.strip_prefix("--- ") {
            cases.last_mut().expect("a title first").1.push((name.trim().to_owned(), String::new()));
        } else if let Some((_, sections)) = cases.last_mut() {
            sections.last_mut().expect("a section first").1.push_str(line);
        } else {
            assert!(line.trim().is_empty() || line.starts_with('#'), "{line:?} stands in no case");
        }
    }
    cases
}

fn option(options: &mut PlanOptions, line: &str) {
    let (name, value) = line.split_once(' ').unwrap_or((line, ""));
    match name {
        "build-arg" => {
            let (name, value) = value.split_once('=').expect("NAME=value");
            options.build_args.push((name.to_owned(), value.to_owned()));
        }
        "target" => options.target = Some(value.to_owned()),
        "platform" => options.platforms.push(value.parse::<Platform>().expect("a platform")),
        // As a build does it: what is not needed is not looked at.
        "build" => options.all_stages = false,
        "context" => drop(options.named_contexts.insert(value.to_owned())),
        other => panic!("unknown option {other}"),
    }
}

fn run(sections: &Sections) -> (Findings, Source) {
    let section = |name: &str| sections.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str());
    let mut options = PlanOptions { all_stages: true, ..PlanOptions::default() };
    section("options").into_iter().flat_map(str::lines).for_each(|line| option(&mut options, line));
    let bases: BTreeMap<String, Vec<&str>> = section("base")
        .into_iter()
        .flat_map(str::lines)
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().expect("a name");
            (name.to_owned(), words.collect())
        })
        .collect();
    let source = source(section("dockerfile").expect("a dockerfile"));
    let patterns = Patterns::parse(".dockerignore", section("dockerignore").unwrap_or_default()).expect("patterns");
    let findings = findings(&parse(&source), &options, &patterns, &mut |request| {
        let short = request.name.strip_prefix("docker.io/library/").unwrap_or(&request.name);
        base(request, bases.get(short.trim_end_matches(":latest")).map_or(&[], Vec::as_slice))
    });
    (findings, source)
}

fn shown(list: &[Diagnostic], source: &Source) -> String {
    let mut out = String::new();
    for one in list {
        let line = one.span.map_or_else(|| "-".to_owned(), |span| source.line(span.start).to_string());
        let rule = one.rule.map_or(String::new(), |rule| format!("{rule}: "));
        writeln!(out, "{line} {rule}{}", one.message).expect("writing to a string");
        for help in &one.help {
            writeln!(out, "  {help}").expect("writing to a string");
        }
    }
    out
}

#[test]
fn own_lint_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/lint");
    let bless = std::env::var_os("RBUILD_BLESS").is_some();
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).expect("testdata/lint").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut problems = String::new();
    let (mut told, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in &files {
        let subject = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(file).expect("UTF-8");
        let mut written = String::new();
        for (title, sections) in cases(&text) {
            let (findings, source) = run(&sections);
            if findings.warnings.iter().any(|warning| warning.rule == Some(subject.as_str())) {
                told.insert(subject.clone());
            } else {
                silent.insert(subject.clone());
            }
            let got = [("warnings", &findings.warnings), ("errors", &findings.errors)];
            writeln!(written, "=== {title}").expect("writing to a string");
            for (name, text) in sections.iter().filter(|(name, _)| name != "warnings" && name != "errors") {
                write!(written, "--- {name}\n{text}").expect("writing to a string");
            }
            for (name, list) in got {
                let (got, expected) = (shown(list, &source), sections.iter().find(|(known, _)| known == name));
                if !got.is_empty() {
                    write!(written, "--- {name}\n{got}").expect("writing to a string");
                }
                let expected = expected.map_or("", |(_, text)| text.as_str());
                if got != expected {
                    writeln!(problems, "{subject}: {title}: {name}\n{got}expected\n{expected}")
                        .expect("writing to a string");
                }
            }
        }
        if bless && written != text {
            fs::write(file, written).expect("a file that can be written");
        }
    }
    assert!(bless || problems.is_empty(), "{problems}");
    for rule in RULES {
        assert!(told.contains(rule.name), "no case of testdata/lint/{}.txt has the warning", rule.name);
        assert!(silent.contains(rule.name), "every case of testdata/lint/{}.txt has the warning", rule.name);
    }
}

/// An object of SARIF 2.1.0: the properties that the schema requires of it, and the others that rbuild uses.
const SARIF: &[(&str, &[&str], &[&str])] = &[
    ("log", &["version", "runs"], &["$schema"]),
    ("run", &["tool"], &["invocations", "columnKind", "results"]),
    ("tool", &["driver"], &[]),
    ("driver", &["name"], &["semanticVersion", "rules"]),
    ("rule", &["id"], &["name", "shortDescription", "defaultConfiguration", "helpUri"]),
    ("configuration", &[], &["level", "enabled"]),
    ("invocation", &["executionSuccessful"], &["toolExecutionNotifications"]),
    ("notification", &["message"], &["level"]),
    ("message", &["text"], &[]),
    ("result", &["message"], &["level", "locations", "ruleId", "ruleIndex"]),
    ("location", &["physicalLocation"], &[]),
    ("physical", &["artifactLocation"], &["region"]),
    ("artifact", &["uri"], &[]),
    ("region", &["startLine", "startColumn", "endLine", "endColumn"], &[]),
];

/// That `value` is such an object, and nothing more.
fn object<'a>(kind: &str, value: &'a Value) -> &'a Value {
    let (_, required, allowed) = SARIF.iter().find(|(known, ..)| *known == kind).expect("a kind");
    let keys: Vec<&String> = value.as_object().unwrap_or_else(|| panic!("{kind}: {value}")).keys().collect();
    assert!(required.iter().all(|name| keys.iter().any(|key| key == name)), "{kind} lacks something: {value}");
    assert!(keys.iter().all(|key| required.iter().chain(*allowed).any(|name| key == name)), "{kind}: {value}");
    value
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("{name}: {value}"))
}

#[test]
fn sarif_is_sarif() {
    let env = crate::support::env::TestEnv::new();
    for (text, errors, warnings) in [
        ("FROM scratch\n", 0, 0),
        ("FROM nobody/has as a\nENV A b \\\n  c\nENV é=1 TOKEN=2\n", 0, 3),
        ("# check=error=true\nFROM scratch as a\n", 1, 1),
        ("FROM scratch\nCOPPY a b\nRUM x\n", 2, 0),
    ] {
        env.write("a b/Dockerfile", text);
        let run = env.run(["--check", "--format", "sarif", "--build-arg", "X=1", "a b"]);
        let log: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stdout));
        object("log", &log);
        assert_eq!(log["version"], "2.1.0");
        assert!(log["$schema"].as_str().is_some_and(|uri| uri.starts_with("https://") && uri.contains("2.1.0")));
        assert_eq!(list(&log, "runs").len(), 1);
        let run = object("run", &log["runs"][0]);
        assert!(["utf16CodeUnits", "unicodeCodePoints"].contains(&run["columnKind"].as_str().expect("a text")));
        let driver = object("driver", &object("tool", &run["tool"])["driver"]);
        let rules = list(driver, "rules");
        assert_eq!(rules.len(), RULES.len());
        for rule in rules {
            object("rule", rule);
            object("message", &rule["shortDescription"]);
            object("configuration", &rule["defaultConfiguration"]);
            assert!(
                rule["helpUri"].is_null() || rule["helpUri"].as_str().is_some_and(|uri| uri.starts_with("https://"))
            );
        }
        let ids: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["id"].as_str()).collect();
        assert_eq!(ids.len(), rules.len(), "ids are unique");
        for invocation in list(run, "invocations") {
            assert!(object("invocation", invocation)["executionSuccessful"].is_boolean());
            let notes = invocation["toolExecutionNotifications"].as_array();
            assert_eq!(notes.is_some(), text.contains("nobody"), "{invocation}");
            for note in notes.into_iter().flatten() {
                object("message", &object("notification", note)["message"]);
                assert_eq!(note["level"], "note");
            }
        }
        let lines = text.lines().count() as u64;
        let mut levels: BTreeMap<&str, usize> = BTreeMap::new();
        for result in list(run, "results") {
            object("result", result);
            assert!(object("message", &result["message"])["text"].as_str().is_some_and(|text| !text.is_empty()));
            let level = result["level"].as_str().expect("a level");
            assert!(["none", "note", "warning", "error"].contains(&level));
            // What is not used is found too, but is no check.
            let counts = result["ruleId"] != "UnusedBuildArg";
            *levels.entry(level).or_default() += usize::from(counts);
            if let Some(index) = result["ruleIndex"].as_u64() {
                assert_eq!(rules[index as usize]["id"], result["ruleId"]);
            }
            for location in list(result, "locations") {
                let physical = object("physical", &object("location", location)["physicalLocation"]);
                assert_eq!(object("artifact", &physical["artifactLocation"])["uri"], "a%20b/Dockerfile");
                let Some(region) = physical.get("region").map(|region| object("region", region)) else { continue };
                let number = |name: &str| region[name].as_u64().filter(|number| *number > 0).expect("a number from 1");
                assert!(number("startLine") <= number("endLine") && number("endLine") <= lines);
                assert!(number("startLine") < number("endLine") || number("startColumn") < number("endColumn"));
            }
        }
        let count = |level| levels.get(level).copied().unwrap_or_default();
        assert_eq!((count("error"), count("warning")), (errors, warnings), "{text}{run:#}");
    }
}
