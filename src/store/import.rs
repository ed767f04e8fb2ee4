//! `rbuild import`: the tar of a root file system becomes an image of one layer.
//!
//! In: a tar, plain or compressed, and what the image's config shall say. Out: the image in the store, without a name.
//! What always holds: the layer is the tar's uncompressed bytes as they are, so its diffID is their SHA-256; the same
//! tar, time and options give the same image id.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::sync::Arc;

use super::base::{put_image, record};
use super::images::ImageRecord;
use super::intake::{IntakeError, take_in};
use super::layers::Form;
use super::lease::Lease;
use super::{Store, StoreError};
use crate::diagnostic::{Diagnostic, Source};
use crate::dockerfile::ast::{Instruction, InstructionKind};
use crate::image::config::{ContainerConfig, History, ImageConfig};
use crate::image::manifest::{Descriptor, Encoding, Family};
use crate::image::platform::Platform;
use crate::layer::compress;
use crate::layer::index::At;
use crate::layer::scan::ScanError;
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
    let mut plain = compress::decompress(tar).map_err(|error| failed(error.into()))?;
    let mut keep = BufWriter::with_capacity(1 << 20, file);
    let index = take_in(&mut *plain, &mut keep, false).map_err(|error| match error {
        IntakeError::Read(error) => failed(error.into()),
        IntakeError::Keep(error) => StoreError::io("write", &path)(error).into(),
        IntakeError::Scan(error) => failed(error),
    })?;
    drop((plain, keep));
    if index.tar_size() == 0 {
        return Err(ImportError::Empty { place: place.to_owned() });
    }
    let holds = |path: &[u8]| index.place(path).at != At::Absent;
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
    let nothing = Arc::new(BaseImage::nothing("imported", platform));
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
        "these can: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR"
            .into(),
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layer::compress::{Compression, Encoder};

    const CREATED: &str = "2020-01-01T00:00:00Z";

    fn tar_of(files: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, name.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn imported(tar: &[u8], changes: &[&str]) -> Result<(ImageRecord, ImageConfig, usize), ImportError> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let options = ImportOptions {
            changes: changes.iter().map(|change| (*change).to_owned()).collect(),
            message: None,
            platform: Platform::new("linux", "arm", "v7"),
            created: CREATED.to_owned(),
        };
        let record = import(&store, &lease, Box::new(tar), "root.tar", &options)?;
        let base = crate::store::base::base_image(&store, &record)?;
        let mut kept = Vec::new();
        store.write_tar(&base.config.rootfs.diff_ids[0], &mut kept)?;
        Ok((record, base.config, kept.len()))
    }

    #[test]
    fn the_bytes_of_the_tar_are_the_layer() {
        let mut tar = tar_of(&["etc/hostname", "bin/sh"]);
        // Bytes after the end of the archive count too.
        tar.extend_from_slice(b"garbage");
        let encoded = |compression| {
            let mut encoder = Encoder::new(Vec::new(), compression);
            encoder.write_all(&tar).unwrap();
            encoder.finish().unwrap()
        };
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar).unwrap();
        let (plain, config, kept) = imported(&tar, &[]).unwrap();
        assert_eq!(kept, tar.len());
        assert_eq!(config.rootfs.diff_ids, [crate::digest::DiffId(crate::digest::Digest::of(&tar))]);
        assert_eq!(
            (config.os.as_str(), config.architecture.as_str(), config.variant.as_deref()),
            ("linux", "arm", Some("v7"))
        );
        assert_eq!((config.created.as_deref(), plain.size), (Some(CREATED), 18));
        assert_eq!((config.history.len(), config.history[0].comment.as_str()), (1, "Imported from -"));
        for packed in [encoded(Compression::GZIP), encoded(Compression::ZSTD), bzip2.finish().unwrap()] {
            assert_eq!(imported(&packed, &[]).unwrap().0, plain);
        }
    }

    #[test]
    fn instructions_make_the_config() {
        let tar = tar_of(&["f"]);
        let config = |changes: &[&str]| imported(&tar, changes).unwrap().1.config;
        assert_eq!(config(&[]), ContainerConfig::default());
        let found = config(&[
            "ENV A=1 B=\"$A 2\"",
            "cmd [\"sh\", \"-c\"]\nEXPOSE 80",
            "WORKDIR /w",
            "LABEL a=b",
            "USER u",
            "VOLUME /v",
            "STOPSIGNAL SIGQUIT",
            "ENTRYPOINT e",
            "HEALTHCHECK NONE",
            "ONBUILD RUN x",
        ]);
        assert_eq!(found.env, ["A=1", "B= 2"]);
        assert_eq!(found.entrypoint, ["/bin/sh", "-c", "e"]);
        assert_eq!(
            (found.working_dir.as_str(), found.user.as_str(), found.stop_signal.as_str()),
            ("/w", "u", "SIGQUIT")
        );
        assert_eq!(found.on_build, ["RUN x"]);
        assert!(found.exposed_ports.contains("80/tcp") && found.volumes.contains("/v"));
        assert_eq!(found.labels["a"], "b");
        assert_eq!(config(&["ENV PATH=/x"]).env, ["PATH=/x"]);
    }

    #[test]
    fn mistakes_are_told() {
        let tar = tar_of(&["f"]);
        for (changes, expected, at) in [
            (&["RUN x"][..], "RUN is no instruction", "RUN x"),
            (&["CMD x", "FROM y"], "FROM is no instruction", "FROM y"),
            (&["COPY a b"], "COPY is no instruction", "COPY a b"),
            (&["CMDX y"], "CMDX", "CMDX"),
            (&["ENV"], "ENV", "ENV"),
            (&["EXPOSE x"], "x", "x"),
        ] {
            let Err(ImportError::Changes { source_text, diagnostics }) = imported(&tar, changes) else {
                panic!("{changes:?} is taken");
            };
            assert!(diagnostics[0].message.contains(expected), "{changes:?}: {}", diagnostics[0].message);
            let span = diagnostics[0].span.unwrap();
            assert_eq!(&source_text.text[span.start..span.end], at, "{changes:?}");
        }
        for (bytes, expected) in [
            (&b""[..], "it is empty"),
            (&tar[..700], "cannot import root.tar"),
            (b"no tar at all", "cannot import root.tar"),
            (b"\x1f\x8b\x08", "cannot import root.tar"),
            (&tar_of(&["manifest.json", "abc.json"]), "use `rbuild load`"),
            (&tar_of(&["oci-layout", "index.json"]), "use `rbuild load`"),
        ] {
            let error = imported(bytes, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        imported(&tar_of(&["etc/x", "manifest.json"]), &[]).unwrap();
    }
}
