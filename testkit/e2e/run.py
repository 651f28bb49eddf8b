#!/usr/bin/env python3
"""End-to-end tests of the binary, with nothing but Python's standard library.

    testkit/e2e/run.py target/release/slipway [NAME ...]
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
from lib import Slipway

BINARY = sys.argv[1] if len(sys.argv) > 1 else "target/release/slipway"
TESTS = {}
ROUNDS = int(os.environ.get("KILL_ROUNDS", "50"))


def test(function):
    TESTS[function.__name__] = function
    return function


def log_metric(server, run, step):
    body = {"run_id": run, "key": "m", "value": step, "timestamp": step, "step": step}
    return server.call("POST", "/api/2.0/mlflow/runs/log-metric", body)[0] == 200


@test
def nothing_acknowledged_is_lost_by_kill_9():
    """Clients log without pause; the server is killed at random times. All that was acknowledged is there afterwards."""
    with Slipway(BINARY) as server:
        _, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
        run = made["run"]["info"]["run_id"]
        acknowledged = {"m": set(), "runs": set(), "files": set()}
        next_step = 0
        for round in range(ROUNDS):
            stop = threading.Event()

            def client(kind, start):
                step = start
                while not stop.is_set():
                    try:
                        if kind == "m":
                            ok, token = log_metric(server, run, step), step
                        elif kind == "runs":
                            status, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "r"})
                            ok, token = status == 200, made["run"]["info"]["run_id"] if status == 200 else None
                        else:
                            token = f"{round}-{step}"
                            ok = server.call("PUT", f"/api/2.0/mlflow-artifacts/artifacts/kill/{token}", token.encode() * 50)[0] == 200
                        if ok:
                            acknowledged[kind].add(token)
                    except (OSError, ValueError, KeyError):
                        return
                    step += 1

            threads = [threading.Thread(target=client, args=(kind, next_step)) for kind in acknowledged]
            [t.start() for t in threads]
            time.sleep(random.uniform(0.02, 0.25))
            server.stop(signal.SIGKILL)
            stop.set()
            [t.join() for t in threads]
            next_step += 100_000
            server.start()
        _, history = server.call("GET", f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")
        kept = {m["step"] for m in history["metrics"]}
        assert acknowledged["m"] <= kept, f"{len(acknowledged['m'] - kept)} of {len(acknowledged['m'])} metrics are lost"
        for id in acknowledged["runs"]:
            assert server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={id}")[0] == 200, f"run {id} is lost"
        for name in acknowledged["files"]:
            status, text = server.call("GET", f"/api/2.0/mlflow-artifacts/artifacts/kill/{name}")
            assert (status, text) == (200, name * 50), f"file {name} is lost"
        assert server.call("GET", "/api/v1/integrity")[1] == {"result": "ok"}
        counts = {k: len(v) for k, v in acknowledged.items()}
        assert all(n > ROUNDS for n in counts.values()), counts
        print(f"     {ROUNDS} kills, acknowledged and kept: {counts}")


@test
def starts_quickly_idles_small_and_stops_cleanly():
    with Slipway(BINARY) as server:
        assert server.memory_mb() < 50, server.memory_mb()
        first = server.stop()
        again = min((server.start(), server.stop())[0] for _ in range(5))
        server.start()
        assert first == 0 and again < 0.3, again
        print(f"     start {again * 1000:.0f} ms, idle {server.memory_mb():.0f} MB")


@test
def a_request_in_flight_is_answered_before_the_stop():
    with Slipway(BINARY) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as s:
            body = b"x" * 100_000
            s.sendall(b"PUT /api/2.0/mlflow-artifacts/artifacts/slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n" + body[:50_000])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            s.sendall(body[50_000:])
            assert s.recv(100).startswith(b"HTTP/1.1 200"), "the upload was cut off"
        assert server.process.wait(15) == 0
        server.start()
        assert server.call("GET", "/api/2.0/mlflow-artifacts/artifacts/slow")[1] == "x" * 100_000


@test
def an_upload_that_breaks_off_leaves_nothing():
    with Slipway(BINARY) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b"PUT /api/2.0/mlflow-artifacts/artifacts/half HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nhalf")
        time.sleep(0.3)
        assert server.call("GET", "/api/2.0/mlflow-artifacts/artifacts/half")[0] == 404
        assert list((server.home / "objects/.part").iterdir()) == []


@test
def listening_beyond_loopback_needs_tokens():
    with Slipway(BINARY) as server:
        server.stop()
        refused = server.command("up", "--listen", "0.0.0.0:0", check=False)
        assert refused.returncode == 1 and "listen.unauthenticated" in refused.stderr and "--token-file" in refused.stderr, refused.stderr
        tokens = server.home / "tokens"
        tokens.write_text("short\n")
        assert "shorter than 16" in server.command("up", "--token-file", str(tokens), check=False).stderr
        tokens.write_text("# mine\n0123456789abcdef\n")
        server.options = ["--token-file", str(tokens)]
        server.start()
        search = ("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1})
        assert server.call(*search)[0] == 401
        assert server.call(*search, headers={"authorization": "Bearer 0123456789abcdeX"})[0] == 401
        assert server.call(*search, headers={"authorization": "Bearer 0123456789abcdef"})[0] == 200
        assert server.call("GET", "/v2/models/x", base=server.inference)[0] == 401
        assert server.call("GET", "/healthz")[0] == 200 and server.call("GET", "/metrics")[0] == 401
        server.log.seek(0)
        assert "0123456789abcdef" not in server.log.read(), "a token stands in the log"
        assert server.command("status", check=False).returncode == 4
        server.environment["SLIPWAY_TOKEN"] = "0123456789abcdef"
        assert server.command("status", check=False).returncode == 0


@test
def other_sites_change_nothing():
    with Slipway(BINARY) as server:
        evil = {"origin": "https://evil.example", "content-type": "text/plain"}
        manifest = b"apiVersion: slipway.dev/v1"
        assert server.call("POST", "/api/v1/deployments", manifest, headers=evil)[0] == 403
        assert server.call("POST", "/v2/repository/models/x/load", b"", base=server.inference, headers=evil)[0] == 403
        assert server.call("POST", "/api/v1/deployments", manifest, headers={"origin": server.url})[0] == 400


@test
def one_server_a_home():
    with Slipway(BINARY) as server:
        second = server.command("up", "--listen", "127.0.0.1:0", check=False)
        assert second.returncode == 1 and "home.locked" in second.stderr and str(server.process.pid) in second.stderr, second.stderr


@test
def a_taken_port_is_named():
    with Slipway(BINARY) as server, Slipway(BINARY) as other:
        other.stop()
        port = server.url.split(":")[-1]
        refused = other.command("up", "--listen", f"127.0.0.1:{port}", check=False)
        assert refused.returncode == 1 and "listen.in_use" in refused.stderr and port in refused.stderr, refused.stderr


@test
def commands_work_with_and_without_a_server():
    with Slipway(BINARY) as server:
        _, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "cli-run"})
        run = made["run"]["info"]["run_id"]
        server.call("POST", "/api/2.0/mlflow/runs/log-parameter", {"run_id": run, "key": "p", "value": "a,\"b\""})
        with_server = server.command("run", "ls", "-o", "json").stdout
        assert json.loads(with_server)[0]["info"]["run_name"] == "cli-run"
        assert server.command("run", "ls", "-o", "name").stdout.strip() == run
        server.stop()
        assert json.loads(server.command("run", "ls", "-o", "json").stdout) == json.loads(with_server)
        assert "cli-run" in server.command("run", "show", run).stdout
        assert '"a,""b"""' in server.command("run", "export").stdout
        missing = server.command("run", "show", "0" * 32, check=False)
        assert missing.returncode == 1 and "not found" in missing.stderr
        server.command("model", "register", "m", "--run", run)
        server.command("model", "promote", "m", "1", "champion")
        assert "champion=1" in server.command("model", "ls").stdout


