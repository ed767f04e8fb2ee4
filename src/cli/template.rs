//! `--format`: the part of Go's templates that prints fields.
//!
//! In: a template such as `{{.Repository}}:{{.Tag}}` or `{{json .Config.Cmd}}`, and JSON values. Out: text as Go prints it.
//! What always holds: what is not understood is refused when the template is read, by name, before anything is printed.

use serde_json::Value;

use crate::diagnostic::nearest;

/// A template that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A path of field names; none is the value itself.
    Field {
        json: bool,
        path: Vec<String>,
    },
}

impl Template {
    /// Reads a template. The error fits after "--format: ".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            if start > 0 {
                parts.push(Part::Text(rest[..start].to_owned()));
            }
            let after = &rest[start + 2..];
            let end = after.find("}}").ok_or_else(|| format!("{{{{ is not closed in {text}"))?;
            parts.push(action(&after[..end])?);
            rest = &after[end + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// The text for `value`. A field that it does not have at its top is an error; deeper down it is empty, since
    /// images do not say what they leave at its default.
    pub(crate) fn render(&self, value: &Value) -> Result<String, String> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { json, path } => {
                    let found = field(value, path)?;
                    if *json { out.push_str(&found.to_string()) } else { print(found, &mut out) }
                }
            }
        }
        Ok(out)
    }
}

fn action(text: &str) -> Result<Part, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let unknown = || format!("not supported yet: {{{{{text}}}}}; known are {{{{.Field}}}} and {{{{json .Field}}}}");
    let (json, path) = match words.as_slice() {
        [path] => (false, path),
        ["json", path] => (true, path),
        _ => return Err(unknown()),
    };
    let path = path.strip_prefix('.').ok_or_else(unknown)?;
    let names: Vec<String> = path.split('.').filter(|_| !path.is_empty()).map(str::to_owned).collect();
    let is_name = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if names.iter().all(is_name) { Ok(Part::Field { json, path: names }) } else { Err(unknown()) }
}

fn field<'a>(value: &'a Value, path: &[String]) -> Result<&'a Value, String> {
    const NOTHING: &Value = &Value::Null;
    let Some((first, deeper)) = path.split_first() else { return Ok(value) };
    let found = value.get(first).ok_or_else(|| {
        let names = value.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        match nearest(first, names.clone()) {
            Some(meant) => format!("there is no field .{first}; did you mean .{meant}?"),
            None => format!("there is no field .{first}; there are .{}", names.collect::<Vec<_>>().join(", .")),
        }
    })?;
    Ok(deeper.iter().fold(found, |value, name| value.get(name).unwrap_or(NOTHING)))
}

/// A value as Go's `%v` has it.
fn print(value: &Value, out: &mut String) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_printed_as_go_does() {
        let value = json!({"Id": "x", "Size": 7, "Config": {"Cmd": ["a", "b c"], "Labels": {"b": "2", "a": "1"}}, "Tags": null});
        for (template, expected) in [
            ("", Ok("")),
            ("plain", Ok("plain")),
            ("{{.Id}}", Ok("x")),
            ("{{ .Id }}:{{.Size}}!", Ok("x:7!")),
            ("{{.Config.Cmd}}", Ok("[a b c]")),
            ("{{json .Config.Cmd}}", Ok(r#"["a","b c"]"#)),
            ("{{.Config.Labels}}", Ok("map[a:1 b:2]")),
            ("{{.Config.Labels.a}}", Ok("1")),
            ("{{.Config.User}}", Ok("")),
            ("{{json .Config.User}}", Ok("null")),
            ("{{.Config.User.Deeper}}", Ok("")),
            ("{{json .Tags}}", Ok("null")),
            ("{{.Ids}}", Err("did you mean .Id?")),
            ("{{.Nothing}}", Err("there are .Id, .Size, .Config, .Tags")),
            ("{{.Id", Err("is not closed")),
            ("{{range .Tags}}x{{end}}", Err("not supported yet: {{range .Tags}}")),
            ("{{.Id | json}}", Err("not supported yet")),
            ("{{Id}}", Err("not supported yet")),
            ("{{.a..b}}", Err("not supported yet")),
            ("{{}}", Err("not supported yet")),
        ] {
            let found = Template::parse(template).and_then(|template| template.render(&value));
            match expected {
                Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{template}"),
                Err(expected) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(expected), "{template}: {error}");
                }
            }
        }
        assert_eq!(Template::parse("{{json .}}").unwrap().render(&json!([1])).unwrap(), "[1]");
    }
}
