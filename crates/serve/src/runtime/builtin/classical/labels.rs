//! Operators of `ai.onnx.ml` that map categories: `LabelEncoder`, `CategoryMapper` and `OneHotEncoder`.

use std::collections::HashMap;

use super::attributes::Attributes;
use super::standard::gather;
use super::value::Value;
use super::{Operator, required};
use crate::tensor::{Data, DataType};

/// A category as the key of a map. Floats are compared by their bits, and all NaNs are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Integer(i64),
    Float(u64),
    Text(Vec<u8>),
}

fn float_key(x: f64) -> Key {
    // -0 equals 0, and a NaN equals every other.
    let x = if x == 0.0 { 0.0 } else { x };
    Key::Float(if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() })
}

/// The elements of a value as keys.
fn keys(value: &Value) -> Result<Vec<Key>, String> {
    match (&value.data, value.to_i64()) {
        (Data::Bytes(texts), _) => Ok(texts.iter().map(|text| Key::Text(text.clone())).collect()),
        (_, Some(integers)) => Ok(integers.into_iter().map(Key::Integer).collect()),
        (_, None) => Ok(value.to_f64()?.into_iter().map(float_key).collect()),
    }
}

pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Operator, String> {
    match name {
        "OneHotEncoder" => one_hot(attributes),
        "CategoryMapper" => category_mapper(attributes),
        _ => label_encoder(attributes),
    }
}

/// The list of an attribute in whichever type it is given, such as `keys_strings`, `keys_int64s`, `keys_floats` or `keys_tensor`.
fn list(attributes: &Attributes<'_>, name: &str) -> Result<Option<Value>, String> {
    if let Some(tensor) = attributes.tensor(&format!("{name}_tensor"))? {
        return Ok(Some(tensor));
    }
    let texts = attributes.texts(&format!("{name}_strings"));
    let integers = attributes.ints(&format!("{name}_int64s"));
    let floats = attributes.floats(&format!("{name}_floats"));
    let data = match (texts.len(), integers.len(), floats.len()) {
        (0, 0, 0) => return Ok(None),
        (0, 0, _) => Data::Fp32(floats.to_vec()),
        (0, ..) => Data::Int64(integers.to_vec()),
        _ => Data::Bytes(texts),
    };
    Ok(Some(Value { shape: vec![data.len()], data }))
}

fn label_encoder(attributes: &Attributes<'_>) -> Result<Operator, String> {
    if attributes.version < 2 {
        // The classes are numbered in their order.
        let classes = attributes.texts("classes_strings");
        let numbers = (0_i64..).take(classes.len()).collect();
        return Ok(two_way(classes, numbers, attributes));
    }
    let (Some(from), Some(to)) = (list(attributes, "keys")?, list(attributes, "values")?) else {
        return Err("keys or values are missing".into());
    };
    if from.data.len() != to.data.len() {
        return Err("the numbers of keys and values differ".into());
    }
    let mut mapped = HashMap::new();
    for (i, key) in keys(&from)?.into_iter().enumerate() {
        mapped.entry(key).or_insert(i);
    }
    let fallback = attributes.tensor("default_tensor")?.map(|tensor| tensor.data);
    let (text, integer, float) = (
        attributes.text("default_string", "_Unused"),
        attributes.int("default_int64", -1),
        attributes.float("default_float", -0.0),
    );
    let fallback = match (fallback, to.data.datatype()) {
        (Some(data), _) => data,
        (None, DataType::Bytes) => Data::Bytes(vec![text.into_bytes()]),
        (None, DataType::Fp32) => Data::Fp32(vec![float]),
        (None, DataType::Fp64) => Data::Fp64(vec![f64::from(float)]),
        (None, DataType::Int16) => Data::Int16(vec![-1]),
        (None, _) => Data::Int64(vec![integer]),
    };
    let mut values = to.data;
    let fallback_index = values.len();
    if fallback.len() != 1 || !values.append(&fallback) {
        return Err("the default does not have the type of the values".into());
    }
    Ok(Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let indices: Vec<usize> =
            keys(value)?.iter().map(|key| mapped.get(key).copied().unwrap_or(fallback_index)).collect();
        Ok(vec![Value { shape: value.shape.clone(), data: gather(&values, &indices) }])
    }))
}

fn category_mapper(attributes: &Attributes<'_>) -> Result<Operator, String> {
    let texts = attributes.texts("cats_strings");
    let numbers = attributes.ints("cats_int64s").to_vec();
    if texts.len() != numbers.len() {
        return Err("the numbers of texts and integers differ".into());
    }
    Ok(two_way(texts, numbers, attributes))
}

/// A map that is used in both directions: texts become numbers, and numbers become texts.
fn two_way(texts: Vec<Vec<u8>>, numbers: Vec<i64>, attributes: &Attributes<'_>) -> Operator {
    let default_text = attributes.text("default_string", "_Unused").into_bytes();
    let default_number = attributes.int("default_int64", -1);
    let by_text: HashMap<Vec<u8>, i64> = texts.iter().cloned().zip(numbers.iter().copied()).collect();
    let by_number: HashMap<i64, Vec<u8>> = numbers.into_iter().zip(texts).collect();
    Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let data = match &value.data {
            Data::Bytes(v) => {
                Data::Int64(v.iter().map(|t| by_text.get(t).copied().unwrap_or(default_number)).collect())
            }
            _ => {
                let found = value.integers()?.into_iter().map(|n| by_number.get(&n).unwrap_or(&default_text).clone());
                Data::Bytes(found.collect())
            }
        };
        Ok(vec![Value { shape: value.shape.clone(), data }])
    })
}

fn one_hot(attributes: &Attributes<'_>) -> Result<Operator, String> {
    let texts = attributes.texts("cats_strings");
    let integers = attributes.ints("cats_int64s");
    let zeros = attributes.flag("zeros", true);
    let categories: Vec<Key> = if texts.is_empty() {
        integers.iter().map(|n| Key::Integer(*n)).collect()
    } else {
        texts.into_iter().map(Key::Text).collect()
    };
    let positions: HashMap<Key, usize> = categories.iter().cloned().enumerate().map(|(i, key)| (key, i)).collect();
    let n = categories.len();
    Ok(Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let elements = match &value.data {
            // The categories of numbers are integers.
            Data::Fp32(_) | Data::Fp64(_) => value.to_f64()?.into_iter().map(|x| Key::Integer(x as i64)).collect(),
            _ => keys(value)?,
        };
        let mut out = vec![0.0_f32; elements.len() * n];
        for (row, element) in elements.iter().enumerate() {
            match positions.get(element) {
                Some(position) => out[row * n + position] = 1.0,
                None if zeros => {}
                None => return Err("an element is not a known category".into()),
            }
        }
        Ok(vec![Value { shape: [&value.shape[..], &[n]].concat(), data: Data::Fp32(out) }])
    }))
}
