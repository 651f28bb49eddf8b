//! YAML as DVC writes it, and edits of files that a person wrote.
//!
//! `.dvc` files and `dvc.lock` use block mappings and sequences with scalars on one or several lines. [`parse`] reads these, with the position
//! of every value, so that [`edit`] can replace a value and keep everything else: comments, order, quotes of other values. [`emit`] writes new
//! files with the folding and quoting of ruamel.yaml 0.18 at a width of 80, which DVC uses. The schema is YAML 1.2's core schema, in which
//! `yes` is a string.

mod anchors;
mod edit;
mod emit;
mod parse;
mod scalar;

pub use edit::edit;
pub use emit::emit;
pub use parse::{ParseError, line_of, lines_in, parse};

/// A YAML value. Mappings keep their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number or another scalar that is not a string, in the form of its text.
    Number(String),
    /// A string.
    String(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping with strings as keys.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value at a path of keys and indices, such as `model.layers.0`.
    pub fn find(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, key| match value {
            Self::List(items) => key.parse().ok().and_then(|i: usize| items.get(i)),
            map => map.get(key),
        })
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match self {
            Self::Map(entries) => entries.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a string or number.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Number(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value of an integer without a sign.
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Number(text) = self { text.parse().ok() } else { None }
    }

    /// The items of a sequence; none for other values.
    pub fn items(&self) -> &[Self] {
        if let Self::List(items) = self { items } else { &[] }
    }

    /// The entries of a mapping; none for other values.
    pub fn entries(&self) -> &[(String, Self)] {
        if let Self::Map(entries) = self { entries } else { &[] }
    }

    /// A string value.
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// An integer value.
    pub fn number(value: u64) -> Self {
        Self::Number(value.to_string())
    }
}
