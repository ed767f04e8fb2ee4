//! One server of a registry: a request until it is answered.
//!
//! In: a [`Call`]. Out: a response of any status but 401, 429 and those of 5xx that pass. What always holds: a challenge is met
//! once per call, so no server can keep us in a loop; a pause is as long as the server asks for, within a limit; the
//! `Authorization` goes to the server that asked for it and not along redirects to others.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::RegistryError;
use super::challenge::{self, Challenge};
use super::credentials::{Credentials, basic};
use super::hosts::Host;
use crate::http::{Body, Cause, Http, HttpError, HttpOptions, Request, Response, join, same_host, shown};
use crate::sys::cancel::Cancel;

/// How often a request is sent in all when it fails in a way that may pass.
pub(super) const ATTEMPTS: u32 = 5;

/// The first pause; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause that a server may ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Bytes of an answer that holds no image: tokens, errors, lists.
const SMALL: usize = 1 << 20;

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
    http: Http,
    cancel: Option<Cancel>,
    /// It was found to speak plain HTTP, where that is allowed.
    plain: AtomicBool,
    /// By scopes.
    authorizations: Mutex<HashMap<String, String>>,
}

impl Endpoint {
    pub(super) fn new(
        host: Host,
        of: &str,
        credentials: Option<Credentials>,
        http: &HttpOptions,
        cancel: Option<Cancel>,
    ) -> Self {
        let mut options = http.clone();
        options.more_roots.extend(host.roots.iter().cloned());
        options.identity.clone_from(&host.identity);
        options.verify = !host.skip_verify;
        Self {
            host,
            of: of.to_owned(),
            credentials,
            http: Http::new(options),
            cancel,
            plain: AtomicBool::new(false),
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
        let mut met = false;
        let mut attempt = 1;
        loop {
            self.check_canceled()?;
            match self.once(call, None) {
                Err(error) if self.falls_back(&error) => {}
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    self.pause(attempt, None)?;
                    attempt += 1;
                }
                Err(error) => return Err(self.no_answer(call.what, error)),
                Ok(response) if response.status == 401 && !met && self.meet(&response, call)? => met = true,
                Ok(response) if may_pass(response.status) && attempt < ATTEMPTS => {
                    self.pause(attempt, retry_after(&response))?;
                    attempt += 1;
                }
                Ok(response) => return Ok(response),
            }
        }
    }

    /// Sends it once, with what is known of authorization; redirects are followed where nothing is streamed.
    pub(super) fn once(&self, call: &Call<'_>, stream: Option<(&mut dyn Read, u64)>) -> Result<Response, HttpError> {
        let first = self.url(call.path);
        if let Some((reader, size)) = stream {
            let headers = self.headers(call, &first);
            return self.http.send(Request {
                method: call.method,
                url: &first,
                headers,
                body: Body::Sized(reader, size),
            });
        }
        let mut url = first.clone();
        for _ in 0..=REDIRECTS {
            let (headers, body) = (self.headers(call, &url), call.body.map_or(Body::Empty, Body::Bytes));
            let response = self.http.send(Request { method: call.method, url: &url, headers, body })?;
            let next = match (response.status, response.header("location")) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => join(&url, location),
                _ => return Ok(response),
            };
            let no_url = || Cause::Protocol("it redirects to no URL".to_owned());
            url = next.ok_or_else(|| HttpError { url: url.clone(), cause: no_url() })?;
        }
        Err(HttpError { url: first, cause: Cause::Redirects })
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

    /// Whether plain HTTP is to be tried after that error.
    fn falls_back(&self, error: &HttpError) -> bool {
        let no_tls = matches!(&error.cause, Cause::Tls(why) if why.contains("plain HTTP")) || error.is_passing();
        // Not again: what is asked from then on begins with http.
        let falls = self.host.plain_allowed
            && no_tls
            && error.url.starts_with("https:")
            && same_host(&format!("{}/", self.host.base), &error.url);
        if falls {
            self.plain.store(true, Ordering::Relaxed);
        }
        falls
    }

    pub(super) fn no_answer(&self, what: &str, error: HttpError) -> RegistryError {
        let insecure_helps = matches!(error.cause, Cause::Tls(_)) && !self.host.skip_verify && self.owns(&error.url);
        RegistryError::Http { what: what.to_owned(), error, insecure_helps }
    }

    pub(super) fn check_canceled(&self) -> Result<(), RegistryError> {
        if self.cancel.as_ref().is_some_and(Cancel::is_canceled) { Err(RegistryError::Stopped) } else { Ok(()) }
    }

    /// Waits before the next attempt.
    pub(super) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Result<(), RegistryError> {
        let usual = PAUSE * 2_u32.pow(attempt.min(10) - 1);
        let end = Instant::now() + asked.unwrap_or(usual).min(LONGEST);
        loop {
            self.check_canceled()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
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
            match self.http.send(request) {
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
            return Err(self.refused(call.what, response));
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
        let response =
            self.call(&Call { method: "GET", path: "", headers: Vec::new(), body: None, scopes: &[], what })?;
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

    /// A no, in the registry's words.
    pub(super) fn refused(&self, what: &str, response: Response) -> RegistryError {
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
        let status = response.status;
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
        let words: String = words.chars().filter(|c| !c.is_control()).take(500).collect();
        let words = if words.is_empty() { format!("status {status}") } else { words };
        let name = &self.host.name;
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
