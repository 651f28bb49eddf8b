use bytes::Bytes;

use super::*;
use crate::tensor::{Data, DataType};

fn attribute(name: &'static str) -> onnx::Attribute {
    onnx::Attribute { name: Bytes::from_static(name.as_bytes()), ..Default::default() }
}

fn int(name: &'static str, i: i64) -> onnx::Attribute {
    onnx::Attribute { i, ..attribute(name) }
}

fn ints(name: &'static str, ints: &[i64]) -> onnx::Attribute {
    onnx::Attribute { ints: ints.to_vec(), ..attribute(name) }
}

fn floats(name: &'static str, floats: &[f32]) -> onnx::Attribute {
    onnx::Attribute { floats: floats.to_vec(), ..attribute(name) }
}

fn text(name: &'static str, text: &'static str) -> onnx::Attribute {
    onnx::Attribute { s: Bytes::from_static(text.as_bytes()), ..attribute(name) }
}

fn texts(name: &'static str, texts: &[&'static str]) -> onnx::Attribute {
    onnx::Attribute { strings: texts.iter().map(|t| Bytes::from_static(t.as_bytes())).collect(), ..attribute(name) }
}

/// A model of one node, whose inputs are `a`, `b`, ... and whose outputs have these types.
fn model(
    operator: &'static str,
    attributes: Vec<onnx::Attribute>,
    inputs: &[DataType],
    outputs: &[DataType],
) -> Result<ClassicalModel, String> {
    let domain = if [
        "Cast",
        "Add",
        "Concat",
        "Slice",
        "Reshape",
        "MatMul",
        "ConstantOfShape",
        "ReduceLogSumExp",
        "Transpose",
        "Identity",
        "Where",
        "Einsum",
        "Softmax",
    ]
    .contains(&operator)
    {
        ""
    } else {
        "ai.onnx.ml"
    };
    let names = |letters: &'static str, n: usize| -> Vec<Bytes> {
        (0..n).map(|i| Bytes::from_static(&letters.as_bytes()[i..=i])).collect()
    };
    let node = onnx::Node {
        input: names("abcde", inputs.len()),
        output: names("vwxyz", outputs.len()),
        operator: Bytes::from_static(operator.as_bytes()),
        domain: Bytes::from_static(domain.as_bytes()),
        attribute: attributes,
    };
    let spec = |name: &Bytes, datatype: &DataType| TensorSpec {
        name: String::from_utf8(name.to_vec()).unwrap(),
        datatype: *datatype,
        shape: Some(vec![]),
    };
    let interface = Interface {
        inputs: node.input.iter().zip(inputs).map(|(n, d)| spec(n, d)).collect(),
        outputs: node.output.iter().zip(outputs).map(|(n, d)| spec(n, d)).collect(),
    };
    let sets = [("", 18), ("ai.onnx.ml", 3)];
    let opset_import = sets
        .map(|(domain, version)| onnx::OperatorSet { domain: Bytes::from_static(domain.as_bytes()), version })
        .to_vec();
    let graph = onnx::Graph { node: vec![node], ..Default::default() };
    ClassicalModel::new(&onnx::Model { opset_import, ..Default::default() }, &graph, interface)
}

fn tensor(shape: &[usize], data: Data) -> Tensor {
    Tensor::new("t".into(), shape.to_vec(), data).unwrap()
}

/// Runs a model of one node and returns its outputs as shape and elements.
fn run(
    operator: &'static str,
    attributes: Vec<onnx::Attribute>,
    inputs: &[Tensor],
    outputs: &[DataType],
) -> Vec<(Vec<usize>, Data)> {
    let types: Vec<DataType> = inputs.iter().map(|t| t.data.datatype()).collect();
    let results = model(operator, attributes, &types, outputs).unwrap().run(inputs).unwrap();
    results.into_iter().map(|t| (t.shape, t.data)).collect()
}

