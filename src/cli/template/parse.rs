//! Pieces of a template as a tree.
//!
//! In: texts and tokens. Out: nodes. What always holds: functions and variables that are named are there; every `range`,
//! `if` and `with` has its `end`.

use super::Mistake;
use super::functions::{FUNCTIONS, Function};
use super::lex::{Piece, Token};
use super::value::Value;
use crate::diagnostic::nearest;

/// Deeper nesting is no template that anyone wrote.
const DEPTH: usize = 100;

/// A part of a template that does something.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// Branches in order; the last may have no condition.
    If(Vec<Branch>),
    With(Vec<Branch>),
    /// The end of a `range`.
    Break,
    /// The end of one turn of it.
    Continue,
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// A condition, and what is done where it holds; without one it always does.
pub(super) type Branch = (Option<Pipeline>, Vec<Node>);

/// Commands, each of which is handed what the one before it gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// Variables that get the value; two of them only for `range`.
    pub(super) variables: Vec<String>,
    /// `=`, not `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

/// A value, or a function with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    pub(super) at: usize,
    pub(super) function: Option<&'static Function>,
    pub(super) args: Vec<Operand>,
}

/// A value, and fields of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operand {
    pub(super) at: usize,
    pub(super) value: Basis,
    pub(super) fields: Vec<(usize, String)>,
}

/// What a value begins with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Basis {
    Dot,
    Variable(String),
    Literal(Value),
    Pipeline(Box<Pipeline>),
}

/// Makes the tree.
pub(super) fn parse(pieces: &[Piece]) -> Result<Vec<Node>, Mistake> {
    let mut parser = Parser { pieces, next: 0, variables: vec![String::new()], depth: 0, loops: 0 };
    let nodes = parser.nodes()?;
    match parser.peek_word() {
        Some((at, word)) => Err(Mistake::new(at, format!("{{{{{word}}}}} ends nothing"))),
        None => Ok(nodes),
    }
}

struct Parser<'a> {
    pieces: &'a [Piece],
    next: usize,
    /// Those that are in scope; `$` is "".
    variables: Vec<String>,
    depth: usize,
    /// How many `range` this is in.
    loops: usize,
}

