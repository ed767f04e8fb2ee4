//! One stage at a time: instructions become steps, config and history.
//!
//! In: the stages that are needed, earlier ones first, and the configs of their bases. Out: the steps and the image of
//! the target. What always holds: a stage's words are expanded in the variables that were set before their
//! instruction; after an error the other instructions are still looked at, so that all errors are told at once.

use std::collections::BTreeSet;

use crate::diagnostic::{Diagnostic, Span};
use crate::dockerfile::ast::{ArgDeclaration, CommandLine, Escape, Healthcheck, Instruction, InstructionKind, Word};
use crate::dockerfile::word;
use crate::image::config;
use crate::image::platform::Platform;

use super::config::{Folded, clean, is_signal, near_signal, ports};
use super::graph::{Origin, Outside, StageGraph};
use super::scope::{Variables, is_directive};
use super::step::{
    BaseId, ContextId, CopyFrom, CopyOp, CopySource, INTERNAL, MakeDirOp, Op, Plan, PlannedArgument, PlannedBase,
    PlannedContext, PlannedImage, ShellPoint, Stack, Step, StepId,
};
use super::trigger::Trigger;
use super::{Bases, NoCache, PlanOptions, Resolved, ShellAt, lint};

/// Plans stage after stage.
pub(super) struct Planner<'a> {
    pub(super) graph: &'a StageGraph,
    pub(super) bases: &'a Bases,
    pub(super) options: &'a PlanOptions,
    pub(super) plan: Plan,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// The stages that are done.
    pub(super) done: Vec<Option<State>>,
    /// Bytes of what variables were replaced by until now, environments of commands among them.
    spent: usize,
}

/// The most bytes that variables may make of a file. A few doublings of a value in a handful of lines are gigabytes;
/// what a kernel takes for one command are two megabytes.
const MOST_SPENT: usize = 64 << 20;

/// Where a stage stands.
#[derive(Clone)]
pub(super) struct State {
    pub(super) stack: Stack,
    pub(super) base: Option<BaseId>,
    pub(super) platform: Platform,
    pub(super) folded: Folded,
    /// What words are expanded in, and what RUN gets.
    pub(super) variables: Variables,
    /// Every ARG, in order of first appearance, with its last value.
    pub(super) arguments: Variables,
    /// That a RUN does not see the epoch was told.
    pub(super) epoch_told: bool,
    /// The stage, or one that it builds on, has had a WORKDIR of its own.
    pub(super) workdir_set: bool,
    /// The base is not here, so its variables are not known.
    pub(super) assumed: bool,
}

/// What an instruction needs to know of its place.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) stage: usize,
    pub(super) trigger: Option<&'a Trigger>,
    pub(super) escape: Escape,
    pub(super) instruction: &'a Instruction,
}

impl Place<'_> {
    pub(super) fn span(&self) -> Span {
        self.trigger.and_then(|trigger| trigger.from).map_or(self.instruction.span, |(span, _)| span)
    }

    pub(super) fn lines(&self) -> (usize, usize) {
        self.trigger.and_then(|trigger| trigger.from).map_or(self.instruction.lines, |(_, lines)| lines)
    }

    /// What progress calls the step: the keyword in upper case, then the text.
    fn title(&self) -> String {
        let (keyword, rest) = self.instruction.text.split_once(' ').unwrap_or((&self.instruction.text, ""));
        let prefix = if self.trigger.is_some() { "ONBUILD " } else { "" };
        format!("{prefix}{} {rest}", keyword.to_uppercase()).trim_end().to_owned()
    }
}

/// An error was told; the instruction has no effect.
pub(super) struct Told;

impl<'a> Planner<'a> {
    pub(super) fn new(graph: &'a StageGraph, bases: &'a Bases, options: &'a PlanOptions) -> Self {
        let plan = Plan { contexts: vec![PlannedContext { name: None }], ..Plan::default() };
        Self { graph, bases, options, plan, diagnostics: Vec::new(), done: vec![None; graph.stages.len()], spent: 0 }
    }

