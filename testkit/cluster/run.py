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
import time
import traceback

import clouds
import collection
import machines
from bench import TESTS
from hosts import base

ALONE = "--alone"


def alone(binary, name):
    """One test, in this process."""
    began = time.monotonic()
    try:
        TESTS[name](binary)
        print(f"ok   {name} ({time.monotonic() - began:.1f} s)", flush=True)
        return 0
    except Exception:
        print(f"FAIL {name} ({time.monotonic() - began:.1f} s)", flush=True)
        traceback.print_exc()
        return 1


def main():
    if sys.argv[2:3] == [ALONE]:
        return alone(sys.argv[1], sys.argv[3])
    binary, names = sys.argv[1], sys.argv[2:] or list(TESTS)
    base()
    if os.environ.get("KEEP"):
        return sum(alone(binary, name) for name in names)

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
