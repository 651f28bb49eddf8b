"""Scenarios of MLflow's documentation, as functions that return their results.

Every scenario runs against `mlflow server` and against slipway with the same official client; `compare.py` masks
ids and times and compares the results. A scenario gets a `World` with a client and a prefix for unique names.
"""

import io
import json
import os
import pathlib
import tempfile
import threading

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


class World:
    def __init__(self, uri, name):
        self.uri = uri
        self.name = name
        self.client = MlflowClient(uri)
        # The official client reads the token from the environment; this header is for raw requests.
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        self.http = requests.Session()
        self.http.headers.update({"Authorization": f"Bearer {token}"} if token else {})

    def experiment(self, suffix=""):
        return self.client.create_experiment(f"{self.name}{suffix}")

    def run(self, experiment=None, **tags):
        experiment = experiment or self.experiment()
        return self.client.create_run(experiment, tags=tags, run_name="run").info.run_id

    def rest(self, method, path, body=None, base="/api/2.0/mlflow/", **kwargs):
        """Sends a raw request and returns status and JSON."""
        response = self.http.request(method, f"{self.uri}{base}{path}", json=body, timeout=60, **kwargs)
        try:
            return [response.status_code, response.json()]
        except ValueError:
            return [response.status_code, response.text[:200]]


def error(function, *args, **kwargs):
    """Calls the function and returns the error that it raises."""
    try:
        result = function(*args, **kwargs)
    except MlflowException as e:
        return {"error_code": e.error_code, "message": e.message}
    return {"no error": repr(result)[:200]}


def run_view(run):
    data = run.data
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "stage": run.info.lifecycle_stage,
        "params": data.params,
        "metrics": {k: repr(v) for k, v in data.metrics.items()},
        "tags": data.tags,
        "inputs": [(i.dataset.name, i.dataset.digest, [(t.key, t.value) for t in i.tags]) for i in run.inputs.dataset_inputs],
    }


def names(runs):
    return [r.info.run_name for r in runs]


# --- experiments -----------------------------------------------------------------------------------------------


@scenario
def experiment_create_and_get(w):
    id = w.client.create_experiment(w.name, tags={"team": "vision", "prio": "1"})
    e = w.client.get_experiment(id)
    by_name = w.client.get_experiment_by_name(w.name)
    return [e.name, e.lifecycle_stage, e.tags, e.artifact_location, by_name.experiment_id == id]


@scenario
def experiment_create_twice(w):
    w.experiment()
    return error(w.experiment)


@scenario
def experiment_bad_names(w):
    return [error(w.client.create_experiment, n) for n in ["", "x" * 501]] + [
        w.rest("POST", "experiments/create", {"name": 5}),
        w.rest("POST", "experiments/create", {}),
        w.rest("POST", "experiments/create", {"name": None}),
    ]


@scenario
def experiment_unicode_and_slashes(w):
    id = w.client.create_experiment(f"{w.name}/größe/実験 🚀")
    return w.client.get_experiment(id).name


@scenario
def experiment_missing(w):
    return [
        error(w.client.get_experiment, "99999"),
        error(w.client.get_experiment, "not-a-number"),
        w.client.get_experiment_by_name("nothing of this name"),
        w.rest("GET", "experiments/get-by-name?experiment_name=nothing"),
        w.rest("GET", "experiments/get"),
    ]


@scenario
def experiment_delete_restore(w):
    id = w.experiment()
    run = w.run(id)
    w.client.delete_experiment(id)
    deleted = [w.client.get_experiment(id).lifecycle_stage, w.client.get_run(run).info.lifecycle_stage]
    again = error(w.client.delete_experiment, id)
    into = error(w.client.create_run, id)
    w.client.restore_experiment(id)
    return [deleted, again, into, w.client.get_experiment(id).lifecycle_stage, error(w.client.restore_experiment, id)]


@scenario
def experiment_rename(w):
    id = w.experiment()
    other = w.experiment("-other")
    w.client.rename_experiment(id, w.name + "-new")
    w.client.delete_experiment(other)
    return [
        w.client.get_experiment(id).name,
        error(w.client.rename_experiment, other, "x"),
        error(w.client.rename_experiment, id, ""),
        error(w.client.rename_experiment, "99999", "x"),
    ]


@scenario
def experiment_tags(w):
    id = w.experiment()
    w.client.set_experiment_tag(id, "a", "1")
    w.client.set_experiment_tag(id, "a", "2")
    w.client.set_experiment_tag(id, "b", "3")
    w.client.delete_experiment_tag(id, "b")
    return [
        w.client.get_experiment(id).tags,
        error(w.client.delete_experiment_tag, id, "b"),
        error(w.client.set_experiment_tag, id, "x" * 251, "1"),
        error(w.client.set_experiment_tag, id, "ok", "v" * 20001),
        error(w.client.set_experiment_tag, "99999", "a", "1"),
    ]


@scenario
def experiment_search(w):
    for i, team in enumerate(["a", "b", "a"]):
        w.client.create_experiment(f"{w.name}-{i}", tags={"team": team})
    search = lambda **k: [e.name for e in w.client.search_experiments(**k)]
    prefix = f"name LIKE '{w.name}-%'"
    page = w.client.search_experiments(max_results=2, filter_string=prefix, order_by=["name ASC"])
    rest = w.client.search_experiments(max_results=2, filter_string=prefix, order_by=["name ASC"], page_token=page.token)
    return [
        search(filter_string=f"{prefix} AND tags.team = 'a'", order_by=["name DESC"]),
        search(filter_string=f"name ILIKE '{w.name.upper()}-1'"),
        search(filter_string=f"{prefix} AND tags.team != 'a'"),
        search(filter_string=f"{prefix} AND tags.other IS NULL", order_by=["name"]),
        search(filter_string=f"{prefix} AND creation_time > 5", order_by=["name"]),
        [e.name for e in page],
        [e.name for e in rest],
        rest.token,
        search(view_type=ViewType.DELETED_ONLY, filter_string=prefix),
    ]


@scenario
def experiment_search_errors(w):
    search = lambda **k: error(w.client.search_experiments, **k)
    return [
        search(filter_string="nme = 'x'"),
        search(filter_string="name = 5"),
        search(filter_string="metrics.a = '5'"),
        search(filter_string="name = 'a' OR name = 'b'"),
        search(filter_string="name > 'a'"),
        search(order_by=["foo"]),
        search(order_by=["name SIDEWAYS"]),
        search(max_results=0),
        search(max_results=60000),
        w.rest("POST", "experiments/search", {"max_results": "many"}),
    ]


