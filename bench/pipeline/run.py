#!/usr/bin/env python3
"""Measures pipelines of the smallest possible Python steps: slipway beside `kfp.local` with its SubprocessRunner.

    bench/pipeline/run.py --slipway target/release/slipway [--no-original] [--large]

Run with a Python that has kfp. Every pipeline is compiled here, and run without cache: once by the original, which takes almost a second for
each step, and several times by slipway, whose first run makes the environment and starts its workers; the median of the others is printed. Prints
seconds, processor seconds of everything that worked, and both per step; then 1,000 parallel steps, and the memory of the server. The share
of the server in the processor time is what scheduling costs; the rest is used by the processes of steps. With `--large` also a loop of
10,000 steps and a graph of 10,000 tasks, each on a new server, and the most memory that the server had; this takes minutes.

The time of a run is that from its creation to its end by the clock of the server, which is asked for it twice a second: a client that asks
more often uses the processors that the steps need. The time of the original is that of its process.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "conformance"))

import kfp
import yaml
from kfp import compiler

import pipelines
from lib import Slipway, cpu_seconds, memory_mb
from suite import eventually

POLL_INTERVAL = 0.5  # seconds
RUNS = 5

ORIGINAL = """
import sys, kfp
from kfp import local
sys.path.insert(0, {here!r})
import pipelines
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root={root!r})
getattr(pipelines, {name!r})()
"""


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def original(name, folder):
    """Seconds, and processor seconds, of the original."""
    program = ORIGINAL.format(here=str(HERE), root=str(folder), name=name)
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    cpu, start = children_cpu(), time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.monotonic() - start, children_cpu() - cpu


def cpu_with_children(pid):
    """Processor seconds of a process and of its children that have ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def processes(server):
    """The server, and the workers, whose command lines have its folder."""
    listing = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    workers = [int(line.split(None, 1)[0]) for line in listing.splitlines() if str(server.home) in line]
    return {server.process.pid, *workers}


def slipway(client, server, package):
    """Seconds of slipway, processor seconds of the server with its workers, and those of the server alone."""
    before, own = {pid: cpu_with_children(pid) for pid in processes(server)}, cpu_seconds(server.process.pid)
    run_id = client.create_run_from_pipeline_package(str(package), enable_caching=False).run_id

    def ended():
        # The list has the states of runs without their tasks.
        run = next(run for run in server.call("GET", "/api/v1/pipelines/runs")[1]["runs"] if run["runId"] == run_id)
        return run if run["finishedAt"] else None

    run = eventually(ended, timeout=3600, interval=POLL_INTERVAL, message="the run has ended")
    assert run["state"] == "SUCCEEDED", run
    total = sum(cpu_with_children(pid) - before.get(pid, 0) for pid in processes(server))
    return (run["finishedAt"] - run["createdAt"]) / 1000, total, cpu_seconds(server.process.pid) - own


def peak_mb(pid):
    """The most resident memory that a process had, in megabytes (10^6 bytes)."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def graph_of(count, package):
    """Writes a pipeline with this number of tasks side by side: that of a chain, whose tasks get constants."""
    document = json.loads(json.dumps(yaml.safe_load(package.read_text())))
    task = next(task for task in document["root"]["dag"]["tasks"].values() if "dependentTasks" not in task)
    tasks = {f"task-{at}": {**task, "taskInfo": {"name": f"task-{at}"}} for at in range(count)}
    document["root"]["dag"]["tasks"] = tasks
    large = package.with_name(f"graph-{count}.yaml")
    large.write_text(json.dumps(document))  # JSON is YAML
    return large


def large(binary, title, package, count):
    with Slipway(binary) as server:
        client = kfp.Client(host=server.url, existing_token=server.token)
        seconds, total, own = slipway(client, server, package)
        print(f"{title}: {seconds:.0f} s; {1000 * total / count:.1f} ms of a processor for each, {1000 * own / count:.2f} of them in the server; "
              f"the server's memory: at most {peak_mb(server.process.pid):.0f} MB, at the end {memory_mb(server.process.pid):.0f} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--no-original", action="store_true", help="measure slipway only")
    parser.add_argument("--large", action="store_true", help="measure 10,000 tasks too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as server:
        folder = pathlib.Path(folder)
        client = kfp.Client(host=server.url, existing_token=server.token)
        print(f"{'':22}{'slipway':>10}{'a step':>11}{'processor':>12}{'server':>11}{'kfp.local':>12}{'a step':>11}{'processor':>12}{'ratio':>8}")
        for title, (pipeline, steps) in pipelines.COMPARED.items():
            package = folder / f"{pipeline.name}.yaml"
            compiler.Compiler().compile(pipeline, str(package))
            slipway(client, server, package)
            measured = [slipway(client, server, package) for _ in range(RUNS)]
            ours, our_cpu, server_cpu = map(statistics.median, zip(*measured))
            line = (f"{title:22}{ours:9.2f}s{1000 * ours / steps:9.1f}ms{1000 * our_cpu / steps:10.1f}ms"
                    f"{1000 * server_cpu / steps:9.1f}ms")
            if not options.no_original:
                theirs, their_cpu = original(pipeline.name.replace("-", "_"), folder / "root")
                line += f"{theirs:11.2f}s{1000 * theirs / steps:9.1f}ms{1000 * their_cpu / steps:10.1f}ms{theirs / ours:7.1f}x"
            print(line, flush=True)
        package = folder / "thousand.yaml"
        compiler.Compiler().compile(pipelines.parallel_thousand, str(package))
        seconds, total, scheduling = slipway(client, server, package)
        print(f"1,000 parallel steps: {seconds:.2f} s; {total:.1f} ms of a processor for each, {scheduling:.2f} of them in the server")
        print(f"memory of the server: {memory_mb(server.process.pid):.0f} MB", flush=True)
        if options.large:
            package = folder / "ten-thousand.yaml"
            compiler.Compiler().compile(pipelines.parallel_ten_thousand, str(package))
            large(options.slipway, "a loop of 10,000 steps", package, 10_000)
            package = graph_of(10_000, folder / "chain.yaml")
            large(options.slipway, "a graph of 10,000 tasks", package, 10_000)


if __name__ == "__main__":
    main()
