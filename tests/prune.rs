//! `prune`, `df` and the limit of the cache: what goes, what stays, and what the disk has back.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs, test_user};

/// What `du -s -B1` says of the store.
fn du(env: &TestEnv) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).arg(env.store()).output().expect("du starts");
    let text = String::from_utf8(output.stdout).expect("du prints text");
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("du prints a number")
}

fn total(env: &TestEnv) -> u64 {
    let run = env.run(["df", "--format", "{{if eq .Type \"Total\"}}{{.Bytes}}{{end}}"]).ok();
    run.stdout.trim().parse().unwrap_or_else(|_| panic!("no number\n{}", run.shown()))
}

fn count(env: &TestEnv, folder: &str) -> usize {
    std::fs::read_dir(env.store().join(folder)).map_or(0, Iterator::count)
}

/// Lets everything that is there be old enough to go: what is younger than a collection stays.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

/// Builds `FROM scratch` with one file of so many bytes.
fn image(env: &TestEnv, name: &str, bytes: usize) -> String {
    let data: Vec<u8> = name.bytes().cycle().take(bytes).collect();
    env.write("ctx/f", data);
    env.write("ctx/Dockerfile", format!("FROM scratch\nCOPY f /{name}\n"));
    let tag = if name.starts_with("no") { String::new() } else { format!("-t {name}") };
    env.build(&tag).ok().image()
}

#[test]
fn each_form_removes_its_half() {
    let env = TestEnv::new();
    let kept = image(&env, "kept", 100_000);
    let dangling = image(&env, "none", 200_000);
    env.write("ctx/Dockerfile", "FROM scratch AS a\nCOPY f /other\nFROM scratch\nCOPY --from=a /other /copy\n");
    env.build("-t staged").ok();
    settle();
    assert_eq!(count(&env, "layers"), 4);
    // Without an answer nothing goes.
    env.rbuild("prune").ends(1).says("Are you sure you want to continue? [y/N]").says("-f does not ask");
    let run = env.rbuild("image prune -f").ok();
    assert!(run.stdout.starts_with(&format!("Deleted Images:\ndeleted: {dangling}\n")), "{}", run.shown());
    assert!(!run.stdout.contains("build cache"), "{}", run.shown());
    assert_eq!(count(&env, "layers"), 4, "the cache keeps the layer");
    let run = env.rbuild("builder prune -f").ok();
    assert!(run.stdout.starts_with("Deleted build cache objects:\n"), "{}", run.shown());
    assert_eq!(count(&env, "layers"), 2, "the layer of no image, and that of the other stage, are gone");
    assert!(env.build("-t staged").ok().image().starts_with("sha256:"));
    // What names are built from is still cached.
    env.write("ctx/f", "kept".bytes().cycle().take(100_000).collect::<Vec<_>>());
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /kept\n");
    let again = env.build("--progress plain -t kept").ok();
    assert_eq!((again.image(), again.cached()), (kept, 1));
    settle();
    env.rbuild("builder prune -af").ok();
    assert_eq!(env.build("--progress plain -t kept").ok().cached(), 0);
    env.rbuild("inspect --verify kept staged").ok();
    settle();
    env.rbuild("system prune -af").ok();
    assert_eq!(env.rbuild("images -qa").ok().stdout, "");
    let left = ["layers", "blobs/sha256", "trees"].map(|folder| count(&env, folder));
    assert_eq!(left, [0; 3]);
}

#[test]
fn the_space_that_is_reclaimed_is_what_du_says() {
    let env = TestEnv::new();
    image(&env, "one", 500_000);
    image(&env, "none", 3_000_000);
    settle();
    let before = du(&env);
    assert_eq!(total(&env), before);
    let run = env.rbuild("prune -f").ok();
    let after = du(&env);
    assert_eq!(total(&env), after);
    // Folders of the store that became empty count here alone.
    let said = run.stdout.rsplit("Total reclaimed space: ").next().unwrap_or_default().trim();
    let megabytes: f64 = said.trim_end_matches("MB").parse().unwrap_or_else(|_| panic!("{}", run.shown()));
    let freed = (before - after) as f64 / 1e6;
    assert!((megabytes - freed).abs() < 0.1 && freed > 3.0, "{said}, du says {freed}");
}

