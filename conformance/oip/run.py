"""Tests the Open Inference Protocol V2 with the official tritonclient, over REST and gRPC, on both runtimes.

    python run.py --slipway target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]

The models are created with skl2onnx and onnx; onnxruntime in Python gives the expected results.
"""

import contextlib
import json
import pathlib
import queue
import signal
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import warnings

warnings.filterwarnings("ignore")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import grpc as plain_grpc
import networks
import numpy as np
import onnx
import onnxruntime
import tritonclient.grpc as grpc
import tritonclient.http as rest
from lib import Slipway
from networks import TYPES as TYPES_OF_ONNX
from onnx import TensorProto, helper
from suite import Suite, eventually
from tritonclient.grpc import service_pb2
from tritonclient.grpc.auth import BasicAuth as GrpcAuth
from tritonclient.http.auth import BasicAuth as RestAuth
from tritonclient.utils import InferenceServerException

SUITE = Suite("oip", limit=180, variants=["ort", "builtin"])
test = SUITE.test

TYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_), "UINT8": (TensorProto.UINT8, np.uint8), "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32), "UINT64": (TensorProto.UINT64, np.uint64), "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16), "INT32": (TensorProto.INT32, np.int32), "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16), "FP32": (TensorProto.FLOAT, np.float32), "FP64": (TensorProto.DOUBLE, np.float64),
    "BYTES": (TensorProto.STRING, np.object_),
}


