//! `--verify-reproducible`: builds twice with nothing in the cache, and says where the results differ.
//!
//! In: a plan. Out: a report on standard output; exit status 1 where the results differ. What always holds: each build
//! has a store of its own, with empty caches and cache mounts, and the layers of the bases alone; they are two seconds
//! apart and have different `--jobs`; neither store outlives the command, and the user's store gets no image.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::Deserialize;

use super::{Ended, Job};
use crate::cli::args::BuildArgs;
use crate::cli::diff::layer_files;
use crate::cli::failure::Failure;
use crate::cli::find;
use crate::cli::render::Reporter;
use crate::cli::render::diagnostic::Look;
use crate::cli::stdout::stdout;
use crate::digest::{ContentDigest, DiffId};
use crate::layer::compare::Aspect;
use crate::store::lease::Lease;
use crate::store::sweep::Swept;
use crate::store::{Store, StoreError};
use crate::sys::process::{self, Forked};

/// So that times in whole seconds (or, as in zip archives, in two) differ.
const APART: Duration = Duration::from_millis(2100);

/// Files of the step that are told.
const MOST_FILES: usize = 100;

/// What a build leaves for the comparison: part of the document of `--metadata-file`.
#[derive(Debug, Deserialize)]
struct Results {
    #[serde(rename = "rbuild.image")]
    image: String,
    #[serde(rename = "rbuild.content.digest", default)]
    content: Option<String>,
    #[serde(rename = "rbuild.steps")]
    steps: Vec<StepResult>,
}

#[derive(Debug, Deserialize)]
struct StepResult {
    name: String,
    layer: DiffId,
    content: ContentDigest,
}

/// Builds twice and compares.
pub(super) fn run(job: &Job<'_>) -> Result<ExitCode, Failure> {
    if !job.args.tags.is_empty() || !job.args.outputs.is_empty() {
        let note =
            "note: --verify-reproducible compares two builds and keeps neither; names and outputs are left out\n";
        std::io::stderr().write_all(note.as_bytes())?;
    }
    let most = job.settings.cpus.get().max(2);
    let mut builds = Vec::new();
    for (name, jobs) in [("first", 1), ("second", most)] {
        if !builds.is_empty() {
            std::thread::sleep(APART);
        }
        let title = format!("--- the {name} build, with --jobs {jobs}\n");
        std::io::stderr().write_all(title.as_bytes())?;
        builds.push(build(job, name, jobs));
        if builds.last().is_some_and(Result::is_err) || job.cancel.is_canceled() {
            break;
        }
    }
    // What mapped ids own can be read and removed only by those who have the ids; from here on nothing is forked.
    if ["first", "second"].iter().any(|name| folder(job, name).join("trees.format").exists()) {
        find::enter_ids(job.settings)?;
    }
    if let Some(signal) = job.cancel.signal() {
        return Err(Failure::Interrupted(signal));
    }
    let builds = builds.into_iter().collect::<Result<Vec<_>, _>>()?;
    let [a, b] = builds.as_slice() else { return Err(Failure::Error(anyhow!("one of the builds is missing"))) };
    compare(job, a, b)
}

fn folder(job: &Job<'_>, name: &str) -> PathBuf {
    job.lease.folder().join(format!("{name}-build"))
}

/// One build, in a process of its own: it may enter namespaces, and the next one must not be in them.
fn build(job: &Job<'_>, name: &str, jobs: usize) -> Result<Results, Failure> {
    let root = folder(job, name);
    let results = job.lease.folder().join(format!("{name}-results"));
    new_store(job, &root).map_err(anyhow::Error::from)?;
    let parent = rustix::process::getpid();
    match process::fork().context("cannot start a build")? {
        Forked::Child => {
            // The parent's values live on there: nothing of them may be dropped here, so the child ends at once.
            let code = match child(job, &root, &results, jobs, parent) {
                Ok(()) => 0,
                // The parent says it.
                Err(failure @ Failure::Interrupted(_)) => i32::from(failure.status()),
                Err(failure) => {
                    let look = Look { color: job.settings.color(), width: job.settings.width() };
                    let _ = std::io::stderr().write_all(failure.text(look).as_bytes());
                    i32::from(failure.status())
                }
            };
            process::end(code)
        }
        Forked::Parent(child) => match wait(job, child)? {
            0 => {
                let bytes = fs::read(&results).with_context(|| format!("cannot read {}", results.display()))?;
                Ok(serde_json::from_slice(&bytes).context("the results of a build cannot be read")?)
            }
            _ => Err(Failure::Error(anyhow!("the {name} build failed, so there is nothing to compare"))),
        },
    }
}

/// A store with the layers of the bases and nothing else. They are links: what steps read of them is the same for all.
fn new_store(job: &Job<'_>, root: &Path) -> Result<(), StoreError> {
    let store = Store::open(root)?;
    let link = |name: String| {
        let (from, to) = (job.store.path(&name), store.path(&name));
        match symlink(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(StoreError::io("link", &to)(error)),
            _ => Ok(()),
        }
    };
    for base in job.bases {
        for (layer, listed) in base.config.rootfs.diff_ids.iter().zip(&base.layers) {
            if job.store.has_layer(layer) {
                link(format!("layers/{}", layer.0.hex()))?;
            }
            let known = job.store.layer_blobs(layer)?;
            for blob in known.iter().map(|blob| &blob.digest).chain([&listed.digest]) {
                if job.store.has_blob(blob) {
                    link(format!("blobs/sha256/{}", blob.hex()))?;
                }
            }
        }
    }
    let format = job.store.path("trees.format");
    if format.exists() {
        let copy = store.path("trees.format");
        fs::copy(&format, &copy).map_err(StoreError::io("write", &copy))?;
    }
    Ok(())
}

