//! Contexts that do not hold still, or do not let themselves be read.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::env::TestEnv;
use crate::support::machine::{self, Need, needs};

#[test]
fn a_file_that_is_written_while_it_is_copied_is_named() {
    let env = TestEnv::new();
    env.write("ctx/d/first", "1");
    // Large enough that it is still being read when the next byte is written.
    env.write("ctx/d/log", vec![b'x'; 40 << 20]);
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY d /d\n");
    let mut log = std::fs::OpenOptions::new().append(true).open(env.path("ctx/d/log")).expect("it was written");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"y").expect("there is room");
                std::thread::yield_now();
            }
        });
        let run = env.build("");
        stop.store(true, Ordering::Relaxed);
        run.ends(1).says("d/log changes while it is being copied").says_nothing_of("first");
    });
    env.build("").ok();
}

#[test]
fn what_cannot_be_read_is_named_with_the_reason() {
    let test = "what_cannot_be_read_is_named_with_the_reason";
    let env = if machine::is_root() {
        if !needs(test, &[Need::User]) {
            return;
        }
        TestEnv::as_user(&machine::test_user().expect("asked for above"))
    } else {
        TestEnv::new()
    };
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY d /d\n");
    env.write("ctx/d/readable", "1");
    // Small files are read before the step begins, large ones while the layer is written.
    for size in [1, 3 << 20] {
        env.write("ctx/d/secret", vec![b'x'; size]);
        env.mode("ctx/d/secret", 0);
        env.build("").ends(1).says("\"d/secret\"").says("Permission denied").says(".dockerignore");
        env.write("ctx/.dockerignore", "d/secret\n");
        env.build("").ok();
        env.remove("ctx/.dockerignore");
        env.remove("ctx/d/secret");
    }
    env.write("ctx/d/folder/f", "1");
    env.mode("ctx/d/folder", 0);
    env.build("").ends(1).says("\"d/folder\"").says("Permission denied");
    env.mode("ctx/d/folder", 0o755);
    env.build("").ok();
}

#[test]
fn a_path_may_become_anything_between_builds() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY . /d/\n");
    env.write("ctx/.dockerignore", "Dockerfile\n.dockerignore\n");
    env.write("ctx/b", "b");
    let path = env.path("ctx/a");
    let make: &[(&str, &dyn Fn())] = &[
        ("file", &|| env.write("ctx/a", "b")),
        ("directory", &|| env.write("ctx/a/b", "b")),
        ("pipe", &|| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .expect("a pipe can be made");
        }),
        ("link", &|| env.link("ctx/a", "b")),
        ("hard link", &|| std::fs::hard_link(env.path("ctx/b"), &path).expect("a link can be made")),
        ("nothing", &|| {}),
    ];
    let mut first = Vec::new();
    for round in 0..2 {
        for (number, (name, make)) in make.iter().enumerate() {
            make();
            let run = env.build("").ok();
            let now = (run.image(), run.content());
            if round == 0 {
                assert!(!first.contains(&now), "{name} is what something else was before");
                first.push(now);
            } else {
                assert_eq!(now, first[number], "{name}, for the second time");
            }
            if path.symlink_metadata().is_ok() {
                env.remove("ctx/a");
            }
        }
    }
}
