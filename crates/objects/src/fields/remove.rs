//! Removal of fields from a value.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::Set;
use super::typed::{Atom, Type, identity};

/// The value without the fields of a set. An object or list of which nothing is left is `null`.
pub fn without(value: &Value, removed: &Set, value_type: Type<'_>) -> Value {
    if removed.is_empty() {
        return value.clone();
    }
    match (value_type.atom(Some(value)), value) {
        (Atom::Scalar, _) => value.clone(),
        (Atom::Map, Value::Object(fields)) => {
            let mut result = Map::new();
            for (name, value) in fields {
                let element = Element::field(name.as_str());
                if removed.has(&element) {
                    continue;
                }
                let part = value_type.field(name).unwrap_or(Type::Deduced(0));
                let below = removed.below(&element);
                let value = below.map_or_else(|| value.clone(), |below| without(value, below, part));
                result.insert(name.clone(), value);
            }
            if result.is_empty() { Value::Null } else { Value::Object(result) }
        }
        (Atom::List(list), Value::Array(elements)) => {
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
                result.push(below.map_or_else(|| value.clone(), |below| without(value, below, value_type.items())));
            }
            if result.is_empty() { Value::Null } else { Value::Array(result) }
        }
        _ => Value::Null,
    }
}
