#!/usr/bin/env python3
"""Runs a command with a real PostgreSQL and a real S3 service for tests.

    testkit/services.py COMMAND [ARGUMENT ...]

The environment of the command has SLIPWAY_TEST_DATABASE (a postgres:// URL), SLIPWAY_TEST_OBJECTS (an s3:// URL), and the
AWS_* variables that every S3 client reads. With SLIPWAY_TEST_SERVICES=required, tests fail instead of being skipped when a service is missing.
PostgreSQL comes from Debian; the S3 service is Versity's gateway with a folder as storage, built from its Go module and cached. Both listen on
loopback, unless a test passes another address.
"""

import contextlib
import datetime
import hashlib
import hmac
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "conformance"))
from suite import Skip, StopWaiting, eventually, protected

VERSITYGW = "v1.8.0"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "slipway" / "peers"


def extracted(name, packages):
    """The folder with these packages of Debian, which are extracted into the cache instead of installed, so that nothing on the machine changes."""
    folder = CACHE / f"debian-{name}"
    if not (folder / ".ready").exists():
        if not shutil.which("apt-get"):
            raise Skip(f"{name} comes from Debian's packages")
        print(f"downloading {' '.join(packages)}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as downloads:
            os.chmod(downloads, 0o777)
            subprocess.run(["apt-get", "download", "-qq", *packages], cwd=downloads, check=True, stderr=subprocess.DEVNULL)
            for package in pathlib.Path(downloads).glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, folder], check=True)
        (folder / ".ready").touch()
    return folder


def free_port(address):
    with socket.socket() as s:
        s.bind((address, 0))
        return s.getsockname()[1]


def wait_for(address, port, process, log):
    def listening():
        if process.poll() is not None:
            raise StopWaiting(f"a service exited with {process.returncode}:\n{log.read_text()}")
        with socket.socket() as s:
            return s.connect_ex((address, port)) == 0

    eventually(listening, timeout=30, interval=0.05, message=f"a service listens; its log is {log}")


def stop_process(process, how=signal.SIGTERM):
    process.send_signal(how)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def installed():
    return sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def install():
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit("PostgreSQL is missing; install it and retry: apt-get install postgresql")
    print("installing with apt: postgresql", file=sys.stderr)
    # Do not create the default database of the package, which would start with the machine.
    settings = pathlib.Path("/etc/postgresql-common/createcluster.conf")
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("create_main_cluster = false\n")
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "postgresql"], **quiet)
    return installed()


class Postgres:
    """A PostgreSQL server in its own folder; tests simulate outages with `kill` and `start`."""

    PASSWORD = "test-password-of-no-value"

    def __init__(self, folder, address):
        programs = installed() or install()
        self.programs, self.folder, self.address, self.port = programs[-1].parent, folder, address, free_port(address)
        # PostgreSQL refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        folder.mkdir()
        if self.user:
            shutil.chown(folder, self.user)
        secret = folder / "password"
        secret.write_text(self.PASSWORD)
        initdb = [self.programs / "initdb", "-D", folder / "data", "-U", "slipway", "-A", "scram-sha-256", "--pwfile", secret,
                  "--locale=C.UTF-8", "-E", "UTF8"]
        subprocess.run(initdb, check=True, user=self.user, cwd="/", stdout=subprocess.DEVNULL)
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 scram-sha-256\n")
        self.start()

    def start(self):
        log = self.folder.parent / "postgres.log"
        settings = [f"port={self.port}", f"listen_addresses={self.address}", f"unix_socket_directories={self.folder}", "max_connections=200"]
        arguments = [self.programs / "postgres", "-D", self.folder / "data"] + [a for s in settings for a in ("-c", s)]
        with log.open("a") as out:
            self.process = subprocess.Popen(arguments, user=self.user, cwd="/", stdout=out, stderr=out)
        wait_for(self.address, self.port, self.process, log)

    def kill(self):
        # SIGQUIT is an immediate shutdown: connections break, and the write-ahead log is replayed at the next start.
        stop_process(self.process, signal.SIGQUIT)

    def url(self, name="slipway"):
        return f"postgres://slipway:{self.PASSWORD}@{self.address}:{self.port}/{name}"

    def create(self, name):
        run = [self.programs / "psql", "-h", self.address, "-p", str(self.port), "-U", "slipway", "-d", "postgres", "-qc"]
        subprocess.run(run + [f'CREATE DATABASE "{name}"'], check=True, cwd="/", env=os.environ | {"PGPASSWORD": self.PASSWORD})
        return self.url(name)

    def stop(self):
        stop_process(self.process, signal.SIGINT)


