//! A blob of a registry as it arrives.
//!
//! In: where it is, its digest and size. Out: a reader. What always holds: the end is reached only when as many bytes came
//! as the descriptor says and their digest was right; where the connection breaks the rest is asked for, of the same server
//! or the next one, and only so often without progress; where what came was wrong its reader may begin anew with the next.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{ATTEMPTS, ATTEMPTS_BEFORE_NEXT, Call, Endpoint};
use super::pull::{Transfer, Transfers, scope};
use super::{Registry, RegistryError};
use crate::digest::Hasher;
use crate::http::Response;
use crate::image::manifest::Descriptor;

/// An attempt after so many bytes counts as the first one again.
const PROGRESS: u64 = 1 << 20;

/// A blob on its way here.
pub(super) struct BlobStream<'a> {
    registry: Arc<Registry>,
    path: String,
    scopes: [String; 1],
    blob: &'a Descriptor,
    what: &'a str,
    listener: &'a dyn Transfers,
    /// Raised when it is no longer wanted.
    stop: Option<&'a AtomicBool>,
    /// The server that is asked.
    endpoint: usize,
    reader: Option<Box<dyn Read + Send>>,
    offset: u64,
    hasher: Option<Hasher>,
    /// All came, and not the right bytes.
    wrong: bool,
    failures: u32,
    failed_at: u64,
}

impl<'a> BlobStream<'a> {
    pub(super) fn new(
        registry: Arc<Registry>,
        repository: &str,
        blob: &'a Descriptor,
        what: &'a str,
        listener: &'a dyn Transfers,
    ) -> Self {
        Self {
            registry,
            path: format!("{repository}/blobs/{}", blob.digest),
            scopes: [scope(repository, "pull")],
            blob,
            what,
            listener,
            stop: None,
            endpoint: 0,
            reader: None,
            offset: 0,
            hasher: Some(Hasher::new()),
            wrong: false,
            failures: 0,
            failed_at: 0,
        }
    }

    /// It ends when `stop` is raised.
    pub(super) fn until(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// After its reader failed: where the bytes were wrong it begins anew with the next server; `false` where it does not.
    pub(super) fn begins_anew(&mut self) -> bool {
        let Some(next) = self.next() else { return false };
        // The digest tells at the end.
        drop(io::copy(self, &mut io::sink()));
        if !self.wrong {
            return false;
        }
        (self.endpoint, self.reader, self.offset, self.hasher) = (next, None, 0, Some(Hasher::new()));
        (self.wrong, self.failures, self.failed_at) = (false, 0, 0);
        true
    }

    /// The server after this one.
    fn next(&self) -> Option<usize> {
        self.registry.servers(self.endpoint + 1, |endpoint| endpoint.host.pull).next().map(|(number, ..)| number)
    }

    fn fail(&self, why: impl std::fmt::Display) -> RegistryError {
        RegistryError::content(self.what, format!("the blob {}: {why}", self.blob.digest))
    }

    /// Asks for what is still to come, of the first server that has it.
    fn open(&mut self) -> Result<Box<dyn Read + Send>, RegistryError> {
        let mut last = None;
        let registry = Arc::clone(&self.registry);
        for (number, endpoint, followed) in registry.servers(self.endpoint, |endpoint| endpoint.host.pull) {
            self.endpoint = number;
            match self.ask(endpoint, followed) {
                Ok(reader) => return Ok(reader),
                Err(RegistryError::Stopped) => return Err(RegistryError::Stopped),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.fail("no server has it")))
    }

    fn ask(&self, endpoint: &Endpoint, followed: bool) -> Result<Box<dyn Read + Send>, RegistryError> {
        let mut headers = Vec::new();
        if self.offset > 0 {
            headers.push(("range", format!("bytes={}-{}", self.offset, self.blob.size.saturating_sub(1))));
        }
        let mut call =
            Call { method: "GET", path: &self.path, headers, body: None, scopes: &self.scopes, what: self.what };
        let begins = format!("bytes {}-", self.offset);
        let is_asked_for =
            |response: &Response| response.header("content-range").is_some_and(|range| range.starts_with(&begins));
        let mut response = endpoint.call_of(&call, followed, None)?;
        if self.offset > 0 && (response.status == 416 || response.status == 206 && !is_asked_for(&response)) {
            // It has no parts, or other ones: the whole again.
            call.headers.clear();
            response = endpoint.call_of(&call, followed, None)?;
        }
        let left = self.blob.size - self.offset;
        let (skip, length) = match response.status {
            200 => (self.offset, self.blob.size),
            206 if is_asked_for(&response) => (0, left),
            206 => return Err(self.fail(format!("{} sends another part than was asked for", endpoint.host.name))),
            404 if !self.blob.urls.is_empty() => {
                return Err(self.fail(
                    "it is a foreign layer, which the registry does not keep; push the image again with it (docker's allow-nondistributable-artifacts)",
                ));
            }
            _ => return Err(endpoint.refused(self.what, response)),
        };
        if let Some(found) = response.length().filter(|found| *found != length) {
            return Err(self.fail(format!("{} sends {found} bytes, its manifest says {length}", endpoint.host.name)));
        }
        let mut reader = response.into_reader();
        if skip > 0 {
            let skipped = io::copy(&mut (&mut reader).take(skip), &mut io::sink());
            if skipped.ok() != Some(skip) {
                return Err(self.fail("the connection breaks again and again"));
            }
        }
        Ok(Box::new(reader))
    }
}

impl Read for BlobStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(io::Error::other(RegistryError::Stopped));
        }
        loop {
            let left = self.blob.size - self.offset;
            if left == 0 {
                // Opened even where nothing is to come: who has the blob has an empty one too.
                let found = self.hasher.take().map(Hasher::finish);
                return match found {
                    Some(found) if found != self.blob.digest => {
                        self.wrong = true;
                        Err(io::Error::other(self.fail(format!("what came has the digest {found}"))))
                    }
                    _ => Ok(0),
                };
            }
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => self.open().map_err(io::Error::other)?,
            };
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match reader.read(&mut buffer[..most]) {
                Ok(read) if read > 0 => {
                    self.reader = Some(reader);
                    self.offset += read as u64;
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&buffer[..read]);
                    }
                    self.listener.transfer(&self.blob.digest, Transfer::Moved(read as u64));
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.reader = Some(reader),
                // Cut off: the rest is asked for.
                result => {
                    if self.offset >= self.failed_at + PROGRESS {
                        self.failures = 0;
                    }
                    self.failures += 1;
                    self.failed_at = self.offset;
                    let next = if self.failures >= ATTEMPTS_BEFORE_NEXT { self.next() } else { None };
                    if let Some(next) = next {
                        self.registry.endpoints[self.endpoint].give_up();
                        (self.endpoint, self.failures) = (next, 0);
                        continue;
                    }
                    if self.failures >= ATTEMPTS {
                        let why =
                            result.err().map_or_else(|| "the answer ended early".to_owned(), |error| error.to_string());
                        let why = format!(
                            "broke off after {} of {} bytes, again and again: {why}",
                            self.offset, self.blob.size
                        );
                        return Err(io::Error::other(self.fail(why)));
                    }
                    if let Some(endpoint) = self.registry.endpoints.get(self.endpoint) {
                        endpoint.pause(self.failures, None).map_err(io::Error::other)?;
                    }
                }
            }
        }
    }
}
