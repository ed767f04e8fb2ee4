//! Registries: the real docker-registry, plain, with passwords and with TLS; and servers of the tests' own that fail in
//! every way that networks and registries do.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tar::EntryType;

use crate::support::base::RootTar;
use crate::support::env::{Run, TestEnv};
use crate::support::machine::{Need, needs, test_user};
use crate::support::registry::{Answer, Asked, Memory, Registry, Server, Taker};

const NEEDS: &[Need] = &[Need::Program("docker-registry")];

/// `ann:secret`, as htpasswd -B writes it.
const PASSWORDS: &str = "ann:$2y$05$di/2gt3nXWhPkNf8qEmn.ekQzsJVOS4YBjqEhppO8wsANicN33pwW\n";

pub(crate) fn tar(name: &str, size: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let data: Vec<u8> = (0..size).map(|_| next()).collect();
    let mut tar = RootTar::new();
    tar.file(name, 0o644, &data);
    tar.finish()
}

/// An environment with an image `name`, made from a tar.
fn with_image(name: &str) -> TestEnv {
    let env = TestEnv::new();
    add_image(&env, name);
    env
}

pub(crate) fn add_image(env: &TestEnv, name: &str) {
    env.write("base.tar", tar("f", 100_000));
    env.run(["import", "-c", "ENV BASE=yes", "base.tar", name]).ok();
}

/// Blobs and layers in the store.
fn kept(env: &TestEnv) -> usize {
    let count = |name: &str| std::fs::read_dir(env.store().join(name)).map_or(0, Iterator::count);
    count("blobs/sha256") + count("layers")
}

#[test]
fn images_go_there_and_come_back() {
    if !needs("images_go_there_and_come_back", NEEDS) {
        return;
    }
    let registry = Registry::start("", "");
    let host = registry.host();
    let env = with_image(&format!("{host}/a/base:1"));
    let first = env.rbuild(&format!("push {host}/a/base:1")).ok().says(": Pushed");
    assert!(first.stderr.starts_with(&format!("The push refers to repository [{host}/a/base]\n")), "{}", first.stderr);
    let digest =
        first.stdout.strip_prefix("1: digest: ").and_then(|rest| rest.split(' ').next()).unwrap_or("").to_owned();
    assert!(digest.starts_with("sha256:") && first.stdout.contains(" size: "), "{}", first.stdout);
    let again =
        env.rbuild(&format!("push {host}/a/base:1")).ok().says("Layer already exists").says_nothing_of("Pushed");
    assert_eq!(again.stdout, first.stdout);
    // Another repository of the same registry has the layer without another upload.
    env.rbuild(&format!("tag {host}/a/base:1 {host}/b:2")).ok();
    env.rbuild(&format!("push {host}/b:2")).ok().says("Mounted from a/base");
    assert_eq!(env.rbuild(&format!("push -q {host}/b:2")).ok().stdout, format!("{host}/b:2\n"));

    let other = TestEnv::new();
    let pulled =
        other.rbuild(&format!("pull {host}/a/base:1")).ok().says("1: Pulling from a/base").says("Pull complete");
    assert_eq!(
        pulled.stdout,
        format!("Digest: {digest}\nStatus: Downloaded newer image for {host}/a/base:1\n{host}/a/base:1\n")
    );
    let same = other.rbuild(&format!("pull {host}/a/base:1")).ok().says("Already exists");
    assert!(same.stdout.contains(&format!("Status: Image is up to date for {host}/a/base:1")), "{}", same.stdout);
    other.rbuild(&format!("inspect --verify {host}/a/base:1")).ok();
    let id = |env: &TestEnv| env.rbuild("images -q --no-trunc").ok().stdout;
    assert_eq!(id(&other), id(&env).lines().next().map(|id| format!("{id}\n")).unwrap_or_default());
    // What was pulled and not changed keeps its manifest's bytes wherever it goes.
    other.rbuild(&format!("tag {host}/a/base:1 {host}/c:1")).ok();
    let sent = other.rbuild(&format!("push {host}/c:1")).ok().says("Mounted from a/base");
    assert!(sent.stdout.contains(&digest), "{}", sent.stdout);
    assert_eq!(other.rbuild(&format!("pull -q {host}/b:2")).ok().stdout, format!("{host}/b:2\n"));
    other.rbuild(&format!("pull {host}/a/base@{digest}")).ok();

    // All tags, both ways.
    for tag in ["edge", "stable"] {
        env.rbuild(&format!("tag {host}/b:2 {host}/many:{tag}")).ok();
    }
    let all = env.rbuild(&format!("push -a {host}/many")).ok();
    assert!(all.stdout.contains("edge: digest: ") && all.stdout.contains("\nstable: digest: "), "{}", all.stdout);
    let all = other.rbuild(&format!("pull -aq {host}/many")).ok();
    assert_eq!(all.stdout, format!("{host}/many:edge\n{host}/many:stable\n"));

    other.rbuild(&format!("pull {host}/a/base:2")).ends(1).says("there is no tag 2").says("MANIFEST_UNKNOWN");
    other.rbuild(&format!("pull {host}/many:stabel")).ends(1).says(&format!("did you mean {host}/many:stable?"));
    other.rbuild(&format!("pull {host}/a/bsae:1")).ends(1).says("not there");
    other.rbuild("pull Nginx").ends(2).says("did you mean \"nginx\"?");
    other.rbuild(&format!("push {host}/a/none:1")).ends(1).says("No such image");
    other.rbuild(&format!("pull --platform linux/arm64 {host}/a/base:1")).ends(1).says("not for linux/arm64");
}

