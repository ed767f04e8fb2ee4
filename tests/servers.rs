//! How the servers of registries are reached when they are not all well: by TLS, by mirrors, in spite of what breaks.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::registry::{Fault, add_image, certificates, pull_with, tar};
use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};
use crate::support::oci::sha256;
use crate::support::registry::{Answer, Asked, Memory, Registry, Server};

const NEEDS: &[Need] = &[Need::Program("docker-registry"), Need::Program("openssl")];

/// A registry with a certificate that nobody trusts.
fn untrusted(env: &TestEnv) -> Registry {
    certificates(env);
    let files = ["server.crt", "server.key"].map(|name| (name, std::fs::read(env.path(name)).unwrap()));
    let tls = "  tls:\n    certificate: FOLDER/server.crt\n    key: FOLDER/server.key\n";
    Registry::start_with(&files, tls, "")
}

#[test]
fn only_what_was_allowed_is_insecure() {
    if !needs("only_what_was_allowed_is_insecure", NEEDS) {
        return;
    }
    let env = TestEnv::new();
    let registry = untrusted(&env);
    let host = registry.host();
    // The same server, and another registry by its name.
    let other = host.replace("localhost", "127.0.0.1");
    add_image(&env, &format!("{host}/base:1"));
    env.rbuild(&format!("push --insecure {host}/base:1")).ok();
    env.write("ctx/Dockerfile", format!("FROM {host}/base:1\nLABEL a=b\n"));
    let output = |more: &str| format!("--pull -o type=registry,name={other}/app:1{more}");
    for (args, by) in [
        (output(",registry.insecure=true"), "UnknownIssuer"),
        (format!("{} --cache-from type=registry,ref={other}/c,registry.insecure=true", output("")), "UnknownIssuer"),
    ] {
        env.build(&args)
            .ends(1)
            .says(by)
            .says("registry.insecure=true")
            .says("hosts.toml")
            .says_nothing_of("--insecure");
    }
    env.write("ctx/Dockerfile", format!("FROM {other}/base:1\nLABEL a=b\n"));
    env.build(&output(",registry.insecure=true")).ok();
    env.build(&format!("--pull -t {other}/app:2 -o type=image,push=true,registry.insecure=true")).ok();
}

