"""Scenarios of pipelines: templates, stages, runs, their records and the run cache."""

from scenarios import scenario

PIPELINE = """\
stages:
  prepare:
    cmd: cat raw.txt raw.txt > clean.txt
    deps:
    - raw.txt
    outs:
    - clean.txt
  train:
    cmd: mkdir -p model && cp clean.txt model/weights && echo '{"acc":' $(wc -c < clean.txt) '}' > metrics.json
    deps:
    - clean.txt
    params:
    - lr
    - train.epochs
    outs:
    - model
    metrics:
    - metrics.json:
        cache: false
"""
PARAMS = "lr: 1e-5\ntrain:\n  epochs: 3\n  layers: [1, 2.50, 'x']\nother: true\n"


def project(player):
    player.write("raw.txt", "raw\n")
    player.write("params.yaml", PARAMS)
    player.write("dvc.yaml", PIPELINE)


@scenario
def a_pipeline_is_run(player):
    project(player)
    player.dvc("status", "--json", json=True)
    player.dvc("repro")
    player.dvc("status", text=True)
    player.dvc("repro", text=True)
    player.dvc("repro", "prepare", text=True)


@scenario
def changes_are_found(player):
    project(player)
    player.dvc("repro")
    player.write("params.yaml", PARAMS.replace("1e-5", "0.10"))
    player.dvc("status", text=True)
    player.dvc("status", "--json", json=True)
    player.dvc("repro", text=True)
    player.write("params.yaml", PARAMS.replace("epochs: 3", "epochs: 4").replace("1e-5", "0.1"))
    player.dvc("repro", text=True)
    player.write("raw.txt", "other\n")
    player.dvc("status", "--json", json=True)
    # DVC looks for a recorded run with the old digests then, and reports one that it does not use.
    player.dvc("repro", "--dry")
    player.dvc("repro", text=True)
    player.write("dvc.yaml", PIPELINE.replace("raw.txt raw.txt", "raw.txt"))
    player.dvc("status", "--json", json=True)
    player.dvc("repro", text=True)
    player.write("metrics.json", "{}\n")
    player.remove("model")
    player.dvc("status", "--json", json=True)
    player.dvc("repro", text=True)


@scenario
def recorded_runs_are_not_repeated(player):
    project(player)
    player.dvc("repro")
    player.write("params.yaml", PARAMS.replace("1e-5", "2"))
    player.dvc("repro")
    player.write("params.yaml", PARAMS)
    player.dvc("repro", text=True)
    player.remove("clean.txt")
    player.remove("model")
    player.dvc("repro", text=True)
    player.dvc("repro", "--no-run-cache", "-f", "train", text=True)


@scenario
def outputs_are_checked_out_and_pushed(player):
    project(player)
    player.dvc("repro")
    player.commit("one")
    player.dvc("remote", "add", "-d", "disk", "../disk")
    player.dvc("push", text=True)
    player.remove("clean.txt")
    player.remove("model")
    player.dvc("checkout", text=True)
    player.write("raw.txt", "two\n")
    player.dvc("repro")
    player.dvc("diff", "--json", json=True)
    player.commit("two")
    player.dvc("diff", "HEAD~1", "HEAD", "--json", json=True)
    player.dvc("gc", "-w", "-f")
    player.dvc("status", text=True)


@scenario
def stages_are_added(player):
    player.write("raw.txt", "raw\n")
    player.write("sub/x", "x")
    player.dvc("stage", "add", "-n", "prepare", "-d", "raw.txt", "-o", "clean.txt", "cat raw.txt > clean.txt")
    player.dvc("stage", "add", "-n", "train", "-d", "clean.txt", "-d", "a b", "-p", "lr,epochs", "-p", "o.json:", "-p", "z.yaml:k,a", "-O", "big", "-M",
               "m.json", "-m", "n.json", "--plots", "p.csv", "--plots-no-cache", "q.csv", "--outs-persist", "keep", "--outs-persist-no-cache", "keep2",
               "--desc", "trains: it", "--always-changed", "python", "train.py", "--name", "a b")
    player.dvc("stage", "add", "-n", "train", "true")
    player.dvc("stage", "add", "-n", "bad.name", "true")
    player.dvc("stage", "add", "-n", "twice", "-o", "clean.txt", "true")
    player.dvc("stage", "add", "-n", "self", "-d", "x", "-o", "x", "true")
    player.dvc("stage", "add", "-n", "nowhere", "-w", "missing", "true")
    player.dvc("stage", "add", "-n", "empty")
    player.dvc("stage", "add", "-n", "inner", "-w", "sub", "-d", "x", "-o", "y", "cp x y")
    player.dvc("stage", "add", "-f", "-n", "train", "-o", "new", "echo new > new")
    player.dvc("stage", "list", text=True)
    player.dvc("stage", "list", "--name-only", text=True)
    player.dvc("stage", "list", "--all", text=True, folder="sub")
    player.dvc("stage", "add", "--run", "-n", "run", "-o", "made", "echo made > made")


