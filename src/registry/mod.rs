//! Registries, by the distribution specification.
//!
//! In: references, what Docker's and containerd's files say of hosts and users. Out: manifests, blobs as they arrive, and
//! the other way round. What always holds: bytes are believed when their digest is right; what may pass is tried again,
//! with pauses, and what may not is said at once with the registry's own words; a secret goes to the server it is for, and
//! to no other; threads are joined before a function returns.
//!
//! `hosts` finds servers, `credentials` the user, `challenge` reads what a server asks for, `client` sends one request until
//! it is answered, `blob` reads what is long, `artifact` what is small and has a tag, `pull`, `bring` and `push` are
//! conversations.

mod artifact;
mod blob;
mod bring;
mod challenge;
mod client;
pub mod credentials;
mod hosts;
pub mod pull;
pub mod push;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use self::credentials::{CredentialFile, Credentials};

use self::client::Endpoint;
use crate::digest::DiffId;
use crate::http::{HttpError, HttpOptions};
use crate::store::StoreError;
use crate::sys::cancel::Cancel;

/// Blobs that move at once, here or there.
pub(crate) const AT_ONCE: usize = 4;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Proxies and certificates.
    pub http: HttpOptions,
    /// Docker's `config.json`.
    pub credentials: Option<PathBuf>,
    /// The PATH in which credential helpers are looked for.
    pub search: Option<OsString>,
    /// The `certs.d` folders; the first that has a host decides.
    pub hosts: Vec<PathBuf>,
    /// What need not be secure.
    pub insecure: Insecure,
    /// Nothing may be asked.
    pub offline: bool,
    /// Is told of waits that the user may wonder about.
    pub say: Option<Say>,
}

/// Who is told something in one line, from any thread.
#[derive(Clone)]
pub struct Say(Arc<dyn Fn(&str) + Send + Sync>);

impl Say {
    /// Tells it to `listener`.
    pub fn new(listener: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    fn line(&self, line: &str) {
        (self.0)(line);
    }
}

impl std::fmt::Debug for Say {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Say")
    }
}

