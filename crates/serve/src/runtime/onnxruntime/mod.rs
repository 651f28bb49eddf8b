//! ONNX Runtime, loaded as a shared library at run time, so that the binary also works without it.

mod shared;
mod strings;
mod value;

use std::path::Path;

use bytes::Bytes;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use self::shared::SharedSession;
use self::value::Value;
use super::Model;
use crate::Error;
use crate::tensor::{DataType, Tensor, TensorSpec};

/// The loaded library; a process loads at most one.
#[derive(Clone)]
pub(super) struct OnnxRuntime {
    environment: Environment,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Model(format!("ONNX Runtime: {error}"))
}

/// The error of a call of the C API, if it failed.
#[allow(unsafe_code)] // FFI
fn check(status: ort::sys::OrtStatusPtr) -> Result<(), Error> {
    // SAFETY: the status is what a function of the C API returned, and it is read once.
    unsafe { ort::Error::result_from_status(status) }.map_err(failed)
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
        let outputs = self.session.run(inputs)?;
        let convert = |(spec, value): (&TensorSpec, &Value<'_>)| {
            let (shape, data) = value.extract(spec.datatype)?;
            Ok(Tensor { name: spec.name.clone(), shape, data })
        };
        self.outputs.iter().zip(&outputs).map(convert).collect()
    }
}

#[cfg(test)]
mod tests;
