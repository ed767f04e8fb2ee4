//! Shared caches that fail, lose what they had, or lie: no build ends with another image for it, or without one.

use super::*;

/// Builds the context on an empty machine with a broken cache: it has to go on, with one warning.
#[track_caller]
fn goes_on(from: &str, said: &str) -> Run {
    let env = machine();
    write_context(&env);
    let run = build(&env, &format!("-t x --cache-from {from}"));
    assert_eq!(run.stderr.matches("warning: the cache").count(), 1, "{}", run.shown());
    let run = run.says(said);
    env.rbuild("inspect --verify x").ok();
    let own = build(&env, "");
    if run.cached() == 0 {
        assert_eq!(
            own.content(),
            run.content(),
            "what was built without the cache is here, and right\n{}",
            own.shown()
        );
    }
    run
}

#[test]
fn a_broken_folder_stops_no_build() {
    if !needs("a_broken_folder_stops_no_build", RUN) {
        return;
    }
    let maker = machine();
    write_context(&maker);
    build(&maker, "--cache-to type=local,dest=cache,mode=max");
    let good = files(&maker.path("cache"));
    let from = format!("type=local,src={}", maker.path("cache").display());
    type Break<'a> = Box<dyn Fn(&Path, &[u8]) -> Option<Vec<u8>> + 'a>;
    let is_name = |path: &Path| path.components().any(|part| part.as_os_str() == "names");
    let is_blob = |path: &Path| path.components().any(|part| part.as_os_str() == "blobs");
    let gzip = |bytes: &[u8]| bytes.starts_with(&[0x1f, 0x8b]);
    let other = good.iter().filter(|(path, _)| is_name(path)).map(|(_, bytes)| bytes.clone()).next().expect("a name");
    let cases: Vec<(&str, Break<'_>)> = vec![
        (
            "has the digest",
            Box::new(|path, bytes| (is_blob(path) && gzip(bytes)).then(|| bytes.iter().rev().copied().collect())),
        ),
        (
            "the layer",
            Box::new(|path, bytes| {
                (is_blob(path) && gzip(bytes)).then(|| {
                    let mut bytes = bytes.to_vec();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    bytes
                })
            }),
        ),
        ("early", Box::new(|path, bytes| (is_blob(path) && gzip(bytes)).then(|| bytes[..bytes.len() - 1].to_vec()))),
        ("more than 1048576 bytes", Box::new(|path, _| is_name(path).then(|| vec![b' '; 10 << 20]))),
        ("manifest", Box::new(|path, bytes| is_name(path).then(|| bytes[..bytes.len() / 2].to_vec()))),
        ("another step", Box::new(move |path, bytes| (is_name(path) && *bytes != *other).then(|| other.clone()))),
        ("another version", Box::new(|path, _| path.ends_with("rbuild-cache").then(|| b"rbuild cache 9\n".to_vec()))),
    ];
    for (said, change) in cases {
        for (path, bytes) in &good {
            if let Some(changed) = change(path, bytes) {
                std::fs::write(path, changed).expect("the cache is ours");
            }
        }
        goes_on(&from, said);
        for (path, bytes) in &good {
            std::fs::write(path, bytes).expect("the cache is ours");
        }
    }
    // A blob that is gone; then who exports mends it.
    let blobs: Vec<_> = good.iter().filter(|(path, bytes)| is_blob(path) && gzip(bytes)).collect();
    blobs.iter().for_each(|(path, _)| std::fs::remove_file(path).expect("it is there"));
    goes_on(&from, "has no blob");
    let mender = machine();
    write_context(&mender);
    build(
        &mender,
        &format!("--cache-from {from} --cache-to type=local,dest={},mode=max", maker.path("cache").display()),
    );
    let reader = machine();
    write_context(&reader);
    let run = build(&reader, &format!("--cache-from {from}")).says_nothing_of("warning");
    assert_eq!(run.cached(), 5, "{}", run.shown());
    // Other folders are named, and stop nothing.
    let env = machine();
    write_context(&env);
    env.write("full/index.json", "{}");
    env.build("--cache-from type=local,src=full").ok().says("perhaps a cache of BuildKit");
    env.build("--cache-from type=local,src=nowhere").ok().says_nothing_of("warning");
    env.build("--cache-to type=local,dest=full")
        .ends(1)
        .says("the cache cannot be written to full")
        .says("the image itself is built");
    env.build("--cache-to type=local,dest=full,ignore-error=true").ok().says("warning: the cache cannot be written");
    let told = env.build("--progress json --cache-to type=local,dest=full,ignore-error=true").ok().stderr;
    let parts = told.lines().filter(|line| line.contains("exporting cache to full"));
    assert_eq!(parts.filter(|line| line.contains("\"began\"") || line.contains("\"ended\"")).count(), 2, "{told}");
    env.build("--offline --cache-from localhost:1/x").ends(2).says("--offline and --cache-from localhost:1/x");
    env.build("--offline --cache-to type=local,dest=new --cache-from type=local,src=new").ok();
}

