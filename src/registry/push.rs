//! Blobs and manifests into a registry.
//!
//! In: blobs whose bytes can be read again and again, manifests. Out: a registry that has them. What always holds: what is
//! there is not sent; what the registry has in another repository is mounted; an upload that breaks begins anew; a
//! manifest is put when all that it lists is there.

use std::io::{self, Read};
use std::sync::Arc;

use super::blob::BlobStream;
use super::client::{ATTEMPTS, ATTEMPTS_BEFORE_NEXT, Call, Endpoint, encode, may_pass, retry_after};
use super::pull::{Quiet, Transfer, Transfers, scope, unwrap_io};
use super::{Registries, Registry, RegistryError};
use crate::digest::Digest;
use crate::http::{Response, join};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::store::StoreError;
use crate::sys::cancel::Cancel;

/// Other repositories of the registry that are tried for a mount.
const MOUNTS: usize = 3;

/// What goes in one piece where pieces are asked for and no least size is named.
const PIECE: u64 = 16 << 20;

/// Where the bytes of a blob come from, each time that they are asked for.
pub enum BlobSource<'a> {
    /// They are here.
    Bytes(&'a [u8]),
    /// They are opened.
    Open(&'a (dyn Fn() -> Result<Box<dyn Read + 'a>, StoreError> + Sync)),
    /// Another repository has them: they pass through.
    Remote(&'a Reference),
}

/// A conversation with the registry that images go to.
pub struct Push<'a> {
    registry: Arc<Registry>,
    registries: &'a Registries,
    /// The repository.
    target: Reference,
    /// To write there.
    scopes: [String; 1],
    what: String,
    listener: &'a dyn Transfers,
}

/// A place where an upload goes on, and the least size of a piece if pieces are asked for.
struct Session {
    location: String,
    pieces: Option<u64>,
}

/// What became of a mount.
enum Mounted {
    /// The blob is there.
    There,
    /// It is to be sent; an upload may have begun.
    Not(Option<Session>),
}

/// What became of an upload.
enum Sent {
    Done,
    /// The connection broke: a new one may go well.
    Broken(RegistryError),
    /// A no.
    Refused(Response),
}

impl Registries {
    /// Begins to push to the repository of `target`.
    pub fn push<'a>(&'a self, target: &Reference, listener: &'a dyn Transfers) -> Result<Push<'a>, RegistryError> {
        let what = format!("push {}", target.familiar());
        let registry = self.registry(target.registry(), &what)?;
        if !registry.endpoints.iter().any(|endpoint| endpoint.host.push) {
            let why = format!("hosts.toml names no server of {} that takes images", registry.host);
            return Err(RegistryError::content(what, why));
        }
        let scopes = [scope(target.repository(), "pull,push")];
        Ok(Push { registry, registries: self, target: target.clone(), scopes, what, listener })
    }
}

