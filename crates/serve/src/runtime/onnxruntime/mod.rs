//! ONNX Runtime, loaded as a shared library at run time, so that the binary also works without it.

mod shared;
mod strings;

use std::path::Path;

use bytes::Bytes;
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, TensorElementType, TensorRef, ValueType};

use self::shared::SharedSession;
use super::Model;
use crate::Error;
use crate::tensor::{Data, DataType, Tensor, TensorSpec};

/// The loaded library; a process loads at most one.
#[derive(Clone)]
pub(super) struct OnnxRuntime {
    environment: Environment,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Model(format!("ONNX Runtime: {error}"))
}

impl OnnxRuntime {
    pub(super) fn load(path: &Path) -> Result<Self, Error> {
        let environment =
            ort::init_from(path).map_err(failed)?.with_name("slipway").with_telemetry(false).build().map_err(failed)?;
        Ok(Self { environment })
    }

    /// Opens a model in one session that all calls share. `without_shape` names the inputs and outputs for which the file declares no shape;
    /// the C API describes them like scalars.
    pub(super) fn open(&self, path: &Path, without_shape: &[Bytes]) -> Result<OrtModel, Error> {
        // Requests run in parallel, one per core, so each call uses a single thread.
        let mut builder = Session::builder(&self.environment)
            .map_err(failed)?
            .with_intra_threads(1)
            .map_err(failed)?
            .with_inter_threads(1)
            .map_err(failed)?;
        let session = builder.commit_from_file(path).map_err(failed)?;
        let spec = |outlet: &Outlet| {
            let spec = spec(outlet)?;
            let is_declared = |shape: &Vec<i64>| !shape.is_empty() || !without_shape.iter().any(|n| *n == spec.name);
            Ok::<_, Error>(TensorSpec { shape: spec.shape.filter(is_declared), ..spec })
        };
        let inputs = session.inputs().iter().map(spec).collect::<Result<Vec<_>, _>>()?;
        let outputs = session.outputs().iter().map(spec).collect::<Result<Vec<_>, _>>()?;
        Ok(OrtModel { inputs, outputs, session: SharedSession::new(session)? })
    }
}

pub(super) struct OrtModel {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    session: SharedSession,
}

fn spec(outlet: &Outlet) -> Result<TensorSpec, Error> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(Error::Model(format!(
            "'{}' is {:?}; only tensors can be served (for scikit-learn models, convert with zipmap=False)",
            outlet.name(),
            outlet.dtype()
        )));
    };
    let datatype = match ty {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        other => {
            return Err(Error::Model(format!(
                "'{}' has element type {other:?}, which the V2 protocol does not have",
                outlet.name()
            )));
        }
    };
    Ok(TensorSpec { name: outlet.name().to_owned(), datatype, shape: Some(shape.iter().copied().collect()) })
}

impl Model for OrtModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }
    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let values = inputs.iter().map(session_input).collect::<Result<Vec<_>, _>>()?;
        let outputs = self.session.run(&values)?;
        let convert = |(spec, value): (&TensorSpec, &DynValue)| {
            let (shape, data) = extract(value, spec.datatype)?;
            Ok(Tensor { name: spec.name.clone(), shape, data })
        };
        self.outputs.iter().zip(&outputs).map(convert).collect()
    }
}

/// A view of the tensor's memory as a session input. Strings are copied.
fn session_input(tensor: &Tensor) -> Result<SessionInputValue<'_>, Error> {
    macro_rules! view {
        ($v:expr) => {
            TensorRef::from_array_view((tensor.shape.as_slice(), $v.as_slice())).map(Into::into).map_err(failed)
        };
    }
    match &tensor.data {
        Data::Bool(v) => view!(v),
        Data::Uint8(v) => view!(v),
        Data::Uint16(v) => view!(v),
        Data::Uint32(v) => view!(v),
        Data::Uint64(v) => view!(v),
        Data::Int8(v) => view!(v),
        Data::Int16(v) => view!(v),
        Data::Int32(v) => view!(v),
        Data::Int64(v) => view!(v),
        Data::Fp16(v) => view!(v),
        Data::Bf16(v) => view!(v),
        Data::Fp32(v) => view!(v),
        Data::Fp64(v) => view!(v),
        Data::Bytes(v) => strings::create(&tensor.shape, v).map(Into::into),
    }
}

/// Copies shape and elements out of an output value.
fn extract(value: &DynValue, datatype: DataType) -> Result<(Vec<usize>, Data), Error> {
    let sizes = |shape: &[i64]| shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect::<Vec<_>>();
    macro_rules! copy {
        ($variant:ident, $t:ty) => {{
            let (shape, data) = value.try_extract_tensor::<$t>().map_err(failed)?;
            Ok((sizes(shape), Data::$variant(data.to_vec())))
        }};
    }
    match datatype {
        DataType::Bool => copy!(Bool, bool),
        DataType::Uint8 => copy!(Uint8, u8),
        DataType::Uint16 => copy!(Uint16, u16),
        DataType::Uint32 => copy!(Uint32, u32),
        DataType::Uint64 => copy!(Uint64, u64),
        DataType::Int8 => copy!(Int8, i8),
        DataType::Int16 => copy!(Int16, i16),
        DataType::Int32 => copy!(Int32, i32),
        DataType::Int64 => copy!(Int64, i64),
        DataType::Fp16 => copy!(Fp16, half::f16),
        DataType::Bf16 => copy!(Bf16, half::bf16),
        DataType::Fp32 => copy!(Fp32, f32),
        DataType::Fp64 => copy!(Fp64, f64),
        DataType::Bytes => {
            let shape = sizes(value.dtype().tensor_shape().ok_or_else(|| failed("an output is not a tensor"))?);
            let strings = strings::read(value, shape.iter().product())?;
            Ok((shape, Data::Bytes(strings)))
        }
    }
}

#[cfg(test)]
mod tests;
