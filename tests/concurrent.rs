//! Commands that share a store, at the same time: none fails, and each build gives what it gives alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{self, Need, needs};
use crate::support::random::Random;
use crate::support::registry::Registry;

const DOCKERFILE: &str = "FROM busybox AS one
RUN echo 1 > /one && rm /etc/motd
COPY f /d/f
RUN cat /d/f /one > /all

FROM busybox
WORKDIR /w
COPY --from=one /all /w/
RUN ln all same
";

#[test]
fn ten_builds_at_once_share_a_store() {
    if !needs("ten_builds_at_once_share_a_store", &[Need::Busybox, Need::Run]) {
        return;
    }
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.import_busybox();
    // Half of them are the same project; each of the others has a file of its own.
    let folder = |number: usize| if number.is_multiple_of(2) { "same".to_owned() } else { format!("own{number}") };
    for number in 0..10 {
        env.write(&format!("{}/f", folder(number)), folder(number));
        env.write(&format!("{}/Dockerfile", folder(number)), DOCKERFILE);
    }
    for round in 0..3 {
        let results: Vec<(String, String)> = std::thread::scope(|scope| {
            let build = |number: usize| {
                let name = format!("n{number}");
                // In the last round every step runs again, over layers that others are reading.
                let cache = if round == 2 { "--no-cache" } else { "--jobs=2" };
                let run = env.run(["build", cache, "-t", &name, "-t", "all", &folder(number)]).ok();
                (run.image(), run.content())
            };
            let builds: Vec<_> = (0..10).map(|number| scope.spawn(move || build(number))).collect();
            for _ in 0..5 {
                env.run(["tag", "busybox", "other"]).ok();
                env.run(["images"]).ok();
                env.run(["prune", "-f"]).ok();
                env.run(["df"]).ok();
                env.run(["rmi", "other"]).ok();
                env.run(["builder", "prune", "-af"]).ok();
            }
            builds.into_iter().map(|build| build.join().expect("the build succeeds")).collect()
        });
        for (number, result) in results.iter().enumerate() {
            let name = format!("n{number}");
            assert!(
                env.run(["inspect", &name]).ok().stdout.contains(&result.0),
                "round {round}: {name} is another image"
            );
            assert_eq!(result == &results[0], number % 2 == 0, "round {round}: build {number}");
        }
        let left = env.left_behind();
        assert!(left.is_empty(), "round {round}: left behind\n{}", left.join("\n"));
    }
    env.run(["inspect", "--verify", "n0", "n1", "all"]).ok();
    let other = TestEnv::new();
    other.import_busybox();
    other.write("same/f", "same");
    other.write("same/Dockerfile", DOCKERFILE);
    let alone = other.command(["build", "same"]).env("SOURCE_DATE_EPOCH", "0").output().expect("rbuild starts");
    let alone = String::from_utf8_lossy(&alone.stderr).into_owned();
    let shared = env.run(["build", "same"]).ok();
    assert!(alone.contains(&shared.image()), "a store of its own gives another image\n{alone}\n{}", shared.shown());
}

#[test]
fn a_store_is_made_by_several_commands_at_once() {
    for _ in 0..5 {
        let env = TestEnv::new();
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
        std::thread::scope(|scope| {
            for number in 0..6 {
                let env = &env;
                scope.spawn(move || env.build(&format!("-t n{number}")).ok().image());
            }
        });
        assert_eq!(env.run(["images", "-q"]).ok().stdout.lines().count(), 6, "a name was lost");
    }
}

/// Waits a moment that is another one each time, then runs.
fn at_once(env: &TestEnv, pause: usize, line: &str) -> Run {
    std::thread::sleep(Duration::from_millis(pause as u64));
    env.rbuild(line)
}