impl Push<'_> {
    fn endpoint(&self) -> Result<&Endpoint, RegistryError> {
        let found = self.registry.endpoints.iter().find(|endpoint| endpoint.host.push);
        found.ok_or_else(|| RegistryError::content(&self.what, "no server takes images"))
    }

    /// What a failure means for who pushes.
    fn explain(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Refused { what, status: 404, why, .. } => {
                let help = format!(
                    "there may be no repository {}, which some registries want to be made first",
                    self.target.familiar_name()
                );
                RegistryError::Refused { what, status: 404, why, help }
            }
            error => error,
        }
    }

    fn call<'c>(&'c self, method: &'c str, path: &'c str) -> Call<'c> {
        Call { method, path, headers: Vec::new(), body: None, scopes: &self.scopes, what: &self.what }
    }

    fn tell(&self, blob: &Descriptor, source: &BlobSource<'_>, event: Transfer<'_>) {
        // Documents are no layers.
        if !matches!(source, BlobSource::Bytes(_)) {
            self.listener.transfer(&blob.digest, event);
        }
    }

    /// Puts a blob into the repository. `origins` are repositories (with their registries) that have it.
    pub fn blob(&self, blob: &Descriptor, source: &BlobSource<'_>, origins: &[String]) -> Result<(), RegistryError> {
        let endpoint = self.endpoint()?;
        let head = endpoint.call(&self.call("HEAD", &format!("{}/blobs/{}", self.target.repository(), blob.digest)))?;
        match head.status {
            200..=299 => {
                self.tell(blob, source, Transfer::Exists);
                return Ok(());
            }
            404 => {}
            _ => return Err(endpoint.refused(&self.what, head)),
        }
        let mut session = match self.mount(endpoint, blob, origins)? {
            Mounted::There => return Ok(()),
            Mounted::Not(session) => session,
        };
        self.tell(blob, source, Transfer::Begins { size: blob.size });
        let (mut attempt, mut met) = (1, false);
        loop {
            let open = match session.take() {
                Some(open) => open,
                None => self.session(endpoint)?,
            };
            let (error, pause) = match self.upload(endpoint, &open, blob, source)? {
                Sent::Done => {
                    self.tell(blob, source, Transfer::Done);
                    return Ok(());
                }
                Sent::Broken(error) => (error, None),
                Sent::Refused(response) => {
                    let (status, pause) = (response.status, retry_after(&response));
                    // A token may end within an upload.
                    let challenged = status == 401 && !met && endpoint.meet(&response, &self.call("POST", ""))?;
                    met |= challenged;
                    let error = endpoint.refused(&self.what, response);
                    // 404 and 416: the server lost what it had, or how much of it.
                    if !challenged && !may_pass(status) && !matches!(status, 404 | 416) {
                        return Err(error);
                    }
                    (error, pause)
                }
            };
            if attempt >= ATTEMPTS {
                return Err(error);
            }
            endpoint.pause(attempt, pause)?;
            attempt += 1;
        }
    }

    /// Tries to have the blob from another repository.
    fn mount(&self, endpoint: &Endpoint, blob: &Descriptor, origins: &[String]) -> Result<Mounted, RegistryError> {
        let own = self.target.repository();
        let here = origins.iter().filter_map(|origin| origin.strip_prefix(self.target.registry())?.strip_prefix('/'));
        let mut session = None;
        for from in here.filter(|from| *from != own).take(MOUNTS) {
            let [scope_here] = &self.scopes;
            let scopes = [scope_here.clone(), scope(from, "pull")];
            let query = encode(&[("mount", &blob.digest.to_string()), ("from", from)]);
            let path = format!("{own}/blobs/uploads/?{query}");
            let call = Call { body: Some(&[]), scopes: &scopes, ..self.call("POST", &path) };
            // Without it the blob is sent: nobody waits long for it.
            let response = match endpoint.call_within(&call, ATTEMPTS_BEFORE_NEXT, None) {
                Ok(response) => response,
                Err(RegistryError::Stopped) => return Err(RegistryError::Stopped),
                // No answer: there will be none to the next one either.
                Err(RegistryError::Http { .. }) => break,
                // There is no token for both.
                Err(_) => continue,
            };
            match response.status {
                201 => {
                    self.listener.transfer(&blob.digest, Transfer::Mounted { from });
                    return Ok(Mounted::There);
                }
                202 => session = session_of(&response),
                status if may_pass(status) => break,
                // Not allowed to read there, or it does not mount.
                _ => {}
            }
        }
        // The blob is sent.
        Ok(Mounted::Not(session))
    }

    /// Begins an upload.
    fn session(&self, endpoint: &Endpoint) -> Result<Session, RegistryError> {
        let path = format!("{}/blobs/uploads/", self.target.repository());
        let response = endpoint.call(&Call { body: Some(&[]), ..self.call("POST", &path) })?;
        match response.status {
            202 => session_of(&response).ok_or_else(|| {
                let why = format!("{} begins an upload and does not say where", endpoint.host.name);
                RegistryError::content(&self.what, why)
            }),
            _ => Err(self.explain(endpoint.refused(&self.what, response))),
        }
    }

    fn open<'s>(
        &'s self,
        blob: &'s Descriptor,
        source: &'s BlobSource<'_>,
        what: &'s str,
    ) -> Result<Box<dyn Read + 's>, RegistryError> {
        Ok(match source {
            BlobSource::Bytes(bytes) => Box::new(*bytes),
            BlobSource::Open(open) => open()?,
            BlobSource::Remote(reference) => {
                let registry = self.registries.registry(reference.registry(), what)?;
                Box::new(BlobStream::new(registry, reference.repository(), blob, what, &Quiet))
            }
        })
    }

    /// Sends a blob.
    fn upload(
        &self,
        endpoint: &Endpoint,
        session: &Session,
        blob: &Descriptor,
        source: &BlobSource<'_>,
    ) -> Result<Sent, RegistryError> {
        let octets = || ("content-type", "application/octet-stream".to_owned());
        let what = match source {
            BlobSource::Remote(from) => {
                format!("{} (its layer {} passes through from {})", self.what, blob.digest, from.familiar_name())
            }
            _ => self.what.clone(),
        };
        let mut reader = Counted {
            inner: self.open(blob, source, &what)?,
            listener: self.listener,
            digest: blob.digest,
            cancel: self.registries.cancel.as_ref(),
            failure: None,
        };
        let send = |reader: &mut Counted<'_>, call: &Call<'_>, length| {
            let mut piece = (&mut *reader).take(length);
            match endpoint.once(call, (&mut piece, length)) {
                Ok(response) => Ok(Ok(response)),
                // Not the connection failed, but what was to be sent.
                Err(_) if reader.failure.is_some() => Err(reader.told(&what)),
                Err(error) if error.is_passing() => Ok(Err(Sent::Broken(endpoint.no_answer(&self.what, error)))),
                Err(error) => Err(endpoint.no_answer(&self.what, error)),
            }
        };
        let mut location = session.location.clone();
        if let Some(least) = session.pieces {
            let size = least.max(PIECE);
            let mut offset = 0;
            while offset < blob.size {
                let length = size.min(blob.size - offset);
                let range = ("content-range", format!("{offset}-{}", offset + length - 1));
                let call = Call { headers: vec![octets(), range], ..self.call("PATCH", &location) };
                let response = match send(&mut reader, &call, length)? {
                    Ok(response) => response,
                    Err(broken) => return Ok(broken),
                };
                match (response.status, session_of(&response)) {
                    (200..=299, Some(next)) => location = next.location,
                    _ => return Ok(Sent::Refused(response)),
                }
                offset += length;
            }
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{separator}{}", encode(&[("digest", &blob.digest.to_string())]));
        let call = Call { headers: vec![octets()], ..self.call("PUT", &path) };
        let left = if session.pieces.is_some() { 0 } else { blob.size };
        Ok(match send(&mut reader, &call, left)? {
            Err(broken) => broken,
            Ok(response) => match response.status {
                200..=299 => Sent::Done,
                // Too much at once: in pieces, then.
                413 if session.pieces.is_none() => {
                    let open = Session { pieces: Some(0), ..self.session(endpoint)? };
                    return self.upload(endpoint, &open, blob, source);
                }
                _ => Sent::Refused(response),
            },
        })
    }

    /// Puts a manifest or index under a tag, or under its digest alone.
    pub fn manifest(&self, tag: Option<&str>, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), RegistryError> {
        let endpoint = self.endpoint()?;
        let name = tag.map_or_else(|| descriptor.digest.to_string(), str::to_owned);
        let path = format!("{}/manifests/{name}", self.target.repository());
        let headers = vec![("content-type", descriptor.media_type.to_string())];
        let call = Call { headers, body: Some(bytes), ..self.call("PUT", &path) };
        let response = endpoint.call(&call)?;
        match response.status {
            200..=299 => {}
            _ => return Err(self.explain(endpoint.refused(&self.what, response))),
        }
        let told: Option<Digest> = response.header("docker-content-digest").and_then(|digest| digest.parse().ok());
        match told.filter(|told| *told != descriptor.digest) {
            None => Ok(()),
            Some(told) => Err(RegistryError::content(
                &self.what,
                format!("{} took the manifest {} for {told}", endpoint.host.name, descriptor.digest),
            )),
        }
    }
}

fn session_of(response: &Response) -> Option<Session> {
    let location = join(&response.url, response.header("location")?)?;
    let pieces = response.header("oci-chunk-min-length").and_then(|length| length.parse().ok());
    Some(Session { location, pieces })
}

/// Counts what is sent, and remembers why it could not be read: of the connection that carries it nobody else would tell.
struct Counted<'a> {
    inner: Box<dyn Read + 'a>,
    listener: &'a dyn Transfers,
    digest: Digest,
    cancel: Option<&'a Cancel>,
    failure: Option<io::Error>,
}

impl Counted<'_> {
    /// Why it could not be read.
    fn told(&mut self, what: &str) -> RegistryError {
        self.failure.take().map_or(RegistryError::Stopped, |failure| unwrap_io(failure, what))
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stopped = self.cancel.is_some_and(Cancel::is_canceled);
        let read = if stopped { Err(io::Error::other(RegistryError::Stopped)) } else { self.inner.read(buffer) };
        match read {
            Ok(read) => {
                self.listener.transfer(&self.digest, Transfer::Moved(read as u64));
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                Err(again)
            }
        }
    }
}
