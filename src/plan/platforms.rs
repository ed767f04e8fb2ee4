//! Several platforms in one plan.
//!
//! In: what planning gives for one platform, asked once for each. Out: one graph, one list of bases, one plan. What
//! always holds: a step that two platforms have in common (those of a stage for the machine's own platform, most often)
//! is in the plan once; what is said for each platform alike is said once; one platform alone is planned as ever.

use std::borrow::Cow;

use crate::diagnostic::{Diagnostic, Span};
use crate::image::platform::Platform;

use super::graph::StageGraph;
use super::scope::{MULTI_PLATFORM, yes_no};
use super::stage::position_or_push;
use super::step::{BaseId, ContextId, INTERNAL, Plan, PlannedHistory, Stack, Step, StepId};
use super::{BaseRequest, Outcome, PlanOptions};

impl PlanOptions {
    /// The options for each platform by itself.
    fn each(&self) -> Vec<Cow<'_, Self>> {
        if self.platforms.len() < 2 {
            return vec![Cow::Borrowed(self)];
        }
        let one = |platform: &Platform| Self { platforms: vec![platform.clone()], ..self.clone() };
        self.platforms.iter().map(|platform| Cow::Owned(one(platform))).collect()
    }

    /// Whether the result is an index: for several platforms always, for one if that is asked for.
    fn wants_index(&self) -> Result<bool, Diagnostic> {
        let several = self.platforms.len() > 1;
        let Some(value) = self.argument(MULTI_PLATFORM).filter(|value| !value.is_empty()) else { return Ok(several) };
        let refuse = |message: String| {
            let mut error = Diagnostic::error(Span::default(), message);
            error.span = None;
            Err(error)
        };
        match yes_no(&value) {
            None => refuse(format!("--build-arg {MULTI_PLATFORM}={value}: it is true or false")),
            Some(false) if several => {
                refuse(format!("--build-arg {MULTI_PLATFORM}={value}: several platforms make an index, nothing else"))
            }
            Some(index) => Ok(index),
        }
    }
}

