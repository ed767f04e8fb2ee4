//! Stages and what they need of each other.
//!
//! In: a parsed Dockerfile and the options that decide names and platforms. Out: [`StageGraph`]. What always holds: a
//! stage refers to earlier stages only, so there are no cycles; names are resolved without looking outside (a named
//! context beats a stage, a stage beats an image).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::diagnostic::{Diagnostic, Span, nearest};
use crate::dockerfile::ast::{Dockerfile, Escape, Instruction, InstructionKind, Stage, Word};
use crate::dockerfile::word;
use crate::image::platform::Platform;
use crate::image::reference::Reference;

use super::scope::{Variables, global_arguments};
use super::{BaseRequest, PlanOptions, lint, platforms};

/// The stages of a Dockerfile, names resolved.
#[derive(Debug, Clone)]
pub struct StageGraph {
    /// All stages, in the order of the file.
    pub stages: Vec<StageNode>,
    /// The index of the stage that is wanted.
    pub target: usize,
    /// What to warn of.
    pub warnings: Vec<Diagnostic>,
    /// The escape character of the file.
    pub(super) escape: Escape,
    /// The global scope, platforms included.
    pub(super) globals: Variables,
    /// The names of all ARGs.
    pub(super) declared: BTreeSet<String>,
    /// Those of them before the first FROM.
    global_names: BTreeSet<String>,
    /// The names of all stages, those that are not resolved yet included.
    names: Vec<Option<String>>,
    /// Every stage counts as needed.
    all: bool,
    /// The same for each platform but the first.
    pub(super) further: Vec<StageGraph>,
}

/// A stage.
#[derive(Debug, Clone)]
pub struct StageNode {
    /// The name after AS, in lower case.
    pub name: Option<String>,
    /// What it begins with.
    pub from: Origin,
    /// The image as FROM names it, expanded.
    pub image: String,
    /// What it is for.
    pub platform: Platform,
    /// Its FROM.
    pub span: Span,
    /// The name of what it begins with.
    pub image_span: Span,
    /// First and last line of FROM, from 1.
    pub lines: (usize, usize),
    /// What follows FROM; nothing when a named context stands in for the stage.
    pub instructions: Vec<Instruction>,
    /// What its own COPY and RUN instructions take files from, and where they say so.
    pub uses: Vec<(Span, Origin)>,
    /// A named context stands in for it.
    pub(super) replaced: bool,
    /// What is wrong with it, if it is needed.
    pub(super) problems: Vec<Diagnostic>,
}

/// Where a stage begins or a copy is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image or a named context.
    Outside(Outside),
}

/// An image or a named context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// The full form of the reference, or the name of the context as it was given.
    pub name: String,
    /// It is a named context.
    pub context: bool,
}

