from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.visible_text import LABEL_CHARACTERS_MAX, shortened, unique_labels, visible

ANY_TEXT = st.text(st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.weight", "plain name.weight"),
        ("Größe/模型", "Größe/模型"),
        ("a\nb\x00", "a\\u000ab\\u0000"),
        ("gnp.\u202etxt", "gnp.\\u202etxt"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_hidden_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY_TEXT)
def test_visible_text_can_be_encoded_and_holds_nothing_hidden(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)


@given(ANY_TEXT, st.integers(min_value=8, max_value=64))
def test_shortened_text_keeps_its_ends(text: str, characters_max: int) -> None:
    short = shortened(text, characters_max)
    assert len(short) <= characters_max
    assert short[:3] == text[:3]
    assert short[-3:] == text[-3:]


@given(st.lists(ANY_TEXT, max_size=20))
def test_no_two_names_share_a_label(names: list[str]) -> None:
    labels = unique_labels(names)
    assert set(labels) == set(names)
    assert len(set(labels.values())) == len(labels)
    assert all(len(label) <= LABEL_CHARACTERS_MAX for label in labels.values())


def test_a_name_spelled_like_another_ones_escape_gets_its_own_label() -> None:
    labels = unique_labels(["a\n", "a\\u000a"])
    assert labels["a\n"] == "a\\u000a"
    assert labels["a\\u000a"].startswith("a\\u000a~")


def test_long_names_that_begin_alike_stay_apart_and_stable() -> None:
    long = "x" * 5000
    together = unique_labels([long + "1", long + "2"])
    assert together[long + "2"] == unique_labels([long + "2"])[long + "2"]
    assert together[long + "1"] != together[long + "2"]