#[test]
fn everything_at_once_on_one_store() {
    let test = "everything_at_once_on_one_store";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Program("docker-registry")]) {
        return;
    }
    let rounds: usize = std::env::var("RBUILD_CONCURRENT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let seed = Random::seed();
    machine::say(&format!("note: everything at once: {rounds} rounds with RBUILD_RANDOM_SEED={seed}"));
    let mut random = Random::new(seed);
    let registry = Registry::start("", "");
    let host = registry.host();
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.import_busybox();
    // What is pulled and loaded has layers of its own, which only that command brings.
    for name in ["pulled", "oci", "docker"] {
        env.write(&format!("{name}/f"), name.repeat(50_000));
        env.write(&format!("{name}/Dockerfile"), "FROM busybox\nCOPY f /f\nRUN cat /f /f > /g\n");
        env.run(["build", "-t", &format!("{host}/team/{name}:1"), "-t", &format!("{name}:1"), name]).ok();
    }
    env.rbuild(&format!("push {host}/team/pulled:1")).ok();
    env.rbuild("save --format oci -o oci.tar oci:1").ok();
    env.rbuild("save --format docker -o docker.tar docker:1").ok();
    env.rbuild("tag busybox kept:1").ok();
    for number in 0..10 {
        // Two projects twice; one is built on what is pulled meanwhile.
        let base = if number == 9 { format!("{host}/team/pulled:1") } else { "busybox".to_owned() };
        env.write(&format!("p{number}/f"), (number / 2).to_string());
        env.write(&format!("p{number}/Dockerfile"), DOCKERFILE.replace("FROM busybox\n", &format!("FROM {base}\n")));
    }
    let prunes = [
        "prune -f",
        "builder prune -af",
        "image prune -f",
        "system prune -f --filter until=0s",
        "prune -f --keep-storage 1m",
    ];
    let mut known: BTreeMap<usize, String> = BTreeMap::new();
    for round in 0..rounds {
        for name in ["pulled", "oci", "docker"] {
            env.rbuild(&format!("rmi -f {host}/team/{name}:1 {name}:1")).ok();
        }
        if random.one_in(2) {
            env.rbuild("builder prune -af").ok();
        }
        env.rbuild("tag busybox victim:1").ok();
        let mut lines: Vec<String> = (0..10)
            .map(|number| {
                let flags = random.pick(&["", "--no-cache ", "--jobs 1 ", "-o type=image "]);
                format!("build {flags}-t n{number} -t all p{number}")
            })
            .collect();
        for line in
            ["load -i oci.tar", "load -i docker.tar", "save -o saved.tar kept:1", "tag kept:1 moving:1", "rmi victim:1"]
        {
            lines.push(line.to_owned());
        }
        lines.push(format!("pull {host}/team/pulled:1"));
        lines.push(format!("push {host}/team/oci:{round}"));
        lines.extend((0..3).map(|_| random.pick(&prunes).to_owned()));
        // It has to have the name that is pushed; the layers may come by the load of the same moment.
        env.rbuild(&format!("tag kept:1 {host}/team/oci:{round}")).ok();
        let pauses: Vec<usize> = lines.iter().map(|_| random.below(150)).collect();
        let runs: Vec<Run> = std::thread::scope(|scope| {
            let env = &env;
            let start = |(line, pause)| scope.spawn(move || at_once(env, pause, line));
            let threads: Vec<_> = lines.iter().map(String::as_str).zip(pauses).map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        let shown = format!("round {round} of RBUILD_RANDOM_SEED={seed}");
        for run in &runs {
            assert_eq!(run.code, Some(0), "{shown}\n{}", run.shown());
            assert!(!run.stderr.contains("panicked") && !run.stderr.contains("damaged"), "{shown}\n{}", run.shown());
        }
        for (number, run) in runs.iter().take(10).enumerate() {
            let image = run.image();
            assert_eq!(known.entry(number).or_insert_with(|| image.clone()), &image, "{shown}: build {number}");
        }
        let tags = env.run(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().stdout;
        let tags: Vec<&str> = tags.lines().filter(|tag| !tag.contains("<none>")).collect();
        assert!(tags.len() >= 15 && !tags.contains(&"victim:1"), "{shown}: {tags:?}");
        let verified = env.run(["inspect", "--verify"].into_iter().chain(tags));
        assert_eq!(verified.code, Some(0), "{shown}\n{}", verified.shown());
        let left = env.left_behind();
        assert!(left.is_empty(), "{shown}: left behind\n{}", left.join("\n"));
    }
    assert_eq!(known[&0], known[&1], "the same project");
    assert_ne!(known[&0], known[&2]);
}
