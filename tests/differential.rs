//! Another builder makes of a random project what rbuild makes of it: Debian's buildah, with its own copying, its own
//! commands and its own layers.
//!
//! In: seeds. Out: nothing, or the first Dockerfile of which the two make different images, and what differs: tree, types,
//! modes, owners, links, further names, bytes, config. Where buildah is known to do something else, `known` says so with
//! the reason. Each project is built by rbuild in an empty store and in one that saw all projects before, which must
//! agree too. `RBUILD_DIFFERENTIAL_SEEDS` sets the number of seeds, `RBUILD_RANDOM_SEED` the first.

mod buildah;
mod case;
mod known;

use std::collections::BTreeMap;

use serde_json::Value;

use self::buildah::Buildah;
use self::case::{Case, SUBJECTS, Subject};
use crate::support::context;
use crate::support::env::TestEnv;
use crate::support::machine::{self, Need, needs};
use crate::support::oci::{Image, Node};
use crate::support::random::Random;

/// Fields of the config that both write.
const CONFIG: &[&str] = &[
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "User",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
    "Shell",
    "Healthcheck",
    "OnBuild",
];

/// One field in which two images differ.
pub struct Difference {
    /// A path of the tree, or a field of the config.
    place: String,
    /// `kind`, `mode`, `owner`, `link`, `names`, `bytes`, `exists`; for the config `config`.
    field: &'static str,
    /// What it is for rbuild, or for buildah where rbuild has nothing; of the config a blank.
    kind: char,
    rbuild: String,
    buildah: String,
}

impl Difference {
    /// Both modes, where they differ.
    fn bits(&self) -> Option<(u32, u32)> {
        let read = |text: &str| u32::from_str_radix(text, 8).ok().filter(|_| self.field == "mode");
        read(&self.rbuild).zip(read(&self.buildah))
    }
}

/// A path as it compares: the field's name and its value.
fn fields(node: &Node, names: &[String]) -> [(&'static str, String); 6] {
    let bytes = if node.kind == '-' { format!("{} {}", node.size, node.sha256) } else { String::new() };
    let mode = if node.kind == 'l' { String::new() } else { format!("{:04o}", node.mode) };
    [
        ("kind", node.kind.to_string()),
        ("mode", mode),
        ("owner", format!("{}:{}", node.owner.0, node.owner.1)),
        ("link", node.link.clone()),
        ("bytes", bytes),
        ("names", if names.len() > 1 { names.join(" ") } else { String::new() }),
    ]
}

/// Each file's names, by its number.
fn names(tree: &BTreeMap<String, Node>) -> BTreeMap<usize, Vec<String>> {
    let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (path, node) in tree {
        names.entry(node.file).or_default().push(path.clone());
    }
    names
}

fn differences(rbuild: &Image, buildah: &Image) -> Vec<Difference> {
    let mut found = Vec::new();
    let (ours, theirs) = (rbuild.tree(), buildah.tree());
    let (our_names, their_names) = (names(&ours), names(&theirs));
    let mut paths: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let kind = ours.get(path).or(theirs.get(path)).map_or(' ', |node| node.kind);
        let mut push = |field, rbuild, buildah| {
            found.push(Difference { place: path.clone(), field, kind, rbuild, buildah });
        };
        match (ours.get(path), theirs.get(path)) {
            (Some(one), Some(other)) => {
                let (one, other) = (fields(one, &our_names[&one.file]), fields(other, &their_names[&other.file]));
                for ((field, one), (_, other)) in one.into_iter().zip(other) {
                    if one != other {
                        push(field, one, other);
                    }
                }
            }
            (one, other) => {
                let shown =
                    |node: Option<&Node>| node.map_or_else(|| "nothing".to_owned(), |node| node.kind.to_string());
                push("exists", shown(one), shown(other));
            }
        }
    }
    for field in CONFIG {
        let value = |image: &Image| match &image.config["config"][field] {
            Value::Array(list) if list.is_empty() => Value::Null,
            Value::Object(map) if map.is_empty() => Value::Null,
            Value::String(text) if text.is_empty() => Value::Null,
            other => other.clone(),
        };
        let (one, other) = (value(rbuild), value(buildah));
        if one != other {
            let (rbuild, buildah) = (one.to_string(), other.to_string());
            found.push(Difference { place: (*field).to_owned(), field: "config", kind: ' ', rbuild, buildah });
        }
    }
    found
}

/// Builds the case in this environment's store: the image, or what rbuild said.
fn build(env: &TestEnv) -> Result<(Image, String, String), String> {
    let run = env.build("--progress plain --timestamp 1000000 -o type=oci,dest=out.tar,compression=uncompressed");
    if run.code == Some(0) {
        let image = Image::read(&env.path("out.tar"));
        env.remove("out.tar");
        return Ok((image, run.content(), run.image()));
    }
    assert_eq!(run.code, Some(1), "a build ends with 0 or 1\n{}", run.shown());
    Err(run.says_nothing_of("panicked").shown())
}

