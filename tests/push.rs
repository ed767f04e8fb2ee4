//! Images that go to registries: kept here without layers that never came, sent while the build goes on, held as long as
//! it takes.

use std::fs;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::support::base::RootTar;
use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};
use crate::support::registry::{Answer, Asked, Registry, Server, Taker};

const NEEDS: &[Need] = &[Need::Program("docker-registry")];

/// An image of one file under this name.
fn import(env: &TestEnv, name: &str, file: &str) {
    let mut tar = RootTar::new();
    tar.file(file, 0o644, file.repeat(1000).as_bytes());
    env.write("base.tar", tar.finish());
    env.run(["import", "-c", "ENV BASE=yes", "base.tar", name]).ok();
}

/// A registry that has the image `base:1`.
fn with_base() -> Registry {
    let registry = Registry::start("", "");
    let maker = TestEnv::new();
    import(&maker, &format!("{}/base:1", registry.host()), "f");
    maker.rbuild(&format!("push {}/base:1", registry.host())).ok();
    registry
}

/// Entries of a folder of the store.
fn count(env: &TestEnv, folder: &str) -> usize {
    fs::read_dir(env.store().join(folder)).map_or(0, Iterator::count)
}

/// An image that was pushed and kept: `app`, of which the layer of its base never came.
fn lazy(registry: &Registry) -> TestEnv {
    let (env, host) = (TestEnv::new(), registry.host());
    env.write("ctx/Dockerfile", format!("FROM {host}/base:1\nLABEL a=b\n"));
    env.build(&format!("-t {host}/app:1 --push")).ok().says(&format!("pushed {host}/app:1 digest: sha256:"));
    env.rbuild(&format!("tag {host}/app:1 app")).ok();
    assert_eq!(count(&env, "layers"), 0, "layers never come just to be pushed");
    env
}

