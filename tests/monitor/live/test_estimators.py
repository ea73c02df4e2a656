"""Estimators of scikit-learn measured in memory, against the same estimators measured from their files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.live import diff, measure
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import UnsupportedError


def fitted() -> dict[str, Any]:
    from sklearn.cluster import KMeans
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        VotingClassifier,
    )
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    random = np.random.default_rng(0)
    x = random.random((60, 4))
    y = (x[:, 0] + x[:, 1] > 1).astype(int)
    mixed = ColumnTransformer([("numbers", StandardScaler(), [0, 1]), ("codes", OneHotEncoder(), [2])])
    models = {
        "linear": LinearRegression(),
        "network": make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=5, random_state=0)),
        "forest": RandomForestClassifier(7, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
        "histograms": HistGradientBoostingClassifier(max_iter=5, random_state=0),
        "tree": DecisionTreeClassifier(random_state=0),
        "support": SVC(),
        "sgd": SGDClassifier(random_state=0),
        "means": KMeans(3, n_init=1, random_state=0),
        "components": PCA(2),
        "votes": VotingClassifier([("a", LogisticRegression()), ("b", DecisionTreeClassifier(random_state=0))]),
        "columns": make_pipeline(mixed, LogisticRegression()),
    }
    coded = np.column_stack([x[:, :2], (x[:, 2] > 0.5).astype(float)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, model in models.items():
            model.fit(coded if name == "columns" else x, y)
    return models


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return fitted()


@pytest.mark.parametrize(
    "name",
    [
        *("linear", "network", "forest", "boosting", "histograms", "tree"),
        *("support", "sgd", "means", "components", "votes", "columns"),
    ],
)
def test_an_estimator_gives_the_very_records_of_its_file(models: dict[str, Any], tmp_path: Path, name: str) -> None:
    import joblib

    joblib.dump(models[name], tmp_path / "model.joblib")
    here, there = measure(models[name]), measure_path(str(tmp_path / "model.joblib"), MeasureOptions())
    assert here.tensors
    # Of two attributes that are one array joblib writes two; in memory they are still one.
    assert [replace(t, tied_to=None) for t in here.tensors] == [replace(t, tied_to=None) for t in there.tensors]
    assert (here.scalars, here.step, here.epoch) == (there.scalars, there.step, there.epoch)
    assert here.format == "sklearn"


def test_coefficients_have_their_own_values(models: dict[str, Any]) -> None:
    coefficients = models["linear"].coef_
    found = {t.name: t for t in measure(models["linear"]).tensors}["coef_"]
    assert found.norm_l2 == pytest.approx(float(np.linalg.norm(coefficients)), rel=1e-12)
    assert found.mean == pytest.approx(float(coefficients.mean()), rel=1e-12)
    assert found.shape == coefficients.shape


def test_an_estimator_is_compared_with_its_file(models: dict[str, Any], tmp_path: Path) -> None:
    import joblib

    joblib.dump(models["network"], tmp_path / "model.joblib")
    assert diff(tmp_path / "model.joblib", models["network"]).identical
    other = fitted()["network"]
    other[-1].coefs_[0][0, 0] += 1
    compared = diff(models["network"], other)
    assert [t.name for t in compared.tensors if t.n_changed] == ["mlpclassifier.coefs_.0"]


def test_an_estimator_that_was_not_fitted_says_so() -> None:
    from sklearn.linear_model import LinearRegression

    with pytest.raises(UnsupportedError, match="fit it first"):
        measure(LinearRegression())


@pytest.fixture(scope="module")
def boosted() -> dict[str, Any]:
    import lightgbm
    import xgboost

    random = np.random.default_rng(0)
    x = random.random((80, 4))
    y = (x[:, 0] + x[:, 1] > 1).astype(int)
    light: dict[str, Any] = {"n_estimators": 4, "num_leaves": 6, "min_child_samples": 5, "verbose": -1, "n_jobs": 1}
    return {
        "xgboost": xgboost.XGBClassifier(n_estimators=4, max_depth=3, n_jobs=1).fit(x, y),
        "dart": xgboost.XGBRegressor(n_estimators=3, booster="dart", n_jobs=1).fit(x, y),
        "linear": xgboost.XGBRegressor(n_estimators=3, booster="gblinear", n_jobs=1).fit(x, y),
        "lightgbm": lightgbm.LGBMClassifier(**light).fit(x, y),
    }


@pytest.mark.parametrize("name", ["xgboost", "dart", "linear", "lightgbm"])
def test_boosted_trees_give_the_records_of_the_file_that_they_are_saved_to(
    boosted: dict[str, Any], tmp_path: Path, name: str
) -> None:
    model = boosted[name]
    path = tmp_path / ("model.txt" if name == "lightgbm" else "model.ubj")
    booster = model.booster_ if name == "lightgbm" else model.get_booster()
    booster.save_model(path)
    there = measure_path(str(path), MeasureOptions())
    assert there.tensors
    for given in (model, booster):
        here = measure(given)
        assert here.tensors == there.tensors
        assert (here.scalars, here.step, here.format) == (there.scalars, there.step, there.format)
    assert diff(model, path).identical


def test_boosted_trees_that_were_not_fitted_say_so() -> None:
    import lightgbm
    import xgboost

    for model in (xgboost.XGBRegressor(), lightgbm.LGBMRegressor()):
        with pytest.raises(UnsupportedError, match="fit it first"):
            measure(model)