    /// Plans a stage all of whose inputs are planned.
    pub(super) fn stage(&mut self, index: usize, triggers: &[Trigger]) {
        let first = self.plan.steps.len();
        let mut state = self.begin(index);
        for trigger in triggers {
            // The trigger of an image knows nothing of this file's escape character.
            let escape = if trigger.from.is_some() { Escape::Backslash } else { self.graph.escape };
            let place = Place { stage: index, trigger: Some(trigger), escape, instruction: &trigger.instruction };
            let _: Result<(), Told> = self.instruction(place, &mut state);
        }
        for (number, instruction) in self.graph.stages[index].instructions.iter().enumerate() {
            self.note_shell(index, number, &state);
            let place = Place { stage: index, trigger: None, escape: self.graph.escape, instruction };
            let _: Result<(), Told> = self.instruction(place, &mut state);
        }
        self.note_shell(index, self.graph.stages[index].instructions.len(), &state);
        self.number(index, first);
        self.done[index] = Some(state);
    }

    /// Notes the state before an instruction if that is where a shell is wanted.
    fn note_shell(&mut self, stage: usize, before: usize, state: &State) {
        if self.options.shell_at != Some(ShellAt { stage, before }) {
            return;
        }
        let place = match self.graph.stages[stage].instructions.get(before) {
            Some(instruction) => format!("before line {}", instruction.lines.0),
            None if self.graph.stages.len() == 1 => "at the end of the file".to_owned(),
            None => format!("at the end of the stage {}", self.graph.shown(stage)),
        };
        let run = self.shell_op(state);
        self.plan.shell = Some(Box::new(ShellPoint { stack: state.stack, run, place }));
    }

    /// Puts `[stage 2/5]` before the names of the stage's steps. FROM counts where it brings an image.
    fn number(&mut self, index: usize, first: usize) {
        let from = match &self.graph.stages[index].from {
            // A directory is copied by a step of its own.
            Origin::Outside(_) if self.plan.steps.get(first).is_none_or(|step| !step.name.starts_with("FROM ")) => 1,
            _ => 0,
        };
        // What is done for the mounts of a RUN has names of its own.
        let mut steps: Vec<&mut Step> =
            self.plan.steps[first..].iter_mut().filter(|step| !step.name.starts_with(INTERNAL)).collect();
        let total = from + steps.len();
        let width = total.to_string().len();
        let shown = self.graph.shown(index);
        let gap = if shown.is_empty() { "" } else { " " };
        for (number, step) in steps.iter_mut().enumerate() {
            let number = number + 1 + from;
            step.name = format!("[{shown}{gap}{number:>width$}/{total}] {}", step.name);
        }
    }