#[test]
fn an_image_may_lack_the_layers_of_its_base() {
    if !needs("an_image_may_lack_the_layers_of_its_base", NEEDS) {
        return;
    }
    let mut registry = with_base();
    let (env, host) = (lazy(&registry), registry.host());
    // What goes by documents alone needs no layer.
    assert!(env.rbuild("images --format {{.Repository}}:{{.Size}}").ok().stdout.contains("app:"));
    let described = env.rbuild("inspect app").ok().stdout;
    for part in ["\"AbsentLayers\"", &format!("\"{host}/base\""), "\"ContentDigest\": null", "never came"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert_eq!(env.rbuild("history -q app").ok().stdout.lines().count(), 2);
    env.rbuild("df -v").ok();
    env.rbuild("prune -f").ok();
    env.rbuild("inspect --verify app").ok().says("were not checked: 1").says(&host);
    // To its own registry it is mounted, to another it passes through.
    env.rbuild(&format!("tag app {host}/other:1")).ok();
    env.rbuild(&format!("push {host}/other:1")).ok().says("Mounted from ");
    let second = Registry::start("", "");
    env.rbuild(&format!("tag app {}/app:1", second.host())).ok();
    env.rbuild(&format!("push {}/app:1", second.host())).ok().says(": Pushed");
    assert_eq!(count(&env, "layers"), 0);
    // Each command that reads a layer fetches it, from wherever it was seen.
    registry.stop();
    env.rbuild("save -o app.tar app").ok().says("never came here").says("Pull complete");
    assert_eq!(count(&env, "layers"), 1);
    env.rbuild("inspect --verify app").ok().says_nothing_of("not checked");
    let content = |env: &TestEnv, name: &str| env.run(["inspect", "-f", "{{.ContentDigest}}", name]).ok().stdout;
    let known = content(&env, "app");
    assert!(known.starts_with("sha256:"), "{known}");
    assert!(env.rbuild("images --digests app").ok().stdout.contains(known.trim()));
    let other = TestEnv::new();
    other.run(["load", "-i", &env.path("app.tar").display().to_string()]).ok();
    assert_eq!(content(&other, "app"), known);
    // What nothing needs any more is forgotten.
    for name in
        ["app".to_owned(), format!("{host}/app:1"), format!("{host}/other:1"), format!("{}/app:1", second.host())]
    {
        env.rbuild(&format!("rmi {name}")).ok();
    }
    env.rbuild("prune -af").ok();
    assert_eq!((count(&env, "origins"), count(&env, "layers")), (0, 0));
}

#[test]
fn absent_layers_come_when_they_are_read() {
    if !needs("absent_layers_come_when_they_are_read", NEEDS) {
        return;
    }
    let registry = with_base();
    let env = lazy(&registry);
    // FROM it: what needs no layer fetches none, and the image may be kept without them again.
    let host = registry.host();
    env.write("ctx/Dockerfile", "FROM app\nENV MORE=1\n");
    env.build(&format!("-t {host}/more:1 --push --offline")).ends(2).says("--offline");
    env.build(&format!("-t {host}/more:1 --push")).ok();
    assert_eq!(count(&env, "layers"), 0);
    // Into an archive, and into the store alone, all of it comes.
    env.build("-o type=oci,dest=out.tar").ok().says("[internal] pull app:latest");
    assert_eq!(count(&env, "layers"), 1);

    let env = lazy(&registry);
    env.write("ctx/g", "g");
    env.write("ctx/Dockerfile", "FROM app\nCOPY g /\n");
    let built = env.build("-t built").ok().content();
    assert_eq!(count(&env, "layers"), 2);
    env.rbuild("inspect --verify built").ok();
    let other = TestEnv::new();
    other.write("ctx/g", "g");
    other.write("ctx/Dockerfile", format!("FROM {host}/base:1\nLABEL a=b\nCOPY g /\n"));
    assert_eq!(other.build("").ok().content(), built);

    let env = lazy(&registry);
    import(&env, "another", "h");
    let found = env.rbuild("diff app another").ends(1);
    assert!(found.stdout.contains("/f: ") && found.stdout.contains("/h: "), "{}", found.stdout);
    env.rbuild("diff app app").ok();
}

#[test]
fn a_layer_that_cannot_be_had_is_named() {
    if !needs("a_layer_that_cannot_be_had_is_named", NEEDS) {
        return;
    }
    let mut registry = with_base();
    let (env, host) = (lazy(&registry), registry.host());
    registry.stop();
    env.rbuild("save -o app.tar app").ends(1).says("the layer sha256:").says(&host).says("try again when");
    assert!(!env.path("app.tar").exists());
    env.rbuild("diff app app").ends(2).says("the layer sha256:").says(&host);
    env.write("ctx/g", "g");
    env.write("ctx/Dockerfile", "FROM app\nCOPY g /\n");
    env.build("").ends(1).says("the layer sha256:").says(&host);
    env.build("--offline").ends(1).says("the layer sha256:").says("with --offline");
    let other = Registry::start("", "");
    env.rbuild(&format!("tag app {}/x", other.host())).ok();
    env.rbuild(&format!("push {}/x", other.host())).ends(1).says("passes through from").says(&host);
    env.rbuild("inspect --verify app").ok();
    assert!(registry.run());
    env.build("").ok();
    // Nobody knows where it is: that is damage.
    let env = lazy(&registry);
    fs::remove_dir_all(env.store().join("origins")).unwrap();
    env.rbuild("inspect --verify app").ends(1).says("is damaged");
    env.rbuild("save -o app.tar app").ends(1).says("no registry is known to have it");
}

#[test]
fn a_layer_that_is_damaged_is_found_by_the_push_and_made_anew() {
    // A bit, half of it, more than it: of what was compressed for a push, and of the tar that goes as it is.
    let harms: [fn(&mut Vec<u8>); 3] = [|bytes| bytes[600] ^= 4, |bytes| bytes.truncate(300), |bytes| bytes.push(0)];
    for (folder, args) in [("blobs/sha256", ""), ("layers", " -o type=image,compression=uncompressed")] {
        for harm in harms {
            let fresh = || {
                let taker = Taker::default();
                Server::start(move |asked| taker.answer(asked))
            };
            let (first, second) = (fresh(), fresh());
            let (env, image) = (TestEnv::new(), format!("{}/x:1", second.host()));
            let data: Vec<u8> =
                (0..5000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
            env.write("ctx/f", data);
            env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
            env.build(&format!("-t {}/x:1 --push{args}", first.host())).ok();
            let files = walkdir::WalkDir::new(env.store().join(folder)).into_iter().flatten();
            let files = files.filter(|file| file.file_type().is_file());
            let layer = files.max_by_key(|file| file.metadata().map_or(0, |found| found.len())).unwrap().into_path();
            let mut bytes = fs::read(&layer).unwrap();
            harm(&mut bytes);
            fs::write(&layer, bytes).unwrap();
            let push = format!("-t {image} --push{args}");
            env.build(&push).ends(1).says(&format!("{} is damaged: ", layer.display()));
            env.build(&push).ok();
            let other = TestEnv::new();
            other.rbuild(&format!("pull {image}")).ok();
            other.rbuild(&format!("inspect --verify {image}")).ok();
            env.rbuild(&format!("inspect --verify {image}")).ok();
            drop((first, second));
        }
    }
}

/// A server that calls `when` at the first upload, and then goes on.
fn interrupting(taker: Arc<Taker>, when: impl Fn() + Send + Sync + 'static) -> Server {
    let once = OnceLock::new();
    Server::start(move |asked| {
        if asked.method == "POST" {
            once.get_or_init(&when);
        }
        taker.answer(asked)
    })
}

#[test]
fn what_is_pushed_stays_until_it_is_there() {
    let env = TestEnv::new();
    let (store, name) = (env.store(), Arc::new(OnceLock::<String>::new()));
    let known = Arc::clone(&name);
    let run = move |line: &str| {
        let mut command = std::process::Command::new(crate::support::machine::rbuild());
        let status = command.args(line.split(' ')).env("RBUILD_ROOT", &store).output().unwrap();
        assert!(status.status.success(), "{line}: {}", String::from_utf8_lossy(&status.stderr));
    };
    let taker = Arc::new(Taker::default());
    let server = interrupting(Arc::clone(&taker), move || {
        run(&format!("rmi {}", known.get().unwrap()));
        run("prune -af");
    });
    let image = format!("{}/x:1", server.host());
    name.set(image.clone()).unwrap();
    // More layers than are sent at once: some are read after the first upload began.
    import(&env, "base", "f");
    let mut file = "FROM base\n".to_owned();
    for number in 0..9 {
        env.write(&format!("ctx/{number}"), number.to_string().repeat(5000));
        file.push_str(&format!("COPY {number} /\n"));
    }
    env.write("ctx/Dockerfile", file);
    env.build(&format!("-t {image}")).ok();
    env.rbuild("rmi base").ok();
    env.rbuild(&format!("push {image}")).ok();
    assert_eq!(env.rbuild("images -q").ok().stdout, "", "it was removed while it was pushed");
    let other = TestEnv::new();
    other.rbuild(&format!("pull {image}")).ok();
    other.rbuild(&format!("inspect --verify {image}")).ok();
    assert!(taker.has_names());
    drop(server);
}

/// A server that takes images, and has a file that it gives only when so many layers came, or never (404).
fn slow_file(taker: Arc<Taker>, layers: usize, found: bool) -> Server {
    let uploads = Mutex::new(0);
    Server::start(move |asked: &Asked| {
        if asked.method == "PUT" && asked.path.contains("/blobs/") {
            *uploads.lock().unwrap() += 1;
        }
        if asked.path != "/slow" {
            return taker.answer(asked);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while *uploads.lock().unwrap() < layers {
            if Instant::now() > end {
                return Answer::new(410, "no layer came");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if found { Answer::new(200, "slow") } else { Answer::new(404, "") }
    })
}

#[test]
fn layers_go_ahead_while_later_steps_run() {
    for args in ["--push", "--push --timestamp 0", "--push -o type=image,compression=zstd", "-o type=registry"] {
        let taker = Arc::new(Taker::default());
        let server = slow_file(Arc::clone(&taker), 1, true);
        let host = server.host();
        let env = TestEnv::new();
        env.write("ctx/f", "text".repeat(1000));
        env.write("ctx/Dockerfile", format!("FROM scratch\nCOPY f /\nADD http://{host}/slow /\n"));
        let built = env.build(&format!("-t {host}/x:1 {args}")).ok().says("pushing layer ");
        let asked = server.asked();
        // The file was given, so the first layer went before the last step ended. The manifest is the last.
        assert_eq!(asked.iter().filter(|asked| asked.method == "GET" && asked.path == "/slow").count(), 1);
        let manifest = asked.iter().position(|asked| asked.method == "PUT" && asked.path.contains("/manifests/"));
        assert_eq!(manifest, Some(asked.len() - 1), "{args}: {asked:?}");
        // Nothing is sent, nor asked for, twice.
        let puts = asked.iter().filter(|asked| asked.method == "PUT" && asked.path.contains("/blobs/")).count();
        assert_eq!(puts, 3, "two layers and a config: {asked:?}");
        let heads = asked.iter().filter(|asked| asked.method == "HEAD" && asked.path.contains("/blobs/")).count();
        assert_eq!(heads, 3, "{asked:?}");
        // It is what the same build gives at once.
        let other = TestEnv::new();
        other.rbuild(&format!("pull {host}/x:1")).ok();
        let id = other.rbuild("images -q --no-trunc").ok().stdout;
        assert_eq!(id.trim(), built.image());
        drop(server);
    }
}

#[test]
fn layers_of_the_base_go_ahead_too() {
    if !needs("layers_of_the_base_go_ahead_too", NEEDS) {
        return;
    }
    let registry = with_base();
    let taker = Arc::new(Taker::default());
    let server = slow_file(Arc::clone(&taker), 2, true);
    let (env, host) = (TestEnv::new(), server.host());
    env.write("ctx/g", "g");
    env.write("ctx/Dockerfile", format!("FROM {}/base:1\nCOPY g /\nADD http://{host}/slow /\n", registry.host()));
    env.build(&format!("-t {host}/x:1 -o type=registry")).ok();
    let other = TestEnv::new();
    other.rbuild(&format!("pull {host}/x:1")).ok();
    other.rbuild(&format!("inspect --verify {host}/x:1")).ok();
    drop(server);
}

#[test]
fn a_build_that_fails_names_nothing() {
    let taker = Arc::new(Taker::default());
    let server = slow_file(Arc::clone(&taker), 1, false);
    let host = server.host();
    let env = TestEnv::new();
    env.write("ctx/f", "text");
    env.write("ctx/Dockerfile", format!("FROM scratch\nCOPY f /\nADD http://{host}/slow /\n"));
    env.build(&format!("-t {host}/x:1 --push")).ends(1).says("404");
    assert!(!taker.has_names());
    assert_eq!(env.rbuild("images -aq").ok().stdout, "");
    drop(server);
}

#[test]
fn each_repository_gets_each_layer_once() {
    let (taker, other) = (Arc::new(Taker::default()), Arc::new(Taker::default()));
    let server = slow_file(Arc::clone(&taker), 1, true);
    let second = Server::start(move |asked| other.answer(asked));
    let (env, host) = (TestEnv::new(), server.host());
    env.write("ctx/f", "text".repeat(1000));
    env.write("ctx/Dockerfile", format!("FROM scratch\nCOPY f /\nADD http://{host}/slow /\n"));
    let names = format!("-t {host}/x:1 -t {host}/x:2 -t {}/x:1", second.host());
    env.build(&format!("{names} --push")).ok().says("pushing layer ").says("to repository 2");
    for (server, manifests) in [(&server, 2), (&second, 1)] {
        let asked = server.asked();
        let puts = |part: &str| asked.iter().filter(|asked| asked.method == "PUT" && asked.path.contains(part)).count();
        assert_eq!((puts("/blobs/"), puts("/manifests/")), (3, manifests));
    }
    drop((server, second));
}

#[test]
fn only_layers_of_the_result_go_ahead() {
    let taker = Arc::new(Taker::default());
    let server = slow_file(Arc::clone(&taker), 1, true);
    let host = server.host();
    let env = TestEnv::new();
    for name in ["a", "b"] {
        env.write(&format!("ctx/{name}"), name.repeat(1000));
    }
    let stages = format!(
        "FROM scratch AS other\nCOPY b /\nFROM scratch\nCOPY a /\nADD http://{host}/slow /\nCOPY --from=other /b /c/\n"
    );
    env.write("ctx/Dockerfile", stages);
    env.build(&format!("-t {host}/x:1 --push")).ok();
    let puts = server.asked().iter().filter(|asked| asked.method == "PUT" && asked.path.contains("/blobs/")).count();
    assert_eq!(puts, 4, "three layers and a config");
    drop(server);
}

#[test]
fn an_image_is_known_by_the_digest_that_registries_have() {
    if !needs("an_image_is_known_by_the_digest_that_registries_have", NEEDS) {
        return;
    }
    let registry = Registry::start("", "");
    let (env, host) = (TestEnv::new(), registry.host());
    let digests = |env: &TestEnv, name: &str| env.run(["inspect", "-f", "{{index .RepoDigests 0}}", name]).ok().stdout;
    let pushed = |line: &str| {
        let found = line.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next());
        found.unwrap_or_else(|| panic!("no digest: {line}")).to_owned()
    };
    import(&env, &format!("{host}/a:1"), "f");
    let first = pushed(&env.rbuild(&format!("push {host}/a:1")).ok().stdout);
    assert_eq!(digests(&env, &format!("{host}/a:1")), format!("{host}/a@{first}\n"));
    assert!(env.rbuild("images --digests").ok().stdout.contains(&first));
    env.rbuild(&format!("inspect {host}/a@{first}")).ok();
    for (args, name) in [("", "b"), ("--platform linux/amd64,linux/arm64", "c")] {
        env.write("ctx/f", name);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
        let built = pushed(&env.build(&format!("{args} -t {host}/{name}:1 --push")).ok().stderr);
        assert_eq!(digests(&env, &format!("{host}/{name}:1")), format!("{host}/{name}@{built}\n"));
        let other = TestEnv::new();
        other.rbuild(&format!("pull {host}/{name}:1")).ok();
        assert_eq!(digests(&other, &format!("{host}/{name}:1")), format!("{host}/{name}@{built}\n"));
        other.rbuild(&format!("pull {host}/{name}@{built}")).ok();
    }
    // One image of an index goes alone.
    env.rbuild(&format!("tag {host}/c:1 {host}/alone")).ok();
    env.rbuild(&format!("push --platform linux/arm64 {host}/alone")).ok().says("Using default tag: latest");
    let other = TestEnv::new();
    other.rbuild(&format!("pull --platform linux/amd64 {host}/alone")).ends(1).says("it is for linux/arm64");
    other.rbuild(&format!("pull {host}/alone")).ok();
    env.rbuild(&format!("push --platform linux/s390x {host}/alone")).ends(1).says("nothing for linux/s390x");
}

/// What has no tag is known by its repository and its digest, after a pull as after a push.
#[test]
fn what_has_no_tag_is_known_by_its_digest() {
    if !needs("what_has_no_tag_is_known_by_its_digest", NEEDS) {
        return;
    }
    let registry = Registry::start("", "");
    let (env, host) = (TestEnv::new(), registry.host());
    env.write("ctx/f", "f");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /\n");
    let recipe = |more: &str| {
        format!("{more} --metadata-file m -o type=image,push-by-digest=true,name-canonical=true,push=true")
    };
    for (more, why) in [(format!("-t {host}/a:1"), "has a tag"), (format!("--offline -t {host}/a"), "--offline")] {
        env.build(&recipe(&more)).ends(2).says(why);
    }
    assert!(!env.store().join("layers").exists(), "nothing was run");
    for platforms in ["", "--platform linux/amd64,linux/arm64"] {
        let built = env.build(&recipe(&format!("{platforms} -t {host}/a"))).ok();
        assert!(built.stderr.contains(&format!("pushed {host}/a digest: ")), "{}", built.stderr);
        let meta: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(env.path("m")).unwrap()).unwrap();
        let digest = meta["containerimage.digest"].as_str().unwrap();
        let name = format!("{host}/a@{digest}");
        assert_eq!(meta["image.name"].as_str(), Some(&*format!("{host}/a")));
        env.rbuild(&format!("pull {host}/a:latest")).ends(1).says("not there");
        let other = TestEnv::new();
        other.rbuild(&format!("pull {name}")).ok();
        for env in [&env, &other] {
            let rows = env.rbuild("images --digests").ok().stdout;
            let row = rows.lines().find(|row| row.contains(digest)).unwrap_or_else(|| panic!("{rows}"));
            assert_eq!(row.split_whitespace().take(2).collect::<Vec<_>>(), [&*format!("{host}/a"), "<none>"]);
            assert_eq!(
                env.run(["inspect", "-f", "{{.RepoDigests}} {{.RepoTags}}", &name]).ok().stdout,
                format!("[{name}] []\n")
            );
            env.rbuild(&format!("inspect {host}/b@{digest}")).ends(1).says("No such image");
        }
        other.rbuild(&format!("tag {name} mine:1")).ok();
        other.rbuild(&format!("inspect {name}")).ok();
        other.rbuild(&format!("rmi {name}")).ok().says_nothing_of("No such");
        assert_eq!(other.rbuild("images -q").ok().stdout, "");
    }
}

/// A push that is denied is told of when it happens, not when all steps have run.
#[test]
fn a_layer_that_may_not_go_ahead_is_told_of() {
    if !needs("a_layer_that_may_not_go_ahead_is_told_of", &[Need::Busybox, Need::Run]) {
        return;
    }
    let server = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        _ => Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
    });
    let env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo a >/a\nRUN sleep 2; echo l''ate\n");
    let run = env.build(&format!("-t {}/x:1 --push", server.host())).ends(1).says("DENIED: read only");
    let at = |words: &str| run.stderr.find(words).unwrap_or_else(|| panic!("{words}: {}", run.stderr));
    assert!(at("no layer goes ahead any more") < at("late\n"), "{}", run.stderr);
    drop(server);
}
