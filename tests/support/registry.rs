//! Registries for tests: Debian's docker-registry on a free port of loopback, and a server of the tests' own that does what
//! a test tells it to, also what no good registry does.
//!
//! In: a configuration, or a function from requests to answers. Out: an address. What always holds: both end, with all that
//! they wrote, when their value is dropped.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::machine;
use super::oci::sha256;

/// Debian's docker-registry, running.
pub struct Registry {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    /// Starts one; `http` and `more` are lines of its configuration, below `http:` and at the top.
    pub fn start(http: &str, more: &str) -> Self {
        Self::start_with(&[], http, more)
    }

    /// The same with files in its folder, which `FOLDER` in the configuration names.
    pub fn start_with(files: &[(&str, Vec<u8>)], http: &str, more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("rb-registry-").tempdir().expect("a temporary folder").keep();
        for (name, bytes) in files {
            std::fs::write(folder.join(name), bytes).expect("a file in a new folder");
        }
        // Free a moment ago: another one may take it, and then the registry says so and the next is tried.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("loopback").port();
            let text = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: FOLDER/data}}\n\
                 http:\n  addr: 127.0.0.1:{port}\n  secret: tests\n{http}{more}"
            );
            let text = text.replace("FOLDER", &folder.display().to_string());
            std::fs::write(folder.join("config.yml"), text).expect("a file in a new folder");
            let mut registry = Self { folder: folder.clone(), port, child: None };
            if registry.run() {
                return registry;
            }
            registry.stop();
            std::mem::forget(registry); // its folder serves the next one
        }
        panic!("docker-registry does not start: {}", std::fs::read_to_string(folder.join("log")).unwrap_or_default())
    }

    /// Starts the program; whether it listens.
    pub fn run(&mut self) -> bool {
        let program = machine::find_program("docker-registry").expect("the test asked for it before");
        let log = std::fs::File::create(self.folder.join("log")).expect("a file in its folder");
        let child = Command::new(program)
            .arg("serve")
            .arg(self.folder.join("config.yml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        let child = self.child.insert(child);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end && child.try_wait().expect("a child can be asked").is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Stops the program; what it keeps stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        machine::remove_tree(&self.folder);
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Answer {
    /// A status and a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    /// One more header; it replaces what the server would say of the body's length.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server that answers by a function.
pub struct Server {
    port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Starts it.
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("a bound socket").port();
        let (ended, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (end, log) = (Arc::clone(&ended), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if end.load(Ordering::SeqCst) {
                        break;
                    }
                    let (Ok(stream), answer, log) = (stream, &answer, &log) else { continue };
                    // Whoever breaks off breaks off: that is what is tested.
                    scope.spawn(move || serve(&stream, answer, log).ok());
                }
            });
        });
        Self { port, ended, thread: Some(thread), asked }
    }

    /// `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// All that was asked so far: method and path.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics in it").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // It waits for a connection: this one.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(stream: &TcpStream, answer: impl Fn(&Asked) -> Answer, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream);
    if reader.fill_buf()?.first() == Some(&22) {
        // TLS is answered as Go's servers do.
        let mut stream = stream;
        return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n");
    }
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked = Asked { method, path, headers, body };
    let answer = answer(&asked);
    let head_only = asked.method == "HEAD";
    log.lock().expect("no test panics in it").push(asked);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    if !head_only {
        let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..end])?;
    }
    stream.flush()
}

/// A registry in memory with one image, `x:1`: what a well-behaved one answers.
#[derive(Debug, Clone)]
pub struct Memory {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub manifest_type: String,
    pub layer: Vec<u8>,
}

impl Memory {
    /// With an image of this layer, an uncompressed tar.
    pub fn new(layer: &[u8]) -> Self {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            sha256(layer)
        );
        Self::of(layer, config.as_bytes(), |layer, config| {
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
                config.0, config.1, layer.0, layer.1
            )
        })
    }

    /// With these blobs and a manifest made of their digests and sizes.
    pub fn of(layer: &[u8], config: &[u8], manifest: impl Fn((String, usize), (String, usize)) -> String) -> Self {
        let manifest = manifest((sha256(layer), layer.len()), (sha256(config), config.len()));
        let blobs = [layer, config].map(|bytes| (sha256(bytes), bytes.to_vec()));
        Self {
            blobs: blobs.into(),
            manifest: manifest.into_bytes(),
            manifest_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            layer: layer.to_vec(),
        }
    }

    /// Answers as a good registry would.
    pub fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or("");
        let digest = sha256(&self.manifest);
        if path == "/v2/" {
            return Answer::new(200, "{}");
        }
        if path.ends_with("/manifests/1") || path.ends_with(&format!("/manifests/{digest}")) {
            return Answer::new(200, self.manifest.clone())
                .with("Content-Type", self.manifest_type.clone())
                .with("Docker-Content-Digest", digest);
        }
        if let Some((_, digest)) = path.split_once("/blobs/")
            && let Some(blob) = self.blobs.get(digest)
        {
            let range =
                asked.header("range").strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
            return match range {
                Some(from) if from < blob.len() => Answer::new(206, &blob[from..])
                    .with("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
                _ => Answer::new(200, blob.clone()),
            };
        }
        Answer::new(404, r#"{"errors":[{"code":"NOT_THERE","message":"no such thing"}]}"#)
    }
}

/// A registry in memory that takes what is pushed.
#[derive(Debug, Default)]
pub struct Taker {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    /// By path: with their media type.
    manifests: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
}

impl Taker {
    /// Whether an image was given a name.
    pub fn has_names(&self) -> bool {
        !self.manifests.lock().expect("no test panics in it").is_empty()
    }

    /// Answers as a good registry would that does not mount.
    pub fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or("");
        let (mut blobs, mut manifests) =
            (self.blobs.lock().expect("no test panics in it"), self.manifests.lock().expect("no test panics in it"));
        let none = || Answer::new(404, r#"{"errors":[{"code":"NOT_THERE","message":"no such thing"}]}"#);
        match asked.method.as_str() {
            "POST" => Answer::new(202, "").with("Location", format!("{path}1?state=a")),
            "PUT" if path.contains("/manifests/") => {
                let by_digest = format!("{}/{}", path.rsplit_once('/').map_or("", |(all, _)| all), sha256(&asked.body));
                let value = (asked.header("content-type").to_owned(), asked.body.clone());
                manifests.insert(by_digest, value.clone());
                manifests.insert(path.to_owned(), value);
                Answer::new(201, "")
            }
            "PUT" => {
                let digest = sha256(&asked.body);
                let right = asked.path.ends_with(&format!("digest={}", digest.replace(':', "%3A")));
                blobs.insert(digest, asked.body.clone());
                Answer::new(if right { 201 } else { 400 }, "")
            }
            _ => match (manifests.get(path), path.split_once("/blobs/").and_then(|(_, digest)| blobs.get(digest))) {
                (Some((media_type, bytes)), _) => Answer::new(200, bytes.clone()).with("Content-Type", media_type),
                (None, Some(blob)) => Answer::new(200, blob.clone()),
                (None, None) => none(),
            },
        }
    }
}
