//! The functions of templates: Go's own, and those that Docker adds.
//!
//! In: values. Out: a value, or why not. What always holds: nothing, where an image says nothing, is the empty value of
//! whatever it is compared with.

use std::cmp::Ordering;

use serde_json::Value;

use super::print::{format, print};

/// Longer texts are a template that went wrong.
pub(super) const LONGEST: usize = 1 << 20;

/// A function of templates.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    /// Fewest and most arguments.
    takes: (usize, usize),
    act: fn(&[Value]) -> Result<Value, String>,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

const ANY: usize = usize::MAX;

/// All of them.
pub(super) const FUNCTIONS: [Function; 24] = [
    Function { name: "and", takes: (1, ANY), act: |args| Ok(last(args)) },
    Function { name: "or", takes: (1, ANY), act: |args| Ok(last(args)) },
    Function { name: "not", takes: (1, 1), act: |args| Ok((!truth(&args[0])).into()) },
    Function { name: "len", takes: (1, 1), act: length },
    Function { name: "index", takes: (1, ANY), act: index },
    Function { name: "slice", takes: (1, 3), act: slice },
    Function { name: "print", takes: (0, ANY), act: |args| Ok(spaced(args, false).into()) },
    Function { name: "println", takes: (0, ANY), act: |args| Ok((spaced(args, true) + "\n").into()) },
    Function { name: "printf", takes: (1, ANY), act: |args| Ok(format(&text(&args[0])?, &args[1..]).into()) },
    Function { name: "eq", takes: (2, ANY), act: equal },
    Function { name: "ne", takes: (2, 2), act: |args| equal(args).map(|same| (same == Value::Bool(false)).into()) },
    Function { name: "lt", takes: (2, 2), act: |args| Ok(order(args)?.is_lt().into()) },
    Function { name: "le", takes: (2, 2), act: |args| Ok(order(args)?.is_le().into()) },
    Function { name: "gt", takes: (2, 2), act: |args| Ok(order(args)?.is_gt().into()) },
    Function { name: "ge", takes: (2, 2), act: |args| Ok(order(args)?.is_ge().into()) },
    Function { name: "json", takes: (1, 1), act: |args| Ok(args[0].to_string().into()) },
    Function { name: "join", takes: (2, 2), act: join },
    Function { name: "split", takes: (2, 2), act: split },
    Function { name: "upper", takes: (1, 1), act: |args| Ok(text(&args[0])?.to_uppercase().into()) },
    Function { name: "lower", takes: (1, 1), act: |args| Ok(text(&args[0])?.to_lowercase().into()) },
    Function { name: "title", takes: (1, 1), act: title },
    Function { name: "pad", takes: (3, 3), act: pad },
    Function { name: "truncate", takes: (2, 2), act: truncate },
    Function { name: "html", takes: (0, ANY), act: |args| Ok(html(args).into()) },
];

impl Function {
    /// Calls it.
    pub(super) fn call(&self, args: &[Value]) -> Result<Value, String> {
        let (fewest, most) = self.takes;
        if args.len() < fewest || args.len() > most {
            let takes = match (fewest, most) {
                (_, ANY) => format!("at least {fewest}"),
                (fewest, most) if fewest == most => fewest.to_string(),
                _ => format!("{fewest} to {most}"),
            };
            return Err(format!("{} takes {takes} arguments, not {}", self.name, args.len()));
        }
        (self.act)(args).map_err(|why| format!("{}: {why}", self.name))
    }
}

/// Whether Go takes a value for true: whether it is not empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn last(args: &[Value]) -> Value {
    args.last().cloned().unwrap_or_default()
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("expected a text, not {}", kind(other))),
    }
}

fn whole(value: &Value) -> Result<usize, String> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| format!("expected a number from 0 on, not {value}"))
}

fn length(args: &[Value]) -> Result<Value, String> {
    Ok(match &args[0] {
        Value::Null => 0.into(),
        Value::String(text) => text.len().into(),
        Value::Array(items) => items.len().into(),
        Value::Object(fields) => fields.len().into(),
        other => return Err(format!("{} has no length", kind(other))),
    })
}

