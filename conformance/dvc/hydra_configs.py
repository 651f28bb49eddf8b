"""Parameters that Hydra composes (`hydra.enabled`), for experiments in the workspace and in the queue."""

import os
import pathlib
import subprocess
import sys
import tempfile

import hard
from suite import Skip

CONFIGS = {
    "conf/config.yaml": "defaults:\n- _self_\n- db: mysql\nlr: 0.1\n",
    "conf/db/mysql.yaml": "name: mysql\nport: 3306\nurl: ${db.name}:${db.port}\n",
    "conf/db/postgres.yaml": "name: postgres\nport: 5432\nurl: ${db.name}:${db.port}\n",
}


class Project(hard.Project):
    def __init__(self, root, slipway, python):
        """`python` is a folder with the programs of an environment that has Hydra."""
        self.root, self.slipway = root, slipway
        self.work = root / "work"
        self.work.mkdir(parents=True)
        self.environment = {
            "PATH": f"{python}:{os.environ['PATH']}" if python else os.environ["PATH"], "HOME": str(root), "LC_ALL": "C.UTF-8", "DVC_NO_ANALYTICS": "1",
            **{f"GIT_{who}_{what}": "n@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self.run("git", "init", "-q")
        self.succeeds("init", "-q")
        self.succeeds("config", "hydra.enabled", "true")
        for path, text in CONFIGS.items():
            self.write(path, text.encode())
        self.write("params.yaml", b"")
        self.write("dvc.yaml", b"stages:\n  s:\n    cmd: cp params.yaml out\n    params: [db]\n    outs: [out]\n")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "first")

    def run(self, *command):
        done = subprocess.run(command, cwd=self.work, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def data(self, *arguments, user=()):
        return subprocess.run([self.slipway, *arguments], cwd=self.work, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def composed(context):
    options, slipway = context
    python = pathlib.Path(options.dvc).resolve().parent if options.dvc else pathlib.Path(sys.executable).parent
    if subprocess.run([python / "python3", "-c", "import hydra"], capture_output=True).returncode != 0:
        raise Skip("needs hydra-core")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        projects = [Project(root / "ours", slipway, python)]
        if options.dvc:
            projects.append(Project(root / "theirs", options.dvc, python))
        for project in projects:
            project.texts = []
            for changes in ([], ["lr=0.2"], ["db=postgres", "db.port=1"], ["+new=a", "~lr"]):
                project.succeeds("exp", "run", *(word for change in changes for word in ("-S", change)))
                project.texts.append((project.work / "params.yaml").read_text())
            project.fails("exp", "run", "-S", "unknown=1", words=["unknown"])
            project.succeeds("exp", "run", "--no-hydra", "-S", "db.port=2")
            project.texts.append((project.work / "params.yaml").read_text())
            project.succeeds("exp", "run", "--queue", "-S", "db=mysql,postgres", "-n", "q")
            project.succeeds("exp", "run", "--run-all")
            for name in ("q-1", "q-2"):
                project.succeeds("exp", "apply", name)
                project.texts.append((project.work / "params.yaml").read_text())
        ours = projects[0].texts
        assert ours[1] == "lr: 0.2\ndb:\n  name: mysql\n  port: 3306\n  url: mysql:3306\n", ours[1]
        assert "postgres:1" in ours[2] and "new: a" in ours[3] and "port: 2" in ours[4] and "postgres:5432" in ours[6], ours
        assert all(project.texts == ours for project in projects), [project.texts for project in projects]


def missing(context):
    """Without Hydra the message says what to install, and nothing changes."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        project = Project(root / "p", context[1], None)
        (root / "modules").mkdir()
        (root / "modules/hydra.py").write_text("raise ImportError('no Hydra here')\n")
        project.environment["PYTHONPATH"] = str(root / "modules")
        for how in ([], ["--queue"]):
            project.fails("exp", "run", "-S", "lr=0.2", *how, words=["no Hydra here", "hydra-core", "--no-hydra"])
        assert (project.work / "params.yaml").read_text() == ""


TESTS = {"parameters that Hydra composes": composed, "Hydra that is not installed": missing}
