//! Shared caches: one machine builds, another takes what it built. In folders, in the real docker-registry, and in places
//! that fail or lie. Each `TestEnv` is a machine of its own.

mod lies;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::oci::Image;
use crate::support::registry::{Answer, Asked, Registry, Server};

const REGISTRY: &[Need] = &[Need::Program("docker-registry")];
const RUN: &[Need] = &[Need::Busybox, Need::Run];
const BOTH: &[Need] = &[Need::Busybox, Need::Run, Need::Program("docker-registry")];

/// A machine with busybox.
fn machine() -> TestEnv {
    let env = TestEnv::new();
    env.import_busybox();
    env
}

/// Several stages, times that no two builds share, and COPY onto what RUN made.
const DOCKERFILE: &str = "FROM busybox AS made\nRUN cat /proc/sys/kernel/random/uuid > /id && echo own:x:77:77::/:/bin/sh >> /etc/passwd\n\
    FROM busybox\nRUN mkdir -p /d && date +%s%N > /d/now && echo grp:x:99: >> /etc/group\nWORKDIR /w\nCOPY --chown=0:grp f g/\n\
    COPY --from=made /id /id\nENV A=b\n";

fn write_context(env: &TestEnv) {
    env.write("ctx/f", "text");
    env.time("ctx/f", 1_500_000_000);
    env.write("ctx/Dockerfile", DOCKERFILE);
}

/// All files below a folder, with their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).expect("a file that is there"));
        }
    }
    found
}

/// Shell words without quotes.
#[track_caller]
fn build(env: &TestEnv, args: &str) -> Run {
    env.build(&format!("--progress plain {args}")).ok()
}

/// A cache in a registry and one in a folder, each as `--cache-to` and `--cache-from` name it.
fn of_both_kinds(registry: &Registry, folder: &TestEnv) -> [(String, String); 2] {
    let (name, path) = (format!("{}/cache", registry.host()), folder.path("cache").display().to_string());
    [(name.clone(), name), (format!("type=local,dest={path}"), format!("type=local,src={path}"))]
}

/// A registry between rbuild and the real one: counts, and changes answers.
fn between(registry: &Registry, change: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> Server {
    let port: u16 = registry.host().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    Server::start(move |asked| change(asked, forward(port, asked).unwrap_or_else(|_| Answer::new(502, "cut"))))
}

fn forward(port: u16, asked: &Asked) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    // 1.0: the answer comes in one piece and ends with the connection.
    let mut head = format!("{} {} HTTP/1.0\r\n", asked.method, asked.path);
    for (name, value) in
        asked.headers.iter().filter(|(name, _)| !["connection", "accept-encoding"].contains(&name.as_str()))
    {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&asked.body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(502);
    let mut answer = Answer::new(status, &bytes[end + 4..]);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if !name.eq_ignore_ascii_case("connection") {
            answer = answer.with(name, value);
        }
    }
    Ok(answer)
}

/// How often something was asked for below a repository.
fn asked(server: &Server, method: &str, part: &str) -> usize {
    server.asked().iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
}

// --- one machine builds, another takes it -----------------------------------------------------------------------------

#[test]
fn case_76_an_empty_machine_with_a_cache_gives_the_same_image() {
    // 5.7-76: config digest and created times come back, from an empty store, twice.
    if !needs("case_76_an_empty_machine_with_a_cache_gives_the_same_image", RUN) {
        return;
    }
    let env = machine();
    write_context(&env);
    let first = build(&env, "-t one --cache-to type=local,dest=cache,mode=max").says("exporting cache to");
    let history = |env: &TestEnv| env.rbuild("inspect one").ok().stdout;
    let inspected = history(&env);
    for _ in 0..2 {
        env.empty_store();
        env.import_busybox();
        let again = build(&env, "-t one --explain --cache-from type=local,src=cache");
        assert_eq!((again.image(), again.content()), (first.image(), first.content()), "{}", again.shown());
        assert_eq!(again.cached(), 5, "{}", again.shown());
        assert_eq!(history(&env), inspected);
        let again = again.says("importing cache from").says(" from the cache ");
        env.rbuild("inspect --verify one").ok();
        drop(again);
    }
    // Programs are told, too.
    let run = env.build("--progress json --cache-from type=local,src=cache").ok();
    assert_eq!(run.stderr.matches("\"imported\"").count(), 5, "{}", run.shown());
}

