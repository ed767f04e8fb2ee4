//! RUN --mount of every kind, with the real program: what the command sees, what is left of it, and what a build depends
//! on. As whoever runs the tests, and for root as an ordinary user too.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::oci::Image;

/// Places with busybox in them: that of whoever runs the tests, and one of an ordinary user.
fn places(test: &str) -> Vec<TestEnv> {
    if !needs(test, &[Need::Busybox, Need::Run]) {
        return Vec::new();
    }
    let mut places = vec![TestEnv::new()];
    if needs(&format!("{test} (as an ordinary user)"), &[Need::Root, Need::User]) {
        places.push(TestEnv::as_user(&test_user().expect("looked up before")));
    }
    places.iter().for_each(TestEnv::import_busybox);
    places
}

/// What commands wrote, without what progress puts before each line.
fn output(run: &Run) -> Vec<&str> {
    let lines = run.stderr.lines().filter(|line| line.starts_with('#'));
    lines.filter_map(|line| line.splitn(3, ' ').nth(2)).collect()
}

#[track_caller]
fn wrote(run: &Run, text: &str) {
    assert!(output(run).contains(&text), "no line {text:?}\n{}", run.shown());
}

/// Names of files below `folder` that hold `bytes`.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("entries have a type");
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file()
            && std::fs::read(&path).unwrap_or_default().windows(bytes.len()).any(|window| window == bytes)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

const MOUNTS: &str = "--mount=target=new/ctx --mount=target=/etc/ctx,source=f --mount=from=made,source=out,target=/m,rw \
    --mount=type=cache,target=/var/deep/cache --mount=type=cache,target=/var/deep/cache/in/it \
    --mount=type=tmpfs,target=/tmp/t --mount=type=tmpfs,target=/home/builder,size=1m \
    --mount=type=secret,id=s --mount=type=secret,id=s,target=/etc/secret --mount=type=secret,id=s,target=/var/deep/cache/s";

