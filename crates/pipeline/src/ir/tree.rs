//! The tree of a YAML or JSON file, in which every node knows its place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::proto_json::snake_case;

/// Place of a node in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Line, from 1.
    pub(crate) line: u64,
    /// Column, from 1.
    pub(crate) column: u64,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// `None` if the text was not read from a file.
    pub(crate) place: Option<Place>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of an object.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Place of the key.
    pub(crate) place: Option<Place>,
    pub(crate) value: Node,
}

impl Node {
    /// The field with this name.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The field with this name of a message, which may be in camel case or in snake case.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        self.field_entry(name).map(|entry| &entry.value)
    }

    /// Takes the field with this name out of a message.
    pub(crate) fn take_field(&mut self, name: &str) -> Option<Self> {
        let Content::Map(entries) = &mut self.content else { return None };
        let names = [name, &snake_case(name)];
        let at = names.iter().find_map(|name| entries.iter().position(|entry| entry.key == *name))?;
        Some(entries.remove(at).value)
    }

    fn field_entry(&self, name: &str) -> Option<&Entry> {
        self.entry(name).or_else(|| self.entry(&snake_case(name)))
    }

    /// The place of the node that a path leads to, or of the last one of the path that exists.
    pub(crate) fn find(&self, path: &[String]) -> Option<Place> {
        let mut place = self.place;
        let mut node = self;
        for step in path {
            let next = match &node.content {
                Content::List(items) => {
                    step.parse::<usize>().ok().and_then(|at| items.get(at)).map(|item| (item.place, item))
                }
                _ => node.field_entry(step).map(|entry| (entry.place, &entry.value)),
            };
            match next {
                Some((found, next)) => (place, node) = (found, next),
                None => break,
            }
        }
        place
    }

    /// The value without places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::String(text) => Value::String(text.clone()),
            Content::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// A word for the type of the value, for errors.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.content {
            Content::Null => "null",
            Content::Bool(_) => "a boolean",
            Content::Number(_) => "a number",
            Content::String(_) => "a string",
            Content::List(_) => "a list",
            Content::Map(_) => "an object",
        }
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(value),
            Value::Number(number) => Content::Number(number),
            Value::String(text) => Content::String(text),
            Value::Array(values) => Content::List(values.into_iter().map(Self::from).collect()),
            Value::Object(fields) => Content::Map(
                fields.into_iter().map(|(key, value)| Entry { key, place: None, value: Self::from(value) }).collect(),
            ),
        };
        Self { place: None, content }
    }
}

fn place(location: &Location) -> Option<Place> {
    (location.line() > 0).then(|| Place { line: location.line(), column: location.column() })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { place: place(&referenced), content: value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Content, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Content, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value)
            .map(Content::Number)
            .ok_or_else(|| E::custom("infinities and NaN are not values of JSON"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Content, E> {
        Ok(Content::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Content::List(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut out = Vec::new();
        while let Some(Spanned { value: key, referenced, .. }) = entries.next_key::<Spanned<Key>>()? {
            out.push(Entry { key: key.0, place: place(&referenced), value: entries.next_value()? });
        }
        Ok(Content::Map(out))
    }
}

/// A key of an object: text, or the text of a number or a boolean.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Content::deserialize(deserializer)? {
            Content::String(text) => Ok(Self(text)),
            Content::Number(number) => Ok(Self(number.to_string())),
            Content::Bool(value) => Ok(Self(value.to_string())),
            Content::Null | Content::List(_) | Content::Map(_) => Err(D::Error::custom("a key must be a string")),
        }
    }
}
