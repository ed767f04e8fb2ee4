//! What differs between two image configs.
//!
//! In: two configs. Out: the fields that differ, by their paths in the document, each with its two values. What always
//! holds: every field counts, known or not; the list of layers is left out, since layers are compared by themselves.

use serde_json::Value;

use crate::image::config::ImageConfig;

/// A field that is not the same in both.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange {
    /// Where it is: `config.Env[2]`.
    pub field: String,
    /// The first config's value.
    pub a: Option<Value>,
    /// The second config's value.
    pub b: Option<Value>,
}

/// Compares two configs.
pub fn compare(a: &ImageConfig, b: &ImageConfig) -> Vec<FieldChange> {
    let document = |config: &ImageConfig| {
        // Proof: no map of this type has keys that are not strings.
        let mut value = serde_json::to_value(config).expect("a config is plain JSON");
        if let Some(rootfs) = value.get_mut("rootfs").and_then(Value::as_object_mut) {
            rootfs.remove("diff_ids");
        }
        value
    };
    let mut changes = Vec::new();
    walk("", Some(&document(a)), Some(&document(b)), &mut changes);
    changes
}

fn walk(field: &str, a: Option<&Value>, b: Option<&Value>, changes: &mut Vec<FieldChange>) {
    match (a, b) {
        (a, b) if a == b => {}
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let names = x.keys().chain(y.keys().filter(|name| !x.contains_key(*name)));
            for name in names {
                let field = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                walk(&field, x.get(name), y.get(name), changes);
            }
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            for number in 0..x.len().max(y.len()) {
                walk(&format!("{field}[{number}]"), x.get(number), y.get(number), changes);
            }
        }
        (a, b) => changes.push(FieldChange { field: field.to_owned(), a: a.cloned(), b: b.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_by_their_paths() {
        let config = |text: &Value| ImageConfig::parse(text.to_string().as_bytes()).unwrap();
        let a = config(&json!({
            "os": "linux", "architecture": "amd64", "config": {"Env": ["A=1", "B=2"], "Labels": {"x.y": "1"}},
            "history": [{"created_by": "RUN a"}], "rootfs": {"type": "layers", "diff_ids": []}, "strange": 1,
        }));
        let b = config(&json!({
            "os": "linux", "architecture": "arm64", "config": {"Env": ["A=1"], "Labels": {"x.y": "2"}, "User": "u"},
            "history": [{"created_by": "RUN a"}, {"created_by": "CMD"}],
            "rootfs": {"type": "layers", "diff_ids": [crate::digest::Digest::of(b"x").to_string()]},
        }));
        assert_eq!(compare(&a, &a), []);
        let mut fields: Vec<String> = compare(&a, &b).into_iter().map(|change| change.field).collect();
        fields.sort();
        let expected = ["architecture", "config.Env[1]", "config.Labels.x.y", "config.User", "history[1]", "strange"];
        assert_eq!(fields, expected);
        let user = compare(&a, &b).into_iter().find(|change| change.field == "config.User").unwrap();
        assert_eq!((user.a, user.b), (None, Some(json!("u"))));
    }
}
