//! The build checks that take the values of variables, the stages, or the bases.
//!
//! In: what the planner knows where it meets an instruction. Out: warnings. What always holds: one function per rule, no
//! rule changes the plan. Of a base that is not there nothing is assumed but that it sets no SHELL: the rules that ask
//! more of it are left out, and [`NEED_BASE`] names them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::diagnostic::{Diagnostic, Span, nearest};
use crate::dockerfile::ast::{Dockerfile, Escape, Instruction, Stage, Word};
use crate::dockerfile::word;
use crate::image::platform::Platform;
use crate::image::reference::Reference;

use super::PlanOptions;
use super::scope::{Variables, global_arguments, is_directive};

/// The rules that are left out where a base is absent.
pub const NEED_BASE: [&str; 2] = ["UndefinedVar", "InvalidBaseImagePlatform"];

/// So many names are compared with one that nobody sets: a file with more has other troubles.
const NEAR: usize = 200;

/// A word with tokens like these names a secret.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// … unless it has one of these as well.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// InvalidDefaultArgInFrom: without a single build argument every FROM should name something.
pub(super) fn default_images(dockerfile: &Dockerfile, options: &PlanOptions, target: &str) -> Vec<Diagnostic> {
    let bare = PlanOptions { build_args: Vec::new(), ..options.clone() };
    let (globals, errors) = global_arguments(&dockerfile.global_args, dockerfile.escape, &bare, target);
    if !errors.is_empty() {
        return Vec::new(); // told elsewhere
    }
    let is_bad = |stage: &&Stage| match globals.expand(&stage.image.text, dockerfile.escape) {
        Ok(expanded) => Reference::parse(&expanded.text).is_err(),
        Err(_) => false,
    };
    let warn = |stage: &Stage| {
        let image = &stage.image;
        let message = format!("Default value for ARG {} results in empty or invalid base image name", image.text);
        Diagnostic::warning(image.span, "InvalidDefaultArgInFrom", message)
    };
    dockerfile.stages.iter().filter(is_bad).map(warn).collect()
}

/// RedundantTargetPlatform and FromPlatformFlagConstDisallowed.
pub(super) fn platform_flag(stage: &Stage, globals: &Variables, escape: Escape) -> Option<Diagnostic> {
    let flag = stage.platform.as_ref()?;
    let used = RefCell::new(BTreeSet::new());
    let lookup = |name: &str| {
        used.borrow_mut().insert(name.to_owned());
        globals.get(name).map(str::to_owned)
    };
    let expanded = word::expand(&flag.text, escape, &lookup).ok()?;
    let used = used.into_inner();
    if used.is_empty() {
        return constant_platform(stage, flag, &expanded.text);
    }
    let only_target = used.len() == 1 && used.contains("TARGETPLATFORM");
    (only_target && globals.get("TARGETPLATFORM") == Some(&expanded.text)).then(|| {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            flag.text
        );
        Diagnostic::warning(flag.span, "RedundantTargetPlatform", message)
    })
}

/// FromPlatformFlagConstDisallowed: a constant is fine in a stage whose name tells of it.
fn constant_platform(stage: &Stage, flag: &Word, text: &str) -> Option<Diagnostic> {
    let platform = Platform::parse(text, &Platform::new("linux", "amd64", "")).ok()?;
    let name = stage.name.as_ref().map_or("", |name| name.text.as_str());
    if name.contains(&platform.os) || name.contains(&platform.architecture) {
        return None;
    }
    let message = format!("FROM --platform flag should not use constant value {text:?}");
    Some(Diagnostic::warning(flag.span, "FromPlatformFlagConstDisallowed", message))
}

/// SecretsUsedInArgOrEnv, of the name of a variable.
pub(super) fn secret(keyword: &str, name: &Word, expanded: &str) -> Option<Diagnostic> {
    let has =
        |tokens: &[&str]| expanded.split('_').any(|part| tokens.iter().any(|token| token.eq_ignore_ascii_case(part)));
    (has(&SECRET) && !has(&NO_SECRET)).then(|| {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {expanded:?})");
        Diagnostic::warning(name.span, "SecretsUsedInArgOrEnv", message)
    })
}

/// JSONArgsRecommended, of a CMD or ENTRYPOINT in shell form where nothing set a SHELL.
pub(super) fn shell_form(instruction: &Instruction) -> Diagnostic {
    let keyword = instruction.text.split_whitespace().next().unwrap_or_default();
    let message =
        format!("JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals");
    Diagnostic::warning(instruction.span, "JSONArgsRecommended", message)
}

/// WorkdirRelativePath, of the first WORKDIR of a stage and of those that it builds on.
pub(super) fn first_workdir(word: &Word, path: &str) -> Option<Diagnostic> {
    (!path.starts_with('/')).then(|| {
        let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
        Diagnostic::warning(word.span, "WorkdirRelativePath", message)
    })
}

/// ExposeProtoCasing and ExposeInvalidFormat, of one word after expansion.
pub(super) fn exposed(word: &Word, port: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let protocol = port.rsplit_once(':').map_or(port, |(_, port)| port).split_once('/').map_or("", |(_, it)| it);
    if protocol.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        found.push(Diagnostic::warning(word.span, "ExposeProtoCasing", message));
    }
    if port.rsplit_once(':').is_some_and(|(host, _)| host.bytes().any(|byte| byte != b':')) {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
        found.push(Diagnostic::warning(word.span, "ExposeInvalidFormat", message));
    }
    found
}

/// UndefinedVar.
pub(super) fn undefined(span: Span, name: &str, variables: &Variables) -> Option<Diagnostic> {
    if is_directive(name) {
        return None;
    }
    let near = nearest(name, variables.names().take(NEAR));
    let hint = near.map_or(String::new(), |near| format!(" (did you mean ${near}?)"));
    let message = format!("Usage of undefined variable '${name}'{hint}");
    Some(Diagnostic::warning(span, "UndefinedVar", message))
}
