//! What FROM and `COPY --from` name outside of the Dockerfile, found.
//!
//! In: the planner's requests, the named contexts, the store. Out: [`Bases`]. What always holds: of an image only
//! manifest and config are read here; a name that leads nowhere gives an error that says where rbuild looked.

use std::sync::Arc;

use crate::cli::args::{BuildArgs, NamedContext, Pick};
use crate::cli::settings::Settings;
use crate::diagnostic::{Diagnostic, nearest};
use crate::image::reference::Reference;
use crate::plan::{BaseImage, BaseRequest, Bases, Resolved};
use crate::store::images::ImageRecord;
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
) -> Result<(), Vec<Diagnostic>> {
    let mut errors = Vec::new();
    for request in requests {
        let found = if request.context {
            named_context(request, args, settings, store, lease)
        } else {
            local_image(&request.name, request, store, lease).map(Resolved::Image)
        };
        match found {
            Ok(resolved) => {
                bases.insert((request.name.clone(), request.platform.to_string()), resolved);
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn named_context(
    request: &BaseRequest,
    args: &BuildArgs,
    settings: &Settings,
    store: &Store,
    lease: &Lease,
) -> Result<Resolved, Diagnostic> {
    let failed = |why: String| {
        Diagnostic::error(request.span, format!("the context \"{}\" of --build-context cannot be used", request.name))
            .help(why)
    };
    // The last of one name counts, as with other repeated flags.
    let named = args.build_contexts.iter().rfind(|(name, _)| *name == request.name);
    let Some((_, context)) = named else { return Err(failed("it was not given".to_owned())) };
    let (source, selector) = match context {
        NamedContext::Directory(_) | NamedContext::Remote(_) => return Ok(Resolved::Context),
        NamedContext::Image(name) => {
            let full = Reference::parse(name).map_err(|error| failed(error.to_string()))?.to_string();
            return local_image(&full, request, store, lease).map(Resolved::Image);
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
    Ok(Resolved::Image(Arc::new(image)))
}

/// An image of the local store, by its full reference.
fn local_image(name: &str, request: &BaseRequest, store: &Store, lease: &Lease) -> Result<Arc<BaseImage>, Diagnostic> {
    let failed = |error: crate::store::StoreError| {
        Diagnostic::error(request.span, format!("the image {} cannot be used", shown(name)))
            .help(format!("{:#}", anyhow::Error::from(error)))
    };
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
            Ok(Arc::new(image))
        }
        None => Err(absent(name, request, &store.images().map_err(failed)?, store)),
    }
}

fn absent(name: &str, request: &BaseRequest, images: &[ImageRecord], store: &Store) -> Diagnostic {
    let shown = shown(name);
    let what = if request.similar.is_some() { "no stage above and no image" } else { "no image" };
    let mut error = Diagnostic::error(request.span, format!("there is {what} {shown}"))
        .help(format!("looked among the named contexts and in the store {}", store.root().display()));
    let known: Vec<String> = images.iter().flat_map(|image| &image.names).map(|name| self::shown(name)).collect();
    error = if let Some(similar) = &request.similar {
        error.label(format!("did you mean the stage {similar}?"))
    } else if let Some(near) = nearest(&shown, known.iter().map(String::as_str)) {
        error.label(format!("did you mean {near}?"))
    } else {
        error.label("not found")
    };
    let short = shown.strip_suffix(":latest").unwrap_or(&shown);
    error.help(format!(
        "pulling from registries is not supported yet: bring it in with `rbuild load` or `rbuild import FILE {short}`, \
         or name it with --build-context {short}=oci-layout://DIR"
    ))
}

/// A name as Docker shows it.
fn shown(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}