def identity(kind, path):
    x, y = (helper.make_tensor_value_info(n, kind, ["N", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def sklearn_models(folder):
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC
    from skl2onnx import to_onnx

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    for name, model in {
        "logreg": LogisticRegression(max_iter=200), "svm": LinearSVC(), "forest": RandomForestClassifier(60, random_state=1),
        "mlp": MLPClassifier((32,), max_iter=60, random_state=1),
    }.items():
        model.fit(x[:1200], y[:1200])
        options = {"zipmap": False} if hasattr(model, "predict_proba") else None
        (folder / f"{name}.onnx").write_bytes(to_onnx(model, x[:1], options=options, target_opset=17).SerializeToString())
    return x[1200:]


def manifest(name, path, **spec):
    spec = {"models": [{"name": "m", "uri": str(path)}], **spec}
    return {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


class World:
    def __init__(self, server, folder, runtime, images):
        self.server, self.folder, self.runtime, self.images = server, folder, runtime, images
        self.connect()

    def connect(self):
        self.clients, self.grpc = threading.local(), grpc.InferenceServerClient(self.server.grpc)
        self.grpc.register_plugin(GrpcAuth("slipway", self.server.token))

    @property
    def rest(self):
        """This thread's client: its connections belong to the event loop of the thread in which it was created."""
        if not hasattr(self.clients, "rest"):
            self.clients.rest = rest.InferenceServerClient(self.server.inference.removeprefix("http://"), concurrency=8)
            self.clients.rest.register_plugin(RestAuth("slipway", self.server.token))
        return self.clients.rest

    def deploy(self, name, path, **spec):
        status, response = self.server.call("POST", "/api/v1/deployments", manifest(name, path, **spec))
        assert status == 200, response
        return name

    def raw(self, path, body=None, headers=None, method="POST"):
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        request = urllib.request.Request(self.server.inference + path, data, {**self.server.authorization, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as e:
            return e.code, dict(e.headers), e.read()


def assert_rejected(function, *words):
    try:
        function()
    except InferenceServerException as e:
        text = f"{e.status()} {e.message()}"
        assert all(w in text for w in words), f"{text!r} lacks one of {words}"
        return
    raise AssertionError(f"not rejected; expected {words}")


@test
def server_and_model_metadata(w):
    name = w.deploy("meta", w.folder / "mlp.onnx")
    for client in (w.rest, w.grpc):
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
        assert not client.is_model_ready("nothing")
    meta = w.rest.get_model_metadata(name)
    assert meta["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 64]}], meta
    assert {o["name"] for o in meta["outputs"]} == {"label", "probabilities"}, meta
    other = w.grpc.get_model_metadata(name, as_json=True)
    assert other["inputs"][0]["name"] == "X" and other["platform"] == meta["platform"]
    assert w.rest.get_server_metadata()["name"] == "slipway" == w.grpc.get_server_metadata().name


@test
def every_data_type_in_json_binary_and_grpc(w):
    for kind, (number, dtype) in TYPES.items():
        path = w.folder / f"identity-{kind}.onnx"
        identity(number, path)
        name = w.deploy(f"identity-{kind}", path)
        values = np.array([[b"a", "ü€".encode(), b""], [b"x" * 300, b"\n", b"0"]], dtype=object) if kind == "BYTES" else \
            np.array([[0, 1, 1], [1, 0, 1]], dtype=dtype) if kind == "BOOL" else np.array([[0, 1, 2], [100, 5, 7]], dtype=dtype)
        for library, client in ((rest, w.rest), (grpc, w.grpc)):
            for binary in ([True, False] if library is rest and kind != "FP16" else [True]):
                tensor = library.InferInput("x", list(values.shape), kind)
                output = None
                if library is rest:
                    tensor.set_data_from_numpy(values, binary_data=binary)
                    output = [rest.InferRequestedOutput("y", binary_data=binary)]
                else:
                    tensor.set_data_from_numpy(values)
                found = client.infer(name, [tensor], outputs=output).as_numpy("y")
                if kind == "BYTES" and found.dtype == object and isinstance(found.flat[0], str):
                    found = np.vectorize(lambda s: s.encode(), otypes=[object])(found)
                assert (found == values).all() and found.shape == values.shape, (kind, library.__name__, binary, found)
        w.server.call("DELETE", f"/api/v1/deployments/identity-{kind}")


@test(limit=600)
def same_results_as_onnxruntime_in_python(w):
    for model in ("logreg", "svm", "forest", "mlp"):
        name = w.deploy(f"same-{model}", w.folder / f"{model}.onnx")
        session = onnxruntime.InferenceSession(str(w.folder / f"{model}.onnx"))
        expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"X": w.images})))
        for library, client in ((rest, w.rest), (grpc, w.grpc)):
            for rows in (1, 7, len(w.images)):
                tensor = library.InferInput("X", [rows, 64], "FP32")
                tensor.set_data_from_numpy(w.images[:rows])
                result = client.infer(name, [tensor])
                for output, values in expected.items():
                    found = result.as_numpy(output)
                    assert np.allclose(found.reshape(values[:rows].shape), values[:rows], atol=1e-4), (model, output, rows)


def tensors_of(session, inputs, library=rest):
    for declared in session.get_inputs():
        values = inputs[declared.name]
        if values.dtype == object:
            values = np.vectorize(lambda text: text.encode(), otypes=[object])(values) if values.size else values
        kind = TYPES_OF_ONNX[declared.type][1]
        yield library.InferInput(declared.name, list(values.shape), kind).set_data_from_numpy(values)


def assert_same_as_onnxruntime(w, name, path, inputs, rtol=1e-3, atol=1e-4):
    """Deploys a model and compares its outputs with those of ONNX Runtime in Python: texts and integers are equal, numbers close."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))
    w.deploy(name, path, limits={"timeout_ms": 60_000})
    try:
        result = w.rest.infer(name, list(tensors_of(session, inputs)))
    finally:
        w.server.call("DELETE", f"/api/v1/deployments/{name}")
    for output, values in expected.items():
        values = np.asarray(values)
        found = result.as_numpy(output)
        assert found.shape == values.shape, (name, output, found.shape, values.shape)
        if values.dtype.kind in "US" or values.dtype == object:
            assert [text.decode() for text in found.reshape(-1)] == [str(text) for text in values.reshape(-1)], (name, output)
        elif values.dtype.kind in "iub":
            assert (found == values).all(), (name, output)
        else:
            assert np.allclose(found, values, rtol=rtol, atol=atol, equal_nan=True), (name, output, np.abs(found - values).max())


# Models that a runtime cannot load, with words of the reason that it gives. ONNX Runtime loads all of them.
REFUSED = {
    "builtin": {
        "light-bvlc-alexnet": "LRN operator not supported", "light-inception-v1": "LRN operator not supported",
        "light-zfnet512": "LRN operator not supported", "image-without-kernel-shape": "without the attribute 'kernel_shape'",
    },
}


def compare_all(w, models, **tolerance):
    """Compares models, given as name, ONNX model or path, and inputs. Reports all differences at once."""
    faults, count, refused = [], 0, REFUSED.get(w.runtime, {})
    for name, model, inputs in models:
        count += 1
        path = model
        if not isinstance(model, pathlib.Path):
            path = w.folder / f"{name}.onnx"
            path.write_bytes(model.SerializeToString())
        try:
            assert_same_as_onnxruntime(w, name, path, inputs, **tolerance)
            if name in refused:
                faults.append(f"{name} is not refused any more")
        except Exception as error:
            if name not in refused or refused[name] not in str(error):
                faults.append(f"{name}: {error!r:.400}")
    assert not faults, "\n".join(faults)
    return count


@test
def models_of_scikit_learn_give_the_results_of_onnxruntime(w):
    """Every kind of operator that skl2onnx generates."""
    import classical

    assert compare_all(w, classical.models()) >= 28


@test
def graphs_give_the_results_of_onnxruntime(w):
    """Element types, ranks and dynamic dimensions."""
    import graphs

    assert compare_all(w, graphs.models()) >= 26


@test(limit=900)
def networks_give_the_results_of_onnxruntime(w):
    """Networks of well-known packages; with the two lists above, more than fifty models."""

    def models():
        for name, path, shapes in networks.networks(w.folder / "networks"):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            yield name.replace("_", "-").replace(".", "-").lower(), path, networks.random_inputs(session, shapes)

    (w.folder / "networks").mkdir(exist_ok=True)
    # Both add up thousands of products in another order.
    assert compare_all(w, models(), rtol=1e-2, atol=1e-3) >= 16


@test
def models_that_cannot_be_batched_give_the_same_results_under_load(w):
    import graphs

    names = {"shape", "transposed", "mean-of-columns", "total", "centred", "fixed-rows", "non-zero"}
    for name, model, _ in graphs.models():
        if name not in names:
            continue
        path = w.folder / f"unbatched-{name}.onnx"
        path.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(str(path))
        output = session.get_outputs()[0].name
        w.deploy(f"unbatched-{name}", path, batching={"max_size": 16, "max_delay_ms": 50})
        rows = np.random.default_rng(1).normal(0, 1, (40, 1, 3)).astype(np.float32)
        failures = []

        def send(start):
            for row in rows[start::8]:
                try:
                    tensor = rest.InferInput("x", [1, 3], "FP32").set_data_from_numpy(row)
                    found = w.rest.infer(f"unbatched-{name}", [tensor]).as_numpy(output)
                    expected = session.run([output], {"x": row})[0]
                    assert found.shape == np.shape(expected) and np.allclose(found, expected, atol=1e-5), (found, expected)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not failures, (name, failures[:2])


@test
def bytes_and_numbers_are_never_changed(w):
    path = w.folder / "any-bytes.onnx"
    identity(TensorProto.STRING, path)
    name = w.deploy("any-bytes", path)
    values = np.array([[b"\xff\xfe", b"a", b""], [b"\0x", "ü€".encode(), b"\x80" * 300]], dtype=object)
    for library, client in ((rest, w.rest), (grpc, w.grpc)):
        found = client.infer(name, [library.InferInput("x", [2, 3], "BYTES").set_data_from_numpy(values)]).as_numpy("y")
        assert (found == values).all(), (library.__name__, found)
    infer = f"/v2/models/{name}/infer"
    code, _, text = w.raw(infer, {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "BYTES", "data": ["\0x", "a", "b"]}]})
    assert code == 200 and json.loads(text)["outputs"][0]["data"] == ["\0x", "a", "b"], text
    for kind, number, good, bad in [
        ("INT64", TensorProto.INT64, "9223372036854775807", "9223372036854775808.0"),
        ("UINT64", TensorProto.UINT64, "18446744073709551615", "18446744073709551616.0"),
        ("FP32", TensorProto.FLOAT, "null", "1e39"), ("FP16", TensorProto.FLOAT16, "null", "70000"),
    ]:
        identity(number, w.folder / f"edge-{kind}.onnx")
        name = w.deploy(f"edge-{kind}", w.folder / f"edge-{kind}.onnx")
        body = lambda value: f'{{"inputs":[{{"name":"x","shape":[1,3],"datatype":"{kind}","data":[1,1,{value}]}}]}}'.encode()
        code, _, text = w.raw(f"/v2/models/{name}/infer", body(good))
        assert code == 200 and json.loads(text)["outputs"][0]["data"][2] == json.loads(good), text
        code, _, text = w.raw(f"/v2/models/{name}/infer", body(bad))
        assert code == 400 and bad in json.loads(text)["error"], text


@test
def compressed_grpc_requests(w):
    name = w.deploy("compressed-grpc", w.folder / "mlp.onnx")
    tensor = grpc.InferInput("X", [len(w.images), 64], "FP32").set_data_from_numpy(w.images)
    expected = w.grpc.infer(name, [tensor]).as_numpy("probabilities")
    for algorithm in ("gzip", "deflate"):
        assert (w.grpc.infer(name, [tensor], compression_algorithm=algorithm).as_numpy("probabilities") == expected).all(), algorithm
    output = grpc.InferRequestedOutput("probabilities", class_count=2)
    assert_rejected(lambda: w.grpc.infer(name, [tensor], outputs=[output]), "INVALID_ARGUMENT", "classification")


@test
def streamed_requests_are_answered_in_order(w):
    name = w.deploy("streamed", w.folder / "mlp.onnx")
    expected = w.grpc.infer(name, [grpc.InferInput("X", [20, 64], "FP32").set_data_from_numpy(w.images[:20])]).as_numpy("label")
    answers = queue.Queue()
    for algorithm in (None, "gzip"):
        w.grpc.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm=algorithm)
        try:
            for i in range(20):
                tensor = grpc.InferInput("X", [1, 64], "FP32").set_data_from_numpy(w.images[i : i + 1])
                w.grpc.async_stream_infer("nothing" if i == 7 else name, [tensor], request_id=str(i))
            for i in range(20):
                result, error = answers.get(timeout=20)
                if i == 7:
                    assert "'nothing' is not deployed" in str(error), error
                    continue
                assert error is None and result.get_response().id == str(i), (i, error)
                assert result.as_numpy("label").reshape(-1)[0] == expected.reshape(-1)[i]
        finally:
            w.grpc.stop_stream()


@test
def configuration_statistics_and_settings(w):
    name = w.deploy("described", w.folder / "mlp.onnx", batching={"max_size": 8, "max_delay_ms": 3})
    for library, client in ((rest, w.rest), (grpc, w.grpc)):
        client.infer(name, [library.InferInput("X", [3, 64], "FP32").set_data_from_numpy(w.images[:3])])
    config = w.rest.get_model_config(name)
    assert config["max_batch_size"] == 8 and config["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": [64]}], config
    other = w.grpc.get_model_config(name, as_json=True)["config"]
    assert other["input"][0]["data_type"] == "TYPE_FP32" and other["max_batch_size"] == 8, other
    assert other["dynamic_batching"]["max_queue_delay_microseconds"] == "3000", other
    stats = w.rest.get_inference_statistics(name)["model_stats"][0]
    assert stats["inference_count"] == 6 and stats["inference_stats"]["success"]["count"] == 2, stats
    assert stats["inference_stats"]["success"]["ns"] > 0 and stats["inference_stats"]["fail"]["count"] == 0, stats
    assert w.grpc.get_inference_statistics(name).model_stats[0].inference_stats.success.count == 2
    assert name in [m["name"] for m in w.rest.get_inference_statistics()["model_stats"]]
    assert w.rest.get_system_shared_memory_status() == [] == w.rest.get_cuda_shared_memory_status()
    assert not w.grpc.get_system_shared_memory_status().regions and not w.grpc.get_cuda_shared_memory_status().regions
    assert w.rest.get_trace_settings()["trace_level"] == ["OFF"]
    assert w.grpc.get_trace_settings(model_name=name).settings["trace_level"].value == ["OFF"]
    assert w.rest.get_log_settings()["log_error"] is True
    assert w.grpc.get_log_settings().settings["log_error"].bool_param
    assert_rejected(lambda: w.rest.update_log_settings({"log_info": False}), "400", "cannot be changed")
    assert_rejected(lambda: w.grpc.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}), "INVALID_ARGUMENT")


@test
def repository_service_of_mlserver(w):
    name = w.deploy("managed", w.folder / "mlp.onnx")
    token = [("authorization", f"Bearer {w.server.token}")]
    with plain_grpc.insecure_channel(w.server.grpc) as channel:
        for service in ("inference.model_repository.ModelRepositoryService", "inference.ModelRepositoryService"):
            index = channel.unary_unary(f"/{service}/RepositoryIndex", lambda m: m.SerializeToString(), service_pb2.RepositoryIndexResponse.FromString)
            assert name in [m.name for m in index(service_pb2.RepositoryIndexRequest(), metadata=token).models]
        unload = channel.unary_unary(f"/{service}/RepositoryModelUnload", lambda m: m.SerializeToString(), service_pb2.RepositoryModelUnloadResponse.FromString)
        unload(service_pb2.RepositoryModelUnloadRequest(model_name=name), metadata=token)
    assert not w.rest.is_model_ready(name)


@test
def version_1_of_the_protocol(w):
    name = w.deploy("v1", w.folder / "mlp.onnx")
    rows = w.images[:3].tolist()
    expected = w.rest.infer(name, [rest.InferInput("X", [3, 64], "FP32").set_data_from_numpy(w.images[:3])])
    labels, probabilities = expected.as_numpy("label").reshape(-1).tolist(), expected.as_numpy("probabilities")
    for body in ({"instances": rows}, {"instances": [{"X": row} for row in rows]}, {"signature_name": "any", "instances": rows}):
        code, _, text = w.raw(f"/v1/models/{name}:predict", body)
        predictions = json.loads(text)["predictions"]
        assert code == 200 and [p["label"] for p in predictions] == labels, text
        assert np.allclose([p["probabilities"] for p in predictions], probabilities)
    for body in ({"inputs": rows}, {"inputs": {"X": rows}}):
        outputs = json.loads(w.raw(f"/v1/models/{name}:predict", body)[2])["outputs"]
        assert outputs["label"] == labels and np.allclose(outputs["probabilities"], probabilities)
    code, _, text = w.raw(f"/v1/models/{name}:predict", {"instances": [[1, 2], [3]]})
    assert code == 400 and "2 and 1 elements" in json.loads(text)["error"], text
    for path in ("/v1/models", "/v2/models"):
        assert name in json.loads(w.raw(path, method="GET")[2])["models"]
    assert json.loads(w.raw(f"/v1/models/{name}", method="GET")[2]) == {"name": name, "ready": True}
    for path in ("/", "/healthz", "/readyz"):
        with urllib.request.urlopen(w.server.inference + path, timeout=10) as response:
            assert response.status == 200


@test
def metrics_have_the_names_of_mlserver_triton_and_kserve(w):
    name = w.deploy("counted", w.folder / "mlp.onnx")
    label(w, name)
    code, _, text = w.raw("/metrics", method="GET")
    lines = text.decode().splitlines()
    assert code == 200
    for line in (
        f'model_infer_request_success_total{{model="{name}",version=""}} 1', f'model_infer_request_failure_total{{model="{name}",version=""}} 0',
        f'nv_inference_request_success_total{{model="{name}",version=""}} 1', f'request_predict_seconds_count{{model_name="{name}"}} 1',
    ):
        assert line in lines, (line, [l for l in lines if name in l])


@test
def compressed_requests_and_responses(w):
    name = w.deploy("compressed", w.folder / "mlp.onnx")
    for binary in (True, False):
        tensor = rest.InferInput("X", [len(w.images), 64], "FP32").set_data_from_numpy(w.images, binary_data=binary)
        output = [rest.InferRequestedOutput("probabilities", binary_data=binary)]
        expected = w.rest.infer(name, [tensor], outputs=output).as_numpy("probabilities")
        for request in (None, "gzip", "deflate"):
            for response in (None, "gzip", "deflate"):
                options = {"request_compression_algorithm": request, "response_compression_algorithm": response}
                found = w.rest.infer(name, [tensor], outputs=output, **options).as_numpy("probabilities")
                assert (found == expected).all(), (binary, options)


@test
def requested_outputs_and_ids(w):
    name = w.deploy("outputs", w.folder / "mlp.onnx")
    tensor = rest.InferInput("X", [1, 64], "FP32")
    tensor.set_data_from_numpy(w.images[:1])
    result = w.rest.infer(name, [tensor], outputs=[rest.InferRequestedOutput("label")], request_id="mine")
    assert [o["name"] for o in result.get_response()["outputs"]] == ["label"]
    assert result.get_response()["id"] == "mine"
    assert_rejected(lambda: w.rest.infer(name, [tensor], outputs=[rest.InferRequestedOutput("foo")]), "400", "unexpected output 'foo'", "'label'")
    g = grpc.InferInput("X", [1, 64], "FP32")
    g.set_data_from_numpy(w.images[:1])
    assert_rejected(lambda: w.grpc.infer(name, [g], outputs=[grpc.InferRequestedOutput("foo")]), "INVALID_ARGUMENT", "unexpected output 'foo'")


@test
def errors_name_the_tensor_and_the_expected_value(w):
    name = w.deploy("mistakes", w.folder / "mlp.onnx")

    def send(library, client, tensor_name, values, kind):
        tensor = library.InferInput(tensor_name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        return lambda: client.infer(name, [tensor])

    good = w.images[:1]
    for library, client, status in ((rest, w.rest, "400"), (grpc, w.grpc, "INVALID_ARGUMENT")):
        assert_rejected(send(library, client, "Y", good, "FP32"), status, "unexpected input 'Y'", "'X'")
        assert_rejected(send(library, client, "X", good[:, :10], "FP32"), status, "input 'X'", "shape [1, 10], expected [-1, 64]")
        assert_rejected(send(library, client, "X", good.astype(np.float64), "FP64"), status, "input 'X'", "datatype FP64, expected FP32")
        assert_rejected(lambda: client.infer("nothing", [library.InferInput("X", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32))]),
                "NOT_FOUND" if library is grpc else "404", "'nothing' is not deployed")
        assert_rejected(lambda: client.infer(name, [library.InferInput("X", [1, 64], "FP32").set_data_from_numpy(good)], model_version="99"),
                "NOT_FOUND" if library is grpc else "404", "no version '99'")
    infer = f"/v2/models/{name}/infer"
    for body, words in [
        (b"", "the body is not JSON"), (b"{", "the body is not JSON"), (b"[]", "not a V2 inference request"),
        (b'{"inputs":[]}', "input 'X' is missing"), (b'{"inputs":[{"name":"X"}]}', "missing field"),
        (b'{"inputs":[{"name":"X","shape":[1,64],"datatype":"FP32","data":["a"]}]}', "data is not FP32"),
        (b'{"inputs":[{"name":"X","shape":[1,64],"datatype":"FP32","data":[1,2]}]}', "2 elements, expected 64"),
        (b'{"inputs":[{"name":"X","shape":[-1,64],"datatype":"FP32","data":[]}]}', "negative dimension"),
        (b'{"inputs":[{"name":"X","shape":[1,64],"datatype":"FLOAT","data":[]}]}', "unknown datatype 'FLOAT'"),
        (b'{"inputs":[{"name":"X","shape":[999999999,999999999],"datatype":"FP32","data":[]}]}', "too large"),
        (b"\xff\xfe", "the body is not JSON"),
    ]:
        code, _, text = w.raw(infer, body)
        assert code == 400 and words in json.loads(text)["error"], (code, text)
    code, _, text = w.raw(infer, b"{}", {"Inference-Header-Content-Length": "99"})
    assert code == 400 and "Inference-Header-Content-Length" in json.loads(text)["error"], text
    assert w.raw("/v2/nothing", method="GET")[0] == 404


@test
def oversized_bodies_are_rejected(w):
    name = w.deploy("small", w.folder / "mlp.onnx", limits={"max_body_mb": 1})
    code, _, text = w.raw(f"/v2/models/{name}/infer", b'{"inputs":[' + b" " * (1 << 20) + b"]}")
    assert code == 413 and "larger than the limit" in json.loads(text)["error"], text


@test
def batching_gives_the_same_results(w):
    name = w.deploy("batched", w.folder / "mlp.onnx", batching={"max_size": 16, "max_delay_ms": 5})
    session = onnxruntime.InferenceSession(str(w.folder / "mlp.onnx"))
    expected = session.run(["label"], {"X": w.images[:64]})[0]
    found, failures = [None] * 64, []

    def send(start):
        try:
            client = w.rest
            for i in range(start, 64, 8):
                tensor = rest.InferInput("X", [1, 64], "FP32")
                tensor.set_data_from_numpy(w.images[i : i + 1])
                found[i] = int(client.infer(name, [tensor]).as_numpy("label").reshape(-1)[0])
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures and found == expected.tolist(), failures


def label(w, name, **options):
    tensor = rest.InferInput("X", [1, 64], "FP32")
    tensor.set_data_from_numpy(w.images[:1])
    return w.rest.infer(name, [tensor], **options).get_response()


def register(w, name, model, count=1):
    """Registers `count` versions of a model, each from its own run."""
    mlflow = lambda path, body: w.server.call("POST", f"/api/2.0/mlflow/{path}", body)[1]
    mlflow("registered-models/create", {"name": name})
    for _ in range(count):
        info = mlflow("runs/create", {"experiment_id": "0"})["run"]["info"]
        root = info["artifact_uri"].split(":/", 1)[1].lstrip("/")
        data = (w.folder / f"{model}.onnx").read_bytes()
        assert w.server.call("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/model.onnx", data)[0] == 200
        mlflow("model-versions/create", {"name": name, "source": info["artifact_uri"] + "/model", "run_id": info["run_id"]})


def set_alias(w, name, alias, version):
    body = {"name": name, "alias": alias, "version": version}
    assert w.server.call("POST", "/api/2.0/mlflow/registered-models/alias", body)[0] == 200


@test
def moved_alias_is_followed_without_failed_requests(w):
    register(w, "moving", "mlp", 3)
    set_alias(w, "moving", "live", "1")
    name = w.deploy("moving", "models:/moving@live")
    assert label(w, name)["model_version"] == "1"
    failures, versions, stop = [], [], threading.Event()

    def send():
        client = w.rest
        tensor = rest.InferInput("X", [1, 64], "FP32")
        tensor.set_data_from_numpy(w.images[:1])
        while not stop.is_set():
            try:
                versions.append(client.infer(name, [tensor]).get_response()["model_version"])
            except Exception as e:
                failures.append(e)

    threads = [threading.Thread(target=send) for _ in range(3)]
    [t.start() for t in threads]
    for version in ("2", "3", "1", "3"):
        set_alias(w, "moving", "live", version)
        # Without a delay between the requests, because none of them may fail.
        eventually(lambda: label(w, name)["model_version"] == version, timeout=10, interval=0, message=f"version {version} is served")
    stop.set()
    [t.join() for t in threads]
    assert not failures, failures[:3]
    assert set(versions) >= {"2", "3"} and len(versions) >= 20, (set(versions), len(versions))


@test
def splits_by_id_and_by_header_and_live_changes(w):
    register(w, "split", "mlp", 2)
    models = [{"name": "a", "uri": "models:/split/1", "weight": 70}, {"name": "b", "uri": "models:/split/2", "weight": 30}]
    name = w.deploy("split", "", models=models)
    ids = [f"user-{i}" for i in range(300)]
    by_id = {i: label(w, name, request_id=i)["model_version"] for i in ids}
    share = sum(v == "2" for v in by_id.values())
    assert 50 < share < 130, share
    assert all(label(w, name, request_id=i)["model_version"] == by_id[i] for i in ids[:50]), "the version of an id changed"
    assert label(w, name, model_version="2")["model_version"] == "2"
    w.deploy("split", "", models=models, split={"by": "header", "header": "X-User"})
    versions = [w.rest.infer(name, [rest.InferInput("X", [1, 64], "FP32").set_data_from_numpy(w.images[:1])], headers={"X-User": i}).get_response()["model_version"] for i in ids]
    assert versions == [by_id[i] for i in ids], "the header gives a different split than the id"
    assert w.server.call("POST", "/api/v1/deployments/split/split", {"weights": {"a": 0, "b": 100}})[0] == 200
    assert {label(w, name)["model_version"] for _ in range(20)} == {"2"}
    assert w.server.call("POST", "/api/v1/deployments/split/split", {"weights": {"a": 50}})[0] == 400
    assert w.server.call("POST", "/api/v1/deployments/split/rollback", {})[0] == 200
    assert {label(w, name)["model_version"] for _ in range(60)} == {"1", "2"}
    _, headers, _ = w.raw(f"/v2/models/{name}/infer", {"inputs": [{"name": "X", "shape": [1, 64], "datatype": "FP32", "data": w.images[0].tolist()}]})
    assert headers["x-slipway-model-version"] in "12" and headers["x-slipway-model"] == "split", headers


@test
def deployments_survive_a_restart(w):
    register(w, "kept", "mlp")
    name = w.deploy("kept", "models:/kept/1")
    w.server.stop(signal.SIGKILL)
    w.server.start()
    w.connect()
    eventually(lambda: w.rest.is_model_ready(name), timeout=10, message="the model is ready after the restart")
    assert label(w, name)["model_version"] == "1"


@test
def repository_index_load_unload(w):
    name = w.deploy("indexed", w.folder / "mlp.onnx")
    entry = [m for m in w.rest.get_model_repository_index() if m["name"] == name]
    assert entry and entry[0]["state"] == "READY", entry
    assert name in [m.name for m in w.grpc.get_model_repository_index().models]
    w.grpc.load_model(name)
    w.rest.unload_model(name)
    assert not w.grpc.is_model_ready(name)
    assert_rejected(lambda: w.rest.unload_model(name), "404")
    assert_rejected(lambda: w.rest.load_model("nothing"), "not found")


@test
def overload_is_rejected_immediately(w):
    # A slow model: a sequence of large matrix multiplications.
    size = 700
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}"]) for i in range(12)]
    weights = onnx.numpy_helper.from_array(np.full((size, size), 1e-3, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])
    y = helper.make_tensor_value_info("h12", TensorProto.FLOAT, ["N", size])
    model = helper.make_model(helper.make_graph(nodes, "slow", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, w.folder / "slow.onnx")
    name = w.deploy("slow", w.folder / "slow.onnx", limits={"queue": 2, "concurrency": 1, "timeout_ms": 20000})
    body = json.dumps({"inputs": [{"name": "x", "shape": [400, size], "datatype": "FP32", "data": [0.5] * (400 * size)}]}).encode()
    codes, headers = [], []

    def send():
        code, header, _ = w.raw(f"/v2/models/{name}/infer", body)
        codes.append(code)
        headers.append(header)

    threads = [threading.Thread(target=send) for _ in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert 200 in codes and 429 in codes and set(codes) <= {200, 429}, codes
    assert headers[codes.index(429)].get("retry-after") == "1"
    w.deploy("slow", w.folder / "slow.onnx", limits={"timeout_ms": 1, "concurrency": 1})
    code, _, text = w.raw(f"/v2/models/{name}/infer", body)
    assert code == 504 and "did not respond within 1 ms" in json.loads(text)["error"], (code, text)


def main():
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"})
    library = next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))

    @contextlib.contextmanager
    def world(runtime):
        arguments = ["--runtime", runtime] + (["--onnxruntime", str(library)] if runtime == "ort" else [])
        with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway, options=arguments) as server:
            folder = pathlib.Path(folder)
            yield World(server, folder, runtime, sklearn_models(folder))

    return SUITE.main(options, world)


if __name__ == "__main__":
    sys.exit(main())
