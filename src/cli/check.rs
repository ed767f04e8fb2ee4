//! `rbuild --check`: what the build checks say, and nothing is built.
//!
//! In: [`BuildArgs`], [`Settings`]. Out: a report on standard output, exit status 1 where it says anything (if that was
//! not given up). What always holds: no network, nothing is written, not even an empty store; an image that is not in the store is no error, but
//! the rules that would need it are named as left out.

pub(in crate::cli) mod ignored;
pub(in crate::cli) mod report;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use super::args::{BuildArgs, Call, NamedContext, ReportForm};
use super::build;
use super::failure::Failure;
use super::render::diagnostic::Look;
use super::settings::Settings;
use super::stdout::stdout;
use crate::context::ignore::Patterns;
use crate::diagnostic::{Diagnostic, Source};
use crate::dockerfile::lint::{self, Checks};
use crate::dockerfile::{self, Parsed};
use crate::image::reference::Reference;
use crate::plan::limits::Allowed;
use crate::plan::step::Plan;
use crate::plan::{self, BaseRequest, Bases, Outcome, PlanOptions, Resolved};
use crate::store::{Store, base};

/// Checks.
pub(super) fn run(args: &BuildArgs, call: Call, settings: &Settings) -> Result<ExitCode, Failure> {
    build::with_dockerfile(args, settings, |source, patterns| check(args, call, settings, source, patterns))
}

fn check(
    args: &BuildArgs,
    call: Call,
    settings: &Settings,
    source: &Source,
    patterns: &Patterns,
) -> Result<ExitCode, Failure> {
    let parsed = dockerfile::parse(source);
    let options = PlanOptions { all_stages: args.target.is_none(), ..options(args, settings)? };
    let store = existing_store(settings)?;
    let findings = findings(&parsed, &options, patterns, &mut |request| resolve(request, args, store.as_ref()));
    let text = match call.form {
        ReportForm::Text => report::text(&findings, source),
        ReportForm::Json => report::json(&findings, source),
        ReportForm::Sarif => report::sarif(&findings, source),
    };
    stdout().write_all(text.as_bytes())?;
    if !findings.absent.is_empty() {
        let line = format!("{}\n", report::left_out(&findings));
        // Standard error that is gone does not change what was found.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
    if !findings.errors.is_empty() {
        let failure = Failure::Diagnostics { source: source.clone(), list: findings.errors };
        if !call.ignore_status {
            return Err(failure);
        }
        let text = failure.text(Look { color: settings.color(), width: settings.width() });
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
    let good = findings.warnings.is_empty() || call.ignore_status;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What decides the plan of a file that is not built.
pub(super) fn options(args: &BuildArgs, settings: &Settings) -> Result<PlanOptions, Failure> {
    Ok(PlanOptions {
        // What a build may do is no question of the file.
        allowed: Allowed { network_host: true, security_insecure: true },
        ..build::plan_options(args, settings)?
    })
}

/// All that the checks say about a file.
#[derive(Debug, Default)]
pub struct Findings {
    /// In the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// What a build would end with.
    pub errors: Vec<Diagnostic>,
    /// The images that are not here, so that [`plan::lint::NEED_BASE`] was not asked of the stages on them.
    pub absent: Vec<String>,
}

/// Asks all checks. `resolve` finds images and named contexts.
pub fn findings(
    parsed: &Parsed,
    options: &PlanOptions,
    patterns: &Patterns,
    resolve: &mut dyn FnMut(&BaseRequest) -> Resolved,
) -> Findings {
    let (checks, mut found) = Checks::new(parsed, given_settings(options));
    found.extend(parsed.diagnostics.iter().cloned());
    found.extend(lint::check_syntax(&parsed.nodes));
    let mut absent = Vec::new();
    let mut built = None;
    if !found.iter().any(Diagnostic::is_error) {
        match plan::graph(&parsed.dockerfile, options) {
            Err(list) => found.extend(list),
            Ok(graph) => {
                built = Some(graph.needed());
                match planned(&graph, options, resolve, &mut absent) {
                    Ok((plan, list)) => {
                        found.extend(list);
                        found.extend(ignored::copy_ignored_file(&plan, patterns));
                    }
                    Err(list) => found.extend(list),
                }
            }
        }
    }
    let (mut errors, warnings): (Vec<_>, Vec<_>) = found.into_iter().partition(Diagnostic::is_error);
    let settled = checks.settle(warnings, built.as_deref());
    if errors.is_empty() {
        errors.extend(settled.violation);
    }
    Findings { warnings: settled.warnings, errors, absent }
}

/// The value of the build argument that overrides `# check=`.
pub(super) fn given_settings(options: &PlanOptions) -> Option<&str> {
    let given = options.build_args.iter().rev().find(|(name, _)| name == lint::settings::OVERRIDE);
    given.map(|(_, value)| value.as_str())
}

/// Plans with what `resolve` finds. Its warnings, or all that planning says where there is no plan; what was missing is
/// added to `absent`.
pub(super) fn planned(
    graph: &plan::StageGraph,
    options: &PlanOptions,
    resolve: &mut dyn FnMut(&BaseRequest) -> Resolved,
    absent: &mut Vec<String>,
) -> Result<(Plan, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut bases = Bases::new();
    let mut requests = plan::base_requests(graph, options);
    loop {
        for request in requests {
            let resolved = resolve(&request);
            if matches!(resolved, Resolved::Absent) {
                absent.push(Reference::parse(&request.name).map_or(request.name.clone(), |name| name.familiar()));
            }
            bases.insert((request.name, request.platform.to_string()), resolved);
        }
        match plan::plan(graph, &bases, options)? {
            Outcome::NeedBases(more) => requests = more,
            Outcome::Planned(plan, found) => return Ok((plan, found)),
        }
    }
}

/// The store, if there is one.
pub(super) fn existing_store(settings: &Settings) -> Result<Option<Store>, Failure> {
    let root = settings.store_root().map_err(anyhow::Error::from)?;
    if !root.join("format").exists() {
        return Ok(None);
    }
    Ok(Some(Store::open(&root).map_err(anyhow::Error::from)?))
}

/// What is here under a name.
pub(super) fn resolve(request: &BaseRequest, args: &BuildArgs, store: Option<&Store>) -> Resolved {
    let mut name = request.name.clone();
    if request.context {
        // The last of one name counts, as with other repeated flags.
        match args.build_contexts.iter().rfind(|(known, _)| *known == request.name) {
            Some((_, NamedContext::Directory(_))) => return Resolved::Context,
            Some((_, NamedContext::Image(image))) => name.clone_from(image),
            _ => return Resolved::Absent,
        }
    }
    local_image(&name, store).unwrap_or(Resolved::Absent)
}

fn local_image(name: &str, store: Option<&Store>) -> Option<Resolved> {
    let store = store?;
    let name = Reference::parse(name).ok()?;
    let digest = name.digest();
    let full = name.to_string();
    let images = store.images().ok()?;
    let record = images.iter().find(|image| match digest {
        Some(digest) => image.manifest == digest,
        None => image.names.contains(&full),
    })?;
    Some(Resolved::Image(Arc::new(base::base_image(store, record).ok()?)))
}
