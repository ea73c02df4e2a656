from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import encoding
from storage.errors import CorruptDatabaseError
from storage.models import ESCAPE_MARK, escape_text, unescape_text
from storage.records import Histogram
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
    assert encoding.decode_histogram(encoding.encode_histogram(histogram)) == histogram


def test_a_usual_histogram_takes_a_few_bytes_a_bin() -> None:
    histogram = Histogram(bin_indices=tuple(range(-100, 100)), counts=(30_000,) * 200, n_sampled=6_000_000, exact=False)
    assert len(encoding.encode_histogram(histogram)) <= 5 * 200


@given(st.data())
def test_a_histogram_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    blob = encoding.encode_histogram(data.draw(stored.histograms))
    cut = blob[: data.draw(st.integers(0, max(0, len(blob) - 1)))]
    with pytest.raises(CorruptDatabaseError, match="a stored histogram is damaged"):
        encoding.decode_histogram(cut)


def test_an_unknown_histogram_version_is_refused() -> None:
    blob = b"\x09" + encoding.encode_histogram(Histogram(bin_indices=(), counts=(), n_sampled=0, exact=True))[1:]
    with pytest.raises(CorruptDatabaseError, match="version 9"):
        encoding.decode_histogram(blob)


@given(st.integers())
def test_integers_are_clamped_to_what_every_database_holds(value: int) -> None:
    kept = encoding.integer(value)
    assert -(2**63) < kept < 2**63
    assert kept == value or abs(value) > abs(kept)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_is_stored_as_nothing(value: float | None) -> None:
    assert encoding.finite(value) is None


@given(st.dictionaries(stored.any_text, st.floats(), max_size=8))
def test_stored_numbers_are_valid_json_without_the_non_finite_ones(numbers: dict[str, float]) -> None:
    text = encoding.encode_numbers(numbers)
    kept = {name: value for name, value in numbers.items() if math.isfinite(value)}
    assert encoding.decode_numbers(text) == kept
    if text is not None:
        text.encode("ascii")
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("text", ["", "{", '{"a"', "[1]", '[["one"]]'])
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(CorruptDatabaseError, match="damaged"):
        encoding.decode_details(text)
    if not text.startswith("["):
        with pytest.raises(CorruptDatabaseError, match="damaged"):
            encoding.decode_numbers(text)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_histogram_or_refused(blob: bytes) -> None:
    try:
        histogram = encoding.decode_histogram(blob)
    except CorruptDatabaseError:
        return
    assert len(histogram.bin_indices) == len(histogram.counts)


@given(stored.pairs)
def test_details_are_stored_printable(details: tuple[tuple[str, str], ...]) -> None:
    for label, text in encoding.decode_details(encoding.encode_details(details)):
        (label + text).encode("utf-8")
        assert "\0" not in label + text


def test_more_details_than_a_message_holds_are_cut() -> None:
    assert len(encoding.decode_details(encoding.encode_details([("label", str(i)) for i in range(100)]))) == 20
