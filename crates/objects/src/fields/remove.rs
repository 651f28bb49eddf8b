//! Removal of fields from a value.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::Set;
use super::typed::{Atom, Type, identity};

/// The value without the fields of a set. Objects and lists that become empty are kept.
pub fn without(value: &Value, removed: &Set, value_type: Type<'_>) -> Value {
    if removed.is_empty() { value.clone() } else { kept(value, removed, value_type).unwrap_or(Value::Null) }
}

/// What is left of a value; `None` if nothing is.
fn kept(value: &Value, removed: &Set, value_type: Type<'_>) -> Option<Value> {
    match (value_type.atom(Some(value)), value) {
        (Atom::Scalar, _) => Some(value.clone()),
        (Atom::Map, Value::Object(fields)) => {
            let mut had_matches = false;
            let mut result = Map::new();
            for (name, value) in fields {
                let element = Element::field(name.as_str());
                if removed.has(&element) {
                    continue;
                }
                let below = removed.below(&element);
                had_matches |= below.is_some();
                let part = value_type.field(name).unwrap_or(Type::Deduced(0));
                result.insert(name.clone(), below.map_or_else(|| value.clone(), |below| inner(value, below, part)));
            }
            (had_matches || !result.is_empty()).then_some(Value::Object(result))
        }
        (Atom::List(list), Value::Array(elements)) => {
            let mut had_matches = false;
            let mut result = Vec::with_capacity(elements.len());
            for value in elements {
                let Ok(element) = identity(list, value) else {
                    result.push(value.clone());
                    continue;
                };
                if removed.has(&element) {
                    continue;
                }
                let below = removed.below(&element);
                had_matches |= below.is_some();
                let part = value_type.items();
                result.push(below.map_or_else(|| value.clone(), |below| inner(value, below, part)));
            }
            (had_matches || !result.is_empty()).then_some(Value::Array(result))
        }
        _ => None,
    }
}

/// What is left of a part of a value, which itself is not removed.
fn inner(value: &Value, removed: &Set, value_type: Type<'_>) -> Value {
    kept(value, removed, value_type).unwrap_or_else(|| match value {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    })
}
