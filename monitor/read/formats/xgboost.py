"""XGBoost models as JSON or Universal Binary JSON: the weights of all trees joined, or those of a linear booster.

A JSON model is read page by page, and its values are held up to a bound; arrays of a binary one stay in the file. It is
whole when its one value ends where the file ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.partial_sources import JoinedSource, read_bytes
from monitor.read.access.sources import ByteSource, FileSource, MemorySource
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint, array_checkpoint
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.numpy_records import ArrayDtype
from monitor.read.bounded_file import BoundedFile
from monitor.read.models.estimators import Estimated, NamedArray
from monitor.read.models.json_scan import JsonScanner
from monitor.read.models.tree_depth import depth_of
from monitor.read.models.ubjson_scan import PackedNumbers, UbjsonScanner
from monitor.read.naming import as_step, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import CorruptError, LimitError, ReadLimits, UnsupportedError
from storage.records import TensorKind

_JSON_BEGIN = re.compile(rb"\s*\{\s*\"learner\"")
_BINARY_BEGIN = re.compile(rb"\{(?:L\0{7}\x07|[iU]\x07)learner")
_PER_NODE = {"base_weights": TensorKind.PARAMETER, "split_conditions": TensorKind.OTHER}
# The lists of numbers that are read of a JSON model; float32 in the order of bytes that the binary form has.
_KEPT: dict[str, np.dtype[np.generic]] = {
    **dict.fromkeys((*_PER_NODE, "weights", "weight_drop"), np.dtype(">f4")),
    **dict.fromkeys(("left_children", "right_children", "iteration_indptr"), np.dtype(np.int32)),
}
_SHOWN = 80


class XgboostReader:
    """The reader of `.ubj` files, and of XGBoost's `.json` files."""

    name: ClassVar[str] = "xgboost"
    suffixes: ClassVar[tuple[str, ...]] = (".ubj", ".xgb")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.ubj` `.json`",
        written_by="XGBoost `save_model`, `TrainingCheckPoint`",
        optimizer_state="none",
        whole="the one value ends where the file ends",
        not_yet="it ends early",
        never="bytes after it",
        step="the number of rounds",
        safety="own scanners with bounds on depth and counts; arrays of a binary model stay in the file",
        limits=("of a JSON model at most 96 MiB of values, about 700 MB of text; `.ubj` of any size",),
        tested_in="tests/monitor/read/formats/test_boosters.py",
        tested_with="xgboost-cpu",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether a map begins whose first key is "learner"."""
        return _JSON_BEGIN.match(head) is not None or _BINARY_BEGIN.match(head) is not None

    def open(self, file: BoundedFile, limits: ReadLimits) -> ArrayCheckpoint:
        """Parse the model and join what its trees hold."""
        head = file.head(64)
        root = _json(file) if head.lstrip()[:2] in (b'{"', b"{\n", b"{ ", b"{\r") else _binary(file, limits)
        learner = _map(root, "learner")
        booster = _map(learner, "gradient_booster")
        found = Estimated()
        drops = booster.get("weight_drop")
        if isinstance(booster.get("gbtree"), dict):  # dart wraps the trees once more
            booster = _map(booster, "gbtree")
        model = _map(booster, "model")
        if isinstance(model.get("trees"), list):
            _take_trees(model, found, file, limits)
        elif "weights" in model:
            _take(found, "weights", TensorKind.PARAMETER, [_source(model["weights"], "weights", file)])
            found.step = as_step(model.get("boosted_rounds"))
        else:
            raise UnsupportedError("the model has neither trees nor weights")
        if drops is not None:
            _take(found, "weight_drop", TensorKind.OTHER, [_source(drops, "weight_drop", file)])
        for name, number in _numbers(learner).items():
            found.scalars.setdefault(name, number)
        return array_checkpoint(found, limits, is_stream=False)


def _take_trees(model: Mapping[str, object], found: Estimated, file: BoundedFile, limits: ReadLimits) -> None:
    trees = model["trees"]
    assert isinstance(trees, list)
    if len(trees) > limits.tensors_max:
        raise LimitError(f"the model has {len(trees)} trees, the limit is {limits.tensors_max}")
    sources: dict[str, list[ByteSource]] = {name: [] for name in _PER_NODE}
    depth_max = 0
    for tree in trees:
        if not isinstance(tree, dict):
            raise CorruptError("the model has a tree that is no map")
        for name, parts in sources.items():
            parts.append(_source(tree.get(name), name, file))
        depth_max = max(
            depth_max, depth_of(_integers(tree, "left_children", file), _integers(tree, "right_children", file))
        )
    for name, kind in _PER_NODE.items():
        _take(found, f"trees.{name}", kind, sources[name])
    rounds = model.get("iteration_indptr")
    n_rounds = (
        rounds.n if isinstance(rounds, PackedNumbers) else len(rounds) if isinstance(rounds, list | np.ndarray) else 0
    ) - 1
    found.step = n_rounds if n_rounds >= 0 else len(trees)
    found.scalars["trees.n_trees"] = len(trees)
    found.scalars["trees.n_nodes"] = sum(source.n_bytes for source in sources["base_weights"]) // 4
    found.scalars["trees.depth_max"] = depth_max


def _take(found: Estimated, name: str, kind: TensorKind, sources: Sequence[ByteSource]) -> None:
    dtype = np.dtype(">f4")
    source = JoinedSource(sources)
    array = FoundArray(
        dtype=ArrayDtype(item_bytes=4, plain=dtype), shape=(source.n_bytes // 4,), is_fortran=False, source=source
    )
    found.arrays.append(NamedArray(name, kind, array))


def _source(value: object, name: str, file: BoundedFile) -> ByteSource:
    """Return float32 values, big-endian, as the binary form has them."""
    if isinstance(value, PackedNumbers) and value.code == ">f4":
        return FileSource(file, value.offset, 4 * value.n)
    if isinstance(value, MemorySource):
        return value
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        return MemorySource(np.array(value, ">f4").tobytes())
    raise CorruptError(f"the model has {printable(name, _SHOWN)} that are no numbers")


def _integers(tree: Mapping[str, object], name: str, file: BoundedFile) -> list[int]:
    value = tree.get(name)
    if isinstance(value, PackedNumbers):
        dtype = np.dtype(value.code)
        raw = read_bytes(FileSource(file, value.offset, value.n * dtype.itemsize), 0, value.n * dtype.itemsize)
        value = np.frombuffer(raw, dtype)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        numbers: list[int] = value.tolist()
        return numbers
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    raise CorruptError(f"the model has a tree without {name}")


def _map(value: object, key: str) -> Mapping[str, object]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, Mapping):
        raise CorruptError(f"the model has no map '{key}'")
    return found


def _numbers(learner: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers among the learner's parameters and attributes, which XGBoost writes as texts."""
    numbers: dict[str, float] = {}
    for part in ("learner_model_param", "attributes"):
        entries = learner.get(part)
        for key, text in entries.items() if isinstance(entries, Mapping) else ():
            try:
                number = float(str(text)[:40].strip("[]"))
            except ValueError:
                continue
            if np.isfinite(number):
                numbers[str(key)] = number
    return numbers


def _binary(file: BoundedFile, limits: ReadLimits) -> object:
    cursor = ByteCursor(file, taken_bytes_max=limits.header_bytes_max)
    root = UbjsonScanner(cursor).value()
    if cursor.n_left:
        raise CorruptError(f"{cursor.n_left} bytes follow the end of the model")
    return root


def _json(file: BoundedFile) -> object:
    scanner = JsonScanner(ByteCursor(file, taken_bytes_max=file.size_bytes), _KEPT, frozenset({"tree_param"}))
    root = scanner.value()
    scanner.finish()
    return root