@test
def exit_codes_and_help():
    run = lambda *a, **k: subprocess.run([BINARY, *a], capture_output=True, text=True, **k)
    assert run("nothing").returncode == 2
    assert run("status", "--server", "http://127.0.0.1:9").returncode == 5
    assert "slipway up" in run("status", "--server", "http://127.0.0.1:9").stderr
    assert run("explain", "store.sql").returncode == 0 and run("explain", "no.code").returncode == 2
    for command in ["up", "down", "status", "doctor", "demo", "show", "explain", "completions", "man"]:
        assert "Example:" in run(command, "--help").stdout, command
    for noun, verbs in {"run": ["ls", "show", "compare", "export"], "model": ["ls", "show", "register", "promote"],
                        "deploy": ["apply", "ls", "show", "split", "rollback", "test", "rm"], "config": ["show"]}.items():
        for verb in verbs:
            assert "Example:" in run(noun, verb, "--help").stdout, (noun, verb)
    assert "complete" in run("completions", "bash").stdout


@test
def doctor_finds_what_is_wrong():
    with Slipway(BINARY) as server:
        well = server.command("doctor", "-o", "json", check=False)
        assert well.returncode == 0, well.stdout
        server.stop()
        server.environment["SLIPWAY_RUNTIME"] = "ort"
        server.environment["SLIPWAY_ONNXRUNTIME"] = "/no/such/lib.so"
        sick = server.command("doctor", check=False)
        assert sick.returncode == 3 and "WRONG" in sick.stdout, sick.stdout


