//! One server of a registry: a request until it is answered.
//!
//! In: a [`Call`]. Out: a response of any status but 401, 429 and those of 5xx that pass. What always holds: a challenge is met
//! once per call, so no server can keep us in a loop; a pause is as long as the server asks for, within a limit; the
//! `Authorization` goes to the server that asked for it and not along redirects to others.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, basic};
use super::hosts::Host;
use super::{RegistryError, RegistryOptions, Say, printable};
use crate::http::{Body, Cause, Http, HttpError, Request, Response, join, same_host, shown};
use crate::sys::cancel::Cancel;

/// How often a request is sent in all when it fails in a way that may pass.
pub(super) const ATTEMPTS: u32 = 5;

/// The first pause; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause that a server may ask for, and the longest of which nothing is said.
const LONGEST: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(2);

/// How often a request is sent to a server after which another one can be asked, and how long its connection may take.
pub(super) const ATTEMPTS_BEFORE_NEXT: u32 = 2;
const CONNECT_BEFORE_NEXT: Duration = Duration::from_secs(5);

/// How long nobody looks whether to stop.
const HEEDED: Duration = Duration::from_millis(50);

/// Bytes of an answer that holds no image: tokens, errors, lists.
pub(super) const SMALL: usize = 1 << 20;

const REDIRECTS: usize = 10;

/// What is asked of a registry.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    /// A path below `/v2/`, or a whole URL.
    pub(super) path: &'a str,
    pub(super) headers: Vec<(&'a str, String)>,
    /// Sent again with a further attempt.
    pub(super) body: Option<&'a [u8]>,
    /// `repository:library/nginx:pull`, one per repository.
    pub(super) scopes: &'a [String],
    /// What it is for, after "cannot".
    pub(super) what: &'a str,
}

/// A server.
pub(crate) struct Endpoint {
    pub(super) host: Host,
    /// The registry's name where this is a mirror of it.
    of: String,
    credentials: Option<Credentials>,
    http: Arc<Http>,
    cancel: Option<Cancel>,
    /// How users allow what is not secure.
    allow: &'static str,
    /// It was found to speak plain HTTP, where that is allowed.
    plain: AtomicBool,
    /// It answered over TLS: whatever breaks from then on, nothing goes to it in the clear.
    secure: AtomicBool,
    /// Another server can be asked, and this one did not answer.
    given_up: AtomicBool,
    say: Option<Say>,
    /// By scopes.
    authorizations: Mutex<HashMap<String, String>>,
}

impl Endpoint {
    pub(super) fn new(
        host: Host,
        of: &str,
        credentials: Option<Credentials>,
        options: &RegistryOptions,
        cancel: Option<Cancel>,
        followed: bool,
    ) -> Self {
        let mut http = options.http.clone();
        http.more_roots.extend(host.roots.iter().cloned());
        http.identity.clone_from(&host.identity);
        http.verify = !host.skip_verify;
        if followed {
            http.connect = CONNECT_BEFORE_NEXT;
        }
        Self {
            host,
            of: of.to_owned(),
            credentials,
            http: Arc::new(Http::new(http)),
            cancel,
            allow: options.insecure.by,
            plain: AtomicBool::new(false),
            secure: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            say: options.say.clone(),
            authorizations: Mutex::default(),
        }
    }

    fn url(&self, path: &str) -> String {
        if path.contains("://") {
            return path.to_owned();
        }
        let base = &self.host.base;
        let url = match base.strip_prefix("https://") {
            Some(rest) if self.plain.load(Ordering::Relaxed) => format!("http://{rest}/{path}"),
            _ => format!("{base}/{path}"),
        };
        // A mirror of several registries must be told which one is meant.
        if self.host.mirror && !path.contains('?') { format!("{url}?ns={}", self.of) } else { url }
    }

    /// Whether this server is the one that a URL leads to.
    fn owns(&self, url: &str) -> bool {
        same_host(&self.url(""), url)
    }

