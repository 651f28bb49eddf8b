//! Strategic merge patches: merge patches whose lists are merged by a key, as the schema says.
//!
//! Source: the directives of `k8s.io/apimachinery/pkg/util/strategicpatch` (`$patch`, `$retainKeys`, `$setElementOrder`,
//! `$deleteFromPrimitiveList`).

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::Error;
use crate::schema::Schema;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a patch to a value with this schema.
pub(super) fn apply(target: &mut Value, patch: &Value, schema: &Schema) -> Result<(), Error> {
    let (Value::Object(_), Value::Object(changes)) = (&*target, patch) else {
        return Err(invalid("a strategic merge patch is an object"));
    };
    merge_object(target, changes, Some(schema))
}

fn invalid(detail: &str) -> Error {
    Error::BadRequest(format!("error decoding patch: {detail}"))
}

/// Merges changes into an object. Fields without a schema are merged as in a merge patch.
fn merge_object(target: &mut Value, changes: &Map<String, Value>, schema: Option<&Schema>) -> Result<(), Error> {
    match changes.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            *target = Value::Object(without_directives(changes));
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(invalid(&format!("unknown directive {DIRECTIVE}: {other:?}"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return Ok(()) };
    if let Some(Value::Array(retained)) = changes.get(RETAIN_KEYS) {
        let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
        fields.retain(|name, _| retained.contains(name.as_str()));
    }
    let ordered = changes.iter().filter_map(|(name, order)| {
        let (list, order) = (name.strip_prefix(ORDER)?, order.as_array()?);
        let before = fields.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        Some((list, order, before))
    });
    let ordered: Vec<(&str, &Vec<Value>, Vec<Value>)> = ordered.collect();
    for (name, change) in changes {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(elements)), Value::Array(deleted)) = (fields.get_mut(list), change) {
                let deleted: HashSet<String> = deleted.iter().map(Value::to_string).collect();
                elements.retain(|element| !deleted.contains(&element.to_string()));
            }
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        let schema = schema.and_then(|s| s.field(name));
        match change {
            Value::Null => {
                fields.remove(name);
            }
            Value::Object(changes) => {
                merge_object(fields.entry(name.clone()).or_insert(Value::Null), changes, schema)?;
            }
            Value::Array(changes) => merge_list(fields.entry(name.clone()).or_insert(Value::Null), changes, schema)?,
            scalar => {
                fields.insert(name.clone(), scalar.clone());
            }
        }
    }
    for (list, order, before) in ordered {
        if let Some(Value::Array(elements)) = fields.get_mut(list) {
            let key = schema.and_then(|s| s.field(list)).map_or("", |s| s.patch_merge_key.as_str());
            sort(elements, order, &before, key);
        }
    }
    Ok(())
}

fn without_directives(changes: &Map<String, Value>) -> Map<String, Value> {
    let plain = changes.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    plain.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn merge_list(target: &mut Value, changes: &[Value], schema: Option<&Schema>) -> Result<(), Error> {
    let merges = schema.is_some_and(|s| s.patch_strategy.split(',').any(|strategy| strategy == "merge"));
    let before = match target.take() {
        Value::Array(elements) if merges => elements,
        _ => Vec::new(),
    };
    let key = schema.map_or("", |s| s.patch_merge_key.as_str());
    let is_replaced = changes.iter().any(|change| change[DIRECTIVE] == "replace");
    let mut elements: Vec<Option<Value>> =
        if is_replaced { Vec::new() } else { before.iter().cloned().map(Some).collect() };
    let mut found = positions(elements.iter().flatten(), key);
    for change in changes {
        let fields = match change {
            Value::Object(fields) if !key.is_empty() => fields,
            plain => {
                // Without a key, the elements of a merged list are a set.
                if !merges || found.insert(plain.to_string(), elements.len()).is_none() {
                    elements.push(Some(plain.clone()));
                }
                continue;
            }
        };
        let directive = fields.get(DIRECTIVE).and_then(Value::as_str);
        if directive == Some("replace") && fields.len() == 1 {
            continue;
        }
        let Some(id) = fields.get(key).map(Value::to_string) else {
            return Err(invalid(&format!("map: {change} does not contain declared merge key: {key}")));
        };
        let at = found.get(&id).copied();
        match (at.and_then(|at| elements.get_mut(at)), directive) {
            (Some(element), Some("delete")) => {
                *element = None;
                found.remove(&id);
            }
            (None, Some("delete")) => {}
            (Some(element), _) => {
                let element = element.get_or_insert(Value::Null);
                merge_object(element, fields, schema.and_then(|s| s.items.as_deref()))?;
            }
            (None, _) => {
                found.insert(id, elements.len());
                elements.push(Some(Value::Object(without_directives(fields))));
            }
        }
    }
    let mut elements: Vec<Value> = elements.into_iter().flatten().collect();
    if merges && !is_replaced {
        sort(&mut elements, changes, &before, key);
    }
    *target = Value::Array(elements);
    Ok(())
}

/// What identifies an element of a list: the value of its key, or without a key the element itself.
fn identity(element: &Value, key: &str) -> String {
    if key.is_empty() { element.to_string() } else { element.get(key).map(Value::to_string).unwrap_or_default() }
}

/// The first position of each element by its identity.
fn positions<'v>(elements: impl Iterator<Item = &'v Value>, key: &str) -> HashMap<String, usize> {
    let mut positions = HashMap::new();
    for (i, element) in elements.enumerate() {
        positions.entry(identity(element, key)).or_insert(i);
    }
    positions
}

