#!/usr/bin/env python3
"""Runs the tests of `slipway cluster` on test hosts: with real Debian, systemd, sshd, sudo and apt, and stand-ins for snap and MicroK8s.

    testkit/cluster/run.py target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]

Several tests run in parallel, each with its own hosts ($JOBS, 3 by default), because they mostly wait. KEEP=1 runs the tests one by one, and
waits before it removes the hosts of a failed test. REPORT=FILE saves the report of the test with five machines, as JSON and as HTML.
"""

import contextlib
import os
import sys

# Imported for their tests.
import clouds
import collection
import distributions
import gpus
import machines
from bench import SUITE
from hosts import base


def main():
    options = SUITE.options(__doc__, binary=True)

    @contextlib.contextmanager
    def debian(_):
        base()
        yield options.binary

    return SUITE.main(options, debian, attended=bool(os.environ.get("KEEP")))


if __name__ == "__main__":
    sys.exit(main())
