//! The settled questions about keys, layers and times, seen from outside, each by the number it has in ARCHITECTURE.md.
//!
//! A test builds twice with one thing changed and looks at what was cached, at the digests and at the layers. Rules that
//! only a unit can show (golden vectors, key lists) have their tests beside the code.

use std::collections::BTreeMap;

use crate::support::base::{RootTar, TIME};
use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs};
use crate::support::oci::{Image, Node};

/// Builds the Dockerfile and reads the image.
#[track_caller]
fn image(env: &TestEnv, dockerfile: &str) -> Image {
    image_with(env, dockerfile, "").1
}

#[track_caller]
fn image_with(env: &TestEnv, dockerfile: &str, args: &str) -> (Run, Image) {
    env.write("ctx/Dockerfile", dockerfile);
    let run = env.build(&format!("--progress plain -o type=oci,dest=out.tar,compression=uncompressed {args}")).ok();
    let image = Image::read(&env.path("out.tar"));
    assert_eq!(run.image(), image.id, "the id that is printed is that of the image\n{}", run.shown());
    (run, image)
}

#[track_caller]
fn build(env: &TestEnv, dockerfile: &str) -> Run {
    env.write("ctx/Dockerfile", dockerfile);
    env.build("--progress plain").ok()
}

/// An environment with the busybox base, or `None` where its RUN cannot work.
fn sandbox(test: &str) -> Option<TestEnv> {
    needs(test, &[Need::Busybox, Need::Run]).then(|| {
        let env = TestEnv::new();
        env.import_busybox();
        env
    })
}

/// The tree without times.
fn timeless(image: &Image) -> BTreeMap<String, Node> {
    image.tree().into_iter().map(|(path, node)| (path, Node { mtime: 0, file: 0, ..node })).collect()
}

// --- 1 to 3: identity -----------------------------------------------------------------------------------------------

#[test]
fn rule_01_times_are_no_content_but_all_else_is() {
    let env = TestEnv::new();
    env.write("ctx/f", "one");
    env.time("ctx/f", 1_500_000_000);
    let dockerfile = "FROM scratch\nCOPY f /d/f\n";
    let first = build(&env, dockerfile);
    env.empty_store();
    env.time("ctx/f", 1_600_000_000);
    let touched = build(&env, dockerfile);
    assert_eq!(first.content(), touched.content(), "a time is no content");
    assert_ne!(first.image(), touched.image(), "without an epoch times are in the image");
    let mut seen = vec![first.content()];
    for (what, change) in [
        ("bytes", Box::new(|| env.write("ctx/f", "two")) as Box<dyn Fn()>),
        ("mode", Box::new(|| env.mode("ctx/f", 0o600))),
        (
            "kind",
            Box::new(|| {
                env.remove("ctx/f");
                env.write("ctx/f/x", "");
            }),
        ),
    ] {
        change();
        let content = build(&env, dockerfile).content();
        assert!(!seen.contains(&content), "{what} did not change the content digest");
        seen.push(content);
    }
    let owned = build(&env, "FROM scratch\nCOPY --chown=1:2 f /d/f\n").content();
    assert!(!seen.contains(&owned), "an owner did not change the content digest");
}

#[test]
fn rule_01_whiteout_names_are_refused_and_sockets_become_files() {
    let env = TestEnv::new();
    env.write("ctx/.wh.gone", "");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY . /\n");
    env.build("").ends(1).says(".wh.gone").says_nothing_of("panicked");
    env.remove("ctx/.wh.gone");
    let listener = std::os::unix::net::UnixListener::bind(env.path("ctx/socket")).expect("a short path");
    let found = image(&env, "FROM scratch\nCOPY socket /\n").tree();
    assert_eq!((found["socket"].kind, found["socket"].size), ('-', 0));
    drop(listener);
}

