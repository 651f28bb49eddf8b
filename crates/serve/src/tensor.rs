//! Tensors with the data types of the Open Inference Protocol V2 (section *Tensor Data Types*), and their JSON and binary encodings.
//!
//! Invariant: parsing allocates memory in proportion to the bytes received, not to the shape that the client claims.

mod json;

use half::{bf16, f16};

use crate::Error;

/// The elements of a tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names are the protocol's own
pub enum Data {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Fp16(Vec<f16>),
    Bf16(Vec<bf16>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

/// Runs `$body` with the elements of any data type bound to `$v`.
#[macro_export]
macro_rules! each_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::tensor::Data::Bool($v) => $body,
            $crate::tensor::Data::Uint8($v) => $body,
            $crate::tensor::Data::Uint16($v) => $body,
            $crate::tensor::Data::Uint32($v) => $body,
            $crate::tensor::Data::Uint64($v) => $body,
            $crate::tensor::Data::Int8($v) => $body,
            $crate::tensor::Data::Int16($v) => $body,
            $crate::tensor::Data::Int32($v) => $body,
            $crate::tensor::Data::Int64($v) => $body,
            $crate::tensor::Data::Fp16($v) => $body,
            $crate::tensor::Data::Bf16($v) => $body,
            $crate::tensor::Data::Fp32($v) => $body,
            $crate::tensor::Data::Fp64($v) => $body,
            $crate::tensor::Data::Bytes($v) => $body,
        }
    };
}

/// A data type of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the protocol's own
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

/// Data type names in the protocol.
const NAMES: [(DataType, &str); 14] = [
    (DataType::Bool, "BOOL"),
    (DataType::Uint8, "UINT8"),
    (DataType::Uint16, "UINT16"),
    (DataType::Uint32, "UINT32"),
    (DataType::Uint64, "UINT64"),
    (DataType::Int8, "INT8"),
    (DataType::Int16, "INT16"),
    (DataType::Int32, "INT32"),
    (DataType::Int64, "INT64"),
    (DataType::Fp16, "FP16"),
    (DataType::Bf16, "BF16"),
    (DataType::Fp32, "FP32"),
    (DataType::Fp64, "FP64"),
    (DataType::Bytes, "BYTES"),
];

impl DataType {
    /// The name in the protocol, such as `FP32`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(t, _)| *t == self).map_or("", |(_, n)| n)
    }

    /// The data type with this name. `tensor` is used in the error message.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the tensor and lists the data types.
    pub fn parse(name: &str, tensor: &str) -> Result<Self, Error> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(t, _)| *t).ok_or_else(|| {
            let known = NAMES.iter().map(|(_, n)| *n).collect::<Vec<_>>().join(", ");
            Error::Invalid(format!("input '{tensor}': unknown datatype '{name}'; datatypes are {known}"))
        })
    }

    /// Size of an element in the binary extension, in bytes; `None` for `BYTES`, whose elements vary in size.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }
}

/// A named tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name of the model's input or output.
    pub name: String,
    /// Size of each dimension.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Data,
}

impl Tensor {
    /// Creates a tensor.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the number of elements does not match the shape.
    pub fn new(name: String, shape: Vec<usize>, data: Data) -> Result<Self, Error> {
        let count: usize = shape.iter().product();
        if data.len() != count {
            return Err(Error::Invalid(format!(
                "input '{name}': {} elements, expected {count} for shape {shape:?}",
                data.len()
            )));
        }
        Ok(Self { name, shape, data })
    }
}

/// A model's description of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the input or output.
    pub name: String,
    /// Data type of the elements.
    pub datatype: DataType,
    /// Size of each dimension, -1 for a dynamic dimension; `None` if the model declares no shape, so that the tensor may have any number of
    /// dimensions.
    pub shape: Option<Vec<i64>>,
}

impl TensorSpec {
    /// The shape in the protocol's metadata, which cannot express a dynamic number of dimensions; it is then empty, like that of a scalar.
    pub fn declared_shape(&self) -> Vec<i64> {
        self.shape.clone().unwrap_or_default()
    }
}