# --- runs ------------------------------------------------------------------------------------------------------


@scenario
def run_lifecycle(w):
    id = w.run(purpose="test")
    running = run_view(w.client.get_run(id))
    w.client.set_terminated(id, "FINISHED", 2_000_000_000_000)
    done = w.client.get_run(id)
    return [running, run_view(done), done.info.end_time]


@scenario
def run_names(w):
    e = w.experiment()
    c = w.client
    return [
        c.create_run(e, run_name="named").data.tags["mlflow.runName"],
        c.create_run(e, tags={"mlflow.runName": "by tag"}).info.run_name,
        error(c.create_run, e, run_name="a", tags={"mlflow.runName": "b"}),
        len(c.create_run(e).info.run_name.split("-")),
    ]


@scenario
def run_rename(w):
    id = w.run()
    w.client.update_run(id, status="KILLED", name="new name")
    first = run_view(w.client.get_run(id))
    w.client.set_tag(id, "mlflow.runName", "by tag")
    return [first, run_view(w.client.get_run(id)), error(w.client.update_run, "nothing", "FINISHED")]


@scenario
def run_missing(w):
    c = w.client
    return [
        error(c.get_run, "0" * 32),
        error(c.log_param, "0" * 32, "a", "1"),
        error(c.log_metric, "0" * 32, "a", 1.0),
        error(c.set_tag, "0" * 32, "a", "1"),
        error(c.delete_run, "0" * 32),
        error(c.restore_run, "0" * 32),
        error(c.create_run, "99999"),
        w.rest("GET", "runs/get"),
        w.rest("POST", "runs/update", {}),
    ]


@scenario
def run_deleted_is_read_only(w):
    id = w.run()
    c = w.client
    c.delete_run(id)
    errors = [
        error(c.log_param, id, "a", "1"),
        error(c.log_metric, id, "a", 1.0),
        error(c.set_tag, id, "a", "1"),
        error(c.delete_tag, id, "a"),
        error(c.log_batch, id, metrics=[Metric("a", 1.0, 1, 0)]),
        error(c.set_terminated, id),
        c.get_run(id).info.lifecycle_stage,
    ]
    c.restore_run(id)
    c.log_param(id, "a", "1")
    return [errors, run_view(c.get_run(id))]


@scenario
def run_nested(w):
    mlflow.set_experiment(w.name)
    with mlflow.start_run(run_name="parent") as parent:
        for i in range(3):
            with mlflow.start_run(run_name=f"child-{i}", nested=True):
                mlflow.log_metric("m", i)
    children = w.client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", order_by=["metrics.m DESC"]
    )
    return names(children)


@scenario
def run_fluent(w):
    mlflow.set_experiment(w.name)
    with mlflow.start_run(run_name="fluent", description="what it is", tags={"k": "v"}) as run:
        mlflow.log_params({"lr": 0.1, "layers": [1, 2]})
        mlflow.log_metrics({"loss": 0.5, "acc": 0.9}, step=3)
        mlflow.set_tags({"a": 1, "b": True})
    view = run_view(mlflow.get_run(run.info.run_id))
    view["tags"] = {k: v for k, v in view["tags"].items() if not k.startswith("mlflow.source") and k != "mlflow.user"}
    return view


@scenario
def run_failed_with_block(w):
    mlflow.set_experiment(w.name)
    try:
        with mlflow.start_run() as run:
            raise RuntimeError("on purpose")
    except RuntimeError:
        pass
    return mlflow.get_run(run.info.run_id).info.status


@scenario
def run_resume(w):
    mlflow.set_experiment(w.name)
    with mlflow.start_run(run_name="once") as run:
        mlflow.log_param("a", 1)
    with mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_param("b", 2)
    return mlflow.get_run(run.info.run_id).data.params


# --- parameters and tags ---------------------------------------------------------------------------------------


@scenario
def params_are_immutable(w):
    id = w.run()
    w.client.log_param(id, "lr", "0.1")
    w.client.log_param(id, "lr", "0.1")
    return [
        error(w.client.log_param, id, "lr", "0.2"),
        error(w.client.log_batch, id, params=[Param("lr", "0.3"), Param("new", "1")]),
        w.client.get_run(id).data.params,
    ]


@scenario
def params_validation(w):
    id = w.run()
    p = lambda k, v="1": error(w.client.log_param, id, k, v)
    w.client.log_param(id, "long", "v" * 6000)
    return [
        p("a$b"), p("../up"), p(""), p("k" * 251), p("/abs"), p("a//b"),
        w.rest("POST", "runs/log-parameter", {"run_id": id, "key": "v", "value": "x" * 7000}),
        len(w.client.get_run(id).data.params.get("v", "")),
        w.rest("POST", "runs/log-parameter", {"run_id": id, "value": "x"}),
        w.rest("POST", "runs/log-parameter", {"run_id": id, "key": 7, "value": "x"}),
        len(w.client.get_run(id).data.params["long"]),
    ]


@scenario
def params_unicode_slashes_empty(w):
    id = w.run()
    for key, value in {"größe/x y": "値 🚀", "a.b-c_d": "", "with:colon": "1\n2"}.items():
        w.client.log_param(id, key, value)
    return w.client.get_run(id).data.params


@scenario
def params_duplicate_in_batch(w):
    id = w.run()
    return [
        error(w.client.log_batch, id, params=[Param("a", "1"), Param("a", "2")]),
        w.rest("POST", "runs/log-batch", {"run_id": id, "params": [{"key": "a", "value": "1"}, {"key": "a", "value": "1"}]}),
    ]


@scenario
def tags_set_and_delete(w):
    id = w.run()
    c = w.client
    c.set_tag(id, "t", "1")
    c.set_tag(id, "t", "2")
    c.set_tag(id, "unicode/größe", "値")
    c.delete_tag(id, "t")
    return [
        c.get_run(id).data.tags,
        error(c.delete_tag, id, "t"),
        error(c.set_tag, id, "k" * 251, "v"),
        error(c.set_tag, id, "a$", "v"),
        w.rest("POST", "runs/set-tag", {"run_id": id, "key": "v", "value": "x" * 9000}),
        len(c.get_run(id).data.tags.get("v", "")),
    ]


# --- metrics ---------------------------------------------------------------------------------------------------


