//! Version 1 of the inference protocol, as TensorFlow Serving defines it ("RESTful API") and KServe implements it: `:predict` with rows
//! (`instances`, answered with `predictions`) or with columns (`inputs`, answered with `outputs`).
//!
//! Invariant: the element types are those that the model declares; the shapes follow from the nesting of the lists.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Error;
use crate::deployment::InferOutput;
use crate::tensor::{Data, DataType, Tensor, TensorSpec};

/// Whether a request has one value for each row or one tensor for each input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Rows,
    Columns,
}

#[derive(Deserialize)]
struct Predict<'a> {
    #[serde(borrow)]
    instances: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
}

type Object<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("the request is not a V1 predict request: {error}"))
}

/// Whether a value is an object of named tensors, not a string in base64.
fn is_named(value: &RawValue) -> bool {
    let object = value.get().starts_with('{').then(|| serde_json::from_str::<Object<'_>>(value.get()).ok()).flatten();
    object.is_some_and(|object| !(object.len() == 1 && object.contains_key("b64")))
}

/// Parses a request for a model with these inputs.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn parse(body: &[u8], specs: &[TensorSpec]) -> Result<(Format, Vec<Tensor>), Error> {
    let request: Predict<'_> = serde_json::from_slice(body).map_err(invalid)?;
    match (request.instances, request.inputs) {
        (Some(instances), None) => {
            let rows: Vec<&RawValue> =
                serde_json::from_str(instances.get()).map_err(|e| invalid(format!("instances: {e}")))?;
            if rows.first().is_some_and(|row| is_named(row)) {
                Ok((Format::Rows, named_rows(&rows, specs)?))
            } else {
                Ok((Format::Rows, vec![tensor(only_input(specs)?, instances.get())?]))
            }
        }
        (None, Some(inputs)) if is_named(inputs) => {
            let columns: Object<'_> = serde_json::from_str(inputs.get()).map_err(invalid)?;
            let column = |(name, value): (Cow<'_, str>, &RawValue)| tensor(input(specs, &name)?, value.get());
            Ok((Format::Columns, columns.into_iter().map(column).collect::<Result<_, _>>()?))
        }
        (None, Some(inputs)) => Ok((Format::Columns, vec![tensor(only_input(specs)?, inputs.get())?])),
        _ => Err(invalid("it needs either instances or inputs")),
    }
}

fn input<'a>(specs: &'a [TensorSpec], name: &str) -> Result<&'a TensorSpec, Error> {
    specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let known = specs.iter().map(|s| format!("'{}'", s.name)).collect::<Vec<_>>().join(", ");
        Error::Invalid(format!("unexpected input '{name}'; the model takes {known}"))
    })
}

fn only_input(specs: &[TensorSpec]) -> Result<&TensorSpec, Error> {
    match specs {
        [spec] => Ok(spec),
        _ => {
            let known = specs.iter().map(|s| format!("'{}'", s.name)).collect::<Vec<_>>().join(", ");
            Err(Error::Invalid(format!("the model takes several inputs, so each value must name them: {known}")))
        }
    }
}

/// Joins the values of each input over all rows.
fn named_rows(rows: &[&RawValue], specs: &[TensorSpec]) -> Result<Vec<Tensor>, Error> {
    let mut columns: BTreeMap<Cow<'_, str>, String> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let row: Object<'_> =
            serde_json::from_str(row.get()).map_err(|e| invalid(format!("instance {number}: {e}")))?;
        if number > 0 && !row.keys().eq(columns.keys()) {
            return Err(invalid(format!("instance {number} names other inputs than instance 0")));
        }
        for (name, value) in row {
            let column = columns.entry(name).or_default();
            column.push(if column.is_empty() { '[' } else { ',' });
            column.push_str(value.get());
        }
    }
    columns.into_iter().map(|(name, values)| tensor(input(specs, &name)?, &(values + "]"))).collect()
}

/// A tensor from nested lists.
fn tensor(spec: &TensorSpec, text: &str) -> Result<Tensor, Error> {
    let invalid = |e: String| Error::Invalid(format!("input '{}': {e}", spec.name));
    if spec.datatype == DataType::Bytes && text.contains("\"b64\"") {
        let value: Value = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let (mut shape, mut items) = (Vec::new(), Vec::new());
        collect_bytes(&value, 0, &mut shape, &mut items).map_err(invalid)?;
        return Tensor::new(spec.name.clone(), shape, Data::Bytes(items));
    }
    let shape = shape_of(text).map_err(invalid)?;
    let list = if shape.is_empty() { Cow::Owned(format!("[{text}]")) } else { Cow::Borrowed(text) };
    let data = Data::from_json(&list, spec.datatype, &spec.name, shape.iter().product())?;
    Tensor::new(spec.name.clone(), shape, data)
}

