//! What comes from elsewhere: contexts in tars, git repositories and URLs, and ADD of the same.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::oci::{Image, sha256};
use crate::support::web::{Page, Web};

const OLD: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const OLD_SECONDS: u64 = 1_445_412_480;

/// Builds `dockerfile` with these arguments; the run, and the image.
fn build(env: &TestEnv, dockerfile: &str, args: &str) -> (Run, Image) {
    env.write("ctx/Dockerfile", dockerfile);
    let run = env.build(&format!("{args} -o type=oci,dest=out.tar")).ok();
    (run, Image::read(&env.path("out.tar")))
}

/// Runs rbuild with these bytes on its standard input.
fn with_stdin(env: &TestEnv, line: &str, bytes: &[u8]) -> Run {
    env.write("stdin", bytes);
    let file = std::fs::File::open(env.path("stdin")).expect("it was written");
    Run::of(env.command(line.split_whitespace()).stdin(file))
}

/// Runs a program of this machine in a folder.
fn tool(folder: &Path, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "protocol.file.allow")
        .env("GIT_CONFIG_VALUE_0", "always")
        .envs(["AUTHOR", "COMMITTER"].into_iter().flat_map(|who| {
            let name = |what: &str| format!("GIT_{who}_{what}");
            [
                (name("NAME"), "me".to_owned()),
                (name("EMAIL"), "me@x".to_owned()),
                (name("DATE"), "1500000000 +0000".to_owned()),
            ]
        }))
        .output()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Packs `ctx` without its own name.
fn packed(env: &TestEnv, flags: &str) -> Vec<u8> {
    tool(&env.path(""), &format!("tar -C ctx -c{flags}f packed.tar ."));
    std::fs::read(env.path("packed.tar")).expect("tar wrote it")
}

/// Case 5.7-79 of the semantics.
#[test]
fn a_tar_on_standard_input_is_a_context() {
    if !needs("remote::tar", &["zstd", "xz", "bzip2", "gzip"].map(Need::Program)) {
        return;
    }
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.write("ctx/sub/file", "text");
    env.write("ctx/Other", "FROM scratch\nCOPY sub/file /other\n");
    env.mode("ctx/sub", 0o555);
    let (folder, _) = build(&env, "FROM scratch\nCOPY . /all/\n", "-t a");
    for flags in ["", "z", "j", "J", "-zstd -"] {
        let flags = flags.replace("-zstd -", " --zstd -");
        let tar = packed(&env, &flags);
        let run = with_stdin(&env, "build -t b -", &tar).ok();
        assert_eq!((run.image(), run.cached()), (folder.image(), 1), "{flags}: content decides");
    }
    let tar = packed(&env, "");
    with_stdin(&env, "build -f Other -o type=local,dest=other -", &tar).ok();
    assert_eq!(std::fs::read(env.path("other/other")).unwrap(), b"text");
    env.write("Mine", "FROM scratch\nCOPY sub/file /mine\n");
    with_stdin(&env, "build -f Mine -o type=local,dest=mine -", &tar).ok();
    assert_eq!(std::fs::read(env.path("mine/mine")).unwrap(), b"text");
    with_stdin(&env, "build -f None -", &tar).ends(1).says("there is no Dockerfile None");
    with_stdin(&env, "build -f - ctx", b"FROM scratch\nCOPY sub /s\n").ok();
    with_stdin(&env, "build -f - ctx", &tar).ends(1).says("-f - wants a Dockerfile");
    with_stdin(&env, "build -", &tar[..2000]).ends(1).says("the tar is cut short");
    // Ignore files are for folders of this machine.
    env.write("ctx/.dockerignore", "sub\n");
    with_stdin(&env, "build -o type=local,dest=all -", &packed(&env, "")).ok();
    assert_eq!(std::fs::read(env.path("all/all/sub/file")).unwrap(), b"text");
    env.mode("ctx/sub", 0o755);
}

#[test]
fn a_hostile_tar_makes_nothing_outside_and_reads_nothing_there() {
    let env = TestEnv::new();
    env.write("secret", "secret");
    let tar_of = |entries: &[(tar::EntryType, &str, &str, &str)]| {
        let mut tar = crate::support::base::RootTar::new();
        for (kind, name, link, data) in entries {
            let link = (!link.is_empty()).then_some(*link);
            tar.push(*kind, name, 0o644, (0, 0), link, data.as_bytes());
        }
        tar.finish()
    };
    use tar::EntryType::{Fifo, Link, Regular, Symlink};
    let outside = env.path("secret").display().to_string();
    for (what, tar, says) in [
        ("path", tar_of(&[(Regular, "../../../x", "", "")]), "leads out of its directory"),
        ("hard link", tar_of(&[(Link, "x", "../../secret", "")]), "hard link out of the image"),
        ("dockerfile", tar_of(&[(Symlink, "Dockerfile", &outside, "")]), "there is no Dockerfile"),
        ("pipe", tar_of(&[(Fifo, "Dockerfile", "", "")]), "is no regular file"),
        (
            "link",
            tar_of(&[(Regular, "Dockerfile", "", "FROM scratch\nCOPY x /"), (Symlink, "x", &outside, "")]),
            "not found",
        ),
    ] {
        let run = with_stdin(&env, "build -", &tar).ends(1);
        assert!(run.stderr.contains(says), "{what}\n{}", run.shown());
    }
}