/// Resolves the stages of `dockerfile` for each platform. What comes instead of a graph is all that there is to say:
/// every error, not the first, and the warnings.
pub fn graph(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<StageGraph, Vec<Diagnostic>> {
    platforms::graphs(options, |options| graph_of_one(dockerfile, options))
}

/// The same for the one platform of the options.
fn graph_of_one(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<StageGraph, Vec<Diagnostic>> {
    let target_name = match (&options.target, dockerfile.stages.last()) {
        (Some(name), _) if !name.is_empty() => name.to_lowercase(),
        (_, Some(Stage { name: Some(name), .. })) => name.text.clone(),
        _ => String::new(),
    };
    let (globals, mut errors) = global_arguments(&dockerfile.global_args, dockerfile.escape, options, &target_name);
    let mut graph = StageGraph {
        stages: Vec::with_capacity(dockerfile.stages.len()),
        target: 0,
        warnings: Vec::new(),
        escape: dockerfile.escape,
        globals,
        declared: BTreeSet::new(),
        global_names: BTreeSet::new(),
        names: dockerfile.stages.iter().map(|stage| stage.name.as_ref().map(|name| name.text.clone())).collect(),
        all: options.all_stages,
        further: Vec::new(),
    };
    graph.warnings = lint::default_images(dockerfile, options, &target_name);
    graph.declare(&dockerfile.global_args);
    graph.global_names.clone_from(&graph.declared);
    for stage in &dockerfile.stages {
        graph.add(stage, options, &mut errors);
    }
    match graph.find_target(options.target.as_deref()) {
        Ok(target) => {
            graph.target = target;
            errors.extend(graph.problems(&graph.needed()));
        }
        Err(error) => errors.push(error),
    }
    if errors.is_empty() {
        return Ok(graph);
    }
    errors.append(&mut graph.warnings);
    errors.sort_by_key(|error| error.span);
    Err(errors)
}

impl StageGraph {
    /// Notes the names that ARG instructions declare.
    pub(super) fn declare(&mut self, instructions: &[Instruction]) {
        for instruction in instructions {
            if let InstructionKind::Arg(declarations) = &instruction.kind {
                self.declared.extend(declarations.iter().map(|declaration| declaration.name.text.clone()));
            }
        }
    }

    /// Adds a stage behind those that are there.
    fn add(&mut self, stage: &Stage, options: &PlanOptions, errors: &mut Vec<Diagnostic>) {
        let image = self.expand_from(&stage.image, errors);
        let given = stage.platform.as_ref().map(|platform| self.platform(platform, options, errors));
        self.warnings.extend(lint::platform_flag(stage, &self.globals, self.escape));
        let mut problems = Vec::new();
        let mut image = image.unwrap_or_default();
        let platform = given.clone().flatten().unwrap_or_else(|| options.platform().clone());
        let replaced = stage.name.as_ref().and_then(|name| named_context(&name.text, &platform, options));
        let from = if let Some(context) = replaced {
            context.clone_into(&mut image);
            Origin::Outside(Outside { name: context.to_owned(), context: true })
        } else if let Some(earlier) = self.stage_named(&image, self.stages.len()) {
            Origin::Stage(earlier)
        } else if image == "scratch" || image.is_empty() {
            Origin::Scratch
        } else {
            match outside(&image, &platform, options) {
                Ok(outside) => Origin::Outside(outside),
                Err(why) => {
                    errors.push(self.bad_image(why, &image, stage.image.span));
                    Origin::Scratch
                }
            }
        };
        let platform = match (&from, given) {
            (Origin::Stage(earlier), _) => self.stages[*earlier].platform.clone(),
            (Origin::Outside(_), Some(Some(platform))) => platform,
            _ => options.platform().clone(),
        };
        let instructions = if replaced.is_some() { Vec::new() } else { stage.instructions.clone() };
        self.declare(&instructions);
        let mut uses = Vec::new();
        for from in instructions.iter().flat_map(sources_of) {
            match self.resolve(from, self.stages.len(), options) {
                Ok(origin) => uses.push((from.span, origin)),
                Err((true, error)) => errors.push(error),
                Err((false, error)) => problems.push(error),
            }
        }
        self.stages.push(StageNode {
            name: stage.name.as_ref().map(|name| name.text.clone()),
            from,
            image,
            platform,
            span: stage.span,
            image_span: stage.image.span,
            lines: stage.lines,
            instructions,
            uses,
            replaced: replaced.is_some(),
            problems,
        });
    }

    /// The image of a FROM.
    fn expand_from(&mut self, image: &Word, errors: &mut Vec<Diagnostic>) -> Option<String> {
        let expanded = self.expand_global(image, errors)?;
        if expanded.is_empty() {
            let mut error = Diagnostic::error(image.span, format!("base name ({}) should not be blank", image.text));
            error =
                error.help("give the variable a default with ARG before the first FROM, or a value with --build-arg");
            errors.push(error);
            return None;
        }
        Some(expanded)
    }

    /// The value of `--platform` of a FROM.
    fn platform(&mut self, word: &Word, options: &PlanOptions, errors: &mut Vec<Diagnostic>) -> Option<Platform> {
        let text = self.expand_global(word, errors)?;
        if text.is_empty() {
            let error = Diagnostic::error(word.span, format!("empty platform value from expression {}", word.text));
            let wanted = word.text.trim_matches(['$', '{', '}']);
            errors.push(match nearest(wanted, self.globals.names()) {
                Some(near) if near != wanted => error.help(format!("did you mean ${near}?")),
                _ => error
                    .help("give the variable a default with ARG before the first FROM, or a value with --build-arg"),
            });
            return None;
        }
        match Platform::parse(&text, options.platform()) {
            Ok(platform) => Some(platform),
            Err(error) => {
                errors.push(Diagnostic::error(word.span, error.to_string()));
                None
            }
        }
    }

    /// Expands a word of FROM: only what is global counts there.
    fn expand_global(&mut self, word: &Word, errors: &mut Vec<Diagnostic>) -> Option<String> {
        match self.globals.expand(&word.text, self.escape) {
            Ok(expanded) => {
                let unset: BTreeSet<&String> = expanded.unset.iter().collect();
                for name in unset.into_iter().filter(|name| !self.global_names.contains(*name)) {
                    let names = self.global_names.iter().map(String::as_str).chain(self.globals.names());
                    let mut message = format!("FROM argument '{name}' is not declared");
                    if let Some(near) = nearest(name, names) {
                        // Writing to a String does not fail.
                        let _ = write!(message, " (did you mean {near}?)");
                    }
                    self.warnings.push(Diagnostic::warning(word.span, "UndefinedArgInFrom", message));
                }
                Some(expanded.text)
            }
            Err(error) => {
                errors.push(Diagnostic::error(word.span, error.message));
                None
            }
        }
    }

    fn bad_image(&self, why: String, image: &str, span: Span) -> Diagnostic {
        let error = Diagnostic::error(span, why);
        let names = self.stages.iter().filter_map(|stage| stage.name.as_deref()).chain(["scratch"]);
        match nearest(image, names) {
            Some(near) => error.help(format!("did you mean {near}?")),
            None => error,
        }
    }

    /// The last stage of that name before the stage `before`.
    fn stage_named(&self, name: &str, before: usize) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages.iter().take(before).rposition(|stage| stage.name.as_ref() == Some(&name))
    }

    /// What `--from` or `from=` of the stage `at` means. `true` with the error: it is one whether or not the stage is
    /// needed.
    #[allow(clippy::result_large_err)] // Errors end the planning.
    pub(super) fn resolve(&self, from: &Word, at: usize, options: &PlanOptions) -> Result<Origin, (bool, Diagnostic)> {
        let text = &from.text;
        let literal = word::expand(text, self.escape, &|_| None).ok().filter(|expanded| expanded.text == *text);
        if literal.is_none() {
            let error = Diagnostic::error(
                from.span,
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            );
            return Err((
                true,
                error.help(format!("add `FROM {text} AS source` before this stage, and use --from=source")),
            ));
        }
        if let Some(name) = named_context(text, options.platform(), options) {
            return Ok(Origin::Outside(Outside { name: name.to_owned(), context: true }));
        }
        let shown = |stage: usize| self.names[stage].clone().unwrap_or_else(|| format!("stage-{stage}"));
        let later = |stage: usize| {
            let message = if stage == at {
                format!("stage \"{}\" cannot copy from itself", shown(stage))
            } else {
                format!(
                    "cannot copy from stage \"{text}\", it needs to be defined before current stage \"{}\"",
                    shown(at)
                )
            };
            let error = Diagnostic::error(from.span, message);
            let help = "a stage copies from stages above it; two that need each other cannot be built: a third one, \
                        above both, can have what they share";
            (false, if stage == at { error } else { error.label(format!("move {} up", shown(stage))).help(help) })
        };
        if let Ok(index) = text.parse::<i64>() {
            return match usize::try_from(index) {
                Ok(stage) if stage < at => Ok(self.stage_or_context(stage)),
                Ok(stage) if stage < self.names.len() => Err(later(stage)),
                _ => {
                    let error = Diagnostic::error(from.span, format!("invalid stage index {index}"));
                    Err((true, error.help(format!("the file has stages 0 to {}", self.names.len() - 1))))
                }
            };
        }
        if let Some(stage) = self.stage_named(text, at) {
            return Ok(self.stage_or_context(stage));
        }
        let lower = text.to_lowercase();
        if let Some(stage) = self.names.iter().skip(at).position(|name| name.as_ref() == Some(&lower)) {
            return Err(later(at + stage));
        }
        if text == "scratch" {
            return Ok(Origin::Scratch);
        }
        outside(text, options.platform(), options)
            .map(Origin::Outside)
            .map_err(|why| (true, self.bad_image(why, text, from.span)))
    }

    /// A stage that a named context stands in for is that context.
    fn stage_or_context(&self, stage: usize) -> Origin {
        match &self.stages[stage].from {
            Origin::Outside(outside) if self.stages[stage].replaced => Origin::Outside(outside.clone()),
            _ => Origin::Stage(stage),
        }
    }

    fn find_target(&self, target: Option<&str>) -> Result<usize, Diagnostic> {
        let no_span = |mut error: Diagnostic| {
            error.span = None;
            error
        };
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return self
                .stages
                .len()
                .checked_sub(1)
                .ok_or_else(|| no_span(Diagnostic::error(Span::default(), "dockerfile contains no stages to build")));
        };
        if let Some(stage) = self.stage_named(target, self.stages.len()) {
            return Ok(stage);
        }
        if let Some(index) = target.parse().ok().filter(|index| *index < self.stages.len()) {
            return Ok(index);
        }
        let names: Vec<&str> = self.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
        let mut message = format!("target stage \"{target}\" could not be found");
        if let Some(near) = nearest(target, names.iter().copied()) {
            // Writing to a String does not fail.
            let _ = write!(message, " (did you mean {near}?)");
        }
        let error = no_span(Diagnostic::error(Span::default(), message));
        Err(error.help(if names.is_empty() {
            "no stage of the file has a name; 0 is the first".to_owned()
        } else {
            format!("the file has the stages {}", names.join(", "))
        }))
    }

    /// Which stages the target needs, itself included. `extra` are further uses: of the stage, by triggers.
    pub(super) fn reachable(&self, extra: &[(usize, Origin)]) -> Vec<bool> {
        let mut reached = vec![false; self.stages.len()];
        if self.all {
            return vec![true; self.stages.len()];
        }
        let mut waiting = vec![self.target];
        while let Some(stage) = waiting.pop() {
            if std::mem::replace(&mut reached[stage], true) {
                continue;
            }
            let node = &self.stages[stage];
            let triggered = extra.iter().filter(|(user, _)| *user == stage).map(|(_, origin)| origin);
            let uses = node.uses.iter().map(|(_, origin)| origin);
            for origin in std::iter::once(&node.from).chain(uses).chain(triggered) {
                if let Origin::Stage(other) = origin {
                    waiting.push(*other);
                }
            }
        }
        reached
    }

    /// What is wrong with the stages that are needed.
    pub(super) fn problems(&self, reached: &[bool]) -> Vec<Diagnostic> {
        let needed = self.stages.iter().zip(reached).filter(|(_, reached)| **reached);
        needed.flat_map(|(stage, _)| stage.problems.iter().cloned()).collect()
    }

    /// The stages that the target needs.
    pub fn needed(&self) -> Vec<bool> {
        self.reachable(&[])
    }

    /// Whether a word of `--no-cache-filter` means the stage: its name, or its index.
    pub(super) fn is_called(&self, stage: usize, filter: &str) -> bool {
        let name = self.stages[stage].name.as_deref();
        name.is_some_and(|name| name.eq_ignore_ascii_case(filter)) || filter.parse() == Ok(stage)
    }

    /// How messages and progress call a stage: nothing when it is the only one.
    pub(super) fn shown(&self, stage: usize) -> String {
        match &self.stages[stage].name {
            _ if self.stages.len() == 1 => String::new(),
            Some(name) => name.clone(),
            None => format!("stage-{stage}"),
        }
    }

    /// What the stages in `reached` and those further uses need from outside, each once, in order of appearance.
    pub(super) fn requests(
        &self,
        reached: &[bool],
        extra: &[(usize, Origin)],
        options: &PlanOptions,
    ) -> Vec<BaseRequest> {
        let mut requests: Vec<BaseRequest> = Vec::new();
        let mut request = |outside: &Outside, platform: &Platform, span: Span| {
            if !requests.iter().any(|known| known.name == outside.name && known.platform == *platform) {
                let names = self.stages.iter().filter_map(|stage| stage.name.as_deref());
                let familiar = Reference::parse(&outside.name).map(|reference| reference.familiar_name());
                let similar = nearest(familiar.as_deref().unwrap_or(&outside.name), names).map(str::to_owned);
                let Outside { name, context } = outside.clone();
                requests.push(BaseRequest { name, platform: platform.clone(), span, context, similar });
            }
        };
        for (index, stage) in self.stages.iter().enumerate().filter(|(index, _)| reached[*index]) {
            if let Origin::Outside(outside) = &stage.from {
                request(outside, &stage.platform, stage.image_span);
            }
            for (span, origin) in &stage.uses {
                if let Origin::Outside(outside) = origin {
                    request(outside, options.platform(), *span);
                }
            }
            for (_, origin) in extra.iter().filter(|(user, _)| *user == index) {
                if let Origin::Outside(outside) = origin {
                    request(outside, options.platform(), stage.span);
                }
            }
        }
        requests
    }
}

