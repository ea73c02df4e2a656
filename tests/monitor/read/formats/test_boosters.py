import json
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.access import byte_cursor
from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.partial_sources import read_bytes
from monitor.read.bounded_file import open_bounded
from monitor.read.models.json_scan import JsonScanner
from monitor.read.models.tree_depth import depth_of
from monitor.read.reader import ReadError
from monitor.read.registry import READERS, open_path, reader_class
from storage.records import ProblemKind, TensorKind
from tests.support.audit import audited
from tests.support.frameworks import CleanReader
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading, peak_bytes_of_refusing
from tests.support.reading import read_whole

Data = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def data() -> Data:
    features = np.random.default_rng(0).standard_normal((200, 4))
    return features, (features[:, 0] + features[:, 1] ** 2 > 0.5).astype(int)


@pytest.fixture(scope="module")
def boosted(data: Data) -> Any:
    parameters = {"max_depth": 3, "objective": "binary:logistic", "nthread": 1}
    return xgboost.train(parameters, xgboost.DMatrix(*data), 4)


@pytest.fixture(scope="module")
def light(data: Data) -> Any:
    parameters = {"objective": "binary", "verbose": -1, "num_leaves": 6, "min_data_in_leaf": 5, "num_threads": 1}
    return lightgbm.train(parameters, lightgbm.Dataset(*data), 3)