/// Case 5.7-79 of the semantics.
#[test]
fn a_url_is_a_context_a_dockerfile_or_both() {
    let (env, web) = (TestEnv::new(), Web::start());
    env.write("ctx/file", "text");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY file /f\n");
    web.put("/ctx.tar.gz", Page::of(packed(&env, "z")).etag("1"));
    web.put("/Dockerfile", Page::of("FROM scratch\nCOPY <<x /x\nhi\nx\n"));
    web.put("/ref", Page::of("FROM scratch\nCOPY file /from-url\n"));
    let url = web.url("/ctx.tar.gz");
    let run = env.rbuild(&format!("build {url}")).ok();
    assert_eq!(env.build("").ok().image(), run.image(), "a folder with the same files");
    assert_eq!(web.asked(), ["GET /ctx.tar.gz"]);
    env.rbuild(&format!("build {url}")).ok();
    assert_eq!(web.asked(), ["GET /ctx.tar.gz"], "conditional: no body came");
    env.rbuild(&format!("build -o type=local,dest=o {}", web.url("/Dockerfile"))).ok();
    assert_eq!(std::fs::read(env.path("o/x")).unwrap(), b"hi\n", "case 79");
    env.rbuild(&format!("build -f {} -o type=local,dest=p ctx", web.url("/ref"))).ok();
    assert_eq!(std::fs::read(env.path("p/from-url")).unwrap(), b"text");
    env.rbuild(&format!("build {}", web.url("/none"))).ends(1).says("answers 404");
    env.rbuild(&format!("build --offline {}", web.url("/ctx2"))).ends(1).says("--offline forbids it");
}

/// Case 5.7-80 of the semantics.
#[test]
fn named_contexts_come_from_elsewhere_only_when_they_are_used() {
    let (env, web) = (TestEnv::new(), Web::start());
    env.write("ctx/file", "text");
    env.write("ctx/hidden", "");
    env.write("ctx/.dockerignore", "hidden");
    web.put("/ctx.tar", Page::of(packed(&env, "")));
    let named = format!("--build-context lib={} --build-context other={}", web.url("/ctx.tar"), web.url("/none"));
    let (_, image) =
        build(&env, "FROM lib AS a\nFROM scratch\nCOPY --from=a /file /a\nCOPY --from=lib . /b/\n", &named);
    assert_eq!((image.file("a"), image.file("b/file")), (b"text".to_vec(), b"text".to_vec()));
    assert!(image.tree().contains_key("b/hidden"), "ignore files are for folders of this machine");
    assert_eq!(web.asked(), ["GET /ctx.tar"]);
}

/// Case 5.7-80 of the semantics.
#[test]
fn a_named_context_stands_in_for_an_image_config_and_all() {
    let env = TestEnv::new();
    env.write("ctx/file", "text");
    env.write("arm/file", "arm");
    env.write("base/Dockerfile", "FROM scratch\nENV FROM=base\nWORKDIR /w\nLABEL a=b\n");
    env.rbuild("build -t mine base").ok();
    let dockerfile = "FROM golang:1\nCOPY file $FROM\n";
    let (_, image) = build(&env, dockerfile, "--build-context golang:1=docker-image://mine");
    assert_eq!(image.file("w/base"), b"text");
    let config = &image.config["config"];
    assert_eq!((&config["Labels"]["a"], &config["WorkingDir"]), (&"b".into(), &"/w".into()), "{config}");
    // One for each platform, as whole stage and as source; what is not meant is not looked at.
    let dockerfile = "FROM scratch\nCOPY --from=lib file /copied\nFROM lib\nCOPY --from=0 /copied /copied\n";
    let named = "--build-context lib=ctx --build-context lib::linux/arm64=arm --build-context lib::linux/s390x=nowhere";
    for (platform, text) in [("linux/amd64", "text"), ("linux/arm64", "arm")] {
        let (_, image) = build(&env, dockerfile, &format!("{named} --platform {platform}"));
        assert_eq!((image.file("copied"), image.file("file")), (text.as_bytes().to_vec(), text.as_bytes().to_vec()));
    }
    env.rbuild("build --build-context lib::not/a/plat/form=ctx ctx").ends(2).says("what follows :: is a platform");
}