impl Data {
    /// The data type of the elements.
    pub fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp16(_) => DataType::Fp16,
            Self::Bf16(_) => DataType::Bf16,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each_data!(self, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parses elements from JSON, as a flat list or nested like the shape. `expected` is the number of elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the tensor and the invalid element.
    pub fn from_json(json: &str, datatype: DataType, tensor: &str, expected: usize) -> Result<Self, Error> {
        // The initial capacity is bounded by the length of the text, because a client may claim any shape.
        let capacity = expected.min(json.len());
        macro_rules! read {
            ($variant:ident) => {{
                let mut items = Vec::with_capacity(capacity);
                json::read_elements(json, &mut items).map(|()| Self::$variant(items))
            }};
        }
        match datatype {
            DataType::Bool => read!(Bool),
            DataType::Uint8 => read!(Uint8),
            DataType::Uint16 => read!(Uint16),
            DataType::Uint32 => read!(Uint32),
            DataType::Uint64 => read!(Uint64),
            DataType::Int8 => read!(Int8),
            DataType::Int16 => read!(Int16),
            DataType::Int32 => read!(Int32),
            DataType::Int64 => read!(Int64),
            DataType::Fp16 => read!(Fp16),
            DataType::Bf16 => read!(Bf16),
            DataType::Fp32 => read!(Fp32),
            DataType::Fp64 => read!(Fp64),
            DataType::Bytes => read!(Bytes),
        }
        .map_err(|e| Error::Invalid(format!("input '{tensor}': data is not {}: {e}", datatype.name())))
    }

    /// Parses elements in the binary extension's encoding: little endian; each `BYTES` element has a 4-byte length prefix.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the tensor and the expected size.
    pub fn from_binary(raw: &[u8], datatype: DataType, tensor: &str, expected: usize) -> Result<Self, Error> {
        let Some(size) = datatype.size() else {
            return bytes_from_binary(raw, tensor);
        };
        if expected.checked_mul(size) != Some(raw.len()) {
            return Err(Error::Invalid(format!(
                "input '{tensor}': {} bytes of binary data, expected {} ({expected} elements of {})",
                raw.len(),
                expected.saturating_mul(size),
                datatype.name()
            )));
        }
        macro_rules! read {
            ($variant:ident, $t:ty) => {
                Self::$variant(raw.as_chunks().0.iter().map(|b| <$t>::from_le_bytes(*b)).collect())
            };
        }
        Ok(match datatype {
            DataType::Bool => Self::Bool(raw.iter().map(|b| *b != 0).collect()),
            DataType::Uint8 => Self::Uint8(raw.to_vec()),
            DataType::Uint16 => read!(Uint16, u16),
            DataType::Uint32 => read!(Uint32, u32),
            DataType::Uint64 => read!(Uint64, u64),
            DataType::Int8 => Self::Int8(raw.iter().map(|b| b.cast_signed()).collect()),
            DataType::Int16 => read!(Int16, i16),
            DataType::Int32 => read!(Int32, i32),
            DataType::Int64 => read!(Int64, i64),
            DataType::Fp16 => read!(Fp16, f16),
            DataType::Bf16 => read!(Bf16, bf16),
            DataType::Fp32 => read!(Fp32, f32),
            DataType::Fp64 | DataType::Bytes => read!(Fp64, f64),
        })
    }

    /// Appends the elements in the binary extension's encoding.
    pub fn write_binary(&self, out: &mut Vec<u8>) {
        macro_rules! write {
            ($v:expr) => {
                for x in $v {
                    out.extend_from_slice(&x.to_le_bytes());
                }
            };
        }
        match self {
            Self::Bool(v) => out.extend(v.iter().map(|b| u8::from(*b))),
            Self::Uint8(v) => out.extend_from_slice(v),
            Self::Uint16(v) => write!(v),
            Self::Uint32(v) => write!(v),
            Self::Uint64(v) => write!(v),
            Self::Int8(v) => out.extend(v.iter().map(|b| b.cast_unsigned())),
            Self::Int16(v) => write!(v),
            Self::Int32(v) => write!(v),
            Self::Int64(v) => write!(v),
            Self::Fp16(v) => write!(v),
            Self::Bf16(v) => write!(v),
            Self::Fp32(v) => write!(v),
            Self::Fp64(v) => write!(v),
            Self::Bytes(v) => {
                for item in v {
                    out.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
                    out.extend_from_slice(item);
                }
            }
        }
    }

    /// Appends the elements as a flat JSON list. NaN and infinities become `null`, because JSON cannot represent them. `tensor` is used in
    /// the error message.
    ///
    /// # Errors
    /// [`Error::Invalid`] for strings that are not UTF-8, which JSON cannot represent either.
    pub fn write_json(&self, tensor: &str, out: &mut Vec<u8>) -> Result<(), Error> {
        json::write(self, out).map_err(|index| {
            Error::Invalid(format!(
                "element {index} of output '{tensor}' is not UTF-8, so JSON cannot represent it; request the output as binary data"
            ))
        })
    }

    /// Appends another tensor's elements. Returns false and changes nothing if the types differ.
    pub fn append(&mut self, other: &Self) -> bool {
        macro_rules! join {
            ($($variant:ident),*) => {
                match (self, other) {
                    $((Self::$variant(a), Self::$variant(b)) => { a.extend_from_slice(b); true })*
                    _ => false,
                }
            };
        }
        join!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes)
    }