/// Where plain HTTP and certificates that nobody trusts are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Insecure {
    /// The registries, as names have them.
    pub hosts: BTreeSet<String>,
    /// How users allow one, said to those who may have forgotten it.
    pub by: &'static str,
}

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There was no answer.
    #[error("cannot {what}: {error}{}{}", if help.is_empty() { "" } else { "; " }, help)]
    Http {
        /// What was tried.
        what: String,
        /// Why not.
        error: HttpError,
        /// What to do.
        help: String,
    },
    /// The answer was no.
    #[error("cannot {what}: {why}{}{}", if help.is_empty() { "" } else { "; " }, help)]
    Refused {
        /// What was tried.
        what: String,
        /// The status.
        status: u16,
        /// What the registry says: its code and message.
        why: String,
        /// What to do.
        help: String,
    },
    /// The server wants to be left alone, for longer than anybody waits.
    #[error("{host} takes no more requests for now: it asks to wait {} seconds; try again then", wait.as_secs())]
    Busy {
        /// The server.
        host: String,
        /// How long.
        wait: Duration,
    },
    /// What came is not what it should be.
    #[error("cannot {what}: {why}")]
    Content {
        /// What was tried.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the user's cannot be used.
    #[error("{}: {why}", path.display())]
    Setup {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A credential helper failed.
    #[error("the credential helper {name}: {why}")]
    Helper {
        /// Its program.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A layer of an image that is here never came here itself, and cannot be had now.
    #[error("the layer {layer} of {image} never came to this machine, and it cannot be had now: {why}")]
    Absent {
        /// Which one.
        layer: DiffId,
        /// Of which image.
        image: String,
        /// Who was asked for it, why it did not come, and what to do.
        why: String,
    },
    /// The network is off.
    #[error("cannot {what} with --offline")]
    Offline {
        /// What would have been asked for.
        what: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user wished it.
    #[error("stopped")]
    Stopped,
}

impl RegistryError {
    /// Whether the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    fn content(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Content { what: what.into(), why: printable(&why.into()) }
    }
}

/// What a server says, as it may be shown: not let loose on the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// All registries, as far as they were asked for.
pub struct Registries {
    options: RegistryOptions,
    cancel: Option<Cancel>,
    file: OnceLock<CredentialFile>,
    known: Mutex<HashMap<String, Arc<Registry>>>,
}

/// One registry: the servers that stand for it, in order.
pub(crate) struct Registry {
    pub(crate) host: String,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Registry {
    /// The servers for something from that number on, each with its number, and whether another one follows; those that
    /// were given up are left out as long as one does.
    fn servers(
        &self,
        from: usize,
        serves: impl Fn(&Endpoint) -> bool + Copy,
    ) -> impl Iterator<Item = (usize, &Endpoint, bool)> {
        let numbered = self.endpoints.iter().enumerate().skip(from).filter(move |(_, endpoint)| serves(endpoint));
        let with_next = numbered.map(move |(number, endpoint)| {
            let followed = self.endpoints[number + 1..].iter().any(serves);
            (number, endpoint, followed)
        });
        with_next.filter(|(_, endpoint, followed)| !followed || !endpoint.is_given_up())
    }
}

impl Registries {
    /// Opens nothing yet. Waits and transfers end when `cancel` is raised.
    pub fn new(options: RegistryOptions, cancel: Option<Cancel>) -> Self {
        Self { options, cancel, file: OnceLock::new(), known: Mutex::default() }
    }

    /// Those that are never asked: only what the store has is found.
    pub fn offline() -> Self {
        let options = RegistryOptions {
            http: HttpOptions::default(),
            credentials: None,
            search: None,
            hosts: Vec::new(),
            insecure: Insecure::default(),
            offline: true,
            say: None,
        };
        Self::new(options, None)
    }

    /// The registry of that host, for what is said in words.
    pub(crate) fn registry(&self, host: &str, what: &str) -> Result<Arc<Registry>, RegistryError> {
        if self.options.offline {
            return Err(RegistryError::Offline { what: what.to_owned() });
        }
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(Arc::clone(known));
        }
        let mut endpoints = Vec::new();
        let mut hosts = self.hosts(host)?.into_iter();
        while let Some(found) = hosts.next() {
            let find = |name: &str| -> Result<Option<Credentials>, RegistryError> {
                Ok(self.credentials()?.map(|file| file.find(name)).transpose()?.flatten())
            };
            let credentials = match find(&found.name)? {
                None if found.stands_in && found.name != host => find(host)?,
                found => found,
            };
            let followed = hosts.len() > 0;
            endpoints.push(Endpoint::new(found, host, credentials, &self.options, self.cancel.clone(), followed));
        }
        let registry = Arc::new(Registry { host: host.to_owned(), endpoints });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(known.entry(host.to_owned()).or_insert(registry)))
    }

    /// The servers that stand for that registry.
    fn hosts(&self, host: &str) -> Result<Vec<hosts::Host>, RegistryError> {
        hosts::hosts(&self.options.hosts, host, self.options.insecure.hosts.contains(host))
    }

    fn credentials(&self) -> Result<Option<&CredentialFile>, RegistryError> {
        let Some(path) = &self.options.credentials else { return Ok(None) };
        if let Some(file) = self.file.get() {
            return Ok(Some(file));
        }
        let file = CredentialFile::read(path, self.options.search.clone())?;
        Ok(Some(self.file.get_or_init(|| file)))
    }

    /// Whether a registry takes these credentials.
    pub fn check(&self, host: &str, credentials: &Credentials) -> Result<(), RegistryError> {
        let what = format!("log in at {host}");
        if self.options.offline {
            return Err(RegistryError::Offline { what });
        }
        // The one that images would go to.
        let Some(own) = self.hosts(host)?.into_iter().find(|host| host.stands_in && host.push) else { return Ok(()) };
        Endpoint::new(own, host, Some(credentials.clone()), &self.options, self.cancel.clone(), false).check(&what)
    }
}
