from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import rows
from storage.models import ESCAPE_MARK, escape_text, unescape_text
from storage.records import GradientEstimate, Histogram
from tests.support import stored


@given(stored.any_text | stored.any_text.map(lambda text: ESCAPE_MARK + text))
def test_any_text_comes_back_exactly_and_is_stored_as_valid_utf8_without_nul(text: str) -> None:
    escaped = escape_text(text)
    assert "\0" not in escaped
    escaped.encode("utf-8")
    assert unescape_text(escaped) == text


@given(stored.any_text, stored.any_text)
def test_two_different_texts_are_never_stored_as_the_same(one: str, two: str) -> None:
    assert (escape_text(one) == escape_text(two)) == (one == two)


def test_an_ordinary_text_with_backslashes_is_stored_as_it_is() -> None:
    assert escape_text("C:\\u0041\\x") == "C:\\u0041\\x"
    assert unescape_text("C:\\u0041\\x") == "C:\\u0041\\x"


@given(stored.histograms)
def test_a_histogram_comes_back_as_it_was(histogram: Histogram) -> None:
    assert rows.decode_histogram(rows.encode_histogram(histogram)) == histogram


def test_a_usual_histogram_takes_a_few_bytes_a_bin() -> None:
    histogram = Histogram(bin_indices=tuple(range(-100, 100)), counts=(30_000,) * 200, n_sampled=6_000_000, exact=False)
    assert len(rows.encode_histogram(histogram)) <= 5 * 200


@given(st.data())
def test_damaged_histogram_bytes_are_refused_or_still_a_histogram(data: st.DataObject) -> None:
    blob = rows.encode_histogram(data.draw(stored.histograms))
    cut = blob[: data.draw(st.integers(0, max(0, len(blob) - 1)))]
    with pytest.raises(ValueError, match=r"histogram|bytes length"):
        rows.decode_histogram(cut)


def test_an_unknown_histogram_version_is_refused() -> None:
    blob = b"\x09" + rows.encode_histogram(Histogram(bin_indices=(), counts=(), n_sampled=0, exact=True))[1:]
    with pytest.raises(ValueError, match="version 9"):
        rows.decode_histogram(blob)


@given(st.integers())
def test_integers_are_clamped_to_what_every_database_holds(value: int) -> None:
    kept = rows.integer(value)
    assert -(2**63) < kept < 2**63
    assert kept == value or abs(value) > abs(kept)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_is_stored_as_nothing(value: float | None) -> None:
    assert rows.finite(value) is None


def test_a_snapshot_row_holds_no_nan_and_no_gradient_whose_norm_is_infinite() -> None:
    snapshot = stored.make_snapshot(
        weight_norm=math.inf,
        update_ratio=math.nan,
        duration_seconds=math.nan,
        gradient=GradientEstimate(norm=math.inf, source="adam_ema", window_steps=None),
    )
    row = rows.snapshot_row(snapshot, run_id=1, sort_step=1)
    assert row["weight_norm"] is row["update_ratio"] is row["gradient_norm"] is row["gradient_source"] is None
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in row.values())


@given(st.dictionaries(stored.any_text, st.floats(), max_size=8))
def test_stored_numbers_are_valid_json_without_the_non_finite_ones(numbers: dict[str, float]) -> None:
    text = rows.encode_numbers(numbers)
    kept = {name: value for name, value in numbers.items() if math.isfinite(value)}
    assert rows.decode_numbers(text) == kept
    if text is not None:
        text.encode("ascii")
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@given(stored.pairs)
def test_details_are_stored_printable(details: tuple[tuple[str, str], ...]) -> None:
    for label, text in rows.decode_details(rows.encode_details(details)):
        (label + text).encode("utf-8")
        assert "\0" not in label + text


def test_more_details_than_a_message_holds_are_cut() -> None:
    assert len(rows.decode_details(rows.encode_details([("label", str(i)) for i in range(100)]))) == 20
