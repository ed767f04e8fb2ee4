//! Files of web servers, fetched into the store.
//!
//! In: a URL, and perhaps the digest that it must have. Out: a blob in the store. What always holds: what is here and
//! still what the server has is not fetched again; a connection that is cut is taken up where it broke off, if the server can
//! tell that it has the same file still; a body with another digest than was asked for never becomes a blob; whoever
//! wishes to stop need not wait for a silent server.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cache::urls::KnownUrl;
use crate::digest::Digest;
use crate::git::{Git, GitError, basic_authorization};
use crate::http::{self, Http, HttpError, Response};
use crate::plan::remote::GitSource;
use crate::store::blobs::BlobWriter;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};
use crate::sys::cancel::Cancel;

/// A larger file is none that somebody wants in an image: 64 GiB.
const LIMIT: u64 = 64 << 30;

/// How often a request is made before it is given up, and how long the first wait is; each further one is twice as long.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Bytes that are handed from thread to thread at a time, and how many such pieces may wait.
const PIECE: usize = 1 << 18;
const WAITING: usize = 4;

/// `Last-Modified` has whole seconds: it tells two versions apart only when it was old already as the file came.
const OLD_ENOUGH: i64 = 60;

/// Gives the value of a secret of the build by its id; `None` where there is none.
pub type Secrets<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, String> + Send + Sync + 'a;

/// Why a file is not here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Another answer than the file.
    #[error("{url}: the server answers {status}{hint}")]
    Status {
        /// The URL, without a password.
        url: String,
        /// The status.
        status: u16,
        /// What it means.
        hint: String,
    },
    /// Another file.
    #[error("{url}: expected the checksum {expected}, found {found}")]
    Checksum {
        /// The URL, without a password.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More than fits.
    #[error("{url} has more than {} GiB", LIMIT >> 30)]
    TooLarge {
        /// The URL, without a password.
        url: String,
    },
    /// The network is not to be used.
    #[error("{0} must be fetched, and --offline forbids it")]
    Offline(String),
    /// A secret that is no header.
    #[error("the secret {id} cannot be used: {why}")]
    Secret {
        /// Its id.
        id: String,
        /// Why.
        why: String,
    },
    /// Git failed.
    #[error(transparent)]
    Git(GitError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread or a file of this machine fails.
    #[error("cannot fetch {url}: {source}")]
    Io {
        /// The URL, without a password.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The user wished it.
    #[error("stopped")]
    Canceled,
}

impl From<GitError> for FetchError {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Canceled => Self::Canceled,
            other => Self::Git(other),
        }
    }
}

/// A file that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its digest, by which the store has it.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// When the server says that it was made, in seconds since 1970; 0 where it does not.
    pub mtime: i64,
}

/// What fetches.
pub struct Fetch<'a> {
    /// The network.
    pub http: Arc<Http>,
    /// Where files go.
    pub store: &'a Store,
    /// The claim on it.
    pub lease: &'a Lease,
    /// Who may be asked for passwords.
    pub secrets: &'a Secrets<'a>,
    /// The caller's variables, for git.
    pub env: &'a BTreeMap<String, OsString>,
    /// No network.
    pub offline: bool,
    /// Tells when to stop.
    pub cancel: &'a Cancel,
}

/// The start of an answer, and its body as it comes.
struct Answer {
    status: u16,
    headers: BTreeMap<&'static str, String>,
    body: Receiver<Result<Vec<u8>, HttpError>>,
    thread: JoinHandle<()>,
}

/// The headers of an answer that somebody reads.
const READ: [&str; 4] = ["etag", "last-modified", "content-range", "retry-after"];

/// A body that has not come whole.
struct Partial<'a> {
    writer: BlobWriter<'a>,
    length: u64,
    /// What says that the rest is of the same file.
    mark: String,
}

/// How one try ended.
enum Tried<'a> {
    /// The file is here.
    Done(Fetched),
    /// Once more, from where it broke off if there is something, after this long at least.
    Again(FetchError, Option<Partial<'a>>, Duration),
}

