"""What the tests of measuring share: summaries of arrays, and what NumPy says about the same array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt

from monitor.measure.options import MeasureOptions
from monitor.measure.summary import SummaryBuilder
from storage.records import TensorKind, TensorSummary

Array = npt.NDArray[np.generic]
OPTIONS = MeasureOptions()

FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")


def dtype_of(name: str) -> np.dtype[np.generic]:
    return np.dtype(getattr(ml_dtypes, name, name))


def builder_of(values: Array, cuts: Sequence[int] = (), options: MeasureOptions = OPTIONS) -> SummaryBuilder:
    """Update one builder with the flat array, cut at the given places."""
    builder = SummaryBuilder(values.dtype.name, values.size, options)
    edges = [0, *sorted(cuts), values.size]
    for start, end in itertools.pairwise(edges):
        builder.update(start, values[start:end])
    return builder


def finish(builder: SummaryBuilder, name: str = "w", kind: TensorKind = TensorKind.PARAMETER) -> TensorSummary:
    return builder.finish(name=name, kind=kind, shape=(builder.n_elements,), position=0)


def summarise(
    values: Array, cuts: Sequence[int] = (), options: MeasureOptions = OPTIONS, name: str = "w"
) -> TensorSummary:
    flat = np.ascontiguousarray(values).reshape(-1)
    return finish(builder_of(flat, cuts, options), name)


def close(actual: float | None, expected: float, *, scale: float, tolerance: float = 1e-6) -> bool:
    return actual is not None and abs(actual - expected) <= tolerance * scale


def assert_equals_numpy(summary: TensorSummary, values: Array, tolerance: float = 1e-6) -> None:
    """Compare every statistic with float64 NumPy over the finite elements."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert summary.n_elements == wide.size
    assert summary.n_nan == np.count_nonzero(np.isnan(wide))
    assert summary.n_posinf == np.count_nonzero(wide == math.inf)
    assert summary.n_neginf == np.count_nonzero(wide == -math.inf)
    assert summary.n_zero == np.count_nonzero(wide == 0)
    if finite.size == 0:
        numbers = (summary.min, summary.max, summary.mean, summary.std)
        assert (*numbers, summary.norm_l1, summary.norm_l2, summary.abs_max) == (None,) * 7
        assert summary.quantiles == {}
        return
    assert (summary.min, summary.max, summary.abs_max) == (finite.min(), finite.max(), np.abs(finite).max())
    mean_abs = float(np.abs(finite).mean())
    norm, std = float(np.sqrt(np.sum(finite * finite))), float(finite.std())
    assert close(summary.mean, float(finite.mean()), scale=mean_abs, tolerance=tolerance)
    assert close(summary.norm_l1, math.fsum(np.abs(finite)), scale=math.fsum(np.abs(finite)), tolerance=tolerance)
    assert close(summary.norm_l2, norm, scale=norm, tolerance=tolerance)
    # What std can be told apart from zero is a matter of the rounding of the mean, in NumPy too.
    assert close(summary.std, std, scale=std + 1e-8 * mean_abs, tolerance=tolerance)
