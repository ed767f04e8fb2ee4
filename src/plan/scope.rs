//! ARG and ENV: which variable has which value where.
//!
//! In: build arguments, the machine's and the target's platform, the ARG instructions before the first FROM. Out:
//! [`Variables`], in which words are expanded. What always holds: a build argument beats the default in the
//! Dockerfile, which is then not even expanded; nothing is read from the environment.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Span, nearest};
use crate::dockerfile::ast::{ArgDeclaration, Escape, Instruction, InstructionKind};
use crate::dockerfile::word;

use super::PlanOptions;

/// The ARG that fixes the times of an image.
pub const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The most bytes that the ARGs before the first FROM may have: variables in them can double a value line by line.
const MOST_GLOBAL: usize = 8 << 20;

/// The search path of images that set none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The predefined proxy arguments, as RUN sees them without ARG; each in lower case too.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Arguments that mean something to BuildKit, or to scripts that were written for it: given without ARG they are no
/// mistake.
const CONTROLS: [&str; 11] = [
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    INLINE_CACHE,
    MULTI_PLATFORM,
    HOSTNAME,
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    SYNTAX,
    SOURCE_DATE_EPOCH,
];

/// The argument that names the host which RUN sees.
const HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// The argument that makes the result an index whatever the platforms.
pub(super) const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";

/// The argument that puts the cache into the image.
const INLINE_CACHE: &str = "BUILDKIT_INLINE_CACHE";

/// The argument that names another frontend.
const SYNTAX: &str = "BUILDKIT_SYNTAX";

/// A yes or a no, in the spellings of Go's `strconv.ParseBool`, which is what Docker's flags and arguments take.
pub fn yes_no(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Variables in the order of their first appearance.
///
/// A stage that builds on another begins with a copy of them, each RUN takes the whole list, and a file may set
/// thousands: so a name is found through an index, and copies share what neither has changed.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    entries: Arc<Vec<(String, String)>>,
    /// Where each name stands.
    index: Arc<HashMap<String, usize>>,
}

impl PartialEq for Variables {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries // the index follows from them
    }
}

impl Eq for Variables {}

impl Variables {
    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.entries[*at].1.as_str())
    }

    /// Sets `name`, in its place or at the end.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.index.get(name) {
            Some(at) if self.entries[*at].1 == value => {}
            Some(at) => value.clone_into(&mut Arc::make_mut(&mut self.entries)[*at].1),
            None => {
                Arc::make_mut(&mut self.index).insert(name.to_owned(), self.entries.len());
                Arc::make_mut(&mut self.entries).push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// `NAME=value`, in order.
    pub fn entries(&self) -> Vec<String> {
        self.entries.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Expands a word in it: the text, and the variables that are not set.
    pub fn expand(&self, text: &str, escape: Escape) -> Result<word::Expanded, word::WordError> {
        word::expand(text, escape, &|name| self.get(name).map(str::to_owned))
    }
}

impl PlanOptions {
    /// The value of an argument by `--build-arg`, by the epoch, or by the proxy settings; the last of several counts.
    pub(super) fn argument(&self, name: &str) -> Option<String> {
        if name == SOURCE_DATE_EPOCH {
            // Given as nothing, it hides a default of the Dockerfile all the same.
            let given = self.build_args.iter().rev().find(|(given, _)| given == SOURCE_DATE_EPOCH);
            let empty = || given.filter(|(_, value)| value.is_empty()).map(|_| String::new());
            return self.epoch.map(|epoch| epoch.to_string()).or_else(empty);
        }
        let find = |list: &[(String, String)]| list.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.clone());
        find(&self.build_args).or_else(|| if is_proxy(name) { find(&self.proxy_env) } else { None })
    }

    /// The name of the host that RUN sees.
    pub(super) fn sandbox_hostname(&self) -> Option<String> {
        self.argument(HOSTNAME).filter(|name| !name.is_empty()).or_else(|| self.hostname.clone())
    }

    /// What there is to say of arguments that tell the builder something.
    pub(super) fn check_controls(&self) -> Vec<Diagnostic> {
        let mut list = Vec::new();
        let mut say = |mut diagnostic: Diagnostic, help: &str| {
            diagnostic.span = None;
            list.push(diagnostic.help(help));
        };
        let given = |name| self.argument(name).filter(|value| !value.is_empty());
        if let Some(value) = given(INLINE_CACHE).filter(|value| yes_no(value) != Some(false)) {
            let message = format!("not supported yet: --build-arg {INLINE_CACHE}={value}, a cache inside of the image");
            say(
                Diagnostic::error(Span::default(), message),
                "leave it out; layers that are in the store are found again",
            );
        }
        if let Some(value) = given(SYNTAX).filter(|value| !is_own_syntax(value)) {
            let message = format!("--build-arg {SYNTAX}={value} names a frontend that rbuild does not run");
            let help = "the Dockerfile is read as docker/dockerfile:1 would read it";
            say(Diagnostic::warning(Span::default(), "UnknownSyntax", message), help);
        }
        list
    }

    /// The proxy arguments that were given, in both spellings as programs look for either: what RUN gets beside the
    /// variables of `declared`.
    pub(super) fn undeclared_proxies(&self, declared: &Variables) -> Vec<String> {
        let mut list = Vec::new();
        for upper in PROXIES {
            let lower = upper.to_ascii_lowercase();
            let value = self.argument(upper).or_else(|| self.argument(&lower)).filter(|value| !value.is_empty());
            for name in [upper, &lower] {
                if let (Some(value), None) = (&value, declared.get(name)) {
                    list.push(format!("{name}={value}"));
                }
            }
        }
        list
    }

    /// What to warn of: build arguments that no ARG declares.
    pub(super) fn unused_arguments(&self, declared: &BTreeSet<String>) -> Vec<Diagnostic> {
        let known = |name: &str| declared.contains(name) || is_predefined(name);
        let unused: BTreeSet<&str> =
            self.build_args.iter().map(|(name, _)| name.as_str()).filter(|name| !known(name)).collect();
        let warn = |name: &str| {
            let mut warning = Diagnostic::warning(
                Span::default(),
                "UnusedBuildArg",
                format!("build argument {name} is not used: no ARG declares it"),
            );
            warning.span = None;
            match nearest(name, declared.iter().map(String::as_str)) {
                Some(near) => warning.help(format!("did you mean {near}?")),
                None => warning,
            }
        };
        unused.into_iter().map(warn).collect()
    }
}

