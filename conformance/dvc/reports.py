"""Scenarios with parameters, metrics and plots."""

import json

from scenarios import scenario

PIPELINE = """stages:
  train:
    cmd: python train.py
    params:
    - lr
    - model.yaml:
      - layers.size
    outs:
    - model
    metrics:
    - metrics.json:
        cache: false
    plots:
    - logs/loss.csv:
        cache: false
        x: step
        y: loss
        title: Loss
metrics:
- more/quality.yaml
params:
- third.toml
plots:
- curves.json:
    x: n
    y: score
    x_label: Samples
- both:
    x: step
    y:
      logs/loss.csv: loss
      logs/other.csv: loss
    template: own
"""
TEMPLATE = {
    "title": "<DVC_METRIC_TITLE>", "data": {"values": "<DVC_METRIC_DATA>"}, "mark": "line",
    "encoding": {
        "x": {"field": "<DVC_METRIC_X>", "title": "<DVC_METRIC_X_LABEL>"}, "y": {"field": "<DVC_METRIC_Y>", "title": "<DVC_METRIC_Y_LABEL>"},
        "color": "<DVC_METRIC_COLOR>", "strokeDash": "<DVC_METRIC_STROKE_DASH>", "tooltip": "<DVC_METRIC_TOOLTIP>", "detail": "<DVC_METRIC_GROUP_BY>",
    },
}


def results(player, lr, accuracy, losses):
    """What a run of the pipeline leaves."""
    player.write("dvc.yaml", PIPELINE)
    player.write("params.yaml", f"lr: {lr}\nlayers: [1, 2]\nname: first # a comment\n")
    player.write("model.yaml", "{layers: {size: 32, depth: 4}, unused: 1}\n")
    player.write("third.toml", f"seed = 7\n[nested]\nrate = {lr}\n")
    player.write("metrics.json", json.dumps({"accuracy": accuracy, "loss": {"train": losses[-1], "epochs": len(losses)}, "tags": ["a"], "none": None}))
    player.write("more/quality.yaml", f"quality: {accuracy * 1000}\nbest: true\n")
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    player.write("logs/loss.csv", "step,loss\n" + rows)
    player.write("logs/other.csv", "step,loss\n" + rows.replace("0.", "1."))
    player.write("curves.json", json.dumps({"points": [{"n": 10 * i, "score": loss * 2} for i, loss in enumerate(losses)]}))
    player.write(".dvc/plots/own.json", json.dumps(TEMPLATE))
    player.write(".gitignore", "/model\n")


def two_versions(player):
    results(player, "1e-3", 0.5, [0.9, 0.5])
    player.commit("first")
    player.git("tag", "v1")
    results(player, "0.01", 0.8123456789, [0.9, 0.4, 0.125])


@scenario
def metrics_are_shown(player):
    two_versions(player)
    player.dvc("metrics", "show", text=True)
    player.dvc("metrics", "show", "--json", json=True)
    player.dvc("metrics", "show", "--md", "--precision", "2", text=True)
    player.dvc("metrics", "show", "metrics.json", "--json", json=True)
    player.dvc("metrics", "show", "../more/quality.yaml", text=True, folder="logs")
    player.dvc("metrics", "show", "-T", text=True)
    player.dvc("metrics", "show", "-a", "-T", "--json", json=True)


@scenario
def metrics_are_compared(player):
    two_versions(player)
    player.dvc("metrics", "diff", text=True)
    player.dvc("metrics", "diff", "--json", json=True)
    player.dvc("metrics", "diff", "--all", "--md", text=True)
    player.dvc("metrics", "diff", "--no-path", "--precision", "3", text=True)
    player.dvc("metrics", "diff", "--targets", "curves.json", "params.yaml", "--json", json=True)
    player.commit("second")
    player.dvc("metrics", "diff", "v1", "master", "--json", json=True)
    player.dvc("metrics", "diff", "v1", "HEAD", text=True, folder="more")
    player.dvc("metrics", "diff", text=True)
    player.dvc("metrics", "diff", "nothing")


