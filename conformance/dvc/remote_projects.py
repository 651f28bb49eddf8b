"""Projects for the tests of remotes, and what every remote must be able to do."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from suite import Skip

LARGE = 40 << 20


class Programs:
    def __init__(self, slipway, dvc):
        self.slipway, self.dvc = os.path.abspath(slipway), dvc and os.path.abspath(dvc)


class Sandbox:
    """A folder for projects, with a home of its own, so that no configuration of the user matters."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, pathlib.Path(folder)
        (self.folder / "bin").mkdir()
        (self.folder / "bin/dvc").symlink_to(programs.slipway)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8", "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@example.invalid", "GIT_COMMITTER_NAME": "me",
            "GIT_COMMITTER_EMAIL": "me@example.invalid", "SLIPWAY_HOME": str(self.folder / "state"),
        }

    def project(self, name):
        project = Project(self, self.folder / name)
        project.path.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=project.path, check=True)
        project.ours("init", "-q")
        return project

    def knows(self, sshd):
        """Makes the host of an sshd known. OpenSSH reads the configuration of the account, not of $HOME, as DVC's client does."""
        wrapper = self.folder / "bin/ssh"
        wrapper.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -o UserKnownHostsFile={sshd.known_hosts} \"$@\"\n")
        wrapper.chmod(0o755)
        self.environment["PATH"] = f"{self.folder}/bin:{os.environ['PATH']}"
        (self.folder / ".ssh").mkdir()
        shutil.copy(sshd.known_hosts, self.folder / ".ssh/known_hosts")


class Project:
    def __init__(self, sandbox, path):
        self.sandbox, self.path = sandbox, path

    def run(self, program, *arguments, fails=False):
        done = subprocess.run([str(program), *map(str, arguments)], cwd=self.path, env=self.sandbox.environment,
                              capture_output=True, text=True)
        if (done.returncode != 0) != fails:
            raise AssertionError(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def ours(self, *arguments, fails=False):
        return self.run(self.sandbox.folder / "bin/dvc", *arguments, fails=fails)

    def original(self, *arguments, fails=False):
        if not self.sandbox.programs.dvc:
            raise Skip("needs DVC (--dvc)")
        return self.run(self.sandbox.programs.dvc, *arguments, fails=fails)

    def remote(self, url, **options):
        self.ours("remote", "add", "-f", "-d", "r", url)
        for name, value in options.items():
            self.ours("remote", "modify", "r", name, value)

    def fill(self, seed):
        """A folder with many small files, and a large one."""
        data = self.path / "data"
        data.mkdir(exist_ok=True)
        for number in range(60):
            (data / f"{number}.txt").write_text(f"{seed} {number}\n")
        (data / "empty").write_text("")
        (data / "large.bin").write_bytes(block(seed, LARGE))

    def clone(self, name):
        """A project with the same tracked files and configuration, and an empty cache."""
        other = Project(self.sandbox, self.sandbox.folder / name)
        shutil.copytree(self.path, other.path, ignore=shutil.ignore_patterns("data", "cache", "tmp"))
        return other


def block(seed, size):
    piece = hashlib.sha256(seed.encode()).digest() * 1024
    return (piece * (size // len(piece) + 1))[:size]


def tree(folder):
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def objects(project):
    cache = project.path / ".dvc/cache"
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()) if cache.exists() else []


@contextlib.contextmanager
def sandbox(programs):
    with tempfile.TemporaryDirectory(prefix="slipway-remotes-") as folder:
        yield Sandbox(programs, folder)


def round_trip(sandbox, url, lists=True, **options):
    """Everything that a remote of our own program needs."""
    first = sandbox.project("first")
    first.remote(url, **options)
    first.fill("first")
    first.ours("add", "data")
    pushed = first.ours("push")
    assert "64 files pushed" in pushed or "63 files pushed" in pushed, pushed
    assert "up to date" in first.ours("push")
    assert "in sync" in first.ours("status", "-c")
    second = first.clone("second")
    second.ours("pull")
    assert tree(second.path / "data") == tree(first.path / "data")
    # A second version, of which only the new files are sent.
    (first.path / "data/0.txt").write_text("changed\n")
    first.ours("add", "data")
    assert "new" in first.ours("status", "-c")
    assert "2 files pushed" in first.ours("push")
    if lists:
        runs = first.path / ".dvc/cache/runs/ab" / ("ab" * 32)
        runs.mkdir(parents=True)
        (runs / ("cd" * 32)).write_text("cmd: true\n")
        assert "1 file pushed" in first.ours("push", "--run-cache")
        assert "up to date" in first.ours("push", "--run-cache")
        second.ours("fetch", "--run-cache")
        assert (second.path / ".dvc/cache" / runs.relative_to(first.path / ".dvc/cache") / ("cd" * 32)).read_text() == "cmd: true\n"
        first.ours("gc", "-w", "-c", "-f")
        assert "in sync" in first.ours("status", "-c")
        third = first.clone("third")
        third.ours("pull")
        assert tree(third.path / "data") == tree(first.path / "data")
        assert "deleted" not in second.ours("status", "-c")
    return first


def in_turn(sandbox, url, **options):
    """slipway and DVC use one remote in turn."""
    first = sandbox.project("ours")
    first.remote(url, **options)
    first.fill("first")
    first.ours("add", "data")
    first.ours("push")
    assert "in sync" in first.original("status", "-c")
    second = first.clone("original")
    second.original("pull")
    assert tree(second.path / "data") == tree(first.path / "data")
    second.fill("second")
    second.original("add", "data")
    second.original("push")
    assert "in sync" in second.ours("status", "-c")
    third = second.clone("again")
    third.ours("pull")
    assert tree(third.path / "data") == tree(second.path / "data")
    return first