@scenario
def comments_in_a_pipeline_stay(player):
    player.write("dvc.yaml", "# ours\nstages:\n  a:  # first\n    cmd: echo a > a  # how\n    outs:\n    - a\n")
    player.dvc("stage", "add", "-n", "b", "-d", "a", "-o", "b", "cp a b")
    player.dvc("freeze", "a")
    player.dvc("repro")
    player.dvc("unfreeze", "a")
    player.dvc("freeze", "nothing")
    player.dvc("repro", text=True)


@scenario
def templates_are_expanded(player):
    player.write("params.yaml", "model:\n  lr: 1e-5\n  deep: true\n  off: false\n  name: it's\n  sizes: [1, 2]\nnames: [a, b]\n")
    player.write("other.json", '{"o": {"x": 1.50}, "z": 3}')
    player.write("dvc.yaml", """\
vars:
- other.json:z
- folder: out
stages:
  plain:
    cmd: echo ${z} ${model} \\${DVC_STAGE} > ${folder}.txt
    outs:
    - ${folder}.txt
  each:
    foreach: ${names}
    do:
      cmd: echo ${item} ${z} > ${item}.out
      params:
      - model.lr
      outs:
      - ${item}.out
  keyed:
    foreach:
      one: {v: 1}
      two: {v: 2.50}
    do:
      cmd: echo ${key} ${item.v} > ${key}
      outs:
      - ${key}:
          cache: false
  grid:
    matrix:
      size: ${model.sizes}
      kind: [p, q]
    vars:
    - other.json:o
    cmd: echo ${item.size} ${item.kind} ${o.x} > ${key}.grid
    outs:
    - ${key}.grid
""")
    player.dvc("stage", "list", text=True)
    player.dvc("repro")
    player.dvc("status", text=True)
    player.dvc("repro", "each", text=True)
    player.dvc("repro", "-f", "grid@1-p", text=True)
    player.dvc("freeze", "each@a")
    player.dvc("config", "parsing.bool", "boolean_optional")
    player.dvc("config", "parsing.list", "append")
    player.dvc("status", "--json", json=True)


@scenario
def invalid_pipelines_are_rejected(player):
    for text in ["stages:\n  a:\n    cmd: ${no}\n", "stages:\n  a:\n    deps: [x]\n", "stages:\n  a:\n    cmd: x\n    nonsense: 1\n", "stages: [a]\n",
                 "vars: [missing.yaml]\nstages: {}\n", "stages:\n  a:\n    foreach: 1\n    do: {cmd: x}\n", "stages:\n  a:\n    cmd: [x\n",
                 "stages:\n  a:\n    cmd: x\n    deps: [b]\n    outs: [a]\n  b:\n    cmd: x\n    deps: [a]\n    outs: [b]\n",
                 "stages:\n  a:\n    cmd: x\n    outs: [a]\n  b:\n    cmd: x\n    outs: [a]\n",
                 "stages:\n  a:\n    cmd: x\n    outs: [a]\n  b:\n    cmd: x\n    outs: [a/b]\n"]:
        player.write("dvc.yaml", text)
        player.dvc("repro")


@scenario
def parameters_have_many_formats(player):
    player.write("p.json", '{"a": {"b": [1, 2.5, null]}, "t": true}')
    player.write("p.toml", 'x = 1.50\n[t]\ns = "text"\nl = [1, "two"]\n')
    player.write("p.py", "LR = 1e-5\nclass Train:\n    epochs = 1_0\n    def __init__(self):\n        self.d = {'a': [1, 2]}\n")
    player.write("p.yaml", "base: &b {k: 1}\nuse:\n  <<: *b\n  l: 0x1f\nlong: " + "word " * 30 + "\n")
    player.write("dvc.yaml", "stages:\n  a:\n    cmd: echo > out\n    params:\n    - p.json:\n      - a.b\n      - t\n    - p.toml:\n    - p.py:\n      - LR\n      - Train\n    - p.yaml:\n    outs:\n    - out\n")
    player.dvc("repro")
    player.dvc("status", text=True)
    player.write("p.py", "LR = 2e-5\nclass Train:\n    epochs = 1_0\n")
    player.write("p.json", '{"a": {"b": [1, 2.5]}}')
    player.dvc("status", "--json", json=True)
    player.dvc("repro")
    player.remove("p.toml")
    player.dvc("status", "--json", json=True)
    player.dvc("repro")


@scenario
def failures_end_a_run(player):
    # After a failure, DVC removes the entries of stages that succeeded from .gitignore, too. slipway keeps them.
    player.write(".gitignore", "/good\n/bad\n/after\n/last\n/a\n/never\n")
    player.write("dvc.yaml", """\
stages:
  good:
    cmd: echo good > good
    outs:
    - good
  bad:
    cmd:
    - echo started
    - exit 3
    outs:
    - bad
  after:
    cmd: cp bad after
    deps:
    - bad
    outs:
    - after
  last:
    cmd: echo last > last
    outs:
    - last
""")
    player.dvc("repro")
    player.dvc("repro", "-k")
    player.dvc("repro", "--ignore-errors")
    player.dvc("repro", "nothing")
    player.write("dvc.yaml", "stages:\n  none:\n    cmd: 'true'\n    outs:\n    - never\n  missing:\n    cmd: 'true'\n    deps:\n    - nowhere\n")
    player.dvc("repro", "none")
    player.dvc("repro", "missing")
    player.write("dvc.yaml", "stages:\n  a:\n    cmd: echo > a\n    params:\n    - no\n    outs:\n    - a\n")
    player.write("params.yaml", "yes: 1\n")
    player.dvc("repro")