#[test]
fn filters_choose() {
    let env = TestEnv::new();
    for (name, label) in [("nolabel", ""), ("nokeep", "--label stage=keep"), ("nodrop", "--label stage=drop")] {
        env.write("ctx/f", name);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
        env.build(label).ok();
    }
    let ids = || env.rbuild("images -qa").ok().stdout.lines().count();
    env.rbuild("image prune -f --filter label=stage=drop").ok();
    assert_eq!(ids(), 2);
    env.rbuild("image prune -f --filter label!=stage --filter until=1h").ok();
    assert_eq!(ids(), 2, "both have to fit");
    env.rbuild("image prune -f --filter label!=stage").ok();
    assert_eq!(ids(), 1);
    env.rbuild("image prune -f --filter until=0s").ok();
    assert_eq!(ids(), 0);
    env.rbuild("prune -f --filter until=yesterday").ends(2).says("expected an age such as 24h");
    env.rbuild("prune -f --filter color=red").ends(2).says("expected until=TIME");
    env.rbuild("builder prune -f --filter label=a").ends(2).says("no labels");
}

/// Makes the record of one step look as if it was used that long ago.
fn age_records(env: &TestEnv, ago: Duration) {
    for folder in std::fs::read_dir(env.store().join("cache/records")).expect("there are records").flatten() {
        for record in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
            let file = std::fs::File::open(record.path()).expect("a record");
            let modified = file.metadata().expect("a record").modified().expect("a time");
            file.set_modified(modified - ago).expect("own files take a time");
        }
    }
}

#[test]
fn what_was_used_last_is_kept() {
    let env = TestEnv::new();
    let step = |name: &str| {
        env.write("ctx/f", name.repeat(200_000));
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
        env.build("-o type=cacheonly --progress plain").ok().cached()
    };
    for name in ["a", "b", "c"] {
        step(name);
        age_records(&env, Duration::from_secs(3600));
    }
    assert_eq!(step("a"), 1, "used again");
    settle();
    env.rbuild("builder prune -f --keep-storage 600k").ok();
    assert_eq!(step("a"), 1);
    assert_eq!((step("c"), step("b")), (1, 0), "the one used longest ago went");
    settle();
    env.rbuild("builder prune -f --filter until=30m").ok();
    assert_eq!((step("b"), step("c")), (1, 1), "both were used just now");
    age_records(&env, Duration::from_secs(3600));
    settle();
    env.rbuild("builder prune -f --filter until=30m").ok();
    assert_eq!(step("b"), 0);
}

#[test]
fn the_limit_is_kept_without_asking() {
    let mut env = TestEnv::new();
    env.set("RBUILD_CACHE_LIMIT", "1m");
    image(&env, "named", 900_000);
    for name in ["noa", "nob", "noc", "nod"] {
        env.write("ctx/f", name.repeat(150_000));
        env.write("ctx/Dockerfile", format!("FROM scratch\nCOPY f /{name}\n"));
        env.build("-o type=cacheonly").ok();
        settle();
    }
    let cache = env.run(["df", "--format", "{{if eq .Type \"Build Cache\"}}{{.Bytes}}{{end}}"]).ok().stdout;
    let cache: u64 = cache.trim().parse().expect("a number");
    assert!(cache <= 1 << 20, "{cache}");
    // The step of the last build is there, and so is what has a name.
    assert_eq!(env.build("-o type=cacheonly --progress plain").ok().cached(), 1);
    env.rbuild("inspect --verify named").ok();
    env.set("RBUILD_CACHE_LIMIT", "a lot");
    env.write("ctx/f", "other");
    env.build("-o type=cacheonly").ok().says("RBUILD_CACHE_LIMIT is \"a lot\"");
}

