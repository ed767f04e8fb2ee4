//! `rbuild save`: what it writes is read by rbuild and by skopeo, as the image that it was.

use std::process::Command;

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs};
use crate::support::oci::Image;

fn two_images() -> (TestEnv, Vec<String>) {
    let env = TestEnv::new();
    let mut ids = Vec::new();
    for (text, tags) in [("one", "-t app:1 -t app:same -t other"), ("two", "-t app:2")] {
        env.write("ctx/f", text);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\nLABEL a=b\n");
        ids.push(env.build(tags).ok().image());
    }
    (env, ids)
}

#[test]
fn what_is_saved_is_loaded_again() {
    let (env, ids) = two_images();
    for format in ["docker", "oci"] {
        env.rbuild(&format!("save --format {format} -o all.tar app {}", &ids[1][7..19])).ok();
        let manifests = env.rbuild("images --digests --no-trunc --format {{.Tag}}={{.Digest}} app").ok().stdout;
        env.rbuild("rmi -f app:1 app:same app:2 other").ok();
        env.rbuild("load -i all.tar").ok();
        for (name, id) in [("app:1", &ids[0]), ("app:same", &ids[0]), ("app:2", &ids[1])] {
            assert_eq!(env.rbuild(&format!("images -q --no-trunc {name}")).ok().stdout.trim(), id, "{format} {name}");
        }
        assert_eq!(env.rbuild("images -q other").ok().stdout, "", "a name that nobody asked for");
        env.rbuild("inspect --verify app:1 app:2").ok();
        let again = env.rbuild("images --digests --no-trunc --format {{.Tag}}={{.Digest}} app").ok().stdout;
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&again), sorted(&manifests), "{format}: manifests keep their digests");
        env.rbuild("tag app:1 other").ok();
    }
}

#[test]
fn an_archive_is_the_same_each_time_and_names_each_image_once() {
    let (env, ids) = two_images();
    env.rbuild("save -o a.tar other app:1 app:1").ok();
    env.rbuild("save -o b.tar app:1 other").ok();
    let read = |name: &str| std::fs::read(env.path(name)).expect("written before");
    assert_eq!(read("a.tar"), read("b.tar"));
    assert_eq!(Image::read_docker(&env.path("a.tar")).id, ids[0]);
    // Standard output gets the same bytes.
    let output = env.command(["save", "app:1", "other"]).output().expect("rbuild starts");
    assert_eq!(output.stdout, read("a.tar"));
}

#[test]
fn nothing_is_written_where_an_image_is_not_there() {
    let (env, _) = two_images();
    env.write("kept.tar", "what was there");
    env.rbuild("save -o kept.tar app:1 ap:1").ends(1).says("did you mean app:1?");
    assert_eq!(std::fs::read(env.path("kept.tar")).expect("written before"), b"what was there");
    env.rbuild("save --format zip app:1").ends(2).says("expected docker or oci");
    env.rbuild("save -o nowhere/a.tar app:1").ends(1).says("nowhere");
}

#[test]
fn skopeo_reads_what_is_saved() {
    let needed = [Need::Program("skopeo"), Need::Busybox, Need::Run];
    if !needs("skopeo_reads_what_is_saved", &needed) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    let id = env.build("-t app:1").ok().image();
    for (format, transport) in [("docker", "docker-archive"), ("oci", "oci-archive")] {
        let file = format!("{format}.tar");
        env.rbuild(&format!("save --format {format} -o {file} app:1")).ok();
        let tag = if format == "docker" { "app:1" } else { "1" };
        let mut skopeo = Command::new("skopeo");
        skopeo.current_dir(env.path("")).env("TMPDIR", env.path("tmp"));
        skopeo.args(["--insecure-policy", "copy", "-q"]);
        skopeo.args([format!("{transport}:{file}:{tag}"), format!("oci:{format}-copy:1")]);
        Run::of(&mut skopeo).ok();
        let mut inspect = Command::new("skopeo");
        inspect.current_dir(env.path("")).args(["inspect", "--raw", &format!("{transport}:{file}:{tag}")]);
        assert!(Run::of(&mut inspect).ok().stdout.contains(&id), "the config is another");
    }
}
