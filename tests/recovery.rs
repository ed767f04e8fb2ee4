//! Stores that something went wrong with: a power cut, a full disk, a read-only file system.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{self, Need, needs};

const DOCKERFILE: &str = "FROM busybox AS one
RUN mkdir /d && echo 1 > /d/one && rm /etc/motd
COPY f /f

FROM busybox
WORKDIR /w
COPY --from=one /d /f ./
RUN cat one f > all
";

/// Files below `folder`, component-wise in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// All that a build makes, as its lease would list it, and what was there before.
fn made(env: &TestEnv) -> Vec<String> {
    let mut paths = Vec::new();
    for folder in ["blobs/sha256", "layers", "trees"] {
        for entry in fs::read_dir(env.store().join(folder)).expect("a folder of the store").flatten() {
            paths.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
        }
    }
    for file in files(&env.store().join("cache")) {
        let relative = file.strip_prefix(env.store()).expect("it was found there");
        if !relative.starts_with("cache/files") {
            paths.push(relative.display().to_string());
        }
    }
    paths
}

#[test]
fn after_a_power_cut_the_next_build_is_right() {
    if !needs("after_a_power_cut_the_next_build_is_right", &[Need::Busybox, Need::Run]) {
        return;
    }
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.import_busybox();
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", DOCKERFILE);
    let before = made(&env);
    // In turn every third file that the build made is empty, or cut in half, as if its data had never been written.
    // Round 6 damages nothing, and suspects all that is there.
    for round in 0..7 {
        let right = env.build("-t x").ok();
        env.run(["rmi", "x"]).ok();
        let made: Vec<String> = made(&env).into_iter().filter(|path| round == 6 || !before.contains(path)).collect();
        let mut damaged = 0;
        for path in &made {
            let path = env.store().join(path);
            let inside = if path.is_dir() { files(&path) } else { vec![path] };
            for (number, file) in inside.iter().enumerate() {
                if round < 6 && (number + damaged) % 3 == round % 3 {
                    let Ok(bytes) = fs::read(file) else { continue };
                    let Ok(()) = fs::write(file, &bytes[..if round < 3 { 0 } else { bytes.len() / 2 }]) else {
                        continue;
                    };
                }
                damaged += 1;
            }
        }
        let lines: String = made.iter().map(|path| format!("made {path}\n")).collect();
        env.write("store/leases/build-before", format!("boot another\n{lines}"));
        env.write("store/tmp/build-before/0", "half a file");
        let next = env.build("-t x");
        assert_eq!(next.code, Some(0), "round {round}\n{}", next.shown());
        assert_eq!((next.image(), next.content()), (right.image(), right.content()), "round {round}\n{}", next.shown());
        assert_eq!(next.stderr.contains("damaged files"), round < 6, "round {round}\n{}", next.shown());
        env.run(["inspect", "--verify", "x"]).ok();
        let left = env.left_behind();
        assert!(left.is_empty(), "round {round}: left behind\n{}", left.join("\n"));
    }
}

#[test]
fn unfinished_small_files_go_with_the_next_build() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    env.build("-t x").ok();
    env.write("store/tmp/.tmpAbCdEf", "half of images.j");
    env.build("-t x").ok();
    let left = env.left_behind();
    assert!(left.is_empty(), "left behind\n{}", left.join("\n"));
}

/// Runs a script in a mount namespace of its own, in which `store` is a file system of this size.
fn in_small_store(env: &TestEnv, size: &str, script: &str) -> Run {
    fs::create_dir_all(env.store()).expect("a folder in the test's folder");
    let mut command = env.command(["--mount", "--propagation", "private", "sh", "-euc"]);
    let rbuild = command.get_program().to_owned();
    let mut shell = std::process::Command::new("unshare");
    shell.args(command.get_args()).current_dir(env.path("")).env_clear();
    shell.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    shell.env("RB", rbuild);
    shell.arg(format!("mount -t tmpfs -o size={size} small store\n{script}"));
    command.stdin(std::process::Stdio::null());
    Run::of(&mut shell)
}

#[test]
fn a_full_disk_is_said_and_survived() {
    if !needs("a_full_disk_is_said_and_survived", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    assert!(machine::is_root(), "asked for above");
    let env = TestEnv::new();
    env.write("busybox.tar", crate::support::base::root_tar());
    env.write("copy/f", vec![b'x'; 20 << 20]);
    env.write("copy/Dockerfile", "FROM busybox\nCOPY f /f\n");
    env.write("run/Dockerfile", "FROM busybox\nRUN head -c 20000000 /dev/zero | tr '\\0' x > /f\n");
    env.write("small/Dockerfile", "FROM busybox\nRUN echo 1 > /f\n");
    let run = in_small_store(
        &env,
        "12m",
        "\"$RB\" import busybox.tar busybox
        for project in copy run; do
            if \"$RB\" build -t x $project; then echo \"$project did not fail\"; fi
            find store/tmp store/leases store/trash -mindepth 1
        done
        \"$RB\" build -t x small 2> /dev/null
        dd if=/dev/zero of=store/rest bs=4k 2> /dev/null || true
        if \"$RB\" build -t y --no-cache small; then echo 'a full disk did not fail'; fi
        rm store/rest
        \"$RB\" build -t y --no-cache small 2> /dev/null
        \"$RB\" inspect --verify x y > /dev/null
        find store/tmp store/leases store/trash -mindepth 1",
    )
    .ok();
    assert_eq!(run.stdout.lines().skip(1).collect::<Vec<_>>(), [""; 0], "{}", run.shown());
    run.says("No space left on device").says_nothing_of("panicked");
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    if !needs("a_store_that_cannot_be_written_is_named", &[Need::Root, Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let run = in_small_store(
        &env,
        "12m",
        "\"$RB\" build -t x ctx 2> /dev/null
        mount -o remount,ro store
        \"$RB\" images > /dev/null
        if \"$RB\" build -t x ctx; then echo 'cached: no error'; fi
        if \"$RB\" build --no-cache ctx; then echo 'not cached: no error'; fi",
    )
    .ok();
    assert_eq!(run.stdout, "", "{}", run.shown());
    run.says("Read-only file system").says("/store").says_nothing_of("panicked");
}
