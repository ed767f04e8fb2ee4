//! From what a Dockerfile says to what must be done.
//!
//! In: a parsed Dockerfile, options, and the configs of the images that it names. Out: [`Plan`]: file-system steps in
//! an order in which each comes after what it needs, and finished image configs. What always holds: nothing here
//! touches a file, the environment or the clock; what rbuild cannot do yet is an error at its place, never left out.
//!
//! The way: [`graph()`] resolves names and prunes; the caller fetches what [`base_requests`] lists; [`plan()`] folds the
//! stages, or says which further images it must see, since triggers of base images can name new ones.

pub mod chmod;
mod config;
mod files;
pub mod graph;
pub mod limits;
pub mod lint;
mod mounts;
pub mod outline;
mod platforms;
pub mod print;
pub mod remote;
mod run;
pub mod scope;
mod stage;
pub mod step;
mod trigger;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Span, nearest};
use crate::digest::ImageId;
use crate::dockerfile::ast::InstructionKind;
use crate::image::config::ImageConfig;
use crate::image::manifest::Descriptor;
use crate::image::platform::Platform;

pub use graph::{StageGraph, base_requests, graph};
use limits::{Allowed, RunLimits};
pub(crate) use mounts::{bytes, literal, written};
use step::{Network, Plan};
use trigger::Trigger;

/// What decides a plan beside the Dockerfile.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// `--build-arg`, in order; the last of one name counts. Of SOURCE_DATE_EPOCH among them it counts only
    /// whether it is empty: else it is `epoch` that counts.
    pub build_args: Vec<(String, String)>,
    /// `--target`.
    pub target: Option<String>,
    /// `--label`, in order.
    pub labels: Vec<(String, String)>,
    /// `--platform`, each once; empty is the platform of this machine, and the image is for what its base is for.
    pub platforms: Vec<Platform>,
    /// The platform of this machine.
    pub build_platform: Platform,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// Seconds since 1970 that everything new gets as its time; at most the end of the year 9999.
    pub epoch: Option<i64>,
    /// `--network`.
    pub network: Network,
    /// Proxy variables of the user's settings: as if given by `--build-arg`, but weaker.
    pub proxy_env: Vec<(String, String)>,
    /// The host's name inside of RUN; `None` is the executor's own choice.
    pub hostname: Option<String>,
    /// The names given to `--build-context`.
    pub named_contexts: BTreeSet<String>,
    /// `--allow`.
    pub allowed: Allowed,
    /// `--ulimit`, `--shm-size`, `--cgroup-parent`.
    pub limits: RunLimits,
    /// `--shell-at`, found in the file; `target` is its stage then.
    pub shell_at: Option<ShellAt>,
    /// Whether all stages are planned, needed or not: for the build checks.
    pub all_stages: bool,
}

/// Where `--shell-at` wants a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellAt {
    /// The stage.
    pub stage: usize,
    /// The instruction of the stage before which it is; their number is its end.
    pub before: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            build_args: Vec::new(),
            target: None,
            labels: Vec::new(),
            platforms: Vec::new(),
            build_platform: Platform::new("linux", "amd64", ""),
            no_cache: NoCache::None,
            epoch: None,
            network: Network::Default,
            proxy_env: Vec::new(),
            hostname: None,
            named_contexts: BTreeSet::new(),
            allowed: Allowed::default(),
            limits: RunLimits::default(),
            shell_at: None,
            all_stages: false,
        }
    }
}

impl PlanOptions {
    /// The platform that the image is for; of several, the first.
    pub fn platform(&self) -> &Platform {
        self.platforms.first().unwrap_or(&self.build_platform)
    }
}

/// For which stages the cache is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// It is asked for all.
    #[default]
    None,
    /// It is asked for none.
    All,
    /// It is asked for all but these: names or indices.
    Stages(Vec<String>),
}

/// An image that stages build on or copy from: its documents, none of its layers' bytes.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Its name as messages show it.
    pub name: String,
    /// Its config.
    pub config: ImageConfig,
    /// The digest of its config's bytes.
    pub image_id: ImageId,
    /// Its manifest, where it came with one.
    pub manifest: Option<Descriptor>,
    /// Its layers' blobs, bottom first.
    pub layers: Vec<Descriptor>,
    /// What it runs on.
    pub platform: Platform,
}

impl BaseImage {
    /// An image without layers and without a word of configuration.
    pub fn nothing(name: &str, platform: &Platform) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let config = ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: some(&platform.variant),
            ..ImageConfig::default()
        };
        let image_id = config.image_id();
        let (manifest, layers, platform) = (None, Vec::new(), platform.clone());
        Self { name: name.to_owned(), config, image_id, manifest, layers, platform }
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// An image.
    Image(Arc<BaseImage>),
    /// A named context that is a directory: copies read it, FROM copies it whole.
    Context,
    /// Something that is not here, and is not fetched: what is planned on it serves the build checks alone.
    Absent,
}

