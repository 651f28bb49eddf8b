#!/usr/bin/env python3
"""Measures `slipway data` beside `cp -r`, `md5sum` and DVC, on many small files and on a large one.

    bench/data/run.py --slipway target/release/slipway --dvc PATH [--files 100000] [--file-bytes 1024] [--large-mib 4096]
    bench/data/run.py --slipway target/release/slipway --no-dvc --million

Each command runs once with each program, on the same data in a fresh project. Prints seconds, seconds of all cores, the peak memory, and
ratios: to the program of the system that does the least such a command must do, run directly before it (`cp -r` of the same tree, `md5sum`
of it), and to DVC. `--million` measures memory and status with 1,000,000 files. `--folder` chooses the file system.

Where the limits lie, profiled with `perf` on tmpfs: `add` of many small files spends four fifths of its time in the kernel. Creating, writing and
closing an object takes 25 to 30 % of the total, renaming it 19 % (the first two lines of the output measure just these; an unnamed file that is
linked at the end costs as much), opening, reading and closing the source 17 %, and the look-ups of source and object 13 %. MD5 of 1 KiB is below
5 %. `status` has two look-ups for each file, in the workspace and in the cache: as in DVC, an object that is not read-only is not trusted. With
100,000 files, a look-up takes 2.5 us even from an open folder, mostly misses of the processor's caches. A large file is bound by MD5 on one core;
reading and writing are done by another one.
"""

import argparse
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time

FILES_PER_FOLDER = 1000
# The program of the system that each command is compared with.
COMPARED = {"add": "md5sum", "push": "cp -r", "checkout": "cp -r", "fetch": "cp -r"}


@dataclasses.dataclass
class Cost:
    seconds: float
    cpu: float
    mebibytes: float


def timed(command, folder, environment):
    """Runs a command to its end, and returns what it cost."""
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        assert process.returncode == 0, f"{command}: {errors.read().decode()}"
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


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


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def system(program, root, environment):
    """What a program of the system costs for the data of the project."""
    data = "project/data"
    if program == "md5sum":
        return timed(["sh", "-c", f"find {data} -type f -print0 | xargs -0 md5sum"], root, environment)
    cost = timed(["cp", "-r", data, "copy"], root, environment)
    remove(root / "copy")
    return cost


def create(share):
    """Creates the files of one process, with a rename or directly."""
    root, numbers, content, renames = share
    for i in numbers:
        digest = hashlib.md5(str(i).encode()).hexdigest()
        path = f"{root}/{digest[:2]}/{digest[2:]}"
        first = f"{root}/{digest[:2]}/.{i}" if renames else path
        file = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        os.write(file, content)
        os.close(file)
        if renames:
            os.rename(first, path)


def creation(root, files, size, renames):
    """What it costs only to create the files of a cache, with one process per core: a bound that the file system sets."""
    folder, processes = root / "created", os.cpu_count() or 1
    for shard in range(256):
        (folder / f"{shard:02x}").mkdir(parents=True)
    shares = [(folder, range(first, files, processes), b"x" * size, renames) for first in range(processes)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(create, shares, chunksize=1)
        seconds = time.monotonic() - start
        pool.close()
        pool.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0)


def measure(program, make, root, environment, compare):
    """The cost of each command on the data that `make` writes into `data`, and that of the system's program before it."""
    project, found, limits = root / "project", {}, {}
    project.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=project, env=environment, check=True)

    def run(*arguments, name=None):
        name = name or arguments[0]
        if compare and name in COMPARED:
            limits[name] = system(COMPARED[name], root, environment)
        found[name] = timed([*program, *arguments], project, environment)

    timed([*program, "init"], project, environment)
    make(project / "data")
    run("add", "data")
    run("status")
    run("add", "data", name="add again")
    timed([*program, "remote", "add", "-d", "disk", str(root / "remote")], project, environment)
    run("push")
    run("push", name="push again")
    if compare:
        limits["checkout"] = system("cp -r", root, environment)
    remove(project / "data")
    found["checkout"] = timed([*program, "checkout"], project, environment)
    run("checkout", name="checkout again")
    shutil.rmtree(project / ".dvc/cache")
    run("fetch")
    run("gc", "-w", "-f", name="gc -w")
    shutil.rmtree(project)
    shutil.rmtree(root / "remote")
    return found, limits


def measure_million(program, root, environment):
    """The cost of the commands whose memory grows with the number of files."""
    project, found = root / "project", {}
    project.mkdir()
    timed([*program, "init", "--no-scm"], project, environment)
    many(project / "data", 1_000_000, 64)
    for name, command in {"add": ["add", "data"], "status": ["status"], "status again": ["status"]}.items():
        found[name] = timed([*program, *command], project, environment)
    return found


def row(name, cost, limit=None, dvc=None):
    line = f"  {name:<15}{cost.seconds:>8.2f} s{cost.cpu:>8.2f} s{cost.mebibytes:>7.0f} MiB"
    line += f"{limit.seconds:>9.2f} s{cost.seconds / limit.seconds:>7.2f}x{cost.cpu / limit.cpu:>7.2f}x" if limit else " " * 25
    line += f"{dvc.seconds:>9.2f} s{dvc.mebibytes:>7.0f} MiB{dvc.seconds / cost.seconds:>7.0f}x" if dvc else ""
    print(line.rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", required=True)
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--dvc")
    peer.add_argument("--no-dvc", action="store_true")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--file-bytes", type=int, default=1024)
    parser.add_argument("--large-mib", type=int, default=4096, help="0 leaves the large file out")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--folder", help="where the projects are created; the folder of temporary files by default")
    options = parser.parse_args()
    slipway = [str(pathlib.Path(options.slipway).resolve()), "data"]
    cases = {f"{options.files} files of {options.file_bytes} bytes": lambda path: many(path, options.files, options.file_bytes)}
    if options.large_mib:
        cases[f"one file of {options.large_mib} MiB"] = lambda path: large(path, options.large_mib)
    if options.million:
        cases = {"1000000 files of 64 bytes": None}
    for name, make in cases.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            root = pathlib.Path(folder)
            environment = {**os.environ, "HOME": folder, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / "site"), "GIT_CONFIG_GLOBAL": os.devnull}
            print(f"{name}\n  {'':<15}{'slipway':>10}{'all cores':>10}{'memory':>11}{'system':>11}{'ratio':>8}{'cores':>8}" + ("" if options.no_dvc else f"{'DVC':>11}{'memory':>11}{'ratio':>8}"), flush=True)
            if make and "files" in name:
                for what, renames in {"only created": False, "and renamed": True}.items():
                    cost = creation(root, options.files, options.file_bytes, renames)
                    print(f"  {what:<15}{'':>40}{cost.seconds:>7.2f} s{cost.cpu:>8.2f} s", flush=True)
            if options.million:
                ours, limits, theirs = measure_million(slipway, root, environment), {}, {}
            else:
                ours, limits = measure(slipway, make, root, environment, compare=True)
                theirs = {} if options.no_dvc else measure([str(pathlib.Path(options.dvc).resolve())], make, root, environment, compare=False)[0]
            for command, cost in ours.items():
                row(command, cost, limits.get(command), theirs.get(command))


if __name__ == "__main__":
    main()
