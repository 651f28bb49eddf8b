//! Property test of ONNX files; see `slipway_mutations`.

use bytes::Bytes;
use prost::Message;
use slipway_mutations::feed_bytes;

use super::onnx;
use crate::runtime::{run_catching_panics, zero_inputs};
use crate::testing::{self, builtin};

/// A forest of one tree, in the operators of `ai.onnx.ml`.
fn tree() -> Vec<u8> {
    let name = |text: &'static str| Bytes::from_static(text.as_bytes());
    let ints = |key, values: &[i64]| onnx::Attribute { name: name(key), ints: values.to_vec(), ..Default::default() };
    let floats =
        |key, values: &[f32]| onnx::Attribute { name: name(key), floats: values.to_vec(), ..Default::default() };
    let modes = ["BRANCH_LEQ", "LEAF", "LEAF"].map(name).to_vec();
    let node = onnx::Node {
        input: vec![name("x")],
        output: vec![name("y")],
        operator: name("TreeEnsembleRegressor"),
        domain: name("ai.onnx.ml"),
        attribute: vec![
            ints("nodes_treeids", &[0, 0, 0]),
            ints("nodes_nodeids", &[0, 1, 2]),
            ints("nodes_featureids", &[1, 0, 0]),
            onnx::Attribute { name: name("nodes_modes"), strings: modes, ..Default::default() },
            floats("nodes_values", &[0.5, 0.0, 0.0]),
            ints("nodes_truenodeids", &[1, 0, 0]),
            ints("nodes_falsenodeids", &[2, 0, 0]),
            ints("target_treeids", &[0, 0]),
            ints("target_nodeids", &[1, 2]),
            ints("target_ids", &[0, 0]),
            floats("target_weights", &[1.0, 2.0]),
        ],
    };
    let value = |label, columns| {
        let dimension = vec![onnx::Dimension { value: None }, onnx::Dimension { value: Some(columns) }];
        let tensor = onnx::TensorType { element: 1, shape: Some(onnx::Shape { dimension }) };
        onnx::ValueInfo { name: name(label), kind: Some(onnx::Type { tensor: Some(tensor) }) }
    };
    let graph =
        onnx::Graph { node: vec![node], input: vec![value("x", 2)], output: vec![value("y", 1)], ..Default::default() };
    let opset_import = vec![onnx::OperatorSet { domain: name("ai.onnx.ml"), version: 3 }];
    onnx::Model { graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec()
}

#[test]
fn models_never_crash_the_server() {
    let folder = testing::folder();
    let path = folder.path().join("model.onnx");
    let valid = [
        tree(),
        testing::onnx::relu(),
        testing::onnx::mean_of_rows(),
        testing::onnx::layers(3, 2),
        testing::onnx::addition(),
    ];
    // The valid models load, so that mutations begin at files which get far.
    for model in &valid {
        std::fs::write(&path, model).unwrap();
        let model = builtin().load(&path).unwrap();
        run_catching_panics(&*model, &zero_inputs(model.inputs()).unwrap()).unwrap();
    }
    feed_bytes(&valid, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(model) = builtin().load(&path)
            && let Some(inputs) = zero_inputs(model.inputs())
        {
            let _ = run_catching_panics(&*model, &inputs); // an error is a valid outcome
        }
    });
}
