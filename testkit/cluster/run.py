#!/usr/bin/env python3
"""`slipway cluster` on test hosts: real Debian, systemd, sshd, sudo and apt; only the snap store's programs are stand-ins.

    testkit/cluster/run.py target/release/slipway [NAME ...]

Several tests run at once, each with hosts of its own ($JOBS, 3): they wait more than they compute. KEEP=1 runs one at a time, and waits before
its hosts go when it failed. REPORT=FILE keeps the report of five machines, as JSON and as a page.
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

ALONE = "--alone"


def main():
    if sys.argv[2:3] == [ALONE]:
        return not SUITE.passes(sys.argv[3], sys.argv[1])
    binary, names = sys.argv[1], sys.argv[2:] or list(SUITE)
    base()
    if os.environ.get("KEEP"):
        return sum(not SUITE.passes(name, binary) for name in names)

    def apart(name):
        done = subprocess.run([sys.executable, __file__, binary, ALONE, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, end="", flush=True)
        return done.returncode

    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("JOBS", "3"))) as pool:
        failed = sum(map(bool, pool.map(apart, names)))
    print(f"cluster: {len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
