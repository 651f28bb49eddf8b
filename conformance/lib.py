"""Shared by conformance scripts, benchmarks and end-to-end tests: starts slipway servers on free ports, and measures load and memory."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from suite import StopWaiting, eventually, protected


class Slipway:
    """A running server; use it as a context manager."""

    def __init__(self, binary, home=None, options=(), environment=None):
        self.binary = os.path.abspath(binary)
        self.folder = tempfile.TemporaryDirectory(prefix="slipway-test-")
        self.home = pathlib.Path(home or self.folder.name, "home")
        self.options = list(options)
        self.environment = {**os.environ, **(environment or {})}
        self.log = open(os.path.join(self.folder.name, "slipway.log"), "a+")
        self.process = None

    def start(self):
        """Starts the server and returns the seconds until it is ready."""
        (self.home / "server.json").unlink(missing_ok=True)
        listen = [f"--{port}=127.0.0.1:0" for port in ("listen", "inference-listen", "grpc-listen")]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [self.binary, "up", "--home", str(self.home), *listen, *self.options],
            stdout=self.log, stderr=self.log, env=self.environment, start_new_session=True,
        )

        def ready():
            if self.process.poll() is not None:
                self.log.seek(0)
                raise StopWaiting(f"slipway exited with {self.process.returncode}:\n{self.log.read()}")
            address = json.loads((self.home / "server.json").read_text())
            if address["pid"] != self.process.pid:
                return None
            self.url, self.inference, self.grpc = f"http://{address['control']}", f"http://{address['inference']}", address["grpc"]
            with urllib.request.urlopen(self.url + "/readyz", timeout=2):
                return time.perf_counter() - started

        # The interval is short because tests limit the returned time.
        return eventually(ready, timeout=30, interval=0.001, message="slipway is ready")

    @property
    def token(self):
        """The owner's token from the state folder, which permits everything; None for a server with `--no-auth`."""
        path = self.home / "token"
        return path.read_text().strip() if path.exists() else None

    @property
    def authorization(self):
        """The header that authenticates a request."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def stop(self, how=signal.SIGTERM):
        """Stops the server and returns its exit status."""
        if self.process is None:
            return None
        self.process.send_signal(how)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.process = None
        return status

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        with protected():
            if self.process is not None:
                self.stop()
            self.log.close()
            self.folder.cleanup()

    def command(self, *arguments, check=True, **options):
        """Runs a client command with this state folder."""
        done = subprocess.run([self.binary, "--home", str(self.home), *arguments], capture_output=True, text=True,
                              env=self.environment, **options)
        if check and done.returncode:
            raise RuntimeError(f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def call(self, method, path, body=None, base=None, headers=None):
        """Sends a request with the owner's token and returns status and JSON; `base` is the URL of the control plane by default."""
        headers = {**self.authorization, **(headers or {})}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request((base or self.url) + path, data, {"content-type": "application/json", **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text, status = response.read(), response.status
        except urllib.error.HTTPError as e:
            text, status = e.read(), e.code
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode(errors="replace")

    def memory_mb(self):
        return memory_mb(self.process.pid)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def memory_mb(pid):
    """Resident memory of a process in megabytes (10^6 bytes)."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_memory(pid):
    """Peak resident memory of a process, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def cpu_seconds(pid):
    """CPU time that a process has used so far, user and system."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(url, method, body, connections, seconds, headers=None):
    """Generates load from one thread. Returns `rate` per second, `count`, and `p50` and `p99` in microseconds.

    Exits if a response is not successful.
    """
    script = tempfile.NamedTemporaryFile("w", suffix=".lua", delete=False)
    script.write(f'wrk.method = "{method}"\n')
    if body is not None:
        script.write(f"wrk.body = [==[{json.dumps(body)}]==]\nwrk.headers['Content-Type'] = 'application/json'\n")
    for name, value in (headers or {}).items():
        script.write(f"wrk.headers['{name}'] = '{value}'\n")
    script.close()
    out = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s", script.name, url],
                         capture_output=True, text=True, check=True).stdout
    os.unlink(script.name)
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"{method} {url}: {out}")
    us = lambda text: float(re.sub(r"[a-z]+", "", text)) * {"us": 1, "ms": 1e3, "s": 1e6}[re.sub(r"[\d.]+", "", text)]
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
        "count": int(re.search(r"(\d+) requests in", out).group(1)),
        "p50": us(re.search(r"^\s+50%\s+(\S+)", out, re.M).group(1)), "p99": us(re.search(r"^\s+99%\s+(\S+)", out, re.M).group(1)),
    }
