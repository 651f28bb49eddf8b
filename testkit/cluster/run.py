#!/usr/bin/env python3
"""`slipway cluster` on test hosts: real Debian, systemd, sshd, sudo and apt; only the snap store's programs are stand-ins.

    testkit/cluster/run.py target/release/slipway [NAME ...]

KEEP=1 waits before the hosts go, when a test failed. REPORT=FILE keeps the report of five machines, as JSON and as a page.
"""

import sys
import time
import traceback

import clouds
import collection
import machines
from bench import TESTS


def main():
    binary, names = sys.argv[1], sys.argv[2:] or list(TESTS)
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            TESTS[name](binary)
            print(f"ok   {name} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAIL {name} ({time.monotonic() - began:.1f} s)", flush=True)
            traceback.print_exc()
    print(f"cluster: {len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
