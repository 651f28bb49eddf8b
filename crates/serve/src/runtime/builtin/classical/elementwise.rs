//! Standard operators that compute each element on its own.

use super::attributes::Attributes;
use super::value::{Value, broadcast, from_f64, from_i64};
use super::{Operator, required};
use crate::each_data;
use crate::tensor::{Data, DataType};

/// The operator with this name; `None` if it is not elementwise.
pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Option<Operator>, String> {
    Ok(Some(match name {
        "Identity" => unchanged(),
        "Dropout" => {
            attributes.ignore("ratio");
            attributes.ignore("seed");
            unchanged()
        }
        "Cast" => {
            attributes.ignore("saturate");
            let to = i32::try_from(attributes.int("to", 0)).ok().and_then(crate::runtime::builtin::datatype);
            let to = to.ok_or("the target type is not supported")?;
            Box::new(move |inputs| Ok(vec![cast(required(inputs, 0)?, to)?]))
        }
        "Add" => binary(|a, b| a + b, i64::wrapping_add),
        "Sub" => binary(|a, b| a - b, i64::wrapping_sub),
        "Mul" => binary(|a, b| a * b, i64::wrapping_mul),
        "Div" => binary(|a, b| a / b, |a, b| a.checked_div(b).unwrap_or(0)),
        "Pow" => binary(f64::powf, |a, b| u32::try_from(b).map_or(0, |b| a.wrapping_pow(b))),
        "Max" => variadic(|a, b| if a.is_nan() || a > b { a } else { b }, i64::max),
        "Min" => variadic(|a, b| if a.is_nan() || a < b { a } else { b }, i64::min),
        "Sum" => variadic(|a, b| a + b, i64::wrapping_add),
        "Neg" => unary(|x| -x, i64::wrapping_neg),
        "Abs" => unary(f64::abs, i64::wrapping_abs),
        "Sign" => unary(|x| if x == 0.0 { 0.0 } else { x.signum() }, i64::signum),
        "Exp" => float(f64::exp),
        "Log" => float(f64::ln),
        "Sqrt" => float(f64::sqrt),
        "Reciprocal" => float(f64::recip),
        "Floor" => float(f64::floor),
        "Ceil" => float(f64::ceil),
        "Round" => float(f64::round_ties_even),
        "Sigmoid" => float(|x| 1.0 / (1.0 + (-x).exp())),
        "Tanh" => float(f64::tanh),
        "Sin" => float(f64::sin),
        "Cos" => float(f64::cos),
        "Softplus" => float(|x| if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }),
        "Relu" => unary(|x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0)),
        "LeakyRelu" => {
            let alpha = f64::from(attributes.float("alpha", 0.01));
            float(move |x| if x < 0.0 { alpha * x } else { x })
        }
        "Clip" if attributes.version >= 11 => Box::new(clip),
        "Not" => Box::new(|inputs| {
            let Value { shape, data: Data::Bool(v) } = required(inputs, 0)? else {
                return Err("expected booleans".into());
            };
            Ok(vec![Value { shape: shape.clone(), data: Data::Bool(v.iter().map(|x| !x).collect()) }])
        }),
        "And" => logic(|a, b| a && b),
        "Or" => logic(|a, b| a || b),
        "Xor" => logic(|a, b| a != b),
        "IsNaN" => Box::new(|inputs| {
            let value = required(inputs, 0)?;
            let data = Data::Bool(value.to_f64()?.iter().map(|x| x.is_nan()).collect());
            Ok(vec![Value { shape: value.shape.clone(), data }])
        }),
        "Equal" => comparison(|a, b| a == b, |a, b| a == b, Some(|a, b| a == b)),
        "Less" => comparison(|a, b| a < b, |a, b| a < b, None),
        "LessOrEqual" => comparison(|a, b| a <= b, |a, b| a <= b, None),
        "Greater" => comparison(|a, b| a > b, |a, b| a > b, None),
        "GreaterOrEqual" => comparison(|a, b| a >= b, |a, b| a >= b, None),
        "Where" => Box::new(select),
        _ => return Ok(None),
    }))
}

fn unchanged() -> Operator {
    Box::new(|inputs| Ok(vec![required(inputs, 0)?.clone()]))
}

fn is_integer(datatype: DataType) -> bool {
    !matches!(
        datatype,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 | DataType::Bytes | DataType::Bool
    )
}

/// An operation on floats, which is computed with doubles and rounded once, and on integers.
fn unary(
    float: impl Fn(f64) -> f64 + Send + Sync + 'static,
    integer: impl Fn(i64) -> i64 + Send + Sync + 'static,
) -> Operator {
    Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let datatype = value.data.datatype();
        let data = if is_integer(datatype) {
            from_i64(datatype, value.integers()?.into_iter().map(&integer).collect())?
        } else {
            from_f64(datatype, value.to_f64()?.into_iter().map(&float).collect())?
        };
        Ok(vec![Value { shape: value.shape.clone(), data }])
    })
}

/// An operation that is defined for floats only.
fn float(operation: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Operator {
    Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let data = from_f64(value.data.datatype(), value.to_f64()?.into_iter().map(&operation).collect())?;
        Ok(vec![Value { shape: value.shape.clone(), data }])
    })
}