impl Fetch<'_> {
    /// What `url` gives as far as it can be told without fetching it: by asking the server whether what came last time
    /// still holds. `None` where it must be fetched.
    pub fn unchanged(&self, url: &str) -> Result<Option<Fetched>, FetchError> {
        let Some(known) = self.store.known_url(url)? else { return Ok(None) };
        if self.offline || (known.etag.is_none() && known.modified.is_none()) {
            return Ok(None);
        }
        let answer = self.ask("HEAD", url, conditions(&known))?;
        let same = match answer.status {
            304 => true,
            // Some servers have no conditions for HEAD, but tell what they have.
            200 => known.etag.is_some() && answer.headers.get("etag") == known.etag.as_ref(),
            _ => false,
        };
        answer.end();
        Ok(same.then_some(Fetched { digest: known.digest, size: known.size, mtime: known.mtime }))
    }

    /// Brings the file that `url` leads to into the store, if it is not there. With a checksum that is there already
    /// nobody is asked.
    pub fn fetch(&self, url: &str, checksum: Option<Digest>) -> Result<Fetched, FetchError> {
        let known = match self.store.known_url(url)? {
            Some(known) if self.lease.uses_blob(self.store, &known.digest)? => Some(known),
            _ => None,
        };
        if let Some(known) = known.as_ref().filter(|known| Some(known.digest) == checksum) {
            return Ok(Fetched { digest: known.digest, size: known.size, mtime: known.mtime });
        }
        if self.offline {
            return Err(FetchError::Offline(http::shown(url)));
        }
        let known = if checksum.is_some() { None } else { known };
        let (mut partial, mut wait) = (None, FIRST_WAIT);
        for remaining in (0..TRIES).rev() {
            match self.try_once(url, checksum, known.as_ref(), partial.take()) {
                Ok(Tried::Done(fetched)) => return Ok(fetched),
                Ok(Tried::Again(error, ..)) if remaining == 0 => return Err(error),
                Ok(Tried::Again(_, rest, least)) => {
                    partial = rest;
                    self.sleep(wait.max(least))?;
                }
                Err(FetchError::Http(error)) if remaining > 0 && error.is_passing() => self.sleep(wait)?,
                Err(error) => return Err(error),
            }
            wait *= 2;
        }
        Err(FetchError::Canceled)
    }

    fn try_once<'s>(
        &'s self,
        url: &str,
        checksum: Option<Digest>,
        known: Option<&KnownUrl>,
        partial: Option<Partial<'s>>,
    ) -> Result<Tried<'s>, FetchError> {
        let headers = match &partial {
            Some(partial) => {
                vec![("range", format!("bytes={}-", partial.length)), ("if-range", partial.mark.clone())]
            }
            None => known.map(conditions).unwrap_or_default(),
        };
        let answer = self.ask("GET", url, headers)?;
        let (mut writer, mut length) = match (answer.status, partial) {
            (206, Some(partial)) if answer.begins_at(partial.length) => (partial.writer, partial.length),
            // The whole again: another version, or a server that has no parts.
            (200, _) => (self.store.blob_writer(self.lease)?, 0),
            (304, _) => {
                let Some(known) = known else { return Err(status(url, 304)) };
                return Ok(Tried::Done(Fetched { digest: known.digest, size: known.size, mtime: known.mtime }));
            }
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let least = answer.headers.get("retry-after").and_then(|text| text.parse().ok()).unwrap_or(0_u64);
                return Ok(Tried::Again(status(url, answer.status), None, Duration::from_secs(least.min(30))));
            }
            (206 | 416, _) => {
                return Ok(Tried::Again(status(url, answer.status), None, Duration::ZERO));
            }
            (other, _) => return Err(status(url, other)),
        };
        let Answer { headers, body, thread, .. } = answer;
        loop {
            match self.receive(&body)? {
                None => break,
                Some(Ok(piece)) => {
                    length += piece.len() as u64;
                    if length > LIMIT {
                        return Err(FetchError::TooLarge { url: http::shown(url) });
                    }
                    writer.write_all(&piece).map_err(StoreError::io("write a blob in", self.lease.folder()))?;
                }
                Some(Err(error)) => {
                    // A weak mark does not say that the bytes are the same.
                    let strong = headers.get("etag").filter(|etag| !etag.starts_with("W/"));
                    let mark = strong.or_else(|| modified(&headers)).cloned();
                    let partial = mark.filter(|_| length > 0).map(|mark| Partial { writer, length, mark });
                    return Ok(Tried::Again(error.into(), partial, Duration::ZERO));
                }
            }
        }
        // It has nothing left to do.
        drop(thread.join());
        let digest = match checksum {
            None => writer.commit()?.0,
            Some(expected) => match writer.commit_if((expected, length))? {
                Ok(()) => expected,
                Err((found, _)) => return Err(FetchError::Checksum { url: http::shown(url), expected, found }),
            },
        };
        let mtime = headers.get("last-modified").and_then(|text| time(text)).unwrap_or(0);
        self.store.remember_url(
            self.lease,
            &KnownUrl {
                url: url.to_owned(),
                digest,
                size: length,
                mtime,
                etag: headers.get("etag").cloned(),
                modified: modified(&headers).cloned(),
            },
        )?;
        Ok(Tried::Done(Fetched { digest, size: length, mtime }))
    }

    /// Sends a request from a thread of its own, which can be left behind with a silent server.
    fn ask(&self, method: &'static str, url: &str, headers: Vec<(&'static str, String)>) -> Result<Answer, FetchError> {
        let secret: Vec<(&'static str, String)> =
            self.authorization(url)?.map(|value| ("authorization", value)).into_iter().collect();
        let (http, asked) = (Arc::clone(&self.http), url.to_owned());
        let (head_to, head) = sync_channel(1);
        let (body_to, body) = sync_channel(WAITING);
        let work = move || {
            let response = match http.follow(method, &asked, &headers, &secret) {
                Ok(response) => response,
                // Whoever asked may be gone.
                Err(error) => return drop(head_to.send(Err(error))),
            };
            let read = |name: &'static str| Some((name, response.header(name)?.to_owned()));
            let headers: BTreeMap<_, _> = READ.into_iter().filter_map(read).collect();
            let (status, at) = (response.status, response.url.clone());
            if head_to.send(Ok((status, headers))).is_err() || !matches!(status, 200 | 206) || method == "HEAD" {
                return;
            }
            drop(head_to);
            pass_on(response, &at, &body_to);
        };
        let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(work);
        let thread = thread.map_err(|source| FetchError::Io { url: http::shown(url), source })?;
        match self.receive(&head)? {
            Some(Ok((status, headers))) => Ok(Answer { status, headers, body, thread }),
            Some(Err(error)) => {
                drop(thread.join());
                Err(error.into())
            }
            // The thread ends without a word only by a panic.
            None => Err(FetchError::Canceled),
        }
    }

    /// The next message; `None` when there is none any more.
    fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>, FetchError> {
        loop {
            if self.cancel.is_canceled() {
                return Err(FetchError::Canceled);
            }
            match from.recv_timeout(Duration::from_millis(50)) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn sleep(&self, time: Duration) -> Result<(), FetchError> {
        let end = std::time::Instant::now() + time;
        while !self.cancel.is_canceled() {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Err(FetchError::Canceled)
    }

    /// The `Authorization` header that the secrets of the build have for the host of `url`.
    fn authorization(&self, url: &str) -> Result<Option<String>, FetchError> {
        let authority = url.split('/').nth(2).unwrap_or_default();
        let authority = authority.split(['?', '#']).next().unwrap_or_default();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        for name in [authority, host] {
            if let Some(value) = self.secret(&format!("HTTP_AUTH_HEADER_{name}"))? {
                return Ok(Some(value));
            }
            if let Some(token) = self.secret(&format!("HTTP_AUTH_TOKEN_{name}"))? {
                return Ok(Some(format!("Bearer {token}")));
            }
        }
        Ok(None)
    }

    /// Git, with what the secrets of the build have for the host of `source`.
    pub fn git(&self, source: &GitSource) -> Result<Git<'_>, FetchError> {
        let mut authorization = None;
        // Over ssh its keys say who asks.
        if source.repository.starts_with("http") {
            for of in [format!(".{}", source.host_and_port()), format!(".{}", source.host()), String::new()] {
                authorization = match self.secret(&format!("GIT_AUTH_HEADER{of}"))? {
                    Some(header) => Some(header),
                    None => self.secret(&format!("GIT_AUTH_TOKEN{of}"))?.map(|token| basic_authorization(&token)),
                };
                if authorization.is_some() {
                    break;
                }
            }
        }
        Ok(Git { env: self.env, scratch: self.lease.folder(), cancel: self.cancel, authorization })
    }

    /// A secret as text without the blanks around it.
    fn secret(&self, id: &str) -> Result<Option<String>, FetchError> {
        let fail = |why: String| FetchError::Secret { id: id.to_owned(), why };
        let Some(bytes) = (self.secrets)(id).map_err(fail)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|_| fail("it is no text".to_owned()))?;
        let text = text.trim();
        if text.chars().any(char::is_control) {
            return Err(fail("it has more than one line".to_owned()));
        }
        Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
    }
}

impl Answer {
    /// Whether the body begins with that byte of the file.
    fn begins_at(&self, byte: u64) -> bool {
        self.headers.get("content-range").is_some_and(|range| range.starts_with(&format!("bytes {byte}-")))
    }

    /// Waits for the thread, which has nothing more to say.
    fn end(self) {
        drop(self.body);
        drop(self.thread.join());
    }
}

/// Sends the body of `response` piece by piece.
fn pass_on(response: Response, url: &str, to: &std::sync::mpsc::SyncSender<Result<Vec<u8>, HttpError>>) {
    let mut reader = response.into_reader();
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut reader).take(PIECE as u64).read_to_end(&mut piece);
        let is_end = piece.is_empty();
        if !is_end && to.send(Ok(piece)).is_err() {
            return;
        }
        match read {
            Ok(_) if is_end => return,
            Ok(_) => {}
            Err(error) => {
                let error = HttpError { url: url.to_owned(), cause: http::Cause::Body(error) };
                return drop(to.send(Err(error)));
            }
        }
    }
}

