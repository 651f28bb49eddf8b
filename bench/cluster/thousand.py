#!/usr/bin/env python3
"""Benchmarks a plan, and an apply without changes, of a thousand machines.

    bench/cluster/thousand.py --slipway target/release/slipway [--machines 1000]

First the output of one real test host is recorded. Then a fake `ssh` replays that output for every machine, so that the benchmark measures only
the client: its connections, comparisons and memory. Needs root, for the test host.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "testkit/hosts"))
from hosts import Hosts

# Records the output of the probe, which is the only script that contains the name of this managed file.
RECORD = """#!/bin/sh
d=$(mktemp -d); cat >$d/in
/usr/bin/ssh "$@" <$d/in >$d/out; rc=$?
if grep -q '90-slipway' $d/in && [ $rc = 0 ]; then cp $d/out {recording}.$(grep -q MemTotal $d/in && echo plan || echo apply); fi
cat $d/out; exit $rc
"""
REPLAY = """#!/bin/sh
read -r first; case $(cat) in *MemTotal*) exec cat {recording}.plan;; *) exec cat {recording}.apply;; esac
"""


def spec(machines, hosts, folder):
    lines = "".join(f"    - {{name: {n}, address: {a}, roles: [control-plane]}}\n" for n, a in machines)
    return ("apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata: {name: bench}\nspec:\n"
            f"  ssh: {{user: root, identityFile: {hosts.key}, knownHosts: {folder}/known, acceptNewHostKeys: true}}\n  machines:\n{lines}"
            "  system: {hosts: false, packages: [ca-certificates, jq]}\n  kubernetes: {distribution: microk8s, channel: 1.32/stable}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--machines", type=int, default=1000)
    arguments = parser.parse_args()
    only = ["--only", "system,host-tools,kubernetes"]
    with tempfile.TemporaryDirectory() as folder, Hosts(["h0"]) as hosts:
        folder = pathlib.Path(folder)
        file, program, recording = folder / "cluster.yaml", folder / "bin/ssh", folder / "recording"
        base = [os.path.abspath(arguments.slipway), "--home", folder / "home", "cluster"]
        environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "PATH": f"{program.parent}:{os.environ['PATH']}", "SLIPWAY_CLUSTER_FILE": str(file)}
        program.parent.mkdir()

        def replace_ssh(text):
            program.write_text(text.format(recording=recording))
            program.chmod(0o755)

        def run(*words):
            started = time.perf_counter()
            done = subprocess.run([*base, *words, *only, "-o", "json"], env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            return json.loads(done.stdout), time.perf_counter() - started

        file.write_text(spec([("h0", hosts["h0"].address)], hosts, folder))
        replace_ssh(RECORD)
        run("apply", "--yes", "-q")
        run("plan")
        run("apply", "--yes", "-q")
        replace_ssh(REPLAY)
        file.write_text(spec([(f"h{n}", f"10.{n >> 8}.{n & 255}.1") for n in range(arguments.machines)], hosts, folder))
        plan, wall = run("plan")
        assert len(plan["machines"]) == arguments.machines and not any(m["changes"] or m.get("unreachable") for m in plan["machines"])
        print(f"plan of {arguments.machines} machines: {wall:.1f} s")
        report, wall = run("apply", "--yes", "-q")
        assert len(report["steps"]) == arguments.machines and {s["outcome"] for s in report["steps"]} == {"unchanged"}
        print(f"apply of {arguments.machines} machines, no changes: {wall:.1f} s")
        print(f"peak memory of any process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
