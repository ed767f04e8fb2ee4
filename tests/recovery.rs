//! Stores that something went wrong with: a power cut, a full disk, a read-only file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::base::{RootTar, root_tar};
use crate::support::env::{Run, TestEnv};
use crate::support::machine::{self, Need, needs};
use crate::support::oci::sha256;

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
        let mut seen = 0;
        for path in &made {
            let path = env.store().join(path);
            let inside = if path.is_dir() { files(&path) } else { vec![path] };
            for (number, file) in inside.iter().enumerate() {
                if round < 6 && (number + seen) % 3 == round % 3 {
                    let Ok(bytes) = fs::read(file) else { continue };
                    let Ok(()) = fs::write(file, &bytes[..if round < 3 { 0 } else { bytes.len() / 2 }]) else {
                        continue;
                    };
                }
                seen += 1;
            }
        }
        let lines: String = made.iter().map(|path| format!("made {path}\n")).collect();
        // Its last line is cut short.
        let torn =
            ["made", "made ", "made layers", "made blobs/sha256", "made cache", "made cache/records", "made trees/"];
        env.write("store/leases/build-before", format!("boot another\n{lines}{}", torn[round]));
        env.write("store/tmp/build-before/0", "half a file");
        let next = env.build("-t x");
        assert_eq!(next.code, Some(0), "round {round}\n{}", next.shown());
        assert_eq!((next.image(), next.content()), (right.image(), right.content()), "round {round}\n{}", next.shown());
        assert_eq!(next.stderr.contains("of the store were removed"), round < 6, "round {round}\n{}", next.shown());
        env.run(["inspect", "--verify", "x"]).ok();
        let left = env.left_behind();
        assert!(left.is_empty(), "round {round}: left behind\n{}", left.join("\n"));
    }
}

#[test]
fn what_is_written_beside_a_suspect_costs_no_more_than_it() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    env.write("f.tar", RootTar::new().finish());
    let right = env.build("-t x").ok();
    // Lines that were cut short, that nobody wrote, or that are no text.
    let mut lists: Vec<Vec<u8>> =
        ["layers", "blobs", "blobs/sha256", "trees/", "cache", "cache/records", "", ".", "../ctx"]
            .iter()
            .map(|place| place.as_bytes().to_vec())
            .collect();
    lists.push(b"layers/\xff".to_vec());
    for list in lists {
        env.write("store/suspects", [&list[..], b"\n"].concat());
        env.write("store/leases/build-before", [b"boot other\nby 1\nmade ", &list[..]].concat());
        let shown = String::from_utf8_lossy(&list).into_owned();
        let again = env.build("-t x").ok().says_nothing_of("of the store w");
        assert_eq!((again.image(), again.cached()), (right.image(), 1), "{shown}\n{}", again.shown());
        env.rbuild("import f.tar y").ok();
        env.rbuild("prune -f").ok();
        env.rbuild("inspect --verify x").ok();
    }
}

#[test]
fn what_cannot_be_read_stops_no_command() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let commands: [&[&str]; 3] =
        [&["build -t x ctx"], &["prune -f", "build -t x ctx"], &["prune --everything -f", "build -t x ctx"]];
    for (round, commands) in (0..2).flat_map(|round| commands.map(|commands| (round, commands))) {
        env.build("-t x").ok();
        // As where the disk has a fault: a read fails.
        let mut notes = String::new();
        for folder in ["blobs/sha256", "layers"] {
            for entry in fs::read_dir(env.store().join(folder)).expect("a folder of the store").flatten() {
                let place = if folder == "layers" { entry.path().join("tar") } else { entry.path() };
                fs::remove_file(&place).expect("a file of the store");
                std::os::unix::fs::symlink("/proc/self/mem", &place).expect("a link");
                notes.push_str(&format!("{folder}/{}\n", entry.file_name().to_string_lossy()));
            }
        }
        if round == 0 {
            env.write("store/suspects", notes);
            commands.iter().for_each(|command| drop(env.rbuild(command).ok()));
            env.rbuild("inspect --verify x").ok();
            continue;
        }
        // Who meets it says so, and notes it: first the manifest, then what that leads to.
        env.rbuild("inspect --verify x").ends(1).says("x is damaged");
        let heals = || {
            commands.iter().for_each(|command| drop(env.rbuild(command)));
            env.rbuild("inspect --verify x").code == Some(0)
        };
        assert!((0..3).any(|_| heals()), "{commands:?}: {}", env.rbuild("inspect --verify x").shown());
    }
}

