//! `rbuild import`: the tar of a root file system becomes an image of one layer.
//!
//! In: a tar, plain or compressed, and what the image's config shall say. Out: the image in the store, without a name.
//! What always holds: the layer is the tar's uncompressed bytes as they are, so its diffID is their SHA-256; the same
//! tar, time and options give the same image id.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use super::base::{put_image, record};
use super::images::ImageRecord;
use super::layers::Form;
use super::lease::Lease;
use super::load::Tee;
use super::{Store, StoreError};
use crate::diagnostic::{Diagnostic, Source};
use crate::digest::{ImageId, Digest};
use crate::dockerfile::ast::{Instruction, InstructionKind};
use crate::image::config::{ContainerConfig, History, ImageConfig};
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::image::platform::Platform;
use crate::layer::compress;
use crate::layer::scan::{ScanError, scan};
use crate::plan::{self, BaseImage, Bases, Outcome, PlanOptions, Resolved};

/// What the image shall say of itself.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// `-c`: Dockerfile instructions for the config, each one or several lines.
    pub changes: Vec<String>,
    /// `-m`: the comment in the history; Docker's own where there is none.
    pub message: Option<String>,
    /// What the image runs on.
    pub platform: Platform,
    /// When it was made, by RFC 3339.
    pub created: String,
}

/// Why a tar does not become an image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be read, or is no tar.
    #[error("cannot import {place}")]
    Tar {
        /// As the user named it.
        place: String,
        /// What is wrong.
        source: ScanError,
    },
    /// There are no bytes.
    #[error("cannot import {place}: it is empty")]
    Empty {
        /// As the user named it.
        place: String,
    },
    /// It is an image already.
    #[error("{place} is the archive of an image, not of a root file system: use `rbuild load`")]
    IsImage {
        /// As the user named it.
        place: String,
    },
    /// Instructions that cannot be followed.
    #[error("cannot follow the instructions given by --change")]
    Changes {
        /// The text that the spans are in.
        source_text: Source,
        /// What is wrong.
        diagnostics: Vec<Diagnostic>,
    },
}

/// Makes an image of `tar`, which messages call `place`.
pub fn import<'a>(
    store: &Store,
    lease: &Lease,
    tar: Box<dyn Read + Send + 'a>,
    place: &str,
    options: &ImportOptions,
) -> Result<ImageRecord, ImportError> {
    // Instructions come first: a mistake in them is cheaper before a large tar is read.
    let container = folded(&options.changes, &options.platform)?;
    let failed = |source| ImportError::Tar { place: place.to_owned(), source };
    let path = lease.fresh_path();
    let file = File::create_new(&path).map_err(StoreError::io("make", &path))?;
    let plain = compress::decompress(tar).map_err(|error| failed(error.into()))?;
    let mut tee = Tee { from: plain, to: std::io::BufWriter::with_capacity(1 << 20, file) };
    let index = scan(&mut tee).map_err(failed)?;
    tee.to.flush().map_err(StoreError::io("write", &path))?;
    if index.tar_size() == 0 {
        return Err(ImportError::Empty { place: place.to_owned() });
    }
    let holds = |path: &[u8]| index.position(path).is_some();
    if (holds(b"manifest.json") || holds(b"oci-layout") && holds(b"index.json")) && !holds(b"etc") && !holds(b"usr") {
        return Err(ImportError::IsImage { place: place.to_owned() });
    }
    store.put_layer(lease, &index, Form::Tar(path))?;

    let Platform { os, architecture, variant, os_version } = options.platform.clone();
    let some = |text: String| (!text.is_empty()).then_some(text);
    let comment = options.message.clone().unwrap_or_else(|| "Imported from -".to_owned());
    let mut config = ImageConfig {
        os,
        architecture,
        variant: some(variant),
        os_version: some(os_version),
        config: container,
        created: Some(options.created.clone()),
        history: vec![History { created: Some(options.created.clone()), comment, ..History::default() }],
        ..ImageConfig::default()
    };
    config.rootfs.diff_ids.push(index.diff_id());
    let layer = Descriptor::new(Family::Oci.layer(Encoding::Tar), index.diff_id().0, index.tar_size());
    let bytes = config.to_bytes();
    let image = put_image(store, lease, Family::Oci, &bytes, config, vec![layer], place)?;
    Ok(record(store, &image)?)
}