#[test]
fn prune_everything_empties_the_store_also_for_a_user() {
    let test = "prune_everything_empties_the_store_also_for_a_user";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root, Need::User]) {
        return;
    }
    let env = TestEnv::as_user(&test_user().expect("looked up before"));
    env.import_busybox();
    env.write("ctx/Dockerfile", "FROM busybox\nRUN mkdir -m 700 /d && touch /d/f && chown -R 33:33 /d\n");
    env.build("-t x").ok();
    env.build("").ok();
    assert_eq!(total(&env), du(&env), "folders of mapped ids are counted too");
    settle();
    env.rbuild("prune -af").ok();
    assert_eq!(["layers", "trees", "trash"].map(|folder| count(&env, folder)), [0; 3]);
    env.import_busybox();
    env.build("-t x").ok();
    env.rbuild("prune --everything -f").ok();
    assert_eq!(["layers", "trees", "trash", "cache/records"].map(|folder| count(&env, folder)), [0; 4]);
    let owner = std::fs::metadata(env.store()).expect("the store is there").uid();
    // The user can remove what is left with nothing but `rm`.
    let rm = Command::new("setpriv")
        .args(["--reuid", &owner.to_string(), "--clear-groups", "rm", "-rf"])
        .arg(env.store())
        .status()
        .expect("setpriv starts");
    assert!(rm.success() && !env.store().exists());
}

#[test]
fn a_build_keeps_what_it_uses_while_others_prune() {
    let env = TestEnv::new();
    let files = 40;
    let mut text = String::from("FROM scratch\n");
    for number in 0..files {
        env.write(&format!("ctx/f{number}"), format!("{number}").repeat(2000));
        text.push_str(&format!("COPY f{number} /\n"));
    }
    env.write("ctx/Dockerfile", text);
    let first = env.build("").ok().image();
    let end = SystemTime::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while SystemTime::now() < end {
                    env.rbuild("prune -af").ok();
                }
            });
        }
        for worker in 0..3 {
            let (env, first) = (&env, &first);
            scope.spawn(move || {
                let mut epoch = 0;
                while SystemTime::now() < end {
                    epoch += 1;
                    let contents = env.build(&format!("-t w{worker} --timestamp {epoch}")).ok();
                    assert_eq!(contents.content().len(), first.len());
                    env.run(["tag", &format!("w{worker}"), "moved"]).code.expect("no signal");
                }
            });
        }
    });
    env.build("-t last").ok();
    env.rbuild("inspect --verify last").ok();
}

