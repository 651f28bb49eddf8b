"""Tests multipart uploads with the official client. `mlflow server` supports them only for cloud stores.

    python uploads_in_parts.py --slipway target/release/slipway

So on one machine there is no original to compare with. The test checks that the client uses multipart uploads and
that the downloaded file is identical. Under `testkit/services.py` it runs a second time with objects in S3.
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="1", MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD="true", MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE=str(8 << 20),
    MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE=str(5 << 20),
)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lib import Slipway
from mlflow import MlflowClient
from mlflow.store.artifact import mlflow_artifacts_repo


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    args = parser.parse_args()
    calls = []
    repository = mlflow_artifacts_repo.MlflowArtifactsRepository
    for name in ("create_multipart_upload", "complete_multipart_upload"):
        original = getattr(repository, name)
        setattr(repository, name, lambda self, *a, _o=original, _n=name, **k: (calls.append(_n), _o(self, *a, **k))[1])
    check(args.slipway, calls, {})
    if "SLIPWAY_TEST_OBJECTS" in os.environ:
        check(args.slipway, calls, {"SLIPWAY_OBJECTS": os.environ["SLIPWAY_TEST_OBJECTS"]})
    print("multipart upload: used by the client, the file is identical, no parts remain")


def check(slipway, calls, environment):
    calls.clear()
    with Slipway(slipway, environment=environment) as server, tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_TOKEN"] = server.token
        client = MlflowClient(server.url)
        run = client.create_run("0").info.run_id
        data = os.urandom(23 << 20)
        path = pathlib.Path(folder, "big.bin")
        path.write_bytes(data)
        client.log_artifact(run, str(path), "deep/er")
        back = pathlib.Path(client.download_artifacts(run, "deep/er/big.bin", folder + "/"))
        same = back.read_bytes() == data
        remaining = [] if environment else list((server.home / "objects/.part").iterdir())
    assert calls == ["create_multipart_upload", "complete_multipart_upload"], f"the client did not use multipart uploads: {calls}"
    assert same and not remaining, (same, remaining)


if __name__ == "__main__":
    main()
