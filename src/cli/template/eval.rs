//! A template applied to a value.
//!
//! In: nodes, a value. Out: text. What always holds: a variable is seen to the end of what it was declared in.

use serde_json::Value;

use super::Mistake;
use super::functions;
use super::parse::{Basis, Command, Node, Operand, Pipeline};
use super::print::print;
use crate::diagnostic::nearest;

/// More text than this is a template that went wrong.
const MOST: usize = 64 << 20;

/// Renders `nodes` for `root`.
pub(super) fn render(nodes: &[Node], root: &Value) -> Result<String, Mistake> {
    let mut scope = Scope { root, variables: vec![(String::new(), root.clone())], out: String::new() };
    scope.nodes(nodes, root)?;
    Ok(scope.out)
}

struct Scope<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), Mistake> {
        for node in nodes {
            let known = self.variables.len();
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        print(&value, &mut self.out);
                    } else {
                        // Seen by what follows.
                        self.set(pipeline, 0, value);
                        continue;
                    }
                }
                Node::If(branches) | Node::With(branches) => {
                    for (condition, body) in branches {
                        let Some(condition) = condition else {
                            self.nodes(body, dot)?;
                            break;
                        };
                        let value = self.pipeline(condition, dot)?;
                        let holds = functions::truth(&value);
                        self.set(condition, 0, value.clone());
                        if holds {
                            self.nodes(body, if matches!(node, Node::With(_)) { &value } else { dot })?;
                            break;
                        }
                    }
                }
                Node::Range { over, body, otherwise } => self.range(over, body, otherwise, dot)?,
            }
            self.variables.truncate(known);
            if self.out.len() > MOST {
                return Err(Mistake::new(0, "the template prints more than 64 MiB"));
            }
        }
        Ok(())
    }

    fn range(&mut self, over: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<(), Mistake> {
        let at = over.commands.first().map_or(0, |command| command.at);
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Null => Vec::new(),
            Value::Array(items) => items.into_iter().enumerate().map(|(number, item)| (number.into(), item)).collect(),
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.into_iter().collect();
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
            }
            Value::Number(count) if count.as_u64().is_some_and(|count| count <= 1 << 20) => {
                (0..count.as_u64().unwrap_or(0)).map(|number| (number.into(), number.into())).collect()
            }
            other => return Err(Mistake::new(at, format!("range goes over a list, not {}", functions::kind(&other)))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let known = self.variables.len();
            if over.variables.len() == 2 {
                self.set(over, 0, key);
                self.set(over, 1, item.clone());
            } else {
                self.set(over, 0, item.clone());
            }
            self.nodes(body, &item)?;
            self.variables.truncate(known);
            if self.out.len() > MOST {
                return Err(Mistake::new(at, "the template prints more than 64 MiB"));
            }
        }
        Ok(())
    }

    /// Gives a value to the variable at that place of a pipeline, if it has one there.
    fn set(&mut self, pipeline: &Pipeline, number: usize, value: Value) {
        let Some(name) = pipeline.variables.get(number) else { return };
        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        match known {
            Some((_, known)) if pipeline.assigns => *known = value,
            _ => self.variables.push((name.clone(), value)),
        }
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, Mistake> {
        let mut handed = None;
        for command in &pipeline.commands {
            handed = Some(self.command(command, handed, dot)?);
        }
        Ok(handed.unwrap_or_default())
    }

    fn command(&self, command: &Command, handed: Option<Value>, dot: &Value) -> Result<Value, Mistake> {
        let Some(function) = command.function else {
            let operand = command.args.first().ok_or_else(|| Mistake::new(command.at, "a value is missing"))?;
            return self.operand(operand, dot);
        };
        let mut args = Vec::with_capacity(command.args.len() + 1);
        for operand in &command.args {
            let value = self.operand(operand, dot)?;
            // These two look no further than they must.
            let settled = match function.name {
                "and" => !functions::truth(&value),
                "or" => functions::truth(&value),
                _ => false,
            };
            if settled {
                return Ok(value);
            }
            args.push(value);
        }
        args.extend(handed);
        function.call(&args).map_err(|why| Mistake::new(command.at, why))
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, Mistake> {
        let computed;
        let mut value = match &operand.value {
            Basis::Dot => dot,
            Basis::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                &known.ok_or_else(|| Mistake::new(operand.at, format!("there is no variable ${name}")))?.1
            }
            Basis::Literal(value) => value,
            Basis::Pipeline(pipeline) => {
                computed = self.pipeline(pipeline, dot)?;
                &computed
            }
        };
        for (at, name) in &operand.fields {
            value = self.field(value, name, *at)?;
        }
        Ok(value.clone())
    }

    fn field<'v>(&self, value: &'v Value, name: &str, at: usize) -> Result<&'v Value, Mistake> {
        const NOTHING: &Value = &Value::Null;
        match value {
            Value::Null => Ok(NOTHING),
            Value::Object(fields) => match fields.get(name) {
                Some(found) => Ok(found),
                None if value != self.root => Ok(NOTHING),
                None => {
                    let names = fields.keys().map(String::as_str);
                    Err(Mistake::new(
                        at,
                        match nearest(name, names.clone()) {
                            Some(meant) => format!("there is no field .{name}; did you mean .{meant}?"),
                            None => {
                                format!(
                                    "there is no field .{name}; there are .{}",
                                    names.collect::<Vec<_>>().join(", .")
                                )
                            }
                        },
                    ))
                }
            },
            other => Err(Mistake::new(at, format!("{} has no field .{name}", functions::kind(other)))),
        }
    }
}