/// Changes what a claim says: the record in the manifest, with digests that are right.
fn with_claim(bytes: &[u8], change: &dyn Fn(&mut serde_json::Value)) -> Vec<u8> {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let mut manifest: serde_json::Value = serde_json::from_slice(bytes).expect("a manifest");
    let data = engine.decode(manifest["config"]["data"].as_str().expect("data")).expect("base64");
    let mut claim: serde_json::Value = serde_json::from_slice(&data).expect("a claim");
    change(&mut claim);
    let data = serde_json::to_vec(&claim).expect("JSON");
    manifest["config"]["data"] = engine.encode(&data).into();
    manifest["config"]["size"] = data.len().into();
    manifest["config"]["digest"] = crate::support::oci::sha256(&data).into();
    serde_json::to_vec(&manifest).expect("JSON")
}

fn claim_of(bytes: &[u8]) -> serde_json::Value {
    let claim = std::cell::RefCell::default();
    with_claim(bytes, &|found| found.clone_into(&mut claim.borrow_mut()));
    claim.into_inner()
}

fn index_of(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(bytes).expect("a manifest")["layers"][1].clone()
}

fn with_index(bytes: &[u8], index: &serde_json::Value) -> Vec<u8> {
    let mut manifest: serde_json::Value = serde_json::from_slice(bytes).expect("a manifest");
    manifest["layers"][1] = index.clone();
    serde_json::to_vec(&manifest).expect("JSON")
}

#[test]
fn a_lying_cache_deceives_no_build() {
    if !needs("a_lying_cache_deceives_no_build", RUN) {
        return;
    }
    let maker = machine();
    write_context(&maker);
    build(&maker, "--cache-to type=local,dest=cache,mode=max");
    let from = format!("type=local,src={}", maker.path("cache").display());
    let names = files(&maker.path("cache/names"));
    let zero = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (said, change) in [
        (
            "has the diffID",
            &(|claim: &mut serde_json::Value| claim["layer"] = zero.into()) as &dyn Fn(&mut serde_json::Value),
        ),
        ("content", &|claim| claim["content"] = zero.into()),
        ("no time", &|claim| claim["created"] = "tomorrow".into()),
        ("version 7", &|claim| claim["version"] = 7.into()),
    ] {
        for (path, bytes) in &names {
            std::fs::write(path, with_claim(bytes, change)).expect("the cache is ours");
        }
        goes_on(&from, said);
    }
    // The list of files of another layer: COPY asks for it, and does not believe it.
    let indexes: Vec<_> = names.values().map(|bytes| index_of(bytes)).collect();
    for (number, (path, bytes)) in names.iter().enumerate() {
        let other = indexes.iter().find(|other| **other != indexes[number]).expect("another one");
        std::fs::write(path, with_index(bytes, other)).expect("the cache is ours");
    }
    let env = machine();
    write_context(&env);
    env.write("ctx/f", "another text");
    let run = build(&env, &format!("-t x -o type=oci,dest=x.tar --cache-from {from}")).says("warning: the cache");
    let run = run.says("the index of the layer");
    assert!(run.cached() > 0, "the layers are right, and come\n{}", run.shown());
    let file = Image::read(&env.path("x.tar")).tree().remove("w/g/f").expect("it was copied");
    assert_eq!(file.owner, (0, 99));

    // One layer in the place of another: all digests are right, but it is not what the step gave.
    let manifest = |bytes: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(bytes).expect("a manifest");
    let mut manifests: Vec<_> = names.values().map(manifest).collect();
    let first = manifests[0]["layers"].clone();
    manifests.iter_mut().for_each(|manifest| manifest["layers"] = first.clone());
    for (path, manifest) in names.keys().zip(&manifests) {
        std::fs::write(path, serde_json::to_vec(manifest).expect("JSON")).expect("the cache is ours");
    }
    let env = machine();
    write_context(&env);
    let run = build(&env, &format!("-o type=oci,dest=x.tar --cache-from {from}")).says("warning: the cache");
    let paths = |archive: &str| Image::read(&env.path(archive)).tree().into_keys().collect::<Vec<_>>();
    let taken = paths("x.tar");
    env.empty_store();
    env.import_busybox();
    build(&env, "-o type=oci,dest=own.tar");
    assert_eq!(taken, paths("own.tar"), "{}", run.shown());
}

