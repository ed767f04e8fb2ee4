//! Steps on real overlay mounts, each in mount namespaces of its own.
//!
//! Each case checks three things besides the entries: that the tree which the upper directory became shows, over the
//! layers below, what the command left; that the merged view of the indexes shows the same; and that the layer's tar
//! makes the same tree.

#![allow(clippy::print_stderr)] // Tests say what they leave out.

use super::*;
use crate::layer::apply::{Flavour, apply};
use crate::layer::sample;
use crate::layer::stack::Found;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// The time of everything below.
const OLD: i64 = 1_000_000;

struct Machine {
    flavour: Flavour,
    unshare: &'static [&'static str],
}

/// What this machine can mount; says what it cannot.
fn machines(test: &str) -> Vec<Machine> {
    let all = [
        Machine { flavour: Flavour::Trusted, unshare: &["-m"] },
        Machine { flavour: Flavour::User, unshare: &["-U", "-r", "-m"] },
    ];
    all.into_iter()
        .filter(|machine| {
            if machine.flavour == Flavour::Trusted && !sample::is_full_root(test) {
                return false;
            }
            let temp = tempfile::tempdir().unwrap();
            let lower = temp.path().join("lower");
            let works = make_dirs(temp.path(), &["lower", "upper", "work", "merged"])
                .and_then(|()| run(machine, temp.path(), &[lower], true, "mkfifo p; rm p"));
            if let Err(why) = &works {
                eprintln!("skipped: {test}: overlay ({:?}): {why}", machine.flavour);
            }
            works.is_ok()
        })
        .collect()
}

fn make_dirs(dir: &Path, names: &[&str]) -> Result<(), String> {
    names.iter().try_for_each(|name| std::fs::create_dir(dir.join(name)).map_err(|error| error.to_string()))
}

