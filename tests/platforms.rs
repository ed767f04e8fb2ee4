//! Several platforms in one build: the index, what other tools read of it, commands through an emulator, `--load`.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::oci::{Image, sha256};

/// Files alone: no emulator is needed for that.
const FILES: &str = "FROM scratch\nARG TARGETPLATFORM\nCOPY <<EOF /platform\n$TARGETPLATFORM\nEOF\nCOPY f /f\n";

/// A program of arm64 that writes what the kernel calls the machine into `/machine`: uname, openat, write, exit.
fn arm64_program() -> Vec<u8> {
    const CODE: [u32; 17] = [
        0xd106_43ff, // sub sp, sp, #400
        0x9100_03e0, // mov x0, sp
        0xd280_1408, // mov x8, #160 (uname)
        0xd400_0001, // svc #0
        0x9280_0c60, // mov x0, #-100 (the working directory)
        0x1000_0181, // adr x1, path
        0xd280_0822, // mov x2, #0x41 (write, create)
        0xd280_3483, // mov x3, #0644
        0xd280_0708, // mov x8, #56 (openat)
        0xd400_0001, // svc #0
        0x9104_13e1, // add x1, sp, #260 (the field `machine`)
        0xd280_00e2, // mov x2, #7
        0xd280_0808, // mov x8, #64 (write)
        0xd400_0001, // svc #0
        0xd280_0000, // mov x0, #0
        0xd280_0ba8, // mov x8, #93 (exit)
        0xd400_0001, // svc #0
    ];
    const AT: u64 = 0x40_0000;
    let mut code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
    code.extend(b"/machine\0");
    let size = 120 + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
    elf.extend([AT + 120, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend([0, AT, AT, size, size, 0x1_0000].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    elf
}

fn files(env: &TestEnv) {
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", FILES);
}

fn text(image: &Image, path: &str) -> String {
    String::from_utf8(image.file(path)).expect("text")
}

fn platform(value: &Value) -> String {
    let part = |name: &str| value["platform"][name].as_str().map(|part| format!("/{part}")).unwrap_or_default();
    [part("os"), part("architecture"), part("variant")].concat()[1..].to_owned()
}

#[test]
fn an_archive_has_an_image_for_each_platform_under_one_index() {
    let env = TestEnv::new();
    files(&env);
    let list = "linux/amd64,linux/arm/v7,linux/arm64/v8,arm64";
    let run = env.build(&format!("--platform {list} -t a:1 -t b -o type=oci,dest=out.tar --metadata-file meta")).ok();
    let images = Image::read_all(&env.path("out.tar"));
    let platforms: Vec<String> = images.iter().map(|image| platform(&image.descriptor)).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm/v7", "linux/arm64"]);
    for (image, expected) in images.iter().zip(&platforms) {
        assert_eq!(&text(image, "platform"), &format!("{expected}\n"));
        assert_eq!(platform(&serde_json::json!({ "platform": image.config })), *expected, "the config says so too");
        assert_eq!(image.names, ["docker.io/library/a:1", "docker.io/library/b:latest"]);
        let (descriptor, index) = image.index.as_ref().expect("an index");
        assert_eq!(descriptor["digest"], run.image().as_str(), "the id is the index's digest");
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    }
    let meta: Value = serde_json::from_slice(&std::fs::read(env.path("meta")).expect("written")).expect("JSON");
    assert_eq!(meta["containerimage.digest"], run.image().as_str());
    assert_eq!(meta["containerimage.descriptor"]["digest"], run.image().as_str());
    assert_eq!(meta["containerimage.config.digest"], Value::Null, "an index has no config");
    assert_eq!(meta["image.name"], "docker.io/library/a:1,docker.io/library/b:latest");
    assert_eq!(meta["rbuild.content.digest"], run.content().as_str());
    let ids: Vec<&str> = meta["rbuild.images"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|image| image["containerimage.config.digest"].as_str())
        .collect();
    assert_eq!(ids, images.iter().map(|image| image.id.as_str()).collect::<Vec<_>>());
}

#[test]
fn the_media_types_are_dockers_where_that_is_asked_for() {
    let env = TestEnv::new();
    files(&env);
    env.build("--platform linux/amd64,linux/arm64 -o type=oci,dest=out.tar,oci-mediatypes=false").ok();
    for image in Image::read_all(&env.path("out.tar")) {
        let kind = |value: &Value| value["mediaType"].as_str().expect("a media type").to_owned();
        let (_, index) = image.index.as_ref().expect("an index");
        assert_eq!(kind(index), "application/vnd.docker.distribution.manifest.list.v2+json");
        assert_eq!(kind(&image.manifest), "application/vnd.docker.distribution.manifest.v2+json");
        assert_eq!(kind(&image.manifest["config"]), "application/vnd.docker.container.image.v1+json");
    }
    // In the store too, and compressed there if that is asked for.
    env.build("--platform arm64 -t x -o type=image,oci-mediatypes=false,compression=zstd").ok();
    let shown = env.rbuild("inspect x").ok().stdout;
    assert!(shown.contains("application/vnd.docker.distribution.manifest.v2+json"), "{shown}");
    env.rbuild("inspect --verify x").ok();
}

#[test]
fn annotations_stand_where_they_belong() {
    let env = TestEnv::new();
    files(&env);
    env.run([
        "--platform=linux/amd64,linux/arm64",
        "-o",
        "type=oci,dest=out.tar,annotation.own=1,annotation-manifest[linux/amd64].amd=2",
        "--annotation=all=3",
        "--annotation=own=4",
        "--annotation=index:i=5",
        "--annotation=index-descriptor:id=6",
        "--annotation=manifest-descriptor[linux/arm64]:md=7",
        "ctx",
    ])
    .ok();
    let images = Image::read_all(&env.path("out.tar"));
    let (descriptor, index) = images[0].index.as_ref().expect("an index");
    let mut found = String::new();
    for (name, value) in [
        ("index descriptor", descriptor),
        ("index", index),
        ("amd64 descriptor", &images[0].descriptor),
        ("amd64", &images[0].manifest),
        ("arm64 descriptor", &images[1].descriptor),
        ("arm64", &images[1].manifest),
    ] {
        writeln!(found, "{name} {}", value["annotations"]).expect("memory takes every write");
    }
    assert_eq!(
        found,
        "index descriptor {\"id\":\"6\"}\nindex {\"i\":\"5\"}\namd64 descriptor null\n\
         amd64 {\"all\":\"3\",\"amd\":\"2\",\"own\":\"1\"}\narm64 descriptor {\"md\":\"7\"}\n\
         arm64 {\"all\":\"3\",\"own\":\"1\"}\n"
    );
    // An image alone keeps its id: annotations are no part of it.
    let plain = env.build("--platform arm64 -o type=oci,dest=a.tar").ok();
    let annotated = env.build("--platform arm64 --annotation k=v -o type=oci,dest=b.tar -t x -o type=image").ok();
    assert_eq!(plain.image(), annotated.image());
    let image = Image::read(&env.path("b.tar"));
    assert_eq!(image.manifest["annotations"], serde_json::json!({"k": "v"}));
    assert_eq!(Image::read(&env.path("a.tar")).manifest["annotations"], Value::Null);
    for (args, why) in [
        ("--annotation index:a=b", "the annotation a is for an index, and the result is one image without"),
        (
            "--platform arm64 --annotation manifest[linux/amd64]:a=b",
            "there is no such image: the result is for linux/arm64",
        ),
        ("--annotation a=b -o type=oci,dest=c,oci-mediatypes=false", "Docker's manifests have no annotations"),
        ("--annotation indx:a=b", "did you mean index?"),
    ] {
        env.build(args).ends(2).says(why);
    }
}

#[test]
fn other_tools_read_the_index() {
    if !needs("other_tools_read_the_index", &[Need::Program("skopeo"), Need::Program("umoci")]) {
        return;
    }
    let env = TestEnv::new();
    files(&env);
    let run = env.build("--platform linux/amd64,linux/arm64 -t x:1 -o type=oci,dest=out.tar").ok();
    let tool = |program: &str, args: &[&str]| {
        Run::of(Command::new(program).args(args).current_dir(env.path("")).env("TMPDIR", env.path("tmp"))).ok()
    };
    let raw = tool("skopeo", &["inspect", "--raw", "oci-archive:out.tar:1"]).stdout;
    assert_eq!(sha256(raw.as_bytes()), run.image());
    tool("skopeo", &["copy", "-q", "--all", "oci-archive:out.tar:1", "dir:all"]);
    for architecture in ["amd64", "arm64"] {
        let to = format!("oci:one:{architecture}");
        let from = ["copy", "-q", "oci-archive:out.tar:1", &to];
        tool("skopeo", &[&["--override-os=linux", "--override-arch", architecture], &from[..]].concat());
        let (image, bundle) = (format!("one:{architecture}"), format!("bundle-{architecture}"));
        tool("umoci", &["raw", "unpack", "--rootless", "--image", &image, &bundle]);
        let platform = std::fs::read_to_string(env.path(&bundle).join("platform")).expect("unpacked");
        assert_eq!(platform, format!("linux/{architecture}\n"));
    }
}

#[test]
fn root_and_an_ordinary_user_make_the_same_index() {
    let test = "root_and_an_ordinary_user_make_the_same_index";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Root, Need::User]) {
        return;
    }
    let user = test_user().expect("looked up before");
    let build = |mut env: TestEnv| {
        env.set("SOURCE_DATE_EPOCH", "0");
        env.write(
            "ctx/Dockerfile",
            "FROM --platform=$BUILDPLATFORM busybox AS build\nRUN mkdir /out && echo a > /out/a\nARG TARGETARCH\n\
             RUN echo $TARGETARCH > /out/b\nFROM scratch\nCOPY --from=build /out /\n",
        );
        env.import_busybox();
        let run = env.build("--platform linux/arm64,linux/riscv64 -t x").ok();
        // What both need is run once.
        let shared = run.stderr.lines().filter(|line| line.starts_with('#') && line.contains("RUN mkdir")).count();
        assert_eq!(shared, 1, "{}", run.shown());
        let again = env.build("--platform linux/arm64,linux/riscv64 -t x").ok();
        assert_eq!((again.image(), again.cached()), (run.image(), 5));
        (run.image(), run.content())
    };
    assert_eq!(build(TestEnv::new()), build(TestEnv::as_user(&user)));
}

fn emulated(mut env: TestEnv) -> String {
    env.set("SOURCE_DATE_EPOCH", "0");
    env.write("ctx/program", arm64_program());
    env.mode("ctx/program", 0o755);
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY program /\nRUN [\"/program\"]\n");
    let run = env.build("--platform linux/arm64 -o type=oci,dest=out.tar").ok();
    assert_eq!(text(&Image::read(&env.path("out.tar")), "machine"), "aarch64");
    run.image()
}

#[test]
fn commands_for_another_architecture_run_through_an_emulator() {
    let test = "commands_for_another_architecture_run_through_an_emulator";
    if !needs(test, &[Need::Run, Need::Emulator]) {
        return;
    }
    let env = TestEnv::new();
    env.rbuild("info").ok();
    let image = emulated(env);
    if needs(test, &[Need::Root, Need::User]) {
        assert_eq!(image, emulated(TestEnv::as_user(&test_user().expect("looked up before"))));
    }
}

#[test]
fn without_an_emulator_the_package_is_named() {
    if !needs("without_an_emulator_the_package_is_named", &[Need::Run]) {
        return;
    }
    let env = TestEnv::new();
    // Nobody registers emulators for what has no Linux of its own.
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\nRUN [\"/x\"]\n");
    env.build("--platform linux/wasm")
        .ends(1)
        .says("RUN for linux/wasm needs an emulator on a machine that is linux/")
        .says("Dockerfile:3:1")
        .says("FROM --platform=$BUILDPLATFORM needs none");
    env.build("--platform windows/amd64").ends(1).says("commands of windows run on windows alone");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    env.build("--platform linux/wasm").ok();
}

/// A program that keeps what it is given, as `docker load` would.
fn fake(env: &TestEnv, name: &str, script: &str) {
    env.write(&format!("bin/{name}"), format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(env.path("bin").join(name), std::fs::Permissions::from_mode(0o755)).expect("own file");
}

#[test]
fn the_result_is_handed_to_docker_or_podman() {
    let mut env = TestEnv::new();
    files(&env);
    let (bin, loaded) = (env.path("bin"), env.path("loaded.tar"));
    env.set("PATH", &bin.display().to_string());
    let keep = format!("[ \"$*\" = load ] && /bin/cat > {} && echo Loaded image: it", loaded.display());
    fake(&env, "podman", &keep);
    env.build("-t x --load").ok().says("Loaded image: it").says("`podman load`");
    fake(&env, "docker", &keep);
    let run = env.build("-t x:1 --load").ok().says("Loaded image: it").says("`docker load`");
    let image = Image::read_docker(&loaded);
    assert_eq!((image.id.clone(), image.names), (run.image(), vec!["x:1".to_owned()]));
    assert!(env.rbuild("images -q x:1").ok().stdout.len() > 12, "without -o it is in the store as well");
    std::fs::remove_file(&loaded).expect("it was written");
    env.build("-t x:2 -o type=docker").ok().says("Loaded image: it");
    assert_eq!(Image::read_docker(&loaded).id, image.id);
    assert_eq!(env.rbuild("images -q x:2").ok().stdout, "", "with -o it goes where that says");
    // What hinders it is told.
    fake(&env, "docker", "echo no daemon >&2; exit 7");
    env.build("--load").ends(1).says("`docker load` failed (exit status: 7): no daemon");
    // A build that fails hands nothing over.
    fake(&env, "docker", &format!("/bin/cat > {}; echo complaint >&2; exit 1", loaded.display()));
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY nothing /\n");
    env.build("--load").ends(1).says_nothing_of("complaint");
    files(&env);
    env.build("--load --platform linux/amd64,linux/arm64")
        .ends(2)
        .says("takes one image, and this result is an index (linux/amd64, linux/arm64)");
}

#[test]
fn neither_docker_nor_podman() {
    let mut env = TestEnv::new();
    files(&env);
    env.directory(&env.path("bin"));
    env.set("PATH", &env.path("bin").display().to_string());
    env.build("--load").ends(1).says("neither docker nor podman is in PATH").says("-o type=docker,dest=FILE");
}

/// A store with an index `multi` for two platforms, and `one` for amd64 alone.
fn two_platforms() -> TestEnv {
    let env = TestEnv::new();
    files(&env);
    env.build("-t multi --platform linux/amd64,linux/arm64").ok();
    env.build("-t one --platform linux/amd64").ok();
    env
}

#[test]
fn one_platform_of_several_is_shown() {
    let env = two_platforms();
    let inspect = |args: &[&str]| {
        let run = env.run(["inspect", "-f", "{{.Architecture}} {{.Id}} {{.ContentDigest}}"].iter().chain(args));
        run.ok().stdout
    };
    assert!(inspect(&["--platform", "linux/arm64", "multi"]).starts_with("arm64 "));
    assert_eq!(inspect(&["--platform=amd64", "multi"]), inspect(&["one"]), "it is shown as if it stood alone");
    let whole: Value = serde_json::from_str(&env.rbuild("inspect multi").ok().stdout).unwrap();
    assert_eq!(whole[0]["Manifests"].as_array().map(Vec::len), Some(2));
    env.rbuild("inspect --platform linux/arm multi")
        .ends(1)
        .says("nothing for linux/arm")
        .says("linux/amd64, linux/arm64");
    env.rbuild("inspect --platform linux/arm64 one").ends(1).says("one has nothing for linux/arm64");
    env.rbuild("inspect --platform nonsense one").ends(2).says("--platform");
    let history = |args: &str| env.rbuild(&format!("history -q --no-trunc {args}")).ok().stdout;
    assert_ne!(history("--platform linux/arm64 multi"), history("--platform linux/amd64 multi"));
    assert_eq!(history("--platform linux/amd64 multi"), history("one"));
    env.rbuild("history --platform linux/s390x multi").ends(1).says("nothing for linux/s390x");
}

#[test]
fn some_platforms_of_several_are_saved_and_loaded() {
    let env = two_platforms();
    env.build("-t three --platform linux/amd64,linux/arm64,linux/s390x").ok();
    let platforms = |env: &TestEnv, name: &str| {
        let shown: Value = serde_json::from_str(&env.rbuild(&format!("inspect {name}")).ok().stdout).unwrap();
        let one = || format!("{}/{}", shown[0]["Os"].as_str().unwrap(), shown[0]["Architecture"].as_str().unwrap());
        match shown[0]["Manifests"].as_array() {
            None => one(),
            Some(all) => all.iter().map(|image| image["Platform"].as_str().unwrap()).collect::<Vec<_>>().join(","),
        }
    };
    for format in ["oci", "docker"] {
        env.rbuild(&format!("save --format {format} -o all.tar three")).ok();
        for (wanted, expected) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/s390x,linux/amd64", "linux/s390x,linux/amd64"),
            ("linux/amd64,linux/arm64,linux/s390x", "linux/amd64,linux/arm64,linux/s390x"),
        ] {
            env.rbuild(&format!("save --format {format} --platform {wanted} -o some.tar three")).ok();
            let (saved, loaded) = (TestEnv::new(), TestEnv::new());
            saved.run(["load", "-i", &env.path("some.tar").display().to_string()]).ok();
            assert_eq!(platforms(&saved, "three"), expected, "save {format}");
            let all = env.path("all.tar").display().to_string();
            loaded.run(["load", "--platform", wanted, "-i", &all]).ok();
            let mut expected: Vec<&str> = expected.split(',').collect();
            expected.sort_unstable();
            assert_eq!(platforms(&loaded, "three"), expected.join(","), "load {format}");
            loaded.rbuild("inspect --verify three").ok();
        }
    }
    env.rbuild("save --platform linux/riscv64 -o none.tar three").ends(1).says("nothing for linux/riscv64");
    assert!(!env.path("none.tar").exists());
    let none = TestEnv::new();
    none.run(["load", "--platform", "linux/riscv64", "-i", &env.path("all.tar").display().to_string()])
        .ends(1)
        .says("has no image for linux/riscv64");
    assert_eq!(none.rbuild("images -aq").ok().stdout, "");
    env.rbuild("save -o one.tar one").ok();
    none.run(["load", "--platform", "linux/arm64", "-i", &env.path("one.tar").display().to_string()])
        .ends(1)
        .says("has no image for linux/arm64; it has linux/amd64");
}

#[test]
fn indexes_are_compared_platform_by_platform() {
    let env = two_platforms();
    assert_eq!(env.rbuild("diff multi multi").ok().stdout, "");
    env.write("ctx/Dockerfile", format!("{FILES}ENV A=b\n"));
    env.build("-t changed --platform linux/amd64,linux/s390x").ok();
    let found = env.rbuild("diff multi changed").ends(1).stdout;
    for line in ["linux/arm64: only in the first\n", "linux/s390x: only in the second\n", "\nlinux/amd64\n", "A=b"] {
        assert!(found.contains(line), "{line:?}: {found}");
    }
    let json: Value = serde_json::from_str(&env.rbuild("diff --format json multi changed").ends(1).stdout).unwrap();
    assert_eq!(json["equal"], false);
    let change = |platform: &str| {
        let all = json["platforms"].as_array().unwrap();
        all.iter().find(|one| one["platform"] == platform).unwrap()["change"].as_str().unwrap().to_owned()
    };
    assert_eq!(["linux/amd64", "linux/arm64", "linux/s390x"].map(change), ["changed", "removed", "added"]);
    // An index with an image: for the platform that both have.
    let found = env.rbuild("diff multi one").ends(1).stdout;
    assert!(found.contains("linux/arm64: only in the first\n") && !found.contains("\nlinux/amd64\n"), "{found}");
}