/// What one case came to.
enum Outcome {
    Same,
    /// Neither could build it, and what rbuild said.
    NeitherBuilt(String),
    /// One could not, which is known.
    Known,
}

/// Builds one case everywhere.
fn compare(case: &Case, warm: &TestEnv, cold: &TestEnv, other: &Buildah) -> Result<Outcome, String> {
    for env in [warm, cold] {
        if env.path("ctx").exists() {
            env.remove("ctx");
        }
        env.directory(&env.path("ctx"));
        context::lay_out(env, &case.files, &BTreeMap::new());
        env.write("ctx/.dockerignore", case.ignore.iter().fold(String::new(), |text, line| text + line + "\n"));
        env.write("ctx/Dockerfile", &case.dockerfile);
    }
    cold.empty_store();
    cold.import_busybox();
    let (first, seen) = (build(cold), build(warm));
    match (&first, &seen) {
        (Ok((_, content, image)), Ok((_, content_seen, image_seen))) => {
            if (content, image) != (content_seen, image_seen) {
                return Err(format!("an empty store gives {content} {image}, a warm one {content_seen} {image_seen}"));
            }
            match build(warm) {
                Ok((_, _, again)) if again == *image => {}
                _ => return Err("the same build once more gives something else".to_owned()),
            }
        }
        (Err(_), Err(_)) => {}
        (Ok(_), Err(said)) => return Err(format!("built in an empty store, but not in a warm one\n{said}")),
        (Err(said), Ok(_)) => return Err(format!("built in a warm store, but not in an empty one\n{said}")),
    }
    match (first, other.build(cold)) {
        (Ok((ours, ..)), Ok(theirs)) => {
            let mut found = differences(&ours, &theirs);
            found.retain(|difference| !known::reason(difference).is_some());
            if found.is_empty() {
                return Ok(Outcome::Same);
            }
            let lines = found
                .iter()
                .map(|one| format!("{} {}: rbuild {}, buildah {}\n", one.place, one.field, one.rbuild, one.buildah));
            Err(lines.collect())
        }
        (Err(said), Err(_)) => Ok(Outcome::NeitherBuilt(said)),
        (Ok(_), Err(said)) if known::REFUSED_BY_BUILDAH.iter().any(|(text, _)| said.contains(text)) => {
            Ok(Outcome::Known)
        }
        (Err(said), Ok(_)) if known::REFUSED_BY_RBUILD.iter().any(|(text, _)| said.contains(text)) => {
            Ok(Outcome::Known)
        }
        (Ok(_), Err(said)) => Err(format!("only rbuild could build it\n{said}")),
        (Err(said), Ok(_)) => Err(format!("only buildah could build it\n{said}")),
    }
}

#[test]
fn another_builder_makes_the_same_of_it() {
    let test = "another_builder_makes_the_same_of_it";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root, Need::Buildah]) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("RBUILD_DIFFERENTIAL_SEEDS").unwrap_or(20);
    // Seeds that are the same in every run: what was found with others stands here, or in a scenario.
    let first = Random::given_seed().unwrap_or(1);
    let (warm, cold) = (TestEnv::new(), TestEnv::new());
    warm.import_busybox();
    cold.import_busybox();
    let other = Buildah::new(&cold);
    let (mut same, mut failed) = (0, Vec::new());
    let mut about: BTreeMap<Subject, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let case = Case::new(seed);
        for subject in &case.subjects {
            *about.entry(*subject).or_default() += 1;
        }
        for (part, reason) in known::NOT_ASKED {
            assert!(!case.dockerfile.contains(part), "seed {seed} asks for {part:?}: {reason}");
        }
        match compare(&case, &warm, &cold, &other) {
            Ok(Outcome::Same) => same += 1,
            Ok(Outcome::Known) => {}
            Ok(Outcome::NeitherBuilt(said)) => {
                let error = said.lines().find(|line| line.contains("error:")).unwrap_or_default();
                machine::say(&format!("note: {test}: neither builds seed {seed}: {error}"));
            }
            Err(why) => {
                machine::say(&format!(
                    "RBUILD_RANDOM_SEED={seed}\n{}--- .dockerignore {:?}\n--- what differs\n{why}",
                    case.dockerfile, case.ignore
                ));
                failed.push(seed);
            }
        }
    }
    drop(other);
    machine::say(&format!("note: {test}: {same} of {seeds} projects gave the same image, from seed {first}"));
    assert!(failed.is_empty(), "other images than buildah's: seeds {failed:?}");
    if seeds >= 20 {
        assert!(same * 2 > seeds, "only {same} of {seeds} could be built by both");
        for subject in SUBJECTS {
            assert!(about.get(subject).is_some_and(|count| count * 2 >= seeds), "too few cases about {subject:?}");
        }
    }
}
