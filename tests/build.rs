//! Builds as others see them: tools that read images, scripts that read exit status and streams.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::base::{RootTar, TIME};
use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};
use crate::support::oci::{Image, sha256};

/// Runs another program, which must succeed, and gives what it printed.
#[track_caller]
fn tool(folder: &Path, line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .current_dir(folder)
        .env("HOME", folder.join("home"))
        .env("XDG_RUNTIME_DIR", folder.join("tmp"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An archive may give a further name to a file that the image has: the file comes into the layer with it.
#[test]
fn an_archive_names_a_file_of_the_image_anew() {
    let env = TestEnv::new();
    let mut root = RootTar::new();
    root.directory("etc", 0o750, (1, 2));
    root.push(tar::EntryType::Regular, "etc/f", 0o640, (3, 4), None, &b"text".repeat(5000));
    env.write("ctx/root.tar", root.finish());
    let mut more = RootTar::new();
    for name in ["h", "sub/again"] {
        more.push(tar::EntryType::Link, name, 0o600, (0, 0), Some("etc/f"), b"");
    }
    env.write("ctx/more.tar", more.finish());
    let build = |dockerfile: &str| {
        env.write("ctx/Dockerfile", dockerfile);
        env.build("-o type=oci,dest=out.tar").ok();
        Image::read(&env.path("out.tar"))
    };
    let image = build("FROM scratch\nADD root.tar /\nADD more.tar /\n");
    assert_eq!(image.top_layer(), ["etc/", "etc/f", "h", "sub/", "sub/again"]);
    let tree = image.tree();
    for name in ["etc/f", "h", "sub/again"] {
        let node = &tree[name];
        assert_eq!((node.kind, node.mode, node.owner, node.size), ('-', 0o640, (3, 4), 20_000), "{name}");
        assert_eq!((node.file, node.mtime), (tree["etc/f"].file, TIME), "{name}");
    }
    assert_eq!((tree["etc"].mode, tree["etc"].owner), (0o750, (1, 2)));
    env.build("").ok().says("CACHED");
    // It counts what the file is, and nothing else of what is below.
    env.write("ctx/other", "");
    let build_on = |more: &str| {
        env.write("ctx/Dockerfile", format!("FROM scratch\nADD root.tar /\n{more}\nADD more.tar /\n"));
        env.build("--progress plain").ok().cached()
    };
    assert_eq!(build_on("COPY other /other"), 2, "the landing is the same");
    assert_eq!(build_on("COPY other /etc/f"), 1, "another file");
    env.write("ctx/same", "text".repeat(5000));
    assert_eq!(build_on("COPY --chown=3:4 --chmod=640 same /etc/f"), 2, "the same file once more");
    assert_eq!(build_on("COPY --chown=3:4 --chmod=600 same /etc/f"), 1, "with another mode");
    // Read from a layer that was damaged it is no change of the file: the layer is made anew by the next build.
    env.write("ctx/Dockerfile", "FROM scratch\nADD root.tar /\nADD --chown=5:6 more.tar /\n");
    for layer in std::fs::read_dir(env.store().join("layers")).expect("layers") {
        let tar = layer.expect("a layer").path().join("tar");
        let mut bytes = std::fs::read(&tar).unwrap_or_default();
        if let Some(place) = bytes.windows(8).position(|window| window == b"texttext") {
            bytes[place] ^= 1;
            std::fs::write(&tar, bytes).expect("written");
        }
    }
    env.build("").ends(1).says("is damaged");
    env.build("").ok();
    env.write("ctx/Dockerfile", "FROM scratch\nADD root.tar /\nADD --link more.tar /\n");
    env.build("").ends(1).says("is a hard link to \"etc/f\", which is no file before it");
}

#[test]
fn skopeo_and_umoci_take_what_is_written() {
    let test = "skopeo_and_umoci_take_what_is_written";
    let wanted = [Need::Busybox, Need::Run, Need::Program("skopeo"), Need::Program("umoci")];
    if !needs(test, &wanted) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/f", "f");
    env.write(
        "ctx/Dockerfile",
        "FROM busybox\nCOPY f /d/f\nRUN rm /etc/motd && ln /d/f /d/same && mkfifo /p && chown 1:2 /d\nEXPOSE 80\nHEALTHCHECK CMD true\nCMD [\"sh\"]\n",
    );
    for compression in ["gzip", "zstd", "uncompressed"] {
        let built = env.build(&format!("-t example.org/a/b:c -o type=oci,dest=oci.tar,compression={compression}")).ok();
        let image = Image::read(&env.path("oci.tar"));
        assert_eq!(image.names, ["example.org/a/b:c"]);
        let seen: Value =
            serde_json::from_str(&tool(&env.path(""), "skopeo inspect --raw oci-archive:oci.tar")).expect("JSON");
        assert_eq!(seen, image.manifest);
        let config = tool(&env.path(""), "skopeo inspect --config --raw oci-archive:oci.tar");
        assert_eq!(sha256(config.trim_end().as_bytes()), built.image());
        tool(&env.path(""), "skopeo copy -q oci-archive:oci.tar oci:copied:tag");
        if compression != "zstd" {
            // umoci of Debian 12 knows no zstd.
            let unpack = if rustix::process::geteuid().is_root() { "" } else { "--rootless " };
            tool(&env.path(""), &format!("umoci unpack {unpack}--image copied:tag bundle"));
            let root = env.path("bundle/rootfs");
            assert!(root.join("d/f").is_file() && !root.join("etc/motd").exists());
            std::fs::remove_dir_all(env.path("bundle")).expect("own files go");
        }
        std::fs::remove_dir_all(env.path("copied")).expect("own files go");
    }
    let built = env.build("-t example.org/a/b:c -o type=docker,dest=docker.tar").ok();
    let image = Image::read_docker(&env.path("docker.tar"));
    assert_eq!((image.names.as_slice(), &image.id), (&["example.org/a/b:c".to_owned()][..], &built.image()));
    let seen: Value =
        serde_json::from_str(&tool(&env.path(""), "skopeo inspect docker-archive:docker.tar")).expect("JSON");
    assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(3));
}

#[test]
fn streams_and_status() {
    let env = TestEnv::new();
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
    let run = env.build("-t x").ok();
    assert_eq!(run.stdout, "", "results alone go to standard output");
    let quiet = env.build("-q -t x --iidfile id").ok();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), (format!("{}\n", run.image()).as_str(), ""));
    assert_eq!(std::fs::read_to_string(env.path("id")).expect("written"), run.image());
    let tar = env.command(["build", "-o", "-", "ctx"]).output().expect("rbuild starts");
    assert!(tar.status.success());
    let names: Vec<_> = tar::Archive::new(tar.stdout.as_slice())
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("a whole tar").path().expect("a path").into_owned())
        .collect();
    assert_eq!(names, [Path::new("f")]);
    for (line, code) in
        [("--wrong ctx", 2), ("", 2), ("nowhere", 1), ("build", 2), ("images --wrong", 2), ("inspect nosuch", 1)]
    {
        env.rbuild(line).ends(code).says_nothing_of("panicked");
    }
    // Whoever reads standard output has gone: no panic, no error.
    let mut child =
        env.command(["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rbuild starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("rbuild ends");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn dockerfiles_come_from_where_docker_finds_them() {
    let env = TestEnv::new();
    env.write("ctx/f", "f");
    let text = |n: u32| format!("FROM scratch\nLABEL n={n}\nCOPY f /\n");
    env.write("ctx/Containerfile", text(1));
    env.write("elsewhere/My.dockerfile", text(2));
    let label = |args: &str| {
        env.build(&format!("{args} -o type=oci,dest=out.tar")).ok();
        Image::read(&env.path("out.tar")).config["config"]["Labels"]["n"].as_str().map(str::to_owned)
    };
    assert_eq!(label("").as_deref(), Some("1"));
    assert_eq!(label("-f elsewhere/My.dockerfile").as_deref(), Some("2"));
    env.write("ctx/dockerfile", text(3));
    assert_eq!(label("").as_deref(), Some("3"));
    env.write("ctx/real", text(4));
    env.link("ctx/Dockerfile", "real");
    assert_eq!(label("").as_deref(), Some("4"));
    let mut child = env
        .command(["build", "-q", "-f", "-", "ctx"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rbuild starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("asked for"), text(5).as_bytes()).expect("rbuild reads");
    assert!(child.wait_with_output().expect("rbuild ends").status.success());
}

#[test]
fn large_sparse_and_oddly_named_files() {
    let env = TestEnv::new();
    let long = format!("{}/{}", "long".repeat(40), "name".repeat(40));
    for name in ["with blank", "ünïcode", "per%cent+plus", "-dash", "new\nline", long.as_str()] {
        env.write(&format!("ctx/d/{name}"), name);
    }
    let sparse = std::fs::File::create(env.path("ctx/d/sparse")).expect("a new file");
    sparse.set_len(64 << 20).expect("a hole");
    env.mode("ctx/d/sparse", 0o644);
    let bytes = std::os::unix::ffi::OsStringExt::from_vec(b"not\xff\xfeutf8".to_vec());
    let odd: std::ffi::OsString = bytes;
    std::fs::write(env.path("ctx/d").join(odd), "x").expect("Linux takes any bytes");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY d /d\n");
    env.build("-o type=oci,dest=out.tar").ok();
    let image = Image::read(&env.path("out.tar"));
    assert_eq!(image.tree()["d/sparse"].size, 64 << 20);
    assert_eq!(image.file(&format!("d/{long}")), long.as_bytes());
    assert_eq!(image.file("d/new\nline"), b"new\nline");
    assert!(image.tree().len() >= 10);
}

#[test]
fn bases_from_outside_are_taken_as_they_are() {
    let test = "bases_from_outside_are_taken_as_they_are";
    if !needs(test, &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    // A root entry of its own, a lone file without its parents, a device, ids far up.
    let mut tar = RootTar::new();
    tar.directory(".", 0o711, (0, 0));
    tar.push(tar::EntryType::Regular, "opt/deep/lone", 0o640, (1234, 4321), None, b"lone");
    tar.push(tar::EntryType::Char, "dev/odd", 0o600, (0, 0), None, b"");
    let bytes = tar.finish();
    env.write("odd.tar", &bytes);
    env.rbuild("import odd.tar odd").ok();
    env.import_busybox();
    let shown = env.rbuild("inspect odd").ok();
    assert!(shown.stdout.contains(&sha256(&bytes)), "its uncompressed bytes are kept: diffID is their digest");
    env.write("ctx/Dockerfile", "FROM odd\nCOPY --from=busybox /bin/busybox /bin/sh\nRUN stat -c %a / > /mode; stat -c '%u %g' /opt/deep/lone > /ids\n");
    // busybox goes by the name it was called.
    env.write(
        "ctx/Dockerfile",
        "FROM odd\nCOPY --from=busybox /bin/busybox /bin/\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox stat -c %a / > /mode\"]\n",
    );
    env.build("-o type=oci,dest=out.tar").ok();
    let image = Image::read(&env.path("out.tar"));
    assert_eq!(image.file("mode"), b"711\n");
    assert_eq!(image.layers[0], bytes);
    let lone = &image.tree()["opt/deep/lone"];
    assert_eq!((lone.owner, lone.mtime), ((1234, 4321), TIME));
}

#[test]
fn devices_fifos_and_attributes_come_through_a_stage() {
    let test = "devices_fifos_and_attributes_come_through_a_stage";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    env.write(
        "ctx/Dockerfile",
        "FROM busybox AS a\nRUN mkdir /x && mknod /x/null c 1 3 && mkfifo /x/p\nFROM scratch\nCOPY --from=a /x /x\n",
    );
    env.build("-o type=oci,dest=out.tar").ok();
    let tree = Image::read(&env.path("out.tar")).tree();
    assert_eq!((tree["x/null"].kind, tree["x/null"].link.as_str(), tree["x/p"].kind), ('c', "1,3", 'p'));
}

#[test]
fn independent_stages_run_at_once() {
    if !needs("independent_stages_run_at_once", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    env.import_busybox();
    // Stages share nothing, so no file can tell one that the other has begun: both take a moment, and the log has to show
    // both commands before the end of either.
    let wait = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); sleep 0.02; done";
    env.write(
        "ctx/Dockerfile",
        format!("FROM busybox AS a\nRUN {wait}; echo a > /a\nFROM busybox AS b\nRUN {wait}; echo b > /b\nFROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n"),
    );
    let log = env.build("--progress plain --jobs 2").ok().stderr;
    // Both begin before either is done.
    let position = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in\n{log}"));
    let (a, b) = (position("echo a > /a"), position("echo b > /b"));
    let done = log.find("DONE").unwrap_or_else(|| panic!("nothing is done in\n{log}"));
    assert!(a < done && b < done, "one stage waited for the other\n{log}");
}

#[test]
fn unsupported_things_are_refused_by_name() {
    let env = TestEnv::new();
    for (line, name) in [
        ("RUN --mount=type=cache,target=/c true", "--mount"),
        ("ADD https://example.invalid/x /x", "https://example.invalid/x"),
        ("RUN --security=insecure true", "security"),
    ] {
        env.write("ctx/Dockerfile", format!("FROM scratch\n{line}\n"));
        env.build("").ends(1).says(name).says_nothing_of("panicked");
    }
}
