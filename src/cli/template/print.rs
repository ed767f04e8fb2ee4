//! Values as Go prints them.
//!
//! In: values, and for `printf` a format. Out: text. What always holds: a verb that does not fit is shown as Go shows it,
//! with the value, and is no error.

use std::iter::Peekable;
use std::str::Chars;

use super::functions::LONGEST;
use super::value::{Field, Nil, Value};

/// Larger widths and precisions are none, as in Go.
const WIDEST: usize = 1_000_000;

/// A value as Go's `%v` has it.
pub(super) fn print(value: &Value, out: &mut String) {
    Spec::default().write('v', value, out);
}

/// A number as Go's `%v` has it: the shortest digits, with an exponent where it is small or has more than 6 digits.
fn shortest(number: f64) -> String {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(-4..6) => number.to_string(),
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs()),
        Err(_) => text,
    }
}

/// A length of time as Go prints it: `1m30s`, `1.5ms`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let all = nanoseconds.unsigned_abs();
    let fraction = |whole: u64, unit: u64| {
        let digits = format!("{:0width$}", whole % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { (whole / unit).to_string() } else { format!("{}.{digits}", whole / unit) }
    };
    let text = match all {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{all}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(all, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(all, 1_000_000)),
        _ => {
            let minutes = all / 60_000_000_000;
            let seconds = fraction(all % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// A text as Go writes it in a program.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::from(quote);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            letter if letter == quote => out.extend(['\\', letter]),
            letter if letter.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(letter))),
            letter if letter.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out.push(quote);
    out
}

/// The name of a value's type, as `%T` has it.
fn type_name(value: &Value) -> &'static str {
    let texts = |value: &Value| matches!(value, Value::Text(_));
    match value {
        Value::Nil(Nil::Any | Nil::Pointer) => "<nil>",
        Value::Bool(_) => "bool",
        Value::Integer(_) => "int",
        Value::Float(_) => "float64",
        Value::Duration(_) => "time.Duration",
        Value::Text(_) => "string",
        Value::Nil(Nil::List) => "[]string",
        Value::List(items) if items.iter().all(texts) => "[]string",
        Value::List(_) => "[]interface {}",
        Value::Nil(Nil::Map) => "map[string]string",
        Value::Map(items) if items.iter().all(|(_, item)| texts(item)) => "map[string]string",
        Value::Map(_) => "map[string]interface {}",
        Value::Struct(_) => "struct",
    }
}

/// As Go names what it did not expect: `string=x`.
fn with_type(value: &Value) -> String {
    if matches!(value, Value::Nil(Nil::Any | Nil::Pointer)) {
        return "<nil>".to_owned();
    }
    let mut text = String::new();
    print(value, &mut text);
    format!("{}={text}", type_name(value))
}

/// What a format is given.
struct Arguments<'a> {
    all: &'a [Value],
    next: usize,
    /// An index was used: what is left over is not told.
    reordered: bool,
    /// No index was wrong.
    good: bool,
}

impl<'a> Arguments<'a> {
    /// Takes `[n]`, which says what comes next.
    fn index(&mut self, letters: &mut Peekable<Chars<'_>>) {
        if letters.next_if_eq(&'[').is_none() {
            return;
        }
        self.reordered = true;
        let number = number(letters);
        let closed = letters.find(|letter| *letter == ']').is_some();
        match number {
            Ok(Some(number)) if closed && (1..=self.all.len()).contains(&number) => self.next = number - 1,
            _ => self.good = false,
        }
    }

    fn take(&mut self) -> Option<&'a Value> {
        self.next += 1;
        self.all.get(self.next - 1)
    }

    /// A width or a precision that is an argument; `Err` where it is no number of that size.
    fn take_number(&mut self) -> Result<i64, ()> {
        match self.take() {
            Some(Value::Integer(number)) if number.unsigned_abs() <= WIDEST as u64 => Ok(*number),
            _ => Err(()),
        }
    }
}

/// The number that comes next, if one does; `Err` where it is too large.
fn number(letters: &mut Peekable<Chars<'_>>) -> Result<Option<usize>, ()> {
    let mut number = Ok(None);
    while let Some(digit) = letters.next_if(char::is_ascii_digit) {
        number = number.and_then(|sum: Option<usize>| {
            let sum = sum.unwrap_or(0) * 10 + digit as usize - '0' as usize;
            if sum <= WIDEST { Ok(Some(sum)) } else { Err(()) }
        });
    }
    number
}

