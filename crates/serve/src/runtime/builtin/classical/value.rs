//! Values in a graph: shape and elements, their conversion, and the rules of broadcasting.

use half::{bf16, f16};

use crate::runtime::builtin::datatype;
use crate::runtime::onnx;
use crate::tensor::{Data, DataType};

/// Maximum number of elements of a value whose shape is computed from data, so that a request cannot exhaust the memory.
const MAX_ELEMENTS: usize = 1 << 28;

/// Converts the elements of `Data` to a number type: those of an integer type with `as`, all others with the given arms.
macro_rules! from_each_integer {
    ($data:expr, $to:ty, $($pattern:pat => $result:expr),+ $(,)?) => {
        match $data {
            Data::Uint8(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Uint16(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Uint32(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Uint64(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Int8(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Int16(v) => v.iter().map(|x| *x as $to).collect(),
            Data::Int32(v) => v.iter().map(|x| *x as $to).collect(),
            $($pattern => $result),+
        }
    };
}

/// Converts numbers to the `Data` of a type: to an integer type with `as`, to all others with the given arms.
macro_rules! to_each_integer {
    ($datatype:expr, $values:expr, $($pattern:pat => $result:expr),+ $(,)?) => {
        match $datatype {
            DataType::Uint8 => Data::Uint8($values.into_iter().map(|x| x as u8).collect()),
            DataType::Uint16 => Data::Uint16($values.into_iter().map(|x| x as u16).collect()),
            DataType::Uint32 => Data::Uint32($values.into_iter().map(|x| x as u32).collect()),
            DataType::Uint64 => Data::Uint64($values.into_iter().map(|x| x as u64).collect()),
            DataType::Int8 => Data::Int8($values.into_iter().map(|x| x as i8).collect()),
            DataType::Int16 => Data::Int16($values.into_iter().map(|x| x as i16).collect()),
            DataType::Int32 => Data::Int32($values.into_iter().map(|x| x as i32).collect()),
            $($pattern => $result),+
        }
    };
}

/// A tensor without a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
}

/// Number of elements of a shape.
///
/// # Errors
/// When there are more than [`MAX_ELEMENTS`].
pub(super) fn count(shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    count.filter(|count| *count <= MAX_ELEMENTS).ok_or_else(|| format!("a value of shape {shape:?} is too large"))
}

impl Value {
    pub(super) fn new(shape: Vec<usize>, data: Data) -> Result<Self, String> {
        if count(&shape)? == data.len() {
            Ok(Self { shape, data })
        } else {
            Err(format!("{} elements do not fit shape {shape:?}", data.len()))
        }
    }

    /// Converts a constant of the model's file.
    pub(super) fn from_onnx(tensor: &onnx::Tensor) -> Result<Self, String> {
        let name = String::from_utf8_lossy(&tensor.name);
        if !tensor.external_data.is_empty() {
            return Err(format!("constant '{name}' is in an external file"));
        }
        let datatype = datatype(tensor.element)
            .ok_or_else(|| format!("constant '{name}' has an unsupported element type ({})", tensor.element))?;
        let sizes = tensor.dims.iter().map(|d| usize::try_from(*d));
        let shape =
            sizes.collect::<Result<Vec<_>, _>>().map_err(|_| format!("constant '{name}' has a negative size"))?;
        if let Some(raw) = &tensor.raw {
            let data = Data::from_binary(raw, datatype, &name, count(&shape)?).map_err(|e| e.to_string())?;
            return Self::new(shape, data);
        }
        // `int32_data` also holds the smaller integers, and the bits of 16-bit floats.
        macro_rules! narrow {
            ($variant:ident, $t:ty) => {
                Data::$variant(tensor.int32s.iter().map(|x| *x as $t).collect())
            };
        }
        let data = match datatype {
            DataType::Fp32 => Data::Fp32(tensor.floats.clone()),
            DataType::Fp64 => Data::Fp64(tensor.doubles.clone()),
            DataType::Int64 => Data::Int64(tensor.int64s.clone()),
            DataType::Uint64 => Data::Uint64(tensor.uint64s.clone()),
            DataType::Uint32 => Data::Uint32(tensor.uint64s.iter().map(|x| *x as u32).collect()),
            DataType::Int32 => Data::Int32(tensor.int32s.clone()),
            DataType::Int16 => narrow!(Int16, i16),
            DataType::Int8 => narrow!(Int8, i8),
            DataType::Uint16 => narrow!(Uint16, u16),
            DataType::Uint8 => narrow!(Uint8, u8),
            DataType::Bool => Data::Bool(tensor.int32s.iter().map(|x| *x != 0).collect()),
            DataType::Fp16 => Data::Fp16(tensor.int32s.iter().map(|x| f16::from_bits(*x as u16)).collect()),
            DataType::Bf16 => Data::Bf16(tensor.int32s.iter().map(|x| bf16::from_bits(*x as u16)).collect()),
            DataType::Bytes => Data::Bytes(tensor.strings.iter().map(|s| s.to_vec()).collect()),
        };
        Self::new(shape, data).map_err(|e| format!("constant '{name}': {e}"))
    }

    /// Number of rows and columns; a vector is one row.
    pub(super) fn matrix(&self) -> Result<(usize, usize), String> {
        match self.shape[..] {
            [columns] => Ok((1, columns)),
            [rows, columns] => Ok((rows, columns)),
            _ => Err(format!("expected a matrix, found shape {:?}", self.shape)),
        }
    }

    /// The elements as doubles. Integers beyond 2^53 are rounded.
    pub(super) fn to_f64(&self) -> Result<Vec<f64>, String> {
        Ok(from_each_integer!(&self.data, f64,
            Data::Bool(v) => v.iter().map(|x| f64::from(u8::from(*x))).collect(),
            Data::Int64(v) => v.iter().map(|x| *x as f64).collect(),
            Data::Fp16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::Fp32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Data::Fp64(v) => v.clone(),
            Data::Bytes(_) => return Err("expected numbers, found strings".into()),
        ))
    }

    /// The elements as integers; `None` for floats and strings.
    pub(super) fn to_i64(&self) -> Option<Vec<i64>> {
        Some(from_each_integer!(&self.data, i64,
            Data::Bool(v) => v.iter().map(|x| i64::from(*x)).collect(),
            Data::Int64(v) => v.clone(),
            Data::Fp16(_) | Data::Bf16(_) | Data::Fp32(_) | Data::Fp64(_) | Data::Bytes(_) => return None,
        ))
    }

    /// The elements as a list of integers, such as axes or a shape.
    pub(super) fn integers(&self) -> Result<Vec<i64>, String> {
        self.to_i64().ok_or_else(|| format!("expected integers, found {}", self.data.datatype().name()))
    }
}

/// Elements of a type from doubles. Floats are rounded; integers saturate, as in Rust's `as`.
pub(super) fn from_f64(datatype: DataType, values: Vec<f64>) -> Result<Data, String> {
    Ok(to_each_integer!(datatype, values,
        DataType::Bool => Data::Bool(values.into_iter().map(|x| x != 0.0).collect()),
        DataType::Int64 => Data::Int64(values.into_iter().map(|x| x as i64).collect()),
        DataType::Fp16 => Data::Fp16(values.into_iter().map(f16::from_f64).collect()),
        DataType::Bf16 => Data::Bf16(values.into_iter().map(bf16::from_f64).collect()),
        DataType::Fp32 => Data::Fp32(values.into_iter().map(|x| x as f32).collect()),
        DataType::Fp64 => Data::Fp64(values),
        DataType::Bytes => return Err("numbers cannot become strings here".into()),
    ))
}

/// Elements of an integer type from integers, which wrap around.
pub(super) fn from_i64(datatype: DataType, values: Vec<i64>) -> Result<Data, String> {
    Ok(to_each_integer!(datatype, values,
        DataType::Bool => Data::Bool(values.into_iter().map(|x| x != 0).collect()),
        DataType::Int64 => Data::Int64(values),
        other => from_f64(other, values.into_iter().map(|x| x as f64).collect())?,
    ))
}

/// A shape, and the indices of the elements of two values for each of its elements.
type Broadcast = (Vec<usize>, Vec<usize>, Vec<usize>);

/// The shape of an operation on two values, and which of their elements each element of the result needs (ONNX "Broadcasting.md").
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Broadcast, String> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        shape.push(match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return Err(format!("shapes {a:?} and {b:?} cannot be broadcast")),
        });
    }
    let total = count(&shape)?;
    let indices = |of: &[usize]| {
        let mut strides = vec![0; rank];
        let mut stride = 1;
        for axis in (0..rank).rev() {
            let n = size(of, axis);
            strides[axis] = if n == 1 { 0 } else { stride };
            stride *= n;
        }
        let mut position = vec![0; rank];
        let mut index = 0;
        let mut all = Vec::with_capacity(total);
        for _ in 0..total {
            all.push(index);
            for axis in (0..rank).rev() {
                position[axis] += 1;
                index += strides[axis];
                if position[axis] < shape[axis] {
                    break;
                }
                index -= strides[axis] * shape[axis];
                position[axis] = 0;
            }
        }
        all
    };
    let (left, right) = (indices(a), indices(b));
    Ok((shape, left, right))
}

/// A valid axis; negative ones count from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let signed_rank = i64::try_from(rank).map_err(|e| e.to_string())?;
    let from_start = if axis < 0 { axis + signed_rank } else { axis };
    usize::try_from(from_start)
        .ok()
        .filter(|a| *a < rank)
        .ok_or_else(|| format!("axis {axis} does not exist in rank {rank}"))
}
