"""Sends every held-out test image through the gateway with the official tritonclient, over REST and over gRPC.

    SLIPWAY_TOKEN=$(slipway token) python query.py REST_HOST:PORT GRPC_HOST:PORT

Prints JSON with one record per request: the version that served it, the predicted label, and the duration.
"""

import json
import os
import sys
import time

import tritonclient.grpc as grpc
import tritonclient.http as rest
from tritonclient.grpc.auth import BasicAuth as GrpcAuth
from tritonclient.http.auth import BasicAuth as RestAuth

from train import data

MODEL = "digits"


def send(library, client, protocol, images):
    records = []
    for number, image in enumerate(images):
        tensor = library.InferInput("X", [1, 64], "FP32")
        tensor.set_data_from_numpy(image.reshape(1, 64))
        started = time.perf_counter()
        result = client.infer(MODEL, [tensor], request_id=f"{protocol}-{number}")
        seconds = time.perf_counter() - started
        response = result.get_response()
        version = response["model_version"] if protocol == "rest" else response.model_version
        records.append(
            {
                "protocol": protocol,
                "image": number,
                "version": version,
                "label": int(result.as_numpy("label").reshape(-1)[0]),
                "us": seconds * 1e6,
            }
        )
    return records


def main(rest_address, grpc_address):
    _, images, _, labels = data()
    rest_client = rest.InferenceServerClient(rest_address)
    grpc_client = grpc.InferenceServerClient(grpc_address)
    # `slipway token` prints the token of this machine.
    token = os.environ["SLIPWAY_TOKEN"]
    rest_client.register_plugin(RestAuth("slipway", token))
    grpc_client.register_plugin(GrpcAuth("slipway", token))
    for client in (rest_client, grpc_client):
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert rest_client.get_model_metadata(MODEL)["inputs"][0]["name"] == "X"
    assert grpc_client.get_model_metadata(MODEL).inputs[0].name == "X"
    records = send(rest, rest_client, "rest", images) + send(grpc, grpc_client, "grpc", images)
    return {"truth": labels.tolist(), "records": records}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3])))
