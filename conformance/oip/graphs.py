"""Small graphs for comparing the runtimes with ONNX Runtime in Python: element types, ranks, dynamic dimensions and outputs that are not
one row for each row of the input."""

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, INT64, STRING, BOOL, DOUBLE, HALF = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16)


def graph(nodes, inputs, outputs, constants=()):
    """A model. Nodes are (operator, inputs, outputs, attributes); inputs and outputs are {name: (type, shape)}."""
    nodes = [helper.make_node(operator, sources, targets, **attributes) for operator, sources, targets, attributes in nodes]
    values = lambda named: [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in named.items()]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in constants]
    made = helper.make_graph(nodes, "graph", values(inputs), values(outputs), constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one(operator, shape, output, kind=FLOAT, output_kind=None, **attributes):
    return graph([(operator, ["x"], ["y"], attributes)], {"x": (kind, shape)}, {"y": (output_kind or kind, output)})


def models():
    """Yields name, ONNX model and inputs by name."""
    random = np.random.default_rng(7)
    real = lambda *shape: random.normal(0, 2, shape).astype(np.float32)
    rows = {"x": real(5, 3)}
    yield "relu-any-rank", one("Relu", None, None), {"x": real(2, 3)}
    yield "relu-any-rank-scalar", one("Relu", None, None), {"x": np.array(-1.5, np.float32)}
    yield "two-free-dimensions", one("Abs", ["N", "M"], ["N", "M"]), {"x": real(2, 5)}
    yield "product-of-free-dimensions", graph(
        [("MatMul", ["a", "b"], ["y"], {})], {"a": (FLOAT, ["N", "K"]), "b": (FLOAT, ["K", "M"])}, {"y": (FLOAT, ["N", "M"])},
    ), {"a": real(2, 3), "b": real(3, 4)}
    yield "shape", one("Shape", ["N", 3], [2], output_kind=INT64), rows
    yield "non-zero", one("NonZero", ["N", 3], [2, None], output_kind=INT64), {"x": np.maximum(rows["x"], 0)}
    yield "transposed", one("Transpose", ["N", 3], [3, "N"], perm=[1, 0]), rows
    yield "mean-of-columns", one("ReduceMean", ["N", 3], [1, 3], axes=[0], keepdims=1), rows
    yield "total", one("ReduceMean", ["N", 3], [], keepdims=0), rows
    yield "centred", graph(
        [("ReduceMean", ["x"], ["m"], {"axes": [0], "keepdims": 1}), ("Sub", ["x", "m"], ["y"], {})],
        {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N", 3])}), rows
    yield "softmax", one("Softmax", ["N", 3], ["N", 3], axis=1), rows
    yield "logarithm-with-nan", one("Log", ["N", 3], ["N", 3]), rows
    yield "fixed-rows", one("Neg", [1, 3], [1, 3]), {"x": real(1, 3)}
    yield "scalar", graph([("Mul", ["x", "x"], ["y"], {})], {"x": (FLOAT, [])}, {"y": (FLOAT, [])}), {"x": np.array(3.5, np.float32)}
    yield "empty-batch", one("Relu", ["N", 3], ["N", 3]), {"x": real(0, 3)}
    yield "strings", one("Identity", ["N"], ["N"], STRING), {"x": np.array(["köln", "", "a\0b"], dtype=object)}
    yield "doubles", one("Sqrt", ["N", 3], ["N", 3], DOUBLE), {"x": np.abs(random.normal(0, 2, (4, 3)))}
    yield "halves", one("Identity", ["N", 3], ["N", 3], HALF), {"x": real(2, 3).astype(np.float16)}
    yield "large-integers", one("Identity", ["N"], ["N"], INT64), {"x": np.array([2**63 - 1, -(2**63), 2**53 + 1])}
    yield "comparison", graph(
        [("Less", ["a", "b"], ["y"], {})], {"a": (FLOAT, ["N"]), "b": (FLOAT, ["N"])}, {"y": (BOOL, ["N"])},
    ), {"a": real(6), "b": real(6)}
    yield "largest", graph(
        [("TopK", ["x", "k"], ["values", "indices"], {})], {"x": (FLOAT, ["N", 3])},
        {"values": (FLOAT, ["N", 2]), "indices": (INT64, ["N", 2])}, [("k", np.array([2], np.int64))]), rows
    yield "cast", one("Cast", ["N", 3], ["N", 3], output_kind=INT64, to=INT64), rows
    yield "embedding", graph(
        [("Gather", ["table", "x"], ["y"], {})], {"x": (INT64, ["N"])}, {"y": (FLOAT, ["N", 4])}, [("table", real(9, 4))],
    ), {"x": np.array([0, 8, 3])}
    yield "layer", graph(
        [("Gemm", ["x", "w", "b"], ["h"], {}), ("Tanh", ["h"], ["y"], {})], {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N", 4])},
        [("w", real(3, 4)), ("b", real(4))]), rows
    for name, attributes in (("image", {"kernel_shape": [3, 3]}), ("image-without-kernel-shape", {})):
        yield name, graph(
            [("Conv", ["x", "w"], ["h"], attributes), ("Relu", ["h"], ["r"], {}), ("GlobalAveragePool", ["r"], ["y"], {})],
            {"x": (FLOAT, ["N", 3, "H", "W"])}, {"y": (FLOAT, ["N", 8, 1, 1])}, [("w", real(8, 3, 3, 3))]), {"x": real(2, 3, 16, 20)}
