"""The pass over a chunk: rows and groups of rows added to a tensor's accumulators.

Compiled code, and the entry points that SummaryBuilder calls; see the package for the method.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from monitor.measure.histogram import MAGNITUDE_SHIFT, MAGNITUDES
from monitor.measure.kernel.compiling import entry, exact_jit, jit
from monitor.measure.kernel.layout import L1, M2, MAX, MEAN, MIN, N_FINITE, N_ZERO
from monitor.measure.kernel.reductions import (
    add_centred_group,
    add_group,
    bit_extremes,
    count_zeros,
    deviations32,
    deviations64,
    deviations_wide,
    drop_nonfinite,
    fold64,
    fold_row,
)
from monitor.measure.kernel.values import SIGN32, U64, decode, group_key
from monitor.measure.sketch import GROUP_ROWS

_SIGN64 = np.int64(-0x8000000000000000)
_MAGNITUDE64 = np.int64(0x7FFFFFFFFFFFFFFF)
# How many groups are folded in float32 before their sums are added in float64.
_GROUPS_MAX = 8
# The largest finite bit patterns, positive as signed and negative as unsigned; whole groups, of which 32 values are
# added in float32, may hold magnitudes up to 2**122.
_MAX32, _UMAX32 = np.int32(0x7F7FFFFF), np.uint32(0xFF7FFFFF)
_GROUP_MAX32, _GROUP_UMAX32 = np.int32(0x7C800000), np.uint32(0xFC800000)
_MAX64, _UMAX64 = np.int64(0x7FEFFFFFFFFFFFFF), np.uint64(0xFFEFFFFFFFFFFFFF)
_SLOTS_FINITE = np.int64(0x7FF0000000000000 >> MAGNITUDE_SHIFT)
# A row's sum of squares outside of this is summed again in float64: squares there overflow or lose their digits.
_SQUARES_MIN, _SQUARES_MAX = 1e-30, 1e30


@exact_jit
def _add_extrema32(raw, patterns, counts, moments):  # type: ignore[no-untyped-def]
    """Add the extrema and zeros of a block of finite values."""
    smax, smin, umax, umin = patterns
    negative = np.int32(umax)
    low = negative if negative < np.int32(0) else smin
    high = smax if smax >= np.int32(0) else smin
    moments[MIN] = min(moments[MIN], np.float64(np.int32(low).view(np.float32)))
    moments[MAX] = max(moments[MAX], np.float64(np.int32(high).view(np.float32)))
    if umin == np.uint32(0) or smin == SIGN32:
        counts[N_ZERO] += count_zeros(raw)


@exact_jit
def _add_extrema64(values, patterns, counts, moments):  # type: ignore[no-untyped-def]
    """Add the extrema and zeros of a block of finite float64 values."""
    smax, smin, umax, umin = patterns
    negative = np.int64(umax)
    low = negative if negative < np.int64(0) else smin
    high = smax if smax >= np.int64(0) else smin
    moments[MIN] = min(moments[MIN], np.int64(low).view(np.float64))
    moments[MAX] = max(moments[MAX], np.int64(high).view(np.float64))
    if umin == np.uint64(0) or smin == _SIGN64:
        for i in range(values.size):
            counts[N_ZERO] += values[i] == 0.0


@exact_jit
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


@exact_jit
def _merge_sums(size, shift, sums, n_before, moments):  # type: ignore[no-untyped-def]
    s1, s2, l1 = sums
    moments[L1] += l1
    mean_offset = s1 / size
    _merge(size, shift + mean_offset, max(s2 - s1 * mean_offset, 0.0), n_before, moments)


@jit
def _add_moments32(raw, k, n_before, moments):  # type: ignore[no-untyped-def]
    """Add finite values as float32 bits, in rows of `k`, to the running moments of `n_before` values."""
    shift = moments[MEAN]
    if n_before == 0:  # no mean yet: take the first row's own
        first = raw[: min(k, raw.size)]
        shift = deviations_wide(first, 0.0)[0] / first.size
    shift = np.float64(np.float32(shift))
    s1, s2, l1 = 0.0, 0.0, 0.0
    for start in range(0, raw.size, k):
        row = raw[start : min(start + k, raw.size)]
        t1, t2, m1 = deviations32(row, np.float32(shift))
        if not _SQUARES_MIN < t2 < _SQUARES_MAX:
            t1, t2, m1 = deviations_wide(row, shift)
        s1 += t1
        s2 += t2
        l1 += m1
    _merge_sums(raw.size, shift, (s1, s2, l1), n_before, moments)


@jit
def _add_moments64(values, n_before, moments):  # type: ignore[no-untyped-def]
    """Add finite float64 values to the running moments of `n_before` values."""
    shift = moments[MEAN]
    if n_before == 0:
        shift = deviations64(values, 0.0)[0] / values.size
    _merge_sums(values.size, shift, deviations64(values, shift), n_before, moments)


@exact_jit
def _count_bins(values, table):  # type: ignore[no-untyped-def]
    """Count the finite values; see monitor.measure.histogram for the bins."""
    for i in range(values.size):
        value = np.float64(values[i])  # exact for float32
        slot = (value.view(np.int64) & _MAGNITUDE64) >> np.int64(MAGNITUDE_SHIFT)
        if slot >= _SLOTS_FINITE:
            continue
        if value > 0.0:
            table[slot + 1] += 1
        elif value < 0.0:
            table[slot + 1 + MAGNITUDES] += 1
        else:
            table[0] += 1


@exact_jit
def _next_sampled(row, stride, seed):  # type: ignore[no-untyped-def]
    """Return the first row from `row` on that the histogram counts: one of every stratum; never one for stride 0."""
    if stride == 0:
        return np.int64(0x7FFFFFFFFFFFFFFF)
    if stride == 1:
        return np.int64(row)
    stratum = row // stride
    while True:
        chosen = stratum * stride + np.int64(group_key(seed, stratum) % U64(stride))
        if chosen >= row:
            return chosen
        stratum += 1


@exact_jit
def _row_sketch_key(seed, row):  # type: ignore[no-untyped-def]
    """Return (a, b, r) of the sign hash for one row; see monitor.measure.sketch."""
    key = group_key(seed, row // GROUP_ROWS)
    return (
        np.int32(U64(key >> U64(32)) | U64(1)),
        np.int32(key & U64(0xFFFFFFFF)),
        np.int32(row % GROUP_ROWS),
    )


@jit
def _add_group(raw, row, place, partial, into):  # type: ignore[no-untyped-def]
    """Add GROUP_ROWS whole rows; change nothing and return False when an element is too large or not finite.

    `partial` is (float32 sums, column keys); the sums are still to be added to the buckets.
    """
    counts, moments, _, _ = into
    patterns = bit_extremes(raw)  # type: ignore[no-untyped-call]
    if patterns[0] > _GROUP_MAX32 or patterns[2] > _GROUP_UMAX32:
        return False
    _add_extrema32(raw, patterns, counts, moments)
    sums, keys = partial
    shift = moments[MEAN]
    if counts[N_FINITE] == 0:  # no mean yet: take the group's own
        shift = deviations_wide(raw, 0.0)[0] / raw.size
    shift = np.float64(np.float32(shift))
    a, b, _ = _row_sketch_key(place[1], row)
    if shift * shift * np.float64(counts[N_FINITE]) < moments[M2]:  # no digits are lost where |mean| < std
        shift = 0.0
        found = add_centred_group(raw, sums, keys, (a, b), np.float32(shift))
    else:
        found = add_group(raw, sums, keys, (a, b), np.float32(shift))
    if not _SQUARES_MIN < found[1] < _SQUARES_MAX:
        found = deviations_wide(raw, shift)
    _merge_sums(raw.size, shift, found, counts[N_FINITE], moments)
    counts[N_FINITE] += raw.size
    return True


@exact_jit
def _flush(sums, buckets):  # type: ignore[no-untyped-def]
    """Move the sums of the last groups into the buckets."""
    for i in range(buckets.size):
        buckets[i] += np.float64(sums[i])
        sums[i] = np.float32(0)


@jit
def _add_part(raw, row, column, place, keys, into, scratch):  # type: ignore[no-untyped-def]
    """Add a row or a part of one, whatever it holds; `raw` are float32 bits."""
    counts, moments, buckets, _ = into
    in_place, compact = scratch
    patterns = bit_extremes(raw)  # type: ignore[no-untyped-call]
    whole, finite = raw, raw
    if patterns[0] > _MAX32 or patterns[2] > _UMAX32:
        n_finite = drop_nonfinite(raw.view(np.float32), in_place.view(np.float32), compact.view(np.float32), counts)
        whole, finite = in_place[: raw.size], compact[:n_finite]
        patterns = bit_extremes(finite)  # type: ignore[no-untyped-call]
    if finite.size == 0:
        return
    _add_extrema32(finite, patterns, counts, moments)
    _add_moments32(finite, buckets.size, counts[N_FINITE], moments)
    counts[N_FINITE] += finite.size
    a, b, r = _row_sketch_key(place[1], row)
    end = column + raw.size
    fold_row(whole, buckets[column:end], keys[column:end], a, b, r)


def _as_stored(raw, table, scratch):  # type: ignore[no-untyped-def]
    """Return values as the fast loops take them: 8-bit floats decoded into scratch, all others themselves."""
    raise NotImplementedError("compiled code only")


@overload(_as_stored)
def _as_stored_overload(raw, table, scratch):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if raw.dtype != types.uint8:
        return lambda raw, table, scratch: raw  # noqa: ARG005

    def decoded(raw, table, scratch):  # type: ignore[no-untyped-def]
        decode(raw, table, scratch)
        return scratch[: raw.size]

    return decoded


@entry
def accumulate32(raw, table, place, keys, into):  # type: ignore[no-untyped-def]
    """Add stored values of at most 32 bits to the accumulators.

    `raw` int32 (float32 bits), uint16 (bfloat16), int16 (float16) or uint8 (an index into `table`, int32 float32
    bits). `place` is (offset of the first element, seed, histogram stride or 0); `keys` the int32 column keys;
    `into` is (counts, moments, buckets, histogram table).
    """
    offset, seed, stride = place
    k = keys.size
    group = GROUP_ROWS * k
    partial, n_partial = (np.zeros(k, np.float32), keys), 0
    decoded, bits = np.empty(group, np.int32), np.empty(k, np.int32)
    scratch = (np.empty(k, np.int32), np.empty(k, np.int32))
    sampled = _next_sampled(offset // k, stride, seed)
    done, row, column = 0, offset // k, offset % k
    tried = -1
    while done < raw.size:
        left = raw.size - done
        size = min(k - column, left)
        if column == 0 and row % GROUP_ROWS == 0 and left >= group and row != tried:
            block = _as_stored(raw[done : done + group], table, decoded)  # type: ignore[no-untyped-call]
            if _add_group(block, row, place, partial, into):
                size = group
                n_partial += 1
                if n_partial == _GROUPS_MAX:
                    _flush(partial[0], into[2])
                    n_partial = 0
            tried = row  # where the group is not finite, its rows are added one by one
        if size != group:
            part = bits[:size]
            decode(raw[done : done + size], table, part)
            _add_part(part, row, column, place, keys, into, scratch)
        done += size
        reached = (offset + done) // k
        while sampled < reached or (sampled == reached and (offset + done) % k > 0 and done == raw.size):
            start, end = max(sampled * k - offset, 0), min((sampled + 1) * k - offset, raw.size)
            part = bits[: end - start]
            decode(raw[start:end], table, part)
            _count_bins(part.view(np.float32), into[3])
            sampled = _next_sampled(sampled + 1, stride, seed)
        row, column = reached, (offset + done) % k
    if n_partial > 0:
        _flush(partial[0], into[2])


@entry
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
        whole = values[done : done + size]
        finite = whole
        patterns = bit_extremes(whole.view(np.int64))  # type: ignore[no-untyped-call]
        if patterns[0] > _MAX64 or patterns[2] > _UMAX64:
            n_finite = drop_nonfinite(whole, in_place, compact, counts)
            whole, finite = in_place[:size], compact[:n_finite]
            patterns = bit_extremes(finite.view(np.int64))  # type: ignore[no-untyped-call]
        if finite.size > 0:
            _add_extrema64(finite, patterns, counts, moments)
            _add_moments64(finite, counts[N_FINITE], moments)
            counts[N_FINITE] += finite.size
            a, b, r = _row_sketch_key(seed, row)
            fold64(whole, buckets[column : column + size], keys[column : column + size], a, b, r)
            if row == _next_sampled(row, stride, seed):
                _count_bins(finite, histogram)
        done += size


@entry
def merge_moments(counts, moments, other_counts, other_moments):  # type: ignore[no-untyped-def]
    """Merge another accumulator's moments into `moments`, before its counts are added."""
    n_other = other_counts[N_FINITE]
    if n_other == 0:
        return
    moments[MIN] = min(moments[MIN], other_moments[MIN])
    moments[MAX] = max(moments[MAX], other_moments[MAX])
    moments[L1] += other_moments[L1]
    _merge(n_other, other_moments[MEAN], other_moments[M2], counts[N_FINITE], moments)
