"""Tests of the storage of Azure and Google as remotes.

The plugins of DVC for them are in an environment of their own, `dvc-clouds` beside that of DVC, so that DVC alone stays small.
"""

import pathlib
import shutil

import cloud_services as clouds
from cloud_services import BUCKET, CONTAINER
from remote_projects import Programs, in_turn, round_trip, sandbox


def with_plugins(programs):
    """The same programs with a DVC that has its plugins for these services."""
    return Programs(programs.slipway, programs.dvc and pathlib.Path(programs.dvc).parents[2] / "dvc-clouds/bin/dvc")


def azure_is_a_remote(programs):
    with sandbox(programs) as place, clouds.azure() as azure:
        first = round_trip(place, f"azure://{CONTAINER}/ours", connection_string=azure.connection_string)
        # The other credentials, each alone; the endpoint is not Azure's own, so it is always in the connection string.
        endpoint = f"BlobEndpoint={azure.endpoint}"
        account = f"{endpoint};AccountName={azure.ACCOUNT}"
        for options in [
            {"connection_string": f"{account};SharedAccessSignature={azure.sas_token()}"},
            {"connection_string": account, "sas_token": azure.sas_token()},
            {"connection_string": endpoint, "account_name": azure.ACCOUNT, "account_key": azure.KEY},
        ]:
            reader = first.clone("reader")
            reader.ours("remote", "remove", "r")
            reader.remote(f"azure://{CONTAINER}/ours", **options)
            assert "in sync" in reader.ours("status", "-c") or "deleted" in reader.ours("status", "-c"), options
            reader.ours("fetch")
            assert "in sync" in reader.ours("status", "-c")
            shutil.rmtree(reader.path)
        # A signature that permits reading only, and a wrong key.
        (first.path / "data/0.txt").write_text("not permitted\n")
        first.ours("add", "data")
        for connection in (f"{account};SharedAccessSignature={azure.sas_token('rl')}", f"{account};AccountKey={'A' * 86}=="):
            first.ours("remote", "modify", "r", "connection_string", connection)
            message = first.ours("push", fails=True)
            assert "403" in message and azure.KEY not in message and "sig=" not in message, message


def dvc_and_slipway_use_azure_in_turn(programs):
    with sandbox(with_plugins(programs)) as place, clouds.azure() as azure:
        project = in_turn(place, f"azure://{CONTAINER}/turn", connection_string=azure.connection_string)
        signature = f"BlobEndpoint={azure.endpoint};SharedAccessSignature={azure.sas_token()}"
        project.ours("remote", "modify", "r", "connection_string", signature)
        assert "in sync" in project.ours("status", "-c")
        assert "in sync" in project.original("status", "-c")


def google_is_a_remote(programs):
    with sandbox(programs) as place, clouds.google() as google:
        first = round_trip(place, f"gs://{BUCKET}/ours", endpointurl=google.endpoint, allow_anonymous_login="true", projectname="test")
        first.ours("remote", "modify", "r", "allow_anonymous_login", "false")
        first.ours("remote", "modify", "r", "credentialpath", "/nonexistent/key.json")
        assert "/nonexistent/key.json" in first.ours("push", fails=True)


def dvc_and_slipway_use_google_in_turn(programs):
    with sandbox(with_plugins(programs)) as place, clouds.google() as google:
        # gcsfs looks for zonal buckets with a protocol that the emulator does not have, and waits for it.
        place.environment["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        in_turn(place, f"gs://{BUCKET}/turn", endpointurl=google.endpoint, allow_anonymous_login="true")


TESTS = {
    test.__name__: test
    for test in (azure_is_a_remote, dvc_and_slipway_use_azure_in_turn, google_is_a_remote, dvc_and_slipway_use_google_in_turn)
}
