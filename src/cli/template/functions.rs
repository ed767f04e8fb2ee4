//! The functions of templates: Go's own, and those that Docker adds.
//!
//! In: values. Out: a value, or why not. What always holds: nothing, where an image says nothing, is the empty value of
//! whatever it is compared with.

use std::cmp::Ordering;

use super::print::{format, print};
use super::value::Value;

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
pub(super) const FUNCTIONS: [Function; 26] = [
    Function { name: "and", takes: (1, ANY), act: |args| Ok(last(args)) },
    Function { name: "or", takes: (1, ANY), act: |args| Ok(last(args)) },
    Function { name: "not", takes: (1, 1), act: |args| Ok((!args[0].truth()).into()) },
    Function { name: "len", takes: (1, 1), act: length },
    Function { name: "index", takes: (1, ANY), act: index },
    Function { name: "slice", takes: (1, 3), act: slice },
    Function { name: "print", takes: (0, ANY), act: |args| Ok(spaced(args, false).into()) },
    Function { name: "println", takes: (0, ANY), act: |args| Ok((spaced(args, true) + "\n").into()) },
    Function { name: "printf", takes: (1, ANY), act: |args| Ok(format(&text(&args[0])?, &args[1..]).into()) },
    Function { name: "eq", takes: (2, ANY), act: equal },
    Function { name: "ne", takes: (2, 2), act: |args| equal(args).map(|same| (!same.truth()).into()) },
    Function { name: "lt", takes: (2, 2), act: |args| Ok(order(args)?.is_lt().into()) },
    Function { name: "le", takes: (2, 2), act: |args| Ok(order(args)?.is_le().into()) },
    Function { name: "gt", takes: (2, 2), act: |args| Ok(order(args)?.is_gt().into()) },
    Function { name: "ge", takes: (2, 2), act: |args| Ok(order(args)?.is_ge().into()) },
    Function { name: "json", takes: (1, 1), act: |args| Ok(args[0].json().to_string().into()) },
    Function { name: "join", takes: (2, 2), act: join },
    Function { name: "split", takes: (2, 2), act: split },
    Function { name: "upper", takes: (1, 1), act: |args| Ok(text(&args[0])?.to_uppercase().into()) },
    Function { name: "lower", takes: (1, 1), act: |args| Ok(text(&args[0])?.to_lowercase().into()) },
    Function { name: "title", takes: (1, 1), act: title },
    Function { name: "pad", takes: (3, 3), act: pad },
    Function { name: "truncate", takes: (2, 2), act: truncate },
    Function { name: "html", takes: (0, ANY), act: |args| Ok(html(args).into()) },
    Function { name: "js", takes: (0, ANY), act: |args| Ok(js(args).into()) },
    Function { name: "urlquery", takes: (0, ANY), act: |args| Ok(urlquery(args).into()) },
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

fn last(args: &[Value]) -> Value {
    args.last().cloned().unwrap_or(Value::NOTHING)
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Nil(_) => Ok(String::new()),
        Value::Text(text) => Ok(text.clone()),
        other => Err(format!("expected a text, not {}", other.kind())),
    }
}

fn whole(value: &Value) -> Result<usize, String> {
    match value {
        Value::Integer(number) => usize::try_from(*number).ok(),
        _ => None,
    }
    .ok_or_else(|| format!("expected a number from 0 on, not {}", value.json()))
}

fn length(args: &[Value]) -> Result<Value, String> {
    Ok(match &args[0] {
        Value::Nil(_) => 0_usize.into(),
        Value::Text(text) => text.len().into(),
        Value::List(items) => items.len().into(),
        Value::Map(fields) => fields.len().into(),
        other => return Err(format!("{} has no length", other.kind())),
    })
}

fn index(args: &[Value]) -> Result<Value, String> {
    let mut value = &args[0];
    for key in &args[1..] {
        value = match value {
            Value::Nil(_) => return Ok("".into()),
            Value::List(items) => {
                let number = whole(key)?;
                items.get(number).ok_or_else(|| format!("there is no item {number} in a list of {}", items.len()))?
            }
            Value::Map(fields) => match key {
                Value::Text(name) => match fields.iter().find(|(known, _)| known == name) {
                    Some((_, found)) => found,
                    // A key that is not there is empty, as in Go: our maps are those of texts.
                    None => return Ok("".into()),
                },
                other => return Err(format!("a map has names, not {}", other.kind())),
            },
            other => return Err(format!("{} has no items", other.kind())),
        };
    }
    Ok(value.clone())
}

