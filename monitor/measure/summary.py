"""One tensor's values, in any chunks, to a TensorSummary: the monoid of this project.

`update` and `merge` may split a tensor anywhere and in any order; the result is what float64 NumPy says about the
whole. This module knows dtypes and records; how the pass is made fast is the kernel's business. Worker processes only,
since it imports the kernel.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from monitor.measure import histogram as bins
from monitor.measure import kernel, sketch
from monitor.measure.kernel import layout
from monitor.measure.options import MeasureOptions
from monitor.measure.stored import Array, as_float64, as_stored, is_stored_float, numpy_dtype
from storage.records import Histogram, Sketch, TensorKind, TensorSummary

_FLOAT32_EXACT = {"bool", "int8", "uint8", "int16", "uint16", "int2", "uint2", "int4", "uint4", "complex64"}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LITTLE_ENDIAN: dict[str, np.dtype[np.generic]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}


@functools.cache
def _column_keys(n_buckets: int, seed: int) -> npt.NDArray[np.int32]:
    return sketch.column_keys(n_buckets, seed)


class SummaryBuilder:
    """Collect the statistics of one tensor.

    Complex tensors: an element counts as NaN when either part is NaN, else as infinite (with the sign of the first
    infinite part), and as zero when both parts are zero; min, max, mean, std, norms and the histogram are over the
    real and imaginary parts of the finite elements together, so that norm_l2 is the norm over |z|; the sketch folds
    the parts one after another. Integers beyond 2**53 are rounded to float64.
    """

    __slots__ = (
        "_buckets",
        "_complex",
        "_complex_counts",
        "_counts",
        "_dtype",
        "_histogram",
        "_keys",
        "_moments",
        "_n_seen",
        "_name",
        "_options",
        "_parts",
        "_raw",
        "_stride",
        "n_elements",
    )

    def __init__(self, dtype: str, n_elements: int, options: MeasureOptions) -> None:
        self.n_elements = n_elements
        self._options = options
        self._dtype, self._name = numpy_dtype(dtype), dtype
        self._complex = self._dtype.kind == "c"
        self._parts = n_elements * (2 if self._complex else 1)
        self._keys = _column_keys(options.sketch_buckets, options.sketch_seed)
        self._counts = np.zeros(layout.COUNTS, dtype=np.int64)
        self._moments = np.array([math.inf, -math.inf, 0.0, 0.0, 0.0])
        self._buckets = np.zeros(options.sketch_buckets, dtype=np.float64)
        self._histogram = layout.empty_histogram()
        self._stride = bins.sample_stride(self._parts, options.sketch_buckets) if options.histogram else 0
        self._raw = np.zeros(self._parts, dtype=np.float64) if self._parts <= options.sketch_buckets else None
        self._complex_counts = np.zeros(layout.COUNTS, dtype=np.int64)
        self._n_seen = 0

    def update(self, offset_elements: int, values: Array) -> None:
        """Add the 1-D `values` (of the builder's dtype) that begin at element `offset_elements`.

        Raises ValueError for another dtype or a range outside the tensor; that ranges do not overlap is the caller's
        promise, and `finish` checks their sum.
        """
        if values.dtype != self._dtype or values.ndim != 1:
            raise ValueError(f"expected 1-D {self._dtype}, not {values.ndim}-D {values.dtype}")
        if offset_elements < 0 or offset_elements + values.size > self.n_elements:
            raise ValueError(f"elements {offset_elements}+{values.size} lie outside of {self.n_elements}")
        self._n_seen += values.size
        if values.size == 0:
            return
        into = (self._counts, self._moments, self._buckets, self._histogram)
        start = offset_elements
        stored = as_stored(values)
        if stored is None:
            if self._complex:
                values, start = self._complex_parts(values), 2 * offset_elements
            place = (start, self._options.sketch_seed, self._stride)
            kernel.accumulate64(as_float64(values), place, self._keys, into)
        else:
            place = (start, self._options.sketch_seed, self._stride)
            kernel.accumulate32(stored.bits, stored.table, place, self._keys, into)
        if self._raw is not None:
            wide = as_float64(values)
            self._raw[start : start + wide.size] = np.where(np.isfinite(wide), wide, 0.0)

    def _complex_parts(self, values: Array) -> npt.NDArray[np.float64]:
        """Return real and imaginary parts in turn, NaN for both parts of an element that is not finite; count those."""
        wide = values.astype(np.complex128)
        real, imag = wide.real, wide.imag
        finite = np.isfinite(wide)
        is_nan = np.isnan(real) | np.isnan(imag)
        infinite = np.where(np.isinf(real), real, imag)[~finite & ~is_nan]
        self._complex_counts[layout.N_NAN] += np.count_nonzero(is_nan)
        self._complex_counts[layout.N_POSINF] += np.count_nonzero(infinite > 0)
        self._complex_counts[layout.N_NEGINF] += np.count_nonzero(infinite < 0)
        self._complex_counts[layout.N_ZERO] += np.count_nonzero(wide == 0)
        wide[~finite] = complex(math.nan, math.nan)
        return wide.view(np.float64)

    def merge(self, other: SummaryBuilder) -> None:
        """Add what another builder saw of the same tensor; ValueError when it was built for another one."""
        if (self._dtype, self.n_elements, self._options) != (other._dtype, other.n_elements, other._options):
            raise ValueError("only builders of the same tensor and options can be merged")
        kernel.merge_moments(self._counts, self._moments, other._counts, other._moments)
        self._counts += other._counts
        self._complex_counts += other._complex_counts
        self._buckets += other._buckets
        self._histogram += other._histogram
        self._n_seen += other._n_seen
        if self._raw is not None and other._raw is not None:
            self._raw += other._raw

    def finish(
        self, *, name: str, kind: TensorKind, shape: tuple[int, ...], position: int, tied_to: str | None = None
    ) -> TensorSummary:
        """Return the summary; ValueError unless all elements were seen once.

        A statistic that overflows float64 is None, as is every one over no finite element. Like NumPy's, norm_l2 and
        std of float64 tensors lose their digits below 1e-150, where squares leave float64's range.
        """
        if self._n_seen != self.n_elements:
            raise ValueError(f"tensor {name!r}: saw {self._n_seen} of {self.n_elements} elements")
        n_finite = int(self._counts[layout.N_FINITE])
        low, high, mean, m2, l1 = (float(m) for m in self._moments) if n_finite else [math.nan] * 5
        found = self._find_histogram()
        counted = self._complex_counts if self._complex else self._counts
        return TensorSummary(
            name=name,
            kind=kind,
            dtype=self._name,
            shape=shape,
            position=position,
            n_elements=self.n_elements,
            n_nan=int(counted[layout.N_NAN]),
            n_posinf=int(counted[layout.N_POSINF]),
            n_neginf=int(counted[layout.N_NEGINF]),
            n_zero=int(counted[layout.N_ZERO]),
            min=_finite(low + 0.0),  # + 0.0 turns -0.0 into 0.0
            max=_finite(high + 0.0),
            mean=_finite(mean),
            std=_finite(math.sqrt(m2 / n_finite)) if n_finite else None,
            norm_l1=_finite(l1),
            norm_l2=_finite(math.sqrt(m2 + n_finite * mean * mean)) if n_finite else None,
            abs_max=_finite(max(abs(low), abs(high))),
            quantiles=self._find_quantiles(found, low, high),
            histogram=found,
            sketch=self._find_sketch(),
            tied_to=tied_to,
        )

    def _find_histogram(self) -> Histogram | None:
        if not self._options.histogram:
            return None
        return bins.from_counts(self._histogram, exact=self._stride == 1)

    def _find_quantiles(self, found: Histogram | None, low: float, high: float) -> dict[str, float]:
        """Return exact quantiles where all elements are at hand and finite, else those of the histogram."""
        if found is None:
            return {}
        if self._raw is None or found.n_sampled != self._raw.size:
            return bins.quantiles(found, self._options.quantiles, low, high)
        return bins.quantiles_of(np.sort(self._raw), self._options.quantiles)

    def _find_sketch(self) -> Sketch:
        values = self._buckets if self._raw is None else self._raw
        narrow = self._name in _FLOAT32_EXACT or is_stored_float(self._dtype)
        if narrow and max(float(values.max(initial=0.0)), -float(values.min(initial=0.0))) <= _FLOAT32_MAX:
            dtype = "float32"
        else:
            dtype = "float64"
        return Sketch(
            kind="sketch" if self._raw is None else "raw",
            n_buckets=self._options.sketch_buckets,
            seed=self._options.sketch_seed,
            dtype=dtype,
            values=values.astype(_LITTLE_ENDIAN[dtype]).tobytes(),
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
