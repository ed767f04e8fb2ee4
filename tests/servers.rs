//! How the servers of registries are reached when they are not all well: by TLS, by mirrors, in spite of what breaks.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::registry::{add_image, certificates};
use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};
use crate::support::registry::Registry;

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
