//! Builds that share a store, at the same time: none fails, and each gives what it gives alone.

use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};

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