#[test]
fn rule_02_content_of_an_image_covers_its_base() {
    let (one, two) = (TestEnv::new(), TestEnv::new());
    for env in [&one, &two] {
        env.write("base/f", "f");
        env.write("base/Dockerfile", "FROM scratch\nCOPY f /f\n");
        env.write("ctx/g", "g");
    }
    one.time("base/f", 1_500_000_000);
    for env in [&one, &two] {
        env.rbuild("-t base base").ok();
    }
    let child = "FROM base\nCOPY g /g\n";
    assert_eq!(build(&one, child).content(), build(&two, child).content(), "bases built apart, alike but for times");
    two.write("base/f", "other");
    two.rbuild("-t base base").ok();
    assert_ne!(build(&one, child).content(), build(&two, child).content(), "another base is another content");
}

#[test]
fn rule_03_a_base_counts_by_its_layers() {
    let Some(env) = sandbox("rule_03_a_base_counts_by_its_layers") else { return };
    build(&env, "FROM busybox\nRUN echo x > /x\n");
    env.write("label/Dockerfile", "FROM busybox\nLABEL a=b\nCMD [\"x\"]\n");
    env.rbuild("-t labelled label").ok();
    let again = build(&env, "FROM labelled\nRUN echo x > /x\n");
    assert_eq!(again.cached(), 1, "same layers below, same command\n{}", again.shown());
    env.write("label/Dockerfile", "FROM busybox\nENV a=b\n");
    env.rbuild("-t labelled label").ok();
    let other = build(&env, "FROM labelled\nRUN echo x > /x\n");
    assert_eq!(other.cached(), 0, "the environment is part of the command\n{}", other.shown());
}

// --- 4 to 6: keys, landing, ancestors -------------------------------------------------------------------------------

#[test]
fn rule_04_a_copy_survives_a_change_below_it_a_run_does_not() {
    let Some(env) = sandbox("rule_04_a_copy_survives_a_change_below_it_a_run_does_not") else { return };
    env.write("ctx/f", "f");
    let dockerfile = |n: u32| format!("FROM busybox\nRUN echo {n} > /n\nCOPY f /tmp/f\nRUN cat /n > /m\n");
    build(&env, &dockerfile(1));
    let second = build(&env, &dockerfile(2));
    assert_eq!(second.cached(), 1, "the COPY alone is cached\n{}", second.shown());
    assert_eq!(build(&env, &dockerfile(1)).cached(), 3);
}

#[test]
fn rule_04_keys_follow_what_is_used() {
    let Some(env) = sandbox("rule_04_keys_follow_what_is_used") else { return };
    env.write("ctx/used", "1");
    env.write("ctx/unused", "1");
    let dockerfile = "FROM busybox\nCOPY used /u\nRUN cat /u\n";
    build(&env, dockerfile);
    let cached = |change: &dyn Fn()| {
        change();
        env.build("--progress plain").ok().cached()
    };
    assert_eq!(cached(&|| env.write("ctx/unused", "2")), 2, "a file that is not copied");
    assert_eq!(cached(&|| env.time("ctx/used", 1_000_000_000)), 2, "a time");
    assert_eq!(cached(&|| env.write("ctx/Dockerfile", format!("# comment\n\n{dockerfile}"))), 2, "a comment");
    assert_eq!(cached(&|| env.write("ctx/.dockerignore", "unused\n")), 2, "an ignored file that is not used");
    assert_eq!(cached(&|| env.mode("ctx/used", 0o755)), 0, "a mode");
    let fixed = "FROM busybox\nCOPY --chmod=644 used /u\nRUN cat /u\n";
    build(&env, fixed);
    env.mode("ctx/used", 0o600);
    assert_eq!(build(&env, fixed).cached(), 2, "with --chmod the source's mode does not count");
    env.write("ctx/used", "2");
    assert_eq!(build(&env, fixed).cached(), 0, "bytes");
}

#[test]
fn rule_04_a_change_that_keeps_size_and_time_is_seen() {
    let env = TestEnv::new();
    env.write("ctx/f", "one");
    env.time("ctx/f", 1_500_000_000);
    let first = build(&env, "FROM scratch\nCOPY f /f\n");
    env.write("ctx/f", "two");
    env.time("ctx/f", 1_500_000_000);
    let second = env.build("").ok();
    assert_ne!(first.content(), second.content(), "the stat cache trusted size and mtime");
}

