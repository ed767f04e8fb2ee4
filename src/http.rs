//! Requests over HTTP, one at a time, blocking.
//!
//! In: [`HttpOptions`] (proxies, certificates), then a [`Request`]. Out: a [`Response`] whose body is read as it comes,
//! or an [`HttpError`] in words. What always holds: nothing is tried twice here; a status is an answer and no error;
//! whoever sends nothing for a minute is given up; no thread is started; a body that ends before its announced
//! length is an error; headers that hold secrets are not sent on to another host.

mod proxy;

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::http::{self, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Proxy, SendBody, Timeout};

use self::proxy::Proxies;

/// How long a connection usually may take to be made, and how long the other side may be silent.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);

/// Redirects that [`Http::follow`] goes along.
const REDIRECTS: usize = 10;

/// Where systems keep the certificates that they trust; the first that is there counts.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How the network is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Proxy variables, in either spelling: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.
    pub proxies: Vec<(String, String)>,
    /// A file of trusted certificates (PEM) instead of the system's.
    pub roots: Option<PathBuf>,
    /// Files of certificates (PEM) that are trusted as well.
    pub more_roots: Vec<PathBuf>,
    /// Who this client is: certificate chain and key (PEM).
    pub identity: Option<Identity>,
    /// Whether servers must show a certificate that is trusted.
    pub verify: bool,
    /// How long a connection may take to be made.
    pub connect: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            proxies: Vec::new(),
            roots: None,
            more_roots: Vec::new(),
            identity: None,
            verify: true,
            connect: CONNECT,
        }
    }
}

/// The files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those that lead to one that the server trusts.
    pub certificate: PathBuf,
    /// Its key; `None` where the same file has it.
    pub key: Option<PathBuf>,
}

/// What is asked of a server.
pub struct Request<'a> {
    /// `GET`, `HEAD`, `PUT`…
    pub method: &'a str,
    /// `https://…` or `http://…`.
    pub url: &'a str,
    /// Names and values.
    pub headers: Vec<(&'a str, String)>,
    /// What is sent.
    pub body: Body<'a>,
}

impl<'a> Request<'a> {
    /// A request without headers of its own and without a body.
    pub fn new(method: &'a str, url: &'a str) -> Self {
        Self { method, url, headers: Vec::new(), body: Body::Empty }
    }

    /// The same with one more header.
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What is sent with a request.
pub enum Body<'a> {
    /// Nothing.
    Empty,
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many bytes of a reader.
    Sized(&'a mut dyn Read, u64),
}

/// What a server answered.
pub struct Response {
    /// The status: 200, 404…
    pub status: u16,
    /// Where it came from: after redirects another URL than was asked.
    pub url: String,
    inner: http::Response<ureq::Body>,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// All headers of that name.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.inner.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    /// How long the body will be, where the server says so.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The body, as it comes.
    pub fn into_reader(self) -> impl Read + Send + 'static {
        self.inner.into_body().into_reader()
    }

    /// The same with its body here: all of it, or so much that it is known to have more than `limit` bytes.
    pub fn with_body(self, limit: usize) -> Result<Self, HttpError> {
        let Self { status, url, inner } = self;
        let (parts, body) = inner.into_parts();
        let mut bytes = Vec::new();
        let read = body.into_reader().take(limit as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| HttpError::new(&url, Cause::Body(error)))?;
        let inner = http::Response::from_parts(parts, ureq::Body::builder().data(bytes));
        Ok(Self { status, url, inner })
    }

