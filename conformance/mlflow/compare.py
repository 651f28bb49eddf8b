"""Runs every scenario with the official client against slipway, and compares the results with those of `mlflow server`.

    python compare.py --slipway target/release/slipway [--live] [--only NAME ...] [--out FILE]

The results of `mlflow server` are recorded in `recorded/`; with `--live` it runs too, and its results are recorded anew.
Under `testkit/services.py` slipway runs twice: with SQLite and files, and with PostgreSQL and S3 (`shared`).

Known differences are listed in DIFFERENCES, each with its reason; they are reported, and do not count as equal. The exit code is 0
when all other scenarios are equal.
"""

import argparse
import contextlib
import inspect
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import urllib.request

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
from lib import free_port
from normalize import Normalizer
from recorded import Recordings, Stale, differences, normalized, pinned, require_installed

# Scenarios with a known difference, and its reason.
DIFFERENCES = {
    "http_malformed_tags": "MLflow returns 200 and creates the run without the tags; slipway rejects malformed tags.",
}

# Some scenarios expect a 5xx, on which the client would retry; so retries are disabled for both servers.
CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "1", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


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


def request_of(function):
    """The source of a scenario and of everything in its module that it uses: a recording is valid as long as this is unchanged."""
    texts = {"World": inspect.getsource(function.__globals__["World"])}

    def visit(code):
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                visit(constant)
        for name in code.co_names:
            value = function.__globals__.get(name)
            if name not in texts and getattr(value, "__module__", None) == function.__module__:
                texts[name] = inspect.getsource(value)
                if inspect.isfunction(value):
                    visit(value.__code__)

    visit(function.__code__)
    parameters = [cell.cell_contents for cell in function.__closure__ or ()]
    return [inspect.getsource(function), [p for p in parameters if isinstance(p, str)], texts]


def run_all(uri, only):
    """Runs the scenarios. Called in a separate process for each server, so that global state of the client is not shared."""
    import warnings

    warnings.filterwarnings("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    import mlflow
    from mlflow.entities import ViewType
    from scenarios import SCENARIOS, World

    mlflow.set_tracking_uri(uri)
    newest = lambda: max(int(e.experiment_id) for e in mlflow.search_experiments(view_type=ViewType.ALL))
    results, last = {}, 0  # A new server has experiment 0 alone.
    for name, function in SCENARIOS.items():
        if only and name not in only:
            continue
        started, first = time.time(), last
        try:
            result = function(World(uri, name.replace("_", "-")))
        except Exception:
            result = {"crashed": traceback.format_exc().splitlines()[-1], "where": traceback.format_exc().splitlines()[-3].strip()}
        finally:
            while mlflow.active_run():
                mlflow.end_run()
        seconds, last = time.time() - started, newest()
        if os.environ.get("VERBOSE"):
            print(f"{seconds:7.2f} s {name}", file=sys.stderr, flush=True)
        result = Normalizer(name, first, last)(json.loads(json.dumps(result, default=str)))
        results[name] = {"request": request_of(function), "result": result, "seconds": seconds}
    return results


def original_result(result):
    """The result of a scenario against the original, unless the scenario itself is broken."""
    if isinstance(result, dict) and "crashed" in result:
        raise Stale(f"the scenario itself crashes against mlflow: {result}")
    return result


def run_servers(kinds, slipway, only):
    """Starts the servers, runs the scenarios against each, and returns the results by server."""
    folder = tempfile.mkdtemp(prefix="slipway-conformance-")
    processes, children, results = [], {}, {}
    try:
        for kind in kinds:
            os.makedirs(os.path.join(folder, kind))
            uri, token, process = start(kind, os.path.join(folder, kind), slipway)
            processes.append(process)
            # The client prints to stdout, so the results are passed in a file.
            command = [sys.executable, __file__, "--child", uri, "--out", os.path.join(folder, f"{kind}.json"), *(["--only", *only] if only else [])]
            credentials = {"MLFLOW_TRACKING_TOKEN": token} if token else {}
            children[kind] = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **CLIENT, **credentials})
        for kind, child in children.items():
            if child.wait():
                raise SystemExit(f"the scenarios could not be run against {kind}")
            with open(os.path.join(folder, f"{kind}.json")) as f:
                results[kind] = json.load(f)
    finally:
        for child in children.values():
            child.kill()
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
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--live", action="store_true", help="start the original too, and record its results anew")
    parser.add_argument("--out")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        results = run_all(args.child, args.only)
        with open(args.out, "w") as f:
            json.dump(results, f)
        return
    packages = pinned(FOLDER / "requirements.txt")
    require_installed(packages)
    kinds = ["mlflow"] * args.live + ["slipway"] + ["shared"] * ("SLIPWAY_TEST_DATABASE" in os.environ)
    results = run_servers(kinds, os.path.abspath(args.slipway), args.only)
    recordings = Recordings(FOLDER / "recorded", f"mlflow {packages['mlflow']}", args.live)
    passed, failed, known = [], [], []

    def fail(name, reason):
        failed.append(name)
        print(f"FAIL {name}: {reason[:1500]}")

    for scenario, ours in results["slipway"].items():
        try:
            original = recordings.response(scenario, ours["request"], lambda: original_result(results["mlflow"][scenario]["result"]))
        except Stale as e:
            fail(scenario, str(e))
            continue
        for kind in kinds[args.live:]:
            name = scenario if kind == "slipway" else f"{scenario} ({kind})"
            found = list(differences(original, normalized(results[kind][scenario]["result"])))
            if not found:
                passed.append(name)
            elif scenario in DIFFERENCES:
                known.append(name)
                print(f"DIFF {name}: {DIFFERENCES[scenario]}")
            else:
                fail(name, "\n     ".join(found[:5]))
    for complaint in [] if args.only else recordings.finish():
        fail("recordings", complaint)
    seconds = {kind: sum(s["seconds"] for s in results[kind].values()) for kind in results}
    print(f"mlflow conformance ({recordings}): {len(passed)} of {len(passed) + len(failed) + len(known)} scenarios equal, "
          f"{len(known)} known differences, {len(failed)} failed "
          f"({', '.join(f'{kind} {s:.0f} s' for kind, s in seconds.items())})")
    if args.out:
        with open(args.out, "w") as f:
            json.dump({"passed": passed, "known": known, "failed": failed, "seconds": seconds}, f, indent=1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    # Exit through `finally` blocks on SIGTERM, so that the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
