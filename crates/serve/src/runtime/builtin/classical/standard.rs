//! Standard operators that move elements, reduce axes or multiply matrices.

use super::attributes::Attributes;
use super::value::{Value, axis, broadcast, count, from_f64};
use super::{Operator, required};
use crate::tensor::Data;

/// The operator with this name; `None` if there is none.
pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Option<Operator>, String> {
    let axes = attributes.optional_ints("axes").map(<[i64]>::to_vec);
    Ok(Some(match name {
        "Constant" => {
            let value = constant(attributes)?;
            Box::new(move |_| Ok(vec![value.clone()]))
        }
        "ConstantOfShape" => {
            let fill = attributes.tensor("value")?;
            let fill = fill.unwrap_or(Value { shape: vec![1], data: Data::Fp32(vec![0.0]) });
            Box::new(move |inputs| {
                let shape = sizes(&required(inputs, 0)?.integers()?)?;
                let indices = vec![0; count(&shape)?];
                Ok(vec![Value { shape, data: gather(&fill.data, &indices) }])
            })
        }
        "Shape" => {
            let (start, end) = (attributes.int("start", 0), attributes.optional_int("end"));
            Box::new(move |inputs| {
                let shape = &required(inputs, 0)?.shape;
                let (start, end) = range(start, end.unwrap_or(i64::MAX), shape.len());
                let sizes: Vec<i64> = shape[start..end.max(start)].iter().map(|n| *n as i64).collect();
                Ok(vec![Value { shape: vec![sizes.len()], data: Data::Int64(sizes) }])
            })
        }
        "Reshape" => {
            let keep_zero = attributes.flag("allowzero", false);
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let shape = reshaped(&value.shape, &required(inputs, 1)?.integers()?, keep_zero)?;
                Ok(vec![Value::new(shape, value.data.clone())?])
            })
        }
        "Flatten" => {
            let at = attributes.int("axis", 1);
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let at = if at == value.shape.len() as i64 { value.shape.len() } else { axis(at, value.shape.len())? };
                let (outer, inner) = value.shape.split_at(at);
                let shape = vec![outer.iter().product(), inner.iter().product()];
                Ok(vec![Value { shape, data: value.data.clone() }])
            })
        }
        "Squeeze" | "Unsqueeze" => {
            let insert = name == "Unsqueeze";
            Box::new(move |inputs| {
                let value = required(inputs, 0)?;
                let axes = axes_of(&axes, inputs)?;
                let shape = if insert { unsqueezed(&value.shape, &axes)? } else { squeezed(&value.shape, &axes)? };
                Ok(vec![Value::new(shape, value.data.clone())?])
            })
        }
        "Transpose" => {
            let order = attributes.ints("perm").to_vec();
            Box::new(move |inputs| Ok(vec![transpose(required(inputs, 0)?, &order)?]))
        }
        "Concat" => {
            let along = attributes.int("axis", 1);
            Box::new(move |inputs| Ok(vec![concat(&inputs.iter().copied().flatten().collect::<Vec<_>>(), along)?]))
        }
        "Gather" => {
            let along = attributes.int("axis", 0);
            Box::new(move |inputs| Ok(vec![gather_axis(required(inputs, 0)?, required(inputs, 1)?, along)?]))
        }
        "Slice" if attributes.version >= 10 => Box::new(slice),
        "MatMul" => Box::new(|inputs| Ok(vec![matmul(required(inputs, 0)?, required(inputs, 1)?)?])),
        "Gemm" => gemm(attributes),
        "Softmax" | "LogSoftmax" if attributes.version >= 13 => {
            let (along, is_log) = (attributes.int("axis", -1), name == "LogSoftmax");
            Box::new(move |inputs| Ok(vec![softmax(required(inputs, 0)?, along, is_log)?]))
        }
        "ArgMax" | "ArgMin" => {
            let (along, keep) = (attributes.int("axis", 0), attributes.flag("keepdims", true));
            let last = attributes.flag("select_last_index", false);
            let sign = if name == "ArgMax" { 1.0 } else { -1.0 };
            Box::new(move |inputs| Ok(vec![arg_max(required(inputs, 0)?, along, keep, last, sign)?]))
        }
        _ => return reduction(name, attributes, axes),
    }))
}

