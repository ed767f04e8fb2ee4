//! More of the settled questions, each by its number; `tests/cache.rs` and the modules have the others. The table of
//! all is docs/decisions.md.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::base::TIME;
use crate::support::env::TestEnv;
use crate::support::machine::{Need, is_root, needs, test_user};
use crate::support::oci::Image;

/// An environment with the busybox base, or `None` where its RUN cannot work.
fn sandbox(test: &str) -> Option<TestEnv> {
    needs(test, &[Need::Busybox, Need::Run]).then(|| {
        let env = TestEnv::new();
        env.import_busybox();
        env
    })
}

/// Builds the Dockerfile and reads the image.
#[track_caller]
fn image(env: &TestEnv, dockerfile: &str, args: &str) -> Image {
    env.write("ctx/Dockerfile", dockerfile);
    env.build(&format!("--progress plain -o type=oci,dest=out.tar,compression=uncompressed {args}")).ok();
    Image::read(&env.path("out.tar"))
}

#[test]
fn rule_03_a_folder_as_base_is_a_layer_made_here() {
    let env = TestEnv::new();
    env.write("base/f", "f");
    env.write("ctx/g", "g");
    env.write("ctx/Dockerfile", "FROM files\nCOPY g /g\n");
    let build = || env.build("--progress plain --build-context files=base").ok();
    let first = build();
    env.time("base/f", 1_000_000_000);
    let touched = build();
    assert_eq!(first.image(), touched.image(), "a time of a file below is no input");
    assert_eq!(touched.cached(), first.stderr.matches("DONE").count(), "{}", touched.shown());
    env.write("base/f", "other");
    assert_ne!(first.content(), build().content());
}

#[test]
fn rule_11_the_epoch_that_wins_is_the_argument() {
    let Some(mut env) = sandbox("rule_11_the_epoch_that_wins_is_the_argument") else { return };
    let dockerfile = "FROM busybox\nARG SOURCE_DATE_EPOCH=5\nRUN echo \"<$SOURCE_DATE_EPOCH>\" > /seen\n";
    let seen = |image: &Image| (String::from_utf8(image.file("seen")).expect("text"), image.tree()["seen"].mtime);
    let (text, time) = seen(&image(&env, dockerfile, ""));
    assert_eq!(text, "<5>\n");
    assert!(time > TIME, "a default reaches RUN alone");
    env.set("SOURCE_DATE_EPOCH", "7");
    assert_eq!(seen(&image(&env, dockerfile, "")), ("<7>\n".to_owned(), 7));
    assert_eq!(seen(&image(&env, dockerfile, "--build-arg SOURCE_DATE_EPOCH=8")), ("<8>\n".to_owned(), 8));
    let args = "--build-arg SOURCE_DATE_EPOCH=8 --timestamp 9";
    assert_eq!(seen(&image(&env, dockerfile, args)), ("<9>\n".to_owned(), 9));
    let (text, time) = seen(&image(&env, dockerfile, "--build-arg SOURCE_DATE_EPOCH="));
    assert_eq!(text, "<>\n");
    assert!(time > TIME, "what is given wins even if it is empty");
    env.build("--timestamp context").ends(2).says("context");
    env.build("-o type=tar,dest=t.tar,rewrite-timestamp=true --timestamp=").ok().says("rewrite-timestamp");
}

#[test]
fn rule_11_an_epoch_form_as_base_has_a_tree_of_its_own() {
    let Some(env) = sandbox("rule_11_an_epoch_form_as_base_has_a_tree_of_its_own") else { return };
    env.write("base/Dockerfile", "FROM busybox\nRUN echo x > /x\n");
    env.rbuild("build -t plain base").ok();
    env.rbuild("build -t dated --timestamp 1000 base").ok();
    let time = |base: &str| {
        let found = image(&env, &format!("FROM {base}\nRUN stat -c %Y /x > /time\n"), "");
        (String::from_utf8(found.file("time")).expect("text"), format!("{}\n", found.tree()["x"].mtime))
    };
    let (seen, listed) = time("dated");
    assert_eq!((seen.as_str(), listed.as_str()), ("1000\n", "1000\n"));
    let (seen, listed) = time("plain");
    assert_eq!(seen, listed);
    assert_ne!(seen, "1000\n");
}

#[test]
fn rule_25_a_folder_from_below_is_moved_by_copying() {
    let Some(env) = sandbox("rule_25_a_folder_from_below_is_moved_by_copying") else { return };
    // Where overlay may redirect, the layer would hold an empty folder that points at the old name.
    let found = image(&env, "FROM busybox\nRUN mv /var /moved\n", "");
    assert_eq!(found.top_layer(), ["moved/", "moved/log/", "moved/www/", ".wh.var"]);
}

#[test]
fn rule_26_a_tree_that_occurs_twice_is_mounted_once() {
    let Some(env) = sandbox("rule_26_a_tree_that_occurs_twice_is_mounted_once") else { return };
    env.write("ctx/f", "f");
    let lines = "COPY f /f\nRUN echo changed > /f\nCOPY f /f\nRUN cat /f > /seen\n";
    let found = image(&env, &format!("FROM busybox\n{lines}"), "");
    let diff_ids = &found.config["rootfs"]["diff_ids"];
    assert_eq!(diff_ids[1], diff_ids[3], "both are one layer, or this shows nothing");
    assert_eq!(found.file("seen"), b"f");
}

