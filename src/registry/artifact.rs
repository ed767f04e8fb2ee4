//! Small documents by tag, and blobs of a repository that are no layers of an image on its way.
//!
//! In: a repository, a tag or a descriptor. Out: a document, whether there is one, a blob as it arrives. What always holds:
//! no more is read than the caller allows; that there is nothing under a tag is an answer and no error.

use std::io::Read;

use super::blob::BlobStream;
use super::client::{Call, Endpoint};
use super::pull::{Quiet, accept, scope};
use super::{Registries, RegistryError};
use crate::digest::Digest;
use crate::http::Response;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;

impl Registries {
    /// The document that a tag of the repository of `reference` leads to, of at most `limit` bytes; `None` where there is
    /// no such tag, or no such repository.
    pub fn tagged(&self, reference: &Reference, tag: &str, limit: usize) -> Result<Option<Vec<u8>>, RegistryError> {
        let what = format!("look up {}:{tag}", reference.familiar_name());
        let registry = self.registry(reference.registry(), &what)?;
        let path = format!("{}/manifests/{tag}", reference.repository());
        let scopes = [scope(reference.repository(), "pull")];
        let headers = vec![("accept", accept())];
        let call = Call { method: "GET", path: &path, headers, body: None, scopes: &scopes, what: &what };
        let fail = |why: String| RegistryError::content(&what, why);
        let take = |endpoint: &Endpoint, response: Response| {
            let told: Option<Digest> = response.header("docker-content-digest").and_then(|digest| digest.parse().ok());
            let bytes = response.into_bytes(limit).map_err(|error| endpoint.no_answer(&what, error))?;
            let bytes = bytes.ok_or_else(|| fail(format!("what is there has more than {limit} bytes")))?;
            let found = Digest::of(&bytes);
            match told.filter(|told| *told != found) {
                None => Ok(Some(bytes)),
                Some(told) => {
                    Err(fail(format!("{} sent a manifest with the digest {found}, not {told}", endpoint.host.name)))
                }
            }
        };
        match registry.ask(|endpoint| endpoint.host.resolve, &call, limit, take) {
            Err(error) if error.is_not_found() => Ok(None),
            asked => asked,
        }
    }

    /// Whether the server that takes images has that tag.
    pub fn has_tag(&self, reference: &Reference, tag: &str) -> Result<bool, RegistryError> {
        let what = format!("look up {}:{tag}", reference.familiar_name());
        let registry = self.registry(reference.registry(), &what)?;
        let path = format!("{}/manifests/{tag}", reference.repository());
        let scopes = [scope(reference.repository(), "pull,push")];
        let headers = vec![("accept", accept())];
        let call = Call { method: "HEAD", path: &path, headers, body: None, scopes: &scopes, what: &what };
        match registry.ask(|endpoint| endpoint.host.push, &call, 0, |_, _| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the repository has that blob.
    pub fn has_blob(&self, reference: &Reference, blob: &Digest) -> Result<bool, RegistryError> {
        let what = format!("look for the blob {blob} of {}", reference.familiar_name());
        let registry = self.registry(reference.registry(), &what)?;
        let path = format!("{}/blobs/{blob}", reference.repository());
        let scopes = [scope(reference.repository(), "pull")];
        let call = Call { method: "HEAD", path: &path, headers: Vec::new(), body: None, scopes: &scopes, what: &what };
        match registry.ask(|endpoint| endpoint.host.pull, &call, 0, |_, _| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A blob of the repository, checked at its end.
    pub fn blob<'a>(
        &self,
        reference: &Reference,
        blob: &'a Descriptor,
        what: &'a str,
    ) -> Result<Box<dyn Read + 'a>, RegistryError> {
        let registry = self.registry(reference.registry(), what)?;
        Ok(Box::new(BlobStream::new(registry, reference.repository(), blob, what, &Quiet)))
    }
}
