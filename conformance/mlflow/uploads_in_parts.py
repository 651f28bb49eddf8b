"""Uploads in parts with the official client, which `mlflow server` offers for cloud stores only.

    python uploads_in_parts.py --slipway target/release/slipway

So there is no peer to compare with on one machine; what is checked is that the client takes that way and that the
file comes back as it was. Within `testkit/services.py` objects are kept in S3 too.
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
    seen = []
    repository = mlflow_artifacts_repo.MlflowArtifactsRepository
    for name in ("create_multipart_upload", "complete_multipart_upload"):
        original = getattr(repository, name)
        setattr(repository, name, lambda self, *a, _o=original, _n=name, **k: (seen.append(_n), _o(self, *a, **k))[1])
    check(args.slipway, seen, {})
    if "SLIPWAY_TEST_OBJECTS" in os.environ:
        check(args.slipway, seen, {"SLIPWAY_OBJECTS": os.environ["SLIPWAY_TEST_OBJECTS"]})
    print("multipart upload: the client took it, the file is whole, nothing is left over")


def check(slipway, seen, environment):
    seen.clear()
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
        left = [] if environment else list((server.home / "objects/.part").iterdir())
    assert seen == ["create_multipart_upload", "complete_multipart_upload"], f"the client took another way: {seen}"
    assert same and not left, (same, left)


if __name__ == "__main__":
    main()