/// The container config that `changes` lead to, each understood as in a Dockerfile.
fn folded(changes: &[String], platform: &Platform) -> Result<ContainerConfig, ImportError> {
    const FROM: &str = "FROM imported\n";
    if changes.is_empty() {
        return Ok(ContainerConfig::default());
    }
    let text = format!("{FROM}{}\n", changes.join("\n"));
    let source_text = Source { name: "--change".to_owned(), text };
    let wrong = |mut diagnostics: Vec<Diagnostic>| {
        // The user did not write the first line.
        for span in diagnostics.iter_mut().filter_map(|diagnostic| diagnostic.span.as_mut()) {
            span.start = span.start.saturating_sub(FROM.len());
            span.end = span.end.saturating_sub(FROM.len());
        }
        let source_text = Source { name: "--change".to_owned(), text: changes.join("\n") };
        ImportError::Changes { source_text, diagnostics }
    };
    let mut parsed = crate::dockerfile::parse(&source_text);
    if parsed.has_errors() {
        parsed.diagnostics.retain(Diagnostic::is_error);
        return Err(wrong(parsed.diagnostics));
    }
    let stages = &parsed.dockerfile.stages;
    let mut problems: Vec<Diagnostic> = Vec::new();
    for stage in &stages[1..] {
        problems.push(refused(stage.span, "FROM"));
    }
    for instruction in stages.iter().flat_map(|stage| &stage.instructions).filter(|one| !is_allowed(one)) {
        let name = instruction.text.split_whitespace().next().unwrap_or_default().to_uppercase();
        problems.push(refused(instruction.span, &name));
    }
    if !problems.is_empty() {
        return Err(wrong(problems));
    }
    let own_path = stages.iter().flat_map(|stage| &stage.instructions).any(sets_path);
    let options =
        PlanOptions { platforms: vec![platform.clone()], build_platform: platform.clone(), ..PlanOptions::default() };
    let graph = plan::graph(&parsed.dockerfile, &options).map_err(wrong)?;
    let nothing = BaseImage {
        name: "imported".to_owned(),
        config: ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            ..ImageConfig::default()
        },
        image_id: ImageId(Digest::of(b"")),
        manifest: None,
        layers: Vec::new(),
        platform: platform.clone(),
    };
    let nothing = Arc::new(nothing);
    let bases: Bases = plan::base_requests(&graph, &options)
        .into_iter()
        .map(|request| ((request.name, request.platform.to_string()), Resolved::Image(nothing.clone())))
        .collect();
    let outcome = plan::plan(&graph, &bases, &options).map_err(wrong)?;
    let Outcome::Planned(plan, _) = outcome else { return Ok(ContainerConfig::default()) };
    let Some(image) = plan.images.into_iter().next() else { return Ok(ContainerConfig::default()) };
    let mut config = image.config.config;
    if !own_path {
        // A build gives PATH to images that have none; an import says nothing of its own.
        config.env.retain(|entry| !entry.starts_with("PATH="));
    }
    Ok(config)
}

fn refused(span: crate::diagnostic::Span, name: &str) -> Diagnostic {
    let mut diagnostic = Diagnostic::error(span, format!("{name} is no instruction that an import can follow"));
    diagnostic.help.push(
        "these can: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR".into(),
    );
    diagnostic
}

fn is_allowed(instruction: &Instruction) -> bool {
    use InstructionKind as Kind;
    matches!(
        instruction.kind,
        Kind::Cmd(_)
            | Kind::Entrypoint(_)
            | Kind::Env(_)
            | Kind::Expose(_)
            | Kind::Healthcheck(_)
            | Kind::Label(_)
            | Kind::OnBuild(..)
            | Kind::StopSignal(_)
            | Kind::User(_)
            | Kind::Volume(_)
            | Kind::Workdir(_)
    )
}

fn sets_path(instruction: &Instruction) -> bool {
    matches!(&instruction.kind, InstructionKind::Env(pairs) if pairs.iter().any(|(name, _)| name.text == "PATH"))
}
