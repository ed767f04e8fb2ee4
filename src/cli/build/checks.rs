//! The build checks in a build: what is told before anything of it runs.
//!
//! In: the parsed Dockerfile, what the planner found, the context's ignore file. Out: warnings, or the failure that they
//! come with. What always holds: warnings stand before the error that ends a build.

use super::bring::Network;
use super::hints;
use super::input::{self, Dockerfile, Root};
use crate::cli::args::{BuildArgs, Progress};
use crate::cli::check;
use crate::cli::failure::Failure;
use crate::cli::render::Reporter;
use crate::cli::settings::Settings;
use crate::context::ignore::Patterns;
use crate::context::local::LocalContext;
use crate::diagnostic::{Diagnostic, Source};
use crate::dockerfile::{Parsed, lint};
use crate::plan::PlanOptions;
use crate::plan::step::Plan;

/// What there is to say about a Dockerfile before anything of it is built.
pub(super) struct Told<'a> {
    parsed: &'a Parsed,
    source: &'a Source,
    checks: lint::Checks<'a>,
    /// What the text alone gives.
    early: Vec<Diagnostic>,
}

impl<'a> Told<'a> {
    pub(super) fn new(parsed: &'a Parsed, source: &'a Source, options: &PlanOptions) -> Self {
        let (checks, mut early) = lint::Checks::new(parsed, check::given_settings(options));
        early.extend(parsed.diagnostics.iter().cloned());
        early.extend(lint::check_syntax(&parsed.nodes));
        Self { parsed, source, checks, early }
    }

    /// Whether the text alone is wrong.
    pub(super) fn has_errors(&self) -> bool {
        self.early.iter().any(Diagnostic::is_error)
    }

    /// Errors in `list` or before, after the warnings that there are.
    pub(super) fn failure(&self, list: Vec<Diagnostic>, built: Option<&[bool]>) -> Failure {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            self.early.iter().cloned().chain(list).partition(Diagnostic::is_error);
        let settled = self.checks.settle(warnings, built);
        let list = hints::compact(settled.warnings, self.source).into_iter().chain(errors).collect();
        Failure::Diagnostics { source: self.source.clone(), list }
    }

    /// The warnings of a build that can begin; an error where the file wants none.
    pub(super) fn warnings(
        &self,
        planned: Vec<Diagnostic>,
        more: Vec<Diagnostic>,
        built: &[bool],
    ) -> Result<Vec<Diagnostic>, Failure> {
        let hints = hints::almost_json(&self.parsed.dockerfile, self.source);
        let all = self.early.iter().cloned().chain(hints).chain(planned).chain(more).collect();
        let settled = self.checks.settle(all, Some(built));
        let mut list = hints::compact(settled.warnings, self.source);
        match settled.violation {
            None => Ok(list),
            Some(violation) => {
                list.push(violation);
                Err(Failure::Diagnostics { source: self.source.clone(), list })
            }
        }
    }
}

/// What the plan wants of the context, and the context leaves out.
pub(super) fn ignored(plan: &Plan, root: &Root, file: &Dockerfile) -> Result<Vec<Diagnostic>, Failure> {
    let Root::Folder(folder) = root else { return Ok(Vec::new()) };
    if !check::ignored::reads_context(plan) {
        return Ok(Vec::new());
    }
    let patterns = LocalContext::read_ignore_file(folder, file.path.as_deref());
    Ok(check::ignored::copy_ignored_file(plan, &patterns.map_err(anyhow::Error::from)?))
}

/// Reads the Dockerfile for `check`, which also gets the patterns of the context. What had to be brought for it is there as
/// long as it works, and goes then.
pub(in crate::cli) fn with_dockerfile<T>(
    args: &BuildArgs,
    settings: &Settings,
    check: impl FnOnce(&Source, &Patterns) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let network = Network::new(args, settings);
    let silent = Reporter::new(Progress::Quiet, false, settings);
    let mut session = None;
    let (file, root) = input::read(args, settings, &network, &silent, &mut session)?;
    let patterns = match &root {
        Root::Folder(folder) => {
            LocalContext::read_ignore_file(folder, file.path.as_deref()).map_err(anyhow::Error::from)?
        }
        _ => Patterns::default(),
    };
    check(&file.source, &patterns)
}
