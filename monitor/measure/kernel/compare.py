"""The pass over two chunks at once: sums over the pairs of their elements.

Compiled code, and the entry points that ExactDrift calls.
"""

from __future__ import annotations

import numpy as np

from monitor.measure.kernel.compiling import entry, exact_jit, jit
from monitor.measure.kernel.layout import (
    DIFFERENCE2,
    LARGEST_DIFFERENCE,
    N_CHANGED,
    N_PAIRS_NONFINITE,
    NEW2,
    OLD2,
)
from monitor.measure.kernel.values import decode

_MAGNITUDE64 = np.int64(0x7FFFFFFFFFFFFFFF)
_PAIRS = 4096
_INFINITE64 = np.int64(0x7FF0000000000000)


@jit
def _compare(new, old, sums):  # type: ignore[no-untyped-def]
    """Add a block of finite pairs to the sums; change nothing and return False when a pair is not finite."""
    difference2, new2, old2, largest = 0.0, 0.0, 0.0, np.int64(0)
    for i in range(new.size):
        a, b = np.float64(new[i]), np.float64(old[i])
        difference = a - b
        difference2 += difference * difference
        new2 += a * a
        old2 += b * b
        largest = max(largest, np.float64(difference).view(np.int64) & _MAGNITUDE64)
    if largest >= _INFINITE64:
        return False
    sums[DIFFERENCE2] += difference2
    sums[NEW2] += new2
    sums[OLD2] += old2
    sums[LARGEST_DIFFERENCE] = max(sums[LARGEST_DIFFERENCE], np.int64(largest).view(np.float64))
    return True


@exact_jit
def _compare_finite(new, old, sums, counts):  # type: ignore[no-untyped-def]
    """Add the pairs of a block of which both elements are finite; count the others."""
    for i in range(new.size):
        a, b = np.float64(new[i]), np.float64(old[i])
        if not (np.isfinite(a) and np.isfinite(b)):
            counts[N_PAIRS_NONFINITE] += 1
            continue
        difference = a - b
        sums[DIFFERENCE2] += difference * difference
        sums[NEW2] += a * a
        sums[OLD2] += b * b
        sums[LARGEST_DIFFERENCE] = max(sums[LARGEST_DIFFERENCE], abs(difference))


@jit
def _count_different(new, old):  # type: ignore[no-untyped-def]
    different = 0
    for i in range(new.size):
        different += new[i] != old[i]
    return different


@entry
def compare32(new, new_table, old, old_table, into):  # type: ignore[no-untyped-def]
    """Compare stored values of at most 32 bits (see accumulate32) pair by pair; `into` is (sums, counts)."""
    sums, counts = into
    new_row, old_row = np.empty(_PAIRS, np.int32), np.empty(_PAIRS, np.int32)
    for start in range(0, new.size, _PAIRS):
        end = min(start + _PAIRS, new.size)
        a, b = new_row[: end - start], old_row[: end - start]
        decode(new[start:end], new_table, a)
        decode(old[start:end], old_table, b)
        counts[N_CHANGED] += _count_different(a, b)
        if not _compare(a.view(np.float32), b.view(np.float32), sums):
            _compare_finite(a.view(np.float32), b.view(np.float32), sums, counts)


@entry
def compare64(new, old, into):  # type: ignore[no-untyped-def]
    """Compare float64 values pair by pair; `into` is (sums, counts)."""
    sums, counts = into
    for start in range(0, new.size, _PAIRS):
        end = min(start + _PAIRS, new.size)
        a, b = new[start:end], old[start:end]
        counts[N_CHANGED] += _count_different(a.view(np.int64), b.view(np.int64))
        if not _compare(a, b, sums):
            _compare_finite(a, b, sums, counts)
