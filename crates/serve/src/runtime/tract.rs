//! tract: an ONNX runtime in pure Rust, for machines without ONNX Runtime.

use std::path::Path;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

use super::Model;
use crate::Error;
use crate::tensor::{Data, DataType, Tensor as V2Tensor, TensorSpec};

pub(super) struct TractModel {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    plan: Arc<TypedRunnableModel>,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Model(format!("tract: {error}"))
}

impl TractModel {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let mut model = tract_onnx::onnx().model_for_path(path).map_err(|e| failed(format!("{e:#}")))?;
        // Dynamic dimensions, usually the batch size, become one symbol, because tract needs a value or a symbol for each.
        let batch = model.symbols.sym("N");
        for index in 0..model.inputs.len() {
            let fact = model.input_fact(index).map_err(failed)?.clone();
            let datum = fact.datum_type.concretize().unwrap_or(f32::datum_type());
            let shape: TVec<TDim> = fact
                .shape
                .dims()
                .map(|d| {
                    d.concretize().filter(|d| d.to_i64().is_ok_and(|n| n > 0)).unwrap_or_else(|| batch.clone().into())
                })
                .collect();
            model.set_input_fact(index, InferenceFact::dt_shape(datum, shape)).map_err(failed)?;
        }
        let output_names: Vec<String> = (0..model.outputs.len())
            .map(|i| model.outlet_label(model.outputs[i]).map_or_else(|| format!("output_{i}"), str::to_owned))
            .collect();
        let input_names: Vec<String> = model.inputs.iter().map(|o| model.node(o.node).name.clone()).collect();
        let model = model.into_optimized().map_err(|e| failed(format!("{e:#}")))?;
        let spec = |name: &String, fact: &TypedFact| -> Result<TensorSpec, Error> {
            let shape = fact.shape.iter().map(|d| d.to_i64().unwrap_or(-1)).collect();
            Ok(TensorSpec { name: name.clone(), datatype: datatype(fact.datum_type, name)?, shape })
        };
        let mut inputs = Vec::new();
        for (i, name) in input_names.iter().enumerate() {
            inputs.push(spec(name, model.input_fact(i).map_err(failed)?)?);
        }
        let mut outputs = Vec::new();
        for (i, name) in output_names.iter().enumerate() {
            outputs.push(spec(name, model.output_fact(i).map_err(failed)?)?);
        }
        let plan = model.into_runnable().map_err(failed)?;
        Ok(Self { inputs, outputs, plan })
    }
}

fn datatype(datum: DatumType, name: &str) -> Result<DataType, Error> {
    Ok(match datum {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::F16 => DataType::Fp16,
        DatumType::F32 => DataType::Fp32,
        DatumType::F64 => DataType::Fp64,
        DatumType::String => DataType::Bytes,
        other => {
            return Err(Error::Model(format!(
                "'{name}' has element type {other:?}, which the V2 protocol does not have"
            )));
        }
    })
}

impl Model for TractModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }
    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&self, inputs: &[V2Tensor]) -> Result<Vec<V2Tensor>, Error> {
        let values = inputs.iter().map(|t| to_tract(t).map(Tensor::into_tvalue)).collect::<Result<TVec<_>, _>>()?;
        let outputs = self.plan.run(values).map_err(|e| failed(format!("{e:#}")))?;
        self.outputs.iter().zip(outputs).map(|(spec, value)| from_tract(spec, &value)).collect()
    }
}

fn to_tract(tensor: &V2Tensor) -> Result<Tensor, Error> {
    macro_rules! convert {
        ($v:expr) => {
            Tensor::from_shape(&tensor.shape, $v).map_err(failed)
        };
    }
    match &tensor.data {
        Data::Bool(v) => convert!(v),
        Data::Uint8(v) => convert!(v),
        Data::Uint16(v) => convert!(v),
        Data::Uint32(v) => convert!(v),
        Data::Uint64(v) => convert!(v),
        Data::Int8(v) => convert!(v),
        Data::Int16(v) => convert!(v),
        Data::Int32(v) => convert!(v),
        Data::Int64(v) => convert!(v),
        Data::Fp16(v) => convert!(v),
        Data::Fp32(v) => convert!(v),
        Data::Fp64(v) => convert!(v),
        Data::Bf16(_) | Data::Bytes(_) => Err(Error::Model(format!(
            "tract does not support {} inputs ('{}')",
            tensor.data.datatype().name(),
            tensor.name
        ))),
    }
}

fn from_tract(spec: &TensorSpec, value: &Tensor) -> Result<V2Tensor, Error> {
    let cast = if value.datum_type() == DatumType::TDim { Some(value.cast_to::<i64>().map_err(failed)?) } else { None };
    let value = cast.as_deref().unwrap_or(value);
    let view = value.view();
    macro_rules! copy {
        ($variant:ident, $t:ty) => {
            Data::$variant(view.as_slice::<$t>().map_err(failed)?.to_vec())
        };
    }
    let data = match spec.datatype {
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
        DataType::Fp32 => copy!(Fp32, f32),
        DataType::Fp64 => copy!(Fp64, f64),
        DataType::Bytes => {
            let strings = view.as_slice::<String>().map_err(failed)?;
            Data::Bytes(strings.iter().map(|t| t.clone().into_bytes()).collect())
        }
        DataType::Bf16 => return Err(Error::Model(format!("tract does not support BF16 outputs ('{}')", spec.name))),
    };
    Ok(V2Tensor { name: spec.name.clone(), shape: value.shape().to_vec(), data })
}
