"""The past as a measure: scale does not matter, the interval does not matter, trouble does not hide itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.baseline import Bar, Point, judge, over_steps

values = st.floats(1e-6, 1e6)


def _points(series: list[float]) -> list[Point]:
    return [Point(step, value) for step, value in enumerate(series)]


@given(st.lists(values, min_size=1, max_size=30), st.sampled_from([0.001, 1024.0]))
def test_the_judgement_does_not_depend_on_the_unit(series: list[float], unit: float) -> None:
    one = judge(_points(series), Bar())
    other = judge(_points([v * unit for v in series]), Bar())
    assert (one.n_high, one.first is None) == (other.n_high, other.first is None)


@given(st.lists(values, min_size=1, max_size=30))
def test_nothing_below_the_ratio_is_ever_too_high(series: list[float]) -> None:
    judgement = judge(_points(series), Bar(ratio_min=3.0))
    if judgement.first is not None:
        assert judgement.baseline is not None
        assert series[-1] > 3.0 * judgement.baseline


@given(st.lists(st.floats(0.8, 1.25), min_size=6, max_size=20), st.floats(20.0, 1e6))
def test_a_jump_after_a_steady_past_is_found_and_dated(series: list[float], jump: float) -> None:
    judgement = judge(_points([*series, jump, jump]), Bar())
    assert judgement.first == Point(len(series), jump)
    assert judgement.n_high == 2


def test_the_highest_of_the_past_and_the_floor_raise_the_bar() -> None:
    series = [1.0, 1.0, 8.0, 1.0, 1.0, 12.0]
    assert judge(_points(series), Bar()).first is not None
    assert judge(_points(series), Bar(highest_min=2.0, factor=20.0)).first is None
    assert judge(_points(series), Bar(floor=13.0)).first is None


@given(values, st.integers(1, 10_000), st.integers(1, 10_000))
def test_motion_over_other_steps_allows_for_straight_and_for_random_motion(moved: float, steps: int, now: int) -> None:
    allowed = over_steps(moved, steps, now)
    assert allowed >= moved * now / steps * (1 - 1e-9)
    assert allowed >= moved * (now / steps) ** 0.5 * (1 - 1e-9)


@pytest.mark.parametrize(("steps", "now"), [(None, 3), (3, None), (0, 3), (-1, 3)])
def test_unknown_steps_count_as_equal(steps: int | None, now: int | None) -> None:
    assert over_steps(2.0, steps, now) == 2.0
