//! What FROM and `COPY --from` name outside of the Dockerfile, found.
//!
//! In: the planner's requests, the named contexts, the store, registries. Out: [`Bases`]. What always holds: of an image only
//! manifest and config are read here; a name that leads nowhere gives an error that says where rbuild looked.

use std::sync::Arc;

use super::remote::Remotes;
use crate::cli::args::{BuildArgs, NamedContext, Pick, Pull};
use crate::cli::settings::Settings;
use crate::diagnostic::{Diagnostic, nearest};
use crate::image::reference::Reference;
use crate::plan::{BaseImage, BaseRequest, Bases, Resolved};
use crate::registry::RegistryError;
use crate::store::lease::Lease;
use crate::store::load::{LayoutSource, Selector, bring_layout};
use crate::store::{Store, base};

/// Finds all that is requested and adds it to `bases`; the errors are all that there are.
pub(super) fn resolve(
    requests: &[BaseRequest],
    bases: &mut Bases,
    args: &BuildArgs,
    settings: &Settings,
    store: &Store,
    lease: &Lease,
    remotes: &Remotes<'_>,
) -> Result<(), Vec<Diagnostic>> {
    let finder = Finder { args, settings, store, lease, remotes };
    let mut found: Vec<Option<Result<Resolved, Diagnostic>>> = Vec::with_capacity(requests.len());
    for request in requests {
        found.push(finder.here(request).transpose());
    }
    // What takes a question to a registry is asked for at once. The threads are joined here: who enters a user namespace
    // later must be alone in the process.
    let asked: Vec<usize> = (0..requests.len()).filter(|number| found[*number].is_none()).collect();
    if let [number] = asked.as_slice() {
        found[*number] = Some(finder.ask(&requests[*number]));
    } else if !asked.is_empty() {
        let answers = std::thread::scope(|scope| {
            let finder = &finder;
            let threads: Vec<_> =
                asked.iter().map(|number| scope.spawn(move || finder.ask(&requests[*number]))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        for (number, answer) in asked.into_iter().zip(answers) {
            found[number] = Some(answer);
        }
    }
    let mut errors = Vec::new();
    for (request, found) in requests.iter().zip(found) {
        match found {
            Some(Ok(resolved)) => {
                bases.insert((request.name.clone(), request.platform.to_string()), resolved);
            }
            Some(Err(error)) => errors.push(error),
            None => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

struct Finder<'a> {
    args: &'a BuildArgs,
    settings: &'a Settings,
    store: &'a Store,
    lease: &'a Lease,
    remotes: &'a Remotes<'a>,
}

impl Finder<'_> {
    /// What is found without a registry; `None` where one must be asked.
    fn here(&self, request: &BaseRequest) -> Result<Option<Resolved>, Diagnostic> {
        let name = match self.image_name(request)? {
            Ok(resolved) => return Ok(Some(resolved)),
            Err(name) => name,
        };
        let reference = Reference::parse(&name).ok();
        let pinned = reference.as_ref().is_some_and(|reference| reference.digest().is_some());
        let network = !self.args.offline && self.args.pull != Pull::Never;
        if network && !pinned && matches!(self.args.pull, Pull::Always | Pull::Newer) {
            return Ok(None);
        }
        if let Some(image) = self.local_image(&name, request)? {
            return Ok(Some(Resolved::Image(image)));
        }
        let Some(reference) = reference else { return Err(absent(&name, request, self.store, None)) };
        match self.remotes.known(&reference, &request.platform) {
            Ok(Some(image)) => Ok(Some(Resolved::Image(image))),
            Ok(None) if network => Ok(None),
            Ok(None) => {
                let flag = if self.args.offline { "--offline" } else { "--pull=never" };
                let why = format!("{flag}: its registry, {}, was not asked", reference.registry());
                Err(absent(&name, request, self.store, Some(&why)))
            }
            Err(error) => Err(unusable(&name, request, &error)),
        }
    }

    /// Asks the registry.
    fn ask(&self, request: &BaseRequest) -> Result<Resolved, Diagnostic> {
        let name = match self.image_name(request)? {
            Ok(resolved) => return Ok(resolved),
            Err(name) => name,
        };
        let reference = Reference::parse(&name).map_err(|error| unusable(&name, request, &error.into()))?;
        let error = match self.remotes.ask(&reference, &request.platform) {
            Ok(image) => return Ok(Resolved::Image(image)),
            Err(error) => error,
        };
        if self.args.pull == Pull::Newer {
            // What is here will do.
            if let Some(image) = self.local_image(&name, request)? {
                return Ok(Resolved::Image(image));
            }
            if let Ok(Some(image)) = self.remotes.known(&reference, &request.platform) {
                return Ok(Resolved::Image(image));
            }
        }
        match error.downcast_ref::<RegistryError>() {
            Some(RegistryError::Refused { status: 401 | 403 | 404, .. } | RegistryError::Http { .. }) => {
                Err(absent(&name, request, self.store, Some(&format!("{error:#}"))))
            }
            _ => Err(unusable(&name, request, &error)),
        }
    }

    /// The image of the store, whose layers may be elsewhere.
    fn local_image(&self, name: &str, request: &BaseRequest) -> Result<Option<Arc<BaseImage>>, Diagnostic> {
        let found = local_image(name, request, self.store, self.lease)?;
        found.iter().for_each(|image| self.remotes.add_stored(image));
        Ok(found)
    }

    /// The full name of the image that is requested, or what a named context is instead of one.
    fn image_name(&self, request: &BaseRequest) -> Result<Result<Resolved, String>, Diagnostic> {
        if request.context {
            named_context(request, self.args, self.settings, self.store, self.lease)
        } else {
            Ok(Err(request.name.clone()))
        }
    }
}

fn named_context(
    request: &BaseRequest,
    args: &BuildArgs,
    settings: &Settings,
    store: &Store,
    lease: &Lease,
) -> Result<Result<Resolved, String>, Diagnostic> {
    let failed = |why: String| {
        Diagnostic::error(request.span, format!("the context \"{}\" of --build-context cannot be used", request.name))
            .help(why)
    };
    // The last of one name counts, as with other repeated flags.
    let named = args.build_contexts.iter().rfind(|(name, _)| *name == request.name);
    let Some((_, context)) = named else { return Err(failed("it was not given".to_owned())) };
    let (source, selector) = match context {
        NamedContext::Directory(_) | NamedContext::Remote(_) => return Ok(Ok(Resolved::Context)),
        // As in FROM it is no image's name.
        NamedContext::Image(name) if name == "scratch" => {
            return Ok(Ok(Resolved::Image(Arc::new(BaseImage::nothing(&request.name, &request.platform)))));
        }
        NamedContext::Image(name) => {
            return Reference::parse(name).map(|name| Err(name.to_string())).map_err(|error| failed(error.to_string()));
        }
        NamedContext::OciArchive(file) => (LayoutSource::Archive(settings.cwd.join(file)), Selector::Any),
        NamedContext::OciLayout { dir, pick } => {
            let selector = match pick {
                None => Selector::Any,
                Some(Pick::Tag(tag)) => Selector::Tag(tag.clone()),
                Some(Pick::Digest(text)) => Selector::Digest(text.parse().map_err(|error| failed(format!("{error}")))?),
            };
            (LayoutSource::Folder(settings.cwd.join(dir)), selector)
        }
    };
    let mut image = bring_layout(store, lease, &source, &selector, &request.platform)
        .map_err(|error| failed(format!("{:#}", anyhow::Error::from(error))))?;
    image.name.clone_from(&request.name);
    Ok(Ok(Resolved::Image(Arc::new(image))))
}

/// An image of the local store, by its full reference.
fn local_image(
    name: &str,
    request: &BaseRequest,
    store: &Store,
    lease: &Lease,
) -> Result<Option<Arc<BaseImage>>, Diagnostic> {
    let failed = |error: crate::store::StoreError| unusable(name, request, &error.into());
    let _shared = lease.shared().map_err(failed)?;
    let reference = Reference::parse(name).ok();
    let found = match reference.as_ref().and_then(Reference::digest) {
        Some(digest) => store.image_by_manifest(&digest),
        None => store.image_by_name(name),
    };
    match found.map_err(failed)? {
        Some(record) => {
            let mut images = base::base_images(store, &record).map_err(failed)?;
            let offered = images.iter().map(|image| &image.platform);
            let best = request.platform.best(offered.clone());
            // The only one was asked for by name: that it is for another machine is warned of.
            let Some(best) = best.or((images.len() == 1).then_some(0)) else {
                let list = offered.map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let message = format!("the image {} has nothing for {}", shown(name), request.platform);
                return Err(Diagnostic::error(request.span, message)
                    .label(format!("it is for {list}"))
                    .help("the platform is that of --platform, of FROM --platform or of DOCKER_DEFAULT_PLATFORM"));
            };
            let image = images.swap_remove(best);
            base::pin(lease, &image).map_err(failed)?;
            Ok(Some(Arc::new(image)))
        }
        None => Ok(None),
    }
}

fn unusable(name: &str, request: &BaseRequest, error: &anyhow::Error) -> Diagnostic {
    Diagnostic::error(request.span, format!("the image {} cannot be used", shown(name))).help(format!("{error:#}"))
}

/// There is no such image: why, where that is known, and what may have been meant.
fn absent(name: &str, request: &BaseRequest, store: &Store, why: Option<&str>) -> Diagnostic {
    let shown = shown(name);
    let what = if request.similar.is_some() { "no stage above and no image" } else { "no image" };
    let mut error = Diagnostic::error(request.span, format!("there is {what} {shown}"))
        .help(format!("looked among the named contexts and in the store {}", store.root().display()));
    let images = store.images().unwrap_or_default();
    let known: Vec<String> = images.iter().flat_map(|image| &image.names).map(|name| self::shown(name)).collect();
    error = if let Some(similar) = &request.similar {
        error.label(format!("did you mean the stage {similar}?"))
    } else if let Some(near) = nearest(&shown, known.iter().map(String::as_str)) {
        error.label(format!("did you mean {near}?"))
    } else {
        error.label("not found")
    };
    match why {
        Some(why) => error.help(why.to_owned()),
        None => error,
    }
}

/// A name as Docker shows it.
fn shown(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}
