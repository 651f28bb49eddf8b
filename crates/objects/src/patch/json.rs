//! JSON patches (RFC 6902).

use serde_json::{Map, Value};

use super::MAX_OPERATIONS;
use crate::error::Error;

/// Maximum bytes of JSON that the operations of a patch copy or move together. Otherwise a few operations that copy an object into itself
/// could exhaust memory.
const MAX_MOVED_BYTES: usize = 3 * 1024 * 1024;
/// Maximum depth at which an operation may insert a value, including the depth of that value. Deeper values could exhaust the stack.
const MAX_DEPTH: usize = 128;

fn unprocessable(detail: impl std::fmt::Display) -> Error {
    Error::Unprocessable(format!("the server rejected our request due to an error in our request: {detail}"))
}

/// Applies the operations in their order. After an error, the target may be changed in part, so the caller drops it.
pub(super) fn apply(target: &mut Value, operations: &Value) -> Result<(), Error> {
    let malformed = |detail: &str| Error::BadRequest(format!("error decoding patch: {detail}"));
    let operations = operations.as_array().ok_or_else(|| malformed("a JSON patch is a list of operations"))?;
    if operations.len() > MAX_OPERATIONS {
        let allowed =
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len());
        return Err(Error::BadRequest(allowed));
    }
    let mut moved = 0;
    for operation in operations {
        let text = |field: &str| {
            operation[field].as_str().ok_or_else(|| malformed(&format!("missing or invalid \"{field}\"")))
        };
        let value = || operation.get("value").cloned().ok_or_else(|| malformed("missing \"value\""));
        let path = text("path")?;
        match text("op")? {
            "add" => add(target, path, value()?)?,
            "remove" => drop(remove(target, path)?),
            "replace" => *find_mut(target, path)? = value()?,
            "move" => {
                let from = text("from")?;
                if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                    return Err(unprocessable(format!("{from} cannot be moved into itself")));
                }
                let value = remove(target, from)?;
                account(&mut moved, &value)?;
                add(target, path, value)?;
            }
            "copy" => {
                let value = find_mut(target, text("from")?)?;
                account(&mut moved, value)?;
                let value = value.clone();
                add(target, path, value)?;
            }
            "test" => {
                let expected = operation.get("value").unwrap_or(&Value::Null);
                if find_mut(target, path).ok().map(|found| &*found) != Some(expected) {
                    return Err(unprocessable(format!("testing path {path} has not succeeded")));
                }
            }
            other => return Err(unprocessable(format!("unknown operation \"{other}\""))),
        }
    }
    Ok(())
}

/// Adds the size of a value to the bytes that were copied or moved.
fn account(moved: &mut usize, value: &Value) -> Result<(), Error> {
    *moved += value.to_string().len();
    if *moved > MAX_MOVED_BYTES {
        return Err(unprocessable(format!("the operations copy or move more than {MAX_MOVED_BYTES} bytes")));
    }
    Ok(())
}

/// The number of lists and objects around the innermost value.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(elements) => elements.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    inner.unwrap_or_default() + 1
}

/// The decoded segments of a JSON pointer (RFC 6901).
fn segments(pointer: &str) -> Result<Vec<String>, Error> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let rest =
        pointer.strip_prefix('/').ok_or_else(|| unprocessable(format!("\"{pointer}\" is not a JSON pointer")))?;
    Ok(rest.split('/').map(|segment| segment.replace("~1", "/").replace("~0", "~")).collect())
}

/// The index of a list of `len` elements that a segment names.
fn index(segment: &str, len: usize) -> Option<usize> {
    let plain = segment == "0" || (!segment.starts_with('0') && segment.bytes().all(|b| b.is_ascii_digit()));
    segment.parse().ok().filter(|i| plain && *i < len)
}

fn step<'v>(value: &'v mut Value, segment: &str) -> Option<&'v mut Value> {
    match value {
        Value::Object(fields) => fields.get_mut(segment),
        Value::Array(elements) => {
            let i = index(segment, elements.len())?;
            elements.get_mut(i)
        }
        _ => None,
    }
}

fn walk<'v>(mut value: &'v mut Value, segments: &[String], path: &str) -> Result<&'v mut Value, Error> {
    for segment in segments {
        value = step(value, segment).ok_or_else(|| unprocessable(format!("{path} does not exist")))?;
    }
    Ok(value)
}

