//! Executes graphs of the operators that scikit-learn, XGBoost and LightGBM models are converted to (`ai.onnx.ml`), and simple graphs of
//! standard operators. Semantics: "Operators.md" and "Operators-ml.md" of ONNX 1.19.
//!
//! Invariant: a graph with an operator or an attribute that is not supported is rejected when it is loaded, not when it is run.

mod attributes;
mod elementwise;
mod features;
mod labels;
mod linear;
mod scores;
mod standard;
mod trees;
mod value;

use std::collections::HashMap;

use bytes::Bytes;

use super::Interface;
use crate::Error;
use crate::runtime::{Model, onnx};
use crate::tensor::{Tensor, TensorSpec};
use attributes::Attributes;
use value::Value;

/// Computes the outputs of a node. An input is `None` if the node omits an optional input.
type Operator = Box<dyn Fn(&[Option<&Value>]) -> Result<Vec<Value>, String> + Send + Sync>;

/// A node, with the slots of its inputs and outputs in the list of all values.
struct Step {
    operator: Operator,
    name: String,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<usize>>,
}

pub(super) struct ClassicalModel {
    interface: Interface,
    /// The initial values: constants in their slots, `None` everywhere else.
    constants: Vec<Option<Value>>,
    input_slots: Vec<usize>,
    output_slots: Vec<usize>,
    steps: Vec<Step>,
}

/// The slots of values by name.
#[derive(Default)]
struct Slots(HashMap<Bytes, usize>);

impl Slots {
    fn add(&mut self, name: &Bytes) -> usize {
        let next = self.0.len();
        *self.0.entry(name.clone()).or_insert(next)
    }

    fn find(&self, name: &[u8]) -> Result<usize, String> {
        self.0
            .get(name)
            .copied()
            .ok_or_else(|| format!("the value '{}' is used before it is computed", String::from_utf8_lossy(name)))
    }
}

/// A name, unless it is empty: then the node omits an optional input or output.
fn present(name: &Bytes) -> Option<&Bytes> {
    (!name.is_empty()).then_some(name)
}

/// The input at `index`, which the operator requires.
fn required<'a>(inputs: &[Option<&'a Value>], index: usize) -> Result<&'a Value, String> {
    inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
}

impl ClassicalModel {
    /// Prepares the graph of a model, whose constants are in memory, for execution.
    ///
    /// # Errors
    /// The reason why the graph cannot be executed.
    pub(super) fn new(model: &onnx::Model, graph: &onnx::Graph, interface: Interface) -> Result<Self, String> {
        if !model.functions.is_empty() || !graph.sparse_initializer.is_empty() {
            return Err("functions and sparse constants are not supported".into());
        }
        let version = |domain: &[u8]| {
            let is_default = domain.is_empty() || domain == b"ai.onnx";
            let same = |set: &&onnx::OperatorSet| {
                set.domain == domain || is_default && (set.domain.is_empty() || set.domain == b"ai.onnx"[..])
            };
            model.opset_import.iter().find(same).map_or(1, |set| set.version)
        };
        let mut slots = Slots::default();
        let mut constants = Vec::new();
        for tensor in &graph.initializer {
            constants.push((slots.add(&tensor.name), Value::from_onnx(tensor)?));
        }
        let input_slots =
            interface.inputs.iter().map(|spec| slots.add(&Bytes::from(spec.name.clone().into_bytes()))).collect();
        let mut steps = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            let name = String::from_utf8_lossy(&node.operator).into_owned();
            let inputs: Vec<Option<usize>> =
                node.input.iter().map(|n| present(n).map(|n| slots.find(n)).transpose()).collect::<Result<_, _>>()?;
            let attributes = Attributes::new(&node.attribute, version(&node.domain));
            let operator = operator(&node.domain, &name, &attributes).map_err(|e| format!("operator {name}: {e}"))?;
            attributes.all_read().map_err(|e| format!("operator {name}: {e}"))?;
            let outputs = node.output.iter().map(|n| present(n).map(|n| slots.add(n))).collect();
            steps.push(Step { operator, name, inputs, outputs });
        }
        let output_slots =
            interface.outputs.iter().map(|spec| slots.find(spec.name.as_bytes())).collect::<Result<_, _>>()?;
        let mut values = vec![None; slots.0.len()];
        for (slot, value) in constants {
            values[slot] = Some(value);
        }
        Ok(Self { interface, constants: values, input_slots, output_slots, steps })
    }
}

fn operator(domain: &[u8], name: &str, attributes: &Attributes<'_>) -> Result<Operator, String> {
    let found = match domain {
        b"" | b"ai.onnx" => elementwise::operator(name, attributes)?.or(standard::operator(name, attributes)?),
        b"ai.onnx.ml" => match name {
            "LinearClassifier" | "LinearRegressor" => Some(linear::operator(name, attributes)?),
            "TreeEnsembleClassifier" | "TreeEnsembleRegressor" => Some(trees::operator(name, attributes)?),
            "LabelEncoder" | "CategoryMapper" | "OneHotEncoder" => Some(labels::operator(name, attributes)?),
            _ => features::operator(name, attributes)?,
        },
        _ => None,
    };
    found.ok_or_else(|| match domain {
        b"" => "not supported".to_owned(),
        _ => format!("not supported (domain {})", String::from_utf8_lossy(domain)),
    })
}

impl Model for ClassicalModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.interface.inputs
    }
    fn outputs(&self) -> &[TensorSpec] {
        &self.interface.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let mut computed: Vec<Option<Value>> = vec![None; self.constants.len()];
        for (slot, tensor) in self.input_slots.iter().zip(inputs) {
            computed[*slot] = Some(Value { shape: tensor.shape.clone(), data: tensor.data.clone() });
        }
        for step in &self.steps {
            let value =
                |slot: &Option<usize>| slot.and_then(|slot| computed[slot].as_ref().or(self.constants[slot].as_ref()));
            let values: Vec<Option<&Value>> = step.inputs.iter().map(value).collect();
            let results = (step.operator)(&values)
                .map_err(|e| Error::Model(format!("the built-in runtime failed in operator {}: {e}", step.name)))?;
            for (slot, result) in step.outputs.iter().zip(results) {
                if let Some(slot) = slot {
                    computed[*slot] = Some(result);
                }
            }
        }
        let output = |(spec, slot): (&TensorSpec, &usize)| {
            let value = computed[*slot].clone().or_else(|| self.constants[*slot].clone());
            let value = value.filter(|value| value.data.datatype() == spec.datatype).ok_or_else(|| {
                Error::Model(format!("output '{}' does not have its declared type {}", spec.name, spec.datatype.name()))
            })?;
            Ok(Tensor { name: spec.name.clone(), shape: value.shape, data: value.data })
        };
        self.interface.outputs.iter().zip(&self.output_slots).map(output).collect()
    }
}

#[cfg(test)]
mod tests;