/// An image or named context that must be seen before the plan can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRequest {
    /// The name of a named context as it was given, or the full form of a reference: the key in [`Bases`].
    pub name: String,
    /// The platform that is wanted; by its [`Display`](std::fmt::Display) form, the other half of the key.
    pub platform: Platform,
    /// Where it is named first.
    pub span: Span,
    /// It is a named context.
    pub context: bool,
    /// The name of a stage that is nearly the same: for "did you mean" when there is no such image.
    pub similar: Option<String>,
}

/// What is known of the outside: by name and platform as [`BaseRequest`] has them.
pub type Bases = BTreeMap<(String, String), Resolved>;

/// What [`plan()`] comes to.
#[derive(Debug)]
pub enum Outcome {
    /// The plan, and what to warn of.
    Planned(Plan, Vec<Diagnostic>),
    /// Resolve these, add them to the bases, and call again.
    NeedBases(Vec<BaseRequest>),
}

/// Plans the build of the target, for each platform. What comes instead of an outcome is all that there is to say: every
/// error, not the first, and the warnings.
pub fn plan(graph: &StageGraph, bases: &Bases, options: &PlanOptions) -> Result<Outcome, Vec<Diagnostic>> {
    platforms::plan(graph, options, |graph, options| plan_one(graph, bases, options))
}

/// The same for the one platform of the options.
fn plan_one(graph: &StageGraph, bases: &Bases, options: &PlanOptions) -> Result<Outcome, Vec<Diagnostic>> {
    // Triggers of base images can need further stages and images, whose triggers can again.
    let mut triggers: BTreeMap<usize, Vec<Trigger>> = BTreeMap::new();
    let mut uses = Vec::new();
    let reached = loop {
        let reached = graph.reachable(&uses);
        let mut missing = graph.requests(&reached, &uses, options);
        missing.retain(|request| !bases.contains_key(&(request.name.clone(), request.platform.to_string())));
        if !missing.is_empty() {
            return Ok(Outcome::NeedBases(missing));
        }
        let mut grown = false;
        for (index, _) in reached.iter().enumerate().filter(|(_, reached)| **reached) {
            let Entry::Vacant(place) = triggers.entry(index) else { continue };
            let list = trigger::triggers_of(graph, index, bases)?;
            for trigger in &list {
                for from in graph::sources_of(&trigger.instruction) {
                    match graph.resolve(from, index, options) {
                        Ok(origin) => uses.push((index, origin)),
                        Err((_, error)) => return Err(vec![trigger.place(error)]),
                    }
                }
            }
            grown |= !list.is_empty();
            place.insert(list);
        }
        if !grown {
            break reached;
        }
    };
    let mut problems = graph.problems(&reached);
    if !problems.is_empty() {
        problems.extend(graph.warnings.iter().cloned());
        return Err(problems);
    }
    let mut warnings = graph.warnings.clone();
    let mut declared = graph.declared.clone();
    for trigger in triggers.values().flatten() {
        if let InstructionKind::Arg(list) = &trigger.instruction.kind {
            declared.extend(list.iter().map(|declaration| declaration.name.text.clone()));
        }
    }
    warnings.extend(options.unused_arguments(&declared));
    warnings.extend(unknown_stages(graph, options));
    let mut planner = stage::Planner::new(graph, bases, options);
    for (index, _) in reached.iter().enumerate().filter(|(_, reached)| **reached) {
        planner.stage(index, triggers.get(&index).map_or(&[], Vec::as_slice));
    }
    let (plan, diagnostics) = planner.finish();
    warnings.extend(diagnostics);
    // Stable: what has no place comes first.
    warnings.sort_by_key(|diagnostic| diagnostic.span);
    if warnings.iter().any(Diagnostic::is_error) { Err(warnings) } else { Ok(Outcome::Planned(plan, warnings)) }
}

/// What to warn of: stages named by `--no-cache-filter` that the file does not have.
fn unknown_stages(graph: &StageGraph, options: &PlanOptions) -> Vec<Diagnostic> {
    let NoCache::Stages(filters) = &options.no_cache else { return Vec::new() };
    let names = || graph.stages.iter().filter_map(|stage| stage.name.as_deref());
    let unknown = filters.iter().filter(|filter| !(0..graph.stages.len()).any(|stage| graph.is_called(stage, filter)));
    unknown
        .map(|filter| {
            let mut warning = Diagnostic::warning(
                Span::default(),
                "UnknownStage",
                format!("--no-cache-filter names the stage \"{filter}\", which the file does not have"),
            );
            warning.span = None;
            match nearest(filter, names()) {
                Some(near) => warning.help(format!("did you mean {near}?")),
                None => warning,
            }
        })
        .collect()
}