@scenario
def parts_of_a_pipeline_are_run(player):
    player.write("dvc.yaml", "stages:\n" + "".join(f"  {name}:\n    cmd: cat {dep} > {name}.out; date +%s%N > /dev/null\n    deps:\n    - {dep}\n    outs:\n    - {name}.out\n"
                                                   for name, dep in [("a", "in"), ("b", "a.out"), ("c", "b.out"), ("x", "in")]))
    player.write("in", "1\n")
    player.dvc("repro", "b")
    player.dvc("repro", "-s", "c", text=True)
    player.dvc("repro", "-p", "c")
    player.dvc("repro", "-P", text=True)
    player.dvc("repro", "-f", "-s", "b", text=True)
    player.dvc("repro", "--downstream", "b", text=True)
    player.dvc("repro", "-f", "--force-downstream", "a", text=True)
    player.dvc("repro", "--glob", "[ab]", text=True)
    player.dvc("repro", "-R", ".", text=True)
    player.write("in", "2\n")
    player.dvc("repro", "--no-commit", "a", text=True)
    player.dvc("status", "--json", json=True)
    player.dvc("commit", "-f", "a")
    player.dvc("status", "--json", json=True)


@scenario
def outputs_have_options(player):
    player.write("in", "1\n")
    player.write("folder/keep", "k")
    player.write("dvc.yaml", """\
stages:
  a:
    cmd: echo $DVC_STAGE >> log; cat log; echo '#!/bin/sh' > run.sh; chmod +x run.sh; cp in plain
    deps:
    - in
    - folder
    outs:
    - log:
        persist: true
    - run.sh:
        desc: a script
        push: false
    - plain:
        cache: false
  always:
    cmd: echo always
    always_changed: true
  sub:
    wdir: sub
    cmd: echo "$PWD" | tail -c 9 > here; cat ../in > there
    deps:
    - ../in
    outs:
    - here
    - there
""")
    player.write("sub/.gitkeep", "")
    player.dvc("repro")
    player.dvc("status", "--json", json=True)
    player.write("in", "2\n")
    player.dvc("repro")
    player.dvc("repro", "sub", text=True)
    player.dvc("status", "--json", json=True, folder="sub")
    player.dvc("repro", "../dvc.yaml:sub", folder="sub", text=True)


@scenario
def data_sources_are_part_of_the_graph(player):
    player.write("data/x", "x")
    player.dvc("add", "data")
    player.dvc("stage", "add", "-n", "use", "-d", "data", "-o", "out", "cat data/x > out")
    player.dvc("repro", text=False)
    player.write("data/y", "y")
    player.dvc("repro")
    player.dvc("repro", text=True)
    player.dvc("freeze", "data.dvc")
    player.dvc("unfreeze", "data.dvc")
    player.remove("data")
    player.dvc("repro")


@scenario
def the_graph_is_drawn(player):
    player.write("data", "x")
    player.dvc("add", "data")
    player.dvc("stage", "add", "-n", "a", "-d", "data", "-o", "a.out", "cp data a.out")
    player.dvc("stage", "add", "-n", "b", "-d", "a.out", "-o", "b.out", "-o", "b2.out", "cp a.out b.out; cp a.out b2.out")
    player.dvc("stage", "add", "-n", "alone", "-o", "c.out", "echo > c.out")
    player.dvc("dag", "--dot", text=True)
    player.dvc("dag", "--mermaid", "b", text=True)
    player.dvc("dag", "--md", "a", text=True)
    player.dvc("dag", "--mermaid", "--full", "a", text=True)
    player.dvc("dag", "--outs", "--dot", text=True)
    player.dvc("dag", "nothing")


@scenario
def missing_data_is_allowed(player):
    project(player)
    player.dvc("repro")
    player.commit("one")
    player.dvc("remote", "add", "-d", "disk", "../disk")
    player.dvc("push")
    player.remove(".dvc/cache")
    player.remove("clean.txt")
    player.remove("model")
    player.dvc("repro", "--allow-missing", text=True)
    player.dvc("repro", "--allow-missing", "--dry", text=True)
    player.dvc("status", "--json", json=True)
    player.dvc("pull", text=True)
    player.dvc("repro", text=True)


@scenario
def stages_are_committed(player):
    project(player)
    player.write("clean.txt", "by hand\n")
    player.write("model/weights", "by hand\n")
    player.write("metrics.json", "{}\n")
    player.dvc("commit", "train")
    player.dvc("commit", "-f", "train")
    player.dvc("commit", "-f")
    player.dvc("status", "--json", json=True)
    player.dvc("repro", text=True)
