#!/usr/bin/env python3
"""Runs the Rust tests of the workspace, each in a process of its own, so that a test that crashes, hangs or changes its environment does not
affect the others.

    testkit/rust.py [SUBSTRING ...] [--ignored] [--except SUBSTRING] [--cargo OPTIONS] [--list] [--junit FILE]

A test is named `CRATE::PATH`, or `CRATE/FILE::PATH` in the folder `tests` of a crate. Prints failed and slow tests only.
"""

import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "conformance"))
from suite import FAILED, Suite

# Seconds after which the time of a passed test is printed.
SLOW = 60


class Quiet(Suite):
    """Reports of more than a thousand tests only what somebody wants to read."""

    def report(self, call):
        if call.outcome == FAILED or call.seconds >= SLOW:
            super().report(call)
        else:
            self.results.append(call)


def programs(options):
    """Compiles the tests; pairs of the name of a program and how it is run."""
    cargo = ["cargo", "test", "--workspace", "--no-run", "--message-format=json-render-diagnostics", *shlex.split(options)]
    build = subprocess.Popen(cargo, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in build.stdout:
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            folder, target = pathlib.Path(message["manifest_path"]).parent, message["target"]
            name = folder.name if target["kind"] != ["test"] else f"{folder.name}/{target['name']}"
            yield name, message["executable"], folder
    if build.wait():
        sys.exit(build.returncode)


def names(program, *options):
    """The names of the tests in a program."""
    listed = subprocess.run([program, "--list", "--format=terse", *options], check=True, capture_output=True, text=True).stdout
    return [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]


def run(program, folder, name):
    def test(_):
        # A process group of its own, because some tests send signals to theirs.
        done = subprocess.run([program, "--exact", "--include-ignored", name], cwd=folder, process_group=0, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              env={**os.environ, "CARGO_MANIFEST_DIR": str(folder)})
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"
        # A name that matches nothing passes too.
        assert "1 passed" in done.stdout, done.stdout
    return test


def main():
    suite = Quiet("rust", limit=180, jobs=os.cpu_count() or 1)
    options = suite.options(__doc__, cargo={"default": "--release --locked", "help": "options of cargo test"}, ignored={"action": "store_true"},
                            **{"except": {"metavar": "SUBSTRING", "help": "run no tests whose names contain this"}})
    excluded = getattr(options, "except")
    for crate, program, folder in programs(options.cargo):
        ignored = set(names(program, "--ignored"))
        for name in names(program):
            full = f"{crate}::{name}"
            if (name in ignored) == options.ignored and not (excluded and excluded in full):
                suite.add(full, run(program, folder, name))
    return suite.main(options, lambda _: contextlib.nullcontext())


if __name__ == "__main__":
    sys.exit(main())