fn child(job: &Job<'_>, root: &Path, results: &Path, jobs: usize, parent: Pid) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("cannot watch the parent process")?;
    if rustix::process::getppid() != Some(parent) {
        return Err(Failure::Interrupted(Signal::TERM.as_raw()));
    }
    job.cancel.own_after_fork().context("cannot prepare for signals")?;
    let store = Store::open(root).map_err(anyhow::Error::from)?;
    let mut lease = store.lease(&find::boot_id()?).map_err(anyhow::Error::from)?;
    lease.heed(job.cancel);
    let args = BuildArgs {
        tags: Vec::new(),
        outputs: Vec::new(),
        iidfile: None,
        metadata_file: None,
        explain: false,
        jobs: jobs.try_into().unwrap_or(job.args.jobs),
        verify_reproducible: false,
        ..job.args.clone()
    };
    let reporter = Reporter::new(args.progress, false, job.settings);
    reporter.set_source(job.file.source.clone());
    let job = Job { args: &args, store: &store, lease: &lease, reporter: &reporter, ..*job };
    let result = job.carry_out(SystemTime::now(), &Swept::default());
    let built = match &result {
        Ok(Ended::Built(report)) => Some(report.built()),
        _ => None,
    };
    reporter.finish(built.as_ref());
    match (result, job.cancel.signal()) {
        // Refused before.
        (Ok(Ended::Shell(_)), _) => Ok(()),
        (Ok(Ended::Built(report)), _) => {
            let text = report.metadata().to_string();
            Ok(fs::write(results, text).with_context(|| format!("cannot write {}", results.display()))?)
        }
        (Err(_), Some(signal)) => Err(Failure::Interrupted(signal)),
        (Err(failure), None) => Err(failure),
    }
}

/// Waits for the child; a wish to stop is handed on. Its exit status.
fn wait(job: &Job<'_>, child: Pid) -> Result<i32, Failure> {
    let mut told = false;
    loop {
        let status = rustix::process::waitpid(Some(child), WaitOptions::NOHANG);
        match status {
            Ok(Some((_, status))) => return Ok(status.exit_status().unwrap_or(1)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::Error(anyhow!(error).context("cannot wait for a build"))),
        }
        if job.cancel.is_canceled() && !told {
            // It may have had the signal itself, as part of the terminal's group: a second one would end it at once.
            std::thread::sleep(Duration::from_millis(200));
            told = true;
            if matches!(rustix::process::waitpid(Some(child), WaitOptions::NOHANG), Ok(None)) {
                let _ = rustix::process::kill_process(child, Signal::TERM);
            } else {
                return Ok(1);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn compare(job: &Job<'_>, a: &Results, b: &Results) -> Result<ExitCode, Failure> {
    let mut out = stdout();
    let differing: Vec<usize> =
        (0..a.steps.len().min(b.steps.len())).filter(|step| a.steps[*step].content != b.steps[*step].content).collect();
    let Some(first) = differing.first() else {
        if job.epoch().is_some() && a.image != b.image {
            writeln!(out, "not reproducible: no step differs, but the images are {} and {}", a.image, b.image)?;
            return Ok(ExitCode::from(1));
        }
        writeln!(out, "reproducible: two builds gave the same files in each of {} steps", a.steps.len())?;
        if let Some(content) = &a.content {
            writeln!(out, "content {content}")?;
        }
        if job.epoch().is_some() {
            writeln!(out, "image {}", a.image)?;
        } else {
            writeln!(
                out,
                "Times are not compared; with SOURCE_DATE_EPOCH or --timestamp the image id is the same too."
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (x, y) = (&a.steps[*first], &b.steps[*first]);
    let line = job.file.source.text[..job.plan.steps[*first].span.start].matches('\n').count() + 1;
    writeln!(out, "not reproducible: two builds gave different files")?;
    writeln!(out, "The first step that differs is {} ({}, line {line})", x.name, job.file.source.name)?;
    let boot = find::boot_id()?;
    let open = |name: &str| -> Result<(Store, Lease), Failure> {
        let store = Store::open(&folder(job, name)).map_err(anyhow::Error::from)?;
        let lease = store.lease(&boot).map_err(anyhow::Error::from)?;
        Ok((store, lease))
    };
    let ((store_a, lease_a), (store_b, lease_b)) = (open("first")?, open("second")?);
    let mut files = layer_files(0, (&store_a, &lease_a, &x.layer), (&store_b, &lease_b, &y.layer))?;
    for file in &mut files {
        file.aspects.retain(|aspect| *aspect != Aspect::Time);
    }
    files.retain(|file| !file.aspects.is_empty() || file.a.is_none() || file.b.is_none());
    for file in files.iter().take(MOST_FILES) {
        writeln!(out, "  {}", file.line())?;
        if let Some(cause) = &file.cause {
            writeln!(out, "     {}; others mend it so: {}", cause.what, cause.remedy)?;
        }
    }
    if files.len() > MOST_FILES {
        writeln!(out, "  and {} more", files.len() - MOST_FILES)?;
    }
    if differing.len() > 1 {
        writeln!(out, "Later steps differ too, which may follow from it: {}", differing.len() - 1)?;
    }
    Ok(ExitCode::from(1))
}