#[test]
fn skopeo_reads_and_writes_the_same_registry() {
    if !needs("skopeo_reads_and_writes_the_same_registry", &[NEEDS[0], Need::Program("skopeo")]) {
        return;
    }
    let registry = Registry::start("", "");
    let host = registry.host();
    let env = TestEnv::new();
    env.write("ctx/f", "text");
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\nCMD [\"/f\"]\n");
    for (compression, kind) in [("gzip", "oci"), ("zstd", "oci"), ("gzip", "docker")] {
        let media = if kind == "oci" { "true" } else { "false" };
        env.build(&format!(
            "-o type=registry,name={host}/app:{compression}-{kind},compression={compression},oci-mediatypes={media}"
        ))
        .ok()
        .says(&format!("pushed {host}/app:{compression}-{kind} digest: sha256:"));
        let skopeo = |args: &[&str]| {
            let mut command = Command::new("skopeo");
            command.args(["--tmpdir", &env.path("tmp").display().to_string()]).args(args).stdin(Stdio::null());
            Run::of(&mut command)
        };
        let dir = env.path(&format!("{compression}-{kind}"));
        let (from, to) = (format!("docker://{host}/app:{compression}-{kind}"), format!("dir:{}", dir.display()));
        skopeo(&["copy", "--src-tls-verify=false", &from, &to]).ok();
        let back = format!("docker://{host}/back:{compression}-{kind}");
        skopeo(&["copy", "--dest-tls-verify=false", &to, &back]).ok();
        env.rbuild(&format!("pull {host}/back:{compression}-{kind}")).ok();
        env.rbuild(&format!("inspect --verify {host}/back:{compression}-{kind}")).ok();
    }
    assert!(env.store().join("images.json").exists());
}

#[test]
fn an_index_goes_there_whole() {
    if !needs("an_index_goes_there_whole", &[NEEDS[0], Need::Program("skopeo")]) {
        return;
    }
    let registry = Registry::start("", "");
    let host = registry.host();
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", "FROM scratch\nARG TARGETPLATFORM\nCOPY <<EOF /platform\n$TARGETPLATFORM\nEOF\n");
    let platforms = "--platform linux/amd64,linux/arm64";
    env.build(&format!("{platforms} -t {host}/multi:1")).ok();
    let stored = env.rbuild(&format!("push {host}/multi:1")).ok();
    let digest = stored.stdout.split(' ').nth(2).unwrap_or_default();
    assert!(digest.starts_with("sha256:"), "{}", stored.stdout);
    env.build(&format!("{platforms} -o type=registry,name={host}/multi:2"))
        .ok()
        .says(&format!("pushed {host}/multi:2 digest: {digest} "));
    // Its images have no tags of their own, and all of it is there.
    let mut all = Command::new("skopeo");
    all.args(["--tmpdir", &env.path("tmp").display().to_string(), "copy", "-q", "--all", "--src-tls-verify=false"]);
    all.args([format!("docker://{host}/multi:2"), format!("dir:{}", env.path("all").display())]);
    Run::of(all.stdin(Stdio::null())).ok();
    let other = TestEnv::new();
    other.rbuild(&format!("pull --platform linux/arm64 {host}/multi:1")).ok();
    let architecture = other.rbuild(&format!("inspect -f {{{{.Architecture}}}} {host}/multi:1")).ok().stdout;
    assert_eq!(architecture, "arm64\n");
}

#[test]
fn bases_come_from_registries() {
    if !needs("bases_come_from_registries", NEEDS) {
        return;
    }
    let mut registry = Registry::start("", "");
    let host = registry.host();
    {
        let maker = with_image(&format!("{host}/base:1"));
        maker.rbuild(&format!("push {host}/base:1")).ok();
    }
    let env = TestEnv::new();
    env.write("ctx/g", "g");
    env.write("ctx/Dockerfile", format!("FROM {host}/base:1\nENV A=$BASE\n"));
    // Nobody reads the layers: they are mounted, and do not come here.
    let pushed = env.build(&format!("-o type=registry,name={host}/app:1 --metadata-file meta.json")).ok();
    assert_eq!(std::fs::read_dir(env.store().join("layers")).unwrap().count(), 0, "{}", pushed.stderr);
    let told =
        pushed.stderr.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("none").to_owned();
    let meta = std::fs::read_to_string(env.path("meta.json")).unwrap();
    assert!(meta.contains(&format!("\"containerimage.digest\": \"{told}\"")), "{told}: {meta}");
    env.build("-t app").ok().says(&format!("[internal] pull {host}/base:1"));
    assert!(env.run(["inspect", "-f", "{{json .Config.Env}}", "app"]).ok().stdout.contains("A=yes"));
    env.rbuild("inspect --verify app").ok();
    // A COPY onto it.
    env.write("ctx/Dockerfile", format!("FROM {host}/base:1\nCOPY --from={host}/app:1 /f /h\nCOPY g /\n"));
    env.build("--push").ends(2).says("needs a name");
    env.build(&format!("-t {host}/app:2 --push")).ok();
    assert!(env.rbuild("images").ok().stdout.contains("app"), "--push keeps the image, too");
    let reads = TestEnv::new();
    reads.rbuild(&format!("pull {host}/app:2")).ok();

    // A tag moves.
    env.write("base.tar", tar("new", 10));
    env.run(["import", "base.tar", "moved"]).ok();
    env.rbuild(&format!("tag moved {host}/base:1")).ok();
    env.rbuild(&format!("push {host}/base:1")).ok();
    env.rbuild(&format!("untag {host}/base:1")).ok();
    let before = env.build("").ok().image();
    assert_eq!(env.build("--pull=missing").ok().image(), before);
    let after = env.build("--pull").ok().image();
    assert_ne!(after, before, "--pull looks again");
    assert_eq!(env.build("--pull=newer").ok().image(), after);

    registry.stop();
    // All is here: nobody is asked.
    assert_eq!(env.build("").ok().image(), after);
    assert_eq!(env.build("--offline").ok().image(), after);
    assert_eq!(env.build("--pull=newer").ok().image(), after, "what is here will do");
    env.build("--pull").ends(1).says("cannot connect");
    env.build("--pull --offline").ends(2).says("--offline");
    let fresh = TestEnv::new();
    fresh.write("ctx/Dockerfile", format!("FROM {host}/base:1\n"));
    fresh.build("--offline").ends(1).says(&format!("there is no image {host}/base:1")).says("--offline: its registry");
    fresh.build("--pull=never").ends(1).says("--pull=never: its registry");
    fresh.build("").ends(1).says("cannot connect");
    assert!(registry.run());
    fresh.build("").ok();
}