/// An archive with an image of two layers; the upper one has files alone, and so is no tree without the lower one.
fn archive_on_parents(name: &str) -> Vec<u8> {
    let mut upper = RootTar::new();
    for number in 0..300 {
        upper.file(&format!("opt/d/{number}"), 0o644, b"text");
    }
    let layers = [root_tar().to_vec(), upper.finish()];
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": diff_ids});
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({"architecture": machine, "os": "linux", "rootfs": rootfs});
    let manifest = serde_json::json!([{"Config": "config", "RepoTags": [name], "Layers": ["lower", "upper"]}]);
    let mut archive = RootTar::new();
    archive.file("config", 0o644, config.to_string().as_bytes());
    archive.file("lower", 0o644, &layers[0]);
    archive.file("upper", 0o644, &layers[1]);
    archive.file("manifest.json", 0o644, manifest.to_string().as_bytes());
    archive.finish()
}

#[test]
fn no_tree_is_taken_from_under_a_running_build() {
    if !needs("no_tree_is_taken_from_under_a_running_build", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("app.tar", archive_on_parents("app:1"));
    env.rbuild("load -i app.tar").ok();
    let tree = || fs::read_dir(env.store().join("trees")).expect("a folder").flatten().next().expect("a tree").path();
    env.write(
        "ctx/Dockerfile",
        "FROM app:1\nRUN ls /opt/d | wc -l > /seen; sleep 5; ls /opt/d | wc -l >> /seen\nFROM scratch\nCOPY --from=0 /seen /\n",
    );
    std::thread::scope(|scope| {
        let build = scope.spawn(|| env.build("-o out"));
        let begun = Instant::now();
        while !files(&env.store().join("tmp")).iter().any(|file| file.ends_with("seen")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the command does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        fs::write(tree().join("tree/opt/d/77"), "other").expect("a file of this user");
        env.rbuild("inspect --verify app:1").ends(1).says("opt/d/77");
        env.rbuild("prune -f").ok();
        assert!(tree().exists(), "a build works with it");
        build.join().expect("it does not panic")
    })
    .ok();
    assert_eq!(fs::read_to_string(env.path("out/seen")).expect("what it saw"), "300\n300\n");
    env.rbuild("prune -f").ok().says("1 damaged file of the store was removed");
    assert_eq!(fs::read_dir(env.store().join("trees")).expect("a folder").count(), 0, "now it may go");
    env.rbuild("inspect --verify app:1").ok();
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

/// Runs a script in a mount namespace of its own, in which `store` is a file system of this size. An ordinary user is root
/// of a user namespace there: others cannot mount.
fn in_small_store(env: &TestEnv, size: &str, script: &str) -> Run {
    fs::create_dir_all(env.store()).expect("a folder in the test's folder");
    let user: &[&str] = if machine::is_root() { &[] } else { &["--user", "--map-root-user", "--map-auto"] };
    let words = user.iter().chain(&["--mount", "--propagation", "private", "sh", "-euc"]);
    let mut command = env.command(words);
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
    if !needs("a_full_disk_is_said_and_survived", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("busybox.tar", root_tar());
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
fn a_full_disk_stops_nothing_for_good() {
    let test = "a_full_disk_stops_nothing_for_good";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Program("docker-registry")]) {
        return;
    }
    let registry = crate::support::registry::Registry::start("", "");
    let pulled = format!("{}/team/pulled:1", registry.host());
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.set("PULLED", &pulled);
    env.import_busybox();
    env.write("ctx/f", "text ".repeat(20_000));
    env.write(
        "ctx/Dockerfile",
        "FROM busybox AS one\nCOPY f /f\nRUN cp /f /g && rm /etc/motd\nFROM one\nCOPY --from=one /g /h\n",
    );
    for (name, tag) in [("pulled", pulled.as_str()), ("loaded", "loaded:1")] {
        env.write(&format!("{name}/f"), name.repeat(40_000));
        env.write(&format!("{name}/Dockerfile"), "FROM scratch\nCOPY f /f\n");
        env.run(["build", "-t", tag, name]).ok();
    }
    env.run(["push", &pulled]).ok();
    env.rbuild("save -o loaded.tar loaded:1").ok();
    env.empty_store();
    let run = in_small_store(
        &env,
        "1m",
        r#"umount store
        commands() {
            "$1" import "$RB" import busybox.tar busybox
            "$1" load "$RB" load -i loaded.tar
            "$1" pull "$RB" pull "$PULLED"
            "$1" build "$RB" build -t x ctx
            "$1" output "$RB" build -o type=oci,dest=out.tar ctx
            "$1" tag "$RB" tag busybox other
            "$1" prune "$RB" image prune -f
        }
        may_fail() {
            what=$1; shift
            "$@" >said 2>&1 || grep -q -e 'No space left on device' -e 'o such image' -e 'there is no image' said ||
                { echo "$size: $what failed otherwise"; cat said; }
            ! grep -q -e panicked -e 'is damaged' said || { echo "$size: $what"; cat said; }
            find store/tmp store/leases store/trash -mindepth 1 2>/dev/null || true
        }
        must_not_fail() {
            what=$1; shift
            "$@" >said 2>&1 || { echo "$size: $what fails for good"; cat said; }
        }
        for size in 8 40 100 300 700 1500 2100 2300 3000 4200 4500 4600 4700 4800 4900 5000 5200 5600 6400; do
            mount -t tmpfs -o "size=${size}k" small store
            commands may_fail
            mount -o remount,size=64m store
            commands must_not_fail
            "$RB" inspect --verify x busybox loaded:1 "$PULLED" >said 2>&1 || { echo "$size: not whole"; cat said; }
            find store/tmp store/leases store/trash -mindepth 1
            umount store
        done
        mount -t tmpfs -o size=64m small store"#,
    )
    .ok();
    assert_eq!(run.stdout, "", "{}", run.shown());
}

#[test]
fn on_a_full_disk_room_can_be_made() {
    if !needs("on_a_full_disk_room_can_be_made", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("busybox.tar", root_tar());
    env.write("big/f", vec![b'x'; 3 << 20]);
    env.write("big/Dockerfile", "FROM busybox\nCOPY f /f\nRUN cp /f /g\n");
    let run = in_small_store(
        &env,
        "24m",
        r#""$RB" import busybox.tar busybox >/dev/null
        fill() { dd if=/dev/zero of=store/rest bs=4k 2>/dev/null || true; }
        "$RB" build big 2>/dev/null
        fill
        "$RB" images >/dev/null
        "$RB" df >/dev/null
        "$RB" prune -f >said || { echo 'prune fails'; cat said; }
        grep -q '^Deleted Images:' said || cat said
        rm store/rest
        "$RB" build -t x big 2>/dev/null
        fill
        "$RB" prune -af >said || { echo 'prune -a fails'; cat said; }
        grep -q '^untagged: x:latest' said || cat said
        rm -f store/rest
        "$RB" import busybox.tar busybox >/dev/null
        for order in 'prune -f' 'prune -af'; do
            for list in suspects leases/build-before; do
                "$RB" build -t x big 2>/dev/null
                [ $list = suspects ] || printf 'boot other\nby 1\n' >store/$list
                for layer in store/layers/*; do
                    if [ $list = suspects ]; then echo "${layer#store/}"; else echo "made ${layer#store/}"; fi >>store/$list
                done
                fill
                "$RB" $order >said 2>&1 || { echo "$order fails with $list"; cat said; }
                grep -q 'files were removed unread' said || cat said
                [ ! -e store/$list ] || echo "$list is left"
                rm store/rest
                "$RB" import busybox.tar busybox >/dev/null
            done
        done
        "$RB" build -t x big 2>/dev/null
        ls -d store/layers/* | sed 's,^store/,,' >store/suspects
        fill
        "$RB" prune --everything -f >said || { echo 'prune --everything fails'; cat said; }
        [ ! -e store/rest ] || echo 'something is left'
        "$RB" import busybox.tar busybox >/dev/null
        find store/tmp store/leases store/trash -mindepth 1"#,
    )
    .ok();
    assert_eq!(run.stdout, "", "{}", run.shown());
    run.says_nothing_of("panicked");
}

#[test]
fn a_full_disk_leaves_no_half_of_an_output() {
    if !needs("a_full_disk_leaves_no_half_of_an_output", &[Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("ctx/f", vec![b'x'; 3 << 20]);
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\n");
    let run = in_small_store(
        &env,
        "64m",
        r#""$RB" build -t x ctx 2>/dev/null
        mkdir out
        mount -t tmpfs -o size=2m small out
        for spec in type=oci,compression=uncompressed type=docker type=tar; do
            echo before >out/a.tar
            if "$RB" build -o "$spec,dest=out/a.tar" ctx 2>said; then echo "$spec did not fail"; fi
            grep -q 'No space left on device' said && grep -q out/a.tar said || { echo "$spec"; cat said; }
            [ "$(cat out/a.tar)" = before ] || echo "$spec replaced what was there"
            rm out/a.tar
            ls -A out
        done
        for format in oci docker; do
            if "$RB" save --format $format -o out/a.tar x 2>said; then echo "save $format did not fail"; fi
            grep -q 'No space left on device' said && grep -q out/a.tar said || { echo "save $format"; cat said; }
            ls -A out
        done
        if "$RB" build -o out/local ctx 2>said; then echo 'local did not fail'; fi
        grep -q 'No space left on device' said && grep -q out/local said || { echo local; cat said; }
        rm -r out/local
        if "$RB" build --iidfile out/id --metadata-file out/full -o type=oci,tar=false,compression=uncompressed,dest=out/layout ctx 2>said; then
            echo 'layout did not fail'; fi
        grep -q 'No space left on device' said && grep -q out/layout said || { echo layout; cat said; }
        find store/tmp store/leases store/trash -mindepth 1
        umount out
        for inodes in 1 2 3 4 5 6 7; do
            for kind in docker oci; do
                mount -t tmpfs -o nr_inodes=$inodes small out
                if "$RB" build -o "type=$kind,tar=false,dest=out" ctx 2>said; then echo "$inodes were enough for $kind"; fi
                grep -q 'No space left on device' said || { echo "$inodes $kind"; cat said; }
                mount -o remount,nr_inodes=100 out
                touch out/.rbuild-killed
                "$RB" build -o "type=$kind,tar=false,dest=out" ctx 2>said || { echo "$inodes: $kind fails for good"; cat said; }
                umount out
            done
        done"#,
    )
    .ok();
    assert_eq!(run.stdout, "", "{}", run.shown());
    run.says_nothing_of("panicked");
}

#[test]
fn a_store_that_cannot_be_written_can_be_read() {
    if !needs("a_store_that_cannot_be_written_can_be_read", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.write("busybox.tar", root_tar());
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo 1 > /f\nCOPY Dockerfile /\n");
    let run = in_small_store(
        &env,
        "24m",
        r#""$RB" import busybox.tar busybox >/dev/null
        "$RB" build -t x ctx 2>/dev/null
        "$RB" save -o right.tar x
        mount -o remount,ro store
        for command in images 'images -a --digests' 'inspect x' 'history x' 'save -o read.tar x' 'inspect --verify x busybox' df \
            info 'build --print=graph ctx'; do
            "$RB" $command >said 2>&1 || { echo "$command fails"; cat said; }
        done
        cmp right.tar read.tar
        "$RB" diff x busybox >said 2>&1 && echo 'diff: no difference' || [ $? = 1 ] || { echo "diff fails"; cat said; }
        grep -q /f said || cat said
        for command in 'build -t x ctx' 'build --no-cache ctx' 'tag x y' 'rmi x' 'load -i right.tar' 'import busybox.tar y' \
            'prune -f'; do
            if "$RB" $command >said 2>&1; then echo "$command: no error"; fi
            grep -q '/store cannot be written' said && grep -q 'Read-only file system' said || { echo "$command:"; cat said; }
            ! grep -q panicked said || cat said
        done
        ls -A tmp"#,
    )
    .ok();
    assert_eq!(run.stdout, "", "{}", run.shown());
}