@scenario
def metrics_history(w):
    id = w.run()
    for step in [3, 1, 2, 2]:
        w.client.log_metric(id, "loss", step / 10, timestamp=1000 + step, step=step)
    history = [(m.step, m.timestamp, m.value) for m in w.client.get_metric_history(id, "loss")]
    return [history, w.client.get_run(id).data.metrics, w.client.get_metric_history(id, "none")]


@scenario
def metrics_nan_and_infinity(w):
    id = w.run()
    for key, value in {"nan": float("nan"), "inf": float("inf"), "ninf": float("-inf"), "tiny": 5e-324}.items():
        w.client.log_metric(id, key, value, timestamp=1)
    run = w.client.get_run(id)
    return [
        {k: repr(v) for k, v in run.data.metrics.items()},
        [repr(m.value) for k in ("nan", "inf") for m in w.client.get_metric_history(id, k)],
        w.rest("POST", "runs/log-metric", {"run_id": id, "key": "s", "value": "NaN", "timestamp": 1}),
        w.rest("GET", f"metrics/get-history?run_id={id}&metric_key=s"),
    ]


@scenario
def metrics_latest_is_by_step_then_time(w):
    id = w.run()
    for value, timestamp, step in [(1.0, 5, 2), (2.0, 9, 1), (3.0, 6, 2), (2.5, 6, 2)]:
        w.client.log_metric(id, "m", value, timestamp=timestamp, step=step)
    w.client.log_batch(id, [Metric("n", 1.0, 5, -3), Metric("n", 7.0, 1, 0), Metric("n", 2.0, 1, 0)])
    return w.client.get_run(id).data.metrics


@scenario
def metrics_duplicates_are_merged(w):
    id = w.run()
    for _ in range(3):
        w.client.log_metric(id, "m", 1.5, timestamp=7, step=1)
    w.client.log_batch(id, [Metric("m", 1.5, 7, 1), Metric("m", 1.5, 7, 1), Metric("m", 2.5, 7, 1)])
    return [(m.step, m.value) for m in w.client.get_metric_history(id, "m")]


@scenario
def metrics_validation(w):
    id = w.run()
    post = lambda **body: w.rest("POST", "runs/log-metric", {"run_id": id, "key": "m", "value": 1.0, "timestamp": 1, **body})
    return [
        post(key="a$b"), post(key=""), post(key="k" * 251), post(key=".."), post(value="bad"), post(value=None),
        post(timestamp=-1), post(timestamp="soon"), post(timestamp=None), post(step="x"), post(value=True), post(key=3),
        post(step="4"), post(value="2.5", timestamp="8"), post(run_id=""),
        w.rest("POST", "runs/log-metric", {}),
    ]


@scenario
def metrics_batch_of_1000_and_5000(w):
    id = w.run()
    w.client.log_batch(id, [Metric(f"m{i % 50}", i / 7, i, i) for i in range(1000)])
    for start in range(0, 5000, 1000):
        w.client.log_batch(id, [Metric("big", i / 3, i, i) for i in range(start, start + 1000)])
    history = w.client.get_metric_history(id, "big")
    return [len(history), history[4999].value, len(w.client.get_run(id).data.metrics)]


@scenario
def metrics_fluent_5000(w):
    mlflow.set_experiment(w.name)
    with mlflow.start_run() as run:
        for start in range(0, 5000, 500):
            mlflow.log_metrics({f"k{i}": float(i) for i in range(start, start + 500)}, step=start)
    return len(mlflow.get_run(run.info.run_id).data.metrics)


@scenario
def batch_limits(w):
    id = w.run()
    post = lambda **body: w.rest("POST", "runs/log-batch", {"run_id": id, **body})
    metric = lambda i: {"key": f"m{i}", "value": 1, "timestamp": 1, "step": 0}
    pair = lambda i: {"key": f"p{i}", "value": "1"}
    return [
        post(metrics=[metric(i) for i in range(1001)]),
        post(params=[pair(i) for i in range(101)]),
        post(tags=[pair(i) for i in range(101)]),
        post(metrics=[metric(i) for i in range(950)], params=[pair(i) for i in range(60)]),
        post(metrics=[metric(i) for i in range(900)], params=[pair(i) for i in range(100)]),
    ]


@scenario
def batch_validation(w):
    id = w.run()
    post = lambda **body: w.rest("POST", "runs/log-batch", {"run_id": id, **body})
    good = {"key": "m", "value": 1, "timestamp": 1}
    return [
        post(metrics=[good, {**good, "key": "a$b"}]),
        post(metrics=[{"value": 1, "timestamp": 1}]),
        post(metrics=[{"key": "m", "timestamp": 1}]),
        post(metrics=[{"key": "m", "value": 1}]),
        post(metrics=[{**good, "timestamp": -3}]),
        post(params=[{"value": "x"}]),
        post(tags=[{"value": "x"}]),
        post(metrics="many"),
        post(params=[{"key": "a//b", "value": "1"}]),
        post(run_id="bad id!"),
        post(run_id="0" * 32, metrics=[good]),
        post(),
        w.client.get_run(id).data.metrics,
    ]


@scenario
def batch_is_all_or_nothing_for_params(w):
    id = w.run()
    w.client.log_param(id, "a", "1")
    failed = error(w.client.log_batch, id, [Metric("m", 1.0, 1, 0)], [Param("a", "2"), Param("b", "1")], [RunTag("t", "1")])
    return [failed, run_view(w.client.get_run(id))]


@scenario
def metrics_history_paging(w):
    id = w.run()
    w.client.log_batch(id, [Metric("m", i, i, i) for i in range(25)])
    first = w.rest("GET", f"metrics/get-history?run_id={id}&metric_key=m&max_results=10")[1]
    token = first["next_page_token"]
    second = w.rest("GET", "metrics/get-history", params={"run_id": id, "metric_key": "m", "max_results": 10, "page_token": token})[1]
    return [
        [m["value"] for m in first["metrics"]],
        [m["value"] for m in second["metrics"]],
        w.rest("GET", f"metrics/get-history?run_id={id}&metric_key=m&max_results=0"),
        w.rest("GET", f"metrics/get-history?run_id={id}"),
        w.rest("GET", f"metrics/get-history?run_id={id}&metric_key=m&page_token=!!"),
    ]


