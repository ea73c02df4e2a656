from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure import sketch
from monitor.measure.options import MeasureOptions
from storage.records import Sketch
from tests.support.measuring import summarise

K = 1021
N = 100 * K + 500

Vector = npt.NDArray[np.float64]


def sketch_of(values: npt.NDArray[np.generic], seed: int = 0, cuts: tuple[int, ...] = ()) -> Sketch:
    options = MeasureOptions(sketch_buckets=K, sketch_seed=seed, histogram=False)
    found = summarise(values, cuts, options).sketch
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("seed", [0, 7, 2**62])
def test_the_kernel_folds_as_the_definition_says(dtype: type[np.floating[Any]], seed: int) -> None:
    values: npt.NDArray[np.generic] = np.random.default_rng(0).standard_normal(N).astype(dtype)
    values[1234] = math.nan
    wide = values.astype(np.float64)
    signed = np.where(np.isfinite(wide), wide, 0) * sketch.signs(N, K, seed)
    expected = np.bincount(np.arange(N) % K, weights=signed, minlength=K)
    found = sketch.to_array(sketch_of(values, seed, cuts=(1, 5000, 5001, 40_840)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * float(np.linalg.norm(expected)) / math.sqrt(K))


STRUCTURED: dict[str, Vector] = {
    "noise": np.random.default_rng(1).standard_normal(N),
    "constant": np.ones(N),
    "ramp": np.linspace(-1, 1, N),
    "alternating": np.where(np.arange(N) % 2, 1.0, -1.0),
    "period of the buckets": np.sin(np.arange(N) % K * 0.1),
    "rank one": np.outer(np.random.default_rng(2).standard_normal(N // 300), np.ones(300)).reshape(-1),
    "first tenth": np.where(np.arange(N) < N // 10, 1.0, 0.0),
    "every hundredth row": np.where(np.arange(N) // K % 25 == 3, 1.0, 0.0),
    "one element": np.where(np.arange(N) == 54_321, 1.0, 0.0),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_norm_is_unbiased_and_scatters_by_one_over_root_two_k_whatever_the_structure(name: str) -> None:
    values = STRUCTURED[name]
    truth = float(np.linalg.norm(values))
    ratios = np.array([sketch.norm(sketch_of(values.astype(np.float32), seed)) / truth for seed in range(120)])
    expected = 1 / math.sqrt(2 * K)
    assert float(np.sqrt(np.mean((ratios - 1) ** 2))) < 1.35 * expected
    assert abs(float(np.mean(ratios**2)) - 1) < 4 * 2 * expected / math.sqrt(len(ratios))


def test_a_small_distance_is_found_without_either_tensor() -> None:
    rng = np.random.default_rng(3)
    old = rng.standard_normal(N).astype(np.float32)
    for size in (1e-5, 1e-3, 1.0):
        new = (old + size * rng.standard_normal(N)).astype(np.float32)
        truth = float(np.linalg.norm(new.astype(np.float64) - old))
        assert sketch.difference_l2(sketch_of(new), sketch_of(old)) == pytest.approx(truth, rel=0.1)


def test_equal_tensors_have_no_distance() -> None:
    values = np.random.default_rng(4).standard_normal(N).astype(np.float32)
    assert sketch.difference_l2(sketch_of(values), sketch_of(values.copy())) == 0.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, N), max_size=5))
def test_cuts_make_no_difference_beyond_rounding(cuts: list[int]) -> None:
    values = np.random.default_rng(5).standard_normal(N).astype(np.float32)
    distance = sketch.difference_l2(sketch_of(values, cuts=tuple(cuts)), sketch_of(values))
    assert distance <= 1e-6 * float(np.linalg.norm(values))


def test_small_tensors_are_kept_as_they_are() -> None:
    values = np.random.default_rng(6).standard_normal(K).astype(np.float32)
    found = sketch_of(values)
    assert (found.kind, found.dtype, found.values) == ("raw", "float32", values.astype("<f4").tobytes())
    assert sketch.norm(found) == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-12)
    assert sketch_of(np.arange(K + 1, dtype=np.float32)).kind == "sketch"


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float32", "float32"),
        ("float16", "float32"),
        ("int16", "float32"),
        ("int32", "float64"),
        ("float64", "float64"),
    ],
)
def test_raw_values_are_kept_in_a_dtype_that_holds_them(dtype: str, stored: str) -> None:
    values = np.array([3, 1, 2]).astype(dtype)
    found = sketch_of(values)
    assert found.dtype == stored
    np.testing.assert_array_equal(sketch.to_array(found), values.astype(np.float64))


def test_a_sketch_too_large_for_float32_is_kept_in_float64() -> None:
    found = sketch_of(np.full(N, np.finfo(np.float32).max, np.float32))
    assert found.dtype == "float64"
    assert np.isfinite(sketch.to_array(found)).all()


def test_the_cosine_is_estimated_and_its_distance_keeps_its_digits() -> None:
    rng = np.random.default_rng(7)
    a, noise = rng.standard_normal(N), rng.standard_normal(N)
    for b, truth in ((a, 1.0), (-a, -1.0), (noise, 0.0), (a + noise, math.sqrt(0.5))):
        cosine = sketch.cosine(sketch_of(a), sketch_of(b))
        assert cosine == pytest.approx(truth, abs=0.1)
    near = a + 1e-7 * noise
    distance = sketch.cosine_distance(sketch_of(near), sketch_of(a))
    assert distance == pytest.approx(0.5e-14, rel=0.2)
    assert sketch.cosine(sketch_of(a), sketch_of(np.zeros(N))) is None


def test_sketches_taken_differently_are_not_compared() -> None:
    values = np.ones(N, np.float32)
    with pytest.raises(ValueError, match="cannot be compared"):
        sketch.difference_l2(sketch_of(values, 1), sketch_of(values, 2))
    with pytest.raises(ValueError, match="cannot be compared"):
        sketch.difference_l2(sketch_of(values), sketch_of(values[:10]))
    with pytest.raises(ValueError, match="float32 or float64"):
        sketch.to_array(dataclasses.replace(sketch_of(values), dtype="object"))


def test_norms_survive_the_ends_of_float64() -> None:
    tiny = sketch_of(np.full(5, 1e-200))
    huge = sketch_of(np.full(5, 1e200))
    assert sketch.norm(tiny) == pytest.approx(math.sqrt(5) * 1e-200)
    assert sketch.norm(huge) == pytest.approx(math.sqrt(5) * 1e200)


@pytest.mark.parametrize(
    "change", [{"sketch_buckets": 1000}, {"sketch_buckets": 8209}, {"sketch_seed": -1}, {"chunk_bytes": 1}]
)
def test_options_that_make_no_sketch_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MeasureOptions(**change)  # type: ignore[arg-type]
