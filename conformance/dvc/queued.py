"""Scenarios with the queue of experiments, executions outside of the workspace, and parameters of other formats."""

import json
import pathlib
import time

from scenarios import scenario

STAGE = "cp params.yaml out.txt && cp metrics.json.in metrics.json && ! grep -q 'lr: 3' params.yaml"
# A worker of DVC ends some seconds after the last experiment.
WORKER_TIMEOUT = 90


def project(player):
    # The times of queued experiments are those of the clock in any case.
    player.environment = {name: value for name, value in player.environment.items() if not name.endswith("_DATE")}
    player.write("dvc.yaml", f"stages:\n  train:\n    cmd: {json.dumps(STAGE)}\n    deps: [data.csv]\n    params: [lr]\n    outs: [out.txt]\nmetrics:\n- metrics.json\n")
    player.write("params.yaml", "lr: 1\nname: x\n")
    player.write("metrics.json", '{"acc": 0.25}')
    player.write("metrics.json.in", '{"acc": 0.5}')
    player.write("data.csv", "1\n")
    player.dvc("add", "data.csv")
    player.commit("first")


def references(player):
    player.git("for-each-ref", "--format=%(refname) %(contents:subject)", "refs/exps", "refs/heads", text=True, masked=True)


def shown(player):
    player.dvc("queue", "status", text=True, masked=True)
    # The order of experiments of one second is that of their ids.
    player.dvc("exp", "show", "--csv", "--drop", "typ|Created", text=True, masked=True)


