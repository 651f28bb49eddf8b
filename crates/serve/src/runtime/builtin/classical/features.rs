//! Operators of `ai.onnx.ml` that prepare features.

use super::attributes::Attributes;
use super::standard::concat;
use super::value::{Value, axis, from_f64};
use super::{Operator, required};
use crate::tensor::{Data, DataType};

/// The operator with this name; `None` if there is none.
pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Option<Operator>, String> {
    Ok(Some(match name {
        "Scaler" => {
            let (offset, scale) = (attributes.numbers("offset")?, attributes.numbers("scale")?);
            // One number is for all features.
            let of = |list: &[f64], column: usize, default: f64| match list {
                [] => default,
                [one] => *one,
                all => all[column],
            };
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let columns = last(value)?;
                if [&offset, &scale].iter().any(|list| list.len() > 1 && list.len() != columns) {
                    return Err(format!("{columns} features do not fit the model"));
                }
                let x = value.to_f64()?.into_iter().enumerate();
                let scaled =
                    x.map(|(i, x)| ((x - of(&offset, i % columns, 0.0)) * of(&scale, i % columns, 1.0)) as f32);
                Ok(vec![Value { shape: value.shape.clone(), data: Data::Fp32(scaled.collect()) }])
            })
        }
        "Normalizer" => {
            let norm: fn(&[f64]) -> f64 = match attributes.text("norm", "MAX").as_str() {
                "MAX" => |row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                "L1" => |row| row.iter().map(|x| x.abs()).sum(),
                "L2" => |row| row.iter().map(|x| x * x).sum::<f64>().sqrt(),
                other => return Err(format!("norm '{other}' is unknown")),
            };
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let mut x = value.to_f64()?;
                for row in x.chunks_exact_mut(last(value)?) {
                    let norm = norm(row);
                    if norm != 0.0 {
                        row.iter_mut().for_each(|x| *x /= norm);
                    }
                }
                let data = Data::Fp32(x.into_iter().map(|x| x as f32).collect());
                Ok(vec![Value { shape: value.shape.clone(), data }])
            })
        }
        "Imputer" => imputer(attributes)?,
        "Binarizer" => {
            let threshold = f64::from(attributes.float("threshold", 0.0));
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let x = value.to_f64()?.into_iter().map(|x| f64::from(u8::from(x > threshold))).collect();
                Ok(vec![Value { shape: value.shape.clone(), data: from_f64(value.data.datatype(), x)? }])
            })
        }
        "ArrayFeatureExtractor" => Box::new(|inputs| {
            let (value, chosen) = (required(inputs, 0)?, required(inputs, 1)?.integers()?);
            let columns = last(value)?;
            let chosen = chosen.into_iter().map(|i| axis(i, columns)).collect::<Result<Vec<_>, _>>()?;
            let rows = value.data.len() / columns;
            let indices: Vec<usize> = (0..rows).flat_map(|r| chosen.iter().map(move |c| r * columns + c)).collect();
            let mut shape = value.shape.clone();
            if shape.len() == 1 {
                shape.insert(0, 1);
            }
            shape.pop();
            shape.push(chosen.len());
            Ok(vec![Value { shape, data: super::standard::gather(&value.data, &indices) }])
        }),
        "FeatureVectorizer" => {
            attributes.ignore("inputdimensions");
            Box::new(|inputs| {
                let float = |value: &Value| -> Result<Value, String> {
                    let (rows, columns) = value.matrix()?;
                    Ok(Value { shape: vec![rows, columns], data: from_f64(DataType::Fp32, value.to_f64()?)? })
                };
                let values = inputs.iter().copied().flatten().map(float).collect::<Result<Vec<_>, _>>()?;
                Ok(vec![concat(&values.iter().collect::<Vec<_>>(), 1)?])
            })
        }
        _ => return Ok(None),
    }))
}

/// The size of the last axis: the number of features.
fn last(value: &Value) -> Result<usize, String> {
    value.shape.last().copied().filter(|n| *n > 0).ok_or_else(|| "there are no features".to_owned())
}

fn imputer(attributes: &Attributes<'_>) -> Result<Operator, String> {
    let ints = attributes.ints("imputed_value_int64s");
    let mut imputed = attributes.numbers("imputed_value_floats")?;
    let replaced = match attributes.optional_int("replaced_value_int64") {
        Some(n) if imputed.is_empty() => n as f64,
        _ => f64::from(attributes.float("replaced_value_float", 0.0)),
    };
    if imputed.is_empty() {
        imputed = ints.iter().map(|x| *x as f64).collect();
    }
    if imputed.is_empty() {
        return Err("no imputed values".into());
    }
    Ok(Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let columns = last(value)?;
        if imputed.len() > 1 && imputed.len() != columns {
            return Err(format!("{columns} features, expected {}", imputed.len()));
        }
        let is_replaced = |x: f64| x == replaced || x.is_nan() && replaced.is_nan();
        let new = |column: usize| if imputed.len() == 1 { imputed[0] } else { imputed[column] };
        let x = value.to_f64()?.into_iter().enumerate();
        let x = x.map(|(i, x)| if is_replaced(x) { new(i % columns) } else { x }).collect();
        Ok(vec![Value { shape: value.shape.clone(), data: from_f64(value.data.datatype(), x)? }])
    }))
}
