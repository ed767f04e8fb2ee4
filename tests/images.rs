//! The commands on the store, beyond what `testdata/scenarios/store.test` shows: bringing images in, names and ids,
//! and what removing leaves.

use crate::support::base::{RootTar, TIME};
use crate::support::env::TestEnv;
use crate::support::oci::{Image, sha256};

fn layer(name: &str) -> Vec<u8> {
    let mut tar = RootTar::new();
    tar.file(name, 0o644, name.as_bytes());
    tar.finish()
}

fn compressed(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write as _;
    let mut child = std::process::Command::new(program)
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(bytes).ok()?;
    Some(child.wait_with_output().ok()?.stdout)
}

#[test]
fn import_takes_any_compression() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    let tar = layer("f");
    let mut ids = Vec::new();
    env.write("plain.tar", &tar);
    env.rbuild("import plain.tar plain").ok();
    for program in ["gzip", "zstd", "bzip2", "xz"] {
        // Where a program is not installed its format is not tried; tests/run.sh installs them all.
        let Some(bytes) = compressed(program, &tar) else { continue };
        env.write("packed.tar", &bytes);
        env.rbuild(&format!("import packed.tar {program}")).ok();
        ids.push(env.rbuild(&format!("images -q --no-trunc {program}")).ok().stdout);
    }
    let plain = env.rbuild("images -q --no-trunc plain").ok().stdout;
    assert!(!ids.is_empty() && ids.iter().all(|id| *id == plain), "{plain:?} {ids:?}");
    assert!(env.rbuild("inspect plain").ok().stdout.contains(&sha256(&tar)));
}

#[test]
fn import_has_instructions_and_an_epoch() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "86400");
    env.write("f.tar", layer("f"));
    env.run(["import", "-c", "ENV A=b", "-c", "CMD [\"x\"]", "f.tar", "named:tag"]).ok();
    let of = |what: &str| env.run(["inspect", "-f", what, "named:tag"]).ok().stdout;
    assert_eq!(of("{{.Created}}"), "1970-01-02T00:00:00Z\n");
    assert_eq!(of("{{json .Config.Cmd}}"), "[\"x\"]\n");
    assert!(of("{{json .Config.Env}}").contains("\"A=b\""));
    env.write("ctx/Dockerfile", "FROM named:tag\n");
    env.build("-o type=oci,dest=out.tar").ok();
    let image = Image::read(&env.path("out.tar"));
    assert_eq!(image.tree()["f"].mtime, TIME, "the tar's bytes stay what they are");
}

#[test]
fn import_refuses_what_is_no_tar() {
    let env = TestEnv::new();
    for (name, bytes) in [
        ("text", b"this is no tar at all, whatever its name may say".repeat(40)),
        ("cut", layer("f")[..700].to_vec()),
        ("gzip", b"\x1f\x8b\x08 not really".to_vec()),
    ] {
        env.write("bad.tar", bytes);
        let run = env.rbuild("import bad.tar bad").ends(1).says("bad.tar").says_nothing_of("panicked");
        assert_eq!(run.stdout, "", "{name}");
    }
    env.rbuild("import nosuch.tar bad").ends(1).says("nosuch.tar");
    assert_eq!(env.rbuild("images -q").ok().stdout, "", "nothing was stored");
}

#[test]
fn load_verifies_what_it_reads() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.write("ctx/f", "precious");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
    let built = env.build("-t some/name:tag -o type=oci,dest=oci.tar,compression=uncompressed").ok();
    env.rbuild("load -i oci.tar").ok();
    assert_eq!(env.rbuild("images -q --no-trunc some/name:tag").ok().stdout.trim(), built.image());
    // One byte of the layer's data is another.
    let mut bytes = std::fs::read(env.path("oci.tar")).expect("written before");
    let at = bytes.windows(8).position(|window| window == b"precious").expect("the layer holds the file");
    bytes[at] = b'P';
    env.write("bad.tar", &bytes);
    env.empty_store();
    env.rbuild("load -i bad.tar").ends(1).says("sha256:").says_nothing_of("panicked");
    assert_eq!(env.rbuild("images -q").ok().stdout, "");
    env.build("-t some/name:tag -o type=docker,dest=docker.tar").ok();
    env.rbuild("load -i docker.tar").ok();
    assert_eq!(env.rbuild("images -q --no-trunc some/name:tag").ok().stdout.trim(), built.image());
}

#[test]
fn ids_may_be_shortened_until_they_are_ambiguous() {
    let env = TestEnv::new();
    // Enough images for two ids to begin alike.
    let mut ids = Vec::new();
    for n in 0..20 {
        env.write("ctx/Dockerfile", format!("FROM scratch\nLABEL n={n}\n"));
        let id = env.build(&format!("-t n:{n}")).ok().image();
        ids.push(id["sha256:".len()..].to_owned());
    }
    let (one, two) = ids
        .iter()
        .enumerate()
        .find_map(|(at, id)| ids[at + 1..].iter().find(|other| other[..1] == id[..1]).map(|other| (id, other)))
        .expect("20 ids cannot begin with 20 of 16 digits");
    let common = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
    env.rbuild(&format!("inspect {}", &one[..common])).ends(1).says(&one[..common]);
    let found = env.run(["inspect", "-f", "{{.Id}}", &one[..12]]).ok();
    assert_eq!(found.stdout.trim(), format!("sha256:{one}"));
    env.rbuild(&format!("tag {} again", &one[..12])).ok();
    assert_eq!(env.rbuild("images -q --no-trunc again").ok().stdout.trim(), format!("sha256:{one}"));
}

#[test]
fn a_tag_that_moves_leaves_the_old_image_unnamed() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nLABEL n=1\n");
    let first = env.build("-t moving").ok().image();
    env.write("ctx/Dockerfile", "FROM scratch\nLABEL n=2\n");
    let second = env.build("-t moving").ok().image();
    assert_ne!(first, second);
    assert_eq!(env.rbuild("images -q --no-trunc moving").ok().stdout.trim(), second);
    let all = env.rbuild("images -a --no-trunc").ok().stdout;
    assert!(all.lines().any(|line| line.starts_with("<none>") && line.contains(&first)), "{all}");
}

#[test]
fn names_are_refused_with_a_reason() {
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\n");
    for name in ["UPPER", "a//b", "a:b:c", "a@sha256:12", "-x/y", "a/"] {
        let run = env.run(["build", &format!("--tag={name}"), "ctx"]);
        assert!(matches!(run.code, Some(1 | 2)), "{}", run.shown());
        run.says(name).says_nothing_of("panicked");
    }
}
