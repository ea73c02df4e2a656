from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.views import TensorMoment
from monitor.show.web.distribution import RIDGE_CELLS, RIDGE_HEIGHT, RIDGES_MAX, quantile_bands, ridgeline
from tests.support.show_records import snapshot, tensor

QUANTILES = {"0.01": -2.0, "0.05": -1.0, "0.25": -0.5, "0.5": 0.0, "0.75": 0.5, "0.95": 1.0, "0.99": 2.0}
BELL = ((-2.0, -1.0, 10), (-1.0, 0.0, 90), (0.0, 1.0, 90), (1.0, 2.0, 10))


def moment(
    number: int = 1, *, scale: float = 1.0, bins: Sequence[tuple[float, float, int]] = BELL, n_nan: int = 0
) -> TensorMoment:
    return TensorMoment(
        snapshot=snapshot(number),
        tensor=tensor(quantiles={key: scale * value for key, value in QUANTILES.items()}, n_nan=n_nan),
        drift=None,
        bins=tuple((scale * low, scale * high, count) for low, high, count in bins),
    )


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in text.split())]


def test_bands_lie_inside_each_other_around_the_median() -> None:
    found = quantile_bands([moment(1), moment(2), moment(3)])
    assert found is not None
    assert [words for words, _ in found.bands] == ["0.01 to 0.99", "0.05 to 0.95", "0.25 to 0.75"]
    heights = [max(y for _, y in points(band)) - min(y for _, y in points(band)) for _, band in found.bands]
    assert heights == sorted(heights, reverse=True)
    assert {y for _, y in points(found.medians[0])} == {found.zero}
    assert (found.low, found.high, found.is_stretched) == (-2.0, 2.0, False)


def test_one_moment_or_none_has_no_bands() -> None:
    assert quantile_bands([]) is None
    assert quantile_bands([moment()]) is None


def test_a_blow_up_does_not_flatten_what_was_before() -> None:
    moments = [moment(number, scale=1000.0 if number == 9 else 1.0) for number in range(1, 10)]
    bands, ridges = quantile_bands(moments), ridgeline(moments)
    assert bands is not None
    assert ridges is not None
    assert bands.is_stretched
    assert ridges.is_stretched
    raised = [x for x, y in points(ridges.ridges[0].area) if y < RIDGE_HEIGHT - 1]
    assert max(raised) - min(raised) > 5  # in cells; on a plain scale it would be one
    assert ridges.high == 2000.0


def test_a_ridge_peaks_where_the_elements_are() -> None:
    found = ridgeline([moment(bins=((0.0, 0.0, 1), (1.0, 2.0, 1), (2.0, 3.0, 90), (3.0, 4.0, 4)))])
    assert found is not None
    x, y = min(points(found.ridges[0].area), key=lambda point: point[1])
    low, high = found.low, found.high
    assert y == 0
    assert 2.0 <= low + x / RIDGE_CELLS * (high - low) <= 3.1


def test_the_number_of_ridges_is_bounded_and_the_newest_is_among_them() -> None:
    found = ridgeline([moment(number) for number in range(1, 101)])
    assert found is not None
    assert len(found.ridges) == RIDGES_MAX
    assert (found.ridges[0].step, found.ridges[-1].step) == (100, 10_000)


def test_a_ridge_of_a_tensor_with_nan_is_bad_and_says_so() -> None:
    found = ridgeline([moment(1), moment(2, n_nan=3)])
    assert found is not None
    assert [ridge.is_bad for ridge in found.ridges] == [False, True]
    assert "3 not finite" in found.ridges[1].description


def test_a_tensor_of_one_value_has_a_ridge() -> None:
    found = ridgeline([moment(bins=((0.0, 0.0, 64),))])
    assert found is not None
    assert min(y for _, y in points(found.ridges[0].area)) == 0


@given(
    st.lists(st.tuples(st.floats(-1.7e308, 1.7e308), st.floats(0, 1), st.integers(1, 2**40)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1e-300, 1e-3]),
)
def test_every_point_of_a_ridge_lies_on_the_drawing(raw: list[tuple[float, float, int]], scale: float) -> None:
    bins = sorted((value * scale, value * scale + abs(value * scale) * width / 8, count) for value, width, count in raw)
    if not all(math.isfinite(high) for _, high, _ in bins):
        return
    found = ridgeline([moment(bins=bins)])
    for ridge in () if found is None else found.ridges:
        assert all(0 <= x <= RIDGE_CELLS and 0 <= y <= RIDGE_HEIGHT for x, y in points(ridge.area))


@pytest.mark.parametrize("scale", [1e-320, 1.7e308 / 2, 0.0])
def test_extreme_quantiles_are_drawn_inside_the_chart(scale: float) -> None:
    found = quantile_bands([moment(1, scale=scale), moment(2, scale=scale)])
    assert found is not None
    assert all(0 <= y <= found.height for _, band in found.bands for _, y in points(band))
