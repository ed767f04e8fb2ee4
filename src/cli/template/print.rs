//! Values as Go prints them.
//!
//! In: values, and for `printf` a format. Out: text. What always holds: a verb that does not fit is shown as Go shows it,
//! with the value, and is no error.

use serde_json::Value;

use super::functions::LONGEST;

/// A value as Go's `%v` has it; nothing is nothing.
pub(super) fn print(value: &Value, out: &mut String) {
    match value {
        Value::Null => {}
        Value::String(text) => out.push_str(text),
        Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
        Value::Array(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                print(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.iter().collect();
            names.sort_by_key(|(name, _)| *name);
            out.push_str("map[");
            for (number, (name, value)) in names.into_iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                out.push_str(name);
                out.push(':');
                print(value, out);
            }
            out.push(']');
        }
    }
}

/// What stands between `%` and its verb.
#[derive(Debug, Default)]
struct Spec {
    left: bool,
    plus: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Go's `Sprintf`.
pub(super) fn format(pattern: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut next = args.iter();
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = letters.next_if(|letter| "-+# 0".contains(*letter)) {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                _ => {}
            }
        }
        spec.width = number(&mut letters, LONGEST);
        if letters.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut letters, 1000));
        }
        match letters.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match next.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => spec.write(verb, value, &mut out),
            },
        }
    }
    let rest: Vec<&Value> = next.collect();
    if !rest.is_empty() {
        let shown = rest.into_iter().map(with_type).collect::<Vec<_>>().join(", ");
        out.push_str(&format!("%!(EXTRA {shown})"));
    }
    out
}

/// The digits that come next; no more than `most`.
fn number(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, most: usize) -> usize {
    let mut number = 0;
    while let Some(digit) = letters.next_if(char::is_ascii_digit) {
        number = (number * 10 + digit as usize - '0' as usize).min(most);
    }
    number
}

/// As Go names what it did not expect: `string=x`.
fn with_type(value: &Value) -> String {
    let kind = match value {
        Value::Null => return "<nil>".to_owned(),
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    let mut text = String::new();
    print(value, &mut text);
    format!("{kind}={text}")
}

impl Spec {
    fn write(&self, verb: char, value: &Value, out: &mut String) {
        let cut = |text: &str| match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_owned(),
        };
        let signed = |text: String| if self.plus && !text.starts_with('-') { format!("+{text}") } else { text };
        let text = match (verb, value) {
            ('v' | 's', Value::String(text)) => cut(text),
            ('v' | 'd', Value::Number(number)) if !number.is_f64() => signed(number.to_string()),
            ('v', Value::Number(number)) => signed(number.to_string()),
            ('v' | 't', Value::Bool(value)) => value.to_string(),
            ('v' | 's', Value::Null) => String::new(),
            ('v' | 's', Value::Array(_) | Value::Object(_)) => {
                let mut text = String::new();
                print(value, &mut text);
                text
            }
            ('q', Value::String(text)) => Value::from(cut(text)).to_string(),
            ('x', Value::String(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('X', Value::String(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
            ('x' | 'X' | 'o' | 'b', Value::Number(number)) if number.as_i64().is_some() => {
                let number = number.as_i64().unwrap_or(0);
                let sign = if number < 0 { "-" } else { "" };
                let number = number.unsigned_abs();
                let digits = match verb {
                    'x' => format!("{number:x}"),
                    'X' => format!("{number:X}"),
                    'o' => format!("{number:o}"),
                    _ => format!("{number:b}"),
                };
                signed(format!("{sign}{digits}"))
            }
            ('f' | 'F', Value::Number(number)) if number.is_f64() => {
                signed(format!("{:.*}", self.precision.unwrap_or(6), number.as_f64().unwrap_or(0.0)))
            }
            ('g', Value::Number(number)) if number.is_f64() => signed(number.to_string()),
            (verb, other) => format!("%!{verb}({})", with_type(other)),
        };
        let missing = self.width.saturating_sub(text.chars().count());
        if self.left {
            out.push_str(&text);
            out.push_str(&" ".repeat(missing));
        } else if self.zero && value.is_number() {
            let sign = usize::from(text.starts_with(['-', '+']));
            out.push_str(&text[..sign]);
            out.push_str(&"0".repeat(missing));
            out.push_str(&text[sign..]);
        } else {
            out.push_str(&" ".repeat(missing));
            out.push_str(&text);
        }
    }
}