/// The graph of the first platform, which holds those of the others.
pub(super) fn graphs(
    options: &PlanOptions,
    one: impl Fn(&PlanOptions) -> Result<StageGraph, Vec<Diagnostic>>,
) -> Result<StageGraph, Vec<Diagnostic>> {
    let (mut errors, warnings): (Vec<_>, Vec<_>) = options.check_controls().into_iter().partition(Diagnostic::is_error);
    errors.extend(options.wants_index().err());
    let mut graphs = Vec::new();
    for options in options.each() {
        match one(&options) {
            Ok(graph) => graphs.push(graph),
            Err(more) => add(&mut errors, more),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut graphs = graphs.into_iter();
    // Proof: `each` gives at least one, and each gave a graph or an error.
    let mut first = graphs.next().expect("one platform or more");
    first.warnings.extend(warnings);
    first.further = graphs.collect();
    Ok(first)
}

/// The graph of each platform with its options.
fn pairs<'a>(graph: &'a StageGraph, options: &'a PlanOptions) -> Vec<(&'a StageGraph, Cow<'a, PlanOptions>)> {
    std::iter::once(graph).chain(&graph.further).zip(options.each()).collect()
}

/// What all of them need from outside, each once.
pub(super) fn requests(
    graph: &StageGraph,
    options: &PlanOptions,
    one: impl Fn(&StageGraph, &PlanOptions) -> Vec<BaseRequest>,
) -> Vec<BaseRequest> {
    let mut all: Vec<BaseRequest> = Vec::new();
    for (graph, options) in pairs(graph, options) {
        add_requests(&mut all, one(graph, &options));
    }
    all
}

fn add_requests(all: &mut Vec<BaseRequest>, more: Vec<BaseRequest>) {
    for request in more {
        if !all.iter().any(|known| known.name == request.name && known.platform == request.platform) {
            all.push(request);
        }
    }
}

/// Adds what was not said yet.
fn add(all: &mut Vec<Diagnostic>, more: Vec<Diagnostic>) {
    for diagnostic in more {
        if !all.contains(&diagnostic) {
            all.push(diagnostic);
        }
    }
}

/// One plan out of the plan for each platform.
pub(super) fn plan(
    graph: &StageGraph,
    options: &PlanOptions,
    one: impl Fn(&StageGraph, &PlanOptions) -> Result<Outcome, Vec<Diagnostic>>,
) -> Result<Outcome, Vec<Diagnostic>> {
    let index = options.wants_index().map_err(|error| vec![error])?;
    let (mut plans, mut missing) = (Vec::new(), Vec::new());
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    for (graph, options) in pairs(graph, options) {
        match one(graph, &options) {
            Ok(Outcome::Planned(plan, more)) => {
                plans.push(plan);
                add(&mut warnings, more);
            }
            Ok(Outcome::NeedBases(more)) => add_requests(&mut missing, more),
            Err(more) => add(&mut errors, more),
        }
    }
    if !errors.is_empty() {
        add(&mut errors, warnings);
        errors.sort_by_key(|diagnostic| diagnostic.span);
        return Err(errors);
    }
    if !missing.is_empty() {
        return Ok(Outcome::NeedBases(missing));
    }
    warnings.sort_by_key(|diagnostic| diagnostic.span);
    let plan = if plans.len() == 1 { plans.remove(0) } else { merge(plans) };
    Ok(Outcome::Planned(Plan { index, ..plan }, warnings))
}

/// Puts plans together. A step is in the result once if it does the same on the same, whichever plans it is in.
fn merge(plans: Vec<Plan>) -> Plan {
    let mut merged = Plan::default();
    // For each step the image that it is for; `None` where it is for several.
    let mut targets: Vec<Option<usize>> = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        if number == 0 {
            merged.arguments = plan.arguments;
        }
        let bases: Vec<usize> = plan.bases.into_iter().map(|base| position_or_push(&mut merged.bases, base)).collect();
        let contexts: Vec<usize> =
            plan.contexts.into_iter().map(|context| position_or_push(&mut merged.contexts, context)).collect();
        let mut steps: Vec<usize> = Vec::with_capacity(plan.steps.len());
        for step in plan.steps {
            let stack = |stack| moved(stack, &bases, &steps);
            let step = Step {
                parent: stack(step.parent),
                op: step.op.moved(stack, |ContextId(context)| ContextId(contexts[context])),
                ..step
            };
            let known = merged.steps.iter().position(|known| is_same(known, &step));
            let index = known.unwrap_or(merged.steps.len());
            match known {
                Some(known) if targets[known] != Some(number) => targets[known] = None,
                Some(_) => {}
                None => {
                    merged.steps.push(step);
                    targets.push(Some(number));
                }
            }
            steps.push(index);
        }
        for mut image in plan.images {
            image.stack = moved(image.stack, &bases, &steps);
            image.base = image.base.map(|BaseId(base)| BaseId(bases[base]));
            for PlannedHistory { step, .. } in &mut image.history {
                *step = step.map(|StepId(step)| StepId(steps[step]));
            }
            merged.images.push(image);
        }
    }
    for (step, target) in merged.steps.iter_mut().zip(targets) {
        let target = target.and_then(|number| merged.images.get(number)).map(|image| &image.platform);
        step.name = name(step, target);
    }
    merged
}

fn moved(stack: Stack, bases: &[usize], steps: &[usize]) -> Stack {
    match stack {
        Stack::Scratch => Stack::Scratch,
        Stack::Base(BaseId(base)) => Stack::Base(BaseId(bases[base])),
        // What a step needs comes before it, so it has its new number.
        Stack::Step(StepId(step)) => Stack::Step(StepId(steps[step])),
    }
}

/// Whether two steps of different plans are the same instruction doing the same.
fn is_same(one: &Step, other: &Step) -> bool {
    let Step { parent, op, platform, span, lines, name, no_cache } = one;
    (parent, span, lines, no_cache) == (&other.parent, &other.span, &other.lines, &other.no_cache)
        // What is loaded for a mount is the same for all.
        && (platform == &other.platform || name.starts_with(INTERNAL) && other.name.starts_with(INTERNAL))
        && op == &other.op
}

/// `[linux/arm64 build 2/5] RUN make`; for another platform than its own, `[linux/amd64->arm64 build 2/5] …`.
fn name(step: &Step, target: Option<&Platform>) -> String {
    if step.name.starts_with(INTERNAL) {
        return step.name.clone();
    }
    let own = &step.platform;
    let arrow = match target {
        Some(target) if target.os != own.os => format!("->{target}"),
        Some(target) if (&target.architecture, &target.variant) != (&own.architecture, &own.variant) => {
            let slash = if target.variant.is_empty() { "" } else { "/" };
            format!("->{}{slash}{}", target.architecture, target.variant)
        }
        _ => String::new(),
    };
    match step.name.strip_prefix('[') {
        Some(rest) => format!("[{own}{arrow} {rest}"),
        None => format!("[{own}{arrow}] {}", step.name),
    }
}
