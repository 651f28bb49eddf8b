"""Workers of the queue that are killed: what they ran goes on or is marked as failed, and the next command works."""

import os
import pathlib
import signal
import subprocess
import tempfile
import time

import hard

TIMEOUT = 60


class Queue(hard.Project):
    """A project with a stage that waits until a file named `go` exists, and writes its process id."""

    def __init__(self, root, slipway):
        self.root, self.slipway = root, slipway
        self.work = root / "work"
        self.work.mkdir()
        self.git("init", "-q")
        self.data("init")
        stage = f"echo $$ > {root}/$DVC_EXP_NAME.pid; until [ -e {root}/go ]; do sleep 0.05; done; cp params.yaml out"
        self.write("dvc.yaml", f"stages:\n  wait:\n    cmd: {stage}\n    params: [lr]\n    outs: [out]\n".encode())
        self.write("params.yaml", b"lr: 1\n")
        self.git("add", "-A")
        self.git("commit", "-qm", "first")

    def git(self, *arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=n@example.invalid", *arguments], cwd=self.work, check=True, capture_output=True)

    def data(self, *arguments, user=()):
        os.environ.update({f"GIT_{who}_{what}": "n@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")})
        environment = {**os.environ, "HOME": str(self.root), "LC_ALL": "C.UTF-8"}
        return subprocess.run([self.slipway, *arguments], cwd=self.work, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def states(self):
        lines = self.data("queue", "status").stdout.splitlines()
        return {line.split()[1]: line.split()[-1] for line in lines[1:] if len(line.split()) > 3 and not line.startswith("Worker")}

    def start(self, *names):
        for name in names:
            self.succeeds("exp", "run", "--queue", "-n", name, "-S", f"lr={len(name)}")
        self.succeeds("queue", "start")
        return int(wait(lambda: (self.root / f"{names[0]}.pid").exists() and (self.root / f"{names[0]}.pid").read_text().strip()))

    def pid(self, kind):
        """The process of a worker or of the only execution."""
        pattern = {"worker": "celery/dvc-exp-worker-1.json", "execution": "run/*/*.json"}[kind]
        files = sorted((self.work / ".dvc/tmp/exps").glob(pattern), key=lambda file: file.stat().st_mtime)
        return int(files[-1].read_text().split('"pid":')[1].split(",")[0])


def wait(condition):
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return value


def is_dead(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except OSError:
        return True


def with_queue(test):
    def run(context):
        with tempfile.TemporaryDirectory() as folder:
            queue = Queue(pathlib.Path(folder).resolve(), context[1])
            try:
                test(queue)
            finally:
                queue.data("queue", "stop", "--kill")
                wait(lambda: is_dead(queue.pid("worker")))
    return run


@with_queue
def killed_worker(queue):
    queue.start("a", "bb")
    os.kill(queue.pid("worker"), signal.SIGKILL)
    wait(lambda: is_dead(queue.pid("worker")))
    assert queue.states() == {"a": "Running", "bb": "Queued"}, queue.states()
    (queue.root / "go").touch()
    # The execution goes on without its worker.
    wait(lambda: queue.states()["a"] == "Success")
    queue.succeeds("exp", "run", "--run-all")
    assert queue.states() == {"a": "Success", "bb": "Success"}, queue.states()
    queue.succeeds("exp", "apply", "bb")
    assert (queue.work / "params.yaml").read_text() == "lr: 2\n"


@with_queue
def killed_execution(queue):
    command = queue.start("a", "bb")
    os.kill(queue.pid("execution"), signal.SIGKILL)
    # Its command is killed, too, and the worker takes the next experiment.
    wait(lambda: is_dead(command) and queue.states()["a"] == "Failed")
    (queue.root / "go").touch()
    wait(lambda: queue.states()["bb"] == "Success")
    assert not list((queue.work / ".dvc/tmp/exps").glob("tmp*"))


@with_queue
def killed_worker_and_execution(queue):
    command = queue.start("a", "bb")
    os.kill(queue.pid("worker"), signal.SIGKILL)
    os.kill(queue.pid("execution"), signal.SIGKILL)
    wait(lambda: queue.states() == {"a": "Failed", "bb": "Queued"})
    assert is_dead(command)
    (queue.root / "go").touch()
    queue.succeeds("exp", "run", "--run-all")
    assert queue.states() == {"a": "Failed", "bb": "Success"}, queue.states()
    assert not list((queue.work / ".dvc/tmp/exps").glob("tmp*"))
    queue.succeeds("queue", "remove", "--all")
    assert queue.states() == {}


@with_queue
def interrupted_execution(queue):
    command = queue.start("a")
    queue.succeeds("queue", "kill", "a")
    wait(lambda: queue.states()["a"] == "Failed")
    wait(lambda: is_dead(command))


@with_queue
def stopped_worker(queue):
    queue.start("a", "bb")
    queue.succeeds("queue", "stop")
    (queue.root / "go").touch()
    wait(lambda: is_dead(queue.pid("worker")))
    assert queue.states() == {"a": "Success", "bb": "Queued"}, queue.states()


@with_queue
def killed_at_any_moment(queue):
    """Kills the worker and its execution after delays that grow, from before the start to after the end."""
    (queue.root / "go").touch()
    for attempt in range(12):
        queue.succeeds("exp", "run", "--queue", "-n", f"e{attempt}", "-S", f"lr={attempt}")
        queue.succeeds("queue", "start")
        time.sleep(attempt * 0.04)
        for kind in ("worker", "execution"):
            try:
                os.kill(queue.pid(kind), signal.SIGKILL)
            except (ProcessLookupError, IndexError):
                pass
    queue.succeeds("exp", "run", "--run-all")
    states = queue.states()
    assert set(states.values()) <= {"Success", "Failed"} and len(states) == 12, states
    assert not list((queue.work / ".dvc/tmp/exps").glob("tmp*"))
    for name in (name for name, state in states.items() if state == "Success"):
        queue.succeeds("exp", "apply", name)
        assert (queue.work / "out").read_text() == f"lr: {name[1:]}\n"
    subprocess.run(["git", "fsck", "--no-dangling"], cwd=queue.work, check=True, capture_output=True)


TESTS = {
    "killed worker of the queue": killed_worker,
    "killed execution of the queue": killed_execution,
    "killed worker and execution": killed_worker_and_execution,
    "interrupted execution": interrupted_execution,
    "stopped worker": stopped_worker,
    "queue that is killed at any moment": killed_at_any_moment,
}
