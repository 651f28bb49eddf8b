//! Neural networks, executed by the crate `rten`.
//!
//! rten computes with `f32`, `i32`, `i8` and `u8`. Integers and booleans of other types are converted to and from `i32`; a value that does
//! not fit is an error, never a wrapped number.

use std::path::Path;

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor as RtenTensor, TensorView};

use super::Interface;
use crate::Error;
use crate::runtime::Model;
use crate::tensor::{Data, DataType, Tensor, TensorSpec};

pub(super) struct NetworkModel {
    interface: Interface,
    input_ids: Vec<NodeId>,
    output_ids: Vec<NodeId>,
    model: rten::Model,
}

/// Whether rten can represent the values of a type that are usual in a network's inputs and outputs.
pub(super) fn represents(datatype: DataType) -> bool {
    matches!(
        datatype,
        DataType::Fp32 | DataType::Int32 | DataType::Int64 | DataType::Int8 | DataType::Uint8 | DataType::Bool
    )
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Model(format!("rten: {error}"))
}

impl NetworkModel {
    pub(super) fn open(path: &Path, interface: Interface) -> Result<Self, String> {
        let model = rten::Model::load_file(path).map_err(|e| e.to_string())?;
        let ids = |specs: &[TensorSpec]| -> Result<Vec<NodeId>, String> {
            specs.iter().map(|spec| model.node_id(&spec.name).map_err(|e| e.to_string())).collect()
        };
        let (input_ids, output_ids) = (ids(&interface.inputs)?, ids(&interface.outputs)?);
        Ok(Self { interface, input_ids, output_ids, model })
    }
}

impl Model for NetworkModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.interface.inputs
    }
    fn outputs(&self) -> &[TensorSpec] {
        &self.interface.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let values = inputs.iter().map(to_rten).collect::<Result<Vec<_>, _>>()?;
        let inputs = self.input_ids.iter().copied().zip(values).collect();
        let outputs = self.model.run(inputs, &self.output_ids, None).map_err(failed)?;
        self.interface.outputs.iter().zip(outputs).map(|(spec, value)| from_rten(spec, value)).collect()
    }
}

fn to_rten(tensor: &Tensor) -> Result<ValueOrView<'_>, Error> {
    let shape = tensor.shape.as_slice();
    let converted = match &tensor.data {
        Data::Fp32(v) => return Ok(TensorView::from_data(shape, v.as_slice()).into()),
        Data::Int32(v) => return Ok(TensorView::from_data(shape, v.as_slice()).into()),
        Data::Int8(v) => return Ok(TensorView::from_data(shape, v.as_slice()).into()),
        Data::Uint8(v) => return Ok(TensorView::from_data(shape, v.as_slice()).into()),
        Data::Bool(v) => v.iter().map(|x| i32::from(*x)).collect(),
        Data::Int64(v) => v.iter().map(|x| i32::try_from(*x)).collect::<Result<Vec<_>, _>>().map_err(|_| {
            Error::Invalid(format!(
                "input '{}': the built-in runtime takes only values from {} to {} in the inputs of networks",
                tensor.name,
                i32::MIN,
                i32::MAX
            ))
        })?,
        other => {
            return Err(failed(format!("{} inputs are not supported ('{}')", other.datatype().name(), tensor.name)));
        }
    };
    Ok(ValueOrView::Value(RtenTensor::from_data(shape, converted).into()))
}

fn from_rten(spec: &TensorSpec, value: Value) -> Result<Tensor, Error> {
    let shape = value.shape().to_vec();
    let data = match (spec.datatype, value) {
        (DataType::Fp32, Value::FloatTensor(t)) => Data::Fp32(t.into_data()),
        (DataType::Int32, Value::Int32Tensor(t)) => Data::Int32(t.into_data()),
        (DataType::Int8, Value::Int8Tensor(t)) => Data::Int8(t.into_data()),
        (DataType::Uint8, Value::UInt8Tensor(t)) => Data::Uint8(t.into_data()),
        (DataType::Int64, Value::Int32Tensor(t)) => Data::Int64(t.iter().map(|x| i64::from(*x)).collect()),
        (DataType::Bool, Value::Int32Tensor(t)) => Data::Bool(t.iter().map(|x| *x != 0).collect()),
        (expected, other) => {
            return Err(failed(format!("output '{}' is {other:?}, declared as {}", spec.name, expected.name())));
        }
    };
    Ok(Tensor { name: spec.name.clone(), shape, data })
}
