"""Loops over one block of values that LLVM vectorises: extrema, zeros, deviations, and the sketch's fold.

Compiled code; a block is at most a group of rows. Nothing is kept between blocks here.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from monitor.measure.kernel.compiling import FAST, exact_jit, jit
from monitor.measure.kernel.layout import N_NAN, N_NEGINF, N_POSINF
from monitor.measure.kernel.values import float32, signed, widen


def bit_extremes(raw):  # type: ignore[no-untyped-def]
    """Return the largest and smallest bit pattern as signed and as unsigned integers: (smax, smin, umax, umin).

    These four say everything about a block of floats: a negative float is a negative integer, and grows with its
    magnitude. Four integer reductions are half the work of ordering the patterns first.
    """
    raise NotImplementedError("compiled code only")


def _bit_extremes_int32(raw):  # type: ignore[no-untyped-def]
    smax, smin = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    umax, umin = np.uint32(0), np.uint32(0xFFFFFFFF)
    for i in range(raw.size):
        b = raw[i]
        smax, smin = max(smax, b), min(smin, b)
        umax, umin = max(umax, np.uint32(b)), min(umin, np.uint32(b))
    return smax, smin, umax, umin


def _bit_extremes_uint16(raw):  # type: ignore[no-untyped-def]
    smax, smin, umax, umin = np.int16(-0x8000), np.int16(0x7FFF), np.uint16(0), np.uint16(0xFFFF)
    for i in range(raw.size):
        b = raw[i]
        smax, smin = max(smax, np.int16(b)), min(smin, np.int16(b))
        umax, umin = max(umax, b), min(umin, b)
    return (
        np.int32(np.int32(smax) << np.int32(16)),
        np.int32(np.int32(smin) << np.int32(16)),
        np.uint32(np.uint32(umax) << np.uint32(16)),
        np.uint32(np.uint32(umin) << np.uint32(16)),
    )


def _bit_extremes_int64(raw):  # type: ignore[no-untyped-def]
    smax, smin = np.int64(-0x8000000000000000), np.int64(0x7FFFFFFFFFFFFFFF)
    umax, umin = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)
    for i in range(raw.size):
        b = raw[i]
        smax, smin = max(smax, b), min(smin, b)
        umax, umin = max(umax, np.uint64(b)), min(umin, np.uint64(b))
    return smax, smin, umax, umin


@overload(bit_extremes, jit_options={"fastmath": FAST})
def _bit_extremes_overload(raw):  # type: ignore[no-untyped-def]
    return {types.int32: _bit_extremes_int32, types.uint16: _bit_extremes_uint16, types.int64: _bit_extremes_int64}[
        raw.dtype
    ]


@jit
def count_zeros(raw):  # type: ignore[no-untyped-def]
    """Count zeros of both signs among float32 or bfloat16 bits."""
    zeros = np.int32(0)
    for i in range(raw.size):
        zeros += np.int32(np.int32(widen(raw[i]) << np.int32(1)) == np.int32(0))  # type: ignore[no-untyped-call]
    return zeros


@exact_jit
def drop_nonfinite(values, in_place, compact, counts):  # type: ignore[no-untyped-def]
    """Copy the finite elements, in place with zeros between and compact; count the others; return how many stay."""
    n_finite = 0
    for i in range(values.size):
        value = values[i]
        if np.isfinite(value):
            in_place[i] = value
            compact[n_finite] = value
            n_finite += 1
        else:
            in_place[i] = 0
            if np.isnan(value):
                counts[N_NAN] += 1
            elif value > 0:
                counts[N_POSINF] += 1
            else:
                counts[N_NEGINF] += 1
    return n_finite


@jit
def deviations64(values, shift):  # type: ignore[no-untyped-def]
    """Return (sum of x - shift, sum of its squares, sum of |x|) over float64 values."""
    s1, s2, l1 = 0.0, 0.0, 0.0
    for i in range(values.size):
        deviation = values[i] - shift
        s1 += deviation
        s2 += deviation * deviation
        l1 += abs(values[i])
    return s1, s2, l1


@jit
def deviations_wide(raw, shift):  # type: ignore[no-untyped-def]
    """Return the same in float64 over float32 or bfloat16 bits."""
    s1, s2, l1 = 0.0, 0.0, 0.0
    for i in range(raw.size):
        value = np.float64(float32(raw[i]))
        deviation = value - shift
        s1 += deviation
        s2 += deviation * deviation
        l1 += abs(value)
    return s1, s2, l1


@jit
def deviations32(raw, shift):  # type: ignore[no-untyped-def]
    """Return the same, summed in float32: for at most one row."""
    s1, s2, l1 = np.float32(0), np.float32(0), np.float32(0)
    for i in range(raw.size):
        value = float32(raw[i])
        deviation = value - shift
        s1 += deviation
        s2 += deviation * deviation
        l1 += abs(value)
    return np.float64(s1), np.float64(s2), np.float64(l1)


@jit
def fold_row(raw, buckets, columns, a, b, r):  # type: ignore[no-untyped-def]
    """Fold a part of one row, the r-th of its group, into its buckets."""
    for i in range(raw.size):
        h = np.int32(np.int32(np.int32(columns[i] * a) + b) << r)
        buckets[i] += np.float64(signed(raw[i], h))


@jit
def fold_group(raw, buckets, columns, a, b):  # type: ignore[no-untyped-def]
    """Fold GROUP_ROWS whole rows with one hash a column; written out, since LLVM does not unroll it by itself.

    The four values of a column are added in float32, which adds no more error than a float32 sketch has.
    """
    k = buckets.size
    row0, row1, row2, row3 = raw[:k], raw[k : 2 * k], raw[2 * k : 3 * k], raw[3 * k :]
    for i in range(k):
        h = np.int32(np.int32(columns[i] * a) + b)
        first = signed(row0[i], h) + signed(row1[i], np.int32(h << np.int32(1)))
        second = signed(row2[i], np.int32(h << np.int32(2))) + signed(row3[i], np.int32(h << np.int32(3)))
        buckets[i] += np.float64(first + second)


@jit
def fold64(values, buckets, columns, a, b, r):  # type: ignore[no-untyped-def]
    """Fold a part of a row of float64 values."""
    for i in range(values.size):
        h = np.int32(np.int32(np.int32(columns[i] * a) + b) << r)
        buckets[i] += -values[i] if h < np.int32(0) else values[i]