/// Whether a frontend is the one whose language rbuild reads.
fn is_own_syntax(reference: &str) -> bool {
    let name = reference.split_whitespace().next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    ["docker/dockerfile", "docker/dockerfile-upstream", "dockerfile.v0"]
        .iter()
        .any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@'])))
}

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

fn is_predefined(name: &str) -> bool {
    is_proxy(name) || CONTROLS.contains(&name) || platform_arguments(&PlanOptions::default(), "").get(name).is_some()
}

/// Whether an ARG of this name stays out of the environment: it tells the builder something.
pub(super) fn is_directive(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// The arguments that are there without being given: platforms and the name of the target.
pub(super) fn platform_arguments(options: &PlanOptions, target: &str) -> Variables {
    let mut variables = Variables::default();
    for (prefix, platform) in [("BUILD", &options.build_platform), ("TARGET", options.platform())] {
        for (suffix, value) in [
            ("PLATFORM", platform.to_string().as_str()),
            ("OS", &platform.os),
            ("OSVERSION", &platform.os_version),
            ("ARCH", &platform.architecture),
            ("VARIANT", &platform.variant),
        ] {
            let name = format!("{prefix}{suffix}");
            let value = options.argument(&name).unwrap_or_else(|| value.to_owned());
            variables.set(&name, &value);
        }
    }
    let stage = if target.is_empty() { "default" } else { target };
    variables.set("TARGETSTAGE", &options.argument("TARGETSTAGE").unwrap_or_else(|| stage.to_owned()));
    variables
}

/// The values of the ARGs before the first FROM, and what is wrong with them.
pub(super) fn global_arguments(
    instructions: &[Instruction],
    escape: Escape,
    options: &PlanOptions,
    target: &str,
) -> (Variables, Vec<Diagnostic>) {
    let mut variables = platform_arguments(options, target);
    let (mut diagnostics, mut size) = (Vec::new(), 0);
    for instruction in instructions {
        let InstructionKind::Arg(declarations) = &instruction.kind else { continue };
        for ArgDeclaration { name, default, .. } in declarations {
            if let Some(value) = options.argument(&name.text) {
                variables.set(&name.text, &value);
            } else if let Some(default) = default {
                match variables.expand(&default.text, escape) {
                    Ok(expanded) if size + expanded.text.len() > MOST_GLOBAL => {
                        let message = format!("the ARGs before FROM are larger than {} MiB", MOST_GLOBAL >> 20);
                        diagnostics.push(Diagnostic::error(default.span, message));
                    }
                    Ok(expanded) => {
                        size += expanded.text.len();
                        variables.set(&name.text, &expanded.text);
                    }
                    Err(error) => diagnostics.push(Diagnostic::error(default.span, error.message)),
                }
            }
        }
    }
    (variables, diagnostics)
}
