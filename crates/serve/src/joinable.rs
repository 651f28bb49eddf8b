//! Checks whether a model may be batched, that is, whether it computes every row independently. Runs once, when a model with
//! `batching` is loaded.
//!
//! The declared shapes are not enough: a model that subtracts the mean over its rows has the same shapes as one that does not. So the
//! check computes three rows one by one and together, and compares the results.

use crate::Error;
use crate::batch::run_batched;
use crate::runtime::{Model, run_catching_panics};
use crate::tensor::{Data, DataType, Tensor, TensorSpec};

/// Sizes to use for dynamic dimensions after the first, in this order: a vision model, for example, rejects an image of one pixel.
const PROBE_SIZES: [usize; 3] = [1, 64, 224];
/// Maximum relative difference between results that count as equal. Batching changes the order of floating-point additions.
const TOLERANCE: f64 = 1e-3;

/// Checks that the model computes each row of a batch as it computes the row alone.
///
/// # Errors
/// A human-readable reason why requests must not be batched.
pub(crate) fn check(model: &dyn Model) -> Result<(), String> {
    let specs = model.inputs();
    if specs.is_empty() {
        return Err("the model has no inputs".into());
    }
    let is_fixed = |spec: &&TensorSpec| spec.shape.as_ref().and_then(|shape| shape.first()).is_none_or(|n| *n >= 0);
    if let Some(fixed) = specs.iter().find(is_fixed) {
        return Err(format!(
            "the first dimension of input '{}' is not dynamic: {:?}",
            fixed.name,
            fixed.declared_shape()
        ));
    }
    // An output whose declared size does not depend on the input cannot have a row for each row of the input.
    let has_fixed_size = |spec: &&TensorSpec| spec.shape.as_ref().is_some_and(|s| s.first().is_none_or(|n| *n >= 0));
    if let Some(fixed) = model.outputs().iter().find(has_fixed_size) {
        return Err(format!(
            "the first dimension of output '{}' is not dynamic: {:?}",
            fixed.name,
            fixed.declared_shape()
        ));
    }
    let mut rejection = String::new();
    for size in PROBE_SIZES {
        match probe_rows(model, specs, size) {
            Ok(verdict) => return verdict,
            Err(error) => rejection = error.to_string(),
        }
        if specs.iter().all(|spec| row_shape(spec).iter().all(|dimension| *dimension >= 0)) {
            break;
        }
    }
    Err(format!("the model rejects the rows that it is probed with: {rejection}"))
}

/// The verdict for rows whose dynamic dimensions have this size. The outer error means that the model rejects even a single such row.
fn probe_rows(model: &dyn Model, specs: &[TensorSpec], size: usize) -> Result<Result<(), String>, Error> {
    let rows: Vec<Vec<Tensor>> =
        (0..3).map(|row| specs.iter().map(|spec| example_row(spec, size, row)).collect()).collect();
    let alone = rows.iter().map(|row| run_catching_panics(model, row)).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[Tensor]> = rows.iter().map(Vec::as_slice).collect();
    let together = match run_batched(model, &rows) {
        Ok(together) => together,
        Err(error) => return Ok(Err(format!("three rows cannot be computed together: {error}"))),
    };
    let differs = alone.iter().flatten().zip(together.iter().flatten()).find(|(a, b)| !outputs_match(a, b));
    Ok(match differs {
        None => Ok(()),
        Some((output, _)) => Err(format!("a row of output '{}' depends on the other rows of its batch", output.name)),
    })
}

/// The declared shape of a row: all dimensions but the first.
fn row_shape(spec: &TensorSpec) -> &[i64] {
    spec.shape.as_ref().and_then(|shape| shape.get(1..)).unwrap_or_default()
}

/// A row whose values differ from those of other rows, and so do its minimum, maximum and mean: a model that normalizes by those of the
/// whole batch would otherwise compute the same for each row. Integers are 0 or 1, so that they are valid indexes into embedding tables.
fn example_row(spec: &TensorSpec, size: usize, row: usize) -> Tensor {
    let sizes = row_shape(spec).iter().map(|dimension| usize::try_from(*dimension).unwrap_or(size));
    let shape: Vec<usize> = std::iter::once(1).chain(sizes).collect();
    let count: usize = shape.iter().product();
    // Zeros and ones alternate in the first row; the second has only zeros, the third only ones.
    let bit = |i: usize| [u8::from(i.is_multiple_of(2)), 0, 1][row % 3];
    let real = |i: usize| (((5 * i + 7 * row) % 11) as f32 / 11.0 - 0.3) * (1.0 + row as f32 / 2.0);
    macro_rules! fill {
        ($variant:ident, $value:expr) => {
            Data::$variant((0..count).map($value).collect())
        };
    }
    let data = match spec.datatype {
        DataType::Bool => fill!(Bool, |i| bit(i) == 1),
        DataType::Uint8 => fill!(Uint8, bit),
        DataType::Uint16 => fill!(Uint16, |i| bit(i).into()),
        DataType::Uint32 => fill!(Uint32, |i| bit(i).into()),
        DataType::Uint64 => fill!(Uint64, |i| bit(i).into()),
        DataType::Int8 => fill!(Int8, |i| bit(i).cast_signed()),
        DataType::Int16 => fill!(Int16, |i| bit(i).into()),
        DataType::Int32 => fill!(Int32, |i| bit(i).into()),
        DataType::Int64 => fill!(Int64, |i| bit(i).into()),
        DataType::Fp16 => fill!(Fp16, |i| half::f16::from_f32(real(i))),
        DataType::Bf16 => fill!(Bf16, |i| half::bf16::from_f32(real(i))),
        DataType::Fp32 => fill!(Fp32, real),
        DataType::Fp64 => fill!(Fp64, |i| real(i).into()),
        DataType::Bytes => fill!(Bytes, |i| bit(i).to_string().into_bytes()),
    };
    Tensor { name: spec.name.clone(), shape, data }
}

