//! CopyIgnoredFile: what COPY and ADD want from a context that leaves it out.
//!
//! In: a plan, and the patterns of the main context. Out: warnings. What always holds: with an exception (`!…`) among the
//! patterns nothing is said, as with Docker, since an excluded directory may then hold files that stay.

use crate::context::ignore::Patterns;
use crate::diagnostic::Diagnostic;
use crate::plan::step::{ContextId, CopyFrom, CopyOp, CopySource, Op, Plan, Step};

/// What is wanted and left out, once for each source.
pub(in crate::cli) fn copy_ignored_file(plan: &Plan, patterns: &Patterns) -> Vec<Diagnostic> {
    if patterns.has_exceptions() {
        return Vec::new();
    }
    let copies = plan.steps.iter().filter_map(|step| match &step.op {
        Op::Copy(op @ CopyOp { from: CopyFrom::Context(ContextId(0)), .. }) => Some((step, op)),
        _ => None,
    });
    copies.flat_map(|(step, op)| op.sources.iter().filter_map(|source| warning(step, source, patterns))).collect()
}

/// Whether the plan reads paths of the main context at all.
pub(in crate::cli) fn reads_context(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| match &step.op {
        Op::Copy(CopyOp { from: CopyFrom::Context(ContextId(0)), sources, .. }) => {
            sources.iter().any(|source| matches!(source, CopySource::Path(_)))
        }
        _ => false,
    })
}

fn warning(step: &Step, source: &CopySource, patterns: &Patterns) -> Option<Diagnostic> {
    let CopySource::Path(path) = source else { return None };
    let path = crate::context::glob::clean(path);
    let path = path.trim_start_matches('/');
    if path.is_empty() || path == "." {
        return None; // the root itself is never left out
    }
    let pattern = patterns.excluded_by(path.as_bytes())?;
    let instruction = step.name.split_once("] ").map_or("", |(_, name)| name.trim_start_matches("ONBUILD "));
    let command = if instruction.starts_with("ADD ") { "Add" } else { "Copy" };
    let message = format!("Attempting to {command} file {path:?} that is excluded by .dockerignore");
    let why = format!("it is excluded by line {} of {}: {:?}", pattern.line, patterns.file, pattern.text);
    Some(Diagnostic::warning(step.span, "CopyIgnoredFile", message).help(why))
}
