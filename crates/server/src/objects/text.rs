//! Reading of JSON and YAML that finds keys which occur more than once in an object. The last value of such a key counts.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;
use slipway_objects::resource::unknown_field;

/// Maximum number of duplicate keys that are reported, as in the API server.
const MAX_DUPLICATES: usize = 100;

/// What was read.
#[derive(Debug, PartialEq)]
pub(super) struct Text {
    /// The value.
    pub(super) value: Value,
    /// The keys that occur more than once: of JSON their paths, of YAML their messages.
    pub(super) duplicates: Vec<String>,
}

/// What happens with two objects that are values of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objects {
    /// The last one counts.
    Replace,
    /// The second one is decoded into the first one, which is how Go fills typed objects.
    Merge,
}

/// Reads JSON.
///
/// # Errors
/// The syntax error.
pub(super) fn json(text: &[u8], objects: Objects) -> serde_json::Result<Text> {
    let found = RefCell::new(BTreeSet::new());
    let order = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value =
        Json { path: None, objects, found: &found, order: &order, keys: None }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Text { value, duplicates: order.into_inner() })
}

/// Sorts the messages about fields of an object in JSON as the API server finds them: in the order of the keys in the text.
pub(super) fn arrange(text: &[u8], messages: &mut [String]) {
    let (found, order, keys) = (RefCell::default(), RefCell::default(), RefCell::default());
    let reader = Json { path: None, objects: Objects::Replace, found: &found, order: &order, keys: Some(&keys) };
    // The text was read before, so this cannot fail.
    let _ = reader.deserialize(&mut serde_json::Deserializer::from_slice(text));
    let keys = keys.into_inner();
    messages.sort_by_cached_key(|message| keys.iter().position(|key| key == message).unwrap_or(usize::MAX));
}

/// The message about a field that occurs more than once.
pub(super) fn duplicate_field(path: &str) -> String {
    format!("duplicate field {path:?}")
}

/// Where a value is. It is only written out for a duplicate key.
#[derive(Clone, Copy)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        let parent = self.parent.map(Path::text).unwrap_or_default();
        match self.step {
            Step::Key(key) if parent.is_empty() => key.to_owned(),
            Step::Key(key) => format!("{parent}.{key}"),
            Step::Index(index) => format!("{parent}[{index}]"),
        }
    }
}

/// Reads a value at a path.
#[derive(Clone, Copy)]
struct Json<'p> {
    path: Option<&'p Path<'p>>,
    objects: Objects,
    found: &'p RefCell<BTreeSet<String>>,
    order: &'p RefCell<Vec<String>>,
    /// The messages about all keys, in their order, if they were unknown or duplicates.
    keys: Option<&'p RefCell<Vec<String>>>,
}

