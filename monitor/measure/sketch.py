"""The linear sketch: drift against any stored snapshot, without the old file.

A tensor of n elements is folded into k buckets, y[i mod k] += s(i) * x[i], with a sign s(i) that depends only on the
seed and on the element's place i in the whole tensor. So chunks, shards and machines may split the tensor anywhere,
and y(a) - y(b) = y(a - b): the norm of the difference of two sketches estimates the distance of the two tensors
without bias, with a relative standard deviation of at most about 1/sqrt(2k) (AMS / count sketch).

The signs: element i lies in row q = i // k and column j = i mod k. GROUP_ROWS neighbouring rows share one hash
h = (a * g[j] + b) mod 2**32 (multiply-add-shift; a odd and b from a 64-bit mix of seed and row group, g[j] random per
column), and row r of the group takes bit 31 - r of it. One sign per row, the cheaper choice, would be unbiased too,
but all of a row would then swing together: for a constant shift of a tensor the estimate would scatter by 140 %.

Non-finite elements count as zero. This module only handles finished sketches and the hash's constants; the kernel
fills the buckets. NumPy only: the daemon imports it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from storage.records import Sketch

GROUP_ROWS = 4
_MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
_COLUMN_STREAM = 0x5851F42D4C957F2D

FloatArray = npt.NDArray[np.float64]


def mix64(x: int) -> int:
    """Return the splitmix64 finaliser of `x` (Steele, Lea, Flood 2014), a bijection on 64 bits."""
    x &= _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def column_keys(n_buckets: int, seed: int) -> npt.NDArray[np.int32]:
    """Return g, one random 32-bit word per column; shape (n_buckets,)."""
    words = [mix64(mix64(seed ^ _COLUMN_STREAM) + (j + 1) * GOLDEN) >> 32 for j in range(n_buckets)]
    return np.array(words, dtype=np.uint32).view(np.int32)


def signs(n_elements: int, n_buckets: int, seed: int) -> npt.NDArray[np.int8]:
    """Return s(0..n_elements-1) as +1 and -1: the plain definition that the kernel is tested against."""
    columns = column_keys(n_buckets, seed).view(np.uint32).astype(np.uint64)
    index = np.arange(n_elements)
    row, column = index // n_buckets, index % n_buckets
    mixed = np.array([mix64(seed + (g + 1) * GOLDEN) for g in range(int(row[-1]) // GROUP_ROWS + 1)], dtype=np.uint64)
    key = mixed[row // GROUP_ROWS]
    multiplier, addend = (key >> np.uint64(32)) | np.uint64(1), key & np.uint64(0xFFFFFFFF)
    hashed = (multiplier * columns[column] + addend) & np.uint64(0xFFFFFFFF)
    bit = (hashed >> (31 - row % GROUP_ROWS).astype(np.uint64)) & np.uint64(1)
    return np.where(bit == 1, -1, 1).astype(np.int8)


def to_array(sketch: Sketch) -> FloatArray:
    """Return the buckets (or the elements, for kind "raw") as float64, shape (n,).

    Raises ValueError when the bytes do not fit the sketch's dtype.
    """
    if sketch.dtype not in ("float32", "float64"):
        raise ValueError(f"a sketch holds float32 or float64, not {sketch.dtype!r}")
    return np.frombuffer(sketch.values, dtype=np.dtype(sketch.dtype).newbyteorder("<")).astype(np.float64)


def comparable(a: Sketch, b: Sketch) -> bool:
    """Say whether two sketches were taken in the same way, so that their difference means something."""
    if a.kind == b.kind == "raw":
        return True
    return a.kind == b.kind and a.n_buckets == b.n_buckets and a.seed == b.seed


def _pair(a: Sketch, b: Sketch) -> tuple[FloatArray, FloatArray]:
    x, y = to_array(a), to_array(b)
    if not comparable(a, b) or x.shape != y.shape:
        raise ValueError("the sketches were taken with different buckets, seeds or shapes and cannot be compared")
    return x, y


def _norm(values: FloatArray) -> float:
    """Return the L2 norm without overflow or underflow in the squares; infinity only when the norm itself is."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(values / largest))


def norm(sketch: Sketch) -> float:
    """Return the estimated L2 norm of the tensor (exact for kind "raw")."""
    return _norm(to_array(sketch))


def difference_l2(a: Sketch, b: Sketch) -> float:
    """Return the estimated L2 norm of a - b (exact for kind "raw"); ValueError when they cannot be compared."""
    x, y = _pair(a, b)
    return _norm(x - y)


def cosine_distance(a: Sketch, b: Sketch) -> float | None:
    """Return the estimated 1 - cos of the angle between two tensors, 0..2; None when either norm is 0."""
    x, y = _pair(a, b)
    return cosine_distance_of(_norm(x), _norm(y), _norm(x - y))


def cosine_distance_of(norm_a: float, norm_b: float, difference: float) -> float | None:
    """Return 1 - cos from |a|, |b| and |a - b| by the law of cosines; None when a norm is 0 or not finite.

    Unlike 1 - a.b / (|a| |b|), this keeps its digits where a and b are nearly equal.
    """
    if not (norm_a > 0.0 and norm_b > 0.0 and math.isfinite(norm_a) and math.isfinite(norm_b)):
        return None
    a, b, d = 1.0, norm_b / norm_a, difference / norm_a
    if b == 0.0 or not math.isfinite(d) or not math.isfinite(b):
        return None
    return min(max(((d - (a - b)) / b) * (d + (a - b)) / 2.0, 0.0), 2.0)


def cosine(a: Sketch, b: Sketch) -> float | None:
    """Return the estimated cosine of the angle between two tensors, -1..1; None when either norm is 0."""
    distance = cosine_distance(a, b)
    return None if distance is None else 1.0 - distance
