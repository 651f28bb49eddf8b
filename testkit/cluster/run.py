#!/usr/bin/env python3
"""Runs the tests of `slipway cluster` on test hosts: with real Debian, systemd, sshd, sudo and apt, and stand-ins for snap and MicroK8s.

    testkit/cluster/run.py target/release/slipway [NAME ...]

Several tests run in parallel, each with its own hosts ($JOBS, 3 by default), because they mostly wait. KEEP=1 runs the tests one by one, and
waits before it removes the hosts of a failed test. REPORT=FILE saves the report of the test with five machines, as JSON and as HTML.
"""

import concurrent.futures
import os
import subprocess
import sys

import clouds
import collection
import machines
from bench import SUITE
from hosts import base

# Runs a single test in this process.
ALONE = "--alone"


def main():
    if sys.argv[2:3] == [ALONE]:
        return not SUITE.passes(sys.argv[3], sys.argv[1])
    binary, names = sys.argv[1], sys.argv[2:] or list(SUITE)
    base()
    if os.environ.get("KEEP"):
        return sum(not SUITE.passes(name, binary) for name in names)

    def run_in_process(name):
        done = subprocess.run([sys.executable, __file__, binary, ALONE, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, end="", flush=True)
        return done.returncode

    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("JOBS", "3"))) as pool:
        failed = sum(map(bool, pool.map(run_in_process, names)))
    print(f"cluster: {len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
