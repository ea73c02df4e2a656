"""Exact drift of one tensor, from the values of both checkpoints.

Worker processes only, since it imports the kernel. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from monitor.measure import kernel
from monitor.measure.drift import finite_or_none
from monitor.measure.kernel import layout
from monitor.measure.sketch import cosine_distance_of
from monitor.measure.stored import Array, as_float64, as_stored
from monitor.read.reader import Chunk, CorruptError
from storage.records import TensorDrift


class ExactDrift:
    """Collect the differences of two tensors of `n_elements` elements each; chunks may come in any order."""

    __slots__ = ("_counts", "_n_seen", "_sums", "n_elements")

    def __init__(self, n_elements: int) -> None:
        self.n_elements = n_elements
        self._sums = np.zeros(layout.DRIFT_SUMS, dtype=np.float64)
        self._counts = np.zeros(layout.DRIFT_COUNTS, dtype=np.int64)
        self._n_seen = 0

    def update(self, new: Array, old: Array) -> None:
        """Add the same stretch of both tensors, 1-D; their dtypes may differ. ValueError when the lengths do."""
        if new.shape != old.shape or new.ndim != 1:
            raise ValueError(f"cannot compare {new.shape} with {old.shape}")
        self._n_seen += new.size
        into = (self._sums, self._counts)
        a, b = as_stored(new), as_stored(old)
        if a is not None and b is not None:
            kernel.compare32(a.bits, a.table, b.bits, b.table, into)
            return
        if new.dtype == old.dtype and new.dtype.kind in "iub":  # integers beyond 2**53 differ only as integers
            n_changed = int(np.count_nonzero(new != old))
            kernel.compare64(as_float64(new), as_float64(old), (self._sums, np.zeros_like(self._counts)))
            self._counts[layout.N_CHANGED] += n_changed
            return
        if new.dtype.kind == "c" or old.dtype.kind == "c":
            wide_new, wide_old = new.astype(np.complex128), old.astype(np.complex128)
            counts = np.zeros_like(self._counts)
            kernel.compare64(as_float64(wide_new), as_float64(wide_old), (self._sums, counts))
            halves = wide_new.view(np.int64).reshape(-1, 2) != wide_old.view(np.int64).reshape(-1, 2)
            self._counts[layout.N_CHANGED] += np.count_nonzero(halves.any(axis=1))
            self._counts[layout.N_PAIRS_NONFINITE] += counts[layout.N_PAIRS_NONFINITE]
            return
        kernel.compare64(as_float64(new), as_float64(old), into)

    def finish(self, name: str, reference_step: int | None) -> TensorDrift:
        """Return the drift; ValueError unless all elements were seen.

        With a non-finite element in either tensor there is no distance, relative or absolute (None), and
        `max_abs_difference` is over the pairs that are finite. For complex tensors it is over real and imaginary parts.
        `n_changed` counts elements whose bits differ (so -0.0 is a change from 0.0, and a NaN that stays is none).
        """
        if self._n_seen != self.n_elements:
            raise ValueError(f"tensor {name!r}: compared {self._n_seen} of {self.n_elements} elements")
        difference, new_norm, old_norm = (math.sqrt(s) for s in self._sums[: layout.LARGEST_DIFFERENCE].tolist())
        finite = int(self._counts[layout.N_PAIRS_NONFINITE]) == 0
        return TensorDrift(
            name=name,
            reference_step=reference_step,
            method="exact",
            difference_l2=finite_or_none(difference) if finite else None,
            relative_l2=finite_or_none(difference / old_norm) if finite and old_norm > 0.0 else None,
            cosine_distance=cosine_distance_of(new_norm, old_norm, difference) if finite else None,
            max_abs_difference=finite_or_none(float(self._sums[layout.LARGEST_DIFFERENCE])),
            n_changed=int(self._counts[layout.N_CHANGED]),
        )


class PairedDrift:
    """Feed the new tensor's chunks, and the old one's are drawn as needed, wherever they end; one chunk is held."""

    __slots__ = ("_drift", "_old", "_rest")

    def __init__(self, n_elements: int, old: Iterator[Chunk]) -> None:
        self._drift = ExactDrift(n_elements)
        self._old = old
        self._rest: Array = np.empty(0, dtype=np.uint8)

    def feed(self, values: Array) -> None:
        """Compare the next stretch; raises what reading the old tensor raises, CorruptError when it ends early."""
        done = 0
        while done < values.size:
            if self._rest.size == 0:
                chunk = next(self._old, None)
                if chunk is None:
                    raise CorruptError("the reference tensor ended early")
                self._rest = chunk.values
            n = min(values.size - done, self._rest.size)
            self._drift.update(values[done : done + n], self._rest[:n])
            self._rest = self._rest[n:]
            done += n

    def finish(self, name: str, reference_step: int | None) -> TensorDrift:
        """Return the drift; see ExactDrift.finish."""
        return self._drift.finish(name, reference_step)
