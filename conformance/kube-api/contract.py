#!/usr/bin/env python3
"""Runs the tests that every store of objects must pass (`crates/operator/src/objects/contract.rs`) against upstream's kube-apiserver, and
against the object API of `slipway up`.

    conformance/kube-api/contract.py --programs FOLDER --slipway target/release/slipway [--cargo OPTIONS] [::TEST ...]

`--programs` is the folder with upstream's etcd, kube-apiserver and kube-controller-manager, which the lab builds. Those tests that use the
database of slipway without a server are part of the Rust tests.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from lib import Slipway
from original import Original


def passes(what, kubeconfig, options, excluded=None):
    """Whether the tests pass against one server."""
    print(f"{what}:", flush=True)
    tests = [f"operator::objects::contract::in_cluster{name}" for name in options.names or [""]]
    command = [ROOT / "testkit/rust.py", "--ignored", "--cargo", options.cargo, *tests]
    if excluded:
        command += ["--except", excluded]
    return subprocess.run(command, env={**os.environ, "SLIPWAY_TEST_KUBECONFIG": str(kubeconfig)}).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--cargo", default="--release --locked")
    parser.add_argument("names", nargs="*", metavar="::TEST")
    options = parser.parse_args()
    with Original(options.programs) as original:
        good = passes("kube-apiserver", original.kubeconfig, options)
    with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as slipway:
        kubeconfig = pathlib.Path(folder) / "kubeconfig"
        slipway.command("config", "kubeconfig", "--save", kubeconfig)
        # There a run is executed, so its status is not that of the test.
        good &= passes("slipway up", kubeconfig, options, excluded="status_is_written_apart")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