/// The distinct images and named contexts that the build needs, as far as the Dockerfile alone tells. Triggers of
/// base images can name more: see [`super::Outcome::NeedBases`].
pub fn base_requests(graph: &StageGraph, options: &PlanOptions) -> Vec<BaseRequest> {
    platforms::requests(graph, options, |graph, options| graph.requests(&graph.needed(), &[], options))
}

/// The `--from` of COPY and the `from=` of mounts in an instruction.
pub(super) fn sources_of(instruction: &Instruction) -> impl Iterator<Item = &Word> {
    let (copy, mounts) = match &instruction.kind {
        InstructionKind::Copy(copy) => (copy.from.as_ref(), &[][..]),
        InstructionKind::Run(run) => (None, run.mounts.as_slice()),
        _ => (None, &[][..]),
    };
    copy.into_iter().chain(mounts.iter().filter_map(|mount| mount.from.as_ref()))
}

/// The named context that `name` means: it bears that name, or that of the same image. One for the platform
/// (`name::linux/arm64`) beats one for all; a whole name is given back.
fn named_context<'a>(name: &str, platform: &Platform, options: &'a PlanOptions) -> Option<&'a str> {
    if name == "scratch" || name == "context" {
        return None;
    }
    let contexts = |own: bool| {
        let all = options.named_contexts.iter().map(String::as_str);
        all.filter_map(move |whole| match whole.rsplit_once("::") {
            None => (!own).then_some((whole, whole)),
            Some((bare, text)) => {
                let meant = Platform::parse(text, platform).ok()?;
                (own && meant == *platform).then_some((whole, bare))
            }
        })
    };
    let find = |own: bool| {
        contexts(own)
            .find(|(_, context)| *context == name)
            .or_else(|| contexts(own).find(|(_, context)| context.eq_ignore_ascii_case(name)))
            .or_else(|| {
                let wanted = Reference::parse(name).ok()?;
                contexts(own).find(|(_, context)| Reference::parse(context).is_ok_and(|reference| reference == wanted))
            })
    };
    find(true).or_else(|| find(false)).map(|(whole, _)| whole)
}

fn outside(name: &str, platform: &Platform, options: &PlanOptions) -> Result<Outside, String> {
    if let Some(context) = named_context(name, platform, options) {
        return Ok(Outside { name: context.to_owned(), context: true });
    }
    match Reference::parse(name) {
        Ok(reference) => Ok(Outside { name: reference.to_string(), context: false }),
        Err(error) => Err(format!("failed to parse stage name \"{name}\": {error}")),
    }
}
