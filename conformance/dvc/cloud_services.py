"""Emulators of Azure's and Google's storage: Microsoft's Azurite (npm) and fake-gcs-server (a Go module), both with a memory as storage.

Their pinned versions are installed into the cache of the peers. They listen on loopback and end with their contexts.
"""

import base64
import contextlib
import datetime
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

import xml_uploads
from remote_services import HERE, running
from services import CACHE, free_port
from suite import Skip, protected

AZURITE = "3.35.0"
FAKE_GCS = "v1.56.1"
CONTAINER = BUCKET = "slipway"


def azurite_program():
    folder = CACHE / f"azurite-{AZURITE}"
    program = folder / "node_modules/.bin/azurite-blob"
    if not program.exists():
        if not shutil.which("npm"):
            raise Skip("Azurite needs npm")
        print(f"installing Azurite {AZURITE} into {folder}", file=sys.stderr)
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder, f"azurite@{AZURITE}"], check=True)
    return program


def fake_gcs_program():
    program = CACHE / f"fake-gcs-server-{FAKE_GCS}" / "fake-gcs-server"
    if not program.exists():
        if not shutil.which("go"):
            raise Skip("fake-gcs-server needs Go; `make go` installs it")
        print(f"building fake-gcs-server {FAKE_GCS} into {program.parent}", file=sys.stderr)
        module = f"github.com/fsouza/fake-gcs-server@{FAKE_GCS}"
        subprocess.run(["go", "install", module], check=True, env=os.environ | {"GOBIN": str(program.parent), "GOFLAGS": "-mod=mod"})
    return program


@contextlib.contextmanager
def workplace(name):
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"slipway-{name}-"))
    try:
        yield folder
    finally:
        with protected():
            shutil.rmtree(folder, ignore_errors=True)


class Azure:
    """An account of Azure's storage with one container."""

    ACCOUNT, KEY = "team", base64.b64encode(b"test-key-of-no-value").decode()

    def __init__(self, port):
        self.endpoint = f"http://{HERE}:{port}/{self.ACCOUNT}"
        self.connection_string = (f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={self.KEY};"
                                  f"BlobEndpoint={self.endpoint};")
        request = urllib.request.Request(f"{self.endpoint}/{CONTAINER}?restype=container&{self.sas_token()}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def sas_token(self, permissions="rwdlacup"):
        """A shared access signature of the account for its blobs."""
        end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        version, services, types, protocol = "2019-12-12", "b", "sco", "https,http"
        text = "".join(f"{line}\n" for line in [self.ACCOUNT, permissions, services, types, "", end, "", protocol, version])
        signature = hmac.digest(base64.b64decode(self.KEY), text.encode(), hashlib.sha256)
        return urllib.parse.urlencode({"sv": version, "ss": services, "srt": types, "sp": permissions, "se": end, "spr": protocol,
                                       "sig": base64.b64encode(signature).decode()})


@contextlib.contextmanager
def azure():
    with workplace("azure") as folder:
        port = free_port(HERE)
        command = [azurite_program(), "--inMemoryPersistence", "--blobHost", HERE, "--blobPort", port, "--silent",
                   "--disableTelemetry", "--skipApiVersionCheck"]
        environment = os.environ | {"AZURITE_ACCOUNTS": f"{Azure.ACCOUNT}:{Azure.KEY}"}
        with running(command, port, folder, environment, user=None):
            yield Azure(port)


class Google:
    """Google's storage with one bucket."""

    def __init__(self, address):
        self.endpoint = f"http://{address}"
        body = json.dumps({"name": BUCKET}).encode()
        request = urllib.request.Request(f"{self.endpoint}/storage/v1/b?project=test", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def google():
    with workplace("google") as folder:
        port = free_port(HERE)
        address = f"{HERE}:{port}"
        command = [fake_gcs_program(), "-scheme", "http", "-host", HERE, "-port", port, "-backend", "memory", "-public-host", address,
                   "-external-url", f"http://{address}", "-log-level", "warn"]
        with running(command, port, folder, os.environ, user=None), xml_uploads.in_front_of(address) as proxy:
            yield Google(proxy)
