"""Benchmarks MLServer and slipway with the same model, and a bare axum echo as the upper bound; `wrk` uses 1, 8 and 64 connections.

    python run.py --slipway target/release/slipway --mlserver ENVIRONMENT

The model is a small perceptron on 8x8 images (ONNX). MLServer runs it with ONNX Runtime in a custom Python runtime, in
one process without parallel workers, which is its fastest configuration; slipway uses the same library.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings

warnings.filterwarnings("ignore")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
from lib import Slipway, cpu_seconds, free_port, memory_mb, wrk

HERE = pathlib.Path(__file__).resolve().parent
RUNTIME = '''
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = np.asarray(NumpyCodec.decode_input(payload.inputs[0]), dtype=np.float32)
        label, probabilities = self.session.run(None, {"X": x})
        return InferenceResponse(model_name=self.name, outputs=[
            NumpyCodec.encode_output("label", label), NumpyCodec.encode_output("probabilities", probabilities)])
'''


def train_model(path):
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from skl2onnx import to_onnx

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    fitted = MLPClassifier((64, 32), max_iter=60, random_state=1).fit(x[:1200], y[:1200])
    path.write_bytes(to_onnx(fitted, x[:1], options={"zipmap": False}, target_opset=17).SerializeToString())
    return {"inputs": [{"name": "X", "shape": [1, 64], "datatype": "FP32", "data": [float(v) for v in x[1500]]}]}, fitted.predict(x[1500:1501])[0]


def measure(name, url, pid, body, seconds, results, label=None, headers=None):
    if label is not None:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})
        response = json.loads(urllib.request.urlopen(request, timeout=30).read())
        found = [o for o in response["outputs"] if o["name"] == "label"][0]["data"][0]
        assert found == label, (name, found, label)
    wrk(url, "POST", body, 8, 2, headers)
    for connections in (1, 8, 64):
        before = cpu_seconds(pid)
        r = wrk(url, "POST", body, connections, seconds, headers)
        r["cpu_us"] = (cpu_seconds(pid) - before) / r["count"] * 1e6
        r["memory"] = memory_mb(pid)
        results[name, connections] = r
        print(f"  {name:9} {connections:2}: {r['rate']:,.0f}/s, p50 {r['p50']:.0f} µs, p99 {r['p99']:.0f} µs, {r['cpu_us']:.0f} µs CPU, {r['memory']:.0f} MB", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--mlserver", help="virtual environment with mlserver and onnxruntime; without it, MLServer is not measured")
    parser.add_argument("--seconds", type=int, default=6)
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is missing: apt install wrk")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        body, label = train_model(folder / "model.onnx")

        import onnxruntime

        library = next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
        for runtime in ("ort", "builtin"):
            options = ["--runtime", runtime] + (["--onnxruntime", str(library)] if runtime == "ort" else [])
            with Slipway(args.slipway, options=options) as server:
                manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": "mlp"},
                            "spec": {"models": [{"name": "m", "uri": str(folder / "model.onnx")}]}}
                assert server.call("POST", "/api/v1/deployments", manifest)[0] == 200
                name = "slipway" if runtime == "ort" else "builtin"
                measure(name, f"{server.inference}/v2/models/mlp/infer", server.process.pid, body, args.seconds, results, label, server.authorization)

        target = pathlib.Path(args.slipway).resolve().parents[1] / "bench-echo"
        subprocess.run(["cargo", "build", "--release", "--quiet", "--manifest-path", str(HERE / "echo/Cargo.toml"), "--target-dir", str(target)], check=True)
        echo = subprocess.Popen([str(target / "release/slipway-bench-echo")], stdout=subprocess.PIPE, text=True)
        try:
            measure("echo", f"http://{echo.stdout.readline().strip()}/", echo.pid, body, args.seconds, results)
        finally:
            echo.kill()
            echo.wait()

        if args.mlserver:
            port = free_port()
            served = folder / "mlserver"
            served.mkdir()
            (served / "onnx_runtime.py").write_text(RUNTIME)
            (served / "settings.json").write_text(json.dumps({"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0, "debug": False}))
            (served / "model-settings.json").write_text(json.dumps({"name": "mlp", "implementation": "onnx_runtime.Onnx", "parameters": {"uri": str(folder / "model.onnx")}}))
            log = open(folder / "mlserver.log", "w")
            process = subprocess.Popen([f"{args.mlserver}/bin/mlserver", "start", str(served)], stdout=log, stderr=log, cwd=served, env={**os.environ, "PYTHONPATH": str(served)}, start_new_session=True)
            try:
                url = f"http://127.0.0.1:{port}/v2"
                for _ in range(600):
                    try:
                        urllib.request.urlopen(f"{url}/models/mlp/ready", timeout=1).close()
                        break
                    except OSError:
                        if process.poll() is not None:
                            raise SystemExit((folder / "mlserver.log").read_text())
                        time.sleep(0.1)
                measure("mlserver", f"{url}/models/mlp/infer", process.pid, body, args.seconds, results, label)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    names = [n for n in ("mlserver", "slipway", "builtin", "echo") if (n, 1) in results]
    print(f"\n{'':28}" + "".join(f"{n:>12}" for n in names) + f"{'ratio':>9}")
    for connections in (1, 8, 64):
        for key, unit in [("rate", "requests/s"), ("p50", "p50, µs"), ("p99", "p99, µs"), ("cpu_us", "CPU µs per request"), ("memory", "memory, MB")]:
            values = [results[n, connections][key] for n in names]
            ratio = "-"
            if "mlserver" in names:
                peer, ours = results["mlserver", connections][key], results["slipway", connections][key]
                ratio = f"{(ours / peer if key == 'rate' else peer / max(ours, 1e-9)):.0f}x"
            print(f"{f'{connections:2} connections: {unit}':28}" + "".join(f"{v:>12,.0f}" for v in values) + f"{ratio:>9}")


if __name__ == "__main__":
    main()
