//! `rbuild pull`: an image of a registry into the store.
//!
//! In: a name. Out: the image under that name; Docker's lines. What always holds: the name appears when all layers are
//! there.

use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;

use super::args::PullArgs;
use super::failure::Failure;
use super::find;
use super::network::{self, Direction, Lines};
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::registry::Registries;
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::{Store, base};

/// Pulls it.
pub(super) fn run(args: &PullArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let reference = Reference::parse(&args.name).map_err(|error| Failure::Usage(error.to_string()))?;
    let tagged = args.name.contains('@') || args.name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if args.all_tags && tagged {
        return Err(Failure::Usage("with --all-tags give the name without a tag".to_owned()));
    }
    let platform = platform(args.platform.as_deref(), settings)?;
    let store = find::store(settings)?;
    let lease = find::lease(&store, settings)?;
    let insecure = network::insecure(args.insecure, reference.registry());
    let lines = Lines::new(Direction::Pull, args.quiet, settings);
    let registries = network::registries(settings, insecure, false, None, lines.sayer())?;
    let pull = Pull {
        registries: &registries,
        store: &store,
        lease: &lease,
        wanted: platform.clone().unwrap_or_else(find::machine),
        asked: platform.is_some(),
        lines: &lines,
    };
    if args.all_tags {
        let tags = registries.tags(&reference).map_err(anyhow::Error::from)?;
        if tags.is_empty() {
            return Err(anyhow!("{} has no tags", reference.familiar_name()).into());
        }
        for tag in tags {
            let name = format!("{}:{tag}", reference.full_name());
            let name = Reference::parse(&name).map_err(anyhow::Error::from)?;
            pull.one(&name).inspect_err(|_| store.count_anew())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !tagged {
        pull.lines.say("Using default tag: latest");
    }
    // Layers that came before it failed are in no image.
    pull.one(&reference).inspect_err(|_| store.count_anew())?;
    Ok(ExitCode::SUCCESS)
}

/// `--platform`, else the environment's.
pub(super) fn platform(given: Option<&str>, settings: &Settings) -> Result<Option<Platform>, Failure> {
    let usual = settings.var("DOCKER_DEFAULT_PLATFORM")?.filter(|platform| !platform.is_empty());
    let text = given.map(str::to_owned).or(usual);
    let parse =
        |text: String| Platform::parse(&text, &find::machine()).map_err(|error| Failure::Usage(error.to_string()));
    text.map(parse).transpose()
}

struct Pull<'a> {
    registries: &'a Registries,
    store: &'a Store,
    lease: &'a Lease,
    wanted: Platform,
    /// The user named the platform.
    asked: bool,
    lines: &'a Lines,
}

impl Pull<'_> {
    fn one(&self, reference: &Reference) -> Result<(), Failure> {
        let (store, lease) = (self.store, self.lease);
        let shown = reference.familiar();
        let from = match (reference.tag(), reference.digest()) {
            (_, Some(digest)) => digest.to_string(),
            (tag, None) => tag.unwrap_or("latest").to_owned(),
        };
        let remote = self.registries.image(store, lease, reference, &self.wanted, None).map_err(anyhow::Error::from)?;
        if self.asked && self.wanted.fit(&remote.image.platform).is_none() {
            let found = &remote.image.platform;
            return Err(anyhow!("cannot pull {shown}: it is for {found}, not for {}", self.wanted).into());
        }
        self.lines.say(&format!("{from}: Pulling from {}", reference.repository()));
        self.registries.bring(store, lease, &remote.image, Some(reference), self.lines).map_err(anyhow::Error::from)?;
        let mut record = base::record(store, &remote.image).map_err(anyhow::Error::from)?;
        let name = reference.tag().filter(|_| reference.digest().is_none()).map(|_| reference.to_string());
        let before = name.as_deref().map(|name| store.image_by_name(name)).transpose().map_err(anyhow::Error::from)?;
        let known = match &before {
            Some(before) => before.as_ref().is_some_and(|before| before.manifest == record.manifest),
            None => {
                let images = store.images().map_err(anyhow::Error::from)?;
                images.iter().any(|image| image.manifest == record.manifest)
            }
        };
        record.names.extend(name);
        base::keep(store, lease, &record).map_err(anyhow::Error::from)?;
        let repository = reference.full_name();
        let origin = Origin { blob: remote.top, repository };
        store.add_origin_of_image(&record.id, origin).map_err(anyhow::Error::from)?;
        let mut out = stdout();
        if !self.lines.is_quiet() {
            writeln!(out, "Digest: {}", remote.top)?;
            let status = if known { "Image is up to date" } else { "Downloaded newer image" };
            writeln!(out, "Status: {status} for {shown}")?;
        }
        writeln!(out, "{reference}")?;
        out.flush()?;
        Ok(())
    }
}