@scenario
def metrics_history_bulk(w):
    e = w.experiment()
    ids = sorted(w.run(e) for _ in range(2))
    for n, id in enumerate(ids):
        w.client.log_batch(id, [Metric("m", i + n, i, i) for i in range(5)])
    ajax = "/ajax-api/2.0/mlflow/"
    query = "&".join(f"run_id={i}" for i in ids)
    return [
        w.rest("GET", f"metrics/get-history-bulk?{query}&metric_key=m", base=ajax),
        w.rest("GET", f"metrics/get-history-bulk?{query}&metric_key=m&max_results=3", base=ajax),
        w.rest("GET", "metrics/get-history-bulk?metric_key=m", base=ajax),
        w.rest("GET", f"metrics/get-history-bulk?run_id={ids[0]}", base=ajax),
    ]


@scenario
def metrics_history_interval(w):
    id = w.run()
    w.client.log_batch(id, [Metric("m", i * i, i, i) for i in range(100)])
    get = lambda query: w.rest("GET", f"metrics/get-history-bulk-interval?run_ids={id}&metric_key=m{query}")
    return [
        get("&max_results=7"), get("&max_results=1"), get("&max_results=5&start_step=20&end_step=40"),
        get("&max_results=0"), get("&max_results=2501"), get("&start_step=4"), get("&start_step=9&end_step=4"),
        w.rest("GET", "metrics/get-history-bulk-interval?metric_key=m"),
    ]


# --- search ----------------------------------------------------------------------------------------------------


def create_search_runs(w):
    """Creates five runs that differ in every attribute that a filter can use."""
    e = w.experiment()
    for i in range(5):
        run = w.client.create_run(e, start_time=1000 + i, run_name=f"run-{i}", tags={"kind": "even" if i % 2 == 0 else "odd"})
        id = run.info.run_id
        w.client.log_batch(
            id,
            [Metric("acc", i / 10, 1, 0), Metric("my metric/1", -i, 1, 0)],
            [Param("lr", f"0.{i}"), Param("Name X", f"Model-{i}")],
        )
        if i == 3:
            w.client.log_metric(id, "acc", float("nan"), timestamp=2, step=5)
        if i < 4:
            w.client.log_metric(id, "some", i, timestamp=1)
        if i != 4:
            w.client.set_tag(id, "optional", "yes")
        if i > 0:
            w.client.set_terminated(id, "FAILED" if i == 2 else "FINISHED", 5000 + i)
        dataset = mlflow.data.from_numpy(np.arange(3 + i), name=f"data-{i}")
        from mlflow.entities import DatasetInput, InputTag

        w.client.log_inputs(id, [DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "train" if i < 3 else "eval")])])
    return e


FILTERS = {
    "metric_gt": "metrics.acc > 0.15",
    "metric_ge": "metrics.acc >= 0.2",
    "metric_lt": "metrics.acc < 0.2",
    "metric_le": "metrics.acc <= 0.2",
    "metric_eq": "metrics.acc = 0.2",
    "metric_ne": "metrics.acc != 0.2",
    "metric_quoted": "metrics.`my metric/1` < -1",
    "metric_double_quoted": 'metrics."my metric/1" <= -2.0',
    "metric_and_param": "metrics.acc > 0.05 AND params.lr = '0.2'",
    "param_eq": "params.lr = '0.1'",
    "param_ne": "params.lr != '0.1'",
    "param_like": "params.`Name X` LIKE 'Model%'",
    "param_like_case": "params.`Name X` LIKE 'model%'",
    "param_ilike": "params.`Name X` ILIKE 'mODEL-_'",
    "param_double_quotes": 'params.lr = "0.3"',
    "tag_eq": "tags.kind = 'odd'",
    "tag_ne": "tags.kind != 'odd'",
    "tag_like": "tags.kind LIKE 'e%'",
    "tag_is_null": "tags.optional IS NULL",
    "tag_is_not_null": "tag.optional IS NOT NULL",
    "param_is_null": "params.nothing IS NULL",
    "attribute_status": "attributes.status = 'FINISHED'",
    "attribute_status_ne": "status != 'FINISHED'",
    "attribute_start": "attributes.start_time > 1002",
    "attribute_end": "attributes.end_time <= 5002",
    "attribute_created": "attributes.created >= 1003",
    "attribute_name": "attributes.run_name = 'run-3'",
    "attribute_name_like": "run_name LIKE 'run-%' AND `run name` ILIKE 'RUN-1'",
    "dataset_name": "dataset.name = 'data-2'",
    "dataset_name_like": "datasets.name LIKE 'data-%' AND metrics.acc < 0.15",
    "dataset_context": "dataset.context = 'train'",
    "dataset_name_in": "dataset.name IN ('data-1', 'data-4')",
    "keyword_case": "metrics.acc > 0.05 and tags.kind = 'even'",
    "error_or": "metrics.acc > 0.1 OR metrics.acc < 0.05",
    "error_text_for_metric": "metrics.acc > 'high'",
    "error_number_for_param": "params.lr = 0.1",
    "error_bare_word": "params.lr = abc",
    "error_entity": "foo.acc > 0.1",
    "error_attribute": "attributes.nothing = 'x'",
    "error_operator_metric": "metrics.acc LIKE 0.1",
    "error_operator_param": "params.lr > '0.1'",
    "error_incomplete": "metrics.acc >",
    "error_reversed": "0.1 < metrics.acc",
    "error_null_metric": "metrics.acc IS NULL",
    "error_list": "status IN ('FINISHED')",
    "error_dataset_key": "dataset.foo = 'x'",
    "error_text_time": "start_time > 'now'",
    "error_two": "metrics.acc > 1; metrics.acc < 2",
}


def make_filter_scenario(key, text):
    def run(w):
        # All filter scenarios of a server share the same runs.
        if not hasattr(make_filter_scenario, w.uri):
            setattr(make_filter_scenario, w.uri, create_search_runs(World(w.uri, "search-world")))
        e = getattr(make_filter_scenario, w.uri)
        try:
            return sorted(names(w.client.search_runs([e], text)))
        except MlflowException as x:
            return {"error_code": x.error_code, "message": x.message}

    run.__name__ = f"search_{key}"
    scenario(run)


for key, text in FILTERS.items():
    make_filter_scenario(key, text)


