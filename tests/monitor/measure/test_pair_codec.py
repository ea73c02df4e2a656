"""Compared pairs across the pipe: what comes back is what went out, and nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from monitor.commands import export
from monitor.commands.console import CommandError
from monitor.live import measure
from monitor.live.measuring import opened
from monitor.measure.codec import pairs_from_json, pairs_to_json
from monitor.measure.pair_comparison import compare_pairs

OLD = {"d.kernel": np.arange(12.0).reshape(3, 4), "w": np.ones((2, 6))}
NEW = {"d.weight": np.arange(12.0).reshape(3, 4).T.copy(), "w": np.ones((5, 2))}
TENSORS = {t.name: t for t in measure(NEW).tensors}


def document() -> Any:
    pairs = [("d.kernel", "d.weight"), ("w", "w"), ("gone", "w")]
    return json.loads(json.dumps(pairs_to_json(compare_pairs(opened(OLD)[0], opened(NEW)[0], pairs))))


def test_pairs_come_back_as_they_were() -> None:
    results = compare_pairs(opened(OLD)[0], opened(NEW)[0], [("d.kernel", "d.weight"), ("w", "w"), ("gone", "w")])
    assert pairs_from_json(document(), TENSORS) == results
    assert [(r.layout, r.note) for r in results] == [
        ("(1,0)", None),
        (None, "no order of axes makes (5, 2) of (2, 6)"),
        (None, "one of the two has no values"),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "unknown"),
        ("name", 3),
        ("other_name", ""),
        ("other_name", "a\nb"),
        ("layout", 1),
        ("layout", "x" * 5000),
        ("note", ["a"]),
        ("drift", {}),
        ("more", None),
    ],
)
def test_a_pair_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    answer = document()
    answer["pairs"][0][field] = value
    with pytest.raises(ValueError, match=r"pairs\[0\]"):
        pairs_from_json(answer, TENSORS)


def test_a_drift_with_impossible_numbers_is_refused() -> None:
    for field, value in (("n_changed", 13), ("relative_l2", -1.0), ("method", "sketch"), ("name", "w")):
        answer = document()
        answer["pairs"][0]["drift"][field] = value
        with pytest.raises(ValueError, match=r"pairs\[0\]"):
            pairs_from_json(answer, TENSORS)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"n_tensors": 1, "size_bytes_max": -1, "left_out": []},
        {"n_tensors": True, "size_bytes_max": 1, "left_out": []},
        {"n_tensors": 1, "size_bytes_max": 1, "left_out": ["\x1b[31m"]},
        {"n_tensors": 1, "size_bytes_max": 1, "left_out": "abc"},
        {"n_tensors": 1, "size_bytes_max": 1, "left_out": [], "more": 1},
    ],
)
def test_a_plan_of_an_export_that_makes_no_sense_is_refused(answer: object) -> None:
    with pytest.raises(CommandError, match="makes no sense"):
        export._planned(answer)