/// The value of the attribute that is set; a node has one of them.
fn constant(attributes: &Attributes<'_>) -> Result<Value, String> {
    if let Some(value) = attributes.tensor("value")? {
        return Ok(value);
    }
    if let Some(n) = attributes.optional_int("value_int") {
        return Ok(Value { shape: vec![], data: Data::Int64(vec![n]) });
    }
    if let Some(list) = attributes.optional_ints("value_ints") {
        return Ok(Value { shape: vec![list.len()], data: Data::Int64(list.to_vec()) });
    }
    match attributes.floats("value_floats") {
        [] => Ok(Value { shape: vec![], data: Data::Fp32(vec![attributes.float("value_float", 0.0)]) }),
        list => Ok(Value { shape: vec![list.len()], data: Data::Fp32(list.to_vec()) }),
    }
}

/// The elements at these indices.
pub(super) fn gather(data: &Data, indices: &[usize]) -> Data {
    macro_rules! pick {
        ($($variant:ident),*) => {
            match data {
                $(Data::$variant(v) => Data::$variant(indices.iter().map(|i| v[*i].clone()).collect()),)*
            }
        };
    }
    pick!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes)
}

fn sizes(shape: &[i64]) -> Result<Vec<usize>, String> {
    shape.iter().map(|n| usize::try_from(*n).map_err(|_| format!("{n} is not a size"))).collect()
}

/// Start and end of a slice of `length` elements; negative positions count from the end.
fn range(start: i64, end: i64, length: usize) -> (usize, usize) {
    let position = |at: i64| {
        let at = if at < 0 { at.saturating_add_unsigned(length as u64) } else { at };
        usize::try_from(at).unwrap_or(0).min(length)
    };
    (position(start), position(end))
}

fn reshaped(from: &[usize], to: &[i64], keep_zero: bool) -> Result<Vec<usize>, String> {
    let mut shape = Vec::with_capacity(to.len());
    let mut inferred = None;
    for (i, size) in to.iter().enumerate() {
        shape.push(match *size {
            -1 if inferred.replace(i).is_none() => 1,
            0 if !keep_zero => *from.get(i).ok_or("a size of 0 refers to an axis that does not exist")?,
            size => usize::try_from(size).map_err(|_| format!("the shape {to:?} is not valid"))?,
        });
    }
    if let Some(i) = inferred {
        let (total, known) = (count(from)?, count(&shape)?);
        shape[i] = total
            .checked_div(known)
            .filter(|n| n * known == total)
            .ok_or_else(|| format!("{from:?} does not fit {to:?}"))?;
    }
    Ok(shape)
}

/// The axes of an operator: an attribute in older operator sets, the second input in newer ones.
fn axes_of(attribute: &Option<Vec<i64>>, inputs: &[Option<&Value>]) -> Result<Vec<i64>, String> {
    match (attribute, inputs.get(1).copied().flatten()) {
        (Some(axes), _) => Ok(axes.clone()),
        (None, Some(input)) => input.integers(),
        (None, None) => Ok(Vec::new()),
    }
}

fn squeezed(shape: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let axes = axes.iter().map(|a| axis(*a, shape.len())).collect::<Result<Vec<_>, _>>()?;
    let is_removed = |(i, size): (usize, &usize)| if axes.is_empty() { *size == 1 } else { axes.contains(&i) };
    Ok(shape.iter().enumerate().filter(|(i, size)| !is_removed((*i, size))).map(|(_, size)| *size).collect())
}

fn unsqueezed(shape: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let rank = shape.len() + axes.len();
    let axes = axes.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut sizes = shape.iter();
    (0..rank)
        .map(|i| {
            if axes.contains(&i) { Ok(1) } else { sizes.next().copied().ok_or_else(|| "an axis is given twice".into()) }
        })
        .collect()
}

/// Sizes before, of, and after an axis.
fn around(shape: &[usize], at: usize) -> (usize, usize, usize) {
    (shape[..at].iter().product(), shape[at], shape[at + 1..].iter().product())
}