/// Case 5.1-27 of the semantics.
#[test]
fn a_file_of_a_url_has_its_name_its_time_and_mode_0600() {
    let (env, web) = (TestEnv::new(), Web::start());
    web.put("/foo", Page::of("foo").etag("1").header("Last-Modified", OLD));
    web.put("/", Page::of("root"));
    web.put("/a%20b", Page::of("spaces").header("Content-Disposition", "attachment; filename=other"));
    web.put("/moved", Page { status: 302, ..Page::default() }.header("Location", "/foo"));
    let dockerfile = format!(
        "FROM scratch\nARG HOST={}\nADD http://$HOST/foo /dest/\nADD http://$HOST/ /dest/\nADD http://$HOST/a%20b /dest/\n\
         ADD --chmod=644 --chown=5:6 http://$HOST/moved /file\n",
        web.host()
    );
    let (_, image) = build(&env, &dockerfile, "");
    let tree = image.tree();
    let foo = &tree["dest/foo"];
    assert_eq!((foo.mode, foo.owner, foo.mtime), (0o600, (0, 0), OLD_SECONDS), "case 27");
    assert_eq!(image.file("dest/__unnamed__"), b"root");
    assert_eq!((image.file("dest/a b"), tree["dest/a b"].mtime), (b"spaces".to_vec(), 0));
    assert_eq!((image.file("file"), tree["file"].mode, tree["file"].owner), (b"foo".to_vec(), 0o644, (5, 6)));
    web.asked();
    let (run, _) = build(&env, &dockerfile, "");
    assert_eq!(run.cached(), 4);
    let mut asked = web.asked();
    asked.sort();
    // Without a mark of the version there is nothing to ask for but the file.
    assert_eq!(asked, ["GET /", "GET /a%20b", "HEAD /foo", "HEAD /foo", "HEAD /moved"]);
    web.put("/foo", Page::of("new").etag("2"));
    let (run, image) = build(&env, &dockerfile, "");
    assert_eq!((image.file("dest/foo"), image.file("file")), (b"new".to_vec(), b"new".to_vec()));
    assert_eq!(run.cached(), 2, "the others land as before");
}

#[test]
fn what_did_not_change_is_not_fetched_again() {
    let env = TestEnv::new();
    for (page, second) in [
        (Page::of("1").etag("1"), vec!["HEAD /f"]),
        (Page { no_head: true, ..Page::of("2").etag("1") }, vec!["HEAD /f", "GET /f"]),
        (Page::of("3").header("Last-Modified", OLD), vec!["HEAD /f", "GET /f"]),
    ] {
        let web = Web::start();
        web.put("/f", page);
        let dockerfile = format!("FROM scratch\nADD {} /f\n", web.url("/f"));
        build(&env, &dockerfile, "");
        assert_eq!(web.asked(), ["GET /f"]);
        let (run, _) = build(&env, &dockerfile, "");
        assert_eq!((run.cached(), web.asked()), (1, second.iter().map(|text| (*text).to_owned()).collect()));
    }
}

/// Case 5.1-28 of the semantics.
#[test]
fn a_checksum_is_held_and_asks_nobody_twice() {
    let (env, web) = (TestEnv::new(), Web::start());
    web.put("/f", Page::of("data"));
    let sum = sha256(b"data");
    let sum = sum.trim_start_matches("sha256:");
    let add = |sum: &str| format!("FROM scratch\nENV SUM={sum}\nADD --checksum=$SUM {} /f\n", web.url("/f"));
    build(&env, &add(&format!("sha256:{sum}")), "");
    assert_eq!(web.asked(), ["GET /f"]);
    let (run, _) = build(&env, &add(&format!("sha256:{sum}")), "--offline");
    assert_eq!(run.cached(), 1);
    build(&env, &add(&format!("sha256:{sum}")), "--no-cache --offline");
    assert_eq!(web.asked(), [""; 0], "it is in the store");
    for (text, says) in [
        (add(&format!("sha256:{}", "0".repeat(64))), "expected the checksum sha256:0000"),
        (add("md5:7e55db001d319a94b0b713529a756623"), "unsupported digest algorithm \"md5\""),
        (add("7e55db001d319a94b0b713529a756623"), "names no digest algorithm"),
        (add(&format!("sha257:{sum}")), "unsupported digest algorithm \"sha257\""),
        ("FROM scratch\nADD --checksum=sha256:0 ctx /f\n".to_owned(), "checksum requires HTTP(S) or Git sources"),
        (
            format!("FROM scratch\nADD --checksum=sha256:{sum} {0} {0}2 /f/\n", web.url("/f")),
            "checksum can't be specified for multiple sources",
        ),
    ] {
        env.write("ctx/Dockerfile", text);
        env.build("").ends(1).says(says);
    }
    let blobs = env.store().join("blobs/sha256");
    assert!(blobs.join(sum).exists() && !blobs.join("0".repeat(64)).exists());
    env.write("ctx/Dockerfile", format!("FROM scratch\nADD {} /f\n", web.url("/other")));
    env.build("--offline").ends(1).says("--offline forbids it").says("/other");
}