#[test]
fn a_layer_does_not_show_that_something_was_mounted() {
    for env in places("a_layer_does_not_show_that_something_was_mounted") {
        env.write("ctx/f", "f");
        env.write("secret", "hunter2");
        let build = |mounts: &str, command: &str| {
            let text = format!(
                "FROM busybox AS made\nRUN mkdir /out && echo made > /out/made\n\
                 FROM busybox\nWORKDIR /work\nRUN {mounts} {command}\n"
            );
            env.write("ctx/Dockerfile", text);
            let run = env.build("-o type=oci,dest=out.tar --no-cache --secret id=s,src=secret").ok();
            (run.content(), Image::read(&env.path("out.tar")))
        };
        let touch = "echo x > /work/x && mkdir /var/other && echo mine > /etc/mine";
        let used = "cat new/ctx/f /etc/ctx /m/made /etc/secret /run/secrets/s /var/deep/cache/s > /dev/null && \
                    touch /m/more /var/deep/cache/more /var/deep/cache/in/it/more /tmp/t/x /home/builder/y";
        let (with, image) = build(MOUNTS, &format!("{used} && {touch}"));
        let top = image.top_layer();
        let (without, plain) = build("", touch);
        assert_eq!(top, plain.top_layer());
        assert_eq!(image.listing(""), plain.listing(""));
        // Their commands differ, so their histories do.
        assert_ne!(with, without);
        let (with, _) = build(MOUNTS, touch);
        assert_eq!(with, without);
        // Nothing of the places for mounts in mounts stays in a cache either.
        let mut left = Vec::new();
        for cache in std::fs::read_dir(env.store().join("mounts")).expect("caches").flatten() {
            for entry in std::fs::read_dir(cache.path().join("0")).expect("a cache").flatten() {
                left.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        assert_eq!(left, ["more", "more"]);
    }
}

#[test]
fn the_context_is_bound_as_copy_would_copy_it() {
    for env in places("the_context_is_bound_as_copy_would_copy_it") {
        env.write("ctx/.dockerignore", "hidden\n");
        for name in ["hidden", "src/a", "src/deep/b"] {
            env.write(&format!("ctx/{name}"), name);
        }
        env.mode("ctx/src/a", 0o751);
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nWORKDIR /w\n\
             RUN --mount=target=. ls -a . && stat -c '%a %u %g %n' src/a && ! touch x\n\
             RUN --mount=target=in/here,source=src --mount=target=/one,source=src/deep/b find in -type f && cat /one\n\
             RUN --mount=target=/rw,source=src,rw rm /rw/a && echo new > /rw/deep/b && mkdir /rw/d && find /rw | sort\n\
             RUN --mount=target=/rw,source=src,rw cat /rw/a /rw/deep/b && test ! -e /rw/d\n\
             RUN test ! -e /rw -a ! -e /one && ls /w | wc -l\n",
        );
        let run = env.build("").ok();
        for line in ["751 0 0 src/a", "in/here/a", "in/here/deep/b", "/rw/d", "src/asrc/deep/b", "0"] {
            assert!(run.stderr.contains(line), "{line}\n{}", run.shown());
        }
        assert!(!output(&run).contains(&"hidden") && !run.stderr.contains("/rw/a\n"), "{}", run.shown());
        // The files of the context itself are as they were.
        assert_eq!(std::fs::read(env.path("ctx/src/a")).expect("still there"), b"src/a");
        assert!(!env.path("ctx/src/d").exists());
    }
}

#[test]
fn only_what_a_mount_shows_counts() {
    for env in places("only_what_a_mount_shows_counts") {
        env.write("ctx/src/a", "1");
        env.write("ctx/other", "1");
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=source=src,target=/src cat /src/a > /made\n");
        let first = env.build("").ok();
        assert_eq!(first.cached(), 0);
        assert_eq!(env.build("").ok().cached(), 2);
        env.write("ctx/other", "2");
        env.write("ctx/new", "2");
        env.time("ctx/src/a", 1_000_000);
        assert_eq!(env.build("").ok().cached(), 2, "nothing that is mounted changed but its time");
        env.write("ctx/src/a", "2");
        let run = env.build("--explain").ok();
        assert_eq!(run.cached(), 0, "{}", run.shown());
        let run = run.says("files changed: source/a").says("what its mounts show changed");
        assert_ne!(run.image(), first.image());
        env.write("ctx/src/a", "1");
        assert_eq!(env.build("").ok().cached(), 2, "both contents are known");
        env.mode("ctx/src/a", 0o600);
        assert_eq!(env.build("").ok().cached(), 0, "a mode is visible to the command");
        // Twice at the same place, with changed content: the later one sees what is there then.
        env.write(
            "ctx/Dockerfile",
            "FROM busybox AS one\nRUN echo first > /f\nFROM one AS two\nRUN echo second > /f\n\
             FROM busybox\nRUN --mount=from=one,source=f,target=/t cat /t\nRUN --mount=from=two,source=f,target=/t cat /t\n",
        );
        let run = env.build("").ok();
        wrote(&run, "first");
        wrote(&run, "second");
        // Another command, another kind, another target, another option: told by name.
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c,id=a true\n");
        env.build("").ok();
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c,id=b true\n");
        let run = env.build("--explain").ok();
        run.says("mount at /c changed from \"type=cache,id=a,sharing=shared,read_only=false\" to");
    }
}

#[test]
fn stages_and_images_are_bound_and_count_by_content() {
    for env in places("stages_and_images_are_bound_and_count_by_content") {
        let dockerfile = |made: &str| {
            format!(
                "FROM busybox AS made\nRUN {made}\nFROM scratch AS other\nCOPY --from=made /out /\n\
                 FROM busybox\nRUN --mount=from=made,source=/link,target=/m --mount=from=other,target=/o \
                 --mount=from=busybox,source=/etc,target=/i --mount=from=scratch,target=/s \
                 cat /m/f /o/f && ls -A /s | wc -l && grep -c builder /i/passwd && ! touch /m/x /o/x /i/x /s/x\n"
            )
        };
        env.write("ctx/Dockerfile", dockerfile("mkdir /out && echo hi > /out/f && ln -s out /link"));
        let run = env.build("").ok();
        wrote(&run, "hi");
        wrote(&run, "0");
        assert_eq!(env.build("").ok().cached(), 3);
        // The stage is another one, what is mounted of it is not.
        env.write("ctx/Dockerfile", dockerfile("mkdir /out && echo hi > /out/f && ln -s out /link && echo > /else"));
        let run = env.build("").ok();
        assert_eq!(run.cached(), 2, "COPY and RUN\n{}", run.shown());
        assert_eq!(env.build("").ok().cached(), 3);
        env.write("ctx/Dockerfile", dockerfile("mkdir /out && echo ho > /out/f && ln -s out /link"));
        wrote(&env.build("").ok(), "ho");
        env.write("ctx/Dockerfile", dockerfile("mkdir /out && echo ho > /out/f"));
        env.build("").ends(1).says("\"/link\" not found in the stage or image that from= names").says("Dockerfile:6:5");
    }
}

#[test]
fn missing_files_are_told_at_the_mount() {
    for env in places("missing_files_are_told_at_the_mount") {
        env.write("ctx/source/a", "a");
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=source=sorce,target=/x true\n");
        env.build("")
            .ends(1)
            .says("\"/sorce\" not found in the build context")
            .says("did you mean \"/source\"?")
            .says("Dockerfile:2:20");
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=source=so*,target=/x true\n");
        env.build("").ends(1).says("not found");
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=source=source,target=/etc/passwd true\n");
        env.build("").ends(1).says("the image has something else than a folder at /etc/passwd");
    }
}

/// Case 5.6-67 of the semantics.
#[test]
fn a_cache_stays_from_build_to_build() {
    for env in places("a_cache_stays_from_build_to_build") {
        let build = |command: &str, args: &str| {
            env.write("ctx/Dockerfile", format!("FROM busybox\nRUN {command}\n"));
            env.build(args).ok()
        };
        build("--mount=type=cache,target=/c echo 1 >> /c/log", "");
        let run = build("--mount=type=cache,id=/c,target=/other echo 2 >> /other/log; cat /other/log", "");
        wrote(&run, "1");
        wrote(&run, "2");
        // By another user of the image, who owns it; and again, which needs no command.
        let own = "--mount=type=cache,target=/own,uid=1000,gid=1001,mode=0700";
        let text = format!("FROM busybox\nUSER builder\nRUN {own} echo 3 >> /own/log && stat -c '%a %u %g' /own\n");
        env.write("ctx/Dockerfile", &text);
        wrote(&env.build("").ok(), "700 1000 1001");
        assert_eq!(env.build("").ok().cached(), 1);
        // Read-only: what is there, and no more.
        let run = build("--mount=type=cache,target=/c,ro cat /c/log && ! touch /c/x", "");
        wrote(&run, "2");
        // --no-cache makes a cache with an owner anew, and leaves the others alone.
        env.write("ctx/Dockerfile", format!("{text}RUN {own} cat /own/log | wc -l\n"));
        wrote(&env.build("--no-cache").ok(), "1");
        let run = build("--mount=type=cache,target=/c cat /c/log", "--no-cache");
        wrote(&run, "1");
        // Another namespace is another cache.
        let run = build("--mount=type=cache,target=/c ls /c | wc -l", "--build-arg BUILDKIT_CACHE_MOUNT_NS=x");
        wrote(&run, "0");
    }
}

#[test]
fn a_cache_begins_with_its_seed() {
    for env in places("a_cache_begins_with_its_seed") {
        env.write("ctx/seed/f", "from the context");
        let dockerfile = |text: &str| {
            format!(
                "FROM busybox AS made\nRUN mkdir -p /out/d && echo {text} > /out/d/f && chown -R builder /out\n\
                 FROM busybox\nRUN --mount=type=cache,target=/c,from=made,source=/out cat /c/d/f; stat -c %U /c/d/f; ls /c; echo > /c/{text}\n"
            )
        };
        env.write("ctx/Dockerfile", dockerfile("one"));
        let run = env.build("").ok();
        wrote(&run, "one");
        wrote(&run, "builder");
        let again =
            format!("{}RUN --mount=type=cache,target=/c,from=made,source=/out cat /c/d/f; ls /c\n", dockerfile("one"));
        env.write("ctx/Dockerfile", again);
        let run = env.build("").ok();
        assert_eq!(
            output(&run).iter().filter(|line| **line == "one").count(),
            2,
            "the file and the seed\n{}",
            run.shown()
        );
        env.write("ctx/Dockerfile", dockerfile("two"));
        let run = env.build("").ok();
        wrote(&run, "two");
        assert!(!output(&run).contains(&"one"), "another seed is another cache\n{}", run.shown());
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,target=/c,from=made,source=/etc/passwd true\n"
                .replace("made", "busybox"),
        );
        env.build("").ends(1).says("/etc/passwd is no folder, and a cache is one").says("Dockerfile:2:5");
    }
}

