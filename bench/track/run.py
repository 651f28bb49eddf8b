"""Benchmarks MLflow's tracking server and slipway under the same load on this machine.

    python run.py --slipway target/release/slipway [--seconds 5] [--postgres]

With --postgres both store their metadata in the same PostgreSQL, in separate databases, and only requests are measured.
`wrk` (Debian package) sends writes with 1, 8 and 16 connections. MLflow runs with its defaults (4 workers,
SQLite). For the search and history measurements its database is filled by SQL, since its API would take hours;
slipway is filled through its API. Every figure is printed with the ratio.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / folder) for folder in ("conformance", "testkit")]
from lib import Slipway, wrk
from services import services

API = "/api/2.0/mlflow"
# The header with slipway's token; `mlflow server` requires none and ignores it.
CREDENTIALS = {}


def post_raw(url, path, body):
    request = urllib.request.Request(url + API + path, json.dumps(body).encode(), {"content-type": "application/json", **CREDENTIALS})
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read()


def post(url, path, body):
    return json.loads(post_raw(url, path, body))


def get(url, path):
    with urllib.request.urlopen(urllib.request.Request(url + API + path, headers=CREDENTIALS), timeout=300) as response:
        return response.read()


class Mlflow:
    name = "mlflow"

    def __init__(self, folder, database=None):
        self.folder, self.options = folder, []
        if database:
            self.options = ["--backend-store-uri", database.replace("postgres://", "postgresql+psycopg2://")]

    def start(self):
        import socket

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        started = time.perf_counter()
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "1"}
        command = [os.path.join(os.path.dirname(sys.executable), "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), *self.options]
        log = open(os.path.join(self.folder, "mlflow.log"), "a")
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment, start_new_session=True)
        while True:
            try:
                urllib.request.urlopen(self.url + "/health", timeout=1).close()
                return time.perf_counter() - started
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - started > 180:
                    raise SystemExit("mlflow did not start")
                time.sleep(0.02)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        # Workers of MLflow may survive their parent.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def memory_mb(self):
        """Proportional set size of all its processes, in megabytes (10^6 bytes)."""
        total = 0
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(path.name)) == self.process.pid:
                    total += int(re.search(r"^Pss:\s+(\d+)", (path / "smaps_rollup").read_text(), re.M).group(1))
            except (OSError, AttributeError):
                pass
        return total / 1000

    def fill(self, experiment, count):
        db = sqlite3.connect(os.path.join(self.folder, "mlflow.db"), timeout=60)
        runs, params, metrics, latest, tags = [], [], [], [], []
        for i, run in enumerate(generate_runs(count)):
            id = f"{experiment}{i:031x}"[-32:]
            runs.append((id, f"run-{i}", "UNKNOWN", "", "", "u", "FINISHED", i, i + 1, "", "active", f"mlflow-artifacts:/{experiment}/{id}/artifacts", experiment))
            params += [(k, v, id) for k, v in run["params"]]
            latest += [(k, v, 1, 0, 0, id) for k, v in run["metrics"]]
            metrics += [(k, v, 1, id, 0, 0) for k, v in run["metrics"]]
            tags += [(k, v, id) for k, v in run["tags"]]
        with db:
            db.executemany("INSERT INTO runs (run_uuid,name,source_type,source_name,entry_point_name,user_id,status,start_time,end_time,source_version,lifecycle_stage,artifact_uri,experiment_id) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", runs)
            db.executemany("INSERT INTO params (key,value,run_uuid) VALUES (?,?,?)", params)
            db.executemany("INSERT INTO metrics (key,value,timestamp,run_uuid,step,is_nan) VALUES (?,?,?,?,?,?)", metrics)
            db.executemany("INSERT INTO latest_metrics (key,value,timestamp,step,is_nan,run_uuid) VALUES (?,?,?,?,?,?)", latest)
            db.executemany("INSERT INTO tags (key,value,run_uuid) VALUES (?,?,?)", tags)
        db.close()

    def fill_history(self, run, points):
        db = sqlite3.connect(os.path.join(self.folder, "mlflow.db"), timeout=60)
        with db:
            db.executemany("INSERT INTO metrics (key,value,timestamp,run_uuid,step,is_nan) VALUES ('h',?,?,?,?,0)", ((i / 7, i, run, i) for i in range(points)))
        db.close()

    def fill_mixed_history(self, run, points):
        db = sqlite3.connect(os.path.join(self.folder, "mlflow.db"), timeout=60)
        with db:
            for metrics in mixed_points(points):
                db.executemany("INSERT INTO metrics (key,value,timestamp,run_uuid,step,is_nan) VALUES (?,?,?,?,?,0)", ((m["key"], m["value"], m["timestamp"], run, m["step"]) for m in metrics))
        db.close()


class Ours:
    name = "slipway"

    def __init__(self, binary, database=None):
        self.server = Slipway(binary, environment={"SLIPWAY_DATABASE": database} if database else {})

    def start(self):
        seconds = self.server.start()
        self.url = self.server.url
        CREDENTIALS.update(self.server.authorization)
        return seconds

    def stop(self):
        self.server.stop()

    def memory_mb(self):
        return self.server.memory_mb()

    def fill(self, experiment, count):
        for i, run in enumerate(generate_runs(count)):
            id = post(self.url, "/runs/create", {"experiment_id": experiment, "start_time": i, "tags": [{"key": k, "value": v} for k, v in run["tags"]]})["run"]["info"]["run_id"]
            post(self.url, "/runs/log-batch", {
                "run_id": id, "params": [{"key": k, "value": v} for k, v in run["params"]],
                "metrics": [{"key": k, "value": v, "timestamp": 1} for k, v in run["metrics"]],
            })

    def fill_history(self, run, points):
        for start in range(0, points, 1000):
            post(self.url, "/runs/log-batch", {"run_id": run, "metrics": [{"key": "h", "value": i / 7, "timestamp": i, "step": i} for i in range(start, start + 1000)]})

    def fill_mixed_history(self, run, points):
        for metrics in mixed_points(points):
            post(self.url, "/runs/log-batch", {"run_id": run, "metrics": metrics})


def mixed_points(points):
    """Yields requests of 1,000 points each, `points` in total; 1,000 points belong to the metric `rare`."""
    requests = points // 1000
    for i in range(requests):
        # Distributes the points of `rare` evenly over all requests.
        rare = (i + 1) * 1000 // requests - i * 1000 // requests
        point = {"value": i / 7, "timestamp": i}
        yield [{"key": "rare", "step": i * 1000 + k, **point} for k in range(rare)] + [{"key": f"m{k}", "step": i, **point} for k in range(1000 - rare)]


def generate_runs(count):
    """Generates the same runs at every call, with 10 parameters, 10 metrics and 5 tags each."""
    for i in range(count):
        yield {
            "params": [(f"p{k}", str((i * (k + 3)) % 20)) for k in range(10)],
            "metrics": [(f"m{k}", ((i * 7919 + k * 104729) % 10007) / 10007) for k in range(10)],
            "tags": [("mlflow.runName", f"run-{i}")] + [(f"t{k}", str(i % (k + 2))) for k in range(4)],
        }


def median_ms(function, times):
    milliseconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        milliseconds.append((time.perf_counter() - started) * 1000)
    return sorted(milliseconds)[len(milliseconds) // 2]


def curl(*arguments):
    header = [word for name, value in CREDENTIALS.items() for word in ("--header", f"{name}: {value}")]
    started = time.perf_counter()
    subprocess.run(["curl", "--silent", "--show-error", "--fail", *header, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(system, seconds, sizes, points, times, folder, results):
    def note(what, value, unit, better):
        results.setdefault(what, {"unit": unit, "better": better})[system.name] = value
        print(f"  {system.name:8} {what}: {value:,.4g} {unit}", file=sys.stderr, flush=True)

    system.start()
    system.stop()
    note("start on an existing home", system.start(), "s", "less")
    time.sleep(3)
    note("memory idle", system.memory_mb(), "MB", "less")
    experiment = post(system.url, "/experiments/create", {"name": "bench"})["experiment_id"]
    new_run = lambda: post(system.url, "/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    run = new_run()
    batch = {"run_id": run, "metrics": [{"key": f"m{i}", "value": i / 3, "timestamp": 1700000000000 + i, "step": i} for i in range(100)]}
    metric = {"run_id": run, "key": "loss", "value": 0.5, "timestamp": 1700000000000, "step": 1}
    for connections in (1, 8, 16):
        for what, method, path, body in [
            ("create-run", "POST", "/runs/create", {"experiment_id": experiment, "start_time": 1, "tags": [{"key": "mlflow.user", "value": "u"}]}),
            ("log-metric", "POST", "/runs/log-metric", metric),
            ("log-batch of 100", "POST", "/runs/log-batch", batch),
            ("get-run", "GET", f"/runs/get?run_id={run}", None),
        ]:
            note(f"{what}, {connections} connections", wrk(system.url + API + path, method, body, connections, seconds, CREDENTIALS)["rate"], "requests/s", "more")
    note("memory after the writes", system.memory_mb(), "MB", "less")
    if not folder:
        system.stop()
        return

    for size in sizes:
        searched = post(system.url, "/experiments/create", {"name": f"search-{size}"})["experiment_id"]
        system.fill(searched, size)
        query = {"experiment_ids": [searched], "filter": "metrics.m1 > 0.5 AND params.p2 = '10'", "order_by": ["metrics.m3 DESC"], "max_results": 100}
        found = post(system.url, "/runs/search", query)["runs"]
        assert len(found) == min(100, size // 40) or len(found) > 50, len(found)
        note(f"search {size:,} runs, metric and param filter, by metric, p50", median_ms(lambda: post_raw(system.url, "/runs/search", query), times), "ms", "less")
    run = new_run()
    system.fill_history(run, 100_000)
    path = f"/metrics/get-history?run_id={run}&metric_key=h"
    assert len(json.loads(get(system.url, path))["metrics"]) == 100_000
    note("history of 100,000 points, p50", median_ms(lambda: get(system.url, path), times), "ms", "less")
    if points:
        run = new_run()
        system.fill_mixed_history(run, points)
        path = f"/metrics/get-history?run_id={run}&metric_key=rare"
        assert len(json.loads(get(system.url, path))["metrics"]) == 1000
        note(f"history of 1,000 points in a run of {points:,}, p50", median_ms(lambda: get(system.url, path), times), "ms", "less")

    big = os.path.join(folder, "big.bin")
    target = f"{system.url}/api/2.0/mlflow-artifacts/artifacts/bench/big.bin"
    note("artifact of 512 MiB, up", min(curl("-T", big, target) for _ in range(3)), "s", "less")
    note("artifact of 512 MiB, down", min(curl("-o", big + ".back", target) for _ in range(3)), "s", "less")
    assert os.path.getsize(big + ".back") == os.path.getsize(big)
    system.stop()


def table(results):
    print(f"\n{'':66} {'mlflow':>12} {'slipway':>12} {'ratio':>8}")
    for what, r in results.items():
        peer, ours = r.get("mlflow"), r.get("slipway")
        ratio = f"{(ours / peer if r['better'] == 'more' else peer / ours):.0f}x" if peer and ours else "-"
        show = lambda v: "-" if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.3g}"
        print(f"{what + ' (' + r['unit'] + ')':66} {show(peer):>12} {show(ours):>12} {ratio:>8}")


def on_postgres(args):
    """Measures requests with metadata in PostgreSQL."""
    results = {}
    with tempfile.TemporaryDirectory() as folder, services() as (postgres, _):
        for system in [Ours(args.slipway, postgres.create("ours")), Mlflow(folder, postgres.create("mlflow"))]:
            measure(system, args.seconds, [], 0, 0, None, results)
    table(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--points", type=int, default=10_000_000, help="points of the run in which the history of a single metric is read")
    parser.add_argument("--times", type=int, default=7, help="repetitions of each latency measurement")
    parser.add_argument("--only", choices=["slipway", "mlflow"])
    parser.add_argument("--json")
    parser.add_argument("--postgres", action="store_true")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is missing: apt install wrk")
    if args.postgres:
        return on_postgres(args)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "big.bin"), "wb") as f:
            for _ in range(512):
                f.write(os.urandom(1 << 20))
        copies, synced = [], []
        big, copy = os.path.join(folder, "big.bin"), os.path.join(folder, "copy.bin")
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(["cp", big, copy], check=True)
            copies.append(time.perf_counter() - started)
            # An acknowledged upload is on disk, so a synced copy is the fairer upper bound for an upload.
            subprocess.run(["sync", copy], check=True)
            synced.append(time.perf_counter() - started)
        for system in ([] if args.only == "mlflow" else [Ours(args.slipway)]) + ([] if args.only == "slipway" else [Mlflow(folder)]):
            measure(system, args.seconds, args.sizes, args.points, args.times if system.name == "slipway" else 3, folder, results)
    table(results)
    print(f"{'cp of the same 512 MiB (s)':66} {min(copies):>25.3g}")
    print(f"{'cp and sync of the same 512 MiB (s)':66} {min(synced):>25.3g}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