#[test]
fn an_image_is_imported_from_a_url() {
    let (env, web) = (TestEnv::new(), Web::start());
    env.write("ctx/etc/file", "text");
    let tar = packed(&env, "z");
    env.write("root.tar.gz", &tar);
    web.put("/root.tar.gz", Page::of(tar).etag("1"));
    let url = web.url("/root.tar.gz");
    env.rbuild("import root.tar.gz from:file").ok();
    env.rbuild(&format!("import {url} from:url")).ok();
    let layers = |name: &str| env.rbuild(&format!("inspect -f {{{{json.RootFS.Layers}}}} {name}")).ok().stdout;
    assert_eq!(layers("from:url"), layers("from:file"));
    assert_eq!(web.asked(), ["GET /root.tar.gz"]);
    env.rbuild(&format!("import {}", web.url("/none"))).ends(1).says("cannot import").says("answers 404");
    env.rbuild("import ftp://host/x.tar").ends(2).says("not supported: importing from ftp://host/x.tar");
}

#[test]
fn archives_from_urls_are_unpacked_when_asked() {
    let (env, web) = (TestEnv::new(), Web::start());
    env.write("ctx/dir/file", "text");
    web.put("/a.tar.gz", Page::of(packed(&env, "z")));
    web.put("/plain", Page::of("plain"));
    let (_, image) = build(
        &env,
        &format!(
            "FROM scratch\nADD {0} /kept/\nADD --unpack=true {0} /un/\nADD --unpack=true {1} /plain/\nADD --unpack=false {0} /no\n",
            web.url("/a.tar.gz"),
            web.url("/plain")
        ),
        "",
    );
    let tree = image.tree();
    assert_eq!(tree["kept/a.tar.gz"].kind, '-');
    assert_eq!((image.file("un/dir/file"), image.file("plain/plain")), (b"text".to_vec(), b"plain".to_vec()));
    assert_eq!(tree["no"].sha256, tree["kept/a.tar.gz"].sha256);
}

#[test]
fn a_cut_connection_is_taken_up_and_a_busy_server_asked_again() {
    let (env, web) = (TestEnv::new(), Web::start());
    let data: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
    web.put("/cut", Page { cuts: 2, ..Page::of(&data).etag("1") });
    web.put("/whole", Page { cuts: 1, ..Page::of(&data) });
    web.put("/busy", Page { failures: 2, ..Page::of("busy") });
    web.put("/gone", Page { cuts: 100, ..Page::of(&data) });
    let add = |path: &str| format!("FROM scratch\nADD {} /f\n", web.url(path));
    let (_, image) = build(&env, &add("/cut"), "");
    assert!(image.file("f") == data);
    assert_eq!(web.asked(), ["GET /cut", "GET /cut bytes=1500000-", "GET /cut bytes=2250000-"]);
    let (_, image) = build(&env, &add("/whole"), "--no-cache");
    assert!(image.file("f") == data);
    assert_eq!(web.asked(), ["GET /whole", "GET /whole"]);
    assert_eq!(build(&env, &add("/busy"), "").1.file("f"), b"busy");
    env.write("ctx/Dockerfile", add("/gone"));
    env.build("").ends(1).says("broke off").says("cannot be fetched");
}

#[test]
fn secrets_open_what_is_closed_and_stay_secret() {
    let (mut env, web) = (TestEnv::new(), Web::start());
    let closed = |authorization: &str| Page { authorization: Some(authorization.to_owned()), ..Page::of("closed") };
    web.put("/token", closed("Bearer s3cret"));
    web.put("/header", closed("Basic abc"));
    env.set("TOKEN", "s3cret\n");
    env.set("HEADER", "Basic abc");
    let add = |path: &str| format!("FROM scratch\nADD {} /f\n", web.url(path));
    env.write("ctx/Dockerfile", add("/token"));
    env.build("").ends(1).says("answers 401").says("HTTP_AUTH_TOKEN_127.0.0.1");
    let (run, image) = build(&env, &add("/token"), "--secret id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN");
    assert_eq!(image.file("f"), b"closed");
    let (other, _) = build(&env, &add("/header"), &format!("--secret id=HTTP_AUTH_HEADER_{},env=HEADER", web.host()));
    for run in [run, other] {
        run.says_nothing_of("s3cret").says_nothing_of("Basic abc");
    }
    let found = Command::new("grep").args(["-r", "-l", "s3cret"]).arg(env.store()).output().expect("grep is there");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "nothing of it is stored");
}

