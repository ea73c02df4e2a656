"""Pairs of tensors read and compared, whatever the order of their axes. Worker processes only: imports the kernel.

The order is found by comparing a sample of elements under every order that the shapes allow; those that agree are
then compared in full, one after the other, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.measure.axis_order import AxisOrder, Orders, Positions, possible_orders
from monitor.measure.bias_comparison import compare_biases
from monitor.measure.comparison import PairResult
from monitor.measure.exact_drift import PairedDrift
from monitor.measure.recurrent_bias import JoinedBias
from monitor.measure.reordered import BLOCK_BYTES, gather, reordered
from monitor.measure.stored import Array, numpy_dtype
from monitor.read.reader import Chunk, OpenCheckpoint, ReadLimits, TensorSpec
from monitor.read.registry import open_path
from storage.records import TensorDrift

SAMPLE_MAX = 512
SMALL_ELEMENTS_MAX = 4096  # compared whole already when sampled
FULL_MAX = 8  # orders that agree in the sample and are then compared in full
_SIZES_MAX = 4096
_NEARER = 0.5  # how much nearer than the usual order another one must be to be taken for the one that was meant


@dataclass(frozen=True, slots=True)
class _Side:
    checkpoint: OpenCheckpoint
    specs: dict[str, TensorSpec]

    def spec(self, name: str) -> TensorSpec | None:
        """Return the tensor of a name, the one that it is tied to where that holds the values."""
        return self.specs.get(name)

    def stream(self, spec: TensorSpec) -> Callable[[], Iterator[Chunk]]:
        owner = self.specs.get(spec.tied_to, spec) if spec.tied_to is not None else spec
        return lambda: self.checkpoint.chunks(owner)


def compare_paths(
    old_path: str,
    new_path: str,
    pairs: Sequence[tuple[str, str]],
    limits: ReadLimits,
    joined: Sequence[JoinedBias] = (),
) -> tuple[PairResult, ...]:
    """Compare pairs of (old name, new name), and joined biases, of two checkpoints on disk.

    Raises a ReadError for either.
    """
    with open_path(old_path, limits) as old, open_path(new_path, limits) as new:
        results = compare_pairs(old.checkpoint, new.checkpoint, pairs)
        for bias in joined:
            results += tuple(compare_biases(old.checkpoint, new.checkpoint, bias))
        old.file.verify_unchanged()
        new.file.verify_unchanged()
        return results


def compare_pairs(
    old: OpenCheckpoint, new: OpenCheckpoint, pairs: Iterable[tuple[str, str]], *, block_bytes: int = BLOCK_BYTES
) -> tuple[PairResult, ...]:
    """Compare pairs of (old name, new name) of two open checkpoints; a name that is not there has no drift."""
    sides = (_Side(old, {s.name: s for s in old.tensors}), _Side(new, {s.name: s for s in new.tensors}))
    axes = {size for side in sides for spec in side.specs.values() for size in spec.shape if size > 1}
    sizes = frozenset(sorted(axes)[:_SIZES_MAX])
    return tuple(_compare_pair(sides, pair, sizes, block_bytes) for pair in pairs)


def _compare_pair(
    sides: tuple[_Side, _Side], pair: tuple[str, str], sizes: frozenset[int], block_bytes: int
) -> PairResult:
    old, new = (side.spec(name) for side, name in zip(sides, pair, strict=True))
    nothing = PairResult(name=pair[1], other_name=pair[0], layout=None, drift=None)
    if old is None or new is None or old.problem is not None or new.problem is not None:
        return replace(nothing, note="one of the two has no values")
    if old.n_elements == 0 and new.n_elements == 0:
        return replace(nothing, drift=PairedDrift(0, iter(())).finish(new.name, None))
    orders = possible_orders((old.name, old.shape), (new.name, new.shape), sizes)
    if not (orders.right or orders.rare):
        return replace(nothing, note=_unfit(old, new))
    comparing = _Comparing(sides, old, new, block_bytes)
    return comparing.result(orders)


class _Comparing:
    """One pair of tensors with as many elements on both sides."""

    def __init__(self, sides: tuple[_Side, _Side], old: TensorSpec, new: TensorSpec, block_bytes: int) -> None:
        self._old, self._new = old, new
        self._old_stream, self._new_stream = (s.stream(t) for s, t in zip(sides, (old, new), strict=True))
        self._dtype = numpy_dtype(old.dtype)
        self._block_bytes = block_bytes

    def result(self, orders: Orders) -> PairResult:
        """Return the drift under the order in which the values are equal, else under the likeliest."""
        groups = (orders.right, orders.rare, orders.wrong)
        distances = self._distances([order for group in groups for order in group])
        ends = np.cumsum([len(group) for group in groups])
        right, rare, wrong = np.split(distances, ends[:-1])
        found = self._equal(orders.right, right) or self._equal(orders.rare, rare)
        if found is not None:
            return self._result(*found)
        if not orders.right:
            return PairResult(
                name=self._new.name,
                other_name=self._old.name,
                layout=None,
                drift=None,
                note=_unfit(self._old, self._new),
            )
        mistaken = self._equal(orders.wrong, wrong)
        best = int(np.argmin(right))
        likeliest = orders.right[best if mistaken is None and right[best] < _NEARER * right[0] else 0]
        note = None
        if mistaken is not None:
            note = (
                f"the values are there, but with axes {mistaken[0].text(self._old.shape)} "
                f"instead of {likeliest.text(self._old.shape)}"
            )
        return self._result(likeliest, self._drift(likeliest), note)

    def _result(self, order: AxisOrder, drift: TensorDrift, note: str | None = None) -> PairResult:
        is_as_it_was = order.is_identity and self._old.shape == self._new.shape
        return PairResult(
            name=self._new.name,
            other_name=self._old.name,
            layout=None if is_as_it_was else order.text(self._old.shape),
            drift=drift,
            note=note,
        )

    def _equal(
        self, orders: Sequence[AxisOrder], distances: npt.NDArray[np.float64]
    ) -> tuple[AxisOrder, TensorDrift] | None:
        """Return the first order in which not one element differs."""
        for place in np.flatnonzero(distances == 0.0)[:FULL_MAX]:
            drift = self._drift(orders[place])
            if drift.n_changed == 0:
                return orders[place], drift
        return None

    def _drift(self, order: AxisOrder) -> TensorDrift:
        chunks = reordered(self._old_stream, order, self._dtype, self._block_bytes)
        paired = PairedDrift(self._new.n_elements, chunks)
        for chunk in self._new_stream():
            paired.feed(chunk.values)
        return paired.finish(self._new.name, None)

    def _distances(self, orders: Sequence[AxisOrder]) -> npt.NDArray[np.float64]:
        """Return for each order how far a sample of elements is from equal: 0 where all are."""
        positions = _sample(self._new.n_elements)
        new = _wide(gather(self._new_stream(), positions))
        places = np.stack([order.source_positions(positions) for order in orders])
        needed, inverse = np.unique(places, return_inverse=True)
        old = _wide(gather(self._old_stream(), needed))[inverse.reshape(places.shape)]
        with np.errstate(all="ignore"):
            equal = (old == new) | ((old != old) & (new != new))  # noqa: PLR0124 - a NaN equals a NaN here
            away = np.where(equal, 0.0, np.nan_to_num(np.abs(old - new), nan=1e30, posinf=1e30))
        distances: npt.NDArray[np.float64] = away.sum(axis=1)
        distances[~equal.all(axis=1) & (distances == 0.0)] = np.finfo(np.float64).tiny
        return distances


def _sample(n_elements: int) -> Positions:
    """Return positions spread over a tensor, the same ones every time; all of a small one."""
    if n_elements <= SMALL_ELEMENTS_MAX:
        return np.arange(n_elements, dtype=np.int64)
    edges = np.linspace(0, n_elements, SAMPLE_MAX + 1).astype(np.int64)
    within = np.random.default_rng(0).random(SAMPLE_MAX) * np.diff(edges)
    return edges[:-1] + within.astype(np.int64)


def _wide(values: Array) -> npt.NDArray[np.inexact[Any]]:
    with np.errstate(invalid="ignore"):
        return values.astype(np.complex128) if values.dtype.kind == "c" else values.astype(np.float64)


def _unfit(old: TensorSpec, new: TensorSpec) -> str:
    return f"no order of axes makes {_shape(new.shape)} of {_shape(old.shape)}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
