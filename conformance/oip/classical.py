"""Models of scikit-learn for testing the built-in runtime: small, trained in seconds, one for each kind of operator."""

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier, GradientBoostingClassifier, GradientBoostingRegressor, HistGradientBoostingClassifier,
    RandomForestClassifier, RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer, KBinsDiscretizer, MaxAbsScaler, MinMaxScaler, Normalizer, OneHotEncoder, OrdinalEncoder, PolynomialFeatures,
    RobustScaler, StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor


def passengers(rows=300):
    """A table with two numbers, of which some are missing, and two categories, with a label that depends on all."""
    random = np.random.default_rng(3)
    age, fare = random.uniform(1, 80, rows), random.exponential(30, rows)
    sex, port = random.choice(["female", "male"], rows), random.choice(["C", "Q", "S"], rows)
    survived = ((sex == "female") * 2 + (age < 14) + (fare > 40) + random.normal(0, 0.5, rows) > 1.2).astype(int)
    age[random.random(rows) < 0.1] = np.nan
    numbers = np.stack([age, fare], axis=1).astype(np.float32)
    return numbers, np.stack([sex, port], axis=1).astype(object), survived


def models():
    """Yields name, ONNX model and inputs by name."""
    iris_x, iris_y = load_iris(return_X_y=True)
    cancer_x, cancer_y = load_breast_cancer(return_X_y=True)
    diabetes_x, diabetes_y = load_diabetes(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[iris_y]
    tables = {
        "iris": (iris_x, iris_y), "names": (iris_x, names), "cancer": (cancer_x, cancer_y), "diabetes": (diabetes_x, diabetes_y),
    }
    estimators = {
        "logistic-regression": (LogisticRegression(max_iter=500), "iris"),
        "logistic-regression-of-texts": (LogisticRegression(max_iter=500), "names"),
        "logistic-regression-binary": (make_pipeline(StandardScaler(), LogisticRegression()), "cancer"),
        "linear-svm": (LinearSVC(), "iris"),
        "linear-svm-binary": (LinearSVC(), "cancer"),
        "sgd": (make_pipeline(RobustScaler(), SGDClassifier(loss="log_loss", random_state=1)), "iris"),
        "ridge": (make_pipeline(MaxAbsScaler(), Ridge()), "diabetes"),
        "linear-regression": (make_pipeline(PolynomialFeatures(2), LinearRegression()), "diabetes"),
        "decision-tree": (DecisionTreeClassifier(random_state=1), "names"),
        "decision-tree-regressor": (DecisionTreeRegressor(max_depth=5, random_state=1), "diabetes"),
        "random-forest": (RandomForestClassifier(40, random_state=1), "iris"),
        "random-forest-binary": (RandomForestClassifier(40, random_state=1), "cancer"),
        "random-forest-regressor": (RandomForestRegressor(40, random_state=1), "diabetes"),
        "extra-trees": (ExtraTreesClassifier(40, random_state=1), "names"),
        "gradient-boosting": (GradientBoostingClassifier(n_estimators=30, random_state=1), "iris"),
        "gradient-boosting-binary": (GradientBoostingClassifier(n_estimators=30, random_state=1), "cancer"),
        "gradient-boosting-regressor": (GradientBoostingRegressor(n_estimators=30, random_state=1), "diabetes"),
        "histogram-boosting": (HistGradientBoostingClassifier(max_iter=20, random_state=1), "cancer"),
        "perceptron": (make_pipeline(MinMaxScaler(), MLPClassifier(hidden_layer_sizes=(16,), max_iter=300, random_state=1)), "iris"),
        "perceptron-regressor": (make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(16,), max_iter=300, random_state=1)), "diabetes"),
        "naive-bayes": (GaussianNB(), "iris"),
        "pca": (make_pipeline(Normalizer(), PCA(2), LogisticRegression()), "iris"),
        "bins": (make_pipeline(KBinsDiscretizer(4, encode="onehot-dense"), LogisticRegression()), "iris"),
        "binarizer": (make_pipeline(Binarizer(threshold=2.0), LogisticRegression()), "iris"),
    }
    for name, (estimator, table) in estimators.items():
        x, y = tables[table]
        x = x.astype(np.float32)
        estimator.fit(x, y)
        options = {"zipmap": False} if hasattr(estimator, "predict_proba") else None
        yield name, to_onnx(estimator, x[:1], options=options, target_opset={"": 18, "ai.onnx.ml": 3}), {"X": x[:40]}

    double = Ridge().fit(diabetes_x, diabetes_y)
    yield "ridge-fp64", to_onnx(double, initial_types=[("X", DoubleTensorType([None, 10]))], target_opset=18), {"X": diabetes_x[:40]}

    numbers, categories, survived = passengers()
    table = np.concatenate([numbers.astype(object), categories], axis=1)
    prepare = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0, 1]),
        ("categories", OneHotEncoder(handle_unknown="ignore"), [2, 3]),
    ])
    pipeline = make_pipeline(prepare, LogisticRegression()).fit(table, survived)
    types = [("numbers", FloatTensorType([None, 2])), ("categories", StringTensorType([None, 2]))]
    inputs = {"numbers": numbers[:40], "categories": categories[:40]}
    yield "mixed-table", to_onnx(pipeline, initial_types=types, options={"zipmap": False}, target_opset=18), inputs
    ordinal = make_pipeline(OrdinalEncoder(), DecisionTreeClassifier(max_depth=4, random_state=1)).fit(categories, survived)
    types = [("categories", StringTensorType([None, 2]))]
    yield "ordinal-encoder", to_onnx(ordinal, initial_types=types, options={"zipmap": False}, target_opset=18), {"categories": categories[:40]}
    integers = (iris_x * 10).astype(np.int64)
    tree = DecisionTreeClassifier(random_state=1).fit(integers, iris_y)
    types = [("X", Int64TensorType([None, 4]))]
    yield "integers", to_onnx(tree, initial_types=types, options={"zipmap": False}, target_opset=18), {"X": integers[:40]}