fn transpose(value: &Value, order: &[i64]) -> Result<Value, String> {
    let rank = value.shape.len();
    let order: Vec<usize> = if order.is_empty() {
        (0..rank).rev().collect()
    } else {
        order.iter().map(|a| axis(*a, rank)).collect::<Result<_, _>>()?
    };
    if (0..rank).any(|a| !order.contains(&a)) || order.len() != rank {
        return Err(format!("{order:?} is not an order of {rank} axes"));
    }
    let mut strides = vec![1; rank];
    for i in (0..rank.saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * value.shape[i + 1];
    }
    let shape: Vec<usize> = order.iter().map(|a| value.shape[*a]).collect();
    let indices: Vec<usize> = (0..value.data.len())
        .map(|mut flat| {
            let mut index = 0;
            for (a, size) in order.iter().zip(&shape).rev() {
                index += flat % size * strides[*a];
                flat /= size;
            }
            index
        })
        .collect();
    Ok(Value { shape, data: gather(&value.data, &indices) })
}

pub(super) fn concat(values: &[&Value], along: i64) -> Result<Value, String> {
    let first = values.first().ok_or("nothing to concatenate")?;
    let at = axis(along, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[at] = 0;
    let mut data = gather(&first.data, &[]);
    for value in values {
        let others_match = value.shape.len() == shape.len()
            && value.shape.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == at || a == b);
        if !others_match || !data.append(&value.data) {
            return Err(format!(
                "a value of shape {:?} and type {} does not fit",
                value.shape,
                value.data.datatype().name()
            ));
        }
        shape[at] += value.shape[at];
    }
    let (outer, ..) = around(&shape, at);
    if outer == 1 {
        return Ok(Value { shape, data });
    }
    // The elements are in the order of the values; the result interleaves them.
    let mut indices = Vec::with_capacity(data.len());
    for row in 0..outer {
        let mut start = 0;
        for value in values {
            let chunk = value.data.len() / outer;
            indices.extend(start + row * chunk..start + (row + 1) * chunk);
            start += value.data.len();
        }
    }
    Ok(Value { shape, data: gather(&data, &indices) })
}

fn gather_axis(value: &Value, indices: &Value, along: i64) -> Result<Value, String> {
    let at = axis(along, value.shape.len())?;
    let (outer, size, inner) = around(&value.shape, at);
    let chosen = indices.integers()?.into_iter().map(|i| axis(i, size)).collect::<Result<Vec<_>, _>>()?;
    let shape = [&value.shape[..at], &indices.shape[..], &value.shape[at + 1..]].concat();
    let mut flat = Vec::with_capacity(count(&shape)?);
    for o in 0..outer {
        for i in &chosen {
            let start = (o * size + i) * inner;
            flat.extend(start..start + inner);
        }
    }
    Ok(Value { shape, data: gather(&value.data, &flat) })
}

fn slice(inputs: &[Option<&Value>]) -> Result<Vec<Value>, String> {
    let mut value = required(inputs, 0)?.clone();
    let (starts, ends) = (required(inputs, 1)?.integers()?, required(inputs, 2)?.integers()?);
    let list = |index: usize| inputs.get(index).copied().flatten().map(Value::integers).transpose();
    let axes = list(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("starts, ends, axes and steps have different lengths".into());
    }
    for (((start, end), along), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let at = axis(along, value.shape.len())?;
        let step = usize::try_from(step).ok().filter(|s| *s > 0).ok_or("only positive steps are supported")?;
        let (start, end) = range(start, end, value.shape[at]);
        let chosen: Vec<i64> = (start..end).step_by(step).map(|i| i as i64).collect();
        let indices = Value { shape: vec![chosen.len()], data: Data::Int64(chosen) };
        value = gather_axis(&value, &indices, along)?;
    }
    Ok(vec![value])
}

/// `a` (rows x inner) times `b` (inner x columns), added to `out`.
fn multiply<T: Copy + std::ops::Mul<Output = T> + std::ops::AddAssign>(
    a: &[T],
    b: &[T],
    inner: usize,
    columns: usize,
    out: &mut [T],
) {
    if inner == 0 || columns == 0 {
        return;
    }
    for (row, out) in a.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
        for (x, b) in row.iter().zip(b.chunks_exact(columns)) {
            for (sum, y) in out.iter_mut().zip(b) {
                *sum += *x * *y;
            }
        }
    }
}

