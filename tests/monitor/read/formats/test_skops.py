import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io

from monitor.read.reader import ReadError
from monitor.read.registry import open_path
from storage.records import ProblemKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole


class TestSkops(ReaderConformance):
    format = "skops"

    def write(self, path: Path, arrays: Arrays) -> None:
        skops.io.dump(arrays, path)


class TestDeflatedSkops(ReaderConformance):
    format = "skops"

    def write(self, path: Path, arrays: Arrays) -> None:
        skops.io.dump(arrays, path, compression=zipfile.ZIP_DEFLATED)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    features = np.random.default_rng(0).standard_normal((60, 4))
    return features, np.array(["no", "yes"])[(features[:, 0] > 0).astype(int)]


def test_a_pipeline_has_the_names_and_values_of_its_fitted_attributes(data: Any, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(*data)
    path = tmp_path / "model.skops"
    skops.io.dump(model, path)
    whole = read_whole(path)
    assert whole.format == "skops"
    for step, attributes in (("standardscaler", ("mean_", "var_", "scale_")), ("logisticregression", ("coef_",))):
        for attribute in attributes:
            expected = getattr(model.named_steps[step], attribute)
            np.testing.assert_array_equal(whole.values[f"{step}.{attribute}"], expected)
    assert whole.scalars["logisticregression.C"] == 1.0


def test_forests_are_joined_as_from_a_pickle(data: Any, tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(3, max_depth=3, random_state=0).fit(*data)
    path = tmp_path / "forest.skops"
    skops.io.dump(model, path)
    whole = read_whole(path)
    trees = [tree.tree_ for tree in model.estimators_]
    np.testing.assert_array_equal(
        whole.values["estimators_.tree_.value"], np.concatenate([tree.value.ravel() for tree in trees])
    )
    np.testing.assert_array_equal(
        whole.values["estimators_.tree_.threshold"], np.concatenate([tree.threshold for tree in trees])
    )
    assert whole.scalars["estimators_.depth_max"] == max(tree.max_depth for tree in trees)


def _rewritten(path: Path, schema: object) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(schema) if name == "schema.json" else content)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ([], ProblemKind.CORRUPT),
        ({"__loader__": "NdArrayNode", "type": "numpy", "file": "../../etc/passwd"}, ProblemKind.CORRUPT),
        ({"__loader__": "NdArrayNode", "type": "numpy", "file": 7}, ProblemKind.CORRUPT),
        ({"__loader__": "ListNode", "content": "no list"}, ProblemKind.CORRUPT),
        ({"__loader__": "JsonNode", "content": "{"}, ProblemKind.CORRUPT),
        ({"__loader__": "JsonNode", "content": "9" * 10_000}, ProblemKind.CORRUPT),
        ({"__class__": "system", "__module__": "os", "__loader__": "ReduceNode"}, ProblemKind.UNSUPPORTED),
    ],
)
def test_a_schema_that_lies_is_refused(schema: object, kind: ProblemKind, tmp_path: Path) -> None:
    path = tmp_path / "evil.skops"
    skops.io.dump({"w": np.ones(3)}, path)
    _rewritten(path, schema)
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


def test_a_schema_nested_without_end_is_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "deep.skops"
    skops.io.dump({"w": np.ones(3)}, path)
    schema: dict[str, object] = {"__loader__": "JsonNode", "content": "1"}
    for _ in range(250):
        schema = {"__loader__": "ListNode", "content": [schema]}
    _rewritten(path, schema)
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.LIMIT


def test_another_zip_archive_is_not_tried_as_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "other.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.txt", "nothing")
    with pytest.raises(ReadError, match="schema") as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.UNSUPPORTED


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.skops"
    n = 2**28
    state = {
        "__loader__": "DictNode",
        "content": {"w": {"__loader__": "NdArrayNode", "type": "numpy", "file": "140021543803984.npy"}},
    }
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("140021543803984.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (n,)})
            for _ in range(8 * n // 2**24):
                member.write(bytes(2**24))
        archive.writestr("schema.json", json.dumps(state))
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20