@scenario
def parameters_are_compared(player):
    two_versions(player)
    player.dvc("params", "diff", text=True)
    player.dvc("params", "diff", "--json", json=True)
    player.dvc("params", "diff", "--deps", "--all", "--json", json=True)
    player.dvc("params", "diff", "--all", "--md", text=True)
    player.dvc("params", "diff", "--no-path", text=True)
    player.dvc("params", "diff", "--targets", "model.yaml", "--all", "--json", json=True)
    player.commit("second")
    player.dvc("params", "diff", "v1", "master", text=True, folder="logs")
    player.dvc("params", "diff", "v2")


@scenario
def parameters_of_templates_are_compared(player):
    pipeline = "vars:\n- more.yaml\nstages:\n  a:\n    foreach: ${sizes}\n    do:\n      cmd: echo ${item} ${depth.max} ${lr}\n"
    player.write("dvc.yaml", pipeline)
    player.write("params.yaml", "lr: 1\n")
    player.write("more.yaml", "sizes: [1, 2]\ndepth: {max: 3, min: 1}\nunused: 5\n")
    player.commit("first")
    player.write("params.yaml", "lr: 2\nnew: {x: 1, y: [a]}\n")
    player.write("more.yaml", "sizes: [1, 2, 3]\ndepth: {max: 4, min: 1}\nunused: 6\n")
    player.dvc("params", "diff", "--json", json=True)
    player.dvc("params", "diff", "--deps", "--json", json=True)


@scenario
def metrics_may_be_tracked_or_missing(player):
    player.write("dvc.yaml", "metrics:\n- m.json\n- none.json\n- folder\n")
    player.write("m.json", '{"a": 1}')
    player.write("folder/b.json", '{"b": 2.50}')
    player.write("folder/c.yaml", "c: text\n")
    player.dvc("add", "m.json", "folder")
    player.commit("first")
    player.write("m.json", '{"a": 2}')
    player.write("folder/b.json", '{"b": "many"}')
    player.dvc("metrics", "show", text=True)
    player.dvc("metrics", "diff", "--json", json=True)
    player.dvc("add", "m.json", "folder")
    player.commit("second")
    player.dvc("metrics", "diff", "HEAD~1", "HEAD", text=True)
    player.dvc("metrics", "show", "-A", "folder", text=True, masked=True)


@scenario
def a_project_without_commits_has_no_differences(player):
    player.write("dvc.yaml", "metrics:\n- m.json\n")
    player.write("m.json", "0.25")
    player.dvc("metrics", "show", "--json", json=True)
    player.dvc("metrics", "diff", "--json", json=True)
    player.dvc("params", "diff", "--json", json=True)
    player.commit("first")
    player.write("m.json", "0.5")
    player.dvc("metrics", "diff", "--json", json=True)
    player.dvc("metrics", "diff", text=True)


@scenario
def points_of_plots_are_shown(player):
    two_versions(player)
    player.dvc("plots", "show", "--json", "both", json=True)
    player.dvc("plots", "show", "logs/loss.csv", "-t", "own", "--json", json=True)
    player.dvc("plots", "show", "curves.json", "-t", "own", "--show-vega", json=True)
    player.dvc("plots", "show", "logs/other.csv", "-t", "own", "-x", "loss", "-y", "step", "--title", "Turned", "--json", json=True)
    player.dvc("plots", "show", "logs/other.csv", "-t", "own", "--no-header", "--json", json=True)
    player.dvc("plots", "templates", text=True)


@scenario
def plots_of_revisions_are_compared(player):
    two_versions(player)
    player.dvc("plots", "diff", "--targets", "both", "--json", json=True)
    player.dvc("plots", "diff", "v1", "--targets", "logs/loss.csv", "-t", "own", "--json", json=True)
    player.commit("second")
    player.dvc("plots", "diff", "v1", "master", "--targets", "curves.json", "-t", "own", "--y-label", "Points", "--json", json=True)


@scenario
def plots_that_cannot_be_shown_are_reported(player):
    two_versions(player)
    player.dvc("plots", "show", "--show-vega")
    player.dvc("plots", "show", "both", "curves.json", "--show-vega")
    player.dvc("plots", "show", "curves.json", "-t", "missing", "--show-vega")
    player.dvc("plots", "diff", "nothing")
    player.dvc("plots", "templates", "nothing")
