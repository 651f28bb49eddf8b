"""Trains one model on the UCI handwritten digits and logs it with the official MLflow client.

    MLFLOW_TRACKING_URI=http://127.0.0.1:7070 python train.py logreg|svm|forest|mlp

The last line of the output is JSON with the run, the registered version and the test accuracy.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mlflow
import numpy as np
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, f1_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from skl2onnx import to_onnx

SEED = 7
MODEL = "digits"


def data():
    """1,797 images of 8x8 pixels, scaled from 0..16 to 0..1; a fifth is held out for the test. A run reads the version of the data that its
    manifest names; without one, scikit-learn's copy is read."""
    if "SLIPWAY_DATA" in os.environ:
        table = np.loadtxt(os.environ["SLIPWAY_DATA"], delimiter=",")
        images, labels = table[:, :-1], table[:, -1].astype(int)
    else:
        images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)
    return train_test_split(images, labels, test_size=0.2, random_state=SEED, stratify=labels)


def logistic_regression():
    return LogisticRegression(C=0.5, max_iter=400), {"C": 0.5, "max_iter": 400}


def support_vectors():
    return LinearSVC(C=0.1, random_state=SEED), {"C": 0.1, "kernel": "linear"}


def random_forest():
    parameters = {"n_estimators": 120, "max_depth": 14}
    return RandomForestClassifier(**parameters, random_state=SEED), parameters


def perceptron():
    parameters = {"hidden_layer_sizes": (64, 32), "learning_rate_init": 0.004, "batch_size": 64, "epochs": 40}
    model = MLPClassifier(
        parameters["hidden_layer_sizes"],
        learning_rate_init=parameters["learning_rate_init"],
        batch_size=parameters["batch_size"],
        random_state=SEED,
    )
    return model, parameters


ALGORITHMS = {
    "logreg": logistic_regression,
    "svm": support_vectors,
    "forest": random_forest,
    "mlp": perceptron,
}


def fit(model, parameters, train, test):
    """Trains the model. The perceptron is trained epoch by epoch, and its metrics are logged after each epoch."""
    (train_x, train_y), (test_x, test_y) = train, test
    if "epochs" not in parameters:
        model.fit(train_x, train_y)
        return
    classes = np.unique(train_y)
    for epoch in range(parameters["epochs"]):
        model.partial_fit(train_x, train_y, classes=classes)
        mlflow.log_metrics(
            {
                "train_loss": log_loss(train_y, model.predict_proba(train_x)),
                "val_loss": log_loss(test_y, model.predict_proba(test_x)),
                "val_accuracy": model.score(test_x, test_y),
            },
            step=epoch,
        )


def confusion_matrix(truth, predicted):
    figure, axes = plt.subplots(figsize=(5, 5), dpi=110)
    ConfusionMatrixDisplay.from_predictions(truth, predicted, ax=axes, colorbar=False, cmap="Blues")
    figure.tight_layout()
    mlflow.log_figure(figure, "plots/confusion_matrix.png")
    plt.close(figure)


def log_onnx(model, example):
    """Logs the model as ONNX, in a folder that MLflow's clients can load (`MLmodel` next to `model.onnx`)."""
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    onnx_model = to_onnx(model, example, options=options, target_opset=17)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(onnx_model.SerializeToString())
        mlmodel = {
            "flavors": {"onnx": {"data": "model.onnx", "onnx_version": "1", "providers": ["CPUExecutionProvider"]}},
            "run_id": mlflow.active_run().info.run_id,
            "artifact_path": "model",
        }
        (Path(folder) / "MLmodel").write_text(json.dumps(mlmodel, indent=1))
        mlflow.log_artifacts(folder, "model")


def main(algorithm):
    train_x, test_x, train_y, test_y = data()
    model, parameters = ALGORITHMS[algorithm]()
    mlflow.set_experiment(MODEL)
    with mlflow.start_run(run_name=f"{MODEL}-{algorithm}") as run:
        mlflow.set_tags({"algorithm": algorithm, "task": "classification"})
        mlflow.log_params({"algorithm": algorithm, **parameters})
        for name, images, labels, context in [("train", train_x, train_y, "training"), ("test", test_x, test_y, "testing")]:
            dataset = mlflow.data.from_numpy(images, targets=labels, name=f"uci-digits-{name}")
            mlflow.log_input(dataset, context=context)
        started = time.time()
        fit(model, parameters, (train_x, train_y), (test_x, test_y))
        predicted = model.predict(test_x)
        accuracy = float((predicted == test_y).mean())
        mlflow.log_metrics(
            {
                "accuracy": accuracy,
                "f1_macro": f1_score(test_y, predicted, average="macro"),
                "train_accuracy": model.score(train_x, train_y),
                "fit_seconds": time.time() - started,
            }
        )
        confusion_matrix(test_y, predicted)
        mlflow.log_dict({"predicted": predicted.tolist(), "truth": test_y.tolist()}, "predictions.json")
        log_onnx(model, train_x[:1])
        client = MlflowClient()
        try:
            client.create_registered_model(MODEL, description="UCI handwritten digits, 8x8 pixels")
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            MODEL, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"algorithm": algorithm}
        )
    return {"run_id": run.info.run_id, "version": version.version, "algorithm": algorithm, "accuracy": accuracy}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