fn combine(
    a: &Value,
    b: &Value,
    float: impl Fn(f64, f64) -> f64,
    integer: impl Fn(i64, i64) -> i64,
) -> Result<Value, String> {
    let datatype = a.data.datatype();
    let (shape, left, right) = broadcast(&a.shape, &b.shape)?;
    let pairs = left.into_iter().zip(right);
    let data = if is_integer(datatype) && is_integer(b.data.datatype()) {
        let (a, b) = (a.integers()?, b.integers()?);
        from_i64(datatype, pairs.map(|(i, j)| integer(a[i], b[j])).collect())?
    } else {
        let (a, b) = (a.to_f64()?, b.to_f64()?);
        from_f64(datatype, pairs.map(|(i, j)| float(a[i], b[j])).collect())?
    };
    Ok(Value { shape, data })
}

fn binary(float: fn(f64, f64) -> f64, integer: fn(i64, i64) -> i64) -> Operator {
    Box::new(move |inputs| Ok(vec![combine(required(inputs, 0)?, required(inputs, 1)?, float, integer)?]))
}

fn variadic(float: fn(f64, f64) -> f64, integer: fn(i64, i64) -> i64) -> Operator {
    Box::new(move |inputs| {
        let mut result = required(inputs, 0)?.clone();
        for other in inputs.iter().skip(1).copied().flatten() {
            result = combine(&result, other, float, integer)?;
        }
        Ok(vec![result])
    })
}

fn logic(operation: fn(bool, bool) -> bool) -> Operator {
    Box::new(move |inputs| {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let (Data::Bool(x), Data::Bool(y)) = (&a.data, &b.data) else { return Err("expected booleans".into()) };
        let (shape, left, right) = broadcast(&a.shape, &b.shape)?;
        let data = Data::Bool(left.into_iter().zip(right).map(|(i, j)| operation(x[i], y[j])).collect());
        Ok(vec![Value { shape, data }])
    })
}

type TextComparison = fn(&[u8], &[u8]) -> bool;

fn comparison(float: fn(f64, f64) -> bool, integer: fn(i64, i64) -> bool, text: Option<TextComparison>) -> Operator {
    Box::new(move |inputs| {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let (shape, left, right) = broadcast(&a.shape, &b.shape)?;
        let pairs = left.into_iter().zip(right);
        let result = match (&a.data, &b.data, a.to_i64(), b.to_i64()) {
            (Data::Bytes(x), Data::Bytes(y), ..) => {
                let text = text.ok_or("strings have no order")?;
                pairs.map(|(i, j)| text(&x[i], &y[j])).collect()
            }
            (_, _, Some(x), Some(y)) => pairs.map(|(i, j)| integer(x[i], y[j])).collect(),
            _ => {
                let (x, y) = (a.to_f64()?, b.to_f64()?);
                pairs.map(|(i, j)| float(x[i], y[j])).collect()
            }
        };
        Ok(vec![Value { shape, data: Data::Bool(result) }])
    })
}

fn clip(inputs: &[Option<&Value>]) -> Result<Vec<Value>, String> {
    let mut value = required(inputs, 0)?.clone();
    if let Some(min) = inputs.get(1).copied().flatten() {
        value = combine(&value, min, |x, min| if x < min { min } else { x }, i64::max)?;
    }
    if let Some(max) = inputs.get(2).copied().flatten() {
        value = combine(&value, max, |x, max| if x > max { max } else { x }, i64::min)?;
    }
    Ok(vec![value])
}

fn select(inputs: &[Option<&Value>]) -> Result<Vec<Value>, String> {
    let (condition, yes, no) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
    let Data::Bool(chosen) = &condition.data else { return Err("the condition is not boolean".into()) };
    let (inner, yes_indices, no_indices) = broadcast(&yes.shape, &no.shape)?;
    let (shape, conditions, inner_indices) = broadcast(&condition.shape, &inner)?;
    macro_rules! pick {
        ($($variant:ident),*) => {
            match (&yes.data, &no.data) {
                $((Data::$variant(a), Data::$variant(b)) => Data::$variant(
                    conditions
                        .iter()
                        .zip(&inner_indices)
                        .map(|(c, i)| if chosen[*c] { a[yes_indices[*i]].clone() } else { b[no_indices[*i]].clone() })
                        .collect(),
                ),)*
                _ => return Err("both branches must have the same type".into()),
            }
        };
    }
    let data = pick!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes);
    Ok(vec![Value { shape, data }])
}

/// Converts to another type. Numbers become their shortest decimal text, and text is parsed as a number.
fn cast(value: &Value, to: DataType) -> Result<Value, String> {
    let data = match (&value.data, to) {
        (data, to) if data.datatype() == to => data.clone(),
        (Data::Bytes(texts), to) => {
            let parse = |text: &Vec<u8>| {
                let text = String::from_utf8_lossy(text);
                text.trim().parse::<f64>().map_err(|_| format!("'{text}' is not a number"))
            };
            from_f64(to, texts.iter().map(parse).collect::<Result<_, _>>()?)?
        }
        (Data::Bool(v), DataType::Bytes) => {
            Data::Bytes(v.iter().map(|x| if *x { b"True".to_vec() } else { b"False".to_vec() }).collect())
        }
        (data, DataType::Bytes) => Data::Bytes(each_data!(data, v => v.iter().map(text).collect())),
        (_, to) => match value.to_i64() {
            Some(integers) => from_i64(to, integers)?,
            None => from_f64(to, value.to_f64()?)?,
        },
    };
    Ok(Value { shape: value.shape.clone(), data })
}

/// The text of an element.
fn text(element: &(impl std::fmt::Debug + ?Sized)) -> Vec<u8> {
    // Debug is the shortest text that parses back to the same number; a whole float ends with `.0`, which ONNX omits.
    let text = format!("{element:?}");
    text.strip_suffix(".0").unwrap_or(&text).as_bytes().to_vec()
}