/// Mounts the trees (topmost first), runs a script in the mount, and lists what is there.
fn run(machine: &Machine, dir: &Path, trees: &[PathBuf], writable: bool, script: &str) -> Result<String, String> {
    let lower: Vec<String> = trees.iter().map(|tree| tree.display().to_string()).collect();
    let dir = dir.display();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if machine.flavour == Flavour::User {
        // The other options are those of root alone; this one brings the right ones.
        options += ",userxattr";
    } else {
        options += ",index=off,metacopy=off,nfs_export=off,xino=off,redirect_dir=nofollow";
    }
    if writable {
        write!(options, ",upperdir={dir}/upper,workdir={dir}/work").unwrap();
    }
    let script = format!(
        "set -e; export LC_ALL=C; mount -t overlay overlay -o {options} {dir}/merged; cd {dir}/merged; {script}\n\
         cd {dir}/merged; find . -mindepth 1 ! -type s -printf '%P|%y|%m|%l\\n' | sort; \
         find . -type f -exec sha256sum '{{}}' + | sort"
    );
    let output = Command::new("unshare").args(machine.unshare).args(["sh", "-c", &script]).output();
    let output = output.map_err(|error| format!("no unshare: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// What the merged view shows, in the form of [`run`].
fn view(stack: &LayerStack) -> String {
    fn walk(stack: &LayerStack, dir: &[u8], lines: &mut Vec<String>, sums: &mut Vec<String>) {
        for (_, Found { entry, .. }) in stack.read_dir(dir) {
            let path = String::from_utf8_lossy(&entry.path);
            let mut target = String::new();
            let kind = match &entry.kind {
                Kind::File { sha256, .. } => {
                    sums.push(format!("{}  ./{path}\n", sha256.hex()));
                    "f"
                }
                Kind::Directory => {
                    walk(stack, &entry.path, lines, sums);
                    "d"
                }
                Kind::Symlink { target: to } => {
                    target = String::from_utf8_lossy(to).into_owned();
                    "l"
                }
                Kind::Fifo => "p",
                other => panic!("{other:?}"),
            };
            lines.push(format!("{path}|{kind}|{:o}|{target}\n", entry.mode));
        }
    }
    let (mut lines, mut sums) = (Vec::new(), Vec::new());
    walk(stack, b"", &mut lines, &mut sums);
    lines.sort();
    sums.sort();
    lines.concat() + &sums.concat()
}

/// A layer written from text, with its tree.
fn layer(text: &str, tree: &Path, options: TreeOptions) -> LayerIndex {
    let (uid, gid) = file::owner_of_new_files();
    let mut writer = LayerWriter::new(tempfile::tempfile().unwrap());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut entry = Entry { uid, gid, mtime: OLD, ..sample::entry(line) };
        let data = sample::bytes(line.split_whitespace().nth(5).unwrap_or_default());
        let body = if matches!(entry.kind, Kind::File { .. }) { Body::Bytes(&data) } else { Body::None };
        writer.push(&mut entry, body).unwrap();
    }
    let (tar, index) = writer.finish().unwrap();
    std::fs::create_dir(tree).unwrap();
    apply(&index, &tar, tree, &options).unwrap();
    index
}

/// Runs a script over layers and returns the entries of its layer.
fn step(machine: &Machine, layers: &[&str], script: &str) -> Result<String, String> {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_dirs(dir, &["upper", "work", "merged", "again"])?;
    let options = TreeOptions { flavour: machine.flavour, devices: false };
    let mut trees = Vec::new();
    let mut indexes = Vec::new();
    for (number, text) in layers.iter().enumerate() {
        let tree = dir.join(format!("tree{number}"));
        indexes.push(Arc::new(layer(text, &tree, options)));
        trees.insert(0, tree);
    }
    let mut stack = LayerStack::new(indexes).unwrap();
    std::fs::write(dir.join("stamp"), "").unwrap();
    let began = std::fs::metadata(dir.join("stamp")).unwrap().modified().unwrap();
    let left = run(machine, dir, &trees, true, script)?;

    let upper = dir.join("upper");
    let (tar, index) =
        commit_to(&upper, &stack, began, &options, tempfile::tempfile().unwrap()).map_err(|error| error.to_string())?;
    // One tree is as good as the other: that which the step left, and that which the layer makes.
    let again = dir.join("again");
    apply(&index, &tar, &again, &options).unwrap();
    assert_eq!(tree(&upper), tree(&again), "{script}");
    trees.insert(0, upper);
    assert_eq!(run(machine, dir, &trees, false, "true")?, left, "{script}");
    let entries = sample::list(&index);
    stack.layers.push(Arc::new(index));
    assert_eq!(view(&stack), left, "{script}");
    Ok(entries.trim_end().replace('\n', ", "))
}

/// Everything that can be seen of a tree.
fn tree(path: &Path) -> Vec<String> {
    let root = RootDir::open(path).unwrap();
    let mut lines = vec![format!("/ {:?}", root.dir().stat_self().map(|stat| (stat.mode, stat.mtime)).unwrap())];
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let dir = root.open_dir(&path).unwrap();
        for name in dir.names().unwrap() {
            let stat = dir.stat(&name).unwrap();
            let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", &name].concat() };
            let target = dir.read_link(&name).ok();
            let whiteout = stat.device == (0, 0) && stat.kind == crate::sys::root_dir::StatKind::CharDevice;
            let mtime = if whiteout { (0, 0) } else { stat.mtime };
            let directory = stat.kind == crate::sys::root_dir::StatKind::Directory;
            let links = if directory || whiteout { 0 } else { stat.links };
            let size = if directory { 0 } else { stat.size };
            let attributes = xattr::list_at(&dir, &name).unwrap();
            let path_text = String::from_utf8_lossy(&path).into_owned();
            lines.push(format!(
                "{path_text} {:?} {:o} {}:{} {size} {links} {mtime:?} {target:?} {attributes:?}",
                stat.kind, stat.mode, stat.uid, stat.gid
            ));
            if directory {
                open.push(path);
            }
        }
    }
    lines.sort();
    lines
}

const BASE: &str = "
    dir d
    file d/a 0644 0 0 a
    file d/b 0644 0 0 b
    dir d/sub
    file d/sub/a 0644 0 0 a
    file f 0644 0 0 text
    file g 0644 0 0 text
    symlink l 0777 0 0 f
    dir tmp 1777";

#[test]
fn what_a_step_changed() {
    if !sample::is_root(module_path!(), "what_a_step_changed") {
        return;
    }
    for machine in machines("what_a_step_changed") {
        for (script, expected) in [
            ("true", ""),
            ("echo new > n", "file n 4"),
            ("echo new > d/n", "dir d 0755, file d/n 4"),
            ("echo new > d/sub/n", "dir d 0755, dir d/sub 0755, file d/sub/n 4"),
            ("echo x >> f", "file f 6"),
            ("rm f", "whiteout f"),
            ("rm -r d", "whiteout d"),
            ("rm d/a", "dir d 0755, whiteout d/a"),
            ("chmod 600 f", "file f 4"),
            ("chmod 700 d", "dir d 0700"),
            ("rm f; mkdir f; echo x > f/x", "dir f 0755, file f/x 2"),
            ("rm -r d; echo x > d", "file d 2"),
            ("rm -r d; ln -s f d", "symlink d f"),
            ("ln -sfn g l", "symlink l g"),
            ("mkfifo -m 640 p", "pipe p"),
            ("mv f h", "whiteout f, file h 4"),
            ("echo a > d/a", "dir d 0755, file d/a 2"),
            // Nothing happened.
            (": >> f", ""),
            ("touch n; rm n; touch d/n; rm d/n", ""),
            ("mkdir -p e/e; rm -r e", ""),
            ("cp -a f x; mv x f", ""),
            ("cp -a l x; mv -T x l", ""),
            ("chmod 600 f; chmod 644 f", ""),
            ("touch -d @1000000 f", ""),
            // What looks the same was written all the same.
            ("cat g > f", "file f 4"),
            ("touch f", "file f 4"),
            ("printf TEXT > f; touch -d @1000000 f", "file f 4"),
            // Opaque directories, and what lies deep in them.
            ("rm -r d; mkdir d; echo x > d/x", "dir d 0755, whiteout d/a, whiteout d/b, whiteout d/sub, file d/x 2"),
            (
                "rm -r d; mkdir -p d/sub; echo x > d/sub/x",
                "dir d 0755, whiteout d/a, whiteout d/b, dir d/sub 0755, whiteout d/sub/a, file d/sub/x 2",
            ),
            ("rm -r d; mkdir d", "dir d 0755, whiteout d/a, whiteout d/b, whiteout d/sub"),
            (
                "rm -r d; mkdir -p e/sub; mv e d",
                "dir d 0755, whiteout d/a, whiteout d/b, dir d/sub 0755, whiteout d/sub/a",
            ),
            ("cp -a d e; rm -r d; mv e d", ""),
            ("rm -r d; mkdir -p d/sub/a", "dir d 0755, whiteout d/a, whiteout d/b, dir d/sub 0755, dir d/sub/a 0755"),
            // Hard links.
            ("echo x > n; ln n m; ln n d/o", "dir d 0755, file d/o 2, link m d/o, link n d/o"),
            ("ln f n", "file f 4, link n f"),
            ("ln f n; rm f", "whiteout f, file n 4"),
            ("ln f n; rm n", ""),
            // Sockets go; attributes go.
            ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'; echo x > n", "file n 2"),
            ("python3 -c 'import os; os.setxattr(\"f\", \"user.x\", b\"1\")'", ""),
            ("echo x > n; python3 -c 'import os; os.setxattr(\"n\", \"user.x\", b\"1\")'", "file n 2"),
            // The root stays.
            ("chmod 700 .; echo x > n", "file n 2"),
            ("echo x > \"$(printf 'a b\\377')\"", "file a b\u{fffd} 2"),
            ("i=0; p=deep; while [ $i -lt 600 ]; do p=$p/x; i=$((i+1)); done; mkdir -p $p; rm -r deep", ""),
        ] {
            if script.contains("python3") && Command::new("python3").arg("-c").arg("").status().is_err() {
                eprintln!("skipped: what_a_step_changed: {script}: there is no python3");
                continue;
            }
            let found = step(&machine, &[BASE], script);
            assert_eq!(found.as_deref(), Ok(expected), "{:?}: {script}", machine.flavour);
        }
    }
}

#[test]
fn over_several_layers() {
    if !sample::is_root(module_path!(), "over_several_layers") {
        return;
    }
    let middle = "
        dir d 0700
        whiteout d/a
        file d/c 0644 0 0 c
        file f 0600 0 0 newer
        whiteout g";
    for machine in machines("over_several_layers") {
        for (script, expected) in [
            ("true", ""),
            ("rm f", "whiteout f"),
            ("echo x > g; rm g", ""),
            ("rm d/c", "dir d 0700, whiteout d/c"),
            ("rm -r d; mkdir d; echo x > d/x", "dir d 0755, whiteout d/b, whiteout d/c, whiteout d/sub, file d/x 2"),
            ("echo a > d/a", "dir d 0700, file d/a 2"),
            (": >> d/b", ""),
            (": >> f; : >> d/sub/a", ""),
        ] {
            let found = step(&machine, &[BASE, middle], script);
            assert_eq!(found.as_deref(), Ok(expected), "{:?}: {script}", machine.flavour);
        }
    }
}

#[test]
fn random_steps() {
    if !sample::is_root(module_path!(), "random_steps") {
        return;
    }
    let upper = "
        dir d 0700
        whiteout d/a
        dir d/sub
        file d/sub/c 0644 0 0 c
        file f 0600 0 0 newer
        dir tmp
        dir tmp/d
        file tmp/d/a 0644 0 0 a";
    for machine in machines("random_steps") {
        // A fixed sequence: a failure comes back.
        let mut state = 12345u64;
        let mut pick = |count: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % count
        };
        let paths = ["d", "d/a", "d/b", "d/sub", "d/sub/a", "d/sub/c", "f", "g", "l", "tmp/d", "tmp/d/a", "n", "tmp/n"];
        for _ in 0..20 {
            let mut script = String::new();
            for _ in 0..=pick(5) {
                let (a, b) = (paths[pick(paths.len())], paths[pick(paths.len())]);
                let command = match pick(9) {
                    0 => format!("echo {b} > {a}"),
                    1 => format!("rm -rf {a}"),
                    2 => format!("mkdir -p {a}"),
                    3 => format!("mv -T {a} {b}"),
                    4 => format!("cp -aT {a} {b}"),
                    5 => format!("ln -sfn {b} {a}"),
                    6 => format!("rm -rf {a}; mkdir -p {a}; echo x > {a}/x"),
                    7 => format!("chmod 7{}5 {a}", pick(8)),
                    _ => format!("ln -f {a} {b}"),
                };
                write!(script, "{{ {command}; }} 2>&- || true; ").unwrap();
            }
            if let Err(error) = step(&machine, &[BASE, upper], &script) {
                panic!("{:?}: {script}: {error}", machine.flavour);
            }
        }
    }
}

