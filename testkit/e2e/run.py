#!/usr/bin/env python3
"""End-to-end tests of the release binary that need more than `cargo test`: speed, containers, PostgreSQL and S3. All others are in
`crates/slipway/tests`.

    testkit/e2e/run.py target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
import owners
import shared
from lib import Slipway
from suite import Suite

SUITE = Suite("end to end", limit=300)
test = SUITE.test


@test
def server_starts_quickly_uses_little_memory_and_stops_cleanly(binary):
    with Slipway(binary) as server:
        assert server.memory_mb() < 50, server.memory_mb()
        first = server.stop()
        again = min((server.start(), server.stop())[0] for _ in range(5))
        server.start()
        assert first == 0 and again < 0.3, again
        print(f"     start {again * 1000:.0f} ms, idle {server.memory_mb():.0f} MB")


def run_gpu(binary, *arguments, fixture=None):
    """Runs `slipway gpu` and returns exit code, standard output and standard error."""
    options = ["--fixture", fixture] if fixture else []
    done = subprocess.run([binary, "gpu", *arguments, *options], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@test(limit=600)
def benchmarks_are_stored_and_compared(binary):
    with Slipway(binary) as server:
        run = lambda *a: server.command("gpu", "bench", "--cpu", "--quick", "-o", "json", *a, check=False)
        first = json.loads(run().stdout)
        assert {f["what"] for f in first["figures"]} >= {"fma", "gemm", "DRAM triad"}
        report = os.path.join(server.folder.name, "report.html")
        assert run("--compare", "--report", report).returncode in (0, 3)
        assert "<svg" in pathlib.Path(report).read_text()
        status, stored = server.call("GET", "/api/v1/gpu/benchmarks")
        assert status == 200 and [k["number"] for k in stored] == [2, 1]
        # Compared with a forged report of twice the speed, everything is slower.
        twice = {**stored[0], "figures": [{**f, "median": f["median"] * (0.5 if f["unit"] == "us" else 2), "range": [f["range"][0] * 2, f["range"][1] * 2]} for f in stored[0]["figures"]]}
        twice.pop("number")
        assert server.call("POST", "/api/v1/gpu/benchmarks", twice)[0] == 200
        slower = run("--compare", "3")
        assert slower.returncode == 3, slower.stdout
        assert server.call("POST", "/api/v1/gpu/benchmarks", {"nothing": 1})[0] == 400
        zero = {**twice, "figures": [{**twice["figures"][0], "median": 0}]}
        assert server.call("POST", "/api/v1/gpu/benchmarks", zero)[0] == 400
        assert run_gpu(binary, "bench", fixture="h100x8")[0] == 1, "simulated GPUs cannot be benchmarked"


def runc_works():
    """Whether runc can start containers on this machine: it needs root, namespaces and control groups."""
    if os.geteuid() != 0 or not shutil.which("runc"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["runc", "spec"], cwd=folder, check=True)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/true"])
        config["mounts"] = [m for m in config["mounts"] if m["destination"] in ("/proc", "/dev")]
        for place in ("/usr", "/bin", "/lib", "/lib64"):
            config["mounts"].append({"destination": place, "source": place, "type": "bind", "options": ["rbind", "ro"]})
            pathlib.Path(folder, "rootfs" + place).mkdir(parents=True)
        pathlib.Path(folder, "config.json").write_text(json.dumps(config))
        try:
            os.mknod(os.path.join(folder, "null"), 0o666 | 0o020000, os.makedev(1, 3))
        except OSError:
            return False
        done = subprocess.run(["runc", "run", f"slipway-e2e-{os.getpid()}"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done.returncode == 0


@test
def sharing_fitting_and_containers(binary):
    gpu = functools.partial(run_gpu, binary)
    with tempfile.TemporaryDirectory() as folder:
        place = lambda name, text: pathlib.Path(folder, name).write_text(text) and os.path.join(folder, name)
        jobs = place("jobs.yaml", "workloads:\n  - {name: tenant, count: 9, memory_gib: 9, compute: 0.1, isolation: full}\n")
        status, out, _ = gpu("share", "plan", jobs, "--family", "a100-80gb", "-o", "json")
        plan = json.loads(out)
        assert status == 0 and plan["recommended"] == "mig" and plan["outcomes"][0]["gpus"] == 2, plan
        assert gpu("mig", "plan", "--from-workloads", jobs, "--family", "h100-80gb")[0] == 0
        assert gpu("share", "plan", jobs, "--family", "T4")[0] == 3, "no kind of sharing fits"
        assert gpu("share", "plan", place("bad.yaml", "workloads: 3"), "--family", "a100")[0] == 1
        status, out, _ = gpu("fit", "--params", "7b", "-o", "json")
        assert status == 0 and abs(json.loads(out)["parts"][0]["bytes"] - 2 * 6_738_415_616) < 1, "Llama 2 7B in bf16"
        status, out, _ = gpu("roofline", "--card", "H100 80GB", "--op", "decode:model=7b,batch=1", "-o", "json")
        assert json.loads(out)["work"][0]["bound"] == "memory"
        assert gpu("roofline", "--card", "H100 80GB", "--op", "gemm:1,2")[0] == 1

        root = pathlib.Path(folder, "root")
        for path in ["dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia0", "usr/bin/nvidia-smi",
                     "usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05",
                     "lib/firmware/nvidia/580.95.05/gsp_tu10x.bin"]:
            root.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
            root.joinpath(path).touch()
        spec = os.path.join(folder, "cdi/nvidia.yaml")
        assert gpu("cdi", "generate", "--root", str(root), "--write", spec, fixture="t4")[0] == 0
        assert "nvidia.com/gpu=all" in gpu("cdi", "ls", "--dir", os.path.join(folder, "cdi"))[1]
        status, out, _ = gpu("cdi", "check", spec)
        assert status == 0, out
        if runc_works():
            # Any character devices can replace the GPU's, because only the device numbers differ.
            for name in ["nvidiactl", "nvidia-uvm", "nvidia0"]:
                root.joinpath("dev", name).unlink()
                os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, 3))
            status, out, error = gpu("container", "test", "nvidia.com/gpu=0", "--spec", spec, "-o", "json")
            checks = json.loads(out)
            assert status == 0 and "/dev/nvidia0" in [c["path"] for c in checks] and len(checks) > 5, (out, error)
            assert gpu("container", "test", "nvidia.com/gpu=9", "--spec", spec)[0] == 1
        else:
            print("     skipped the container: runc cannot start containers on this machine")
        root.joinpath("dev/nvidia0").unlink()
        status, out, _ = gpu("cdi", "check", spec)
        assert status == 3 and "dev/nvidia0 does not exist on this machine" in out
        assert gpu("cdi", "generate", "--root", folder, fixture="t4")[0] == 1, "no driver in this folder"

        config = place("config.toml", "version = 2 # ours\n")
        configure = lambda *a: gpu("container", "configure", "--runtime", "containerd", "--config", config, *a)
        status, out, _ = configure("--dry-run", "--nvidia-runtime")
        assert status == 0 and "+" in out and pathlib.Path(config).read_text() == "version = 2 # ours\n"
        assert configure("--yes", "--nvidia-runtime")[0] == 0 and "nvidia" in pathlib.Path(config).read_text()
        assert "needs no changes" in configure("--yes", "--nvidia-runtime")[2]
        assert configure("--undo", "--yes")[0] == 0 and pathlib.Path(config).read_text() == "version = 2 # ours\n"


for scenario in shared.TESTS + owners.TESTS:
    test(scenario)


if __name__ == "__main__":
    options = SUITE.options(__doc__, binary=True)
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(options.binary)))