fn matmul(a: &Value, b: &Value) -> Result<Value, String> {
    // A vector counts as a row on the left and as a column on the right.
    let left = if a.shape.len() == 1 { vec![1, a.shape[0]] } else { a.shape.clone() };
    let right = if b.shape.len() == 1 { vec![b.shape[0], 1] } else { b.shape.clone() };
    let mismatch = || format!("matrices of shapes {:?} and {:?} cannot be multiplied", a.shape, b.shape);
    let ([outer_a @ .., rows, inner], [outer_b @ .., same, columns]) = (&left[..], &right[..]) else {
        return Err(mismatch());
    };
    if inner != same {
        return Err(mismatch());
    }
    let (outer, matrices_a, matrices_b) = broadcast(outer_a, outer_b)?;
    let mut shape = outer;
    let total = count(&[&shape[..], &[*rows, *columns]].concat())?;
    macro_rules! product {
        ($a:expr, $b:expr, $zero:expr) => {{
            let mut out = vec![$zero; total];
            let (size_a, size_b, size) = (rows * inner, inner * columns, rows * columns);
            for (i, (m, n)) in matrices_a.iter().zip(&matrices_b).enumerate() {
                let out = &mut out[i * size..(i + 1) * size];
                multiply(&$a[m * size_a..(m + 1) * size_a], &$b[n * size_b..(n + 1) * size_b], *inner, *columns, out);
            }
            out
        }};
    }
    let data = match (&a.data, &b.data) {
        (Data::Fp32(x), Data::Fp32(y)) => Data::Fp32(product!(x, y, 0.0)),
        (Data::Fp64(x), Data::Fp64(y)) => Data::Fp64(product!(x, y, 0.0)),
        (x, y) if x.datatype() == y.datatype() => {
            let (x, y) = (a.to_f64()?, b.to_f64()?);
            from_f64(a.data.datatype(), product!(x, y, 0.0))?
        }
        _ => return Err("the matrices have different types".into()),
    };
    if a.shape.len() > 1 {
        shape.push(*rows);
    }
    if b.shape.len() > 1 {
        shape.push(*columns);
    }
    Ok(Value { shape, data })
}

fn gemm(attributes: &Attributes<'_>) -> Operator {
    let (alpha, beta) = (f64::from(attributes.float("alpha", 1.0)), f64::from(attributes.float("beta", 1.0)));
    let (transpose_a, transpose_b) = (attributes.flag("transA", false), attributes.flag("transB", false));
    Box::new(move |inputs| {
        let turned = |index: usize, turn: bool| -> Result<Value, String> {
            let value = required(inputs, index)?;
            if turn { transpose(value, &[]) } else { Ok(value.clone()) }
        };
        let mut result = matmul(&turned(0, transpose_a)?, &turned(1, transpose_b)?)?;
        let bias = inputs.get(2).copied().flatten();
        if alpha == 1.0 && bias.is_none() {
            return Ok(vec![result]);
        }
        let mut sum: Vec<f64> = result.to_f64()?.into_iter().map(|x| alpha * x).collect();
        if let Some(bias) = bias {
            let (shape, _, indices) = broadcast(&result.shape, &bias.shape)?;
            if shape != result.shape {
                return Err(format!("a bias of shape {:?} does not fit", bias.shape));
            }
            let bias = bias.to_f64()?;
            sum.iter_mut().zip(indices).for_each(|(x, i)| *x += beta * bias[i]);
        }
        result.data = from_f64(result.data.datatype(), sum)?;
        Ok(vec![result])
    })
}

fn softmax(value: &Value, along: i64, is_log: bool) -> Result<Value, String> {
    let (outer, size, inner) = around(&value.shape, axis(along, value.shape.len())?);
    let mut x = value.to_f64()?;
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * size + k) * inner + i;
            let max = (0..size).map(|k| x[at(k)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..size).map(|k| (x[at(k)] - max).exp()).sum();
            for k in 0..size {
                let shifted = x[at(k)] - max;
                x[at(k)] = if is_log { shifted - sum.ln() } else { shifted.exp() / sum };
            }
        }
    }
    Ok(Value { shape: value.shape.clone(), data: from_f64(value.data.datatype(), x)? })
}