    /// The whole body; `None` where it has more than `limit` bytes.
    pub fn into_bytes(self, limit: usize) -> Result<Option<Vec<u8>>, HttpError> {
        let url = self.url.clone();
        let mut bytes = Vec::new();
        let read = self.into_reader().take(limit as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| HttpError::new(&url, Cause::Body(error)))?;
        Ok((bytes.len() <= limit).then_some(bytes))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", shown(url))]
pub struct HttpError {
    /// What was asked for.
    pub url: String,
    /// Why it did not come. (Its words are in those of the error: it is no source of it.)
    pub cause: Cause,
}

/// The cause of an [`HttpError`].
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The name of the host leads nowhere.
    #[error("there is no host of that name, or no network")]
    NoHost,
    /// Nobody listens there, or the way is cut.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection failed in the middle.
    #[error("the connection failed: {0}")]
    Cut(io::Error),
    /// Nothing came for too long.
    #[error("no answer within {} seconds", .0.as_secs())]
    Silent(Duration),
    /// The server's certificate is not trusted, or it speaks no TLS.
    #[error("{0}")]
    Tls(String),
    /// The proxy does not let it pass.
    #[error("the proxy {proxy}: {why}")]
    Proxy {
        /// Its URL, without a password.
        proxy: String,
        /// What it said.
        why: String,
    },
    /// What came is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    Protocol(String),
    /// The body could not be read to its end.
    #[error("the answer broke off: {0}")]
    Body(io::Error),
    /// The URL is none.
    #[error("this is no URL that can be fetched")]
    Url,
    /// Redirects without end.
    #[error("more than {REDIRECTS} redirects")]
    Redirects,
    /// A certificate or key of the user cannot be used.
    #[error("cannot use {}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl HttpError {
    fn new(url: &str, cause: Cause) -> Self {
        Self { url: url.to_owned(), cause }
    }

    /// Whether the same request may go well a moment later.
    pub fn is_passing(&self) -> bool {
        matches!(self.cause, Cause::Cut(_) | Cause::Silent(_) | Cause::Body(_))
            || matches!(&self.cause, Cause::Connect(error) if error.kind() != io::ErrorKind::ConnectionRefused)
    }
}

/// A URL as it may be shown: no password, no query (which may hold a signature).
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        None => url.to_owned(),
    }
}