/// What stands between `%` and its verb.
#[derive(Debug, Clone, Default)]
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
    let mut args = Arguments { all: args, next: 0, reordered: false, good: true };
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut spec = Spec::default();
        args.good = true;
        while let Some(flag) = letters.next_if(|letter| "-+# 0".contains(*letter)) {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                _ => {}
            }
        }
        args.index(&mut letters);
        if letters.next_if_eq(&'*').is_some() {
            match args.take_number() {
                Ok(width) => {
                    spec.left |= width < 0;
                    spec.width = width.unsigned_abs() as usize;
                }
                Err(()) => out.push_str("%!(BADWIDTH)"),
            }
        } else {
            match number(&mut letters) {
                Ok(None) => {}
                Ok(Some(width)) => spec.width = width,
                // So wide a field is none: nothing after it is read.
                Err(()) => letters = "".chars().peekable(),
            }
        }
        if letters.next_if_eq(&'.').is_some() {
            args.index(&mut letters);
            if letters.next_if_eq(&'*').is_some() {
                match args.take_number() {
                    Ok(precision) => spec.precision = usize::try_from(precision).ok(),
                    Err(()) => out.push_str("%!(BADPREC)"),
                }
            } else {
                match number(&mut letters) {
                    Ok(None) => spec.precision = Some(0),
                    Ok(Some(precision)) => spec.precision = Some(precision),
                    Err(()) => letters = "".chars().peekable(),
                }
            }
        }
        args.index(&mut letters);
        match letters.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) if !args.good => out.push_str(&format!("%!{verb}(BADINDEX)")),
            Some(verb) => match args.take() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => spec.write(verb, value, &mut out),
            },
        }
        if out.len() > LONGEST {
            break;
        }
    }
    let rest = args.all.get(args.next..).unwrap_or_default();
    if !rest.is_empty() && !args.reordered {
        let shown = rest.iter().map(with_type).collect::<Vec<_>>().join(", ");
        out.push_str(&format!("%!(EXTRA {shown})"));
    }
    out
}

impl Spec {
    /// A value by a verb; of what holds others each of them.
    fn write(&self, verb: char, value: &Value, out: &mut String) {
        match value {
            _ if verb == 'T' => self.pad(type_name(value), false, out),
            Value::List(items) => {
                self.all(verb, ("[", "]"), items.iter().map(|item| (None, item)), out);
            }
            Value::Map(fields) => {
                let mut fields: Vec<_> = fields.iter().map(|(name, value)| (Some(name.as_str()), value)).collect();
                fields.sort_by_key(|(name, _)| *name);
                self.all(verb, ("map[", "]"), fields, out);
            }
            Value::Struct(fields) => {
                let named = self.plus && verb == 'v';
                let parts = fields.iter().map(|Field { name, value, .. }| {
                    let shown = named && !name.is_empty();
                    (shown.then_some(name.as_str()), value)
                });
                self.all(verb, ("{", "}"), parts, out);
            }
            Value::Nil(Nil::List) => out.push_str("[]"),
            Value::Nil(Nil::Map) => out.push_str("map[]"),
            Value::Nil(_) if verb == 'v' => self.pad("<nil>", false, out),
            value => {
                let (text, is_number) = self.one(verb, value);
                self.pad(&text, is_number, out);
            }
        }
    }

    fn all<'a>(
        &self,
        verb: char,
        (open, close): (&str, &str),
        items: impl IntoIterator<Item = (Option<&'a str>, &'a Value)>,
        out: &mut String,
    ) {
        out.push_str(open);
        for (number, (name, item)) in items.into_iter().enumerate() {
            // What is nested may be many times what was given: of that much nobody sees the end.
            if out.len() > LONGEST * 64 {
                break;
            }
            if number > 0 {
                out.push(' ');
            }
            if let Some(name) = name {
                let name_verb = if verb == 'q' { 'q' } else { 's' };
                Self::default().write(name_verb, &name.into(), out);
                out.push(':');
            }
            self.write(verb, item, out);
        }
        out.push_str(close);
    }

    /// A value that holds no others; whether its text is that of a number.
    fn one(&self, verb: char, value: &Value) -> (String, bool) {
        let cut = |text: &str| match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_owned(),
        };
        let signed = |text: String| if self.plus && !text.starts_with('-') { format!("+{text}") } else { text };
        let letter = |number: i64| u32::try_from(number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
        let text = match (verb, value) {
            ('v' | 's', Value::Text(text)) => cut(text),
            ('v' | 's', Value::Duration(time)) => duration(*time),
            ('v' | 'd', Value::Integer(number)) | ('d', Value::Duration(number)) => {
                return (signed(number.to_string()), true);
            }
            ('v' | 't', Value::Bool(value)) => value.to_string(),
            ('q', Value::Text(text)) => quoted(&cut(text), '"'),
            ('q', Value::Integer(number)) => quoted(&letter(*number).to_string(), '\''),
            ('c', Value::Integer(number)) => letter(*number).to_string(),
            ('U', Value::Integer(number)) => format!("U+{number:04X}"),
            ('x', Value::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('X', Value::Text(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
            ('x' | 'X' | 'o' | 'b', Value::Integer(number)) => {
                let sign = if *number < 0 { "-" } else { "" };
                let number = number.unsigned_abs();
                let digits = match verb {
                    'x' => format!("{number:x}"),
                    'X' => format!("{number:X}"),
                    'o' => format!("{number:o}"),
                    _ => format!("{number:b}"),
                };
                return (signed(format!("{sign}{digits}")), true);
            }
            ('f' | 'F', Value::Float(number)) => {
                return (signed(format!("{number:.*}", self.precision.unwrap_or(6).min(1000))), true);
            }
            ('v' | 'g', Value::Float(number)) => return (signed(shortest(*number)), true),
            (verb, other) => format!("%!{verb}({})", with_type(other)),
        };
        (text, false)
    }

    fn pad(&self, text: &str, is_number: bool, out: &mut String) {
        let missing = self.width.saturating_sub(text.chars().count());
        if self.left {
            out.push_str(text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else if self.zero && is_number {
            let sign = usize::from(text.starts_with(['-', '+']));
            out.push_str(&text[..sign]);
            out.extend(std::iter::repeat_n('0', missing));
            out.push_str(&text[sign..]);
        } else {
            out.extend(std::iter::repeat_n(' ', missing));
            out.push_str(text);
        }
    }
}
