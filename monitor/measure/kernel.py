"""The fused single pass over a tensor's values: counts, extrema, moments, sketch and histogram at once.

Only this file imports Numba, and only worker processes import this file. It knows arrays, no tensors or files.

A tensor is worked through in rows of k elements (k = number of sketch buckets), so that a row lies on the sketch's
buckets one to one and LLVM can vectorise it. Extrema are kept as integers over the order-preserving bit pattern, since
float comparisons would not vectorise. Every row's deviations are taken from the mean before it, and rows are merged in
float64 by the formula of Chan, Golub, LeVeque (1979), so that std stays accurate where |mean| >> std.

Floats of up to 32 bits are summed in float64 over their float32 values, which are exact; so squares of float32 cannot
overflow. Kernels are compiled when first called, one for each way of storing values.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from monitor.measure.compile_cache import configure_compile_cache
from monitor.measure.histogram import MAGNITUDE_SHIFT, MAGNITUDES
from monitor.measure.sketch import GROUP_ROWS

_CACHE = configure_compile_cache()
if _CACHE is not None:
    numba.config.CACHE_DIR = str(_CACHE)  # type: ignore[attr-defined]

_FAST = {"reassoc", "nsz", "contract", "arcp"}  # never nnan or ninf: values are not ours
_jit = numba.njit(nogil=True, cache=_CACHE is not None, fastmath=_FAST)
_exact_jit = numba.njit(nogil=True, cache=_CACHE is not None)

# counts
N_FINITE, N_NAN, N_POSINF, N_NEGINF, N_ZERO = range(5)
COUNTS = 5
# moments
MIN, MAX, MEAN, M2, L1 = range(5)
MOMENTS = 5

_SIGN32 = np.int32(-0x80000000)
_MAGNITUDE32 = np.int32(0x7FFFFFFF)
_INFINITE32 = np.int32(0x7F800000)
_LOWEST32 = np.int32(-0x7F800000)  # the ordered pattern of the lowest finite float32; below are -inf and -NaN
_MAGNITUDE64 = np.int64(0x7FFFFFFFFFFFFFFF)
_U64 = np.uint64
_GOLDEN64 = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@_exact_jit
def _mix64(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> _U64(30))) * _MIX1
    x = (x ^ (x >> _U64(27))) * _MIX2
    return x ^ (x >> _U64(31))


@_exact_jit
def _group_key(seed, group):  # type: ignore[no-untyped-def]
    return _mix64(_U64(seed) + (_U64(group) + _U64(1)) * _GOLDEN64)


def _bits32(raw, table):  # type: ignore[no-untyped-def]
    """Return the float32 bit pattern of one stored value; the type of `raw` says how it is stored."""
    raise NotImplementedError("compiled code only")


@overload(_bits32)
def _bits32_overload(raw, table):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if raw == types.int32:  # float32
        return lambda raw, table: raw  # noqa: ARG005
    if raw == types.uint16:  # bfloat16: the upper half of a float32
        return lambda raw, table: np.int32(np.int32(raw) << np.int32(16))  # noqa: ARG005
    if raw == types.int16:  # float16
        return _half_bits
    if raw == types.uint8:  # any 8-bit float, by table
        return lambda raw, table: table[raw]
    return None


def _half_bits(raw, table):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Widen a float16: move the fields, rebias by a multiplication (exact, also for subnormals), keep inf and NaN."""
    wide = np.int32(raw)
    shifted = np.int32((wide & np.int32(0x7FFF)) << np.int32(13))
    scaled = np.float32(shifted.view(np.float32) * np.float32(2.0**112)).view(np.int32)
    special = np.int32(wide & np.int32(0x7C00)) == np.int32(0x7C00)
    magnitude = np.int32(shifted | _INFINITE32) if special else scaled
    return np.int32(magnitude | np.int32(wide & _SIGN32))


@_jit
def _decode(raw, table, row):  # type: ignore[no-untyped-def]
    for i in range(raw.size):
        row[i] = _bits32(raw[i], table)  # type: ignore[no-untyped-call]


@_jit
def _extrema32(bits):  # type: ignore[no-untyped-def]
    low, high, zeros = np.int32(0x7FFFFFFF), np.int32(-0x80000000), np.int32(0)
    for i in range(bits.size):
        b = bits[i]
        ordered = np.int32(b ^ np.int32((b >> np.int32(31)) & _MAGNITUDE32))
        low, high = min(low, ordered), max(high, ordered)
        zeros += np.int32(np.int32(b & _MAGNITUDE32) == np.int32(0))
    return low, high, zeros


@_exact_jit
def _drop_nonfinite32(bits, in_place, compact, counts):  # type: ignore[no-untyped-def]
    """Copy the finite elements, in place with zeros between and compact; count the others; return extrema and count."""
    low, high, n_finite = np.int32(0x7FFFFFFF), np.int32(-0x80000000), 0
    for i in range(bits.size):
        b = bits[i]
        magnitude = np.int32(b & _MAGNITUDE32)
        if magnitude < _INFINITE32:
            ordered = np.int32(b ^ np.int32((b >> np.int32(31)) & _MAGNITUDE32))
            low, high = min(low, ordered), max(high, ordered)
            in_place[i] = b
            compact[n_finite] = b
            n_finite += 1
        else:
            in_place[i] = 0
            if magnitude > _INFINITE32:
                counts[N_NAN] += 1
            elif b > 0:
                counts[N_POSINF] += 1
            else:
                counts[N_NEGINF] += 1
    return low, high, n_finite