/// Case 5.6-68 of the semantics.
#[test]
fn no_link_leads_out_of_a_cache() {
    for env in places("no_link_leads_out_of_a_cache") {
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,id=c,target=/c mkdir /c/sel && echo in > /c/sel/f\n\
             RUN --mount=type=cache,id=c,source=sel,target=/s cat /s/f\n",
        );
        wrote(&env.build("").ok(), "in");
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,id=c,target=/c rm -r /c/sel && ln -s /etc /c/sel && ls -l /c\n\
             RUN --mount=type=cache,id=c,source=sel,target=/s ls /s\n",
        );
        env.build("").ends(1).says("source \"sel\" cannot be mounted from the cache").says("Dockerfile:3:5");
    }
}

/// Two builds at once, whose commands are given `$1`: 1 or 2.
fn two_builds(env: &TestEnv, dockerfile: &str) -> [Run; 2] {
    let build = |number: usize| {
        let folder = format!("two{number}");
        env.write(&format!("{folder}/Dockerfile"), dockerfile.replace("$1", &number.to_string()));
        env.run(["build", folder.as_str()])
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| build(1));
        let second = build(2);
        [first.join().expect("no panic"), second]
    })
}

/// Waits until both commands are there.
const MEET: &str = "touch /meet/$1; for i in $(seq 500); do test -e /meet/1 -a -e /meet/2 && break; sleep 0.02; done; \
                    test -e /meet/1 -a -e /meet/2 &&";