impl Parser<'_> {
    /// The `end` or `else` that comes next.
    fn peek_word(&self) -> Option<(usize, &'static str)> {
        let Some(Piece::Action(at, tokens)) = self.pieces.get(self.next) else { return None };
        match tokens.first() {
            Some((_, Token::Word(word))) if word == "end" => Some((*at, "end")),
            Some((_, Token::Word(word))) if word == "else" => Some((*at, "else")),
            _ => None,
        }
    }

    fn nodes(&mut self) -> Result<Vec<Node>, Mistake> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get(self.next) {
            let (at, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.clone()));
                    self.next += 1;
                    continue;
                }
                Piece::Action(at, tokens) => (*at, tokens),
            };
            if self.peek_word().is_some() {
                break;
            }
            self.next += 1;
            let keyword = match tokens.first() {
                Some((_, Token::Word(word))) => word.as_str(),
                _ => "",
            };
            let known = self.variables.len();
            match keyword {
                "if" | "with" => {
                    let branches = self.branches(at, tokens, keyword)?;
                    nodes.push(if keyword == "if" { Node::If(branches) } else { Node::With(branches) });
                    self.variables.truncate(known);
                }
                "range" => {
                    let over = self.head(at, &tokens[1..], true)?;
                    self.loops += 1;
                    let body = self.inner(at)?;
                    self.loops -= 1;
                    self.variables.truncate(known);
                    let otherwise = match self.close(at)? {
                        [] => Vec::new(),
                        [(_, Token::Word(_))] => {
                            let otherwise = self.inner(at)?;
                            if let [(at, _), ..] = self.close(at)? {
                                return Err(Mistake::new(*at, "there is an {{else}} too many"));
                            }
                            otherwise
                        }
                        [_, (at, _), ..] | [(at, _)] => {
                            return Err(Mistake::new(*at, "nothing may follow the {{else}} of a {{range}}"));
                        }
                    };
                    nodes.push(Node::Range { over, body, otherwise });
                }
                "break" | "continue" => {
                    if self.loops == 0 {
                        return Err(Mistake::new(at, format!("{{{{{keyword}}}}} is not in a {{{{range}}}}")));
                    }
                    if let Some((at, _)) = tokens.get(1) {
                        return Err(Mistake::new(*at, format!("nothing follows {keyword}")));
                    }
                    nodes.push(if keyword == "break" { Node::Break } else { Node::Continue });
                }
                "define" | "template" | "block" => {
                    return Err(Mistake::new(at, format!("not supported yet: {{{{{keyword}}}}}")));
                }
                _ => nodes.push(Node::Print(self.head(at, tokens, false)?)),
            }
        }
        Ok(nodes)
    }

    /// The nodes inside of something that began at `at`.
    fn inner(&mut self, at: usize) -> Result<Vec<Node>, Mistake> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Mistake::new(at, format!("more than {DEPTH} levels of nesting")));
        }
        let nodes = self.nodes()?;
        self.depth -= 1;
        Ok(nodes)
    }

    /// Takes `end` (nothing comes back) or `else` with what follows it.
    fn close(&mut self, opened: usize) -> Result<&[(usize, Token)], Mistake> {
        let Some(Piece::Action(_, tokens)) = self.pieces.get(self.next) else {
            return Err(Mistake::new(opened, "there is no {{end}} to this"));
        };
        self.next += 1;
        match tokens.as_slice() {
            [(_, Token::Word(word))] if word == "end" => Ok(&[]),
            [(_, Token::Word(word)), (at, _), ..] if word == "end" => Err(Mistake::new(*at, "nothing follows end")),
            tokens => Ok(tokens),
        }
    }

    fn branches(&mut self, at: usize, tokens: &[(usize, Token)], keyword: &str) -> Result<Vec<Branch>, Mistake> {
        let mut branches = Vec::new();
        let mut condition = Some(self.head(at, &tokens[1..], false)?);
        loop {
            let last = condition.is_none();
            let body = self.inner(at)?;
            branches.push((condition, body));
            let closed: Vec<(usize, Token)> = self.close(at)?.to_vec();
            condition = match closed.as_slice() {
                [] => return Ok(branches),
                [(at, _), ..] if last => return Err(Mistake::new(*at, "there is an {{else}} too many")),
                [_] => None,
                [_, (at, Token::Word(word)), rest @ ..] if word == keyword => Some(self.head(*at, rest, false)?),
                [_, (at, _), ..] => {
                    return Err(Mistake::new(*at, format!("only {keyword} may follow this else")));
                }
            };
        }
    }

    /// A pipeline that is all of an action, with the variables that it declares.
    fn head(&mut self, at: usize, tokens: &[(usize, Token)], range: bool) -> Result<Pipeline, Mistake> {
        let (variables, assigns, rest) = match tokens {
            [(_, Token::Variable(name)), (_, sign @ (Token::Declare | Token::Assign)), rest @ ..] => {
                (vec![name.clone()], *sign == Token::Assign, rest)
            }
            [
                (_, Token::Variable(key)),
                (_, Token::Comma),
                (_, Token::Variable(name)),
                (_, sign @ (Token::Declare | Token::Assign)),
                rest @ ..,
            ] if range => (vec![key.clone(), name.clone()], *sign == Token::Assign, rest),
            rest => (Vec::new(), false, rest),
        };
        let mut tokens = Tokens { all: rest, next: 0, end: at };
        let commands = self.commands(&mut tokens)?;
        if let Some((at, _)) = tokens.peek() {
            return Err(Mistake::new(*at, "a ) without its ("));
        }
        for name in &variables {
            if assigns && !self.variables.contains(name) {
                return Err(Mistake::new(at, format!("there is no variable ${name}; := makes one")));
            }
            if !assigns {
                self.variables.push(name.clone());
            }
        }
        Ok(Pipeline { variables, assigns, commands })
    }

    /// Commands up to the end or a `)`.
    fn commands(&mut self, tokens: &mut Tokens<'_>) -> Result<Vec<Command>, Mistake> {
        let mut commands = Vec::new();
        loop {
            let command = self.command(tokens)?;
            if command.function.is_none() && !commands.is_empty() {
                return Err(Mistake::new(command.at, "after a | comes a function"));
            }
            commands.push(command);
            match tokens.peek() {
                Some((_, Token::Pipe)) => tokens.next += 1,
                _ => return Ok(commands),
            }
        }
    }

    fn command(&mut self, tokens: &mut Tokens<'_>) -> Result<Command, Mistake> {
        let at = tokens.peek().map_or(tokens.end, |(at, _)| *at);
        let mut function = None;
        let mut args = Vec::new();
        loop {
            match tokens.peek() {
                None | Some((_, Token::Pipe | Token::Close)) => break,
                Some((at, Token::Word(word))) if function.is_none() && args.is_empty() && literal(word).is_none() => {
                    function = Some(find_function(*at, word)?);
                    tokens.next += 1;
                }
                _ => args.push(self.operand(tokens)?),
            }
        }
        if function.is_none() {
            match args.as_slice() {
                [] => return Err(Mistake::new(at, "there is nothing to print; a field is written {{.Name}}")),
                [_] => {}
                [_, second, ..] => return Err(Mistake::new(second.at, "only a function takes arguments")),
            }
        }
        Ok(Command { at, function, args })
    }

    fn operand(&mut self, tokens: &mut Tokens<'_>) -> Result<Operand, Mistake> {
        let Some((at, token)) = tokens.peek().cloned() else {
            return Err(Mistake::new(tokens.end, "a value is missing"));
        };
        tokens.next += 1;
        let mut fields = Vec::new();
        let value = match token {
            Token::Dot => Basis::Dot,
            Token::Field(name, _) => {
                fields.push((at, name));
                Basis::Dot
            }
            Token::Variable(name) => {
                if !self.variables.contains(&name) {
                    return Err(Mistake::new(at, format!("there is no variable ${name}")));
                }
                Basis::Variable(name)
            }
            Token::Text(text) => Basis::Literal(text.into()),
            Token::Integer(number) => Basis::Literal(Value::Integer(number)),
            Token::Float(number) => Basis::Literal(Value::Float(number)),
            Token::Word(word) => match literal(&word) {
                Some(value) => Basis::Literal(value),
                // A function without arguments, or one whose name was meant to be a field.
                None => {
                    let function = Some(find_function(at, &word)?);
                    let command = Command { at, function, args: Vec::new() };
                    let pipeline = Pipeline { variables: Vec::new(), assigns: false, commands: vec![command] };
                    Basis::Pipeline(Box::new(pipeline))
                }
            },
            Token::Open => {
                self.depth += 1;
                if self.depth > DEPTH {
                    return Err(Mistake::new(at, format!("more than {DEPTH} levels of nesting")));
                }
                let commands = self.commands(tokens)?;
                self.depth -= 1;
                match tokens.peek() {
                    Some((_, Token::Close)) => tokens.next += 1,
                    _ => return Err(Mistake::new(at, "a ( without its )")),
                }
                Basis::Pipeline(Box::new(Pipeline { variables: Vec::new(), assigns: false, commands }))
            }
            Token::Pipe | Token::Close | Token::Comma | Token::Declare | Token::Assign => {
                return Err(Mistake::new(at, "a value is expected here"));
            }
        };
        while let Some((at, Token::Field(name, true))) = tokens.peek() {
            fields.push((*at, name.clone()));
            tokens.next += 1;
        }
        Ok(Operand { at, value, fields })
    }
}

struct Tokens<'a> {
    all: &'a [(usize, Token)],
    next: usize,
    end: usize,
}

impl Tokens<'_> {
    fn peek(&self) -> Option<&(usize, Token)> {
        self.all.get(self.next)
    }
}

fn literal(word: &str) -> Option<Value> {
    match word {
        "true" => Some(true.into()),
        "false" => Some(false.into()),
        "nil" => Some(Value::NOTHING),
        _ => None,
    }
}

fn find_function(at: usize, name: &str) -> Result<&'static Function, Mistake> {
    if let Some(function) = FUNCTIONS.iter().find(|function| function.name == name) {
        return Ok(function);
    }
    let names = FUNCTIONS.iter().map(|function| function.name);
    let why = match nearest(name, names) {
        Some(meant) => format!("there is no function {name}; did you mean {meant}?"),
        None if name.starts_with(char::is_uppercase) => {
            format!("there is no function {name}; a field is written .{name}")
        }
        None => format!("there is no function {name}"),
    };
    Err(Mistake::new(at, why))
}