@pytest.fixture(params=["json", "ubj", "lightgbm"])
def model_file(request: pytest.FixtureRequest, tmp_path: Path, boosted: Any, light: Any) -> Path:
    path = tmp_path / ("model.txt" if request.param == "lightgbm" else f"model.{request.param}")
    (light if request.param == "lightgbm" else boosted).save_model(path)
    return path


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_the_trees_of_xgboost_have_the_weights_that_it_shows(suffix: str, boosted: Any, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    boosted.save_model(path)
    whole = read_whole(path)
    assert (whole.format, whole.step) == ("xgboost", 4)
    assert whole.scalars["trees.n_trees"] == 4
    assert whole.specs["trees.base_weights"].kind is TensorKind.PARAMETER
    conditions, weights, expected = whole.values["trees.split_conditions"], whole.values["trees.base_weights"], []
    assert conditions.dtype == weights.dtype == np.float32
    for text in boosted.get_dump(dump_format="json"):
        nodes = sorted(flat(json.loads(text)), key=lambda node: node["nodeid"])
        assert [node["nodeid"] for node in nodes] == list(range(len(nodes)))
        expected += [node.get("leaf", node.get("split_condition")) for node in nodes]
    # a leaf keeps its value where other nodes keep their condition; the dump has six digits
    np.testing.assert_allclose(conditions.tolist(), expected, rtol=1e-5)
    assert whole.scalars["trees.n_nodes"] == len(expected)
    assert whole.scalars["trees.depth_max"] == 3


def flat(node: Any) -> Iterator[Any]:
    """Yield a node and all below it, of a tree as the libraries show it."""
    yield node
    for child in node.get("children", [node[key] for key in ("left_child", "right_child") if key in node]):
        yield from flat(child)


def test_both_forms_of_a_model_give_the_same_values(boosted: Any, tmp_path: Path) -> None:
    read = []
    for suffix in ("json", "ubj"):
        path = tmp_path / f"model.{suffix}"
        boosted.save_model(path)
        read.append(read_whole(path))
    assert read[0].scalars == read[1].scalars
    for name, values in read[0].values.items():
        np.testing.assert_array_equal(values, read[1].values[name])


def test_a_large_json_model_is_read_page_by_page_in_bounded_memory(boosted: Any, tmp_path: Path) -> None:
    boosted.save_model(tmp_path / "small.json")
    model = json.loads((tmp_path / "small.json").read_text())
    inner = model["learner"]["gradient_booster"]["model"]
    few = inner["trees"]
    for tree in few:
        tree["loss_changes"] *= 60_000 // len(tree["loss_changes"])
    inner["trees"] = few * 20
    inner["iteration_indptr"] = list(range(len(inner["trees"]) + 1))
    path = tmp_path / "large.json"
    path.write_text(json.dumps(model))
    assert path.stat().st_size > 33 * 2**20
    expected = read_whole(tmp_path / "small.json").values["trees.base_weights"]
    read_whole(tmp_path / "small.json")
    tracemalloc.start()
    try:
        whole = read_whole(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole.step == 80
    assert np.array_equal(whole.values["trees.base_weights"], np.tile(expected, 20))
    assert peak_bytes < 16 * 2**20, f"{peak_bytes >> 20} MiB"


@pytest.mark.parametrize(
    "text",
    [
        '{"learner": [1, 2,]}',
        '{"learner": [1,, 2]}',
        '{"learner": [1 2]}',
        '{"learner": [-]}',
        '{"learner": {"weights": [1, NaN]}}',
        '{"learner": {"left_children": [1.5]}}',
        '{"learner": {"a": 1 "b": 2}}',
        '{"learner": {1: 2}}',
        '{"learner": tru}',
        '{"learner": "\\x"}',
        '{"learner": ["a" "b"]}',
        '{"learner": {"a": 1}} {}',
    ],
)
def test_json_that_breaks_a_rule_is_corrupt(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ReadError) as caught, open_path(str(tmp_path / "model.json")):
        pass
    assert caught.value.kind is ProblemKind.CORRUPT


json_texts = st.text(max_size=8)
json_numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30)


@given(
    floats=json_numbers,
    integers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30),
    others=st.dictionaries(json_texts, st.none() | st.booleans() | json_texts | st.lists(json_texts, max_size=3)),
    indent=st.none() | st.integers(0, 2),
    page=st.integers(1, 40),
)
def test_any_json_gives_what_the_standard_library_reads_of_it_whatever_the_pages(
    floats: list[float], integers: list[int], others: dict[str, Any], indent: int | None, page: int
) -> None:
    document = {"weights": floats, "left_children": integers, "dropped": integers, "others": others}
    raw = json.dumps(document, indent=indent).encode()
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        path = Path(directory) / "a.json"
        path.write_bytes(raw)
        patched.setattr(byte_cursor, "_PAGE_BYTES", page)
        kept: dict[str, Any] = {"weights": np.dtype(">f4"), "left_children": np.dtype(np.int32)}
        with open_bounded(str(path)) as file:
            scanner = JsonScanner(ByteCursor(file, taken_bytes_max=len(raw)), kept)
            read = scanner.value()
            scanner.finish()
    assert isinstance(read, dict)
    assert read_bytes(read["weights"], 0, read["weights"].n_bytes) == np.array(floats, ">f4").tobytes()
    assert read["left_children"].tolist() == integers
    assert read.get("dropped", []) == []
    assert read["others"] == {key: value for key, value in others.items() if value is not None}