@test
def config_origin_is_shown():
    with Slipway(BINARY) as server:
        server.environment["SLIPWAY_LISTEN"] = "127.0.0.1:1"
        shown = server.command("config", "show", "--origin").stdout
        assert "$SLIPWAY_LISTEN" in shown and "flag" in shown and "default" in shown, shown


@test
def bad_requests_never_crash_the_server():
    with Slipway(BINARY) as server:
        generator = random.Random(7)
        paths = ["runs/create", "runs/log-batch", "runs/search", "experiments/search", "model-versions/create", "runs/log-inputs", "logged-models/search"]
        pieces = [None, True, -1, 1e308, "x", "\u0000", [], {}, [[]], {"key": None}, "9" * 400, 2**70, ["a", 1], {"a": {"b": []}}]
        keys = ["run_id", "experiment_id", "experiment_ids", "filter", "order_by", "metrics", "params", "tags", "max_results", "page_token", "name", "source", "datasets", "models"]
        for _ in range(600):
            body = {k: generator.choice(pieces) for k in generator.sample(keys, 5)}
            status, answer = server.call("POST", f"/api/2.0/mlflow/{generator.choice(paths)}", body)
            assert status < 500 or status == 501, (status, body, answer)
        for path in ["/api/2.0/mlflow/runs/get?run_id=%00%ff", "/api/2.0/mlflow-artifacts/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
                     "/api/2.0/mlflow-artifacts/artifacts?path=../..", "/get-artifact?run_id=x&path=../../etc/passwd", "/api/v1/deployments/%ff/infer"]:
            status, answer = server.call("GET", path)
            assert 400 <= status < 500, (path, status, answer)
        assert server.call("GET", "/readyz")[0] == 200


@test
def later_endpoints_say_not_implemented():
    with Slipway(BINARY) as server:
        for path in ["/api/3.0/mlflow/traces/search", "/api/2.0/mlflow/webhooks", "/api/3.0/mlflow/scorers/list"]:
            status, answer = server.call("POST", path, {})
            assert status == 501 and answer["error_code"] == "NOT_IMPLEMENTED", (path, status, answer)


@test
def metrics_and_openapi():
    with Slipway(BINARY) as server:
        text = server.call("GET", "/metrics")[1]
        assert "slipway_http_requests_total{class=\"2xx\"}" in text and "process_resident_memory_bytes" in text
        assert server.call("GET", "/openapi.json")[1]["openapi"].startswith("3.1")


def main():
    wanted = sys.argv[2:]
    failed = 0
    for name, function in TESTS.items():
        if wanted and name not in wanted:
            continue
        started = time.time()
        try:
            function()
            print(f"ok   {name} ({time.time() - started:.1f} s)")
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}")
    print(f"end to end: {len(wanted) or len(TESTS)} tests, {failed} failed")
    sys.exit(1 if failed else 0)


main()
