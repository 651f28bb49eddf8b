#!/usr/bin/env python3
"""Measures `slipway data` beside DVC, `cp -r` and `md5sum`, on many small files and on a large one.

    bench/data/run.py --slipway target/release/slipway --dvc PATH [--files 100000] [--file-bytes 1024] [--large-mib 1024]

Each command runs once with each program, on the same data in a fresh project. Prints seconds and ratios.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

FILES_PER_FOLDER = 1000


def timed(command, folder, environment):
    start = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return time.monotonic() - start


def many(folder, files, size):
    for i in range(files):
        path = folder / f"{i // FILES_PER_FOLDER:04}"
        if i % FILES_PER_FOLDER == 0:
            path.mkdir(parents=True)
        (path / f"{i:07}").write_bytes((f"{i} " * (size // 2)).encode()[:size])


def large(path, mebibytes):
    with path.open("wb") as out:
        for _ in range(mebibytes):
            out.write(os.urandom(1 << 20))


def measure(program, make, root, environment):
    """The seconds of each command on the data that `make` writes into `data`."""
    project = root / "project"
    project.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=project, env=environment, check=True)
    run = lambda *arguments: timed([*program, *arguments], project, environment)
    run("init")
    make(project / "data")
    found = {"add": run("add", "data"), "status": run("status"), "add again": run("add", "data")}
    run("remote", "add", "-d", "disk", str(root / "remote"))
    found["push"] = run("push")
    found["push again"] = run("push")
    (shutil.rmtree if (project / "data").is_dir() else os.remove)(project / "data")
    found["checkout"] = run("checkout")
    shutil.rmtree(project / ".dvc/cache")
    found["fetch"] = run("fetch")
    found["gc -w"] = run("gc", "-w", "-f")
    shutil.rmtree(project)
    shutil.rmtree(root / "remote")
    return found


def limits(make, root, environment):
    """What the programs of the system need for the same data."""
    make(root / "limit")
    copy = timed(["cp", "-r", "limit", "copy"], root, environment)
    sums = timed(["sh", "-c", "find limit -type f -print0 | xargs -0 md5sum"], root, environment)
    for path in (root / "limit", root / "copy"):
        (shutil.rmtree if path.is_dir() else os.remove)(path)
    return {"cp -r": copy, "md5sum": sums}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--dvc", required=True)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--file-bytes", type=int, default=1024)
    parser.add_argument("--large-mib", type=int, default=1024)
    options = parser.parse_args()
    slipway = [str(pathlib.Path(options.slipway).resolve()), "data"]
    cases = {
        f"{options.files} files of {options.file_bytes} bytes": lambda path: many(path, options.files, options.file_bytes),
        f"one file of {options.large_mib} MiB": lambda path: large(path, options.large_mib),
    }
    for name, make in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            environment = {**os.environ, "HOME": folder, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / "site"), "GIT_CONFIG_GLOBAL": os.devnull}
            print(f"{name}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in limits(make, root, environment).items()))
            ours = measure(slipway, make, root, environment)
            theirs = measure([str(pathlib.Path(options.dvc).resolve())], make, root, environment)
            print(f"  {'command':<12}{'slipway':>10}{'DVC':>10}{'ratio':>8}")
            for command, seconds in ours.items():
                print(f"  {command:<12}{seconds:>8.2f} s{theirs[command]:>8.2f} s{theirs[command] / seconds:>7.0f}x", flush=True)


if __name__ == "__main__":
    main()
