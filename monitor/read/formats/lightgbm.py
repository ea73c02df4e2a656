"""LightGBM models as text: the leaf values and thresholds of all trees joined.

Read line by line; values are kept in memory up to VALUES_BYTES_MAX. It is whole when there are as many trees as it says
at its beginning and it ends with its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from monitor.read.access.partial_sources import JoinedSource
from monitor.read.access.sources import MemorySource
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint, array_checkpoint
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.numpy_records import ArrayDtype
from monitor.read.bounded_file import BoundedFile
from monitor.read.models.estimators import Estimated, NamedArray
from monitor.read.models.tree_depth import depth_of
from monitor.read.notes import FormatNotes
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits
from storage.records import TensorKind

VALUES_BYTES_MAX = 64 * 2**20
LINE_BYTES_MAX = 16 * 2**20
_PAGE_BYTES = 256 * 1024
_BEGIN = b"tree\nversion="
_KINDS = {
    "leaf_value": TensorKind.PARAMETER,
    "leaf_const": TensorKind.PARAMETER,  # of linear trees
    "leaf_coeff": TensorKind.PARAMETER,
    "threshold": TensorKind.OTHER,
}
_ENDS = ("pandas_categorical:", "end of parameters")


@dataclass(slots=True)
class _Model:
    header: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in _KINDS})
    n_bytes: int = 0
    n_trees: int = 0
    n_leaves: int = 0
    depth_max: int = 0
    parameters: dict[str, float] = field(default_factory=dict)


class LightgbmReader:
    """The reader of LightGBM's text files."""

    name: ClassVar[str] = "lightgbm"
    suffixes: ClassVar[tuple[str, ...]] = (".lgb", ".lgbm")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.txt`",
        written_by="LightGBM `save_model`, snapshots while training",
        optimizer_state="none",
        whole="it ends with its parameters, or with what Python adds after them",
        not_yet="no such end",
        never="another number of trees than it says at its beginning",
        step="the number of rounds",
        safety="read line by line; only numbers are taken",
        limits=("values of at most 64 MiB, lines of at most 16 MiB",),
        tested_in="tests/monitor/read/formats/test_boosters.py",
        tested_with="lightgbm",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether the file begins with LightGBM's first two lines."""
        return head.startswith(_BEGIN) or (len(head) > 1 and _BEGIN.startswith(head) and path.endswith(".txt"))

    def open(self, file: BoundedFile, limits: ReadLimits) -> ArrayCheckpoint:
        """Read the whole text and join what its trees hold."""
        if not file.head(len(_BEGIN)).startswith(_BEGIN[: min(len(_BEGIN), file.size_bytes)]):
            raise CorruptError("the file has the name of a LightGBM model but does not begin like one")
        model = _read(file)
        found = Estimated()
        for name, kind in _KINDS.items():
            # Joined where they lie: a copy in one piece would take as much memory again.
            source = JoinedSource([MemorySource(raw) for raw in model.values[name]])
            if source.n_bytes or name == "leaf_value":
                array = FoundArray(
                    dtype=ArrayDtype(item_bytes=8, plain=np.dtype("<f8")),
                    shape=(source.n_bytes // 8,),
                    is_fortran=False,
                    source=source,
                )
                found.arrays.append(NamedArray(f"trees.{name}", kind, array))
        per_round = _whole(model.header.get("num_tree_per_iteration", "1")) or 1
        found.step = model.n_trees // per_round
        found.scalars |= {"trees.n_trees": model.n_trees, "trees.n_leaves": model.n_leaves}
        found.scalars["trees.depth_max"] = model.depth_max
        found.scalars |= model.parameters
        return array_checkpoint(found, limits, is_stream=False)


def _read(file: BoundedFile) -> _Model:
    """Read all lines; the parts are a header, the trees, and what follows them."""
    model, last, children = _Model(), "", {"left_child": [-1], "right_child": [-1]}
    in_tree, n_expected = False, -1
    for line in _lines(file):
        key, separator, value = line.partition("=")
        if line.startswith("Tree="):
            model.depth_max = max(model.depth_max, _depth(children) if in_tree else 0)
            children = {"left_child": [-1], "right_child": [-1]}
            in_tree = True
            model.n_trees += 1
        elif line == "end of trees":
            model.depth_max = max(model.depth_max, _depth(children) if in_tree else 0)
            in_tree = False
            n_expected = len(model.header.get("tree_sizes", "").split())
        elif in_tree and separator:
            _take_line(model, children, key, value)
        elif n_expected < 0 and not in_tree and separator:
            model.header[key] = value
        elif line.startswith("[") and line.endswith("]"):
            _take_parameter(model, line[1:-1])
        if line:
            if last.startswith(_ENDS[0]):
                raise CorruptError("text follows the last line of the model")
            last = line
    if n_expected < 0 or not last.startswith(_ENDS):
        raise IncompleteError("the model has no end yet")
    if model.n_trees != n_expected:
        raise CorruptError(f"the model says that it has {n_expected} trees, it has {model.n_trees}")
    return model


def _take_line(model: _Model, children: dict[str, list[int]], key: str, value: str) -> None:
    """Take one line of a tree."""
    if key in _KINDS:
        try:
            numbers = np.array(value.split(), np.float64)
        except ValueError:
            raise CorruptError(f"tree {model.n_trees - 1} has a {key} that is no number") from None
        model.n_bytes += numbers.nbytes
        if model.n_bytes > VALUES_BYTES_MAX:
            raise LimitError(f"the model's values take more than {VALUES_BYTES_MAX} bytes")
        model.values[key].append(numbers.astype("<f8").tobytes())
        model.n_leaves += len(numbers) if key == "leaf_value" else 0
    elif key in children:
        try:
            children[key] = [int(text) for text in value.split()]
        except ValueError:
            raise CorruptError(f"tree {model.n_trees - 1} has a {key} that is no number") from None


def _depth(children: dict[str, list[int]]) -> int:
    """Return the depth of one tree, whose leaves are negative children and not counted as nodes."""
    left, right = children["left_child"], children["right_child"]
    return depth_of(left, right) + (1 if len(left) > 1 or left != [-1] or right != [-1] else 0)


def _take_parameter(model: _Model, text: str) -> None:
    name, separator, value = text.partition(": ")
    try:
        number = float(value) if separator and len(value) < 40 else math.nan
    except ValueError:
        return
    if math.isfinite(number):
        model.parameters[name] = number


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _lines(file: BoundedFile) -> Iterator[str]:
    """Yield the lines without their ends; raise IncompleteError where the last one has none."""
    rest = b""
    for start in range(0, file.size_bytes, _PAGE_BYTES):
        page = file.read(start, min(_PAGE_BYTES, file.size_bytes - start))
        *lines, rest = (rest + page).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
        if len(rest) > LINE_BYTES_MAX:
            raise LimitError(f"a line of the model has more than {LINE_BYTES_MAX} bytes")
    if rest:
        raise IncompleteError("the model ends within a line")
