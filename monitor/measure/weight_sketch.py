"""All parameters of a snapshot in one sketch, so that whole runs can be compared at the price of one page a snapshot.

The sketches of the tensors are themselves vectors, and folding those again with fresh signs is a linear sketch of all
parameters at once: the norm of the difference of two of them estimates |W - W0| without bias, with a relative standard
deviation of about 1/sqrt(2k), and exactly where all parameters together fit into k buckets. It is kept for every
snapshot when the sketches of the tensors are thinned.

Pure, NumPy only: the daemon imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from monitor.measure import sketch
from storage.records import Sketch, TensorKind, TensorSummary

KIND = "weights"
_SEED_MAX = 2**63 - 1  # databases keep signed 64-bit integers


def weight_sketch(tensors: Iterable[TensorSummary]) -> Sketch | None:
    """Return one sketch of all parameters, ties once; `kind` is "weights", `dtype` float32 where that suffices.

    The seed is a hash of the parameters' names and shapes and of how their sketches were taken, so that two sketches
    can be compared just when they speak of the same parameters (`sketch.comparable`); the order in the checkpoint and
    the dtype do not matter. None without parameters, and when one of them is not finite or has no sketch: a part of
    the weights would look like all of them.
    """
    parameters = sorted(
        (t for t in tensors if t.kind is TensorKind.PARAMETER and t.tied_to is None and t.n_elements > 0),
        key=lambda t: t.name,
    )
    sketches = [t.sketch for t in parameters if t.sketch is not None and t.n_nonfinite == 0]
    if not parameters or len(sketches) < len(parameters):
        return None
    n_buckets = max(s.n_buckets for s in sketches)
    seed = _seed(parameters, sketches)
    signs = _Signs(n_buckets, seed)
    buckets = np.zeros(n_buckets)
    offset = 0
    for number, part in enumerate(sketches):
        values = sketch.to_array(part)
        # Each tensor begins where the one before ended: what fits into the buckets as a whole never collides.
        places = (offset + np.arange(values.size)) % n_buckets
        buckets += np.bincount(places, weights=values * signs.of(number, values.size), minlength=n_buckets)
        offset += values.size
    if not np.isfinite(buckets).all():
        return None
    narrow = all(s.dtype == "float32" for s in sketches) and np.abs(buckets).max() <= np.finfo(np.float32).max
    dtype = "float32" if narrow else "float64"
    return Sketch(
        kind=KIND,
        n_buckets=n_buckets,
        seed=seed,
        dtype=dtype,
        values=buckets.astype(np.dtype(dtype).newbyteorder("<")).tobytes(),
    )


class _Signs:
    """Signs for the values of the n-th tensor, by the multiply-add-shift hash of the sketches themselves."""

    def __init__(self, n_buckets: int, seed: int) -> None:
        self._columns = sketch.column_keys(n_buckets, seed).view(np.uint32).astype(np.uint64)
        self._seed = seed

    def of(self, number: int, n_values: int) -> sketch.FloatArray:
        """Return +1.0 and -1.0, shape (n_values,)."""
        key = sketch.mix64(self._seed + (number + 1) * sketch.GOLDEN)
        multiplier, addend = np.uint64((key >> 32) | 1), np.uint64(key & 0xFFFFFFFF)
        columns = np.resize(self._columns, n_values)
        hashed = (multiplier * columns + addend) & np.uint64(0xFFFFFFFF)
        return np.where(hashed >> np.uint64(31) == 1, -1.0, 1.0)


def _seed(parameters: Sequence[TensorSummary], sketches: Sequence[Sketch]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for tensor, part in zip(parameters, sketches, strict=True):
        told = (tensor.name, tensor.shape, part.kind, part.n_buckets, part.seed)
        digest.update(repr(told).encode("utf-8", "surrogateescape") + b"\0")
    return int.from_bytes(digest.digest(), "little") & _SEED_MAX