def test_linear_and_dart_boosters_are_read(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    matrix = xgboost.DMatrix(*data)
    linear = xgboost.train({"booster": "gblinear", "nthread": 1, "updater": "coord_descent"}, matrix, 3)
    linear.save_model(path)
    whole = read_whole(path)
    shown = linear.get_dump()[0].split()
    expected = [float(text) for text in shown if text not in ("bias:", "weight:")]
    np.testing.assert_allclose(np.sort(whole.values["weights"]), np.sort(expected), rtol=1e-4)
    assert whole.step == 3
    dart = xgboost.train({"booster": "dart", "rate_drop": 0.5, "nthread": 1, "seed": 0}, matrix, 3)
    dart.save_model(path)
    whole = read_whole(path)
    assert whole.scalars["trees.n_trees"] == 3
    assert whole.specs["weight_drop"].shape == (3,)


def test_the_trees_of_lightgbm_have_the_leaves_that_it_shows(light: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    light.save_model(path)
    whole = read_whole(path)
    assert (whole.format, whole.step) == ("lightgbm", 3)
    trees = [tree["tree_structure"] for tree in light.dump_model()["tree_info"]]
    leaves = [
        node["leaf_value"]
        for tree in trees
        for node in sorted((n for n in flat(tree) if "leaf_index" in n), key=lambda node: node["leaf_index"])
    ]
    np.testing.assert_allclose(whole.values["trees.leaf_value"].tolist(), leaves, rtol=1e-12)

    def depth(node: Any) -> int:
        return 1 + max(depth(node["left_child"]), depth(node["right_child"])) if "left_child" in node else 0

    assert whole.scalars["trees.n_leaves"] == len(leaves)
    assert whole.scalars["trees.depth_max"] == max(depth(tree) for tree in trees)
    assert whole.scalars["learning_rate"] == 0.1
    assert whole.specs["trees.threshold"].kind is TensorKind.OTHER


def test_they_are_known_by_their_content_and_by_one_reader(model_file: Path) -> None:
    head = model_file.read_bytes()[:4096]
    taken = [name for name in READERS if reader_class(name).sniff(head, str(model_file))]
    assert taken == ["lightgbm" if model_file.suffix == ".txt" else "xgboost"]
    other = model_file.rename(model_file.with_name("named.unlike"))
    with open_path(str(other)) as opened:
        assert [opened.format] == taken


def test_a_model_cut_anywhere_is_not_yet_whole(model_file: Path) -> None:
    data = model_file.read_bytes()
    places = list(range(30, len(data) - 1, max(1, len(data) // 80)))
    if model_file.suffix == ".txt":  # after its parameters a model is whole, whatever Python adds
        end = data.index(b"end of parameters")
        places = [n for n in places if n < end]
    for n in places:
        model_file.write_bytes(data[:n])
        with pytest.raises(ReadError) as caught, open_path(str(model_file)):
            pass
        assert caught.value.kind is ProblemKind.INCOMPLETE, (n, caught.value)


def test_a_flipped_byte_is_read_or_refused_but_never_breaks_the_reader(model_file: Path) -> None:
    data = model_file.read_bytes()
    chooser = random.Random(4)
    messages: list[str] = []
    for _ in range(200):
        changed = bytearray(data)
        changed[chooser.randrange(len(data))] = chooser.randrange(256)
        model_file.write_bytes(changed)
        try:
            read_whole(model_file)
        except ReadError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)


def test_bytes_after_the_end_are_refused(model_file: Path) -> None:
    with model_file.open("ab") as stream:
        stream.write(b"x\n")
    with pytest.raises(ReadError) as caught, open_path(str(model_file)):
        pass
    assert caught.value.kind is ProblemKind.CORRUPT


def test_reading_runs_and_imports_nothing(model_file: Path, clean_reader: CleanReader) -> None:
    read_whole(model_file)
    with audited() as events:
        read_whole(model_file)
    assert events == []
    assert clean_reader.read(model_file) == ("lightgbm" if model_file.suffix == ".txt" else "xgboost", [])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{L\0\0\0\0\0\0\0\x07learner" + b"{" * 1000, ProblemKind.CORRUPT),
        (b"{L\0\0\0\0\0\0\0\x07learner" + b"[" * 1000 + b"]" * 1000 + b"}", ProblemKind.LIMIT),
        (b"{L\0\0\0\0\0\0\0\x07learner[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff}", ProblemKind.INCOMPLETE),
        (b"{L\0\0\0\0\0\0\0\x07learner[#L\x7f\xff\xff\xff\xff\xff\xff\xff}", ProblemKind.INCOMPLETE),
        (b"{L\0\0\0\0\0\0\0\x07learner[#L\xff\xff\xff\xff\xff\xff\xff\xff}", ProblemKind.CORRUPT),
        (b"{L\0\0\0\0\0\0\0\x07learner[$Z#i\x7f}", ProblemKind.CORRUPT),
        (b"{L\0\0\0\0\0\0\0\x07learnerTi\x07learnerT}", ProblemKind.AMBIGUOUS),
        (b"{L\0\0\0\0\0\0\0\x07learnerT}", ProblemKind.CORRUPT),
        (b'{"learner":' + b"[" * 100_000, ProblemKind.LIMIT),
        (b'{"learner":{"gradient_booster":{"model":{"trees":[{"base_weights":[NaN]}]}}}}', ProblemKind.CORRUPT),
        (b'{"learner":{"gradient_booster":{"model":{"trees":[7]}}}}', ProblemKind.UNSUPPORTED),
        (b'{"learner":{"gradient_booster":{"model":{}}}}', ProblemKind.UNSUPPORTED),
    ],
)
def test_a_model_that_breaks_a_rule_is_refused(data: bytes, kind: ProblemKind, tmp_path: Path) -> None:
    path = tmp_path / "evil.ubj"
    path.write_bytes(data)
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


def test_the_depth_of_a_tree_is_that_of_its_deepest_node_and_circles_are_refused() -> None:
    assert depth_of([], []) == 0
    assert depth_of([1, -1, -1], [2, -1, -1]) == 1
    assert depth_of([1, 3, -1, -1, -1], [2, 4, -1, -1, -1]) == 2
    for left, right in (([0], [0]), ([1, 0], [-1, -1]), ([5], [-1])):
        with pytest.raises(ReadError):
            depth_of(left, right)


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    n = 2**29

    def key(name: str) -> bytes:
        return b"L" + len(name).to_bytes(8, "big") + name.encode()

    head = b"{" + key("learner") + b"{" + key("gradient_booster") + b"{" + key("model") + b"{" + key("weights")
    with path.open("wb") as stream:
        stream.write(head + b"[$d#L" + n.to_bytes(8, "big"))
        stream.truncate(stream.tell() + 4 * n)
        stream.seek(0, 2)
        stream.write(b"}}}}")
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20


def large_text(path: Path, light: Any, n_trees: int, extra: str) -> None:
    """Write a model of LightGBM whose last tree comes again and again, each time with one more line."""
    header, _, rest = light.model_to_string().partition("Tree=0")
    trees, _, tail = rest.partition("end of trees")
    tree = trees.rpartition("Tree=")[2].partition("\n")[2].rstrip("\n")
    first, sizes, last = header.partition("tree_sizes=")
    with path.open("w") as stream:
        stream.write(f"{first}{sizes}{' '.join(['1'] * n_trees)}\n{last.partition(chr(10))[2]}")
        for n in range(n_trees):
            stream.write(f"Tree={n}\n{tree}\n{extra}\n\n\n")
        stream.write(f"end of trees{tail}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_of_lightgbm_need_the_memory_of_their_values(light: Any, tmp_path: Path) -> None:
    """Read two gibibytes of text, most of it the sets of categories by which the trees split."""
    path = tmp_path / "large.txt"
    n_trees = 2**11 + 1
    large_text(path, light, n_trees, "cat_threshold=" + " ".join(["4294967295"] * (2**20 // 11)))
    assert path.stat().st_size > 2**31 - 2**22
    values = read_whole_of_one(tmp_path, light)
    assert peak_bytes_of_reading(path, n_elements=n_trees * values) < PEAK_BYTES_MAX


def read_whole_of_one(tmp_path: Path, light: Any) -> int:
    """Return how many values a model of the one tree has that is repeated."""
    large_text(tmp_path / "small.txt", light, 1, "")
    return sum(array.size for array in read_whole(tmp_path / "small.txt").values.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_values_of_lightgbm_than_are_kept_are_refused_in_bounded_memory(light: Any, tmp_path: Path) -> None:
    """Where nearly all of the text is values, less than two gibibytes of it are over the limit."""
    path = tmp_path / "large.txt"
    large_text(path, light, 2**10, "leaf_coeff=" + " ".join(["0.125"] * 2**14))
    assert peak_bytes_of_refusing(path, kind=ProblemKind.LIMIT) < PEAK_BYTES_MAX
