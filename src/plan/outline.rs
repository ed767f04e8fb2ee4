//! What a build can be given: the build arguments, secrets and SSH agents that a target takes.
//!
//! In: a Dockerfile, its graph and its plan. Out: an [`Outline`]. What always holds: what only other stages use is not in
//! it; a name is in it once; the order is that of the lines.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::PlanOptions;
use super::graph::{Origin, StageGraph};
use super::step::{MountOp, Op, Plan};
use crate::dockerfile::ast::{ArgDeclaration, Dockerfile, Instruction, InstructionKind, Word};

/// What a target takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The name of the target.
    pub name: Option<String>,
    /// What the comment above its FROM says.
    pub description: Option<String>,
    /// Its build arguments.
    pub args: Vec<Argument>,
    /// The secrets that its RUNs mount.
    pub secrets: Vec<Wanted>,
    /// The SSH agents that its RUNs mount.
    pub ssh: Vec<Wanted>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// What it comes to; nothing where it comes to nothing.
    pub value: String,
    /// What the comment above its ARG says.
    pub description: Option<String>,
    /// First and last line of its ARG, from 1.
    pub lines: (usize, usize),
}

/// Something that a RUN mounts and the user gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub id: String,
    /// A RUN fails without it.
    pub required: bool,
    /// First and last line of the first RUN that mounts it, from 1.
    pub lines: (usize, usize),
}

/// The outline of the target of `graph`. `plan` is that of one platform.
pub fn outline(dockerfile: &Dockerfile, graph: &StageGraph, plan: &Plan, options: &PlanOptions) -> Outline {
    let target = &dockerfile.stages[graph.target];
    let mut outline = Outline {
        name: target.name.as_ref().map(|name| name.text.clone()),
        description: target.description.clone(),
        ..Outline::default()
    };
    let globals = Globals { dockerfile, graph, options };
    for stage in nearest_first(graph, plan) {
        arguments(stage, &globals, plan, &mut outline.args);
    }
    outline.args.sort_by_key(|argument| argument.lines);
    for step in &plan.steps {
        let Op::Run(run) = &step.op else { continue };
        for mount in &run.mounts {
            match &mount.kind {
                MountOp::Secret { id, required, .. } => add(&mut outline.secrets, id, *required, step.lines),
                MountOp::Ssh { id, required, .. } => add(&mut outline.ssh, id, *required, step.lines),
                MountOp::Bind(_) | MountOp::Cache { .. } | MountOp::Tmpfs { .. } => {}
            }
        }
    }
    outline.secrets.sort_by_key(|wanted| wanted.lines);
    outline.ssh.sort_by_key(|wanted| wanted.lines);
    outline
}

fn add(list: &mut Vec<Wanted>, id: &str, required: bool, lines: (usize, usize)) {
    match list.iter_mut().find(|known| known.id == id) {
        Some(known) => {
            known.required |= required;
            known.lines = known.lines.min(lines);
        }
        None => list.push(Wanted { id: id.to_owned(), required, lines }),
    }
}

/// The stages that were planned: the target, what it begins with, what it copies from, and so on.
fn nearest_first(graph: &StageGraph, plan: &Plan) -> Vec<usize> {
    let mut order = Vec::new();
    let mut waiting = vec![graph.target];
    while let Some(stage) = waiting.pop() {
        if order.contains(&stage) {
            continue;
        }
        order.push(stage);
        let node = &graph.stages[stage];
        let uses = node.uses.iter().map(|(_, origin)| origin).rev();
        waiting.extend(uses.chain([&node.from]).filter_map(|origin| match origin {
            Origin::Stage(stage) => Some(*stage),
            _ => None,
        }));
    }
    // Those that a trigger of a base image needs.
    let further: BTreeSet<usize> = plan.arguments.iter().map(|argument| argument.stage).collect();
    order.extend(further.into_iter().filter(|stage| !order.contains(stage)).collect::<Vec<_>>());
    order
}

/// Adds the arguments that a stage uses and `list` does not have.
fn arguments(stage: usize, globals: &Globals<'_>, plan: &Plan, list: &mut Vec<Argument>) {
    let mut own: Vec<Argument> = Vec::new();
    let mut wanted: BTreeSet<String> = globals.in_from(stage);
    for argument in plan.arguments.iter().filter(|argument| argument.stage == stage) {
        if argument.global {
            wanted.insert(argument.name.clone());
            continue;
        }
        let found = Argument {
            name: argument.name.clone(),
            value: argument.value.clone().unwrap_or_default(),
            description: argument.description.clone(),
            lines: argument.lines,
        };
        // The last ARG of a name is the one that holds.
        own.retain(|known| known.name != found.name);
        own.push(found);
    }
    wanted.retain(|name| !own.iter().any(|argument| argument.name == *name));
    for argument in own.into_iter().chain(globals.declared(wanted)) {
        if !list.iter().any(|known| known.name == argument.name) {
            list.push(argument);
        }
    }
}

/// The ARGs before the first FROM.
struct Globals<'a> {
    dockerfile: &'a Dockerfile,
    graph: &'a StageGraph,
    options: &'a PlanOptions,
}

impl Globals<'_> {
    /// The names of set variables in the FROM of a stage.
    fn in_from(&self, stage: usize) -> BTreeSet<String> {
        if self.graph.stages[stage].replaced {
            return BTreeSet::new();
        }
        let stage = &self.dockerfile.stages[stage];
        std::iter::once(&stage.image).chain(&stage.platform).flat_map(|word| self.names(word)).collect()
    }

    /// The names of set variables in a word.
    fn names(&self, word: &Word) -> BTreeSet<String> {
        let names = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            let value = self.graph.globals.get(name)?;
            names.borrow_mut().insert(name.to_owned());
            Some(value.to_owned())
        };
        // What cannot be expanded was told by whoever made the plan.
        let _ = crate::dockerfile::word::expand(&word.text, self.dockerfile.escape, &lookup);
        names.into_inner()
    }

    /// Those of `names` that are declared, with the ones that their defaults are made of.
    fn declared(&self, names: BTreeSet<String>) -> Vec<Argument> {
        let all = || self.dockerfile.global_args.iter().flat_map(declarations);
        let mut waiting: Vec<String> = names.into_iter().collect();
        let mut wanted = BTreeSet::new();
        while let Some(name) = waiting.pop() {
            let declaration = all().rfind(|(declaration, _)| declaration.name.text == name);
            if let Some(default) = declaration.and_then(|(declaration, _)| declaration.default.as_ref())
                && !wanted.contains(&name)
                && self.options.argument(&name).is_none()
            {
                waiting.extend(self.names(default));
            }
            wanted.insert(name);
        }
        let mut found: Vec<Argument> = Vec::new();
        for (ArgDeclaration { name, description, .. }, lines) in all() {
            if wanted.contains(&name.text) {
                let value = self.graph.globals.get(&name.text).unwrap_or_default().to_owned();
                // The last one of a name holds.
                found.retain(|known| known.name != name.text);
                found.push(Argument { name: name.text.clone(), value, description: description.clone(), lines });
            }
        }
        found
    }
}

fn declarations(instruction: &Instruction) -> impl DoubleEndedIterator<Item = (&ArgDeclaration, (usize, usize))> {
    let list = match &instruction.kind {
        InstructionKind::Arg(list) => list.as_slice(),
        _ => &[],
    };
    list.iter().map(|declaration| (declaration, instruction.lines))
}