fn find_mut<'v>(target: &'v mut Value, path: &str) -> Result<&'v mut Value, Error> {
    walk(target, &segments(path)?, path)
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), Error> {
    let segments = segments(path)?;
    if segments.len() + depth(&value) > MAX_DEPTH {
        return Err(unprocessable(format!("{path} would be deeper than {MAX_DEPTH} levels")));
    }
    let Some((last, parents)) = segments.split_last() else {
        *target = value;
        return Ok(());
    };
    match walk(target, parents, path)? {
        Value::Object(fields) => {
            fields.insert(last.clone(), value);
            Ok(())
        }
        Value::Array(elements) => {
            let at = if last == "-" { Some(elements.len()) } else { index(last, elements.len() + 1) };
            let at = at.ok_or_else(|| unprocessable(format!("{path} is not a position in the list")))?;
            elements.insert(at, value);
            Ok(())
        }
        _ => Err(unprocessable(format!("{path} does not exist"))),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, Error> {
    let missing = || unprocessable(format!("{path} does not exist"));
    let segments = segments(path)?;
    let Some((last, parents)) = segments.split_last() else {
        return Ok(std::mem::replace(target, Value::Object(Map::new())));
    };
    match walk(target, parents, path)? {
        Value::Object(fields) => fields.remove(last).ok_or_else(missing),
        Value::Array(elements) => index(last, elements.len()).map(|i| elements.remove(i)).ok_or_else(missing),
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn operations_follow_the_rfc() {
        for (target, operations, expected) in [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), Some(json!({"a": 1, "b": 2}))),
            (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), Some(json!({"a": [1, 2, 3]}))),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), Some(json!({"a": [1, 2]}))),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/a"}]), Some(json!({}))),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/b"}]), None),
            (
                json!({"a/b": 1, "m~n": 2}),
                json!([{"op": "replace", "path": "/a~1b", "value": 3}, {"op": "test", "path": "/m~0n", "value": 2}]),
                Some(json!({"a/b": 3, "m~n": 2})),
            ),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/b", "value": 3}]), None),
            (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/b"}]), Some(json!({"b": 1}))),
            (json!({"a": {"x": 1}}), json!([{"op": "move", "from": "/a", "path": "/a/b"}]), None),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), Some(json!({"a": 1, "b": 1}))),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 2}]), None),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/01", "value": 2}]), None),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/3", "value": 2}]), None),
            (json!({"a": 1}), json!([{"op": "odd", "path": "/a"}]), None),
            (json!({"a": 1}), json!({"op": "remove", "path": "/a"}), None),
        ] {
            let mut result = target.clone();
            let applied = apply(&mut result, &operations).ok().map(|()| result);
            assert_eq!(applied, expected, "{target} {operations}");
        }
    }

    #[test]
    fn patches_cannot_multiply_or_deepen_an_object_without_limit() {
        let copies: Vec<Value> = (0..64).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
        assert!(apply(&mut json!({"a": "b"}), &json!(copies)).is_err());
        let deeper = json!({"op": "copy", "from": "/a", "path": "/a/a"});
        let moves: Vec<Value> = (0..200)
            .flat_map(|_| {
                [
                    json!({"op": "move", "from": "/a", "path": "/b"}),
                    json!({"op": "add", "path": "/a", "value": {}}),
                    json!({"op": "move", "from": "/b", "path": "/a/b"}),
                ]
            })
            .collect();
        assert!(apply(&mut json!({"a": {}}), &json!(moves)).is_err());
        assert!(apply(&mut json!({"a": {"a": {}}}), &json!(vec![deeper; 200])).is_err());
    }

    proptest! {
        #[test]
        fn added_field_can_be_tested_and_removed(name in "[a-z~/]{0,4}", value in 0..9i64) {
            let target = json!({"spec": {"kept": true}});
            let path = format!("/spec/x{}", name.replace('~', "~0").replace('/', "~1"));
            let operations = json!([
                {"op": "add", "path": path, "value": value},
                {"op": "test", "path": path, "value": value},
                {"op": "remove", "path": path},
            ]);
            let mut result = target.clone();
            apply(&mut result, &operations).unwrap();
            prop_assert_eq!(result, target);
        }
    }
}
