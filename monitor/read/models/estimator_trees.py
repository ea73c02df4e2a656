"""The trees of one estimator joined: the values and thresholds of all nodes as one tensor each, counts and depths.

A forest of a thousand trees is one tensor of leaf values, not a thousand; trees come and go between checkpoints.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.read.access.partial_sources import JoinedSource, read_bytes
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.numpy_records import ArrayDtype
from storage.records import TensorKind

_DEPTHS_READ_BYTES_MAX = 64 * 2**20
_BLOCK_NODES = 16384


class Forest:
    """The trees that belong together; `is_single` for an estimator that is one tree."""

    __slots__ = ("_base", "_depths", "_is_single", "_n_nodes", "_thresholds", "_values")

    def __init__(self, base: str, *, is_single: bool) -> None:
        self._base = base
        self._is_single = is_single
        self._values: list[FoundArray] = []
        self._thresholds: list[FoundArray] = []
        self._depths: list[int] = []
        self._n_nodes = 0

    def add(self, nodes: FoundArray, values: FoundArray | None, depth: int | None) -> None:
        """Add one tree by the records of its nodes; values and depth are taken from them where not given."""
        value = values or nodes.field("value")
        threshold = nodes.field("threshold") or nodes.field("num_threshold")
        if value is not None and value.dtype.plain is not None:
            self._values.append(value)
        if threshold is not None:
            self._thresholds.append(threshold)
        self._depths.append(depth if depth is not None else _deepest(nodes.field("depth")))
        self._n_nodes += nodes.n_elements

    def arrays(self) -> list[tuple[str, TensorKind, FoundArray]]:
        """Return name, kind and array of what all trees hold: leaf and node values are weights, thresholds are not."""
        found = []
        for part, kind, arrays in (
            ("value", TensorKind.PARAMETER, self._values),
            ("threshold", TensorKind.OTHER, self._thresholds),
        ):
            array = self._joined(arrays)
            if array is not None:
                found.append((f"{self._base}.{part}" if self._base else part, kind, array))
        return found

    def scalars(self) -> dict[str, int]:
        """Return how many trees and nodes there are, and how deep the deepest tree is."""
        above = f"{self._base}." if self._base else ""
        if self._is_single:
            return {f"{above}node_count": self._n_nodes, f"{above}max_depth": max(self._depths)}
        group = above.removesuffix("tree_.")
        return {
            f"{group}n_trees": len(self._depths),
            f"{group}n_nodes": self._n_nodes,
            f"{group}depth_max": max(self._depths),
        }

    def _joined(self, arrays: list[FoundArray]) -> FoundArray | None:
        if not arrays:
            return None
        if self._is_single:
            return arrays[0]
        first = arrays[0].dtype.plain
        assert first is not None
        alike = [array for array in arrays if array.dtype.plain == first]
        return replace(
            arrays[0],
            dtype=ArrayDtype(item_bytes=first.itemsize, plain=first),
            shape=(sum(array.n_elements for array in alike),),
            is_fortran=False,
            source=JoinedSource([array.source for array in alike]),
        )


def _deepest(depths: FoundArray | None) -> int:
    """Return the largest value of a field of depths, 0 where there is none to read."""
    plain = depths.dtype.plain if depths is not None else None
    if depths is None or plain is None or plain.kind not in "iu" or depths.source.n_bytes > _DEPTHS_READ_BYTES_MAX:
        return 0
    deepest = 0
    for start in range(0, depths.n_elements, _BLOCK_NODES):
        n = min(_BLOCK_NODES, depths.n_elements - start)
        raw = read_bytes(depths.source, start * plain.itemsize, n * plain.itemsize)
        deepest = max(deepest, int(np.frombuffer(raw, plain).max()))
    return deepest