fn outputs_match(a: &Tensor, b: &Tensor) -> bool {
    let close = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1e-3)
    };
    let all = |mut pairs: Box<dyn Iterator<Item = (f64, f64)> + '_>| pairs.all(|(a, b)| close(a, b));
    a.shape == b.shape
        && match (&a.data, &b.data) {
            (Data::Fp32(a), Data::Fp32(b)) => all(Box::new(a.iter().zip(b).map(|(a, b)| ((*a).into(), (*b).into())))),
            (Data::Fp64(a), Data::Fp64(b)) => all(Box::new(a.iter().zip(b).map(|(a, b)| (*a, *b)))),
            // Half precision is compared exactly. A difference in the last place disables batching, which is slower but still correct.
            (a, b) => a == b,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeModel, floats, onnx};

    type Output = (Vec<usize>, Vec<f32>);

    /// The verdict for a model with one input. `run` maps the input's values and row count to the output's shape and values.
    fn verdict(shape: &[i64], run: fn(&[f32], usize) -> Output) -> Result<(), String> {
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: Some(shape.to_vec()) };
        let model = FakeModel::with_specs(vec![spec], move |inputs| {
            let (shape, values) = run(floats(&inputs[0]), inputs[0].shape[0]);
            Ok(vec![Tensor { name: "y".into(), shape, data: Data::Fp32(values) }])
        });
        check(model.as_ref())
    }

    fn double(v: &[f32], rows: usize) -> Output {
        (vec![rows, 2], v.iter().map(|x| x * 2.0).collect())
    }

    #[test]
    fn only_models_with_independent_rows_may_be_batched() {
        assert_eq!(verdict(&[-1, 2], double), Ok(()));
        // Like the ONNX operator `Shape`: always two numbers. With two rows its output would look like a batch.
        let shape_of = verdict(&[-1, 2], |_, rows| (vec![2], vec![rows as f32, 2.0]));
        assert!(shape_of.unwrap_err().contains("output 'y' has shape [2]"));
        let mean = verdict(&[-1, 2], |v, _| (vec![1], vec![v.iter().sum::<f32>()]));
        assert!(mean.unwrap_err().contains("output 'y' has shape [1]"));
        let centred = verdict(&[-1, 2], |v, rows| {
            let mean = v.iter().sum::<f32>() / v.len() as f32;
            (vec![rows, 2], v.iter().map(|x| x - mean).collect())
        });
        assert!(centred.unwrap_err().contains("depends on the other rows"));
        assert!(verdict(&[1, 2], double).unwrap_err().contains("is not dynamic"));
        assert!(verdict(&[], double).unwrap_err().contains("is not dynamic"));
    }

    #[test]
    fn statistics_of_the_whole_batch_are_noticed_in_rows_of_any_length() {
        for width in [1_usize, 2, 11, 64] {
            let shape = vec![-1, i64::try_from(width).unwrap()];
            let verdict = |statistic: fn(&[f32]) -> f32| {
                let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: Some(shape.clone()) };
                let model = FakeModel::with_specs(vec![spec], move |inputs| {
                    let values = floats(&inputs[0]);
                    let all = statistic(values);
                    let data = Data::Fp32(values.iter().map(|x| x - all).collect());
                    Ok(vec![Tensor { name: "y".into(), shape: inputs[0].shape.clone(), data }])
                });
                check(model.as_ref())
            };
            let maximum = |v: &[f32]| v.iter().copied().fold(f32::MIN, f32::max);
            let minimum = |v: &[f32]| v.iter().copied().fold(f32::MAX, f32::min);
            for statistic in [maximum, minimum, |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32] {
                assert!(verdict(statistic).unwrap_err().contains("depends on the other rows"), "{width}");
            }
            assert_eq!(verdict(|_| 1.0), Ok(()));
        }
    }

    #[test]
    fn dynamic_dimensions_get_a_size_that_the_model_accepts() {
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: Some(vec![-1, -1]) };
        let picky = FakeModel::with_specs(vec![spec], |inputs| {
            if inputs[0].shape[1] < 7 {
                return Err(Error::Model("too small".into()));
            }
            Ok(vec![Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        assert_eq!(check(picky.as_ref()), Ok(()));
    }

    #[test]
    fn onnx_models_are_checked() {
        let runtime = crate::testing::builtin();
        let folder = crate::testing::folder();
        let load = |name: &str, model: Vec<u8>| {
            let path = folder.path().join(name);
            std::fs::write(&path, model).unwrap();
            runtime.load(&path).unwrap()
        };
        assert_eq!(check(load("relu.onnx", onnx::relu()).as_ref()), Ok(()));
        let mean = check(load("mean.onnx", onnx::mean_of_rows()).as_ref());
        assert!(mean.clone().unwrap_err().contains("output 'y' is not dynamic: [1, 2]"), "{mean:?}");
        assert!(check(load("fixed.onnx", onnx::addition()).as_ref()).unwrap_err().contains("is not dynamic"));
    }
}
