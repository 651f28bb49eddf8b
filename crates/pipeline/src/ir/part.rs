//! Nodes as serde reads them, whole or without some of their fields.
//!
//! A reader of messages needs about a hundred times the memory of what it reads, so the large maps of a pipeline are left out of the
//! messages that contain them, and their values are read one after the other.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Error;

use super::tree::{Content, Entry, Node};

/// What is left out of an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Without {
    /// Nothing.
    Nothing,
    /// The fields with these names.
    Fields(&'static [&'static str]),
    /// A field of a field.
    FieldOf(&'static str, &'static [&'static str]),
}

/// A node, or a part of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) node: &'a Node,
    pub(super) without: Without,
}

impl<'a> From<&'a Node> for Part<'a> {
    fn from(node: &'a Node) -> Self {
        Self { node, without: Without::Nothing }
    }
}

impl<'a> Part<'a> {
    /// The fields of an object that are part of it; none if this is no object.
    pub(super) fn entries(self) -> impl Iterator<Item = (&'a Entry, Part<'a>)> {
        let entries = match &self.node.content {
            Content::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().filter_map(move |entry| {
            let without = match self.without {
                Without::Fields(names) if names.contains(&entry.key.as_str()) => return None,
                Without::FieldOf(name, fields) if name == entry.key => Without::Fields(fields),
                Without::Nothing | Without::Fields(_) | Without::FieldOf(..) => Without::Nothing,
            };
            Some((entry, Part { node: &entry.value, without }))
        })
    }
}

impl<'de> IntoDeserializer<'de, Error> for Part<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Part<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Number(number) => number.deserialize_any(visitor),
            Content::String(text) => visitor.visit_borrowed_str(text),
            Content::List(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Self::from));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Content::Map(_) => {
                let mut fields = MapDeserializer::new(self.entries().map(|(entry, part)| (entry.key.as_str(), part)));
                let value = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.content {
            Content::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct enum identifier ignored_any
    }
}
