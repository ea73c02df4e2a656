import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from storage.records import ProblemKind, TensorKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.hostile.pickles import STOP, payloads, text
from tests.support.audit import audited
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import Whole, read_whole


class TestJoblib(ReaderConformance):
    format = "pickle"

    def write(self, path: Path, arrays: Arrays) -> None:
        joblib.dump(arrays, path)


class TestCompressedJoblib(ReaderConformance):
    format = "pickle"

    def write(self, path: Path, arrays: Arrays) -> None:
        joblib.dump(arrays, path, compress=("zlib", 3))


class TestPlainPickle(ReaderConformance):
    format = "pickle"

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(pickle.dumps(arrays, protocol=5))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    features = np.random.default_rng(0).standard_normal((80, 4))
    return features, np.array(["no", "yes"])[(features[:, 0] > 0).astype(int)]


def dump_joblib(model: object, path: Path) -> None:
    joblib.dump(model, path)


def dump_compressed(model: object, path: Path) -> None:
    joblib.dump(model, path, compress=3)


def dump_pickle(protocol: int) -> Callable[[object, Path], None]:
    def dump(model: object, path: Path) -> None:
        path.write_bytes(pickle.dumps(model, protocol=protocol))

    return dump


DUMPS = {
    "joblib": dump_joblib,
    "zlib": dump_compressed,
    **{f"pickle{protocol}": dump_pickle(protocol) for protocol in (0, 2, 4, 5)},
}
each_dump = pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS.keys())


def read(model: object, dump: Callable[[object, Path], None], tmp_path: Path) -> Whole:
    path = tmp_path / "model.joblib"
    dump(model, path)
    whole = read_whole(path)
    assert whole.format == "pickle"
    return whole


@each_dump
def test_a_linear_model_gives_its_coefficients_whoever_saved_it(
    data: Any, dump: Callable[[object, Path], None], tmp_path: Path
) -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    classifier = LogisticRegression().fit(*data)
    whole = read(classifier, dump, tmp_path)
    assert {name for name, spec in whole.specs.items() if spec.kind is TensorKind.PARAMETER} == {"coef_", "intercept_"}
    np.testing.assert_array_equal(whole.values["coef_"], classifier.coef_)
    np.testing.assert_array_equal(whole.values["intercept_"], classifier.intercept_)
    regressor = LinearRegression().fit(data[0], data[0][:, :2])
    whole = read(regressor, dump, tmp_path)
    np.testing.assert_array_equal(whole.values["coef_"], regressor.coef_)
    single = LinearRegression().fit(data[0], data[0][:, 1])
    whole = read(single, dump, tmp_path)
    assert whole.specs["intercept_"].shape == ()
    assert whole.values["intercept_"] == single.intercept_


@each_dump
def test_a_network_in_a_pipeline_gives_layers_optimizer_step_and_epoch(
    data: Any, dump: Callable[[object, Path], None], tmp_path: Path
) -> None:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((5,), random_state=0, batch_size=20)
    scaler = StandardScaler().fit(data[0])
    for _ in range(3):
        network.partial_fit(data[0], data[1], classes=["no", "yes"])
    pipeline = make_pipeline(scaler, network)
    whole = read(pipeline, dump, tmp_path)
    for name, expected in {
        "standardscaler.mean_": scaler.mean_,
        "standardscaler.scale_": scaler.scale_,
        **{f"mlpclassifier.coefs_.{i}": value for i, value in enumerate(network.coefs_)},
        **{f"mlpclassifier.intercepts_.{i}": value for i, value in enumerate(network.intercepts_)},
    }.items():
        np.testing.assert_array_equal(whole.values[name], expected)
        assert whole.specs[name].kind is TensorKind.PARAMETER
    optimizer = network._optimizer
    for i, (mean, square) in enumerate(zip(optimizer.ms, optimizer.vs, strict=True)):
        np.testing.assert_array_equal(whole.values[f"optimizer.state.{i}.exp_avg"], mean)
        np.testing.assert_array_equal(whole.values[f"optimizer.state.{i}.exp_avg_sq"], square)
        assert whole.specs[f"optimizer.state.{i}.exp_avg"].kind is TensorKind.OPTIMIZER
    assert whole.step == optimizer.t == 12
    assert whole.epoch == network.n_iter_
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.999
    assert whole.scalars["optimizer.state.0.step"] == 12.0
    assert "mlpclassifier._best_coefs" not in whole.specs


