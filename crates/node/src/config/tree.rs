//! A YAML document as a tree in which every key and value has its place, so that messages name the line and the path of a setting.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Maximum depth of tables and lists; the format has six levels. Reading is recursive, so the depth bounds the stack.
const MAX_DEPTH: usize = 32;

/// A value without its place.
#[derive(Debug, Clone)]
enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is not a 64-bit integer.
    Float(f64),
    Text(String),
    List(Vec<Spanned<Value>>),
    Map(Vec<(Spanned<String>, Spanned<Value>)>),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;

        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                #[allow(clippy::cast_precision_loss)] // only shown in a message
                Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut out = Vec::new();
                while let Some(value) = list.next_element()? {
                    out.push(value);
                }
                Ok(Value::List(out))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Value::Map(out))
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}

/// A setting: its path, its line and its value.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Such as `sharing.timeSlicing.resources[0].replicas`; empty for the document.
    path: String,
    line: u64,
    value: Value,
}

/// How the keys of a table are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// As written.
    Exact,
    /// Without regard to case, as Go's `encoding/json` does for the fields of a struct.
    AnyCase,
}

/// The document. An empty one is an error, because it is rather a mistake than a configuration.
pub(super) fn parse(text: &str) -> Result<Setting, String> {
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: MAX_DEPTH } };
    let root: Spanned<Value> = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if matches!(root.value, Value::Null) {
        return Err("the file is empty".into());
    }
    Ok(Setting { path: String::new(), line: root.referenced.line(), value: root.value })
}

impl Setting {
    /// A message about this setting, with its place.
    pub(super) fn message(&self, text: impl fmt::Display) -> String {
        if self.path.is_empty() {
            format!("line {}: {text}", self.line)
        } else {
            format!("line {}: {}: {text}", self.line, self.path)
        }
    }

    fn expected(&self, kind: &str) -> String {
        let found = match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) => format!("the text '{}'", text.chars().take(80).collect::<String>()),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a table".into(),
        };
        self.message(format_args!("expected {kind}, found {found}"))
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Whether the value is an empty list or table.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            _ => false,
        }
    }

    /// The settings of a table with these keys, in their order. Unknown keys become warnings.
    pub(super) fn table<const N: usize>(
        &self,
        known: [&'static str; N],
        keys: Keys,
        warnings: &mut Vec<String>,
    ) -> Result<[Option<Self>; N], String> {
        let mut out = [const { None }; N];
        let map = match &self.value {
            Value::Map(map) => map,
            Value::Null => return Ok(out),
            _ => return Err(self.expected("a table")),
        };
        for (key, value) in map {
            let is_same =
                |name: &&str| **name == *key.value || keys == Keys::AnyCase && name.eq_ignore_ascii_case(&key.value);
            let name: String = key.value.chars().take(80).collect();
            let path = if self.path.is_empty() { name } else { format!("{}.{name}", self.path) };
            let setting = Self { path, line: key.referenced.line(), value: value.value.clone() };
            match known.iter().position(is_same) {
                Some(index) if out[index].is_some() => return Err(setting.message("is set twice")),
                Some(index) => out[index] = Some(setting),
                None => {
                    let near = known.iter().find(|name| name.eq_ignore_ascii_case(&key.value));
                    let meant =
                        near.map_or_else(|| known.join(", "), |name| format!("{name} (upper and lower case differ)"));
                    warnings.push(setting.message(format_args!("unknown setting, ignored; known are {meant}")));
                }
            }
        }
        Ok(out)
    }

    pub(super) fn list(&self) -> Result<Vec<Self>, String> {
        let list = match &self.value {
            Value::List(list) => list,
            Value::Null => return Ok(Vec::new()),
            _ => return Err(self.expected("a list")),
        };
        let setting = |(index, value): (usize, &Spanned<Value>)| Self {
            path: format!("{}[{index}]", self.path),
            line: value.referenced.line(),
            value: value.value.clone(),
        };
        Ok(list.iter().enumerate().map(setting).collect())
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    pub(super) fn text(&self) -> Result<&str, String> {
        if let Value::Text(text) = &self.value { Ok(text) } else { Err(self.expected("a text")) }
    }

    pub(super) fn bool(&self) -> Result<bool, String> {
        if let Value::Bool(value) = self.value { Ok(value) } else { Err(self.expected("true or false")) }
    }

    pub(super) fn int(&self) -> Result<i64, String> {
        if let Value::Int(value) = self.value { Ok(value) } else { Err(self.expected("a whole number")) }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.expected(&format!("one of {}", names.join(", ")))
        })
    }
}