#[test]
fn rule_05_a_copy_lands_anew_where_the_ground_has_changed() {
    let Some(env) = sandbox("rule_05_a_copy_lands_anew_where_the_ground_has_changed") else { return };
    env.write("ctx/f", "f");
    let dockerfile = |ground: &str| format!("FROM busybox\nRUN {ground}\nCOPY f /d/e/f\n");
    let of = |ground: &str| timeless(&image(&env, &dockerfile(ground)));
    assert_eq!(of("mkdir -p /d/e")["d/e"].mode, 0o755);
    assert_eq!(of("mkdir -p /d/e && chmod 700 /d/e")["d/e"].mode, 0o700, "mode of an ancestor");
    assert_eq!(of("mkdir -p /d/e && chown 5:6 /d")["d"].owner, (5, 6), "owner of an ancestor");
    let linked = of("mkdir -p /real && ln -s real /d");
    assert_eq!((linked["d"].kind, linked["real/e/f"].kind), ('l', '-'), "a link on the way");
    let replaced = of("mkdir -p /d/e && ln -s /etc/motd /d/e/f");
    assert_eq!((replaced["d/e/f"].kind, replaced["etc/motd"].size), ('l', 1), "a named destination that is a link");
    let removed = of("true");
    assert_eq!((removed["d"].mode, removed["d"].owner), (0o755, (0, 0)), "absent ancestors are made");
}

#[test]
fn rule_06_layers_carry_their_ancestors_as_they_are() {
    let Some(env) = sandbox("rule_06_layers_carry_their_ancestors_as_they_are") else { return };
    env.write("ctx/f", "f");
    let copied = image(&env, "FROM busybox\nCOPY f /tmp/f\n");
    assert_eq!(copied.top_layer(), ["tmp/", "tmp/f"]);
    assert_eq!(copied.tree()["tmp"].mode, 0o1777);
    let ran = image(&env, "FROM busybox\nRUN echo > /home/builder/x\n");
    assert_eq!(ran.top_layer(), ["home/", "home/builder/", "home/builder/x"]);
    assert_eq!(ran.tree()["home/builder"].owner, (1000, 1001));
    assert_eq!(ran.tree()["home"].mtime, TIME, "an ancestor that the step did not touch keeps its time");
}

// --- 7 to 13: layers that stay, times, the epoch --------------------------------------------------------------------

#[test]
fn rule_07_a_step_that_gives_the_same_keeps_its_layer() {
    let Some(env) = sandbox("rule_07_a_step_that_gives_the_same_keeps_its_layer") else { return };
    env.write("ctx/f", "f");
    let dockerfile = "FROM busybox\nRUN date > /dev/null; echo x > /x\nCOPY f /f\nRUN cat /x /f > /y\n";
    let (first, before) = image_with(&env, dockerfile, "");
    let (again, after) = image_with(&env, dockerfile, "--no-cache");
    assert_eq!(again.cached(), 0);
    assert_eq!((first.image(), first.content()), (again.image(), again.content()), "--no-cache moved the image id");
    assert_eq!(before.layers, after.layers);
    // The second half of the rule: another command with the same content makes a layer with its own times.
    let other = dockerfile.replace("echo x > /x", "echo x > /x && touch -d @1000000000 /x");
    let (touched, moved) = image_with(&env, &other, "");
    assert_eq!(moved.tree()["x"].mtime, 1_000_000_000, "the times are those that the command left");
    assert_eq!(touched.cached(), 2, "what comes after it stays cached\n{}", touched.shown());
}

#[test]
fn rule_08_created_belongs_to_what_was_reached() {
    let Some(env) = sandbox("rule_08_created_belongs_to_what_was_reached") else { return };
    let (_, first) = image_with(&env, "FROM busybox\nRUN echo x > /x\n", "");
    let (_, again) = image_with(&env, "FROM busybox\nRUN echo x > /x\n", "");
    assert!(first.config["created"].is_string());
    assert_eq!(first.config["created"], again.config["created"]);
    let (_, labelled) = image_with(&env, "FROM busybox\nLABEL a=b\n", "");
    let base = env.run(["inspect", "-f", "{{.Created}}", "busybox"]).ok();
    assert_eq!(labelled.config["created"].as_str(), Some(base.stdout.trim()), "no new layer: the base's time");
    let (_, empty) = image_with(&env, "FROM scratch\nLABEL a=b\n", "");
    assert!(empty.config.get("created").is_none_or(serde_json::Value::is_null), "scratch has no time");
}