fn slice(args: &[Value]) -> Result<Value, String> {
    let all = match &args[0] {
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        other => return Err(format!("{} has no parts", other.kind())),
    };
    let from = args.get(1).map_or(Ok(0), whole)?;
    let to = args.get(2).map_or(Ok(all), whole)?;
    let outside = || format!("{from} to {to} is not inside of 0 to {all}");
    match &args[0] {
        Value::Text(text) => text.get(from..to).map(Value::from).ok_or_else(outside),
        Value::List(items) => items.get(from..to).map(|part| Value::List(part.to_vec())).ok_or_else(outside),
        _ => Err(outside()),
    }
}

/// As Go's `Print`: blanks between operands where neither is a text, or `everywhere`.
fn spaced(args: &[Value], everywhere: bool) -> String {
    let mut out = String::new();
    for (number, value) in args.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        let texts = number > 0 && (is_text(value) || is_text(&args[number - 1]));
        if number > 0 && (everywhere || !texts) {
            out.push(' ');
        }
        print(value, &mut out);
    }
    out
}

/// Whether the first is any of the others.
fn equal(args: &[Value]) -> Result<Value, String> {
    use Value::{Bool, List, Map, Nil, Struct, Text};
    for other in &args[1..] {
        let same = match (&args[0], other) {
            (List(_) | Map(_) | Struct(_), _) | (_, List(_) | Map(_) | Struct(_)) => {
                return Err("lists and maps cannot be compared".to_owned());
            }
            (Nil(_), other) | (other, Nil(_)) => !other.truth(),
            (Text(_), Text(_)) | (Bool(_), Bool(_)) => args[0] == *other,
            (a, b) => match numbers(a, b) {
                Some(order) => order.is_eq(),
                None => return Err(format!("{} and {} cannot be compared", a.kind(), b.kind())),
            },
        };
        if same {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn order(args: &[Value]) -> Result<Ordering, String> {
    const ZERO: Value = Value::Integer(0);
    match (&args[0], &args[1]) {
        (Value::Text(a), Value::Text(b)) => Ok(a.cmp(b)),
        (Value::Nil(_), Value::Text(b)) => Ok("".cmp(b.as_str())),
        (Value::Text(a), Value::Nil(_)) => Ok(a.as_str().cmp("")),
        (Value::Nil(_), Value::Nil(_)) => Ok(Ordering::Equal),
        (a, b) => {
            let or_zero = |value: &'_ Value| if matches!(value, Value::Nil(_)) { ZERO } else { value.clone() };
            let none = || format!("{} and {} have no order", a.kind(), b.kind());
            numbers(&or_zero(a), &or_zero(b)).ok_or_else(none)
        }
    }
}

/// The order of two numbers.
fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    use Value::{Duration, Float, Integer};
    match (a, b) {
        (Integer(a) | Duration(a), Integer(b) | Duration(b)) => Some(a.cmp(b)),
        (Float(a), Float(b)) => Some(a.total_cmp(b)),
        (Integer(a), Float(b)) => Some((*a as f64).total_cmp(b)),
        (Float(a), Integer(b)) => Some(a.total_cmp(&(*b as f64))),
        _ => None,
    }
}

fn join(args: &[Value]) -> Result<Value, String> {
    let items = match &args[0] {
        Value::Nil(_) => return Ok("".into()),
        Value::List(items) => items,
        other => return Err(format!("expected a list, not {}", other.kind())),
    };
    Ok(items.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(&text(&args[1])?).into())
}

fn split(args: &[Value]) -> Result<Value, String> {
    let (whole, sign) = (text(&args[0])?, text(&args[1])?);
    if sign.is_empty() {
        return Ok(Value::List(whole.chars().map(|letter| letter.to_string().into()).collect()));
    }
    Ok(Value::List(whole.split(&sign).map(Value::from).collect()))
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

fn js(args: &[Value]) -> String {
    let mut out = String::new();
    for letter in spaced(args, false).chars() {
        match letter {
            '\\' | '\'' | '"' => out.extend(['\\', letter]),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            letter if letter.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out
}

fn urlquery(args: &[Value]) -> String {
    let mut out = String::new();
    for byte in spaced(args, false).bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