#[test]
fn a_registry_that_fails_stops_no_build() {
    if !needs("a_registry_that_fails_stops_no_build", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    {
        let maker = machine();
        write_context(&maker);
        build(&maker, &format!("--cache-to {}/cache,mode=max", registry.host()));
    }
    let layers = |asked: &Asked| asked.path.contains("/cache/blobs/");
    for (said, change) in [
        (
            "denied",
            Box::new(|_: &Asked, _| Answer::new(401, "")) as Box<dyn Fn(&Asked, Answer) -> Answer + Send + Sync>,
        ),
        ("denied", Box::new(|_, _| Answer::new(403, "{}"))),
        ("refused", Box::new(|_, _| Answer::new(418, "teapot"))),
        (
            "more than",
            Box::new(|_, answer: Answer| Answer { body: vec![b'{'; 10 << 20], headers: Vec::new(), ..answer }),
        ),
        ("not there", Box::new(move |asked, answer| if layers(asked) { Answer::new(404, "") } else { answer })),
        (
            "digest",
            Box::new(move |asked, mut answer| {
                if layers(asked)
                    && let Some(byte) = answer.body.last_mut()
                {
                    *byte ^= 1;
                }
                answer
            }),
        ),
    ] {
        let server = between(&registry, change);
        goes_on(&format!("{}/cache", server.host()), said);
    }
    // Nothing there is no failure, and nobody is no long wait.
    let env = machine();
    write_context(&env);
    build(&env, &format!("--cache-from {}/nothing", registry.host())).says_nothing_of("warning");
    env.empty_store();
    env.import_busybox();
    goes_on("localhost:1/cache", "the build goes on without it");
    env.build("--cache-to localhost:1/cache").ends(1).says("the cache cannot be written to localhost:1/cache");
    // The image was kept all the same.
    env.build("-t kept --cache-to localhost:1/cache,ignore-error=true")
        .ok()
        .says("warning: the cache cannot be written");
    env.rbuild("inspect kept").ok();
}

/// A registry with an image of one layer, which has a user `app`, and a cache in a folder that knows one step on it.
struct OfBase {
    registry: Registry,
    maker: TestEnv,
    /// Its layer.
    layer: String,
}

impl OfBase {
    fn new() -> Self {
        let registry = Registry::start("", "");
        let maker = machine();
        maker.write("ctx/passwd", "root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n");
        maker.write("ctx/Dockerfile", "FROM busybox\nCOPY passwd /etc/passwd\n");
        maker.build("-o type=tar,dest=base.tar").ok();
        let name = format!("{}/base:1", registry.host());
        maker.rbuild(&format!("import base.tar {name}")).ok();
        maker.rbuild(&format!("push {name}")).ok();
        maker.rbuild(&format!("save {name} -o saved.tar")).ok();
        let layers = Image::read(&maker.path("saved.tar")).config["rootfs"]["diff_ids"].clone();
        assert_eq!(layers.as_array().map(Vec::len), Some(1), "{layers}");
        let layer = layers[0].as_str().expect("a digest").to_owned();
        maker.write("ctx/Dockerfile", format!("FROM {name} AS tool\nRUN echo one > /one\n"));
        build(&maker, &format!("-t {}/p:1 --push --cache-to type=local,dest=cache", registry.host()));
        Self { registry, maker, layer }
    }

    fn from(&self) -> String {
        format!("type=local,src={}", self.maker.path("cache").display())
    }
}

#[test]
fn a_claim_that_names_a_layer_of_the_base_says_nothing_of_the_base() {
    if !needs("a_claim_that_names_a_layer_of_the_base_says_nothing_of_the_base", BOTH) {
        return;
    }
    let base = OfBase::new();
    // An index of other accounts, right in itself.
    base.maker.write("ctx/etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:0:0::/:/bin/sh\n");
    base.maker.write("ctx/Dockerfile", "FROM scratch\nCOPY etc /etc\n");
    build(&base.maker, "--cache-to type=local,dest=other");
    let other = files(&base.maker.path("other/names")).into_values().next().expect("a name");
    for (path, bytes) in files(&base.maker.path("other/blobs")) {
        let name = path.strip_prefix(base.maker.path("other")).expect("it is below it");
        std::fs::write(base.maker.path("cache").join(name), bytes).expect("the cache is ours");
    }
    for (path, bytes) in files(&base.maker.path("cache/names")) {
        let lie = with_claim(&with_index(&bytes, &index_of(&other)), &|claim| {
            claim["layer"] = base.layer.as_str().into();
            claim["content"] = claim_of(&other)["content"].clone();
        });
        std::fs::write(path, lie).expect("the cache is ours");
    }
    let env = TestEnv::new();
    env.write("ctx/f", "text");
    let host = base.registry.host();
    env.write(
        "ctx/Dockerfile",
        format!(
            "FROM {host}/base:1 AS tool\nRUN echo one > /one\nFROM {host}/base:1\nCOPY --chown=app f /f\nCOPY --from=tool /etc/passwd /p\n"
        ),
    );
    for args in [format!("--cache-from {}", base.from()), String::new()] {
        let run = build(&env, &format!("-o type=oci,dest=x.tar {args}"));
        let file = Image::read(&env.path("x.tar")).tree().remove("f").expect("it was copied");
        assert_eq!(file.owner, (1234, 1234), "{args}\n{}", run.shown());
    }
}

#[test]
fn a_layer_that_the_cache_lost_and_the_base_has_is_no_endless_loop() {
    if !needs("a_layer_that_the_cache_lost_and_the_base_has_is_no_endless_loop", BOTH) {
        return;
    }
    let base = OfBase::new();
    for (path, bytes) in files(&base.maker.path("cache/blobs")) {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            std::fs::remove_file(path).expect("the cache is ours");
        }
    }
    let env = TestEnv::new();
    let host = base.registry.host();
    env.write(
        "ctx/Dockerfile",
        format!("FROM {host}/base:1 AS b\nRUN echo one > /one\nFROM {host}/p:1\nCOPY --from=b /one /two\n"),
    );
    let run = build(&env, &format!("-o type=oci,dest=x.tar --cache-from {}", base.from()));
    let tree = Image::read(&env.path("x.tar")).tree();
    assert!(tree.contains_key("one") && tree.contains_key("two"), "{}", run.shown());
}