/// Case 5.6-67 of the semantics.
#[test]
fn caches_are_shared_locked_or_private() {
    for env in places("caches_are_shared_locked_or_private") {
        let meet = "--mount=type=cache,id=meet-$N,target=/meet";
        let run = |n: &str, mount: &str, command: &str| {
            let dockerfile = format!("FROM busybox\nRUN {meet} {mount} {MEET} {command}\n").replace("$N", n);
            two_builds(&env, &dockerfile)
        };
        // Shared: both use it at once.
        for done in run("a", "--mount=type=cache,target=/c", "true") {
            done.ok();
        }
        // Private: each has its own, at the same time; later there is no need for a second one.
        let command = "echo $1 > /c/$1; ls /c | wc -l";
        for done in run("b", "--mount=type=cache,id=p,target=/c,sharing=private", command) {
            wrote(&done.ok(), "1");
        }
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,id=p,target=/c,sharing=private ls /c | wc -l\n",
        );
        wrote(&env.build("").ok(), "1");
        // Locked: one after the other, though nothing else holds them up.
        let locked = "FROM busybox\nRUN --mount=type=cache,id=l,target=/c,sharing=locked \
                      mkdir /c/lock && sleep 0.5 && rmdir /c/lock && echo $1\n";
        for done in two_builds(&env, locked) {
            done.ok();
        }
        // In one build as well, in whatever order the caches are named.
        env.write(
            "ctx/Dockerfile",
            "FROM busybox AS a\nRUN --mount=type=cache,id=x,target=/x,sharing=locked --mount=type=cache,id=y,target=/y,sharing=locked \
             mkdir /x/lock && sleep 0.2 && rmdir /x/lock && touch /a\n\
             FROM busybox AS b\nRUN --mount=type=cache,id=y,target=/y,sharing=locked --mount=type=cache,id=x,target=/x,sharing=locked \
             --mount=type=cache,id=x,target=/again,sharing=locked mkdir /again/lock && sleep 0.2 && rmdir /x/lock && touch /b\n\
             FROM a\nCOPY --from=b /b /b\n",
        );
        env.build("--jobs 4").ok();
    }
}