/// A tree with one comparison, `feature 0 <= 1.5`, whose leaves have these weights.
fn stump(leaves: &str, weights: [f32; 2]) -> Vec<onnx::Attribute> {
    let (trees, nodes, ids, values) = match leaves {
        "class" => ("class_treeids", "class_nodeids", "class_ids", "class_weights"),
        _ => ("target_treeids", "target_nodeids", "target_ids", "target_weights"),
    };
    vec![
        ints("nodes_treeids", &[0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2]),
        ints("nodes_featureids", &[0, 0, 0]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
        floats("nodes_values", &[1.5, 0.0, 0.0]),
        ints("nodes_truenodeids", &[1, 0, 0]),
        ints("nodes_falsenodeids", &[2, 0, 0]),
        ints(trees, &[0, 0]),
        ints(nodes, &[1, 2]),
        ints(ids, &[0, 0]),
        floats(values, &weights),
    ]
}

#[test]
fn trees_compare_features_and_send_missing_values_where_the_model_says() {
    let rows = tensor(&[3, 1], Data::Fp32(vec![1.5, 1.6, f32::NAN]));
    let regressor = || stump("target", [10.0, 20.0]);
    let expected = |missing| vec![(vec![3, 1], Data::Fp32(vec![10.0, 20.0, missing]))];
    let found = run("TreeEnsembleRegressor", regressor(), std::slice::from_ref(&rows), &[DataType::Fp32]);
    assert_eq!(found, expected(20.0));
    let tracked = [regressor(), vec![ints("nodes_missing_value_tracks_true", &[1, 0, 0])]].concat();
    let found = run("TreeEnsembleRegressor", tracked, &[rows], &[DataType::Fp32]);
    assert_eq!(found, expected(10.0));
}

#[test]
fn tree_classifiers_of_two_classes_may_weigh_only_one() {
    let rows = tensor(&[2, 1], Data::Fp32(vec![1.0, 2.0]));
    let with = |weights, transform| {
        let more = vec![ints("classlabels_int64s", &[7, 8]), text("post_transform", transform)];
        run(
            "TreeEnsembleClassifier",
            [stump("class", weights), more].concat(),
            std::slice::from_ref(&rows),
            &[DataType::Int64, DataType::Fp32],
        )
    };
    let probabilities = with([0.25, 0.75], "NONE");
    assert_eq!(
        probabilities,
        [(vec![2], Data::Int64(vec![7, 8])), (vec![2, 2], Data::Fp32(vec![0.75, 0.25, 0.25, 0.75]))]
    );
    let scores = with([-1.0, 2.0], "NONE");
    assert_eq!(scores, [(vec![2], Data::Int64(vec![7, 8])), (vec![2, 2], Data::Fp32(vec![1.0, -1.0, -2.0, 2.0]))]);
    let Data::Fp32(logistic) = &with([-1.0, 2.0], "LOGISTIC")[1].1 else { panic!("expected FP32") };
    assert!((logistic[3] - 0.880_797).abs() < 1e-6 && (logistic[2] + logistic[3] - 1.0).abs() < 1e-6, "{logistic:?}");
}

#[test]
fn invalid_trees_are_rejected() {
    let with = |change: onnx::Attribute| {
        let mut attributes = stump("target", [1.0, 2.0]);
        let same = attributes.iter_mut().find(|a| a.name == change.name);
        *same.unwrap() = change;
        model("TreeEnsembleRegressor", attributes, &[DataType::Fp32], &[DataType::Fp32]).err().unwrap()
    };
    assert!(with(ints("nodes_truenodeids", &[0, 0, 0])).contains("not in order"), "a node is its own child");
    assert!(with(ints("nodes_falsenodeids", &[9, 0, 0])).contains("not in order"), "a child does not exist");
    assert!(with(ints("nodes_nodeids", &[0, 1, 1])).contains("twice"));
    assert!(with(floats("nodes_values", &[1.0])).contains("lengths"));
    assert!(with(ints("target_ids", &[0, 5])).contains("target"));
    assert!(with(texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "BRANCH_MEMBER"])).contains("BRANCH_MEMBER"));
    assert!(with(ints("nodes_featureids", &[-1, 0, 0])).contains("feature"));
}

#[test]
fn rows_with_too_few_features_are_an_error() {
    let attributes = [stump("target", [1.0, 2.0])].concat();
    let tree = model("TreeEnsembleRegressor", attributes, &[DataType::Fp32], &[DataType::Fp32]).unwrap();
    let error = tree.run(&[tensor(&[1, 0], Data::Fp32(vec![]))]).unwrap_err();
    assert!(error.to_string().contains("expected at least 1"), "{error}");
}

#[test]
fn linear_classifiers_choose_the_highest_score() {
    let attributes = vec![
        floats("coefficients", &[1.0, 0.0, 0.0, 1.0, -1.0, -1.0]),
        floats("intercepts", &[0.0, 0.0, 0.5]),
        texts("classlabels_strings", &["a", "b", "c"]),
        text("post_transform", "SOFTMAX"),
        int("multi_class", 1),
    ];
    let rows = tensor(&[3, 2], Data::Fp32(vec![2.0, 1.0, 0.0, 3.0, -1.0, -1.0]));
    let found = run("LinearClassifier", attributes, &[rows], &[DataType::Bytes, DataType::Fp32]);
    assert_eq!(found[0].1, Data::Bytes(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]));
    let Data::Fp32(scores) = &found[1].1 else { panic!("expected FP32") };
    assert!(scores.chunks(3).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6), "{scores:?}");
}

