#!/usr/bin/env python3
"""A server that is killed at any moment goes on with its pipelines where it was: no step runs twice, and none is lost.

    kills.py --slipway BIN [--rounds 20]

Needs kfp. The pipeline has a loop with conditions and a nested loop, in an exit handler, with a step that fails once and is retried. Each step
writes a line into one file, so that every execution is counted. In each round the server is killed with SIGKILL at random moments until the
run has ended.
"""

import collections
import contextlib
import itertools
import pathlib
import random
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import kfp
from kfp import compiler, dsl

from lib import Slipway
from suite import Suite, eventually

SUITE = Suite("kfp kills", limit=900)
ITEMS = 4


@dsl.component
def write(journal: str, name: str, number: int) -> int:
    import os
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{name} {number}\n".encode())
    os.close(descriptor)
    return number


@dsl.component
def fail_once(journal: str):
    import os
    first = not os.path.exists(journal + ".failed")
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, b"fail-once %d\n" % (0 if first else 1))
    os.close(descriptor)
    if first:
        open(journal + ".failed", "w").close()
        raise SystemExit("the first attempt fails")


@dsl.component
def sleep(journal: str):
    import os, time
    with open(journal + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(journal + ".new", journal)
    time.sleep(3600)


@dsl.pipeline
def sleeping(journal: str):
    sleep(journal=journal).set_caching_options(False)


@dsl.pipeline
def killed(journal: str):
    last = write(journal=journal, name="exit", number=0).set_caching_options(False)
    with dsl.ExitHandler(last):
        fail_once(journal=journal).set_caching_options(False).set_retry(num_retries=2, backoff_duration="0s")
        with dsl.ParallelFor(list(range(ITEMS))) as item:
            outer = write(journal=journal, name="outer", number=item).set_caching_options(False)
            with dsl.If(outer.output > 1):
                write(journal=journal, name="large", number=item).set_caching_options(False)
            with dsl.Else():
                with dsl.ParallelFor([10, 20]) as inner:
                    write(journal=journal, name="inner", number=inner).set_caching_options(False)


def expected():
    """Every line that the pipeline writes, with the number of times."""
    lines = collections.Counter({"exit 0": 1, "fail-once 0": 1, "fail-once 1": 1, "inner 10": 2, "inner 20": 2})
    lines.update(f"outer {item}" for item in range(ITEMS))
    lines.update(f"large {item}" for item in range(ITEMS) if item > 1)
    return lines


def executed(run):
    """The paths of the run's steps that were executed."""
    return sorted(task["path"] for task in run["tasks"] if task["kind"] == "CONTAINER" and task["state"] != "SKIPPED")


def tracked(slipway, run_id):
    """The paths of the steps of a run that have a tracked run which has ended."""
    _, found = slipway.call("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1000})
    query = {
        "experiment_ids": [experiment["experiment_id"] for experiment in found["experiments"]],
        "filter": f"tags.`slipway.pipeline.run` = '{run_id}' AND status = 'FINISHED'",
        "max_results": 1000,
    }
    status, found = slipway.call("POST", "/api/2.0/mlflow/runs/search", query)
    assert status == 200, found
    tags = [{tag["key"]: tag["value"] for tag in one["data"]["tags"]} for one in found.get("runs", [])]
    return sorted(of_run["slipway.pipeline.task"] for of_run in tags if "slipway.pipeline.task" in of_run)


def seconds_undisturbed(slipway, package, folder):
    """Runs the pipeline twice without a kill. The first run makes the environment of the steps; returns how long the second one takes."""
    client = kfp.Client(host=slipway.url, existing_token=slipway.token)
    for name in ["first", "second"]:
        started = time.monotonic()
        run = client.create_run_from_pipeline_package(package, arguments={"journal": str(pathlib.Path(folder, name))})
        assert client.wait_for_run_completion(run.run_id, timeout=600, sleep_duration=0.01).state == "SUCCEEDED"
    return time.monotonic() - started


def round_of_kills(slipway, package, journal, waits):
    """Runs the pipeline, and kills the server after each of these waits, in seconds; returns its id, the run, and the number of kills."""
    client = kfp.Client(host=slipway.url, existing_token=slipway.token)
    run_id = client.create_run_from_pipeline_package(package, arguments={"journal": str(journal)}).run_id
    kills = 0
    while True:
        time.sleep(next(waits))
        status, run = slipway.call("GET", f"/api/v1/pipelines/runs/{run_id}")
        assert status == 200, run
        if run["state"] in ("SUCCEEDED", "FAILED", "CANCELED"):
            return run_id, run, kills
        slipway.stop(how=9)
        kills += 1
        slipway.start()


@SUITE.test
def no_step_runs_twice_and_none_is_lost(options):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments, kills = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as slipway:
        package = str(pathlib.Path(folder, "killed.yaml"))
        compiler.Compiler().compile(killed, package)
        # Several kills fit into a run, however fast the machine is.
        undisturbed = seconds_undisturbed(slipway, package, folder)
        print(f"{undisturbed:.2f} s without kills")
        waits = (moments.uniform(0, undisturbed / 4) for _ in itertools.count())
        for number in range(options.rounds):
            journal = pathlib.Path(folder, f"journal-{number}")
            run_id, run, killed_times = round_of_kills(slipway, package, journal, waits)
            kills += killed_times
            failures = [f"{t['path']}: {t['failure']}" for t in run["tasks"] if t["failure"]]
            assert run["state"] == "SUCCEEDED", (number, run["state"], failures)
            eventually(lambda: tracked(slipway, run_id) == executed(run), timeout=30, message="every step is tracked to its end")
            found = collections.Counter(journal.read_text().splitlines())
            assert found == expected(), (number, found - expected(), expected() - found)
    print(f"{options.rounds} rounds, {kills} kills")
    assert kills >= options.rounds, "the server was hardly ever killed"


@SUITE.test
def a_run_that_is_deleted_is_stopped(options):
    with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as slipway:
        package, journal = str(pathlib.Path(folder, "sleeping.yaml")), pathlib.Path(folder, "pid")
        compiler.Compiler().compile(sleeping, package)
        client = kfp.Client(host=slipway.url, existing_token=slipway.token)
        run_id = client.create_run_from_pipeline_package(package, arguments={"journal": str(journal)}).run_id
        eventually(journal.exists, timeout=300, message="the step runs")
        process = pathlib.Path("/proc", journal.read_text())
        assert process.exists()
        client.delete_run(run_id)
        eventually(lambda: not process.exists(), timeout=30, message="the step of the deleted run has ended")


if __name__ == "__main__":
    parsed = SUITE.options(
        __doc__,
        slipway={"required": True, "help": "path of slipway"},
        rounds={"type": int, "default": 20, "help": "number of runs"},
    )
    sys.exit(SUITE.main(parsed, lambda _: contextlib.nullcontext(parsed)))
