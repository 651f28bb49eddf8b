"""Real networks for tests and benchmarks: those of well-known Python packages (file types, text recognition, speech, object detection),
which are downloaded, and the architectures that the package `onnx` brings (ResNet, DenseNet, ...)."""

import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import onnx

PACKAGES = ["magika==1.0.3", "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3", "nudenet==3.4.2"]
# The files to run, with the shapes of their inputs where the file leaves them open.
VOICE = {"input": [1, 576], "state": [2, 1, 128], "sr": []}
NETWORKS = {
    "magika/models/standard_v3_3/model.onnx": {"bytes": [1, 2048]},
    "nudenet/320n.onnx": {"images": [1, 3, 320, 320]},
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": {"x": [1, 3, 320, 320]},
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": {"x": [1, 3, 48, 320]},
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": {"x": [1, 3, 48, 192]},
    "silero_vad/data/silero_vad.onnx": VOICE,
    "silero_vad/data/silero_vad_16k_op15.onnx": VOICE,
    "silero_vad/data/silero_vad_op18_ifless.onnx": VOICE,
}
TYPES = {
    "tensor(float)": (np.float32, "FP32"), "tensor(double)": (np.float64, "FP64"), "tensor(float16)": (np.float16, "FP16"),
    "tensor(int64)": (np.int64, "INT64"), "tensor(int32)": (np.int32, "INT32"), "tensor(uint8)": (np.uint8, "UINT8"),
    "tensor(bool)": (np.bool_, "BOOL"), "tensor(string)": (np.object_, "BYTES"),
}


def networks(folder):
    """Yields name, path and shapes of inputs of every network."""
    folder = pathlib.Path(folder)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder), *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name in NETWORKS])
    for name, shapes in NETWORKS.items():
        path = folder / name
        yield path.stem if path.stem != "model" else "magika", path, shapes
    for path in sorted(pathlib.Path(onnx.__file__).parent.glob("backend/test/data/light/*.onnx")):
        yield path.stem, without_softmax(path, folder), {}


def without_softmax(path, folder):
    """The weights of these networks are constants, which makes all scores equal and huge. A softmax turns their rounding errors into
    entirely different probabilities, so the scores are compared instead."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.node.remove(last)
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None))
    onnx.save(model, folder / path.name)
    return folder / path.name


def random_inputs(session, shapes):
    """Inputs by name for a session of ONNX Runtime."""
    random = np.random.default_rng(0)
    inputs = {}
    for declared in session.get_inputs():
        shape = shapes.get(declared.name, [d if isinstance(d, int) and d > 0 else 1 for d in declared.shape])
        kind, _ = TYPES[declared.type]
        if declared.name == "sr":
            inputs[declared.name] = np.full(shape, 16_000, kind)  # the sample rate of speech
        elif np.issubdtype(kind, np.floating):
            inputs[declared.name] = random.random(shape).astype(kind)
        else:
            inputs[declared.name] = random.integers(0, 200, shape).astype(kind)
    return inputs


def difference(found, expected):
    """The largest difference, relative to the value."""
    found, expected = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    return float(np.max(np.abs(found - expected) / (1e-3 + np.abs(expected)))) if expected.size else 0.0
