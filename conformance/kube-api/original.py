"""Runs the original: upstream's etcd, kube-apiserver and, for garbage collection and namespaces, kube-controller-manager, on free ports of the
loopback interface and without nodes. The programs are those that the lab builds."""

import http.client
import json
import pathlib
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import free_port
from suite import StopWaiting, eventually, protected


def kubeconfig(server, token):
    """A kubeconfig for one server and token; the certificate of the server is not verified."""
    return json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "original",
        "clusters": [{"name": "original", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "original", "context": {"cluster": "original", "user": "admin"}}],
    })


class Original:
    """A running API server with its store; use it as a context manager. Has the same interface as `lib.Slipway`: `url`, `token`, `call`."""

    def __init__(self, programs, controllers=("garbage-collector-controller", "namespace-controller"), durable=False):
        self.programs, self.controllers, self.durable = pathlib.Path(programs), controllers, durable
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kube-api-original-"))
        self.token = secrets.token_hex(16)
        self.processes = {}

    def spawn(self, name, *arguments):
        log = open(self.folder / f"{name}.log", "w")
        self.processes[name] = subprocess.Popen([self.programs / name, *arguments], stdout=log, stderr=log, cwd=self.folder, start_new_session=True)

    def wait(self, name, ready):
        """Waits until `ready` is true, and fails with the end of the log if the process exits."""
        def attempt():
            if self.processes[name].poll() is not None:
                raise StopWaiting(f"{name} exited:\n" + "".join((self.folder / f"{name}.log").read_text().splitlines(True)[-20:]))
            return ready()
        eventually(attempt, timeout=120, message=f"{name} is ready")

    def __enter__(self):
        started = time.perf_counter()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_start = time.perf_counter() - started
        return self

    def start(self):
        clients, peers, secure = free_port(), free_port(), free_port()
        etcd, peer = f"http://127.0.0.1:{clients}", f"http://127.0.0.1:{peers}"
        self.spawn("etcd", "--data-dir", "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peer,
                   "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", *([] if self.durable else ["--unsafe-no-fsync"]))
        subprocess.run(["openssl", "genrsa", "-out", "accounts.key", "2048"], cwd=self.folder, check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        self.url = f"https://127.0.0.1:{secure}"
        self.spawn("kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={secure}", "--cert-dir=certificates",
                   "--token-auth-file=tokens.csv", "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
                   "--service-account-key-file=accounts.key", "--service-account-signing-key-file=accounts.key",
                   "--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount")
        self.tls = ssl._create_unverified_context()
        self.wait("kube-apiserver", lambda: self.request("GET", "/readyz")[0] == 200)
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubeconfig.write_text(kubeconfig(self.url, self.token))
        if self.controllers:
            self.spawn("kube-controller-manager", "--kubeconfig=kubeconfig", f"--controllers={','.join(self.controllers)}", "--leader-elect=false",
                       f"--secure-port={free_port()}", "--bind-address=127.0.0.1", "--service-account-private-key-file=accounts.key")
        self.wait("kube-apiserver", lambda: self.request("GET", "/api/v1/namespaces/default")[0] == 200)

    def __exit__(self, *_):
        with protected():
            for process in self.processes.values():
                process.kill()
            for process in self.processes.values():
                process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def authorization(self):
        return {"authorization": f"Bearer {self.token}"}

    def connection(self, timeout=60):
        """A new connection to the API server."""
        return http.client.HTTPSConnection(self.url.removeprefix("https://"), timeout=timeout, context=self.tls)

    def request(self, method, path, body=None, headers=None):
        """Sends a request and returns status and body."""
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json", **self.authorization, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.tls) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def call(self, method, path, body=None, headers=None):
        """Sends a request and returns status and JSON."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        status, text = self.request(method, path, data, headers)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode(errors="replace")
