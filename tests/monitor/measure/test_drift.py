from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from monitor.measure.drift import sketch_drift, update_ratio
from monitor.measure.exact_drift import ExactDrift, PairedDrift
from monitor.read.reader import Chunk, CorruptError
from storage.records import TensorDrift, TensorKind
from tests.support.measuring import Array, summarise

N = 30_000

Floats = npt.NDArray[np.float32]


def _pair(size: int = N, step: float = 1e-3) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    old = rng.standard_normal(size).astype(np.float32)
    return (old + step * rng.standard_normal(size)).astype(np.float32), old


def _exact(new: Array, old: Array) -> TensorDrift:
    drift = ExactDrift(new.size)
    for start in range(0, new.size, 5000):
        drift.update(new[start : start + 5000], old[start : start + 5000])
    return drift.finish("w", 3)


def test_exact_drift_equals_numpy() -> None:
    new, old = _pair()
    new[:100] = old[:100]
    drift = _exact(new, old)
    difference = new.astype(np.float64) - old
    norm, base = float(np.linalg.norm(difference)), float(np.linalg.norm(old.astype(np.float64)))
    cosine = float(new.astype(np.float64) @ old / np.linalg.norm(new.astype(np.float64)) / base)
    assert (drift.method, drift.reference_step, drift.name) == ("exact", 3, "w")
    assert drift.difference_l2 == pytest.approx(norm, rel=1e-9)
    assert drift.relative_l2 == pytest.approx(norm / base, rel=1e-9)
    assert drift.cosine_distance == pytest.approx(1 - cosine, rel=1e-6)
    assert drift.max_abs_difference == pytest.approx(float(np.abs(difference).max()), rel=1e-12)
    assert drift.n_changed == np.count_nonzero(new != old)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, np.int32, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_exact_drift_of_other_dtypes_equals_numpy(dtype: type[np.generic]) -> None:
    old: npt.NDArray[Any] = (np.random.default_rng(1).standard_normal(N) * 4).astype(dtype)
    new = old.copy()
    new[::3] = old[::-1][::3]
    wide_new, wide_old = new.astype(np.complex128), old.astype(np.complex128)
    drift = _exact(new, old)
    assert drift.difference_l2 == pytest.approx(float(np.linalg.norm(wide_new - wide_old)), rel=1e-9)
    assert drift.n_changed == np.count_nonzero(wide_new != wide_old)


def test_a_change_of_dtype_is_compared_by_value() -> None:
    new, old = _pair()
    drift = _exact(new.astype(np.float64), old.astype(ml_dtypes.bfloat16))
    truth = np.linalg.norm(new.astype(np.float64) - old.astype(ml_dtypes.bfloat16).astype(np.float64))
    assert drift.difference_l2 == pytest.approx(float(truth), rel=1e-9)


def test_a_change_of_one_beyond_two_to_the_53_is_a_change() -> None:
    old = np.full(10, 2**60, dtype=np.int64)
    assert _exact(old + 1, old).n_changed == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_element_that_is_not_finite_leaves_no_distance_but_the_counts(bad: float) -> None:
    new, old = _pair()
    new[7] = bad
    drift = _exact(new, old)
    assert (drift.difference_l2, drift.relative_l2, drift.cosine_distance) == (None, None, None)
    assert drift.n_changed == np.count_nonzero(new != old)
    finite = np.delete(np.abs(new - old.astype(np.float64)), 7)
    assert drift.max_abs_difference == pytest.approx(float(finite.max()))
    assert _exact(new, new.copy()).n_changed == 0


def test_equal_tensors_have_exactly_no_drift() -> None:
    _, old = _pair()
    drift = _exact(old, old.copy())
    assert (drift.difference_l2, drift.relative_l2, drift.cosine_distance, drift.n_changed) == (0.0, 0.0, 0.0, 0)


