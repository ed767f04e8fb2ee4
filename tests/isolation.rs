//! `--isolation chroot`: RUN in a copy of its file system, where namespaces and mounts are not allowed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::base::busybox;
use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::oci::Image;

/// Something of all that a command can leave, and what may not be left of what it needed.
const DOCKERFILE: &str = r#"FROM busybox
RUN mkdir -p /d/sub /e && echo 1 > /d/a && echo 2 > /d/sub/b && ln /d/a /d/link && ln -s a /d/soft && echo 3 > /e/x
RUN rm /d/sub/b && chmod 600 /d/a && mv /e /f && mkdir /e && echo new > /e/y
RUN rm -r /d && mkdir -p /d/sub && touch /d/sub/c && rm /etc/motd && mkfifo /pipe && chown 12:34 /f
RUN test -c /dev/null && echo lost > /dev/null && : > /dev/made && grep -q localhost /etc/hosts && test -s /etc/resolv.conf
RUN touch /etc && id -u > /who && pwd >> /who && echo $HOME >> /who
USER builder
WORKDIR /home/builder
RUN id -u > ids; id -G >> ids; pwd >> ids; echo $HOME >> ids; umask >> ids
USER root
RUN <<END
#!/bin/sh
echo "from $0" > /script
END
RUN cp -a /d /copy && echo x >> /f/x && true
FROM scratch
COPY --from=0 /bin /bin
COPY --from=0 / /all
RUN ["/bin/busybox", "touch", "/made"]
"#;

fn build(env: &TestEnv, flags: &str) -> (Run, Image) {
    let run = env.build(&format!("{flags} -o type=oci,dest=out.tar")).ok();
    (run, Image::read(&env.path("out.tar")))
}

/// rbuild without the right to make namespaces or to mount, as root in most containers.
fn unprivileged(env: &TestEnv, line: &str) -> Command {
    wrapped(env, line, &["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"])
}