#[test]
fn what_changed_is_built_and_the_rest_is_taken() {
    let name = "what_changed_is_built_and_the_rest_is_taken";
    if !needs(name, RUN) {
        return;
    }
    let cache = machine();
    write_context(&cache);
    build(&cache, "--cache-to type=local,dest=cache,mode=max");
    let folder = cache.path("cache").display().to_string();
    let mut machines = vec![machine()];
    if needs(&format!("{name} (as an ordinary user)"), &[Need::Root, Need::User]) {
        let user = TestEnv::as_user(&test_user().expect("looked up before"));
        user.import_busybox();
        machines.push(user);
    }
    for env in machines {
        write_context(&env);
        env.write(
            "ctx/Dockerfile",
            format!("{DOCKERFILE}RUN cat /d/now /id && id own; stat -c %g /w/g/f && echo x > /w/x\n"),
        );
        let run = build(&env, &format!("-t two --metadata-file meta --cache-from type=local,src={folder}"));
        assert_eq!(run.cached(), 5, "{}", run.shown());
        let run = run.says(" 99\n");
        let meta = std::fs::read_to_string(env.path("meta")).expect("it was written");
        assert_eq!(meta.matches("\"cache\": ").count(), 5, "{meta}");
        env.rbuild("inspect --verify two").ok();
        // What was taken and what was built upon it are found without the cache's name, or built: the image holds.
        let again = build(&env, &format!("-t two --cache-from type=local,src={folder}"));
        assert_eq!(again.image(), run.image());
        assert_eq!(again.cached(), 6, "{}", again.shown());
        // Files that its RUN made belong to mapped ids, and go out all the same.
        let out = build(&env, "--cache-to type=local,dest=own,mode=max");
        let own = env.path("own").display().to_string();
        env.empty_store();
        env.import_busybox();
        let back = build(&env, &format!("--cache-from type=local,src={own}"));
        assert_eq!((back.image(), back.cached()), (out.image(), 6), "{}", back.shown());
    }
    // Who does not name the cache does not get what it said.
    let env = machine();
    write_context(&env);
    build(&env, &format!("--cache-from type=local,src={folder}"));
    let own = build(&env, "");
    assert!(own.cached() < 5, "claims are no records\n{}", own.shown());
}

#[test]
fn min_keeps_the_image_and_max_every_stage() {
    if !needs("min_keeps_the_image_and_max_every_stage", RUN) {
        return;
    }
    let env = machine();
    write_context(&env);
    let dockerfile =
        "FROM busybox AS made\nRUN cat /proc/sys/kernel/random/uuid > /id\nFROM busybox\nCOPY --from=made /id /id\n";
    env.write("ctx/Dockerfile", dockerfile);
    let first = build(&env, "--cache-to type=local,dest=min --cache-to type=local,dest=max,mode=max,compression=zstd");
    let cached = |from: &str, args: &str| {
        env.empty_store();
        env.import_busybox();
        build(&env, &format!("{args} --cache-from type=local,src={from}"))
    };
    let whole = cached("max", "");
    assert_eq!((whole.cached(), whole.image()), (2, first.image()), "{}", whole.shown());
    // The stage that was not exported runs again, and its file is another one.
    let part = cached("min", "");
    assert_ne!(part.image(), first.image());
    assert_eq!(cached("max", "--target made").cached(), 1);
    assert_eq!(cached("min", "--target made").cached(), 0);
    assert!(files(&env.path("max/names")).len() > files(&env.path("min/names")).len());
    // Both together: the first that has it.
    let both = build(&env, "--no-cache --cache-from type=local,src=max");
    assert_eq!(both.cached(), 0, "--no-cache is about shared caches too\n{}", both.shown());
    // What hit here is exported, too, where the cache lacks it.
    env.empty_store();
    env.import_busybox();
    let made = build(&env, "");
    assert_eq!(build(&env, "--cache-to type=local,dest=late,mode=max").cached(), 2);
    let late = cached("late", "");
    assert_eq!((late.cached(), late.image()), (2, made.image()), "{}", late.shown());
}

