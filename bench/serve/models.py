"""Runs real networks on the built-in runtime and with ONNX Runtime: whether they load, the largest difference, and the latency.

    python models.py --slipway target/release/slipway [--runtime builtin]

The networks are those of `conformance/oip/networks.py`. Both runtimes get one core and the same random inputs.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "conformance"), str(ROOT / "conformance/oip")]

import onnxruntime
import tritonclient.http as rest
from lib import Slipway
from networks import TYPES, difference, networks, random_inputs
from tritonclient.http.auth import BasicAuth

# Largest difference, relative to the value, that counts as the same result: both add up thousands of products in another order.
TOLERANCE = 1e-2


def timed(function, repeat=7):
    """The last result and the median seconds of a call."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


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
        for number, (label, path, shapes) in enumerate(networks(folder)):
            total += 1
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            inputs = random_inputs(session, shapes)
            expected, their_seconds = timed(lambda: session.run(None, inputs))
            manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": f"n{number}"},
                        "spec": {"models": [{"name": "m", "uri": str(path)}], "limits": {"timeout_ms": 60_000}}}
            status, response = server.call("POST", "/api/v1/deployments", manifest)
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
