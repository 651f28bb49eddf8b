"""Workers of the queue that are killed: what they ran goes on or is marked as failed, and the next command works."""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import hard
from suite import Skip

TIMEOUT = 60


class Queue(hard.Project):
    """A project with a stage that waits until a file named `go` exists, and writes its process id."""

    def __init__(self, root, slipway):
        self.root, self.slipway, self.variables = root, slipway, {}
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
        environment = {**os.environ, "HOME": str(self.root), "LC_ALL": "C.UTF-8", **self.variables}
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
            queue.dvc = context[0].dvc
            try:
                test(queue)
            finally:
                queue.data("queue", "stop", "--kill")
                if list((queue.work / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json")):
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
def killed_execution_whose_git_goes_on(queue):
    """Git creates the repository of an execution. It must not create the folder again when that of the killed execution was removed."""
    tools = queue.root / "tools"
    tools.mkdir()
    (tools / "git").write_text(f"""#!/bin/sh
case "$*" in *" init "*exps/tmp*)
    echo $$ > {queue.root}/git.pid
    until [ -e {queue.root}/resume ]; do sleep 0.05; done
esac
exec {shutil.which("git")} "$@"
""")
    (tools / "git").chmod(0o755)
    queue.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    queue.succeeds("exp", "run", "--queue", "-n", "a", "-S", "lr=2")
    queue.succeeds("queue", "start")
    git = int(wait(lambda: (queue.root / "git.pid").exists() and (queue.root / "git.pid").read_text().strip()))
    for kind in ("worker", "execution"):
        os.kill(queue.pid(kind), signal.SIGKILL)
    wait(lambda: queue.states() == {"a": "Failed"})
    (queue.root / "resume").touch()
    wait(lambda: is_dead(git))
    assert not list((queue.work / ".dvc/tmp/exps").glob("tmp*"))


@with_queue
def killed_before_the_outcome_is_recorded(queue):
    """The result is complete, and only the file that says so is missing."""
    (queue.root / "go").touch()
    queue.succeeds("exp", "run", "--queue", "-n", "a", "-S", "lr=2")
    queue.succeeds("exp", "run", "--run-all")
    outcome, = (queue.work / ".dvc/tmp/exps/celery/result").iterdir()
    outcome.unlink()
    assert queue.states() == {"a": "Success"}, queue.states()
    queue.succeeds("exp", "apply", "a")
    assert (queue.work / "out").read_text() == "lr: 2\n"


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
def stopped_by_a_message(queue):
    """As DVC's command stops workers: a message for each mailbox in the table of the broker."""
    queue.start("a", "bb")
    broker = queue.work / ".dvc/tmp/exps/celery/broker"
    mailboxes = [mailbox for _, _, mailbox in json.loads((broker / "control/celery.pidbox.exchange").read_text())]
    assert len(mailboxes) == 1 and mailboxes[0].endswith("-1@localhost.celery.pidbox"), mailboxes
    reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "someone"}
    for number, body in enumerate(({"method": "active", "ticket": "t", "reply_to": reply_to}, {"method": "shutdown"})):
        message = {"body": base64.b64encode(json.dumps({"destination": None, "arguments": {}, **body}).encode()).decode()}
        (broker / "in" / f"{number}_x.{mailboxes[0]}.msg").write_text(json.dumps(message))
    reply, = wait(lambda: list((broker / "in").glob("*.someone.reply.celery.pidbox.msg")))
    (node, tasks), = json.loads(base64.b64decode(json.loads(reply.read_text())["body"])).items()
    assert mailboxes[0].startswith(node) and len(tasks) == 1, (node, tasks)
    (queue.root / "go").touch()
    wait(lambda: is_dead(queue.pid("worker")))
    assert queue.states() == {"a": "Success", "bb": "Queued"}, queue.states()
    assert json.loads((broker / "control/celery.pidbox.exchange").read_text()) == []


def original(queue, *arguments):
    environment = {**os.environ, "HOME": str(queue.root), "DVC_NO_ANALYTICS": "1", "PATH": f"{pathlib.Path(queue.dvc).parent}:{os.environ['PATH']}"}
    # Not a pipe, which its workers would keep open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run([queue.dvc, *arguments], cwd=queue.work, env=environment, stdout=output, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        output.seek(0)
        text = output.read()
    assert done.returncode == 0, (arguments, text)
    return text


@with_queue
def stopped_by_the_other_program(queue):
    if not queue.dvc:
        raise Skip("needs DVC (--dvc)")
    queue.start("a", "bb")
    assert "1 active" in original(queue, "queue", "status"), "DVC sees the worker"
    original(queue, "queue", "start")
    assert len(list((queue.work / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json"))) == 1
    original(queue, "queue", "stop")
    (queue.root / "go").touch()
    wait(lambda: is_dead(queue.pid("worker")))
    assert queue.states() == {"a": "Success", "bb": "Queued"}, queue.states()
    # The other way round.
    (queue.root / "go").unlink()
    queue.succeeds("exp", "run", "--queue", "-n", "ccc", "-S", "lr=3")
    original(queue, "queue", "start")
    wait(lambda: (queue.root / "bb.pid").exists())
    queue.succeeds("queue", "stop")
    (queue.root / "go").touch()
    wait(lambda: is_dead(queue.pid("worker")))
    assert queue.states() == {"a": "Success", "bb": "Success", "ccc": "Queued"}, queue.states()


@with_queue
def continued_experiment(queue):
    """A stash with a branch, as old versions of DVC and its Python package queue it: the result comes after the experiment's last commit."""
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=queue.work, check=True, capture_output=True, text=True).stdout.strip()
    (queue.root / "go").touch()
    queue.succeeds("exp", "run", "--queue", "-n", "first", "-S", "lr=1")
    queue.succeeds("exp", "run", "--run-all")
    reference = git("for-each-ref", "--format=%(refname)", f"refs/exps/{git('rev-parse', 'HEAD')[:2]}")
    first = git("rev-parse", reference)
    queue.succeeds("exp", "run", "--queue", "-n", "second", "-S", "lr=6")
    file, = [file for file in (queue.work / ".dvc/tmp/exps/celery/broker/in").glob("*.celery.msg")]
    envelope = json.loads(file.read_text())
    body = json.loads(base64.b64decode(envelope["body"]))
    stash = body[0][0]["stash_rev"]
    message = git("show", "-s", "--format=%B", stash)
    parents = [word for parent in git("show", "-s", "--format=%P", stash).split() for word in ("-p", parent)]
    body[0][0] |= {"stash_rev": git("commit-tree", f"{stash}^{{tree}}", *parents, "-m", f"{message}:{reference}"), "branch": reference}
    git("stash", "store", "-m", "continued", body[0][0]["stash_rev"])
    envelope["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    file.write_text(json.dumps(envelope))
    queue.succeeds("exp", "run", "--run-all")
    assert set(queue.states().values()) == {"Success"}, queue.data("queue", "logs", "second").stdout
    assert git("rev-list", f"HEAD..{reference}").split() == [git("rev-parse", reference), first]
    assert git("show", f"{reference}:params.yaml") == "lr: 6"


@with_queue
def shown_while_it_runs_in_the_workspace(queue):
    process = subprocess.Popen([queue.slipway, "exp", "run", "-n", "here", "-S", "lr=7"], cwd=queue.work,
                               env={**os.environ, "HOME": str(queue.root)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: (queue.root / "here.pid").exists())
        shown = json.loads(queue.data("exp", "show", "--json").stdout)
        running, = shown[1]["experiments"]
        assert running["name"] == "here" and running["revs"][0]["rev"] == "workspace", running
        assert running["revs"][0]["data"]["params"]["params.yaml"]["data"] == {"lr": 7}, running
        assert running["executor"] == {"state": "running", "name": "workspace", "local": {
            "root": str(queue.work), "log": None, "pid": process.pid, "returncode": None, "task_id": None}}, running
        if queue.dvc:
            theirs = json.loads(original(queue, "exp", "show", "--json"))[1]["experiments"]
            assert theirs == shown[1]["experiments"], theirs
        (queue.root / "go").touch()
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
    executors = [experiment["executor"] for experiment in json.loads(queue.data("exp", "show", "--json").stdout)[1]["experiments"]]
    assert executors == [None], executors


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
    "killed execution whose git goes on": killed_execution_whose_git_goes_on,
    "killed execution before its outcome is recorded": killed_before_the_outcome_is_recorded,
    "interrupted execution": interrupted_execution,
    "stopped worker": stopped_worker,
    "worker that is stopped by a message": stopped_by_a_message,
    "workers that the other program stops": stopped_by_the_other_program,
    "continued experiment": continued_experiment,
    "experiment that runs in the workspace": shown_while_it_runs_in_the_workspace,
    "queue that is killed at any moment": killed_at_any_moment,
}
