//! `rbuild --print ast`: nodes as JSON.
//!
//! In: [`Node`] values. Out: an array with one object per instruction; the documentation of the command line says
//! which fields scripts may rely on.

use serde_json::{Value, json};

use super::node::{Keyword, Node};

/// An array with one object per instruction, in the order of the file.
pub fn print_ast(nodes: &[Node]) -> Value {
    Value::Array(nodes.iter().map(object).collect())
}

fn object(node: &Node) -> Value {
    let name = match node.keyword {
        Keyword::Unknown => node.name.text.clone(),
        known => known.name().to_owned(),
    };
    let mut object = json!({
        "instruction": name,
        "flags": node.flags.iter().map(|flag| &flag.word.text).collect::<Vec<_>>(),
        "args": node.args.iter().map(|word| &word.text).collect::<Vec<_>>(),
        "json": node.json,
        "heredocs": node.heredocs.iter().map(|heredoc| json!({
            "name": heredoc.name,
            "content": heredoc.raw(),
            "expand": heredoc.expand,
            "chomp": heredoc.chomp,
        })).collect::<Vec<_>>(),
        "start_line": node.lines.0,
        "end_line": node.lines.1,
        "original": node.text,
    });
    if !node.comments.is_empty() {
        object["comments"] = json!(node.comments);
    }
    // The grammar's depth of triggers is bounded, so this recursion is.
    if let Some(sub) = &node.sub {
        object["sub"] = self::object(sub);
    }
    object
}
