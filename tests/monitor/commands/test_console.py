from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.commands.console import bars


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0, 1.0, 2.0, 7.0], "▁▂▃█"),
        ([1.0, None, 2.0], "▁ █"),
        ([1.0, math.nan, math.inf, 2.0], "▁  █"),
        ([5.0, 5.0], "▁▁"),
        ([1.0, 10.0, 1e7], "▁▂█"),  # logarithmic: the step from 1 to 10 is still seen
        ([1.0, None], ""),
        ([], ""),
    ],
)
def test_numbers_become_bars_and_gaps(values: list[float | None], drawn: str) -> None:
    assert bars(values) == drawn


def test_only_the_latest_numbers_are_drawn() -> None:
    assert bars([9.0, 1.0, 2.0], width_max=2) == "▁█"


@given(st.lists(st.none() | st.floats(), max_size=80))
def test_any_numbers_can_be_drawn(values: list[float | None]) -> None:
    drawn = bars(values)
    assert len(drawn) in {0, min(len(values), 24)}
    assert set(drawn) <= set(" ▁▂▃▄▅▆▇█")