@scenario
def search_run_id_in(w):
    e = w.experiment()
    ids = [w.client.create_run(e, run_name=f"r{i}", start_time=i).info.run_id for i in range(4)]
    return [
        names(w.client.search_runs([e], f"attributes.run_id IN ('{ids[0]}', '{ids[2]}')")),
        names(w.client.search_runs([e], f"run_id NOT IN ('{ids[0]}')")),
        names(w.client.search_runs([e], f"run_id = '{ids[3]}'")),
    ]


@scenario
def search_order(w):
    e = create_search_runs(w)
    order = lambda *by: names(w.client.search_runs([e], order_by=list(by)))
    return [
        order("metrics.acc DESC"), order("metrics.acc ASC"), order("metrics.some"), order("metrics.some DESC"),
        order("params.lr DESC"), order("tags.optional", "params.lr"), order("attributes.start_time ASC"),
        order("tags.kind", "metrics.acc DESC"), order("metrics.`my metric/1`"), order("end_time DESC"), order("run_name"),
        order(), error(w.client.search_runs, [e], order_by=["metrics.acc SIDEWAYS"]),
        error(w.client.search_runs, [e], order_by=["foo.x"]), error(w.client.search_runs, [e], order_by=["nosuchkey"]),
    ]


@scenario
def search_paging(w):
    e = w.experiment()
    for i in range(7):
        w.client.create_run(e, run_name=f"r{i}", start_time=i)
    pages, token = [], None
    while True:
        page = w.client.search_runs([e], max_results=3, order_by=["start_time ASC"], page_token=token)
        pages.append(names(page))
        token = page.token
        if not token:
            break
    return [
        pages,
        error(w.client.search_runs, [e], max_results=0),
        error(w.client.search_runs, [e], max_results=50001),
        error(w.client.search_runs, [e], page_token="broken token"),
        error(w.client.search_runs, ["abc"]),
        names(w.client.search_runs([])),
    ]


@scenario
def search_views(w):
    e = w.experiment()
    kept = w.client.create_run(e, run_name="kept").info.run_id
    deleted = w.client.create_run(e, run_name="deleted").info.run_id
    w.client.delete_run(deleted)
    view = lambda v: sorted(names(w.client.search_runs([e], run_view_type=v)))
    return [view(ViewType.ACTIVE_ONLY), view(ViewType.DELETED_ONLY), view(ViewType.ALL), kept != deleted]


@scenario
def search_pandas(w):
    mlflow.set_experiment(w.name)
    for i in range(3):
        with mlflow.start_run(run_name=f"r{i}"):
            mlflow.log_metric("m", i)
            mlflow.log_param("p", i)
    frame = mlflow.search_runs(experiment_names=[w.name], filter_string="metrics.m >= 1", order_by=["metrics.m DESC"])
    return frame[["metrics.m", "params.p", "tags.mlflow.runName", "status"]].values.tolist()


# --- datasets --------------------------------------------------------------------------------------------------


@scenario
def dataset_log_input(w):
    mlflow.set_experiment(w.name)
    frame = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 0.2, 0.3]})
    with mlflow.start_run(run_name="r") as run:
        mlflow.log_input(mlflow.data.from_pandas(frame, name="frame", targets="y"), context="training", tags={"v": "1"})
        mlflow.log_input(mlflow.data.from_numpy(np.eye(3), name="eye"))
        mlflow.log_input(mlflow.data.from_pandas(frame, name="frame", targets="y"), context="other")
    inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    return sorted([i.dataset.name, i.dataset.digest, json.loads(i.dataset.schema), i.dataset.source_type, sorted((t.key, t.value) for t in i.tags)] for i in inputs)


@scenario
def dataset_validation(w):
    id = w.run()
    post = lambda d, tags=(): w.rest("POST", "runs/log-inputs", {"run_id": id, "datasets": [{"dataset": d, "tags": list(tags)}]})
    good = {"name": "n", "digest": "d", "source_type": "t", "source": "s"}
    return [
        post(good), post({**good, "name": "n" * 501}), post({**good, "digest": "d" * 37}),
        post(good, [{"key": "k" * 256, "value": "v"}]), post({**good, "source": "s" * 65536}),
        w.rest("POST", "runs/log-inputs", {"run_id": "0" * 32, "datasets": []}),
    ]


# --- artifacts -------------------------------------------------------------------------------------------------


@scenario
def artifacts_sizes(w):
    id = w.run()
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        for size in [0, 1, 1_000_003]:
            path = pathlib.Path(folder, f"file-{size}.bin")
            path.write_bytes(bytes(i % 251 for i in range(size)))
            w.client.log_artifact(id, str(path))
            back = w.client.download_artifacts(id, path.name, tempfile.mkdtemp())
            seen.append([size, pathlib.Path(back).read_bytes() == path.read_bytes()])
    return [seen, [(f.path, f.is_dir, f.file_size) for f in w.client.list_artifacts(id)]]


@scenario
def artifacts_200_mb(w):
    id = w.run()
    block = os.urandom(1 << 20)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "big.bin")
        with open(path, "wb") as f:
            for _ in range(200):
                f.write(block)
        w.client.log_artifact(id, str(path), "deep/er")
        back = pathlib.Path(w.client.download_artifacts(id, "deep/er/big.bin", folder + "/back" if os.mkdir(folder + "/back") is None else ""))
        same = back.stat().st_size == path.stat().st_size and back.read_bytes()[-(1 << 20):] == block
    return [same, [(f.path, f.file_size) for f in w.client.list_artifacts(id, "deep/er")]]


@scenario
def artifacts_folders(w):
    id = w.run()
    with tempfile.TemporaryDirectory() as folder:
        for name in ["a.txt", "sub/b.txt", "sub/deep/c.txt", "größe 値.txt"]:
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        w.client.log_artifacts(id, folder, "all")
    walk = lambda p: [(f.path, f.is_dir) if not f.is_dir else (f.path, walk(f.path)) for f in w.client.list_artifacts(id, p)]
    back = pathlib.Path(w.client.download_artifacts(id, "all", tempfile.mkdtemp()))
    return [walk("all"), sorted((str(p.relative_to(back)), p.read_text()) for p in back.rglob("*") if p.is_file())]


@scenario
def artifacts_text_dict_figure(w):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mlflow.set_experiment(w.name)
    with mlflow.start_run() as run:
        mlflow.log_text("hello", "notes/hello.txt")
        mlflow.log_dict({"a": [1, 2]}, "config.json")
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        mlflow.log_figure(figure, "plot.png")
        mlflow.log_table({"q": ["a", "b"], "n": [1, 2]}, "table.json")
    id = run.info.run_id
    return [
        sorted(f.path for f in w.client.list_artifacts(id)),
        mlflow.artifacts.load_text(f"runs:/{id}/notes/hello.txt"),
        mlflow.artifacts.load_dict(f"runs:/{id}/config.json"),
        mlflow.load_table("table.json", run_ids=[id])[["q", "n"]].values.tolist(),
    ]