#[test]
fn a_prune_takes_no_layer_of_a_build_that_goes_on() {
    if !needs("a_prune_takes_no_layer_of_a_build_that_goes_on", RUN) {
        return;
    }
    let env = Arc::new(machine());
    let prunes = Arc::new(AtomicUsize::new(0));
    let (pruned, own) = (Arc::clone(&prunes), Arc::clone(&env));
    let server = Server::start(move |_| {
        let run = own.rbuild("prune -a -f");
        pruned.fetch_add(usize::from(run.code == Some(0)), Ordering::SeqCst);
        Answer::new(200, "")
    });
    env.write(
        "ctx/Dockerfile",
        format!(
            "FROM busybox\nRUN mkdir /made && echo made > /made/f\nARG N\nRUN test -z \"$N\" || wget -q -O /asked http://{}/; cp -r /made /copied; exit 0\n",
            server.host()
        ),
    );
    build(&env, "--cache-to type=local,dest=cache,mode=max");
    env.empty_store();
    env.import_busybox();
    // The layer comes, and is there when the next build is told of it.
    build(&env, "--build-arg N= --cache-from type=local,src=cache");
    for number in [1, 2] {
        env.import_busybox();
        let run =
            build(&env, &format!("--build-arg N={number} -o type=oci,dest=x.tar --cache-from type=local,src=cache"));
        assert_eq!(prunes.load(Ordering::SeqCst), number, "{}", run.shown());
        let tree = Image::read(&env.path("x.tar")).tree();
        assert!(tree.contains_key("made/f") && tree.contains_key("copied/f"), "{}", run.shown());
    }
}