/// The URL that `location` means in an answer from `base`.
pub fn join(base: &str, location: &str) -> Option<String> {
    let base: Uri = base.parse().ok()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    let location = location.split('#').next().unwrap_or(location);
    let whole = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let escaped: String = whole
        .bytes()
        .map(|byte| match byte {
            b'!'..=b'~' if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    let uri: Uri = escaped.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(escaped)
}

/// Whether two URLs lead to the same server.
pub fn same_host(one: &str, other: &str) -> bool {
    let parts = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let https = uri.scheme_str()? == "https";
        Some((https, uri.host()?.to_ascii_lowercase(), port(&uri)))
    };
    parts(one).is_some_and(|one| Some(one) == parts(other))
}

/// Whether a host (without its port) is this machine by its name.
pub fn is_loopback(host: &str) -> bool {
    proxy::is_loopback(host.trim_start_matches('[').trim_end_matches(']'))
}

/// Whether a URL names a port.
pub fn names_port(url: &str) -> bool {
    url.parse().is_ok_and(|uri: Uri| uri.port().is_some())
}

/// Whether a failure of TLS, in the words of its cause, is the server's no to who asks.
pub fn wants_identity(why: &str) -> bool {
    let alerts = ["BadCertificate", "CertificateRequired", "CertificateUnknown", "CertificateExpired", "UnknownCA"];
    why.contains("received fatal alert") && alerts.iter().any(|alert| why.contains(alert))
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}

/// A client; its connections are kept open for the next request.
pub struct Http {
    options: HttpOptions,
    proxies: Proxies,
    tls: OnceLock<TlsConfig>,
    /// By proxy, and whether TLS is spoken.
    agents: Mutex<HashMap<(Option<String>, bool), Agent>>,
}

impl Http {
    /// A client that has opened nothing yet, no file either.
    pub fn new(options: HttpOptions) -> Self {
        let proxies = Proxies::new(&options.proxies);
        Self { options, proxies, tls: OnceLock::new(), agents: Mutex::default() }
    }

    /// Sends a request once; redirects are answers.
    pub fn send(&self, request: Request<'_>) -> Result<Response, HttpError> {
        let Request { method, url, headers, body } = request;
        let fail = |cause| HttpError::new(url, cause);
        let uri: Uri = url.parse().map_err(|_| fail(Cause::Url))?;
        let (https, Some(host)) = (uri.scheme_str() == Some("https"), uri.host()) else {
            return Err(fail(Cause::Url));
        };
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(fail(Cause::Url));
        }
        let proxy = self.proxies.choose(https, host, port(&uri));
        let agent = self.agent(proxy, https).map_err(fail)?;
        let mut builder = http::Request::builder().method(method).uri(&uri);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let no_request = |error: http::Error| fail(Cause::Protocol(error.to_string()));
        let sent = match body {
            Body::Empty => agent.run(builder.body(()).map_err(no_request)?),
            Body::Bytes(bytes) => agent.run(builder.body(bytes).map_err(no_request)?),
            Body::Sized(reader, size) => {
                let builder = builder.header("content-length", size);
                agent.run(builder.body(SendBody::from_reader(reader)).map_err(no_request)?)
            }
        };
        let inner = sent.map_err(|error| fail(explained(cause(error, self.options.connect), proxy, &uri)))?;
        Ok(Response { status: inner.status().as_u16(), url: url.to_owned(), inner })
    }

    /// Fetches what a URL leads to, along redirects. `secret` headers are not sent to another server than the first.
    pub fn follow(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        secret: &[(&str, String)],
    ) -> Result<Response, HttpError> {
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut all: Vec<_> = headers.to_vec();
            if same_host(url, &at) {
                all.extend_from_slice(secret);
            }
            let response = self.send(Request { method, url: &at, headers: all, body: Body::Empty })?;
            let next = match (response.status, response.header("location")) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => join(&at, location),
                _ => return Ok(response),
            };
            at = next.ok_or_else(|| HttpError::new(&at, Cause::Protocol("it redirects to no URL".to_owned())))?;
        }
        Err(HttpError::new(url, Cause::Redirects))
    }

    fn agent(&self, proxy: Option<&str>, https: bool) -> Result<Agent, Cause> {
        let key = (proxy.map(str::to_owned), https);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let through = proxy.map(through).transpose()?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
            .allow_non_standard_methods(true)
            .input_buffer_size(1 << 16)
            .output_buffer_size(1 << 16)
            .timeout_connect(Some(self.options.connect))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .proxy(through);
        // A proxy that is reached by TLS takes the certificates as well.
        if https || proxy.is_some_and(|proxy| proxy.starts_with("https:")) {
            config = config.tls_config(self.tls()?.clone());
        }
        let agent = Agent::new_with_config(config.build());
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn tls(&self) -> Result<&TlsConfig, Cause> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        let HttpOptions { roots, more_roots, identity, verify, .. } = &self.options;
        let mut trusted = Vec::new();
        let system = match roots {
            Some(file) => Some(file.clone()),
            None => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        for file in system.iter().chain(more_roots) {
            let found = certificates(file)?;
            if found.is_empty() {
                return Err(Cause::Certificate { path: file.clone(), why: "there is no certificate in it".into() });
            }
            trusted.extend(found);
        }
        // Without a file of the system's, those that browsers trust come with the program.
        let roots = if trusted.is_empty() { RootCerts::WebPki } else { RootCerts::from(trusted) };
        let mut tls = TlsConfig::builder().root_certs(roots).disable_verification(!verify);
        if let Some(identity) = identity {
            tls = tls.client_cert(Some(client_certificate(identity)?));
        }
        Ok(self.tls.get_or_init(|| tls.build()))
    }
}

/// A proxy by its URL; `host:port` alone is HTTP.
fn through(url: &str) -> Result<Proxy, Cause> {
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let fail = |why: &str| Cause::Proxy { proxy: shown(&whole), why: why.to_owned() };
    if whole.starts_with("socks") {
        return Err(fail("not supported yet: SOCKS; give the URL of an HTTP proxy"));
    }
    Proxy::new(&whole).map_err(|_| fail("this is no URL of a proxy"))
}