#[test]
fn a_killed_build_frees_its_caches() {
    for env in places("a_killed_build_frees_its_caches") {
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,id=k,target=/c,sharing=locked --mount=type=cache,id=p,target=/p,sharing=private \
             --mount=target=/ctx,rw touch /p/here; echo here >> /c/log; sleep 1000\n",
        );
        let mut build = env.command(["build", "ctx"]);
        build.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut build = build.spawn().expect("rbuild starts");
        let end = Instant::now() + Duration::from_secs(60);
        while files_with(&env.store().join("mounts"), b"here\n").is_empty() {
            assert!(Instant::now() < end, "the command does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        build.kill().expect("it runs");
        build.wait().expect("it ended");
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=cache,id=k,target=/c,sharing=locked --mount=type=cache,id=p,target=/p,sharing=private \
             cat /c/log; ls /p\n",
        );
        let run = env.build("").ok();
        assert_eq!(output(&run).iter().filter(|line| **line == "here").count(), 2, "{}", run.shown());
        let left = env.left_behind();
        assert!(left.is_empty(), "{}", left.join("\n"));
    }
}

/// Case 5.6-69 of the semantics.
#[test]
fn memory_is_gone_afterwards() {
    for env in places("memory_is_gone_afterwards") {
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=tmpfs,target=/t,size=128m --mount=type=tmpfs,target=/etc \
             grep -o '^tmpfs /t .*size=131072k' /proc/mounts && touch /t/x /etc/x && ls /etc\n\
             RUN test ! -e /t -a ! -e /etc/x -a -e /etc/passwd\n\
             RUN --mount=type=tmpfs,target=/t,ro ! touch /t/x\n",
        );
        env.build("").ok();
    }
}

/// Case 5.6-70 of the semantics.
#[test]
fn a_secret_is_seen_and_never_kept() {
    for mut env in places("a_secret_is_seen_and_never_kept") {
        env.set("TOKEN", "correct-horse-battery");
        env.write("secret", "staple-hunter2\n");
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nENV B=plain\n\
             RUN --mount=type=secret,id=a,mode=741,uid=100,gid=102,target=/x stat -c '%a %u %g' /x && cat /x && wc -c < /x\n\
             RUN --mount=type=secret,id=TOKEN,env=B --mount=type=secret,id=TOKEN,env=T,target=/t \
             echo \"have $B\" && test \"$B\" = \"$(cat /t)\" -a \"$T\" = \"$B\" -a ! -e /run/secrets\n\
             RUN --mount=type=secret,id=none --mount=type=secret,id=nothing,env=N test ! -e /run/secrets -a -z \"$N\" && echo $B\n\
             RUN test ! -e /x -a ! -e /t && env\n\
             RUN --mount=type=secret,id=a cat /run/secrets/a | rev; stat -c '%a %u' /run/secrets/a\n",
        );
        let args = "-t x -o type=oci,dest=out.tar -o type=image --metadata-file meta --secret id=a,src=secret --secret id=TOKEN";
        let run = env.build(args).ok();
        // Backwards it is not the secret any more, and shows that the file holds it.
        for line in ["741 100 102", "****", "15", "have ****", "plain", "B=plain", "2retnuh-elpats", "400 0"] {
            wrote(&run, line);
        }
        for value in ["staple-hunter2", "correct-horse-battery"] {
            assert!(!run.shown().contains(value), "{value} is shown\n{}", run.shown());
            assert!(!run.stdout.contains(value));
            assert_eq!(files_with(&env.store(), value.as_bytes()), [""; 0], "{value} is in the store");
            assert_eq!(files_with(&env.path("tmp"), value.as_bytes()), [""; 0]);
            let out = std::fs::read(env.path("out.tar")).expect("an image");
            assert!(!out.windows(value.len()).any(|window| window == value.as_bytes()), "{value} is in the image");
            assert!(!std::fs::read_to_string(env.path("meta")).expect("metadata").contains(value));
        }
        // Another value is no other step.
        env.write("secret", "something-else\n");
        assert_eq!(env.build(args).ok().cached(), 5);
        // A failing command's output is masked, too.
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=a cat /run/secrets/a; exit 3\n");
        env.build(args).ends(1).says("****").says_nothing_of("something-else");
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=TOKN,required true\n");
        env.build(args).ends(1).says("secret TOKN: not found").says("Dockerfile:2:5").says("did you mean TOKEN?");
        env.build("--secret id=b,src=nofile").ends(1).says("--secret id=b: cannot read").says("nofile");
        env.build("--secret id=b,srce=nofile").ends(2).says("did you mean src?");
    }
}