#[test]
fn other_steps_do_not_wait_for_a_server_and_a_signal_ends_the_wait() {
    if !needs("remote::silent", &[Need::Run, Need::Busybox]) {
        return;
    }
    let (env, web) = (TestEnv::new(), Web::start());
    env.import_busybox();
    web.put("/never", Page { silent: true, ..Page::of("x") });
    env.write(
        "ctx/Dockerfile",
        format!("FROM busybox AS a\nADD {} /f\nFROM busybox\nRUN echo ready\nCOPY --from=a /f /f\n", web.url("/never")),
    );
    let mut command = env.command(["build", "--progress", "plain", "--jobs", "1", "ctx"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("rbuild starts");
    let mut stderr = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.ends_with(" ready\n") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).expect("text") > 0, "it ended before");
    }
    let began = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut rest).expect("text");
    assert_eq!(child.wait().expect("a child").code(), Some(130), "{rest}");
    assert!(began.elapsed() < Duration::from_secs(20), "it waited for the server");
}

#[test]
fn a_signal_ends_the_wait_for_a_context() {
    if !needs("remote::signal", &[Need::Program("git")]) {
        return;
    }
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\n");
    let tar = packed(&env, "");
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it has one");
    let web = Web::start();
    web.put("/never", Page { silent: true, ..Page::of("x") });
    for context in ["-".to_owned(), format!("git://{address}/r.git"), web.url("/never")] {
        let mut command = env.command(["build", "--progress", "plain", &context]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("rbuild starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        if context == "-" {
            stdin.write_all(&tar[..600]).expect("it reads");
        }
        let mut stderr = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("[internal] load") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut stderr, &mut line).expect("text") > 0, "{context}: it ended");
        }
        let held = context.starts_with("git:").then(|| silent.accept().expect("git connects"));
        let began = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        assert_eq!(child.wait().expect("a child").code(), Some(143), "{context}");
        assert!(began.elapsed() < Duration::from_secs(20), "{context}: it waited");
        drop((held, stdin));
    }
}

#[test]
fn what_was_fetched_keeps_its_times_below_a_cache() {
    if !needs("remote::below a cache", &[Need::Run, Need::Busybox]) {
        return;
    }
    let (env, web) = (TestEnv::new(), Web::start());
    env.import_busybox();
    web.put("/f", Page::of("data").etag("1").header("Last-Modified", OLD));
    env.write("ctx/local", "local");
    for command in ["true", "stat -c %Y /f"] {
        let dockerfile = format!(
            "FROM busybox\nADD {} local /d/\nADD {} /f\nRUN --mount=type=cache,target=/c {command} > /times\n",
            web.url("/f"),
            web.url("/f")
        );
        let (run, image) = build(&env, &dockerfile, "");
        if command != "true" {
            assert_eq!((image.file("times"), run.cached()), (format!("{OLD_SECONDS}\n").into_bytes(), 2));
        }
    }
    assert_eq!(web.asked().iter().filter(|line| line.starts_with("GET")).count(), 1, "once for both");
}

/// A repository `r.git` with two branches, tags, a submodule, and a folder `sub`; the commits of main and other.
fn repository(env: &TestEnv) -> (String, String) {
    let folder = env.path("git");
    std::fs::create_dir_all(folder.join("work")).expect("a new folder");
    let git = |line: &str| tool(&folder.join("work"), &format!("git {line}"));
    tool(&folder, "git init --quiet --bare r.git");
    tool(&folder, "git init --quiet --bare lib.git");
    git("init --quiet -b main");
    env.write("git/work/lib", "library");
    git("add .");
    git("commit --quiet -m lib");
    git("push --quiet ../lib.git main");
    git("checkout --quiet --orphan other");
    env.write("git/work/lib", "other");
    env.write("git/work/sub/file", "sub");
    env.write("git/work/Dockerfile", "FROM scratch\nCOPY . /all/\n");
    std::os::unix::fs::symlink("/etc", folder.join("work/out")).expect("a link");
    git("add .");
    git("commit --quiet -m other");
    git("tag light");
    git("tag -a heavy -m heavy");
    let other = git("rev-parse HEAD");
    git("checkout --quiet -b trunk");
    git("rm --quiet lib");
    git("submodule --quiet add -b main ../lib.git lib");
    env.mode("git/work/Dockerfile", 0o755);
    git("add .");
    git("commit --quiet -m trunk");
    git("push --quiet ../r.git other trunk light heavy");
    tool(&folder, "git -C r.git symbolic-ref HEAD refs/heads/trunk");
    tool(&folder, "git -C lib.git symbolic-ref HEAD refs/heads/main");
    (git("rev-parse HEAD"), other)
}