@scenario
def artifacts_missing_and_bad_paths(w):
    id = w.run()
    base = "/api/2.0/mlflow-artifacts/artifacts/"
    return [
        w.client.list_artifacts(id),
        w.client.list_artifacts(id, "nothing"),
        w.rest("GET", f"1/{id}/nothing.txt", base=base)[0],
        w.rest("GET", "artifacts/list?run_id=" + "0" * 32),
        w.rest("GET", f"artifacts/list?run_id={id}&path=../up"),
        w.rest("PUT", "..%2fup.txt", base=base),
        w.rest("GET", "a%2f..%2f..%2fb", base=base),
        w.rest("GET", "artifacts/list"),
    ]


@scenario
def artifacts_headers(w):
    id = w.run()
    found = []
    for name in ["a.txt", "b.json", "c.png", "d.bin", "MLmodel", "größe.csv"]:
        w.client.log_text(id, "x", name)
        root = w.client.get_run(id).info.artifact_uri.split(":/", 1)[1].lstrip("/")
        response = w.http.get(f"{w.uri}/api/2.0/mlflow-artifacts/artifacts/{root}/{name}", timeout=30)
        keep = ["content-type", "content-disposition", "x-content-type-options"]
        found.append([name, response.status_code, {k: response.headers.get(k) for k in keep}])
    return found


@scenario
def artifacts_delete(w):
    id = w.run()
    w.client.log_text(id, "x", "a/b.txt")
    w.client.log_text(id, "y", "c.txt")
    root = w.client.get_run(id).info.artifact_uri.split(":/", 1)[1].lstrip("/")
    response = w.http.delete(f"{w.uri}/api/2.0/mlflow-artifacts/artifacts/{root}/a", timeout=30)
    return [response.status_code, [f.path for f in w.client.list_artifacts(id)]]


# --- models ----------------------------------------------------------------------------------------------------


def version_view(v):
    return [v.name, str(v.version), v.current_stage, v.description, v.source, v.run_id, v.status, v.tags, v.aliases]


def registered(w, name=None, versions=1):
    name = name or w.name
    run = w.client.get_run(w.run(w.experiment(f"-{name}")))
    w.client.create_registered_model(name)
    for _ in range(versions):
        w.client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
    return name


@scenario
def model_create(w):
    m = w.client.create_registered_model(w.name, tags={"a": "1"}, description="what it is")
    again = error(w.client.create_registered_model, w.name)
    found = w.client.get_registered_model(w.name)
    return [m.name, m.description, found.tags, found.latest_versions, again]


@scenario
def model_bad_names(w):
    create = lambda name: error(w.client.create_registered_model, name)
    return [create(""), create("a/b"), create("a:b"), create(".."), create("  "), w.rest("POST", "registered-models/create", {})]


@scenario
def model_unicode(w):
    w.client.create_registered_model(f"{w.name} größe 値")
    return w.client.get_registered_model(f"{w.name} größe 値").name


@scenario
def model_update_rename_delete(w):
    name = registered(w)
    c = w.client
    c.update_registered_model(name, "new words")
    c.rename_registered_model(name, name + "-2")
    renamed = version_view(c.get_model_version(name + "-2", "1"))
    other = registered(w, w.name + "-other")
    taken = error(c.rename_registered_model, other, name + "-2")
    c.delete_registered_model(name + "-2")
    return [
        renamed, taken, error(c.get_registered_model, name + "-2"), error(c.delete_registered_model, name),
        error(c.rename_registered_model, "nothing", "x"), error(c.update_registered_model, "nothing", "x"),
        error(c.rename_registered_model, other, ""),
    ]


@scenario
def model_versions(w):
    name = registered(w, versions=3)
    c = w.client
    c.update_model_version(name, "2", "the second")
    c.set_model_version_tag(name, "2", "k", "v")
    c.delete_model_version(name, "3")
    next_one = c.create_model_version(name, c.get_model_version(name, "1").source, c.get_model_version(name, "1").run_id)
    return [
        version_view(c.get_model_version(name, "2")),
        error(c.get_model_version, name, "3"),
        error(c.get_model_version, name, "x"),
        error(c.get_model_version, "nothing", "1"),
        next_one.version,
        c.get_model_version_download_uri(name, "1") == c.get_model_version(name, "1").source,
        error(c.delete_model_version, name, "9"),
        error(c.update_model_version, name, "9", "x"),
    ]


@scenario
def model_version_sources(w):
    run = w.client.get_run(w.run())
    other = w.client.get_run(w.run(run.info.experiment_id))
    w.client.create_registered_model(w.name)
    create = lambda source, id=None: w.rest("POST", "model-versions/create", {"name": w.name, "source": source, **({"run_id": id} if id else {})})
    id = run.info.run_id
    status = lambda response: response if response[0] != 200 else [200, response[1]["model_version"]["source"]]
    return [
        status(create(f"runs:/{id}/model", id)), status(create(f"runs:/{id}/model", other.info.run_id)), status(create("/etc/passwd", id)),
        status(create("file:///etc/passwd")), status(create(f"{run.info.artifact_uri}/../../x", id)), status(create(other.info.artifact_uri, id)),
        status(create("s3://bucket/model")), status(create(f"{run.info.artifact_uri}/%2e%2e/x", id)), status(create("mlflow-artifacts:/99999/x")),
        w.rest("POST", "model-versions/create", {"name": w.name}), status(create(run.info.artifact_uri + "/m", "0" * 32)),
        status(create(f"models:/{w.name}/1")),
    ]