#[test]
fn a_registry_gives_digests_without_layers() {
    if !needs("a_registry_gives_digests_without_layers", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    let server = between(&registry, |_, answer| answer);
    let host = server.host();
    let maker = machine();
    maker.rbuild(&format!("tag busybox {host}/base:1")).ok();
    maker.rbuild(&format!("push {host}/base:1")).ok();
    let dockerfile = DOCKERFILE.replace("FROM busybox", &format!("FROM {host}/base:1"));
    let context = |env: &TestEnv| {
        write_context(env);
        env.write("ctx/Dockerfile", &dockerfile);
    };
    context(&maker);
    let first = build(&maker, &format!("--timestamp 7 --cache-to {host}/cache,mode=max"));
    let plain = build(&maker, &format!("--cache-to type=registry,ref={host}/cache,mode=max"));
    assert_eq!(plain.content(), first.content());

    // All that a layer is, without the layer: nobody reads one.
    let other = TestEnv::new();
    context(&other);
    let before = asked(&server, "GET", "/cache/blobs/") + asked(&server, "GET", "/base/blobs/");
    let named = build(&other, &format!("--timestamp 7 -o type=cacheonly --cache-from {host}/cache"));
    assert_eq!((named.image(), named.content()), (first.image(), first.content()), "{}", named.shown());
    let config = 1; // of the base
    assert_eq!(asked(&server, "GET", "/cache/blobs/") + asked(&server, "GET", "/base/blobs/"), before + config);
    assert_eq!(std::fs::read_dir(other.store().join("layers")).unwrap().count(), 0);
    // What was said is kept: the next build asks the registry for nothing of it.
    let before = asked(&server, "GET", "/cache/");
    let again = build(&other, &format!("-o type=cacheonly --cache-from {host}/cache"));
    assert_eq!((again.image(), again.content()), (plain.image(), plain.content()), "{}", again.shown());
    assert_eq!(asked(&server, "GET", "/cache/"), before);

    // Pushed to the same registry the layers are mounted.
    let pusher = TestEnv::new();
    context(&pusher);
    let (before, written) = (asked(&server, "GET", "/blobs/"), asked(&server, "PUT", "/cache/manifests/"));
    let pushed =
        build(&pusher, &format!("-t {host}/app:1 --push --cache-from {host}/cache --cache-to {host}/cache,mode=max"));
    assert_eq!((pushed.image(), pushed.content()), (plain.image(), plain.content()), "{}", pushed.shown());
    assert_eq!(asked(&server, "GET", "/blobs/"), before + config, "{}", pushed.shown());
    assert_eq!(asked(&server, "PUT", "/cache/manifests/"), written, "what is there is not written again");
    // It is kept without its layers, and they come when somebody reads them.
    pusher.rbuild(&format!("save {host}/app:1 -o saved.tar")).ok();
    assert_eq!(Image::read(&pusher.path("saved.tar")).id, pushed.image());
    let reads = TestEnv::new();
    reads.rbuild(&format!("pull {host}/app:1")).ok();
    reads.rbuild(&format!("inspect --verify {host}/app:1")).ok();
    // To another registry they pass through.
    let second = Registry::start("", "");
    build(&pusher, &format!("-t {}/app:1 --push --cache-from {host}/cache", second.host()));
    reads.rbuild(&format!("pull {}/app:1", second.host())).ok();

    // A step on top needs the layers, and gets them.
    let top = TestEnv::new();
    context(&top);
    top.write("ctx/Dockerfile", format!("{dockerfile}RUN cat /id /d/now && test -f g/f\n"));
    let ran = build(&top, &format!("-t {host}/top --cache-from {host}/cache"));
    assert_eq!(ran.cached(), 5, "{}", ran.shown());
    top.rbuild(&format!("inspect --verify {host}/top")).ok();

    // Another tag is another cache, and nothing is in it.
    let tagged = TestEnv::new();
    context(&tagged);
    let ran = build(&tagged, &format!("--cache-from {host}/cache:other --cache-to {host}/cache:other"));
    assert_eq!(ran.cached(), 0, "{}", ran.shown());
    assert!(asked(&server, "PUT", "/cache/manifests/other-") > 0);
    let image = |env: &TestEnv| env.rbuild(&format!("inspect -f {{{{.Id}}}} {host}/top")).ok().stdout;
    assert!(image(&top).starts_with("sha256:"));
}

#[test]
fn what_lands_on_a_layer_that_never_came_lands_alike() {
    if !needs("what_lands_on_a_layer_that_never_came_lands_alike", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    let server = between(&registry, |_, answer| answer);
    let host = server.host();
    let maker = machine();
    let dockerfile = "FROM scratch\nCOPY --from=busybox / /\nRUN mkdir /real && chown 5:6 /real && ln -s real /link && echo own:x:77:77::/:/bin/sh >> /etc/passwd\n";
    maker.write("ctx/Dockerfile", dockerfile);
    build(&maker, &format!("--cache-to {host}/cache,mode=max"));
    let more = format!("{dockerfile}COPY --chown=own f /link/sub/\nWORKDIR /link/w\n");
    let mut contents = Vec::new();
    for (env, cache) in [(&maker, String::new()), (&machine(), format!("--cache-from {host}/cache"))] {
        env.write("ctx/f", "text");
        env.write("ctx/Dockerfile", &more);
        let before = asked(&server, "GET", "/cache/blobs/");
        let run = build(env, &format!("-o type=cacheonly {cache}"));
        contents.push(run.content());
        if !cache.is_empty() {
            // Two indexes, no layer.
            assert_eq!(asked(&server, "GET", "/cache/blobs/"), before + 2, "{}", run.shown());
        }
    }
    assert_eq!(contents[0], contents[1]);
}

#[test]
fn two_machines_write_at_once() {
    if !needs("two_machines_write_at_once", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    let folder = TestEnv::new();
    for (to, from) in of_both_kinds(&registry, &folder) {
        let machines = [machine(), machine(), machine()];
        machines.iter().for_each(write_context);
        std::thread::scope(|scope| {
            let builds: Vec<_> = machines
                .iter()
                .map(|env| scope.spawn(|| build(env, &format!("--cache-to {to},mode=max --cache-from {from}"))))
                .collect();
            builds.into_iter().for_each(|build| drop(build.join().expect("no test panics in it")));
        });
        let reader = machine();
        write_context(&reader);
        let run = build(&reader, &format!("-t x --cache-from {from}"));
        assert_eq!(run.cached(), 5, "{}", run.shown());
        reader.rbuild("inspect --verify x").ok();
    }
}

#[test]
fn no_secret_is_in_a_cache() {
    if !needs("no_secret_is_in_a_cache", RUN) {
        return;
    }
    let env = machine();
    env.write("secret", "hunter2hunter2");
    env.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=cache,target=/c cat /run/secrets/s > /c/kept && echo done > /d\n",
    );
    let run =
        build(&env, "--secret id=s,src=secret --cache-to type=local,dest=cache,mode=max").says_nothing_of("hunter2");
    env.write("secret", "another");
    let again = build(&env, "--secret id=s,src=secret --cache-from type=local,src=cache");
    assert_eq!(again.image(), run.image());
    for (path, bytes) in files(&env.path("cache")) {
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "{}", path.display());
    }
}

// --- cache mounts -----------------------------------------------------------------------------------------------------

#[test]
fn cache_mounts_go_along_when_they_are_named() {
    if !needs("cache_mounts_go_along_when_they_are_named", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    let shelf = TestEnv::new();
    for (to, from) in of_both_kinds(&registry, &shelf) {
        let step = "--mount=type=cache,id=objects,target=/o,uid=5,mode=750 --mount=type=cache,target=/other";
        let dockerfile = |command: &str| format!("FROM busybox\nARG N\nRUN {step} {command}\n");
        let maker = machine();
        maker.write(
            "ctx/Dockerfile",
            dockerfile(
                "mkdir /o/d && echo one > /o/d/f && ln /o/d/f /o/g && ln -s d /o/l && chown 7:8 /o/g && touch /other/x",
            ),
        );
        build(&maker, &format!("--cache-to {to},mounts=objects"));
        let show = dockerfile(
            "ls -ln /o; cat /o/l/f; stat -c 'top %a %u' /o; stat -c 'inode %h' /o/g; ls /other; echo two >> /o/g",
        );
        let reader = machine();
        reader.write("ctx/Dockerfile", &show);
        let run = build(&reader, &format!("--cache-from {from},mounts=objects --cache-to {to},mounts=objects"));
        let run = run
            .says(" one\n")
            .says("top 750 5")
            .says("inode 2")
            .says("importing cache mount objects")
            .says_nothing_of(" x\n");
        assert_eq!(run.cached(), 0);
        // One that is not empty stays as it is; who writes last has written it.
        let third = machine();
        third.write("ctx/Dockerfile", &show);
        build(&third, &format!("--build-arg N=3 --cache-from {from},mounts=objects")).says(" two\n");
        build(&third, &format!("--build-arg N=4 --cache-from {from},mounts=objects"))
            .says_nothing_of("importing cache mount");
        // Not asked for: not taken.
        let fourth = machine();
        fourth.write("ctx/Dockerfile", &show);
        build(&fourth, &format!("--build-arg N=5 --cache-from {from},mounts=object"))
            .says("warning: mounts=object: no RUN of this build has a cache mount of that id; did you mean objects?")
            .says_nothing_of(" one\n");
    }
}

#[test]
fn an_image_of_the_archive_is_whole() {
    if !needs("an_image_of_the_archive_is_whole", RUN) {
        return;
    }
    let maker = machine();
    write_context(&maker);
    let first = build(&maker, "-o type=oci,dest=a.tar --timestamp 9 --cache-to type=local,dest=cache,mode=max");
    let other = machine();
    write_context(&other);
    let from = format!("type=local,src={}", maker.path("cache").display());
    let second = build(&other, &format!("-o type=oci,dest=b.tar --timestamp 9 --cache-from {from}"));
    assert_eq!(first.image(), second.image());
    let (a, b) = (Image::read(&maker.path("a.tar")), Image::read(&other.path("b.tar")));
    assert_eq!(a.id, b.id);
    assert!(a.tree() == b.tree());
}

#[test]
fn steps_that_do_not_wait_for_each_other_are_asked_for_at_once() {
    if !needs("steps_that_do_not_wait_for_each_other_are_asked_for_at_once", REGISTRY) {
        return;
    }
    let registry = Registry::start("", "");
    let (asking, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = between(&registry, move |asked, answer| {
        if asked.method == "GET" && asked.path.contains("/manifests/rbuild-") {
            let now = asking.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(now, Ordering::SeqCst);
            // Until another one asks: for ever, if nobody did.
            let end = Instant::now() + Duration::from_secs(3);
            while seen.load(Ordering::SeqCst) < 2 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            asking.fetch_sub(1, Ordering::SeqCst);
        }
        answer
    });
    let env = TestEnv::new();
    env.write("ctx/f", "f");
    env.write(
        "ctx/Dockerfile",
        "FROM scratch AS a\nCOPY f /a\nFROM scratch AS b\nCOPY f /b\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n",
    );
    build(&env, &format!("--cache-from {}/c", server.host()));
    assert!(most.load(Ordering::SeqCst) >= 2);
}

#[test]
fn nothing_is_needed_of_a_registry_that_is_not_named() {
    if !needs("nothing_is_needed_of_a_registry_that_is_not_named", REGISTRY) {
        return;
    }
    // COPY alone: nobody needs a sandbox for this.
    let registry = Registry::start("", "");
    let env = TestEnv::new();
    env.write("ctx/f", "x".repeat(3 << 20));
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\nWORKDIR /w\nCOPY Dockerfile .\n");
    let cache = format!("--cache-to {0}/c --cache-from {0}/c", registry.host());
    let first = build(&env, &cache);
    env.empty_store();
    let second = build(&env, &cache);
    assert_eq!((second.image(), second.cached()), (first.image(), 3), "{}", second.shown());
}