/// The shape of nested lists.
///
/// # Errors
/// A human-readable reason if the lists of one level differ in length.
fn shape_of(text: &str) -> Result<Vec<usize>, String> {
    let mut shape: Vec<Option<usize>> = Vec::new();
    let (mut open, mut leaf_depth): (Vec<usize>, Option<usize>) = (Vec::new(), None);
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' => {}
            b'[' => {
                if leaf_depth.is_some_and(|depth| open.len() >= depth) {
                    return Err("a list has both elements and lists".into());
                }
                open.last_mut().into_iter().for_each(|count| *count += 1);
                open.push(0);
                if shape.len() < open.len() {
                    shape.push(None);
                }
            }
            b']' => {
                let count = open.pop().ok_or("a list does not begin")?;
                match &mut shape[open.len()] {
                    Some(size) if *size != count => {
                        return Err(format!("lists of one level have {size} and {count} elements"));
                    }
                    size => *size = Some(count),
                }
            }
            b'{' => return Err("an object is not a tensor".into()),
            first => {
                if *leaf_depth.get_or_insert(open.len()) != open.len() {
                    return Err("a list has both elements and lists".into());
                }
                open.last_mut().into_iter().for_each(|count| *count += 1);
                at = end_of_scalar(bytes, at, *first);
            }
        }
    }
    Ok(shape.into_iter().flatten().collect())
}

/// The position after a scalar whose first byte is before `at`.
fn end_of_scalar(bytes: &[u8], mut at: usize, first: u8) -> usize {
    if first != b'"' {
        return at
            + bytes[at..].iter().take_while(|b| !matches!(b, b',' | b']' | b' ' | b'\n' | b'\r' | b'\t')).count();
    }
    while let Some(byte) = bytes.get(at) {
        at += if *byte == b'\\' { 2 } else { 1 };
        if *byte == b'"' {
            break;
        }
    }
    at.min(bytes.len())
}

/// Collects strings and objects of the form `{"b64": "..."}`, and the shape of the lists.
fn collect_bytes(value: &Value, depth: usize, shape: &mut Vec<usize>, items: &mut Vec<Vec<u8>>) -> Result<(), String> {
    match value {
        Value::Array(list) => {
            match shape.get(depth) {
                None if items.is_empty() => shape.push(list.len()),
                Some(size) if *size == list.len() => {}
                _ => return Err("lists of one level differ in length".into()),
            }
            list.iter().try_for_each(|item| collect_bytes(item, depth + 1, shape, items))
        }
        _ if depth != shape.len() => Err("a list has both elements and lists".into()),
        Value::String(text) => {
            items.push(text.clone().into_bytes());
            Ok(())
        }
        Value::Object(object) => {
            let encoded = object.get("b64").and_then(Value::as_str).ok_or("an object is not {\"b64\": ...}")?;
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded);
            items.push(decoded.map_err(|e| format!("a string is not base64: {e}"))?);
            Ok(())
        }
        other => Err(format!("{other} is not a string")),
    }
}

/// Serializes a response in the format of the request. `rows` is the number of instances.
///
/// # Errors
/// [`Error::Invalid`] if an output cannot be represented.
pub(super) fn write(output: &InferOutput, format: Format, rows: usize) -> Result<Vec<u8>, Error> {
    let outputs = &output.outputs;
    let mut json = Vec::with_capacity(512);
    json.extend_from_slice(if format == Format::Rows { b"{\"predictions\":" } else { b"{\"outputs\":" });
    match (format, outputs.as_slice()) {
        (_, [only]) => write_nested(only, 0, 0, &mut json)?,
        (Format::Columns, several) => {
            write_object(several, &mut json, |tensor, json| write_nested(tensor, 0, 0, json))?
        }
        (Format::Rows, several) => {
            if let Some(whole) = several.iter().find(|tensor| tensor.shape.first() != Some(&rows)) {
                return Err(Error::Invalid(format!(
                    "output '{}' of shape {:?} does not have a row for each of the {rows} instances; send inputs instead of instances",
                    whole.name, whole.shape
                )));
            }
            for row in 0..rows {
                json.push(if row == 0 { b'[' } else { b',' });
                write_object(several, &mut json, |tensor, json| {
                    let width = tensor.shape.get(1..).map_or(1, |sizes| sizes.iter().product());
                    write_nested(tensor, 1, row * width, json)
                })?;
            }
            json.extend_from_slice(if rows == 0 { b"[]" } else { b"]" });
        }
    }
    json.push(b'}');
    Ok(json)
}