impl Json<'_> {
    fn report(&self, key: &str) {
        let mut order = self.order.borrow_mut();
        if order.len() < MAX_DUPLICATES {
            let path = Path { parent: self.path, step: Step::Key(key) }.text();
            if self.found.borrow_mut().insert(path.clone()) {
                order.push(path);
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The visits of values that contain no others.
macro_rules! visit_scalars {
    ($kind:ty, $of:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_string<E: de::Error>(self, value: String) -> Result<$kind, E> {
            Ok($of(Value::from(value)))
        }

        fn visit_unit<E: de::Error>(self) -> Result<$kind, E> {
            Ok($of(Value::Null))
        }

        fn visit_none<E: de::Error>(self) -> Result<$kind, E> {
            Ok($of(Value::Null))
        }
    };
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Value;

    visit_scalars!(Value, std::convert::identity);

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        loop {
            let path = Path { parent: self.path, step: Step::Index(elements.len()) };
            match seq.next_element_seed(Json { path: Some(&path), ..self })? {
                Some(element) => elements.push(element),
                None => return Ok(Value::Array(elements)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let is_duplicate = fields.contains_key(&key);
            if is_duplicate {
                self.report(&key);
            }
            let path = Path { parent: self.path, step: Step::Key(&key) };
            if let Some(keys) = self.keys {
                let path = path.text();
                keys.borrow_mut().push(if is_duplicate { duplicate_field(&path) } else { unknown_field(&path) });
            }
            let value = map.next_value_seed(Json { path: Some(&path), ..self })?;
            insert(&mut fields, key, value, self.objects);
        }
        Ok(Value::Object(fields))
    }
}

fn insert(fields: &mut Map<String, Value>, key: String, value: Value, objects: Objects) {
    match (fields.entry(key), value) {
        (Entry::Occupied(mut entry), Value::Object(later)) if objects == Objects::Merge && entry.get().is_object() => {
            let Value::Object(earlier) = entry.get_mut() else { return };
            for (key, value) in later {
                insert(earlier, key, value, objects);
            }
        }
        (Entry::Occupied(mut entry), value) => drop(entry.insert(value)),
        (Entry::Vacant(entry), value) => drop(entry.insert(value)),
    }
}

/// Reads YAML.
///
/// # Errors
/// The syntax error.
pub(super) fn yaml(text: &[u8]) -> Result<Text, serde_saphyr::Error> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough };
    let Yaml { value, mut duplicates } = serde_saphyr::from_slice_with_options(text, options)?;
    duplicates.truncate(MAX_DUPLICATES);
    Ok(Text { value, duplicates })
}

/// The message about duplicate keys of YAML.
pub(super) fn yaml_error(duplicates: &[String]) -> String {
    let lines: String = duplicates.iter().map(|duplicate| format!("\n  {duplicate}")).collect();
    format!("yaml: unmarshal errors:{lines}")
}

/// A value, and the messages about the duplicate keys in it.
struct Yaml {
    value: Value,
    duplicates: Vec<String>,
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Node;

        impl<'de> Visitor<'de> for Node {
            type Value = Yaml;

            visit_scalars!(Yaml, |value| Yaml { value, duplicates: Vec::new() });

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
                let (mut elements, mut duplicates) = (Vec::new(), Vec::new());
                while let Some(element) = seq.next_element::<Yaml>()? {
                    elements.push(element.value);
                    duplicates.extend(element.duplicates);
                }
                Ok(Yaml { value: Value::Array(elements), duplicates })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
                let (mut fields, mut duplicates) = (Map::new(), Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    let found = map.next_value::<Spanned<Yaml>>()?;
                    duplicates.extend(found.value.duplicates);
                    let line = found.referenced.line();
                    let message = format!("line {line}: key {key:?} already set in map");
                    if fields.insert(key, found.value.value).is_some() {
                        duplicates.push(message);
                    }
                }
                Ok(Yaml { value: Value::Object(fields), duplicates })
            }
        }

        deserializer.deserialize_any(Node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicate_keys_of_json_are_reported_once_with_their_paths() {
        let text = br#"{"a": {"k": 1, "k": 2, "k": 3}, "l": [{}, {"x": {}, "x": {"y": null}}], "a": {"z": 1.5}}"#;
        let read = json(text, Objects::Replace).unwrap();
        assert_eq!(read.value, json!({"a": {"z": 1.5}, "l": [{}, {"x": {"y": null}}]}));
        assert_eq!(read.duplicates, ["a.k", "l[1].x", "a"]);
        assert_eq!(json(text, Objects::Merge).unwrap().value["a"], json!({"k": 3, "z": 1.5}));
        assert!(json(b"{} {}", Objects::Replace).is_err() && json(b"{", Objects::Replace).is_err());
    }

    #[test]
    fn messages_are_in_the_order_of_the_text() {
        let text = br#"{"z": {"b": 1, "a": [{"y": 1}]}, "k": 1, "k": 2, "c": 1}"#;
        let expected =
            ["z", "z.b", "z.a[0].y"].map(unknown_field).into_iter().chain([duplicate_field("k"), unknown_field("c")]);
        let expected: Vec<String> = expected.collect();
        let mut messages = expected.clone();
        messages.sort();
        arrange(text, &mut messages);
        assert_eq!(messages, expected);
    }

    #[test]
    fn duplicate_keys_of_yaml_are_reported_with_their_lines() {
        let read = yaml(b"a:\n  k: 1\n  k: x\nl: [1, {b: true, b: ~}]\na:\n  z: 1.5\n").unwrap();
        assert_eq!(read.value, json!({"a": {"z": 1.5}, "l": [1, {"b": null}]}));
        assert_eq!(
            read.duplicates,
            [
                "line 3: key \"k\" already set in map",
                "line 4: key \"b\" already set in map",
                "line 6: key \"a\" already set in map"
            ]
        );
        assert!(yaml(b"a: [").is_err());
    }

    #[test]
    fn values_are_those_of_the_plain_readers() {
        let text = br#"{"a": [1, -2, 3.5, true, null, "x"], "b": {}, "c": 18446744073709551615}"#;
        assert_eq!(json(text, Objects::Merge).unwrap().value, serde_json::from_slice::<Value>(text).unwrap());
        assert_eq!(yaml(text).unwrap().value, serde_saphyr::from_slice::<Value>(text).unwrap());
    }
}