#[test]
fn passwords_are_asked_for_and_kept() {
    if !needs("passwords_are_asked_for_and_kept", NEEDS) {
        return;
    }
    let auth = "auth:\n  htpasswd: {realm: tests, path: FOLDER/passwords}\n";
    let registry = Registry::start_with(&[("passwords", PASSWORDS.into())], "", auth);
    let host = registry.host();
    let mut env = with_image(&format!("{host}/base:1"));
    env.rbuild(&format!("push {host}/base:1")).ends(1).says("denied").says(&format!("`rbuild login {host}`"));
    let login = |env: &TestEnv, password: &str| {
        env.write("password", password);
        let mut command = env.command(["login", "-u", "ann", "--password-stdin", &host]);
        Run::of(command.stdin(std::fs::File::open(env.path("password")).unwrap()))
    };
    let wrong = login(&env, "wrong\n").ends(1).says("denied").says_nothing_of("wrong");
    assert_eq!(wrong.stdout, "");
    assert!(!env.path("home/.docker/config.json").exists());
    let right = login(&env, "secret\n").ok().says("unencrypted").says_nothing_of("secret\n");
    assert_eq!(right.stdout, "Login Succeeded\n");
    env.rbuild(&format!("push {host}/base:1")).ok();
    env.rbuild(&format!("login {host}")).ok().says("existing credentials");
    env.write("ctx/Dockerfile", format!("FROM {host}/base:1\n"));
    env.build("--pull").ok();
    assert_eq!(env.rbuild(&format!("logout {host}")).ok().stdout, format!("Removing login credentials for {host}\n"));
    assert_eq!(env.rbuild(&format!("logout {host}")).ok().stdout, format!("Not logged in to {host}\n"));
    env.build("--pull").ends(1).says("denied");
    env.rbuild(&format!("login {host}")).ends(2).says("no terminal");
    env.rbuild(&format!("login --password-stdin {host}")).ends(2).says("--username");

    // A helper keeps them instead; DOCKER_CONFIG says where the file is.
    env.write("bin/docker-credential-test", "#!/bin/sh\ncase $1 in store) cat >\"$HOME/kept\";; get) cat >/dev/null; test -e \"$HOME/kept\" || { echo credentials not found; exit 1; }; echo '{\"Username\":\"ann\",\"Secret\":\"secret\"}';; erase) rm \"$HOME/kept\";; esac\n");
    env.mode("bin/docker-credential-test", 0o755);
    env.write("config/config.json", r#"{"credsStore":"test"}"#);
    env.set("DOCKER_CONFIG", "config");
    let path = format!("{}:{}", env.path("bin").display(), std::env::var("PATH").unwrap());
    env.set("PATH", &path);
    login(&env, "secret").ok().says_nothing_of("unencrypted");
    assert!(std::fs::read_to_string(env.path("home/kept")).unwrap().contains("\"Secret\":\"secret\""));
    assert_eq!(std::fs::read_to_string(env.path("config/config.json")).unwrap(), r#"{"credsStore":"test"}"#);
    env.build("--pull").ok();
    env.rbuild(&format!("logout {host}")).ok();
    assert!(!env.path("home/kept").exists());
}

/// A CA, and certificates that it signed for localhost and for a client: file names and bytes.
pub(crate) fn certificates(env: &TestEnv) {
    env.write("ext", "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
    let openssl = |line: &str| {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(env.path("")).stdin(Stdio::null());
        Run::of(&mut command).ok()
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=tests");
    for name in ["server", "client"] {
        openssl(&format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 3650 -extfile ext"
        ));
    }
}

#[test]
fn certificates_are_checked_and_shown() {
    if !needs("certificates_are_checked_and_shown", &[NEEDS[0], Need::Program("openssl")]) {
        return;
    }
    let env = TestEnv::new();
    certificates(&env);
    let read = |name: &str| std::fs::read(env.path(name)).unwrap();
    let files = ["ca.crt", "server.crt", "server.key"].map(|name| (name, read(name)));
    let tls = "  tls:\n    certificate: FOLDER/server.crt\n    key: FOLDER/server.key\n";
    let registry = Registry::start_with(&files, tls, "");
    let host = registry.host();
    add_image(&env, &format!("{host}/base:1"));
    env.rbuild(&format!("push {host}/base:1")).ends(1).says("UnknownIssuer").says("--insecure");
    env.rbuild(&format!("push --insecure {host}/base:1")).ok();
    let place = format!("home/.config/rbuild/certs.d/{host}");
    env.write(&format!("{place}/ca.crt"), read("ca.crt"));
    env.rbuild(&format!("pull {host}/base:1")).ok();
    env.remove(&format!("{place}/ca.crt"));
    env.write(&format!("{place}/hosts.toml"), format!("[host.\"https://{host}\"]\nskip_verify = true\n"));
    env.rbuild(&format!("pull {host}/base:1")).ok();
    env.write(&format!("{place}/hosts.toml"), format!("[host.\"https://{host}\"]\nca = \"../../ca.crt\"\n"));
    env.rbuild(&format!("pull {host}/base:1")).ends(1).says("ca.crt: No such file");
    env.write(&format!("{place}/hosts.toml"), "[host\n");
    env.rbuild(&format!("pull {host}/base:1")).ends(1).says("hosts.toml: TOML parse error");

    let tls = format!("{tls}    clientcas: [FOLDER/ca.crt]\n");
    let strict = Registry::start_with(&files, &tls, "");
    let host = strict.host();
    let place = format!("home/.config/rbuild/certs.d/{host}");
    env.write(&format!("{place}/ca.crt"), read("ca.crt"));
    env.rbuild(&format!("pull {host}/base:1")).ends(1).says("localhost");
    env.write(&format!("{place}/client.cert"), read("client.crt"));
    env.rbuild(&format!("pull {host}/base:1")).ends(1).says("there is no").says("client.key");
    env.write(&format!("{place}/client.key"), read("client.key"));
    env.rbuild(&format!("tag localhost:{}/base:1 {host}/base:1", registry.host().split(':').nth(1).unwrap())).ok();
    env.rbuild(&format!("push {host}/base:1")).ok();
}

/// What a new user does first, with a registry of loopback in Docker Hub's place.
#[test]
fn docker_hub_may_be_elsewhere() {
    if !needs("docker_hub_may_be_elsewhere", NEEDS) {
        return;
    }
    let auth = "auth:\n  htpasswd: {realm: tests, path: FOLDER/passwords}\n";
    let registry = Registry::start_with(&[("passwords", PASSWORDS.into())], "", auth);
    let env = with_image("nginx");
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n", registry.host());
    env.write("home/.config/rbuild/certs.d/docker.io/hosts.toml", hosts);
    env.write("password", "secret");
    let mut login = env.command(["login", "-u", "ann", "--password-stdin"]);
    Run::of(login.stdin(std::fs::File::open(env.path("password")).unwrap())).ok();
    env.rbuild("push nginx").ok().says("The push refers to repository [docker.io/library/nginx]");
    env.rbuild("rmi nginx").ok();
    env.write("ctx/Dockerfile", "FROM nginx\nLABEL a=b\n");
    env.build("-t ann/site --push").ok();
    let pulled =
        env.rbuild("pull nginx").ok().says("Using default tag: latest").says("latest: Pulling from library/nginx");
    assert!(pulled.stdout.ends_with("for nginx:latest\ndocker.io/library/nginx:latest\n"), "{}", pulled.stdout);
    env.rbuild("tag nginx ann/nginx:mine").ok();
    env.rbuild("push ann/nginx:mine").ok().says("Mounted from ");
}

#[test]
fn ordinary_users_push_what_they_ran() {
    let test = "ordinary_users_push_what_they_ran";
    if !needs(test, &[NEEDS[0], Need::Busybox, Need::Run, Need::Root, Need::User]) {
        return;
    }
    let registry = Registry::start("", "");
    let host = registry.host();
    let env = TestEnv::as_user(&test_user().expect("looked up before"));
    env.import_busybox();
    env.rbuild(&format!("tag busybox {host}/busybox")).ok();
    env.rbuild(&format!("push {host}/busybox")).ok();
    env.rbuild("rmi busybox").ok();
    env.rbuild(&format!("rmi {host}/busybox")).ok();
    env.empty_store();
    env.write("ctx/Dockerfile", format!("FROM {host}/busybox\nRUN echo a >/a && chown 33:33 /a\n"));
    env.build(&format!("-t {host}/app --push")).ok();
    env.build("-t again --no-cache").ok();
    env.rbuild(&format!("tag again {host}/again")).ok();
    env.rbuild(&format!("push {host}/again")).ok();
    let root = TestEnv::new();
    root.rbuild(&format!("pull {host}/again")).ok();
    root.rbuild(&format!("inspect --verify {host}/again")).ok();
}

fn refuse(scopes: &str, realm: &str) -> Answer {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"tests\",scope=\"{scopes}\"");
    Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
        .with("WWW-Authenticate", challenge)
}

#[test]
fn tokens_are_fetched_once_per_scope() {
    let memory = Memory::new(&tar("f", 1000));
    let server = Server::start(move |asked| {
        let host = asked.header("host").to_owned();
        if asked.path.starts_with("/token?") {
            // ann:secret
            let known = asked.header("authorization") == "Basic YW5uOnNlY3JldA==";
            return if known { Answer::new(200, r#"{"token":"t0k3n"}"#) } else { Answer::new(401, "{}") };
        }
        if asked.header("authorization") != "Bearer t0k3n" {
            return refuse("repository:x:pull", &format!("http://{host}/token"));
        }
        memory.answer(asked)
    });
    let env = TestEnv::new();
    env.rbuild(&format!("pull {}/x:1", server.host())).ends(1).says("denied");
    let auth = format!(r#"{{"auths":{{"{}":{{"auth":"YW5uOnNlY3JldA=="}}}}}}"#, server.host());
    env.write("home/.docker/config.json", auth);
    let before = server.asked().len();
    env.rbuild(&format!("pull {}/x:1", server.host())).ok();
    let asked = server.asked().split_off(before);
    let tokens: Vec<&Asked> = asked.iter().filter(|asked| asked.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    assert_eq!(tokens[0].path, "/token?service=tests&scope=repository%3Ax%3Apull&account=ann");
}

/// The docker-registry that asks for tokens, and a server that gives them to who may have them.
#[test]
fn a_token_server_is_asked() {
    if !needs("a_token_server_is_asked", &[NEEDS[0], Need::Program("openssl")]) {
        return;
    }
    let env = TestEnv::new();
    let openssl = |line: &str| {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(env.path("")).stdin(Stdio::null());
        Run::of(&mut command).ok()
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout token.key -out token.crt -days 3650 -subj /CN=tests");
    let certificate = std::fs::read_to_string(env.path("token.crt")).unwrap();
    let body: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let folder = env.path("");
    let tokens = Server::start(move |asked| {
        let query = asked.path.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        // Anybody may read; ann may write.
        let known = asked.header("authorization") == "Basic YW5uOnNlY3JldA==";
        let mut access = Vec::new();
        for scope in query.split(['?', '&']).filter_map(|field| field.strip_prefix("scope=repository:")) {
            let (name, actions) = scope.split_once(':').unwrap_or((scope, ""));
            let actions = actions.split(',').filter(|action| known || *action == "pull");
            let actions = actions.map(|action| format!("\"{action}\"")).collect::<Vec<_>>().join(",");
            access.push(format!(r#"{{"type":"repository","name":"{name}","actions":[{actions}]}}"#));
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(
            r#"{{"iss":"tests","sub":"ann","aud":"registry","exp":{},"nbf":{},"iat":{now},"jti":"1","access":[{}]}}"#,
            now + 300,
            now - 300,
            access.join(",")
        );
        let head = format!(r#"{{"typ":"JWT","alg":"RS256","x5c":["{body}"]}}"#);
        let base64url = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", base64url(head.as_bytes()), base64url(claims.as_bytes()));
        std::fs::write(folder.join("claims"), &signed).unwrap();
        let mut sign = Command::new("openssl");
        sign.args(["dgst", "-sha256", "-sign", "token.key", "claims"]).current_dir(&folder).stdin(Stdio::null());
        let signature = sign.output().unwrap().stdout;
        Answer::new(200, format!(r#"{{"token":"{signed}.{}"}}"#, base64url(&signature)))
    });
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: registry\n    issuer: tests\n    rootcertbundle: FOLDER/token.crt\n",
        tokens.host()
    );
    let registry = Registry::start_with(&[("token.crt", certificate.clone().into_bytes())], "", &auth);
    let host = registry.host();
    add_image(&env, &format!("{host}/a/base:1"));
    env.rbuild(&format!("push {host}/a/base:1")).ends(1).says("denied").says(&format!("`rbuild login {host}`"));
    env.write("home/.docker/config.json", format!(r#"{{"auths":{{"{host}":{{"auth":"YW5uOnNlY3JldA=="}}}}}}"#));
    env.rbuild(&format!("push {host}/a/base:1")).ok();
    // A mount takes a token for both repositories.
    env.rbuild(&format!("tag {host}/a/base:1 {host}/b:1")).ok();
    env.rbuild(&format!("push {host}/b:1")).ok().says("Mounted from a/base");
    let anybody = TestEnv::new();
    anybody.write("ctx/Dockerfile", format!("FROM {host}/b:1\nLABEL a=b\n"));
    anybody.build("").ok();
    anybody.build(&format!("-t {host}/c:1 --push")).ends(1).says("denied");
    drop((registry, tokens));
}

pub(crate) type Fault = Box<dyn Fn(&Asked, usize, &Memory) -> Option<Answer> + Send + Sync>;

/// Pulls `x:1` from a registry in which `fault` answers what it wants to, given how often the same was asked before.
pub(crate) fn pull_with(memory: Memory, fault: Fault) -> (Run, TestEnv, Server) {
    let counts = std::sync::Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let server = Server::start(move |asked| {
        let times = {
            let mut counts = counts.lock().unwrap();
            let count = counts.entry(format!("{} {}", asked.method, asked.path)).or_default();
            *count += 1;
            *count - 1
        };
        fault(asked, times, &memory).unwrap_or_else(|| memory.answer(asked))
    });
    let env = TestEnv::new();
    let run = env.rbuild(&format!("pull {}/x:1", server.host()));
    (run, env, server)
}

fn is_layer(asked: &Asked, memory: &Memory) -> bool {
    asked.path.ends_with(&crate::support::oci::sha256(&memory.layer))
}

#[test]
fn what_may_pass_is_tried_again() {
    let layer = tar("f", 300_000);
    let cases: Vec<(&str, Fault)> = vec![
        ("too many", Box::new(|_, times, _| (times < 2).then(|| Answer::new(429, "").with("Retry-After", "0")))),
        ("failures", Box::new(|_, times, _| (times < 1).then(|| Answer::new(503, "busy")))),
        (
            "cut",
            Box::new(|asked, _, memory| {
                let answer = memory.answer(asked);
                let cut = is_layer(asked, memory) && asked.header("range").is_empty();
                cut.then_some(Answer { cut: Some(100_001), ..answer })
            }),
        ),
        (
            "cut, and no ranges",
            Box::new(|asked, times, memory| {
                let whole = Answer::new(200, memory.layer.clone());
                let cut = if times == 0 { Some(100_001) } else { None };
                is_layer(asked, memory).then_some(Answer { cut, ..whole })
            }),
        ),
        (
            "a manifest that breaks off",
            Box::new(|asked, times, memory| {
                (asked.path.contains("/manifests/") && times < 2)
                    .then(|| Answer { cut: Some(50), ..memory.answer(asked) })
            }),
        ),
        (
            "another part than was asked for",
            Box::new(|asked, times, memory| match asked.header("range") {
                _ if !is_layer(asked, memory) => None,
                "" => Some(Answer { cut: (times == 0).then_some(100_001), ..Answer::new(200, memory.layer.clone()) }),
                _ => Some(Answer::new(206, "parts").with("Content-Range", "bytes 5-9/300")),
            }),
        ),
        (
            "no part at all",
            Box::new(|asked, times, memory| match asked.header("range") {
                _ if !is_layer(asked, memory) => None,
                "" => Some(Answer { cut: (times == 0).then_some(100_001), ..Answer::new(200, memory.layer.clone()) }),
                _ => Some(Answer::new(416, "")),
            }),
        ),
        (
            "nothing at all",
            Box::new(|asked, times, memory| {
                (is_layer(asked, memory) && times == 0).then(|| Answer { cut: Some(0), ..memory.answer(asked) })
            }),
        ),
    ];
    for (name, fault) in cases {
        let (run, env, _server) = pull_with(Memory::new(&layer), fault);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        env.run(["inspect", "--verify"].into_iter().chain(env.rbuild("images -q").ok().stdout.lines())).ok();
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    static HITS: AtomicUsize = AtomicUsize::new(0);
    let manifest = |text: &'static str| -> Fault {
        Box::new(move |asked, _, _| asked.path.contains("/manifests/").then(|| Answer::new(200, text)))
    };
    let layer = |change: fn(&Memory) -> Answer| -> Fault {
        Box::new(move |asked, _, memory| is_layer(asked, memory).then(|| change(memory)))
    };
    let cases: Vec<(&str, Fault, &str)> = vec![
        ("always 500", Box::new(|_, _, _| Some(Answer::new(500, "oops"))), "try again later"),
        ("not found", Box::new(|_, _, _| Some(Answer::new(404, "<html>"))), "check the name and the tag"),
        (
            "teapot",
            Box::new(|_, _, _| {
                Some(Answer::new(418, "{\"errors\":[{\"code\":\"TEA\",\"message\":\"pot\\u001b[31m\"}]}"))
            }),
            "(TEA: pot[31m)",
        ),
        (
            "401 without an end",
            Box::new(|asked, _, _| {
                let realm = format!("http://{}/token", asked.header("host"));
                let token = asked.path.starts_with("/token");
                Some(if token { Answer::new(200, r#"{"token":"x"}"#) } else { refuse("repository:x:pull", &realm) })
            }),
            "denied",
        ),
        (
            "401 at the token server, too",
            Box::new(|asked, _, _| Some(refuse("x", &format!("http://{}/token", asked.header("host"))))),
            "denied",
        ),
        ("a realm that is no URL", Box::new(|_, _, _| Some(refuse("x", "file:///etc/passwd"))), "no secure URL"),
        (
            "a challenge that is none",
            Box::new(|_, _, _| Some(Answer::new(401, "").with("WWW-Authenticate", "Bearer realm=\"x"))),
            "denied",
        ),
        (
            "redirects without an end",
            Box::new(|asked, _, _| {
                let next = HITS.fetch_add(1, Ordering::SeqCst);
                Some(Answer::new(307, "").with("Location", format!("http://{}/v2/{next}", asked.header("host"))))
            }),
            "redirects",
        ),
        (
            "a redirect to nowhere",
            Box::new(|_, _, _| Some(Answer::new(307, "").with("Location", "ftp://x/"))),
            "redirects to no URL",
        ),
        ("no JSON", manifest("<html>"), "manifest cannot be read"),
        ("schema 1", manifest(r#"{"schemaVersion":1,"name":"x"}"#), "schema version 1"),
        (
            "schema 1 by its media type",
            Box::new(|asked, _, _| {
                asked.path.contains("/manifests/").then(|| {
                    Answer::new(200, "{}")
                        .with("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
                })
            }),
            "schema 1",
        ),
        ("neither", manifest(r#"{"schemaVersion":2}"#), "neither an image manifest nor an index"),
        (
            "an artifact",
            manifest(
                r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#,
            ),
            "another artifact",
        ),
        (
            "an unknown layer",
            manifest(
                r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[{"mediaType":"text/plain","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
            ),
            "media type text/plain",
        ),
        (
            "a config of 10 MB",
            manifest(
                r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":10000000},"layers":[]}"#,
            ),
            "its config has 10000000 bytes",
        ),
        (
            "an index of other platforms",
            manifest(
                r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"platform":{"os":"plan9","architecture":"mips"}}]}"#,
            ),
            "only for plan9/mips",
        ),
        (
            "an index of what nobody knows",
            manifest(
                r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
            ),
            "only for unknown\n",
        ),
        (
            "an index of many platforms, which draw on the terminal",
            Box::new(|asked, _, _| {
                let one = |number: usize| {
                    format!(
                        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"platform":{{"os":"\u001b[31mos{number:02}","architecture":"x"}}}}"#
                    )
                };
                let all = (0..20).map(one).collect::<Vec<_>>().join(",");
                asked
                    .path
                    .contains("/manifests/")
                    .then(|| Answer::new(200, format!(r#"{{"schemaVersion":2,"manifests":[{all}]}}"#)))
            }),
            "[31mos07/x, …\n",
        ),
        (
            "tags that draw on the terminal",
            Box::new(|asked, _, _| {
                asked
                    .path
                    .contains("/tags/list")
                    .then(|| Answer::new(200, r#"{"tags":["\u001b[31mred-and-long"]}"#))
                    .or_else(|| asked.path.contains("/manifests/").then(|| Answer::new(404, "")))
            }),
            "has [31mred-and-long\n",
        ),
        (
            "an artifact that draws on the terminal",
            manifest(
                r#"{"schemaVersion":2,"config":{"mediaType":"application/\u001b[31mred","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#,
            ),
            "application/[31mred",
        ),
        (
            "storage that says no",
            Box::new(|asked, _, memory| {
                let there =
                    format!("http://127.0.0.1:{}/denied", asked.header("host").rsplit(':').next().unwrap_or(""));
                match asked.path.as_str() {
                    "/denied" => Some(Answer::new(403, "<Error>AccessDenied</Error>")),
                    _ => is_layer(asked, memory).then(|| Answer::new(307, "").with("Location", there)),
                }
            }),
            "which says no (status 403)\n",
        ),
        (
            "a server that wants an hour",
            Box::new(|_, _, _| Some(Answer::new(429, "").with("Retry-After", "3600"))),
            "asks to wait 3600 seconds",
        ),
        (
            "an index in itself",
            manifest(
                r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
            ),
            "sent a manifest with the digest",
        ),
        ("an index of nothing", manifest(r#"{"schemaVersion":2,"manifests":[]}"#), "lists no image"),
        (
            "a manifest of 5 MB",
            Box::new(|asked, _, _| asked.path.contains("/manifests/").then(|| Answer::new(200, vec![b' '; 5 << 20]))),
            "has more than 4194304 bytes",
        ),
        (
            "another manifest than its header says",
            Box::new(|asked, _, memory| {
                asked.path.contains("/manifests/").then(|| {
                    Answer::new(200, memory.manifest.clone())
                        .with("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))
                })
            }),
            "sent a manifest with the digest",
        ),
        (
            "a layer with another byte",
            layer(|memory| {
                let mut bytes = memory.layer.clone();
                bytes[600] ^= 1;
                Answer::new(200, bytes)
            }),
            "what came has the digest",
        ),
        (
            "noise of the right size",
            layer(|memory| Answer::new(200, vec![0x55; memory.layer.len()])),
            "what came has the digest",
        ),
        ("a short layer", layer(|memory| Answer::new(200, &memory.layer[1..])), "its manifest says"),
        (
            "a length that is a lie",
            layer(|memory| {
                Answer::new(200, &memory.layer[..1000]).with("Content-Length", memory.layer.len().to_string())
            }),
            "again and again",
        ),
        (
            "another part than was asked for",
            layer(|memory| Answer::new(206, memory.layer.clone()).with("Content-Range", "bytes 7-9/10")),
            "sends another part",
        ),
        ("a layer that is not there", layer(|_| Answer::new(404, "")), "not there"),
    ];
    for (name, fault, expected) in cases {
        let (run, env, server) = pull_with(Memory::new(&tar("f", 3000)), fault);
        assert_eq!(run.code, Some(1), "{name}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{name}: {}", run.stderr);
        assert!(!run.stderr.contains('\u{1b}'), "{name}: a server's words reach the terminal");
        assert_eq!(env.rbuild("images -aq").ok().stdout, "", "{name}");
        assert_eq!(std::fs::read_dir(env.store().join("layers")).unwrap().count(), 0, "{name}");
        assert!(server.asked().len() < 60, "{name}: asked {} times", server.asked().len());
        drop(server);
    }
}

#[test]
fn uploads_begin_anew_and_go_in_pieces() {
    let upload = |pieces: bool| {
        let (state, times) = (std::sync::Mutex::new((Vec::new(), Vec::<String>::new())), AtomicUsize::new(0));
        Server::start(move |asked: &Asked| {
            let path = asked.path.split('?').next().unwrap_or("");
            let mut state = state.lock().unwrap();
            match (asked.method.as_str(), path) {
                ("HEAD", path) => {
                    let there = state.1.iter().any(|digest| path.ends_with(digest));
                    Answer::new(if there { 200 } else { 404 }, "")
                }
                ("POST", _) => {
                    state.0.clear();
                    let answer = Answer::new(202, "").with("Location", "/v2/x/blobs/uploads/1?state=a");
                    if pieces { answer.with("OCI-Chunk-Min-Length", "10") } else { answer }
                }
                ("PATCH", _) => {
                    assert!(asked.header("content-range").starts_with(&format!("{}-", state.0.len())), "{asked:?}");
                    state.0.extend_from_slice(&asked.body);
                    Answer::new(202, "").with("Location", "/v2/x/blobs/uploads/1?state=b")
                }
                ("PUT", path) if path.contains("/manifests/") => Answer::new(201, ""),
                ("PUT", _) => {
                    if times.fetch_add(1, Ordering::SeqCst) == 0 {
                        return Answer::new(500, "not now");
                    }
                    state.0.extend_from_slice(&asked.body);
                    let found = crate::support::oci::sha256(&state.0);
                    let right = asked.path.ends_with(&format!("digest={}", found.replace(':', "%3A")));
                    state.1.push(found);
                    Answer::new(if right { 201 } else { 400 }, "")
                }
                _ => Answer::new(404, ""),
            }
        })
    };
    for pieces in [false, true] {
        let server = upload(pieces);
        let env = with_image(&format!("{}/x:1", server.host()));
        env.rbuild(&format!("push {}/x:1", server.host())).ok();
        let patches = server.asked().iter().filter(|asked| asked.method == "PATCH").count();
        assert_eq!(patches > 0, pieces);
        drop(server);
    }
    let full = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        _ => Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
    });
    let env = with_image(&format!("{}/x:1", full.host()));
    env.rbuild(&format!("push {}/x:1", full.host())).ends(1).says("DENIED: read only");
    assert!(kept(&env) > 0);
}

#[test]
fn a_mount_that_is_not_allowed_keeps_nobody_from_pushing() {
    let taker = Taker::default();
    let server = Server::start(move |asked| {
        let host = asked.header("host").to_owned();
        match asked.path.strip_prefix("/token?") {
            // Some token servers refuse all where one of several scopes is not allowed.
            Some(query) if query.matches("scope=").count() > 1 => Answer::new(403, "{}"),
            Some(_) => Answer::new(200, r#"{"token":"t0k3n"}"#),
            None if asked.header("authorization") != "Bearer t0k3n" => {
                refuse("repository:x:pull", &format!("http://{host}/token"))
            }
            // Blobs are kept by repository.
            None if asked.method == "HEAD" => Answer::new(404, ""),
            None => taker.answer(asked),
        }
    });
    let (first, second) = (format!("{}/a:1", server.host()), format!("{}/b:1", server.host()));
    let env = with_image(&first);
    env.rbuild(&format!("push {first}")).ok();
    env.rbuild(&format!("tag {first} {second}")).ok();
    env.rbuild(&format!("push {second}")).ok().says(": Pushed");
    assert!(server.asked().iter().any(|asked| asked.path.matches("scope=").count() > 1), "no mount was tried");
}

#[test]
fn uploads_outlive_their_token_and_their_session() {
    // What is answered once instead of what a good registry would, and where.
    for (pieces, method, number, status) in [
        (true, "PATCH", 2, 401),
        (true, "PUT", 1, 401),
        (false, "PUT", 1, 401),
        (false, "PUT", 1, 404),
        (true, "PATCH", 2, 404),
        (true, "PATCH", 2, 416),
    ] {
        let (taker, state) = (Taker::default(), Mutex::new((0, 1, Vec::new())));
        let server = Server::start(move |asked| {
            let host = asked.header("host").to_owned();
            let (times, token, bytes) = &mut *state.lock().unwrap();
            let challenge = || refuse("repository:x:pull,push", &format!("http://{host}/token"));
            if asked.path.starts_with("/token?") {
                return Answer::new(200, format!(r#"{{"token":"t{token}"}}"#));
            }
            if asked.header("authorization") != format!("Bearer t{token}") {
                return challenge();
            }
            if asked.method == method && asked.path.contains("/blobs/") {
                *times += 1;
                if *times == number && status == 401 {
                    *token += 1;
                    return challenge();
                }
                if *times == number {
                    return Answer::new(status, r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}"#);
                }
            }
            match asked.method.as_str() {
                "POST" if pieces => {
                    bytes.clear();
                    taker.answer(asked).with("OCI-Chunk-Min-Length", (20 << 20).to_string())
                }
                "PATCH" => {
                    bytes.extend_from_slice(&asked.body);
                    Answer::new(202, "").with("Location", asked.path.clone())
                }
                "PUT" if pieces && asked.path.contains("/blobs/") => {
                    let body = if bytes.is_empty() { asked.body.clone() } else { std::mem::take(bytes) };
                    taker.answer(&Asked { body, ..asked.clone() })
                }
                _ => taker.answer(asked),
            }
        });
        let name = format!("{}/x:1", server.host());
        let env = TestEnv::new();
        env.write("base.tar", tar("f", 21 << 20));
        env.run(["import", "base.tar", &name]).ok();
        let shown = format!("{pieces} {method} {number} {status}");
        let run = env.rbuild(&format!("push {name}"));
        assert_eq!(run.code, Some(0), "{shown}: {}", run.shown());
        TestEnv::new().rbuild(&format!("pull {name}")).ok();
        drop(server);
    }
    // A no that stays one is said soon, and in the registry's words.
    for (status, most) in [(401, 2), (404, 5)] {
        let taker = Taker::default();
        let server = Server::start(move |asked| match asked.method.as_str() {
            "PUT" if status == 401 => {
                refuse("repository:x:pull,push", &format!("http://{}/token", asked.header("host")))
            }
            "PUT" => Answer::new(404, r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}"#),
            _ if asked.path.starts_with("/token") => Answer::new(200, r#"{"token":"t"}"#),
            _ => taker.answer(asked),
        });
        let name = format!("{}/x:1", server.host());
        let run = with_image(&name).rbuild(&format!("push {name}")).ends(1);
        let run = run.says(if status == 401 { "denied" } else { "gone" });
        run.says_nothing_of("no repository");
        let puts = server.asked().iter().filter(|asked| asked.method == "PUT").count();
        assert_eq!(puts, most, "{status}");
        drop(server);
    }
}

/// The same image as an OCI layout.
fn layout_of(memory: &Memory) -> Vec<u8> {
    let mut tar = RootTar::new();
    let digest = crate::support::oci::sha256(&memory.manifest);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{digest}","size":{}}}]}}"#,
        memory.manifest_type,
        memory.manifest.len()
    );
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.file("index.json", 0o644, index.as_bytes());
    let blobs = memory.blobs.iter().map(|(digest, bytes)| (digest.as_str(), bytes));
    for (digest, bytes) in blobs.chain([(digest.as_str(), &memory.manifest)]) {
        tar.file(&format!("blobs/{}", digest.replace(':', "/")), 0o644, bytes);
    }
    tar.finish()
}

#[test]
fn a_link_to_nowhere_is_refused_each_time() {
    let mut layer = RootTar::new();
    layer.file("f", 0o644, b"f");
    layer.push(EntryType::Link, "link", 0o644, (0, 0), Some("nowhere/file"), b"");
    let memory = Memory::new(&layer.finish());
    let layout = layout_of(&memory);
    let server = Server::start(move |asked| memory.answer(asked));
    let (env, name) = (TestEnv::new(), format!("{}/x:1", server.host()));
    env.write("ctx/Dockerfile", format!("FROM {name}\nCOPY Dockerfile /\n"));
    for _ in 0..2 {
        env.rbuild(&format!("pull {name}")).ends(1).says("/link is a hard link to /nowhere/file, which is no file");
        assert_eq!(env.rbuild("images -aq").ok().stdout, "");
    }
    env.write("layout.tar", layout);
    env.rbuild("load -i layout.tar").ends(1).says("which is no file of the image");
    for args in ["-t y", "-o type=tar,dest=out.tar", "-o out"] {
        env.build(args).ends(1).says("which is no file of the image");
    }
}

#[test]
fn secrets_stay_with_the_server_that_they_are_for() {
    let memory = Memory::new(&tar("f", 3000));
    let (layer, digest) = (memory.layer.clone(), crate::support::oci::sha256(&memory.layer));
    let storage = Server::start(move |_| Answer::new(200, layer.clone()));
    let there = storage.host().replace("localhost", "127.0.0.1");
    let server = Server::start(move |asked| {
        if asked.header("authorization") != "Basic YW5uOnNlY3JldA==" {
            return Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"tests\"");
        }
        if asked.path.ends_with(&digest) {
            return Answer::new(307, "").with("Location", format!("http://{there}/blob?signature=s3cr3t"));
        }
        memory.answer(asked)
    });
    let env = TestEnv::new();
    env.write(
        "home/.docker/config.json",
        format!(r#"{{"auths":{{"{}":{{"auth":"YW5uOnNlY3JldA=="}}}}}}"#, server.host()),
    );
    env.rbuild(&format!("pull {}/x:1", server.host())).ok();
    let asked = storage.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_empty()), "{asked:?}");
    drop((server, storage));
}

#[test]
fn mirrors_are_asked_first() {
    let memory = Memory::new(&tar("f", 3000));
    let own = memory.clone();
    let registry = Server::start(move |asked| own.answer(asked));
    let mirror = Server::start(move |asked| {
        // It has the manifest, and fails with blobs.
        if asked.path.contains("/blobs/") { Answer::new(404, "") } else { memory.answer(asked) }
    });
    let env = TestEnv::new();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host(),
        mirror.host()
    );
    env.write("home/.config/rbuild/certs.d/some.example/hosts.toml", hosts);
    env.rbuild("pull some.example/x:1").ok();
    let paths = |server: &Server| server.asked().iter().map(|asked| asked.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&mirror)[0], "/v2/x/manifests/1?ns=some.example");
    assert!(paths(&registry).iter().all(|path| path.contains("/blobs/")), "{:?}", paths(&registry));
    drop((registry, mirror));
}
