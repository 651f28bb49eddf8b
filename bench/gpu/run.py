"""Benchmarks of GPU planning at scale, and of reading the GPUs of a machine.

    python run.py --slipway target/release/slipway

* Packing 10,000 jobs into MIG instances, and comparing all kinds of sharing, with the lower bound for every packing.
* The time and memory of `slipway gpu ls` on eight simulated GPUs. `nvidia-smi`, to compare with, needs a real driver:
  `on-gpu.sh` measures both on a machine that has one.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import tempfile
import time


def timed(command, times=5):
    best = None
    for _ in range(times):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        elapsed = time.perf_counter() - started
        assert done.returncode == 0, (command, done.stderr)
        best = elapsed if best is None else min(best, elapsed)
    return best, done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slipway", default="target/release/slipway")
    slipway = os.path.abspath(parser.parse_args().slipway)
    random.seed(7)
    print("| workload | GPUs | lower bound | time |")
    print("|---|---|---|---|")
    for jobs in (100, 1_000, 10_000):
        remaining, workloads = jobs, []
        while remaining > 0:
            count = min(remaining, random.randint(1, max(1, jobs // 40)))
            remaining -= count
            workloads.append({"name": f"w{len(workloads)}", "count": count, "memory_gib": random.choice([4, 8, 9.5, 15, 18, 30, 38]),
                              "compute": random.choice([0.05, 0.1, 0.14, 0.25, 0.4]), "duty": random.choice([0.1, 0.5, 1.0])})
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump({"workloads": workloads}, file)
            file.flush()
            elapsed, out = timed([slipway, "gpu", "share", "plan", file.name, "--family", "h100-80gb", "-o", "json"])
        for outcome in json.loads(out)["outcomes"]:
            print(f"| {jobs:,} jobs, {outcome['strategy']} | {outcome['gpus']:,} | {outcome['lower_bound']:,} | {elapsed:.3f} s for all three |")
    elapsed, _ = timed([slipway, "gpu", "ls", "-o", "json", "--fixture", "h100x8"], 20)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"| `gpu ls`, 8 GPUs (fixture) | 8 | | {elapsed * 1000:.1f} ms, peak {memory / 1000:.0f} MB |")


if __name__ == "__main__":
    main()
