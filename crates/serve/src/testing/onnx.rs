//! Generates small ONNX models for tests. Integers in the code are field numbers of `onnx.proto`.

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n > 127 {
        out.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// `ValueInfoProto` of an FP32 tensor. A dimension is a size, or the name of a dynamic dimension.
fn value(name: &str, dimensions: &[Result<u64, &str>]) -> Vec<u8> {
    let dimension = |d: &Result<u64, &str>| bytes(1, d.map_or_else(|name| bytes(2, name), |size| number(1, size)));
    let shape: Vec<u8> = dimensions.iter().flat_map(dimension).collect();
    let tensor_type = bytes(1, [number(1, 1), bytes(2, shape)].concat());
    [bytes(1, name), bytes(2, tensor_type)].concat()
}

/// `TensorProto` of FP32 numbers.
fn constant(name: &str, dimensions: &[u64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let sizes = dimensions.iter().flat_map(|d| number(1, *d));
    sizes.chain(number(2, 1)).chain(bytes(8, name)).chain(bytes(9, raw)).collect()
}

fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| bytes(1, name));
    let node = inputs.chain(bytes(2, output)).chain(bytes(4, operator));
    node.chain(attributes.iter().flat_map(|a| bytes(5, a))).collect()
}

fn model(nodes: &[Vec<u8>], constants: &[Vec<u8>], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let all = |field: u64, parts: &[Vec<u8>]| parts.iter().flat_map(|p| bytes(field, p)).collect::<Vec<u8>>();
    let graph = [all(1, nodes), bytes(2, "graph"), all(5, constants), all(11, inputs), all(12, outputs)].concat();
    [number(1, 8), bytes(7, graph), bytes(8, [bytes(1, ""), number(2, 13)].concat())].concat()
}

/// y = max(x, 0) for rows of two numbers.
pub(crate) fn relu() -> Vec<u8> {
    let rows = [Err("n"), Ok(2)];
    model(&[node("Relu", &["x"], "y", &[])], &[], &[value("x", &rows)], &[value("y", &rows)])
}

/// `ValueInfoProto` of a tensor of this element type without a declared shape.
fn value_of_any_shape(name: &str, element: u64) -> Vec<u8> {
    [bytes(1, name), bytes(2, bytes(1, number(1, element)))].concat()
}

/// y = max(x, 0); the file does not declare the shapes.
pub(crate) fn relu_of_any_shape() -> Vec<u8> {
    model(&[node("Relu", &["x"], "y", &[])], &[], &[value_of_any_shape("x", 1)], &[value_of_any_shape("y", 1)])
}

/// y = x for strings of any shape.
pub(crate) fn identity_of_strings() -> Vec<u8> {
    model(&[node("Identity", &["x"], "y", &[])], &[], &[value_of_any_shape("x", 8)], &[value_of_any_shape("y", 8)])
}

/// y = x · factor for rows of two numbers.
pub(crate) fn scale(factor: f32) -> Vec<u8> {
    let rows = [Err("n"), Ok(2)];
    let by = constant("factor", &[1], &[factor]);
    model(&[node("Mul", &["x", "factor"], "y", &[])], &[by], &[value("x", &rows)], &[value("y", &rows)])
}

/// The mean of all rows of two numbers, as one row.
pub(crate) fn mean_of_rows() -> Vec<u8> {
    let axes = [bytes(1, "axes"), bytes(8, varint(0)), number(20, 7)].concat();
    let reduce = node("ReduceMean", &["x"], "y", &[axes]);
    model(&[reduce], &[], &[value("x", &[Err("n"), Ok(2)])], &[value("y", &[Ok(1), Ok(2)])])
}

/// y = a + b for two numbers each; no dimension is dynamic.
pub(crate) fn addition() -> Vec<u8> {
    let add = node("Add", &["a", "b"], "y", &[]);
    model(&[add], &[], &[value("a", &[Ok(2)]), value("b", &[Ok(2)])], &[value("y", &[Ok(2)])])
}

/// y = x · W · … · W: `depth` multiplications with the same `size` by `size` matrix.
pub(crate) fn layers(size: u64, depth: usize) -> Vec<u8> {
    let weights = constant("w", &[size, size], &vec![1e-3; (size * size) as usize]);
    let name = |i: usize| match i {
        0 => "x".to_owned(),
        i if i == depth => "y".to_owned(),
        i => format!("h{i}"),
    };
    let nodes: Vec<Vec<u8>> = (0..depth).map(|i| node("MatMul", &[&name(i), "w"], &name(i + 1), &[])).collect();
    let rows = [Err("n"), Ok(size)];
    model(&nodes, &[weights], &[value("x", &rows)], &[value("y", &rows)])
}

/// The places in a model that can hold a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Initializer,
    Attribute,
    /// An attribute within the subgraph of another attribute.
    Subgraph,
    Function,
    SparseInitializer,
}

impl Place {
    pub(crate) const ALL: [Self; 5] =
        [Self::Initializer, Self::Attribute, Self::Subgraph, Self::Function, Self::SparseInitializer];
}

/// y = x · the number in the file at `location`. Only a model with [`Place::Initializer`] can be run.
pub(crate) fn scale_by_file(location: &str, place: Place) -> Vec<u8> {
    let entry = [bytes(1, "location"), bytes(2, location)].concat();
    let tensor = [number(1, 1), number(2, 1), bytes(8, "factor"), bytes(13, entry), number(14, 1)].concat();
    let attribute = [bytes(1, "value"), bytes(5, &tensor), number(20, 4)].concat();
    let constant = |attribute: &[u8]| node("Constant", &[], "factor", &[attribute.to_vec()]);
    let multiply = node("Mul", &["x", "factor"], "y", &[]);
    let (nodes, constants) = match place {
        Place::Initializer => (vec![multiply], vec![tensor.clone()]),
        Place::Attribute => (vec![constant(&attribute), multiply], vec![]),
        Place::Subgraph => {
            let graph = bytes(6, bytes(1, constant(&attribute)));
            (vec![constant(&[bytes(1, "body"), graph, number(20, 5)].concat()), multiply], vec![])
        }
        Place::Function | Place::SparseInitializer => (vec![multiply], vec![]),
    };
    let rows = [Err("n"), Ok(2)];
    let mut model = model(&nodes, &constants, &[value("x", &rows)], &[value("y", &rows)]);
    match place {
        Place::Function => model.extend(bytes(25, bytes(7, constant(&attribute)))),
        // Protobuf merges repeated occurrences of a message field, so this adds one more field to the graph.
        Place::SparseInitializer => model.extend(bytes(7, bytes(15, bytes(1, &tensor)))),
        _ => {}
    }
    model
}
