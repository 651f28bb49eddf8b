"""What `slipway data` does when the machine does not cooperate: a full disk, missing permissions, names and files that it cannot use.

Each test asserts that the message names the cause and the file, and that nothing was half done: no `.dvc` file without its data, no unfinished
files, and the same command succeeds after the repair.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

from suite import Skip

MIB = 1 << 20


class Project:
    """A project without Git in a temporary folder."""

    def __init__(self, root, slipway):
        self.root, self.slipway = root, slipway
        self.work = root / "work"
        self.work.mkdir()
        self.data("init", "--no-scm")

    def data(self, *arguments, user=()):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root), "LC_ALL": "C.UTF-8", "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(
            [*user, self.slipway, *arguments], cwd=self.work, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    def fails(self, *arguments, words, user=()):
        done = self.data(*arguments, user=user)
        assert done.returncode != 0, f"{arguments} succeeded: {done.stdout}"
        for word in words:
            assert word in done.stderr, f"'{word}' is not in the message of {arguments}:\n{done.stderr}"

    def succeeds(self, *arguments, user=()):
        done = self.data(*arguments, user=user)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"

    def write(self, path, content):
        file = self.work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def leftovers(self, folder):
        return [str(path) for path in pathlib.Path(folder).rglob("*") if path.name.startswith(".slipway-")]

    def check_objects(self):
        """Every object of the cache has the content of its name."""
        for path in (self.work / ".dvc/cache/files/md5").glob("??/*"):
            name = path.parent.name + path.name.removesuffix(".dir")
            assert hashlib.md5(path.read_bytes()).hexdigest() == name, f"{path} has another content"


@contextlib.contextmanager
def project(slipway):
    with tempfile.TemporaryDirectory() as folder:
        yield Project(pathlib.Path(folder).resolve(), slipway)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes at a folder."""
    if os.geteuid() != 0:
        raise Skip("needs root to mount a file system")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(f"cannot mount a file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk_of_the_cache(context):
    with project(context[1]) as p, small_disk(p.work / ".dvc/cache", 2 * MIB):
        p.write("large", os.urandom(8 * MIB))
        p.write("small", b"small")
        p.fails("add", "large", words=["No space left on device"])
        assert not (p.work / "large.dvc").exists() and (p.work / "large").stat().st_size == 8 * MIB
        assert not p.leftovers(p.work / ".dvc/cache")
        p.succeeds("add", "small")
        subprocess.run(["mount", "-o", f"remount,size={32 * MIB}", p.work / ".dvc/cache"], check=True)
        p.succeeds("add", "large")
        p.check_objects()


def full_disk_of_the_workspace(context):
    with project(context[1]) as p:
        p.write("disk/x", b"old")
        p.succeeds("add", "disk/x")
        shutil.copy(p.work / "disk/x.dvc", p.root / "old.dvc")
        p.write("disk/x", os.urandom(4 * MIB))
        p.succeeds("add", "disk/x")
        shutil.copy(p.work / "disk/x.dvc", p.root / "new.dvc")
        shutil.rmtree(p.work / "disk")
        with small_disk(p.work / "disk", MIB):
            shutil.copy(p.root / "old.dvc", p.work / "disk/x.dvc")
            p.succeeds("checkout")
            shutil.copy(p.root / "new.dvc", p.work / "disk/x.dvc")
            p.fails("checkout", words=["No space left on device", "disk/x"])
            assert (p.work / "disk/x").read_bytes() == b"old"
            assert not p.leftovers(p.work / "disk")


def read_only_cache(context):
    with project(context[1]) as p, small_disk(p.work / ".dvc/cache", 8 * MIB):
        p.write("kept", b"kept")
        p.succeeds("add", "kept")
        (p.work / "kept").unlink()
        subprocess.run(["mount", "-o", "remount,ro", p.work / ".dvc/cache"], check=True)
        p.write("x", b"x")
        p.fails("add", "x", words=["Read-only file system", ".dvc/cache"])
        assert not (p.work / "x.dvc").exists()
        p.succeeds("checkout", "kept.dvc")
        assert (p.work / "kept").read_bytes() == b"kept"


def unreadable_file(context):
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        raise Skip("needs root and setpriv to act as another user")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        # The other user must reach the program and the project.
        binary = root / "dvc"
        shutil.copy(pathlib.Path(context[1]).resolve(), binary)
        p = Project(root, str(binary))
        p.write("images/readable", b"1")
        p.write("images/secret", b"2")
        subprocess.run(["chown", "-R", "65534:65534", root], check=True)
        os.chmod(p.work / "images/secret", 0)
        p.fails("add", "images", words=["Permission denied", "images/secret"], user=user)
        assert not (p.work / "images.dvc").exists()
        os.chmod(p.work / "images/secret", 0o600)
        p.succeeds("add", "images", user=user)
        p.check_objects()


def name_that_is_not_utf8(context):
    with project(context[1]) as p:
        (p.work / "images").mkdir()
        pathlib.Path(os.fsdecode(os.fsencode(p.work / "images") + b"/caf\xe9.png")).write_bytes(b"x")
        p.fails("add", "images", words=["images", "caf", "not valid UTF-8"])
        assert not (p.work / "images.dvc").exists()


def file_that_changes_while_it_is_added(context):
    with project(context[1]) as p:
        p.write("log", b"0" * 32 * MIB)
        stop = threading.Event()

        def append():
            with open(p.work / "log", "ab", buffering=0) as file:
                while not stop.is_set():
                    file.write(b"more")

        writer = threading.Thread(target=append)
        writer.start()
        try:
            p.succeeds("add", "log")
        finally:
            stop.set()
            writer.join()
        p.check_objects()
        # What was written after the file was read is not lost, and is a change.
        assert "modified" in p.data("status").stdout
        p.succeeds("add", "log")
        assert p.data("status", "--json").stdout.strip() == "{}"
        p.check_objects()


TESTS = {
    "full disk of the cache": full_disk_of_the_cache,
    "full disk of the workspace": full_disk_of_the_workspace,
    "read-only cache": read_only_cache,
    "unreadable file": unreadable_file,
    "name that is not UTF-8": name_that_is_not_utf8,
    "file that changes while it is added": file_that_changes_while_it_is_added,
}