/// The headers that ask whether the server has another version than `known`.
fn conditions(known: &KnownUrl) -> Vec<(&'static str, String)> {
    let etag = known.etag.clone().map(|etag| ("if-none-match", etag));
    let modified = known.modified.clone().map(|modified| ("if-modified-since", modified));
    // Where there is an ETag, it alone counts.
    etag.or(modified).into_iter().collect()
}

/// `Last-Modified`, where it can tell versions apart.
fn modified<'h>(headers: &'h BTreeMap<&'static str, String>) -> Option<&'h String> {
    let text = headers.get("last-modified")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    (time(text)? <= now - OLD_ENOUGH).then_some(text)
}

/// A date of HTTP, in seconds since 1970.
fn time(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_second())
}

fn status(url: &str, status: u16) -> FetchError {
    let host = url.split('/').nth(2).unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let hint = match status {
        404 => " (there is no such file)".to_owned(),
        410 => " (the file is gone)".to_owned(),
        401 | 403 => format!(
            " (it wants a password or a token: give one with --secret id=HTTP_AUTH_TOKEN_{host},… or \
             HTTP_AUTH_HEADER_{host})"
        ),
        407 => " (the proxy wants a password)".to_owned(),
        500..=599 => " (an error of the server)".to_owned(),
        _ => String::new(),
    };
    FetchError::Status { url: http::shown(url), status, hint }
}
