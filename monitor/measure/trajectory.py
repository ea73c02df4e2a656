"""The path of the weights through a run, from sketches: oscillation, detours, maps, and the likeness of two runs.

A sketch is linear, so distances, angles and sums of snapshots are estimated from their sketches as if these were the
weights: lengths with a relative standard deviation of about 1/sqrt(2k), cosines with one of at most about 1/sqrt(k).
Every function takes sketches that can be compared (see `sketch.comparable`; monitor.measure.weight_sketch makes one
of all parameters) in the order of the run and raises ValueError for others. Pure, NumPy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.measure import sketch
from monitor.measure.sketch import FloatArray
from storage.records import Sketch

# Differences of stored sketches below so many units in the last place of the sketches are rounding, not movement.
_ROUNDING_ULPS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How alike two sets of weights are.

    `relative_l2` is |a - b| over the larger of |a| and |b|, 0 (equal) to 2 (opposite), 0 when both are 0; `cosine` is
    None when either is 0.
    """

    relative_l2: float
    cosine: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanePath:
    """A run drawn on a plane: where each snapshot lies, and how much of the truth that shows.

    `points` are (x, y), one a snapshot, in the unit of the weights' L2 norm, their mean at the origin. `share` is the
    part of the mean squared distance that the plane holds, 0..1; 1 when nothing moved.
    """

    points: tuple[tuple[float, float], ...]
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPoint:
    """Where a snapshot lies on the path of its run.

    `path_length` is the length of the way from the first snapshot, `displacement` the straight distance from it, both
    L2 norms. `update_cosine` is as for `update_cosine`.
    """

    update_cosine: float | None
    path_length: float
    displacement: float


class Follower:
    """Follows a run of any length, one snapshot after the other, and holds no more than three of them."""

    def __init__(self) -> None:
        self._first: Sketch | None = None
        self._origin = self._last = np.empty(0)
        self._direction: FloatArray | None = None  # of the latest update, None while there is none
        self._length = 0.0

    def follow(self, weights: Sketch) -> PathPoint:
        """Take the next snapshot; where it cannot be compared with the first one, a new path begins with it."""
        values = sketch.to_array(weights)
        if self._first is None or not sketch.comparable(self._first, weights) or values.shape != self._origin.shape:
            self._first, self._origin, self._last = weights, values, values
            self._length, self._direction = 0.0, None
            return PathPoint(update_cosine=None, path_length=0.0, displacement=0.0)
        update = values - self._last
        step, displacement, size = _norms(np.array([update, values - self._origin, values]))
        unit = max(float(np.finfo(np.dtype(s.dtype)).epsneg) for s in (self._first, weights))
        is_movement = step > _ROUNDING_ULPS * unit * size and math.isfinite(step)
        direction = update / step if is_movement else None
        cosine = None
        if self._direction is not None and direction is not None:
            cosine = float(np.clip(np.dot(self._direction, direction), -1.0, 1.0))
        self._last, self._direction = values, direction
        self._length += float(step)
        return PathPoint(update_cosine=cosine, path_length=self._length, displacement=float(displacement))


def update_cosine(older: Sketch, old: Sketch, new: Sketch) -> float | None:
    """Return the cosine between the update old - older and the update new - old, -1..1.

    Near 1 the run goes on straight, near 0 it wanders, near -1 it goes back and forth. None when either update is no
    larger than the rounding of the sketches.
    """
    a, b, c = _stacked((older, old, new))
    return _cosine(b - a, c - b, floor=_rounding((older, old, new), (a, b, c)))


def update_cosines(sketches: Sequence[Sketch]) -> tuple[float | None, ...]:
    """Return for each snapshot the cosine of the update to it with the update before; None for the first two."""
    found = [update_cosine(a, b, c) for a, b, c in zip(sketches, sketches[1:], sketches[2:], strict=False)]
    return (*(None for _ in sketches[:2]), *found)


def path_lengths(sketches: Sequence[Sketch]) -> tuple[float, ...]:
    """Return for each snapshot the length of the path from the first one to it, |w1 - w0| + |w2 - w1| + ..."""
    if not sketches:
        return ()
    steps = (sketch.difference_l2(b, a) for a, b in itertools.pairwise(sketches))
    return tuple(itertools.accumulate(steps, initial=0.0))