#[test]
fn rule_09_a_run_sees_the_times_that_the_image_will_hold() {
    let Some(mut env) = sandbox("rule_09_a_run_sees_the_times_that_the_image_will_hold") else { return };
    env.write("ctx/f", "f");
    env.time("ctx/f", 1_234_567_890);
    let dockerfile = "FROM busybox\nCOPY f /f\nRUN stat -c %Y /f /etc/motd > /times\n";
    let seen = format!("1234567890\n{TIME}\n");
    let found = image(&env, dockerfile);
    assert_eq!(found.file("times"), seen.as_bytes());
    assert_eq!(found.tree()["f"].mtime, 1_234_567_890);
    env.set("SOURCE_DATE_EPOCH", "77");
    env.empty_store();
    env.import_busybox();
    let written = image(&env, dockerfile);
    assert_eq!(written.file("times"), seen.as_bytes(), "an epoch is a matter of the written form alone");
    assert_eq!(written.tree()["f"].mtime, 77);
}

#[test]
fn rule_10_headers_are_of_this_build() {
    let env = TestEnv::new();
    env.write("ctx/d/a", "a");
    env.write("ctx/d/b", "b");
    env.time("ctx/d/b", 1_000_000_000);
    let dockerfile = "FROM scratch\nCOPY d /d\n";
    image(&env, dockerfile);
    env.write("ctx/d/a", "changed");
    env.time("ctx/d/b", 1_100_000_000);
    let found = image(&env, dockerfile);
    assert_eq!(found.tree()["d/b"].mtime, 1_100_000_000);
    assert_eq!(found.file("d/a"), b"changed");
}

#[test]
fn rule_11_an_epoch_is_in_every_new_entry() {
    let Some(mut env) = sandbox("rule_11_an_epoch_is_in_every_new_entry") else { return };
    env.write("ctx/f", "f");
    let dockerfile = "FROM busybox\nCOPY f /a/f\nWORKDIR /w\nRUN echo > /x && rm /etc/motd && ln /x /y && ln -s x /z\n";
    let times = |image: &Image| -> Vec<u64> {
        let mut times = Vec::new();
        for layer in &image.layers[1..] {
            for entry in tar::Archive::new(layer.as_slice()).entries().expect("a tar") {
                times.push(entry.expect("a whole tar").header().mtime().expect("a time"));
            }
        }
        times
    };
    let truth = image(&env, dockerfile);
    let whiteouts = times(&truth).into_iter().filter(|time| *time == 0).count();
    assert_eq!(whiteouts, 1, "without an epoch a whiteout has time 0, and nothing else has");
    env.set("SOURCE_DATE_EPOCH", "12345");
    let warm = image(&env, dockerfile);
    assert!(times(&warm).iter().all(|time| *time == 12345), "{:?}", times(&warm));
    assert_eq!(warm.config["created"], "1970-01-01T03:25:45Z");
    env.empty_store();
    env.import_busybox();
    let cold = image(&env, dockerfile);
    assert!(warm.layers == cold.layers, "a warm store gives other layers than an empty one");
    assert_eq!(warm.id, cold.id, "a warm store gives another image id than an empty one");
}

#[test]
fn rule_12_a_stored_image_needs_its_context_no_more() {
    let Some(env) = sandbox("rule_12_a_stored_image_needs_its_context_no_more") else { return };
    env.write("ctx/f", "precious");
    env.write("ctx/Dockerfile", "FROM busybox\nCOPY f /f\nRUN cp /f /g\n");
    let built = env.build("-t kept").ok();
    env.remove("ctx/f");
    let found = image(&env, "FROM kept\n");
    assert_eq!((found.file("f"), found.file("g")), (b"precious".to_vec(), b"precious".to_vec()));
    assert_eq!(built.image(), found.id, "an image without new instructions is its base");
    env.run(["inspect", "--verify", "kept"]).ok();
}