@each_dump
def test_forests_give_their_node_values_joined_and_say_how_large_they_are(
    data: Any, dump: Callable[[object, Path], None], tmp_path: Path
) -> None:
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    forest = RandomForestClassifier(3, max_depth=3, random_state=0).fit(*data)
    whole = read(forest, dump, tmp_path)
    trees = [tree.tree_ for tree in forest.estimators_]
    np.testing.assert_array_equal(
        whole.values["estimators_.tree_.value"], np.concatenate([tree.value.ravel() for tree in trees])
    )
    np.testing.assert_array_equal(
        whole.values["estimators_.tree_.threshold"], np.concatenate([tree.threshold for tree in trees])
    )
    assert whole.scalars["estimators_.n_trees"] == 3
    assert whole.scalars["estimators_.depth_max"] == max(tree.max_depth for tree in trees)
    assert whole.scalars["estimators_.n_nodes"] == sum(tree.node_count for tree in trees)
    boosted = GradientBoostingClassifier(n_estimators=2, random_state=0).fit(*data)
    whole = read(boosted, dump, tmp_path)
    assert whole.scalars["estimators_.n_trees"] == 2
    np.testing.assert_array_equal(
        whole.values["estimators_.tree_.value"],
        np.concatenate([tree.tree_.value.ravel() for tree in boosted.estimators_.ravel()]),
    )
    histogram = HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=5).fit(*data)
    whole = read(histogram, dump, tmp_path)
    nodes = [predictor.nodes for (predictor,) in histogram._predictors]
    np.testing.assert_array_equal(whole.values["_predictors.value"], np.concatenate([n["value"] for n in nodes]))
    assert whole.scalars["_predictors.depth_max"] == max(n["depth"].max() for n in nodes)
    tree = DecisionTreeClassifier(max_depth=2).fit(*data)
    whole = read(tree, dump, tmp_path)
    np.testing.assert_array_equal(whole.values["tree_.value"], tree.tree_.value)
    assert whole.scalars["tree_.max_depth"] == tree.tree_.max_depth


def test_models_of_many_kinds_give_every_fitted_array(data: Any, tmp_path: Path) -> None:
    from sklearn.cluster import KMeans
    from sklearn.compose import make_column_transformer
    from sklearn.decomposition import PCA
    from sklearn.linear_model import SGDClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.preprocessing import StandardScaler

    for model in (KMeans(3, n_init=1), PCA(), SGDClassifier(), GaussianNB()):
        model.fit(*data)
        whole = read(model, dump_joblib, tmp_path)
        fitted = {
            name: value
            for name, value in vars(model).items()
            if name.endswith("_") and isinstance(value, np.ndarray) and value.dtype.kind == "f"
        }
        assert fitted
        for name, value in fitted.items():
            np.testing.assert_array_equal(whole.values[name], value)
    assert read(SGDClassifier().fit(*data), dump_joblib, tmp_path).step is not None
    columns = make_column_transformer((StandardScaler(), [0, 1])).fit(data[0])
    whole = read(columns, dump_joblib, tmp_path)
    np.testing.assert_array_equal(whole.values["standardscaler.mean_"], columns.transformers_[0][1].mean_)