#[test]
fn what_one_cache_has_damaged_another_gives() {
    if !needs("what_one_cache_has_damaged_another_gives", BOTH) {
        return;
    }
    let registry = Registry::start("", "");
    let maker = machine();
    write_context(&maker);
    let good = format!("{}/cache", registry.host());
    let first = build(&maker, &format!("--cache-to type=local,dest=cache,mode=max --cache-to {good},mode=max"));
    let honest = files(&maker.path("cache/names"));
    let zero = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let keys: Vec<serde_json::Value> =
        honest.values().flat_map(|bytes| claim_of(bytes)["keys"].as_array().cloned().expect("keys")).collect();
    let empty = |_: &Vec<u8>| b"{}".to_vec();
    // It has the keys of all steps, so that all would be called wrong with it.
    let lie = |bytes: &Vec<u8>| {
        with_claim(bytes, &|claim| {
            claim["keys"] = keys.clone().into();
            claim["content"] = zero.into();
        })
    };
    for damage in [&empty as &dyn Fn(&Vec<u8>) -> Vec<u8>, &lie] {
        for (path, bytes) in &honest {
            std::fs::write(path, damage(bytes)).expect("the cache is ours");
        }
        let bad = format!("type=local,src={}", maker.path("cache").display());
        for output in ["-t x".to_owned(), format!("-t {}/app:1 --push", registry.host())] {
            let env = machine();
            write_context(&env);
            for _ in 0..2 {
                let run = build(&env, &format!("{output} --cache-from {bad} --cache-from {good}"));
                assert_eq!(run.image(), first.image(), "{}", run.shown());
            }
        }
    }
}

#[test]
fn a_layer_that_was_deleted_since_is_built_again() {
    if !needs("a_layer_that_was_deleted_since_is_built_again", BOTH) {
        return;
    }
    let (registry, second) = (Registry::start("", ""), Registry::start("", ""));
    let gone = Arc::new(AtomicUsize::new(0));
    let is_gone = Arc::clone(&gone);
    let server = between(&registry, move |asked, answer| {
        let of_cache = asked.path.contains("/cache/") && ["GET", "HEAD"].contains(&asked.method.as_str());
        let part = match is_gone.load(Ordering::SeqCst) {
            0 => "nothing",
            1 => "/cache/blobs/",
            _ => "/cache/",
        };
        if of_cache && asked.path.contains(part) { Answer::new(404, "") } else { answer }
    });
    let maker = machine();
    write_context(&maker);
    build(&maker, &format!("--cache-to {}/cache,mode=max", server.host()));
    for deleted in [2, 1] {
        gone.store(0, Ordering::SeqCst);
        let env = machine();
        write_context(&env);
        let cache = format!("--cache-from {}/cache", server.host());
        assert_eq!(build(&env, &format!("-o type=cacheonly {cache}")).cached(), 5);
        gone.store(deleted, Ordering::SeqCst);
        let name = format!("{}/app:{deleted}", second.host());
        build(&env, &format!("-t {name} --push {cache}")).says("is no longer there");
        let reader = TestEnv::new();
        reader.rbuild(&format!("pull {name}")).ok();
        reader.rbuild(&format!("inspect --verify {name}")).ok();
    }
}

