"""Fixed logarithmic magnitude bins, the same for every tensor and dtype, and quantiles from them.

The scheme: the magnitude of an element as float64, without its sign, is cut to its exponent and the top three bits
of its mantissa: m = bits >> 49, eight bins an octave over the whole range of float64 (0..16375). A positive element is
in bin m + 1, a negative one in bin -(m + 1), zero in bin 0. So bins sort like values, any two histograms can be
compared or added, and no range has to be known before. The lowest bin of each sign reaches down to zero.

Tensors of at most SAMPLE_ROWS * sketch_buckets elements are counted in full; of larger ones a deterministic sample of
whole rows is counted, one row drawn by hash out of each stratum of equal length, so that neither chunks nor periodic
layouts matter. Histogram.exact says which. This module does not count; the kernel does. NumPy only.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage.records import Histogram

MAGNITUDE_SHIFT = 49
MAGNITUDES = 2**14  # per sign; the last eight would be infinities and NaN and stay empty
BINS_PER_SIGN = MAGNITUDES - 8
SAMPLE_ROWS = 64

_LARGEST = float(np.finfo(np.float64).max)


def sample_stride(n_elements: int, n_buckets: int) -> int:
    """Return how many rows of `n_buckets` elements make a stratum; 1 counts every element."""
    rows = -(-n_elements // n_buckets)
    return max(1, rows // SAMPLE_ROWS)


def bin_edges(index: int) -> tuple[float, float]:
    """Return the (low, high) values of one bin, low <= high; (0, 0) for bin 0.

    A positive bin holds low <= x < high, a negative one low < x <= high. Raises ValueError outside the scheme.
    """
    magnitude = abs(index) - 1
    if magnitude >= BINS_PER_SIGN:
        raise ValueError(f"bin {index} is outside the scheme of {BINS_PER_SIGN} bins a sign")
    if index == 0:
        return 0.0, 0.0
    low, high = _edge(magnitude), _edge(magnitude + 1)
    return (low, high) if index > 0 else (-high, -low)


def _edge(magnitude: int) -> float:
    """Return the smallest float64 of a bin without its sign, the largest finite one where the bins end."""
    if magnitude >= BINS_PER_SIGN:
        return _LARGEST
    exponent, eighths = divmod(magnitude, 8)
    return math.ldexp(8 + eighths, exponent - 1026) if exponent else math.ldexp(eighths, -1025)


def from_counts(counts: npt.NDArray[np.int64], *, exact: bool) -> Histogram:
    """Build the record from the kernel's table: shape (2 * MAGNITUDES,), non-negative half first, slot m for bin m.

    Slot 0 counts zeros, slot m + 1 bin m + 1; the second half likewise for negative bins.
    """
    found = np.flatnonzero(counts != 0)
    n_positive = int(np.searchsorted(found, MAGNITUDES))
    above, below = found[:n_positive], found[n_positive:][::-1]
    indices = np.concatenate([MAGNITUDES - below, above])
    numbers = counts[np.concatenate([below, above])]
    return Histogram(
        bin_indices=tuple(indices.tolist()),
        counts=tuple(numbers.tolist()),
        n_sampled=int(numbers.sum()),
        exact=exact,
    )


def quantiles(histogram: Histogram, probabilities: Sequence[float], low: float, high: float) -> dict[str, float]:
    """Estimate quantiles by linear interpolation inside bins, clipped to the tensor's own `low`..`high`.

    Keys are the probabilities as text ("0.01"). The error is at most one bin's width (an eighth of an octave), less
    where many elements share a bin. Empty when nothing was counted.
    """
    if histogram.n_sampled == 0:
        return {}
    cumulative = list(itertools.accumulate(histogram.counts))
    found: dict[str, float] = {}
    for probability in probabilities:
        rank = probability * histogram.n_sampled
        place = min(bisect.bisect_left(cumulative, rank), len(cumulative) - 1)
        count = histogram.counts[place]
        inside = 1.0 - (cumulative[place] - rank) / count
        left, right = bin_edges(histogram.bin_indices[place])
        left, right = max(left, low), min(right, high)
        value = left + (right - left) * min(max(inside, 0.0), 1.0)
        found[f"{probability:g}"] = min(max(value, low), high)
    return found


def quantiles_of(ordered: npt.NDArray[np.float64], probabilities: Sequence[float]) -> dict[str, float]:
    """Return exact quantiles of sorted finite values, interpolated linearly as numpy.quantile does by default."""
    found: dict[str, float] = {}
    for probability in probabilities if ordered.size else ():
        place = probability * (ordered.size - 1)
        below = int(place)
        left, right = float(ordered[below]), float(ordered[min(below + 1, ordered.size - 1)])
        part = place - below
        found[f"{probability:g}"] = left * (1.0 - part) + right * part  # no difference that could overflow
    return found