def end(player):
    """Waits until the workers have ended: they would change the sandbox while it is removed."""
    player.dvc("queue", "stop")
    processes = list((player.work / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json"))
    deadline = time.monotonic() + WORKER_TIMEOUT
    for file in processes:
        process = pathlib.Path("/proc", str(json.loads(file.read_text())["pid"]))
        while process.exists() and time.monotonic() < deadline:
            time.sleep(0.1)


@scenario
def experiments_wait_in_a_queue(player):
    project(player)
    player.write("data.csv", "2\n")
    player.write("params.yaml", "lr: 1\nname: y\n")
    player.dvc("exp", "run", "--queue", "-n", "first", "-S", "lr=2", text=True)
    player.git("status", "--porcelain", text=True)
    player.dvc("exp", "show", "--json", json=True, masked=True)
    player.dvc("exp", "run", "--queue", "-n", "sweep", "-S", "lr=4,5", "-S", "name=choice(a,b)", text=True)
    player.dvc("exp", "run", "--queue", "-n", "range", "-S", "lr=range(6, 8)", text=True)
    player.dvc("exp", "run", "-S", "lr=4,5")
    player.dvc("exp", "run", "--queue", "-S", "lr=glob(*)")
    player.dvc("exp", "run", "--queue", "-S", "unknown=1")
    shown(player)
    references(player)
    player.dvc("exp", "show", "--csv", "--hide-queued", "--drop", "Created", text=True, masked=True)
    player.dvc("queue", "remove", "first", "sweep-2", text=True)
    player.dvc("queue", "remove", "nothing")
    player.dvc("queue", "logs", "sweep-1")
    player.dvc("queue", "kill", "sweep-1")
    player.dvc("exp", "remove", "range-1", text=True)
    shown(player)
    player.dvc("queue", "remove", "--queued", text=False)
    player.dvc("queue", "status", text=True, masked=True)
    references(player)


@scenario
def queued_experiments_are_run(player):
    project(player)
    player.write("data.csv", "2\n")
    player.dvc("exp", "run", "--queue", "-n", "good", "-S", "lr=2", "-m", "a message")
    player.dvc("exp", "run", "--queue", "-n", "bad", "-S", "lr=3")
    player.dvc("exp", "run", "--run-all")
    shown(player)
    references(player)
    player.dvc("exp", "list", text=True, masked=True)
    player.dvc("exp", "apply", "good")
    player.git("status", "--porcelain", text=True)
    player.git("reset", "-q", "--hard")
    player.dvc("checkout", "-f")
    player.dvc("exp", "show", "--csv", "--hide-failed", "--drop", "Created", text=True, masked=True)
    player.dvc("queue", "remove", "--failed", text=True)
    player.dvc("queue", "remove", "--success", text=True)
    shown(player)
    references(player)
    player.dvc("exp", "clean", text=True)
    end(player)


@scenario
def experiments_are_run_apart(player):
    project(player)
    player.write("secret.txt", "x")
    player.dvc("exp", "run", "--temp", "-n", "apart", "-S", "lr=2", "-C", "secret.txt")
    player.dvc("exp", "run", "--temp", "-n", "bad", "-S", "lr=3")
    player.git("status", "--porcelain", text=True)
    player.dvc("exp", "list", text=True, masked=True)
    references(player)
    shown(player)
    player.dvc("exp", "run", "--temp", "-n", "apart", "-S", "lr=4")
    player.dvc("exp", "apply", "apart")


@scenario
def parameters_of_other_formats_are_set(player):
    player.write("params.toml", "# top\nlr = 0.1 # rate\n\n[model]\nlayers = [1, 2]\nname = \"a\"\n")
    player.write("params.py", "# code\nLR = 1  # rate\n\n\nclass Model:\n    layers = 3\n\n    def __init__(self):\n        self.width = 5\n")
    player.write("dvc.yaml", "stages:\n  train:\n    cmd: cat params.toml params.py > out.txt\n    params:\n    - params.toml:\n    - params.py:\n    outs: [out.txt]\n")
    player.commit("first")
    player.dvc("exp", "run", "-n", "toml", "-S", "params.toml:lr=0.2", "-S", "params.toml:model.name=b", "-S", "params.toml:model.layers=[3]")
    player.dvc("exp", "run", "-n", "more", "-S", "+params.toml:new=1")
    player.dvc("exp", "run", "-n", "more", "-S", "params.toml:+model.new=1")
    player.dvc("exp", "run", "-n", "python", "-S", "params.py:LR=2", "-S", "params.py:Model.layers=4", "-S", "params.py:Model.width=6")
    player.dvc("exp", "run", "-n", "no", "-S", "params.py:unknown=6")


@scenario
def transfers_are_limited(player):
    player.write("data.csv", "1\n" * 100)
    player.write("small.csv", "1\n")
    player.dvc("add", "data.csv", "small.csv")
    player.write("dvc.yaml", "stages:\n  train:\n    cmd: cp data.csv out.txt && cp small.csv metrics.csv && cp small.csv plot.csv\n    deps: [data.csv]\n    outs: [out.txt]\n    metrics: [metrics.csv]\n    plots: [plot.csv]\n")
    player.dvc("repro")
    player.commit("first")
    player.dvc("remote", "add", "-d", "store", "../remote")
    player.dvc("push", "--glob", "s*.csv")
    player.dvc("push", "-d", "train")
    player.dvc("status", "-d", "train", text=True)
    player.remove(".dvc/cache")
    player.dvc("fetch", "--max-size", "100")
    player.dvc("fetch", "--type", "metrics")
    player.dvc("fetch", "--type", "plots")
    player.dvc("fetch", "-d", "train")
    player.remove("data.csv")
    player.remove("out.txt")
    player.dvc("checkout", "-d", "train")
    player.write("data.csv", "2\n")
    player.dvc("commit", "-f", "-d", "train")
    player.remove(".dvc/cache")
    player.dvc("pull", "-d", "train")


@scenario
def garbage_of_experiments_is_kept(player):
    project(player)
    for i in range(2, 5):
        player.write("data.csv", f"{i}\n")
        player.dvc("exp", "save", "-n", f"e{i}")
    player.dvc("exp", "remove", "e3")
    player.git("checkout", "-q", ".")
    player.dvc("gc", "--all-experiments", "-f")
    player.dvc("gc", "--date", "2030-01-01", "-f")
    player.dvc("gc", "--date", "yesterday", "-f")
    player.dvc("gc", "-f")
    player.dvc("gc", "-w", "-p", "nothing", "-f")


@scenario
def plots_of_stages_are_modified(player):
    player.write("dvc.yaml", "stages:\n  train:\n    cmd: cp in.csv logs.csv && cp in.csv out.csv\n    deps:\n    - in.csv\n    outs:\n    - out.csv:\n        cache: false\n    plots:\n    - logs.csv\n")
    player.write("in.csv", "step,loss\n1,2\n2,1\n")
    player.dvc("repro")
    player.dvc("plots", "modify", "logs.csv", "-x", "step", "-y", "loss", "--title", "Loss")
    player.dvc("plots", "modify", "logs.csv", "--x-label", "steps", "--unset", "title")
    player.dvc("plots", "modify", "logs.csv", "--unset", "title")
    player.dvc("plots", "modify", "out.csv", "-x", "step")
    player.dvc("plots", "modify", "logs.csv", "--unset", "x", "y", "x_label")
    player.dvc("plots", "modify", "in.csv", "-x", "step")
    player.dvc("plots", "show", "--json", "logs.csv", json=False)