#[test]
fn a_git_repository_is_a_context() {
    if !needs("remote::git", &[Need::Program("git")]) {
        return;
    }
    let (env, web) = (TestEnv::new(), Web::start());
    web.serve_git(env.path("git"), None);
    let (trunk, other) = repository(&env);
    let url = web.url("/git/r.git");
    let heavy = tool(&env.path("git/work"), "git rev-parse heavy");
    for (end, lib) in [
        ("", "library"),
        ("#other", "other"),
        ("#light", "other"),
        ("?tag=heavy", "other"),
        (&format!("#{trunk}"), "library"),
        (&format!("#{other}"), "other"),
        (&format!("?branch=other&checksum={}", &other[..12]), "other"),
        (&format!("?ref=heavy&checksum={heavy}"), "other"),
    ] {
        let run = env.rbuild(&format!("build -o type=oci,dest=out.tar {url}{end}")).ok();
        let image = Image::read(&env.path("out.tar"));
        let tree = image.tree();
        let found = if lib == "library" { image.file("all/lib/lib") } else { image.file("all/lib") };
        assert_eq!(found, lib.as_bytes(), "{end}\n{}", run.shown());
        assert!(!tree.keys().any(|path| path.contains(".git/") || path.ends_with(".git")), "{end}");
        let mode = if lib == "library" { 0o755 } else { 0o644 };
        assert_eq!((tree["all/Dockerfile"].mode, tree["all/sub"].mode), (mode, 0o755), "{end}: whatever the umask");
    }
    env.write("ctx/D", "FROM scratch\nCOPY . /\n");
    env.rbuild(&format!("build -f ctx/D -o type=local,dest=sub {url}#other:sub")).ok();
    assert_eq!(std::fs::read(env.path("sub/file")).unwrap(), b"sub");
    let keep = "--build-arg BUILDKIT_CONTEXT_KEEP_GIT_DIR=1";
    env.rbuild(&format!("build {keep} -o type=local,dest=kept {url}#other")).ok();
    assert!(env.path("kept/all/.git/HEAD").exists());
    for (end, says) in [
        ("#nope", "has no nope, no branch, tag or ref of that name"),
        (&format!("#{}", &other[..10]), "takes all digits of its hash"),
        ("#other:none", "has no folder none"),
        ("#other:out", "a link to one does not count"),
        (&format!("#{}", "1".repeat(40)), "git cannot"),
        ("?branch=other&checksum=1111111", "expected the checksum 1111111"),
    ] {
        env.rbuild(&format!("build {url}{end}")).ends(1).says(says);
    }
    env.rbuild("build https://h/r.git?what=1").ends(2).says("\"what\" in the repository's URL is not known");
    let empty = env.path("empty");
    std::fs::create_dir(&empty).expect("a new folder");
    Run::of(env.command(["build", &url]).env("PATH", &empty)).ends(1).says("package `git`");
}

/// Case 5.1-29 of the semantics.
#[test]
fn add_of_a_repository_follows_its_commits() {
    if !needs("remote::add git", &[Need::Program("git")]) {
        return;
    }
    let (mut env, web) = (TestEnv::new(), Web::start());
    env.set("SOURCE_DATE_EPOCH", "1");
    web.serve_git(env.path("git"), None);
    let (trunk, other) = repository(&env);
    let url = web.url("/git/r.git");
    let dockerfile = format!(
        "FROM scratch\nADD {url}#other /o/\nADD --keep-git-dir=true {url}#other /k\nADD {url}?submodules=false /t\n\
         ADD --chown=5:6 --exclude=file {url}#other:sub /sub\nADD {url}#other:sub /d\n"
    );
    let (first, image) = build(&env, &dockerfile, "");
    let tree = image.tree();
    assert_eq!((image.file("o/lib"), tree["o/out"].link.as_str()), (b"other".to_vec(), "/etc"));
    assert!(tree.contains_key("k/.git/HEAD") && !tree.contains_key("o/.git"));
    assert!(!tree.contains_key("t/lib/lib") && tree.contains_key("t/.gitmodules"));
    assert!(!tree.contains_key("sub/file") && tree["sub"].owner == (5, 6));
    assert_eq!((image.file("d/file"), tree.contains_key("d/lib")), (b"sub".to_vec(), false), "the folder alone");
    assert!(!tree.keys().any(|path| path.starts_with("d/.git")), "case 29");
    web.asked();
    let (again, _) = build(&env, &dockerfile, "");
    assert_eq!((again.cached(), again.image()), (5, first.image()));
    let asked = web.asked();
    assert!(asked.iter().all(|line| line.contains("info/refs") || line.starts_with("POST")), "{asked:?}");
    let posts = asked.iter().filter(|line| line.starts_with("POST")).count();
    assert!(posts <= 5, "one ls-remote each, and nothing fetched: {asked:?}");
    // By a branch, a tag, an annotated tag, a hash; the checksum is that of the tag or of its commit.
    let heavy = tool(&env.path("git/work"), "git rev-parse heavy");
    let names = format!(
        "FROM scratch\nADD {url}#light /light\nADD {url}#{other} /hash\nADD --checksum={heavy} {url}#heavy /heavy\n\
         ADD --checksum={other} {url}#heavy /commit\n"
    );
    let (_, image) = build(&env, &names, "");
    for name in ["light", "hash", "heavy", "commit"] {
        assert_eq!(image.file(&format!("{name}/lib")), b"other", "{name}");
    }
    // A commit by its hash needs nobody.
    let pinned = format!("FROM scratch\nADD {url}#{trunk} /t\nADD --checksum={other} {url}#other /o\n");
    build(&env, &pinned, "");
    web.asked();
    assert_eq!(build(&env, &pinned, "--offline").0.cached(), 2);
    assert_eq!(web.asked(), [""; 0]);
    // Another commit of the same branch.
    let git = |line: &str| tool(&env.path("git/work"), &format!("git {line}"));
    git("checkout --quiet other");
    env.write("git/work/new", "new");
    git("add .");
    git("commit --quiet -m new");
    git("push --quiet ../r.git other");
    let (run, image) = build(&env, &format!("FROM scratch\nADD {url}#other /o/\n"), "");
    assert_eq!((image.file("o/new"), run.cached()), (b"new".to_vec(), 0));
    env.write("ctx/Dockerfile", pinned);
    env.build("--no-cache").ends(1).says("expected the checksum");
    for (line, says) in [
        (format!("ADD {url}#nope /x"), "has no nope"),
        (format!("ADD --checksum=sha256:0 {url} /x"), "is no hash of a commit"),
        (format!("ADD --keep-git-dir=false {url}?keep-git-dir=true /x"), "cannot both hold"),
        ("ADD --keep-git-dir=true ctx /x".to_owned(), "--keep-git-dir is for git repositories only"),
        (format!("COPY {url} /x"), "source can't be a git repository for COPY"),
    ] {
        env.write("ctx/Dockerfile", format!("FROM scratch\n{line}\n"));
        env.build("").ends(1).says(says);
    }
}

