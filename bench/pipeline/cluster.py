#!/usr/bin/env python3
"""Measures how long a step of a pipeline and a plain Kubernetes Job take from their submission to the first instruction of their container,
on the same cluster in turns, and counts their pods. Needs root, for the lab.

    bench/pipeline/cluster.py --slipway target/release/slipway [--rounds 10]

The cluster is the lab's: upstream's API server, scheduler, controller manager and kubelet, on this machine. Containers report the time since
the machine was booted, which they share with this program. Kubeflow itself, which starts about three pods for each step, is not among the
packages that can be installed without its images.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / folder) for folder in ("testkit/lab", "testkit", "conformance")]
from cluster import Lab
from pipelines import IMAGE, Run, Step, pipeline

NAMESPACE = "bench"
REPORT = "cut -d' ' -f1 /proc/uptime"
SELECTORS = {"a step of a pipeline": "slipway.dev/pipeline-run", "a Job": "batch.kubernetes.io/job-name"}


def since_boot():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds_of_job(lab, number):
    name = f"job-{number}"
    container = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", REPORT]}
    started = since_boot()
    lab.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}}))
    lab.kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", f"job/{name}", "--timeout=120s")
    return float(lab.kubectl("-n", NAMESPACE, "logs", f"job/{name}")) - started


def seconds_of_step(lab, number):
    compiled = pipeline(f"step-{number}", Step("report", REPORT))
    started = since_boot()
    run = Run(lab, NAMESPACE, compiled)
    run.wait()
    return float(run.server.slipway(lab, "pipeline", "logs", run.id, "report", "-n", NAMESPACE).stdout) - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    lab = Lab(options.slipway, {"n1": "t4"})
    try:
        lab.up()
        lab.install()
        measured = {name: [] for name in SELECTORS}
        with lab.namespace(NAMESPACE, runs=True):
            for number in range(-1, options.rounds):
                for name, seconds in zip(SELECTORS, (seconds_of_step, seconds_of_job)):
                    found = seconds(lab, number + 1)
                    if number >= 0:  # the first round warms the caches
                        measured[name].append(found)
            for name, selector in SELECTORS.items():
                pods = len(lab.get("-n", NAMESPACE, "pods", "-l", selector)["items"])
                found = measured[name]
                print(f"{name:<22} median {statistics.median(found):5.2f} s, slowest {max(found):5.2f} s, {pods / (options.rounds + 1):.0f} pods")
        medians = [statistics.median(found) for found in measured.values()]
        print(f"ratio {medians[0] / medians[1]:.2f}")
    finally:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