/// rbuild, started by another program.
fn wrapped(env: &TestEnv, line: &str, by: &[&str]) -> Command {
    let rbuild = env.command(line.split_whitespace());
    let mut command = Command::new(by[0]);
    command.args(&by[1..]);
    command.arg(rbuild.get_program()).args(rbuild.get_args());
    command.current_dir(env.path("")).env_clear();
    command.envs(rbuild.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn a_copy_gives_the_layers_that_namespaces_give() {
    if !needs("a_copy_gives_the_layers_that_namespaces_give", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let (one, other, bare) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    for env in [&one, &other, &bare] {
        env.import_busybox();
        env.write("ctx/Dockerfile", DOCKERFILE);
    }
    let (usual, image) = build(&one, "--isolation namespace");
    let (copied, second) = build(&other, "--isolation chroot");
    assert_eq!(image.listing(""), second.listing(""));
    assert_eq!(usual.content(), copied.content(), "{}", copied.shown());
    let listing = second.listing("");
    assert!(!listing.contains("all/dev/null") && !listing.contains("proc/") && listing.contains("made"), "{listing}");
    // What one made, the other has in its cache: how a command is contained is in no key.
    let (again, _) = build(&other, "--isolation namespace");
    assert_eq!(again.cached(), 12, "{}", again.shown());
    // Where there are no rights for more, the usual way leads there by itself, and says so once.
    let run = Run::of(&mut unprivileged(&bare, "build --progress plain ctx")).ok();
    assert_eq!(run.content(), usual.content(), "{}", run.shown());
    assert_eq!(run.stderr.matches("RUN is contained by a root directory alone").count(), 1, "{}", run.shown());
    let refused = Run::of(&mut unprivileged(&bare, "build --no-cache --isolation namespace ctx")).ends(1);
    refused.says("rbuild may not make namespaces and mounts here");
    Run::of(&mut unprivileged(&bare, "info")).ok();
    let info = Run::of(&mut unprivileged(&bare, "info"));
    assert!(info.stdout.contains("isolation:") && info.stdout.contains("chroot: "), "{}", info.shown());
}

/// The processes whose arguments have this word.
fn processes(word: &str) -> usize {
    let has = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    };
    std::fs::read_dir("/proc").expect("readable").filter_map(Result::ok).filter(has).count()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_of_a_command_in_a_copy_lives_on() {
    if !needs("nothing_of_a_command_in_a_copy_lives_on", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    let marker = format!("{}.25", 200_000 + std::process::id());
    let background = format!(
        "FROM busybox\nUSER builder\nRUN sleep {marker} & setsid sh -c 'sleep {marker} & sleep {marker}' & exit 0\n"
    );
    env.write("ctx/Dockerfile", &background);
    env.build("--isolation chroot").ok();
    assert_eq!(processes(&marker), 0, "left by the command");
    for signal in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
        env.write("ctx/Dockerfile", background.replace("exit 0", &format!("sleep {marker}")));
        let mut child = env.command(["build", "--isolation", "chroot", "ctx"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rbuild starts");
        eventually("four of them run", || processes(&marker) == 4);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).expect("it runs");
        child.wait().expect("it ended");
        eventually("all of them are gone", || processes(&marker) == 0);
    }
    // Whoever watches over it can be killed, by the command or for want of memory.
    env.write(
        "ctx/Dockerfile",
        format!("FROM busybox\nRUN (setsid sleep {marker} &); while :; do sleep 0.1; kill -9 $PPID; done\n"),
    );
    let began = Instant::now();
    env.build("--isolation chroot").ends(1).says("killed from outside (signal 9)");
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for what the command left");
    assert_eq!(processes(&marker), 0, "left by a command whose watcher is gone");
    env.write("ctx/Dockerfile", "FROM busybox\nRUN exit 3\n");
    env.build("--isolation chroot").ends(1).says("exit code: 3");
    env.write("ctx/Dockerfile", "FROM busybox\nRUN kill -9 $$\n");
    env.build("--isolation chroot").ends(1).says("did not complete successfully");
    env.write("ctx/Dockerfile", "FROM busybox\nRUN [\"/none\"]\n");
    env.build("--isolation chroot").ends(1).says("no such file or directory");
    let left = env.left_behind();
    assert!(left.is_empty(), "{}", left.join("\n"));
}

/// Bases whose /dev, /proc and /etc are not as usual, and commands that move what the machine put in.
const ODD: &str = "FROM busybox AS tools
FROM scratch
COPY --from=tools /bin /bin
COPY odd/ /
RUN [\"/bin/busybox\", \"sh\", \"-c\", \"busybox test -c /dev/null && echo lost >/dev/null && echo kept >/made\"]
FROM scratch
COPY --from=tools /bin /bin
COPY odder/ /
RUN [\"/bin/busybox\", \"sh\", \"-c\", \"busybox test -c /dev/null && busybox touch /dev/shm/x && echo kept >/made\"]
COPY --from=1 / /one
";

const MOVED: &str = "FROM busybox
RUN mkdir /keep && mv /dev /dev2; mv /etc /etc2; mv /proc /sys /keep/; rm -f /etc2/hosts; true
RUN rm -f /dev/null /dev/zero; for i in 1 2 3 4 5 6 7 8 9; do echo $i > /file$i; done
FROM scratch
COPY --from=busybox /bin /bin
RUN [\"/bin/busybox\", \"mv\", \"/etc\", \"/etc3\"]
";

/// Where mounts are allowed, a command in a copy changes nothing of the machine by mistake.
#[test]
fn the_machine_is_kept_from_a_command_in_a_copy() {
    if !needs("the_machine_is_kept_from_a_command_in_a_copy", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    let script = "FROM busybox
RUN mknod -m 666 /z c 1 5 && ln -s /z /l
USER 65534
RUN ! head -c 1 /z 2>/dev/null
USER 0
RUN ! head -c 1 /l 2>/dev/null && mknod /dev/z c 1 5 && ! head -c 1 /dev/z 2>/dev/null
RUN echo x >/dev/null && head -c 9 /dev/urandom >/dev/null && ! (echo x >/dev/full) 2>/dev/null
RUN ! (cat /proc/sys/vm/swappiness >/proc/sys/vm/swappiness) 2>/dev/null
RUN test -d /proc/self && test ! -s /proc/keys && test $(hostname) = buildkitsandbox && grep -q $(hostname) /etc/hosts
";
    env.write("ctx/Dockerfile", script);
    env.build("--isolation chroot").ok();
    // Where they are not, at least the six of /dev are there.
    let plain = "FROM busybox\nRUN echo x >/dev/null && head -c 9 /dev/urandom >/dev/null && test ! -e /proc/self\n";
    env.write("ctx/Dockerfile", plain);
    Run::of(&mut unprivileged(&env, "build --isolation chroot --progress plain ctx")).ok();
}

#[test]
fn nothing_of_the_machine_is_left_wherever_it_was_put() {
    if !needs("nothing_of_the_machine_is_left_wherever_it_was_put", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    env.link("ctx/odd/dev", "run/dev");
    env.write("ctx/odd/run/mine", "");
    env.link("ctx/odder/dev/shm", "/run/shm");
    env.write("ctx/odder/dev/null/file", "the base's");
    env.write("ctx/odder/dev/file", "the base's");
    env.write("ctx/odder/proc/file", "the base's");
    env.write("ctx/Dockerfile", ODD);
    let (usual, image) = build(&env, "--no-cache --isolation namespace");
    let (copied, second) = build(&env, "--no-cache --isolation chroot");
    assert_eq!(image.listing(""), second.listing(""));
    assert_eq!(usual.content(), copied.content(), "{}", copied.shown());
    assert!(second.listing("").contains("dev/null/file"), "{}", second.listing(""));
    env.write("ctx/Dockerfile", MOVED);
    for target in ["0", "1"] {
        let (_, image) = build(&env, &format!("--no-cache --isolation chroot --target {target}"));
        let listing = image.listing("");
        let foreign =
            ["null", "hosts", "hostname", "resolv.conf", "stdin", "shm", "dev2", "etc3", "keep/proc", "keep/sys"];
        for path in image.tree().keys().filter(|path| !path.starts_with("bin/")) {
            assert!(!foreign.iter().any(|name| path.ends_with(name)), "{path}: {listing}");
        }
        assert_eq!(target == "0", listing.contains("etc2/passwd") && listing.contains("file9"), "{listing}");
    }
}

/// A store on an overlay can have no overlay of its own. That is no reason to contain RUN less, nor what an ordinary user
/// could do better by a copy.
#[test]
fn what_is_not_forbidden_is_no_reason_for_a_copy() {
    if !needs("what_is_not_forbidden_is_no_reason_for_a_copy", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let mut places = vec![(TestEnv::new(), "")];
    if needs("what_is_not_forbidden_is_no_reason_for_a_copy", &[Need::User]) {
        let user = test_user().expect("asked for above");
        let become_user =
            format!("setpriv --reuid {} --regid {} --clear-groups --inh-caps -all --", user.uid, user.gid);
        places.push((TestEnv::as_user(&user), become_user.leak()));
    }
    for (mut env, become_user) in places {
        env.write("ctx/busybox", busybox().expect("asked for above").1);
        env.mode("ctx/busybox", 0o755);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"true\"]\n");
        for folder in ["below", "upper", "work", "mnt"] {
            env.directory(&env.path(folder));
        }
        env.set("RBUILD_ROOT", env.path("mnt/store").to_str().expect("text"));
        let mount = "mount -t overlay overlay -o lowerdir=below,upperdir=upper,workdir=work mnt";
        let script = format!("{mount} && exec {become_user} \"$@\"");
        let run = Run::of(&mut wrapped(&env, "build ctx", &["unshare", "-m", "sh", "-c", &script, "sh"])).ends(1);
        run.says("mount overlay").says("put the store on ext4").says_nothing_of("root directory alone");
    }
}

/// A `pasta` that does not come to an end keeps nobody waiting, nor do its children.
#[test]
fn a_network_that_hangs_is_given_up() {
    if !needs("a_network_that_hangs_is_given_up", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        eprintln!("skipped in part: a_network_that_hangs_is_given_up: /dev/net/tun cannot be opened");
        return;
    }
    let mut env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/Dockerfile", "FROM busybox\nRUN true\n");
    let marker = format!("{}.75", 300_000 + std::process::id());
    env.write("bin/pasta", format!("#!/bin/sh\necho oh dear >&2\n/bin/sleep {marker} &\n/bin/sleep {marker}\n"));
    env.mode("bin/pasta", 0o755);
    env.set("PATH", &format!("{}:{}", env.path("bin").display(), std::env::var("PATH").unwrap_or_default()));
    let end_them = || {
        // What a program leaves that is not rbuild's; by its arguments, which nobody else has.
        let found = std::fs::read_dir("/proc").expect("readable").filter_map(Result::ok);
        for entry in found {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if line == format!("/bin/sleep\0{marker}\0").as_bytes()
                && let Some(process) = number.and_then(rustix::process::Pid::from_raw)
            {
                rustix::process::kill_process(process, rustix::process::Signal::KILL).ok();
            }
        }
    };
    let mut child = env.command(["build", "--network", "private", "ctx"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rbuild starts");
    eventually("pasta hangs", || processes(&marker) == 2);
    let began = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("it runs");
    eventually("it ended", || child.try_wait().expect("a child").is_some());
    let (took, code) = (began.elapsed(), child.wait().expect("it ended").code());
    end_them();
    assert_eq!(code, Some(130));
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    let began = Instant::now();
    let run = env.build("--network private");
    let took = began.elapsed();
    end_them();
    run.ends(1).says("pasta made no route within").says("oh dear");
    assert!(took < Duration::from_secs(25), "it took {took:?}");
    // What is not allowed is named, with what to do.
    let run = Run::of(&mut unprivileged(&env, "build --network private ctx")).ends(1);
    run.says("(--network private): unshare: Operation not permitted").says("rbuild may not make namespaces");
    eventually("nothing is left", || processes(&marker) == 0);
}

#[test]
fn what_takes_namespaces_is_refused_by_name() {
    if !needs("what_takes_namespaces_is_refused_by_name", &[Need::Root, Need::Busybox]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    for (line, says) in [
        ("RUN --mount=type=cache,target=/c true", "not supported with --isolation chroot: RUN --mount"),
        ("RUN --network=none true", "not supported with --isolation chroot: RUN without a network"),
    ] {
        env.write("ctx/Dockerfile", format!("FROM busybox\n{line}\n"));
        env.build("--isolation chroot").ends(1).says(says).says("Dockerfile:2:");
    }
    env.write("ctx/Dockerfile", "FROM busybox\nRUN true\n");
    for (flags, says) in [
        ("--network none", "--network none, which takes a namespace"),
        ("--network private", "--network private, which takes a namespace"),
        ("--shell-at 2", "whose terminal takes a mount"),
        ("--shm-size 1m", "--shm-size, which takes a mount"),
    ] {
        env.build(&format!("--isolation chroot {flags}")).ends(2).says(says);
    }
    env.build("--isolation chroot --shm-size 64m").ok();
    let name = "--build-arg BUILDKIT_SANDBOX_HOSTNAME=box";
    env.build(&format!("--isolation chroot {name}"))
        .ends(1)
        .says("chroot: BUILDKIT_SANDBOX_HOSTNAME")
        .says("Dockerfile:2:");
    // What leads there by itself goes on, and says it.
    let run = Run::of(&mut unprivileged(&env, &format!("build --shm-size 1m {name} --progress plain ctx"))).ok();
    run.says("rbuild may not make namespaces and mounts here").says("--shm-size and BUILDKIT_SANDBOX_HOSTNAME");
    let bare = ["setpriv", "--bounding-set", "-sys_admin,-mknod", "--inh-caps", "-sys_admin,-mknod", "--"];
    let info = Run::of(&mut wrapped(&env, "info", &bare));
    assert!(info.stdout.contains("none (RUN cannot be carried out here)"), "{}", info.shown());
    assert!(info.stdout.contains("mknod: Operation not permitted"), "{}", info.shown());
}