fn index(args: &[Value]) -> Result<Value, String> {
    let mut value = &args[0];
    for key in &args[1..] {
        value = match value {
            Value::Null => return Ok(Value::Null),
            Value::Array(items) => {
                let number = whole(key)?;
                items.get(number).ok_or_else(|| format!("there is no item {number} in a list of {}", items.len()))?
            }
            // A key that is not there is empty, as in Go.
            Value::Object(fields) => match key {
                Value::String(name) => fields.get(name).unwrap_or(&Value::Null),
                other => return Err(format!("a map is asked by a text, not {}", kind(other))),
            },
            other => return Err(format!("{} has no items", kind(other))),
        };
    }
    Ok(value.clone())
}

fn slice(args: &[Value]) -> Result<Value, String> {
    let all = match &args[0] {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => return Err(format!("{} has no parts", kind(other))),
    };
    let from = args.get(1).map_or(Ok(0), whole)?;
    let to = args.get(2).map_or(Ok(all), whole)?;
    let outside = || format!("{from} to {to} is not inside of 0 to {all}");
    match &args[0] {
        Value::String(text) => text.get(from..to).map(Value::from).ok_or_else(outside),
        Value::Array(items) => items.get(from..to).map(Value::from).ok_or_else(outside),
        _ => Err(outside()),
    }
}

/// As Go's `Print`: blanks between operands where neither is a text, or `everywhere`.
fn spaced(args: &[Value], everywhere: bool) -> String {
    let mut out = String::new();
    for (number, value) in args.iter().enumerate() {
        let texts = number > 0 && (value.is_string() || args[number - 1].is_string());
        if number > 0 && (everywhere || !texts) {
            out.push(' ');
        }
        print(value, &mut out);
    }
    out
}

/// Whether the first is any of the others.
fn equal(args: &[Value]) -> Result<Value, String> {
    for other in &args[1..] {
        let same = match (&args[0], other) {
            (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
                return Err("lists and maps cannot be compared".to_owned());
            }
            (Value::Null, other) | (other, Value::Null) => !truth(other),
            (Value::Number(_), Value::Number(_)) => order(&[args[0].clone(), other.clone()])?.is_eq(),
            (Value::String(_), Value::String(_)) | (Value::Bool(_), Value::Bool(_)) => args[0] == *other,
            (a, b) => return Err(format!("{} and {} cannot be compared", kind(a), kind(b))),
        };
        if same {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn order(args: &[Value]) -> Result<Ordering, String> {
    match (&args[0], &args[1]) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => Ok(a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0))),
        },
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        (Value::Null, Value::String(b)) => Ok("".cmp(b.as_str())),
        (Value::String(a), Value::Null) => Ok(a.as_str().cmp("")),
        (Value::Null, b @ Value::Number(_)) => order(&[0.into(), b.clone()]),
        (a @ Value::Number(_), Value::Null) => order(&[a.clone(), 0.into()]),
        (Value::Null, Value::Null) => Ok(Ordering::Equal),
        (a, b) => Err(format!("{} and {} have no order", kind(a), kind(b))),
    }
}

fn join(args: &[Value]) -> Result<Value, String> {
    let items = match &args[0] {
        Value::Null => return Ok("".into()),
        Value::Array(items) => items,
        other => return Err(format!("expected a list, not {}", kind(other))),
    };
    Ok(items.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(&text(&args[1])?).into())
}

fn split(args: &[Value]) -> Result<Value, String> {
    let (whole, sign) = (text(&args[0])?, text(&args[1])?);
    if sign.is_empty() {
        return Ok(whole.chars().map(String::from).collect::<Vec<_>>().into());
    }
    Ok(whole.split(&sign).collect::<Vec<_>>().into())
}

fn title(args: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    let mut begins = true;
    for letter in text(&args[0])?.chars() {
        if begins {
            out.extend(letter.to_uppercase());
        } else {
            out.push(letter);
        }
        begins = !(letter.is_alphanumeric() || letter == '_' || letter == '\'');
    }
    Ok(out.into())
}

fn pad(args: &[Value]) -> Result<Value, String> {
    let text = text(&args[0])?;
    let blanks = |number: &Value| whole(number).map(|count| " ".repeat(count.min(LONGEST)));
    // Docker leaves the empty text empty.
    Ok(if text.is_empty() { text } else { format!("{}{text}{}", blanks(&args[1])?, blanks(&args[2])?) }.into())
}

fn truncate(args: &[Value]) -> Result<Value, String> {
    let most = whole(&args[1])?;
    Ok(text(&args[0])?.chars().take(most).collect::<String>().into())
}

fn html(args: &[Value]) -> String {
    let mut out = String::new();
    for letter in spaced(args, false).chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}