#[test]
fn rule_13_the_manifest_is_the_same_too() {
    let mut digests = Vec::new();
    for threads in ["1", "4"] {
        let mut env = TestEnv::new();
        env.set("SOURCE_DATE_EPOCH", "0");
        // Larger than one block of the parallel compressor.
        env.write("ctx/big", vec![b'x'; 3 << 20]);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY big /\n");
        env.build(&format!("--jobs {threads} -o type=oci,dest=out.tar")).ok();
        digests.push(Image::read(&env.path("out.tar")).digest);
    }
    assert_eq!(digests[0], digests[1]);
}

// --- 15 to 19: which entries are changes ----------------------------------------------------------------------------

/// The names in the layer of one RUN.
#[track_caller]
fn changed(env: &TestEnv, prepare: &str, command: &str) -> Vec<String> {
    image(env, &format!("FROM busybox\nRUN {prepare}\nRUN {command}\n")).top_layer()
}

#[test]
fn rule_15_what_was_not_changed_is_no_change() {
    let Some(env) = sandbox("rule_15_what_was_not_changed_is_no_change") else { return };
    let none: [&str; 0] = [];
    assert_eq!(changed(&env, "true", "true"), none);
    assert_eq!(changed(&env, "true", ": >> /etc/motd"), none, "opened for writing, nothing written");
    assert_eq!(changed(&env, "true", "touch /var/x && rm /var/x"), none, "made and removed");
    assert_eq!(changed(&env, "true", "chmod 644 /etc/motd"), none, "a mode that it has");
    assert_eq!(changed(&env, "true", "chmod 600 /etc/motd"), ["etc/", "etc/motd"]);
    assert_eq!(changed(&env, "true", "chown 1 /etc/motd"), ["etc/", "etc/motd"]);
    assert_eq!(
        changed(&env, "echo same > /f", "echo same > /f"),
        ["f"],
        "what the command wrote is a change, however fast it ran"
    );
}

#[test]
fn rule_16_opaque_folders_become_whiteouts_at_every_depth() {
    let Some(env) = sandbox("rule_16_opaque_folders_become_whiteouts_at_every_depth") else { return };
    assert_eq!(
        changed(&env, "mkdir -p /d/sub && touch /d/sub/a /d/b", "rm -r /d && mkdir -p /d/sub && touch /d/sub/x"),
        ["d/", "d/.wh.b", "d/sub/", "d/sub/.wh.a", "d/sub/x"]
    );
    assert_eq!(changed(&env, "mkdir -p /d/sub && touch /d/sub/a", "rm -r /d"), [".wh.d"]);
    assert_eq!(changed(&env, "mkdir -p /d/sub && touch /d/sub/a", "rm -r /d && touch /d"), ["d"]);
    // Two ways to one tree are one content, and two trees are two.
    let content = |prepare: &str, command: &str| {
        let (run, image) = image_with(&env, &format!("FROM busybox\nRUN {prepare}\nRUN {command} #\n"), "");
        (run.content(), timeless(&image))
    };
    let after = |command: &str| {
        let found = content("mkdir /d && touch /d/a /d/b", command);
        assert!(found.1.contains_key("d/x") && !found.1.contains_key("d/a"), "{command}");
        found.1.contains_key("d/b")
    };
    assert!(!after("rm -rf /d; mkdir /d; touch /d/x"));
    assert!(after("rm /d/a; touch /d/x"));
}