/// Case 5.1-29 of the semantics: repositories whose hashes are SHA-256.
#[test]
fn add_of_a_repository_of_longer_hashes() {
    if !needs("remote::add git of sha256", &[Need::Program("git")]) {
        return;
    }
    let (env, web) = (TestEnv::new(), Web::start());
    web.serve_git(env.path("git"), None);
    let folder = env.path("git");
    std::fs::create_dir_all(folder.join("work")).expect("a new folder");
    tool(&folder, "git init --quiet --bare --object-format=sha256 long.git");
    let git = |line: &str| tool(&folder.join("work"), &format!("git {line}"));
    git("init --quiet -b main --object-format=sha256");
    env.write("git/work/file", "long");
    git("add .");
    git("commit --quiet -m long");
    git("push --quiet ../long.git main");
    let hash = git("rev-parse HEAD");
    assert_eq!(hash.len(), 64);
    let url = web.url("/git/long.git");
    let dockerfile = format!(
        "FROM scratch\nADD {url}#main /branch\nADD {url}#{hash} /hash\nADD --checksum={hash} {url}#main /sum\n"
    );
    let (_, image) = build(&env, &dockerfile, "");
    for name in ["branch", "hash", "sum"] {
        assert_eq!(image.file(&format!("{name}/file")), b"long", "{name}");
    }
}

#[test]
fn repositories_come_over_ssh() {
    if !needs("remote::ssh", &[Need::Program("git")]) {
        return;
    }
    let mut env = TestEnv::new();
    repository(&env);
    // What sshd would do, without one.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -G ] && exit 1\necho \"$SSH_AUTH_SOCK $*\" >> {}\nfor last; do :; done\neval \"$last\"\n",
        env.path("log").display()
    );
    env.write("ssh", script);
    env.mode("ssh", 0o755);
    env.set("GIT_SSH_COMMAND", &env.path("ssh").display().to_string());
    env.set("SSH_AUTH_SOCK", "/agent");
    let path = env.path("git/r.git").display().to_string();
    env.rbuild(&format!("build ssh://me@host{path}#other")).ok();
    let socket = env.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a new socket");
    let dockerfile = format!("FROM scratch\nADD me@host:{path}#other /r\n");
    let (_, image) = build(&env, &dockerfile, "--ssh default=socket");
    assert_eq!(image.file("r/lib"), b"other");
    let log = std::fs::read_to_string(env.path("log")).expect("it was called");
    assert!(log.lines().all(|line| line.contains(" me@host git-upload-pack")), "{log}");
    assert!(log.starts_with("/agent ") && log.contains(&format!("\n{} ", socket.display())), "{log}");
}