@scenario
def model_aliases(w):
    name = registered(w, versions=3)
    c = w.client
    c.set_registered_model_alias(name, "champion", "1")
    c.set_registered_model_alias(name, "challenger", "2")
    c.set_registered_model_alias(name, "champion", "3")
    found = c.get_registered_model(name).aliases
    by = c.get_model_version_by_alias(name, "champion").version
    c.delete_registered_model_alias(name, "challenger")
    c.delete_registered_model_alias(name, "challenger")
    return [
        found, by, c.get_registered_model(name).aliases, version_view(c.get_model_version(name, "3")),
        c.get_model_version_by_alias(name, "latest").version,
        error(c.get_model_version_by_alias, name, "nothing"), error(c.set_registered_model_alias, name, "latest", "1"),
        error(c.set_registered_model_alias, name, "v1", "1"), error(c.set_registered_model_alias, name, "a b", "1"),
        error(c.set_registered_model_alias, name, "x", "99"), error(c.set_registered_model_alias, name, "", "1"),
        error(c.set_registered_model_alias, name, "a" * 256, "1"),
    ]


@scenario
def model_stages(w):
    name = registered(w, versions=3)
    c = w.client
    c.transition_model_version_stage(name, "1", "Staging")
    c.transition_model_version_stage(name, "2", "production")
    c.transition_model_version_stage(name, "3", "Production", archive_existing_versions=True)
    latest = lambda stages=None: sorted([v.version, v.current_stage] for v in c.get_latest_versions(name, stages))
    return [
        [c.get_model_version(name, str(i)).current_stage for i in (1, 2, 3)],
        latest(), latest(["Staging"]), error(c.get_latest_versions, name, ["Foo"]),
        error(c.transition_model_version_stage, name, "1", "Foo"), error(c.transition_model_version_stage, name, "9", "Staging"),
        error(c.transition_model_version_stage, name, "1", "Archived", True),
    ]


@scenario
def model_tags(w):
    name = registered(w)
    c = w.client
    c.set_registered_model_tag(name, "a", "1")
    c.set_registered_model_tag(name, "a", "2")
    c.set_model_version_tag(name, "1", "b", "3")
    c.delete_registered_model_tag(name, "nothing")
    c.delete_model_version_tag(name, "1", "b")
    return [
        c.get_registered_model(name).tags, c.get_model_version(name, "1").tags,
        error(c.set_registered_model_tag, "nothing", "a", "1"), error(c.set_model_version_tag, name, "7", "a", "1"),
        error(c.set_registered_model_tag, name, "k" * 251, "1"), error(c.set_registered_model_tag, name, "k", "v" * 100001),
        error(c.delete_registered_model_tag, "nothing", "a"),
    ]


@scenario
def model_search(w):
    for i in range(3):
        name = registered(w, f"{w.name}-{i}")
        w.client.set_registered_model_tag(name, "i", str(i))
    search = lambda f, **k: [m.name for m in w.client.search_registered_models(f, **k)]
    prefix = f"name LIKE '{w.name}-%'"
    page = w.client.search_registered_models(prefix, max_results=2)
    return [
        search(prefix), search(f"name = '{w.name}-1'"), search(f"name ILIKE '{w.name.upper()}%' AND tags.i = '2'"),
        search(prefix, order_by=["name DESC"]), search(f"{prefix} AND tags.i != '0'"), search(f"name IN ('{w.name}-0', 'zz')"),
        [m.name for m in page], [m.name for m in w.client.search_registered_models(prefix, max_results=2, page_token=page.token)],
        error(w.client.search_registered_models, "foo = 'x'"), error(w.client.search_registered_models, "name = 5"),
        error(w.client.search_registered_models, prefix, order_by=["foo"]), error(w.client.search_registered_models, max_results=1001),
        error(w.client.search_registered_models, "name > 'x'"),
    ]


@scenario
def model_version_search(w):
    name = registered(w, versions=4)
    c = w.client
    c.set_model_version_tag(name, "2", "k", "v")
    run = c.get_model_version(name, "1").run_id
    search = lambda f, **k: [v.version for v in c.search_model_versions(f, **k)]
    mine = f"name = '{name}'"
    return [
        search(mine, order_by=["version_number ASC"]), search(f"run_id = '{run}'", order_by=["version_number DESC"]),
        search(f"{mine} AND version_number > 2", order_by=["version_number"]), search(f"{mine} AND tags.k = 'v'"),
        search(f"{mine} AND source_path LIKE '%model'", max_results=2, order_by=["version_number ASC"]),
        search(f"run_id IN ('{run}')", order_by=["version_number"]),
        error(c.search_model_versions, "foo = 'x'"), error(c.search_model_versions, f"{mine} AND version_number > 'x'"),
        error(c.search_model_versions, mine, order_by=["foo"]), error(c.search_model_versions, mine, order_by=["name", "name"]),
    ]


# --- logged models (MLflow 3) ----------------------------------------------------------------------------------


def logged_view(m):
    return [
        m.name, str(m.status), m.model_type, m.params, {k: v for k, v in m.tags.items() if not k.startswith("mlflow.")},
        sorted((x.key, x.value, x.step) for x in m.metrics or []), m.artifact_location,
    ]


@scenario
def logged_model_lifecycle(w):
    e = w.experiment()
    run = w.run(e)
    c = w.client
    m = c.create_logged_model(e, name="lm", source_run_id=run, tags={"t": "1"}, params={"p": "2"}, model_type="agent")
    c.log_metric(run, "acc", 0.5, step=1, timestamp=7, model_id=m.model_id)
    c.log_model_params(m.model_id, {"q": "3"})
    c.set_logged_model_tags(m.model_id, {"u": "4"})
    c.delete_logged_model_tag(m.model_id, "t")
    c.finalize_logged_model(m.model_id, "READY")
    view = logged_view(c.get_logged_model(m.model_id))
    missing_tag = error(c.delete_logged_model_tag, m.model_id, "t")
    c.delete_logged_model(m.model_id)
    return [
        view, missing_tag, error(c.get_logged_model, m.model_id), error(c.get_logged_model, "m-" + "0" * 32),
        error(c.create_logged_model, e, name="a/b"), error(c.create_logged_model, "99999", name="x"),
    ]


@scenario
def logged_model_search(w):
    e = w.experiment()
    run = w.run(e)
    c = w.client
    for i in range(4):
        m = c.create_logged_model(e, name=f"lm-{i}", params={"p": str(i)}, tags={"k": "even" if i % 2 == 0 else "odd"})
        c.log_metric(run, "acc", i / 10, timestamp=i, model_id=m.model_id)
    search = lambda f=None, **k: [m.name for m in c.search_logged_models([e], f, **k)]
    by = lambda field, ascending=True: [{"field_name": field, "ascending": ascending}]
    page = c.search_logged_models([e], max_results=3, order_by=by("name"))
    return [
        search(order_by=by("name")), search("metrics.acc > 0.15", order_by=by("name")), search("params.p = '2'"),
        search("tags.k = 'odd'", order_by=by("name")), search(order_by=by("metrics.acc", False)), search("name LIKE 'lm-%'", order_by=by("name", False)),
        search("name = 'lm-1'"), [m.name for m in page], bool(page.token),
        error(search, "foo.x = '1'"), error(search, "name > 'x'"), error(search, order_by=by("params.p")),
    ]