def test_a_zero_reference_has_no_relative_drift() -> None:
    new, old = _pair()
    drift = _exact(new, np.zeros_like(old))
    assert drift.difference_l2 is not None
    assert (drift.relative_l2, drift.cosine_distance) == (None, None)


def test_unequal_stretches_and_missing_elements_are_refused() -> None:
    drift = ExactDrift(10)
    with pytest.raises(ValueError, match="compare"):
        drift.update(np.zeros(3, np.float32), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="0 of 10"):
        drift.finish("w", None)


def test_chunks_that_end_at_different_places_are_paired() -> None:
    new, old = _pair()
    paired = PairedDrift(N, iter([Chunk(i, old[i : i + 777]) for i in range(0, N, 777)]))
    for start in range(0, N, 1000):
        paired.feed(new[start : start + 1000])
    assert paired.finish("w", 3).difference_l2 == pytest.approx(_exact(new, old).difference_l2, rel=1e-12)


def test_a_reference_that_ends_early_is_an_error() -> None:
    paired = PairedDrift(10, iter([Chunk(0, np.zeros(4, np.float32))]))
    with pytest.raises(CorruptError, match="ended early"):
        paired.feed(np.zeros(10, np.float32))


@pytest.mark.parametrize("size", [500, N])
def test_sketched_drift_agrees_with_exact_drift(size: int) -> None:
    new, old = _pair(size)
    exact, sketched = _exact(new, old), sketch_drift(summarise(new), summarise(old), 3)
    assert sketched is not None
    tolerance = 1e-6 if size < 1021 else 0.08
    assert (sketched.method, sketched.reference_step) == ("sketch", 3)
    assert sketched.difference_l2 == pytest.approx(exact.difference_l2, rel=tolerance)
    assert sketched.relative_l2 == pytest.approx(exact.relative_l2, rel=tolerance)
    assert sketched.cosine_distance == pytest.approx(exact.cosine_distance, rel=0.2)
    assert (sketched.max_abs_difference, sketched.n_changed) == (None, None)


def test_tensors_of_another_shape_or_without_a_sketch_have_no_drift() -> None:
    new, old = summarise(np.ones(10)), summarise(np.ones(12))
    assert sketch_drift(new, old, 1) is None
    assert sketch_drift(new, dataclasses.replace(new, sketch=None), 1) is None


def test_sketched_drift_has_no_numbers_where_an_element_is_not_finite() -> None:
    new, old = _pair()
    new[3] = math.nan
    for a, b in ((new, old), (old, new)):
        drift = sketch_drift(summarise(a), summarise(b), 1)
        assert drift is not None
        assert (drift.difference_l2, drift.relative_l2, drift.cosine_distance) == (None, None, None)


def test_the_update_ratio_is_over_all_parameters_once() -> None:
    rng = np.random.default_rng(2)
    old = {name: rng.standard_normal(N) for name in ("a", "b", "statistics", "tied")}
    new = {name: values + 0.01 * rng.standard_normal(N) for name, values in old.items()}
    old_tensors = {name: summarise(values, name=name) for name, values in old.items()}
    old_tensors["statistics"] = dataclasses.replace(old_tensors["statistics"], kind=TensorKind.BUFFER)
    old_tensors["tied"] = dataclasses.replace(old_tensors["tied"], tied_to="a")
    drifts = [dataclasses.replace(_exact(new[name], old[name]), name=name) for name in old]
    moved = math.hypot(*(float(np.linalg.norm(new[n] - old[n])) for n in ("a", "b")))
    base = math.hypot(*(float(np.linalg.norm(old[n])) for n in ("a", "b")))
    assert update_ratio(drifts, old_tensors, 10) == pytest.approx(moved / base / 10, rel=1e-9)
    assert update_ratio(drifts, old_tensors, 0) is None
    assert update_ratio(drifts, old_tensors, None) is None
    assert update_ratio([], old_tensors, 10) is None
    broken = [dataclasses.replace(drifts[0], difference_l2=None), *drifts[1:]]
    assert update_ratio(broken, old_tensors, 10) is None
