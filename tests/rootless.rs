//! Root and an ordinary user build the same image.

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, is_root, needs, test_user};
use crate::support::oci::Image;

const COPIES: &str = "FROM scratch
COPY f /f
COPY --chmod=750 --chown=33:33 d /srv/
WORKDIR /work/here
LABEL a=b
";
const RUNS: &str = "FROM busybox AS made
RUN mkdir -p /out && echo text > /out/text && chown -R builder:www-data /out && chmod 2755 /out
RUN ln /out/text /out/same && ln -s text /out/link && rm /etc/motd
USER builder
RUN id > /tmp/id && touch /home/builder/mine
FROM busybox
COPY --from=made /out /out
COPY f /f
RUN cat /out/text /f > /both && mkfifo /pipe
USER nobody
RUN stat -c '%A %u %g %n' /out/* /f /tmp > /tmp/seen
";

/// Builds in a new place, as `TestEnv` says; `step` works on it afterwards.
fn build(mut env: TestEnv, dockerfile: &str, epoch: bool) -> (Run, Image, TestEnv) {
    if epoch {
        env.set("SOURCE_DATE_EPOCH", "0");
    }
    env.write("ctx/f", "f");
    env.write("ctx/d/e/g", "g");
    env.write("ctx/Dockerfile", dockerfile);
    if dockerfile.contains("busybox") {
        env.import_busybox();
    }
    let run = env.build("-t x -o type=image -o type=oci,dest=out.tar").ok();
    let image = Image::read(&env.path("out.tar"));
    (run, image, env)
}

fn as_root_and_as_user(test: &str, dockerfile: &str) {
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root, Need::User]) {
        return;
    }
    let user = test_user().expect("looked up before");
    let (by_root, ..) = build(TestEnv::new(), dockerfile, false);
    let (by_user, image, env) = build(TestEnv::as_user(&user), dockerfile, false);
    assert_eq!(by_root.content(), by_user.content(), "content digests of root and user\n{}", by_user.shown());
    assert_ne!(by_root.content(), by_root.image());
    // The same again, cached and without cache, stays what it was.
    assert_eq!(env.build("-t x").ok().image(), by_user.image());
    assert_eq!(env.build("-t x --no-cache").ok().image(), image.id, "--no-cache moved the image id");
    let (by_root, root_image, root_env) = build(TestEnv::new(), dockerfile, true);
    let (by_user, user_image, user_env) = build(TestEnv::as_user(&user), dockerfile, true);
    assert_eq!(root_image.listing(""), user_image.listing(""));
    assert_eq!(root_image.config, user_image.config);
    assert_eq!(by_root.image(), by_user.image(), "image ids under an epoch");
    assert_eq!(root_image.digest, user_image.digest, "manifest digests under an epoch");
    for (run, env) in [(&by_root, &root_env), (&by_user, &user_env)] {
        assert_eq!(env.build("-t x --no-cache").ok().image(), run.image(), "--no-cache moved the image id");
        env.rbuild("inspect --verify x").ok();
    }
}

#[test]
fn root_and_user_copy_the_same_image() {
    as_root_and_as_user("root_and_user_copy_the_same_image", COPIES);
}

#[test]
fn root_and_user_run_the_same_image() {
    as_root_and_as_user("root_and_user_run_the_same_image", RUNS);
}

#[test]
fn umask_cores_and_locale_do_not_count() {
    let build = |umask: u32, jobs: &str, locale: &str| {
        let mut env = TestEnv::new();
        for (name, value) in [("SOURCE_DATE_EPOCH", "0"), ("LC_ALL", locale), ("LANG", locale), ("TZ", locale)] {
            env.set(name, value);
        }
        for n in 0..50 {
            env.write(&format!("ctx/many/{n}/é{n}"), n.to_string());
        }
        env.write(
            "ctx/Dockerfile",
            "FROM scratch AS a\nCOPY many /a\nFROM scratch\nWORKDIR /w\nCOPY --from=a /a .\nCOPY many /b/\n",
        );
        let rbuild = env.command(["build", "--jobs", jobs, "ctx"]);
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .args(["-c", &format!("umask {umask:04o}; exec \"$0\" \"$@\"")])
            .arg(rbuild.get_program())
            .args(rbuild.get_args());
        shell.current_dir(env.path("")).env_clear();
        shell.envs(rbuild.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        Run::of(&mut shell).ok().image()
    };
    let usual = build(0o022, "1", "C");
    assert_eq!(usual, build(0o077, "8", "tr_TR.UTF-8"));
    assert_eq!(usual, build(0o000, "2", "Asia/Kolkata"));
}

#[test]
fn a_user_without_subordinate_ids_is_told_what_to_do() {
    let test = "a_user_without_subordinate_ids_is_told_what_to_do";
    if !needs(test, &[Need::Busybox, Need::Root, Need::Run]) {
        return;
    }
    assert!(is_root(), "asked for above");
    // Nobody (65534) owns no range in /etc/subuid.
    let nobody = crate::support::machine::TestUser { uid: 65534, gid: 65534 };
    let env = TestEnv::as_user(&nobody);
    env.import_busybox();
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM busybox\nCOPY f /f\n");
    env.build("").ok().says_nothing_of("subuid");
    env.write("ctx/Dockerfile", "FROM busybox\nRUN true\n");
    let run = env.build("").ends(1).says("/etc/subuid").says_nothing_of("panicked");
    run.says("usermod --add-subuids");
}
