//! `--verify-reproducible`: which step and which files differ between two builds, and why.

use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs, test_user};

const CAUSES: &str = "FROM busybox AS made
RUN echo same > /same
RUN date > /date; mktemp -p /tmp abc.XXXXXX; echo x > /f; sleep 0.01; gzip -c /f > /f.gz; cat /proc/sys/kernel/random/uuid > /uuid
FROM busybox
COPY --from=made /same /date /
";

fn causes(mut env: TestEnv) {
    env.import_busybox();
    let images = env.rbuild("images -q --no-trunc").ok().stdout;
    env.write("ctx/Dockerfile", CAUSES);
    env.set("SOURCE_DATE_EPOCH", "0");
    let run = env.build("--verify-reproducible").ends(1);
    for expected in [
        "not reproducible: two builds gave different files\n",
        "RUN date > /date",
        "Dockerfile, line 3)",
        "/date: content (",
        "     a time; others mend it so: set SOURCE_DATE_EPOCH",
        "/uuid: content (",
        "     a random identifier (UUID)",
        "     a random name",
        "Later steps differ too, which may follow from it: 1\n",
    ] {
        assert!(run.stdout.contains(expected), "no {expected:?}\n{}", run.shown());
    }
    assert!(!run.stdout.contains("/same"), "a file that is the same\n{}", run.shown());
    assert_eq!(env.rbuild("images -q --no-trunc").ok().stdout, images, "an image was kept");
    // Cache mounts and the cache are empty each time, the user's own stay as they were.
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo fixed > /f && ls -la / > /seen; rm /seen\n");
    let built = env.build("-t fixed").ok();
    let run = env.build("--verify-reproducible -t never").ok().says("keeps neither");
    assert!(run.stdout.starts_with("reproducible: "), "{}", run.shown());
    assert!(run.stdout.contains(&format!("image {}\n", built.image())), "{}", run.shown());
    env.rbuild("inspect never").ends(1);
    env.write("ctx/Dockerfile", "FROM busybox\nRUN exit 3\n");
    env.build("--verify-reproducible").ends(1).says("exit code: 3").says("the first build failed");
}

#[test]
fn the_step_and_its_files_are_named() {
    if needs("the_step_and_its_files_are_named", &[Need::Busybox, Need::Run]) {
        causes(TestEnv::new());
    }
}

#[test]
fn an_ordinary_user_compares_too() {
    if needs("an_ordinary_user_compares_too", &[Need::Busybox, Need::Run, Need::Root, Need::User]) {
        causes(TestEnv::as_user(&test_user().expect("looked up before")));
    }
}

#[test]
fn what_only_copies_is_reproducible() {
    let env = TestEnv::new();
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\nWORKDIR /w\n");
    let built = env.build("-t x").ok();
    let run = env.build("--verify-reproducible").ok();
    assert!(run.stdout.contains(&format!("content {}\n", built.content())), "{}", run.shown());
    assert!(run.stdout.contains("Times are not compared"), "{}", run.shown());
}
