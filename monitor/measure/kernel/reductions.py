"""Loops over one block of values that LLVM vectorises: extrema, zeros, deviations, and the sketch's fold.

Compiled code; a block is at most a group of rows. Nothing is kept between blocks here.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from monitor.measure.kernel.compiling import FAST, exact_jit, jit
from monitor.measure.kernel.layout import N_NAN, N_NEGINF, N_POSINF
from monitor.measure.kernel.values import float32, half_bits, signed, widen

# How many columns of a group have their deviations summed in float32, and how many of them go into one vector: what
# is left over makes a span of its own, else it would be added one by one to sums that are large already.
_SPAN, _LANES = 256, 16


def bit_extremes(raw):  # type: ignore[no-untyped-def]
    """Return the largest and smallest bit pattern as signed and as unsigned integers: (smax, smin, umax, umin).

    Patterns of 16 bits are returned as those of the same value in float32, which keeps their order. These four say
    everything about a block of floats: a negative float is a negative integer, and grows with its magnitude. Four
    integer reductions are half the work of ordering the patterns first.
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


def _bit_extremes_int16(raw):  # type: ignore[no-untyped-def]
    smax, smin, umax, umin = np.int16(-0x8000), np.int16(0x7FFF), np.uint16(0), np.uint16(0xFFFF)
    for i in range(raw.size):
        b = raw[i]
        smax, smin = max(smax, b), min(smin, b)
        umax, umin = max(umax, np.uint16(b)), min(umin, np.uint16(b))
    return (
        half_bits(smax),
        half_bits(smin),
        np.uint32(half_bits(np.int16(umax))),
        np.uint32(half_bits(np.int16(umin))),
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
    return {
        types.int32: _bit_extremes_int32,
        types.uint16: _bit_extremes_uint16,
        types.int16: _bit_extremes_int16,
        types.int64: _bit_extremes_int64,
    }[raw.dtype]


@jit
def count_zeros(raw):  # type: ignore[no-untyped-def]
    """Count zeros of both signs among float32, bfloat16 or finite float16 bits."""
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
    """Return the same in float64 over float32, bfloat16 or finite float16 bits."""
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


def _group_adder(*, is_shifted: bool):  # type: ignore[no-untyped-def]
    """Return the function that folds GROUP_ROWS whole rows into `partial`, float32 sums a column.

    It returns what deviations32 does; without `is_shifted` as if shift were 0, which spares a subtraction a value.
    `place` is (a, b) of the hash, one for a column. Both are done at once because either needs every value widened;
    rows are written out, since LLVM does not unroll them by itself. The float32 sums of a few groups add no more error
    than a float32 sketch has. Deviations are summed in float32 over two rows of a span, so sixteen times in a lane.
    """

    def add_group(raw, partial, columns, place, shift):  # type: ignore[no-untyped-def]
        a, b = place
        k = partial.size
        t1, t2, m1 = 0.0, 0.0, 0.0
        start = 0
        while start < k:
            left = min(k - start, _SPAN)
            end = start + (left // _LANES * _LANES if left > _LANES else left)
            into, keys = partial[start:end], columns[start:end]
            row0, row1 = raw[start:end], raw[k + start : k + end]
            row2, row3 = raw[2 * k + start : 2 * k + end], raw[3 * k + start : 3 * k + end]
            s1, s2, l1 = np.float32(0), np.float32(0), np.float32(0)
            r1, r2, n1 = np.float32(0), np.float32(0), np.float32(0)
            for i in range(end - start):
                h = np.int32(np.int32(keys[i] * a) + b)
                b0, b1 = widen(row0[i]), widen(row1[i])  # type: ignore[no-untyped-call]
                b2, b3 = widen(row2[i]), widen(row3[i])  # type: ignore[no-untyped-call]
                first = signed(b0, h) + signed(b1, np.int32(h << np.int32(1)))
                second = signed(b2, np.int32(h << np.int32(2))) + signed(b3, np.int32(h << np.int32(3)))
                into[i] += first + second
                x0, x1, x2, x3 = float32(b0), float32(b1), float32(b2), float32(b3)
                d0, d1, d2, d3 = x0, x1, x2, x3
                if is_shifted:  # known when this is compiled
                    d0, d1, d2, d3 = x0 - shift, x1 - shift, x2 - shift, x3 - shift
                s1 += d0 + d1
                s2 += d0 * d0 + d1 * d1
                l1 += abs(x0) + abs(x1)
                r1 += d2 + d3
                r2 += d2 * d2 + d3 * d3
                n1 += abs(x2) + abs(x3)
            t1 += np.float64(s1 + r1)
            t2 += np.float64(s2 + r2)
            m1 += np.float64(l1 + n1)
            start = end
        return t1, t2, m1

    return jit(add_group)


add_group = _group_adder(is_shifted=True)
add_centred_group = _group_adder(is_shifted=False)


@jit
def fold64(values, buckets, columns, a, b, r):  # type: ignore[no-untyped-def]
    """Fold a part of a row of float64 values."""
    for i in range(values.size):
        h = np.int32(np.int32(np.int32(columns[i] * a) + b) << r)
        buckets[i] += -values[i] if h < np.int32(0) else values[i]