@_jit
def _deviations(values, shift):  # type: ignore[no-untyped-def]
    s1, s2, l1 = 0.0, 0.0, 0.0
    for i in range(values.size):
        value = np.float64(values[i])
        deviation = value - shift
        s1 += deviation
        s2 += deviation * deviation
        l1 += abs(value)
    return s1, s2, l1


@_jit
def _fold32(values, buckets, columns, a, b, r):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        h = np.int32(np.int32(np.int32(columns[i] * a) + b) << r)
        sign = np.float32(-1.0) if h < np.int32(0) else np.float32(1.0)
        buckets[i] += np.float64(values[i] * sign)


@_jit
def _fold64(values, buckets, columns, a, b, r):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        h = np.int32(np.int32(np.int32(columns[i] * a) + b) << r)
        buckets[i] += -values[i] if h < np.int32(0) else values[i]


@_exact_jit
def _merge(n_row, mean_row, m2_row, n, moments):  # type: ignore[no-untyped-def]
    """Merge a row's mean and M2 into the running ones (Chan, Golub, LeVeque); `n` elements were there before."""
    if n == 0:
        moments[MEAN] = mean_row
        moments[M2] = m2_row
        return
    total = np.float64(n) + np.float64(n_row)
    delta = mean_row - moments[MEAN]
    moments[MEAN] += delta * (n_row / total)
    moments[M2] += m2_row + (delta * (n / total)) * (delta * n_row)


@_jit
def _row_moments(values, n_before, moments):  # type: ignore[no-untyped-def]
    """Add one row of finite values to the running moments of `n_before` values."""
    shift = moments[MEAN]
    if n_before == 0:  # no mean yet: take the row's own
        shift = _deviations(values, 0.0)[0] / values.size
    s1, s2, l1 = _deviations(values, shift)
    moments[L1] += l1
    mean_offset = s1 / values.size
    _merge(values.size, shift + mean_offset, max(s2 - s1 * mean_offset, 0.0), n_before, moments)


@_exact_jit
def _count_bins(values, table):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        value = np.float64(values[i])
        slot = (value.view(np.int64) & _MAGNITUDE64) >> np.int64(MAGNITUDE_SHIFT)
        if value > 0.0:
            table[slot + 1] += 1
        elif value < 0.0:
            table[slot + 1 + MAGNITUDES] += 1
        else:
            table[0] += 1


@_exact_jit
def _row_sampled(row, stride, seed):  # type: ignore[no-untyped-def]
    """Say whether the histogram counts this row: one row of every stratum of `stride` rows."""
    if stride == 1:
        return True
    stratum = row // stride
    return row - stratum * stride == np.int64(_mix64(_group_key(seed, stratum)) % _U64(stride))


@_exact_jit
def _from_ordered32(ordered):  # type: ignore[no-untyped-def]
    bits = np.int32(ordered ^ np.int32((ordered >> np.int32(31)) & _MAGNITUDE32))
    return np.float64(bits.view(np.float32))


