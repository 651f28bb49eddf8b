"""Compares `slipway data` with DVC, command by command and byte by byte.

    python run.py --slipway target/release/slipway [--dvc PATH] [SUBSTRING ...] [--list] [--junit FILE]

Each scenario runs in a sandbox with slipway, called through a link named `dvc`. After every command its exit code and output, and the files of
the workspace, the cache and the remote, with their permissions, must be those of DVC. With `--dvc`, the program of the original, DVC runs too:
its results are recorded anew in `recorded/`, and the scenario also runs with both programs in turn, which must give the same files. Without,
the recordings are used.

Not compared: `.dvc/tmp` and the messages for people, other than the lines of reports.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
import api
import experiments  # noqa: F401 - it registers its scenarios
import external  # noqa: F401 - it registers its scenarios
import hard
import hydra_configs
import partial_imports  # noqa: F401 - it registers its scenarios
import pipelines  # noqa: F401 - it registers its scenarios
import queued  # noqa: F401 - it registers its scenarios
import remembered
import reports  # noqa: F401 - it registers its scenarios
import workers
from scenarios import SCENARIOS
from suite import Suite

SUITE = Suite("dvc", limit=600, jobs=os.cpu_count() or 1)
RECORDED = pathlib.Path(__file__).parent / "recorded"
DVC_LEFTOVER = re.compile(r"\.[\w-]{22}\.tmp")
# Contents up to this size are recorded as text, others by their digest.
MAX_TEXT = 2000


class Player:
    """Runs a scenario in a sandbox; the commands with the programs in turn."""

    def __init__(self, sandbox, programs):
        self.sandbox, self.programs, self.steps = sandbox, programs, []
        # Folders of the sandbox whose files a scenario leaves out.
        self.not_compared = []
        self.work = sandbox / "work"
        self.work.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(sandbox), "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
            "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(sandbox / "site"), "DVC_GLOBAL_CONFIG_DIR": str(sandbox / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(sandbox / "system"), "GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "n@example.invalid", "GIT_COMMITTER_NAME": "n",
            "GIT_COMMITTER_EMAIL": "n@example.invalid", "GIT_CEILING_DIRECTORIES": str(sandbox), "NO_COLOR": "1", "COLUMNS": "200",
            # The ids of commits are recorded by imports, so they must be the same in every run. DVC reads only this format.
            "GIT_AUTHOR_DATE": "1767225600 +0000", "GIT_COMMITTER_DATE": "1767225600 +0000", "XDG_CACHE_HOME": str(sandbox / "site" / "cache"),
        }
        self.git("init", "-q", "-b", "master")
        self.dvc("init")

    def run(self, command, folder):
        return subprocess.run(command, cwd=self.work / folder, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def dvc(self, *arguments, folder=".", json=False, text=False, masked=False):
        program = self.programs[len(self.steps) % len(self.programs)]
        # The workers of DVC start `dvc`.
        self.environment["PATH"] = os.pathsep.join([os.path.dirname(os.path.abspath(program)), os.environ["PATH"]])
        done = self.run([program, *arguments], folder)
        self.record("dvc " + " ".join(arguments), done, json, text, masked)

    def git(self, *arguments, text=False, masked=False):
        done = self.run(["git", *arguments], ".")
        assert done.returncode == 0, done.stderr
        if text:
            self.record("git " + " ".join(arguments), done, False, True, masked)

    def commit(self, message):
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def record(self, command, done, as_json, as_text, masked=False):
        output = None
        if masked:
            done.stdout = mask(done.stdout)
        if as_json:
            output = json.loads(done.stdout)
        elif as_text:
            output = sorted(in_order(line) for line in done.stdout.replace(str(self.sandbox), "$SANDBOX").splitlines() if line)
        command = command.replace(str(self.sandbox), "$SANDBOX")
        self.steps.append({"command": command, "exit": done.returncode, "output": output, "files": self.files(), "messages": done.stderr})

    def write(self, path, content, mode=None):
        file = self.work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # A new file, as an editor writes it: a link to the cache must not be written through.
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        file.write_bytes(content.encode())
        if mode:
            file.chmod(mode)

    def remove(self, path):
        full = self.work / path
        if full.is_dir() and not full.is_symlink():
            shutil.rmtree(full)
        else:
            full.unlink()

    def rename(self, old, new):
        (self.work / old).rename(self.work / new)

    def link(self, path, target):
        (self.work / path).symlink_to(target)

    def files(self):
        found = {}
        for folder, folders, names in os.walk(self.sandbox):
            here = pathlib.Path(folder)
            relative = here.relative_to(self.sandbox)
            if relative.parts and relative.parts[0] in ("site", "global", "system") or ".git" in relative.parts:
                folders.clear()
                continue
            if relative.name == "tmp" and relative.parent.name == ".dvc" or str(relative) in self.not_compared:
                folders.clear()
                continue
            links = [name for name in folders if (here / name).is_symlink()]
            # DVC leaves an unfinished file with a random name behind when it sends data to a remote directly.
            names = [name for name in names if not DVC_LEFTOVER.fullmatch(name)]
            for name in names + links:
                found[str(relative / name)] = describe(here / name, self.sandbox)
            if not names and not folders:
                found[f"{relative}/"] = "empty folder"
        return found


def mask(text):
    """Replaces the identifiers and times of commits, which differ from run to run. The digests of DVC are shorter."""
    text = re.sub(r"\b[0-9a-f]{40}\b", "$COMMIT", text)
    text = re.sub(r"\b[0-9a-f]{2}/[0-9a-f]{38}\b", "$BASELINE", text)
    text = re.sub(r"\b[0-9a-f]{7}\b", "$SHORT", text)
    # A worker of DVC stays for some seconds after the last experiment.
    text = re.sub(r"Worker status: .*", "$WORKERS", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d|\b\d\d:\d\d [AP]M\b", "$TIME", text)


def describe(path, sandbox):
    if path.is_symlink():
        return "link to " + os.readlink(path).replace(str(sandbox), "$SANDBOX")
    mode = f"{stat.S_IMODE(path.stat().st_mode):o}"
    names = path.stat().st_nlink
    content = path.read_bytes()
    try:
        text = content.decode()
        if len(text) > MAX_TEXT:
            raise ValueError
    except ValueError:
        text = f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}"
    return f"{mode}{' shared' if names > 1 else ''} {text}"


def in_order(line):
    """A line with the files that DVC suggests to add to Git in order: it prints a set of Python, whose order differs from process to process."""
    before, suggested, files = line.partition("git add ")
    return before + suggested + " ".join(sorted(files.split())) if suggested and not before.strip() else line


def play(scenario, programs):
    umask = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as folder:
            player = Player(pathlib.Path(folder).resolve(), programs)
            scenario(player)
            return player.steps
    finally:
        os.umask(umask)


def compare(ours, theirs, what):
    for mine, other in zip(ours, theirs, strict=True):
        place = f"{what}, after `{mine['command']}`"
        assert mine["exit"] == other["exit"], f"{place}: exit code {mine['exit']}, not {other['exit']}\n{mine['messages']}"
        assert mine["output"] == other["output"], f"{place}: output\n{mine['output']}\nnot\n{other['output']}"
        for path in sorted(mine["files"].keys() | other["files"].keys()):
            a, b = mine["files"].get(path), other["files"].get(path)
            assert a == b, f"{place}: {path} is\n{a}\nnot\n{b}\n{mine['messages']}"


def run(context, name):
    options, link = context
    scenario = SCENARIOS[name]
    recorded = RECORDED / f"{name}.json"
    if options.dvc:
        theirs = play(scenario, [options.dvc])
        steps = [{key: step[key] for key in ("command", "exit", "output", "files")} for step in theirs]
        # Each step has the files that differ from the step before.
        recorded.write_text(json.dumps(shrink(steps), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    else:
        theirs = grow(json.loads(recorded.read_text()))
    compare(play(scenario, [link]), theirs, "slipway alone")
    if options.dvc:
        compare(play(scenario, [options.dvc, link]), theirs, "DVC, then slipway")
        compare(play(scenario, [link, options.dvc]), theirs, "slipway, then DVC")
    print(f"     {len(theirs)} commands")


def shrink(steps):
    last, result = {}, []
    for step in steps:
        files = step["files"]
        changes = {path: files.get(path) for path in files.keys() | last.keys() if files.get(path) != last.get(path)}
        result.append({**step, "files": changes})
        last = files
    return result


def grow(steps):
    last, result = {}, []
    for step in steps:
        last = {path: content for path, content in {**last, **step["files"]}.items() if content is not None}
        result.append({**step, "files": last})
    return result


for name in SCENARIOS:
    SUITE.add(name.replace("_", " "), lambda context, name=name: run(context, name))

for name, test in {**hard.TESTS, **workers.TESTS, **hydra_configs.TESTS, **remembered.TESTS}.items():
    SUITE.add(name, test)
SUITE.add("the Python package reads what slipway wrote", lambda context: api.run(*context))


@contextlib.contextmanager
def fixture(options):
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, "dvc")
        link.symlink_to(pathlib.Path(options.slipway).resolve())
        RECORDED.mkdir(exist_ok=True)
        yield options, str(link)


if __name__ == "__main__":
    options = SUITE.options(__doc__, slipway={"required": True}, dvc={"help": "path of the original, whose results are recorded anew"})
    sys.exit(SUITE.main(options, lambda _: fixture(options)))
