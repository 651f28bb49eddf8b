"""Runs every scenario against `mlflow server` and against slipway, and compares the results.

    python compare.py --slipway target/release/slipway [--only NAME ...] [--out FILE]

Under `testkit/services.py` slipway runs twice: with SQLite and files, and with PostgreSQL and S3 (`shared`).

Ids, times and random names are masked. Known differences are listed in DIFFERENCES, each with its reason; they are
reported, and do not count as equal. The exit code is 0 when all other scenarios are equal.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lib import free_port

# Scenarios with a known difference, and its reason.
DIFFERENCES = {
    "http_malformed_tags": "MLflow returns 200 and creates the run without the tags; slipway rejects malformed tags.",
}

# Rewrites that remove differences without meaning, each with its reason.
REWRITES = [
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>", "random ids"),
    (re.compile(r"m-<id>"), "<model>", "random ids"),
    (re.compile(r"\b1[789]\d{11}\b"), "<time>", "times"),
    (re.compile(r"\b[a-z]+-[a-z]+-\d{1,3}\b"), "<name>", "random run names"),
    (re.compile(r"(already exists\.) Error: .*", re.S), r"\1", "MLflow quotes its SQL statement"),
    (re.compile(r"\(sqlite3\.\w+\).*", re.S), "<sql>", "MLflow quotes its SQL statement"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "<server>", "ports"),
    (re.compile(r"\bport=\d+"), "port=<port>", "ports"),
    (re.compile(r"(?:API request to endpoint \S+ failed with error code \d+ != 200\. Response body: ')(.*)'$", re.S), r"\1", "the client's wrapping"),
    (re.compile(r"'\{(.*?)\}'?"), lambda m: "{" + ", ".join(sorted(m.group(1).split(", "))) + "}", "Python sets have no order"),
    (re.compile(r"\{((?:'[^']*'(?:, )?)+)\}"), lambda m: "{" + ", ".join(sorted(m.group(1).split(", "))) + "}", "Python sets have no order"),
]


# Some scenarios expect a 5xx, on which the client would retry; so retries are disabled for both servers.
CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "1", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def mask(value):
    if isinstance(value, dict):
        return {mask(k): mask(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool) and value > 1_700_000_000_000:
        return "<time>"
    if isinstance(value, str):
        for pattern, replacement, _ in REWRITES:
            value = pattern.sub(replacement, value)
    return value


def sort_lists(value):
    """Sorts lists of objects with unique keys, because neither server guarantees their order."""
    if isinstance(value, dict):
        return {k: sort_lists(v) for k, v in value.items()}
    if isinstance(value, list):
        items = [sort_lists(v) for v in value]
        if items and all(isinstance(i, dict) and "key" in i for i in items) and len({i["key"] for i in items}) == len(items):
            items.sort(key=lambda i: i["key"])
        return items
    return value


def wait(url, process, seconds=120):
    deadline = time.time() + seconds
    while time.time() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} exited with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not respond")


def start(kind, folder, slipway):
    port = free_port()
    log = open(os.path.join(folder, f"{kind}.log"), "w")
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "1"}
    if kind == "shared":
        environment |= {"SLIPWAY_DATABASE": os.environ["SLIPWAY_TEST_DATABASE"]}
        if "SLIPWAY_TEST_OBJECTS" in os.environ:
            environment |= {"SLIPWAY_OBJECTS": os.environ["SLIPWAY_TEST_OBJECTS"]}
    if kind in ("slipway", "shared"):
        command = [slipway, "up", "--home", os.path.join(folder, "home"), "--listen", f"127.0.0.1:{port}",
                   "--inference-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    else:
        command = [os.path.join(os.path.dirname(sys.executable), "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    wait(uri + "/health", process)
    token = pathlib.Path(folder, "home/token").read_text().strip() if kind in ("slipway", "shared") else None
    return uri, token, process


def run_all(uri, only):
    """Runs the scenarios. Called in a separate process for each server, so that global state of the client is not shared."""
    import warnings

    warnings.filterwarnings("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    import mlflow
    from scenarios import SCENARIOS, World

    mlflow.set_tracking_uri(uri)
    results = {}
    for name, function in SCENARIOS.items():
        if only and name not in only:
            continue
        started = time.time()
        try:
            result = function(World(uri, name.replace("_", "-")))
        except Exception:
            result = {"crashed": traceback.format_exc().splitlines()[-1], "where": traceback.format_exc().splitlines()[-3].strip()}
        finally:
            while mlflow.active_run():
                mlflow.end_run()
        if os.environ.get("VERBOSE"):
            print(f"{time.time() - started:7.2f} s {name}", file=sys.stderr, flush=True)
        results[name] = {"result": json.loads(json.dumps(result, default=str)), "seconds": time.time() - started}
    return results


def first_difference(a, b, path=""):
    if type(a) is not type(b):
        return f"{path}: {a!r} != {b!r}"
    if isinstance(a, dict):
        for key in sorted(set(a) | set(b)):
            if key not in a or key not in b:
                return f"{path}.{key}: only in {'mlflow' if key in a else 'slipway'}: {(a.get(key) or b.get(key))!r}"
            if a[key] != b[key]:
                return first_difference(a[key], b[key], f"{path}.{key}")
    if isinstance(a, list):
        if len(a) != len(b):
            return f"{path}: {len(a)} != {len(b)} items: {a!r} != {b!r}"
        for i, (x, y) in enumerate(zip(a, b)):
            if x != y:
                return first_difference(x, y, f"{path}[{i}]")
    return f"{path}: {a!r} != {b!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        results = run_all(args.child, args.only)
        with open(args.out, "w") as f:
            json.dump(results, f)
        return
    slipway = os.path.abspath(args.slipway)
    folder = tempfile.mkdtemp(prefix="slipway-conformance-")
    processes, results = [], {}
    try:
        servers = {}
        for kind in ("mlflow", "slipway", *(["shared"] if "SLIPWAY_TEST_DATABASE" in os.environ else [])):
            os.makedirs(os.path.join(folder, kind))
            uri, token, process = start(kind, os.path.join(folder, kind), slipway)
            servers[kind] = uri, {"MLFLOW_TRACKING_TOKEN": token} if token else {}
            processes.append(process)
        for kind, (uri, credentials) in servers.items():
            file = os.path.join(folder, f"{kind}.json")
            # The client prints to stdout, so the results are passed in a file.
            done = subprocess.run([sys.executable, __file__, "--child", uri, "--out", file, *(["--only", *args.only] if args.only else [])],
                                 stdout=subprocess.DEVNULL, env={**os.environ, **CLIENT, **credentials})
            if done.returncode:
                raise SystemExit(f"the scenarios could not be run against {kind}")
            with open(file) as f:
                results[kind] = json.load(f)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            # Workers of MLflow may survive their parent.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if os.environ.get("KEEP"):
            print("kept", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    passed, failed, known = [], [], []
    for name, ours in [(name, kind) for name in results["mlflow"] for kind in results if kind != "mlflow"]:
        a, b = (sort_lists(mask(results[kind][name]["result"])) for kind in ("mlflow", ours))
        name = name if ours == "slipway" else f"{name} ({ours})"
        if isinstance(a, dict) and "crashed" in a:
            failed.append(name)
            print(f"FAIL {name}: the scenario itself crashes against mlflow: {a}")
        elif a == b:
            passed.append(name)
        elif name.split()[0] in DIFFERENCES:
            known.append(name)
            print(f"DIFF {name}: {DIFFERENCES[name.split()[0]]}")
        else:
            failed.append(name)
            print(f"FAIL {name}{first_difference(a, b)[:1500]}")
    seconds = {kind: sum(s["seconds"] for s in results[kind].values()) for kind in results}
    print(f"mlflow conformance: {len(passed)} of {len(passed) + len(failed) + len(known)} scenarios equal, "
          f"{len(known)} known differences, {len(failed)} failed "
          f"({', '.join(f'{kind} {s:.0f} s' for kind, s in seconds.items())})")
    if args.out:
        with open(args.out, "w") as f:
            json.dump({"passed": passed, "known": known, "failed": failed, "seconds": seconds}, f, indent=1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
