from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure import histogram
from storage.records import Histogram
from tests.support.measuring import Array, dtype_of, summarise


def histogram_of(values: Array, cuts: tuple[int, ...] = ()) -> Histogram:
    found = summarise(values, cuts).histogram
    assert found is not None
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_every_value_lies_between_the_edges_of_its_bin(values: list[float]) -> None:
    array = np.array(values)
    found = histogram_of(array)
    assert list(found.bin_indices) == sorted(set(found.bin_indices))
    assert (sum(found.counts), found.n_sampled, found.exact) == (array.size, array.size, True)
    for index, count in zip(found.bin_indices, found.counts, strict=True):
        low, high = histogram.bin_edges(index)
        if index > 0:
            inside = (array > 0) & (array >= low) & ((array < high) | (high == np.finfo(np.float64).max))
        elif index < 0:
            inside = (array < 0) & (array <= high) & ((array > low) | (low == -np.finfo(np.float64).max))
        else:
            inside = array == 0
        assert np.count_nonzero(inside) == count


def test_bins_join_without_gaps_from_the_lowest_to_the_highest() -> None:
    indices = [*range(-16_376, -16_350), *range(-3, 4), *range(8000, 8010), *range(16_350, 16_377)]
    for left, right in itertools.pairwise(indices):
        if right == left + 1:
            assert histogram.bin_edges(left)[1] == histogram.bin_edges(right)[0]
    low, high = histogram.bin_edges(8500)
    assert high / low < 2 ** (1 / 8) * 1.05
    with pytest.raises(ValueError, match="outside the scheme"):
        histogram.bin_edges(16_377)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "int32"])
def test_histograms_of_different_dtypes_use_the_same_bins(dtype: str) -> None:
    values = np.tile(np.array([-4, -1, 0, 0, 1, 2, 64]), 100)
    assert histogram_of(values.astype(dtype_of(dtype))) == histogram_of(values.astype(np.float64))


def test_a_large_tensor_is_sampled_alike_however_it_is_cut() -> None:
    values = np.random.default_rng(0).standard_normal(1021 * 300 + 17).astype(np.float32)
    whole = histogram_of(values)
    assert not whole.exact
    assert 60_000 < whole.n_sampled < values.size
    assert histogram_of(values, cuts=(1, 1021 * 4, 99_999, 200_000, 200_001)) == whole


def test_the_sample_is_spread_over_the_tensor() -> None:
    values = np.floor(np.linspace(1, 65, 1021 * 640, endpoint=False)).astype(np.float32)
    found = histogram_of(values)
    shares = np.array(found.counts) / found.n_sampled
    truth = np.array(histogram_of(values[::10].copy()).counts) / len(values[::10])
    np.testing.assert_allclose(shares, truth, atol=0.02)


@pytest.mark.parametrize("shift", [0.0, 3.0, -40.0])
@pytest.mark.parametrize("size", [30_000, 600_000])
def test_quantiles_are_off_by_less_than_a_bin(size: int, shift: float) -> None:
    values = np.random.default_rng(1).standard_normal(size) + shift
    summary = summarise(values.astype(np.float32))
    for text, found in summary.quantiles.items():
        truth = float(np.quantile(values, float(text)))
        assert abs(found - truth) <= abs(truth) / 8 + 0.02


def test_quantiles_of_a_small_tensor_are_those_of_numpy() -> None:
    values = np.random.default_rng(2).standard_normal(777)
    summary = summarise(values)
    assert list(summary.quantiles) == ["0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"]
    for text, found in summary.quantiles.items():
        assert found == pytest.approx(float(np.quantile(values, float(text))), rel=1e-12)


def test_quantiles_rise_and_stay_within_the_extrema() -> None:
    values = np.concatenate([np.zeros(5000), [-3.0, 7.0]]).astype(np.float32)
    summary = summarise(values)
    ordered = list(summary.quantiles.values())
    assert ordered == sorted(ordered)
    assert summary.min is not None
    assert summary.max is not None
    assert summary.min <= ordered[0] <= ordered[-1] <= summary.max
    assert summary.quantiles["0.5"] == 0.0


def test_non_finite_elements_are_in_no_bin() -> None:
    values = np.tile(np.array([1.0, math.nan, math.inf, -math.inf]), 2000)
    assert histogram_of(values).n_sampled == 2000
    assert histogram_of(values.astype(np.float32)).n_sampled == 2000