/// Case 5.6-71 of the semantics.
#[test]
fn an_agent_has_a_socket() {
    for env in places("an_agent_has_a_socket") {
        if !needs("an_agent_has_a_socket", &[Need::Program("ssh-agent"), Need::Program("ssh-keygen")]) {
            return;
        }
        // Made by root, for an ordinary user to read.
        let key = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(env.path("key"))
            .stdin(Stdio::null())
            .status();
        assert!(key.expect("ssh-keygen starts").success());
        env.give("key");
        env.write(
            "ctx/Dockerfile",
            "FROM busybox\nRUN --mount=type=ssh,id=k,mode=0660,uid=7,gid=8 --mount=type=ssh,id=k,target=/s \
             test -S /s && echo $SSH_AUTH_SOCK && stat -c '%F %a %u %g' $SSH_AUTH_SOCK\n\
             RUN --mount=type=ssh test ! -e /run/buildkit\n",
        );
        let run = env.build("--ssh k=key").ok();
        wrote(&run, "socket 660 7 8");
        assert_eq!(files_with(&env.store(), b"OPENSSH PRIVATE KEY"), [""; 0]);
        env.write("ctx/Dockerfile", "FROM busybox\nRUN --mount=type=ssh,required true\n");
        env.build("--ssh k=key").ends(1).says("ssh agent default: not found").says("Dockerfile:2:5");
        env.build("--ssh default").ends(1).says("SSH_AUTH_SOCK is not set");
        env.build("--ssh default=nothing").ends(1).says("--ssh default: cannot use");
        // Whoever may read it: as checked out of a repository, or mounted into a container.
        env.mode("key", 0o644);
        env.build("--no-cache --ssh default=key").ok();
        env.write("key2", "no key at all\n");
        env.build("--no-cache --ssh default=key2").ends(1).says("cannot use the key").says_nothing_of("passphrase");
        let locked = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "secret", "-f"])
            .arg(env.path("key3"))
            .status();
        assert!(locked.expect("ssh-keygen starts").success());
        env.give("key3");
        env.build("--no-cache --ssh default=key3").ends(1).says("cannot use the key").says("passphrase");
    }
}

#[test]
fn a_command_with_a_cache_sees_the_times_of_today() {
    for env in places("a_command_with_a_cache_sees_the_times_of_today") {
        env.write(
            "ctx/Dockerfile",
            "FROM busybox AS base\nCOPY src /src\nFROM base\nCOPY other /other\nCOPY src/f /d/\n\
             RUN --mount=type=cache,target=/c --mount=source=src,target=/b \
             echo $(stat -c %Y /src/f /b/f /d/f) in $(cat /src/f); : > /c/x\n",
        );
        env.write(
            "plain/Dockerfile",
            "FROM busybox\nCOPY src /plain\nCOPY other /other\nRUN echo times $(stat -c %Y /plain/f)\n",
        );
        let state = |text: &str, time: u64, other: &str| {
            for folder in ["ctx", "plain"] {
                env.write(&format!("{folder}/src/f"), text);
                env.write(&format!("{folder}/src/g"), "g");
                env.time(&format!("{folder}/src/f"), time);
                env.time(&format!("{folder}/src/g"), 500);
                env.time(&format!("{folder}/src"), 700);
                env.write(&format!("{folder}/other"), other);
            }
            let run = env.build("-o type=image -o type=oci,dest=out.tar").ok();
            (run, Image::read(&env.path("out.tar")))
        };
        wrote(&state("A", 1000, "1").0, "1000 1000 1000 in A");
        wrote(&env.rbuild("build plain").ok(), "times 1000");
        wrote(&state("B", 2000, "1").0, "2000 2000 2000 in B");
        // The old content, in a file that is newer than what was made of the other one.
        let (run, image) = state("A", 3000, "2");
        wrote(&run, "3000 3000 3000 in A");
        assert_eq!(run.cached(), 3, "two COPYs and what is mounted\n{}", run.shown());
        let tree = image.tree();
        assert_eq!((tree["src/f"].mtime, tree["d/f"].mtime), (3000, 3000), "the times that the command saw");
        // Without a cache the layer is the one that is known.
        wrote(&env.rbuild("build plain").ok(), "times 1000");
        let again = env.build("").ok();
        assert_eq!((again.cached(), again.image()), (5, run.image()), "{}", again.shown());
        // Nothing runs, so nothing is dated.
        let (run, _) = state("A", 4000, "2");
        assert_eq!((run.cached(), run.image()), (5, again.image()));
    }
}