#[test]
fn rule_17_of_attributes_capabilities_alone_stay() {
    let Some(env) = sandbox("rule_17_of_attributes_capabilities_alone_stay") else { return };
    // cap_net_bind_service=ep in the second version of the attribute.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut tar = Vec::new();
    {
        let mut builder = tar::Builder::new(&mut tar);
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.security.capability", capability.as_slice()),
                ("SCHILY.xattr.user.note", b"lost".as_slice()),
            ])
            .expect("memory takes every write");
        let mut header = tar::Header::new_ustar();
        header.set_path("capable").expect("a short name");
        header.set_mode(0o755);
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(1);
        header.set_cksum();
        builder.append(&header, b"x".as_slice()).expect("memory takes every write");
        builder.finish().expect("memory takes every write");
    }
    env.write("ctx/add.tar", &tar);
    let found = image(&env, "FROM busybox\nADD add.tar /\nRUN mv /capable /moved\n").tree();
    let attributes = &found["moved"].attributes;
    assert_eq!(attributes.keys().collect::<Vec<_>>(), ["security.capability"]);
    assert_eq!(attributes["security.capability"], capability, "as the user namespace sees it");
}

#[test]
fn rule_18_holes_are_written_out() {
    let Some(env) = sandbox("rule_18_holes_are_written_out") else { return };
    let dockerfile = |command: &str| format!("FROM busybox\nRUN {command}\nFROM scratch\nCOPY --from=0 /sparse /f\n");
    let (sparse, image) = image_with(&env, &dockerfile("truncate -s 1M /sparse"), "");
    assert_eq!(image.tree()["f"].size, 1 << 20);
    let dense = build(&env, &dockerfile("dd if=/dev/zero of=/sparse bs=1M count=1 2>/dev/null"));
    assert_eq!(sparse.content(), dense.content());
}

#[test]
fn rule_19_hard_links_stay_and_the_root_is_the_bases() {
    let Some(env) = sandbox("rule_19_hard_links_stay_and_the_root_is_the_bases") else { return };
    env.write("ctx/d/one", "x");
    std::fs::hard_link(env.path("ctx/d/one"), env.path("ctx/d/two")).expect("links work here");
    let copied = image(&env, "FROM scratch\nCOPY d /d\n").tree();
    assert_eq!(copied["d/two"].same_as.as_deref(), Some("d/one"));
    let ran = image(&env, "FROM busybox\nRUN echo x > /a && ln /a /b\nUSER nobody\nRUN ls / > /tmp/seen\n").tree();
    assert_eq!(ran["b"].same_as.as_deref(), Some("a"));
    let root = image(&env, "FROM busybox\nRUN chmod 700 /\nUSER nobody\nRUN stat -c %a / > /tmp/mode\n");
    assert_eq!(root.file("tmp/mode"), b"755\n", "what RUN does to / itself is dropped");
}

// --- 20 to 24: COPY, ADD, WORKDIR onto what is there ----------------------------------------------------------------

#[test]
fn rule_20_kinds_do_not_mix_but_for_archives() {
    let Some(env) = sandbox("rule_20_kinds_do_not_mix_but_for_archives") else { return };
    env.write("ctx/d/x", "x");
    env.write("ctx/f", "f");
    for (lines, code) in [
        ("COPY d /etc/motd", 1),
        ("COPY d /tree/f\nCOPY f /tree/", 1),
        // A file that is told to go to a directory lands inside.
        ("COPY d /tree\nCOPY f /tree", 0),
    ] {
        env.write("ctx/Dockerfile", format!("FROM busybox\n{lines}\n"));
        env.build("").ends(code).says_nothing_of("panicked");
    }
    let kept = image(&env, "FROM busybox\nRUN mkdir /k && chmod 750 /k && chown 7:8 /k\nCOPY d /k\n").tree();
    assert_eq!((kept["k"].mode, kept["k"].owner), (0o750, (7, 8)), "a named destination keeps mode and owner");
    assert_eq!(kept["k/x"].owner, (0, 0));

    let mut archive = RootTar::new();
    archive.file("etc/motd/inside", 0o600, b"in");
    archive.file("lib/here", 0o644, b"x");
    archive.directory("home", 0o711, (3, 4));
    env.write("ctx/a.tar", archive.finish());
    let unpacked = image(&env, "FROM busybox\nADD a.tar /\n").tree();
    assert_eq!((unpacked["etc/motd"].kind, unpacked["etc/motd/inside"].mode), ('d', 0o600));
    assert_eq!(
        (unpacked["lib"].kind, unpacked["usr/lib/here"].kind),
        ('l', '-'),
        "a parent that is a link is followed"
    );
    assert_eq!(
        (unpacked["home"].mode, unpacked["home"].owner),
        (0o711, (3, 4)),
        "a directory takes the archive's metadata"
    );
}

