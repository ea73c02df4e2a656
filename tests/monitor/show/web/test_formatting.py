from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.web import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (512.3456, "512.3"),
        (1.0, "1"),
        (-0.0012345, "-0.001234"),
        (123456.7, "123,457"),
        (0.00004, "4e-5"),
        (2.386e-4, "2.386e-4"),
        (1.5e12, "1.5e12"),
    ],
)
def test_numbers_have_four_significant_digits(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


@given(st.floats(-1e308, 1e308))
def test_a_number_is_short_and_close(value: float) -> None:
    text = formatting.number(value)
    assert len(text) <= 11
    assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (95, "1 min 35 s"),
        (1439, "23 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (48 * 3600 + 7200, "2 d 2 h"),
        (400 * 86400, "400 d"),
    ],
)
def test_durations_are_as_coarse_as_one_would_say_them(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_a_time_in_the_future_is_now() -> None:
    assert formatting.ago(100.0, 90.0) == "now"
    assert formatting.ago(90.0, 100.0) == "10 s ago"
    assert formatting.ago(None, 100.0) == "never"


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (497_774_208, "475 MiB"), (2**41, "2 TiB"), (2**60, "1024 PiB")],
)
def test_sizes_are_in_binary_units(n_bytes: int, text: str) -> None:
    assert formatting.size(n_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (999, "999"), (1500, "1.5 k"), (124_439_808, "124.4 M"), (7 * 10**9, "7 B"), (10**15, "1000 T")],
)
def test_counts_are_in_thousands(value: int, text: str) -> None:
    assert formatting.count(value) == text


def test_integers_are_grouped_so_that_they_do_not_break() -> None:
    assert formatting.integer(1234567) == "1\u202f234\u202f567"
    assert formatting.integer(None) == "–"


@pytest.mark.parametrize(
    ("at", "text"), [(1_700_000_000.0, "2023-11-14 22:13:20"), (None, "–"), (1e300, "–"), (math.nan, "–"), (-1e18, "–")]
)
def test_a_timestamp_is_utc_or_nothing(at: float | None, text: str) -> None:
    assert formatting.timestamp(at) == text
