//! ONBUILD: instructions that wait in an image or a stage for whoever builds on it.
//!
//! In: a stage, and the config of its base. Out: the [`Trigger`]s that its FROM sets off, in order. What always holds:
//! what is wrong with a trigger is told at a place in the file that is being built.

use crate::diagnostic::{Diagnostic, Span};
use crate::dockerfile::ast::{Escape, Instruction, InstructionKind};
use crate::dockerfile::parse_trigger;

use super::graph::{Origin, StageGraph};
use super::{Bases, Resolved};

/// An ONBUILD instruction that a FROM sets off.
#[derive(Debug, Clone)]
pub(super) struct Trigger {
    pub(super) instruction: Instruction,
    /// It stands in the config of an image: the FROM that names the image, since its own spans point into no file.
    pub(super) from: Option<(Span, (usize, usize))>,
}

impl Trigger {
    /// A diagnostic of the trigger at a place that the user can see.
    pub(super) fn place(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        if let Some((span, _)) = self.from {
            diagnostic.span = Some(span);
            diagnostic
                .help
                .push(format!("it is in a trigger that this stage sets off: ONBUILD {}", self.instruction.text));
        }
        diagnostic
    }
}

/// The triggers that the FROM of a stage sets off.
pub(super) fn triggers_of(graph: &StageGraph, index: usize, bases: &Bases) -> Result<Vec<Trigger>, Vec<Diagnostic>> {
    let stage = &graph.stages[index];
    match &stage.from {
        Origin::Stage(earlier) => {
            let mut triggers = Vec::new();
            for instruction in &graph.stages[*earlier].instructions {
                let InstructionKind::OnBuild(text, trigger) = &instruction.kind else { continue };
                let trigger = match trigger {
                    Some(trigger) => (**trigger).clone(),
                    None => {
                        parse_trigger(text, graph.escape).map_err(|errors| placed(errors, instruction.span, text))?
                    }
                };
                triggers.push(Trigger { instruction: trigger, from: None });
            }
            Ok(triggers)
        }
        // A stage that a named context stands in for is that context, and does nothing of its own.
        Origin::Outside(outside) if !stage.replaced => {
            let key = (outside.name.clone(), stage.platform.to_string());
            let Some(Resolved::Image(base)) = bases.get(&key) else { return Ok(Vec::new()) };
            let mut triggers = Vec::new();
            for text in &base.config.config.on_build {
                let instruction =
                    parse_trigger(text, Escape::Backslash).map_err(|errors| placed(errors, stage.span, text))?;
                triggers.push(Trigger { instruction, from: Some((stage.span, stage.lines)) });
            }
            Ok(triggers)
        }
        _ => Ok(Vec::new()),
    }
}

/// What is wrong with the text of a trigger, at a place that the user can see.
fn placed(errors: Vec<Diagnostic>, span: Span, text: &str) -> Vec<Diagnostic> {
    let place = |mut error: Diagnostic| {
        error.span = Some(span);
        error.help(format!("it is in a trigger that this stage sets off: ONBUILD {text}"))
    };
    let unnamed = errors.is_empty().then(|| Diagnostic::error(span, "the trigger is no instruction"));
    errors.into_iter().chain(unnamed).map(place).collect()
}