fn write_object(
    tensors: &[Tensor],
    json: &mut Vec<u8>,
    value: impl Fn(&Tensor, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    json.push(b'{');
    for (i, tensor) in tensors.iter().enumerate() {
        if i > 0 {
            json.push(b',');
        }
        super::wire::write_string(json, &tensor.name);
        json.push(b':');
        value(tensor, json)?;
    }
    json.push(b'}');
    Ok(())
}

/// Writes the elements from `from` as lists that are nested like the dimensions from `depth`.
fn write_nested(tensor: &Tensor, depth: usize, from: usize, json: &mut Vec<u8>) -> Result<(), Error> {
    match tensor.shape.get(depth..).unwrap_or_default() {
        [] => {
            let mut list = Vec::new();
            tensor.data.slice(from, from + 1).write_json(&tensor.name, &mut list)?;
            json.extend_from_slice(list.get(1..list.len() - 1).unwrap_or_default());
            Ok(())
        }
        [size] => tensor.data.slice(from, from + size).write_json(&tensor.name, json),
        [size, rest @ ..] => {
            let width: usize = rest.iter().product();
            json.push(b'[');
            for i in 0..*size {
                if i > 0 {
                    json.push(b',');
                }
                write_nested(tensor, depth + 1, from + i * width, json)?;
            }
            json.push(b']');
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(inputs: &[(&str, DataType)]) -> Vec<TensorSpec> {
        let spec =
            |(name, datatype): &(&str, DataType)| TensorSpec { name: (*name).into(), datatype: *datatype, shape: None };
        inputs.iter().map(spec).collect()
    }

    #[test]
    fn rows_and_columns_give_the_same_tensors() {
        let one = specs(&[("x", DataType::Fp32)]);
        let two = specs(&[("a", DataType::Int64), ("b", DataType::Bytes)]);
        let x = || vec![Tensor { name: "x".into(), shape: vec![2, 2], data: Data::Fp32(vec![1.0, 2.0, 3.0, 4.0]) }];
        for (body, format) in [
            (r#"{"instances":[[1,2],[3,4]]}"#, Format::Rows),
            (r#"{"signature_name":"serving_default","instances":[{"x":[1,2]},{"x":[3,4]}]}"#, Format::Rows),
            (r#"{"inputs":[[1,2],[3,4]]}"#, Format::Columns),
            (r#"{"inputs":{"x":[[1,2],[3,4]]}}"#, Format::Columns),
        ] {
            assert_eq!(parse(body.as_bytes(), &one).unwrap(), (format, x()), "{body}");
        }
        let ab = vec![
            Tensor { name: "a".into(), shape: vec![2], data: Data::Int64(vec![7, 8]) },
            Tensor { name: "b".into(), shape: vec![2], data: Data::Bytes(vec![b"p]".to_vec(), vec![0xff]]) },
        ];
        for body in [
            r#"{"instances":[{"a":7,"b":"p]"},{"a":8,"b":{"b64":"/w=="}}]}"#,
            r#"{"inputs":{"a":[7,8],"b":["p]",{"b64":"/w=="}]}}"#,
        ] {
            assert_eq!(parse(body.as_bytes(), &two).unwrap().1, ab, "{body}");
        }
        let scalar = parse(br#"{"inputs":{"x":3.5}}"#, &one).unwrap().1;
        assert_eq!((&scalar[0].shape, &scalar[0].data), (&vec![], &Data::Fp32(vec![3.5])));
    }

    #[test]
    fn invalid_requests_name_the_fault() {
        let one = specs(&[("x", DataType::Fp32)]);
        let two = specs(&[("a", DataType::Fp32), ("b", DataType::Fp32)]);
        for (body, specs, words) in [
            ("{}", &one, "either instances or inputs"),
            (r#"{"instances":[1],"inputs":[1]}"#, &one, "either instances or inputs"),
            ("nonsense", &one, "expected"),
            (r#"{"instances":7}"#, &one, "instances:"),
            (r#"{"instances":[[1,2],[3]]}"#, &one, "2 and 1 elements"),
            (r#"{"instances":[[1],2]}"#, &one, "both elements and lists"),
            (r#"{"instances":[1,[2]]}"#, &one, "both elements and lists"),
            (r#"{"instances":[["a"]]}"#, &one, "data is not FP32"),
            (r#"{"instances":[{"y":1}]}"#, &one, "unexpected input 'y'"),
            (r#"{"instances":[{"x":1},{"y":1}]}"#, &one, "instance 1 names other inputs"),
            (r#"{"instances":[1]}"#, &two, "several inputs"),
            (r#"{"inputs":{"x":{"y":1}}}"#, &one, "an object is not a tensor"),
        ] {
            let error = parse(body.as_bytes(), specs).unwrap_err().to_string();
            assert!(error.contains(words), "{body}: {error}");
        }
    }
}