@_exact_jit
def _row_sketch_key(seed, row):  # type: ignore[no-untyped-def]
    """Return (a, b, r) of the sign hash for one row; see monitor.measure.sketch."""
    key = _group_key(seed, row // GROUP_ROWS)
    return (
        np.int32(_U64(key >> _U64(32)) | _U64(1)),
        np.int32(key & _U64(0xFFFFFFFF)),
        np.int32(row % GROUP_ROWS),
    )


@_jit
def accumulate32(raw, table, place, keys, into):  # type: ignore[no-untyped-def]
    """Add stored values of at most 32 bits to the accumulators.

    `raw` int32 (float32 bits), uint16 (bfloat16), int16 (float16) or uint8 (an index into `table`, int32 float32
    bits). `place` is (offset of the first element, seed, histogram stride or 0); `keys` the int32 column keys;
    `into` is (counts, moments, buckets, histogram table).
    """
    offset, seed, stride = place
    counts, moments, buckets, histogram = into
    k = buckets.size
    decoded, in_place, compact = np.empty(k, np.int32), np.empty(k, np.int32), np.empty(k, np.int32)
    done = 0
    while done < raw.size:
        row, column = (offset + done) // k, (offset + done) % k
        size = min(k - column, raw.size - done)
        bits = decoded[:size]
        _decode(raw[done : done + size], table, bits)
        finite = bits
        low, high, zeros = _extrema32(bits)
        if high >= _INFINITE32 or low < _LOWEST32:
            low, high, n_finite = _drop_nonfinite32(bits, in_place, compact, counts)
            bits, finite = in_place[:size], compact[:n_finite]
        counts[N_ZERO] += zeros
        if finite.size > 0:
            values = finite.view(np.float32)
            moments[MIN] = min(moments[MIN], _from_ordered32(low))
            moments[MAX] = max(moments[MAX], _from_ordered32(high))
            _row_moments(values, counts[N_FINITE], moments)
            counts[N_FINITE] += finite.size
            a, b, r = _row_sketch_key(seed, row)
            _fold32(bits.view(np.float32), buckets[column : column + size], keys[column : column + size], a, b, r)
            if stride > 0 and _row_sampled(row, stride, seed):
                _count_bins(values, histogram)
        done += size


@_exact_jit
def _drop_nonfinite64(values, in_place, compact, counts, moments):  # type: ignore[no-untyped-def]
    """Do for float64 what _drop_nonfinite32 does, and count zeros and find extrema too; return the finite count."""
    n_finite = 0
    for i in range(values.size):
        value = values[i]
        if np.isfinite(value):
            moments[MIN] = min(moments[MIN], value)
            moments[MAX] = max(moments[MAX], value)
            counts[N_ZERO] += value == 0.0
            in_place[i] = value
            compact[n_finite] = value
            n_finite += 1
        else:
            in_place[i] = 0.0
            if np.isnan(value):
                counts[N_NAN] += 1
            elif value > 0:
                counts[N_POSINF] += 1
            else:
                counts[N_NEGINF] += 1
    return n_finite


@_jit
def accumulate64(values, place, keys, into):  # type: ignore[no-untyped-def]
    """Add float64 values to the accumulators; arguments as for accumulate32."""
    offset, seed, stride = place
    counts, moments, buckets, histogram = into
    k = buckets.size
    in_place, compact = np.empty(k, np.float64), np.empty(k, np.float64)
    done = 0
    while done < values.size:
        row, column = (offset + done) // k, (offset + done) % k
        size = min(k - column, values.size - done)
        n_finite = _drop_nonfinite64(values[done : done + size], in_place, compact, counts, moments)
        if n_finite > 0:
            _row_moments(compact[:n_finite], counts[N_FINITE], moments)
            counts[N_FINITE] += n_finite
            a, b, r = _row_sketch_key(seed, row)
            _fold64(in_place[:size], buckets[column : column + size], keys[column : column + size], a, b, r)
            if stride > 0 and _row_sampled(row, stride, seed):
                _count_bins(compact[:n_finite], histogram)
        done += size


@_exact_jit
def merge_moments(counts, moments, other_counts, other_moments):  # type: ignore[no-untyped-def]
    """Merge another accumulator's moments into `moments`, before its counts are added."""
    n_other = other_counts[N_FINITE]
    if n_other == 0:
        return
    moments[MIN] = min(moments[MIN], other_moments[MIN])
    moments[MAX] = max(moments[MAX], other_moments[MAX])
    moments[L1] += other_moments[L1]
    _merge(n_other, other_moments[MEAN], other_moments[M2], counts[N_FINITE], moments)


# sums of a comparison
DIFFERENCE2, NEW2, OLD2, LARGEST_DIFFERENCE = range(4)
DRIFT_SUMS = 4
# counts of a comparison
N_CHANGED, N_PAIRS_NONFINITE = range(2)
DRIFT_COUNTS = 2
_PAIRS = 4096
_INFINITE64 = np.int64(0x7FF0000000000000)


@_jit
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


@_exact_jit
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


@_jit
def _count_different(new, old):  # type: ignore[no-untyped-def]
    different = 0
    for i in range(new.size):
        different += new[i] != old[i]
    return different


@_jit
def compare32(new, new_table, old, old_table, into):  # type: ignore[no-untyped-def]
    """Compare stored values of at most 32 bits (see accumulate32) pair by pair; `into` is (sums, counts)."""
    sums, counts = into
    new_row, old_row = np.empty(_PAIRS, np.int32), np.empty(_PAIRS, np.int32)
    for start in range(0, new.size, _PAIRS):
        end = min(start + _PAIRS, new.size)
        a, b = new_row[: end - start], old_row[: end - start]
        _decode(new[start:end], new_table, a)
        _decode(old[start:end], old_table, b)
        counts[N_CHANGED] += _count_different(a, b)
        if not _compare(a.view(np.float32), b.view(np.float32), sums):
            _compare_finite(a.view(np.float32), b.view(np.float32), sums, counts)


@_jit
def compare64(new, old, into):  # type: ignore[no-untyped-def]
    """Compare float64 values pair by pair; `into` is (sums, counts)."""
    sums, counts = into
    for start in range(0, new.size, _PAIRS):
        end = min(start + _PAIRS, new.size)
        a, b = new[start:end], old[start:end]
        counts[N_CHANGED] += _count_different(a.view(np.int64), b.view(np.int64))
        if not _compare(a, b, sums):
            _compare_finite(a, b, sums, counts)


def empty_histogram() -> npt.NDArray[np.int64]:
    """Return a table of zeros for `into`: one slot a bin, the positive half first (see histogram.from_counts)."""
    return np.zeros(2 * MAGNITUDES, dtype=np.int64)