#[test]
fn a_closed_repository_takes_a_token() {
    if !needs("remote::git token", &[Need::Program("git")]) {
        return;
    }
    let (mut env, web) = (TestEnv::new(), Web::start());
    repository(&env);
    // What `basic` makes of `x-access-token:s3cret`.
    web.serve_git(env.path("git"), Some("basic eC1hY2Nlc3MtdG9rZW46czNjcmV0"));
    env.set("TOKEN", "s3cret");
    let url = web.url("/git/r.git#other");
    env.rbuild(&format!("build {url}")).ends(1).says("git cannot read the refs of").says("id=GIT_AUTH_TOKEN");
    env.rbuild(&format!("build --secret id=GIT_AUTH_TOKEN,env=TOKEN {url}")).ok();
    let dockerfile = format!("FROM scratch\nADD --keep-git-dir=true {url} /r\n");
    build(&env, &dockerfile, &format!("--secret id=GIT_AUTH_TOKEN.{},env=TOKEN", web.host()));
    let (_, image) = build(&env, &dockerfile, "--secret id=GIT_AUTH_TOKEN.127.0.0.1,env=TOKEN");
    assert_eq!(image.file("r/lib"), b"other");
    for layer in &image.layers {
        assert!(!layer.windows(6).any(|window| window == b"s3cret"), "the token is in the image");
    }
}

#[test]
fn hooks_filters_and_settings_of_a_repository_do_nothing() {
    if !needs("remote::hostile git", &[Need::Program("git")]) {
        return;
    }
    let (env, web) = (TestEnv::new(), Web::start());
    web.serve_git(env.path("git"), None);
    repository(&env);
    let git = |line: &str| tool(&env.path("git/work"), &format!("git {line}"));
    git("checkout --quiet other");
    let touched = env.path("touched");
    env.write("git/work/.gitattributes", "* filter=evil\n");
    let modules = format!("[submodule \"m\"]\n\tpath = m\n\turl = ext::touch% {}\n", touched.display());
    env.write("git/work/.gitmodules", modules);
    git("add .");
    let trunk = git("rev-parse light");
    git(&format!("update-index --add --cacheinfo 160000,{trunk},m"));
    git("commit --quiet -m evil");
    git("push --quiet ../r.git other");
    env.write("home/.gitconfig", format!("[filter \"evil\"]\n\tsmudge = touch {}\n", touched.display()));
    env.rbuild(&format!("build {}#other", web.url("/git/r.git"))).ends(1).says("submodules");
    env.rbuild(&format!("build {}?ref=other&submodules=0", web.url("/git/r.git"))).ok();
    assert!(!touched.exists(), "something was carried out");
}

#[test]
fn an_ordinary_user_gets_the_same_from_elsewhere() {
    if !needs("remote::user", &[Need::Root, Need::User, Need::Run, Need::Busybox, Need::Program("git")]) {
        return;
    }
    let web = Web::start();
    let root = TestEnv::new();
    let (trunk, _) = repository(&root);
    web.serve_git(root.path("git"), None);
    root.write("ctx/dir/file", "text");
    web.put("/a.tar.gz", Page::of(packed(&root, "z")).etag("1").header("Last-Modified", OLD));
    let dockerfile = format!(
        "FROM busybox\nADD --unpack=true {0} /un\nADD {0} /kept/\nADD {1}#{trunk} /git\nRUN cat /un/dir/file /git/lib/lib > /both\n",
        web.url("/a.tar.gz"),
        web.url("/git/r.git")
    );
    let user = TestEnv::as_user(&test_user().expect("the test needs a user"));
    let mut contents = Vec::new();
    for env in [&root, &user] {
        env.import_busybox();
        for again in [false, true] {
            let (run, image) = build(env, &dockerfile, "");
            assert_eq!((image.file("both"), run.cached()), (b"textlibrary".to_vec(), if again { 4 } else { 0 }));
            contents.push(run.content());
        }
        contents.push(with_stdin(env, "build -", &packed(&root, "")).ok().content());
    }
    assert_eq!(contents[..3], contents[3..]);
}

#[test]
fn sparse_archives_are_unpacked() {
    if !needs("remote::sparse", &[Need::Program("tar")]) {
        return;
    }
    let env = TestEnv::new();
    let mut data = vec![0; 2 << 20];
    data[500_000..500_003].copy_from_slice(b"abc");
    let mut file = std::fs::File::create(env.path("ctx/big")).expect("a new file");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(500_000)).expect("seeks");
    file.write_all(b"abc").and_then(|()| file.set_len(2 << 20)).expect("writes");
    let forms = ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"];
    let mut dockerfile = "FROM scratch\n".to_owned();
    for (number, form) in forms.iter().enumerate() {
        tool(&env.path("ctx"), &format!("tar --sparse --format={form} -cf {number}.tar big"));
        let size = std::fs::metadata(env.path(&format!("ctx/{number}.tar"))).expect("tar wrote it").len();
        assert!(size < 1 << 20, "{form}: no holes in it");
        dockerfile += &format!("ADD {number}.tar /{number}/\n");
    }
    let (_, image) = build(&env, &dockerfile, "");
    for (number, form) in forms.iter().enumerate() {
        assert!(image.file(&format!("{number}/big")) == data, "{form}");
    }
}