def displacements(sketches: Sequence[Sketch]) -> tuple[float, ...]:
    """Return for each snapshot its straight distance from the first; over the path's length this says how straight."""
    return tuple(sketch.difference_l2(s, sketches[0]) for s in sketches)


def drift_matrix(sketches: Sequence[Sketch]) -> FloatArray:
    """Return the distance of every snapshot from every other, shape (n, n), symmetric, zeros on the diagonal."""
    stacked = _stacked(sketches)
    n = len(sketches)
    distances = np.zeros((n, n))
    for i in range(n):  # differences first: products of nearly equal vectors would lose the digits that matter
        with np.errstate(over="ignore"):
            rest = stacked[i + 1 :] - stacked[i]
        distances[i, i + 1 :] = distances[i + 1 :, i] = _norms(rest)
    return distances


def path_in_two_dimensions(sketches: Sequence[Sketch]) -> PlanePath:
    """Lay a run onto the plane that shows most of its movement (principal components of the sketches).

    Time goes to the right: the last point lies no further left than the first, and the point farthest from the first
    axis lies above it, so that the same run always looks the same. Empty for no sketches.
    """
    if not sketches:
        return PlanePath(points=(), share=1.0)
    stacked = _stacked(sketches)
    largest = float(np.max(np.abs(stacked), initial=0.0)) or 1.0
    moved = stacked / largest - (stacked[0] / largest)
    moved -= moved.mean(axis=0)
    values, vectors = np.linalg.eigh(moved @ moved.T)
    total = float(np.trace(moved @ moved.T))
    count = min(2, len(sketches))
    plane = np.zeros((len(sketches), 2))
    plane[:, :count] = vectors[:, ::-1][:, :count] * np.sqrt(np.maximum(values[::-1][:count], 0.0))
    if plane[-1, 0] < plane[0, 0]:
        plane[:, 0] *= -1.0
    if plane[np.argmax(np.abs(plane[:, 1])), 1] < 0.0:
        plane[:, 1] *= -1.0
    share = float(np.sum(plane**2)) / total if total > 0.0 else 1.0
    return PlanePath(points=tuple((float(x) * largest, float(y) * largest) for x, y in plane), share=min(share, 1.0))


def similarity(a: Sketch, b: Sketch) -> Similarity:
    """Compare two snapshots, of one run or of two runs at the same step."""
    larger = max(sketch.norm(a), sketch.norm(b))
    distance = sketch.difference_l2(a, b)
    return Similarity(relative_l2=min(distance / larger, 2.0) if larger > 0.0 else 0.0, cosine=sketch.cosine(a, b))


def is_rounding(difference: float, a: Sketch, b: Sketch) -> bool:
    """Say whether a distance between two sketches is no larger than what storing them has rounded."""
    return difference <= _rounding((a, b), (sketch.to_array(a), sketch.to_array(b)))


def _stacked(sketches: Sequence[Sketch]) -> FloatArray:
    """Return the sketches as rows, shape (n, buckets); ValueError when they cannot be compared."""
    rows = [sketch.to_array(s) for s in sketches]
    for other, row in zip(sketches[1:], rows[1:], strict=True):
        if not sketch.comparable(sketches[0], other) or row.shape != rows[0].shape:
            raise ValueError("the sketches were taken with different buckets, seeds or shapes and cannot be compared")
    return np.array(rows).reshape(len(rows), -1)


def _rounding(sketches: Sequence[Sketch], values: Sequence[FloatArray]) -> float:
    unit = max(float(np.finfo(np.dtype(s.dtype)).epsneg) for s in sketches)
    return _ROUNDING_ULPS * unit * float(max(_norms(np.array(values))))


def _norms(rows: FloatArray) -> FloatArray:
    """Return the L2 norm of each row without overflow or underflow in the squares."""
    largest = np.max(np.abs(rows), axis=1, initial=0.0)
    scale = np.where((largest > 0.0) & np.isfinite(largest), largest, 1.0)
    norms: FloatArray = scale * np.linalg.norm(rows / scale[:, None], axis=1)
    return norms


def _cosine(a: FloatArray, b: FloatArray, *, floor: float) -> float | None:
    norm_a, norm_b = _norms(np.array([a, b]))
    if not (norm_a > floor and norm_b > floor and math.isfinite(norm_a) and math.isfinite(norm_b)):
        return None
    return float(np.clip(np.dot(a / norm_a, b / norm_b), -1.0, 1.0))