#[test]
fn what_no_layer_can_hold() {
    if !sample::is_root(module_path!(), "what_no_layer_can_hold") {
        return;
    }
    for machine in machines("what_no_layer_can_hold") {
        let error = step(&machine, &[BASE], "touch d/.wh.a").unwrap_err();
        assert_eq!(
            error,
            "/d/.wh.a cannot be in a layer: names that begin with .wh. mean deletions in layers; rename it"
        );
    }
}

#[test]
fn capabilities_stay() {
    if !sample::is_root(module_path!(), "capabilities_stay") {
        return;
    }
    for machine in machines("capabilities_stay") {
        let temp = tempfile::tempdir().unwrap();
        make_dirs(temp.path(), &["upper", "work", "merged"]).unwrap();
        let options = TreeOptions { flavour: machine.flavour, devices: false };
        let tree = temp.path().join("tree");
        let below = LayerStack::new([Arc::new(layer("file f 0755 0 0 x", &tree, options))]).unwrap();
        let began = SystemTime::UNIX_EPOCH;
        let script = "python3 -c 'import os; os.setxattr(\"f\", \"security.capability\", bytes.fromhex(\"01000002\" + \
                      \"0020000000000000\" + \"0000000000000000\"))'";
        if let Err(why) = run(&machine, temp.path(), &[tree], true, script) {
            eprintln!("skipped: capabilities_stay ({:?}): {why}", machine.flavour);
            continue;
        }
        let upper = temp.path().join("upper");
        let index = commit(&upper, &below, began, &options).unwrap();
        let capability = [&[1, 0, 0, 2, 0, 0x20], [0; 14].as_slice()].concat();
        assert_eq!(index.get(b"f").unwrap().capability, Some(capability));
        let kept = xattr::list(RootDir::open(&upper).unwrap().open_file(b"f").unwrap()).unwrap();
        assert_eq!(kept, [b"security.capability"]);
    }
}

#[test]
fn without_a_mount() {
    if !sample::is_root(module_path!(), "without_a_mount") {
        return;
    }
    // An upper directory that no overlay made: everything in it is new.
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("d")).unwrap();
    std::fs::write(temp.path().join("d/f"), "text").unwrap();
    let options = TreeOptions { flavour: Flavour::User, devices: false };
    let index = commit(temp.path(), &LayerStack::default(), SystemTime::UNIX_EPOCH, &options).unwrap();
    assert_eq!(sample::list(&index), "dir d 0755\nfile d/f 4\n");
    let stat = RootDir::open(temp.path()).unwrap().open_dir(b"d").unwrap().stat(b"f").unwrap();
    assert_eq!(stat.mtime, (index.get(b"d/f").unwrap().mtime, 0));
}
