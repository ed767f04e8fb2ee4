//! Values of templates, with what JSON does not say and Go knows.
//!
//! In: JSON, or values put together by a command. Out: values that print as Go's do, and JSON again. What always holds:
//! a struct has the fields that it has, and no others; a map may have any; nothing at all knows what it is nothing of.

use serde_json::{Map, Number, Value as Json};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Nil(Nil),
    Bool(bool),
    Integer(i64),
    Float(f64),
    /// A length of time, in nanoseconds.
    Duration(i64),
    Text(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
    Struct(Vec<Field>),
}

/// What nothing is nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nil {
    /// Of anything: what a map does not have, and JSON's null.
    Any,
    /// A pointer that leads nowhere.
    Pointer,
    List,
    Map,
}

/// A field of a struct. One without a name is a struct whose fields are seen as those of the outer one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: Value,
    /// Whether JSON leaves it out when it is empty.
    pub(crate) omits: bool,
}

/// A field.
pub(crate) fn field(name: impl Into<String>, value: impl Into<Value>) -> Field {
    Field { name: name.into(), value: value.into(), omits: false }
}

/// A field that JSON leaves out when it is empty.
pub(crate) fn optional(name: impl Into<String>, value: impl Into<Value>) -> Field {
    Field { name: name.into(), value: value.into(), omits: true }
}

impl Value {
    pub(super) const NOTHING: Self = Self::Nil(Nil::Any);

    /// A JSON object with its fields and no others: a struct.
    pub(crate) fn structure(value: &Json) -> Self {
        match value {
            Json::Object(fields) => Self::Struct(fields.iter().map(|(name, value)| field(name, value)).collect()),
            other => other.into(),
        }
    }

    /// A list, which is nil when it is empty.
    pub(crate) fn list_or_nil(items: impl IntoIterator<Item = impl Into<Value>>) -> Self {
        let items: Vec<Self> = items.into_iter().map(Into::into).collect();
        if items.is_empty() { Self::Nil(Nil::List) } else { Self::List(items) }
    }

    /// A map, which is nil when it is empty.
    pub(crate) fn map_or_nil<V: Into<Value>>(items: impl IntoIterator<Item = (String, V)>) -> Self {
        let items: Vec<(String, Self)> = items.into_iter().map(|(name, value)| (name, value.into())).collect();
        if items.is_empty() { Self::Nil(Nil::Map) } else { Self::Map(items) }
    }

    /// Whether Go takes a value for true: whether it is not empty.
    pub(crate) fn truth(&self) -> bool {
        match self {
            Self::Nil(_) => false,
            Self::Bool(value) => *value,
            Self::Integer(number) | Self::Duration(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(items) => !items.is_empty(),
            Self::Struct(_) => true,
        }
    }

    /// What a value is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil(_) => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Duration(_) => "a length of time",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Struct(_) => "a struct",
        }
    }

    /// The names of a struct's fields, those of inner ones too.
    pub(super) fn field_names(&self) -> Vec<&str> {
        let Self::Struct(fields) = self else { return Vec::new() };
        let mut names = Vec::new();
        for field in fields {
            match field.name.as_str() {
                "" => names.extend(field.value.field_names()),
                name => names.push(name),
            }
        }
        names
    }

    /// The field of that name of a struct.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        let Self::Struct(fields) = self else { return None };
        let inner = |field: &&Field| field.name.is_empty();
        let own = fields.iter().find(|field| field.name == name && !inner(field)).map(|field| &field.value);
        own.or_else(|| fields.iter().filter(inner).find_map(|field| field.value.field(name)))
    }

    /// The value as JSON.
    pub(crate) fn json(&self) -> Json {
        match self {
            Self::Nil(_) => Json::Null,
            Self::Bool(value) => (*value).into(),
            Self::Integer(number) | Self::Duration(number) => (*number).into(),
            Self::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => (*number as i64).into(),
            Self::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Text(text) => text.clone().into(),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Map(items) => items.iter().map(|(name, value)| (name.clone(), value.json())).collect(),
            Self::Struct(fields) => {
                let mut all = Map::new();
                for field in fields {
                    match field.value.json() {
                        Json::Object(inner) if field.name.is_empty() => all.extend(inner),
                        _ if field.omits && !field.value.truth() => {}
                        value => drop(all.insert(field.name.clone(), value)),
                    }
                }
                Json::Object(all)
            }
        }
    }
}

impl From<&Json> for Value {
    fn from(value: &Json) -> Self {
        match value {
            Json::Null => Self::NOTHING,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(number) => Self::Integer(number),
                None => Self::Float(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Json::Object(fields) => {
                Self::Map(fields.iter().map(|(name, value)| (name.clone(), value.into())).collect())
            }
        }
    }
}

impl From<Json> for Value {
    fn from(value: Json) -> Self {
        Self::from(&value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        (number as u64).into()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<Field>> for Value {
    fn from(fields: Vec<Field>) -> Self {
        Self::Struct(fields)
    }
}
