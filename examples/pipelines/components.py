"""Components for pipelines of slipway. They are ordinary components of the `kfp` SDK: each runs wherever Kubeflow's pipelines run.

Steps find slipway's tracking by the variables that every step has: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, and MLFLOW_RUN_ID, the
tracked run of the step. Only `deploy` needs more rights, and so a token of its own.
"""

from typing import List

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

BASE = "python:3.11"
MLFLOW = "mlflow-skinny==3.17.2"
LEARNING = ["scikit-learn==1.7.2", "skl2onnx==1.20.0"]


@dsl.component(base_image=BASE)
def data_version(repository: str, path: str, revision: str, data: Output[Dataset]):
    """Gets a file in the version that a Git revision names, from a repository of `slipway data` or DVC. Needs the program `slipway`."""
    import subprocess

    words = ["slipway", "data", "get", repository, path, "--rev", revision, "--out", data.path]
    subprocess.run(words, check=True)
    data.metadata.update(repository=repository, path=path, revision=revision)


@dsl.component(base_image=BASE, packages_to_install=["scikit-learn==1.7.2"])
def split(data: Input[Dataset], held_out: float, train: Output[Dataset], test: Output[Dataset]):
    """Splits a table without a header, whose last column is the class."""
    import csv

    from sklearn.model_selection import train_test_split

    with open(data.path, newline="") as file:
        rows = list(csv.reader(file))
    parts = train_test_split(rows, test_size=held_out, random_state=7, stratify=[row[-1] for row in rows])
    for output, part in zip((train, test), parts):
        with open(output.path, "w", newline="") as file:
            csv.writer(file).writerows(part)
        output.metadata["rows"] = len(part)


@dsl.component(base_image=BASE, packages_to_install=[*LEARNING, MLFLOW])
def train(kind: str, train: Input[Dataset], test: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> float:
    """Fits one kind of classifier of digits, measures it, and logs it as ONNX to the tracked run of this step."""
    import csv
    import shutil

    import mlflow
    import numpy
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    def table(path):
        with open(path, newline="") as file:
            rows = numpy.array([[float(cell) for cell in row] for row in csv.reader(file)])
        # Pixels are 0 to 16.
        return (rows[:, :-1] / 16).astype(numpy.float32), rows[:, -1].astype(int)

    kinds = {
        "logreg": LogisticRegression(C=0.5, max_iter=400),
        "svm": LinearSVC(C=0.1, random_state=7),
        "forest": RandomForestClassifier(n_estimators=120, max_depth=14, random_state=7),
    }
    images, digits = table(train.path)
    classifier = kinds[kind].fit(images, digits)
    accuracy = float(classifier.score(*table(test.path)))
    options = {"zipmap": False} if hasattr(classifier, "predict_proba") else None
    with open("model.onnx", "wb") as file:
        file.write(to_onnx(classifier, images[:1], options=options, target_opset=17).SerializeToString())
    mlflow.log_metric("accuracy", accuracy)
    mlflow.log_artifact("model.onnx", "model")
    shutil.copy("model.onnx", model.path)
    model.metadata.update(kind=kind, accuracy=accuracy, source=f"runs:/{mlflow.active_run().info.run_id}/model")
    metrics.log_metric("accuracy", accuracy)
    print(f"{kind}: {accuracy:.4f}")
    return accuracy


@dsl.component(base_image=BASE)
def best(models: Input[List[Model]], chosen: Output[Model]) -> str:
    """The model with the highest accuracy, and its kind."""
    import shutil

    found = max(models, key=lambda model: model.metadata["accuracy"])
    shutil.copy(found.path, chosen.path)
    chosen.metadata.update(found.metadata)
    return found.metadata["kind"]


@dsl.component(base_image=BASE, packages_to_install=[MLFLOW])
def register(name: str, model: Input[Model]) -> str:
    """Registers a model if it is more accurate than the champion. The first one becomes the champion, later ones the challenger. Returns the
    alias, or nothing if the champion is as good."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    accuracy = model.metadata["accuracy"]
    try:
        champion = client.get_model_version_by_alias(name, "champion")
    except MlflowException:
        champion = None
    if champion is not None and float(champion.tags["accuracy"]) >= accuracy:
        print(f"version {champion.version} of {name} is as good: {champion.tags['accuracy']} against {accuracy:.4f}")
        return ""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = model.metadata["source"]
    run_id = source.split("/")[1]
    tags = {"accuracy": str(accuracy), "kind": model.metadata["kind"]}
    version = client.create_model_version(name, source, run_id, tags=tags)
    alias = "champion" if champion is None else "challenger"
    client.set_registered_model_alias(name, alias, version.version)
    print(f"version {version.version} of {name} is the {alias}: {accuracy:.4f}")
    return alias


@dsl.component(base_image=BASE)
def deploy(name: str, alias: str, canary_percent: int) -> str:
    """Serves the champion of a model, and its challenger with a share of the requests. The variable SLIPWAY_TOKEN has a token that may
    change deployments."""
    import json
    import os
    import ssl
    import urllib.request

    shares = {"champion": 100} if alias == "champion" else {"champion": 100 - canary_percent, "challenger": canary_percent}
    models = [{"name": role, "uri": f"models:/{name}@{role}", "weight": weight} for role, weight in shares.items()]
    manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"models": models}}
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/v1/deployments",
        json.dumps(manifest).encode(),
        {"authorization": f"Bearer {os.environ['SLIPWAY_TOKEN']}", "content-type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    with urllib.request.urlopen(request, context=trusted) as response:
        deployed = json.load(response)
    print(f"revision {deployed['revision']} of {name}: {shares}")
    return json.dumps(shares)
