//! The built-in runtime, for machines without ONNX Runtime. It executes a model in one of two ways:
//!
//! * [`classical`]: slipway's own operators for models of scikit-learn, XGBoost and LightGBM (domain `ai.onnx.ml`) and for small graphs
//!   of any element type. Results are exact in the declared types.
//! * [`network`]: neural networks, with the crate `rten`.
//!
//! Invariant: the declared inputs and outputs in the file are the model's interface; whatever executes the model, it takes and returns
//! their element types.

mod classical;
mod network;
#[cfg(test)]
mod parsers;

use std::path::Path;

use super::{Model, external_data, onnx};
use crate::Error;
use crate::tensor::{DataType, TensorSpec};

/// The domain of the operators of classical models.
const ML_DOMAIN: &[u8] = b"ai.onnx.ml";
/// Operators whose cost grows with the product of their inputs' sizes. A graph without any of them is computed fast by any runtime.
const EXPENSIVE: [&[u8]; 12] = [
    b"MatMul",
    b"Gemm",
    b"Conv",
    b"ConvTranspose",
    b"ConvInteger",
    b"MatMulInteger",
    b"QLinearConv",
    b"QLinearMatMul",
    b"Einsum",
    b"LSTM",
    b"GRU",
    b"Attention",
];

/// Opens the model at `path`, whose file has this content.
///
/// # Errors
/// [`Error::Model`] with the reason of each way in which the model could not be executed.
pub(super) fn open(path: &Path, mut model: onnx::Model) -> Result<Box<dyn Model>, Error> {
    let mut graph = model.graph.take().ok_or_else(|| Error::Model("the file has no graph".into()))?;
    let interface = Interface::read(&graph)?;
    let needs_classical = graph.node.iter().any(|node| node.domain == ML_DOMAIN)
        || !interface.inputs.iter().chain(&interface.outputs).all(|spec| network::represents(spec.datatype));
    let is_expensive = graph.node.iter().any(|node| EXPENSIVE.contains(&&node.operator[..]));
    let has_unknown_rank = graph.node.iter().any(convolves_unknown_rank);
    let mut classical = |interface| -> Result<Box<dyn Model>, String> {
        external_data::read_constants(&mut graph, path.parent().unwrap_or(Path::new(".")))?;
        Ok(Box::new(classical::ClassicalModel::new(&model, &graph, interface)?))
    };
    let network = |interface| -> Result<Box<dyn Model>, String> {
        if has_unknown_rank {
            return Err("a convolution without the attribute 'kernel_shape' is not supported".into());
        }
        Ok(Box::new(network::NetworkModel::open(path, interface)?))
    };
    let result = if needs_classical {
        classical(interface)
    } else if is_expensive {
        network(interface.clone()).or_else(|first| classical(interface).map_err(|second| both(&first, &second)))
    } else {
        classical(interface.clone()).or_else(|first| network(interface).map_err(|second| both(&first, &second)))
    };
    result.map_err(|reason| {
        Error::Model(format!(
            "the built-in runtime cannot execute the model: {reason}. ONNX Runtime may: install it (pip install onnxruntime) and set \
             SLIPWAY_ONNXRUNTIME to its libonnxruntime.so"
        ))
    })
}

/// Whether rten could not run a convolution that it loads: it derives the number of dimensions from `kernel_shape`, and with it the defaults
/// of the other attributes. Exporters write `kernel_shape` although it has a default.
fn convolves_unknown_rank(node: &onnx::Node) -> bool {
    let has = |name: &str| node.attribute.iter().any(|attribute| attribute.name == name);
    let is_complete = has("strides") && has("dilations") && (has("pads") || has("auto_pad"));
    matches!(&node.operator[..], b"Conv" | b"ConvInteger") && !has("kernel_shape") && !is_complete
}

fn both(first: &str, second: &str) -> String {
    if first == second { first.to_owned() } else { format!("{first}; {second}") }
}

/// The declared inputs and outputs of a graph.
#[derive(Debug, Clone)]
struct Interface {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl Interface {
    fn read(graph: &onnx::Graph) -> Result<Self, Error> {
        // Files of IR version 3 and earlier list their constants among the inputs.
        let is_constant = |info: &onnx::ValueInfo| graph.initializer.iter().any(|tensor| tensor.name == info.name);
        let inputs = graph.input.iter().filter(|info| !is_constant(info)).map(spec).collect::<Result<_, _>>()?;
        let outputs = graph.output.iter().map(spec).collect::<Result<_, _>>()?;
        Ok(Self { inputs, outputs })
    }
}

fn spec(info: &onnx::ValueInfo) -> Result<TensorSpec, Error> {
    let name = String::from_utf8_lossy(&info.name).into_owned();
    let Some(tensor) = info.kind.as_ref().and_then(|kind| kind.tensor.as_ref()) else {
        return Err(Error::Model(format!(
            "'{name}' is not a tensor; only tensors can be served (for scikit-learn models, convert with zipmap=False)"
        )));
    };
    let datatype = datatype(tensor.element).ok_or_else(|| {
        Error::Model(format!("'{name}' has element type {}, which the V2 protocol does not have", tensor.element))
    })?;
    // Exporters write 0 and negative sizes for dynamic dimensions, too.
    let size = |dimension: &onnx::Dimension| dimension.value.filter(|size| *size > 0).unwrap_or(-1);
    let shape = tensor.shape.as_ref().map(|shape| shape.dimension.iter().map(size).collect());
    Ok(TensorSpec { name, datatype, shape })
}

/// The data type with this number in `TensorProto.DataType`.
fn datatype(element: i32) -> Option<DataType> {
    Some(match element {
        1 => DataType::Fp32,
        2 => DataType::Uint8,
        3 => DataType::Int8,
        4 => DataType::Uint16,
        5 => DataType::Int16,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        10 => DataType::Fp16,
        11 => DataType::Fp64,
        12 => DataType::Uint32,
        13 => DataType::Uint64,
        16 => DataType::Bf16,
        _ => return None,
    })
}
