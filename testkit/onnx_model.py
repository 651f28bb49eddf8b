"""A minimal model for serving, encoded without an ONNX library."""


def field(number, value):
    """Encodes a protocol buffer field: an integer below 128, or fewer than 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    value = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(value)]) + value


def tensor(name):
    shape = field(1, field(2, "n")) + field(1, field(1, 2))
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


# y = relu(x) for rows of two numbers: a ModelProto of onnx.proto with one node.
NODE = field(1, "x") + field(2, "y") + field(4, "Relu")
GRAPH = field(1, NODE) + field(2, "g") + field(11, tensor("x")) + field(12, tensor("y"))
MODEL = field(1, 8) + field(8, field(2, 13)) + field(7, GRAPH)