class Bucket:
    """An S3 service with one bucket, which optionally keeps all versions of its objects."""

    ACCESS, SECRET = "test-access", "test-secret-of-no-value"
    PROGRAM = CACHE / f"versitygw-{VERSITYGW}" / "versitygw"

    def __init__(self, folder, address, versions=False):
        program = self.PROGRAM
        if not program.exists():
            if not shutil.which("go"):
                sys.exit("Go is missing, which builds the S3 service; `make go` installs it")
            print(f"building the S3 service versitygw {VERSITYGW} into {program.parent}", file=sys.stderr)
            module = f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW}"
            subprocess.run(["go", "install", module], check=True, env=os.environ | {"GOBIN": str(program.parent), "GOFLAGS": "-mod=mod"})
        self.folder, self.address, self.port = folder, address, free_port(address)
        (folder / "slipway").mkdir(parents=True)
        (folder.parent / "attributes").mkdir()
        log = folder.parent / "s3.log"
        arguments = [program, "--port", f"{address}:{self.port}", "--access", self.ACCESS, "--secret", self.SECRET]
        # Store attributes in separate files, because the file system may not support extended attributes.
        arguments += ["posix", "--sidecar", folder.parent / "attributes"]
        if versions:
            (folder.parent / "versions").mkdir()
            arguments += ["--versioning-dir", folder.parent / "versions"]
        with log.open("w") as out:
            self.process = subprocess.Popen([*arguments, folder], stdout=out, stderr=out)
        wait_for(address, self.port, self.process, log)
        if versions:
            self.put("/slipway", "versioning=", b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")

    def put(self, path, query, body):
        """Sends a signed request (AWS Signature Version 4)."""
        time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"{self.address}:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": time}
        names = ";".join(headers)
        canonical = "\n".join(["PUT", path, query, *(f"{name}:{value}" for name, value in headers.items()), "", names, digest])
        scope = [time[:8], "us-east-1", "s3", "aws4_request"]
        key = f"AWS4{self.SECRET}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        text = "\n".join(["AWS4-HMAC-SHA256", time, "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()])
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.ACCESS}/{'/'.join(scope)}, SignedHeaders={names}, "
                                    f"Signature={signature}")
        request = urllib.request.Request(f"http://{self.address}:{self.port}{path}?{query}", body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def environment(self):
        return {
            "AWS_ACCESS_KEY_ID": self.ACCESS,
            "AWS_SECRET_ACCESS_KEY": self.SECRET,
            "AWS_ENDPOINT_URL": f"http://{self.address}:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def stop(self):
        stop_process(self.process)


@contextlib.contextmanager
def services(address="127.0.0.1"):
    """Runs both services, in a folder that is removed afterwards."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-services-"))
    folder.chmod(0o755)
    started = []
    try:
        postgres = Postgres(folder / "postgres", address)
        started.append(postgres)
        bucket = Bucket(folder / "s3", address)
        started.append(bucket)
        yield postgres, bucket
    finally:
        with protected():
            for service in reversed(started):
                service.stop()
            shutil.rmtree(folder, ignore_errors=True)


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    with services() as (postgres, bucket):
        variables = {
            "SLIPWAY_TEST_DATABASE": postgres.create("slipway"),
            "SLIPWAY_TEST_OBJECTS": "s3://slipway",
            # Tests without a service must fail instead of being skipped.
            "SLIPWAY_TEST_SERVICES": "required",
            **bucket.environment(),
        }
        return subprocess.run(sys.argv[1:], env=os.environ | variables).returncode


if __name__ == "__main__":
    # Exit through `finally` blocks on SIGTERM, so that the services are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