@pytest.mark.parametrize("method", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_every_compression_of_joblib_is_read_or_named(method: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((50, 40))
    path = tmp_path / "model.joblib"
    joblib.dump({"w": weights, "f": np.asfortranarray(weights)}, path, compress=(method, 3))
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.values["w"], weights)
    np.testing.assert_array_equal(whole.values["f"], weights)


def test_an_lz4_stream_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(b"\x04\x22\x4d\x18" + bytes(100))
    with pytest.raises(ReadError, match="lz4") as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.UNSUPPORTED


def test_a_stream_that_unpacks_to_far_more_than_it_is_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.joblib"
    joblib.dump({"w": np.zeros(2**20)}, path, compress=9)
    limits = ReadLimits(expanded_bytes_min=2**20, expanded_ratio_max=10)
    with pytest.raises(ReadError) as caught, open_path(str(path), limits):
        pass
    assert caught.value.kind is ProblemKind.LIMIT


def test_a_dict_of_arrays_and_progress_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.pkl"
    shared = np.arange(6.0).reshape(2, 3)
    state = {"w": shared, "again": shared, "step": 40, "epoch": np.float64(1.5), "names": np.array(["a", "b"])}
    path.write_bytes(pickle.dumps(state))
    whole = read_whole(path)
    assert (whole.step, whole.epoch) == (40, 1.5)
    assert whole.specs["again"].tied_to == "w"
    assert "names" not in whole.specs


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("compress", [0, 3])
def test_nothing_that_a_pickle_names_is_run(compress: int, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.joblib"
    objects = np.array([_Touch(str(canary))], dtype=object)
    joblib.dump({"w": np.ones(3), "evil": _Touch(str(canary)), "inside": objects}, path, compress=compress)
    canary.unlink(missing_ok=True)
    whole = read_whole(path)
    assert whole.values["w"].tolist() == [1.0, 1.0, 1.0]
    assert not canary.exists()


@pytest.mark.parametrize("name", payloads("x"))
@pytest.mark.parametrize("compressed", [False, True])
def test_no_payload_is_run_and_the_arrays_beside_it_are_read(name: str, compressed: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pkl"
    honest = pickle.dumps({"w": np.ones(3)}, protocol=2)
    data = honest[:-1] + text("evil") + payloads(str(canary))[name] + b"s" + STOP
    path.write_bytes(zlib.compress(data) if compressed else data)
    with audited() as events:
        whole = read_whole(path)
    assert events == []
    assert whole.values["w"].tolist() == [1.0, 1.0, 1.0]
    assert not canary.exists()


def test_a_pickle_of_something_else_is_unsupported_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps({"vocab_size": 65, "itos": {0: "a"}}))
    with pytest.raises(ReadError, match="no arrays") as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.UNSUPPORTED


def test_an_array_that_lies_about_its_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lies.joblib"
    joblib.dump({"w": np.ones((3, 5))}, path)
    honest = path.read_bytes()
    assert honest.count(b"K\x03K\x05\x86") == 1
    path.write_bytes(honest.replace(b"K\x03K\x05\x86", b"K\x03K\xff\x86"))
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.INCOMPLETE
    path.write_bytes(pickle.dumps({"w": np.ones((3, 5))}).replace(b"K\x03K\x05\x86", b"K\x03K\x04\x86"))
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.CORRUPT


@pytest.mark.slow
@pytest.mark.parametrize("method", ["joblib", "pickle"])
def test_two_gibibytes_need_the_memory_of_a_chunk(method: str, tmp_path: Path) -> None:
    path = tmp_path / "large.joblib"
    n, small = 2**28, np.full(1000, 1.5)
    if method == "joblib":
        joblib.dump({"w": small}, path)
        head, _, tail = path.read_bytes().partition(small.tobytes())
    else:
        head, _, tail = pickle.dumps({"w": small}, protocol=4).partition(small.tobytes())
        old, new = b"B" + (8000).to_bytes(4, "little"), b"\x8e" + (8 * n).to_bytes(8, "little")
        frame = head.index(b"\x95")
        assert head.count(old) == 1
        head = head[:frame] + head[frame + 9 :].replace(old, new)  # without the frame, whose length would lie
    assert head.count(b"M\xe8\x03\x85") == 1
    grown = head.replace(b"M\xe8\x03\x85", b"J" + n.to_bytes(4, "little") + b"\x85")
    if method == "joblib":
        frame = grown.index(b"\x95")
        grown = grown[:frame] + grown[frame + 9 :]
        grown = grown[: grown.rindex(b"ub") + 2] + b"\x00"  # no padding before the values
    with path.open("wb") as stream:
        stream.write(grown)
        stream.truncate(len(grown) + 8 * n)
        stream.seek(0, 2)
        stream.write(tail)
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20