# --- complete workflows ----------------------------------------------------------------------------------------


def train(w, **log):
    from sklearn.linear_model import LogisticRegression

    x = np.arange(40, dtype=float).reshape(20, 2)
    y = np.array([0, 1] * 10)
    return LogisticRegression().fit(x, y), x, y


@scenario
def autolog_sklearn(w):
    mlflow.set_experiment(w.name)
    mlflow.sklearn.autolog(log_input_examples=False, silent=True)
    try:
        with mlflow.start_run(run_name="auto") as run:
            train(w)
    finally:
        mlflow.sklearn.autolog(disable=True)
    found = mlflow.get_run(run.info.run_id)
    return [
        sorted(found.data.params), sorted(found.data.metrics), found.data.tags.get("estimator_name"),
        sorted(f.path for f in w.client.list_artifacts(run.info.run_id)), found.info.status,
        [(i.dataset.name, i.dataset.digest) for i in found.inputs.dataset_inputs], len(found.outputs.model_outputs),
    ]


@scenario
def log_register_load_model(w):
    mlflow.set_experiment(w.name)
    model, x, _ = train(w)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(model, name="model", registered_model_name=w.name, input_example=x[:1])
    w.client.set_registered_model_alias(w.name, "champion", "1")
    loaded = mlflow.pyfunc.load_model(f"models:/{w.name}@champion")
    by_id = mlflow.sklearn.load_model(f"models:/{info.model_id}")
    version = w.client.get_model_version(w.name, "1")
    return [
        (loaded.predict(x) == model.predict(x)).all().item(), (by_id.predict(x) == model.predict(x)).all().item(),
        version.status, version.run_id == info.run_id, info.signature is not None,
        sorted(f.path.split("/")[-1] for f in w.client.list_logged_model_artifacts(info.model_id)),
    ]


@scenario
def copy_model_version(w):
    mlflow.set_experiment(w.name)
    model, x, _ = train(w)
    with mlflow.start_run():
        mlflow.sklearn.log_model(model, name="model", registered_model_name=w.name)
    copied = w.client.copy_model_version(f"models:/{w.name}/1", w.name + "-prod")
    again = mlflow.sklearn.load_model(f"models:/{w.name}-prod/1")
    return [copied.name, copied.version, copied.source, (again.predict(x) == model.predict(x)).all().item()]


@scenario
def concurrent_clients(w):
    e = w.experiment()
    id = w.run(e)
    failures = []

    def work(n):
        try:
            c = MlflowClient(w.uri)
            for i in range(15):
                c.log_metric(id, f"m{n}", i, step=i, timestamp=i)
                c.set_tag(id, f"t{n}", str(i))
            c.log_param(id, f"p{n}", "1")
            c.create_run(e, run_name=f"r{n}")
        except Exception as x:
            failures.append(repr(x))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    run = w.client.get_run(id)
    histories = [len(w.client.get_metric_history(id, f"m{n}")) for n in range(8)]
    return [failures, histories, run.data.params, sorted(names(w.client.search_runs([e])))]


@scenario
def concurrent_versions_are_numbered_once(w):
    name = registered(w, versions=0)
    run = w.client.get_run(w.run(w.experiment("-more")))
    found = []

    def work():
        c = MlflowClient(w.uri)
        for _ in range(5):
            found.append(int(c.create_model_version(name, run.info.artifact_uri, run.info.run_id).version))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sorted(found)


@scenario
def http_details(w):
    post = lambda body, **h: w.http.post(f"{w.uri}/api/2.0/mlflow/runs/create", data=body, headers=h, timeout=30)
    view = lambda a: [a.status_code, a.json() if a.headers.get("content-type") == "application/json" else a.headers.get("content-type")]
    e = w.experiment()
    return [
        view(post(b"x")), view(post(b"x", **{"content-type": "text/plain"})),
        view(post(json.dumps({"experiment_id": e, "start_time": "x"}), **{"content-type": "application/json"})),
        view(post(json.dumps(json.dumps({"experiment_id": e, "run_name": "double"})), **{"content-type": "application/json; charset=utf-8"}))[0],
        w.http.get(f"{w.uri}/api/2.0/mlflow/nothing", timeout=30).status_code,
        w.http.get(f"{w.uri}/api/2.0/mlflow/runs/create", timeout=30).status_code,
        w.http.get(f"{w.uri}/health", timeout=30).text, w.http.get(f"{w.uri}/version", timeout=30).text,
        w.rest("POST", "runs/create", {"experiment_id": e, "unknown_field": 1, "run_name": "r"})[0],
        w.rest("POST", "experiments/search", {"max_results": 1}, base="/ajax-api/2.0/mlflow/")[0],
    ]


@scenario
def http_malformed_tags(w):
    return w.rest("POST", "runs/create", {"experiment_id": w.experiment(), "tags": "no list"})


@scenario
def raw_shapes(w):
    e = w.experiment()
    created = w.rest("POST", "runs/create", {"experiment_id": e, "start_time": 5, "run_name": "shape", "user_id": "u"})
    id = created[1]["run"]["info"]["run_id"]
    w.rest("POST", "runs/log-batch", {"run_id": id, "metrics": [{"key": "m", "value": 1, "timestamp": 5, "step": 2}], "params": [{"key": "p", "value": "v"}]})
    return [
        created, w.rest("GET", f"runs/get?run_id={id}"), w.rest("GET", f"experiments/get?experiment_id={e}"),
        w.rest("POST", "runs/update", {"run_id": id, "status": "FINISHED", "end_time": 9}),
        w.rest("POST", "runs/search", {"experiment_ids": [e]}), w.rest("GET", f"metrics/get-history?run_id={id}&metric_key=m"),
        w.rest("GET", f"artifacts/list?run_id={id}"), w.rest("POST", "runs/delete", {"run_id": id}),
        w.rest("POST", "registered-models/create", {"name": w.name}), w.rest("GET", "registered-models/get", params={"name": w.name}),
    ]
