#!/usr/bin/env python3
"""Compares the Kubernetes API of `slipway up` with upstream's kube-apiserver and etcd, under the same load on the same machine.

    bench/objects/run.py --slipway target/release/slipway --programs FOLDER [--objects 10000] [--watchers 1000]

`--programs` is the folder with upstream's programs, which the lab builds. Sixteen writers create and update config maps of half a kilobyte; all of
them are listed; then an object is changed while all watchers follow it. Memory is the peak of the resident memory. Both sync every write to disk
before they answer.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "conformance"), str(ROOT / "conformance/kube-api")]
from lib import Slipway, peak_memory
from original import Original


def measure(load, server, pids, options):
    done = subprocess.run([load, "--server", server.url, "--token", server.token, "--objects", str(options.objects), "--watchers", str(options.watchers)],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout), "memory": sum(peak_memory(pid) for pid in pids)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--programs", required=True)
    parser.add_argument("--objects", type=int, default=10000)
    parser.add_argument("--watchers", type=int, default=1000)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        load = f"{folder}/load"
        subprocess.run(["go", "build", "-C", ROOT / "bench/objects/load", "-o", load, "."], check=True)
        with Original(options.programs, controllers=(), durable=True) as original:
            results["upstream"] = measure(load, original, [process.pid for process in original.processes.values()], options)
        with Slipway(options.slipway) as slipway:
            results["slipway"] = measure(load, slipway, [slipway.process.pid], options)
    rows = [
        ("creates per second", lambda r: r["create"]["rate"], True), ("create, p99 ms", lambda r: r["create"]["p99"], False),
        ("updates per second", lambda r: r["update"]["rate"], True), ("update, p99 ms", lambda r: r["update"]["p99"], False),
        (f"list of {options.objects}, ms", lambda r: r["list"]["p50"], False),
        (f"change to {options.watchers} watchers, p50 ms", lambda r: r["watch"]["p50"], False),
        (f"change to {options.watchers} watchers, p99 ms", lambda r: r["watch"]["p99"], False),
        ("peak memory, MiB", lambda r: r["memory"], False),
    ]
    print(f"{'':34}" + "".join(f"{name:>12}" for name in results) + f"{'ratio':>9}")
    for name, value, more_is_better in rows:
        upstream, slipway = (value(result) for result in results.values())
        ratio = slipway / upstream if more_is_better else upstream / slipway
        print(f"{name:34}{upstream:12.1f}{slipway:12.1f}{ratio:8.1f}x")


if __name__ == "__main__":
    main()