    /// A copy of the elements `from..to`.
    pub fn slice(&self, from: usize, to: usize) -> Self {
        macro_rules! cut {
            ($($variant:ident),*) => { match self { $(Self::$variant(v) => Self::$variant(v[from..to].to_vec())),* } };
        }
        cut!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes)
    }

    /// `n` zeros, empty strings or `false`, to warm up a model.
    pub fn zeros(datatype: DataType, n: usize) -> Self {
        match datatype {
            DataType::Bool => Self::Bool(vec![false; n]),
            DataType::Uint8 => Self::Uint8(vec![0; n]),
            DataType::Uint16 => Self::Uint16(vec![0; n]),
            DataType::Uint32 => Self::Uint32(vec![0; n]),
            DataType::Uint64 => Self::Uint64(vec![0; n]),
            DataType::Int8 => Self::Int8(vec![0; n]),
            DataType::Int16 => Self::Int16(vec![0; n]),
            DataType::Int32 => Self::Int32(vec![0; n]),
            DataType::Int64 => Self::Int64(vec![0; n]),
            DataType::Fp16 => Self::Fp16(vec![f16::ZERO; n]),
            DataType::Bf16 => Self::Bf16(vec![bf16::ZERO; n]),
            DataType::Fp32 => Self::Fp32(vec![0.0; n]),
            DataType::Fp64 => Self::Fp64(vec![0.0; n]),
            DataType::Bytes => Self::Bytes(vec![Vec::new(); n]),
        }
    }
}

fn bytes_from_binary(raw: &[u8], tensor: &str) -> Result<Data, Error> {
    let mut items = Vec::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let truncated = || Error::Invalid(format!("input '{tensor}': binary BYTES data is truncated"));
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (item, tail) = tail.split_at_checked(length).ok_or_else(truncated)?;
        items.push(item.to_vec());
        rest = tail;
    }
    Ok(Data::Bytes(items))
}

/// Validates a shape that a client sent. Returns the dimensions and the number of elements, at most 2^40.
///
/// # Errors
/// [`Error::Invalid`] for negative dimensions or too many elements.
pub fn parse_shape(shape: &[i64], tensor: &str) -> Result<(Vec<usize>, usize), Error> {
    let mut sizes = Vec::with_capacity(shape.len());
    let mut count = 1usize;
    for dimension in shape {
        let size = usize::try_from(*dimension)
            .map_err(|_| Error::Invalid(format!("input '{tensor}': shape {shape:?} has a negative dimension")))?;
        count = count
            .checked_mul(size)
            .filter(|n| *n <= 1 << 40)
            .ok_or_else(|| Error::Invalid(format!("input '{tensor}': shape {shape:?} is too large")))?;
        sizes.push(size);
    }
    Ok((sizes, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_parses_flat_or_nested() {
        let flat = Data::from_json("[1,2.5,-3]", DataType::Fp32, "x", 3).unwrap();
        let nested = Data::from_json("[[1],[2.5],[-3]]", DataType::Fp32, "x", 3).unwrap();
        assert_eq!(flat, Data::Fp32(vec![1.0, 2.5, -3.0]));
        assert_eq!(flat, nested);
        assert_eq!(Data::from_json("[true,false]", DataType::Bool, "x", 2).unwrap(), Data::Bool(vec![true, false]));
        assert_eq!(Data::from_json("[\"é\"]", DataType::Bytes, "x", 1).unwrap(), Data::Bytes(vec!["é".into()]));
    }

    #[test]
    fn errors_name_the_tensor() {
        for (json, datatype) in
            [("[300]", DataType::Uint8), ("[-1]", DataType::Uint64), ("[1.5]", DataType::Int32), ("7", DataType::Int8)]
        {
            let e = Data::from_json(json, datatype, "pixels", 1).unwrap_err().to_string();
            assert!(e.starts_with("input 'pixels': data is not"), "{e}");
        }
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(Data::from_json(&deep, DataType::Fp32, "x", 0).is_err());
        assert!(Data::from_binary(&[0; 7], DataType::Fp32, "x", 2).unwrap_err().to_string().contains("expected 8"));
        assert!(parse_shape(&[1 << 40, 1 << 40], "x").is_err());
        assert!(parse_shape(&[2, -1], "x").is_err());
    }

    proptest! {
        #[test]
        fn binary_round_trips(values in proptest::collection::vec(any::<f64>(), 0..50), strings in proptest::collection::vec(any::<Vec<u8>>(), 0..9)) {
            for data in [
                Data::Fp64(values.clone()),
                Data::Int16(values.iter().map(|v| *v as i16).collect()),
                Data::Bf16(values.iter().map(|v| bf16::from_f64(*v)).collect()),
                Data::Bytes(strings.clone()),
            ] {
                let mut raw = Vec::new();
                data.write_binary(&mut raw);
                let parsed = Data::from_binary(&raw, data.datatype(), "x", data.len()).unwrap();
                let mut rewritten = Vec::new();
                parsed.write_binary(&mut rewritten);
                prop_assert_eq!(raw, rewritten);
            }
        }
    }
}