/// Passes connections on to a server; `act` says of each, by its number, after how many bytes from there it ends.
struct Between {
    port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Between {
    fn start(to: &str, act: impl Fn(usize) -> Option<usize> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), to.replace("localhost", "127.0.0.1"));
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for (number, client) in listener.incoming().enumerate() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { continue };
                let (mut up, mut down) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let most = act(number);
                threads.push(std::thread::spawn(move || {
                    drop(std::io::copy(&mut up.0, &mut up.1));
                    drop(up.1.shutdown(Shutdown::Both));
                }));
                threads.push(std::thread::spawn(move || {
                    let mut piece = [0; 1024];
                    let mut left = most.unwrap_or(usize::MAX);
                    while left > 0
                        && let Ok(read) = down.0.read(&mut piece)
                        && read > 0
                        && down.1.write_all(&piece[..read.min(left)]).is_ok()
                    {
                        left -= read.min(left);
                    }
                    drop(down.1.shutdown(Shutdown::Both));
                    drop(down.0.shutdown(Shutdown::Both));
                }));
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Self { port, ended, thread: Some(thread) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// What breaks is no reason to speak in the clear with a server that spoke TLS.
#[test]
fn nothing_goes_in_the_clear_after_an_answer_over_tls() {
    if !needs("nothing_goes_in_the_clear_after_an_answer_over_tls", NEEDS) {
        return;
    }
    let env = TestEnv::new();
    let registry = untrusted(&env);
    add_image(&env, &format!("{}/base:1", registry.host()));
    env.rbuild(&format!("push --insecure {}/base:1", registry.host())).ok();
    // The first connection ends in the middle of the layer, the next ones before a word.
    let between = Between::start(&registry.host(), |number| match number {
        0 => Some(30_000),
        1 | 2 => Some(0),
        _ => None,
    });
    let fresh = TestEnv::new();
    fresh.rbuild(&format!("pull --insecure localhost:{}/base:1", between.port)).ok();
    drop(between);
}

type MirrorFault = fn(&Asked, &Memory) -> Option<Answer>;

/// An environment in which a mirror that answers by `fault` comes before the registry itself; and both.
fn with_mirror(memory: &Memory, fault: MirrorFault) -> (TestEnv, Server, Server) {
    let (own, its) = (memory.clone(), memory.clone());
    let registry = Server::start(move |asked| own.answer(asked));
    let mirror = Server::start(move |asked| fault(asked, &its).unwrap_or_else(|| its.answer(asked)));
    let env = TestEnv::new();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host(),
        mirror.host()
    );
    env.write("home/.config/rbuild/certs.d/some.example/hosts.toml", hosts);
    (env, registry, mirror)
}

#[test]
fn what_a_mirror_does_wrong_the_registry_does_right() {
    let is_blob = |asked: &Asked| asked.path.contains("/blobs/");
    let memory = Memory::new(&tar("f", 300_000));
    let cases: [(&str, MirrorFault); 9] = [
        ("always 500", |_, _| Some(Answer::new(500, ""))),
        ("too many requests", |_, _| Some(Answer::new(429, "").with("Retry-After", "30"))),
        ("a page instead of a manifest", |asked, _| {
            asked.path.contains("/manifests/").then(|| Answer::new(200, "<html>Welcome</html>"))
        }),
        ("another manifest", |asked, memory| {
            let right = sha256(&memory.manifest);
            asked.path.contains("/manifests/").then(|| {
                let mut bytes = memory.manifest.clone();
                bytes.push(b' ');
                Answer::new(200, bytes).with("Docker-Content-Digest", right)
            })
        }),
        ("blobs that break off", |asked, memory| {
            asked.path.contains("/blobs/").then(|| Answer { cut: Some(40), ..memory.answer(asked) })
        }),
        ("blobs with other bytes", |asked, memory| {
            asked.path.contains("/blobs/").then(|| {
                let mut answer = memory.answer(asked);
                let last = answer.body.len() - 1;
                answer.body[last] ^= 1;
                answer
            })
        }),
        ("noise", |asked, memory| {
            asked.path.contains("/blobs/").then(|| {
                let mut answer = memory.answer(asked);
                answer.body.fill(0x55);
                answer
            })
        }),
        ("a page instead of a blob", |asked, _| {
            asked.path.contains("/blobs/").then(|| Answer::new(200, "<html>Welcome</html>"))
        }),
        ("nothing", |_, _| Some(Answer { cut: Some(0), ..Answer::new(200, "x") })),
    ];
    for (name, fault) in cases {
        let (env, registry, mirror) = with_mirror(&memory, fault);
        let began = Instant::now();
        let run = env.rbuild("pull some.example/x:1");
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        assert!(began.elapsed().as_secs() < 10, "{name}: {:?}", began.elapsed());
        env.rbuild("inspect --verify some.example/x:1").ok();
        let asked = mirror.asked();
        if name == "always 500" || name == "too many requests" || name == "nothing" {
            assert!((1..=2).contains(&asked.len()), "{name}: it is given up, {asked:?}");
        } else {
            assert!(!asked.is_empty() && asked.len() < 10, "{name}: {asked:?}");
        }
        assert!(registry.asked().iter().any(is_blob) || name.contains("manifest"), "{name}");
        drop((registry, mirror));
    }
}

#[test]
fn waits_are_told() {
    let fault: Fault = Box::new(|_, times, _| (times == 0).then(|| Answer::new(429, "").with("Retry-After", "3")));
    let (run, _env, server) = pull_with(Memory::new(&tar("f", 10)), fault);
    run.ok().says(&format!("waiting 3 s, as {} asks", server.host()));
    drop(server);
}

/// What fails is said at once: the other layers on their way are not waited for.
#[test]
fn a_layer_that_does_not_come_ends_the_others() {
    let mut large = crate::support::base::RootTar::new();
    large.file("large", 0o644, &vec![0; 40 << 20]);
    let (large, other) = (large.finish(), tar("f", 10));
    let digests = [&large, &other].map(|layer| sha256(layer));
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        digests[0], digests[1]
    );
    let sizes = [large.len(), other.len()];
    let listed = digests.clone();
    let memory = Memory::of(&large, config.as_bytes(), move |_, config| {
        let layer = |number: usize| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}"#,
                listed[number], sizes[number]
            )
        };
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{},{}]}}"#,
            config.0,
            config.1,
            layer(0),
            layer(1)
        )
    });
    // The large one comes a piece at a time; the other one is not there.
    let pieces = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&pieces);
    let first = digests[0].clone();
    let fault: Fault = Box::new(move |asked, _, memory| {
        asked.path.ends_with(&first).then(|| {
            *counted.lock().unwrap() += 1;
            Answer { cut: Some(1_200_000), ..memory.answer(asked) }
        })
    });
    let (run, _env, server) = pull_with(memory, fault);
    run.ends(1).says("not there");
    assert!(*pieces.lock().unwrap() < 15, "{} of 35 pieces", pieces.lock().unwrap());
    drop(server);
}

/// A build does not wait for a silent server when it is told to stop.
#[test]
fn a_silent_server_holds_nobody() {
    let memory = Memory::new(&tar("f", 10));
    let asked = Arc::new(AtomicBool::new(false));
    let reached = Arc::clone(&asked);
    let server = Server::start(move |request| {
        reached.store(true, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_secs(8));
        memory.answer(request)
    });
    let env = TestEnv::new();
    env.write("ctx/Dockerfile", format!("FROM {}/x:1\nLABEL a=b\n", server.host()));
    let mut child = env.command(["build", "ctx"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !asked.load(Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let began = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    drop(server);
}