fn arg_max(value: &Value, along: i64, keep: bool, last: bool, sign: f64) -> Result<Value, String> {
    let at = axis(along, value.shape.len())?;
    let (outer, size, inner) = around(&value.shape, at);
    if size == 0 {
        return Err("the axis is empty".into());
    }
    let x = value.to_f64()?;
    let mut found = Vec::with_capacity(outer * inner);
    for o in 0..outer {
        for i in 0..inner {
            let element = |k: usize| sign * x[(o * size + k) * inner + i];
            let mut best = 0;
            for k in 1..size {
                if element(k) > element(best) || last && element(k) == element(best) {
                    best = k;
                }
            }
            found.push(best as i64);
        }
    }
    Ok(Value { shape: reduced(&value.shape, &[at], keep), data: Data::Int64(found) })
}

fn reduced(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let sizes = shape.iter().enumerate();
    if keep {
        sizes.map(|(i, size)| if axes.contains(&i) { 1 } else { *size }).collect()
    } else {
        sizes.filter(|(i, _)| !axes.contains(i)).map(|(_, size)| *size).collect()
    }
}

/// A reduction folds elements into an accumulator, which starts at `start`, and finishes it with their number.
struct Fold {
    start: f64,
    add: fn(f64, f64) -> f64,
    finish: fn(f64, f64) -> f64,
}

impl Fold {
    /// The reduction with this name; `None` if there is none.
    fn find(name: &str) -> Option<Self> {
        let sum: fn(f64, f64) -> f64 = |sum, x| sum + x;
        let squares: fn(f64, f64) -> f64 = |sum, x| sum + x * x;
        let fold = |start, add| Self { start, add, finish: |result, _| result };
        Some(match name {
            "ReduceSum" => fold(0.0, sum),
            "ReduceMean" => Self { finish: |sum, n| sum / n, ..fold(0.0, sum) },
            "ReduceProd" => fold(1.0, |product, x| product * x),
            "ReduceMax" => fold(f64::NEG_INFINITY, f64::max),
            "ReduceMin" => fold(f64::INFINITY, f64::min),
            "ReduceSumSquare" => fold(0.0, squares),
            "ReduceL1" => fold(0.0, |sum, x| sum + x.abs()),
            "ReduceL2" => Self { finish: |sum, _| sum.sqrt(), ..fold(0.0, squares) },
            "ReduceLogSum" => Self { finish: |sum, _| sum.ln(), ..fold(0.0, sum) },
            // Keeps the logarithm of the sum at every step, because the sum of the exponentials may overflow.
            "ReduceLogSumExp" => fold(f64::NEG_INFINITY, add_logarithms),
            _ => return None,
        })
    }
}

/// ln(e^a + e^b).
fn add_logarithms(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    if max.is_infinite() { max } else { max + (-(a - b).abs()).exp().ln_1p() }
}

fn reduction(name: &str, attributes: &Attributes<'_>, axes: Option<Vec<i64>>) -> Result<Option<Operator>, String> {
    let Some(fold) = Fold::find(name) else { return Ok(None) };
    let (keep, is_identity_without_axes) =
        (attributes.flag("keepdims", true), attributes.flag("noop_with_empty_axes", false));
    Ok(Some(Box::new(move |inputs| {
        let value = required(inputs, 0)?;
        let axes = axes_of(&axes, inputs)?;
        if axes.is_empty() && is_identity_without_axes {
            return Ok(vec![value.clone()]);
        }
        let rank = value.shape.len();
        let axes: Vec<usize> = if axes.is_empty() {
            (0..rank).collect()
        } else {
            axes.iter().map(|a| axis(*a, rank)).collect::<Result<_, _>>()?
        };
        let kept = reduced(&value.shape, &axes, true);
        let (_, _, targets) = broadcast(&value.shape, &kept)?;
        let mut sums = vec![fold.start; count(&kept)?];
        for (target, x) in targets.iter().zip(value.to_f64()?) {
            sums[*target] = (fold.add)(sums[*target], x);
        }
        let n = value.data.len() as f64 / sums.len().max(1) as f64;
        let data = from_f64(value.data.datatype(), sums.into_iter().map(|sum| (fold.finish)(sum, n)).collect())?;
        Ok(vec![Value { shape: reduced(&value.shape, &axes, keep), data }])
    })))
}
