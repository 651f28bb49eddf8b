"""DVC's Python package reads what slipway wrote: `dvc.api`, `DVCFileSystem`, and DVC's own commands on an import of slipway."""

import pathlib
import subprocess
import tempfile

from suite import Skip

# Runs with the Python of the original, in a project that slipway created; the argument is the folder of the repository.
READER = """
import os
import sys
import dvc.api
from dvc.api import DVCFileSystem
from dvc.repo import Repo

repo = sys.argv[1]
assert dvc.api.read("data/a.csv", repo=repo) == "two\\n"
assert dvc.api.read("data/a.csv", repo=repo, rev="v1") == "one\\n"
assert dvc.api.get_url("data/a.csv", repo=repo).endswith("files/md5/c1/93497a1a06b2c72230e6146ff47080")
with dvc.api.open("data/sub/b.csv", repo=repo) as file:
    assert file.read() == "b\\n"
fs = DVCFileSystem(repo, rev="v1")
assert sorted(fs.find("/", detail=False)) == ["/.gitignore", "/data/a.csv", "/data/sub/b.csv"], fs.find("/")
assert fs.isdvc("/data/a.csv") and fs.info("/data")["type"] == "directory"
fs.get("data", "copied", recursive=True)
assert open("copied/sub/b.csv").read() == "b\\n"
assert [entry["path"] for entry in Repo.ls(repo, recursive=True, dvc_only=True)] == ["data/a.csv", "data/sub/b.csv"]
os.chdir("../importer")
with Repo() as importer:
    assert importer.status() == {"data.dvc": [{"changed deps": {"data (../project)": "update available"}}]}, importer.status()
    importer.update("data.dvc")
    assert importer.status() == {}, importer.status()
assert open("data/a.csv").read() == "two\\n"
"""


def run(options, slipway):
    """A project and an import of it, created by slipway, are read by the Python package of the original."""
    if not options.dvc:
        raise Skip("needs the original; pass --dvc")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        project, importer = root / "project", root / "importer"

        def call(where, *command):
            done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

        python = str(pathlib.Path(options.dvc).with_name("python"))
        identity = {f"GIT_{who}_{what}": "n@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {
            "PATH": f"{pathlib.Path(slipway).parent}:/usr/bin:/bin", "HOME": folder, "DVC_NO_ANALYTICS": "1", "LC_ALL": "C.UTF-8",
            "DVC_SITE_CACHE_DIR": str(root / "site"), "GIT_CONFIG_GLOBAL": "/dev/null", **identity,
        }
        for path in (project, importer):
            path.mkdir()
            call(path, "git", "init", "-q", "-b", "main")
            call(path, slipway, "init")
        write(project, "data/a.csv", "one\n")
        write(project, "data/sub/b.csv", "b\n")
        call(project, slipway, "add", "data")
        call(project, slipway, "remote", "add", "-d", "store", "../store")
        call(project, slipway, "push")
        call(project, "git", "add", "-A")
        call(project, "git", "commit", "-qm", "one")
        call(project, "git", "tag", "v1")
        call(importer, slipway, "import", "../project", "data")
        write(project, "data/a.csv", "two\n")
        call(project, slipway, "add", "data")
        call(project, slipway, "push")
        call(project, "git", "commit", "-qam", "two")
        call(project, python, "-c", READER, str(project))


def write(root, path, content):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(content)
