"""Estimators of scikit-learn in memory: the same walk as over their files, over nodes made of the living objects.

An object gives its state as it would for a pickle, and nothing else of it is called. Arrays are looked at where they
lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monitor.live.memory import Array
from monitor.read.access.partial_sources import check_range
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint, array_checkpoint
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.numpy_records import ArrayDtype
from monitor.read.models.estimators import VISITS_MAX, walk_estimators
from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Ref
from monitor.read.reader import LimitError, ReadLimits, UnsupportedError

_PLAIN = (bool, int, float, str, bytes, type(None))


class ArraySource:
    """The bytes of an array as they lie in memory, C or Fortran order; any other array is copied."""

    __slots__ = ("_bytes", "n_bytes")

    def __init__(self, array: Array) -> None:
        whole = array if array.flags.forc else np.ascontiguousarray(array)
        self._bytes = whole.reshape(-1, order="A").view(np.uint8) if whole.size else np.empty(0, np.uint8)
        self.n_bytes = self._bytes.nbytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy into `buffer` from `offset`."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        buffer[:] = self._bytes[offset : offset + buffer.nbytes].data


def estimator_checkpoint(estimator: Any, limits: ReadLimits) -> ArrayCheckpoint:
    """Return a fitted estimator, or a pipeline or dict of some, as an open checkpoint.

    Raises UnsupportedError for one that was not fitted yet, LimitError for one of very many parts.
    """
    root = _Nodes().node(estimator)

    def find(value: object) -> FoundArray | list[object] | None:
        return value if isinstance(value, FoundArray) else None

    estimated = walk_estimators(root, find, limits)
    if not estimated.arrays:
        raise UnsupportedError("the estimator holds no fitted arrays; fit it first")
    return array_checkpoint(estimated, limits, is_stream=False)


class _Nodes:
    """Living objects to inert nodes, each object once."""

    def __init__(self) -> None:
        self._known: dict[int, object] = {}
        self._kept: list[object] = []  # states made for us: their identities must not be used again

    def node(self, value: Any) -> object:
        """Return what stands for a value in a pickle of it."""
        if type(value) in _PLAIN:
            return value
        known = self._known.get(id(value))
        if known is not None:
            return known
        if len(self._known) >= VISITS_MAX:
            raise LimitError(f"the estimator has more than {VISITS_MAX} parts")
        self._kept.append(value)
        if isinstance(value, np.generic):
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, list | tuple):
            made: list[object] = []
            self._known[id(value)] = made
            made.extend(self.node(part) for part in value)
            if isinstance(value, tuple):
                self._known[id(value)] = whole = tuple(made)
                return whole
            return made
        if isinstance(value, set | frozenset):
            return self._remember(value, Items([self.node(part) for part in value]))
        if isinstance(value, Mapping):
            pairs = Pairs()
            self._known[id(value)] = pairs
            pairs.pairs.extend((self.node(key), self.node(part)) for key, part in value.items())
            return pairs
        return self._object(value)

    def _array(self, array: Array) -> object:
        if array.dtype.hasobject:
            return self._remember(array, [self.node(part) for part in array.reshape(-1).tolist()])
        fields = tuple(
            (name, inner, place)
            for name, (inner, place, *_) in (array.dtype.fields or {}).items()
            if inner.kind in "biufc"
        )
        dtype = ArrayDtype(
            item_bytes=array.dtype.itemsize,
            plain=array.dtype if array.dtype.kind in "biufc" else None,
            fields=fields,
        )
        source = ArraySource(array)
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        found = FoundArray(dtype=dtype, shape=array.shape, is_fortran=is_fortran, source=source)
        return self._remember(array, found)

    def _object(self, value: Any) -> object:
        kind = value if isinstance(value, type) else type(value)
        ref = Ref(str(kind.__module__), str(kind.__name__))
        if isinstance(value, type) or callable(value):
            return self._remember(value, ref)
        node = Node(ref, ())
        self._known[id(value)] = node
        try:
            state = value.__getstate__()
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            return node  # compiled helpers without a state
        self._kept.append(state)
        node.state = self.node(state)
        if isinstance(value, list | tuple):
            node.items = [self.node(part) for part in value]
        return node

    def _remember(self, value: object, node: object) -> object:
        self._known[id(value)] = node
        return node