    /// Sends it until it is answered for good.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        self.call_within(call, ATTEMPTS, None)
    }

    /// The same of a server after which another one is asked if it is `followed`; with the body of a small answer, which may
    /// break off as well.
    pub(super) fn call_of(
        &self,
        call: &Call<'_>,
        followed: bool,
        limit: Option<usize>,
    ) -> Result<Response, RegistryError> {
        let answer = self.call_within(call, if followed { ATTEMPTS_BEFORE_NEXT } else { ATTEMPTS }, limit);
        let failed = match &answer {
            Ok(response) => may_pass(response.status),
            Err(error) => matches!(error, RegistryError::Http { .. } | RegistryError::Busy { .. }),
        };
        if failed && followed {
            self.give_up();
        }
        answer
    }

    /// Takes note that it is of no use for now.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether it is of no use while another one can be asked.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The same, sent so often at most.
    pub(super) fn call_within(
        &self,
        call: &Call<'_>,
        attempts: u32,
        limit: Option<usize>,
    ) -> Result<Response, RegistryError> {
        let mut met = false;
        let mut attempt = 1;
        // Where another server follows nobody waits for this one.
        let impatient = attempts < ATTEMPTS;
        loop {
            self.check_canceled()?;
            let answer = self.follow(call, limit);
            if answer.is_err() {
                self.check_canceled()?;
            }
            match answer {
                Err(error) if self.falls_back(&error) => {}
                Err(error) if impatient && matches!(error.cause, Cause::Silent(_)) => {
                    return Err(self.no_answer(call.what, error));
                }
                Err(error) if error.is_passing() && attempt < attempts => {
                    self.pause(attempt, None)?;
                    attempt += 1;
                }
                Err(error) => return Err(self.no_answer(call.what, error)),
                Ok(response) if response.status == 401 && !met && self.meet(&response, call)? => met = true,
                Ok(response) if impatient && retry_after(&response) > Some(SHORT) => return Ok(response),
                Ok(response) if may_pass(response.status) && attempt < attempts => {
                    self.pause(attempt, retry_after(&response))?;
                    attempt += 1;
                }
                Ok(response) => return Ok(response),
            }
        }
    }

    /// Sends a body as it is read, once.
    pub(super) fn once(&self, call: &Call<'_>, stream: (&mut dyn Read, u64)) -> Result<Response, HttpError> {
        let url = self.url(call.path);
        let (headers, (reader, size)) = (self.headers(call, &url), stream);
        let body = Body::Sized(reader, size);
        let response = self.http.send(Request { method: call.method, url: &url, headers, body })?;
        self.note(&response);
        Ok(response)
    }

    /// Sends it once, with what is known of authorization, and on along redirects.
    fn follow(&self, call: &Call<'_>, limit: Option<usize>) -> Result<Response, HttpError> {
        let first = self.url(call.path);
        let mut url = first.clone();
        for _ in 0..=REDIRECTS {
            let (headers, body) = (self.headers(call, &url), call.body.map_or(Body::Empty, Body::Bytes));
            let response = self.send(Request { method: call.method, url: &url, headers, body }, limit)?;
            self.note(&response);
            let next = match (response.status, response.header("location")) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => join(&url, location),
                _ => return Ok(response),
            };
            let no_url = || Cause::Protocol("it redirects to no URL".to_owned());
            url = next.ok_or_else(|| HttpError { url: url.clone(), cause: no_url() })?;
        }
        Err(HttpError { url: first, cause: Cause::Redirects })
    }

    /// Sends a request once; the answer with its body, if it is one of at most `limit` bytes. Where somebody may wish to
    /// stop, a thread of its own waits for the server: it is joined, or left behind with a silent server.
    fn send(&self, request: Request<'_>, limit: Option<usize>) -> Result<Response, HttpError> {
        let answer = move |http: &Http, request: Request<'_>| {
            let response = http.send(request)?;
            match limit {
                Some(limit) if (200..300).contains(&response.status) => response.with_body(limit),
                _ => Ok(response),
            }
        };
        let Some(cancel) = &self.cancel else { return answer(&self.http, request) };
        let body = match request.body {
            Body::Empty => None,
            Body::Bytes(bytes) => Some(bytes.to_vec()),
            Body::Sized(..) => return answer(&self.http, request),
        };
        let (method, url) = (request.method.to_owned(), request.url.to_owned());
        let headers: Vec<(String, String)> =
            request.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let (to, from) = sync_channel(1);
        let http = Arc::clone(&self.http);
        let work = move || {
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            let body = body.as_deref().map_or(Body::Empty, Body::Bytes);
            // Whoever asked may be gone.
            drop(to.send(answer(&http, Request { method: &method, url: &url, headers, body })));
        };
        let failed = |error| HttpError { url: request.url.to_owned(), cause: Cause::Cut(error) };
        let thread = std::thread::Builder::new().name("registry".to_owned()).spawn(work).map_err(failed)?;
        loop {
            match from.recv_timeout(HEEDED) {
                Ok(answer) => {
                    drop(thread.join());
                    return answer;
                }
                Err(RecvTimeoutError::Timeout) if !cancel.is_canceled() => {}
                Err(_) => return Err(failed(io::ErrorKind::Interrupted.into())),
            }
        }
    }

    /// Takes note of how the server answers.
    fn note(&self, response: &Response) {
        if response.url.starts_with("https:") && self.owns(&response.url) {
            self.secure.store(true, Ordering::Relaxed);
        }
    }

    /// The headers of a call to that URL: what is secret goes to this server alone.
    fn headers<'c>(&'c self, call: &Call<'c>, url: &str) -> Vec<(&'c str, String)> {
        let mut headers = call.headers.clone();
        if self.owns(url) {
            headers.extend(self.host.headers.iter().map(|(name, value)| (name.as_str(), value.clone())));
            let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
            headers.extend(known.get(&call.scopes.join(" ")).map(|value| ("authorization", value.clone())));
        }
        headers
    }

    /// Whether plain HTTP is to be tried after that error: it says that the server speaks no TLS. One that might be anything
    /// does not say so.
    fn falls_back(&self, error: &HttpError) -> bool {
        let no_tls = match &error.cause {
            Cause::Tls(why) => why.contains("plain HTTP"),
            // Of a port that was named, plain HTTP would find the same.
            Cause::Connect(error) => {
                error.kind() == io::ErrorKind::ConnectionRefused && !crate::http::names_port(&self.host.base)
            }
            _ => false,
        };
        // Not again: what is asked from then on begins with http.
        let falls = self.host.plain_allowed
            && no_tls
            && !self.secure.load(Ordering::Relaxed)
            && error.url.starts_with("https:")
            && same_host(&format!("{}/", self.host.base), &error.url);
        if falls {
            self.plain.store(true, Ordering::Relaxed);
        }
        falls
    }

    pub(super) fn no_answer(&self, what: &str, error: HttpError) -> RegistryError {
        let help = match &error.cause {
            Cause::Tls(why) if self.owns(&error.url) => match &self.host.identity {
                // The server does not trust us, not we the server.
                None if crate::http::wants_identity(why) => format!(
                    "the server wants a certificate of yours: put client.cert and client.key into certs.d/{}",
                    self.of
                ),
                Some(_) if crate::http::wants_identity(why) => "it does not take your certificate".to_owned(),
                _ if !self.host.skip_verify => format!("if that is meant so, allow it by {}", self.allow),
                _ => String::new(),
            },
            _ => String::new(),
        };
        RegistryError::Http { what: what.to_owned(), error, help }
    }

    pub(super) fn check_canceled(&self) -> Result<(), RegistryError> {
        if self.cancel.as_ref().is_some_and(Cancel::is_canceled) { Err(RegistryError::Stopped) } else { Ok(()) }
    }

    /// Waits before the next attempt: as long as the server asks for, unless that is too long.
    pub(super) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Result<(), RegistryError> {
        let usual = PAUSE * 2_u32.pow(attempt.min(10) - 1);
        let wait = asked.unwrap_or(usual);
        if wait > LONGEST {
            return Err(RegistryError::Busy { host: self.host.name.clone(), wait });
        }
        if let Some(say) = self.say.as_ref().filter(|_| wait > SHORT) {
            say.line(&format!("waiting {} s, as {} asks", wait.as_secs(), self.host.name));
        }
        let end = Instant::now() + wait;
        loop {
            self.check_canceled()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(HEEDED));
        }
    }

    /// Gets what the next attempt shows instead of what was not enough; `false` where another server asks for it.
    pub(super) fn meet(&self, response: &Response, call: &Call<'_>) -> Result<bool, RegistryError> {
        if !self.owns(&response.url) {
            return Ok(false);
        }
        let challenges: Vec<Challenge> =
            response.headers("www-authenticate").filter_map(challenge::parse).flatten().collect();
        let wanted = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let authorization = match (wanted("bearer"), wanted("basic"), &self.credentials) {
            (Some(_), _, Some(Credentials::RegistryToken(token))) => Some(format!("Bearer {token}")),
            (Some(challenge), ..) => Some(format!("Bearer {}", self.token(challenge, call)?)),
            (None, Some(_), Some(Credentials::Password { user, password })) => Some(basic(user, password)),
            _ => None,
        };
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        let key = call.scopes.join(" ");
        match authorization {
            Some(authorization) => known.insert(key, authorization),
            None => known.remove(&key),
        };
        Ok(true)
    }

    /// A token from the server that a challenge names.
    fn token(&self, challenge: &Challenge, call: &Call<'_>) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let fail = |why: String| RegistryError::content(call.what, why);
        let realm = challenge.get("realm").unwrap_or_default();
        let secure = realm.starts_with("https://");
        let plain = realm.starts_with("http://") && self.url("").starts_with("http://");
        if !secure && !plain {
            return Err(fail(format!(
                "{} sends to \"{}\" for a token, which is no secure URL",
                self.host.name,
                shown(realm)
            )));
        }
        let mut scopes: Vec<&str> = call.scopes.iter().map(String::as_str).collect();
        if scopes.is_empty() {
            scopes.extend(challenge.get("scope"));
        }
        let mut fields: Vec<(&str, &str)> =
            challenge.get("service").map(|service| ("service", service)).into_iter().collect();
        fields.extend(scopes.into_iter().map(|scope| ("scope", scope)));
        let (url, form, secret) = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("client_id", "rbuild"), ("refresh_token", token)]);
                (realm.to_owned(), Some(encode(&fields)), None)
            }
            credentials => {
                let secret = match credentials {
                    Some(Credentials::Password { user, password }) => {
                        fields.push(("account", user));
                        Some(basic(user, password))
                    }
                    _ => None,
                };
                let separator = if realm.contains('?') { '&' } else { '?' };
                (format!("{realm}{separator}{}", encode(&fields)), None, secret)
            }
        };
        let mut attempt = 1;
        let response = loop {
            let mut request = Request::new(if form.is_some() { "POST" } else { "GET" }, &url);
            if let Some(form) = &form {
                request = request.header("content-type", "application/x-www-form-urlencoded");
                request.body = Body::Bytes(form.as_bytes());
            }
            if let Some(secret) = &secret {
                request = request.header("authorization", secret.clone());
            }
            let answer = self.send(request, Some(SMALL));
            if answer.is_err() {
                self.check_canceled()?;
            }
            match answer {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => self.pause(attempt, None)?,
                Err(error) => return Err(self.no_answer(call.what, error)),
                Ok(response) if may_pass(response.status) && attempt < ATTEMPTS => {
                    self.pause(attempt, retry_after(&response))?;
                }
                Ok(response) => break response,
            }
            attempt += 1;
        };
        if response.status != 200 {
            return Err(self.refused_by(call.what, response, true));
        }
        let bytes = response.into_bytes(SMALL).map_err(|error| self.no_answer(call.what, error))?;
        let answer: Option<Answer> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match answer {
            Some(Answer { token, .. }) if !token.is_empty() => Ok(token),
            Some(Answer { access_token, .. }) if !access_token.is_empty() => Ok(access_token),
            _ => Err(fail(format!("the answer of {} holds no token", shown(realm)))),
        }
    }

    /// Says hello as the user.
    pub(super) fn check(&self, what: &str) -> Result<(), RegistryError> {
        let call = Call { method: "GET", path: "", headers: Vec::new(), body: None, scopes: &[], what };
        let response = self.call(&call)?;
        match response.status {
            200..=299 => Ok(()),
            _ => Err(self.refused(what, response)),
        }
    }

    /// The whole of a small answer.
    pub(super) fn small(&self, what: &str, response: Response) -> Result<Vec<u8>, RegistryError> {
        let bytes = response.into_bytes(SMALL).map_err(|error| self.no_answer(what, error))?;
        bytes.ok_or_else(|| RegistryError::content(what, format!("the answer has more than {SMALL} bytes")))
    }

    /// A no, in the registry's words, or those of the server that it sent on to.
    pub(super) fn refused(&self, what: &str, response: Response) -> RegistryError {
        let own = self.owns(&response.url);
        self.refused_by(what, response, own)
    }

    fn refused_by(&self, what: &str, response: Response, own: bool) -> RegistryError {
        #[derive(Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Vec<Entry>,
            #[serde(default)]
            details: String,
        }
        #[derive(Deserialize)]
        struct Entry {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let (status, url) = (response.status, shown(&response.url));
        let said: Option<Errors> =
            response.into_bytes(SMALL).ok().flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let words = said.map_or_else(String::new, |said| {
            let one = |entry: &Entry| match (entry.code.as_str(), entry.message.as_str()) {
                ("", message) => message.to_owned(),
                (code, "") => code.to_owned(),
                (code, message) => format!("{code}: {message}"),
            };
            let all = said.errors.iter().map(one).collect::<Vec<_>>().join(", ");
            if all.is_empty() { said.details } else { all }
        });
        // What a server says is shown, but not let loose on the terminal.
        let words: String = printable(&words).chars().take(500).collect();
        let words = if words.is_empty() { format!("status {status}") } else { words };
        let name = &self.host.name;
        if !own {
            // No login here helps there.
            let host = url.split('/').nth(2).unwrap_or_default();
            let why = format!("{name} sends to {host}, which says no ({words})");
            return RegistryError::Refused { what: what.to_owned(), status, why, help: String::new() };
        }
        let login = if name == "docker.io" { "rbuild login".to_owned() } else { format!("rbuild login {name}") };
        let (told, help) = match (status, &self.credentials) {
            (401 | 403, None) => {
                ("denied", format!("if it is there, it needs a login: `{login}`; else check the name"))
            }
            (401 | 403, Some(Credentials::Password { user, .. })) => (
                "denied",
                format!("the user {user} is not allowed that, or the password is no longer right: `{login}`"),
            ),
            (401 | 403, Some(_)) => ("denied", format!("the login may have expired: `{login}`")),
            (404, _) => ("not there", String::new()),
            (429, None) => ("too many requests", format!("try again later, or `{login}` to be allowed more")),
            (429, Some(_)) => ("too many requests", "try again later".to_owned()),
            (300..=399, _) => ("redirected", String::new()),
            (500.., _) => ("the registry failed", "try again later".to_owned()),
            _ => ("refused", String::new()),
        };
        RegistryError::Refused { what: what.to_owned(), status, why: format!("{name} says {told} ({words})"), help }
    }
}

/// Whether a status may be another one a moment later.
pub(super) fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// What the server asks for: seconds. (A date is not looked at: clocks differ.)
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    response.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

/// The fields of a query or form.
pub(super) fn encode(fields: &[(&str, &str)]) -> String {
    let word = |text: &str| {
        let one = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        text.bytes().map(one).collect::<String>()
    };
    fields.iter().map(|(name, value)| format!("{}={}", word(name), word(value))).collect::<Vec<_>>().join("&")
}
