//! `--explain`: for each step that was not in the cache, the reason that a user would name too.

use serde_json::Value;

use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};

/// The steps that were not cached: instruction and reason, as plain progress tells them.
fn missed(env: &TestEnv, args: &str) -> Vec<(String, String)> {
    let run = env.build(&format!("--explain --progress plain {args}")).ok();
    let line = |number: &str| {
        let heading = format!("{number} [");
        let found = run.stderr.lines().find(|line| line.starts_with(&heading)).expect("each number has a heading");
        found.split_once("] ").expect("a heading has brackets").1.to_owned()
    };
    let reasons = run.stderr.lines().filter_map(|line| line.split_once(" not cached: "));
    reasons.map(|(number, reason)| (line(number), reason.to_owned())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(step, reason)| ((*step).to_owned(), (*reason).to_owned())).collect()
}

#[test]
fn copies_say_what_changed() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY d /d\n");
    for n in 0..12 {
        env.write(&format!("ctx/d/{n:02}"), "1");
    }
    let never = "never built in this store";
    assert_eq!(missed(&env, ""), pairs(&[("COPY d /d", never)]));
    assert_eq!(missed(&env, ""), []);
    assert_eq!(missed(&env, "--no-cache"), pairs(&[("COPY d /d", "the cache is off for it (--no-cache)")]));
    env.write("ctx/d/03", "2");
    assert_eq!(missed(&env, ""), pairs(&[("COPY d /d", "files changed: d/03")]));
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY --chmod=700 d /d\n");
    let mode = missed(&env, "");
    assert_eq!(mode.len(), 1, "{mode:?}");
    assert!(mode[0].1.starts_with("mode changed from ") || mode[0].1.contains("chmod"), "{mode:?}");
}

#[test]
fn many_files_are_counted() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY d /d\n");
    for round in ["1", "2"] {
        for n in 0..12 {
            env.write(&format!("ctx/d/{n:02}"), round);
        }
        let told = missed(&env, "");
        if round == "2" {
            assert_eq!(told.len(), 1);
            assert!(told[0].1.starts_with("files changed: d/00, d/01, "), "{told:?}");
            assert!(told[0].1.ends_with(" and 2 more"), "{told:?}");
        }
    }
}

#[test]
fn a_store_that_lost_something_says_so() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
    env.write("ctx/f", "1");
    env.build("--metadata-file meta.json").ok();
    let meta: Value = serde_json::from_slice(&std::fs::read(env.path("meta.json")).expect("it was written")).unwrap();
    let layer = meta["rbuild.steps"][0]["layer"].as_str().expect("steps have layers");
    let hex = layer.strip_prefix("sha256:").expect("a digest");
    env.remove(&format!("store/layers/{hex}"));
    assert_eq!(missed(&env, ""), pairs(&[("COPY f /", "its layer is no longer in the store")]));
    for entry in walkdir::WalkDir::new(env.path("store/cache/records")) {
        let entry = entry.expect("records can be listed");
        if entry.file_type().is_file() {
            std::fs::write(entry.path(), "no record").expect("records can be written");
        }
    }
    let told = missed(&env, "");
    assert_eq!(told.len(), 1);
    assert!(told[0].1.starts_with("its cache record is damaged: "), "{told:?}");
    assert_eq!(missed(&env, ""), [], "the damaged record was replaced");
}

#[test]
fn commands_say_what_changed() {
    if !needs("commands_say_what_changed", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/f", "1");
    let write = |first: &str, variable: &str| {
        let text = format!("FROM busybox\nENV A={variable}\nRUN {first}\nCOPY f /d/\nRUN true\n");
        env.write("ctx/Dockerfile", text);
    };
    write("mkdir -m 755 /d", "1");
    assert_eq!(missed(&env, "").len(), 3);
    write("mkdir -m 700 /d", "1");
    let command = "command changed from \"/bin/sh -c mkdir -m 755 /d\" to \"/bin/sh -c mkdir -m 700 /d\"";
    let expected = [
        ("RUN mkdir -m 700 /d", command),
        ("COPY f /d/", "what is there at the destination changed"),
        ("RUN true", "the file system it builds on changed"),
    ];
    assert_eq!(missed(&env, ""), pairs(&expected));
    write("mkdir -m 700 /d", "2");
    let told = missed(&env, "");
    // The commands run again, and as they leave what they left before, that is all.
    let changed = "variable A changed from \"1\" to \"2\"";
    assert_eq!(told, pairs(&[("RUN mkdir -m 700 /d", changed), ("RUN true", changed)]));
}

#[test]
fn programs_get_the_reason_and_quiet_is_quiet() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
    env.write("ctx/f", "1");
    let json = env.build("--progress json").ok();
    let events: Vec<Value> =
        json.stderr.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let event = events.iter().find(|event| event["event"] == "missed").expect("a first build misses");
    assert_eq!((&event["why"], &event["step"]), (&Value::from("first_build"), &Value::from(0)));
    let built = events.last().expect("there are events");
    assert_eq!(built["event"], "built");
    assert!(built["image"].as_str().is_some_and(|image| image.starts_with("sha256:")), "{built}");
    assert!(built["content"].as_str().is_some_and(|content| content.starts_with("sha256:")), "{built}");
    let quiet = env.build("--no-cache --explain -q").ok();
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.stdout.trim_end(), built["image"].as_str().unwrap_or_default());
}