fn read_pem(path: &Path) -> Result<Vec<PemItem<'static>>, Cause> {
    let fail = |why: String| Cause::Certificate { path: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    ureq::tls::parse_pem(&bytes).collect::<Result<_, _>>().map_err(|error| fail(format!("it is no PEM: {error}")))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, Cause> {
    let items = read_pem(path)?.into_iter();
    Ok(items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect())
}

fn client_certificate(identity: &Identity) -> Result<ClientCert, Cause> {
    let chain = certificates(&identity.certificate)?;
    let path = identity.key.as_ref().unwrap_or(&identity.certificate);
    let key: Option<PrivateKey<'static>> = read_pem(path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let missing = |path: &Path, what: &str| Cause::Certificate {
        path: path.to_owned(),
        why: format!("there is no {what} in it"),
    };
    if chain.is_empty() {
        return Err(missing(&identity.certificate, "certificate"));
    }
    Ok(ClientCert::new_with_certs(&chain, key.ok_or_else(|| missing(path, "private key"))?))
}

/// What the library says, in words that help.
fn cause(error: ureq::Error, connect: Duration) -> Cause {
    match error {
        ureq::Error::HostNotFound => Cause::NoHost,
        ureq::Error::Timeout(Timeout::Connect) => Cause::Silent(connect),
        ureq::Error::Timeout(_) => Cause::Silent(SILENCE),
        ureq::Error::Rustls(error) => Cause::Tls(tls_error(&error.to_string())),
        ureq::Error::Tls(why) => Cause::Tls(why.to_owned()),
        ureq::Error::BadUri(_) => Cause::Url,
        ureq::Error::Protocol(error) => Cause::Protocol(error.to_string()),
        ureq::Error::ConnectProxyFailed(why) => Cause::Proxy { proxy: String::new(), why },
        ureq::Error::Io(error) => {
            use io::ErrorKind::{
                AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
            };
            // A failed handshake arrives as one of the connection's, with its own inside.
            let inner = error.get_ref().map(ToString::to_string).unwrap_or_default();
            match error.kind() {
                io::ErrorKind::InvalidData => Cause::Tls(tls_error(&inner)),
                ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable
                | TimedOut => Cause::Connect(error),
                // The library says so of names that have no address.
                _ if inner.contains("failed to lookup address") => Cause::NoHost,
                _ if error.to_string().contains("failed to lookup address") => Cause::NoHost,
                _ => Cause::Cut(error),
            }
        }
        other => Cause::Protocol(other.to_string()),
    }
}

/// Where a proxy is between, what cannot be reached is the proxy.
fn explained(cause: Cause, proxy: Option<&str>, uri: &Uri) -> Cause {
    let Some(proxy) = proxy else { return cause };
    let why = match cause {
        Cause::Proxy { why, .. } if uri.scheme_str() == Some("http") => format!(
            "{why}; it is asked for a way through to port {}, and may give one to TLS alone: use https, or put the host \
             into NO_PROXY",
            port(uri)
        ),
        Cause::Proxy { why, .. } => why,
        Cause::Connect(_) | Cause::NoHost => cause.to_string(),
        other => return other,
    };
    let proxy = if proxy.contains("://") { shown(proxy) } else { shown(&format!("http://{proxy}")) };
    Cause::Proxy { proxy, why: why.chars().filter(|c| !c.is_control()).collect() }
}

fn tls_error(why: &str) -> String {
    let help = if why.contains("UnknownIssuer") {
        "; whoever signed it is not trusted here"
    } else if why.contains("InvalidContentType") {
        "; it seems to speak plain HTTP"
    } else {
        ""
    };
    format!("no secure connection: {why}{help}")
}

#[cfg(test)]
mod tests;