#[test]
fn rule_27_more_layers_than_the_kernel_mounts() {
    let Some(env) = sandbox("rule_27_more_layers_than_the_kernel_mounts") else { return };
    let mut dockerfile = "FROM busybox\n".to_owned();
    for number in 0..126 {
        writeln!(dockerfile, "COPY <<f /d/f{number}\n{number}\nf").expect("a String takes all");
    }
    env.write("ctx/Dockerfile", &dockerfile);
    env.build("-t at-the-limit").ok().says_nothing_of("Docker refuses");
    // Layers of all sorts among those that are merged: replaced files, links, whiteouts that RUN left.
    dockerfile += "RUN rm /d/f0 /etc/motd && ln /d/f1 /d/same && echo again > /d/f2 && chmod 700 /d\n";
    for number in 126..510 {
        writeln!(dockerfile, "COPY <<f /d/f{number}\n{number}\nf").expect("a String takes all");
    }
    dockerfile += "RUN ls /d | wc -l > /seen; cat /d/f1 /d/same /d/f2 /d/f509 >> /seen; stat -c '%a %h' /d /d/same >> /seen; \
                   test ! -e /etc/motd\n";
    env.write("ctx/Dockerfile", &dockerfile);
    let args = "-o type=oci,dest=out.tar,compression=uncompressed";
    env.build(args).ok().says("513 layers; Docker refuses more than 127");
    let found = Image::read(&env.path("out.tar"));
    assert_eq!(String::from_utf8(found.file("seen")), Ok("510\n1\n1\nagain\n509\n700 1\n644 2\n".to_owned()));
}

#[test]
fn rule_31_what_a_power_cut_damaged_is_made_again() {
    let Some(env) = sandbox("rule_31_what_a_power_cut_damaged_is_made_again") else { return };
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM busybox\nCOPY f /copied\nRUN echo text > /made\nRUN cat /copied /made > /both\n");
    let content = env.build("-t x").ok().content();
    // Every file of every layer that was made, in each of its forms: cut off, as after a rename without its data.
    let mut files = Vec::new();
    let mut lease = "boot another\n".to_owned();
    for layer in fs::read_dir(env.store().join("layers")).expect("layers").flatten() {
        let name = format!("layers/{}", layer.file_name().to_string_lossy());
        for form in ["tar", "index", "tree/copied", "tree/made", "tree/both"] {
            let path = layer.path().join(form);
            let base = layer.path().join("tree/bin").exists();
            if path.exists() && !base {
                files.push((name.clone(), path));
            }
        }
    }
    assert!(files.iter().any(|(_, path)| path.ends_with("tree/copied")), "a layer with two forms: {files:?}");
    for (name, path) in files {
        let dead = env.store().join("leases/build-dead");
        writeln!(lease, "made {name}").expect("a String takes all");
        fs::write(&dead, &lease).expect("a lease");
        if path.exists() {
            fs::write(&path, "").expect("cut off");
        }
        let again = env.build("-t x").ok();
        assert_eq!(again.content(), content, "{}", path.display());
        env.rbuild("inspect --verify x").ok();
        assert!(!dead.exists(), "a lease that was looked after is dropped");
        // And what it builds on is read, too.
        let no_cache = env.build("--no-cache").ok();
        assert_eq!(no_cache.content(), content, "{}", path.display());
    }
}

#[test]
fn rule_32_nobody_else_reads_a_store() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nWORKDIR /x\n");
    env.build("").ok();
    for folder in ["", "layers", "trees", "tmp", "trash", "blobs", "cache"] {
        let mode = fs::metadata(env.store().join(folder)).expect("a folder").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder:?}");
    }
}

#[test]
fn rule_37_device_nodes_that_cannot_be_made_are_told_and_kept() {
    let test = "rule_37_device_nodes_that_cannot_be_made_are_told_and_kept";
    let wanted: &[Need] = if is_root() { &[Need::Busybox, Need::Run, Need::User] } else { &[Need::Busybox, Need::Run] };
    if !needs(test, wanted) {
        return;
    }
    let env = if is_root() { TestEnv::as_user(&test_user().expect("looked up before")) } else { TestEnv::new() };
    env.import_busybox();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_path("odd/null").expect("a short name");
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(1).expect("a header that has devices");
    header.set_device_minor(3).expect("a header that has devices");
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(TIME);
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, &b""[..]).expect("memory takes every write");
    env.write("ctx/odd.tar", tar.into_inner().expect("memory takes every write"));
    env.write(
        "ctx/Dockerfile",
        "FROM busybox\nADD odd.tar /\nRUN ls /odd > /seen\nFROM scratch\nCOPY --from=0 /seen /odd /\n",
    );
    let run = env.build("--progress plain -o type=oci,dest=out.tar").ok();
    assert_eq!(run.stderr.matches("/odd/null cannot be made here").count(), 1, "{}", run.shown());
    let found = Image::read(&env.path("out.tar"));
    assert_eq!(found.file("seen"), b"", "RUN does not see it");
    assert_eq!(found.tree()["null"].kind, 'c', "COPY --from does");
}

#[test]
fn rule_37_an_id_beyond_the_map_is_named() {
    let test = "rule_37_an_id_beyond_the_map_is_named";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root, Need::User]) {
        return;
    }
    let env = TestEnv::as_user(&test_user().expect("looked up before"));
    env.import_busybox();
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM busybox\nCOPY --chown=4000000:5 f /far\nRUN true\n");
    env.build("").ends(1).says("/far").says("4000000").says("users 0-").says_nothing_of("panicked");
}