    /// What FROM gives.
    fn begin(&mut self, index: usize) -> State {
        let stage = &self.graph.stages[index];
        let mut platform = stage.platform.clone();
        let (stack, base, folded) = match &stage.from {
            Origin::Stage(earlier) => {
                // Proof: stages are planned in order, and what a stage needs is reached and earlier.
                let parent = self.done[*earlier].as_ref().expect("an earlier stage is planned");
                let state = State { folded: parent.folded.child(), epoch_told: false, ..parent.clone() };
                if let Some(message) = self.count(state.folded.size()) {
                    self.diagnostics.push(Diagnostic::error(stage.span, message));
                }
                return state;
            }
            Origin::Scratch => (Stack::Scratch, None, Folded::scratch(&stage.platform)),
            Origin::Outside(outside) => {
                if let Some(found) = self.other_platform(index, outside) {
                    platform = found;
                }
                self.begin_outside(index, outside)
            }
        };
        let mut variables = Variables::default();
        for entry in &folded.config.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            variables.set(name, value);
        }
        let arguments = Variables::default();
        let assumed = match &stage.from {
            Origin::Outside(outside) => {
                let key = (outside.name.clone(), stage.platform.to_string());
                matches!(self.bases.get(&key), Some(Resolved::Absent))
            }
            _ => false,
        };
        let (epoch_told, workdir_set) = (false, false);
        State { stack, base, platform, folded, variables, arguments, epoch_told, workdir_set, assumed }
    }

    /// Warns of a base that is for another machine than the stage; the platform of its programs.
    fn other_platform(&mut self, index: usize, outside: &Outside) -> Option<Platform> {
        let stage = &self.graph.stages[index];
        let key = (outside.name.clone(), stage.platform.to_string());
        let Some(Resolved::Image(image)) = self.bases.get(&key) else { return None };
        let (wanted, found) = (&stage.platform, &image.platform);
        let unknown = found.os.is_empty() || found.architecture.is_empty();
        if unknown || (&wanted.os, &wanted.architecture) == (&found.os, &found.architecture) {
            return None;
        }
        let message = format!(
            "Base image {} was pulled with platform \"{found}\", expected \"{wanted}\" for current build",
            stage.image
        );
        let help = if self.options.platforms.is_empty() {
            format!("give --platform={found} if that is what it is to be for, or bring in the image for {wanted}")
        } else {
            format!(
                "the result says that it is for {wanted}, with programs of {found} in it: bring in the image for {wanted}"
            )
        };
        let warning = Diagnostic::warning(stage.image_span, "InvalidBaseImagePlatform", message);
        self.diagnostics.push(warning.help(help));
        Some(found.clone())
    }

    fn begin_outside(&mut self, index: usize, outside: &Outside) -> (Stack, Option<BaseId>, Folded) {
        let stage = &self.graph.stages[index];
        let key = (outside.name.clone(), stage.platform.to_string());
        if let Some(Resolved::Absent) = self.bases.get(&key) {
            return (Stack::Scratch, None, Folded::scratch(&stage.platform));
        }
        if let Some(Resolved::Image(image)) = self.bases.get(&key) {
            let base = self.base(outside, &stage.platform);
            // An image can have no layers to build on.
            let empty = image.layers.is_empty() && image.config.rootfs.diff_ids.is_empty();
            let stack = if empty { Stack::Scratch } else { Stack::Base(base) };
            return (stack, Some(base), Folded::from_base(&image.config));
        }
        let context = self.context(&outside.name);
        let op = CopyOp {
            sources: vec![CopySource::Path("/".to_owned())],
            from: CopyFrom::Context(context),
            ..CopyOp::plain()
        };
        let step = self.push(Step {
            parent: Stack::Scratch,
            op: Op::Copy(op),
            platform: stage.platform.clone(),
            span: stage.span,
            lines: stage.lines,
            name: format!("FROM {}", stage.image),
            no_cache: self.no_cache(index),
        });
        let mut folded = Folded::scratch(&stage.platform);
        folded.commit(format!("FROM {}", stage.image), Some(step));
        (Stack::Step(step), None, folded)
    }

    pub(super) fn no_cache(&self, index: usize) -> bool {
        match &self.options.no_cache {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(filters) => filters.iter().any(|filter| self.graph.is_called(index, filter)),
        }
    }

    pub(super) fn push(&mut self, step: Step) -> StepId {
        self.plan.steps.push(step);
        StepId(self.plan.steps.len() - 1)
    }

    pub(super) fn base(&mut self, outside: &Outside, platform: &Platform) -> BaseId {
        let base = PlannedBase { name: outside.name.clone(), platform: platform.clone() };
        BaseId(position_or_push(&mut self.plan.bases, base))
    }

    pub(super) fn context(&mut self, name: &str) -> ContextId {
        ContextId(position_or_push(&mut self.plan.contexts, PlannedContext { name: Some(name.to_owned()) }))
    }

    pub(super) fn tell(&mut self, place: Place<'_>, diagnostic: Diagnostic) {
        let placed = match place.trigger {
            Some(trigger) => trigger.place(diagnostic),
            None => diagnostic,
        };
        self.diagnostics.push(placed);
    }

    pub(super) fn fail<T>(&mut self, place: Place<'_>, span: Span, message: impl Into<String>) -> Result<T, Told> {
        self.tell(place, Diagnostic::error(span, message));
        Err(Told)
    }

    pub(super) fn unsupported(&mut self, place: Place<'_>, span: Span, what: &str) {
        let error = Diagnostic::error(span, format!("not supported yet: {what}"));
        self.tell(
            place,
            error.help("rbuild reads it but cannot do it; leaving it out silently would build something else"),
        );
    }

    /// Tells what a build check found.
    fn note(&mut self, place: Place<'_>, found: impl IntoIterator<Item = Diagnostic>) {
        for warning in found {
            self.tell(place, warning);
        }
    }

    fn note_shell_form(&mut self, place: Place<'_>, state: &State, command: &CommandLine) {
        let no_shell = state.folded.config.config.shell.is_empty();
        if no_shell && matches!(command, CommandLine::Shell(_)) {
            self.note(place, Some(lint::shell_form(place.instruction)));
        }
    }

    /// Warns of variables that are neither set nor declared.
    pub(super) fn note_unset(&mut self, place: Place<'_>, state: &State, span: Span, unset: &[String]) {
        if state.assumed {
            return;
        }
        let unset: BTreeSet<&String> = unset.iter().collect();
        for name in unset.into_iter().filter(|name| state.arguments.get(name).is_none()) {
            if let Some(warning) = lint::undefined(span, name, &state.variables) {
                self.tell(place, warning);
            }
        }
    }

    /// Expands one word.
    pub(super) fn expand(&mut self, place: Place<'_>, state: &State, word: &Word) -> Result<String, Told> {
        if self.spent > MOST_SPENT {
            return Err(Told);
        }
        match state.variables.expand(&word.text, place.escape) {
            Ok(expanded) => {
                self.spend(place, word.span, expanded.text.len())?;
                self.note_unset(place, state, word.span, &expanded.unset);
                Ok(expanded.text)
            }
            Err(error) => self.fail(place, word.span, error.message),
        }
    }

    /// Counts bytes that variables gave. An error, told once, where there are too many.
    pub(super) fn spend(&mut self, place: Place<'_>, span: Span, bytes: usize) -> Result<(), Told> {
        match self.count(bytes) {
            Some(message) => self.fail(place, span, message),
            None if self.spent > MOST_SPENT => Err(Told),
            None => Ok(()),
        }
    }

    /// The same; what to tell, if it is now that there are too many.
    fn count(&mut self, bytes: usize) -> Option<String> {
        let before = self.spent;
        self.spent = before.saturating_add(bytes);
        (before <= MOST_SPENT && self.spent > MOST_SPENT)
            .then(|| format!("variables make more than {} MiB of this file", MOST_SPENT >> 20))
    }

    fn expand_pairs(
        &mut self,
        place: Place<'_>,
        state: &State,
        pairs: &[(Word, Word)],
    ) -> Result<Vec<(String, String)>, Told> {
        let mut expanded = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let pair = (self.expand(place, state, name)?, self.expand(place, state, value)?);
            if pair.0.is_empty() {
                return self.fail(place, name.span, format!("the name {} is blank once it is expanded", name.text));
            }
            expanded.push(pair);
        }
        Ok(expanded)
    }

    fn instruction(&mut self, place: Place<'_>, state: &mut State) -> Result<(), Told> {
        match &place.instruction.kind {
            InstructionKind::Arg(declarations) => self.arg(place, state, declarations)?,
            InstructionKind::Env(pairs) => {
                let names = pairs.iter().map(|(name, _)| name);
                let pairs = self.expand_pairs(place, state, pairs)?;
                for (word, (name, value)) in names.zip(&pairs) {
                    self.note(place, lint::secret("ENV", word, name));
                    state.variables.set(name, value);
                }
                state.folded.env(&pairs);
            }
            InstructionKind::Label(pairs) => {
                let pairs = self.expand_pairs(place, state, pairs)?;
                state.folded.label(&pairs);
            }
            InstructionKind::Run(run) => self.run(place, state, run)?,
            InstructionKind::Copy(copy) => self.copy(place, state, copy)?,
            InstructionKind::Add(add) => self.add(place, state, add)?,
            InstructionKind::Workdir(path) => self.workdir(place, state, path)?,
            InstructionKind::User(user) => {
                let user = self.expand(place, state, user)?;
                state.folded.user(&user);
            }
            InstructionKind::Expose(words) => self.expose(place, state, words)?,
            InstructionKind::Volume(words) => {
                let mut paths = Vec::with_capacity(words.len());
                for word in words {
                    let path = self.expand(place, state, word)?;
                    if path.is_empty() {
                        return self.fail(place, word.span, "VOLUME specified can not be an empty string");
                    }
                    paths.push(path);
                }
                state.folded.volume(&paths);
            }
            InstructionKind::Cmd(command) => {
                self.note_shell_form(place, state, command);
                let words = command_words(&state.folded, command);
                state.folded.cmd(words);
            }
            InstructionKind::Entrypoint(command) => {
                self.note_shell_form(place, state, command);
                let words = command_words(&state.folded, command);
                state.folded.entrypoint(words);
            }
            InstructionKind::Shell(words) => state.folded.shell(words),
            InstructionKind::StopSignal(word) => {
                let signal = self.expand(place, state, word)?;
                if !is_signal(&signal) {
                    let error = Diagnostic::error(word.span, format!("invalid signal: {signal}"));
                    self.tell(
                        place,
                        match near_signal(&signal) {
                            Some(near) => error.help(format!("did you mean {near}?")),
                            None => error.help("give a number above 0, or a name such as SIGTERM"),
                        },
                    );
                    return Err(Told);
                }
                state.folded.stop_signal(&signal);
            }
            InstructionKind::Healthcheck(check) => state.folded.healthcheck(healthcheck(check)),
            InstructionKind::OnBuild(text, _) => state.folded.on_build(text),
            InstructionKind::Maintainer(name) => state.folded.maintainer(&name.text),
        }
        Ok(())
    }

    fn arg(&mut self, place: Place<'_>, state: &mut State, declarations: &[ArgDeclaration]) -> Result<(), Told> {
        let mut resolved = Vec::with_capacity(declarations.len());
        for ArgDeclaration { name, default, description } in declarations {
            self.note(place, lint::secret("ARG", name, &name.text));
            let value = match (self.options.argument(&name.text), default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(place, state, default)?),
                (None, None) => self.graph.globals.get(&name.text).map(str::to_owned),
            };
            if let Some(value) = value.as_ref().filter(|_| !is_directive(&name.text)) {
                state.variables.set(&name.text, value);
            }
            state.arguments.set(&name.text, value.as_deref().unwrap_or_default());
            self.plan.arguments.push(PlannedArgument {
                stage: place.stage,
                name: name.text.clone(),
                value: value.clone(),
                global: default.is_none()
                    && self.graph.globals.get(&name.text).is_some()
                    && self.options.argument(&name.text).is_none(),
                description: description.clone(),
                lines: place.lines(),
            });
            resolved.push((name.text.clone(), value));
        }
        state.folded.arg(&resolved);
        Ok(())
    }

    fn expose(&mut self, place: Place<'_>, state: &mut State, words: &[Word]) -> Result<(), Told> {
        // BuildKit sorts the words as they are written, and lists the ports in that order.
        let mut words: Vec<&Word> = words.iter().collect();
        words.sort_by(|a, b| a.text.cmp(&b.text));
        let mut list = Vec::new();
        for word in words {
            let lookup = |name: &str| state.variables.get(name).map(str::to_owned);
            // As with Docker, a variable of EXPOSE that is not set is not told.
            let split = match word::expand_words(&word.text, place.escape, &lookup) {
                Ok(split) => split,
                Err(error) => return self.fail(place, word.span, error.message),
            };
            for spec in split {
                self.note(place, lint::exposed(word, &spec));
                match ports(&spec) {
                    Ok(ports) => list.extend(ports),
                    Err(why) => {
                        let error = Diagnostic::error(word.span, why);
                        self.tell(place, error.help("write PORT, PORT/tcp, PORT/udp, PORT/sctp or FIRST-LAST/tcp"));
                        return Err(Told);
                    }
                }
            }
        }
        state.folded.expose(&list);
        Ok(())
    }

    fn workdir(&mut self, place: Place<'_>, state: &mut State, word: &Word) -> Result<(), Told> {
        let path = self.expand(place, state, word)?;
        if !std::mem::replace(&mut state.workdir_set, true) {
            self.note(place, lint::first_workdir(word, &path));
        }
        let written = state.folded.workdir(&path);
        let path = clean(&written);
        // The root is always there.
        let step = (path != "/").then(|| {
            let user = state.folded.config.config.user.clone();
            self.step(place, state, Op::MakeDir(MakeDirOp { path, user }))
        });
        state.folded.commit(format!("WORKDIR {written}"), step);
        Ok(())
    }

    /// Adds a step on top of the stage.
    pub(super) fn step(&mut self, place: Place<'_>, state: &mut State, op: Op) -> StepId {
        let step = self.push(Step {
            parent: state.stack,
            op,
            platform: state.platform.clone(),
            span: place.span(),
            lines: place.lines(),
            name: place.title(),
            no_cache: self.no_cache(place.stage),
        });
        state.stack = Stack::Step(step);
        step
    }

    /// The plan, and all that there is to say about it.
    pub(super) fn finish(mut self) -> (Plan, Vec<Diagnostic>) {
        // Proof: the target is reached, so it was planned.
        let state = self.done[self.graph.target].take().expect("the target is planned");
        let State { stack, base, folded: Folded { mut config, history, .. }, .. } = state;
        config.config.labels.extend(self.options.labels.iter().cloned());
        let platform = self.set_platform(&mut config);
        self.plan.images.push(PlannedImage { platform, stack, base, config, history });
        (self.plan, self.diagnostics)
    }

    /// The platform in the config: the one that was asked for, else the base's.
    fn set_platform(&self, config: &mut config::ImageConfig) -> Platform {
        let wanted = self.options.platform();
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if !self.options.platforms.is_empty() || config.os.is_empty() || config.architecture.is_empty() {
            let same = config.os == wanted.os && config.architecture == wanted.architecture;
            config.os.clone_from(&wanted.os);
            config.architecture.clone_from(&wanted.architecture);
            if !same || !wanted.variant.is_empty() {
                config.variant = some(&wanted.variant);
            }
            if !same || !wanted.os_version.is_empty() {
                config.os_version = some(&wanted.os_version);
            }
        }
        config.platform().normalised()
    }
}

/// The place of `item` in `list`, at whose end it is put where it is missing.
pub(super) fn position_or_push<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|known| *known == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

fn command_words(folded: &Folded, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Shell(text) => folded.in_shell(text),
        CommandLine::Exec(words) => words.clone(),
    }
}

fn healthcheck(check: &Healthcheck) -> config::Healthcheck {
    match check {
        Healthcheck::None => config::Healthcheck { test: vec!["NONE".to_owned()], ..config::Healthcheck::default() },
        Healthcheck::Cmd { command, interval, timeout, start_period, start_interval, retries } => config::Healthcheck {
            test: match command {
                CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                CommandLine::Exec(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
            },
            interval: *interval,
            timeout: *timeout,
            start_period: *start_period,
            start_interval: *start_interval,
            retries: *retries,
        },
    }
}
