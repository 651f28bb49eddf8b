//! The fields in which two values differ.

use std::collections::BTreeMap;

use serde_json::Value;

use super::element::{Element, equal};
use super::set::{Node, Set};
use super::typed::{Atom, Type, elements, fields, identity};

/// The differences of two values. No field is in two of the sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields that only the first value has.
    pub removed: Set,
    /// Fields that both have, with different values.
    pub modified: Set,
    /// Fields that only the second value has.
    pub added: Set,
}

/// The differences at and below a path.
#[derive(Default)]
struct Differences {
    removed: Node,
    modified: Node,
    added: Node,
}

impl Differences {
    fn attach(&mut self, element: &Element, below: Self) {
        let parts =
            [(&mut self.removed, below.removed), (&mut self.modified, below.modified), (&mut self.added, below.added)];
        for (part, below) in parts {
            if !below.is_empty() {
                part.children.attach(element.clone(), below);
            }
        }
    }

    /// Treats the value as one.
    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, _) => self.added.is_member = true,
            (_, None) => self.removed.is_member = true,
            (Some(old), Some(new)) => self.modified.is_member |= !equal(old, new),
        }
    }
}

/// Compares two values of a type.
pub fn compare(old: &Value, new: &Value, value_type: Type<'_>) -> Comparison {
    let differences = differences(Some(old), Some(new), value_type);
    Comparison {
        removed: differences.removed.children,
        modified: differences.modified.children,
        added: differences.added.children,
    }
}

fn differences(old: Option<&Value>, new: Option<&Value>, value_type: Type<'_>) -> Differences {
    let mut found = Differences::default();
    let (before, after) = (value_type.atom(old), value_type.atom(new));
    let is_leaf = match (old, new) {
        (_, None) => divide(before, old, new, value_type, &mut found),
        (None, _) => divide(after, old, new, value_type, &mut found),
        _ if before.is_same(after) => divide(after, old, new, value_type, &mut found),
        // The value is of another form now, so its parts in both forms changed.
        _ => {
            divide(before, old, new, value_type, &mut found);
            divide(after, old, new, value_type, &mut found)
        }
    };
    if !is_leaf {
        match (old, new) {
            (None, _) => found.added.is_member = true,
            (_, None) => found.removed.is_member = true,
            _ => {}
        }
    }
    found
}

/// Compares the parts of two values. Returns whether the values were compared as one.
fn divide(
    atom: Atom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    value_type: Type<'_>,
    found: &mut Differences,
) -> bool {
    match atom {
        Atom::Map => {
            let (before, after) = (fields(old), fields(new));
            if before.is_none_or(serde_json::Map::is_empty) && after.is_none_or(serde_json::Map::is_empty) {
                found.leaf(old, new);
                return true;
            }
            let field = |name: &str| value_type.field(name).unwrap_or(Type::Deduced(0));
            for (name, value) in before.into_iter().flatten() {
                let other = after.and_then(|after| after.get(name));
                if other != Some(value) {
                    let below = differences(Some(value), other, field(name));
                    found.attach(&Element::field(name.as_str()), below);
                }
            }
            let is_new = |name: &String| before.is_none_or(|before| !before.contains_key(name));
            for (name, value) in after.into_iter().flatten().filter(|(name, _)| is_new(name)) {
                found.attach(&Element::field(name.as_str()), differences(None, Some(value), field(name)));
            }
            false
        }
        Atom::List(list) => {
            let (before, after) = (elements(old).unwrap_or_default(), elements(new).unwrap_or_default());
            if before.is_empty() && after.is_empty() {
                found.leaf(old, new);
                return true;
            }
            let mut all: BTreeMap<Element, [Vec<&Value>; 2]> = BTreeMap::new();
            for (side, values) in [before, after].into_iter().enumerate() {
                for value in values {
                    if let Ok(id) = identity(list, value) {
                        all.entry(id).or_default()[side].push(value);
                    }
                }
            }
            for (id, [before, after]) in &all {
                compare_elements(id, before, after, value_type.items(), found);
            }
            false
        }
        Atom::Scalar | Atom::AtomicMap | Atom::AtomicList => {
            found.leaf(old, new);
            true
        }
    }
}

/// Compares all elements of two lists with the same identity. Elements that occur more than once are compared as one.
fn compare_elements(id: &Element, old: &[&Value], new: &[&Value], items: Type<'_>, found: &mut Differences) {
    match (old, new) {
        ([_, _, ..], [_, _, ..]) => {
            if old.len() != new.len() || !old.iter().zip(new).all(|(old, new)| equal(old, new)) {
                found.modified.children.attach(id.clone(), Node::member());
            }
        }
        ([_, _, ..], _) => {
            if let Some(new) = new.first() {
                found.attach(id, differences(None, Some(new), items));
            }
            found.removed.children.attach(id.clone(), Node::member());
        }
        (_, [_, _, ..]) => {
            if let Some(old) = old.first() {
                found.attach(id, differences(Some(old), None, items));
            }
            found.added.children.attach(id.clone(), Node::member());
        }
        _ => found.attach(id, differences(old.first().copied(), new.first().copied(), items)),
    }
}
