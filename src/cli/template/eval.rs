//! A template applied to a value.
//!
//! In: nodes, a value. Out: text. What always holds: a variable is seen to the end of what it was declared in.

use super::Mistake;
use super::parse::{Basis, Command, Node, Operand, Pipeline};
use super::print::print;
use super::value::{Nil, Value};
use crate::diagnostic::nearest;

/// More text than this is a template that went wrong.
const MOST: usize = 64 << 20;

/// Functions that leave a column's title as it is.
const NOT_OF_TITLES: [&str; 7] = ["json", "title", "lower", "upper", "truncate", "join", "split"];

/// Renders `nodes` for `root`; `titles`: which is the titles of columns, not a row.
pub(super) fn render(nodes: &[Node], root: &Value, titles: bool) -> Result<String, Mistake> {
    let mut scope = Scope { titles, variables: vec![(String::new(), root.clone())], out: String::new() };
    scope.nodes(nodes, root)?;
    Ok(scope.out)
}

struct Scope {
    titles: bool,
    variables: Vec<(String, Value)>,
    out: String,
}

/// How nodes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reached,
    /// By `{{break}}`.
    Break,
    /// By `{{continue}}`.
    Continue,
}

impl Scope {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<End, Mistake> {
        for node in nodes {
            let known = self.variables.len();
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        match value {
                            Value::Nil(Nil::Any) => self.out.push_str("<no value>"),
                            value => print(&value, &mut self.out),
                        }
                    } else {
                        // Seen by what follows.
                        self.set(pipeline, 0, value);
                        continue;
                    }
                }
                Node::Break => return Ok(End::Break),
                Node::Continue => return Ok(End::Continue),
                Node::If(branches) | Node::With(branches) => {
                    let mut end = End::Reached;
                    for (condition, body) in branches {
                        let Some(condition) = condition else {
                            end = self.nodes(body, dot)?;
                            break;
                        };
                        let value = self.pipeline(condition, dot)?;
                        let holds = value.truth();
                        self.set(condition, 0, value.clone());
                        if holds {
                            end = self.nodes(body, if matches!(node, Node::With(_)) { &value } else { dot })?;
                            break;
                        }
                    }
                    if end != End::Reached {
                        return Ok(end);
                    }
                }
                Node::Range { over, body, otherwise } => match self.range(over, body, otherwise, dot)? {
                    End::Reached => {}
                    // Of the {{else}}, which is no part of the loop.
                    end => return Ok(end),
                },
            }
            self.variables.truncate(known);
            if self.out.len() > MOST {
                return Err(Mistake::new(0, "the template prints more than 64 MiB"));
            }
        }
        Ok(End::Reached)
    }

    fn range(&mut self, over: &Pipeline, body: &[Node], otherwise: &[Node], dot: &Value) -> Result<End, Mistake> {
        let at = over.commands.first().map_or(0, |command| command.at);
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Nil(_) => Vec::new(),
            Value::List(items) => items.into_iter().enumerate().map(|(number, item)| (number.into(), item)).collect(),
            Value::Map(mut fields) => {
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
            }
            Value::Integer(count) if count <= 1 << 20 => {
                (0..count).map(|number| (number.into(), number.into())).collect()
            }
            other => return Err(Mistake::new(at, format!("range goes over a list, not {}", other.kind()))),
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
            let end = self.nodes(body, &item)?;
            self.variables.truncate(known);
            if end == End::Break {
                break;
            }
            if self.out.len() > MOST {
                return Err(Mistake::new(at, "the template prints more than 64 MiB"));
            }
        }
        Ok(End::Reached)
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
        Ok(handed.unwrap_or(Value::NOTHING))
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
                "and" => !value.truth(),
                "or" => value.truth(),
                _ => false,
            };
            if settled {
                return Ok(value);
            }
            args.push(value);
        }
        args.extend(handed);
        if self.titles && NOT_OF_TITLES.contains(&function.name) && !args.is_empty() {
            return Ok(args.swap_remove(0));
        }
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
            value = Self::field(value, name, *at)?;
        }
        Ok(value.clone())
    }

    fn field<'v>(value: &'v Value, name: &str, at: usize) -> Result<&'v Value, Mistake> {
        const NOTHING: &Value = &Value::NOTHING;
        match value {
            Value::Nil(Nil::Any | Nil::Map) => Ok(NOTHING),
            Value::Map(fields) => {
                Ok(fields.iter().find(|(known, _)| known == name).map_or(NOTHING, |(_, value)| value))
            }
            Value::Struct(_) => value.field(name).ok_or_else(|| {
                let names = value.field_names();
                let rest = match nearest(name, names.iter().copied()) {
                    Some(meant) => format!("did you mean .{meant}?"),
                    None if names.is_empty() => "it has none".to_owned(),
                    None => format!("there are .{}", names.join(", .")),
                };
                Mistake::new(at, format!("there is no field .{name}; {rest}"))
            }),
            other => Err(Mistake::new(at, format!("{} has no field .{name}", other.kind()))),
        }
    }
}
