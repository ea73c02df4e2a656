from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.web.sparkline import sparkline


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_a_rising_series_rises_to_the_right() -> None:
    chart = sparkline([1.0, 2.0, 3.0], width=106, height=26)
    assert chart is not None
    assert points(chart.lines[0]) == [(3, 23), (53, 13), (103, 3)]
    assert chart.last == (103.0, 3.0)
    assert chart.is_logarithmic is False
    assert chart.description == "3 checkpoints, from 1 to 3"


def test_a_flat_series_is_a_line_in_the_middle() -> None:
    chart = sparkline([5.0, 5.0], width=100, height=20)
    assert chart is not None
    assert [y for _, y in points(chart.lines[0])] == [10, 10]


def test_what_spans_decades_is_drawn_on_a_logarithmic_scale() -> None:
    chart = sparkline([1.0, 10.0, 100.0], height=26)
    assert chart is not None
    assert chart.is_logarithmic
    assert [y for _, y in points(chart.lines[0])] == [23, 13, 3]
    assert "logarithmic" in chart.description
    with_zero = sparkline([0.0, 10.0, 100.0])
    assert with_zero is not None
    assert not with_zero.is_logarithmic


def test_a_gap_breaks_the_line_and_a_lonely_number_is_a_dot() -> None:
    chart = sparkline([1.0, 2.0, None, 3.0, math.nan])
    assert chart is not None
    assert len(chart.lines) == 1
    assert len(chart.areas) == 1
    assert len(chart.dots) == 1
    assert len(chart.breaks) == 2
    assert chart.last is None


@pytest.mark.parametrize("values", [[], [1.0], [None, None], [1.0, math.nan], [math.inf, -math.inf]])
def test_fewer_than_two_numbers_make_no_chart(values: list[float | None]) -> None:
    assert sparkline(values) is None


@given(st.lists(st.none() | st.floats(), max_size=50))
def test_any_numbers_stay_inside_the_chart(values: list[float | None]) -> None:
    chart = sparkline(values, width=120, height=30)
    if chart is None:
        assert len([v for v in values if v is not None and math.isfinite(v)]) < 2
        return
    drawn = [point for line in chart.lines for point in points(line)] + list(chart.dots)
    assert len(drawn) + len(chart.breaks) == len(values)
    assert all(0 <= x <= 120 and 0 <= y <= 30 for x, y in drawn)
    assert all(math.isfinite(x) and math.isfinite(y) for x, y in drawn)