#[test]
fn rule_21_link_replaces_links_and_keeps_ancestors() {
    let Some(env) = sandbox("rule_21_link_replaces_links_and_keeps_ancestors") else { return };
    env.write("ctx/f", "f");
    let found = image(&env, "FROM busybox\nRUN ln -s /etc/motd /tmp/l\nCOPY --link --chown=builder f /tmp/l\n").tree();
    assert_eq!((found["tmp/l"].kind, found["tmp/l"].owner), ('-', (1000, 1001)));
    assert_eq!(found["tmp"].mode, 0o1777, "/tmp stays what it was");
    let plain = image(&env, "FROM busybox\nRUN ln -s /var/www/y /tmp/l\nCOPY f /tmp/l\n").tree();
    assert_eq!(
        (plain["tmp/l"].kind, plain["var/www/y"].kind),
        ('l', '-'),
        "without the flag a dangling one is followed"
    );
}

#[test]
fn rule_23_workdir_belongs_to_the_user() {
    let Some(env) = sandbox("rule_23_workdir_belongs_to_the_user") else { return };
    let found = image(&env, "FROM busybox\nUSER builder\nWORKDIR /srv/a/b\nUSER nosuch\nWORKDIR /other\n").tree();
    assert_eq!((found["srv"].owner, found["srv/a"].owner), ((1000, 1001), (1000, 1001)));
    assert_eq!((found["srv/a/b"].owner, found["srv/a/b"].mode), ((1000, 1001), 0o755));
    assert_eq!(found["other"].owner, (0, 0), "a name that nobody has");
    env.write("ctx/Dockerfile", "FROM busybox\nWORKDIR /etc/motd\n");
    env.build("").ends(1).says("/etc/motd");
    let there = image(&env, "FROM busybox\nUSER builder\nWORKDIR /tmp\n");
    assert_eq!(there.tree()["tmp"].owner, (0, 0), "what is there stays as it is");
    assert_eq!(there.history().last(), Some(&("WORKDIR /tmp".to_owned(), false)), "and counts as a layer");
}

#[test]
fn rule_24_triggers_bring_in_what_nobody_named_before() {
    let Some(env) = sandbox("rule_24_triggers_bring_in_what_nobody_named_before") else { return };
    env.write(
        "base/Dockerfile",
        "FROM busybox\nONBUILD COPY --from=helper /made /from-helper\nONBUILD COPY --from=tools /x /from-tools\n",
    );
    env.write("tools/x", "tool");
    env.write("tools/Dockerfile", "FROM scratch\nCOPY x /x\n");
    env.rbuild("-t parent base").ok();
    env.rbuild("-t tools tools").ok();
    let found = image(&env, "FROM busybox AS helper\nRUN echo helped > /made\nFROM parent\n");
    assert_eq!(found.file("from-helper"), b"helped\n");
    assert_eq!(found.file("from-tools"), b"tool");
    assert!(found.config["config"].get("OnBuild").is_none_or(serde_json::Value::is_null));
}

// --- --explain ------------------------------------------------------------------------------------------------------

#[test]
fn explain_says_why() {
    let Some(env) = sandbox("explain_says_why") else { return };
    env.write("ctx/f", "1");
    let dockerfile = "FROM busybox\nARG v=1\nCOPY f /f\nRUN echo $v > /v\n";
    env.write("ctx/Dockerfile", dockerfile);
    let explained = |args: &str| env.build(&format!("--progress plain --explain {args}")).ok();
    let first = explained("");
    assert_eq!(first.cached(), 0);
    explained("--build-arg v=2").says("v");
    env.write("ctx/f", "2");
    explained("").says("f");
    assert_eq!(explained("").cached(), 2);
}
