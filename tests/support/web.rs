//! A web server of the tests' own, on a port of this machine that was free.
//!
//! In: files by path, and what goes wrong with them. Out: HTTP/1.1, a connection per request, and a list of what was asked.
//! What always holds: its threads end with it, but for those that were told to be silent.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A file of the server.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub body: Vec<u8>,
    /// Another status than 200; with a body if there is one.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// `ETag`, by which 304 is answered and parts are given.
    pub etag: Option<String>,
    /// The first so many requests break off after half of the bytes that are left.
    pub cuts: usize,
    /// The first so many requests are answered by 503.
    pub failures: usize,
    /// HEAD is refused.
    pub no_head: bool,
    /// An answer comes only when the server ends.
    pub silent: bool,
    /// `Authorization` must be this.
    pub authorization: Option<String>,
}

impl Page {
    /// A plain file.
    pub fn of(body: impl AsRef<[u8]>) -> Self {
        Self { body: body.as_ref().to_vec(), ..Self::default() }
    }

    /// The same with a mark of its version.
    pub fn etag(self, etag: &str) -> Self {
        Self { etag: Some(format!("\"{etag}\"")), ..self }
    }

    /// The same with one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[derive(Default)]
struct State {
    pages: Mutex<BTreeMap<String, Page>>,
    /// Method and path of each request, with its range.
    asked: Mutex<Vec<String>>,
    /// Where git repositories are, below `/git/`, and the `Authorization` that they want.
    git: Mutex<Option<(PathBuf, Option<String>)>>,
    ends: AtomicBool,
}

/// The server.
pub struct Web {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Begins to listen.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port of this machine");
        let address = listener.local_addr().expect("it has an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if shared.ends.load(Ordering::SeqCst) {
                    break;
                }
                let state = Arc::clone(&shared);
                // A client that goes away is the client's business.
                std::thread::spawn(move || connection.and_then(|connection| state.answer(connection)));
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Puts a file there.
    pub fn put(&self, path: &str, page: Page) {
        self.state.pages.lock().expect("no request panics").insert(path.to_owned(), page);
    }

    /// Gives the repositories in `folder` below `/git/`, to those who send this header.
    pub fn serve_git(&self, folder: PathBuf, authorization: Option<&str>) {
        *self.state.git.lock().expect("no request panics") = Some((folder, authorization.map(str::to_owned)));
    }

    /// What was asked since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().expect("no request panics"))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(self.address));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    fn read(from: &mut BufReader<TcpStream>) -> std::io::Result<Self> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => return Ok(Self { method, path, headers }),
            };
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl State {
    fn answer(&self, connection: TcpStream) -> std::io::Result<()> {
        let mut out = connection.try_clone()?;
        let mut from = BufReader::new(connection);
        let asked = Asked::read(&mut from)?;
        let range = asked.header("range").map(|range| format!(" {range}")).unwrap_or_default();
        self.asked.lock().expect("no request panics").push(format!("{} {}{range}", asked.method, asked.path));
        if asked.path.starts_with("/git/") {
            return self.git(&asked, &mut from, &mut out);
        }
        let path = asked.path.split('?').next().unwrap_or_default().to_owned();
        let mut page = match self.pages.lock().expect("no request panics").get_mut(&path) {
            None => Page { status: 404, ..Page::default() },
            Some(page) => {
                let now = page.clone();
                if asked.method == "GET" {
                    page.cuts = page.cuts.saturating_sub(1);
                    page.failures = page.failures.saturating_sub(1);
                }
                now
            }
        };
        while page.silent && !self.ends.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let is_head = asked.method == "HEAD";
        let mut status = if page.status == 0 { 200 } else { page.status };
        let mut start = 0;
        if page.authorization.is_some() && page.authorization.as_deref() != asked.header("authorization") {
            (status, page.body) = (401, Vec::new());
        } else if page.failures > 0 && !is_head {
            (status, page.body) = (503, Vec::new());
        } else if is_head && page.no_head {
            (status, page.body) = (405, Vec::new());
        } else if page.etag.is_some() && page.etag.as_deref() == asked.header("if-none-match") {
            (status, page.body) = (304, Vec::new());
        } else if let Some(range) = asked.header("range")
            && page.etag.as_deref() == asked.header("if-range")
        {
            start = range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("an open range");
            status = 206;
            let all = page.body.len();
            page.headers.push(("Content-Range".to_owned(), format!("bytes {start}-{}/{all}", all - 1)));
        }
        let body = &page.body[start.min(page.body.len())..];
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        let etag = page.etag.iter().map(|etag| ("ETag", etag.as_str()));
        for (name, value) in page.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(etag) {
            head += &format!("{name}: {value}\r\n");
        }
        if status != 304 {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        out.write_all(format!("{head}\r\n").as_bytes())?;
        if !is_head {
            out.write_all(if page.cuts > 0 { &body[..body.len() / 2] } else { body })?;
        }
        out.shutdown(std::net::Shutdown::Both)
    }

    /// Lets git itself answer.
    fn git(&self, asked: &Asked, from: &mut impl Read, out: &mut TcpStream) -> std::io::Result<()> {
        let (folder, authorization) = self.git.lock().expect("no request panics").clone().expect("there is git");
        if authorization.is_some() && authorization.as_deref() != asked.header("authorization") {
            return out.write_all(
                b"HTTP/1.1 401 X\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let mut command = Command::new("git");
        command.arg("http-backend").env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1");
        command.env("PATH_INFO", path.trim_start_matches("/git")).env("QUERY_STRING", query);
        command.env("REQUEST_METHOD", &asked.method).env("GIT_CONFIG_COUNT", "1");
        command.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
        for (name, header) in [
            ("CONTENT_TYPE", "content-type"),
            ("CONTENT_LENGTH", "content-length"),
            ("HTTP_CONTENT_ENCODING", "content-encoding"),
            ("GIT_PROTOCOL", "git-protocol"),
        ] {
            if let Some(value) = asked.header(header) {
                command.env(name, value);
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut stdin = child.stdin.take().expect("it has a pipe");
        std::io::copy(&mut from.take(length), &mut stdin)?;
        drop(stdin);
        let said = child.wait_with_output()?.stdout;
        let text = String::from_utf8_lossy(&said[..said.len().min(200)]).into_owned();
        let status = text.strip_prefix("Status: ").and_then(|rest| rest.get(..3)).unwrap_or("200");
        out.write_all(format!("HTTP/1.1 {status} X\r\nConnection: close\r\n").as_bytes())?;
        out.write_all(&said)
    }
}
