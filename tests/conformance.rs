//! Whole builds against what Docker gave for the same Dockerfiles: the conformance data, judged by its own harness.
//!
//! The data belongs to others and is read from beside the project (`RBUILD_CORPUS`), never copied into it.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::env::TestEnv;
use crate::support::machine::{self, Need, corpus, find_program, needs};

/// Cases that need what rbuild does not do yet, with what it says then. A case that begins to work has to leave the list.
const LATER: &[(&str, &str)] = &[];

#[test]
fn builds_are_those_of_docker() {
    let wanted =
        [Need::Corpus, Need::Busybox, Need::Run, Need::Root, Need::Program("python3"), Need::Program("bash-static")];
    if !needs("builds_are_those_of_docker", &wanted) {
        return;
    }
    let env = TestEnv::new();
    let harness = corpus().expect("asked for above").parent().expect("the data has a folder").join("harness");
    let python =
        std::env::var_os("PYTHON").or_else(|| find_program("python3").map(Into::into)).expect("asked for above");
    let bash = find_program("bash-static").expect("asked for above");
    let run = |script: &str, args: &[&str]| {
        let mut command = Command::new(&python);
        command.arg(harness.join(script)).args(args).current_dir(env.path("")).stdin(Stdio::null());
        command.env("RBUILD_ROOT", env.store()).env("TMPDIR", env.path("tmp")).env("BASH_STATIC", &bash);
        command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("SOURCE_DATE_EPOCH");
        command.output().expect("python starts")
    };
    let bases = run("mkbase.py", &["base"]);
    assert!(bases.status.success(), "mkbase.py: {}", String::from_utf8_lossy(&bases.stderr));
    let builder = machine::rbuild();
    let builder = builder.to_str().expect("the program has a plain path");
    let args = ["--builder", builder, "--part", "open", "--base", "base", "--json", "results.json", "--logs", "logs"];
    let judged = run("conformance.py", &args);
    let said = String::from_utf8_lossy(&judged.stdout);
    let results = std::fs::read(env.path("results.json"))
        .unwrap_or_else(|error| panic!("{error}\n{said}\n{}", String::from_utf8_lossy(&judged.stderr)));
    let results: Value = serde_json::from_slice(&results).expect("results are JSON");
    let results = results.as_array().expect("results are a list");
    assert!(results.len() > 100, "only {} cases", results.len());
    let mut problems = Vec::new();
    for result in results {
        let case = result["case"].as_str().expect("a case has a name");
        let failed = result["verdict"] == "FAIL";
        match LATER.iter().find(|(name, _)| *name == case) {
            Some((_, what)) => {
                let log = std::fs::read_to_string(env.path(&format!("logs/{case}.log"))).unwrap_or_default();
                if !failed {
                    problems.push(format!("{case}: works now; take it from the list"));
                } else if !log.contains("not supported yet") {
                    problems.push(format!("{case}: fails, but not with 'not supported yet' for {what}:\n{log}"));
                } else {
                    machine::say(&format!("note: {case} waits for {what}"));
                }
            }
            None if failed || result["verdict"] == "no-golden" => {
                problems.push(format!("{case}: {}\n{}", result["verdict"], result["hard"]));
            }
            None => {}
        }
    }
    assert!(problems.is_empty(), "{} of {} cases\n{}", problems.len(), results.len(), problems.join("\n"));
}
