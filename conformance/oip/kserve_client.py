"""Tests version 1 and 2 of the inference protocol with KServe's own clients, and health checks and reflection with those of gRPC.

    python kserve_client.py --slipway target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]

The model computes y = 2 x; its file is written without the package `onnx`, which KServe's environment does not have.
"""

import asyncio
import contextlib
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import grpc
import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from lib import Slipway
from suite import Suite

SUITE = Suite("kserve", limit=120)
test = SUITE.test


def field(number, value):
    """A field of a protobuf message: a number, or bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def doubling():
    """y = x + x for rows of two numbers, in ONNX's format."""
    def tensor(name):
        rows = field(1, field(2, b"N")) + field(1, field(1, 2))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, rows)))

    add = field(1, b"x") + field(1, b"x") + field(2, b"y") + field(4, b"Add")
    graph = field(1, add) + field(2, b"graph") + field(11, tensor(b"x")) + field(12, tensor(b"y"))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


class World:
    def __init__(self, server, name):
        self.server, self.name = server, name

    def rest(self, protocol, action):
        """Runs `action` with a client for this version of the protocol."""
        async def run():
            client = InferenceRESTClient(RESTConfig(protocol=protocol))
            try:
                return await action(client)
            finally:
                await client.close()

        return asyncio.run(run())


@test
def version_1(w):
    url, headers = w.server.inference, w.server.authorization
    assert w.rest("v1", lambda c: c.is_server_live(url)) is True
    assert w.rest("v1", lambda c: c.is_model_ready(url, w.name, headers=headers)) is True
    found = w.rest("v1", lambda c: c.infer(url, {"instances": [[1.5, 2], [3, 4]]}, model_name=w.name, headers=dict(headers)))
    assert found == {"predictions": [[3.0, 4.0], [6.0, 8.0]]}, found


@test
def version_2(w):
    url, headers = w.server.inference, w.server.authorization
    assert w.rest("v2", lambda c: c.is_server_ready(url)) is True
    assert w.rest("v2", lambda c: c.is_model_ready(url, w.name, headers=headers)) is True
    for binary in (True, False):
        x = InferInput("x", [2, 2], "FP32")
        x.set_data_from_numpy(np.array([[1.5, 2], [3, 4]], np.float32), binary_data=binary)
        request = InferRequest(w.name, [x])
        found = w.rest("v2", lambda c: c.infer(url, request, model_name=w.name, headers=dict(headers)))
        assert found.model_name == w.name and found.outputs[0].as_numpy().tolist() == [[3.0, 4.0], [6.0, 8.0]], found


@test
def version_2_over_grpc(w):
    headers = [("authorization", f"Bearer {w.server.token}")]

    async def run():
        client = InferenceGRPCClient(w.server.grpc)
        try:
            assert await client.is_server_ready() and await client.is_model_ready(w.name, headers=headers)
            x = InferInput("x", [1, 2], "FP32")
            x.set_data_from_numpy(np.array([[1.5, 2]], np.float32))
            return await client.infer(InferRequest(w.name, [x]), headers=headers)
        finally:
            await client.close()

    assert asyncio.run(run()).outputs[0].as_numpy().tolist() == [[3.0, 4.0]]


@test
def health_checks_and_reflection(w):
    with grpc.insecure_channel(w.server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert next(health.Watch(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        unknown = next(health.Watch(health_pb2.HealthCheckRequest(service="other")))
        assert unknown.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        try:
            ProtoReflectionDescriptorDatabase(channel).get_services()
            raise AssertionError("reflection is not for unauthenticated clients")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error
        authenticated = grpc.intercept_channel(channel, Authorization(w.server.token))
        database = ProtoReflectionDescriptorDatabase(authenticated)
        services = set(database.get_services())
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= services, services
        method = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService").methods_by_name["ModelInfer"]
        assert method.input_type.fields_by_name["raw_input_contents"].number == 7


class Authorization(grpc.StreamStreamClientInterceptor):
    def __init__(self, token):
        self.metadata = [("authorization", f"Bearer {token}")]

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=self.metadata), requests)


def main():
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"})

    @contextlib.contextmanager
    def world(_):
        with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway, options=["--runtime", "builtin"]) as server:
            path = pathlib.Path(folder, "double.onnx")
            path.write_bytes(doubling())
            manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": "double"},
                        "spec": {"models": [{"name": "m", "uri": str(path)}]}}
            status, response = server.call("POST", "/api/v1/deployments", manifest)
            assert status == 200, response
            yield World(server, "double")

    return SUITE.main(options, world)


if __name__ == "__main__":
    sys.exit(main())