#[test]
fn unknown_categories_get_the_default() {
    let attributes =
        || vec![texts("keys_strings", &["x", "y"]), ints("values_int64s", &[5, 6]), int("default_int64", -7)];
    let input = tensor(&[3], Data::Bytes(vec![b"y".to_vec(), b"?".to_vec(), b"x".to_vec()]));
    let found = run("LabelEncoder", attributes(), &[input], &[DataType::Int64]);
    assert_eq!(found, [(vec![3], Data::Int64(vec![6, -7, 5]))]);
    let categories = tensor(&[2, 1], Data::Int64(vec![2, 9]));
    let found = run("OneHotEncoder", vec![ints("cats_int64s", &[1, 2])], &[categories], &[DataType::Fp32]);
    assert_eq!(found, [(vec![2, 1, 2], Data::Fp32(vec![0.0, 1.0, 0.0, 0.0]))]);
}

#[test]
fn large_integers_stay_exact() {
    let big = 1_i64 << 60;
    let inputs = [tensor(&[2, 1], Data::Int64(vec![big, -big])), tensor(&[1, 2], Data::Int64(vec![1, 3]))];
    let found = run("Add", vec![], &inputs, &[DataType::Int64]);
    assert_eq!(found, [(vec![2, 2], Data::Int64(vec![big + 1, big + 3, 1 - big, 3 - big]))]);
}

#[test]
fn elements_are_moved_as_onnx_defines() {
    let six = || tensor(&[2, 3], Data::Int32((0..6).collect()));
    let list = |values: &[i64]| tensor(&[values.len()], Data::Int64(values.to_vec()));
    let int32 = |values: &[i32]| Data::Int32(values.to_vec());
    let one = |operator, attributes, inputs: &[Tensor]| run(operator, attributes, inputs, &[DataType::Int32]).remove(0);
    assert_eq!(one("Transpose", vec![], &[six()]), (vec![3, 2], int32(&[0, 3, 1, 4, 2, 5])));
    assert_eq!(
        one("Concat", vec![int("axis", -1)], &[six(), six()]),
        (vec![2, 6], int32(&[0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]))
    );
    assert_eq!(
        one("Slice", vec![], &[six(), list(&[-2]), list(&[i64::MAX]), list(&[1])]),
        (vec![2, 2], int32(&[1, 2, 4, 5]))
    );
    assert_eq!(one("Reshape", vec![], &[six(), list(&[0, -1, 1])]), (vec![2, 3, 1], int32(&[0, 1, 2, 3, 4, 5])));
}

#[test]
fn matrices_are_multiplied_in_batches() {
    let a = tensor(&[2, 1, 2], Data::Fp64(vec![1.0, 2.0, 3.0, 4.0]));
    let b = tensor(&[2, 1], Data::Fp64(vec![10.0, 1.0]));
    let found = run("MatMul", vec![], &[a, b], &[DataType::Fp64]);
    assert_eq!(found, [(vec![2, 1, 1], Data::Fp64(vec![12.0, 34.0]))]);
}

#[test]
fn sums_of_exponentials_do_not_overflow() {
    let logarithms = tensor(&[1, 2], Data::Fp64(vec![1000.0, 1000.0]));
    let found = run("ReduceLogSumExp", vec![int("keepdims", 0)], &[logarithms], &[DataType::Fp64]);
    let Data::Fp64(sum) = &found[0].1 else { panic!("expected FP64") };
    assert!((sum[0] - 1000.0 - std::f64::consts::LN_2).abs() < 1e-9, "{sum:?}");
}

#[test]
fn texts_and_numbers_are_cast() {
    let numbers = tensor(&[3], Data::Fp32(vec![1.0, 0.5, -2.25]));
    let found = run("Cast", vec![int("to", 8)], &[numbers], &[DataType::Bytes]);
    assert_eq!(found[0].1, Data::Bytes(vec![b"1".to_vec(), b"0.5".to_vec(), b"-2.25".to_vec()]));
    let words = tensor(&[2], Data::Bytes(vec![b"12".to_vec(), b" -3".to_vec()]));
    let found = run("Cast", vec![int("to", 7)], &[words], &[DataType::Int64]);
    assert_eq!(found[0].1, Data::Int64(vec![12, -3]));
}

#[test]
fn graphs_that_cannot_be_executed_are_rejected_when_they_are_loaded() {
    let load = |operator, attributes| model(operator, attributes, &[DataType::Fp32], &[DataType::Fp32]).err().unwrap();
    assert!(load("SVMClassifier", vec![]).contains("operator SVMClassifier: not supported (domain ai.onnx.ml)"));
    assert!(load("Einsum", vec![]).contains("operator Einsum: not supported"));
    assert!(load("Concat", vec![int("axis", 0), int("novel", 1)]).contains("attribute 'novel' is not supported"));
}

#[test]
fn a_request_cannot_ask_for_more_elements_than_the_limit() {
    let fill = model("ConstantOfShape", vec![], &[DataType::Int64], &[DataType::Fp32]).unwrap();
    for shape in [vec![1 << 20, 1 << 20], vec![i64::MAX, i64::MAX], vec![-1]] {
        let error = fill.run(&[tensor(&[shape.len()], Data::Int64(shape))]).unwrap_err();
        assert!(error.to_string().contains("too large") || error.to_string().contains("not a size"), "{error}");
    }
}