#[test]
fn no_word_of_a_claim_goes_further() {
    if !needs("no_word_of_a_claim_goes_further", REGISTRY) {
        return;
    }
    let maker = TestEnv::new();
    let context = |env: &TestEnv| {
        env.write("ctx/f", "text ".repeat(2000));
        env.time("ctx/f", 1_500_000_000);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\nWORKDIR /w\nCOPY f /w/\n");
    };
    context(&maker);
    build(&maker, "--timestamp 7 -o type=oci,dest=honest.tar --cache-to type=local,dest=honest,mode=max");
    let level = "type=local,dest=cache,mode=max,compression=gzip,compression-level=1";
    build(&maker, &format!("--cache-to {level}"));
    let honest = files(&maker.path("honest/names"));
    let encoder = claim_of(honest.values().next().expect("a name"))["encoder"].clone();
    let other = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    for (path, bytes) in files(&maker.path("cache/names")) {
        let lie = with_claim(&bytes, &|claim| {
            assert_ne!(claim["encoder"], encoder, "the level is another");
            claim["encoder"] = encoder.clone();
            for part in ["source", "landing", "op", "below"] {
                claim[part] = other.into();
            }
        });
        std::fs::write(path, lie).expect("the cache is ours");
    }
    let env = TestEnv::new();
    context(&env);
    let from = format!("type=local,src={}", maker.path("cache").display());
    let run = build(&env, &format!("--cache-from {from} --cache-to type=local,dest=second,mode=max"));
    assert_eq!(run.cached(), 3, "{}", run.shown());
    let keys = |folder: PathBuf| {
        let names = files(&folder).into_keys();
        names.map(|path| path.file_name().expect("a file").to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    let (own, known) = (keys(env.path("second/names")), keys(maker.path("honest/names")));
    assert!(!own.is_empty() && own.is_subset(&known), "keys that nobody found out: {own:?}, {known:?}");
    // What compressed it is nothing that this store knows.
    build(&env, "-o type=oci,dest=x.tar");
    build(&maker, "-o type=oci,dest=x.tar");
    let blobs = |env: &TestEnv| {
        let layers = Image::read(&env.path("x.tar")).manifest["layers"].clone();
        let layers = layers.as_array().cloned().expect("layers");
        // The folder's time is the moment in which it was made.
        layers.into_iter().step_by(2).map(|layer| layer["digest"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(blobs(&env)[0], blobs(&maker)[0]);
}

#[test]
fn who_exports_mends_what_was_cut_short() {
    if !needs("who_exports_mends_what_was_cut_short", REGISTRY) {
        return;
    }
    let context = |env: &TestEnv| {
        env.write("ctx/f", "text ".repeat(2000));
        env.time("ctx/f", 1_500_000_000);
        env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\n");
    };
    let maker = TestEnv::new();
    context(&maker);
    build(&maker, "--cache-to type=local,dest=cache");
    let gzip = |bytes: &[u8]| bytes.starts_with(&[0x1f, 0x8b]);
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    for damage in [&cut as &dyn Fn(&mut Vec<u8>), &flip] {
        for (path, mut bytes) in files(&maker.path("cache/blobs")).into_iter().filter(|(_, bytes)| gzip(bytes)) {
            damage(&mut bytes);
            std::fs::write(path, bytes).expect("the cache is ours");
        }
        let place = maker.path("cache").display().to_string();
        let mender = TestEnv::new();
        context(&mender);
        build(&mender, &format!("--cache-from type=local,src={place} --cache-to type=local,dest={place}"))
            .says("warning: the cache")
            .says("1 steps were written");
        let reader = TestEnv::new();
        context(&reader);
        let run = build(&reader, &format!("--cache-from type=local,src={place}")).says_nothing_of("warning");
        assert_eq!(run.cached(), 1, "{}", run.shown());
    }
}