#[test]
fn cache_mounts_are_counted_and_removed_unless_in_use() {
    if !needs("cache_mounts_are_counted_and_removed_unless_in_use", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    let mounts = || env.run(["df", "--format", "{{if eq .Type \"Cache mounts\"}}{{.TotalCount}}{{end}}"]).ok().stdout;
    let run = |command: &str| {
        env.write("ctx/Dockerfile", format!("FROM busybox\nRUN --mount=type=cache,target=/c {command}\n"));
        env.build("--no-cache -t x").ok()
    };
    run("touch /c/kept");
    run("test -e /c/kept");
    assert_eq!(mounts().trim(), "1");
    settle();
    // A build that is at work keeps its own.
    std::thread::scope(|scope| {
        let build = scope.spawn(|| run("touch /c/busy; for i in 1 2 3 4 5 6; do sleep 0.3; test -e /c/busy; done"));
        let end = SystemTime::now() + Duration::from_secs(1);
        while SystemTime::now() < end {
            env.rbuild("builder prune -f").ok();
        }
        build.join().expect("the build goes well");
    });
    settle();
    let pruned = env.rbuild("builder prune -f").ok();
    assert!(pruned.stdout.contains("Deleted cache mounts: 1\n") || mounts().trim() == "0", "{}", pruned.shown());
    assert_eq!(mounts().trim(), "0");
    run("test ! -e /c/kept");
}

#[test]
fn the_limit_leaves_what_a_running_build_or_a_name_needs() {
    let test = "the_limit_leaves_what_a_running_build_or_a_name_needs";
    if !needs(test, &[Need::Busybox, Need::Run]) {
        return;
    }
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.import_busybox();
    // Nothing of the cache may stay: all that is left is what somebody needs.
    env.set("RBUILD_CACHE_LIMIT", "0");
    env.write("named/Dockerfile", "FROM busybox AS one\nRUN echo named > /n\nFROM busybox\nCOPY --from=one /n /n\n");
    let named = env.run(["build", "-t", "named", "named"]).ok().image();
    env.write(
        "long/Dockerfile",
        "FROM busybox AS one\nRUN echo 1 > /a\nRUN sleep 0.7; cat /a > /b\n\
         FROM busybox\nRUN echo 2 > /c\nRUN sleep 1.4; cat /c > /d\nCOPY --from=one /a /b /taken/\nRUN cat /taken/a /d > /all\n",
    );
    let alone = env.run(["build", "-t", "long", "long"]).ok().image();
    env.rbuild("rmi long").ok();
    settle();
    env.rbuild("builder prune -f").ok();
    let collections = std::thread::scope(|scope| {
        let long = scope.spawn(|| env.run(["build", "--progress", "plain", "-t", "long", "long"]));
        let (mut collections, mut round) = (0, 0);
        while !long.is_finished() {
            round += 1;
            env.write("short/f", format!("{round}").repeat(50_000));
            env.write("short/Dockerfile", "FROM scratch\nCOPY f /f\n");
            let run = env.run(["build", "-o", "type=cacheonly", "short"]).ok();
            // At its end the long build collects, too, and may leave nothing for this one.
            collections += usize::from(run.stderr.contains("the build cache was larger than its limit"));
        }
        let run = long.join().expect("it does not panic").ok();
        assert_eq!(run.image(), alone, "{}", run.shown());
        collections
    });
    assert!(collections > 2, "only {collections} collections while the build ran");
    env.rbuild("inspect --verify named long busybox").ok();
    assert_eq!(env.run(["build", "-t", "named", "named"]).ok().image(), named);
}

#[test]
fn sizes_are_those_of_the_files_and_shared_layers_count_once() {
    let env = TestEnv::new();
    env.write("ctx/f", "f".repeat(100_000));
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\n");
    env.build("-t base").ok();
    for (name, size) in [("one", 50_000), ("two", 20_000)] {
        env.write("ctx/g", name.repeat(size / 3));
        env.write("ctx/Dockerfile", "FROM base\nCOPY g /g\nCOPY f /again\n");
        env.build(&format!("-t {name}")).ok();
    }
    let size = |name: &str| env.run(["inspect", "-f", "{{.Size}}", name]).ok().stdout.trim().to_owned();
    // The last layer is a copy of its own in each.
    assert_eq!(["base", "one", "two"].map(size), ["100000", "249998", "219998"]);
    let images = || env.run(["df", "--format", "{{if eq .Type \"Images\"}}{{.Bytes}}{{end}}"]).ok().stdout;
    assert_eq!(images().trim(), "269996", "base, two own layers, and the copy that both have");
    assert_eq!(total(&env), du(&env));
    // Compressed they are the same size.
    env.rbuild("save --format oci -o saved.tar one two base").ok();
    let before = env.rbuild("images --format {{.Repository}}={{.Size}}").ok().stdout;
    env.rbuild("rmi one two base").ok();
    env.rbuild("load -q -i saved.tar").ok();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&env.rbuild("images --format {{.Repository}}={{.Size}}").ok().stdout), sorted(&before));
    assert_eq!(images().trim(), "269996");
}
