"""Trains classifiers of handwritten digits in three ways, in parallel, and tells which is the best.

    kfp dsl compile --py digits.py --output digits.yaml
"""

from typing import List

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

PACKAGES = ["scikit-learn==1.7.2"]


@dsl.component(base_image="python:3.11", packages_to_install=PACKAGES)
def load(train: Output[Dataset], test: Output[Dataset], held_out: float):
    """Writes scikit-learn's copy of the UCI digits as two tables: 64 pixels and the digit in each line."""
    import csv

    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images, digits, test_size=held_out, random_state=7, stratify=digits)
    for output, pixels, labels in [(train, parts[0], parts[2]), (test, parts[1], parts[3])]:
        with open(output.path, "w", newline="") as file:
            csv.writer(file).writerows([*row, label] for row, label in zip(pixels, labels))
        output.metadata["images"] = len(labels)


@dsl.component(base_image="python:3.11", packages_to_install=PACKAGES)
def train(kind: str, train: Input[Dataset], test: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> float:
    """Fits one kind of classifier and measures it."""
    import csv
    import pickle

    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    def table(path):
        with open(path, newline="") as file:
            rows = [[float(cell) for cell in row] for row in csv.reader(file)]
        return [row[:-1] for row in rows], [int(row[-1]) for row in rows]

    kinds = {
        "logreg": LogisticRegression(C=0.01, max_iter=2000),
        "svm": LinearSVC(C=0.001, random_state=7),
        "forest": RandomForestClassifier(n_estimators=120, max_depth=14, random_state=7),
    }
    classifier = kinds[kind].fit(*table(train.path))
    accuracy = float(classifier.score(*table(test.path)))
    metrics.log_metric("accuracy", accuracy)
    with open(model.path, "wb") as file:
        pickle.dump(classifier, file)
    model.metadata["kind"] = kind
    print(f"{kind}: {accuracy:.4f}")
    return accuracy


@dsl.component(base_image="python:3.11")
def best(kinds: List[str], accuracies: List[float]) -> str:
    """The kind with the highest accuracy."""
    return max(zip(accuracies, kinds))[1]


@dsl.pipeline(name="digits")
def digits(kinds: List[str] = ["logreg", "svm", "forest"], held_out: float = 0.2) -> str:
    data = load(held_out=held_out)
    with dsl.ParallelFor(items=kinds) as kind:
        trained = train(kind=kind, train=data.outputs["train"], test=data.outputs["test"])
    chosen = best(kinds=kinds, accuracies=dsl.Collected(trained.outputs["Output"]))
    return chosen.output