/// Brings the elements that the patch names into its order. Of the others, each stays before those that followed it in the list before the
/// patch.
fn sort(elements: &mut Vec<Value>, order: &[Value], before: &[Value], key: &str) {
    let (ranks, live) = (positions(order.iter(), key), positions(before.iter(), key));
    let position = |element: &Value| live.get(&identity(element, key));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        elements.drain(..).partition(|element| ranks.contains_key(&identity(element, key)));
    named.sort_by_cached_key(|element| ranks.get(&identity(element, key)).copied());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(first), Some(other)) = (named.peek(), others.peek()) {
        let is_behind = position(first).zip(position(other)).is_some_and(|(first, other)| other < first);
        elements.extend(if is_behind { others.next() } else { named.next() });
    }
    elements.extend(named);
    elements.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Schema {
        serde_json::from_value(json!({"type": "object", "properties": {
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
            "atomic": {"type": "array", "items": {"type": "string"}},
            "owners": {"type": "array", "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "uid",
                "items": {"type": "object", "properties": {"uid": {"type": "string"}, "name": {"type": "string"}}}},
        }}))
        .unwrap()
    }

    fn patched(target: Value, patch: Value) -> Value {
        let mut result = target;
        apply(&mut result, &patch, &schema()).unwrap();
        result
    }

    #[test]
    fn lists_are_merged_by_key_or_as_sets_or_replaced() {
        let target = json!({"labels": {"a": "1", "b": "2"}, "finalizers": ["x"], "atomic": ["p", "q"],
            "owners": [{"uid": "1", "name": "one"}, {"uid": "2", "name": "two"}]});
        let patch = json!({"labels": {"a": null, "c": "3"}, "finalizers": ["x", "y"], "atomic": ["r"],
            "owners": [{"uid": "2", "name": "zwei"}, {"uid": "3"}, {"uid": "1", "$patch": "delete"}]});
        assert_eq!(
            patched(target, patch),
            json!({"labels": {"b": "2", "c": "3"}, "finalizers": ["x", "y"], "atomic": ["r"],
                "owners": [{"uid": "2", "name": "zwei"}, {"uid": "3"}]})
        );
    }

    #[test]
    fn directives_replace_delete_retain_and_order() {
        let target = json!({"labels": {"a": "1"}, "finalizers": ["x", "y", "z"], "owners": [{"uid": "1"}]});
        assert_eq!(
            patched(target.clone(), json!({"labels": {"$patch": "replace", "b": "2"}}))["labels"],
            json!({"b": "2"})
        );
        assert_eq!(
            patched(target.clone(), json!({"labels": {"$retainKeys": ["b"], "b": "2"}}))["labels"],
            json!({"b": "2"})
        );
        assert_eq!(
            patched(target.clone(), json!({"$deleteFromPrimitiveList/finalizers": ["y"]}))["finalizers"],
            json!(["x", "z"])
        );
        let ordered = json!({"$setElementOrder/finalizers": ["z", "w", "x"], "finalizers": ["w"]});
        assert_eq!(patched(target.clone(), ordered)["finalizers"], json!(["y", "z", "w", "x"]));
        let replaced = json!({"owners": [{"uid": "9"}, {"$patch": "replace"}]});
        assert_eq!(patched(target, replaced)["owners"], json!([{"uid": "9"}]));
        assert!(apply(&mut json!({"owners": []}), &json!({"owners": [{"name": "x"}]}), &schema()).is_err());
        assert!(apply(&mut json!({}), &json!({"labels": {"$patch": "odd"}}), &schema()).is_err());
    }

    proptest! {
        #[test]
        fn order_keeps_every_element(mut live in proptest::collection::btree_set("[a-f]", 0..6), order in proptest::collection::btree_set("[a-f]", 0..6)) {
            let mut elements: Vec<Value> = live.iter().map(|e| json!(e)).collect();
            let order: Vec<Value> = order.into_iter().rev().map(Value::from).collect();
            let before = elements.clone();
            sort(&mut elements, &order, &before, "");
            let named: Vec<&Value> = elements.iter().filter(|e| order.contains(e)).collect();
            let expected: Vec<&Value> = order.iter().filter(|e| elements.contains(e)).collect();
            prop_assert_eq!(named, expected);
            for element in &elements {
                prop_assert!(live.remove(element.as_str().unwrap()));
            }
            prop_assert!(live.is_empty());
        }
    }
}
